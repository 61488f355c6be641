//! Either side may die at any moment; the other carries on and nobody has to help (P8, P9).

use std::path::Path;
use std::time::Duration;

use gitsync_tests::event::Standing;
use gitsync_tests::lab::Lab;
use gitsync_tests::process::{self, PATIENCE};
use gitsync_tests::tree;

#[test]
fn a_killed_server_comes_back_and_catches_up_by_itself() {
    let lab = Lab::new("server-killed");
    let mut far = lab.serve("far");
    lab.configure(&[("near", &lab.embedded("near")), ("far", &far.url())]);
    let client = lab.client();
    lab.assert_converges(&client, &["near", "far"]);
    for round in 0..3 {
        lab.repo.write("README.md", format!("# just before, {round}\n"));
        far.kill();
        for n in 0..20 {
            lab.repo.write(format!("burst/{n}"), format!("{round} {n}\n"));
        }
        lab.repo.write("src/main.rs", format!("// round {round}\n"));
        // P8: the other target is served while this one is down.
        lab.assert_converges(&client, &["near"]);
        far.restart();
        lab.assert_converges(&client, &["near", "far"]);
    }
}

#[test]
fn a_server_that_is_down_does_not_delay_another() {
    let lab = Lab::new("independent");
    let mut far = lab.serve("far");
    lab.configure(&[("near", &lab.embedded("near")), ("far", &far.url())]);
    let client = lab.client();
    lab.assert_converges(&client, &["near", "far"]);
    far.kill();
    client.wait_state("app@far", "retrying", PATIENCE);
    let mark = client.mark();
    for n in 0..10 {
        lab.repo.write("README.md", format!("# {n}\n"));
        lab.assert_converges(&client, &["near"]);
    }
    for ack in client.since(mark, "acked", "app@near") {
        assert!(ack.millis("latency_ms") < 1000.0, "{ack:?}");
    }
    assert!(!client.since(mark, "acked", "app@near").is_empty());
    assert!(client.since(mark, "acked", "app@far").is_empty());
}

#[test]
fn a_server_killed_in_the_middle_of_a_large_apply_converges() {
    let lab = Lab::new("killed-mid-apply");
    let mut far = lab.serve("far");
    lab.configure(&[("far", &far.url())]);
    let client = lab.client();
    lab.assert_converges(&client, &["far"]);
    for round in 0..5u8 {
        for n in 0..200 {
            lab.repo.write(format!("many/{}/{n}", n % 9), vec![round; 2000 + n]);
        }
        client.wait_until("the change to be noticed", PATIENCE, |events| {
            (Standing::of(events, "app@far").state == "syncing").then_some(())
        });
        far.kill();
        far.restart();
        lab.assert_converges(&client, &["far"]);
    }
}

/// P1 and P9: what an interrupted apply emptied goes with the next session, and is nobody's edit.
#[test]
fn a_server_killed_while_it_deletes_leaves_no_empty_directories() {
    let lab = Lab::new("killed-mid-delete");
    let mut far = lab.serve("far");
    lab.configure(&[("far", &far.url())]);
    let client = lab.client();
    lab.assert_converges(&client, &["far"]);
    for round in 0..5 {
        for n in 0..150 {
            lab.repo.write(format!("many/{n}/deep/file"), format!("{round} {n}\n"));
        }
        lab.assert_converges(&client, &["far"]);
        lab.repo.remove_dir("many");
        let gone = lab.workspace("far").join(format!("many/{}/deep/file", round * 30));
        process::poll_until("a file to be deleted", PATIENCE, || (!gone.exists()).then_some(()));
        far.kill();
        far.restart();
        lab.assert_converges(&client, &["far"]);
    }
    assert_eq!(client.since(0, "drift", "app@far"), [], "nobody edited anything on the server");
}

#[test]
fn a_server_told_to_end_ends_with_0_and_its_client_reconnects() {
    let lab = Lab::new("server-term");
    let mut far = lab.serve("far");
    lab.configure(&[("far", &far.url())]);
    let client = lab.client();
    lab.assert_converges(&client, &["far"]);
    assert_eq!(far.terminate().code(), Some(0));
    lab.repo.write("README.md", "# while it was away\n");
    far.restart();
    lab.assert_converges(&client, &["far"]);
}

