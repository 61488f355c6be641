//! The script we hand to users computes the id the programs show.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use gitsync_tests::git::{self, Repo};
use gitsync_tests::lab::Lab;

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/patch-id.sh")
}

fn run(lab: &Lab, args: &[&OsStr], stdin: &[u8]) -> Vec<u8> {
    let mut command = Command::new("sh");
    git::hermetic(&mut command, lab.repo.home());
    command.arg(script()).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("a shell can be run");
    child.stdin.take().expect("stdin is piped").write_all(stdin).expect("the list is short");
    let output = child.wait_with_output().expect("a child of ours can be waited for");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn id_of(lab: &Lab) -> String {
    let output = run(lab, &[lab.repo.root().as_os_str()], b"");
    String::from_utf8(output).expect("ids are ASCII").trim_end().to_owned()
}

fn odd_repository(name: &str) -> Lab {
    let lab = Lab::new(name);
    let repo = &lab.repo;
    let odd: [&[u8]; 12] = [
        b"new\nline",
        b"ends in newline\n",
        b"bad-\xff",
        b"-dash",
        b"100% \\n",
        b"\"quoted\"",
        b"back\\slash",
        b"tab\t",
        b"cr\r",
        b" space ",
        "caf\u{e9}".as_bytes(),
        b"*",
    ];
    for (n, name) in odd.iter().enumerate() {
        let name = Path::new(OsStr::from_bytes(name));
        repo.write(name, format!("{n}\r\n"));
        repo.symlink(name, Path::new("src").join(name));
    }
    repo.git(["config", "core.autocrlf", "true"]);
    repo.write(".gitattributes", "*.lf eol=lf\n*.id ident filter=none\n*.u16 working-tree-encoding=UTF-16\n");
    repo.write("a.lf", "dos\r\n");
    repo.write("b.id", "$Id$\n");
    repo.write("c.u16", "not UTF-16");
    repo.write("not-the-owner", "x");
    repo.chmod("not-the-owner", 0o655);
    repo.write("only-the-owner", "x");
    repo.chmod("only-the-owner", 0o744);
    repo.symlink("target\n", "ends-in-newline");
    repo.write("forced.o", "tracked although ignored");
    repo.git(["add", "-f", "forced.o"]);
    repo.write("junk.o", "ignored");
    repo.write("sub/git~1/x", "refused");
    repo.rename("notes", "moved");
    repo.git(["add", "-A", "src", "moved"]);
    repo.rename("src/deep", "src/deeper");
    repo.symlink("deeper", "src/deep");
    repo.remove("README.md");
    Repo::init(&repo.path("nested"), repo.home()).write("inside", "x");
    fs::create_dir(repo.path("hollow")).expect("the sandbox is writable");
    lab
}

#[test]
fn the_script_agrees_with_the_oracle_on_an_odd_repository() {
    let lab = odd_repository("script-odd");
    assert_eq!(id_of(&lab), lab.expect().id.0);
}

#[test]
fn the_script_writes_nothing_into_the_repository() {
    let lab = odd_repository("script-reads");
    let before = gitsync_tests::tree::walk_with_git(lab.repo.root());
    id_of(&lab);
    assert_eq!(gitsync_tests::tree::walk_with_git(lab.repo.root()), before);
}

#[test]
fn the_script_agrees_on_an_empty_repository_and_on_sha256() {
    let empty = Lab::empty("script-empty");
    assert_eq!(id_of(&empty), empty.expect().id.0);
    let sha256 = Lab::empty_sha256("script-sha256");
    sha256.repo.write("a/b", "x\n");
    assert_eq!(id_of(&sha256), sha256.expect().id.0);
}

#[test]
fn where_the_disks_execute_bits_mean_nothing_the_index_decides() {
    let lab = Lab::empty_without_file_mode("script-filemode");
    lab.repo.write("tracked", "x");
    lab.repo.git(["add", "tracked"]);
    lab.repo.git(["update-index", "--chmod=+x", "tracked"]);
    lab.repo.write("new", "x");
    lab.repo.chmod("new", 0o755);
    assert_eq!(id_of(&lab), lab.expect().id.0);
}

#[test]
fn a_servers_copy_is_checked_by_the_clients_list() {
    let lab = odd_repository("script-server");
    lab.configure(&[("near", &lab.embedded("near"))]);
    let ended = lab.once();
    assert_eq!(ended.code(), 0, "{ended}");
    fs::write(lab.workspace("near").join("built.o"), "foreign").expect("the server's disk is writable");
    let list = run(&lab, &[OsStr::new("--list"), lab.repo.root().as_os_str()], b"");
    let id = run(&lab, &[OsStr::new("--plain"), lab.workspace("near").as_os_str()], &list);
    assert_eq!(String::from_utf8_lossy(&id).trim_end(), lab.expect().id.0);
}
