//! From dirty paths, or a whole directory, to the next snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rustix::fs::FileType;

use super::blocks::{BlockCache, Blocks};
use super::content::ContentCache;
use super::disk::{Disk, Found, Read, ReadOutcome, SharedDisk};
use super::index::{Section, Tracked};
use super::open::Repo;
use super::rules::{self, Descend, Rules, RulesError};
use super::walk::{self, Context, DEFER_FROM, Fate, Findings, Start};
use super::watch::{WatchError, Watcher};
use crate::model::{ContentId, Dir, Entry, Leaf, Missing, Mode, RelPath, Snapshot, WithheldReason};

pub use super::walk::{Told, Trust};

/// One working tree: what it was when last looked at, and all that is needed to look again.
pub struct WorkingTree {
    pub repo: Repo,
    disk: Arc<Disk>,
    /// The same, for those who send what was read.
    shared: Arc<SharedDisk>,
    pub rules: Rules,
    pub watcher: Watcher,
    pub contents: Arc<ContentCache>,
    pub blocks: Arc<BlockCache>,
    snapshot: Snapshot,
    /// What the stat cache says the files held, until the first scan is over.
    remembered: Option<Arc<Dir>>,
    released: BTreeSet<RelPath>,
    withheld: BTreeMap<RelPath, WithheldReason>,
    /// Directories that are other repositories' working trees, submodules included.
    nested: BTreeSet<RelPath>,
    /// What would be in the set if its name could be: one that git takes for its own, or too long.
    unfit: BTreeSet<PathBuf>,
    /// Files the index wants on disk that the snapshot lacks.
    missing: u64,
    /// Large files are named instead of read.
    pub defer_large: bool,
    /// What a scan reads is told while it goes on.
    pub tell_read: bool,
}

/// What a look at the tree came to, beside the new snapshot.
#[derive(Debug, Default)]
pub struct Looked {
    /// Files that changed while they were read; the snapshot has them as they were.
    pub unstable: Vec<RelPath>,
    /// Files too large to be read here and now; the snapshot has them as they were.
    pub large: Vec<RelPath>,
    /// The first directory that could not be watched: changes below it go unseen.
    pub unwatched: Option<WatchError>,
    /// The working tree or its git directory is not there any more; nothing of the look was believed.
    pub uprooted: bool,
    /// The tree changed shape under the look: it is to be looked at again.
    pub confused: bool,
    /// Members that were looked at, and how many of them had to be read.
    pub files: u64,
    pub hashed: u64,
}

impl Looked {
    pub fn join(&mut self, other: Looked) {
        self.unstable.extend(other.unstable);
        self.large.extend(other.large);
        self.unwatched = self.unwatched.take().or(other.unwatched);
        self.uprooted |= other.uprooted;
        self.confused |= other.confused;
        self.files += other.files;
        self.hashed += other.hashed;
    }
}

/// Edits by path, and what the look found out on the way.
#[derive(Default)]
struct Look {
    edits: BTreeMap<RelPath, Option<Leaf>>,
    looked: Looked,
}

impl WorkingTree {
    pub fn new(repo: Repo, disk: Disk, rules: Rules, watcher: Watcher, contents: Arc<ContentCache>) -> Self {
        let snapshot = Snapshot::empty(repo.hash_kind);
        let disk = Arc::new(disk);
        Self {
            repo,
            shared: Arc::new(SharedDisk::new(disk.clone())),
            disk,
            rules,
            watcher,
            contents,
            blocks: Arc::default(),
            snapshot,
            remembered: None,
            released: BTreeSet::new(),
            withheld: BTreeMap::new(),
            nested: BTreeSet::new(),
            unfit: BTreeSet::new(),
            missing: 0,
            defer_large: false,
            tell_read: false,
        }
    }

    /// Files that have the signatures they have in `tree` need not be read by the first scan.
    pub fn remember(&mut self, tree: Arc<Dir>) {
        self.remembered = Some(tree);
    }

    pub fn disk(&self) -> Arc<Disk> {
        self.disk.clone()
    }

    pub fn shared_disk(&self) -> Arc<SharedDisk> {
        self.shared.clone()
    }

    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Directories that are left out because they are repositories of their own.
    pub fn nested(&self) -> &BTreeSet<RelPath> {
        &self.nested
    }

