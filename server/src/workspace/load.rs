//! Opening a workspace: what of the manifest is still true.
//!
//! A file whose signature is the recorded one is ours unread, unless the record itself could have
//! outrun the disk. Every other one is read: content we wrote, or were about to write, is ours;
//! anything else is foreign from now on. Bytes an interrupted swap left in the stage are kept unless
//! they are known.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use gitsync_core::model::{ContentId, Dir, Entry, Leaf, Mode, RelPath};
use rustix::io::{Errno, Result};

use super::dir::WorkspaceDir;
use super::fs::{Kind, Stat};
use super::manifest::Replayed;
use super::recovery::{Recovery, enter};
use super::stage::{Stage, content_of, is_bucket};

const STAGE: &[u8] = b"stage";
/// Below so many files one thread is done before another has started.
const ALONE_LEAVES: u64 = 4_000;
const THREADS_MAX: usize = 4;
const DIRS_AT_ONCE: usize = 64;

/// What opening a workspace found.
#[derive(Debug, Clone, Default)]
pub struct OpenReport {
    /// Files that had to be read.
    pub rehashed: u64,
    /// Managed paths that hold something else now. They are foreign.
    pub drifted: Vec<RelPath>,
    /// Managed paths where nothing is any more.
    pub missing: Vec<RelPath>,
    /// Foreign bytes an interrupted session had displaced; they are in the recovery store.
    pub kept: Vec<RelPath>,
    /// The manifest could not be read: everything is foreign until compared.
    pub damaged: bool,
}

/// What is believed to be on disk.
pub(super) struct Belief<'a> {
    pub tree: &'a Arc<Dir>,
    /// What else a path may hold that is ours.
    pub unfinished: &'a BTreeMap<RelPath, Vec<(Mode, ContentId)>>,
    pub trusted: Trusted<'a>,
}

/// Whose recorded signatures can be trusted.
#[derive(Debug, Clone, Copy)]
pub(super) enum Trusted<'a> {
    Nobodys,
    All,
    AllBut(&'a BTreeSet<RelPath>),
}

impl Trusted<'_> {
    fn has(self, path: &RelPath) -> bool {
        match self {
            Self::Nobodys => false,
            Self::All => true,
            Self::AllBut(paths) => !paths.contains(path),
        }
    }

    fn has_name(self, dir: Option<&RelPath>, name: &[u8]) -> bool {
        match self {
            Self::Nobodys => false,
            Self::All => true,
            Self::AllBut(_) => RelPath::join(dir, name).is_ok_and(|path| self.has(&path)),
        }
    }
}

/// The part of the believed tree that is on disk.
pub(super) fn verify(dir: &WorkspaceDir, belief: &Belief<'_>, report: &mut OpenReport) -> Result<Arc<Dir>> {
    let (edits, cleared) = (BTreeMap::new(), Vec::new());
    let mut checker = Checker { dir, belief, report, parent: None, edits, cleared, error: None };
    for path in suspects(dir, belief) {
        checker.leaf(path.clone(), belief.tree.get(&path));
    }
    for path in belief.unfinished.keys().filter(|path| belief.tree.get(path).is_none()) {
        checker.leaf(path.clone(), None);
    }
    let Checker { edits, cleared, error, .. } = checker;
    if let Some(error) = error {
        return Err(error);
    }
    let edits: Vec<_> = edits.into_iter().collect();
    // Two kinds of thing cannot be at one path on disk, so they cannot be in what was found there.
    let tree = belief.tree.edit(&edits).map_err(|_| Errno::AGAIN)?;
    prune(dir, &tree, &cleared);
    Ok(tree)
}

/// The managed paths that do not plainly look as recorded, in order: few, as a rule. Everything else costs one
/// `lstat`, and several threads share those of a large tree.
fn suspects(dir: &WorkspaceDir, belief: &Belief<'_>) -> Vec<RelPath> {
    let mut dirs = Vec::new();
    collect(None, belief.tree, &mut dirs);
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        let mut suspects = Vec::new();
        loop {
            let first = next.fetch_add(DIRS_AT_ONCE, Ordering::Relaxed);
            let Some(some) = dirs.get(first..dirs.len().min(first + DIRS_AT_ONCE)) else { break };
            for (path, held) in some {
                look_through(dir, path.as_ref(), held, belief.trusted, &mut suspects);
            }
        }
        found.lock().unwrap_or_else(PoisonError::into_inner).append(&mut suspects);
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if belief.tree.leaves() < ALONE_LEAVES { 1 } else { cores.min(THREADS_MAX) };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Where there is no thread to be had, fewer do the same.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort();
    found
}

/// Every directory of a tree.
fn collect<'a>(at: Option<&RelPath>, dir: &'a Dir, dirs: &mut Vec<(Option<RelPath>, &'a Dir)>) {
    dirs.push((at.cloned(), dir));
    for (name, entry) in dir.entries() {
        if let Entry::Dir(below) = entry
            && let Ok(path) = RelPath::join(at, name)
        {
            collect(Some(&path), below, dirs);
        }
    }
}

