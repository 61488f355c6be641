//! What is said for what, without a transport.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use gitsync_core::model::{Dir, HashKind, Leaf, Mode, Signature, Snapshot, patch};
use gitsync_core::wire::{Chunk, Forget};
use tempfile::TempDir;

use super::*;
use crate::intake::Intake;

mod derived;
mod history;
mod large;
mod many;
mod offers;

/// A root, and a client that knows what it wants there.
struct Lab {
    root: TempDir,
    talk: Conversation,
    held: Snapshot,
    generation: u64,
}

fn path(p: &str) -> RelPath {
    RelPath::new(p).unwrap()
}

fn id_of(text: &str) -> ContentId {
    ContentId::of(HashKind::Sha1, text.as_bytes())
}

/// `a=text b=text`
fn snapshot(list: &str) -> Snapshot {
    let mut edits: Vec<_> = list
        .split_whitespace()
        .map(|item| item.split_once('=').unwrap())
        .map(|(p, text)| {
            let signature = Signature { size: text.len() as u64, ..Signature::default() };
            let id = ContentId::of(HashKind::Sha1, text.as_bytes());
            (path(p), Some(Leaf { mode: Mode::File, id, signature }))
        })
        .collect();
    edits.sort_by(|a, b| a.0.cmp(&b.0));
    Snapshot::of(Dir::empty(HashKind::Sha1).edit(&edits).unwrap())
}

/// The contents of `list` that the changes name.
fn chunks(list: &str, changes: &[Change]) -> Vec<Chunk> {
    let mut put: HashSet<ContentId> = changes
        .iter()
        .filter_map(|c| if let ChangeKind::Put { id, .. } = c.kind { Some(id) } else { None })
        .collect();
    let texts = list.split_whitespace().map(|item| item.split_once('=').unwrap().1);
    texts
        .map(|text| (ContentId::of(HashKind::Sha1, text.as_bytes()), text))
        .filter(|(id, _)| put.remove(id))
        .flat_map(|(_, text)| pieces(text))
        .collect()
}

fn forget(ids: Vec<ContentId>) -> ToServer {
    ToServer::Forget(Forget { ids, nameless: false })
}

/// A content as it travels.
fn pieces(text: &str) -> Vec<Chunk> {
    let (id, size) = (id_of(text), text.len() as u64);
    let piece = |start: usize| {
        let bytes = &text.as_bytes()[start..text.len().min(start + CHUNK_BYTES)];
        Chunk::encode(id, size, start as u64, Bytes::copy_from_slice(bytes))
    };
    (0..text.len().max(1)).step_by(CHUNK_BYTES).map(piece).collect()
}

fn session(hold_drift: bool) -> NewSession {
    NewSession {
        workspace: "w".into(),
        owner_id: "ann".into(),
        owner_text: "ann's laptop".into(),
        takeover: false,
        hash_kind: HashKind::Sha1,
        head: None,
        branch: None,
        commits: Vec::new(),
        remotes: Vec::new(),
        hold_drift,
    }
}

/// With a client that has said nothing yet.
fn silent(root: &Path) -> Conversation {
    let options =
        Options { root: root.to_owned(), adopt: false, workspaces: Arc::default(), software: "test".into() };
    let watch = Watch { drift_scan: Duration::from_millis(1) };
    Conversation::new(Arc::new(options), watch, Arc::new(|| {}))
}

fn greeted(root: &Path) -> Conversation {
    let mut talk = silent(root);
    let hello = Hello { protocol: PROTOCOL, required: vec![], optional: vec![], software: "test".into() };
    let next = talk.handle(ToServer::Hello(hello));
    assert!(matches!(next.replies[..], [ToClient::Welcome(_)]));
    talk
}

#[test]
fn a_client_of_another_version_is_refused_with_both_numbers() {
    let root = TempDir::new().unwrap();
    let mut talk = silent(root.path());
    let protocol = PROTOCOL + 98;
    let hello = Hello { protocol, required: vec![], optional: vec![], software: "test".into() };
    let next = talk.handle(ToServer::Hello(hello));
    assert!(next.end);
    let Refusal { code, messages, .. } = refused(&next);
    assert_eq!(*code, RefusalCode::Protocol);
    assert_eq!(*messages, [format!("the client speaks protocol {protocol}, this server {PROTOCOL}")]);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "nothing was made");
}

