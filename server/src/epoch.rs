//! One writer per workspace, across every server process on the machine.
//!
//! `.git/gitsync/epoch` holds a number and who owns it. Whoever takes the workspace over raises the
//! number; a writer whose number is no longer the one on disk is fenced: it can touch nothing any
//! more. Number and owner are read and written under a `flock`, and an apply holds that lock from its
//! check to its end, so two writers never overlap. The file's mtime says when the owner last gave a
//! sign of life.
//!
//! The record has a fixed size and is written in place in one call: every [`Fence`] keeps the file
//! open, which a rename would take away from it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gitsync_core::model::{ContentId, HashKind};
use rustix::fs::{FlockOperation, Mode, OFlags, Timespec, Timestamps};
use serde::{Deserialize, Serialize};

/// After this long without a sign of life another owner may take over unasked.
pub const SILENT_AFTER: Duration = Duration::from_secs(15 * 60);
/// Signs of life are written at most this often.
const SIGN_EVERY: Duration = Duration::from_secs(10);
const FILE: &str = "epoch";
const RECORD_BYTES: usize = 512;
const TEXT_BYTES_MAX: usize = 200;
const READ_TRIES: usize = 5;

/// Who wants to write: an id that tells owners apart, and a text that tells people who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pub id: String,
    pub text: String,
}

/// The right to write, until someone else takes it. Dropping it without [`Fence::release`] leaves the
/// owner recorded, as a crash would.
#[derive(Debug)]
pub struct Fence {
    file: OwnedFd,
    number: u64,
    last_sign: Mutex<SystemTime>,
}

/// Holds the lock: nobody can take the workspace over while it lives.
#[derive(Debug)]
pub struct Held<'a> {
    file: &'a OwnedFd,
}

#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    #[error("the workspace belongs to {owner}")]
    Locked { owner: String, since: SystemTime },
    #[error("cannot use the workspace's epoch file")]
    Io(#[source] io::Error),
}

#[derive(Debug, thiserror::Error)]
pub enum FencedError {
    /// `owner` is empty when the new owner has already gone.
    #[error("the workspace was taken over by {}", if owner.is_empty() { "another session" } else { owner })]
    Superseded { owner: String, number: u64 },
    #[error(
        "the workspace directory is gone or was replaced: its state was removed; sync again to begin anew"
    )]
    Removed,
    #[error("cannot read the workspace's epoch file")]
    Io(#[source] io::Error),
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Record {
    number: u64,
    owner: Option<Recorded>,
    /// SHA-256 of the id of the owner that gave the workspace back, until there is another. Last, so that a
    /// record written before there was this field reads as one without it.
    last: Option<Vec<u8>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Recorded {
    /// SHA-256 of the owner's id: ids hold paths and may be long.
    id: Vec<u8>,
    text: String,
    since_secs: u64,
}

/// Takes the workspace whose state directory is open as `state`. Free are a workspace without owner, the
/// own one, and one whose owner was silent for [`SILENT_AFTER`]; `takeover` frees any other.
pub fn acquire(
    state: impl AsFd,
    owner: &Owner,
    takeover: bool,
    now: SystemTime,
) -> Result<Fence, AcquireError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(state, FILE, flags, Mode::from_raw_mode(0o600)).map_err(acquire_io)?;
    let number = {
        let _held = lock(&file).map_err(acquire_io)?;
        let since_secs = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        // The number in a damaged record is lost: the time is above every number counted by ones.
        let mut record =
            read(&file).map_err(acquire_io)?.unwrap_or(Record { number: since_secs, ..Record::default() });
        let id = hashed(&owner.id);
        if let Some(other) = record.owner.filter(|o| o.id != id)
            && !takeover
            && !silent(&file, now).map_err(acquire_io)?
        {
            let since = UNIX_EPOCH + Duration::from_secs(other.since_secs);
            return Err(AcquireError::Locked { owner: other.text, since });
        }
        record.number += 1;
        record.last = None;
        record.owner = Some(Recorded { id, text: shortened(&owner.text), since_secs });
        write(&file, &record).map_err(acquire_io)?;
        sign(&file, now).map_err(acquire_io)?;
        record.number
    };
    Ok(Fence { file, number, last_sign: Mutex::new(now) })
}

/// True if the workspace is this owner's, or was the last one's that gave it back. Takes no lock, so it never
/// waits for an apply; a record that is being written meanwhile is read again.
pub fn belongs_to(state: impl AsFd, owner_id: &str) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(state, FILE, flags, Mode::empty())?;
    for _ in 0..READ_TRIES {
        let Some(record) = read(&file)? else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        let owner = record.owner.map(|owner| owner.id).or(record.last);
        return Ok(owner.is_some_and(|id| id == hashed(owner_id)));
    }
    Ok(false)
}

