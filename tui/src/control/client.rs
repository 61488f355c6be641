//! A command's side of the control socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::place::{Place, PlaceError};
use super::{Refused, Reply, Request, read_reply};

/// An instance answers at once, but for a pause that takes a moment to show.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("no gitsync-tui is running with this config")]
    NotRunning,
    #[error("cannot look for the running gitsync-tui")]
    Place(#[from] PlaceError),
    #[error("the running gitsync-tui does not answer")]
    Io(#[from] io::Error),
    #[error("the running gitsync-tui answers in another language: it is another version")]
    Strange,
    #[error("{}", .0.message)]
    Refused(Refused),
}

/// What an instance answered, and the connection for what comes after.
#[derive(Debug)]
pub struct Answer {
    pub reply: Reply,
    pub rest: BufReader<UnixStream>,
}

/// Asks the instance for one thing.
pub fn ask(place: &Place, request: &Request) -> Result<Answer, AskError> {
    let mut stream = place.connect()?.ok_or(AskError::NotRunning)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.set_write_timeout(Some(ANSWER_LIMIT))?;
    let line = serde_json::to_string(request).map_err(io::Error::from)?;
    stream.write_all(format!("{line}\n").as_bytes())?;
    let mut rest = BufReader::new(stream);
    let mut line = String::new();
    if rest.read_line(&mut line)? == 0 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    let reply = read_reply(&line).ok_or(AskError::Strange)?.map_err(AskError::Refused)?;
    Ok(Answer { reply, rest })
}
