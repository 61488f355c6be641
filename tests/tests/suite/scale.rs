//! 100,000 files in 8,000 directories: what a second start costs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use gitsync_tests::client::Client;
use gitsync_tests::event::Event;
use gitsync_tests::lab::Lab;
use gitsync_tests::process;

const DIRS: usize = 8_000;
const FILES: usize = 100_000;
/// Of each file, in bytes.
const FILE_BYTES: usize = 1_000;
const IGNORED_DIRS: usize = 500;
/// For a scan, on a machine that may be busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// Below the repository's root: `FILES` names, and a file of its own for each directory, which spares the disk most of the
/// work and the client none.
fn make_files(root: &Path) {
    for dir in 0..DIRS {
        let at = root.join(format!("crates/c{:03}/d{:02}", dir / 16, dir % 16));
        fs::create_dir_all(&at).expect("the sandbox is writable");
        let name = |file: usize| at.join(format!("file{file:06}.rs"));
        let mut content = vec![b'.'; FILE_BYTES];
        content[..6].copy_from_slice(format!("{dir:06}").as_bytes());
        fs::write(name(dir), content).expect("the sandbox is writable");
        for file in (dir..FILES).step_by(DIRS).skip(1) {
            fs::hard_link(name(dir), name(file)).expect("the sandbox can link");
        }
    }
    for dir in 0..IGNORED_DIRS {
        let at = root.join(format!("target/t{dir}"));
        fs::create_dir_all(&at).expect("the sandbox is writable");
        fs::write(at.join("built.o"), "ignored").expect("the sandbox is writable");
    }
}

/// A stamp this young says too little of a file for anyone to trust it.
fn let_stamps_settle(last: &Path) {
    let metadata = last.symlink_metadata().expect("it was just made");
    let made = SystemTime::UNIX_EPOCH + Duration::new(metadata.ctime() as u64, metadata.ctime_nsec() as u32);
    let is_old = || (made.elapsed().unwrap_or_default() > Duration::from_millis(2_500)).then_some(());
    process::poll_until("the files' stamps to be trusted", process::PATIENCE, is_old);
}

/// Files that were read by the first scan of a client, and files that were looked at.
#[track_caller]
fn hashed(client: &Client) -> (u64, u64) {
    client.wait_until("the first scan to be over", PATIENCE, |events| {
        let of_stage = |event: &&Event| event.text("stage") == Some("hashed");
        events.iter().find(of_stage).map(|event| (event.number("done"), event.number("total")))
    })
}

/// No server is there: writing as many files again would take most of the time, and shows nothing more.
#[test]
fn a_second_start_of_a_large_repository_reads_no_file() {
    let lab = Lab::empty("scale");
    lab.repo.write(".gitignore", "target/\n");
    make_files(lab.repo.root());
    // In the index without an object for each.
    lab.repo.git(["add", "--all", "--intent-to-add", "."]);
    let_stamps_settle(&lab.repo.path(".git/index"));
    lab.configure(&[("far", &lab.unix_url("nobody"))]);
    let all = FILES as u64 + 1;

    let client = lab.client();
    assert_eq!(hashed(&client), (all, all));
    // A watch for each directory with files, the few above, those of git's, and none for what is ignored.
    let watches = client.watches();
    assert!((DIRS..DIRS + 100).contains(&(watches - DIRS / 16)), "{watches} watches");
    client.terminate();

    let client = lab.client();
    assert_eq!(hashed(&client), (0, all));
    // The system counts the bytes, too.
    let io = client.proc_text("io");
    let read: usize = io
        .lines()
        .find_map(|line| line.strip_prefix("rchar: ")?.parse().ok())
        .expect("the system counts what is read");
    assert!(read < FILES * FILE_BYTES / 2, "{read} bytes were read");
    client.terminate();
}
