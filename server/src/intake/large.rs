//! A large content as it arrives, written on a thread of its own, so that no edit waits behind its pieces.
//!
//! Its pieces are queued and counted: a client sends no more than it was given credit for, and one that does is cut
//! off. What became of them comes back as reports, and a bell is rung for each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;

use gitsync_core::model::ContentId;
use gitsync_core::wire::{Chunk, Forget};

use super::{Bases, PieceError, staged, write};
use crate::beside::{Alarm, Bell, Waiting};
use crate::workspace::{BaseFile, StageError, StagedWriter, Workspace};

/// Contents that may wait to be written to their end: each holds a file open.
const UNREPORTED_MAX: usize = 32;

/// The large content that is arriving, if one is, and those that wait to be written to their end.
pub struct LargeIntake {
    bell: Bell,
    /// Started when first needed.
    thread: Option<Thread>,
    current: Option<Current>,
    /// What all pieces are queued of, and is not reported yet.
    unreported: Vec<(Number, ContentId)>,
    last: Number,
}

/// Tells contents apart that have the same id: one may come again after it was given up.
type Number = u64;

/// The content whose next piece is to come.
struct Current {
    number: Number,
    /// `None` until its last piece names it.
    id: Option<ContentId>,
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
    waiting: Waiting,
    /// What is queued is not wanted any more.
    stopped: AtomicBool,
}

enum Command {
    Begin(Number, StagedWriter),
    Piece(Chunk, Option<Arc<BaseFile>>),
    GiveUp,
    EndMessage,
}

enum Report {
    Written(Number, StagedWriter),
    Failed(Number, PieceError),
    MessageTaken,
}

/// What became of what was queued.
#[derive(Debug)]
pub enum Progress {
    /// All bytes of a content are there, and to be verified.
    Written(StagedWriter),
    /// A content is given up. It may have been nameless yet.
    Failed { id: Option<ContentId>, error: PieceError },
    /// The next message with pieces in it was taken in.
    MessageTaken,
    /// The thread has ended before its time; nothing of what was queued will come.
    Gone,
}

impl LargeIntake {
    /// `bell` is rung when there is [`LargeIntake::progress`].
    pub fn new(bell: Bell) -> Self {
        Self { bell, thread: None, current: None, unreported: Vec::new(), last: 0 }
    }

    /// True if this piece goes on where the content ended so far.
    pub fn continues(&self, chunk: &Chunk) -> bool {
        self.current.as_ref().is_some_and(|current| {
            let is_named = current.id.is_none() && chunk.is_last();
            let is_it = current.id == chunk.id || is_named;
            is_it && current.size == chunk.size && current.offset == chunk.offset
        })
    }

    /// True if no content should begin before there is progress with those that wait.
    pub fn is_full(&self) -> bool {
        self.unreported.len() >= UNREPORTED_MAX
    }

    /// Begins the content a piece belongs to. One that is unfinished is given up.
    pub fn begin(&mut self, workspace: &Workspace, chunk: &Chunk) -> Result<(), StageError> {
        self.give_up();
        let id = chunk.id;
        let thread = match self.thread.take() {
            Some(thread) => thread,
            None => Thread::start(self.bell.clone()).map_err(|source| StageError::Io { id, source })?,
        };
        let thread = self.thread.insert(thread);
        self.last += 1;
        thread.send(Command::Begin(self.last, staged(workspace, chunk)?));
        self.current =
            Some(Current { number: self.last, id, size: chunk.size, offset: 0, bases: Bases::default() });
        Ok(())
    }

