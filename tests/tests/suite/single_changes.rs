//! One change at a time, on both kinds of server at once: acked with the right id, and nothing else touched (P1, P2).

use std::path::Path;

use gitsync_tests::client::Client;
use gitsync_tests::event::Event;
use gitsync_tests::git::Repo;
use gitsync_tests::lab::Lab;
use gitsync_tests::process::PATIENCE;
use gitsync_tests::server::Server;
use gitsync_tests::tree;

const SERVERS: [&str; 2] = ["near", "far"];

/// A client in sync with one embedded server and one server process.
struct InSync {
    client: Client,
    lab: Lab,
    _far: Server,
}

/// What the acks of one change say together: a change of several steps may come in several patches.
#[derive(Debug, PartialEq, Eq)]
struct Cost {
    written: u64,
    deleted: u64,
}

impl InSync {
    fn new(name: &str) -> Self {
        let lab = Lab::new(name);
        let far = lab.serve("far");
        lab.configure(&[("near", &lab.embedded("near")), ("far", &far.url())]);
        let client = lab.client();
        lab.assert_converges(&client, &SERVERS);
        Self { client, lab, _far: far }
    }

    /// Makes a change and checks that every server follows, touching only what lies at or below `changed`.
    #[track_caller]
    fn change(&self, changed: &[&str], change: impl FnOnce(&Repo)) -> Cost {
        let before = SERVERS.map(|server| self.lab.server_tree(server));
        let mark = self.client.mark();
        change(&self.lab.repo);
        self.lab.assert_converges(&self.client, &SERVERS);
        for (server, before) in SERVERS.iter().zip(&before) {
            let after = self.lab.server_tree(server);
            let meant = |path: &Path| changed.iter().any(|c| path.starts_with(c));
            let touched = tree::touched(before, &after, |path| !meant(path));
            assert!(touched.is_empty(), "{server} also touched {touched:?}");
        }
        let costs = SERVERS.map(|server| cost(&self.client.since(mark, "acked", &self.lab.target(server))));
        assert_eq!(costs[0], costs[1], "both servers did the same work");
        let [cost, _] = costs;
        cost
    }
}

fn cost(acks: &[Event]) -> Cost {
    Cost {
        written: acks.iter().map(|ack| ack.number("written")).sum(),
        deleted: acks.iter().map(|ack| ack.number("deleted")).sum(),
    }
}

#[test]
fn an_edit_writes_one_file() {
    let at = InSync::new("edit");
    let cost = at.change(&["src/main.rs"], |repo| repo.write("src/main.rs", "fn main() { todo!() }\n"));
    assert_eq!(cost, Cost { written: 1, deleted: 0 });
}

#[test]
fn an_ack_carries_the_figures_of_its_patch() {
    let at = InSync::new("figures");
    let before = at.lab.expect();
    let mark = at.client.mark();
    at.lab.repo.write("README.md", "# changed\n");
    let after = at.lab.assert_converges(&at.client, &SERVERS);
    for server in SERVERS {
        let acks = at.client.since(mark, "acked", &at.lab.target(server));
        let [ack] = acks.as_slice() else { panic!("one save is one ack, not {acks:?}") };
        assert_eq!(ack.text("parent_id"), Some(before.id.0.as_str()));
        assert_eq!(ack.text("patch_id"), Some(after.id.0.as_str()));
        assert!(ack.number("generation") > 0);
        assert!(ack.number("wire_bytes") > 0);
        for figure in ["latency_ms", "apply_ms", "held_ms"] {
            assert!(ack.json().get(figure).is_some_and(serde_json::Value::is_number), "{figure} in {ack:?}");
        }
        assert_eq!(ack.number("withheld"), 0);
    }
}

#[test]
fn a_change_leaves_in_sync_and_comes_back() {
    let at = InSync::new("states");
    let mark = at.client.mark();
    at.change(&["README.md"], |repo| repo.write("README.md", "# changed\n"));
    for server in SERVERS {
        let states = at.client.since(mark, "state", &at.lab.target(server));
        let states: Vec<_> = states.iter().map(|s| (s.text("from"), s.text("to"))).collect();
        let there_and_back = [(Some("in-sync"), Some("syncing")), (Some("syncing"), Some("in-sync"))];
        assert_eq!(states, there_and_back, "{server}");
    }
}

#[test]
fn a_save_by_rename_writes_one_file() {
    let at = InSync::new("save-by-rename");
    let cost = at.change(&["src/main.rs"], |repo| {
        repo.write("src/.main.rs.swp", "fn main() {}\n");
        repo.rename("src/.main.rs.swp", "src/main.rs");
    });
    assert_eq!(cost, Cost { written: 1, deleted: 0 });
}

#[test]
fn a_new_file_in_new_directories_is_written() {
    let at = InSync::new("add");
    let cost = at.change(&["a"], |repo| repo.write("a/b/c/new.txt", "new\n"));
    assert_eq!(cost, Cost { written: 1, deleted: 0 });
}

