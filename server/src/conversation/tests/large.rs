//! Large contents ahead of patches, which are written beside the conversation.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use gitsync_core::wire::{Base, Encoding};

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// A session whose writing thread can be held up: it rings the bell for every report.
struct Bench {
    lab: Lab,
    /// Before the gate.
    waits: Receiver<()>,
    rung: Receiver<()>,
    gate: Arc<Mutex<()>>,
    /// Whoever rings the bell next panics.
    trap: Arc<AtomicBool>,
}

impl Bench {
    fn with(list: &str) -> Self {
        let root = TempDir::new().unwrap();
        let ((waiting, waits), (ring, rung)) = (channel(), channel());
        let (gate, trap) = (Arc::new(Mutex::new(())), Arc::new(AtomicBool::new(false)));
        let bell = Self::bell(waiting, ring, gate.clone(), trap.clone());
        let mut talk = Conversation { bell, ..greeted(root.path()) };
        talk.handle(ToServer::NewSession(session(false)));
        let mut lab = Lab { root, talk, held: Snapshot::empty(HashKind::Sha1), generation: 0 };
        lab.send(list);
        Self { lab, waits, rung, gate, trap }
    }

    fn bell(waiting: Sender<()>, ring: Sender<()>, gate: Arc<Mutex<()>>, trap: Arc<AtomicBool>) -> Bell {
        Arc::new(move || {
            assert!(!trap.swap(false, Ordering::Relaxed), "the trap of a test");
            waiting.send(()).unwrap_or_default();
            drop(gate.lock().unwrap_or_else(PoisonError::into_inner));
            ring.send(()).unwrap_or_default();
        })
    }

    /// Until the gate opens, the thread does nothing more.
    fn hold_up(&mut self) {
        let piece = pieces(&large('-')).swap_remove(0);
        let said = self.ahead([piece]);
        self.waits.recv_timeout(PATIENCE).expect("it is at the gate");
        let news = self.lab.talk.news().replies;
        assert_eq!(said.iter().chain(&news).filter_map(weight).count(), 1);
    }

    fn ahead(&mut self, pieces: impl IntoIterator<Item = Chunk>) -> Vec<ToClient> {
        let mut replies = Vec::new();
        for piece in pieces {
            let next = self.lab.talk.handle(ToServer::Ahead { contents: vec![piece] });
            assert!(!next.end, "{next:?}");
            replies.extend(next.replies);
        }
        replies
    }

    fn forget(&mut self, text: &str) -> Vec<ToClient> {
        self.lab.talk.handle(forget(vec![id_of(text)])).replies
    }

    /// News, with what was said before, until there is credit for so many messages.
    fn taken(&mut self, mut said: Vec<ToClient>, wanted: usize) -> Vec<u64> {
        loop {
            let taken: Vec<u64> = said.iter().filter_map(weight).collect();
            if taken.len() >= wanted {
                return taken;
            }
            self.rung.recv_timeout(PATIENCE).expect("there is news");
            said.extend(self.lab.talk.news().replies);
        }
    }
}

impl Lab {
    /// Files of the stage this process holds open.
    fn staged_open(&self) -> usize {
        let stage = self.at(".git/gitsync/stage");
        let held =
            fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
        // The epoch's own directory is one of them.
        held.filter(|file| file.starts_with(&stage) && file.parent() != Some(&*stage)).count()
    }
}

fn weight(reply: &ToClient) -> Option<u64> {
    match reply {
        ToClient::Taken { weight } => Some(*weight),
        _ => None,
    }
}

/// Three pieces and a bit.
fn large(letter: char) -> String {
    letter.to_string().repeat(3 * CHUNK_BYTES + 7)
}

