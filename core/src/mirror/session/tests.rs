//! The session talks to a pretended server: a few lines that hold a snapshot and apply in order.

use std::sync::Arc;

use super::link::{RETRY_FIRST, RETRY_MOST};
use super::refused::REFUSED_WAIT;
use super::*;
use crate::model::{ContentId, Dir, HashKind, Leaf, Mode, Signature};
use crate::wire::PatchKind;

mod first;
mod link;
mod offers;
mod readings;
mod stranger;

const KIND: HashKind = HashKind::Sha1;

fn snapshot(files: &[(&str, &str)]) -> Snapshot {
    let mut edits: Vec<(RelPath, Option<Leaf>)> = files
        .iter()
        .map(|(path, text)| {
            let id = ContentId::of(KIND, text.as_bytes());
            // A text that begins with "large" stands for a large content.
            let size = if text.starts_with("large") { 5 << 20 } else { text.len() as u64 };
            let leaf = Leaf { mode: Mode::File, id, signature: Signature { size, ..Signature::default() } };
            (RelPath::new(path).unwrap(), Some(leaf))
        })
        .collect();
    edits.sort_by(|a, b| a.0.cmp(&b.0));
    Snapshot::of(Dir::empty(KIND).edit(&edits).unwrap())
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A session, what it said, and a clock.
struct Bench {
    session: Session,
    /// Of the repository at the path.
    place: RepoIdentity,
    now: Instant,
    sent: Vec<Outgoing>,
    ahead: Vec<Arc<Vec<Needed>>>,
    following: Vec<Reading>,
    stopped_ahead: usize,
    steps: Vec<(u64, Order)>,
    stopped_steps: usize,
    said: Vec<ToServer>,
    asked: Vec<Request>,
    remembered: Vec<RepoIdentity>,
    connects: usize,
    events: Vec<EventKind>,
}

impl Bench {
    fn new() -> Self {
        Self::with(Self::identity())
    }

    fn identity() -> Identity {
        Identity {
            workspace: "w".into(),
            owner_id: "o".into(),
            owner_text: "o".into(),
            software: "test".into(),
            hold_drift: false,
            workdir: "/repo".into(),
            mirrored: None,
            history: HistoryDepth::Full,
        }
    }

    fn with(identity: Identity) -> Self {
        let mut bench = Self {
            session: Session::new(identity, 7),
            place: RepoIdentity::default(),
            now: Instant::now(),
            sent: Vec::new(),
            ahead: Vec::new(),
            following: Vec::new(),
            stopped_ahead: 0,
            steps: Vec::new(),
            stopped_steps: 0,
            said: Vec::new(),
            asked: Vec::new(),
            remembered: Vec::new(),
            connects: 0,
            events: Vec::new(),
        };
        bench.collect();
        bench
    }

    fn collect(&mut self) {
        while let Some(action) = self.session.poll() {
            match action {
                Action::Connect => self.connects += 1,
                Action::Disconnect => {}
                Action::Say(message) => self.said.push(message),
                Action::Send(outgoing) => self.sent.push(outgoing),
                Action::SendAhead { contents, .. } => self.ahead.push(contents),
                Action::Follow(reading) => self.following.push(reading),
                Action::StopAhead => self.stopped_ahead += 1,
                Action::SendStep { number, order } => self.steps.push((number, *order)),
                Action::StopStep { .. } => self.stopped_steps += 1,
                Action::Ask(request) => self.asked.push(request),
                Action::Remember(place) => self.remembered.push(place),
            }
        }
        self.events.extend(self.session.take_events());
    }

    fn step(&mut self, step: impl FnOnce(&mut Session, Instant)) {
        step(&mut self.session, self.now);
        self.collect();
    }

    fn update(&mut self, snapshot: &Snapshot) {
        let (snapshot, now) = (snapshot.clone(), self.now);
        let update = Update {
            snapshot,
            head: Arc::default(),
            place: self.place,
            seen: now,
            held: Duration::ZERO,
            unfinished: false,
        };
        self.step(|s, now| s.handle_update(update, now));
    }

    /// Brings the session to open, with a server that holds `held`.
    fn open(&mut self, held: PatchId) {
        self.greet();
        self.message(session_reply(held));
    }

    /// Brings the session to where it asks for the workspace.
    fn greet(&mut self) {
        self.step(|s, now| s.handle_connected(now));
        let features = wire::FEATURES.iter().map(ToString::to_string).collect();
        let welcome = wire::Welcome {
            protocol: wire::PROTOCOL,
            features,
            software: String::new(),
            kernel: String::new(),
        };
        self.message(ToClient::Welcome(welcome));
    }

    fn message(&mut self, message: ToClient) {
        self.step(|s, now| s.handle_message(message, now));
    }

    /// The transport takes the patch; gives back its header.
    fn transported(&mut self) -> PatchHeader {
        let header = self.last_header();
        self.step(|s, now| s.handle_sent(100, now));
        header
    }

    fn last_header(&self) -> PatchHeader {
        let header = self.sent.iter().rev().find_map(|o| match o {
            Outgoing::Patch { header, .. } => Some(*header),
            Outgoing::Answer { .. } => None,
        });
        header.expect("a patch was sent")
    }

    fn ack(&mut self, header: PatchHeader) {
        self.message(ToClient::Ack(Ack {
            generation: header.generation,
            id: header.next,
            written: 1,
            deleted: 0,
            apply_us: 10,
            refused: Vec::new(),
            kept: Vec::new(),
            kept_count: 0,
        }));
    }

    /// The server holds `held` now, because it refused these paths.
    fn ack_but_for(&mut self, header: PatchHeader, held: &Snapshot, refused: &[&str]) {
        let refused = refused.iter().map(|path| {
            let path = RelPath::new(path).unwrap();
            let reason = "a directory is in the way".into();
            RefusedPath { held: held.root().get(&path).copied(), path, reason }
        });
        self.message(ToClient::Ack(Ack {
            generation: header.generation,
            id: held.id(),
            written: 1,
            deleted: 0,
            apply_us: 10,
            refused: refused.collect(),
            kept: Vec::new(),
            kept_count: 0,
        }));
    }

    /// Of the acks of patches.
    fn latencies(&self) -> Vec<Option<Duration>> {
        let latency = |e: &EventKind| match e {
            EventKind::Acked(acked) if acked.generation > 0 => Some(acked.latency),
            _ => None,
        };
        self.events.iter().filter_map(latency).collect()
    }

    /// As last told.
    fn withheld(&self) -> Vec<String> {
        let paths = self.events.iter().rev().find_map(|e| match e {
            EventKind::Withheld { paths } => Some(paths.iter().map(|(path, _)| path.to_string()).collect()),
            _ => None,
        });
        paths.unwrap_or_default()
    }

    fn phases(&self) -> Vec<&'static str> {
        let to = |e: &EventKind| match e {
            EventKind::State { to, .. } => Some(to.name()),
            _ => None,
        };
        self.events.iter().filter_map(to).collect()
    }
}

