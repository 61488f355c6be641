//! What the server answers to each message of one stream: the protocol's rules, in order.
//!
//! ```text
//! hello -> new session -> [ patch -> frame* -> ack | refusal ]*
//!       -> list kept    -> [ fetch kept -> kept content* ]*
//! ```
//!
//! Between patches the server speaks unasked, when it finds that managed files were changed by somebody else. Steps of
//! the history track go their own way beside all this (`track`).
//!
//! Synchronous: the caller runs it where blocking is allowed.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use gitsync_core::model::{Change, ChangeKind, ContentId, PatchId, RelPath};
use gitsync_core::transport::kernel_run;
use gitsync_core::wire::{
    Ack, CHUNK_BYTES, Drift, FEATURES, Forget, Frame, HISTORY, Hello, KeptFile, NAMED_PATHS, NewSession,
    PROTOCOL, PatchHeader, PatchKind, Refusal, RefusalCode, RefusedPath, Session, ToClient, ToServer, Wanted,
    Welcome,
};

use gix::ObjectId;

use crate::beside::Bell;
use crate::config::WorkspaceConfig;
use crate::epoch::{AcquireError, Fence, FencedError, Owner};
use crate::history::{self, Fetching};
use crate::service::{Options, Watch, refusal, refusal_of};
use crate::workspace::fs::WorkspaceFs;
use crate::workspace::kept::{KeptEntry, KeptFiles, KeptReader};
use crate::workspace::recovery::utc;
use crate::workspace::{ApplyError, CloneDir, OpenError, OpenOptions, Pace, Swept, Workspace, WorkspaceDir};

mod ahead;
mod incoming;
mod offers;
mod takings;
mod track;

use self::ahead::Ahead;
use self::incoming::Incoming;
use self::takings::Takings;
use self::track::Track;

/// Positions and paths in one `Wanted`, so that it stays below the message limit.
const WANTED_CHANGES: usize = 50_000;
const WANTED_EXTRA_BYTES: usize = 200 * 1024;
/// Bytes of refused paths in one message.
const REFUSED_BYTES: usize = 200 * 1024;
/// Bytes of paths that are only named.
const NAMED_BYTES: usize = 100 * 1024;
/// Files and bytes of path in one `Kept`.
const KEPT_FILES: usize = 500;
const KEPT_BYTES: usize = 200 * 1024;
/// A session's first answer waits so long for commits that are fetched.
const FETCH_WAIT: Duration = Duration::from_secs(1);
/// A client says hello with the first bytes of its stream;
const HELLO_PATIENCE: Duration = Duration::from_secs(10);
/// it asks for a session as soon as its repository is open, which can take a while on a slow disk.
const SESSION_PATIENCE: Duration = Duration::from_secs(60);
/// Most contents staged ahead of their patch.
const AHEAD_CONTENTS: usize = 200_000;

/// The server's side of one stream.
pub struct Conversation {
    options: Arc<Options>,
    watch: Watch,
    bell: Bell,
    /// `None` for the operating system's.
    fs: Option<Arc<dyn WorkspaceFs>>,
    state: State,
}

#[derive(Debug)]
enum State {
    New,
    /// With the history track, or without.
    Greeted {
        history: bool,
    },
    Open(Box<Opened>),
    Reading(Reading),
    Ended,
}

/// A stream that asks what a recovery store holds.
#[derive(Debug)]
struct Reading {
    files: KeptFiles,
    /// The file being sent, and how much of it was.
    current: Option<(KeptReader, u64)>,
}

#[derive(Debug)]
struct Opened {
    fence: Fence,
    workspace: Workspace,
    owner_id: String,
    name: String,
    patch: Option<Incoming>,
    /// What comes ahead of patches.
    ahead: Ahead,
    /// What came in the background and is to be answered.
    takings: Takings,
    generation: u64,
    pace: Pace,
    clone: Option<CloneDir>,
    /// What the operator says of this workspace.
    configured: WorkspaceConfig,
    fetching: Option<Fetching>,
    /// For a client that knows of it.
    track: Option<Track>,
    /// Of the client's history, as it last said.
    commits: Vec<ObjectId>,
}

/// What a stream without a session has still to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaits {
    Hello,
    NewSession,
}

impl Awaits {
    /// How long a stream may keep it to itself, and its thread busy.
    pub fn patience(self) -> Duration {
        match self {
            Self::Hello => HELLO_PATIENCE,
            Self::NewSession => SESSION_PATIENCE,
        }
    }

