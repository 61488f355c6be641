//! The workspace's clone follows the client's commits: HEAD first, older history behind, never in the way of a save and
//! never with a trace in the user's repository (P2, P6).

use std::collections::BTreeSet;
use std::fs;

use gitsync_tests::git::Repo;
use gitsync_tests::history::{Following, git_anywhere, git_dir_listing, import_history, wait_landed};
use gitsync_tests::lab::Lab;
use gitsync_tests::process::PATIENCE;

/// Some commits with tags on the way, then changes on top.
fn with_history(lab: Lab) -> Lab {
    let repo = &lab.repo;
    for n in 0..6 {
        repo.write("src/main.rs", format!("fn main() {{ {n} }}\n"));
        repo.write(format!("src/n{n}.rs"), format!("// {n}\n"));
        repo.commit_all(&format!("commit {n}"));
        match n {
            1 => drop(repo.git(["tag", "light"])),
            3 => drop(repo.git(["tag", "-a", "-m", "annotated", "v1"])),
            _ => {}
        }
    }
    repo.write("src/main.rs", "fn main() { changed }\n");
    repo.remove("src/n2.rs");
    repo.write("notes.txt", "untracked\n");
    repo.write("staged.txt", "staged\n");
    repo.git(["add", "staged.txt"]);
    lab
}

fn count(repo: &Repo, revs: &str) -> usize {
    repo.ask(["rev-list", "--count", revs]).parse().expect("a number")
}

#[test]
fn a_first_landing_brings_head_then_all_that_was_before() {
    let at = Following::start(with_history(Lab::new("h-first")));
    let (first, last) = (&at.baselines(0)[0], at.baselines(0).len());
    assert_eq!(first.text("from"), None);
    assert_eq!((first.json()["complete"].as_bool(), last), (Some(false), 2));
    assert_eq!(count(&at.there(), "HEAD"), count(at.repo(), "HEAD"));
    at.there().git(["fsck", "--strict"]);
    assert_eq!(at.there().ask(["describe", "--tags"]), at.repo().ask(["describe", "--tags"]));
}

#[test]
fn once_waits_for_head_branch_and_index() {
    let lab = with_history(Lab::new("h-once"));
    lab.repo.git(["remote", "add", "origin", "https://example.net/team/app.git"]);
    lab.repo.git(["switch", "-q", "-c", "topic/x"]);
    let server = lab.serve("s");
    lab.configure(&[("s", server.url().as_str())]);
    let ended = lab.once();
    assert_eq!(ended.code(), 0, "{ended}");
    let head = lab.repo.ask(["rev-parse", "HEAD"]);
    assert_eq!(ended.summary_of(&lab.target("s"), "baseline"), Some(head.as_str()));
    let there = Repo::at(&lab.workspace("s"), lab.repo.home());
    assert_eq!(there.ask(["rev-parse", "HEAD"]), head);
    assert_eq!(there.ask(["symbolic-ref", "HEAD"]), "refs/heads/topic/x");
    assert_eq!(lab.once().code(), 0);
}

#[test]
fn commits_amends_and_resets_move_the_clone_and_no_file() {
    let at = Following::start(with_history(Lab::new("h-commit")));
    let mark = at.client.mark();
    at.repo().commit_all("on top");
    at.assert_follows();
    at.repo().git(["commit", "-q", "--amend", "--allow-empty", "-m", "better"]);
    at.assert_follows();
    at.repo().git(["reset", "-q", "--soft", "HEAD~1"]);
    let back = at.assert_follows();
    assert_eq!(back.number("objects"), 0, "a commit that is there comes by name");
    at.repo().git(["reset", "-q", "--soft", "ORIG_HEAD"]);
    assert_eq!(at.assert_follows().number("objects"), 0);
    let written: u64 = at.client.since(mark, "acked", &at.target()).iter().map(|e| e.number("written")).sum();
    assert_eq!(written, 0);
    at.there().git(["fsck", "--strict"]);
}

#[test]
fn unpushed_commits_come_from_the_client() {
    let lab = with_history(Lab::new("h-unpushed"));
    let origin = Repo::init_with(&lab.path("origin.git"), lab.repo.home(), &["--bare"]);
    lab.repo.git(["remote", "add", "origin", origin.root().to_str().expect("ASCII")]);
    lab.repo.git(["push", "-q", "origin", "HEAD~2:refs/heads/main"]);
    lab.repo.git(["fetch", "-q", "origin"]);
    let at = Following::start(lab);
    at.repo().commit_all("never pushed");
    at.assert_follows();
}

