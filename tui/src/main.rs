//! `gitsync-tui`: parse, load, start, wait, answer an exit code. Everything that decides lies in the
//! modules; this file only joins them.

#![forbid(unsafe_code)]

mod cli;
mod control;
mod dashboard;
mod embedded;
mod exit;
mod git_env;
mod headless;
mod hints;
mod logging;
mod reload;
mod sense;
mod task;

use std::io::{self, IsTerminal, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gitsync_core::config::{self, Config, Source};
use gitsync_core::engine;
use gitsync_core::model::TargetId;
use gitsync_core::model::status::Status;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use crate::cli::{Cli, Format};
use crate::control::hub::Hub;
use crate::control::place::{Claim, Claimed, Place};
use crate::embedded::Embedded;
use crate::exit::Exit;
use crate::headless::Until;
use crate::reload::Reload;

/// This program and its version, as servers are told.
const SOFTWARE: &str = concat!("gitsync-tui ", env!("CARGO_PKG_VERSION"));
/// How long tasks that ignore the stop may hold up the end of the process.
const LEAVE_LIMIT: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    gitsync_server::memory::give_back();
    if let Err(error) = git_env::shed() {
        say(&format!(
            "error: cannot leave the repository of the environment ($GIT_DIR and its like): {error}"
        ));
        return Exit::Bug.into();
    }
    let cli = match Cli::parse_from_words(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // Help to a closed pipe is nobody's problem.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done }.into();
        }
    };
    // The panic's own message is on stderr already.
    let exit = catch_unwind(AssertUnwindSafe(|| start(&cli))).unwrap_or_else(|_| {
        say("this is a bug in gitsync: please report it with the message above");
        Exit::Bug
    });
    exit.into()
}

fn start(cli: &Cli) -> Exit {
    let headless = cli.task.is_some() || is_headless(cli);
    if let Err(error) = logging::init(cli, headless) {
        say(&format!("error: {error:#}\nname a file you can write with --log-file"));
        return Exit::Usage;
    }
    if let Some(task) = &cli.task {
        return task::run(cli, task).unwrap_or_else(|failure| {
            say(&failure.message);
            failure.exit
        });
    }
    let config = match load(cli) {
        Ok(config) => config,
        Err(message) => {
            say(&message);
            return Exit::Config;
        }
    };
    let (all, selection) = (config.targets(), cli.selection());
    for glob in selection.unmatched(&all) {
        say(&format!("no target matches `{glob}`"));
    }
    let selected = selection.select(&all);
    if selected.is_empty() {
        let names: Vec<String> = all.iter().map(ToString::to_string).collect();
        say(&format!("the targets are: {}", names.join(", ")));
        return Exit::NoTarget;
    }
    let env = |name: &str| std::env::var_os(name);
    let Some(state_dir) = config::state_dir(env) else {
        say("there is no place to remember who this client is: set $HOME or $XDG_STATE_HOME");
        return Exit::Config;
    };
    let options = engine::Options {
        embedded: Arc::new(Embedded),
        state_dir,
        cache_dir: config::cache_dir(env),
        owner_text: owner_text(),
        software: SOFTWARE.into(),
    };
    let claim = match claim(&config) {
        Ok(claim) => claim,
        Err(exit) => return exit,
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            say(&format!("error: cannot start threads: {error}"));
            return Exit::Bug;
        }
    };
    let exit = runtime.block_on(session(cli, &config, &selected, options, headless, claim)).unwrap_or_else(
        |error| {
            say(&format!("error: {error:#}"));
            Exit::Bug
        },
    );
    runtime.shutdown_timeout(LEAVE_LIMIT);
    exit
}

