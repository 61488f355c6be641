//! Random changes to a working tree, from a seed.
//!
//! Names come from a small pool that mixes directories and files, so that changes collide: a file where a directory
//! was, a link where a file was, a rename onto something else. Each change says what it did and which paths it may
//! have touched. The generator never follows a link and never leaves the working tree. The directory [`BALLAST`] is
//! tracked and never changed: it must stay untouched on every server, and keeps the share of missing files low.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use fastrand::Rng;
use rustix::fs::{FileType, Mode};

use crate::git::Repo;
use crate::tree;

mod history;

/// Tracked files that no change touches.
pub const BALLAST: &str = "ballast";
const BALLAST_FILES: usize = 300;

/// What a socket address has room for.
const SOCKET_NAME_MAX: usize = 107;

const DIRS: &[&str] = &["", "d1", "d1/e", "d2", "d2/deep/er", "with space"];

/// With [`DIRS`], at most 40 names.
const NAMES: &[&[u8]] = &[
    b"a.txt",
    b"b.txt",
    b"Makefile",
    b"UPPER",
    b"upper",
    b"d1",
    b"d2",
    b"e",
    b"-dash",
    b"--help",
    b".hidden",
    b" lead and trail ",
    b"new\nline",
    b"cr\r",
    b"tab\t",
    b"back\\slash",
    b"\"quoted\"",
    b"*",
    b"#hash",
    b"!bang",
    b"~",
    b"bad-\xff\xfe",
    "caf\u{e9}".as_bytes(),
    "cafe\u{301}".as_bytes(),
    b"x.o",
    b"y.log",
    b"build",
    b"keep.o",
    b"big.bin",
    b"a-rather-long-name-that-still-fits-into-a-single-component-of-any-file-system-we-care-about.txt",
];

const IGNORE_LINES: &[&str] = &[
    "*.o",
    "*.log",
    "build",
    "/d2/deep/",
    "b.txt",
    "!keep.o",
    "UPPER",
    "d1/e/*",
    "# only a remark",
    "/tiny-1*",
];

/// The last two lead out of the working tree, on the client and on a server.
const LINK_TARGETS: &[&str] = &[
    "a.txt",
    "d1",
    "../a.txt",
    "nowhere/at/all",
    "/nonexistent/target",
    ".",
    "x.o",
    "e",
    "../outside",
    "../../outside/file",
];

/// One change that was made.
#[derive(Debug, Clone)]
pub struct Op {
    /// For the failure log.
    pub text: String,
    /// Paths it may have changed, each with everything below it.
    pub touched: Vec<PathBuf>,
    /// Git changed many files one after the other, ignore rules among them: in between, any path may have been
    /// ignored for a moment.
    pub many_steps: bool,
}

/// Makes changes, one at a time. Equal seeds on equal trees make equal changes.
#[derive(Debug)]
pub struct Ops {
    rng: Rng,
    repo: Repo,
    touched: Vec<PathBuf>,
    many_steps: bool,
    /// Earlier contents of each path, for reverts.
    past: BTreeMap<PathBuf, Vec<Vec<u8>>>,
    /// Whether the file system takes names that are no UTF-8.
    any_bytes: bool,
    /// The commit of the ballast; empty where there was none to begin with.
    root_commit: String,
}

type Change = fn(&mut Ops) -> String;

const CHANGES: &[(u32, Change)] = &[
    (12, Ops::write_file),
    (5, Ops::append),
    (3, Ops::truncate),
    (5, Ops::rewrite_same_size),
    (7, Ops::save_by_rename),
    (5, Ops::create_deep),
    (9, Ops::delete),
    (3, Ops::delete_dir),
    (6, Ops::rename_file),
    (4, Ops::rename_dir),
    (3, Ops::swap_two),
    (6, Ops::chmod),
    (6, Ops::symlink),
    (7, Ops::change_type),
    (2, Ops::change_case),
    (5, Ops::edit_ignore_rules),
    (2, Ops::edit_exclude),
    (4, Ops::write_ignored),
    (2, Ops::tiny_files),
    (2, Ops::big_file),
    (2, Ops::edit_big_file),
    (1, Ops::sparse_file),
    (5, Ops::revert),
    (2, Ops::touch),
    (1, Ops::fifo),
    (1, Ops::socket),
    (1, Ops::nested_repo),
    (2, Ops::no_nested_repo),
    (1, Ops::empty_dir),
    (5, Ops::git_index),
    (4, Ops::git_commit),
    (3, Ops::git_switch),
    (2, Ops::git_reset),
    (3, Ops::git_stash),
    (2, Ops::git_merge),
    (2, Ops::git_rebase),
    (1, Ops::git_cherry_pick),
    (3, Ops::settle),
    (2, Ops::git_refs),
    (1, Ops::git_worktree),
    (1, Ops::git_submodule),
];

