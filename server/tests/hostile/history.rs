//! H118 to H130: what a client can do by way of its commits. Packs are made by git, or by hand where git refuses to.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gitsync_core::model::{ContentId, HashKind};
use gitsync_core::wire::proto::{
    self, NotLandedReason as Reason, RefusalCode, client_message, server_message,
};
use tempfile::TempDir;

use crate::cases;
use crate::client::{Session, file, link, release};
use crate::lab::Lab;

cases! {
    h118_names_of_refs,
    h119_names_that_lead_out,
    h120_what_is_no_pack,
    h121_trees_git_would_not_check_out,
    h122_trees_that_unfold_without_end,
    h123_deltas_that_unfold_without_end,
    h124_pieces_nobody_asked_for,
    h125_boundaries_that_name_nothing,
    h126_objects_that_are_missing,
    h127_tags_that_name_nothing,
    h128_settings_and_marks,
    h129_submodules_behind_a_link,
    h130_killed_while_a_pack_comes,
    h130_killed_before_the_index_is_locked,
    h130_killed_while_refs_change,
}

const PATIENCE: Duration = Duration::from_secs(30);

/// Mode, name and id of what is in a tree.
type Entries<'a> = Vec<(&'a str, &'a [u8], &'a str)>;

/// A repository to make packs from.
struct Source {
    dir: TempDir,
}

impl Source {
    fn new() -> Self {
        let source = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        source.git(&["init", "-q", "-b", "main"], b"");
        source
    }

    fn run(&self, args: &[&str], input: &[u8]) -> std::process::Output {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=A", "-c", "user.email=a@example.net"])
            .args(args)
            .current_dir(self.dir.path());
        git.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
        git.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = git.spawn().expect("git is installed");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        let input = input.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().expect("git ends");
        writer.join().expect("no panic").expect("git reads its input");
        output
    }

