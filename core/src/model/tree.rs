//! An immutable tree of directories that knows its git tree id.
//!
//! A [`Dir`] holds its entries sorted by name and the id git would give them. Editing replaces the
//! chain of directories above each edited path and shares all others, so a save costs the depth of
//! its path and not the size of the repository, and comparing two trees skips what they share.

mod entries;

use std::convert::Infallible;
use std::sync::{Arc, LazyLock};

use gix::ObjectId;

use self::entries::{Entries, Name, differences};
pub use self::entries::{Entry, SubDir};
use super::id::{self, ContentId, HashKind, PatchId};
use super::path::RelPath;

/// What kind of leaf a path is. Git knows no other modes for files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// `100644`
    File,
    /// `100755`, by the owner's execute bit
    Executable,
    /// `120000`; the content is the link's target
    Symlink,
}

impl Mode {
    fn octal(self) -> &'static [u8] {
        match self {
            Mode::File => b"100644",
            Mode::Executable => b"100755",
            Mode::Symlink => b"120000",
        }
    }
}

/// What `lstat` said of a file when its content was read or written. Equal signatures mean the
/// content need not be read again. Times are nanoseconds since the epoch, from the year 1678 to 2262; others wrap
/// around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Signature {
    pub size: u64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
    pub inode: u64,
}

impl Signature {
    /// The ctime of a signature taken so soon after a change that the next one might not show in it.
    pub const RACY: i64 = i64::MIN;

    /// A time as `stat` gives it; never [`Self::RACY`].
    pub fn nanoseconds(seconds: i64, rest: i64) -> i64 {
        seconds.wrapping_mul(1_000_000_000).wrapping_add(rest).max(Self::RACY + 1)
    }

    /// False if the file could have changed since without another signature.
    pub fn is_trusted(&self) -> bool {
        self.ctime_ns != Self::RACY
    }

    /// Equal but for ctime, which a rename of the file itself changes.
    pub fn same_but_renamed(&self, other: &Signature) -> bool {
        (self.size, self.mtime_ns, self.inode) == (other.size, other.mtime_ns, other.inode)
    }
}

/// One file or symlink. The signature is this side's own: it takes no part in comparisons of trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    pub mode: Mode,
    pub id: ContentId,
    pub signature: Signature,
}

impl Leaf {
    /// Same bytes and same mode.
    pub fn same_content(&self, other: &Leaf) -> bool {
        self.mode == other.mode && self.id == other.id
    }
}

/// One directory of a snapshot. Never empty, except as the root of an empty snapshot.
#[derive(Debug)]
pub struct Dir {
    entries: Entries,
    id: ObjectId,
    /// Leaves below this directory, at any depth.
    leaves: u64,
    kind: HashKind,
}

/// An edit would make one path both a leaf and a directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path} would be both a file and a directory")]
pub struct TreeConflict {
    pub path: RelPath,
}

/// What became of one path between two trees.
#[derive(Debug, Clone)]
pub struct LeafChange {
    pub path: RelPath,
    pub before: Option<Leaf>,
    pub after: Option<Leaf>,
}

impl Dir {
    /// A tree without files.
    pub fn empty(kind: HashKind) -> Arc<Dir> {
        Arc::new(Dir { entries: Entries::default(), id: ObjectId::empty_tree(kind), leaves: 0, kind })
    }

    /// The id git's `write-tree` gives these files.
    pub fn id(&self) -> PatchId {
        PatchId::new(self.id)
    }

    pub fn hash_kind(&self) -> HashKind {
        self.kind
    }

    /// Files and symlinks below, at any depth.
    pub fn leaves(&self) -> u64 {
        self.leaves
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The leaf at a path, `None` if there is none or a directory is there.
    pub fn get(&self, path: &RelPath) -> Option<&Leaf> {
        match self.entry(path)? {
            Entry::Leaf(leaf) => Some(leaf),
            Entry::Dir(_) => None,
        }
    }

    /// The directory at a path, if that is what is there.
    pub fn dir(&self, path: &RelPath) -> Option<&Arc<Dir>> {
        match self.entry(path)? {
            Entry::Dir(dir) => Some(dir),
            Entry::Leaf(_) => None,
        }
    }

    pub fn entry(&self, path: &RelPath) -> Option<&Entry> {
        let mut dir = self;
        let mut components = path.components();
        let mut name = components.next()?;
        for next in components {
            match dir.entries.get(name)? {
                Entry::Dir(child) => dir = child,
                Entry::Leaf(_) => return None,
            }
            name = next;
        }
        dir.entries.get(name)
    }

    /// What is directly in this directory, in order of name, bytewise.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], &Entry)> {
        self.entries.iter().map(|(name, entry)| (&**name, entry))
    }