fn session_reply(held: PatchId) -> ToClient {
    ToClient::Session(wire::Session {
        held,
        held_files: 0,
        common: None,
        epoch: 1,
        drifted: Vec::new(),
        drifted_count: 0,
        clone_head: None,
        clone_branch: None,
        clone_shallow: Vec::new(),
        blank: false,
    })
}

/// A session in sync with a server that holds `first`.
fn in_sync(first: &Snapshot) -> Bench {
    let mut bench = Bench::new();
    bench.update(first);
    bench.open(first.id());
    assert_eq!(bench.session.phase(), Phase::InSync);
    bench
}

fn diff_parent(header: PatchHeader) -> PatchId {
    match header.kind {
        PatchKind::Diff { parent } => parent,
        PatchKind::Whole { .. } => panic!("a whole patch"),
    }
}

#[test]
fn a_server_that_holds_the_state_already_gets_nothing() {
    let bench = in_sync(&snapshot(&[("a", "1")]));
    assert!(bench.sent.is_empty());
    let acks = bench.events.iter().filter(|e| matches!(e, EventKind::Acked(a) if a.generation == 0));
    assert_eq!(acks.count(), 1, "the server's word counts as an ack");
}

#[test]
fn the_server_is_asked_while_the_first_snapshot_is_still_made() {
    let mut bench = Bench::new();
    bench.step(|s, now| s.handle_opened(Arc::default(), KIND, now));
    let first = snapshot(&[("a", "1")]);
    bench.open(first.id());
    assert!(bench.said.iter().any(|m| matches!(m, ToServer::NewSession(_))));
    assert_eq!(bench.session.phase(), Phase::Negotiating);
    bench.update(&first);
    assert_eq!(bench.session.phase(), Phase::InSync);
    assert!(bench.sent.is_empty());
}

#[test]
fn an_unknown_state_is_met_with_a_whole_patch_whose_contents_are_asked_for() {
    let mut bench = Bench::new();
    let first = snapshot(&[("a", "1"), ("b", "2")]);
    bench.update(&first);
    bench.open(PatchId::empty(KIND));
    assert_eq!(bench.session.phase(), Phase::Bootstrapping);
    let header = bench.transported();
    assert!(matches!(header.kind, PatchKind::Whole { .. }));
    bench.message(ToClient::Wanted(wire::Wanted {
        generation: header.generation,
        changes: vec![1],
        extra: Vec::new(),
        more: false,
    }));
    assert!(matches!(bench.sent.last(), Some(Outgoing::Answer { wanted, last: true, .. }) if *wanted == [1]));
    bench.step(|s, now| s.handle_sent(10, now));
    bench.ack(header);
    assert_eq!(bench.session.phase(), Phase::InSync);
}

