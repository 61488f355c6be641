//! Repositories that are not one directory with one branch: worktrees, submodules, sparse checkouts, filters, odd index
//! flags, work git stopped in the middle of. All are mirrored as they lie on the disk (P1), and none is written to (P6).

use std::fs;
use std::path::Path;
use std::time::Duration;

use gitsync_tests::git::Repo;
use gitsync_tests::lab::Lab;
use gitsync_tests::mirrored::Mirrored;
use gitsync_tests::process::{self, PATIENCE};
use gitsync_tests::skip::skip;

// --- more than one working tree

/// A lab whose repository is a linked worktree of the usual one, on a branch of its own.
fn lab_in_a_worktree(name: &str) -> (Lab, Repo) {
    let mut lab = Lab::new(name);
    let main = lab.repo.clone();
    let linked = lab.path("linked");
    main.git(["worktree", "add", "-q", "-b", "topic", linked.to_str().expect("ASCII")]);
    lab.repo = Repo::at(&linked, main.home());
    (lab, main)
}

#[test]
fn a_linked_worktree_is_mirrored_and_the_main_one_is_another() {
    let (lab, main) = lab_in_a_worktree("linked");
    let at = Mirrored::of(lab);
    assert!(!at.workspace("notes").exists(), "untracked in the main working tree only");
    at.assert_costs_nothing(|_| {
        main.write("README.md", "# in the main working tree\n");
        main.commit_all("there");
        main.git(["gc", "-q"]);
    });
    at.assert_costs_nothing(|linked| linked.commit_all("here"));
    at.repo().write("README.md", "# in the linked one\n");
    at.converges();
}

/// Both are followed at once, each into a workspace of its own.
#[test]
fn two_worktrees_of_one_repository_are_two_repos() {
    let (lab, main) = lab_in_a_worktree("two-trees");
    let near = lab.embedded("near");
    let repo = |name: &str, root: &Path| format!("[[repo]]\nname = {name:?}\npath = {root:?}\n");
    lab.home.write_config(&format!(
        "[[server]]\nname = \"near\"\nurl = {near:?}\n{}{}",
        repo("app", lab.repo.root()),
        repo("main", main.root())
    ));
    let client = lab.client();
    lab.repo.write("which", "linked\n");
    main.write("which", "main\n");
    for (target, tree) in [("app@near", &lab.repo), ("main@near", &main)] {
        client.wait_acked(target, &lab.oracle().expect(tree.root()).id, PATIENCE);
    }
    for (workspace, content) in [("app", "linked\n"), ("main", "main\n")] {
        let which = lab.server_root("near").join(workspace).join("which");
        assert_eq!(fs::read_to_string(which).expect("mirrored"), content);
    }
}

// --- repositories in the repository

/// A repository beside the lab's, to be made a submodule.
fn library(lab: &Lab) -> Repo {
    let library = Repo::init(&lab.path("library"), lab.repo.home());
    library.write("code.c", "int one;\n");
    library.commit_all("library");
    library
}

fn add_submodule(repo: &Repo, library: &Repo, path: &str) {
    let url = library.root().to_str().expect("ASCII");
    repo.git(["-c", "protocol.file.allow=always", "submodule", "--quiet", "add", url, path]);
}

#[test]
fn a_submodule_is_opaque_and_reported() {
    let lab = Lab::new("submodule");
    let library = library(&lab);
    let at = Mirrored::of(lab);
    add_submodule(at.repo(), &library, "vendor/lib");
    at.converges();
    at.wait_note(&["left out", "vendor/lib"]);
    assert!(at.workspace(".gitmodules").is_file());
    assert!(!at.workspace("vendor/lib/code.c").exists());
    at.assert_costs_nothing(|repo| {
        repo.write("vendor/lib/code.c", "int two;\n");
        repo.write("vendor/lib/new.c", "int new;\n");
        repo.commit_all("with a dirty submodule");
        Repo::at(&repo.path("vendor/lib"), repo.home()).commit_all("in the submodule");
        repo.git(["add", "vendor/lib"]);
    });
}

