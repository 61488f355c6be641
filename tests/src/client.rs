//! A headless `gitsync-tui` process: its home, its events, its end.

use std::cell::Cell;
use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::event::{Event, Standing};
use crate::oracle::PatchId;
use crate::process::{self, PATIENCE};
use crate::{bin, git, lab};

/// What stays when a client ends and the next one starts: home directory, configuration, state and cache.
#[derive(Debug, Clone)]
pub struct Home {
    dir: PathBuf,
    config: PathBuf,
}

impl Home {
    pub fn new(dir: PathBuf) -> Self {
        lab::private_dir(&dir.join("run"));
        let config = dir.join("gitsync.toml");
        Self { dir, config }
    }

    /// Where the configuration is, or will be.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Whole at once: somebody may be reading it.
    pub fn write_config(&self, text: &str) {
        let aside = self.config.with_extension("new");
        fs::write(&aside, text).expect("the sandbox is writable");
        fs::rename(&aside, &self.config).expect("the sandbox is writable");
    }

    /// Removes all that the program must be able to make again, if it made anything.
    pub fn lose_cache(&self) {
        if self.cache().exists() {
            fs::remove_dir_all(self.cache()).expect("the sandbox is writable");
        }
    }

    fn cache(&self) -> PathBuf {
        self.dir.join("cache")
    }

    /// The program with this home and no arguments.
    pub fn bare_command(&self) -> Command {
        let mut command = Command::new(bin::client());
        git::hermetic(&mut command, &self.dir);
        self.at_home(&mut command);
        command
    }

    fn at_home(&self, command: &mut Command) {
        command
            .env("XDG_CONFIG_HOME", self.dir.join("config"))
            .env("XDG_STATE_HOME", self.dir.join("state"))
            .env("XDG_CACHE_HOME", self.cache())
            .env("XDG_RUNTIME_DIR", self.dir.join("run"))
            .current_dir(&self.dir);
    }

    /// The program, headless, printing JSON lines.
    pub fn command(&self) -> Command {
        let mut command = self.bare_command();
        self.headless(&mut command);
        command
    }

    fn headless(&self, command: &mut Command) {
        command.args(["--no-tui", "--format", "json", "--config"]).arg(&self.config);
    }

    /// Starts a client through another program, such as one that gives up rights; `command` ends with the client's own
    /// path.
    pub fn start_as(&self, mut command: Command) -> Client {
        self.at_home(&mut command);
        self.headless(&mut command);
        Client::start(command, self.new_log())
    }

    /// Starts a client that runs until it is told to stop.
    pub fn start(&self) -> Client {
        Client::start(self.command(), self.new_log())
    }

    /// Runs a client to its end.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Ended {
        self.start_with(args).wait()
    }

    /// Starts a client with further arguments.
    pub fn start_with(&self, args: &[&str]) -> Client {
        let mut command = self.command();
        command.args(args);
        Client::start(command, self.new_log())
    }

    /// Each process gets a log of its own, so that a failure shows the one that failed.
    pub fn new_log(&self) -> PathBuf {
        let free = (1..).map(|n| self.dir.join(format!("client-{n}.log")));
        free.into_iter().find(|log| !log.exists()).expect("numbers do not run out")
    }
}

/// A client that ended by itself.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub events: Vec<Event>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// The exit code; a signal is a failure.
    #[track_caller]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by a signal: {self}"))
    }

    /// The `summary` event.
    #[track_caller]
    pub fn summary(&self) -> &Event {
        self.events.iter().rfind(|e| e.kind() == "summary").unwrap_or_else(|| panic!("no summary: {self}"))
    }

    /// What the summary says of a target, under this field.
    pub fn summary_of(&self, target: &str, field: &str) -> Option<&str> {
        self.summary().json().get("targets")?.get(target)?.get(field)?.as_str()
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n--- stdout:\n{}\n--- stderr:\n{}", self.status, self.stdout, self.stderr)
    }
}

/// A running client. Killed when dropped.
#[derive(Debug)]
pub struct Client {
    child: Child,
    timeline: Arc<Timeline>,
    log: PathBuf,
    /// Where the last `config` event was that a test asked for.
    reloaded: Cell<usize>,
}

