//! H46 to H49: somebody on the server exchanges files and directories for links while patches are applied.
//!
//! A flipper does nothing but that, in bursts as fast as it can, for a second or so. What the server answers
//! is open: it may refuse any path or patch. What it may not do is reach the other end of the link.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gitsync_core::wire::proto::RefusalCode;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::client::{Answer, Edit, delete, executable, file, link};
use crate::lab::{Lab, WORKSPACE};
use crate::{cases, tree};

cases! {
    h46_a_parent_that_flips,
    h47_a_leaf_that_flips,
    h48_a_root_that_flips,
    h48_a_root_that_flips_while_it_becomes_a_workspace,
    h49_a_root_that_is_renamed_away,
    h49_a_root_that_is_replaced,
}

const RACE: Duration = Duration::from_millis(1500);
/// Flips without a pause.
const BURST: u64 = 32;

fn h46_a_parent_that_flips() {
    let lab = Lab::new();
    let (at, twin) = (lab.path("d"), lab.path("d.link"));
    fs::create_dir(&at).expect("a new directory");
    symlink("../../outside/dir", &twin).expect("a new link");
    let make: fn(&Path) = |at| {
        // It may be there again already.
        let _ = fs::create_dir(at);
    };
    race(&lab, Flipper::start(at, twin, Some(make)), |round| match round % 6 {
        // Create, mkdir, symlink.
        0 => vec![file("d/f", "1"), executable("d/g", "1"), link("d/l", "a"), file("d/sub/x", "1")],
        // Replace, chmod.
        1 => vec![file("d/f", "2"), file("d/g", "1"), link("d/l", "b"), executable("d/sub/x", "1")],
        // Unlink, rmdir.
        2 => vec![file("d/f", "2"), link("d/g", "a")],
        // Look through a directory whose place a file takes, and back.
        3 => vec![file("d", "a file")],
        4 => vec![file("d/sub/deeper/x", "1"), executable("d/f", "3")],
        _ => vec![],
    });
    lab.check();
}

fn h47_a_leaf_that_flips() {
    let lab = Lab::new();
    let (at, twin) = (lab.path("leaf"), lab.path("leaf.link"));
    fs::write(&at, "foreign").expect("a new file");
    symlink("../../outside/file", &twin).expect("a new link");
    let make: fn(&Path) = |at| {
        // Never through a link that is there meanwhile.
        let _ = OpenOptions::new().write(true).create_new(true).open(at);
    };
    // The bytes of the file outside: whoever opens that one instead finds what it looks for.
    let same = fs::read(lab.outside("file")).expect("the file outside is there");
    race(&lab, Flipper::start(at, twin, Some(make)), |round| match round % 8 {
        0 | 2 => vec![file("leaf", &same)],
        1 | 6 => vec![executable("leaf", &same)],
        5 => vec![file("leaf", "2")],
        3 => vec![link("leaf", "elsewhere")],
        4 => vec![file("leaf/below", "3")],
        _ => vec![],
    });
    lab.check();
}

fn h48_a_root_that_flips() {
    let lab = Lab::new();
    let twin = lab.root().join("app.link");
    symlink("../outside/dir", &twin).expect("a new link");
    race(&lab, Flipper::start(lab.root().join(WORKSPACE), twin, None), |round| match round % 3 {
        0 => vec![file("f", "1"), executable("sub/x", "1"), link("l", "a")],
        1 => vec![executable("f", "1"), file("sub/x", "2"), file("g", "1")],
        _ => vec![],
    });
    lab.check();
}

/// A workspace that is made writes more than files: a clone. That too goes into the directory that was
/// looked at.
fn h48_a_root_that_flips_while_it_becomes_a_workspace() {
    let lab = Lab::new();
    let (until, mut flips) = (Instant::now() + RACE, 0);
    for round in 0.. {
        // On a busy machine a workspace may be made before the flipper's first turn.
        if round > 4 && flips > 0 && Instant::now() > until {
            break;
        }
        let name = format!("fresh-{round}");
        let (at, twin) = (lab.root().join(&name), lab.root().join(format!("{name}.link")));
        fs::create_dir(&at).expect("a new directory");
        symlink("../outside/dir", &twin).expect("a new link");
        let flipper = Flipper::start(at, twin, None);
        let opened = lab.try_session(&name);
        flips += flipper.stop();
        drop(opened);
        lab.assert_untouched();
    }
    lab.check();
}

