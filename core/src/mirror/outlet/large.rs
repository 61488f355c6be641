//! Large contents: by what changed of them, in pieces, read from the disk as they go.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::spawn_blocking;

use super::{Frames, Lane, Outlet, Progress, SendError, Stream};
use crate::mirror::delta::{self, Name, Target};
use crate::model::{ContentHasher, ContentId, Leaf, Needed, RelPath};
use crate::repo::blocks::{Part, beyond};
use crate::repo::disk;
use crate::repo::reading::Reading;
use crate::wire::{CHUNK_BYTES, Chunk, Forget, ToServer};

/// Bytes of one piece that is copied from what the server has: a few milliseconds of its time.
const COPY_BYTES: usize = 1 << 20;

impl Outlet {
    /// Sends what changed of a large file, or all of it. Its last piece is sent only if the file is still what it was.
    pub(super) async fn send_large(
        &self,
        frames: &mut Frames<'_>,
        content: &Needed,
        plain: bool,
        progress: &mut Progress,
    ) -> Result<(), SendError> {
        let Needed { path, id, size, .. } = content;
        let stale = || SendError::Stale(vec![path.clone()]);
        let described = content.base.filter(|_| !plain).and_then(|(base, _)| {
            let parts = self.parts(id, &base)?;
            delta::is_worth_it(&parts, *size).then_some((base, parts))
        });
        let (base, parts) = match described {
            Some((base, parts)) => (Some(base), parts),
            None => (None, vec![Part::New { new: 0..*size }]),
        };
        let mut reader = self.reader(path).await.ok_or_else(stale)?;
        // Only a reader of every byte can hash them; who skips some trusts the file's signature. That of the moment of
        // a write may be that of two states.
        if base.is_none() && !content.signature.is_trusted() {
            reader.hasher = Some(ContentHasher::new(id.hash_kind(), *size));
        }
        let target = Target { path, name: Name::Known(*id), size: *size, way: self.way };
        let mut sending = Sending { target, base, reader, sent: 0 };
        sending.send(self, frames, parts, Some(content), progress).await?.ok_or_else(stale)
    }

    /// Sends what becomes known of a large file while it is read, and the rest once it was. Its last piece, which names
    /// it, is sent only if the file is still what was read. Of what comes to nothing the server hears right behind its
    /// pieces: nothing else need follow that would give it up.
    pub async fn follow(&self, stream: &Stream, reading: Reading) -> Result<ContentId, SendError> {
        let followed = self.follow_to_the_end(stream, reading).await;
        if matches!(followed, Err(SendError::Void)) {
            self.say(stream, ToServer::Forget(Forget { ids: Vec::new(), nameless: true })).await?;
        }
        followed
    }

    async fn follow_to_the_end(&self, stream: &Stream, mut reading: Reading) -> Result<ContentId, SendError> {
        let (path, size, base) = (reading.path.clone(), reading.size, reading.base);
        let mut frames = Frames::new(self, stream, Lane::Ahead);
        let mut progress = Progress::new(size);
        let reader = self.reader(&path).await.ok_or(SendError::Void)?;
        let target = Target { path: &path, name: Name::Late(None), size, way: self.way };
        let mut sending = Sending { target, base: Some(base), reader, sent: 0 };
        let Leaf { id, signature, .. } = loop {
            let known = reading.known();
            if let Some(leaf) = known.leaf {
                break leaf;
            }
            let lead = beyond(&known.lead, sending.sent);
            sending.send(self, &mut frames, lead, None, &mut progress).await?.ok_or(SendError::Void)?;
            frames.flush().await?;
            if !reading.goes_on().await {
                return Err(SendError::Void);
            }
        };
        if id == base {
            return Err(SendError::Void);
        }
        let parts = self.parts(&id, &base).ok_or(SendError::Void)?;
        let rest = beyond(&parts, sending.sent);
        sending.target.name = Name::Late(Some(id));
        let content = Needed { path: path.clone(), id, size, signature, base: None };
        sending.send(self, &mut frames, rest, Some(&content), &mut progress).await?.ok_or(SendError::Void)?;
        progress.reached(size, &self.progress);
        frames.finish(false).await?;
        Ok(id)
    }

