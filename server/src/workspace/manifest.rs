//! The manifest on disk: which paths are ours and what we wrote there.
//!
//! A checkpoint holds the whole tree; the log it names holds what changed since. A new checkpoint
//! names a new, empty log, so a crash between the two steps replays nothing onto the wrong tree.
//! Bytes that cannot be read are never taken for "nothing changed": a damaged checkpoint means that
//! every file is foreign until it has been compared.
//!
//! There is no mark that says "this workspace was not closed": each log names the run of the kernel it was
//! written in, and says the same better. While the kernel runs, nothing written is lost, so after a crash of
//! the process alone every recorded signature holds and nothing is read again. After a power cut a path is
//! trusted only if no log record names it and its signature is the checkpoint's, which lies behind a barrier
//! (everything was synced before it was written). A record the power cut took away needs no mark either:
//! the file it told of has another signature than the checkpoint's, so it is read, and what it holds is ours
//! only if checkpoint or log name that content. A mark would add an fsync to each opening and trust no less.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use gitsync_core::model::{ContentId, Dir, HashKind, Leaf, Mode, RelPath};
use rustix::io::{Errno, Result};
use serde::{Deserialize, Serialize};

use super::fs::WorkspaceFs;
use super::log::{self, Content, Outcome, Record};

const CHECKPOINT: &[u8] = b"manifest";
const CHECKPOINT_NEW: &[u8] = b"manifest.new";
const MAGIC: &[u8; 8] = b"gsmanif1";
/// A log longer than this, or than half the checkpoint, is folded into a new checkpoint.
const LOG_BYTES_MAX: u64 = 4 << 20;
/// One longer than this does not wait for a quiet moment, in bytes.
const LOG_BYTES_OVERDUE: u64 = 4 * LOG_BYTES_MAX;
/// A checkpoint for which the log got longer than this while it was being written is given up, in bytes.
const SINCE_BYTES_MAX: usize = 16 << 20;

#[derive(Serialize, Deserialize)]
struct Checkpoint<'a> {
    hash: u8,
    /// Names the log that continues this checkpoint.
    log: u64,
    #[serde(borrow)]
    leaves: Vec<Outcome<'a>>,
}

/// A checkpoint on its way to the disk while work goes on. It lies in the stage, whose leftovers go when the
/// workspace is opened, until it takes the old one's place.
#[derive(Debug)]
struct Beside {
    /// Ends once the checkpoint, and all it vouches for, has reached the disk. Its length.
    writing: JoinHandle<Result<u64>>,
    stage: Arc<OwnedFd>,
    name: Vec<u8>,
    /// What the log got since: the new one begins with it.
    since: Vec<u8>,
}

/// The open log, and how much of it there is.
#[derive(Debug)]
pub(super) struct Manifest {
    fs: Arc<dyn WorkspaceFs>,
    state: Arc<OwnedFd>,
    number: u64,
    log: OwnedFd,
    log_bytes: u64,
    checkpoint_bytes: u64,
    /// An append failed, so the log may end in half a record after which nothing would be read; or memory
    /// knows better than the log.
    broken: bool,
    beside: Option<Beside>,
}

/// What the manifest's files say, before anything is compared with the disk.
#[derive(Debug)]
pub(super) struct Replayed {
    pub tree: Arc<Dir>,
    /// Paths the log names: their signatures may be younger than the last barrier.
    pub logged: BTreeSet<RelPath>,
    /// What else a path may hold, from swaps that were begun and not recorded as done.
    pub unfinished: BTreeMap<RelPath, Vec<(Mode, ContentId)>>,
    /// Stage names those swaps used: what lies there may be bytes nobody else has.
    pub slots: HashMap<Vec<u8>, RelPath>,
    /// The log was written in this run of the kernel.
    pub same_boot: bool,
    /// The checkpoint was there but could not be used.
    pub damaged: bool,
    number: u64,
    log_bytes: u64,
    torn: bool,
    checkpoint_bytes: u64,
}

impl Replayed {
    /// True if the log can simply be continued.
    pub fn can_continue(&self) -> bool {
        let trusted = self.log_bytes == 0 || self.same_boot;
        self.checkpoint_bytes > 0 && !self.torn && !self.damaged && trusted && self.unfinished.is_empty()
    }
}

