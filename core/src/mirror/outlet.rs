//! Turns patches into messages and hands them to the stream, as fast as it takes them.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::session::Outgoing;
use crate::model::{Change, ChangeKind, ContentHasher, ContentId, EventKind, RelPath, Snapshot};
use crate::repo::content::{ContentCache, KEEP_BYTES};
use crate::repo::disk::{Found, ReadOutcome, SharedDisk};
use crate::wire::{CHUNK_BYTES, Chunk, FRAME_BYTES, Frame, PatchHeader, ToServer, proto};

/// HTTP/2 and gRPC framing of one message, in bytes.
const FRAMING_BYTES: u64 = 14;
/// Below this many bytes of contents a patch is sent without progress reports.
const PROGRESS_FROM: u64 = 4 << 20;
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Sends one target's messages. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Outlet {
    pub contents: Arc<ContentCache>,
    pub disk: Arc<SharedDisk>,
    /// Bytes handed to the transport since they were last asked for.
    pub wire_bytes: Arc<AtomicU64>,
    pub progress: mpsc::UnboundedSender<EventKind>,
}

/// Why a patch did not go out whole.
#[derive(Debug)]
pub enum SendError {
    /// The stream has ended; whoever reads it learns why.
    Closed,
    /// These files do not hold what the snapshot says any more.
    Stale(Vec<RelPath>),
}

impl Outlet {
    pub async fn say(&self, stream: &Stream, message: ToServer) -> Result<(), SendError> {
        self.send(stream, message).await.map(drop)
    }

    /// Sends a patch or an answer whole. Gives back the bytes it took.
    pub async fn send_outgoing(&self, stream: &Stream, outgoing: &Outgoing) -> Result<u64, SendError> {
        match outgoing {
            Outgoing::Patch { header, changes, parent } => {
                self.send_patch(stream, *header, changes, parent.as_ref()).await
            }
            Outgoing::Answer { changes, wanted, extra, snapshot, last, .. } => {
                let wanted: Vec<&Change> = wanted.iter().filter_map(|i| changes.get(*i as usize)).collect();
                let mut frames = Frames::new(self, stream, None);
                for change in self.removals_of(extra, snapshot)? {
                    frames.push_change(change).await?;
                }
                self.send_contents(&mut frames, &wanted).await?;
                frames.finish(*last).await
            }
        }
    }

    async fn send_patch(
        &self,
        stream: &Stream,
        header: PatchHeader,
        changes: &[Change],
        parent: Option<&Snapshot>,
    ) -> Result<u64, SendError> {
        let mut frames = Frames::new(self, stream, Some(header));
        for change in changes {
            frames.push_change(change.clone()).await?;
        }
        frames.frame.changes_end = true;
        // A whole patch waits for the server to say which contents it lacks.
        let Some(parent) = parent else { return frames.finish(false).await };
        let needed: Vec<&Change> = changes.iter().filter(|c| !has_content(parent, c)).collect();
        self.send_contents(&mut frames, &needed).await?;
        frames.finish(true).await
    }

    /// Sends each content once, whatever the number of paths that have it.
    async fn send_contents(&self, frames: &mut Frames<'_>, changes: &[&Change]) -> Result<(), SendError> {
        let mut seen = HashSet::new();
        let puts = changes.iter().filter_map(|c| match c.kind {
            ChangeKind::Put { id, size, .. } => Some((&c.path, id, size)),
            _ => None,
        });
        let puts: Vec<_> = puts.filter(|(_, id, _)| seen.insert(*id)).collect();
        let total: u64 = puts.iter().map(|(_, _, size)| size).sum();
        let (mut done, mut told) = (0, Instant::now());
        for (path, id, size) in puts {
            self.send_content(frames, path, id, size).await?;
            done += size;
            if total >= PROGRESS_FROM && (told.elapsed() >= PROGRESS_EVERY || done == total) {
                told = Instant::now();
                let report = EventKind::Progress { stage: "sending", done, total, unit: "bytes" };
                let _ = self.progress.send(report);
            }
        }
        Ok(())
    }

    async fn send_content(
        &self,
        frames: &mut Frames<'_>,
        path: &RelPath,
        id: ContentId,
        size: u64,
    ) -> Result<(), SendError> {
        if size > KEEP_BYTES {
            return self.send_large(frames, path, id, size).await;
        }
        let bytes = match self.contents.get(&id) {
            Some(bytes) => bytes,
            None => self.read_again(path, id).await?,
        };
        let mut offset = 0;
        loop {
            let end = bytes.len().min(offset + CHUNK_BYTES);
            let piece = bytes.slice(offset..end);
            frames.push_chunk(Chunk::encode(id, size, offset as u64, piece)).await?;
            offset = end;
            if offset == bytes.len() {
                return Ok(());
            }
        }
    }

