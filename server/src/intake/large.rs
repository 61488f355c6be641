//! A large content as it arrives, written on a thread of its own, so that no edit waits behind its pieces.
//!
//! Its pieces are queued and counted: a client sends no more than it was given credit for, and one that does is cut
//! off. What became of them comes back as reports, and a bell is rung for each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::thread::JoinHandle;

use gitsync_core::model::ContentId;
use gitsync_core::wire::Chunk;

use super::{Bases, PieceError, write};
use crate::beside::{Alarm, Bell, WAITING_BYTES_MAX};
use crate::workspace::{BaseFile, StageError, StagedWriter, Workspace};

/// The large content that is arriving, if one is, and those that wait to be written to their end.
pub struct LargeIntake {
    bell: Bell,
    /// Started when first needed.
    thread: Option<Thread>,
    current: Option<Expected>,
    /// What was begun and is not reported yet.
    unreported: Vec<ContentId>,
}

/// The content whose next piece is to come.
struct Expected {
    id: ContentId,
    size: u64,
    offset: u64,
    bases: Bases,
}

struct Thread {
    commands: Option<Sender<Command>>,
    reports: Receiver<Report>,
    shared: Arc<Shared>,
    handle: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    waiting: AtomicU64,
    /// What is queued is not wanted any more.
    stopped: AtomicBool,
}

enum Command {
    Begin(StagedWriter),
    Piece(Chunk, Option<Arc<BaseFile>>),
    GiveUp,
    /// The end of a message.
    Mark,
    /// Answered when everything before it is done.
    Barrier(SyncSender<()>),
}

/// What became of what was queued.
#[derive(Debug)]
pub enum Report {
    /// All bytes of a content are there, and to be verified.
    Written(StagedWriter),
    /// A content is given up.
    Failed { id: ContentId, error: PieceError },
    /// The next message with pieces in it was taken in.
    Taken,
    /// The thread has ended before its time; nothing of what was queued will come.
    Gone,
}

impl LargeIntake {
    /// `bell` is rung when there is something to [`LargeIntake::report`].
    pub fn new(bell: Bell) -> Self {
        Self { bell, thread: None, current: None, unreported: Vec::new() }
    }

    /// True if this piece goes on where the content ended so far.
    pub fn continues(&self, chunk: &Chunk) -> bool {
        self.current.as_ref().is_some_and(|current| {
            current.id == chunk.id && current.size == chunk.size && current.offset == chunk.offset
        })
    }

    /// Begins the content a piece belongs to. One that is unfinished is given up.
    pub fn begin(&mut self, workspace: &Workspace, chunk: &Chunk) -> Result<(), StageError> {
        self.give_up();
        let (id, size) = (chunk.id, chunk.size);
        let thread = match self.thread.take() {
            Some(thread) => thread,
            None => Thread::start(self.bell.clone()).map_err(|source| StageError::Io { id, source })?,
        };
        let thread = self.thread.insert(thread);
        thread.send(Command::Begin(workspace.stage(id, size)?));
        self.unreported.push(id);
        self.current = Some(Expected { id, size, offset: 0, bases: Bases::default() });
        Ok(())
    }

    /// Queues a piece of the content that was begun. After an error the content is given up.
    pub fn take(&mut self, workspace: &Workspace, chunk: Chunk) -> Result<(), PieceError> {
        let (Some(thread), Some(mut current)) = (&self.thread, self.current.take()) else {
            return Err(PieceError::Protocol("a piece of no content".to_owned()));
        };
        if thread.shared.waiting.fetch_add(chunk.weight(), Ordering::Relaxed) > WAITING_BYTES_MAX {
            return Err(PieceError::Protocol("more pieces of contents than there was credit for".to_owned()));
        }
        match current.bases.of(workspace, &chunk) {
            Ok(base) => {
                current.offset += chunk.length;
                thread.send(Command::Piece(chunk, base));
                if current.offset < current.size {
                    self.current = Some(current);
                }
                Ok(())
            }
            Err(error) => {
                thread.shared.waiting.fetch_sub(chunk.weight(), Ordering::Relaxed);
                self.current = Some(current);
                self.give_up();
                Err(error)
            }
        }
    }