    /// What is left out because of its name alone, by its path below the root.
    pub fn unfit(&self) -> &BTreeSet<PathBuf> {
        &self.unfit
    }

    /// Something that cannot be a path of the set came or went, in a directory or somewhere below.
    pub fn note_unfit_path(&mut self, path: &[u8]) {
        let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at).chain([path.len()]);
        let mut dir = None;
        for end in ends {
            match RelPath::new(&path[..end]) {
                Ok(fits) => dir = Some(fits),
                Err(_) => {
                    let start = dir.as_ref().map_or(0, |dir| dir.as_bytes().len() + 1);
                    return self.note_unfit(dir.as_ref(), &path[start..end]);
                }
            }
        }
    }

    fn note_unfit(&mut self, dir: Option<&RelPath>, name: &[u8]) {
        let path =
            dir.map_or_else(PathBuf::new, |dir| dir.as_path().to_owned()).join(OsStr::from_bytes(name));
        let found = self.disk.dir(dir).and_then(|handle| handle.find(name)).unwrap_or(Found::Absent);
        let is_dir = found == Found::Directory;
        let in_nested = dir.is_some_and(|dir| self.nested.contains(dir) || self.is_nested_above(dir));
        if name == b".git" || in_nested || found == Found::Absent || self.rules.is_ignored_name(&path, is_dir)
        {
            self.unfit.remove(&path);
        } else {
            self.unfit.insert(path);
        }
    }

    fn is_nested_above(&self, dir: &RelPath) -> bool {
        dir.ancestors().any(|above| self.nested.contains(&above))
    }

    /// How many of the files the index wants are missing from disk.
    pub fn missing(&self) -> Missing {
        Missing { files: self.missing, of: self.rules.expected() }
    }

    /// Counts anew, after the index changed.
    pub fn count_missing(&mut self) {
        self.missing = self.missing_in(None);
    }

    /// How many files are missing below a directory.
    fn missing_in(&self, dir: Option<&RelPath>) -> u64 {
        let section = self.rules.index.below(dir);
        let root = self.snapshot.root();
        let below = match dir {
            None => Some(root),
            Some(dir) => root.dir(dir),
        };
        let missing = count_missing(section, below.map(|dir| &**dir));
        if missing == 0 || self.withheld.is_empty() {
            return missing;
        }
        // What is withheld is there: the file itself, or a directory that cannot be looked into.
        let is_here = |path: &&RelPath| dir.is_none_or(|dir| path.is_below(dir) || *path == dir);
        let known = |path: &RelPath| match root.get(path) {
            Some(_) => 0,
            None => {
                u64::from(self.is_expected(path))
                    + count_missing(self.rules.index.below(Some(path)), root.dir(path).map(|dir| &**dir))
            }
        };
        missing.saturating_sub(self.withheld.keys().filter(is_here).map(known).sum())
    }

    fn is_expected(&self, path: &RelPath) -> bool {
        matches!(self.rules.tracked(path), Tracked::Yes { skip_worktree: false, .. })
    }

    /// True if the snapshot has a file there that the index wants on disk.
    pub fn has_expected(&self, path: &RelPath) -> bool {
        self.snapshot.root().get(path).is_some() && self.is_expected(path)
    }

    /// True if the snapshot has a file or a directory there.
    pub fn knows(&self, path: &RelPath) -> bool {
        self.snapshot.root().entry(path).is_some()
    }

    pub fn is_directory(&self, path: &RelPath) -> bool {
        matches!(self.disk.find(path), Ok(Found::Directory))
    }

    /// Some server holds these, the snapshot does not. Those that are there and not of the set are marked as
    /// released, so that no server deletes them.
    pub fn release_outsiders(&mut self, paths: &[RelPath]) {
        for path in paths {
            let there = matches!(self.disk.find(path), Ok(Found::File { .. } | Found::Symlink { .. }));
            if there && self.snapshot.root().get(path).is_none() && !self.is_member(path) {
                self.released.insert(path.clone());
            }
        }
        self.commit(Look::default());
    }

    /// Marks files that never hold still as withheld; they stay as they last were.
    pub fn withhold_unstable(&mut self, paths: Vec<RelPath>) {
        for path in paths {
            self.withheld.insert(path, WithheldReason::Unstable);
        }
        self.commit(Look::default());
    }

    /// Marks a file that somebody else could not read as withheld; it stays as it last was.
    pub fn withhold_unreadable(&mut self, path: &RelPath, error: &io::Error) -> Looked {
        self.withhold(path, WithheldReason::Unreadable(error.to_string()));
        self.commit(Look::default())
    }

    /// Reads the ignore rules anew. The caller scans what they may concern.
    pub fn reload_ignore(&mut self) -> Result<(), RulesError> {
        self.rules.reload_ignore(&self.repo.gix)
    }

    /// Looks at single paths: files, links, directories, or what is there no more. A path whose
    /// membership may have changed without it changing (`recheck`) is judged anew.
    pub fn refresh(&mut self, paths: &[RelPath], recheck: bool) -> Looked {
        let (mut look, mut dirs) = (Look::default(), Vec::new());
        for path in paths {
            if self.refresh_path(path, recheck, &mut look) == Some(Found::Directory) {
                dirs.push(path);
            }
        }
        let mut looked = self.commit(look);
        for dir in dirs {
            looked.join(self.scan(Some(dir), Trust::Signatures, &mut |_| {}));
        }
        looked
    }

    /// The index answers differently for these paths. They are judged anew, and so are directories that are to be
    /// entered or left alone because of it.
    pub fn follow_index(&mut self, paths: &[RelPath]) -> Looked {
        let (mut changed, mut judged) = (BTreeSet::new(), BTreeSet::new());
        for path in paths {
            for dir in path.ancestors() {
                if changed.contains(&dir) {
                    break;
                }
                if judged.insert(dir.clone()) && self.is_to_enter_or_leave(&dir) {
                    changed.insert(dir);
                    break;
                }
            }
        }
        let mut looked = Looked::default();
        for dir in &changed {
            looked.join(self.scan(Some(dir), Trust::Signatures, &mut |_| {}));
        }
        let is_elsewhere = |path: &&RelPath| !path.ancestors().any(|above| changed.contains(&above));
        let rest: Vec<RelPath> = paths.iter().filter(is_elsewhere).cloned().collect();
        looked.join(self.refresh(&rest, true));
        looked
    }

    /// True for a directory git tracks files in that was not entered so far (it is ignored, or another repository),
    /// and for another repository's that was entered only because git did.
    fn is_to_enter_or_leave(&self, dir: &RelPath) -> bool {
        let Ok(handle) = self.disk.dir(Some(dir)) else { return false };
        if self.rules.tracks_below(dir) {
            return self.nested.contains(dir) || !self.watcher.watches(&self.absolute(Some(dir)));
        }
        !self.nested.contains(dir) && !matches!(handle.find(b".git"), Ok(Found::Absent))
    }

    /// Looks at a path that is no directory, and says what it is.
    fn refresh_path(&mut self, path: &RelPath, recheck: bool, look: &mut Look) -> Option<Found> {
        let found = self.disk.find(path);
        match found {
            Ok(Found::Absent | Found::Other) => self.drop_at(path, look),
            Ok(Found::Directory) => {}
            Ok(found) => {
                if self.snapshot.root().dir(path).is_some() {
                    self.drop_at(path, look);
                }
                let known = !recheck && self.snapshot.root().get(path).is_some();
                if known || self.is_member(path) {
                    self.read_into(path, found, look);
                } else {
                    self.release(path, look);
                }
            }
            Err(ref e) => self.withhold(path, WithheldReason::Unreadable(e.to_string())),
        }
        found.ok()
    }

    /// Takes in what somebody else read of a large file; `None` if the file is not that any more.
    pub fn take_read(&mut self, path: &RelPath, leaf: Leaf, read: Read) -> Option<Looked> {
        let Ok(Found::File { executable, signature }) = self.disk.find(path) else { return None };
        let mode = if executable { Mode::Executable } else { Mode::File };
        if mode != leaf.mode || !leaf.signature.same_but_renamed(&signature) || !self.is_member(path) {
            return None;
        }
        let mut look = Look::default();
        self.take_in(path, leaf, read, &mut look);
        Some(self.commit(look))
    }

    /// What the snapshot has at `path`, if its blocks are known.
    pub fn blocks_at(&self, path: &RelPath) -> Option<(ContentId, Arc<Blocks>)> {
        let id = self.snapshot.root().get(path)?.id;
        Some((id, self.blocks.get(&id)?))
    }

    fn take_in(&mut self, path: &RelPath, leaf: Leaf, read: Read, look: &mut Look) {
        let leaf = Leaf { mode: self.mode_of(path, leaf.mode), ..leaf };
        match read {
            Read::Bytes(bytes) => self.contents.put(leaf.id, bytes),
            Read::Blocks(blocks) => self.blocks.put(leaf.id, blocks),
        }
        self.belongs(path);
        look.edits.insert(path.clone(), Some(leaf));
    }

    /// Looks at everything below a directory, `None` for the whole tree.
    pub fn scan(&mut self, dir: Option<&RelPath>, trust: Trust, progress: &mut dyn FnMut(Told)) -> Looked {
        let is_submodule = dir.is_some_and(|dir| self.rules.tracked(dir) == Tracked::Submodule);
        let descend = dir.map_or(Descend::All, |dir| self.descend(dir));
        let root = self.snapshot.root();
        let part = |tree: &Arc<Dir>| match dir {
            None => Some(tree.clone()),
            Some(dir) => tree.dir(dir).cloned(),
        };
        let start = Start {
            at: dir.cloned(),
            descend,
            old: part(root),
            remembered: self.remembered.as_ref().and_then(part),
        };
        if dir.is_none() {
            self.remembered = None;
        }
        self.watcher.begin_round();
        let context = Context {
            disk: &self.disk,
            rules: &self.rules,
            workdir: &self.repo.workdir,
            watcher: Mutex::new(&mut self.watcher),
            contents: &self.contents,
            blocks: &self.blocks,
            kind: self.repo.hash_kind,
            trust,
            defer_large: self.defer_large,
            tell_read: self.tell_read,
        };
        let (tree, mut found) = walk::walk(&context, start, progress);
        if let (true, Some(dir)) = (is_submodule, dir) {
            found.nested.push(dir.clone());
        }
        // A leaf that was where the directory is now.
        if let Some(dir) = dir
            && let Some(leaf) = self.snapshot.root().get(dir)
        {
            found.lost.push((dir.clone(), *leaf, Fate::Gone));
        }
        let mut looked = self.take_in_walk(dir, tree, found);
        // A file has taken the directory's place, perhaps before anybody asked for this.
        if let Some(dir) = dir
            && self.disk.find(dir).is_ok_and(|found| found.is_leaf())
        {
            let mut look = Look::default();
            self.refresh_path(dir, true, &mut look);
            looked.join(self.commit(look));
        }
        looked
    }

    /// Makes what a walk below `dir` found part of the snapshot.
    fn take_in_walk(&mut self, dir: Option<&RelPath>, tree: Option<Arc<Dir>>, found: Findings) -> Looked {
        let Findings { withheld, lost, unstable, large, nested, unfit, unwatched, files, hashed, moved } =
            found;
        let mut looked =
            Looked { unstable, large, unwatched, uprooted: false, confused: moved, files, hashed };
        if !lost.is_empty() && !self.is_rooted() {
            looked.uprooted = true;
            return looked;
        }
        let missing = self.missing_in(dir);
        let is_here = |path: &RelPath| dir.is_none_or(|dir| path == dir || path.is_below(dir));
        // What was withheld there before and was not now is readable, gone, or not of the set any more.
        self.withheld.retain(|path, _| !is_here(path) || looked.unstable.contains(path));
        self.withheld.extend(withheld);
        let unreadable = |path: &RelPath| path.ancestors().any(|above| self.withheld.contains_key(&above));
        self.nested.retain(|path| !is_here(path) || unreadable(path));
        self.nested.extend(nested);
        self.unfit.retain(|path| dir.is_some_and(|dir| !path.starts_with(dir.as_path())));
        self.unfit.extend(unfit);
        let mut kept = BTreeMap::new();
        for (path, leaf, fate) in lost {
            let there = match fate {
                Fate::Gone => Ok(false),
                Fate::Left => Ok(true),
                Fate::Unknown => self.disk.find(&path).map(|found| found.is_leaf()),
            };
            let kept_out = || matches!(self.rules.tracked(&path), Tracked::Yes { skip_worktree: true, .. });
            match there {
                // Git keeps it out of the working tree on purpose: absent is not deleted.
                Ok(there) if there || kept_out() => drop(self.released.insert(path)),
                Ok(_) => drop(self.released.remove(&path)),
                Err(e) => {
                    self.withheld.insert(path.clone(), WithheldReason::Unreadable(e.to_string()));
                    kept.insert(path, Some(leaf));
                }
            }
        }
        let root = match dir {
            None => tree.unwrap_or_else(|| Dir::empty(self.repo.hash_kind)),
            Some(dir) => self.snapshot.root().graft(dir, tree),
        };
        let kept: Vec<(RelPath, Option<Leaf>)> = kept.into_iter().collect();
        self.released.retain(|path| !is_here(path) || root.get(path).is_none());
        let next = Snapshot::new(
            root,
            shared_if_equal(&self.released, self.snapshot.released()),
            shared_if_equal(&self.withheld, self.snapshot.withheld()),
        );
        match next.edit(&kept, next.released().clone(), next.withheld().clone()) {
            Ok(next) => self.snapshot = next,
            Err(conflict) => {
                tracing::debug!(path = %conflict.path, "snapshot conflict, looking again");
                (self.snapshot, looked.confused) = (next, true);
            }
        }
        self.missing = (self.missing + self.missing_in(dir)).saturating_sub(missing);
        self.unwatch_unvisited(dir);
        looked
    }

    /// Opens a directory, watches it, and only then lists what is in it.
    fn watch_and_list(
        &mut self,
        at: Option<&RelPath>,
        look: &mut Look,
    ) -> io::Result<Vec<(Vec<u8>, FileType)>> {
        let handle = self.disk.dir(at)?;
        let path = self.absolute(at);
        if let Err(e) = self.watcher.watch(&handle, path) {
            look.looked.unwatched.get_or_insert(e);
        }
        let mut names = Vec::new();
        handle.list(&mut Vec::new(), |name, file_type| names.push((name.to_vec(), file_type)))?;
        Ok(names)
    }

    fn unwatch_unvisited(&mut self, dir: Option<&RelPath>) {
        let at = self.absolute(dir);
        let repo = &self.repo;
        let nested: BTreeSet<PathBuf> = self.nested.iter().map(|n| self.absolute(Some(n))).collect();
        self.watcher.unwatch_older(&at, |path| {
            path.starts_with(&repo.git_dir)
                || path.starts_with(&repo.common_dir)
                || path.ends_with(".git")
                || nested.contains(path)
        });
    }

    /// A directory has just appeared: watches it and all below it at once, and names the files found,
    /// so that nothing written into it is missed. Reading them can wait.
    pub fn enter(&mut self, dir: &RelPath) -> (Vec<RelPath>, Looked) {
        let (mut files, mut look) = (Vec::new(), Look::default());
        let outer = self.descend(dir);
        let nested = !self.rules.tracks_below(dir) && self.enter_nested(dir);
        let mut level = vec![(Some(dir.clone()), if nested { Descend::No } else { outer })];
        level.retain(|(_, descend)| *descend != Descend::No);
        while !level.is_empty() {
            let mut next = Vec::new();
            for (at, descend) in std::mem::take(&mut level) {
                let Ok(names) = self.watch_and_list(at.as_ref(), &mut look) else { continue };
                for (name, file_type) in names {
                    let Ok(path) = RelPath::join(at.as_ref(), &name) else {
                        self.note_unfit(at.as_ref(), &name);
                        continue;
                    };
                    if file_type != FileType::Directory {
                        files.push(path);
                        continue;
                    }
                    let inner = self.descend_within(&path, descend);
                    if inner != Descend::No {
                        next.push((Some(path), inner));
                    }
                }
            }
            level = next;
        }
        (files, look.looked)
    }

    /// A directory went away: its watches would go on reporting under its old name.
    pub fn leave(&mut self, dir: &RelPath) {
        let dir = self.absolute(Some(dir));
        self.watcher.unwatch_below(&dir);
    }

    /// How far a directory is looked into, but for its being a repository of its own.
    fn descend(&mut self, dir: &RelPath) -> Descend {
        let tracks = self.rules.tracks_below(dir);
        let in_nested = dir.ancestors().any(|above| self.nested.contains(&above)) && !tracks;
        if in_nested || self.rules.tracked(dir) == Tracked::Submodule {
            return Descend::No;
        }
        self.rules.descend(dir, tracks, Descend::All)
    }

    fn descend_within(&mut self, dir: &RelPath, outer: Descend) -> Descend {
        self.nested.remove(dir);
        if self.rules.tracked(dir) == Tracked::Submodule {
            self.nested.insert(dir.clone());
            return Descend::No;
        }
        let tracks = self.rules.tracks_below(dir);
        match self.rules.descend(dir, tracks, outer) {
            Descend::No => Descend::No,
            _ if !tracks && self.enter_nested(dir) => Descend::No,
            inner => inner,
        }
    }

    /// Notices a nested repository. It is watched, not entered, so that its end is seen; one that is
    /// still being made is watched where its making shows.
    fn enter_nested(&mut self, dir: &RelPath) -> bool {
        let Ok(handle) = self.disk.dir(Some(dir)) else { return false };
        let Ok(found) = handle.find(b".git") else { return false };
        if found == Found::Absent {
            return false;
        }
        let absolute = self.absolute(Some(dir));
        let nested = rules::is_nested_repo(&self.repo.workdir, dir, &handle);
        if nested && self.rules.is_ignored(dir, true) {
            return true;
        }
        // A watch that fails here costs only the notice that the nesting began or ended.
        if found == Found::Directory
            && let Ok(dot_git) = handle.dir(b".git")
        {
            let _ = self.watcher.watch(&dot_git, absolute.join(".git"));
        }
        let _ = self.watcher.watch(&handle, absolute);
        if nested {
            self.nested.insert(dir.clone());
        }
        nested
    }

    /// True if a file at `path` would be in the set.
    fn is_member(&mut self, path: &RelPath) -> bool {
        match self.rules.tracked(path) {
            // A file in a submodule's place is what a merge or a person put there.
            Tracked::Yes { .. } | Tracked::Submodule => true,
            Tracked::No => {
                !path.ancestors().any(|above| self.nested.contains(&above))
                    && self.rules.is_untracked_member(path)
            }
        }
    }

    /// Brings one member's leaf up to date, reading the file only if its signature says so.
    fn read_into(&mut self, path: &RelPath, found: Found, look: &mut Look) {
        let limit = self.rules.selection().max_file_size;
        if let Found::File { signature, .. } = found
            && signature.size > limit
        {
            return self.withhold(path, WithheldReason::TooLarge { size: signature.size, limit });
        }
        if self.snapshot.root().get(path).is_some_and(|old| self.is_unchanged(path, old, found)) {
            return self.belongs(path);
        }
        if let Found::File { signature, .. } = found
            && self.defer_large
            && signature.size > DEFER_FROM
        {
            look.looked.large.push(path.clone());
            return;
        }
        match self.disk.read(path, self.repo.hash_kind) {
            ReadOutcome::Read(leaf, read) => self.take_in(path, leaf, read, look),
            ReadOutcome::Gone => self.drop_at(path, look),
            ReadOutcome::Unstable => look.looked.unstable.push(path.clone()),
            ReadOutcome::Unreadable(e) => self.withhold(path, WithheldReason::Unreadable(e.to_string())),
        }
    }

    fn is_unchanged(&self, path: &RelPath, old: &Leaf, found: Found) -> bool {
        match found {
            Found::File { executable, signature } => {
                let mode = if executable { Mode::Executable } else { Mode::File };
                signature == old.signature && self.mode_of(path, mode) == old.mode
            }
            Found::Symlink { signature } => signature == old.signature && old.mode == Mode::Symlink,
            _ => false,
        }
    }

    /// The mode that counts: where the disk's execute bit means nothing, the index has it.
    fn mode_of(&self, path: &RelPath, on_disk: Mode) -> Mode {
        if self.rules.trust_mode() || on_disk == Mode::Symlink {
            return on_disk;
        }
        match self.rules.tracked(path) {
            Tracked::Yes { executable: true, .. } => Mode::Executable,
            _ => Mode::File,
        }
    }

    /// The path is in the set and was looked at.
    fn belongs(&mut self, path: &RelPath) {
        self.released.remove(path);
        self.withheld.remove(path);
    }

    fn withhold(&mut self, path: &RelPath, reason: WithheldReason) {
        self.withheld.insert(path.clone(), reason);
    }

    /// Nothing is at `path` (or something that is no file): it and all below it leave the snapshot.
    fn drop_at(&mut self, path: &RelPath, look: &mut Look) {
        self.nested.remove(path);
        self.withheld.retain(|withheld, _| withheld != path && !withheld.is_below(path));
        self.unfit.retain(|unfit| !unfit.starts_with(path.as_path()));
        for below in self.leaves_below(path).into_iter().chain([path.clone()]) {
            if matches!(self.rules.tracked(&below), Tracked::Yes { skip_worktree: true, .. }) {
                // Git keeps it out of the working tree on purpose: absent is not deleted.
                self.release(&below, look);
                continue;
            }
            self.belongs(&below);
            if self.snapshot.root().get(&below).is_some() {
                look.edits.insert(below, None);
            }
        }
    }

    /// The path leaves the set, but its file was not deleted.
    fn release(&mut self, path: &RelPath, look: &mut Look) {
        self.withheld.remove(path);
        if self.snapshot.root().get(path).is_some() {
            self.released.insert(path.clone());
            look.edits.insert(path.clone(), None);
        }
    }

    fn leaves_below(&self, dir: &RelPath) -> Vec<RelPath> {
        let mut paths = Vec::new();
        if self.snapshot.root().dir(dir).is_some() {
            self.snapshot.root().for_each_leaf_at(dir, &mut |path, _| paths.push(path));
        }
        paths
    }

    fn absolute(&self, path: Option<&RelPath>) -> PathBuf {
        path.map_or_else(|| self.repo.workdir.clone(), |p| self.repo.workdir.join(p.as_path()))
    }

    /// True if the root and the git directory are still where and what they were. An unmounted or
    /// deleted tree must not look like one whose files were all deleted.
    pub fn is_rooted(&self) -> bool {
        let now = Disk::open(&self.repo.workdir).and_then(|d| d.identity());
        let same_root = matches!((now, self.disk.identity()), (Ok(now), Ok(then)) if now == then);
        same_root && self.repo.is_in_place() && self.has_index()
    }

    /// What keeps us from looking whether the tree is where and what it was, if a permission does.
    pub fn denial(&self) -> Option<io::Error> {
        let head = || self.repo.git_dir.join("HEAD").symlink_metadata();
        let look = Disk::open(&self.repo.workdir).and_then(|_| head());
        look.err().filter(|e| e.kind() == io::ErrorKind::PermissionDenied)
    }

    /// False if there was an index that listed files, and now there is none: git never leaves such a gap, so
    /// the repository is being taken away, or is damaged.
    pub fn has_index(&self) -> bool {
        self.rules.expected() == 0 || self.repo.git_dir.join("index").symlink_metadata().is_ok()
    }

    /// Takes up another repository that now stands at the same place.
    pub fn replant(&mut self, repo: Repo, disk: Disk, rules: Rules) {
        (self.repo, self.disk, self.rules) = (repo, Arc::new(disk), rules);
        self.shared.set(self.disk.clone());
    }

    fn commit(&mut self, look: Look) -> Looked {
        let Look { mut edits, mut looked } = look;
        if edits.values().any(Option::is_none) && !self.is_rooted() {
            looked.uprooted = true;
            return looked;
        }
        // A file met where a directory was replaced meanwhile: the deeper look is the newer one.
        let deeper: Vec<RelPath> = edits
            .iter()
            .filter(|(_, leaf)| leaf.is_some())
            .flat_map(|(path, _)| path.ancestors().collect::<Vec<_>>())
            .filter(|above| edits.get(above).is_none_or(Option::is_some))
            .filter(|above| edits.contains_key(above) || self.snapshot.root().get(above).is_some())
            .collect();
        for above in deeper {
            edits.insert(above, None);
        }
        let edits: Vec<(RelPath, Option<Leaf>)> = edits.into_iter().collect();
        let (mut gone, mut back) = (0, 0);
        for (path, leaf) in edits.iter().filter(|(path, _)| self.is_expected(path)) {
            match (self.snapshot.root().get(path), leaf) {
                (Some(_), None) => gone += 1,
                (None, Some(_)) => back += 1,
                _ => {}
            }
        }
        let edited = self.snapshot.edit(
            &edits,
            shared_if_equal(&self.released, self.snapshot.released()),
            shared_if_equal(&self.withheld, self.snapshot.withheld()),
        );
        match edited {
            Ok(snapshot) => {
                self.snapshot = snapshot;
                self.missing = (self.missing + gone).saturating_sub(back);
            }
            Err(conflict) => {
                tracing::debug!(path = %conflict.path, "snapshot conflict, looking again");
                looked.confused = true;
            }
        }
        looked
    }
}

