//! What a workspace's clone lacks of the history, and the pack that brings it.
//!
//! A [`Plan`] leads the clone one step on: to where HEAD is now, or to more of what lies before it. Making one
//! reads refs, tags, boundary and index flags and walks commits; the pack itself is made by a `git` child
//! ([`pack`]). Nothing is written, fetched or locked, and commits or blobs that a shallow or partial clone of the
//! user's does not have are not missed: the history ends there.

pub mod pack;
mod walk;

use std::collections::{HashMap, HashSet};
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gix::ObjectId;
use gix::bstr::ByteSlice;
use gix::index::entry::{Flags, Stage};

use self::walk::{Ask, Commit};
use super::open::{OpenError, Repo, read_index};
use crate::model::{HistoryDepth, RelPath};
use crate::wire::{BASELINE_TAGS, CLONE_SHALLOW, SKIP_WORKTREE, Setting, SettingKey, Tag};

/// A move of HEAD brings at most about this many commits; older ones follow behind.
const MOVE_COMMITS: usize = 2_000;

/// What the server said its clone has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CloneState {
    /// `None`: no commit.
    pub head: Option<ObjectId>,
    pub branch: Option<Vec<u8>>,
    /// Commits whose parents it lacks.
    pub shallow: Vec<ObjectId>,
    /// Newest of HEAD's commits that it owns.
    pub common: Option<ObjectId>,
}

/// What is believed of the other side when a step is planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grant {
    /// It has the tags of the commits it has.
    Tags,
    /// It has the commits it names, and all they need.
    Commits,
    /// Nothing.
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// HEAD, branch, tags and index as they are here now.
    Move,
    /// So many older commits.
    Older { commits: usize },
}

/// A step that is wanted.
#[derive(Debug, Clone)]
pub struct Order {
    pub goal: Goal,
    pub head: Option<ObjectId>,
    pub branch: Option<Vec<u8>>,
    pub clone: CloneState,
    /// Commits that an earlier step left the way to, from above.
    pub under: Vec<ObjectId>,
    pub grant: Grant,
    pub depth: HistoryDepth,
    /// The step that last landed on this stream.
    pub landed: Option<Arc<Marks>>,
}

/// What names and flags a step carries beside HEAD and branch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks {
    pub head: Option<ObjectId>,
    pub branch: Option<Vec<u8>>,
    /// Sorted by name.
    pub tags: Vec<Tag>,
    pub settings: Vec<Setting>,
    /// Sorted.
    pub skip_worktree: Vec<RelPath>,
    /// What tags here point to that the clone does not have.
    pub elsewhere: HashSet<ObjectId>,
}

/// One step of the history track.
#[derive(Debug, Clone)]
pub struct Plan {
    pub marks: Arc<Marks>,
    /// All commits whose parents the clone will not have.
    pub shallow: Vec<ObjectId>,
    /// For [`Order::under`] of later steps.
    pub under: Vec<ObjectId>,
    /// What to pack, for `git pack-objects --revs`; `None` if the clone has it all.
    pub revs: Option<Vec<u8>>,
    pub thin: bool,
    /// Commits that come with it.
    pub commits: u64,
    /// After it there is nothing older to bring.
    pub complete: bool,
    pub reason: Reason,
    pub git_dir: PathBuf,
}

/// Why a step is taken. What it displays is for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Reason {
    /// The clone has no commit yet.
    First,
    /// The clone is at a commit that is not known here.
    Unknown(ObjectId),
    BranchChanged {
        from: Option<Vec<u8>>,
        to: Option<Vec<u8>>,
    },
    /// A rebase, an amended commit, a force move, a reset.
    NotAncestor(ObjectId),
    /// Commits on top.
    Forward,
    /// The same commit; names or flags may differ.
    #[default]
    Same,
    Older,
}

