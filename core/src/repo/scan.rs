//! From dirty paths, or a whole directory, to the next snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::FileType;

use super::blocks::BlockCache;
use super::content::ContentCache;
use super::disk::{self, DirHandle, Disk, Found, Read, ReadOutcome, SharedDisk};
use super::open::Repo;
use super::rules::{self, Rules, RulesError, Tracked};
use super::watch::{WatchError, Watcher};
use crate::model::{Dir, Entry, Leaf, Missing, Mode, RelPath, Snapshot, WithheldReason};

/// A file larger than this would keep the thread from everything else while it is read.
const DEFER_FROM: u64 = 4 << 20;
/// A progress report after this many files of a scan.
const PROGRESS_FILES: u64 = 500;

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
    /// What was withheld since the scan under way began.
    withheld_now: BTreeSet<RelPath>,
    /// Directories that are other repositories' working trees, submodules included.
    nested: BTreeSet<RelPath>,
    /// Files the index wants on disk that the snapshot lacks.
    missing: u64,
    /// Large files are named instead of read.
    pub defer_large: bool,
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
    /// The tree changed shape under the look, and nothing of it was taken.
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

/// Which remembered contents a scan may believe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Those whose file has the signature it had.
    Signatures,
    /// None: every file is read.
    Nothing,
}

/// How far a directory is looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Descend {
    All,
    /// It is ignored, but git tracks files in it, or `include` may name some.
    Selected,
    No,
}

