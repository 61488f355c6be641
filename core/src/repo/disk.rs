//! Looking at and reading files without being led astray by a symlink or a writer.
//!
//! A file is reached through a descriptor of its directory that was opened without following any
//! symlink, and read between two equal `fstat`s, so that what is hashed was one state of the file.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rustix::fs::{self, AtFlags, FileType, Mode as Permissions, OFlags};
use rustix::io::Errno;

use super::blocks::{BlockHasher, Blocks};
use super::content::KEEP_BYTES;
use crate::model::{ContentHasher, ContentId, HashKind, Leaf, Mode, RelPath, Signature};

/// How often a file that changes under the reader is tried again at once.
const READ_TRIES: usize = 3;
const BUFFER_BYTES: usize = 256 * 1024;
/// A file whose ctime is younger than this when it is read could change again without a change of
/// signature on a file system with coarse times (git's "racily clean" entries).
pub const RACY: Duration = Duration::from_secs(2);

/// The root of a working tree, held open.
#[derive(Debug)]
pub struct Disk {
    root: OwnedFd,
    path: PathBuf,
}

/// A working tree that others read too, and that another may replace at the same place.
#[derive(Debug)]
pub struct SharedDisk(Mutex<Arc<Disk>>);

impl SharedDisk {
    pub fn new(disk: Arc<Disk>) -> Self {
        Self(Mutex::new(disk))
    }

    pub fn get(&self) -> Arc<Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set(&self, disk: Arc<Disk>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = disk;
    }
}

/// One directory of it, held open.
#[derive(Debug)]
pub struct DirHandle(OwnedFd);

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    Absent,
    Directory,
    File {
        executable: bool,
        signature: Signature,
    },
    Symlink {
        signature: Signature,
    },
    /// A FIFO, socket or device: nothing git or we know.
    Other,
}

impl Found {
    /// True for what git can track as content.
    pub fn is_leaf(&self) -> bool {
        matches!(self, Found::File { .. } | Found::Symlink { .. })
    }
}

/// What became of an attempt to read a file.
#[derive(Debug)]
pub enum ReadOutcome {
    /// The leaf, and what is worth keeping of its content.
    Read(Leaf, Read),
    /// Gone, or no file or symlink any more.
    Gone,
    /// It changed each time it was read.
    Unstable,
    Unreadable(io::Error),
}

/// What is kept of a content that was read.
#[derive(Debug)]
pub enum Read {
    /// All of it: it is small.
    Bytes(Bytes),
    /// Its blocks.
    Blocks(Arc<Blocks>),
}

impl Disk {
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = fs::open(path, flags, Permissions::empty())?;
        Ok(Self { root, path: path.to_owned() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode of the root: its identity.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        let stat = fs::fstat(&self.root)?;
        Ok((stat.st_dev as u64, stat.st_ino))
    }

    /// Opens a directory, `None` for the root. A symlink anywhere on the way is an error (`ELOOP`).
    pub fn dir(&self, path: Option<&RelPath>) -> io::Result<DirHandle> {
        match path {
            // Not a duplicate of the descriptor: those share one position in the listing.
            None => DirHandle(self.root.try_clone()?).dir(b"."),
            Some(path) => Ok(DirHandle(open_beneath(&self.root, path)?)),
        }
    }

    /// What is at `path`. Everything below a symlink or a file is absent.
    pub fn find(&self, path: &RelPath) -> io::Result<Found> {
        match self.dir(path.parent().as_ref()) {
            Ok(dir) => dir.find(path.name()),
            Err(e) if is_absence(&e) => Ok(Found::Absent),
            Err(e) => Err(e),
        }
    }

    pub fn read(&self, path: &RelPath, kind: HashKind) -> ReadOutcome {
        self.read_telling(path, kind, &mut |_| {})
    }

    /// The same, and `tell` hears how far the blocks of a large file are counted. It may begin anew.
    pub fn read_telling(
        &self,
        path: &RelPath,
        kind: HashKind,
        tell: &mut dyn FnMut(&BlockHasher),
    ) -> ReadOutcome {
        match self.dir(path.parent().as_ref()) {
            Ok(dir) => dir.read_telling(path.name(), kind, tell),
            Err(e) if is_absence(&e) => ReadOutcome::Gone,
            Err(e) => ReadOutcome::Unreadable(e),
        }
    }

    /// Opens a regular file for a reader of its own.
    pub fn open_file(&self, path: &RelPath) -> io::Result<File> {
        let dir = self.dir(path.parent().as_ref())?;
        Ok(dir.open_file(path.name())?.into())
    }
}

/// True for errors that say there is nothing at the path: no entry, or its parent is no directory.
pub fn is_absence(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV))
}

