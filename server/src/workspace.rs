//! One workspace: the managed files below a directory, and the manifest that says which those are.
//!
//! The only code that writes mirrored files. A patch is checked whole (parent, resulting id, contents)
//! before the first name changes; then each path is swapped by one rename, and what was displaced is
//! inspected. What [`Workspace::held`] says is what was really swapped, even after an error in between.
//! Nothing here knows tasks, the wire or who is connected; everything blocks.
//!
//! Opening takes three steps, because looking at another writer's manifest would disturb it:
//! [`WorkspaceDir::open`] finds or makes the directory, [`WorkspaceDir::acquire`] gives the right to
//! write, [`Workspace::load`] compares manifest and disk.
//!
//! Rooms: `fs` and `os` (file system), `folding` and `space` (what it is like), `dir` (the directory itself), `clone` (its git repository), `remotes` (of what),
//! `log` and `manifest` (what is ours), `load` and `sweep` (is that still true), `stage` and `base` (new contents), `swap`
//! (renames), `recovery` (foreign bytes) and `kept` (reading those).

mod base;
mod clone;
mod dir;
pub mod folding;
pub mod fs;
pub mod kept;
mod load;
mod log;
mod manifest;
pub mod os;
pub mod recovery;
mod remotes;
pub mod space;
mod stage;
mod swap;
mod sweep;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use gitsync_core::model::path::is_gitmodules_alias;
use gitsync_core::model::{
    Change, ChangeKind, ContentId, Dir, Leaf, Mode, PatchId, RelPath, Signature, Snapshot, TreeConflict,
};
use rustix::io::Errno;

pub use self::base::BaseFile;
pub use self::dir::{CloneDir, OpenError, OpenOptions, PlaceError, WorkspaceDir};
pub use self::load::OpenReport;
pub use self::remotes::RemotesDiffer;
pub use self::stage::{StageError, StagedWriter};
pub use self::sweep::Pace;

use self::folding::{Folding, Twins};
use self::fs::{Kind, Stat};
use self::load::{Belief, Trusted};
use self::log::{Content, Intent, Outcome, Record};
use self::manifest::Manifest;
use self::recovery::{Limits, Recovery};
use self::space::NoSpace;
use self::stage::{Slot, Stage, content_of};
use self::swap::{Halt, Place, Step, Swapped};
use self::sweep::{Slice, Sweep};
use crate::epoch::{Fence, FencedError};
use crate::plan::{self, Op, Plan, PlanError};

/// Longest target a symlink can have on Linux.
const LINK_BYTES_MAX: usize = 4095;
/// Two changes this far apart have different times on every file system.
const SETTLED_NS: i64 = 2_000_000_000;

#[derive(Debug)]
pub struct Workspace {
    dir: WorkspaceDir,
    manifest: Manifest,
    stage: Stage,
    recovery: Recovery,
    held: Snapshot,
    /// A path for each content, made when first asked for. Paths that changed since stay in it and are
    /// found out when met.
    index: Option<HashMap<ContentId, RelPath>>,
    epoch: u64,
    opened: OpenReport,
    folding: Folding,
    hold: bool,
    /// The first patch after an adoption is still to come.
    adopting: bool,
    /// What foreign files were found to hold when they were compared with a patch that is still to come.
    compared: HashMap<RelPath, (Signature, ContentId)>,
    /// The look for drift that is under way.
    sweep: Option<Sweep>,
}

/// What applying a patch came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// What is held now: the id asked for, unless paths were refused.
    pub id: PatchId,
    /// Files and links written, mode changes included.
    pub written: u64,
    pub deleted: u64,
    /// Paths where foreign bytes were met. Those are in the recovery store.
    pub kept: Vec<RelPath>,
    /// Paths that could not be applied, and why. All others were.
    pub refused: Vec<(RelPath, String)>,
}

/// What some milliseconds of looking for drift came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swept {
    /// Managed paths that hold something else now, or nothing; a thousand at most.
    pub drifted: Vec<RelPath>,
    /// Every managed file was looked at.
    pub ended: bool,
}

