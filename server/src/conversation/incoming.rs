//! A patch on its way in: its changes, then its contents, each checked as it comes.

use std::collections::HashSet;

use gitsync_core::model::{Change, ChangeKind, ContentId, MAX_CHANGES, PatchId, RelPath};
use gitsync_core::wire::{Chunk, PatchHeader, PatchKind, Refusal, RefusalCode};

use super::Broken;
use crate::intake::{Intake, PieceError};
use crate::service::refusal_of;
use crate::workspace::{StageError, Workspace};

/// A patch on its way in.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) header: PatchHeader,
    pub(super) changes: Vec<Change>,
    /// Answers to `Wanted.extra`, for a whole patch.
    pub(super) removals: Vec<Change>,
    pub(super) changes_end: bool,
    /// Managed paths a whole patch does not name.
    pub(super) extra: HashSet<RelPath>,
    /// Contents the changes name; others are refused.
    pub(super) offered: HashSet<ContentId>,
    pub(super) intake: Intake,
    /// Why it will be refused once it is here whole.
    pub(super) flaw: Option<Refusal>,
}

impl Incoming {
    /// A patch of which nothing but its header is here. `flaw` is why it will be refused, if that is known.
    pub(super) fn new(header: PatchHeader, flaw: Option<Refusal>) -> Self {
        Self {
            header,
            changes: Vec::new(),
            removals: Vec::new(),
            changes_end: false,
            extra: HashSet::new(),
            offered: HashSet::new(),
            intake: Intake::default(),
            flaw,
        }
    }

    /// True if what it does not name is not to be.
    pub(super) fn names_all(&self) -> bool {
        matches!(self.header.kind, PatchKind::Whole { base } if base == PatchId::empty(base.hash_kind()))
    }

    pub(super) fn add_changes(&mut self, changes: Vec<Change>) -> Result<(), Broken> {
        for change in changes {
            if self.changes.last().is_some_and(|last| last.path >= change.path) {
                return Err(Broken(format!("{} is out of order or there twice", change.path)));
            }
            if self.changes.len() == MAX_CHANGES {
                return Err(Broken(format!("a patch of more than {MAX_CHANGES} changes")));
            }
            self.changes.push(change);
        }
        Ok(())
    }

    pub(super) fn add_removals(&mut self, changes: Vec<Change>) -> Result<(), Broken> {
        for change in changes {
            let removal = matches!(change.kind, ChangeKind::Delete | ChangeKind::Release);
            if !removal || !self.extra.remove(&change.path) {
                return Err(Broken(format!("{} was not asked for", change.path)));
            }
            self.removals.push(change);
        }
        Ok(())
    }

    pub(super) fn end_changes(&mut self) {
        self.changes_end = true;
        self.offered = self
            .changes
            .iter()
            .filter_map(|c| match c.kind {
                ChangeKind::Put { id, .. } => Some(id),
                _ => None,
            })
            .collect();
    }

    /// Bytes that will have to be staged: the contents in `missing`, or for a patch diff those of every path
    /// that is to get another one.
    pub(super) fn need(&self, workspace: &Workspace, missing: Option<&[ContentId]>) -> u64 {
        let held = workspace.held().root();
        let missing: Option<HashSet<&ContentId>> = missing.map(|ids| ids.iter().collect());
        let mut counted = HashSet::new();
        let mut need = 0_u64;
        for change in &self.changes {
            let ChangeKind::Put { id, size, .. } = change.kind else { continue };
            let staged = match &missing {
                Some(missing) => missing.contains(&id),
                None => held.get(&change.path).is_none_or(|leaf| leaf.id != id),
            };
            // What came ahead takes its room already.
            let staged = staged && !workspace.has_staged(&id);
            if staged && counted.insert(id) {
                need = need.saturating_add(size);
            }
        }
        need
    }

    /// Stages a piece. A piece that breaks the protocol ends the stream; one that only turns out wrong (a file
    /// that changed while it was sent) refuses the patch.
    pub(super) fn add_content(&mut self, workspace: &mut Workspace, chunk: &Chunk) -> Result<(), Broken> {
        if !self.changes_end {
            return Err(Broken("contents before the end of the changes".into()));
        }
        if self.flaw.is_some() {
            return Ok(());
        }
        if !self.intake.continues(chunk) {
            let is_offered = chunk.id.is_some_and(|id| self.offered.contains(&id));
            if !self.intake.is_empty() || chunk.offset > 0 || !is_offered {
                return Err(Broken("a content chunk that was not offered or is out of order".into()));
            }
            if let Err(e) = self.intake.begin(workspace, chunk) {
                self.flaw = Some(self.refuse(RefusalCode::Failed, &e));
                return Ok(());
            }
        }
        let Err(error) = self.intake.take(workspace, chunk) else { return Ok(()) };
        let code = match &error {
            PieceError::Protocol(what) => return Err(Broken(what.clone())),
            PieceError::Base { .. } => RefusalCode::ContentMissing,
            PieceError::Stage(StageError::DiskFull) => RefusalCode::DiskFull,
            PieceError::Stage(StageError::Io { .. }) => RefusalCode::Failed,
            PieceError::Stage(_) => RefusalCode::PatchInvalid,
        };
        self.flaw = Some(self.refuse(code, &error));
        Ok(())
    }

    pub(super) fn refuse(&self, code: RefusalCode, error: &dyn std::error::Error) -> Refusal {
        refusal_of(self.header.generation, code, error)
    }
}
