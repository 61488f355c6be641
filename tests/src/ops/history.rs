//! What people do with git, and where they leave it half done: a merge or rebase that met a conflict stays as it is
//! until a later change solves or aborts it.
//!
//! No branch ever leaves the commits that hold the ballast, so it is never touched.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::{BALLAST, Ops};
use crate::git::Repo;

const BRANCHES: [&str; 3] = ["main", "topic", "side"];
const TAGS: [&str; 4] = ["v1", "v2", "v2.1", "wip/old"];

/// Work git stopped in the middle of.
#[derive(Debug, Clone, Copy)]
enum Stopped {
    Merge,
    Rebase,
    CherryPick,
}

impl Stopped {
    fn command(self) -> &'static str {
        match self {
            Self::Merge => "merge",
            Self::Rebase => "rebase",
            Self::CherryPick => "cherry-pick",
        }
    }
}

impl Ops {
    pub(super) fn git_index(&mut self) -> String {
        let path = self.some_leaf();
        let path = path.as_os_str();
        let args: Vec<&OsStr> = match self.rng.u8(..5) {
            0 | 1 => vec![OsStr::new("add"), OsStr::new("-A")],
            2 => vec![OsStr::new("add"), OsStr::new("-f"), OsStr::new("--"), path],
            3 => vec![OsStr::new("add"), OsStr::new("-N"), OsStr::new("--"), path],
            _ => vec![OsStr::new("rm"), OsStr::new("-q"), OsStr::new("--cached"), OsStr::new("--"), path],
        };
        self.git(&args)
    }

    pub(super) fn git_commit(&mut self) -> String {
        let how: &[&str] = match self.rng.u8(..4) {
            0 => &["commit", "-q", "--allow-empty", "-m", "more"],
            1 | 2 => &["commit", "-q", "--allow-empty", "-a", "-m", "all"],
            _ => &["commit", "-q", "--allow-empty", "--amend", "-m", "better"],
        };
        // The ballast's own commit must stay.
        if how.contains(&"--amend") && !self.keeps_ballast("HEAD~1") {
            return self.step_by_step(&[&["commit", "-q", "--allow-empty", "-m", "more"]]);
        }
        self.git(&how.iter().map(OsStr::new).collect::<Vec<_>>())
    }

    /// To another branch, with everything committed or with what git can carry over; sometimes to no branch at all.
    pub(super) fn git_switch(&mut self) -> String {
        let branch = self.a_branch();
        let exists = self.repo.try_git(["rev-parse", "-q", "--verify", branch]).status.success();
        let to: &[&str] = match self.rng.u8(..4) {
            0 => &["switch", "-q", "--detach"],
            _ if exists => &["switch", "-q", branch],
            _ => &["switch", "-q", "-c", branch],
        };
        match self.rng.bool() {
            true => self.step_by_step(&[&["add", "-A"], &["commit", "-q", "-m", "all"], to]),
            false => self.step_by_step(&[to]),
        }
    }

    /// Backwards most often, and forwards again to where the last move came from.
    pub(super) fn git_reset(&mut self) -> String {
        let to = ["HEAD", "HEAD~1", "HEAD~2", "HEAD~3", "ORIG_HEAD"][self.rng.usize(..5)];
        let how = ["--soft", "--mixed", "--hard"][self.rng.usize(..3)];
        if !self.keeps_ballast(to) {
            return self.step_by_step(&[&["reset", "-q", "--hard"], &["clean", "-q", "-f", "-d"]]);
        }
        self.step_by_step(&[&["reset", "-q", how, to]])
    }

    /// There and back at once, or left there for later.
    pub(super) fn git_stash(&mut self) -> String {
        match self.rng.u8(..4) {
            0 => self.step_by_step(&[&["stash", "-q", "-u"], &["stash", "pop", "-q"]]),
            1 => self.step_by_step(&[&["stash", "-q", "-u"]]),
            2 => self.step_by_step(&[&["stash", "-q"]]),
            _ => self.step_by_step(&[&["stash", "pop", "-q"]]),
        }
    }

    pub(super) fn git_merge(&mut self) -> String {
        let branch = self.a_branch();
        self.git_onto(&["merge", "-q", "--no-edit", "-m", "merged", branch])
    }

    pub(super) fn git_rebase(&mut self) -> String {
        let branch = self.a_branch();
        self.git_onto(&["rebase", "-q", branch])
    }

    pub(super) fn git_cherry_pick(&mut self) -> String {
        let branch = self.a_branch();
        self.git_onto(&["cherry-pick", branch])
    }

    /// Something that may stop for a conflict. What stopped before is ended instead.
    fn git_onto(&mut self, work: &[&str]) -> String {
        if self.stopped().is_some() {
            return self.settle();
        }
        // Git refuses to start where it would overwrite something: committing first makes it go on more often.
        match self.rng.bool() {
            true => self.step_by_step(&[&["add", "-A"], &["commit", "-q", "-m", "all"], work]),
            false => self.step_by_step(&[work]),
        }
    }