impl Ops {
    pub fn new(repo: &Repo, seed: u64) -> Self {
        let any_bytes = takes_any_bytes(repo);
        Self {
            rng: Rng::with_seed(seed),
            repo: repo.clone(),
            touched: Vec::new(),
            many_steps: false,
            past: BTreeMap::new(),
            any_bytes,
            root_commit: String::from_utf8_lossy(&repo.try_git(["rev-parse", "HEAD"]).stdout)
                .trim()
                .to_owned(),
        }
    }

    /// Commits the files that never change. Once, before anything else.
    pub fn plant_ballast(repo: &Repo) {
        for n in 0..BALLAST_FILES {
            repo.write(format!("{BALLAST}/{}/{n}", n % 7), format!("ballast {n}\n"));
        }
        repo.commit_all("ballast");
        // One pack instead of hundreds of objects: the repository is copied at every quiet point.
        repo.git(["gc", "-q"]);
    }

    /// Makes one change.
    pub fn step(&mut self) -> Op {
        let total: u32 = CHANGES.iter().map(|(weight, _)| weight).sum();
        let mut roll = self.rng.u32(..total);
        let picked = CHANGES.iter().find(|(weight, _)| {
            let hit = roll < *weight;
            roll = roll.saturating_sub(*weight);
            hit
        });
        let (_, change) = picked.expect("the roll is below the sum of the weights");
        let text = change(self);
        let many_steps = std::mem::take(&mut self.many_steps);
        Op { text, touched: std::mem::take(&mut self.touched), many_steps }
    }

    /// Tells git's index which files are gone, if so many are that the brake would rightly ask a person.
    pub fn keep_below_the_brake(&mut self) -> Option<String> {
        let listed = self.repo.git(["ls-files", "-z"]).iter().filter(|b| **b == 0).count();
        let gone = self.repo.git(["ls-files", "-d", "-z"]);
        let gone: Vec<&OsStr> =
            gone.split(|b| *b == 0).filter(|path| !path.is_empty()).map(OsStr::from_bytes).collect();
        // Well below: git lists a path in conflict up to three times, and a pipe at a tracked path as there.
        if gone.len() < 20 || gone.len() * 4 <= listed {
            return None;
        }
        // Not `add -u`: that does nothing at all if a single path is one it cannot add, such as a pipe.
        let forget = ["update-index", "--force-remove", "--"].map(OsStr::new);
        self.repo.git(forget.iter().chain(&gone));
        Some(format!("{} files that are gone leave the index", gone.len()))
    }

    /// A path of the pool, chosen by another generator: the changes to come stay the same.
    pub fn name(&self, rng: &mut Rng) -> PathBuf {
        let name = std::str::from_utf8(NAMES[rng.usize(..NAMES.len())]).unwrap_or("x.o");
        PathBuf::from(DIRS[rng.usize(..DIRS.len())]).join(name)
    }

    /// A random number below `bound`, from the same seed as the changes.
    pub fn below(&mut self, bound: usize) -> usize {
        self.rng.usize(..bound)
    }

    fn write_file(&mut self) -> String {
        let path = self.any_path();
        let bytes = self.small_bytes();
        self.put(&path, &bytes);
        format!("write {path:?}, {} bytes", bytes.len())
    }

    fn append(&mut self) -> String {
        let path = self.some_file();
        let bytes = self.small_bytes();
        self.touch_path(&path);
        let opened = OpenOptions::new().append(true).open(self.repo.path(&path));
        opened.and_then(|mut file| file.write_all(&bytes)).unwrap_or_else(|e| panic!("append {path:?}: {e}"));
        format!("append {} bytes to {path:?}", bytes.len())
    }

