//! Random changes against running programs, judged at quiet points.
//!
//! Changes come in bursts, while the client is at work; some are made on the servers, by somebody who knows nothing of
//! us. Then everything is left alone: git says which id every server must ack, and nine things are checked. (1) Each
//! server's managed files are that set: bytes, modes, link targets. (2) Everything else there is as it was. (3) What did
//! not change was not touched. (4) No `.git` was written, but for `gitsync/` and the history on a server. (5) What somebody wrote on a
//! server is still there or among the kept copies. (6, 7) Programs that are ended by force and started again find
//! everything in place, and write nothing. (8) What lies outside, where links point to, is as it was. (9) Git says the
//! same of HEAD, tags and changes on both sides.
//!
//! The hard part is to know what else may lie on a server. A path that git begins to ignore stays there and is foreign
//! from then on, and so is what the driver puts there itself. After every change the driver therefore notes what was
//! on the client's disk, and what of it was in the set: it changes ignore rules in one step only, so whatever the
//! client saw in between was one of these states or a mix of neighbours.
//!
//! A run never asks for a resync: what it cannot reach without one is a bug.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::fs::{AtFlags, OFlags};

use crate::client::Client;
use crate::event::{self, Standing};
use crate::faces;
use crate::git::Repo;
use crate::lab::Lab;
use crate::ops::{Op, Ops};
use crate::oracle::{Expected, Mode, PatchId};
use crate::process::{self, PATIENCE};
use crate::tree::{self, Node, Stamp, Tree};

/// How long a run is and which one it is.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub seed: u64,
    pub ops: usize,
}

impl Plan {
    /// This plan, unless `GITSYNC_SEED` or `GITSYNC_OPS` say otherwise.
    pub fn or_from_env(self) -> Self {
        Self { seed: process::number_from_env("GITSYNC_SEED").unwrap_or(self.seed), ..self }
            .with_ops_from_env()
    }

    fn with_ops_from_env(self) -> Self {
        let ops = process::number_from_env("GITSYNC_OPS").and_then(|n| usize::try_from(n).ok());
        Self { ops: ops.unwrap_or(self.ops), ..self }
    }
}

/// What a run did, for the one line it prints.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub ops: usize,
    /// What somebody did on the servers meanwhile.
    pub server_ops: usize,
    pub quiet_points: usize,
    /// Paths whose inode, mtime and bits were checked to be as before, over all servers and quiet points.
    pub untouched: usize,
    /// Files outside the set that were checked to be as before.
    pub foreign: usize,
    /// Quiet points at which a server left paths out because something foreign was in the way.
    pub withheld: usize,
    /// Quiet points at which a managed file had been edited or deleted on a server.
    pub drifts: usize,
    /// Those of them that the servers found while nothing else happened.
    pub swept: usize,
    /// Times everything was ended by force and found nothing to do afterwards.
    pub reopened: usize,
}

/// When a run can be disturbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// A change was made a moment ago. `roll` is below 100 and comes from the seed.
    Change { roll: usize },
    /// Everything must run again now: a quiet point follows.
    Quiet,
    /// All programs must end by force now and run again.
    Reopen,
    /// Every server has acked; nothing was looked at yet.
    Acked,
}

/// What a run found wrong, with the seed and the newest changes.
#[derive(Debug)]
pub struct Divergence(String);

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One run over one client and some of its servers.
#[derive(Debug)]
pub struct Rounds<'a> {
    lab: &'a Lab,
    servers: Vec<ServerDisk>,
    ops: Ops,
    /// For what happens on servers, so that the client's history depends on the seed alone.
    rng: Rng,
    plan: Plan,
    patience: Duration,
    log: Vec<String>,
    /// Paths that were on the client's disk but not in the set since the last quiet point, or that some server kept
    /// at it: a server may keep them.
    may_be_foreign: BTreeSet<PathBuf>,
    /// Where submodules are or were: the history makes an empty directory for each, as git does, in its own time.
    gitlinks: BTreeSet<PathBuf>,
    burst: Burst,
    outside: Vec<(PathBuf, Tree)>,
    outcome: Outcome,
}

