//! A client's repository, a workspace it is mirrored to, and the history track between them.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, SystemTime};

use bstr::{BString, ByteSlice};
use bytes::Bytes;
use gitsync_core::model::{
    Change, ChangeKind, ContentId, Dir, HashKind, Leaf, Mode, RelPath, Signature, Snapshot, patch,
};
use gix::ObjectId;
use tempfile::TempDir;

use crate::epoch::{Fence, Owner};
use crate::history::{self, History, Report, Step};
use crate::workspace::{OpenOptions, Workspace, WorkspaceDir};

/// Nothing here takes longer, on any machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Lab {
    pub temp: TempDir,
    pub hash: HashKind,
    pub fence: Fence,
    pub workspace: Workspace,
    pub history: Option<History>,
    bell: Receiver<()>,
    number: u64,
}

/// Git without anybody's configuration.
pub fn git(dir: &Path) -> Command {
    let mut git = Command::new("git");
    git.current_dir(dir)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", "/dev/null")
        .env("LC_ALL", "C")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_AUTHOR_NAME", "A")
        .env("GIT_AUTHOR_EMAIL", "a@example.net")
        .env("GIT_AUTHOR_DATE", "2024-01-02T03:04:05Z")
        .env("GIT_COMMITTER_NAME", "A")
        .env("GIT_COMMITTER_EMAIL", "a@example.net")
        .env("GIT_COMMITTER_DATE", "2024-01-02T03:04:05Z")
        .stdin(Stdio::null());
    git
}

#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.output().expect("git is installed");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout.to_str_lossy().into_owned()
}

