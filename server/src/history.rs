//! A workspace's clone: its objects, HEAD, branch, tags, boundary and index, as the client's are.
//!
//! Refuses to know who is connected and what the wire looks like. Touches the files of the working tree only to look
//! at them, and runs no filter, hook or other program a repository could name. A step comes in as a checked value,
//! its pack in pieces; it lands on a thread of its own, all or nothing that a git program would see of it.
//!
//! Rooms: `step` (what is asked), `pack` (objects in quarantine), `boundary`, `refs` and `index` (what is to be),
//! `settings`, `fetch` (commits from elsewhere), `state` (our own files, locks and what a crash leaves), `git` (programs), `objects` (reading) and `blobs` (contents among them), `land`
//! (one step in order), `unfinished` (what a person began), `worker` (the thread).

mod blobs;
mod boundary;
mod fetch;
mod git;
mod index;
mod land;
mod objects;
mod pack;
mod refs;
mod settings;
mod state;
mod step;
#[cfg(test)]
mod tests;
mod unfinished;
mod worker;

use std::collections::BTreeSet;
use std::io;

use gix::ObjectId;
use rustix::io::Errno;

pub use self::blobs::Blobs;
pub use self::fetch::Fetching;
pub use self::step::Step;
pub use self::worker::{History, OutOfTurn, Report};

use self::refs::Head;
use self::state::State;
use crate::beside::Bell;
use crate::epoch::{FencedError, Seal};
use crate::workspace::CloneDir;

/// Longest boundary a session is told of.
const SHALLOW_MAX: usize = 10_000;

/// Why a step did not land. Nothing of refs, HEAD and index has changed then, unless it is `Busy` or a failure of the
/// system half way; the same step again completes it.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// Objects are missing: the client starts anew with all of HEAD's commit.
    #[error("{0}")]
    Missing(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    TooLarge(String),
    #[error("{0}")]
    Busy(String),
    #[error("{0}")]
    Unsupported(String),
    #[error("{0}")]
    Damaged(String),
    #[error("no space left in the workspace")]
    DiskFull,
    /// The client gave it up.
    #[error("stopped")]
    Stopped,
    #[error("git takes too long")]
    Deadline,
    #[error(transparent)]
    Fenced(FencedError),
    #[error("git {what} failed: {errors}")]
    Git { what: String, errors: String },
    #[error("cannot {action}")]
    Io { action: &'static str, source: io::Error },
}

impl StepError {
    fn errno(action: &'static str, errno: Errno) -> Self {
        Self::io(action, errno.into())
    }

    fn io(action: &'static str, source: io::Error) -> Self {
        match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOSPC | Errno::DQUOT) => Self::DiskFull,
            _ => Self::Io { action, source },
        }
    }
}

/// What a clone is when a session opens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CloneState {
    /// The commit HEAD stands on; empty as well when the boundary is too long to be told.
    pub head: Option<ObjectId>,
    /// Short name; `None` when HEAD is detached.
    pub branch: Option<Vec<u8>>,
    pub shallow: Vec<ObjectId>,
}

/// The first of `commits` (newest first) that the clone owns, with its tree.
pub fn newest_common(clone: &CloneDir, commits: &[ObjectId]) -> Option<ObjectId> {
    let objects = objects::Objects::open(clone.path().join("objects"), clone.hash()).ok()?;
    let owns = |id: &ObjectId| -> Option<ObjectId> {
        let kind = objects.kind(id).ok()??;
        let (tree, _) = (kind == gix::objs::Kind::Commit).then(|| objects.commit(id).ok())??;
        let has_tree = tree.is_empty_tree() || objects.kind(&tree).ok()?.is_some();
        has_tree.then_some(*id)
    };
    commits.iter().find_map(owns)
}

/// Looks at HEAD and boundary. What cannot be read counts as not there: the client then starts anew.
pub fn look(clone: &CloneDir) -> CloneState {
    let shallow = state::read(clone.fd(), b"shallow").ok().flatten().unwrap_or_default();
    let shallow: BTreeSet<ObjectId> = boundary::parse(&shallow);
    let Ok(Some(head)) = land::read_head(clone) else { return CloneState::default() };
    let branch = match &head {
        Head::Branch(name) => name.strip_prefix(b"refs/heads/").map(<[u8]>::to_vec),
        Head::Detached(_) => None,
    };
    // Nobody's configuration but the clone's own decides what HEAD is.
    let repo = gix::open_opts(clone.path(), gix::open::Options::isolated());
    let commit = repo.ok().and_then(|repo| repo.head_id().ok().map(gix::Id::detach));
    if shallow.len() > SHALLOW_MAX {
        return CloneState { branch, ..CloneState::default() };
    }
    CloneState { head: commit, branch, shallow: shallow.into_iter().collect() }
}

/// Clears up after whoever landed here before.
pub fn heal(clone: &CloneDir, number: u64) {
    if let Err(e) = State::open(clone, number).and_then(|state| state.heal(clone)) {
        tracing::warn!("cannot clear up after an interrupted landing: {e}");
    }
}

/// [`heal`], then starts the thread of a session. `number` is its epoch.
pub fn open(
    clone: impl Into<std::sync::Arc<CloneDir>>,
    number: u64,
    held: std::sync::Arc<gitsync_core::model::Dir>,
    seal: Seal,
    bell: Bell,
) -> Result<History, StepError> {
    let clone = clone.into();
    let state = State::open(&clone, number)?;
    state.heal(&clone)?;
    History::start(clone, state, held, seal, bell).map_err(|e| StepError::io("start a thread", e))
}