#[test]
fn an_edit_does_not_wait_behind_them_and_the_patch_that_needs_one_does() {
    let mut bench = Bench::with("a=1");
    let text = large('x');
    let weights: Vec<u64> = pieces(&text).iter().map(Chunk::weight).collect();
    let gate = bench.gate.clone();
    let closed = gate.lock().unwrap();
    bench.hold_up();
    let said = bench.ahead(pieces(&text));
    assert!(said.is_empty(), "{said:?}");
    // One of a single piece, in a message of its own, keeps its place in the order.
    let single = "s".repeat(CHUNK_BYTES);
    let last = pieces(&single)[0].weight();
    let said = bench.ahead(pieces(&single));
    assert!(said.is_empty(), "{said:?}");
    let ack = bench.lab.send("a=2");
    assert_eq!((ack.written, fs::read(bench.lab.at("a")).unwrap()), (1, b"2".to_vec()));
    drop(closed);
    let list = format!("a=2 b={text} c={single}");
    let ToServer::Patch(header, frame) = bench.lab.message(&list) else { panic!("a patch") };
    let next = bench.lab.talk.handle(ToServer::Patch(header, Frame { contents: vec![], ..frame }));
    let acked = |reply: &ToClient| matches!(reply, ToClient::Ack(ack) if ack.id == snapshot(&list).id());
    assert!(next.replies.iter().any(acked), "{next:?}");
    assert_eq!(fs::read_to_string(bench.lab.at("b")).unwrap(), text);
    let taken = bench.taken(next.replies, 5);
    assert_eq!((&taken[..4], taken[4]), (&weights[..], last));
    assert_eq!(bench.lab.staged(), 0);
}

#[test]
fn one_that_is_given_up_leaves_nothing() {
    let mut bench = Bench::with("a=1");
    let (first, second) = (large('x'), large('y'));
    let mut said = Vec::new();
    // By one that begins before it is whole, and by being forgotten.
    said.extend(bench.ahead(pieces(&first)[..2].to_vec()));
    said.extend(bench.ahead(pieces(&second)[..1].to_vec()));
    said.extend(bench.forget(&second));
    // What is still to come of them means nothing.
    said.extend(bench.ahead(pieces(&first)[2..].to_vec()));
    said.extend(bench.ahead(pieces(&second)[1..].to_vec()));
    // As does one that came to its end and is forgotten then.
    said.extend(bench.ahead(pieces(&first)));
    said.extend(bench.forget(&first));
    bench.taken(said, 12);
    assert_eq!(bench.lab.staged(), 0);
}

#[test]
fn a_patch_waits_for_what_it_names_and_for_nothing_behind_it() {
    let mut bench = Bench::with("a=1");
    let (text, other) = (large('x'), large('y'));
    let gate = bench.gate.clone();
    let closed = gate.lock().unwrap();
    bench.hold_up();
    let said = [bench.ahead(pieces(&text)), bench.ahead(pieces(&other)[..2].to_vec())].concat();
    assert!(said.is_empty(), "{said:?}");
    let ToServer::Patch(header, frame) = bench.lab.message(&format!("a=1 b={text}")) else { panic!() };
    let patch = ToServer::Patch(header, Frame { contents: vec![], ..frame });
    // Somebody else opens the gate: this thread waits.
    let (opened, open) = channel();
    let replies = std::thread::scope(|scope| {
        let lab = &mut bench.lab;
        let applied = scope.spawn(move || {
            opened.send(()).unwrap();
            lab.talk.handle(patch).replies
        });
        open.recv().unwrap();
        drop(closed);
        applied.join().unwrap()
    });
    let acked = |reply: &ToClient| matches!(reply, ToClient::Ack(ack) if ack.written == 1);
    assert!(replies.iter().any(acked), "{replies:?}");
    let taken = bench.taken(replies, 6);
    assert_eq!(taken.len(), 6);
}

#[test]
fn one_that_comes_again_after_it_was_forgotten_is_another() {
    let mut bench = Bench::with("a=1");
    let text = large('x');
    let gate = bench.gate.clone();
    let closed = gate.lock().unwrap();
    bench.hold_up();
    // The first fails, which is told after the second has begun.
    let mut wrong = pieces(&text)[..2].to_vec();
    let base = Base { path: path("a"), id: id_of("1"), offset: 0, length: 1 };
    wrong[1] =
        Chunk { encoding: Encoding::ZstdFrom(base), data: Bytes::from_static(b"no"), ..wrong[1].clone() };
    let mut said = bench.ahead(wrong);
    said.extend(bench.forget(&text));
    said.extend(bench.ahead(pieces(&text)));
    drop(closed);
    bench.taken(said, 6);
    let ToServer::Patch(header, frame) = bench.lab.message(&format!("a=1 b={text}")) else { panic!() };
    let next = bench.lab.talk.handle(ToServer::Patch(header, Frame { contents: vec![], ..frame }));
    assert!(matches!(&next.replies[..], [ToClient::Ack(ack)] if ack.written == 1), "{next:?}");
    assert_eq!(bench.lab.staged(), 0);
}

