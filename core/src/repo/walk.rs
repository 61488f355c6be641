//! Looks at everything below a directory, on all processors.
//!
//! A directory is opened, watched, listed, and compared name by name with what the index and the last look say of it;
//! a file is read only if its signature is new. Trees are made from the leaves up, so what is as it was is shared with
//! the last look and costs no hashing. Nothing is decided here that concerns more than one path: what was found goes
//! back to the [`super::scan::WorkingTree`] that asked.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::FileType;

use super::blocks::BlockCache;
use super::content::ContentCache;
use super::disk::{self, DirHandle, Disk, Found, Read, ReadOutcome};
use super::index::{Child, Section, Tracked};
use super::rules::{self, Descend, Ignore, Rules};
use super::watch::{WatchError, Watcher};
use crate::model::tree::DirBuilder;
use crate::model::{Dir, Entry, HashKind, Leaf, Mode, Needed, RelPath, Signature, WithheldReason, path};

/// A file larger than this would keep the thread from everything else while it is read.
pub const DEFER_FROM: u64 = 4 << 20;
/// A directory with more files than this is looked at in pieces of so many, which several threads can take.
const FILES_AT_ONCE: usize = 256;
/// More directories than this in the queue are worth a thread for each processor.
const ALONE_MOST: usize = 8;
const THREADS_MOST: usize = 8;
/// A progress report after this many files, or
const PROGRESS_FILES: u64 = 500;
/// after this long, when other threads do the work.
const PROGRESS_WAIT: Duration = Duration::from_millis(100);

/// Which remembered contents a scan may believe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Those whose file has the signature it had.
    Signatures,
    /// None: every file is read.
    Nothing,
}

/// What a walk needs to know and to have.
pub struct Context<'a> {
    pub disk: &'a Disk,
    pub rules: &'a Rules,
    pub workdir: &'a Path,
    pub watcher: Mutex<&'a mut Watcher>,
    pub contents: &'a ContentCache,
    pub blocks: &'a BlockCache,
    pub kind: HashKind,
    pub trust: Trust,
    /// Large files are named instead of read.
    pub defer_large: bool,
    /// What is read is told while the walk goes on.
    pub tell_read: bool,
}

/// What a walk tells before it is over.
#[derive(Debug)]
pub enum Told {
    /// The number of files seen so far.
    Files(u64),
    /// Contents that were read.
    Read(Vec<Needed>),
}

/// Where a walk begins.
pub struct Start {
    /// `None` for the root.
    pub at: Option<RelPath>,
    /// How far the directory is looked into; not at all is a way, too.
    pub descend: Descend,
    /// What it was when it was last looked at.
    pub old: Option<Arc<Dir>>,
    /// What is remembered of its files from an earlier run.
    pub remembered: Option<Arc<Dir>>,
}

/// What became of a leaf that is in the tree no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// No file is there.
    Gone,
    /// It is there, and not in the set.
    Left,
    /// Its directory was not looked into.
    Unknown,
}

/// What a walk found beside the tree.
#[derive(Debug, Default)]
pub struct Findings {
    pub withheld: Vec<(RelPath, WithheldReason)>,
    /// Leaves of the old tree that the new one lacks.
    pub lost: Vec<(RelPath, Leaf, Fate)>,
    pub unstable: Vec<RelPath>,
    pub large: Vec<RelPath>,
    /// Directories that are other repositories' working trees.
    pub nested: Vec<RelPath>,
    /// What would be in the set if its name could be.
    pub unfit: Vec<PathBuf>,
    /// The first directory that could not be watched.
    pub unwatched: Option<WatchError>,
    /// Members that were looked at, and how many of them were read.
    pub files: u64,
    pub hashed: u64,
    /// Two threads met one directory under two names: it was moved meanwhile, and who came last cannot be told.
    pub moved: bool,
}

