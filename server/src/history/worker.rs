//! The thread a session's steps are taken in and landed on, so that no edit ever waits for history.
//!
//! Commands come through an unbounded channel whose bytes are counted: a client sends no more than it was given
//! credit for, and one that does is cut off. What came of them goes back the same way, and a bell is rung for it.

use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::Bytes;
use gitsync_core::model::Dir;
use gix::ObjectId;

use super::StepError;
use super::git::Stop;
use super::index::STACK_BYTES;
use super::land::{Held, Landing, ensure_head, land};
use super::pack::{Incoming, Pack, Quarantine, fold};
use super::state::State;
use super::step::Step;
use crate::beside::{Alarm, Bell, Waiting};
use crate::epoch::Seal;
use crate::workspace::CloneDir;

/// What a piece costs beside its bytes.
const PIECE_BYTES: u64 = 64;
const NICE: i32 = 10;

/// What became of commands.
#[derive(Debug)]
pub enum Report {
    /// The next piece was taken in.
    Taken,
    Landed {
        number: u64,
        head: Option<ObjectId>,
        objects: u64,
    },
    NotLanded {
        number: u64,
        error: StepError,
    },
    /// The thread has ended before its time, and the step it was at with it. Nothing more comes.
    Gone {
        number: Option<u64>,
    },
}

/// The history track of one session.
pub struct History {
    commands: Option<Sender<Command>>,
    reports: Receiver<Report>,
    shared: Arc<Shared>,
    current: Option<(u64, Stop)>,
    /// Of the step before: what is done after it may go on.
    after: Option<Stop>,
    last: u64,
    thread: Option<JoinHandle<()>>,
}

/// A message that breaks the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OutOfTurn {
    #[error("steps of history whose numbers do not rise")]
    Number,
    #[error("a piece of a pack that no step announced")]
    Unannounced,
    #[error("more pieces of a pack than there was credit for")]
    Credit,
}

#[derive(Debug)]
enum Command {
    Begin(Box<Step>, Stop),
    Piece { number: u64, data: Bytes, end: bool },
    Stop { number: u64 },
}

struct Shared {
    held: Mutex<Arc<Dir>>,
    waiting: Waiting,
    seal: Seal,
}

impl History {
    /// Starts the thread of a session that owns the workspace. `bell` is rung when there is something to
    /// [`History::report`].
    pub fn start(
        clone: Arc<CloneDir>,
        state: State,
        held: Arc<Dir>,
        seal: Seal,
        bell: Bell,
    ) -> std::io::Result<Self> {
        let (commands, inbox) = channel();
        let (outbox, reports) = channel();
        let shared = Arc::new(Shared { held: Mutex::new(held), waiting: Waiting::default(), seal });
        let theirs = shared.clone();
        let alarm = Alarm(bell.clone());
        let run = move || {
            // Goes after the worker, whose end is what there is to tell.
            let _alarm = alarm;
            // Edits go first; what is started from here inherits it.
            let _ = be_nice();
            let mut worker =
                Worker { clone: &clone, state: &state, shared: &theirs, inbox, outbox, bell, last: None };
            worker.run();
        };
        let thread =
            std::thread::Builder::new().name("history".to_owned()).stack_size(STACK_BYTES).spawn(run)?;
        Ok(Self {
            commands: Some(commands),
            reports,
            shared,
            current: None,
            after: None,
            last: 0,
            thread: Some(thread),
        })
    }

    /// What is held from now on.
    pub fn set_held(&self, held: &Arc<Dir>) {
        let mut slot = self.shared.held.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&slot, held) {
            *slot = held.clone();
        }
    }

    /// A step begins, in the place of one under way. It is answered by `Landed` or `NotLanded`, unless it is stopped.
    pub fn begin(&mut self, step: Step) -> Result<(), OutOfTurn> {
        if step.number <= self.last {
            return Err(OutOfTurn::Number);
        }
        if let Some((number, _)) = self.current {
            self.stop(number);
        }
        self.end_after();
        self.last = step.number;
        let stop = Stop::default();
        self.current = Some((step.number, stop.clone()));
        self.send(Command::Begin(Box::new(step), stop));
        Ok(())
    }

    /// A piece of a pack. Pieces of steps that are over are taken in and forgotten.
    pub fn piece(&mut self, number: u64, data: Bytes, end: bool) -> Result<(), OutOfTurn> {
        if number > self.last {
            return Err(OutOfTurn::Unannounced);
        }
        let weight = PIECE_BYTES + data.len() as u64;
        if !self.shared.waiting.add(weight) {
            return Err(OutOfTurn::Credit);
        }
        self.send(Command::Piece { number, data, end });
        Ok(())
    }

    /// The step is given up, if it is still under way.
    pub fn stop(&mut self, number: u64) {
        if let Some((_, stop)) = self.current.take_if(|(current, _)| *current == number) {
            stop.ask();
            self.send(Command::Stop { number });
        }
    }

    /// The next thing to tell the client.
    pub fn report(&mut self) -> Option<Report> {
        loop {
            let report = match self.reports.try_recv() {
                Ok(report) => report,
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => {
                    // Said once.
                    self.commands.take()?;
                    return Some(Report::Gone { number: self.current.take().map(|(number, _)| number) });
                }
            };
            if let Report::Landed { number, .. } | Report::NotLanded { number, .. } = &report {
                match self.current.take_if(|(current, _)| current == number) {
                    Some((_, stop)) => self.after = Some(stop),
                    // It was stopped meanwhile.
                    None => continue,
                }
            }
            return Some(report);
        }
    }

    fn end_after(&mut self) {
        if let Some(stop) = self.after.take() {
            stop.ask();
        }
    }

    fn send(&self, command: Command) {
        if let Some(commands) = &self.commands {
            // Fails if the thread has panicked: that is reported, and the files go on.
            let _ = commands.send(command);
        }
    }
}

