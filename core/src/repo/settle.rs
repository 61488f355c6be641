//! When a changed path is looked at: at once where that is safe, a moment later where a look too early
//! would show a server a state nobody meant (an editor's temporary file, half a checkout).
//!
//! Pure: events and the time go in, ready paths come out.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::burst::Burst;
use crate::model::RelPath;

/// A name that newly appears or vanishes waits this long: vim's probe file, a temporary file about to
/// be renamed, a file that is moved away and written anew.
const APPEAR_OR_VANISH: Duration = Duration::from_millis(10);
/// A name that is used only while a file is saved waits this long, and so does that file while it is missing or
/// being written: between the moves of one save lie several syncs, of some ten milliseconds each on a slow disk.
const SAVING: Duration = Duration::from_millis(150);
/// A write without a close is taken to be over when nothing follows for this long,
const MODIFY_QUIET: Duration = Duration::from_millis(25);
/// and is looked at no later than this after its first event.
const MODIFY_LATEST: Duration = Duration::from_millis(50);
/// The hold for git ends this long after `index.lock` last went away: stash and rebase take it again.
const LOCK_FLICKER: Duration = Duration::from_millis(30);
/// The hold for git ends in any case this long after its lock was first seen.
const LOCK_LATEST: Duration = Duration::from_secs(2);

/// What an event says about a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// Closed after writing, or another file was renamed over it.
    Written,
    /// Mode or times changed.
    Attributes,
    /// Written to; the writer still has it open.
    Modified,
    Appeared,
    Vanished,
}

/// Changed paths that wait for their moment, and the hold for git.
#[derive(Debug, Default)]
pub struct Settle {
    pending: BTreeMap<RelPath, Pending>,
    /// Files being saved, and until when that excuses that they are missing or not whole.
    saving: BTreeMap<RelPath, Instant>,
    hold: Option<Hold>,
    /// The lock that ran into [`LOCK_LATEST`]: it holds nothing any more.
    spent_lock: Option<u64>,
    /// When the oldest change was seen, and when it would have been looked at, of those taken early in this hold.
    early: Option<(Instant, Instant)>,
    /// Removals that nobody did with git.
    removals: Burst,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    /// When the first event of this wait came.
    seen: Instant,
    /// When the first one came since the name last vanished.
    began: Instant,
    due: Instant,
    /// What the last event said of the content or the name.
    last: Hint,
    /// The last look failed to show what the file holds.
    is_behind: bool,
}

#[derive(Debug, Clone, Copy)]
struct Hold {
    since: Instant,
    lock: Option<u64>,
    /// `None` while the lock is there.
    gone: Option<Instant>,
}

/// Paths whose moment has come.
#[derive(Debug, PartialEq, Eq)]
pub struct Ready {
    pub paths: Vec<RelPath>,
    /// When the oldest of these changes was seen.
    pub seen: Instant,
    /// How long that one was held back for git.
    pub held: Duration,
}

impl Settle {
    /// Takes an event in. `known` says that the snapshot has this path (as a file or a directory), or another reason to
    /// hear of its end. Nobody needs to look for what was not known and is gone: a look so late would meet the next one
    /// of that name, before its time.
    pub fn note(&mut self, path: RelPath, hint: Hint, known: bool, now: Instant) {
        self.note_within(path, hint, known, APPEAR_OR_VANISH, now);
    }

    /// The same for a name that is used only while a file is saved: `saved`, if it is known which. What happens to that
    /// file is part of the save.
    pub fn note_aside(
        &mut self,
        path: RelPath,
        saved: Option<RelPath>,
        hint: Hint,
        known: bool,
        now: Instant,
    ) {
        if let Some(saved) = saved.filter(|_| matches!(hint, Hint::Appeared | Hint::Written)) {
            let began = self.pending.get(&path).filter(|p| p.last != Hint::Vanished).map_or(now, |p| p.began);
            let until = began + SAVING;
            // It was moved to this name a moment ago.
            if let Some(pending) = self.pending.get_mut(&saved).filter(|p| p.last != Hint::Written) {
                pending.due = pending.due.max(until);
            }
            let saving = self.saving.entry(saved).or_insert(until);
            *saving = until.max(*saving);
        }
        self.note_within(path, hint, known, SAVING, now);
    }