    /// Says that it did not come.
    pub fn missed(self) -> &'static str {
        match self {
            Self::Hello => "no hello came in time",
            Self::NewSession => "no session was asked for in time",
        }
    }
}

/// What to answer, and whether the stream ends with it.
#[derive(Debug, Default)]
pub struct Next {
    pub replies: Vec<ToClient>,
    pub end: bool,
}

/// A message that breaks the protocol: the stream ends.
struct Broken(String);

impl Next {
    fn reply(message: ToClient) -> Self {
        Self { replies: vec![message], end: false }
    }

    fn end(refusal: Refusal) -> Self {
        Self { replies: vec![ToClient::Refusal(refusal)], end: true }
    }

    fn broken(Broken(what): Broken) -> Self {
        Self::end(refusal(RefusalCode::Protocol, &what))
    }
}

impl std::fmt::Debug for Conversation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conversation").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Conversation {
    /// `bell` is rung when there is something to tell that [`Conversation::news`] knows.
    pub fn new(options: Arc<Options>, watch: Watch, bell: Bell) -> Self {
        Self { options, watch, bell, fs: None, state: State::New }
    }

    /// This conversation with its workspace on another file system; `None` for the operating system's.
    pub fn on(self, fs: Option<Arc<dyn WorkspaceFs>>) -> Self {
        Self { fs, ..self }
    }

    pub fn handle(&mut self, message: ToServer) -> Next {
        if matches!((&self.state, &message), (State::Open(_), ToServer::Close)) {
            if let State::Open(opened) = std::mem::replace(&mut self.state, State::Ended) {
                opened.close();
            }
            return Next { replies: Vec::new(), end: true };
        }
        let next = match (&mut self.state, message) {
            (State::New, ToServer::Hello(hello)) => self.greet(&hello),
            (State::Greeted { history }, ToServer::NewSession(new)) => {
                let history = *history;
                self.open(new, history)
            }
            (State::Greeted { .. } | State::Reading(_), ToServer::ListKept { workspace, owner_id }) => {
                self.list_kept(&workspace, &owner_id)
            }
            (State::Reading(reading), ToServer::FetchKept { id }) => reading.fetch(&id),
            (State::Open(opened), message) => opened.handle(message),
            (State::Greeted { .. } | State::Reading(_), ToServer::Ping { nonce }) => {
                Next::reply(ToClient::Pong { nonce })
            }
            _ => Next::end(refusal(RefusalCode::Protocol, "the client spoke out of turn")),
        };
        if next.end {
            self.end();
        }
        next
    }

    /// What the client has to say before anything is done for it; `None` once it did.
    pub fn awaits(&self) -> Option<Awaits> {
        match self.state {
            State::New => Some(Awaits::Hello),
            State::Greeted { .. } => Some(Awaits::NewSession),
            State::Open(_) | State::Reading(_) | State::Ended => None,
        }
    }

    /// True for a stream that reads kept files.
    pub fn is_reading(&self) -> bool {
        matches!(self.state, State::Reading(_))
    }

    /// What there is to tell of what goes on beside the conversation.
    pub fn news(&mut self) -> Next {
        let State::Open(opened) = &mut self.state else { return Next::default() };
        let next = opened.news();
        if next.end {
            self.end();
        }
        next
    }

    /// Work that can wait for a quiet moment.
    pub fn rest(&mut self) {
        if let State::Open(opened) = &mut self.state
            && let Err(e) = opened.workspace.maintain(&opened.fence)
        {
            tracing::warn!(workspace = opened.name, "cannot write a checkpoint: {e}");
        }
    }

    /// When [`Conversation::idle`] has something to do, if nothing is said before.
    pub fn due(&self) -> Option<Instant> {
        match &self.state {
            // A patch that is half here goes on first.
            State::Open(opened) if opened.patch.is_none() => Some(opened.pace.due()),
            _ => None,
        }
    }

    /// A few milliseconds of looking whether the workspace is still what it should be.
    pub fn idle(&mut self) -> Next {
        let State::Open(opened) = &mut self.state else { return Next::default() };
        let next = opened.idle();
        if next.end {
            self.end();
        }
        next
    }

    /// The next piece of a kept file that was asked for.
    pub fn piece(&mut self) -> Option<ToClient> {
        match &mut self.state {
            State::Reading(reading) => reading.piece(),
            _ => None,
        }
    }

    /// The stream is gone.
    pub fn leave(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let State::Open(opened) = std::mem::replace(&mut self.state, State::Ended) {
            tracing::info!(workspace = opened.name, "session left without a close");
        }
    }

    /// One refusal for every reason, so that nobody learns which workspaces there are.
    fn list_kept(&mut self, workspace: &str, owner_id: &str) -> Next {
        let Some(files) = KeptFiles::open(&self.options.root, workspace, owner_id) else {
            let text = "there is no such workspace, or it belongs to another owner";
            return Next::end(refusal(RefusalCode::Workspace, text));
        };
        match files.list() {
            Ok(entries) => {
                self.state = State::Reading(Reading { files, current: None });
                Next { replies: kept_pages(entries), end: false }
            }
            Err(errno) => {
                let text = format!("cannot look through the kept files: {errno}");
                Next::end(refusal(RefusalCode::Failed, &text))
            }
        }
    }

    fn greet(&mut self, hello: &Hello) -> Next {
        if hello.protocol != PROTOCOL {
            let text = format!("the client speaks protocol {}, this server {PROTOCOL}", hello.protocol);
            return Next::end(refusal(RefusalCode::Protocol, &text));
        }
        if let Some(missing) = hello.required.iter().find(|f| !FEATURES.contains(&f.as_str())) {
            let text = format!("the client needs the feature '{missing}', which this server lacks");
            return Next::end(refusal(RefusalCode::Protocol, &text));
        }
        let known = |f: &&String| FEATURES.contains(&f.as_str());
        let features: Vec<String> = hello.optional.iter().filter(known).cloned().collect();
        let history = features.iter().chain(&hello.required).any(|feature| feature == HISTORY);
        self.state = State::Greeted { history };
        let software = self.options.software.clone();
        let kernel = kernel_run().to_owned();
        Next::reply(ToClient::Welcome(Welcome { protocol: PROTOCOL, features, software, kernel }))
    }

    fn open(&mut self, new: NewSession, history: bool) -> Next {
        let owner = Owner { id: new.owner_id.clone(), text: new.owner_text.clone() };
        let configured = self.options.workspaces.workspace(&new.workspace);
        let options = OpenOptions {
            adopt: self.options.adopt || configured.adopt,
            hash: new.hash_kind,
            owner_id: new.owner_id.clone(),
            remotes: new.remotes.clone(),
            configured: configured.remotes.iter().map(|remote| remote.normalised.clone()).collect(),
        };
        let (root, name) = (&self.options.root, &new.workspace);
        let opened = match self.fs.clone() {
            Some(fs) => WorkspaceDir::open_on(fs, root, name, &options),
            None => WorkspaceDir::open(root, name, &options),
        };
        let dir = match opened {
            Ok(dir) => dir,
            Err(OpenError::RemotesDiffer(e)) => {
                let mut refusal = refusal_of(0, RefusalCode::RemotesDiffer, &e);
                refusal.messages.extend(e.sides());
                return Next::end(refusal);
            }
            Err(e) => return Next::end(refusal_of(0, RefusalCode::Workspace, &e)),
        };
        let fence = match dir.acquire(&owner, new.takeover, SystemTime::now()) {
            Ok(fence) => fence,
            Err(e) => {
                return Next::end(match &e {
                    AcquireError::Locked { since, .. } => {
                        refusal(RefusalCode::Locked, &format!("{e} since {}", utc(*since)))
                    }
                    AcquireError::Io(_) => refusal_of(0, RefusalCode::Workspace, &e),
                });
            }
        };
        // Loaded by its only writer: from here on nobody else changes it.
        let mut workspace = match Workspace::load(dir, &fence) {
            Ok(workspace) => workspace,
            Err(OpenError::Fenced(e)) => return Next::end(fenced(0, &e)),
            Err(e) => return Next::end(refusal_of(0, RefusalCode::Workspace, &e)),
        };
        workspace.set_hold(new.hold_drift);
        tracing::info!(workspace = new.workspace, owner = owner.text, held = %workspace.held().id(), "session opened");
        let clone = match workspace.dir().clone_dir() {
            Ok(clone) => Some(clone),
            Err(e) => {
                tracing::warn!(workspace = new.workspace, "cannot open the clone: {e}");
                None
            }
        };
        let theirs = workspace.dir().clone_dir().ok();
        let track = match (theirs, history) {
            (Some(theirs), true) => {
                Some(Track::open(theirs, &fence, workspace.held().root().clone(), self.bell.clone()))
            }
            (Some(theirs), false) => {
                history::heal(&theirs, fence.number());
                None
            }
            (None, _) => None,
        };
        let report = workspace.opened();
        let drifted: Vec<RelPath> = report.drifted.iter().chain(&report.missing).cloned().collect();
        let mut opened = Opened {
            fence,
            workspace,
            owner_id: new.owner_id.clone(),
            name: new.workspace.clone(),
            patch: None,
            ahead: Ahead::new(&new.workspace, self.bell.clone()),
            takings: Takings::default(),
            generation: 0,
            pace: Pace::new(self.watch.drift_scan, Instant::now()),
            clone,
            configured,
            fetching: None,
            track,
            commits: new.commits.clone(),
        };
        opened.fetch(new.head, FETCH_WAIT);
        opened.note_remotes(&new.remotes);
        let reply = opened.session(&new, drifted);
        self.state = State::Open(Box::new(opened));
        Next::reply(reply)
    }
}

