//! When `--once` is over, and how it went: a fold over events, with time passed in.
//!
//! ```text
//!  unreached --past connecting--> reached --first ack, HEAD there--> done
//!      |                             |
//!      +--- 10 s without a sign -> given up        any --halted, failed--> halted, failed
//! ```
//!
//! With deletes accepted, a halt by the brake is no end: whoever runs the tracker answers it.

use std::time::{Duration, Instant};

use gitsync_core::model::{ErrorCode, Event, EventKind, Phase, TargetId};

use crate::exit::Exit;

/// A target that shows no sign of life for this long is given up.
const REACH_WITHIN: Duration = Duration::from_secs(10);
/// Without an explicit bound, this long without progress of any target ends the wait.
pub const PROGRESS_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct OnceTracker {
    targets: Vec<(TargetId, Stage)>,
    /// Where deletes are accepted: targets whose brake was set. The halt for it may be told only after its
    /// release, so it is the next error of another kind that ends this.
    accepting: Option<Vec<TargetId>>,
    /// The explicit bound on the whole.
    end: Option<Instant>,
    progress_at: Instant,
    timed_out: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Unreached { since: Instant },
    Reached(Seen),
    Done { withheld: bool },
    Halted,
    Failed,
    GivenUp,
}

/// What a reached target has come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Seen {
    /// Files were acked, with paths left out or without.
    acked: Option<bool>,
    /// The server's clone follows, so HEAD, branch and index are waited for as well.
    follows: bool,
    landed: bool,
}

impl OnceTracker {
    pub fn new(targets: impl IntoIterator<Item = TargetId>, timeout: Option<Duration>, now: Instant) -> Self {
        let targets = targets.into_iter().map(|t| (t, Stage::Unreached { since: now })).collect();
        let end = timeout.and_then(|limit| now.checked_add(limit));
        Self { targets, accepting: None, end, progress_at: now, timed_out: false }
    }

    /// A target halted by the brake is waited for: somebody accepts for it.
    pub fn accepting_deletes(self) -> Self {
        Self { accepting: Some(Vec::new()), ..self }
    }

    pub fn apply(&mut self, event: &Event, now: Instant) {
        let Some(target) = &event.target else { return };
        let Some((_, stage)) = self.targets.iter_mut().find(|(t, _)| t == target) else { return };
        if !stage.is_pending() {
            return;
        }
        let mut seen = match stage {
            Stage::Reached(seen) => *seen,
            _ => Seen::default(),
        };
        match &event.kind {
            EventKind::State { to, .. } => match to {
                Phase::Halted if self.accepting.as_ref().is_some_and(|a| a.contains(target)) => {
                    *stage = Stage::Reached(seen);
                }
                Phase::Halted => *stage = Stage::Halted,
                Phase::Failed => *stage = Stage::Failed,
                Phase::Connecting | Phase::Retrying => {}
                _ => *stage = Stage::Reached(seen),
            },
            EventKind::Error(error) if !error.retryable && error.code == ErrorCode::History => {
                *stage = Stage::Failed;
            }
            EventKind::Brake(Some(_)) => {
                if let Some(accepting) = &mut self.accepting {
                    accepting.push(target.clone());
                }
            }
            EventKind::Error(error) if !error.retryable && error.code != ErrorCode::Brake => {
                if let Some(accepting) = &mut self.accepting {
                    accepting.retain(|t| t != target);
                }
            }
            EventKind::Session { follows, .. } => {
                seen.follows = *follows;
                *stage = seen.stage();
                self.progress_at = now;
            }
            EventKind::Acked(acked) => {
                seen.acked = Some(acked.withheld > 0);
                *stage = seen.stage();
                self.progress_at = now;
            }
            EventKind::Baseline(_) => {
                seen.landed = true;
                *stage = seen.stage();
                self.progress_at = now;
            }
            EventKind::Progress { .. } => {
                // Progress before a connection is the repository being read: the server had no chance yet.
                if let Stage::Unreached { since } = stage {
                    *since = now;
                }
                self.progress_at = now;
            }
            _ => {}
        }
    }

