//! Commits from where the operator says they can be had, so that the client need not send them.
//!
//! Git runs in a repository of its own for this (below `.git/gitsync/history`), with the clone's objects as its
//! alternate: nothing of the clone's configuration says where to connect or what to run. What comes is moved among the
//! clone's objects, and named below `refs/gitsync/remotes`. It runs on a thread of its own, and nothing waits for it
//! longer than [`Fetching::wait`] is told to.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bstr::{BString, ByteSlice};
use gitsync_core::model::path::escape;
use gix::ObjectId;
use rustix::io::Errno;

use super::StepError;
use super::git::{Git, Stop};
use super::land::{locks, read_refs, refs_refused};
use super::objects::Objects;
use super::pack::{check_space, release};
use super::refs::{self, RefEdit, Refs};
use super::state::{DEPTH_MAX, State, read, remove_all};
use crate::config::Remote;
use crate::epoch::Seal;
use crate::workspace::CloneDir;

const REMOTES: &str = "refs/gitsync/remotes/";
/// One remote may take this long.
const DEADLINE: Duration = Duration::from_secs(300);
/// The same commit is looked for again only after this long.
const AGAIN_AFTER: Duration = Duration::from_secs(600);
/// Remembers which commit was looked for last, and when.
const FETCHED: &str = "fetched";
/// Commits named to a remote as ours.
const TIPS_MAX: usize = 100;
/// Branches of a remote that are kept.
const BRANCHES_MAX: usize = 10_000;

const SETTINGS: [&str; 6] = [
    "fetch.fsckObjects=true",
    // As one pack, always.
    "fetch.unpackLimit=1",
    "transfer.credentialsInUrl=die",
    "http.lowSpeedLimit=1000",
    "http.lowSpeedTime=30",
    "core.alternateRefsCommand=false",
];

/// A look for a commit that may be under way.
#[derive(Debug)]
pub struct Fetching {
    stop: Stop,
    done: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Fetching {
    /// Looks for `head` in the remotes, one after the other, unless that was done a while ago. `number` is the
    /// session's epoch.
    pub fn start(
        clone: CloneDir,
        number: u64,
        seal: Seal,
        remotes: Vec<Remote>,
        head: ObjectId,
        workspace: &str,
    ) -> Result<Option<Self>, StepError> {
        let state = State::open(&clone, number)?;
        if clone.is_reftable() || !is_due(&state, head, SystemTime::now()) {
            return Ok(None);
        }
        let stop = Stop::default();
        let (theirs, workspace) = (stop.clone(), workspace.to_owned());
        let (tell, done) = channel();
        let run = move || {
            let fetcher = Fetcher { clone: &clone, state: &state, seal: &seal, stop: &theirs };
            fetcher.run(&remotes, head, &workspace);
            let _ = tell.send(());
        };
        let thread = std::thread::Builder::new().name("fetch".to_owned()).spawn(run);
        let thread = thread.map_err(|e| StepError::io("start a thread", e))?;
        Ok(Some(Self { stop, done, thread: Some(thread) }))
    }

    /// Waits for its end, so long at most.
    pub fn wait(&self, limit: Duration) {
        let _ = self.done.recv_timeout(limit);
    }

    pub fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        self.stop.ask();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn is_due(state: &State, head: ObjectId, now: SystemTime) -> bool {
    let noted = state.read(FETCHED).ok().flatten().unwrap_or_default();
    let text = String::from_utf8_lossy(&noted);
    let Some((last, secs)) = text.split_once(' ') else { return true };
    let at = UNIX_EPOCH + Duration::from_secs(secs.trim().parse().unwrap_or(0));
    ObjectId::from_hex(last.as_bytes()).ok() != Some(head)
        || now.duration_since(at).map_or(true, |age| age >= AGAIN_AFTER)
}

struct Fetcher<'a> {
    clone: &'a CloneDir,
    state: &'a State,
    seal: &'a Seal,
    stop: &'a Stop,
}

/// The repository git fetches into. Dropping it removes it.
struct Scratch<'a> {
    clone: &'a CloneDir,
    state: &'a State,
    name: String,
}

