//! Running without a screen: events to lines on stdout, an exit code at the end.
//!
//! Owns the order of things: hello first, then one line for each event, the summary always last. stdout
//! carries nothing else. stdin is read for the line protocol alone. The waiting is one select loop whose inputs are values, so tests drive it
//! without an engine, signals or a terminal.

#[cfg(test)]
mod fixture;
pub mod json;
pub mod line;
mod once;
pub mod plain;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io::{self, Write};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use gitsync_core::engine::{self, Command};
use gitsync_core::model::status::{Status, TargetStatus};
use gitsync_core::model::{Event, EventKind, Phase, TargetId};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, oneshot};
use tracing::level_filters::LevelFilter;

use self::json::Json;
use self::line::{Line, Said};
use self::once::OnceTracker;
use self::plain::Plain;
use crate::dashboard::format::{clean, plural};
use crate::exit::Exit;
use crate::hints;
use crate::sense::is_troubled;

/// How long sessions get to end in order once a stop was asked.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Events printed in one go.
const BATCH: usize = 256;
const LAST_WORDS_LIMIT: Duration = Duration::from_millis(200);
const ONCE_READS_ONCE: &str = "the configuration is not reloaded: a run with --once reads it at its start";

#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub format: Format,
    pub until: Until,
    /// Releases every brake by itself.
    pub accept_deletes: bool,
}

/// What a run needs to act, and not only to tell.
pub struct Hands {
    /// What a parent program says; ends at once where none is listened to.
    pub said: mpsc::UnboundedReceiver<Said>,
    pub command: Give,
    /// Has the configuration read again; what comes of it arrives as an event.
    pub reload: Box<dyn Fn() + Send>,
}

/// Gives a command to one target, or to all.
pub type Give = Box<dyn Fn(Option<&TargetId>, Command) + Send>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Lines of at least this level.
    Plain(LevelFilter),
    Json,
    /// The line protocol, which alone reads stdin.
    Line,
}

/// When the run is over by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    Stopped,
    /// Every target was acked once, or will not be; at most so long.
    Once {
        timeout: Option<Duration>,
    },
}

/// What the world asks of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Interrupt,
    Terminate,
    Hangup,
    /// Nobody reads stdout any more.
    StdoutGone,
}

/// Prints what `events` brings until the run is over, then awaits `stop`, which ends every session in
/// order and is not polled before.
pub async fn run(
    mut events: engine::Events,
    stop: impl Future<Output = ()>,
    mut signals: mpsc::UnboundedReceiver<Signal>,
    mut hands: Hands,
    targets: &[TargetId],
    options: Options,
    out: impl Write + Send + 'static,
) -> Exit {
    let now = Instant::now();
    let mut output = Output::spawn(out);
    let mut face = Face::new(targets, options, now);
    output.print(face.hello(SystemTime::now()));

    let mut told = loop {
        if face.once.as_ref().is_some_and(OnceTracker::is_over) {
            break Exit::Done;
        }
        let deadline = face.once.as_ref().and_then(OnceTracker::deadline);
        tokio::select! {
            biased;
            Some(signal) = signals.recv() => match signal {
                Signal::Interrupt => break Exit::Interrupted,
                Signal::Terminate if options.until == Until::Stopped => break Exit::Done,
                Signal::Terminate => break Exit::Interrupted,
                Signal::StdoutGone => break Exit::StdoutClosed,
                Signal::Hangup if options.until == Until::Stopped => (hands.reload)(),
                Signal::Hangup => tracing::warn!("{ONCE_READS_ONCE}"),
            },
            () = output.failed() => break Exit::StdoutClosed,
            Some(said) = hands.said.recv() => match said {
                Said::Command(None, command) => (hands.command)(None, command),
                Said::Command(Some(name), command) => match line::find(&name, face.targets()) {
                    Ok(target) => (hands.command)(Some(&target), command),
                    Err(wrong) => output.print(wrong),
                },
                Said::Reload if options.until == Until::Stopped => (hands.reload)(),
                Said::Reload => output.print(line::error(ONCE_READS_ONCE)),
                Said::Stop if options.until == Until::Stopped => break Exit::Done,
                Said::Stop => break Exit::Interrupted,
                Said::Wrong(line) => output.print(line),
            },
            event = events.recv() => match event {
                Some(first) => {
                    let (mut next, mut lines, mut count) = (Some(first), String::new(), 0);
                    while let Some(event) = next {
                        if let (EventKind::Brake(Some(_)), true) = (&event.kind, options.accept_deletes) {
                            (hands.command)(event.target.as_ref(), Command::Accept);
                        }
                        lines.push_str(&face.take(&event, Instant::now()));
                        count += 1;
                        let more = count < BATCH && !face.once.as_ref().is_some_and(OnceTracker::is_over);
                        next = if more { events.try_recv().ok() } else { None };
                    }
                    output.print(lines);
                }
                None => break face.engine_ended(),
            },
            () = sleep_until(deadline) => face.tick(Instant::now()),
        }
    };

    let mut stop = pin!(stop);
    let mut running = true;
    loop {
        tokio::select! {
            biased;
            Some(signal) = signals.recv() => match signal {
                // Nothing more is printed either: the one who asks twice does not want to wait.
                Signal::Interrupt => return Exit::Interrupted,
                Signal::StdoutGone => told = Exit::worst([told, Exit::StdoutClosed]),
                Signal::Terminate | Signal::Hangup => {}
            },
            event = events.recv(), if running => match event {
                Some(event) => output.print(face.take_while_stopping(&event)),
                None => running = false,
            },
            () = &mut stop => break,
        }
    }
    // The engine has ended; its last words may still be on their way through the control socket's hub.
    while let Ok(Some(event)) = tokio::time::timeout(LAST_WORDS_LIMIT, events.recv()).await {
        output.print(face.take_while_stopping(&event));
    }

    if let Some(why) = face.timeout() {
        // stdout is for what scripts read.
        let _ = io::stderr().write_all(why.as_bytes());
    }
    let exit = Exit::worst(face.once.as_ref().map(OnceTracker::exit).into_iter().chain([told]));
    output.print(face.summary(exit, SystemTime::now()));
    tokio::select! {
        written = output.finish() => if written { exit } else { Exit::worst([exit, Exit::StdoutClosed]) },
        // A reader that stalls cannot hold up the exit.
        Some(Signal::Interrupt) = signals.recv() => Exit::worst([exit, Exit::Interrupted]),
        () = tokio::time::sleep(DRAIN_LIMIT) => Exit::worst([exit, Exit::StdoutClosed]),
    }
}