#[test]
fn a_switch_is_a_move_and_switching_back_sends_names_only() {
    let lab = with_history(Lab::new("h-switch"));
    lab.repo.commit_all("all of it");
    lab.repo.git(["switch", "-q", "-c", "other", "HEAD~3"]);
    lab.repo.write("src/other.rs", "// other\n");
    lab.repo.commit_all("elsewhere");
    lab.repo.git(["switch", "-q", "main"]);
    let at = Following::start(lab);
    at.repo().git(["switch", "-q", "other"]);
    let there = at.assert_follows();
    assert!(there.number("objects") > 0);
    assert!(there.text("reason").is_some_and(|why| why.contains("branch changed")), "{there:?}");
    for branch in ["main", "other"] {
        at.repo().git(["switch", "-q", branch]);
        let back = at.assert_follows();
        assert_eq!(back.number("objects"), 0, "{back:?}");
        assert!(back.number("wire_bytes") < 1_000, "{back:?}");
    }
    assert_eq!(at.there().ask(["rev-parse", "main"]), at.repo().ask(["rev-parse", "main"]));
}

#[test]
fn a_rebase_and_a_hard_reset_are_followed_with_their_reason() {
    let lab = with_history(Lab::new("h-rebase"));
    lab.repo.commit_all("all of it");
    let at = Following::start(lab);
    let repo = at.repo();
    repo.git(["switch", "-q", "-c", "topic", "HEAD~2"]);
    repo.write("topic.txt", "1\n");
    repo.commit_all("topic 1");
    at.assert_follows();
    repo.git(["rebase", "-q", "main"]);
    let rebased = at.assert_follows();
    assert!(rebased.text("reason").is_some_and(|why| why.contains("not an ancestor")), "{rebased:?}");
    let session = at.client.since(0, "session", &at.target());
    let reason = session.last().and_then(|e| e.text("reason")).unwrap_or("").to_owned();
    assert!(reason.contains("baseline stale"), "{reason}");
    repo.git(["reset", "-q", "--hard", "HEAD~2"]);
    assert_eq!(at.assert_follows().number("objects"), 0);
    // A branch that is deleted and made anew elsewhere.
    repo.git(["switch", "-q", "main"]);
    repo.git(["branch", "-q", "-D", "topic"]);
    repo.git(["switch", "-q", "-c", "topic", "main~4"]);
    at.assert_follows();
    at.there().git(["fsck", "--strict"]);
}

#[test]
fn a_detached_head_is_detached_there_too() {
    let lab = with_history(Lab::new("h-detached"));
    lab.repo.commit_all("all of it");
    let at = Following::start(lab);
    at.repo().git(["switch", "-q", "--detach", "HEAD~1"]);
    at.assert_follows();
    at.repo().write("x", "1\n");
    at.repo().commit_all("on no branch");
    at.assert_follows();
    at.repo().git(["switch", "-q", "main"]);
    at.assert_follows();
}

#[test]
fn an_unborn_branch_and_its_first_commit() {
    let lab = Lab::empty("h-unborn");
    lab.repo.git(["symbolic-ref", "HEAD", "refs/heads/start"]);
    lab.repo.write("a", "1\n");
    let at = Following::start(lab);
    assert_eq!(at.there().ask(["symbolic-ref", "HEAD"]), "refs/heads/start");
    at.repo().commit_all("first");
    at.assert_follows();
    at.repo().git(["switch", "-q", "--orphan", "empty"]);
    at.assert_follows();
}

#[test]
fn tags_come_move_and_go() {
    let lab = with_history(Lab::new("h-tags"));
    let repo = lab.repo.clone();
    repo.commit_all("all of it");
    repo.git(["switch", "-q", "-c", "side", "HEAD~4"]);
    repo.write("side", "1\n");
    repo.git(["add", "side"]);
    repo.git(["commit", "-q", "-m", "side"]);
    repo.git(["tag", "aside"]);
    repo.git(["switch", "-q", "main"]);
    let at = Following::start(lab);
    let tags = |repo: &Repo| repo.ask(["for-each-ref", "refs/tags", "--format=%(refname) %(objectname)"]);
    assert!(!tags(&at.there()).contains("aside"), "its commit is not there");
    let steps: [&[&str]; 7] = [
        &["tag", "new"],
        &["tag", "release/1"],
        &["tag", "release/2", "HEAD~1"],
        &["tag", "-a", "-m", "m", "new-annotated", "HEAD~2"],
        &["tag", "-f", "light", "HEAD~1"],
        &["tag", "-d", "new"],
        &["pack-refs", "--all"],
    ];
    for step in steps {
        at.repo().git(step);
        let wanted: Vec<String> =
            tags(at.repo()).lines().filter(|l| !l.contains("aside")).map(str::to_owned).collect();
        gitsync_tests::process::poll_until(&format!("tags after {step:?}"), PATIENCE, || {
            let there = tags(&at.there());
            (there.lines().eq(wanted.iter())).then_some(())
        });
    }
    at.assert_follows();
    at.repo().git(["merge", "-q", "-m", "merge", "side"]);
    at.assert_follows();
    assert_eq!(tags(&at.there()), tags(at.repo()));
}