impl Drop for History {
    fn drop(&mut self) {
        if let Some((_, stop)) = self.current.take() {
            stop.ask();
        }
        self.end_after();
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("History")
            .field("current", &self.current)
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

impl Held for Shared {
    fn tree(&self) -> Arc<Dir> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn check(&self) -> Result<(), StepError> {
        self.seal.check().map_err(StepError::Fenced)
    }
}

struct Worker<'a> {
    clone: &'a CloneDir,
    state: &'a State,
    shared: &'a Shared,
    inbox: Receiver<Command>,
    outbox: Sender<Report>,
    bell: Bell,
    /// The step that landed last.
    last: Option<Step>,
}

impl Worker<'_> {
    fn run(&mut self) {
        while let Ok(command) = self.inbox.recv() {
            match command {
                Command::Begin(step, stop) => self.step(*step, &stop),
                // Of a step that is over.
                Command::Piece { data, .. } => self.taken(&data),
                Command::Stop { .. } => {}
            }
        }
    }

    fn step(&mut self, mut step: Step, stop: &Stop) {
        let started = Instant::now();
        let resolved = step.resolve(self.last.as_ref());
        let report = match resolved.and_then(|()| self.try_step(&step, stop)) {
            Ok(objects) => {
                let ms = started.elapsed().as_millis() as u64;
                tracing::debug!(number = step.number, objects, ms, "history landed");
                let report = Report::Landed { number: step.number, head: step.head, objects };
                self.last = Some(step);
                self.tell(report);
                // Between two steps; the next one ends it.
                match fold(self.clone, self.state, stop) {
                    Ok(0) | Err(StepError::Stopped) => {}
                    Ok(packs) => tracing::debug!(packs, "small packs put together"),
                    Err(e) => tracing::debug!("cannot put small packs together: {e}"),
                }
                return;
            }
            Err(StepError::Stopped) => return,
            Err(error) => Report::NotLanded { number: step.number, error },
        };
        self.tell(report);
    }

    fn try_step(&self, step: &Step, stop: &Stop) -> Result<u64, StepError> {
        step.check(self.clone.hash())?;
        ensure_head(self.clone, self.state, step)?;
        let landing = Landing { clone: self.clone, state: self.state, held: self.shared, stop };
        if !step.pack {
            land(&landing, step, None)?;
            return Ok(0);
        }
        let quarantine = Quarantine::make(self.clone, self.state)?;
        let pack = self.receive(step.number, quarantine.receive(stop)?)?;
        land(&landing, step, Some((&quarantine, &pack)))?;
        Ok(pack.objects)
    }

    fn receive(&self, step: u64, mut incoming: Incoming) -> Result<Pack, StepError> {
        loop {
            match self.inbox.recv() {
                Ok(Command::Piece { number, data, end }) => {
                    if number == step {
                        incoming.write(self.clone, &data);
                    }
                    self.taken(&data);
                    if number == step && end {
                        return incoming.finish();
                    }
                }
                Ok(Command::Stop { number }) if number != step => {}
                Ok(Command::Stop { .. } | Command::Begin(..)) | Err(_) => return Err(StepError::Stopped),
            }
        }
    }

    fn taken(&self, data: &Bytes) {
        let weight = PIECE_BYTES + data.len() as u64;
        self.shared.waiting.done(weight);
        self.tell(Report::Taken);
    }

    fn tell(&self, report: Report) {
        if self.outbox.send(report).is_ok() {
            (self.bell)();
        }
    }
}

#[cfg(target_os = "linux")]
fn be_nice() -> rustix::io::Result<()> {
    // A thread has a niceness of its own here.
    rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE)
}

#[cfg(not(target_os = "linux"))]
fn be_nice() -> rustix::io::Result<()> {
    Ok(())
}