/// A step cannot be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("cannot read {what}")]
    Read { what: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{what} has {count} entries, more than {most}")]
    TooMany { what: &'static str, count: usize, most: usize },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let branch = |name: &Option<Vec<u8>>| match name {
            Some(name) => format!("\"{}\"", crate::model::path::escape(name)),
            None => "a detached HEAD".into(),
        };
        match self {
            Self::First => f.write_str("the clone has no commit yet"),
            Self::Unknown(id) => {
                write!(f, "the clone is at {}, which is unknown here", id.to_hex_with_len(12))
            }
            Self::BranchChanged { from, to } => {
                write!(f, "the branch changed from {} to {}", branch(from), branch(to))
            }
            Self::NotAncestor(id) => {
                write!(f, "the clone is at {}, which is not an ancestor of HEAD", id.to_hex_with_len(12))
            }
            Self::Forward => f.write_str("HEAD moved on"),
            Self::Same => f.write_str("the clone is at HEAD"),
            Self::Older => f.write_str("older history"),
        }
    }
}

/// Plans one step for a clone of the repository at `workdir`. `None` if there is nothing to do. Blocks; takes as long
/// as walking the commits between what the clone has and HEAD, once a stream as long as walking all it has.
pub fn plan(workdir: &Path, order: &Order) -> Result<Option<Plan>, PlanError> {
    let mut repo = Repo::open(workdir)?;
    // Ids are what was agreed on: none stands for another here.
    repo.gix.objects.ignore_replacements = true;
    let commits = Commits::new(&repo)?;
    let Some(head) = order.head else {
        let none = Batch { complete: true, ..Batch::default() };
        let marks = read_marks(&repo, order, &none, &mut |_, _| {})?;
        let news = order.landed.as_deref() != Some(&marks);
        return Ok(news.then(|| none.plan(order, marks, Vec::new(), &repo)));
    };
    let batch = match order.goal {
        Goal::Move => commits.to_head(head, order),
        Goal::Older { commits: most } => match commits.older(head, order, most) {
            Some(batch) => batch,
            None => return Ok(None),
        },
    };
    if batch.shallow.len() > CLONE_SHALLOW {
        let (count, most) = (batch.shallow.len(), CLONE_SHALLOW);
        return Err(PlanError::TooMany { what: "the boundary of the history", count, most });
    }
    let boundary: HashSet<ObjectId> = batch.shallow.iter().copied().collect();
    let marks = read_marks(&repo, order, &batch, &mut |missing, found| {
        let mut left = missing.clone();
        walk::visit(head, &boundary, &mut |id| commits.look_up(id), &mut |id| {
            if left.remove(id) {
                found.insert(*id);
            }
            !left.is_empty()
        });
    })?;
    let same = order.landed.as_ref().is_some_and(|landed| **landed == marks);
    if same && batch.commits.is_empty() && order.goal == Goal::Move {
        return Ok(None);
    }
    let tags = batch.tag_objects(order, &marks, &repo);
    Ok(Some(batch.plan(order, marks, tags, &repo)))
}

/// Commits for a step, and what is known about it.
#[derive(Debug, Default)]
struct Batch {
    commits: Vec<ObjectId>,
    /// Where a pack starts, and what the clone has of it.
    from: Vec<ObjectId>,
    not: Vec<ObjectId>,
    /// Boundaries, before and after.
    cuts: Vec<ObjectId>,
    shallow: Vec<ObjectId>,
    under: Vec<ObjectId>,
    complete: bool,
    reason: Reason,
}

impl Batch {
    fn brought(&self) -> HashSet<ObjectId> {
        self.commits.iter().copied().collect()
    }

    /// Tag objects the clone may lack.
    fn tag_objects(&self, order: &Order, marks: &Marks, repo: &Repo) -> Vec<ObjectId> {
        let known: HashMap<&[u8], ObjectId> =
            order.landed.iter().flat_map(|l| &l.tags).map(|t| (t.name.as_slice(), t.target)).collect();
        let (first, brought) = (order.landed.is_none(), self.brought());
        let is_there = |tag: &Tag| known.get(tag.name.as_slice()) == Some(&tag.target);
        let news = marks.tags.iter().filter(|tag| !is_there(tag));
        news.filter_map(|tag| {
            let commit = peel(repo, tag.target)?;
            // A clone that had its commit before has it too, but for what a failed step says.
            let believed = first && order.grant == Grant::Tags && !brought.contains(&commit);
            (commit != tag.target && !believed).then_some(tag.target)
        })
        .collect()
    }

