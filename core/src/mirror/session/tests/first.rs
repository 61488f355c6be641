//! A first sync, while the repo is still being read.

use super::*;

fn needed(path: &str, text: &str) -> Needed {
    let (id, size) = (ContentId::of(KIND, text.as_bytes()), text.len() as u64);
    Needed { path: RelPath::new(path).unwrap(), id, size, signature: Signature::default(), base: None }
}

fn blank() -> ToClient {
    let ToClient::Session(session) = session_reply(PatchId::empty(KIND)) else { panic!("a session") };
    ToClient::Session(wire::Session { blank: true, ..session })
}

/// A session whose repo is still being read, with a server that answered this.
fn reading(answer: ToClient) -> Bench {
    let mut bench = Bench::new();
    bench.step(|s, now| s.handle_opened(Arc::default(), KIND, now));
    bench.greet();
    bench.step(|s, now| s.handle_read(vec![needed("a", "1")], now));
    assert!(bench.ahead.is_empty(), "nobody knows yet what the server has");
    bench.message(answer);
    bench.step(|s, now| s.handle_read(vec![needed("b", "2")], now));
    bench
}

fn paths(contents: &[Needed]) -> Vec<String> {
    contents.iter().map(|content| content.path.to_string()).collect()
}

#[test]
fn contents_travel_to_a_blank_server_while_the_rest_is_read() {
    let mut bench = reading(blank());
    assert_eq!(paths(&bench.ahead[0]), ["a"]);
    bench.step(Session::handle_ahead_sent);
    assert_eq!(paths(&bench.ahead[1]), ["b"]);
    // The first snapshot comes while "b" is on its way: the patch waits for its end, and "c" goes with it.
    bench.step(|s, now| s.handle_read(vec![needed("c", "3")], now));
    let first = snapshot(&[("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")]);
    bench.update(&first);
    assert!(bench.sent.is_empty());
    bench.step(Session::handle_ahead_sent);
    let header = bench.transported();
    assert!(matches!(header.kind, PatchKind::Whole { .. }));
    assert_eq!(bench.ahead.len(), 2);
    bench.ack(header);
    assert_eq!(bench.session.phase(), Phase::InSync);
    assert!(!bench.said.iter().any(|m| matches!(m, ToServer::Forget(_))), "all of it was used");
}

#[test]
fn a_server_that_may_have_something_is_sent_nothing_before_it_asks() {
    let mut bench = reading(session_reply(PatchId::empty(KIND)));
    assert!(bench.session.read.is_empty(), "what it will not be sent is not kept");
    let first = snapshot(&[("a", "1"), ("b", "2")]);
    bench.update(&first);
    assert!(bench.ahead.is_empty());
    let header = bench.transported();
    bench.ack(header);
    assert_eq!(bench.session.phase(), Phase::InSync);
    assert!(bench.ahead.is_empty());
}

#[test]
fn what_is_gone_when_the_scan_is_over_is_forgotten() {
    let mut bench = reading(blank());
    bench.step(Session::handle_ahead_sent);
    bench.step(Session::handle_ahead_sent);
    bench.update(&snapshot(&[("b", "2")]));
    let header = bench.transported();
    let forgotten = bench.said.iter().find_map(|m| match m {
        ToServer::Forget(forget) => Some(forget.ids.clone()),
        _ => None,
    });
    assert_eq!(forgotten, Some(vec![needed("a", "1").id]));
    bench.ack(header);
    assert_eq!(bench.session.phase(), Phase::InSync);
}

#[test]
fn a_file_that_changed_meanwhile_does_not_hold_up_the_first_patch() {
    let mut bench = reading(blank());
    bench.step(|s, now| s.handle_ahead_failed(vec![RelPath::new("a").unwrap()], now));
    assert!(matches!(&bench.asked[..], [Request::Check(paths)] if paths.len() == 1));
    bench.update(&snapshot(&[("a", "5"), ("b", "2")]));
    assert!(matches!(bench.transported().kind, PatchKind::Whole { .. }));
}

#[test]
fn a_connection_that_breaks_leaves_nothing_behind() {
    let mut bench = reading(blank());
    let broke = ErrorReport {
        code: ErrorCode::Unreachable,
        message: "broke".into(),
        causes: Vec::new(),
        retryable: true,
    };
    bench.step(|s, now| s.handle_disconnected(broke, now));
    bench.now += RETRY_MOST;
    bench.step(|s, now| s.handle_time(now));
    bench.update(&snapshot(&[("a", "1")]));
    bench.greet();
    bench.message(blank());
    assert!(matches!(bench.transported().kind, PatchKind::Whole { .. }));
    assert_eq!(bench.ahead.len(), 1, "that of the first connection");
}
