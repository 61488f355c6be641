//! A save is one patch with one written file, however the editor makes it (P2).
//!
//! Saves of vim, emacs and a JetBrains-style writer are recordings (`tests/recordings`), replayed as they were and with
//! the time a disk takes for each fsync; the rest are the order of calls an editor is known for, written down by hand,
//! and `sed` itself. What they leave lying about for a moment (probe files, backups, locks, temporary names) never
//! reaches a server, and the file never leaves one: somebody looks at the servers' directories all the time.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gitsync_tests::client::Client;
use gitsync_tests::lab::Lab;
use gitsync_tests::oracle::Mode;
use gitsync_tests::recording::{Player, Recording};

const SERVERS: [&str; 2] = ["near", "far"];
const SAVED: &str = "main.rs";
const SAVES: usize = 6;

/// Names that come and go within 10 ms are never seen by a server, those that belong to a save within 150 ms. A save
/// that took longer, because this machine was busy with something else, proves nothing and is made again.
const QUICK: Duration = Duration::from_millis(8);
const QUICK_ASIDE: Duration = Duration::from_millis(140);
const TRIES: usize = 60;

/// What a real disk takes for an fsync.
const FSYNC: Duration = Duration::from_millis(18);

/// A mirrored repository in which an editor is at work, and what its saves cost.
struct Desk {
    lab: Lab,
    client: Client,
    /// The events before this one are judged already.
    mark: usize,
    /// A save took longer than it may: for a moment a server may have seen what it should not.
    seen_slow: bool,
    judged: usize,
    tries: usize,
}

impl Desk {
    fn new(editor: &str, ignored: &[String]) -> (Self, gitsync_tests::server::Server) {
        let lab = Lab::new(editor);
        lab.repo.write(".gitignore", format!("*.o\nbuild/\n{}\n", ignored.join("\n")));
        let far = lab.serve("far");
        lab.configure(&[("near", &lab.embedded("near")), ("far", &far.url())]);
        let client = lab.client();
        lab.assert_converges(&client, &SERVERS);
        let mark = client.mark();
        (Self { lab, client, mark, seen_slow: false, judged: 0, tries: 0 }, far)
    }

    fn dir(&self) -> PathBuf {
        self.lab.repo.path("src")
    }

    /// Waits for what was done since the last call, which is one save that took so long: exactly one ack of each
    /// server, with one file written and nothing deleted.
    #[track_caller]
    fn judge(&mut self, took: Duration, quick: Duration) {
        self.tries += 1;
        self.lab.assert_converges(&self.client, &SERVERS);
        for server in SERVERS.iter().filter(|_| took < quick) {
            let acks = self.client.since(self.mark, "acked", &self.lab.target(server));
            let costs: Vec<_> =
                acks.iter().map(|ack| (ack.number("written"), ack.number("deleted"))).collect();
            assert_eq!(costs, [(1, 0)], "acks of {server} for a save that took {took:?}");
        }
        self.judged += usize::from(took < quick);
        self.seen_slow |= took >= quick;
        self.mark = self.client.mark();
    }
}

/// Runs `work` while somebody looks at the servers' directories: what appears there for a moment, or is missing for
/// one, is as wrong as what stays.
#[track_caller]
fn watched(desk: &mut Desk, work: impl FnOnce(&mut Desk)) {
    let known = names_in(&desk.dir());
    let workspaces = SERVERS.map(|server| desk.lab.workspace(server).join("src"));
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&workspaces, &end));
        let _ending = EndOnDrop(&end);
        work(desk);
        end.store(true, Ordering::Relaxed);
        let seen = watcher.join().expect("the watcher does not panic");
        let strange: Vec<_> = seen.names.difference(&known).collect();
        assert!(desk.seen_slow || strange.is_empty(), "{strange:?} was seen on a server");
        assert!(desk.seen_slow || !seen.missing, "{SAVED} was gone from a server for a moment");
    });
    assert!(desk.judged >= SAVES, "most saves took longer than they may: {} of {}", desk.judged, desk.tries);
}

fn names_in(dir: &Path) -> BTreeSet<OsString> {
    let Ok(entries) = fs::read_dir(dir) else { return BTreeSet::new() };
    entries.flatten().map(|entry| entry.file_name()).collect()
}

/// What was seen in the edited directories of the servers.
#[derive(Default)]
struct Seen {
    names: BTreeSet<OsString>,
    missing: bool,
}

