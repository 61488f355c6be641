//! What a client's git does, followed.

use std::sync::Arc;
use std::time::Instant;

use bstr::BString;
use gitsync_core::model::HashKind;
use gix::ObjectId;

use super::lab::*;
use crate::history::{Report, Step, StepError};

#[test]
fn the_first_landing_makes_a_clone_git_is_content_with() {
    for hash in [HashKind::Sha1, HashKind::Sha256] {
        let mut lab = Lab::with(hash);
        lab.write("a", "one\n");
        lab.write("dir/b", "two\n");
        std::os::unix::fs::symlink("a", lab.src().join("link")).unwrap();
        lab.commit("first");
        lab.write("dir/sub/c", "three\n");
        lab.commit("second");
        lab.here(&["tag", "-a", "v1", "-m", "v1"]);
        assert!(lab.land_head() > 0);
        lab.assert_same();
        assert_eq!(lab.ask(&["status", "--porcelain"]), "");
        assert_eq!(lab.ask(&["describe", "--tags", "--dirty"]), lab.here(&["describe", "--tags", "--dirty"]));
        assert_eq!(lab.ask(&["rev-list", "--count", "HEAD"]).trim(), "1");
        assert_eq!(lab.ask(&["write-tree"]), lab.here(&["rev-parse", "HEAD^{tree}"]));
        // Without a look at any file: the stat data says it all.
        assert_eq!(lab.ask(&["diff-files"]), "");
    }
}

#[test]
fn edits_show_as_edits() {
    let mut lab = Lab::new();
    lab.write("same", "same\n");
    lab.write("changed", "old\n");
    lab.write("gone", "gone\n");
    lab.commit("first");
    lab.write("changed", "new\n");
    lab.write("new", "new\n");
    std::fs::remove_file(lab.src().join("gone")).unwrap();
    lab.land_head();
    assert_eq!(lab.ask(&["status", "--porcelain"]), " M changed\n D gone\n?? new\n");
    lab.assert_same();
    // Back to what was committed, without another step.
    lab.write("changed", "old\n");
    lab.write("gone", "gone\n");
    std::fs::remove_file(lab.src().join("new")).unwrap();
    lab.mirror();
    lab.assert_same();
    assert_eq!(lab.ask(&["status", "--porcelain"]), "");
}

#[test]
fn commits_and_amends_write_no_file_of_the_working_tree() {
    let mut lab = Lab::new();
    for n in 0..20 {
        lab.write(&format!("dir{}/f{n}", n % 3), &format!("{n}\n"));
    }
    let first = lab.commit("first");
    lab.land_head();
    lab.write("dir1/new", "new\n");
    lab.write("dir0/f0", "changed\n");
    lab.mirror();
    let before = lab.stamps();
    let second = lab.commit("second");
    let pack = lab.pack(&format!("--shallow {first}\n{second}\n^{first}\n"));
    let mut step = lab.step();
    step.shallow = vec![first];
    lab.land(step, Some(&pack));
    lab.assert_same();
    assert_eq!(lab.ask(&["rev-list", "--count", "HEAD"]).trim(), "2");
    lab.here(&["commit", "-q", "--amend", "-m", "better"]);
    let amended = lab.head();
    let pack = lab.pack(&format!("--shallow {first}\n{amended}\n^{second}\n"));
    let mut step = lab.step();
    step.shallow = vec![first];
    lab.land(step, Some(&pack));
    lab.assert_same();
    assert_eq!(lab.ask(&["status", "--porcelain"]), "");
    assert_eq!(lab.stamps(), before);
    // What was amended is kept.
    let kept = lab.recovery();
    assert_eq!(kept.len(), 1);
    assert!(kept[0].0.ends_with("Z-main") && kept[0].1 == second, "{kept:?}");
}

