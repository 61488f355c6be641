//! What ends a stream, and when the next is tried.

use super::*;

#[test]
fn retries_double_up_to_the_cap_and_start_over_after_success() {
    let mut bench = Bench::new();
    let mut waits = Vec::new();
    for _ in 0..8 {
        bench.step(|s, now| s.handle_disconnected(lost(), now));
        let wait = bench.session.deadline().unwrap() - bench.now;
        waits.push(wait);
        bench.now += wait;
        bench.step(|s, now| s.handle_time(now));
    }
    for (i, wait) in waits.iter().enumerate() {
        let middle = (RETRY_FIRST * 2_u32.pow(i as u32)).min(RETRY_MOST);
        assert!(*wait >= middle.mul_f64(0.8) && *wait <= middle.mul_f64(1.2), "{i}: {wait:?}");
    }
    let first = snapshot(&[("a", "1")]);
    bench.update(&first);
    bench.open(first.id());
    bench.step(|s, now| s.handle_disconnected(lost(), now));
    assert!(bench.session.deadline().unwrap() - bench.now <= RETRY_FIRST.mul_f64(1.2));
    let errors = bench.events.iter().filter(|e| matches!(e, EventKind::Error(_))).count();
    assert_eq!(errors, 2, "the same failure is reported once, then again after it had gone well");
}

#[test]
fn after_the_network_was_lost_another_connection_is_made_at_once() {
    let (first, second) = (snapshot(&[("a", "1")]), snapshot(&[("a", "2")]));
    // While a patch is on its way: it goes again, unless it turns out to have arrived.
    for has_arrived in [false, true] {
        let mut bench = in_sync(&first);
        bench.update(&second);
        bench.transported();
        bench.step(Session::reconnect);
        assert_eq!((bench.session.phase(), bench.connects), (Phase::Connecting, 2));
        bench.open(if has_arrived { second.id() } else { first.id() });
        if has_arrived {
            assert_eq!((bench.session.phase(), bench.sent.len()), (Phase::InSync, 1));
        } else {
            assert_eq!((diff_parent(bench.last_header()), bench.sent.len()), (first.id(), 2));
        }
    }
    // Out of the wait for a retry, and the next wait is the first again.
    let mut bench = in_sync(&first);
    for _ in 0..5 {
        bench.step(|s, now| s.handle_disconnected(lost(), now));
        bench.now = bench.session.deadline().unwrap();
        bench.step(|s, now| s.handle_time(now));
    }
    bench.step(|s, now| s.handle_disconnected(lost(), now));
    let before = bench.connects;
    bench.step(Session::reconnect);
    assert_eq!((bench.session.phase(), bench.connects), (Phase::Connecting, before + 1));
    bench.step(|s, now| s.handle_disconnected(lost(), now));
    assert!(bench.session.deadline().unwrap() - bench.now <= RETRY_FIRST.mul_f64(1.2));
    // While a connection is being made, too: it may be made over what is gone.
    bench.step(Session::reconnect);
    bench.step(Session::reconnect);
    assert_eq!(bench.connects, before + 3);
}

/// The server may handle the stream that was given up after the one that followed it.
#[test]
fn who_is_superseded_by_a_stream_of_its_own_goes_on() {
    let first = snapshot(&[("a", "1")]);
    let code = RefusalCode::Superseded;
    let superseded =
        || ToClient::Refusal(Refusal { generation: 0, code, messages: vec!["no".into()], held: None });
    let mut bench = in_sync(&first);
    bench.step(Session::reconnect);
    bench.greet();
    assert_eq!(bench.session.phase(), Phase::Negotiating);
    bench.step(Session::reconnect);
    bench.open(first.id());
    assert_eq!((bench.session.phase(), bench.connects), (Phase::InSync, 3));
    bench.message(superseded());
    assert_eq!((bench.session.phase(), bench.connects), (Phase::Connecting, 4));
    bench.open(first.id());
    assert_eq!(bench.session.phase(), Phase::InSync);
    // That was the one. Now it is somebody else.
    bench.message(superseded());
    assert_eq!((bench.session.phase(), bench.connects), (Phase::Halted, 4));
}

