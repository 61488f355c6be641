//! Messages to values, with every rule of the protocol checked, and chunks back to file pieces.

use bytes::Bytes;
use gix::ObjectId;

use super::proto::{self, client_message, server_message};
use super::{
    Ack, Base, CHUNK_BYTES, CLONE_SHALLOW, COMMITS, Chunk, Drift, Encoding, FILE_BYTES, Forget, Frame, Hello,
    KeptFile, LINK_BYTES, NAMED_PATHS, NewSession, OFFERED, OFFERED_BYTES, Offered, PREFIX_BYTES,
    PREFIX_WINDOW_LOG, PatchHeader, PatchKind, REMOTE_BYTES, REMOTES, Refusal, RefusalCode, RefusedPath,
    Session, ToClient, ToServer, Violation, Wanted, Welcome,
};
use crate::model::path::is_gitmodules_alias;
use crate::model::{Change, ChangeKind, ContentId, HashKind, Leaf, Mode, PatchId, RelPath, Signature};

const NAME_BYTES: usize = 256;
pub(super) const BRANCH_BYTES: usize = 1_024;
const MESSAGES: usize = 16;
/// Longest human text taken from a peer; the rest is cut.
const TEXT_BYTES: usize = 4_096;

pub(super) type Checked<T> = Result<T, Violation>;

impl TryFrom<proto::ClientMessage> for ToServer {
    type Error = Violation;

    fn try_from(message: proto::ClientMessage) -> Checked<Self> {
        use client_message::Kind;
        Ok(match message.kind.ok_or_else(|| broken("a message without a kind this server knows"))? {
            Kind::Hello(hello) => Self::Hello(hello.try_into()?),
            Kind::NewSession(new) => Self::NewSession(new.try_into()?),
            Kind::ApplyPatch(patch) => {
                let next = patch_id(&patch.next, "next")?;
                let base = match patch.base.is_empty() {
                    true => PatchId::empty(next.hash_kind()),
                    false => patch_id(&patch.base, "base")?,
                };
                let kind = PatchKind::Whole { base };
                Self::Patch(header(kind, next, patch.generation)?, first_frame(patch.frame)?)
            }
            Kind::ApplyPatchDiff(patch) => {
                let next = patch_id(&patch.next, "next")?;
                let kind = PatchKind::Diff { parent: patch_id(&patch.parent, "parent")? };
                Self::Patch(header(kind, next, patch.generation)?, first_frame(patch.frame)?)
            }
            Kind::Frame(frame) => Self::Frame(frame.try_into()?),
            Kind::Abandon(abandon) => Self::Abandon { generation: abandon.generation },
            Kind::Ping(ping) => Self::Ping { nonce: ping.nonce },
            Kind::Rehash(_) => Self::Rehash,
            Kind::Close(_) => Self::Close,
            Kind::ListKept(list) => {
                within("workspace", list.workspace.len(), NAME_BYTES)?;
                within("owner_id", list.owner_id.len(), NAME_BYTES)?;
                Self::ListKept { workspace: list.workspace, owner_id: list.owner_id }
            }
            Kind::FetchKept(fetch) => {
                within("id", fetch.id.len(), NAME_BYTES)?;
                Self::FetchKept { id: fetch.id }
            }
            Kind::Ahead(ahead) => {
                let contents = ahead.contents.into_iter().map(TryInto::try_into).collect::<Checked<_>>()?;
                Self::Ahead { contents }
            }
            Kind::Forget(forget) => {
                let ids = forget.ids.iter().map(|id| content_id(id)).collect::<Checked<_>>()?;
                Self::Forget(Forget { ids, nameless: forget.nameless })
            }
            Kind::Offer(offer) => {
                within("an offer", offer.contents.len(), OFFERED)?;
                let contents = offer.contents.into_iter().map(TryInto::try_into).collect::<Checked<_>>()?;
                Self::Offer { contents }
            }
            Kind::Baseline(baseline) => Self::Baseline(baseline.try_into()?),
            Kind::PackPiece(piece) => Self::PackPiece(piece.try_into()?),
            Kind::StopBaseline(stop) => Self::StopBaseline { number: stop.number },
        })
    }
}