/// Reads checkpoint and log.
pub(super) fn replay(fs: &dyn WorkspaceFs, state: &OwnedFd, kind: HashKind) -> Result<Replayed> {
    let bytes = read_state(fs, state, CHECKPOINT)?.unwrap_or_default();
    let checkpoint = decode(&bytes, kind);
    let damaged = !bytes.is_empty() && checkpoint.is_none();
    let (tree, number) = checkpoint.unwrap_or_else(|| (Dir::empty(kind), 0));
    let mut out = Replayed {
        tree,
        logged: BTreeSet::new(),
        unfinished: BTreeMap::new(),
        slots: HashMap::new(),
        same_boot: false,
        damaged,
        number,
        log_bytes: 0,
        torn: false,
        checkpoint_bytes: bytes.len() as u64,
    };
    if damaged {
        return Ok(out);
    }
    let bytes = read_state(fs, state, &log_name(number))?.unwrap_or_default();
    let (records, whole) = log::read(&bytes);
    out.log_bytes = whole as u64;
    out.torn = whole < bytes.len();
    // A system that has no such name trusts nothing in a log unread.
    let boot = fs.boot_id();
    for record in records {
        match record {
            Record::Start { boot: theirs } => out.same_boot = !boot.is_empty() && theirs == boot,
            Record::Begin { intents, .. } => {
                for intent in intents {
                    let Ok(path) = RelPath::new(intent.path) else { continue };
                    let contents = [intent.old, intent.new];
                    let known = contents.iter().flatten().filter_map(Content::get);
                    out.slots.extend(intent.slot.map(|slot| (slot.to_vec(), path.clone())));
                    out.unfinished.entry(path).or_default().extend(known);
                }
            }
            Record::Done { outcomes, .. } => {
                out.unfinished.clear();
                out.slots.clear();
                let edits = edits(&outcomes);
                out.logged.extend(edits.iter().map(|(path, _)| path.clone()));
                match out.tree.edit(&edits) {
                    Ok(tree) => out.tree = tree,
                    Err(_) => out.damaged = true,
                }
            }
        }
    }
    if out.damaged {
        out.tree = Dir::empty(kind);
    }
    Ok(out)
}

impl Manifest {
    /// Continues the log that was replayed.
    pub fn resume(fs: Arc<dyn WorkspaceFs>, state: Arc<OwnedFd>, from: &Replayed) -> Result<Self> {
        let log = fs.append(state.as_fd(), &log_name(from.number))?;
        let (log_bytes, checkpoint_bytes) = (from.log_bytes, from.checkpoint_bytes);
        Ok(Self {
            fs,
            state,
            number: from.number,
            log,
            log_bytes,
            checkpoint_bytes,
            broken: false,
            beside: None,
        })
    }

    /// Writes `tree` as a new checkpoint with an empty log.
    pub fn start(
        fs: Arc<dyn WorkspaceFs>,
        state: Arc<OwnedFd>,
        from: &Replayed,
        tree: &Arc<Dir>,
    ) -> Result<Self> {
        // The first checkpoint of a workspace without files vouches for nothing, and replaces none.
        let barrier = from.checkpoint_bytes > 0 || !tree.is_empty();
        let (number, log, checkpoint_bytes) = checkpoint(&*fs, &state, from.number, tree, barrier)?;
        Ok(Self { fs, state, number, log, log_bytes: 0, checkpoint_bytes, broken: false, beside: None })
    }

    pub fn append(&mut self, record: &Record<'_>) -> Result<()> {
        let frame = log::frame(record);
        let written = self.fs.write_all(self.log.as_fd(), &frame);
        self.broken |= written.is_err();
        self.log_bytes += frame.len() as u64;
        if let Some(beside) = &mut self.beside {
            beside.since.extend(&frame);
            if beside.since.len() > SINCE_BYTES_MAX {
                self.give_up_beside();
            }
        }
        written
    }

    /// True if nothing may be appended before there is a new checkpoint.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Memory no longer is what checkpoint and log come to.
    pub fn distrust(&mut self) {
        self.broken = true;
    }

