//! Small things every child process needs: deadlines, signals, the end of its log.

use std::fs;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// Far more than any step needs on a busy machine; a test that gets here is a failure, not a slow pass.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How often a state that cannot wake us is looked at.
const POLL: Duration = Duration::from_millis(2);

/// Looks until `found` gives a value.
///
/// # Panics
/// After `limit`, naming `what` was waited for.
#[track_caller]
pub fn poll_until<T>(what: &str, limit: Duration, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain for {what}");
        std::thread::sleep(POLL);
    }
}

/// Waits for the end of a child.
#[track_caller]
pub fn wait_exit(child: &mut Child, what: &str, limit: Duration) -> ExitStatus {
    poll_until(what, limit, || child.try_wait().expect("a child of ours can be waited for"))
}

/// Sends `signal` to a child that was not waited for yet.
pub fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_child(child);
    // A child that ended a moment ago is still ours to wait for, so its number cannot name another process.
    rustix::process::kill_process(pid, signal).expect("a child of ours can be signalled");
}

/// A number a person chose for this run, such as `GITSYNC_SEED`.
pub fn number_from_env(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {value:?}")))
}

/// The last lines of a log, for failure messages.
pub fn tail(log: &Path, lines: usize) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