    #[track_caller]
    fn git(&self, args: &[&str], input: &[u8]) -> Vec<u8> {
        let output = self.run(args, input);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn text(&self, args: &[&str], input: &[u8]) -> String {
        String::from_utf8(self.git(args, input)).expect("ids are text").trim().to_owned()
    }

    fn blob(&self, bytes: &[u8]) -> String {
        self.text(&["hash-object", "-w", "--stdin"], bytes)
    }

    /// A tree of these modes, names and ids, sound or not.
    fn tree(&self, entries: &[(&str, &[u8], &str)]) -> String {
        let mut body = Vec::new();
        for (mode, name, id) in entries {
            body.extend_from_slice(mode.as_bytes());
            body.push(b' ');
            body.extend_from_slice(name);
            body.push(0);
            body.extend(raw(id));
        }
        self.text(&["hash-object", "-w", "-t", "tree", "--literally", "--stdin"], &body)
    }

    fn commit(&self, tree: &str) -> String {
        let text = format!("tree {tree}\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\nx\n");
        self.text(&["hash-object", "-w", "-t", "commit", "--literally", "--stdin"], text.as_bytes())
    }

    /// A commit of some files.
    fn files(&self, files: &[(&str, &str)]) -> String {
        let entries: Vec<(&str, String)> =
            files.iter().map(|(name, text)| (*name, self.blob(text.as_bytes()))).collect();
        let entries: Vec<_> =
            entries.iter().map(|(name, id)| ("100644", name.as_bytes(), id.as_str())).collect();
        self.commit(&self.tree(&entries))
    }

    /// A pack of exactly these objects.
    fn pack(&self, ids: &[&str]) -> Vec<u8> {
        self.git(&["pack-objects", "--stdout", "-q"], ids.join("\n").as_bytes())
    }

    /// Everything a commit leads to.
    fn pack_of(&self, commit: &str) -> Vec<u8> {
        self.git(&["pack-objects", "--revs", "--stdout", "-q"], commit.as_bytes())
    }
}

fn raw(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hexadecimal")).collect()
}

fn id(hex: &str) -> Bytes {
    raw(hex).into()
}

fn step(number: u64, head: &str) -> proto::Baseline {
    proto::Baseline { number, head: id(head), branch: "main".into(), ..proto::Baseline::default() }
}

/// What came of a step.
#[derive(Debug)]
enum Outcome {
    Landed,
    NotLanded(Reason),
    /// The stream ended.
    Broken(RefusalCode),
}

fn begin(session: &Session, step: proto::Baseline) {
    session.say(client_message::Kind::Baseline(step));
}

fn piece(session: &Session, number: u64, data: &[u8], end: bool) {
    let data = Bytes::copy_from_slice(data);
    session.say(client_message::Kind::PackPiece(proto::PackPiece { number, data, end }));
}

fn outcome(session: &mut Session) -> Outcome {
    match session.receive() {
        Some(server_message::Kind::Landed(_)) => Outcome::Landed,
        Some(server_message::Kind::NotLanded(not)) => {
            assert!(!not.messages.is_empty(), "a reason for people");
            Outcome::NotLanded(not.reason())
        }
        Some(server_message::Kind::Refusal(refusal)) => {
            let code = refusal.code();
            assert!(session.receive().is_none(), "a refusal without a patch ends the stream");
            Outcome::Broken(code)
        }
        other => panic!("an answer to something else: {other:?}"),
    }
}

fn send(session: &mut Session, step: proto::Baseline, pack: Option<&[u8]>) -> Outcome {
    let number = step.number;
    begin(session, proto::Baseline { pack: pack.is_some(), ..step });
    if let Some(pack) = pack {
        for data in pack.chunks(200 << 10) {
            piece(session, number, data, false);
        }
        piece(session, number, b"", true);
    }
    outcome(session)
}

#[track_caller]
fn assert_not(outcome: Outcome, reasons: &[Reason], what: &str) {
    assert!(
        matches!(outcome, Outcome::NotLanded(reason) if reasons.contains(&reason)),
        "{what}: {outcome:?}"
    );
}

/// A step git would take, to show that the session still works.
#[track_caller]
fn lands(session: &mut Session, number: u64, source: &Source) -> String {
    let commit = source.files(&[("honest", "as ever")]);
    let landed = send(session, step(number, &commit), Some(&source.pack_of(&commit)));
    assert!(matches!(landed, Outcome::Landed), "{landed:?}");
    commit
}

fn h118_names_of_refs() {
    let lab = Lab::new();
    let source = Source::new();
    let commit = source.files(&[("a", "1")]);
    let long = "x".repeat(300);
    let refused = [
        "a..b", "a b", "a~1", "a^", "a:b", "a?", "a*", "a[b", "a\\b", "a@{b", "a\nb", "a\u{7f}b", "a.lock",
        "a/.b", ".a", "a.", "/a", "a/", "a//b", "-a",
    ];
    for name in refused.iter().copied().chain(["HEAD", "refs/heads/a", &long]) {
        for tag in [false, true] {
            let mut session = lab.historian();
            let mut step = step(1, &commit);
            match tag {
                true => step.tags = vec![proto::Tag { name: name.to_owned().into(), target: id(&commit) }],
                false => step.branch = name.to_owned().into(),
            }
            match send(&mut session, step, Some(&source.pack_of(&commit))) {
                Outcome::Broken(RefusalCode::Protocol) | Outcome::NotLanded(Reason::Invalid) => {}
                other => panic!("{name:?}: {other:?}"),
            }
            drop(session);
            lab.assert_untouched();
        }
    }
    lab.check();
}

fn h119_names_that_lead_out() {
    let lab = Lab::new();
    let source = Source::new();
    let commit = source.files(&[("a", "1")]);
    let names = [
        "..",
        "../../config",
        "../../../../outside/file",
        "a/../../../config",
        "./../tags/x",
        "../tags/x",
        "../gitsync/x",
        "main/../../../hooks/post-checkout",
        "\0",
        "x\0y",
    ];
    for name in names {
        for tag in [false, true] {
            let mut session = lab.historian();
            let mut step = step(1, &commit);
            match tag {
                true => step.tags = vec![proto::Tag { name: name.into(), target: id(&commit) }],
                false => step.branch = name.into(),
            }
            let out = send(&mut session, step, Some(&source.pack_of(&commit)));
            assert!(matches!(out, Outcome::Broken(RefusalCode::Protocol)), "{name:?}: {out:?}");
            drop(session);
            lab.assert_untouched();
        }
    }
    lab.check();
}

fn h120_what_is_no_pack() {
    let lab = Lab::new();
    let source = Source::new();
    let commit = source.files(&[("a", "1")]);
    let pack = source.pack_of(&commit);
    let (half, mut flipped) = (pack[..pack.len() / 2].to_vec(), pack.clone());
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x40;
    let end = flipped.len() - 1;
    let mut wrong_sum = pack.clone();
    wrong_sum[end] ^= 1;
    let countless = [b"PACK\0\0\0\x02\xff\xff\xff\xff".as_slice(), &pack[12..]].concat();
    let few = [b"PACK\0\0\0\x02\0\0\0\x01".as_slice(), &pack[12..]].concat();
    let many = [b"PACK\0\0\0\x02\x02\0\0\0".as_slice(), &pack[12..]].concat();
    let version = [b"PACK\0\0\0\x09".as_slice(), &pack[8..]].concat();
    let nothing: &[u8] = b"";
    let packs = [
        nothing,
        b"PACK",
        b"GET / HTTP/1.1\r\n\r\n",
        &half,
        &flipped,
        &wrong_sum,
        &countless,
        &few,
        &many,
        &version,
    ];
    let mut session = lab.historian();
    for (n, pack) in packs.into_iter().enumerate() {
        let out = send(&mut session, step(n as u64 + 1, &commit), Some(pack));
        assert_not(out, &[Reason::Invalid], &format!("pack {n}"));
        lab.assert_untouched();
    }
    drop(session);
    lab.check();
}

fn h121_trees_git_would_not_check_out() {
    let lab = Lab::new();
    let source = Source::new();
    let blob = source.blob(b"evil");
    let inner = source.tree(&[("100644", b"config", &blob)]);
    let modules = |text: &str| source.blob(text.as_bytes());
    let url = modules("[submodule \"x\"]\n\tpath = x\n\turl = --upload-pack=touch\n");
    let name = modules("[submodule \"../../x\"]\n\tpath = x\n\turl = https://example.net/x\n");
    let path = modules("[submodule \"x\"]\n\tpath = -x\n\turl = https://example.net/x\n");
    let update = modules("[submodule \"x\"]\n\tpath = x\n\turl = https://example.net/x\n\tupdate = !touch\n");
    let trees: Vec<(&str, Entries<'_>)> = vec![
        (".git", vec![("40000", b".git", &inner)]),
        (".git, a file", vec![("100644", b".git", &blob)]),
        (".GIT", vec![("40000", b".GIT", &inner)]),
        ("git~1", vec![("40000", b"git~1", &inner)]),
        (".git with an invisible character", vec![("40000", b".g\xe2\x80\x8cit", &inner)]),
        ("..", vec![("40000", b"..", &inner)]),
        (".", vec![("40000", b".", &inner)]),
        ("a slash", vec![("100644", b"../../../outside/file", &blob)]),
        ("no name", vec![("100644", b"", &blob)]),
        ("twice", vec![("100644", b"a", &blob), ("100644", b"a", &blob)]),
        ("file and directory", vec![("100644", b"a", &blob), ("40000", b"a", &inner)]),
        ("out of order", vec![("100644", b"b", &blob), ("100644", b"a", &blob)]),
        (".gitmodules that is a link", vec![("120000", b".gitmodules", &blob)]),
        (".gitmodules with an option for a url", vec![("100644", b".gitmodules", &url)]),
        (".gitmodules with a name that leads out", vec![("100644", b".gitmodules", &name)]),
        (".gitmodules with an option for a path", vec![("100644", b".gitmodules", &path)]),
        (".gitmodules with a command", vec![("100644", b".gitmodules", &update)]),
    ];
    let mut session = lab.historian();
    let mut number = 0;
    for (what, entries) in &trees {
        for deep in [false, true] {
            number += 1;
            let evil = source.tree(entries);
            let top = if deep { source.tree(&[("40000", b"deep", &evil)]) } else { evil.clone() };
            let commit = source.commit(&top);
            let ids: Vec<&str> =
                entries.iter().map(|(_, _, id)| *id).chain([&*evil, &top, &commit, &blob, &inner]).collect();
            // A file of another directory is not git's business.
            if deep && what.starts_with(".gitmodules with") {
                continue;
            }
            let out = send(&mut session, step(number, &commit), Some(&source.pack(&ids)));
            assert_not(out, &[Reason::Invalid], what);
            lab.assert_untouched();
        }
    }
    drop(session);
    lab.check();
}

fn h122_trees_that_unfold_without_end() {
    let lab = Lab::new();
    let source = Source::new();
    let blob = source.blob(b"x");
    let names: Vec<String> = (0..40).map(|n| format!("{n:02}")).collect();
    let empty = source.tree(&[]);
    let leaves: Vec<_> = names.iter().map(|name| ("100644", name.as_bytes(), blob.as_str())).collect();
    for (what, bottom) in [("files", source.tree(&leaves)), ("directories", empty)] {
        let mut ids = vec![blob.clone(), bottom.clone()];
        let mut top = bottom;
        for _ in 0..20 {
            let entries: Vec<_> = names.iter().map(|name| ("40000", name.as_bytes(), top.as_str())).collect();
            top = source.tree(&entries);
            ids.push(top.clone());
        }
        let commit = source.commit(&top);
        ids.push(commit.clone());
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let mut session = lab.historian();
        let out = send(&mut session, step(1, &commit), Some(&source.pack(&ids)));
        assert_not(out, &[Reason::Invalid], what);
        lab.assert_untouched();
    }
    // As deep as a tree can be.
    let mut top = source.tree(&leaves);
    let mut ids = vec![blob.clone(), top.clone()];
    for _ in 0..3000 {
        let body = [b"40000 d\0".as_slice(), &raw(&top)].concat();
        top = tree_id(&body);
        fs::write(source.dir.path().join(format!("t{}", ids.len())), body).expect("a new file");
        ids.push(top.clone());
    }
    let files: Vec<String> = (2..ids.len()).map(|n| format!("t{n}")).collect();
    source.git(
        &["hash-object", "-w", "-t", "tree", "--literally", "--stdin-paths"],
        files.join("\n").as_bytes(),
    );
    let commit = source.commit(&top);
    ids.push(commit.clone());
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let mut session = lab.historian();
    let out = send(&mut session, step(1, &commit), Some(&source.pack(&ids)));
    // Git itself goes no deeper than its own limit.
    assert_not(out, &[Reason::Invalid, Reason::ObjectsMissing], "deep");
    drop(session);
    lab.check();
}

fn tree_id(body: &[u8]) -> String {
    let mut hasher = gix::hash::hasher(HashKind::Sha1);
    hasher.update(format!("tree {}\0", body.len()).as_bytes());
    hasher.update(body);
    hasher.try_finalize().expect("no collision").to_string()
}

/// A zlib stream that does not compress.
fn stored(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("one block");
    let (mut a, mut b) = (1_u32, 0_u32);
    for byte in bytes {
        a = (a + u32::from(*byte)) % 65_521;
        b = (b + a) % 65_521;
    }
    let sum = (b << 16 | a).to_be_bytes();
    [&[0x78, 0x01, 0x01], &length.to_le_bytes()[..], &(!length).to_le_bytes(), bytes, &sum].concat()
}

/// Seven bits at a time, the lowest first.
fn varint(mut n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let more = if n > 0x7f { 0x80 } else { 0 };
        bytes.push((n & 0x7f) as u8 | more);
        n >>= 7;
        if more == 0 {
            return bytes;
        }
    }
}