    /// How many names are directly in this directory.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The names directly in this directory.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.entries.iter().map(|(name, _)| &**name)
    }

    /// Calls `visit` for every leaf, in path order.
    pub fn for_each_leaf(&self, visit: &mut dyn FnMut(RelPath, &Leaf)) {
        self.walk(None, visit);
    }

    /// Calls `visit` for every leaf below `at` (or for the leaf there), in path order.
    pub fn for_each_leaf_at(&self, at: &RelPath, visit: &mut dyn FnMut(RelPath, &Leaf)) {
        match self.entry(at) {
            Some(Entry::Leaf(leaf)) => visit(at.clone(), leaf),
            Some(Entry::Dir(dir)) => dir.walk(Some(at), visit),
            None => {}
        }
    }

    fn walk(&self, at: Option<&RelPath>, visit: &mut dyn FnMut(RelPath, &Leaf)) {
        for (name, entry) in self.entries.iter() {
            let path = child_path(at, name);
            match entry {
                Entry::Leaf(leaf) => visit(path, leaf),
                Entry::Dir(dir) => dir.walk(Some(&path), visit),
            }
        }
    }

    /// This tree with `edits` made: `Some` puts a leaf, `None` removes one (a path that is not there
    /// stays not there). Directories that end empty vanish. All removals count as made before all puts.
    ///
    /// Ids are computed anew only where a name, mode or content id changed. `edits` must be sorted by
    /// path without duplicates.
    pub fn edit(self: &Arc<Dir>, edits: &[(RelPath, Option<Leaf>)]) -> Result<Arc<Dir>, TreeConflict> {
        debug_assert!(edits.is_sorted_by(|a, b| a.0 < b.0), "edits are sorted and unique");
        if edits.is_empty() {
            return Ok(self.clone());
        }
        let edits: Vec<PathEdit<'_>> =
            edits.iter().map(|(path, leaf)| PathEdit { path, rest: path.as_bytes(), leaf: *leaf }).collect();
        let edited = edit_dir(self.kind, Some(self), &edits)?;
        Ok(edited.unwrap_or_else(|| Dir::empty(self.kind)))
    }

    /// This tree with `dir`, or nothing, in place of whatever is at `path`; a leaf above goes for a
    /// directory's sake.
    pub fn graft(self: &Arc<Dir>, path: &RelPath, dir: Option<Arc<Dir>>) -> Arc<Dir> {
        let grafted = graft_dir(self.kind, Some(self), path.as_bytes(), dir);
        grafted.unwrap_or_else(|| Dir::empty(self.kind))
    }

    fn new(kind: HashKind, entries: Entries) -> Dir {
        let id = id::tree_id(kind, &entries.body());
        Dir { id, leaves: entries.leaves(), entries, kind }
    }

    /// New entries whose names, modes and ids are those of `self`: the id carries over.
    fn with_entries(&self, entries: Entries) -> Dir {
        Dir { entries, id: self.id, leaves: self.leaves, kind: self.kind }
    }
}

/// Makes a directory of names that come in order.
#[derive(Debug)]
pub struct DirBuilder {
    kind: HashKind,
    /// `None` for a name that stands for nothing, or not yet.
    entries: Vec<(Name, Option<Entry>)>,
}

impl DirBuilder {
    pub fn new(kind: HashKind, capacity: usize) -> Self {
        Self { kind, entries: Vec::with_capacity(capacity) }
    }