fn header(kind: PatchKind, next: PatchId, generation: u64) -> Checked<PatchHeader> {
    if generation == 0 {
        return Err(broken("a patch with generation 0"));
    }
    Ok(PatchHeader { kind, next, generation })
}

fn first_frame(frame: Option<proto::Frame>) -> Checked<Frame> {
    frame.ok_or_else(|| broken("a patch header without a frame"))?.try_into()
}

impl TryFrom<proto::ServerMessage> for ToClient {
    type Error = Violation;

    fn try_from(message: proto::ServerMessage) -> Checked<Self> {
        use server_message::Kind;
        Ok(match message.kind.ok_or_else(|| broken("a message without a kind this client knows"))? {
            Kind::Welcome(w) => Self::Welcome(Welcome {
                protocol: w.protocol,
                features: w.features,
                software: text(w.software),
                kernel: w.kernel,
            }),
            Kind::Session(session) => Self::Session(session.try_into()?),
            Kind::Wanted(wanted) => Self::Wanted(Wanted {
                generation: wanted.generation,
                changes: wanted.changes,
                extra: paths(&wanted.extra)?,
                more: wanted.more,
            }),
            Kind::Ack(ack) => Self::Ack(ack.try_into()?),
            Kind::Refusal(refusal) => Self::Refusal(refusal.try_into()?),
            Kind::Pong(pong) => Self::Pong { nonce: pong.nonce },
            Kind::Drift(drift) => {
                within("paths", drift.paths.len(), NAMED_PATHS)?;
                let held = patch_id(&drift.held, "held")?;
                Self::Drift(Drift { held, paths: paths(&drift.paths)?, count: drift.count })
            }
            Kind::Kept(kept) => {
                let files = kept.files.into_iter().map(TryInto::try_into).collect::<Checked<_>>()?;
                Self::Kept { files, more: kept.more }
            }
            Kind::KeptContent(content) => {
                within("data", content.data.len(), CHUNK_BYTES)?;
                Self::KeptContent { offset: content.offset, data: content.data, end: content.end }
            }
            Kind::Taken(taken) => Self::Taken { weight: taken.weight },
            Kind::Lacking(lacking) => {
                if !lacking.positions.is_sorted_by(|a, b| a < b) {
                    return Err(broken("what an offer lacks is out of order"));
                }
                Self::Lacking { positions: lacking.positions }
            }
            Kind::Landed(landed) => Self::Landed(landed.try_into()?),
            Kind::NotLanded(not) => Self::NotLanded(not.into()),
            Kind::Refused(refused) => {
                let paths = refused.paths.into_iter().map(TryInto::try_into).collect::<Checked<_>>()?;
                Self::Refused { generation: refused.generation, paths }
            }
        })
    }
}

impl TryFrom<proto::Hello> for Hello {
    type Error = Violation;

    fn try_from(h: proto::Hello) -> Checked<Self> {
        if h.required.len() + h.optional.len() > 256 {
            return Err(broken("more than 256 feature names"));
        }
        Ok(Self {
            protocol: h.protocol,
            required: h.required,
            optional: h.optional,
            software: text(h.software),
        })
    }
}

impl TryFrom<proto::NewSession> for NewSession {
    type Error = Violation;

