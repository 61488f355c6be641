//! Contents as they arrive: pieces, one content after another, into a workspace's stage.
//!
//! A patch brings its contents in such a sequence, and what comes ahead of patches is another one beside it.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use gitsync_core::model::ContentId;
use gitsync_core::wire::{Base, Chunk, Encoding};

use crate::workspace::{BaseFile, StageError, StagedWriter, Workspace};

/// So many contents, of so many bytes together, are worth another thread.
const SHARED_CONTENTS: usize = 4;
const SHARED_BYTES: u64 = 64 << 10;
const THREADS_MOST: usize = 4;
/// Asked for once: the answer takes a dozen system calls, which is much beside a save.
static THREADS: LazyLock<usize> =
    LazyLock::new(|| thread::available_parallelism().map_or(1, usize::from).min(THREADS_MOST));
/// Contents that are shared out together. Each is open until all of them are written.
pub const SHARED_MOST: usize = 32;

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

/// Contents of one message that came whole, written by several threads.
#[derive(Debug, Default)]
pub struct Written(Vec<Option<Result<StagedWriter, PieceError>>>);

impl Written {
    /// Writes what pays to be shared of at most [`SHARED_MOST`]; all else is left to be taken in piece by piece.
    pub fn share(workspace: &Workspace, chunks: &[Chunk]) -> Self {
        let whole: Vec<usize> = (0..chunks.len()).filter(|i| is_whole(&chunks[*i])).collect();
        let bytes: u64 = whole.iter().map(|i| chunks[*i].size).sum();
        if whole.len() < SHARED_CONTENTS || bytes < SHARED_BYTES || *THREADS == 1 {
            return Self::default();
        }
        let next = AtomicUsize::new(0);
        let work = || {
            let mut written = Vec::new();
            while let Some(at) = whole.get(next.fetch_add(1, Ordering::Relaxed)) {
                written.push((*at, write_whole(workspace, &chunks[*at])));
            }
            written
        };
        let mut all = Self(chunks.iter().map(|_| None).collect());
        thread::scope(|scope| {
            let others: Vec<_> = (1..*THREADS).map(|_| scope.spawn(work)).collect();
            let mine = work();
            let others = others.into_iter().flat_map(|other| match other.join() {
                Ok(written) => written,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            for (at, result) in mine.into_iter().chain(others) {
                all.0[at] = Some(result);
            }
        });
        all
    }

    /// What became of the content at this position, if it was written here.
    pub fn take(&mut self, at: usize) -> Option<Result<StagedWriter, PieceError>> {
        self.0.get_mut(at)?.take()
    }
}

/// Takes in a content that was written whole.
pub fn take_written(
    workspace: &mut Workspace,
    written: Result<StagedWriter, PieceError>,
) -> Result<ContentId, PieceError> {
    let writer = written?;
    let id = writer.id();
    workspace.finish(writer)?;
    Ok(id)
}

/// True for a content that is this piece and needs nothing else.
fn is_whole(chunk: &Chunk) -> bool {
    let stands_alone = matches!(chunk.encoding, Encoding::Raw | Encoding::Zstd);
    stands_alone && chunk.offset == 0 && chunk.length == chunk.size
}

fn write_whole(workspace: &Workspace, chunk: &Chunk) -> Result<StagedWriter, PieceError> {
    let piece = chunk.decode(&[]).map_err(|v| PieceError::Protocol(v.to_string()))?;
    let mut writer = workspace.stage(chunk.id, chunk.size)?;
    writer.write(&piece)?;
    Ok(writer)
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
