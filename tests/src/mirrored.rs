//! A repository in sync with one server, and what later work in it costs there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::client::Client;
use crate::event::Event;
use crate::faces;
use crate::git::Repo;
use crate::lab::Lab;
use crate::oracle::Expected;
use crate::process;
use crate::tree::Tree;

/// Written after all work: git's own work may change nothing, and a change that must be acked ends the wait for it.
const SENTINEL: &str = "zz-sentinel";

/// The name of the server, in the process of the client.
pub const NEAR: &str = "near";

/// A client that reached in sync.
#[derive(Debug)]
pub struct Mirrored {
    // Before the directory it works in.
    pub client: Client,
    pub lab: Lab,
}

/// What some work cost the server.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// By its acks.
    pub written: u64,
    pub deleted: u64,
    /// By its disk: what has another inode, time, mode or content than before, was made, or is gone.
    pub touched: BTreeSet<PathBuf>,
}

impl Cost {
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl Mirrored {
    /// The usual repository with its changes.
    #[track_caller]
    pub fn new(name: &str) -> Self {
        Self::of(Lab::new(name))
    }

    #[track_caller]
    pub fn of(lab: Lab) -> Self {
        let mirrored = Self::in_files(lab);
        mirrored.agrees_but_for(&[]);
        mirrored
    }

    /// [`Mirrored::of`] where git is not asked.
    #[track_caller]
    pub fn in_files(lab: Lab) -> Self {
        lab.configure(&[(NEAR, &lab.embedded(NEAR))]);
        let mirrored = Self { client: lab.client(), lab };
        mirrored.lab.repo.write(SENTINEL, "0");
        mirrored.converges_in_files();
        mirrored
    }

    pub fn repo(&self) -> &Repo {
        &self.lab.repo
    }

    pub fn target(&self) -> String {
        self.lab.target(NEAR)
    }

    pub fn workspace(&self, path: impl AsRef<Path>) -> PathBuf {
        self.lab.workspace(NEAR).join(path)
    }

    /// Waits until the server holds what the working tree is now, and compares the disks and what git says of them.
    #[track_caller]
    pub fn converges(&self) -> Expected {
        let expected = self.converges_in_files();
        self.agrees_but_for(&[]);
        expected
    }

    /// [`Mirrored::converges`] where git is not asked: here it would run programs, or hide files it knows of.
    #[track_caller]
    pub fn converges_in_files(&self) -> Expected {
        self.lab.assert_converges(&self.client, &[NEAR])
    }

    /// Waits until git says the same there as here, but for files the server keeps although they are not in the set.
    #[track_caller]
    pub fn agrees_but_for(&self, kept: &[&str]) {
        let home = self.repo().home();
        let here = faces::of_client(self.repo().root(), home, &self.lab.path("index-of-head"));
        let differences = |there: &faces::Said| {
            here.differences(there, &BTreeSet::new(), |path| kept.iter().any(|kept| path == Path::new(kept)))
        };
        let deadline = Instant::now() + process::PATIENCE;
        if let Err(found) = faces::wait_to_agree(&self.workspace(""), home, deadline, differences) {
            panic!("git says otherwise on the server:\n  {}", found.join("\n  "));
        }
    }

    /// Acks since a mark.
    pub fn acks(&self, mark: usize) -> Vec<Event> {
        self.client.since(mark, "acked", &self.target())
    }

    /// Does some work, waits until the server followed all of it, and says what that cost.
    #[track_caller]
    pub fn cost_of(&self, work: impl FnOnce(&Repo)) -> Cost {
        let (before, mark) = (self.lab.server_tree(NEAR), self.client.mark());
        work(self.repo());
        self.converges();
        self.sentinel();
        let acks = self.acks(mark);
        let sum = |field: &str| acks.iter().map(|ack| ack.number(field)).sum::<u64>();
        Cost {
            written: sum("written") - 1,
            deleted: sum("deleted"),
            touched: touched(&before, &self.lab.server_tree(NEAR)),
        }
    }

    /// Does some work and proves that the server wrote nothing for it.
    #[track_caller]
    pub fn assert_costs_nothing(&self, work: impl FnOnce(&Repo)) {
        let cost = self.cost_of(work);
        assert!(cost.is_nothing(), "{cost:?}");
    }

    /// One more change, of a file that is there already, and its ack.
    #[track_caller]
    fn sentinel(&self) {
        let path = self.repo().path(SENTINEL);
        let before = std::fs::read_to_string(&path).ok().and_then(|text| text.parse::<u64>().ok());
        self.repo().write(SENTINEL, (before.unwrap_or(0) + 1).to_string());
        self.converges();
    }

    /// Waits for a note of the log that names all of these.
    #[track_caller]
    pub fn wait_note(&self, words: &[&str]) {
        let names_all = |event: &Event| {
            let message = event.text("message").filter(|_| event.kind() == "note").unwrap_or_default();
            words.iter().all(|word| message.contains(word))
        };
        self.client.wait_until(&format!("a note with {words:?}"), process::PATIENCE, |events| {
            events.iter().any(names_all).then_some(())
        });
    }
}

/// Paths outside the sentinel that are not in both with one stamp and one content.
fn touched(before: &Tree, after: &Tree) -> BTreeSet<PathBuf> {
    let paths: BTreeSet<&PathBuf> = before.files.keys().chain(after.files.keys()).collect();
    let changed = paths.into_iter().filter(|path| before.files.get(*path) != after.files.get(*path));
    changed.filter(|path| *path != Path::new(SENTINEL)).cloned().collect()
}

/// Does `work`, which leaves everything as it was, until a server saw nothing of it once: what git does within the
/// time it is held for stays unseen, and on a busy machine one try may take longer than that.
#[track_caller]
pub fn assert_unseen(at: &Mirrored, work: impl Fn(&Repo)) {
    const TRIES: usize = 12;
    let costs = (0..TRIES).map(|_| at.cost_of(&work));
    let mut seen = Vec::new();
    for cost in costs {
        if cost.is_nothing() {
            return;
        }
        seen.push(cost);
    }
    panic!("each of {TRIES} tries was seen: {seen:?}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Sandbox;

    #[test]
    fn what_is_new_gone_or_replaced_was_touched_and_nothing_else() {
        let sandbox = Sandbox::new("mirrored-touched");
        let repo = Repo::init(&sandbox.path("app"), &sandbox.path("home"));
        for name in ["gone", "replaced", "same", SENTINEL] {
            repo.write(name, "x");
        }
        let before = crate::tree::walk(repo.root());
        repo.remove("gone");
        repo.write("aside", "x");
        repo.rename("aside", "replaced");
        repo.write("new", "x");
        repo.write(SENTINEL, "y");
        let touched: Vec<_> = touched(&before, &crate::tree::walk(repo.root())).into_iter().collect();
        assert_eq!(touched, ["gone", "new", "replaced"].map(PathBuf::from));
    }
}
