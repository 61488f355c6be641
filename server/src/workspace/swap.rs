//! Carries out prepared steps: the only code that changes mirrored files.
//!
//! A new file takes the place of the old one in one exchange, and only then is it decided whether what
//! came out was ours: looking first and renaming after would lose an edit made in between. Whatever is
//! not ours goes to the recovery store; a directory that holds anything is put back.
//!
//! What was ours is removed after the last rename: until then a tree is neither the old one nor the new one, and
//! a removal takes about as long as a rename.
//!
//! [`Swapped`] is true at every moment: a step is entered as soon as its rename has happened, whatever
//! fails later.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use gitsync_core::model::{ContentId, Dir, Leaf, Mode, RelPath, Signature};
use rustix::io::Errno;

use super::fs::{Kind, Stat, WorkspaceFs};
use super::recovery::{KeepError, Recovery};
use super::stage::{Slot, Stage, content_of, hash_file};

/// How often a step starts over because something else keeps changing the same name.
const TRIES: usize = 16;
/// Below so many steps one thread is done before another has started.
const ALONE_STEPS: usize = 1_000;
/// Steps a thread takes at a time.
const STEPS_AT_ONCE: usize = 128;
/// Renames from one directory to another exclude each other in the kernel: more threads would wait for these.
const THREADS: usize = 2;
/// Why a path is refused where drift is held.
const DRIFT: &str = "drift";
const FULL: &str = "recovery store is full";

/// An operation with everything it needs at hand.
#[derive(Debug)]
pub(super) enum Step {
    Remove {
        path: RelPath,
        old: Leaf,
        slot: Vec<u8>,
    },
    Release {
        path: RelPath,
    },
    Chmod {
        path: RelPath,
        old: Leaf,
        mode: Mode,
    },
    /// What is there already is what was asked for.
    Adopt {
        path: RelPath,
        leaf: Leaf,
    },
    Put {
        path: RelPath,
        old: Option<Leaf>,
        mode: Mode,
        id: ContentId,
        slot: Slot,
    },
}

/// What has happened so far.
#[derive(Debug, Default)]
pub(super) struct Swapped {
    /// What each path touched holds of ours now.
    pub outcomes: BTreeMap<RelPath, Option<Leaf>>,
    pub written: u64,
    pub deleted: u64,
    pub kept: Vec<RelPath>,
    pub refused: Vec<(RelPath, String)>,
    /// Displaced bytes are still in the stage, under a name that says so.
    stranded: bool,
}

/// Why the steps stopped before the last one.
#[derive(Debug)]
pub(super) struct Halt {
    pub action: &'static str,
    pub path: RelPath,
    pub errno: Errno,
}

enum Trouble {
    /// This path cannot be done, the others can.
    Refuse {
        why: String,
        /// What we wrote is no longer there.
        gone: bool,
    },
    Halt(Halt),
}

type Tried<T> = Result<T, Trouble>;

struct Swapper<'a> {
    fs: &'a dyn WorkspaceFs,
    root: Arc<OwnedFd>,
    stage: &'a Stage,
    recovery: &'a Recovery,
    held: &'a Dir,
    next: &'a Dir,
    umask: u32,
    now: SystemTime,
    hold: bool,
    /// Others work beside it, and may be about to use a directory that looks empty.
    shares: bool,
    /// Held while a directory is made: what is in its way must be moved once.
    making: &'a Mutex<()>,
    /// The directory used last: sorted paths share it.
    parent: Option<(RelPath, Arc<OwnedFd>)>,
    /// Directories that may be empty now and should not outlive that.
    emptied: BTreeSet<RelPath>,
    /// Directories made for the step in hand.
    made: Vec<RelPath>,
    /// Displaced files of ours, in the stage, and where they were.
    old: Vec<(RelPath, Vec<u8>)>,
    done: Swapped,
}

/// Where a swapper works, and between which trees.
#[derive(Clone)]
pub(super) struct Place<'a> {
    pub fs: &'a dyn WorkspaceFs,
    pub root: Arc<OwnedFd>,
    pub stage: &'a Stage,
    pub recovery: &'a Recovery,
    pub held: &'a Dir,
    pub next: &'a Dir,
    pub umask: u32,
    pub now: SystemTime,
    /// What is not ours stays where it is, and its path is refused.
    pub hold: bool,
    /// Names that differ are different files here.
    pub exact: bool,
}

