//! Bytes, names and modes arrive as they are, whatever they are (P1).

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use gitsync_tests::git::Repo;
use gitsync_tests::lab::Lab;
use gitsync_tests::process::PATIENCE;
use gitsync_tests::skip::skip;

const ODD_NAMES: &[&[u8]] = &[
    b"with space",
    b" leading",
    b"trailing ",
    b"-dash",
    b"--help",
    b"new\nline",
    b"cr\r",
    b"tab\t",
    b"esc\x1b[31m",
    b"bell\x07",
    b"back\\slash",
    b"\"quoted\"",
    b"'single'",
    b"*",
    b"?",
    b"[a]",
    b"#hash",
    b"!bang",
    b"~",
    b"$HOME",
    b"%s",
    b"...",
    b"CON",
    b"c:x",
    b":(glob)x",
    b"bad-\xff\xfe",
    b"half-\xc3",
    "caf\u{e9}".as_bytes(),
    "cafe\u{301}".as_bytes(),
    "\u{202e}reversed".as_bytes(),
    "\u{1f980}".as_bytes(),
];

#[track_caller]
fn assert_mirrors(lab: &Lab) {
    lab.configure(&[("near", &lab.embedded("near"))]);
    let ended = lab.once();
    assert_eq!(ended.code(), 0, "{ended}");
    let expected = lab.expect();
    assert_eq!(ended.summary_of("app@near", "patch_id"), Some(expected.id.0.as_str()), "{ended}");
    lab.assert_equal("near", &expected, &[]);
}

/// Commits, so that git's index holds converted contents whose ids differ from the disk's.
#[test]
fn line_ends_and_filters_play_no_part() {
    let lab = Lab::empty("raw-bytes");
    let repo = &lab.repo;
    repo.git(["config", "core.autocrlf", "true"]);
    repo.git(["config", "filter.upper.clean", "tr a-z A-Z"]);
    repo.git(["config", "filter.upper.smudge", "tr A-Z a-z"]);
    repo.write(
        ".gitattributes",
        "*.lf text eol=lf\n*.crlf text eol=crlf\n*.up filter=upper\n*.id ident\n*.bin binary\n*.u16 working-tree-encoding=UTF-16\n",
    );
    for name in ["a.txt", "b.lf", "c.crlf", "d.up", "e.bin", "f"] {
        repo.write(format!("dos-{name}"), "one\r\ntwo\r\n");
        repo.write(format!("unix-{name}"), "one\ntwo\n");
        repo.write(format!("mixed-{name}"), "one\r\ntwo\n\rthree\r");
    }
    repo.write("g.id", "$Id: something $\n");
    repo.write("h.u16", b"\xff\xfea\0\n\0");
    repo.commit_all("first");
    assert_mirrors(&lab);
}

#[test]
fn odd_names_arrive() {
    let lab = Lab::empty("odd-names");
    if !takes_any_bytes(&lab) {
        return skip("odd_names_arrive", "the file system takes only UTF-8 names");
    }
    for (n, name) in ODD_NAMES.iter().enumerate() {
        let name = Path::new(OsStr::from_bytes(name));
        lab.repo.write(name, format!("{n}\n"));
        lab.repo.write(Path::new("dirs").join(name).join(name), format!("below {n}\n"));
        lab.repo.symlink(name, Path::new("dirs").join(name).join("link"));
    }
    assert_mirrors(&lab);
}

fn takes_any_bytes(lab: &Lab) -> bool {
    fs::write(lab.path(OsStr::from_bytes(b"probe-\xff")), "").is_ok()
}

#[test]
fn names_that_differ_only_in_case_are_two_files() {
    let lab = Lab::empty("case-twins");
    lab.repo.write("name", "lower\n");
    lab.repo.write("NAME", "upper\n");
    if fs::read(lab.repo.path("name")).expect("just written") == b"upper\n" {
        return skip("names_that_differ_only_in_case_are_two_files", "the file system folds case");
    }
    assert_mirrors(&lab);
}

#[test]
fn long_names_and_deep_paths_arrive() {
    let lab = Lab::empty("long");
    lab.repo.write("x".repeat(255), "255 bytes\n");
    lab.repo.write(["d"; 100].join("/"), "100 levels\n");
    lab.repo.write(vec!["n".repeat(200); 10].join("/"), "2,000 bytes\n");
    lab.repo.symlink("t".repeat(4000), "far");
    assert_mirrors(&lab);
}

