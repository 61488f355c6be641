//! The directory a workspace lives in: found or made, checked, and held open.
//!
//! `ROOT/NAME` is a git clone; our own state is in its `.git/gitsync/`. The file `id` there is written
//! last, so a creation that was cut off is simply done again.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use gitsync_core::model::HashKind;
use rustix::io::Errno;

use super::clone;
use super::fs::{Kind, WorkspaceFs};
use super::manifest::read_state;
use super::os::OsFs;
use super::recovery::enter;
use super::remotes::{self, RemotesDiffer};
use crate::epoch::{self, AcquireError, Fence, FencedError, Owner};

const ID: &[u8] = b"id";
const ID_NEW: &[u8] = b"id.new";
/// Where the workspace lay when its signatures were taken.
const PLACE: &[u8] = b"place";
/// There while a directory that held something already has not yet become a whole copy.
const ADOPTING: &[u8] = b"adopting";
/// The remotes its owner named last, one a line.
const REMOTES: &[u8] = b"remotes";

/// How a workspace directory may come to be.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// A directory that holds something already may become a workspace.
    pub adopt: bool,
    pub hash: HashKind,
    /// Who asks: an owner that wrote the workspace before need not say again which repository it is.
    pub owner_id: String,
    /// Normalised remotes of the repository that is to be mirrored here.
    pub remotes: Vec<String>,
    /// Normalised remotes the workspace has by the word of its operator.
    pub configured: Vec<String>,
}

impl OpenOptions {
    pub fn new(hash: HashKind) -> Self {
        Self { adopt: false, hash, owner_id: String::new(), remotes: Vec::new(), configured: Vec::new() }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("'{}' is no workspace name: one name of letters, digits, '.', '_' and '-'", name.escape_debug())]
    Name { name: String },
    #[error("workspace {name} is refused: {why}")]
    Refused { name: String, why: String },
    #[error("workspace {name} uses {held} object ids, the repository {asked}")]
    ObjectFormat { name: String, held: HashKind, asked: HashKind },
    #[error("the git directory of workspace {name} cannot be read")]
    Clone { name: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error(transparent)]
    RemotesDiffer(#[from] RemotesDiffer),
    #[error(transparent)]
    Fenced(#[from] FencedError),
    #[error("cannot {action} workspace {name}")]
    Io { name: String, action: &'static str, source: io::Error },
}

/// What is at the workspace's path is not what is held open: writing on would go nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the workspace directory is gone or was replaced: put {name} back as it was, or sync again to begin anew"
)]
pub struct PlaceError {
    pub name: String,
}

/// Device and inode of the workspace, its `.git` and our state: what tells a directory from another that has
/// taken its name, or from a copy of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place([(u64, u64); 3]);

/// A workspace's directory, checked and held open. Touching its files needs a [`Fence`] first.
#[derive(Debug)]
pub struct WorkspaceDir {
    pub(super) fs: Arc<dyn WorkspaceFs>,
    pub(super) name: String,
    pub(super) root: Arc<OwnedFd>,
    /// `.git/gitsync`
    pub(super) state: Arc<OwnedFd>,
    pub(super) hash: HashKind,
    pub(super) umask: u32,
    id: String,
    path: PathBuf,
    place: Place,
}

impl WorkspaceDir {
    /// Opens `root/name`, making it if need be.
    pub fn open(root: &Path, name: &str, options: &OpenOptions) -> Result<Self, OpenError> {
        Self::open_on(Arc::new(OsFs::default()), root, name, options)
    }

