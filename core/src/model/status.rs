//! The state of every target, folded from events and from nothing else.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use gix::ObjectId;

use super::event::{
    Acked, ErrorCode, ErrorReport, Event, EventKind, HISTORY_STAGE, Missing, Phase, Rung, TargetId,
    WithheldReason,
};
use super::history::BaselineLanded;
use super::id::PatchId;
use super::path::RelPath;

/// Percentiles are taken over at most this many acks,
const LATENCY_SAMPLES: usize = 1_000;
/// and over no more than the last ten minutes.
const LATENCY_WINDOW: Duration = Duration::from_secs(600);

/// All targets, in the order of the configuration.
#[derive(Debug, Clone, Default)]
pub struct Status {
    pub targets: Vec<TargetStatus>,
}

/// What is known of one target.
#[derive(Debug, Clone)]
pub struct TargetStatus {
    pub target: TargetId,
    pub phase: Phase,
    pub reason: String,
    /// When `phase` was entered.
    pub since: Instant,
    /// The next try, while retrying.
    pub retry_at: Option<Instant>,
    pub rung: Option<Rung>,
    pub branch: Option<String>,
    /// The client's HEAD.
    pub baseline: Option<ObjectId>,
    pub history: HistoryStatus,
    /// The client's newest snapshot.
    pub local: Option<PatchId>,
    pub files: u64,
    /// The server's last word.
    pub acked: Option<PatchId>,
    pub last_ack: Option<(Instant, SystemTime, Acked)>,
    /// Paths that differ from the last ack, those included that are held back.
    pub unacked_changes: u64,
    /// When the oldest of them was seen; `None` when there are none.
    pub oldest_unacked: Option<Instant>,
    behind: Behind,
    pub latency: Latency,
    pub rtt: Option<Duration>,
    /// Since the program started.
    pub wire_bytes: u64,
    pub written: u64,
    pub deleted: u64,
    pub withheld: Vec<(RelPath, WithheldReason)>,
    /// Files of others the server met in our paths and keeps, since the program started.
    pub kept: u64,
    /// Set while the target waits for a person to accept that files are gone.
    pub brake: Option<Missing>,
    pub progress: Option<(&'static str, u64, u64, &'static str)>,
    /// Errors since the program started.
    pub errors: u64,
    pub last_error: Option<(Instant, SystemTime, ErrorReport)>,
}

/// Where the changes that are not acked are, which [`TargetStatus::lag`] is made of.
#[derive(Debug, Clone, Default)]
struct Behind {
    /// In the newest snapshot the session has.
    told: u64,
    told_since: Option<Instant>,
    /// In no snapshot the session has.
    held_back: Option<(u64, Instant)>,
    /// When nothing was behind last: what is behind now came after it.
    level: Option<Instant>,
}

/// How far the workspace's clone follows.
#[derive(Debug, Clone, Default)]
pub struct HistoryStatus {
    /// The server brings its clone to the client's commits.
    pub follows: bool,
    /// What landed last, since the connection was made.
    pub landed: Option<BaselineLanded>,
    /// Why nothing has landed since.
    pub trouble: Option<ErrorReport>,
    /// Bytes of the step under way that were sent.
    pub sending: Option<u64>,
}

/// Save-to-ack times of the recent past.
#[derive(Debug, Clone, Default)]
pub struct Latency {
    samples: VecDeque<(Instant, Duration)>,
}

/// Percentiles at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Percentiles {
    pub p50: Duration,
    pub p95: Duration,
    pub max: Duration,
    pub count: usize,
}

impl Status {
    pub fn new(targets: impl IntoIterator<Item = TargetId>, now: Instant) -> Self {
        Self { targets: targets.into_iter().map(|t| TargetStatus::new(t, now)).collect() }
    }

    pub fn get(&self, target: &TargetId) -> Option<&TargetStatus> {
        self.targets.iter().find(|t| t.target == *target)
    }

    /// Takes one event in. Events of unknown targets are dropped.
    pub fn apply(&mut self, event: &Event) {
        if let EventKind::Config(Ok(changes)) = &event.kind {
            self.follow(&changes.targets, event.at);
        }
        let Some(target) = &event.target else { return };
        if let Some(status) = self.targets.iter_mut().find(|t| t.target == *target) {
            status.apply(event);
        }
    }