    fn truncate(&mut self) -> String {
        let path = self.some_file();
        let old = self.size(&path);
        let new = self.rng.u64(..=old);
        self.touch_path(&path);
        let opened = OpenOptions::new().write(true).open(self.repo.path(&path));
        opened.and_then(|file| file.set_len(new)).unwrap_or_else(|e| panic!("truncate {path:?}: {e}"));
        format!("truncate {path:?} from {old} to {new}")
    }

    fn rewrite_same_size(&mut self) -> String {
        let path = self.some_file();
        let size = usize::try_from(self.size(&path)).expect("files are small");
        let bytes = self.bytes(size);
        self.overwrite_at(&path, 0, &bytes);
        format!("rewrite {path:?} in place, {size} bytes as before")
    }

    fn save_by_rename(&mut self) -> String {
        let path = if self.rng.bool() { self.some_file() } else { self.any_path() };
        let bytes = self.small_bytes();
        self.make_room(&path);
        self.replace(&path, &bytes);
        format!("save {path:?} by rename, {} bytes", bytes.len())
    }

    fn create_deep(&mut self) -> String {
        let dir = self.pick_dir().join(format!("new-{}", self.rng.u8(..4))).join("very/deep");
        for name in ["one", "two", "three"] {
            let bytes = self.small_bytes();
            self.put(&dir.join(name), &bytes);
        }
        format!("create three files in {dir:?}")
    }

    fn delete(&mut self) -> String {
        let path = self.some_leaf();
        self.remove(&path);
        format!("delete {path:?}")
    }

    fn delete_dir(&mut self) -> String {
        match self.some_dir() {
            Some(dir) => {
                self.remove(&dir);
                format!("rm -rf {dir:?}")
            }
            None => self.write_file(),
        }
    }

    fn rename_file(&mut self) -> String {
        let (from, to) = (self.some_leaf(), self.any_path());
        self.rename(&from, &to)
    }

    fn rename_dir(&mut self) -> String {
        let Some(from) = self.some_dir() else { return self.write_file() };
        let to = self.any_path();
        if to.starts_with(&from) || from.starts_with(&to) {
            return self.write_file();
        }
        self.rename(&from, &to)
    }

    fn swap_two(&mut self) -> String {
        let (a, b) = (self.some_leaf(), self.some_leaf());
        if a == b {
            return self.write_file();
        }
        let aside = PathBuf::from(".swap-aside");
        for (from, to) in [(&a, &aside), (&b, &a), (&aside, &b)] {
            self.touch_path(from);
            self.repo.rename(from, to);
        }
        format!("swap {a:?} and {b:?}")
    }

    fn chmod(&mut self) -> String {
        let path = self.some_file();
        // The last two: execute bits that are not the owner's, and only the owner's.
        let modes = [0o644, 0o755, 0o600, 0o700, 0o655, 0o744];
        let mode = modes[self.below(modes.len())];
        self.touch_path(&path);
        self.repo.chmod(&path, mode);
        format!("chmod {mode:o} {path:?}")
    }

    fn symlink(&mut self) -> String {
        let path = if self.rng.bool() { self.some_leaf() } else { self.any_path() };
        let target = self.link_target();
        self.put_link(&path, &target);
        format!("symlink {path:?} to {target:?}")
    }

    fn change_type(&mut self) -> String {
        let path = if self.rng.bool() { self.some_leaf() } else { self.any_path() };
        let on_disk = self.repo.path(&path);
        let was_dir = on_disk.is_dir() && !on_disk.is_symlink();
        match self.rng.u8(..3) {
            0 => {
                let target = self.link_target();
                self.put_link(&path, &target);
                format!("turn {path:?} into a link")
            }
            1 if !was_dir => {
                let bytes = self.small_bytes();
                self.put(&path.join("a.txt"), &bytes);
                format!("turn {path:?} into a directory")
            }
            _ => {
                let bytes = self.small_bytes();
                self.put(&path, &bytes);
                format!("turn {path:?} into a file")
            }
        }
    }

    /// Always by rename, so that no half-written rules can be met: which paths were ever ignored stays known.
    fn edit_ignore_rules(&mut self) -> String {
        let path = PathBuf::from(if self.rng.u8(..4) == 0 { "d1/.gitignore" } else { ".gitignore" });
        let lines: Vec<&str> = IGNORE_LINES.iter().copied().filter(|_| self.rng.u8(..3) == 0).collect();
        self.make_room(&path);
        self.replace(&path, format!("{}\n", lines.join("\n")).as_bytes());
        format!("{path:?} now says {lines:?}")
    }

