//! The task that runs one target's session against a real stream.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::baseline::{SentStep, StepError};
use super::delta::Way;
use super::outlet::{Encoded, Outlet, SendError, Stream};
use super::session::{Action, Identity, Outgoing, Session};
use super::upload;
use crate::engine::{Command, Mirrored};
use crate::model::{ContentId, ErrorCode, ErrorReport, EventKind, HashKind, Missing, Needed, Snapshot};
use crate::repo::Head;
use crate::repo::blocks::BlockCache;
use crate::repo::content::ContentCache;
use crate::repo::disk::SharedDisk;
use crate::repo::observer::{Request, Update};
use crate::repo::reading::Reading;
use crate::transport::Connection;
use crate::wire::proto::mirror_client::MirrorClient;
use crate::wire::{MESSAGE_BYTES, ToClient, ToServer, proto};

/// From the start of a connection to a stream that answers.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long a server may take to hear that we leave.
const FAREWELL_LIMIT: Duration = Duration::from_secs(2);
/// Messages on their way into the transport: enough to keep it busy, few enough to bound memory.
const STREAM_MESSAGES: usize = 4;
/// Contents a scan may be ahead of a session; what is beyond goes with the first patch.
const READ_MOST: usize = 20_000;

/// The newest state of a repo for one target: newest wins, nothing queues.
#[derive(Debug, Default)]
pub struct Mailbox {
    slots: Mutex<Slots>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Slots {
    opened: Option<(Arc<Head>, HashKind)>,
    update: Option<Update>,
    preview: Option<Snapshot>,
    read: Vec<Needed>,
    /// Not over yet; one a path.
    readings: Vec<Reading>,
}

enum Letter {
    Opened(Arc<Head>, HashKind),
    Update(Update),
    Preview(Snapshot),
    Read(Vec<Needed>),
    Reading(Reading),
}

impl Mailbox {
    pub fn offer(&self, update: Update) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let update = match slots.update.take() {
            // The older update was never taken: its changes are older, and still new to the target.
            Some(old) => Update { seen: old.seen, held: old.held, ..update },
            None => update,
        };
        // Of a large file the update has what it was before.
        let readings = std::mem::take(&mut slots.readings);
        *slots = Slots { update: Some(update), readings, ..Slots::default() };
        drop(slots);
        self.filled.notify_one();
    }

    /// The repository is open, and its first snapshot still to come.
    pub fn offer_opened(&self, head: Arc<Head>, hash_kind: HashKind) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).opened = Some((head, hash_kind));
        self.filled.notify_one();
    }

    /// A state on its way to the next update, whose contents may travel already.
    pub fn offer_preview(&self, snapshot: Snapshot) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).preview = Some(snapshot);
        self.filled.notify_one();
    }

    /// The first scan, which goes on, read these: they may travel already.
    pub fn offer_read(&self, contents: &[Needed]) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let room = READ_MOST.saturating_sub(slots.read.len());
        slots.read.extend(contents.iter().take(room).cloned());
        drop(slots);
        self.filled.notify_one();
    }

    /// A large file is being read: what is the same in it as before may travel already.
    pub fn offer_reading(&self, reading: Reading) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        reading.join(&mut slots.readings);
        drop(slots);
        self.filled.notify_one();
    }

    async fn take(&self) -> Letter {
        loop {
            if let Some(letter) = self.slots.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return letter;
            }
            self.filled.notified().await;
        }
    }
}

impl Slots {
    fn take(&mut self) -> Option<Letter> {
        if !self.readings.is_empty() {
            return Some(Letter::Reading(self.readings.remove(0)));
        }
        let update = self.update.take().map(Letter::Update);
        let opened = || self.opened.take().map(|(head, kind)| Letter::Opened(head, kind));
        let letter = update.or_else(opened).or_else(|| self.preview.take().map(Letter::Preview));
        letter.or_else(|| (!self.read.is_empty()).then(|| Letter::Read(std::mem::take(&mut self.read))))
    }
}

