//! Patches: how one snapshot becomes another.
//!
//! The original protocol has two: a whole patch (`ApplyPatch`) turns a base tree into a snapshot, and
//! a patch diff (`ApplyPatchDiff`) turns one snapshot, the parent, into the next. Both are a list of
//! [`Change`]s between two ids; contents travel beside them, named by [`ContentId`].

use std::collections::HashSet;

use super::id::ContentId;
use super::path::RelPath;
use super::snapshot::Snapshot;
use super::tree::{self, Leaf, LeafChange, Mode, Signature};

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

/// A content a patch diff needs that the parent does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    /// The first path that is to have it.
    pub path: RelPath,
    pub id: ContentId,
    /// In bytes.
    pub size: u64,
    /// The file's, when it was read.
    pub signature: Signature,
    /// What the parent has at `path`, where that is a file too.
    pub base: Option<(ContentId, u64)>,
}

/// The step from `parent` to `next`, and the contents it needs, each once, in order of path. A content that the step
/// takes away elsewhere is at hand: a file that is only moved is not among them.
pub fn step_between(parent: &Snapshot, next: &Snapshot) -> (Vec<Change>, Vec<Needed>) {
    let steps = tree::diff(parent.root(), next.root());
    let at_hand = steps.iter().filter_map(|s| Some(s.before.as_ref()?.id)).collect();
    with_needed(steps, at_hand, next)
}

/// The same, with every content that a path did not have before.
pub fn whole_step_between(parent: &Snapshot, next: &Snapshot) -> (Vec<Change>, Vec<Needed>) {
    with_needed(tree::diff(parent.root(), next.root()), HashSet::new(), next)
}

fn with_needed(
    steps: Vec<LeafChange>,
    mut at_hand: HashSet<ContentId>,
    next: &Snapshot,
) -> (Vec<Change>, Vec<Needed>) {
    let mut needed = Vec::new();
    for LeafChange { path, before, after } in &steps {
        if let Some(leaf) = after
            && before.is_none_or(|b| b.id != leaf.id)
            && at_hand.insert(leaf.id)
        {
            let base = before.filter(|b| b.mode != Mode::Symlink && leaf.mode != Mode::Symlink);
            needed.push(Needed {
                path: path.clone(),
                id: leaf.id,
                size: leaf.signature.size,
                signature: leaf.signature,
                base: base.map(|b| (b.id, b.signature.size)),
            });
        }
    }
    (steps.into_iter().map(|change| step(change, next)).collect(), needed)
}

/// Every path of a snapshot as a put: the whole patch over an empty base.
pub fn whole(snapshot: &Snapshot) -> Vec<Change> {
    let mut out = Vec::with_capacity(snapshot.root().leaves() as usize);
    snapshot.root().for_each_leaf(&mut |path, leaf| out.push(Change::put(path, leaf)));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Dir, HashKind};

    fn snapshot(files: &[(&str, &str)]) -> Snapshot {
        let leaf = |text: &str| {
            let signature = Signature { size: text.len() as u64, ..Signature::default() };
            Leaf { mode: Mode::File, id: ContentId::of(HashKind::Sha1, text.as_bytes()), signature }
        };
        let edits: Vec<_> =
            files.iter().map(|(path, text)| (RelPath::new(path).unwrap(), Some(leaf(text)))).collect();
        Snapshot::of(Dir::empty(HashKind::Sha1).edit(&edits).unwrap())
    }

    #[test]
    fn moved_contents_are_at_hand_and_each_other_is_needed_once() {
        let parent = snapshot(&[("a", "old"), ("b", "moved"), ("same", "s")]);
        let next = snapshot(&[("a", "new"), ("c", "moved"), ("d", "twice"), ("e", "twice"), ("same", "s")]);
        let (changes, needed) = step_between(&parent, &next);
        assert_eq!(changes, between(&parent, &next));
        let base = Some((ContentId::of(HashKind::Sha1, b"old"), 3));
        let shown: Vec<_> = needed.iter().map(|n| (n.path.to_string(), n.size, n.base)).collect();
        assert_eq!(shown, [("a".to_owned(), 3, base), ("d".to_owned(), 5, None)]);
    }
}