impl Findings {
    fn join(&mut self, other: Findings) {
        self.withheld.extend(other.withheld);
        self.lost.extend(other.lost);
        self.unstable.extend(other.unstable);
        self.large.extend(other.large);
        self.nested.extend(other.nested);
        self.unfit.extend(other.unfit);
        self.unwatched = self.unwatched.take().or(other.unwatched);
        self.files += other.files;
        self.hashed += other.hashed;
        self.moved |= other.moved;
    }
}

/// The tree of what is below `start`, `None` if there is nothing, and what else was found.
pub fn walk(
    context: &Context<'_>,
    start: Start,
    progress: &mut dyn FnMut(Told),
) -> (Option<Arc<Dir>>, Findings) {
    let section = context.rules.index.below(start.at.as_ref());
    let shared = Shared {
        context,
        queue: Mutex::default(),
        changed: Condvar::new(),
        files: AtomicU64::new(0),
        read: Mutex::default(),
        result: Mutex::default(),
    };
    let task = DirTask {
        place: None,
        path: start.at,
        section,
        within: Some(start.descend),
        old: start.old,
        remembered: start.remembered,
    };
    shared.push([Task::Dir(task)]);
    let mut worker = Worker::new(&shared);
    let mut told = 0;
    let others = std::thread::scope(|scope| {
        let mut others = Vec::new();
        while worker.step() {
            if others.is_empty() && shared.lock().tasks.len() > ALONE_MOST {
                let more = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MOST) - 1;
                others.extend((0..more).map(|_| scope.spawn(|| Worker::new(&shared).work())));
            }
            let files = shared.files.load(Ordering::Relaxed);
            if files >= told + PROGRESS_FILES {
                progress(Told::Files(files));
                told = files;
            }
            let read = std::mem::take(&mut *unpoisoned(&shared.read));
            if !read.is_empty() {
                progress(Told::Read(read));
            }
        }
        let joined = others.into_iter().map(|other| match other.join() {
            Ok(found) => found,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.collect::<Vec<_>>()
    });
    let mut found = worker.found;
    found.moved &= !others.is_empty();
    others.into_iter().for_each(|other| found.join(other));
    (unpoisoned(&shared.result).take(), found)
}

/// What the threads of a walk share.
struct Shared<'c, 'a> {
    context: &'c Context<'a>,
    queue: Mutex<Queue<'a>>,
    changed: Condvar,
    files: AtomicU64,
    /// What was read and not told yet.
    read: Mutex<Vec<Needed>>,
    result: Mutex<Option<Arc<Dir>>>,
}

#[derive(Default)]
struct Queue<'a> {
    /// Last in, first out: that keeps few directories half done.
    tasks: Vec<Task<'a>>,
    /// Tasks in hand, which may make more.
    active: usize,
    /// Threads that wait for tasks.
    idle: usize,
}

enum Task<'a> {
    Dir(DirTask<'a>),
    /// Some files of a directory with many.
    Files {
        node: Arc<Node>,
        files: Vec<(usize, FileTask)>,
    },
}

struct DirTask<'a> {
    /// Where in the directory above it belongs; `None` for where the walk began.
    place: Option<Place>,
    path: Option<RelPath>,
    section: Section<'a>,
    /// `None` if it is not known yet, and may never need to be: git tracks files in it.
    within: Option<Descend>,
    old: Option<Arc<Dir>>,
    remembered: Option<Arc<Dir>>,
}

/// A name in a directory that is being made.
struct Place {
    node: Arc<Node>,
    at: usize,
}

/// One member to look at.
struct FileTask {
    name: Vec<u8>,
    old: Option<Leaf>,
    remembered: Option<Leaf>,
    /// What the index says.
    executable: bool,
}

/// A directory whose parts are looked at apart from it.
struct Node {
    handle: DirHandle,
    path: Option<RelPath>,
    place: Option<Place>,
    builder: Mutex<Option<DirBuilder>>,
    /// Parts still to come.
    pending: AtomicUsize,
    like: Option<Arc<Dir>>,
}

fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked takes the whole walk with it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Shared<'_, 'a> {
    fn lock(&self) -> MutexGuard<'_, Queue<'a>> {
        unpoisoned(&self.queue)
    }

    fn push(&self, tasks: impl IntoIterator<Item = Task<'a>>) {
        let mut queue = self.lock();
        queue.tasks.extend(tasks);
        if queue.idle > 0 {
            self.changed.notify_all();
        }
    }

    /// A part of a directory is there, or is nothing. The last one makes the directory, and so on up.
    fn deliver(&self, mut place: Option<Place>, mut dir: Option<Arc<Dir>>) {
        while let Some(Place { node, at }) = place {
            if let Some(builder) = &mut *unpoisoned(&node.builder) {
                builder.set(at, dir.map(Entry::from));
            }
            match self.finish_part(&node) {
                Some(finished) => dir = finished,
                None => return,
            }
            // Only the thread that delivered the last part gets here, so nobody else holds the node for long.
            place = node.place.as_ref().map(|place| Place { node: place.node.clone(), at: place.at });
        }
        *unpoisoned(&self.result) = dir;
    }

    /// One part less to wait for. What the directory came out as, if that was the last.
    fn finish_part(&self, node: &Node) -> Option<Option<Arc<Dir>>> {
        if node.pending.fetch_sub(1, Ordering::AcqRel) > 1 {
            return None;
        }
        let builder = unpoisoned(&node.builder).take();
        Some(builder.and_then(|builder| builder.finish(node.like.as_ref())))
    }
}

/// Gives a task back as done, also when it panicked: nobody is to wait for it.
struct Active<'s, 'c, 'a>(&'s Shared<'c, 'a>);

impl Drop for Active<'_, '_, '_> {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.active -= 1;
        if queue.active == 0 && queue.tasks.is_empty() {
            self.0.changed.notify_all();
        }
    }
}

/// One thread of a walk.
struct Worker<'s, 'c, 'a> {
    shared: &'s Shared<'c, 'a>,
    ignore: Ignore,
    found: Findings,
    /// Lent to the system for listings.
    buffer: Vec<u8>,
}

impl<'s, 'c, 'a> Worker<'s, 'c, 'a> {
    fn new(shared: &'s Shared<'c, 'a>) -> Self {
        let ignore = shared.context.rules.ignore();
        Self { shared, ignore, found: Findings::default(), buffer: Vec::new() }
    }

    fn work(mut self) -> Findings {
        while self.step() {}
        self.found
    }

    /// Does a task, or waits a while for one. False when all is done.
    fn step(&mut self) -> bool {
        let mut queue = self.shared.lock();
        let Some(task) = queue.tasks.pop() else {
            if queue.active == 0 {
                return false;
            }
            queue.idle += 1;
            let waited = self.shared.changed.wait_timeout(queue, PROGRESS_WAIT);
            waited.unwrap_or_else(PoisonError::into_inner).0.idle -= 1;
            return true;
        };
        queue.active += 1;
        drop(queue);
        let _active = Active(self.shared);
        match task {
            Task::Dir(task) => self.look_into(task),
            Task::Files { node, files } => self.look_at_files(&node, files),
        }
        true
    }

    fn look_into(&mut self, task: DirTask<'a>) {
        let DirTask { place, path, section, within, old, remembered } = task;
        if within == Some(Descend::No) {
            self.lose_below(path.as_ref(), old.as_ref(), Fate::Unknown);
            return self.shared.deliver(place, None);
        }
        let handle = match self.open(place.as_ref(), path.as_ref()) {
            Ok(handle) => handle,
            Err(e) => return self.cannot_look(place, path.as_ref(), old, &e),
        };
        if section.is_empty()
            && let Some(dir) = &path
            && self.is_nested(dir, &handle)
        {
            self.lose_below(path.as_ref(), old.as_ref(), Fate::Unknown);
            return self.shared.deliver(place, None);
        }
        // Only then: whatever is written after the listing makes an event.
        self.watch(&handle, path.as_ref());
        let mut names = Names::default();
        if let Err(e) = handle.list(&mut self.buffer, |name, file_type| names.push(name, file_type)) {
            return self.cannot_look(place, path.as_ref(), old, &e);
        }
        names.sort();
        self.compare(Listed { place, handle, path, section, within, old, remembered, names });
    }

