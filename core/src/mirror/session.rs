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
//!
//! A large content goes ahead of its patch, in the background. Until it is there, patches lead to the newest
//! snapshot but for its path, which stays as it was: so edits pass it, and "in sync" waits for it.
//!
//! One that is being read travels already as far as it is the same as before, and is named at its end.
//!
//! What git writes is offered by name first, because the server's clone may have it. That is asked while saves are held
//! back for git; only git's own step waits for the answer, a round trip at most.

mod ahead;
mod commands;
mod first;
mod history;
mod link;
mod negotiation;
mod offers;
mod readings;
mod refused;
mod report;
mod sending;
mod stranger;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::baseline::Track;
use crate::model::{
    Acked, Change, ContentId, ErrorCode, ErrorReport, EventKind, HashKind, HistoryDepth, Missing, Needed,
    PatchId, Phase, RelPath, Rung, Snapshot, WithheldReason,
};
use crate::repo::history::Order;
use crate::repo::observer::{Request, Update};
use crate::repo::reading::Reading;
use crate::repo::{Head, RepoIdentity};
use crate::wire::{self, Ack, PatchHeader, Refusal, RefusalCode, RefusedPath, ToClient, ToServer};

use self::ahead::Ahead;
use self::offers::Offers;
use self::readings::Readings;
use self::refused::Refused;
pub(super) use self::report::report_of;
use self::report::{brake_report, kind_of};
use self::stranger::Stranger;

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
/// What goes ahead in vain waits twice as long each time, but not more often than that: 6.4 s at most.
const AHEAD_DOUBLINGS: u32 = 5;
/// Ids in one Forget.
const FORGET_IDS: usize = 5_000;
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
    /// Where the repo is, for messages.
    pub workdir: String,
    /// Which repository this target mirrored last; `None` if it never did.
    pub mirrored: Option<RepoIdentity>,
    /// How much of the history the workspace's clone gets.
    pub history: HistoryDepth,
}

/// What a server can do, by its Welcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// Contents may be described by a file it has.
    pub delta: bool,
    /// Contents may come before their patch.
    pub ahead: bool,
    /// Its clone follows the client's commits.
    pub history: bool,
    /// It looks for contents in its clone before they are sent.
    pub offer: bool,
    /// A content may begin to travel before its id is known.
    pub nameless: bool,
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
    /// What keeps a repository from taking the place of the one mirrored before.
    stranger: Stranger,
    /// The server said that the workspace is another owner's.
    locked: bool,
    /// A person said that it is to be ours; good for one session.
    takeover: bool,
    /// Streams that were dropped before their `NewSession` was answered. The server may take one of them up after the one
    /// that followed it, which is then superseded by nobody but us.
    unanswered: u32,
    /// Until then a lock is taken for that of a session of this program which is about to end.
    patient_until: Option<Instant>,
    /// A person said that drift on hold may be replaced, once.
    accept_drift: bool,
    /// HEAD and object format, before there is a first snapshot.
    opened: Option<(Arc<Head>, HashKind)>,
    /// The server's answer, if it came before the first snapshot.
    early: Option<wire::Session>,
    newest: Option<Newest>,
    /// What the server holds by its last word, if we know that snapshot.
    acked: Option<Snapshot>,
    /// The snapshot that is as good as acked, because what the server lacks of it was refused and rests.
    satisfied: Option<PatchId>,
    refused: Refused,
    /// What came ahead of the next ack of what it refuses.
    refused_before: Vec<RefusedPath>,
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
    told: Option<Arc<Head>>,
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
    /// What the server offers beyond the protocol's first words.
    features: Features,
    ahead: Ahead,
    offers: Offers,
    /// What the first scan read so far, and is not sent.
    read: Vec<Needed>,
    /// Large files that are being read.
    readings: Readings,
    /// Which step the books were last brought up to date for: its parent, the newest snapshot, the preview.
    ahead_for: Option<(PatchId, PatchId, Option<PatchId>)>,
    /// A working tree on its way to the next snapshot, while git is at work in it.
    preview: Option<Snapshot>,
    /// Nothing is sent ahead before this.
    ahead_not_before: Option<Instant>,
    /// How often in a row that failed for the same snapshot.
    ahead_failures: u32,
    /// The next patch carries all its contents, whole: the server lacked one it should have had.
    plain: bool,
    /// The server had no room: until it is in sync, it is asked for it before contents travel.
    ask: bool,
    /// The other track.
    track: Track,
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
    /// The same, of large contents that go ahead.
    unsent_large: Option<(Instant, Duration)>,
    /// HEAD moved with what is not sent yet,
    is_moved: bool,
    /// or it was held back for git.
    is_held: bool,
    /// What is not sent yet has been offered, as far as that pays.
    is_asked: bool,
}