#[test]
fn deepening_moves_the_boundary_until_there_is_none() {
    let mut lab = Lab::new();
    let mut commits = Vec::new();
    for n in 0..6 {
        lab.write("f", &format!("{n}\n"));
        lab.write(&format!("d{n}/g"), &format!("{n}\n"));
        commits.push(lab.commit(&format!("commit {n}")));
        lab.here(&["tag", &format!("v{n}")]);
    }
    let tagged = lab.step().tags.unwrap();
    let tags = |from: usize| Some(Arc::new(tagged[from..].to_vec()));
    lab.mirror();
    let mut step = lab.step();
    (step.tags, step.shallow) = (tags(5), vec![commits[5]]);
    let pack = lab.depth_one();
    lab.land(step, Some(&pack));
    let index = std::fs::read(lab.there(".git/index")).unwrap();
    for (bound, boundary) in [(5, Some(3)), (3, Some(1)), (1, None)] {
        let from = commits[bound - 1];
        let mut step = lab.step();
        step.tags = tags(boundary.unwrap_or(0));
        step.shallow = boundary.map(|n: usize| commits[n]).into_iter().collect();
        let lines = boundary.map(|n| format!("--shallow {}\n", commits[n])).unwrap_or_default();
        // Objects of the boundary's own commit are there.
        let pack = lab.pack(&format!("{lines}{from}\n^{}^{{tree}}\n", commits[bound]));
        assert!(lab.land(step, Some(&pack)) > 0);
        lab.assert_same();
        let count = 6 - boundary.unwrap_or(0);
        assert_eq!(lab.ask(&["rev-list", "--count", "HEAD"]).trim(), count.to_string());
    }
    assert!(!lab.there(".git/shallow").exists());
    assert_eq!(lab.ask(&["log", "--format=%H"]), lab.here(&["log", "--format=%H"]));
    assert_eq!(lab.ask(&["describe", "--tags", "HEAD~5"]).trim(), "v0");
    assert_eq!(std::fs::read(lab.there(".git/index")).unwrap(), index, "HEAD did not move");
}

#[test]
fn names_alone_move_between_what_is_there() {
    let mut lab = Lab::new();
    lab.write("f", "main\n");
    let main = lab.commit("first");
    lab.land_head();
    lab.here(&["checkout", "-q", "-b", "feature/x"]);
    lab.write("f", "feature\n");
    let feature = lab.commit("feature");
    lab.mirror();
    let pack = lab.pack(&format!("--shallow {main}\n{feature}\n^{main}\n"));
    let mut step = lab.step();
    step.shallow = vec![main];
    lab.land(step, Some(&pack));
    lab.assert_same();
    assert_eq!(lab.ask(&["symbolic-ref", "HEAD"]).trim(), "refs/heads/feature/x");
    // Back: no pack.
    lab.here(&["checkout", "-q", "main"]);
    lab.mirror();
    let mut step = lab.step();
    step.shallow = vec![main];
    assert_eq!(lab.land(step, None), 0);
    lab.assert_same();
    assert_eq!(lab.ask(&["rev-parse", "feature/x"]).trim(), feature.to_string());
    // Detached, at the other one.
    lab.here(&["checkout", "-q", "--detach", "feature/x"]);
    lab.mirror();
    let mut step = lab.step();
    step.shallow = vec![main];
    lab.land(step, None);
    lab.assert_same();
    assert!(lab.ask_fails(&["symbolic-ref", "-q", "HEAD"]));
    assert_eq!(lab.recovery(), []);
    // A branch that moves backwards.
    lab.here(&["checkout", "-q", "-B", "main", "feature/x"]);
    let mut step = lab.step();
    step.shallow = vec![main];
    lab.land(step, None);
    lab.here(&["branch", "-D", "feature/x"]);
    lab.reset(main, main);
    lab.assert_same();
    // Its former tip is still a branch there.
    assert_eq!(lab.recovery(), []);
}