#[test]
fn a_content_that_was_not_offered_ends_the_stream() {
    let mut bench = Bench::new();
    bench.update(&snapshot(&[("a", "1")]));
    bench.open(PatchId::empty(KIND));
    let header = bench.transported();
    bench.message(ToClient::Wanted(wire::Wanted {
        generation: header.generation,
        changes: vec![1],
        extra: Vec::new(),
        more: false,
    }));
    assert_eq!(bench.session.phase(), Phase::Retrying);
}

#[test]
fn after_a_reconnect_a_remembered_state_is_left_by_a_step() {
    let (first, second) = (snapshot(&[("a", "1")]), snapshot(&[("a", "2")]));
    let mut bench = in_sync(&first);
    bench.step(|s, now| s.handle_disconnected(lost(), now));
    bench.update(&second);
    bench.now += ms(300);
    bench.step(|s, now| s.handle_time(now));
    assert_eq!(bench.connects, 2);
    bench.open(first.id());
    assert_eq!(diff_parent(bench.last_header()), first.id());
}

#[test]
fn patches_are_pipelined_from_the_last_sent_up_to_the_window() {
    let states: Vec<Snapshot> = (0..7).map(|i| snapshot(&[("a", &i.to_string())])).collect();
    let mut bench = in_sync(&states[0]);
    for state in &states[1..] {
        bench.update(state);
        bench.step(|s, now| s.handle_sent(100, now));
    }
    let headers: Vec<PatchHeader> = bench
        .sent
        .iter()
        .filter_map(|o| match o {
            Outgoing::Patch { header, .. } => Some(*header),
            Outgoing::Answer { .. } => None,
        })
        .collect();
    assert_eq!(headers.len(), WINDOW_GENERATIONS);
    for (i, header) in headers.iter().enumerate() {
        assert_eq!(diff_parent(*header), states[i].id());
    }
    // One ack makes room, and the newest state goes: those in between are skipped.
    bench.ack(headers[0]);
    assert_eq!(bench.last_header().next, states[6].id());
    assert_eq!(diff_parent(bench.last_header()), states[4].id());
}

#[test]
fn one_refusal_voids_all_that_followed_and_the_step_starts_again_from_what_is_held() {
    let states: Vec<Snapshot> = (0..4).map(|i| snapshot(&[("a", &i.to_string())])).collect();
    let mut bench = in_sync(&states[0]);
    for state in &states[1..] {
        bench.update(state);
        bench.step(|s, now| s.handle_sent(100, now));
    }
    for generation in 1..=3 {
        bench.message(ToClient::Refusal(Refusal {
            generation,
            code: RefusalCode::ParentMismatch,
            messages: vec!["no".into()],
            held: Some(states[1].id()),
        }));
    }
    let header = bench.last_header();
    assert_eq!((diff_parent(header), header.next), (states[1].id(), states[3].id()));
    assert_eq!(bench.sent.len(), 4, "the later refusals were of patches already void");
    bench.transported();
    bench.ack(header);
    assert_eq!(bench.session.phase(), Phase::InSync);
}

#[test]
fn latency_counts_from_the_oldest_change_even_after_a_refusal() {
    let (first, second) = (snapshot(&[("a", "1")]), snapshot(&[("a", "2")]));
    let mut bench = in_sync(&first);
    bench.update(&second);
    bench.transported();
    bench.now += ms(40);
    bench.message(ToClient::Refusal(Refusal {
        generation: 1,
        code: RefusalCode::ParentMismatch,
        messages: vec!["no".into()],
        held: Some(first.id()),
    }));
    let header = bench.transported();
    bench.now += ms(10);
    bench.ack(header);
    let latency = bench.events.iter().rev().find_map(|e| match e {
        EventKind::Acked(acked) => Some(acked.latency),
        _ => None,
    });
    assert_eq!(latency, Some(Some(ms(50))));
}

#[test]
fn every_first_change_and_every_return_is_a_change_of_state() {
    let mut bench = in_sync(&snapshot(&[("a", "1")]));
    bench.events.clear();
    for text in ["2", "3"] {
        bench.update(&snapshot(&[("a", text)]));
        let header = bench.transported();
        bench.ack(header);
    }
    assert_eq!(bench.phases(), ["syncing", "in-sync", "syncing", "in-sync"]);
}