/// Runs a command on `input`.
#[track_caller]
pub fn feed(command: &mut Command, input: &[u8]) -> Vec<u8> {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("git is installed");
    child.stdin.take().expect("piped").write_all(input).expect("git reads");
    let output = child.wait_with_output().expect("git ends");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

impl Lab {
    pub fn new() -> Self {
        Self::with(HashKind::Sha1)
    }

    pub fn with(hash: HashKind) -> Self {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("root")).unwrap();
        std::fs::create_dir(temp.path().join("src")).unwrap();
        let format = format!("--object-format={hash}");
        run(git(&temp.path().join("src")).args(["init", "-q", "-b", "main", &format]));
        Self::on(temp, hash)
    }

    fn on(temp: TempDir, hash: HashKind) -> Self {
        let (fence, workspace, history, bell) = open(temp.path(), hash);
        Self { temp, hash, fence, workspace, history: Some(history), bell, number: 0 }
    }

    /// Ends the session as a crash would, but for what the kernel closes; then opens the next.
    pub fn reopen(self) -> Self {
        let Self { temp, hash, history, .. } = self;
        drop(history);
        Self::on(temp, hash)
    }

    pub fn src(&self) -> PathBuf {
        self.temp.path().join("src")
    }

    /// Below the workspace.
    pub fn there(&self, path: &str) -> PathBuf {
        self.temp.path().join("root/w").join(path)
    }

    #[track_caller]
    pub fn here(&self, args: &[&str]) -> String {
        run(git(&self.src()).args(args))
    }

    /// Git in the workspace.
    #[track_caller]
    pub fn ask(&self, args: &[&str]) -> String {
        run(git(&self.there("")).args(args))
    }

    pub fn ask_fails(&self, args: &[&str]) -> bool {
        !git(&self.there("")).args(args).output().unwrap().status.success()
    }

    pub fn write(&self, path: &str, text: &str) {
        let path = self.src().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Commits everything there is.
    pub fn commit(&self, message: &str) -> ObjectId {
        self.here(&["add", "-A"]);
        self.here(&["commit", "-q", "--allow-empty", "-m", message]);
        self.head()
    }

    pub fn head(&self) -> ObjectId {
        self.id("HEAD")
    }

    pub fn id(&self, name: &str) -> ObjectId {
        ObjectId::from_hex(self.here(&["rev-parse", name]).trim().as_bytes()).unwrap()
    }

    /// The files track: the workspace's files become the client's.
    pub fn mirror(&mut self) {
        let listed = self.here(&["ls-files", "-coz", "--exclude-standard"]);
        let mut edits = Vec::new();
        for name in listed.as_bytes().split(|b| *b == 0).filter(|name| !name.is_empty()) {
            let path = self.src().join(OsStr::from_bytes(name));
            let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
            let (mode, bytes) = if meta.is_symlink() {
                (Mode::Symlink, std::fs::read_link(&path).unwrap().into_os_string().as_bytes().to_vec())
            } else if meta.is_file() {
                let mode = if meta.permissions().mode() & 0o100 != 0 { Mode::Executable } else { Mode::File };
                (mode, std::fs::read(&path).unwrap())
            } else {
                continue;
            };
            let id = ContentId::of(self.hash, &bytes);
            let signature = Signature { size: bytes.len() as u64, ..Signature::default() };
            edits.push((RelPath::new(name).unwrap(), Some(Leaf { mode, id, signature })));
            self.workspace.stage_bytes(id, &bytes).unwrap();
        }
        edits.sort_by(|a, b| a.0.cmp(&b.0));
        edits.dedup_by(|a, b| a.0 == b.0);
        let next = Snapshot::of(Dir::empty(self.hash).edit(&edits).unwrap());
        let held = self.workspace.held().clone();
        let changes: Vec<Change> = patch::between(&held, &next);
        debug_assert!(changes.iter().all(|c| !matches!(c.kind, ChangeKind::Release)));
        self.workspace.apply(held.id(), next.id(), 1, &changes, &self.fence).unwrap();
        self.workspace.discard_stage();
        let history = self.history.as_ref().unwrap();
        history.set_held(self.workspace.held().root());
    }

    /// A step to where the client is, without a pack and with no boundary.
    pub fn step(&mut self) -> Step {
        self.number += 1;
        let head = git(&self.src()).args(["rev-parse", "--verify", "-q", "HEAD"]).output().unwrap();
        let branch = git(&self.src()).args(["symbolic-ref", "-q", "--short", "HEAD"]).output().unwrap();
        let tags = self.here(&["for-each-ref", "--format=%(objectname) %(refname:strip=2)", "refs/tags"]);
        let tag = |line: &str| {
            let (id, name) = line.split_once(' ').unwrap();
            (BString::from(name), ObjectId::from_hex(id.as_bytes()).unwrap())
        };
        Step {
            number: self.number,
            head: head.status.success().then(|| ObjectId::from_hex(head.stdout.trim()).unwrap()),
            branch: branch.status.success().then(|| BString::from(branch.stdout.trim())),
            tags: Some(Arc::new(tags.lines().map(tag).collect())),
            skip_worktree: Some(Arc::default()),
            ..Step::default()
        }
    }

    /// A pack as upload-pack makes it: `input` are revisions and `--shallow` lines.
    pub fn pack(&self, input: &str) -> Vec<u8> {
        let args = ["pack-objects", "--revs", "--thin", "--stdout", "--shallow", "-q", "--delta-base-offset"];
        feed(git(&self.src()).args(args), input.as_bytes())
    }

    /// HEAD's commit and nothing before it.
    pub fn depth_one(&self) -> Vec<u8> {
        let head = self.head();
        let tags = self.here(&["for-each-ref", "--format=%(objectname)", "--points-at=HEAD", "refs/tags"]);
        self.pack(&format!("--shallow {head}\n{head}\n{tags}"))
    }

    /// Begins a step and sends its pack in pieces.
    pub fn send(&mut self, mut step: Step, pack: Option<&[u8]>) -> u64 {
        step.pack = pack.is_some();
        let number = step.number;
        let history = self.history.as_mut().unwrap();
        history.begin(step).unwrap();
        if let Some(pack) = pack {
            let pieces = pack.chunks(64 << 10).map(Bytes::copy_from_slice);
            for piece in pieces {
                history.piece(number, piece, false).unwrap();
            }
            history.piece(number, Bytes::new(), true).unwrap();
        }
        number
    }

    /// What becomes of the step under way.
    #[track_caller]
    pub fn outcome(&mut self) -> Report {
        loop {
            while let Some(report) = self.history.as_mut().unwrap().report() {
                if !matches!(report, Report::Taken) {
                    return report;
                }
            }
            self.bell.recv_timeout(PATIENCE).expect("a step is answered");
        }
    }

    /// The client goes back, or on, to a commit that the clone has with `boundary` as its oldest; both tracks follow.
    #[track_caller]
    pub fn reset(&mut self, commit: ObjectId, boundary: ObjectId) {
        self.here(&["reset", "-q", "--hard", &commit.to_string()]);
        self.mirror();
        let mut step = self.step();
        step.shallow = vec![boundary];
        self.land(step, None);
    }

    #[track_caller]
    pub fn land(&mut self, step: Step, pack: Option<&[u8]>) -> u64 {
        let number = self.send(step, pack);
        match self.outcome() {
            Report::Landed { number: landed, objects, .. } if landed == number => objects,
            other => panic!("step {number}: {other:?}"),
        }
    }

    #[track_caller]
    pub fn refused(&mut self, step: Step, pack: Option<&[u8]>) -> history::StepError {
        self.send(step, pack);
        match self.outcome() {
            Report::NotLanded { error, .. } => error,
            other => panic!("{other:?}"),
        }
    }

    /// Mirrors the files, then lands HEAD's commit alone.
    #[track_caller]
    pub fn land_head(&mut self) -> u64 {
        self.mirror();
        let mut step = self.step();
        step.shallow = step.head.into_iter().collect();
        let pack = self.depth_one();
        self.land(step, Some(&pack))
    }

    /// Everything git says of a clone here and there agrees, and it is sound.
    #[track_caller]
    pub fn assert_same(&self) {
        for args in [
            &["status", "--porcelain=v2", "--branch"][..],
            &["log", "-1", "--format=%H %s"],
            &["rev-parse", "HEAD"],
            &["diff", "--stat", "HEAD"],
            &["ls-files", "-s"],
        ] {
            assert_eq!(self.merged(&self.here(args)), self.merged(&self.ask(args)), "{args:?}");
        }
        self.assert_sound();
    }

    /// The client may have staged what is unstaged there: the columns count as one.
    fn merged(&self, text: &str) -> String {
        let line = |line: &str| match line.strip_prefix("1 ") {
            Some(rest) => {
                let mark: String = rest[..2].chars().filter(|c| *c != '.').take(1).collect();
                format!("1 {mark} {}", line.rsplit(' ').next().unwrap())
            }
            None => line.to_owned(),
        };
        text.lines().map(line).collect::<Vec<_>>().join("\n")
    }

    #[track_caller]
    pub fn assert_sound(&self) {
        let fsck = git(&self.there("")).args(["fsck", "--no-dangling"]).output().unwrap();
        assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stderr));
        self.assert_clear();
    }

    /// No lock, nothing half done.
    #[track_caller]
    pub fn assert_clear(&self) {
        let mut left = Vec::new();
        find(&self.there(".git"), &mut left);
        left.retain(|path| {
            let name = path.file_name().unwrap().to_str().unwrap_or_default();
            let ours = path.parent().unwrap().ends_with("gitsync/history");
            name.ends_with(".lock")
                || name.starts_with("tmp_")
                || (ours && !matches!(name, "landed" | "turn"))
        });
        assert_eq!(left, Vec::<PathBuf>::new());
    }

    /// Inode, mtime and ctime of every file of the working tree.
    pub fn stamps(&self) -> Vec<(PathBuf, u64, i64, i64)> {
        let mut paths = Vec::new();
        find(&self.there(""), &mut paths);
        paths.retain(|path| !path.starts_with(self.there(".git")));
        let stamp = |path: PathBuf| {
            let meta = std::fs::symlink_metadata(&path).unwrap();
            (path, meta.ino(), meta.mtime_nsec() + meta.mtime() * 1_000_000_000, meta.ctime_nsec())
        };
        paths.into_iter().map(stamp).collect()
    }

    pub fn recovery(&self) -> Vec<(String, ObjectId)> {
        let args = ["for-each-ref", "--format=%(refname:strip=3) %(objectname)", "refs/gitsync/recovery"];
        let split = |line: &str| {
            let (name, id) = line.split_once(' ').unwrap();
            (name.to_owned(), ObjectId::from_hex(id.as_bytes()).unwrap())
        };
        self.ask(&args).lines().map(split).collect()
    }
}

pub fn find(at: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = std::fs::read_dir(at).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        match std::fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => find(&path, found),
            Ok(_) => found.push(path),
            // It went meanwhile.
            Err(_) => {}
        }
    }
}

fn open(temp: &Path, hash: HashKind) -> (Fence, Workspace, History, Receiver<()>) {
    let dir = WorkspaceDir::open(&temp.join("root"), "w", &OpenOptions::new(hash)).unwrap();
    let owner = Owner { id: "me".into(), text: "me".into() };
    let fence = dir.acquire(&owner, false, SystemTime::now()).unwrap();
    let workspace = Workspace::load(dir, &fence).unwrap();
    let (ring, bell) = channel();
    let clone = workspace.dir().clone_dir().unwrap();
    let held = workspace.held().root().clone();
    let ring = Arc::new(move || ring.send(()).unwrap_or_default());
    let history = history::open(clone, fence.number(), held, fence.seal().unwrap(), ring).unwrap();
    (fence, workspace, history, bell)
}
