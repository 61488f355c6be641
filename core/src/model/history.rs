//! How far a workspace's clone follows the client's commits.

use gix::ObjectId;

/// How much of the history a workspace's clone gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HistoryDepth {
    #[default]
    Full,
    /// So many commits, counted from HEAD when it first lands; at least one.
    Commits(u64),
}

/// Refs, HEAD and index of the workspace's clone are where the client's are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaselineLanded {
    /// The commit the clone was at before; `None` for none.
    pub from: Option<ObjectId>,
    /// `None` on an unborn branch.
    pub to: Option<ObjectId>,
    /// `None` when HEAD is detached.
    pub branch: Option<String>,
    /// That came with it.
    pub objects: u64,
    pub wire_bytes: u64,
    /// No older history is to follow.
    pub complete: bool,
    pub reason: String,
}
