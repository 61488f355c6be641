//! The history track of one target: which step the workspace's clone takes next, and when.
//!
//! ```text
//!        first ack            planned, packed, sent          Landed
//! Closed ---------> Ready ------------------------> Asked ---------> Ready
//!                     ^                               | NotLanded
//!                     +--- Waiting (or a new HEAD) <--+
//! ```
//!
//! HEAD, branch, tags and index come first, with HEAD's commit alone where the clone has nothing before it; then
//! older commits in batches, each a step of its own, so that a break costs one batch. A move of HEAD stops what
//! is under way. Nothing here delays an edit or counts for "in sync". Time is an argument.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gix::ObjectId;

use super::session::Action;
use crate::model::{BaselineLanded, ErrorCode, ErrorReport, EventKind, HistoryDepth};
use crate::repo::Head;
use crate::repo::history::{CloneState, Goal, Grant, Marks, Order, Plan};
use crate::wire::{Landed, NotLanded, NotLandedReason};

/// Older commits in the first batch; later ones hold as many as come near [`BATCH_BYTES`].
const BATCH_FIRST: usize = 256;
const BATCH_LEAST: usize = 16;
const BATCH_MOST: usize = 16_384;
const BATCH_BYTES: u64 = 16 << 20;
/// What failed is tried again after this long, twice that, and so on
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// up to this.
const RETRY_MOST: Duration = Duration::from_secs(300);
/// Where only a lock is in the way, up to this.
const BUSY_MOST: Duration = Duration::from_secs(30);

/// The history track's books.
#[derive(Debug)]
pub struct Track {
    depth: HistoryDepth,
    /// The server follows history.
    offered: bool,
    /// The files of this session's first ack are there.
    acked: bool,
    /// What the clone is to be at.
    head: Option<Arc<Head>>,
    /// What the clone is at, by the server's last word.
    clone: CloneState,
    /// Commits the clone has below a gap that older history has still to close.
    under: Vec<ObjectId>,
    grant: Grant,
    /// The step that landed last on this stream, and for which head, if the clone is certainly there still.
    landed: Option<(Arc<Head>, Arc<Marks>)>,
    /// There is nothing older to bring.
    complete: bool,
    /// The last step on this stream.
    number: u64,
    batch: usize,
    under_way: Option<UnderWay>,
    not_before: Option<Instant>,
    /// In a row.
    failures: u32,
    told: Option<ErrorReport>,
    actions: Vec<Action>,
    events: Vec<EventKind>,
}

#[derive(Debug)]
struct UnderWay {
    number: u64,
    head: Arc<Head>,
    goal: Goal,
    /// Set once all of it went out.
    sent: Option<SentStep>,
    /// The server's answer, if it was quicker than that.
    answer: Option<Result<Landed, NotLanded>>,
}

/// A step that went into the transport whole.
#[derive(Debug, Clone)]
pub struct SentStep {
    pub plan: Plan,
    pub wire_bytes: u64,
}

/// Why a step did not go out.
#[derive(Debug)]
pub enum StepError {
    /// The stream has ended; whoever reads it learns why.
    Closed,
    /// It could not be planned or packed. `begun`: the server has heard of it.
    Failed { report: ErrorReport, begun: bool },
}

impl Track {
    pub fn new(depth: HistoryDepth) -> Self {
        Self {
            depth,
            offered: false,
            acked: false,
            head: None,
            clone: CloneState::default(),
            under: Vec::new(),
            grant: Grant::Tags,
            landed: None,
            complete: false,
            number: 0,
            batch: BATCH_FIRST,
            under_way: None,
            not_before: None,
            failures: 0,
            told: None,
            actions: Vec::new(),
            events: Vec::new(),
        }
    }

    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    pub fn take_events(&mut self) -> Vec<EventKind> {
        std::mem::take(&mut self.events)
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.not_before.filter(|_| self.under_way.is_none())
    }

    /// The server's features are known.
    pub fn offer(&mut self, offered: bool) {
        self.offered = offered;
    }