/// What one server held at the last quiet point, and what somebody did there since.
#[derive(Debug)]
struct ServerDisk {
    name: String,
    /// Whether an edit there is found while nothing happens. Else it is when the workspace is opened again.
    sweeps: bool,
    tree: Tree,
    /// Files outside the set, which must stay as they are.
    foreign: BTreeMap<PathBuf, Node>,
    /// Where somebody may have left something of his own.
    planted: BTreeSet<PathBuf>,
    /// Managed paths that somebody edited or deleted since.
    drift: BTreeSet<PathBuf>,
    /// Every content that somebody finished writing there. Each is unlike all others.
    written: Vec<Vec<u8>>,
    /// Kept copies, which never change; only short ones are read.
    kept: BTreeMap<PathBuf, Vec<u8>>,
    /// The `.git` there but for what we write in it.
    git_dir: BTreeMap<PathBuf, Stamp>,
}

/// What happened on the client since the last quiet point.
#[derive(Debug, Default)]
struct Burst {
    touched: Vec<PathBuf>,
    /// Every path that was on the disk after any change.
    on_disk: BTreeSet<PathBuf>,
    /// The set, less every path that left it or changed its mode in between; `None` before the first change.
    steady: Option<BTreeMap<PathBuf, Mode>>,
}

const SWEEP_PATIENCE: Duration = Duration::from_millis(750);

/// Longer contents are never written by hand on a server.
const SHORT: usize = 4096;

impl<'a> Rounds<'a> {
    /// Prepares a run against `servers`, which mirror the lab's repository already or will when the client starts.
    pub fn new(lab: &'a Lab, servers: &[&str], plan: Plan) -> Self {
        let disk = |name: &&str| ServerDisk {
            name: (*name).to_owned(),
            sweeps: false,
            tree: Tree::default(),
            foreign: BTreeMap::new(),
            planted: BTreeSet::new(),
            drift: BTreeSet::new(),
            written: Vec::new(),
            kept: BTreeMap::new(),
            git_dir: BTreeMap::new(),
        };
        let beside_workspaces = servers.iter().map(|name| lab.server_root(name).join("outside"));
        let outside: Vec<PathBuf> = beside_workspaces.chain([lab.path("outside")]).collect();
        for dir in &outside {
            fs::create_dir_all(dir).expect("the sandbox is writable");
            fs::write(dir.join("file"), "not ours").expect("the sandbox is writable");
        }
        Self {
            lab,
            servers: servers.iter().map(disk).collect(),
            ops: Ops::new(&lab.repo, plan.seed),
            rng: Rng::with_seed(plan.seed.wrapping_add(0x5eed)),
            plan,
            patience: PATIENCE,
            log: Vec::new(),
            may_be_foreign: BTreeSet::new(),
            gitlinks: BTreeSet::new(),
            burst: Burst::default(),
            outside: outside.into_iter().map(|dir| (dir.clone(), tree::walk(&dir))).collect(),
            outcome: Outcome::default(),
        }
    }

    /// These servers look for edits by themselves, within seconds.
    pub fn with_sweeps(mut self, servers: &[&str]) -> Self {
        for disk in self.servers.iter_mut().filter(|disk| servers.contains(&disk.name.as_str())) {
            disk.sweeps = true;
        }
        self
    }

    /// How long a server may take to reach a quiet point.
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Makes all changes of the plan, and lets `disturb` do harm at its moments.
    ///
    /// # Panics
    /// At the first divergence, with the seed and the newest changes.
    pub fn run(self, client: &mut Client, disturb: impl FnMut(&mut Client, Moment)) -> Outcome {
        self.try_run(client, disturb).unwrap_or_else(|divergence| panic!("{divergence}"))
    }

    /// [`Rounds::run`] that ends at the first divergence.
    pub fn try_run(
        mut self,
        client: &mut Client,
        mut disturb: impl FnMut(&mut Client, Moment),
    ) -> Result<Outcome, Divergence> {
        self.note_state();
        self.quiet_point(client, &mut disturb)?;
        while self.outcome.ops < self.plan.ops {
            if self.rng.u8(..4) == 0 {
                self.write_in_place();
            }
            let burst = 1 + self.ops.below(20);
            for _ in 0..burst.min(self.plan.ops - self.outcome.ops) {
                let op = self.ops.step();
                self.take(op);
                if self.rng.u8(..8) == 0 {
                    self.work_on_a_server();
                }
                disturb(client, Moment::Change { roll: self.ops.below(100) });
                let pause = self.ops.below(4);
                client.let_work(Duration::from_millis([0, 0, 5, 40][pause]));
            }
            self.quiet_point(client, &mut disturb)?;
            if self.rng.u8(..8) == 0 {
                self.nothing_to_do(client, &mut disturb)?;
            }
        }
        self.nothing_to_do(client, &mut disturb)?;
        Ok(self.outcome)
    }

