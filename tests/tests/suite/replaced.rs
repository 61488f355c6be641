//! Which repository is at the path is remembered between runs (P10): another one does not empty the servers, and what is
//! the same but for its directories goes on.

use std::fs;
use std::path::Path;
use std::process::Command;

use gitsync_tests::git::{self, Repo};
use gitsync_tests::lab::Lab;
use gitsync_tests::process::PATIENCE;

use crate::bad_input::{assert_explained, errors_of};

/// Mirrored once; the client has ended.
fn mirrored(name: &str) -> Lab {
    let lab = Lab::new(name);
    lab.configure(&[("near", &lab.embedded("near"))]);
    assert_eq!(lab.once().code(), 0);
    lab
}

/// What a person does who made a mistake.
fn put_another_in_its_place(lab: &Lab) {
    fs::rename(lab.repo.root(), lab.path("away")).expect("the sandbox is writable");
    Repo::init(lab.repo.root(), lab.repo.home()).write("other", "another repository's\n");
}

fn bring_back(lab: &Lab) {
    fs::remove_dir_all(lab.repo.root()).expect("the sandbox is writable");
    fs::rename(lab.path("away"), lab.repo.root()).expect("the sandbox is writable");
}

#[track_caller]
fn assert_goes_on(lab: &Lab) {
    let ended = lab.once();
    assert_eq!(ended.code(), 0, "{ended}");
    lab.assert_equal("near", &lab.expect(), &[]);
}

#[test]
fn another_repository_at_the_next_start_halts_with_4_and_deletes_nothing() {
    let lab = mirrored("other-once");
    let before = lab.server_tree("near");
    put_another_in_its_place(&lab);
    let root = lab.repo.root().to_str().expect("ASCII");
    for _ in 0..2 {
        let ended = lab.once();
        assert_eq!(ended.code(), 4, "{ended}");
        assert_eq!(ended.summary_of("app@near", "state"), Some("halted"), "{ended}");
        assert_explained(&errors_of(&ended, "app@near"), &[root, "not the repository", "accept"]);
        assert_eq!(lab.server_tree("near"), before, "nothing was touched");
    }
    bring_back(&lab);
    assert_goes_on(&lab);
    assert_eq!(lab.server_tree("near"), before, "nothing was touched");
}

#[test]
fn a_running_client_goes_on_with_another_repository_once_it_is_accepted() {
    let lab = mirrored("other-accept");
    let before = lab.server_tree("near");
    put_another_in_its_place(&lab);
    let client = lab.client();
    client.wait_state("app@near", "halted", PATIENCE);
    assert_eq!(lab.server_tree("near"), before, "nothing was touched");
    let mut accept = lab.home.bare_command();
    accept.arg("accept").arg("--config").arg(lab.home.config());
    let output = accept.output().expect("the client can start");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    lab.assert_converges(&client, &["near"]);
    assert_eq!(client.terminate().code(), 0);
    assert_goes_on(&lab);
}

#[test]
fn accepted_deletes_let_another_repository_take_the_place() {
    let lab = mirrored("other-deletes");
    put_another_in_its_place(&lab);
    let ended = lab.home.run(&["--once", "--accept-deletes"]);
    assert_eq!(ended.code(), 0, "{ended}");
    lab.assert_equal("near", &lab.expect(), &[]);
    assert_goes_on(&lab);
}

/// Restored from a backup, moved to another disk, copied back: other directories, the same files.
#[test]
fn a_copy_in_its_place_goes_on_and_nothing_is_written() {
    let lab = mirrored("copied");
    let before = lab.server_tree("near");
    fs::rename(lab.repo.root(), lab.path("away")).expect("the sandbox is writable");
    let copied = Command::new("cp").arg("-R").arg(lab.path("away")).arg(lab.repo.root()).status();
    assert!(copied.expect("cp is installed").success());
    assert_goes_on(&lab);
    assert_eq!(lab.server_tree("near"), before, "nothing was touched");
}

#[test]
fn a_clone_made_anew_goes_on() {
    let lab = mirrored("cloned-anew");
    fs::rename(lab.repo.root(), lab.path("away")).expect("the sandbox is writable");
    clone(&lab, lab.repo.root());
    assert_goes_on(&lab);
    assert!(!lab.workspace("near").join("notes/untracked.txt").exists(), "it is not in the clone");
}

/// Nothing was mirrored from there yet, so nothing can have been put there by mistake.
#[test]
fn a_repository_at_a_path_never_seen_is_mirrored_without_asking() {
    let lab = mirrored("elsewhere");
    let elsewhere = lab.path("elsewhere");
    Repo::init(&elsewhere, lab.repo.home()).write("other", "another repository's\n");
    let config = fs::read_to_string(lab.home.config()).expect("it was written");
    let (old, new) = (lab.repo.root().to_str().expect("ASCII"), elsewhere.to_str().expect("ASCII"));
    lab.home.write_config(&config.replace(old, new));
    let ended = lab.once();
    assert_eq!(ended.code(), 0, "{ended}");
    lab.assert_equal("near", &lab.oracle().expect(&elsewhere), &[]);
}

fn clone(lab: &Lab, to: &Path) {
    git::run(git::command(lab.repo.home()).args(["clone", "-q"]).arg(lab.path("away")).arg(to));
}