    fn try_from(n: proto::NewSession) -> Checked<Self> {
        within("workspace", n.workspace.len(), NAME_BYTES)?;
        within("owner_id", n.owner_id.len(), NAME_BYTES)?;
        within("branch", n.branch.len(), BRANCH_BYTES)?;
        within("commits", n.commits.len(), COMMITS)?;
        within("remotes", n.remotes.len(), REMOTES)?;
        for remote in &n.remotes {
            within("a remote", remote.len(), REMOTE_BYTES)?;
        }
        let hash_kind = match n.object_format() {
            proto::ObjectFormat::Sha1 => HashKind::Sha1,
            proto::ObjectFormat::Sha256 => HashKind::Sha256,
            proto::ObjectFormat::Unspecified => {
                return Err(broken("an object format this server does not know"));
            }
        };
        let mut owner_text = text(n.owner_text);
        truncate(&mut owner_text, NAME_BYTES);
        Ok(Self {
            workspace: n.workspace,
            owner_id: n.owner_id,
            owner_text,
            takeover: n.takeover,
            hash_kind,
            head: optional(&n.head, object_id)?,
            branch: (!n.branch.is_empty()).then(|| n.branch.to_vec()),
            commits: object_ids(&n.commits)?,
            remotes: n.remotes,
            hold_drift: n.hold_drift,
        })
    }
}

impl TryFrom<proto::Session> for Session {
    type Error = Violation;

    fn try_from(s: proto::Session) -> Checked<Self> {
        within("drifted", s.drifted.len(), NAMED_PATHS)?;
        within("clone_branch", s.clone_branch.len(), BRANCH_BYTES)?;
        within("clone_shallow", s.clone_shallow.len(), CLONE_SHALLOW)?;
        Ok(Self {
            held: patch_id(&s.held, "held")?,
            held_files: s.held_files,
            common: optional(&s.common, object_id)?,
            epoch: s.epoch,
            drifted: paths(&s.drifted)?,
            drifted_count: s.drifted_count,
            clone_head: optional(&s.clone_head, object_id)?,
            clone_branch: (!s.clone_branch.is_empty()).then(|| s.clone_branch.to_vec()),
            clone_shallow: object_ids(&s.clone_shallow)?,
            blank: s.blank,
        })
    }
}

impl TryFrom<proto::Frame> for Frame {
    type Error = Violation;

    fn try_from(f: proto::Frame) -> Checked<Self> {
        let contents = f.contents.into_iter().map(TryInto::try_into).collect::<Checked<Vec<Chunk>>>()?;
        if contents.iter().any(|chunk| chunk.id.is_none()) {
            return Err(broken("a piece of a nameless content in a patch"));
        }
        Ok(Self {
            changes: f.changes.into_iter().map(TryInto::try_into).collect::<Checked<_>>()?,
            contents,
            changes_end: f.changes_end,
            end: f.end,
        })
    }
}

impl TryFrom<proto::Change> for Change {
    type Error = Violation;

    fn try_from(change: proto::Change) -> Checked<Self> {
        use proto::change::Kind;
        let path = path(&change.path)?;
        let kind = match change.kind.ok_or_else(|| broken("a change without a kind this server knows"))? {
            Kind::Put(put) => {
                let (mode, id, size) = checked_put(&path, &put)?;
                ChangeKind::Put { mode, id, size }
            }
            Kind::Delete(_) => ChangeKind::Delete,
            Kind::Release(_) => ChangeKind::Release,
        };
        Ok(Self { path, kind })
    }
}

fn checked_put(path: &RelPath, put: &proto::Put) -> Checked<(Mode, ContentId, u64)> {
    let (mode, limit) = match put.mode() {
        proto::Mode::File => (Mode::File, FILE_BYTES),
        proto::Mode::Executable => (Mode::Executable, FILE_BYTES),
        proto::Mode::Symlink => (Mode::Symlink, LINK_BYTES),
        proto::Mode::Unspecified => return Err(broken(format!("no known mode for {path}"))),
    };
    if put.size > limit {
        return Err(broken(format!("{path} has {} bytes, more than {limit}", put.size)));
    }
    if mode == Mode::Symlink && put.size == 0 {
        return Err(broken(format!("{path} is a link without a target")));
    }
    if mode == Mode::Symlink && is_gitmodules_alias(path.name()) {
        return Err(broken(format!("{path} may not be a symlink")));
    }
    Ok((mode, content_id(&put.content)?, put.size))
}