    pub fn is_offered(&self) -> bool {
        self.offered
    }

    /// The server answered NewSession: what its clone has, as seen from `head`.
    pub fn handle_session(&mut self, clone: CloneState, head: Arc<Head>) {
        let moved = self.head.as_ref().is_none_or(|old| !old.is_at(&head));
        self.head = Some(head);
        if moved {
            self.stop();
        }
        if self.under_way.is_none() {
            if clone.head.is_none() {
                self.under.clear();
            }
            // Somebody else moved it.
            self.landed.take_if(|(at, _)| at.commit != clone.head || at.branch != clone.branch);
            self.clone = clone;
        }
        self.try_anew();
    }

    /// A person has everything compared: what was said of refs and index counts no more.
    pub fn compare(&mut self) {
        self.stop();
        self.landed = None;
    }

    /// Tags, settings or index flags may have changed; HEAD is where it was.
    pub fn handle_marks(&mut self, head: Arc<Head>) {
        self.head = Some(head);
    }

    /// Files were acked.
    pub fn handle_ack(&mut self) {
        self.acked = true;
    }

    /// The stream is gone, and with it what was under way.
    pub fn drop_stream(&mut self) {
        let depth = self.depth;
        let (batch, told) = (self.batch, self.told.take());
        *self = Self { batch, told, ..Self::new(depth) };
    }

    /// Nothing is to be under way now.
    pub fn hold(&mut self) {
        self.stop();
    }

    /// Ends any wait.
    pub fn try_anew(&mut self) {
        self.not_before = None;
        self.failures = 0;
    }

    /// Begins the next step, if it is time for one.
    pub fn advance(&mut self, now: Instant) {
        if !self.offered || !self.acked || self.not_before.is_some_and(|at| at > now) {
            return;
        }
        self.not_before = None;
        let Some(head) = self.head.clone() else { return };
        let is_there = self.landed.as_ref().is_some_and(|(at, _)| **at == *head);
        if let Some(under_way) = &self.under_way {
            if *under_way.head == *head || under_way.sent.is_some() {
                return;
            }
            self.stop();
        }
        let goal = match is_there {
            false => Goal::Move,
            true if self.complete => return,
            true => Goal::Older { commits: self.batch },
        };
        self.number += 1;
        let order = Order {
            goal,
            head: head.commit,
            branch: head.branch.clone(),
            clone: self.clone.clone(),
            under: self.under.clone(),
            grant: self.grant,
            depth: self.depth,
            landed: self.landed.as_ref().map(|(_, marks)| marks.clone()),
        };
        let number = self.number;
        self.under_way = Some(UnderWay { number, head, goal, sent: None, answer: None });
        self.actions.push(Action::SendStep { number, order: Box::new(order) });
    }

    /// The step went out whole; `None` if there was nothing to say.
    pub fn handle_sent(&mut self, sent: Option<SentStep>, now: Instant) {
        let Some(under_way) = &mut self.under_way else { return };
        let Some(sent) = sent else {
            let (goal, head) = (under_way.goal, under_way.head.clone());
            self.under_way = None;
            match (goal, &mut self.landed) {
                (Goal::Older { .. }, _) => self.complete = true,
                (Goal::Move, Some((at, _))) => *at = head,
                (Goal::Move, None) => {}
            }
            return;
        };
        under_way.sent = Some(sent);
        match under_way.answer.take() {
            Some(Ok(landed)) => self.handle_landed(&landed, now),
            Some(Err(not)) => self.handle_not_landed(not, now),
            None => {}
        }
    }

    /// The step did not go out.
    pub fn handle_failed(&mut self, error: StepError, now: Instant) {
        let Some(under_way) = self.under_way.take() else { return };
        let StepError::Failed { report, begun } = error else { return };
        if begun {
            self.actions.push(Action::StopStep { number: under_way.number });
        }
        match under_way.goal {
            // A partial clone, say. What there is of the history stays.
            Goal::Older { .. } => {
                self.complete = true;
                let line = report.one_line();
                self.events.push(EventKind::Note(format!("older history is not sent: {line}")));
            }
            Goal::Move => self.fail(report, RETRY_MOST, now),
        }
    }