#[test]
fn a_deleted_file_goes_and_so_does_the_directory_it_leaves_empty() {
    let at = InSync::new("delete");
    let cost = at.change(&["src/deep"], |repo| repo.remove("src/deep/er/leaf.rs"));
    assert_eq!(cost, Cost { written: 0, deleted: 1 });
}

#[test]
fn a_renamed_file_is_one_written_and_one_deleted() {
    let at = InSync::new("rename");
    let cost = at.change(&["README.md", "READ.me"], |repo| repo.rename("README.md", "READ.me"));
    assert_eq!(cost, Cost { written: 1, deleted: 1 });
}

#[test]
fn a_renamed_directory_moves_all_it_holds() {
    let at = InSync::new("rename-dir");
    at.change(&["src", "lib"], |repo| repo.rename("src", "lib"));
    assert!(at.lab.workspace("near").join("lib/deep/er/leaf.rs").is_file());
    assert!(!at.lab.workspace("near").join("src").exists());
}

#[test]
fn the_execute_bit_follows() {
    let at = InSync::new("chmod");
    at.change(&["README.md"], |repo| repo.chmod("README.md", 0o755));
    at.change(&["README.md"], |repo| repo.chmod("README.md", 0o644));
}

#[test]
fn bits_that_are_not_the_owners_execute_bit_change_nothing() {
    let at = InSync::new("chmod-other");
    let before = at.lab.expect();
    at.lab.repo.chmod("README.md", 0o640);
    // A change that must be acked comes after, so that there is something to wait for.
    let cost = at.change(&["notes"], |repo| repo.write("notes/untracked.txt", "changed\n"));
    assert_eq!(cost, Cost { written: 1, deleted: 0 });
    assert_ne!(before.id, at.lab.expect().id);
}

#[test]
fn links_are_created_retargeted_and_replaced() {
    let at = InSync::new("links");
    at.change(&["to-dir"], |repo| repo.symlink("src", "to-dir"));
    at.change(&["dangling"], |repo| repo.symlink("/nonexistent/../x", "dangling"));
    at.change(&["link"], |repo| {
        repo.remove("link");
        repo.symlink("README.md", "link");
    });
    at.change(&["link"], |repo| {
        repo.remove("link");
        repo.write("link", "a file now\n");
    });
}

#[test]
fn a_file_becomes_a_directory_and_a_directory_a_file() {
    let at = InSync::new("types");
    at.change(&["README.md"], |repo| {
        repo.remove("README.md");
        repo.write("README.md/inside", "x");
    });
    at.change(&["src"], |repo| {
        repo.remove_dir("src");
        repo.write("src", "a file now\n");
    });
}

#[test]
fn a_reverted_edit_returns_to_the_earlier_id() {
    let at = InSync::new("revert");
    let before = at.lab.expect();
    let original = std::fs::read(at.lab.repo.path("README.md")).expect("it is there");
    at.change(&["README.md"], |repo| repo.write("README.md", "something else\n"));
    at.change(&["README.md"], |repo| repo.write("README.md", &original));
    assert_eq!(at.lab.expect().id, before.id);
}

/// P3: build tools compare times, so a changed file is as new as its arrival.
#[test]
fn a_changed_file_gets_the_servers_time() {
    let at = InSync::new("mtime");
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    let started = std::time::SystemTime::now();
    at.change(&["README.md"], |repo| {
        repo.write("aside", "# from an archive\n");
        let file = std::fs::File::options().write(true).open(repo.path("aside")).expect("just written");
        file.set_modified(old).expect("we own it");
        repo.rename("aside", "README.md");
    });
    let mirrored = std::fs::metadata(at.lab.workspace("far").join("README.md")).expect("it is there");
    let coarse = std::time::Duration::from_secs(1);
    assert!(mirrored.modified().expect("files have times") + coarse >= started);
}

#[test]
fn edits_of_a_big_file_send_little() {
    let at = InSync::new("big");
    let mut bytes: Vec<u8> =
        (0..3_000_000u32).flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()).collect();
    at.change(&["big.bin"], |repo| repo.write("big.bin", &bytes));
    let mark = at.client.mark();
    bytes[5_000_000] ^= 0xff;
    at.change(&["big.bin"], |repo| repo.write("big.bin", &bytes));
    let sent: u64 =
        at.client.since(mark, "acked", "app@far").iter().map(|ack| ack.number("wire_bytes")).sum();
    assert!(sent < 1_000_000, "{sent} bytes were sent for one changed byte of {}", bytes.len());
}

#[test]
fn a_path_that_becomes_ignored_stays_on_the_server() {
    let at = InSync::new("release");
    at.change(&["notes", ".gitignore"], |repo| repo.write("notes/scratch.log", "x"));
    let expected = {
        at.lab.repo.write(".gitignore", "*.o\nbuild/\n*.log\n");
        at.lab.expect()
    };
    for server in SERVERS {
        at.client.wait_acked(&at.lab.target(server), &expected.id, PATIENCE);
        at.lab.assert_equal(server, &expected, &["notes/scratch.log"]);
        assert!(at.lab.workspace(server).join("notes/scratch.log").is_file(), "{server} released it");
    }
}
