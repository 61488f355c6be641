//! `pause`, `resume`, `resync`, `verify`, `accept`, `takeover`, `events`, `stop`: words to the running instance.

use std::io::{self, BufRead, Write};
use std::time::Duration;

use globset::GlobMatcher;

use super::{Failure, ask, load, print};
use crate::cli::{Cli, Globs, Task};
use crate::control::client::Answer;
use crate::control::{Lines, Request, Verb};
use crate::exit::Exit;

/// An instance that was asked to end drains its sessions for up to five seconds.
const STOP_LIMIT: Duration = Duration::from_secs(15);

pub fn run(cli: &Cli, task: &Task) -> Result<Exit, Failure> {
    let config = load(cli)?;
    let (verb, globs, done) = match task {
        Task::Pause(globs) => (Verb::Pause, globs, "asked to pause"),
        Task::Resume(globs) => (Verb::Resume, globs, "asked to go on"),
        Task::Resync(globs) => (Verb::Resync, globs, "asked to compare every file"),
        Task::Verify(globs) => (Verb::Verify, globs, "asked to read every file again"),
        Task::Accept(globs) => (Verb::Accept, globs, "told that it is meant"),
        Task::Takeover(globs) => (Verb::Takeover, globs, "asked to take the workspace over"),
        Task::Events { json } => {
            let format = if *json { Lines::Json } else { Lines::Plain };
            let request = Request { format, ..Request::new(Verb::Events, Vec::new()) };
            return events(ask(&config, &request)?);
        }
        _ => return stop(ask(&config, &Request::new(Verb::Stop, Vec::new()))?),
    };
    let answer = ask(&config, &Request::new(verb, texts(globs)))?;
    let names = answer.reply.targets.iter().filter_map(|name| name.as_str());
    let unchanged = &answer.reply.unchanged;
    let lines: String =
        names.map(|name| format!("{name} {}\n", unchanged.get(name).map_or(done, String::as_str))).collect();
    Ok(print(&lines, Exit::Done))
}

fn texts(globs: &Globs) -> Vec<String> {
    globs.globs.iter().map(GlobMatcher::glob).map(|glob| glob.glob().to_owned()).collect()
}

/// Passes lines on until the instance ends.
fn events(mut answer: Answer) -> Result<Exit, Failure> {
    let broken =
        |e: io::Error| Failure::new(Exit::Incomplete, format!("the running gitsync-tui is gone: {e}"));
    answer.rest.get_ref().set_read_timeout(None).map_err(broken)?;
    let mut stdout = io::stdout().lock();
    let mut line = Vec::new();
    loop {
        line.clear();
        match answer.rest.read_until(b'\n', &mut line) {
            Ok(0) => return Ok(Exit::Done),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(Exit::Done),
            Err(e) => return Err(broken(e)),
        }
        if stdout.write_all(&line).and_then(|()| stdout.flush()).is_err() {
            return Ok(Exit::StdoutClosed);
        }
    }
}

/// Returns when the instance has ended.
fn stop(mut answer: Answer) -> Result<Exit, Failure> {
    let late = || {
        let message = format!(
            "the running gitsync-tui has not ended within {} s\nlook at its log, or end its process",
            STOP_LIMIT.as_secs()
        );
        Failure::new(Exit::Timeout, message)
    };
    answer.rest.get_ref().set_read_timeout(Some(STOP_LIMIT)).map_err(|_| late())?;
    let mut rest = Vec::new();
    match answer.rest.read_until(b'\n', &mut rest) {
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Err(late()),
        // Ended, one way or the other.
        _ => Ok(print("stopped\n", Exit::Done)),
    }
}