    fn take(&mut self, op: Op) {
        self.outcome.ops += 1;
        self.log.push(format!("{}: {}", self.outcome.ops, op.text));
        self.burst.touched.extend(op.touched);
        if op.many_steps {
            self.may_be_foreign.extend(self.burst.on_disk.iter().cloned());
        }
        self.note_state();
    }

    fn note_state(&mut self) {
        let set = self.lab.oracle().paths(self.lab.repo.root());
        self.gitlinks.extend(gitlinks(&self.lab.repo));
        let on_disk = tree::names(self.lab.repo.root());
        self.may_be_foreign.extend(on_disk.iter().filter(|path| !set.contains_key(*path)).cloned());
        self.burst.on_disk.extend(on_disk);
        match &mut self.burst.steady {
            Some(steady) => steady.retain(|path, mode| set.get(path) == Some(mode)),
            None => self.burst.steady = Some(set),
        }
    }

    fn quiet_point(
        &mut self,
        client: &mut Client,
        disturb: &mut impl FnMut(&mut Client, Moment),
    ) -> Result<(), Divergence> {
        self.outcome.quiet_points += 1;
        if let Some(text) = self.ops.keep_below_the_brake() {
            self.log.push(format!("   {text}, or the brake would ask a person"));
        }
        disturb(client, Moment::Quiet);
        let git_dir = self.client_git_dir();
        let patient = self.rng.bool();
        let unseen = self.servers.iter().any(|disk| !disk.drift.is_empty() && (!disk.sweeps || patient));
        if unseen {
            self.log.push("   everything is opened again".to_owned());
            disturb(client, Moment::Reopen);
        }
        // Nothing changes the working tree now, and git is asked without locks: reading it in place disturbs nobody.
        let expected = self.lab.expect();
        let mut left_out = self.wait_for_acks(client, &expected)?;
        if self.servers.iter().any(|disk| !disk.drift.is_empty()) {
            self.outcome.drifts += 1;
            if !unseen {
                if self.sweeps_heal(&expected, &left_out) {
                    self.outcome.swept += 1;
                } else {
                    self.log.push("   no sweep came by, everything is opened again".to_owned());
                    disturb(client, Moment::Reopen);
                }
                left_out = self.wait_for_acks(client, &expected)?;
            }
        }
        self.wait_for_git(&expected, &left_out)?;
        disturb(client, Moment::Acked);
        for (index, left_out) in left_out.iter().enumerate() {
            self.compare(index, &expected, left_out)?;
        }
        self.check_git_dirs_and_outside(&git_dir)?;
        // What no server holds now is gone; only what is ignored from here on can stay again.
        self.may_be_foreign = self.servers.iter().flat_map(|server| server.foreign.keys().cloned()).collect();
        self.burst = Burst::default();
        self.note_state();
        Ok(())
    }

