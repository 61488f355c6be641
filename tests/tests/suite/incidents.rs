//! Thirty ways in which tools like this one have hurt their users, each as a scenario with a number.
//!
//! A scenario that other tests prove is not played again here: [`PROVEN`] names them, and a test makes sure that they
//! exist and that no number is missing.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use gitsync_tests::client::Home;
use gitsync_tests::event::{Event, Standing};
use gitsync_tests::git::{self, Repo};
use gitsync_tests::lab::Lab;
use gitsync_tests::mirrored::{Mirrored, NEAR};
use gitsync_tests::process::{self, PATIENCE};
use gitsync_tests::skip::skip;
use gitsync_tests::{bin, tree};

/// Scenarios, or parts of them, and the tests elsewhere that prove them.
const PROVEN: &[(u32, &str, &[&str])] = &[
    (2, "reverting an edit", &["a_reverted_edit_returns_to_the_earlier_id"]),
    (
        5,
        "one change of each kind",
        &[
            "a_renamed_file_is_one_written_and_one_deleted",
            "a_rename_that_changes_only_the_case_arrives",
            "a_file_becomes_a_directory_and_a_directory_a_file",
            "the_execute_bit_follows",
            "links_are_created_retargeted_and_replaced",
            "line_ends_and_filters_play_no_part",
            "a_line_of_a_mebibyte_arrives_and_so_does_an_edit_in_it",
        ],
    ),
    (6, "names of any bytes", &["odd_names_arrive", "names_that_differ_only_in_case_are_two_files"]),
    (7, "linked worktrees", &["a_linked_worktree_is_mirrored_and_the_main_one_is_another"]),
    (
        8,
        "commit, amend, rebase, switch: no write, or one for each changed path",
        &[
            "a_commit_writes_nothing_on_a_server",
            "an_amend_writes_nothing_on_a_server",
            "a_rebase_to_the_same_tree_is_not_seen_by_a_server",
            "a_switch_writes_each_changed_path_once_and_so_does_the_way_back",
            "branch_switches_stashes_and_resets_are_followed",
        ],
    ),
    (
        9,
        "commits nobody pushed, with no other server in reach",
        &["unpushed_commits_come_from_the_client", "a_first_landing_brings_head_then_all_that_was_before"],
    ),
    (
        10,
        "shallow and partial clones",
        &["a_shallow_clone_is_followed_down_to_its_own_end", "a_partial_clone_is_never_made_to_fetch"],
    ),
    (
        11,
        "sparse checkout and skip-worktree",
        &[
            "a_sparse_checkout_deletes_nothing_and_comes_back",
            "a_client_that_starts_sparse_mirrors_what_is_there",
        ],
    ),
    (
        12,
        "a merge or rebase in progress",
        &[
            "a_merge_stopped_by_a_conflict_is_mirrored_then_solved_and_committed",
            "a_rebase_stopped_by_each_of_its_commits_is_mirrored_at_each_stop",
            "a_rebase_stopped_for_an_edit_is_an_ordinary_state",
        ],
    ),
    (
        13,
        "submodules and embedded repositories",
        &[
            "a_submodule_is_opaque_and_reported",
            "a_submodule_that_is_removed_takes_only_its_entry_along",
            "a_nested_repository_is_opaque_and_reported",
        ],
    ),
    (14, "LFS", &["lfs_pointers_and_contents_are_mirrored_as_they_lie_there"]),
    (
        16,
        "the user's repository is only read",
        &["a_session_changes_nothing_in_the_repository", "committing_beside_a_session_never_fails"],
    ),
    (
        17,
        "a file on the server in the way",
        &["a_foreign_file_in_the_way_is_kept_and_named", "a_foreign_directory_in_the_way_withholds_the_path"],
    ),
    (18, "edits on the server are kept", &["an_edit_on_the_server_is_kept_when_the_client_overwrites_it"]),
    (
        19,
        "build output and untouched files stay",
        &["build_output_survives_the_directory_it_lies_in", "an_edit_writes_one_file"],
    ),
    (
        20,
        "either side dies at any moment",
        &[
            "nothing_is_lost_torn_or_left_over_however_often_a_side_is_killed",
            "a_killed_server_comes_back_and_catches_up_by_itself",
            "a_killed_client_picks_up_where_it_was",
        ],
    ),
    (
        21,
        "an owner that vanished is superseded after a while",
        &["a_silent_owner_loses_its_claim_and_a_live_one_does_not"],
    ),
    (
        23,
        "mass deletion and an emptied root",
        &[
            "the_brake_halts_once_with_4_says_why_and_deletes_nothing",
            "the_brake_stops_slices_too",
            "a_root_that_disappears_halts_deletes_nothing_and_comes_back",
            "another_repository_in_the_same_place_halts_and_deletes_nothing",
        ],
    ),
    (
        27,
        "nothing to do is nothing done",
        &["a_second_once_finds_nothing_to_do", "a_restart_without_a_change_sends_and_writes_nothing"],
    ),
    (28, "a server that restarts", &["a_server_told_to_end_ends_with_0_and_its_client_reconnects"]),
    (
        29,
        "what a peer sends leads nowhere else",
        &[
            "every_case_has_a_test",
            "h03_a_workspace_that_leads_out",
            "h41_a_planted_link_where_a_directory_goes",
            "h44_a_link_into_the_clone",
            "h46_a_parent_that_flips",
        ],
    ),
    (
        30,
        "ends, signals, pipes and small terminals",
        &[
            "stdin_is_read_in_bounded_lines_and_its_end_is_a_stop",
            "sigterm_ends_with_0_and_a_summary",
            "a_closed_stdout_is_141",
            "colour_follows_flag_then_theme_then_environment",
            "no_size_and_no_name_panics",
        ],
    ),
];