/// Kind and length of a pack's entry.
fn entry(kind: u8, mut size: u64) -> Vec<u8> {
    let mut bytes = vec![kind << 4 | (size & 0x0f) as u8];
    size >>= 4;
    if size > 0 {
        bytes[0] |= 0x80;
        bytes.extend(varint(size));
    }
    bytes
}

fn h123_deltas_that_unfold_without_end() {
    let lab = Lab::new();
    let source = Source::new();
    let base = vec![b'x'; 60_000];
    let base_id = ContentId::of(HashKind::Sha1, &base);
    let mut session = lab.historian();
    for (n, claimed) in [(1, 1_u64 << 40), (2, u64::MAX >> 1), (3, 3 << 30)] {
        // Copies the whole base again and again.
        let copy = [0x80 | 0x10 | 0x20, 0x60, 0xea];
        let delta = [varint(base.len() as u64), varint(claimed), copy.repeat(15_000)].concat();
        let mut pack = b"PACK\0\0\0\x02\0\0\0\x02".to_vec();
        pack.extend(entry(3, base.len() as u64));
        pack.extend(stored(&base));
        pack.extend(entry(7, delta.len() as u64));
        pack.extend(base_id.as_bytes());
        pack.extend(stored(&delta));
        let mut hasher = gix::hash::hasher(HashKind::Sha1);
        hasher.update(&pack);
        pack.extend(hasher.try_finalize().expect("no collision").as_bytes());
        let commit = source.files(&[("a", "1")]);
        let out = send(&mut session, step(n, &commit), Some(&pack));
        assert_not(out, &[Reason::Invalid], "a delta");
        lab.assert_untouched();
    }
    drop(session);
    lab.check();
}

