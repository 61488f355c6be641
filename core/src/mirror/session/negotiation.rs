//! What client and server agree on: features, then NewSession as often as HEAD, branch or remotes move.

use std::time::{Duration, Instant};

use super::{Features, Link, Negotiation, Rehash, Session};
use crate::model::{Acked, ErrorCode, ErrorReport, EventKind, Phase, Rung};
use crate::wire::{self, ToServer};

impl Session {
    pub(super) fn handle_welcome(&mut self, welcome: &wire::Welcome, now: Instant) {
        if welcome.protocol != wire::PROTOCOL {
            let report = ErrorReport {
                code: ErrorCode::Protocol,
                message: format!(
                    "the server speaks protocol {}, this client {}",
                    welcome.protocol,
                    wire::PROTOCOL
                ),
                causes: Vec::new(),
                retryable: false,
            };
            return self.halt(Phase::Halted, report, now);
        }
        let has = |feature: &str| welcome.features.iter().any(|f| f == feature);
        let history = has(wire::HISTORY);
        let ahead = has(wire::AHEAD);
        let offer = ahead && has(wire::OFFER);
        let nameless = ahead && has(wire::NAMELESS);
        self.features = Features { delta: has(wire::DELTA), ahead, history, offer, nameless };
        self.track.offer(history);
        // NewSession follows once the repository is open.
        self.link = Link::Opening;
    }

    /// Sends NewSession, once the repository is open.
    pub(super) fn negotiate(&mut self, negotiation: Negotiation) {
        let newest =
            self.newest.as_ref().map(|n| (n.update.head.clone(), n.update.snapshot.root().hash_kind()));
        let Some((head, hash_kind)) = newest.or_else(|| self.opened.clone()) else { return };
        let message = ToServer::NewSession(wire::NewSession {
            workspace: self.identity.workspace.clone(),
            owner_id: self.identity.owner_id.clone(),
            owner_text: self.identity.owner_text.clone(),
            takeover: self.takeover && negotiation == Negotiation::First,
            hash_kind,
            head: head.commit,
            branch: head.branch.clone(),
            commits: head.commits.clone(),
            remotes: head.remotes.clone(),
            hold_drift: self.identity.hold_drift && !self.accept_drift,
        });
        self.told = Some(head);
        self.expected.push_back(negotiation);
        self.say(message);
    }

    pub(super) fn handle_session(&mut self, session: wire::Session, now: Instant) {
        if !session.blank {
            // It may have some of it already, and will say what it lacks.
            self.read = Vec::new();
        }
        if self.newest.is_none() {
            // What it holds is looked at when there is something to compare it with.
            self.early = Some(session);
            return;
        }
        let Some(negotiation) = self.expected.pop_front() else {
            return self.violation("a session that was not asked for".into(), now);
        };
        if session.drifted_count > 0 {
            self.events.push(EventKind::Drift { paths: session.drifted.clone(), kept: 0 });
        }
        if matches!(negotiation, Negotiation::Rehash(_)) {
            self.track.compare();
        }
        self.note_clone(&session);
        let Some(newest) = &self.newest else { return };
        let newest_id = newest.update.snapshot.id();
        if negotiation != Negotiation::Moved {
            self.void_sent();
            self.refused.wake();
            self.offer_refused();
            self.acked = self.recall(session.held);
            self.settle_refused();
            if self.stops_stranger_by_session(session.held_files, now) {
                return;
            }
            self.whole = negotiation == Negotiation::Rehash(Rehash::Resync);
            self.rung = match &self.acked {
                Some(_) if self.whole => Rung::Patch,
                Some(acked) if acked.id() == newest_id => Rung::None,
                Some(_) => Rung::Diff,
                None => Rung::Patch,
            };
            if negotiation == Negotiation::First {
                (self.locked, self.takeover) = (false, false);
                self.link = Link::Open;
                self.generation = 0;
                self.send_ping(now);
            }
        }
        if self.accept_drift && negotiation == Negotiation::First && self.rung == Rung::None {
            // Nothing was on hold after all; what comes later was not meant.
            self.accept_drift = false;
            self.negotiate(Negotiation::Moved);
        }
        let reason = match (negotiation, self.rung) {
            (Negotiation::Moved, _) => "HEAD, branch or remotes moved",
            (Negotiation::Rehash(Rehash::Resync), _) => "resync",
            (Negotiation::Rehash(Rehash::Verify), _) => "verify",
            (Negotiation::First, Rung::None) => "the server holds this state already",
            (Negotiation::First, Rung::Diff) => "the server holds a state this client remembers",
            (Negotiation::First, Rung::Patch) if session.held_files == 0 => "the server has no files yet",
            (Negotiation::First, Rung::Patch) => "the server holds a state this client does not know",
        };
        let stale = match negotiation {
            Negotiation::Rehash(_) => None,
            _ => self.stale_reason(&session),
        };
        let reason = stale.map_or_else(|| reason.to_owned(), |stale| format!("{reason}; {stale}"));
        self.report_session(session.held, session.common, reason);
        if negotiation != Negotiation::Moved {
            self.report_local();
        }
        if negotiation != Negotiation::Moved && self.rung == Rung::None && self.is_satisfied() {
            self.note_in_sync(now);
            self.track.handle_ack();
            let oldest = self.newest.as_mut().and_then(|n| n.unsent.take());
            self.events.push(EventKind::Acked(Acked {
                patch_id: newest_id,
                parent_id: newest_id,
                generation: 0,
                written: 0,
                deleted: 0,
                wire_bytes: 0,
                latency: None,
                held: oldest.map_or(Duration::ZERO, |(_, held)| held),
                apply: Duration::ZERO,
                rtt: self.rtt,
                withheld: self.withheld().len() as u64,
            }));
        }
    }
}
