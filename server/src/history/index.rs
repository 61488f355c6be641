//! The index of a commit's tree, with stat data for every file that has the tree's very content.
//!
//! Format: git's documentation, `gitformat-index`, version 2 (3 where paths are marked skip-worktree). Entries are
//! written as the tree is walked, so memory does not grow with it. Git believes stat data that is older than the
//! index; [`Built::since`] is when looking began, and the index's time stamp has to be no later.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bstr::{BString, ByteSlice};
use gitsync_core::model::{Dir, Mode, RelPath};
use gix::ObjectId;
use rustix::fs::AtFlags;

use super::StepError;
use super::git::Stop;
use super::objects::Objects;
use crate::workspace::CloneDir;

/// Entries and directories of one index: a tree can name itself a billion times in a few bytes.
const ENTRIES_MAX: u64 = 4_000_000;
/// Bytes of one index.
const INDEX_BYTES_MAX: u64 = 1 << 31;
/// Longest path git's own programs can work with, in bytes.
const PATH_BYTES_MAX: usize = 4096;
/// Bytes of trees being walked at once.
const WALKED_BYTES_MAX: usize = 512 << 20;
/// Deepest directory, as git's `core.maxTreeDepth` has it.
const DEPTH_MAX: usize = 2048;
/// Submodules that get an empty directory.
const GITLINKS_MAX: usize = 10_000;
/// The stack a walk to [`DEPTH_MAX`] needs, with room to spare.
pub const STACK_BYTES: usize = 16 << 20;

/// No file system's clock ticks more seldom, where it tells fractions of a second at all.
const TICK: Duration = Duration::from_millis(50);
const TREE: u32 = 0o040000;
const EXTENDED: u16 = 0x4000;
const SKIP_WORKTREE: u16 = 0x4000;
const NAME_MASK: u16 = 0x0fff;

/// What an index is made from.
#[derive(Debug)]
pub struct Source<'a> {
    pub clone: &'a CloneDir,
    pub objects: &'a Objects,
    /// The managed files.
    pub held: &'a Arc<Dir>,
    /// Paths to be marked.
    pub skip_worktree: &'a HashSet<BString>,
    pub stop: &'a Stop,
}

/// What was written.
#[derive(Debug)]
pub struct Built {
    pub since: SystemTime,
    /// Where submodules belong.
    pub gitlinks: Vec<RelPath>,
    /// Where they did, by the index so far, and do no longer.
    pub former_gitlinks: Vec<RelPath>,
}

/// Writes the index of `tree` (of nothing, without one).
pub fn write(source: &Source<'_>, tree: Option<ObjectId>, file: &File) -> Result<Built, StepError> {
    // Files are dated by a clock that ticks more seldom than the one asked here.
    let since = SystemTime::now() - TICK;
    let former = Former::read(source);
    let mut writer = Writer {
        source,
        // The number of entries is known at the end: what is hashed has to wait for it.
        body: Body::new(file),
        former,
        parent: None,
        entries: 0,
        walked: 0,
        last: Vec::new(),
        dirs: Vec::new(),
        has_empty: false,
        gitlinks: Vec::new(),
    };
    writer.body.put(&[0; 12]);
    if let Some(tree) = tree {
        Census::default().take(source, &tree, 0)?.check()?;
        writer.tree(&tree, b"", &mut Vec::new(), 0)?;
    }
    writer.cache_tree();
    let Writer { body, entries, gitlinks, former, .. } = writer;
    let former_gitlinks = former.gitlinks().filter(|path| !gitlinks.contains(path)).collect();
    let version: u32 = if source.skip_worktree.is_empty() { 2 } else { 3 };
    let header = [b"DIRC".as_slice(), &version.to_be_bytes(), &(entries as u32).to_be_bytes()].concat();
    body.finish(&header, source.objects.hash()).map_err(|e| StepError::io("write the index", e))?;
    Ok(Built { since, gitlinks, former_gitlinks })
}

struct Writer<'a> {
    source: &'a Source<'a>,
    body: Body<'a>,
    former: Former,
    /// The directory looked into last.
    parent: Option<(Vec<u8>, Option<OwnedFd>)>,
    entries: u64,
    /// Bytes of trees on the way from the root to here.
    walked: usize,
    last: Vec<u8>,
    dirs: Vec<CachedDir>,
    /// A directory without files has no place in an index.
    has_empty: bool,
    gitlinks: Vec<RelPath>,
}

/// A record of the `TREE` extension.
struct CachedDir {
    name: Vec<u8>,
    id: ObjectId,
    entries: u64,
    subtrees: u64,
}