/// Adds those files right in a directory that are not as recorded, or that cannot be looked at.
fn look_through(
    dir: &WorkspaceDir,
    path: Option<&RelPath>,
    held: &Dir,
    trusted: Trusted<'_>,
    suspects: &mut Vec<RelPath>,
) {
    let opened = path.map(|path| dir.fs.open_dir(dir.root.as_fd(), path.as_bytes()));
    let at = match &opened {
        None => Some(dir.root.as_fd()),
        Some(opened) => opened.as_ref().ok().map(AsFd::as_fd),
    };
    for (name, entry) in held.entries() {
        let Entry::Leaf(leaf) = entry else { continue };
        let as_recorded = trusted.has_name(path, name)
            && at.is_some_and(|at| dir.fs.stat_at(at, name).is_ok_and(|stat| is_of(&stat, leaf)));
        if !as_recorded {
            suspects.extend(RelPath::join(path, name).ok());
        }
    }
}

fn is_of(stat: &Stat, leaf: &Leaf) -> bool {
    leaf.signature == stat.signature && stat.mode() == Some(leaf.mode)
}

/// Removes the directories an interrupted session had emptied, or made and not yet filled. One that is
/// not empty stays: what is in it is not ours.
fn prune(dir: &WorkspaceDir, tree: &Dir, cleared: &[RelPath]) {
    for path in cleared.iter().rev() {
        let mut above = path.parent();
        while let Some(empty) = above.filter(|dir| tree.dir(dir).is_none()) {
            above = empty.parent();
            let at = match &above {
                Some(parent) => dir.fs.open_dir(dir.root.as_fd(), parent.as_bytes()),
                None => dir.root.try_clone().map_err(|_| Errno::MFILE),
            };
            let removed = at.and_then(|at| dir.fs.rmdir(at.as_fd(), empty.name()));
            if !matches!(removed, Ok(()) | Err(Errno::NOENT)) {
                break;
            }
        }
    }
}

struct Checker<'a> {
    dir: &'a WorkspaceDir,
    belief: &'a Belief<'a>,
    report: &'a mut OpenReport,
    parent: Option<(RelPath, Option<OwnedFd>)>,
    edits: BTreeMap<RelPath, Option<Leaf>>,
    /// Where nothing is because an interrupted session had got that far.
    cleared: Vec<RelPath>,
    error: Option<Errno>,
}

impl Checker<'_> {
    fn leaf(&mut self, path: RelPath, recorded: Option<&Leaf>) {
        if self.error.is_some() {
            return;
        }
        match self.look(&path, recorded) {
            Ok(Now::AsRecorded) => {}
            Ok(Now::Ours(leaf)) => {
                self.edits.insert(path, Some(leaf));
            }
            Ok(Now::Missing) => {
                if self.belief.unfinished.contains_key(&path) {
                    self.cleared.push(path.clone());
                } else if recorded.is_some() {
                    self.report.missing.push(path.clone());
                }
                if recorded.is_some() {
                    self.edits.insert(path, None);
                }
            }
            Ok(Now::Foreign) => {
                if recorded.is_some() {
                    self.report.drifted.push(path.clone());
                    self.edits.insert(path, None);
                }
            }
            Err(e) => self.error = Some(e),
        }
    }

    fn look(&mut self, path: &RelPath, recorded: Option<&Leaf>) -> Result<Now> {
        let (fs, hash) = (self.dir.fs.clone(), self.dir.hash);
        let belief = self.belief;
        let Some(at) = self.parent(path)? else { return Ok(Now::Missing) };
        let stat = match fs.stat_at(at.as_fd(), path.name()) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(Now::Missing),
            Err(e) => return Err(e),
        };
        let Some(mode) = stat.mode() else { return Ok(Now::Foreign) };
        if recorded.is_some_and(|leaf| belief.trusted.has(path) && is_of(&stat, leaf)) {
            return Ok(Now::AsRecorded);
        }
        let id = content_of(&*fs, at.as_fd(), path.name(), &stat, hash)?;
        let begun = belief.unfinished.get(path).map_or(&[][..], Vec::as_slice);
        let ours = id.filter(|id| recorded.is_some_and(|leaf| leaf.id == *id) || names(begun, id));
        self.report.rehashed += 1;
        Ok(match ours {
            Some(id) => Now::Ours(Leaf { mode, id, signature: stat.signature }),
            None => Now::Foreign,
        })
    }

    /// The directory of `path`, `None` if it is not there as a directory of this file system.
    fn parent(&mut self, path: &RelPath) -> Result<Option<&OwnedFd>> {
        let Some(parent) = path.parent() else { return Ok(Some(&*self.dir.root)) };
        if self.parent.as_ref().is_none_or(|(cached, _)| *cached != parent) {
            let opened = match self.dir.fs.open_dir(self.dir.root.as_fd(), parent.as_bytes()) {
                Ok(opened) => Some(opened),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::ACCESS) => None,
                Err(e) => return Err(e),
            };
            self.parent = Some((parent, opened));
        }
        Ok(self.parent.as_ref().and_then(|(_, opened)| opened.as_ref()))
    }
}

