//! The thread that keeps one repo's newest snapshot.
//!
//! Watches first, scans after, then turns events into snapshots. It owns everything that blocks
//! (walking, reading, hashing) and shares nothing but what it publishes.

mod git;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bstr::ByteSlice;

use self::git::{GitChanges, watch_git};
use super::aside::{Aside, aside};
use super::blocks::BlockCache;
use super::content::ContentCache;
use super::disk::{Disk, ReadOutcome, SharedDisk};
use super::keeper::Keeper;
use super::large::{LargeFiles, LargeRead};
use super::open::{Head, OpenError, Repo};
use super::place::RepoIdentity;
use super::reading::Reading;
use super::rules::{self, Rules, RulesError, Selection};
use super::scan::{Looked, Told, Trust, WorkingTree};
use super::settle::{Hint, Settle};
use super::watch::{self, Kind, Seen, Waker, WatchError, Watcher};
use crate::model::path::escape;
use crate::model::{ErrorCode, ErrorReport, HashKind, Missing, Needed, RelPath, Snapshot, tree};

/// A file that changed under the reader is looked at again after this long,
const UNSTABLE_WAIT: Duration = Duration::from_millis(100);
/// and is withheld after this many looks in a row.
const UNSTABLE_LOOKS: u32 = 10;
/// A path that was not what a snapshot said when it was sent is looked at after this long.
const CHECK_WAIT: Duration = Duration::from_millis(10);
/// Directories that cannot be watched are covered by scanning this often, or
const POLL_LEAST: Duration = Duration::from_secs(2);
/// so seldom that scanning takes at most a twentieth of the time.
const POLL_FACTOR: u32 = 20;
/// Even when no event says so, everything is looked at this often, or
const SAFETY_LEAST: Duration = Duration::from_secs(60);
/// so seldom that looking takes at most a five-hundredth of a core.
const SAFETY_FACTOR: u32 = 500;
/// How far the first scan is gets told this often.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// The brake is set when this many files, and a large share of what the index lists, are missing from disk.
const BRAKE_FILES: u64 = 20;
/// An `index.lock` under which nothing changes for this long is nobody's.
const LOCK_STALE: Duration = Duration::from_secs(5);
/// What git writes is looked at this often while it is still at work.
const PREVIEW_WAIT: Duration = Duration::from_millis(15);
/// So many of the things that are left out are named.
const NAMED: usize = 5;
/// Commits and branch switches touch several files; they are read together.
const HEAD_WAIT: Duration = Duration::from_millis(20);

/// What an observer says. Called on its thread; must not block.
pub type Publish = Box<dyn FnMut(Report) + Send>;

#[derive(Debug)]
pub enum Report {
    /// The repository is open; its first snapshot takes a while.
    Opened { head: Arc<Head>, hash_kind: HashKind },
    /// There is a new snapshot, or HEAD moved, or both.
    Update(Update),
    /// Git is at work, and the working tree has come this far. It is no state to be in: only its contents may travel.
    Preview(Snapshot),
    /// A large file is being read: what is the same in it as before may travel already.
    Reading(Reading),
    /// Files looked at during the first scan, and how many the index lists.
    Progress { files: u64, of: u64 },
    /// The first scan, which goes on, read these.
    Read(Vec<Needed>),
    /// The first scan is over: files looked at, and how many of them the stat cache could not answer for.
    Scanned { files: u64, hashed: u64 },
    /// Something is not as it should be; observing goes on.
    Trouble(ErrorReport),
    /// The working tree is gone or is another one. Nothing is published until it is back.
    Uprooted(ErrorReport),
    /// So many files are missing that nothing is published until they are back or a person accepts it;
    /// `None` when that has come.
    Brake(Option<Missing>),
    /// With the brake set: so many paths differ from what was published last, since then.
    HeldBack { changes: u64, oldest: Instant },
    /// Worth knowing, and nothing to do about.
    Note(String),
    /// Observing has ended for good.
    Ended(ErrorReport),
}

/// The newest state of a repo.
#[derive(Debug, Clone)]
pub struct Update {
    pub snapshot: Snapshot,
    pub head: Arc<Head>,
    /// Which repository it is.
    pub place: RepoIdentity,
    /// When the oldest change that is new in `snapshot` was seen.
    pub seen: Instant,
    /// How long that change was held back for git.
    pub held: Duration,
    /// A large file is still being read, or waits to be read again: the working tree is further than `snapshot`.
    pub unfinished: bool,
}

