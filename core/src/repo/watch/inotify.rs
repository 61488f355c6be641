//! Linux: inotify, read by the thread that uses the events.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::ops::Bound;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::{Kind, Seen, StartError, WatchError};
use crate::repo::settle::Hint;

/// About 1,600 events with short names.
const BUFFER_BYTES: usize = 64 * 1024;

/// Directories under watch.
#[derive(Debug)]
pub struct Watcher {
    inotify: OwnedFd,
    wake: Arc<OwnedFd>,
    /// Where each watch's directory was when it was last watched: an inode has one watch, and one path.
    paths: HashMap<i32, Arc<OsStr>>,
    /// Ordered bytewise, which costs a tenth of what comparing paths by component does.
    watches: BTreeMap<Arc<OsStr>, Watch>,
    round: u32,
}

#[derive(Debug, Clone, Copy)]
struct Watch {
    number: i32,
    /// The round it was last asked for in.
    round: u32,
}

/// Ends a [`Watcher::wait`] from another thread.
#[derive(Debug, Clone)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    pub fn wake(&self) {
        // It can only fail when so many wakes are pending that one more makes no difference.
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }
}

impl Watcher {
    pub fn new() -> Result<Self, StartError> {
        let start = |e: Errno| StartError(Box::new(std::io::Error::from(e)));
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(start)?;
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).map_err(start)?;
        Ok(Self { inotify, wake: Arc::new(wake), paths: HashMap::new(), watches: BTreeMap::new(), round: 0 })
    }

    pub fn waker(&self) -> Waker {
        Waker(self.wake.clone())
    }

    /// Watches an open directory (not what is below it), whose events come under `path`. True if that very directory
    /// was watched under another path until now.
    pub fn watch(&mut self, dir: &impl AsFd, path: PathBuf) -> Result<bool, WatchError> {
        let flags = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MODIFY
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ATTRIB
            | WatchFlags::MOVE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        // The one way to name an open descriptor to a call that takes a path.
        let opened = format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd());
        let number = inotify::add_watch(&self.inotify, opened, flags).map_err(|e| WatchError {
            dir: path.clone(),
            limit: e == Errno::NOSPC,
            source: Box::new(std::io::Error::from(e)),
        })?;
        let watch = Watch { number, round: self.round };
        let path: Arc<OsStr> = match self.paths.get(&number) {
            Some(old) if **old == *path => old.clone(),
            _ => path.into_os_string().into(),
        };
        let moved_from = self.paths.insert(number, path.clone()).filter(|old| *old != path);
        if let Some(old) = &moved_from {
            // The directory was moved here: under its old name it reports no more.
            self.watches.remove(old);
        }
        match self.watches.insert(path, watch) {
            Some(replaced) if replaced.number != number => self.forget(replaced.number),
            _ => {}
        }
        Ok(moved_from.is_some())
    }

    /// Watches a directory by a path that only its owner can lead astray (a git directory).
    pub fn watch_path(&mut self, path: PathBuf) -> Result<(), WatchError> {
        use rustix::fs::{Mode, OFlags};
        match rustix::fs::open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(dir) => self.watch(&dir, path).map(drop),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            Err(e) => Err(WatchError { dir: path, limit: false, source: Box::new(std::io::Error::from(e)) }),
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
        self.unwatch(dir, |path, watch| watch.round != round && !keep(path));
    }

    fn unwatch(&mut self, dir: &Path, is_over: impl Fn(&Path, &Watch) -> bool) {
        let below = self.below(dir);
        let over: Vec<Arc<OsStr>> = below
            .filter(|(path, watch)| is_over(Path::new(path), watch))
            .map(|(path, _)| path.clone())
            .collect();
        for path in over {
            if let Some(watch) = self.watches.remove(&path) {
                self.forget(watch.number);
            }
        }
    }

    /// True if `dir` is watched.
    pub fn watches(&self, dir: &Path) -> bool {
        self.watches.contains_key(dir.as_os_str())
    }

    /// `dir` and the directories below it, as far as they are watched.
    fn below(&self, dir: &Path) -> impl Iterator<Item = (&Arc<OsStr>, &Watch)> {
        let mut inner = dir.as_os_str().to_owned();
        inner.push("/");
        let from = (Bound::Included(&*inner), Bound::Unbounded);
        let (own, inner_range) =
            (self.watches.get_key_value(dir.as_os_str()), self.watches.range::<OsStr, _>(from));
        let is_inner = {
            let inner = inner.clone();
            move |path: &OsStr| path.as_bytes().starts_with(inner.as_bytes())
        };
        own.into_iter().chain(inner_range.take_while(move |(path, _)| is_inner(path)))
    }

    /// Waits until there are events, a wake, or `limit` has passed.
    pub fn wait(&self, limit: Option<Duration>) {
        let mut fds = [PollFd::new(&self.inotify, PollFlags::IN), PollFd::new(&*self.wake, PollFlags::IN)];
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        // An interrupted wait is a short one.
        let _ = poll(&mut fds, limit.as_ref());
        let _ = rustix::io::read(&*self.wake, &mut [0_u8; 8]);
    }

    /// Takes out the events that are there, oldest first. Never blocks.
    pub fn drain(&mut self) -> Vec<Seen> {
        let mut seen = Vec::new();
        let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
        let mut gone = Vec::new();
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        while let Ok(event) = reader.next() {
            let flags = event.events();
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                seen.push(Seen::Lost);
                continue;
            }
            // Events of a watch that was given up may still be in the queue.
            let Some(dir) = self.paths.get(&event.wd()) else { continue };
            if flags.contains(ReadFlags::IGNORED) {
                gone.push(event.wd());
                continue;
            }
            let path = match event.file_name() {
                Some(name) => Path::new(dir).join(OsStr::from_bytes(name.to_bytes())),
                None => PathBuf::from(dir),
            };
            let is_dir = flags.contains(ReadFlags::ISDIR) || event.file_name().is_none();
            let kind = if is_dir { Kind::Directory } else { Kind::Other };
            if let Some(hint) = hint_of(flags) {
                seen.push(Seen::Path { path, hint, kind });
            }
        }
        for watch in gone {
            if let Some(path) = self.paths.remove(&watch)
                && self.watches.get(&path).is_some_and(|kept| kept.number == watch)
            {
                self.watches.remove(&path);
            }
        }
        seen
    }

    fn forget(&mut self, watch: i32) {
        self.paths.remove(&watch);
        // One that the system has already given up is what we want.
        let _ = inotify::remove_watch(&self.inotify, watch);
    }
}

fn hint_of(flags: ReadFlags) -> Option<Hint> {
    let has = |flag| flags.intersects(flag);
    if has(ReadFlags::DELETE | ReadFlags::MOVED_FROM | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF)
        || has(ReadFlags::UNMOUNT)
    {
        return Some(Hint::Vanished);
    }
    if has(ReadFlags::CLOSE_WRITE | ReadFlags::MOVED_TO) {
        return Some(Hint::Written);
    }
    if has(ReadFlags::CREATE) {
        return Some(Hint::Appeared);
    }
    if has(ReadFlags::MODIFY) {
        return Some(Hint::Modified);
    }
    has(ReadFlags::ATTRIB).then_some(Hint::Attributes)
}
