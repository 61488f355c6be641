//! The state machine of one target: what to say to the server, and when.
//!
//! ```text
//!            connected            Welcome             Session
//! Connecting ---------> Greeting ---------> Opening ----------> Open
//!     ^  |                 |                   |                 |  patches, acks
//!     |  | failed          | broken            | broken/refused  |
//!     |  v                 v                   v                 v
//!    Waiting <----------------------------------------------- (retryable)
//!    Stopped <----------------------------------------------- (needs a person)
//! ```
//!
//! `handle_*` takes something in, [`Session::poll`] gives the next thing to do, [`Session::deadline`] says when to
//! call [`Session::handle_time`] if nothing else happens. Time is an argument.
//!
//! Patches are pipelined: the parent of a patch diff is the last patch *sent*, and the server applies in order.
//! At the first refusal everything sent after it is void (go-back-N) and the session goes on from the
//! last state the server is known to hold.

mod link;
mod report;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::model::patch;
use crate::model::{
    Acked, Change, ErrorCode, ErrorReport, EventKind, Missing, PatchId, Phase, RelPath, Rung, Snapshot,
    WithheldReason,
};
use crate::repo::Head;
use crate::repo::observer::{Request, Update};
use crate::wire::{self, Ack, PatchHeader, PatchKind, Refusal, RefusalCode, ToClient, ToServer};

pub(super) use self::report::report_of;
use self::report::{brake_report, kind_of};

/// Generations that may be unacked,
const WINDOW_GENERATIONS: usize = 4;
/// and bytes, beyond which only one may.
const WINDOW_BYTES: u64 = 1 << 20;
/// Snapshots kept so that a server that holds one of them can be sent a step instead of the whole.
const REMEMBERED: usize = 16;
const PING_EVERY: Duration = Duration::from_secs(5);
/// A patch whose contents changed while they were sent is tried again after the newer snapshot, or
/// after this long if none comes.
const ABANDONED_WAIT: Duration = Duration::from_millis(200);
/// Refused paths are offered again this often.
const REFUSED_WAIT: Duration = Duration::from_secs(60);
/// Whole patches refused in a row before we call it our defect.
const INVALID_MOST: u32 = 3;

/// What a server is told about this client.
#[derive(Debug, Clone)]
pub struct Identity {
    pub workspace: String,
    pub owner_id: String,
    pub owner_text: String,
    pub software: String,
    /// A managed file changed on the server stays as it is until a person decides.
    pub hold_drift: bool,
}

/// One target's session.
#[derive(Debug)]
pub struct Session {
    identity: Identity,
    link: Link,
    /// As last reported.
    phase: Phase,
    reason: String,
    paused: bool,
    /// The program is ending: nothing new is sent.
    closing: bool,
    /// Files are missing in such number that nothing is sent until a person accepts it.
    braked: Option<Missing>,
    /// A person said that drift on hold may be replaced, once.
    accept_drift: bool,
    newest: Option<Newest>,
    /// What the server holds by its last word, if we know that snapshot.
    acked: Option<Snapshot>,
    /// The snapshot that is as good as acked, because the server refused the rest of it for good.
    satisfied: Option<PatchId>,
    refused: Vec<(RelPath, WithheldReason)>,
    refused_retry: Option<Instant>,
    remembered: VecDeque<Snapshot>,
    /// Unacked, in order.
    sent: VecDeque<Sent>,
    /// A patch is on its way into the transport.
    sending: bool,
    generation: u64,
    /// Nothing is sent before this.
    not_before: Option<Instant>,
    rung: Rung,
    /// Replies of kind Session that are still to come, oldest first.
    expected: VecDeque<Negotiation>,
    /// The head the server was told of.
    told: Option<std::sync::Arc<Head>>,
    /// A rehash of the server is wanted, and whether every path is to be compared after it.
    rehash: Option<Rehash>,
    /// The next patch names every path, whatever the server is known to hold.
    whole: bool,
    invalid: u32,
    retries: u32,
    down_since: Option<Instant>,
    last_error: Option<(Instant, ErrorReport)>,
    ping: Option<Ping>,
    rtt: Option<Duration>,
    nonce: u64,
    withheld_told: Vec<(RelPath, WithheldReason)>,
    actions: VecDeque<Action>,
    events: Vec<EventKind>,
    rng: fastrand::Rng,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    /// A connection is being made.
    Connecting,
    /// Hello is sent.
    Greeting,
    /// NewSession is sent.
    Opening,
    Open,
    /// Nothing until then.
    Waiting {
        until: Instant,
    },
    /// Until a person acts.
    Stopped {
        phase: Phase,
    },
    /// Ended in order.
    Closed,
}

