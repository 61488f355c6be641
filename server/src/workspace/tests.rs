//! Scenarios on a real file system, against expected content, inode and mtime.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use gitsync_core::model::{ChangeKind, Dir, HashKind, patch};
use tempfile::TempDir;

use self::faults::{FaultFs, Pretend, Repeat};
use super::folding::Folding;
use super::fs::{Space, WorkspaceFs};
use super::os::OsFs;
use super::*;
use crate::epoch::Owner;

mod faults;
mod stage;

const SHA1: HashKind = HashKind::Sha1;

/// A root with one workspace `w`, opened.
struct Room {
    root: TempDir,
    fs: Arc<dyn WorkspaceFs>,
    fence: Fence,
    workspace: Option<Workspace>,
    generation: u64,
}

/// What a client has: path to (mode, content).
type Files = BTreeMap<String, (Mode, Vec<u8>)>;

fn path(p: &str) -> RelPath {
    RelPath::new(p).unwrap()
}

fn options() -> OpenOptions {
    OpenOptions::new(SHA1)
}

fn owner() -> Owner {
    Owner { id: "test".to_owned(), text: "test".to_owned() }
}

/// `a=text`, `+a=text` executable, `@a=target` symlink.
fn files(list: &str) -> Files {
    let one = |item: &str| {
        let (name, text) = item.split_once('=').unwrap();
        let (mode, name) = match (name.strip_prefix('+'), name.strip_prefix('@')) {
            (Some(rest), _) => (Mode::Executable, rest),
            (_, Some(rest)) => (Mode::Symlink, rest),
            _ => (Mode::File, name),
        };
        (name.to_owned(), (mode, text.as_bytes().to_vec()))
    };
    list.split_whitespace().map(one).collect()
}

fn snapshot(files: &Files) -> Snapshot {
    let leaf = |(mode, bytes): &(Mode, Vec<u8>)| {
        let signature = Signature { size: bytes.len() as u64, ..Default::default() };
        Leaf { mode: *mode, id: ContentId::of(SHA1, bytes), signature }
    };
    let mut edits: Vec<_> = files.iter().map(|(p, file)| (path(p), Some(leaf(file)))).collect();
    edits.sort_by(|a, b| a.0.cmp(&b.0));
    Snapshot::of(Dir::empty(SHA1).edit(&edits).unwrap())
}

fn enter(fs: Arc<dyn WorkspaceFs>, root: &Path, options: &OpenOptions) -> (Workspace, Fence) {
    let dir = WorkspaceDir::open_on(fs, root, "w", options).unwrap();
    let fence = dir.acquire(&owner(), false, SystemTime::now()).unwrap();
    (Workspace::load(dir, &fence).unwrap(), fence)
}

impl Room {
    fn new() -> Self {
        Self::on(TempDir::new().unwrap(), &options())
    }

    fn on(root: TempDir, options: &OpenOptions) -> Self {
        Self::over(Arc::new(OsFs::default()), root, options)
    }

    fn over(fs: Arc<dyn WorkspaceFs>, root: TempDir, options: &OpenOptions) -> Self {
        let (workspace, fence) = enter(fs.clone(), root.path(), options);
        Self { root, fs, fence, workspace: Some(workspace), generation: 0 }
    }

    fn with(list: &str) -> Self {
        let mut room = Self::new();
        room.set(list);
        room
    }

    fn at(&self, p: &str) -> PathBuf {
        self.root.path().join("w").join(p)
    }

    fn state(&self, p: &str) -> PathBuf {
        self.at(".git/gitsync").join(p)
    }

    fn workspace(&mut self) -> &mut Workspace {
        self.workspace.as_mut().unwrap()
    }

    fn held(&self) -> PatchId {
        self.workspace.as_ref().unwrap().held().id()
    }

    /// Applies the step to `next`, sending what is missing.
    fn try_apply(&mut self, next: &Files) -> Result<Applied, ApplyError> {
        self.generation += 1;
        let generation = self.generation;
        let workspace = self.workspace.as_mut().unwrap();
        let after = snapshot(next);
        let changes = patch::between(workspace.held(), &after);
        for id in workspace.missing(&changes) {
            send(workspace, next, id).map_err(|_| ApplyError::DiskFull)?;
        }
        let parent = workspace.held().id();
        loop {
            match workspace.apply(parent, after.id(), generation, &changes, &self.fence) {
                Err(ApplyError::ContentMissing { ids }) => {
                    for id in ids {
                        send(workspace, next, id).map_err(|_| ApplyError::DiskFull)?;
                    }
                }
                applied => return applied,
            }
        }
    }

    fn apply(&mut self, list: &str) -> Applied {
        self.try_apply(&files(list)).unwrap()
    }

    /// Applies and expects everything to be there and nothing odd.
    fn set(&mut self, list: &str) -> Applied {
        let applied = self.apply(list);
        assert_eq!((&applied.kept, &applied.refused), (&vec![], &vec![]));
        self.expect(list);
        applied
    }

    /// The disk and the held id are exactly this.
    fn expect(&self, list: &str) {
        assert_eq!(on_disk(&self.at("")), files(list));
        assert_eq!(self.held(), snapshot(&files(list)).id());
        assert!(stage_is_empty(&self.at("")), "something is left in the stage");
    }

    fn reopen(&mut self) -> OpenReport {
        self.workspace = None;
        let (workspace, fence) = enter(self.fs.clone(), self.root.path(), &options());
        (self.workspace, self.fence) = (Some(workspace), fence);
        self.workspace().opened().clone()
    }

    /// Files in the recovery store: path below the entry, content.
    fn recovered(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.state("recovery")).into_iter().flatten() {
            let dir = entry.unwrap().path();
            assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
            for (name, (_, bytes)) in on_disk(&dir) {
                found.push((name, String::from_utf8(bytes).unwrap()));
            }
        }
        found.sort();
        found
    }
}

fn send(workspace: &mut Workspace, files: &Files, id: ContentId) -> Result<(), StageError> {
    let (_, bytes) =
        files.values().find(|(_, bytes)| ContentId::of(SHA1, bytes) == id).expect("a content asked for");
    workspace.stage_bytes(id, bytes)
}

fn on_disk(root: &Path) -> Files {
    let mut files = Files::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap().map(Result::unwrap).filter(|e| e.file_name() != ".git") {
            let meta = entry.metadata().unwrap();
            let name = entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if meta.is_dir() {
                dirs.push(entry.path());
            } else if meta.is_symlink() {
                let target = fs::read_link(entry.path()).unwrap();
                files.insert(name, (Mode::Symlink, target.to_str().unwrap().as_bytes().to_vec()));
            } else if meta.is_file() {
                let mode = if meta.mode() & 0o100 != 0 { Mode::Executable } else { Mode::File };
                files.insert(name, (mode, fs::read(entry.path()).unwrap()));
            }
        }
    }
    files
}

fn stage_is_empty(workspace: &Path) -> bool {
    let stage = workspace.join(".git/gitsync/stage");
    fs::read_dir(stage).unwrap().all(|dir| fs::read_dir(dir.unwrap().path()).unwrap().next().is_none())
}

fn stat(p: &Path) -> (u64, i64, i64) {
    let meta = fs::symlink_metadata(p).unwrap();
    (meta.ino(), meta.mtime(), meta.mtime_nsec())
}

