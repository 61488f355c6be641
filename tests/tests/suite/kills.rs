//! Kill -9 of either side, or both, at any moment: nothing is lost, torn or left over (P3, P9).
//!
//! A writer keeps changing files on the client, every change by one rename. A reader looks at the servers' files all
//! the time: whatever is killed, each file is a whole version. Now and then the writer stops, and each server must reach the id
//! git names, with nothing in the stage and nothing among the kept copies: nobody edited anything there.
//!
//! `GITSYNC_KILLS` and `GITSYNC_SEED` choose longer and other runs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use gitsync_tests::client::Client;
use gitsync_tests::event::Standing;
use gitsync_tests::git::Repo;
use gitsync_tests::lab::Lab;
use gitsync_tests::process;
use gitsync_tests::rounds;
use gitsync_tests::server::Server;
use gitsync_tests::tree;

const SERVERS: [&str; 2] = ["near", "far"];
/// Files that are always there, and so must always be whole on a server.
const STEADY: usize = 24;
/// Cycles from one check to the next.
const BETWEEN_CHECKS: usize = 10;
/// A reconnect that was refused several times waits up to 5 s before the next.
const PATIENCE: Duration = Duration::from_secs(20);

/// A version says on every line which one it is, and how many lines it has.
fn version(file: usize, number: u64) -> Vec<u8> {
    let lines = 1 + (file * 37 + usize::try_from(number % 1000).expect("small")) % 700;
    format!("{file} {number} {lines}\n").repeat(lines).into_bytes()
}

/// What is wrong with a version, if anything.
fn torn(file: usize, bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let Some(first) = text.lines().next() else { return Some("is empty".to_owned()) };
    let words: Vec<&str> = first.split(' ').collect();
    let [name, number, _] = words.as_slice() else { return Some(format!("starts with {first:?}")) };
    let number = number.parse().unwrap_or(u64::MAX);
    let whole = *name == file.to_string() && bytes == version(file, number);
    (!whole).then(|| format!("is not all of version {number}, {} bytes", bytes.len()))
}

fn steady_path(file: usize) -> PathBuf {
    PathBuf::from(format!("steady/{}/{file}", file % 5))
}

/// Changes the working tree until told to pause.
struct Writer<'a> {
    repo: &'a Repo,
    rng: Rng,
    next: u64,
}

impl Writer<'_> {
    fn step(&mut self) {
        self.next += 1;
        let file = self.rng.usize(..STEADY);
        self.save(&steady_path(file), &version(file, self.next));
        let other = PathBuf::from(format!("others/{}/{}", self.rng.u8(..4), self.rng.u8(..20)));
        match self.rng.u8(..4) {
            0 if self.repo.path(&other).exists() => self.repo.remove(&other),
            1 if self.repo.path("others").exists() && self.rng.u8(..10) == 0 => {
                self.repo.remove_dir("others");
            }
            _ => self.save(&other, self.next.to_string().as_bytes()),
        }
    }

    fn save(&self, path: &Path, bytes: &[u8]) {
        self.repo.write(".git/aside", bytes);
        fs::create_dir_all(self.repo.path(path).parent().expect("below the root")).expect("ours");
        self.repo.rename(".git/aside", path);
    }
}

/// Looks at every steady file of every server again and again, and notes the first that is not whole.
fn watch_for_torn_files(lab: &Lab, end: &AtomicBool, first: &Mutex<Option<String>>) -> u64 {
    let mut looks = 0;
    while !end.load(Ordering::Relaxed) {
        for server in SERVERS {
            for file in 0..STEADY {
                let found = match fs::read(lab.workspace(server).join(steady_path(file))) {
                    Ok(bytes) => torn(file, &bytes),
                    Err(e) => Some(format!("cannot be read: {e}")),
                };
                looks += 1;
                if let Some(what) = found {
                    let mut first = first.lock().expect("nobody panics with it");
                    first.get_or_insert(format!("{server}: {:?} {what}", steady_path(file)));
                }
            }
        }
        // Leaves a core to the programs.
        std::thread::sleep(Duration::from_millis(1));
    }
    looks
}

/// Who dies in a cycle.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Client,
    Server,
    Both,
    /// The server, and again several times while it and the session come back.
    Recovery,
}

const VICTIMS: [Victim; 4] = [Victim::Client, Victim::Server, Victim::Both, Victim::Recovery];

