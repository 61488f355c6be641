//! H01 to H39: names. What is malformed is refused and nothing is written; what is only odd is taken, byte
//! for byte.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Mutex;

use gitsync_core::wire::proto::RefusalCode;

use crate::client::{Answer, Edit, delete, file, link, release};
use crate::lab::{Lab, WORKSPACE};
use crate::{cases, skip, tree};

cases! {
    h03_a_workspace_that_leads_out,
    h21_a_gitmodules_that_is_a_link,
    h25_control_bytes_come_back_escaped,
    h28_twins_by_case,
    h29_twins_by_normalisation,
    h30_a_file_that_is_also_a_directory,
    h31_a_path_there_twice,
    h32_paths_out_of_order,
    h33_a_link_that_is_also_a_directory,
    h35_a_kept_file_that_is_none,
    h36_a_put_takes_no_bytes_of_a_foreign_file,
    h37_a_delete_of_a_path_never_sent,
    h38_a_directory_that_holds_ignored_files,
    h39_a_file_below_an_ignored_directory,
}

const ROWS_AT_ONCE: usize = 6;

/// Paths of one case: each refused in whatever change it comes, or each taken.
pub struct Row {
    pub id: &'static str,
    refused: Vec<Vec<u8>>,
    taken: Vec<Vec<u8>>,
}

fn refused<const N: usize>(id: &'static str, paths: [&[u8]; N]) -> Row {
    Row { id, refused: paths.map(<[u8]>::to_vec).into(), taken: Vec::new() }
}

fn taken<const N: usize>(id: &'static str, paths: [&[u8]; N]) -> Row {
    refused(id, []).but_taken(paths)
}

impl Row {
    fn but_taken<const N: usize>(self, paths: [&[u8]; N]) -> Self {
        Self { taken: paths.map(<[u8]>::to_vec).into(), ..self }
    }
}

pub fn table() -> Vec<Row> {
    let long_name = [b'n'; 256];
    // Sixteen components of 255 bytes and their slashes are 4,096 bytes.
    let long_path = [&[&long_name[1..], b"/"].concat().repeat(16), &b"x"[..]].concat();
    let deep = |depth| vec![&b"d"[..]; depth].join(&b'/');
    vec![
        refused("H01", [b"../x", b"..", b"../root/neighbour/file", b"../../outside/file"]),
        refused("H02", [b"a/../../x", b"a/..", b"a/../b"]),
        refused("H03", [b"/etc/x", b"/", b"//x"]),
        refused("H04", [b""]),
        refused("H05", [b"a//b", b"a/", b"/a"]),
        refused("H06", [b".", b"a/./b", b"./a", b"a/."]),
        refused("H07", [b"a\0b", b"\0", b"a\0/../b"]),
        refused("H08", [&long_name, &[b"d/", &long_name[..]].concat()]).but_taken([&long_name[1..]]),
        refused("H09", [&long_path]),
        refused("H10", [&deep(129), &deep(2000)]).but_taken([&deep(128)]),
        refused("H11", [b".git/config", b".git/hooks/pre-commit", b"sub/.git/config"]),
        refused("H12", [b".GIT/hooks/pre-commit", b".Git/config"]),
        refused("H13", [b"sub/.gIt/x"]),
        refused("H14", [b".git", b"sub/.git"]),
        refused("H15", [b".GIT", b"a/b/.git"]),
        refused("H16", [b"git~1/x", b"GIT~2", b"sub/git~1"]),
        refused("H17", [b".git /x", b".git./x", b".git..", b".git . /x"]),
        refused("H18", [b".git::$INDEX_ALLOCATION/x", b".git:foo"]),
        refused(
            "H19",
            [
                ".g\u{200c}it/x".as_bytes(),
                ".git\u{200e}/x".as_bytes(),
                "\u{206e}.git".as_bytes(),
                "sub/.gi\u{feff}t/x".as_bytes(),
            ],
        ),
        refused("H20", [b".git\\hooks\\x", b"a\\.git\\b", b"a/.GIT\\x"]).but_taken([
            b"a\\..\\b",
            b"back\\slash",
            b"..\\x",
        ]),
        taken("H22", [b"CON", b"aux.c", b"COM1", "COM\u{b9}".as_bytes(), b"nul ", b"dots..."]),
        taken("H23", [b"c:x", b"C:\\x", b"\\\\?\\x"]),
        taken("H24", [b"return\r", b"d\r/x\r"]),
        taken("H26", [b"\xff\xfe", b"half\xc3", b"d\x80/\xed\xa0\x80"]),
        taken(
            "H27",
            [b"-rf", b"--help", b":(glob)x", b"*", b"?", b"[a]", b"--exec=x/-", b":!x", b"~", b"$(x)"],
        ),
        refused(
            "H34",
            [
                b".git/gitsync/stage/1/u0",
                b".git/gitsync/manifest",
                b".git/gitsync/log",
                b".GIT/gitsync/checkpoint",
            ],
        )
        // Where our own names are not ours they are anybody's.
        .but_taken([b"stage/1/u0", b"d-aside-0", b"manifest", b"gitsync/epoch"]),
        refused(
            "H35",
            [b".git/gitsync", b".git/gitsync/recovery/x", b".git/gitsync/epoch", b".git/gitsync/id"],
        )
        .but_taken([b"recovery/x", b"id.new"]),
    ]
}