#[test]
fn any_number_of_them_may_wait_and_few_hold_a_file_open() {
    let mut bench = Bench::with("a=1");
    let texts: Vec<String> = (0..200).map(|n| format!("{n:03}").repeat(CHUNK_BYTES / 2)).collect();
    let all: Vec<Vec<Chunk>> = texts.iter().map(|text| pieces(text)).collect();
    let (mut said, mut most) = (Vec::new(), 0);
    for pieces in all {
        said.extend(bench.ahead(pieces));
        most = most.max(bench.lab.staged_open());
    }
    // 32 that wait to be written, one that has just come, and 64 that the stage keeps open.
    assert!(most <= 97, "{most} files");
    bench.taken(said, 400);
    let list: Vec<String> = texts.iter().enumerate().map(|(n, text)| format!("f{n:03}={text}")).collect();
    let ToServer::Patch(header, frame) = bench.lab.message(&list.join(" ")) else { panic!() };
    let next = bench.lab.talk.handle(ToServer::Patch(header, Frame { contents: vec![], ..frame }));
    assert!(matches!(&next.replies[..], [ToClient::Ack(ack)] if ack.written == 200), "{next:?}");
}

#[test]
fn one_that_is_not_what_it_says_is_left_out() {
    let mut bench = Bench::with("a=1");
    let text = large('x');
    let mut wrong = pieces(&text);
    wrong[1] =
        Chunk { data: Bytes::from(vec![b'!'; CHUNK_BYTES]), encoding: Encoding::Raw, ..wrong[1].clone() };
    let said = bench.ahead(wrong);
    bench.taken(said, 4);
    assert_eq!(bench.lab.staged(), 0);
    let ToServer::Patch(header, frame) = bench.lab.message(&format!("a=1 b={text}")) else { panic!() };
    let next = bench.lab.talk.handle(ToServer::Patch(header, Frame { contents: vec![], ..frame }));
    assert_eq!(refused(&next).code, RefusalCode::ContentMissing);
}

#[test]
fn one_can_be_made_from_the_file_it_replaces() {
    let old = large('x');
    let mut bench = Bench::with(&format!("a={old}"));
    let new = format!("{old}!");
    let (id, size, length) = (id_of(&new), new.len() as u64, old.len() as u64);
    let base = Base { path: path("a"), id: id_of(&old), offset: 0, length };
    let end = Chunk::raw(id, size, length, Bytes::from_static(b"!"));
    let said = bench.ahead([Chunk::copy(id, size, 0, base), end]);
    bench.taken(said, 2);
    let ToServer::Patch(header, frame) = bench.lab.message(&format!("a={new}")) else { panic!() };
    let next = bench.lab.talk.handle(ToServer::Patch(header, Frame { contents: vec![], ..frame }));
    assert!(matches!(&next.replies[..], [ToClient::Ack(ack)] if ack.written == 1), "{next:?}");
    assert_eq!(fs::read_to_string(bench.lab.at("a")).unwrap(), new);
}

#[test]
fn a_piece_that_cannot_be_decoded_ends_the_stream() {
    let mut bench = Bench::with("a=1");
    let piece = pieces(&large('x')).swap_remove(0);
    let piece = Chunk { encoding: Encoding::Zstd, data: Bytes::from_static(b"nonsense"), ..piece };
    let mut next = bench.lab.talk.handle(ToServer::Ahead { contents: vec![piece] });
    while !next.end {
        bench.rung.recv_timeout(PATIENCE).expect("there is news");
        next = bench.lab.talk.news();
    }
    assert_eq!(refused(&next).code, RefusalCode::Protocol);
}

