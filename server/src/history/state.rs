//! Files of the clone that are written here, and what an interrupted landing left of them.
//!
//! A file is written whole in our own directory (`.git/gitsync/history`), then linked to the name git locks it by, then
//! renamed over it. So a lock that a crash leaves behind can be told from anybody else's: it is the very file that
//! is still under our name. The programs git runs for refs take locks of their own; which, is noted before.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::StepError;
use super::git::Stop;
use crate::workspace::CloneDir;

/// Somebody else's lock is waited for this long.
const PATIENCE: Duration = Duration::from_secs(4);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A program that outlived our process may still be putting its locks away.
const ORPHAN: Duration = Duration::from_secs(1);
/// The lock of whoever lands here.
const TURN: &str = "turn";
/// Locks that programs of ours may hold, one name a line, as long as one runs.
const BEGUN: &str = "begun";
/// Directories below ours; a ref's name can have many parts.
pub const DEPTH_MAX: u32 = 200;
const STATE_BYTES: u64 = 64 << 20;

/// Our own directory in a clone, and the number of the session that uses it.
#[derive(Debug)]
pub struct State {
    dir: OwnedFd,
    number: u64,
}

/// The right to change refs and index, until dropped.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "closing it gives the turn back")] OwnedFd);

/// A file of ours that holds a lock of git's.
#[derive(Debug)]
pub struct Lock<'a> {
    clone: &'a CloneDir,
    state: &'a State,
    own: String,
    target: &'static str,
    done: bool,
}

/// A file of ours that is not yet anything of git's.
#[derive(Debug)]
pub struct Prepared<'a>(Lock<'a>);