#[cfg(target_os = "linux")]
fn open_beneath(root: &OwnedFd, path: &RelPath) -> io::Result<OwnedFd> {
    use rustix::fs::ResolveFlags;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match fs::openat2(root, path.as_path(), flags, Permissions::empty(), resolve) {
        Err(Errno::NOSYS | Errno::PERM) => walk_beneath(root, path),
        other => Ok(other?),
    }
}

#[cfg(not(target_os = "linux"))]
fn open_beneath(root: &OwnedFd, path: &RelPath) -> io::Result<OwnedFd> {
    walk_beneath(root, path)
}

fn walk_beneath(root: &OwnedFd, path: &RelPath) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = root.try_clone()?;
    for name in path.components() {
        at = fs::openat(&at, name, flags, Permissions::empty())?;
    }
    Ok(at)
}

impl DirHandle {
    pub fn find(&self, name: &[u8]) -> io::Result<Found> {
        match fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(classify(&stat)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(Found::Absent),
            Err(e) => Err(e.into()),
        }
    }

    /// Calls `visit` for each name in this directory, in no order and without `.` and `..`, and what it is. To be done
    /// once: the position in the directory is the descriptor's. `buffer` lends its spare room.
    pub fn list(&self, buffer: &mut Vec<u8>, mut visit: impl FnMut(&[u8], FileType)) -> io::Result<()> {
        let kind_of = |name: &[u8], file_type| match file_type {
            FileType::Unknown => {
                let stat = fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
                Some(FileType::from_raw_mode(stat.st_mode))
            }
            known => Some(known),
        };
        for_each_entry(&self.0, buffer, |name, file_type| {
            if name != b"."
                && name != b".."
                && let Some(file_type) = kind_of(name, file_type)
            {
                visit(name, file_type);
            }
        })
    }

