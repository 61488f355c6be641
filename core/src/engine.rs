//! Runs one session per target and reports what happens as events.
//!
//! The engine owns every task: one thread per repo that watches and snapshots it, one task per
//! target that keeps a server equal to it. Faces hold a [`Handle`] to give commands and an
//! [`Events`] stream to listen; they see nothing else.

mod mirrored;
mod owner;

pub use mirrored::Mirrored;
pub use owner::OwnerError;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::config::{Config, DriftPolicy, RepoConfig};
use crate::mirror::client::{self, Mailbox, Target};
use crate::mirror::outlet::Encoded;
use crate::mirror::session::Identity;
use crate::model::{ErrorCode, ErrorReport, Event, EventKind, Missing, Phase, TargetId};
use crate::repo::Selection;
use crate::repo::observer::{Observer, Publish, Report, Request};
use crate::transport::{self, EmbeddedHost};

/// A repo that cannot be opened is tried again this often, or when someone asks.
const REOPEN_EVERY: Duration = Duration::from_secs(5);

/// What a person or a script can ask of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// The apply in hand ends, then nothing more is sent; the connection stays.
    Pause,
    /// Straight to the newest snapshot.
    Resume,
    /// End any retry wait, rescan the repository, send.
    SyncNow,
    /// Client re-reads, server rehashes, every path is compared anew.
    Resync,
    /// Client re-reads, server rehashes; what differs is healed by the ordinary way.
    Verify,
    /// What stopped the target is meant: missing files may be deleted, drift on hold replaced.
    Accept,
    /// A workspace that another owner holds is to be ours.
    Takeover,
}

/// Everything the engine reports, in order. Unbounded: an event is small, faces drain it at once,
/// and a face that stalls must never stall a session.
pub type Events = mpsc::UnboundedReceiver<Event>;

/// What the engine needs of the program around it.
#[derive(Debug, Clone)]
pub struct Options {
    pub embedded: Arc<dyn EmbeddedHost>,
    /// Keeps what this client must remember across runs, such as who it is. Made if it is not there.
    pub state_dir: PathBuf,
    /// Keeps what can be made again, such as what files held when they were last read. Made if it is not there.
    pub cache_dir: Option<PathBuf>,
    /// For people, on the server: who and where.
    pub owner_text: String,
    /// Program and version.
    pub software: String,
}

/// Gives commands to a running engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    targets: Arc<[TargetId]>,
    commands: Arc<HashMap<TargetId, mpsc::UnboundedSender<Command>>>,
    paused: Paused,
    ending: Arc<watch::Sender<bool>>,
    tasks: Arc<Mutex<JoinSet<()>>>,
}

/// Targets that were asked to pause, and not to go on since.
type Paused = Arc<std::sync::Mutex<HashSet<TargetId>>>;

impl Handle {
    pub fn targets(&self) -> &[TargetId] {
        &self.targets
    }

    /// Asks `target`, or every target. Never blocks; what came of it arrives as events.
    pub fn command(&self, target: Option<&TargetId>, command: Command) {
        let chosen = self.commands.iter().filter(|(id, _)| target.is_none_or(|t| t == *id));
        for (id, commands) in chosen {
            let mut paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
            match command {
                Command::Pause => drop(paused.insert(id.clone())),
                Command::Resume => drop(paused.remove(id)),
                _ => {}
            }
            drop(paused);
            // A target whose task has ended has said why.
            let _ = commands.send(command);
        }
    }

    /// True if the target was asked to pause last, and not to go on.
    pub fn is_paused(&self, target: &TargetId) -> bool {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner).contains(target)
    }

    /// Ends every session in order: the apply in hand is waited for, at most `limit`; then all tasks
    /// have stopped and the event stream has ended.
    pub async fn shutdown(&self, limit: Duration) {
        self.ending.send_replace(true);
        let mut tasks = self.tasks.lock().await;
        let all = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(limit, all).await.is_err() {
            tasks.shutdown().await;
        }
    }
}

/// Sends events, stamped.
#[derive(Debug, Clone)]
struct Emitter {
    events: mpsc::UnboundedSender<Event>,
}

impl Emitter {
    fn emit(&self, target: &TargetId, kind: EventKind) {
        let event = Event { at: Instant::now(), time: SystemTime::now(), target: Some(target.clone()), kind };
        // Without a face nobody needs to know.
        let _ = self.events.send(event);
    }
}