impl TryFrom<proto::KeptFile> for KeptFile {
    type Error = Violation;

    fn try_from(k: proto::KeptFile) -> Checked<Self> {
        within("id", k.id.len(), NAME_BYTES)?;
        let mode = match k.mode() {
            proto::Mode::File => Mode::File,
            proto::Mode::Executable => Mode::Executable,
            proto::Mode::Symlink => Mode::Symlink,
            proto::Mode::Unspecified => return Err(broken("a kept file without a mode")),
        };
        Ok(Self { path: path(&k.path)?, id: k.id, size: k.size, kept_at: k.kept_at, mode })
    }
}

impl TryFrom<proto::Content> for Chunk {
    type Error = Violation;

    fn try_from(c: proto::Content) -> Checked<Self> {
        let base =
            || Base::try_from(c.base.clone().ok_or_else(|| broken("a content piece without its base"))?);
        let encoding = match c.encoding() {
            proto::Encoding::Raw => Encoding::Raw,
            proto::Encoding::Zstd => Encoding::Zstd,
            proto::Encoding::ZstdFrom => Encoding::ZstdFrom(base()?),
            proto::Encoding::Copy => Encoding::Copy(base()?),
            proto::Encoding::Unspecified => {
                return Err(broken("a content encoding this server does not know"));
            }
        };
        match &encoding {
            Encoding::Copy(base) if base.length == c.length && c.data.is_empty() && c.length > 0 => {}
            Encoding::Copy(_) => {
                return Err(broken("a copied piece that is empty or not as long as its base"));
            }
            Encoding::ZstdFrom(base) if base.length > PREFIX_BYTES => {
                return Err(broken(format!("a base of {} bytes, more than {PREFIX_BYTES}", base.length)));
            }
            _ => within("a content chunk", c.length.try_into().unwrap_or(usize::MAX), CHUNK_BYTES)?,
        }
        if c.size > FILE_BYTES {
            return Err(broken(format!("a content of {} bytes, more than {FILE_BYTES}", c.size)));
        }
        match c.offset.checked_add(c.length) {
            Some(end) if end <= c.size => {}
            _ => return Err(broken("a content chunk beyond the content's end")),
        }
        Ok(Self {
            id: id_of_piece(&c)?,
            size: c.size,
            offset: c.offset,
            encoding,
            data: c.data,
            length: c.length,
        })
    }
}

/// A piece may lack the id if it cannot be all of its content and others follow.
fn id_of_piece(c: &proto::Content) -> Checked<Option<ContentId>> {
    let is_last = c.offset.saturating_add(c.length) == c.size;
    match c.id.is_empty() && c.size > CHUNK_BYTES as u64 && !is_last {
        true => Ok(None),
        false => content_id(&c.id).map(Some),
    }
}

impl TryFrom<proto::Offered> for Offered {
    type Error = Violation;

    fn try_from(o: proto::Offered) -> Checked<Self> {
        if o.size > OFFERED_BYTES {
            return Err(broken(format!("an offered content of {} bytes, more than {OFFERED_BYTES}", o.size)));
        }
        Ok(Self { id: content_id(&o.id)?, size: o.size })
    }
}

impl TryFrom<proto::Base> for Base {
    type Error = Violation;

    fn try_from(b: proto::Base) -> Checked<Self> {
        match b.offset.checked_add(b.length) {
            Some(end) if end <= FILE_BYTES => {}
            _ => return Err(broken("a base beyond any file's end")),
        }
        Ok(Self { path: path(&b.path)?, id: content_id(&b.id)?, offset: b.offset, length: b.length })
    }
}

