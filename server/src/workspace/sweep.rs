//! Looking for drift while nothing happens: is every managed file still what we wrote?
//!
//! A sweep goes through what is held a slice at a time, so that the stream it shares a task with never
//! waits, and nobody notices it on a quiet machine: a slice ends after [`SLICE`], in the middle of a long file if
//! need be, and the next one comes much later. A file with its recorded
//! signature is ours unread; any other is read. What a sweep found counts only where what is held is still
//! what it was compared with: patches may come in between.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use gitsync_core::model::{ContentHasher, ContentId, Dir, Entry, Leaf, RelPath};
use rustix::io::{Errno, Result};

use super::dir::WorkspaceDir;
use super::fs::{Kind, Stat};

/// How long one slice may take.
const SLICE: Duration = Duration::from_millis(2);
/// At least this lies between two slices of one sweep.
const PAUSE: Duration = Duration::from_millis(10);
/// A sweep under way takes at most one part in this many of a core: 0.2 s in a minute,
const SHARE: u32 = 300;
/// and all sweeps together one in this many.
const SHARE_OF_ALL: u32 = 1_000;
/// Where an operator asks for less than this between two sweeps, one goes on as soon as it may,
const HURRIED: Duration = Duration::from_secs(1);
/// and all together take at most one part in this many.
const SHARE_HURRIED: u32 = 10;
/// A sweep that has found this much has it taken in before it goes on.
const FOUND_MAX: usize = 1_000;
const READ_BYTES: usize = 64 << 10;

/// When the next slice is due. Time is an argument.
#[derive(Debug)]
pub struct Pace {
    every: Duration,
    next: Instant,
    /// When the sweep under way began, and the time it has taken since.
    began: Option<Instant>,
    used: Duration,
}

impl Pace {
    pub fn new(every: Duration, now: Instant) -> Self {
        Self { every, next: now + every, began: None, used: Duration::ZERO }
    }

    pub fn due(&self) -> Instant {
        self.next
    }

    /// A slice has run from `started` to `now`.
    pub fn sliced(&mut self, started: Instant, now: Instant, sweep_ended: bool) {
        let (share, of_all) = match self.every < HURRIED {
            true => (0, SHARE_HURRIED),
            false => (SHARE, SHARE_OF_ALL),
        };
        let took = now.saturating_duration_since(started);
        let began = *self.began.get_or_insert(started);
        self.used += took;
        self.next = now + took.saturating_mul(share).max(PAUSE);
        if sweep_ended {
            self.began = None;
            let used = std::mem::take(&mut self.used);
            self.next = (now + self.every).max(began + used.saturating_mul(of_all));
        }
    }
}

/// What became of a managed path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Same bytes and mode under another signature.
    Touched { was: Leaf, now: Leaf },
    /// Something else, or nothing.
    Drifted { was: Leaf },
}

/// One pass over everything that is held.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// Paths still to be looked at, the next one last.
    todo: Vec<RelPath>,
    reading: Option<Reading>,
    found: BTreeMap<RelPath, Found>,
}

/// What a slice came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slice {
    /// There is more to look at.
    More,
    /// There is, and enough was found to be taken in first.
    Full,
    Ended,
}

/// A file in the middle of being read.
#[derive(Debug)]
struct Reading {
    path: RelPath,
    was: Leaf,
    stat: Stat,
    file: OwnedFd,
    seen: u64,
    hasher: Hasher,
}

struct Hasher(ContentHasher);

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hasher")
    }
}

impl Sweep {
    pub fn new(held: &Dir) -> Self {
        let mut sweep = Self::default();
        sweep.push(None, held);
        sweep
    }

    fn push(&mut self, at: Option<&RelPath>, dir: &Dir) {
        let first = self.todo.len();
        self.todo.extend(dir.names().filter_map(|name| RelPath::join(at, name).ok()));
        self.todo[first..].reverse();
    }

    /// Goes on for a slice of time.
    pub fn slice(&mut self, dir: &WorkspaceDir, held: &Dir) -> Result<Slice> {
        let deadline = Instant::now() + SLICE;
        let mut parent = None;
        loop {
            match self.reading.take() {
                Some(reading) => self.read_on(reading, dir)?,
                None => {
                    let Some(path) = self.todo.pop() else { return Ok(Slice::Ended) };
                    match held.entry(&path) {
                        Some(Entry::Dir(below)) => self.push(Some(&path), below),
                        Some(Entry::Leaf(leaf)) => self.look(path, *leaf, dir, &mut parent)?,
                        // A patch has taken it away.
                        None => {}
                    }
                }
            }
            if self.found.len() >= FOUND_MAX {
                return Ok(Slice::Full);
            }
            if Instant::now() >= deadline {
                return Ok(Slice::More);
            }
        }
    }