/// Starts one session for every target in `selected`. Must be called inside a tokio runtime.
///
/// A repository that cannot be opened is reported as events of its targets (which end `halted`): the
/// others go on.
pub fn start(config: &Config, selected: &[TargetId], options: Options) -> (Handle, Events) {
    let (events, receiver) = mpsc::unbounded_channel();
    let emitter = Emitter { events };
    let (ending, ending_seen) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let mut commands = HashMap::new();
    let mut channels = HashMap::new();
    let paused = Paused::default();
    for repo in &config.repos {
        let mut targets = Vec::new();
        for id in selected.iter().filter(|id| id.repo == repo.name) {
            let (sender, receiver) = mpsc::unbounded_channel();
            commands.insert(id.clone(), sender);
            targets.push((id.clone(), receiver));
        }
        if targets.is_empty() {
            continue;
        }
        let start = RepoStart {
            repo: repo.clone(),
            channels: targets.iter().map(|(id, _)| channel_of(config, id, &options, &mut channels)).collect(),
            targets,
            options: options.clone(),
            emitter: emitter.clone(),
            paused: paused.clone(),
            ending: ending_seen.clone(),
        };
        tasks.spawn(run_repo(start));
    }
    let handle = Handle {
        targets: selected.into(),
        commands: Arc::new(commands),
        paused,
        ending: Arc::new(ending),
        tasks: Arc::new(Mutex::new(tasks)),
    };
    (handle, receiver)
}

fn channel_of(
    config: &Config,
    id: &TargetId,
    options: &Options,
    channels: &mut HashMap<String, Channel>,
) -> Result<Channel, ErrorReport> {
    if let Some(channel) = channels.get(&id.server) {
        return Ok(channel.clone());
    }
    let Some(server) = config.servers.iter().find(|s| s.name == id.server) else {
        return Err(internal(format!("no server is called {}", id.server)));
    };
    let channel = transport::channel(&server.url, &options.embedded)
        .map_err(|e| ErrorReport::of(ErrorCode::Unreachable, &e, false))?;
    channels.insert(id.server.clone(), channel.clone());
    Ok(channel)
}

/// One repo and its selected targets, before they run.
struct RepoStart {
    repo: RepoConfig,
    targets: Vec<(TargetId, mpsc::UnboundedReceiver<Command>)>,
    channels: Vec<Result<Channel, ErrorReport>>,
    options: Options,
    emitter: Emitter,
    paused: Paused,
    ending: watch::Receiver<bool>,
}

