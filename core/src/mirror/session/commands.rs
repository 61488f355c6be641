//! What a person, or the program around, asks of a session.

use std::time::Instant;

use super::{Action, Link, Negotiation, Rehash, Session};
use crate::model::EventKind;
use crate::repo::observer::Request;

impl Session {
    pub fn pause(&mut self, now: Instant) {
        self.paused = true;
        self.advance(now);
    }

    pub fn resume(&mut self, now: Instant) {
        self.paused = false;
        self.advance(now);
    }

    /// Ends any wait, has the repository looked at, sends.
    pub fn sync_now(&mut self, now: Instant) {
        self.actions.push_back(Action::Ask(Request::Rescan));
        self.track.try_anew();
        self.wake();
        self.advance(now);
    }

    /// Client re-reads everything, server rehashes everything, then every path is compared anew.
    pub fn resync(&mut self, now: Instant) {
        self.start_rehash(Rehash::Resync, now);
    }

    /// Like [`Session::resync`], but only what turns out to differ is sent.
    pub fn verify(&mut self, now: Instant) {
        self.start_rehash(Rehash::Verify, now);
    }

    fn start_rehash(&mut self, rehash: Rehash, now: Instant) {
        self.actions.push_back(Action::Ask(Request::Reread));
        self.rehash = Some(rehash);
        self.wake();
        self.advance(now);
    }

    /// A person says that what stopped this target is meant: the brake is released, drift on hold is replaced.
    pub fn accept(&mut self, now: Instant) {
        self.actions.push_back(Action::Ask(Request::Accept));
        self.accept_stranger();
        if self.refused.wake_drift() {
            self.accept_drift = true;
            self.offer_refused();
            if self.link == Link::Open {
                self.negotiate(Negotiation::Moved);
            }
        }
        self.advance(now);
    }

    /// A person says that a workspace that is another owner's is to be ours. Means nothing elsewhere.
    pub fn takeover(&mut self, now: Instant) {
        match self.link {
            Link::Stopped { .. } if self.locked => {
                self.takeover = true;
                self.wake();
            }
            _ => {
                let text = "nothing to take over: the workspace is not locked";
                self.events.push(EventKind::Note(text.into()));
            }
        }
        self.advance(now);
    }

    /// The network was lost, and with it the connection: another is made at once. What waits for a person, or was paused by
    /// one, does so still.
    pub fn reconnect(&mut self, now: Instant) {
        if !matches!(self.link, Link::Stopped { .. } | Link::Closed) {
            self.drop_stream();
            (self.retries, self.down_since) = (0, None);
            self.connect();
        }
        self.advance(now);
    }

    /// Until then a workspace that is locked is tried again: another session of this program may be about to leave it.
    pub fn be_patient(&mut self, until: Instant) {
        self.patient_until = Some(until);
    }
}