/// Does the steps in order. After a halt the rest is not done. Many new files, whose order is all the same, are shared by
/// threads.
pub(super) fn swap(place: &Place<'_>, steps: Vec<Step>) -> (Swapped, Option<Halt>) {
    let making = Mutex::new(());
    let is_new = |step: &Step| matches!(step, Step::Put { old: None, .. });
    let mut alone = Swapper::new(place.clone(), &making);
    if steps.len() < ALONE_STEPS || !place.exact || !steps.iter().all(is_new) {
        let swapped = alone.run(steps);
        return alone.end(swapped);
    }
    let (steps, ends) = (Mutex::new(steps.into_iter()), Mutex::new(Vec::new()));
    let some = || -> Vec<Step> {
        let mut steps = steps.lock().unwrap_or_else(PoisonError::into_inner);
        steps.by_ref().take(STEPS_AT_ONCE).collect()
    };
    let work = || {
        let mut swapper = Swapper { shares: true, ..Swapper::new(place.clone(), &making) };
        let mut swapped = Ok(());
        while swapped.is_ok() {
            let next = some();
            if next.is_empty() {
                break;
            }
            swapped = swapper.run(next);
        }
        if swapped.is_err() {
            while !some().is_empty() {}
        }
        ends.lock().unwrap_or_else(PoisonError::into_inner).push((swapper, swapped));
    };
    std::thread::scope(|scope| {
        for _ in 1..THREADS {
            // Where there is no thread to be had, one does it all.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    let mut all = Ok(());
    for (swapper, swapped) in ends.into_inner().unwrap_or_else(PoisonError::into_inner) {
        alone.emptied.extend(swapper.emptied);
        alone.old.extend(swapper.old);
        alone.done.add(swapper.done);
        all = all.and(swapped);
    }
    alone.prune();
    alone.end(all)
}

impl Swapped {
    /// And what happened at other paths.
    fn add(&mut self, other: Self) {
        let Self { outcomes, written, deleted, kept, refused, stranded } = other;
        self.outcomes.extend(outcomes);
        self.written += written;
        self.deleted += deleted;
        self.kept.extend(kept);
        self.kept.sort();
        self.refused.extend(refused);
        self.stranded |= stranded;
    }
}

impl<'a> Swapper<'a> {
    fn new(place: Place<'a>, making: &'a Mutex<()>) -> Self {
        let Place { fs, root, stage, recovery, held, next, umask, now, hold, exact: _ } = place;
        Self {
            fs,
            root,
            stage,
            recovery,
            held,
            next,
            umask,
            now,
            hold,
            shares: false,
            making,
            parent: None,
            emptied: BTreeSet::new(),
            made: Vec::new(),
            old: Vec::new(),
            done: Swapped::default(),
        }
    }

    fn run(&mut self, steps: Vec<Step>) -> Result<(), Halt> {
        for step in steps {
            if !matches!(step, Step::Remove { .. }) {
                // The removals so far cleared the way for what comes now.
                self.prune();
            }
            self.step(step)?;
        }
        self.prune();
        Ok(())
    }

    /// All that happened, after these steps.
    fn end(mut self, swapped: Result<(), Halt>) -> (Swapped, Option<Halt>) {
        let removed = self.remove_old();
        (self.done, swapped.and(removed).err())
    }

    /// Removes what was displaced and is nobody's but ours.
    fn remove_old(&mut self) -> Result<(), Halt> {
        let mut result = Ok(());
        for (path, slot) in std::mem::take(&mut self.old) {
            match self.fs.unlink(self.stage.dir(), &slot) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => {
                    result = result.and(Err(Halt { action: "remove the old", path, errno }));
                }
            }
        }
        result
    }

    fn step(&mut self, step: Step) -> Result<(), Halt> {
        self.made.clear();
        let (path, tried) = match step {
            Step::Remove { path, old, slot } => {
                let tried = self.remove(&path, &old, &slot);
                (path, tried)
            }
            Step::Release { path } => {
                self.enter(&path, None);
                (path, Ok(()))
            }
            Step::Chmod { path, old, mode } => {
                let tried = self.chmod(&path, &old, mode);
                (path, tried)
            }
            Step::Adopt { path, leaf } => {
                let tried = self.adopt(&path, leaf);
                (path, tried)
            }
            Step::Put { path, old, mode, id, slot } => {
                let slot_name = slot.name.clone();
                let tried = self.put(&path, old.as_ref(), mode, id, slot);
                if tried.is_err() && !self.done.stranded {
                    // Still the new content, if it is there at all.
                    let _ = self.fs.unlink(self.stage.dir(), &slot_name);
                }
                (path, tried)
            }
        };
        match tried {
            Ok(()) => Ok(()),
            Err(Trouble::Refuse { why, gone }) => {
                if gone {
                    self.enter(&path, None);
                }
                self.emptied.extend(self.made.drain(..));
                self.done.refused.push((path, why));
                Ok(())
            }
            Err(Trouble::Halt(halt)) => Err(halt),
        }
    }

    fn put(
        &mut self,
        path: &RelPath,
        old: Option<&Leaf>,
        mode: Mode,
        id: ContentId,
        mut slot: Slot,
    ) -> Tried<()> {
        let file = self.ready(path, mode, &mut slot)?;
        let stage = self.stage.dir();
        let mut exchange = old.is_some();
        for _ in 0..TRIES {
            let parent = self.make_parent(path)?;
            let (at, name) = (parent.as_fd(), path.name());
            if exchange {
                if let Some(old) = old.filter(|_| self.hold) {
                    self.check_ours(at, path, old, Some((mode, id)))?;
                }
                match self.fs.exchange(stage, &slot.name, at, name) {
                    Ok(()) => {}
                    Err(Errno::NOENT) => {
                        exchange = false;
                        continue;
                    }
                    // Where exchanging is done with links, a directory fails like this.
                    Err(Errno::PERM | Errno::ISDIR) if self.is_dir(at, name) => {
                        self.clear_directory(at, name)?;
                        exchange = false;
                        continue;
                    }
                    Err(errno) => return Err(trouble("exchange", path, errno)),
                }
                let out = self.fs.stat_at(stage, &slot.name);
                let out = out.map_err(|e| self.strand("inspect", path, &slot.name, Some((mode, id)), e))?;
                if out.kind == Kind::Dir {
                    let back = self.fs.exchange(stage, &slot.name, at, name);
                    back.map_err(|e| self.strand("put back", path, &slot.name, Some((mode, id)), e))?;
                    self.clear_directory(at, name)?;
                    exchange = false;
                    continue;
                }
                let swapped = self.swapped_in(path, mode, id, file.as_ref(), at);
                self.displaced(path, &out, old, Some(&id), &slot.name, at)?;
                return swapped;
            }
            match self.fs.rename_new(stage, &slot.name, at, name) {
                Ok(()) => return self.swapped_in(path, mode, id, file.as_ref(), at),
                // The directory went away since it was opened.
                Err(Errno::NOENT) => self.parent = None,
                Err(Errno::EXIST) => {
                    let Some(there) = self.look(at, path)? else { continue };
                    if there.kind == Kind::Dir {
                        self.clear_directory(at, name)?;
                        continue;
                    }
                    if old.is_none() {
                        if let Some(twin) = self.twin(path, &there) {
                            let why = format!("this file system takes it for {twin}");
                            return Err(Trouble::Refuse { why, gone: false });
                        }
                        if there.mode() == Some(mode) && self.content(at, path, &there)? == Some(id) {
                            let _ = self.fs.unlink(stage, &slot.name);
                            self.enter(path, Some(Leaf { mode, id, signature: there.signature }));
                            return Ok(());
                        }
                    }
                    if self.hold {
                        return Err(drift(old.is_some()));
                    }
                    exchange = true;
                }
                Err(errno) => return Err(trouble("create", path, errno)),
            }
        }
        Err(Trouble::Refuse { why: "it keeps changing on the server".to_owned(), gone: false })
    }

    /// Gives a staged file its mode. A symlink needs nothing.
    fn ready(&self, path: &RelPath, mode: Mode, slot: &mut Slot) -> Tried<Option<OwnedFd>> {
        if mode == Mode::Symlink {
            return Ok(None);
        }
        // An executable must not be open for writing once it has its name: running it would fail with
        // "text file busy".
        let file = match slot.file.take() {
            Some(file) if mode == Mode::File => file,
            _ => self
                .fs
                .open_file(self.stage.dir(), &slot.name)
                .map_err(|e| halt("open staged content of", path, e))?,
        };
        let permissions = permissions(mode, self.umask);
        self.fs.chmod(file.as_fd(), permissions).map_err(|e| halt("set the mode of", path, e))?;
        Ok(Some(file))
    }

    /// Enters a put that has just happened, with the time of application as its mtime.
    fn swapped_in(
        &mut self,
        path: &RelPath,
        mode: Mode,
        id: ContentId,
        file: Option<&OwnedFd>,
        at: BorrowedFd<'_>,
    ) -> Tried<()> {
        // A signature that fits nothing: should the next calls fail, the file is read again when the
        // workspace is opened.
        let mut leaf = Leaf { mode, id, signature: Signature::default() };
        self.enter(path, Some(leaf));
        self.done.written += 1;
        if let Some(parent) = path.parent()
            && self.held.dir(&parent).is_none()
        {
            // What is a directory now was a file of ours before, one whose removal was refused.
            for dir in path.ancestors().filter(|dir| self.held.get(dir).is_some()) {
                self.done.outcomes.insert(dir, None);
            }
        }
        if self.held.dir(path).is_some() {
            let mut below = Vec::new();
            self.held.for_each_leaf_at(path, &mut |path, _| below.push(path));
            self.done.outcomes.extend(below.into_iter().map(|path| (path, None)));
        }
        let stat = match file {
            Some(file) => self.fs.touch(file.as_fd()).and_then(|()| self.fs.stat(file.as_fd())),
            None => self.fs.stat_at(at, path.name()),
        };
        leaf.signature = stat.map_err(|e| halt("set the time of", path, e))?.signature;
        self.enter(path, Some(leaf));
        Ok(())
    }

    fn remove(&mut self, path: &RelPath, old: &Leaf, slot: &[u8]) -> Tried<()> {
        let parent = match self.find_parent(path) {
            Ok(parent) => parent,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                self.enter(path, None);
                return Ok(());
            }
            Err(errno) => return Err(trouble("open the directory of", path, errno)),
        };
        let (at, stage) = (parent.as_fd(), self.stage.dir());
        if self.hold {
            self.check_ours(at, path, old, None)?;
        }
        match self.fs.rename_new(at, path.name(), stage, slot) {
            Ok(()) => {}
            Err(Errno::NOENT) => {
                self.vacated(path);
                return Ok(());
            }
            Err(errno) => return Err(trouble("remove", path, errno)),
        }
        self.vacated(path);
        let out = self.fs.stat_at(stage, slot).map_err(|e| self.strand("inspect", path, slot, None, e))?;
        if out.kind == Kind::Dir {
            // Ours has gone before, and what is there now is not.
            let back = self.fs.rename_new(stage, slot, at, path.name());
            return back.map_err(|e| self.strand("put back", path, slot, None, e));
        }
        self.done.deleted += 1;
        self.displaced(path, &out, Some(old), None, slot, at)
    }

    fn vacated(&mut self, path: &RelPath) {
        self.enter(path, None);
        let next = self.next;
        self.emptied.extend(path.ancestors().filter(|dir| next.dir(dir).is_none()));
    }

    fn chmod(&mut self, path: &RelPath, old: &Leaf, mode: Mode) -> Tried<()> {
        let hold = self.hold;
        let changed = || match hold {
            true => drift(true),
            false => Trouble::Refuse { why: "it was changed on the server".to_owned(), gone: true },
        };
        let parent = self.find_parent(path).map_err(|_| changed())?;
        let file = self.fs.open_file(parent.as_fd(), path.name()).map_err(|_| changed())?;
        let stat = self.fs.stat(file.as_fd()).map_err(|e| halt("inspect", path, e))?;
        if stat.kind != Kind::File || stat.links != 1 {
            return Err(changed());
        }
        if stat.signature != old.signature {
            let size = stat.signature.size;
            let id = hash_file(self.fs, file.as_fd(), size, old.id.hash_kind());
            if id.map_err(|e| halt("read", path, e))? != Some(old.id) {
                return Err(changed());
            }
        }
        let permissions = permissions(mode, self.umask);
        self.fs.chmod(file.as_fd(), permissions).map_err(|e| trouble("set the mode of", path, e))?;
        let mut leaf = Leaf { mode, id: old.id, signature: Signature::default() };
        self.enter(path, Some(leaf));
        self.done.written += 1;
        leaf.signature = self.fs.stat(file.as_fd()).map_err(|e| halt("inspect", path, e))?.signature;
        self.enter(path, Some(leaf));
        Ok(())
    }

    fn adopt(&mut self, path: &RelPath, leaf: Leaf) -> Tried<()> {
        let there = match self.find_parent(path) {
            Ok(parent) => self.look(parent.as_fd(), path)?,
            Err(_) => None,
        };
        if there.is_none_or(|stat| stat.signature != leaf.signature || stat.mode() != Some(leaf.mode)) {
            let why = "it was changed on the server while it was compared".to_owned();
            return Err(Trouble::Refuse { why, gone: true });
        }
        self.enter(path, Some(leaf));
        Ok(())
    }

    /// Refuses a path whose file is not what we wrote there, nor what is about to be. Somebody may change it
    /// right after this look: then it is displaced, and kept.
    fn check_ours(
        &self,
        at: BorrowedFd<'_>,
        path: &RelPath,
        old: &Leaf,
        new: Option<(Mode, ContentId)>,
    ) -> Tried<()> {
        let Some(there) = self.look(at, path)? else { return Ok(()) };
        // A directory has a rule of its own.
        if there.kind == Kind::Dir || there.mode() == Some(old.mode) && there.signature == old.signature {
            return Ok(());
        }
        let found = there.mode().zip(self.content(at, path, &there)?);
        if found.is_some_and(|found| found == (old.mode, old.id) || Some(found) == new) {
            return Ok(());
        }
        Err(drift(true))
    }

    /// Decides about a file that lies in the stage now: ours is removed, anything else kept.
    fn displaced(
        &mut self,
        path: &RelPath,
        out: &Stat,
        old: Option<&Leaf>,
        new: Option<&ContentId>,
        slot: &[u8],
        at: BorrowedFd<'_>,
    ) -> Tried<()> {
        let stage = self.stage.dir();
        let untouched =
            |old: &Leaf| out.mode() == Some(old.mode) && out.signature.same_but_renamed(&old.signature);
        let known = if old.is_some_and(untouched) {
            true
        } else {
            // Bytes equal to what was there, or is there now, are bytes nobody misses.
            let hash = self.held.hash_kind();
            match content_of(self.fs, stage, slot, out, hash) {
                Ok(id) => id.is_some_and(|id| old.is_some_and(|old| old.id == id) || new == Some(&id)),
                Err(_) => false,
            }
        };
        if known {
            self.old.push((path.clone(), slot.to_vec()));
            return Ok(());
        }
        let Err(error) = self.recovery.keep(stage, slot, path, self.now) else {
            self.done.kept.push(path.clone());
            return Ok(());
        };
        let back = match new {
            Some(_) => self.fs.exchange(stage, slot, at, path.name()),
            None => self.fs.rename_new(stage, slot, at, path.name()),
        };
        match (back, new) {
            (Ok(()), Some(_)) => self.done.written -= 1,
            (Ok(()), None) => self.done.deleted -= 1,
            (Err(_), _) => self.mark_stranded(slot),
        }
        if back.is_ok() {
            // What is there is not ours, so we hold nothing there.
            self.enter(path, None);
        }
        match (error, back) {
            (KeepError::Full, Ok(())) => Err(Trouble::Refuse { why: FULL.to_owned(), gone: true }),
            (KeepError::Full, Err(errno)) => Err(halt("put back", path, errno)),
            (KeepError::Os(errno), _) => Err(halt("keep a copy of", path, errno)),
        }
    }

    /// Something displaced stays in the stage, with `new` of ours at its path: the next opening of the
    /// workspace looks at it.
    fn strand(
        &mut self,
        action: &'static str,
        path: &RelPath,
        slot: &[u8],
        new: Option<(Mode, ContentId)>,
        errno: Errno,
    ) -> Trouble {
        self.mark_stranded(slot);
        self.enter(path, new.map(|(mode, id)| Leaf { mode, id, signature: Signature::default() }));
        halt(action, path, errno)
    }

    /// Names that begin with `d` are never removed unread.
    fn mark_stranded(&mut self, slot: &[u8]) {
        self.done.stranded = true;
        if !slot.starts_with(b"d") {
            let _ = self.fs.rename_new(self.stage.dir(), slot, self.stage.dir(), &self.stage.name('d'));
        }
    }

    fn enter(&mut self, path: &RelPath, leaf: Option<Leaf>) {
        self.done.outcomes.insert(path.clone(), leaf);
    }

    /// What we hold at a path right now.
    fn live(&self, path: &RelPath) -> Option<&Leaf> {
        match self.done.outcomes.get(path) {
            Some(outcome) => outcome.as_ref(),
            None => self.held.get(path),
        }
    }

    fn look(&self, at: BorrowedFd<'_>, path: &RelPath) -> Tried<Option<Stat>> {
        match self.fs.stat_at(at, path.name()) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(trouble("look at", path, errno)),
        }
    }

    fn is_dir(&self, at: BorrowedFd<'_>, name: &[u8]) -> bool {
        self.fs.stat_at(at, name).is_ok_and(|stat| stat.kind == Kind::Dir)
    }

    fn content(&self, at: BorrowedFd<'_>, path: &RelPath, stat: &Stat) -> Tried<Option<ContentId>> {
        let hash = self.held.hash_kind();
        content_of(self.fs, at, path.name(), stat, hash).map_err(|e| trouble("read", path, e))
    }

    /// A managed file beside `path` that is the very file found at `path`: the file system folds case or
    /// normalises names.
    fn twin(&self, path: &RelPath, there: &Stat) -> Option<RelPath> {
        if there.links != 1 {
            return None;
        }
        let same = |leaf: &Leaf| leaf.signature.inode == there.signature.inode;
        let parent = path.parent();
        let siblings = match &parent {
            Some(parent) => self.held.dir(parent).map(|dir| &**dir),
            None => Some(self.held),
        };
        let held = siblings.into_iter().flat_map(|dir| dir.names());
        let held = held.filter_map(|name| RelPath::join(parent.as_ref(), name).ok());
        let put = self.done.outcomes.keys().filter(|p| p.parent() == parent).cloned();
        held.chain(put).find(|p| p != path && self.live(p).is_some_and(same))
    }

    fn find_parent(&mut self, path: &RelPath) -> Result<Arc<OwnedFd>, Errno> {
        let Some(parent) = path.parent() else { return Ok(self.root.clone()) };
        if let Some((cached, dir)) = &self.parent
            && *cached == parent
        {
            return Ok(dir.clone());
        }
        let dir = Arc::new(self.fs.open_dir(self.root.as_fd(), parent.as_bytes())?);
        self.parent = Some((parent, dir.clone()));
        Ok(dir)
    }

    /// The directory of `path`, made where it is missing.
    fn make_parent(&mut self, path: &RelPath) -> Tried<Arc<OwnedFd>> {
        match self.find_parent(path) {
            Ok(dir) => return Ok(dir),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(errno) => return Err(trouble("open the directory of", path, errno)),
        }
        let making = self.making;
        let _alone = making.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at = self.root.clone();
        for dir in path.ancestors() {
            at = Arc::new(self.make_dir(&at, &dir)?);
        }
        if let Some(parent) = path.parent() {
            self.parent = Some((parent, at.clone()));
        }
        Ok(at)
    }

    fn make_dir(&mut self, at: &OwnedFd, dir: &RelPath) -> Tried<OwnedFd> {
        for _ in 0..TRIES {
            match self.fs.open_dir(at.as_fd(), dir.name()) {
                Ok(opened) => return Ok(opened),
                Err(Errno::NOENT) => match self.fs.mkdir(at.as_fd(), dir.name(), 0o777) {
                    Ok(()) => self.made.push(dir.clone()),
                    Err(Errno::EXIST) => {}
                    Err(errno) => return Err(trouble("make the directory", dir, errno)),
                },
                Err(Errno::NOTDIR | Errno::LOOP) => self.clear_parent(at.as_fd(), dir)?,
                Err(errno) => return Err(trouble("open the directory", dir, errno)),
            }
        }
        Err(Trouble::Refuse { why: format!("the directory {dir} keeps changing on the server"), gone: false })
    }

    /// Something that is no directory stands where one is needed.
    fn clear_parent(&mut self, at: BorrowedFd<'_>, dir: &RelPath) -> Tried<()> {
        let refuse = |why: String| Err(Trouble::Refuse { why, gone: true });
        let Some(there) = self.look(at, dir)? else { return Ok(()) };
        match there.kind {
            Kind::Dir => return Ok(()),
            Kind::Symlink => return refuse(format!("the symlink {dir} on the server is in the way")),
            Kind::File | Kind::Other => {}
        }
        if self.live(dir).is_some() {
            return refuse(format!("the file {dir} could not be removed"));
        }
        if self.hold {
            return refuse(DRIFT.to_owned());
        }
        let (stage, slot) = (self.stage.dir(), self.stage.name('d'));
        match self.fs.rename_new(at, dir.name(), stage, &slot) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(trouble("move away", dir, errno)),
        }
        let out = self.fs.stat_at(stage, &slot).map_err(|e| self.strand("inspect", dir, &slot, None, e))?;
        let kept = match out.kind {
            Kind::File | Kind::Other => self.recovery.keep(stage, &slot, dir, self.now),
            // It was exchanged for something that stays where it is.
            Kind::Dir | Kind::Symlink => Err(KeepError::Os(Errno::AGAIN)),
        };
        let Err(error) = kept else {
            self.done.kept.push(dir.clone());
            return Ok(());
        };
        let back = self.fs.rename_new(stage, &slot, at, dir.name());
        back.map_err(|e| self.strand("put back", dir, &slot, None, e))?;
        match error {
            KeepError::Full => refuse(FULL.to_owned()),
            KeepError::Os(Errno::AGAIN) => Ok(()),
            KeepError::Os(errno) => Err(halt("keep a copy of", dir, errno)),
        }
    }

    /// Removes the directory at `name` if nothing but empty directories is in it.
    fn clear_directory(&mut self, at: BorrowedFd<'_>, name: &[u8]) -> Tried<()> {
        self.parent = None;
        if self.is_hollow(at, name, 0) && self.remove_hollow(at, name).is_ok() {
            return Ok(());
        }
        let why = "a directory with other files in it is in the way".to_owned();
        Err(Trouble::Refuse { why, gone: true })
    }

    fn is_hollow(&self, at: BorrowedFd<'_>, name: &[u8], depth: usize) -> bool {
        if depth > 128 || !self.is_dir(at, name) {
            return false;
        }
        let Ok(dir) = self.fs.open_dir(at, name) else { return false };
        let Ok(names) = self.fs.list(dir.as_fd()) else { return false };
        names.iter().all(|child| self.is_hollow(dir.as_fd(), child, depth + 1))
    }

    fn remove_hollow(&self, at: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        let dir = self.fs.open_dir(at, name)?;
        for child in self.fs.list(dir.as_fd())? {
            self.remove_hollow(dir.as_fd(), &child)?;
        }
        self.fs.rmdir(at, name)
    }

    /// Removes the directories we may have emptied, children first. One that is not empty, or cannot go,
    /// stays: it is then not ours to care about.
    fn prune(&mut self) {
        if self.shares || self.emptied.is_empty() {
            return;
        }
        self.parent = None;
        let mut stays: Option<RelPath> = None;
        for dir in std::mem::take(&mut self.emptied).into_iter().rev() {
            if stays.as_ref().is_some_and(|below| below.is_below(&dir)) {
                continue;
            }
            let removed = self.find_parent(&dir).and_then(|at| self.fs.rmdir(at.as_fd(), dir.name()));
            if !matches!(removed, Ok(()) | Err(Errno::NOENT)) {
                stays = Some(dir);
            }
        }
        self.parent = None;
    }
}

