//! Contents as they arrive: pieces, one content after another, into a workspace's stage.
//!
//! A patch brings its contents in such a sequence, and what comes ahead of patches is another one beside it.

use gitsync_core::model::ContentId;
use gitsync_core::wire::{Base, Chunk, Encoding};

use crate::workspace::{BaseFile, StageError, StagedWriter, Workspace};

/// The content that is arriving, if one is.
#[derive(Debug, Default)]
pub struct Intake {
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    writer: StagedWriter,
    /// The managed file the last such piece was made from. Held open, because pieces of one file come in a row.
    base: Option<BaseFile>,
}

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
            writer.id() == chunk.id && writer.remaining() + chunk.offset == chunk.size
        })
    }

    /// Begins the content a piece belongs to. One that is unfinished is given up.
    pub fn begin(&mut self, workspace: &Workspace, chunk: &Chunk) -> Result<(), StageError> {
        self.give_up();
        let writer = workspace.stage(chunk.id, chunk.size)?;
        self.current = Some(Current { writer, base: None });
        Ok(())
    }

    /// True if the content under way is one of these.
    pub fn is_one_of(&self, ids: &[ContentId]) -> bool {
        self.current.as_ref().is_some_and(|current| ids.contains(&current.writer.id()))
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
        current.write(workspace, chunk)?;
        if current.writer.remaining() > 0 {
            self.current = Some(current);
            return Ok(None);
        }
        let Current { writer, base } = current;
        workspace.finish(writer).map_err(|error| match (error, base) {
            (StageError::WrongContent { .. }, Some(base)) => {
                PieceError::Base { path: base.path().to_string() }
            }
            (error, _) => PieceError::Stage(error),
        })?;
        Ok(Some(chunk.id))
    }
}

impl Current {
    fn write(&mut self, workspace: &Workspace, chunk: &Chunk) -> Result<(), PieceError> {
        match &chunk.encoding {
            Encoding::Raw | Encoding::Zstd => {
                let piece = chunk.decode(&[]).map_err(|v| PieceError::Protocol(v.to_string()))?;
                self.writer.write(&piece)?;
            }
            Encoding::ZstdFrom(base) => {
                let file = open(&mut self.base, workspace, base)?;
                let prefix = file.read(base.offset, base.length as usize).map_err(|_| gone(base))?;
                // A base that is another than it should be looks like a damaged piece.
                let piece = chunk.decode(&prefix).map_err(|_| gone(base))?;
                self.writer.write(&piece)?;
            }
            Encoding::Copy(base) => {
                let file = open(&mut self.base, workspace, base)?;
                self.writer.copy(file, base.offset, base.length).map_err(|error| match error {
                    StageError::Io { .. } => gone(base),
                    error => PieceError::Stage(error),
                })?;
            }
        }
        Ok(())
    }
}

/// The managed file that is to have this content, if it looks as if it had it.
fn open<'f>(
    held: &'f mut Option<BaseFile>,
    workspace: &Workspace,
    base: &Base,
) -> Result<&'f BaseFile, PieceError> {
    let file = match held.take().filter(|file| file.is(&base.path, &base.id)) {
        Some(file) => file,
        None => workspace.base(&base.path, &base.id).ok_or_else(|| gone(base))?,
    };
    if base.offset + base.length > file.size() {
        return Err(gone(base));
    }
    Ok(held.insert(file))
}

fn gone(base: &Base) -> PieceError {
    PieceError::Base { path: base.path.to_string() }
}
