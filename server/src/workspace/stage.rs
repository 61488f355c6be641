//! The stage: new contents, whole and verified, before they are swapped in.
//!
//! Each content is a file of mode 0600 in `.git/gitsync/stage/<epoch>/`, hashed while it is written.
//! The directory is this session's own: a writer that was superseded cannot disturb its successor.
//! Names that begin with `u` hold what a client sent and may be deleted at any time; after a swap a
//! name holds the file that was displaced, until that has been inspected. Of many staged files most
//! lie one directory deeper, in `b1`, `b2` and so on: in a long directory each takes longer to make.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use gitsync_core::model::{ContentHasher, ContentId, HashKind};
use rustix::io::Errno;

use super::fs::{Kind, Stat, WorkspaceFs};

const CHUNK: usize = 256 << 10;
/// Staged files kept open until they are swapped in; beyond that they are opened again.
const OPEN_MAX: usize = 64;
/// So many staged files share a directory.
const BUCKET_FILES: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum StageError {
    #[error("{} is longer than its {size} bytes", content(id))]
    TooLong { id: Option<ContentId>, size: u64 },
    #[error("{} ended after {written} of {size} bytes", content(id))]
    TooShort { id: Option<ContentId>, written: u64, size: u64 },
    #[error("a content of {size} bytes came without a name")]
    Nameless { size: u64 },
    #[error("content {expected} has the id {computed}")]
    WrongContent { expected: ContentId, computed: ContentId },
    #[error("no space left for staged content")]
    DiskFull,
    #[error("cannot stage {}", content(id))]
    Io { id: Option<ContentId>, source: std::io::Error },
}

fn content(id: &Option<ContentId>) -> String {
    id.map_or_else(|| "a content without a name yet".to_owned(), |id| format!("content {id}"))
}

#[derive(Debug)]
pub(super) struct Stage {
    fs: Arc<dyn WorkspaceFs>,
    dir: Arc<OwnedFd>,
    next: Arc<AtomicU64>,
    contents: HashMap<ContentId, Vec<Slot>>,
    /// Contents that came before any patch that names them, and stay until one has used them.
    ahead: HashSet<ContentId>,
    open: usize,
    /// Directories made in this one, numbered from 1.
    buckets: AtomicUsize,
}

/// One file in the stage.
#[derive(Debug)]
pub(super) struct Slot {
    /// In the stage's directory, or in one of its buckets.
    pub name: Vec<u8>,
    pub file: Option<OwnedFd>,
}

/// A content on its way into the stage. Dropping it unfinished removes what was written.
pub struct StagedWriter {
    fs: Arc<dyn WorkspaceFs>,
    dir: Arc<OwnedFd>,
    /// `None` until it is named.
    id: Option<ContentId>,
    size: u64,
    written: u64,
    /// `None` once finished.
    open: Option<(ContentHasher, Slot, OwnedFd)>,
}

impl fmt::Debug for StagedWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, size, written, .. } = self;
        write!(f, "StagedWriter({id:?}, {written} of {size} bytes)")
    }
}

impl StagedWriter {
    /// `None` until it is named.
    pub fn id(&self) -> Option<ContentId> {
        self.id
    }

    /// What it is to be, if nobody said so before.
    pub fn name(&mut self, id: ContentId) {
        self.id.get_or_insert(id);
    }

