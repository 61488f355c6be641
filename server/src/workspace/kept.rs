//! Reading a workspace's recovery store, for whoever the workspace belongs to.
//!
//! Makes nothing, takes nothing, waits for nobody: a session may be running meanwhile. A name that came from
//! outside is only ever compared with what is there.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use gitsync_core::model::{Mode, RelPath};
use rustix::io::{Errno, Result};

use super::dir::{Found, check_name, find_state};
use super::fs::{Kind, WorkspaceFs};
use super::os::OsFs;
use super::recovery::{self, EntryName};
use crate::epoch;

/// A store that may be read.
#[derive(Debug)]
pub struct KeptFiles {
    fs: Arc<dyn WorkspaceFs>,
    state: OwnedFd,
}

/// One file or symlink in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptEntry {
    /// Names it until it is removed.
    pub id: String,
    /// Where it was met.
    pub path: RelPath,
    pub mode: Mode,
    pub size: u64,
    /// Seconds since the Unix epoch.
    pub kept_at: u64,
}

/// The bytes of one, piece by piece.
#[derive(Debug)]
pub enum KeptReader {
    File { fs: Arc<dyn WorkspaceFs>, file: OwnedFd },
    Link { target: Vec<u8> },
}

impl KeptFiles {
    /// The store of `root/workspace`, `None` unless that is a workspace whose owner, or if it has none whose
    /// last one, is `owner_id`. There is one answer for every other case, so that nobody learns which
    /// workspaces there are.
    pub fn open(root: &Path, workspace: &str, owner_id: &str) -> Option<Self> {
        let fs: Arc<dyn WorkspaceFs> = Arc::new(OsFs::default());
        check_name(workspace).ok()?;
        let base = std::fs::File::open(root).ok()?;
        let dir = fs.open_dir(base.as_fd(), workspace.as_bytes()).ok()?;
        let Ok(Found::State(state)) = find_state(&*fs, &dir) else { return None };
        epoch::belongs_to(&state, owner_id).ok().filter(|belongs| *belongs)?;
        Some(Self { fs, state })
    }

    /// Everything that is kept, newest first. Fifos and the like are left out: they have no bytes.
    pub fn list(&self) -> Result<Vec<KeptEntry>> {
        let mut entries = Vec::new();
        for name in recovery::names(&*self.fs, &self.state)?.into_iter().rev() {
            let Some(found) = recovery::locate(&*self.fs, &self.state, name)? else { continue };
            let Some(mode) = found.stat.mode() else { continue };
            let size = found.stat.signature.size;
            entries.push(KeptEntry { id: name.text(), path: found.path, mode, size, kept_at: name.secs });
        }
        Ok(entries)
    }

    /// `None` if `id` names nothing that is kept.
    pub fn read(&self, id: &str) -> Result<Option<KeptReader>> {
        let Some(name) = EntryName::parse(id.as_bytes()) else { return Ok(None) };
        let Some(found) = recovery::locate(&*self.fs, &self.state, name)? else { return Ok(None) };
        let (at, name) = (found.at.as_fd(), found.path.name());
        match found.stat.kind {
            Kind::Symlink => Ok(Some(KeptReader::Link { target: self.fs.read_link(at, name)? })),
            Kind::File => {
                let (fs, file) = (self.fs.clone(), self.fs.open_file(at, name)?);
                Ok(Some(KeptReader::File { fs, file }))
            }
            Kind::Dir | Kind::Other => Ok(None),
        }
    }
}

impl KeptReader {
    /// The next piece of at most `len_max` bytes; empty at the end.
    pub fn next(&mut self, len_max: usize) -> Result<Vec<u8>> {
        match self {
            Self::Link { target } => match target.len() <= len_max {
                true => Ok(std::mem::take(target)),
                // No system has such links.
                false => Err(Errno::NAMETOOLONG),
            },
            Self::File { fs, file } => {
                let mut piece = vec![0; len_max];
                let mut filled = 0;
                while filled < len_max {
                    match fs.read(file.as_fd(), &mut piece[filled..])? {
                        0 => break,
                        len => filled += len,
                    }
                }
                piece.truncate(filled);
                Ok(piece)
            }
        }
    }
}