#[test]
fn a_submodule_that_is_removed_takes_only_its_entry_along() {
    let lab = Lab::new("submodule-rm");
    let library = library(&lab);
    add_submodule(&lab.repo, &library, "vendor/lib");
    lab.repo.commit_all("with a submodule");
    let at = Mirrored::of(lab);
    let cost = at.cost_of(|repo| {
        repo.git(["rm", "-q", "-f", "vendor/lib"]);
    });
    assert_eq!((cost.written, cost.deleted), (1, 0), "{cost:?}");
    assert_eq!(fs::read(at.workspace(".gitmodules")).expect("emptied, as git leaves it"), b"");
    at.repo().commit_all("without it");
    process::poll_until("its directory to go", PATIENCE, || (!at.workspace("vendor").exists()).then_some(()));
    at.converges();
}

/// One side has a submodule where the other has a file: the merge leaves the file, in a submodule's entry.
#[test]
fn a_file_that_a_merge_left_in_a_submodules_place_is_mirrored() {
    let lab = Lab::new("submodule-conflict");
    let library = library(&lab);
    lab.repo.write("other", "1\n");
    lab.repo.commit_all("base");
    add_submodule(&lab.repo, &library, "lib");
    lab.repo.commit_all("with a submodule");
    lab.repo.git(["switch", "-q", "-c", "theirs"]);
    lab.repo.git(["rm", "-q", "-f", "lib"]);
    lab.repo.write("lib", "a file now\n");
    lab.repo.commit_all("a file instead");
    lab.repo.git(["switch", "-q", "main"]);
    lab.repo.git(["rm", "-q", "-f", "lib"]);
    lab.repo.commit_all("without it");
    let at = Mirrored::of(lab);
    let merge = at.repo().try_git(["merge", "-q", "theirs"]);
    assert!(!merge.status.success(), "a conflict");
    let staged = String::from_utf8(at.repo().git(["ls-files", "-s", "lib"])).expect("ASCII");
    assert!(staged.starts_with("160000"), "the first entry is the submodule's: {staged}");
    at.converges();
    assert_eq!(fs::read_to_string(at.workspace("lib")).expect("mirrored"), "a file now\n");
    at.repo().write("lib", "edited\n");
    at.converges();
    assert_eq!(fs::read_to_string(at.workspace("lib")).expect("mirrored"), "edited\n");
}

#[test]
fn a_nested_repository_is_opaque_and_reported() {
    let at = Mirrored::new("nested");
    let nested = Repo::init(&at.repo().path("tools/nested"), at.repo().home());
    nested.write("inside", "another repository's\n");
    at.converges();
    at.wait_note(&["left out", "tools/nested"]);
    at.assert_costs_nothing(|_| nested.commit_all("its own"));
    assert!(!at.workspace("tools").exists());
}

// --- absent is not deleted

/// The paths a sparse checkout of `src` takes off the disk here.
const OUTSIDE: [&str; 5] = [".gitignore", "empty", "link", "notes/untracked.txt", "run.sh"];

/// Makes the checkout sparse: all but `src` goes from the disk.
#[track_caller]
fn make_sparse(at: &Mirrored) {
    at.repo().git(["sparse-checkout", "set", "--no-cone", "/src/", "/zz-sentinel"]);
    let expected = at.lab.expect();
    at.client.wait_acked(&at.target(), &expected.id, PATIENCE);
    at.lab.assert_equal("near", &expected, &[&OUTSIDE[..], &["README.md"]].concat());
    assert!(!at.repo().path("README.md").exists(), "git removed it here");
}

#[test]
fn a_sparse_checkout_deletes_nothing_and_comes_back() {
    let at = Mirrored::new("sparse");
    at.repo().commit_all("all");
    let before = at.lab.server_tree("near");
    make_sparse(&at);
    assert_eq!(at.lab.server_tree("near"), before, "all stays there as it was");
    let cost = at.cost_of(|repo| {
        repo.git(["sparse-checkout", "disable"]);
    });
    assert!(cost.touched.is_empty(), "the same files are there again: {cost:?}");
    at.repo().write("README.md", "# edited\n");
    at.converges();
}

