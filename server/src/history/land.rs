//! One step, from objects in quarantine to an index in its place.
//!
//! ```text
//! quarantine: boundary -> connected? -> new index, whole
//! our turn:   index.lock -> objects -> shallow -> refs -> settings -> HEAD -> index
//! ```
//!
//! Everything that can be refused is refused above the line. Below it every state is one git can work with: objects
//! come before what names them, and the index last, as git's own commands do it.

use std::collections::{BTreeSet, HashSet};
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bstr::{BString, ByteSlice};
use gitsync_core::model::{ContentId, Dir, HashKind};
use gix::ObjectId;
use rustix::fs::{AtFlags, Timespec, Timestamps};

use super::StepError;
use super::boundary::{self, Boundary};
use super::git::{Git, Stop};
use super::index::{self, Built, Source};
use super::objects::Objects;
use super::pack::{Pack, Quarantine};
use super::refs::{self, Head, Plan, RefEdit, Refs, Tip};
use super::settings;
use super::state::{State, read};
use super::step::{Step, full_name};
use super::unfinished;
use crate::workspace::CloneDir;

/// Commits that were on the boundary and are looked at one by one to say why a step does not hold together.
const LIFTED_MAX: usize = 50;
const LANDED: &str = "landed";

/// What landing needs beside the step.
#[derive(Debug)]
pub struct Landing<'a> {
    pub clone: &'a CloneDir,
    pub state: &'a State,
    /// The managed files as they are when the index is made.
    pub held: &'a dyn Held,
    pub stop: &'a Stop,
}

/// What a landing asks of the session it belongs to.
pub trait Held: std::fmt::Debug {
    fn tree(&self) -> Arc<Dir>;
    /// Is the workspace still this session's?
    fn check(&self) -> Result<(), StepError>;
}

/// What the last landing left, for the next one.
#[derive(Debug, Default)]
struct Landed {
    head: Option<ObjectId>,
    /// Names the list of marked paths.
    marked: Vec<u8>,
    /// Tags we have set.
    tags: Refs,
}

/// Lands a checked step, with the pack that came for it.
pub fn land(at: &Landing<'_>, step: &Step, pack: Option<(&Quarantine<'_>, &Pack)>) -> Result<(), StepError> {
    let clone = at.clone;
    if clone.is_reftable() {
        return Err(StepError::Unsupported("the clone keeps its refs in a reftable".to_owned()));
    }
    let quarantine = pack.map(|(quarantine, _)| quarantine.objects());
    let objects = match &quarantine {
        Some(dir) => Objects::open(clone.path().join(dir), clone.hash())?,
        None => Objects::open(clone.path().join("objects"), clone.hash())?,
    };
    let tree = step.head.map(|head| objects.commit(&head)).transpose()?.map(|(tree, _)| tree);
    let landed = Landed::read(at.state)?;
    let tags = step.tags().iter().map(|(name, id)| (full_name(b"refs/tags/", name.as_bstr()), *id));
    let tags: Refs = tags.collect();
    // Those of an earlier step were looked at then.
    let new_tags = tags.iter().filter(|(name, id)| landed.tags.get(*name) != Some(id)).map(|(_, id)| *id);
    let tips: Vec<ObjectId> = step.head.into_iter().chain(new_tags).collect();
    let shallow = read_boundary(at)?;
    let boundary = connected(at, step, &tips, &objects, quarantine.as_deref(), shallow.as_deref())?;

    let skip: HashSet<BString> = step.skip_worktree().iter().cloned().collect();
    let marked = name_of(step.skip_worktree(), clone.hash());
    let head_before = read_head(clone)?;
    let stands = head_before.as_ref().and_then(|head| commit_of(at, head));
    let keeps_index = !step.anew
        && step.head.is_some()
        && landed.head == step.head
        && stands == step.head
        && landed.marked == marked
        && rustix::fs::statat(clone.fd(), "index", AtFlags::SYMLINK_NOFOLLOW).is_ok();
    let held = at.held.tree();
    let source = Source { clone, objects: &objects, held: &held, skip_worktree: &skip, stop: at.stop };
    let turn;
    let mut built = None;
    let index = match keeps_index {
        true => {
            turn = at.state.turn(at.stop)?;
            None
        }
        false => {
            // Held only from when the index is written: that is what takes long.
            let lock = at.state.prepare(clone, "index", |file| {
                let made = index::write(&source, tree, file)?;
                stamp(file, made.since)?;
                built = Some(made);
                Ok(())
            })?;
            turn = at.state.turn(at.stop)?;
            Some(lock.take(Some(at.stop))?)
        }
    };
    at.held.check()?;
    at.stop.check()?;

    // From here to the end, nothing stops it but an error.
    if let Some((quarantine, pack)) = pack
        && pack.objects > 0
    {
        quarantine.release()?;
    }
    write_boundary(at, &boundary, shallow.as_deref())?;
    let git = Git::new(clone);
    let refs = read_refs(&git)?;
    let head = read_head(clone)?;
    let mut plan = refs::plan(&refs, head.as_ref(), step, &landed.tags);
    if index.is_some() {
        plan.tips.extend(unfinished::heads(clone));
    }
    // Nobody's staged work goes unkept with the first landing in a clone that was somebody's.
    let is_first = index.is_some() && landed.head.is_none();
    let staged = if is_first { unfinished::keep_index(clone)? } else { None };
    let mut next = Landed { head: step.head, marked, tags: landed.tags };
    // A tag of ours must never be taken for somebody else's, whenever we are cut off.
    let all: Refs = next.tags.iter().chain(&tags).map(|(name, id)| (name.clone(), *id)).collect();
    next.tags = tags;
    if all != next.tags || plan != Plan::default() {
        Landed { head: None, marked: Vec::new(), tags: all }.write(at)?;
    }
    change_refs(at, &git, &objects, &refs, &plan, step, staged)?;
    settings::apply(clone, at.state, &step.settings)?;
    if let Some(after) = Head::after(step)
        && head.as_ref() != Some(&after)
    {
        let lock = at.state.lock(clone, "HEAD", |file| {
            file.write_all(&after.print()).map_err(|e| StepError::io("write HEAD", e))
        })?;
        lock.commit()?;
    }
    if let Some(index) = index {
        unfinished::set_aside(clone, SystemTime::now())?;
        index.commit()?;
    }
    next.write(at)?;
    drop(turn);
    if let Some(Built { gitlinks, former_gitlinks, .. }) = built {
        settings::remove_dirs(clone, &former_gitlinks);
        settings::make_dirs(clone, &gitlinks);
    }
    Ok(())
}