/// What the client printed so far, shared with the thread that reads it.
#[derive(Debug, Default)]
struct Timeline {
    seen: Mutex<Seen>,
    grew: Condvar,
}

#[derive(Debug, Default)]
struct Seen {
    stdout: String,
    events: Vec<Event>,
    ended: bool,
}

impl Timeline {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("the reading thread does not panic")
    }

    fn read(&self, stdout: ChildStdout) {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            let mut seen = self.lock();
            seen.stdout.push_str(&line);
            seen.stdout.push('\n');
            // A line that does not parse is judged by `contract_breaches`, not here.
            seen.events.extend(Event::parse(&line));
            drop(seen);
            self.grew.notify_all();
        }
        self.lock().ended = true;
        self.grew.notify_all();
    }
}

impl Client {
    fn start(mut command: Command, log: PathBuf) -> Self {
        let stderr = File::create(&log).expect("the sandbox is writable");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .expect("the client can start");
        let stdout = child.stdout.take().expect("stdout is piped");
        let timeline = Arc::new(Timeline::default());
        let writer = Arc::clone(&timeline);
        std::thread::spawn(move || writer.read(stdout));
        Self { child, timeline, log, reloaded: Cell::new(0) }
    }

    /// Everything it printed so far.
    pub fn events(&self) -> Vec<Event> {
        self.timeline.lock().events.clone()
    }

    /// How many events there are: a mark to look at later ones only.
    pub fn mark(&self) -> usize {
        self.timeline.lock().events.len()
    }

    pub fn standing(&self, target: &str) -> Standing {
        Standing::of(&self.timeline.lock().events, target)
    }

    /// Waits until `found` gives a value for the events so far.
    ///
    /// # Panics
    /// After `limit`, or when the client ended without it; the newest events and its log are shown when it is dropped.
    #[track_caller]
    pub fn wait_until<T>(
        &self,
        what: &str,
        limit: Duration,
        mut found: impl FnMut(&[Event]) -> Option<T>,
    ) -> T {
        match self.try_wait_until(limit, &mut found) {
            Ok(value) => value,
            Err(why) => panic!("{why} while waiting for {what}"),
        }
    }

    /// [`Client::wait_until`] for callers with a better message: the error says why it gave up.
    pub fn try_wait_until<T>(
        &self,
        limit: Duration,
        mut found: impl FnMut(&[Event]) -> Option<T>,
    ) -> Result<T, String> {
        let deadline = Instant::now() + limit;
        let mut seen = self.timeline.lock();
        loop {
            if let Some(value) = found(&seen.events) {
                return Ok(value);
            }
            if seen.ended {
                return Err("the client ended".to_owned());
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return Err(format!("{limit:?} passed"));
            };
            (seen, _) =
                self.timeline.grew.wait_timeout(seen, left).expect("the reading thread does not panic");
        }
    }

    /// Waits until the server of `target` said it holds `id` and the target is in sync.
    #[track_caller]
    pub fn wait_acked(&self, target: &str, id: &PatchId, limit: Duration) {
        let what = format!("{target} to be in sync with {id}");
        self.wait_until(&what, limit, |events| Standing::of(events, target).in_sync_with(id).then_some(()));
    }

    /// Waits until `target` is in `state`.
    #[track_caller]
    pub fn wait_state(&self, target: &str, state: &str, limit: Duration) {
        let what = format!("{target} to be {state}");
        self.wait_until(&what, limit, |events| (Standing::of(events, target).state == state).then_some(()));
    }

    /// Lets the client work until it prints something, at most `limit`: a way to vary timing, not to wait for anything.
    pub fn let_work(&self, limit: Duration) {
        let before = self.mark();
        let _ = self.try_wait_until(limit, |events| (events.len() > before).then_some(()));
    }

    /// Events of `kind` about `target` since a mark.
    pub fn since(&self, mark: usize, kind: &str, target: &str) -> Vec<Event> {
        let events = self.events();
        events.into_iter().skip(mark).filter(|e| e.is(kind, target)).collect()
    }

    /// What the system says of the process, by the name of a file in `/proc/PID`.
    #[track_caller]
    pub fn proc_text(&self, name: &str) -> String {
        let path = format!("/proc/{}/{name}", self.child.id());
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read {path}: {e}"))
    }

