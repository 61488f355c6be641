//! What a workspace needs of a file system: some twenty operations on held descriptors.
//!
//! Every name is one component below a directory that is already open, except in
//! [`WorkspaceFs::open_dir`], which resolves several beneath its start without following a symlink,
//! and in the stage, whose directories are ours alone: there a name may be `b1/u300`.
//! So no operation can leave the workspace, whatever happens to the tree meanwhile. [`OsFs`] is the
//! real thing; a twin that wraps another and fails on purpose tests what a full or broken disk does.
//!
//! [`OsFs`]: super::os::OsFs

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};

use gitsync_core::model::{Mode, Signature};
use rustix::io::Result;

use super::folding::Folding;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Symlink,
    Dir,
    /// A fifo, socket or device: never ours.
    Other,
}

/// What `lstat` or `fstat` says, as far as we look at it.
#[derive(Debug, Clone, Copy)]
pub struct Stat {
    pub kind: Kind,
    /// Permission bits.
    pub permissions: u32,
    pub links: u64,
    pub signature: Signature,
}

impl Stat {
    /// The mode git would record, `None` for what is neither a file nor a symlink.
    pub fn mode(&self) -> Option<Mode> {
        match self.kind {
            Kind::File if self.permissions & 0o100 != 0 => Some(Mode::Executable),
            Kind::File => Some(Mode::File),
            Kind::Symlink => Some(Mode::Symlink),
            Kind::Dir | Kind::Other => None,
        }
    }
}

/// How much a file system holds, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub total: u64,
    /// What an ordinary account may still take.
    pub available: u64,
}

/// Operations on names and descriptors. Errors are the kernel's numbers; interrupted calls are
/// repeated inside. `name` is one component, in the stage's directory one or two.
pub trait WorkspaceFs: fmt::Debug + Send + Sync {
    /// Opens the directory at `path` (one or more components) beneath `at`. `ELOOP` or `ENOTDIR` if a
    /// component is a symlink or no directory, `EXDEV` if one is a mount point. Not for reading.
    fn open_dir(&self, at: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd>;
    /// Opens what is at `name` for reading, without waiting for a fifo's writer.
    fn open_file(&self, at: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd>;
    /// Makes a new file of mode 0600, open for reading and writing.
    fn create(&self, at: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd>;
    /// Opens a log of ours for appending.
    fn append(&self, at: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd>;
    fn read(&self, file: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize>;
    /// Reads from `offset`, wherever the file's own position is.
    fn read_at(&self, file: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> Result<usize>;
    fn write_all(&self, file: BorrowedFd<'_>, bytes: &[u8]) -> Result<()>;
    fn stat(&self, file: BorrowedFd<'_>) -> Result<Stat>;
    /// Never follows a symlink.
    fn stat_at(&self, at: BorrowedFd<'_>, name: &[u8]) -> Result<Stat>;
    fn symlink(&self, target: &[u8], at: BorrowedFd<'_>, name: &[u8]) -> Result<()>;
    fn read_link(&self, at: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>>;
    /// Moves a name over whatever file is at the other.
    fn rename(&self, from: BorrowedFd<'_>, name: &[u8], to: BorrowedFd<'_>, new: &[u8]) -> Result<()>;
    /// Moves a name to one that is free; `EEXIST` if it is not.
    fn rename_new(&self, from: BorrowedFd<'_>, name: &[u8], to: BorrowedFd<'_>, new: &[u8]) -> Result<()>;
    /// Exchanges two names that both exist.
    fn exchange(&self, a: BorrowedFd<'_>, name: &[u8], b: BorrowedFd<'_>, other: &[u8]) -> Result<()>;
    fn unlink(&self, at: BorrowedFd<'_>, name: &[u8]) -> Result<()>;
    fn mkdir(&self, at: BorrowedFd<'_>, name: &[u8], permissions: u32) -> Result<()>;
    fn rmdir(&self, at: BorrowedFd<'_>, name: &[u8]) -> Result<()>;
    /// The names in a directory, `.` and `..` left out, in no order.
    fn list(&self, dir: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>>;
    fn chmod(&self, file: BorrowedFd<'_>, permissions: u32) -> Result<()>;
    /// Sets both times of an open file to now.
    fn touch(&self, file: BorrowedFd<'_>) -> Result<()>;
    fn sync(&self, file: BorrowedFd<'_>) -> Result<()>;
    fn sync_dir(&self, dir: BorrowedFd<'_>) -> Result<()>;
    /// Writes out everything the file system of `dir` holds back.
    fn sync_fs(&self, dir: BorrowedFd<'_>) -> Result<()>;
    fn space(&self, dir: BorrowedFd<'_>) -> Result<Space>;
    /// Names the run of the kernel; empty where the system has no such name.
    fn boot_id(&self) -> String;
    /// Which names this file system takes for one another, tried out in `dir`.
    fn folding(&self, dir: BorrowedFd<'_>) -> Result<Folding>;
}
