//! The script behind `docs/methods.md` runs anywhere, and its last row keeps P2.

use std::path::Path;
use std::process::Command;

use gitsync_tests::bin;
use gitsync_tests::git;
use gitsync_tests::lab::Sandbox;

#[test]
fn the_comparison_of_methods_is_reproducible() {
    let sandbox = Sandbox::new("methods");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/methods.sh");
    let mut compare = Command::new("bash");
    git::hermetic(&mut compare, &sandbox.path("home"));
    let programs = bin::client();
    let output = compare
        .arg(script)
        .arg(programs.parent().expect("programs lie in a directory"))
        .env("TMPDIR", sandbox.path(""))
        .output()
        .expect("bash is installed");
    let (table, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{table}\n{errors}", output.status);
    let rows: Vec<Vec<&str>> = table.lines().map(|row| row.split('|').map(str::trim).collect()).collect();
    assert_eq!(rows.len(), 8, "a head, a line and six ways:\n{table}");
    assert!(rows.iter().all(|row| row.len() == rows[0].len()), "{table}");
    let ours = rows.last().expect("there are eight");
    assert_eq!(ours[1], "gitsync");
    let files: Vec<&str> = ours[3..].iter().step_by(2).copied().filter(|cell| !cell.is_empty()).collect();
    assert_eq!(files, ["1", "0", "50", "50"], "each changed file once:\n{table}");
}