/// A file at a path that the sparse checkout leaves out is one like any other.
#[test]
fn a_file_written_where_a_sparse_checkout_has_none_is_mirrored() {
    let at = Mirrored::new("sparse-write");
    at.repo().commit_all("all");
    make_sparse(&at);
    at.repo().write("README.md", "# all the same\n");
    let expected = at.lab.expect();
    at.client.wait_acked(&at.target(), &expected.id, PATIENCE);
    at.lab.assert_equal("near", &expected, &OUTSIDE);
}

#[test]
fn a_client_that_starts_sparse_mirrors_what_is_there() {
    let lab = Lab::new("sparse-start");
    for n in 0..60 {
        lab.repo.write(format!("many/{n}"), format!("{n}\n"));
    }
    lab.repo.commit_all("all");
    // In cone mode: the files of the top level stay.
    lab.repo.git(["sparse-checkout", "set", "src/deep"]);
    let at = Mirrored::of(lab);
    assert!(!at.workspace("many").exists(), "more than the brake allows, and it is no deletion");
    assert!(at.workspace("src/deep/er/leaf.rs").is_file());
    at.repo().git(["sparse-checkout", "add", "many"]);
    at.converges();
    assert!(at.workspace("many/7").is_file());
}

// --- index flags

#[test]
fn intent_to_add_changes_nothing_and_a_deletion_of_it_arrives() {
    let at = Mirrored::new("intent");
    at.assert_costs_nothing(|repo| {
        repo.git(["add", "-N", "notes/untracked.txt"]);
    });
    at.repo().write("notes/untracked.txt", "edited\n");
    at.converges();
    at.repo().remove("notes/untracked.txt");
    at.converges();
    assert!(!at.workspace("notes").exists());
}

/// Git does not look at such a file; it is on the disk all the same.
#[test]
fn an_edit_of_an_assume_unchanged_file_arrives() {
    let at = Mirrored::new("assume");
    at.repo().git(["update-index", "--assume-unchanged", "README.md"]);
    at.repo().write("README.md", "# edited\n");
    at.converges();
    assert_eq!(at.repo().ask(["status", "--porcelain", "README.md"]), "", "git is blind to it");
    assert_eq!(fs::read(at.workspace("README.md")).expect("mirrored"), b"# edited\n");
}

/// The way people keep a changed configuration out of their commits.
#[test]
fn an_edit_of_a_skip_worktree_file_arrives() {
    let at = Mirrored::new("skip-worktree");
    at.repo().git(["update-index", "--skip-worktree", "README.md"]);
    at.repo().write("README.md", "# mine alone\n");
    at.converges();
    assert_eq!(fs::read(at.workspace("README.md")).expect("mirrored"), b"# mine alone\n");
}

// --- contents

/// A pointer that was not replaced by its content, and one that was: bytes as on the disk, and no filter is run.
#[test]
fn lfs_pointers_and_contents_are_mirrored_as_they_lie_there() {
    let lab = Lab::new("lfs");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 12345\n";
    let ran = lab.path("a-filter-ran");
    lab.repo.write(".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n");
    lab.repo.write("fetched.bin", [0u8, 159, 146, 150].repeat(1000));
    lab.repo.write("pointer.bin", pointer);
    lab.repo.commit_all("before the filter is installed");
    for kind in ["clean", "smudge", "process"] {
        lab.repo.git(["config", &format!("filter.lfs.{kind}"), &format!("touch {}; cat", ran.display())]);
    }
    lab.repo.git(["config", "filter.lfs.required", "true"]);
    let at = Mirrored::in_files(lab);
    at.repo().write("fetched.bin", [0u8, 159, 146, 151].repeat(1000));
    at.repo().write("new.bin", pointer);
    at.converges_in_files();
    assert!(!ran.exists(), "a filter was run");
}