fn h124_pieces_nobody_asked_for() {
    let mut lab = Lab::new();
    let source = Source::new();
    let commit = source.files(&[("a", "1")]);
    let pack = source.pack_of(&commit);
    let mut session = lab.historian();
    piece(&session, 1, &pack, true);
    assert!(matches!(outcome(&mut session), Outcome::Broken(RefusalCode::Protocol)));
    // A client that did not say it knows of history.
    let mut session = lab.session();
    begin(&session, step(1, &commit));
    assert!(matches!(outcome(&mut session), Outcome::Broken(RefusalCode::Protocol)));
    let mut session = lab.historian();
    begin(&session, proto::Baseline { pack: true, ..step(5, &commit) });
    begin(&session, step(5, &commit));
    assert!(matches!(outcome(&mut session), Outcome::Broken(RefusalCode::Protocol)));
    let mut session = lab.historian();
    piece(&session, 1, &vec![0; 300 << 10], false);
    assert!(matches!(outcome(&mut session), Outcome::Broken(RefusalCode::Protocol)));
    lab.check();
    // Two at once: the later one counts. Then pieces of what is over.
    let mut session = lab.historian();
    begin(&session, proto::Baseline { pack: true, ..step(1, &commit) });
    piece(&session, 1, &pack[..20], false);
    let honest = lands(&mut session, 2, &source);
    for _ in 0..100 {
        piece(&session, 1, &pack, true);
        piece(&session, 2, &pack, true);
        session.say(client_message::Kind::StopBaseline(proto::StopBaseline { number: 2 }));
        session.say(client_message::Kind::StopBaseline(proto::StopBaseline { number: 77 }));
    }
    session.whole(&[file("a", "an edit")], release).acked();
    assert_eq!(head(&lab), honest);
    lab.assert_contained();
    drop(session);
    lab.mark();
    lab.check();
}

