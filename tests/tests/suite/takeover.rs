//! Two owners and one workspace: one at a time, and handing over is a person's decision.

use std::fs;

use gitsync_tests::client::{Client, Home};
use gitsync_tests::event::Event;
use gitsync_tests::git::{self, Repo};
use gitsync_tests::lab::Lab;
use gitsync_tests::process::PATIENCE;
use gitsync_tests::server::Server;

/// The lab's own client in sync with a server, and a colleague with a clone, a home and a client of their own that is
/// refused.
struct Two {
    server: Server,
    first: Client,
    colleague: Home,
    clone: Repo,
    second: Client,
    lab: Lab,
}

impl Two {
    fn new(name: &str) -> Self {
        let lab = Lab::new(name);
        let server = lab.serve("far");
        lab.configure(&[("far", &server.url())]);
        let first = lab.client();
        lab.assert_converges(&first, &["far"]);
        let colleague = Home::new(lab.path("colleague"));
        let at = lab.path("clone");
        git::run(git::command(lab.repo.home()).arg("clone").arg("-q").arg(lab.repo.root()).arg(&at));
        let clone = Repo::at(&at, lab.repo.home());
        clone.write("README.md", "# the colleague's\n");
        colleague.write_config(&format!(
            "[[server]]\nname = \"far\"\nurl = {:?}\n[[repo]]\nname = \"app\"\npath = {at:?}\n",
            server.url()
        ));
        let second = colleague.start();
        Self { server, first, colleague, clone, second, lab }
    }

    fn take_over(&self) {
        let status = self
            .colleague
            .bare_command()
            .args(["takeover", "app@*", "--config"])
            .arg(self.colleague.config())
            .status();
        assert!(status.expect("the client can start").success());
    }

    /// The colleague halts, and is told by whom the workspace is held and what can be done.
    #[track_caller]
    fn assert_locked_out(&self) {
        self.second.wait_state("app@far", "halted", PATIENCE);
        let errors = self.second.since(0, "error", "app@far");
        let error = errors.last().expect("the reason is an event");
        assert_eq!(error.text("code"), Some("locked"), "{error:?}");
        assert!(error.text("message").is_some_and(|text| text.contains("UTC")), "since when: {error:?}");
        assert!(error.text("hint").is_some_and(|hint| hint.contains("takeover")), "{error:?}");
    }

    /// The server holds what the colleague has.
    #[track_caller]
    fn assert_theirs(&self) {
        let expected = self.lab.oracle().expect(self.clone.root());
        self.second.wait_acked("app@far", &expected.id, PATIENCE);
        self.lab.assert_equal("far", &expected, &[]);
    }
}

#[test]
fn a_locked_workspace_is_taken_over_and_the_former_owner_halts() {
    let two = Two::new("takeover");
    two.assert_locked_out();
    let before = two.lab.server_tree("far");
    assert_eq!(before.files.len(), two.lab.expect().files.len(), "nothing was touched");
    two.take_over();
    two.assert_theirs();

    two.first.wait_state("app@far", "halted", PATIENCE);
    let errors = two.first.since(0, "error", "app@far");
    let error = errors.last().expect("the reason is an event");
    assert_eq!(error.text("code"), Some("superseded"), "{error:?}");
    assert!(error.text("message").is_some_and(|text| text.contains("taken over by")), "{error:?}");
    // It does not come back by itself: the new owner's edits go on, and its own go nowhere.
    two.lab.repo.write("src/lib.rs", "// not for this workspace any more\n");
    two.clone.write("src/main.rs", "fn main() {}\n// goes on\n");
    two.assert_theirs();
    assert_eq!(two.first.standing("app@far").state, "halted");
    let lib = fs::read(two.lab.workspace("far").join("src/lib.rs")).expect("it is mirrored");
    assert_eq!(lib, b"pub fn one() -> u32 { 1 }\n");
}

/// Whoever vanished without a word is not waited for if a person says so.
#[test]
fn the_workspace_of_a_client_that_vanished_is_taken_over() {
    let mut two = Two::new("vanished");
    two.assert_locked_out();
    two.first.kill();
    two.server.kill();
    two.server.restart();
    // Still locked: it may only be asleep.
    let mark = two.second.mark();
    let status =
        two.colleague.bare_command().args(["resync", "--config"]).arg(two.colleague.config()).status();
    assert!(status.expect("the client can start").success());
    two.second.wait_until("the lock to be met again", PATIENCE, |events| {
        let locked = |e: &&Event| e.text("code") == Some("locked");
        events[mark..].iter().find(locked).map(|_| ())
    });
    two.take_over();
    two.assert_theirs();
    // When the former owner comes back, it is the one that is refused.
    let again = two.lab.once();
    assert_eq!(again.code(), 4, "{again}");
    assert!(again.events.iter().any(|e| e.text("code") == Some("locked")), "{again}");
}

#[test]
fn there_is_nothing_to_take_over_where_nobody_else_is() {
    let lab = Lab::new("takeover-own");
    lab.configure(&[("near", &lab.embedded("near"))]);
    let client = lab.client();
    lab.assert_converges(&client, &["near"]);
    let status = lab.home.bare_command().args(["takeover", "--config"]).arg(lab.home.config()).status();
    assert!(status.expect("the client can start").success());
    client.wait_until("the answer", PATIENCE, |events| {
        let said = |e: &&Event| e.text("message").is_some_and(|t| t.contains("nothing to take over"));
        events.iter().find(said).map(|_| ())
    });
    assert_eq!(client.standing("app@near").state, "in-sync");
}
