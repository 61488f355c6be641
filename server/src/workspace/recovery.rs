//! The recovery store: bytes on the server that were in our way and are not ours.
//!
//! Each is moved, never copied, into a directory of its own named by time, under its own path, and
//! synced: nobody else has these bytes. So the store is its own index: an entry's name says when, the one
//! file in it says where, how long and of which mode. Nothing here is ever overwritten. What is older than
//! [`Limits::age`] goes, and the oldest first while there is more than [`Limits::bytes`], but nothing is
//! removed before it is [`Limits::safe`] old: a store full of that takes no more, and what would have been
//! displaced stays where it is.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gitsync_core::model::RelPath;
use gitsync_core::model::path::MAX_DEPTH;
use rustix::io::{Errno, Result};

use super::fs::{Kind, Stat, WorkspaceFs};

const STORE: &[u8] = b"recovery";
const PRIVATE: u32 = 0o700;
/// Entries of one second.
const COUNTER_MAX: u32 = 1_000_000;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How much is kept, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub bytes: u64,
    pub age: Duration,
    /// Never removed before this age.
    pub safe: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 2 << 30, age: 14 * DAY, safe: DAY }
    }
}

/// When an entry was made, and which of that second it is. Sorts by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EntryName {
    pub secs: u64,
    counter: u32,
}

/// What is known of an entry without looking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    name: EntryName,
    bytes: u64,
}

/// Why something could not be kept. It is where it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeepError {
    Full,
    Os(Errno),
}

/// A file in the store, found.
#[derive(Debug)]
pub(super) struct Located {
    pub at: OwnedFd,
    pub path: RelPath,
    pub stat: Stat,
}

#[derive(Debug)]
pub(super) struct Recovery {
    fs: Arc<dyn WorkspaceFs>,
    state: Arc<OwnedFd>,
    pub(super) limits: Limits,
    /// Oldest first.
    entries: Mutex<Vec<Entry>>,
}

impl EntryName {
    /// Exactly what [`EntryName::text`] writes, and nothing else.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= 32)?;
        let (stamp, counter) = text.split_once('-')?;
        let name = Self { secs: seconds(stamp)?, counter: counter.parse().ok()? };
        (name.text() == text).then_some(name)
    }

    pub fn text(self) -> String {
        format!("{}-{}", timestamp(self.secs), self.counter)
    }
}

impl Recovery {
    /// Finds what is kept already. Costs a few calls for each entry.
    pub fn open(fs: Arc<dyn WorkspaceFs>, state: Arc<OwnedFd>, limits: Limits) -> Result<Self> {
        let mut entries = Vec::new();
        for name in names(&*fs, &state)? {
            let bytes = locate(&*fs, &state, name)?.map_or(0, |found| found.stat.signature.size);
            entries.push(Entry { name, bytes });
        }
        Ok(Self { fs, state, limits, entries: Mutex::new(entries) })
    }

    /// Moves what is at `name` in `from`, met at `path` of the workspace, into the store. On an error it
    /// is still where it was.
    pub fn keep(
        &self,
        from: BorrowedFd<'_>,
        name: &[u8],
        path: &RelPath,
        now: SystemTime,
    ) -> std::result::Result<(), KeepError> {
        let bytes = self.fs.stat_at(from, name).map_err(KeepError::Os)?.signature.size;
        if !admits(&self.lock(), bytes, secs_of(now), &self.limits) {
            return Err(KeepError::Full);
        }
        self.keep_anyway(from, name, path, now).map_err(KeepError::Os)
    }

    /// The same without regard to how much there is: for bytes that have no place to go back to.
    pub fn keep_anyway(
        &self,
        from: BorrowedFd<'_>,
        name: &[u8],
        path: &RelPath,
        now: SystemTime,
    ) -> Result<()> {
        let fs = &*self.fs;
        let store = enter(fs, self.state.as_fd(), STORE)?;
        let (entry, own) = self.new_entry(store.as_fd(), now)?;
        let mut dirs = vec![own];
        for dir in path.ancestors() {
            let at = dirs.last().expect("there is the entry's own directory");
            let next = enter(fs, at.as_fd(), dir.name())?;
            dirs.push(next);
        }
        let stat = fs.stat_at(from, name)?;
        if stat.kind == Kind::File {
            // Not readable for us: moved all the same, it is only not known to be on disk.
            if let Ok(file) = fs.open_file(from, name) {
                fs.sync(file.as_fd())?;
            }
        }
        let last = dirs.last().expect("there is the entry's own directory");
        fs.rename_new(from, name, last.as_fd(), path.name())?;
        self.lock().push(Entry { name: entry, bytes: stat.signature.size });
        // The bytes are safe from here on; a failed sync leaves them where a crash may forget the name.
        for dir in dirs.iter().rev().chain([&store]) {
            let _ = fs.sync_dir(dir.as_fd());
        }
        Ok(())
    }