    /// There are these targets from now on; what is known of those that stay is kept.
    fn follow(&mut self, targets: &[TargetId], now: Instant) {
        let mut old = std::mem::take(&mut self.targets);
        let known = |target: &TargetId| {
            let at = old.iter().position(|status| status.target == *target);
            at.map_or_else(|| TargetStatus::new(target.clone(), now), |at| old.swap_remove(at))
        };
        self.targets = targets.iter().map(known).collect();
    }
}

impl TargetStatus {
    fn new(target: TargetId, now: Instant) -> Self {
        Self {
            target,
            phase: Phase::Connecting,
            reason: String::new(),
            since: now,
            retry_at: None,
            rung: None,
            branch: None,
            baseline: None,
            history: HistoryStatus::default(),
            local: None,
            files: 0,
            acked: None,
            last_ack: None,
            unacked_changes: 0,
            oldest_unacked: None,
            behind: Behind::default(),
            latency: Latency::default(),
            rtt: None,
            wire_bytes: 0,
            written: 0,
            deleted: 0,
            withheld: Vec::new(),
            kept: 0,
            brake: None,
            progress: None,
            errors: 0,
            last_error: None,
        }
    }

    fn apply(&mut self, event: &Event) {
        match &event.kind {
            EventKind::State { to, reason, retry_at, .. } => {
                self.phase = *to;
                self.reason.clone_from(reason);
                self.since = event.at;
                self.retry_at = *retry_at;
                if !matches!(to, Phase::Bootstrapping | Phase::Syncing) {
                    self.progress = None;
                }
            }
            EventKind::Session { rung, patch_id, branch, follows, .. } => {
                self.rung = Some(*rung);
                self.acked = Some(*patch_id);
                self.branch.clone_from(branch);
                self.history.follows = *follows;
            }
            EventKind::Baseline(landed) => {
                self.wire_bytes += landed.wire_bytes;
                self.history.landed = Some(landed.clone());
                (self.history.trouble, self.history.sending) = (None, None);
            }
            EventKind::Local { patch_id, changes, oldest, files, head } => {
                self.baseline = *head;
                self.local = Some(*patch_id);
                self.files = *files;
                self.behind.told(*changes, *oldest, event.at);
            }
            EventKind::HeldBack { changes, oldest } => self.behind.held_back = Some((*changes, *oldest)),
            EventKind::Acked(acked) => {
                self.acked = Some(acked.patch_id);
                self.wire_bytes += acked.wire_bytes;
                self.written += acked.written;
                self.deleted += acked.deleted;
                if let Some(latency) = acked.latency {
                    self.latency.record(event.at, latency);
                }
                self.last_ack = Some((event.at, event.time, acked.clone()));
            }
            EventKind::Withheld { paths } => self.withheld.clone_from(paths),
            EventKind::Progress { stage: HISTORY_STAGE, done, .. } => self.history.sending = Some(*done),
            EventKind::Progress { stage, done, total, unit } => {
                self.progress = Some((stage, *done, *total, unit));
            }
            EventKind::Brake(missing) => {
                self.brake = *missing;
                if missing.is_none() {
                    self.behind.held_back = None;
                }
            }
            EventKind::Rtt(rtt) => self.rtt = Some(*rtt),
            EventKind::Error(report) => {
                self.errors += 1;
                if report.code == ErrorCode::History {
                    self.history.trouble = Some(report.clone());
                    self.history.sending = None;
                }
                if self.phase == Phase::Halted && !report.retryable && report.code != ErrorCode::History {
                    // It was halted for another reason, which may be over.
                    self.reason = report.one_line();
                }
                self.last_error = Some((event.at, event.time, report.clone()));
            }
            EventKind::Drift { kept, .. } => self.kept += kept,
            EventKind::Note(_) | EventKind::Config(_) => {}
        }
        (self.unacked_changes, self.oldest_unacked) = self.behind.sum();
    }

    /// True if the clone is not where HEAD is, or was not told yet on this connection.
    pub fn is_history_behind(&self) -> bool {
        let at = self.history.landed.as_ref().map(|landed| landed.to);
        self.history.follows && at != Some(self.baseline)
    }

