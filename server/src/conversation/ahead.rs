//! Contents that come before any patch names them. One that cannot be staged is left out: the patch that needs it will
//! say so.

use gitsync_core::model::ContentId;
use gitsync_core::wire::{CHUNK_BYTES, Chunk, Forget};

use super::takings::{Taker, Takings};
use super::{AHEAD_CONTENTS, Broken};
use crate::beside::Bell;
use crate::intake::{Intake, LargeIntake, PieceError, Progress};
use crate::workspace::Workspace;

/// A content of more bytes is written beside the conversation: its pieces take several messages, and an edit may come
/// between them.
const LARGE_BYTES: u64 = CHUNK_BYTES as u64;

/// Contents on their way, one after another.
#[derive(Debug)]
pub(super) struct Ahead {
    /// Of the workspace, for the log.
    name: String,
    small: Intake,
    large: LargeIntake,
}

impl Ahead {
    /// `bell` is rung when there is something to [`Ahead::absorb`].
    pub(super) fn new(name: &str, bell: Bell) -> Self {
        Self { name: name.to_owned(), small: Intake::default(), large: LargeIntake::new(bell) }
    }

    /// Takes in a message of pieces, or hands it on.
    pub(super) fn take(
        &mut self,
        workspace: &mut Workspace,
        contents: Vec<Chunk>,
        takings: &mut Takings,
    ) -> Result<(), Broken> {
        let weight = contents.iter().map(Chunk::weight).sum();
        let mut handed_on = false;
        for chunk in contents {
            handed_on |= self.take_one(workspace, chunk, takings)?;
        }
        match handed_on && self.large.end_message() {
            true => takings.hand_to(Taker::Contents, weight),
            false => takings.take(weight),
        }
        Ok(())
    }

    /// True if it was handed on.
    fn take_one(
        &mut self,
        workspace: &mut Workspace,
        chunk: Chunk,
        takings: &mut Takings,
    ) -> Result<bool, Broken> {
        let is_large = chunk.size > LARGE_BYTES;
        let continues = match is_large {
            true => self.large.continues(&chunk),
            false => self.small.continues(&chunk),
        };
        if !continues {
            self.small.give_up();
            self.large.give_up();
            // The rest of one that was left out.
            if chunk.offset > 0 || !has_room(workspace, chunk.size) {
                return Ok(false);
            }
            while is_large && self.large.is_full() {
                self.wait(workspace, takings)?;
            }
            let begun = match is_large {
                true => self.large.begin(workspace, &chunk),
                false => self.small.begin(workspace, &chunk),
            };
            if let Err(e) = begun {
                self.left_out(chunk.id, &e);
                return Ok(false);
            }
        }
        let id = chunk.id;
        let taken = match is_large {
            true => self.large.take(workspace, chunk).map(|()| None),
            false => self.small.take(workspace, &chunk),
        };
        match taken {
            Ok(None) => return Ok(is_large),
            Ok(Some(id)) => workspace.keep_ahead(id),
            Err(PieceError::Protocol(what)) => return Err(Broken(what)),
            Err(e) => self.left_out(id, &e),
        }
        Ok(false)
    }

    /// Makes available what was written meanwhile.
    pub(super) fn absorb(&mut self, workspace: &mut Workspace, takings: &mut Takings) -> Result<(), Broken> {
        while let Some(progress) = self.large.progress(false) {
            self.take_in(progress, workspace, takings)?;
        }
        Ok(())
    }

    /// Waits for the next thing that is being written.
    fn wait(&mut self, workspace: &mut Workspace, takings: &mut Takings) -> Result<(), Broken> {
        match self.large.progress(true) {
            Some(progress) => self.take_in(progress, workspace, takings),
            None => Ok(()),
        }
    }

    fn take_in(
        &self,
        progress: Progress,
        workspace: &mut Workspace,
        takings: &mut Takings,
    ) -> Result<(), Broken> {
        match progress {
            Progress::Written(writer) => {
                let id = writer.id();
                match (workspace.finish(writer), id) {
                    (Ok(()), Some(id)) => workspace.keep_ahead(id),
                    (Ok(()), None) => {}
                    (Err(e), id) => self.left_out(id, &e),
                }
            }
            Progress::Failed { error: PieceError::Protocol(what), .. } => return Err(Broken(what)),
            Progress::Failed { id, error } => self.left_out(id, &error),
            Progress::MessageTaken => takings.taken(Taker::Contents),
            Progress::Gone => {
                let workspace = &self.name;
                tracing::error!(
                    workspace,
                    "the thread that writes large contents has ended; the next one starts another"
                );
                takings.gone(Taker::Contents);
            }
        }
        Ok(())
    }

    /// Waits for those contents of which `asks` is true that came already and are still being written.
    pub(super) fn await_any(
        &mut self,
        asks: impl Fn(&ContentId) -> bool,
        workspace: &mut Workspace,
        takings: &mut Takings,
    ) -> Result<(), Broken> {
        while self.large.owes(&asks) {
            self.wait(workspace, takings)?;
        }
        Ok(())
    }

    /// These are not waited for any more: what is on its way of them is given up.
    pub(super) fn forget(&mut self, forget: &Forget) {
        if self.small.is_one_of(&forget.ids) {
            self.small.give_up();
        }
        self.large.forget(forget);
    }

    /// `id` is `None` for one that was not named yet.
    fn left_out(&self, id: Option<ContentId>, error: &dyn std::error::Error) {
        let id = id.map(tracing::field::display);
        tracing::debug!(workspace = self.name, id, "cannot stage ahead: {error}");
    }
}

fn has_room(workspace: &Workspace, size: u64) -> bool {
    workspace.ahead_len() < AHEAD_CONTENTS && workspace.check_space(size).is_ok()
}
