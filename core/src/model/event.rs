//! What the engine reports. Faces (dashboard, plain, JSON) see nothing else, so they cannot disagree.

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use gix::ObjectId;

use super::history::BaselineLanded;
use super::id::PatchId;
use super::path::RelPath;

/// One thing kept in sync, written `repo@server`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetId {
    pub repo: String,
    pub server: String,
}

impl fmt::Display for TargetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.repo, self.server)
    }
}

/// One report, stamped on both clocks: `at` for ages and lag, `time` for people and logs.
#[derive(Debug, Clone)]
pub struct Event {
    pub at: Instant,
    pub time: SystemTime,
    /// `None` for reports about the whole program (configuration, the engine itself).
    pub target: Option<TargetId>,
    pub kind: EventKind,
}

/// The stage of [`EventKind::Progress`] for what the history track sends.
pub const HISTORY_STAGE: &str = "history";

#[derive(Debug, Clone)]
pub enum EventKind {
    State {
        from: Phase,
        to: Phase,
        reason: String,
        /// Set when `to` is [`Phase::Retrying`]: when the next try starts.
        retry_at: Option<Instant>,
    },
    /// `NewSession` was answered.
    Session {
        rung: Rung,
        /// What the server holds.
        patch_id: PatchId,
        /// Newest commit both sides own.
        baseline: Option<ObjectId>,
        branch: Option<String>,
        reason: String,
        /// The workspace's clone is brought to the client's commits.
        follows: bool,
    },
    /// The client's own snapshot moved, or what is unacked of it changed.
    Local {
        patch_id: PatchId,
        /// Paths that differ from the last ack.
        changes: u64,
        /// When the oldest unacked change was seen; `None` when everything is acked.
        oldest: Option<Instant>,
        files: u64,
        /// The commit HEAD is at; `None` on an unborn branch.
        head: Option<ObjectId>,
    },
    /// The working tree is further than any snapshot this target was given, because the brake is set.
    HeldBack {
        /// Paths that differ from the last snapshot it was given.
        changes: u64,
        /// When the oldest of these changes was seen.
        oldest: Instant,
    },
    Acked(Acked),
    /// A step of the history landed.
    Baseline(BaselineLanded),
    Withheld {
        paths: Vec<(RelPath, WithheldReason)>,
    },
    /// Foreign bytes the server met in a path of ours and moved to its recovery store.
    Drift {
        paths: Vec<RelPath>,
        kept: u64,
    },
    Progress {
        stage: &'static str,
        done: u64,
        total: u64,
        unit: &'static str,
    },
    /// The brake was set (files of the index that are missing from disk, of how many; or files a server holds that are
    /// not in the repository which took the mirrored one's place) or released.
    Brake(Option<Missing>),
    /// A ping came back.
    Rtt(Duration),
    Error(ErrorReport),
    /// A line for the log that changes no state.
    Note(String),
    /// The configuration was read again. An error is the reason, on one line, why the old one goes on.
    Config(Result<Changes, String>),
}

/// What a reload of the configuration changed. Targets that are in none of the three lists go on undisturbed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// All there are from now on, in the order of the configuration.
    pub targets: Vec<TargetId>,
    pub added: Vec<TargetId>,
    /// Nothing is heard of these any more.
    pub removed: Vec<TargetId>,
    /// They start anew, with other settings.
    pub changed: Vec<TargetId>,
}

/// More than this share of the files missing is more than an edit.
const BRAKE_PERCENT: u64 = 30;

/// How much of what the index lists is not on disk, or of what a server holds is not in the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    pub files: u64,
    pub of: u64,
}

impl Missing {
    /// True for so large a share (more than 30 %) that a person should say it is meant.
    pub fn is_large(&self) -> bool {
        self.files * 100 > self.of * BRAKE_PERCENT
    }
}

/// The server's word that its managed files are now exactly `patch_id`.
#[derive(Debug, Clone)]
pub struct Acked {
    pub patch_id: PatchId,
    pub parent_id: PatchId,
    /// 0 when the server held this id already and nothing was sent.
    pub generation: u64,
    /// Files and links written.
    pub written: u64,
    pub deleted: u64,
    /// Bytes handed to the transport for this target since the last such figure, before TLS.
    pub wire_bytes: u64,
    /// Oldest change in the patch seen, to its ack, `held` left out; `None` if nothing was waiting.
    pub latency: Option<Duration>,
    /// Time the change was held back because git was at work.
    pub held: Duration,
    /// What the server spent applying.
    pub apply: Duration,
    /// Last measured round trip of the wire alone.
    pub rtt: Option<Duration>,
    /// Paths left out, of this snapshot, for this target.
    pub withheld: u64,
}

