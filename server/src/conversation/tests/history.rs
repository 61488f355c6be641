//! Steps of history beside patches.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};

use bstr::ByteSlice;
use gitsync_core::wire::{Baseline, HISTORY, NotLandedReason, PackPiece};

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

struct Track {
    lab: Lab,
    bell: Receiver<()>,
    /// Whoever rings the bell next panics.
    trap: Arc<AtomicBool>,
    source: TempDir,
}

impl Track {
    fn open(list: &str) -> Self {
        let root = TempDir::new().unwrap();
        let trap = Arc::default();
        let (talk, bell) = Self::talk(root.path(), &trap);
        let held = Snapshot::empty(HashKind::Sha1);
        let source = TempDir::new().unwrap();
        let mut track = Self { lab: Lab { root, talk, held, generation: 0 }, bell, trap, source };
        track.git(&["init", "-q", "-b", "main"], b"");
        for item in list.split_whitespace() {
            let (name, text) = item.split_once('=').unwrap();
            fs::write(track.source.path().join(name), text).unwrap();
        }
        track.git(&["add", "."], b"");
        track.git(&["commit", "-q", "-m", "first"], b"");
        track.lab.send(list);
        track
    }

    /// A session in a workspace without commits.
    fn talk(root: &Path, trap: &Arc<AtomicBool>) -> (Conversation, Receiver<()>) {
        let (ring, bell) = channel();
        let trap = trap.clone();
        let options = Options {
            root: root.to_owned(),
            adopt: false,
            workspaces: Arc::default(),
            software: "test".into(),
        };
        let watch = Watch { drift_scan: Duration::from_secs(3600) };
        let ring = Arc::new(move || {
            assert!(!trap.swap(false, Ordering::Relaxed), "the trap of a test");
            ring.send(()).unwrap_or_default();
        });
        let mut talk = Conversation::new(Arc::new(options), watch, ring);
        let optional = vec![HISTORY.to_owned()];
        let hello = Hello { protocol: PROTOCOL, required: vec![], optional, software: "test".into() };
        talk.handle(ToServer::Hello(hello));
        let next = talk.handle(ToServer::NewSession(session(false)));
        assert!(matches!(&next.replies[..], [ToClient::Session(s)] if s.clone_head.is_none()), "{next:?}");
        (talk, bell)
    }

