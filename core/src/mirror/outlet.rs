//! Turns patches into messages and hands them to the stream, as fast as it takes them.

mod large;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;
use prost::Message;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

use super::credit::Credit;
use super::delta::Way;
use super::lot::{self, Encoder, Lot, LotChunks};
use super::session::Outgoing;
use crate::model::{Change, ChangeKind, ContentId, EventKind, Needed, RelPath, Snapshot};
use crate::repo::blocks::BlockCache;
use crate::repo::content::ContentCache;
use crate::repo::disk::{Found, SharedDisk};
use crate::wire::{Chunk, FRAME_BYTES, Frame, PatchHeader, ToServer, proto};

/// HTTP/2 and gRPC framing of one message, in bytes.
const FRAMING_BYTES: u64 = 14;
/// Below this many bytes of contents a patch is sent without progress reports.
const PROGRESS_FROM: u64 = 4 << 20;
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// Encoded contents kept for a repo's other targets.
const SHARED_BYTES: usize = 8 << 20;
/// What keeping one of them takes, however small it is.
const ENCODED_BYTES: usize = 256;

/// Sends one target's messages. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Outlet {
    pub contents: Arc<ContentCache>,
    pub blocks: Arc<BlockCache>,
    /// Encoded contents, for this and the repo's other targets.
    pub encoded: Arc<Encoded>,
    pub disk: Arc<SharedDisk>,
    /// Bytes handed to the transport since they were last asked for.
    pub wire_bytes: Arc<AtomicU64>,
    /// What may still go ahead of patches.
    pub credit: Arc<Credit>,
    /// How far the server of the stream is.
    pub way: Way,
    pub progress: mpsc::UnboundedSender<EventKind>,
}

/// Encoded contents by what they are and what they were made from: sent to several servers, each is encoded once.
#[derive(Debug)]
pub struct Encoded(Mutex<EncodedInner>);

#[derive(Debug)]
struct EncodedInner {
    chunks: LruCache<EncodedKey, Arc<Vec<Chunk>>>,
    bytes: usize,
}

pub(super) type EncodedKey = (ContentId, Option<(ContentId, RelPath)>);

impl Default for Encoded {
    fn default() -> Self {
        Self(Mutex::new(EncodedInner { chunks: LruCache::unbounded(), bytes: 0 }))
    }
}

impl Encoded {
    pub(super) fn get_or(&self, key: EncodedKey, encode: impl FnOnce() -> Vec<Chunk>) -> Arc<Vec<Chunk>> {
        if let Some(chunks) = self.lock().chunks.get(&key) {
            return chunks.clone();
        }
        let chunks = Arc::new(encode());
        let bytes = |chunks: &[Chunk]| {
            ENCODED_BYTES + chunks.iter().map(|c| c.data.len() + size_of::<Chunk>()).sum::<usize>()
        };
        let mut inner = self.lock();
        inner.bytes += bytes(&chunks);
        if let Some(old) = inner.chunks.put(key, chunks.clone()) {
            inner.bytes -= bytes(&old);
        }
        while inner.bytes > SHARED_BYTES {
            let Some((_, dropped)) = inner.chunks.pop_lru() else { break };
            inner.bytes -= bytes(&dropped);
        }
        chunks
    }

    /// A panic elsewhere cannot leave a cache wrong, only less full.
    fn lock(&self) -> std::sync::MutexGuard<'_, EncodedInner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A lot that is on its way to being sent.
enum Begun {
    Small { bytes: u64, chunks: Chunks },
    Large(Needed),
}

enum Chunks {
    Ready(LotChunks),
    Coming(JoinHandle<LotChunks>),
}

/// Why a patch did not go out whole.
#[derive(Debug)]
pub enum SendError {
    /// The stream has ended; whoever reads it learns why.
    Closed,
    /// These files do not hold what the snapshot says any more.
    Stale(Vec<RelPath>),
    /// A file that was followed while it was read changed meanwhile, or is what it was, or its blocks are not known.
    Void,
}

impl Outlet {
    pub async fn say(&self, stream: &Stream, message: ToServer) -> Result<(), SendError> {
        self.send(stream, message).await.map(drop)
    }

