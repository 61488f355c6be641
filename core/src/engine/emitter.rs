//! The one way out for events. It knows which targets there are, so that nothing is heard of one that was removed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use tokio::sync::mpsc;

use crate::model::{Changes, ErrorReport, Event, EventKind, Phase, TargetId};

/// Sends events, stamped.
#[derive(Debug, Clone)]
pub struct Emitter {
    events: mpsc::UnboundedSender<Event>,
    told: Told,
}

/// The targets there are, and what outlives a session of what was told of them last.
pub type Told = Arc<Mutex<HashMap<TargetId, Last>>>;

#[derive(Debug, Clone)]
pub struct Last {
    stay: Stay,
    phase: Phase,
    withheld: bool,
    braked: bool,
}

/// From where the configuration begins to name a target to where it ends. What a session that is ending has to say of an
/// earlier one is not about this one.
#[derive(Debug, Clone)]
pub struct Stay(Arc<()>);

impl Emitter {
    pub fn new(events: mpsc::UnboundedSender<Event>, told: Told) -> Self {
        Self { events, told }
    }

    pub fn emit(&self, target: &TargetId, kind: EventKind) {
        self.emit_locked(&mut self.lock(), target, kind);
    }

    /// `None` if there is no such target.
    pub fn stay(&self, target: &TargetId) -> Option<Stay> {
        self.lock().get(target).map(|last| last.stay.clone())
    }

    /// Reports what is about that stay of the target, if it lasts.
    pub fn emit_in(&self, stay: &Stay, target: &TargetId, kind: EventKind) {
        let mut told = self.lock();
        if told.get(target).is_some_and(|last| Arc::ptr_eq(&last.stay.0, &stay.0)) {
            self.emit_locked(&mut told, target, kind);
        }
    }

    /// Reports something about the whole program.
    pub fn tell(&self, kind: EventKind) {
        self.send(None, kind);
    }

    /// There are these targets from now on.
    pub fn know(&self, targets: &[TargetId]) {
        Self::know_locked(&mut self.lock(), targets);
    }

    /// The configuration changed: the last that is heard of the targets that are removed.
    pub fn configured(&self, changes: Changes) {
        let mut told = self.lock();
        Self::know_locked(&mut told, &changes.targets);
        self.send(None, EventKind::Config(Ok(changes)));
    }

    /// The target starts anew: what was told of its last run holds no more.
    pub fn anew(&self, target: &TargetId) {
        let mut told = self.lock();
        let Some((braked, withheld)) = told.get(target).map(|last| (last.braked, last.withheld)) else {
            return;
        };
        if braked {
            self.emit_locked(&mut told, target, EventKind::Brake(None));
        }
        if withheld {
            self.emit_locked(&mut told, target, EventKind::Withheld { paths: Vec::new() });
        }
        self.enter(&mut told, target, Phase::Connecting, String::new());
    }

    /// The target has stopped, and this is why.
    pub fn stop(&self, target: &TargetId, phase: Phase, report: ErrorReport) {
        let mut told = self.lock();
        let reason = report.one_line();
        self.emit_locked(&mut told, target, EventKind::Error(report));
        self.enter(&mut told, target, phase, reason);
    }

    fn enter(&self, told: &mut HashMap<TargetId, Last>, target: &TargetId, to: Phase, reason: String) {
        let Some(from) = told.get(target).map(|last| last.phase).filter(|from| *from != to) else { return };
        self.emit_locked(told, target, EventKind::State { from, to, reason, retry_at: None });
    }

    fn emit_locked(&self, told: &mut HashMap<TargetId, Last>, target: &TargetId, kind: EventKind) {
        let Some(last) = told.get_mut(target) else { return };
        match &kind {
            EventKind::State { to, .. } => last.phase = *to,
            EventKind::Withheld { paths } => last.withheld = !paths.is_empty(),
            EventKind::Brake(missing) => last.braked = missing.is_some(),
            _ => {}
        }
        self.send(Some(target.clone()), kind);
    }

    fn know_locked(told: &mut HashMap<TargetId, Last>, targets: &[TargetId]) {
        told.retain(|id, _| targets.contains(id));
        for id in targets {
            told.entry(id.clone()).or_insert_with(|| Last {
                stay: Stay(Arc::default()),
                phase: Phase::Connecting,
                withheld: false,
                braked: false,
            });
        }
    }

