//! The configuration changes while everything runs: what differs follows, and nothing else notices.

use std::fs;
use std::time::{Duration, Instant};

use gitsync_tests::client::Client;
use gitsync_tests::event::{Event, Standing};
use gitsync_tests::lab::Lab;
use gitsync_tests::link::Link;
use gitsync_tests::parent::Parent;
use gitsync_tests::process::{self, PATIENCE};
use gitsync_tests::server::Server;
use gitsync_tests::tree;

/// Since a mark, `target` had no new session and was never anything but in sync or on the way there.
#[track_caller]
fn assert_undisturbed(client: &Client, mark: usize, target: &str) {
    assert_eq!(client.since(mark, "session", target), [], "{target} had no new session");
    for state in client.since(mark, "state", target) {
        assert!(matches!(state.text("to"), Some("syncing" | "in-sync")), "{state:?}");
    }
}

/// In sync with `near`, whose url is the second of these, and with `far`, which then stopped answering with a save on
/// its way.
fn with_a_silent_server(name: &str) -> (Lab, String, Server, Client) {
    let lab = Lab::new(name);
    let (near, far) = (lab.embedded("near"), lab.serve("far"));
    lab.configure(&[("near", &near), ("far", &far.url())]);
    let client = lab.client();
    lab.assert_converges(&client, &["near", "far"]);
    far.freeze();
    lab.repo.write("README.md", "# nobody answers\n");
    client.wait_state("app@far", "syncing", PATIENCE);
    (lab, near, far, client)
}

#[test]
fn a_change_of_the_file_adds_a_target_and_disturbs_no_other() {
    let lab = Lab::new("reload-add");
    let (near, far) = (lab.serve("near"), lab.serve("far"));
    lab.configure(&[("near", &near.url())]);
    let client = lab.client();
    lab.assert_converges(&client, &["near"]);
    let mark = client.mark();

    lab.configure(&[("near", &near.url()), ("far", &far.url())]);
    let config = client.reloaded();
    assert_eq!(config.names("added"), ["app@far"]);
    assert_eq!((config.names("removed"), config.names("changed")), (vec![], vec![]));
    assert!(config.json()["error"].is_null(), "{config:?}");
    // Whoever asks is told, though there is nothing new.
    let config = client.reload();
    assert_eq!(["added", "removed", "changed"].map(|list| config.names(list).len()), [0, 0, 0]);
    assert!(config.json()["error"].is_null(), "{config:?}");
    lab.assert_converges(&client, &["near", "far"]);
    // Both follow from now on, and whoever asks hears of both.
    lab.repo.write("README.md", "# after the reload\n");
    lab.assert_converges(&client, &["near", "far"]);
    assert_undisturbed(&client, mark, "app@near");
    let status =
        lab.home.bare_command().args(["status", "--json", "--config"]).arg(lab.home.config()).output();
    let status = String::from_utf8(status.expect("the client can start").stdout).expect("JSON is UTF-8");
    assert!(status.contains("app@near") && status.contains("app@far"), "{status}");
    let ended = client.terminate();
    assert_eq!(ended.code(), 0, "{ended}");
    assert!(ended.summary_of("app@far", "patch_id").is_some(), "{ended}");
}

#[test]
fn a_parents_reload_removes_a_target_and_its_files_stay() {
    let lab = Lab::new("reload-remove");
    let (near, far) = (lab.serve("near"), lab.serve("far"));
    lab.configure(&[("near", &near.url()), ("far", &far.url())]);
    let mut parent = Parent::start(&lab.home);
    for target in ["app@near", "app@far"] {
        parent.wait_line(0, &format!("STATUS {target} in-sync"));
    }
    let kept = lab.server_tree("far");
    let mark = parent.mark();

    lab.configure(&[("near", &near.url())]);
    parent.say("RELOAD");
    assert_eq!(parent.wait_line(mark, "STATUS - "), "STATUS - configuration reloaded: removed app@far");
    let told = parent.mark();
    let heard = parent.heard()[mark..].to_vec();
    assert!(heard.iter().any(|line| line == "DISCONNECTED app@far"), "{heard:?}");
    lab.repo.write("README.md", "# only for one\n");
    let expected = lab.expect();
    parent.wait_line(told, &format!("CHANGED app@near {}", expected.id.0));
    lab.assert_equal("near", &expected, &[]);
    parent.say("PAUSE app@far");
    parent.wait_line(told, "ERROR - no such target: app@far");
    let later = parent.heard()[told..].to_vec();
    assert!(!later.iter().any(|line| line.contains(" app@far ")), "{later:?}");
    assert_eq!(lab.server_tree("far"), kept);
    assert_eq!(parent.stop().code(), Some(0));
}

