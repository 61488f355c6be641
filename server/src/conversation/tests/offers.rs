//! Contents that are in the clone's own objects, and stores that are not what they should be.

use std::io::Write;
use std::process::{Command, Stdio};

use gitsync_core::wire::{OFFERED_BYTES, Offered};

use super::*;
use crate::history::Blobs;

fn offered(text: &str) -> Offered {
    Offered { id: id_of(text), size: text.len() as u64 }
}

impl Lab {
    /// Git in the workspace.
    fn git(&self, args: &[&str], input: &str) -> String {
        let mut git = Command::new("git");
        git.args(args).current_dir(self.at("")).stdin(Stdio::piped()).stdout(Stdio::piped());
        git.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
        let mut child = git.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{args:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Makes these the clone's, each a file of its own.
    fn loose(&self, texts: &[&str]) {
        for text in texts {
            assert_eq!(self.git(&["hash-object", "-w", "--stdin"], text), id_of(text).to_string());
        }
    }

    /// The same in one pack; gives back where that is, without its extension.
    fn packed(&self, texts: &[&str]) -> PathBuf {
        self.loose(texts);
        let ids: String = texts.iter().map(|text| format!("{}\n", id_of(text))).collect();
        let name = self.git(&["pack-objects", "-q", ".git/objects/pack/pack"], &ids);
        self.git(&["prune-packed"], "");
        self.at(&format!(".git/objects/pack/pack-{name}"))
    }

    fn lacking(&mut self, contents: &[Offered]) -> Vec<u32> {
        match &self.talk.handle(ToServer::Offer { contents: contents.to_vec() }).replies[..] {
            [ToClient::Lacking { positions }] => positions.clone(),
            other => panic!("expected what is lacking, not {other:?}"),
        }
    }

    /// A patch diff without contents.
    fn send_names(&mut self, list: &str) -> ToClient {
        let before = self.held.clone();
        let ToServer::Patch(header, frame) = self.message(list) else { panic!("a patch") };
        let frame = Frame { contents: Vec::new(), ..frame };
        let mut replies = self.talk.handle(ToServer::Patch(header, frame)).replies;
        if !matches!(replies[..], [ToClient::Ack(_)]) {
            self.held = before;
        }
        replies.pop().unwrap()
    }

    fn blobs(&self) -> Option<Blobs> {
        let State::Open(opened) = &self.talk.state else { panic!("a session") };
        Blobs::open(opened.clone.as_ref().unwrap())
    }
}

#[test]
fn what_the_clone_has_need_not_be_sent() {
    let mut lab = Lab::with("a=1");
    lab.loose(&["loose"]);
    lab.packed(&["packed", "unwanted"]);
    let contents = ["loose", "nowhere", "packed", "unwanted"].map(offered);
    assert_eq!(lab.lacking(&contents), [1]);
    assert_eq!(lab.staged(), 3);
    // Offered twice is staged once.
    assert_eq!(lab.lacking(&contents[..1]), [0; 0]);
    assert_eq!(lab.staged(), 3);
    assert!(matches!(lab.send_names("a=1 b=loose c=packed d=packed"), ToClient::Ack(_)));
    assert_eq!(fs::read(lab.at("c")).unwrap(), b"packed");
    lab.talk.handle(forget(vec![id_of("unwanted")]));
    assert_eq!(lab.staged(), 0);
    let answer = lab.send_names("a=1 e=unwanted");
    assert!(matches!(answer, ToClient::Refusal(r) if r.code == RefusalCode::ContentMissing));
}

#[test]
fn a_pack_that_came_since_the_last_offer_is_looked_into() {
    let mut lab = Lab::with("a=1");
    assert_eq!(lab.lacking(&[offered("later")]), [0]);
    lab.packed(&["later"]);
    assert_eq!(lab.lacking(&[offered("later")]), [0; 0]);
}

#[test]
fn what_is_not_what_was_offered_is_not_there() {
    let mut lab = Lab::with("a=1");
    lab.loose(&["text"]);
    let tree = lab.git(&["mktree"], &format!("100644 blob {}\tname\n", id_of("text")));
    let tree = ContentId::new(ObjectId::from_hex(tree.as_bytes()).unwrap());
    let sha256 = ContentId::of(HashKind::Sha256, b"text");
    let contents = [
        Offered { size: 5, ..offered("text") },
        Offered { id: tree, size: 32 },
        Offered { id: sha256, size: 4 },
        Offered { size: OFFERED_BYTES + 1, ..offered("text") },
        offered("text"),
    ];
    assert_eq!(lab.lacking(&contents), [0, 1, 2, 3]);
    assert_eq!(lab.staged(), 1);
}

#[test]
fn a_clone_that_borrows_objects_gives_none() {
    let mut lab = Lab::with("a=1");
    lab.loose(&["own"]);
    let elsewhere = TempDir::new().unwrap();
    fs::write(lab.at(".git/objects/info/alternates"), elsewhere.path().to_str().unwrap()).unwrap();
    assert_eq!(lab.lacking(&[offered("own")]), [0]);
    fs::remove_file(lab.at(".git/objects/info/alternates")).unwrap();
    assert_eq!(lab.lacking(&[offered("own")]), [0; 0]);
}

#[test]
fn objects_that_lie_elsewhere_are_not_looked_for() {
    let mut lab = Lab::with("a=1");
    lab.loose(&["own"]);
    let elsewhere = TempDir::new().unwrap();
    fs::rename(lab.at(".git/objects"), elsewhere.path().join("objects")).unwrap();
    std::os::unix::fs::symlink(elsewhere.path().join("objects"), lab.at(".git/objects")).unwrap();
    assert_eq!(lab.lacking(&[offered("own")]), [0]);
}

/// Whatever byte of a store is another: the bytes that are found are those of the id, or none are staged.
#[test]
fn a_damaged_store_is_one_that_lacks_something() {
    let mut lab = Lab::with("a=1");
    let texts = ["a text that is long enough to be a base", "a text that is long enough to be a basis", "b"];
    let pack = lab.packed(&texts);
    lab.loose(&["loose"]);
    let loose = id_of("loose").to_string();
    let loose = lab.at(&format!(".git/objects/{}/{}", &loose[..2], &loose[2..]));
    let contents: Vec<Offered> = texts.iter().copied().chain(["loose"]).map(offered).collect();
    assert_eq!(lab.lacking(&contents), [0; 0], "it is all there");
    lab.talk.handle(forget(contents.iter().map(|c| c.id).collect()));

    let replace = |path: &Path, bytes: &[u8]| {
        fs::remove_file(path).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let mut rng = fastrand::Rng::with_seed(5);
    for path in [pack.with_extension("pack"), pack.with_extension("idx"), loose] {
        let sound = fs::read(&path).unwrap();
        let cut: Vec<usize> = (0..8).map(|eighth| eighth * sound.len() / 8).collect();
        let flipped = (0..sound.len().min(400)).map(|_| (rng.usize(..sound.len()), rng.u8(1..)));
        let mut damaged: Vec<Vec<u8>> = cut.iter().map(|len| sound[..*len].to_vec()).collect();
        damaged.extend(flipped.map(|(at, with)| {
            let mut bytes = sound.clone();
            bytes[at] ^= with;
            bytes
        }));
        for bytes in damaged {
            replace(&path, &bytes);
            let lacking = lab.lacking(&contents).len();
            assert_eq!(lab.staged(), contents.len() - lacking);
            lab.talk.handle(forget(contents.iter().map(|c| c.id).collect()));
            assert_eq!(lab.staged(), 0);
        }
        replace(&path, &sound);
    }
    assert_eq!(lab.lacking(&contents), [0; 0]);
}

#[test]
fn a_blob_that_was_swapped_for_another_is_found_out_by_its_hash() {
    let mut lab = Lab::with("a=1");
    lab.loose(&["sound", "false"]);
    let file = |text: &str| {
        let id = id_of(text).to_string();
        lab.at(&format!(".git/objects/{}/{}", &id[..2], &id[2..]))
    };
    let (sound, other) = (file("sound"), fs::read(file("false")).unwrap());
    fs::remove_file(&sound).unwrap();
    fs::write(&sound, other).unwrap();
    assert_eq!(
        lab.blobs().unwrap().find(&id_of("sound"), 5),
        Some(&b"false"[..]),
        "the store does not notice"
    );
    assert_eq!(lab.lacking(&[offered("sound")]), [0]);
    assert_eq!(lab.staged(), 0);
}

#[test]
fn a_whole_patch_is_asked_only_for_what_the_clone_lacks() {
    let mut lab = Lab::with("a=1");
    lab.packed(&["there", "too"]);
    let next = snapshot("a=1 b=there c=new d=too e=there");
    let changes = patch::whole(&next);
    let header = PatchHeader {
        kind: PatchKind::Whole { base: PatchId::empty(HashKind::Sha1) },
        next: next.id(),
        generation: 2,
    };
    let frame = Frame { changes: changes.clone(), contents: vec![], changes_end: true, end: false };
    let answer = lab.talk.handle(ToServer::Patch(header, frame));
    let [ToClient::Wanted(wanted)] = &answer.replies[..] else { panic!("{answer:?}") };
    assert_eq!((&wanted.changes[..], wanted.extra.len()), (&[2][..], 0));
    let contents = chunks("c=new", &changes);
    let answer = lab.talk.handle(ToServer::Frame(Frame { contents, end: true, ..Frame::default() }));
    assert!(matches!(&answer.replies[..], [ToClient::Ack(ack)] if ack.id == next.id()), "{answer:?}");
    assert_eq!((fs::read(lab.at("e")).unwrap(), lab.staged()), (b"there".to_vec(), 0));
}

#[test]
fn a_clone_without_objects_is_not_looked_into() {
    let lab = Lab::with("a=1");
    assert!(lab.blobs().is_none());
    lab.loose(&["loose"]);
    assert!(lab.blobs().is_some());
    let lab = Lab::with("a=1");
    lab.packed(&["packed"]);
    assert!(lab.blobs().is_some());
}