/// The process's signals, the end of stdout's reader, and `stop` (which is taken as a TERM), as one stream.
/// Must be called inside a tokio runtime.
pub fn signals(stop: Arc<Notify>) -> io::Result<mpsc::UnboundedReceiver<Signal>> {
    // Unbounded: as many as somebody types.
    let (sender, receiver) = mpsc::unbounded_channel();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        let mut gone = pin!(stdout_gone());
        let mut read = true;
        loop {
            let signal = tokio::select! {
                _ = interrupt.recv() => Signal::Interrupt,
                _ = terminate.recv() => Signal::Terminate,
                () = stop.notified() => Signal::Terminate,
                _ = hangup.recv() => Signal::Hangup,
                () = &mut gone, if read => {
                    read = false;
                    Signal::StdoutGone
                }
            };
            if sender.send(signal).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// What the parent program says on stdin, read by a thread of its own: a blocked read must not hold up the exit.
pub fn parent() -> mpsc::UnboundedReceiver<Said> {
    // Unbounded: as much as the parent writes, which the loop takes at once.
    let (sender, said) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let heard = line::listen(io::stdin().lock(), |said| sender.send(said).is_ok());
        if let Err(error) = heard {
            tracing::error!("cannot read stdin: {error}");
            // A parent that cannot be heard cannot ask for the end either.
            let _ = sender.send(Said::Stop);
        }
    });
    said
}

/// Nobody to listen to.
pub fn no_parent() -> mpsc::UnboundedReceiver<Said> {
    mpsc::unbounded_channel().1
}

/// The number of paths the target's last ack left out.
pub fn withheld(target: &TargetStatus) -> u64 {
    target.withheld.len() as u64
}

/// The commit the target's clone landed on last, in hexadecimal.
pub fn acked_baseline(target: &TargetStatus) -> Option<String> {
    Some(target.history.landed.as_ref()?.to?.to_string())
}

/// What is known and how it is printed, without any I/O.
#[derive(Debug)]
struct Face {
    printer: Printer,
    status: Status,
    once: Option<OnceTracker>,
}

#[derive(Debug)]
enum Printer {
    Plain(Plain),
    Json(Json),
    Line(Line),
}

impl Face {
    fn new(targets: &[TargetId], options: Options, now: Instant) -> Self {
        Self {
            printer: match options.format {
                Format::Plain(level) => Printer::Plain(Plain { level }),
                Format::Json => Printer::Json(Json::default()),
                Format::Line => Printer::Line(Line::new(targets)),
            },
            status: Status::new(targets.iter().cloned(), now),
            once: match options.until {
                Until::Stopped => None,
                Until::Once { timeout } => {
                    let once = OnceTracker::new(targets.iter().cloned(), timeout, now);
                    Some(if options.accept_deletes { once.accepting_deletes() } else { once })
                }
            },
        }
    }

    /// Those there are now.
    fn targets(&self) -> impl Iterator<Item = &TargetId> {
        self.status.targets.iter().map(|status| &status.target)
    }

    fn hello(&mut self, time: SystemTime) -> String {
        let targets: Vec<TargetId> = self.targets().cloned().collect();
        match &mut self.printer {
            Printer::Plain(plain) => plain.hello(&targets, time),
            Printer::Json(json) => json.hello(&targets, time),
            Printer::Line(line) => line.hello(),
        }
    }

    fn take(&mut self, event: &Event, now: Instant) -> String {
        self.status.apply(event);
        if let Some(once) = &mut self.once {
            once.apply(event, now);
            once.tick(now);
        }
        self.print(event)
    }

