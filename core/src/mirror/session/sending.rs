//! Which patch goes next, what goes with it, and what goes ahead of it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use super::ahead::is_large;
use super::offers::{self, can_be_offered};
use super::{Action, FORGET_IDS, Outgoing, Sent, Session, WINDOW_BYTES, WINDOW_GENERATIONS};
use crate::model::patch;
use crate::model::{Change, ContentId, Needed, PatchId, RelPath, Snapshot};
use crate::wire::{Forget, PatchHeader, PatchKind, ToServer};

/// A patch about to be sent.
struct Draft {
    parent: Option<Snapshot>,
    snapshot: Snapshot,
    changes: Vec<Change>,
    /// What goes with it, and what of the server's stage it takes; `None` where the server is asked first.
    contents: Option<(Vec<Needed>, HashSet<ContentId>)>,
}

impl Session {
    pub(super) fn send_newest(&mut self) {
        let parent = match self.whole {
            true => None,
            false => self.last_sent().cloned(),
        };
        let Some(newest) = &mut self.newest else { return };
        let goal = newest.update.snapshot.clone();
        if parent.as_ref().is_some_and(|p| p.id() == goal.id()) {
            // What was changed and not sent was changed back.
            return newest.nothing_is_unsent();
        }
        if self.sent.is_empty() && self.satisfied == Some(goal.id()) {
            return;
        }
        let unacked: u64 = self.sent.iter().map(|s| s.bytes).sum();
        let full = self.sent.len() >= WINDOW_GENERATIONS || unacked > WINDOW_BYTES;
        // Nothing may come between such a patch and its contents; and of a whole one the server's paths beyond it are
        // known only once it is acked.
        let asked = self.sent.iter().any(|s| s.asks);
        if !self.sent.is_empty() && (full || asked) {
            return;
        }
        match parent {
            Some(parent) => {
                let goal = self.refused.offer(&goal, &parent);
                if goal.id() != parent.id() {
                    self.send_step(parent, goal);
                }
            }
            None if self.is_read_sent() => {
                self.whole = false;
                let base = PatchId::empty(goal.root().hash_kind());
                let changes = patch::whole(&goal);
                let staged = self.use_read(&changes);
                self.send_patch(Draft { parent: None, snapshot: goal, changes, contents: None }, base);
                if let (Some(sent), Some(newest)) = (self.sent.back_mut(), &mut self.newest) {
                    sent.staged = staged;
                    sent.oldest = newest.unsent_large.take().or(sent.oldest);
                }
            }
            None => {}
        }
    }

    /// Sends what leads from `parent` to `goal`, or as much of that as need not wait for a large content.
    fn send_step(&mut self, parent: Snapshot, mut goal: Snapshot) {
        let (mut changes, mut contents) = match self.plain {
            true => patch::whole_step_between(&parent, &goal),
            false => patch::step_between(&parent, &goal),
        };
        let waits = |session: &Self, c: &Needed| {
            is_large(c) && session.features.ahead && !session.plain && !session.ahead.has(&c.id)
        };
        let waiting: HashSet<ContentId> = contents.iter().filter(|c| waits(self, c)).map(|c| c.id).collect();
        let mut held_back = false;
        if !waiting.is_empty() {
            let waits =
                |c: &Change| matches!(c.kind, patch::ChangeKind::Put { id, .. } if waiting.contains(&id));
            let paths: Vec<RelPath> = changes.iter().filter(|c| waits(c)).map(|c| c.path.clone()).collect();
            match goal.with_paths_of(&parent, &paths) {
                Ok(rest) if rest.id() != parent.id() => {
                    goal = rest;
                    held_back = true;
                    (changes, contents) = patch::step_between(&parent, &goal);
                }
                // There is nothing else, or what there is depends on it.
                _ if !self.ask => {
                    if let Some(newest) = &mut self.newest {
                        newest.unsent_large = newest.unsent_large.or(newest.unsent.take());
                    }
                    return;
                }
                _ => {}
            }
        }
        self.ahead.drop_small();
        if !self.ask && self.awaits_answer(&contents) {
            return;
        }
        let brings_large = contents.iter().any(is_large);
        let contents = (!self.ask).then_some(contents).map(|contents| self.part_staged(contents));
        let base = parent.id();
        self.send_patch(Draft { parent: Some(parent), snapshot: goal, changes, contents }, base);
        self.note_age(brings_large, held_back);
    }