// ---- ordinary life

#[test]
fn scenarios_one_after_the_other() {
    let steps = [
        ("create", "a=1 d/b=2 d/e/f=3"),
        ("replace", "a=one d/b=2 d/e/f=3"),
        ("chmod", "+a=one d/b=2 d/e/f=3"),
        ("delete cleans directories", "+a=one d/b=2"),
        ("symlink", "+a=one d/b=2 @l=a"),
        ("retarget", "+a=one d/b=2 @l=nowhere/../x"),
        ("rename", "+a=one d/c=2 @l=nowhere/../x"),
        ("swap two", "+a=2 d/c=one @l=nowhere/../x"),
        ("same content many times", "x=2 y=2 z=2 @k=2 +v=2"),
        ("file to directory", "x/y/z=2 y=2"),
        ("directory to file", "x=2 y=2"),
        ("symlink to directory", "@x=2 y=2"),
        ("directory over symlink", "x/2=2 y=2"),
        ("file to symlink with the same bytes", "x/2=2 @y=2"),
        ("empty file", "e="),
        ("nothing", ""),
    ];
    let mut room = Room::new();
    for (name, list) in steps {
        println!("{name}");
        room.set(list);
    }
    let report = room.reopen();
    assert_eq!((report.drifted, report.missing, report.kept), (vec![], vec![], vec![]));
}

#[test]
fn what_does_not_change_is_not_touched() {
    let mut room = Room::with("a=1 d/b=2 +d/c=3 @l=x");
    let names = ["d/b", "d/c", "l"];
    let before = names.map(|p| stat(&room.at(p)));
    let applied = room.set("a=2 d/b=2 +d/c=3 @l=x");
    assert_eq!((applied.written, applied.deleted), (1, 0));
    assert_eq!(names.map(|p| stat(&room.at(p))), before);
    // A mode change keeps inode and time.
    let a = stat(&room.at("a"));
    room.set("+a=2 d/b=2 +d/c=3 @l=x");
    assert_eq!(stat(&room.at("a")), a);
}

#[test]
fn new_content_has_the_time_of_application_and_plain_modes() {
    let mut room = Room::new();
    let content = ContentId::of(SHA1, b"1");
    room.workspace().stage_bytes(content, b"1").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(30));
    let before = SystemTime::now() - std::time::Duration::from_millis(15);
    room.set("a=1 +b=1");
    for (name, mode) in [("a", 0o644), ("b", 0o755)] {
        let meta = fs::metadata(room.at(name)).unwrap();
        assert!(meta.modified().unwrap() >= before, "{name}");
        let umask = room.workspace().dir.umask;
        assert_eq!(meta.mode() & 0o7777, mode & !umask, "{name}");
    }
}

#[test]
fn the_id_held_applies_without_touching_anything() {
    let mut room = Room::with("a=1");
    let held = room.held();
    let before = stat(&room.at("a"));
    let elsewhere = PatchId::empty(SHA1);
    let workspace = room.workspace.as_mut().unwrap();
    let applied = workspace.apply(elsewhere, held, 9, &[], &room.fence).unwrap();
    assert_eq!((applied.written, applied.id), (0, held));
    assert_eq!(stat(&room.at("a")), before);
}

#[test]
fn refusals_touch_nothing() {
    let mut room = Room::with("a=1");
    let held = room.held();
    let next = snapshot(&files("a=2"));
    let changes = patch::between(room.workspace().held(), &next);
    let before = stat(&room.at("a"));
    let Room { workspace, fence, .. } = &mut room;
    let workspace = workspace.as_mut().unwrap();

    let other = PatchId::empty(SHA1);
    let error = workspace.apply(other, next.id(), 1, &changes, fence).unwrap_err();
    assert!(matches!(error, ApplyError::ParentMismatch { held: h } if h == held));
    let error = workspace.apply(held, other, 1, &changes, fence).unwrap_err();
    assert!(matches!(error, ApplyError::IdMismatch { computed } if computed == next.id()));
    let error = workspace.apply(held, next.id(), 1, &changes, fence).unwrap_err();
    assert!(matches!(error, ApplyError::ContentMissing { ids } if ids == [ContentId::of(SHA1, b"2")]));
    workspace.dir().acquire(&owner(), false, SystemTime::now()).unwrap();
    let error = workspace.apply(held, next.id(), 1, &changes, fence).unwrap_err();
    assert!(matches!(error, ApplyError::Fenced(_)));
    assert_eq!(stat(&room.at("a")), before);
    room.reopen();
    room.expect("a=1");
    room.set("a=2");
}

#[test]
fn missing_and_extra() {
    let mut room = Room::with("a=1 b=2 d/c=3");
    fs::write(room.at("foreign"), "4").unwrap();
    let next = snapshot(&files("a=1 n=2 foreign=4 m=5 o=5"));
    let whole = patch::whole(&next);
    let workspace = room.workspace();
    assert_eq!(workspace.missing(&whole), [ContentId::of(SHA1, b"5")]);
    assert_eq!(workspace.extra(&whole), [path("b"), path("d/c")]);
    assert!(workspace.contains(&ContentId::of(SHA1, b"3")));
    assert!(!workspace.contains(&ContentId::of(SHA1, b"4")));
}

#[test]
fn release_leaves_the_file_and_a_new_put_adopts_it() {
    let mut room = Room::with("a=1 b=2");
    let before = stat(&room.at("b"));
    let next = snapshot(&files("a=1"));
    let changes = [Change { path: path("b"), kind: ChangeKind::Release }];
    let held = room.held();
    let Room { workspace, fence, .. } = &mut room;
    workspace.as_mut().unwrap().apply(held, next.id(), 2, &changes, fence).unwrap();
    assert_eq!(room.held(), next.id());
    assert_eq!(stat(&room.at("b")), before);
    let applied = room.set("a=1 b=2");
    assert_eq!(applied.written, 0);
    assert_eq!(stat(&room.at("b")), before);
}

