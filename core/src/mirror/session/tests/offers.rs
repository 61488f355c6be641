//! What git brings back is offered by name; what a person saves is not.

use super::*;
use crate::wire::Offered;

/// `count` files with a few bytes that only this `state` has.
fn state(state: &str, count: usize) -> Snapshot {
    let names: Vec<String> = (0..count).map(|n| format!("f{n}")).collect();
    let texts: Vec<String> = (0..count).map(|n| format!("{state} {n}")).collect();
    snapshot(&names.iter().zip(&texts).map(|(n, t)| (n.as_str(), t.as_str())).collect::<Vec<_>>())
}

impl Bench {
    /// The snapshot git left, with HEAD on a branch.
    fn switched(&mut self, snapshot: &Snapshot, branch: &str, held: Duration) {
        let head = Arc::new(Head { branch: Some(branch.into()), ..Head::default() });
        let (snapshot, place, seen) = (snapshot.clone(), self.place, self.now);
        let update = Update { snapshot, head, place, seen, held, unfinished: false };
        self.step(|s, now| s.handle_update(update, now));
    }

    fn preview(&mut self, snapshot: &Snapshot) {
        self.step(|s, now| s.handle_preview(snapshot.clone(), now));
    }

    fn offers(&self) -> Vec<&Vec<Offered>> {
        let offers = self.said.iter().filter_map(|said| match said {
            ToServer::Offer { contents } => Some(contents),
            _ => None,
        });
        offers.collect()
    }

    fn forgotten(&self) -> usize {
        let ids = |said: &ToServer| if let ToServer::Forget(forget) = said { forget.ids.len() } else { 0 };
        self.said.iter().map(ids).sum()
    }

    fn lacking(&mut self, positions: &[u32]) {
        self.message(ToClient::Lacking { positions: positions.to_vec() });
    }
}

const LOCK: Duration = Duration::from_millis(40);

#[test]
fn a_switch_sends_only_what_the_server_has_not() {
    let mut bench = in_sync(&state("main", 10));
    let topic = state("topic", 10);
    bench.preview(&topic);
    assert_eq!(bench.offers().iter().map(|offer| offer.len()).collect::<Vec<_>>(), [10]);
    assert!(bench.ahead.is_empty(), "nothing is sent that may be there");
    bench.lacking(&[3, 4]);
    assert_eq!(bench.ahead.len(), 1);
    assert_eq!(bench.ahead[0].iter().map(|c| c.path.to_string()).collect::<Vec<_>>(), ["f3", "f4"]);
    bench.step(Session::handle_ahead_sent);
    bench.switched(&topic, "topic", LOCK);
    assert!(contents_of(bench.sent.last()).is_empty());
    let header = bench.transported();
    bench.ack(header);
    assert_eq!(bench.session.phase(), Phase::InSync);
    // And back: the books are as at first.
    let main = state("main", 10);
    bench.preview(&main);
    bench.lacking(&[]);
    bench.switched(&main, "main", LOCK);
    assert!(contents_of(bench.sent.last()).is_empty());
    assert_eq!((bench.offers().len(), bench.ahead.len(), bench.forgotten()), (2, 1, 0));
}

#[test]
fn the_step_of_a_switch_waits_for_the_answer_and_takes_along_what_is_lacking() {
    let mut bench = in_sync(&state("main", 10));
    let topic = state("topic", 10);
    bench.preview(&topic);
    bench.switched(&topic, "topic", LOCK);
    assert_eq!((bench.sent.len(), bench.session.phase()), (0, Phase::Syncing));
    bench.lacking(&[9]);
    assert_eq!(contents_of(bench.sent.last()), ["f9"]);
    assert!(bench.ahead.is_empty(), "it is not sent twice");
    let header = bench.transported();
    bench.ack(header);
    assert_eq!((bench.session.phase(), bench.forgotten()), (Phase::InSync, 0));
}

#[test]
fn what_git_did_before_it_was_looked_at_is_offered_as_well() {
    let mut bench = in_sync(&state("main", 10));
    bench.switched(&state("topic", 10), "topic", Duration::ZERO);
    assert_eq!((bench.offers().len(), bench.sent.len()), (1, 0));
    // Saved meanwhile: it goes with the same patch, and is not offered.
    let (mut names, mut texts) = (Vec::new(), Vec::new());
    for n in 0..10 {
        names.push(format!("f{n}"));
        texts.push(if n == 5 { "x".repeat(9_000) } else { format!("topic {n}") });
    }
    let saved =
        snapshot(&names.iter().zip(&texts).map(|(n, t)| (n.as_str(), t.as_str())).collect::<Vec<_>>());
    bench.switched(&saved, "topic", Duration::ZERO);
    bench.lacking(&[]);
    assert_eq!(contents_of(bench.sent.last()), ["f5"]);
    assert_eq!(bench.last_header().next, saved.id());
    assert_eq!((bench.offers().len(), bench.forgotten()), (1, 1), "what f5 held on the branch is of no use");
}