/// 0644 or 0755 without the umask's bits; the owner's own bits say which of the two it is.
fn permissions(mode: Mode, umask: u32) -> u32 {
    match mode {
        Mode::Executable => (0o755 & !umask) | 0o700,
        Mode::File | Mode::Symlink => (0o644 & !umask) | 0o600,
    }
}

/// What is there is not what we wrote; `gone` if we wrote anything.
fn drift(gone: bool) -> Trouble {
    Trouble::Refuse { why: DRIFT.to_owned(), gone }
}

fn halt(action: &'static str, path: &RelPath, errno: Errno) -> Trouble {
    Trouble::Halt(Halt { action, path: path.clone(), errno })
}

/// What this path alone cannot have is refused; what says that the disk or the system is at fault stops
/// everything.
fn trouble(action: &'static str, path: &RelPath, errno: Errno) -> Trouble {
    match errno {
        Errno::PERM
        | Errno::ACCESS
        | Errno::XDEV
        | Errno::LOOP
        | Errno::NOTDIR
        | Errno::ISDIR
        | Errno::NAMETOOLONG
        | Errno::ILSEQ
        | Errno::INVAL
        | Errno::BUSY
        | Errno::TXTBSY
        | Errno::NOTEMPTY
        | Errno::EXIST
        | Errno::MLINK
        | Errno::NOTSUP => {
            let why = format!("cannot {action} it: {}", std::io::Error::from(errno));
            Trouble::Refuse { why, gone: false }
        }
        _ => halt(action, path, errno),
    }
}