#[test]
fn pause_lets_the_apply_in_hand_end_and_resume_jumps_to_the_newest() {
    let mut bench = in_sync(&snapshot(&[("a", "1")]));
    bench.update(&snapshot(&[("a", "2")]));
    let header = bench.transported();
    bench.step(Session::pause);
    assert_eq!(bench.session.phase(), Phase::Pausing);
    bench.ack(header);
    assert_eq!(bench.session.phase(), Phase::Paused);
    bench.update(&snapshot(&[("a", "3")]));
    let newest = snapshot(&[("a", "4")]);
    bench.update(&newest);
    assert_eq!(bench.sent.len(), 1);
    bench.step(Session::resume);
    assert_eq!(bench.last_header().next, newest.id());
}

#[test]
fn refused_paths_leave_the_rest_acked_and_are_counted() {
    let (first, second) = (snapshot(&[("a", "1")]), snapshot(&[("a", "2"), ("b", "2")]));
    let mut bench = in_sync(&first);
    bench.update(&second);
    let header = bench.transported();
    let held = snapshot(&[("a", "2")]);
    bench.ack_but_for(header, &held, &["b"]);
    assert_eq!(bench.session.phase(), Phase::InSync);
    assert_eq!(bench.sent.len(), 1, "it is not offered again at once");
    assert!(bench.events.iter().any(|e| matches!(e, EventKind::Withheld { paths } if paths.len() == 1)));
    // The next save goes from what is really held, and does not offer it again while it is the same.
    let third = snapshot(&[("a", "3"), ("b", "2")]);
    bench.update(&third);
    let header = bench.transported();
    assert_eq!((diff_parent(header), header.next), (held.id(), snapshot(&[("a", "3")]).id()));
    bench.ack(header);
    assert_eq!(bench.session.phase(), Phase::InSync);
    assert_eq!(bench.withheld(), ["b"]);
    bench.update(&snapshot(&[("a", "3"), ("b", "4")]));
    assert_eq!(bench.last_header().next, snapshot(&[("a", "3"), ("b", "4")]).id());
}

/// What was said of a refused path is over once it is as the server has it.
#[test]
fn a_refused_path_that_is_given_up_is_withheld_no_more() {
    let first = snapshot(&[("a", "1")]);
    let mut bench = in_sync(&first);
    bench.update(&snapshot(&[("a", "1"), ("b", "2")]));
    let header = bench.transported();
    bench.ack_but_for(header, &first, &["b"]);
    assert_eq!(bench.withheld(), ["b"]);
    bench.update(&first);
    assert!(bench.withheld().is_empty());
    assert_eq!((bench.session.phase(), bench.sent.len()), (Phase::InSync, 1));
}

/// Where names fold, the twin that was first keeps the other one out.
#[test]
fn a_refused_path_is_offered_as_soon_as_what_was_in_the_way_is_gone() {
    let first = snapshot(&[("Readme", "1"), ("a", "1")]);
    let mut bench = in_sync(&first);
    bench.update(&snapshot(&[("Readme", "1"), ("a", "1"), ("readme", "2")]));
    let header = bench.transported();
    bench.ack_but_for(header, &first, &["readme"]);
    let last = snapshot(&[("a", "1"), ("readme", "2")]);
    bench.update(&last);
    let header = bench.transported();
    assert_eq!(header.next, snapshot(&[("a", "1")]).id());
    bench.ack(header);
    assert_eq!(bench.session.phase(), Phase::Syncing);
    let header = bench.transported();
    assert_eq!(header.next, last.id());
    bench.ack(header);
    assert_eq!(bench.session.phase(), Phase::InSync);
    assert!(bench.withheld().is_empty());
}

#[test]
fn each_refused_path_rests_for_itself() {
    let first = snapshot(&[("a", "1")]);
    let mut bench = in_sync(&first);
    bench.update(&snapshot(&[("a", "1"), ("b", "2")]));
    let header = bench.transported();
    bench.ack_but_for(header, &first, &["b"]);
    bench.now += REFUSED_WAIT / 2;
    bench.update(&snapshot(&[("a", "1"), ("b", "2"), ("c", "3")]));
    let header = bench.transported();
    bench.ack_but_for(header, &first, &["c"]);
    assert_eq!(bench.withheld(), ["b", "c"]);
    bench.now += REFUSED_WAIT / 2;
    bench.step(|s, now| s.handle_time(now));
    let header = bench.transported();
    assert_eq!(header.next, snapshot(&[("a", "1"), ("b", "2")]).id(), "the rest of c is not over");
    bench.ack(header);
    assert_eq!(bench.withheld(), ["c"]);
    bench.step(Session::sync_now);
    assert_eq!(bench.last_header().next, snapshot(&[("a", "1"), ("b", "2"), ("c", "3")]).id());
}

