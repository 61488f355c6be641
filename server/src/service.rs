//! The gRPC service: one thread per stream, messages to values, values to messages.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gitsync_core::model::ErrorReport;
use gitsync_core::wire::proto::mirror_server::{Mirror, MirrorServer};
use gitsync_core::wire::{MESSAGE_BYTES, Refusal, RefusalCode, ToClient, ToServer, proto};
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::config::Config;
use crate::conversation::{Awaits, Conversation, Next};
use crate::workspace::fs::WorkspaceFs;

/// Replies on their way into the transport.
const REPLIES: usize = 64;
/// After this long without a message a stream's workspace may tidy up.
const QUIET: Duration = Duration::from_secs(2);
/// A reader of kept files that takes nothing for this long is not waited for.
const PIECE_PATIENCE: Duration = Duration::from_secs(60);
/// Streams that may be on their way to a session at a time, each with a thread: as many as one connection has.
const STRANGERS: usize = 256;

/// What a server does, whatever it listens on.
#[derive(Debug, Clone)]
pub struct Options {
    /// Workspaces are directories directly below this one.
    pub root: PathBuf,
    /// Directories that hold something already may become workspaces.
    pub adopt: bool,
    /// What else is said of single ones.
    pub workspaces: Arc<Config>,
    /// Program and version.
    pub software: String,
}

/// How a server keeps an eye on its workspaces.
#[derive(Debug, Clone, Copy)]
pub struct Watch {
    /// How often every managed file is looked at, more seldom where that takes long.
    pub drift_scan: Duration,
}

impl Default for Watch {
    fn default() -> Self {
        Self { drift_scan: Duration::from_secs(60) }
    }
}

/// Serves streams until `ending` turns true: then each stream ends after the apply in hand.
#[derive(Debug, Clone)]
pub struct Service {
    options: Arc<Options>,
    watch: Watch,
    ending: watch::Receiver<bool>,
    /// `None` for the operating system's.
    fs: Option<Arc<dyn WorkspaceFs>>,
    /// Places for streams that are not yet in a session.
    strangers: Arc<Semaphore>,
}

impl Service {
    pub fn new(options: Options, watch: Watch, ending: watch::Receiver<bool>) -> Self {
        let strangers = Arc::new(Semaphore::new(STRANGERS));
        Self { options: Arc::new(options), watch, ending, fs: None, strangers }
    }

    /// This service with its workspaces on another file system, such as one that fails on purpose.
    pub fn on(self, fs: Arc<dyn WorkspaceFs>) -> Self {
        Self { fs: Some(fs), ..self }
    }

    /// The service with its message limits set.
    pub fn into_server(self) -> MirrorServer<Self> {
        MirrorServer::new(self).max_decoding_message_size(MESSAGE_BYTES)
    }
}

type Replies = Pin<Box<dyn tokio_stream::Stream<Item = Result<proto::ServerMessage, Status>> + Send>>;

#[tonic::async_trait]
impl Mirror for Service {
    type SyncStream = Replies;

