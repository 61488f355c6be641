//! Random changes against running programs, judged at quiet points.
//!
//! Changes come in bursts, while the client is at work. Then the working tree is left alone: a frozen copy of it says
//! which id every server must ack, and each server's disk is compared with the copy, byte for byte.
//!
//! The hard part is to know what else may lie on a server. A path that git begins to ignore stays there and is foreign
//! from then on, and so is what the driver plants itself. After every change the driver therefore notes what was on
//! the client's disk, and what of it was in the set: it changes ignore rules in one step only, so whatever the client
//! saw in between was one of these states or a mix of neighbours.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::event::{self, Standing};
use crate::lab::Lab;
use crate::ops::{Op, Ops};
use crate::oracle::{Expected, Mode, PatchId};
use crate::process::PATIENCE;
use crate::tree::{self, Node, Tree};

/// How long a run is and which one it is.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub seed: u64,
    pub ops: usize,
}

impl Plan {
    /// This plan, unless `GITSYNC_SEED` or `GITSYNC_OPS` say otherwise.
    pub fn or_from_env(self) -> Self {
        Self { seed: number_from_env("GITSYNC_SEED").unwrap_or(self.seed), ..self }.with_ops_from_env()
    }

    fn with_ops_from_env(self) -> Self {
        let ops = number_from_env("GITSYNC_OPS").and_then(|n| usize::try_from(n).ok());
        Self { ops: ops.unwrap_or(self.ops), ..self }
    }
}

fn number_from_env(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {value:?}")))
}

/// What a run did, for the one line it prints.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub ops: usize,
    pub quiet_points: usize,
    /// Paths whose inode and mtime were checked to be as before, over all servers and quiet points.
    pub untouched: usize,
    /// Quiet points at which a server left paths out because something foreign was in the way.
    pub withheld: usize,
}

/// When a run can be disturbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// A change was made a moment ago. `roll` is below 100 and comes from the seed.
    Change { roll: usize },
    /// Everything must run again now: a quiet point follows.
    Quiet,
}

/// One run over one client and some of its servers.
#[derive(Debug)]
pub struct Rounds<'a> {
    lab: &'a Lab,
    servers: Vec<ServerDisk>,
    ops: Ops,
    plan: Plan,
    log: Vec<String>,
    /// Paths that were on the client's disk but not in the set since the last quiet point, or that some server kept
    /// at it: a server may keep them.
    may_be_foreign: BTreeSet<PathBuf>,
    burst: Burst,
    outcome: Outcome,
}

/// What one server held at the last quiet point.
#[derive(Debug)]
struct ServerDisk {
    name: String,
    tree: Tree,
    /// Files outside the set, which must stay as they are.
    foreign: BTreeMap<PathBuf, Node>,
    planted: BTreeSet<PathBuf>,
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

impl<'a> Rounds<'a> {
    /// Prepares a run against `servers`, which mirror the lab's repository already or will when the client starts.
    pub fn new(lab: &'a Lab, servers: &[&str], plan: Plan) -> Self {
        let disk = |name: &&str| ServerDisk {
            name: (*name).to_owned(),
            tree: Tree::default(),
            foreign: BTreeMap::new(),
            planted: BTreeSet::new(),
        };
        Self {
            lab,
            servers: servers.iter().map(disk).collect(),
            ops: Ops::new(&lab.repo, plan.seed),
            plan,
            log: Vec::new(),
            may_be_foreign: BTreeSet::new(),
            burst: Burst::default(),
            outcome: Outcome::default(),
        }
    }

    /// Makes all changes of the plan, and lets `disturb` do harm at its moments.
    ///
    /// # Panics
    /// At the first divergence, with the seed and the newest changes.
    pub fn run(mut self, client: &mut Client, mut disturb: impl FnMut(&mut Client, Moment)) -> Outcome {
        self.note_state();
        self.quiet_point(client);
        while self.outcome.ops < self.plan.ops {
            let burst = 1 + self.ops.below(20);
            for _ in 0..burst.min(self.plan.ops - self.outcome.ops) {
                let op = self.ops.step();
                self.take(op);
                disturb(client, Moment::Change { roll: self.ops.below(100) });
                let pause = self.ops.below(4);
                client.let_work(Duration::from_millis([0, 0, 5, 40][pause]));
            }
            disturb(client, Moment::Quiet);
            self.quiet_point(client);
            self.plant_foreign_files();
        }
        self.outcome
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
        let on_disk = tree::names(self.lab.repo.root());
        self.may_be_foreign.extend(on_disk.iter().filter(|path| !set.contains_key(*path)).cloned());
        self.burst.on_disk.extend(on_disk);
        match &mut self.burst.steady {
            Some(steady) => steady.retain(|path, mode| set.get(path) == Some(mode)),
            None => self.burst.steady = Some(set),
        }
    }