impl Writer<'_> {
    fn tree(
        &mut self,
        id: &ObjectId,
        name: &[u8],
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), StepError> {
        self.source.stop.check()?;
        if depth > DEPTH_MAX {
            return Err(StepError::TooLarge(format!("directories nested deeper than {DEPTH_MAX}")));
        }
        let mut buffer = Vec::new();
        let data = self.source.objects.tree(id, &mut buffer)?;
        self.walked += data.len();
        if self.walked > WALKED_BYTES_MAX {
            return Err(StepError::TooLarge("directories too large to be walked".to_owned()));
        }
        let (own, entries_before) = (self.dirs.len(), self.entries);
        self.dirs.push(CachedDir { name: name.to_owned(), id: *id, entries: 0, subtrees: 0 });
        let mut rest = data;
        while !rest.is_empty() {
            let (mode, name, child, after) =
                entry(rest, self.source.objects.hash()).ok_or_else(|| damaged(id))?;
            rest = after;
            let length = path.len();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            if path.len() > PATH_BYTES_MAX {
                return Err(StepError::TooLarge(format!("a path of more than {PATH_BYTES_MAX} bytes")));
            }
            match mode {
                TREE => {
                    self.dirs[own].subtrees += 1;
                    self.tree(&child, name, path, depth + 1)?;
                }
                _ => self.leaf(mode, &child, path)?,
            }
            path.truncate(length);
        }
        self.walked -= data.len();
        let entries = self.entries - entries_before;
        self.has_empty |= entries == 0;
        self.dirs[own].entries = entries;
        Ok(())
    }

    fn leaf(&mut self, mode: u32, id: &ObjectId, path: &[u8]) -> Result<(), StepError> {
        if self.entries > 0 && self.last.as_slice() >= path {
            return Err(StepError::Invalid("a tree whose names are out of order".to_owned()));
        }
        self.last.clear();
        self.last.extend_from_slice(path);
        self.entries += 1;
        if self.entries.is_multiple_of(4096) {
            self.source.stop.check()?;
        }
        let (mode, kind) = match mode {
            0o120000 => (0o120000, Some(Mode::Symlink)),
            0o160000 => (0o160000, None),
            // As git does it: old histories have 100664.
            mode if mode & 0o100 != 0 => (0o100755, Some(Mode::Executable)),
            _ => (0o100644, Some(Mode::File)),
        };
        let rel = RelPath::new(path).ok();
        let stat = match (kind, &rel) {
            (Some(kind), Some(rel)) => self.stat(rel, kind, id),
            _ => None,
        };
        if let (None, Some(rel)) = (kind, rel)
            && self.gitlinks.len() < GITLINKS_MAX
        {
            self.gitlinks.push(rel);
        }
        let marked =
            !self.source.skip_worktree.is_empty() && self.source.skip_worktree.contains(path.as_bstr());
        self.body.entry(mode, &stat.unwrap_or_default(), id, marked, path);
        self.body.check().map_err(|e| StepError::io("write the index", e))
    }

    /// What the file system says of a managed file, if it has this very content and is as we wrote it.
    fn stat(&mut self, path: &RelPath, kind: Mode, id: &ObjectId) -> Option<Stat> {
        let leaf = self.source.held.get(path)?;
        if leaf.mode != kind || leaf.id.as_bytes() != id.as_bytes() {
            return None;
        }
        let wanted = &leaf.signature;
        if let Some(stat) = self.former.stat(path.as_bytes(), id)
            && stat.is(wanted)
        {
            return Some(stat);
        }
        let at = self.parent(path)?;
        let found = rustix::fs::statat(at, path.name(), AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let stat = Stat::of(&found);
        (stat.is(wanted) && found.st_ino == wanted.inode).then_some(stat)
    }

    fn parent(&mut self, path: &RelPath) -> Option<&OwnedFd> {
        let bytes = path.as_bytes();
        let end = bytes.rfind_byte(b'/').unwrap_or(0);
        if self.parent.as_ref().is_none_or(|(at, _)| at != &bytes[..end]) {
            let clone = self.source.clone;
            let opened = match end {
                0 => clone.root().try_clone().ok(),
                _ => clone.fs().open_dir(clone.root().as_fd(), &bytes[..end]).ok(),
            };
            self.parent = Some((bytes[..end].to_owned(), opened));
        }
        self.parent.as_ref().and_then(|(_, opened)| opened.as_ref())
    }

    /// The ids of all directories, so that nobody has to make them again (`gitformat-index`, "Cache tree").
    fn cache_tree(&mut self) {
        if self.has_empty || self.dirs.is_empty() {
            return;
        }
        let mut bytes = Vec::new();
        for dir in &self.dirs {
            bytes.extend_from_slice(&dir.name);
            bytes.extend_from_slice(format!("\0{} {}\n", dir.entries, dir.subtrees).as_bytes());
            bytes.extend_from_slice(dir.id.as_bytes());
        }
        self.body.put(b"TREE");
        self.body.put(&(bytes.len() as u32).to_be_bytes());
        self.body.put(&bytes);
    }
}

