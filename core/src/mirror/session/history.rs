//! Where a session touches the history track: what the track hears of, and when it may act.

use std::time::Instant;

use super::Session;
use crate::mirror::baseline::{SentStep, StepError};
use crate::repo::history::{CloneState, Reason};
use crate::wire::{self, Landed, NotLanded};

impl Session {
    /// A step of the history went into the transport whole; `None` if there was nothing to say.
    pub fn handle_step_sent(&mut self, sent: Result<Option<SentStep>, StepError>, now: Instant) {
        match sent {
            Ok(sent) => self.track.handle_sent(sent, now),
            Err(error) => self.track.handle_failed(error, now),
        }
        self.advance(now);
    }

    pub(super) fn handle_landed(&mut self, landed: &Landed, now: Instant) {
        self.track.handle_landed(landed, now);
    }

    pub(super) fn handle_not_landed(&mut self, not: NotLanded, now: Instant) {
        self.track.handle_not_landed(not, now);
    }

    /// The answer to the newest NewSession says what the clone has.
    pub(super) fn note_clone(&mut self, session: &wire::Session) {
        let Some(head) = self.told.clone().filter(|_| self.expected.is_empty()) else { return };
        let clone = CloneState {
            head: session.clone_head,
            branch: session.clone_branch.clone(),
            shallow: session.clone_shallow.clone(),
            common: session.common,
        };
        self.track.handle_session(clone, head);
    }

    /// Begins the next step of the history, or gives up the one under way while nothing may be sent.
    pub(super) fn advance_history(&mut self, now: Instant) {
        match self.paused || self.closing || self.braked.is_some() {
            true => self.track.hold(),
            false => self.track.advance(now),
        }
        self.actions.extend(self.track.take_actions());
        self.events.extend(self.track.take_events());
    }

    /// Why the baseline the clone stands on is of no more use, if it is not.
    pub(super) fn stale_reason(&self, session: &wire::Session) -> Option<String> {
        let head = self.told.as_ref().filter(|_| self.track.is_offered())?;
        let Some(old) = session.clone_head else {
            return head.commit.map(|_| "baseline unknown: the clone has no commit yet".into());
        };
        if session.clone_branch != head.branch {
            let (from, to) = (session.clone_branch.clone(), head.branch.clone());
            return Some(format!("baseline stale: {}", Reason::BranchChanged { from, to }));
        }
        let recent = head.commits.contains(&old);
        (!recent).then(|| {
            let old = old.to_hex_with_len(12);
            format!("baseline stale: the clone is at {old}, which is not in HEAD's recent history")
        })
    }
}