    /// The summary says where each target stood when the stop was asked: acks still on their way count,
    /// the ends of the sessions do not.
    fn take_while_stopping(&mut self, event: &Event) -> String {
        let leaves = match &event.kind {
            EventKind::State { to, .. } => !matches!(to, Phase::InSync | Phase::Halted | Phase::Failed),
            _ => false,
        };
        if !leaves {
            self.status.apply(event);
        }
        self.print(event)
    }

    fn tick(&mut self, now: Instant) {
        if let Some(once) = &mut self.once {
            once.tick(now);
        }
    }

    /// The engine has no task left, though nobody asked it to stop.
    fn engine_ended(&self) -> Exit {
        let each = self.status.targets.iter().map(|t| match t.phase {
            Phase::Halted => Exit::Halted,
            Phase::Failed => Exit::Incomplete,
            _ => Exit::Bug,
        });
        Exit::worst(each)
    }

    /// Lines that say what was not waited for any longer, why, and what to do; none if that is not the matter.
    fn timeout(&self) -> Option<String> {
        let timed_out = self.once.as_ref()?.timeout()?;
        let limit = match timed_out.bounded {
            true => "within --timeout".to_owned(),
            false => format!("without progress for {} s", once::PROGRESS_WITHIN.as_secs()),
        };
        let mut text =
            format!("timed out: {} not done {limit}\n", plural(timed_out.waiting.len() as u64, "target"));
        for id in timed_out.waiting {
            let Some(target) = self.status.get(id) else { continue };
            let error =
                target.last_error.as_ref().map(|(_, _, report)| report).filter(|_| is_troubled(target));
            let why = match error {
                Some(report) => format!(": {}", clean(&report.one_line())),
                None if target.phase == Phase::InSync => {
                    ": its files are there, its history is on the way".into()
                }
                None => String::new(),
            };
            let next = error
                .map_or("give it longer (`--timeout 5m`), or look at the log of its server", |report| {
                    hints::next_step(report.code)
                });
            text += &format!("{id} is {}{why}; {next}\n", target.phase.name());
        }
        Some(text)
    }

    fn summary(&mut self, exit: Exit, time: SystemTime) -> String {
        match &mut self.printer {
            Printer::Plain(plain) => plain.summary(&self.status, exit, time),
            Printer::Json(json) => json.summary(&self.status, exit, time),
            Printer::Line(line) => line.end(),
        }
    }

    fn print(&mut self, event: &Event) -> String {
        let line = match &mut self.printer {
            Printer::Plain(plain) => plain.event(event),
            Printer::Json(json) => json.event(event),
            Printer::Line(line) => line.event(event),
        };
        line.unwrap_or_default()
    }
}

/// stdout, written by a thread of its own: a reader that stalls stops neither sessions nor signals.
#[derive(Debug)]
struct Output {
    /// Unbounded: a stalled reader costs memory, which a bounded queue would turn into lost lines.
    lines: Option<mpsc::UnboundedSender<String>>,
    /// Whether everything was written; answers early if it cannot be.
    end: oneshot::Receiver<bool>,
    failed: bool,
}

impl Output {
    fn spawn(mut out: impl Write + Send + 'static) -> Self {
        let (lines, mut queue) = mpsc::unbounded_channel::<String>();
        let (answer, end) = oneshot::channel();
        std::thread::spawn(move || {
            let mut write = || -> io::Result<()> {
                while let Some(line) = queue.blocking_recv() {
                    out.write_all(line.as_bytes())?;
                    if queue.is_empty() {
                        out.flush()?;
                    }
                }
                out.flush()
            };
            let written = write().inspect_err(|error| {
                if error.kind() != io::ErrorKind::BrokenPipe {
                    tracing::error!("cannot write to stdout: {error}");
                }
            });
            // Nobody listens when the process is already leaving.
            let _ = answer.send(written.is_ok());
        });
        Self { lines: Some(lines), end, failed: false }
    }

    fn print(&self, text: String) {
        if let Some(lines) = self.lines.as_ref().filter(|_| !text.is_empty()) {
            // Fails only once `failed` answers.
            let _ = lines.send(text);
        }
    }

    /// Returns when stdout can no longer be written.
    async fn failed(&mut self) {
        if !self.failed {
            let _ = (&mut self.end).await;
            self.failed = true;
        }
    }

    /// Waits until all is written; false if it could not be.
    async fn finish(mut self) -> bool {
        self.lines = None;
        if self.failed { false } else { self.end.await.unwrap_or(false) }
    }
}

/// A pipe without a reader is noticed at once, not with the next line, which may be hours away.
#[expect(
    deprecated,
    reason = "its replacement is an unsafe fn, for descriptors that may close; stdout's never does"
)]
async fn stdout_gone() {
    // Files and some devices cannot be waited for; they do not go away either.
    if let Ok(fd) = AsyncFd::with_interest(io::stdout(), Interest::ERROR)
        && fd.ready(Interest::ERROR).await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
