//! Exit codes scripts can rely on, and messages that say what happened, why, and what to do next (P7).

use std::fs;
use std::process::Output;

use gitsync_tests::git::Repo;
use gitsync_tests::lab::Lab;

/// Runs the program without the usual flags; only for what ends by itself.
fn run(lab: &Lab, args: &[&str]) -> Output {
    lab.home.bare_command().args(args).output().expect("the client can start")
}

#[track_caller]
fn assert_fails(output: &Output, code: i32, mentions: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    for word in mentions {
        assert!(stderr.to_lowercase().contains(&word.to_lowercase()), "{word:?} is not in: {stderr}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
}

#[test]
fn no_server_reached_is_5() {
    let lab = Lab::new("all-down");
    let mut far = lab.serve("far");
    lab.configure(&[("far", &far.url())]);
    far.kill();
    let ended = lab.once();
    assert_eq!(ended.code(), 5, "{ended}");
    assert_eq!(ended.summary().number("exit"), 5, "{ended}");
    let error = ended.events.iter().find(|e| e.is("error", "app@far")).expect("the failure is an event");
    assert_eq!(error.json()["retryable"], true, "{ended}");
    assert!(error.text("hint").is_some_and(|hint| !hint.is_empty()), "{ended}");
}

#[test]
fn one_of_two_servers_down_is_1_and_the_other_is_done() {
    let lab = Lab::new("one-down");
    let mut far = lab.serve("far");
    lab.configure(&[("near", &lab.embedded("near")), ("far", &far.url())]);
    far.kill();
    let ended = lab.once();
    let expected = lab.expect();
    assert_eq!(ended.code(), 1, "{ended}");
    assert_eq!(ended.summary_of("app@near", "patch_id"), Some(expected.id.0.as_str()), "{ended}");
    lab.assert_equal("near", &expected, &[]);
}

#[test]
fn a_bare_repository_is_refused_with_the_reason() {
    let lab = Lab::empty("bare");
    let bare = lab.path("bare.git");
    Repo::init_with(&bare, lab.repo.home(), &["--bare"]);
    lab.home.write_config(&config_for(bare.to_str().expect("ASCII"), &lab.embedded("near")));
    let ended = lab.once();
    assert!([4, 78].contains(&ended.code()), "{ended}");
    assert!(ended.to_string().contains("bare"), "{ended}");
}

#[test]
fn a_directory_that_is_no_repository_is_refused_with_the_next_step() {
    let lab = Lab::empty("no-repo");
    let plain = lab.path("plain");
    fs::create_dir(&plain).expect("the sandbox is writable");
    lab.home.write_config(&config_for(plain.to_str().expect("ASCII"), &lab.embedded("near")));
    let ended = lab.once();
    assert!([4, 78].contains(&ended.code()), "{ended}");
    assert!(ended.to_string().contains("git"), "{ended}");
    assert!(ended.to_string().contains("plain"), "the directory is named: {ended}");
}

fn config_for(path: &str, url: &str) -> String {
    format!("[[server]]\nname = \"near\"\nurl = {url:?}\n[[repo]]\nname = \"app\"\npath = {path:?}\n")
}

#[test]
fn a_misspelt_key_is_78_with_line_and_nearest_name() {
    let lab = Lab::empty("bad-key");
    let path = lab.repo.root().to_str().expect("ASCII").to_owned();
    lab.home.write_config(&format!("{}workspce = \"x\"\n", config_for(&path, &lab.embedded("near"))));
    let config = lab.home.config().to_str().expect("ASCII");
    let output = run(&lab, &["--no-tui", "--once", "--config", config]);
    assert_fails(&output, 78, &["gitsync.toml", "7", "workspce", "workspace"]);
}

#[test]
fn every_mistake_in_a_config_is_reported_at_once() {
    let lab = Lab::empty("bad-many");
    lab.home.write_config(concat!(
        "[[server]]\nname = \"a b\"\nurl = \"gopher://x\"\n",
        "[[repo]]\nname = \"c/d\"\npath = \".\"\nmax-file-size = \"heavy\"\n",
    ));
    let config = lab.home.config().to_str().expect("ASCII");
    let output = run(&lab, &["--no-tui", "--once", "--config", config]);
    assert_fails(&output, 78, &["a b", "gopher", "c/d", "heavy"]);
}

#[test]
fn broken_toml_is_78_with_its_place() {
    let lab = Lab::empty("bad-toml");
    lab.home.write_config("[[server]\nname = 1\n");
    let config = lab.home.config().to_str().expect("ASCII");
    let output = run(&lab, &["--no-tui", "--once", "--config", config]);
    assert_fails(&output, 78, &["gitsync.toml", "1"]);
}

#[test]
fn a_config_that_is_not_there_is_78_and_names_the_file() {
    let lab = Lab::empty("no-config");
    let output = run(&lab, &["--no-tui", "--once", "--config", "/nonexistent/gitsync.toml"]);
    assert_fails(&output, 78, &["/nonexistent/gitsync.toml"]);
}

#[test]
fn no_config_anywhere_is_78_with_the_next_step() {
    let lab = Lab::empty("no-default-config");
    let output = run(&lab, &["--no-tui", "--once"]);
    assert_fails(&output, 78, &["config.toml"]);
}

/// Nothing found in a repository is ever read as configuration.
#[test]
fn a_config_in_the_current_directory_is_not_read() {
    let lab = Lab::new("planted-config");
    let config = config_for(".", &lab.embedded("near"));
    for name in ["config.toml", "gitsync.toml", ".gitsync.toml", ".gitsync/config.toml"] {
        lab.repo.write(name, &config);
    }
    let mut command = lab.home.bare_command();
    let output = command
        .args(["--no-tui", "--once"])
        .current_dir(lab.repo.root())
        .output()
        .expect("the client can start");
    assert_fails(&output, 78, &[]);
    assert!(!lab.workspace("near").exists());
}

#[test]
fn unknown_options_are_2() {
    let lab = Lab::empty("usage");
    assert_fails(&run(&lab, &["--no-such-option"]), 2, &["--no-such-option"]);
    assert_fails(&run(&lab, &["--format", "xml"]), 2, &["xml"]);
}

#[test]
fn no_matching_target_is_6() {
    let lab = Lab::new("no-target");
    lab.configure(&[("near", &lab.embedded("near"))]);
    let ended = lab.home.run(&["--once", "--target", "other@*"]);
    assert_eq!(ended.code(), 6, "{ended}");
}

#[test]
fn only_selected_targets_are_served() {
    let lab = Lab::new("select-target");
    lab.configure(&[("near", &lab.embedded("near")), ("other", &lab.embedded("other"))]);
    let ended = lab.home.run(&["--once", "--target", "*@near"]);
    assert_eq!(ended.code(), 0, "{ended}");
    lab.assert_equal("near", &lab.expect(), &[]);
    assert!(!lab.workspace("other").exists(), "the other server was not touched");
}

#[test]
fn version_and_help_are_0() {
    let lab = Lab::empty("version");
    for flag in ["--version", "--help"] {
        let output = run(&lab, &[flag]);
        assert_eq!(output.status.code(), Some(0));
        assert!(String::from_utf8_lossy(&output.stdout).contains("gitsync"));
    }
}
