//! Values to messages, and file pieces to chunks.

use bytes::Bytes;

use super::proto::{self, client_message, server_message};
use super::{
    Ack, Base, CHUNK_BYTES, Chunk, Drift, Encoding, Forget, Frame, Hello, KeptFile, NewSession, Offered,
    PREFIX_BYTES, PREFIX_WINDOW_LOG, PatchHeader, PatchKind, Refusal, RefusalCode, RefusedPath, Session,
    ToClient, ToServer, Wanted, Welcome,
};
use crate::model::{Change, ChangeKind, ContentId, HashKind, Mode, RelPath};

/// Pieces shorter than this go as they are: a zstd frame would hardly be shorter.
const COMPRESS_FROM: usize = 256;
/// zstd's fastest ordinary level: at loopback speeds more costs more time than it saves.
const ZSTD_LEVEL: i32 = 1;
/// Below this level zstd overlooks much of a prefix of more than some hundred KiB.
const ZSTD_FROM_LEVEL: i32 = 3;

impl Chunk {
    /// One piece as it is, at most [`CHUNK_BYTES`] long.
    pub fn raw(id: impl Into<Option<ContentId>>, size: u64, offset: u64, piece: Bytes) -> Self {
        debug_assert!(piece.len() <= CHUNK_BYTES);
        let (id, length) = (id.into(), piece.len() as u64);
        Self { id, size, offset, encoding: Encoding::Raw, length, data: piece }
    }

    /// Encodes one piece, at most [`CHUNK_BYTES`] long, as whichever of raw and zstd is shorter.
    pub fn encode(id: impl Into<Option<ContentId>>, size: u64, offset: u64, piece: Bytes) -> Self {
        debug_assert!(piece.len() <= CHUNK_BYTES);
        let length = piece.len() as u64;
        let packed = (piece.len() >= COMPRESS_FROM)
            .then(|| zstd::bulk::compress(&piece, ZSTD_LEVEL).ok())
            .flatten()
            .filter(|packed| packed.len() < piece.len());
        let (encoding, data) = match packed {
            Some(packed) => (Encoding::Zstd, packed.into()),
            None => (Encoding::Raw, piece),
        };
        Self { id: id.into(), size, offset, encoding, data, length }
    }

    /// Encodes one piece against the bytes of a base, at most [`PREFIX_BYTES`] long; like [`Chunk::encode`] where
    /// that does not make it shorter.
    pub fn encode_from(
        id: impl Into<Option<ContentId>>,
        size: u64,
        offset: u64,
        piece: Bytes,
        base: Base,
        prefix: &[u8],
    ) -> Self {
        debug_assert!(prefix.len() as u64 == base.length && base.length <= PREFIX_BYTES);
        let plain = Self::encode(id, size, offset, piece.clone());
        match compress_from(&piece, prefix) {
            Some(packed) if packed.len() < plain.data.len() => {
                Self { encoding: Encoding::ZstdFrom(base), data: packed.into(), ..plain }
            }
            _ => plain,
        }
    }

    /// A piece that is the bytes of a base.
    pub fn copy(id: impl Into<Option<ContentId>>, size: u64, offset: u64, base: Base) -> Self {
        let length = base.length;
        Self { id: id.into(), size, offset, encoding: Encoding::Copy(base), data: Bytes::new(), length }
    }
}

fn compress_from(piece: &[u8], prefix: &[u8]) -> Option<Vec<u8>> {
    use zstd::zstd_safe::{CCtx, CParameter, compress_bound};
    let mut context = CCtx::try_create()?;
    context.set_parameter(CParameter::CompressionLevel(ZSTD_FROM_LEVEL)).ok()?;
    context.set_parameter(CParameter::WindowLog(PREFIX_WINDOW_LOG)).ok()?;
    context.ref_prefix(prefix).ok()?;
    let mut packed = Vec::with_capacity(compress_bound(piece.len()));
    context.compress2(&mut packed, piece).ok()?;
    Some(packed)
}

impl From<ToServer> for proto::ClientMessage {
    fn from(message: ToServer) -> Self {
        use client_message::Kind;
        let kind = match message {
            ToServer::Hello(hello) => Kind::Hello(hello.into()),
            ToServer::NewSession(new) => Kind::NewSession(new.into()),
            ToServer::Patch(header, frame) => header_with(header, frame),
            ToServer::Frame(frame) => Kind::Frame(frame.into()),
            ToServer::Abandon { generation } => Kind::Abandon(proto::Abandon { generation }),
            ToServer::Ping { nonce } => Kind::Ping(proto::Ping { nonce }),
            ToServer::Rehash => Kind::Rehash(proto::Rehash {}),
            ToServer::Close => Kind::Close(proto::Close {}),
            ToServer::ListKept { workspace, owner_id } => {
                Kind::ListKept(proto::ListKept { workspace, owner_id })
            }
            ToServer::FetchKept { id } => Kind::FetchKept(proto::FetchKept { id }),
            ToServer::Ahead { contents } => {
                Kind::Ahead(proto::Ahead { contents: contents.into_iter().map(Into::into).collect() })
            }
            ToServer::Forget(Forget { ids, nameless }) => {
                let ids = ids.iter().map(|id| raw(id.as_bytes())).collect();
                Kind::Forget(proto::Forget { ids, nameless })
            }
            ToServer::Offer { contents } => {
                Kind::Offer(proto::Offer { contents: contents.into_iter().map(Into::into).collect() })
            }
            ToServer::Baseline(baseline) => Kind::Baseline(baseline.into()),
            ToServer::PackPiece(piece) => Kind::PackPiece(piece.into()),
            ToServer::StopBaseline { number } => Kind::StopBaseline(proto::StopBaseline { number }),
        };
        Self { kind: Some(kind) }
    }
}