/// What a target's task is given.
#[derive(Debug)]
pub struct Target {
    pub identity: Identity,
    pub connection: Arc<Connection>,
    pub contents: Arc<ContentCache>,
    pub blocks: Arc<BlockCache>,
    /// Shared by the targets of a repo.
    pub encoded: Arc<Encoded>,
    pub disk: Arc<SharedDisk>,
    /// Root of the working tree.
    pub workdir: PathBuf,
    pub mailbox: Arc<Mailbox>,
    /// It is to start paused.
    pub paused: bool,
    pub commands: mpsc::UnboundedReceiver<Command>,
    /// Which repository this target mirrors, beyond this run.
    pub mirrored: Mirrored,
    /// The repo became unusable.
    pub trouble: watch::Receiver<Option<ErrorReport>>,
    /// The repo's brake is set.
    pub brake: watch::Receiver<Option<Missing>>,
    /// Until then a lock may be that of a session of this program which is about to end.
    pub patient_until: Option<Instant>,
    /// True once the session is to end.
    pub ending: watch::Receiver<bool>,
}

/// What woke the task.
enum Wake {
    Connected(Result<(Stream, Streaming<proto::ServerMessage>), Status>),
    Message(Result<Option<proto::ServerMessage>, Status>),
    Sent(Result<u64, SendError>),
    /// With the id of a content that had none when it began to travel.
    AheadSent(Result<Option<ContentId>, SendError>),
    StepSent(Result<Option<SentStep>, StepError>),
    Update(Update),
    Preview(Snapshot),
    Read(Vec<Needed>),
    Reading(Reading),
    Opened(Arc<Head>, HashKind),
    Command(Option<Command>),
    Report(EventKind),
    Trouble,
    Brake,
    Ending,
    Time,
}

type Task<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;

/// One target's running parts.
struct Client<R, E> {
    target: Target,
    session: Session,
    outlet: Outlet,
    reports: mpsc::UnboundedReceiver<EventKind>,
    connecting: Task<Result<(Stream, Streaming<proto::ServerMessage>), Status>>,
    sending: Task<Result<u64, SendError>>,
    /// What goes beside it, in the background.
    sending_ahead: Task<Result<Option<ContentId>, SendError>>,
    /// What goes behind both: it rests while one of them is under way.
    sending_step: Task<Result<Option<SentStep>, StepError>>,
    stream: Option<Stream>,
    inbound: Option<Streaming<proto::ServerMessage>>,
    /// Waiting for the transport: at most one patch, and the few words around it.
    queue: std::collections::VecDeque<Out>,
    request: R,
    emit: E,
}

enum Out {
    Say(ToServer),
    Patch(Outgoing),
}

/// Runs a session until it was told to end and is closed. `request` asks the repo's observer, `emit` reports.
pub async fn run(target: Target, request: impl Fn(Request) + Send, emit: impl Fn(EventKind) + Send) {
    let (progress, reports) = mpsc::unbounded_channel();
    let outlet = Outlet {
        contents: target.contents.clone(),
        blocks: target.blocks.clone(),
        encoded: target.encoded.clone(),
        disk: target.disk.clone(),
        wire_bytes: Arc::new(AtomicU64::new(0)),
        credit: Arc::default(),
        way: Way::default(),
        progress,
    };
    let mut session = Session::new(target.identity.clone(), fastrand::u64(..));
    if let Some(until) = target.patient_until {
        session.be_patient(until);
    }
    let mut client = Client {
        target,
        session,
        outlet,
        reports,
        connecting: None,
        sending: None,
        sending_ahead: None,
        sending_step: None,
        stream: None,
        inbound: None,
        queue: std::collections::VecDeque::new(),
        request,
        emit,
    };
    let missing = *client.target.brake.borrow_and_update();
    client.session.handle_brake(missing, Instant::now());
    if client.target.paused {
        client.session.pause(Instant::now());
    }
    client.act();
    client.tell();
    let mut ending = false;
    while !client.session.is_closed() || client.sending.is_some() {
        let wake = client.wake(ending).await;
        ending |= matches!(wake, Wake::Ending);
        client.handle(wake, Instant::now());
        if ending {
            client.session.close(Instant::now());
        }
        client.act();
        // First the patch goes, then those hear of it who look on: on a busy machine they would take its turn.
        client.hurry().await;
        client.tell();
    }
    client.farewell().await;
}