/// How much a tree is once it is unfolded: counted without unfolding it, because ten objects can name a billion paths.
#[derive(Debug, Default)]
struct Census {
    known: HashMap<ObjectId, Size>,
    walked: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct Size {
    /// Files, and directories as well.
    paths: u64,
    /// Bytes of their paths.
    bytes: u64,
}

impl Size {
    fn check(self) -> Result<(), StepError> {
        let bytes = self.paths.saturating_mul(80).saturating_add(self.bytes);
        match self.paths > ENTRIES_MAX || bytes > INDEX_BYTES_MAX {
            true => Err(StepError::TooLarge(format!("a commit of {} paths", self.paths))),
            false => Ok(()),
        }
    }
}

impl Census {
    fn take(&mut self, source: &Source<'_>, id: &ObjectId, depth: usize) -> Result<Size, StepError> {
        if let Some(size) = self.known.get(id) {
            return Ok(*size);
        }
        source.stop.check()?;
        if depth > DEPTH_MAX {
            return Err(StepError::TooLarge(format!("directories nested deeper than {DEPTH_MAX}")));
        }
        let mut buffer = Vec::new();
        let data = source.objects.tree(id, &mut buffer)?;
        self.walked += data.len();
        if self.walked > WALKED_BYTES_MAX {
            return Err(StepError::TooLarge("directories too large to be walked".to_owned()));
        }
        let mut size = Size::default();
        let mut rest = data;
        while !rest.is_empty() {
            let (mode, name, child, after) = entry(rest, source.objects.hash()).ok_or_else(|| damaged(id))?;
            rest = after;
            let below = if mode == TREE { self.take(source, &child, depth + 1)? } else { Size::default() };
            let paths = below.paths.saturating_add(1);
            let names = paths.saturating_mul(name.len() as u64 + 1);
            size.paths = size.paths.saturating_add(paths);
            size.bytes = size.bytes.saturating_add(names).saturating_add(below.bytes);
        }
        self.walked -= data.len();
        self.known.insert(*id, size);
        Ok(size)
    }
}

fn damaged(id: &ObjectId) -> StepError {
    StepError::Invalid(format!("tree {id} is damaged"))
}

/// Mode, name, id, and what follows.
fn entry(data: &[u8], hash: gix::hash::Kind) -> Option<(u32, &[u8], ObjectId, &[u8])> {
    let (mode, rest) = data.split_once_str(" ")?;
    let (name, rest) = rest.split_once_str("\0")?;
    let (id, rest) = rest.split_at_checked(hash.len_in_bytes())?;
    let mode = u32::from_str_radix(std::str::from_utf8(mode).ok()?, 8).ok()?;
    if name.is_empty() || name.contains(&b'/') {
        return None;
    }
    Some((mode, name, ObjectId::try_from(id).ok()?, rest))
}

/// Stat data as an index has it: cut to 32 bits each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Stat {
    ctime: (u32, u32),
    mtime: (u32, u32),
    dev: u32,
    ino: u32,
    uid: u32,
    gid: u32,
    size: u32,
}

impl Stat {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::unnecessary_cast,
        reason = "an index holds 32 bits; widths differ between platforms"
    )]
    fn of(stat: &rustix::fs::Stat) -> Self {
        Self {
            ctime: (stat.st_ctime as u32, stat.st_ctime_nsec as u32),
            mtime: (stat.st_mtime as u32, stat.st_mtime_nsec as u32),
            dev: stat.st_dev as u32,
            ino: stat.st_ino as u32,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: stat.st_size as u32,
        }
    }

    fn is(&self, signature: &gitsync_core::model::Signature) -> bool {
        signature.is_trusted()
            && self.ctime == seconds(signature.ctime_ns)
            && self.mtime == seconds(signature.mtime_ns)
            && self.ino == signature.inode as u32
            && self.size == signature.size as u32
    }
}

#[allow(clippy::cast_possible_truncation, reason = "an index holds 32 bits")]
fn seconds(ns: i64) -> (u32, u32) {
    (ns.div_euclid(1_000_000_000) as u32, ns.rem_euclid(1_000_000_000) as u32)
}

/// The index that is there, for the stat data in it.
struct Former {
    index: Option<gix::index::File>,
    /// The first entry that may still be asked for.
    next: usize,
    /// Seconds; entries that are no older have to be looked at again.
    written: u32,
}

impl Former {
    fn read(source: &Source<'_>) -> Self {
        let path = source.clone.path().join("index");
        let hash = source.objects.hash();
        let index = gix::index::File::at(path, hash, true, gix::index::decode::Options::default()).ok();
        let written = index
            .as_ref()
            .map_or(0, |index| index.timestamp().unix_seconds().clamp(0, u32::MAX.into()) as u32);
        Self { index, next: 0, written }
    }

