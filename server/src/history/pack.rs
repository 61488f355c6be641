//! A pack on its way in: into a quarantine, checked there, and only then among the clone's objects.
//!
//! The quarantine is an object directory of its own below `.git/gitsync/history`, with the clone's as its alternate
//! (as git's receive-pack does it). What is wrong with a pack is known before any other program can see it.

use std::os::fd::{AsFd, OwnedFd};

use bstr::ByteSlice;
use rustix::io::Errno;

use super::StepError;
use super::git::{Git, Running, Stop, fsck_option};
use super::state::{State, read, remove_all};
use crate::workspace::{CloneDir, space};

/// Largest pack of one step.
pub const PACK_BYTES_MAX: u64 = 16 << 30;
/// Most objects in one.
const PACK_OBJECTS_MAX: u32 = 50_000_000;
/// This many small packs become one: programs look through all of them for every object.
const SMALL_PACKS: usize = 40;
/// A pack counts as small up to this size, and those that become one have no more than eight times that; in bytes.
const SMALL_BYTES: u64 = 16 << 20;
/// Room on the disk is looked at after so many bytes.
const SPACE_EVERY: u64 = 16 << 20;
const HEADER_BYTES: usize = 12;

/// An object directory that only we know of. Dropping it removes it.
#[derive(Debug)]
pub struct Quarantine<'a> {
    clone: &'a CloneDir,
    state: &'a State,
    name: String,
}

/// A pack that is arriving.
#[derive(Debug)]
pub struct Incoming {
    running: Running,
    header: Vec<u8>,
    received: u64,
    flaw: Option<StepError>,
}

/// A pack that is whole and sound in its quarantine.
#[derive(Debug)]
pub struct Pack {
    pub objects: u64,
}

impl<'a> Quarantine<'a> {
    pub fn make(clone: &'a CloneDir, state: &'a State) -> Result<Self, StepError> {
        let fs = clone.fs();
        let name = state.own("incoming");
        let made = (|| {
            remove_all(clone, state.fd(), name.as_bytes(), 3)?;
            fs.mkdir(state.fd().as_fd(), name.as_bytes(), 0o700)?;
            let dir = fs.open_dir(state.fd().as_fd(), name.as_bytes())?;
            fs.mkdir(dir.as_fd(), b"pack", 0o700)?;
            fs.mkdir(dir.as_fd(), b"info", 0o700)?;
            let info = fs.open_dir(dir.as_fd(), b"info")?;
            let alternates = fs.create(info.as_fd(), b"alternates")?;
            // From `.git/gitsync/history/NAME`.
            fs.write_all(alternates.as_fd(), b"../../../objects\n")
        })();
        made.map_err(|e| StepError::errno("make room for a pack", e))?;
        Ok(Self { clone, state, name })
    }

    /// Relative to the git directory.
    pub fn objects(&self) -> String {
        self.state.relative(&self.name)
    }

    /// Begins to take a pack in.
    pub fn receive(&self, stop: &Stop) -> Result<Incoming, StepError> {
        check_space(self.clone)?;
        let objects = self.objects();
        let git = Git { objects: Some(&objects), stop: Some(stop), ..Git::new(self.clone) };
        let most = format!("--max-input-size={PACK_BYTES_MAX}");
        let fsck = fsck_option();
        let running = git.start(&["index-pack", "--stdin", "--fix-thin", "--threads=1", &most, &fsck])?;
        Ok(Incoming { running, header: Vec::new(), received: 0, flaw: None })
    }

    /// Moves the pack among the clone's objects: the index last, because it is what other programs look for.
    pub fn release(&self) -> Result<(), StepError> {
        self.try_release().map_err(|e| StepError::errno("move a pack in", e))
    }

    fn try_release(&self) -> Result<(), Errno> {
        release(self.clone, &self.open(b"pack")?)
    }

    fn open(&self, name: &[u8]) -> Result<OwnedFd, Errno> {
        let fs = self.clone.fs();
        let dir = fs.open_dir(self.state.fd().as_fd(), self.name.as_bytes())?;
        fs.open_dir(dir.as_fd(), name)
    }
}