/// Where a target stands. [`Phase::name`] is the word in logs, JSON and on the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    Connecting,
    Negotiating,
    Bootstrapping,
    Syncing,
    InSync,
    Pausing,
    Paused,
    /// Waits out a back-off, then connects again by itself.
    Retrying,
    /// Stopped until a person decides.
    Halted,
    /// Stopped by a defect of ours.
    Failed,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Phase::Connecting => "connecting",
            Phase::Negotiating => "negotiating",
            Phase::Bootstrapping => "bootstrapping",
            Phase::Syncing => "syncing",
            Phase::InSync => "in-sync",
            Phase::Pausing => "pausing",
            Phase::Paused => "paused",
            Phase::Retrying => "retrying",
            Phase::Halted => "halted",
            Phase::Failed => "failed",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a session gets the server from what it holds to the newest snapshot, cheapest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rung {
    /// The server holds it already.
    None,
    /// The server holds a snapshot the client remembers: send the step from there.
    Diff,
    /// Send every path; the server names the contents it lacks.
    Patch,
}

impl Rung {
    pub fn name(self) -> &'static str {
        match self {
            Rung::None => "none",
            Rung::Diff => "diff",
            Rung::Patch => "patch",
        }
    }
}

/// Why a path of the set is left out of what a target gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WithheldReason {
    Unreadable(String),
    /// Written to faster than it can be read whole.
    Unstable,
    TooLarge {
        size: u64,
        limit: u64,
    },
    /// The server could not take it; its words.
    Refused(String),
    /// Changed on the server by somebody else, and the policy is to hold.
    Drift,
}

impl fmt::Display for WithheldReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(why) => write!(f, "unreadable: {why}"),
            Self::Unstable => f.write_str("changing while read"),
            Self::TooLarge { size, limit } => write!(f, "{size} bytes, over the limit of {limit}"),
            Self::Refused(why) => write!(f, "refused by the server: {why}"),
            Self::Drift => f.write_str("changed on the server, on hold"),
        }
    }
}

/// The kind of an error, stable for scripts. [`ErrorCode::name`] is the word in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// No connection, or it broke.
    Unreachable,
    /// The peer does not speak this protocol or version.
    Protocol,
    ParentMismatch,
    BaseUnknown,
    RemotesDiffer,
    /// Another owner holds the workspace.
    Locked,
    /// A newer session of the same owner took over.
    Superseded,
    /// The server cannot use the workspace directory.
    Workspace,
    Drift,
    TooLarge,
    DiskFull,
    Refused,
    /// So many files are missing that a person must say it is meant.
    Brake,
    /// The client cannot read its repository.
    Repository,
    /// The client cannot keep what it must remember of itself.
    ClientState,
    /// The workspace's clone cannot follow the client's commits; its files do.
    History,
    Internal,
}

impl ErrorCode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Protocol => "protocol",
            Self::ParentMismatch => "parent-mismatch",
            Self::BaseUnknown => "base-unknown",
            Self::RemotesDiffer => "remotes-differ",
            Self::Locked => "locked",
            Self::Superseded => "superseded",
            Self::Workspace => "workspace",
            Self::Drift => "drift",
            Self::TooLarge => "too-large",
            Self::DiskFull => "disk-full",
            Self::Refused => "refused",
            Self::Brake => "brake",
            Self::Repository => "repository",
            Self::ClientState => "client-state",
            Self::History => "history",
            Self::Internal => "internal",
        }
    }
}

/// An error as a person should meet it: what failed, why, and (added at the edge) what to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorReport {
    pub code: ErrorCode,
    /// What failed: a lowercase fragment.
    pub message: String,
    /// Why, outermost cause first.
    pub causes: Vec<String>,
    /// The engine tries again by itself.
    pub retryable: bool,
}

impl ErrorReport {
    /// Reads the message and the chain of causes out of an error.
    pub fn of(code: ErrorCode, error: &dyn std::error::Error, retryable: bool) -> Self {
        let mut causes: Vec<String> = Vec::new();
        let message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if causes.last() != Some(&text) && text != message {
                causes.push(text);
            }
            source = cause.source();
        }
        Self { code, message, causes, retryable }
    }

    /// Message and causes on one line.
    pub fn one_line(&self) -> String {
        let mut line = self.message.clone();
        for cause in &self.causes {
            line.push_str(": ");
            line.push_str(cause);
        }
        line
    }
}