    fn gitlinks(&self) -> impl Iterator<Item = RelPath> {
        let entries = self.index.iter().flat_map(|index| index.entries().iter().map(move |e| (index, e)));
        let links = entries.filter(|(_, e)| e.mode == gix::index::entry::Mode::COMMIT);
        links.filter_map(|(index, e)| RelPath::new(e.path(index)).ok()).take(GITLINKS_MAX)
    }

    /// For paths in order.
    fn stat(&mut self, path: &[u8], id: &ObjectId) -> Option<Stat> {
        let index = self.index.as_ref()?;
        let backing = index.path_backing();
        let entries = index.entries();
        while self.next < entries.len() && entries[self.next].path_in(backing).as_bytes() < path {
            self.next += 1;
        }
        let entry = entries.get(self.next).filter(|e| e.path_in(backing) == path && e.id == *id)?;
        let stat = &entry.stat;
        if stat.mtime.secs >= self.written {
            return None;
        }
        Some(Stat {
            ctime: (stat.ctime.secs, stat.ctime.nsecs),
            mtime: (stat.mtime.secs, stat.mtime.nsecs),
            dev: stat.dev,
            ino: stat.ino,
            uid: stat.uid,
            gid: stat.gid,
            size: stat.size,
        })
    }
}

/// The bytes of an index on their way to the disk. Errors are kept until somebody asks.
struct Body<'a> {
    out: BufWriter<&'a File>,
    written: u64,
    error: Option<std::io::Error>,
}

impl<'a> Body<'a> {
    fn new(file: &'a File) -> Self {
        Self { out: BufWriter::with_capacity(1 << 20, file), written: 0, error: None }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.written += bytes.len() as u64;
        if self.error.is_none() {
            self.error = self.out.write_all(bytes).err();
        }
    }

    fn check(&mut self) -> std::io::Result<()> {
        self.error.take().map_or(Ok(()), Err)
    }

    fn entry(&mut self, mode: u32, stat: &Stat, id: &ObjectId, marked: bool, path: &[u8]) {
        let Stat { ctime, mtime, dev, ino, uid, gid, size } = *stat;
        let mut bytes = Vec::with_capacity(80 + path.len());
        for word in [ctime.0, ctime.1, mtime.0, mtime.1, dev, ino, mode, uid, gid, size] {
            bytes.extend_from_slice(&word.to_be_bytes());
        }
        bytes.extend_from_slice(id.as_bytes());
        let length = u16::try_from(path.len()).unwrap_or(NAME_MASK).min(NAME_MASK);
        bytes.extend_from_slice(&(length | if marked { EXTENDED } else { 0 }).to_be_bytes());
        if marked {
            bytes.extend_from_slice(&SKIP_WORKTREE.to_be_bytes());
        }
        bytes.extend_from_slice(path);
        // One to eight, so that the path ends with a NUL.
        bytes.resize(bytes.len() + 8 - bytes.len() % 8, 0);
        self.put(&bytes);
    }

    /// Puts the header in its place and the checksum at the end.
    fn finish(mut self, header: &[u8], hash: gix::hash::Kind) -> std::io::Result<()> {
        use std::os::unix::fs::FileExt;
        self.check()?;
        self.out.flush()?;
        let file = *self.out.get_ref();
        file.write_all_at(header, 0)?;
        let mut hasher = gix::hash::hasher(hash);
        let mut buffer = vec![0; 1 << 20];
        let mut offset = 0;
        while offset < self.written {
            match file.read_at(&mut buffer, offset)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                read => {
                    hasher.update(&buffer[..read]);
                    offset += read as u64;
                }
            }
        }
        let sum = hasher.try_finalize().map_err(std::io::Error::other)?;
        file.write_all_at(sum.as_bytes(), self.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_trees() {
        let sha1 = gix::hash::Kind::Sha1;
        let id = [5; 20];
        let data = [b"100644 a b\0".as_slice(), &id, b"40000 c\0", &id].concat();
        let (mode, name, _, rest) = entry(&data, sha1).unwrap();
        assert_eq!((mode, name), (0o100644, &b"a b"[..]));
        assert_eq!(entry(rest, sha1).unwrap().0, 0o040000);
        for bad in [&b"100644 a\0"[..], b"", b"x a\0", &[b"100644 \0".as_slice(), &id].concat(), &data[..20]]
        {
            assert!(entry(bad, sha1).is_none());
        }
        assert!(entry(&[b"100644 a/b\0".as_slice(), &id].concat(), sha1).is_none());
    }

    #[test]
    fn times_before_the_epoch_and_fractions() {
        assert_eq!(seconds(1_500_000_000), (1, 500_000_000));
        assert_eq!(seconds(-1), (u32::MAX, 999_999_999));
    }
}