    /// Removes what may go. For a quiet moment.
    pub fn prune(&self, now: SystemTime) -> Result<()> {
        let doomed = doomed(&self.lock(), secs_of(now), &self.limits);
        if doomed.is_empty() {
            return Ok(());
        }
        let store = self.fs.open_dir(self.state.as_fd(), STORE)?;
        for name in doomed {
            remove_all(&*self.fs, store.as_fd(), name.text().as_bytes(), 0)?;
            self.lock().retain(|entry| entry.name != name);
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new_entry(&self, store: BorrowedFd<'_>, now: SystemTime) -> Result<(EntryName, OwnedFd)> {
        let secs = secs_of(now);
        for counter in 0..COUNTER_MAX {
            let entry = EntryName { secs, counter };
            let name = entry.text().into_bytes();
            match self.fs.mkdir(store, &name, PRIVATE) {
                Ok(()) => return Ok((entry, self.fs.open_dir(store, &name)?)),
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e),
            }
        }
        Err(Errno::EXIST)
    }
}

/// Every entry's name, oldest first. Names that are not ours are passed over.
pub(super) fn names(fs: &dyn WorkspaceFs, state: &OwnedFd) -> Result<Vec<EntryName>> {
    let store = match fs.open_dir(state.as_fd(), STORE) {
        Ok(store) => store,
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut names: Vec<_> =
        fs.list(store.as_fd())?.iter().filter_map(|name| EntryName::parse(name)).collect();
    names.sort();
    Ok(names)
}

/// The one file of an entry; `None` for an entry that is gone, or that was never filled.
pub(super) fn locate(fs: &dyn WorkspaceFs, state: &OwnedFd, name: EntryName) -> Result<Option<Located>> {
    match descend(fs, state, name) {
        // Removed meanwhile: a reader takes no lock.
        Err(Errno::NOENT) => Ok(None),
        found => found,
    }
}

fn descend(fs: &dyn WorkspaceFs, state: &OwnedFd, name: EntryName) -> Result<Option<Located>> {
    let store = fs.open_dir(state.as_fd(), STORE)?;
    let mut at = fs.open_dir(store.as_fd(), name.text().as_bytes())?;
    let mut path: Option<RelPath> = None;
    for _ in 0..MAX_DEPTH {
        let names = fs.list(at.as_fd())?;
        let [name] = &names[..] else { return Ok(None) };
        let Ok(below) = RelPath::join(path.as_ref(), name) else { return Ok(None) };
        let stat = fs.stat_at(at.as_fd(), name)?;
        if stat.kind != Kind::Dir {
            return Ok(Some(Located { at, path: below, stat }));
        }
        at = fs.open_dir(at.as_fd(), name)?;
        path = Some(below);
    }
    Ok(None)
}

/// May `bytes` more be kept? What is old enough to go counts as gone: it goes in the next quiet moment.
fn admits(entries: &[Entry], bytes: u64, now: u64, limits: &Limits) -> bool {
    let safe = entries.iter().filter(|entry| age(entry, now) < limits.safe);
    let held: u64 = safe.map(|entry| entry.bytes).sum();
    held.saturating_add(bytes) <= limits.bytes
}

/// Which entries (oldest first) have to go.
fn doomed(entries: &[Entry], now: u64, limits: &Limits) -> Vec<EntryName> {
    let mut bytes: u64 = entries.iter().map(|entry| entry.bytes).sum();
    let mut doomed = Vec::new();
    for entry in entries {
        let age = age(entry, now);
        if age >= limits.safe && (age >= limits.age || bytes > limits.bytes) {
            bytes -= entry.bytes;
            doomed.push(entry.name);
        }
    }
    doomed
}

/// An entry from the future is new: a clock that was wrong removes nothing.
fn age(entry: &Entry, now: u64) -> Duration {
    Duration::from_secs(now.saturating_sub(entry.name.secs))
}

fn remove_all(fs: &dyn WorkspaceFs, at: BorrowedFd<'_>, name: &[u8], depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Errno::LOOP);
    }
    let dir = fs.open_dir(at, name)?;
    for child in fs.list(dir.as_fd())? {
        match fs.stat_at(dir.as_fd(), &child)?.kind {
            Kind::Dir => remove_all(fs, dir.as_fd(), &child, depth + 1)?,
            _ => fs.unlink(dir.as_fd(), &child)?,
        }
    }
    fs.rmdir(at, name)
}

/// Opens a directory of ours, making it if need be.
pub(super) fn enter(fs: &dyn WorkspaceFs, at: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    match fs.open_dir(at, name) {
        Err(Errno::NOENT) => {}
        opened => return opened,
    }
    match fs.mkdir(at, name, PRIVATE) {
        Ok(()) | Err(Errno::EXIST) => fs.open_dir(at, name),
        Err(e) => Err(e),
    }
}

fn secs_of(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// UTC, as in `20261121T070131Z`: sorts by time.
fn timestamp(secs: u64) -> String {
    let (year, month, day) = civil(secs / 86_400);
    let (hour, minute, second) = (secs / 3600 % 24, secs / 60 % 60, secs % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// For people, to the minute.
pub(crate) fn utc(at: SystemTime) -> String {
    let secs = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (year, month, day) = civil(secs / 86_400);
    let (hour, minute) = (secs / 3600 % 24, secs / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

/// Year, month and day of a number of days since 1970-01-01 (H. Hinnant, "chrono-compatible low-level date
/// algorithms": years begin in March, so the leap day comes last).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// The inverse of [`timestamp`].
fn seconds(stamp: &str) -> Option<u64> {
    let digits: Vec<u8> = stamp.bytes().filter(u8::is_ascii_digit).collect();
    if stamp.len() != 16 || digits.len() != 14 {
        return None;
    }
    let part = |range: std::ops::Range<usize>| {
        digits[range].iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0'))
    };
    let (year, month, day) = (part(0..4), part(4..6), part(6..8));
    if year < 1970 || !(1..=12).contains(&month) || day == 0 {
        return None;
    }
    let (march_year, march_month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let day_of_year = (153 * march_month + 2) / 5 + day - 1;
    let leap_days = march_year / 4 - march_year / 100 + march_year / 400;
    let days = (365 * march_year + leap_days + day_of_year).checked_sub(719_468)?;
    let secs = days * 86_400 + part(8..10) * 3600 + part(10..12) * 60 + part(12..14);
    (timestamp(secs) == stamp).then_some(secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps() {
        for (secs, stamp) in [
            (0, "19700101T000000Z"),
            (951_782_400, "20000229T000000Z"),
            (1_700_000_000, "20231114T221320Z"),
            (4_107_542_400, "21000301T000000Z"),
        ] {
            assert_eq!(timestamp(secs), stamp);
            assert_eq!(seconds(stamp), Some(secs), "{stamp}");
        }
    }

    #[test]
    fn only_names_we_make_are_names() {
        let name = EntryName { secs: 1_700_000_000, counter: 12 };
        assert_eq!(EntryName::parse(name.text().as_bytes()), Some(name));
        for bad in [
            "",
            "..",
            "../20231114T221320Z-0",
            "20231114T221320Z-0/..",
            "20231114T221320Z-",
            "20231114T221320Z-00",
            "20231114T221320Z-+1",
            "20231114T221320Z--1",
            "20231114T221320Z-99999999999",
            "20231314T221320Z-0",
            "20230230T221320Z-0",
            "20231114T221360Z-0",
            "20231114X221320Z-0",
            "20231114T221320Z-0\0",
        ] {
            assert_eq!(EntryName::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn what_goes_and_what_is_taken() {
        let hours = |n: u64| n * 3600;
        let limits = Limits { bytes: 100, ..Limits::default() };
        let now = hours(100 * 24);
        // Entries as (age in hours, bytes), oldest first; which go; whether 10 and 90 more bytes are taken.
        type Row = (&'static [(u64, u64)], &'static [u64], (bool, bool));
        let table: &[Row] = &[
            (&[], &[], (true, true)),
            (&[(13 * 24, 50), (25, 50)], &[], (true, true)),
            (&[(14 * 24, 1), (13 * 24, 1)], &[14 * 24], (true, true)),
            (&[(50, 60), (40, 60), (30, 60)], &[50, 40], (true, true)),
            (&[(50, 60), (23, 60), (1, 60)], &[50], (false, false)),
            (&[(23, 90)], &[], (true, false)),
            (&[(23, 500)], &[], (false, false)),
        ];
        for (entries, going, (ten, ninety)) in table {
            let entry = |(age, bytes): &(u64, u64)| Entry {
                name: EntryName { secs: now - hours(*age), counter: 0 },
                bytes: *bytes,
            };
            let entries: Vec<Entry> = entries.iter().map(entry).collect();
            let ages = |names: Vec<EntryName>| -> Vec<u64> {
                names.iter().map(|name| (now - name.secs) / 3600).collect()
            };
            assert_eq!(ages(doomed(&entries, now, &limits)), *going, "{entries:?}");
            assert_eq!(admits(&entries, 10, now, &limits), *ten, "{entries:?}");
            assert_eq!(admits(&entries, 90, now, &limits), *ninety, "{entries:?}");
            // A clock set back removes nothing.
            assert_eq!(doomed(&entries, 0, &limits), []);
        }
        assert!(!admits(&[], 101, now, &limits));
    }
}
