//! What the control socket needs of a running engine: its status, its events, its commands.
//!
//! The hub stands between the engine and the face and folds a status of its own, so that a terminal
//! that stalls holds up no answer.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gitsync_core::engine::{self, Command};
use gitsync_core::model::status::Status;
use gitsync_core::model::{Event, EventKind, Phase, TargetId};
use serde_json::Value;
use tokio::sync::{Notify, broadcast, mpsc, watch};

use super::report;
use crate::sense;

/// Events a listener may be behind before it loses some.
const BEHIND_MAX: usize = 4_096;
/// A save makes a few events for each of its targets: they are passed on together, and once it is on its way, because
/// whoever looks on takes processor time from it.
const GATHER: Duration = Duration::from_millis(2);
/// How long a command is waited for to show.
const SHOW_LIMIT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Hub {
    handle: engine::Handle,
    state: Mutex<State>,
    /// Moves with every event.
    moved: watch::Sender<()>,
    /// Bounded: a listener that stalls loses lines and is told by the gap in `seq`.
    events: broadcast::Sender<Arc<Event>>,
    stop: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    status: Status,
    /// When each server last named what it holds.
    checked: HashMap<TargetId, Instant>,
}

impl Hub {
    /// Listens to `events` and passes them on. `stop` is notified when somebody asks for the end. Must be called
    /// inside a tokio runtime.
    pub fn start(
        handle: engine::Handle,
        mut events: engine::Events,
        stop: Arc<Notify>,
    ) -> (Arc<Self>, engine::Events) {
        let (face, passed_on) = mpsc::unbounded_channel();
        let status = Status::new(handle.targets(), Instant::now());
        let hub = Arc::new(Self {
            handle,
            state: Mutex::new(State { status, checked: HashMap::new() }),
            moved: watch::Sender::new(()),
            events: broadcast::Sender::new(BEHIND_MAX),
            stop,
        });
        let ours = hub.clone();
        // Ends with the engine.
        tokio::spawn(async move {
            while let Some(first) = events.recv().await {
                tokio::time::sleep(GATHER).await;
                let mut next = Some(first);
                while let Some(event) = next {
                    ours.take(&event);
                    // A face that has ended needs no more.
                    let _ = face.send(event);
                    next = events.try_recv().ok();
                }
            }
        });
        (hub, passed_on)
    }

    /// All there are now, in the order of the configuration.
    pub fn targets(&self) -> Vec<TargetId> {
        self.state().status.targets.iter().map(|status| status.target.clone()).collect()
    }

    /// One object for each of `targets`.
    pub fn report(&self, targets: &[TargetId], now: Instant) -> Vec<Value> {
        let state = self.state();
        let known = targets.iter().filter_map(|id| Some((state.status.get(id)?, state.checked.get(id))));
        known.map(|(status, checked)| report::target(status, checked.copied(), now)).collect()
    }

    /// Gives a command, and waits a moment until a pause or its end shows. Names the targets for which it changes
    /// nothing, and why.
    pub async fn command(&self, targets: &[TargetId], command: Command) -> BTreeMap<String, String> {
        let mut moved = self.moved.subscribe();
        let unchanged = self.unchanged(targets, command);
        for target in targets {
            self.handle.command(Some(target), command);
        }
        let wanted = match command {
            Command::Pause => |phase| !matches!(phase, Phase::Syncing | Phase::InSync),
            Command::Resume => |phase| !matches!(phase, Phase::Pausing | Phase::Paused),
            _ => return unchanged,
        };
        let shown = async {
            while !targets.iter().all(|id| self.phase(id).is_none_or(wanted)) {
                if moved.changed().await.is_err() {
                    return;
                }
            }
        };
        // What does not show by then shows in the status later.
        let _ = tokio::time::timeout(SHOW_LIMIT, shown).await;
        unchanged
    }

    fn unchanged(&self, targets: &[TargetId], command: Command) -> BTreeMap<String, String> {
        let state = self.state();
        let futile = |id: &TargetId| {
            let why = sense::futile(state.status.get(id)?, self.handle.is_paused(id), command)?;
            Some((id.to_string(), why.to_owned()))
        };
        targets.iter().filter_map(futile).collect()
    }

    /// Asks the program to end.
    pub fn stop(&self) {
        self.stop.notify_one();
    }

    pub fn listen(&self) -> broadcast::Receiver<Arc<Event>> {
        self.events.subscribe()
    }

    fn take(&self, event: &Event) {
        let mut state = self.state();
        state.status.apply(event);
        if let EventKind::Config(Ok(changes)) = &event.kind {
            state.checked.retain(|target, _| changes.targets.contains(target));
        }
        if let (EventKind::Session { .. } | EventKind::Acked(_), Some(target)) = (&event.kind, &event.target)
        {
            state.checked.insert(target.clone(), event.at);
        }
        drop(state);
        if self.events.receiver_count() > 0 {
            // Without a listener nobody needs to know.
            let _ = self.events.send(Arc::new(event.clone()));
        }
        self.moved.send_replace(());
    }

    fn phase(&self, target: &TargetId) -> Option<Phase> {
        self.state().status.get(target).map(|status| status.phase)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