/// Observes one repo and runs its targets until they end.
async fn run_repo(start: RepoStart) {
    let RepoStart { repo, targets, channels, options, emitter, paused, mut ending } = start;
    let (ids, mut commands): (Vec<TargetId>, Vec<_>) = targets.into_iter().unzip();
    let mailboxes: Vec<Arc<Mailbox>> = ids.iter().map(|_| Arc::default()).collect();
    let (trouble, trouble_seen) = watch::channel(None);
    let trouble = Arc::new(trouble);
    let (brake, brake_seen) = watch::channel(None);
    let brake = Arc::new(brake);
    let mut told = None;
    let (owner, observer) = loop {
        let publish =
            publisher(emitter.clone(), ids.clone(), mailboxes.clone(), trouble.clone(), brake.clone());
        match open_repo(&repo, &options, publish).await {
            Ok(opened) => break opened,
            Err(report) => {
                if told.as_ref() != Some(&report) {
                    for id in &ids {
                        stop(&emitter, id, Phase::Halted, report.clone());
                    }
                    told = Some(report);
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(REOPEN_EVERY) => {}
            () = any_command(&mut commands) => told = None,
            _ = ending.wait_for(|ending| *ending) => return,
        }
    };
    let observer = Arc::new(observer);
    let encoded: Arc<Encoded> = Arc::default();
    let mut sessions = JoinSet::new();
    let mut running = HashMap::new();
    for (((id, commands), channel), mailbox) in ids.into_iter().zip(commands).zip(channels).zip(mailboxes) {
        let channel = match channel {
            Ok(channel) => channel,
            Err(report) => {
                stop(&emitter, &id, Phase::Halted, report);
                continue;
            }
        };
        let mirrored = Mirrored::new(&options.state_dir, &observer.workdir, &id, &repo.workspace);
        let target = Target {
            identity: Identity {
                workspace: repo.workspace.clone(),
                owner_id: format!("{owner}{}", owner::of_path(&observer.workdir)),
                owner_text: options.owner_text.clone(),
                software: options.software.clone(),
                hold_drift: repo.drift == DriftPolicy::Hold,
                workdir: observer.workdir.display().to_string(),
                mirrored: mirrored.last(),
                history: repo.history,
            },
            channel,
            contents: observer.contents.clone(),
            blocks: observer.blocks.clone(),
            encoded: encoded.clone(),
            disk: observer.disk.clone(),
            workdir: observer.workdir.clone(),
            mailbox,
            // What was asked for while the repository could not be opened was heard by nobody.
            paused: paused.lock().unwrap_or_else(PoisonError::into_inner).contains(&id),
            commands,
            mirrored,
            trouble: trouble_seen.clone(),
            brake: brake_seen.clone(),
            ending: ending.clone(),
        };
        let (observer, emitter, name) = (observer.clone(), emitter.clone(), id.clone());
        let task = sessions.spawn(client::run(
            target,
            move |request: Request| observer.request(request),
            move |kind| emitter.emit(&name, kind),
        ));
        running.insert(task.id(), id);
    }
    while let Some(ended) = sessions.join_next_with_id().await {
        if let Err(e) = ended
            && e.is_panic()
            && let Some(id) = running.get(&e.id())
        {
            stop(&emitter, id, Phase::Failed, internal(format!("the session's task panicked: {e}")));
        }
    }
    // Ending the observer joins its thread.
    let _ = tokio::task::spawn_blocking(move || drop(observer)).await;
}

/// The id a server knows this client and repository by. Makes this client's part of it on first use.
pub fn owner_id_for(state_dir: &Path, workdir: &Path) -> Result<String, OwnerError> {
    Ok(format!("{}{}", owner::owner_id(state_dir)?, owner::of_path(workdir)))
}

/// This client's id, and the repo under observation.
async fn open_repo(
    repo: &RepoConfig,
    options: &Options,
    publish: Publish,
) -> Result<(String, Observer), ErrorReport> {
    let (path, state_dir, cache_dir) =
        (repo.path.clone(), options.state_dir.clone(), options.cache_dir.clone());
    let selection = Selection {
        exclude: repo.exclude.clone(),
        include: repo.include.clone(),
        max_file_size: repo.max_file_size,
    };
    let opening = tokio::task::spawn_blocking(move || {
        let owner =
            owner::owner_id(&state_dir).map_err(|e| ErrorReport::of(ErrorCode::ClientState, &e, false))?;
        let observer = Observer::start(&path, selection, cache_dir.as_deref(), publish)
            .map_err(|e| ErrorReport::of(ErrorCode::Repository, &e, false))?;
        Ok((owner, observer))
    });
    opening.await.unwrap_or_else(|panic| Err(internal(panic.to_string())))
}

/// Waits until someone asks any of these targets for anything.
async fn any_command(commands: &mut [mpsc::UnboundedReceiver<Command>]) {
    std::future::poll_fn(|cx| {
        match commands.iter_mut().any(|c| matches!(c.poll_recv(cx), Poll::Ready(Some(_)))) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
}

/// Passes an observer's reports on to its targets.
fn publisher(
    emitter: Emitter,
    targets: Vec<TargetId>,
    mailboxes: Vec<Arc<Mailbox>>,
    trouble: Arc<watch::Sender<Option<ErrorReport>>>,
    brake: Arc<watch::Sender<Option<Missing>>>,
) -> Box<dyn FnMut(Report) + Send> {
    Box::new(move |report| {
        let everyone = |kind: EventKind| {
            for target in &targets {
                emitter.emit(target, kind.clone());
            }
        };
        match report {
            Report::Update(update) => {
                trouble.send_if_modified(|t| t.take().is_some());
                for mailbox in &mailboxes {
                    mailbox.offer(update.clone());
                }
            }
            Report::Opened { head, hash_kind } => {
                for mailbox in &mailboxes {
                    mailbox.offer_opened(head.clone(), hash_kind);
                }
            }
            Report::Preview(snapshot) => {
                for mailbox in &mailboxes {
                    mailbox.offer_preview(snapshot.clone());
                }
            }
            Report::Read(contents) => {
                for mailbox in &mailboxes {
                    mailbox.offer_read(&contents);
                }
            }
            Report::Progress { files, of } => {
                everyone(EventKind::Progress { stage: "scanning", done: files, total: of, unit: "files" });
            }
            Report::Scanned { files, hashed } => {
                everyone(EventKind::Progress { stage: "hashed", done: hashed, total: files, unit: "files" });
            }
            Report::Trouble(report) => everyone(EventKind::Error(report)),
            Report::Note(note) => everyone(EventKind::Note(note)),
            Report::Brake(missing) => {
                everyone(EventKind::Brake(missing));
                brake.send_replace(missing);
            }
            Report::HeldBack { changes, oldest } => everyone(EventKind::HeldBack { changes, oldest }),
            Report::Uprooted(report) | Report::Ended(report) => {
                trouble.send_replace(Some(report));
            }
        }
    })
}

fn stop(emitter: &Emitter, target: &TargetId, phase: Phase, report: ErrorReport) {
    let reason = report.one_line();
    emitter.emit(target, EventKind::Error(report));
    emitter.emit(target, EventKind::State { from: Phase::Connecting, to: phase, reason, retry_at: None });
}

fn internal(message: String) -> ErrorReport {
    ErrorReport { code: ErrorCode::Internal, message, causes: Vec::new(), retryable: false }
}