impl Fetcher<'_> {
    fn run(&self, remotes: &[Remote], head: ObjectId, workspace: &str) {
        for remote in remotes {
            match self.fetch(remote) {
                Ok(branches) => {
                    tracing::info!(workspace, remote = remote.name, branches, "fetched");
                }
                Err(StepError::Stopped | StepError::Fenced(_)) => return,
                Err(error) => {
                    let cause =
                        std::error::Error::source(&error).map(|e| format!(": {e}")).unwrap_or_default();
                    tracing::warn!(workspace, remote = remote.name, "cannot fetch: {error}{cause}");
                }
            }
            if self.has(&head) {
                break;
            }
        }
        // Found or not: it would be the same again.
        let secs = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if let Err(e) = self.state.write(self.clone, FETCHED, format!("{head} {secs}\n").as_bytes()) {
            tracing::debug!("cannot note a fetch: {e}");
        }
    }

    fn has(&self, id: &ObjectId) -> bool {
        super::newest_common(self.clone, &[*id]).is_some()
    }

    /// Returns how many branches there are.
    fn fetch(&self, remote: &Remote) -> Result<usize, StepError> {
        check_space(self.clone)?;
        let scratch = Scratch::make(self.clone, self.state)?;
        let dir = self.state.relative(&scratch.name);
        let git = Git {
            git_dir: Some(&dir),
            stop: Some(self.stop),
            deadline: DEADLINE,
            network: true,
            ..Git::new(self.clone)
        };
        let mut args: Vec<String> = Vec::new();
        let protocols: &[&str] = if remote.local { &["https", "ssh", "file"] } else { &["https", "ssh"] };
        let allowed = protocols.iter().map(|protocol| format!("protocol.{protocol}.allow=always"));
        for setting in SETTINGS.map(str::to_owned).into_iter().chain(allowed) {
            args.extend(["-c".to_owned(), setting]);
        }
        let options = [
            "fetch",
            "--quiet",
            "--no-tags",
            "--no-auto-maintenance",
            "--no-recurse-submodules",
            "--no-write-fetch-head",
        ];
        args.extend(options.map(str::to_owned));
        args.extend(self.tips()?.into_iter().map(|tip| format!("--negotiation-tip={tip}")));
        args.extend(["--".to_owned(), remote.url.clone(), "+refs/heads/*:refs/heads/*".to_owned()]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let done = git.try_run(&args, b"")?;
        if !done.status.success() {
            return Err(StepError::Git { what: "fetch".to_owned(), errors: complaint(&done.errors) });
        }
        let mut heads =
            refs::parse(&git.run(&["for-each-ref", "--format=%(objectname) %(refname)", "refs/heads"], b"")?);
        while heads.len() > BRANCHES_MAX {
            heads.pop_last();
        }
        let _turn = self.state.turn(self.stop)?;
        self.seal.check().map_err(StepError::Fenced)?;
        scratch.release()?;
        self.name_heads(remote, &heads)?;
        Ok(heads.len())
    }

    /// Commits the remote need not send.
    fn tips(&self) -> Result<Vec<ObjectId>, StepError> {
        let count = format!("--count={TIPS_MAX}");
        let args = ["for-each-ref", "--format=%(objectname)", "--sort=-creatordate", &count];
        let args = [&args[..], &["refs/heads", "refs/remotes", "refs/gitsync"]].concat();
        let output = Git { stop: Some(self.stop), ..Git::new(self.clone) }.run(&args, b"")?;
        let objects = Objects::open(self.clone.path().join("objects"), self.clone.hash())?;
        let mut tips: BTreeSet<ObjectId> =
            output.lines().filter_map(|l| ObjectId::from_hex(l).ok()).collect();
        tips.retain(|id| matches!(objects.kind(id), Ok(Some(gix::objs::Kind::Commit))));
        Ok(tips.into_iter().collect())
    }

    /// Gives what came the remote's names, below ours. Nobody's branch or tag is touched.
    fn name_heads(&self, remote: &Remote, heads: &Refs) -> Result<(), StepError> {
        let git = Git::new(self.clone);
        let prefix = format!("{REMOTES}{}/", remote.name);
        let mut before = read_refs(&git)?;
        before.retain(|name, _| name.starts_with(prefix.as_bytes()));
        let ours = |name: &BString| -> Option<BString> {
            Some([prefix.as_bytes(), name.strip_prefix(b"refs/heads/")?].concat().into())
        };
        let named: Refs = heads.iter().filter_map(|(name, id)| Some((ours(name)?, *id))).collect();
        let gone = before.iter().filter(|(name, _)| !named.contains_key(*name));
        let gone: Vec<RefEdit> =
            gone.map(|(name, id)| RefEdit { name: name.clone(), before: Some(*id), after: None }).collect();
        let set = named.into_iter().filter(|(name, id)| before.get(name) != Some(id));
        let set: Vec<RefEdit> = set
            .map(|(name, id)| RefEdit { before: before.get(&name).copied(), name, after: Some(id) })
            .collect();
        for edits in [gone, set] {
            if edits.is_empty() {
                continue;
            }
            self.state.begin(self.clone, &locks(&edits))?;
            let input = refs::transaction(&edits, self.clone.hash());
            let done = git.try_run(&["update-ref", "--no-deref", "--stdin", "-z"], &input)?;
            self.state.ended(self.clone);
            if !done.status.success() {
                return Err(refs_refused(&done.errors));
            }
        }
        Ok(())
    }
}