    /// Solves what git stopped for, markers and all, or gives it up.
    pub(super) fn settle(&mut self) -> String {
        let Some(stopped) = self.stopped() else { return self.git_commit() };
        let command = stopped.command();
        match (self.rng.u8(..3), stopped) {
            (0, _) => self.step_by_step(&[&[command, "--abort"]]),
            (1, Stopped::Rebase | Stopped::CherryPick) => self.step_by_step(&[&[command, "--skip"]]),
            (_, Stopped::Merge) => self.step_by_step(&[&["add", "-A"], &["commit", "-q", "--no-edit"]]),
            _ => self.step_by_step(&[&["add", "-A"], &["-c", "core.editor=true", command, "--continue"]]),
        }
    }

    fn stopped(&self) -> Option<Stopped> {
        let is_there = |name: &str| self.repo.path(".git").join(name).exists();
        if is_there("rebase-merge") || is_there("rebase-apply") {
            Some(Stopped::Rebase)
        } else if is_there("MERGE_HEAD") {
            Some(Stopped::Merge)
        } else {
            is_there("CHERRY_PICK_HEAD").then_some(Stopped::CherryPick)
        }
    }

    /// Refs and objects alone.
    pub(super) fn git_refs(&mut self) -> String {
        let tag = TAGS[self.rng.usize(..TAGS.len())];
        let branch = self.a_branch();
        let args: &[&str] = match self.rng.u8(..8) {
            0 | 1 => &["tag", "-f", tag],
            2 => &["tag", "-f", "-a", "-m", "a release", tag],
            3 => &["tag", "-d", tag],
            4 => &["branch", "-f", branch, "HEAD"],
            5 => &["branch", "-q", "-D", branch],
            6 => &["pack-refs", "--all"],
            _ => &["gc", "-q", "--prune=now"],
        };
        self.git(&args.iter().map(OsStr::new).collect::<Vec<_>>())
    }

    /// A second working tree of the repository, beside it; or its end.
    pub(super) fn git_worktree(&mut self) -> String {
        let beside = self.repo.home().join("beside");
        let args = match beside.exists() {
            true => vec![OsStr::new("worktree"), OsStr::new("remove"), OsStr::new("-f"), beside.as_os_str()],
            false => ["worktree", "add", "-q", "--detach"]
                .map(OsStr::new)
                .into_iter()
                .chain([beside.as_os_str()])
                .collect(),
        };
        let output = self.repo.try_git(&args);
        let made = if beside.exists() { "made" } else { "removed" };
        format!("a working tree beside is {made}{}", if output.status.success() { "" } else { " (refused)" })
    }

    /// A submodule, or its end. Its address is relative, so that it is the same for every run.
    pub(super) fn git_submodule(&mut self) -> String {
        let path = format!("{}/sub", ["d1", "d2"][self.rng.usize(..2)]);
        if self.repo.path(&path).exists() {
            return self.step_by_step(&[&["rm", "-q", "-f", "--", &path]]);
        }
        let library = self.repo.home().join("library");
        if !library.exists() {
            let library = Repo::init(&library, self.repo.home());
            library.write("code.c", "int one;\n");
            library.commit_all("library");
        }
        let url = Path::new("..").join(library.strip_prefix(self.parent()).expect("both lie in the sandbox"));
        let url = url.to_str().expect("the kit's names are ASCII");
        self.make_room(Path::new(&path));
        let allow = "protocol.file.allow=always";
        self.step_by_step(&[&["-c", allow, "submodule", "--quiet", "add", "--force", url, &path]])
    }

    fn parent(&self) -> &Path {
        self.repo.root().parent().expect("the repository lies in the sandbox")
    }

    /// Commands that may change many files one after the other. Some must fail; then less is changed.
    fn step_by_step(&mut self, steps: &[&[&str]]) -> String {
        self.many_steps = true;
        self.touch_all_but_ballast();
        let said: Vec<String> =
            steps.iter().map(|step| self.git(&step.iter().map(OsStr::new).collect::<Vec<_>>())).collect();
        self.touch_all_but_ballast();
        said.join(", ")
    }

    fn touch_all_but_ballast(&mut self) {
        let entries = fs::read_dir(self.repo.root()).expect("the working tree can be listed");
        let names =
            entries.map(|entry| PathBuf::from(entry.expect("it can be listed to its end").file_name()));
        self.touched.extend(names.filter(|name| name != Path::new(BALLAST) && name != Path::new(".git")));
    }

    /// Some of these must fail (nothing staged matches, a path is untracked); then nothing changed.
    pub(super) fn git(&mut self, args: &[&OsStr]) -> String {
        let output =
            self.repo.try_git(["--literal-pathspecs"].iter().map(OsStr::new).chain(args.iter().copied()));
        let outcome = if output.status.success() { "" } else { " (refused)" };
        // A git that crashes leaves its lock, and says itself that one is to remove it.
        let crashed = fs::remove_file(self.repo.path(".git/index.lock")).is_ok();
        format!("git {args:?}{outcome}{}", if crashed { ", which left a lock" } else { "" })
    }

    fn a_branch(&mut self) -> &'static str {
        BRANCHES[self.rng.usize(..BRANCHES.len())]
    }

    /// True if this commit is there and the ballast's is among its ancestors, or is it.
    fn keeps_ballast(&self, commit: &str) -> bool {
        self.repo.try_git(["merge-base", "--is-ancestor", &self.root_commit, commit]).status.success()
    }
}