fn head(lab: &Lab) -> String {
    let git = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(lab.path("")).output();
    String::from_utf8(git.expect("git is installed").stdout).expect("ids are text").trim().to_owned()
}

fn h125_boundaries_that_name_nothing() {
    let lab = Lab::new();
    let source = Source::new();
    let commit = source.files(&[("a", "1")]);
    let pack = source.pack_of(&commit);
    let tree = source.text(&["rev-parse", &format!("{commit}^{{tree}}")], b"");
    let mut session = lab.historian();
    for (n, names) in
        [vec!["77".repeat(20)], vec![tree], vec!["00".repeat(20)], vec![commit.clone(), "88".repeat(20)]]
            .into_iter()
            .enumerate()
    {
        let shallow = names.iter().map(|name| id(name)).collect();
        let step = proto::Baseline { shallow, ..step(n as u64 + 1, &commit) };
        let out = send(&mut session, step, Some(&pack));
        assert_not(out, &[Reason::Invalid, Reason::ObjectsMissing], &format!("{names:?}"));
        lab.assert_untouched();
    }
    // Another format's.
    let step = proto::Baseline { shallow: vec![id(&"77".repeat(32))], ..step(9, &commit) };
    assert_not(send(&mut session, step, Some(&pack)), &[Reason::Invalid], "another format");
    // More than a boundary may have.
    let shallow = (0..10_001_u32).map(|n| [&n.to_be_bytes()[..], &[1; 16]].concat().into()).collect();
    begin(&session, proto::Baseline { number: 10, shallow, ..step_of(&commit) });
    assert!(matches!(outcome(&mut session), Outcome::Broken(RefusalCode::Protocol)));
    lab.check();
}

fn step_of(commit: &str) -> proto::Baseline {
    step(10, commit)
}