#[test]
fn nothing_is_answered_before_a_hello() {
    let root = TempDir::new().unwrap();
    let mut talk = silent(root.path());
    let next = talk.handle(ToServer::Ping { nonce: 1 });
    assert!(next.end);
    assert_eq!(refused(&next).code, RefusalCode::Protocol);
}

fn refused(next: &Next) -> &Refusal {
    match &next.replies[..] {
        [ToClient::Refusal(refusal)] => refusal,
        other => panic!("expected a refusal, not {other:?}"),
    }
}

impl Lab {
    fn open(root: TempDir, hold: bool) -> Self {
        let mut talk = greeted(root.path());
        let next = talk.handle(ToServer::NewSession(session(hold)));
        assert!(matches!(next.replies[..], [ToClient::Session(_)]), "{next:?}");
        Self { root, talk, held: Snapshot::empty(HashKind::Sha1), generation: 0 }
    }

    fn with(list: &str) -> Self {
        let mut lab = Self::open(TempDir::new().unwrap(), false);
        let ack = lab.send(list);
        assert_eq!((ack.id, ack.refused), (lab.held.id(), vec![]));
        lab
    }

    fn at(&self, p: &str) -> PathBuf {
        self.root.path().join("w").join(p)
    }

    /// A patch diff in one message.
    fn message(&mut self, list: &str) -> ToServer {
        let next = snapshot(list);
        self.generation += 1;
        let kind = PatchKind::Diff { parent: self.held.id() };
        let header = PatchHeader { kind, next: next.id(), generation: self.generation };
        let changes = patch::between(&self.held, &next);
        let contents = chunks(list, &changes);
        let frame = Frame { changes, contents, changes_end: true, end: true };
        self.held = next;
        ToServer::Patch(header, frame)
    }

    fn send(&mut self, list: &str) -> Ack {
        let message = self.message(list);
        let mut replies = self.talk.handle(message).replies;
        // Of what goes in the background.
        replies.retain(|reply| !matches!(reply, ToClient::Taken { .. }));
        match &replies[..] {
            [ToClient::Ack(ack)] => ack.clone(),
            other => panic!("expected an ack, not {other:?}"),
        }
    }

    /// Files in the stage.
    fn staged(&self) -> usize {
        let stage = self.at(".git/gitsync/stage");
        let epochs = fs::read_dir(stage).unwrap();
        epochs.map(|epoch| fs::read_dir(epoch.unwrap().path()).unwrap().count()).sum()
    }

    /// Sweeps until one ends.
    fn idle(&mut self) -> Next {
        for _ in 0..1_000 {
            let next = self.talk.idle();
            let State::Open(opened) = &self.talk.state else { return next };
            if opened.workspace.is_swept() || !next.replies.is_empty() {
                return next;
            }
        }
        panic!("no end of sweeping");
    }
}

#[test]
fn drift_is_told_between_patches_and_never_within_one() {
    let mut lab = Lab::with("a=1 b=2");
    assert!(lab.idle().replies.is_empty());
    fs::write(lab.at("b"), "edited").unwrap();

    let ToServer::Patch(header, frame) = lab.message("a=2 b=2") else { panic!("a patch") };
    let whole = Frame { end: false, ..frame };
    assert!(lab.talk.due().is_some());
    lab.talk.handle(ToServer::Patch(header, whole));
    assert_eq!(lab.talk.due(), None);
    let next = lab.talk.handle(ToServer::Frame(Frame { end: true, ..Frame::default() }));
    assert!(matches!(next.replies[..], [ToClient::Ack(_)]), "{next:?}");

    let next = lab.idle();
    let [ToClient::Drift(drift)] = &next.replies[..] else { panic!("{next:?}") };
    let left = snapshot("a=2");
    assert_eq!(*drift, Drift { held: left.id(), paths: vec![path("b")], count: 1 });
    assert!(lab.idle().replies.is_empty());
    // The client sends it again, and the edit is kept.
    lab.held = left;
    let ack = lab.send("a=2 b=2");
    assert_eq!((ack.id, ack.kept), (lab.held.id(), vec![path("b")]));
}

