//! A `git pack-objects` child, read piece by piece.

use std::io;
use std::path::Path;
use std::process::Stdio;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

/// Longest text taken from a child's standard error.
const STDERR_BYTES: u64 = 4_096;
/// What a child is niced by: packing never takes time from a save.
const NICE: i32 = 10;

/// A pack in the making. Dropping it ends the child.
#[derive(Debug)]
pub struct PackReader {
    child: Child,
    stdout: ChildStdout,
    stderr: ChildStderr,
    buffer: BytesMut,
}

/// Why there is no pack.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error("cannot start git")]
    Start(#[source] io::Error),
    #[error("cannot read what git packs")]
    Read(#[from] io::Error),
    #[error("git cannot pack the history: {0}")]
    Failed(String),
}

impl PackReader {
    /// Starts packing what `revs` names, as `pack-objects --revs` reads it. With `thin`, deltas may be against objects
    /// that are left out.
    pub async fn start(git_dir: &Path, revs: &[u8], thin: bool) -> Result<Self, PackError> {
        let mut command = git(git_dir);
        command.args(["-c", "pack.threads=1"]);
        // One commit's files have little in common: looking for deltas among them, and for the shortest form of each,
        // takes minutes where there are many, and saves little.
        let how: &[&str] = if thin { &["--thin", "--shallow"] } else { &["--window=0", "--compression=1"] };
        command.args(["pack-objects", "--revs", "--stdout", "-q", "--delta-base-offset"]).args(how);
        let mut child = command.spawn().map_err(PackError::Start)?;
        if let Some(pid) = child.id().and_then(|id| rustix::process::Pid::from_raw(id.try_into().ok()?)) {
            // One that runs at full priority is no harm to correctness.
            let _ = rustix::process::setpriority_process(Some(pid), NICE);
        }
        let (Some(mut stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(PackError::Start(io::Error::other("no pipes")));
        };
        // A child that ends early says why when it is read.
        let _ = stdin.write_all(revs).await;
        drop(stdin);
        Ok(Self { child, stdout, stderr, buffer: BytesMut::new() })
    }

    /// The next piece, `bytes` long but for the last; `None` once the pack is whole.
    pub async fn next(&mut self, bytes: usize) -> Result<Option<Bytes>, PackError> {
        self.buffer.reserve(bytes);
        while self.buffer.len() < bytes {
            let room = (bytes - self.buffer.len()) as u64;
            if (&mut self.stdout).take(room).read_buf(&mut self.buffer).await? == 0 {
                break;
            }
        }
        if !self.buffer.is_empty() {
            return Ok(Some(self.buffer.split().freeze()));
        }
        let mut text = Vec::new();
        (&mut self.stderr).take(STDERR_BYTES).read_to_end(&mut text).await?;
        let status = self.child.wait().await?;
        if status.success() {
            return Ok(None);
        }
        let text = crate::model::path::escape(String::from_utf8_lossy(&text).trim().as_bytes());
        Err(PackError::Failed(if text.is_empty() { status.to_string() } else { text }))
    }
}

/// Git for one repository: nobody's configuration but the repository's own, no prompt, no network, no lock.
fn git(git_dir: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .env("LC_ALL", "C")
        .env("GIT_DIR", git_dir)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_NO_REPLACE_OBJECTS", "1")
        .env("GIT_NO_LAZY_FETCH", "1")
        // The same for a git that does not know the last one.
        .env("GIT_ALLOW_PROTOCOL", "none")
        .env("GIT_OPTIONAL_LOCKS", "0")
        .env("GIT_TERMINAL_PROMPT", "0")
        .current_dir(git_dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A key pressed in the terminal is not for it.
        .process_group(0)
        .kill_on_drop(true);
    command
}