impl<R: Fn(Request), E: Fn(EventKind)> Client<R, E> {
    /// The server ends the stream once it has heard the last word. Hanging up before that would take the word back,
    /// and the workspace would stay ours.
    async fn farewell(&mut self) {
        (self.sending_ahead, self.sending_step) = (None, None);
        self.stream = None;
        if let Some(mut inbound) = self.inbound.take() {
            let ended = async { while let Ok(Some(_)) = inbound.message().await {} };
            // It finds out by itself later on.
            let _ = tokio::time::timeout(FAREWELL_LIMIT, ended).await;
        }
    }

    async fn wake(&mut self, ending: bool) -> Wake {
        let deadline = self.session.deadline();
        let quiet = self.sending.is_none() && self.sending_ahead.is_none();
        tokio::select! {
            // Acks first: they make room for the next patch.
            biased;
            message = next_message(&mut self.inbound) => Wake::Message(message),
            sent = finished(&mut self.sending) => Wake::Sent(sent),
            letter = self.target.mailbox.take() => match letter {
                Letter::Update(update) => Wake::Update(update),
                Letter::Preview(snapshot) => Wake::Preview(snapshot),
                Letter::Read(contents) => Wake::Read(contents),
                Letter::Reading(reading) => Wake::Reading(reading),
                Letter::Opened(head, hash_kind) => Wake::Opened(head, hash_kind),
            },
            command = self.target.commands.recv(), if !self.target.commands.is_closed() => Wake::Command(command),
            Some(report) = self.reports.recv() => Wake::Report(report),
            Ok(()) = self.target.trouble.changed() => Wake::Trouble,
            Ok(()) = self.target.brake.changed() => Wake::Brake,
            Ok(_) = self.target.ending.wait_for(|ending| *ending), if !ending => Wake::Ending,
            sent = finished(&mut self.sending_ahead) => Wake::AheadSent(sent),
            sent = finished(&mut self.sending_step), if quiet => Wake::StepSent(sent),
            connected = finished(&mut self.connecting) => Wake::Connected(connected),
            () = until(deadline) => Wake::Time,
        }
    }