/// How a workspace is brought to a commit: four scenarios of a design that reset it to a baseline each time.
const BOOTSTRAPS: [(&str, &str); 4] = [
    ("fresh", "a_first_landing_brings_head_then_all_that_was_before"),
    ("incremental", "bootstrap_incremental_sends_the_new_commit_alone_with_no_other_host_in_reach"),
    ("branch switch", "a_switch_is_a_move_and_switching_back_sends_names_only"),
    ("simulated rebase", "a_rebase_and_a_hard_reset_are_followed_with_their_reason"),
];

#[test]
fn every_incident_is_proven_somewhere() {
    let mut sources = String::new();
    for room in ["core", "server", "tui", "tests"] {
        read_sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(room), &mut sources);
    }
    let here = include_str!("incidents.rs");
    for number in 1..=30 {
        let played = here.contains(&format!("fn incident_{number:02}_"));
        let proven = PROVEN.iter().any(|(n, ..)| *n == number);
        assert!(played || proven, "incident {number} is proven nowhere");
    }
    let is_a_test = |name: &str| sources.contains(&format!("fn {name}("));
    let named = PROVEN.iter().flat_map(|(.., names)| *names).chain(BOOTSTRAPS.iter().map(|(_, name)| name));
    let lies: Vec<_> = named.filter(|name| !is_a_test(name)).collect();
    assert!(lies.is_empty(), "there are no such tests: {lies:?}");
}

fn read_sources(dir: &Path, all: &mut String) {
    for entry in fs::read_dir(dir).expect("the sources are there").flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_sources(&path, all);
        } else if path.extension() == Some(OsStr::new("rs")) {
            all.push_str(&fs::read_to_string(&path).expect("sources are UTF-8"));
        }
    }
}

/// Tools that asked only the index, or only the disk, lost one of them.
#[test]
fn incident_01_unstaged_staged_and_untracked_changes_all_arrive() {
    let at = Mirrored::new("i01");
    at.repo().write("README.md", "# staged\n");
    at.repo().write("staged-new", "staged\n");
    at.repo().git(["add", "README.md", "staged-new"]);
    at.repo().write("src/lib.rs", "// unstaged\n");
    at.repo().write("untracked", "untracked\n");
    at.repo().write("staged-new", "staged, then edited\n");
    let expected = at.converges();
    for path in ["README.md", "staged-new", "src/lib.rs", "untracked"] {
        assert!(expected.files.contains_key(Path::new(path)), "{path}");
    }
}

