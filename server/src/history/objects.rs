//! Objects read, within bounds: what a client sent may be made to hurt.

use std::path::PathBuf;

use gix::ObjectId;
use gix::objs::{CommitRefIter, Find as _, FindHeader as _, Kind};

use super::StepError;

const COMMIT_BYTES: u64 = 16 << 20;
const TREE_BYTES: u64 = 256 << 20;
/// No object read here takes more memory, its deltas included,
const ALLOCATION_BYTES: usize = 512 << 20;
/// nor a blob: those are read while a patch may wait.
const BLOB_ALLOCATION_BYTES: usize = 16 << 20;

/// An object store, with a quarantine's in front of it or alone.
pub struct Objects {
    odb: gix::odb::Handle,
    hash: gix::hash::Kind,
}

impl Objects {
    /// `dir` is an object directory; those its `info/alternates` names are looked into as well.
    pub fn open(dir: PathBuf, hash: gix::hash::Kind) -> Result<Self, StepError> {
        Self::open_within(dir, hash, ALLOCATION_BYTES)
    }

    /// The same, to look for many blobs of which some may not be there. What is added later is not seen.
    pub fn open_for_blobs(dir: PathBuf, hash: gix::hash::Kind) -> Result<Self, StepError> {
        let mut objects = Self::open_within(dir, hash, BLOB_ALLOCATION_BYTES)?;
        // Else each one that is not there would have the directory of packs read again.
        objects.odb.refresh_never();
        Ok(objects)
    }

    fn open_within(dir: PathBuf, hash: gix::hash::Kind, most_bytes: usize) -> Result<Self, StepError> {
        let options = gix::odb::store::init::Options {
            alloc_limit_bytes: Some(most_bytes),
            ..gix::odb::store::init::Options::default()
        };
        let odb = gix::odb::at_opts(dir, hash, None, options)
            .map_err(|e| StepError::io("open the object store", e))?;
        Ok(Self { odb, hash })
    }

    pub fn hash(&self) -> gix::hash::Kind {
        self.hash
    }

    /// `None` if there is no such object.
    pub fn kind(&self, id: &ObjectId) -> Result<Option<Kind>, StepError> {
        Ok(self.odb.try_header(id).map_err(|e| unreadable(id, &e.to_string()))?.map(|header| header.kind))
    }

    fn read<'b>(
        &self,
        id: &ObjectId,
        kind: Kind,
        most: u64,
        buffer: &'b mut Vec<u8>,
    ) -> Result<&'b [u8], StepError> {
        let header = self.odb.try_header(id).map_err(|e| unreadable(id, &e.to_string()))?;
        let header = header.ok_or_else(|| StepError::Missing(format!("object {id} is not here")))?;
        if header.kind != kind {
            return Err(StepError::Invalid(format!("{id} is a {}, not a {kind}", header.kind)));
        }
        if header.size > most {
            return Err(StepError::TooLarge(format!("{kind} {id} has {} bytes", header.size)));
        }
        let found = self.odb.try_find(id, buffer).map_err(|e| unreadable(id, &e.to_string()))?;
        Ok(found.ok_or_else(|| StepError::Missing(format!("object {id} is not here")))?.data)
    }

    /// The entries of a tree as git stores them.
    pub fn tree<'b>(&self, id: &ObjectId, buffer: &'b mut Vec<u8>) -> Result<&'b [u8], StepError> {
        if *id == ObjectId::empty_tree(self.hash) {
            return Ok(&[]);
        }
        self.read(id, Kind::Tree, TREE_BYTES, buffer)
    }

    /// A blob's bytes, if it has exactly `size` of them.
    pub fn blob<'b>(
        &self,
        id: &ObjectId,
        size: u64,
        buffer: &'b mut Vec<u8>,
    ) -> Result<Option<&'b [u8]>, StepError> {
        let header = self.odb.try_header(id).map_err(|e| unreadable(id, &e.to_string()))?;
        if header.is_none_or(|header| header.kind != Kind::Blob || header.size != size) {
            return Ok(None);
        }
        let found = self.odb.try_find(id, buffer).map_err(|e| unreadable(id, &e.to_string()))?;
        Ok(found.map(|object| object.data).filter(|data| data.len() as u64 == size))
    }

    /// Tree and parents of a commit.
    pub fn commit(&self, id: &ObjectId) -> Result<(ObjectId, Vec<ObjectId>), StepError> {
        let mut buffer = Vec::new();
        let data = self.read(id, Kind::Commit, COMMIT_BYTES, &mut buffer)?;
        let tree = CommitRefIter::from_bytes(data, self.hash)
            .tree_id()
            .map_err(|e| unreadable(id, &e.to_string()))?;
        let parents = CommitRefIter::from_bytes(data, self.hash).parent_ids().collect();
        Ok((tree, parents))
    }
}

fn unreadable(id: &ObjectId, why: &str) -> StepError {
    StepError::Damaged(format!("object {id} cannot be read: {why}"))
}

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Objects").field("hash", &self.hash).finish_non_exhaustive()
    }
}
