//! A person works with git while a client runs: no command of theirs fails, and what git leaves behind is exactly what
//! it leaves without a client (P6).
//!
//! `GITSYNC_COMMITS` chooses a longer run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gitsync_tests::git::Repo;
use gitsync_tests::lab::Lab;
use gitsync_tests::mirrored::Mirrored;
use gitsync_tests::{process, tree};

/// One turn of the loop: an edit and its commit, and every few turns something rarer. Panics at the first command that
/// fails. Equal turns make equal commits: identity and date are fixed.
fn turn(repo: &Repo, n: u64) {
    repo.write("src/main.rs", format!("// turn {n}\n"));
    repo.git(["add", "src"]);
    repo.git(["commit", "-q", "-m", &format!("turn {n}")]);
    if n.is_multiple_of(3) {
        repo.write(format!("src/file-{}", n % 20), format!("{n}\n"));
        repo.git(["add", "src"]);
        repo.git(["commit", "-q", "--amend", "-m", &format!("turn {n}, better")]);
    }
    if n % 4 == 1 {
        repo.git(["switch", "-q", "-c", "topic", "HEAD~2"]);
        for step in 0..3 {
            repo.write(format!("topic/{step}"), format!("{n}\n"));
            repo.git(["add", "topic"]);
            repo.git(["commit", "-q", "-m", &format!("topic {step} of turn {n}")]);
        }
        repo.git(["rebase", "-q", "main"]);
        repo.git(["switch", "-q", "main"]);
        repo.git(["merge", "-q", "--ff-only", "topic"]);
        repo.git(["branch", "-q", "-d", "topic"]);
    }
    if n % 5 == 2 {
        repo.write("README.md", format!("# stashed in turn {n}\n"));
        repo.git(["stash", "-q"]);
        repo.git(["stash", "pop", "-q"]);
        repo.git(["restore", "README.md"]);
    }
    if n % 7 == 3 {
        repo.git(["tag", "-a", "-m", "a release", &format!("v{n}")]);
        repo.git(["reset", "-q", "--soft", "HEAD~1"]);
        repo.git(["commit", "-q", "-m", &format!("turn {n} again")]);
    }
    if n % 50 == 49 {
        repo.git(["gc", "-q", "--prune=now"]);
    }
}

/// Everything in the git directory but the index, whose bytes hold times and inodes.
fn left_by_git(repo: &Repo) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = tree::walk_with_git(&repo.path(".git")).files.into_iter();
    files.filter(|(path, _)| path != Path::new("index")).map(|(path, node)| (path, node.bytes)).collect()
}

fn prepare(repo: &Repo) {
    // Git would decide by the clock when to clean up.
    repo.git(["config", "gc.auto", "0"]);
    repo.git(["config", "maintenance.auto", "false"]);
    // With more threads the deltas it finds, and so the bytes of its packs, depend on the clock too.
    repo.git(["config", "pack.threads", "1"]);
    repo.write("README.md", "# app\n");
    for n in 0..3 {
        repo.write("src/main.rs", format!("// before {n}\n"));
        repo.commit_all(&format!("before {n}"));
    }
}

#[test]
fn a_loop_of_commits_and_rebases_leaves_what_git_alone_leaves() {
    let turns = process::number_from_env("GITSYNC_COMMITS").unwrap_or(40);
    let lab = Lab::empty("beside");
    let twin = Repo::init(&lab.path("twin"), lab.repo.home());
    prepare(&lab.repo);
    prepare(&twin);
    let at = Mirrored::of(lab);
    at.repo().while_busy(|| {
        for n in 0..turns {
            turn(at.repo(), n);
        }
    });
    let index = std::fs::read(at.repo().path(".git/index")).expect("there is an index");
    at.converges();
    for n in 0..turns {
        turn(&twin, n);
    }
    assert_eq!(
        std::fs::read(at.repo().path(".git/index")).expect("it is there"),
        index,
        "nobody else wrote it"
    );
    let staged = |repo: &Repo| repo.git(["ls-files", "-s", "-v"]);
    assert_eq!(staged(at.repo()), staged(&twin));
    let (ours, theirs) = (left_by_git(at.repo()), left_by_git(&twin));
    let differ = |a: &BTreeMap<PathBuf, Vec<u8>>, b: &BTreeMap<PathBuf, Vec<u8>>| {
        a.iter()
            .filter(|(path, bytes)| b.get(*path) != Some(bytes))
            .map(|(path, _)| path.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(differ(&ours, &theirs), Vec::<PathBuf>::new(), "beside a client");
    assert_eq!(differ(&theirs, &ours), Vec::<PathBuf>::new(), "without one");
}