#[derive(Debug)]
struct Newest {
    update: Update,
    /// Oldest change not yet sent in any patch, and how long it was held.
    unsent: Option<(Instant, Duration)>,
}

#[derive(Debug)]
struct Sent {
    generation: u64,
    snapshot: Snapshot,
    parent: PatchId,
    /// Needed to know what a server holds that refused some paths; `None` for a whole patch.
    parent_snapshot: Option<Snapshot>,
    oldest: Option<(Instant, Duration)>,
    changes: std::sync::Arc<Vec<Change>>,
    bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Negotiation {
    First,
    /// HEAD, the branch or the remotes moved.
    Moved,
    Rehash(Rehash),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rehash {
    /// Heal what turns out to differ.
    Verify,
    /// Name every path.
    Resync,
}

#[derive(Debug)]
struct Ping {
    nonce: u64,
    sent: Instant,
}

/// Something for the task to do.
#[derive(Debug)]
pub enum Action {
    Connect,
    Disconnect,
    Say(ToServer),
    /// Send a patch; [`Session::handle_sent`] or [`Session::handle_abandoned`] follows.
    Send(Outgoing),
    Ask(Request),
}

/// A patch, or the second half of a whole one, to be encoded and sent.
#[derive(Debug, Clone)]
pub enum Outgoing {
    Patch {
        header: PatchHeader,
        changes: std::sync::Arc<Vec<Change>>,
        /// The snapshot the step starts from: contents it has need not be sent.
        parent: Option<Snapshot>,
    },
    /// What the server asked for after `ApplyPatch`.
    Answer {
        generation: u64,
        changes: std::sync::Arc<Vec<Change>>,
        wanted: Vec<u32>,
        extra: Vec<RelPath>,
        /// What the patch leads to: it knows which paths left the set without being deleted.
        snapshot: Snapshot,
        last: bool,
    },
}

impl Session {
    /// A session that starts by connecting. `seed` spreads retries.
    pub fn new(identity: Identity, seed: u64) -> Self {
        let mut session = Self {
            identity,
            link: Link::Connecting,
            phase: Phase::Connecting,
            reason: String::new(),
            paused: false,
            closing: false,
            braked: None,
            accept_drift: false,
            newest: None,
            acked: None,
            satisfied: None,
            refused: Vec::new(),
            refused_retry: None,
            remembered: VecDeque::new(),
            sent: VecDeque::new(),
            sending: false,
            generation: 0,
            not_before: None,
            rung: Rung::Patch,
            expected: VecDeque::new(),
            told: None,
            rehash: None,
            whole: false,
            invalid: 0,
            retries: 0,
            down_since: None,
            last_error: None,
            ping: None,
            rtt: None,
            nonce: 0,
            withheld_told: Vec::new(),
            actions: VecDeque::new(),
            events: Vec::new(),
            rng: fastrand::Rng::with_seed(seed),
        };
        session.actions.push_back(Action::Connect);
        session
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The next thing to do, until there is none.
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// What happened since the last call, in order.
    pub fn take_events(&mut self) -> Vec<EventKind> {
        std::mem::take(&mut self.events)
    }

    /// When [`Session::handle_time`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        let link = match self.link {
            Link::Waiting { until } => Some(until),
            Link::Open => self.ping.as_ref().map(|p| p.sent + PING_EVERY),
            _ => None,
        };
        let send = if self.link == Link::Open { self.not_before } else { None };
        [link, send, self.refused_retry].into_iter().flatten().min()
    }

    pub fn handle_time(&mut self, now: Instant) {
        if let Link::Waiting { until } = self.link
            && until <= now
        {
            self.connect();
        }
        if self.not_before.is_some_and(|at| at <= now) {
            self.not_before = None;
        }
        if self.refused_retry.is_some_and(|at| at <= now) {
            self.refused_retry = None;
            self.satisfied = None;
        }
        if self.link == Link::Open && self.ping.as_ref().is_none_or(|p| p.sent + PING_EVERY <= now) {
            self.send_ping(now);
        }
        self.advance(now);
    }

    /// A stream to the server exists.
    pub fn handle_connected(&mut self, now: Instant) {
        if self.link != Link::Connecting {
            return;
        }
        self.link = Link::Greeting;
        self.say(ToServer::Hello(wire::Hello {
            protocol: wire::PROTOCOL,
            required: Vec::new(),
            optional: wire::FEATURES.iter().map(ToString::to_string).collect(),
            software: self.identity.software.clone(),
        }));
        self.advance(now);
    }

    /// There is no stream, or the one there was has ended.
    pub fn handle_disconnected(&mut self, report: ErrorReport, now: Instant) {
        if matches!(self.link, Link::Stopped { .. } | Link::Closed | Link::Waiting { .. }) {
            return;
        }
        self.fail(report, now);
        self.advance(now);
    }

    /// The repo has a newer state.
    pub fn handle_update(&mut self, update: Update, now: Instant) {
        let since = (update.seen, update.held);
        let unsent = match self.newest.take() {
            Some(old) if old.update.snapshot.id() == update.snapshot.id() => old.unsent,
            Some(old) => Some(old.unsent.unwrap_or(since)),
            None => Some(since),
        };
        self.remember(update.snapshot.clone());
        self.newest = Some(Newest { update, unsent });
        self.report_local();
        self.advance(now);
    }

    /// The stream brought a message.
    pub fn handle_message(&mut self, message: ToClient, now: Instant) {
        match (message, self.link) {
            (ToClient::Welcome(welcome), Link::Greeting) => self.handle_welcome(&welcome, now),
            (ToClient::Session(session), Link::Opening | Link::Open) => self.handle_session(session, now),
            (ToClient::Wanted(wanted), Link::Open) => self.handle_wanted(wanted, now),
            (ToClient::Ack(ack), Link::Open) => self.handle_ack(ack, now),
            (ToClient::Drift(drift), Link::Open) => self.handle_drift(drift),
            (ToClient::Refusal(refusal), link) if link != Link::Closed => self.handle_refusal(refusal, now),
            (ToClient::Pong { nonce }, _) => {
                if let Some(ping) = self.ping.as_ref().filter(|p| p.nonce == nonce) {
                    let rtt = now.saturating_duration_since(ping.sent);
                    self.rtt = Some(rtt);
                    self.events.push(EventKind::Rtt(rtt));
                }
            }
            (message, _) => {
                self.violation(format!("the server spoke out of turn: {}", kind_of(&message)), now);
            }
        }
        self.advance(now);
    }

    /// The patch (or the answer) went into the transport whole; `bytes` is what it took.
    pub fn handle_sent(&mut self, bytes: u64, now: Instant) {
        self.sending = false;
        if let Some(sent) = self.sent.back_mut() {
            sent.bytes += bytes;
        }
        self.advance(now);
    }

    /// The patch last sent was given up: these paths no longer hold what it says.
    pub fn handle_abandoned(&mut self, paths: Vec<RelPath>, now: Instant) {
        self.sending = false;
        if let Some(sent) = self.sent.pop_back() {
            self.say(ToServer::Abandon { generation: sent.generation });
            self.requeue(sent.oldest);
        }
        self.not_before = Some(now + ABANDONED_WAIT);
        self.actions.push_back(Action::Ask(Request::Check(paths)));
        self.advance(now);
    }

    pub fn pause(&mut self, now: Instant) {
        self.paused = true;
        self.advance(now);
    }

    pub fn resume(&mut self, now: Instant) {
        self.paused = false;
        self.advance(now);
    }

    /// Ends any wait, has the repository looked at, sends.
    pub fn sync_now(&mut self, now: Instant) {
        self.actions.push_back(Action::Ask(Request::Rescan));
        self.wake();
        self.advance(now);
    }

    /// Client re-reads everything, server rehashes everything, then every path is compared anew.
    pub fn resync(&mut self, now: Instant) {
        self.start_rehash(Rehash::Resync, now);
    }

    /// Like [`Session::resync`], but only what turns out to differ is sent.
    pub fn verify(&mut self, now: Instant) {
        self.start_rehash(Rehash::Verify, now);
    }

    fn start_rehash(&mut self, rehash: Rehash, now: Instant) {
        self.actions.push_back(Action::Ask(Request::Reread));
        self.rehash = Some(rehash);
        self.wake();
        self.advance(now);
    }

    /// A person says that what stopped this target is meant: the brake is released, drift on hold is replaced.
    pub fn accept(&mut self, now: Instant) {
        self.actions.push_back(Action::Ask(Request::Accept));
        if self.refused.iter().any(|(_, why)| *why == WithheldReason::Drift) {
            self.accept_drift = true;
            self.satisfied = None;
            if self.link == Link::Open {
                self.negotiate(Negotiation::Moved);
            }
        }
        self.advance(now);
    }

    /// The repo's brake was set or released.
    pub fn handle_brake(&mut self, missing: Option<Missing>, now: Instant) {
        if missing.is_some() && self.braked.is_none() {
            self.events.push(EventKind::Error(brake_report(missing)));
        }
        self.braked = missing;
        self.advance(now);
    }

    /// The repo cannot be observed (any more).
    pub fn stop(&mut self, report: ErrorReport, now: Instant) {
        self.halt(Phase::Halted, report, now);
        self.advance(now);
    }

    /// Ends in order: no new patch is sent, and once the last one is answered the server is told.
    pub fn close(&mut self, now: Instant) {
        self.closing = true;
        self.advance(now);
        if self.is_idle() && !self.is_closed() {
            if self.link == Link::Open {
                self.say(ToServer::Close);
            }
            self.link = Link::Closed;
        }
    }

    /// True once nothing sent waits for an answer.
    pub fn is_idle(&self) -> bool {
        self.sent.is_empty() && !self.sending
    }

    pub fn is_closed(&self) -> bool {
        self.link == Link::Closed
    }

    fn say(&mut self, message: ToServer) {
        self.actions.push_back(Action::Say(message));
    }

    fn send_ping(&mut self, now: Instant) {
        self.nonce += 1;
        self.ping = Some(Ping { nonce: self.nonce, sent: now });
        self.say(ToServer::Ping { nonce: self.nonce });
    }

    fn handle_welcome(&mut self, welcome: &wire::Welcome, now: Instant) {
        if welcome.protocol != wire::PROTOCOL {
            let report = ErrorReport {
                code: ErrorCode::Protocol,
                message: format!(
                    "the server speaks protocol {}, this client {}",
                    welcome.protocol,
                    wire::PROTOCOL
                ),
                causes: Vec::new(),
                retryable: false,
            };
            return self.halt(Phase::Halted, report, now);
        }
        // NewSession follows once there is a snapshot to speak of.
        self.link = Link::Opening;
    }

    /// Sends NewSession. Needs a first look at the repo, which names the hash and HEAD.
    fn negotiate(&mut self, negotiation: Negotiation) {
        let Some(newest) = &self.newest else { return };
        let head = newest.update.head.clone();
        let message = ToServer::NewSession(wire::NewSession {
            workspace: self.identity.workspace.clone(),
            owner_id: self.identity.owner_id.clone(),
            owner_text: self.identity.owner_text.clone(),
            takeover: false,
            hash_kind: newest.update.snapshot.root().hash_kind(),
            head: head.commit,
            branch: head.branch.clone(),
            commits: head.commits.clone(),
            remotes: head.remotes.clone(),
            hold_drift: self.identity.hold_drift && !self.accept_drift,
        });
        self.told = Some(head);
        self.expected.push_back(negotiation);
        self.say(message);
    }

    fn handle_session(&mut self, session: wire::Session, now: Instant) {
        let Some(negotiation) = self.expected.pop_front() else {
            return self.violation("a session that was not asked for".into(), now);
        };
        if session.drifted_count > 0 {
            self.events.push(EventKind::Drift { paths: session.drifted.clone(), kept: 0 });
        }
        let Some(newest) = &self.newest else { return };
        let newest_id = newest.update.snapshot.id();
        if negotiation != Negotiation::Moved {
            self.void_sent();
            self.satisfied = None;
            self.acked = self.recall(session.held);
            self.whole = negotiation == Negotiation::Rehash(Rehash::Resync);
            self.rung = match &self.acked {
                Some(_) if self.whole => Rung::Patch,
                Some(acked) if acked.id() == newest_id => Rung::None,
                Some(_) => Rung::Diff,
                None => Rung::Patch,
            };
            if negotiation == Negotiation::First {
                self.link = Link::Open;
                self.generation = 0;
                self.send_ping(now);
            }
        }
        if self.accept_drift && negotiation == Negotiation::First && self.rung == Rung::None {
            // Nothing was on hold after all; what comes later was not meant.
            self.accept_drift = false;
            self.negotiate(Negotiation::Moved);
        }
        let reason = match (negotiation, self.rung) {
            (Negotiation::Moved, _) => "HEAD, branch or remotes moved",
            (Negotiation::Rehash(Rehash::Resync), _) => "resync",
            (Negotiation::Rehash(Rehash::Verify), _) => "verify",
            (Negotiation::First, Rung::None) => "the server holds this state already",
            (Negotiation::First, Rung::Diff) => "the server holds a state this client remembers",
            (Negotiation::First, Rung::Patch) => "the server holds a state this client does not know",
        };
        self.report_session(session.held, session.common, reason);
        if negotiation != Negotiation::Moved {
            self.report_local();
        }
        if negotiation != Negotiation::Moved && self.rung == Rung::None {
            self.note_in_sync(now);
            let oldest = self.newest.as_mut().and_then(|n| n.unsent.take());
            self.events.push(EventKind::Acked(Acked {
                patch_id: newest_id,
                parent_id: newest_id,
                generation: 0,
                written: 0,
                deleted: 0,
                wire_bytes: 0,
                latency: None,
                held: oldest.map_or(Duration::ZERO, |(_, held)| held),
                apply: Duration::ZERO,
                rtt: self.rtt,
                withheld: self.withheld().len() as u64,
            }));
        }
    }

    fn handle_wanted(&mut self, wanted: wire::Wanted, now: Instant) {
        let Some(sent) = self.sent.iter().find(|s| s.generation == wanted.generation) else {
            return; // Asked for a patch that is void by now.
        };
        if wanted.changes.iter().any(|i| *i as usize >= sent.changes.len()) {
            return self.violation("the server asked for a content that was not offered".into(), now);
        }
        self.sending = true;
        self.actions.push_back(Action::Send(Outgoing::Answer {
            generation: wanted.generation,
            changes: sent.changes.clone(),
            wanted: wanted.changes,
            extra: wanted.extra,
            snapshot: sent.snapshot.clone(),
            last: !wanted.more,
        }));
    }

    fn handle_ack(&mut self, ack: Ack, now: Instant) {
        if self.sent.front().is_none_or(|s| s.generation != ack.generation) {
            return self.violation(format!("an ack for generation {} out of order", ack.generation), now);
        }
        let Some(sent) = self.sent.pop_front() else { return };
        let refused: Vec<RelPath> = ack.refused.iter().map(|(path, _)| path.clone()).collect();
        self.acked = held_after(&sent, &refused, ack.id).or_else(|| self.recall(ack.id));
        self.refused = ack
            .refused
            .into_iter()
            .map(|(path, why)| match why.as_str() {
                wire::DRIFT => (path, WithheldReason::Drift),
                _ => (path, WithheldReason::Refused(why)),
            })
            .collect();
        if self.accept_drift && sent.generation == self.generation {
            // What was on hold is replaced; from here on the policy holds again.
            self.accept_drift = false;
            self.negotiate(Negotiation::Moved);
        }
        if let Some(acked) = self.acked.clone() {
            self.remember(acked);
            self.invalid = 0;
            self.satisfied = (!refused.is_empty()).then(|| sent.snapshot.id());
            self.refused_retry = (!refused.is_empty()).then(|| now + REFUSED_WAIT);
        } else {
            // It holds something neither side planned: compare every path.
            self.void_sent();
            self.count_invalid(now);
        }
        if ack.kept_count > 0 {
            self.events.push(EventKind::Drift { paths: ack.kept, kept: ack.kept_count });
        }
        let held_for = sent.oldest.map_or(Duration::ZERO, |(_, held)| held);
        self.events.push(EventKind::Acked(Acked {
            patch_id: ack.id,
            parent_id: sent.parent,
            generation: ack.generation,
            written: ack.written,
            deleted: ack.deleted,
            wire_bytes: 0,
            latency: sent.oldest.map(|(seen, held)| now.saturating_duration_since(seen).saturating_sub(held)),
            held: held_for,
            apply: Duration::from_micros(ack.apply_us),
            rtt: self.rtt,
            withheld: self.withheld().len() as u64,
        }));
        self.report_local();
    }

    /// Somebody changed managed files on the server. Patches on their way there will be refused, because
    /// they start from what is held no more; what is held now is known if all its paths were named.
    fn handle_drift(&mut self, drift: wire::Drift) {
        let nothing = Snapshot::empty(drift.held.hash_kind());
        let left = self.acked.as_ref().and_then(|a| a.with_paths_of(&nothing, &drift.paths).ok());
        self.acked = left.filter(|l| l.id() == drift.held).or_else(|| self.recall(drift.held));
        if let Some(acked) = self.acked.clone() {
            self.remember(acked);
        }
        self.satisfied = None;
        self.events.push(EventKind::Drift { paths: drift.paths, kept: 0 });
        self.report_local();
    }

    fn handle_refusal(&mut self, refusal: Refusal, now: Instant) {
        let report = report_of(&refusal);
        if refusal.generation == 0 {
            return match refusal.code {
                RefusalCode::ShuttingDown | RefusalCode::Failed | RefusalCode::DiskFull => {
                    self.actions.push_back(Action::Disconnect);
                    self.fail(report, now);
                }
                _ => self.halt(Phase::Halted, report, now),
            };
        }
        let Some(at) = self.sent.iter().position(|s| s.generation == refusal.generation) else {
            return; // Void already: it followed a refused one.
        };
        let void: Vec<Sent> = self.sent.drain(at..).collect();
        let oldest = void.into_iter().find_map(|s| s.oldest);
        self.requeue(oldest);
        match refusal.code {
            RefusalCode::ParentMismatch => {
                self.acked = refusal.held.and_then(|held| self.recall(held));
                self.events.push(EventKind::Note(report.one_line()));
                self.count_invalid(now);
            }
            RefusalCode::PatchInvalid | RefusalCode::BaseUnknown => {
                self.acked = None;
                self.events.push(EventKind::Error(report));
                self.count_invalid(now);
            }
            RefusalCode::DiskFull | RefusalCode::Failed | RefusalCode::ShuttingDown => {
                self.actions.push_back(Action::Disconnect);
                self.fail(report, now);
            }
            _ => self.halt(Phase::Halted, report, now),
        }
    }

    fn count_invalid(&mut self, now: Instant) {
        self.invalid += 1;
        if self.invalid > INVALID_MOST {
            let report = ErrorReport {
                code: ErrorCode::Internal,
                message: format!("the server refused {} patches in a row", self.invalid),
                causes: Vec::new(),
                retryable: false,
            };
            self.halt(Phase::Failed, report, now);
        }
    }

    fn violation(&mut self, what: String, now: Instant) {
        let report =
            ErrorReport { code: ErrorCode::Protocol, message: what, causes: Vec::new(), retryable: true };
        self.actions.push_back(Action::Disconnect);
        self.fail(report, now);
    }

    fn void_sent(&mut self) {
        let oldest = self.sent.drain(..).collect::<Vec<_>>().into_iter().find_map(|s| s.oldest);
        self.requeue(oldest);
    }

    /// Changes that were sent in vain count as unsent again.
    fn requeue(&mut self, oldest: Option<(Instant, Duration)>) {
        if let (Some(newest), Some(oldest)) = (&mut self.newest, oldest) {
            newest.unsent = Some(oldest);
        }
    }

    fn remember(&mut self, snapshot: Snapshot) {
        self.remembered.retain(|s| s.id() != snapshot.id());
        if self.remembered.len() == REMEMBERED {
            self.remembered.pop_front();
        }
        self.remembered.push_back(snapshot);
    }

    fn recall(&self, id: PatchId) -> Option<Snapshot> {
        self.remembered.iter().rev().find(|s| s.id() == id).cloned()
    }

    /// Does whatever the state allows now, then reports the phase.
    fn advance(&mut self, now: Instant) {
        match self.link {
            Link::Opening if self.expected.is_empty() => self.negotiate(Negotiation::First),
            Link::Open => self.advance_open(now),
            _ => {}
        }
        self.report_withheld();
        self.report_phase(now);
    }

    fn advance_open(&mut self, now: Instant) {
        let Some(newest) = &self.newest else { return };
        if self.sending || self.not_before.is_some_and(|at| at > now) {
            return;
        }
        if self.told.as_ref().is_some_and(|told| **told != *newest.update.head) {
            self.negotiate(Negotiation::Moved);
        }
        if let Some(rehash) = self.rehash.take_if(|_| self.sent.is_empty()) {
            self.expected.push_back(Negotiation::Rehash(rehash));
            self.say(ToServer::Rehash);
        }
        if self.paused
            || self.closing
            || self.braked.is_some()
            || self.expected.iter().any(|n| *n != Negotiation::Moved)
        {
            return;
        }
        self.send_newest();
    }

    fn send_newest(&mut self) {
        let Some(newest) = &mut self.newest else { return };
        let snapshot = newest.update.snapshot.clone();
        let parent = match std::mem::take(&mut self.whole) {
            true => None,
            false => self.sent.back().map(|s| &s.snapshot).or(self.acked.as_ref()).cloned(),
        };
        if parent.as_ref().is_some_and(|p| p.id() == snapshot.id())
            || (self.sent.is_empty() && self.satisfied == Some(snapshot.id()))
        {
            return;
        }
        let unacked: u64 = self.sent.iter().map(|s| s.bytes).sum();
        let full = self.sent.len() >= WINDOW_GENERATIONS || unacked > WINDOW_BYTES;
        // After a whole patch the server's paths beyond it are known only once it is acked.
        let whole_unacked = self.sent.iter().any(|s| s.parent_snapshot.is_none());
        if !self.sent.is_empty() && (full || whole_unacked) {
            return;
        }
        let (kind, changes) = match &parent {
            Some(parent) => (PatchKind::Diff { parent: parent.id() }, patch::between(parent, &snapshot)),
            None => {
                let base = PatchId::empty(snapshot.root().hash_kind());
                (PatchKind::Whole { base }, patch::whole(&snapshot))
            }
        };
        self.generation += 1;
        let changes = std::sync::Arc::new(changes);
        let header = PatchHeader { kind, next: snapshot.id(), generation: self.generation };
        self.sent.push_back(Sent {
            generation: self.generation,
            parent: match kind {
                PatchKind::Diff { parent } => parent,
                PatchKind::Whole { base } => base,
            },
            parent_snapshot: parent.clone(),
            snapshot,
            oldest: newest.unsent.take(),
            changes: changes.clone(),
            bytes: 0,
        });
        self.sending = true;
        self.actions.push_back(Action::Send(Outgoing::Patch { header, changes, parent }));
    }

    fn is_satisfied(&self) -> bool {
        let Some(newest) = &self.newest else { return false };
        let id = newest.update.snapshot.id();
        self.sent.is_empty()
            && !self.whole
            && (self.acked.as_ref().is_some_and(|a| a.id() == id) || self.satisfied == Some(id))
    }

    fn note_in_sync(&mut self, _now: Instant) {
        self.retries = 0;
        self.down_since = None;
        self.last_error = None;
    }
}

/// What a server holds that refused some paths: those as they were before the patch, or (when its
/// file was no longer ours) not at all. `None` if it is neither.
fn held_after(sent: &Sent, refused: &[RelPath], id: PatchId) -> Option<Snapshot> {
    if refused.is_empty() {
        return Some(sent.snapshot.clone()).filter(|s| s.id() == id);
    }
    let nothing = Snapshot::empty(id.hash_kind());
    [sent.parent_snapshot.as_ref(), Some(&nothing)]
        .into_iter()
        .flatten()
        .filter_map(|before| sent.snapshot.with_paths_of(before, refused).ok())
        .find(|held| held.id() == id)
}

#[cfg(test)]
mod tests;