    /// Everything ends by force and starts again: all is in place, so nothing is sent and nothing written.
    fn nothing_to_do(
        &mut self,
        client: &mut Client,
        disturb: &mut impl FnMut(&mut Client, Moment),
    ) -> Result<(), Divergence> {
        disturb(client, Moment::Reopen);
        self.outcome.reopened += 1;
        let expected = self.lab.expect();
        let deadline = Instant::now() + self.patience;
        for index in 0..self.servers.len() {
            let left_out = self.wait_for_ack(client, index, &expected, deadline)?;
            let target = self.lab.target(&self.servers[index].name);
            let mut found = Vec::new();
            let rung =
                client.since(0, "session", &target).first().and_then(|s| s.text("rung").map(str::to_owned));
            if left_out.is_empty() && rung.as_deref() != Some("none") {
                found.push(format!("the rung is {rung:?}"));
            }
            let acks = client.since(0, "acked", &target);
            if acks.iter().any(|ack| ack.number("written") + ack.number("deleted") > 0) {
                found.push(format!("something was written: {acks:?}"));
            }
            let workspace = self.lab.workspace(&self.servers[index].name);
            found.extend(
                left_in_stage(&workspace).iter().map(|path| format!("{path:?} is left in the stage")),
            );
            let (before, after) = (&self.servers[index].tree, tree::walk(&workspace));
            let dirs = |tree: &Tree| -> BTreeSet<PathBuf> {
                tree.dirs.iter().filter(|dir| !self.leads_to_gitlink(dir)).cloned().collect()
            };
            let same_dirs = dirs(before) == dirs(&after);
            if before.files != after.files || before.others != after.others || !same_dirs {
                found.extend(
                    tree::touched(before, &after, |_| true)
                        .iter()
                        .map(|path| format!("{path:?} was touched")),
                );
                found.extend(
                    tree::touched(&after, before, |_| true).iter().map(|path| format!("{path:?} is new")),
                );
                found.push("the disk is not as it was".to_owned());
            }
            if !found.is_empty() {
                return Err(self.diverged(&target, "a start with nothing to do did something", &found));
            }
        }
        Ok(())
    }

    fn wait_for_acks(
        &self,
        client: &Client,
        expected: &Expected,
    ) -> Result<Vec<BTreeSet<PathBuf>>, Divergence> {
        let deadline = Instant::now() + self.patience;
        (0..self.servers.len()).map(|index| self.wait_for_ack(client, index, expected, deadline)).collect()
    }

    /// Waits until a server holds the expected set, or that set less what it said it had to leave out.
    fn wait_for_ack(
        &self,
        client: &Client,
        index: usize,
        expected: &Expected,
        deadline: Instant,
    ) -> Result<BTreeSet<PathBuf>, Divergence> {
        let target = self.lab.target(&self.servers[index].name);
        let mut ids: BTreeMap<BTreeSet<PathBuf>, PatchId> = BTreeMap::new();
        let left = deadline.saturating_duration_since(Instant::now());
        let acked = client.try_wait_until(left, |events| {
            let standing = Standing::of(events, &target);
            if standing.in_sync_with(&expected.id) {
                return Some(BTreeSet::new());
            }
            let left_out: BTreeSet<PathBuf> = withheld_of(&standing, expected);
            let id = ids
                .entry(left_out)
                .or_insert_with_key(|left_out| self.lab.oracle().id_without(expected, left_out))
                .clone();
            standing.in_sync_with(&id).then(|| withheld_of(&standing, expected))
        });
        acked.map_err(|why| {
            let standing = client.standing(&target);
            let tree = self.lab.server_tree(&self.servers[index].name);
            let found =
                tree::differences(expected, &BTreeSet::new(), &tree, |path| self.may_stay(index, path));
            let what = format!("{why}; expected {}, stands at {standing:?}", expected.id);
            self.diverged(&target, &what, &found)
        })
    }

    /// Waits until git says the same on every server as on the client.
    fn wait_for_git(&self, expected: &Expected, left_out: &[BTreeSet<PathBuf>]) -> Result<(), Divergence> {
        let (root, home) = (self.lab.repo.root(), self.lab.repo.home());
        let here = faces::of_client(root, home, &self.lab.path("index-of-head"));
        // History gives way to everything else, on a busy machine for long.
        let deadline = Instant::now() + self.patience * 4;
        for (disk, left_out) in self.servers.iter().zip(left_out) {
            let differences = |there: &faces::Said| {
                // Rules and repositories that hide a file here need not be there.
                let untracked = there.untracked.intersection(&here.untracked).cloned().collect();
                let there = faces::Said { untracked, ..there.clone() };
                here.differences(&there, left_out, |path| !expected.files.contains_key(path))
            };
            let clone = self.lab.workspace(&disk.name);
            faces::wait_to_agree(&clone, home, deadline, differences)
                .map_err(|found| self.diverged(&disk.name, "git says otherwise there", &found))?;
        }
        Ok(())
    }