    fn open(&self, place: Option<&Place>, path: Option<&RelPath>) -> io::Result<DirHandle> {
        match (place, path) {
            (Some(place), Some(path)) => place.node.handle.dir(path.name()),
            _ => self.shared.context.disk.dir(path),
        }
    }

    /// Something is in the way of looking into a directory.
    fn cannot_look(
        &mut self,
        place: Option<Place>,
        path: Option<&RelPath>,
        old: Option<Arc<Dir>>,
        e: &io::Error,
    ) {
        if disk::is_absence(e) {
            self.lose_below(path, old.as_ref(), Fate::Gone);
            return self.shared.deliver(place, None);
        }
        // Unknown, not empty.
        if let Some(path) = path {
            self.withhold(path.clone(), WithheldReason::Unreadable(e.to_string()));
        }
        self.shared.deliver(place, old);
    }

    /// Notices a nested repository. It is watched, not entered, so that its end is seen; one that is still being made
    /// is watched where its making shows.
    fn is_nested(&mut self, dir: &RelPath, handle: &DirHandle) -> bool {
        let Ok(found) = handle.find(b".git") else { return false };
        if found == Found::Absent {
            return false;
        }
        let workdir = self.shared.context.workdir;
        let nested = rules::is_nested_repo(workdir, dir, handle);
        if nested && self.ignore.is_ignored(dir, true) {
            return true;
        }
        let absolute = workdir.join(dir.as_path());
        let mut watcher = unpoisoned(&self.shared.context.watcher);
        // A watch that fails here costs only the notice that the nesting began or ended.
        if found == Found::Directory
            && let Ok(dot_git) = handle.dir(b".git")
        {
            let _ = watcher.watch(&dot_git, absolute.join(".git"));
        }
        if nested {
            let _ = watcher.watch(handle, absolute);
            self.found.nested.push(dir.clone());
        }
        nested
    }

    fn watch(&mut self, handle: &DirHandle, path: Option<&RelPath>) {
        let workdir = self.shared.context.workdir;
        let absolute = path.map_or_else(|| PathBuf::from(workdir), |path| workdir.join(path.as_path()));
        match unpoisoned(&self.shared.context.watcher).watch(handle, absolute) {
            Ok(moved) => self.found.moved |= moved,
            Err(e) => drop(self.found.unwatched.get_or_insert(e)),
        }
    }

