//! What a server has among the objects of its clone need not be sent: a switch back sends names. And where an object is
//! not what it should be, contents are sent, and nothing else changes.

use std::fs;
use std::path::PathBuf;

use gitsync_tests::git::{self, Repo};
use gitsync_tests::lab::Lab;
use gitsync_tests::mirrored::Mirrored;

const FILES: u64 = 50;
const BYTES: usize = 8_000;
/// Of all files together.
const CONTENTS: u64 = FILES * BYTES as u64;

fn write_noise(repo: &Repo, seed: u64) {
    for n in 0..FILES {
        let mut bytes = vec![0; BYTES];
        fastrand::Rng::with_seed(seed * 1_000 + n).fill(&mut bytes);
        repo.write(format!("noise/{n}"), bytes);
    }
}

/// Two branches that differ in all of the noise, both of them landed once.
fn with_branches(name: &str) -> Mirrored {
    let lab = Lab::new(name);
    write_noise(&lab.repo, 1);
    lab.repo.commit_all("main's");
    lab.repo.git(["switch", "-q", "-c", "topic"]);
    write_noise(&lab.repo, 2);
    lab.repo.commit_all("topic's");
    lab.repo.git(["switch", "-q", "main"]);
    let at = Mirrored::of(lab);
    let first = switch(&at, "topic");
    assert!(first > CONTENTS, "nothing of it was there: {first}");
    switch(&at, "main");
    at
}

fn switch(at: &Mirrored, branch: &str) -> u64 {
    bytes_of(at, |repo| {
        repo.git(["switch", "-q", branch]);
    })
}

/// What the patches of some work took on the wire, until files and clone agree on both sides.
fn bytes_of(at: &Mirrored, work: impl FnOnce(&Repo)) -> u64 {
    let mark = at.client.mark();
    at.cost_of(work);
    at.acks(mark).iter().map(|ack| ack.number("wire_bytes")).sum()
}

#[test]
fn switching_back_sends_names_only() {
    let at = with_branches("names");
    for round in 0..2 {
        for branch in ["topic", "main"] {
            let bytes = switch(&at, branch);
            assert!(bytes < CONTENTS / 10, "round {round}, to {branch}: {bytes} of {CONTENTS}");
        }
    }
}

#[test]
fn a_reset_and_a_restore_send_names_only() {
    let at = with_branches("names-reset");
    let reset = bytes_of(&at, |repo| {
        repo.git(["reset", "-q", "--hard", "topic"]);
    });
    let restored = bytes_of(&at, |repo| {
        repo.git(["restore", "--source", "HEAD~1", "noise"]);
    });
    assert!(reset < CONTENTS / 10 && restored < CONTENTS / 10, "{reset}, {restored} of {CONTENTS}");
}

#[test]
fn what_was_stashed_and_never_committed_is_sent_again() {
    let at = with_branches("names-stash");
    write_noise(at.repo(), 3);
    at.converges();
    let stashed = bytes_of(&at, |repo| {
        repo.git(["stash", "-q"]);
    });
    assert!(stashed < CONTENTS / 10, "HEAD's contents are there: {stashed}");
    let popped = bytes_of(&at, |repo| {
        repo.git(["stash", "pop", "-q"]);
    });
    assert!(popped > CONTENTS, "the stash's are not: {popped}");
}

/// Makes every object of the clone a file of its own, and says where those of some of topic's noise are.
fn loose(at: &Mirrored, files: &[u64]) -> Vec<PathBuf> {
    let (dir, home) = (at.workspace(".git"), at.repo().home());
    let aside = at.lab.path("packs");
    fs::rename(dir.join("objects/pack"), &aside).expect("the clone has packs");
    fs::create_dir(dir.join("objects/pack")).expect("it is writable");
    for pack in fs::read_dir(&aside).expect("it is there") {
        let path = pack.expect("it can be listed").path();
        if path.extension().is_some_and(|extension| extension == "pack") {
            let pack = fs::File::open(path).expect("a pack");
            let mut unpack = git::command(home);
            git::run(unpack.arg("--git-dir").arg(&dir).args(["unpack-objects", "-q"]).stdin(pack));
        }
    }
    let file = |n: &u64| {
        let id = at.repo().ask(["rev-parse", &format!("topic:noise/{n}")]);
        let path = dir.join("objects").join(&id[..2]).join(&id[2..]);
        assert!(path.is_file(), "{path:?}");
        path
    };
    files.iter().map(file).collect()
}

#[test]
fn objects_the_clone_has_lost_are_sent_and_it_is_whole_again() {
    let at = with_branches("names-lost");
    for path in loose(&at, &[3, 4, 5]) {
        fs::remove_file(path).expect("it is there");
    }
    let bytes = switch(&at, "topic");
    assert!(bytes > 3 * BYTES as u64 && bytes < CONTENTS / 4, "{bytes}");
}

#[test]
fn objects_that_are_not_what_their_name_says_do_no_harm() {
    let at = with_branches("names-false");
    let files = loose(&at, &[7, 8]);
    let bytes: Vec<Vec<u8>> = files.iter().map(|path| fs::read(path).expect("it is there")).collect();
    for (path, other) in files.iter().zip(bytes.iter().rev()) {
        fs::remove_file(path).expect("it is there");
        fs::write(path, other).expect("it is writable");
    }
    let bytes = switch(&at, "topic");
    assert!(bytes > 2 * BYTES as u64 && bytes < CONTENTS / 4, "{bytes}");
}
