//! Talking to the running instance, through a Unix socket.
//!
//! One instance runs per configuration. While it runs (dashboard or headless) it holds a lock and, but
//! for `--once`, listens on a socket beside it; both lie in [`place`]'s directory, which only this user
//! can enter, and are named by a hash of the configuration's canonical path. The lock decides who is
//! the instance: a socket that a killed one left behind is replaced.
//!
//! The protocol is one JSON object per line, UTF-8, at most 64 KiB a request. A client sends one
//! request:
//!
//! ```json
//! {"v":1,"verb":"pause","targets":["app@*"]}
//! ```
//!
//! `verb` is one of status, pause, resume, sync, resync, verify, accept, stop, events. `targets` are
//! globs over target ids; none at all means every target. The answer is one line,
//! `{"v":1,"ok":true,"targets":[..]}`, with the ids that are meant (for `status` one object each: see
//! [`report`]), or `{"v":1,"ok":false,"exit":6,"message":".."}` with the exit code a command should end
//! with. An answer with `"unchanged":{"app@gpu":"is paused already"}` names the targets for which nothing
//! was to be done, and why. After it:
//!
//! - `pause` and `resume` are answered once the targets show it, or after a second;
//! - `stop` keeps the connection open until the instance has ended;
//! - `events` is followed by the lines of `--format json` (or, with `"format":"plain"`, of that) until
//!   either side ends it. A client that reads too slowly loses lines; `seq` then has a gap.
//!
//! A peer of another user is hung up on.

pub mod client;
pub mod hub;
pub mod place;
pub mod report;
mod serve;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::exit::Exit;

pub use serve::serve;

/// Version of the protocol.
pub const VERSION: u32 = 1;
/// Longest line of a request.
const REQUEST_BYTES: u64 = 64 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub v: u32,
    pub verb: Verb,
    /// Globs over target ids; empty for all.
    #[serde(default)]
    pub targets: Vec<String>,
    /// Of the lines after `events`.
    #[serde(default)]
    pub format: Lines,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    Status,
    Pause,
    Resume,
    Sync,
    Resync,
    Verify,
    Accept,
    Takeover,
    Stop,
    Events,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lines {
    #[default]
    Json,
    Plain,
}

impl Request {
    pub fn new(verb: Verb, targets: Vec<String>) -> Self {
        Self { v: VERSION, verb, targets, format: Lines::default() }
    }
}

/// Why a request is not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub exit: u8,
    pub message: String,
}

impl Refused {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit: exit.code(), message: message.into() }
    }
}

/// What is answered to a request that is carried out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reply {
    pub targets: Vec<Value>,
    /// Targets for which there was nothing to do, and why.
    pub unchanged: BTreeMap<String, String>,
}

/// The line that answers a request.
fn reply(answer: Result<Reply, Refused>) -> String {
    let object = match answer {
        Ok(Reply { targets, unchanged }) if unchanged.is_empty() => {
            json!({ "v": VERSION, "ok": true, "targets": targets })
        }
        Ok(Reply { targets, unchanged }) => {
            json!({ "v": VERSION, "ok": true, "targets": targets, "unchanged": unchanged })
        }
        Err(refused) => {
            json!({ "v": VERSION, "ok": false, "exit": refused.exit, "message": refused.message })
        }
    };
    format!("{object}\n")
}

/// What a line that answers a request says; `None` if it is no such line.
fn read_reply(line: &str) -> Option<Result<Reply, Refused>> {
    let mut object: Value = serde_json::from_str(line).ok()?;
    if object["ok"].as_bool()? {
        let unchanged = match object["unchanged"].take() {
            Value::Null => BTreeMap::new(),
            unchanged => serde_json::from_value(unchanged).ok()?,
        };
        return match object["targets"].take() {
            Value::Array(targets) => Some(Ok(Reply { targets, unchanged })),
            _ => None,
        };
    }
    let exit = u8::try_from(object["exit"].as_u64()?).ok()?;
    Some(Err(Refused { exit, message: object["message"].as_str()?.to_owned() }))
}