    fn edit_exclude(&mut self) -> String {
        let lines: Vec<&str> = IGNORE_LINES.iter().copied().filter(|_| self.rng.u8(..5) == 0).collect();
        let info = self.repo.path(".git/info");
        fs::create_dir_all(&info).unwrap_or_else(|e| panic!("mkdir {}: {e}", info.display()));
        let aside = info.join("exclude-aside");
        let wrote = fs::write(&aside, format!("{}\n", lines.join("\n")));
        wrote
            .and_then(|()| fs::rename(&aside, info.join("exclude")))
            .unwrap_or_else(|e| panic!("info/exclude: {e}"));
        format!("info/exclude now says {lines:?}")
    }

    fn change_case(&mut self) -> String {
        let from = self.some_leaf();
        let name = from.file_name().expect("leaves have names").as_bytes();
        let other = if name.iter().any(u8::is_ascii_lowercase) {
            name.to_ascii_uppercase()
        } else {
            name.to_ascii_lowercase()
        };
        let to = from.with_file_name(OsStr::from_bytes(&other));
        // `.gitignore` in capitals is a name like any other; the other way round would be an edit of ignore rules.
        if to.file_name() == Some(OsStr::new(".gitignore")) || is_git(&to) {
            return self.write_file();
        }
        self.rename(&from, &to)
    }

    /// The directory's files that are not tracked leave the set with one rename.
    fn nested_repo(&mut self) -> String {
        let Some(dir) = self.some_dir() else { return self.write_file() };
        if self.repo.path(&dir).join(".git").symlink_metadata().is_ok() {
            return self.write_file();
        }
        let fresh = self.repo.path(".git/fresh");
        let nested = Repo::init(&fresh, self.repo.home());
        let has_commit = self.rng.bool();
        if has_commit {
            nested.git(["commit", "-q", "--allow-empty", "-m", "nested"]);
        }
        self.touch_path(&dir);
        let moved = fs::rename(fresh.join(".git"), self.repo.path(&dir).join(".git"));
        moved.and_then(|()| fs::remove_dir(&fresh)).unwrap_or_else(|e| panic!("nest in {dir:?}: {e}"));
        format!("git init {dir:?}, {}", if has_commit { "with a commit" } else { "no commit" })
    }

    /// Ends a nested repository, with one rename; its files join the set.
    fn no_nested_repo(&mut self) -> String {
        let dirs: Vec<PathBuf> =
            tree::dirs(self.repo.root()).into_iter().filter(|d| d.ends_with(".git")).collect();
        let Some(git_dir) = self.choose(&dirs) else { return self.write_file() };
        let dir = git_dir.parent().expect("below a directory").to_path_buf();
        self.touch_path(&dir);
        let retired = self.repo.path(".git/retired");
        let moved = fs::rename(self.repo.path(&git_dir), &retired);
        moved
            .and_then(|()| fs::remove_dir_all(&retired))
            .unwrap_or_else(|e| panic!("retire {git_dir:?}: {e}"));
        format!("{dir:?} is no repository any more")
    }

    fn write_ignored(&mut self) -> String {
        let name: &[u8] = if self.rng.bool() { b"x.o" } else { b"y.log" };
        let path = self.pick_dir().join(OsStr::from_bytes(name));
        let bytes = self.small_bytes();
        self.put(&path, &bytes);
        format!("write {path:?}, often ignored")
    }

    fn tiny_files(&mut self) -> String {
        let dir = self.pick_dir();
        for n in 0..50 {
            self.put(&dir.join(format!("tiny-{n}")), format!("{n}\n").as_bytes());
        }
        format!("write 50 tiny files in {dir:?}")
    }

    fn big_file(&mut self) -> String {
        let path = self.pick_dir().join("big.bin");
        let size = self.rng.usize(1 << 20..3 << 20);
        let bytes = self.bytes(size);
        self.put(&path, &bytes);
        format!("write {path:?}, {size} bytes")
    }