#[test]
fn every_name_is_refused_or_taken() {
    let rows = Mutex::new(table());
    let next = || rows.lock().expect("nothing panics while it is held").pop();
    // Nearly all of it is waiting for the disk while sessions open.
    std::thread::scope(|scope| {
        for _ in 0..ROWS_AT_ONCE {
            scope.spawn(|| {
                while let Some(row) = next() {
                    row.check();
                }
            });
        }
    });
}

impl Row {
    fn check(&self) {
        let lab = Lab::new();
        for path in &self.refused {
            let name = format!("{}: {}", self.id, path.escape_ascii());
            // Whatever is to happen to the path.
            for edit in [file(path, "x"), link(path, "../outside/file"), delete(path)] {
                let refusal = lab.session().refuses(&[edit]);
                assert_eq!((refusal.generation, refusal.code()), (0, RefusalCode::Protocol), "{name}");
            }
        }
        if let Some(path) = self.refused.first() {
            refuse_whole(&lab, &[file(path, "x")]);
        }
        let edits: Vec<Edit> =
            self.taken.iter().map(|path| file(path, [b"in ", &path[..]].concat())).collect();
        if !edits.is_empty() {
            lab.session().takes(&edits);
        }
        for path in &self.taken {
            let at = lab.path(path);
            let name = path.rsplit(|b| *b == b'/').next().expect("there is a last part");
            let beside = tree::names(at.parent().expect("it is in the workspace"));
            assert!(beside.iter().any(|there| there == name), "{}: {}", self.id, path.escape_ascii());
        }
        lab.check();
    }
}

/// The first name a client sends is that of its workspace.
fn h03_a_workspace_that_leads_out() {
    let lab = Lab::new();
    symlink("../outside/dir", lab.root().join("linked")).expect("a new link");
    let names = [
        "",
        ".",
        "..",
        "../outside",
        "../root/neighbour",
        "app/../neighbour",
        "app/",
        "/",
        "/tmp",
        ".git",
        ".GIT",
        "linked",
        "app\0",
        "app\n",
        "..\\outside",
        "app/.git",
    ];
    let before = tree::names(&lab.root());
    for name in names {
        let refusal = lab.try_session(name).expect_err(name);
        assert_eq!(refusal.generation, 0, "{name:?}");
        assert!(lab.greeted(name).list_kept(name).is_none(), "{name:?}");
    }
    assert_eq!(tree::names(&lab.root()), before, "no workspace was made");
    lab.check();
}

/// Git would read the modules' urls through it; every spelling some file system takes for the name counts.
fn h21_a_gitmodules_that_is_a_link() {
    let lab = Lab::new();
    let spellings = [
        ".gitmodules",
        ".GITMODULES",
        "sub/.gitModules",
        "gitmod~1",
        "GITMOD~4",
        "gi7eba~1",
        "sub/GI7EBA~9",
        ".gitmodules ",
        ".gitmodules.",
        ".gitmodules::$DATA",
        ".git\u{200c}modules",
        "\u{feff}.gitmodules",
    ];
    let not_refused: Vec<&str> = spellings
        .into_iter()
        .filter(|path| {
            let mut session = lab.session();
            session.whole(&[], delete).acked();
            let answer = session.diff(&[link(path, "../outside/file"), file("zz-beside", "x")]);
            let refused = matches!(answer, Answer::Refused(_));
            !refused || tree::exists(&lab.path(path)) || tree::exists(&lab.path("zz-beside"))
        })
        .collect();
    let mut session = lab.session();
    session.whole(&[], delete).acked();
    session.takes(&[".gitmodules", "sub/.gitmodules"].map(|path| file(path, "[submodule]")));
    lab.check();
    assert_eq!(not_refused, [""; 0], "taken as links");
}