fn read_boundary(at: &Landing<'_>) -> Result<Option<Vec<u8>>, StepError> {
    read(at.clone.fd(), b"shallow").map_err(|e| StepError::errno("read the boundary", e))
}

/// The boundary under which everything a step names is here, down to the last content. `held` is the file there.
fn connected(
    at: &Landing<'_>,
    step: &Step,
    tips: &[ObjectId],
    objects: &Objects,
    quarantine: Option<&str>,
    held: Option<&[u8]>,
) -> Result<Boundary, StepError> {
    let held = boundary::parse(held.unwrap_or_default());
    let mut boundary = boundary::merge(&held, &step.shallow, objects)?;
    let checker = Checker { at, objects, quarantine };
    let error = match checker.check(tips, &boundary) {
        Ok(()) => return Ok(boundary),
        Err(e @ StepError::Missing(_))
            if !boundary.lifted.is_empty() && boundary.lifted.len() <= LIFTED_MAX =>
        {
            e
        }
        Err(e) => return Err(e),
    };
    // Commits of other branches may have parents here that lead nowhere.
    let lifted = std::mem::take(&mut boundary.lifted);
    boundary.commits.extend(&lifted);
    checker.check(tips, &boundary)?;
    for id in &lifted {
        if checker.leads_to(step, &boundary, id)? {
            return Err(error);
        }
    }
    Ok(boundary)
}

struct Checker<'a> {
    at: &'a Landing<'a>,
    objects: &'a Objects,
    quarantine: Option<&'a str>,
}

impl Checker<'_> {
    /// Runs git as if `boundary` were the clone's.
    fn run(&self, boundary: &Boundary, args: &[&str], input: &[u8]) -> Result<super::git::Done, StepError> {
        let (clone, state) = (self.at.clone, self.at.state);
        let own = state.own("boundary");
        let mut file = state.create(clone, &own)?;
        file.write_all(&boundary::print(&boundary.commits))
            .map_err(|e| StepError::io("write the boundary", e))?;
        let path = if boundary.commits.is_empty() { String::new() } else { state.relative(&own) };
        let git = Git {
            objects: self.quarantine,
            shallow: Some(&path),
            stop: Some(self.at.stop),
            ..Git::new(clone)
        };
        let done = git.try_run(args, input);
        state.remove(clone, &own);
        done
    }

    fn check(&self, tips: &[ObjectId], boundary: &Boundary) -> Result<(), StepError> {
        let input: String = tips.iter().map(|id| format!("{id}\n")).collect();
        let walk = ["rev-list", "--objects", "--quiet", "--stdin", "--not", "--all"];
        if !input.is_empty() {
            whole(self.run(boundary, &walk, input.as_bytes())?)?;
        }
        // What other refs lead to is believed, and a commit whose parents came is one of those.
        let (mut above, mut known) = (BTreeSet::new(), BTreeSet::new());
        for id in &boundary.lifted {
            let (tree, parents) = self.objects.commit(id)?;
            above.extend(parents);
            known.insert(tree);
        }
        if !above.is_empty() {
            let lines =
                above.iter().map(|id| format!("{id}\n")).chain(known.iter().map(|id| format!("^{id}\n")));
            let input: String = lines.collect();
            whole(self.run(boundary, &walk[..4], input.as_bytes())?)?;
        }
        Ok(())
    }

    /// Is `id` in the history of what the step lands?
    fn leads_to(&self, step: &Step, boundary: &Boundary, id: &ObjectId) -> Result<bool, StepError> {
        let Some(head) = step.head else { return Ok(false) };
        let args = ["merge-base", "--is-ancestor", &id.to_string(), &head.to_string()];
        Ok(self.run(boundary, &args, b"")?.status.success())
    }
}