impl Opened {
    /// The client ends in order: what is held is written down, and nobody owns the workspace any more.
    fn close(self) {
        let Self { fence, workspace, name, track, fetching, ahead, .. } = self;
        // What lands or is written ends before the workspace is given back.
        drop((track, fetching, ahead));
        if let Err(e) = workspace.close(&fence) {
            tracing::warn!(workspace = name, "cannot write the manifest: {e}");
        }
        if let Err(e) = fence.release() {
            tracing::warn!(workspace = name, "cannot give the workspace back: {e}");
        }
        tracing::info!(workspace = name, "session closed");
    }

    fn handle(&mut self, message: ToServer) -> Next {
        let result = match message {
            ToServer::Ping { nonce } => {
                if let Some(refusal) = self.displaced() {
                    return Next::end(refusal);
                }
                // A session that applies nothing is alive all the same.
                if let Err(e) = self.fence.keep_alive(SystemTime::now()) {
                    return Next::end(fenced(0, &e));
                }
                Ok(Next::reply(ToClient::Pong { nonce }))
            }
            ToServer::NewSession(new) => self.renegotiate(&new),
            ToServer::Patch(header, frame) => self.begin(header).and_then(|()| self.frame(frame)),
            ToServer::Frame(frame) => self.frame(frame),
            ToServer::Abandon { generation } => self.abandon(generation),
            ToServer::Rehash => self.rehash(),
            ToServer::Close => Err(Broken("a close that was not expected".into())),
            ToServer::Hello(_) => Err(Broken("a second hello".into())),
            ToServer::ListKept { .. } | ToServer::FetchKept { .. } => {
                Err(Broken("a question about kept files in a session".into()))
            }
            ToServer::Ahead { contents } => {
                let Self { ahead, workspace, takings, .. } = self;
                ahead.take(workspace, contents, takings).map(|()| Next::default())
            }
            ToServer::Forget(forget) => Ok(self.forget(&forget)),
            ToServer::Offer { contents } => self.take_offer(&contents).map(Next::reply),
            ToServer::Baseline(baseline) => {
                let Self { track, fence, takings, .. } = self;
                track
                    .as_mut()
                    .ok_or_else(no_history)
                    .and_then(|track| track.baseline(baseline, fence, takings).map_err(Broken))
                    .map(|told| Next { replies: [takings.ready(), told].concat(), end: false })
            }
            ToServer::PackPiece(piece) => {
                let Self { track, takings, .. } = self;
                track
                    .as_mut()
                    .ok_or_else(no_history)
                    .and_then(|track| track.piece(piece, takings).map_err(Broken))
                    .map(|()| Next::default())
            }
            ToServer::StopBaseline { number } => self.track.as_mut().ok_or_else(no_history).map(|track| {
                track.stop(number);
                Next::default()
            }),
        };
        let mut next = result.unwrap_or_else(Next::broken);
        if !next.end {
            if let Some(track) = &mut self.track {
                track.set_held(self.workspace.held().root());
            }
            let news = self.news();
            next.replies.extend(news.replies);
            next.end = news.end;
        }
        next
    }

