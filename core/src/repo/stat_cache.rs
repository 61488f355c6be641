//! The stat cache: what each file of a working tree held when it was last read, kept across runs.
//!
//! It is a snapshot's tree with its signatures. A file that still has the signature it is remembered with need not
//! be read again; what belongs to the set is decided anew at every start. Losing the cache costs time and nothing else,
//! so whatever is wrong with it (torn, damaged, of another version or another repository), it is as good as none.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_128;

use super::disk::Disk;
use super::open::Repo;
use crate::model::path::MAX_DEPTH;
use crate::model::tree::DirBuilder;
use crate::model::{ContentId, Dir, Entry, HashKind, Leaf, Mode, PatchId, Signature};

/// Changes with the format.
const MAGIC: &[u8; 16] = b"gitsync stat\0\0\0\x01";
const CHECKSUM_BYTES: usize = 16;
/// Tag, length of the name, a byte of it, id: less than any entry takes.
const ENTRY_BYTES_LEAST: usize = 23;

const FILE: u8 = 0;
const EXECUTABLE: u8 = 1;
const SYMLINK: u8 = 2;
const DIRECTORY: u8 = 3;

/// Where the cache of one working tree is, and which tree it is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatCache {
    file: PathBuf,
    kind: HashKind,
    /// Device and inode of the root and of the git directory: what stands at the same path later may be another.
    identity: [u64; 4],
}

impl StatCache {
    /// The cache of a repository, in a directory that may still have to be made.
    pub fn new(dir: &Path, repo: &Repo, disk: &Disk) -> io::Result<Self> {
        use std::os::unix::ffi::OsStrExt;
        let place = ContentId::of(HashKind::Sha1, repo.workdir.as_os_str().as_bytes());
        let ((root_dev, root_inode), (git_dev, git_inode)) = (disk.identity()?, repo.identity());
        Ok(Self {
            file: dir.join(format!("{place}.stat")),
            kind: repo.hash_kind,
            identity: [root_dev, root_inode, git_dev, git_inode],
        })
    }

    /// What was remembered, if that is whole and of this tree.
    pub fn load(&self) -> Option<Arc<Dir>> {
        let bytes = match fs::read(&self.file) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
            Err(e) => {
                tracing::info!("cannot read {}, so every file is: {e}", self.file.display());
                return None;
            }
        };
        let tree = self.decode(&bytes);
        if tree.is_none() {
            tracing::info!("{} is of no use, so every file is read", self.file.display());
        }
        tree
    }

    /// Remembers a tree in place of what was remembered before, or not at all.
    pub fn save(&self, tree: &Dir) -> io::Result<()> {
        let dir = self.file.parent().ok_or(io::ErrorKind::InvalidInput)?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        // One name, so that no more than one is ever left behind. Two writers at once spoil it: then it is read as
        // no cache.
        let unfinished = self.file.with_extension("new");
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(&self.encode(tree))?;
        drop(file);
        fs::rename(unfinished, &self.file)
    }

    fn encode(&self, tree: &Dir) -> Vec<u8> {
        let mut out = Vec::with_capacity(1024 + tree.leaves() as usize * 96);
        out.extend_from_slice(&self.header());
        encode_dir(tree, &mut out);
        let checksum = xxh3_128(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
        out
    }

    fn decode(&self, bytes: &[u8]) -> Option<Arc<Dir>> {
        let (body, checksum) = bytes.split_at_checked(bytes.len().checked_sub(CHECKSUM_BYTES)?)?;
        let body = body.strip_prefix(&*self.header())?;
        let whole = xxh3_128(&bytes[..bytes.len() - CHECKSUM_BYTES]).to_le_bytes() == checksum;
        let mut reader = Reader { rest: body, kind: self.kind };
        let tree = if whole { reader.dir(0)? } else { return None };
        reader.rest.is_empty().then_some(tree)
    }

    fn header(&self) -> Vec<u8> {
        let mut header = MAGIC.to_vec();
        header.push(self.kind.len_in_bytes() as u8);
        self.identity.iter().for_each(|part| header.extend_from_slice(&part.to_le_bytes()));
        header
    }
}

fn encode_dir(dir: &Dir, out: &mut Vec<u8>) {
    out.extend_from_slice(dir.id().as_bytes());
    out.extend_from_slice(&(dir.len() as u32).to_le_bytes());
    for (name, entry) in dir.entries() {
        out.push(match entry {
            Entry::Dir(_) => DIRECTORY,
            Entry::Leaf(Leaf { mode: Mode::File, .. }) => FILE,
            Entry::Leaf(Leaf { mode: Mode::Executable, .. }) => EXECUTABLE,
            Entry::Leaf(Leaf { mode: Mode::Symlink, .. }) => SYMLINK,
        });
        out.push(name.len() as u8);
        out.extend_from_slice(name);
        match entry {
            Entry::Dir(dir) => encode_dir(dir, out),
            Entry::Leaf(Leaf { id, signature, .. }) => {
                out.extend_from_slice(id.as_bytes());
                out.extend_from_slice(&signature.size.to_le_bytes());
                out.extend_from_slice(&signature.mtime_ns.to_le_bytes());
                out.extend_from_slice(&signature.ctime_ns.to_le_bytes());
                out.extend_from_slice(&signature.inode.to_le_bytes());
            }
        }
    }
}

