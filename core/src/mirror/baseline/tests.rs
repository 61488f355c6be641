//! The history track talks to a pretended clone.

use std::path::PathBuf;

use super::*;
use crate::repo::history::Reason;

fn id(n: u8) -> ObjectId {
    ObjectId::from([n; 20])
}

fn head(n: u8, branch: &str) -> Arc<Head> {
    Arc::new(Head { commit: Some(id(n)), branch: Some(branch.into()), ..Head::default() })
}

fn clone_at(n: u8, shallow: &[u8]) -> CloneState {
    CloneState {
        head: Some(id(n)),
        branch: Some(b"main".to_vec()),
        shallow: shallow.iter().map(|n| id(*n)).collect(),
        common: Some(id(n)),
    }
}

struct Bench {
    track: Track,
    now: Instant,
    orders: Vec<(u64, Order)>,
    stopped: Vec<u64>,
    events: Vec<EventKind>,
}

impl Bench {
    /// A stream to a server that follows, with its first ack.
    fn open(clone: CloneState, at: &Arc<Head>) -> Self {
        let track = Track::new(HistoryDepth::Full);
        let mut bench = Self { track, now: Instant::now(), orders: vec![], stopped: vec![], events: vec![] };
        bench.track.offer(true);
        bench.track.handle_session(clone, at.clone());
        bench.advance();
        assert!(bench.orders.is_empty(), "nothing goes before the first ack");
        bench.track.handle_ack();
        bench.advance();
        bench
    }

    fn advance(&mut self) {
        self.track.advance(self.now);
        self.collect();
    }

    fn collect(&mut self) {
        for action in self.track.take_actions() {
            match action {
                Action::SendStep { number, order } => self.orders.push((number, *order)),
                Action::StopStep { number } => self.stopped.push(number),
                other => panic!("{other:?}"),
            }
        }
        self.events.extend(self.track.take_events());
    }

    fn last(&self) -> &Order {
        &self.orders.last().expect("a step was ordered").1
    }

    fn number(&self) -> u64 {
        self.orders.last().expect("a step was ordered").0
    }

    fn sent(&mut self, shallow: &[u8], complete: bool) {
        let order = self.last();
        let marks = Marks { head: order.head, branch: order.branch.clone(), ..Marks::default() };
        let plan = Plan {
            marks: Arc::new(marks),
            shallow: shallow.iter().map(|n| id(*n)).collect(),
            under: Vec::new(),
            revs: None,
            thin: true,
            commits: 256,
            complete,
            reason: Reason::Same,
            git_dir: PathBuf::new(),
        };
        self.track.handle_sent(Some(SentStep { plan, wire_bytes: 16 << 20 }), self.now);
        self.collect();
    }

    fn landed(&mut self) {
        let landed = Landed { number: self.number(), head: self.last().head, objects: 3 };
        self.track.handle_landed(&landed, self.now);
        self.collect();
    }

    fn not_landed(&mut self, reason: NotLandedReason) {
        let not = NotLanded { number: self.number(), messages: vec!["no".into()], retryable: true, reason };
        self.track.handle_not_landed(not, self.now);
        self.collect();
    }

    fn baselines(&self) -> usize {
        self.events.iter().filter(|e| matches!(e, EventKind::Baseline(_))).count()
    }

    fn errors(&self) -> usize {
        self.events.iter().filter(|e| matches!(e, EventKind::Error(_))).count()
    }
}

#[test]
fn head_first_then_older_commits_until_there_are_none() {
    let mut bench = Bench::open(CloneState::default(), &head(9, "main"));
    assert_eq!((bench.last().goal, bench.last().head), (Goal::Move, Some(id(9))));
    bench.sent(&[9], false);
    bench.landed();
    assert_eq!(bench.last().goal, Goal::Older { commits: BATCH_FIRST });
    assert_eq!(bench.last().clone, clone_at(9, &[9]));
    bench.sent(&[5], false);
    bench.landed();
    assert_eq!(bench.last().clone.shallow, [id(5)]);
    bench.sent(&[], true);
    bench.landed();
    assert_eq!((bench.orders.len(), bench.baselines()), (3, 3));
    bench.advance();
    assert_eq!(bench.orders.len(), 3, "there is nothing left to do");
}