    /// [`WorkspaceDir::open`] on another file system than the operating system's.
    pub fn open_on(
        fs: Arc<dyn WorkspaceFs>,
        root: &Path,
        name: &str,
        options: &OpenOptions,
    ) -> Result<Self, OpenError> {
        check_name(name)?;
        let io = |action| move |source: io::Error| OpenError::Io { name: name.to_owned(), action, source };
        let errno = |action| move |e: Errno| io(action)(e.into());
        let base = std::fs::File::open(root).map_err(io("open the root directory of"))?;
        match fs.mkdir(base.as_fd(), name.as_bytes(), 0o777) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(errno("make")(e)),
        }
        let held = match fs.open_dir(base.as_fd(), name.as_bytes()) {
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(refused(name, "it is not a directory")),
            held => held.map_err(errno("open"))?,
        };
        let path = root.join(name);
        let configured = || {
            let mut ours = remotes::configured(&held_path(&held, &path).join(".git"));
            ours.extend(options.configured.iter().cloned());
            ours
        };
        let state = match find_state(&*fs, &held).map_err(errno("look into"))? {
            Found::State(state) => {
                if !epoch::belongs_to(&state, &options.owner_id).unwrap_or(false) {
                    let mut ours = configured();
                    ours.extend(read_remotes(&*fs, &state).map_err(errno("read the remotes of"))?);
                    remotes::check(name, ours, &options.remotes)?;
                }
                state
            }
            Found::OddGit => {
                let why =
                    "its .git is not a directory: a linked worktree or a submodule cannot be a workspace";
                return Err(refused(name, why));
            }
            Found::Foreign if !options.adopt => {
                let why = "it holds files that are not gitsync's; start gitsync-server with --adopt to take it over, or \
                           with a --config that says `adopt = true` for it";
                return Err(refused(name, why));
            }
            Found::Foreign | Found::Empty => {
                // Before anything is written into what may be somebody's clone.
                remotes::check(name, configured(), &options.remotes)?;
                make_state(&*fs, &held).map_err(errno("make the state of"))?
            }
        };
        let (id, hash) = match read_id(&*fs, &state).map_err(io("read the id of"))? {
            Some(known) => known,
            None => {
                mark_adopting(&*fs, &held, &state).map_err(errno("look into"))?;
                make_clone(&*fs, &held, &path, name, options.hash)?;
                write_id(&*fs, &state, options.hash).map_err(io("write the id of"))?
            }
        };
        if hash != options.hash {
            return Err(OpenError::ObjectFormat { name: name.to_owned(), held: hash, asked: options.hash });
        }
        let place =
            Place::of(&held_path(&held, &path), |path| std::fs::metadata(path)).map_err(io("look at"))?;
        let (root, state) = (Arc::new(held), Arc::new(state));
        Ok(Self { fs, name: name.to_owned(), root, state, hash, umask: umask(), id, path, place })
    }

    /// Names this workspace for as long as its state directory lives.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Is the directory still where it was opened? Costs three `lstat`.
    pub fn check_place(&self) -> Result<(), PlaceError> {
        match Place::of(&self.path, |path| std::fs::symlink_metadata(path)) {
            Ok(place) if place == self.place => Ok(()),
            // Not there, another one, or no longer to be reached: nothing to write to in any case.
            _ => Err(PlaceError { name: self.name.clone() }),
        }
    }

    /// True if the workspace lies where it lay at [`WorkspaceDir::settle`], or never settled. A copy, or what
    /// came back from a backup, lies elsewhere: no signature taken before says anything about its files.
    pub(super) fn is_settled(&self) -> Result<bool, Errno> {
        let settled = read_state(&*self.fs, &self.state, PLACE)?;
        Ok(settled.is_none_or(|place| place == self.place.text().as_bytes()))
    }

    /// Notes where the workspace lies. Once its signatures are those of the files here.
    pub(super) fn settle(&self) -> Result<(), Errno> {
        self.note(PLACE, &self.place.text())
    }

    /// Notes which repository the workspace is of. One without remotes says nothing new.
    pub fn note_remotes(&self, remotes: &[String]) -> Result<(), Errno> {
        if remotes.is_empty() {
            return Ok(());
        }
        let lines = remotes.iter().filter(|remote| !remote.contains('\n'));
        self.note(REMOTES, &lines.map(|remote| format!("{remote}\n")).collect::<String>())
    }

    /// Writes a small file of our state, unless it says so already.
    fn note(&self, name: &[u8], text: &str) -> Result<(), Errno> {
        if read_state(&*self.fs, &self.state, name)?.as_deref() == Some(text.as_bytes()) {
            return Ok(());
        }
        let (fs, at) = (&*self.fs, self.state.as_fd());
        let new = [name, b".new"].concat();
        match fs.unlink(at, &new) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e),
        }
        let file = fs.create(at, &new)?;
        fs.write_all(file.as_fd(), text.as_bytes())?;
        fs.rename(at, &new, at, name)
    }

    /// True from the adoption of a directory until its first patch was applied.
    pub(super) fn is_adopting(&self) -> Result<bool, Errno> {
        Ok(read_state(&*self.fs, &self.state, ADOPTING)?.is_some())
    }

    /// The directory is a whole copy now, like any other workspace.
    pub(super) fn end_adoption(&self) -> Result<(), Errno> {
        match self.fs.unlink(self.state.as_fd(), ADOPTING) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Becomes the one writer, see [`epoch::acquire`].
    pub fn acquire(&self, owner: &Owner, takeover: bool, now: SystemTime) -> Result<Fence, AcquireError> {
        epoch::acquire(&*self.state, owner, takeover, now)
    }
}