struct Reader<'a> {
    rest: &'a [u8],
    kind: HashKind,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn dir(&mut self, depth: usize) -> Option<Arc<Dir>> {
        if depth >= MAX_DEPTH {
            return None;
        }
        let id = PatchId::from_bytes(self.take(self.kind.len_in_bytes())?).ok()?;
        let count = u32::from_le_bytes(self.array()?) as usize;
        let mut entries = DirBuilder::new(self.kind, count.min(self.rest.len() / ENTRY_BYTES_LEAST));
        let mut last: &[u8] = b"";
        for _ in 0..count {
            let [tag, name_len] = self.array()?;
            let name = self.take(usize::from(name_len))?;
            if name <= last {
                return None;
            }
            last = name;
            let mode = match tag {
                FILE => Mode::File,
                EXECUTABLE => Mode::Executable,
                SYMLINK => Mode::Symlink,
                DIRECTORY => {
                    let below = self.dir(depth + 1)?;
                    entries.push(name, Some(below.into()));
                    continue;
                }
                _ => return None,
            };
            let id = ContentId::from_bytes(self.take(self.kind.len_in_bytes())?).ok()?;
            let signature = Signature {
                size: u64::from_le_bytes(self.array()?),
                mtime_ns: i64::from_le_bytes(self.array()?),
                ctime_ns: i64::from_le_bytes(self.array()?),
                inode: u64::from_le_bytes(self.array()?),
            };
            entries.push(name, Some(Entry::Leaf(Leaf { mode, id, signature })));
        }
        Some(entries.finish_as(id))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::model::{RelPath, tree};

    fn tree_of(kind: HashKind, files: u32) -> Arc<Dir> {
        let leaf = |i: u32| Leaf {
            mode: [Mode::File, Mode::Executable, Mode::Symlink][i as usize % 3],
            id: ContentId::of(kind, &i.to_le_bytes()),
            signature: Signature {
                size: u64::from(i),
                mtime_ns: -i64::from(i),
                ctime_ns: if i.is_multiple_of(5) { Signature::RACY } else { i64::from(i) },
                inode: u64::MAX - u64::from(i),
            },
        };
        let mut edits: Vec<_> = (0..files)
            .map(|i| (RelPath::new(format!("d{}/e{}/\u{1}f{i}", i % 7, i % 3)).unwrap(), Some(leaf(i))))
            .collect();
        edits.sort_by(|a, b| a.0.cmp(&b.0));
        Dir::empty(kind).edit(&edits).unwrap()
    }

    fn cache(dir: &Path, kind: HashKind) -> StatCache {
        StatCache { file: dir.join("not/there/yet/x.stat"), kind, identity: [1, 2, 3, 4] }
    }

    fn leaves(tree: &Dir) -> Vec<(RelPath, Leaf)> {
        let mut leaves = Vec::new();
        tree.for_each_leaf(&mut |path, leaf| leaves.push((path, *leaf)));
        leaves
    }

    #[test]
    fn what_is_saved_is_loaded_and_only_its_owner_can_read_it() {
        for kind in [HashKind::Sha1, HashKind::Sha256] {
            let dir = tempfile::tempdir().unwrap();
            let (cache, tree) = (cache(dir.path(), kind), tree_of(kind, 200));
            assert!(cache.load().is_none());
            cache.save(&tree_of(kind, 3)).unwrap();
            cache.save(&tree).unwrap();
            let loaded = cache.load().unwrap();
            assert_eq!((loaded.id(), loaded.leaves()), (tree.id(), 200));
            assert_eq!(leaves(&loaded), leaves(&tree));
            assert!(tree::diff(&loaded, &tree).is_empty());
            assert_eq!(fs::metadata(&cache.file).unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(
                fs::read_dir(cache.file.parent().unwrap()).unwrap().count(),
                1,
                "nothing is left over"
            );
            cache.save(&Dir::empty(kind)).unwrap();
            assert!(cache.load().unwrap().is_empty());
        }
    }

    #[test]
    fn any_damage_and_any_other_tree_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path(), HashKind::Sha1);
        let whole = cache.encode(&tree_of(HashKind::Sha1, 20));
        assert!(cache.decode(&whole).is_some());
        for at in 0..whole.len() {
            assert!(cache.decode(&whole[..at]).is_none(), "cut at {at}");
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            assert!(cache.decode(&flipped).is_none(), "flipped at {at}");
        }
        let longer = [&whole[..], b"x"].concat();
        assert!(cache.decode(&longer).is_none());
        let other = StatCache { identity: [1, 2, 3, 5], ..cache.clone() };
        assert!(other.decode(&whole).is_none());
        let other = StatCache { kind: HashKind::Sha256, ..cache };
        assert!(other.decode(&whole).is_none());
    }

    #[test]
    fn a_body_that_makes_no_sense_is_refused_whatever_its_checksum_says() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path(), HashKind::Sha1);
        let seed = 3;
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..300 {
            let mut bytes = cache.encode(&tree_of(HashKind::Sha1, 5));
            bytes.truncate(bytes.len() - CHECKSUM_BYTES);
            let start = cache.header().len();
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(start..bytes.len());
                bytes[at] = rng.u8(..);
            }
            let checksum = xxh3_128(&bytes).to_le_bytes();
            bytes.extend_from_slice(&checksum);
            // It may decode to something else; it must not panic or take memory without bounds.
            let _ = cache.decode(&bytes);
        }
    }
}