    fn send(&self, target: Option<TargetId>, kind: EventKind) {
        // Without a face nobody needs to know.
        let _ = self.events.send(Event { at: Instant::now(), time: SystemTime::now(), target, kind });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TargetId, Last>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ErrorCode, Missing, RelPath, WithheldReason};

    fn target(server: &str) -> TargetId {
        TargetId { repo: "r".into(), server: server.into() }
    }

    fn state(from: Phase, to: Phase) -> EventKind {
        EventKind::State { from, to, reason: String::new(), retry_at: None }
    }

    /// One word an event.
    fn words(events: &mut mpsc::UnboundedReceiver<Event>) -> Vec<String> {
        let word = |event: Event| match event.kind {
            EventKind::State { from, to, .. } => format!("{from}>{to}"),
            EventKind::Withheld { paths } => format!("withheld {}", paths.len()),
            EventKind::Brake(missing) => format!("brake {}", missing.is_some()),
            EventKind::Config(_) => "config".into(),
            EventKind::Error(report) => report.message,
            other => format!("{other:?}"),
        };
        std::iter::from_fn(|| events.try_recv().ok()).map(word).collect()
    }

    #[test]
    fn nothing_is_heard_of_a_target_that_is_not_there() {
        let (sender, mut events) = mpsc::unbounded_channel();
        let emitter = Emitter::new(sender, Told::default());
        emitter.emit(&target("a"), state(Phase::Connecting, Phase::InSync));
        emitter.know(&[target("a"), target("b")]);
        emitter.emit(&target("a"), state(Phase::Connecting, Phase::Negotiating));
        emitter.configured(Changes { targets: vec![target("b")], ..Changes::default() });
        emitter.emit(&target("a"), state(Phase::Negotiating, Phase::InSync));
        emitter.anew(&target("a"));
        emitter.emit(&target("b"), state(Phase::Connecting, Phase::Paused));
        assert_eq!(words(&mut events), ["connecting>negotiating", "config", "connecting>paused"]);
    }

    #[test]
    fn a_session_of_an_earlier_stay_is_not_heard() {
        let (sender, mut events) = mpsc::unbounded_channel();
        let emitter = Emitter::new(sender, Told::default());
        let a = target("a");
        emitter.know(std::slice::from_ref(&a));
        let first = emitter.stay(&a).unwrap();
        emitter.emit_in(&first, &a, state(Phase::Connecting, Phase::Syncing));
        emitter.know(&[]);
        emitter.know(std::slice::from_ref(&a));
        emitter.emit_in(&first, &a, state(Phase::Syncing, Phase::InSync));
        let second = emitter.stay(&a).unwrap();
        // What is known stays as it is.
        emitter.know(&[a.clone(), target("b")]);
        emitter.emit_in(&second, &a, state(Phase::Connecting, Phase::Paused));
        assert_eq!(words(&mut events), ["connecting>syncing", "connecting>paused"]);
        assert!(emitter.stay(&target("c")).is_none());
    }

    #[test]
    fn a_new_run_takes_back_what_the_last_one_said_and_states_stay_a_chain() {
        let (sender, mut events) = mpsc::unbounded_channel();
        let emitter = Emitter::new(sender, Told::default());
        let a = target("a");
        emitter.know(std::slice::from_ref(&a));
        emitter.anew(&a);
        assert_eq!(words(&mut events), [""; 0]);
        let path = RelPath::new("f").unwrap();
        emitter.emit(&a, EventKind::Withheld { paths: vec![(path, WithheldReason::Unstable)] });
        emitter.emit(&a, EventKind::Brake(Some(Missing { files: 25, of: 30 })));
        emitter.emit(&a, state(Phase::Connecting, Phase::InSync));
        words(&mut events);
        emitter.anew(&a);
        assert_eq!(words(&mut events), ["brake false", "withheld 0", "in-sync>connecting"]);
        let gone = ErrorReport {
            code: ErrorCode::Repository,
            message: "gone".into(),
            causes: Vec::new(),
            retryable: false,
        };
        emitter.stop(&a, Phase::Halted, gone.clone());
        emitter.stop(&a, Phase::Halted, gone);
        assert_eq!(words(&mut events), ["gone", "connecting>halted", "gone"]);
        emitter.anew(&a);
        assert_eq!(words(&mut events), ["halted>connecting"]);
    }
}