    /// `name` comes after all names so far and is one component of a checked path. What it stands for can come later.
    /// Returns where.
    pub fn push(&mut self, name: &[u8], entry: Option<Entry>) -> usize {
        debug_assert!(
            self.entries.last().is_none_or(|(last, _)| **last < *name),
            "names are sorted and unique"
        );
        self.entries.push((Name::new(name), entry));
        self.entries.len() - 1
    }

    /// Says what the name pushed as number `at` stands for.
    pub fn set(&mut self, at: usize, entry: Option<Entry>) {
        self.entries[at].1 = entry;
    }

    /// The directory; `None` if nothing is in it. Where it comes out as `like`, it is that one, so that two trees share
    /// what is equal.
    pub fn finish(self, like: Option<&Arc<Dir>>) -> Option<Arc<Dir>> {
        let kind = self.kind;
        if let Some(like) = like
            && self.is(like)
        {
            return Some(like.clone());
        }
        let entries = self.into_entries();
        if entries.is_empty() {
            return None;
        }
        let same = |like: &&Arc<Dir>| {
            let pairs = || entries.iter().zip(like.entries.iter());
            entries.len() == like.entries.len()
                && pairs().all(|(a, b)| *a.0 == *b.0 && same_for_git(Some(&a.1), Some(&b.1)))
        };
        Some(Arc::new(match like.filter(same) {
            Some(like) => like.with_entries(entries),
            None => Dir::new(kind, entries),
        }))
    }

    /// The directory, whose id is known to be `id`.
    pub fn finish_as(self, id: PatchId) -> Arc<Dir> {
        let kind = self.kind;
        let entries = self.into_entries();
        Arc::new(Dir { id: id.object_id(), leaves: entries.leaves(), entries, kind })
    }

    /// Signatures and all.
    fn is(&self, dir: &Dir) -> bool {
        let mut entries = self.entries.iter().filter_map(|(name, entry)| Some((name, entry.as_ref()?)));
        let same = dir
            .entries
            .iter()
            .all(|(name, entry)| entries.next().is_some_and(|(n, e)| **n == **name && is_same(e, entry)));
        same && entries.next().is_none()
    }

    fn into_entries(self) -> Entries {
        self.entries.into_iter().filter_map(|(name, entry)| Some((name, entry?))).collect()
    }
}

/// Not only equal, but signatures and all.
fn is_same(a: &Entry, b: &Entry) -> bool {
    match (a, b) {
        (Entry::Leaf(a), Entry::Leaf(b)) => a == b,
        (Entry::Dir(a), Entry::Dir(b)) => Arc::ptr_eq(a, b),
        _ => false,
    }
}

/// Appends every path whose mode or content differs between `before` and `after`, in path order.
/// Costs what differs, not the size of the trees.
pub fn diff(before: &Arc<Dir>, after: &Arc<Dir>) -> Vec<LeafChange> {
    let mut out = Vec::new();
    diff_dirs(None, Some(before), Some(after), &mut out);
    // A leaf replaced by a directory is met before the directory's own leaves, so this is sorted.
    debug_assert!(out.is_sorted_by(|a, b| a.path < b.path));
    out
}

struct PathEdit<'a> {
    path: &'a RelPath,
    /// The components not yet descended into.
    rest: &'a [u8],
    leaf: Option<Leaf>,
}

impl PathEdit<'_> {
    fn split(&self) -> (&[u8], Option<&[u8]>) {
        match self.rest.iter().position(|b| *b == b'/') {
            Some(i) => (&self.rest[..i], Some(&self.rest[i + 1..])),
            None => (self.rest, None),
        }
    }
}

fn graft_dir(kind: HashKind, old: Option<&Arc<Dir>>, rest: &[u8], dir: Option<Arc<Dir>>) -> Option<Arc<Dir>> {
    let (name, below) = match rest.iter().position(|b| *b == b'/') {
        Some(slash) => (&rest[..slash], Some(&rest[slash + 1..])),
        None => (rest, None),
    };
    let before = old.and_then(|old| old.entries.get(name));
    let after = match (below, before) {
        (None, _) => dir.map(Entry::from),
        (Some(below), Some(Entry::Dir(inner))) => graft_dir(kind, Some(inner), below, dir).map(Entry::from),
        (Some(_), Some(Entry::Leaf(leaf))) if dir.is_none() => Some(Entry::Leaf(*leaf)),
        (Some(below), _) => graft_dir(kind, None, below, dir).map(Entry::from),
    };
    let unchanged = match (before, &after) {
        (Some(before), Some(after)) => is_same(before, after),
        (None, None) => true,
        _ => false,
    };
    if unchanged && let Some(old) = old {
        return Some(old.clone());
    }
    let same = old.filter(|_| same_for_git(before, after.as_ref()));
    let Ok(entries) =
        entries_of(old).edit([(name, after)].into_iter(), |after, _| Ok::<_, Infallible>(after));
    dir_of(kind, entries, same)
}