/// What a directory holds: names and kinds.
type Names = Vec<(Vec<u8>, FileType)>;

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
            withheld_now: BTreeSet::new(),
            nested: BTreeSet::new(),
            missing: 0,
            defer_large: false,
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

    /// How many of the files the index wants are missing from disk.
    pub fn missing(&self) -> Missing {
        Missing { files: self.missing, of: self.rules.expected() }
    }

    /// Counts anew, after the index changed.
    pub fn count_missing(&mut self) {
        let (mut missing, root) = (0, self.snapshot.root());
        self.rules.for_each_expected(&mut |path| {
            let there =
                RelPath::new(path).is_ok_and(|p| root.get(&p).is_some() || self.withheld.contains_key(&p));
            missing += u64::from(!there);
        });
        self.missing = missing;
    }

    fn is_expected(&self, path: &RelPath) -> bool {
        matches!(self.rules.tracked(path), Tracked::Yes { skip_worktree: false, .. })
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

    /// Reads the ignore rules anew. The caller scans what they may concern.
    pub fn reload_ignore(&mut self) -> Result<(), RulesError> {
        self.rules.reload_ignore(&self.repo.gix)
    }

    /// Looks at single paths: files, links, directories, or what is there no more. A path whose
    /// membership may have changed without it changing (`recheck`) is judged anew.
    pub fn refresh(&mut self, paths: &[RelPath], recheck: bool) -> Looked {
        let mut look = Look::default();
        for path in paths {
            self.refresh_path(path, recheck, &mut look);
        }
        self.commit(look)
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

    fn refresh_path(&mut self, path: &RelPath, recheck: bool, look: &mut Look) {
        match self.disk.find(path) {
            Ok(Found::Absent | Found::Other) => self.drop_at(path, look),
            Ok(Found::Directory) => {
                if self.snapshot.root().get(path).is_some() {
                    look.edits.insert(path.clone(), None);
                }
                self.scan_into(Some(path), Trust::Signatures, look, &mut |_| {});
            }
            Ok(found) => {
                if self.snapshot.root().dir(path).is_some() {
                    self.drop_at(path, look);
                }
                let known = !recheck && self.snapshot.root().get(path).is_some();
                if known || self.is_member(path) {
                    self.read_into(path, None, found, Trust::Signatures, look);
                } else {
                    self.release(path, look);
                }
            }
            Err(e) => self.withhold(path, WithheldReason::Unreadable(e.to_string())),
        }
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

    fn take_in(&mut self, path: &RelPath, leaf: Leaf, read: Read, look: &mut Look) {
        let leaf = Leaf { mode: self.mode_of(path, leaf.mode), ..leaf };
        match read {
            Read::Bytes(bytes) => self.contents.put(leaf.id, bytes),
            Read::Blocks(blocks) => self.blocks.put(leaf.id, blocks),
        }
        self.belongs(path);
        look.edits.insert(path.clone(), Some(leaf));
    }

    /// Looks at everything below a directory, `None` for the whole tree. `progress` gets the number of
    /// files seen so far, now and then.
    pub fn scan(&mut self, dir: Option<&RelPath>, trust: Trust, progress: &mut dyn FnMut(u64)) -> Looked {
        let mut look = Look::default();
        self.scan_into(dir, trust, &mut look, progress);
        if dir.is_none() {
            self.remembered = None;
        }
        self.commit(look)
    }

    fn scan_into(
        &mut self,
        dir: Option<&RelPath>,
        trust: Trust,
        look: &mut Look,
        progress: &mut dyn FnMut(u64),
    ) {
        let (mut found, mut visited, mut unreadable) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        self.withheld_now.clear();
        let start = match dir {
            None => Descend::All,
            Some(dir) => self.descend(dir),
        };
        let mut level = vec![(dir.cloned(), start)];
        level.retain(|(_, descend)| *descend != Descend::No);
        let mut files = 0;
        while !level.is_empty() {
            let mut next = Vec::new();
            for (at, descend) in std::mem::take(&mut level) {
                let (handle, names) = match self.watch_and_list(at.as_ref(), &mut visited, look) {
                    Ok(listing) => listing,
                    Err(e) if disk::is_absence(&e) => continue,
                    Err(e) => {
                        unreadable.push((at, e.to_string()));
                        continue;
                    }
                };
                for (name, file_type) in names {
                    // What git refuses to add (`.git` in any spelling) is not in the set.
                    let Ok(path) = RelPath::join(at.as_ref(), &name) else { continue };
                    match file_type {
                        FileType::Directory => {
                            let inner = self.descend_within(&path, descend);
                            if inner != Descend::No {
                                next.push((Some(path), inner));
                            }
                        }
                        FileType::RegularFile | FileType::Symlink => {
                            if !self.is_member_within(&path, descend) {
                                continue;
                            }
                            let Ok(at_rest) = handle.find(&name) else { continue };
                            self.read_into(&path, Some(&handle), at_rest, trust, look);
                            found.insert(path);
                            files += 1;
                            if files % PROGRESS_FILES == 0 {
                                progress(files);
                            }
                        }
                        _ => {}
                    }
                }
            }
            level = next;
        }
        for (at, why) in &unreadable {
            if let Some(at) = at {
                self.withhold(at, WithheldReason::Unreadable(why.clone()));
            }
        }
        let below_unreadable =
            |path: &RelPath| unreadable.iter().any(|(at, _)| at.as_ref().is_none_or(|at| path.is_below(at)));
        for path in self.leaves_below(dir) {
            // An unreadable directory is unknown, not empty.
            if !found.contains(&path) && !below_unreadable(&path) && !look.edits.contains_key(&path) {
                self.drop_or_release(&path, look);
            }
        }
        // What was withheld there before and was not now is readable, gone, or not of the set any more.
        let (now, unstable) = (&self.withheld_now, &look.looked.unstable);
        self.withheld.retain(|path, _| {
            let here = dir.is_none_or(|dir| path == dir || path.is_below(dir));
            !here || now.contains(path) || unstable.contains(path)
        });
        self.unwatch_unvisited(dir, &visited);
    }

    /// Opens a directory, watches it, and only then lists what is in it.
    fn watch_and_list(
        &mut self,
        at: Option<&RelPath>,
        visited: &mut BTreeSet<PathBuf>,
        look: &mut Look,
    ) -> io::Result<(DirHandle, Names)> {
        let handle = self.disk.dir(at)?;
        let path = self.absolute(at);
        visited.insert(path.clone());
        if let Err(e) = self.watcher.watch(&handle, path) {
            look.looked.unwatched.get_or_insert(e);
        }
        let names = handle.list()?;
        Ok((handle, names))
    }

    fn unwatch_unvisited(&mut self, dir: Option<&RelPath>, visited: &BTreeSet<PathBuf>) {
        let at = self.absolute(dir);
        let (git, common) = (self.repo.git_dir.clone(), self.repo.common_dir.clone());
        let nested: BTreeSet<PathBuf> = self.nested.iter().map(|n| self.absolute(Some(n))).collect();
        let stale: Vec<PathBuf> = self
            .watcher
            .watched_below(&at)
            .filter(|d| !visited.contains(*d) && !d.starts_with(&git) && !d.starts_with(&common))
            .filter(|d| !nested.contains(*d) && !d.ends_with(".git"))
            .cloned()
            .collect();
        self.watcher.unwatch(&stale);
    }

    /// A directory has just appeared: watches it and all below it at once, and names the files found,
    /// so that nothing written into it is missed. Reading them can wait.
    pub fn enter(&mut self, dir: &RelPath) -> (Vec<RelPath>, Looked) {
        let (mut files, mut look, mut visited) = (Vec::new(), Look::default(), BTreeSet::new());
        let mut level = vec![(Some(dir.clone()), self.descend(dir))];
        level.retain(|(_, descend)| *descend != Descend::No);
        while !level.is_empty() {
            let mut next = Vec::new();
            for (at, descend) in std::mem::take(&mut level) {
                let listing = self.watch_and_list(at.as_ref(), &mut visited, &mut look);
                let Ok((_, names)) = listing else { continue };
                for (name, file_type) in names {
                    let Ok(path) = RelPath::join(at.as_ref(), &name) else { continue };
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

    fn descend(&mut self, dir: &RelPath) -> Descend {
        if dir.ancestors().any(|above| self.nested.contains(&above)) && !self.rules.tracks_below(dir) {
            return Descend::No;
        }
        self.descend_within(dir, Descend::All)
    }

    fn descend_within(&mut self, dir: &RelPath, outer: Descend) -> Descend {
        self.nested.remove(dir);
        if self.rules.tracked(dir) == Tracked::Submodule {
            self.nested.insert(dir.clone());
            return Descend::No;
        }
        let tracks = self.rules.tracks_below(dir);
        let includes = self.rules.may_include_below(dir);
        if !tracks && (outer == Descend::Selected && !includes || self.enter_nested(dir)) {
            return Descend::No;
        }
        let ignored = outer == Descend::Selected || self.rules.is_ignored(&self.repo.gix, dir, true);
        if !ignored || includes && self.rules.is_included(dir, true) {
            return Descend::All;
        }
        if tracks || includes { Descend::Selected } else { Descend::No }
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
        if nested && self.rules.is_ignored(&self.repo.gix, dir, true) {
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
            Tracked::Yes { .. } => true,
            Tracked::Submodule => false,
            Tracked::No => {
                !path.ancestors().any(|above| self.nested.contains(&above)) && self.is_untracked_member(path)
            }
        }
    }

    fn is_member_within(&mut self, path: &RelPath, descend: Descend) -> bool {
        match self.rules.tracked(path) {
            Tracked::Yes { .. } => true,
            Tracked::Submodule => false,
            Tracked::No if descend == Descend::All => self.is_untracked_member(path),
            Tracked::No => self.rules.is_included(path, false),
        }
    }

    fn is_untracked_member(&mut self, path: &RelPath) -> bool {
        !self.rules.is_ignored(&self.repo.gix, path, false) || self.rules.is_included(path, false)
    }

    /// Brings one member's leaf up to date, reading the file only if its signature says so.
    fn read_into(
        &mut self,
        path: &RelPath,
        handle: Option<&DirHandle>,
        found: Found,
        trust: Trust,
        look: &mut Look,
    ) {
        look.looked.files += 1;
        let limit = self.rules.selection().max_file_size;
        if let Found::File { signature, .. } = found
            && signature.size > limit
        {
            return self.withhold(path, WithheldReason::TooLarge { size: signature.size, limit });
        }
        if trust == Trust::Signatures {
            if self.snapshot.root().get(path).is_some_and(|old| self.is_unchanged(path, old, found)) {
                return self.belongs(path);
            }
            let remembered = self.remembered.as_ref().and_then(|tree| tree.get(path)).copied();
            if let Some(old) = remembered.filter(|old| self.is_unchanged(path, old, found)) {
                self.belongs(path);
                look.edits.insert(path.clone(), Some(old));
                return;
            }
        }
        if let Found::File { signature, .. } = found
            && self.defer_large
            && trust == Trust::Signatures
            && signature.size > DEFER_FROM
        {
            look.looked.large.push(path.clone());
            return;
        }
        look.looked.hashed += 1;
        let outcome = match handle {
            Some(dir) => dir.read(path.name(), self.repo.hash_kind),
            None => self.disk.read(path, self.repo.hash_kind),
        };
        match outcome {
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
        self.withheld_now.insert(path.clone());
        self.withheld.insert(path.clone(), reason);
    }

    /// Nothing is at `path` (or something that is no file): it and all below it leave the snapshot.
    fn drop_at(&mut self, path: &RelPath, look: &mut Look) {
        self.nested.remove(path);
        self.withheld.retain(|withheld, _| withheld != path && !withheld.is_below(path));
        for below in self.leaves_below(Some(path)).into_iter().chain([path.clone()]) {
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

    /// A leaf of the snapshot that a scan did not meet as a member.
    fn drop_or_release(&mut self, path: &RelPath, look: &mut Look) {
        match self.disk.find(path) {
            Ok(Found::Absent | Found::Other | Found::Directory) => self.drop_at(path, look),
            Ok(_) => self.release(path, look),
            Err(e) => self.withhold(path, WithheldReason::Unreadable(e.to_string())),
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

    fn leaves_below(&self, dir: Option<&RelPath>) -> Vec<RelPath> {
        let mut paths = Vec::new();
        let mut collect = |path, _: &Leaf| paths.push(path);
        match dir {
            None => self.snapshot.root().for_each_leaf(&mut collect),
            Some(dir) => {
                if let Some(Entry::Dir(below)) = self.snapshot.root().entry(dir) {
                    debug_assert!(!below.is_empty());
                    self.snapshot.root().for_each_leaf_at(dir, &mut collect);
                }
            }
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

fn shared_if_equal<T: PartialEq + Clone>(current: &T, shared: &Arc<T>) -> Arc<T> {
    if *current == **shared { shared.clone() } else { Arc::new(current.clone()) }
}