    fn quiet_point(&mut self, client: &Client) {
        self.outcome.quiet_points += 1;
        let expected = self.expect_from_frozen_copy();
        let deadline = Instant::now() + PATIENCE;
        for index in 0..self.servers.len() {
            let left_out = self.wait_for_ack(client, index, &expected, deadline);
            self.compare(index, &expected, &left_out);
        }
        // What no server holds now is gone; only what is ignored from here on can stay again.
        self.may_be_foreign = self.servers.iter().flat_map(|server| server.foreign.keys().cloned()).collect();
        self.burst = Burst::default();
        self.note_state();
    }

    /// The oracle reads a copy, so that it can neither disturb the client nor be disturbed.
    fn expect_from_frozen_copy(&self) -> Expected {
        let frozen = self.lab.path("frozen");
        let copied = Command::new("cp").arg("-a").arg(self.lab.repo.root()).arg(&frozen).status();
        assert!(copied.expect("cp can be run").success(), "the working tree can be copied");
        let expected = self.lab.oracle().expect(&frozen);
        fs::remove_dir_all(&frozen).expect("the copy is ours");
        expected
    }

    /// Waits until a server holds the expected set, or that set less what it said it had to leave out.
    fn wait_for_ack(
        &self,
        client: &Client,
        index: usize,
        expected: &Expected,
        deadline: Instant,
    ) -> BTreeSet<PathBuf> {
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
        acked.unwrap_or_else(|why| {
            let standing = client.standing(&target);
            let tree = self.lab.server_tree(&self.servers[index].name);
            let found =
                tree::differences(expected, &BTreeSet::new(), &tree, |path| self.may_stay(index, path));
            self.diverged(
                &target,
                &format!("{why}; expected {}, stands at {standing:?}", expected.id),
                &found,
            )
        })
    }

    fn compare(&mut self, index: usize, expected: &Expected, left_out: &BTreeSet<PathBuf>) {
        let tree = self.lab.server_tree(&self.servers[index].name);
        let mut found = tree::differences(expected, left_out, &tree, |path| self.may_stay(index, path));
        found.extend(self.needlessly_withheld(index, left_out, expected, &tree));
        let disk = &self.servers[index];
        let undisturbed = disk.foreign.keys().filter(|path| !self.burst.met(path));
        let lost = undisturbed.filter(|path| tree.files.get(*path) != disk.foreign.get(*path));
        found.extend(lost.map(|path| format!("{path:?} is foreign and was changed or removed")));
        let steady = |path: &Path| self.burst.is_steady(path) && !left_out.contains(path);
        found.extend(
            tree::touched(&disk.tree, &tree, steady)
                .iter()
                .map(|path| format!("{path:?} was touched needlessly")),
        );
        if !found.is_empty() {
            self.diverged(&disk.name, "the disk differs although the server acked", &found);
        }
        self.outcome.untouched += disk.tree.files.keys().filter(|path| steady(path)).count();
        self.outcome.withheld += usize::from(!left_out.is_empty());
        let outside = tree.files.iter().filter(|(path, _)| !expected.files.contains_key(*path));
        self.servers[index].foreign = outside.map(|(path, node)| (path.clone(), node.clone())).collect();
        self.servers[index].tree = tree;
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

    fn may_stay(&self, index: usize, path: &Path) -> bool {
        self.may_be_foreign.contains(path) || self.servers[index].planted.contains(path)
    }

    /// What a build on the server would leave behind: beside mirrored files and in directories of its own.
    fn plant_foreign_files(&mut self) {
        if self.ops.below(5) != 0 {
            return;
        }
        let name = format!("zz-artefact-{}.o", self.outcome.quiet_points);
        for index in 0..self.servers.len() {
            let dirs: Vec<PathBuf> = self.servers[index].tree.dirs.iter().cloned().collect();
            let dir = match self.ops.below(3) {
                0 => PathBuf::from("zz-build/out"),
                _ => dirs[self.ops.below(dirs.len())].clone(),
            };
            let path = dir.join(&name);
            let workspace = self.lab.workspace(&self.servers[index].name);
            fs::create_dir_all(workspace.join(&dir)).expect("the server's disk is writable");
            fs::write(workspace.join(&path), format!("built by {path:?}"))
                .expect("the server's disk is writable");
            self.log.push(format!("   planted {path:?} on {}", self.servers[index].name));
            let tree = tree::walk(&workspace);
            let disk = &mut self.servers[index];
            disk.foreign.insert(path.clone(), tree.files[&path].clone());
            disk.planted.insert(path);
        }
    }

    fn diverged(&self, target: &str, what: &str, found: &[String]) -> ! {
        let newest = self.log[self.log.len().saturating_sub(40)..].join("\n  ");
        panic!(
            "GITSYNC_SEED={} GITSYNC_OPS={}: {target} diverged after {} changes: {what}\n  {}\nnewest changes:\n  {newest}",
            self.plan.seed,
            self.plan.ops,
            self.outcome.ops,
            found.join("\n  "),
        );
    }
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