#[test]
fn a_conversion_of_line_ends_is_an_edit_like_any_other() {
    let at = Mirrored::new("crlf");
    at.repo().write("dos.txt", "one\r\ntwo\r\n");
    at.repo().git(["config", "core.autocrlf", "true"]);
    at.repo().commit_all("stored with LF");
    at.converges();
    at.repo().remove("dos.txt");
    at.repo().git(["-c", "core.autocrlf=false", "checkout", "-q", "--", "dos.txt"]);
    at.converges_in_files();
    assert_eq!(fs::read(at.workspace("dos.txt")).expect("mirrored"), b"one\ntwo\n");
}

#[test]
fn a_rename_that_changes_only_the_case_arrives() {
    let at = Mirrored::new("case");
    let cost = at.cost_of(|repo| {
        repo.git(["mv", "README.md", "ReadMe.md"]);
    });
    assert_eq!((cost.written, cost.deleted), (1, 1), "{cost:?}");
    at.repo().commit_all("new case");
    let cost = at.cost_of(|repo| {
        repo.git(["switch", "-q", "--detach", "HEAD~1"]);
    });
    assert!(cost.touched.contains(Path::new("README.md")), "{cost:?}");
}

#[test]
fn a_line_of_a_mebibyte_arrives_and_so_does_an_edit_in_it() {
    let at = Mirrored::new("long-line");
    let mut line = "x".repeat(1 << 20);
    at.repo().write("long.min.js", &line);
    at.converges();
    line.insert(500_000, 'y');
    line.push_str("z\n");
    at.repo().write("long.min.js", &line);
    at.converges();
}

/// `GITSYNC_FILES` makes it smaller or larger.
#[test]
fn a_commit_of_50_000_files_comes_and_goes_with_a_switch() {
    const LONG: Duration = Duration::from_secs(180);
    let files = process::number_from_env("GITSYNC_FILES").unwrap_or(50_000);
    let lab = Lab::new("50k");
    lab.repo.commit_all("small");
    lab.repo.git(["switch", "-q", "-c", "large"]);
    for n in 0..files {
        lab.repo.write(format!("many/{}/{}/{n}.txt", n % 50, n % 7), format!("file {n}\n"));
    }
    lab.repo.commit_all("large");
    let large = lab.expect();
    lab.repo.git(["switch", "-q", "main"]);
    let small = lab.expect();
    lab.configure(&[("near", &lab.embedded("near"))]);
    let client = lab.client();
    for (branch, expected) in [("main", &small), ("large", &large), ("main", &small)] {
        lab.repo.git(["switch", "-q", branch]);
        client.wait_acked("app@near", &expected.id, LONG);
        lab.assert_equal("near", expected, &[]);
    }
}

// --- what we cannot read says so, with the command that helps

#[test]
fn a_reftable_repository_is_refused_with_the_next_command() {
    let name = "a_reftable_repository_is_refused_with_the_next_command";
    let mut lab = Lab::empty("reftable");
    let root = lab.path("tables");
    let made = lab.repo.try_git(["init", "-q", "--ref-format=reftable", root.to_str().expect("ASCII")]);
    if !made.status.success() {
        return skip(name, "this git knows no reftable");
    }
    lab.repo = Repo::at(&root, lab.repo.home());
    lab.configure(&[("near", &lab.embedded("near"))]);
    let ended = lab.once();
    assert_eq!(ended.code(), 4, "{ended}");
    assert!(ended.to_string().contains("git refs migrate --ref-format=files"), "{ended}");
    lab.repo.git(["refs", "migrate", "--ref-format=files"]);
    assert_eq!(lab.once().code(), 0, "the command helps");
}

#[test]
fn a_sparse_index_is_refused_with_the_next_command() {
    let lab = Lab::new("sparse-index");
    lab.repo.commit_all("all");
    lab.repo.git(["sparse-checkout", "set", "--cone", "--sparse-index", "notes"]);
    lab.configure(&[("near", &lab.embedded("near"))]);
    let ended = lab.once();
    assert_eq!(ended.code(), 4, "{ended}");
    assert!(ended.to_string().contains("git sparse-checkout reapply --no-sparse-index"), "{ended}");
    lab.repo.git(["sparse-checkout", "reapply", "--no-sparse-index"]);
    assert_eq!(lab.once().code(), 0, "the command helps");
}

