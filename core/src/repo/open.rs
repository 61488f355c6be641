//! Which repository a path belongs to, and what its history says right now.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use gix::ObjectId;

use super::place::RepoIdentity;
use super::remotes::remotes_of;
use crate::model::HashKind;
use crate::wire::COMMITS;

/// An opened repository with a working tree.
#[expect(missing_debug_implementations, reason = "gix's repository prints pages")]
pub struct Repo {
    pub gix: gix::Repository,
    /// Root of the working tree, canonical.
    pub workdir: PathBuf,
    /// Holds HEAD and the index of this working tree.
    pub git_dir: PathBuf,
    /// Holds refs and configuration; the same as `git_dir` but in a linked worktree.
    pub common_dir: PathBuf,
    pub hash_kind: HashKind,
    /// Which repository it is.
    pub place: RepoIdentity,
    /// Device and inode of `git_dir` when it was opened.
    identity: (u64, u64),
}

/// The index as it is now; empty where there is none. It is read here and not through gix's own copy, which the
/// repository would hold on to, all of it. Like git, this does not check the checksum at its end: a file that is only
/// ever replaced whole is never half of another, and hashing it takes as long as reading it. One thread reads it: with
/// several, gix trusts offsets in the file, and a damaged one makes it panic.
pub fn read_index(repo: &gix::Repository) -> Result<gix::index::File, gix::Error> {
    match repo.index_path().symlink_metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Ok(gix::index::File::from_state(gix::index::State::new(repo.object_hash()), repo.index_path()))
        }
        _ => {
            let options = gix::index::decode::Options { thread_limit: Some(1), ..Default::default() };
            gix::index::File::at(repo.index_path(), repo.object_hash(), true, options)
        }
    }
}

/// Where HEAD stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Head {
    /// `None` on an unborn branch.
    pub commit: Option<ObjectId>,
    /// Short name; `None` when HEAD is detached.
    pub branch: Option<Vec<u8>>,
    /// The first-parent history from HEAD, newest first, at most [`COMMITS`].
    pub commits: Vec<ObjectId>,
    /// Normalised fetch URLs of the configured remotes.
    pub remotes: Vec<String>,
    /// Counts what may have changed tags, the settings that travel, or flags in the index.
    pub marks: u64,
}

impl Head {
    /// True if HEAD, branch, history and remotes are the same.
    pub fn is_at(&self, other: &Self) -> bool {
        let Self { commit, branch, commits, remotes, marks: _ } = self;
        (commit, branch, commits, remotes) == (&other.commit, &other.branch, &other.commits, &other.remotes)
    }
}

/// Why a path cannot be mirrored.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path} does not exist")]
    Missing { path: PathBuf },
    #[error("{path} is not in a git repository")]
    NotARepository { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{git_dir} is a bare repository, without a working tree")]
    Bare { git_dir: PathBuf },
    #[error("{git_dir} cannot be read: it uses {what}")]
    Unsupported { git_dir: PathBuf, what: &'static str },
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
}

impl Repo {
    /// Finds the repository `path` lies in; a sub-directory stands for the whole working tree.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let path = path.canonicalize().map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => OpenError::Missing { path: path.to_owned() },
            _ => OpenError::Read { path: path.to_owned(), source: e.into() },
        })?;
        check_readable(&path)?;
        let gix = gix::discover(&path)
            .map_err(|e| OpenError::NotARepository { path: path.clone(), source: e.into() })?;
        let git_dir = gix.git_dir().to_owned();
        let Some(workdir) = gix.workdir() else {
            return Err(OpenError::Bare { git_dir });
        };
        let unreadable = |e: std::io::Error| OpenError::Read { path: path.clone(), source: e.into() };
        let workdir = workdir.canonicalize().map_err(unreadable)?;
        let common_dir = gix.common_dir().canonicalize().map_err(unreadable)?;
        let git_dir = git_dir.canonicalize().map_err(unreadable)?;
        if common_dir.join("reftable").is_dir() {
            return Err(OpenError::Unsupported {
                git_dir,
                what: "the reftable format; run `git refs migrate --ref-format=files`",
            });
        }
        let hash_kind = gix.object_hash();
        let identity = identity(&git_dir).map_err(unreadable)?;
        let place = RepoIdentity::of(&workdir, &git_dir).map_err(unreadable)?;
        Ok(Self { gix, workdir, git_dir, common_dir, hash_kind, place, identity })
    }

    /// True if the git directory is the one that was opened.
    pub fn is_in_place(&self) -> bool {
        let has_head = self.git_dir.join("HEAD").symlink_metadata().is_ok();
        has_head && identity(&self.git_dir).is_ok_and(|now| now == self.identity)
    }

    /// Device and inode of the git directory when it was opened.
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// Reads HEAD, its recent history and the remotes.
    pub fn head(&self) -> Result<Head, OpenError> {
        let unreadable =
            |e: gix::Error| OpenError::Read { path: self.git_dir.join("HEAD"), source: e.into() };
        let branch = self.gix.head_name().map_err(unreadable)?;
        let commit = self.gix.head().map_err(unreadable)?.id().map(gix::Id::detach);
        let commits = commit.map_or_else(Vec::new, |id| self.recent_commits(id));
        let branch = branch.map(|name| name.as_ref().shorten().to_vec());
        Ok(Head { commit, branch, commits, remotes: remotes_of(&self.gix), marks: 0 })
    }

    /// What can be read of the history; a shallow or damaged one is simply shorter.
    fn recent_commits(&self, head: ObjectId) -> Vec<ObjectId> {
        let walk = self.gix.rev_walk([head]).first_parent_only().all();
        let Ok(walk) = walk else { return vec![head] };
        walk.map_while(Result::ok).map(|info| info.id).take(COMMITS).collect()
    }
}

/// What may not be read must not be taken for absent: the search would go on above it and find another repository.
fn check_readable(path: &Path) -> Result<(), OpenError> {
    let denied = |dir: &Path| {
        let look = std::fs::read_dir(dir).and_then(|_| std::fs::metadata(dir.join(".")));
        look.err().filter(|e| e.kind() == std::io::ErrorKind::PermissionDenied)
    };
    let git_dir = path.ancestors().map(|dir| dir.join(".git")).find(|dir| dir.symlink_metadata().is_ok());
    // Without its HEAD a git directory is none to the search.
    let head = git_dir.as_ref().map(|dir| dir.join("HEAD"));
    for dir in [Some(path.to_owned()), git_dir].into_iter().flatten() {
        if let Some(e) = denied(&dir) {
            return Err(OpenError::Read { path: dir, source: e.into() });
        }
    }
    match head.map(|head| (std::fs::File::open(&head), head)) {
        Some((Err(e), path)) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(OpenError::Read { path, source: e.into() })
        }
        _ => Ok(()),
    }
}

fn identity(dir: &Path) -> std::io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(dir)?;
    Ok((metadata.dev(), metadata.ino()))
}