    fn edit_big_file(&mut self) -> String {
        let big = self
            .leaves()
            .into_iter()
            .filter(|p| self.is_file(p) && self.size(p) > 1 << 20)
            .collect::<Vec<_>>();
        let Some(path) = self.choose(&big) else { return self.big_file() };
        let size = self.size(&path);
        let at = self.rng.u64(..size - 1000);
        let bytes = self.bytes(1000);
        self.overwrite_at(&path, at, &bytes);
        format!("overwrite 1000 bytes of {path:?} at {at}")
    }

    /// A hole with a few bytes before and behind it.
    fn sparse_file(&mut self) -> String {
        let path = self.pick_dir().join("sparse.img");
        let size = self.rng.u64(1 << 20..6 << 20);
        self.put(&path, b"head");
        let opened = OpenOptions::new().append(true).open(self.repo.path(&path));
        let filled = opened.and_then(|mut file| {
            file.set_len(size)?;
            file.write_all(b"tail")
        });
        filled.unwrap_or_else(|e| panic!("sparse {path:?}: {e}"));
        format!("write {path:?}, a hole of {size} bytes")
    }

    fn revert(&mut self) -> String {
        let known: Vec<PathBuf> = self.past.keys().cloned().collect();
        let Some(path) = self.choose(&known) else { return self.write_file() };
        let versions = &self.past[&path];
        let bytes = versions[self.rng.usize(..versions.len())].clone();
        self.put(&path, &bytes);
        format!("revert {path:?} to {} earlier bytes", bytes.len())
    }

    fn touch(&mut self) -> String {
        let path = self.some_file();
        let opened = OpenOptions::new().write(true).open(self.repo.path(&path));
        let now = std::time::SystemTime::now();
        opened.and_then(|file| file.set_modified(now)).unwrap_or_else(|e| panic!("touch {path:?}: {e}"));
        format!("touch {path:?}")
    }

    fn fifo(&mut self) -> String {
        let path = self.any_path();
        self.make_room(&path);
        self.remove(&path);
        let mode = Mode::from_raw_mode(0o644);
        rustix::fs::mknodat(rustix::fs::CWD, self.repo.path(&path), FileType::Fifo, mode, 0)
            .unwrap_or_else(|e| panic!("mkfifo {path:?}: {e}"));
        format!("mkfifo {path:?}")
    }

    fn socket(&mut self) -> String {
        let path = self.any_path();
        let on_disk = self.repo.path(&path);
        if on_disk.as_os_str().len() > SOCKET_NAME_MAX {
            return self.fifo();
        }
        self.make_room(&path);
        self.remove(&path);
        self.touch_path(&path);
        // Nobody listens any more as soon as it is made; the name stays.
        UnixListener::bind(&on_disk).unwrap_or_else(|e| panic!("bind {path:?}: {e}"));
        format!("make {path:?} a socket")
    }

    fn empty_dir(&mut self) -> String {
        let path = self.any_path().join("hollow");
        self.make_room(&path);
        if self.repo.path(&path).symlink_metadata().is_err() {
            fs::create_dir(self.repo.path(&path)).unwrap_or_else(|e| panic!("mkdir {path:?}: {e}"));
        }
        format!("mkdir {path:?}")
    }

    fn pick_dir(&mut self) -> PathBuf {
        PathBuf::from(DIRS[self.rng.usize(..DIRS.len())])
    }

    /// A path that may or may not exist, as a file, a link or a directory.
    fn any_path(&mut self) -> PathBuf {
        loop {
            let name = NAMES[self.rng.usize(..NAMES.len())];
            if self.any_bytes || std::str::from_utf8(name).is_ok() {
                return self.pick_dir().join(OsStr::from_bytes(name));
            }
        }
    }

    /// Every file and link outside the ballast, in a fixed order. Ignore files are edited by one change alone, the list
    /// of submodules by git.
    fn leaves(&self) -> Vec<PathBuf> {
        let may_change = |p: &PathBuf| {
            let is_gits =
                [".gitignore", ".gitmodules"].map(OsStr::new).contains(&p.file_name().unwrap_or_default());
            !p.starts_with(BALLAST) && !is_gits && !is_git(p)
        };
        tree::names(self.repo.root()).into_iter().filter(may_change).collect()
    }