    fn look(&mut self, path: RelPath, was: Leaf, dir: &WorkspaceDir, parent: &mut Parent) -> Result<()> {
        let fs = &*dir.fs;
        let Some(at) = open_parent(dir, &path, parent)? else { return Ok(()) };
        let Some(at) = at.as_fd(dir) else {
            self.found.insert(path, Found::Drifted { was });
            return Ok(());
        };
        let stat = match fs.stat_at(at, path.name()) {
            Ok(stat) if stat.signature == was.signature && stat.mode() == Some(was.mode) => return Ok(()),
            Ok(stat) => stat,
            Err(Errno::NOENT) => {
                self.found.insert(path, Found::Drifted { was });
                return Ok(());
            }
            // Unreadable is unknown.
            Err(Errno::ACCESS | Errno::PERM) => return Ok(()),
            Err(e) => return Err(e),
        };
        if stat.mode() != Some(was.mode) {
            self.found.insert(path, Found::Drifted { was });
            return Ok(());
        }
        if stat.kind == Kind::Symlink {
            match fs.read_link(at, path.name()) {
                Ok(target) => {
                    let id = ContentId::of(dir.hash, &target);
                    self.decide(path, was, &stat, Some(id));
                }
                // It has changed since: the next sweep sees what it is.
                Err(Errno::NOENT | Errno::INVAL) => {}
                Err(e) => return Err(e),
            }
            return Ok(());
        }
        match fs.open_file(at, path.name()) {
            Ok(file) if fs.stat(file.as_fd())?.signature == stat.signature => {
                let hasher = Hasher(ContentHasher::new(dir.hash, stat.signature.size));
                self.reading = Some(Reading { path, was, stat, file, seen: 0, hasher });
                Ok(())
            }
            Ok(_) | Err(Errno::NOENT | Errno::LOOP | Errno::ACCESS | Errno::PERM) => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn read_on(&mut self, mut reading: Reading, dir: &WorkspaceDir) -> Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        let len = dir.fs.read(reading.file.as_fd(), &mut buffer)?;
        reading.seen += len as u64;
        if len > 0 && reading.seen <= reading.stat.signature.size {
            reading.hasher.0.update(&buffer[..len]);
            self.reading = Some(reading);
            return Ok(());
        }
        let Reading { path, was, stat, file, seen, hasher } = reading;
        if dir.fs.stat(file.as_fd())?.signature != stat.signature {
            // Being written this moment: the next sweep sees what it became.
            return Ok(());
        }
        let id = (seen == stat.signature.size).then(|| hasher.0.finish());
        self.decide(path, was, &stat, id);
        Ok(())
    }

    fn decide(&mut self, path: RelPath, was: Leaf, stat: &Stat, id: Option<ContentId>) {
        let found = match id == Some(was.id) {
            true => Found::Touched { was, now: Leaf { signature: stat.signature, ..was } },
            false => Found::Drifted { was },
        };
        self.found.insert(path, found);
    }

    /// What still holds of what was found since the last call, as edits of what is held, and the paths that
    /// drifted.
    pub fn verdict(&mut self, held: &Dir) -> (Vec<(RelPath, Option<Leaf>)>, Vec<RelPath>) {
        let (mut edits, mut drifted) = (Vec::new(), Vec::new());
        for (path, found) in std::mem::take(&mut self.found) {
            let (Found::Touched { was, .. } | Found::Drifted { was }) = found;
            if held.get(&path) != Some(&was) {
                continue;
            }
            match found {
                Found::Touched { now, .. } => edits.push((path, Some(now))),
                Found::Drifted { .. } => {
                    edits.push((path.clone(), None));
                    drifted.push(path);
                }
            }
        }
        (edits, drifted)
    }
}

/// The directory used last, `None` in it where it is no directory of this workspace any more.
type Parent = Option<(RelPath, Option<OwnedFd>)>;

enum At<'a> {
    Root,
    Dir(BorrowedFd<'a>),
    Gone,
}

impl<'a> At<'a> {
    fn as_fd(&self, dir: &'a WorkspaceDir) -> Option<BorrowedFd<'a>> {
        match self {
            At::Root => Some(dir.root.as_fd()),
            At::Dir(fd) => Some(*fd),
            At::Gone => None,
        }
    }
}

/// `None` where that cannot be known.
fn open_parent<'a>(dir: &WorkspaceDir, path: &RelPath, cache: &'a mut Parent) -> Result<Option<At<'a>>> {
    let Some(parent) = path.parent() else { return Ok(Some(At::Root)) };
    if cache.as_ref().is_none_or(|(cached, _)| *cached != parent) {
        let opened = match dir.fs.open_dir(dir.root.as_fd(), parent.as_bytes()) {
            Ok(opened) => Some(opened),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => None,
            Err(Errno::ACCESS | Errno::PERM) => return Ok(None),
            Err(e) => return Err(e),
        };
        *cache = Some((parent, opened));
    }
    Ok(cache.as_ref().map(|(_, opened)| opened.as_ref().map_or(At::Gone, |fd| At::Dir(fd.as_fd()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweeps_stay_below_their_share() {
        let at = |ms| Duration::from_millis(ms);
        let start = Instant::now();
        let mut pace = Pace::new(at(2_000), start);
        assert_eq!(pace.due(), start + at(2_000));
        // Short ones come as often as they should, long ones more seldom.
        pace.sliced(start + at(2_000), start + at(2_000), true);
        assert_eq!(pace.due(), start + at(4_000));
        pace.sliced(start + at(4_000), start + at(4_002), false);
        assert_eq!(pace.due(), start + at(4_602));
        pace.sliced(start + at(4_602), start + at(4_602), false);
        assert_eq!(pace.due(), start + at(4_602) + PAUSE);
        pace.sliced(start + at(4_612), start + at(4_613), true);
        assert_eq!(pace.due(), start + at(4_000) + at(3_000));
        // What has taken long anyhow is not waited for once more.
        pace.sliced(start + at(7_000), start + at(7_002), false);
        pace.sliced(start + at(20_000), start + at(20_000), true);
        assert_eq!(pace.due(), start + at(22_000));
    }

    #[test]
    fn who_asks_for_hurry_gets_it() {
        let at = |ms| Duration::from_millis(ms);
        let start = Instant::now();
        let mut pace = Pace::new(at(100), start);
        pace.sliced(start, start + at(3), false);
        assert_eq!(pace.due(), start + at(3) + PAUSE);
        pace.sliced(start + at(13), start + at(13), true);
        assert_eq!(pace.due(), start + at(113));
        pace.sliced(start + at(133), start + at(163), true);
        assert_eq!(pace.due(), start + at(433));
    }
}