    /// Sends a patch or an answer whole. Gives back the bytes it took.
    pub async fn send_outgoing(&self, stream: &Stream, outgoing: &Outgoing) -> Result<u64, SendError> {
        match outgoing {
            Outgoing::Patch { header, changes, contents, plain } => {
                let mut frames = Frames::new(self, stream, Lane::Patch(Some(*header)));
                for change in &**changes {
                    frames.push_change(change.clone()).await?;
                }
                frames.frame.changes_end = true;
                // A whole patch waits for the server to say which contents it lacks.
                let Some(contents) = contents else { return frames.finish(false).await };
                self.send_contents(&mut frames, contents.to_vec(), *plain).await?;
                frames.finish(true).await
            }
            Outgoing::Answer { changes, wanted, extra, snapshot, last, .. } => {
                let wanted = wanted.iter().filter_map(|i| changes.get(*i as usize));
                let wanted: Vec<Needed> = wanted.filter_map(|change| whole(change, snapshot)).collect();
                let mut frames = Frames::new(self, stream, Lane::Patch(None));
                for change in self.removals_of(extra, snapshot)? {
                    frames.push_change(change).await?;
                }
                self.send_contents(&mut frames, wanted, true).await?;
                frames.finish(*last).await
            }
        }
    }

    /// Sends contents ahead of the patches that will name them, as the server gives credit for.
    pub async fn send_ahead(
        &self,
        stream: &Stream,
        contents: &[Needed],
        plain: bool,
    ) -> Result<u64, SendError> {
        let mut frames = Frames::new(self, stream, Lane::Ahead);
        self.send_contents(&mut frames, contents.to_vec(), plain).await?;
        frames.finish(false).await
    }

    /// Sends each content once, whatever the number of paths that have it.
    async fn send_contents(
        &self,
        frames: &mut Frames<'_>,
        mut contents: Vec<Needed>,
        plain: bool,
    ) -> Result<(), SendError> {
        // In place: a first sync names every file here.
        let mut seen = HashSet::new();
        contents.retain(|content| seen.insert(content.id));
        drop(seen);
        let mut progress = Progress::new(contents.iter().map(|c| c.size).sum());
        let mut lots = lot::lots(contents).into_iter();
        let mut next = lots.next().map(|lot| self.begin(lot, plain));
        while let Some(begun) = next {
            // The next one is read while this one is sent.
            next = lots.next().map(|lot| self.begin(lot, plain));
            match begun {
                Begun::Small { bytes, chunks } => {
                    let chunks = match chunks {
                        Chunks::Ready(chunks) => chunks,
                        Chunks::Coming(task) => task.await.map_err(|_| SendError::Closed)?,
                    };
                    for chunk in chunks.map_err(SendError::Stale)?.iter().flat_map(|chunks| chunks.iter()) {
                        frames.push_chunk(chunk.clone()).await?;
                    }
                    progress.reached(bytes, &self.progress);
                }
                Begun::Large(content) => {
                    self.send_large(frames, &content, plain, &mut progress).await?;
                    progress.reached(content.size, &self.progress);
                }
            }
        }
        Ok(())
    }

    fn begin(&self, lot: Lot, plain: bool) -> Begun {
        let lot = match lot {
            Lot::Small(lot) => lot,
            Lot::Large(content) => return Begun::Large(content),
        };
        let bytes = lot.iter().map(|content| content.size).sum();
        let encoder = Encoder {
            contents: self.contents.clone(),
            encoded: self.encoded.clone(),
            disk: self.disk.get(),
            way: self.way,
            plain,
        };
        let chunks = match encoder.is_quick(&lot) {
            true => Chunks::Ready(encoder.encode(&lot)),
            false => Chunks::Coming(spawn_blocking(move || encoder.encode(&lot))),
        };
        Begun::Small { bytes, chunks }
    }

    /// The server holds paths that the snapshot lacks. Those that left the set are released, those that are
    /// gone deleted. A file that is there, of which the snapshot says neither, was made since or left the set
    /// before this program started: only a look at it tells, so the patch is stale.
    fn removals_of(&self, extra: &[RelPath], snapshot: &Snapshot) -> Result<Vec<Change>, SendError> {
        let (mut removals, mut unclear, disk) = (Vec::new(), Vec::new(), self.disk.get());
        let withheld = snapshot.withheld();
        let is_withheld = |path: &RelPath| {
            withheld.contains_key(path) || path.ancestors().any(|above| withheld.contains_key(&above))
        };
        for path in extra {
            let kind = match is_withheld(path) {
                // Unknown is not deleted: the server's file stays, and is compared when it can be read here again.
                true => ChangeKind::Release,
                false => snapshot.removal_of(path),
            };
            let there = || matches!(disk.find(path), Ok(Found::File { .. } | Found::Symlink { .. }));
            if kind == ChangeKind::Delete && there() {
                unclear.push(path.clone());
            }
            removals.push(Change { path: path.clone(), kind });
        }
        if unclear.is_empty() { Ok(removals) } else { Err(SendError::Stale(unclear)) }
    }