/// A first sync over an older state, of which the server can replace all but some paths.
#[test]
fn refused_paths_of_a_state_nobody_remembers_leave_the_rest_acked() {
    let there = snapshot(&[("a", "0"), ("d/gone", "0"), ("locked", "old"), ("was/dir", "old")]);
    let here = snapshot(&[("a", "1"), ("locked", "new"), ("was", "now a file")]);
    let mut bench = Bench::new();
    bench.update(&here);
    bench.open(there.id());
    let header = bench.transported();
    assert!(matches!(header.kind, PatchKind::Whole { .. }));
    let refused = ["d/gone", "locked", "was", "was/dir"];
    let held = snapshot(&[("a", "1"), ("d/gone", "0"), ("locked", "old"), ("was/dir", "old")]);
    bench.ack_but_for(header, &held, &refused);
    assert_eq!(bench.session.phase(), Phase::InSync);
    assert_eq!(bench.sent.len(), 1, "none is offered again at once");
    assert_eq!(bench.withheld(), refused);
    // The server can write them by now.
    bench.now += REFUSED_WAIT;
    bench.step(|s, now| s.handle_time(now));
    let header = bench.transported();
    assert_eq!((diff_parent(header), header.next), (held.id(), here.id()));
    bench.ack(header);
    assert_eq!(bench.session.phase(), Phase::InSync);
    assert!(bench.withheld().is_empty());
}

#[test]
fn an_ack_of_an_id_nobody_planned_is_met_with_a_whole_patch() {
    let mut bench = in_sync(&snapshot(&[("a", "1")]));
    bench.update(&snapshot(&[("a", "2")]));
    let header = bench.transported();
    bench.ack(PatchHeader { next: snapshot(&[("x", "y")]).id(), ..header });
    assert!(matches!(bench.last_header().kind, PatchKind::Whole { .. }));
    assert_ne!(bench.session.phase(), Phase::InSync);
}

#[test]
fn patches_refused_for_good_fail_instead_of_looping() {
    let mut bench = in_sync(&snapshot(&[("a", "1")]));
    bench.update(&snapshot(&[("a", "2")]));
    for _ in 0..=INVALID_MOST {
        let header = bench.transported();
        bench.message(ToClient::Refusal(Refusal {
            generation: header.generation,
            code: RefusalCode::PatchInvalid,
            messages: vec!["no".into()],
            held: None,
        }));
    }
    assert_eq!(bench.session.phase(), Phase::Failed);
}

#[test]
fn a_patch_whose_files_changed_is_given_up_and_the_files_are_looked_at() {
    let mut bench = in_sync(&snapshot(&[("a", "1")]));
    bench.update(&snapshot(&[("a", "2")]));
    bench.step(|s, now| s.handle_abandoned(vec![RelPath::new("a").unwrap()], now));
    assert!(matches!(bench.said.last(), Some(ToServer::Abandon { generation: 1 })));
    assert!(matches!(bench.asked.last(), Some(Request::Check(paths)) if paths.len() == 1));
    assert_eq!(bench.sent.len(), 1);
    bench.now += ABANDONED_WAIT;
    bench.step(|s, now| s.handle_time(now));
    assert_eq!(bench.last_header().generation, 2);
}

#[test]
fn resync_compares_every_path() {
    let first = snapshot(&[("a", "1")]);
    let mut bench = in_sync(&first);
    bench.step(Session::resync);
    assert!(matches!(bench.said.last(), Some(ToServer::Rehash)));
    bench.message(session_reply(first.id()));
    assert!(matches!(bench.last_header().kind, PatchKind::Whole { .. }));
}

#[test]
fn a_moved_head_is_told_without_disturbing_what_is_held() {
    let first = snapshot(&[("a", "1")]);
    let mut bench = in_sync(&first);
    let head = Arc::new(Head { branch: Some(b"topic".to_vec()), ..Head::default() });
    let update = Update {
        snapshot: first.clone(),
        head,
        place: bench.place,
        seen: bench.now,
        held: Duration::ZERO,
        unfinished: false,
    };
    bench.step(|s, now| s.handle_update(update, now));
    assert!(
        matches!(bench.said.last(), Some(ToServer::NewSession(n)) if n.branch.as_deref() == Some(b"topic"))
    );
    bench.message(session_reply(first.id()));
    assert_eq!(bench.session.phase(), Phase::InSync);
    bench.update(&snapshot(&[("a", "2")]));
    assert_eq!(diff_parent(bench.last_header()), first.id());
}

fn contents_of(outgoing: Option<&Outgoing>) -> Vec<String> {
    match outgoing {
        Some(Outgoing::Patch { contents: Some(contents), .. }) => {
            contents.iter().map(|c| c.path.to_string()).collect()
        }
        _ => panic!("no patch diff"),
    }
}

fn refused(generation: u64, code: RefusalCode) -> ToClient {
    ToClient::Refusal(Refusal { generation, code, messages: vec!["no".into()], held: None })
}

