//! Which paths belong to the mirrored set: what git tracks, and what it would show as untracked.
//!
//! The set is that of `git ls-files -co --exclude-standard`, less what is not a file or symlink on
//! disk. The index is asked which paths are tracked, never for content ids: its ids are of filtered
//! content.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gix::bstr::ByteSlice;
use gix::glob::pattern::Case;
use gix::index::entry::{Flags, Mode as IndexMode};
use gix::worktree::stack::state::ignore::Source;

use super::disk::{DirHandle, Found};
use super::index::{Index, Tracked};
use super::open;
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
    pub index: Index,
    ignore: Ignore,
    pub choice: Choice,
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

/// How far a directory is looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Descend {
    All,
    /// It is ignored, but git tracks files in it, or `include` may name some.
    Selected,
    No,
}

impl Rules {
    pub fn load(repo: &gix::Repository, selection: Selection) -> Result<Self, RulesError> {
        let index = read_index(repo)?;
        let ignore = read_ignore(repo, &index, &selection)?;
        let trust_mode = repo.config_snapshot().boolean("core.fileMode").unwrap_or(true);
        Ok(Self { index: Index::new(&index), ignore, choice: Choice::new(selection), trust_mode })
    }

    pub fn selection(&self) -> &Selection {
        &self.choice.selection
    }

    /// Rules for another thread, or for one that looks at many paths in order.
    pub fn ignore(&self) -> Ignore {
        self.ignore.clone()
    }

    /// How many files and links the index wants on disk.
    pub fn expected(&self) -> u64 {
        self.index.expected()
    }

    /// How far a directory is looked into: [`Choice::descend`].
    pub fn descend(&mut self, dir: &RelPath, tracks: bool, outer: Descend) -> Descend {
        self.choice.descend(&mut self.ignore, dir, tracks, outer)
    }

    /// True if a file belongs to the set that git does not track.
    pub fn is_untracked_member(&mut self, path: &RelPath) -> bool {
        self.choice.is_untracked_member(&mut self.ignore, path, Descend::All)
    }

    /// Reads the ignore files anew.
    pub fn reload_ignore(&mut self, repo: &gix::Repository) -> Result<(), RulesError> {
        let nothing = gix::index::State::new(repo.object_hash());
        self.ignore = match self.ignore.hidden.0.is_empty() {
            true => read_ignore(repo, &nothing, &self.choice.selection)?,
            false => read_ignore(repo, &*read_index(repo)?, &self.choice.selection)?,
        };
        Ok(())
    }

    /// Reads the index anew and says which paths it now answers differently for.
    pub fn reload_index(&mut self, repo: &gix::Repository) -> Result<Vec<RelPath>, RulesError> {
        let index = read_index(repo)?;
        let old = std::mem::replace(&mut self.index, Index::new(&index));
        if !self.ignore.hidden.0.is_empty() || HiddenRules::of(&index).next().is_some() {
            self.ignore = read_ignore(repo, &index, &self.choice.selection)?;
        }
        Ok(self.index.changed_since(&old))
    }

    pub fn trust_mode(&self) -> bool {
        self.trust_mode
    }

    pub fn tracked(&self, path: &RelPath) -> Tracked {
        self.index.get(path)
    }

    /// True if git tracks anything below the directory.
    pub fn tracks_below(&self, dir: &RelPath) -> bool {
        !self.index.below(Some(dir)).is_empty()
    }

    /// True if ignore rules exclude the path or a directory above it. Says nothing of tracked paths.
    pub fn is_ignored(&mut self, path: &RelPath, is_dir: bool) -> bool {
        self.ignore.is_ignored(path, is_dir)
    }

    /// The same for what is below the root and cannot be a path of the set.
    pub fn is_ignored_name(&mut self, path: &Path, is_dir: bool) -> bool {
        self.ignore.is_ignored_name(path, is_dir)
    }
}

/// What the configuration chose beyond git's own rules.
pub struct Choice {
    selection: Selection,
    include: Option<gix::ignore::Search>,
}

impl Choice {
    fn new(selection: Selection) -> Self {
        let include = (!selection.include.is_empty()).then(|| overrides(&selection.include));
        Self { selection, include }
    }