    fn news(&mut self) -> Next {
        let Self { ahead, track, workspace, takings, .. } = self;
        if let Err(broken) = ahead.absorb(workspace, takings) {
            return Next::broken(broken);
        }
        let told = track.as_mut().map(|track| track.news(takings)).unwrap_or_default();
        Next { replies: [takings.ready(), told].concat(), end: false }
    }

    fn session(&self, new: &NewSession, drifted: Vec<RelPath>) -> ToClient {
        let common = self.clone.as_ref().and_then(|clone| history::newest_common(clone, &new.commits));
        let count = drifted.len() as u64;
        self.tell(common, drifted, count)
    }

    /// What is held, and what the clone is.
    fn tell(&self, common: Option<ObjectId>, drifted: Vec<RelPath>, drifted_count: u64) -> ToClient {
        let held = self.workspace.held();
        let clone = self.clone.as_ref().map(history::look).unwrap_or_default();
        let blank = held.root().is_empty() && clone.head.is_none() && !self.workspace.is_adopting();
        ToClient::Session(Session {
            held: held.id(),
            held_files: held.root().leaves(),
            common,
            epoch: self.fence.number(),
            drifted: named(drifted),
            drifted_count,
            clone_head: clone.head,
            clone_branch: clone.branch,
            clone_shallow: clone.shallow,
            blank,
        })
    }

