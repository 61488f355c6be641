//! Large files that are being read: what is the same in them as before travels meanwhile.

use std::time::Instant;

use super::{Action, Session};
use crate::model::ContentId;
use crate::repo::reading::Reading;

impl Session {
    /// A large file is being read.
    pub fn handle_reading(&mut self, reading: Reading, now: Instant) {
        self.readings.retain(|other| other.path != reading.path);
        self.readings.push(reading);
        self.advance(now);
    }

    /// The one that was followed went out whole, under this name.
    pub fn handle_followed(&mut self, id: ContentId, now: Instant) {
        self.ahead.followed(id);
        self.advance(now);
    }

    /// It came to nothing: the file changed meanwhile, or went away.
    pub fn handle_void(&mut self, now: Instant) {
        let forget = self.ahead.not_sent();
        self.say_forget(forget);
        self.advance(now);
    }

    /// Takes up the next one that can be told by what the server has.
    pub(super) fn follow_reading(&mut self) {
        self.readings.retain(|reading| !reading.is_over());
        if self.ahead.is_sending() || !self.features.nameless || !self.features.delta {
            return;
        }
        let Some(held) = self.last_sent() else { return };
        let is_held =
            |reading: &Reading| held.root().get(&reading.path).is_some_and(|leaf| leaf.id == reading.base);
        let usable = |reading: &Reading| is_held(reading) && !self.refused.has(&reading.path);
        if let Some(position) = self.readings.iter().position(usable) {
            let reading = self.readings.swap_remove(position);
            self.ahead.follow();
            self.actions.push_back(Action::Follow(reading));
        }
    }

    /// What is followed is not wanted any more.
    pub(super) fn stop_following(&mut self) {
        if self.ahead.is_following() {
            self.actions.push_back(Action::StopAhead);
            let forget = self.ahead.not_sent();
            self.say_forget(forget);
        }
    }
}