fn h25_control_bytes_come_back_escaped() {
    let lab = Lab::new();
    let odd = ["new\nline", "tab\t", "\u{1b}[31mred\u{1b}[0m\u{7}", "\u{202e}txt.exe"];
    let edits: Vec<Edit> = odd.iter().map(|path| file(path, path)).collect();
    lab.session().takes(&edits);
    for edit in &edits {
        let mut session = lab.session();
        session.whole(&edits, delete).acked();
        let twice = [edit.clone(), edit.clone()];
        let messages = session.refuses_as_given(&twice).messages;
        assert!(!messages.is_empty());
        let is_safe = |text: &String| !text.chars().any(|c| c.is_control() || c == '\u{202e}');
        assert!(messages.iter().all(is_safe), "{messages:?}");
    }
    lab.check();
}

fn h28_twins_by_case() {
    twins("H28", "Name", "nAME");
}

fn h29_twins_by_normalisation() {
    twins("H29", "n\u{e9}", "ne\u{301}");
}

/// The first of two names the file system takes for one is written, the other withheld, in one patch and in
/// two.
fn twins(id: &str, one: &str, other: &str) {
    let lab = Lab::new();
    fs::write(lab.path(one), "").expect("a new file");
    let folds = tree::exists(&lab.path(other));
    fs::remove_file(lab.path(one)).expect("a file of ours");
    if !folds {
        return skip(id);
    }
    let (first, second) = if one < other { (one, other) } else { (other, one) };
    let mut session = lab.session();
    session.blocks(&[file(first, "first"), file(second, "second")], &[second]);
    assert_eq!(fs::read(lab.path(first)).expect("the first is there"), b"first");
    session.blocks(&[file(second, "second")], &[second]);
    assert_eq!(fs::read(lab.path(first)).expect("the first is there"), b"first");
    lab.check();
}

fn h30_a_file_that_is_also_a_directory() {
    let lab = Lab::new();
    let both = [file("a", "file"), file("a/b", "below it")];
    let refusal = lab.session().refuses(&both);
    assert_eq!(refusal.code(), RefusalCode::PatchInvalid);
    refuse_whole(&lab, &both);
    lab.check();
}

fn h31_a_path_there_twice() {
    let lab = Lab::new();
    lab.session().refuses(&[file("a", "one"), file("a", "two")]);
    lab.session().refuses(&[file("a", "one"), delete("a")]);
    refuse_whole(&lab, &[file("a", "one"), file("a", "two")]);
    lab.check();
}

fn h32_paths_out_of_order() {
    let lab = Lab::new();
    lab.session().refuses_as_given(&[file("b", "b"), file("a", "a")]);
    // In the order of bytes, not of components.
    lab.session().refuses_as_given(&[file("a-b", "1"), file("a/c", "2")]);
    lab.check();
}

fn h33_a_link_that_is_also_a_directory() {
    let lab = Lab::new();
    let to_outside = lab.outside("dir");
    let target = to_outside.to_str().expect("a plain path");
    let both = [link("d", target), file("d/x", "through the link")];
    assert_eq!(lab.session().refuses(&both).code(), RefusalCode::PatchInvalid);
    refuse_whole(&lab, &both);
    // One after the other: the link is there when the file comes.
    let mut session = lab.session();
    session.takes(&[link("d", target)]);
    assert_eq!(session.refuses(&[file("d/x", "through the link")]).code(), RefusalCode::PatchInvalid);
    // The honest way to the same end.
    session.takes(&[delete("d"), file("d/x", "in a directory")]);
    assert!(lab.path("d").symlink_metadata().expect("it is there").is_dir());
    lab.check();
}

fn refuse_whole(lab: &Lab, edits: &[Edit]) {
    let before = lab.files();
    lab.session().whole(edits, delete).refused();
    before.assert_same(&lab.files(), "a refused patch: the workspace");
}

