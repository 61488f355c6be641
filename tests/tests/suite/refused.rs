//! Paths a server cannot write, while it can write the others: withheld with the reason, and healed once it can (P1, P7).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use gitsync_tests::client::Client;
use gitsync_tests::event::Standing;
use gitsync_tests::lab::Lab;
use gitsync_tests::process::{self, PATIENCE};
use gitsync_tests::skip::skip;

use crate::bad_input::start_unprivileged;

const TARGET: &str = "app@near";

#[track_caller]
fn permit(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("we own it, or are root");
}

/// Waits until exactly these paths are withheld from a target that is in sync. Gives back the reasons.
#[track_caller]
fn wait_withheld(client: &Client, paths: &[&str]) -> BTreeMap<String, String> {
    client.wait_until(&format!("{paths:?} to be withheld"), PATIENCE, |events| {
        let Standing { state, withheld, .. } = Standing::of(events, TARGET);
        (state == "in-sync" && withheld.keys().eq(paths)).then_some(withheld)
    })
}

/// The server holds an older state, the client remembers nothing of it, and some of its paths cannot be replaced.
#[test]
fn an_older_state_with_paths_the_server_may_not_write_is_in_sync_but_for_those() {
    let name = "an_older_state_with_paths_the_server_may_not_write_is_in_sync_but_for_those";
    let lab = Lab::new("refused-older");
    for path in ["locked/edited", "locked/removed", "locked/same", "free"] {
        lab.repo.write(path, format!("{path}, before\n"));
    }
    lab.configure(&[("near", &lab.embedded("near"))]);
    let Some(client) = start_unprivileged(&lab) else {
        return skip(name, "root needs setpriv to become somebody else");
    };
    lab.assert_converges(&client, &["near"]);
    assert_eq!(client.terminate().code(), 0);

    lab.home.lose_cache();
    let at = |path: &str| lab.workspace("near").join(path);
    permit(&at("locked"), 0o555);
    for path in ["locked/edited", "locked/new", "free"] {
        lab.repo.write(path, format!("{path}, after\n"));
    }
    lab.repo.remove("locked/removed");
    let client = start_unprivileged(&lab).expect("it did before");
    let locked = ["locked/edited", "locked/new", "locked/removed"];
    for (path, why) in wait_withheld(&client, &locked) {
        assert!(why.to_lowercase().contains("permission denied"), "{path}: {why}");
    }
    assert_eq!(fs::read_to_string(at("free")).expect("it is there"), "free, after\n");
    for path in ["locked/edited", "locked/removed"] {
        assert_eq!(fs::read_to_string(at(path)).expect("it stays"), format!("{path}, before\n"));
    }

    // Saves of other files go on, and the withheld ones stay so.
    lab.repo.write("free", "free, later\n");
    process::poll_until("the next save to arrive", PATIENCE, || {
        (fs::read(at("free")).ok()? == b"free, later\n").then_some(())
    });
    wait_withheld(&client, &locked);
    assert!(client.since(0, "error", TARGET).is_empty(), "nothing went wrong:\n{}", client.story());

    // One that changes is offered at once, and after a new start all are.
    permit(&at("locked"), 0o755);
    lab.repo.write("locked/edited", "locked/edited, later\n");
    process::poll_until("the edit to arrive", PATIENCE, || {
        (fs::read(at("locked/edited")).ok()? == b"locked/edited, later\n").then_some(())
    });
    assert_eq!(client.terminate().code(), 0);
    let client = start_unprivileged(&lab).expect("it did before");
    lab.assert_converges(&client, &["near"]);
    assert!(client.standing(TARGET).withheld.is_empty());
}

/// So many that one message has no room for their names.
#[test]
fn thousands_of_refused_paths_are_all_withheld() {
    let name = "thousands_of_refused_paths_are_all_withheld";
    let lab = Lab::new("refused-many");
    lab.repo.write("locked/keep", "kept\n");
    lab.configure(&[("near", &lab.embedded("near"))]);
    let Some(client) = start_unprivileged(&lab) else {
        return skip(name, "root needs setpriv to become somebody else");
    };
    lab.assert_converges(&client, &["near"]);
    let locked = lab.workspace("near").join("locked");
    permit(&locked, 0o555);
    let paths: Vec<String> = (0..4_000).map(|n| format!("locked/{n:0100}")).collect();
    for path in &paths {
        lab.repo.write(path, "new\n");
    }
    lab.repo.write("free", "free\n");
    client.wait_until("all of them to be withheld", PATIENCE * 2, |events| {
        let Standing { state, withheld, .. } = Standing::of(events, TARGET);
        (state == "in-sync" && withheld.len() == paths.len()).then_some(())
    });
    assert!(lab.workspace("near").join("free").is_file());
    assert_eq!(client.terminate().code(), 0);
    permit(&locked, 0o755);
    let client = start_unprivileged(&lab).expect("it did before");
    lab.assert_converges(&client, &["near"]);
    assert!(client.standing(TARGET).withheld.is_empty());
}
