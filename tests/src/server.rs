//! A `gitsync-server` process that can be killed and come back, on loopback or on a Unix socket.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::Signal;

use crate::process::{self, PATIENCE};
use crate::{bin, git};

/// One server and its root directory. Killed when dropped.
#[derive(Debug)]
pub struct Server {
    program: PathBuf,
    root: PathBuf,
    log: PathBuf,
    home: PathBuf,
    /// What `--listen` gets; after the first start with the port it had.
    listen: String,
    options: Vec<String>,
    /// `None` while it is down.
    child: Option<Child>,
}

impl Server {
    /// Starts on `listen` (`127.0.0.1:0` takes a free port) with further options, and waits until it listens.
    pub fn start(root: &Path, log: &Path, home: &Path, listen: &str, options: &[&str]) -> Self {
        Self::start_program(bin::server(), root, log, home, listen, options)
    }

    /// [`Server::start`] of another program that takes the same options.
    pub fn start_program(
        program: PathBuf,
        root: &Path,
        log: &Path,
        home: &Path,
        listen: &str,
        options: &[&str],
    ) -> Self {
        let (root, log, home) = (root.to_path_buf(), log.to_path_buf(), home.to_path_buf());
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut server = Self { program, root, log, home, listen: listen.to_owned(), options, child: None };
        server.restart();
        server
    }

    /// Starts again, where it was.
    #[track_caller]
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "the server is down");
        let mut child = self.command().spawn().expect("the server can be started");
        let stdout = child.stdout.take().expect("stdout is piped");
        self.child = Some(child);
        let Some(line) = first_line(stdout, self.log(), PATIENCE) else {
            panic!("the server did not say where it listens:\n{}", process::tail(&self.log, 40));
        };
        let Some(addr) = line.strip_prefix("listening on ") else {
            panic!("expected `listening on ADDR`, not {line:?}");
        };
        if !self.is_unix() {
            self.listen = addr.trim().to_owned();
        }
    }

    fn command(&self) -> Command {
        let mut serve = Command::new(&self.program);
        git::hermetic(&mut serve, &self.home);
        serve
            .args(["serve", "--listen", &self.listen, "--root"])
            .arg(&self.root)
            .args(&self.options)
            .env("XDG_RUNTIME_DIR", self.home.join("run"))
            .stdout(Stdio::piped())
            .stderr(self.log());
        if !self.is_unix() {
            serve.arg("--insecure");
        }
        serve
    }

    fn is_unix(&self) -> bool {
        self.listen.starts_with("unix:")
    }

    fn log(&self) -> File {
        OpenOptions::new().create(true).append(true).open(&self.log).expect("the sandbox is writable")
    }

    pub fn is_up(&self) -> bool {
        self.child.is_some()
    }

    pub fn url(&self) -> String {
        if self.is_unix() { self.listen.clone() } else { format!("http://{}", self.listen) }
    }

    /// Ends it at once, as a crash would.
    #[track_caller]
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the server is up");
        child.kill().expect("a child of ours can be killed");
        process::wait_exit(&mut child, "a killed server to be gone", PATIENCE);
    }

    /// Stops it where it is: connections stay open and nothing is answered.
    #[track_caller]
    pub fn freeze(&self) {
        process::signal(self.child.as_ref().expect("the server is up"), Signal::STOP);
    }

    /// Lets a frozen server go on.
    #[track_caller]
    pub fn thaw(&self) {
        process::signal(self.child.as_ref().expect("the server is up"), Signal::CONT);
    }

    /// Asks it to end and waits until it did.
    #[track_caller]
    pub fn terminate(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the server is up");
        process::signal(&child, Signal::TERM);
        process::wait_exit(&mut child, "the server to end after SIGTERM", PATIENCE)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Errors would mean it is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the server at {}:\n{}", self.listen, process::tail(&self.log, 40));
        }
    }
}

/// The first line of a child's stdout; the rest goes to its log, so that it never waits for us to read.
fn first_line(stdout: ChildStdout, mut log: File, limit: Duration) -> Option<String> {
    let (tx, rx) = mpsc::channel();
    std::thread::spawn(move || {
        let mut tx = Some(tx);
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // Fails only when the sandbox is gone, and then nobody reads the log.
            let _ = writeln!(log, "{line}");
            if let Some(tx) = tx.take() {
                let _ = tx.send(line);
            }
        }
    });
    rx.recv_timeout(limit).ok()
}