/// Puts many small packs of the clone together into one, if there are so many. Nobody else lands meanwhile. What is
/// in them stays, whether anything leads to it or not. Returns how many became one.
pub fn fold(clone: &CloneDir, state: &State, stop: &Stop) -> Result<usize, StepError> {
    let errno = |e| StepError::errno("look through the packs", e);
    let dir = clone.fs().open_dir(clone.fd(), b"objects/pack").map_err(errno)?;
    let small = small_packs(clone, &dir).map_err(errno)?;
    if small.len() < SMALL_PACKS {
        return Ok(0);
    }
    let _turn = state.turn(stop)?;
    let quarantine = Quarantine::make(clone, state)?;
    let objects = quarantine.objects();
    let git = Git { objects: Some(&objects), stop: Some(stop), ..Git::new(clone) };
    let names: Vec<u8> = small.iter().flat_map(|name| [name, &b".pack\n"[..]].concat()).collect();
    let base = format!("{objects}/pack/pack");
    // No window: what is packed is copied as it is. Looking for better deltas would take many times as long.
    let made =
        git.run(&["pack-objects", "--stdin-packs", "--threads=1", "--window=0", "-q", &base], &names)?;
    quarantine.release()?;
    let made = [b"pack-", made.trim()].concat();
    for name in small.iter().filter(|name| **name != made) {
        // The index first: without it nobody looks for the pack.
        for end in [".idx", ".rev", ".pack"] {
            match clone.fs().unlink(dir.as_fd(), &[name, end.as_bytes()].concat()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(StepError::errno("remove a pack that is in another", e)),
            }
        }
    }
    Ok(small.len())
}

/// Names without ending, the smallest packs first. Those somebody marked to be kept are not among them.
fn small_packs(clone: &CloneDir, dir: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let names = clone.fs().list(dir.as_fd())?;
    let there: std::collections::HashSet<&[u8]> = names.iter().map(Vec::as_slice).collect();
    let mut small = Vec::new();
    // An index over several packs must go on finding those it names.
    if there.contains(&b"multi-pack-index.d"[..]) {
        return Ok(Vec::new());
    }
    let multi = read(dir, b"multi-pack-index")?.unwrap_or_default();
    for name in &names {
        let Some(base) = name.strip_suffix(b".pack") else { continue };
        let with = |end: &[u8]| there.contains(&[base, end].concat()[..]);
        let special = [&b".keep"[..], b".promisor", b".mtimes", b".bitmap"].into_iter().any(with)
            || multi.contains_str([base, b".idx"].concat());
        let size = clone.fs().stat_at(dir.as_fd(), name)?.signature.size;
        if with(b".idx") && !special && size <= SMALL_BYTES {
            small.push((size, base.to_vec()));
        }
    }
    small.sort();
    let mut total = 0;
    let fits = |(size, _): &(u64, Vec<u8>)| {
        total += size;
        total <= SMALL_BYTES * 8
    };
    Ok(small.into_iter().take_while(fits).map(|(_, base)| base).collect())
}

/// Moves the packs of a directory among the clone's objects.
pub fn release(clone: &CloneDir, from: &OwnedFd) -> Result<(), Errno> {
    let fs = clone.fs();
    let objects = fs.open_dir(clone.fd(), b"objects")?;
    match fs.mkdir(objects.as_fd(), b"pack", 0o777) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e),
    }
    let to = fs.open_dir(objects.as_fd(), b"pack")?;
    let mut names = fs.list(from.as_fd())?;
    names.retain(|name| name.starts_with(b"pack-"));
    names.sort_by_key(|name| (name.ends_with(b".idx"), !name.ends_with(b".pack")));
    for name in &names {
        fs.rename(from.as_fd(), name, to.as_fd(), name)?;
    }
    // The programs made them durable; now their names are.
    fs.sync_dir(to.as_fd())
}

impl Drop for Quarantine<'_> {
    fn drop(&mut self) {
        if let Err(e) = remove_all(self.clone, self.state.fd(), self.name.as_bytes(), 3) {
            tracing::warn!("cannot remove a pack that was given up: {e}");
        }
    }
}