    async fn read_again(&self, path: &RelPath, id: ContentId) -> Result<Bytes, SendError> {
        let (disk, at) = (self.disk.get(), path.clone());
        let read = spawn_blocking(move || disk.read(&at, id.hash_kind())).await;
        match read {
            Ok(ReadOutcome::Read(leaf, Some(bytes))) if leaf.id == id => Ok(bytes),
            _ => Err(SendError::Stale(vec![path.clone()])),
        }
    }

    /// Reads a file piece by piece. Its last piece is sent only if all of it is what it should be.
    async fn send_large(
        &self,
        frames: &mut Frames<'_>,
        path: &RelPath,
        id: ContentId,
        size: u64,
    ) -> Result<(), SendError> {
        let stale = || SendError::Stale(vec![path.clone()]);
        let (disk, at) = (self.disk.get(), path.clone());
        let opened = spawn_blocking(move || disk.open_file(&at)).await;
        let Ok(Ok(file)) = opened else { return Err(stale()) };
        let mut reader =
            LargeReader { file, hasher: Some(ContentHasher::new(id.hash_kind(), size)), offset: 0, id, size };
        while reader.offset < size {
            let read = spawn_blocking(move || {
                let chunk = reader.next();
                (reader, chunk)
            });
            let Ok((back, Some(chunk))) = read.await else { return Err(stale()) };
            reader = back;
            frames.push_chunk(chunk).await?;
        }
        Ok(())
    }

    /// The server holds paths that the snapshot lacks. Those that left the set are released, those that are
    /// gone deleted. A file that is there, of which the snapshot says neither, was made since or left the set
    /// before this program started: only a look at it tells, so the patch is stale.
    fn removals_of(&self, extra: &[RelPath], snapshot: &Snapshot) -> Result<Vec<Change>, SendError> {
        let (mut removals, mut unclear, disk) = (Vec::new(), Vec::new(), self.disk.get());
        for path in extra {
            let kind = snapshot.removal_of(path);
            let there = || matches!(disk.find(path), Ok(Found::File { .. } | Found::Symlink { .. }));
            if kind == ChangeKind::Delete && there() {
                unclear.push(path.clone());
            }
            removals.push(Change { path: path.clone(), kind });
        }
        if unclear.is_empty() { Ok(removals) } else { Err(SendError::Stale(unclear)) }
    }

    async fn send(&self, stream: &Stream, message: ToServer) -> Result<u64, SendError> {
        let message = proto::ClientMessage::from(message);
        let bytes = message.encoded_len() as u64 + FRAMING_BYTES;
        stream.send(message).await.map_err(|_| SendError::Closed)?;
        self.wire_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(bytes)
    }
}

/// Where messages go. Bounded: a slow transport holds the sender back, so memory stays bounded too.
pub type Stream = mpsc::Sender<proto::ClientMessage>;

/// True if the server has the change's content in place: only the mode changed, or nothing is put.
fn has_content(parent: &Snapshot, change: &Change) -> bool {
    match change.kind {
        ChangeKind::Put { id, .. } => parent.root().get(&change.path).is_some_and(|leaf| leaf.id == id),
        _ => true,
    }
}

/// Fills frames and sends each when it is full.
struct Frames<'a> {
    outlet: &'a Outlet,
    stream: &'a Stream,
    /// Goes with the first frame.
    header: Option<PatchHeader>,
    frame: Frame,
    bytes: usize,
    sent: u64,
}

impl<'a> Frames<'a> {
    fn new(outlet: &'a Outlet, stream: &'a Stream, header: Option<PatchHeader>) -> Self {
        Self { outlet, stream, header, frame: Frame::default(), bytes: 0, sent: 0 }
    }

    async fn push_change(&mut self, change: Change) -> Result<(), SendError> {
        // Two ids and a few tags come on top of the path.
        self.make_room(change.path.as_bytes().len() + 64).await?;
        self.frame.changes.push(change);
        Ok(())
    }

    async fn push_chunk(&mut self, chunk: Chunk) -> Result<(), SendError> {
        self.make_room(chunk.data.len() + 64).await?;
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
        let message = match self.header.take() {
            Some(header) => ToServer::Patch(header, frame),
            None => ToServer::Frame(frame),
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

struct LargeReader {
    file: File,
    hasher: Option<ContentHasher>,
    offset: u64,
    id: ContentId,
    size: u64,
}

impl LargeReader {
    /// The next chunk; `None` if the file is shorter, longer or other than it should be.
    fn next(&mut self) -> Option<Chunk> {
        let want = (self.size - self.offset).min(CHUNK_BYTES as u64) as usize;
        let mut piece = vec![0; want];
        self.file.read_exact(&mut piece).ok()?;
        self.hasher.as_mut()?.update(&piece);
        let offset = self.offset;
        self.offset += want as u64;
        if self.offset == self.size {
            let longer = self.file.read(&mut [0]).ok()? != 0;
            if longer || self.hasher.take()?.finish() != self.id {
                return None;
            }
        }
        Some(Chunk::encode(self.id, self.size, offset, piece.into()))
    }
}