#[test]
fn a_broken_file_changes_nothing_and_a_mended_one_works() {
    let lab = Lab::new("reload-broken");
    let near = lab.embedded("near");
    lab.configure(&[("near", &near)]);
    let client = lab.client();
    lab.assert_converges(&client, &["near"]);
    let mark = client.mark();
    let good = fs::read_to_string(lab.home.config()).expect("it was written");
    let unreadable = "the file is gone";
    for (text, says) in [
        (good.replace("name = \"near\"", "naem = \"near\""), "naem"),
        (good.replace("servers = [\"near\"]", "servers = [\"nowhere\"]"), "nowhere"),
        ("[[server]".to_owned(), ":1:"),
        (unreadable.to_owned(), "No such file"),
    ] {
        if text == unreadable {
            fs::remove_file(lab.home.config()).expect("it is there");
        } else {
            lab.home.write_config(&text);
        }
        let config = client.reloaded();
        let error = config.text("error").unwrap_or_default();
        assert!(error.contains(says) && error.contains("gitsync.toml"), "{config:?}");
        assert_eq!(["added", "removed", "changed"].map(|list| config.names(list).len()), [0, 0, 0]);
        lab.repo.write("README.md", format!("# while it is broken: {says}\n"));
        lab.assert_converges(&client, &["near"]);
    }
    lab.configure(&[("near", &near), ("other", &lab.embedded("other"))]);
    assert_eq!(client.reloaded().names("added"), ["app@other"]);
    lab.assert_converges(&client, &["near", "other"]);
    assert_undisturbed(&client, mark, "app@near");
}

#[test]
fn a_reload_keeps_to_the_targets_that_were_selected() {
    let lab = Lab::new("reload-selected");
    let (near, other) = (lab.embedded("near"), lab.embedded("other"));
    lab.configure(&[("near", &near), ("other", &other)]);
    let client = lab.home.start_with(&["--target", "*@near"]);
    lab.assert_converges(&client, &["near"]);
    lab.configure_with(&[("other", &other)], "");
    let config = client.reloaded();
    assert!(config.text("error").is_some_and(|why| why.contains("app@other")), "{config:?}");
    lab.configure(&[("near", &near), ("third", &lab.embedded("third"))]);
    let config = client.reloaded();
    assert_eq!(["added", "removed", "changed"].map(|list| config.names(list).len()), [0, 0, 0]);
    assert!(!lab.workspace("other").exists() && !lab.workspace("third").exists());
    lab.repo.write("README.md", "# still here\n");
    lab.assert_converges(&client, &["near"]);
}

#[test]
fn a_changed_option_takes_effect_and_writes_nothing_else() {
    let lab = Lab::new("reload-option");
    let near = lab.serve("near");
    let servers = [("near", near.url())];
    let servers: Vec<(&str, &str)> = servers.iter().map(|(name, url)| (*name, url.as_str())).collect();
    lab.configure(&servers);
    let client = lab.client();
    let expected = lab.assert_converges(&client, &["near"]);
    let before = lab.server_tree("near");

    // One that changes no file: the session goes on from what the server holds.
    lab.configure_with(&servers, "history = 3");
    let mark = client.mark();
    assert_eq!(client.reloaded().names("changed"), ["app@near"]);
    client.wait_until("a new session in sync", PATIENCE, |events| {
        let since = &events[mark..];
        (since.iter().any(|e| e.is("session", "app@near"))
            && Standing::of(since, "app@near").in_sync_with(&expected.id))
        .then_some(())
    });
    let sessions = client.since(mark, "session", "app@near");
    assert_eq!(sessions.iter().map(|s| s.text("rung")).collect::<Vec<_>>(), [Some("none")]);
    assert_eq!(lab.server_tree("near"), before, "nothing was touched");

    // One that hides files: what it hides is not mirrored any more, and what is there already stays.
    lab.configure_with(&servers, "exclude = [\"*.txt\"]");
    let mark = client.mark();
    assert_eq!(client.reloaded().names("changed"), ["app@near"]);
    lab.repo.write("notes/later.txt", "hidden\n");
    lab.repo.write("notes/later.md", "shown\n");
    let there = |path: &str| lab.workspace("near").join(path).exists();
    process::poll_until("the other file", PATIENCE, || there("notes/later.md").then_some(()));
    client.wait_state("app@near", "in-sync", PATIENCE);
    assert!(!there("notes/later.txt"));
    let after = tree::walk(&lab.workspace("near"));
    for (path, stamp) in &before.files {
        assert_eq!(after.files.get(path), Some(stamp), "{path:?} is as it was");
    }
    let written: u64 = client.since(mark, "acked", "app@near").iter().map(|ack| ack.number("written")).sum();
    assert_eq!(written, 1);

    lab.configure(&servers);
    assert_eq!(client.reloaded().names("changed"), ["app@near"]);
    process::poll_until("the hidden file", PATIENCE, || there("notes/later.txt").then_some(()));
    lab.assert_converges(&client, &["near"]);
}