impl Newest {
    /// The server has all it is to have, or what it lacks rests.
    fn nothing_is_unsent(&mut self) {
        (self.unsent, self.unsent_large) = (None, None);
    }
}

#[derive(Debug)]
struct Sent {
    generation: u64,
    snapshot: Snapshot,
    parent: PatchId,
    /// `None` for a whole patch.
    parent_snapshot: Option<Snapshot>,
    /// Its contents wait until the server says which it lacks.
    asks: bool,
    oldest: Option<(Instant, Duration)>,
    changes: Arc<Vec<Change>>,
    /// Contents it takes from the server's stage.
    staged: Vec<ContentId>,
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
    /// Send contents ahead; [`Session::handle_ahead_sent`] or [`Session::handle_ahead_failed`] follows.
    SendAhead {
        contents: Arc<Vec<Needed>>,
        /// None may be described by a file of the server's.
        plain: bool,
    },
    /// Send ahead what becomes known of a large file while it is read; [`Session::handle_followed`] or
    /// [`Session::handle_void`] follows.
    Follow(Reading),
    /// Stop sending ahead what is under way; nothing follows.
    StopAhead,
    /// Plan, pack and send a step of the history; [`Session::handle_step_sent`] follows.
    SendStep {
        number: u64,
        order: Box<Order>,
    },
    /// Stop sending that step and tell the server; nothing follows.
    StopStep {
        number: u64,
    },
    Ask(Request),
    /// This repository is what the target mirrors from now on: to be remembered beyond this run.
    Remember(RepoIdentity),
}