    fn handle(&mut self, wake: Wake, now: Instant) {
        match wake {
            Wake::Connected(result) => {
                self.connecting = None;
                match result {
                    Ok((stream, inbound)) => {
                        (self.stream, self.inbound) = (Some(stream), Some(inbound));
                        self.session.handle_connected(now);
                    }
                    Err(status) => {
                        self.session.handle_disconnected(unreachable(&status, "cannot connect"), now);
                    }
                }
            }
            Wake::Message(Ok(Some(message))) => match ToClient::try_from(message) {
                Ok(ToClient::Taken { weight }) => self.outlet.credit.taken(weight, now),
                Ok(message) => {
                    if let ToClient::Welcome(welcome) = &message {
                        self.outlet.way = Way::to(&welcome.kernel);
                    }
                    self.session.handle_message(message, now);
                }
                Err(violation) => {
                    self.disconnect();
                    let report = ErrorReport::of(ErrorCode::Protocol, &violation, true);
                    self.session.handle_disconnected(report, now);
                }
            },
            Wake::Message(ended) => {
                self.disconnect();
                let report = match ended {
                    Err(status) => unreachable(&status, "the connection broke"),
                    Ok(_) => ErrorReport {
                        code: ErrorCode::Unreachable,
                        message: "the server ended the connection".into(),
                        causes: Vec::new(),
                        retryable: true,
                    },
                };
                self.session.handle_disconnected(report, now);
            }
            Wake::Sent(result) => {
                self.sending = None;
                match (result, self.queue.pop_front()) {
                    (Ok(bytes), Some(Out::Patch(_))) => self.session.handle_sent(bytes, now),
                    (Err(SendError::Stale(paths)), Some(Out::Patch(_))) => {
                        // What else was asked for of that patch is not wanted any more.
                        self.queue.retain(|out| !matches!(out, Out::Patch(Outgoing::Answer { .. })));
                        self.session.handle_abandoned(paths, now);
                    }
                    // The inbound half says why.
                    _ => {}
                }
            }
            Wake::AheadSent(result) => {
                self.sending_ahead = None;
                match result {
                    Ok(None) => self.session.handle_ahead_sent(now),
                    Ok(Some(id)) => self.session.handle_followed(id, now),
                    Err(SendError::Stale(paths)) => self.session.handle_ahead_failed(paths, now),
                    Err(SendError::Void) => self.session.handle_void(now),
                    // The inbound half says why.
                    Err(SendError::Closed) => {}
                }
            }
            Wake::StepSent(result) => {
                self.sending_step = None;
                self.session.handle_step_sent(result, now);
            }
            Wake::Update(update) => self.session.handle_update(update, now),
            Wake::Opened(head, hash_kind) => self.session.handle_opened(head, hash_kind, now),
            Wake::Preview(snapshot) => self.session.handle_preview(snapshot, now),
            Wake::Read(contents) => self.session.handle_read(contents, now),
            Wake::Reading(reading) => self.session.handle_reading(reading, now),
            Wake::Command(command) => match command {
                Some(Command::Pause) => self.session.pause(now),
                Some(Command::Resume) => self.session.resume(now),
                Some(Command::SyncNow) => self.session.sync_now(now),
                Some(Command::Resync) => self.session.resync(now),
                Some(Command::Verify) => self.session.verify(now),
                Some(Command::Accept) => self.session.accept(now),
                Some(Command::Takeover) => self.session.takeover(now),
                Some(Command::Reconnect) => self.session.reconnect(now),
                None => {}
            },
            Wake::Report(report) => (self.emit)(report),
            Wake::Trouble => {
                let trouble = self.target.trouble.borrow_and_update().clone();
                match trouble {
                    Some(report) => self.session.stop(report, now),
                    None => self.session.sync_now(now),
                }
            }
            Wake::Brake => {
                let missing = *self.target.brake.borrow_and_update();
                self.session.handle_brake(missing, now);
            }
            Wake::Ending => {}
            Wake::Time => self.session.handle_time(now),
        }
    }

    /// Carries out what the session wants.
    fn act(&mut self) {
        while let Some(action) = self.session.poll() {
            match action {
                Action::Connect => {
                    self.disconnect();
                    self.connecting = Some(Box::pin(connect(self.target.connection.channel())));
                }
                Action::Disconnect => self.disconnect(),
                Action::Say(message) => self.queue.push_back(Out::Say(message)),
                Action::Send(outgoing) => self.queue.push_back(Out::Patch(outgoing)),
                Action::SendAhead { contents, plain } => {
                    if let Some(stream) = self.stream.clone() {
                        let outlet = self.outlet.clone();
                        self.sending_ahead = Some(Box::pin(async move {
                            outlet.send_ahead(&stream, &contents, plain).await.map(|_| None)
                        }));
                    }
                }
                Action::Follow(reading) => {
                    if let Some(stream) = self.stream.clone() {
                        let outlet = self.outlet.clone();
                        self.sending_ahead =
                            Some(Box::pin(async move { outlet.follow(&stream, reading).await.map(Some) }));
                    }
                }
                Action::StopAhead => self.sending_ahead = None,
                Action::SendStep { number, order } => {
                    if let Some(stream) = self.stream.clone() {
                        let (outlet, workdir) = (self.outlet.clone(), self.target.workdir.clone());
                        self.sending_step = Some(Box::pin(async move {
                            upload::send_step(&outlet, &stream, &workdir, number, *order).await
                        }));
                    }
                }
                Action::StopStep { number } => {
                    // Dropped first: nothing of it may follow the stop.
                    self.sending_step = None;
                    self.queue.push_back(Out::Say(ToServer::StopBaseline { number }));
                }
                Action::Ask(request) => (self.request)(request),
                // A hundred bytes once a session, which must not be lost when the program ends right after.
                Action::Remember(place) => {
                    if let Err(e) = self.target.mirrored.remember(&place) {
                        tracing::warn!("cannot remember which repository was mirrored: {e}");
                    }
                }
            }
        }
        self.pump();
    }