    /// A name that newly appears or vanishes waits for `appear_or_vanish`.
    fn note_within(
        &mut self,
        path: RelPath,
        hint: Hint,
        known: bool,
        appear_or_vanish: Duration,
        now: Instant,
    ) {
        if hint == Hint::Vanished && !known {
            self.pending.remove(&path);
            return;
        }
        let before = self.pending.get(&path).copied();
        let seen = before.map_or(now, |p| p.seen);
        // One that comes back after it vanished has all its time again.
        let began = before.filter(|p| p.last != Hint::Vanished).map_or(now, |p| p.began);
        let quiet = (now + MODIFY_QUIET).min(began + MODIFY_LATEST);
        let is_whole = before.is_none_or(|p| p.last == Hint::Written);
        let due = match (hint, known) {
            (Hint::Written, true) => now,
            (Hint::Attributes, true) if is_whole => now,
            // One that is being written does not become whole by it.
            (Hint::Attributes, true) => before.map_or(now, |p| p.due),
            // Back again, or being written for the first time: its close is still to come.
            (Hint::Appeared | Hint::Modified, true) => quiet,
            (Hint::Vanished, true) => now + APPEAR_OR_VANISH,
            (Hint::Modified, false) => quiet.max(began + appear_or_vanish),
            (_, false) => began + appear_or_vanish,
        };
        let due = match self.saving.get(&path) {
            Some(until) if hint != Hint::Written && !(hint == Hint::Attributes && is_whole) => {
                due.max(*until)
            }
            _ => due,
        };
        let last = if hint == Hint::Attributes { before.map_or(hint, |p| p.last) } else { hint };
        let is_behind = before.is_some_and(|p| p.is_behind);
        self.pending.insert(path, Pending { seen, began, due, last, is_behind });
    }

    /// A file that git tracks vanished. What git itself removes is held for it, and is many files for a good reason.
    pub fn note_removal(&mut self, now: Instant) {
        if !self.is_held(now) {
            self.removals.note(now);
        }
    }

    /// When many removals in a row will be over, if some are under way. Until then what vanished is not looked at.
    pub fn removals_until(&self, now: Instant) -> Option<Instant> {
        self.removals.until().filter(|until| now < *until)
    }

    /// A path to look at after `wait`, because the last look did not show it at rest.
    pub fn look_again(&mut self, path: RelPath, seen: Instant, wait: Duration, now: Instant) {
        self.pending.entry(path).or_insert(Pending {
            seen,
            began: now,
            due: now + wait,
            last: Hint::Modified,
            is_behind: false,
        });
    }

    /// The same where the last look failed to show what the file holds: until the next one, nobody knows.
    pub fn read_again(&mut self, path: RelPath, seen: Instant, wait: Duration, now: Instant) {
        self.look_again(path.clone(), seen, wait, now);
        if let Some(pending) = self.pending.get_mut(&path) {
            pending.is_behind = true;
        }
    }

    /// True while such a file waits.
    pub fn is_behind(&self) -> bool {
        self.pending.values().any(|pending| pending.is_behind)
    }

    /// `index.lock` is there (with this inode) or, with `None`, came and went before it could be looked at.
    pub fn lock_seen(&mut self, inode: Option<u64>, now: Instant) {
        if inode.is_some() && inode == self.spent_lock {
            return;
        }
        let since = self.hold.filter(|h| now < h.end()).map_or(now, |h| h.since);
        let gone = inode.is_none().then_some(now);
        self.hold = Some(Hold { since, lock: inode, gone });
    }

    /// `index.lock` went away.
    pub fn lock_gone(&mut self, now: Instant) {
        if let Some(hold) = &mut self.hold {
            hold.gone.get_or_insert(now);
        }
    }

    /// True while saves wait for git.
    pub fn is_held(&self, now: Instant) -> bool {
        self.hold.is_some_and(|h| now < h.end())
    }

