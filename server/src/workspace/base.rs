//! Managed files as the source of new contents.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use gitsync_core::model::{ContentId, Mode, RelPath};
use rustix::io::Errno;

use super::fs::{Kind, WorkspaceFs};
use super::{StageError, StagedWriter, Workspace};

/// Bytes copied at a time: few enough to stay in the processor's cache until they are hashed.
const COPY_BYTES: usize = 256 << 10;

/// A managed file, open for reading, that looked like what was written there. Whether it is, only the id of
/// what is made from it can tell.
#[derive(Debug)]
pub struct BaseFile {
    fs: Arc<dyn WorkspaceFs>,
    file: OwnedFd,
    path: RelPath,
    id: ContentId,
    size: u64,
}

impl Workspace {
    /// The managed file at `path` if it is to hold the content `id` and nobody seems to have touched it.
    pub fn base(&self, path: &RelPath, id: &ContentId) -> Option<BaseFile> {
        let leaf = self.held.root().get(path)?;
        if leaf.id != *id || leaf.mode == Mode::Symlink {
            return None;
        }
        let fs = self.dir.fs.clone();
        let at = self.parent(path).ok()?;
        let file = fs.open_file(at.as_fd(), path.name()).ok()?;
        let stat = fs.stat(file.as_fd()).ok()?;
        let untouched = stat.kind == Kind::File && stat.signature == leaf.signature;
        untouched.then(|| BaseFile { fs, file, path: path.clone(), id: *id, size: stat.signature.size })
    }
}

impl BaseFile {
    pub fn path(&self) -> &RelPath {
        &self.path
    }

    /// In bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn is(&self, path: &RelPath, id: &ContentId) -> bool {
        self.path == *path && self.id == *id
    }

    /// So many bytes from `offset`; an error if the file ends before.
    pub fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; length];
        self.read_exact(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn read_exact(&self, mut bytes: &mut [u8], mut offset: u64) -> Result<(), Errno> {
        while !bytes.is_empty() {
            match self.fs.read_at(self.file.as_fd(), bytes, offset)? {
                0 => return Err(Errno::IO),
                read => {
                    bytes = &mut bytes[read..];
                    offset += read as u64;
                }
            }
        }
        Ok(())
    }
}

impl StagedWriter {
    /// Goes on with `length` bytes of a managed file.
    pub fn copy(&mut self, base: &BaseFile, mut offset: u64, length: u64) -> Result<(), StageError> {
        if length > self.remaining() {
            return Err(self.too_long());
        }
        let end = offset + length;
        let mut buffer = vec![0; COPY_BYTES.min(length as usize)];
        while offset < end {
            let piece = &mut buffer[..COPY_BYTES.min((end - offset) as usize)];
            base.read_exact(piece, offset).map_err(|errno| self.failed(errno))?;
            self.write(piece)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }
}
