//! Which paths belong to the mirrored set: what git tracks, and what it would show as untracked.
//!
//! The set is that of `git ls-files -co --exclude-standard`, less what is not a file or symlink on
//! disk. The index is asked which paths are tracked, never for content ids: its ids are of filtered
//! content.

use std::collections::BTreeSet;
use std::path::PathBuf;

use gix::bstr::ByteSlice;
use gix::glob::pattern::Case;
use gix::index::entry::{Flags, Mode as IndexMode};
use gix::worktree::stack::state::ignore::Source;

use super::disk::{DirHandle, Found};
use crate::model::RelPath;

/// What the configuration adds to git's own rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// Gitignore patterns that hide untracked paths.
    pub exclude: Vec<String>,
    /// Gitignore patterns of ignored paths that belong to the set all the same.
    pub include: Vec<String>,
    /// In bytes; larger files are withheld.
    pub max_file_size: u64,
}

impl Default for Selection {
    fn default() -> Self {
        Self { exclude: Vec::new(), include: Vec::new(), max_file_size: u64::MAX }
    }
}

/// Git's answers for one working tree, as of the last reload.
pub struct Rules {
    index: gix::index::File,
    ignore: gix::worktree::Stack,
    selection: Selection,
    include: Option<gix::ignore::Search>,
    /// Paths the index lists that could be missing from disk: files and links git wants there.
    expected: u64,
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
    pub fn load(repo: &gix::Repository, selection: Selection) -> Result<Self, RulesError> {
        let index = read_index(repo)?;
        let ignore = read_ignore(repo, &index, &selection)?;
        let trust_mode = repo.config_snapshot().boolean("core.fileMode").unwrap_or(true);
        let include = (!selection.include.is_empty()).then(|| overrides(&selection.include));
        let expected = count_expected(&index);
        Ok(Self { index, ignore, selection, include, expected, trust_mode })
    }

    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// How many files and links the index wants on disk.
    pub fn expected(&self) -> u64 {
        self.expected
    }

    /// Calls `visit` for each of those.
    pub fn for_each_expected(&self, visit: &mut dyn FnMut(&[u8])) {
        for_each_expected(&self.index, visit);
    }

    /// True if `include` names the path or a directory above it.
    pub fn is_included(&self, path: &RelPath, is_dir: bool) -> bool {
        let Some(include) = &self.include else { return false };
        let names = |path: &RelPath, is_dir| {
            let found = include.pattern_matching_relative_path(
                path.as_bytes().as_bstr(),
                Some(is_dir),
                Case::Sensitive,
            );
            found.is_some_and(|m| !m.pattern.is_negative())
        };
        names(path, is_dir) || path.ancestors().any(|above| names(&above, true))
    }

    /// True if `include` could name something below an ignored directory. Only a pattern with a fixed
    /// beginning says where to look; any other is looked for everywhere.
    pub fn may_include_below(&self, dir: &RelPath) -> bool {
        self.selection.include.iter().any(|pattern| reaches_below(pattern.as_bytes(), dir))
    }

    /// Reads the ignore files anew.
    pub fn reload_ignore(&mut self, repo: &gix::Repository) -> Result<(), RulesError> {
        self.ignore = read_ignore(repo, &self.index, &self.selection)?;
        Ok(())
    }

    /// Reads the index anew and says which paths it now answers differently for.
    pub fn reload_index(&mut self, repo: &gix::Repository) -> Result<Vec<RelPath>, RulesError> {
        let old = std::mem::replace(&mut self.index, read_index(repo)?);
        self.expected = count_expected(&self.index);
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

fn read_ignore(
    repo: &gix::Repository,
    index: &gix::index::File,
    selection: &Selection,
) -> Result<gix::worktree::Stack, RulesError> {
    let exclude = (!selection.exclude.is_empty()).then(|| overrides(&selection.exclude));
    let stack = repo
        .excludes(index, exclude, Source::WorktreeThenIdMappingIfNotSkipped)
        .map_err(|e| RulesError { what: "the ignore rules", source: e.into() })?;
    Ok(stack.detach())
}

fn overrides(patterns: &[String]) -> gix::ignore::Search {
    gix::ignore::Search::from_overrides(patterns, gix::ignore::search::Ignore::default())
}

/// The file git reads ignore rules from for every repository of this user (gitignore's documentation).
pub fn global_excludes(repo: &gix::Repository) -> Option<PathBuf> {
    if let Ok(Some(path)) = repo.config_snapshot().trusted_path("core.excludesFile") {
        return Some(path);
    }
    let config = std::env::var_os("XDG_CONFIG_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let config = config.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")))?;
    Some(config.join("git/ignore"))
}

/// A pattern that git anchors (one with a slash before its end) can only match where its fixed
/// directories lead.
fn reaches_below(pattern: &[u8], dir: &RelPath) -> bool {
    let pattern = pattern.strip_suffix(b"/").unwrap_or(pattern);
    if pattern.starts_with(b"!") || pattern.is_empty() {
        return false;
    }
    if !pattern.contains(&b'/') {
        return true;
    }
    let pattern = pattern.strip_prefix(b"/").unwrap_or(pattern);
    let mut fixed = pattern.split(|b| *b == b'/');
    for name in dir.components() {
        match fixed.next() {
            // Wild from here on, so it may match anything below.
            Some(part) if part.iter().any(|b| matches!(b, b'*' | b'?' | b'[' | b'\\')) => return true,
            Some(part) if part == name => {}
            Some(_) => return false,
            // The pattern names a directory above: all below it is included.
            None => return true,
        }
    }
    true
}

fn for_each_expected(index: &gix::index::File, visit: &mut dyn FnMut(&[u8])) {
    let mut last: Option<&[u8]> = None;
    for entry in index.entries() {
        let path: &[u8] = entry.path(index);
        let wanted = entry.mode != IndexMode::COMMIT && !entry.flags.contains(Flags::SKIP_WORKTREE);
        // A path in conflict has several entries.
        if wanted && last != Some(path) && RelPath::new(path).is_ok() {
            visit(path);
        }
        last = Some(path);
    }
}

fn count_expected(index: &gix::index::File) -> u64 {
    let mut count = 0;
    for_each_expected(index, &mut |_| count += 1);
    count
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchored_patterns_lead_only_where_they_can_match() {
        let rows = [
            (".env.local", "node_modules", true),
            ("build/out", "build", true),
            ("build/out", "node_modules", false),
            ("/build/out/", "build/out/deep", true),
            ("build/*/keep", "build/x/y", true),
            ("*/keep", "anything", true),
            ("!build/out", "build", false),
        ];
        for (pattern, dir, expected) in rows {
            let dir = RelPath::new(dir).unwrap();
            assert_eq!(reaches_below(pattern.as_bytes(), &dir), expected, "{pattern} {dir}");
        }
    }
}