    /// When the hold for git ends, if one lasts.
    pub fn held_until(&self) -> Option<Instant> {
        self.hold.map(|h| h.end())
    }

    /// Takes out what is due. While the hold for git lasts, nothing is.
    pub fn take_ready(&mut self, now: Instant) -> Option<Ready> {
        let hold = self.hold;
        if let Some(h) = hold {
            if now < h.end() {
                return None;
            }
            if h.gone.is_none() {
                self.spent_lock = h.lock;
            }
            self.hold = None;
        }
        self.saving.retain(|_, until| *until > now);
        let mut ready = Ready { paths: Vec::new(), seen: now, held: Duration::ZERO };
        let held_since = |due: Instant| hold.map_or(now, |h| h.since.max(due));
        let early = self.early.take();
        let removals = self.removals.until();
        if let Some((seen, due)) = early {
            (ready.seen, ready.held) = (seen, now.saturating_duration_since(held_since(due)));
        }
        self.pending.retain(|path, pending| {
            if pending.due(removals) > now {
                return true;
            }
            if pending.seen < ready.seen || early.is_none() && pending.seen == ready.seen {
                ready.seen = pending.seen;
                ready.held = now.saturating_duration_since(held_since(pending.due));
            }
            ready.paths.push(path.clone());
            false
        });
        (early.is_some() || !ready.paths.is_empty()).then_some(ready)
    }

    /// While the hold for git lasts: files that are whole by now. To look at them early costs nothing, as long as
    /// nobody is told before the hold ends.
    pub fn take_early(&mut self, now: Instant) -> Vec<RelPath> {
        if !self.is_held(now) {
            return Vec::new();
        }
        let (mut paths, early) = (Vec::new(), &mut self.early);
        self.pending.retain(|path, pending| {
            if pending.last != Hint::Written || pending.due > now {
                return true;
            }
            if early.is_none_or(|(seen, _)| pending.seen < seen) {
                *early = Some((pending.seen, pending.due));
            }
            paths.push(path.clone());
            false
        });
        paths
    }

    /// True if [`Settle::take_early`] has something to give.
    pub fn has_early(&self, now: Instant) -> bool {
        self.is_held(now) && self.pending.values().any(|p| p.last == Hint::Written && p.due <= now)
    }

    /// When to call [`Settle::take_ready`] next, if nothing else happens.
    pub fn deadline(&self) -> Option<Instant> {
        let removals = self.removals.until();
        let due = self.pending.values().map(|p| p.due(removals)).min();
        match (due, self.hold) {
            (Some(due), Some(hold)) => Some(due.max(hold.end())),
            (None, Some(hold)) if self.early.is_some() => Some(hold.end()),
            (due, _) => due,
        }
    }

    /// Forgets every waiting path, because a scan looks at them anyway. Gives back when the oldest was seen.
    pub fn clear(&mut self) -> Option<Instant> {
        let early = self.early.take().map(|(seen, _)| seen);
        let seen = self.pending.values().map(|p| p.seen).chain(early).min();
        self.pending.clear();
        seen
    }
}

impl Pending {
    /// When it is to be looked at, if many files vanish until `removals`.
    fn due(&self, removals: Option<Instant>) -> Instant {
        removals.filter(|_| self.last == Hint::Vanished).map_or(self.due, |until| until.max(self.due))
    }
}

