//! Contents out of the clone's own objects: the blob of a content's id is that content.
//!
//! Only what lies in the clone itself is read: one that borrows objects from elsewhere has nothing to give here. What
//! cannot be read, or is not what it should be, is not there; whoever takes the bytes hashes them again.

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use gitsync_core::model::ContentId;
use gix::ObjectId;

use super::objects::Objects;
use crate::workspace::CloneDir;

/// The blobs of a workspace's clone, as they are when this is made. Cheap to make, not to be kept: packs come and go.
pub struct Blobs {
    objects: Objects,
    hash: gix::hash::Kind,
    buffer: Vec<u8>,
    /// What `objects` reads in is open as long as this is.
    _dir: OwnedFd,
}

impl Blobs {
    /// `None` if the clone's objects cannot be read, are not all its own, or are none at all, as in a clone that was just
    /// made: a look for each of many thousand contents would be for nothing.
    pub fn open(clone: &CloneDir) -> Option<Self> {
        let (fs, hash) = (clone.fs(), clone.hash());
        let dir = fs.open_dir(clone.fd(), b"objects").ok()?;
        let info = fs.open_dir(dir.as_fd(), b"info");
        let borrows = info.is_ok_and(|info| fs.stat_at(info.as_fd(), b"alternates").is_ok());
        let packs = fs.open_dir(dir.as_fd(), b"pack").and_then(|packs| fs.list(packs.as_fd())).ok()?;
        let is_empty = || {
            let loose = |name: &Vec<u8>| !matches!(name.as_slice(), b"info" | b"pack");
            packs.is_empty() && fs.list(dir.as_fd()).is_ok_and(|names| !names.iter().any(loose))
        };
        if borrows || is_empty() {
            return None;
        }
        let objects = Objects::open_for_blobs(clone.path_of(&dir, "objects"), hash).ok()?;
        Some(Self { objects, hash, buffer: Vec::new(), _dir: dir })
    }

    /// The bytes of a content of this size, at most 1 MiB. `None` if the clone does not have it; then it takes no more
    /// than a look into each pack's index.
    pub fn find(&mut self, id: &ContentId, size: u64) -> Option<&[u8]> {
        if id.hash_kind() != self.hash || size > gitsync_core::wire::OFFERED_BYTES {
            return None;
        }
        let id = ObjectId::try_from(id.as_bytes()).ok()?;
        let Self { objects, buffer, .. } = self;
        // A damaged store must not end more than this look.
        let look = move || {
            let buffer = buffer;
            objects.blob(&id, size, buffer).ok().flatten()
        };
        catch_unwind(AssertUnwindSafe(look)).ok().flatten()
    }
}

impl std::fmt::Debug for Blobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blobs").field("objects", &self.objects).finish_non_exhaustive()
    }
}