fn whole(done: super::git::Done) -> Result<(), StepError> {
    match done.status.success() {
        true => Ok(()),
        false => {
            let text = done.errors.lines().next_back().unwrap_or("git rev-list failed").to_owned();
            Err(StepError::Missing(format!("the step does not hold together: {text}")))
        }
    }
}

/// `from` is the file the boundary was made from.
fn write_boundary(at: &Landing<'_>, boundary: &Boundary, from: Option<&[u8]>) -> Result<(), StepError> {
    let text = boundary::print(&boundary.commits);
    let held = read_boundary(at)?;
    if held.as_deref().unwrap_or_default() == text && (held.is_some() != text.is_empty()) {
        return Ok(());
    }
    let lock = at.state.lock(at.clone, "shallow", |file| {
        file.write_all(&text).map_err(|e| StepError::io("write the boundary", e))
    })?;
    if read_boundary(at)?.as_deref() != from {
        return Err(StepError::Busy("somebody else moved the boundary of the history".to_owned()));
    }
    match text.is_empty() {
        true => lock.remove_target(),
        false => lock.commit(),
    }
}

/// What HEAD is, `None` if it cannot be made out.
pub fn read_head(clone: &CloneDir) -> Result<Option<Head>, StepError> {
    let text = read(clone.fd(), b"HEAD").map_err(|e| StepError::errno("read HEAD", e))?;
    Ok(text.and_then(|text| Head::parse(&text)))
}

/// Without a HEAD no git program takes the directory for a repository, so nothing could land. The step is about to write
/// it in any case; until then it is on the step's branch.
pub fn ensure_head(clone: &CloneDir, state: &State, step: &Step) -> Result<(), StepError> {
    if read_head(clone)?.is_some() {
        return Ok(());
    }
    tracing::warn!("the clone's HEAD was gone or damaged");
    let branch = step.branch.as_ref().map_or(b"main".as_slice(), |branch| branch.as_slice());
    let head = Head::Branch(full_name(b"refs/heads/", branch.as_bstr()));
    let _turn = state.turn(&Stop::default())?;
    let lock = state.lock(clone, "HEAD", |file| {
        file.write_all(&head.print()).map_err(|e| StepError::io("write HEAD", e))
    })?;
    lock.commit()
}

pub(super) fn read_refs(git: &Git<'_>) -> Result<Refs, StepError> {
    let args =
        ["for-each-ref", "--format=%(objectname) %(refname)", "refs/heads", "refs/tags", "refs/gitsync"];
    git.run(&args, b"").map(|output| refs::parse(&output))
}

fn commit_of(at: &Landing<'_>, head: &Head) -> Option<ObjectId> {
    match head {
        Head::Detached(id) => Some(*id),
        Head::Branch(name) => {
            let args = ["rev-parse", "--verify", "--quiet", name.to_str().ok()?];
            let output = Git::new(at.clone).run(&args, b"").ok()?;
            ObjectId::from_hex(output.trim()).ok()
        }
    }
}

fn change_refs(
    at: &Landing<'_>,
    git: &Git<'_>,
    objects: &Objects,
    refs: &Refs,
    plan: &Plan,
    step: &Step,
    staged: Option<Tip>,
) -> Result<(), StepError> {
    let mut tips: Vec<Tip> = staged.into_iter().collect();
    for tip in &plan.tips {
        if objects.kind(&tip.id)?.is_some() && (tip.always || is_lost(git, plan, step, &tip.id)) {
            tips.push(tip.clone());
        }
    }
    tips.dedup_by_key(|tip| tip.id);
    let mut clearing = refs::keep(refs, &tips, SystemTime::now());
    clearing.extend(plan.clearing.iter().cloned());
    for edits in [&clearing, &plan.setting] {
        if edits.is_empty() {
            continue;
        }
        at.state.begin(at.clone, &locks(edits))?;
        let input = refs::transaction(edits, at.clone.hash());
        let args = ["-c", "core.logAllRefUpdates=true"];
        let args = [&args[..], &["update-ref", "--no-deref", "-m", "gitsync", "--stdin", "-z"]].concat();
        let done = git.try_run(&args, &input)?;
        at.state.ended(at.clone);
        if !done.status.success() {
            return Err(refs_refused(&done.errors));
        }
    }
    Ok(())
}