    /// Bytes still to come.
    pub fn remaining(&self) -> u64 {
        self.size - self.written
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StageError> {
        if bytes.len() as u64 > self.remaining() {
            return Err(self.too_long());
        }
        let Some((hasher, _, file)) = &mut self.open else { return Ok(()) };
        hasher.update(bytes);
        self.fs.write_all(file.as_fd(), bytes).map_err(|e| failed(self.id, e))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn too_long(&self) -> StageError {
        StageError::TooLong { id: self.id, size: self.size }
    }

    pub(super) fn failed(&self, errno: Errno) -> StageError {
        failed(self.id, errno)
    }

    fn finish(mut self) -> Result<(ContentId, Slot, OwnedFd), StageError> {
        let (id, size, written) = (self.id, self.size, self.written);
        if written < size {
            return Err(StageError::TooShort { id, written, size });
        }
        let Some((hasher, slot, file)) = self.open.take() else {
            return Err(StageError::TooShort { id, written, size });
        };
        let computed = hasher.finish();
        let wrong = match id {
            None => StageError::Nameless { size },
            Some(id) if computed == id && !is_null(&computed) => return Ok((id, slot, file)),
            Some(expected) => StageError::WrongContent { expected, computed },
        };
        let _ = self.fs.unlink(self.dir.as_fd(), &slot.name);
        Err(wrong)
    }
}

impl Drop for StagedWriter {
    fn drop(&mut self) {
        if let Some((_, slot, _)) = self.open.take() {
            let _ = self.fs.unlink(self.dir.as_fd(), &slot.name);
        }
    }
}

impl Stage {
    pub fn new(fs: Arc<dyn WorkspaceFs>, dir: OwnedFd) -> Self {
        Self {
            fs,
            dir: Arc::new(dir),
            next: Arc::default(),
            contents: HashMap::new(),
            ahead: HashSet::new(),
            open: 0,
            buckets: AtomicUsize::new(0),
        }
    }

    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The same, to outlive this.
    pub fn shared_dir(&self) -> Arc<OwnedFd> {
        self.dir.clone()
    }

    /// A name nothing has: `u` for what we put there, `d` for what was displaced.
    pub fn name(&self, kind: char) -> Vec<u8> {
        format!("{kind}{}", self.next.fetch_add(1, Ordering::Relaxed)).into_bytes()
    }

    /// A name for a content, in a bucket if there are many.
    fn new_name(&self) -> Result<Vec<u8>, Errno> {
        let name = self.name('u');
        let bucket = self.contents.len() / BUCKET_FILES;
        if bucket == 0 {
            return Ok(name);
        }
        for missing in self.buckets.load(Ordering::Relaxed) + 1..=bucket {
            match self.fs.mkdir(self.dir(), &bucket_name(missing), 0o700) {
                Ok(()) | Err(Errno::EXIST) => self.buckets.store(missing, Ordering::Relaxed),
                Err(e) => return Err(e),
            }
        }
        Ok([&bucket_name(bucket)[..], b"/", &name].concat())
    }

    pub fn writer(&self, id: ContentId, size: u64) -> Result<StagedWriter, StageError> {
        self.create(id.hash_kind(), Some(id), size)
    }

    /// For a content that is to be named before it is finished.
    pub fn nameless_writer(&self, hash: HashKind, size: u64) -> Result<StagedWriter, StageError> {
        self.create(hash, None, size)
    }

    fn create(&self, hash: HashKind, id: Option<ContentId>, size: u64) -> Result<StagedWriter, StageError> {
        let name = self.new_name().map_err(|e| failed(id, e))?;
        let file = self.fs.create(self.dir(), &name).map_err(|e| failed(id, e))?;
        let hasher = ContentHasher::new(hash, size);
        let open = Some((hasher, Slot { name, file: None }, file));
        Ok(StagedWriter { fs: self.fs.clone(), dir: self.dir.clone(), id, size, written: 0, open })
    }

    /// Verifies a content and makes it available. One that is staged already is not staged twice.
    pub fn finish(&mut self, writer: StagedWriter) -> Result<(), StageError> {
        let (id, mut slot, file) = writer.finish()?;
        if self.has(&id) {
            let _ = self.fs.unlink(self.dir(), &slot.name);
            return Ok(());
        }
        if self.open < OPEN_MAX {
            slot.file = Some(file);
            self.open += 1;
        }
        self.give_back(id, slot);
        Ok(())
    }

    pub fn has(&self, id: &ContentId) -> bool {
        self.contents.contains_key(id)
    }

    /// A staged file of this content, out of the stage's books.
    pub fn take(&mut self, id: &ContentId) -> Option<Slot> {
        let slots = self.contents.get_mut(id)?;
        let slot = slots.pop()?;
        if slots.is_empty() {
            self.contents.remove(id);
        }
        self.open -= usize::from(slot.file.is_some());
        Some(slot)
    }

    pub fn give_back(&mut self, id: ContentId, slot: Slot) {
        self.open += usize::from(slot.file.is_some());
        self.contents.entry(id).or_default().push(slot);
    }

    /// The bytes of a staged content that is short enough to be a symlink's target.
    pub fn bytes(&self, id: &ContentId, len_max: usize) -> Result<Option<Vec<u8>>, Errno> {
        let Some(slot) = self.contents.get(id).and_then(|slots| slots.last()) else { return Ok(None) };
        let file = self.fs.open_file(self.dir(), &slot.name)?;
        read_short(&*self.fs, file.as_fd(), len_max).map(Some)
    }

    /// Another staged file of a content that is staged already.
    pub fn duplicate(&self, id: &ContentId) -> Result<Option<Slot>, Errno> {
        let Some(slot) = self.contents.get(id).and_then(|slots| slots.last()) else { return Ok(None) };
        self.copy(self.dir(), &slot.name, id)
    }

    /// Copies what is at `name` in `at` into the stage, `None` unless it turns out to be `id`.
    pub fn copy(&self, at: BorrowedFd<'_>, name: &[u8], id: &ContentId) -> Result<Option<Slot>, Errno> {
        let fs = &*self.fs;
        let stat = match fs.stat_at(at, name) {
            Ok(stat) if stat.kind == Kind::Symlink => {
                let target = fs.read_link(at, name)?;
                return self.copy_bytes(&target, id);
            }
            Ok(stat) if stat.kind == Kind::File => stat,
            _ => return Ok(None),
        };
        let Ok(source) = fs.open_file(at, name) else { return Ok(None) };
        let size = stat.signature.size;
        let copied = (|| {
            let mut writer = self.writer(*id, size)?;
            let mut buffer = vec![0; CHUNK.min(size as usize + 1)];
            loop {
                let len = fs.read(source.as_fd(), &mut buffer).map_err(|e| failed(Some(*id), e))?;
                if len == 0 {
                    return writer.finish();
                }
                writer.write(&buffer[..len])?;
            }
        })();
        whole_or_none(copied)
    }

    fn copy_bytes(&self, bytes: &[u8], id: &ContentId) -> Result<Option<Slot>, Errno> {
        let written = self.writer(*id, bytes.len() as u64).and_then(|mut writer| {
            writer.write(bytes)?;
            writer.finish()
        });
        whole_or_none(written)
    }

    /// Removes one staged file of a content.
    pub fn drop_one(&mut self, id: &ContentId) {
        if let Some(slot) = self.take(id) {
            let _ = self.fs.unlink(self.dir(), &slot.name);
        }
    }

    /// A content that is staged stays until a patch has used it.
    pub fn keep_ahead(&mut self, id: ContentId) {
        if self.contents.contains_key(&id) {
            self.ahead.insert(id);
        }
    }

    /// How many contents wait for their patch.
    pub fn ahead_len(&self) -> usize {
        self.ahead.len()
    }

    /// These need not stay any longer.
    pub fn release_ahead<'a>(&mut self, ids: impl IntoIterator<Item = &'a ContentId>) {
        for id in ids {
            self.ahead.remove(id);
        }
    }

    /// Forgets and removes every content that is staged, but for those that wait for their patch.
    pub fn discard(&mut self) {
        let ahead = &self.ahead;
        let dropped = self.contents.extract_if(|id, _| !ahead.contains(id));
        for slot in dropped.flat_map(|(_, slots)| slots) {
            self.open -= usize::from(slot.file.is_some());
            // What cannot be removed now goes when the workspace is opened the next time.
            let _ = self.fs.unlink(self.dir.as_fd(), &slot.name);
        }
        // Copies a patch that failed made of them.
        for slots in self.contents.values_mut() {
            for slot in slots.drain(1..) {
                self.open -= usize::from(slot.file.is_some());
                let _ = self.fs.unlink(self.dir.as_fd(), &slot.name);
            }
        }
        if self.contents.is_empty() {
            for bucket in 1..=self.buckets.swap(0, Ordering::Relaxed) {
                // One that is not empty is found again when it is next needed.
                let _ = self.fs.rmdir(self.dir.as_fd(), &bucket_name(bucket));
            }
        }
    }

    /// Forgets and removes every content that is staged.
    pub fn clear(&mut self) {
        self.ahead.clear();
        self.discard();
    }
}

fn bucket_name(number: usize) -> Vec<u8> {
    format!("b{number}").into_bytes()
}

/// True for the name of a directory of staged files, right in the stage's directory.
pub(super) fn is_bucket(name: &[u8]) -> bool {
    name.strip_prefix(b"b").is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit))
}

