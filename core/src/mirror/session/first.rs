//! A first sync to a server that has nothing: contents travel while the repo is still being read.

use std::collections::HashSet;
use std::time::Instant;

use super::Session;
use crate::model::{Change, ChangeKind, ContentId, Needed};

/// Contents that may wait here for the server's first answer.
const WAITING_MOST: usize = 20_000;

impl Session {
    /// The repo's first scan, which is not over, read these.
    pub fn handle_read(&mut self, contents: Vec<Needed>, now: Instant) {
        let may_be_blank = self.early.as_ref().is_none_or(|session| session.blank);
        if self.newest.is_none() && may_be_blank {
            let room = WAITING_MOST.saturating_sub(self.read.len());
            self.read.extend(contents.into_iter().take(room));
        }
        self.advance(now);
    }

    /// Sends ahead what was read so far, if the server said that it has none of it.
    pub(super) fn advance_read(&mut self) {
        let blank = self.early.as_ref().is_some_and(|session| session.blank);
        if !blank || !self.features.ahead || self.paused || self.closing || self.ahead_not_before.is_some() {
            return;
        }
        let read = std::mem::take(&mut self.read);
        self.ahead.want(&read);
        self.send_ahead();
    }

    /// Before a whole patch: what is still to go ahead goes with it, and what is on its way ends first, or it would go
    /// twice. False if that takes a while yet.
    pub(super) fn is_read_sent(&mut self) -> bool {
        self.ahead.drop_queue();
        self.read = Vec::new();
        self.stop_following();
        !self.ahead.is_sending()
    }

    /// What of these changes' contents the server's stage has, which the patch uses up.
    pub(super) fn use_read(&mut self, changes: &[Change]) -> Vec<ContentId> {
        let id_of = |change: &Change| match change.kind {
            ChangeKind::Put { id, .. } => Some(id),
            _ => None,
        };
        let ids: HashSet<ContentId> = changes.iter().filter_map(id_of).collect();
        self.ahead.use_up(&ids)
    }
}