    /// Waits a while for the servers to find by themselves what somebody did to managed files. Sweeps take at most a
    /// thousandth of a core, so there is no promise when the next one comes.
    fn sweeps_heal(&self, expected: &Expected, left_out: &[BTreeSet<PathBuf>]) -> bool {
        let deadline = Instant::now() + SWEEP_PATIENCE;
        let is_healed = |disk: &ServerDisk, left_out: &BTreeSet<PathBuf>, path: &PathBuf| {
            // What is not in the set any more was found on its way out, or is foreign now.
            let Some(blob) = expected.files.get(path).filter(|_| !left_out.contains(path)) else {
                return true;
            };
            let there = tree::node(&self.lab.workspace(&disk.name).join(path));
            there.is_some_and(|node| node.mode == blob.mode && node.bytes == blob.bytes)
        };
        loop {
            let mut servers = self.servers.iter().zip(left_out);
            if servers.all(|(disk, left_out)| disk.drift.iter().all(|path| is_healed(disk, left_out, path))) {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn compare(
        &mut self,
        index: usize,
        expected: &Expected,
        left_out: &BTreeSet<PathBuf>,
    ) -> Result<(), Divergence> {
        let workspace = self.lab.workspace(&self.servers[index].name);
        let tree = tree::walk(&workspace);
        self.servers[index].read_kept_copies(&workspace);
        let mut found = tree::differences(expected, left_out, &tree, |path| self.may_stay(index, path));
        found.extend(self.needlessly_withheld(index, left_out, expected, &tree));
        let disk = &self.servers[index];
        let undisturbed = || disk.foreign.keys().filter(|path| !self.burst.met(path));
        let lost = undisturbed().filter(|path| tree.files.get(*path) != disk.foreign.get(*path));
        found.extend(lost.map(|path| format!("{path:?} is foreign and was changed or removed")));
        found.extend(
            disk.lost_writes(&tree)
                .iter()
                .map(|text| format!("{text:?} was written on the server and is gone")),
        );
        let steady = |path: &Path| {
            self.burst.is_steady(path) && !left_out.contains(path) && !disk.drift.contains(path)
        };
        found.extend(
            tree::touched(&disk.tree, &tree, steady)
                .iter()
                .map(|path| format!("{path:?} was touched needlessly")),
        );
        if !found.is_empty() {
            return Err(self.diverged(&disk.name, "the disk differs although the server acked", &found));
        }
        self.outcome.untouched += disk.tree.files.keys().filter(|path| steady(path)).count();
        self.outcome.foreign += undisturbed().count();
        self.outcome.withheld += usize::from(!left_out.is_empty());
        let outside = tree.files.iter().filter(|(path, _)| !expected.files.contains_key(*path));
        let disk = &mut self.servers[index];
        disk.foreign = outside.map(|(path, node)| (path.clone(), node.clone())).collect();
        disk.planted.retain(|path| tree.files.contains_key(path) || tree.dirs.contains(path));
        disk.drift.clear();
        disk.tree = tree;
        Ok(())
    }

    /// A path may only be left out where a directory with something foreign is in its way, or a foreign link stands
    /// where a directory above it should be.
    fn needlessly_withheld(
        &self,
        index: usize,
        left_out: &BTreeSet<PathBuf>,
        expected: &Expected,
        tree: &Tree,
    ) -> Vec<String> {
        let foreign = || tree.files.iter().filter(|(path, _)| !expected.files.contains_key(*path));
        let below = |path: &Path| foreign().any(|(f, _)| f.starts_with(path) && f != path);
        let above = |path: &Path| {
            foreign().any(|(f, node)| node.mode == Mode::Symlink && path.starts_with(f) && f != path)
        };
        let needless = left_out.iter().filter(|path| !below(path) && !above(path));
        needless
            .map(|path| format!("{path:?} was withheld by {} without need", self.servers[index].name))
            .collect()
    }

    fn check_git_dirs_and_outside(
        &mut self,
        client_git_dir: &BTreeMap<PathBuf, Stamp>,
    ) -> Result<(), Divergence> {
        let mut found = Vec::new();
        found.extend(
            changed(client_git_dir, &self.client_git_dir()).map(|path| format!("the client's .git/{path}")),
        );
        for disk in &mut self.servers {
            let git_dir = self.lab.workspace(&disk.name).join(".git");
            let now = tree::stamps(&git_dir, |path| path != Path::new("gitsync") && !is_of_the_history(path));
            if self.outcome.quiet_points > 1 {
                found.extend(changed(&disk.git_dir, &now).map(|path| format!("{}'s .git/{path}", disk.name)));
            }
            disk.git_dir = now;
        }
        let harmed = self.outside.iter().filter(|(dir, before)| tree::walk(dir) != *before);
        found.extend(harmed.map(|(dir, _)| format!("{} is outside", dir.display())));
        if found.is_empty() {
            return Ok(());
        }
        Err(self.diverged("everything", "something was written where nothing may be", &found))
    }

    /// Nothing in it is ours to write, times of directories included.
    fn client_git_dir(&self) -> BTreeMap<PathBuf, Stamp> {
        tree::stamps(&self.lab.repo.path(".git"), |_| true)
    }

    /// True for directories a submodule alone is reason enough for.
    fn leads_to_gitlink(&self, dir: &Path) -> bool {
        self.gitlinks.iter().any(|link| link.starts_with(dir))
    }

    fn may_stay(&self, index: usize, path: &Path) -> bool {
        if self.leads_to_gitlink(path) {
            return true;
        }
        self.may_be_foreign.contains(path) || self.servers[index].planted.contains(path)
    }

    /// What builds and people do on a server while it is at work: new files beside mirrored ones, in directories of
    /// their own and under names the client may use too; careful saves and deletions of mirrored files.
    fn work_on_a_server(&mut self) {
        let index = self.rng.usize(..self.servers.len());
        let managed = self.managed(index);
        let dirs: Vec<PathBuf> = self.servers[index].tree.dirs.iter().cloned().collect();
        let (kind, roll) = (self.rng.u8(..10), self.rng.usize(..));
        match kind {
            0..3 => self.plant(index, Path::new(["zz-build/out", "build"][roll % 2])),
            3..6 if !dirs.is_empty() => self.plant(index, &dirs[roll % dirs.len()]),
            6 => {
                let path = self.ops.name(&mut self.rng);
                self.create(index, &path);
            }
            7 | 8 if !managed.is_empty() => self.save_by_rename(index, &managed[roll % managed.len()]),
            9 if !managed.is_empty() => self.delete(index, &managed[roll % managed.len()]),
            _ => {}
        }
    }

    /// Regular mirrored files nobody edited on the server since the last quiet point.
    fn managed(&self, index: usize) -> Vec<PathBuf> {
        let disk = &self.servers[index];
        let files = disk.tree.files.iter().filter(|(_, node)| node.mode != Mode::Symlink);
        let managed =
            files.filter(|(path, _)| !disk.foreign.contains_key(*path) && !disk.drift.contains(*path));
        managed.map(|(path, _)| path.clone()).collect()
    }

    fn plant(&mut self, index: usize, dir: &Path) {
        // Fails where the client has put a file meanwhile; then so does the build.
        if self.open_dir(index, dir, IfMissing::Make).is_some() {
            self.servers[index].planted.extend(dir.ancestors().map(PathBuf::from));
            self.create(index, &dir.join(format!("zz-artefact-{}.o", self.outcome.server_ops)));
        }
    }

    fn create(&mut self, index: usize, path: &Path) {
        let Some((dir, name)) = self.open_parent(index, path) else { return };
        let text = self.new_text();
        let new = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let Ok(file) = rustix::fs::openat(dir, name, new, rustix::fs::Mode::from_raw_mode(0o644)) else {
            return;
        };
        fs::File::from(file).write_all(&text).expect("the server's disk is writable");
        self.note_server_op(index, "made", path, Some(text));
        self.servers[index].planted.insert(path.to_path_buf());
    }

    /// The new file is complete before it gets its name, so it counts however the server is at work.
    fn save_by_rename(&mut self, index: usize, path: &Path) {
        let Some((dir, name)) = self.open_parent(index, path) else { return };
        let text = self.new_text();
        let aside = self.lab.path("aside");
        fs::write(&aside, &text).expect("the sandbox is writable");
        if rustix::fs::renameat(rustix::fs::CWD, aside, dir, name).is_ok() {
            self.note_server_op(index, "saved", path, Some(text));
            self.drifted(index, path);
        }
    }

    /// Writes into a mirrored file while nothing is under way: between the look at a file that was replaced and its
    /// removal nobody could save what is written into it.
    fn write_in_place(&mut self) {
        let index = self.rng.usize(..self.servers.len());
        let managed = self.managed(index);
        if managed.is_empty() {
            return;
        }
        let path = managed[self.rng.usize(..managed.len())].clone();
        let text = self.new_text();
        let on_disk = self.lab.workspace(&self.servers[index].name).join(&path);
        fs::write(on_disk, &text).expect("nothing is under way");
        self.note_server_op(index, "wrote into", &path, Some(text));
        self.drifted(index, &path);
    }

    fn delete(&mut self, index: usize, path: &Path) {
        let Some((dir, name)) = self.open_parent(index, path) else { return };
        if rustix::fs::unlinkat(dir, name, AtFlags::empty()).is_ok() {
            self.note_server_op(index, "deleted", path, None);
            self.drifted(index, path);
        }
    }

    fn open_parent<'p>(&self, index: usize, path: &'p Path) -> Option<(OwnedFd, &'p OsStr)> {
        let dir = self.open_dir(index, path.parent()?, IfMissing::GiveUp)?;
        Some((dir, path.file_name()?))
    }

    /// A directory of a workspace, without following the links that may be there by now: what somebody does on a
    /// server, he does inside.
    fn open_dir(&self, index: usize, dir: &Path, if_missing: IfMissing) -> Option<OwnedFd> {
        let as_dir = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY;
        let no_mode = rustix::fs::Mode::empty();
        let workspace = self.lab.workspace(&self.servers[index].name);
        let mut at = rustix::fs::open(workspace, as_dir, no_mode).ok()?;
        for name in dir {
            if if_missing == IfMissing::Make {
                // It may be there already.
                let _ = rustix::fs::mkdirat(&at, name, rustix::fs::Mode::from_raw_mode(0o755));
            }
            at = rustix::fs::openat(&at, name, as_dir, no_mode).ok()?;
        }
        Some(at)
    }

    /// Directories above it may stay when they become empty: it was not we who emptied them.
    fn drifted(&mut self, index: usize, path: &Path) {
        let disk = &mut self.servers[index];
        disk.drift.insert(path.to_path_buf());
        disk.planted.extend(path.ancestors().map(PathBuf::from));
    }

    fn note_server_op(&mut self, index: usize, what: &str, path: &Path, text: Option<Vec<u8>>) {
        self.outcome.server_ops += 1;
        let disk = &mut self.servers[index];
        self.log.push(format!("   on {} somebody {what} {path:?}", disk.name));
        disk.written.extend(text);
    }

    fn new_text(&mut self) -> Vec<u8> {
        format!("written on a server, {} {}\n", self.outcome.server_ops, self.rng.u64(..)).into_bytes()
    }

    fn diverged(&self, target: &str, what: &str, found: &[String]) -> Divergence {
        let newest = self.log[self.log.len().saturating_sub(60)..].join("\n  ");
        Divergence(format!(
            "GITSYNC_SEED={} GITSYNC_OPS={}: {target} diverged after {} changes: {what}\n  {}\nnewest changes:\n  {newest}",
            self.plan.seed,
            self.plan.ops,
            self.outcome.ops,
            found.join("\n  "),
        ))
    }
}

impl ServerDisk {
    fn read_kept_copies(&mut self, workspace: &Path) {
        let recovery = workspace.join(".git/gitsync/recovery");
        for path in tree::names(&recovery) {
            let on_disk = recovery.join(&path);
            self.kept.entry(path).or_insert_with(|| {
                let node = tree::node(&on_disk).filter(|node| node.bytes.len() < SHORT);
                node.map_or_else(Vec::new, |node| node.bytes)
            });
        }
    }

    /// What was written here by hand and is neither in the working tree nor among the kept copies.
    fn lost_writes(&self, tree: &Tree) -> Vec<String> {
        let short = tree.files.values().map(|node| &node.bytes).filter(|bytes| bytes.len() < SHORT);
        let there: HashSet<&Vec<u8>> = short.chain(self.kept.values()).collect();
        let lost = self.written.iter().filter(|text| !there.contains(text));
        lost.map(|text| String::from_utf8_lossy(text).trim().to_owned()).collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IfMissing {
    Make,
    GiveUp,
}

/// Commits of other repositories that the index lists.
fn gitlinks(repo: &Repo) -> Vec<PathBuf> {
    let listing = repo.git(["ls-files", "-z", "--stage"]);
    let entries = listing.split(|byte| *byte == 0).filter(|entry| entry.starts_with(b"160000 "));
    let path = |entry: &[u8]| {
        let tab = entry.iter().position(|byte| *byte == b'\t')?;
        Some(PathBuf::from(OsStr::from_bytes(&entry[tab + 1..])))
    };
    entries.filter_map(path).collect()
}

/// True for what makes a workspace's repository the client's clone, which follows whenever the client's commits move.
fn is_of_the_history(path: &Path) -> bool {
    const NAMES: [&str; 8] = ["HEAD", "config", "index", "logs", "objects", "packed-refs", "refs", "shallow"];
    // Each is written under its lock.
    let name = path.to_str().map(|name| name.strip_suffix(".lock").unwrap_or(name));
    name.is_some_and(|name| NAMES.contains(&name))
}

/// What an apply left behind. Empty after every start.
pub fn left_in_stage(workspace: &Path) -> BTreeSet<PathBuf> {
    tree::names(&workspace.join(".git/gitsync/stage"))
}

/// Paths that are on one side only, or with another stamp.
fn changed<'a>(
    before: &'a BTreeMap<PathBuf, Stamp>,
    after: &'a BTreeMap<PathBuf, Stamp>,
) -> impl Iterator<Item = String> {
    let paths: BTreeSet<&PathBuf> = before.keys().chain(after.keys()).collect();
    let differ = paths.into_iter().filter(|path| before.get(*path) != after.get(*path));
    differ.map(|path| path.display().to_string())
}

impl Burst {
    /// True if `path` was in the set all the time, with one mode, and no change said it touched it.
    fn is_steady(&self, path: &Path) -> bool {
        let in_set = self.steady.as_ref().is_some_and(|steady| steady.contains_key(path));
        in_set && !self.touched.iter().any(|touched| path.starts_with(touched))
    }

    /// True if the client had something at this path, above it or below it, that could displace a server's file.
    fn met(&self, path: &Path) -> bool {
        let above = path.ancestors().any(|ancestor| self.on_disk.contains(ancestor));
        above || self.on_disk.range(path.to_path_buf()..).next().is_some_and(|next| next.starts_with(path))
    }
}

/// The expected paths a target says it left out. Names are compared as the client writes them.
fn withheld_of(standing: &Standing, expected: &Expected) -> BTreeSet<PathBuf> {
    if standing.withheld.is_empty() {
        return BTreeSet::new();
    }
    let named = |path: &&PathBuf| standing.withheld.contains_key(&event::escaped(path));
    expected.files.keys().filter(named).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn burst(on_disk: &[&str], touched: &[&str], steady: &[&str]) -> Burst {
        Burst {
            touched: touched.iter().map(PathBuf::from).collect(),
            on_disk: on_disk.iter().map(PathBuf::from).collect(),
            steady: Some(steady.iter().map(|p| (PathBuf::from(p), Mode::File)).collect()),
        }
    }

    #[test]
    fn a_burst_meets_paths_at_above_and_below() {
        let burst = burst(&["a", "dir/b"], &[], &[]);
        for met in ["a", "a/x", "dir", "dir/b"] {
            assert!(burst.met(Path::new(met)), "{met}");
        }
        for free in ["ab", "dir/c", "dir/b2", "z"] {
            assert!(!burst.met(Path::new(free)), "{free}");
        }
    }

    #[test]
    fn steady_paths_stayed_in_the_set_and_were_not_touched() {
        let burst = burst(&[], &["dir"], &["dir/a", "b"]);
        assert!(burst.is_steady(Path::new("b")));
        assert!(!burst.is_steady(Path::new("dir/a")));
        assert!(!burst.is_steady(Path::new("gone")));
    }
}