fn h49_a_root_that_is_renamed_away() {
    let lab = Lab::new();
    let mut session = lab.session();
    session.takes(&[file("before", "ours")]);
    let away = lab.root().join("away");
    fs::rename(lab.path(""), &away).expect("a directory of ours");
    let answer = session.diff(&[file("after", "late"), file("before", "changed")]);
    let populated = tree::exists(&away.join("after"));
    // The next session makes a new one, which is not what this lab marked.
    drop(session);
    fs::rename(&away, lab.path("")).expect("a directory of ours");
    lab.check();
    assert!(!populated, "a workspace that is not where it was is written to no further");
    assert_eq!(answer.refused().code(), RefusalCode::Workspace);
}

fn h49_a_root_that_is_replaced() {
    let lab = Lab::new();
    let mut session = lab.session();
    session.takes(&[file("before", "ours")]);
    let (app, away) = (lab.path(""), lab.root().join("away"));
    fs::rename(&app, &away).expect("a directory of ours");
    fs::create_dir(&app).expect("a new directory");
    fs::write(app.join("someone"), "else").expect("a new file");
    let there = tree::Tree::of(&app, None);
    let answer = session.diff(&[file("after", "late"), file("before", "changed")]);
    there.assert_same(&tree::Tree::of(&app, None), "the directory in the workspace's place");
    let populated = tree::exists(&away.join("after"));
    drop(session);
    fs::rename(&app, lab.root().join("someone")).expect("a directory of ours");
    fs::rename(&away, &app).expect("a directory of ours");
    lab.check();
    assert!(!populated, "a workspace that is not where it was is written to no further");
    assert_eq!(answer.refused().code(), RefusalCode::Workspace);
}

/// Whole patches, one after the other, against a flipper. A whole patch starts from whatever is held, so
/// the next one needs no knowledge of what became of the last.
fn race(lab: &Lab, flipper: Flipper, patch: impl Fn(u64) -> Vec<Edit>) {
    let until = Instant::now() + RACE;
    let (mut round, mut acked) = (0, 0);
    let mut session = None;
    while Instant::now() < until {
        if session.is_none() {
            session = lab.try_session(WORKSPACE).ok();
        }
        let Some(open) = &mut session else { continue };
        match open.whole(&patch(round), delete) {
            Answer::Ack(_) => acked += 1,
            Answer::Refused(refusal) if refusal.generation > 0 => {}
            Answer::Refused(_) => session = None,
            Answer::Closed => panic!("the stream ended without a word"),
        }
        round += 1;
        // Some sessions are opened into the race, too.
        if round.is_multiple_of(16) {
            session = None;
        }
    }
    drop(session);
    let flips = flipper.stop();
    assert!(acked > 0 && flips > 100, "{acked} of {round} patches were acked during {flips} flips");
    lab.assert_untouched();
}

/// Exchanges two names until it is stopped; then each is what it was.
struct Flipper {
    end: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Flipper {
    /// `twin` is a symlink. `make` makes `at` anew when the server has taken it away.
    fn start(at: PathBuf, twin: PathBuf, make: Option<fn(&Path)>) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let ended = end.clone();
        let thread = std::thread::spawn(move || {
            let target = fs::read_link(&twin).expect("a link to flip");
            let mut flips = 0;
            while !ended.load(Ordering::Relaxed) {
                if renameat_with(CWD, &at, CWD, &twin, RenameFlags::EXCHANGE).is_ok() {
                    flips += 1;
                    if flips % BURST == 0 {
                        std::thread::sleep(pause(flips / BURST));
                    }
                } else if let Some(make) = make {
                    make(&at);
                    // Fails where it is still there.
                    let _ = symlink(&target, &twin);
                }
            }
            if make.is_none() && at.is_symlink() {
                renameat_with(CWD, &at, CWD, &twin, RenameFlags::EXCHANGE).expect("both are there");
            }
            flips
        });
        Self { end, thread }
    }

    /// Ends it, and says how often it flipped.
    fn stop(self) -> u64 {
        self.end.store(true, Ordering::Relaxed);
        self.thread.join().expect("the flipper does not panic")
    }
}

/// Mostly short. Now and then a whole patch goes through undisturbed, so that the next burst meets one that
/// has found everything as it should be.
fn pause(burst: u64) -> Duration {
    match burst % 4 {
        0 => Duration::from_millis(burst / 4 % 16),
        _ => Duration::from_micros(burst % 16 * 20),
    }
}