impl Chunk {
    /// The piece of file, which must not be a copied one. `prefix` is the base's bytes where there is a base. Never
    /// allocates more than the declared, already checked length.
    pub fn decode(&self, prefix: &[u8]) -> Checked<Bytes> {
        let length = self.length as usize;
        let damaged = |e: &dyn std::fmt::Display| broken(format!("a damaged content chunk: {e}"));
        let piece: Bytes = match &self.encoding {
            Encoding::Raw => self.data.clone(),
            Encoding::Zstd => zstd::bulk::decompress(&self.data, length).map_err(|e| damaged(&e))?.into(),
            Encoding::ZstdFrom(_) => decompress_from(&self.data, prefix, length)
                .map_err(|code| damaged(&zstd::zstd_safe::get_error_name(code)))?
                .into(),
            Encoding::Copy(_) => return Err(broken("a copied piece has no bytes of its own")),
        };
        if piece.len() != length {
            return Err(broken("a content chunk whose length is not the declared one"));
        }
        Ok(piece)
    }
}

fn decompress_from(packed: &[u8], prefix: &[u8], length: usize) -> Result<Vec<u8>, usize> {
    use zstd::zstd_safe::{DCtx, DParameter};
    let mut context = DCtx::create();
    context.set_parameter(DParameter::WindowLogMax(PREFIX_WINDOW_LOG))?;
    context.ref_prefix(prefix)?;
    let mut piece = Vec::with_capacity(length);
    context.decompress(&mut piece, packed)?;
    Ok(piece)
}

impl TryFrom<proto::Ack> for Ack {
    type Error = Violation;

    fn try_from(a: proto::Ack) -> Checked<Self> {
        let id = patch_id(&a.id, "id")?;
        let refused: Vec<RefusedPath> =
            a.refused.into_iter().map(TryInto::try_into).collect::<Checked<_>>()?;
        let held = |r: &RefusedPath| r.held.is_none_or(|leaf| leaf.id.hash_kind() == id.hash_kind());
        if let Some(other) = refused.iter().find(|r| !held(r)) {
            return Err(broken(format!("{} is held in another object format", other.path)));
        }
        Ok(Self {
            generation: a.generation,
            id,
            written: a.written,
            deleted: a.deleted,
            apply_us: a.apply_us,
            refused,
            kept: paths(&a.kept)?,
            kept_count: a.kept_count,
        })
    }
}

impl TryFrom<proto::RefusedPath> for RefusedPath {
    type Error = Violation;

    fn try_from(r: proto::RefusedPath) -> Checked<Self> {
        let path = path(&r.path)?;
        let leaf = |put: proto::Put| {
            let (mode, id, size) = checked_put(&path, &put)?;
            Ok(Leaf { mode, id, signature: Signature { size, ..Signature::default() } })
        };
        let held = r.held.map(leaf).transpose()?;
        Ok(Self { path, reason: text(r.reason), held })
    }
}

impl TryFrom<proto::Refusal> for Refusal {
    type Error = Violation;

    fn try_from(r: proto::Refusal) -> Checked<Self> {
        use proto::RefusalCode as Wire;
        let code = match r.code() {
            Wire::Protocol => RefusalCode::Protocol,
            Wire::ParentMismatch => RefusalCode::ParentMismatch,
            Wire::PatchInvalid => RefusalCode::PatchInvalid,
            Wire::BaseUnknown => RefusalCode::BaseUnknown,
            Wire::RemotesDiffer => RefusalCode::RemotesDiffer,
            Wire::Locked => RefusalCode::Locked,
            Wire::Superseded => RefusalCode::Superseded,
            Wire::Workspace => RefusalCode::Workspace,
            Wire::TooLarge => RefusalCode::TooLarge,
            Wire::DiskFull => RefusalCode::DiskFull,
            // A refusal of a kind we do not know is still one.
            Wire::Failed | Wire::Unspecified => RefusalCode::Failed,
            Wire::ShuttingDown => RefusalCode::ShuttingDown,
            Wire::ContentMissing => RefusalCode::ContentMissing,
        };
        Ok(Self {
            generation: r.generation,
            code,
            messages: texts(r.messages),
            held: optional(&r.held, |id| patch_id(id, "held"))?,
        })
    }
}