async fn session(
    cli: &Cli,
    config: &Config,
    selected: &[TargetId],
    options: engine::Options,
    headless: bool,
    mut claim: Option<Claim>,
) -> anyhow::Result<Exit> {
    // Whoever asks for the end through the control socket.
    let stop = Arc::new(Notify::new());
    // Before the engine starts, so that no signal finds the default action.
    let signals = if headless { Some(headless::signals(stop.clone())?) } else { None };
    let asked = signal(SignalKind::user_defined1())?;
    let (handle, events) = engine::start(config, selected, options);
    let (hub, events) = Hub::start(handle.clone(), events, stop.clone());
    let reload = Reload::start(handle.clone(), config, cli.selection(), !cli.once);
    // Ends with the runtime.
    drop(tokio::spawn(tell_status(asked, hub.clone())));
    // One run to one state is over too soon to be talked to.
    if let Some(claim) = claim.as_mut().filter(|_| !cli.once) {
        match claim.listen() {
            // Ends with the runtime.
            Ok(listener) => drop(tokio::spawn(control::serve(listener, hub))),
            Err(error) => warn_unheard(&error),
        }
    }
    if let Some(signals) = signals {
        let commands = handle.clone();
        let hands = headless::Hands {
            said: match cli.format {
                Some(Format::Line) => headless::parent(),
                _ => headless::no_parent(),
            },
            command: Box::new(move |target, command| commands.command(target, command)),
            reload: Box::new(move || reload.ask()),
        };
        let options = headless::Options {
            format: match cli.format {
                Some(Format::Json) => headless::Format::Json,
                Some(Format::Line) => headless::Format::Line,
                Some(Format::Plain) | None => headless::Format::Plain(cli.verbosity.plain_level()),
            },
            until: if cli.once { Until::Once { timeout: cli.timeout } } else { Until::Stopped },
            accept_deletes: cli.accept_deletes,
        };
        let stop = handle.shutdown(headless::DRAIN_LIMIT);
        return Ok(headless::run(events, stop, signals, hands, selected, options, io::stdout()).await);
    }
    let status = Status::new(selected.iter().cloned(), Instant::now());
    let options = dashboard::Options {
        title: config.file.display().to_string(),
        theme: cli.theme.clone().or_else(|| config.ui.theme.clone()),
        color: cli.color,
        read_only: cli.read_only || config.ui.read_only,
    };
    let hands = dashboard::Hands { handle: handle.clone(), reload };
    let shown = dashboard::run(hands, events, stop, status, options).await;
    handle.shutdown(headless::DRAIN_LIMIT).await;
    shown.map(|()| Exit::Done)
}

/// Logs how every target stands, each time the signal comes.
async fn tell_status(mut asked: Signal, hub: Arc<Hub>) {
    while asked.recv().await.is_some() {
        for line in task::status::table(&hub.report(&hub.targets(), Instant::now())).lines() {
            tracing::info!(target: logging::STATUS, "{line}");
        }
    }
}

/// Makes this process the one instance of its configuration; `None` where that cannot be told, which is
/// no reason not to mirror. Fails if another is running.
fn claim(config: &Config) -> Result<Option<Claim>, Exit> {
    let claimed = Place::of(&config.file, |name| std::env::var_os(name)).and_then(|place| place.claim());
    match claimed {
        Ok(Claimed::Ours(claim)) => Ok(Some(claim)),
        Ok(Claimed::Taken(process)) => {
            let process = process.map_or_else(String::new, |id| format!(" (process {id})"));
            say(&format!(
                "already running: another gitsync-tui{process} mirrors {}\n\
                 ask it with `gitsync-tui status`, end it with `gitsync-tui stop`; attaching a dashboard to it is not in this version",
                config.file.display()
            ));
            Err(Exit::Running)
        }
        Err(error) => {
            warn_unheard(&error);
            Ok(None)
        }
    }
}

fn warn_unheard(error: &dyn std::error::Error) {
    let cause = error.source().map_or_else(String::new, |cause| format!(": {cause}"));
    say(&format!(
        "warning: {error}{cause}; commands such as `gitsync-tui status` will not find this instance\n\
         set $XDG_RUNTIME_DIR to a directory of your own"
    ));
}

/// Finds and reads the configuration; an error is text for a person.
fn load(cli: &Cli) -> Result<Config, String> {
    let located =
        config::locate(cli.config.as_deref(), |name| std::env::var_os(name)).map_err(|e| e.to_string())?;
    if located.source == Source::Default && !located.file.exists() {
        return Err(format!(
            "no configuration found: there is no {}\n\
             `gitsync-tui init`, run in a git checkout, makes one for it; or name another with --config FILE or $GITSYNC_CONFIG",
            located.file.display()
        ));
    }
    Config::load(&located.file).map_err(|errors| errors.to_string())
}

fn is_headless(cli: &Cli) -> bool {
    cli.no_tui
        || cli.once
        || cli.format.is_some()
        || !io::stdin().is_terminal()
        || !io::stdout().is_terminal()
        || std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

fn runtime() -> io::Result<Runtime> {
    // Nothing blocks in a task, and a save passes through several: with more threads, each of them wakes others.
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()
}

/// Who and where, for people who meet a workspace of ours on a server.
fn owner_text() -> String {
    let user =
        std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "somebody".into());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_| std::fs::read_to_string("/etc/hostname"));
    match host.as_deref().map(str::trim) {
        Ok(host) if !host.is_empty() => format!("{user}@{host}"),
        _ => user,
    }
}

/// To stderr; without one there is nobody to tell.
fn say(message: &str) {
    let _ = writeln!(io::stderr(), "{message}");
}
