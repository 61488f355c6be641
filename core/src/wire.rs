//! The protocol as checked values.
//!
//! Only this room and the server's service see generated types. What comes in is turned at once into
//! values that satisfy every rule `mirror.proto` states, or refused with [`Violation`]; what goes out
//! is made from such values.

mod decode;
mod encode;
mod history;

use bytes::Bytes;
use gix::ObjectId;

use crate::model::{Change, ContentId, HashKind, Leaf, Mode, PatchId, RelPath};

pub use self::history::{
    BASELINE_TAGS, Baseline, CLONE_SHALLOW, Landed, NotLanded, NotLandedReason, PackPiece, SKIP_WORKTREE,
    Setting, SettingKey, Tag,
};

/// Generated from `proto/gitsync/v1/mirror.proto`.
#[allow(clippy::all, unused_qualifications, missing_debug_implementations, reason = "not our code")]
pub mod proto {
    tonic::include_proto!("gitsync.v1");
}

/// The protocol number of this program; peers must be equal.
pub const PROTOCOL: u32 = 1;
/// Features this program has, by name.
pub const FEATURES: &[&str] = &["zstd", DELTA, AHEAD, HISTORY, OFFER, NAMELESS];
/// Pieces of contents may be made from a managed file.
pub const DELTA: &str = "delta";
/// Contents may come before the patch that names them.
pub const AHEAD: &str = "ahead";
/// The workspace's clone follows the client's commits.
pub const HISTORY: &str = "history";
/// Contents may be offered by name before they are sent.
pub const OFFER: &str = "offer";
/// Pieces of a large content may come ahead of its id.
pub const NAMELESS: &str = "nameless";
/// Most contents in one [`ToServer::Offer`],
pub const OFFERED: usize = 1_000;
/// and most bytes of one: a server reads it in one piece.
pub const OFFERED_BYTES: u64 = 1 << 20;
/// Most bytes of file in one content chunk.
pub const CHUNK_BYTES: usize = 256 * 1024;
/// Most bytes of a base that a piece is compressed against.
pub const PREFIX_BYTES: u64 = 1 << 20;
/// zstd's window over such a base and a piece, as a power of two.
const PREFIX_WINDOW_LOG: u32 = 21;
/// Most bytes of one message, both ways.
pub const MESSAGE_BYTES: usize = 512 * 1024;
/// A frame is sent once it holds this many bytes.
pub const FRAME_BYTES: usize = 256 * 1024;
/// Largest file.
pub const FILE_BYTES: u64 = 64 << 30;
/// Longest symlink target.
pub const LINK_BYTES: u64 = 4095;
/// Most commits in `NewSession`.
pub const COMMITS: usize = 256;
/// Most remotes in `NewSession`,
pub const REMOTES: usize = 64;
/// and most bytes of one.
pub const REMOTE_BYTES: usize = 2048;
/// HTTP/2 window of a stream and of a connection, both ways: enough for 1 GB/s at 10 ms round trip.
pub const WINDOW_BYTES: u32 = 8 << 20;

/// A message broke a rule of the protocol. Final for the stream it came on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("protocol violation: {0}")]
pub struct Violation(pub String);

/// What a client says.
#[derive(Debug, Clone)]
pub enum ToServer {
    Hello(Hello),
    NewSession(NewSession),
    Patch(PatchHeader, Frame),
    Frame(Frame),
    Abandon { generation: u64 },
    Ping { nonce: u64 },
    Rehash,
    Close,
    ListKept { workspace: String, owner_id: String },
    FetchKept { id: String },
    Ahead { contents: Vec<Chunk> },
    Forget(Forget),
    Offer { contents: Vec<Offered> },
    Baseline(Baseline),
    PackPiece(PackPiece),
    StopBaseline { number: u64 },
}

/// Contents that came ahead and are not needed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Forget {
    pub ids: Vec<ContentId>,
    /// The one that is coming without an id as well.
    pub nameless: bool,
}

/// A content by name, which may have to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offered {
    pub id: ContentId,
    /// In bytes, at most [`OFFERED_BYTES`].
    pub size: u64,
}

impl Chunk {
    /// How much work it is for way and server, in bytes.
    pub fn weight(&self) -> u64 {
        let copied = if matches!(self.encoding, Encoding::Copy(_)) { self.length } else { 0 };
        64 + self.data.len() as u64 + copied
    }

    /// True for the piece a content ends with.
    pub fn is_last(&self) -> bool {
        self.offset + self.length == self.size
    }
}