/// Why a patch was not applied, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("the patch starts from another snapshot than the {held} held")]
    ParentMismatch { held: PatchId },
    #[error("the patch leads to {computed}, not to the id it names")]
    IdMismatch { computed: PatchId },
    #[error("{} contents are not here", ids.len())]
    ContentMissing { ids: Vec<ContentId> },
    #[error(transparent)]
    Fenced(#[from] FencedError),
    #[error("no space left in the workspace")]
    DiskFull,
    #[error(transparent)]
    Conflict(TreeConflict),
    #[error("changes are not sorted by path, or name {path} twice")]
    Unsorted { path: RelPath },
    #[error("cannot {action} {path}")]
    Io { action: &'static str, path: RelPath, source: io::Error },
    #[error("cannot bring manifest and disk together")]
    Manifest(#[source] io::Error),
    #[error("cannot look for changed files")]
    Sweep(#[source] io::Error),
}

impl Workspace {
    /// Compares the manifest with the disk, and clears up after whoever wrote here before. Costs one
    /// `lstat` for each managed file.
    pub fn load(dir: WorkspaceDir, fence: &Fence) -> Result<Self, OpenError> {
        let io = |action| {
            let name = dir.name.clone();
            move |errno: Errno| OpenError::Io { name, action, source: errno.into() }
        };
        let held_lock = fence.enter(SystemTime::now())?;
        let replayed =
            manifest::replay(&*dir.fs, &dir.state, dir.hash).map_err(io("read the manifest of"))?;
        let mut opened = OpenReport { damaged: replayed.damaged, ..OpenReport::default() };
        let now = SystemTime::now();
        let recovery = Recovery::open(dir.fs.clone(), dir.state.clone(), Limits::default())
            .map_err(io("look through what is kept of"))?;
        let stage = load::fresh_stage(&dir, fence.number(), &replayed, &recovery, &mut opened)
            .map_err(io("clear the stage of"))?;
        if let Err(errno) = recovery.prune(now) {
            tracing::warn!(workspace = dir.name, "cannot remove old kept files: {errno}");
        }
        let folding = dir.fs.folding(dir.state.as_fd()).map_err(io("try out the file system of"))?;
        let settled = dir.is_settled().map_err(io("read the place of"))?;
        let trusted = match (settled, replayed.same_boot) {
            (false, _) => Trusted::Nobodys,
            (true, same_boot) if same_boot || replayed.logged.is_empty() => Trusted::All,
            // What only the log tells lies behind no barrier.
            (true, _) => Trusted::AllBut(&replayed.logged),
        };
        let belief = Belief { tree: &replayed.tree, unfinished: &replayed.unfinished, trusted };
        let tree = load::verify(&dir, &belief, &mut opened).map_err(io("look through"))?;
        let changed = opened.rehashed > 0 || !opened.drifted.is_empty() || !opened.missing.is_empty();
        let resumed = if replayed.can_continue() && !changed {
            Manifest::resume(dir.fs.clone(), dir.state.clone(), &replayed).ok()
        } else {
            None
        };
        let manifest = match resumed {
            Some(manifest) => manifest,
            None => Manifest::start(dir.fs.clone(), dir.state.clone(), &replayed, &tree)
                .map_err(io("write the manifest of"))?,
        };
        dir.settle().map_err(io("write the place of"))?;
        drop(held_lock);
        let held = Snapshot::of(tree);
        let epoch = fence.number();
        let adopting = dir.is_adopting().map_err(io("look into"))?;
        Ok(Self {
            dir,
            manifest,
            stage,
            recovery,
            held,
            index: None,
            epoch,
            opened,
            folding,
            hold: false,
            adopting,
            compared: HashMap::new(),
            sweep: None,
        })
    }

    /// What the managed files are now.
    pub fn held(&self) -> &Snapshot {
        &self.held
    }

    pub fn dir(&self) -> &WorkspaceDir {
        &self.dir
    }

    /// From now on, a path whose file is not what we wrote is refused (`true`), or the file there is kept and
    /// replaced (`false`, as at first).
    pub fn set_hold(&mut self, hold: bool) {
        self.hold = hold;
    }

    /// Is there room for `need` more bytes? An answer that cannot be had is yes: the disk then says no itself.
    pub fn check_space(&self, need: u64) -> Result<(), NoSpace> {
        match self.dir.fs.space(self.stage.dir()) {
            Ok(space) => space::check(need, space),
            Err(_) => Ok(()),
        }
    }

    /// Looks for drift for a few milliseconds. What is told of is foreign from then on.
    pub fn sweep(&mut self, fence: &Fence) -> Result<Swept, ApplyError> {
        let mut sweep = self.sweep.take().unwrap_or_else(|| Sweep::new(self.held.root()));
        let slice = sweep.slice(&self.dir, self.held.root());
        let slice = slice.map_err(|errno| ApplyError::Sweep(errno.into()))?;
        let mut swept = Swept { drifted: Vec::new(), ended: slice == Slice::Ended };
        if slice != Slice::More {
            let (edits, drifted) = sweep.verdict(self.held.root());
            if !edits.is_empty() {
                let _lock = self.enter(fence, SystemTime::now())?;
                self.take_in(&edits)?;
                // Where this fails, the next opening finds the same.
                let _ = self.log_done(0, &edits);
            }
            swept.drifted = drifted;
        }
        if !swept.ended {
            self.sweep = Some(sweep);
        }
        Ok(swept)
    }

    /// True between two sweeps.
    pub fn is_swept(&self) -> bool {
        self.sweep.is_none()
    }

    /// True from the adoption of a directory until its first patch was applied to the end. What a comparison of
    /// everything finds too much until then may be somebody's.
    pub fn is_adopting(&self) -> bool {
        self.adopting
    }

    /// What [`Workspace::load`] found.
    pub fn opened(&self) -> &OpenReport {
        &self.opened
    }

    /// True if a managed file has this content, or it is staged. The first call makes an index of all
    /// managed files.
    pub fn contains(&mut self, id: &ContentId) -> bool {
        self.stage.has(id) || self.path_of(id).is_some()
    }

    /// The contents of `changes` that have to be sent: neither staged, nor in a managed file, nor in a
    /// foreign file at the very path. Each once, in order of path.
    pub fn missing(&mut self, changes: &[Change]) -> Vec<ContentId> {
        let mut missing = Vec::new();
        let mut seen = BTreeSet::new();
        for change in changes {
            let ChangeKind::Put { mode, id, size } = change.kind else { continue };
            if self.held.root().get(&change.path).is_some_and(|leaf| leaf.id == id)
                || seen.contains(&id)
                || self.contains(&id)
                || self.foreign_twin(&change.path, mode, &id, size).is_ok_and(|twin| twin.is_some())
            {
                continue;
            }
            seen.insert(id);
            missing.push(id);
        }
        missing
    }

    /// Managed paths that `changes`, sorted by path, do not name: what a whole patch has to delete.
    pub fn extra(&self, changes: &[Change]) -> Vec<RelPath> {
        let mut named = changes.iter().map(|change| &change.path).peekable();
        let mut extra = Vec::new();
        self.held.root().for_each_leaf(&mut |path, _| {
            while named.next_if(|next| **next < path).is_some() {}
            if named.peek() != Some(&&path) {
                extra.push(path);
            }
        });
        extra
    }

    /// Begins a content of `size` bytes. Several may be under way, also across calls of
    /// [`Workspace::apply`]; [`Workspace::finish`] makes one available.
    pub fn stage(&self, id: ContentId, size: u64) -> Result<StagedWriter, StageError> {
        self.stage.writer(id, size)
    }

    /// The same for one that is named before it is finished.
    pub fn stage_nameless(&self, size: u64) -> Result<StagedWriter, StageError> {
        self.stage.nameless_writer(self.held.root().hash_kind(), size)
    }

    /// Verifies a content that was written to its end. It stays staged until a patch uses it or
    /// [`Workspace::discard_stage`].
    pub fn finish(&mut self, writer: StagedWriter) -> Result<(), StageError> {
        self.stage.finish(writer)
    }

    /// A small content in one go.
    pub fn stage_bytes(&mut self, id: ContentId, bytes: &[u8]) -> Result<(), StageError> {
        let mut writer = self.stage(id, bytes.len() as u64)?;
        writer.write(bytes)?;
        self.finish(writer)
    }

    /// Forgets every content that is staged, but for those that wait for their patch.
    pub fn discard_stage(&mut self) {
        self.stage.discard();
    }

    /// True if the content is staged.
    pub fn has_staged(&self, id: &ContentId) -> bool {
        self.stage.has(id)
    }

    /// Keeps a staged content beyond [`Workspace::discard_stage`], until a patch that names it was applied or
    /// [`Workspace::forget`] names it.
    pub fn keep_ahead(&mut self, id: ContentId) {
        self.stage.keep_ahead(id);
    }

    /// How many contents are kept so.
    pub fn ahead_len(&self) -> usize {
        self.stage.ahead_len()
    }

    /// These contents are not waited for any more.
    pub fn forget<'a>(&mut self, ids: impl IntoIterator<Item = &'a ContentId>) {
        self.stage.release_ahead(ids);
    }

    /// Turns the snapshot `parent` into `next`. Nothing is touched unless the changes lead exactly there
    /// and all contents are at hand; asking for what is held already is always fine.
    pub fn apply(
        &mut self,
        parent: PatchId,
        next: PatchId,
        generation: u64,
        changes: &[Change],
        fence: &Fence,
    ) -> Result<Applied, ApplyError> {
        let now = SystemTime::now();
        let _lock = self.enter(fence, now)?;
        let held = self.held.id();
        if held == next {
            self.release_ahead(changes);
            return Ok(Applied { id: held, written: 0, deleted: 0, kept: Vec::new(), refused: Vec::new() });
        }
        if held != parent {
            return Err(ApplyError::ParentMismatch { held });
        }
        let plan = plan::plan(self.held.root(), changes).map_err(|e| match e {
            PlanError::Unsorted { path } => ApplyError::Unsorted { path },
            PlanError::Conflict(conflict) => ApplyError::Conflict(conflict),
        })?;
        if plan.id() != next {
            return Err(ApplyError::IdMismatch { computed: plan.id() });
        }
        let applied = self.carry_out(&plan, generation, now);
        self.keep_log_short();
        self.compared.clear();
        if self.adopting && applied.is_ok() {
            self.dir.end_adoption().map_err(manifest_error)?;
            self.adopting = false;
        }
        match &applied {
            Ok(_) => self.release_ahead(changes),
            Err(ApplyError::DiskFull) => self.stage.clear(),
            Err(_) => {}
        }
        applied
    }

    /// What these changes name has had its patch.
    fn release_ahead(&mut self, changes: &[Change]) {
        self.stage.release_ahead(changes.iter().filter_map(|change| match &change.kind {
            ChangeKind::Put { id, .. } => Some(id),
            ChangeKind::Delete | ChangeKind::Release => None,
        }));
    }

    /// Reads every managed file, whatever its signature, and holds what was found. A file whose content is
    /// not what we wrote is foreign from then on. Writes nothing: the next patch starts with a new
    /// checkpoint.
    pub fn rehash(&mut self) -> Result<OpenReport, ApplyError> {
        let mut report = OpenReport::default();
        let belief =
            Belief { tree: self.held.root(), unfinished: &BTreeMap::new(), trusted: Trusted::Nobodys };
        let tree = load::verify(&self.dir, &belief, &mut report).map_err(manifest_error)?;
        self.held = Snapshot::of(tree);
        self.index = None;
        self.sweep = None;
        self.manifest.distrust();
        Ok(report)
    }

    /// Folds a long log into a new checkpoint, after syncing the file system. For quiet moments: that can take
    /// long, so it is begun in one call, goes on beside whatever comes, and takes effect in a later call. True while
    /// one is to come for that. Kept files that are too old, or too many, go.
    pub fn maintain(&mut self, fence: &Fence) -> Result<bool, ApplyError> {
        if let Err(errno) = self.recovery.prune(SystemTime::now()) {
            tracing::warn!(workspace = self.dir.name, "cannot remove old kept files: {errno}");
        }
        if self.manifest.has_begun() {
            let _lock = self.enter(fence, SystemTime::now())?;
            self.manifest.finish_checkpoint().map_err(manifest_error)?;
        } else if self.manifest.is_broken() {
            self.checkpoint(fence)?;
        } else if self.manifest.wants_checkpoint() {
            self.begin_checkpoint().map_err(manifest_error)?;
        }
        Ok(self.manifest.has_begun())
    }

    fn begin_checkpoint(&mut self) -> Result<(), Errno> {
        let (stage, name) = (self.stage.shared_dir(), self.stage.name('u'));
        self.manifest.begin_checkpoint(self.held.root(), stage, name)
    }

    /// What [`Workspace::maintain`] does for the log, as far as it cannot wait for a quiet moment that may never
    /// come. Nothing here takes long, and the patch is applied whatever comes of it.
    fn keep_log_short(&mut self) {
        let done = match self.manifest.has_begun() {
            true => self.manifest.finish_checkpoint().map(|_| ()),
            false if self.manifest.is_overdue() => self.begin_checkpoint(),
            false => Ok(()),
        };
        if let Err(errno) = done {
            tracing::warn!(workspace = self.dir.name, "cannot write a checkpoint: {errno}");
        }
    }

    /// Leaves a manifest that can be trusted after anything, and nothing staged.
    pub fn close(mut self, fence: &Fence) -> Result<(), ApplyError> {
        self.stage.clear();
        if !self.manifest.is_clean() {
            self.checkpoint(fence)?;
        }
        Ok(())
    }

    fn checkpoint(&mut self, fence: &Fence) -> Result<(), ApplyError> {
        let _lock = self.enter(fence, SystemTime::now())?;
        self.manifest.checkpoint(self.held.root()).map_err(manifest_error)
    }

    /// A fence younger than the manifest in memory is as good as none: another process may have written.
    fn enter<'f>(&self, fence: &'f Fence, now: SystemTime) -> Result<crate::epoch::Held<'f>, FencedError> {
        let lock = fence.enter(now)?;
        if fence.number() != self.epoch {
            return Err(FencedError::Superseded { owner: String::new(), number: fence.number() });
        }
        Ok(lock)
    }

    fn carry_out(&mut self, plan: &Plan, generation: u64, now: SystemTime) -> Result<Applied, ApplyError> {
        let mut ready = Ready::default();
        let prepared = self.prepare(plan, &mut ready).and_then(|()| {
            if !ready.missing.is_empty() {
                return Err(ApplyError::ContentMissing { ids: std::mem::take(&mut ready.missing) });
            }
            self.log_begin(generation, &ready.steps).map_err(manifest_error)
        });
        if let Err(error) = prepared {
            self.take_back(ready.steps);
            return Err(error);
        }
        for id in &ready.spent {
            self.stage.drop_one(id);
        }
        let place = Place {
            fs: &*self.dir.fs,
            root: self.dir.root.clone(),
            stage: &self.stage,
            recovery: &self.recovery,
            held: self.held.root(),
            next: &plan.next,
            umask: self.dir.umask,
            now,
            hold: self.hold,
            exact: self.folding.is_none(),
        };
        let (mut swapped, halt) = swap::swap(&place, ready.steps);
        self.record(&swapped, generation)?;
        if let Some(Halt { action, path, errno }) = halt {
            return Err(match errno {
                Errno::NOSPC | Errno::DQUOT => ApplyError::DiskFull,
                _ => ApplyError::Io { action, path, source: errno.into() },
            });
        }
        swapped.refused.extend(ready.refused);
        swapped.refused.sort();
        let Swapped { written, deleted, kept, refused, .. } = swapped;
        Ok(Applied { id: self.held.id(), written, deleted, kept, refused })
    }

    /// Takes what happened into memory and log.
    fn record(&mut self, swapped: &Swapped, generation: u64) -> Result<(), ApplyError> {
        let edits: Vec<(RelPath, Option<Leaf>)> =
            swapped.outcomes.iter().map(|(path, leaf)| (path.clone(), *leaf)).collect();
        self.take_in(&edits)?;
        // If this fails the files are what they are, and `Begin` names every content they may have. The
        // next patch starts with a new checkpoint.
        let _ = self.log_done(generation, &edits);
        Ok(())
    }

    fn take_in(&mut self, edits: &[(RelPath, Option<Leaf>)]) -> Result<(), ApplyError> {
        self.held = self
            .held
            .edit(edits, self.held.released().clone(), self.held.withheld().clone())
            .map_err(ApplyError::Conflict)?;
        if let Some(index) = &mut self.index {
            index.extend(edits.iter().filter_map(|(path, leaf)| Some((leaf.as_ref()?.id, path.clone()))));
        }
        Ok(())
    }

    fn log_done(&mut self, generation: u64, edits: &[(RelPath, Option<Leaf>)]) -> Result<(), Errno> {
        if self.manifest.is_broken() {
            // Half a record may be at the log's end; nothing after it would be read.
            return Ok(());
        }
        let outcomes = edits.iter().map(|(path, leaf)| Outcome::of(path, leaf.as_ref())).collect();
        self.manifest.append_start()?;
        self.manifest.append(&Record::Done { generation, outcomes })
    }

    fn log_begin(&mut self, generation: u64, steps: &[Step]) -> Result<(), Errno> {
        if self.manifest.is_broken() {
            self.manifest.checkpoint(self.held.root())?;
        }
        let intents = steps.iter().map(intent).collect();
        self.manifest.append_start()?;
        self.manifest.append(&Record::Begin { generation, intents })
    }

    /// Staged files that were set aside for steps go back to the stage.
    fn take_back(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Put { mode: Mode::Symlink, slot, .. } => {
                    let _ = self.dir.fs.unlink(self.stage.dir(), &slot.name);
                }
                Step::Put { id, slot, .. } => self.stage.give_back(id, slot),
                _ => {}
            }
        }
    }

    /// Turns operations into steps: every content in a staged file of its own.
    fn prepare(&mut self, plan: &Plan, ready: &mut Ready) -> Result<(), ApplyError> {
        let staying = self.staying(plan)?;
        let mut twins = Twins::new(self.folding, &staying);
        let mut wanted: HashMap<ContentId, usize> = HashMap::new();
        for op in &plan.ops {
            if let Op::Put { id, .. } = op {
                *wanted.entry(*id).or_default() += 1;
            }
        }
        for op in &plan.ops {
            let path = op.path().clone();
            match *op {
                Op::Remove { old, .. } => {
                    ready.steps.push(Step::Remove { path, old, slot: self.stage.name('d') });
                }
                Op::Release { .. } => ready.steps.push(Step::Release { path }),
                Op::Chmod { old, mode, .. } if self.can_chmod(&path, &old) => {
                    ready.steps.push(Step::Chmod { path, old, mode });
                }
                Op::Chmod { old, mode, .. } => {
                    *wanted.entry(old.id).or_default() += 1;
                    let put = Put { old: Some(old), mode, id: old.id, size: old.signature.size };
                    self.prepare_put(path, put, &mut wanted, ready)?;
                }
                Op::Put { old, mode, id, size, .. } => {
                    if old.is_none()
                        && let Some(twin) = twins.claim(&path)
                    {
                        let left = wanted.entry(id).or_default();
                        *left = left.saturating_sub(1);
                        ready.spent.extend((*left == 0).then_some(id));
                        ready.refused.push((path, format!("case twin of {twin}")));
                        continue;
                    }
                    self.prepare_put(path, Put { old, mode, id, size }, &mut wanted, ready)?;
                }
            }
        }
        if !self.folding.is_none() {
            // A name that only changes its case has to be free before it is taken.
            ready.steps.sort_by_key(|step| !matches!(step, Step::Remove { .. }));
        }
        Ok(())
    }

    /// What is held but for what `plan` removes, where names fold; elsewhere nobody asks.
    fn staying(&self, plan: &Plan) -> Result<Arc<Dir>, ApplyError> {
        let held = self.held.root();
        if self.folding.is_none() {
            return Ok(held.clone());
        }
        let removed = plan.ops.iter().filter(|op| matches!(op, Op::Remove { .. }));
        let mut edits: Vec<_> = removed.map(|op| (op.path().clone(), None)).collect();
        edits.sort_by(|a, b| a.0.cmp(&b.0));
        held.edit(&edits).map_err(ApplyError::Conflict)
    }

    fn prepare_put(
        &mut self,
        path: RelPath,
        put: Put,
        wanted: &mut HashMap<ContentId, usize>,
        ready: &mut Ready,
    ) -> Result<(), ApplyError> {
        let Put { old, mode, id, size } = put;
        let failed = |path: &RelPath, errno: Errno| match errno {
            Errno::NOSPC | Errno::DQUOT => ApplyError::DiskFull,
            _ => ApplyError::Io { action: "stage", path: path.clone(), source: errno.into() },
        };
        if mode == Mode::Symlink && is_gitmodules_alias(path.name()) {
            // Git reads this file through a symlink and believes what is there (CVE-2018-11235 and after).
            ready.refused.push((path, "a .gitmodules that is a symlink".to_owned()));
            return Ok(());
        }
        if !self.stage.has(&id) {
            if old.is_none()
                && let Some(there) =
                    self.foreign_twin(&path, mode, &id, size).map_err(|e| failed(&path, e))?
            {
                if there.mode() == Some(mode) {
                    ready
                        .steps
                        .push(Step::Adopt { path, leaf: Leaf { mode, id, signature: there.signature } });
                    return Ok(());
                }
                self.fetch(&path, &id).map_err(|e| failed(&path, e))?;
            }
            if !self.stage.has(&id) && !self.fetch_managed(&path, &id).map_err(|e| failed(&path, e))? {
                if !ready.missing.contains(&id) {
                    ready.missing.push(id);
                }
                return Ok(());
            }
        }
        // The last one to want a content takes the file, the others get copies.
        let left = wanted.entry(id).or_default();
        *left = left.saturating_sub(1);
        let last = *left == 0;
        if mode == Mode::Symlink {
            match self.link(&id).map_err(|e| failed(&path, e))? {
                Ok(slot) => ready.steps.push(Step::Put { path, old, mode, id, slot }),
                Err(why) => ready.refused.push((path, why)),
            }
            ready.spent.extend(last.then_some(id));
            return Ok(());
        }
        let slot = if last {
            self.stage.take(&id)
        } else {
            self.stage.duplicate(&id).map_err(|e| failed(&path, e))?
        };
        match slot {
            Some(slot) => ready.steps.push(Step::Put { path, old, mode, id, slot }),
            None => ready.missing.push(id),
        }
        Ok(())
    }

    /// Makes a symlink in the stage, or says why its content cannot be a target.
    fn link(&self, id: &ContentId) -> Result<Result<Slot, String>, Errno> {
        let target = self.stage.bytes(id, LINK_BYTES_MAX)?.ok_or(Errno::NOENT)?;
        if target.is_empty() || target.len() > LINK_BYTES_MAX || target.contains(&0) {
            return Ok(Err("no file system takes this symlink's target".to_owned()));
        }
        let name = self.stage.name('u');
        self.dir.fs.symlink(&target, self.stage.dir(), &name)?;
        Ok(Ok(Slot { name, file: None }))
    }

    /// A mode change leaves the inode alone only if it is ours alone.
    fn can_chmod(&self, path: &RelPath, old: &Leaf) -> bool {
        self.stat(path).is_ok_and(|stat| {
            stat.is_some_and(|stat| {
                stat.kind == Kind::File && stat.links == 1 && stat.signature == old.signature
            })
        })
    }

    /// What is at a path, if it has this very content.
    fn foreign_twin(
        &mut self,
        path: &RelPath,
        mode: Mode,
        id: &ContentId,
        size: u64,
    ) -> Result<Option<Stat>, Errno> {
        let Some(stat) = self.stat(path)? else { return Ok(None) };
        let comparable = match stat.kind {
            Kind::File => mode != Mode::Symlink,
            Kind::Symlink => mode == Mode::Symlink,
            Kind::Dir | Kind::Other => false,
        };
        if !comparable || stat.signature.size != size {
            return Ok(None);
        }
        if let Some((signature, found)) = self.compared.get(path)
            && *signature == stat.signature
        {
            return Ok((found == id).then_some(stat));
        }
        let at = self.parent(path)?;
        let found = content_of(&*self.dir.fs, at.as_fd(), path.name(), &stat, self.dir.hash)?;
        if let Some(found) = found
            && is_settled(&stat.signature, SystemTime::now())
        {
            self.compared.insert(path.clone(), (stat.signature, found));
        }
        Ok((found.as_ref() == Some(id)).then_some(stat))
    }

    /// Copies the file at a path into the stage if it has this content.
    fn fetch(&mut self, path: &RelPath, id: &ContentId) -> Result<bool, Errno> {
        let at = match self.parent(path) {
            Ok(at) => at,
            Err(errno) if is_absent(errno) => return Ok(false),
            Err(errno) => return Err(errno),
        };
        let Some(slot) = self.stage.copy(at.as_fd(), path.name(), id)? else { return Ok(false) };
        self.stage.give_back(*id, slot);
        Ok(true)
    }

    /// Copies the content from the managed file at `path`, or from any other that has it.
    fn fetch_managed(&mut self, path: &RelPath, id: &ContentId) -> Result<bool, Errno> {
        if self.held.root().get(path).is_some_and(|leaf| leaf.id == *id) && self.fetch(path, id)? {
            return Ok(true);
        }
        match self.path_of(id) {
            Some(path) => self.fetch(&path, id),
            None => Ok(false),
        }
    }

    /// A managed path with this content.
    fn path_of(&mut self, id: &ContentId) -> Option<RelPath> {
        let root = self.held.root();
        let has = |path: &RelPath| root.get(path).is_some_and(|leaf| leaf.id == *id);
        if let Some(index) = &self.index {
            let path = index.get(id)?;
            if has(path) {
                return Some(path.clone());
            }
        }
        // Not made yet, or the path named for this content has changed and another may have it.
        let mut index = HashMap::with_capacity(root.leaves() as usize);
        root.for_each_leaf(&mut |path, leaf| {
            index.entry(leaf.id).or_insert(path);
        });
        self.index.insert(index).get(id).cloned()
    }

    fn stat(&self, path: &RelPath) -> Result<Option<Stat>, Errno> {
        match self.parent(path).and_then(|at| self.dir.fs.stat_at(at.as_fd(), path.name())) {
            Ok(stat) => Ok(Some(stat)),
            Err(errno) if is_absent(errno) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn parent(&self, path: &RelPath) -> Result<Arc<std::os::fd::OwnedFd>, Errno> {
        match path.parent() {
            None => Ok(self.dir.root.clone()),
            Some(parent) => self.dir.fs.open_dir(self.dir.root.as_fd(), parent.as_bytes()).map(Arc::new),
        }
    }
}

/// Changed so long ago that the next change has another time.
fn is_settled(signature: &Signature, now: SystemTime) -> bool {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as i64;
    signature.ctime_ns.max(signature.mtime_ns) < now - SETTLED_NS
}

/// Nothing of ours can be there: no such name, or not reachable beneath the root without a symlink.
fn is_absent(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::ACCESS | Errno::NAMETOOLONG
    )
}

