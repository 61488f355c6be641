//! What scripts read: JSON lines, signals, a closed pipe.

use gitsync_tests::client::RawClient;
use gitsync_tests::event;
use gitsync_tests::lab::Lab;
use gitsync_tests::process::{self, PATIENCE};

#[test]
fn json_output_keeps_its_contract() {
    let lab = Lab::new("contract");
    lab.configure(&[("near", &lab.embedded("near")), ("other", &lab.embedded("other"))]);
    let client = lab.client();
    lab.assert_converges(&client, &["near", "other"]);
    lab.repo.write("name with \u{1b}[31m and \n", "odd\n");
    lab.assert_converges(&client, &["near", "other"]);
    let expected = lab.expect();
    let ended = client.terminate();
    assert_eq!(ended.code(), 0, "{ended}");
    assert_eq!(event::contract_breaches(&ended.stdout), Vec::<String>::new());
    let hello = &ended.events[0];
    assert!(hello.text("version").is_some());
    let mut targets: Vec<_> = hello.json()["targets"].as_array().expect("a list").iter().collect();
    targets.sort_by_key(|target| target.to_string());
    assert_eq!(targets, ["app@near", "app@other"]);
    for target in ["app@near", "app@other"] {
        assert_eq!(ended.summary_of(target, "patch_id"), Some(expected.id.0.as_str()), "{ended}");
    }
    assert_eq!(ended.summary().number("exit"), 0);
}

/// The states of a target form one chain: each event starts where the one before ended.
#[test]
fn state_events_form_a_chain() {
    let lab = Lab::new("chain");
    let mut far = lab.serve("far");
    lab.configure(&[("far", &far.url())]);
    let client = lab.client();
    lab.assert_converges(&client, &["far"]);
    far.kill();
    client.wait_state("app@far", "retrying", PATIENCE);
    far.restart();
    client.wait_state("app@far", "in-sync", PATIENCE);
    let states = client.since(0, "state", "app@far");
    for pair in states.windows(2) {
        assert_eq!(pair[0].text("to"), pair[1].text("from"), "{pair:?}");
    }
    let known = [
        "connecting",
        "negotiating",
        "bootstrapping",
        "syncing",
        "in-sync",
        "pausing",
        "paused",
        "retrying",
        "halted",
        "failed",
    ];
    for state in &states {
        assert!(state.text("to").is_some_and(|to| known.contains(&to)), "{state:?}");
        assert!(state.text("reason").is_some(), "{state:?}");
    }
}

#[test]
fn sigterm_ends_with_0_and_a_summary() {
    let lab = Lab::new("sigterm");
    lab.configure(&[("near", &lab.embedded("near"))]);
    let client = lab.client();
    lab.assert_converges(&client, &["near"]);
    lab.repo.write("README.md", "# in flight\n");
    let ended = client.terminate();
    assert_eq!(ended.code(), 0, "{ended}");
    assert_eq!(ended.events.last().map(event::Event::kind), Some("summary"), "{ended}");
}

#[test]
fn a_closed_stdout_is_141() {
    let lab = Lab::new("closed");
    lab.configure(&[("near", &lab.embedded("near"))]);
    let mut client = RawClient::start(&lab.home);
    client.read_until(|e| e.is("state", "app@near") && e.text("to") == Some("in-sync"));
    client.close_stdout();
    lab.repo.write("README.md", "# there is something to say now\n");
    let status = process::wait_exit(&mut client.child, "the client to end", PATIENCE);
    let log = process::tail(client.log(), 30);
    assert_eq!(status.code(), Some(141), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn plain_output_names_targets_and_states() {
    let lab = Lab::new("plain");
    lab.configure(&[("near", &lab.embedded("near"))]);
    let config = lab.home.config().to_str().expect("ASCII");
    let mut command = lab.home.bare_command();
    let output = command.args(["--once", "--config", config]).output().expect("the client can start");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{stdout}");
    assert!(stdout.contains("app@near"), "{stdout}");
    assert!(stdout.contains("in-sync") || stdout.contains("in sync"), "{stdout}");
}