impl State {
    /// Makes the directory if need be.
    pub fn open(clone: &CloneDir, number: u64) -> Result<Self, StepError> {
        let fs = clone.fs();
        let dir = (|| {
            let state = fs.open_dir(clone.fd(), b"gitsync")?;
            match fs.mkdir(state.as_fd(), b"history", 0o700) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e),
            }
            fs.open_dir(state.as_fd(), b"history")
        })();
        Ok(Self { dir: dir.map_err(|e| StepError::errno("make the history directory", e))?, number })
    }

    pub fn fd(&self) -> &OwnedFd {
        &self.dir
    }

    /// A name no other session uses, in our directory.
    pub fn own(&self, what: &str) -> String {
        format!("{}.{what}", self.number)
    }

    /// The same relative to the git directory.
    pub fn relative(&self, own: &str) -> String {
        format!("gitsync/history/{own}")
    }

    /// Waits until nobody else lands.
    pub fn turn(&self, stop: &Stop) -> Result<Turn, StepError> {
        loop {
            stop.check()?;
            if let Some(turn) = self.try_turn()? {
                return Ok(turn);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn try_turn(&self) -> Result<Option<Turn>, StepError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, TURN, flags, Mode::from_raw_mode(0o600))
            .map_err(|e| StepError::errno("open the lock of history", e))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Turn(file))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(StepError::errno("take the lock of history", e)),
        }
    }

    /// Removes what an interrupted landing left, unless somebody is landing now. Called by the only writer.
    pub fn heal(&self, clone: &CloneDir) -> Result<(), StepError> {
        let Some(_turn) = self.try_turn()? else { return Ok(()) };
        self.heal_locks(clone).map_err(|e| StepError::errno("clear up after an interrupted landing in", e))
    }

    fn heal_locks(&self, clone: &CloneDir) -> Result<(), Errno> {
        let fs = clone.fs();
        for name in fs.list(self.dir.as_fd())? {
            let Some((number, what)) = split(&name) else { continue };
            if number == self.number {
                continue;
            }
            // Whoever was superseded may still be putting its own things away.
            let stat = match rustix::fs::statat(&self.dir, &name[..], AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(e),
            };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                remove_all(clone, &self.dir, &name, DEPTH_MAX)?;
                continue;
            }
            let lock = [what, b".lock"].concat();
            let held = rustix::fs::statat(clone.fd(), &lock[..], AtFlags::SYMLINK_NOFOLLOW);
            if held.is_ok_and(|held| (held.st_dev, held.st_ino) == (stat.st_dev, stat.st_ino)) {
                tracing::info!(lock = %String::from_utf8_lossy(&lock), "removed a lock an interrupted landing left");
                gone(fs.unlink(clone.fd(), &lock))?;
            }
            gone(fs.unlink(self.dir.as_fd(), &name))?;
        }
        let Some(begun) = self.read(BEGUN)? else { return Ok(()) };
        let until = Instant::now() + ORPHAN;
        for lock in begun.split(|b| *b == b'\n').filter(|name| is_lock(name)) {
            let (parent, name) = match lock.iter().rposition(|b| *b == b'/') {
                Some(slash) => (fs.open_dir(clone.fd(), &lock[..slash]), &lock[slash + 1..]),
                None => (fs.open_dir(clone.fd(), b"."), lock),
            };
            let Ok(parent) = parent else { continue };
            while fs.stat_at(parent.as_fd(), name).is_ok() {
                if Instant::now() < until {
                    std::thread::sleep(LOOK_EVERY);
                    continue;
                }
                tracing::info!(lock = %String::from_utf8_lossy(lock), "removed a lock an interrupted landing left");
                gone(fs.unlink(parent.as_fd(), name))?;
                break;
            }
        }
        gone(fs.unlink(self.dir.as_fd(), BEGUN.as_bytes()))
    }

    /// Notes which locks a program about to be started may take.
    pub fn begin(&self, clone: &CloneDir, locks: &[Vec<u8>]) -> Result<(), StepError> {
        self.write(clone, BEGUN, &locks.join(&b'\n'))
    }

    /// The program has ended by itself, and its locks with it.
    pub fn ended(&self, clone: &CloneDir) {
        let _ = clone.fs().unlink(self.dir.as_fd(), BEGUN.as_bytes());
    }

    /// A whole file of our directory.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Errno> {
        read(&self.dir, name.as_bytes())
    }

    /// Puts a file of our directory there, whole or not at all.
    pub fn write(&self, clone: &CloneDir, name: &str, bytes: &[u8]) -> Result<(), StepError> {
        let own = self.own(name);
        self.create(clone, &own)?
            .write_all(bytes)
            .map_err(|e| StepError::io("write the history state", e))?;
        let at = self.dir.as_fd();
        clone
            .fs()
            .rename(at, own.as_bytes(), at, name.as_bytes())
            .map_err(|e| StepError::errno("write the history state", e))
    }

    /// A new file of our own, in the place of any older one.
    pub fn create(&self, clone: &CloneDir, own: &str) -> Result<File, StepError> {
        let fs = clone.fs();
        gone(fs.unlink(self.dir.as_fd(), own.as_bytes()))
            .map_err(|e| StepError::errno("clear the history state", e))?;
        Ok(fs
            .create(self.dir.as_fd(), own.as_bytes())
            .map_err(|e| StepError::errno("write the history state", e))?
            .into())
    }

    pub fn remove(&self, clone: &CloneDir, own: &str) {
        let _ = clone.fs().unlink(self.dir.as_fd(), own.as_bytes());
    }

    /// A file that may become `target`, a file directly in the git directory. `fill` writes it; nothing is locked yet.
    pub fn prepare<'a>(
        &'a self,
        clone: &'a CloneDir,
        target: &'static str,
        fill: impl FnOnce(&mut File) -> Result<(), StepError>,
    ) -> Result<Prepared<'a>, StepError> {
        let own = self.own(target);
        let mut file = self.create(clone, &own)?;
        let prepared = Prepared(Lock { clone, state: self, own, target, done: false });
        fill(&mut file)?;
        let finished =
            clone.fs().chmod(file.as_fd(), 0o666 & !clone.umask()).and_then(|()| rustix::fs::fsync(&file));
        finished.map_err(|e| StepError::errno("write a file of the clone", e))?;
        Ok(prepared)
    }

    /// [`State::prepare`], then [`Prepared::take`].
    pub fn lock<'a>(
        &'a self,
        clone: &'a CloneDir,
        target: &'static str,
        fill: impl FnOnce(&mut File) -> Result<(), StepError>,
    ) -> Result<Lock<'a>, StepError> {
        self.prepare(clone, target, fill)?.take(None)
    }
}

impl<'a> Prepared<'a> {
    /// Links the file to the lock's name, as soon as nobody else has it.
    pub fn take(self, stop: Option<&Stop>) -> Result<Lock<'a>, StepError> {
        let lock = self.0;
        let name = format!("{}.lock", lock.target);
        let until = Instant::now() + PATIENCE;
        loop {
            stop.map_or(Ok(()), Stop::check)?;
            match rustix::fs::linkat(&lock.state.dir, &*lock.own, lock.clone.fd(), &*name, AtFlags::empty()) {
                Ok(()) => return Ok(lock),
                Err(Errno::EXIST) if Instant::now() < until => std::thread::sleep(LOOK_EVERY),
                Err(Errno::EXIST) => return Err(StepError::Busy(format!("somebody else holds .git/{name}"))),
                Err(e) => return Err(StepError::errno("lock a file of the clone", e)),
            }
        }
    }
}

