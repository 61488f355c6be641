//! Another repository where the mirrored one was.
//!
//! A target remembers which repository it mirrored last. When another one is at the path at a start and a large share of
//! what the server holds is not in it, nothing is sent and a person is asked: it may have been put there by mistake, and
//! the server's copy may be the only one left. A clone made anew, a restored backup or a moved disk are other
//! repositories too; they have nearly all files, so they pass, and are remembered from then on.

use std::time::Instant;

use super::{Action, Session};
use crate::model::patch::{self, ChangeKind};
use crate::model::{ErrorCode, ErrorReport, EventKind, Missing, Phase, Snapshot};
use crate::repo::RepoIdentity;
use crate::wire::Wanted;

#[derive(Debug, Default)]
pub(super) struct Stranger {
    /// A person said that this one may take the place.
    accepted: Option<RepoIdentity>,
    /// The target is halted because of it.
    stopped: bool,
    /// How many files the server holds.
    held_files: u64,
    /// The patch whose deletions are counted, and how many there are.
    counted: (u64, u64),
}

impl Session {
    /// The repository at the path, if it is not the one that was mirrored before.
    fn stranger(&self) -> Option<RepoIdentity> {
        let place = self.newest.as_ref()?.update.place;
        let was = self.identity.mirrored?;
        (place != was && self.stranger.accepted != Some(place)).then_some(place)
    }

    /// The server holds a snapshot this client knows, so what would be deleted is known.
    pub(super) fn stops_stranger_by_session(&mut self, held_files: u64, now: Instant) -> bool {
        self.stranger.held_files = held_files;
        self.stranger.counted = (0, 0);
        let (Some(acked), Some(newest)) = (&self.acked, &self.newest) else { return false };
        let deleted = deletions(acked, &newest.update.snapshot);
        self.stops_stranger(Missing { files: deleted, of: acked.root().leaves() }, now)
    }

    /// The server says which of its paths a whole patch does not name.
    pub(super) fn stops_stranger_by_wanted(&mut self, wanted: &Wanted, now: Instant) -> bool {
        let Some(sent) = self.sent.iter().find(|s| s.generation == wanted.generation) else { return false };
        let is_deleted = |path: &&_| sent.snapshot.removal_of(path) == ChangeKind::Delete;
        let deleted = wanted.extra.iter().filter(is_deleted).count() as u64;
        let before = if self.stranger.counted.0 == wanted.generation { self.stranger.counted.1 } else { 0 };
        self.stranger.counted = (wanted.generation, before + deleted);
        self.stops_stranger(Missing { files: before + deleted, of: self.stranger.held_files }, now)
    }

    fn stops_stranger(&mut self, missing: Missing, now: Instant) -> bool {
        if self.stranger().is_none() || !missing.is_large() {
            return false;
        }
        self.stranger.stopped = true;
        let report = ErrorReport {
            code: ErrorCode::Repository,
            message: format!(
                "{} is not the repository it was when it was last mirrored: {} of {} files on the server are not in it",
                self.identity.workdir, missing.files, missing.of
            ),
            causes: vec![
                "nothing is deleted on the server until it is back, or until you accept what is there now"
                    .into(),
            ],
            retryable: false,
        };
        self.halt(Phase::Halted, report, now);
        self.events.push(EventKind::Brake(Some(missing)));
        true
    }

    /// A person says that what is there now is meant.
    pub(super) fn accept_stranger(&mut self) {
        if std::mem::take(&mut self.stranger.stopped) {
            self.stranger.accepted = self.newest.as_ref().map(|n| n.update.place);
            self.events.push(EventKind::Brake(None));
            self.wake();
        }
    }

    /// While this program runs, another repository takes the place only when a person accepted it.
    pub(super) fn note_place(&mut self, place: RepoIdentity) {
        if self.newest.as_ref().is_some_and(|n| n.update.place != place) {
            self.stranger.accepted = Some(place);
        }
    }

    /// In sync with what is there now: it has taken the place.
    pub(super) fn remember_stranger(&mut self) {
        let Some(place) = self.newest.as_ref().map(|n| n.update.place) else { return };
        if self.identity.mirrored != Some(place) {
            self.identity.mirrored = Some(place);
            self.actions.push_back(Action::Remember(place));
        }
    }
}

fn deletions(held: &Snapshot, next: &Snapshot) -> u64 {
    patch::between(held, next).iter().filter(|change| change.kind == ChangeKind::Delete).count() as u64
}