    fn choose(&mut self, paths: &[PathBuf]) -> Option<PathBuf> {
        (!paths.is_empty()).then(|| paths[self.rng.usize(..paths.len())].clone())
    }

    /// An existing file or link; one is made if there is none.
    fn some_leaf(&mut self) -> PathBuf {
        let leaves = self.leaves();
        self.choose(&leaves).unwrap_or_else(|| self.a_new_file())
    }

    /// An existing regular file; one is made if there is none.
    fn some_file(&mut self) -> PathBuf {
        let files: Vec<PathBuf> = self.leaves().into_iter().filter(|p| self.is_file(p)).collect();
        self.choose(&files).unwrap_or_else(|| self.a_new_file())
    }

    fn a_new_file(&mut self) -> PathBuf {
        let path = PathBuf::from("a.txt");
        self.put(&path, b"new\n");
        path
    }

    /// An existing directory outside the ballast.
    fn some_dir(&mut self) -> Option<PathBuf> {
        let dirs: Vec<PathBuf> =
            self.leaves().iter().flat_map(|p| p.ancestors().skip(1).map(PathBuf::from)).collect();
        let mut dirs: Vec<PathBuf> = dirs.into_iter().filter(|d| !d.as_os_str().is_empty()).collect();
        dirs.sort();
        dirs.dedup();
        self.choose(&dirs)
    }

    fn link_target(&mut self) -> String {
        LINK_TARGETS[self.rng.usize(..LINK_TARGETS.len())].to_owned()
    }

    fn small_bytes(&mut self) -> Vec<u8> {
        let size = match self.rng.u8(..10) {
            0 => 0,
            1 => self.rng.usize(..50_000),
            _ => self.rng.usize(1..300),
        };
        self.bytes(size)
    }

    fn bytes(&mut self, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        self.rng.fill(&mut bytes);
        if self.rng.bool() {
            // Half of them look like text, line ends of all kinds included.
            for byte in &mut bytes {
                *byte = b"abcdefghijklmnop \t\r\n"[usize::from(*byte) % 20];
            }
        }
        bytes
    }

    fn is_file(&self, path: &Path) -> bool {
        fs::symlink_metadata(self.repo.path(path)).is_ok_and(|meta| meta.is_file())
    }

    fn size(&self, path: &Path) -> u64 {
        fs::symlink_metadata(self.repo.path(path)).unwrap_or_else(|e| panic!("lstat {path:?}: {e}")).len()
    }

    fn touch_path(&mut self, path: &Path) {
        self.touched.push(path.to_path_buf());
    }

    /// Writes a file in place, whatever was at its path.
    fn put(&mut self, path: &Path, bytes: &[u8]) {
        self.make_room(path);
        if !self.is_file(path) {
            self.remove(path);
        }
        self.touch_path(path);
        fs::write(self.repo.path(path), bytes).unwrap_or_else(|e| panic!("write {path:?}: {e}"));
        let versions = self.past.entry(path.to_path_buf()).or_default();
        if versions.len() < 4 && bytes.len() < 100_000 {
            versions.push(bytes.to_vec());
        }
        if versions.is_empty() {
            self.past.remove(path);
        }
    }

    /// Writes beside a file and renames over it, as careful editors do.
    fn replace(&mut self, path: &Path, bytes: &[u8]) {
        if self.repo.path(path).is_dir() && !self.repo.path(path).is_symlink() {
            self.remove(path);
        }
        let aside = path.with_file_name(".save-aside");
        self.touch_path(&aside);
        self.touch_path(path);
        fs::write(self.repo.path(&aside), bytes).unwrap_or_else(|e| panic!("write {aside:?}: {e}"));
        self.repo.rename(&aside, path);
    }

    fn overwrite_at(&mut self, path: &Path, at: u64, bytes: &[u8]) {
        self.touch_path(path);
        let opened = OpenOptions::new().write(true).open(self.repo.path(path));
        opened
            .and_then(|mut file| {
                file.seek(SeekFrom::Start(at))?;
                file.write_all(bytes)
            })
            .unwrap_or_else(|e| panic!("overwrite {path:?}: {e}"));
    }

    fn put_link(&mut self, path: &Path, target: &str) {
        self.make_room(path);
        self.remove(path);
        self.touch_path(path);
        self.repo.symlink(target, path);
    }