#[test]
fn held_drift_is_refused_until_a_negotiation_says_otherwise() {
    let mut lab = Lab::with("a=1 b=1");
    lab.talk.handle(ToServer::NewSession(session(true)));
    fs::write(lab.at("a"), "edited").unwrap();
    let ack = lab.send("a=2 b=2");
    assert_eq!(ack.refused, [RefusedPath { path: path("a"), reason: "drift".to_owned(), held: None }]);
    assert_eq!((ack.id, ack.kept_count), (snapshot("b=2").id(), 0));
    assert_eq!(fs::read(lab.at("a")).unwrap(), b"edited");
    lab.talk.handle(ToServer::NewSession(session(false)));
    lab.held = snapshot("b=2");
    let ack = lab.send("a=2 b=2");
    assert_eq!((ack.refused, ack.kept), (vec![], vec![path("a")]));
}

/// The client of a whole patch need not know what was there before.
#[test]
fn a_refused_path_is_named_with_what_is_held_there() {
    let mut lab = Lab::with(".gitmodules=old a=1 d/x=1");
    fs::write(lab.at("d/theirs"), "keep").unwrap();
    let target = ContentId::of(HashKind::Sha1, b"a");
    let link =
        Leaf { mode: Mode::Symlink, id: target, signature: Signature { size: 1, ..Signature::default() } };
    let next = snapshot("a=2 d=2").with(vec![(path(".gitmodules"), Some(link))]).unwrap();
    let kind = PatchKind::Whole { base: PatchId::empty(HashKind::Sha1) };
    let changes = patch::between(&Snapshot::empty(HashKind::Sha1), &next);
    let header = PatchHeader { kind, next: next.id(), generation: 2 };
    let first = Frame { changes, changes_end: true, ..Frame::default() };
    let answer = lab.talk.handle(ToServer::Patch(header, first));
    let [ToClient::Wanted(wanted)] = &answer.replies[..] else { panic!("{answer:?}") };
    assert_eq!(wanted.extra, [path("d/x")]);
    let rest = Frame {
        changes: vec![Change { path: path("d/x"), kind: ChangeKind::Delete }],
        contents: [&b"a"[..], b"2"]
            .map(|text| Chunk::encode(ContentId::of(HashKind::Sha1, text), 1, 0, Bytes::from_static(text)))
            .into(),
        end: true,
        ..Frame::default()
    };
    let answer = lab.talk.handle(ToServer::Frame(rest));
    let [ToClient::Ack(ack)] = &answer.replies[..] else { panic!("{answer:?}") };
    let held: Vec<_> = ack
        .refused
        .iter()
        .map(|r| (r.path.to_string(), r.held.map(|leaf| (leaf.mode, leaf.id, leaf.signature.size))))
        .collect();
    let old = (Mode::File, ContentId::of(HashKind::Sha1, b"old"), 3);
    assert_eq!(held, [(".gitmodules".to_owned(), Some(old)), ("d".to_owned(), None)]);
    // All a client needs to know what is held.
    let edits = ack.refused.iter().map(|r| (r.path.clone(), r.held)).collect();
    assert_eq!(next.with(edits).unwrap().id(), ack.id);
}

#[test]
fn refused_paths_that_do_not_fit_into_an_ack_come_before_it() {
    let refused: Vec<RefusedPath> = (0..5_000)
        .map(|n| RefusedPath { path: path(&format!("{n:0200}")), reason: "why".into(), held: None })
        .collect();
    let id = PatchId::empty(HashKind::Sha1);
    let ack = Ack {
        generation: 7,
        id,
        written: 1,
        deleted: 0,
        apply_us: 1,
        refused: refused.clone(),
        kept: Vec::new(),
        kept_count: 0,
    };
    let parts = in_parts(ToClient::Ack(ack));
    let mut all = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        let paths = match part {
            ToClient::Refused { generation: 7, paths } if at + 1 < parts.len() => paths,
            ToClient::Ack(ack) if at + 1 == parts.len() => &ack.refused,
            other => panic!("{other:?} at {at}"),
        };
        let bytes: usize = paths.iter().map(|refused| refused.path.as_bytes().len()).sum();
        assert!(bytes < gitsync_core::wire::MESSAGE_BYTES / 2);
        all.extend(paths.clone());
    }
    assert_eq!(all, refused);
    assert!(parts.len() > 2);
}