pub(super) fn broken(what: impl Into<String>) -> Violation {
    Violation(what.into())
}

pub(super) fn within(what: &str, len: usize, limit: usize) -> Checked<()> {
    if len > limit {
        return Err(broken(format!("{what} has {len}, more than {limit}")));
    }
    Ok(())
}

pub(super) fn texts(texts: Vec<String>) -> Vec<String> {
    texts.into_iter().take(MESSAGES).map(text).collect()
}

fn text(mut text: String) -> String {
    truncate(&mut text, TEXT_BYTES);
    text
}

fn truncate(text: &mut String, limit: usize) {
    let end = (0..=limit.min(text.len())).rev().find(|i| text.is_char_boundary(*i));
    text.truncate(end.unwrap_or(0));
}

pub(super) fn path(bytes: &[u8]) -> Checked<RelPath> {
    RelPath::new(bytes).map_err(|e| broken(format!("{e}: {}", crate::model::path::escape(bytes))))
}

pub(super) fn paths(list: &[Bytes]) -> Checked<Vec<RelPath>> {
    list.iter().map(|p| path(p)).collect()
}

pub(super) fn object_id(bytes: &[u8]) -> Checked<ObjectId> {
    ObjectId::try_from(bytes).map_err(|_| broken(format!("an object id of {} bytes", bytes.len())))
}

pub(super) fn object_ids(list: &[Bytes]) -> Checked<Vec<ObjectId>> {
    list.iter().map(|id| object_id(id)).collect()
}

fn patch_id(bytes: &[u8], what: &str) -> Checked<PatchId> {
    PatchId::from_bytes(bytes).map_err(|e| broken(format!("{what} is {e}")))
}

fn content_id(bytes: &[u8]) -> Checked<ContentId> {
    ContentId::from_bytes(bytes).map_err(|e| broken(e.to_string()))
}

