//! Directories that hold something already become workspaces (`--adopt`): what is equal is taken as it is, what differs is
//! kept, and nothing is deleted.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use gitsync_tests::bin;
use gitsync_tests::client::Ended;
use gitsync_tests::git::{self, Repo};
use gitsync_tests::history::assert_same_git;
use gitsync_tests::lab::Lab;
use gitsync_tests::process::PATIENCE;
use gitsync_tests::server::Server;
use gitsync_tests::tree::{self, Node};

/// A server that adopts, and a client that is told of it.
fn lab_with_server(name: &str) -> (Lab, Server) {
    let lab = Lab::new(name);
    let server = lab.serve_with("far", "127.0.0.1:0", &["--adopt"]);
    lab.configure(&[("far", &server.url())]);
    (lab, server)
}

/// Somebody's own clone of the repository on the server, at its last commit and with work of theirs in it.
fn clone_of(lab: &Lab) -> Repo {
    let at = lab.workspace("far");
    git::run(git::command(lab.repo.home()).arg("clone").arg("-q").arg(lab.repo.root()).arg(&at));
    Repo::at(&at, lab.repo.home())
}

/// Inode and time of last change.
fn stamp(path: &Path) -> (u64, i64, i64) {
    let meta = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (meta.ino(), meta.mtime(), meta.mtime_nsec())
}

/// What of a clone's own repository nobody else may change: all but the index, and what git only adds to.
fn git_files(clone: &Repo) -> BTreeMap<PathBuf, Node> {
    let theirs = |path: &Path| {
        let ours = ["index", "gitsync", "logs", "config", "objects/pack"];
        path.strip_prefix(".git").is_ok_and(|path| !ours.iter().any(|ours| path.starts_with(ours)))
    };
    tree::walk_with_git(clone.root()).files.into_iter().filter(|(path, _)| theirs(path)).collect()
}