/// A content that is not what it should be is no error here: the source has changed, that is all.
fn whole_or_none(copied: Result<(ContentId, Slot, OwnedFd), StageError>) -> Result<Option<Slot>, Errno> {
    match copied {
        Ok((_, slot, _)) => Ok(Some(slot)),
        Err(StageError::DiskFull) => Err(Errno::NOSPC),
        Err(StageError::Io { source, .. }) => Err(Errno::from_io_error(&source).unwrap_or(Errno::IO)),
        Err(
            StageError::TooLong { .. }
            | StageError::TooShort { .. }
            | StageError::Nameless { .. }
            | StageError::WrongContent { .. },
        ) => Ok(None),
    }
}

/// The content id of what `stat` describes, `None` if it cannot be read whole.
pub(super) fn content_of(
    fs: &dyn WorkspaceFs,
    at: BorrowedFd<'_>,
    name: &[u8],
    stat: &Stat,
    hash: HashKind,
) -> Result<Option<ContentId>, Errno> {
    match stat.kind {
        Kind::Symlink => Ok(Some(ContentId::of(hash, &fs.read_link(at, name)?))),
        Kind::File => match fs.open_file(at, name) {
            Ok(file) => hash_file(fs, file.as_fd(), stat.signature.size, hash),
            Err(Errno::ACCESS | Errno::PERM | Errno::NOENT | Errno::LOOP) => Ok(None),
            Err(e) => Err(e),
        },
        Kind::Dir | Kind::Other => Ok(None),
    }
}

