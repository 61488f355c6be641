//! The operating system's file events, one watch per directory.
//!
//! Recursive watching would include ignored directories and loses files that are written right after
//! `mkdir -p`, so directories are watched one by one and looked at after. A watch is set on an open
//! directory, never on a path: a path may lead somewhere else by the time it is resolved, and events of
//! that other place would come under the wrong name.

#[cfg(target_os = "linux")]
mod inotify;
#[cfg(any(not(target_os = "linux"), test))]
mod portable;

use std::path::PathBuf;

use super::settle::Hint;

#[cfg(target_os = "linux")]
pub use self::inotify::{Waker, Watcher};
#[cfg(not(target_os = "linux"))]
pub use self::portable::{Waker, Watcher};

/// Something the operating system saw.
#[derive(Debug)]
pub enum Seen {
    Path {
        path: PathBuf,
        hint: Hint,
        kind: Kind,
    },
    /// Events were lost: only a scan tells what happened.
    Lost,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Directory,
    Other,
    /// The system does not say.
    #[cfg_attr(target_os = "linux", allow(dead_code, reason = "other systems say less"))]
    Unknown,
}

/// Watching cannot start.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch files")]
pub struct StartError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// A directory cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch {}{}", dir.display(), if *limit { ": the system's limit of watches is reached" } else { "" })]
pub struct WatchError {
    pub dir: PathBuf,
    /// `fs.inotify.max_user_watches` on Linux.
    pub limit: bool,
    pub source: Box<dyn std::error::Error + Send + Sync>,
}