/// A patch, or the second half of a whole one, to be encoded and sent.
#[derive(Debug, Clone)]
pub enum Outgoing {
    Patch {
        header: PatchHeader,
        changes: Arc<Vec<Change>>,
        /// What goes with a patch diff; a whole patch waits to be asked.
        contents: Option<Arc<Vec<Needed>>>,
        /// No content may be described by a file of the server's.
        plain: bool,
    },
    /// What the server asked for after `ApplyPatch`.
    Answer {
        generation: u64,
        changes: Arc<Vec<Change>>,
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
            link: Link::Connecting,
            phase: Phase::Connecting,
            reason: String::new(),
            paused: false,
            closing: false,
            braked: None,
            stranger: Stranger::default(),
            locked: false,
            takeover: false,
            unanswered: 0,
            patient_until: None,
            accept_drift: false,
            opened: None,
            early: None,
            newest: None,
            acked: None,
            satisfied: None,
            refused: Refused::default(),
            refused_before: Vec::new(),
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
            features: Features::default(),
            ahead: Ahead::default(),
            offers: Offers::default(),
            read: Vec::new(),
            readings: Readings::default(),
            ahead_for: None,
            preview: None,
            ahead_not_before: None,
            ahead_failures: 0,
            plain: false,
            ask: false,
            track: Track::new(identity.history),
            identity,
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
        let step = if self.link == Link::Open { self.track.deadline() } else { None };
        [link, send, step, self.ahead_not_before, self.refused.due()].into_iter().flatten().min()
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
        if self.ahead_not_before.is_some_and(|at| at <= now) {
            self.ahead_not_before = None;
        }
        if self.refused.handle_time(now) {
            self.offer_refused();
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
        self.note_place(update.place);
        let since = (update.seen, update.held);
        let is_held = !update.held.is_zero();
        if self.newest.as_ref().is_none_or(|old| old.update.snapshot.id() != update.snapshot.id()) {
            (self.ahead_not_before, self.ahead_failures) = (None, 0);
        }
        let newest = match self.newest.take() {
            Some(old) => {
                let is_same = old.update.snapshot.id() == update.snapshot.id();
                if is_same {
                    // What was on its way to another one may not be needed.
                    self.ahead_for = None;
                }
                let moves = !old.update.head.is_at(&update.head);
                let waits = old.unsent.is_some();
                Newest {
                    unsent: if is_same { old.unsent } else { Some(old.unsent.unwrap_or(since)) },
                    unsent_large: old.unsent_large,
                    is_moved: moves && !is_same || waits && old.is_moved,
                    is_held: is_held || waits && old.is_held,
                    is_asked: (is_same || !moves) && waits && old.is_asked,
                    update,
                }
            }
            // What happened since the last run may have been git's work.
            None => Newest {
                update,
                unsent: Some(since),
                unsent_large: None,
                is_moved: true,
                is_held,
                is_asked: false,
            },
        };
        self.remember(newest.update.snapshot.clone());
        self.newest = Some(newest);
        self.preview = None;
        self.settle_refused();
        if let Some(session) = self.early.take() {
            self.handle_session(session, now);
        }
        self.report_local();
        self.advance(now);
    }

    /// The repository is open: NewSession need not wait for its first snapshot.
    pub fn handle_opened(&mut self, head: Arc<Head>, hash_kind: HashKind, now: Instant) {
        self.opened = Some((head, hash_kind));
        self.advance(now);
    }

    /// Git is at work: the working tree has come this far. Its contents can travel, and nothing else.
    pub fn handle_preview(&mut self, snapshot: Snapshot, now: Instant) {
        self.preview = Some(snapshot);
        self.advance(now);
    }

    /// The contents of [`Action::SendAhead`] went into the transport whole.
    pub fn handle_ahead_sent(&mut self, now: Instant) {
        self.ahead.sent();
        self.advance(now);
    }

    /// They did not: these files no longer hold what they should.
    pub fn handle_ahead_failed(&mut self, paths: Vec<RelPath>, now: Instant) {
        self.ahead.not_sent();
        self.ahead_for = None;
        // A newer snapshot ends the wait. Without one the same would most likely go out in vain again.
        let wait = ABANDONED_WAIT * (1 << self.ahead_failures.min(AHEAD_DOUBLINGS));
        self.ahead_failures += 1;
        self.ahead_not_before = Some(now + wait);
        self.actions.push_back(Action::Ask(Request::Check(paths)));
        self.advance(now);
    }

    /// The stream brought a message.
    pub fn handle_message(&mut self, message: ToClient, now: Instant) {
        match (message, self.link) {
            // What it had to say before it heard that we are gone.
            (_, Link::Closed) => {}
            (ToClient::Welcome(welcome), Link::Greeting) => self.handle_welcome(&welcome, now),
            (ToClient::Session(session), Link::Opening | Link::Open) => self.handle_session(session, now),
            (ToClient::Wanted(wanted), Link::Open) => self.handle_wanted(wanted, now),
            (ToClient::Refused { generation, paths }, Link::Open) => {
                self.handle_refused(generation, paths, now);
            }
            (ToClient::Ack(ack), Link::Open) => self.handle_ack(ack, now),
            (ToClient::Drift(drift), Link::Open) => self.handle_drift(drift),
            (ToClient::Lacking { positions }, Link::Open) => self.handle_lacking(&positions, now),
            (ToClient::Landed(landed), Link::Open) => self.handle_landed(&landed, now),
            (ToClient::NotLanded(not), Link::Open) => self.handle_not_landed(not, now),
            (ToClient::Refusal(refusal), _) => self.handle_refusal(refusal, now),
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
        // The server has part of it, even if what was sent is void since.
        self.say(ToServer::Abandon { generation: self.generation });
        if let Some(sent) = self.sent.pop_back() {
            self.ahead.give_back(sent.staged);
            self.requeue(sent.oldest);
        }
        self.not_before = Some(now + ABANDONED_WAIT);
        self.actions.push_back(Action::Ask(Request::Check(paths)));
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

    fn handle_wanted(&mut self, wanted: wire::Wanted, now: Instant) {
        let Some(sent) = self.sent.iter().find(|s| s.generation == wanted.generation) else {
            return; // Asked for a patch that is void by now.
        };
        if wanted.changes.iter().any(|i| *i as usize >= sent.changes.len()) {
            return self.violation("the server asked for a content that was not offered".into(), now);
        }
        if self.stops_stranger_by_wanted(&wanted, now) {
            return;
        }
        let Some(sent) = self.sent.iter().find(|s| s.generation == wanted.generation) else { return };
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

    /// Some of what the next ack refuses.
    fn handle_refused(&mut self, generation: u64, paths: Vec<RefusedPath>, now: Instant) {
        self.refused_before.extend(paths);
        let most = |s: &Sent| s.generation == generation && self.refused_before.len() <= s.changes.len();
        if !self.sent.front().is_some_and(most) {
            self.violation(format!("refused paths of generation {generation} that it cannot have"), now);
        }
    }

    fn handle_ack(&mut self, mut ack: Ack, now: Instant) {
        if self.sent.front().is_none_or(|s| s.generation != ack.generation) {
            return self.violation(format!("an ack for generation {} out of order", ack.generation), now);
        }
        ack.refused.splice(..0, self.refused_before.drain(..));
        let Some(sent) = self.sent.pop_front() else { return };
        self.track.handle_ack();
        let refused = ack.refused.len();
        self.acked = held_after(&sent, &ack.refused, ack.id).or_else(|| self.recall(ack.id));
        let changes = sent.parent_snapshot.is_some().then_some(&sent.changes[..]);
        self.refused.answered(&sent.snapshot, changes, ack.refused, now);
        self.offer_refused();
        if self.accept_drift && sent.generation == self.generation {
            // What was on hold is replaced; from here on the policy holds again.
            self.accept_drift = false;
            self.negotiate(Negotiation::Moved);
        }
        if let Some(acked) = self.acked.clone() {
            self.remember(acked);
            self.invalid = 0;
            self.plain = false;
            self.settle_refused();
        } else {
            // It holds something neither side planned: compare every path.
            self.void_sent();
            self.count_invalid(now);
        }
        if ack.kept_count > 0 {
            self.events.push(EventKind::Drift { paths: ack.kept, kept: ack.kept_count });
        }
        if let Some(text) = found_there(&sent, ack.written, refused) {
            self.events.push(EventKind::Note(text));
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
        self.refused.wake_paths(&drift.paths);
        self.offer_refused();
        self.settle_refused();
        self.events.push(EventKind::Drift { paths: drift.paths, kept: 0 });
        self.report_local();
    }

    fn handle_refusal(&mut self, refusal: Refusal, now: Instant) {
        let report = report_of(&refusal);
        if refusal.code == RefusalCode::Superseded && self.unanswered > 0 {
            self.unanswered -= 1;
            self.drop_stream();
            return self.connect();
        }
        if refusal.generation == 0 {
            // Whoever took it over can be asked to give it back the same way.
            self.locked = matches!(refusal.code, RefusalCode::Locked | RefusalCode::Superseded);
            return match refusal.code {
                RefusalCode::ShuttingDown | RefusalCode::Failed | RefusalCode::DiskFull => {
                    self.actions.push_back(Action::Disconnect);
                    self.fail(report, now);
                }
                RefusalCode::Locked if self.patient_until.is_some_and(|until| now < until) => {
                    self.actions.push_back(Action::Disconnect);
                    self.fail(report, now);
                }
                _ => self.halt(Phase::Halted, report, now),
            };
        }
        let Some(at) = self.sent.iter().position(|s| s.generation == refusal.generation) else {
            return; // Void already: it followed a refused one.
        };
        self.void_from(at);
        match refusal.code {
            RefusalCode::ContentMissing => {
                tracing::debug!("a content was not there, sending whole: {}", report.one_line());
                self.plain = true;
                self.forget_ahead();
                self.count_invalid(now);
            }
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
                self.ask |= refusal.code == RefusalCode::DiskFull;
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
        self.void_from(0);
    }

    /// What was sent from there on was in vain.
    fn void_from(&mut self, at: usize) {
        let mut oldest = None;
        for sent in self.sent.drain(at..) {
            oldest = oldest.or(sent.oldest);
            self.ahead.give_back(sent.staged);
        }
        self.ahead_for = None;
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
            Link::Opening => self.advance_read(),
            Link::Open => {
                self.advance_open(now);
                self.advance_history(now);
            }
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
        if self.told.as_ref().is_some_and(|told| !told.is_at(&newest.update.head)) {
            self.negotiate(Negotiation::Moved);
        } else if self.expected.is_empty() {
            self.track.handle_marks(newest.update.head.clone());
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
        self.advance_ahead();
    }

    /// What rests may be less than it was: look again.
    fn offer_refused(&mut self) {
        self.satisfied = None;
        self.ahead_for = None;
    }

    /// Drops refused paths that are as they should be, and finds out whether the others are all the server lacks.
    fn settle_refused(&mut self) {
        let (Some(newest), Some(acked)) = (&mut self.newest, &self.acked) else { return };
        let snapshot = &newest.update.snapshot;
        self.refused.settle(snapshot, acked);
        if acked.id() != snapshot.id()
            && self.sent.is_empty()
            && self.refused.offer(snapshot, acked).id() == acked.id()
        {
            self.satisfied = Some(snapshot.id());
            newest.nothing_is_unsent();
        }
    }

    fn is_satisfied(&self) -> bool {
        let Some(newest) = &self.newest else { return false };
        let id = newest.update.snapshot.id();
        self.sent.is_empty()
            && !newest.update.unfinished
            && !self.whole
            && (self.acked.as_ref().is_some_and(|a| a.id() == id) || self.satisfied == Some(id))
    }

    fn note_in_sync(&mut self, _now: Instant) {
        self.retries = 0;
        self.down_since = None;
        self.last_error = None;
        self.ask = false;
        self.remember_stranger();
    }
}

/// How much of a whole patch was on the server already: of a directory it adopted, above all.
fn found_there(sent: &Sent, written: u64, refused: usize) -> Option<String> {
    let all = sent.snapshot.root().leaves();
    let found = all.saturating_sub(written + refused as u64);
    let is_whole = sent.parent_snapshot.is_none();
    (is_whole && found > 0)
        .then(|| format!("{found} of {all} files were there as they should be and stay untouched"))
}

/// What a server holds that refused some paths: the patch, and at those what it says. `None` if that is not what it
/// names.
fn held_after(sent: &Sent, refused: &[RefusedPath], id: PatchId) -> Option<Snapshot> {
    let held = refused.iter().map(|r| (r.path.clone(), r.held)).collect();
    sent.snapshot.with(held).ok().filter(|held| held.id() == id)
}

#[cfg(test)]
mod tests;