    /// HEAD or the remotes moved on the client: same workspace, same lease, what is held stays held.
    fn renegotiate(&mut self, new: &NewSession) -> Result<Next, Broken> {
        if new.workspace != self.name || new.owner_id != self.owner_id {
            return Err(Broken("a stream belongs to one workspace and one owner".into()));
        }
        self.workspace.set_hold(new.hold_drift);
        self.commits.clone_from(&new.commits);
        self.note_remotes(&new.remotes);
        // Saves flow on meanwhile, so nothing waits for it.
        self.fetch(new.head, Duration::ZERO);
        Ok(Next::reply(self.session(new, Vec::new())))
    }

    /// Looks for the client's commit where the operator says it can be had, and waits a moment for it. What comes
    /// later is there for the next negotiation.
    fn fetch(&mut self, head: Option<ObjectId>, wait: Duration) {
        let (Some(head), Some(clone)) = (head, &self.clone) else { return };
        if !self.configured.fetch
            || self.fetching.as_ref().is_some_and(|fetching| !fetching.is_over())
            || history::newest_common(clone, &[head]).is_some()
        {
            return;
        }
        let started = (|| {
            let clone = self.workspace.dir().clone_dir().map_err(std::io::Error::from)?;
            let (seal, remotes) = (self.fence.seal()?, self.configured.remotes.clone());
            Fetching::start(clone, self.fence.number(), seal, remotes, head, &self.name)
                .map_err(std::io::Error::other)
        })();
        match started {
            Ok(fetching) => self.fetching = fetching,
            Err(e) => tracing::warn!(workspace = self.name, "cannot fetch: {e}"),
        }
        if let Some(fetching) = &self.fetching {
            fetching.wait(wait);
        }
    }

    /// What another owner's repository will be compared with.
    fn note_remotes(&self, remotes: &[String]) {
        if self.fence.check(SystemTime::now()).is_err() {
            return;
        }
        if let Err(e) = self.workspace.dir().note_remotes(remotes) {
            tracing::warn!(workspace = self.name, "cannot note the remotes: {e}");
        }
    }

    /// The refusal that ends a session whose directory has gone from under it.
    fn displaced(&self) -> Option<Refusal> {
        let error = self.workspace.dir().check_place().err()?;
        Some(refusal_of(0, RefusalCode::Workspace, &error))
    }

    fn idle(&mut self) -> Next {
        if self.workspace.is_swept()
            && let Some(refusal) = self.displaced()
        {
            return Next::end(refusal);
        }
        let started = Instant::now();
        let swept = self.workspace.sweep(&self.fence);
        let ended = swept.as_ref().map_or(true, |swept| swept.ended);
        self.pace.sliced(started, Instant::now(), ended);
        match swept {
            Ok(Swept { drifted, .. }) if !drifted.is_empty() => {
                let count = drifted.len() as u64;
                tracing::debug!(workspace = self.name, count, "managed files were changed here");
                let paths = named(drifted);
                Next::reply(ToClient::Drift(Drift { held: self.workspace.held().id(), paths, count }))
            }
            Ok(_) => Next::default(),
            Err(ApplyError::Fenced(e)) => Next::end(fenced(0, &e)),
            Err(e) => {
                tracing::debug!(workspace = self.name, "a sweep was given up: {e}");
                Next::default()
            }
        }
    }

