//! Does a workspace's clone follow: what the events say of it, and what git says on both sides.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::client::Client;
use crate::event::Event;
use crate::git::{self, Repo};
use crate::lab::Lab;
use crate::process::PATIENCE;
use crate::server::Server;

/// A repository mirrored to one server process, by a running client.
#[derive(Debug)]
pub struct Following {
    pub client: Client,
    pub server: Server,
    pub lab: Lab,
}

impl Following {
    /// Starts both sides; returns once the clone has the whole history.
    pub fn start(lab: Lab) -> Self {
        Self::start_with(lab, "")
    }

    /// [`Following::start`] with further lines for the repository's table.
    pub fn start_with(lab: Lab, repo_keys: &str) -> Self {
        let server = lab.serve("s");
        lab.configure_with(&[("s", server.url().as_str())], repo_keys);
        let client = lab.client();
        let this = Self { client, server, lab };
        this.assert_follows();
        this
    }

    pub fn repo(&self) -> &Repo {
        &self.lab.repo
    }

    pub fn target(&self) -> String {
        self.lab.target("s")
    }

    /// The workspace, to ask git in.
    pub fn there(&self) -> Repo {
        Repo::at(&self.lab.workspace("s"), self.repo().home())
    }

    /// Waits until the clone is at HEAD with all its history and files are acked, then compares what git says.
    #[track_caller]
    pub fn assert_follows(&self) -> Event {
        let landed = self.wait_landed(0, true);
        self.lab.assert_converges(&self.client, &["s"]);
        assert_same_git(self.repo(), &self.there());
        landed
    }

    /// Waits until the newest baseline of those after `mark` is where HEAD is now.
    #[track_caller]
    pub fn wait_landed(&self, mark: usize, complete: bool) -> Event {
        wait_landed(&self.client, self.repo(), &self.target(), mark, complete)
    }

    /// Baselines since a mark.
    pub fn baselines(&self, mark: usize) -> Vec<Event> {
        self.client.since(mark, "baseline", &self.target())
    }
}

/// Waits until the newest baseline of those after `mark` is where `repo`'s HEAD is now; if `complete`, with nothing
/// older to come.
#[track_caller]
pub fn wait_landed(client: &Client, repo: &Repo, target: &str, mark: usize, complete: bool) -> Event {
    let head = repo.try_git(["rev-parse", "-q", "--verify", "HEAD"]);
    let head = String::from_utf8_lossy(&head.stdout).trim().to_owned();
    let branch = String::from_utf8_lossy(&repo.try_git(["symbolic-ref", "-q", "--short", "HEAD"]).stdout)
        .trim()
        .to_owned();
    let what = format!("{target} to land on {branch} at {head}");
    client.wait_until(&what, PATIENCE, |events| {
        let newest = events.iter().skip(mark).rfind(|e| e.is("baseline", target))?;
        let is = newest.text("to").unwrap_or("") == head
            && newest.text("branch").unwrap_or("") == branch
            && (!complete || newest.json()["complete"] == true);
        is.then(|| newest.clone())
    })
}

/// Compares what `git status`, `log`, `describe` and `diff --stat` say, staged and unstaged taken together.
#[track_caller]
pub fn assert_same_git(here: &Repo, there: &Repo) {
    for args in QUESTIONS {
        assert_eq!(says(there, args), says(here, args), "git {}", args.join(" "));
    }
    assert_eq!(status(there), status(here), "git status --porcelain");
}

const QUESTIONS: &[&[&str]] = &[
    &["log", "-1", "--format=%H %an %s"],
    &["symbolic-ref", "-q", "HEAD"],
    &["describe", "--tags", "--dirty", "--always"],
    // A file that is only in the index here is untracked there: no index but HEAD's travels.
    &["diff", "--stat", "--diff-filter=a", "HEAD"],
];

/// What git answers, be it a refusal.
fn says(repo: &Repo, args: &[&str]) -> String {
    let output = repo.try_git([&["--no-optional-locks"], args].concat());
    format!("{} {}", output.status, String::from_utf8_lossy(&output.stdout))
}

/// The paths that are not as HEAD has them, each with what is so: the index may be another, its sum with the
/// working tree is not.
fn status(repo: &Repo) -> Vec<(String, char)> {
    let text = repo.git(["--no-optional-locks", "status", "--porcelain", "-uall", "--no-renames", "-z"]);
    let merged = |entry: &[u8]| {
        let (state, path) = entry.split_at(3);
        let word = match state {
            b"?? " => '?',
            b"D  " | b" D " => 'D',
            b"A  " | b"AM " | b" A " => '?',
            _ => 'M',
        };
        (String::from_utf8_lossy(path).into_owned(), word)
    };
    let mut all: Vec<_> = text.split(|b| *b == 0).filter(|entry| entry.len() > 3).map(merged).collect();
    all.sort();
    all
}

/// Every file of a git directory with its bytes' length, time stamp and inode: the same if nobody wrote there.
pub fn git_dir_listing(dir: &Path) -> BTreeSet<String> {
    use std::os::unix::fs::MetadataExt;
    let mut found = BTreeSet::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).expect("it can be read") {
            let path: PathBuf = entry.expect("it can be read").path();
            let metadata = path.symlink_metadata().expect("nobody else is here");
            if metadata.is_dir() {
                todo.push(path.clone());
            }
            let (size, ino) = (metadata.len(), metadata.ino());
            found.insert(format!(
                "{} {size} {ino} {}.{}",
                path.display(),
                metadata.mtime(),
                metadata.mtime_nsec()
            ));
        }
    }
    found
}

/// Adds `commits` commits to `main`, each with a new file of `bytes` bytes that nothing packs, without touching the
/// working tree; the caller resets it.
pub fn import_history(repo: &Repo, commits: usize, bytes: usize) {
    let mut git = git::command(repo.home());
    git.arg("-C").arg(repo.root()).args(["fast-import", "--quiet", "--force"]).stdin(Stdio::piped());
    let mut child = git.spawn().expect("git is installed");
    let mut input = child.stdin.take().expect("stdin is piped");
    let mut random = fastrand::Rng::with_seed(7);
    for n in 0..commits {
        let time = 1_600_000_000 + n;
        let mut content = vec![0; bytes];
        random.fill(&mut content);
        let head = format!(
            "commit refs/heads/main\ncommitter T <t@example.net> {time} +0000\ndata 8\nc{n:07}\nM 100644 inline f{}\ndata {bytes}\n",
            n % 10
        );
        input.write_all(head.as_bytes()).expect("git reads");
        input.write_all(&content).expect("git reads");
        input.write_all(b"\n").expect("git reads");
    }
    drop(input);
    assert!(child.wait().expect("it ends").success());
}

/// Runs git on its own, outside any repository.
#[track_caller]
pub fn git_anywhere<A: AsRef<OsStr>>(home: &Path, args: impl IntoIterator<Item = A>) {
    git::run(git::command(home).args(args));
}
