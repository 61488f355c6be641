//! A server whose disk is full.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use gitsync_tests::event::Standing;
use gitsync_tests::lab::Lab;
use gitsync_tests::process::{self, PATIENCE};
use gitsync_tests::skip::skip;

const MIB: u64 = 1 << 20;

/// A small file system of its own, until it is dropped.
struct Small(PathBuf);

impl Small {
    /// `None` where nobody may mount.
    fn mount(at: &Path, mib: u64) -> Option<Self> {
        fs::create_dir_all(at).expect("the sandbox is writable");
        let size = format!("size={mib}m,mode=700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output();
        mounted.ok().filter(|output| output.status.success())?;
        Some(Self(at.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // At once for whoever looks there, and for good when the last program has left it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_file_that_does_not_fit_travels_once_and_again_when_there_is_room() {
    let name = "a_file_that_does_not_fit_travels_once_and_again_when_there_is_room";
    let lab = Lab::new("disk-full");
    let url = lab.embedded("near");
    let Some(_small) = Small::mount(&lab.server_root("near"), 40) else {
        return skip(name, "a small file system cannot be mounted here");
    };
    lab.configure(&[("near", &url)]);
    let client = lab.client();
    lab.assert_converges(&client, &["near"]);
    let foreign = lab.workspace("near").join("foreign");
    fs::write(&foreign, vec![1; 28 * MIB as usize]).expect("there is room for it");

    let mark = client.mark();
    let noise: Vec<u8> =
        (0..16 * MIB as u32 / 4).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    lab.repo.write("big", noise);
    let tries = |events: &[gitsync_tests::event::Event]| {
        let retrying = events[mark..]
            .iter()
            .filter(|e| e.is("state", "app@near"))
            .filter(|e| e.text("to") == Some("retrying"));
        retrying.count()
    };
    client.wait_until("some tries", PATIENCE, |events| (tries(events) >= 4).then_some(()));
    let errors = client.since(mark, "error", "app@near");
    assert!(errors.iter().all(|e| e.text("code") == Some("disk-full")), "{errors:?}");
    // What fits goes on.
    lab.repo.write("README.md", "# small\n");
    process::poll_until("the small edit to arrive", PATIENCE, || {
        (fs::read(lab.workspace("near").join("README.md")).ok()? == b"# small\n").then_some(())
    });
    client.wait_until("it to be told", PATIENCE, |events| {
        (Standing::of(events, "app@near").state == "retrying").then_some(())
    });

    fs::remove_file(&foreign).expect("it is ours");
    lab.assert_converges(&client, &["near"]);
    let sent: u64 = client.since(mark, "acked", "app@near").iter().map(|ack| ack.number("wire_bytes")).sum();
    assert!(sent < 3 * 16 * MIB, "{sent} bytes were sent for a file of 16 MiB:\n{}", client.story());
}