fn header_with(header: PatchHeader, frame: Frame) -> client_message::Kind {
    let PatchHeader { kind, next, generation } = header;
    let (next, frame) = (raw(next.as_bytes()), Some(frame.into()));
    match kind {
        PatchKind::Whole { base } => client_message::Kind::ApplyPatch(proto::ApplyPatch {
            base: raw(base.as_bytes()),
            next,
            generation,
            frame,
        }),
        PatchKind::Diff { parent } => client_message::Kind::ApplyPatchDiff(proto::ApplyPatchDiff {
            parent: raw(parent.as_bytes()),
            next,
            generation,
            frame,
        }),
    }
}

impl From<ToClient> for proto::ServerMessage {
    fn from(message: ToClient) -> Self {
        use server_message::Kind;
        let kind = match message {
            ToClient::Welcome(welcome) => Kind::Welcome(welcome.into()),
            ToClient::Session(session) => Kind::Session(session.into()),
            ToClient::Wanted(wanted) => Kind::Wanted(wanted.into()),
            ToClient::Ack(ack) => Kind::Ack(ack.into()),
            ToClient::Refusal(refusal) => Kind::Refusal(refusal.into()),
            ToClient::Pong { nonce } => Kind::Pong(proto::Pong { nonce }),
            ToClient::Drift(Drift { held, paths: drifted, count }) => {
                Kind::Drift(proto::Drift { held: raw(held.as_bytes()), paths: paths(&drifted), count })
            }
            ToClient::Kept { files, more } => {
                Kind::Kept(proto::Kept { files: files.into_iter().map(Into::into).collect(), more })
            }
            ToClient::KeptContent { offset, data, end } => {
                Kind::KeptContent(proto::KeptContent { offset, data, end })
            }
            ToClient::Taken { weight } => Kind::Taken(proto::Taken { weight }),
            ToClient::Refused { generation, paths } => Kind::Refused(proto::Refused {
                generation,
                paths: paths.into_iter().map(Into::into).collect(),
            }),
            ToClient::Lacking { positions } => Kind::Lacking(proto::Lacking { positions }),
            ToClient::Landed(landed) => Kind::Landed(landed.into()),
            ToClient::NotLanded(not) => Kind::NotLanded(not.into()),
        };
        Self { kind: Some(kind) }
    }
}

impl From<Offered> for proto::Offered {
    fn from(o: Offered) -> Self {
        Self { id: raw(o.id.as_bytes()), size: o.size }
    }
}

impl From<Hello> for proto::Hello {
    fn from(h: Hello) -> Self {
        Self { protocol: h.protocol, required: h.required, optional: h.optional, software: h.software }
    }
}

impl From<Welcome> for proto::Welcome {
    fn from(w: Welcome) -> Self {
        Self { protocol: w.protocol, features: w.features, software: w.software, kernel: w.kernel }
    }
}

impl From<NewSession> for proto::NewSession {
    fn from(n: NewSession) -> Self {
        let object_format = match n.hash_kind {
            HashKind::Sha1 => proto::ObjectFormat::Sha1,
            HashKind::Sha256 => proto::ObjectFormat::Sha256,
            _ => proto::ObjectFormat::Unspecified,
        };
        Self {
            workspace: n.workspace,
            owner_id: n.owner_id,
            owner_text: n.owner_text,
            takeover: n.takeover,
            object_format: object_format.into(),
            head: n.head.map(|id| raw(id.as_bytes())).unwrap_or_default(),
            branch: n.branch.unwrap_or_default().into(),
            commits: n.commits.iter().map(|id| raw(id.as_bytes())).collect(),
            remotes: n.remotes,
            hold_drift: n.hold_drift,
        }
    }
}

impl From<Session> for proto::Session {
    fn from(s: Session) -> Self {
        Self {
            held: raw(s.held.as_bytes()),
            held_files: s.held_files,
            common: s.common.map(|id| raw(id.as_bytes())).unwrap_or_default(),
            epoch: s.epoch,
            drifted: paths(&s.drifted),
            drifted_count: s.drifted_count,
            clone_head: s.clone_head.map(|id| raw(id.as_bytes())).unwrap_or_default(),
            clone_branch: s.clone_branch.unwrap_or_default().into(),
            clone_shallow: s.clone_shallow.iter().map(|id| raw(id.as_bytes())).collect(),
            blank: s.blank,
        }
    }
}