// --- work git stopped in the middle of

/// Two branches that change one line each in their own way.
fn in_conflict(name: &str) -> Mirrored {
    let lab = Lab::new(name);
    let repo = &lab.repo;
    repo.commit_all("all");
    repo.git(["switch", "-q", "-c", "topic"]);
    for n in 0..3 {
        repo.write("README.md", format!("# topic {n}\n"));
        repo.write(format!("topic-{n}"), "x\n");
        repo.commit_all(&format!("topic {n}"));
    }
    repo.git(["switch", "-q", "main"]);
    repo.write("README.md", "# main\n");
    repo.write("main", "x\n");
    repo.commit_all("main");
    Mirrored::of(lab)
}

#[track_caller]
fn assert_marked(at: &Mirrored) {
    at.converges();
    let text = fs::read_to_string(at.workspace("README.md")).expect("mirrored");
    assert!(text.contains("<<<<<<<") && text.contains(">>>>>>>"), "{text}");
}

#[test]
fn a_merge_stopped_by_a_conflict_is_mirrored_then_solved_and_committed() {
    let at = in_conflict("merge");
    at.repo().git_stops(["merge", "-q", "topic"]);
    assert_marked(&at);
    assert!(at.workspace("topic-2").is_file());
    at.repo().write("README.md", "# both\n");
    at.converges();
    at.assert_costs_nothing(|repo| {
        repo.git(["add", "-A"]);
        repo.git(["commit", "-q", "--no-edit"]);
    });
}

#[test]
fn a_merge_that_is_aborted_leaves_no_trace() {
    let at = in_conflict("merge-abort");
    let before = at.lab.expect();
    at.repo().git_stops(["merge", "-q", "topic"]);
    assert_marked(&at);
    at.repo().git(["merge", "--abort"]);
    assert_eq!(at.converges().id, before.id);
}

#[test]
fn a_rebase_stopped_by_each_of_its_commits_is_mirrored_at_each_stop() {
    let at = in_conflict("rebase");
    at.repo().git(["switch", "-q", "topic"]);
    at.repo().git_stops(["rebase", "-q", "main"]);
    for n in 0..3 {
        assert_marked(&at);
        at.repo().write("README.md", format!("# main, topic {n}\n"));
        at.converges();
        at.repo().git(["add", "-A"]);
        let output = at.repo().try_git(["-c", "core.editor=true", "rebase", "--continue"]);
        assert_eq!(output.status.success(), n == 2, "it stops until the last");
    }
    at.converges();
    assert!(at.workspace("main").is_file() && at.workspace("topic-2").is_file());
}

#[test]
fn a_rebase_that_is_aborted_comes_back_to_where_it_began() {
    let at = in_conflict("rebase-abort");
    at.repo().git(["switch", "-q", "topic"]);
    let before = at.converges();
    at.repo().git_stops(["rebase", "-q", "main"]);
    assert_marked(&at);
    at.repo().git(["rebase", "--abort"]);
    assert_eq!(at.converges().id, before.id);
}

#[test]
fn a_cherry_pick_stopped_by_a_conflict_is_mirrored() {
    let at = in_conflict("pick");
    at.repo().git_stops(["cherry-pick", "topic"]);
    assert_marked(&at);
    at.repo().git(["cherry-pick", "--abort"]);
    at.converges();
}

/// `edit` in a rebase's list: the tree is an old commit's until the user goes on.
#[test]
fn a_rebase_stopped_for_an_edit_is_an_ordinary_state() {
    let at = in_conflict("rebase-edit");
    at.repo().git(["switch", "-q", "topic"]);
    at.repo().git(["-c", "sequence.editor=sed -i 1s/pick/edit/", "rebase", "-q", "-i", "HEAD~2"]);
    at.converges();
    assert!(!at.workspace("topic-2").exists());
    at.repo().write("topic-1", "edited\n");
    at.converges();
    at.repo().git(["commit", "-q", "-a", "--amend", "--no-edit"]);
    at.repo().git(["rebase", "--continue"]);
    at.converges();
    assert!(at.workspace("topic-2").is_file());
}
