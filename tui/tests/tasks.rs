//! Subcommands from the outside, against a real instance with an embedded server.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A home with a git repository and a configuration that mirrors it to an embedded server.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        fs::create_dir(home.path("app")).unwrap();
        home.git(&["init", "--quiet", "--initial-branch=main"]);
        for n in 0..30 {
            home.write(&format!("app/f{n}.txt"), &format!("{n}\n"));
        }
        home.git(&["add", "."]);
        home.git(&["-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "first"]);
        home.write(
            "c.toml",
            "[[server]]\nname = \"box\"\nurl = \"embedded:mirrors\"\n[[repo]]\npath = \"app\"\n",
        );
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn isolate(&self, command: &mut Command) {
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.0.path()).env("TERM", "dumb").env("GIT_CONFIG_NOSYSTEM", "1");
        command.env("XDG_RUNTIME_DIR", self.path("run")).stdin(Stdio::null());
    }

    fn git(&self, words: &[&str]) {
        let mut git = Command::new("git");
        self.isolate(&mut git);
        assert!(git.args(words).current_dir(self.path("app")).status().unwrap().success(), "{words:?}");
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gitsync-tui"));
        self.isolate(&mut command);
        command.arg("--config").arg(self.path("c.toml")).args(words).current_dir(self.path("app"));
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    #[track_caller]
    fn ok(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert_eq!(code(&output), 0, "{words:?}: {}{}", stdout(&output), stderr(&output));
        stdout(&output)
    }

    #[track_caller]
    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.ok(words)).unwrap()
    }

    fn start(&self, words: &[&str]) -> Instance {
        let mut command = self.command(words);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines() {
                // The test may have seen enough.
                let _ = sender.send(line.unwrap() + "\n");
            }
        });
        Instance { child, lines }
    }

    /// The one target's status, once `fits` likes it.
    #[track_caller]
    fn wait(&self, fits: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let output = self.run(&["status", "--json"]);
            let last = match serde_json::from_str::<Value>(&stdout(&output)) {
                Ok(mut status) => status["targets"][0].take(),
                Err(_) => Value::String(stderr(&output)),
            };
            if fits(&last) {
                return last;
            }
            assert!(Instant::now() < end, "{last:#}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn sockets(&self) -> usize {
        let Ok(dir) = fs::read_dir(self.path("run/gitsync")) else { return 0 };
        dir.filter(|e| e.as_ref().unwrap().path().extension().is_some_and(|x| x == "sock")).count()
    }
}

/// A running instance, ended when the test is.
struct Instance {
    child: Child,
    lines: Receiver<String>,
}