fn entries_of(dir: Option<&Arc<Dir>>) -> &Entries {
    static NONE: LazyLock<Entries> = LazyLock::new(Entries::default);
    dir.map_or(&*NONE, |dir| &dir.entries)
}

/// The directory of these entries, if there are any; `same` is one that git takes for it.
fn dir_of(kind: HashKind, entries: Entries, same: Option<&Arc<Dir>>) -> Option<Arc<Dir>> {
    if entries.is_empty() {
        return None;
    }
    Some(Arc::new(match same {
        Some(same) => same.with_entries(entries),
        None => Dir::new(kind, entries),
    }))
}

fn edit_dir(
    kind: HashKind,
    old: Option<&Arc<Dir>>,
    edits: &[PathEdit<'_>],
) -> Result<Option<Arc<Dir>>, TreeConflict> {
    let mut changed = false;
    let groups = edits.chunk_by(|a, b| a.split().0 == b.split().0).map(|group| (group[0].split().0, group));
    let entries = entries_of(old).edit(groups, |group, before| {
        let after = edit_child(kind, before, group)?;
        changed |= !same_for_git(before, after.as_ref());
        Ok(after)
    })?;
    Ok(dir_of(kind, entries, old.filter(|_| !changed)))
}

/// Applies the edits of one name: at most one to the name itself, first, then those below it.
fn edit_child(
    kind: HashKind,
    before: Option<&Entry>,
    group: &[PathEdit<'_>],
) -> Result<Option<Entry>, TreeConflict> {
    let (own, below) = match group[0].split().1 {
        None => (Some(&group[0]), &group[1..]),
        Some(_) => (None, group),
    };
    let (leaf_before, dir_before) = Entry::split(before);
    let leaf = own.map_or(leaf_before, |edit| edit.leaf);
    let dir = if below.is_empty() {
        dir_before.cloned()
    } else {
        let below: Vec<PathEdit<'_>> = below
            .iter()
            .map(|e| PathEdit { path: e.path, rest: e.split().1.unwrap_or_default(), leaf: e.leaf })
            .collect();
        edit_dir(kind, dir_before, &below)?
    };
    match (leaf, dir) {
        (Some(_), Some(_)) => Err(TreeConflict { path: group[0].path.clone() }),
        (Some(leaf), None) => Ok(Some(Entry::Leaf(leaf))),
        (None, Some(dir)) => Ok(Some(dir.into())),
        (None, None) => Ok(None),
    }
}

fn same_for_git(a: Option<&Entry>, b: Option<&Entry>) -> bool {
    match (a, b) {
        (Some(Entry::Leaf(a)), Some(Entry::Leaf(b))) => a.same_content(b),
        (Some(Entry::Dir(a)), Some(Entry::Dir(b))) => a.object_id() == b.object_id(),
        (None, None) => true,
        _ => false,
    }
}

fn diff_dirs(
    at: Option<&RelPath>,
    before: Option<&Arc<Dir>>,
    after: Option<&Arc<Dir>>,
    out: &mut Vec<LeafChange>,
) {
    if let (Some(a), Some(b)) = (before, after)
        && (Arc::ptr_eq(a, b) || a.id == b.id)
    {
        return;
    }
    differences(entries_of(before), entries_of(after), |name, old, new| {
        // A path is made only for what differs: a directory of many has few such.
        diff_entries(child_path(at, name), old, new, out);
    });
}

fn diff_entries(path: RelPath, old: Option<&Entry>, new: Option<&Entry>, out: &mut Vec<LeafChange>) {
    let ((leaf_before, dir_before), (leaf_after, dir_after)) = (Entry::split(old), Entry::split(new));
    let same = match (&leaf_before, &leaf_after) {
        (Some(a), Some(b)) => a.same_content(b),
        (None, None) => true,
        _ => false,
    };
    if !same {
        out.push(LeafChange { path: path.clone(), before: leaf_before, after: leaf_after });
    }
    diff_dirs(Some(&path), dir_before, dir_after, out);
}

fn child_path(at: Option<&RelPath>, name: &[u8]) -> RelPath {
    RelPath::join(at, name).expect("names in a tree came out of a checked path")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(p: &str) -> RelPath {
        RelPath::new(p).unwrap()
    }

    fn leaf(text: &str) -> Leaf {
        Leaf {
            mode: Mode::File,
            id: ContentId::of(HashKind::Sha1, text.as_bytes()),
            signature: Signature::default(),
        }
    }

    fn build(files: &[(&str, &str)]) -> Arc<Dir> {
        let mut edits: Vec<_> = files.iter().map(|(p, t)| (path(p), Some(leaf(t)))).collect();
        edits.sort_by(|a, b| a.0.cmp(&b.0));
        Dir::empty(HashKind::Sha1).edit(&edits).unwrap()
    }

    #[test]
    fn ids_are_what_git_write_tree_says() {
        // Made with `git update-index --index-info` and `git write-tree`; `a-b` and `a.c` sort around
        // the directory `a`, which git orders as `a/`.
        let tree = build(&[("a-b", "1\n"), ("a.c", "2\n"), ("a/x", "3\n"), ("a0", "4\n")]);
        assert_eq!(tree.id().to_string(), "26084e7802f7cb646d02868f8bf41292476d5bde");
    }

    #[test]
    fn an_edit_shares_what_it_does_not_touch() {
        let tree = build(&[("a/x", "1"), ("b/y", "2"), ("c", "3")]);
        let next = tree.edit(&[(path("a/x"), Some(leaf("9")))]).unwrap();
        assert!(Arc::ptr_eq(tree.dir(&path("b")).unwrap(), next.dir(&path("b")).unwrap()));
        assert_ne!(tree.id(), next.id());
        let back = next.edit(&[(path("a/x"), Some(leaf("1")))]).unwrap();
        assert_eq!(tree.id(), back.id());
        assert_eq!(back.leaves(), 3);
    }

    #[test]
    fn a_new_signature_alone_keeps_the_id() {
        let tree = build(&[("a/x", "1")]);
        let touched = Leaf { signature: Signature { inode: 7, ..Signature::default() }, ..leaf("1") };
        let next = tree.edit(&[(path("a/x"), Some(touched))]).unwrap();
        assert_eq!(tree.id(), next.id());
        assert_eq!(next.get(&path("a/x")).unwrap().signature.inode, 7);
        assert!(diff(&tree, &next).is_empty());
    }

    #[test]
    fn leaf_and_directory_can_swap_but_not_coexist() {
        let tree = build(&[("a", "1")]);
        let conflict = tree.edit(&[(path("a/b"), Some(leaf("2")))]).unwrap_err();
        assert_eq!(conflict.path, path("a/b"));
        let swapped = tree.edit(&[(path("a"), None), (path("a/b"), Some(leaf("2")))]).unwrap();
        assert_eq!(swapped.id(), build(&[("a/b", "2")]).id());
        let back = swapped.edit(&[(path("a"), Some(leaf("1"))), (path("a/b"), None)]).unwrap();
        assert_eq!(back.id(), tree.id());
    }

    #[test]
    fn the_last_file_gone_is_the_empty_tree() {
        let tree = build(&[("a/b/c", "1")]);
        let none = tree.edit(&[(path("a/b/c"), None)]).unwrap();
        assert_eq!(none.id(), PatchId::empty(HashKind::Sha1));
        assert!(none.is_empty());
    }

    /// Law: editing `before` by its diff to `after` gives `after`, for random trees over few names.
    #[test]
    fn diff_then_edit_gives_the_other_tree() {
        let seed = 20_26;
        let mut rng = fastrand::Rng::with_seed(seed);
        for round in 0..2_000 {
            let before = random_tree(&mut rng);
            let after = random_tree(&mut rng);
            let edits: Vec<_> = diff(&before, &after).into_iter().map(|c| (c.path, c.after)).collect();
            let edited = before.edit(&edits).unwrap();
            assert_eq!(edited.id(), after.id(), "seed {seed} round {round}");
            assert_eq!(edited.leaves(), after.leaves());
            let mut counted = 0;
            edited.for_each_leaf(&mut |_, _| counted += 1);
            assert_eq!(edited.leaves(), counted, "seed {seed} round {round}");
        }
    }

    /// Law: a graft is an edit that takes away what was there and puts what is to be.
    #[test]
    fn a_graft_is_the_edit_it_stands_for() {
        let seed = 5;
        let mut rng = fastrand::Rng::with_seed(seed);
        for round in 0..2_000 {
            let (tree, other) = (random_tree(&mut rng), random_tree(&mut rng));
            let at = path(["a", "a/b", "b/a-/b", "a.x"][rng.usize(0..4)]);
            let dir = other.dir(&path(["a", "b", "a-"][rng.usize(0..3)])).cloned();
            let mut edits = std::collections::BTreeMap::new();
            tree.for_each_leaf(&mut |p, _| {
                if p == at || p.is_below(&at) || dir.is_some() && at.is_below(&p) {
                    edits.insert(p, None);
                }
            });
            if let Some(dir) = &dir {
                dir.for_each_leaf(&mut |p, leaf| {
                    let below = RelPath::new([at.as_bytes(), b"/", p.as_bytes()].concat()).unwrap();
                    edits.insert(below, Some(*leaf));
                });
            }
            let edits: Vec<_> = edits.into_iter().collect();
            let grafted = tree.graft(&at, dir);
            let edited = tree.edit(&edits).unwrap();
            assert_eq!(
                (grafted.id(), grafted.leaves()),
                (edited.id(), edited.leaves()),
                "seed {seed} round {round}"
            );
        }
    }

    #[test]
    fn a_directory_built_as_it_was_is_the_one_it_was() {
        let tree = build(&[("a", "1"), ("b/x", "2"), ("c", "3")]);
        let rebuild = |change: Option<Option<Leaf>>| {
            let mut builder = DirBuilder::new(HashKind::Sha1, 0);
            for (name, entry) in tree.entries() {
                let at = builder.push(name, None);
                builder.push(&[name, b"-nothing"].concat(), None);
                builder.set(at, Some(entry.clone()));
            }
            if let Some(leaf) = change {
                builder.set(0, leaf.map(Entry::Leaf));
            }
            builder.finish(Some(&tree))
        };
        assert!(Arc::ptr_eq(&rebuild(None).unwrap(), &tree));
        let touched = Leaf { signature: Signature { inode: 7, ..Signature::default() }, ..leaf("1") };
        let same = rebuild(Some(Some(touched))).unwrap();
        assert!(!Arc::ptr_eq(&same, &tree) && same.id() == tree.id());
        assert_eq!(rebuild(Some(None)).unwrap().id(), build(&[("b/x", "2"), ("c", "3")]).id());
        let other = rebuild(Some(Some(leaf("9")))).unwrap();
        assert_eq!(other.id(), build(&[("a", "9"), ("b/x", "2"), ("c", "3")]).id());
        assert!(DirBuilder::new(HashKind::Sha1, 0).finish(Some(&tree)).is_none());
    }

    fn random_tree(rng: &mut fastrand::Rng) -> Arc<Dir> {
        let names = ["a", "b", "a-", "a.x"];
        let mut tree = Dir::empty(HashKind::Sha1);
        for _ in 0..rng.usize(0..12) {
            let depth = rng.usize(1..4);
            let p: Vec<&str> = (0..depth).map(|_| names[rng.usize(0..names.len())]).collect();
            let content = ["1", "2", "3"][rng.usize(0..3)];
            if let Ok(next) = tree.edit(&[(path(&p.join("/")), Some(leaf(content)))]) {
                tree = next;
            }
        }
        tree
    }
}
