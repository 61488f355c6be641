//! The task of one repo: brings what runs to what is wanted.
//!
//! ```text
//!  closed --opens--> open, observed --every session has ended--> closed
//!    ^                  |   sessions start, and end one by one
//!    +--5 s, or asked---+   (other files to observe, or nothing wanted: all of them)
//! ```
//!
//! There is one for each repo for as long as the program runs, idle while the configuration does not name it. So two
//! runs of a repo never overlap, whatever order reloads come in.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

use super::board::Board;
use super::emitter::Emitter;
use super::{Command, Mirrored, Options, Paused, internal, owner};
use crate::config::{DriftPolicy, RepoConfig};
use crate::mirror::client::{self, Target};
use crate::mirror::outlet::Encoded;
use crate::mirror::session::Identity;
use crate::model::{ErrorCode, ErrorReport, Phase, TargetId};
use crate::repo::Selection;
use crate::repo::observer::{Observer, Request};
use crate::transport::Connection;

/// A repo that cannot be opened is tried again this often, or when someone asks.
const REOPEN_EVERY: Duration = Duration::from_secs(5);
/// A session that a reload ends may take this long for the apply in hand.
pub const END_LIMIT: Duration = Duration::from_secs(5);

/// What a repo's task is told, in order. The end of it is the end of the program.
#[derive(Debug)]
pub enum Order {
    /// This is wanted from now on; nothing at all where the configuration does not name the repo.
    Become(Option<Wanted>),
    Command(TargetId, Command),
}

#[derive(Debug)]
pub struct Wanted {
    pub settings: Arc<RepoConfig>,
    /// In the order of the configuration.
    pub targets: Vec<(TargetId, Reach)>,
    /// Until then a workspace may still be held by a session of another repo, which the same reload ends.
    pub patient_until: Option<Instant>,
}

/// How a server is reached, or why it cannot be.
pub type Reach = Result<Arc<Connection>, ErrorReport>;

/// What the task needs of the engine around it.
#[derive(Debug)]
pub struct Context {
    pub options: Options,
    pub emitter: Emitter,
    pub paused: Paused,
}

#[derive(Debug)]
struct RepoTask {
    context: Context,
    wanted: Option<Wanted>,
    ending: bool,
    /// The repo under observation.
    open: Option<Open>,
    /// Why it is not, as last told,
    told: Option<ErrorReport>,
    /// and when it is tried again.
    reopen_at: Option<Instant>,
    sessions: JoinSet<()>,
    running: HashMap<TargetId, Running>,
    /// What was asked of targets whose session ended or is ending: for the next one.
    waiting: Vec<(TargetId, Command)>,
}

#[derive(Debug)]
struct Open {
    /// What it was opened with, as far as it is about what is observed; the rest is the newest.
    settings: Arc<RepoConfig>,
    owner: String,
    observer: Arc<Observer>,
    board: Board,
    encoded: Arc<Encoded>,
}

/// One target's session.
#[derive(Debug)]
struct Running {
    settings: Arc<RepoConfig>,
    reach: Reach,
    commands: mpsc::UnboundedSender<Command>,
    ending: watch::Sender<bool>,
    /// Its task; `None` once that has ended.
    task: Option<AbortHandle>,
    end: End,
}

/// Whether a session is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    No,
    /// In order, until then.
    Asked {
        until: Instant,
    },
    /// At once.
    Made,
}

/// Runs until there are no more orders, and what runs has ended.
pub async fn run(mut orders: mpsc::UnboundedReceiver<Order>, context: Context) {
    let mut repo = RepoTask {
        context,
        wanted: None,
        ending: false,
        open: None,
        told: None,
        reopen_at: None,
        sessions: JoinSet::new(),
        running: HashMap::new(),
        waiting: Vec::new(),
    };
    loop {
        repo.reconcile().await;
        if repo.ending && repo.open.is_none() {
            return;
        }
        let deadline = repo.deadline();
        tokio::select! {
            order = orders.recv(), if !repo.ending => match order {
                Some(order) => repo.take(order),
                None => (repo.wanted, repo.ending) = (None, true),
            },
            Some(ended) = repo.sessions.join_next_with_id() => repo.note_end(&ended),
            () = until(deadline) => repo.give_up(Instant::now()),
        }
    }
}