    /// Queues a piece of the content that was begun. After an error the content is given up.
    pub fn take(&mut self, workspace: &Workspace, chunk: Chunk) -> Result<(), PieceError> {
        let (Some(thread), Some(current)) = (&self.thread, &mut self.current) else {
            return Err(PieceError::Protocol("a piece of no content".to_owned()));
        };
        let base = match current.bases.of(workspace, &chunk) {
            Ok(base) => base,
            Err(error) => {
                self.give_up();
                return Err(error);
            }
        };
        if !thread.shared.waiting.add(chunk.weight()) {
            return Err(PieceError::Protocol("more pieces of contents than there was credit for".to_owned()));
        }
        current.offset += chunk.length;
        current.id = chunk.id;
        let (number, id, is_whole) = (current.number, current.id, current.offset == current.size);
        thread.send(Command::Piece(chunk, base));
        if is_whole {
            self.current = None;
            self.unreported.extend(id.map(|id| (number, id)));
        }
        Ok(())
    }

    /// A message with pieces in it ends here. False if nobody is left to say that it was taken in.
    pub fn end_message(&self) -> bool {
        let Some(thread) = &self.thread else { return false };
        thread.send(Command::EndMessage);
        true
    }

    /// The content under way is not wanted any more.
    pub fn give_up(&mut self) {
        if let (Some(_), Some(thread)) = (self.current.take(), &self.thread) {
            thread.send(Command::GiveUp);
        }
    }

    /// These contents are not wanted any more.
    pub fn forget(&mut self, forget: &Forget) {
        let is_named = |current: &Current| match current.id {
            Some(id) => forget.ids.contains(&id),
            None => forget.nameless,
        };
        if self.current.as_ref().is_some_and(is_named) {
            self.give_up();
        }
        // What comes of them is dropped, and with it what was written.
        self.unreported.retain(|(_, id)| !forget.ids.contains(id));
    }

    /// True if one for which `asks` is true came whole and waits to be written to its end.
    pub fn owes(&self, asks: impl Fn(&ContentId) -> bool) -> bool {
        self.unreported.iter().any(|(_, id)| asks(id))
    }

    /// What became of the next thing that was queued, if that is known, or once it is known.
    pub fn progress(&mut self, wait: bool) -> Option<Progress> {
        loop {
            let reports = &self.thread.as_ref()?.reports;
            let report = match wait {
                true => reports.recv().ok(),
                false => match reports.try_recv() {
                    Err(TryRecvError::Empty) => return None,
                    report => report.ok(),
                },
            };
            match report {
                Some(Report::MessageTaken) => return Some(Progress::MessageTaken),
                Some(Report::Written(number, writer)) => {
                    // Otherwise it was given up meanwhile.
                    if self.settle(number).is_some() {
                        return Some(Progress::Written(writer));
                    }
                }
                Some(Report::Failed(number, error)) => {
                    if let Some(id) = self.settle(number) {
                        return Some(Progress::Failed { id, error });
                    }
                }
                None => {
                    (self.thread, self.current) = (None, None);
                    self.unreported.clear();
                    return Some(Progress::Gone);
                }
            }
        }
    }

    /// Nothing more will be told of this content.
    fn settle(&mut self, number: Number) -> Option<Option<ContentId>> {
        if let Some(current) = self.current.take_if(|current| current.number == number) {
            return Some(current.id);
        }
        let position = self.unreported.iter().position(|(unreported, _)| *unreported == number)?;
        Some(Some(self.unreported.remove(position).1))
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
    let mut current: Option<(Number, StagedWriter)> = None;
    for command in inbox {
        if shared.stopped.load(Ordering::Relaxed) {
            break;
        }
        match command {
            Command::Begin(number, writer) => current = Some((number, writer)),
            Command::GiveUp => current = None,
            Command::EndMessage => tell(Report::MessageTaken),
            Command::Piece(chunk, base) => {
                // Without one it belongs to a content that failed.
                if let Some((number, mut writer)) = current.take() {
                    match write(&mut writer, &chunk, base.as_deref()) {
                        Ok(()) if writer.remaining() > 0 => current = Some((number, writer)),
                        Ok(()) => tell(Report::Written(number, writer)),
                        Err(error) => tell(Report::Failed(number, error)),
                    }
                }
                shared.waiting.done(chunk.weight());
            }
        }
    }
}