/// An adoption that was cut short holds files that were there before anybody mirrored anything.
#[test]
fn a_comparison_during_an_adoption_deletes_nothing() {
    for adopting in [true, false] {
        let lab = Lab::with("a=1 b=2");
        let root = lab.root;
        lab.talk.leave();
        if adopting {
            fs::write(root.path().join("w/.git/gitsync/adopting"), "").unwrap();
        }
        let mut lab = Lab::open(root, false);
        let next = snapshot("a=1");
        let kind = PatchKind::Whole { base: PatchId::empty(HashKind::Sha1) };
        let changes = patch::between(&Snapshot::empty(HashKind::Sha1), &next);
        let first = Frame { changes, changes_end: true, ..Frame::default() };
        let header = PatchHeader { kind, next: next.id(), generation: 1 };
        let answer = lab.talk.handle(ToServer::Patch(header, first));
        let [ToClient::Wanted(wanted)] = &answer.replies[..] else { panic!("{answer:?}") };
        assert_eq!((&wanted.changes[..], &wanted.extra[..]), (&[][..], &[path("b")][..]));
        let delete = Change { path: path("b"), kind: ChangeKind::Delete };
        let rest = Frame { changes: vec![delete], end: true, ..Frame::default() };
        let answer = lab.talk.handle(ToServer::Frame(rest));
        let [ToClient::Ack(ack)] = &answer.replies[..] else { panic!("{answer:?}") };
        assert_eq!((ack.id, ack.deleted), (next.id(), u64::from(!adopting)));
        assert_eq!(lab.at("b").exists(), adopting);
    }
}