    /// Goes through the names of a directory beside those of the index and of what is remembered, all in order.
    fn compare(&mut self, listed: Listed<'a>) {
        let Listed { place, handle, path, section, mut within, old, remembered, names } = listed;
        let kind = self.shared.context.kind;
        let at = path.as_ref();
        let mut builder = DirBuilder::new(kind, names.all.len());
        let (mut dirs, mut apart) = (Vec::new(), Vec::new());
        let like = old.clone().or_else(|| remembered.clone());
        let is_large = names.all.len() > 2 * FILES_AT_ONCE;
        let children = section.children();
        let mut children = children.iter().peekable();
        let mut olds = old.iter().flat_map(|dir| dir.entries()).peekable();
        let mut memories = remembered.iter().flat_map(|dir| dir.entries()).peekable();
        for (name, file_type) in names.iter() {
            while let Some((gone, entry)) = olds.next_if(|(n, _)| *n < name) {
                self.lose(at, gone, entry, Fate::Gone);
            }
            let before = olds.next_if(|(n, _)| *n == name).map(|(_, entry)| entry);
            while memories.next_if(|(n, _)| *n < name).is_some() {}
            let memory = memories.next_if(|(n, _)| *n == name).map(|(_, entry)| entry);
            while children.next_if(|child| child.name < name).is_some() {}
            let child = children.next_if(|child| child.name == name);
            // What git refuses to add (`.git` in any spelling) is not in the set.
            if before.is_none() && memory.is_none() && !path::can_hold(at, name) {
                if name != b".git" && self.resolve(&mut within, at) == Descend::All {
                    self.note_unfit(at, name, file_type == FileType::Directory);
                }
                continue;
            }
            let (leaf_before, dir_before) = Entry::split(before);
            let (leaf_memory, dir_memory) = Entry::split(memory);
            match file_type {
                FileType::Directory => {
                    if let Some(before @ Entry::Leaf(_)) = before {
                        self.lose(at, name, before, Fate::Gone);
                    }
                    let Ok(dir) = RelPath::join(at, name) else { continue };
                    let Some((section, inner)) = self.enter(&dir, child, section, &mut within, at) else {
                        self.lose_below(Some(&dir), dir_before, Fate::Unknown);
                        continue;
                    };
                    let slot = builder.push(name, None);
                    let (old, remembered) = (dir_before.cloned(), dir_memory.cloned());
                    dirs.push((
                        slot,
                        DirTask { place: None, path: Some(dir), section, within: inner, old, remembered },
                    ));
                }
                FileType::RegularFile | FileType::Symlink => {
                    if let Some(before @ Entry::Dir(_)) = before {
                        self.lose(at, name, before, Fate::Gone);
                    }
                    let tracked = child.map_or(Tracked::No, |child| child.tracked);
                    if !self.is_member(at, name, tracked, &mut within) {
                        if let Some(before @ Entry::Leaf(_)) = before {
                            self.lose(at, name, before, Fate::Left);
                        }
                        continue;
                    }
                    let executable = matches!(tracked, Tracked::Yes { executable: true, .. });
                    let file = File { name, old: leaf_before, remembered: leaf_memory, executable };
                    if is_large {
                        apart.push((builder.push(name, None), file.to_task()));
                    } else if let Some(leaf) = self.look_at(at, &handle, &file) {
                        builder.push(name, Some(Entry::Leaf(leaf)));
                    }
                }
                _ => {
                    if let Some(before) = before {
                        self.lose(at, name, before, Fate::Gone);
                    }
                }
            }
        }
        for (gone, entry) in olds {
            self.lose(at, gone, entry, Fate::Gone);
        }
        if dirs.is_empty() && apart.is_empty() {
            return self.shared.deliver(place, builder.finish(like.as_ref()));
        }
        let mut pieces = Vec::new();
        while !apart.is_empty() {
            pieces.push(apart.split_off(apart.len().saturating_sub(FILES_AT_ONCE)));
        }
        let node = Arc::new(Node {
            handle,
            path,
            place,
            pending: AtomicUsize::new(dirs.len() + pieces.len()),
            builder: Mutex::new(Some(builder)),
            like,
        });
        let dirs = dirs
            .into_iter()
            .rev()
            .map(|(at, task)| Task::Dir(DirTask { place: Some(Place { node: node.clone(), at }), ..task }));
        let pieces = pieces.into_iter().map(|files| Task::Files { node: node.clone(), files });
        self.shared.push(dirs.chain(pieces));
    }

    /// What git tracks in a directory and how far it is looked into; `None` if it is not.
    fn enter(
        &mut self,
        dir: &RelPath,
        child: Option<&Child<'a>>,
        above: Section<'a>,
        within: &mut Option<Descend>,
        at: Option<&RelPath>,
    ) -> Option<(Section<'a>, Option<Descend>)> {
        if child.is_some_and(|child| child.tracked == Tracked::Submodule) {
            self.found.nested.push(dir.clone());
            return None;
        }
        if let Some(child) = child.filter(|child| !child.below.is_empty()) {
            return Some((child.below, None));
        }
        let outer = self.resolve(within, at);
        match self.shared.context.rules.choice.descend(&mut self.ignore, dir, false, outer) {
            Descend::No => None,
            inner => Some((above.nothing(), Some(inner))),
        }
    }

    fn is_member(
        &mut self,
        at: Option<&RelPath>,
        name: &[u8],
        tracked: Tracked,
        within: &mut Option<Descend>,
    ) -> bool {
        match tracked {
            // A file in a submodule's place is what a merge or a person put there.
            Tracked::Yes { .. } | Tracked::Submodule => true,
            Tracked::No => {
                let within = self.resolve(within, at);
                let path = RelPath::join(at, name);
                let rules = self.shared.context.rules;
                path.is_ok_and(|path| rules.choice.is_untracked_member(&mut self.ignore, &path, within))
            }
        }
    }