    /// Takes note of the time.
    pub fn tick(&mut self, now: Instant) {
        for (_, stage) in &mut self.targets {
            if let Stage::Unreached { since } = stage
                && now >= *since + REACH_WITHIN
            {
                *stage = Stage::GivenUp;
            }
        }
        self.timed_out |=
            !self.all_settled() && now >= self.end.unwrap_or(self.progress_at + PROGRESS_WITHIN);
    }

    /// When [`Self::tick`] could change something next; `None` once it is over.
    pub fn deadline(&self) -> Option<Instant> {
        if self.is_over() {
            return None;
        }
        let whole = self.end.unwrap_or(self.progress_at + PROGRESS_WITHIN);
        let reach = self.targets.iter().filter_map(|(_, stage)| match stage {
            Stage::Unreached { since } => Some(*since + REACH_WITHIN),
            _ => None,
        });
        reach.chain([whole]).min()
    }

    pub fn is_over(&self) -> bool {
        self.timed_out || self.all_settled()
    }

    /// Why it was given up, and on which targets; `None` if that is not how it ended.
    pub fn timeout(&self) -> Option<TimedOut<'_>> {
        let waiting = self.targets.iter().filter(|(_, stage)| stage.is_pending()).map(|(target, _)| target);
        let bounded = self.end.is_some();
        self.timed_out.then(|| TimedOut { bounded, waiting: waiting.collect() })
    }

    /// What the process answers, as far as its targets go.
    pub fn exit(&self) -> Exit {
        let unreached = |stage: &Stage| matches!(stage, Stage::Unreached { .. } | Stage::GivenUp);
        let none_reached = !self.targets.is_empty() && self.targets.iter().all(|(_, stage)| unreached(stage));
        let each = self.targets.iter().map(|(_, stage)| match stage {
            Stage::Done { withheld: false } => Exit::Done,
            Stage::Halted => Exit::Halted,
            Stage::Done { withheld: true } | Stage::Failed | Stage::GivenUp => Exit::Incomplete,
            Stage::Unreached { .. } | Stage::Reached(_) => Exit::Incomplete,
        });
        let timeout = self.timed_out.then_some(Exit::Timeout);
        let nowhere = none_reached.then_some(Exit::Unreached);
        Exit::worst(each.chain(timeout).chain(nowhere))
    }

    fn all_settled(&self) -> bool {
        !self.targets.iter().any(|(_, stage)| stage.is_pending())
    }
}

/// The end of the patience.
#[derive(Debug, PartialEq, Eq)]
pub struct TimedOut<'a> {
    /// `--timeout` said how long.
    pub bounded: bool,
    pub waiting: Vec<&'a TargetId>,
}

impl Seen {
    fn stage(self) -> Stage {
        match self.acked {
            Some(withheld) if self.landed || !self.follows => Stage::Done { withheld },
            _ => Stage::Reached(self),
        }
    }
}

