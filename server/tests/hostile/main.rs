//! What a hostile client can do to a server: nothing outside its workspace.
//!
//! The cases are numbered H01 to H60 (names, then types, symlinks and races) and H118 to H130 (history). Each speaks through the real
//! service over a real connection, with hand-built messages, so that a lie gets as far as the server lets it.
//! After each, a tree outside the workspace and the workspace's `.git` are what they were in bytes, mode,
//! inode and mtime, no task of the server has panicked, and an honest session is served.
//!
//! Rooms: `lab` (server, sentinels), `client` (sessions that can lie), `tree` (what is on disk), `names`,
//! `types`, `races` and `history` (the cases). A case this machine cannot stage is skipped loudly, and only if it is
//! in [`PINNED`].

mod client;
mod history;
mod lab;
mod names;
mod races;
mod tree;
mod types;

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write;

/// Cases that not every machine can stage, and what they need. No other may be skipped.
const PINNED: &[(&str, &str)] = &[
    ("H28", "needs a temporary directory on a file system that folds case"),
    ("H29", "needs a temporary directory on a file system that normalises names"),
    ("H50", "needs the right to mount"),
    ("H52", "needs the right to make a device"),
    ("H54", "needs chattr, the right to use it and a file system that knows it"),
    ("H60", "needs a temporary directory on a file system without symlinks"),
];

/// Says on the real stderr, which the test harness does not capture, and in the file named by
/// `GITSYNC_SKIPS` that a case does not run here.
#[track_caller]
fn skip(id: &str) {
    let pinned = PINNED.iter().find(|(pinned, _)| *pinned == id);
    let (_, reason) = pinned.unwrap_or_else(|| panic!("{id} is not among the cases that may be skipped"));
    let line = format!("SKIP {id}: {reason}\n");
    std::io::stderr().write_all(line.as_bytes()).expect("stderr is open");
    if let Some(file) = std::env::var_os("GITSYNC_SKIPS") {
        let mut file =
            OpenOptions::new().create(true).append(true).open(file).expect("GITSYNC_SKIPS can be opened");
        file.write_all(line.as_bytes()).expect("GITSYNC_SKIPS can be written");
    }
}

/// Makes a test of each function and a list, `CASES`, of their names. A function's name begins with its
/// case's number. One that is left out here is dead code, which the compiler reports.
macro_rules! cases {
    ($($name:ident,)*) => {
        mod run {
            $(#[test] fn $name() { super::$name(); })*
        }
        pub const CASES: &[&str] = &[$(stringify!($name)),*];
    };
}
pub(crate) use cases;

#[test]
fn every_case_has_a_test() {
    let named = [names::CASES, types::CASES, races::CASES, history::CASES].concat();
    let number = |name: &str| name.split('_').next().unwrap_or_default().to_uppercase();
    let mut there: BTreeSet<String> = named.into_iter().map(number).collect();
    there.extend(names::table().iter().map(|row| row.id.to_owned()));
    let catalogue: BTreeSet<String> = (1..=60).chain(118..=130).map(|n| format!("H{n:02}")).collect();
    assert_eq!(there, catalogue);
    assert!(PINNED.iter().all(|(id, _)| catalogue.contains(*id)), "a pin for a case that does not exist");
}