    /// Gives the transport what it takes at once, and its turn to pass it on.
    async fn hurry(&mut self) {
        let Some(sending) = &mut self.sending else { return };
        let taken = std::future::poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx))).await;
        if let Poll::Ready(result) = taken {
            self.sending = Some(Box::pin(std::future::ready(result)));
        }
        tokio::task::yield_now().await;
    }

    /// Reports what the session says.
    fn tell(&mut self) {
        for mut event in self.session.take_events() {
            if let EventKind::Acked(acked) = &mut event {
                acked.wire_bytes = self.outlet.wire_bytes.swap(0, Ordering::Relaxed);
            }
            (self.emit)(event);
        }
    }

    /// Starts sending what waits first, if nothing is being sent.
    fn pump(&mut self) {
        let (None, Some(stream), Some(next)) = (&self.sending, &self.stream, self.queue.front()) else {
            return;
        };
        let (outlet, stream) = (self.outlet.clone(), stream.clone());
        self.sending = Some(match next {
            Out::Say(message) => {
                let message = message.clone();
                Box::pin(async move { outlet.say(&stream, message).await.map(|()| 0) })
            }
            Out::Patch(outgoing) => {
                let outgoing = outgoing.clone();
                Box::pin(async move { outlet.send_outgoing(&stream, &outgoing).await })
            }
        });
    }

    fn disconnect(&mut self) {
        self.connecting = None;
        self.sending = None;
        self.sending_ahead = None;
        self.sending_step = None;
        // What was under way on the old stream is not in the way of the new one.
        self.outlet.credit = Arc::default();
        self.stream = None;
        self.inbound = None;
        self.queue.clear();
    }
}

pub(super) async fn connect(channel: Channel) -> Result<(Stream, Streaming<proto::ServerMessage>), Status> {
    let (stream, messages) = mpsc::channel(STREAM_MESSAGES);
    let mut client = MirrorClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
    let call = client.sync(ReceiverStream::new(messages));
    let response = tokio::time::timeout(CONNECT_LIMIT, call)
        .await
        .map_err(|_| Status::deadline_exceeded(format!("no answer within {CONNECT_LIMIT:?}")))??;
    Ok((stream, response.into_inner()))
}

async fn next_message(
    inbound: &mut Option<Streaming<proto::ServerMessage>>,
) -> Result<Option<proto::ServerMessage>, Status> {
    match inbound {
        Some(inbound) => inbound.message().await,
        None => std::future::pending().await,
    }
}

async fn finished<T>(task: &mut Task<T>) -> T {
    match task {
        Some(task) => task.await,
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// A transport error, with its chain: tonic hides the reason (refused, reset) in the sources.
pub(super) fn unreachable(status: &Status, what: &str) -> ErrorReport {
    let mut causes = Vec::new();
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        let text = cause.to_string();
        if text != "transport error" && causes.last() != Some(&text) {
            causes.push(text);
        }
        source = cause.source();
    }
    if causes.is_empty() {
        causes.push(status.message().to_owned());
    }
    let causes = causes.iter().map(|c| crate::model::path::escape(c.as_bytes())).collect();
    ErrorReport { code: ErrorCode::Unreachable, message: what.into(), causes, retryable: true }
}