/// What holds the workspace may be another session of this program that a reload ends.
#[test]
fn a_lock_is_waited_for_while_it_may_be_our_own() {
    let first = snapshot(&[("a", "1")]);
    let locked = || {
        let code = RefusalCode::Locked;
        ToClient::Refusal(Refusal { generation: 0, code, messages: vec!["no".into()], held: None })
    };
    let mut bench = in_sync(&first);
    let until = bench.now + Duration::from_secs(10);
    bench.step(|s, _| s.be_patient(until));
    bench.message(locked());
    assert_eq!(bench.session.phase(), Phase::Retrying);
    bench.now = bench.session.deadline().unwrap();
    bench.step(|s, now| s.handle_time(now));
    bench.open(first.id());
    assert_eq!(bench.session.phase(), Phase::InSync);
    bench.now = until;
    bench.message(locked());
    assert_eq!(bench.session.phase(), Phase::Halted);
}

/// A server that has not yet heard of the end does nothing wrong.
#[test]
fn what_comes_after_the_end_is_no_violation() {
    let mut bench = in_sync(&snapshot(&[("a", "1")]));
    bench.step(Session::close);
    assert!(bench.session.is_closed());
    let before = bench.events.len();
    bench.message(ToClient::Lacking { positions: Vec::new() });
    assert!(bench.session.is_closed());
    assert_eq!(bench.events.len(), before);
}

#[test]
fn a_lost_network_ends_neither_a_pause_nor_a_halt() {
    let first = snapshot(&[("a", "1")]);
    let mut bench = in_sync(&first);
    bench.step(Session::pause);
    bench.step(Session::reconnect);
    assert_eq!((bench.session.phase(), bench.connects), (Phase::Paused, 2));
    bench.open(first.id());
    bench.update(&snapshot(&[("a", "2")]));
    assert_eq!((bench.session.phase(), bench.sent.len()), (Phase::Paused, 0));

    let mut bench = in_sync(&first);
    let code = RefusalCode::Superseded;
    let refusal = Refusal { generation: 0, code, messages: vec!["no".into()], held: None };
    bench.message(ToClient::Refusal(refusal));
    bench.step(Session::reconnect);
    assert_eq!((bench.session.phase(), bench.connects), (Phase::Halted, 1));
}

#[test]
fn what_needs_a_person_halts_until_one_acts() {
    for code in
        [RefusalCode::Locked, RefusalCode::Superseded, RefusalCode::RemotesDiffer, RefusalCode::Workspace]
    {
        let mut bench = in_sync(&snapshot(&[("a", "1")]));
        let refusal = Refusal { generation: 0, code, messages: vec!["no".into()], held: None };
        bench.message(ToClient::Refusal(refusal));
        assert_eq!(bench.session.phase(), Phase::Halted, "{code:?}");
        assert_eq!(bench.session.deadline(), None, "{code:?}");
        bench.step(Session::sync_now);
        assert_eq!((bench.session.phase(), bench.connects), (Phase::Connecting, 2), "{code:?}");
    }
}

#[test]
fn a_locked_workspace_is_taken_over_only_when_a_person_says_so() {
    let mut bench = in_sync(&snapshot(&[("a", "1")]));
    bench.step(Session::takeover);
    assert_eq!((bench.session.phase(), bench.connects), (Phase::InSync, 1), "there is nothing to take");

    let locked =
        || Refusal { generation: 0, code: RefusalCode::Locked, messages: vec!["ana".into()], held: None };
    let asks = |bench: &Bench| {
        let last = bench.said.iter().rev().find_map(|said| match said {
            ToServer::NewSession(new) => Some(new.takeover),
            _ => None,
        });
        last.expect("a session was asked for")
    };
    bench.message(ToClient::Refusal(locked()));
    bench.step(Session::sync_now);
    bench.greet();
    assert!(!asks(&bench));
    bench.message(ToClient::Refusal(locked()));
    assert_eq!(bench.session.phase(), Phase::Halted);
    bench.step(Session::takeover);
    bench.greet();
    assert!(asks(&bench));
    // It lasts until an answer comes, and no longer.
    bench.message(ToClient::Refusal(locked()));
    bench.step(Session::sync_now);
    bench.greet();
    assert!(!asks(&bench));
}

#[test]
fn a_workspace_that_was_taken_over_can_be_taken_back() {
    let mut bench = in_sync(&snapshot(&[("a", "1")]));
    let messages = vec!["taken over by ana".into()];
    bench.message(ToClient::Refusal(Refusal {
        generation: 0,
        code: RefusalCode::Superseded,
        messages,
        held: None,
    }));
    assert_eq!(bench.session.phase(), Phase::Halted);
    bench.step(Session::takeover);
    bench.greet();
    assert!(bench.said.iter().any(|said| matches!(said, ToServer::NewSession(new) if new.takeover)));
}