    /// Sends a message that waits for everything else, as the server gives credit for. Gives back the bytes it took,
    /// which are not counted with those of the patches.
    pub async fn send_behind(
        &self,
        stream: &Stream,
        message: ToServer,
        weight: u64,
    ) -> Result<u64, SendError> {
        let (message, bytes) = pack_up(message);
        self.credit.spend(weight, stream).await.ok_or(SendError::Closed)?.send(message);
        Ok(bytes)
    }

    async fn send(&self, stream: &Stream, message: ToServer) -> Result<u64, SendError> {
        let (message, bytes) = pack_up(message);
        stream.send(message).await.map_err(|_| SendError::Closed)?;
        self.wire_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(bytes)
    }
}

/// A message for the transport, and the bytes it takes there.
fn pack_up(message: ToServer) -> (proto::ClientMessage, u64) {
    let message = proto::ClientMessage::from(message);
    let bytes = message.encoded_len() as u64 + FRAMING_BYTES;
    (message, bytes)
}

/// Where messages go. Bounded: a slow transport holds the sender back, so memory stays bounded too.
pub type Stream = mpsc::Sender<proto::ClientMessage>;

/// What a change of a whole patch puts, as the snapshot has it.
fn whole(change: &Change, snapshot: &Snapshot) -> Option<Needed> {
    let ChangeKind::Put { id, size, .. } = change.kind else { return None };
    let signature = snapshot.root().get(&change.path).map(|leaf| leaf.signature).unwrap_or_default();
    Some(Needed { path: change.path.clone(), id, size, signature, base: None })
}

/// Tells how much of some contents is on its way.
struct Progress {
    total: u64,
    done: u64,
    told: Instant,
}

impl Progress {
    fn new(total: u64) -> Self {
        Self { total, done: 0, told: Instant::now() }
    }

    /// A content of this size is done.
    fn reached(&mut self, size: u64, to: &mpsc::UnboundedSender<EventKind>) {
        self.done += size;
        self.tell(0, to);
    }

    /// So much of the next one is.
    fn tell(&mut self, part: u64, to: &mpsc::UnboundedSender<EventKind>) {
        let (done, total) = (self.done + part, self.total);
        if total >= PROGRESS_FROM && (self.told.elapsed() >= PROGRESS_EVERY || self.done == total) {
            self.told = Instant::now();
            let _ = to.send(EventKind::Progress { stage: "sending", done, total, unit: "bytes" });
        }
    }
}

/// What a frame is part of.
enum Lane {
    /// A patch; its header goes with the first frame.
    Patch(Option<PatchHeader>),
    /// Contents ahead of patches.
    Ahead,
}

/// Fills frames and sends each when it is full.
struct Frames<'a> {
    outlet: &'a Outlet,
    stream: &'a Stream,
    lane: Lane,
    frame: Frame,
    bytes: usize,
    sent: u64,
}

impl<'a> Frames<'a> {
    fn new(outlet: &'a Outlet, stream: &'a Stream, lane: Lane) -> Self {
        Self { outlet, stream, lane, frame: Frame::default(), bytes: 0, sent: 0 }
    }

    async fn push_change(&mut self, change: Change) -> Result<(), SendError> {
        // Two ids and a few tags come on top of the path.
        self.make_room(change.path.as_bytes().len() + 64).await?;
        self.frame.changes.push(change);
        Ok(())
    }

    async fn push_chunk(&mut self, chunk: Chunk) -> Result<(), SendError> {
        self.make_room(chunk.weight() as usize).await?;
        self.frame.contents.push(chunk);
        Ok(())
    }

    async fn make_room(&mut self, bytes: usize) -> Result<(), SendError> {
        if self.bytes > 0 && self.bytes + bytes > FRAME_BYTES {
            self.flush().await?;
        }
        self.bytes += bytes;
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), SendError> {
        let frame = std::mem::take(&mut self.frame);
        self.bytes = 0;
        let message = match &mut self.lane {
            Lane::Patch(header) => match header.take() {
                Some(header) => ToServer::Patch(header, frame),
                None => ToServer::Frame(frame),
            },
            Lane::Ahead if frame.contents.is_empty() => return Ok(()),
            Lane::Ahead => {
                let weight = frame.contents.iter().map(Chunk::weight).sum();
                let message = ToServer::Ahead { contents: frame.contents };
                let bytes = self.outlet.send_behind(self.stream, message, weight).await?;
                self.outlet.wire_bytes.fetch_add(bytes, Ordering::Relaxed);
                self.sent += bytes;
                return Ok(());
            }
        };
        self.sent += self.outlet.send(self.stream, message).await?;
        Ok(())
    }

    async fn finish(mut self, end: bool) -> Result<u64, SendError> {
        self.frame.end = end;
        self.flush().await?;
        Ok(self.sent)
    }
}