    fn plan(self, order: &Order, marks: Marks, tags: Vec<ObjectId>, repo: &Repo) -> Plan {
        let Self { commits, from, not, cuts, shallow, under, complete, reason } = self;
        let pack = !commits.is_empty() || !tags.is_empty();
        let mut revs = String::new();
        let mut line = |prefix: &str, id: &ObjectId| {
            let _ = writeln!(revs, "{prefix}{id}");
        };
        for id in &cuts {
            line("--shallow ", id);
        }
        for id in from.iter().filter(|_| !commits.is_empty()).chain(&tags) {
            line("", id);
        }
        for id in &not {
            line("^", id);
        }
        Plan {
            marks: Arc::new(marks),
            shallow,
            under,
            revs: pack.then(|| revs.into_bytes()),
            thin: order.grant != Grant::Nothing,
            commits: commits.len() as u64,
            complete,
            reason,
            git_dir: repo.git_dir.clone(),
        }
    }
}

/// Commits of the user's repository.
struct Commits<'a> {
    repo: &'a Repo,
    /// Where it is shallow itself.
    cut: HashSet<ObjectId>,
}

impl<'a> Commits<'a> {
    fn new(repo: &'a Repo) -> Result<Self, PlanError> {
        let shallow =
            repo.gix.shallow_commits().map_err(|e| unreadable("the boundary of a shallow clone", e))?;
        let cut = shallow.iter().flat_map(|commits| commits.iter().copied()).collect();
        Ok(Self { repo, cut })
    }

    fn look_up(&self, id: &ObjectId) -> Option<Commit> {
        let object = self.repo.gix.find_object(*id).ok()?.try_into_commit().ok()?;
        let decoded = object.decode().ok()?;
        let time = decoded.committer().ok().and_then(|c| c.time().ok()).map_or(0, |time| time.seconds);
        Some(Commit { time, parents: decoded.parents().collect(), cut: self.cut.contains(id) })
    }

    fn has(&self, id: &ObjectId) -> bool {
        self.repo.gix.find_header(*id).is_ok_and(|h| h.kind() == gix::objs::Kind::Commit)
    }

    /// What leads the clone to `head`.
    fn to_head(&self, head: ObjectId, order: &Order) -> Batch {
        let look_up = &mut |id: &ObjectId| self.look_up(id);
        let believed = order.grant != Grant::Nothing;
        let claimed = [order.clone.common, order.clone.head];
        let mut owned: Vec<ObjectId> =
            claimed.into_iter().flatten().filter(|id| believed && self.has(id)).collect();
        owned.dedup();
        let boundary: &[ObjectId] = if believed { &order.clone.shallow } else { &[] };
        let from = [head];
        let ask = |most| Ask { from: &from, owned: &owned, boundary, most };
        let mut batch = walk::batch(&ask(if owned.is_empty() { 1 } else { MOVE_COMMITS }), look_up);
        let mut under = if believed { order.under.clone() } else { Vec::new() };
        if batch.commits.len() >= MOVE_COMMITS {
            // HEAD's commit first, and the way down to what is there later.
            batch = walk::batch(&ask(1), look_up);
            under.extend(&owned);
        }
        // Where nothing is believed, the server itself knows what cuts its other branches.
        let mut shallow = boundary.to_vec();
        shallow.retain(|id| !batch.commits.contains(id));
        shallow.extend(&batch.boundary);
        let cuts = boundary.iter().chain(&batch.boundary).copied().collect();
        Batch {
            complete: self.is_complete(head, &shallow, order.depth),
            reason: self.reason(head, order),
            commits: batch.commits,
            from: from.to_vec(),
            not: owned,
            cuts,
            shallow,
            under,
        }
    }