/// The states of a target stay one chain, and what was withheld is taken back.
#[test]
fn a_larger_limit_lets_withheld_files_go() {
    let lab = Lab::new("reload-withheld");
    let near = lab.embedded("near");
    lab.repo.write("big.bin", vec![7_u8; 100_000]);
    lab.configure_with(&[("near", &near)], "max-file-size = \"64KiB\"");
    let client = lab.client();
    client.wait_until("the large file to be withheld", PATIENCE, |events| {
        let standing = Standing::of(events, "app@near");
        (standing.state == "in-sync" && standing.withheld.contains_key("big.bin")).then_some(())
    });
    lab.configure(&[("near", &near)]);
    client.reloaded();
    lab.assert_converges(&client, &["near"]);
    assert_eq!(client.standing("app@near").withheld.len(), 0);
    let states = client.since(0, "state", "app@near");
    for pair in states.windows(2) {
        assert_eq!(pair[0].text("to"), pair[1].text("from"), "{pair:?}");
    }
}

#[test]
fn a_server_that_moved_is_followed_and_one_that_is_renamed_too() {
    let lab = Lab::new("reload-moved");
    let (one, two) = (lab.serve("one"), lab.serve("two"));
    let near = lab.embedded("near");
    lab.configure(&[("near", &near), ("far", &one.url())]);
    let client = lab.client();
    let expected = lab.assert_converges(&client, &["near"]);
    client.wait_acked("app@far", &expected.id, PATIENCE);
    let mark = client.mark();

    lab.configure(&[("near", &near), ("far", &two.url())]);
    assert_eq!(client.reloaded().names("changed"), ["app@far"]);
    lab.repo.write("README.md", "# it moved\n");
    let moved = lab.expect();
    client.wait_acked("app@far", &moved.id, PATIENCE);
    lab.assert_equal("two", &moved, &[]);
    lab.assert_equal("one", &expected, &[]);

    // The same workspace of the same server, for another target: one session hands over to the next.
    lab.configure(&[("near", &near), ("distant", &two.url())]);
    let config = client.reloaded();
    assert_eq!((config.names("added"), config.names("removed")), (vec!["app@distant"], vec!["app@far"]));
    lab.repo.write("README.md", "# it has another name\n");
    let renamed = lab.expect();
    client.wait_acked("app@distant", &renamed.id, PATIENCE);
    lab.assert_equal("two", &renamed, &[]);
    let told = client.events().iter().rposition(|e| e.kind() == "config").expect("it was told");
    assert!(!client.events()[told..].iter().any(|e| e.target() == Some("app@far")), "nothing is heard of it");
    assert_undisturbed(&client, mark, "app@near");
}