#[test]
fn a_killed_client_picks_up_where_it_was() {
    let lab = Lab::new("client-killed");
    let far = lab.serve("far");
    lab.configure(&[("near", &lab.embedded("near")), ("far", &far.url())]);
    let mut client = lab.client();
    lab.assert_converges(&client, &["near", "far"]);
    for round in 0..5u8 {
        for n in 0..50 {
            lab.repo.write(format!("many/{n}"), vec![round; 3000 + n]);
        }
        lab.repo.write("README.md", format!("# round {round}\n"));
        let limit = Duration::from_millis(u64::from(round) * 10);
        client.let_work(limit);
        client.kill();
        client = lab.client();
        lab.assert_converges(&client, &["near", "far"]);
    }
}

#[test]
fn a_restart_without_a_change_sends_and_writes_nothing() {
    let lab = Lab::new("client-restart");
    let far = lab.serve("far");
    lab.configure(&[("near", &lab.embedded("near")), ("far", &far.url())]);
    let mut client = lab.client();
    let expected = lab.assert_converges(&client, &["near", "far"]);
    client.kill();
    let before = [lab.server_tree("near"), lab.server_tree("far")];
    let client = lab.client();
    lab.assert_converges(&client, &["near", "far"]);
    for target in ["app@near", "app@far"] {
        let sessions = client.since(0, "session", target);
        let [session] = sessions.as_slice() else { panic!("one session, not {sessions:?}") };
        assert_eq!(session.text("rung"), Some("none"), "{session:?}");
        assert_eq!(session.patch_id(), Some(expected.id.clone()));
        let written: u64 = client.since(0, "acked", target).iter().map(|ack| ack.number("written")).sum();
        assert_eq!(written, 0);
    }
    assert_eq!([lab.server_tree("near"), lab.server_tree("far")], before, "nothing was touched");
}

#[test]
fn changes_made_while_the_client_was_away_are_all_that_is_written() {
    let lab = Lab::new("client-away");
    let far = lab.serve("far");
    lab.configure(&[("far", &far.url())]);
    let client = lab.client();
    lab.assert_converges(&client, &["far"]);
    assert_eq!(client.terminate().code(), 0);
    let before = lab.server_tree("far");
    lab.repo.write("README.md", "# while we were away\n");
    lab.repo.remove("src/lib.rs");
    let client = lab.client();
    lab.assert_converges(&client, &["far"]);
    let acks = client.since(0, "acked", "app@far");
    let sum = |field| acks.iter().map(|ack| ack.number(field)).sum::<u64>();
    assert_eq!((sum("written"), sum("deleted")), (1, 1), "{acks:?}");
    let touched = tree::touched(&before, &lab.server_tree("far"), |path| {
        path != Path::new("README.md") && path != Path::new("src/lib.rs")
    });
    assert!(touched.is_empty(), "also touched {touched:?}");
}

#[test]
fn a_lost_cache_costs_time_but_nothing_on_the_server() {
    let lab = Lab::new("lost-cache");
    let far = lab.serve("far");
    lab.configure(&[("far", &far.url())]);
    let mut client = lab.client();
    lab.assert_converges(&client, &["far"]);
    client.kill();
    let before = lab.server_tree("far");
    lab.home.lose_cache();
    let client = lab.client();
    lab.assert_converges(&client, &["far"]);
    assert_eq!(lab.server_tree("far"), before, "nothing was touched");
}

#[test]
fn a_server_that_comes_late_is_found() {
    let lab = Lab::new("server-late");
    let mut far = lab.serve("far");
    lab.configure(&[("far", &far.url())]);
    far.kill();
    let client = lab.client();
    client.wait_state("app@far", "retrying", PATIENCE);
    far.restart();
    let expected = lab.expect();
    client.wait_acked("app@far", &expected.id, Duration::from_secs(15));
    lab.assert_equal("far", &expected, &[]);
}