fn drifted(ended: &Ended) -> Vec<String> {
    let drift = ended.events.iter().filter(|e| e.is("drift", "app@far"));
    drift.flat_map(|e| e.paths().into_iter().map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[track_caller]
fn assert_done(ended: &Ended, kept: u64) {
    assert_eq!(ended.code(), 0, "{ended}");
    let summary = &ended.summary().json()["targets"]["app@far"];
    assert_eq!(summary["kept"], kept, "{ended}");
}

#[test]
fn somebodys_clone_is_taken_over_with_what_is_equal_as_it_is() {
    let (lab, server) = lab_with_server("adopt-clone");
    let clone = clone_of(&lab);
    // Theirs: an edit, a staged file, a stash, a branch, an untracked file, build output.
    clone.write("run.sh", "stashed\n");
    clone.git(["stash", "-q"]);
    clone.git(["branch", "mine"]);
    clone.write("src/lib.rs", "// my own edit\n");
    clone.write("staged.txt", "staged\n");
    clone.git(["add", "staged.txt"]);
    clone.write("notes/mine.txt", "untracked\n");
    clone.write("build/out.o", "object code");
    // The client has one file less than their commit.
    lab.repo.git(["rm", "-q", "empty"]);
    let equal = ["README.md", "run.sh", "src/deep/er/leaf.rs", "link", ".gitignore"];
    let before = equal.map(|path| stamp(&clone.path(path)));
    let git_before = git_files(&clone);

    let ended = lab.once();
    assert_done(&ended, 2);
    assert_eq!(drifted(&ended), ["src/lib.rs", "src/main.rs"], "{ended}");
    let said = ended.events.iter().find(|e| e.is("note", "app@far")).and_then(|e| e.text("message"));
    assert!(said.is_some_and(|text| text.contains("5 of 8 files")), "{ended}");
    assert_eq!(equal.map(|path| stamp(&clone.path(path))), before, "inode and time stay");
    let foreign = ["staged.txt", "notes/mine.txt", "build/out.o", "empty"];
    lab.assert_equal("far", &lab.expect(), &foreign);
    let git_after = git_files(&clone);
    for (path, node) in &git_before {
        assert_eq!(git_after.get(path), Some(node), "{}", path.display());
    }

    let listed =
        lab.home.bare_command().args(["drift", "app@far", "--config"]).arg(lab.home.config()).output();
    let listed = String::from_utf8(listed.expect("the client can start").stdout).expect("UTF-8");
    assert!(listed.contains("src/lib.rs") && listed.contains("src/main.rs"), "{listed}");

    // From here on it is a workspace like any other: it needs no flag, and deletes are followed.
    drop(server);
    let server = lab.serve("far");
    lab.configure(&[("far", &server.url())]);
    lab.repo.remove("README.md");
    let ended = lab.once();
    assert_done(&ended, 0);
    assert!(!clone.path("README.md").exists());
    lab.assert_equal("far", &lab.expect(), &foreign);
}

/// An index is written anew, so what only the old one leads to has to be kept, and a merge that goes on would not be one
/// of the client's.
#[test]
fn what_is_only_staged_or_half_merged_in_an_adopted_clone_is_kept() {
    let (lab, _server) = lab_with_server("adopt-staged");
    let clone = clone_of(&lab);
    clone.write("run.sh", "staged and gone\n");
    clone.git(["add", "run.sh"]);
    clone.git(["checkout", "-q", "HEAD", "--", "README.md"]);
    fs::write(clone.path(".git/MERGE_HEAD"), clone.git(["rev-parse", "HEAD"])).expect("it is ours");
    fs::write(clone.path("run.sh"), "#!/bin/sh\necho hello\n").expect("it is ours");
    let ended = lab.once();
    assert_eq!(ended.code(), 0, "{ended}");
    let kept = clone.ask(["for-each-ref", "--format=%(refname)", "refs/gitsync/recovery"]);
    let index = kept.lines().find(|name| name.ends_with("-index")).unwrap_or_else(|| panic!("{kept}"));
    assert_eq!(clone.ask(["show", &format!("{index}:run.sh")]), "staged and gone");
    assert_same_git(&lab.repo, &clone);
    let said = clone.ask(["status"]);
    assert!(!said.contains("merg"), "{said}");
    let aside = tree::walk(&clone.path(".git/gitsync/unfinished"));
    assert!(aside.files.keys().any(|path| path.ends_with("MERGE_HEAD")), "{:?}", aside.files.keys());
}

#[test]
fn a_plain_directory_is_taken_over_and_loses_nothing() {
    let (lab, _server) = lab_with_server("adopt-plain");
    let at = lab.workspace("far");
    let plant = |path: &str, bytes: &str| {
        let path = at.join(path);
        fs::create_dir_all(path.parent().expect("below the workspace"))
            .expect("the server's disk is writable");
        fs::write(path, bytes).expect("the server's disk is writable");
    };
    plant("README.md", "# app\n");
    plant("src/lib.rs", "another one\n");
    plant("thesis/chapter-1.txt", "somebody's only copy\n");
    // Where the client has a directory.
    plant("notes", "a file\n");
    let before = stamp(&at.join("README.md"));

    let ended = lab.once();
    assert_done(&ended, 2);
    assert_eq!(drifted(&ended), ["notes", "src/lib.rs"], "{ended}");
    assert_eq!(stamp(&at.join("README.md")), before);
    lab.assert_equal("far", &lab.expect(), &["thesis/chapter-1.txt"]);
    let kept = tree::walk(&at.join(".git/gitsync/recovery"));
    for bytes in ["another one\n", "a file\n"] {
        assert!(kept.files.values().any(|node| node.bytes == bytes.as_bytes()), "{bytes:?}: {kept:?}");
    }
}

/// Asked to compare everything anew, before and after: still nothing goes that was there.
#[test]
fn a_resync_of_an_adopted_clone_deletes_nothing() {
    let (lab, _server) = lab_with_server("adopt-resync");
    let clone = clone_of(&lab);
    clone.write("mine.txt", "untracked\n");
    lab.repo.git(["rm", "-q", "empty"]);
    let client = lab.client();
    let resync = || {
        let status = lab.home.bare_command().args(["resync", "--config"]).arg(lab.home.config()).status();
        assert!(status.expect("the client can start").success());
    };
    client.wait_until("the client to be there", PATIENCE, |events| {
        events.iter().any(|e| e.is("state", "app@far")).then_some(())
    });
    resync();
    client.wait_acked("app@far", &lab.expect().id, PATIENCE);
    lab.assert_equal("far", &lab.expect(), &["mine.txt", "empty"]);
    let mark = client.mark();
    resync();
    client.wait_until("the comparison to be over", PATIENCE, |events| {
        events[mark..].iter().any(|e| e.is("acked", "app@far")).then_some(())
    });
    lab.assert_equal("far", &lab.expect(), &["mine.txt", "empty"]);
    assert_eq!(fs::read(clone.path("mine.txt")).expect("it stays"), b"untracked\n");
}

/// The first generation is cut short at some point: what it had taken over is still not taken for ours to delete.
#[test]
fn an_adoption_that_is_cut_short_deletes_nothing_later() {
    let (lab, mut server) = lab_with_server("adopt-cut");
    let clone = clone_of(&lab);
    for n in 0..200 {
        clone.write(format!("many/{n}"), format!("{n}\n"));
        lab.repo.write(format!("many/{n}"), format!("{n}\n"));
        lab.repo.write(format!("new/{n}"), format!("{n}\n"));
    }
    let mut client = lab.client();
    client.wait_until("the session to begin", PATIENCE, |events| {
        events.iter().any(|e| e.is("session", "app@far")).then_some(())
    });
    server.kill();
    client.kill();
    let was_cut = clone.path(".git/gitsync/adopting").exists();
    for n in 0..100 {
        lab.repo.remove(format!("many/{n}"));
    }
    server.restart();
    assert_eq!(lab.once().code(), 0);
    let removed: Vec<String> = (0..100).map(|n| format!("many/{n}")).collect();
    let removed: Vec<&str> = removed.iter().map(String::as_str).collect();
    lab.assert_equal("far", &lab.expect(), &removed);
    // If it was not cut short after all, deletes are followed.
    assert!(removed.iter().all(|path| clone.path(path).exists() == was_cut), "cut: {was_cut}");
}

#[test]
fn without_the_flag_the_flag_is_named_and_nothing_is_touched() {
    let lab = Lab::new("adopt-no");
    let server = lab.serve("far");
    lab.configure(&[("far", &server.url())]);
    let clone = clone_of(&lab);
    let before = tree::walk_with_git(clone.root());
    let ended = lab.once();
    assert_eq!(ended.code(), 4, "{ended}");
    assert!(ended.to_string().contains("--adopt"), "{ended}");
    assert_eq!(tree::walk_with_git(clone.root()), before);

    // A linked worktree has its repository elsewhere.
    fs::remove_dir_all(clone.root()).expect("the server's disk is writable");
    let at = clone.root().to_str().expect("ASCII");
    lab.repo.git(["worktree", "add", "-q", "--detach", at]);
    let ended = lab.once();
    assert_eq!(ended.code(), 4, "{ended}");
    assert!(ended.to_string().contains("linked worktree"), "{ended}");
}

/// A server that is told about its workspaces by a file.
fn serve_configured(lab: &Lab, text: &str) -> Server {
    let file = lab.path("server.toml");
    fs::write(&file, text).expect("the sandbox is writable");
    lab.serve_with("far", "127.0.0.1:0", &["--config", file.to_str().expect("ASCII")])
}

#[test]
fn the_servers_file_says_which_workspaces_may_be_adopted() {
    let lab = Lab::new("adopt-file");
    let clone = clone_of(&lab);
    let server = serve_configured(&lab, "[[workspace]]\nname = \"other\"\nadopt = true\n");
    lab.configure(&[("far", &server.url())]);
    let before = tree::walk_with_git(clone.root());
    let ended = lab.once();
    assert_eq!(ended.code(), 4, "{ended}");
    assert!(ended.to_string().contains("adopt = true"), "{ended}");
    assert_eq!(tree::walk_with_git(clone.root()), before);
    drop(server);

    let server = serve_configured(&lab, "[[workspace]]\nname = \"a*\"\nadopt = true\n");
    lab.configure(&[("far", &server.url())]);
    assert_done(&lab.once(), 1);
    lab.assert_equal("far", &lab.expect(), &[]);
}

/// The operator's word on what a workspace is of counts like its clone's own.
#[test]
fn remotes_in_the_servers_file_are_compared_too() {
    let lab = Lab::new("remotes-file");
    lab.repo.git(["remote", "add", "origin", "https://example.com/team/app"]);
    let text = |path: &str| {
        let remote = format!("[[workspace.remote]]\nname = \"o\"\nurl = \"git@example.com:{path}.git\"\n");
        format!("[[workspace]]\nname = \"app\"\n{remote}")
    };
    let server = serve_configured(&lab, &text("team/other"));
    lab.configure(&[("far", &server.url())]);
    let ended = lab.once();
    assert_eq!(ended.code(), 4, "{ended}");
    assert!(ended.to_string().contains("there: example.com/team/other"), "{ended}");
    drop(server);

    let server = serve_configured(&lab, &text("team/app"));
    lab.configure(&[("far", &server.url())]);
    assert_done(&lab.once(), 0);
}

#[test]
fn a_servers_file_with_faults_is_78_with_all_of_them() {
    let lab = Lab::empty("server-file");
    let file = lab.path("server.toml");
    fs::write(&file, "[[workspace]]\nname = \"app\"\nadpot = true\nfetch = true\n").expect("writable");
    let run = |file: &Path| {
        let mut serve = Command::new(bin::server());
        git::hermetic(&mut serve, lab.repo.home());
        serve.args(["serve", "--insecure", "--listen", "127.0.0.1:0", "--root"]).arg(lab.path("root"));
        serve.arg("--config").arg(file).output().expect("the server can be started")
    };
    let output = run(&file);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{stderr}");
    for says in ["server.toml:3:1", "adpot = true", "did you mean `adopt`", "server.toml:4:9", "2 problems"] {
        assert!(stderr.contains(says), "{says}: {stderr}");
    }
    let output = run(&lab.path("nowhere.toml"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{stderr}");
    assert!(stderr.contains("nowhere.toml"), "{stderr}");
}