impl RepoTask {
    fn take(&mut self, order: Order) {
        match order {
            Order::Become(wanted) => {
                self.wanted = wanted;
                let wanted = self.wanted.as_ref();
                self.waiting.retain(|(id, _)| wanted.is_some_and(|wanted| wanted.reach(id).is_some()));
                (self.told, self.reopen_at) = (None, None);
            }
            Order::Command(id, command) => match self.running.get(&id) {
                Some(Running { task: Some(_), end: End::No, commands, .. }) => drop(commands.send(command)),
                // One that failed starts anew.
                Some(Running { end: End::No, .. }) => drop(self.running.remove(&id)),
                // A new session makes a connection by itself.
                _ if command == Command::Reconnect => {}
                None if self.open.is_none() => (self.told, self.reopen_at) = (None, None),
                _ => self.waiting.push((id, command)),
            },
        }
    }

    /// Does what can be done now towards what is wanted.
    async fn reconcile(&mut self) {
        let now = Instant::now();
        let wanted = self.wanted.as_ref();
        let observes = |open: &Open| wanted.is_some_and(|w| w.settings.observes_the_same(&open.settings));
        let is_stale = self.open.as_ref().is_some_and(|open| !observes(open));
        for (id, running) in &mut self.running {
            let goes_on = |wanted: &Wanted| {
                wanted.settings == running.settings
                    && wanted.reach(id).is_some_and(|reach| is_same(reach, &running.reach))
            };
            if is_stale || !wanted.is_some_and(goes_on) {
                running.end(now);
            }
        }
        self.running.retain(|_, running| running.task.is_some() || running.end == End::No);
        if let Some(open) = self.open.take_if(|_| is_stale && self.running.is_empty()) {
            // Ending the observer joins its thread, which writes what is kept across runs.
            let _ = tokio::task::spawn_blocking(move || drop(open)).await;
        }
        if self.open.is_none() || !is_stale {
            self.open_repo().await;
            self.start_sessions();
        }
    }

    /// Opens the repo if it is closed, wanted and due.
    async fn open_repo(&mut self) {
        let Some(wanted) = self.wanted.as_ref().filter(|_| self.open.is_none()) else { return };
        if self.reopen_at.is_some_and(|at| at > Instant::now()) {
            return;
        }
        let board = Board::new(self.context.emitter.clone());
        match open(wanted.settings.clone(), &self.context.options, board).await {
            Ok(open) => (self.open, self.told, self.reopen_at) = (Some(open), None, None),
            Err(report) => {
                if self.told.as_ref() != Some(&report) {
                    for (id, _) in &wanted.targets {
                        self.context.emitter.stop(id, Phase::Halted, report.clone());
                    }
                    self.told = Some(report);
                }
                self.reopen_at = Some(Instant::now() + REOPEN_EVERY);
            }
        }
    }

    /// Starts what is wanted and does not run.
    fn start_sessions(&mut self) {
        let (Some(open), Some(wanted)) = (&mut self.open, &self.wanted) else { return };
        open.settings = wanted.settings.clone();
        for (id, reach) in &wanted.targets {
            if !self.running.contains_key(id) {
                let running = start(id, reach, open, wanted.patient_until, &self.context, &mut self.sessions);
                for (_, command) in self.waiting.extract_if(.., |(target, _)| target == id) {
                    // A server without an address takes no commands.
                    let _ = running.commands.send(command);
                }
                self.running.insert(id.clone(), running);
            }
        }
    }

    fn note_end(&mut self, ended: &Result<(Id, ()), JoinError>) {
        let task = ended.as_ref().map_or_else(JoinError::id, |(id, ())| *id);
        let its = |running: &Running| running.task.as_ref().is_some_and(|handle| handle.id() == task);
        let Some((id, running)) = self.running.iter_mut().find(|(_, running)| its(running)) else { return };
        running.task = None;
        if let Some(open) = &self.open {
            open.board.leave(id);
        }
        let is_wanted = self.wanted.as_ref().is_some_and(|wanted| wanted.reach(id).is_some());
        match ended {
            Err(e) if e.is_panic() => {
                let report = internal(format!("the session's task panicked: {e}"));
                self.context.emitter.stop(id, Phase::Failed, report);
            }
            _ if is_wanted && running.end != End::No => self.context.emitter.anew(id),
            _ => {}
        }
    }

    /// Sessions that have not ended in time are made to.
    fn give_up(&mut self, now: Instant) {
        for running in self.running.values_mut().filter(|running| running.due().is_some_and(|at| at <= now)) {
            running.end = End::Made;
            running.task.iter().for_each(AbortHandle::abort);
        }
    }

