//! The whole state of a working tree at one moment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::event::WithheldReason;
use super::id::{HashKind, PatchId};
use super::patch::ChangeKind;
use super::path::RelPath;
use super::tree::{Dir, Leaf, TreeConflict};

/// Paths, modes and content ids of a working tree, named by a patch id. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Snapshot {
    root: Arc<Dir>,
    /// Paths that left the set without being deleted on the client.
    released: Arc<BTreeSet<RelPath>>,
    /// Paths that belong to the set but are left out, or kept as they last were.
    withheld: Arc<BTreeMap<RelPath, WithheldReason>>,
}

impl Snapshot {
    pub fn empty(kind: HashKind) -> Self {
        Self::of(Dir::empty(kind))
    }

    pub fn of(root: Arc<Dir>) -> Self {
        Self { root, released: Arc::default(), withheld: Arc::default() }
    }

    pub fn new(
        root: Arc<Dir>,
        released: Arc<BTreeSet<RelPath>>,
        withheld: Arc<BTreeMap<RelPath, WithheldReason>>,
    ) -> Self {
        Self { root, released, withheld }
    }

    pub fn id(&self) -> PatchId {
        self.root.id()
    }

    pub fn root(&self) -> &Arc<Dir> {
        &self.root
    }

    pub fn withheld(&self) -> &Arc<BTreeMap<RelPath, WithheldReason>> {
        &self.withheld
    }

    pub fn released(&self) -> &Arc<BTreeSet<RelPath>> {
        &self.released
    }

    /// How a path that is in an older snapshot but not in this one leaves the server.
    pub fn removal_of(&self, path: &RelPath) -> ChangeKind {
        if self.released.contains(path) { ChangeKind::Release } else { ChangeKind::Delete }
    }

    /// The next snapshot. `edits` as for [`Dir::edit`].
    pub fn edit(
        &self,
        edits: &[(RelPath, Option<Leaf>)],
        released: Arc<BTreeSet<RelPath>>,
        withheld: Arc<BTreeMap<RelPath, WithheldReason>>,
    ) -> Result<Self, TreeConflict> {
        Ok(Self { root: self.root.edit(edits)?, released, withheld })
    }

    /// This snapshot with `paths` as `parent` has them.
    pub fn with_paths_of(&self, parent: &Snapshot, paths: &[RelPath]) -> Result<Self, TreeConflict> {
        self.with(paths.iter().map(|p| (p.clone(), parent.root.get(p).copied())).collect())
    }

    /// This snapshot with these files at these paths; `None` for no file. Of a path that is there twice the first
    /// counts.
    pub fn with(&self, mut edits: Vec<(RelPath, Option<Leaf>)>) -> Result<Self, TreeConflict> {
        edits.sort_by(|a, b| a.0.cmp(&b.0));
        edits.dedup_by(|a, b| a.0 == b.0);
        Ok(Self { root: self.root.edit(&edits)?, ..self.clone() })
    }
}