    fn note_unfit(&mut self, at: Option<&RelPath>, name: &[u8], is_dir: bool) {
        let dir = at.map_or_else(PathBuf::new, |at| at.as_path().to_owned());
        let path = dir.join(OsStr::from_bytes(name));
        if !self.ignore.is_ignored_name(&path, is_dir) {
            self.found.unfit.push(path);
        }
    }

    /// How far the directory at hand is looked into: only what git does not track asks for that. An ignored directory
    /// above shows in what is ignored here.
    fn resolve(&mut self, within: &mut Option<Descend>, at: Option<&RelPath>) -> Descend {
        *within.get_or_insert_with(|| match at {
            None => Descend::All,
            Some(dir) => self.shared.context.rules.choice.descend(&mut self.ignore, dir, true, Descend::All),
        })
    }

    fn look_at_files(&mut self, node: &Arc<Node>, files: Vec<(usize, FileTask)>) {
        let looked: Vec<(usize, Option<Leaf>)> = files
            .iter()
            .map(|(at, file)| (*at, self.look_at(node.path.as_ref(), &node.handle, &file.as_file())))
            .collect();
        if let Some(builder) = &mut *unpoisoned(&node.builder) {
            looked.into_iter().for_each(|(at, leaf)| builder.set(at, leaf.map(Entry::Leaf)));
        }
        if let Some(dir) = self.shared.finish_part(node) {
            let place = node.place.as_ref().map(|place| Place { node: place.node.clone(), at: place.at });
            self.shared.deliver(place, dir);
        }
    }

    /// The leaf of a member: what it was if its signature says so, else what is read.
    fn look_at(&mut self, at: Option<&RelPath>, handle: &DirHandle, file: &File<'_>) -> Option<Leaf> {
        let context = self.shared.context;
        let full = || RelPath::join(at, file.name).ok();
        let found = match handle.find(file.name) {
            Ok(found @ (Found::File { .. } | Found::Symlink { .. })) => found,
            // It was replaced or removed since the listing; that made an event.
            Ok(_) => return self.lose_leaf(at, file, Fate::Gone),
            Err(e) => return self.withhold_at(at, file, WithheldReason::Unreadable(e.to_string())),
        };
        self.found.files += 1;
        self.shared.files.fetch_add(1, Ordering::Relaxed);
        let (mode, signature) = match found {
            Found::File { executable, signature } => {
                (if executable { Mode::Executable } else { Mode::File }, signature)
            }
            Found::Symlink { signature } => (Mode::Symlink, signature),
            _ => return None,
        };
        let limit = context.rules.selection().max_file_size;
        if mode != Mode::Symlink && signature.size > limit {
            return self.withhold_at(at, file, WithheldReason::TooLarge { size: signature.size, limit });
        }
        let mode = self.mode_of(file, mode);
        if context.trust == Trust::Signatures {
            let known = |leaf: &&Leaf| is_unchanged(leaf, mode, signature);
            if let Some(leaf) = file.old.as_ref().filter(known).or(file.remembered.as_ref().filter(known)) {
                return Some(*leaf);
            }
            if context.defer_large && mode != Mode::Symlink && signature.size > DEFER_FROM {
                self.found.large.extend(full());
                return file.old;
            }
        }
        self.found.hashed += 1;
        match handle.read(file.name, context.kind) {
            ReadOutcome::Read(leaf, read) => {
                if context.tell_read && leaf.mode != Mode::Symlink {
                    let Leaf { id, signature, .. } = leaf;
                    let needed =
                        full().map(|path| Needed { path, id, size: signature.size, signature, base: None });
                    unpoisoned(&self.shared.read).extend(needed);
                }
                match read {
                    // A first look reads everything, and most of it no server asks for.
                    Read::Bytes(bytes) if file.old.is_none() => context.contents.put_spare(leaf.id, bytes),
                    Read::Bytes(bytes) => context.contents.put(leaf.id, bytes),
                    Read::Blocks(blocks) => context.blocks.put(leaf.id, blocks),
                }
                Some(Leaf { mode: self.mode_of(file, leaf.mode), ..leaf })
            }
            ReadOutcome::Gone => self.lose_leaf(at, file, Fate::Gone),
            ReadOutcome::Unstable => {
                self.found.unstable.extend(full());
                file.old
            }
            ReadOutcome::Unreadable(e) => {
                self.withhold_at(at, file, WithheldReason::Unreadable(e.to_string()))
            }
        }
    }

