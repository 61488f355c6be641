//! Large files that are being read.

use super::super::readings::VOID_REST;
use super::*;
use crate::repo::blocks::BlockHasher;
use crate::repo::reading::Teller;

const LARGE: u64 = 5 << 20;

/// A reading of `path`, which held `old`.
fn reading(path: &str, old: &str) -> (Reading, Teller) {
    let blocks = Arc::new(BlockHasher::new(LARGE).finish());
    let base = (ContentId::of(KIND, old.as_bytes()), blocks);
    Reading::begin(RelPath::new(path).unwrap(), LARGE, base)
}

fn leaf(snapshot: &Snapshot, path: &str) -> Leaf {
    *snapshot.root().get(&RelPath::new(path).unwrap()).unwrap()
}

impl Bench {
    fn read(&mut self, reading: Reading) {
        self.step(|s, now| s.handle_reading(reading, now));
    }

    fn followed(&self) -> Vec<String> {
        self.following.iter().map(|reading| reading.path.to_string()).collect()
    }

    fn nameless_forgotten(&self) -> usize {
        self.said.iter().filter(|m| matches!(m, ToServer::Forget(forget) if forget.nameless)).count()
    }
}

#[test]
fn what_travels_while_it_is_read_is_not_sent_again_under_its_name() {
    let (old, new) =
        (snapshot(&[("a", "1"), ("big", "large 1")]), snapshot(&[("a", "1"), ("big", "large 2")]));
    let mut bench = in_sync(&old);
    let (begun, teller) = reading("big", "large 1");
    bench.read(begun);
    assert_eq!(bench.followed(), ["big"]);
    // Edits pass it.
    let edited = snapshot(&[("a", "2"), ("big", "large 1")]);
    bench.update(&edited);
    let header = bench.transported();
    assert_eq!(header.next, edited.id());
    bench.ack(header);
    // The snapshot may come before the last piece went out.
    let newest = snapshot(&[("a", "2"), ("big", "large 2")]);
    bench.update(&newest);
    assert_eq!((bench.sent.len(), bench.ahead.len()), (1, 0));
    teller.end(leaf(&new, "big"));
    bench.step(|s, now| s.handle_followed(leaf(&new, "big").id, now));
    assert!(contents_of(bench.sent.last()).is_empty(), "the server has the content");
    let header = bench.transported();
    assert_eq!((header.next, bench.ahead.len()), (newest.id(), 0));
    bench.ack(header);
    assert_eq!((bench.session.phase(), bench.nameless_forgotten()), (Phase::InSync, 0));
}

#[test]
fn what_comes_to_nothing_goes_the_usual_way_and_its_file_is_not_followed_for_a_while() {
    let mut bench = in_sync(&snapshot(&[("big", "large 1")]));
    let (begun, teller) = reading("big", "large 1");
    bench.read(begun);
    drop(teller);
    bench.step(Session::handle_void);
    bench.update(&snapshot(&[("big", "large 2")]));
    assert_eq!((bench.followed().len(), bench.ahead.len()), (1, 1));
    bench.step(Session::handle_ahead_sent);
    let header = bench.transported();
    bench.ack(header);
    bench.read(reading("big", "large 2").0);
    assert_eq!(bench.followed().len(), 1);
    bench.now += VOID_REST;
    let (begun, _teller) = reading("big", "large 2");
    bench.read(begun);
    assert_eq!(bench.followed().len(), 2);
}

#[test]
fn what_has_a_name_does_not_wait_for_a_file_to_be_read() {
    let mut bench = in_sync(&snapshot(&[("x", "large 1"), ("y", "large 1")]));
    let (begun, _teller) = reading("x", "large 1");
    bench.read(begun);
    bench.update(&snapshot(&[("x", "large 1"), ("y", "large 2")]));
    assert_eq!((bench.stopped_ahead, bench.ahead.len()), (1, 1));
    bench.step(Session::handle_ahead_sent);
    assert_eq!(bench.followed(), ["x"], "it goes the usual way");
}

#[test]
fn what_is_not_needed_by_the_time_it_has_a_name_is_forgotten() {
    let first = snapshot(&[("a", "1"), ("big", "large 1")]);
    for newest in [snapshot(&[("a", "1"), ("big", "large 3")]), snapshot(&[("a", "1")])] {
        let mut bench = in_sync(&first);
        let (begun, _teller) = reading("big", "large 1");
        bench.read(begun);
        bench.update(&newest);
        let two = ContentId::of(KIND, b"large 2");
        bench.step(|s, now| s.handle_followed(two, now));
        if !bench.sent.is_empty() {
            bench.transported();
        }
        let forgot = |m: &ToServer| matches!(m, ToServer::Forget(forget) if forget.ids.contains(&two));
        assert!(bench.said.iter().any(forgot), "{:?}", bench.said.last());
    }
}

#[test]
fn what_a_whole_patch_has_yet_to_bring_is_not_followed() {
    let mut bench = Bench::new();
    bench.update(&snapshot(&[("a", "1"), ("big", "large 1")]));
    bench.open(snapshot(&[("z", "unknown")]).id());
    assert!(matches!(bench.last_header().kind, PatchKind::Whole { .. }));
    bench.transported();
    let (begun, _teller) = reading("big", "large 1");
    bench.read(begun);
    assert_eq!(bench.followed(), [""; 0]);
}

#[test]
fn one_is_followed_at_a_time_and_none_that_is_over_by_then() {
    let mut bench = in_sync(&snapshot(&[("x", "large 1"), ("y", "large 1"), ("z", "large 1")]));
    let (x, _x) = reading("x", "large 1");
    let (y, over) = reading("y", "large 1");
    let (z, _z) = reading("z", "large 1");
    [x, y, z].into_iter().for_each(|reading| bench.read(reading));
    assert_eq!(bench.followed(), ["x"]);
    drop(over);
    bench.step(Session::handle_void);
    assert_eq!(bench.followed(), ["x", "z"]);
}

#[test]
fn what_the_server_has_otherwise_or_refused_is_not_followed() {
    let first = snapshot(&[("a", "1"), ("big", "large 1")]);
    let mut bench = in_sync(&first);
    bench.read(reading("big", "large 0").0);
    bench.update(&snapshot(&[("a", "1"), ("big", "large 2")]));
    bench.step(Session::handle_ahead_sent);
    let header = bench.transported();
    bench.ack_but_for(header, &first, &["big"]);
    let (refused, _teller) = reading("big", "large 1");
    bench.read(refused);
    assert_eq!(bench.followed(), [""; 0]);
}

#[test]
fn a_whole_patch_does_not_wait_for_a_file_to_be_read() {
    let old = snapshot(&[("big", "large 1")]);
    let mut bench = in_sync(&old);
    let (begun, _teller) = reading("big", "large 1");
    bench.read(begun);
    bench.step(Session::resync);
    bench.message(session_reply(old.id()));
    assert_eq!((bench.stopped_ahead, bench.nameless_forgotten()), (1, 1));
    assert!(matches!(bench.last_header().kind, PatchKind::Whole { .. }));
}