fn h126_objects_that_are_missing() {
    let lab = Lab::new();
    let source = Source::new();
    let blob = source.blob(b"there");
    let gone = source.blob(b"not there");
    let tree = source.tree(&[("100644", b"a", &blob), ("100644", b"b", &gone)]);
    let commit = source.commit(&tree);
    let parent = source.files(&[("a", "1")]);
    let text =
        format!("tree {tree}\nparent {parent}\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\nx\n");
    let child = source.text(&["hash-object", "-w", "-t", "commit", "--stdin"], text.as_bytes());
    let mut session = lab.historian();
    let cases: [(&str, &str, Option<Vec<u8>>); 6] = [
        ("a content", &commit, Some(source.pack(&[&commit, &tree, &blob]))),
        ("a tree", &commit, Some(source.pack(&[&commit, &blob, &gone]))),
        ("the commit", &commit, Some(source.pack(&[&blob, &tree, &gone]))),
        ("a parent", &child, Some(source.pack(&[&child, &tree, &blob, &gone]))),
        ("everything", &commit, Some(source.pack(&[]))),
        ("everything, and no pack", &commit, None),
    ];
    for (n, (what, head, pack)) in cases.into_iter().enumerate() {
        let out = send(&mut session, step(n as u64 + 1, head), pack.as_deref());
        assert_not(out, &[Reason::ObjectsMissing], what);
        lab.assert_untouched();
    }
    // What is no commit.
    for (n, head) in [&tree, &blob].into_iter().enumerate() {
        let pack = source.pack(&[&commit, &tree, &blob, &gone]);
        let out = send(&mut session, step(n as u64 + 20, head), Some(&pack));
        assert_not(out, &[Reason::Invalid], "not a commit");
        lab.assert_untouched();
    }
    let out = send(&mut session, step(30, &"00".repeat(20)), None);
    assert!(
        matches!(out, Outcome::NotLanded(Reason::Invalid) | Outcome::Broken(RefusalCode::Protocol)),
        "{out:?}"
    );
    lab.check();
}

fn h127_tags_that_name_nothing() {
    let lab = Lab::new();
    let source = Source::new();
    let commit = source.files(&[("a", "1")]);
    let tag = |target: &str| proto::Tag { name: "v1".into(), target: id(target) };
    let mut session = lab.historian();
    let gone = source.files(&[("b", "2")]);
    let text = format!("object {gone}\ntype commit\ntag v1\ntagger A <a@b> 1 +0000\n\nx\n");
    let object = source.text(&["hash-object", "-w", "-t", "tag", "--stdin"], text.as_bytes());
    let here = source.text(&["rev-list", "--objects", "--no-object-names", &commit], b"");
    let with_tag: Vec<&str> = here.lines().chain([&*object]).collect();
    for (n, (target, pack)) in [
        ("77".repeat(20), source.pack_of(&commit)),
        (gone, source.pack_of(&commit)),
        // The tag itself, but not what it names.
        (object.clone(), source.pack(&with_tag)),
    ]
    .into_iter()
    .enumerate()
    {
        let step = proto::Baseline { tags: vec![tag(&target)], ..step(n as u64 + 1, &commit) };
        assert_not(send(&mut session, step, Some(&pack)), &[Reason::ObjectsMissing], &target);
        lab.assert_untouched();
    }
    drop(session);
    lab.check();
}

fn h128_settings_and_marks() {
    let lab = Lab::new();
    let source = Source::new();
    let commit = source.files(&[("a", "1")]);
    let set = |key: &str, value: &str| proto::Baseline {
        settings: vec![proto::Setting { key: key.into(), value: value.into() }],
        ..step(1, &commit)
    };
    let mark =
        |path: &str| proto::Baseline { skip_worktree: vec![path.to_owned().into()], ..step(1, &commit) };
    let steps = [
        set("core.hooksPath", "evil"),
        set("core.fsmonitor", "evil"),
        set("core.sshCommand", "evil"),
        set("core.eol", "lf\n[alias]\n\tst = !evil"),
        set("core.eol", "lf #"),
        set("core.eol", "\"lf\""),
        set("include.path", "x"),
        mark("../outside/file"),
        mark("/etc/passwd"),
        mark(".git/config"),
        mark("a\0b"),
    ];
    for step in steps {
        let mut session = lab.historian();
        let what = format!("{:?} {:?}", step.settings, step.skip_worktree);
        let out = send(&mut session, step, Some(&source.pack_of(&commit)));
        assert!(matches!(out, Outcome::Broken(RefusalCode::Protocol)), "{what}: {out:?}");
        lab.assert_untouched();
    }
    lab.check();
}