#[test]
fn a_step_goes_on_waiting_when_head_turns_out_to_have_moved() {
    let mut bench = in_sync(&state("main", 10));
    let topic = state("topic", 10);
    bench.preview(&topic);
    let update = Update {
        snapshot: topic.clone(),
        head: Arc::default(),
        place: bench.place,
        seen: bench.now,
        held: LOCK,
        unfinished: false,
    };
    bench.step(|s, now| s.handle_update(update, now));
    bench.switched(&topic, "topic", Duration::ZERO);
    assert!(bench.sent.is_empty());
    bench.lacking(&[]);
    assert!(contents_of(bench.sent.last()).is_empty());
}

#[test]
fn a_save_is_neither_offered_nor_does_it_wait() {
    let mut bench = in_sync(&state("main", 10));
    // Many files at once, but not git's.
    let next = state("formatted", 10);
    bench.update(&next);
    assert_eq!((contents_of(bench.sent.last()).len(), bench.offers().len()), (10, 0));
    let header = bench.transported();
    bench.ack(header);
    // A commit moves HEAD and nothing else; the save after it is a save.
    bench.switched(&next, "main", LOCK);
    bench.message(session_reply(next.id()));
    bench.switched(&state("saved", 10), "main", Duration::ZERO);
    assert_eq!((contents_of(bench.sent.last()).len(), bench.offers().len()), (10, 0));
}

#[test]
fn a_save_that_git_held_back_takes_its_content_along_whatever_the_answer() {
    let long = "x".repeat(9_000);
    let (first, second) = (snapshot(&[("a", "1")]), snapshot(&[("a", &long)]));
    let mut bench = in_sync(&first);
    bench.preview(&second);
    assert_eq!(bench.offers().len(), 1);
    let (place, seen) = (bench.place, bench.now);
    let head = Arc::default();
    let update = Update { snapshot: second, head, place, seen, held: LOCK, unfinished: false };
    bench.step(|s, now| s.handle_update(update, now));
    assert_eq!(contents_of(bench.sent.last()), ["a"]);
    // The server staged it before the patch came. It was of no use there.
    bench.lacking(&[]);
    assert_eq!(bench.forgotten(), 1);
    let header = bench.transported();
    bench.ack(header);
    assert_eq!(bench.session.phase(), Phase::InSync);
    // The books do not say that it is still there.
    bench.preview(&first);
    bench.update(&first);
    assert_eq!(contents_of(bench.sent.last()), ["a"]);
}

#[test]
fn little_is_sent_ahead_without_a_question() {
    let mut bench = in_sync(&state("main", 7));
    bench.preview(&state("topic", 7));
    assert_eq!((bench.offers().len(), bench.ahead.len()), (0, 1));
    bench.step(Session::handle_ahead_sent);
    bench.switched(&state("topic", 7), "topic", LOCK);
    assert!(contents_of(bench.sent.last()).is_empty());
}

/// On a busy machine git's work is seen one file at a time.
#[test]
fn many_files_that_come_singly_are_offered_all_the_same() {
    let texts: Vec<String> = (0..12).map(|n| format!("main {n}")).collect();
    let names: Vec<String> = (0..12).map(|n| format!("f{n:02}")).collect();
    let with = |switched: usize| {
        let changed: Vec<String> = (0..switched).map(|n| format!("topic {n}")).collect();
        let texts = changed.iter().chain(&texts[switched..]);
        snapshot(&names.iter().zip(texts).map(|(n, t)| (n.as_str(), t.as_str())).collect::<Vec<_>>())
    };
    let mut bench = in_sync(&with(0));
    for switched in 1..=11 {
        bench.preview(&with(switched));
        if switched < 8 {
            bench.step(Session::handle_ahead_sent);
        }
    }
    assert_eq!(bench.offers().iter().map(|offer| offer.len()).collect::<Vec<_>>(), [1, 1, 1, 1]);
    // The last one was not looked at, and three answers are here.
    for _ in 0..3 {
        bench.lacking(&[]);
    }
    bench.switched(&with(12), "topic", LOCK);
    assert_eq!((bench.offers().len(), bench.sent.len()), (5, 0));
    bench.lacking(&[]);
    bench.lacking(&[]);
    assert!(contents_of(bench.sent.last()).is_empty());
}