#[test]
fn empty_files_and_all_modes_arrive() {
    let lab = Lab::empty("modes");
    for mode in [0o644, 0o755, 0o600, 0o700, 0o655, 0o744, 0o444, 0o555, 0o777] {
        let name = format!("mode-{mode:o}");
        lab.repo.write(&name, if mode % 2 == 0 { "" } else { "x" });
        lab.repo.chmod(&name, mode);
    }
    assert_mirrors(&lab);
}

#[test]
fn what_is_no_file_or_link_is_left_out() {
    let lab = Lab::new("others");
    Repo::init(&lab.repo.path("nested"), lab.repo.home()).write("inside", "another repository's\n");
    lab.repo.write("sub/git~1/x", "a name git refuses\n");
    fs::create_dir_all(lab.repo.path("hollow/dir")).expect("the sandbox is writable");
    let _socket =
        std::os::unix::net::UnixListener::bind(lab.repo.path("socket")).expect("sockets can be made");
    lab.repo.remove("README.md");
    assert_mirrors(&lab);
    assert!(!lab.workspace("near").join("hollow").exists());
}

/// Git looks into another repository only as long as it tracks files there.
#[test]
fn a_nested_repository_is_left_alone_once_git_tracks_nothing_in_it() {
    let lab = Lab::new("nested-left");
    lab.repo.write("inner/f", "1\n");
    lab.repo.commit_all("inner");
    Repo::init(&lab.repo.path("inner"), lab.repo.home());
    lab.configure(&[("near", &lab.embedded("near"))]);
    let client = lab.client();
    lab.assert_converges(&client, &["near"]);
    lab.repo.git(["rm", "-q", "--cached", "inner/f"]);
    lab.repo.write("inner/f", "no longer ours\n");
    let expected = lab.expect();
    assert!(!expected.files.contains_key(Path::new("inner/f")), "git agrees");
    client.wait_acked("app@near", &expected.id, PATIENCE);
    lab.assert_equal("near", &expected, &["inner/f"]);
}

#[test]
fn ignored_but_tracked_files_arrive() {
    let lab = Lab::new("forced");
    lab.repo.write("forced.o", "tracked although ignored\n");
    lab.repo.git(["add", "-f", "forced.o"]);
    lab.repo.write("junk.o", "ignored\n");
    assert_mirrors(&lab);
    assert!(lab.workspace("near").join("forced.o").is_file());
    assert!(!lab.workspace("near").join("junk.o").exists());
}

#[test]
fn ignore_rules_of_all_kinds_hold() {
    let lab = Lab::new("ignore-kinds");
    lab.repo.write(".git/info/exclude", "local-*\n");
    lab.repo.write("src/.gitignore", "*.gen\n!kept.gen\n/deep/only-here\n");
    for name in ["local-1", "src/a.gen", "src/kept.gen", "src/deep/only-here", "only-here", "src/deep/b.gen"]
    {
        lab.repo.write(name, name);
    }
    lab.repo.write("vendor/.gitignore", "*\n!.gitignore\n");
    lab.repo.write("vendor/x", "x");
    assert_mirrors(&lab);
}

/// The paths of a symlinked directory are not part of the tree, even while git still tracks them.
#[test]
fn a_tracked_directory_replaced_by_a_link_is_a_link() {
    let lab = Lab::new("dir-to-link");
    lab.repo.rename("src", "elsewhere");
    lab.repo.symlink("elsewhere", "src");
    assert_mirrors(&lab);
    assert!(lab.workspace("near").join("src").is_symlink());
}

/// Links are copied, never followed: not on the client and not on the server.
#[test]
fn links_out_of_the_tree_stay_links() {
    let lab = Lab::new("links-out");
    fs::write(lab.path("secret"), "outside").expect("the sandbox is writable");
    lab.repo.symlink(lab.path("secret"), "absolute");
    lab.repo.symlink("../secret", "relative");
    lab.repo.symlink("..", "up");
    lab.repo.symlink("self", "self");
    assert_mirrors(&lab);
    assert_eq!(fs::read(lab.path("secret")).expect("still there"), b"outside");
}