    pub fn handle_landed(&mut self, landed: &Landed, now: Instant) {
        let Some(under_way) = self.under_way.take_if(|u| u.number == landed.number) else {
            return; // Of a step that was stopped too late.
        };
        let Some(sent) = under_way.sent else {
            self.under_way = Some(UnderWay { answer: Some(Ok(landed.clone())), ..under_way });
            return;
        };
        let SentStep { plan, wire_bytes } = sent;
        let from = self.clone.head;
        let head = under_way.head.commit;
        self.clone =
            CloneState { head, branch: under_way.head.branch.clone(), shallow: plan.shallow, common: head };
        self.under = plan.under;
        self.complete = plan.complete;
        self.grant = Grant::Tags;
        self.landed = Some((under_way.head, plan.marks));
        self.try_anew();
        self.told = None;
        if let Goal::Older { commits } = under_way.goal {
            let near = match wire_bytes {
                0 => BATCH_MOST as u64,
                bytes => plan.commits.saturating_mul(BATCH_BYTES) / bytes,
            };
            let most = commits.saturating_mul(4).min(BATCH_MOST);
            self.batch = usize::try_from(near).unwrap_or(most).clamp(BATCH_LEAST, most.max(BATCH_LEAST));
        }
        self.events.push(EventKind::Baseline(BaselineLanded {
            from,
            to: head,
            branch: self.clone.branch.as_deref().map(crate::model::path::escape),
            objects: landed.objects,
            wire_bytes,
            complete: plan.complete,
            reason: plan.reason.to_string(),
        }));
        self.advance(now);
    }

    pub fn handle_not_landed(&mut self, not: NotLanded, now: Instant) {
        let Some(under_way) = self.under_way.take_if(|u| u.number == not.number) else {
            return; // Of a step that was stopped too late.
        };
        if under_way.sent.is_none() && under_way.answer.is_none() {
            // Whatever is still going out is in vain.
            self.actions.push(Action::StopStep { number: under_way.number });
        }
        // What was said before counts no more: a step may fail half way.
        self.landed = None;
        let NotLanded { messages, retryable, reason, .. } = not;
        let mut texts = messages.iter().map(|m| crate::model::path::escape(m.as_bytes()));
        let message = format!(
            "the clone on the server cannot follow: {}",
            texts.next().unwrap_or_else(|| "no reason given".into())
        );
        let report = ErrorReport { code: ErrorCode::History, message, causes: texts.collect(), retryable };
        let believed_less = match self.grant {
            Grant::Tags => Some(Grant::Commits),
            Grant::Commits => Some(Grant::Nothing),
            Grant::Nothing => None,
        };
        match (reason, believed_less) {
            (NotLandedReason::ObjectsMissing | NotLandedReason::Invalid, Some(grant)) => {
                tracing::debug!("the history starts over, {grant:?} believed: {}", report.one_line());
                self.grant = grant;
                self.complete = false;
            }
            (NotLandedReason::Busy, _) => self.fail(report, BUSY_MOST, now),
            _ => self.fail(report, RETRY_MOST, now),
        }
    }

    fn fail(&mut self, report: ErrorReport, most: Duration, now: Instant) {
        let wait = RETRY_FIRST * 2_u32.saturating_pow(self.failures.min(16));
        self.failures += 1;
        self.not_before = Some(now + if report.retryable { wait.min(most) } else { most });
        if self.told.as_ref() != Some(&report) {
            self.told = Some(report.clone());
            self.events.push(EventKind::Error(report));
        }
    }

    /// Gives up what is under way. It may land all the same, so nothing is known of refs and index until the next step
    /// has, not even if HEAD goes back to where it was.
    fn stop(&mut self) {
        if let Some(under_way) = self.under_way.take() {
            self.landed = None;
            self.actions.push(Action::StopStep { number: under_way.number });
        }
    }
}

#[cfg(test)]
mod tests;
