//! What is on disk, as values that can be compared.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Everything at and below a path that a writer could change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree(BTreeMap<PathBuf, Node>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    /// Type and permissions.
    mode: u32,
    inode: u64,
    mtime: (i64, i64),
    /// Of a file, or the target of a symlink.
    bytes: Vec<u8>,
}

impl Tree {
    /// Reads `top`; what is below `without` is left out.
    pub fn of(top: &Path, without: Option<&Path>) -> Self {
        let mut tree = Self::default();
        tree.add(top, without);
        tree
    }

    fn add(&mut self, path: &Path, without: Option<&Path>) {
        if without == Some(path) {
            return;
        }
        let stat = fs::symlink_metadata(path).expect("what is listed is there");
        let bytes = if stat.is_file() {
            fs::read(path).expect("a file can be read")
        } else if stat.is_symlink() {
            target(path)
        } else {
            Vec::new()
        };
        let node =
            Node { mode: stat.mode(), inode: stat.ino(), mtime: (stat.mtime(), stat.mtime_nsec()), bytes };
        self.0.insert(path.to_owned(), node);
        if stat.is_dir() {
            for name in names(path) {
                self.add(&path.join(OsStr::from_bytes(&name)), without);
            }
        }
    }

    /// Panics if anything differs, naming the paths.
    #[track_caller]
    pub fn assert_same(&self, now: &Self, what: &str) {
        let paths = self.0.keys().chain(now.0.keys());
        let differ: Vec<_> = paths.filter(|path| self.0.get(*path) != now.0.get(*path)).collect();
        let show = |tree: &Self| {
            differ.iter().map(|path| format!("\n  {path:?}: {:?}", tree.0.get(*path))).collect::<String>()
        };
        assert!(differ.is_empty(), "{what} changed\nfrom {}\nto {}", show(self), show(now));
    }
}

/// The names in a directory, sorted.
pub fn names(dir: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(dir).expect("a directory can be listed");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.map(|e| e.file_name().as_bytes().to_vec());
    let mut names: Vec<_> = entries.map(name).collect::<Result<_, _>>().expect("a directory can be listed");
    names.sort();
    names
}

/// Where a symlink leads.
pub fn target(path: &Path) -> Vec<u8> {
    fs::read_link(path).expect("a symlink can be read").into_os_string().as_bytes().to_vec()
}

/// Something is at the path, even a symlink that leads nowhere.
pub fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Permission bits of what is at the path itself.
pub fn permissions(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("it is there").mode() & 0o7777
}