    pub fn wants_checkpoint(&self) -> bool {
        self.broken || self.log_bytes > LOG_BYTES_MAX.min((self.checkpoint_bytes / 2).max(64 << 10))
    }

    /// Work never rests long enough: the log is folded all the same.
    pub fn is_overdue(&self) -> bool {
        !self.broken && self.log_bytes > LOG_BYTES_OVERDUE
    }

    pub fn is_clean(&self) -> bool {
        !self.broken && self.log_bytes == 0
    }

    /// Begins to write `tree`, which is what is held, as a new checkpoint on a thread of its own: its barrier may
    /// take seconds. `name` is free in `stage`.
    pub fn begin_checkpoint(&mut self, tree: &Arc<Dir>, stage: Arc<OwnedFd>, name: Vec<u8>) -> Result<()> {
        // Made here, so that nothing appears in the stage once its session is over.
        let file = self.fs.create(stage.as_fd(), &name)?;
        let (fs, state, tree, number) = (self.fs.clone(), self.state.clone(), tree.clone(), self.number + 1);
        let write = move || {
            fs.sync_fs(state.as_fd())?;
            let bytes = encode(&tree, number);
            fs.write_all(file.as_fd(), &bytes)?;
            fs.sync(file.as_fd())?;
            Ok(bytes.len() as u64)
        };
        let writing = std::thread::Builder::new().name("checkpoint".into()).spawn(write);
        let writing = writing.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::AGAIN))?;
        self.beside = Some(Beside { writing, stage, name, since: Vec::new() });
        Ok(())
    }

    /// True while a checkpoint is being written beside.
    pub fn has_begun(&self) -> bool {
        self.beside.is_some()
    }

    /// Puts a checkpoint that was written beside in its place, if it is all on the disk; true if that was done. One
    /// that failed, or that no longer fits, is dropped.
    pub fn finish_checkpoint(&mut self) -> Result<bool> {
        let Some(beside) = self.beside.take_if(|beside| beside.writing.is_finished()) else {
            return Ok(false);
        };
        let Beside { writing, stage, name, since } = beside;
        let written = writing.join().unwrap_or(Err(Errno::IO));
        let placed = written.and_then(|bytes| {
            if self.broken {
                return Ok(None);
            }
            let number = self.number + 1;
            remove(&*self.fs, &self.state, &log_name(number))?;
            let log = self.fs.create(self.state.as_fd(), &log_name(number))?;
            let mut first = Vec::new();
            if !since.is_empty() {
                first = log::frame(&Record::Start { boot: &self.fs.boot_id() });
                first.extend(since);
                self.fs.write_all(log.as_fd(), &first)?;
            }
            self.fs.rename(stage.as_fd(), &name, self.state.as_fd(), CHECKPOINT)?;
            Ok(Some((log, first.len() as u64, bytes)))
        });
        let Ok(Some((log, log_bytes, checkpoint_bytes))) = placed else {
            // What cannot be removed goes when the workspace is opened the next time.
            let _ = self.fs.unlink(stage.as_fd(), &name);
            return placed.map(|_| false);
        };
        let old = self.number;
        self.number += 1;
        (self.log, self.log_bytes, self.checkpoint_bytes) = (log, log_bytes, checkpoint_bytes);
        let (fs, state) = (self.fs.clone(), self.state.clone());
        // The old log is of use until the new checkpoint's name is on the disk. Left behind, it harms nobody.
        let _ = std::thread::Builder::new()
            .spawn(move || fs.sync_dir(state.as_fd()).and_then(|()| remove(&*fs, &state, &log_name(old))));
        Ok(true)
    }

    fn give_up_beside(&mut self) {
        if let Some(Beside { stage, name, .. }) = self.beside.take() {
            // Its thread goes on writing into nothing.
            let _ = self.fs.unlink(stage.as_fd(), &name);
        }
    }

    /// Writes `tree` as a new checkpoint, here and now.
    pub fn checkpoint(&mut self, tree: &Arc<Dir>) -> Result<()> {
        self.give_up_beside();
        let (number, log, checkpoint_bytes) = checkpoint(&*self.fs, &self.state, self.number, tree, true)?;
        (self.number, self.log, self.checkpoint_bytes) = (number, log, checkpoint_bytes);
        (self.log_bytes, self.broken) = (0, false);
        Ok(())
    }

    /// Every log begins with the run of the kernel it was written in.
    pub fn append_start(&mut self) -> Result<()> {
        if self.log_bytes > 0 {
            return Ok(());
        }
        let boot = self.fs.boot_id();
        self.append(&Record::Start { boot: &boot })
    }
}