    fn git(&self, args: &[&str], input: &[u8]) -> Vec<u8> {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=A", "-c", "user.email=a@example.net"]).args(args);
        git.current_dir(self.source.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null");
        let mut child = git.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{args:?}");
        output.stdout
    }

    fn head(&self) -> ObjectId {
        ObjectId::from_hex(self.git(&["rev-parse", "HEAD"], b"").trim()).unwrap()
    }

    fn pack(&self) -> Vec<u8> {
        let args = ["pack-objects", "--revs", "--stdout", "--shallow", "-q"];
        self.git(&args, format!("--shallow {0}\n{0}\n", self.head()).as_bytes())
    }

    fn step(&self, number: u64) -> Baseline {
        let mut step = Baseline::new(number, Some(self.head()), Some(b"main".to_vec()));
        step.shallow = vec![self.head()];
        step
    }

    fn begin(&mut self, step: Baseline) -> Next {
        self.lab.talk.handle(ToServer::Baseline(step))
    }

    fn piece(&mut self, number: u64, data: &[u8], end: bool) -> Next {
        let data = Bytes::copy_from_slice(data);
        self.lab.talk.handle(ToServer::PackPiece(PackPiece { number, data, end }))
    }

    /// News until `wanted` of them are there.
    fn news(&mut self, wanted: usize) -> Vec<ToClient> {
        let mut news = self.lab.talk.news().replies;
        while news.len() < wanted {
            self.bell.recv_timeout(PATIENCE).expect("there is news");
            news.extend(self.lab.talk.news().replies);
        }
        news
    }

    /// Everything that came so far but credit.
    fn told(&mut self) -> Vec<ToClient> {
        let mut news = self.lab.talk.news().replies;
        news.retain(|message| !matches!(message, ToClient::Taken { .. }));
        news
    }

    /// Waits for something but credit.
    fn first_told(&mut self) -> Vec<ToClient> {
        loop {
            let told = self.told();
            if !told.is_empty() {
                return told;
            }
            self.bell.recv_timeout(PATIENCE).expect("there is news");
        }
    }
}

#[test]
fn an_edit_is_acked_while_a_pack_comes_and_while_it_lands() {
    let mut track = Track::open("a=1 b=2");
    let (pack, head) = (track.pack(), track.head());
    let next = track.begin(Baseline { pack: true, ..track.step(1) });
    assert!(matches!(next.replies[..], [ToClient::Taken { .. }]), "{next:?}");
    let half = pack.len() / 2;
    track.piece(1, &pack[..half], false);
    // The pack is half here.
    track.lab.send("a=3 b=2");
    // Somebody keeps it from landing to its end.
    let lock = track.lab.at(".git/index.lock");
    fs::write(&lock, "").unwrap();
    track.piece(1, &pack[half..], true);
    let made = track.lab.at(".git/gitsync/history/1.index");
    let until = Instant::now() + PATIENCE;
    while !made.exists() {
        assert!(Instant::now() < until, "the index is made before it is locked");
        std::thread::yield_now();
    }
    track.lab.send("a=3 b=4");
    assert!(track.told().is_empty());
    fs::remove_file(lock).unwrap();
    let news = loop {
        let news = track.news(1);
        if let Some(last) = news.last().filter(|m| !matches!(m, ToClient::Taken { .. })) {
            break last.clone();
        }
    };
    assert!(
        matches!(&news, ToClient::Landed(landed) if landed.number == 1 && landed.head == Some(head)),
        "{news:?}"
    );
    let next =
        track.lab.talk.handle(ToServer::NewSession(NewSession { commits: vec![head], ..session(false) }));
    let [ToClient::Session(session)] = &next.replies[..] else { panic!("{next:?}") };
    assert_eq!((session.clone_head, session.common), (Some(head), Some(head)));
    assert_eq!(
        (session.clone_branch.as_deref(), &session.clone_shallow[..]),
        (Some(&b"main"[..]), &[head][..])
    );
}

#[test]
fn credit_comes_back_in_the_order_it_was_spent() {
    let mut track = Track::open("a=1");
    let pack = track.pack();
    let step = Baseline { pack: true, ..track.step(1) };
    let weight = step.weight();
    let mut credit = track.begin(step).replies;
    credit.extend(track.piece(1, &pack, true).replies);
    let contents = chunks("x=ahead", &patch::between(&snapshot(""), &snapshot("x=ahead")));
    let ahead: u64 = contents.iter().map(Chunk::weight).sum();
    credit.extend(track.lab.talk.handle(ToServer::Ahead { contents }).replies);
    while credit.len() < 4 {
        credit.extend(track.news(1));
    }
    let weights = [weight, 64 + pack.len() as u64, ahead];
    let taken: Vec<u64> = credit
        .iter()
        .filter_map(|m| match m {
            ToClient::Taken { weight } => Some(*weight),
            _ => None,
        })
        .collect();
    assert_eq!(taken, weights);
}

#[test]
fn a_step_that_is_given_up_or_overtaken_is_not_answered() {
    let mut track = Track::open("a=1");
    let pack = track.pack();
    track.begin(Baseline { pack: true, ..track.step(1) });
    track.piece(1, &pack[..20], false);
    track.lab.talk.handle(ToServer::StopBaseline { number: 1 });
    // What was on its way.
    track.piece(1, &pack[20..], true);
    track.begin(Baseline { pack: true, ..track.step(2) });
    track.piece(2, &pack[..20], false);
    track.begin(Baseline { pack: true, ..track.step(3) });
    track.piece(2, b"", true);
    track.piece(3, &pack, true);
    let mut told = Vec::new();
    while told.is_empty() {
        track.bell.recv_timeout(PATIENCE).expect("there is news");
        told = track.told();
    }
    assert!(matches!(&told[..], [ToClient::Landed(landed)] if landed.number == 3), "{told:?}");
    assert!(!track.lab.at(".git/gitsync/history/1.incoming").exists());
}

#[test]
fn lists_that_go_on_are_one_step() {
    let mut track = Track::open("a=1");
    let pack = track.pack();
    let head = track.head();
    let mut first = Baseline { pack: true, more: true, ..track.step(1) };
    first.tags = vec![gitsync_core::wire::Tag::new("one", head).unwrap()];
    let mut second = Baseline::new(1, None, None);
    second.tags = vec![gitsync_core::wire::Tag::new("two", head).unwrap()];
    track.begin(first);
    track.begin(second);
    track.piece(1, &pack, true);
    let mut told = Vec::new();
    while told.is_empty() {
        track.bell.recv_timeout(PATIENCE).expect("there is news");
        told = track.told();
    }
    assert!(matches!(told[..], [ToClient::Landed(_)]), "{told:?}");
    for tag in ["one", "two"] {
        assert!(track.lab.at(".git/refs/tags").join(tag).exists());
    }
}

#[test]
fn what_is_out_of_turn_ends_the_stream() {
    let numbers: [fn(&mut Track) -> Next; 4] = [
        |track| track.piece(1, b"PACK", false),
        |track| {
            track.begin(track.step(2));
            track.begin(track.step(2))
        },
        |track| {
            track.begin(track.step(2));
            track.piece(3, b"PACK", false)
        },
        |track| {
            track.begin(Baseline { more: true, ..track.step(1) });
            track.begin(Baseline { more: true, ..track.step(1) });
            track.begin(track.step(1));
            track.begin(track.step(1))
        },
    ];
    for way in numbers {
        let mut track = Track::open("a=1");
        let next = way(&mut track);
        assert!(next.end);
        assert!(
            matches!(&next.replies[..], [.., ToClient::Refusal(r)] if r.code == RefusalCode::Protocol),
            "{next:?}"
        );
    }
    // And of a client that did not say it knows of this.
    let mut lab = Lab::with("a=1");
    let next = lab.talk.handle(ToServer::Baseline(Baseline::new(1, None, Some(b"main".to_vec()))));
    assert_eq!(refused(&next).code, RefusalCode::Protocol);
}

#[test]
fn a_pack_that_lacks_what_it_builds_on_is_named_so() {
    let mut track = Track::open("a=1");
    let first = track.head();
    fs::write(track.source.path().join("a"), "2").unwrap();
    track.git(&["commit", "-q", "-a", "-m", "second"], b"");
    let args = ["pack-objects", "--revs", "--thin", "--stdout", "-q"];
    let pack = track.git(&args, format!("{}\n^{first}\n", track.head()).as_bytes());
    let mut step = Baseline { pack: true, ..track.step(1) };
    step.shallow = Vec::new();
    track.begin(step);
    track.piece(1, &pack, true);
    let mut told = Vec::new();
    while told.is_empty() {
        track.bell.recv_timeout(PATIENCE).expect("there is news");
        told = track.told();
    }
    let [ToClient::NotLanded(not)] = &told[..] else { panic!("{told:?}") };
    assert_eq!((not.number, not.reason, not.retryable), (1, NotLandedReason::ObjectsMissing, false));
    assert!(!not.messages.is_empty());
}

#[test]
fn history_that_could_not_begin_begins_with_the_next_step() {
    let mut track = Track::open("a=1");
    track.lab.talk.handle(ToServer::Close);
    let state = track.lab.at(".git/gitsync/history");
    fs::remove_dir_all(&state).unwrap();
    fs::write(&state, "").unwrap();
    (track.lab.talk, track.bell) = Track::talk(track.lab.root.path(), &track.trap);
    let next = track.begin(track.step(1));
    let [ToClient::Taken { .. }, ToClient::NotLanded(not)] = &next.replies[..] else { panic!("{next:?}") };
    assert_eq!((not.number, not.reason, not.retryable), (1, NotLandedReason::Failed, true));
    fs::remove_file(&state).unwrap();
    let pack = track.pack();
    track.begin(Baseline { pack: true, ..track.step(2) });
    track.piece(2, &pack, true);
    let told = track.first_told();
    assert!(matches!(&told[..], [ToClient::Landed(landed)] if landed.number == 2), "{told:?}");
}

#[test]
fn a_history_thread_that_panics_gives_the_credit_back_and_another_follows() {
    let mut track = Track::open("a=1");
    let pack = track.pack();
    track.begin(Baseline { pack: true, ..track.step(1) });
    track.trap.store(true, Ordering::Relaxed);
    let mut news = track.piece(1, &pack[..20], false).replies;
    news.extend(track.piece(1, &pack[20..], true).replies);
    let ended = |m: &ToClient| matches!(m, ToClient::NotLanded(not) if not.number == 1 && not.retryable);
    while !news.iter().any(ended) {
        news.extend(track.news(1));
    }
    let taken = |m: &ToClient| if let ToClient::Taken { weight } = m { *weight } else { 0 };
    assert_eq!(news.iter().map(taken).sum::<u64>(), 2 * 64 + pack.len() as u64);
    track.begin(Baseline { pack: true, ..track.step(2) });
    track.piece(2, &pack, true);
    let told = track.first_told();
    assert!(matches!(&told[..], [ToClient::Landed(landed)] if landed.number == 2), "{told:?}");
}