pub(super) fn refs_refused(errors: &str) -> StepError {
    let text = errors
        .lines()
        .next_back()
        .unwrap_or("git update-ref failed")
        .trim_start_matches("fatal: ")
        .to_owned();
    if errors.contains("No space left") || errors.contains("Disk quota") {
        StepError::DiskFull
    } else if errors.contains(".lock'") || errors.contains("but expected") {
        StepError::Busy(format!("somebody else works on the refs: {text}"))
    } else {
        StepError::Git { what: "update-ref".to_owned(), errors: text }
    }
}

/// Files git locks with while it changes these refs.
pub(super) fn locks(edits: &[RefEdit]) -> Vec<Vec<u8>> {
    let fixed = ["HEAD.lock", "packed-refs.lock", "packed-refs.new"].map(|name| name.as_bytes().to_vec());
    let own = edits.iter().map(|edit| [edit.name.as_slice(), b".lock"].concat());
    fixed.into_iter().chain(own).collect()
}

/// True unless another branch, a kept tip or the new HEAD leads to the commit.
fn is_lost(git: &Git<'_>, plan: &Plan, step: &Step, id: &ObjectId) -> bool {
    let mut args =
        vec!["rev-list".to_owned(), "--max-count=1".to_owned(), id.to_string(), "--not".to_owned()];
    args.extend(step.head.map(|head| head.to_string()));
    let edits = plan.clearing.iter().chain(&plan.setting);
    for edit in edits.filter(|edit| edit.name.starts_with(b"refs/heads/")) {
        args.extend(edit.name.to_str().ok().map(|name| format!("--exclude={name}")));
    }
    // An exclusion counts for the next pattern only.
    args.push("--glob=refs/heads".to_owned());
    args.push("--glob=refs/gitsync/recovery".to_owned());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    // Where that cannot be said, it is kept.
    git.run(&args, b"").map_or(true, |output| !output.trim().is_empty())
}

fn stamp(file: &std::fs::File, at: SystemTime) -> Result<(), StepError> {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let time = Timespec { tv_sec: since.as_secs().cast_signed(), tv_nsec: since.subsec_nanos().into() };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::futimens(file, &times).map_err(|e| StepError::errno("date the index", e))
}

fn name_of(paths: &[BString], hash: HashKind) -> Vec<u8> {
    match paths.is_empty() {
        true => Vec::new(),
        false => {
            let sorted: BTreeSet<&BString> = paths.iter().collect();
            let list: Vec<&[u8]> = sorted.iter().map(|path| path.as_slice()).collect();
            ContentId::of(hash, &list.join(&0)).as_bytes().to_vec()
        }
    }
}

impl Landed {
    /// Lines `head ID`, `marked ID`, `tag ID NAME`; what is no such line is left out.
    fn read(state: &State) -> Result<Self, StepError> {
        let text = state.read(LANDED).map_err(|e| StepError::errno("read the history state", e))?;
        let mut landed = Self::default();
        for line in text.unwrap_or_default().lines() {
            let mut words = line.splitn_str(3, " ");
            let (word, id) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let Ok(id) = ObjectId::from_hex(id) else { continue };
            match (word, words.next()) {
                (b"head", None) => landed.head = Some(id),
                (b"marked", None) => landed.marked = id.as_bytes().to_vec(),
                (b"tag", Some(name)) => drop(landed.tags.insert(name.into(), id)),
                _ => {}
            }
        }
        Ok(landed)
    }

    fn write(&self, at: &Landing<'_>) -> Result<(), StepError> {
        let mut text = Vec::new();
        if let Some(head) = self.head {
            text.extend_from_slice(format!("head {head}\n").as_bytes());
        }
        if let Ok(id) = ObjectId::try_from(&self.marked[..]) {
            text.extend_from_slice(format!("marked {id}\n").as_bytes());
        }
        for (name, id) in &self.tags {
            text.extend_from_slice(format!("tag {id} ").as_bytes());
            text.extend_from_slice(name);
            text.push(b'\n');
        }
        at.state.write(at.clone, LANDED, &text)
    }
}
