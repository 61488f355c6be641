//! Values without I/O: what a working tree is at one moment, how two moments differ, and what the
//! engine reports about keeping them equal.
//!
//! Nothing in this room knows files, sockets, tasks or clocks; time comes in as an argument. Every
//! other room speaks in these types, so a word here (snapshot, patch, ack) is the word on the wire,
//! in the logs and on the screen.

pub mod event;
pub mod history;
pub mod id;
pub mod patch;
pub mod path;
pub mod snapshot;
pub mod status;
pub mod tree;

pub use event::{
    Acked, Changes, ErrorCode, ErrorReport, Event, EventKind, HISTORY_STAGE, Missing, Phase, Rung, TargetId,
    WithheldReason,
};
pub use history::{BaselineLanded, HistoryDepth};
pub use id::{ContentHasher, ContentId, HashKind, PatchId};
pub use patch::{Change, ChangeKind, MAX_CHANGES, Needed};
pub use path::{PathError, RelPath};
pub use snapshot::Snapshot;
pub use tree::{Dir, Entry, Leaf, Mode, Signature, TreeConflict};