    /// Opens a directory in this one. A symlink is an error.
    pub fn dir(&self, name: &[u8]) -> io::Result<DirHandle> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(DirHandle(fs::openat(&self.0, name, flags, Permissions::empty())?))
    }

    pub fn open_file(&self, name: &[u8]) -> io::Result<OwnedFd> {
        // Non-blocking, so that a FIFO put there a moment ago cannot hang the thread.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(fs::openat(&self.0, name, flags, Permissions::empty())?)
    }

    /// Reads and hashes a file or a link.
    pub fn read(&self, name: &[u8], kind: HashKind) -> ReadOutcome {
        self.read_telling(name, kind, &mut |_| {})
    }

    fn read_telling(&self, name: &[u8], kind: HashKind, tell: &mut dyn FnMut(&BlockHasher)) -> ReadOutcome {
        for _ in 0..READ_TRIES {
            let tried = match self.find(name) {
                Ok(Found::File { .. }) => self.read_file(name, kind, tell),
                Ok(Found::Symlink { signature }) => self.read_symlink(name, signature, kind),
                Ok(_) => return ReadOutcome::Gone,
                Err(e) => return ReadOutcome::Unreadable(e),
            };
            match tried {
                Ok(Some((leaf, bytes))) => return ReadOutcome::Read(leaf, bytes),
                // Changed while it was read, or replaced between two calls: look again.
                Ok(None) => {}
                Err(e) if is_absence(&e) => {}
                Err(e) => return ReadOutcome::Unreadable(e),
            }
        }
        match self.find(name) {
            Ok(Found::File { .. } | Found::Symlink { .. }) => ReadOutcome::Unstable,
            Ok(_) => ReadOutcome::Gone,
            Err(e) => ReadOutcome::Unreadable(e),
        }
    }

    /// The bytes of a file that still has a signature taken when they were hashed; `None` if it has another, or if
    /// that one proves nothing.
    pub fn read_unchanged(&self, name: &[u8], signature: &Signature) -> Option<Bytes> {
        if !signature.is_trusted() {
            return None;
        }
        let mut file = File::from(self.open_file(name).ok()?);
        let mut bytes = vec![0; signature.size as usize];
        file.read_exact(&mut bytes).ok()?;
        // Looked at after reading: whoever writes meanwhile changes it.
        (signature_of(&file)? == *signature).then(|| bytes.into())
    }

    fn read_file(
        &self,
        name: &[u8],
        kind: HashKind,
        tell: &mut dyn FnMut(&BlockHasher),
    ) -> io::Result<Option<(Leaf, Read)>> {
        let mut file = File::from(self.open_file(name)?);
        let before = fs::fstat(&file)?;
        let Found::File { executable, signature } = classify(&before) else {
            return Ok(None);
        };
        let hashed = if signature.size <= KEEP_BYTES {
            read_small(&mut file, signature.size, kind)?
        } else {
            hash_large(&mut file, signature.size, kind, tell)?
        };
        let Some((id, bytes)) = hashed else { return Ok(None) };
        if classify(&fs::fstat(&file)?) != classify(&before) {
            return Ok(None);
        }
        let mode = if executable { Mode::Executable } else { Mode::File };
        Ok(Some((Leaf { mode, id, signature: unless_racy(signature) }, bytes)))
    }

    fn read_symlink(
        &self,
        name: &[u8],
        signature: Signature,
        kind: HashKind,
    ) -> io::Result<Option<(Leaf, Read)>> {
        let target = fs::readlinkat(&self.0, name, Vec::new())?.into_bytes();
        if self.find(name)? != (Found::Symlink { signature }) {
            return Ok(None);
        }
        let id = ContentId::of(kind, &target);
        // Some file systems give a link another size than its target's; the wire wants the target's.
        let signature = unless_racy(Signature { size: target.len() as u64, ..signature });
        Ok(Some((Leaf { mode: Mode::Symlink, id, signature }, Read::Bytes(target.into()))))
    }
}

/// Room for about 800 short names.
const LIST_BYTES: usize = 32 << 10;