impl From<Frame> for proto::Frame {
    fn from(f: Frame) -> Self {
        Self {
            changes: f.changes.into_iter().map(Into::into).collect(),
            contents: f.contents.into_iter().map(Into::into).collect(),
            changes_end: f.changes_end,
            end: f.end,
        }
    }
}

impl From<Change> for proto::Change {
    fn from(change: Change) -> Self {
        use proto::change::Kind;
        let kind = match change.kind {
            ChangeKind::Put { mode, id, size } => Kind::Put(put(mode, &id, size)),
            ChangeKind::Delete => Kind::Delete(proto::Delete {}),
            ChangeKind::Release => Kind::Release(proto::Release {}),
        };
        Self { path: raw(change.path.as_bytes()), kind: Some(kind) }
    }
}

fn put(mode: Mode, id: &ContentId, size: u64) -> proto::Put {
    proto::Put { mode: wire_mode(mode).into(), content: raw(id.as_bytes()), size }
}

fn wire_mode(mode: Mode) -> proto::Mode {
    match mode {
        Mode::File => proto::Mode::File,
        Mode::Executable => proto::Mode::Executable,
        Mode::Symlink => proto::Mode::Symlink,
    }
}

impl From<KeptFile> for proto::KeptFile {
    fn from(k: KeptFile) -> Self {
        let (path, mode) = (raw(k.path.as_bytes()), wire_mode(k.mode).into());
        Self { id: k.id, path, size: k.size, kept_at: k.kept_at, mode }
    }
}

impl From<Chunk> for proto::Content {
    fn from(c: Chunk) -> Self {
        let (encoding, base) = match c.encoding {
            Encoding::Raw => (proto::Encoding::Raw, None),
            Encoding::Zstd => (proto::Encoding::Zstd, None),
            Encoding::ZstdFrom(base) => (proto::Encoding::ZstdFrom, Some(base.into())),
            Encoding::Copy(base) => (proto::Encoding::Copy, Some(base.into())),
        };
        Self {
            id: c.id.map(|id| raw(id.as_bytes())).unwrap_or_default(),
            size: c.size,
            offset: c.offset,
            encoding: encoding.into(),
            data: c.data,
            length: c.length,
            base,
        }
    }
}

impl From<Base> for proto::Base {
    fn from(b: Base) -> Self {
        let (path, id) = (raw(b.path.as_bytes()), raw(b.id.as_bytes()));
        Self { path, id, offset: b.offset, length: b.length }
    }
}

impl From<Wanted> for proto::Wanted {
    fn from(w: Wanted) -> Self {
        Self { generation: w.generation, changes: w.changes, extra: paths(&w.extra), more: w.more }
    }
}

impl From<Ack> for proto::Ack {
    fn from(a: Ack) -> Self {
        Self {
            generation: a.generation,
            id: raw(a.id.as_bytes()),
            written: a.written,
            deleted: a.deleted,
            apply_us: a.apply_us,
            refused: a.refused.into_iter().map(Into::into).collect(),
            kept: paths(&a.kept),
            kept_count: a.kept_count,
        }
    }
}

impl From<RefusedPath> for proto::RefusedPath {
    fn from(r: RefusedPath) -> Self {
        let held = r.held.map(|leaf| put(leaf.mode, &leaf.id, leaf.signature.size));
        Self { path: raw(r.path.as_bytes()), reason: r.reason, held }
    }
}

impl From<Refusal> for proto::Refusal {
    fn from(r: Refusal) -> Self {
        use proto::RefusalCode as Wire;
        let code = match r.code {
            RefusalCode::Protocol => Wire::Protocol,
            RefusalCode::ParentMismatch => Wire::ParentMismatch,
            RefusalCode::PatchInvalid => Wire::PatchInvalid,
            RefusalCode::BaseUnknown => Wire::BaseUnknown,
            RefusalCode::RemotesDiffer => Wire::RemotesDiffer,
            RefusalCode::Locked => Wire::Locked,
            RefusalCode::Superseded => Wire::Superseded,
            RefusalCode::Workspace => Wire::Workspace,
            RefusalCode::TooLarge => Wire::TooLarge,
            RefusalCode::DiskFull => Wire::DiskFull,
            RefusalCode::Failed => Wire::Failed,
            RefusalCode::ShuttingDown => Wire::ShuttingDown,
            RefusalCode::ContentMissing => Wire::ContentMissing,
        };
        Self {
            generation: r.generation,
            code: code.into(),
            messages: r.messages,
            held: r.held.map(|id| raw(id.as_bytes())).unwrap_or_default(),
        }
    }
}

pub(super) fn raw(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

pub(super) fn paths(paths: &[RelPath]) -> Vec<Bytes> {
    paths.iter().map(|p| raw(p.as_bytes())).collect()
}