#[test]
fn a_branch_moved_by_force_keeps_its_former_tip() {
    let mut lab = Lab::new();
    lab.write("f", "1\n");
    let base = lab.commit("base");
    lab.land_head();
    lab.write("f", "2\n");
    let lost = lab.commit("lost");
    lab.mirror();
    let pack = lab.pack(&format!("--shallow {base}\n{lost}\n^{base}\n"));
    let mut step = lab.step();
    step.shallow = vec![base];
    lab.land(step, Some(&pack));
    lab.reset(base, base);
    let kept = lab.recovery();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].1, lost);
    // There and back again leaves nothing more: the kept ref leads to it.
    lab.reset(lost, base);
    lab.reset(base, base);
    assert_eq!(lab.recovery(), kept);
    lab.assert_same();
}

#[test]
fn a_branch_of_the_longest_name_moves_by_force() {
    let mut lab = Lab::new();
    lab.write("f", "1\n");
    let base = lab.commit("base");
    lab.here(&["checkout", "-q", "-b", &"x".repeat(250)]);
    lab.land_head();
    lab.write("f", "2\n");
    let lost = lab.commit("lost");
    lab.mirror();
    let pack = lab.pack(&format!("--shallow {base}\n{lost}\n^{base}\n"));
    let mut step = lab.step();
    step.shallow = vec![base];
    lab.land(step, Some(&pack));
    lab.reset(base, base);
    assert_eq!(lab.recovery().iter().map(|(_, id)| *id).collect::<Vec<_>>(), [lost]);
    lab.assert_same();
}

#[test]
fn what_a_person_committed_there_is_kept() {
    let mut lab = Lab::new();
    lab.write("f", "1\n");
    let base = lab.commit("base");
    lab.land_head();
    lab.ask(&["commit", "-q", "--allow-empty", "-m", "made there"]);
    lab.ask(&["tag", "mine"]);
    let theirs = lab.ask(&["rev-parse", "HEAD"]);
    lab.write("f", "2\n");
    let next = lab.commit("next");
    lab.mirror();
    let pack = lab.pack(&format!("--shallow {base}\n{next}\n^{base}\n"));
    let mut step = lab.step();
    step.shallow = vec![base];
    lab.land(step, Some(&pack));
    lab.assert_same();
    assert_eq!(lab.recovery()[0].1.to_string(), theirs.trim());
    assert_eq!(lab.ask(&["rev-parse", "mine"]), theirs);
    // Detached there, and committed again.
    lab.ask(&["checkout", "-q", "--detach"]);
    lab.ask(&["commit", "-q", "--allow-empty", "-m", "again"]);
    let again = ObjectId::from_hex(lab.ask(&["rev-parse", "HEAD"]).trim().as_bytes()).unwrap();
    let mut step = lab.step();
    step.shallow = vec![base];
    lab.land(step, None);
    lab.assert_same();
    assert!(lab.recovery().iter().any(|(name, id)| name.ends_with("-HEAD") && *id == again));
}

#[test]
fn an_unborn_branch_and_one_of_another_shape() {
    let mut lab = Lab::new();
    lab.write("f", "1\n");
    lab.mirror();
    let step = lab.step();
    assert_eq!(step.head, None);
    lab.land(step, None);
    assert_eq!(lab.ask(&["status", "--porcelain", "-b"]), "## No commits yet on main\n?? f\n");
    lab.here(&["checkout", "-q", "-b", "a"]);
    let first = lab.commit("first");
    lab.land_head();
    lab.here(&["branch", "-m", "a", "a/b"]);
    let mut step = lab.step();
    step.shallow = vec![first];
    lab.land(step, None);
    lab.assert_same();
    lab.here(&["checkout", "-q", "--orphan", "other"]);
    let step = lab.step();
    lab.land(step, None);
    assert_eq!(lab.ask(&["symbolic-ref", "HEAD"]).trim(), "refs/heads/other");
    assert_eq!(lab.ask(&["ls-files"]), "");
    lab.assert_sound();
}