#[test]
fn a_pause_outlives_a_reload() {
    let lab = Lab::new("reload-paused");
    let (near, other) = (lab.embedded("near"), lab.embedded("other"));
    lab.configure(&[("near", &near)]);
    let client = lab.client();
    let before = lab.assert_converges(&client, &["near"]);
    let act = |verb: &str| {
        let status =
            lab.home.bare_command().args([verb, "app@near", "--config"]).arg(lab.home.config()).status();
        assert!(status.expect("the client can start").success(), "{verb}");
    };
    act("pause");
    client.wait_state("app@near", "paused", PATIENCE);
    lab.configure_with(&[("near", &near), ("other", &other)], "history = 3");
    let mark = client.mark();
    assert_eq!(client.reloaded().names("changed"), ["app@near"]);
    lab.repo.write("README.md", "# while it is paused\n");
    lab.assert_converges(&client, &["other"]);
    client.wait_until("the target to be paused again", PATIENCE, |events| {
        (Standing::of(&events[mark..], "app@near").state == "paused").then_some(())
    });
    lab.assert_equal("near", &before, &[]);
    act("resume");
    lab.assert_converges(&client, &["near", "other"]);
}

#[test]
fn reloads_in_quick_succession_come_to_the_last_one() {
    let lab = Lab::new("reload-quick");
    let (near, other) = (lab.embedded("near"), lab.embedded("other"));
    let configure = |n: u32| match n % 3 {
        0 => lab.configure(&[("near", &near)]),
        1 => lab.configure_with(&[("near", &near), ("other", &other)], "history = 3"),
        _ => lab.configure(&[("other", &other)]),
    };
    configure(0);
    let client = lab.client();
    lab.assert_converges(&client, &["near"]);
    for n in 1..=40 {
        configure(n);
        client.hang_up();
        if n % 4 == 0 {
            lab.repo.write("README.md", format!("# {n}\n"));
            client.let_work(Duration::from_millis(u64::from(n)));
        }
    }
    // The last of these is read for certain.
    let config = client.reload();
    assert!(config.json()["error"].is_null(), "{config:?}");
    lab.assert_converges(&client, &["near", "other"]);
    assert_eq!(client.since(0, "error", "app@near"), []);
    assert_eq!(client.since(0, "error", "app@other"), []);
    let ended = client.terminate();
    assert_eq!(ended.code(), 0, "{ended}");
    let targets = ended.summary().json()["targets"].as_object().expect("an object");
    assert_eq!(targets.keys().collect::<Vec<_>>(), ["app@near", "app@other"]);
}