    async fn sync(
        &self,
        request: Request<Streaming<proto::ClientMessage>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let stranger = self.strangers.clone().try_acquire_owned().map_err(|_| {
            let text = format!("{STRANGERS} streams without a session are open already; try again later");
            tracing::warn!("refused a stream: {text}");
            Status::resource_exhausted(text)
        })?;
        let (replies, receiver) = mpsc::channel(REPLIES);
        let news = Arc::new(Notify::new());
        let bell = news.clone();
        let conversation =
            Conversation::new(self.options.clone(), self.watch, Arc::new(move || bell.notify_one()))
                .on(self.fs.clone());
        let talk = converse(request.into_inner(), conversation, stranger, news, replies, self.ending.clone());
        let runtime = Handle::current();
        // Named like the threads that serve beside it.
        let name = std::thread::current().name().unwrap_or("conversation").to_owned();
        std::thread::Builder::new()
            .name(name)
            .spawn(move || runtime.block_on(talk))
            .map_err(|e| Status::resource_exhausted(format!("cannot start a thread: {e}")))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

type Sink = mpsc::Sender<Result<proto::ServerMessage, Status>>;

/// Runs on a thread of its own: it blocks on the file system, which must hold up nobody else's stream.
async fn converse(
    mut messages: Streaming<proto::ClientMessage>,
    mut conversation: Conversation,
    stranger: OwnedSemaphorePermit,
    news: Arc<Notify>,
    replies: Sink,
    mut ending: watch::Receiver<bool>,
) {
    let mut rest_at = None;
    let mut stranger = Some(stranger);
    // What is waited for, and since when.
    let mut awaited = (conversation.awaits(), Instant::now());
    loop {
        let due = conversation.due();
        if conversation.awaits() != awaited.0 {
            awaited = (conversation.awaits(), Instant::now());
        }
        stranger.take_if(|_| awaited.0.is_none());
        let until = awaited.0.map(|awaits| awaited.1 + awaits.patience());
        let message = tokio::select! {
            biased;
            () = ended(&mut ending) => {
                let refusal = refusal(RefusalCode::ShuttingDown, "the server is ending");
                send(&replies, vec![ToClient::Refusal(refusal)]).await;
                break;
            }
            // Before messages, so that one who always has another gets no more time.
            () = reached(until) => {
                let text = awaited.0.map_or("too late", Awaits::missed);
                // To one who reads; another is not waited for.
                let refusal = ToClient::Refusal(refusal(RefusalCode::Protocol, text));
                let _ = replies.try_send(Ok(refusal.into()));
                break;
            }
            message = messages.message() => message,
            () = news.notified() => {
                let next = conversation.news();
                let (end, alive) = (next.end, send(&replies, next.replies).await);
                if end || !alive {
                    break;
                }
                continue;
            }
            () = reached(rest_at) => {
                rest_at = None;
                conversation.rest();
                continue;
            }
            () = reached(due) => {
                let next = conversation.idle();
                let (end, alive) = (next.end, send(&replies, next.replies).await);
                if end || !alive {
                    break;
                }
                continue;
            }
        };
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(status) => {
                tracing::debug!("stream broke: {}", status.message());
                break;
            }
        };
        let next = match ToServer::try_from(message) {
            Ok(message) => conversation.handle(message),
            Err(violation) => {
                let refusal = refusal(RefusalCode::Protocol, &violation.to_string());
                Next { replies: vec![ToClient::Refusal(refusal)], end: true }
            }
        };
        rest_at = Some(Instant::now() + QUIET);
        let until = match conversation.is_reading() {
            true => Some(Instant::now() + PIECE_PATIENCE),
            false => until,
        };
        let (end, mut alive) = (next.end, send_until(&replies, next.replies, until).await);
        // One at a time, as the transport takes them: a kept file may be larger than memory.
        while alive && let Some(piece) = conversation.piece() {
            let stalled = Some(Instant::now() + PIECE_PATIENCE);
            alive = send_until(&replies, vec![piece], stalled).await;
        }
        if end || !alive {
            break;
        }
    }
    // Gives up what was being staged, on disk as well.
    conversation.leave();
}

/// Waits for a moment that may never come.
async fn reached(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// The guard of the watched value must not live across an await of the caller's.
async fn ended(ending: &mut watch::Receiver<bool>) {
    let _ = ending.wait_for(|ending| *ending).await;
}

async fn send(replies: &Sink, messages: Vec<ToClient>) -> bool {
    for message in messages {
        if replies.send(Ok(message.into())).await.is_err() {
            return false;
        }
    }
    true
}

/// False as well if they are not all on their way by then.
async fn send_until(replies: &Sink, messages: Vec<ToClient>, until: Option<Instant>) -> bool {
    tokio::select! {
        biased;
        sent = send(replies, messages) => sent,
        () = reached(until) => false,
    }
}

/// A refusal of the session as a whole.
pub(crate) fn refusal(code: RefusalCode, message: &str) -> Refusal {
    Refusal { generation: 0, code, messages: vec![message.to_owned()], held: None }
}

/// A refusal with an error's chain for people.
pub(crate) fn refusal_of(generation: u64, code: RefusalCode, error: &dyn std::error::Error) -> Refusal {
    let report = ErrorReport::of(gitsync_core::model::ErrorCode::Refused, error, false);
    let messages = std::iter::once(report.message).chain(report.causes).collect();
    Refusal { generation, code, messages, held: None }
}
