//! Git's own programs, held short: plumbing only, on an open git directory, with nothing of the machine's, the
//! user's or the clone's configuration that could run anything.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::StepError;
use crate::workspace::CloneDir;

/// No program of ours takes this long, unless something is wrong.
const DEADLINE: Duration = Duration::from_secs(30 * 60);
/// How long a program has to put its locks away before it is killed.
const GRACE: Duration = Duration::from_secs(2);
const OUTPUT_BYTES: usize = 256 << 20;
const ERROR_BYTES: usize = 16 << 10;
/// Largest piece of memory git takes at once, and all it may map; in bytes.
const ALLOCATION_BYTES: &str = "1073741824";
#[cfg(target_os = "linux")]
const MAPPED_BYTES: u64 = 8 << 30;
/// Processor time of one program, in seconds.
#[cfg(target_os = "linux")]
const CPU_SECONDS: u64 = 60 * 60;

/// Flaws that old histories are full of and that endanger nobody; all others make a pack unsound.
const HARMLESS: &str = "zeroPaddedFilemode=ignore,badTimezone=ignore,missingSpaceBeforeDate=ignore,\
    missingSpaceBeforeEmail=ignore,missingEmail=ignore,badEmail=ignore,missingNameBeforeEmail=ignore,badName=ignore,\
    zeroPaddedDate=ignore,badDate=ignore,badDateOverflow=ignore,multipleAuthors=ignore,nulInCommit=ignore,\
    nullSha1=ignore";

const SETTINGS: [&str; 15] = [
    "advice.graftFileDeprecated=false",
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.alternateRefsCommand=false",
    "core.bigFileThreshold=16m",
    "core.packedGitWindowSize=32m",
    "core.packedGitLimit=512m",
    // A power cut leaves no ref empty.
    "core.fsync=reference",
    "core.filesRefLockTimeout=3000",
    "core.packedRefsTimeout=3000",
    "gc.auto=0",
    "maintenance.auto=false",
    "pack.threads=1",
    "protocol.allow=never",
];

/// Asks nobody for anything, and connects only to machines that are known.
const SSH: &str = "ssh -oBatchMode=yes -oStrictHostKeyChecking=yes -oConnectTimeout=20";
/// How the server's account reaches other machines.
const NETWORK_ENV: [&str; 7] =
    ["SSH_AUTH_SOCK", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"];

/// Asks whoever works on a step to give it up.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<Mutex<StopState>>);

#[derive(Debug, Default)]
struct StopState {
    asked: bool,
    /// A program that can be ended at any moment.
    running: Option<Pid>,
}

impl Stop {
    pub fn ask(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.asked = true;
        if let Some(pid) = state.running {
            let _ = rustix::process::kill_process_group(pid, Signal::TERM);
        }
    }

    pub fn check(&self) -> Result<(), StepError> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).asked {
            true => Err(StepError::Stopped),
            false => Ok(()),
        }
    }

    /// A program that was started while it was asked to stop is ended here.
    fn watch(&self, running: Option<Pid>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.running = running;
        if let (true, Some(pid)) = (state.asked, running) {
            let _ = rustix::process::kill_process_group(pid, Signal::TERM);
        }
    }
}

/// How to run git on one clone.
#[derive(Debug, Clone)]
pub struct Git<'a> {
    pub dir: &'a CloneDir,
    /// Object directory instead of the clone's own, relative to the git directory.
    pub objects: Option<&'a str>,
    /// Shallow boundary instead of the clone's own: a file, relative to the git directory, or empty for none.
    pub shallow: Option<&'a str>,
    /// What can end a program half way. Without it, it runs to its end.
    pub stop: Option<&'a Stop>,
    /// Another repository than the clone: its git directory, relative to the clone's.
    pub git_dir: Option<&'a str>,
    /// Longest time a program may take.
    pub deadline: Duration,
    /// It connects to other machines: with what the server's account has for that, and without asking anybody.
    pub network: bool,
}

/// A program that takes in its input.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    output: Receiver<(Stream, Vec<u8>)>,
    stop: Option<Stop>,
    pid: Pid,
    deadline: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Output,
    Errors,
}

/// How a program ended.
#[derive(Debug)]
pub struct Done {
    pub status: ExitStatus,
    pub output: Vec<u8>,
    /// What it had to say, for people.
    pub errors: String,
}

impl<'a> Git<'a> {
    pub fn new(dir: &'a CloneDir) -> Self {
        Self {
            dir,
            objects: None,
            shallow: None,
            stop: None,
            git_dir: None,
            deadline: DEADLINE,
            network: false,
        }
    }

    /// Runs a program to its end. Fails if it does.
    pub fn run(&self, args: &[&str], input: &[u8]) -> Result<Vec<u8>, StepError> {
        let done = self.try_run(args, input)?;
        match done.status.success() {
            true => Ok(done.output),
            false => Err(StepError::Git { what: args[0].to_owned(), errors: done.errors }),
        }
    }

    pub fn try_run(&self, args: &[&str], input: &[u8]) -> Result<Done, StepError> {
        let mut running = self.start(args)?;
        // A program that has heard enough says why when it ends.
        let _ = running.write(input);
        running.finish()
    }

