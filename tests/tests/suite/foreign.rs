//! What others put on a server is theirs (P4).

use std::fs;
use std::path::{Path, PathBuf};

use gitsync_tests::client::Client;
use gitsync_tests::event::{Event, Standing};
use gitsync_tests::lab::Lab;
use gitsync_tests::process::PATIENCE;
use gitsync_tests::rounds::left_in_stage;
use gitsync_tests::tree;

fn in_sync(name: &str) -> (Client, Lab) {
    let lab = Lab::new(name);
    lab.configure(&[("near", &lab.embedded("near"))]);
    let client = lab.client();
    lab.assert_converges(&client, &["near"]);
    (client, lab)
}

/// Writes a file on the server, as a build there would.
fn plant(lab: &Lab, path: &str, bytes: &str) {
    let path = lab.workspace("near").join(path);
    fs::create_dir_all(path.parent().expect("below the workspace")).expect("the server's disk is writable");
    fs::write(path, bytes).expect("the server's disk is writable");
}

#[track_caller]
fn assert_kept(lab: &Lab, bytes: &str) {
    let recovery = tree::walk(&lab.workspace("near").join(".git/gitsync/recovery"));
    assert!(
        recovery.files.values().any(|node| node.bytes == bytes.as_bytes()),
        "{bytes:?} is not among the kept copies: {:?}",
        recovery.files.keys()
    );
}

#[track_caller]
fn wait_drift(client: &Client, path: &str) {
    client.wait_until(&format!("a drift event that names {path}"), PATIENCE, |events| {
        events.iter().any(|e| e.is("drift", "app@near") && e.paths().contains(&path)).then_some(())
    });
}

#[test]
fn a_foreign_file_in_the_way_is_kept_and_named() {
    let (client, lab) = in_sync("in-the-way");
    plant(&lab, "src/config.h", "made by a build");
    lab.repo.write("src/config.h", "from the client\n");
    lab.assert_converges(&client, &["near"]);
    wait_drift(&client, "src/config.h");
    assert_kept(&lab, "made by a build");
}

#[test]
fn a_foreign_file_in_the_way_of_a_directory_is_kept_and_named() {
    let (client, lab) = in_sync("dir-in-the-way");
    plant(&lab, "out", "made by a build");
    lab.repo.write("out/new.txt", "from the client\n");
    lab.assert_converges(&client, &["near"]);
    wait_drift(&client, "out");
    assert_kept(&lab, "made by a build");
}

#[test]
fn build_output_survives_the_directory_it_lies_in() {
    let (client, lab) = in_sync("build-output");
    plant(&lab, "src/main.o", "object code");
    plant(&lab, "build/cache/deep", "cache");
    lab.repo.remove_dir("src");
    let expected = lab.expect();
    client.wait_acked("app@near", &expected.id, PATIENCE);
    lab.assert_equal("near", &expected, &["src/main.o", "build/cache/deep"]);
    assert_eq!(fs::read(lab.workspace("near").join("src/main.o")).expect("it survived"), b"object code");
    assert_eq!(fs::read(lab.workspace("near").join("build/cache/deep")).expect("it survived"), b"cache");
    assert!(!lab.workspace("near").join("src/deep").exists(), "directories we emptied are gone");
}

/// A directory with something foreign in it is never displaced; the path is left out and said to be.
#[test]
fn a_foreign_directory_in_the_way_withholds_the_path() {
    let (client, lab) = in_sync("withheld");
    plant(&lab, "out/of/a/build", "foreign");
    lab.repo.write("out", "a file on the client\n");
    lab.repo.write("README.md", "# goes on\n");
    let expected = lab.expect();
    let left_out = [Path::new("out").to_path_buf()].into();
    let id = lab.oracle().id_without(&expected, &left_out);
    client.wait_acked("app@near", &id, PATIENCE);
    client.wait_until("the path to be listed as withheld", PATIENCE, |events| {
        events.iter().any(|e| e.is("withheld", "app@near") && e.paths().contains(&"out")).then_some(())
    });
    assert_eq!(fs::read(lab.workspace("near").join("out/of/a/build")).expect("it survived"), b"foreign");

    let ended = client.terminate();
    assert_eq!(ended.code(), 0, "{ended}");
    assert_eq!(lab.once().code(), 1, "withheld paths make --once exit 1");
}

