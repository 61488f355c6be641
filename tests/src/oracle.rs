//! What a server must hold, decided by git and `lstat` alone.
//!
//! The set is `git ls-files -co --exclude-standard` of a working tree, less what is no file or symlink there (deleted
//! paths, gitlinks, nested repositories, sockets), less paths below a symlinked directory, less names git refuses. Its
//! name, the patch id, is the git tree id of those paths with their bytes as they are on disk.
//!
//! Nothing is written into the repository under test: hashing, the index and the tree live in a scratch git directory.
//! `docs/patch-id.sh` computes the same id in another way, and a test compares the two.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::git::{self, Repo};

/// What a path of the set is. Git knows no other kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    File,
    /// By the owner's execute bit.
    Executable,
    Symlink,
}

impl Mode {
    pub fn octal(self) -> &'static str {
        match self {
            Mode::File => "100644",
            Mode::Executable => "100755",
            Mode::Symlink => "120000",
        }
    }

    /// Reads what `lstat` said; `None` for what git cannot track.
    pub fn of(meta: &fs::Metadata) -> Option<Mode> {
        if meta.is_symlink() {
            Some(Mode::Symlink)
        } else if meta.is_file() {
            Some(if meta.permissions().mode() & 0o100 == 0 { Mode::File } else { Mode::Executable })
        } else {
            None
        }
    }
}

/// Names a whole set of files: their git tree id, in hexadecimal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PatchId(pub String);

impl fmt::Display for PatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One path of the set: its kind, its bytes (a link's are its target) and their git blob id.
#[derive(Clone, PartialEq, Eq)]
pub struct Blob {
    pub mode: Mode,
    pub bytes: Vec<u8>,
    pub id: String,
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({} bytes)", self.mode.octal(), self.id, self.bytes.len())
    }
}

/// What every server of a working tree must hold.
#[derive(Debug, Clone)]
pub struct Expected {
    pub id: PatchId,
    pub files: BTreeMap<PathBuf, Blob>,
}

/// Asks git about one repository, through a scratch directory of its own.
#[derive(Debug)]
pub struct Oracle {
    scratch: PathBuf,
    home: PathBuf,
    /// `core.fileMode`: without it the disk's execute bits mean nothing and the index decides.
    trust_execute_bit: bool,
    next_index: AtomicU64,
}

/// One line of `git ls-files`.
#[derive(Debug, PartialEq, Eq)]
struct Listed {
    path: PathBuf,
    /// The mode in the index, `None` for untracked paths.
    index_mode: Option<u32>,
}

impl Oracle {
    /// Prepares `scratch`, which must not exist yet, for questions about `repo`.
    pub fn new(repo: &Repo, scratch: &Path) -> Self {
        let format = text(repo.git(["rev-parse", "--show-object-format"]));
        let bare = ["--bare", "--object-format", format.trim()];
        Repo::init_with(scratch, repo.home(), &bare);
        let file_mode = repo.try_git(["config", "--bool", "core.fileMode"]);
        Self {
            scratch: scratch.to_path_buf(),
            home: repo.home().to_path_buf(),
            trust_execute_bit: file_mode.stdout != b"false\n",
            next_index: AtomicU64::new(0),
        }
    }

    /// The set of the working tree at `root` (the repository or a copy of it), without contents. Names git would
    /// refuse are still in it; [`Oracle::expect`] leaves them out.
    pub fn paths(&self, root: &Path) -> BTreeMap<PathBuf, Mode> {
        let mut list = git::command(&self.home);
        // A repository under test may name a program there.
        list.arg("-C").arg(root).args(["-c", "core.fsmonitor=false"]);
        list.args(["ls-files", "-s", "-o", "-t", "--exclude-standard", "-z"]);
        let listed = parse_listing(&git::run(list.env("GIT_OPTIONAL_LOCKS", "0")));
        let mut links = LinkedDirs::new(root);
        listed
            .into_iter()
            .filter_map(|l| Some((self.mode_of(root, &l, &mut links)?, l.path)).map(|(m, p)| (p, m)))
            .collect()
    }