impl Instance {
    /// Reads lines until one starts so.
    #[track_caller]
    fn line(&mut self, start: &str) -> String {
        let mut all = String::new();
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|e| panic!("no line `{start}` ({e}) in:\n{all}"));
            if line.starts_with(start) {
                return line;
            }
            all += &line;
        }
    }

    fn say(&mut self, text: &str) {
        self.child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn end(mut self) -> i32 {
        self.child.wait().unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Ended already where the test went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn one_instance_answers_and_obeys() {
    let home = Home::new();
    let none = home.run(&["status"]);
    assert_eq!(code(&none), 1);
    assert!(stderr(&none).contains("no gitsync-tui is running with this config"), "{}", stderr(&none));
    assert_eq!(code(&home.run(&["stop"])), 1);

    let instance = home.start(&["--no-tui"]);
    let status = home.wait(|t| t["state"] == "in-sync" && t["lag"]["changes"] == 0);
    let documented = [
        "target",
        "kind",
        "state",
        "baseline",
        "acked_baseline",
        "local_id",
        "acked_id",
        "lag",
        "latency_ms",
        "rtt_ms",
        "wire_bytes",
        "withheld",
        "checked_ms_ago",
        "errors",
        "last_error",
    ];
    let keys: Vec<&String> = status.as_object().unwrap().keys().collect();
    assert_eq!(keys[..documented.len()], documented);
    assert_eq!((&status["target"], &status["kind"]), (&"app@box".into(), &"mirror".into()));
    assert_eq!(status["local_id"], status["acked_id"]);
    assert!(home.ok(&["status"]).contains("app@box  in-sync"));

    for words in [&["--no-tui"][..], &["--once"], &["--no-tui", "--target", "app@box"]] {
        let second = home.run(words);
        assert_eq!(code(&second), 75, "{words:?}");
        assert!(stderr(&second).contains("already running"), "{}", stderr(&second));
    }
    assert_eq!(code(&home.run(&["pause", "lib@*"])), 6);

    assert_eq!(home.ok(&["pause", "app@*"]), "app@box asked to pause\n");
    assert_eq!(home.wait(|_| true)["state"], "paused");
    assert_eq!(home.ok(&["pause"]), "app@box is paused already\n");
    home.write("app/new.txt", "new\n");
    home.wait(|t| t["lag"]["changes"] == 1);
    assert!(!home.path("mirrors/app/new.txt").exists());
    home.ok(&["resume"]);
    home.wait(|t| t["state"] == "in-sync" && t["lag"]["changes"] == 0);
    assert_eq!(fs::read_to_string(home.path("mirrors/app/new.txt")).unwrap(), "new\n");
    assert_eq!(home.ok(&["resume"]), "app@box is not paused\n");
    assert_eq!(home.ok(&["accept"]), "app@box has nothing to accept\n");
    assert!(home.ok(&["takeover"]).starts_with("app@box has nothing to take over"));
    home.ok(&["verify"]);
    home.ok(&["resync", "app@box"]);
    home.wait(|t| t["state"] == "in-sync");

    let mut events = home.start(&["events", "--json"]);
    let hello: Value = serde_json::from_str(&events.line("{")).unwrap();
    assert_eq!((&hello["type"], &hello["seq"]), (&"hello".into(), &1.into()));
    home.write("app/new.txt", "newer\n");
    while !events.line("{").contains("\"type\":\"acked\"") {}
    assert_eq!(home.sockets(), 1);
    assert_eq!(home.ok(&["stop"]), "stopped\n");
    assert_eq!((instance.end(), events.end(), home.sockets()), (0, 0, 0));
}

#[test]
fn a_killed_instance_is_replaced() {
    let home = Home::new();
    let mut first = home.start(&["--no-tui"]);
    home.wait(|t| t["state"] == "in-sync");
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    assert_eq!(home.sockets(), 1);
    assert_eq!(code(&home.run(&["status"])), 1);
    let second = home.start(&["--no-tui"]);
    home.wait(|t| t["state"] == "in-sync");
    home.ok(&["stop"]);
    assert_eq!(second.end(), 0);
}

#[test]
fn the_line_protocol_goes_both_ways() {
    let home = Home::new();
    let mut instance = home.start(&["--format", "line"]);
    assert_eq!(instance.line(""), "HELLO 1\n");
    instance.line("CONNECTED app@box");
    instance.line("CHANGED app@box ");
    instance.line("DONESYNCING app@box 1");
    instance.say("DANCE\n");
    assert_eq!(instance.line("ERROR"), "ERROR - unknown command: DANCE\n");
    instance.say("PAUSE app@box\n");
    instance.line("STATUS app@box paused");
    instance.say("RESUME\n");
    instance.line("STATUS app@box in-sync");
    // The end of stdin is the end of the run.
    drop(instance.child.stdin.take());
    instance.line("DISCONNECTED app@box");
    assert_eq!(instance.end(), 0);
}

#[test]
fn the_brake_asks_and_accepts() {
    let home = Home::new();
    home.ok(&["--once"]);
    let remove = |range: std::ops::Range<u32>| {
        for n in range {
            fs::remove_file(home.path(&format!("app/f{n}.txt"))).unwrap();
        }
    };
    remove(0..25);
    let braked = home.run(&["--once"]);
    assert_eq!(code(&braked), 4, "{}{}", stdout(&braked), stderr(&braked));
    assert!(stdout(&braked).contains("25 of 30 tracked files are missing"), "{}", stdout(&braked));
    assert_eq!(code(&home.run(&["plan"])), 4);
    assert!(home.path("mirrors/app/f0.txt").exists());
    let lines = stdout(&home.run(&["--once", "--format", "json"]));
    assert!(lines.contains(r#""type":"brake","target":"app@box","missing":25,"of":30"#), "{lines}");

    let instance = home.start(&["--no-tui"]);
    let halted = home.wait(|t| t["state"] == "halted" && t["brake"]["missing"] == 25);
    assert!(halted["lag"]["ms"].as_f64() > Some(0.0), "{halted:#}");
    assert_eq!(home.ok(&["accept", "app@box"]), "app@box told that it is meant\n");
    home.wait(|t| t["state"] == "in-sync" && t["brake"].is_null());
    assert!(!home.path("mirrors/app/f0.txt").exists());
    home.ok(&["stop"]);
    assert_eq!(instance.end(), 0);
}

/// A pause that was asked for before the repository can be opened counts once it can.
#[test]
fn a_pause_outlasts_a_repository_that_cannot_be_opened() {
    let home = Home::new();
    fs::rename(home.path("app/.git"), home.path("away")).unwrap();
    let instance = home.start(&["--no-tui"]);
    home.wait(|t| t["state"] == "halted");
    home.ok(&["pause"]);
    fs::rename(home.path("away"), home.path("app/.git")).unwrap();
    home.wait(|t| t["state"] == "paused");
    assert!(!home.path("mirrors/app/f0.txt").exists());
    home.ok(&["resume"]);
    home.wait(|t| t["state"] == "in-sync");
    home.ok(&["stop"]);
    assert_eq!(instance.end(), 0);
}

#[test]
fn a_status_is_logged_when_the_signal_asks_for_it() {
    let home = Home::new();
    let log = home.path("log").display().to_string();
    let instance = home.start(&["--no-tui", "-q", "--log-file", &log]);
    home.wait(|t| t["state"] == "in-sync");
    let pid = rustix::process::Pid::from_raw(instance.child.id().try_into().unwrap()).unwrap();
    let end = Instant::now() + PATIENCE;
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
    while !fs::read_to_string(&log).unwrap().contains("app@box  in-sync") {
        assert!(Instant::now() < end, "{}", fs::read_to_string(&log).unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
    home.ok(&["stop"]);
    assert_eq!(instance.end(), 0);
}

#[test]
fn running_out_of_time_is_explained() {
    let home = Home::new();
    // Takes the connection, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    home.write("c.toml", &format!("[[server]]\nname = \"box\"\nurl = \"{url}\"\n[[repo]]\npath = \"app\"\n"));
    let ended = home.run(&["--once", "--timeout", "300ms"]);
    assert_eq!(code(&ended), 3);
    let text = stderr(&ended);
    for says in ["1 target not done within --timeout", "app@box is ", "--timeout 5m"] {
        assert!(text.contains(says), "{text}");
    }
}

#[test]
fn once_can_accept_deletes() {
    let home = Home::new();
    home.ok(&["--once"]);
    for n in 0..25 {
        fs::remove_file(home.path(&format!("app/f{n}.txt"))).unwrap();
    }
    home.ok(&["--once", "--accept-deletes"]);
    assert!(!home.path("mirrors/app/f0.txt").exists());
    assert!(home.path("mirrors/app/f29.txt").exists());
}

#[test]
fn check_and_plan_change_nothing() {
    let home = Home::new();
    let plan = home.json(&["plan", "--json"]);
    let target = &plan["targets"][0];
    assert_eq!((&target["files"], &target["running"]), (&30.into(), &Value::Null));
    assert_eq!(target["biggest"].as_array().unwrap().len(), 10);
    assert!(home.ok(&["plan", "app@*"]).contains("at most 30 files, "));
    assert_eq!(code(&home.run(&["plan", "lib@*"])), 6);
    let check = home.json(&["check", "--json", "--connect"]);
    assert_eq!((&check["ok"], &check["servers"][0]["ok"]), (&true.into(), &true.into()));
    assert!(home.ok(&["check"]).contains("ok    repo app"));
    assert!(!home.path("mirrors").exists(), "no server was made");

    home.write(
        "c.toml",
        "[[server]]\nname = \"far\"\nurl = \"http://127.0.0.1:1\"\n[[repo]]\npath = \"app\"\nmax-file-size = \"2B\"\n",
    );
    let down = home.run(&["check", "--connect"]);
    assert_eq!(code(&down), 5);
    assert!(
        stdout(&down).contains("wrong server far (http://127.0.0.1:1): cannot connect"),
        "{}",
        stdout(&down)
    );
    assert_eq!(home.json(&["plan", "--json"])["targets"][0]["withheld"].as_array().unwrap().len(), 20);
    fs::remove_dir_all(home.path("app/.git")).unwrap();
    let gone = home.run(&["check", "--json"]);
    assert_eq!(code(&gone), 1);
    let repo = &serde_json::from_str::<Value>(&stdout(&gone)).unwrap()["repos"][0];
    assert_eq!(repo["ok"], false);
    let hint = repo["error"]["hint"].as_str().unwrap();
    assert!(hint.contains("git -C PATH status") && !hint.contains("accept"), "{hint}");
    home.write("c.toml", "x = 1\n");
    assert_eq!(code(&home.run(&["check"])), 78);
}

#[test]
fn a_server_on_a_socket_is_greeted_and_mirrored_to() {
    let home = Home::new();
    home.write("c.toml", "[[server]]\nname = \"sock\"\nurl = \"unix:s.sock\"\n[[repo]]\npath = \"app\"\n");
    assert_eq!(code(&home.run(&["check", "--connect"])), 5);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (socket, root) = (home.path("s.sock"), home.path("there"));
    fs::create_dir(&root).unwrap();
    runtime.spawn(async move {
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        while let Ok((stream, _)) = listener.accept().await {
            let software = "a test \u{1b}".into();
            let options = gitsync_server::Options {
                root: root.clone(),
                adopt: false,
                workspaces: Default::default(),
                software,
            };
            tokio::spawn(gitsync_server::serve_io(stream, options));
        }
    });
    let end = Instant::now() + PATIENCE;
    while !home.path("s.sock").exists() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    let server = home.json(&["check", "--connect", "--json"])["servers"][0].take();
    assert_eq!((&server["ok"], &server["protocol"]), (&true.into(), &1.into()));
    assert_eq!(server["software"], "a test \\u{1b}");
    assert!(server["rtt_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(fs::read_dir(home.path("there")).unwrap().count(), 0, "a greeting changes nothing");
    home.ok(&["--once"]);
    assert!(home.path("there/app/f0.txt").exists());
}

#[test]
fn what_is_withheld_makes_once_exit_1() {
    let home = Home::new();
    let config = fs::read_to_string(home.path("c.toml")).unwrap();
    home.write("c.toml", &(config + "max-file-size = \"2B\"\n"));
    let once = home.run(&["--once"]);
    assert_eq!(code(&once), 1, "{}", stdout(&once));
    assert!(stdout(&once).contains("withheld paths=20"), "{}", stdout(&once));
    assert!(home.path("mirrors/app/f0.txt").exists() && !home.path("mirrors/app/f20.txt").exists());
}

#[test]
fn init_makes_adds_and_repeats_itself() {
    let home = Home::new();
    fs::remove_file(home.path("c.toml")).unwrap();
    let shown = home.ok(&["init", "--server", "embedded:../there", "--stdout"]);
    assert!(shown.contains("[[repo]]") && !home.path("c.toml").exists());
    let told = home.ok(&["init", "--server", "embedded:../there"]);
    assert!(told.starts_with("made ") && told.contains("next: gitsync-tui --config"), "{told}");
    assert_eq!(fs::read_to_string(home.path("c.toml")).unwrap(), shown);
    home.ok(&["--once"]);
    assert!(home.path("there/app/f0.txt").exists());
    assert!(home.ok(&["init"]).contains(" already, as app"));
    assert_eq!(fs::read_to_string(home.path("c.toml")).unwrap(), shown);

    home.write("c.toml", "[[server]]\nname = \"a\"\n");
    let broken = home.run(&["init"]);
    assert_eq!(code(&broken), 78);
    assert!(stderr(&broken).contains("nothing was changed"), "{}", stderr(&broken));
    let mut outside = home.command(&["init"]);
    assert_eq!(code(&outside.current_dir(home.0.path()).output().unwrap()), 1);
}

#[test]
fn what_was_kept_is_listed_compared_and_restored_outside() {
    let home = Home::new();
    assert_eq!(home.ok(&["drift", "app@box"]), "app@box: nothing was kept\n");
    home.ok(&["--once"]);
    let there = |name: &str| home.path("mirrors/app").join(name);
    fs::remove_file(there("f1.txt")).unwrap();
    fs::write(there("f1.txt"), "edited there\n").unwrap();
    home.ok(&["--once"]);
    assert_eq!(fs::read_to_string(there("f1.txt")).unwrap(), "1\n");

    let table = home.ok(&["drift", "app@box"]);
    assert!(table.contains("PATH") && table.contains("f1.txt"), "{table}");
    let diff = home.ok(&["drift", "app@*", "--diff"]);
    assert!(diff.contains("--- here/f1.txt\n+++ box/f1.txt\n"), "{diff}");
    assert!(diff.contains("-1\n+edited there\n"), "{diff}");
    for inside in ["sub", ".", ".git/x"] {
        let refused = home.run(&["drift", "app@box", "--restore-to", inside]);
        assert_eq!(code(&refused), 2, "{inside}");
        assert!(!home.path("app/sub").exists());
    }
    for name in ["f1.txt", "f1.txt.1"] {
        home.ok(&["drift", "app@box", "--restore-to", "../back"]);
        assert_eq!(fs::read_to_string(home.path("back").join(name)).unwrap(), "edited there\n");
    }
    assert_eq!(code(&home.run(&["drift", "lib@box"])), 6);
    assert_eq!(fs::read_to_string(home.path("app/f1.txt")).unwrap(), "1\n");
    assert!(Path::new(&home.path("run/gitsync")).exists());
}