/// What a server says.
#[derive(Debug, Clone)]
pub enum ToClient {
    Welcome(Welcome),
    Session(Session),
    Wanted(Wanted),
    Ack(Ack),
    Refusal(Refusal),
    Pong {
        nonce: u64,
    },
    Drift(Drift),
    Kept {
        files: Vec<KeptFile>,
        more: bool,
    },
    KeptContent {
        offset: u64,
        data: Bytes,
        end: bool,
    },
    Taken {
        weight: u64,
    },
    /// Ascending positions in the oldest offer that is not answered yet.
    Lacking {
        positions: Vec<u32>,
    },
    Landed(Landed),
    NotLanded(NotLanded),
    /// Refused paths of the patch whose ack follows, beyond those the ack has room for.
    Refused {
        generation: u64,
        paths: Vec<RefusedPath>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub protocol: u32,
    pub required: Vec<String>,
    pub optional: Vec<String>,
    pub software: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    pub protocol: u32,
    pub features: Vec<String>,
    pub software: String,
    /// Names the run of the kernel the server is in, empty where it has no name.
    pub kernel: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSession {
    pub workspace: String,
    pub owner_id: String,
    pub owner_text: String,
    pub takeover: bool,
    pub hash_kind: HashKind,
    pub head: Option<ObjectId>,
    pub branch: Option<Vec<u8>>,
    /// Newest first.
    pub commits: Vec<ObjectId>,
    pub remotes: Vec<String>,
    /// Managed files changed on the server stay as they are.
    pub hold_drift: bool,
}

/// Managed files that somebody else changed or removed; what is left is `held`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    pub held: PatchId,
    /// At most [`NAMED_PATHS`].
    pub paths: Vec<RelPath>,
    pub count: u64,
}

/// A file in a workspace's recovery store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptFile {
    /// Names it to the server.
    pub id: String,
    pub path: RelPath,
    pub size: u64,
    /// Seconds since the Unix epoch.
    pub kept_at: u64,
    pub mode: Mode,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub held: PatchId,
    pub held_files: u64,
    pub common: Option<ObjectId>,
    pub epoch: u64,
    pub drifted: Vec<RelPath>,
    pub drifted_count: u64,
    /// What the branch (or HEAD itself) of the workspace's clone is at.
    pub clone_head: Option<ObjectId>,
    /// Short name of the branch HEAD is on; none when it is detached.
    pub clone_branch: Option<Vec<u8>>,
    /// Commits whose parents the clone does not have, at most [`CLONE_SHALLOW`].
    pub clone_shallow: Vec<ObjectId>,
    /// Nothing of what a first patch brings can be there already.
    pub blank: bool,
}

/// Which patch follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PatchHeader {
    pub kind: PatchKind,
    pub next: PatchId,
    pub generation: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchKind {
    /// `ApplyPatch`
    Whole { base: PatchId },
    /// `ApplyPatchDiff`
    Diff { parent: PatchId },
}

#[derive(Debug, Clone, Default)]
pub struct Frame {
    pub changes: Vec<Change>,
    pub contents: Vec<Chunk>,
    pub changes_end: bool,
    pub end: bool,
}

/// A piece of one content, encoded.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// `None` in all pieces but the last of a content whose id is not known yet: see [`NAMELESS`].
    pub id: Option<ContentId>,
    /// Of the whole content.
    pub size: u64,
    pub offset: u64,
    pub encoding: Encoding,
    pub data: Bytes,
    /// Of the piece once decoded.
    pub length: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encoding {
    Raw,
    Zstd,
    /// One zstd frame whose prefix is the base's bytes.
    ZstdFrom(Base),
    /// The base's bytes themselves; `data` is empty.
    Copy(Base),
}

/// Bytes of a managed file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    pub path: RelPath,
    /// What the file must hold.
    pub id: ContentId,
    pub offset: u64,
    pub length: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub generation: u64,
    pub changes: Vec<u32>,
    pub extra: Vec<RelPath>,
    pub more: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    pub generation: u64,
    pub id: PatchId,
    pub written: u64,
    pub deleted: u64,
    pub apply_us: u64,
    pub refused: Vec<RefusedPath>,
    pub kept: Vec<RelPath>,
    pub kept_count: u64,
}

/// A path of a patch that was not applied, while the others were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedPath {
    pub path: RelPath,
    /// Text of the other side, not yet escaped.
    pub reason: String,
    /// The managed file there now; of its signature the size alone is known. `None` if there is none.
    pub held: Option<Leaf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// 0 for the session as a whole.
    pub generation: u64,
    pub code: RefusalCode,
    /// Outermost first; text of the other side, not yet escaped.
    pub messages: Vec<String>,
    pub held: Option<PatchId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalCode {
    Protocol,
    ParentMismatch,
    PatchInvalid,
    BaseUnknown,
    RemotesDiffer,
    Locked,
    Superseded,
    Workspace,
    TooLarge,
    DiskFull,
    Failed,
    ShuttingDown,
    ContentMissing,
}

/// The reason of a refused path whose file was changed on the server, where drift is on hold.
pub const DRIFT: &str = "drift";

/// Most paths named in a list that only informs.
pub const NAMED_PATHS: usize = 1_000;