    /// How old what was just sent is: a large content's change is older than what it let pass.
    fn note_age(&mut self, brings_large: bool, leaves_large: bool) {
        let (Some(newest), Some(sent)) = (&mut self.newest, self.sent.back_mut()) else { return };
        let oldest = newest.unsent_large.take().or(sent.oldest);
        if brings_large {
            sent.oldest = oldest;
        }
        if leaves_large {
            newest.unsent_large = oldest;
        }
    }

    /// What goes with a patch, and what of it the server's stage has.
    fn part_staged(&mut self, contents: Vec<Needed>) -> (Vec<Needed>, HashSet<ContentId>) {
        let (staged, contents): (Vec<Needed>, Vec<Needed>) =
            contents.into_iter().partition(|c| !self.plain && self.ahead.has(&c.id));
        self.offers.disown(contents.iter().map(|c| &c.id));
        (contents, staged.into_iter().map(|c| c.id).collect())
    }

    fn send_patch(&mut self, draft: Draft, base: PatchId) {
        let Draft { parent, snapshot, changes, contents } = draft;
        let Some(newest) = &mut self.newest else { return };
        let kind = match contents {
            Some(_) => PatchKind::Diff { parent: base },
            None => PatchKind::Whole { base },
        };
        self.generation += 1;
        let changes = Arc::new(changes);
        let header = PatchHeader { kind, next: snapshot.id(), generation: self.generation };
        let (contents, staged) = match contents {
            Some((contents, staged)) => (Some(Arc::new(contents)), self.ahead.use_up(&staged)),
            None => (None, Vec::new()),
        };
        self.sent.push_back(Sent {
            generation: self.generation,
            parent: base,
            parent_snapshot: parent,
            asks: contents.is_none(),
            snapshot,
            oldest: newest.unsent.take(),
            changes: changes.clone(),
            staged,
            bytes: 0,
        });
        self.sending = true;
        let plain = self.plain || !self.features.delta;
        self.actions.push_back(Action::Send(Outgoing::Patch { header, changes, contents, plain }));
    }

    /// The snapshot the next step starts from.
    pub(super) fn last_sent(&self) -> Option<&Snapshot> {
        self.sent.back().map(|s| &s.snapshot).or(self.acked.as_ref())
    }

    /// Sends ahead what the newest snapshot, or the one that is coming, needs.
    pub(super) fn advance_ahead(&mut self) {
        if !self.features.ahead || self.plain || self.ask || self.ahead_not_before.is_some() {
            return;
        }
        let (Some(newest), Some(parent)) = (&self.newest, self.last_sent()) else { return };
        let newest = &newest.update.snapshot;
        let now_for = (parent.id(), newest.id(), self.preview.as_ref().map(Snapshot::id));
        if self.ahead_for == Some(now_for) {
            return self.send_ahead();
        }
        // Nobody waits for contents that were refused.
        let (mut wanted, mut needed) = (Vec::new(), HashMap::new());
        if parent.id() != newest.id() {
            let (_, contents) = patch::step_between(parent, &self.refused.offer(newest, parent));
            needed.extend(contents.iter().map(|c| (c.id, c.size)));
            wanted.extend(contents.into_iter().filter(is_large));
        }
        if let Some(preview) = &self.preview {
            let (_, contents) = patch::step_between(parent, &self.refused.offer(preview, parent));
            needed.extend(contents.iter().map(|c| (c.id, c.size)));
            wanted.extend(contents);
        }
        let (forget, in_vain) = self.ahead.retain(&needed);
        self.offers.retain(&needed);
        self.say_forget(Forget { ids: forget, nameless: false });
        if in_vain {
            let stopped = self.ahead.not_sent();
            self.actions.push_back(Action::StopAhead);
            self.say_forget(stopped);
        }
        // By all that git wrote so far: it may come one file at a time.
        let pays = offers::is_worth_it(&wanted);
        wanted.retain(|content| !self.ahead.knows(&content.id) && !self.offers.is_open(&content.id));
        let (fresh, rest) = wanted.into_iter().partition(|content| pays && self.may_offer(content));
        self.ahead.want(&rest);
        let left = self.offer(fresh);
        self.ahead.want(&left);
        self.ahead_for = Some(now_for);
        self.send_ahead();
    }