/// HEAD goes forward over commits the clone has from before: their tags come back although nothing is sent.
#[test]
fn a_tag_comes_back_with_commits_that_were_there() {
    let Following { client, server, lab } = Following::start(with_history(Lab::new("h-tag-back")));
    lab.repo.git(["reset", "-q", "--hard", "HEAD~5"]);
    wait_landed(&client, &lab.repo, &lab.target("s"), 0, true);
    // What the new session lands says nothing of the tags further on.
    assert_eq!(client.terminate().code(), 0);
    let at = Following { client: lab.client(), server, lab };
    at.assert_follows();
    at.repo().git(["reset", "-q", "--hard", "ORIG_HEAD"]);
    let landed = at.assert_follows();
    assert!(landed.number("objects") <= 1, "the annotated tag at most: the commits were there");
    let tags = |repo: &Repo| repo.ask(["for-each-ref", "refs/tags", "--format=%(refname) %(objectname)"]);
    assert_eq!(tags(&at.there()), tags(at.repo()));
}

/// Nothing was written into the user's git directory since, and nothing fetched.
#[track_caller]
fn assert_unwritten(repo: &Repo, before: &BTreeSet<String>) {
    let now = git_dir_listing(&repo.path(".git"));
    let changed: Vec<_> = before.symmetric_difference(&now).collect();
    assert!(changed.is_empty(), "{changed:#?}");
}

#[test]
fn a_shallow_clone_is_followed_down_to_its_own_end() {
    let lab = with_history(Lab::new("h-shallow"));
    lab.repo.commit_all("all of it");
    let (origin, home) = (lab.path("origin"), lab.repo.home().to_owned());
    fs::rename(lab.repo.root(), &origin).expect("the sandbox is writable");
    let url = format!("file://{}", origin.display());
    let root = lab.repo.root().to_str().expect("ASCII").to_owned();
    git_anywhere(&home, ["clone", "-q", "--depth", "3", &url, &root]);
    let before = git_dir_listing(&lab.repo.path(".git"));
    let server = lab.serve("s");
    lab.configure(&[("s", server.url().as_str())]);
    let client = lab.client();
    wait_landed(&client, &lab.repo, &lab.target("s"), 0, true);
    // Before git is asked, which writes its index then.
    assert_unwritten(&lab.repo, &before);
    let at = Following { client, server, lab };
    at.assert_follows();
    assert_eq!((count(&at.there(), "HEAD"), count(at.repo(), "HEAD")), (3, 3));
    at.repo().write("more", "1\n");
    at.repo().commit_all("on top");
    at.assert_follows();
    assert_eq!(count(&at.there(), "HEAD"), 4);
    at.there().git(["fsck", "--strict"]);
}

#[test]
fn a_partial_clone_is_never_made_to_fetch() {
    let lab = with_history(Lab::new("h-partial"));
    lab.repo.commit_all("all of it");
    let (origin, home) = (lab.path("origin"), lab.repo.home().to_owned());
    fs::rename(lab.repo.root(), &origin).expect("the sandbox is writable");
    let origin_repo = Repo::at(&origin, &home);
    origin_repo.git(["config", "uploadpack.allowFilter", "true"]);
    origin_repo.git(["config", "uploadpack.allowAnySHA1InWant", "true"]);
    let url = format!("file://{}", origin.display());
    let root = lab.repo.root().to_str().expect("ASCII").to_owned();
    git_anywhere(&home, ["clone", "-q", "--filter=blob:none", &url, &root]);
    let before = git_dir_listing(&lab.repo.path(".git"));
    let missing = |repo: &Repo| {
        let list = repo.ask(["rev-list", "--objects", "--all", "--missing=print"]);
        list.lines().filter(|l| l.starts_with('?')).count()
    };
    assert!(missing(&lab.repo) > 0, "the clone is partial");
    let server = lab.serve("s");
    lab.configure(&[("s", server.url().as_str())]);
    let client = lab.client();
    let target = lab.target("s");
    wait_landed(&client, &lab.repo, &target, 0, false);
    // Older blobs are not here, so there the history ends.
    client.wait_until("the word on older history", PATIENCE, |events| {
        let says = |text: &str| text.contains("older history is not sent");
        events.iter().any(|e| e.is("note", &target) && e.text("message").is_some_and(says)).then_some(())
    });
    assert_unwritten(&lab.repo, &before);
    lab.assert_converges(&client, &["s"]);
    let there = Repo::at(&lab.workspace("s"), &home);
    assert_eq!(there.ask(["rev-parse", "HEAD"]), lab.repo.ask(["rev-parse", "HEAD"]));
    assert_eq!(there.ask(["status", "--porcelain"]), "");
    there.git(["fsck", "--strict"]);
    lab.repo.write("more", "1\n");
    lab.repo.commit_all("on top");
    wait_landed(&client, &lab.repo, &target, 0, false);
    assert!(missing(&lab.repo) > 0);
}

