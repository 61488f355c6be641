//! One run with `--once` makes a server equal, says so, and ends.

use std::process::Command;

use gitsync_tests::lab::Lab;
use gitsync_tests::skip::skip;

#[test]
fn once_makes_an_embedded_server_equal() {
    let lab = Lab::new("once");
    lab.configure(&[("near", &lab.embedded("near"))]);
    let ended = lab.once();
    let expected = lab.expect();
    assert_eq!(ended.code(), 0, "{ended}");
    assert_eq!(ended.summary_of("app@near", "patch_id"), Some(expected.id.0.as_str()), "{ended}");
    assert_eq!(ended.summary_of("app@near", "state"), Some("in-sync"), "{ended}");
    lab.assert_equal("near", &expected, &[]);
}

#[test]
fn once_makes_a_server_process_equal() {
    let lab = Lab::new("once-tcp");
    let server = lab.serve("far");
    lab.configure(&[("far", &server.url())]);
    let ended = lab.once();
    let expected = lab.expect();
    assert_eq!(ended.code(), 0, "{ended}");
    assert_eq!(ended.summary_of("app@far", "patch_id"), Some(expected.id.0.as_str()), "{ended}");
    lab.assert_equal("far", &expected, &[]);
}

#[test]
fn a_second_once_finds_nothing_to_do() {
    let lab = Lab::new("once-twice");
    lab.configure(&[("near", &lab.embedded("near"))]);
    assert_eq!(lab.once().code(), 0);
    let before = lab.server_tree("near");
    let ended = lab.once();
    assert_eq!(ended.code(), 0, "{ended}");
    let session = ended.events.iter().find(|e| e.kind() == "session").expect("a session was made");
    assert_eq!(session.text("rung"), Some("none"), "{ended}");
    assert_eq!(lab.server_tree("near"), before, "nothing was touched");
}

#[test]
fn a_repository_without_commits_or_files_is_in_sync_too() {
    let lab = Lab::empty("once-empty");
    lab.configure(&[("near", &lab.embedded("near"))]);
    let ended = lab.once();
    let expected = lab.expect();
    assert_eq!(ended.code(), 0, "{ended}");
    assert_eq!(ended.summary_of("app@near", "patch_id"), Some(expected.id.0.as_str()), "{ended}");
    lab.assert_equal("near", &expected, &[]);
}

#[test]
fn one_repository_goes_to_several_servers() {
    let lab = Lab::new("once-many");
    let far = lab.serve("far");
    lab.configure(&[("near", &lab.embedded("near")), ("other", &lab.embedded("other")), ("far", &far.url())]);
    let ended = lab.once();
    let expected = lab.expect();
    assert_eq!(ended.code(), 0, "{ended}");
    for server in ["near", "other", "far"] {
        assert_eq!(
            ended.summary_of(&lab.target(server), "patch_id"),
            Some(expected.id.0.as_str()),
            "{ended}"
        );
        lab.assert_equal(server, &expected, &[]);
    }
}

#[test]
fn sha256_repositories_have_sha256_patch_ids() {
    let lab = Lab::empty_sha256("once-sha256");
    lab.repo.write("src/a", "one\n");
    lab.repo.commit_all("first");
    lab.repo.write("src/b", "two\n");
    lab.configure(&[("near", &lab.embedded("near"))]);
    let ended = lab.once();
    let expected = lab.expect();
    assert_eq!(expected.id.0.len(), 64);
    assert_eq!(ended.code(), 0, "{ended}");
    assert_eq!(ended.summary_of("app@near", "patch_id"), Some(expected.id.0.as_str()), "{ended}");
    lab.assert_equal("near", &expected, &[]);
}

/// Thousands of files in one message, and room for far fewer open ones.
#[test]
fn many_small_files_need_few_open_ones() {
    let name = "many_small_files_need_few_open_ones";
    let lab = Lab::new("once-small");
    for n in 0..4_000 {
        lab.repo.write(
            format!("small/{}/{n}.json", n % 50),
            format!("{{\"number\": {n}, \"more\": \"of it\"}}\n"),
        );
    }
    lab.configure(&[("near", &lab.embedded("near"))]);
    let bare = lab.home.bare_command();
    let mut limited = Command::new("prlimit");
    limited.arg("--nofile=256:256").arg(bare.get_program()).args(["--no-tui", "--once", "--config"]);
    limited.arg(lab.home.config()).current_dir(lab.repo.home()).env_clear();
    limited.envs(bare.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let Ok(ended) = limited.output() else { return skip(name, "there is no prlimit") };
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    lab.assert_equal("near", &lab.expect(), &[]);
}