    /// A message with pieces in it ends here.
    pub fn end_message(&self) {
        if let Some(thread) = &self.thread {
            thread.send(Command::Mark);
        }
    }

    /// The content under way is not wanted any more.
    pub fn give_up(&mut self) {
        if let Some(current) = self.current.take() {
            self.unreported.retain(|id| *id != current.id);
            if let Some(thread) = &self.thread {
                thread.send(Command::GiveUp);
            }
        }
    }

    /// True if one of these is under way, or waits to be written to its end.
    pub fn has_one_of<'a>(&self, ids: impl IntoIterator<Item = &'a ContentId>) -> bool {
        !self.unreported.is_empty() && ids.into_iter().any(|id| self.unreported.contains(id))
    }

    /// True if the content under way is one of these.
    pub fn is_one_of(&self, ids: &[ContentId]) -> bool {
        self.current.as_ref().is_some_and(|current| ids.contains(&current.id))
    }

    /// Waits until everything that is queued is done and can be reported.
    pub fn settle(&self) {
        let Some(thread) = &self.thread else { return };
        let (done, wait) = sync_channel(1);
        thread.send(Command::Barrier(done));
        // Fails if the thread has ended: that is reported.
        let _ = wait.recv();
    }

    /// The next thing that became of what was queued.
    pub fn report(&mut self) -> Option<Report> {
        let report = match self.thread.as_ref()?.reports.try_recv() {
            Ok(report) => report,
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => Report::Gone,
        };
        let id = match &report {
            Report::Written(writer) => writer.id(),
            Report::Failed { id, .. } => *id,
            Report::Taken => return Some(report),
            Report::Gone => {
                (self.thread, self.current) = (None, None);
                self.unreported.clear();
                return Some(report);
            }
        };
        self.current.take_if(|current| current.id == id);
        match self.unreported.iter().position(|unreported| *unreported == id) {
            Some(position) => {
                self.unreported.remove(position);
                Some(report)
            }
            // It was given up meanwhile.
            None => self.report(),
        }
    }
}

impl std::fmt::Debug for LargeIntake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LargeIntake").field("unreported", &self.unreported).finish_non_exhaustive()
    }
}

impl Thread {
    fn start(bell: Bell) -> std::io::Result<Self> {
        let (commands, inbox) = channel();
        let (outbox, reports) = channel();
        let shared = Arc::<Shared>::default();
        let theirs = shared.clone();
        let run = move || {
            // Goes after the reports, whose end is what there is to tell.
            let alarm = Alarm(bell);
            let outbox = outbox;
            serve(&inbox, &theirs, |report| {
                if outbox.send(report).is_ok() {
                    (alarm.0)();
                }
            });
        };
        let handle = std::thread::Builder::new().name("contents".to_owned()).spawn(run)?;
        Ok(Self { commands: Some(commands), reports, shared, handle: Some(handle) })
    }

    fn send(&self, command: Command) {
        if let Some(commands) = &self.commands {
            // Fails if the thread has panicked: that is reported.
            let _ = commands.send(command);
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        self.commands = None;
        if let Some(handle) = self.handle.take() {
            let _ = handle.join();
        }
    }
}

fn serve(inbox: &Receiver<Command>, shared: &Shared, tell: impl Fn(Report)) {
    let mut current: Option<StagedWriter> = None;
    for command in inbox {
        if shared.stopped.load(Ordering::Relaxed) {
            break;
        }
        match command {
            Command::Begin(writer) => current = Some(writer),
            Command::GiveUp => current = None,
            Command::Mark => tell(Report::Taken),
            Command::Barrier(done) => {
                let _ = done.send(());
            }
            Command::Piece(chunk, base) => {
                // Without one it belongs to a content that failed.
                if let Some(mut writer) = current.take() {
                    match write(&mut writer, &chunk, base.as_deref()) {
                        Ok(()) if writer.remaining() > 0 => current = Some(writer),
                        Ok(()) => tell(Report::Written(writer)),
                        Err(error) => tell(Report::Failed { id: writer.id(), error }),
                    }
                }
                shared.waiting.fetch_sub(chunk.weight(), Ordering::Relaxed);
            }
        }
    }
}