    /// True if `include` names the path or a directory above it.
    fn is_included(&self, path: &RelPath, is_dir: bool) -> bool {
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
    fn may_include_below(&self, dir: &RelPath) -> bool {
        self.selection.include.iter().any(|pattern| reaches_below(pattern.as_bytes(), dir))
    }

    /// How far a directory is looked into that is no repository of its own. `tracks`: git tracks files in it. `outer`
    /// is what the directory above got.
    pub fn descend(&self, ignore: &mut Ignore, dir: &RelPath, tracks: bool, outer: Descend) -> Descend {
        let includes = self.may_include_below(dir);
        if !tracks && outer == Descend::Selected && !includes {
            return Descend::No;
        }
        let ignored = outer == Descend::Selected || ignore.is_ignored(dir, true);
        if !ignored || includes && self.is_included(dir, true) {
            return Descend::All;
        }
        if tracks || includes { Descend::Selected } else { Descend::No }
    }

    /// True if a file belongs to the set that git does not track, in a directory that is looked into that far.
    pub fn is_untracked_member(&self, ignore: &mut Ignore, path: &RelPath, within: Descend) -> bool {
        within == Descend::All && !ignore.is_ignored(path, false) || self.is_included(path, false)
    }
}

/// Ignore rules, with those of the directories around the path that was asked about last at hand: paths are best
/// asked about in order.
#[derive(Clone)]
pub struct Ignore {
    stack: gix::worktree::Stack,
    hidden: Arc<HiddenRules>,
}

impl Ignore {
    /// True if the rules exclude the path or a directory above it. Says nothing of tracked paths.
    pub fn is_ignored(&mut self, path: &RelPath, is_dir: bool) -> bool {
        self.is_ignored_name(path.as_path(), is_dir)
    }

    /// The same for what is below the root and cannot be a path of the set.
    pub fn is_ignored_name(&mut self, path: &Path, is_dir: bool) -> bool {
        let mode = is_dir.then_some(IndexMode::DIR);
        match self.stack.at_path(path, mode, &*self.hidden) {
            Ok(platform) => platform.is_excluded(),
            // An unreadable ignore file excludes nothing, as in git.
            Err(_) => false,
        }
    }
}

/// Ignore files that are tracked but kept out of the working tree (in a sparse checkout): git reads their rules from
/// the index.
#[derive(Debug, Default)]
struct HiddenRules(HashMap<gix::ObjectId, Vec<u8>>);

impl HiddenRules {
    fn of(index: &gix::index::State) -> impl Iterator<Item = gix::ObjectId> {
        let is_hidden = |entry: &&gix::index::Entry| {
            let path = entry.path(index);
            entry.flags.contains(Flags::SKIP_WORKTREE)
                && (path == ".gitignore" || path.ends_with(b"/.gitignore"))
        };
        index.entries().iter().filter(is_hidden).map(|entry| entry.id)
    }

    /// What cannot be read has no rules.
    fn read(repo: &gix::Repository, index: &gix::index::State) -> Self {
        let read = |id| Some((id, repo.find_blob(id).ok()?.take_data()));
        Self(Self::of(index).filter_map(read).collect())
    }
}

impl gix::objs::Find for HiddenRules {
    fn try_find<'a>(
        &self,
        id: &gix::oid,
        buffer: &'a mut Vec<u8>,
    ) -> gix::Result<Option<gix::objs::Data<'a>>> {
        let Some(rules) = self.0.get(id) else { return Ok(None) };
        buffer.clear();
        buffer.extend_from_slice(rules);
        Ok(Some(gix::objs::Data::new(buffer, gix::objs::Kind::Blob, id.kind())))
    }
}

/// True if the directory is another repository's working tree: its `.git` is a repository or points
/// to one. Git does not look inside such a directory, unless it tracks files there.
pub fn is_nested_repo(root: &Path, dir: &RelPath, handle: &DirHandle) -> bool {
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
fn looks_like_git_dir(dir: &Path) -> bool {
    let has = |name| dir.join(name).exists();
    dir.join("HEAD").symlink_metadata().is_ok() && (has("objects") && has("refs") || has("commondir"))
}

fn read_index(repo: &gix::Repository) -> Result<gix::index::File, RulesError> {
    let index = open::read_index(repo).map_err(|e| RulesError { what: "the index", source: e.into() })?;
    if index.is_sparse() {
        let source = "it is a sparse index; run `git sparse-checkout reapply --no-sparse-index`".into();
        return Err(RulesError { what: "the index", source });
    }
    Ok(index)
}

fn read_ignore(
    repo: &gix::Repository,
    index: &gix::index::State,
    selection: &Selection,
) -> Result<Ignore, RulesError> {
    let exclude = (!selection.exclude.is_empty()).then(|| overrides(&selection.exclude));
    let stack = repo
        .excludes(index, exclude, Source::WorktreeThenIdMappingIfNotSkipped)
        .map_err(|e| RulesError { what: "the ignore rules", source: e.into() })?;
    Ok(Ignore { stack: stack.detach(), hidden: Arc::new(HiddenRules::read(repo, index)) })
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
