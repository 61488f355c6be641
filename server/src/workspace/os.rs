//! [`WorkspaceFs`] on the operating system.
//!
//! Platform differences live in the two small modules at the end: how a path is resolved beneath a
//! descriptor, and how a whole file system is synced.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use gitsync_core::model::Signature;
use gitsync_core::transport::kernel_run;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_NOW};
use rustix::io::{Errno, Result, retry_on_intr};

use super::folding::{self, Folding};
use super::fs::{Kind, Space, Stat, WorkspaceFs};

#[derive(Debug, Default)]
pub struct OsFs {
    /// The file system, or the kernel, knows no `renameat2` flags: names are moved by links instead.
    no_flags: AtomicBool,
    asides: AtomicU64,
}

impl OsFs {
    /// `renameat2` with flags, `None` where that is not to be had.
    fn flagged(
        &self,
        from: BorrowedFd<'_>,
        name: &[u8],
        to: BorrowedFd<'_>,
        new: &[u8],
        flags: RenameFlags,
    ) -> Option<Result<()>> {
        if self.no_flags.load(Ordering::Relaxed) {
            return None;
        }
        match retry_on_intr(|| fs::renameat_with(from, name, to, new, flags)) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                self.no_flags.store(true, Ordering::Relaxed);
                None
            }
            done => Some(done),
        }
    }
}

impl WorkspaceFs for OsFs {
    fn open_dir(&self, at: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd> {
        resolve::open_dir(at, path)
    }

    fn open_file(&self, at: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        retry_on_intr(|| fs::openat(at, name, flags, Mode::empty()))
    }

    fn create(&self, at: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        retry_on_intr(|| fs::openat(at, name, flags, Mode::from_raw_mode(0o600)))
    }

    fn append(&self, at: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        retry_on_intr(|| fs::openat(at, name, flags, Mode::empty()))
    }

    fn read(&self, file: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
        retry_on_intr(|| rustix::io::read(file, &mut *buffer))
    }

    fn read_at(&self, file: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> Result<usize> {
        retry_on_intr(|| rustix::io::pread(file, &mut *buffer, offset))
    }

    fn write_all(&self, file: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match retry_on_intr(|| rustix::io::write(file, bytes))? {
                0 => return Err(Errno::IO),
                written => bytes = &bytes[written..],
            }
        }
        Ok(())
    }

    fn stat(&self, file: BorrowedFd<'_>) -> Result<Stat> {
        fs::fstat(file).map(|stat| read_stat(&stat))
    }

    fn stat_at(&self, at: BorrowedFd<'_>, name: &[u8]) -> Result<Stat> {
        fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| read_stat(&stat))
    }

    fn symlink(&self, target: &[u8], at: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        fs::symlinkat(target, at, name)
    }

    fn read_link(&self, at: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>> {
        fs::readlinkat(at, name, Vec::new()).map(std::ffi::CString::into_bytes)
    }

    fn rename(&self, from: BorrowedFd<'_>, name: &[u8], to: BorrowedFd<'_>, new: &[u8]) -> Result<()> {
        retry_on_intr(|| fs::renameat(from, name, to, new))
    }

    fn rename_new(&self, from: BorrowedFd<'_>, name: &[u8], to: BorrowedFd<'_>, new: &[u8]) -> Result<()> {
        if let Some(done) = self.flagged(from, name, to, new, RenameFlags::NOREPLACE) {
            return done;
        }
        if self.stat_at(from, name)?.kind == Kind::Dir {
            // A directory cannot be linked; renaming one over anything but an empty directory fails.
            return self.rename(from, name, to, new);
        }
        fs::linkat(from, name, to, new, AtFlags::empty())?;
        self.unlink(from, name)
    }

    fn exchange(&self, a: BorrowedFd<'_>, name: &[u8], b: BorrowedFd<'_>, other: &[u8]) -> Result<()> {
        if let Some(done) = self.flagged(a, name, b, other, RenameFlags::EXCHANGE) {
            return done;
        }
        // The other file keeps a second name while the first moves over it. A directory at `other`
        // cannot be linked, so this fails before anything moved.
        let aside = format!("d-aside-{}", self.asides.fetch_add(1, Ordering::Relaxed)).into_bytes();
        fs::linkat(b, other, a, &*aside, AtFlags::empty())?;
        if let Err(e) = self.rename(a, name, b, other) {
            let _ = self.unlink(a, &aside);
            return Err(e);
        }
        self.rename(a, &aside, a, name)
    }

    fn unlink(&self, at: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        retry_on_intr(|| fs::unlinkat(at, name, AtFlags::empty()))
    }

    fn mkdir(&self, at: BorrowedFd<'_>, name: &[u8], permissions: u32) -> Result<()> {
        fs::mkdirat(at, name, permissions_of(permissions))
    }

    fn rmdir(&self, at: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        fs::unlinkat(at, name, AtFlags::REMOVEDIR)
    }

    fn list(&self, dir: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        for entry in fs::Dir::new(readable(dir)?)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        Ok(names)
    }

    fn chmod(&self, file: BorrowedFd<'_>, permissions: u32) -> Result<()> {
        fs::fchmod(file, permissions_of(permissions))
    }

    fn touch(&self, file: BorrowedFd<'_>) -> Result<()> {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        fs::futimens(file, &Timestamps { last_access: now, last_modification: now })
    }

    fn sync(&self, file: BorrowedFd<'_>) -> Result<()> {
        retry_on_intr(|| fs::fsync(file))
    }

    fn sync_dir(&self, dir: BorrowedFd<'_>) -> Result<()> {
        self.sync(readable(dir)?.as_fd())
    }

    fn sync_fs(&self, dir: BorrowedFd<'_>) -> Result<()> {
        sync::whole(readable(dir)?.as_fd())
    }

    fn space(&self, dir: BorrowedFd<'_>) -> Result<Space> {
        let stat = fs::fstatvfs(dir)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Space { total: bytes(stat.f_blocks), available: bytes(stat.f_bavail) })
    }