/// An empty difference is not "nothing to do": the server still has the old one.
#[test]
fn incident_02_going_back_to_a_clean_tree_clears_the_server() {
    let at = Mirrored::new("i02");
    at.repo().git(["restore", "."]);
    at.repo().git(["clean", "-qfd"]);
    assert_eq!(at.converges().id.0, at.repo().ask(["rev-parse", "HEAD^{tree}"]));
}

/// What is staged is the client's own business; on the server both columns are one.
#[test]
fn incident_03_staged_and_unstaged_changes_show_as_one_on_the_server() {
    let at = Mirrored::new("i03");
    at.repo().write("README.md", "# staged\n");
    at.repo().git(["add", "README.md"]);
    at.repo().write("README.md", "# staged, then edited\n");
    at.repo().git(["mv", "run.sh", "go.sh"]);
    at.repo().git(["rm", "-q", "empty"]);
    at.converges();
    let there = Repo::at(&at.workspace(""), at.repo().home());
    let status = there.ask(["status", "--porcelain", "--no-renames"]);
    for line in [" M README.md", " D run.sh", "?? go.sh", " D empty"] {
        assert!(format!("\n{status}\n").contains(&format!("\n{line}\n")), "{line:?} is not in:\n{status}");
    }
}

#[test]
fn incident_04_a_staged_delete_of_a_recreated_file_keeps_the_file() {
    let at = Mirrored::new("i04");
    at.repo().git(["rm", "-q", "--cached", "README.md"]);
    at.repo().git(["rm", "-q", "src/lib.rs"]);
    at.repo().write("src/lib.rs", "// made anew\n");
    at.converges();
    assert!(at.workspace("README.md").is_file());
    assert_eq!(fs::read(at.workspace("src/lib.rs")).expect("mirrored"), b"// made anew\n");
}

/// Patches in text form stumble over these together.
#[test]
fn incident_05_every_kind_of_change_at_once() {
    let at = Mirrored::new("i05");
    let repo = at.repo();
    repo.rename("README.md", "readme.MD");
    repo.rename("src/lib.rs", "moved.rs");
    repo.remove("empty");
    repo.write("empty/now", "a directory's\n");
    repo.remove_dir("src/deep");
    repo.write("src/deep", "a file now");
    repo.chmod("run.sh", 0o644);
    repo.remove("link");
    repo.symlink("run.sh", "link");
    repo.write("nothing", "");
    repo.write("binary", [0, 255, 10, 13, 0].repeat(1000));
    repo.write("dos.txt", "one\r\ntwo\r\nthree");
    repo.write("blanks", "trailing \t \n \n\n");
    repo.write("long", "x".repeat((1 << 20) + 1));
    at.converges();
}

#[test]
fn incident_07_a_subdirectory_and_a_git_file_lead_to_the_whole_working_tree() {
    let mut lab = Lab::new("i07");
    let (home, root) = (lab.repo.home().to_path_buf(), lab.path("separate"));
    let elsewhere = format!("--separate-git-dir={}", lab.path("elsewhere.git").display());
    let repo = Repo::init_with(&root, &home, &[&elsewhere]);
    repo.write("top", "top\n");
    repo.write("sub/dir/below", "below\n");
    repo.commit_all("first");
    assert!(repo.path(".git").is_file());
    let near = lab.embedded(NEAR);
    lab.home.write_config(&format!(
        "[[server]]\nname = \"near\"\nurl = {near:?}\n[[repo]]\nname = \"app\"\npath = {:?}\n",
        repo.path("sub/dir")
    ));
    lab.repo = repo;
    let client = lab.client();
    lab.assert_converges(&client, &[NEAR]);
    lab.repo.write("top", "edited\n");
    lab.assert_converges(&client, &[NEAR]);
    lab.repo.commit_all("second");
    lab.repo.write("sub/new", "new\n");
    lab.assert_converges(&client, &[NEAR]);
}

