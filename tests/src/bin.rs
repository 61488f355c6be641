//! Where the built programs are.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// The user's program.
pub fn client() -> PathBuf {
    program("gitsync-tui")
}

/// The program that listens for patches.
pub fn server() -> PathBuf {
    program("gitsync-server")
}

/// A `gitsync-server` that forgets some deletes: what the suite must notice (`server/examples`).
pub fn forgetful_server() -> PathBuf {
    program("examples/forgetful")
}

/// True if `gitsync-server serve` takes this option. Tests of what only some versions can do ask first.
pub fn server_takes(option: &str) -> bool {
    static HELP: OnceLock<String> = OnceLock::new();
    let help = HELP.get_or_init(|| {
        let output = Command::new(server()).args(["serve", "--help"]).output().expect("the server can start");
        String::from_utf8_lossy(&output.stdout).into_owned()
    });
    help.contains(option)
}

/// Programs lie beside the directory of the running test executable, `target/PROFILE/deps`.
/// `GITSYNC_BIN_DIR` names another place, to test programs that were built elsewhere.
fn program(name: &str) -> PathBuf {
    let dir = std::env::var_os("GITSYNC_BIN_DIR").map_or_else(beside_test_executable, PathBuf::from);
    let path = dir.join(name);
    assert!(
        path.is_file(),
        "{} is missing: run `cargo test --workspace`, which builds it first",
        path.display()
    );
    path
}

fn beside_test_executable() -> PathBuf {
    let exe = std::env::current_exe().expect("a running test knows its executable");
    exe.ancestors().nth(2).expect("test executables lie in target/PROFILE/deps").to_path_buf()
}
