//! The life of a session's link: what ends it, and when the next is tried.

use std::time::{Duration, Instant};

use super::{Action, Link, Session};
use crate::model::{ErrorReport, EventKind, Phase};

pub(super) const RETRY_FIRST: Duration = Duration::from_millis(200);
pub(super) const RETRY_MOST: Duration = Duration::from_secs(5);
/// After this long without a session,
pub(super) const RETRY_LONG_AFTER: Duration = Duration::from_secs(600);
/// tries are this far apart.
pub(super) const RETRY_LONG: Duration = Duration::from_secs(30);
/// The same failure to connect is reported again only after this long.
pub(super) const REPEAT_ERROR: Duration = Duration::from_secs(60);

impl Session {
    pub(super) fn wake(&mut self) {
        self.not_before = None;
        self.refused.wake();
        self.offer_refused();
        self.invalid = 0;
        if matches!(self.link, Link::Waiting { .. } | Link::Stopped { .. }) {
            self.connect();
        }
    }

    pub(super) fn connect(&mut self) {
        self.link = Link::Connecting;
        self.actions.push_back(Action::Connect);
    }

    /// The stream is of no use any more; another is tried after a wait.
    pub(super) fn fail(&mut self, report: ErrorReport, now: Instant) {
        let since = *self.down_since.get_or_insert(now);
        let wait = if now.saturating_duration_since(since) >= RETRY_LONG_AFTER {
            RETRY_LONG
        } else {
            (RETRY_FIRST * 2_u32.saturating_pow(self.retries.min(16))).min(RETRY_MOST)
        };
        self.retries += 1;
        self.drop_stream();
        self.link = Link::Waiting { until: now + wait.mul_f64(0.8 + 0.4 * self.rng.f64()) };
        self.reason = report.one_line();
        let repeated = self
            .last_error
            .as_ref()
            .is_some_and(|(at, old)| *old == report && now.saturating_duration_since(*at) < REPEAT_ERROR);
        if !repeated {
            self.last_error = Some((now, report.clone()));
            self.events.push(EventKind::Error(report));
        }
    }

    pub(super) fn halt(&mut self, phase: Phase, report: ErrorReport, _now: Instant) {
        self.drop_stream();
        self.actions.push_back(Action::Disconnect);
        self.link = Link::Stopped { phase };
        self.takeover = false;
        self.reason = report.one_line();
        self.events.push(EventKind::Error(report));
    }

    pub(super) fn drop_stream(&mut self) {
        self.unanswered += u32::from(self.link == Link::Opening);
        self.void_sent();
        self.sending = false;
        self.ahead.clear();
        self.offers.clear();
        self.refused_before.clear();
        if let Some(newest) = &mut self.newest {
            newest.is_asked = false;
        }
        self.read = Vec::new();
        self.track.drop_stream();
        self.early = None;
        self.plain = false;
        self.expected.clear();
        self.ping = None;
        self.told = None;
        self.actions.retain(|a| matches!(a, Action::Ask(_) | Action::Disconnect));
    }
}