/// With a `barrier` everything written so far reaches the disk first: the signatures in a checkpoint are trusted
/// after a power cut. Returns the new log's number, the log, and the checkpoint's length.
fn checkpoint(
    fs: &dyn WorkspaceFs,
    state: &OwnedFd,
    old: u64,
    tree: &Arc<Dir>,
    barrier: bool,
) -> Result<(u64, OwnedFd, u64)> {
    let at = state.as_fd();
    if barrier {
        fs.sync_fs(at)?;
    }
    let number = old + 1;
    let name = log_name(number);
    remove(fs, state, &name)?;
    let log = fs.create(at, &name)?;
    let bytes = encode(tree, number);
    remove(fs, state, CHECKPOINT_NEW)?;
    let file = fs.create(at, CHECKPOINT_NEW)?;
    fs.write_all(file.as_fd(), &bytes)?;
    if barrier {
        fs.sync(file.as_fd())?;
    }
    fs.rename(at, CHECKPOINT_NEW, at, CHECKPOINT)?;
    if barrier {
        fs.sync_dir(at)?;
    }
    remove(fs, state, &log_name(old))?;
    Ok((number, log, bytes.len() as u64))
}

fn remove(fs: &dyn WorkspaceFs, state: &OwnedFd, name: &[u8]) -> Result<()> {
    match fs.unlink(state.as_fd(), name) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e),
    }
}

fn log_name(number: u64) -> Vec<u8> {
    format!("log-{number}").into_bytes()
}

/// Magic, CRC-32 of the rest, the rest.
fn encode(tree: &Arc<Dir>, log: u64) -> Vec<u8> {
    let mut leaves = Vec::with_capacity(tree.leaves() as usize);
    tree.for_each_leaf(&mut |path, leaf| leaves.push((path, *leaf)));
    let checkpoint = Checkpoint {
        hash: tree.hash_kind() as u8,
        log,
        leaves: leaves.iter().map(|(path, leaf)| Outcome::of(path, Some(leaf))).collect(),
    };
    let mut bytes = MAGIC.to_vec();
    bytes.extend([0; 4]);
    let mut bytes = postcard::to_extend(&checkpoint, bytes).expect("plain values can be written");
    let crc = crc32fast::hash(&bytes[12..]);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8], kind: HashKind) -> Option<(Arc<Dir>, u64)> {
    let (crc, body) = bytes.strip_prefix(MAGIC)?.split_first_chunk::<4>()?;
    if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
        return None;
    }
    let checkpoint: Checkpoint<'_> = postcard::from_bytes(body).ok()?;
    if checkpoint.hash != kind as u8 {
        return None;
    }
    let tree = Dir::empty(kind).edit(&edits(&checkpoint.leaves)).ok()?;
    Some((tree, checkpoint.log))
}

fn edits(outcomes: &[Outcome<'_>]) -> Vec<(RelPath, Option<Leaf>)> {
    let mut edits: Vec<_> = outcomes
        .iter()
        .filter_map(|o| Some((RelPath::new(o.path).ok()?, o.leaf.as_ref().and_then(|leaf| leaf.get()))))
        .collect();
    edits.sort_by(|a, b| a.0.cmp(&b.0));
    edits.dedup_by(|a, b| a.0 == b.0);
    edits
}

/// A whole file of our state directory, `None` if there is none.
pub(super) fn read_state(fs: &dyn WorkspaceFs, state: &OwnedFd, name: &[u8]) -> Result<Option<Vec<u8>>> {
    let file = match fs.open_file(state.as_fd(), name) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match fs.read(file.as_fd(), &mut buffer)? {
            0 => return Ok(Some(bytes)),
            len => bytes.extend_from_slice(&buffer[..len]),
        }
    }
}