    /// Makes every directory above `path` a real one, removing what is in the way.
    fn make_room(&mut self, path: &Path) {
        let parents: Vec<&Path> = path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
        for parent in parents.into_iter().rev() {
            let is_dir = fs::symlink_metadata(self.repo.path(parent)).is_ok_and(|meta| meta.is_dir());
            if !is_dir {
                self.remove(parent);
                fs::create_dir(self.repo.path(parent)).unwrap_or_else(|e| panic!("mkdir {parent:?}: {e}"));
            }
        }
    }

    /// Removes whatever is at a path, if anything.
    fn remove(&mut self, path: &Path) {
        let on_disk = self.repo.path(path);
        let Ok(meta) = fs::symlink_metadata(&on_disk) else { return };
        self.touch_path(path);
        let removed = if meta.is_dir() { fs::remove_dir_all(&on_disk) } else { fs::remove_file(&on_disk) };
        removed.unwrap_or_else(|e| panic!("remove {path:?}: {e}"));
    }

    /// Renames, onto whatever is there. Making room can remove the source itself; then that was the change.
    fn rename(&mut self, from: &Path, to: &Path) -> String {
        if from == to {
            return self.touch();
        }
        self.make_room(to);
        let is_dir = |path: &Path| fs::symlink_metadata(self.repo.path(path)).is_ok_and(|meta| meta.is_dir());
        if is_dir(from) || is_dir(to) {
            self.remove(to);
        }
        self.touch_path(from);
        self.touch_path(to);
        let done = fs::rename(self.repo.path(from), self.repo.path(to));
        let outcome = done.err().map_or_else(String::new, |e| format!(" ({e})"));
        format!("rename {from:?} to {to:?}{outcome}")
    }
}

/// True below a nested repository's git directory.
fn is_git(path: &Path) -> bool {
    path.components().any(|c| c.as_os_str().eq_ignore_ascii_case(".git"))
}

fn takes_any_bytes(repo: &Repo) -> bool {
    let probe = repo.path(OsStr::from_bytes(b".git/probe-\xff"));
    let taken = fs::write(&probe, "").is_ok();
    // Fails only where making it failed.
    let _ = fs::remove_file(&probe);
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Sandbox;
    use crate::oracle::Oracle;

    fn playground(name: &str) -> (Sandbox, Repo) {
        let sandbox = Sandbox::new(name);
        let repo = Repo::init(&sandbox.path("app"), &sandbox.path("home"));
        Ops::plant_ballast(&repo);
        (sandbox, repo)
    }

    #[test]
    fn the_pool_of_names_is_small() {
        assert!(DIRS.len() + NAMES.len() <= 40);
    }

    #[test]
    fn one_seed_makes_one_history() {
        let texts = |name| {
            let (_sandbox, repo) = playground(name);
            let mut ops = Ops::new(&repo, 7);
            (0..300).map(|_| ops.step().text).collect::<Vec<_>>()
        };
        assert_eq!(texts("ops-once"), texts("ops-twice"));
    }

    #[test]
    fn changes_stay_inside_and_say_what_they_touched() {
        let (sandbox, repo) = playground("ops-inside");
        let oracle = Oracle::new(&repo, &sandbox.path("scratch"));
        let mut ops = Ops::new(&repo, 3);
        let mut before = tree::walk(repo.root());
        for _ in 0..300 {
            let op = ops.step();
            let after = tree::walk(repo.root());
            let told = |path: &Path| op.touched.iter().any(|t| path.starts_with(t));
            let silent: Vec<_> = tree::touched(&before, &after, |path| !told(path))
                .into_iter()
                .filter(|path| {
                    after.files.get(*path).map(|n| &n.bytes) != before.files.get(*path).map(|n| &n.bytes)
                })
                .collect();
            assert!(silent.is_empty(), "{} also changed {silent:?}", op.text);
            before = after;
        }
        assert!(before.files.keys().filter(|p| p.starts_with(BALLAST)).count() == BALLAST_FILES);
        let outside: Vec<_> =
            fs::read_dir(sandbox.path("")).expect("ours").flatten().map(|e| e.file_name()).collect();
        assert_eq!(outside.len(), 3, "app, home and scratch: {outside:?}");
        assert!(oracle.expect(repo.root()).files.len() > BALLAST_FILES);
    }
}