    /// Age of the oldest change that is not on the server; zero when there is none. It grows whatever the phase, and
    /// while nothing is sent because of the brake.
    pub fn lag(&self, now: Instant) -> Duration {
        self.oldest_unacked.map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
    }
}

impl Behind {
    fn told(&mut self, changes: u64, oldest: Option<Instant>, now: Instant) {
        if changes == 0 {
            self.told_since = None;
            if self.held_back.is_none() {
                self.level = Some(now);
            }
        } else {
            // One that came and was taken back again is not what is behind; and what somebody changed on the server is,
            // though it was never seen here.
            let oldest = oldest.or(self.told_since).unwrap_or(now);
            self.told_since = Some(self.level.map_or(oldest, |level| level.max(oldest)));
        }
        self.told = changes;
    }

    fn sum(&self) -> (u64, Option<Instant>) {
        let (held_back, since) = self.held_back.unzip();
        (self.told + held_back.unwrap_or(0), [self.told_since, since].into_iter().flatten().min())
    }
}

impl Latency {
    fn record(&mut self, at: Instant, latency: Duration) {
        if self.samples.len() == LATENCY_SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((at, latency));
    }

    /// Samples of the window ending at `now`, oldest first.
    pub fn recent(&self, now: Instant) -> impl Iterator<Item = (Instant, Duration)> + '_ {
        self.samples
            .iter()
            .copied()
            .filter(move |(at, _)| now.saturating_duration_since(*at) <= LATENCY_WINDOW)
    }

    pub fn percentiles(&self, now: Instant) -> Option<Percentiles> {
        let mut times: Vec<Duration> = self.recent(now).map(|(_, d)| d).collect();
        times.sort_unstable();
        // Nearest rank: the smallest sample that at least p percent of the samples do not exceed.
        let rank = |p: usize| times.get((times.len() * p).div_ceil(100).saturating_sub(1)).copied();
        Some(Percentiles { p50: rank(50)?, p95: rank(95)?, max: *times.last()?, count: times.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Changes, HashKind};

    #[test]
    fn percentiles_are_nearest_rank_over_the_window() {
        let start = Instant::now();
        let mut latency = Latency::default();
        assert_eq!(latency.percentiles(start), None);
        latency.record(start, Duration::from_millis(999));
        let later = start + Duration::from_secs(700);
        for ms in 1..=100 {
            latency.record(later, Duration::from_millis(ms));
        }
        let p = latency.percentiles(later).unwrap();
        assert_eq!((p.p50.as_millis(), p.p95.as_millis(), p.max.as_millis(), p.count), (50, 95, 100, 100));
    }

    fn folded(events: impl IntoIterator<Item = (Instant, EventKind)>) -> TargetStatus {
        let target = TargetId { repo: "r".into(), server: "a".into() };
        let mut status = Status::new([target.clone()], Instant::now());
        for (at, kind) in events {
            status.apply(&Event { at, time: SystemTime::now(), target: Some(target.clone()), kind });
        }
        status.targets.remove(0)
    }

    fn local(changes: u64, oldest: Option<Instant>) -> EventKind {
        let patch_id = PatchId::empty(HashKind::Sha1);
        EventKind::Local { patch_id, changes, oldest, files: 60, head: None }
    }

    fn halted() -> EventKind {
        let reason = "files are missing".into();
        EventKind::State { from: Phase::InSync, to: Phase::Halted, reason, retry_at: None }
    }

    #[test]
    fn lag_grows_while_the_brake_is_set_and_ends_with_it() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let lag = |status: &TargetStatus, s: u64| (status.unacked_changes, status.lag(at(s)).as_secs());
        let brake = EventKind::Brake(Some(Missing { files: 50, of: 60 }));
        let mut events = vec![
            (at(0), local(0, None)),
            (at(10), brake),
            (at(10), EventKind::HeldBack { changes: 50, oldest: at(9) }),
            (at(10), halted()),
        ];
        assert_eq!(lag(&folded(events.clone()), 100), (50, 91));
        // An edit of another file is held back too, and a new session knows nothing of either.
        events.extend([
            (at(20), EventKind::HeldBack { changes: 51, oldest: at(9) }),
            (at(30), local(0, None)),
            (at(30), halted()),
        ]);
        assert_eq!(lag(&folded(events.clone()), 100), (51, 91));
        // What was on its way before is behind as well.
        events.push((at(40), local(2, Some(at(8)))));
        assert_eq!(lag(&folded(events.clone()), 100), (53, 92));
        events.extend([(at(50), EventKind::Brake(None)), (at(50), local(51, Some(at(9))))]);
        assert_eq!(lag(&folded(events.clone()), 100), (51, 91));
        events.push((at(60), local(0, None)));
        assert_eq!(lag(&folded(events), 100), (0, 0));
    }

    #[test]
    fn lag_is_the_age_of_what_is_behind_and_of_nothing_before_it() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        // An edit that was taken back while nothing was sent.
        let events =
            [(at(0), local(1, Some(at(0)))), (at(1), local(0, None)), (at(60), local(1, Some(at(0))))];
        assert_eq!(folded(events).lag(at(70)).as_secs(), 69);
        // Somebody changed files on the server.
        let events = [(at(0), local(0, None)), (at(5), local(3, None)), (at(9), local(2, None))];
        assert_eq!(folded(events).lag(at(70)).as_secs(), 65);
    }

    #[test]
    fn what_halts_a_target_last_is_the_reason_it_is_halted() {
        let start = Instant::now();
        let error = |code, message: &str, retryable| {
            EventKind::Error(ErrorReport { code, message: message.into(), causes: Vec::new(), retryable })
        };
        let events = [
            (start, halted()),
            (start, error(ErrorCode::Locked, "somebody else writes it", false)),
            (start, error(ErrorCode::Repository, "cannot watch a directory", true)),
        ];
        assert_eq!(folded(events).reason, "somebody else writes it");
    }

    #[test]
    fn a_state_event_moves_only_its_target() {
        let now = Instant::now();
        let ids = ["a", "b"].map(|s| TargetId { repo: "r".into(), server: s.into() });
        let mut status = Status::new(ids.clone(), now);
        status.apply(&Event {
            at: now,
            time: SystemTime::now(),
            target: Some(ids[1].clone()),
            kind: EventKind::State {
                from: Phase::Connecting,
                to: Phase::InSync,
                reason: String::new(),
                retry_at: None,
            },
        });
        assert_eq!(status.targets[0].phase, Phase::Connecting);
        assert_eq!(status.get(&ids[1]).unwrap().phase, Phase::InSync);
    }

    #[test]
    fn a_reload_keeps_what_is_known_of_targets_that_stay() {
        let start = Instant::now();
        let id = |server: &str| TargetId { repo: "r".into(), server: server.into() };
        let mut status = Status::new(["a", "b", "c"].map(id), start);
        let in_sync = |server| Event {
            at: start,
            time: SystemTime::now(),
            target: Some(id(server)),
            kind: EventKind::State {
                from: Phase::Connecting,
                to: Phase::InSync,
                reason: String::new(),
                retry_at: None,
            },
        };
        let config = |result| Event {
            at: start + Duration::from_secs(9),
            time: SystemTime::now(),
            target: None,
            kind: EventKind::Config(result),
        };
        let stand = |status: &Status| -> Vec<String> {
            status.targets.iter().map(|t| format!("{} {}", t.target.server, t.phase)).collect()
        };
        ["a", "b", "c"].iter().for_each(|server| status.apply(&in_sync(*server)));
        status.apply(&config(Err("line 3: no such server".into())));
        assert_eq!(stand(&status), ["a in-sync", "b in-sync", "c in-sync"]);
        let targets = ["c", "d", "a"].map(id).to_vec();
        status.apply(&config(Ok(Changes { targets, ..Changes::default() })));
        assert_eq!(stand(&status), ["c in-sync", "d connecting", "a in-sync"]);
        assert_eq!(status.targets[1].since, start + Duration::from_secs(9));
        // What comes late of one that is gone does not bring it back.
        status.apply(&in_sync("b"));
        assert_eq!(stand(&status), ["c in-sync", "d connecting", "a in-sync"]);
        let targets = ["b", "c"].map(id).to_vec();
        status.apply(&config(Ok(Changes { targets, ..Changes::default() })));
        assert_eq!(stand(&status), ["b connecting", "c in-sync"]);
    }
}