#[test]
fn ids_of_32_bytes_are_followed_as_well() {
    let lab = Lab::empty_sha256("h-sha256");
    lab.repo.write("src/main.rs", "fn main() {}\n");
    let at = Following::start(with_history(lab));
    at.repo().commit_all("on top");
    at.assert_follows();
    assert_eq!(at.there().ask(["rev-parse", "HEAD"]).len(), 64);
    at.there().git(["fsck", "--strict"]);
}

#[test]
fn a_linked_worktree_is_followed_like_any_other() {
    let lab = with_history(Lab::new("h-worktree"));
    let (main, home) = (lab.path("main"), lab.repo.home().to_owned());
    fs::rename(lab.repo.root(), &main).expect("the sandbox is writable");
    let main = Repo::at(&main, &home);
    let root = lab.repo.root().to_str().expect("ASCII").to_owned();
    main.git(["worktree", "add", "-q", "-b", "linked", &root]);
    let at = Following::start(lab);
    assert_eq!(at.there().ask(["symbolic-ref", "HEAD"]), "refs/heads/linked");
    at.repo().write("linked.txt", "1\n");
    at.repo().commit_all("in the worktree");
    at.assert_follows();
    at.repo().git(["tag", "here"]);
    gitsync_tests::process::poll_until("the tag", PATIENCE, || {
        at.there().try_git(["rev-parse", "-q", "--verify", "refs/tags/here"]).status.success().then_some(())
    });
}

#[test]
fn a_number_of_commits_is_where_history_ends() {
    let at = Following::start_with(with_history(Lab::new("h-depth")), "history = 3");
    assert_eq!(count(&at.there(), "HEAD"), 3);
    assert_eq!(count(at.repo(), "HEAD"), 7);
    at.repo().commit_all("on top");
    at.assert_follows();
    assert_eq!(count(&at.there(), "HEAD"), 4, "what is there stays");
    at.there().git(["fsck", "--strict"]);
}

/// A lab whose history takes several steps.
fn with_long_history(name: &str, commits: usize, bytes: usize) -> Lab {
    let lab = Lab::empty(name);
    import_history(&lab.repo, commits, bytes);
    lab.repo.git(["reset", "-q", "--hard"]);
    lab
}

#[test]
fn older_history_goes_on_where_a_killed_client_or_server_left_it() {
    let lab = with_long_history("h-kill", 6_000, 40);
    let mut server = lab.serve("s");
    lab.configure(&[("s", server.url().as_str())]);
    let target = lab.target("s");
    let mut client = lab.client();
    let older = |n: usize| {
        let target = target.clone();
        move |events: &[gitsync_tests::event::Event]| {
            let steps = events.iter().filter(|e| e.is("baseline", &target) && e.number("objects") > 1);
            (steps.count() >= n).then_some(())
        }
    };
    client.wait_until("some older history", PATIENCE, older(2));
    client.kill();
    let before = count(&Repo::at(&lab.workspace("s"), lab.repo.home()), "HEAD");
    assert!(before > 1 && before < 6_000, "{before} commits");
    let client = lab.client();
    let mark = client.mark();
    client.wait_until("more of it", PATIENCE, older(1));
    let resumed = client.since(mark, "baseline", &target);
    assert!(resumed.iter().all(|e| e.text("from").is_some()), "it does not start over: {resumed:?}");
    let at_kill = Repo::at(&lab.workspace("s"), lab.repo.home());
    server.kill();
    assert!(count(&at_kill, "HEAD") > before);
    server.restart();
    wait_landed(&client, &lab.repo, &target, 0, true);
    let there = Repo::at(&lab.workspace("s"), lab.repo.home());
    gitsync_tests::process::poll_until("all commits", PATIENCE, || {
        (count(&there, "HEAD") == 6_000).then_some(())
    });
    there.git(["fsck", "--strict"]);
    let objects: u64 = client.since(0, "baseline", &target).iter().map(|e| e.number("objects")).sum();
    assert!(objects < 3 * 6_000, "what was there is not sent again: {objects} objects");
}