/// The one thing a server gives back is what it kept, by the names it gave itself.
fn h35_a_kept_file_that_is_none() {
    let lab = Lab::new();
    fs::write(lab.path("p"), "foreign").expect("a new file");
    lab.session().takes(&[file("p", "ours")]);
    let mut session = lab.greeted(WORKSPACE);
    let listed = session.list_kept(WORKSPACE).expect("the owner may see what is kept");
    let [kept] = &listed[..] else { panic!("one file is kept: {listed:?}") };
    let id = &kept.id;
    let lies = [
        "",
        ".",
        "..",
        "/",
        "/etc/passwd",
        "../epoch",
        "../../config",
        "../../../p",
        "\0",
        "*",
        "p",
        &format!("{id}/p"),
        &format!("{id}/"),
        &format!("./{id}"),
        &format!("{id}\0"),
        &format!("{id}/../../epoch"),
        &format!("{id} "),
        &format!("{id}/../../../../../../outside/file"),
    ]
    .map(str::to_owned);
    for lie in lies {
        assert_eq!(session.fetch_kept(&lie), None, "{lie:?}");
    }
    assert_eq!(session.fetch_kept(id).as_deref(), Some(&b"foreign"[..]));
    lab.check();
}

/// The shape of a rename whose source is not ours: no content comes, and the source goes.
fn h36_a_put_takes_no_bytes_of_a_foreign_file() {
    let lab = Lab::new();
    fs::create_dir(lab.path("build")).expect("a new directory");
    fs::write(lab.path("build/out"), "an artefact").expect("a new file");
    let mut session = lab.session();
    let renamed = [delete("build/out"), file("taken", "an artefact").without_content()];
    let refusal = session.refuses(&renamed);
    assert_eq!(refusal.code(), RefusalCode::ContentMissing);
    // Nor those of a file outside, or of the clone's own.
    let head = fs::read(lab.path(".git/HEAD")).expect("a clone has a HEAD");
    session.refuses(&[file("taken", head).without_content()]);
    let secret = fs::read(lab.outside("file")).expect("the file outside is there");
    session.refuses(&[file("taken", secret).without_content()]);
    lab.check();
}

/// A delete is a wish about what is ours. In a step it is no error, since a session after a drift may name
/// such a path; in a whole patch only what the server asked about may be answered.
fn h37_a_delete_of_a_path_never_sent() {
    let lab = Lab::new();
    fs::write(lab.path("artefact"), "foreign").expect("a new file");
    fs::create_dir(lab.path("dir")).expect("a new directory");
    fs::write(lab.path("dir/artefact"), "foreign").expect("a new file");
    let before = lab.files();
    let mut session = lab.session();
    for path in ["artefact", "dir", "dir/artefact", "nothing", "nothing/here"] {
        for edit in [delete(path), release(path)] {
            let ack = session.diff(&[edit]).acked();
            assert_eq!((ack.deleted, ack.written), (0, 0), "{path}");
        }
    }
    before.assert_same(&lab.files(), "what was never sent");
    session.whole_answering(&[], |_| vec![delete("artefact")]).refused();
    before.assert_same(&lab.files(), "what was never sent");
    lab.check();
}

fn h38_a_directory_that_holds_ignored_files() {
    let lab = Lab::new();
    let mut session = lab.session();
    session.takes(&[file("d/a", "ours"), file("d/sub/b", "ours"), file("e/c", "ours")]);
    fs::create_dir(lab.path("d/build")).expect("a new directory");
    fs::write(lab.path("d/build/out"), "an artefact").expect("a new file");
    let ack = session.takes(&[delete("d/a"), delete("d/sub/b"), delete("e/c")]);
    assert_eq!(ack.deleted, 3);
    assert_eq!(fs::read(lab.path("d/build/out")).expect("the artefact stays"), b"an artefact");
    assert_eq!(tree::names(&lab.path("d")), [b"build"]);
    assert!(!tree::exists(&lab.path("e")), "a directory we emptied goes");
    lab.check();
}

fn h39_a_file_below_an_ignored_directory() {
    let lab = Lab::new();
    fs::create_dir(lab.path("build")).expect("a new directory");
    fs::write(lab.path("build/out"), "an artefact").expect("a new file");
    symlink("../../outside/dir", lab.path("linked")).expect("a new link");
    symlink("build", lab.path("inner")).expect("a new link");
    let mut session = lab.session();
    session.takes(&[file("build/kept.txt", "ours")]);
    session.blocks(
        &[file("inner/new", "x"), file("linked/new", "x"), file("linked/sub/x", "x")],
        &["inner/new", "linked/new", "linked/sub/x"],
    );
    assert_eq!(tree::names(&lab.path("build")), [&b"kept.txt"[..], b"out"]);
    lab.check();
}