enum Now {
    AsRecorded,
    Ours(Leaf),
    Foreign,
    Missing,
}

fn names(begun: &[(Mode, ContentId)], id: &ContentId) -> bool {
    begun.iter().any(|(_, known)| known == id)
}

/// Empties what earlier sessions left in the stage and makes this session's own directory there.
pub(super) fn fresh_stage(
    dir: &WorkspaceDir,
    epoch: u64,
    from: &Replayed,
    recovery: &Recovery,
    report: &mut OpenReport,
) -> Result<Stage> {
    let fs = &*dir.fs;
    let stage = enter(fs, dir.state.as_fd(), STAGE)?;
    let left = Left { dir, from, recovery, ours: OnceCell::new() };
    for name in fs.list(stage.as_fd())? {
        let Ok(old) = fs.open_dir(stage.as_fd(), &name) else { continue };
        for name in fs.list(old.as_fd())? {
            left.clear(&old, &name, report)?;
        }
        fs.rmdir(stage.as_fd(), &name)?;
    }
    let own = enter(fs, stage.as_fd(), epoch.to_string().as_bytes())?;
    Ok(Stage::new(dir.fs.clone(), own))
}

/// What an earlier session left in its stage, and where what is worth it goes.
struct Left<'a> {
    dir: &'a WorkspaceDir,
    from: &'a Replayed,
    recovery: &'a Recovery,
    /// A swap that was cut off may have left many files, so this is made once, when first needed.
    ours: OnceCell<HashSet<ContentId>>,
}

impl Left<'_> {
    /// Removes or keeps what is at `name` in the stage `old`.
    fn clear(&self, old: &OwnedFd, name: &[u8], report: &mut OpenReport) -> Result<()> {
        let fs = &*self.dir.fs;
        // Whoever wrote there before may be leaving only now.
        let Some(stat) = if_there(fs.stat_at(old.as_fd(), name))? else { return Ok(()) };
        if stat.kind == Kind::Dir && is_bucket(name) {
            let Some(bucket) = if_there(fs.open_dir(old.as_fd(), name))? else { return Ok(()) };
            for inner in fs.list(bucket.as_fd())? {
                self.clear(old, &[name, b"/", &inner].concat(), report)?;
            }
            return if_there(fs.rmdir(old.as_fd(), name)).map(drop);
        }
        if self.is_safe(old, name, &stat)? {
            return if_there(fs.unlink(old.as_fd(), name)).map(drop);
        }
        // Where it was is not known if the record is lost: then it is named by its slot.
        let slot = name.rsplit(|byte| *byte == b'/').next().unwrap_or(name);
        let path = self.from.slots.get(name).cloned();
        let path = path.or_else(|| RelPath::new(slot).ok()).ok_or(Errno::INVAL)?;
        self.recovery.keep_anyway(old.as_fd(), name, &path, SystemTime::now())?;
        report.kept.push(path);
        Ok(())
    }

    /// True for what a client sent, and for bytes that were ours: nothing is lost with them.
    fn is_safe(&self, at: &OwnedFd, name: &[u8], stat: &Stat) -> Result<bool> {
        let Self { dir, from, .. } = self;
        // Staged content keeps mode 0600 until its swap. That matters where the record that a swap was begun
        // is lost, by a power cut above all.
        let as_staged = match stat.kind {
            Kind::File => stat.permissions == 0o600,
            Kind::Symlink => from.same_boot,
            Kind::Dir | Kind::Other => false,
        };
        let displaced = from.slots.contains_key(name) || name.starts_with(b"d") || !as_staged;
        if !displaced {
            return Ok(true);
        }
        let Some(id) = content_of(&*dir.fs, at.as_fd(), name, stat, dir.hash)? else { return Ok(false) };
        Ok(self.ours.get_or_init(|| ours_of(from)).contains(&id))
    }
}

fn if_there<T>(done: Result<T>) -> Result<Option<T>> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Contents that swaps which were begun have to do with. Where the log may have lost some, also all that is held.
fn ours_of(from: &Replayed) -> HashSet<ContentId> {
    let mut ours: HashSet<ContentId> = from.unfinished.values().flatten().map(|(_, id)| *id).collect();
    if from.same_boot {
        return ours;
    }
    from.tree.for_each_leaf(&mut |_, leaf| {
        ours.insert(leaf.id);
    });
    ours
}