#[test]
fn incident_08_head_detached_unborn_moved_back_and_forced_is_followed() {
    let at = Mirrored::new("i08");
    let repo = at.repo();
    for n in 0..3 {
        repo.write("README.md", format!("# {n}\n"));
        repo.commit_all(&format!("commit {n}"));
    }
    at.converges();
    repo.git(["switch", "-q", "--detach", "HEAD~1"]);
    at.converges();
    repo.git(["branch", "-q", "-f", "main", "HEAD~1"]);
    repo.git(["switch", "-q", "main"]);
    at.converges();
    repo.git(["reset", "-q", "--hard", "HEAD~1"]);
    at.converges();
    repo.git(["switch", "-q", "--orphan", "fresh"]);
    at.converges();
    repo.write("first", "of the new branch\n");
    repo.commit_all("root");
    at.converges();
}

/// Settings that have broken tools which read what git prints, and programs git would start for them.
#[test]
fn incident_15_a_hostile_configuration_and_environment_change_nothing() {
    let lab = Lab::new("i15");
    let ran = lab.path("something-ran");
    let harm = format!("sh -c 'touch {}; exit 1'", ran.display());
    for (key, value) in [
        ("diff.noprefix", "true"),
        ("diff.external", &harm),
        ("color.ui", "always"),
        ("core.fsmonitor", &harm),
        ("core.sshCommand", &harm),
        ("core.pager", &harm),
        ("core.editor", &harm),
        ("core.quotePath", "false"),
        ("core.untrackedCache", "true"),
        ("status.showUntrackedFiles", "no"),
        ("status.relativePaths", "true"),
        ("index.version", "4"),
        ("submodule.recurse", "true"),
        ("filter.harm.clean", &harm),
        ("filter.harm.smudge", &harm),
        ("merge.conflictStyle", "diff3"),
    ] {
        lab.repo.git(["config", key, value]);
    }
    lab.repo.write(".git/info/attributes", "* filter=harm diff=harm\n");
    for hook in
        ["post-checkout", "post-index-change", "post-commit", "reference-transaction", "fsmonitor-watchman"]
    {
        let hook = format!(".git/hooks/{hook}");
        lab.repo.write(&hook, format!("#!/bin/sh\n{harm}\n"));
        lab.repo.chmod(&hook, 0o755);
    }
    lab.configure(&[(NEAR, &lab.embedded(NEAR))]);
    let mut command = Command::new(bin::client());
    git::hermetic(&mut command, lab.repo.home());
    for (key, value) in [
        ("GIT_DIR", "/nonexistent"),
        ("GIT_WORK_TREE", "/"),
        ("GIT_INDEX_FILE", "/nonexistent/index"),
        ("GIT_OBJECT_DIRECTORY", "/nonexistent/objects"),
        ("GIT_NAMESPACE", "elsewhere"),
        ("GIT_EXTERNAL_DIFF", &harm),
        ("GIT_PAGER", &harm),
        ("GIT_SSH_COMMAND", &harm),
        ("GIT_LITERAL_PATHSPECS", "1"),
        ("GIT_CEILING_DIRECTORIES", "/"),
    ] {
        command.env(key, value);
    }
    let client = lab.home.start_as(command);
    let expected = lab.expect();
    client.wait_acked("app@near", &expected.id, PATIENCE);
    lab.repo.write("README.md", "# edited\n");
    lab.assert_converges(&client, &[NEAR]);
    assert_eq!(client.terminate().code(), 0);
    assert!(!ran.exists(), "something of the repository's configuration was run");
}