pub(super) fn optional<T>(bytes: &[u8], read: impl FnOnce(&[u8]) -> Checked<T>) -> Checked<Option<T>> {
    if bytes.is_empty() { Ok(None) } else { read(bytes).map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> ContentId {
        ContentId::of(HashKind::Sha1, b"x")
    }

    #[test]
    fn a_frame_survives_the_wire() {
        let piece = Bytes::from(vec![b'a'; 5_000]);
        let chunk = Chunk::encode(id(), 5_000, 0, piece.clone());
        assert_eq!(chunk.encoding, Encoding::Zstd);
        let frame = Frame {
            changes: vec![
                Change { path: RelPath::new("a").unwrap(), kind: ChangeKind::Delete },
                Change {
                    path: RelPath::new("b/c").unwrap(),
                    kind: ChangeKind::Put { mode: Mode::Executable, id: id(), size: 5_000 },
                },
            ],
            contents: vec![chunk],
            changes_end: true,
            end: false,
        };
        let back = Frame::try_from(proto::Frame::from(frame.clone())).unwrap();
        assert_eq!(back.changes, frame.changes);
        assert_eq!(back.contents[0].decode(&[]).unwrap(), piece);
        assert_eq!((back.changes_end, back.end), (true, false));
    }

    #[test]
    fn lying_chunks_are_refused() {
        let good = proto::Content::from(Chunk::encode(id(), 4, 0, Bytes::from_static(b"abcd")));
        let cases: Vec<(&str, proto::Content)> = vec![
            ("beyond the end", proto::Content { offset: 1, ..good.clone() }),
            ("offset overflow", proto::Content { offset: u64::MAX, ..good.clone() }),
            ("no encoding", proto::Content { encoding: 0, ..good.clone() }),
            ("unknown encoding", proto::Content { encoding: 77, ..good.clone() }),
            ("huge piece", proto::Content { length: u64::from(u32::MAX), size: u64::MAX, ..good.clone() }),
            ("short id", proto::Content { id: Bytes::from_static(b"abc"), ..good.clone() }),
        ];
        for (what, content) in cases {
            assert!(Chunk::try_from(content).is_err(), "{what}");
        }
        let short = Chunk { length: 3, ..Chunk::try_from(good.clone()).unwrap() };
        assert!(short.decode(&[]).is_err());
        let bomb = zstd::bulk::compress(&vec![0; 10 << 20], 1).unwrap();
        let bomb = Chunk { encoding: Encoding::Zstd, data: bomb.into(), length: 100, ..short };
        assert!(bomb.decode(&[]).is_err());
    }

    #[test]
    fn only_the_last_piece_of_a_large_content_needs_its_name() {
        let size = CHUNK_BYTES as u64 + 3;
        let piece = |id: Option<ContentId>, size, offset| {
            proto::Content::from(Chunk::raw(id, size, offset, Bytes::from_static(b"abc")))
        };
        let first = Chunk::try_from(piece(None, size, 0)).unwrap();
        assert_eq!((first.id, first.is_last()), (None, false));
        let last = Chunk::try_from(piece(Some(id()), size, size - 3)).unwrap();
        assert_eq!((last.id, last.is_last()), (Some(id()), true));
        for (what, lie) in [
            ("the last one", piece(None, size, size - 3)),
            ("of a small content", piece(None, CHUNK_BYTES as u64, 0)),
        ] {
            assert!(Chunk::try_from(lie).is_err(), "{what}");
        }
        let frame = proto::Frame { contents: vec![piece(None, size, 0)], ..proto::Frame::default() };
        assert!(Frame::try_from(frame).is_err(), "a patch names what it brings");
    }

    #[test]
    fn pieces_made_from_a_base_survive_the_wire() {
        let old: Vec<u8> =
            (0..60_000_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let mut new = old[1_000..150_000].to_vec();
        new[70_000..70_004].copy_from_slice(b"edit");
        let (path, length) = (RelPath::new("a/b").unwrap(), old.len() as u64);
        let base = Base { path, id: id(), offset: 0, length };
        let size = new.len() as u64;
        let chunk = Chunk::encode_from(id(), size, 0, new.clone().into(), base.clone(), &old);
        assert!(chunk.data.len() < 1_000, "{} bytes", chunk.data.len());
        let back = Chunk::try_from(proto::Content::from(chunk)).unwrap();
        assert_eq!(back.encoding, Encoding::ZstdFrom(base.clone()));
        assert_eq!(back.decode(&old).unwrap(), new);
        let other = &old[..old.len() - 1];
        assert!(back.decode(other).map_or(true, |piece| piece != new));
        let copy = Chunk::copy(id(), length, 0, base.clone());
        let back = Chunk::try_from(proto::Content::from(copy.clone())).unwrap();
        assert_eq!((&back.encoding, back.length), (&Encoding::Copy(base.clone()), length));
        assert!(back.decode(&old).is_err());
        let lies = [
            proto::Content { length: length - 1, ..copy.clone().into() },
            proto::Content { base: None, ..copy.clone().into() },
            proto::Content { data: Bytes::from_static(b"x"), ..copy.clone().into() },
            proto::Content { offset: 1, ..copy.clone().into() },
            Chunk::copy(id(), length, 0, Base { offset: u64::MAX, ..base.clone() }).into(),
            Chunk::copy(id(), length, 0, Base { length: 0, ..base.clone() }).into(),
            Chunk { encoding: Encoding::ZstdFrom(Base { length: PREFIX_BYTES + 1, ..base }), ..copy }.into(),
        ];
        for (i, lie) in lies.into_iter().enumerate() {
            assert!(Chunk::try_from(lie).is_err(), "{i}");
        }
    }

    #[test]
    fn offers_and_what_they_lack_keep_their_bounds() {
        let contents = vec![Offered { id: id(), size: OFFERED_BYTES }; OFFERED];
        let message = proto::ClientMessage::from(ToServer::Offer { contents: contents.clone() });
        let back = ToServer::try_from(message).unwrap();
        assert!(matches!(back, ToServer::Offer { contents: c } if c == contents));
        let refused = |contents: Vec<proto::Offered>| {
            let kind = client_message::Kind::Offer(proto::Offer { contents });
            assert!(ToServer::try_from(proto::ClientMessage { kind: Some(kind) }).is_err());
        };
        let one = proto::Offered::from(contents[0]);
        refused(vec![one.clone(); OFFERED + 1]);
        refused(vec![proto::Offered { size: OFFERED_BYTES + 1, ..one.clone() }]);
        refused(vec![proto::Offered { id: Bytes::from_static(b"short"), ..one }]);

        let lacking = |positions: &[u32]| {
            ToClient::try_from(proto::ServerMessage::from(ToClient::Lacking {
                positions: positions.to_vec(),
            }))
        };
        assert!(matches!(lacking(&[0, 7]), Ok(ToClient::Lacking { positions }) if positions == [0, 7]));
        assert!(lacking(&[]).is_ok());
        assert!(lacking(&[1, 1]).is_err());
        assert!(lacking(&[2, 1]).is_err());
    }

    #[test]
    fn lying_changes_are_refused() {
        let put = |mode, size| proto::Change {
            path: Bytes::from_static(b"a"),
            kind: Some(proto::change::Kind::Put(proto::Put {
                mode,
                content: Bytes::copy_from_slice(id().as_bytes()),
                size,
            })),
        };
        assert!(Change::try_from(put(1, 5)).is_ok());
        assert!(Change::try_from(put(0, 5)).is_err());
        assert!(Change::try_from(put(9, 5)).is_err());
        assert!(Change::try_from(put(3, 0)).is_err());
        assert!(Change::try_from(put(3, 4_096)).is_err());
        assert!(Change::try_from(put(1, u64::MAX)).is_err());
        let traversal = proto::Change { path: Bytes::from_static(b"../x"), ..put(1, 5) };
        assert!(Change::try_from(traversal).is_err());
        let modules = proto::Change { path: Bytes::from_static(b"a/.GitModules"), ..put(3, 5) };
        assert!(Change::try_from(modules).is_err());
        assert!(Change::try_from(proto::Change { path: Bytes::from_static(b"a"), kind: None }).is_err());
    }

    #[test]
    fn what_is_held_at_a_refused_path_survives_the_wire_and_is_checked() {
        let leaf =
            |mode, size| Leaf { mode, id: id(), signature: Signature { size, ..Signature::default() } };
        let refused = |held| RefusedPath { path: RelPath::new("a/b").unwrap(), reason: "no".into(), held };
        let ack = Ack {
            generation: 3,
            id: PatchId::empty(HashKind::Sha1),
            written: 1,
            deleted: 2,
            apply_us: 4,
            refused: vec![
                refused(Some(leaf(Mode::File, 0))),
                refused(Some(leaf(Mode::Symlink, 7))),
                refused(None),
            ],
            kept: Vec::new(),
            kept_count: 0,
        };
        assert_eq!(Ack::try_from(proto::Ack::from(ack.clone())).unwrap(), ack);
        let lies = [leaf(Mode::File, FILE_BYTES + 1), leaf(Mode::Symlink, 0), leaf(Mode::Symlink, 4_096)];
        for lie in lies {
            let lying = Ack { refused: vec![refused(Some(lie))], ..ack.clone() };
            assert!(Ack::try_from(proto::Ack::from(lying)).is_err(), "{lie:?}");
        }
        let other = Ack { id: PatchId::empty(HashKind::Sha256), ..ack };
        assert!(Ack::try_from(proto::Ack::from(other)).is_err(), "of two object formats");
    }
}