    fn rehash(&mut self) -> Result<Next, Broken> {
        if self.patch.is_some() {
            return Err(Broken("a rehash in the middle of a patch".into()));
        }
        let report = match self.workspace.rehash() {
            Ok(report) => report,
            Err(e) => return Ok(Next::end(refusal_of(0, RefusalCode::Failed, &e))),
        };
        let drifted: Vec<RelPath> = report.drifted.into_iter().chain(report.missing).collect();
        let drifted_count = drifted.len() as u64;
        if let Some(track) = &mut self.track {
            track.compare();
        }
        let common = self.clone.as_ref().and_then(|clone| history::newest_common(clone, &self.commits));
        Ok(Next::reply(self.tell(common, drifted, drifted_count)))
    }

    fn begin(&mut self, header: PatchHeader) -> Result<(), Broken> {
        if self.patch.is_some() {
            return Err(Broken("a patch in the middle of another".into()));
        }
        if header.generation <= self.generation {
            return Err(Broken(format!("generation {} after {}", header.generation, self.generation)));
        }
        self.generation = header.generation;
        let held = self.workspace.held().id();
        let kind = held.hash_kind();
        let flaw = match header.kind {
            PatchKind::Diff { parent } if parent != held && header.next != held => {
                Some(parent_mismatch(header.generation, held))
            }
            PatchKind::Whole { base } if base != PatchId::empty(kind) && base != held => {
                let text = format!("this server does not have the tree {base}");
                Some(Refusal { generation: header.generation, ..refusal(RefusalCode::BaseUnknown, &text) })
            }
            _ if header.next.hash_kind() != kind => {
                let text = "the patch's ids are of another object format";
                Some(Refusal { generation: header.generation, ..refusal(RefusalCode::PatchInvalid, text) })
            }
            _ => None,
        };
        self.patch = Some(Incoming::new(header, flaw));
        Ok(())
    }

    fn frame(&mut self, frame: Frame) -> Result<Next, Broken> {
        let Some(patch) = &mut self.patch else {
            return Err(Broken("a frame without a patch".into()));
        };
        let mut next = Next::default();
        if patch.changes_end {
            patch.add_removals(frame.changes)?;
        } else {
            patch.add_changes(frame.changes)?;
        }
        if frame.changes_end && !patch.changes_end {
            patch.end_changes();
            let Incoming { offered, .. } = &*patch;
            self.ahead.await_any(|id| offered.contains(id), &mut self.workspace, &mut self.takings)?;
            let whole = matches!(patch.header.kind, PatchKind::Whole { .. });
            let sound = patch.flaw.is_none();
            let missing = (whole && sound).then(|| self.workspace.missing(&patch.changes));
            if sound
                && let Err(e) = self.workspace.check_space(patch.need(&self.workspace, missing.as_deref()))
            {
                patch.flaw = Some(patch.refuse(RefusalCode::DiskFull, &e));
            }
            if whole {
                if let Some(flaw) = patch.flaw.take() {
                    // The client waits for this answer; nothing more of the patch comes.
                    self.patch = None;
                    return Ok(Next::reply(ToClient::Refusal(flaw)));
                }
                let missing = offers::still_missing(
                    &mut self.workspace,
                    self.clone.as_ref(),
                    &patch.changes,
                    missing.unwrap_or_default(),
                );
                next.replies = wanted(&self.workspace, patch, missing);
            }
        }
        for chunk in &frame.contents {
            patch.add_content(&mut self.workspace, chunk)?;
        }
        let is_full = |flaw: &mut Refusal| flaw.code == RefusalCode::DiskFull;
        if !frame.end
            && let Some(full) = patch.flaw.take_if(is_full)
        {
            // What is still to come of it would travel for nothing.
            self.patch = None;
            self.workspace.discard_stage();
            return Ok(Next::end(full));
        }
        if frame.end {
            if !patch.changes_end {
                return Err(Broken("a patch that ends before its changes do".into()));
            }
            let patch = self.patch.take().ok_or_else(|| Broken("a frame without a patch".into()))?;
            next.replies.extend(in_parts(self.apply(patch)));
            next.end = matches!(&next.replies[..], [.., ToClient::Refusal(r)]
                if matches!(r.code, RefusalCode::Superseded | RefusalCode::Workspace));
        }
        Ok(next)
    }

    fn forget(&mut self, forget: &Forget) -> Next {
        self.ahead.forget(forget);
        self.workspace.forget(&forget.ids);
        if self.patch.is_none() {
            self.workspace.discard_stage();
        }
        Next::default()
    }