/// A build made it on the server, where it was ignored; now the client begins to send it.
#[test]
fn incident_17_a_path_that_was_ignored_meets_the_servers_own_file() {
    let at = Mirrored::new("i17");
    fs::create_dir(at.workspace("build")).expect("the server's disk is writable");
    fs::write(at.workspace("build/out.bin"), "made on the server").expect("the server's disk is writable");
    at.repo().git(["add", "-f", "build/out.bin"]);
    at.converges();
    assert_eq!(fs::read(at.workspace("build/out.bin")).expect("mirrored"), b"ignored");
    let kept = tree::walk(&at.workspace(".git/gitsync/recovery"));
    assert!(kept.files.values().any(|node| node.bytes == b"made on the server"), "{:?}", kept.files.keys());
}

/// Nobody saves anything meanwhile: the server finds it by itself and the client heals it.
#[test]
fn incident_18_what_is_edited_or_deleted_on_a_server_is_shown_kept_and_healed() {
    let lab = Lab::new("i18");
    let far = lab.serve_with("far", "127.0.0.1:0", &["--drift-scan", "100ms"]);
    lab.configure(&[("far", &far.url())]);
    let client = lab.client();
    let expected = lab.assert_converges(&client, &["far"]);
    let there = |path: &str| lab.workspace("far").join(path);
    fs::write(there("README.md"), "edited there").expect("the server's disk is writable");
    fs::remove_file(there("src/lib.rs")).expect("it is there");
    process::poll_until("both to be as before", PATIENCE, || {
        let edited = fs::read(there("README.md")).ok()? == b"# app\n";
        (edited && there("src/lib.rs").is_file()).then_some(())
    });
    // Files are healed before anybody is told that they are.
    client.wait_until("the drift to be shown, and healed", PATIENCE, |events| {
        let named = |e: &Event| e.is("drift", "app@far") && e.paths().contains(&"README.md");
        let shown = events.iter().any(named);
        (shown && Standing::of(events, "app@far").in_sync_with(&expected.id)).then_some(())
    });
    let kept = tree::walk(&lab.workspace("far").join(".git/gitsync/recovery"));
    assert!(kept.files.values().any(|node| node.bytes == b"edited there"), "{:?}", kept.files.keys());
    lab.assert_equal("far", &expected, &[]);
}

#[test]
fn incident_18_on_hold_the_servers_edit_stays_and_is_counted() {
    let lab = Lab::new("i18-hold");
    let far = lab.serve_with("far", "127.0.0.1:0", &["--drift-scan", "100ms"]);
    lab.configure_with(&[("far", &far.url())], "drift = \"hold\"");
    let client = lab.client();
    lab.assert_converges(&client, &["far"]);
    let there = lab.workspace("far").join("README.md");
    fs::write(&there, "edited there").expect("the server's disk is writable");
    client.wait_until("the path to be withheld", PATIENCE, |events| {
        let standing = Standing::of(events, "app@far");
        (standing.state == "in-sync" && standing.withheld.contains_key("README.md")).then_some(())
    });
    assert_eq!(fs::read(&there).expect("it stays"), b"edited there");
}

/// Two people, or one with two laptops, and one name for the workspace.
#[test]
fn incident_21_a_second_client_of_a_workspace_is_refused_and_told_who_has_it() {
    let lab = Lab::new("i21");
    let far = lab.serve("far");
    lab.configure(&[("far", &far.url())]);
    let client = lab.client();
    let expected = lab.assert_converges(&client, &["far"]);

    let theirs = Repo::init(&lab.path("theirs"), lab.repo.home());
    theirs.write("README.md", "# theirs\n");
    let other = Home::new(lab.path("other-home"));
    other.write_config(&format!(
        "[[server]]\nname = \"far\"\nurl = {:?}\n[[repo]]\nname = \"app\"\npath = {:?}\n",
        far.url(),
        theirs.root()
    ));
    let ended = other.run(&["--once"]);
    assert_eq!(ended.code(), 4, "a person is needed: {ended}");
    let locked = ended.events.iter().find(|e| e.text("code") == Some("locked"));
    let locked = locked.unwrap_or_else(|| panic!("no error `locked`: {ended}"));
    assert!(locked.json().to_string().contains("the workspace belongs to"), "{locked:?}");
    lab.assert_equal("far", &expected, &[]);

    lab.repo.write("README.md", "# still mine\n");
    lab.assert_converges(&client, &["far"]);
}

