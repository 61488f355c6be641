//! Runs one session per target and reports what happens as events.
//!
//! The engine owns every task: one thread per repo that watches and snapshots it, one task per
//! target that keeps a server equal to it. Faces hold a [`Handle`] to give commands and an
//! [`Events`] stream to listen; they see nothing else.
//!
//! What is to run is a value (`plan`). A reload compares two of them; each `repo` they differ in has a task that brings
//! what runs to what is wanted, and the others hear nothing of it.

mod board;
mod emitter;
mod mirrored;
mod owner;
mod plan;
mod repo;

pub use mirrored::Mirrored;
pub use owner::OwnerError;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::emitter::{Emitter, Told};
use self::plan::Plan;
use self::repo::{Context, Order, Reach, Wanted};
use crate::config::{Config, ServerUrl};
use crate::model::{Changes, ErrorCode, ErrorReport, Event, EventKind, TargetId};
use crate::transport::{Connection, EmbeddedHost};

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
    /// The network was lost: the connection is taken for dead, and another is made at once.
    Reconnect,
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
    options: Options,
    /// Weak: the event stream ends with the engine's tasks.
    events: mpsc::WeakUnboundedSender<Event>,
    told: Told,
    paused: Paused,
    running: Arc<Mutex<Running>>,
}

/// Targets that were asked to pause, and not to go on since.
type Paused = Arc<Mutex<HashSet<TargetId>>>;

/// What runs. Held for as long as it takes to tell tasks of something, never while one is waited for.
#[derive(Debug, Default)]
struct Running {
    plan: Plan,
    repos: HashMap<String, mpsc::UnboundedSender<Order>>,
    /// By the servers' names.
    servers: HashMap<String, Arc<Connection>>,
    tasks: JoinSet<()>,
    ended: bool,
}

impl Handle {
    /// All there are now, in the order of the configuration.
    pub fn targets(&self) -> Vec<TargetId> {
        self.running().plan.ids()
    }

    /// Asks `target`, or every target. Never blocks; what came of it arrives as events.
    pub fn command(&self, target: Option<&TargetId>, command: Command) {
        let running = self.running();
        let chosen = || running.plan.ids().into_iter().filter(|id| target.is_none_or(|t| t == id));
        if command == Command::Reconnect {
            // Before any session hears of it: their streams share what is made here.
            let servers: HashSet<String> = chosen().map(|id| id.server).collect();
            servers.iter().filter_map(|name| running.servers.get(name)).for_each(|known| known.renew());
        }
        for id in chosen() {
            let mut paused = self.paused();
            match command {
                Command::Pause => drop(paused.insert(id.clone())),
                Command::Resume => drop(paused.remove(&id)),
                _ => {}
            }
            drop(paused);
            if let Some(orders) = running.repos.get(&id.repo) {
                // A task that panicked hears nothing.
                let _ = orders.send(Order::Command(id, command));
            }
        }
    }

    /// True if the target was asked to pause last, and not to go on.
    pub fn is_paused(&self, target: &TargetId) -> bool {
        self.paused().contains(target)
    }

    /// From now on these targets of this configuration are to run. Never blocks: what differs is told at once, as an
    /// event; what is no more ends in order, what is new starts, a target whose settings differ does one after the
    /// other, and all others go on undisturbed. Must be called inside a tokio runtime.
    pub fn apply(&self, config: &Config, selected: &[TargetId]) {
        let mut running = self.running();
        let Some(emitter) = self.emitter().filter(|_| !running.ended) else { return };
        let plan = Plan::of(config, selected);
        let changes = plan::between(&running.plan, &plan);
        self.paused().retain(|id| !changes.removed.contains(id));
        emitter.configured(changes.clone());
        let patient_until = Some(Instant::now() + 2 * repo::END_LIMIT);
        self.run(&mut running, &emitter, plan, &changes, patient_until);
    }

    /// Reports something about the whole program.
    pub fn tell(&self, kind: EventKind) {
        // Once the engine has ended, nobody listens.
        if let Some(emitter) = self.emitter() {
            emitter.tell(kind);
        }
    }