    /// A patch can be given up before anything of it was sent, or when it was refused already: then there is
    /// nothing to do.
    fn abandon(&mut self, generation: u64) -> Result<Next, Broken> {
        match self.patch.take_if(|patch| patch.header.generation == generation) {
            Some(patch) => {
                drop(patch);
                self.workspace.discard_stage();
            }
            None if self.patch.is_some() => {
                return Err(Broken(format!("generation {generation} is not under way")));
            }
            None => {}
        }
        Ok(Next::default())
    }

    fn apply(&mut self, patch: Incoming) -> ToClient {
        let generation = patch.header.generation;
        // First, because it is why the contents could not be staged either.
        if let Some(refusal) = self.displaced() {
            return ToClient::Refusal(refusal);
        }
        if let Some(flaw) = patch.flaw {
            self.workspace.discard_stage();
            return ToClient::Refusal(flaw);
        }
        if !patch.intake.is_empty() {
            self.workspace.discard_stage();
            let text = "a content that ends before its declared size";
            return ToClient::Refusal(Refusal { generation, ..refusal(RefusalCode::PatchInvalid, text) });
        }
        let parent = match patch.header.kind {
            PatchKind::Diff { parent } => parent,
            PatchKind::Whole { .. } if patch.names_all() => self.workspace.held().id(),
            PatchKind::Whole { base } => base,
        };
        let mut changes = patch.changes;
        if !patch.removals.is_empty() {
            let adopting = self.workspace.is_adopting();
            changes.extend(patch.removals.into_iter().map(|removal| match adopting {
                // What is too much here was here before.
                true => Change { kind: ChangeKind::Release, ..removal },
                false => removal,
            }));
            changes.sort_by(|a, b| a.path.cmp(&b.path));
        }
        let started = Instant::now();
        let applied = self.workspace.apply(parent, patch.header.next, generation, &changes, &self.fence);
        self.workspace.discard_stage();
        match applied {
            Ok(applied) => {
                let kept_count = applied.kept.len() as u64;
                ToClient::Ack(Ack {
                    generation,
                    id: applied.id,
                    written: applied.written,
                    deleted: applied.deleted,
                    apply_us: started.elapsed().as_micros() as u64,
                    refused: refused_paths(&self.workspace, applied.refused),
                    kept: named(applied.kept),
                    kept_count,
                })
            }
            Err(e) => ToClient::Refusal(self.refusal_of_apply(generation, &e)),
        }
    }

    fn refusal_of_apply(&self, generation: u64, error: &ApplyError) -> Refusal {
        match error {
            ApplyError::ParentMismatch { held } => parent_mismatch(generation, *held),
            ApplyError::Fenced(e) => fenced(0, e),
            ApplyError::DiskFull => refusal_of(generation, RefusalCode::DiskFull, error),
            ApplyError::ContentMissing { .. } => refusal_of(generation, RefusalCode::ContentMissing, error),
            ApplyError::Io { .. } | ApplyError::Manifest(_) => {
                refusal_of(generation, RefusalCode::Failed, error)
            }
            _ => refusal_of(generation, RefusalCode::PatchInvalid, error),
        }
    }
}

impl Reading {
    fn fetch(&mut self, id: &str) -> Next {
        match self.files.read(id) {
            Ok(Some(reader)) => {
                self.current = Some((reader, 0));
                Next::default()
            }
            Ok(None) => Next::reply(ToClient::Refusal(refusal(
                RefusalCode::Workspace,
                "there is no such kept file (any more); list them again",
            ))),
            Err(errno) => Next::reply(ToClient::Refusal(unreadable(errno))),
        }
    }

    fn piece(&mut self) -> Option<ToClient> {
        let (mut reader, offset) = self.current.take()?;
        match reader.next(CHUNK_BYTES) {
            Ok(data) => {
                let end = data.len() < CHUNK_BYTES;
                if !end {
                    self.current = Some((reader, offset + data.len() as u64));
                }
                Some(ToClient::KeptContent { offset, data: data.into(), end })
            }
            Err(errno) => Some(ToClient::Refusal(unreadable(errno))),
        }
    }
}

fn unreadable(errno: rustix::io::Errno) -> Refusal {
    refusal(RefusalCode::Failed, &format!("cannot read the kept file: {errno}"))
}

