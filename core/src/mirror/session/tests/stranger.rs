//! Another repository at the path of the one mirrored before.

use super::*;

const FORMER: &str = "root 1 10 0 git 1 11 0";
const OTHER: &str = "root 1 20 0 git 1 21 0";

fn place(text: &str) -> RepoIdentity {
    text.parse().unwrap()
}

/// A session of a target that mirrored [`FORMER`] and finds `now`, with a server that holds `held` files.
fn bench(mirrored: Option<&str>, now: &str, snapshot: &Snapshot, held_files: u64) -> Bench {
    let identity = Identity { mirrored: mirrored.map(place), ..Bench::identity() };
    let mut bench = Bench::with(identity);
    bench.place = place(now);
    bench.update(snapshot);
    open(&mut bench, held_files);
    bench
}

fn open(bench: &mut Bench, held_files: u64) {
    bench.step(|s, now| s.handle_connected(now));
    let welcome = wire::Welcome {
        protocol: wire::PROTOCOL,
        features: Vec::new(),
        software: String::new(),
        kernel: String::new(),
    };
    bench.message(ToClient::Welcome(welcome));
    let ToClient::Session(session) = session_reply(PatchId::empty(KIND)) else { unreachable!() };
    let held = snapshot(&[("held", "by the server")]).id();
    bench.message(ToClient::Session(wire::Session { held, held_files, ..session }));
}

/// The server says that it has these beyond the whole patch.
fn extra(bench: &mut Bench, paths: &[&str], more: bool) {
    let header = bench.last_header();
    let extra = paths.iter().map(|p| RelPath::new(p).unwrap()).collect();
    let wanted = wire::Wanted { generation: header.generation, changes: Vec::new(), extra, more };
    bench.message(ToClient::Wanted(wanted));
}

fn answers(bench: &Bench) -> usize {
    bench.sent.iter().filter(|o| matches!(o, Outgoing::Answer { .. })).count()
}

#[test]
fn another_repository_that_lacks_much_of_what_a_server_holds_halts_until_it_is_accepted() {
    let mut bench = bench(Some(FORMER), OTHER, &snapshot(&[]), 3);
    bench.transported();
    extra(&mut bench, &["a", "b"], false);
    assert_eq!(bench.session.phase(), Phase::Halted);
    assert_eq!(answers(&bench), 0, "nothing is deleted");
    let report = bench.events.iter().find_map(|e| match e {
        EventKind::Error(report) => Some(report.clone()),
        _ => None,
    });
    let report = report.unwrap();
    assert_eq!(report.code, ErrorCode::Repository);
    assert!(report.message.contains("/repo") && report.message.contains("2 of 3"), "{}", report.message);
    assert!(bench.events.iter().any(|e| matches!(e, EventKind::Brake(Some(Missing { files: 2, of: 3 })))));
    // Asking again changes nothing; a person's word does.
    bench.step(Session::sync_now);
    open(&mut bench, 3);
    bench.transported();
    extra(&mut bench, &["a", "b"], false);
    assert_eq!((bench.session.phase(), answers(&bench)), (Phase::Halted, 0));
    bench.step(Session::accept);
    open(&mut bench, 3);
    let header = bench.transported();
    extra(&mut bench, &["a", "b"], false);
    assert_eq!(answers(&bench), 1);
    bench.step(|s, now| s.handle_sent(1, now));
    bench.ack(header);
    assert_eq!(bench.session.phase(), Phase::InSync);
    assert_eq!(bench.remembered, [place(OTHER)]);
}

#[test]
fn what_the_server_has_beyond_the_patch_is_counted_over_all_it_says() {
    let mut bench = bench(Some(FORMER), OTHER, &snapshot(&[]), 5);
    bench.transported();
    extra(&mut bench, &["a"], true);
    assert_eq!(answers(&bench), 1);
    extra(&mut bench, &["b"], false);
    assert_eq!(bench.session.phase(), Phase::Halted);
}

#[test]
fn a_copy_or_a_clone_made_anew_passes_and_takes_the_place() {
    let files = snapshot(&[("a", "1"), ("b", "1"), ("c", "1"), ("d", "1")]);
    let mut bench = bench(Some(FORMER), OTHER, &files, 5);
    let header = bench.transported();
    extra(&mut bench, &["untracked"], false);
    bench.step(|s, now| s.handle_sent(1, now));
    bench.ack(header);
    assert_eq!(bench.session.phase(), Phase::InSync);
    assert_eq!(bench.remembered, [place(OTHER)]);
}

#[test]
fn the_same_repository_and_one_never_seen_may_delete() {
    for mirrored in [Some(OTHER), None] {
        let mut bench = bench(mirrored, OTHER, &snapshot(&[]), 2);
        bench.transported();
        extra(&mut bench, &["a", "b"], false);
        assert_eq!(answers(&bench), 1, "{mirrored:?}");
    }
}

#[test]
fn a_known_snapshot_on_the_server_is_compared_as_well() {
    let (full, empty) = (snapshot(&[("a", "1"), ("b", "1")]), snapshot(&[]));
    let identity = Identity { mirrored: Some(place(FORMER)), ..Bench::identity() };
    let mut bench = Bench::with(identity);
    bench.place = place(OTHER);
    bench.update(&full);
    bench.update(&empty);
    bench.open(full.id());
    assert_eq!(bench.session.phase(), Phase::Halted);
    assert!(bench.sent.is_empty());
}

#[test]
fn one_that_was_accepted_while_this_program_runs_is_not_asked_about_again() {
    let (full, empty) = (snapshot(&[("a", "1"), ("b", "1")]), snapshot(&[]));
    let mut bench = Bench::with(Identity { mirrored: Some(place(FORMER)), ..Bench::identity() });
    bench.place = place(FORMER);
    bench.update(&full);
    bench.open(full.id());
    assert_eq!(bench.session.phase(), Phase::InSync);
    bench.step(|s, now| s.stop(lost(), now));
    bench.place = place(OTHER);
    bench.update(&empty);
    bench.step(Session::sync_now);
    bench.open(full.id());
    let header = bench.transported();
    bench.ack(header);
    assert_eq!((bench.session.phase(), bench.remembered.last()), (Phase::InSync, Some(&place(OTHER))));
}
