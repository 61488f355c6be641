//! A run that finds nothing proves something only if it would have found it. Each test does one harm behind the
//! programs' backs, as a bug of ours would, and the driver of the random runs must report it; the last runs a server
//! that has such a bug.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gitsync_tests::client::Client;
use gitsync_tests::lab::Lab;
use gitsync_tests::ops::Ops;
use gitsync_tests::rounds::{Moment, Plan, Rounds};
use gitsync_tests::tree;

/// A short run during which `harm` is done at its moments; the workspace's directory is given. Nothing that was done
/// is nobody's fault, so a run that ends well fails the test.
#[track_caller]
fn assert_reported(name: &str, expected: &[&str], mut harm: impl FnMut(&Lab, &Client, &Path, Moment)) {
    let lab = Lab::new(name);
    Ops::plant_ballast(&lab.repo);
    lab.configure(&[("near", &lab.embedded("near"))]);
    let workspace = lab.workspace("near");
    let mut client = lab.client();
    let plan = Plan { seed: 4, ops: 150 };
    let rounds = Rounds::new(&lab, &["near"], plan).with_patience(Duration::from_secs(4));
    let outcome = rounds.try_run(&mut client, |client, moment| {
        if moment == Moment::Reopen {
            client.kill();
            *client = lab.client();
        }
        harm(&lab, client, &workspace, moment);
    });
    let report = outcome.expect_err("the harm was not noticed").to_string();
    for words in expected {
        assert!(report.contains(words), "{words:?} is not in the report:\n{report}");
    }
}

/// Harm done between the acks and the check of the first quiet point after the one that starts the run.
#[track_caller]
fn assert_reported_after_acks(name: &str, expected: &[&str], harm: impl Fn(&Lab, &Path)) {
    let mut quiet_points = 0;
    assert_reported(name, expected, |lab, _, workspace, moment| {
        if moment == Moment::Acked {
            quiet_points += 1;
            if quiet_points > 1 {
                harm(lab, workspace);
            }
        }
    });
}

/// Writes over a file and gives it back its time.
fn write_behind_the_back(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = fs::File::options().write(true).open(path).expect("a file of the ballast");
    let time = file.metadata().and_then(|meta| meta.modified()).expect("files have times");
    file.seek(SeekFrom::Start(at)).expect("files can be sought");
    file.write_all(bytes).and_then(|()| file.set_modified(time)).expect("we own it");
}

#[test]
fn a_flipped_byte_with_its_old_size_and_time_is_reported() {
    assert_reported_after_acks(
        "flip",
        &["\"ballast/0/0\" has 10 bytes", "differ from byte 2"],
        |_, workspace| {
            write_behind_the_back(&workspace.join("ballast/0/0"), 2, b"L");
        },
    );
}

#[test]
fn a_deletion_that_is_undone_is_reported() {
    let before: RefCell<BTreeMap<PathBuf, tree::Node>> = RefCell::default();
    assert_reported_after_acks("undelete", &["should not be there"], |_, workspace| {
        let now = tree::walk(workspace);
        let gone = before.replace(now.files.clone());
        for (path, node) in gone.iter().filter(|(path, _)| !now.files.contains_key(*path)) {
            // Fails where a directory is gone too.
            let _ = fs::write(workspace.join(path), &node.bytes);
        }
    });
}

#[test]
fn a_file_that_is_lost_is_reported() {
    assert_reported_after_acks("lost", &["\"ballast/1/1\" is missing"], |_, workspace| {
        fs::remove_file(workspace.join("ballast/1/1")).expect("it is there");
    });
}

#[test]
fn a_wrong_execute_bit_is_reported() {
    assert_reported_after_acks("bit", &["\"ballast/2/2\" is 100755, not 100644"], |_, workspace| {
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(workspace.join("ballast/2/2"), mode).expect("we own it");
    });
}

#[test]
fn a_file_written_without_need_is_reported() {
    assert_reported_after_acks("needless", &["\"ballast/3/3\" was touched needlessly"], |_, workspace| {
        let path = workspace.join("ballast/3/3");
        let bytes = fs::read(&path).expect("it is there");
        fs::write(path, bytes).expect("we own it");
    });
}

#[test]
fn a_build_product_that_is_lost_is_reported() {
    assert_reported_after_acks("artefact", &["was written on the server and is gone"], |_, workspace| {
        for path in
            tree::names(workspace).iter().filter(|path| path.to_string_lossy().contains("zz-artefact"))
        {
            fs::remove_file(workspace.join(path)).expect("it is there");
        }
    });
}

#[test]
fn a_kept_copy_that_is_lost_is_reported() {
    assert_reported_after_acks("kept", &["was written on the server and is gone"], |_, workspace| {
        let recovery = workspace.join(".git/gitsync/recovery");
        for path in tree::names(&recovery) {
            fs::remove_file(recovery.join(path)).expect("it is there");
        }
    });
}

#[test]
fn a_lock_taken_in_the_clients_repository_is_reported() {
    assert_reported("lock", &["the client's .git/"], |lab, _, _, moment| {
        if moment == Moment::Acked {
            let lock = lab.repo.path(".git/refs/x.lock");
            fs::write(&lock, "").and_then(|()| fs::remove_file(&lock)).expect("we own it");
        }
    });
}

#[test]
fn a_write_beside_the_workspace_is_reported() {
    assert_reported_after_acks("outside", &["is outside"], |lab, _| {
        fs::write(lab.server_root("near").join("outside/file"), "ours now").expect("we own it");
    });
}

/// A client that misses changes never reaches the id git names.
#[test]
fn a_client_that_hears_nothing_is_reported() {
    assert_reported("deaf", &["app@near diverged", "passed; expected"], |_, client, _, moment| {
        if matches!(moment, Moment::Change { .. }) {
            client.freeze();
        }
    });
}

/// Starting again writes nothing, not even what is there already.
#[test]
fn a_start_that_has_to_write_is_reported() {
    assert_reported("writes", &["\"ballast/4/4\" was touched"], |_, _, workspace, moment| {
        // Equal bytes in another file: only a look at what was touched can tell.
        if moment == Moment::Reopen {
            let path = workspace.join("ballast/4/4");
            let bytes = fs::read(&path).expect("it is there");
            fs::remove_file(&path).and_then(|()| fs::write(path, bytes)).expect("we own it");
        }
    });
}

/// The product itself, with one mutation: some deletes are acked, and not made.
#[test]
fn a_server_that_forgets_deletes_is_reported() {
    for seed in [1, 2] {
        eprintln!("the server's seed is {seed}");
        let lab = Lab::new("forgetful");
        Ops::plant_ballast(&lab.repo);
        let mut server = lab.serve_forgetful("near", seed);
        lab.configure(&[("near", &server.url())]);
        let mut client = lab.client();
        let rounds = Rounds::new(&lab, &["near"], Plan { seed: 4, ops: 300 });
        let outcome = rounds.try_run(&mut client, |client, moment| {
            if moment == Moment::Reopen {
                client.kill();
                server.kill();
                server.restart();
                *client = lab.client();
            }
        });
        let report = outcome.expect_err("the mutation was not noticed").to_string();
        assert!(report.contains("should not be there"), "seed {seed}:\n{report}");
        let log = fs::read_to_string(lab.path("near.log")).expect("the server has a log");
        assert!(log.contains("forgotten: "), "seed {seed}: nothing was forgotten, but:\n{report}");
    }
}