#[test]
fn large_contents_go_ahead_as_ever() {
    let mut bench = in_sync(&snapshot(&[("a", "1"), ("big", "large 1")]));
    bench.switched(&snapshot(&[("a", "2"), ("big", "large 2")]), "topic", LOCK);
    assert_eq!((bench.offers().len(), bench.ahead.len()), (0, 1));
    assert_eq!(contents_of(bench.sent.last()), ["a"]);
}

#[test]
fn what_is_known_to_be_lacking_is_not_asked_for_again() {
    let mut bench = in_sync(&state("main", 10));
    let topic = state("topic", 10);
    bench.preview(&topic);
    let all: Vec<u32> = (0..10).collect();
    bench.lacking(&all);
    assert_eq!(bench.ahead.len(), 1);
    // It goes on while git does: the batch is not to its end when the patch is sent.
    bench.switched(&topic, "topic", LOCK);
    assert_eq!((contents_of(bench.sent.last()).len(), bench.offers().len()), (10, 1));
}

#[test]
fn an_offer_whose_answer_comes_too_late_leaves_nothing_behind() {
    let first = state("main", 10);
    let mut bench = in_sync(&first);
    bench.preview(&state("topic", 10));
    // Git took it all back.
    bench.preview(&first);
    bench.lacking(&[0, 1]);
    assert_eq!((bench.forgotten(), bench.ahead.len(), bench.sent.len()), (8, 0, 0));
    assert_eq!(bench.session.phase(), Phase::InSync);
}

#[test]
fn a_new_stream_is_asked_anew() {
    let main = state("main", 10);
    let mut bench = in_sync(&main);
    let topic = state("topic", 10);
    bench.preview(&topic);
    bench.switched(&topic, "topic", LOCK);
    bench.step(|s, now| s.handle_disconnected(lost(), now));
    bench.now += ms(300);
    bench.step(|s, now| s.handle_time(now));
    bench.open(main.id());
    assert_eq!((bench.offers().len(), bench.sent.len()), (2, 0));
    bench.lacking(&[]);
    assert!(contents_of(bench.sent.last()).is_empty());
    let header = bench.transported();
    bench.ack(header);
    assert_eq!(bench.session.phase(), Phase::InSync);
}

#[test]
fn a_refused_step_still_has_what_the_server_found() {
    let main = state("main", 10);
    let mut bench = in_sync(&main);
    let topic = state("topic", 10);
    bench.switched(&topic, "topic", LOCK);
    bench.lacking(&[0]);
    let header = bench.transported();
    bench.message(ToClient::Refusal(Refusal {
        generation: header.generation,
        code: RefusalCode::ParentMismatch,
        messages: vec!["no".into()],
        held: Some(main.id()),
    }));
    assert_eq!(contents_of(bench.sent.last()), ["f0"]);
    assert_eq!((bench.offers().len(), bench.sent.len()), (1, 2));
}

#[test]
fn a_server_that_lost_what_it_found_gets_everything_without_a_question() {
    let mut bench = in_sync(&state("main", 10));
    let topic = state("topic", 10);
    bench.switched(&topic, "topic", LOCK);
    bench.lacking(&[]);
    let header = bench.transported();
    bench.message(refused(header.generation, RefusalCode::ContentMissing));
    assert_eq!((contents_of(bench.sent.last()).len(), bench.offers().len()), (10, 1));
}

#[test]
fn an_answer_to_nothing_ends_the_stream() {
    for positions in [vec![], vec![10]] {
        let mut bench = in_sync(&state("main", 10));
        if !positions.is_empty() {
            bench.preview(&state("topic", 10));
        }
        bench.lacking(&positions);
        assert_eq!(bench.session.phase(), Phase::Retrying, "{positions:?}");
    }
}

#[test]
fn a_server_that_knows_of_no_offers_gets_contents_ahead() {
    let mut bench = Bench::new();
    let main = state("main", 10);
    bench.update(&main);
    bench.step(|s, now| s.handle_connected(now));
    bench.message(ToClient::Welcome(wire::Welcome {
        protocol: wire::PROTOCOL,
        features: vec![wire::AHEAD.into()],
        software: String::new(),
        kernel: String::new(),
    }));
    bench.message(session_reply(main.id()));
    bench.preview(&state("topic", 10));
    assert_eq!((bench.offers().len(), bench.ahead.len()), (0, 1));
    bench.switched(&state("topic", 10), "topic", LOCK);
    assert_eq!(contents_of(bench.sent.last()).len(), 10);
}