#[test]
fn the_id_is_gits() {
    let room = Room::with("a-b=1 a.c=2 a/x=3 +a0=4 @l=a/x é=5");
    let git = |args: &[&str], input: &[u8]| {
        let mut child = Command::new("git")
            .args(args)
            .current_dir(room.at(""))
            .env("GIT_INDEX_FILE", room.root.path().join("index"))
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        io::Write::write_all(child.stdin.as_mut().unwrap(), input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let mut index = String::new();
    for (name, (mode, bytes)) in on_disk(&room.at("")) {
        let id = git(&["hash-object", "-w", "--no-filters", "--stdin"], &bytes);
        let mode = match mode {
            Mode::File => "100644",
            Mode::Executable => "100755",
            Mode::Symlink => "120000",
        };
        index.push_str(&format!("{mode} {id}\t{name}\0"));
    }
    git(&["update-index", "-z", "--index-info"], index.as_bytes());
    assert_eq!(git(&["write-tree"], b""), room.held().to_string());
}

// ---- foreign files

#[test]
fn a_foreign_file_in_the_way_is_kept() {
    let mut room = Room::new();
    fs::write(room.at("a"), "theirs").unwrap();
    symlink("theirs", room.at("l")).unwrap();
    fs::write(room.at("d"), "a file where a directory goes").unwrap();
    let applied = room.apply("a=1 d/x=2 l=3");
    assert_eq!(applied.kept, [path("a"), path("d"), path("l")]);
    room.expect("a=1 d/x=2 l=3");
    let recovered = room.recovered();
    assert!(recovered.contains(&("a".into(), "theirs".into())), "{recovered:?}");
    assert!(recovered.contains(&("l".into(), "theirs".into())), "{recovered:?}");
    assert_eq!(recovered.len(), 3);
}

#[test]
fn a_fifo_in_the_way_is_kept_without_waiting() {
    let mut room = Room::new();
    let dir = fs::File::open(room.at("")).unwrap();
    rustix::fs::mknodat(&dir, "p", rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let applied = room.apply("p=1");
    assert_eq!(applied.kept, [path("p")]);
    room.expect("p=1");
}

#[test]
fn a_drifted_managed_file_is_kept() {
    let mut room = Room::with("a=1 b=1 c=1 d=1");
    for name in ["a", "b"] {
        fs::write(room.at(name), "edited there").unwrap();
    }
    // Written anew with the bytes it had, or with those about to come: nothing to keep.
    fs::remove_file(room.at("c")).unwrap();
    fs::write(room.at("c"), "1").unwrap();
    fs::write(room.at("d"), "2").unwrap();
    let applied = room.apply("a=2 c=2 d=2");
    assert_eq!(applied.kept, [path("a"), path("b")]);
    room.expect("a=2 c=2 d=2");
    let kept = |name: &str| (name.to_owned(), "edited there".to_owned());
    assert_eq!(room.recovered(), [kept("a"), kept("b")]);
}

#[test]
fn a_managed_file_that_vanished_is_no_obstacle() {
    let mut room = Room::with("a=1 b=1 d/c=1 e/f=1");
    fs::remove_file(room.at("a")).unwrap();
    fs::remove_file(room.at("b")).unwrap();
    fs::remove_dir_all(room.at("d")).unwrap();
    fs::remove_dir_all(room.at("e")).unwrap();
    room.set("a=2 e/f=2");
}

#[test]
fn a_mode_change_of_a_drifted_file_sends_the_content() {
    let mut room = Room::with("a=1 b=1");
    fs::write(room.at("a"), "drift").unwrap();
    fs::write(room.at("b"), "drift").unwrap();
    let applied = room.apply("+a=1 b=1");
    assert_eq!((applied.kept, applied.refused), (vec![path("a")], vec![]));
    assert_eq!(fs::read(room.at("a")).unwrap(), b"1");
}

#[test]
fn a_directory_with_foreign_files_is_refused_and_the_rest_applied() {
    let mut room = Room::with("a=1 d/x=1");
    fs::write(room.at("d/theirs"), "keep").unwrap();
    fs::create_dir_all(room.at("n/m")).unwrap();
    fs::write(room.at("n/m/theirs"), "keep").unwrap();
    let applied = room.apply("a=2 d=2 n=3");
    let refused: Vec<_> = applied.refused.iter().map(|(p, _)| p.clone()).collect();
    assert_eq!(refused, [path("d"), path("n")]);
    assert_eq!(applied.id, snapshot(&files("a=2")).id());
    assert_eq!(on_disk(&room.at("")), files("a=2 d/theirs=keep n/m/theirs=keep"));
    room.reopen();
    assert_eq!(room.held(), applied.id);
}

#[test]
fn a_hollow_directory_gives_way() {
    let mut room = Room::with("d/x=1");
    fs::create_dir_all(room.at("d/e/f")).unwrap();
    fs::create_dir_all(room.at("n/m/o")).unwrap();
    room.set("d=2 n=3");
}

#[test]
fn a_directory_in_place_of_a_managed_file() {
    let mut room = Room::with("a=1 b=1 c=1");
    for name in ["a", "b", "c"] {
        fs::remove_file(room.at(name)).unwrap();
        fs::create_dir(room.at(name)).unwrap();
    }
    fs::write(room.at("b/theirs"), "keep").unwrap();
    fs::write(room.at("c/theirs"), "keep").unwrap();
    let applied = room.apply("a=2 b=2");
    assert_eq!(applied.refused.len(), 1, "{:?}", applied.refused);
    assert_eq!(on_disk(&room.at("")), files("a=2 b/theirs=keep c/theirs=keep"));
    // What is not there is not held, so the client sends all it wants once more.
    assert_eq!(applied.id, snapshot(&files("a=2")).id());
}

#[test]
fn a_symlinked_parent_is_refused_and_nothing_outside_is_touched() {
    let mut room = Room::with("a=1 d/x=1 e/x=1");
    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("x"), "outside").unwrap();
    let before = stat(&outside.path().join("x"));
    fs::remove_dir_all(room.at("d")).unwrap();
    fs::remove_dir_all(room.at("e")).unwrap();
    for name in ["d", "e", "n"] {
        symlink(outside.path(), room.at(name)).unwrap();
    }
    // `d/x` replaced, `e/x` deleted, `n/x` new, each through a symlink out of the workspace.
    let applied = room.apply("a=2 d/x=2 n/x=2 n/m/x=2");
    let refused: Vec<_> = applied.refused.iter().map(|(p, _)| p.to_string()).collect();
    assert_eq!(refused, ["d/x", "n/m/x", "n/x"]);
    assert_eq!(applied.id, snapshot(&files("a=2")).id());
    assert_eq!(stat(&outside.path().join("x")), before);
    assert_eq!(fs::read(outside.path().join("x")).unwrap(), b"outside");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    room.reopen();
    assert_eq!(room.held(), applied.id);
}

#[test]
fn a_hard_linked_target_leaves_the_other_name_alone() {
    let mut room = Room::with("a=1 b=1 c=1");
    let outside = room.root.path().join("outside");
    for name in ["a", "b", "c"] {
        fs::hard_link(room.at(name), outside.with_extension(name)).unwrap();
    }
    let before = ["a", "b", "c"].map(|n| fs::metadata(outside.with_extension(n)).unwrap().mode());
    room.set("a=2 +b=1");
    let after = ["a", "b", "c"].map(|n| fs::metadata(outside.with_extension(n)).unwrap().mode());
    assert_eq!(before, after);
    assert_eq!(fs::read(outside.with_extension("a")).unwrap(), b"1");
}

#[test]
fn foreign_files_keep_their_directory() {
    let mut room = Room::with("d/e/x=1 d/y=1");
    fs::write(room.at("d/build.o"), "o").unwrap();
    room.apply("");
    assert_eq!(on_disk(&room.at("")), files("d/build.o=o"));
    assert!(!room.at("d/e").exists());
}

#[test]
fn odd_symlinks_are_refused() {
    let mut room = Room::new();
    let mut next = files("a=1 @.gitmodules=x");
    next.insert("empty".into(), (Mode::Symlink, vec![]));
    next.insert("long".into(), (Mode::Symlink, vec![b'a'; 4096]));
    next.insert("nul".into(), (Mode::Symlink, b"a\0b".to_vec()));
    next.insert("fits".into(), (Mode::Symlink, vec![b'a'; 4095]));
    let applied = room.try_apply(&next).unwrap();
    let refused: Vec<_> = applied.refused.iter().map(|(p, _)| p.to_string()).collect();
    assert_eq!(refused, [".gitmodules", "empty", "long", "nul"]);
    assert!(room.at("fits").symlink_metadata().unwrap().is_symlink());
}

// ---- opening

#[test]
fn adoption_is_asked_for_and_leaves_equal_files_alone() {
    let root = TempDir::new().unwrap();
    let at = root.path().join("w");
    fs::create_dir(&at).unwrap();
    fs::write(at.join("same"), "1").unwrap();
    fs::write(at.join("other"), "theirs").unwrap();
    fs::write(at.join("foreign"), "f").unwrap();
    symlink("same", at.join("l")).unwrap();
    let before = [stat(&at.join("same")), stat(&at.join("l"))];
    let refused = WorkspaceDir::open(root.path(), "w", &options()).unwrap_err();
    assert!(refused.to_string().contains("--adopt"), "{refused}");
    assert!(!at.join(".git").exists());

    let mut room = Room::on(root, &OpenOptions { adopt: true, ..options() });
    let applied = room.apply("same=1 other=2 @l=same +new=1");
    assert_eq!((applied.written, applied.kept), (2, vec![path("other")]));
    assert_eq!([stat(&at.join("same")), stat(&at.join("l"))], before);
    assert_eq!(on_disk(&at), files("same=1 other=2 @l=same +new=1 foreign=f"));
    assert_eq!(room.held(), snapshot(&files("same=1 other=2 @l=same +new=1")).id());
    assert_eq!(room.recovered(), [("other".to_owned(), "theirs".to_owned())]);
}

#[test]
fn an_adoption_lasts_until_a_patch_was_applied_whole() {
    let root = TempDir::new().unwrap();
    fs::create_dir(root.path().join("w")).unwrap();
    fs::write(root.path().join("w/same"), "1").unwrap();
    let twin = Arc::new(FaultFs::default());
    let mut room = Room::over(twin.clone(), root, &OpenOptions { adopt: true, ..options() });
    assert!(room.workspace().is_adopting());
    room.reopen();
    assert!(room.workspace().is_adopting(), "it has nothing to do with sessions");
    twin.arm(Some((2, Errno::IO, Repeat::Always)));
    room.try_apply(&files("same=1 new=1")).unwrap_err();
    twin.arm(None);
    room.reopen();
    assert!(room.workspace().is_adopting());
    room.set("same=1 new=1");
    assert!(!room.workspace().is_adopting());
    room.reopen();
    assert!(!room.workspace().is_adopting());
    assert!(!Room::with("a=1").workspace().is_adopting(), "a new workspace is ours from the start");
}

/// A file that was compared and then changed is not taken for what it was.
#[test]
fn a_file_that_changes_after_it_was_compared_is_compared_again() {
    let root = TempDir::new().unwrap();
    fs::create_dir(root.path().join("w")).unwrap();
    let at = root.path().join("w/a");
    fs::write(&at, "1").unwrap();
    let mut room = Room::on(root, &OpenOptions { adopt: true, ..options() });
    let next = snapshot(&files("a=1"));
    let changes = patch::between(room.workspace().held(), &next);
    assert_eq!(room.workspace().missing(&changes), []);
    fs::write(&at, "2").unwrap();
    let applied = room.apply("a=1");
    assert_eq!((applied.written, applied.kept), (1, vec![path("a")]));
    assert_eq!(room.recovered(), [("a".to_owned(), "2".to_owned())]);
}

#[test]
fn an_equal_file_met_only_at_the_swap_is_adopted_too() {
    let mut room = Room::new();
    let id = ContentId::of(SHA1, b"1");
    room.workspace().stage_bytes(id, b"1").unwrap();
    fs::write(room.at("a"), "1").unwrap();
    let before = stat(&room.at("a"));
    assert_eq!(room.set("a=1").written, 0);
    assert_eq!(stat(&room.at("a")), before);
}

#[test]
fn a_creation_that_was_cut_off_is_done_again() {
    for made in ["", ".git", ".git/gitsync"] {
        let root = TempDir::new().unwrap();
        fs::create_dir_all(root.path().join("w").join(made)).unwrap();
        Room::on(root, &options()).set("a=1");
    }
}

#[test]
fn other_formats_odd_git_and_odd_names_are_refused() {
    let room = Room::with("a=1");
    let sha256 = OpenOptions::new(HashKind::Sha256);
    let error = WorkspaceDir::open(room.root.path(), "w", &sha256).unwrap_err();
    assert!(matches!(error, OpenError::ObjectFormat { .. }), "{error}");
    let id = WorkspaceDir::open(room.root.path(), "w", &options()).unwrap().id().to_owned();
    assert_eq!(id, WorkspaceDir::open(room.root.path(), "w", &options()).unwrap().id());
    for sub in ["s", "t"] {
        fs::create_dir(room.root.path().join(sub)).unwrap();
    }
    symlink(room.at(".git"), room.root.path().join("s/.git")).unwrap();
    fs::write(room.root.path().join("t/.git"), "gitdir: ../w/.git").unwrap();
    symlink(room.at(""), room.root.path().join("link")).unwrap();
    let adopt = OpenOptions { adopt: true, ..options() };
    for name in ["s", "t", "link"] {
        let error = WorkspaceDir::open(room.root.path(), name, &adopt).unwrap_err();
        assert!(matches!(error, OpenError::Refused { .. }), "{name}: {error}");
    }
    assert!(matches!(WorkspaceDir::open(room.root.path(), "../w", &options()), Err(OpenError::Name { .. })));
    // A workspace of the other format is made and adopted as such.
    WorkspaceDir::open(room.root.path(), "x", &sha256).unwrap();
    fs::remove_dir_all(room.root.path().join("x/.git/gitsync")).unwrap();
    let error = WorkspaceDir::open(room.root.path(), "x", &adopt).unwrap_err();
    assert!(matches!(error, OpenError::ObjectFormat { .. }), "{error}");
}

#[test]
fn reopening_without_a_close_holds_the_same() {
    let mut room = Room::with("a=1 d/b=2 @l=a");
    room.set("a=2 d/b=2 +n=1");
    let report = room.reopen();
    assert_eq!((report.rehashed, report.drifted.len(), report.missing.len()), (0, 0, 0));
    room.expect("a=2 d/b=2 +n=1");
    room.set("b=1");
    let workspace = room.workspace.take().unwrap();
    workspace.close(&room.fence).unwrap();
    room.reopen();
    room.expect("b=1");
}

#[test]
fn drift_and_loss_are_found_when_opening() {
    let mut room = Room::with("a=1 b=1 c=1 d/e=1 +f=1");
    fs::write(room.at("a"), "drift").unwrap();
    fs::remove_file(room.at("b")).unwrap();
    fs::set_permissions(room.at("c"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_dir_all(room.at("d")).unwrap();
    let report = room.reopen();
    assert_eq!((report.drifted, report.missing), (vec![path("a")], vec![path("b"), path("d/e")]));
    assert_eq!(room.held(), snapshot(&files("+c=1 +f=1")).id());
    let applied = room.apply("a=1 b=1 c=1 d/e=1 +f=1");
    assert_eq!(applied.kept, [path("a")]);
    room.expect("a=1 b=1 c=1 d/e=1 +f=1");
}

#[test]
fn a_rehash_finds_what_signatures_hide() {
    let mut room = Room::with("a=1 b=1 d/c=1");
    room.workspace().held = {
        // As if `a` had been edited without leaving a trace in its signature.
        let mut leaf = *room.workspace().held.root().get(&path("a")).unwrap();
        fs::write(room.at("a"), "2").unwrap();
        let found = OsFs::default().stat(AsFd::as_fd(&fs::File::open(room.at("a")).unwrap())).unwrap();
        leaf.signature = found.signature;
        Snapshot::of(room.workspace().held.root().edit(&[(path("a"), Some(leaf))]).unwrap())
    };
    fs::remove_file(room.at("b")).unwrap();
    let report = room.workspace().rehash().unwrap();
    assert_eq!((report.rehashed, report.drifted, report.missing), (2, vec![path("a")], vec![path("b")]));
    let applied = room.apply("a=1 b=1 d/c=1");
    assert_eq!((applied.written, applied.kept), (2, vec![path("a")]));
    room.reopen();
    room.expect("a=1 b=1 d/c=1");
}

#[test]
fn a_damaged_manifest_makes_everything_foreign_until_compared() {
    let mut room = Room::with("a=1 b=2");
    let workspace = room.workspace.take().unwrap();
    workspace.close(&room.fence).unwrap();
    let mut bytes = fs::read(room.state("manifest")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(room.state("manifest"), bytes).unwrap();
    let before = stat(&room.at("a"));
    assert!(room.reopen().damaged);
    assert_eq!(room.held(), PatchId::empty(SHA1));
    let applied = room.set("a=1 b=2");
    assert_eq!(applied.written, 0);
    assert_eq!(stat(&room.at("a")), before);
}

#[test]
fn a_log_torn_anywhere_loses_no_file() {
    let mut room = Room::with("a=1 b=1 d/c=1");
    let log = fs::read_dir(room.state("")).unwrap().map(|e| e.unwrap().path());
    let log = log.into_iter().find(|p| p.file_name().unwrap().to_str().unwrap().starts_with("log-")).unwrap();
    let before = fs::metadata(&log).unwrap().len() as usize;
    room.set("a=2 n=3 d/c=1");
    let whole = fs::read(&log).unwrap();
    let manifest = fs::read(room.state("manifest")).unwrap();
    assert!(whole.len() > before);
    let now = files("a=2 n=3 d/c=1");
    for len in before..=whole.len() {
        room.workspace = None;
        fs::write(room.state("manifest"), &manifest).unwrap();
        fs::write(&log, &whole[..len]).unwrap();
        room.reopen();
        assert_eq!(on_disk(&room.at("")), now, "cut at {len}");
        // What is held is there, and what is there is held or foreign.
        let held = room.workspace().held().clone();
        held.root().for_each_leaf(&mut |path, leaf| {
            let (mode, bytes) = &now[&path.to_string()];
            assert_eq!((leaf.mode, leaf.id), (*mode, ContentId::of(SHA1, bytes)), "cut at {len}");
        });
        // The next session heals, and keeps nothing that is not foreign.
        let applied = room.try_apply(&now).unwrap();
        assert_eq!((applied.refused, applied.kept), (vec![], vec![]), "cut at {len}");
        room.expect("a=2 n=3 d/c=1");
    }
}

// ---- drift

impl Room {
    /// A whole sweep: the paths that drifted.
    fn sweep(&mut self) -> Vec<RelPath> {
        let Room { workspace, fence, .. } = self;
        let mut drifted = Vec::new();
        loop {
            let swept = workspace.as_mut().unwrap().sweep(fence).unwrap();
            drifted.extend(swept.drifted);
            if swept.ended {
                return drifted;
            }
        }
    }

    /// Over a twin that pretends.
    fn pretending(pretend: Pretend) -> (Self, Arc<FaultFs>) {
        let twin = Arc::new(FaultFs::pretending(pretend));
        (Self::over(twin.clone(), TempDir::new().unwrap(), &options()), twin)
    }

    /// In boot `one`, with all that is held behind the barrier.
    fn checkpointed(list: &str) -> (Self, Arc<FaultFs>) {
        let (mut room, twin) = Self::pretending(Pretend { boot_id: Some("one"), ..Pretend::default() });
        room.set(list);
        room.workspace.take().unwrap().close(&room.fence).unwrap();
        room.reopen();
        (room, twin)
    }
}

#[test]
fn a_sweep_finds_what_was_changed_and_nothing_else() {
    let mut room = Room::with("a=1 b=1 c=1 +d/e=1 d/f=1 @l=x g/h=1 k=1");
    assert_eq!(room.sweep(), []);
    fs::write(room.at("a"), "edited").unwrap();
    fs::remove_file(room.at("b")).unwrap();
    fs::set_permissions(room.at("c"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(room.at("l")).unwrap();
    symlink("y", room.at("l")).unwrap();
    fs::remove_dir_all(room.at("g")).unwrap();
    // Touched, and the same: only its signature is new.
    fs::remove_file(room.at("k")).unwrap();
    fs::write(room.at("k"), "1").unwrap();
    assert_eq!(room.sweep(), ["a", "b", "c", "g/h", "l"].map(path));
    assert_eq!(room.held(), snapshot(&files("+d/e=1 d/f=1 k=1")).id());
    let k = room.workspace().held().root().get(&path("k")).unwrap().signature;
    assert_eq!(k.inode, fs::metadata(room.at("k")).unwrap().ino());
    assert_eq!(room.sweep(), []);

    // What a reopened workspace holds agrees, without reading anything.
    let held = room.held();
    let report = room.reopen();
    assert_eq!((report.rehashed, report.drifted, report.missing), (0, vec![], vec![]));
    assert_eq!(room.held(), held);
    // The next patch keeps what is in its way.
    let applied = room.apply("a=1 b=1 c=1 +d/e=1 d/f=1 @l=x g/h=1 k=1");
    assert_eq!(applied.kept, [path("a"), path("l")]);
    room.expect("a=1 b=1 c=1 +d/e=1 d/f=1 @l=x g/h=1 k=1");
}

#[test]
fn a_sweep_goes_on_where_it_was_and_forgets_what_a_patch_replaced() {
    let many: String = (0..3000).map(|n| format!("d{}/f{n}=1 ", n % 7)).collect();
    let mut room = Room::with(&format!("a=1 z=1 {many}"));
    fs::write(room.at("a"), "edited").unwrap();
    fs::write(room.at("z"), "edited").unwrap();
    let Room { workspace, fence, .. } = &mut room;
    let first = workspace.as_mut().unwrap().sweep(fence).unwrap();
    assert_eq!(first, Swept { drifted: vec![], ended: false }, "too much for one slice");
    // `a` was found already; then a patch puts its own bytes there.
    let applied = room.apply(&format!("a=2 z=1 {many}"));
    assert_eq!(applied.kept, [path("a")]);
    assert_eq!(room.sweep(), [path("z")]);
    assert_eq!(room.held(), snapshot(&files(&format!("a=2 {many}"))).id());
}

#[test]
fn one_sweep_takes_in_any_number() {
    let many: String = (0..2500).map(|n| format!("f{n}=1 ")).collect();
    let mut room = Room::with(&format!("{many} z=1"));
    // All of them touched, which must not keep the last one from being found.
    for n in 0..2500 {
        fs::remove_file(room.at(&format!("f{n}"))).unwrap();
        fs::write(room.at(&format!("f{n}")), "1").unwrap();
    }
    fs::write(room.at("z"), "edited").unwrap();
    assert_eq!(room.sweep(), [path("z")]);
    assert_eq!(room.held(), snapshot(&files(&many)).id());
    // Next time nothing has to be read.
    let report = room.reopen();
    assert_eq!((report.rehashed, report.drifted), (0, vec![]));
}

#[test]
fn a_large_file_is_read_in_slices() {
    let mut room = Room::new();
    let big = vec![7; 8 << 20];
    let next = Files::from([("big".to_owned(), (Mode::File, big.clone()))]);
    room.try_apply(&next).unwrap();
    fs::write(room.at("big"), &big).unwrap();
    let mut slices = 0;
    let Room { workspace, fence, .. } = &mut room;
    let workspace = workspace.as_mut().unwrap();
    loop {
        let swept = workspace.sweep(fence).unwrap();
        assert_eq!(swept.drifted, []);
        if swept.ended {
            break;
        }
        slices += 1;
    }
    assert!(slices > 1, "{slices}");
    assert_eq!(workspace.held().id(), snapshot(&next).id());
}

#[test]
fn held_drift_is_refused_and_the_rest_applied() {
    let list = "a=1 b=1 c=1 d=1 e=1 same=1 gone=1";
    let mut room = Room::with(list);
    room.workspace().set_hold(true);
    for name in ["a", "b", "c"] {
        fs::write(room.at(name), "theirs").unwrap();
    }
    fs::set_permissions(room.at("e"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(room.at("new"), "theirs").unwrap();
    fs::write(room.at("dir"), "theirs").unwrap();
    // Written again with what it had, or with what comes; gone.
    fs::remove_file(room.at("d")).unwrap();
    fs::write(room.at("d"), "1").unwrap();
    fs::write(room.at("same"), "2").unwrap();
    fs::remove_file(room.at("gone")).unwrap();
    // `a` edited, `b` deleted, `c` made executable, `e` edited; `new` and `dir/x` have foreign files in their way.
    let applied = room.apply("a=2 +c=1 d=2 e=2 same=2 gone=2 new=2 dir/x=2");
    let drift = |p: &str| (path(p), "drift".to_owned());
    assert_eq!(applied.refused, ["a", "b", "c", "dir/x", "e", "new"].map(drift));
    assert_eq!(applied.kept, []);
    assert_eq!(applied.id, snapshot(&files("d=2 same=2 gone=2")).id());
    let disk = files("a=theirs b=theirs c=theirs +e=1 new=theirs dir=theirs d=2 same=2 gone=2");
    assert_eq!(on_disk(&room.at("")), disk);
    assert_eq!(room.recovered(), []);

    // Once more: they are foreign now, and stay.
    let applied = room.apply("a=2 d=3 same=2 gone=2");
    assert_eq!(applied.refused, [drift("a")]);
    room.reopen();
    assert_eq!(room.held(), applied.id);
    // No longer held: a copy is kept, and they are replaced.
    let applied = room.apply("a=2 d=3 same=2 gone=2");
    assert_eq!((applied.kept, applied.refused), (vec![path("a")], vec![]));
}

// ---- kept files

#[test]
fn a_full_store_refuses_and_leaves_what_is_there() {
    let mut room = Room::with("a=1 b=1 c=1");
    for name in ["a", "b", "c"] {
        fs::write(room.at(name), "0123456789").unwrap();
    }
    fs::write(room.at("dir"), "0123456789").unwrap();
    room.workspace().recovery.limits.bytes = 15;
    let applied = room.apply("a=2 b=2 n=2 dir/x=2");
    let full = |p: &str| (path(p), "recovery store is full".to_owned());
    assert_eq!(applied.kept, [path("a")]);
    assert_eq!(applied.refused, ["b", "c", "dir/x"].map(full));
    assert_eq!(applied.id, snapshot(&files("a=2 n=2")).id());
    let disk = files("a=2 b=0123456789 c=0123456789 n=2 dir=0123456789");
    assert_eq!(on_disk(&room.at("")), disk);
    assert!(stage_is_empty(&room.at("")));

    // A day later what is kept may go, so more is taken; the quiet moment removes the oldest.
    age_kept(&room, "20200101T000000Z-0");
    room.reopen();
    room.workspace().recovery.limits =
        Limits { bytes: 15, age: std::time::Duration::MAX, ..Limits::default() };
    let applied = room.apply("a=2 b=2 n=2");
    assert_eq!((applied.kept, applied.refused), (vec![path("b")], vec![]));
}

/// Renames the one entry of the store.
fn age_kept(room: &Room, name: &str) {
    let store = room.state("recovery");
    let entry = fs::read_dir(&store).unwrap().next().unwrap().unwrap().path();
    fs::rename(entry, store.join(name)).unwrap();
}

#[test]
fn old_kept_files_go_when_it_is_quiet_and_when_opening() {
    let mut room = Room::with("a=1 d/b=1");
    fs::write(room.at("a"), "old").unwrap();
    room.apply("a=2 d/b=1");
    age_kept(&room, "20200101T000000Z-0");
    fs::write(room.at("d/b"), "new").unwrap();
    room.apply("a=2 d/b=2");
    assert_eq!(room.recovered().len(), 2);
    room.reopen();
    assert_eq!(room.recovered(), [("d/b".to_owned(), "new".to_owned())]);
    room.workspace().recovery.limits = Limits { bytes: 0, age: Default::default(), safe: Default::default() };
    let Room { workspace, fence, .. } = &mut room;
    workspace.as_mut().unwrap().maintain(fence).unwrap();
    assert_eq!(room.recovered(), []);
}

#[test]
fn kept_files_are_read_by_their_owner_only() {
    let mut room = Room::with("a=1 d/b=1 @l=x");
    let big = vec![9; 600_000];
    fs::write(room.at("a"), &big).unwrap();
    fs::write(room.at("d/b"), "").unwrap();
    fs::remove_file(room.at("l")).unwrap();
    symlink("there", room.at("l")).unwrap();
    room.apply("a=2 d/b=2 @l=y");
    let before = room.fence.number();

    let root = room.root.path();
    assert!(kept::KeptFiles::open(root, "w", "somebody").is_none());
    assert!(kept::KeptFiles::open(root, "none", "test").is_none());
    assert!(kept::KeptFiles::open(root, "../w", "test").is_none());
    assert!(!root.join("none").exists());
    let files = kept::KeptFiles::open(root, "w", "test").unwrap();
    let list = files.list().unwrap();
    let shown: Vec<_> = list.iter().map(|e| (e.path.to_string(), e.mode, e.size)).collect();
    // Newest first.
    let expected = [("l", Mode::Symlink, 5), ("d/b", Mode::File, 0), ("a", Mode::File, 600_000)]
        .map(|(p, m, s)| (p.to_owned(), m, s));
    assert_eq!(shown, expected);
    let read = |id: &str| {
        let mut reader = files.read(id).unwrap()?;
        let mut bytes = Vec::new();
        loop {
            let piece = reader.next(100_000).unwrap();
            bytes.extend_from_slice(&piece);
            if piece.len() < 100_000 {
                return Some(bytes);
            }
        }
    };
    let contents: Vec<_> = list.iter().map(|entry| read(&entry.id).unwrap()).collect();
    assert!(contents == [b"there".to_vec(), b"".to_vec(), big]);
    for bad in ["", "..", "a", "20200101T000000Z-0", "../../../../etc/passwd"] {
        assert_eq!(read(bad), None, "{bad}");
    }
    // The session went on undisturbed, and its end changes nothing for its owner.
    room.fence.check(SystemTime::now()).unwrap();
    assert_eq!(room.fence.number(), before);
    room.fence.release().unwrap();
    assert!(kept::KeptFiles::open(room.root.path(), "w", "test").is_some());
}

// ---- places, boots, names, space

#[test]
fn a_directory_that_is_gone_or_replaced_is_noticed() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 4] = [
        ("removed", |w| fs::remove_dir_all(w).unwrap()),
        ("renamed", |w| fs::rename(w, w.with_extension("old")).unwrap()),
        ("swapped", |w| {
            fs::rename(w, w.with_extension("old")).unwrap();
            fs::create_dir_all(w.join(".git/gitsync")).unwrap();
        }),
        ("without .git", |w| fs::rename(w.join(".git"), w.join("git")).unwrap()),
    ];
    for (name, change) in changes {
        let room = Room::with("a=1");
        let dir = room.workspace.as_ref().unwrap().dir();
        dir.check_place().unwrap();
        change(&room.at(""));
        let error = dir.check_place().unwrap_err().to_string();
        assert!(error.contains("the workspace directory is gone or was replaced"), "{name}: {error}");
    }
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_workspace_from_a_backup_is_read_and_loses_nothing() {
    let mut room = Room::with("a=1 b=1 d/c=1");
    room.workspace.take().unwrap().close(&room.fence).unwrap();
    let (now, backup) = (room.at(""), room.root.path().join("backup"));
    copy(&now, &backup);
    room.reopen();
    room.set("a=2 d/c=1 n=2");
    room.workspace = None;
    // All of it comes back, manifest included: every file is read, and is what that manifest says.
    fs::remove_dir_all(&now).unwrap();
    fs::rename(&backup, &now).unwrap();
    let report = room.reopen();
    assert_eq!((report.rehashed, report.drifted, report.missing), (3, vec![], vec![]));
    room.expect("a=1 b=1 d/c=1");
    room.set("a=2 d/c=1 n=2");

    // The files alone are older than the manifest: what differs is foreign, and is neither deleted nor lost.
    fs::write(room.at("a"), "1").unwrap();
    fs::write(room.at("b"), "1").unwrap();
    fs::remove_file(room.at("n")).unwrap();
    let report = room.reopen();
    assert_eq!((report.drifted, report.missing), (vec![path("a")], vec![path("n")]));
    room.apply("d/c=1");
    assert_eq!(on_disk(&room.at("")), files("a=1 b=1 d/c=1"));
}

#[test]
fn the_manifest_alone_from_a_backup_deletes_nothing_it_did_not_write() {
    let mut room = Room::with("a=1 b=1 gone=1");
    room.workspace.take().unwrap().close(&room.fence).unwrap();
    let backup = room.root.path().join("backup");
    copy(&room.state(""), &backup);
    room.reopen();
    room.set("a=2 b=1 n=2");
    room.workspace = None;
    fs::remove_dir_all(room.state("")).unwrap();
    fs::rename(&backup, room.state("")).unwrap();
    let report = room.reopen();
    assert_eq!((report.drifted, report.missing), (vec![path("a")], vec![path("gone")]));
    assert_eq!(room.held(), snapshot(&files("b=1")).id());
    room.apply("");
    assert_eq!(on_disk(&room.at("")), files("a=2 n=2"));
}

#[test]
fn after_another_boot_only_the_checkpoint_is_trusted() {
    let (mut room, twin) = Room::checkpointed("a=1 b=1 c=1 d=1");
    room.set("a=2 b=2 c=1 d=1");
    // The process alone was killed: nothing is read again.
    assert_eq!(room.reopen().rehashed, 0);
    // As if the power cut had come before these bytes were written out, the signature notwithstanding.
    room.workspace().held = {
        let mut leaf = *room.workspace().held.root().get(&path("b")).unwrap();
        fs::write(room.at("b"), "\0").unwrap();
        leaf.signature =
            OsFs::default().stat(AsFd::as_fd(&fs::File::open(room.at("b")).unwrap())).unwrap().signature;
        let held = room.workspace().held.root().edit(&[(path("b"), Some(leaf))]).unwrap();
        Snapshot::of(held)
    };
    let edits = vec![(path("b"), room.workspace().held.root().get(&path("b")).copied())];
    room.workspace().log_done(0, &edits).unwrap();
    assert_eq!(room.reopen().rehashed, 0, "the same boot cannot see it");
    twin.pretend.lock().unwrap().boot_id = Some("two");
    let report = room.reopen();
    // What the log names was read; what lies behind the barrier was not.
    assert_eq!((report.rehashed, report.drifted), (2, vec![path("b")]));
    room.apply("a=2 b=2 c=1 d=1");
    room.expect("a=2 b=2 c=1 d=1");
    // A log that the power cut took away whole: the checkpoint's signatures do not fit, so nothing is believed.
    let log = fs::read_dir(room.state("")).unwrap().map(|e| e.unwrap().path());
    let log = log.into_iter().find(|p| p.file_name().unwrap().to_str().unwrap().starts_with("log-")).unwrap();
    fs::write(log, "").unwrap();
    twin.pretend.lock().unwrap().boot_id = Some("three");
    let report = room.reopen();
    assert_eq!((report.drifted, report.missing), (vec![], vec![]));
    assert_eq!(room.held(), snapshot(&files("a=2 c=1 d=1")).id());
    room.set("a=2 b=2 c=1 d=1");
}

/// Calls `maintain` until what it began has taken effect.
fn maintain(room: &mut Room) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let Room { workspace, fence, .. } = room;
    while workspace.as_mut().unwrap().maintain(fence).unwrap() {
        assert!(std::time::Instant::now() < deadline, "the checkpoint is never done");
        std::thread::yield_now();
    }
}

#[test]
fn work_goes_on_while_a_checkpoint_is_written() {
    let (mut room, twin) = Room::pretending(Pretend { boot_id: Some("one"), ..Pretend::default() });
    room.set("a=1 b=1 c=1");
    // Names make the log long.
    let long = |i: usize| format!("{}/{i}=1", "n".repeat(200));
    let many: Vec<String> = (0..400).map(long).collect();
    room.set(&format!("a=1 b=1 c=1 {}", many.join(" ")));
    let Room { workspace, fence, .. } = &mut room;
    assert!(workspace.as_mut().unwrap().maintain(fence).unwrap(), "a long log wants one");
    room.apply("a=2 b=1 d=1");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    // Unless the patch has done that already.
    while room.workspace().manifest.has_begun() {
        assert!(std::time::Instant::now() < deadline, "the checkpoint is never done");
        room.workspace().manifest.finish_checkpoint().unwrap();
        std::thread::yield_now();
    }
    room.expect("a=2 b=1 d=1");
    room.set("a=2 b=3 d=1");
    // In this boot nothing is read again, and the log has all that came since.
    assert_eq!(room.reopen().rehashed, 0);
    room.expect("a=2 b=3 d=1");
    assert_eq!(fs::read_dir(room.state("stage")).unwrap().count(), 1);
    // After a power cut only what came after the barrier is.
    twin.pretend.lock().unwrap().boot_id = Some("two");
    let report = room.reopen();
    assert_eq!((report.rehashed, report.drifted, report.missing), (3, vec![], vec![]));
    room.expect("a=2 b=3 d=1");
}

/// Makes the log longer by `mib`, and says nothing with it.
fn lengthen(room: &mut Room, mib: usize) {
    let path = vec![b'x'; 1 << 20];
    for _ in 0..mib {
        let outcomes = vec![Outcome { path: &path, leaf: None }];
        room.workspace().manifest.append(&Record::Done { generation: 0, outcomes }).unwrap();
    }
}

#[test]
fn a_checkpoint_needs_no_quiet_moment() {
    let (mut room, _) = Room::pretending(Pretend { boot_id: Some("one"), ..Pretend::default() });
    room.set("a=1 b=1");
    lengthen(&mut room, 20);
    assert!(!room.workspace().manifest.has_begun());
    room.apply("a=2 b=1");
    assert!(room.workspace().manifest.has_begun(), "a log far too long wants one at once");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let mut last = "";
    while room.workspace().manifest.has_begun() {
        assert!(std::time::Instant::now() < deadline, "the checkpoint is never done");
        last = if last == "a=3 b=1" { "a=4 b=1" } else { "a=3 b=1" };
        room.apply(last);
    }
    assert!(!room.workspace().manifest.is_overdue());
    room.expect(last);
    assert_eq!(room.reopen().rehashed, 0);
    room.set(last);
}

#[test]
fn a_checkpoint_that_takes_too_long_is_given_up() {
    let (mut room, _) = Room::pretending(Pretend { boot_id: Some("one"), ..Pretend::default() });
    room.set("a=1");
    lengthen(&mut room, 17);
    room.apply("a=2");
    assert!(room.workspace().manifest.has_begun());
    lengthen(&mut room, 17);
    assert!(!room.workspace().manifest.has_begun());
    room.expect("a=2");
    room.apply("a=3");
    assert!(room.workspace().manifest.has_begun(), "there is another");
    maintain(&mut room);
    assert!(!room.workspace().manifest.is_overdue());
    assert_eq!(room.reopen().rehashed, 0);
    room.set("a=3");
}

#[test]
fn a_checkpoint_that_nobody_finishes_harms_nothing() {
    let mut room = Room::with("a=1");
    let many: Vec<String> = (0..400).map(|i| format!("{}/{i}=1", "n".repeat(200))).collect();
    room.set(&format!("a=1 {}", many.join(" ")));
    let Room { workspace, fence, .. } = &mut room;
    assert!(workspace.as_mut().unwrap().maintain(fence).unwrap());
    room.apply("a=2");
    let report = room.reopen();
    assert_eq!((report.rehashed, report.drifted, report.missing), (0, vec![], vec![]));
    room.expect("a=2");
    room.set("a=3");
    room.workspace.take().unwrap().close(&room.fence).unwrap();
    room.reopen();
    room.expect("a=3");
}

#[test]
fn case_twins_are_refused_where_names_fold() {
    let folding = Folding { case: true, normalisation: true };
    let (mut room, _) = Room::pretending(Pretend { folding: Some(folding), ..Pretend::default() });
    room.set("Readme=1 src/a=1");
    let applied = room.apply("Readme=1 README=2 src/a=1 src/b=1 src/B=2 Src/c=1 e\u{301}=1 \u{e9}=2");
    let refused: Vec<_> = applied.refused.iter().map(|(p, why)| format!("{p}: {why}")).collect();
    assert_eq!(
        refused,
        [
            "README: case twin of Readme",
            "Src/c: case twin of src",
            "src/b: case twin of src/B",
            "\u{e9}: case twin of e\u{301}"
        ]
    );
    assert_eq!(on_disk(&room.at("")), files("Readme=1 src/a=1 src/B=2 e\u{301}=1"));
    room.workspace().discard_stage();
    assert!(stage_is_empty(&room.at("")));
    // Edits of what is there are no twins of themselves, nor is a name that takes another's place.
    room.set("Readme=3 src/a=1 src/B=2 e\u{301}=1");
    room.set("README=3 Src/a=1 src2=1 e\u{301}=1");
}

#[test]
fn space_is_asked_of_the_file_system() {
    let space = Space { total: 100 << 20, available: 6 << 20 };
    let (mut room, twin) = Room::pretending(Pretend { space: Some(space), ..Pretend::default() });
    room.workspace().check_space(1 << 20).unwrap();
    room.workspace().check_space((1 << 20) + 1).unwrap_err();
    twin.pretend.lock().unwrap().space = Some(Space { total: 1 << 40, available: 1 << 40 });
    room.workspace().check_space(1 << 39).unwrap();
}

// ---- laws

/// Few names, so that files, directories and symlinks meet.
fn random_files(rng: &Rng) -> Files {
    let names = ["a", "b", "a-", "c"];
    let mut out = Files::new();
    for _ in 0..rng.below(9) {
        let depth = 1 + rng.below(3);
        let parts: Vec<&str> = (0..depth).map(|_| names[rng.below(4)]).collect();
        let name = parts.join("/");
        let above = |other: &str| name.starts_with(&format!("{other}/"));
        let below = |other: &str| other.starts_with(&format!("{name}/"));
        if out.keys().any(|other| above(other) || below(other)) {
            continue;
        }
        let mode = [Mode::File, Mode::File, Mode::Executable, Mode::Symlink][rng.below(4)];
        let bytes = [&b"1"[..], b"2", b"a", b"../out"][rng.below(4)].to_vec();
        out.insert(name, (mode, bytes));
    }
    out
}

/// xorshift64*: enough to shuffle test data.
struct Rng(Cell<u64>);

impl Rng {
    fn below(&self, n: usize) -> usize {
        let mut x = self.0.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0.set(x);
        (x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }
}

#[test]
fn random_steps_end_exactly_where_they_should() {
    let seed = 20_26;
    let rng = Rng(Cell::new(seed));
    let mut room = Room::new();
    for round in 0..400 {
        let next = random_files(&rng);
        let before = on_disk(&room.at(""));
        let stats: Vec<_> = before.keys().map(|p| (p.clone(), stat(&room.at(p)))).collect();
        let applied = room.try_apply(&next).unwrap();
        assert_eq!((applied.kept, applied.refused), (vec![], vec![]), "seed {seed} round {round}");
        assert_eq!(on_disk(&room.at("")), next, "seed {seed} round {round}");
        assert_eq!(room.held(), snapshot(&next).id(), "seed {seed} round {round}");
        for (p, was) in stats.into_iter().filter(|(p, _)| next.get(p) == before.get(p)) {
            assert_eq!(stat(&room.at(&p)), was, "seed {seed} round {round} {p}");
        }
        if rng.below(4) == 0 {
            let report = room.reopen();
            assert_eq!((report.drifted, report.missing, report.kept), (vec![], vec![], vec![]));
            assert_eq!(room.held(), snapshot(&next).id(), "seed {seed} round {round}");
        }
        assert!(empty_dirs(&room.at("")).is_empty(), "seed {seed} round {round}");
    }
    assert_eq!(room.recovered(), []);
}

fn empty_dirs(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(root).unwrap().map(Result::unwrap).filter(|e| e.file_name() != ".git") {
        if entry.metadata().unwrap().is_dir() {
            if fs::read_dir(entry.path()).unwrap().next().is_none() {
                found.insert(entry.path());
            }
            found.extend(empty_dirs(&entry.path()));
        }
    }
    found
}
