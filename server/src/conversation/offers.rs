//! Contents that need not be sent: those in the objects of the workspace's own clone.

use std::collections::HashMap;

use gitsync_core::model::{Change, ChangeKind, ContentId};
use gitsync_core::wire::{Offered, ToClient};

use super::{AHEAD_CONTENTS, Broken, Opened};
use crate::history::Blobs;
use crate::workspace::{CloneDir, Workspace};

impl Opened {
    /// Stages what is here of what the client has, and says what is not.
    pub(super) fn take_offer(&mut self, contents: &[Offered]) -> Result<ToClient, Broken> {
        let Self { workspace, clone, ahead, takings, .. } = self;
        ahead.await_any(|id| contents.iter().any(|content| content.id == *id), workspace, takings)?;
        let has_room = workspace.check_space(contents.iter().map(|content| content.size).sum()).is_ok();
        let mut source = Source::open(clone.as_ref().filter(|_| has_room));
        let lacks = |content: &Offered| {
            let Offered { id, size } = *content;
            let is_here = workspace.has_staged(&id)
                || workspace.ahead_len() < AHEAD_CONTENTS && source.stage(workspace, &id, size);
            if is_here {
                workspace.keep_ahead(id);
            }
            !is_here
        };
        let lacking = contents.iter().map(lacks);
        let positions = (0..).zip(lacking).filter(|(_, lacking)| *lacking).map(|(position, _)| position);
        Ok(ToClient::Lacking { positions: positions.collect() })
    }
}

/// Stages what is here of the contents that `changes` need and are `missing`, and gives back the rest. There must be room.
pub(super) fn still_missing(
    workspace: &mut Workspace,
    clone: Option<&CloneDir>,
    changes: &[Change],
    missing: Vec<ContentId>,
) -> Vec<ContentId> {
    let put = |change: &Change| match change.kind {
        ChangeKind::Put { id, size, .. } => Some((id, size)),
        ChangeKind::Delete | ChangeKind::Release => None,
    };
    let mut source = Source::open(clone.filter(|_| !missing.is_empty()));
    if source.0.is_none() {
        return missing;
    }
    let sizes: HashMap<ContentId, u64> = changes.iter().filter_map(put).collect();
    let lacks = |id: &ContentId| sizes.get(id).is_none_or(|size| !source.stage(workspace, id, *size));
    missing.into_iter().filter(lacks).collect()
}

/// Where contents may be found.
struct Source(Option<Blobs>);

impl Source {
    fn open(clone: Option<&CloneDir>) -> Self {
        Self(clone.and_then(Blobs::open))
    }

    /// True if it is staged now. It is hashed on its way, so that a damaged object is none.
    fn stage(&mut self, workspace: &mut Workspace, id: &ContentId, size: u64) -> bool {
        let Some(bytes) = self.0.as_mut().and_then(|blobs| blobs.find(id, size)) else { return false };
        workspace.stage_bytes(*id, bytes).is_ok()
    }
}