impl WorkspaceDir {
    /// The clone's git directory, held open, for programs and threads of its own.
    pub fn clone_dir(&self) -> Result<CloneDir, Errno> {
        let git = self.fs.open_dir(self.root.as_fd(), b".git")?;
        let path = held_path(&git, &self.path.join(".git"));
        let (fs, root) = (self.fs.clone(), self.root.clone());
        let is_reftable =
            matches!(self.fs.stat_at(git.as_fd(), b"reftable"), Ok(stat) if stat.kind == Kind::Dir);
        Ok(CloneDir { fs, root, git, path, hash: self.hash, umask: self.umask, is_reftable })
    }
}

/// A workspace's clone: its git directory and, to be looked at, the files around it.
#[derive(Debug)]
pub struct CloneDir {
    fs: Arc<dyn WorkspaceFs>,
    root: Arc<OwnedFd>,
    git: OwnedFd,
    path: PathBuf,
    hash: HashKind,
    umask: u32,
    is_reftable: bool,
}

impl CloneDir {
    pub fn fs(&self) -> &dyn WorkspaceFs {
        &*self.fs
    }

    /// The git directory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.git.as_fd()
    }

    /// The workspace.
    pub fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Leads to the git directory as long as this lives.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leads to a directory at `inner` in the git directory, as long as `dir`, which holds it, lives.
    pub fn path_of(&self, dir: &OwnedFd, inner: &str) -> PathBuf {
        held_path(dir, &self.path.join(inner))
    }

    pub fn hash(&self) -> HashKind {
        self.hash
    }

    /// Of the process, for files that others are to read.
    pub fn umask(&self) -> u32 {
        self.umask
    }

    /// Refs are not in files.
    pub fn is_reftable(&self) -> bool {
        self.is_reftable
    }
}

impl Place {
    /// `look` says whether the workspace's own path may be a link to it.
    fn of(workspace: &Path, look: fn(&Path) -> io::Result<std::fs::Metadata>) -> io::Result<Self> {
        let id = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
        let inside = |name: &str| std::fs::symlink_metadata(workspace.join(name)).map(id);
        Ok(Self([look(workspace).map(id)?, inside(".git")?, inside(".git/gitsync")?]))
    }

    fn text(&self) -> String {
        self.0.iter().map(|(device, inode)| format!("{device} {inode}\n")).collect()
    }
}

/// A path that leads to an open directory whatever becomes of its name. Other systems than Linux have none.
fn held_path(held: &OwnedFd, path: &Path) -> PathBuf {
    match cfg!(target_os = "linux") {
        true => format!("/proc/{}/fd/{}", std::process::id(), held.as_raw_fd()).into(),
        false => path.to_owned(),
    }
}

fn refused(name: &str, why: &str) -> OpenError {
    OpenError::Refused { name: name.to_owned(), why: why.to_owned() }
}

/// One component of plain characters, and nothing a file system could take for `.git`.
pub(super) fn check_name(name: &str) -> Result<(), OpenError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let is_dots = name.bytes().all(|b| b == b'.');
    let is_git = name.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(".git"));
    if is_dots || is_git || name.len() > 255 || !name.bytes().all(plain) {
        return Err(OpenError::Name { name: name.to_owned() });
    }
    Ok(())
}

pub(super) enum Found {
    State(OwnedFd),
    /// Nothing, or what a creation that was cut off leaves.
    Empty,
    Foreign,
    /// `.git` is a file or a symlink.
    OddGit,
}

