//! Other systems: `notify`, one watch per directory. Compiled for tests everywhere, so that it stays whole.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, CreateKind, EventKindMask, ModifyKind, RemoveKind, RenameMode};
use notify::{Config, EventKind, RecursiveMode, WatchPathConfig, Watcher as _};

use super::{Kind, Seen, StartError, WatchError};
use crate::repo::settle::Hint;

/// Directories under watch.
#[derive(Debug)]
pub struct Watcher {
    inner: notify::RecommendedWatcher,
    events: Receiver<Option<Seen>>,
    /// An event of `None` only wakes.
    sender: Sender<Option<Seen>>,
    waiting: std::cell::RefCell<Vec<Seen>>,
    /// With the round each was last asked for in.
    watched: BTreeMap<PathBuf, u32>,
    round: u32,
}

/// Ends a [`Watcher::wait`] from another thread.
#[derive(Debug, Clone)]
pub struct Waker(Sender<Option<Seen>>);

impl Waker {
    pub fn wake(&self) {
        let _ = self.0.send(None);
    }
}

#[cfg_attr(target_os = "linux", expect(dead_code, reason = "Linux has its own"))]
impl Watcher {
    pub fn new() -> Result<Self, StartError> {
        // Reading must not make events, or looking at a file would be a reason to look again.
        let config = Config::default()
            .with_follow_symlinks(false)
            .with_event_kinds(EventKindMask::CORE | EventKindMask::ACCESS_CLOSE);
        let (sender, events) = mpsc::channel();
        let sink = sender.clone();
        let handler = move |event: notify::Result<notify::Event>| {
            for seen in translate(event) {
                let _ = sink.send(Some(seen));
            }
        };
        let inner = notify::RecommendedWatcher::new(handler, config).map_err(|e| StartError(Box::new(e)))?;
        let waiting = std::cell::RefCell::default();
        Ok(Self { inner, events, sender, waiting, watched: BTreeMap::new(), round: 0 })
    }

    pub fn waker(&self) -> Waker {
        Waker(self.sender.clone())
    }

    /// Watches a directory (not what is below it). The system takes only paths, so nobody knows whether it was
    /// watched under another one.
    pub fn watch(&mut self, _dir: &impl AsFd, path: PathBuf) -> Result<bool, WatchError> {
        self.watch_path(path).map(|()| false)
    }

    pub fn watch_path(&mut self, path: PathBuf) -> Result<(), WatchError> {
        let config = WatchPathConfig::new(RecursiveMode::NonRecursive).with_dereference_symlinks(false);
        match self.inner.watch_with(&path, config) {
            Ok(()) => {
                self.watched.insert(path, self.round);
                Ok(())
            }
            Err(e) if matches!(e.kind, notify::ErrorKind::PathNotFound) => Ok(()),
            Err(e) => {
                let limit = matches!(e.kind, notify::ErrorKind::MaxFilesWatch);
                Err(WatchError { dir: path, limit, source: Box::new(e) })
            }
        }
    }

    /// Stops watching `dir` and every directory below it.
    pub fn unwatch_below(&mut self, dir: &Path) {
        self.unwatch(dir, |_, _| true);
    }

    /// Begins a round: what is watched from now on is told from what was before.
    pub fn begin_round(&mut self) {
        self.round = self.round.wrapping_add(1);
    }

    /// Stops watching `dir` and every directory below it, if nobody asked for it in this round and it is not one
    /// to `keep`.
    pub fn unwatch_older(&mut self, dir: &Path, keep: impl Fn(&Path) -> bool) {
        let round = self.round;
        self.unwatch(dir, |path, last| last != round && !keep(path));
    }

    fn unwatch(&mut self, dir: &Path, is_over: impl Fn(&Path, u32) -> bool) {
        let below = self.watched.range(dir.to_owned()..).take_while(|(d, _)| d.starts_with(dir));
        let over: Vec<PathBuf> =
            below.filter(|(path, round)| is_over(path, **round)).map(|(path, _)| path.clone()).collect();
        for path in over {
            self.watched.remove(&path);
            // One that the system has already forgotten is what we want.
            let _ = self.inner.unwatch(&path);
        }
    }

    /// True if `dir` is watched.
    pub fn watches(&self, dir: &Path) -> bool {
        self.watched.contains_key(dir)
    }

    /// Waits until there are events, a wake, or `limit` has passed.
    pub fn wait(&self, limit: Option<Duration>) {
        let first = match limit {
            Some(limit) => self.events.recv_timeout(limit).ok(),
            None => self.events.recv().ok(),
        };
        self.waiting.borrow_mut().extend(first.flatten());
    }

    /// Takes out the events that are there, oldest first. Never blocks.
    pub fn drain(&mut self) -> Vec<Seen> {
        let mut seen = std::mem::take(self.waiting.get_mut());
        seen.extend(self.events.try_iter().flatten());
        seen
    }
}

fn translate(event: notify::Result<notify::Event>) -> Vec<Seen> {
    // What could not be reported was lost.
    let Ok(event) = event else { return vec![Seen::Lost] };
    if event.need_rescan() {
        return vec![Seen::Lost];
    }
    let kind = match event.kind {
        EventKind::Create(CreateKind::Folder) | EventKind::Remove(RemoveKind::Folder) => Kind::Directory,
        EventKind::Create(CreateKind::File) | EventKind::Remove(RemoveKind::File) => Kind::Other,
        _ => Kind::Unknown,
    };
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
    event.paths.into_iter().map(|path| Seen::Path { path, hint, kind }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_a_watched_directory_arrive_and_a_wake_ends_the_wait() {
        let dir = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::new().unwrap();
        watcher.watch_path(dir.path().to_owned()).unwrap();
        watcher.waker().wake();
        watcher.wait(None);
        std::fs::write(dir.path().join("f"), "x").unwrap();
        let mut seen = Vec::new();
        while !seen.iter().any(|s| matches!(s, Seen::Path { hint: Hint::Written, .. })) {
            watcher.wait(Some(Duration::from_secs(10)));
            seen.extend(watcher.drain());
            assert!(!seen.is_empty(), "no event within ten seconds");
        }
    }
}