    /// The set of the working tree at `root`, with contents and its patch id. Takes four short git processes.
    pub fn expect(&self, root: &Path) -> Expected {
        let mut files = self.read(root, self.paths(root));
        let (id, refused) = self.tree_id(&files, &BTreeSet::new());
        files.retain(|path, _| !refused.contains(path));
        Expected { id, files }
    }

    /// Where the commit that is checked out has a submodule.
    pub fn gitlinks_of_head(&self, root: &Path) -> BTreeSet<PathBuf> {
        let mut list = git::command(&self.home);
        // Fails where there is no commit yet.
        let output = list.arg("-C").arg(root).args(["ls-tree", "-r", "-z", "HEAD"]).output();
        let listed = output.expect("git is installed").stdout;
        let links = split_nul(&listed).filter(|record| record.starts_with(b"160000 "));
        links.filter_map(|record| record.split(|b| *b == b'\t').nth(1)).map(to_path).collect()
    }

    /// The patch id of the set less some of its paths: what a server holds that had to leave them out.
    pub fn id_without(&self, expected: &Expected, left_out: &BTreeSet<PathBuf>) -> PatchId {
        self.tree_id(&expected.files, left_out).0
    }

    fn mode_of(&self, root: &Path, listed: &Listed, links: &mut LinkedDirs) -> Option<Mode> {
        if listed.path.as_os_str().as_bytes().ends_with(b"/") {
            return None;
        }
        // A deleted path, or one whose parent became a file, cannot be asked about: it is not in the set.
        let meta = fs::symlink_metadata(root.join(&listed.path)).ok()?;
        if links.above(&listed.path) {
            return None;
        }
        match Mode::of(&meta)? {
            Mode::Symlink => Some(Mode::Symlink),
            mode if self.trust_execute_bit => Some(mode),
            _ if listed.index_mode == Some(0o100_755) => Some(Mode::Executable),
            _ => Some(Mode::File),
        }
    }

    fn read(&self, root: &Path, paths: BTreeMap<PathBuf, Mode>) -> BTreeMap<PathBuf, Blob> {
        let links = self.scratch.join("link-targets");
        fs::create_dir_all(&links).expect("the scratch directory is ours");
        let mut blobs: Vec<(PathBuf, Mode, Vec<u8>)> = Vec::new();
        let mut to_hash = Vec::new();
        for (path, mode) in paths {
            let on_disk = root.join(&path);
            let (bytes, hashed_at) = if mode == Mode::Symlink {
                let target =
                    fs::read_link(&on_disk).expect("lstat said it is a link").into_os_string().into_vec();
                let copy = links.join(blobs.len().to_string());
                fs::write(&copy, &target).expect("the scratch directory is ours");
                (target, copy)
            } else {
                (fs::read(&on_disk).unwrap_or_else(|e| panic!("read {}: {e}", on_disk.display())), on_disk)
            };
            to_hash.extend_from_slice(c_quoted(hashed_at.as_os_str().as_bytes()).as_bytes());
            to_hash.push(b'\n');
            blobs.push((path, mode, bytes));
        }
        let mut hash = self.scratch_git();
        let ids = text(feed(hash.args(["hash-object", "--no-filters", "--stdin-paths"]), &to_hash).stdout);
        let ids: Vec<&str> = ids.lines().collect();
        assert_eq!(ids.len(), blobs.len(), "git hashed every path");
        let named = blobs.into_iter().zip(ids);
        named.map(|((path, mode, bytes), id)| (path, Blob { mode, bytes, id: id.to_owned() })).collect()
    }

