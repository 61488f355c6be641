//! The recovery store: bytes on the server that were in our way and are not ours.
//!
//! Each is moved, never copied, into a directory of its own named by time, under its own path, and
//! synced: nobody else has these bytes. Nothing here is ever overwritten or removed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use gitsync_core::model::RelPath;
use rustix::io::{Errno, Result};

use super::fs::{Kind, WorkspaceFs};

const STORE: &[u8] = b"recovery";
const PRIVATE: u32 = 0o700;

#[derive(Debug)]
pub(super) struct Recovery {
    fs: Arc<dyn WorkspaceFs>,
    state: Arc<OwnedFd>,
}

impl Recovery {
    pub fn new(fs: Arc<dyn WorkspaceFs>, state: Arc<OwnedFd>) -> Self {
        Self { fs, state }
    }

    /// Moves what is at `name` in `from`, met at `path` of the workspace, into the store. On an error it
    /// is still where it was.
    pub fn keep(&self, from: BorrowedFd<'_>, name: &[u8], path: &RelPath, now: SystemTime) -> Result<()> {
        let fs = &*self.fs;
        let store = enter(fs, self.state.as_fd(), STORE)?;
        let own = self.new_entry(store.as_fd(), now)?;
        let mut dirs = vec![own];
        for dir in path.ancestors() {
            let at = dirs.last().expect("there is the entry's own directory");
            let next = enter(fs, at.as_fd(), dir.name())?;
            dirs.push(next);
        }
        if fs.stat_at(from, name)?.kind == Kind::File {
            // Not readable for us: moved all the same, it is only not known to be on disk.
            if let Ok(file) = fs.open_file(from, name) {
                fs.sync(file.as_fd())?;
            }
        }
        let last = dirs.last().expect("there is the entry's own directory");
        fs.rename_new(from, name, last.as_fd(), path.name())?;
        // The bytes are safe from here on; a failed sync leaves them where a crash may forget the name.
        for dir in dirs.iter().rev().chain([&store]) {
            let _ = fs.sync_dir(dir.as_fd());
        }
        Ok(())
    }

    fn new_entry(&self, store: BorrowedFd<'_>, now: SystemTime) -> Result<OwnedFd> {
        let stamp = timestamp(now);
        for counter in 0..1_000_000 {
            let name = format!("{stamp}-{counter}").into_bytes();
            match self.fs.mkdir(store, &name, PRIVATE) {
                Ok(()) => return self.fs.open_dir(store, &name),
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e),
            }
        }
        Err(Errno::EXIST)
    }
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

/// UTC, as in `20261121T070131Z`: sorts by time.
fn timestamp(now: SystemTime) -> String {
    let secs = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (year, month, day) = civil(secs / 86_400);
    let (hour, minute, second) = (secs / 3600 % 24, secs / 60 % 60, secs % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn timestamps() {
        let at = |secs| timestamp(UNIX_EPOCH + Duration::from_secs(secs));
        assert_eq!(at(0), "19700101T000000Z");
        assert_eq!(at(951_782_400), "20000229T000000Z");
        assert_eq!(at(1_700_000_000), "20231114T221320Z");
    }
}