#[cfg(target_os = "linux")]
fn for_each_entry(
    dir: &OwnedFd,
    buffer: &mut Vec<u8>,
    mut visit: impl FnMut(&[u8], FileType),
) -> io::Result<()> {
    buffer.reserve(LIST_BYTES);
    // Without the two system calls and the allocation that the portable way costs a directory.
    let mut entries = fs::RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        visit(entry.file_name().to_bytes(), entry.file_type());
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn for_each_entry(
    dir: &OwnedFd,
    _buffer: &mut Vec<u8>,
    mut visit: impl FnMut(&[u8], FileType),
) -> io::Result<()> {
    for entry in fs::Dir::read_from(dir)? {
        let entry = entry?;
        visit(entry.file_name().to_bytes(), entry.file_type());
    }
    Ok(())
}

impl AsFd for DirHandle {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

type Hashed = Option<(ContentId, Read)>;

fn read_small(file: &mut File, size: u64, kind: HashKind) -> io::Result<Hashed> {
    let mut bytes = Vec::with_capacity(size as usize + 1);
    // One byte more than expected shows growth.
    file.take(size + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != size {
        return Ok(None);
    }
    Ok(Some((ContentId::of(kind, &bytes), Read::Bytes(bytes.into()))))
}

fn hash_large(
    file: &mut File,
    size: u64,
    kind: HashKind,
    tell: &mut dyn FnMut(&BlockHasher),
) -> io::Result<Hashed> {
    let (mut hasher, mut blocks) = (ContentHasher::new(kind, size), BlockHasher::new(size));
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut total = 0;
    loop {
        let n = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        total += n as u64;
        if total > size {
            return Ok(None);
        }
        hasher.update(&buffer[..n]);
        blocks.update(&buffer[..n]);
        tell(&blocks);
    }
    Ok((total == size).then(|| (hasher.finish(), Read::Blocks(Arc::new(blocks.finish())))))
}

/// The signature of an open regular file.
pub fn signature_of(file: &File) -> Option<Signature> {
    match classify(&fs::fstat(file).ok()?) {
        Found::File { signature, .. } => Some(signature),
        _ => None,
    }
}

/// A signature that can be trusted later, or one that equals none, so that the file is read again.
pub fn unless_racy(signature: Signature) -> Signature {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let settled = now.saturating_sub(RACY).as_nanos() as i64;
    if signature.ctime_ns < settled {
        signature
    } else {
        Signature { ctime_ns: Signature::RACY, ..signature }
    }
}

#[expect(clippy::unnecessary_cast, reason = "the field types differ between systems")]
fn classify(stat: &fs::Stat) -> Found {
    let signature = Signature {
        size: stat.st_size as u64,
        mtime_ns: Signature::nanoseconds(stat.st_mtime as i64, stat.st_mtime_nsec as i64),
        ctime_ns: Signature::nanoseconds(stat.st_ctime as i64, stat.st_ctime_nsec as i64),
        inode: stat.st_ino as u64,
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Found::File { executable: stat.st_mode & 0o100 != 0, signature },
        FileType::Symlink => Found::Symlink { signature },
        FileType::Directory => Found::Directory,
        _ => Found::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs as std_fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn rel(path: &str) -> RelPath {
        RelPath::new(path).unwrap()
    }

    #[test]
    fn nothing_is_found_or_read_through_a_symlink() {
        let dir = tempfile::tempdir().unwrap();
        std_fs::create_dir(dir.path().join("real")).unwrap();
        std_fs::write(dir.path().join("real/x"), "secret").unwrap();
        symlink("real", dir.path().join("link")).unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        assert_eq!(disk.find(&rel("link/x")).unwrap(), Found::Absent);
        assert!(matches!(disk.read(&rel("link/x"), HashKind::Sha1), ReadOutcome::Gone));
        assert!(matches!(disk.find(&rel("link")).unwrap(), Found::Symlink { .. }));
    }

    #[test]
    fn contents_links_and_modes_are_read_as_git_sees_them() {
        let dir = tempfile::tempdir().unwrap();
        std_fs::write(dir.path().join("f"), "hello\n").unwrap();
        symlink("f", dir.path().join("l")).unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        let ReadOutcome::Read(leaf, Read::Bytes(bytes)) = disk.read(&rel("f"), HashKind::Sha1) else {
            panic!()
        };
        assert_eq!(leaf.id.to_string(), "ce013625030ba8dba906f756967f9e9ca394464a");
        assert_eq!(bytes, "hello\n");
        let ReadOutcome::Read(link, _) = disk.read(&rel("l"), HashKind::Sha1) else { panic!() };
        assert_eq!((link.mode, link.signature.size), (Mode::Symlink, 1));
        assert_eq!(link.id, ContentId::of(HashKind::Sha1, b"f"));
    }

    #[test]
    fn a_file_read_right_after_its_change_is_not_trusted_later() {
        let dir = tempfile::tempdir().unwrap();
        std_fs::write(dir.path().join("f"), "x").unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        let ReadOutcome::Read(leaf, _) = disk.read(&rel("f"), HashKind::Sha1) else { panic!() };
        let Found::File { signature, .. } = disk.find(&rel("f")).unwrap() else { panic!() };
        assert_ne!(leaf.signature, signature);
    }

    #[test]
    fn the_root_is_listed_whole_every_time() {
        let dir = tempfile::tempdir().unwrap();
        std_fs::write(dir.path().join("f"), "x").unwrap();
        std_fs::create_dir(dir.path().join("d")).unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        for _ in 0..2 {
            let mut names = Vec::new();
            let handle = disk.dir(None).unwrap();
            handle.list(&mut Vec::new(), |name, file_type| names.push((name.to_vec(), file_type))).unwrap();
            names.sort_by(|a, b| a.0.cmp(&b.0));
            assert_eq!(names, [(b"d".to_vec(), FileType::Directory), (b"f".to_vec(), FileType::RegularFile)]);
        }
    }

    #[test]
    fn a_fifo_does_not_hang() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        fs::mknodat(fs::CWD, &path, FileType::Fifo, Permissions::RUSR, 0).unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        assert!(matches!(disk.read(&rel("fifo"), HashKind::Sha1), ReadOutcome::Gone));
    }
}