#[test]
fn more_than_there_was_credit_for_ends_the_stream() {
    let mut bench = Bench::with("a=1");
    let gate = bench.gate.clone();
    let closed = gate.lock().unwrap();
    bench.hold_up();
    let data = Bytes::from(vec![0; CHUNK_BYTES]);
    let piece = |n: u64| Chunk::raw(id_of("huge"), 80 << 20, n * CHUNK_BYTES as u64, data.clone());
    let State::Open(opened) = &mut bench.lab.talk.state else { panic!("no session") };
    let Opened { ahead, workspace, takings, .. } = &mut **opened;
    let broken = (0..1000).find_map(|n| ahead.take(workspace, vec![piece(n)], takings).err());
    // The session cannot end before its thread does.
    drop(closed);
    let Broken(what) = broken.expect("an end");
    assert!(what.contains("credit"), "{what}");
}

#[test]
fn a_thread_that_panics_costs_what_it_was_at_and_no_more() {
    let mut bench = Bench::with("a=1");
    let text = large('x');
    bench.trap.store(true, Ordering::Relaxed);
    let said = bench.ahead(pieces(&text)[..2].to_vec());
    bench.taken(said, 2);
    let said = bench.ahead(pieces(&text));
    bench.taken(said, 4);
    let ToServer::Patch(header, frame) = bench.lab.message(&format!("a=1 b={text}")) else { panic!() };
    let next = bench.lab.talk.handle(ToServer::Patch(header, Frame { contents: vec![], ..frame }));
    assert!(matches!(&next.replies[..], [ToClient::Ack(ack)] if ack.written == 1), "{next:?}");
}

/// The pieces of a content whose id was not known before its end.
fn nameless(text: &str) -> Vec<Chunk> {
    let mut pieces = pieces(text);
    let last = pieces.len() - 1;
    pieces[..last].iter_mut().for_each(|piece| piece.id = None);
    pieces
}

#[test]
fn one_may_be_named_by_its_last_piece() {
    let mut bench = Bench::with("a=1");
    let (text, other) = (large('x'), large('y'));
    let mut said = bench.ahead(nameless(&text));
    // Its name is as good as any: another content may begin now, named or not.
    said.extend(bench.ahead(nameless(&other)));
    let ToServer::Patch(header, frame) = bench.lab.message(&format!("a=1 b={text} c={other}")) else {
        panic!()
    };
    let next = bench.lab.talk.handle(ToServer::Patch(header, Frame { contents: vec![], ..frame }));
    let acked = |reply: &ToClient| matches!(reply, ToClient::Ack(ack) if ack.written == 2);
    assert!(next.replies.iter().any(acked), "{next:?}");
    bench.taken([said, next.replies].concat(), 8);
    assert_eq!(bench.lab.staged(), 0);
}

#[test]
fn a_nameless_one_is_given_up_by_another_or_by_word_and_leaves_nothing() {
    let mut bench = Bench::with("a=1");
    let (first, second, third) = (large('x'), large('y'), large('z'));
    let mut said = bench.ahead(nameless(&first)[..2].to_vec());
    said.extend(bench.ahead(nameless(&second)[..3].to_vec()));
    // Whatever else is forgotten is no matter of its.
    said.extend(bench.forget(&third));
    said.extend(bench.ahead(nameless(&second)[3..].to_vec()));
    said.extend(bench.forget(&second));
    said.extend(bench.ahead(nameless(&third)[..3].to_vec()));
    let word = ToServer::Forget(Forget { ids: Vec::new(), nameless: true });
    said.extend(bench.lab.talk.handle(word).replies);
    said.extend(bench.ahead(nameless(&third)[3..].to_vec()));
    bench.taken(said, 10);
    assert_eq!(bench.lab.staged(), 0);
}

#[test]
fn a_nameless_one_with_the_wrong_name_is_left_out() {
    let mut bench = Bench::with("a=1");
    let (text, other) = (large('x'), large('y'));
    let mut wrong = nameless(&text);
    wrong[3].id = Some(id_of(&other));
    let said = bench.ahead(wrong);
    bench.taken(said, 4);
    assert_eq!(bench.lab.staged(), 0);
    let ToServer::Patch(header, frame) = bench.lab.message(&format!("a=1 b={other}")) else { panic!() };
    let next = bench.lab.talk.handle(ToServer::Patch(header, Frame { contents: vec![], ..frame }));
    assert_eq!(refused(&next).code, RefusalCode::ContentMissing);
}
