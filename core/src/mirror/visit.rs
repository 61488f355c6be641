//! A short conversation with a server, beside all sessions: who is there, and what was kept.
//!
//! A visit opens a stream of its own and never a session, so it takes no lease, supersedes nobody and
//! changes nothing on the server.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tonic::Streaming;
use tonic::transport::Channel;

use super::client::{connect, unreachable};
use super::outlet::Stream;
use super::session::report_of;
use crate::model::{ErrorCode, ErrorReport};
use crate::wire::{FEATURES, FILE_BYTES, Hello, KeptFile, PROTOCOL, ToClient, ToServer, Welcome, proto};

/// A server that says nothing for this long is given up.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Most kept files one list may have.
const KEPT_MAX: usize = 100_000;

/// An open stream whose greeting was answered.
#[derive(Debug)]
pub struct Visit {
    stream: Stream,
    inbound: Streaming<proto::ServerMessage>,
    pub welcome: Welcome,
}

impl Visit {
    /// Greets the server. `software` is this program and its version.
    pub async fn open(channel: Channel, software: &str) -> Result<Self, ErrorReport> {
        let opened = tokio::time::timeout(ANSWER_LIMIT, connect(channel)).await;
        let (stream, inbound) = opened
            .map_err(|_| silent("connecting"))?
            .map_err(|status| unreachable(&status, "cannot connect"))?;
        let nobody =
            Welcome { protocol: 0, features: Vec::new(), software: String::new(), kernel: String::new() };
        let mut visit = Self { stream, inbound, welcome: nobody };
        visit
            .say(ToServer::Hello(Hello {
                protocol: PROTOCOL,
                required: Vec::new(),
                optional: FEATURES.iter().map(|&f| f.to_owned()).collect(),
                software: software.to_owned(),
            }))
            .await?;
        match visit.hear().await? {
            ToClient::Welcome(welcome) => visit.welcome = welcome,
            _ => return Err(unexpected("a welcome")),
        }
        Ok(visit)
    }

    /// Measures one round trip.
    pub async fn rtt(&mut self) -> Result<Duration, ErrorReport> {
        let start = Instant::now();
        self.say(ToServer::Ping { nonce: 1 }).await?;
        match self.hear().await? {
            ToClient::Pong { nonce: 1 } => Ok(start.elapsed()),
            _ => Err(unexpected("a pong")),
        }
    }

    /// What the workspace's recovery store holds. Only its owner is told.
    pub async fn list_kept(&mut self, workspace: &str, owner_id: &str) -> Result<Vec<KeptFile>, ErrorReport> {
        let (workspace, owner_id) = (workspace.to_owned(), owner_id.to_owned());
        self.say(ToServer::ListKept { workspace, owner_id }).await?;
        let mut all = Vec::new();
        loop {
            match self.hear().await? {
                ToClient::Kept { files, more } => {
                    all.extend(files);
                    if all.len() > KEPT_MAX {
                        return Err(broken(format!(
                            "the list of kept files has more than {KEPT_MAX} entries"
                        )));
                    }
                    if !more {
                        return Ok(all);
                    }
                }
                _ => return Err(unexpected("a list of kept files")),
            }
        }
    }

    /// Fetches one kept file, after [`Self::list_kept`]. `take` gets its bytes piece by piece; an error of its
    /// own ends the fetch, and with it the use of this visit.
    pub async fn fetch_kept<E: From<ErrorReport>>(
        &mut self,
        id: &str,
        mut take: impl FnMut(Bytes) -> Result<(), E>,
    ) -> Result<(), E> {
        self.say(ToServer::FetchKept { id: id.to_owned() }).await?;
        let mut so_far = 0;
        loop {
            match self.hear().await? {
                ToClient::KeptContent { offset, data, end } => {
                    if offset != so_far {
                        return Err(broken(format!("a piece at {offset} instead of {so_far}")).into());
                    }
                    so_far += data.len() as u64;
                    if so_far > FILE_BYTES {
                        return Err(broken("a kept file without an end".into()).into());
                    }
                    take(data)?;
                    if end {
                        return Ok(());
                    }
                }
                _ => return Err(unexpected("a piece of a kept file").into()),
            }
        }
    }

    async fn say(&mut self, message: ToServer) -> Result<(), ErrorReport> {
        let sent = tokio::time::timeout(ANSWER_LIMIT, self.stream.send(message.into())).await;
        match sent {
            // A broken stream says why when it is listened to.
            Ok(_) => Ok(()),
            Err(_) => Err(silent("taking a message")),
        }
    }

    async fn hear(&mut self) -> Result<ToClient, ErrorReport> {
        let heard = tokio::time::timeout(ANSWER_LIMIT, self.inbound.message()).await;
        let message = heard
            .map_err(|_| silent("answering"))?
            .map_err(|status| unreachable(&status, "the connection broke"))?;
        let Some(message) = message else {
            return Err(ErrorReport {
                code: ErrorCode::Unreachable,
                message: "the server ended the connection".into(),
                causes: Vec::new(),
                retryable: true,
            });
        };
        match ToClient::try_from(message) {
            Ok(ToClient::Refusal(refusal)) => Err(report_of(&refusal)),
            Ok(message) => Ok(message),
            Err(violation) => Err(ErrorReport::of(ErrorCode::Protocol, &violation, false)),
        }
    }
}

fn silent(doing: &str) -> ErrorReport {
    ErrorReport {
        code: ErrorCode::Unreachable,
        message: format!("the server was silent for {ANSWER_LIMIT:?} while {doing}"),
        causes: Vec::new(),
        retryable: true,
    }
}

fn unexpected(wanted: &str) -> ErrorReport {
    broken(format!("something else than {wanted}"))
}

fn broken(what: String) -> ErrorReport {
    let message = format!("the server answered against the protocol: {what}");
    ErrorReport { code: ErrorCode::Protocol, message, causes: Vec::new(), retryable: false }
}