    /// The tree id of `files` less `left_out`, and the paths git refused to put into an index.
    fn tree_id(
        &self,
        files: &BTreeMap<PathBuf, Blob>,
        left_out: &BTreeSet<PathBuf>,
    ) -> (PatchId, BTreeSet<PathBuf>) {
        let mut info = Vec::new();
        let kept = || files.iter().filter(|(path, _)| !left_out.contains(*path));
        for (path, blob) in kept() {
            write!(info, "{} {}\t", blob.mode.octal(), blob.id).expect("memory takes it");
            info.extend_from_slice(path.as_os_str().as_bytes());
            info.push(0);
        }
        let index = self.scratch.join(format!("index-{}", self.next_index.fetch_add(1, Ordering::Relaxed)));
        let with_index = |args: &[&str]| {
            let mut git = self.scratch_git();
            git.env("GIT_INDEX_FILE", &index).args(args);
            git
        };
        let said = feed(&mut with_index(&["update-index", "-z", "--index-info"]), &info).stderr;
        let mut refused = BTreeSet::new();
        if text(said).contains("Ignoring path") {
            let taken = git::run(&mut with_index(&["ls-files", "-z"]));
            let taken: BTreeSet<PathBuf> = split_nul(&taken).map(to_path).collect();
            refused.extend(kept().map(|(path, _)| path.clone()).filter(|path| !taken.contains(path)));
        }
        let id = text(git::run(&mut with_index(&["write-tree", "--missing-ok"])));
        fs::remove_file(&index).or_else(not_found_is_fine).expect("the scratch directory is ours");
        (PatchId(id.trim().to_owned()), refused)
    }

    fn scratch_git(&self) -> Command {
        let mut git = git::command(&self.home);
        git.env("GIT_DIR", &self.scratch);
        git
    }
}

/// An empty set leaves no index behind.
fn not_found_is_fine(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Remembers which directories above a path are symlinks: git lists what lies below them when it is tracked, but it
/// is no longer part of this working tree.
struct LinkedDirs<'a> {
    root: &'a Path,
    known: HashMap<PathBuf, bool>,
}

impl<'a> LinkedDirs<'a> {
    fn new(root: &'a Path) -> Self {
        Self { root, known: HashMap::new() }
    }

    fn above(&mut self, path: &Path) -> bool {
        let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) else {
            return false;
        };
        if let Some(known) = self.known.get(parent) {
            return *known;
        }
        let linked = self.above(parent) || self.root.join(parent).is_symlink();
        self.known.insert(parent.to_path_buf(), linked);
        linked
    }
}

/// Reads `ls-files -s -o -t -z`: `TAG MODE ID STAGE<TAB>PATH` for tracked paths, `? PATH` for others.
fn parse_listing(output: &[u8]) -> Vec<Listed> {
    split_nul(output)
        .map(|record| {
            if let Some(path) = record.strip_prefix(b"? ") {
                return Listed { path: to_path(path), index_mode: None };
            }
            let tab = record.iter().position(|b| *b == b'\t').expect("a tracked path comes after a tab");
            let fields = std::str::from_utf8(&record[..tab]).expect("tag, mode, id and stage are ASCII");
            let mode = fields.split(' ').nth(1).expect("the mode follows the tag");
            let mode = u32::from_str_radix(mode, 8).expect("modes are octal");
            Listed { path: to_path(&record[tab + 1..]), index_mode: Some(mode) }
        })
        .collect()
}

fn split_nul(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|b| *b == 0).filter(|record| !record.is_empty())
}

fn to_path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A path as git reads it on a line of its own, whatever its bytes.
fn c_quoted(path: &[u8]) -> String {
    let mut quoted = String::from("\"");
    for byte in path {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b'/' => {
                quoted.push(char::from(*byte));
            }
            other => quoted.push_str(&format!("\\{other:03o}")),
        }
    }
    quoted.push('"');
    quoted
}