struct Put {
    old: Option<Leaf>,
    mode: Mode,
    id: ContentId,
    size: u64,
}

/// Steps as far as they could be prepared.
#[derive(Default)]
struct Ready {
    steps: Vec<Step>,
    missing: Vec<ContentId>,
    refused: Vec<(RelPath, String)>,
    /// Contents no step needs in the stage any more.
    spent: Vec<ContentId>,
}

fn intent(step: &Step) -> Intent<'_> {
    fn content(leaf: &Leaf) -> Content<'_> {
        Content::of(leaf.mode, &leaf.id)
    }
    match step {
        Step::Remove { path, old, slot } => {
            Intent { path: path.as_bytes(), old: Some(content(old)), new: None, slot: Some(slot) }
        }
        Step::Release { path } => Intent { path: path.as_bytes(), old: None, new: None, slot: None },
        Step::Chmod { path, old, mode } => Intent {
            path: path.as_bytes(),
            old: Some(content(old)),
            new: Some(Content::of(*mode, &old.id)),
            slot: None,
        },
        Step::Adopt { path, leaf } => {
            Intent { path: path.as_bytes(), old: None, new: Some(content(leaf)), slot: None }
        }
        Step::Put { path, old, mode, id, slot } => Intent {
            path: path.as_bytes(),
            old: old.as_ref().map(content),
            new: Some(Content::of(*mode, id)),
            slot: Some(&slot.name),
        },
    }
}

fn manifest_error(errno: Errno) -> ApplyError {
    match errno {
        Errno::NOSPC | Errno::DQUOT => ApplyError::DiskFull,
        _ => ApplyError::Manifest(errno.into()),
    }
}