    fn boot_id(&self) -> String {
        kernel_run().to_owned()
    }

    fn folding(&self, dir: BorrowedFd<'_>) -> Result<Folding> {
        folding::probe(self, dir)
    }
}

/// A directory opened again, this time for reading.
fn readable(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    retry_on_intr(|| fs::openat(dir, ".", flags, Mode::empty()))
}

#[allow(clippy::unnecessary_cast, reason = "the width of a mode differs between platforms")]
fn permissions_of(bits: u32) -> Mode {
    Mode::from_raw_mode(bits as fs::RawMode)
}

#[allow(clippy::unnecessary_cast, reason = "the widths of these fields differ between platforms")]
fn read_stat(stat: &fs::Stat) -> Stat {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Symlink => Kind::Symlink,
        FileType::Directory => Kind::Dir,
        _ => Kind::Other,
    };
    Stat {
        kind,
        permissions: stat.st_mode as u32 & 0o7777,
        links: stat.st_nlink as u64,
        signature: Signature {
            size: stat.st_size as u64,
            mtime_ns: Signature::nanoseconds(stat.st_mtime as i64, stat.st_mtime_nsec as i64),
            ctime_ns: Signature::nanoseconds(stat.st_ctime as i64, stat.st_ctime_nsec as i64),
            inode: stat.st_ino as u64,
        },
    }
}

/// One component after the other, none of them a symlink.
fn walk(at: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let mut held: Option<OwnedFd> = None;
    for name in path.split(|b| *b == b'/') {
        let from = held.as_ref().map_or(at, AsFd::as_fd);
        held = Some(retry_on_intr(|| fs::openat(from, name, flags, Mode::empty()))?);
    }
    held.ok_or(Errno::INVAL)
}

#[cfg(target_os = "linux")]
mod resolve {
    use super::{
        AtomicBool, BorrowedFd, Errno, Mode, OFlags, Ordering, OwnedFd, Result, fs, retry_on_intr, walk,
    };
    use rustix::fs::ResolveFlags;

    /// A kernel before 5.6, or a sandbox that forbids the call.
    static NO_OPENAT2: AtomicBool = AtomicBool::new(false);

    pub(super) fn open_dir(at: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if !NO_OPENAT2.load(Ordering::Relaxed) {
            match openat2(at, path, flags) {
                // `EPERM` is what a seccomp filter answers; opening a directory never gives it otherwise.
                Err(Errno::NOSYS | Errno::PERM) => NO_OPENAT2.store(true, Ordering::Relaxed),
                opened => return opened,
            }
        }
        walk(at, path, flags)
    }

    fn openat2(at: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV;
        let mut tries = 0;
        loop {
            // `EAGAIN`: something was renamed during the walk and the kernel cannot vouch for it.
            match retry_on_intr(|| fs::openat2(at, path, flags, Mode::empty(), resolve)) {
                Err(Errno::AGAIN) if tries < 16 => tries += 1,
                opened => return opened,
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use std::os::fd::AsFd;

        #[test]
        fn the_walk_follows_no_symlink_either() {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
            std::os::unix::fs::symlink("a", dir.path().join("l")).unwrap();
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let root = fs::open(dir.path(), flags, Mode::empty()).unwrap();
            for open in [walk, openat2] {
                assert!(open(root.as_fd(), b"a/b", flags).is_ok());
                for bad in ["l/b", "l"] {
                    let errno = open(root.as_fd(), bad.as_bytes(), flags).unwrap_err();
                    assert!(matches!(errno, Errno::LOOP | Errno::NOTDIR), "{bad}: {errno}");
                }
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod resolve {
    use super::{BorrowedFd, OFlags, OwnedFd, Result, walk};

    pub(super) fn open_dir(at: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd> {
        walk(at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC)
    }
}

#[cfg(target_os = "linux")]
mod sync {
    pub(super) fn whole(dir: super::BorrowedFd<'_>) -> super::Result<()> {
        super::fs::syncfs(dir)
    }
}

#[cfg(not(target_os = "linux"))]
mod sync {
    /// There is no `syncfs`; the directory alone is the best to be had.
    pub(super) fn whole(dir: super::BorrowedFd<'_>) -> super::Result<()> {
        super::fs::fsync(dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ways of moving names do the same, seen from outside.
    #[test]
    fn links_stand_in_for_rename_flags() {
        for no_flags in [false, true] {
            let fs = OsFs { no_flags: AtomicBool::new(no_flags), ..OsFs::default() };
            let dir = tempfile::tempdir().unwrap();
            let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
            let get = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
            put("a", "1");
            put("b", "2");
            let at = std::fs::File::open(dir.path()).unwrap();
            let at = at.as_fd();
            fs.exchange(at, b"a", at, b"b").unwrap();
            assert_eq!((get("a"), get("b")), ("2".into(), "1".into()));
            assert_eq!(fs.exchange(at, b"a", at, b"none"), Err(Errno::NOENT));
            assert_eq!(fs.rename_new(at, b"a", at, b"b"), Err(Errno::EXIST));
            fs.rename_new(at, b"a", at, b"c").unwrap();
            assert_eq!(get("c"), "2");
            let mut names = fs.list(at).unwrap();
            names.sort();
            assert_eq!(names, [b"b", b"c"]);
        }
    }
}