    /// When something is due although nothing happens.
    fn deadline(&self) -> Option<Instant> {
        // At the end of the program there is a limit for all of it.
        let ends = self.running.values().filter(|_| !self.ending).filter_map(Running::due);
        let reopen = self.reopen_at.filter(|_| self.open.is_none() && self.wanted.is_some());
        ends.chain(reopen).min()
    }
}

impl Wanted {
    fn reach(&self, target: &TargetId) -> Option<&Reach> {
        self.targets.iter().find(|(id, _)| id == target).map(|(_, reach)| reach)
    }
}

impl Running {
    /// Asks it to end, once.
    fn end(&mut self, now: Instant) {
        if self.end == End::No {
            self.end = End::Asked { until: now + END_LIMIT };
            self.ending.send_replace(true);
        }
    }

    /// When it is made to end.
    fn due(&self) -> Option<Instant> {
        match self.end {
            End::Asked { until } => Some(until),
            End::No | End::Made => None,
        }
    }
}

/// A session keeps the connection it began with.
fn is_same(one: &Reach, other: &Reach) -> bool {
    match (one, other) {
        (Ok(one), Ok(other)) => Arc::ptr_eq(one, other),
        (Err(one), Err(other)) => one == other,
        _ => false,
    }
}

/// Starts a session; where the server has no address it is over at once.
fn start(
    id: &TargetId,
    reach: &Reach,
    open: &Open,
    patient_until: Option<Instant>,
    context: &Context,
    sessions: &mut JoinSet<()>,
) -> Running {
    let Context { options, emitter, paused } = context;
    let ((commands, asked), (ending, ending_seen)) = (mpsc::unbounded_channel(), watch::channel(false));
    let mut running = Running {
        settings: open.settings.clone(),
        reach: reach.clone(),
        commands,
        ending,
        task: None,
        end: End::No,
    };
    let connection = match reach {
        Ok(connection) => connection.clone(),
        Err(report) => {
            emitter.stop(id, Phase::Halted, report.clone());
            return running;
        }
    };
    emitter.anew(id);
    let (observer, settings) = (open.observer.clone(), &open.settings);
    let mirrored = Mirrored::new(&options.state_dir, &observer.workdir, id, &settings.workspace);
    let target = Target {
        identity: Identity {
            workspace: settings.workspace.clone(),
            owner_id: format!("{}{}", open.owner, owner::of_path(&observer.workdir)),
            owner_text: options.owner_text.clone(),
            software: options.software.clone(),
            hold_drift: settings.drift == DriftPolicy::Hold,
            workdir: observer.workdir.display().to_string(),
            mirrored: mirrored.last(),
            history: settings.history,
        },
        connection,
        contents: observer.contents.clone(),
        blocks: observer.blocks.clone(),
        encoded: open.encoded.clone(),
        disk: observer.disk.clone(),
        workdir: observer.workdir.clone(),
        mailbox: open.board.join(id),
        // What was asked for while the repository could not be opened was heard by nobody.
        paused: paused.lock().unwrap_or_else(PoisonError::into_inner).contains(id),
        commands: asked,
        mirrored,
        trouble: open.board.trouble(),
        brake: open.board.brake(),
        patient_until,
        ending: ending_seen,
    };
    // One that was removed meanwhile is about to hear of it.
    let (emitter, name, stay) = (emitter.clone(), id.clone(), emitter.stay(id));
    running.task = Some(sessions.spawn(client::run(
        target,
        move |request: Request| observer.request(request),
        move |kind| {
            if let Some(stay) = &stay {
                emitter.emit_in(stay, &name, kind);
            }
        },
    )));
    running
}

/// Finds out this client's id, and begins to observe the repo.
async fn open(settings: Arc<RepoConfig>, options: &Options, board: Board) -> Result<Open, ErrorReport> {
    let (state_dir, cache_dir) = (options.state_dir.clone(), options.cache_dir.clone());
    let selection = Selection {
        exclude: settings.exclude.clone(),
        include: settings.include.clone(),
        max_file_size: settings.max_file_size,
    };
    let opening = tokio::task::spawn_blocking(move || {
        let owner =
            owner::owner_id(&state_dir).map_err(|e| ErrorReport::of(ErrorCode::ClientState, &e, false))?;
        let publish = {
            let board = board.clone();
            Box::new(move |report| board.post(report))
        };
        let observer = Observer::start(&settings.path, selection, cache_dir.as_deref(), publish)
            .map_err(|e| ErrorReport::of(ErrorCode::Repository, &e, false))?;
        Ok(Open { settings, owner, observer: Arc::new(observer), board, encoded: Arc::default() })
    });
    opening.await.unwrap_or_else(|panic| Err(internal(panic.to_string())))
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