impl Hold {
    fn end(&self) -> Instant {
        let latest = self.since + LOCK_LATEST;
        self.gone.map_or(latest, |gone| latest.min(gone + LOCK_FLICKER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_to_be_read_again_is_behind_until_it_is_looked_at() {
        let (mut settle, now, path) = (Settle::default(), Instant::now(), RelPath::new("f").unwrap());
        settle.look_again(path.clone(), now, MODIFY_QUIET, now);
        assert!(!settle.is_behind(), "somebody asked, no more");
        settle.read_again(path.clone(), now, MODIFY_QUIET, now);
        settle.note(path, Hint::Modified, true, now);
        assert!(settle.is_behind(), "an event does not change it");
        assert!(settle.take_ready(now + MODIFY_QUIET).is_some() && !settle.is_behind());
    }

    fn path(p: &str) -> RelPath {
        RelPath::new(p).unwrap()
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn ready(settle: &mut Settle, now: Instant) -> Vec<String> {
        settle.take_ready(now).map_or_else(Vec::new, |r| r.paths.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn each_hint_waits_its_time() {
        let rows = [
            (Hint::Written, true, 0),
            (Hint::Attributes, true, 0),
            (Hint::Modified, true, 25),
            (Hint::Appeared, true, 25),
            (Hint::Vanished, true, 10),
            (Hint::Written, false, 10),
            (Hint::Appeared, false, 10),
            (Hint::Modified, false, 25),
        ];
        for (hint, known, wait) in rows {
            let (mut settle, start) = (Settle::default(), Instant::now());
            settle.note(path("f"), hint, known, start);
            assert_eq!(settle.deadline(), Some(start + ms(wait)), "{hint:?} {known}");
            if wait > 0 {
                assert_eq!(settle.take_ready(start + ms(wait) - ms(1)), None, "{hint:?} {known}");
            }
            assert_eq!(ready(&mut settle, start + ms(wait)), ["f"], "{hint:?} {known}");
        }
    }

    #[test]
    fn a_close_ends_the_wait_of_a_modify_and_endless_writing_is_looked_at() {
        let (mut settle, start) = (Settle::default(), Instant::now());
        settle.note(path("f"), Hint::Modified, true, start);
        settle.note(path("f"), Hint::Written, true, start + ms(3));
        assert_eq!(ready(&mut settle, start + ms(3)), ["f"]);
        for i in 0..10 {
            settle.note(path("g"), Hint::Modified, true, start + ms(i * 10));
        }
        assert_eq!(settle.deadline(), Some(start + ms(50)));
    }

    #[test]
    fn vims_save_is_one_look_at_the_file() {
        // The file is renamed to a backup, written anew, closed, and the backup is removed.
        let (mut settle, start) = (Settle::default(), Instant::now());
        settle.note(path("f"), Hint::Vanished, true, start);
        settle.note(path("f~"), Hint::Appeared, false, start);
        settle.note(path("f"), Hint::Appeared, true, start + ms(1));
        settle.note(path("f"), Hint::Written, true, start + ms(2));
        assert_eq!(ready(&mut settle, start + ms(2)), ["f"]);
        settle.note(path("f~"), Hint::Vanished, false, start + ms(3));
        assert_eq!(settle.deadline(), None);
    }

    /// A look for the backup of the first save would find that of the second, which is to be seen by nobody.
    #[test]
    fn a_name_nobody_knew_is_not_looked_for_once_it_is_gone() {
        let (mut settle, start) = (Settle::default(), Instant::now());
        for (save, at) in [(0, start), (1, start + ms(140))] {
            settle.note(path("f"), Hint::Vanished, true, at);
            settle.note_aside(path("f~"), Some(path("f")), Hint::Written, false, at);
            settle.note(path("f"), Hint::Written, true, at + ms(5));
            assert_eq!(ready(&mut settle, at + ms(10)), ["f"], "{save}");
            settle.note_aside(path("f~"), Some(path("f")), Hint::Vanished, false, at + ms(11));
            assert_eq!(settle.deadline(), None, "{save}");
        }
        // One that comes back waits all of its time.
        settle.note(path("g"), Hint::Appeared, false, start + ms(200));
        settle.note(path("g"), Hint::Vanished, false, start + ms(201));
        settle.note(path("g"), Hint::Appeared, false, start + ms(209));
        assert_eq!(settle.deadline(), Some(start + ms(219)));
    }

    /// With the syncs of a slow disk between its moves, as `tests/recordings` shows them.
    #[test]
    fn a_slow_save_by_renaming_is_one_look_at_the_file() {
        let (mut settle, start) = (Settle::default(), Instant::now());
        settle.note_aside(path("4913"), None, Hint::Appeared, false, start);
        settle.note_aside(path("4913"), None, Hint::Vanished, false, start + ms(1));
        settle.note(path("f"), Hint::Vanished, true, start + ms(1));
        settle.note_aside(path("f~"), Some(path("f")), Hint::Written, false, start + ms(1));
        assert_eq!(settle.take_ready(start + ms(100)), None);
        settle.note(path("f"), Hint::Appeared, true, start + ms(100));
        settle.note(path("f"), Hint::Modified, true, start + ms(101));
        settle.note(path("f"), Hint::Attributes, true, start + ms(140));
        assert_eq!(settle.take_ready(start + ms(140)), None);
        settle.note(path("f"), Hint::Written, true, start + ms(141));
        assert_eq!(ready(&mut settle, start + ms(141)), ["f"]);
        settle.note_aside(path("f~"), Some(path("f")), Hint::Vanished, false, start + ms(145));
        assert_eq!(settle.take_ready(start + ms(151)), None);
        // Over: the file is deleted as any other.
        settle.note(path("f"), Hint::Vanished, true, start + ms(160));
        assert_eq!(ready(&mut settle, start + ms(170)), ["f"]);
    }

    #[test]
    fn a_slow_save_by_copying_is_one_look_at_the_file() {
        let (mut settle, start) = (Settle::default(), Instant::now());
        settle.note_aside(path("f~"), Some(path("f")), Hint::Appeared, false, start);
        settle.note_aside(path("f~"), Some(path("f")), Hint::Written, false, start + ms(1));
        settle.note(path("f"), Hint::Modified, true, start + ms(50));
        assert_eq!(settle.take_ready(start + ms(110)), None);
        settle.note(path("f"), Hint::Written, true, start + ms(110));
        assert_eq!(ready(&mut settle, start + ms(110)), ["f"]);
        settle.note_aside(path("f~"), Some(path("f")), Hint::Vanished, false, start + ms(111));
        assert_eq!(settle.deadline(), None);
    }

    #[test]
    fn each_of_two_saves_in_a_row_has_its_time() {
        let (mut settle, start) = (Settle::default(), Instant::now());
        for (save, at) in [(0, start), (1, start + ms(140))] {
            settle.note(path("f"), Hint::Vanished, true, at);
            settle.note_aside(path("f~"), Some(path("f")), Hint::Written, false, at);
            assert_eq!(settle.take_ready(at + ms(100)), None, "{save}");
            settle.note(path("f"), Hint::Appeared, true, at + ms(100));
            settle.note(path("f"), Hint::Written, true, at + ms(100));
            settle.note_aside(path("f~"), Some(path("f")), Hint::Vanished, false, at + ms(100));
            assert_eq!(ready(&mut settle, at + ms(100)), ["f"], "{save}");
        }
        assert_eq!(settle.deadline(), None);
    }

    #[test]
    fn a_file_that_is_whole_never_waits_for_the_end_of_a_save() {
        let (mut settle, start) = (Settle::default(), Instant::now());
        settle.note(path("f"), Hint::Written, true, start);
        settle.note_aside(path(".#f"), Some(path("f")), Hint::Appeared, false, start);
        assert_eq!(ready(&mut settle, start), ["f"]);
        settle.note(path("f"), Hint::Attributes, true, start + ms(1));
        assert_eq!(ready(&mut settle, start + ms(1)), ["f"]);
        // A backup that a server has is a file like any other.
        settle.note_aside(path("f~"), Some(path("f")), Hint::Written, true, start + ms(2));
        assert_eq!(ready(&mut settle, start + ms(2)), ["f~"]);
    }

    fn remove(settle: &mut Settle, names: std::ops::Range<u64>, now: Instant) {
        for name in names {
            settle.note_removal(now);
            settle.note(path(&format!("f{name}")), Hint::Vanished, true, now);
        }
    }

    #[test]
    fn many_removals_are_one_look_and_nothing_else_waits_for_it() {
        let (mut settle, start) = (Settle::default(), Instant::now());
        for step in 0..10 {
            remove(&mut settle, step * 5..step * 5 + 5, start + ms(step * 30));
            assert_eq!(settle.take_ready(start + ms(step * 30 + 29)), None, "{step}");
        }
        settle.note(path("edited"), Hint::Written, true, start + ms(275));
        settle.note(path("f0"), Hint::Written, true, start + ms(275));
        settle.note(path("new"), Hint::Appeared, false, start + ms(275));
        assert_eq!(ready(&mut settle, start + ms(275)), ["edited", "f0"]);
        assert_eq!(ready(&mut settle, start + ms(285)), ["new"]);
        assert_eq!(settle.deadline(), Some(start + ms(370)));
        let taken = settle.take_ready(start + ms(370)).unwrap();
        assert_eq!((taken.paths.len(), taken.seen, taken.held), (49, start, Duration::ZERO));
        // A few of them are an edit.
        remove(&mut settle, 0..4, start + ms(500));
        assert_eq!(ready(&mut settle, start + ms(510)).len(), 4);
    }

    #[test]
    fn what_git_removes_waits_for_git_alone() {
        let (mut settle, start) = (Settle::default(), Instant::now());
        settle.lock_seen(Some(1), start);
        remove(&mut settle, 0..50, start + ms(5));
        settle.lock_gone(start + ms(10));
        assert_eq!(settle.take_ready(start + ms(40)).unwrap().paths.len(), 50);
    }

    #[test]
    fn git_holds_everything_until_its_lock_is_gone_for_good() {
        let (mut settle, start) = (Settle::default(), Instant::now());
        settle.lock_seen(Some(1), start);
        settle.note(path("f"), Hint::Written, true, start + ms(5));
        settle.lock_gone(start + ms(100));
        settle.lock_seen(Some(2), start + ms(110));
        settle.lock_gone(start + ms(120));
        assert_eq!(settle.take_ready(start + ms(149)), None);
        assert_eq!(settle.deadline(), Some(start + ms(150)));
        let taken = settle.take_ready(start + ms(150)).unwrap();
        assert_eq!(taken.held, ms(145));
        assert_eq!(taken.seen, start + ms(5));
    }

    #[test]
    fn whole_files_are_looked_at_early_and_told_of_when_the_hold_ends() {
        let (mut settle, start) = (Settle::default(), Instant::now());
        settle.lock_seen(Some(1), start);
        settle.note(path("f"), Hint::Written, true, start + ms(5));
        settle.note(path("g"), Hint::Vanished, true, start + ms(5));
        settle.note(path("h"), Hint::Appeared, true, start + ms(5));
        assert_eq!(settle.take_early(start + ms(20)), [path("f")]);
        assert_eq!(settle.take_early(start + ms(20)), []);
        settle.lock_gone(start + ms(100));
        assert_eq!(settle.take_early(start + ms(130)), [], "the hold is over");
        let taken = settle.take_ready(start + ms(130)).unwrap();
        assert_eq!((taken.seen, taken.held), (start + ms(5), ms(125)));
        assert_eq!(taken.paths, [path("g"), path("h")]);
        assert_eq!(settle.take_ready(start + ms(131)), None);
        // Nothing but early ones: there is something to tell of all the same.
        settle.lock_seen(Some(2), start + ms(200));
        settle.note(path("f"), Hint::Written, true, start + ms(205));
        settle.take_early(start + ms(206));
        settle.lock_gone(start + ms(210));
        assert_eq!(settle.deadline(), Some(start + ms(240)));
        assert_eq!(settle.take_ready(start + ms(240)).unwrap().paths, []);
    }

    #[test]
    fn a_lock_that_stays_holds_for_two_seconds_and_only_once() {
        let (mut settle, start) = (Settle::default(), Instant::now());
        settle.lock_seen(Some(1), start);
        settle.note(path("f"), Hint::Written, true, start + ms(5));
        assert_eq!(ready(&mut settle, start + ms(2_000)), ["f"]);
        settle.lock_seen(Some(1), start + ms(2_001));
        settle.note(path("f"), Hint::Written, true, start + ms(2_002));
        assert_eq!(ready(&mut settle, start + ms(2_002)), ["f"]);
        settle.lock_seen(Some(2), start + ms(2_003));
        settle.note(path("f"), Hint::Written, true, start + ms(2_004));
        assert_eq!(settle.take_ready(start + ms(2_005)), None);
    }
}
