//! Large files that change while they are read and sent.

use std::fs::File;
use std::os::unix::fs::FileExt;

use gitsync_tests::event::Event;
use gitsync_tests::git::Repo;
use gitsync_tests::lab::Lab;
use gitsync_tests::process::{self, PATIENCE};
use gitsync_tests::tree;

const SERVERS: [&str; 2] = ["near", "far"];
const FILES: [&str; 2] = ["big.bin", "data/other.bin"];
const BYTES: usize = 9_000_001;

/// Changes one of the files, in one of the ways programs do.
fn change(repo: &Repo, rng: &mut fastrand::Rng) {
    let path = FILES[rng.usize(0..FILES.len())];
    let mut bytes = std::fs::read(repo.path(path)).expect("a file of ours");
    let at = rng.usize(0..bytes.len());
    let in_place = || File::options().write(true).open(repo.path(path)).expect("a file of ours");
    match rng.u8(0..6) {
        0 | 1 => in_place().write_all_at(&[rng.u8(..)], at as u64).expect("space"),
        2 => in_place().write_all_at(&vec![rng.u8(..); 2_000_000], at as u64).expect("space"),
        3 => in_place().set_len(BYTES.min(at + BYTES / 2) as u64).expect("a file of ours"),
        4 => {
            bytes.splice(at..at, [rng.u8(..); 70_000]);
            repo.write("aside.tmp", &bytes);
            repo.rename("aside.tmp", path);
        }
        _ => {
            bytes[at] ^= 1;
            repo.write(path, &bytes);
        }
    }
}

#[test]
fn files_that_change_while_they_travel_converge() {
    let seed = process::number_from_env("GITSYNC_SEED").unwrap_or(20_26);
    let mut rng = fastrand::Rng::with_seed(seed);
    let lab = Lab::new("large");
    for path in FILES {
        let noise: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(BYTES).collect();
        lab.repo.write(path, noise);
    }
    let far = lab.serve("far");
    lab.configure(&[("near", &lab.embedded("near")), ("far", &far.url())]);
    let client = lab.client();
    lab.assert_converges(&client, &SERVERS);
    for round in 0..12 {
        println!("seed {seed}, round {round}");
        for n in 0..rng.usize(1..5) {
            change(&lab.repo, &mut rng);
            if rng.bool() {
                lab.repo.write("src/main.rs", format!("// round {round}, {n}\n"));
            }
            // As far apart as reading takes, sometimes: what is read is then found changed at any of its places.
            for _ in 0..rng.usize(0..4) {
                std::fs::read(lab.repo.path(FILES[0])).expect("a file of ours");
            }
        }
        lab.assert_converges(&client, &SERVERS);
    }
    for server in SERVERS {
        assert!(client.since(0, "error", &lab.target(server)).is_empty(), "{}", client.story());
    }
}

#[test]
fn a_file_that_was_only_touched_leaves_nothing_on_a_server() {
    let lab = Lab::new("touched");
    lab.repo.write(FILES[0], vec![7; BYTES]);
    let server = lab.serve("far");
    lab.configure(&[("far", &server.url())]);
    let client = lab.client();
    lab.assert_converges(&client, &["far"]);
    // So that its blocks are known, whatever the first sync knew.
    lab.repo.write(FILES[0], vec![8; BYTES]);
    lab.assert_converges(&client, &["far"]);
    let mark = client.mark();
    let file = File::options().write(true).open(lab.repo.path(FILES[0])).expect("a file of ours");
    file.set_modified(std::time::SystemTime::now()).expect("we own it");
    drop(file);
    let to = |event: &Event, state| event.is("state", "app@far") && event.text("to") == Some(state);
    client.wait_until("it to be looked at", PATIENCE, |events| {
        let began = events[mark..].iter().position(|event| to(event, "syncing"))?;
        events[mark + began..].iter().any(|event| to(event, "in-sync")).then_some(())
    });
    let stage = lab.workspace("far").join(".git/gitsync/stage");
    process::poll_until("an empty stage", PATIENCE, || {
        tree::walk_with_git(&stage).files.is_empty().then_some(())
    });
}