#[test]
fn tags_come_move_and_go() {
    let mut lab = Lab::new();
    lab.write("f", "1\n");
    let first = lab.commit("first");
    lab.here(&["tag", "light"]);
    lab.here(&["tag", "-a", "heavy", "-m", "heavy"]);
    lab.land_head();
    lab.ask(&["tag", "theirs"]);
    assert_eq!(lab.ask(&["tag"]), "heavy\nlight\ntheirs\n");
    lab.here(&["tag", "-d", "light"]);
    lab.here(&["tag", "-f", "-a", "heavy", "-m", "moved"]);
    let mut step = lab.step();
    step.shallow = vec![first];
    let pack = lab.pack(&format!("--shallow {first}\n{}\n^{first}\n", lab.id("heavy")));
    lab.land(step, Some(&pack));
    assert_eq!(lab.ask(&["tag"]), "heavy\ntheirs\n");
    assert_eq!(lab.ask(&["rev-parse", "heavy"]), lab.here(&["rev-parse", "heavy"]));
    // The same once more, and a step that says so.
    let mut step = lab.step();
    (step.shallow, step.tags, step.skip_worktree) = (vec![first], None, None);
    lab.land(step, None);
    assert_eq!(lab.ask(&["tag"]), "heavy\ntheirs\n");
    // A session of its own has nothing that could be the same.
    let mut lab = lab.reopen();
    let mut step = lab.step();
    (step.shallow, step.tags) = (vec![first], None);
    assert!(matches!(lab.refused(step, None), StepError::Invalid(_)));
    lab.here(&["tag", "-d", "heavy"]);
    let mut step = lab.step();
    step.shallow = vec![first];
    lab.land(step, None);
    assert_eq!(lab.ask(&["tag"]), "theirs\n");
    lab.assert_sound();
}

#[test]
fn settings_travel_and_go_again() {
    let mut lab = Lab::new();
    lab.write("f", "1\r\n2\r\n");
    lab.here(&["config", "core.autocrlf", "true"]);
    let first = lab.commit("first");
    lab.mirror();
    let mut step = lab.step();
    step.shallow = vec![first];
    step.settings = vec![("core.autocrlf".into(), "true".into()), ("core.fileMode".into(), "false".into())];
    let pack = lab.depth_one();
    lab.land(step, Some(&pack));
    assert_eq!(lab.ask(&["config", "core.autocrlf"]).trim(), "true");
    assert_eq!(lab.ask(&["config", "core.filemode"]).trim(), "false");
    assert_eq!(lab.ask(&["status", "--porcelain"]), "");
    let mut step = lab.step();
    step.shallow = vec![first];
    lab.land(step, None);
    assert!(lab.ask_fails(&["config", "core.autocrlf"]));
    assert_eq!(lab.ask(&["config", "core.filemode"]).trim(), "true");
    lab.assert_sound();
}

#[test]
fn settings_that_were_cut_off_before_they_counted_count_with_the_next_step() {
    let mut lab = Lab::new();
    lab.write("f", "1\n");
    let first = lab.commit("first");
    lab.mirror();
    std::fs::write(lab.there(".git/gitsync/config"), "[core]\n\tautocrlf = true\n").unwrap();
    let mut step = lab.step();
    step.shallow = vec![first];
    step.settings = vec![("core.autocrlf".into(), "true".into())];
    let pack = lab.depth_one();
    lab.land(step, Some(&pack));
    assert_eq!(lab.ask(&["config", "core.autocrlf"]).trim(), "true");
    lab.assert_sound();
}

#[test]
fn skipped_paths_are_no_deletions() {
    let mut lab = Lab::new();
    lab.write("kept", "1\n");
    lab.write("far/away", "2\n");
    let first = lab.commit("first");
    lab.here(&["update-index", "--skip-worktree", "far/away"]);
    std::fs::remove_file(lab.src().join("far/away")).unwrap();
    lab.mirror();
    let mut step = lab.step();
    step.shallow = vec![first];
    step.skip_worktree = Some(Arc::new(vec![BString::from("far/away"), BString::from("nowhere")]));
    let pack = lab.depth_one();
    lab.land(step, Some(&pack));
    assert_eq!(lab.ask(&["status", "--porcelain"]), "");
    assert_eq!(lab.ask(&["ls-files", "-v"]), "S far/away\nH kept\n");
    // Marked no longer: the index is made anew although HEAD stands.
    let mut step = lab.step();
    step.shallow = vec![first];
    lab.land(step, None);
    assert_eq!(lab.ask(&["status", "--porcelain"]), " D far/away\n");
}

