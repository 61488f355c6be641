//! Directories as values: what is on a disk, and how two disks differ.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::oracle::{Expected, Mode};

/// A file or symlink as it lies on a disk.
#[derive(Clone, PartialEq, Eq)]
pub struct Node {
    pub mode: Mode,
    /// Contents, or the target of a link.
    pub bytes: Vec<u8>,
    pub stamp: Stamp,
}

/// What changes when a file is replaced, written or given other bits: a path with the same stamp was not touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub inode: u64,
    pub mtime_ns: i128,
    /// All permission bits, not only those git knows.
    pub permissions: u32,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = String::from_utf8_lossy(&self.bytes[..self.bytes.len().min(40)]);
        write!(f, "{} {} bytes {start:?} {:?}", self.mode.octal(), self.bytes.len(), self.stamp)
    }
}

/// Everything below a directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    pub files: BTreeMap<PathBuf, Node>,
    pub dirs: BTreeSet<PathBuf>,
    /// Sockets, FIFOs, devices.
    pub others: BTreeSet<PathBuf>,
}

/// Reads everything below `root` but its own `.git`. A `root` that does not exist is empty.
pub fn walk(root: &Path) -> Tree {
    let mut tree = Tree::default();
    visit(root, Path::new(""), Depth::WithContents, &mut |path| path != Path::new(".git"), &mut tree);
    tree
}

/// Reads everything below `root`, `.git` included.
pub fn walk_with_git(root: &Path) -> Tree {
    let mut tree = Tree::default();
    visit(root, Path::new(""), Depth::WithContents, &mut |_| true, &mut tree);
    tree
}

/// The paths of files and symlinks below `root`, without any `.git`. Reads no contents.
pub fn names(root: &Path) -> BTreeSet<PathBuf> {
    let mut tree = Tree::default();
    visit(root, Path::new(""), Depth::NamesOnly, &mut |path| !path.ends_with(".git"), &mut tree);
    tree.files.into_keys().collect()
}

/// The directories below `root`, without its own `.git` but with those of nested repositories.
pub fn dirs(root: &Path) -> BTreeSet<PathBuf> {
    let mut tree = Tree::default();
    let is_inside_git =
        |path: &Path| path == Path::new(".git") || path.parent().is_some_and(|p| p.ends_with(".git"));
    visit(root, Path::new(""), Depth::NamesOnly, &mut |path| !is_inside_git(path), &mut tree);
    tree.dirs
}

/// The stamp of every file and directory below `root` that `enter` lets in: whoever wrote, made or removed anything
/// changed one. Reads no contents.
pub fn stamps(root: &Path, enter: impl Fn(&Path) -> bool) -> BTreeMap<PathBuf, Stamp> {
    let mut tree = Tree::default();
    visit(root, Path::new(""), Depth::NamesOnly, &mut |path| enter(path), &mut tree);
    let files = tree.files.into_iter().map(|(path, node)| (path, node.stamp));
    let of_dir = |dir: PathBuf| fs::symlink_metadata(root.join(&dir)).ok().map(|meta| (dir, stamp(&meta)));
    files.chain(tree.dirs.into_iter().filter_map(of_dir)).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    NamesOnly,
    WithContents,
}

fn visit(root: &Path, dir: &Path, depth: Depth, enter: &mut dyn FnMut(&Path) -> bool, tree: &mut Tree) {
    let Ok(entries) = fs::read_dir(root.join(dir)) else {
        assert!(dir.as_os_str().is_empty(), "{} below {} cannot be listed", dir.display(), root.display());
        return;
    };
    for entry in entries {
        let path = dir.join(entry.expect("a directory can be read to its end").file_name());
        if !enter(&path) {
            continue;
        }
        let on_disk = root.join(&path);
        let meta =
            fs::symlink_metadata(&on_disk).unwrap_or_else(|e| panic!("lstat {}: {e}", on_disk.display()));
        if meta.is_dir() {
            tree.dirs.insert(path.clone());
            visit(root, &path, depth, enter, tree);
        } else if let Some(mode) = Mode::of(&meta) {
            let bytes = if depth == Depth::WithContents { contents(&on_disk, mode) } else { Vec::new() };
            tree.files.insert(path, Node { mode, bytes, stamp: stamp(&meta) });
        } else {
            tree.others.insert(path);
        }
    }
}

/// A file or symlink, if there is one. Never follows a link.
pub fn node(path: &Path) -> Option<Node> {
    let meta = fs::symlink_metadata(path).ok()?;
    let mode = Mode::of(&meta)?;
    let bytes = match mode {
        Mode::Symlink => fs::read_link(path).ok()?.into_os_string().into_vec(),
        Mode::File | Mode::Executable => fs::read(path).ok()?,
    };
    Some(Node { mode, bytes, stamp: stamp(&meta) })
}

