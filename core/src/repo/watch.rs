//! The operating system's file events, one watch per directory.
//!
//! The only user of `notify`. Its recursive mode would watch ignored directories and loses files that
//! are written right after `mkdir -p`, so directories are watched one by one and scanned after.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;

use notify::event::{AccessKind, AccessMode, EventKindMask, ModifyKind, RenameMode};
use notify::{Config, EventKind, PathOp, RecursiveMode, WatchPathConfig, Watcher as _};

use super::settle::Hint;

/// Something the operating system saw.
#[derive(Debug)]
pub enum Seen {
    Path(PathBuf, Hint),
    /// Events were lost: only a scan tells what happened.
    Lost,
    Failed(String),
}

/// Directories under watch.
#[derive(Debug)]
pub struct Watcher {
    inner: notify::RecommendedWatcher,
    watched: BTreeSet<PathBuf>,
}

impl Watcher {
    /// Events go to `sink` from a thread of their own, wrapped by `wrap`.
    pub fn new<T: Send + 'static>(sink: Sender<T>, wrap: fn(Seen) -> T) -> notify::Result<Self> {
        // Reading must not make events, or looking at a file would be a reason to look again.
        let config = Config::default()
            .with_follow_symlinks(false)
            .with_event_kinds(EventKindMask::CORE | EventKindMask::ACCESS_CLOSE);
        let handler = move |event: notify::Result<notify::Event>| {
            for seen in translate(event) {
                // The receiver is gone only when the observer has ended.
                let _ = sink.send(wrap(seen));
            }
        };
        Ok(Self { inner: notify::RecommendedWatcher::new(handler, config)?, watched: BTreeSet::new() })
    }

    /// Watches directories (not what is below them). One that vanished meanwhile is left out: its
    /// parent's watch tells. Watching a path again is right after it was replaced by another directory.
    pub fn watch(&mut self, dirs: Vec<PathBuf>) -> Result<(), WatchError> {
        self.watched.extend(dirs.iter().cloned());
        let op = |dir| PathOp::Watch(dir, WatchPathConfig::new(RecursiveMode::NonRecursive));
        let mut ops: Vec<PathOp> = dirs.into_iter().map(op).collect();
        while !ops.is_empty() {
            let Err(failed) = self.inner.update_paths(ops) else { break };
            ops = failed.remaining;
            let dir = failed.origin.as_ref().map(path_of).unwrap_or_default();
            self.watched.remove(&dir);
            match &failed.source.kind {
                notify::ErrorKind::PathNotFound => {}
                notify::ErrorKind::Io(e) if super::disk::is_absence(e) => {}
                _ => return Err(WatchError { dir, source: failed.source }),
            }
        }
        Ok(())
    }

    /// Stops watching `dir` and every directory below it.
    pub fn unwatch_below(&mut self, dir: &Path) {
        let gone = self.watched_below(dir).cloned().collect();
        self.unwatch(gone);
    }

    pub fn unwatch(&mut self, dirs: Vec<PathBuf>) {
        for dir in dirs {
            self.watched.remove(&dir);
            // One that the system has already forgotten is what we want.
            let _ = self.inner.unwatch(&dir);
        }
    }

    pub fn is_watched(&self, dir: &Path) -> bool {
        self.watched.contains(dir)
    }

    /// `dir` and the directories below it, as far as they are watched.
    pub fn watched_below<'a>(&'a self, dir: &'a Path) -> impl Iterator<Item = &'a PathBuf> {
        self.watched.range(dir.to_owned()..).take_while(move |d| d.starts_with(dir))
    }
}

/// A directory cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch {}", dir.display())]
pub struct WatchError {
    pub dir: PathBuf,
    pub source: notify::Error,
}

fn path_of(op: &PathOp) -> PathBuf {
    match op {
        PathOp::Watch(path, _) | PathOp::Unwatch(path) => path.clone(),
    }
}

fn translate(event: notify::Result<notify::Event>) -> Vec<Seen> {
    let event = match event {
        Ok(event) => event,
        Err(e) => return vec![Seen::Failed(e.to_string())],
    };
    if event.need_rescan() {
        return vec![Seen::Lost];
    }
    let hint = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Hint::Written,
        EventKind::Create(_) => Hint::Appeared,
        EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(RenameMode::From)) => Hint::Vanished,
        EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Hint::Written,
        // Comes beside From and To.
        EventKind::Modify(ModifyKind::Name(RenameMode::Both)) | EventKind::Access(_) => return Vec::new(),
        EventKind::Modify(ModifyKind::Metadata(_)) => Hint::Attributes,
        EventKind::Modify(_) | EventKind::Any | EventKind::Other => Hint::Modified,
    };
    event.paths.into_iter().map(|path| Seen::Path(path, hint)).collect()
}
