//! Git's own work costs a server as little as it changes in the working tree (P2): nothing for what only moves commits,
//! refs or the index, one write for each path a switch changes.

use std::collections::BTreeSet;
use std::path::PathBuf;

use gitsync_tests::git::Repo;
use gitsync_tests::lab::Lab;
use gitsync_tests::mirrored::{Mirrored, assert_unseen};

#[test]
fn a_commit_writes_nothing_on_a_server() {
    Mirrored::new("q-commit").assert_costs_nothing(|repo| repo.commit_all("second"));
}

#[test]
fn an_amend_writes_nothing_on_a_server() {
    let at = Mirrored::new("q-amend");
    at.assert_costs_nothing(|repo| {
        repo.git(["commit", "-q", "-a", "--amend", "-m", "better"]);
    });
}

#[test]
fn an_add_and_an_unstage_write_nothing_on_a_server() {
    let at = Mirrored::new("q-add");
    at.assert_costs_nothing(|repo| {
        repo.git(["add", "-A"]);
        repo.git(["restore", "--staged", "."]);
    });
}

#[test]
fn a_gc_writes_nothing_on_a_server() {
    let at = Mirrored::new("q-gc");
    at.assert_costs_nothing(|repo| {
        repo.git(["gc", "-q", "--prune=now"]);
    });
}

#[test]
fn a_push_and_a_fetch_write_nothing_on_a_server() {
    let at = Mirrored::new("q-fetch");
    let origin = Repo::init_with(&at.lab.path("origin.git"), at.repo().home(), &["--bare"]);
    at.assert_costs_nothing(|repo| {
        repo.git(["remote", "add", "origin", origin.root().to_str().expect("ASCII")]);
        repo.git(["push", "-q", "origin", "main", "main:theirs"]);
        repo.git(["fetch", "-q", "origin"]);
    });
}

#[test]
fn tags_and_branches_write_nothing_on_a_server() {
    let at = Mirrored::new("q-refs");
    at.assert_costs_nothing(|repo| {
        repo.git(["tag", "-a", "-m", "release", "v1"]);
        repo.git(["branch", "old"]);
        repo.git(["switch", "-q", "-c", "topic"]);
        repo.git(["branch", "-q", "-D", "main"]);
        repo.git(["pack-refs", "--all"]);
    });
}

#[test]
fn a_soft_and_a_mixed_reset_write_nothing_on_a_server() {
    let at = Mirrored::new("q-reset");
    at.repo().commit_all("second");
    at.repo().commit_all("third");
    at.assert_costs_nothing(|repo| {
        repo.git(["reset", "-q", "--soft", "HEAD~1"]);
        repo.git(["reset", "-q", "--mixed", "HEAD~1"]);
    });
}

/// Git removes the changes and brings them back; the hold for its lock hides both.
#[test]
fn a_stash_that_is_popped_at_once_is_not_seen_by_a_server() {
    let at = Mirrored::new("q-stash");
    assert_unseen(&at, |repo| {
        repo.git(["stash", "-q", "-u"]);
        repo.git(["stash", "pop", "-q"]);
    });
}

/// Git goes back to the base and applies every commit anew: each file changes on the way, none in the end.
#[test]
fn a_rebase_to_the_same_tree_is_not_seen_by_a_server() {
    let at = Mirrored::new("q-rebase");
    at.repo().commit_all("all");
    for n in 0..5 {
        at.repo().write("src/main.rs", format!("// {n}\n"));
        at.repo().write(format!("src/new-{n}.rs"), "// new\n");
        at.repo().commit_all(&format!("step {n}"));
    }
    at.converges();
    assert_unseen(&at, |repo| {
        repo.git(["rebase", "-q", "--autostash", "--force-rebase", "HEAD~5"]);
    });
}

/// Two branches that differ by changed, new and deleted files, and some incompressible bytes.
fn lab_with_branches(name: &str) -> (Lab, BTreeSet<PathBuf>) {
    let lab = Lab::new(name);
    let repo = &lab.repo;
    let noise = |seed: u64| {
        let mut bytes = vec![0; 100_000];
        fastrand::Rng::with_seed(seed).fill(&mut bytes);
        bytes
    };
    for n in 0..20 {
        repo.write(format!("common/{n}"), "the same on both\n");
        repo.write(format!("differs/{n}"), "main's\n");
        repo.write(format!("only-main/{n}"), "main's alone\n");
    }
    repo.write("noise", noise(1));
    repo.commit_all("main's");
    repo.git(["switch", "-q", "-c", "topic"]);
    repo.remove_dir("only-main");
    for n in 0..20 {
        repo.write(format!("differs/{n}"), "topic's\n");
        repo.write(format!("only-topic/{n}"), "topic's alone\n");
    }
    repo.write("noise", noise(2));
    repo.commit_all("topic's");
    let changed = lab.repo.ask(["diff", "--name-only", "main", "topic"]).lines().map(PathBuf::from).collect();
    repo.git(["switch", "-q", "main"]);
    (lab, changed)
}

#[test]
fn a_switch_writes_each_changed_path_once_and_so_does_the_way_back() {
    let (lab, changed) = lab_with_branches("q-switch");
    let at = Mirrored::of(lab);
    for branch in ["topic", "main"] {
        let cost = at.cost_of(|repo| {
            repo.git(["switch", "-q", branch]);
        });
        assert_eq!((cost.written, cost.deleted), (41, 20), "to {branch}");
        assert_eq!(cost.touched, changed, "to {branch}");
    }
}
