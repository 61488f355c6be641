//! The dashboard: every target on one screen, and the keys to act on them.
//!
//! Its heart is a fold without I/O: [`app::update`] takes a message into the [`App`] and names the
//! effects to perform, [`view::view`] draws the App and changes nothing. This file is the shell around it: one
//! select loop over keys, engine events, signals and a single timer, which runs only while an age
//! on the screen moves. At rest nothing wakes.

mod app;
pub mod format;
mod keymap;
mod log;
mod terminal;
#[cfg(test)]
mod tests;
mod theme;
mod view;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossterm::event::{Event as Input, EventStream};
use futures_util::StreamExt;
use gitsync_core::engine;
use gitsync_core::model::Event;
use gitsync_core::model::status::Status;
use jiff::tz::TimeZone;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use self::app::{App, Effect, Level, Msg, Toast, update};
use self::terminal::Screen;
use self::theme::Theme;
use crate::cli::ColorChoice;
use crate::reload::Reload;

/// Draws are at least this far apart: 30 a second.
const FRAME: Duration = Duration::from_millis(33);
/// Events taken per wake. Input is looked at between two batches, so a flood of events cannot hold up a key.
const BATCH: usize = 1024;

#[derive(Debug, Clone)]
pub struct Options {
    /// What is being run, for the header: the config's name.
    pub title: String,
    pub theme: Option<String>,
    pub color: ColorChoice,
    /// Leaves out every key that acts on a session.
    pub read_only: bool,
}

/// What keys act with.
#[derive(Debug)]
pub struct Hands {
    pub handle: engine::Handle,
    pub reload: Reload,
}

/// Shows the dashboard until the user quits or `stop` is notified. The caller shuts the engine down afterwards.
pub async fn run(
    hands: Hands,
    events: engine::Events,
    stop: Arc<Notify>,
    status: Status,
    options: Options,
) -> anyhow::Result<()> {
    let (theme, complaint) =
        Theme::resolve(options.theme.as_deref(), options.color, |name| std::env::var(name).ok());
    let mut app = App::new(status, options.title, theme, TimeZone::system(), options.read_only);
    if let Some(complaint) = complaint {
        app.toast = Some(Toast::new(Level::Warn, complaint, Instant::now()));
    }
    terminal::as_ui(session(app, hands, events, stop)).await
}

async fn session(
    mut app: App,
    hands: Hands,
    mut events: engine::Events,
    stop: Arc<Notify>,
) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let mut screen = Screen::enter(app.theme.is_coloured())?;
    let mut keys = EventStream::new();
    let mut batch: Vec<Event> = Vec::with_capacity(BATCH);
    let mut engine_runs = true;
    let mut dirty = true;
    let mut drawn_at = None;
    app.size = screen.size()?;

    loop {
        let now = Instant::now();
        let due = drawn_at.is_none_or(|at| now.duration_since(at) >= FRAME);
        if dirty && due {
            screen.draw(|frame| view::view(&app, frame, now))?;
            screen.set_title(&app.window_title())?;
            drawn_at = Some(now);
            dirty = false;
        }
        let wake = match (dirty, drawn_at) {
            (true, Some(at)) => Some(at + FRAME),
            (true, None) => Some(now),
            (false, _) => app.next_change(now).map(|wait| now + wait.max(FRAME)),
        };

        let msg = tokio::select! {
            biased;
            () = signals.next() => return Ok(()),
            () = stop.notified() => return Ok(()),
            input = keys.next() => match input {
                Some(Ok(Input::Key(key))) => Msg::Key(key),
                Some(Ok(Input::Resize(width, height))) => Msg::Resize(width, height),
                Some(Ok(_)) => continue,
                // A terminal that went away never comes back; going on would spin.
                Some(Err(_)) | None => return Ok(()),
            },
            count = events.recv_many(&mut batch, BATCH), if engine_runs => {
                if count == 0 {
                    engine_runs = false;
                    Msg::EngineEnded(SystemTime::now())
                } else {
                    Msg::Events(std::mem::take(&mut batch))
                }
            }
            () = sleep_until(wake) => Msg::Tick,
        };
        dirty = true;

        for effect in update(&mut app, msg, Instant::now()) {
            match effect {
                Effect::Command(target, command) => hands.handle.command(Some(&target), command),
                Effect::Reload => hands.reload.ask(),
                Effect::Copy(text) => screen.copy(&text)?,
                Effect::Redraw => screen.clear()?,
                Effect::Suspend => {
                    // The stream's reader would go on eating keys meant for the shell.
                    drop(keys);
                    let stopped_at = SystemTime::now();
                    screen.suspend()?;
                    keys = EventStream::new();
                    app.size = screen.size()?;
                    let slept = stopped_at.elapsed().unwrap_or_default();
                    update(&mut app, Msg::Resumed(slept), Instant::now());
                }
                Effect::Quit => return Ok(()),
            }
        }
    }
}

/// The signals that end the dashboard. A hangup must: its terminal is gone.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