/// Hashes an open file from its beginning, `None` if it does not have `size` bytes.
pub(super) fn hash_file(
    fs: &dyn WorkspaceFs,
    file: BorrowedFd<'_>,
    size: u64,
    hash: HashKind,
) -> Result<Option<ContentId>, Errno> {
    let mut hasher = ContentHasher::new(hash, size);
    let mut buffer = vec![0; CHUNK.min(size as usize + 1)];
    let mut seen = 0;
    loop {
        let len = fs.read(file, &mut buffer)?;
        if len == 0 {
            break;
        }
        seen += len as u64;
        if seen > size {
            return Ok(None);
        }
        hasher.update(&buffer[..len]);
    }
    let id = hasher.finish();
    Ok((seen == size && !is_null(&id)).then_some(id))
}

fn read_short(fs: &dyn WorkspaceFs, file: BorrowedFd<'_>, len_max: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while bytes.len() <= len_max {
        match fs.read(file, &mut buffer)? {
            0 => break,
            len => bytes.extend_from_slice(&buffer[..len]),
        }
    }
    Ok(bytes)
}

/// The id of bytes made to collide: it must never count as equal to anything.
fn is_null(id: &ContentId) -> bool {
    id.as_bytes().iter().all(|b| *b == 0)
}

fn failed(id: Option<ContentId>, errno: Errno) -> StageError {
    match errno {
        Errno::NOSPC | Errno::DQUOT => StageError::DiskFull,
        _ => StageError::Io { id, source: errno.into() },
    }
}