    /// The next commits before the clone's boundary, `None` if it has what it should.
    fn older(&self, head: ObjectId, order: &Order, most: usize) -> Option<Batch> {
        let boundary = &order.clone.shallow;
        let opened: HashSet<ObjectId> = self.openable(boundary).collect();
        let missing = match order.depth {
            HistoryDepth::Full => most,
            HistoryDepth::Commits(wanted) => {
                let has = self.count(head, boundary, wanted);
                most.min(wanted.saturating_sub(has).try_into().unwrap_or(usize::MAX))
            }
        };
        if opened.is_empty() || missing == 0 {
            return None;
        }
        let known: HashSet<&ObjectId> = boundary.iter().collect();
        let mut from: Vec<ObjectId> = opened
            .iter()
            .filter_map(|id| self.look_up(id))
            .flat_map(|commit| commit.parents)
            .filter(|parent| !known.contains(parent))
            .collect();
        from.sort_unstable();
        from.dedup();
        let ask = Ask { from: &from, owned: &order.under, boundary, most: missing };
        let batch = walk::batch(&ask, &mut |id| self.look_up(id));
        let mut shallow: Vec<ObjectId> =
            boundary.iter().filter(|id| !opened.contains(*id)).copied().collect();
        shallow.extend(&batch.boundary);
        let cuts = boundary.iter().chain(&batch.boundary).copied().collect();
        let mut not: Vec<ObjectId> = opened.iter().chain(&order.under).copied().collect();
        not.sort_unstable();
        let complete = self.is_complete(head, &shallow, order.depth);
        let under = if complete { Vec::new() } else { order.under.clone() };
        Some(Batch {
            complete,
            reason: Reason::Older,
            commits: batch.commits,
            from,
            not,
            cuts,
            shallow,
            under,
        })
    }

    /// Boundary commits with parents that could be brought.
    fn openable<'b>(&'b self, boundary: &'b [ObjectId]) -> impl Iterator<Item = ObjectId> + 'b {
        let can = |id: &&ObjectId| {
            !self.cut.contains(*id)
                && self.look_up(id).is_some_and(|commit| commit.parents.iter().all(|parent| self.has(parent)))
        };
        boundary.iter().filter(can).copied()
    }

    fn is_complete(&self, head: ObjectId, shallow: &[ObjectId], depth: HistoryDepth) -> bool {
        let enough = match depth {
            HistoryDepth::Full => false,
            HistoryDepth::Commits(wanted) => self.count(head, shallow, wanted) >= wanted,
        };
        enough || self.openable(shallow).next().is_none()
    }

    fn count(&self, head: ObjectId, boundary: &[ObjectId], most: u64) -> u64 {
        let boundary = boundary.iter().copied().collect();
        walk::count(head, &boundary, most, &mut |id| self.look_up(id))
    }

    fn reason(&self, head: ObjectId, order: &Order) -> Reason {
        let Some(old) = order.clone.head else { return Reason::First };
        if !self.has(&old) {
            return Reason::Unknown(old);
        }
        if order.clone.branch != order.branch {
            let (from, to) = (order.clone.branch.clone(), order.branch.clone());
            return Reason::BranchChanged { from, to };
        }
        if old == head {
            return Reason::Same;
        }
        match walk::is_ancestor(old, head, &mut |id| self.look_up(id)) {
            true => Reason::Forward,
            false => Reason::NotAncestor(old),
        }
    }
}

/// Finds which of some commits the clone has, beside those a step brings.
type Find<'a> = dyn FnMut(&HashSet<ObjectId>, &mut HashSet<ObjectId>) + 'a;

