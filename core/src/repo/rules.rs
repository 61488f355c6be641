//! Which paths belong to the mirrored set: what git tracks, and what it would show as untracked.
//!
//! The set is that of `git ls-files -co --exclude-standard`, less what is not a file or symlink on
//! disk. The index is asked which paths are tracked, never for content ids: its ids are of filtered
//! content.

use std::collections::BTreeSet;

use gix::bstr::ByteSlice;
use gix::index::entry::{Flags, Mode as IndexMode};
use gix::worktree::stack::state::ignore::Source;

use super::disk::{DirHandle, Found};
use crate::model::RelPath;

/// Git's answers for one working tree, as of the last reload.
pub struct Rules {
    index: gix::index::File,
    ignore: gix::worktree::Stack,
    /// `core.fileMode`: false means the execute bit on disk says nothing.
    trust_mode: bool,
}

/// The rules cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {what}")]
pub struct RulesError {
    what: &'static str,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// What the index says of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tracked {
    No,
    /// A file or symlink, whatever it is on disk.
    Yes {
        skip_worktree: bool,
        executable: bool,
    },
    /// A commit of another repository.
    Submodule,
}

impl Rules {
    pub fn load(repo: &gix::Repository) -> Result<Self, RulesError> {
        let index = read_index(repo)?;
        let ignore = read_ignore(repo, &index)?;
        let trust_mode = repo.config_snapshot().boolean("core.fileMode").unwrap_or(true);
        Ok(Self { index, ignore, trust_mode })
    }

    /// Reads the ignore files anew.
    pub fn reload_ignore(&mut self, repo: &gix::Repository) -> Result<(), RulesError> {
        self.ignore = read_ignore(repo, &self.index)?;
        Ok(())
    }

    /// Reads the index anew and says which paths it now answers differently for.
    pub fn reload_index(&mut self, repo: &gix::Repository) -> Result<Vec<RelPath>, RulesError> {
        let old = std::mem::replace(&mut self.index, read_index(repo)?);
        Ok(changed_paths(&old, &self.index))
    }

    pub fn trust_mode(&self) -> bool {
        self.trust_mode
    }

    pub fn tracked(&self, path: &RelPath) -> Tracked {
        let (entries, wanted) = (self.index.entries(), path.as_bytes().as_bstr());
        let at = entries.partition_point(|e| e.path(&self.index) < wanted);
        match entries.get(at) {
            // A path in conflict has up to three entries; each makes it tracked.
            Some(entry) if entry.path(&self.index) == wanted => match entry.mode {
                IndexMode::COMMIT => Tracked::Submodule,
                mode => Tracked::Yes {
                    skip_worktree: entry.flags.contains(Flags::SKIP_WORKTREE),
                    executable: mode == IndexMode::FILE_EXECUTABLE,
                },
            },
            _ => Tracked::No,
        }
    }

    /// True if git tracks anything below the directory.
    pub fn tracks_below(&self, dir: &RelPath) -> bool {
        let mut prefix = dir.as_bytes().to_vec();
        prefix.push(b'/');
        let (entries, prefix) = (self.index.entries(), prefix.as_bstr());
        let at = entries.partition_point(|e| e.path(&self.index) < prefix);
        entries.get(at).is_some_and(|e| e.path(&self.index).starts_with(prefix))
    }

    /// True if ignore rules exclude the path or a directory above it. Says nothing of tracked paths.
    pub fn is_ignored(&mut self, repo: &gix::Repository, path: &RelPath, is_dir: bool) -> bool {
        let mode = is_dir.then_some(IndexMode::DIR);
        match self.ignore.at_path(path.as_path(), mode, &repo.objects) {
            Ok(platform) => platform.is_excluded(),
            // An unreadable ignore file excludes nothing, as in git.
            Err(_) => false,
        }
    }
}

/// True if the directory is another repository's working tree: its `.git` is a repository or points
/// to one. Git does not look inside such a directory, unless it tracks files there.
pub fn is_nested_repo(root: &std::path::Path, dir: &RelPath, handle: &DirHandle) -> bool {
    let dot_git = root.join(dir.as_path()).join(".git");
    match handle.find(b".git") {
        Ok(Found::Directory) => looks_like_git_dir(&dot_git),
        Ok(Found::File { .. }) => std::fs::read(&dot_git)
            .ok()
            .and_then(|text| Some(text.strip_prefix(b"gitdir: ")?.trim_end().to_vec()))
            .and_then(|target| target.to_path().ok().map(|t| dot_git.with_file_name("").join(t)))
            .is_some_and(|target| looks_like_git_dir(&target)),
        _ => false,
    }
}

/// Git's own test (setup.c, `is_git_directory`), less the reading of HEAD.
fn looks_like_git_dir(dir: &std::path::Path) -> bool {
    let has = |name| dir.join(name).exists();
    dir.join("HEAD").symlink_metadata().is_ok() && (has("objects") && has("refs") || has("commondir"))
}

fn read_index(repo: &gix::Repository) -> Result<gix::index::File, RulesError> {
    let failed = |e: gix::Error| RulesError { what: "the index", source: e.into() };
    let index = match repo.try_index().map_err(failed)? {
        Some(_) => repo.open_index().map_err(failed)?,
        None => gix::index::File::from_state(gix::index::State::new(repo.object_hash()), repo.index_path()),
    };
    if index.is_sparse() {
        let source = "it is a sparse index; run `git sparse-checkout reapply --no-sparse-index`".into();
        return Err(RulesError { what: "the index", source });
    }
    Ok(index)
}

fn read_ignore(repo: &gix::Repository, index: &gix::index::File) -> Result<gix::worktree::Stack, RulesError> {
    let stack = repo
        .excludes(index, None, Source::WorktreeThenIdMappingIfNotSkipped)
        .map_err(|e| RulesError { what: "the ignore rules", source: e.into() })?;
    Ok(stack.detach())
}

fn changed_paths(old: &gix::index::File, new: &gix::index::File) -> Vec<RelPath> {
    let facts = |index: &gix::index::File| -> BTreeSet<(Vec<u8>, bool, bool, bool)> {
        index
            .entries()
            .iter()
            .map(|e| {
                let executable = e.mode == IndexMode::FILE_EXECUTABLE;
                let skipped = e.flags.contains(Flags::SKIP_WORKTREE);
                (e.path(index).to_vec(), e.mode == IndexMode::COMMIT, skipped, executable)
            })
            .collect()
    };
    let (old, new) = (facts(old), facts(new));
    let mut changed: Vec<RelPath> =
        old.symmetric_difference(&new).filter_map(|(path, ..)| RelPath::new(path).ok()).collect();
    changed.sort();
    changed.dedup();
    changed
}