pub(super) fn find_state(fs: &dyn WorkspaceFs, root: &OwnedFd) -> Result<Found, Errno> {
    let git = match fs.open_dir(root.as_fd(), b".git") {
        Ok(git) => Some(git),
        Err(Errno::NOENT) => None,
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Found::OddGit),
        Err(e) => return Err(e),
    };
    if let Some(git) = &git {
        match fs.open_dir(git.as_fd(), b"gitsync") {
            Ok(state) => return Ok(Found::State(state)),
            Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Found::OddGit),
            Err(e) => return Err(e),
        }
    }
    let bare = fs.list(root.as_fd())?.iter().all(|name| name == b".git");
    let no_git = git.map_or(Ok(true), |git| fs.list(git.as_fd()).map(|names| names.is_empty()))?;
    Ok(if bare && no_git { Found::Empty } else { Found::Foreign })
}

fn make_state(fs: &dyn WorkspaceFs, root: &OwnedFd) -> Result<OwnedFd, Errno> {
    match fs.mkdir(root.as_fd(), b".git", 0o777) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e),
    }
    let git = fs.open_dir(root.as_fd(), b".git")?;
    enter(fs, git.as_fd(), b"gitsync")
}

/// Whether it is a workspace already says the id, which is written after this.
fn mark_adopting(fs: &dyn WorkspaceFs, root: &OwnedFd, state: &OwnedFd) -> Result<(), Errno> {
    if fs.list(root.as_fd())?.iter().all(|name| name == b".git") {
        return Ok(());
    }
    match fs.create(state.as_fd(), ADOPTING) {
        Ok(_) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Makes the clone, or checks that the one that is there already is of the right object format.
fn make_clone(
    fs: &dyn WorkspaceFs,
    held: &OwnedFd,
    path: &Path,
    name: &str,
    hash: HashKind,
) -> Result<(), OpenError> {
    let io =
        |e: Errno| OpenError::Io { name: name.to_owned(), action: "make the clone of", source: e.into() };
    let git = fs.open_dir(held.as_fd(), b".git").map_err(io)?;
    match fs.stat_at(git.as_fd(), b"HEAD") {
        Err(Errno::NOENT) => return clone::make(fs, git.as_fd(), hash, umask()).map_err(io),
        Err(e) => return Err(io(e)),
        Ok(_) => {}
    }
    // Nobody's configuration but the clone's own says what it is.
    let git_dir = held_path(held, path).join(".git");
    let found = gix::open_opts(git_dir, gix::open::Options::isolated())
        .map_err(|e| OpenError::Clone { name: name.to_owned(), source: e.into() })?
        .object_hash();
    if found != hash {
        return Err(OpenError::ObjectFormat { name: name.to_owned(), held: found, asked: hash });
    }
    Ok(())
}

fn read_remotes(fs: &dyn WorkspaceFs, state: &OwnedFd) -> Result<Vec<String>, Errno> {
    let bytes = read_state(fs, state, REMOTES)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect())
}

/// Two words: a random id and the object format.
fn read_id(fs: &dyn WorkspaceFs, state: &OwnedFd) -> io::Result<Option<(String, HashKind)>> {
    let Some(bytes) = read_state(fs, state, ID)? else { return Ok(None) };
    let text = String::from_utf8_lossy(&bytes);
    let mut words = text.split_ascii_whitespace();
    match (words.next(), words.next().map(str::parse::<HashKind>)) {
        (Some(id), Some(Ok(hash))) => Ok(Some((id.to_owned(), hash))),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the file .git/gitsync/id is damaged")),
    }
}

/// Another process may be doing the same: the first one wins.
fn write_id(fs: &dyn WorkspaceFs, state: &OwnedFd, hash: HashKind) -> io::Result<(String, HashKind)> {
    let id = random_id()?;
    let at = state.as_fd();
    let temp = [ID_NEW, b".", id.as_bytes()].concat();
    let file = fs.create(at, &temp)?;
    fs.write_all(file.as_fd(), format!("{id} {hash}\n").as_bytes())?;
    fs.sync(file.as_fd())?;
    let won = fs.rename_new(at, &temp, at, ID);
    if won.is_err() {
        fs.unlink(at, &temp)?;
    }
    match won {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    fs.sync_dir(at)?;
    read_id(fs, state)?.ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn random_id() -> io::Result<String> {
    let mut bytes = [0; 16];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// The process's umask as the kernel shows it: the call that asks for it also sets it, for every thread.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok()).unwrap_or(0o022)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["app", "a.b_c-1", "-x", "..x", "git", "x.git"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "...", ".git", ".GIT", ".github", "a/b", "a b", "a\0", "é", "\\"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