/// It was sent before the server could know that there is no place for it.
#[test]
fn the_content_of_a_withheld_path_takes_no_room_on_the_server() {
    let (client, lab) = in_sync("withheld-room");
    plant(&lab, "out/of/a/build", "foreign");
    let is_withheld = |events: &[Event]| {
        let standing = Standing::of(events, "app@near");
        (standing.state == "in-sync" && standing.withheld.contains_key("out")).then_some(())
    };
    let mut bytes = vec![0; 3 << 20];
    fastrand::Rng::with_seed(1).fill(&mut bytes);
    lab.repo.write("out", bytes);
    client.wait_until("the path to be withheld", PATIENCE, is_withheld);
    assert!(left_in_stage(&lab.workspace("near")).is_empty(), "after the patch");
    assert_eq!(client.terminate().code(), 0);
    lab.home.start().wait_until("the path to be withheld again", PATIENCE, is_withheld);
    assert!(left_in_stage(&lab.workspace("near")).is_empty(), "after a start");
}

#[test]
fn a_withheld_path_arrives_once_the_way_is_free() {
    let (client, lab) = in_sync("withheld-freed");
    plant(&lab, "out/of/a/build", "foreign");
    lab.repo.write("out", "a file on the client\n");
    client.wait_until("the path to be withheld", PATIENCE, |events| {
        events.iter().any(|e| e.is("withheld", "app@near") && e.paths().contains(&"out")).then_some(())
    });
    fs::remove_dir_all(lab.workspace("near").join("out")).expect("the server's disk is writable");
    lab.repo.write("out", "a newer file on the client\n");
    lab.assert_converges(&client, &["near"]);
}

/// P5: a link on the server could lead anywhere. It is never followed and never displaced.
#[test]
fn a_foreign_link_in_the_way_is_never_followed() {
    let (client, lab) = in_sync("link-in-the-way");
    let outside = lab.path("outside");
    fs::create_dir(&outside).expect("the sandbox is writable");
    fs::write(outside.join("new.txt"), "not ours").expect("the sandbox is writable");
    std::os::unix::fs::symlink(&outside, lab.workspace("near").join("out"))
        .expect("the server's disk is writable");
    lab.repo.write("out/new.txt", "from the client\n");
    lab.repo.write("out/other.txt", "from the client\n");
    client.wait_until("the paths to be withheld", PATIENCE, |events| {
        let standing = Standing::of(events, "app@near");
        (standing.state == "in-sync" && standing.withheld.len() == 2).then_some(())
    });
    assert!(lab.workspace("near").join("out").is_symlink());
    let names: Vec<_> =
        tree::walk(&outside).files.into_iter().map(|(path, node)| (path, node.bytes)).collect();
    assert_eq!(names, [(PathBuf::from("new.txt"), b"not ours".to_vec())]);
}

/// Drift: a managed file edited on the server. The newest word is the client's, the edit is kept.
#[test]
fn an_edit_on_the_server_is_kept_when_the_client_overwrites_it() {
    let (client, lab) = in_sync("drift");
    plant(&lab, "README.md", "edited on the server");
    lab.repo.write("README.md", "# edited on the client\n");
    lab.assert_converges(&client, &["near"]);
    wait_drift(&client, "README.md");
    assert_kept(&lab, "edited on the server");
}

#[test]
fn a_file_edited_on_the_server_is_not_lost_when_the_client_deletes_it() {
    let (client, lab) = in_sync("drift-delete");
    plant(&lab, "README.md", "edited on the server");
    lab.repo.remove("README.md");
    let expected = lab.expect();
    client.wait_acked("app@near", &expected.id, PATIENCE);
    let on_disk = fs::read(lab.workspace("near").join("README.md"));
    if on_disk.ok().as_deref() != Some(b"edited on the server".as_slice()) {
        assert_kept(&lab, "edited on the server");
    }
}

#[test]
fn a_directory_that_is_not_ours_is_refused_and_left_alone() {
    let lab = Lab::new("not-ours");
    lab.configure(&[("near", &lab.embedded("near"))]);
    plant(&lab, "thesis.txt", "somebody's only copy");
    let before = tree::walk_with_git(&lab.workspace("near"));
    let ended = lab.once();
    assert_ne!(ended.code(), 0, "{ended}");
    assert!(ended.to_string().contains("adopt"), "the next step is named: {ended}");
    assert_eq!(tree::walk_with_git(&lab.workspace("near")), before);
}
