//! The real program from the outside: what it answers before any session starts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A home directory of its own, so that no configuration of the user is found.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, text).unwrap();
        file
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gitsync-tui"));
        command.args(words).current_dir(self.path()).stdin(Stdio::null());
        command.env_clear().env("HOME", self.path()).env("TERM", "dumb");
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("XDG_RUNTIME_DIR", self.path().join("run")).env("GIT_CONFIG_NOSYSTEM", "1");
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// One repo, which is no git checkout, and one server nobody listens for.
const VALID: &str =
    "[[server]]\nname = \"far\"\nurl = \"http://127.0.0.1:1\"\n[[repo]]\nname = \"app\"\npath = \".\"\n";

#[test]
fn help_and_version_go_to_stdout() {
    let home = Home::new();
    let help = home.run(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    for flag in [
        "--config",
        "--no-tui",
        "--format",
        "--once",
        "--timeout",
        "--target",
        "--log-file",
        "--color",
        "--theme",
        "--read-only",
    ] {
        assert!(stdout(&help).contains(flag), "{flag}");
    }
    let version = home.run(&["--version"]);
    assert_eq!(version.status.code(), Some(0));
    assert_eq!(stdout(&version), format!("gitsync-tui {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn what_cannot_be_understood_exits_2() {
    let home = Home::new();
    for (words, says) in [
        (&["frobnicate"][..], "frobnicate"),
        (&["--frobnicate"], "--frobnicate"),
        (&["--once", "--timeout", "soon"], "30s"),
        (&["doctor"], "`gitsync-tui doctor` is not in this version"),
        (&["--once", "status"], "`--once` belongs to a run"),
        (&["run", "app@gpu", "--", "make", "-j4"], "`gitsync-tui run` is not in this version"),
        (&["--accept-deletes"], "--once"),
    ] {
        let output = home.run(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(stderr(&output).contains(says), "{words:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{words:?}");
    }
}

#[test]
fn without_a_configuration_the_next_step_is_told() {
    let home = Home::new();
    // Neither of these may be picked up.
    home.write("gitsync.toml", VALID);
    home.write("config.toml", VALID);
    let output = home.run(&["--no-tui"]);
    assert_eq!(output.status.code(), Some(78));
    let text = stderr(&output);
    assert!(text.contains(".config/gitsync/config.toml") && text.contains("--config FILE"), "{text}");

    let output = home.run(&["--once", "--config", "missing.toml"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr(&output).contains("missing.toml: cannot read the configuration"), "{}", stderr(&output));
}

#[test]
fn a_bad_configuration_lists_every_problem() {
    let home = Home::new();
    let file = home.write(
        "bad.toml",
        "[[server]]\nname = \"a\"\nurl = \"https://x\"\n[[repo]]\npth = \".\"\nservers = [\"b\"]\n",
    );
    let output = home.run(&["--once", "--config", "bad.toml"]);
    assert_eq!(output.status.code(), Some(78));
    let text = stderr(&output);
    for part in [
        "bad.toml:3:7: https urls are not in this version",
        "bad.toml:4:1: `path` is missing",
        "bad.toml:5:1: unknown key `pth`",
        "did you mean `path`?",
        "bad.toml:6:12: no server is named `b`",
        "4 problems in bad.toml",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    // The environment names a file as well as the flag does.
    let output = home.command(&["--once"]).env("GITSYNC_CONFIG", file).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
}

#[test]
fn no_target_matched_lists_those_there_are() {
    let home = Home::new();
    home.write(".config/gitsync/config.toml", VALID);
    let output = home.run(&["--once", "--target", "lib@*"]);
    assert_eq!(output.status.code(), Some(6));
    let text = stderr(&output);
    assert!(text.contains("`lib@*`") && text.contains("app@far"), "{text}");
    assert_eq!(stdout(&output), "");
}

#[test]
fn a_repository_that_is_none_halts_its_target() {
    let home = Home::new();
    home.write(".config/gitsync/config.toml", &VALID.replace("\".\"", "\"~\""));
    let output = home.run(&["--once", "--format", "json"]);
    let text = stdout(&output);
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(output.status.code(), Some(4), "{text}{}", stderr(&output));
    assert_eq!(lines[0]["type"], "hello");
    assert_eq!(lines.last().unwrap()["type"], "summary");
    assert_eq!(lines.last().unwrap()["targets"]["app@far"]["state"], "halted");
    assert!(lines.iter().any(|l| l["type"] == "error" && l["hint"].is_string()), "{text}");
}

#[test]
fn a_log_file_that_cannot_be_opened_is_named() {
    let home = Home::new();
    let output = home.run(&["--once", "--log-file", "no/such/dir/log"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("no/such/dir/log"), "{}", stderr(&output));
}
