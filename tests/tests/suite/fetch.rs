//! Commits a server fetches for itself, from where its operator says (`fetch = true`) and from nowhere else.

use std::fs;
use std::path::Path;

use gitsync_tests::git::{self, Repo};
use gitsync_tests::lab::Lab;
use gitsync_tests::process::{self, PATIENCE};
use gitsync_tests::server::Server;

/// A bare repository with what the lab's has, and a tag of its own.
fn push_all(lab: &Lab, name: &str) -> Repo {
    let bare = lab.path(name);
    if !bare.exists() {
        Repo::init_with(&bare, lab.repo.home(), &["--bare"]);
    }
    let url = bare.to_str().expect("ASCII");
    lab.repo.git(["push", "-q", "--force", url, "HEAD:refs/heads/main", "HEAD:refs/heads/feature/x"]);
    let bare = Repo::at(&bare, lab.repo.home());
    bare.git(["tag", "--force", "only-there", "main"]);
    bare
}

/// A server that adopts, and fetches `app` from the repository at `origin`.
fn serve(lab: &Lab, origin: &Path) -> Server {
    let remote = format!("[[workspace.remote]]\nname = \"origin\"\nlocal = true\nurl = {origin:?}\n");
    let text = format!("[[workspace]]\nname = \"app\"\nadopt = true\nfetch = true\n{remote}");
    let file = lab.path("server.toml");
    fs::write(&file, text).expect("the sandbox is writable");
    let server = lab.serve_with("far", "127.0.0.1:0", &["--config", file.to_str().expect("ASCII")]);
    lab.configure(&[("far", &server.url())]);
    server
}

/// Refs of the workspace's clone below these, by name and commit.
fn refs(lab: &Lab, below: &[&str]) -> Vec<String> {
    let at = lab.workspace("far");
    let mut list = git::command(lab.repo.home());
    list.arg("-C").arg(&at).args(["for-each-ref", "--format=%(refname) %(objectname)"]).args(below);
    let text = String::from_utf8(git::run(&mut list)).expect("UTF-8");
    text.lines().map(str::to_owned).collect()
}

fn head(repo: &Repo) -> String {
    String::from_utf8(repo.git(["rev-parse", "HEAD"])).expect("ASCII").trim().to_owned()
}

/// Waits until the clone has the remote's branches under our names, at this commit.
#[track_caller]
fn wait_fetched(lab: &Lab, commit: &str) {
    let wanted = ["feature/x", "main"].map(|name| format!("refs/gitsync/remotes/origin/{name} {commit}"));
    process::poll_until("the remote's branches to be there", PATIENCE, || {
        (refs(lab, &["refs/gitsync/remotes"]) == wanted).then_some(())
    });
}

#[test]
fn commits_come_from_the_configured_remote_below_names_of_ours() {
    let lab = Lab::new("fetch");
    let origin = push_all(&lab, "origin.git");
    let _server = serve(&lab, origin.root());
    let client = lab.client();
    lab.assert_converges(&client, &["far"]);
    wait_fetched(&lab, &head(&lab.repo));
    assert_eq!(refs(&lab, &["refs/heads/feature", "refs/tags", "refs/remotes"]), [""; 0]);
    git::run(git::command(lab.repo.home()).arg("-C").arg(lab.workspace("far")).args(["fsck", "--strict"]));
    assert!(!lab.workspace("far").join(".git/FETCH_HEAD").exists());

    // A commit it has not seen is looked for while saves flow on.
    lab.repo.commit_all("second");
    push_all(&lab, "origin.git");
    lab.repo.write("README.md", "# saved meanwhile\n");
    lab.assert_converges(&client, &["far"]);
    drop(client);
    // Whatever the client sent of it meanwhile: by the next session it is there.
    let ended = lab.once();
    assert_eq!(ended.code(), 0, "{ended}");
    let session = ended.events.iter().find(|e| e.is("session", "app@far")).expect("there was a session");
    assert!(session.text("baseline").is_some(), "{ended}");
}

#[test]
fn a_remote_that_cannot_be_reached_is_a_warning_and_no_obstacle() {
    let lab = Lab::new("fetch-down");
    let _server = serve(&lab, &lab.path("nowhere.git"));
    let ended = lab.once();
    assert_eq!(ended.code(), 0, "{ended}");
    lab.assert_equal("far", &lab.expect(), &[]);
    let log = process::poll_until("the warning", PATIENCE, || {
        let log = fs::read_to_string(lab.path("far.log")).ok()?;
        log.contains("cannot fetch").then_some(log)
    });
    assert!(log.contains("nowhere.git"), "the cause is named: {log}");
}

/// Neither what a clone says of remotes nor what it says of urls makes the server connect anywhere else.
#[test]
fn a_clones_own_configuration_leads_nowhere() {
    let lab = Lab::new("fetch-own");
    let at = lab.workspace("far");
    git::run(git::command(lab.repo.home()).arg("clone").arg("-q").arg(lab.repo.root()).arg(&at));
    let clone = Repo::at(&at, lab.repo.home());
    lab.repo.commit_all("second");
    let origin = push_all(&lab, "origin.git");
    let right = head(&lab.repo);
    // Another repository under the same address, if anybody asked the clone.
    let trap = Repo::init(&lab.path("trap"), lab.repo.home());
    trap.write("trap", "trap");
    trap.commit_all("trap");
    let key = format!("url.{}.insteadOf", trap.root().display());
    clone.git(["config", &key, origin.root().to_str().expect("ASCII")]);
    clone.git(["config", "remote.trap.url", trap.root().to_str().expect("ASCII")]);
    clone.git(["config", "remote.trap.fetch", "+refs/heads/*:refs/heads/*"]);

    let _server = serve(&lab, origin.root());
    let client = lab.client();
    lab.assert_converges(&client, &["far"]);
    wait_fetched(&lab, &right);
    let trapped = clone.try_git(["cat-file", "-e", &head(&trap)]);
    assert!(!trapped.status.success(), "nothing came from there");
}