impl Fence {
    /// Grows with every owner of the workspace.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Locks the epoch and checks that it is still ours. The lock is held as long as the answer lives.
    pub fn enter(&self, now: SystemTime) -> Result<Held<'_>, FencedError> {
        let held = lock(&self.file).map_err(fenced_io)?;
        let stat = rustix::fs::fstat(&self.file).map_err(fenced_io)?;
        if stat.st_nlink == 0 {
            return Err(FencedError::Removed);
        }
        let record = read(&self.file).map_err(fenced_io)?.unwrap_or_default();
        if record.number != self.number {
            let owner = record.owner.map(|o| o.text).unwrap_or_default();
            return Err(FencedError::Superseded { owner, number: record.number });
        }
        let mut last = self.last_sign.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if now.duration_since(*last).map_or(true, |age| age >= SIGN_EVERY) {
            sign(&self.file, now).map_err(fenced_io)?;
            *last = now;
        }
        Ok(held)
    }

    /// Is the workspace still ours?
    pub fn check(&self, now: SystemTime) -> Result<(), FencedError> {
        self.enter(now).map(drop)
    }

    /// A sign of life from a session that applies nothing. Cheap when one was given lately.
    pub fn keep_alive(&self, now: SystemTime) -> Result<(), FencedError> {
        self.check(now)
    }

    /// For those who work beside the applies.
    pub fn seal(&self) -> io::Result<Seal> {
        Ok(Seal { file: self.file.try_clone()?, number: self.number })
    }

    /// An orderly end: no owner any more, the number stays. Does nothing if we are fenced.
    pub fn release(&self) -> io::Result<()> {
        let _held = lock(&self.file)?;
        let record = read(&self.file)?.unwrap_or_default();
        if record.number == self.number {
            let last = record.owner.map(|owner| owner.id);
            write(&self.file, &Record { owner: None, last, ..record })?;
        }
        Ok(())
    }
}

/// Tells whether a workspace still is a session's, without ever waiting for an apply. What it says can be over a moment
/// later: whoever writes by it needs a lock of its own that the next owner takes as well.
#[derive(Debug)]
pub struct Seal {
    file: OwnedFd,
    number: u64,
}

impl Seal {
    pub fn check(&self) -> Result<(), FencedError> {
        if rustix::fs::fstat(&self.file).map_err(fenced_io)?.st_nlink == 0 {
            return Err(FencedError::Removed);
        }
        for _ in 0..READ_TRIES {
            let Some(record) = read(&self.file).map_err(fenced_io)? else {
                // It is being written.
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            if record.number == self.number {
                return Ok(());
            }
            let owner = record.owner.map(|o| o.text).unwrap_or_default();
            return Err(FencedError::Superseded { owner, number: record.number });
        }
        Err(fenced_io(rustix::io::Errno::IO))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Cannot fail on a descriptor that is open; closing it would unlock as well.
        let _ = rustix::fs::flock(self.file, FlockOperation::Unlock);
    }
}

fn acquire_io(errno: rustix::io::Errno) -> AcquireError {
    AcquireError::Io(errno.into())
}

fn fenced_io(errno: rustix::io::Errno) -> FencedError {
    FencedError::Io(errno.into())
}

fn lock(file: &OwnedFd) -> rustix::io::Result<Held<'_>> {
    rustix::io::retry_on_intr(|| rustix::fs::flock(file, FlockOperation::LockExclusive))?;
    Ok(Held { file })
}