fn h129_submodules_behind_a_link() {
    let mut lab = Lab::new();
    let source = Source::new();
    let module = source.files(&[("a", "1")]);
    let below = source.tree(&[("160000", b"made", &module), ("160000", b"sub", &module)]);
    let blob = source.blob(b"x");
    let tree = source.tree(&[
        ("40000", b"d", &below),
        ("160000", b"f", &module),
        ("160000", b"l", &module),
        ("100644", b"x", &blob),
    ]);
    let commit = source.commit(&tree);
    let mut session = lab.historian();
    session.takes(&[link("d", "../../outside/dir"), file("f", "a file"), link("l", "../../outside/nowhere")]);
    let landed = send(&mut session, step(1, &commit), Some(&source.pack_of(&commit)));
    assert!(matches!(landed, Outcome::Landed), "{landed:?}");
    lab.assert_contained();
    assert!(!lab.outside("dir/made").exists());
    assert_eq!(fs::read(lab.path("f")).expect("a file"), b"a file");
    // Where nothing is in the way, there is a directory.
    session.whole(&[file("x", "x")], release).acked();
    fs::remove_file(lab.path("l")).expect("the link is there");
    let twin = source.commit(&tree.clone());
    let landed = send(&mut session, step(2, &twin), None);
    assert!(matches!(landed, Outcome::Landed), "{landed:?}");
    drop(session);
    lab.mark();
    lab.check();
}

/// Files in the workspace's `.git` that should not outlive what made them.
fn left_over(lab: &Lab) -> Vec<PathBuf> {
    fn look(at: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(at).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() {
                look(&path, found);
            }
            let half = name.as_bytes().ends_with(b".lock")
                || name.as_bytes().starts_with(b"tmp_")
                || name == "packed-refs.new";
            let ours =
                at.ends_with("gitsync/history") && name != OsStr::new("turn") && name != OsStr::new("landed");
            if half || ours {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    look(&lab.path(".git"), &mut found);
    found
}

#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// After a kill: the next session clears up, lands, and git finds nothing wrong.
fn heals(mut lab: Lab, source: &Source) {
    lab.kill();
    let mut session = lab.historian();
    assert_eq!(left_over(&lab), Vec::<PathBuf>::new());
    let commit = lands(&mut session, 1, source);
    assert_eq!(head(&lab), commit);
    assert_eq!(left_over(&lab), Vec::<PathBuf>::new());
    let fsck = Command::new("git").arg("fsck").current_dir(lab.path("")).output().expect("git is installed");
    assert!(fsck.status.success(), "{fsck:?}");
    lab.assert_contained();
    drop(session);
    lab.mark();
    lab.check();
}

fn h130_killed_while_a_pack_comes() {
    let lab = Lab::with_umask("022");
    let source = Source::new();
    let commit = source.files(&[("a", &"0123456789".repeat(10_000))]);
    let pack = source.pack_of(&commit);
    let session = lab.historian();
    begin(&session, proto::Baseline { pack: true, ..step(1, &commit) });
    piece(&session, 1, &pack[..pack.len() / 2], false);
    until("the pack is half here", || {
        left_over(&lab).iter().any(|path| path.to_string_lossy().contains("tmp_pack"))
    });
    heals(lab, &source);
}

fn h130_killed_before_the_index_is_locked() {
    let lab = Lab::with_umask("022");
    let source = Source::new();
    let commit = source.files(&[("a", "1")]);
    let lock = lab.path(".git/index.lock");
    fs::write(&lock, "").expect("a lock");
    let session = lab.historian();
    begin(&session, proto::Baseline { pack: true, ..step(1, &commit) });
    piece(&session, 1, &source.pack_of(&commit), true);
    until("the index is made", || {
        left_over(&lab).iter().any(|path| path.extension() == Some(OsStr::new("index")))
    });
    fs::remove_file(&lock).expect("our own lock");
    heals(lab, &source);
}

fn h130_killed_while_refs_change() {
    let lab = Lab::with_umask("022");
    let source = Source::new();
    let commit = source.files(&[("a", "1")]);
    // Git waits for it, as long as it takes us to see that it does.
    let lock = lab.path(".git/refs/heads/main.lock");
    fs::write(&lock, "").expect("a lock");
    let session = lab.historian();
    let config = lab.path(".git/config");
    let patient =
        fs::read_to_string(&config).expect("a configuration") + "[core]\n\tfilesRefLockTimeout = 2000\n";
    fs::write(&config, patient).expect("our own clone");
    begin(&session, proto::Baseline { pack: true, ..step(1, &commit) });
    piece(&session, 1, &source.pack_of(&commit), true);
    let ours = lab.path(".git/index.lock");
    until("the index is locked and refs are about to change", || {
        ours.exists() && lab.path(".git/gitsync/history/begun").exists()
    });
    heals(lab, &source);
}