/// What can be asked of an observer.
#[derive(Debug)]
pub enum Request {
    /// Look at everything, believing signatures.
    Rescan,
    /// Read everything.
    Reread,
    /// These did not hold what the snapshot says when they were sent.
    Check(Vec<RelPath>),
    /// The files that are missing are meant to be gone.
    Accept,
    Stop,
}

/// A running observer. Dropping it ends the thread.
#[derive(Debug)]
pub struct Observer {
    requests: Sender<Request>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
    pub contents: Arc<ContentCache>,
    pub blocks: Arc<BlockCache>,
    /// The working tree, as it stands at its place now.
    pub disk: Arc<SharedDisk>,
    /// The working tree's root, canonical.
    pub workdir: PathBuf,
}

/// Observing cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Rules(#[from] RulesError),
    #[error(transparent)]
    Watch(#[from] watch::StartError),
    #[error("cannot watch the git directory")]
    WatchGit(#[from] WatchError),
    #[error("cannot open {path}")]
    Root { path: PathBuf, source: std::io::Error },
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    #[error("the observing thread ended while it started")]
    Ended,
}

impl Observer {
    /// Opens the repository at `path` and starts observing it. The first report with a snapshot comes
    /// after the first scan. What files hold is remembered across runs in `cache_dir`, if there is one.
    pub fn start(
        path: &Path,
        selection: Selection,
        cache_dir: Option<&Path>,
        publish: Publish,
    ) -> Result<Self, StartError> {
        let (requests, asked) = mpsc::channel();
        let (opened, start) = mpsc::sync_channel(1);
        let contents = Arc::new(ContentCache::default());
        let (path, cache_dir, kept) = (path.to_owned(), cache_dir.map(Path::to_owned), contents.clone());
        // A repository of gix's cannot change threads, so it is opened on the one that uses it.
        let thread = std::thread::Builder::new()
            .name("observer".into())
            .spawn(move || match Watching::open(&path, selection, cache_dir, kept, publish) {
                Ok(watching) => {
                    let tree = &watching.tree;
                    let facts = (
                        tree.repo.workdir.clone(),
                        tree.watcher.waker(),
                        tree.shared_disk(),
                        tree.blocks.clone(),
                    );
                    let _ = opened.send(Ok(facts));
                    watching.run(&asked);
                }
                Err(e) => {
                    let _ = opened.send(Err(e));
                }
            })
            .map_err(StartError::Thread)?;
        let (workdir, waker, disk, blocks) = start.recv().map_err(|_| StartError::Ended)??;
        Ok(Self { requests, waker, thread: Some(thread), contents, blocks, disk, workdir })
    }

    pub fn request(&self, request: Request) {
        // An observer that has ended has said so.
        let _ = self.requests.send(request);
        self.waker.wake();
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.request(Request::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What those who were told last know.
struct Published {
    snapshot: Snapshot,
    head: Arc<Head>,
    unfinished: bool,
}

struct Watching {
    tree: WorkingTree,
    settle: Settle,
    head: Arc<Head>,
    git: GitChanges,
    publish: Publish,
    /// What was published last.
    published: Option<Published>,
    large: LargeFiles,
    /// How often in a row a file was found changing.
    unstable: BTreeMap<RelPath, u32>,
    /// The file of ignore rules for all of the user's repositories.
    excludes: Option<PathBuf>,
    /// When to scan next without being told to.
    poll: Option<Instant>,
    /// Some directories cannot be watched.
    unwatched: bool,
    uprooted: bool,
    /// The root or the git directory itself changed.
    check_root: bool,
    braked: Option<Missing>,
    /// What was told of as held back.
    held_back: Option<(u64, Instant)>,
    /// Missing files a person said are meant to be.
    accepted: u64,
    /// Deletions are held back because git is still at work.
    lock_delay: bool,
    /// When the last event came, of whatever kind.
    last_event: Instant,
    nested_told: BTreeSet<RelPath>,
    unfit_told: BTreeSet<PathBuf>,
    /// Nothing is looked at early before this.
    preview_due: Option<Instant>,
    /// Paths a session could not make sense of.
    checks: BTreeSet<RelPath>,
    keeper: Keeper,
    /// The first scan is over.
    scanned: bool,
    /// Something was taken in during a hold for git, and is still to be published.
    unpublished: bool,
    /// The last scan found one directory under two names.
    confused: bool,
}

impl Watching {
    fn open(
        path: &Path,
        selection: Selection,
        cache_dir: Option<PathBuf>,
        contents: Arc<ContentCache>,
        publish: Publish,
    ) -> Result<Self, StartError> {
        let repo = Repo::open(path)?;
        let disk = Disk::open(&repo.workdir)
            .map_err(|source| StartError::Root { path: repo.workdir.clone(), source })?;
        let mut keeper = Keeper::new(cache_dir);
        let remembered = keeper.cache(&repo, &disk).map(|cache| std::thread::spawn(move || cache.load()));
        let mut watcher = Watcher::new()?;
        let head = Arc::new(repo.head()?);
        watch_git(&mut watcher, &repo, &head)?;
        // The index is read after its directory is watched, or a change in between would be lost.
        let rules = Rules::load(&repo.gix, selection)?;
        let excludes = rules::global_excludes(&repo.gix);
        if let Some(dir) = excludes.as_deref().and_then(Path::parent) {
            // Where it cannot be watched, the safety scan sees its changes.
            let _ = watcher.watch_path(dir.to_owned());
        }
        let large = LargeFiles::new(watcher.waker());
        let mut tree = WorkingTree::new(repo, disk, rules, watcher, contents);
        if let Some(remembered) = remembered.and_then(|loading| loading.join().ok().flatten()) {
            keeper.is_kept(&remembered);
            tree.remember(remembered);
        }
        Ok(Self {
            large,
            tree,
            settle: Settle::default(),
            head,
            git: GitChanges::default(),
            publish,
            published: None,
            unstable: BTreeMap::new(),
            excludes,
            poll: None,
            unwatched: false,
            uprooted: false,
            check_root: false,
            braked: None,
            held_back: None,
            accepted: 0,
            lock_delay: false,
            last_event: Instant::now(),
            nested_told: BTreeSet::new(),
            unfit_told: BTreeSet::new(),
            preview_due: None,
            checks: BTreeSet::new(),
            keeper,
            scanned: false,
            unpublished: false,
            confused: false,
        })
    }

    fn run(mut self, asked: &Receiver<Request>) {
        let (head, hash_kind) = (self.head.clone(), self.tree.repo.hash_kind);
        (self.publish)(Report::Opened { head, hash_kind });
        self.scan(Trust::Signatures, Instant::now());
        self.tree.defer_large = true;
        loop {
            let limit = self.deadline().map(|at| at.saturating_duration_since(Instant::now()));
            self.tree.watcher.wait(limit);
            // Everything that is there already is taken in before anything is looked at.
            for seen in self.tree.watcher.drain() {
                self.take_in(seen);
            }
            loop {
                match asked.try_recv() {
                    Ok(Request::Stop) | Err(TryRecvError::Disconnected) => {
                        self.keeper.write(&self.tree);
                        return self.keeper.finish();
                    }
                    Ok(request) => self.answer(request),
                    Err(TryRecvError::Empty) => break,
                }
            }
            for read in self.large.take_done() {
                self.take_large(read);
            }
            self.look(Instant::now());
            self.keeper.keep(&self.tree, Instant::now());
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let held_until = self.settle.held_until();
        let head =
            self.git.head.map(|at| held_until.map_or(at + HEAD_WAIT, |until| until.max(at + HEAD_WAIT)));
        // The end of a hold is an event only where git changed something.
        let index = (self.git.index || self.git.ignore || self.unpublished).then_some(held_until).flatten();
        // Whether the lock is still there is looked at again; its removal is an event as well.
        let lock = self.lock_delay.then(|| Instant::now() + UNSTABLE_WAIT);
        let early = self.preview_due.filter(|_| self.settle.has_early(Instant::now()));
        let keep = self.keeper.deadline();
        [self.settle.deadline(), head, index, lock, early, self.poll, keep].into_iter().flatten().min()
    }

    fn take_in(&mut self, seen: Seen) {
        let now = Instant::now();
        self.last_event = now;
        match seen {
            Seen::Path { path, hint, kind } => self.note(&path, hint, kind, now),
            Seen::Lost => {
                tracing::debug!("file events were lost, scanning");
                self.scan(Trust::Signatures, now);
            }
        }
    }

    fn answer(&mut self, request: Request) {
        let now = Instant::now();
        match request {
            Request::Rescan => self.scan(Trust::Signatures, now),
            Request::Reread => self.scan(Trust::Nothing, now),
            Request::Check(paths) => {
                let disk = self.tree.disk();
                for path in paths {
                    if !self.large.will_tell(&path, &disk) {
                        self.settle.look_again(path.clone(), now, CHECK_WAIT, now);
                        self.checks.insert(path);
                    }
                }
            }
            Request::Accept => self.accept(now),
            Request::Stop => {}
        }
    }

    fn note(&mut self, path: &Path, hint: Hint, kind: Kind, now: Instant) {
        let repo = &self.tree.repo;
        if self.excludes.as_deref() == Some(path) {
            self.git.ignore = true;
            return;
        }
        if let Ok(inner) = path.strip_prefix(&repo.git_dir).or_else(|_| path.strip_prefix(&repo.common_dir)) {
            return self.note_git(inner, hint, now);
        }
        let Ok(inner) = path.strip_prefix(&repo.workdir) else { return };
        let bytes = inner.as_os_str().as_bytes();
        if bytes.is_empty() {
            // The root itself: gone, moved, or its permissions changed.
            self.check_root = true;
            return self.scan(Trust::Signatures, now);
        }
        match RelPath::new(bytes) {
            Ok(path) => self.note_path(path, hint, kind, now),
            Err(_) => {
                self.note_nested(bytes, now);
                self.tree.note_unfit_path(bytes);
            }
        }
    }

    fn note_path(&mut self, path: RelPath, hint: Hint, kind: Kind, now: Instant) {
        // The end of a directory is heard of from itself, and perhaps after a file has taken its place.
        let is_minded = |this: &Self| kind != Kind::Other || this.minds_the_end_of(&path);
        let known = self.tree.knows(&path) || hint == Hint::Vanished && is_minded(self);
        if hint == Hint::Vanished && !known {
            self.unstable.remove(&path);
        }
        if hint == Hint::Vanished && self.tree.has_expected(&path) {
            self.settle.note_removal(now);
        }
        match hint {
            Hint::Vanished if kind != Kind::Other => self.tree.leave(&path),
            Hint::Appeared | Hint::Written
                if kind == Kind::Directory || kind == Kind::Unknown && self.tree.is_directory(&path) =>
            {
                return self.enter(&path, now);
            }
            Hint::Vanished | Hint::Appeared | Hint::Written => {}
            Hint::Attributes | Hint::Modified => {}
        }
        match aside(&path) {
            Some(Aside::Of(saved)) if self.tree.knows(&saved) => {
                self.settle.note_aside(path, Some(saved), hint, known, now);
            }
            Some(Aside::Probe) => self.settle.note_aside(path, None, hint, known, now),
            _ => self.settle.note(path, hint, known, now),
        }
    }

    /// True if something changes when what is at `path`, or was, is gone, though the snapshot has nothing there.
    fn minds_the_end_of(&self, path: &RelPath) -> bool {
        let (snapshot, nested) = (self.tree.snapshot(), self.tree.nested());
        let is_here = |found: Option<&RelPath>| found.is_some_and(|f| f == path || f.is_below(path));
        let withheld = snapshot.withheld().range(path..).next().map(|(path, _)| path);
        let marked = [withheld, snapshot.released().range(path..).next(), nested.range(path..).next()];
        let bounds = (Bound::Included(path.as_path()), Bound::Unbounded);
        let unfit = self.tree.unfit().range::<Path, _>(bounds).next();
        let is_above_unfit = unfit.is_some_and(|unfit| unfit.starts_with(path.as_path()));
        marked.into_iter().any(is_here)
            || is_above_unfit
            || path.name() == b".gitignore"
            || self.checks.contains(path)
    }

    fn enter(&mut self, dir: &RelPath, now: Instant) {
        let (files, looked) = self.tree.enter(dir);
        for file in files {
            let known = self.tree.knows(&file);
            self.settle.note(file, Hint::Appeared, known, now);
        }
        if self.tree.knows(dir) {
            // It was a file or another directory: what of that is gone must be noticed too.
            self.settle.note(dir.clone(), Hint::Vanished, true, now);
        }
        self.after(looked, now);
    }

    /// Something below a `.git` inside the tree: a nested repository begins or ends there.
    fn note_nested(&mut self, bytes: &[u8], now: Instant) {
        let Some(at) = bytes.find(b"/.git") else { return };
        if let Ok(dir) = RelPath::new(&bytes[..at]) {
            self.settle.note(dir, Hint::Vanished, true, now);
        }
    }

    /// Looks at what is due and publishes what came of it.
    fn look(&mut self, now: Instant) {
        if self.poll.is_some_and(|at| at <= now) {
            self.scan(Trust::Signatures, now);
        }
        let ready = self.settle.take_ready(now);
        let held = self.settle.is_held(now);
        if held && self.published.is_some() {
            self.look_early(now);
        }
        let (mut seen, mut held_for) = (now, Duration::ZERO);
        let mut looked = Looked::default();
        if !held && std::mem::take(&mut self.git.config) {
            self.reopen();
        }
        let rescanned = !held && std::mem::take(&mut self.git.ignore);
        if rescanned {
            looked.join(self.rescan_rules());
            // Git may have begun meanwhile, and ended: its index says which files are meant to be gone.
            self.git.index = true;
        }
        if !held && std::mem::take(&mut self.git.index) {
            looked.join(self.reread_index(now));
        }
        if let Some(ready) = ready {
            (seen, held_for) = (ready.seen, ready.held);
            looked.join(self.refresh(&ready.paths));
        }
        if !held && self.git.head.is_some_and(|at| at + HEAD_WAIT <= now) {
            self.git.head = None;
            match self.tree.is_rooted() {
                true => self.read_head(),
                false => self.check_root = true,
            }
        }
        looked.uprooted |= self.uprooted || std::mem::take(&mut self.check_root);
        looked.uprooted &= !self.tree.is_rooted();
        self.after(looked, now);
        let held = held || rescanned && self.meets_lock();
        // While git is at work the tree is in no state to be in.
        match held && self.published.is_some() {
            true => self.unpublished = true,
            false => self.publish(seen, held_for),
        }
    }

    /// A large file was read beside this thread.
    fn take_large(&mut self, read: LargeRead) {
        let LargeRead { path, outcome, teller, seen, took } = read;
        let now = Instant::now();
        let leaf = if let Some(ReadOutcome::Read(leaf, _)) = &outcome { Some(*leaf) } else { None };
        let looked = match outcome {
            Some(ReadOutcome::Read(leaf, read)) => self.tree.take_read(&path, leaf, read),
            Some(ReadOutcome::Unreadable(e)) => Some(self.tree.withhold_unreadable(&path, &e)),
            _ => None,
        };
        match looked {
            Some(looked) => {
                self.unstable.remove(&path);
                self.after(looked, now);
                match self.settle.is_held(now) {
                    true => self.unpublished = true,
                    false => self.publish(seen, Duration::ZERO),
                }
                // After the snapshot that has it: what travelled is known to be needed then.
                if let (Some(teller), Some(leaf)) = (teller, leaf) {
                    teller.end(leaf);
                }
            }
            // It changed meanwhile, or went away. Reading takes at most half of the time.
            None => self.settle.read_again(path, seen, took.max(CHECK_WAIT), now),
        }
        self.read_large();
    }

    /// Begins to read large files that wait.
    fn read_large(&mut self) {
        let tree = &self.tree;
        let started = self.large.start(&tree.disk(), tree.repo.hash_kind, |path| tree.blocks_at(path));
        for reading in started {
            (self.publish)(Report::Reading(reading));
        }
    }

    /// Reads what git has written so far, so that its contents can travel before it is done.
    fn look_early(&mut self, now: Instant) {
        if self.preview_due.is_some_and(|at| at > now) {
            return;
        }
        let paths = self.settle.take_early(now);
        if paths.is_empty() {
            return;
        }
        let looked = self.refresh(&paths);
        self.after(looked, now);
        self.preview_due = Some(Instant::now() + PREVIEW_WAIT);
        (self.publish)(Report::Preview(self.tree.snapshot().clone()));
    }

    /// A scan at the latest then.
    fn scan_by(&mut self, at: Instant) {
        self.poll = Some(self.poll.map_or(at, |poll| poll.min(at)));
    }

    fn refresh(&mut self, paths: &[RelPath]) -> Looked {
        for path in paths {
            self.unstable.entry(path.clone()).and_modify(|n| *n += 1);
        }
        let mut looked = self.tree.refresh(paths, false);
        let checked: Vec<RelPath> = paths.iter().filter(|p| self.checks.remove(*p)).cloned().collect();
        if !checked.is_empty() {
            self.tree.release_outsiders(&checked);
        }
        let rules: Vec<&RelPath> = paths.iter().filter(|p| p.name() == b".gitignore").collect();
        if !rules.is_empty() {
            if let Err(e) = self.tree.reload_ignore() {
                self.trouble_of(&e);
            }
            for path in rules {
                let dir = path.parent();
                looked.join(self.tree.scan(dir.as_ref(), Trust::Signatures, &mut |_| {}));
            }
        }
        self.unstable.retain(|path, _| looked.unstable.contains(path) || !paths.contains(path));
        looked
    }

    /// Scans the whole tree and publishes what came of it.
    fn scan(&mut self, trust: Trust, now: Instant) {
        let held = self.settle.held_until().filter(|_| self.settle.is_held(now));
        if let Some(until) = held.max(self.settle.removals_until(now))
            && trust == Trust::Signatures
            && self.published.is_some()
        {
            // Git is at work, or somebody removes many files: a look now would show half of it.
            self.poll = Some(until);
            return;
        }
        if self.scanned && !self.tree.is_rooted() {
            // Nothing of what stands there now is taken for this repository's.
            return self.after(Looked { uprooted: true, ..Looked::default() }, now);
        }
        let first = !std::mem::replace(&mut self.scanned, true);
        let seen = self.settle.clear().unwrap_or(now);
        // The first scan has what was read a moment ago.
        let index = match self.tree.has_index() && !first {
            true => self.tree.rules.reload_index(&self.tree.repo.gix).err(),
            false => None,
        };
        let ignore = if first { None } else { self.tree.reload_ignore().err() };
        for failed in [index, ignore].into_iter().flatten() {
            self.trouble_of(&failed);
        }
        let (publish, of) = (&mut self.publish, self.tree.rules.expected());
        let (started, cpu) = (Instant::now(), thread_cpu());
        if trust == Trust::Nothing {
            self.large.distrust();
        }
        self.tree.tell_read = first;
        let mut last_told: Option<Instant> = None;
        let mut looked = self.tree.scan(None, trust, &mut |told| match told {
            Told::Files(files) if first && last_told.is_none_or(|at| at.elapsed() >= PROGRESS_EVERY) => {
                last_told = Some(Instant::now());
                publish(Report::Progress { files, of: of.max(files) });
            }
            Told::Files(_) => {}
            Told::Read(contents) => publish(Report::Read(contents)),
        });
        self.tree.tell_read = false;
        if first {
            (self.publish)(Report::Scanned { files: looked.files, hashed: looked.hashed });
        }
        self.tree.count_missing();
        looked.uprooted |= !self.tree.is_rooted();
        let (unwatched, confused) = (looked.unwatched.is_some(), looked.confused);
        let wait = match unwatched {
            true => POLL_LEAST.max(started.elapsed() * POLL_FACTOR),
            false => SAFETY_LEAST.max(thread_cpu().saturating_sub(cpu) * SAFETY_FACTOR),
        };
        // What it came to may ask for the next one sooner.
        self.poll = Some(Instant::now() + wait);
        self.after(looked, now);
        (self.unwatched, self.confused) = (unwatched, confused);
        self.read_head();
        self.publish(seen, Duration::ZERO);
    }

    fn tell_nested(&mut self) {
        if *self.tree.nested() == self.nested_told {
            return;
        }
        self.nested_told.clone_from(self.tree.nested());
        if self.nested_told.is_empty() {
            return (self.publish)(Report::Note(
                "no repository inside the repository is left out any more".into(),
            ));
        }
        let names: Vec<String> = self.nested_told.iter().take(NAMED).map(ToString::to_string).collect();
        let more = self.nested_told.len().saturating_sub(names.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        (self.publish)(Report::Note(format!(
            "repositories inside the repository are left out: {}{more}",
            names.join(", ")
        )));
    }

    fn tell_unfit(&mut self) {
        if *self.tree.unfit() == self.unfit_told {
            return;
        }
        self.unfit_told.clone_from(self.tree.unfit());
        if self.unfit_told.is_empty() {
            return (self.publish)(Report::Note("nothing is left out because of its name any more".into()));
        }
        let named = self.unfit_told.iter().take(NAMED).map(|path| {
            let bytes = path.as_os_str().as_bytes();
            let why = RelPath::new(bytes).err().map_or_else(String::new, |e| format!(" ({e})"));
            format!("{}{why}", escape(bytes))
        });
        let named = named.collect::<Vec<_>>().join(", ");
        let more = self.unfit_told.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        (self.publish)(Report::Note(format!(
            "left out because of the name: {named}{more}; rename it to have it mirrored"
        )));
    }

    /// A person says that what halted this repo is meant.
    fn accept(&mut self, now: Instant) {
        if let Some(missing) = self.braked {
            self.accepted = missing.files;
        }
        if self.uprooted {
            self.replant();
            self.scan(Trust::Signatures, now);
        }
    }

    /// Another repository at the same place becomes the one that is mirrored.
    fn replant(&mut self) {
        let path = self.tree.repo.workdir.clone();
        let found = Repo::open(&path).map_err(StartError::from).and_then(|repo| {
            let disk = Disk::open(&repo.workdir).map_err(|source| StartError::Root { path, source })?;
            watch_git(&mut self.tree.watcher, &repo, &self.head)?;
            let rules = Rules::load(&repo.gix, self.tree.rules.selection().clone())?;
            Ok((repo, disk, rules))
        });
        match found {
            Ok((repo, disk, rules)) if repo.hash_kind == self.tree.repo.hash_kind => {
                self.tree.replant(repo, disk, rules);
            }
            Ok(_) => {
                self.trouble("the repository here now", "it uses another object format; restart gitsync");
            }
            Err(e) => self.trouble_of(&e),
        }
    }

    fn after(&mut self, looked: Looked, now: Instant) {
        self.keeper.note(self.tree.snapshot().root(), now);
        let mut never_still = Vec::new();
        for path in looked.unstable {
            let looks = self.unstable.entry(path.clone()).or_default();
            if *looks == UNSTABLE_LOOKS {
                never_still.push(path.clone());
            }
            self.settle.look_again(path, now, UNSTABLE_WAIT, now);
        }
        if !never_still.is_empty() {
            self.tree.withhold_unstable(never_still);
        }
        if !looked.large.is_empty() {
            let disk = self.tree.disk();
            for path in looked.large {
                self.large.want(path, now, &disk);
            }
            self.read_large();
        }
        if let Some(e) = looked.unwatched
            && !self.unwatched
        {
            self.trouble_of(&e);
            self.scan_by(now + POLL_LEAST);
        }
        // Twice in a row it is no accident (a mount inside the tree), and looking again would not end.
        if looked.confused && !self.confused {
            self.scan_by(now + UNSTABLE_WAIT);
        }
        if looked.uprooted && !self.uprooted {
            let report = self.uprooted_report();
            (self.publish)(Report::Uprooted(report));
        }
        if looked.uprooted {
            self.poll = Some(now + POLL_LEAST);
        }
        if self.uprooted && !looked.uprooted {
            // Even an unchanged tree is news to those who were told it is gone; and it may have changed elsewhere.
            self.published = None;
            if let Err(e) = watch_git(&mut self.tree.watcher, &self.tree.repo, &self.head) {
                self.trouble_of(&e);
            }
            self.scan_by(now);
        }
        self.uprooted = looked.uprooted;
    }

    fn uprooted_report(&self) -> ErrorReport {
        let path = self.tree.repo.workdir.display();
        let (message, causes) = match self.tree.denial() {
            Some(e) => (
                format!("cannot read {path} or its git directory"),
                vec![e.to_string(), "nothing is deleted on any server until it can be read again".into()],
            ),
            None => (
                format!("{path}, its git directory or its index is gone or was replaced"),
                vec![
                    "nothing is deleted on any server until it is back, or until you accept what is there now"
                        .into(),
                ],
            ),
        };
        ErrorReport { code: ErrorCode::Repository, message, causes, retryable: true }
    }

    /// True if so much is missing that it must not reach a server yet.
    fn is_braked(&mut self) -> bool {
        let missing = self.tree.missing();
        let beyond = missing.files >= BRAKE_FILES && missing.is_large();
        if !beyond {
            self.accepted = 0;
        }
        // What was accepted stays so; as much again on top of it does not.
        let trips = beyond && missing.files >= self.accepted + BRAKE_FILES;
        // A lock under which nothing happens is left over, or an editor is open: it excuses nothing.
        let at_work = self.last_event.elapsed() < LOCK_STALE;
        let locked = self.tree.repo.git_dir.join("index.lock").symlink_metadata().is_ok();
        self.lock_delay = trips && locked && at_work;
        let braked = (trips && !self.lock_delay).then_some(missing);
        if braked != self.braked {
            (self.publish)(Report::Brake(braked));
        }
        self.braked = braked;
        braked.is_some()
    }

    /// Says how far the tree is by now; a change seen then is new in it.
    fn hold_back(&mut self, seen: Instant) {
        let changes = match &self.published {
            Some(old) => tree::diff(old.snapshot.root(), self.tree.snapshot().root()).len() as u64,
            None => self.tree.missing().files,
        };
        let (told, oldest) = self.held_back.unwrap_or((0, seen));
        if told != changes {
            (self.publish)(Report::HeldBack { changes, oldest });
        }
        self.held_back = Some((changes, oldest));
    }

    fn publish(&mut self, seen: Instant, held: Duration) {
        self.unpublished = false;
        self.tell_nested();
        self.tell_unfit();
        if self.uprooted {
            return;
        }
        if self.is_braked() {
            return self.hold_back(seen);
        }
        self.held_back = None;
        let snapshot = match (&self.published, self.lock_delay) {
            // Git may be half way through a checkout: what it wrote goes, what it removed waits.
            (None, true) => return,
            (Some(old), true) => match without_removals(&old.snapshot, self.tree.snapshot()) {
                Some(snapshot) => snapshot,
                None => return,
            },
            _ => self.tree.snapshot().clone(),
        };
        let unfinished = self.large.is_any() || self.settle.is_behind();
        let unchanged = self.published.as_ref().is_some_and(|old| {
            old.snapshot.id() == snapshot.id()
                && Arc::ptr_eq(old.snapshot.withheld(), snapshot.withheld())
                && Arc::ptr_eq(old.snapshot.released(), snapshot.released())
                && old.head == self.head
                && old.unfinished == unfinished
        });
        if unchanged {
            if self.preview_due.take().is_some() {
                // Git wrote what was there before: what travelled is of no use.
                (self.publish)(Report::Preview(snapshot));
            }
            return;
        }
        self.preview_due = None;
        let head = self.head.clone();
        self.published = Some(Published { snapshot: snapshot.clone(), head: head.clone(), unfinished });
        let place = self.tree.repo.place;
        let update = Update { snapshot, head, place, seen, held, unfinished };
        (self.publish)(Report::Update(update));
    }

    fn trouble_of(&mut self, error: &dyn std::error::Error) {
        (self.publish)(Report::Trouble(ErrorReport::of(ErrorCode::Repository, error, true)));
    }

    fn trouble(&mut self, message: &str, cause: &str) {
        (self.publish)(Report::Trouble(ErrorReport {
            code: ErrorCode::Repository,
            message: message.into(),
            causes: vec![cause.into()],
            retryable: true,
        }));
    }
}

/// `next` with the files of `old` that it lacks. `None` where files and directories trade places.
fn without_removals(old: &Snapshot, next: &Snapshot) -> Option<Snapshot> {
    let removed: Vec<_> = tree::diff(old.root(), next.root())
        .into_iter()
        .filter(|change| change.after.is_none())
        .map(|change| (change.path, change.before))
        .collect();
    next.edit(&removed, next.released().clone(), next.withheld().clone()).ok()
}

/// Processor time this thread has used.
fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

#[cfg(test)]
mod tests;