    /// How a content can be made from another, if the blocks of both are known.
    fn parts(&self, id: &ContentId, base: &ContentId) -> Option<Vec<Part>> {
        Some(self.blocks.get(id)?.made_from(&*self.blocks.get(base)?))
    }

    async fn reader(&self, path: &RelPath) -> Option<LargeReader> {
        let (disk, path) = (self.disk.get(), path.clone());
        let file = spawn_blocking(move || disk.open_file(&path)).await.ok()?.ok()?;
        Some(LargeReader { file: file.into(), hasher: None })
    }
}

/// One large content on its way.
struct Sending<'a> {
    target: Target<'a>,
    /// What the parts that stayed the same are in.
    base: Option<ContentId>,
    reader: LargeReader,
    /// Bytes of the content.
    sent: u64,
}

impl Sending<'_> {
    /// Sends these parts, which follow what was sent. The last piece of them is the content's if there is a `content`,
    /// and goes only if the file still holds that. `None` if it does not.
    async fn send(
        &mut self,
        outlet: &Outlet,
        frames: &mut Frames<'_>,
        parts: Vec<Part>,
        content: Option<&Needed>,
        progress: &mut Progress,
    ) -> Result<Option<()>, SendError> {
        let last = parts.len().saturating_sub(1);
        for (i, part) in parts.into_iter().enumerate() {
            let ends = content.filter(|_| i == last);
            match (part, self.base) {
                (Part::Same { old }, Some(base)) => {
                    if ends.is_some_and(|content| !self.reader.still_reads(content)) {
                        return Ok(None);
                    }
                    for start in old.clone().step_by(COPY_BYTES) {
                        let piece = start..old.end.min(start + COPY_BYTES as u64);
                        let length = piece.end - piece.start;
                        frames.push_chunk(self.target.copy(self.sent, base, piece)).await?;
                        self.sent += length;
                    }
                }
                (Part::New { mut new }, _) => {
                    while !new.is_empty() {
                        let end = new.end.min(new.start + CHUNK_BYTES as u64);
                        let pack = self.target.packing(new.start..end);
                        let Some(chunk) = self.reader.read(new.start..end, pack).await else {
                            return Ok(None);
                        };
                        let ends = ends.filter(|_| end == new.end);
                        if ends.is_some_and(|content| !self.reader.still_reads(content)) {
                            return Ok(None);
                        }
                        frames.push_chunk(chunk).await?;
                        progress.tell(end, &outlet.progress);
                        new.start = end;
                    }
                    self.sent = new.end;
                }
                (Part::Same { .. }, None) => return Ok(None),
            }
        }
        Ok(Some(()))
    }
}

/// Reads a large file piece by piece, and says at its end whether it was one state of the file.
struct LargeReader {
    file: Arc<File>,
    /// Every byte is hashed, because the signature alone proves nothing.
    hasher: Option<ContentHasher>,
}

impl LargeReader {
    /// A piece of the file, packed; `None` if it is not there.
    async fn read(
        &mut self,
        range: Range<u64>,
        pack: impl FnOnce(Bytes) -> Chunk + Send + 'static,
    ) -> Option<Chunk> {
        let (file, mut hasher) = (self.file.clone(), self.hasher.take());
        let read = move || {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            file.read_exact_at(&mut bytes, range.start).ok()?;
            hasher.iter_mut().for_each(|hasher| hasher.update(&bytes));
            Some((pack(bytes.into()), hasher))
        };
        let (chunk, hasher) = spawn_blocking(read).await.ok()??;
        self.hasher = hasher;
        Some(chunk)
    }

    /// True if what was read was this content; to be asked at its end.
    fn still_reads(&mut self, content: &Needed) -> bool {
        let Some(signature) = disk::signature_of(&self.file) else { return false };
        match self.hasher.take() {
            Some(hasher) => signature.size == content.size && hasher.finish() == content.id,
            None => signature == content.signature || signature.same_but_renamed(&content.signature),
        }
    }
}