#[test]
fn an_answer_may_be_quicker_than_the_transport() {
    let mut bench = Bench::open(CloneState::default(), &head(9, "main"));
    bench.landed();
    assert_eq!(bench.baselines(), 0);
    bench.sent(&[], true);
    assert_eq!(bench.baselines(), 1);
}

#[test]
fn a_move_of_head_stops_older_history_and_comes_before_it() {
    let mut bench = Bench::open(CloneState::default(), &head(9, "main"));
    bench.sent(&[9], false);
    bench.landed();
    let older = bench.number();
    bench.track.handle_session(clone_at(9, &[9]), head(10, "main"));
    bench.advance();
    assert_eq!(bench.stopped, [older]);
    assert_eq!((bench.last().goal, bench.last().head), (Goal::Move, Some(id(10))));
    // What the server made of the stopped step is of no interest any more.
    let landed = Landed { number: older, head: Some(id(9)), objects: 3 };
    bench.track.handle_landed(&landed, bench.now);
    bench.collect();
    assert_eq!(bench.baselines(), 1);
    bench.sent(&[9], false);
    bench.landed();
    assert_eq!(bench.baselines(), 2);
    assert_eq!(bench.last().goal, Goal::Older { commits: BATCH_FIRST });
}

/// HEAD goes on and comes back while the server lands the step that went on.
#[test]
fn a_stopped_step_that_lands_all_the_same_is_undone() {
    let mut bench = Bench::open(CloneState::default(), &head(9, "main"));
    bench.sent(&[], true);
    bench.landed();
    bench.track.handle_session(clone_at(9, &[]), head(10, "main"));
    bench.advance();
    bench.sent(&[], true);
    let on = bench.number();
    // The server has not landed it when it says this.
    bench.track.handle_session(clone_at(9, &[]), head(9, "main"));
    let landed = Landed { number: on, head: Some(id(10)), objects: 3 };
    bench.track.handle_landed(&landed, bench.now);
    bench.advance();
    assert_eq!(bench.stopped, [on]);
    assert_eq!((bench.orders.len(), bench.last().goal, bench.last().head), (3, Goal::Move, Some(id(9))));
    assert!(bench.last().landed.is_none(), "nothing is taken for known");
    bench.sent(&[], true);
    bench.landed();
    bench.advance();
    assert_eq!((bench.orders.len(), bench.baselines()), (3, 2));
}

#[test]
fn a_clone_that_somebody_moved_is_brought_back_with_the_next_session() {
    let mut bench = Bench::open(CloneState::default(), &head(9, "main"));
    bench.sent(&[], true);
    bench.landed();
    bench.track.handle_session(clone_at(9, &[]), head(9, "main"));
    bench.advance();
    assert_eq!(bench.orders.len(), 1, "it is where it should be");
    bench.track.handle_session(clone_at(7, &[]), head(9, "main"));
    bench.advance();
    assert_eq!((bench.orders.len(), bench.last().goal), (2, Goal::Move));
}

#[test]
fn a_step_that_went_out_whole_is_let_finish_when_only_names_moved() {
    let at = head(9, "main");
    let mut bench = Bench::open(CloneState::default(), &at);
    bench.sent(&[], true);
    bench.track.handle_marks(Arc::new(Head { marks: 1, ..(*at).clone() }));
    bench.advance();
    assert_eq!((bench.orders.len(), bench.stopped.len()), (1, 0));
    bench.landed();
    assert_eq!(bench.last().goal, Goal::Move);
    assert!(bench.last().landed.is_some(), "what is the same need not be said again");
    // It turns out that nothing changed.
    bench.track.handle_sent(None, bench.now);
    bench.advance();
    assert_eq!((bench.orders.len(), bench.baselines()), (2, 1));
}