#[test]
fn a_submodule_is_an_empty_directory() {
    let mut lab = Lab::new();
    lab.write("f", "1\n");
    let first = lab.commit("first");
    lab.here(&["update-index", "--add", "--cacheinfo", &format!("160000,{first},libs/sub")]);
    lab.here(&["commit", "-q", "-m", "sub"]);
    lab.land_head();
    assert!(lab.there("libs/sub").is_dir());
    assert_eq!(lab.ask(&["status", "--porcelain"]), "");
    lab.assert_clear();
    // A file takes its place.
    let second = lab.head();
    lab.here(&["rm", "-q", "--cached", "libs/sub"]);
    lab.write("libs", "a file\n");
    let third = lab.commit("third");
    lab.mirror();
    let pack = lab.pack(&format!("--shallow {second}\n{third}\n^{second}\n"));
    let mut step = lab.step();
    step.shallow = vec![second];
    lab.land(step, Some(&pack));
    lab.mirror();
    lab.assert_same();
    assert_eq!(lab.ask(&["status", "--porcelain"]), "");
}

#[test]
fn filters_and_hooks_never_run() {
    let mut lab = Lab::new();
    let trap = lab.temp.path().join("trap");
    lab.write(".gitattributes", "*.bin filter=lfs diff=lfs\n*.txt filter=x\n");
    lab.write("a.bin", "version https://git-lfs\n");
    lab.write("b.txt", "text\n");
    lab.commit("first");
    let command = format!("touch {}; cat", trap.display());
    for key in [
        "filter.lfs.clean",
        "filter.lfs.smudge",
        "filter.x.clean",
        "core.fsmonitor",
        "core.alternateRefsCommand",
    ] {
        lab.ask(&["config", key, &command]);
    }
    lab.ask(&["config", "filter.lfs.required", "true"]);
    let hooks = lab.there(".git/hooks");
    std::fs::create_dir_all(&hooks).unwrap();
    for hook in ["reference-transaction", "post-checkout", "post-index-change", "post-commit", "pre-auto-gc"]
    {
        let path = hooks.join(hook);
        std::fs::write(&path, format!("#!/bin/sh\ntouch {}\n", trap.display())).unwrap();
        std::os::unix::fs::PermissionsExt::set_mode(
            &mut std::fs::metadata(&path).unwrap().permissions(),
            0o755,
        );
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    lab.land_head();
    assert!(!trap.exists());
    assert_eq!(lab.ask(&["rev-parse", "HEAD"]), lab.here(&["rev-parse", "HEAD"]));
}

#[test]
fn an_index_changed_there_comes_back_with_the_next_move() {
    let mut lab = Lab::new();
    lab.write("f", "1\n");
    let first = lab.commit("first");
    lab.land_head();
    std::fs::write(lab.there("extra"), "x").unwrap();
    lab.ask(&["add", "extra"]);
    let mut step = lab.step();
    step.shallow = vec![first];
    lab.land(step, None);
    assert_eq!(lab.ask(&["ls-files"]), "extra\nf\n");
    let second = lab.commit("second");
    let pack = lab.pack(&format!("--shallow {first}\n{second}\n^{first}\n"));
    let mut step = lab.step();
    step.shallow = vec![first];
    lab.land(step, Some(&pack));
    assert_eq!(lab.ask(&["ls-files"]), "f\n");
    assert!(lab.there("extra").exists());
}

#[test]
fn somebody_elses_lock_is_respected() {
    let mut lab = Lab::new();
    lab.write("f", "1\n");
    lab.commit("first");
    lab.mirror();
    for lock in ["index.lock", "refs/heads/main.lock"] {
        std::fs::write(lab.there(".git").join(lock), "").unwrap();
        let mut step = lab.step();
        step.shallow = step.head.into_iter().collect();
        let pack = lab.depth_one();
        let refused = lab.refused(step, Some(&pack));
        assert!(matches!(refused, StepError::Busy(_)), "{refused:?}");
        assert!(lab.ask_fails(&["rev-parse", "-q", "--verify", "HEAD"]));
        assert!(!lab.there(".git/index").exists());
        // Not ours, so it stays.
        lab = lab.reopen();
        assert!(lab.there(".git").join(lock).exists());
        std::fs::remove_file(lab.there(".git").join(lock)).unwrap();
        lab.mirror();
    }
    lab.land_head();
    lab.assert_same();
}

/// Somebody who holds a lock while we wait for it, then writes `text`.
fn written_meanwhile(lab: &Lab, target: &str, text: &str) {
    let ours = lab.there(".git/gitsync/history").join(format!("{}.{target}", lab.fence.number()));
    let until = Instant::now() + PATIENCE;
    while !ours.exists() {
        assert!(Instant::now() < until, "the file is made before it is locked");
        std::thread::yield_now();
    }
    let lock = lab.there(".git").join(format!("{target}.lock"));
    std::fs::write(&lock, text).unwrap();
    std::fs::rename(&lock, lab.there(".git").join(target)).unwrap();
}

#[test]
fn what_somebody_else_configures_meanwhile_stays() {
    let mut lab = Lab::new();
    lab.write("f", "1\n");
    let first = lab.commit("first");
    lab.mirror();
    let config = std::fs::read_to_string(lab.there(".git/config")).unwrap();
    std::fs::write(lab.there(".git/config.lock"), "").unwrap();
    let mut step = lab.step();
    step.shallow = vec![first];
    step.settings = vec![("core.autocrlf".into(), "true".into())];
    let pack = lab.depth_one();
    lab.send(step, Some(&pack));
    written_meanwhile(&lab, "config", &format!("{config}[user]\n\tname = Somebody\n"));
    let outcome = lab.outcome();
    assert!(matches!(outcome, Report::Landed { .. }), "{outcome:?}");
    assert_eq!(lab.ask(&["config", "user.name"]).trim(), "Somebody");
    assert_eq!(lab.ask(&["config", "core.autocrlf"]).trim(), "true");
    lab.assert_sound();
}

#[test]
fn a_boundary_somebody_else_moves_meanwhile_is_looked_at_again() {
    let mut lab = Lab::new();
    lab.write("f", "1\n");
    let base = lab.commit("base");
    lab.write("f", "2\n");
    let next = lab.commit("next");
    lab.land_head();
    std::fs::write(lab.there(".git/shallow.lock"), "").unwrap();
    // Deeper, down to the root.
    let pack = lab.pack(&format!("{base}\n"));
    let step = lab.step();
    lab.send(step, Some(&pack));
    let theirs = format!("{next}\n{next}\n");
    written_meanwhile(&lab, "shallow", &theirs);
    let outcome = lab.outcome();
    assert!(matches!(outcome, Report::NotLanded { error: StepError::Busy(_), .. }), "{outcome:?}");
    assert_eq!(std::fs::read_to_string(lab.there(".git/shallow")).unwrap(), theirs);
    let step = lab.step();
    lab.land(step, Some(&pack));
    assert!(!lab.there(".git/shallow").exists());
    lab.assert_same();
}

#[test]
fn small_packs_are_put_together_and_nothing_is_lost() {
    let mut lab = Lab::new();
    lab.write("f", "0\n");
    let first = lab.commit("first");
    lab.land_head();
    let packs = |lab: &Lab| {
        let mut found = Vec::new();
        find(&lab.there(".git/objects/pack"), &mut found);
        found.iter().filter(|path| path.extension().is_some_and(|end| end == "pack")).count()
    };
    let (mut before, mut folded) = (lab.head(), false);
    for n in 1..=45 {
        lab.write("f", &format!("{n}\n"));
        lab.here(&["add", "-A"]);
        lab.here(&["commit", "-q", "--amend", "-m", &format!("{n}")]);
        let next = lab.head();
        let pack = lab.pack(&format!("{next}\n^{before}\n"));
        let mut step = lab.step();
        step.shallow = vec![];
        lab.land(step, Some(&pack));
        before = next;
        // The next step would end it.
        let until = Instant::now() + PATIENCE;
        while packs(&lab) >= 40 && Instant::now() < until {
            std::thread::yield_now();
        }
        folded |= n > 30 && packs(&lab) < 20;
    }
    assert!(folded);
    lab.mirror();
    lab.assert_same();
    for (_, id) in lab.recovery() {
        lab.ask(&["cat-file", "-e", &format!("{id}^{{tree}}")]);
    }
    lab.ask(&["cat-file", "-e", &first.to_string()]);
}

#[test]
fn a_commit_of_fifty_thousand_paths() {
    let mut lab = Lab::new();
    lab.write("f", "0\n");
    lab.commit("first");
    let blob = lab.here(&["rev-parse", "HEAD:f"]);
    let line = |n: u32| format!("100644 {}\td{}/e{}/{n}\n", blob.trim(), n % 10, n % 700);
    let list: String = (0..50_000).map(line).collect();
    feed(git(&lab.src()).args(["update-index", "--add", "--index-info"]), list.as_bytes());
    lab.here(&["commit", "-q", "-m", "many"]);
    lab.land_head();
    assert_eq!(lab.ask(&["ls-files"]).lines().count(), 50_001);
    assert_eq!(lab.ask(&["write-tree"]), lab.here(&["rev-parse", "HEAD^{tree}"]));
    assert_eq!(lab.ask(&["diff-files", "--diff-filter=M"]), "");
    lab.assert_sound();
}

/// No git program takes a directory without a HEAD for a repository.
#[test]
fn a_head_that_is_gone_or_damaged_is_made_anew() {
    let mut lab = Lab::new();
    lab.write("a", "1");
    lab.commit("one");
    lab.land_head();
    for damage in [None, Some(""), Some("no head\n")] {
        let head = lab.there(".git/HEAD");
        match damage {
            None => std::fs::remove_file(&head).unwrap(),
            Some(text) => std::fs::write(&head, text).unwrap(),
        }
        lab.write("a", damage.unwrap_or("gone"));
        lab.commit("next");
        lab.land_head();
        lab.assert_same();
    }
}

#[test]
fn an_index_that_was_changed_is_written_anew_when_everything_is_compared() {
    let mut lab = Lab::new();
    lab.write("a", "1");
    lab.commit("one");
    lab.land_head();
    std::fs::write(lab.there("b"), "theirs").unwrap();
    lab.ask(&["add", "b"]);
    lab.ask(&["rm", "-q", "--cached", "a"]);
    let step = lab.step();
    lab.land(step, None);
    assert_eq!(lab.ask(&["ls-files"]), "b\n", "what is staged there stays");
    let step = Step { anew: true, ..lab.step() };
    lab.land(step, None);
    assert_eq!(lab.ask(&["ls-files"]), "a\n");
    assert_eq!(lab.ask(&["status", "--porcelain"]), "?? b\n");
}

/// The last landing's index is forgotten, as in a clone that was just adopted.
#[test]
fn what_is_only_staged_in_an_adopted_clone_is_kept() {
    let mut lab = Lab::new();
    lab.write("a", "1");
    lab.commit("one");
    lab.land_head();
    let land = |lab: &mut Lab| {
        std::fs::remove_file(lab.there(".git/gitsync/history/landed")).unwrap();
        let step = lab.step();
        lab.land(step, None);
        lab.assert_same();
    };
    land(&mut lab);
    assert!(lab.recovery().is_empty(), "nothing is staged");
    for (path, text) in [("a", "staged over"), ("new", "staged and gone")] {
        std::fs::write(lab.there(path), text).unwrap();
        lab.ask(&["add", path]);
    }
    std::fs::remove_file(lab.there("new")).unwrap();
    std::fs::write(lab.there("a"), "1").unwrap();
    land(&mut lab);
    let kept = lab.recovery();
    let [(name, id)] = &kept[..] else { panic!("{kept:?}") };
    assert!(name.ends_with("-index"), "{name}");
    assert_eq!(lab.ask(&["show", &format!("{id}:a")]), "staged over");
    assert_eq!(lab.ask(&["show", &format!("{id}:new")]), "staged and gone");
    assert_eq!(lab.ask(&["rev-parse", &format!("{id}^")]).trim(), lab.head().to_string());
}

#[test]
fn a_merge_in_progress_is_set_aside_and_what_it_stands_on_is_kept() {
    let mut lab = Lab::new();
    lab.write("a", "1");
    lab.commit("one");
    lab.land_head();
    let there = lab.there("");
    let git = |args: &[&str]| git(&there).args(args).output().unwrap().status.success();
    assert!(git(&["switch", "-q", "-c", "side"]));
    std::fs::write(lab.there("a"), "theirs").unwrap();
    assert!(git(&["commit", "-q", "-a", "-m", "theirs"]) && git(&["switch", "-q", "main"]));
    std::fs::write(lab.there("a"), "ours").unwrap();
    assert!(git(&["commit", "-q", "-a", "-m", "ours"]));
    assert!(!git(&["merge", "-q", "side"]), "a conflict");
    let theirs = ObjectId::from_hex(lab.ask(&["rev-parse", "side"]).trim().as_bytes()).unwrap();
    assert!(git(&["branch", "-q", "-D", "side"]));
    std::fs::remove_file(lab.there(".git/gitsync/history/landed")).unwrap();
    std::fs::write(lab.there("a"), "1").unwrap();
    lab.write("a", "2");
    lab.commit("two");
    lab.land_head();
    lab.assert_same();
    assert!(!lab.ask(&["status"]).contains("merg"), "{}", lab.ask(&["status"]));
    let kept = lab.recovery();
    assert!(kept.iter().any(|(name, id)| name.ends_with("-merge_head") && *id == theirs), "{kept:?}");
    let index = kept.iter().find(|(name, _)| name.ends_with("-index")).expect("the index is kept");
    assert_eq!(lab.ask(&["show", &format!("{}:a~3", index.1)]), "theirs");
    let mut aside = Vec::new();
    find(&lab.there(".git/gitsync/unfinished"), &mut aside);
    assert!(aside.iter().any(|path| path.ends_with("MERGE_HEAD")), "{aside:?}");
}

/// Git looks for what such an index names, and complains when it is gone.
#[test]
fn packs_that_an_index_over_several_names_are_not_folded() {
    let mut lab = Lab::new();
    lab.write("f", "0\n");
    lab.commit("first");
    lab.land_head();
    let packs = |lab: &Lab| {
        let mut found = Vec::new();
        find(&lab.there(".git/objects/pack"), &mut found);
        found.retain(|path| path.extension().is_some_and(|end| end == "pack"));
        found
    };
    let (mut before, mut named) = (lab.head(), Vec::new());
    for n in 1..=50 {
        lab.write("f", &format!("{n}\n"));
        let next = lab.commit("next");
        let pack = lab.pack(&format!("{next}\n^{before}\n"));
        let step = lab.step();
        lab.land(step, Some(&pack));
        before = next;
        if n == 4 {
            lab.ask(&["multi-pack-index", "write"]);
            named = packs(&lab);
        }
        // The next step would end the folding.
        let until = Instant::now() + PATIENCE;
        while packs(&lab).len() >= 40 + named.len() && Instant::now() < until {
            std::thread::yield_now();
        }
    }
    assert!(packs(&lab).len() < 40, "the others were folded");
    assert!(!named.is_empty() && named.iter().all(|pack| pack.exists()), "{named:?}");
    lab.ask(&["multi-pack-index", "verify"]);
    lab.assert_sound();
}