/// A list of kept files, in as many messages as it takes.
fn kept_pages(entries: Vec<KeptEntry>) -> Vec<ToClient> {
    let mut pages: Vec<Vec<KeptFile>> = vec![Vec::new()];
    let mut bytes = 0;
    for KeptEntry { id, path, mode, size, kept_at } in entries {
        let cost = path.as_bytes().len() + id.len();
        let last = pages.last().map_or(0, Vec::len);
        if last == KEPT_FILES || (last > 0 && bytes + cost > KEPT_BYTES) {
            pages.push(Vec::new());
            bytes = 0;
        }
        bytes += cost;
        if let Some(page) = pages.last_mut() {
            page.push(KeptFile { id, path, size, kept_at, mode });
        }
    }
    let count = pages.len();
    let page = |(i, files)| ToClient::Kept { files, more: i + 1 < count };
    pages.into_iter().enumerate().map(page).collect()
}

/// An ack with as many messages before it as its refused paths take.
fn in_parts(reply: ToClient) -> Vec<ToClient> {
    let ToClient::Ack(mut ack) = reply else { return vec![reply] };
    let generation = ack.generation;
    let (mut full, mut bytes) = (Vec::new(), 0);
    for refused in std::mem::take(&mut ack.refused) {
        // An id, a size and a few tags come on top.
        bytes += refused.path.as_bytes().len() + refused.reason.len() + 64;
        ack.refused.push(refused);
        if bytes > REFUSED_BYTES {
            bytes = 0;
            full.push(std::mem::take(&mut ack.refused));
        }
    }
    let before = full.into_iter().map(|paths| ToClient::Refused { generation, paths });
    before.chain([ToClient::Ack(ack)]).collect()
}

/// The paths a message names of so many.
fn named(paths: impl IntoIterator<Item = RelPath>) -> Vec<RelPath> {
    let mut bytes = 0;
    let fits = |path: &RelPath| {
        bytes += path.as_bytes().len();
        bytes <= NAMED_BYTES
    };
    paths.into_iter().take(NAMED_PATHS).take_while(fits).collect()
}

/// The answer to the changes of a whole patch, in as many messages as it takes.
fn wanted(workspace: &Workspace, patch: &mut Incoming, missing: Vec<ContentId>) -> Vec<ToClient> {
    let missing: HashSet<ContentId> = missing.into_iter().collect();
    let mut named = HashSet::new();
    let positions: Vec<u32> = patch
        .changes
        .iter()
        .enumerate()
        .filter(|(_, c)| matches!(c.kind, ChangeKind::Put { id, .. } if missing.contains(&id) && named.insert(id)))
        .map(|(i, _)| i as u32)
        .collect();
    let extra = match patch.names_all() {
        true => workspace.extra(&patch.changes),
        false => Vec::new(),
    };
    patch.extra = extra.iter().cloned().collect();
    let generation = patch.header.generation;
    let mut parts: Vec<Wanted> = positions
        .chunks(WANTED_CHANGES)
        .map(|changes| Wanted { generation, changes: changes.to_vec(), extra: Vec::new(), more: true })
        .collect();
    let mut bytes = 0;
    for path in extra {
        bytes += path.as_bytes().len() + 8;
        match parts.last_mut() {
            Some(part) if bytes <= WANTED_EXTRA_BYTES => part.extra.push(path),
            _ => {
                bytes = path.as_bytes().len() + 8;
                parts.push(Wanted { generation, changes: Vec::new(), extra: vec![path], more: true });
            }
        }
    }
    match parts.last_mut() {
        Some(last) => last.more = false,
        None => parts.push(Wanted { generation, changes: Vec::new(), extra: Vec::new(), more: false }),
    }
    parts.into_iter().map(ToClient::Wanted).collect()
}

/// With what is held there now, which the client cannot always know.
fn refused_paths(workspace: &Workspace, refused: Vec<(RelPath, String)>) -> Vec<RefusedPath> {
    let held = workspace.held().root();
    refused
        .into_iter()
        .map(|(path, reason)| RefusedPath { held: held.get(&path).copied(), path, reason })
        .collect()
}

fn no_history() -> Broken {
    Broken("a step of history from a client that knows of none".into())
}

fn parent_mismatch(generation: u64, held: PatchId) -> Refusal {
    let text = format!("the patch starts from another state than {}, which is held", held.short());
    Refusal { generation, held: Some(held), ..refusal(RefusalCode::ParentMismatch, &text) }
}

fn fenced(generation: u64, error: &FencedError) -> Refusal {
    let code = match error {
        FencedError::Superseded { .. } => RefusalCode::Superseded,
        FencedError::Removed => RefusalCode::Workspace,
        FencedError::Io(_) => RefusalCode::Failed,
    };
    refusal_of(generation, code, error)
}

#[cfg(test)]
mod tests;