#[test]
fn edits_pass_a_large_content_and_in_sync_waits_for_it() {
    let mut bench = in_sync(&snapshot(&[("a", "1"), ("big", "large 1")]));
    bench.update(&snapshot(&[("a", "1"), ("big", "large 2")]));
    assert!(bench.sent.is_empty(), "its content goes first");
    assert_eq!(bench.ahead.len(), 1);
    bench.now += ms(100);
    let newest = snapshot(&[("a", "2"), ("big", "large 2")]);
    bench.update(&newest);
    let edit = bench.transported();
    assert_eq!(edit.next, snapshot(&[("a", "2"), ("big", "large 1")]).id());
    bench.now += ms(1);
    bench.ack(edit);
    assert_eq!(bench.session.phase(), Phase::Syncing);
    bench.now += ms(100);
    bench.step(Session::handle_ahead_sent);
    assert!(contents_of(bench.sent.last()).is_empty(), "the server has the content");
    let header = bench.transported();
    assert_eq!(header.next, newest.id());
    bench.ack(header);
    assert_eq!(bench.session.phase(), Phase::InSync);
    let latencies: Vec<Duration> = bench
        .events
        .iter()
        .filter_map(|e| if let EventKind::Acked(a) = e { a.latency } else { None })
        .collect();
    assert_eq!(latencies, [ms(1), ms(201)], "each from its own change on");
}

#[test]
fn of_two_large_contents_each_ack_has_an_age() {
    let mut bench = in_sync(&snapshot(&[("x", "large 1"), ("y", "large 1")]));
    bench.update(&snapshot(&[("x", "large 2"), ("y", "large 1")]));
    bench.now += ms(1000);
    bench.update(&snapshot(&[("x", "large 2"), ("y", "large 3")]));
    for _ in 0..2 {
        bench.step(Session::handle_ahead_sent);
        let header = bench.transported();
        bench.now += ms(10);
        bench.ack(header);
    }
    assert_eq!(bench.latencies(), [Some(ms(1010)), Some(ms(1020))], "of the oldest change on its way");
}

#[test]
fn a_whole_patch_is_as_old_as_a_large_content_that_waited() {
    let old = snapshot(&[("a", "1"), ("big", "large 1")]);
    let mut bench = in_sync(&old);
    bench.update(&snapshot(&[("a", "1"), ("big", "large 2")]));
    bench.step(Session::resync);
    bench.step(Session::handle_ahead_sent);
    bench.message(session_reply(old.id()));
    let whole = bench.transported();
    bench.now += ms(1000);
    bench.update(&snapshot(&[("a", "2"), ("big", "large 2")]));
    bench.ack(whole);
    let header = bench.transported();
    bench.now += ms(5);
    bench.ack(header);
    assert_eq!(bench.latencies(), [Some(ms(1000)), Some(ms(5))]);
}

#[test]
fn a_change_that_was_taken_back_makes_no_later_one_older() {
    let first = snapshot(&[("a", "1"), ("big", "large 1")]);
    // By itself, and together with the later one.
    for is_alone in [true, false] {
        let mut bench = in_sync(&first);
        bench.update(&snapshot(&[("a", "1"), ("big", "large 2")]));
        if is_alone {
            bench.update(&first);
        }
        bench.now += ms(500);
        bench.update(&snapshot(&[("a", "2"), ("big", "large 1")]));
        let header = bench.transported();
        bench.now += ms(1);
        bench.ack(header);
        assert_eq!(bench.latencies(), [Some(ms(1))], "{is_alone}");
    }
}

#[test]
fn a_large_content_that_changes_again_is_not_sent_to_its_end() {
    let first = snapshot(&[("big", "large 1")]);
    let mut bench = in_sync(&first);
    bench.update(&snapshot(&[("big", "large 2")]));
    bench.update(&snapshot(&[("big", "large 3")]));
    assert_eq!((bench.ahead.len(), bench.stopped_ahead), (2, 1));
    assert!(matches!(bench.said.last(), Some(ToServer::Forget(f)) if f.ids.len() == 1), "what came of it");
    bench.step(Session::handle_ahead_sent);
    bench.update(&snapshot(&[("big", "large 4")]));
    // Generation 1 uses what was staged of "large 3"; only then the next goes ahead.
    let header = bench.transported();
    assert_eq!(header.next, snapshot(&[("big", "large 3")]).id());
    assert_eq!(bench.ahead.len(), 3);
}