impl Stage {
    fn is_pending(&self) -> bool {
        matches!(self, Stage::Unreached { .. } | Stage::Reached(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headless::fixture::{acked, baseline, event, following, progress, session, state, target};
    use gitsync_core::model::ErrorReport;

    fn behind(retryable: bool) -> EventKind {
        let message = "cannot follow".into();
        EventKind::Error(ErrorReport { code: ErrorCode::History, message, causes: Vec::new(), retryable })
    }

    /// Seconds after the start, target, what happened.
    type Script = Vec<(u64, &'static str, EventKind)>;
    /// Name, targets, `--timeout` in seconds, script, and the exit code and second of the end.
    type Row = (&'static str, &'static [&'static str], Option<u64>, Script, (u8, u64));

    /// Plays the script, waking at every deadline as the loop does, and answers the exit code and the second
    /// the wait was over.
    fn play(targets: &[&str], timeout: Option<u64>, script: &[(u64, &str, EventKind)]) -> (u8, u64) {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut once =
            OnceTracker::new(targets.iter().map(|t| target(t)), timeout.map(Duration::from_secs), start);
        for (second, name, kind) in script {
            while let Some(deadline) = once.deadline().filter(|d| *d <= at(*second)) {
                once.tick(deadline);
                if once.is_over() {
                    return (once.exit().code(), deadline.duration_since(start).as_secs());
                }
            }
            once.apply(&event(name, kind.clone()), at(*second));
            if once.is_over() {
                return (once.exit().code(), *second);
            }
        }
        let mut now = start;
        while let Some(deadline) = once.deadline() {
            assert!(deadline >= now, "deadlines never go back");
            now = deadline;
            once.tick(now);
        }
        assert!(once.is_over());
        (once.exit().code(), now.duration_since(start).as_secs())
    }

    #[test]
    fn conversations() {
        use Phase::{Connecting, Failed, Halted, InSync, Negotiating, Retrying, Syncing};
        let up = || state(Connecting, Negotiating);
        let down = || state(Connecting, Retrying);
        let table: Vec<Row> = vec![
            ("no targets", &[], None, vec![], (0, 0)),
            (
                "an ack is the end",
                &["a"],
                None,
                vec![(1, "a", up()), (2, "a", session()), (3, "a", acked(0))],
                (0, 3),
            ),
            (
                "HEAD, branch and index are waited for",
                &["a"],
                None,
                vec![(1, "a", up()), (2, "a", following()), (3, "a", acked(0)), (7, "a", baseline(3))],
                (0, 7),
            ),
            (
                "a clone that cannot follow",
                &["a"],
                None,
                vec![(1, "a", up()), (2, "a", following()), (3, "a", acked(0)), (4, "a", behind(true))],
                (3, 63),
            ),
            (
                "and never will",
                &["a"],
                None,
                vec![(1, "a", up()), (2, "a", following()), (3, "a", acked(0)), (4, "a", behind(false))],
                (1, 4),
            ),
            ("withheld paths", &["a"], None, vec![(1, "a", up()), (3, "a", acked(2))], (1, 3)),
            ("in sync alone is no ack", &["a"], Some(9), vec![(1, "a", state(Syncing, InSync))], (3, 9)),
            ("both must end", &["a", "b"], None, vec![(1, "a", acked(0)), (5, "b", acked(0))], (0, 5)),
            (
                "halted",
                &["a", "b"],
                None,
                vec![(1, "a", state(Connecting, Halted)), (2, "b", acked(0))],
                (4, 2),
            ),
            ("failed", &["a"], None, vec![(1, "a", state(Syncing, Failed))], (1, 1)),
            ("never reached", &["a"], None, vec![(1, "a", down())], (5, 10)),
            ("silence", &["a", "b"], None, vec![], (5, 10)),
            ("one of two reached", &["a", "b"], None, vec![(1, "a", acked(0)), (2, "b", down())], (1, 10)),
            (
                "reading a big repo first",
                &["a"],
                None,
                vec![(9, "a", progress()), (18, "a", progress()), (20, "a", acked(0))],
                (0, 20),
            ),
            ("reached, then lost", &["a"], None, vec![(1, "a", up()), (2, "a", down())], (3, 60)),
            (
                "progress postpones",
                &["a"],
                None,
                vec![(1, "a", up()), (50, "a", progress()), (90, "a", session())],
                (3, 150),
            ),
            (
                "another target's does too",
                &["a", "b"],
                None,
                vec![(1, "a", up()), (2, "b", up()), (50, "b", progress())],
                (3, 110),
            ),
            (
                "an explicit bound is for the whole",
                &["a"],
                Some(30),
                vec![(1, "a", up()), (29, "a", progress())],
                (3, 30),
            ),
            ("a bound under ten seconds", &["a"], Some(5), vec![], (3, 5)),
            ("a longer bound gives up all the same", &["a"], Some(90), vec![(80, "a", acked(0))], (5, 10)),
            (
                "halted beats timeout",
                &["a", "b"],
                Some(9),
                vec![(1, "a", state(Connecting, Halted)), (1, "b", up())],
                (4, 9),
            ),
        ];
        for (name, targets, timeout, script, wanted) in table {
            assert_eq!(play(targets, timeout, &script), wanted, "{name}");
        }
    }
}