impl Incoming {
    /// Takes a piece. What is wrong is said at [`Incoming::finish`].
    pub fn write(&mut self, clone: &CloneDir, piece: &[u8]) {
        if self.flaw.is_some() {
            return;
        }
        let before = self.received / SPACE_EVERY;
        self.received += piece.len() as u64;
        if self.header.len() < HEADER_BYTES {
            let part = piece.len().min(HEADER_BYTES - self.header.len());
            self.header.extend_from_slice(&piece[..part]);
            self.flaw = count(&self.header).err();
        }
        if self.received > PACK_BYTES_MAX {
            self.flaw = Some(StepError::TooLarge(format!("a pack of more than {PACK_BYTES_MAX} bytes")));
        }
        if self.received / SPACE_EVERY > before
            && let Err(e) = check_space(clone)
        {
            self.flaw = Some(e);
        }
        if self.flaw.is_none() {
            // One that has heard enough says so at the end.
            self.running.write(piece);
        }
    }

    /// All of it is here.
    pub fn finish(self) -> Result<Pack, StepError> {
        let Self { running, header, flaw, .. } = self;
        if let Some(flaw) = flaw {
            return Err(flaw);
        }
        if header.len() < HEADER_BYTES {
            return Err(StepError::Invalid("a pack that ends before it begins".to_owned()));
        }
        let objects = count(&header)?;
        let done = running.finish()?;
        if !done.status.success() {
            return Err(complaint(&done.errors));
        }
        Ok(Pack { objects })
    }
}

/// Objects by the pack's header, as far as it is here.
fn count(header: &[u8]) -> Result<u64, StepError> {
    let known = header.len().min(4);
    if header[..known] != b"PACK"[..known] {
        return Err(StepError::Invalid("what came as a pack is none".to_owned()));
    }
    let Some(count) = header.get(8..12) else { return Ok(0) };
    let count = u32::from_be_bytes(count.try_into().unwrap_or_default());
    match count > PACK_OBJECTS_MAX {
        true => Err(StepError::TooLarge(format!("a pack of {count} objects"))),
        false => Ok(count.into()),
    }
}

/// Refuses to go on where the disk is as good as full.
pub fn check_space(clone: &CloneDir) -> Result<(), StepError> {
    match clone.fs().space(clone.fd()) {
        Ok(room) => space::check(0, room).map_err(|_| StepError::DiskFull),
        Err(_) => Ok(()),
    }
}

/// What `index-pack` meant.
fn complaint(errors: &str) -> StepError {
    let text = errors.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("git index-pack failed");
    let text = text.trim_start_matches("fatal: ").trim_start_matches("error: ").to_owned();
    let all = errors.as_bytes();
    if all.contains_str("No space left") || all.contains_str("Disk quota") {
        StepError::DiskFull
    } else if all.contains_str("unresolved delta") {
        StepError::Missing(format!("the pack builds on objects that are not here: {text}"))
    } else if all.contains_str("maximum allowed size") {
        StepError::TooLarge(text)
    } else {
        StepError::Invalid(format!("the pack is not sound: {text}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        assert_eq!(count(b"PACK\0\0\0\x02\0\0\0\x03").unwrap(), 3);
        assert_eq!(count(b"PA").unwrap(), 0);
        assert!(matches!(count(b"PIGS"), Err(StepError::Invalid(_))));
        assert!(matches!(count(b"PACK\0\0\0\x02\xff\xff\xff\xff"), Err(StepError::TooLarge(_))));
    }

    #[test]
    fn complaints() {
        assert!(matches!(complaint("fatal: pack has 3 unresolved deltas"), StepError::Missing(_)));
        assert!(matches!(complaint("fatal: write error: No space left on device"), StepError::DiskFull));
        assert!(matches!(
            complaint("error: object 12: hasDotgit: contains '.git'\nfatal: fsck error in packed object"),
            StepError::Invalid(_)
        ));
        assert!(matches!(complaint(""), StepError::Invalid(_)));
    }
}
