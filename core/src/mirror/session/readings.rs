//! Large files that are being read: what is the same in them as before travels meanwhile.
//!
//! It is a favour, and in nobody's way: whatever has a name already goes first, and what was given up for it, or came to
//! nothing, goes the usual way once it was read.

use std::time::{Duration, Instant};

use super::{Action, Session};
use crate::model::{ContentId, RelPath};
use crate::repo::reading::Reading;
use crate::wire::Forget;

/// A file whose reading came to nothing changes often: it is not followed for this long.
pub(super) const VOID_REST: Duration = Duration::from_secs(10);

/// The large files of one target that are being read.
#[derive(Debug, Default)]
pub(super) struct Readings {
    /// To be followed.
    waiting: Vec<Reading>,
    /// The one that is, and what it held before.
    followed: Option<(RelPath, ContentId)>,
    /// Not followed until then.
    resting: Vec<(RelPath, Instant)>,
}

impl Session {
    /// A large file is being read.
    pub fn handle_reading(&mut self, reading: Reading, now: Instant) {
        self.readings.resting.retain(|(_, until)| *until > now);
        if !self.readings.resting.iter().any(|(path, _)| *path == reading.path) {
            reading.join(&mut self.readings.waiting);
        }
        self.advance(now);
    }

    /// The one that was followed went out whole, under this name.
    pub fn handle_followed(&mut self, id: ContentId, now: Instant) {
        self.ahead.followed(id);
        let newest = self.newest.as_ref().map(|newest| newest.update.snapshot.root());
        if let (Some((path, base)), Some(root)) = (self.readings.followed.take(), newest) {
            // With the base there still, the snapshot that has it is to come.
            let is_needed = root.get(&path).is_some_and(|leaf| leaf.id == id || leaf.id == base);
            if !is_needed {
                self.ahead_for = None;
            }
        }
        self.advance(now);
    }

    /// It came to nothing, which the server was told.
    pub fn handle_void(&mut self, now: Instant) {
        self.ahead.not_sent();
        let rests = self.readings.followed.take().map(|(path, _)| (path, now + VOID_REST));
        self.readings.resting.extend(rests);
        self.advance(now);
    }

    /// Takes up the next one that can be told by what the server has.
    pub(super) fn follow_reading(&mut self) {
        self.readings.waiting.retain(|reading| !reading.is_over());
        let is_able = self.features.nameless && self.features.delta;
        // What a whole patch brings is not there yet.
        if self.ahead.is_sending() || !is_able || self.sent.iter().any(|sent| sent.asks) {
            return;
        }
        let Some(held) = self.last_sent() else { return };
        let is_held =
            |reading: &Reading| held.root().get(&reading.path).is_some_and(|leaf| leaf.id == reading.base);
        let usable = |reading: &Reading| is_held(reading) && !self.refused.has(&reading.path);
        if let Some(position) = self.readings.waiting.iter().position(usable) {
            let reading = self.readings.waiting.remove(position);
            self.readings.followed = Some((reading.path.clone(), reading.base));
            self.ahead.follow();
            self.actions.push_back(Action::Follow(reading));
        }
    }

    /// Makes way for what has a name, unless that is what was read: it begins next, and so gives up what is followed on
    /// the server too.
    pub(super) fn give_way(&mut self) {
        let followed = self.readings.followed.as_ref().filter(|_| self.ahead.is_following());
        if followed.is_some_and(|(path, _)| self.ahead.has_waiting_beside(path)) {
            self.actions.push_back(Action::StopAhead);
            self.ahead.not_sent();
            self.readings.followed = None;
        }
    }

    /// What is followed is not wanted any more, and nothing takes its place.
    pub(super) fn stop_following(&mut self) {
        if self.ahead.is_following() {
            self.actions.push_back(Action::StopAhead);
            self.ahead.not_sent();
            self.readings.followed = None;
            self.say_forget(Forget { ids: Vec::new(), nameless: true });
        }
    }
}