    pub fn start(&self, args: &[&str]) -> Result<Running, StepError> {
        if let Some(stop) = self.stop {
            stop.check()?;
        }
        let mut child = self.command(args).spawn().map_err(|source| StepError::io("start git", source))?;
        let pid = Pid::from_child(&child);
        limit(pid);
        if let Some(stop) = self.stop {
            stop.watch(Some(pid));
        }
        let (sender, output) = channel();
        if let Some(source) = child.stdout.take() {
            let sender = sender.clone();
            std::thread::spawn(move || sender.send((Stream::Output, drain(source, OUTPUT_BYTES))));
        }
        if let Some(source) = child.stderr.take() {
            std::thread::spawn(move || sender.send((Stream::Errors, drain(source, ERROR_BYTES))));
        }
        let stdin = child.stdin.take();
        Ok(Running { child, stdin, output, stop: self.stop.cloned(), pid, deadline: self.deadline })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut git = Command::new("git");
        for setting in SETTINGS {
            git.args(["-c", setting]);
        }
        git.args(args)
            .current_dir(self.dir.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LC_ALL", "C")
            .env("HOME", "/dev/null")
            .env("GIT_DIR", self.git_dir.unwrap_or("."))
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env("GIT_NO_LAZY_FETCH", "1")
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .env("GIT_GRAFT_FILE", "/dev/null")
            .env("GIT_ALLOC_LIMIT", ALLOCATION_BYTES)
            .env("GIT_COMMITTER_NAME", "gitsync")
            .env("GIT_COMMITTER_EMAIL", "gitsync@localhost")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(objects) = self.objects {
            git.env("GIT_OBJECT_DIRECTORY", objects);
        }
        if let Some(shallow) = self.shallow {
            git.env("GIT_SHALLOW_FILE", shallow);
        }
        if self.network {
            git.env("GIT_SSH_COMMAND", SSH).env("GIT_SSH_VARIANT", "ssh");
            for name in NETWORK_ENV {
                if let Some(value) = std::env::var_os(name) {
                    git.env(name, value);
                }
            }
        }
        // So that it can be ended with all it starts, and no key pressed at the server's terminal reaches it.
        std::os::unix::process::CommandExt::process_group(&mut git, 0);
        git
    }
}

impl Running {
    /// False once the program takes nothing more.
    pub fn write(&mut self, bytes: &[u8]) -> bool {
        let written = self.stdin.as_mut().is_some_and(|stdin| stdin.write_all(bytes).is_ok());
        if !written {
            self.stdin = None;
        }
        written
    }

    /// Ends the input and waits for what comes of it.
    pub fn finish(mut self) -> Result<Done, StepError> {
        self.stdin = None;
        let deadline = Instant::now() + self.deadline;
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((Stream::Output, bytes)) => output = bytes,
                Ok((Stream::Errors, bytes)) => errors = bytes,
                Err(RecvTimeoutError::Timeout) => return Err(StepError::Deadline),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.unwatch();
        let status = self.child.wait().map_err(|source| StepError::io("wait for git", source))?;
        if let Some(stop) = &self.stop {
            stop.check()?;
        }
        if output.len() > OUTPUT_BYTES {
            return Err(StepError::TooLarge("git says more than can be held".to_owned()));
        }
        Ok(Done { status, output, errors: String::from_utf8_lossy(&errors).trim().to_owned() })
    }

    /// From here on its number may stand for another program.
    fn unwatch(&self) {
        if let Some(stop) = &self.stop {
            stop.watch(None);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stdin = None;
        self.unwatch();
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let _ = rustix::process::kill_process_group(self.pid, Signal::TERM);
        // Its output ends when it does.
        let until = Instant::now() + GRACE;
        while let Ok(_piece) = self.output.recv_timeout(until.saturating_duration_since(Instant::now())) {}
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// Reads to the end, and keeps one byte more than `limit` at most.
fn drain(mut source: impl Read, limit: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = source.by_ref().take(limit as u64 + 1).read_to_end(&mut bytes);
    let _ = std::io::copy(&mut source, &mut std::io::sink());
    bytes
}

/// A program that meets an object made to hurt ends itself, not the machine.
#[cfg(target_os = "linux")]
fn limit(pid: Pid) {
    use rustix::process::{Resource, Rlimit, prlimit};
    for (resource, most) in [(Resource::As, MAPPED_BYTES), (Resource::Cpu, CPU_SECONDS), (Resource::Core, 0)]
    {
        let _ = prlimit(Some(pid), resource, Rlimit { current: Some(most), maximum: Some(most) });
    }
}

#[cfg(not(target_os = "linux"))]
fn limit(_: Pid) {}

/// What `index-pack` is told to check. Programs older than 2.45 take no exceptions.
pub fn fsck_option() -> String {
    static VERSION: OnceLock<(u32, u32)> = OnceLock::new();
    let version = VERSION.get_or_init(|| {
        let output = Command::new("git").arg("version").stdin(Stdio::null()).output();
        let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
        version_of(&text).unwrap_or_default()
    });
    match *version >= (2, 45) {
        true => format!("--fsck-objects={HARMLESS}"),
        false => "--fsck-objects".to_owned(),
    }
}

fn version_of(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_ascii_whitespace().nth(2)?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_started_while_it_is_stopped_ends() {
        use std::os::unix::process::{CommandExt, ExitStatusExt};
        let mut child = Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
        let stop = Stop::default();
        stop.ask();
        stop.watch(Some(Pid::from_child(&child)));
        assert_eq!(child.wait().unwrap().signal(), Some(Signal::TERM.as_raw()));
    }

    #[test]
    fn versions() {
        assert_eq!(version_of("git version 2.47.3\n"), Some((2, 47)));
        assert_eq!(version_of("git version 2.39.5 (Apple Git-154)\n"), Some((2, 39)));
        assert_eq!(version_of("nonsense"), None);
    }
}
