//! The client's repository is only read (P6).

use gitsync_tests::lab::Lab;
use gitsync_tests::tree;

/// Contents, inodes and times of everything in the repository, its git directory included.
#[test]
fn a_session_changes_nothing_in_the_repository() {
    let lab = Lab::new("untouched");
    lab.configure(&[("near", &lab.embedded("near"))]);
    // Touched without a change: a program that refreshes the index would write it now.
    lab.repo.write("src/lib.rs", "pub fn one() -> u32 { 1 }\n");
    let before = tree::walk_with_git(lab.repo.root());
    let client = lab.client();
    lab.assert_converges(&client, &["near"]);
    assert_eq!(tree::walk_with_git(lab.repo.root()), before, "after the first sync");

    lab.repo.write("src/main.rs", "// edited\n");
    lab.repo.remove("README.md");
    lab.repo.write("new/file", "new\n");
    let git_dir = |tree: &tree::Tree| {
        let in_git = |path: &&std::path::PathBuf| path.starts_with(".git");
        let files = tree.files.iter().filter(|(path, _)| in_git(path)).map(|(p, n)| (p.clone(), n.clone()));
        (files.collect::<Vec<_>>(), tree.dirs.iter().filter(in_git).cloned().collect::<Vec<_>>())
    };
    let edited = tree::walk_with_git(lab.repo.root());
    lab.assert_converges(&client, &["near"]);
    assert_eq!(client.terminate().code(), 0);
    let after = tree::walk_with_git(lab.repo.root());
    assert_eq!(after, edited, "after edits");
    assert_eq!(git_dir(&after), git_dir(&before));
}

#[test]
fn committing_beside_a_session_never_fails() {
    let lab = Lab::new("commit-loop");
    lab.configure(&[("near", &lab.embedded("near"))]);
    let client = lab.client();
    lab.assert_converges(&client, &["near"]);
    lab.repo.while_busy(|| {
        for n in 0..100 {
            lab.repo.write("src/main.rs", format!("// commit {n}\n"));
            // Each of these takes and releases locks; `git` panics on the first one that fails.
            lab.repo.git(["add", "src/main.rs"]);
            lab.repo.git(["commit", "-q", "-m", "next"]);
        }
    });
    lab.assert_converges(&client, &["near"]);
}

/// A switch of branches changes many files under git's lock; servers end with all of them.
#[test]
fn branch_switches_stashes_and_resets_are_followed() {
    let lab = Lab::new("switches");
    let far = lab.serve("far");
    lab.configure(&[("near", &lab.embedded("near")), ("far", &far.url())]);
    lab.repo.commit_all("on main");
    lab.repo.git(["switch", "-q", "-c", "topic"]);
    for n in 0..60 {
        lab.repo.write(format!("topic/{}/{n}", n % 4), format!("topic {n}\n"));
    }
    lab.repo.write("src/main.rs", "// topic\n");
    lab.repo.commit_all("on topic");
    let client = lab.client();
    lab.assert_converges(&client, &["near", "far"]);
    let converges = || lab.assert_converges(&client, &["near", "far"]);
    let on_topic = converges().id;
    lab.repo.git(["switch", "-q", "main"]);
    converges();
    lab.repo.git(["switch", "-q", "topic"]);
    assert_eq!(converges().id, on_topic);
    lab.repo.write("src/main.rs", "// to be stashed\n");
    lab.repo.write("untracked", "to be stashed too\n");
    let dirty = converges().id;
    lab.repo.git(["stash", "-q", "-u"]);
    assert_eq!(converges().id, on_topic);
    lab.repo.git(["stash", "pop", "-q"]);
    assert_eq!(converges().id, dirty);
    lab.repo.git(["reset", "-q", "--hard", "HEAD~1"]);
    converges();
    lab.repo.git(["clean", "-qfdx"]);
    converges();
}