fn kill(victim: Victim, lab: &Lab, client: &mut Client, far: &mut Server, rng: &mut Rng) {
    match victim {
        Victim::Client => client.kill(),
        Victim::Server => far.kill(),
        Victim::Both => {
            far.kill();
            client.kill();
        }
        Victim::Recovery => {
            far.kill();
            client.kill();
            for _ in 0..rng.usize(1..4) {
                far.restart();
                let mut again = lab.client();
                again.let_work(Duration::from_micros(rng.u64(..30_000)));
                again.kill();
                far.kill();
            }
        }
    }
    if !far.is_up() {
        far.restart();
    }
    if !matches!(victim, Victim::Server) {
        *client = lab.client();
    }
}

/// Everything is as git says, and nothing is left of all the interrupted work.
fn check(lab: &Lab, client: &Client, far: &mut Server, context: &str) {
    let expected = lab.expect();
    for server in SERVERS {
        let target = lab.target(server);
        let reached = client.try_wait_until(PATIENCE, |events| {
            Standing::of(events, &target).in_sync_with(&expected.id).then_some(())
        });
        if let Err(why) = reached {
            panic!(
                "{context}: {target}: {why}; expected {}, stands at {:?}",
                expected.id,
                client.standing(&target)
            );
        }
        lab.assert_equal(server, &expected, &[]);
        let workspace = lab.workspace(server);
        assert_eq!(rounds::left_in_stage(&workspace), BTreeSet::new(), "{context}: {server}");
        let kept = tree::names(&workspace.join(".git/gitsync/recovery"));
        assert_eq!(kept, BTreeSet::new(), "{context}: {server} kept copies of what nobody else wrote");
        assert_eq!(client.since(0, "drift", &target), [], "{context}: nobody edited anything on {server}");
    }
    assert!(far.is_up());
}

#[test]
fn nothing_is_lost_torn_or_left_over_however_often_a_side_is_killed() {
    let seed = process::number_from_env("GITSYNC_SEED").unwrap_or(5);
    let cycles =
        process::number_from_env("GITSYNC_KILLS").and_then(|n| usize::try_from(n).ok()).unwrap_or(200);
    eprintln!("GITSYNC_SEED={seed} GITSYNC_KILLS={cycles}");
    let started = Instant::now();
    let lab = Lab::new("kills");
    for file in 0..STEADY {
        lab.repo.write(steady_path(file), version(file, 0));
    }
    lab.repo.commit_all("steady files");
    let mut far = lab.serve("far");
    lab.configure(&[("near", &lab.embedded("near")), ("far", &far.url())]);
    let mut client = lab.client();
    lab.assert_converges(&client, &SERVERS);

    let mut rng = Rng::with_seed(seed);
    let mut writer = Writer { repo: &lab.repo, rng: rng.fork(), next: 0 };
    let (end, first_torn) = (AtomicBool::new(false), Mutex::new(None));
    let looks = std::thread::scope(|scope| {
        let reader = scope.spawn(|| watch_for_torn_files(&lab, &end, &first_torn));
        // Ends the reader when a check fails, too.
        let ending = EndOnDrop(&end);
        for cycle in 0..cycles {
            let die_at = Instant::now() + Duration::from_micros(rng.u64(..60_000));
            while Instant::now() < die_at {
                writer.step();
                let pause = Duration::from_micros(rng.u64(..5_000));
                std::thread::sleep(pause.min(die_at.saturating_duration_since(Instant::now())));
            }
            let victim = VICTIMS[rng.usize(..VICTIMS.len())];
            kill(victim, &lab, &mut client, &mut far, &mut rng);
            if cycle % BETWEEN_CHECKS == BETWEEN_CHECKS - 1 || cycle + 1 == cycles {
                check(&lab, &client, &mut far, &format!("GITSYNC_SEED={seed}, cycle {cycle}, {victim:?}"));
                let torn = first_torn.lock().expect("nobody panics with it").clone();
                assert_eq!(torn, None, "GITSYNC_SEED={seed}, by cycle {cycle}");
            }
        }
        drop(ending);
        reader.join().expect("the reader does not panic")
    });
    eprintln!("{cycles} kills, {} changes, {looks} files looked at, {:?}", writer.next, started.elapsed());
}

struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The reader of the test above tells whole versions from others.
#[test]
fn a_torn_version_is_recognised() {
    let (old, new) = (version(3, 10), version(3, 11));
    assert_eq!(torn(3, &old), None);
    assert!(torn(4, &old).is_some(), "another file's");
    assert!(torn(3, &new[..new.len() - 1]).is_some(), "cut");
    assert!(torn(3, &[&new[..20], &old[20..]].concat()).is_some(), "mixed");
    assert!(torn(3, &vec![0; new.len()]).is_some(), "zeros");
    assert!(torn(3, b"").is_some(), "nothing");
}
