//! A program that starts `gitsync-tui` and talks the line protocol with it.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Instant;

use crate::client::Home;
use crate::process::{self, PATIENCE};

/// The child is killed when this is dropped.
#[derive(Debug)]
pub struct Parent {
    child: Child,
    lines: Receiver<String>,
    /// What was heard so far.
    heard: Vec<String>,
    log: PathBuf,
}

impl Parent {
    pub fn start(home: &Home) -> Self {
        let log = home.new_log();
        let stderr = File::create(&log).expect("the sandbox is writable");
        let mut command = home.bare_command();
        command.args(["--no-tui", "--format", "line", "--config"]).arg(home.config());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().expect("the client can start");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            // The test may have seen enough.
            stdout.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
        });
        Self { child, lines, heard: Vec::new(), log }
    }

    pub fn say(&mut self, words: &str) {
        let stdin = self.child.stdin.as_mut().expect("stdin is piped");
        writeln!(stdin, "{words}").expect("the client reads");
    }

    /// Everything that was heard so far; what comes later is not waited for.
    pub fn heard(&mut self) -> &[String] {
        self.heard.extend(self.lines.try_iter());
        &self.heard
    }

    /// A place in what is heard, to look at later lines only.
    pub fn mark(&mut self) -> usize {
        self.heard().len()
    }

    /// Waits for a line after a mark that begins so.
    #[track_caller]
    pub fn wait_line(&mut self, mark: usize, start: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(line) = self.heard().iter().skip(mark).find(|line| line.starts_with(start)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.heard.push(line),
                Err(why) => panic!("no line {start:?} ({why}) in:\n{}", self.heard[mark..].join("\n")),
            }
        }
    }

    /// Says STOP and waits until the client has ended.
    #[track_caller]
    pub fn stop(mut self) -> ExitStatus {
        self.say("STOP");
        process::wait_exit(&mut self.child, "the client to end", PATIENCE)
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        // Errors would mean it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- its log:\n{}", process::tail(&self.log, 30));
        }
    }
}
