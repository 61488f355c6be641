//! Paths a server could not take, and when they are offered to it again.
//!
//! Until then such a path rests: patches lead to the newest snapshot but for it, which stays as the server has it. So
//! its content does not travel with each later save only to be refused once more. A rest ends when the client's file is
//! another one, after [`REFUSED_WAIT`], when something that may have been in the way is gone, or when a person asks.

use std::time::{Duration, Instant};

use crate::model::{Change, ChangeKind, Leaf, RelPath, Snapshot, WithheldReason};
use crate::wire::{self, RefusedPath};

/// Refused paths are offered again this often.
pub(super) const REFUSED_WAIT: Duration = Duration::from_secs(60);

/// The refused paths of one target.
#[derive(Debug, Default)]
pub(super) struct Refused {
    /// Sorted by path.
    paths: Vec<One>,
}

#[derive(Debug)]
struct One {
    path: RelPath,
    why: WithheldReason,
    /// What the server could not take: this file, or `None` for none.
    offered: Option<Leaf>,
    /// `None` once it is to be offered with the next patch.
    rests_until: Option<Instant>,
}

impl Refused {
    /// The server answered a patch that led to `sent`; `changes` are its own, `None` for a whole one.
    pub fn answered(
        &mut self,
        sent: &Snapshot,
        changes: Option<&[Change]>,
        refused: Vec<RefusedPath>,
        now: Instant,
    ) {
        match changes {
            // What it did not name rested.
            Some(changes) => self
                .paths
                .retain(|one| changes.binary_search_by(|change| change.path.cmp(&one.path)).is_err()),
            None => self.paths.clear(),
        }
        self.paths.extend(refused.into_iter().map(|RefusedPath { path, reason, .. }| One {
            offered: sent.root().get(&path).copied(),
            path,
            why: match reason.as_str() {
                wire::DRIFT => WithheldReason::Drift,
                _ => WithheldReason::Refused(reason),
            },
            rests_until: Some(now + REFUSED_WAIT),
        }));
        self.paths.sort_by(|a, b| a.path.cmp(&b.path));
        self.paths.dedup_by(|a, b| a.path == b.path);
        for change in changes.into_iter().flatten() {
            if matches!(change.kind, ChangeKind::Delete | ChangeKind::Release) {
                self.make_way(&change.path);
            }
        }
    }

    /// True if this path was refused and rests, or is to be offered again.
    pub fn has(&self, path: &RelPath) -> bool {
        self.paths.binary_search_by(|one| one.path.cmp(path)).is_ok()
    }

    /// `newest` as far as it is offered to a server that has `parent`.
    pub fn offer(&self, newest: &Snapshot, parent: &Snapshot) -> Snapshot {
        let paths: Vec<RelPath> =
            self.paths.iter().filter(|one| one.rests(newest)).map(|one| one.path.clone()).collect();
        // Where the newest tree has no place for what the server holds, all of it is offered.
        newest.with_paths_of(parent, &paths).unwrap_or_else(|_| newest.clone())
    }

    /// Paths where the server holds what it should by now are none of ours.
    pub fn settle(&mut self, newest: &Snapshot, held: &Snapshot) {
        let same = |a: Option<&Leaf>, b: Option<&Leaf>| match (a, b) {
            (Some(a), Some(b)) => a.same_content(b),
            (a, b) => a.is_none() && b.is_none(),
        };
        self.paths.retain(|one| !same(newest.root().get(&one.path), held.root().get(&one.path)));
    }

    /// All of them are offered with the next patch.
    pub fn wake(&mut self) {
        self.wake_where(|_| true);
    }

    /// These are.
    pub fn wake_paths(&mut self, paths: &[RelPath]) {
        self.wake_where(|one| paths.contains(&one.path));
    }

    /// Those are whose file was changed on the server. False if there are none.
    pub fn wake_drift(&mut self) -> bool {
        self.wake_where(|one| one.why == WithheldReason::Drift)
    }

    /// `path` went away: those are that it may have kept out, by being at their place or, where names fold, its twin.
    fn make_way(&mut self, path: &RelPath) {
        let fold = |path: &RelPath| String::from_utf8_lossy(path.as_bytes()).to_lowercase();
        let below = |a: &str, b: &str| a.strip_prefix(b).is_some_and(|rest| rest.starts_with('/'));
        if self.paths.is_empty() {
            return;
        }
        let gone = fold(path);
        self.wake_where(|one| {
            let one = fold(&one.path);
            one == gone || below(&one, &gone) || below(&gone, &one)
        });
    }

    fn wake_where(&mut self, which: impl Fn(&One) -> bool) -> bool {
        let mut any = false;
        for one in self.paths.iter_mut().filter(|one| which(one)) {
            one.rests_until = None;
            any = true;
        }
        any
    }

    /// When [`Refused::handle_time`] is due.
    pub fn due(&self) -> Option<Instant> {
        self.paths.iter().filter_map(|one| one.rests_until).min()
    }

    /// True if a rest is over.
    pub fn handle_time(&mut self, now: Instant) -> bool {
        self.wake_where(|one| one.rests_until.is_some_and(|until| until <= now))
    }

    pub fn withheld(&self) -> impl Iterator<Item = (RelPath, WithheldReason)> + '_ {
        self.paths.iter().map(|one| (one.path.clone(), one.why.clone()))
    }
}

impl One {
    fn rests(&self, newest: &Snapshot) -> bool {
        self.rests_until.is_some()
            && match (newest.root().get(&self.path), &self.offered) {
                (Some(now), Some(then)) => now.same_content(then),
                (now, then) => now.is_none() && then.is_none(),
            }
    }
}