#[test]
fn a_large_content_that_is_stale_waits_ever_longer_for_a_newer_snapshot() {
    let mut bench = in_sync(&snapshot(&[("a", "1")]));
    let big = || vec![RelPath::new("big").unwrap()];
    bench.update(&snapshot(&[("a", "1"), ("big", "large 1")]));
    let mut sent = 1;
    for wait in [200, 400, 800, 1600, 3200, 6400, 6400] {
        assert_eq!(bench.ahead.len(), sent);
        bench.step(|s, now| s.handle_ahead_failed(big(), now));
        bench.now += ms(wait - 1);
        bench.step(|s, now| s.handle_time(now));
        assert_eq!(bench.ahead.len(), sent, "before {wait} ms");
        bench.now += ms(1);
        bench.step(|s, now| s.handle_time(now));
        sent += 1;
    }
    assert_eq!(bench.ahead.len(), sent);
    bench.step(|s, now| s.handle_ahead_failed(big(), now));
    bench.update(&snapshot(&[("a", "1"), ("big", "large 2")]));
    assert_eq!(bench.ahead.len(), sent + 1, "a newer one goes at once");
}

#[test]
fn a_large_content_whose_path_was_refused_goes_ahead_only_when_it_is_offered_again() {
    let (first, second) = (snapshot(&[("a", "1")]), snapshot(&[("a", "1"), ("big", "large 1")]));
    let mut bench = in_sync(&first);
    bench.update(&second);
    bench.step(Session::handle_ahead_sent);
    let header = bench.transported();
    bench.ack_but_for(header, &first, &["big"]);
    assert_eq!(bench.session.phase(), Phase::InSync);
    assert_eq!(bench.ahead.len(), 1, "nobody waits for it");
    // Neither do later saves, nor what git is at.
    bench.step(|s, now| s.handle_preview(snapshot(&[("a", "1"), ("big", "large 1")]), now));
    bench.update(&snapshot(&[("a", "2"), ("big", "large 1")]));
    let header = bench.transported();
    assert_eq!((bench.ahead.len(), header.next), (1, snapshot(&[("a", "2")]).id()));
    bench.ack(header);
    assert_eq!((bench.session.phase(), bench.ahead.len()), (Phase::InSync, 1));
    bench.now += REFUSED_WAIT;
    bench.step(|s, now| s.handle_time(now));
    assert_eq!(bench.ahead.len(), 2);
    bench.step(Session::handle_ahead_sent);
    let header = bench.transported();
    let held = snapshot(&[("a", "2")]);
    assert_eq!(header.next, snapshot(&[("a", "2"), ("big", "large 1")]).id());
    bench.ack_but_for(header, &held, &["big"]);
    assert_eq!(bench.ahead.len(), 2);
    // Another content is another matter.
    bench.update(&snapshot(&[("a", "2"), ("big", "large 2")]));
    assert_eq!(bench.ahead.len(), 3);
}

/// What was sent of it is on the server, although nobody counts on it any more.
#[test]
fn a_patch_that_is_void_and_goes_stale_is_abandoned_all_the_same() {
    let first = snapshot(&[("a", "1")]);
    let mut bench = in_sync(&first);
    bench.update(&snapshot(&[("a", "2")]));
    let one = bench.transported();
    bench.update(&snapshot(&[("a", "3"), ("b", "1")]));
    let two = bench.last_header();
    assert_eq!(two.generation, one.generation + 1);
    bench.message(refused(one.generation, RefusalCode::PatchInvalid));
    bench.step(|s, now| s.handle_abandoned(vec![RelPath::new("b").unwrap()], now));
    let abandoned = bench
        .said
        .iter()
        .any(|m| matches!(m, ToServer::Abandon { generation } if *generation == two.generation));
    assert!(abandoned, "{:?}", bench.said);
    bench.now += ABANDONED_WAIT;
    bench.step(|s, now| s.handle_time(now));
    assert!(bench.last_header().generation > two.generation);
}

#[test]
fn what_git_wrote_meanwhile_is_there_when_its_patch_comes() {
    let mut bench = in_sync(&snapshot(&[("a", "1"), ("b", "1")]));
    let next = snapshot(&[("a", "2"), ("b", "3")]);
    bench.step(|s, now| s.handle_preview(snapshot(&[("a", "2"), ("b", "1")]), now));
    assert_eq!((bench.ahead.len(), bench.sent.len()), (1, 0), "nothing but contents");
    bench.step(Session::handle_ahead_sent);
    bench.update(&next);
    assert_eq!(contents_of(bench.sent.last()), ["b"]);
    let header = bench.transported();
    bench.ack(header);
    assert_eq!(bench.session.phase(), Phase::InSync);
}

#[test]
fn what_came_ahead_in_vain_is_forgotten() {
    let first = snapshot(&[("a", "1")]);
    let mut bench = in_sync(&first);
    bench.step(|s, now| s.handle_preview(snapshot(&[("a", "2")]), now));
    bench.step(Session::handle_ahead_sent);
    bench.step(|s, now| s.handle_preview(first.clone(), now));
    assert!(matches!(bench.said.last(), Some(ToServer::Forget(f)) if f.ids.len() == 1));
}

