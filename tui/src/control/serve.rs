//! The instance's side of the control socket.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use gitsync_core::engine::Command;
use gitsync_core::model::{EventKind, TargetId};
use rustix::process::getuid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tracing::level_filters::LevelFilter;

use super::hub::Hub;
use super::{Lines, REQUEST_BYTES, Refused, Reply, Request, VERSION, Verb, reply};
use crate::cli::{Globs, parse_glob};
use crate::exit::Exit;
use crate::headless::json::Json;
use crate::headless::plain::Plain;

/// Connections at a time; one more is hung up on.
const CONNECTIONS: usize = 64;
/// A client that has not said what it wants by then is hung up on.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// After a failed accept (no descriptors left, say) the next one waits.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers requests until it is dropped.
pub async fn serve(listener: std::os::unix::net::UnixListener, hub: Arc<Hub>) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!("cannot listen for commands: {error}");
            return;
        }
    };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < CONNECTIONS => {
                    let hub = hub.clone();
                    connections.spawn(async move {
                        if let Err(error) = converse(stream, &hub).await {
                            tracing::debug!("a command's connection broke: {error}");
                        }
                    });
                }
                Ok(_) => tracing::warn!("too many commands at a time"),
                Err(error) => {
                    tracing::warn!("cannot take a command: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn converse(stream: UnixStream, hub: &Hub) -> io::Result<()> {
    if stream.peer_cred()?.uid() != getuid().as_raw() {
        tracing::warn!("a command of another user was hung up on");
        return Ok(());
    }
    let (read, mut write) = stream.into_split();
    let mut line = Vec::new();
    let mut read = BufReader::new(read.take(REQUEST_BYTES));
    let got = tokio::time::timeout(REQUEST_LIMIT, read.read_until(b'\n', &mut line)).await;
    if got.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? == 0 {
        return Ok(());
    }
    let (request, globs, targets) = match understand(&line, &hub.targets()) {
        Ok(understood) => understood,
        Err(refused) => return write.write_all(reply(Err(refused)).as_bytes()).await,
    };
    let command = match request.verb {
        Verb::Status => {
            let report = hub.report(&targets, Instant::now());
            let report = Reply { targets: report, ..Reply::default() };
            return write.write_all(reply(Ok(report)).as_bytes()).await;
        }
        Verb::Events => return events(write, hub, request.format, &globs).await,
        Verb::Stop => {
            write.write_all(names(&targets, BTreeMap::new()).as_bytes()).await?;
            hub.stop();
            // The end of the connection tells that the instance has ended.
            return std::future::pending().await;
        }
        Verb::Pause => Command::Pause,
        Verb::Resume => Command::Resume,
        Verb::Sync => Command::SyncNow,
        Verb::Resync => Command::Resync,
        Verb::Verify => Command::Verify,
        Verb::Accept => Command::Accept,
        Verb::Takeover => Command::Takeover,
    };
    let unchanged = hub.command(&targets, command).await;
    write.write_all(names(&targets, unchanged).as_bytes()).await
}

/// Reads a request, and the targets it means: by name, and which those are now.
fn understand(line: &[u8], all: &[TargetId]) -> Result<(Request, Globs, Vec<TargetId>), Refused> {
    let wrong = |message: String| Refused::new(Exit::Usage, message);
    if line.last() != Some(&b'\n') {
        return Err(wrong(format!("a request is one line of at most {REQUEST_BYTES} bytes")));
    }
    let request: Request =
        serde_json::from_slice(line).map_err(|e| wrong(format!("not a request of this version: {e}")))?;
    if request.v != VERSION {
        return Err(wrong(format!("this instance speaks version {VERSION}, not {}", request.v)));
    }
    let globs = request.targets.iter().map(|glob| parse_glob(glob));
    let globs = Globs { globs: globs.collect::<Result<_, _>>().map_err(wrong)? };
    let targets = globs.choose(all).map_err(|message| {
        let names: Vec<String> = all.iter().map(ToString::to_string).collect();
        Refused::new(Exit::NoTarget, format!("{message}; the targets are: {}", names.join(", ")))
    })?;
    Ok((request, globs, targets))
}

fn names(targets: &[TargetId], unchanged: BTreeMap<String, String>) -> String {
    let targets = targets.iter().map(|target| Value::from(target.to_string())).collect();
    reply(Ok(Reply { targets, unchanged }))
}

/// Sends lines of the targets that are meant, also when there are others by then, until the client goes or the engine
/// ends.
async fn events(mut write: OwnedWriteHalf, hub: &Hub, format: Lines, globs: &Globs) -> io::Result<()> {
    let mut events = hub.listen();
    // After that: a reload is either in here, or still to be heard of.
    let mut targets = globs.select(&hub.targets());
    write.write_all(names(&targets, BTreeMap::new()).as_bytes()).await?;
    let mut json = Json::default();
    let plain = Plain { level: LevelFilter::INFO };
    let hello = match format {
        Lines::Json => json.hello(&targets, SystemTime::now()),
        Lines::Plain => plain.hello(&targets, SystemTime::now()),
    };
    write.write_all(hello.as_bytes()).await?;
    loop {
        let event = match events.recv().await {
            Ok(event) => event,
            Err(RecvError::Lagged(lost)) => {
                json.skip(lost);
                continue;
            }
            Err(RecvError::Closed) => return Ok(()),
        };
        if let EventKind::Config(Ok(changes)) = &event.kind {
            targets = globs.select(&changes.targets);
        }
        if event.target.as_ref().is_some_and(|target| !targets.contains(target)) {
            continue;
        }
        let line = match format {
            Lines::Json => json.event(&event),
            Lines::Plain => plain.event(&event),
        };
        if let Some(line) = line {
            write.write_all(line.as_bytes()).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_checked_before_anything_is_done() {
        let all = ["a", "b"].map(|server| TargetId { repo: "r".into(), server: server.into() });
        let ask = |line: &str| understand(format!("{line}\n").as_bytes(), &all);
        let (request, _, targets) = ask(r#"{"v":1,"verb":"pause","targets":["*@b"]}"#).unwrap();
        assert_eq!((request.verb, targets), (Verb::Pause, vec![all[1].clone()]));
        let (request, _, targets) = ask(r#"{"v":1,"verb":"events","format":"plain"}"#).unwrap();
        assert_eq!((request.format, targets), (Lines::Plain, all.to_vec()));
        for (line, exit, says) in [
            (r#"{"v":1,"verb":"pause","targets":["x@*"]}"#, 6, "`x@*`; the targets are: r@a, r@b"),
            (r#"{"v":1,"verb":"pause","targets":["a{"]}"#, 2, ""),
            (r#"{"v":2,"verb":"pause"}"#, 2, "version 1"),
            (r#"{"v":1,"verb":"dance"}"#, 2, "dance"),
            ("pause", 2, "not a request"),
        ] {
            let refused = ask(line).unwrap_err();
            assert_eq!(refused.exit, exit, "{line}");
            assert!(refused.message.contains(says), "{line}: {}", refused.message);
        }
        assert_eq!(understand(br#"{"v":1,"#, &all).unwrap_err().exit, 2);
    }
}
