//! Subcommands: what a person or a script asks of the running instance, the configuration or a server.
//!
//! Each task is a file: it gathers facts, makes one value of them, and prints that as text or JSON.
//! Answers go to stdout, everything else to stderr, and the exit code says how it went.

mod act;
mod check;
mod drift;
mod init;
mod plan;
pub mod status;

use std::io::{self, Write};

use gitsync_core::config::Config;
use serde_json::Value;

use crate::cli::{Cli, Task};
use crate::control::Request;
use crate::control::client::{self, Answer, AskError};
use crate::control::place::Place;
use crate::exit::Exit;

/// A task that cannot be done: the exit code, what failed, and what to do next.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub message: String,
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
}

pub fn run(cli: &Cli, task: &Task) -> Result<Exit, Failure> {
    match task {
        Task::Init { server, stdout } => init::run(cli, server.as_deref(), *stdout),
        Task::Check { json, connect } => check::run(cli, *json, *connect),
        Task::Plan { targets, json } => plan::run(cli, targets, *json),
        Task::Status { json } => status::run(cli, *json),
        Task::Drift { target, diff, restore_to } => {
            drift::run(cli, target, drift::Wanted::of(*diff, restore_to.as_deref()))
        }
        Task::Pause(_)
        | Task::Resume(_)
        | Task::Resync(_)
        | Task::Verify(_)
        | Task::Accept(_)
        | Task::Takeover(_)
        | Task::Events { .. }
        | Task::Stop => act::run(cli, task),
    }
}

fn load(cli: &Cli) -> Result<Config, Failure> {
    crate::load(cli).map_err(|message| Failure::new(Exit::Config, message))
}

/// Asks the instance that runs with this configuration.
fn ask(config: &Config, request: &Request) -> Result<Answer, Failure> {
    let misplaced = |e: &dyn std::error::Error| {
        let message =
            format!("{}\nset $XDG_RUNTIME_DIR to a directory of your own, the same for both", chain(e));
        Failure::new(Exit::Incomplete, message)
    };
    let place = Place::of(&config.file, |name| std::env::var_os(name)).map_err(|e| misplaced(&e))?;
    client::ask(&place, request).map_err(|e| match e {
        AskError::NotRunning => Failure::new(
            Exit::Incomplete,
            format!(
                "{e} ({})\nstart it with `gitsync-tui --config FILE`, or with --no-tui to run it without a screen",
                config.file.display()
            ),
        ),
        AskError::Refused(refused) => Failure::new(Exit::of_code(refused.exit), refused.message),
        AskError::Strange => Failure::new(
            Exit::Incomplete,
            format!("{e}\nstop it with SIGTERM and start this version"),
        ),
        AskError::Place(_) => misplaced(&e),
        AskError::Io(_) => Failure::new(
            Exit::Incomplete,
            format!("{}\nask again; if it stays so, look at its log, or end its process and start it anew", chain(&e)),
        ),
    })
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line += &format!(": {cause}");
        source = cause.source();
    }
    line
}

/// Writes an answer; `exit` is how the task went otherwise.
fn print(text: &str, exit: Exit) -> Exit {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => exit,
        Err(_) => Exit::StdoutClosed,
    }
}

fn print_json(value: &Value, exit: Exit) -> Exit {
    print(&format!("{value:#}\n"), exit)
}

/// Rows as columns, each as wide as its widest cell; the last is ragged.
fn columns(rows: &[Vec<String>]) -> String {
    let cells = rows.iter().map(Vec::len).max().unwrap_or(0);
    let wide = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..cells).map(|at| wide(at).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let line: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text += line.join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_end_without_blanks() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        assert_eq!(columns(&[row(["a", "long", ""]), row(["bbb", "c", "d"])]), "a    long\nbbb  c     d\n");
        assert_eq!(columns(&[]), "");
    }
}