    /// Ends every session in order: the apply in hand is waited for, at most `limit`; then all tasks
    /// have stopped and the event stream has ended.
    pub async fn shutdown(&self, limit: Duration) {
        let mut tasks = {
            let mut running = self.running();
            running.ended = true;
            running.repos.clear();
            std::mem::take(&mut running.tasks)
        };
        let all = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(limit, all).await.is_err() {
            tasks.shutdown().await;
        }
    }

    /// Tells every repo that is touched by `changes`, which lead to `plan`, what is wanted of it.
    fn run(
        &self,
        running: &mut Running,
        emitter: &Emitter,
        plan: Plan,
        changes: &Changes,
        patient_until: Option<Instant>,
    ) {
        let mut reach: HashMap<&String, Reach> = HashMap::new();
        for (id, settings) in &plan.targets {
            let known = || running.servers.get(&id.server).filter(|known| *known.url() == settings.url);
            let new = || self.connection(&settings.url);
            reach.entry(&id.server).or_insert_with(|| known().cloned().map_or_else(new, Ok));
        }
        let touched = changes.added.iter().chain(&changes.removed).chain(&changes.changed);
        for repo in touched.map(|id| &id.repo).collect::<HashSet<_>>() {
            let its = || plan.targets.iter().filter(|(id, _)| id.repo == *repo);
            let targets = its().map(|(id, _)| (id.clone(), reach[&id.server].clone())).collect();
            let wanted = its().next().map(|(_, settings)| Wanted {
                settings: settings.repo.clone(),
                targets,
                patient_until,
            });
            let orders = running.repos.entry(repo.clone()).or_insert_with(|| {
                let (orders, taken) = mpsc::unbounded_channel();
                let (options, emitter, paused) = (self.options.clone(), emitter.clone(), self.paused.clone());
                running.tasks.spawn(repo::run(taken, Context { options, emitter, paused }));
                orders
            });
            // A task that panicked hears nothing.
            let _ = orders.send(Order::Become(wanted));
        }
        let reached = |(name, reach): (&String, Reach)| Some((name.clone(), reach.ok()?));
        running.servers = reach.into_iter().filter_map(reached).collect();
        running.plan = plan;
    }

    fn connection(&self, url: &ServerUrl) -> Reach {
        let connection = Connection::new(url.clone(), self.options.embedded.clone());
        connection.map(Arc::new).map_err(|e| ErrorReport::of(ErrorCode::Unreachable, &e, false))
    }

    /// `None` once the engine has ended.
    fn emitter(&self) -> Option<Emitter> {
        Some(Emitter::new(self.events.upgrade()?, self.told.clone()))
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn paused(&self) -> MutexGuard<'_, HashSet<TargetId>> {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts one session for every target in `selected`. Must be called inside a tokio runtime.
///
/// A repository that cannot be opened is reported as events of its targets (which end `halted`): the
/// others go on.
pub fn start(config: &Config, selected: &[TargetId], options: Options) -> (Handle, Events) {
    let (sender, events) = mpsc::unbounded_channel();
    let handle = Handle {
        options,
        events: sender.downgrade(),
        told: Told::default(),
        paused: Paused::default(),
        running: Arc::default(),
    };
    let emitter = Emitter::new(sender, handle.told.clone());
    let plan = Plan::of(config, selected);
    emitter.know(&plan.ids());
    let changes = plan::between(&Plan::default(), &plan);
    handle.run(&mut handle.running(), &emitter, plan, &changes, None);
    (handle, events)
}

/// The id a server knows this client and repository by. Makes this client's part of it on first use.
pub fn owner_id_for(state_dir: &Path, workdir: &Path) -> Result<String, OwnerError> {
    Ok(format!("{}{}", owner::owner_id(state_dir)?, owner::of_path(workdir)))
}

fn internal(message: String) -> ErrorReport {
    ErrorReport { code: ErrorCode::Internal, message, causes: Vec::new(), retryable: false }
}