/// Runs a command on `input` without risking that both sides wait for a full pipe.
#[track_caller]
fn feed(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("git is installed");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).expect("git reads all of its input"));
        child.wait_with_output().expect("git can be waited for")
    });
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Sandbox;
    use std::os::unix::net::UnixListener;

    fn repo_and_oracle(sandbox: &Sandbox) -> (Repo, Oracle) {
        let repo = Repo::init(&sandbox.path("app"), &sandbox.path("home"));
        let oracle = Oracle::new(&repo, &sandbox.path("scratch"));
        (repo, oracle)
    }

    fn names(paths: &BTreeMap<PathBuf, Blob>) -> Vec<String> {
        paths.keys().map(|p| p.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn an_empty_repository_is_the_empty_tree() {
        let sandbox = Sandbox::new("oracle-empty");
        let (repo, oracle) = repo_and_oracle(&sandbox);
        let expected = oracle.expect(repo.root());
        assert_eq!(expected.id.0, "4b825dc642cb6eb9a060e54bf8d69288fbee4904");
        assert!(expected.files.is_empty());
    }

    #[test]
    fn a_clean_repository_is_its_commit_tree() {
        let sandbox = Sandbox::new("oracle-clean");
        let (repo, oracle) = repo_and_oracle(&sandbox);
        repo.write("a", "one\n");
        repo.write("dir/b", "two\n");
        repo.write("run", "#!/bin/sh\n");
        repo.chmod("run", 0o755);
        repo.symlink("dir/b", "link");
        repo.commit_all("first");
        let tree = text(repo.git(["rev-parse", "HEAD^{tree}"]));
        assert_eq!(oracle.expect(repo.root()).id.0, tree.trim());
    }

    #[test]
    fn the_set_follows_the_disk_and_the_ignore_rules() {
        let sandbox = Sandbox::new("oracle-set");
        let (repo, oracle) = repo_and_oracle(&sandbox);
        repo.write(".gitignore", "*.o\n");
        repo.write("gone", "x");
        repo.write("below/link", "x");
        repo.write("forced.o", "tracked although ignored");
        repo.git(["add", "-A"]);
        repo.git(["add", "-f", "forced.o"]);
        repo.write("junk.o", "x");
        repo.write("new", "x");
        repo.remove("gone");
        repo.remove_dir("below");
        repo.write("elsewhere/link", "x");
        repo.symlink("elsewhere", "below");
        Repo::init(&repo.path("nested"), repo.home());
        let _socket = UnixListener::bind(repo.path("socket")).expect("sockets can be made");
        let expected = oracle.expect(repo.root());
        assert_eq!(names(&expected.files), [".gitignore", "below", "elsewhere/link", "forced.o", "new"]);
        assert_eq!(expected.files[Path::new("below")].mode, Mode::Symlink);
    }

    #[test]
    fn bytes_are_those_on_disk_not_those_git_would_store() {
        let sandbox = Sandbox::new("oracle-raw");
        let (repo, oracle) = repo_and_oracle(&sandbox);
        repo.git(["config", "core.autocrlf", "true"]);
        repo.write("dos.txt", "a\r\nb\r\n");
        repo.commit_all("first");
        let stored = text(repo.git(["rev-parse", "HEAD:dos.txt"]));
        let expected = oracle.expect(repo.root());
        let blob = &expected.files[Path::new("dos.txt")];
        assert_eq!(blob.bytes, b"a\r\nb\r\n");
        assert_ne!(blob.id, stored.trim());
    }

    #[test]
    fn without_file_mode_the_index_decides_the_execute_bit() {
        let sandbox = Sandbox::new("oracle-filemode");
        let repo = Repo::init(&sandbox.path("app"), &sandbox.path("home"));
        repo.write("tracked", "x");
        repo.git(["add", "-A"]);
        repo.git(["update-index", "--chmod=+x", "tracked"]);
        repo.write("new", "x");
        repo.chmod("new", 0o755);
        repo.git(["config", "core.fileMode", "false"]);
        let oracle = Oracle::new(&repo, &sandbox.path("scratch"));
        let files = oracle.expect(repo.root()).files;
        assert_eq!(files[Path::new("tracked")].mode, Mode::Executable);
        assert_eq!(files[Path::new("new")].mode, Mode::File);
    }

    #[test]
    fn names_git_refuses_are_not_in_the_set() {
        let sandbox = Sandbox::new("oracle-refused");
        let (repo, oracle) = repo_and_oracle(&sandbox);
        repo.write("sub/git~1/x", "x");
        repo.write("sub/y", "y");
        assert_eq!(names(&oracle.expect(repo.root()).files), ["sub/y"]);
    }

    #[test]
    fn asking_writes_nothing_into_the_repository() {
        let sandbox = Sandbox::new("oracle-readonly");
        let (repo, oracle) = repo_and_oracle(&sandbox);
        repo.write("a", "one\n");
        repo.commit_all("first");
        repo.write("a", "two\n");
        let before = crate::tree::walk_with_git(repo.root());
        oracle.expect(repo.root());
        assert_eq!(crate::tree::walk_with_git(repo.root()), before);
    }
}
