//! Patches: how one snapshot becomes another.
//!
//! The original protocol has two: a whole patch (`ApplyPatch`) turns a base tree into a snapshot, and
//! a patch diff (`ApplyPatchDiff`) turns one snapshot, the parent, into the next. Both are a list of
//! [`Change`]s between two ids; contents travel beside them, named by [`ContentId`].

use super::id::ContentId;
use super::path::RelPath;
use super::snapshot::Snapshot;
use super::tree::{self, Leaf, LeafChange, Mode};

/// Most changes one patch may hold.
pub const MAX_CHANGES: usize = 4_000_000;

/// What happens to one path. Within a patch, changes are sorted by path and name each path once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub path: RelPath,
    pub kind: ChangeKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// The path holds this content with this mode from now on.
    Put { mode: Mode, id: ContentId, size: u64 },
    /// The path is gone.
    Delete,
    /// The path left the mirrored set but still exists on the client (it became ignored, say): the
    /// server's file stays as it is and is foreign from now on.
    Release,
}

impl Change {
    pub fn put(path: RelPath, leaf: &Leaf) -> Self {
        let kind = ChangeKind::Put { mode: leaf.mode, id: leaf.id, size: leaf.signature.size };
        Self { path, kind }
    }
}

/// The step from `parent` to `next`: the patch diff's changes, and the differences they came from.
pub fn between(parent: &Snapshot, next: &Snapshot) -> Vec<Change> {
    tree::diff(parent.root(), next.root()).into_iter().map(|change| step(change, next)).collect()
}

fn step(change: LeafChange, next: &Snapshot) -> Change {
    match change.after {
        Some(leaf) => Change::put(change.path, &leaf),
        None => Change { kind: next.removal_of(&change.path), path: change.path },
    }
}

/// Every path of a snapshot as a put: the whole patch over an empty base.
pub fn whole(snapshot: &Snapshot) -> Vec<Change> {
    let mut out = Vec::with_capacity(snapshot.root().leaves() as usize);
    snapshot.root().for_each_leaf(&mut |path, leaf| out.push(Change::put(path, leaf)));
    out
}