fn contents(path: &Path, mode: Mode) -> Vec<u8> {
    let read = match mode {
        Mode::Symlink => fs::read_link(path).map(|target| target.into_os_string().into_vec()),
        Mode::File | Mode::Executable => fs::read(path),
    };
    read.unwrap_or_else(|e| panic!("read {}: {e}", path.display()))
}

fn stamp(meta: &fs::Metadata) -> Stamp {
    Stamp {
        inode: meta.ino(),
        mtime_ns: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
        permissions: meta.mode() & 0o7777,
    }
}

/// How `tree` differs from what it must hold: one line per path, empty when it does not.
///
/// `left_out` may be missing or foreign on the server; `may_stay` are paths outside the set, empty directories among them, which may lie there.
pub fn differences(
    expected: &Expected,
    left_out: &BTreeSet<PathBuf>,
    tree: &Tree,
    may_stay: impl Fn(&Path) -> bool,
) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, blob) in expected.files.iter().filter(|(path, _)| !left_out.contains(*path)) {
        match tree.files.get(path) {
            None => lines.push(format!("{path:?} is missing")),
            Some(node) if node.mode != blob.mode => {
                lines.push(format!("{path:?} is {}, not {}", node.mode.octal(), blob.mode.octal()));
            }
            Some(node) if node.bytes != blob.bytes => {
                lines.push(format!("{path:?} has {}", first_difference(&node.bytes, &blob.bytes)));
            }
            Some(_) => {}
        }
    }
    let outside = tree.files.keys().chain(&tree.others).filter(|path| !expected.files.contains_key(*path));
    lines.extend(outside.filter(|path| !may_stay(path)).map(|path| format!("{path:?} should not be there")));
    let is_empty = |dir: &PathBuf| !tree.files.keys().chain(&tree.others).any(|path| path.starts_with(dir));
    lines.extend(
        tree.dirs
            .iter()
            .filter(|dir| is_empty(dir) && !may_stay(dir))
            .map(|dir| format!("{dir:?} is an empty directory")),
    );
    lines
}

fn first_difference(got: &[u8], wanted: &[u8]) -> String {
    let at = got.iter().zip(wanted).take_while(|(a, b)| a == b).count();
    format!("{} bytes, not {}; they differ from byte {at} on", got.len(), wanted.len())
}

/// Paths for which `still` holds that were replaced or written between two walks.
pub fn touched<'a>(before: &'a Tree, after: &Tree, still: impl Fn(&Path) -> bool) -> Vec<&'a Path> {
    let stamps = before.files.iter().filter(|(path, _)| still(path));
    let changed = stamps.filter(|(path, node)| after.files.get(*path).map(|n| n.stamp) != Some(node.stamp));
    changed.map(|(path, _)| path.as_path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::Repo;
    use crate::lab::Sandbox;
    use crate::oracle::Oracle;

    #[test]
    fn a_faithful_copy_has_no_differences_and_every_unfaithful_one_has() {
        let sandbox = Sandbox::new("tree-differences");
        let repo = Repo::init(&sandbox.path("app"), &sandbox.path("home"));
        repo.write("a", "one\n");
        repo.write("run", "x");
        repo.write("dir/b", "two\n");
        repo.symlink("a", "link");
        let expected = Oracle::new(&repo, &sandbox.path("scratch")).expect(repo.root());
        let none = BTreeSet::new();
        let found = || differences(&expected, &none, &walk(repo.root()), |_| false);
        assert_eq!(found(), Vec::<String>::new());

        repo.write("a", "One\n");
        repo.chmod("run", 0o755);
        repo.remove("link");
        repo.remove("dir/b");
        repo.write("stray", "");
        let lines = found();
        assert_eq!(
            lines,
            [
                "\"a\" has 4 bytes, not 4; they differ from byte 0 on",
                "\"dir/b\" is missing",
                "\"link\" is missing",
                "\"run\" is 100755, not 100644",
                "\"stray\" should not be there",
                "\"dir\" is an empty directory",
            ]
        );
    }

    #[test]
    fn rewriting_equal_bytes_counts_as_touching() {
        let sandbox = Sandbox::new("tree-touched");
        let repo = Repo::init(&sandbox.path("app"), &sandbox.path("home"));
        repo.write("same", "x");
        repo.write("replaced", "x");
        let before = walk(repo.root());
        repo.write("aside", "x");
        repo.rename("aside", "replaced");
        assert_eq!(touched(&before, &walk(repo.root()), |_| true), [Path::new("replaced")]);
    }
}