/// How many files git wants below a directory that are not in its tree.
fn count_missing(section: Section<'_>, dir: Option<&Dir>) -> u64 {
    let Some(dir) = dir else { return section.expected() };
    let mut missing = 0;
    let mut entries = dir.entries().peekable();
    for child in section.children() {
        while entries.next_if(|(name, _)| *name < child.name).is_some() {}
        let entry = entries.next_if(|(name, _)| *name == child.name).map(|(_, entry)| entry);
        missing += u64::from(child.expected && !matches!(entry, Some(Entry::Leaf(_))));
        if !child.below.is_empty() {
            let below = match entry {
                Some(Entry::Dir(below)) => Some(&***below),
                _ => None,
            };
            missing += count_missing(child.below, below);
        }
    }
    missing
}

fn shared_if_equal<T: PartialEq + Clone>(current: &T, shared: &Arc<T>) -> Arc<T> {
    if *current == **shared { shared.clone() } else { Arc::new(current.clone()) }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::repo::Selection;

    fn working_tree(root: &std::path::Path) -> WorkingTree {
        let mut git = Command::new("git");
        git.args(["init", "--quiet"]).arg(root);
        let git = git.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null").status().unwrap();
        assert!(git.success());
        let repo = Repo::open(root).unwrap();
        let rules = Rules::load(&repo.gix, Selection::default()).unwrap();
        let disk = Disk::open(&repo.workdir).unwrap();
        WorkingTree::new(repo, disk, rules, Watcher::new().unwrap(), Arc::default())
    }

    /// What asks for a directory to be looked into may have been overtaken: a file is there, and known already.
    #[test]
    fn a_look_into_what_is_a_file_by_now_keeps_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut tree = working_tree(dir.path());
        let (path, place) = (RelPath::new("d").unwrap(), dir.path().join("d"));
        std::fs::create_dir(&place).unwrap();
        std::fs::write(place.join("f"), "1").unwrap();
        tree.scan(None, Trust::Signatures, &mut |_| {});
        std::fs::remove_dir_all(&place).unwrap();
        std::fs::write(&place, "a file").unwrap();
        for _ in 0..2 {
            tree.scan(Some(&path), Trust::Signatures, &mut |_| {});
            assert_eq!(tree.snapshot().root().leaves(), 1);
            assert!(tree.snapshot().root().get(&path).is_some(), "the file is in the set");
        }
    }

    /// A conflict can leave a file where one side has a submodule.
    #[test]
    fn a_file_in_a_submodules_place_is_a_file() {
        let dir = tempfile::tempdir().unwrap();
        working_tree(dir.path());
        let commit = format!("160000,{},lib", "1".repeat(40));
        let mut git = Command::new("git");
        let git = git.arg("-C").arg(dir.path()).args(["update-index", "--add", "--cacheinfo", &commit]);
        assert!(git.status().unwrap().success());
        let (path, place) = (RelPath::new("lib").unwrap(), dir.path().join("lib"));
        std::fs::write(&place, "theirs").unwrap();
        let mut tree = working_tree(dir.path());
        tree.scan(None, Trust::Signatures, &mut |_| {});
        assert!(tree.snapshot().root().get(&path).is_some(), "by a scan");
        std::fs::write(&place, "edited since").unwrap();
        let mut look = Look::default();
        tree.refresh_path(&path, true, &mut look);
        assert!(matches!(look.edits.get(&path), Some(Some(_))), "by an event");
        std::fs::remove_file(&place).unwrap();
        std::fs::create_dir(&place).unwrap();
        std::fs::write(place.join("code.c"), "theirs").unwrap();
        let looked = tree.scan(None, Trust::Signatures, &mut |_| {});
        assert_eq!(tree.snapshot().root().leaves(), 0, "{looked:?}");
    }
}