    /// How many directories it watches.
    #[track_caller]
    pub fn watches(&self) -> usize {
        let dir = format!("/proc/{}/fdinfo", self.child.id());
        let infos = fs::read_dir(&dir).unwrap_or_else(|e| panic!("cannot read {dir}: {e}"));
        // A descriptor that was closed meanwhile is none with watches.
        let texts = infos.filter_map(|info| fs::read_to_string(info.ok()?.path()).ok());
        texts.map(|text| text.lines().filter(|line| line.starts_with("inotify ")).count()).sum()
    }

    /// Ends it at once, as a crash would.
    #[track_caller]
    pub fn kill(&mut self) {
        self.child.kill().expect("a child of ours can be killed");
        process::wait_exit(&mut self.child, "a killed client to be gone", PATIENCE);
    }

    /// Stops it where it is: it hears nothing and says nothing from now on.
    pub fn freeze(&self) {
        process::signal(&self.child, Signal::STOP);
    }

    /// Has it read its configuration again, and waits until it says what came of that.
    #[track_caller]
    pub fn reload(&self) -> Event {
        let mark = self.mark();
        self.hang_up();
        self.wait_until("the end of a reload", PATIENCE, |events| {
            events.iter().skip(mark).find(|event| event.kind() == "config").cloned()
        })
    }

    /// Waits until it has read a configuration that changed by itself, and says what came of that: each change is told
    /// once, as long as nobody asks for a reload.
    #[track_caller]
    pub fn reloaded(&self) -> Event {
        let (at, event) = self.wait_until("the change to be read", PATIENCE, |events| {
            let mut later = events.iter().enumerate().skip(self.reloaded.get());
            later.find(|(_, event)| event.kind() == "config").map(|(at, event)| (at, event.clone()))
        });
        self.reloaded.set(at + 1);
        event
    }

    /// Sends the signal for a reload.
    pub fn hang_up(&self) {
        process::signal(&self.child, Signal::HUP);
    }

    /// Asks it to end and waits until it did.
    #[track_caller]
    pub fn terminate(self) -> Ended {
        process::signal(&self.child, Signal::TERM);
        self.wait()
    }

    /// Waits until it ends by itself. The limit is above its own: 60 s without progress.
    #[track_caller]
    pub fn wait(mut self) -> Ended {
        let status = process::wait_exit(&mut self.child, "the client to end", Duration::from_secs(90));
        let _ = self.try_wait_until(PATIENCE, |_| None::<()>);
        let seen = std::mem::take(&mut *self.timeline.lock());
        let stderr =
            fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        Ended { status, events: seen.events, stdout: seen.stdout, stderr }
    }

    /// The newest events and the end of the log, for failure messages.
    pub fn story(&self) -> String {
        let seen = self.timeline.lock();
        let newest = seen.stdout.lines().rev().take(30).collect::<Vec<_>>();
        let newest: Vec<&str> = newest.into_iter().rev().collect();
        format!("--- newest events:\n{}\n--- its log:\n{}", newest.join("\n"), process::tail(&self.log, 30))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Errors would mean it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.story());
        }
    }
}

/// A client whose stdout the test reads itself, to close it.
#[derive(Debug)]
pub struct RawClient {
    pub child: Child,
    stdout: Option<BufReader<ChildStdout>>,
    log: PathBuf,
}

impl RawClient {
    pub fn start(home: &Home) -> Self {
        let log = home.new_log();
        let stderr = File::create(&log).expect("the sandbox is writable");
        let mut command = home.command();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().expect("the client can start");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Self { child, stdout: Some(stdout), log }
    }

    /// Closes our end of its stdout.
    pub fn close_stdout(&mut self) {
        self.stdout = None;
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Reads lines until one is `wanted`.
    #[track_caller]
    pub fn read_until(&mut self, wanted: impl Fn(&Event) -> bool) {
        let stdout = self.stdout.as_mut().expect("stdout is not closed yet");
        let mut line = String::new();
        loop {
            line.clear();
            let read = stdout.read_line(&mut line).expect("stdout can be read");
            assert!(read > 0, "stdout ended:\n{}", process::tail(&self.log, 30));
            if Event::parse(&line).is_some_and(|event| wanted(&event)) {
                return;
            }
        }
    }
}

impl Drop for RawClient {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
