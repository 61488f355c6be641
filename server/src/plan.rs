//! Which operations turn the managed files into the next snapshot, and in which order.
//!
//! A pure function of the held tree and a patch's changes. It names only paths whose mode or content
//! differs, so what does not change is never touched. Order: first the removals that clear the way
//! for a put (a file where a directory goes, or the reverse), then puts, then all other removals, so
//! that a build beside us sees new files before old ones go.

use std::collections::BTreeSet;
use std::sync::Arc;

use gitsync_core::model::{
    Change, ChangeKind, ContentId, Dir, Leaf, Mode, PatchId, RelPath, Signature, TreeConflict,
};

/// One path's step. `old` is what the manifest says we wrote there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Take our file away.
    Remove { path: RelPath, old: Leaf },
    /// Leave our file where it is; it is foreign from now on.
    Release { path: RelPath, old: Leaf },
    /// Same bytes, other execute bit.
    Chmod { path: RelPath, old: Leaf, mode: Mode },
    /// New bytes, or another kind of thing.
    Put { path: RelPath, old: Option<Leaf>, mode: Mode, id: ContentId, size: u64 },
}

impl Op {
    pub fn path(&self) -> &RelPath {
        match self {
            Op::Remove { path, .. }
            | Op::Release { path, .. }
            | Op::Chmod { path, .. }
            | Op::Put { path, .. } => path,
        }
    }
}

/// What to do, and the tree it leads to (its new leaves have no signatures yet).
#[derive(Debug)]
pub struct Plan {
    pub ops: Vec<Op>,
    pub next: Arc<Dir>,
}