    pub(super) fn send_ahead(&mut self) {
        self.give_way();
        if let Some(batch) = self.ahead.next() {
            let plain = !self.features.delta;
            self.actions.push_back(Action::SendAhead { contents: batch, plain });
        }
        self.follow_reading();
    }

    fn may_offer(&self, content: &Needed) -> bool {
        self.features.offer && can_be_offered(content) && !self.offers.is_lacking(&content.id)
    }

    /// Offers contents by name, none of which was. Gives them back if they are too many.
    fn offer(&mut self, contents: Vec<Needed>) -> Vec<Needed> {
        if contents.len() + self.offers.open_len() > self.ahead.room() {
            return contents;
        }
        for contents in self.offers.offer(contents) {
            self.say(ToServer::Offer { contents });
        }
        Vec::new()
    }

    /// True if the step that needs these contents is git's and the server has still to say which of them it has: a round
    /// trip is well spent on what need not be sent then. Never true of an ordinary save.
    fn awaits_answer(&mut self, contents: &[Needed]) -> bool {
        if !self.features.offer || self.plain {
            return false;
        }
        let Some(newest) = &mut self.newest else { return false };
        if !(newest.is_moved || newest.is_held && offers::are_many(contents.len())) {
            return false;
        }
        // Once: what is saved meanwhile goes with the patch.
        if !std::mem::replace(&mut newest.is_asked, true) && offers::is_worth_it(contents) {
            let is_new =
                |c: &&Needed| self.may_offer(c) && !self.ahead.has(&c.id) && !self.offers.is_open(&c.id);
            let fresh = contents.iter().filter(is_new).cloned().collect();
            self.offer(fresh);
        }
        contents.iter().any(|content| self.offers.is_awaited(&content.id))
    }

    /// The answer to an offer: the server lacks what is at these positions.
    pub(super) fn handle_lacking(&mut self, positions: &[u32], now: Instant) {
        let Some(answer) = self.offers.answer(positions) else {
            return self.violation("the server answered to what was not offered".into(), now);
        };
        self.ahead.staged(answer.staged);
        self.say_forget(Forget { ids: answer.in_vain, nameless: false });
        // Else it goes with the patch that waited for this answer.
        if self.preview.is_some() {
            self.ahead.want(&answer.lacking);
        }
    }

    /// The server's stage and these books may differ: both start over.
    pub(super) fn forget_ahead(&mut self) {
        if self.ahead.is_sending() {
            self.actions.push_back(Action::StopAhead);
        }
        let forget = self.ahead.clear();
        self.say_forget(forget);
        self.offers.retain(&HashMap::new());
    }

    pub(super) fn say_forget(&mut self, forget: Forget) {
        let Forget { ids, mut nameless } = forget;
        if ids.is_empty() && nameless {
            return self.say(ToServer::Forget(Forget { ids, nameless }));
        }
        for ids in ids.chunks(FORGET_IDS) {
            self.say(ToServer::Forget(Forget { ids: ids.to_vec(), nameless: std::mem::take(&mut nameless) }));
        }
    }
}