impl Lock<'_> {
    /// The file takes its place.
    pub fn commit(mut self) -> Result<(), StepError> {
        let (fs, git) = (self.clone.fs(), self.clone.fd());
        let lock = format!("{}.lock", self.target);
        fs.rename(git, lock.as_bytes(), git, self.target.as_bytes())
            .map_err(|e| StepError::errno("put a file of the clone in its place", e))?;
        self.done = true;
        self.state.remove(self.clone, &self.own);
        Ok(())
    }

    /// The file that is there goes, and the lock with it.
    pub fn remove_target(self) -> Result<(), StepError> {
        gone(self.clone.fs().unlink(self.clone.fd(), self.target.as_bytes()))
            .map_err(|e| StepError::errno("remove a file of the clone", e))
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let same = |a: rustix::io::Result<rustix::fs::Stat>, b: rustix::io::Result<rustix::fs::Stat>| matches!((a, b), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino));
        let lock = format!("{}.lock", self.target);
        let look =
            |at: &dyn AsFd, name: &str| rustix::fs::statat(at.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW);
        if same(look(&self.state.dir, &self.own), look(&self.clone.fd(), &lock)) {
            let _ = self.clone.fs().unlink(self.clone.fd(), lock.as_bytes());
        }
        self.state.remove(self.clone, &self.own);
    }
}

/// A whole file, `None` if there is none. One that is too large to be what it should be is refused.
pub fn read(at: impl AsFd, name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file: File = match rustix::fs::openat(at, name, flags, Mode::empty()) {
        Ok(file) => file.into(),
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut bytes = Vec::new();
    let errno = |e: std::io::Error| Errno::from_io_error(&e).unwrap_or(Errno::IO);
    file.take(STATE_BYTES + 1).read_to_end(&mut bytes).map_err(errno)?;
    if bytes.len() as u64 > STATE_BYTES { Err(Errno::FBIG) } else { Ok(Some(bytes)) }
}

/// `12.index` is the index of session 12.
fn split(name: &[u8]) -> Option<(u64, &[u8])> {
    let dot = name.iter().position(|b| *b == b'.')?;
    let number = std::str::from_utf8(&name[..dot]).ok()?.parse().ok()?;
    Some((number, &name[dot + 1..]))
}

/// What git's programs for refs leave when they are killed.
fn is_lock(name: &[u8]) -> bool {
    let inside = name.split(|b| *b == b'/').all(|part| !matches!(part, b"" | b"." | b".."));
    let known =
        name.starts_with(b"refs/") || matches!(name, b"HEAD.lock" | b"packed-refs.lock" | b"packed-refs.new");
    inside && known && (name.ends_with(b".lock") || name == b"packed-refs.new")
}

/// What somebody else removed first is removed as well.
fn gone(removed: Result<(), Errno>) -> Result<(), Errno> {
    match removed {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Removes a directory of ours that is `depth` levels deep at most. Where somebody else works in it meanwhile, what
/// is left stays for the next time.
pub fn remove_all(clone: &CloneDir, at: &OwnedFd, name: &[u8], depth: u32) -> Result<(), Errno> {
    let fs = clone.fs();
    let dir = match fs.open_dir(at.as_fd(), name) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(e),
    };
    let names = match fs.list(dir.as_fd()) {
        Err(Errno::NOENT) => Vec::new(),
        listed => listed?,
    };
    for name in names {
        match fs.unlink(dir.as_fd(), &name) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) if depth > 0 => remove_all(clone, &dir, &name, depth - 1)?,
            Err(e) => return Err(e),
        }
    }
    match fs.rmdir(at.as_fd(), name) {
        Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_locks_of_refs_are_cleared() {
        for good in ["HEAD.lock", "packed-refs.lock", "packed-refs.new", "refs/heads/a/b.lock"] {
            assert!(is_lock(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            "index.lock",
            "config",
            "refs/heads/a",
            "refs/../config.lock",
            "/refs/a.lock",
            "refs//a.lock",
        ] {
            assert!(!is_lock(bad.as_bytes()), "{bad}");
        }
        assert_eq!(split(b"12.index"), Some((12, &b"index"[..])));
        assert_eq!(split(b"begun"), None);
        assert_eq!(split(b"x.begun"), None);
    }
}