#[test]
fn incident_22_one_dead_and_one_stuck_server_of_five_delay_no_other() {
    let lab = Lab::new("i22");
    let (mut dead, stuck) = (lab.serve("dead"), lab.serve("stuck"));
    let (far, local) = (lab.serve("far"), lab.serve_unix("local"));
    lab.configure(&[
        (NEAR, &lab.embedded(NEAR)),
        ("dead", &dead.url()),
        ("stuck", &stuck.url()),
        ("far", &far.url()),
        ("local", &local.url()),
    ]);
    let client = lab.client();
    lab.assert_converges(&client, &[NEAR, "dead", "stuck", "far", "local"]);
    dead.kill();
    stuck.freeze();
    for n in 0..5 {
        lab.repo.write("README.md", format!("# {n}\n"));
        lab.repo.write(format!("new/{n}"), vec![b'x'; 300_000]);
        lab.assert_converges(&client, &[NEAR, "far", "local"]);
    }
    assert_ne!(client.standing("app@stuck").state, "in-sync");
    stuck.thaw();
    dead.restart();
    lab.assert_converges(&client, &["stuck", "dead"]);
}

/// A file like that has filled the disks of snapshotting tools.
#[test]
fn incident_24_an_untracked_file_of_11_gigabytes_is_named_and_skipped() {
    let at = Mirrored::new("i24");
    let used = || {
        let blocks = |path: &Path| fs::symlink_metadata(path).map_or(0, |meta| meta.blocks() * 512);
        let all = tree::stamps(&at.lab.path(""), |_| true);
        all.keys().map(|path| blocks(&at.lab.path(path))).sum::<u64>()
    };
    let before = used();
    let huge = fs::File::create(at.repo().path("disk.img")).expect("the sandbox is writable");
    if huge.set_len(11 << 30).is_err() {
        let name = "incident_24_an_untracked_file_of_11_gigabytes_is_named_and_skipped";
        return skip(name, "the file system has no holes");
    }
    at.client.wait_until("the file to be withheld", PATIENCE, |events| {
        let standing = Standing::of(events, &at.target());
        (standing.state == "in-sync" && standing.withheld.contains_key("disk.img")).then_some(())
    });
    at.repo().write("README.md", "# goes on\n");
    process::poll_until("the rest to go on", PATIENCE, || {
        (fs::read(at.workspace("README.md")).ok()? == b"# goes on\n").then_some(())
    });
    let growth = used().saturating_sub(before);
    assert!(growth < 10 << 20, "{growth} more bytes are used");
    at.repo().remove("disk.img");
    at.converges();
}

/// The system grants this user so few watches that most directories get none: they are looked at now and then, and the
/// log says so.
#[test]
fn incident_25_where_watches_run_out_directories_are_polled_and_it_is_said() {
    let name = "incident_25_where_watches_run_out_directories_are_polled_and_it_is_said";
    let lab = Lab::new("i25");
    for n in 0..60 {
        lab.repo.write(format!("dirs/{n}/file"), format!("{n}\n"));
    }
    lab.configure(&[(NEAR, &lab.embedded(NEAR))]);
    // A name space of its own: nobody else on this machine loses a watch.
    let few = "echo 20 > /proc/sys/user/max_inotify_watches && exec \"$@\"";
    let alone = |program: &OsStr| {
        let mut command = Command::new("unshare");
        git::hermetic(&mut command, lab.repo.home());
        command.args(["--user", "--map-root-user", "sh", "-c", few, "sh"]).arg(program);
        command
    };
    if !alone(OsStr::new("true")).status().is_ok_and(|status| status.success()) {
        return skip(name, "no name space of its own can be made");
    }
    let client = lab.home.start_as(alone(bin::client().as_os_str()));
    lab.assert_converges(&client, &[NEAR]);
    client.wait_until("the log to say it", PATIENCE, |events| {
        let told = |e: &&Event| e.json().to_string().contains("watch");
        events.iter().filter(|e| matches!(e.kind(), "note" | "error")).find(told).map(|_| ())
    });
    for n in [0, 30, 59] {
        lab.repo.write(format!("dirs/{n}/file"), "edited\n");
    }
    lab.assert_converges(&client, &[NEAR]);
}