/// A server that does not answer is given up, and holds up nobody meanwhile.
#[test]
fn a_reload_waits_for_no_dead_server_and_neither_does_the_end() {
    let (lab, near, far, client) = with_a_silent_server("reload-dead");
    lab.configure(&[("near", &near), ("third", &lab.embedded("third"))]);
    let config = client.reloaded();
    assert_eq!((config.names("added"), config.names("removed")), (vec!["app@third"], vec!["app@far"]));
    // Sooner than anybody gives the dead one up, which takes 5 s.
    client.wait_acked("app@third", &lab.expect().id, Duration::from_secs(4));
    lab.assert_converges(&client, &["near", "third"]);
    let started = Instant::now();
    let ended = client.terminate();
    far.thaw();
    assert_eq!(ended.code(), 0, "{ended}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

/// What is each session's own matter changes session by session.
#[test]
fn a_server_that_does_not_answer_holds_up_no_other_target_of_its_repo() {
    let (lab, near, far, client) = with_a_silent_server("reload-own");
    let mark = client.mark();
    lab.configure_with(&[("near", &near), ("far", &far.url())], "drift = \"hold\"\n");
    assert_eq!(client.reloaded().names("changed"), ["app@near", "app@far"]);
    let begun_anew = |events: &[Event], target: &str, state: &str| {
        events[mark..].iter().position(|e| e.is("state", target) && e.text("to") == Some(state))
    };
    client.wait_until("both to have begun anew", PATIENCE, |events| {
        begun_anew(events, "app@far", "connecting").and(begun_anew(events, "app@near", "in-sync"))
    });
    let events = client.events();
    let far_began = begun_anew(&events, "app@far", "connecting");
    assert!(begun_anew(&events, "app@near", "in-sync") < far_began, "{}", client.story());
    far.thaw();
    lab.assert_converges(&client, &["near", "far"]);
    // And it is in force: what somebody changed there stays.
    let file = lab.workspace("near").join("README.md");
    fs::write(&file, "# theirs\n").expect("a workspace of ours");
    lab.repo.write("README.md", "# ours\n");
    client.wait_until("the drift to be withheld", PATIENCE, |events| {
        events.iter().rev().find(|e| e.is("withheld", "app@near")).filter(|e| !e.paths().is_empty()).map(drop)
    });
    assert_eq!(fs::read_to_string(&file).expect("it is there"), "# theirs\n");
}

/// A parent that knows that the network went away need not wait until a connection's silence tells.
#[test]
fn a_lost_network_is_met_with_new_connections_at_once() {
    let lab = Lab::new("lostnet");
    let (near, far) = (lab.embedded("near"), lab.serve("far"));
    let link = Link::to(&far);
    lab.configure(&[("near", &near), ("far", &link.url())]);
    let mut parent = Parent::start(&lab.home);
    for target in ["app@near", "app@far"] {
        parent.wait_line(0, &format!("STATUS {target} in-sync"));
    }
    assert_eq!(link.accepted(), 1);
    // What is sent now goes nowhere, and nobody is told.
    link.go_dead();
    lab.repo.write("README.md", "# into the void\n");
    parent.wait_line(0, &format!("CHANGED app@near {}", lab.expect().id.0));
    let mark = parent.mark();
    parent.say("LOSTNET");
    for target in ["app@near", "app@far"] {
        parent.wait_line(mark, &format!("DISCONNECTED {target}"));
        parent.wait_line(mark, &format!("STATUS {target} in-sync"));
    }
    assert_eq!(link.accepted(), 2);
    let expected = lab.expect();
    lab.assert_equal("far", &expected, &[]);
    // It goes on from what the server holds, and nothing is taken for an error.
    let heard = parent.heard()[mark..].to_vec();
    assert!(
        !heard.iter().any(|line| line.contains("bootstrapping") || line.starts_with("ERROR")),
        "{heard:?}"
    );
    lab.repo.write("README.md", "# and on\n");
    parent.wait_line(mark, &format!("CHANGED app@far {}", lab.expect().id.0));
    lab.assert_equal("far", &lab.expect(), &[]);
    assert_eq!(parent.stop().code(), Some(0));
}

#[test]
fn a_lost_network_ends_no_pause() {
    let lab = Lab::new("lostnet-wait");
    let (near, mut far) = (lab.embedded("near"), lab.serve("far"));
    lab.configure(&[("near", &near), ("far", &far.url())]);
    let mut parent = Parent::start(&lab.home);
    for target in ["app@near", "app@far"] {
        parent.wait_line(0, &format!("STATUS {target} in-sync"));
    }
    let mark = parent.mark();
    parent.say("PAUSE app@near");
    parent.wait_line(mark, "STATUS app@near paused");
    far.kill();
    parent.wait_line(mark, "STATUS app@far retrying");
    let before = lab.server_tree("near");
    lab.repo.write("README.md", "# while it is away\n");
    far.restart();
    parent.say("LOSTNET");
    parent.wait_line(mark, &format!("CHANGED app@far {}", lab.expect().id.0));
    assert_eq!(lab.server_tree("near"), before, "a pause is a pause");
    parent.say("RESUME app@near");
    parent.wait_line(mark, &format!("CHANGED app@near {}", lab.expect().id.0));
    assert_eq!(parent.stop().code(), Some(0));
}

/// Editors and configuration managers have the file elsewhere, and a link to it.
#[test]
fn a_file_behind_a_link_is_followed_and_one_that_says_the_same_is_not_told() {
    let lab = Lab::new("reload-link");
    let (near, far) = (lab.embedded("near"), lab.embedded("far"));
    lab.configure(&[("near", &near)]);
    let real = lab.home.config().with_file_name("kept").join("real.toml");
    fs::create_dir(real.parent().expect("it has one")).expect("the sandbox is writable");
    fs::rename(lab.home.config(), &real).expect("the sandbox is writable");
    std::os::unix::fs::symlink(&real, lab.home.config()).expect("the sandbox is writable");
    let client = lab.client();
    lab.assert_converges(&client, &["near"]);

    let text = fs::read_to_string(&real).expect("it was written");
    fs::write(&real, &text).expect("the sandbox is writable");
    // Long enough for it to be read, as a rule; a slow day only makes this see less.
    let told = client.try_wait_until(Duration::from_millis(600), |events| {
        events.iter().find(|event| event.kind() == "config").cloned()
    });
    assert!(told.is_err(), "{told:?}");
    let more = text.replace("servers = [\"near\"]", "servers = [\"near\", \"far\"]");
    assert_ne!(more, text);
    let more = format!("[[server]]\nname = \"far\"\nurl = {far:?}\n{more}");
    fs::write(&real, more).expect("the sandbox is writable");
    assert_eq!(client.reloaded().names("added"), ["app@far"]);
    lab.assert_converges(&client, &["near", "far"]);
    assert_eq!(client.events().iter().filter(|event| event.kind() == "config").count(), 1);
}

/// What a session that is ending has to say is not about the target that has its name now.
#[test]
fn no_ack_is_told_of_a_server_that_was_not_reached() {
    let (lab, near, far, client) = with_a_silent_server("reload-again");
    lab.configure(&[("near", &near)]);
    assert_eq!(client.reloaded().names("removed"), ["app@far"]);
    let mark = client.mark();
    lab.configure(&[("near", &near), ("far", "http://127.0.0.1:1")]);
    assert_eq!(client.reloaded().names("added"), ["app@far"]);
    far.thaw();
    client.wait_until("the new one to be tried", PATIENCE, |events| {
        events[mark..]
            .iter()
            .any(|e| e.is("error", "app@far") && e.text("code") == Some("unreachable"))
            .then_some(())
    });
    assert_eq!(client.since(mark, "acked", "app@far"), []);
    let states = client.since(mark, "state", "app@far");
    assert!(!states.iter().any(|state| state.text("to") == Some("in-sync")), "{states:?}");
}

#[test]
fn what_is_asked_of_a_target_that_begins_anew_is_done() {
    // It holds up the end of its repo's sessions.
    let (lab, near, far, client) = with_a_silent_server("reload-asked");
    let mark = client.mark();
    lab.configure_with(&[("near", &near), ("far", &far.url())], "history = 3");
    assert_eq!(client.reloaded().names("changed"), ["app@near", "app@far"]);
    let asked =
        lab.home.bare_command().args(["resync", "app@near", "--config"]).arg(lab.home.config()).status();
    assert!(asked.expect("the client can start").success());
    far.thaw();
    client.wait_until("a comparison of every file", PATIENCE, |events| {
        events[mark..]
            .iter()
            .any(|e| e.is("session", "app@near") && e.text("rung") == Some("patch"))
            .then_some(())
    });
    lab.assert_converges(&client, &["near", "far"]);
}

/// P10: neither a target that begins anew nor one that comes later passes it.
#[test]
fn a_reload_releases_no_brake() {
    let lab = Lab::new("reload-brake");
    for n in 0..60 {
        lab.repo.write(format!("many/{n}"), format!("{n}\n"));
    }
    lab.repo.commit_all("many");
    let (near, other) = (lab.embedded("near"), lab.embedded("other"));
    lab.configure(&[("near", &near)]);
    let client = lab.client();
    lab.assert_converges(&client, &["near"]);
    let before = lab.server_tree("near");
    lab.repo.rename("many", "../many-away");
    client.wait_state("app@near", "halted", PATIENCE);

    let mark = client.mark();
    lab.configure_with(&[("near", &near)], "history = 3");
    assert_eq!(client.reloaded().names("changed"), ["app@near"]);
    client.wait_until("it to be halted again", PATIENCE, |events| {
        let states = || events[mark..].iter().filter(|e| e.is("state", "app@near"));
        let last = states().next_back().is_some_and(|state| state.text("to") == Some("halted"));
        (last && states().any(|state| state.text("to") == Some("connecting"))).then_some(())
    });
    lab.configure_with(&[("near", &near), ("other", &other)], "history = 3");
    assert_eq!(client.reloaded().names("added"), ["app@other"]);
    client.wait_state("app@other", "halted", PATIENCE);
    assert_eq!(lab.server_tree("near"), before, "nothing was touched");

    lab.repo.rename("../many-away", "many");
    lab.assert_converges(&client, &["near", "other"]);
    let acks = [client.since(0, "acked", "app@near"), client.since(0, "acked", "app@other")].concat();
    assert!(acks.iter().all(|ack| ack.number("deleted") == 0), "{acks:?}");
}