#[test]
fn saves_are_acked_while_a_large_history_is_on_its_way() {
    let lab = with_long_history("h-saves", 1_500, 60_000);
    let server = lab.serve("s");
    lab.configure(&[("s", server.url().as_str())]);
    let (client, target) = (lab.client(), lab.target("s"));
    wait_landed(&client, &lab.repo, &target, 0, false);
    let mark = client.mark();
    let complete = |events: &[gitsync_tests::event::Event]| {
        events.iter().any(|e| e.is("baseline", &target) && e.json()["complete"] == true)
    };
    let mut saves = 0;
    while !complete(&client.events()) && saves < 10_000 {
        lab.repo.write("edited.txt", format!("{saves}\n"));
        let expected = lab.expect();
        client.wait_acked(&target, &expected.id, PATIENCE);
        saves += 1;
    }
    let events = client.events();
    let last = events.iter().rposition(|e| e.is("baseline", &target)).expect("there are some");
    let acked = events[mark..last].iter().filter(|e| e.is("acked", &target)).count();
    assert!(acked > 0, "no save got through before the history was there");
    wait_landed(&client, &lab.repo, &target, 0, true);
}

#[test]
fn a_lock_in_the_clone_holds_up_history_and_no_save() {
    let at = Following::start(with_history(Lab::new("h-lock")));
    let lock = at.lab.workspace("s").join(".git/index.lock");
    fs::write(&lock, "").expect("the workspace is ours");
    let mark = at.client.mark();
    at.repo().commit_all("behind a lock");
    let target = at.target();
    at.client.wait_until("the word that history is behind", PATIENCE, |events| {
        let said = events[mark..].iter().any(|e| e.is("error", &target) && e.text("code") == Some("history"));
        said.then_some(())
    });
    at.repo().write("saved.txt", "meanwhile\n");
    at.lab.assert_converges(&at.client, &["s"]);
    assert!(at.baselines(mark).is_empty());
    fs::remove_file(&lock).expect("it is there");
    at.assert_follows();
}

/// Neither moves a file, so nothing tells of them until they are looked for.
#[test]
fn resync_and_verify_take_back_what_was_done_to_head_branch_and_index_there() {
    let at = Following::start(with_history(Lab::new("h-compare")));
    let (there, target) = (at.there(), at.target());
    type Deed<'a> = (&'a str, &'a dyn Fn());
    let deeds: [Deed<'_>; 3] = [
        ("resync", &|| drop(there.git(["commit", "-q", "--allow-empty", "-m", "made there"]))),
        ("verify", &|| drop(there.git(["symbolic-ref", "HEAD", "refs/heads/elsewhere"]))),
        ("verify", &|| drop(there.git(["rm", "-q", "--cached", "src/main.rs"]))),
    ];
    for (verb, deed) in deeds {
        let before = there.git(["--no-optional-locks", "status", "--porcelain", "--branch"]);
        deed();
        let mark = at.client.mark();
        let status = at.lab.home.bare_command().args([verb, "--config"]).arg(at.lab.home.config()).status();
        assert!(status.expect("the client can be started").success());
        at.client.wait_until("a landing", PATIENCE, |events| {
            events[mark..].iter().any(|e| e.is("baseline", &target)).then_some(())
        });
        at.assert_follows();
        assert_eq!(there.git(["--no-optional-locks", "status", "--porcelain", "--branch"]), before, "{verb}");
    }
    let kept = there.ask(["for-each-ref", "--format=%(subject)", "refs/gitsync/recovery"]);
    assert!(kept.contains("made there"), "{kept}");
}

#[test]
fn a_clone_that_lost_its_head_gets_it_back() {
    let at = Following::start(with_history(Lab::new("h-headless")));
    fs::remove_file(at.lab.workspace("s").join(".git/HEAD")).expect("it is there");
    at.repo().commit_all("after the loss");
    at.assert_follows();
    at.there().git(["fsck", "--strict"]);
}