/// A burst is not a storm of little syncs, and an edit in its middle is neither lost nor sent twice.
#[test]
fn incident_26_ten_thousand_files_come_once_and_an_edit_meanwhile_once_more() {
    const FILES: u64 = 10_000;
    let at = Mirrored::new("i26");
    let aside = Repo::at(&at.lab.path("aside"), at.repo().home());
    for n in 0..FILES {
        aside.write(format!("{}/{n}", n % 100), format!("file {n}\n"));
    }
    let mark = at.client.mark();
    at.repo().rename("../aside", "many");
    at.client.wait_state(&at.target(), "syncing", PATIENCE);
    at.repo().write("README.md", "# edited meanwhile\n");
    at.converges();
    let written: Vec<u64> = at.acks(mark).iter().map(|ack| ack.number("written")).collect();
    assert!(written == [FILES, 1] || written == [FILES + 1], "{written:?}");
}

#[test]
fn incident_28_a_server_that_lost_its_state_and_another_one_in_its_place_get_everything() {
    let lab = Lab::new("i28");
    let mut far = lab.serve("far");
    lab.configure(&[("far", &far.url())]);
    let client = lab.client();
    let expected = lab.assert_converges(&client, &["far"]);
    far.terminate();
    fs::remove_dir_all(lab.workspace("far")).expect("the server's disk is writable");
    far.restart();
    lab.assert_converges(&client, &["far"]);
    let ended = client.terminate();
    assert_eq!(ended.code(), 0, "{ended}");

    let other = lab.serve("other");
    lab.configure(&[("far", &other.url())]);
    assert_eq!(lab.once().code(), 0);
    lab.assert_equal("other", &expected, &[]);
}

#[test]
fn bootstrap_incremental_sends_the_new_commit_alone_with_no_other_host_in_reach() {
    let lab = Lab::new("b-incremental");
    lab.repo.git(["remote", "add", "origin", "https://host.invalid/app.git"]);
    let mut noise = vec![0; 200_000];
    fastrand::Rng::with_seed(1).fill(&mut noise);
    lab.repo.write("noise", noise);
    lab.repo.commit_all("much");
    let at = Mirrored::of(lab);
    let landed = |events: &[Event]| -> Vec<Event> {
        events.iter().filter(|e| e.kind() == "baseline").cloned().collect()
    };
    let first: u64 = landed(&at.client.events()).iter().map(|e| e.number("wire_bytes")).sum();
    let old_head = at.repo().ask(["rev-parse", "HEAD"]);
    let Mirrored { client, lab } = at;
    assert_eq!(client.terminate().code(), 0);
    lab.repo.write("README.md", "# committed while away\n");
    lab.repo.commit_all("away");
    lab.repo.write("src/lib.rs", "// edited while away\n");
    let at = Mirrored { client: lab.client(), lab };
    at.converges();
    let steps = landed(&at.client.events());
    assert_eq!(steps.first().and_then(|e| e.text("from")), Some(old_head.as_str()), "{steps:?}");
    let then: u64 = steps.iter().map(|e| e.number("wire_bytes")).sum();
    assert!(then * 10 < first, "{then} bytes after {first}");
    let acks = at.acks(0);
    assert_eq!(acks.iter().map(|ack| ack.number("written")).sum::<u64>(), 2, "{acks:?}");
}
