//! Tests that cannot run on this machine say so, loudly.

use std::fs::OpenOptions;
use std::io::Write;

/// Skips that may happen, one per line, each as its output line starts: `SKIP name`. Any other skip is a failure: a
/// suite that quietly shrinks is worse than one that fails.
const ALLOWED: &str = include_str!("../skips.allowed");

/// Reports that test `name` does not run here. The line goes to the real stderr, which the test harness does not
/// capture, and to the file named by `GITSYNC_SKIPS`.
///
/// # Panics
/// If `tests/skips.allowed` does not list `name`.
#[track_caller]
pub fn skip(name: &str, reason: &str) {
    let line = format!("SKIP {name}: {reason}\n");
    std::io::stderr().write_all(line.as_bytes()).expect("stderr is open");
    if let Some(file) = std::env::var_os("GITSYNC_SKIPS") {
        let mut file =
            OpenOptions::new().create(true).append(true).open(&file).expect("GITSYNC_SKIPS can be opened");
        file.write_all(line.as_bytes()).expect("GITSYNC_SKIPS can be written");
    }
    let known = ALLOWED.lines().any(|allowed| allowed.strip_prefix("SKIP ") == Some(name));
    assert!(known, "tests/skips.allowed does not list `SKIP {name}`");
}