#[test]
fn what_is_missing_over_there_is_believed_less_and_less() {
    let mut bench = Bench::open(clone_at(8, &[]), &head(9, "main"));
    for grant in [Grant::Tags, Grant::Commits, Grant::Nothing] {
        assert_eq!(bench.last().grant, grant);
        bench.sent(&[], true);
        bench.not_landed(NotLandedReason::ObjectsMissing);
        bench.advance();
    }
    assert_eq!((bench.orders.len(), bench.errors()), (3, 1));
    bench.now = bench.track.deadline().expect("it is tried again");
    bench.advance();
    assert_eq!(bench.orders.len(), 4);
    bench.sent(&[9], true);
    bench.landed();
    assert_eq!((bench.baselines(), bench.track.grant), (1, Grant::Tags));
}

#[test]
fn a_lock_is_waited_for_and_told_once() {
    let mut bench = Bench::open(clone_at(8, &[]), &head(9, "main"));
    let mut waits = Vec::new();
    for _ in 0..8 {
        bench.sent(&[], true);
        bench.not_landed(NotLandedReason::Busy);
        bench.advance();
        let until = bench.track.deadline().expect("it is tried again");
        waits.push(until - bench.now);
        bench.now = until;
        bench.advance();
    }
    assert_eq!(bench.errors(), 1);
    assert_eq!((waits[0], waits[7]), (RETRY_FIRST, BUSY_MOST));
    assert!(waits.is_sorted());
    // A person, or a new HEAD, ends the wait.
    bench.sent(&[], true);
    bench.not_landed(NotLandedReason::Busy);
    let orders = bench.orders.len();
    bench.track.try_anew();
    bench.advance();
    assert_eq!(bench.orders.len(), orders + 1);
}

#[test]
fn a_clone_that_cannot_give_older_history_is_left_with_what_there_is() {
    let mut bench = Bench::open(CloneState::default(), &head(9, "main"));
    bench.sent(&[9], false);
    bench.landed();
    let report = ErrorReport {
        code: ErrorCode::History,
        message: "git cannot pack the history".into(),
        causes: Vec::new(),
        retryable: true,
    };
    bench.track.handle_failed(StepError::Failed { report, begun: false }, bench.now);
    bench.advance();
    assert_eq!((bench.orders.len(), bench.errors(), bench.stopped.len()), (2, 0, 0));
    assert!(bench.events.iter().any(|e| matches!(e, EventKind::Note(_))));
}

#[test]
fn nothing_is_under_way_while_held_and_a_new_stream_begins_anew() {
    let mut bench = Bench::open(CloneState::default(), &head(9, "main"));
    bench.track.hold();
    bench.collect();
    assert_eq!(bench.stopped, [1]);
    bench.advance();
    assert_eq!(bench.number(), 2);
    bench.track.drop_stream();
    bench.advance();
    assert_eq!(bench.orders.len(), 2);
    bench.track.offer(true);
    bench.track.handle_session(clone_at(9, &[9]), head(9, "main"));
    bench.track.handle_ack();
    bench.advance();
    assert_eq!((bench.number(), bench.last().goal), (1, Goal::Move));
    assert!(bench.last().landed.is_none());
}

#[test]
fn batches_grow_towards_a_size() {
    let mut bench = Bench::open(CloneState::default(), &head(9, "main"));
    bench.sent(&[9], false);
    bench.landed();
    let mut sizes = Vec::new();
    for _ in 0..3 {
        let Goal::Older { commits } = bench.last().goal else { panic!("not older") };
        sizes.push(commits);
        bench.sent(&[5], false);
        bench.track.under_way.as_mut().unwrap().sent.as_mut().unwrap().wire_bytes = 1 << 20;
        bench.landed();
    }
    assert_eq!(sizes, [BATCH_FIRST, BATCH_FIRST * 4, BATCH_FIRST * 16]);
}

/// What somebody did to refs and index over there shows only when it is looked at.
#[test]
fn a_comparison_lands_again_where_nothing_moved() {
    let at = head(2, "main");
    let mut bench = Bench::open(CloneState::default(), &at);
    bench.sent(&[2], true);
    bench.landed();
    bench.advance();
    assert_eq!(bench.orders.len(), 1, "all is there");
    bench.track.compare();
    bench.track.handle_session(clone_at(9, &[]), at);
    bench.advance();
    assert_eq!(bench.orders.len(), 2);
    let order = bench.last();
    assert_eq!((order.goal, order.head, order.clone.head), (Goal::Move, Some(id(2)), Some(id(9))));
}