impl<'a> Scratch<'a> {
    fn make(clone: &'a CloneDir, state: &'a State) -> Result<Self, StepError> {
        let scratch = Self { clone, state, name: state.own("fetch") };
        scratch.try_make().map_err(|e| StepError::errno("make room for a fetch", e))?;
        Ok(scratch)
    }

    fn try_make(&self) -> Result<(), Errno> {
        let (fs, at) = (self.clone.fs(), self.state.fd().as_fd());
        remove_all(self.clone, self.state.fd(), self.name.as_bytes(), DEPTH_MAX)?;
        fs.mkdir(at, self.name.as_bytes(), 0o700)?;
        let dir = fs.open_dir(at, self.name.as_bytes())?;
        for name in ["objects", "refs"] {
            fs.mkdir(dir.as_fd(), name.as_bytes(), 0o700)?;
        }
        let objects = fs.open_dir(dir.as_fd(), b"objects")?;
        for name in ["info", "pack"] {
            fs.mkdir(objects.as_fd(), name.as_bytes(), 0o700)?;
        }
        let config = match self.clone.hash() {
            gix::hash::Kind::Sha256 => {
                "[core]\n\trepositoryformatversion = 1\n\tbare = true\n[extensions]\n\tobjectformat = sha256\n"
            }
            _ => "[core]\n\trepositoryformatversion = 0\n\tbare = true\n",
        };
        // From `.git/gitsync/history/NAME/objects`.
        write(self.clone, &objects, b"info/alternates", b"../../../../objects\n")?;
        write(self.clone, &dir, b"config", config.as_bytes())?;
        if let Some(shallow) = read(self.clone.fd(), b"shallow")? {
            write(self.clone, &dir, b"shallow", &shallow)?;
        }
        write(self.clone, &dir, b"HEAD", b"ref: refs/heads/none\n")
    }

    fn release(&self) -> Result<(), StepError> {
        let fs = self.clone.fs();
        let from = fs
            .open_dir(self.state.fd().as_fd(), self.name.as_bytes())
            .and_then(|dir| fs.open_dir(dir.as_fd(), b"objects/pack"));
        from.and_then(|from| release(self.clone, &from)).map_err(|e| StepError::errno("move a pack in", e))
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        if let Err(e) = remove_all(self.clone, self.state.fd(), self.name.as_bytes(), DEPTH_MAX) {
            tracing::warn!("cannot remove what was fetched: {e}");
        }
    }
}

/// A small file that was not there.
fn write(clone: &CloneDir, at: &OwnedFd, path: &[u8], bytes: &[u8]) -> Result<(), Errno> {
    let fs = clone.fs();
    let (dir, name) = match path.rsplit_once_str("/") {
        Some((dir, name)) => (fs.open_dir(at.as_fd(), dir)?, name),
        None => (fs.open_dir(at.as_fd(), b".")?, path),
    };
    let mut file: std::fs::File = fs.create(dir.as_fd(), name)?.into();
    file.write_all(bytes).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
}

/// What git meant, on one line that a log can hold.
fn complaint(errors: &str) -> String {
    // The cause comes first, advice after it.
    let lines = errors.lines().map(str::trim).filter(|line| !line.is_empty()).take(2);
    let text = lines.map(|line| line.trim_start_matches("fatal: ")).collect::<Vec<_>>().join("; ");
    escape(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_one_safe_line() {
        let errors = "ssh: no\x1b[31m route\n\nfatal: Could not read from remote repository.\n\nPlease make sure\nand exists.\n";
        assert_eq!(complaint(errors), "ssh: no\\u{1b}[31m route; Could not read from remote repository.");
        assert_eq!(complaint("a\x1bb"), "a\\u{1b}b");
    }
}