#[test]
fn a_content_the_server_lacks_is_sent_whole_with_the_next_patch() {
    let mut bench = in_sync(&snapshot(&[("a", "1"), ("b", "moved")]));
    bench.step(|s, now| s.handle_preview(snapshot(&[("a", "2"), ("b", "moved")]), now));
    bench.step(Session::handle_ahead_sent);
    bench.update(&snapshot(&[("a", "2"), ("c", "moved")]));
    assert!(contents_of(bench.sent.last()).is_empty());
    let header = bench.transported();
    bench.message(refused(header.generation, RefusalCode::ContentMissing));
    assert!(matches!(bench.sent.last(), Some(Outgoing::Patch { plain: true, .. })));
    assert_eq!(contents_of(bench.sent.last()), ["a", "c"]);
    let header = bench.transported();
    bench.ack(header);
    assert_eq!(bench.session.phase(), Phase::InSync);
    bench.update(&snapshot(&[("a", "3"), ("c", "moved")]));
    assert!(matches!(bench.sent.last(), Some(Outgoing::Patch { plain: false, .. })));
}

fn lost() -> ErrorReport {
    ErrorReport { code: ErrorCode::Unreachable, message: "lost".into(), causes: Vec::new(), retryable: true }
}

#[test]
fn history_begins_with_the_first_ack_and_rests_while_paused() {
    let mut bench = Bench::new();
    bench.update(&snapshot(&[("a", "1")]));
    bench.open(PatchId::empty(KIND));
    let header = bench.transported();
    assert!(bench.steps.is_empty(), "files come first");
    bench.ack(header);
    assert_eq!(bench.steps.len(), 1);
    // A save goes while the step is under way, and is in sync without it.
    bench.update(&snapshot(&[("a", "2")]));
    let header = bench.transported();
    bench.ack(header);
    assert_eq!(bench.session.phase(), Phase::InSync);
    assert_eq!((bench.steps.len(), bench.stopped_steps), (1, 0));
    bench.step(Session::pause);
    assert_eq!((bench.steps.len(), bench.stopped_steps), (1, 1));
    bench.step(Session::resume);
    assert_eq!(bench.steps.len(), 2);
}

/// What does not fit must not travel with every try.
#[test]
fn a_full_server_is_asked_before_contents_travel_again() {
    let first = snapshot(&[("a", "1"), ("big", "large 1")]);
    let mut bench = in_sync(&first);
    let newest = snapshot(&[("a", "2"), ("big", "large 2")]);
    bench.update(&newest);
    bench.step(Session::handle_ahead_sent);
    let edit = bench.transported();
    bench.ack(edit);
    let header = bench.transported();
    let (ahead, held) = (bench.ahead.len(), snapshot(&[("a", "2"), ("big", "large 1")]));
    bench.message(refused(header.generation, RefusalCode::DiskFull));
    assert_eq!(bench.session.phase(), Phase::Retrying);

    for _ in 0..2 {
        bench.now += RETRY_MOST * 2;
        bench.step(|s, now| s.handle_time(now));
        bench.open(held.id());
        let header = bench.transported();
        assert_eq!((header.kind, header.next), (PatchKind::Whole { base: held.id() }, newest.id()));
        assert!(
            matches!(bench.sent.last(), Some(Outgoing::Patch { contents: None, changes, .. }) if changes.len() == 1)
        );
        bench.message(refused(header.generation, RefusalCode::DiskFull));
        assert_eq!(bench.session.phase(), Phase::Retrying);
    }
    // An edit that is small need not wait for room.
    let newest = snapshot(&[("a", "3"), ("big", "large 2")]);
    bench.update(&newest);
    bench.now += RETRY_MOST * 2;
    bench.step(|s, now| s.handle_time(now));
    bench.open(held.id());
    let header = bench.transported();
    assert_eq!(header.next, snapshot(&[("a", "3"), ("big", "large 1")]).id());
    bench.ack(header);
    // Now there is room.
    let header = bench.transported();
    assert_eq!(header.next, newest.id());
    bench.update(&snapshot(&[("a", "4"), ("big", "large 2")]));
    assert_eq!(bench.last_header(), header, "nothing comes between the question and the contents");
    let wanted =
        wire::Wanted { generation: header.generation, changes: vec![0], extra: Vec::new(), more: false };
    bench.message(ToClient::Wanted(wanted));
    assert!(matches!(bench.sent.last(), Some(Outgoing::Answer { wanted, last: true, .. }) if *wanted == [0]));
    bench.step(|s, now| s.handle_sent(100, now));
    bench.ack(header);
    let header = bench.transported();
    bench.ack(header);
    assert_eq!((bench.session.phase(), bench.ahead.len()), (Phase::InSync, ahead));
    bench.update(&snapshot(&[("a", "5"), ("big", "large 2")]));
    assert!(matches!(bench.last_header().kind, PatchKind::Diff { .. }), "and then as ever");
}