fn watch(workspaces: &[PathBuf], end: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    while !end.load(Ordering::Relaxed) {
        for workspace in workspaces {
            seen.names.extend(names_in(workspace));
            // One look by name: a listing may miss a file that is being replaced.
            seen.missing |= workspace.join(SAVED).symlink_metadata().is_err();
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    seen
}

struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

// --- recorded

/// Lines of text of exactly this size, unlike all others with another number.
fn text(number: usize, size: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(size + 32);
    for line in 0.. {
        if text.len() >= size {
            break;
        }
        text.extend(format!("// text {number} line {line}\n").bytes());
    }
    text.truncate(size);
    text
}

#[track_caller]
fn assert_recorded_saves_are_one_patch(editor: &str, fsync: Duration) {
    let recording = Recording::read(editor);
    let (mut desk, _far) = Desk::new(editor, &recording.ignored);
    watched(&mut desk, |desk| {
        let mut number = 0;
        while desk.judged < SAVES && desk.tries < TRIES {
            number += 1;
            let (_, first, _) = recording.steps().next().expect("a recording has sections");
            fs::write(desk.dir().join(SAVED), text(number, first)).expect("the working tree is writable");
            desk.lab.assert_converges(&desk.client, &SERVERS);
            desk.mark = desk.client.mark();
            let mut player = Player::new(desk.dir(), SAVED, fsync);
            for (section, old, new) in recording.steps() {
                let (old, new) = (text(number, old), text(number + 1, new));
                let started = Instant::now();
                player.play(section, &old, &new);
                if section.save.is_some() {
                    // What the editor did before, since the last save, counts as well.
                    desk.judge(started.elapsed(), QUICK_ASIDE);
                    number += 1;
                }
            }
        }
    });
    let saved = desk.lab.expect().files.remove(&Path::new("src").join(SAVED)).expect("it is in the set");
    assert_eq!(saved.mode, Mode::File);
    let on_server = desk.lab.workspace("far").join("src").join(SAVED);
    assert_eq!(fs::read(&on_server).expect("it is there"), saved.bytes);
    assert_eq!(fs::metadata(&on_server).expect("it is there").permissions().mode() & 0o111, 0);
}

#[test]
fn a_save_of_vim_by_renaming_is_one_patch() {
    assert_recorded_saves_are_one_patch("vim-rename", Duration::ZERO);
}

#[test]
fn a_save_of_vim_by_renaming_on_a_slow_disk_is_one_patch() {
    assert_recorded_saves_are_one_patch("vim-rename", FSYNC);
}

#[test]
fn a_save_of_vim_by_copying_is_one_patch() {
    assert_recorded_saves_are_one_patch("vim-copy", Duration::ZERO);
}

#[test]
fn a_save_of_vim_by_copying_on_a_slow_disk_is_one_patch() {
    assert_recorded_saves_are_one_patch("vim-copy", FSYNC);
}

#[test]
fn a_save_of_vim_as_it_comes_is_one_patch() {
    assert_recorded_saves_are_one_patch("vim-auto", Duration::ZERO);
}

#[test]
fn a_save_of_vim_as_it_comes_on_a_slow_disk_is_one_patch() {
    assert_recorded_saves_are_one_patch("vim-auto", FSYNC);
}

/// The first save makes a backup that stays, later ones do not.
#[test]
fn first_and_later_saves_of_emacs_are_one_patch_each() {
    assert_recorded_saves_are_one_patch("emacs", Duration::ZERO);
}

#[test]
fn first_and_later_saves_of_emacs_on_a_slow_disk_are_one_patch_each() {
    assert_recorded_saves_are_one_patch("emacs", FSYNC);
}

#[test]
fn a_save_of_a_jetbrains_editor_is_one_patch() {
    assert_recorded_saves_are_one_patch("jetbrains", Duration::ZERO);
}

#[test]
fn a_save_of_a_jetbrains_editor_on_a_slow_disk_is_one_patch() {
    assert_recorded_saves_are_one_patch("jetbrains", FSYNC);
}

// --- by hand

/// One save of `dir/name` with these bytes.
type Save = fn(dir: &Path, name: &str, bytes: &[u8]);

#[track_caller]
fn assert_one_patch_a_save(editor: &str, save: Save) {
    let (mut desk, _far) = Desk::new(editor, &[]);
    watched(&mut desk, |desk| {
        while desk.judged < SAVES && desk.tries < TRIES {
            let started = Instant::now();
            save(&desk.dir(), SAVED, format!("// save {} by {editor}\n", desk.tries).as_bytes());
            desk.judge(started.elapsed(), QUICK);
        }
    });
}

/// Opens, writes in two pieces and closes, as buffered writers do.
fn write_to(path: &Path, options: &mut OpenOptions, bytes: &[u8]) {
    let mut file = options.write(true).open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (first, second) = bytes.split_at(bytes.len() / 2);
    file.write_all(first).and_then(|()| file.write_all(second)).expect("the working tree is writable");
}

fn vs_code(dir: &Path, name: &str, bytes: &[u8]) {
    write_to(&dir.join(name), OpenOptions::new().create(true).truncate(true), bytes);
}

/// Most other programs: a hidden file of random name, synced, renamed over the old one.
fn atomic_rename(dir: &Path, name: &str, bytes: &[u8]) {
    let aside = dir.join(format!(".{name}.8Kx2pQ"));
    write_to(&aside, OpenOptions::new().create_new(true).mode(0o644), bytes);
    fs::rename(&aside, dir.join(name)).expect("the working tree is writable");
}

/// As written by `sed -i`, by the program itself: `sedXXXXXX`, its mode, a rename.
fn sed_in_place(dir: &Path, name: &str, bytes: &[u8]) {
    let line = String::from_utf8_lossy(bytes);
    let script = format!("1c\\{}", line.trim_end());
    let status = Command::new("sed").arg("-i").arg(script).arg(dir.join(name)).status();
    assert!(status.expect("sed is installed").success());
}

#[test]
fn a_save_of_vs_code_is_one_patch() {
    assert_one_patch_a_save("vscode", vs_code);
}

#[test]
fn a_save_by_rename_over_the_old_file_is_one_patch() {
    assert_one_patch_a_save("atomic", atomic_rename);
}

#[test]
fn an_edit_by_sed_is_one_patch() {
    assert_one_patch_a_save("sed", sed_in_place);
}