    /// The mode that counts: where the disk's execute bit means nothing, the index has it.
    fn mode_of(&self, file: &File<'_>, on_disk: Mode) -> Mode {
        match on_disk {
            Mode::Symlink => Mode::Symlink,
            on_disk if self.shared.context.rules.trust_mode() => on_disk,
            _ if file.executable => Mode::Executable,
            _ => Mode::File,
        }
    }

    /// The file stays as it last was, if it was.
    fn withhold_at(&mut self, at: Option<&RelPath>, file: &File<'_>, reason: WithheldReason) -> Option<Leaf> {
        if let Ok(path) = RelPath::join(at, file.name) {
            self.withhold(path, reason);
        }
        file.old
    }

    fn withhold(&mut self, path: RelPath, reason: WithheldReason) {
        self.found.withheld.push((path, reason));
    }

    fn lose_leaf(&mut self, at: Option<&RelPath>, file: &File<'_>, fate: Fate) -> Option<Leaf> {
        if let Some(old) = file.old {
            self.lose(at, file.name, &Entry::Leaf(old), fate);
        }
        None
    }

    fn lose(&mut self, at: Option<&RelPath>, name: &[u8], entry: &Entry, fate: Fate) {
        let Ok(path) = RelPath::join(at, name) else { return };
        match entry {
            Entry::Leaf(leaf) => self.found.lost.push((path, *leaf, fate)),
            Entry::Dir(dir) => self.lose_below(Some(&path), Some(dir), fate),
        }
    }

    fn lose_below(&mut self, at: Option<&RelPath>, dir: Option<&Arc<Dir>>, fate: Fate) {
        for (name, entry) in dir.iter().flat_map(|dir| dir.entries()) {
            self.lose(at, name, entry, fate);
        }
    }
}

/// A directory whose names are known.
struct Listed<'a> {
    place: Option<Place>,
    handle: DirHandle,
    path: Option<RelPath>,
    section: Section<'a>,
    within: Option<Descend>,
    old: Option<Arc<Dir>>,
    remembered: Option<Arc<Dir>>,
    names: Names,
}

/// One member, and what is known of it.
struct File<'n> {
    name: &'n [u8],
    old: Option<Leaf>,
    remembered: Option<Leaf>,
    /// By the index.
    executable: bool,
}

impl File<'_> {
    fn to_task(&self) -> FileTask {
        let File { name, old, remembered, executable } = *self;
        FileTask { name: name.to_vec(), old, remembered, executable }
    }
}

impl FileTask {
    fn as_file(&self) -> File<'_> {
        let FileTask { ref name, old, remembered, executable } = *self;
        File { name, old, remembered, executable }
    }
}

fn is_unchanged(known: &Leaf, mode: Mode, signature: Signature) -> bool {
    known.mode == mode && known.signature == signature
}

/// What is in a directory, in one piece of memory.
#[derive(Default)]
struct Names {
    bytes: Vec<u8>,
    /// Beginning and end of each name in `bytes`.
    all: Vec<(u32, u32, FileType)>,
}

impl Names {
    fn push(&mut self, name: &[u8], file_type: FileType) {
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(name);
        self.all.push((start, self.bytes.len() as u32, file_type));
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        self.all.sort_unstable_by_key(|(start, end, _)| &bytes[*start as usize..*end as usize]);
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], FileType)> {
        self.all
            .iter()
            .map(|(start, end, file_type)| (&self.bytes[*start as usize..*end as usize], *file_type))
    }
}