#[test]
fn a_session_ends_when_its_directory_goes() {
    let ping = |lab: &mut Lab| lab.talk.handle(ToServer::Ping { nonce: 1 });
    let patch = |lab: &mut Lab| {
        let message = lab.message("a=2");
        lab.talk.handle(message)
    };
    type Way<'a> = &'a dyn Fn(&mut Lab) -> Next;
    let ways: [(&str, Way<'_>); 3] = [("ping", &ping), ("patch", &patch), ("idle", &|lab| lab.talk.idle())];
    for (name, way) in ways {
        for renamed in [false, true] {
            let mut lab = Lab::with("a=1");
            let old = lab.root.path().join("old");
            match renamed {
                true => fs::rename(lab.at(""), &old).unwrap(),
                false => fs::remove_dir_all(lab.at("")).unwrap(),
            }
            let next = way(&mut lab);
            let refusal = refused(&next);
            assert!(next.end, "{name}");
            assert_eq!((refusal.code, refusal.generation), (RefusalCode::Workspace, 0), "{name}");
            let text = &refusal.messages[0];
            assert!(text.contains("the workspace directory is gone or was replaced"), "{name}: {text}");
            assert!(!lab.at("").exists(), "{name}: nothing is made anew");
            if renamed {
                assert_eq!(fs::read(old.join("a")).unwrap(), b"1", "{name}: nor written where it went");
            }
            lab.talk.leave();
        }
    }
}

#[test]
fn a_patch_that_does_not_fit_is_refused_before_it_comes() {
    let mut lab = Lab::with("a=1");
    // More than any disk has.
    let huge: Vec<Change> = (0..20_000)
        .map(|n: u32| {
            let id = ContentId::of(HashKind::Sha1, &n.to_le_bytes());
            Change {
                path: path(&format!("f{n:05}")),
                kind: ChangeKind::Put { mode: Mode::File, id, size: 64 << 30 },
            }
        })
        .collect();
    let next = PatchId::empty(HashKind::Sha1);
    for kind in
        [PatchKind::Diff { parent: lab.held.id() }, PatchKind::Whole { base: PatchId::empty(HashKind::Sha1) }]
    {
        lab.generation += 1;
        let header = PatchHeader { kind, next, generation: lab.generation };
        let whole = matches!(kind, PatchKind::Whole { .. });
        let frame = Frame { changes: huge.clone(), contents: vec![], changes_end: true, end: !whole };
        let next = lab.talk.handle(ToServer::Patch(header, frame));
        let refusal = refused(&next);
        assert_eq!((refusal.code, refusal.generation), (RefusalCode::DiskFull, lab.generation));
        assert!(refusal.messages[0].contains("it needs 1280000.0 GiB"), "{:?}", refusal.messages);
        assert!(!next.end);
    }
    // The session goes on.
    lab.talk.handle(ToServer::Ping { nonce: 1 });
    lab.send("a=1 b=2");
    // But not where contents would go on coming.
    let kind = PatchKind::Diff { parent: lab.held.id() };
    let header = PatchHeader { kind, next, generation: lab.generation + 1 };
    let frame = Frame { changes: huge, changes_end: true, ..Frame::default() };
    let next = lab.talk.handle(ToServer::Patch(header, frame));
    assert_eq!((refused(&next).code, next.end), (RefusalCode::DiskFull, true));
}

/// Over what is held: the changes to it, and no path is missed for not being named.
#[test]
fn a_patch_over_what_is_held_is_asked_for_its_contents() {
    let mut lab = Lab::with("a=1 b=2 c=3");
    let base = lab.held.id();
    let next = snapshot("a=2 c=4");
    let changes = patch::between(&lab.held, &next);
    let header = PatchHeader { kind: PatchKind::Whole { base }, next: next.id(), generation: 2 };
    let first = Frame { changes, changes_end: true, ..Frame::default() };
    let answer = lab.talk.handle(ToServer::Patch(header, first.clone()));
    let [ToClient::Wanted(wanted)] = &answer.replies[..] else { panic!("{answer:?}") };
    // The `2` is in `b`, which goes.
    assert_eq!((&wanted.changes[..], &wanted.extra[..], wanted.more), (&[2][..], &[][..], false));
    let content = Chunk::encode(ContentId::of(HashKind::Sha1, b"4"), 1, 0, Bytes::from_static(b"4"));
    let rest = Frame { contents: vec![content], end: true, ..Frame::default() };
    let answer = lab.talk.handle(ToServer::Frame(rest));
    let [ToClient::Ack(ack)] = &answer.replies[..] else { panic!("{answer:?}") };
    assert_eq!((ack.id, ack.written, ack.deleted), (next.id(), 2, 1));
    // It is held no more.
    let header = PatchHeader { generation: 3, ..header };
    let answer = lab.talk.handle(ToServer::Patch(header, first));
    assert_eq!(refused(&answer).code, RefusalCode::BaseUnknown);
}

#[test]
fn what_a_patch_needs_is_what_will_be_staged() {
    let lab = Lab::with("a=1 b=22");
    let State::Open(opened) = &lab.talk.state else { panic!("open") };
    let next = snapshot("a=1 b=4444 c=22 d=4444");
    let incoming = Incoming {
        header: PatchHeader {
            kind: PatchKind::Diff { parent: lab.held.id() },
            next: next.id(),
            generation: 9,
        },
        changes: patch::whole(&next),
        removals: Vec::new(),
        changes_end: true,
        extra: HashSet::new(),
        offered: HashSet::new(),
        intake: Intake::default(),
        flaw: None,
    };
    assert_eq!(incoming.need(&opened.workspace, None), 4 + 2);
    let missing = [ContentId::of(HashKind::Sha1, b"4444")];
    assert_eq!(incoming.need(&opened.workspace, Some(&missing)), 4);
    assert_eq!(incoming.need(&opened.workspace, Some(&[])), 0);
}

fn list(root: &Path, workspace: &str, owner: &str) -> (Conversation, Next) {
    let mut talk = greeted(root);
    let next = talk.handle(ToServer::ListKept { workspace: workspace.into(), owner_id: owner.into() });
    (talk, next)
}

#[test]
fn kept_files_are_listed_and_sent_beside_a_session() {
    let mut lab = Lab::with("a=1 b=1");
    let big: Vec<u8> = (0..600_000_u32).map(|n| n as u8).collect();
    fs::write(lab.at("a"), &big).unwrap();
    lab.send("a=2 b=1");

    let (mut talk, next) = list(lab.root.path(), "w", "ann");
    let [ToClient::Kept { files, more: false }] = &next.replies[..] else { panic!("{next:?}") };
    assert_eq!((files.len(), &files[0].path, files[0].size), (1, &path("a"), 600_000));
    assert!(talk.handle(ToServer::FetchKept { id: files[0].id.clone() }).replies.is_empty());
    let (mut bytes, mut ended) = (Vec::new(), false);
    while let Some(message) = talk.piece() {
        let ToClient::KeptContent { offset, data, end } = message else { panic!("{message:?}") };
        assert!(!ended && offset == bytes.len() as u64 && data.len() <= CHUNK_BYTES);
        bytes.extend_from_slice(&data);
        ended = end;
    }
    assert!(ended && bytes == big);
    let next = talk.handle(ToServer::FetchKept { id: "../manifest".into() });
    assert_eq!((refused(&next).code, next.end), (RefusalCode::Workspace, false));
    // The session is undisturbed.
    lab.send("a=3 b=1");
}

#[test]
fn a_workspace_that_is_not_there_and_one_that_is_anothers_get_one_answer() {
    let lab = Lab::with("a=1");
    let answers: Vec<Refusal> = [("w", "bob"), ("none", "ann"), ("../w", "ann"), ("w", "")]
        .into_iter()
        .map(|(workspace, owner)| {
            let (_, next) = list(lab.root.path(), workspace, owner);
            assert!(next.end);
            refused(&next).clone()
        })
        .collect();
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
    assert!(!lab.root.path().join("none").exists());
}

#[test]
fn kept_files_are_no_matter_for_a_session_nor_for_a_stranger() {
    let mut lab = Lab::with("a=1");
    let next = lab.talk.handle(ToServer::ListKept { workspace: "w".into(), owner_id: "ann".into() });
    assert_eq!(refused(&next).code, RefusalCode::Protocol);
    let mut talk = greeted(lab.root.path());
    let next = talk.handle(ToServer::FetchKept { id: "x".into() });
    assert_eq!((refused(&next).code, next.end), (RefusalCode::Protocol, true));
    let (mut talk, _) = list(lab.root.path(), "w", "ann");
    let next = talk.handle(ToServer::NewSession(session(false)));
    assert_eq!((refused(&next).code, next.end), (RefusalCode::Protocol, true));
}

#[test]
fn lists_come_in_pages() {
    let entry = |n: usize, len: usize| KeptEntry {
        id: n.to_string(),
        path: path("x/".repeat(len / 2).trim_end_matches('/')),
        mode: Mode::File,
        size: 0,
        kept_at: 0,
    };
    for (count, len, pages) in
        [(0, 2, 1), (500, 2, 1), (501, 2, 2), (1200, 2, 3), (1000, 250, 2), (1300, 250, 3)]
    {
        let replies = kept_pages((0..count).map(|n| entry(n, len)).collect());
        let mut ids = Vec::new();
        for (i, reply) in replies.iter().enumerate() {
            let ToClient::Kept { files, more } = reply else { panic!("{reply:?}") };
            assert_eq!(*more, i + 1 < replies.len());
            assert!(files.len() <= KEPT_FILES);
            assert!(files.iter().map(|f| f.path.as_bytes().len()).sum::<usize>() <= KEPT_BYTES);
            ids.extend(files.iter().map(|f| f.id.parse::<usize>().unwrap()));
        }
        assert_eq!(replies.len(), pages, "{count} of {len}");
        assert!(ids.into_iter().eq(0..count));
    }
}