/// `None` for damage. A file that was just made is number 0.
fn read(file: &OwnedFd) -> rustix::io::Result<Option<Record>> {
    let mut bytes = [0; RECORD_BYTES];
    let len = rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut bytes, 0))?;
    Ok(if len == 0 { Some(Record::default()) } else { decode(&bytes[..len]) })
}

fn write(file: &OwnedFd, record: &Record) -> rustix::io::Result<()> {
    let bytes = encode(record);
    match rustix::io::retry_on_intr(|| rustix::io::pwrite(file, &bytes, 0))? {
        RECORD_BYTES => Ok(()),
        _ => Err(rustix::io::Errno::NOSPC),
    }
}

/// Checksum of all that follows, then the record, then zeros.
fn encode(record: &Record) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    let body = postcard::to_slice(record, &mut bytes[4..]).expect("a record with a short text fits");
    debug_assert!(body.len() < RECORD_BYTES - 4);
    let crc = crc32fast::hash(&bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<Record> {
    let (crc, body) = bytes.split_first_chunk::<4>()?;
    if bytes.len() != RECORD_BYTES || crc32fast::hash(body) != u32::from_le_bytes(*crc) {
        return None;
    }
    postcard::take_from_bytes(body).ok().map(|(record, _)| record)
}

fn hashed(id: &str) -> Vec<u8> {
    ContentId::of(HashKind::Sha256, id.as_bytes()).as_bytes().to_vec()
}

fn shortened(text: &str) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[allow(clippy::unnecessary_cast, reason = "the widths of these fields differ between platforms")]
fn silent(file: &OwnedFd, now: SystemTime) -> rustix::io::Result<bool> {
    let seen = UNIX_EPOCH + Duration::from_secs(rustix::fs::fstat(file)?.st_mtime.max(0) as u64);
    Ok(now.duration_since(seen).is_ok_and(|age| age > SILENT_AFTER))
}

fn sign(file: &OwnedFd, now: SystemTime) -> rustix::io::Result<()> {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = Timespec { tv_sec: since.as_secs().cast_signed(), tv_nsec: since.subsec_nanos().into() };
    rustix::fs::futimens(file, &Timestamps { last_access: time, last_modification: time })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn owner(id: &str) -> Owner {
        Owner { id: id.to_owned(), text: format!("{id} on a laptop") }
    }

    fn at(secs: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_700_000_000 + secs)
    }

    #[test]
    fn another_owner_is_refused_until_released() {
        let dir = tempfile::tempdir().unwrap();
        let state = File::open(dir.path()).unwrap();
        let first = acquire(&state, &owner("ann"), false, at(0)).unwrap();
        let refused = acquire(&state, &owner("bob"), false, at(60)).unwrap_err();
        assert!(
            matches!(&refused, AcquireError::Locked { owner, since } if owner == "ann on a laptop" && *since == at(0))
        );
        first.check(at(61)).unwrap();
        first.release().unwrap();
        let second = acquire(&state, &owner("bob"), false, at(62)).unwrap();
        assert_eq!((first.number(), second.number()), (1, 2));
        assert!(matches!(first.check(at(63)), Err(FencedError::Superseded { number: 2, .. })));
        first.release().unwrap();
        second.check(at(64)).unwrap();
    }

    #[test]
    fn two_fences_fight() {
        let dir = tempfile::tempdir().unwrap();
        let open = || File::open(dir.path()).unwrap();
        let mut fences = Vec::new();
        for turn in 0..6 {
            fences.push(acquire(open(), &owner("ann"), false, at(turn)).unwrap());
            let (last, older) = fences.split_last().unwrap();
            last.check(at(turn)).unwrap();
            assert!(older.iter().all(|f| f.check(at(turn)).is_err()));
        }
        let taken = acquire(open(), &owner("bob"), true, at(10)).unwrap();
        assert!(
            matches!(fences[5].check(at(10)), Err(FencedError::Superseded { owner, .. }) if owner.starts_with("bob"))
        );
        taken.check(at(11)).unwrap();
    }

    #[test]
    fn a_silent_owner_loses_its_claim_and_a_live_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let state = File::open(dir.path()).unwrap();
        let minute = 60;
        let first = acquire(&state, &owner("ann"), false, at(0)).unwrap();
        first.keep_alive(at(10 * minute)).unwrap();
        assert!(acquire(&state, &owner("bob"), false, at(20 * minute)).is_err());
        acquire(&state, &owner("bob"), false, at(25 * minute + 1)).unwrap();
        assert!(first.check(at(26 * minute)).is_err());
    }

    #[test]
    fn a_holder_keeps_others_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let state = File::open(dir.path()).unwrap();
        let first = acquire(&state, &owner("ann"), false, at(0)).unwrap();
        let held = first.enter(at(1)).unwrap();
        let other = File::open(dir.path().join(FILE)).unwrap();
        let busy = rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(busy, Err(rustix::io::Errno::AGAIN));
        drop(held);
        rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
    }

    #[test]
    fn damage_frees_and_removal_fences() {
        let dir = tempfile::tempdir().unwrap();
        let state = File::open(dir.path()).unwrap();
        let first = acquire(&state, &owner("ann"), false, at(0)).unwrap();
        std::fs::write(dir.path().join(FILE), b"torn").unwrap();
        let second = acquire(&state, &owner("bob"), false, at(1)).unwrap();
        assert!(matches!(first.check(at(1)), Err(FencedError::Superseded { .. })));
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        assert!(matches!(second.check(at(2)), Err(FencedError::Removed)));
    }

    #[test]
    fn it_belongs_to_its_owner_and_then_to_the_last_one() {
        let dir = tempfile::tempdir().unwrap();
        let state = File::open(dir.path()).unwrap();
        let belongs = |id| belongs_to(&state, id).unwrap_or(false);
        assert!(!belongs("ann"));
        let first = acquire(&state, &owner("ann"), false, at(0)).unwrap();
        assert_eq!(["ann", "bob", ""].map(belongs), [true, false, false]);
        first.release().unwrap();
        assert_eq!(["ann", "bob", ""].map(belongs), [true, false, false]);
        let second = acquire(&state, &owner("bob"), false, at(1)).unwrap();
        assert_eq!(["ann", "bob"].map(belongs), [false, true]);
        second.release().unwrap();
        assert_eq!(["ann", "bob"].map(belongs), [false, true]);
    }

    #[test]
    fn a_record_from_before_there_was_a_last_owner_is_read() {
        let mut bytes = [0; RECORD_BYTES];
        let owner = Recorded { id: vec![7; 32], text: "ann".into(), since_secs: 5 };
        postcard::to_slice(&(9_u64, Some(owner)), &mut bytes[4..]).unwrap();
        let crc = crc32fast::hash(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        let record = decode(&bytes).unwrap();
        assert_eq!((record.number, record.owner.unwrap().text, record.last), (9, "ann".into(), None));
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        let dir = tempfile::tempdir().unwrap();
        let state = File::open(dir.path()).unwrap();
        let long = Owner { id: "/p".repeat(4000), text: "é".repeat(3000) };
        acquire(&state, &long, false, at(0)).unwrap();
        let AcquireError::Locked { owner, .. } = acquire(&state, &owner("b"), false, at(1)).unwrap_err()
        else {
            panic!("not locked");
        };
        assert_eq!(owner.len(), 200);
    }
}