fn read_marks(repo: &Repo, order: &Order, batch: &Batch, find: &mut Find<'_>) -> Result<Marks, PlanError> {
    let landed = order.landed.as_deref();
    let brought = batch.brought();
    // What a clone lacked it lacks still, if it only went on from where it was by what this step brings: not over
    // commits it has from before.
    let is_older = |common| Some(common) == order.clone.head;
    let went_on = landed.filter(|_| match batch.reason {
        Reason::Same | Reason::Older => true,
        Reason::Forward => order.clone.common.is_none_or(is_older),
        _ => false,
    });
    let kept: HashMap<&[u8], ObjectId> =
        landed.iter().flat_map(|l| &l.tags).map(|t| (t.name.as_slice(), t.target)).collect();
    let all = read_tags(repo)?;
    let is_kept = |tag: &Tag| kept.get(tag.name.as_slice()) == Some(&tag.target);
    let is_elsewhere = |commit: &ObjectId| went_on.is_some_and(|l| l.elsewhere.contains(commit));
    let open: HashSet<ObjectId> = all
        .iter()
        .filter(|(tag, commit)| !is_kept(tag) && !brought.contains(commit) && !is_elsewhere(commit))
        .map(|(_, commit)| *commit)
        .collect();
    let mut found = HashSet::new();
    if !open.is_empty() {
        find(&open, &mut found);
    }
    let (mut tags, mut elsewhere) = (Vec::new(), HashSet::new());
    for (tag, commit) in all {
        match is_kept(&tag) || brought.contains(&commit) || found.contains(&commit) {
            true => tags.push(tag),
            false => {
                elsewhere.insert(commit);
            }
        }
    }
    if tags.len() > BASELINE_TAGS {
        return Err(PlanError::TooMany { what: "refs/tags", count: tags.len(), most: BASELINE_TAGS });
    }
    tags.sort();
    Ok(Marks {
        head: order.head,
        branch: order.branch.clone(),
        tags,
        settings: read_settings(repo),
        skip_worktree: read_skip_worktree(repo)?,
        elsewhere,
    })
}

/// Each tag and the commit it leads to. Tags of other objects do not travel.
fn read_tags(repo: &Repo) -> Result<Vec<(Tag, ObjectId)>, PlanError> {
    let what = "refs/tags";
    let refs = repo.gix.references().map_err(|e| unreadable(what, e))?;
    let mut tags = Vec::new();
    // One that cannot be read is git's to complain about.
    for mut reference in refs.tags().map_err(|e| unreadable(what, e))?.filter_map(Result::ok) {
        let Some(target) = reference.try_id().map(gix::Id::detach) else { continue };
        let Some(name) = reference.name().as_bstr().strip_prefix(b"refs/tags/") else { continue };
        let Some(tag) = Tag::new(name, target) else { continue };
        if let Some(commit) = reference.peel_to_id().ok().map(gix::Id::detach)
            && repo.gix.find_header(commit).is_ok_and(|h| h.kind() == gix::objs::Kind::Commit)
        {
            tags.push((tag, commit));
        }
    }
    Ok(tags)
}

/// What a tag's target leads to.
fn peel(repo: &Repo, target: ObjectId) -> Option<ObjectId> {
    Some(repo.gix.find_object(target).ok()?.peel_tags_to_end().ok()?.id)
}

/// The settings that travel, wherever the user has them set.
fn read_settings(repo: &Repo) -> Vec<Setting> {
    let config = repo.gix.config_snapshot();
    let set = |key: SettingKey| {
        let value = config.string(key.name())?.to_str_lossy().into_owned();
        // `[core] fileMode` without a value is true.
        Setting::new(key, if value.is_empty() { "true".into() } else { value })
    };
    SettingKey::ALL.into_iter().filter_map(set).collect()
}

fn read_skip_worktree(repo: &Repo) -> Result<Vec<RelPath>, PlanError> {
    let index = read_index(&repo.gix).map_err(|e| unreadable("the index", e))?;
    let skipped = index
        .entries()
        .iter()
        .filter(|entry| entry.flags.contains(Flags::SKIP_WORKTREE) && entry.stage() == Stage::Unconflicted);
    // A path that cannot be mirrored is not marked either.
    let mut paths: Vec<RelPath> =
        skipped.filter_map(|entry| RelPath::new(entry.path(&index).as_bytes()).ok()).collect();
    if paths.len() > SKIP_WORKTREE {
        return Err(PlanError::TooMany {
            what: "the list of skip-worktree paths",
            count: paths.len(),
            most: SKIP_WORKTREE,
        });
    }
    paths.sort();
    Ok(paths)
}

fn unreadable(what: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> PlanError {
    PlanError::Read { what, source: source.into() }
}
