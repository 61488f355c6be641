//! Contents as they arrive: pieces, one content after another, into a workspace's stage.
//!
//! A patch brings its contents in such a sequence, and what comes ahead of patches is another one beside it.

use std::sync::Arc;

use gitsync_core::model::ContentId;
use gitsync_core::wire::{Base, Chunk, Encoding, Violation};

use crate::workspace::{BaseFile, StageError, StagedWriter, Workspace};

mod large;

pub use self::large::{LargeIntake, Progress};

/// The content that is arriving, if one is.
#[derive(Debug, Default)]
pub struct Intake {
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    writer: StagedWriter,
    bases: Bases,
}

/// The managed file the last such piece of a content was made from. Held open, because pieces of one file come in a
/// row.
#[derive(Debug, Default)]
struct Bases(Option<Arc<BaseFile>>);

/// Why a piece was not taken.
#[derive(Debug, thiserror::Error)]
pub enum PieceError {
    #[error("{0}")]
    Protocol(String),
    #[error("a content was to be made from {path}, which is not what it was")]
    Base { path: String },
    #[error(transparent)]
    Stage(#[from] StageError),
}

impl Intake {
    /// Between two contents.
    pub fn is_empty(&self) -> bool {
        self.current.is_none()
    }

    /// True if this piece goes on where the content ended so far.
    pub fn continues(&self, chunk: &Chunk) -> bool {
        self.current.as_ref().is_some_and(|Current { writer, .. }| {
            chunk.id.is_some() && writer.id() == chunk.id && writer.remaining() + chunk.offset == chunk.size
        })
    }

    /// Begins the content a piece belongs to, which has a name. One that is unfinished is given up.
    pub fn begin(&mut self, workspace: &Workspace, chunk: &Chunk) -> Result<(), StageError> {
        self.give_up();
        let writer = staged(workspace, chunk)?;
        self.current = Some(Current { writer, bases: Bases::default() });
        Ok(())
    }

    /// True if the content under way is one of these.
    pub fn is_one_of(&self, ids: &[ContentId]) -> bool {
        let id = self.current.as_ref().and_then(|current| current.writer.id());
        id.is_some_and(|id| ids.contains(&id))
    }

    pub fn give_up(&mut self) {
        self.current = None;
    }

    /// Takes in a piece of the content that was begun. Its last piece makes it available, and is answered by its id.
    /// After an error the content is given up.
    pub fn take(
        &mut self,
        workspace: &mut Workspace,
        chunk: &Chunk,
    ) -> Result<Option<ContentId>, PieceError> {
        let Some(mut current) = self.current.take() else {
            return Err(PieceError::Protocol("a piece of no content".to_owned()));
        };
        let base = current.bases.of(workspace, chunk)?;
        write(&mut current.writer, chunk, base.as_deref())?;
        if current.writer.remaining() > 0 {
            self.current = Some(current);
            return Ok(None);
        }
        let Current { writer, bases } = current;
        workspace.finish(writer).map_err(|error| match (error, bases.0) {
            (StageError::WrongContent { .. }, Some(base)) => {
                PieceError::Base { path: base.path().to_string() }
            }
            (error, _) => PieceError::Stage(error),
        })?;
        Ok(chunk.id)
    }
}

impl Bases {
    /// What a piece is made from, if it is made from a managed file, and that looks as if it held it.
    fn of(&mut self, workspace: &Workspace, chunk: &Chunk) -> Result<Option<Arc<BaseFile>>, PieceError> {
        let (Encoding::ZstdFrom(base) | Encoding::Copy(base)) = &chunk.encoding else { return Ok(None) };
        let file = match self.0.take().filter(|file| file.is(&base.path, &base.id)) {
            Some(file) => file,
            None => Arc::new(workspace.base(&base.path, &base.id).ok_or_else(|| gone(base))?),
        };
        if base.offset + base.length > file.size() {
            return Err(gone(base));
        }
        self.0 = Some(file.clone());
        Ok(Some(file))
    }
}

/// Where the content of a piece is to be written.
fn staged(workspace: &Workspace, chunk: &Chunk) -> Result<StagedWriter, StageError> {
    match chunk.id {
        Some(id) => workspace.stage(id, chunk.size),
        None => workspace.stage_nameless(chunk.size),
    }
}

/// Goes on with a piece; `file` is what it is made from.
fn write(writer: &mut StagedWriter, chunk: &Chunk, file: Option<&BaseFile>) -> Result<(), PieceError> {
    let broken = |violation: Violation| PieceError::Protocol(violation.to_string());
    if let Some(id) = chunk.id {
        writer.name(id);
    }
    match (&chunk.encoding, file) {
        (Encoding::Raw | Encoding::Zstd, _) => writer.write(&chunk.decode(&[]).map_err(broken)?)?,
        (Encoding::ZstdFrom(base), Some(file)) => {
            let prefix = file.read(base.offset, base.length as usize).map_err(|_| gone(base))?;
            // A base that is another than it should be looks like a damaged piece.
            let piece = chunk.decode(&prefix).map_err(|_| gone(base))?;
            writer.write(&piece)?;
        }
        (Encoding::Copy(base), Some(file)) => {
            writer.copy(file, base.offset, base.length).map_err(|error| match error {
                StageError::Io { .. } => gone(base),
                error => PieceError::Stage(error),
            })?;
        }
        (Encoding::ZstdFrom(base) | Encoding::Copy(base), None) => return Err(gone(base)),
    }
    Ok(())
}

fn gone(base: &Base) -> PieceError {
    PieceError::Base { path: base.path.to_string() }
}