impl Plan {
    pub fn id(&self) -> PatchId {
        self.next.id()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("changes are not sorted by path, or name {path} twice")]
    Unsorted { path: RelPath },
    #[error(transparent)]
    Conflict(#[from] TreeConflict),
}

/// Plans `changes`, which must be sorted by path and name each path once. Removing or releasing a
/// path that is not held is no step at all.
pub fn plan(held: &Arc<Dir>, changes: &[Change]) -> Result<Plan, PlanError> {
    if let Some(pair) = changes.windows(2).find(|pair| pair[0].path >= pair[1].path) {
        return Err(PlanError::Unsorted { path: pair[1].path.clone() });
    }
    let ops: Vec<Op> = changes.iter().filter_map(|change| step(held, change)).collect();
    let edits: Vec<(RelPath, Option<Leaf>)> = ops.iter().map(|op| (op.path().clone(), after(op))).collect();
    let next = held.edit(&edits)?;
    Ok(Plan { ops: order(ops), next })
}

fn step(held: &Arc<Dir>, change: &Change) -> Option<Op> {
    let path = change.path.clone();
    let old = held.get(&path).copied();
    match (change.kind, old) {
        (ChangeKind::Put { mode, id, .. }, Some(old)) if (old.mode, old.id) == (mode, id) => None,
        (ChangeKind::Put { mode, id, .. }, Some(old))
            if old.id == id && mode != Mode::Symlink && old.mode != Mode::Symlink =>
        {
            Some(Op::Chmod { path, old, mode })
        }
        (ChangeKind::Put { mode, id, size }, old) => Some(Op::Put { path, old, mode, id, size }),
        (ChangeKind::Delete, Some(old)) => Some(Op::Remove { path, old }),
        (ChangeKind::Release, Some(old)) => Some(Op::Release { path, old }),
        (ChangeKind::Delete | ChangeKind::Release, None) => None,
    }
}

fn after(op: &Op) -> Option<Leaf> {
    match op {
        Op::Remove { .. } | Op::Release { .. } => None,
        Op::Chmod { old, mode, .. } => Some(Leaf { mode: *mode, ..*old }),
        Op::Put { mode, id, size, .. } => {
            Some(Leaf { mode: *mode, id: *id, signature: Signature { size: *size, ..Signature::default() } })
        }
    }
}

/// Stable within each of the three groups, so paths stay sorted there and parents come before children.
fn order(ops: Vec<Op>) -> Vec<Op> {
    if ops.iter().all(|op| !matches!(op, Op::Remove { .. })) {
        return ops;
    }
    let put: BTreeSet<RelPath> =
        ops.iter().filter(|op| matches!(op, Op::Put { .. })).map(|op| op.path().clone()).collect();
    let (mut clearing, mut puts, mut removals) = (Vec::new(), Vec::new(), Vec::new());
    for op in ops {
        match &op {
            Op::Remove { path, .. } if clears_the_way(path, &put) => clearing.push(op),
            Op::Remove { .. } => removals.push(op),
            _ => puts.push(op),
        }
    }
    clearing.extend(puts);
    clearing.extend(removals);
    clearing
}

/// True if a put goes below `path`, or to a directory above it.
fn clears_the_way(path: &RelPath, put: &BTreeSet<RelPath>) -> bool {
    let first_after = put.range::<RelPath, _>(path..).find(|p| *p != path);
    first_after.is_some_and(|p| p.is_below(path)) || path.ancestors().any(|a| put.contains(&a))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gitsync_core::model::HashKind;

    fn path(p: &str) -> RelPath {
        RelPath::new(p).unwrap()
    }

    fn leaf(text: &str) -> Leaf {
        let (mode, text) = match text.split_at(1) {
            ("+", rest) => (Mode::Executable, rest),
            ("@", rest) => (Mode::Symlink, rest),
            _ => (Mode::File, text),
        };
        Leaf { mode, id: ContentId::of(HashKind::Sha1, text.as_bytes()), signature: Signature::default() }
    }

    /// `a=1 d/b=+2`: path, mode mark (`+` executable, `@` symlink), content.
    fn tree(files: &str) -> Arc<Dir> {
        let mut edits: Vec<_> = files
            .split_whitespace()
            .map(|f| f.split_once('=').unwrap())
            .map(|(p, t)| (path(p), Some(leaf(t))))
            .collect();
        edits.sort_by(|a, b| a.0.cmp(&b.0));
        Dir::empty(HashKind::Sha1).edit(&edits).unwrap()
    }

    /// `a=1` puts, `-a` deletes, `~a` releases.
    fn changes(text: &str) -> Vec<Change> {
        let mut changes: Vec<Change> = text
            .split_whitespace()
            .map(|c| match (c.split_once('='), c.split_at(1)) {
                (Some((p, t)), _) => Change::put(path(p), &leaf(t)),
                (None, ("-", p)) => Change { path: path(p), kind: ChangeKind::Delete },
                (None, (_, p)) => Change { path: path(p), kind: ChangeKind::Release },
            })
            .collect();
        changes.sort_by(|a, b| a.path.cmp(&b.path));
        changes
    }

    fn shown(ops: &[Op]) -> String {
        let one = |op: &Op| match op {
            Op::Remove { path, .. } => format!("-{path}"),
            Op::Release { path, .. } => format!("~{path}"),
            Op::Chmod { path, .. } => format!("%{path}"),
            Op::Put { path, old: Some(_), .. } => format!("={path}"),
            Op::Put { path, old: None, .. } => format!("+{path}"),
        };
        ops.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn operations_and_their_order() {
        let table = [
            ("nothing", "a=1", "", "", "a=1"),
            ("equal put is skipped", "a=1", "a=1", "", "a=1"),
            ("create", "", "a=1", "+a", "a=1"),
            ("replace", "a=1", "a=2", "=a", "a=2"),
            ("chmod", "a=1", "a=+1", "%a", "a=+1"),
            ("chmod and edit", "a=1", "a=+2", "=a", "a=+2"),
            ("delete", "a=1 b=1", "-a", "-a", "b=1"),
            ("delete of what is not held", "b=1", "-a ~c -b/c", "", "b=1"),
            ("release", "a=1 b=1", "~a", "~a", "b=1"),
            ("deletes last", "a=1", "-a b=1", "+b -a", "b=1"),
            ("file to directory", "a=1", "-a a/b=2", "-a +a/b", "a/b=2"),
            ("directory to file", "a/b=1 a/c/d=1", "a=2 -a/b -a/c/d", "-a/b -a/c/d +a", "a=2"),
            ("file to symlink", "a=1", "a=@1", "=a", "a=@1"),
            ("symlink to directory", "a=@x", "-a a/b/c=2", "-a +a/b/c", "a/b/c=2"),
            ("neighbour names do not clear", "a=1 a-b=1", "-a a-b=2 a.c=3", "=a-b +a.c -a", "a-b=2 a.c=3"),
            (
                "clearing, puts, others",
                "d/x=1 o=1 z=1",
                "d=2 -d/x -o z=2 n=1",
                "-d/x +d +n =z -o",
                "d=2 n=1 z=2",
            ),
            ("releases move with the puts", "d/x=1 e=1", "~d/x d/y=1 -e", "~d/x +d/y -e", "d/y=1"),
        ];
        for (name, held, change, expected, next) in table {
            let plan = plan(&tree(held), &changes(change)).unwrap();
            assert_eq!(shown(&plan.ops), expected, "{name}");
            assert_eq!(plan.id(), tree(next).id(), "{name}");
        }
    }

    #[test]
    fn refuses_what_is_no_tree_or_no_order() {
        let conflict = plan(&tree("a=1"), &changes("a/b=1")).unwrap_err();
        assert_eq!(conflict, PlanError::Conflict(TreeConflict { path: path("a/b") }));
        let mut twice = changes("a=1 b=2");
        twice.swap(0, 1);
        assert_eq!(plan(&tree(""), &twice).unwrap_err(), PlanError::Unsorted { path: path("a") });
        let mut same = changes("a=1");
        same.extend(changes("a=2"));
        assert!(plan(&tree(""), &same).is_err());
    }
}
