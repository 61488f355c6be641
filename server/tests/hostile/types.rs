//! H40 to H45 and H50 to H60: what is at a path, there and here: links, devices, hard links, mounts, modes.

use std::fs::{self, File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use gitsync_core::wire::proto::RefusalCode;
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use crate::client::{Answer, Session, delete, executable, file, link, release};
use crate::lab::Lab;
use crate::{cases, skip, tree};

cases! {
    h40_a_link_that_becomes_a_file,
    h41_a_planted_link_where_a_directory_goes,
    h42_links_that_lead_nowhere,
    h43_targets_no_link_can_have,
    h44_a_link_into_the_clone,
    h45_links_through_proc,
    h50_another_file_system_below_a_managed_directory,
    h51_a_fifo_in_the_way,
    h52_a_socket_in_the_way,
    h52_a_device_in_the_way,
    h53_a_hard_link_to_a_file_outside,
    h53_a_managed_file_somebody_linked_outside,
    h54_files_that_cannot_be_moved,
    h55_modes_that_are_none,
    h56_modes_follow_the_umask,
    h57_directories_get_no_mode_from_a_client,
    h58_a_file_where_a_directory_holds_foreign_files,
    h59_a_link_where_a_directory_was,
    h60_a_file_system_without_links,
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("{path:?}: {e}"))
}

fn is_real_dir(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|stat| stat.is_dir())
}

fn h40_a_link_that_becomes_a_file() {
    let lab = Lab::new();
    let mut session = lab.session();
    for target in [text(&lab.outside("file")), "../../outside/file", "/etc/passwd-of-no-machine"] {
        session.takes(&[link("p", target)]);
        session.takes(&[file("p", "a file now")]);
        session.takes(&[link("p", target)]);
        session.takes(&[executable("p", "a program now")]);
        session.takes(&[link("p", target)]);
        session.takes(&[delete("p")]);
        lab.assert_untouched();
    }
    // One the user of the server made: nothing of ours, so it is kept, not followed.
    symlink(lab.outside("file"), lab.path("p")).expect("a new link");
    let ack = session.takes(&[file("p", "a file now")]);
    assert_eq!(ack.kept, ["p"]);
    lab.check();
}

fn h41_a_planted_link_where_a_directory_goes() {
    let lab = Lab::new();
    symlink(lab.outside("dir"), lab.path("d")).expect("a new link");
    symlink("../../outside/dir", lab.path("r")).expect("a new link");
    fs::create_dir(lab.path("real")).expect("a new directory");
    symlink("../../../outside/dir", lab.path("real/d")).expect("a new link");
    let mut session = lab.session();
    let puts = [file("d/x", "x"), link("r/l", "x"), executable("real/d/sub/x", "x")];
    session.blocks(&puts, &["d/x", "r/l", "real/d/sub/x"]);
    // Ours first, and then a link in its place.
    session.takes(&[file("m/x", "ours"), file("m/y", "ours")]);
    fs::rename(lab.path("m"), lab.path("m-away")).expect("a directory of ours");
    symlink(lab.outside("dir"), lab.path("m")).expect("a new link");
    session.blocks(&[file("m/x", "through the link")], &["m/x"]);
    assert!(lab.path("m").is_symlink());
    // What goes, went with the directory.
    let mut session = lab.session();
    session.whole(&[], delete).acked();
    assert_eq!(tree::names(&lab.path("m-away")), [b"x", b"y"]);
    lab.check();
}

fn h42_links_that_lead_nowhere() {
    let lab = Lab::new();
    let longest = "t/".repeat(2047) + "t";
    assert_eq!(longest.len(), 4095);
    lab.session().takes(&[
        link("dangling", "no/such/file"),
        link("loop-a", "loop-b"),
        link("loop-b", "loop-a"),
        link("self", "self"),
        link("up", "../../../../../../../../../../../.."),
        link("odd", b"\xff \n\x1b[31m"),
        link("longest", longest),
    ]);
    lab.check();
}

fn h43_targets_no_link_can_have() {
    let lab = Lab::new();
    let long = "t".repeat(4096);
    let refused =
        [link("l", ""), link("l", &long), link("l", "x").with_size(0), link("l", "x").with_size(1 << 40)];
    for edit in refused {
        assert_eq!(lab.session().refuses(&[edit]).code(), RefusalCode::Protocol);
    }
    // The declared size is a lie, or the target turns out wrong once it is here.
    let wrong = [
        link("l", "a\0b"),
        link("l", "\0"),
        link("l", "").with_size(5),
        link("l", &long).with_size(5),
        link("l", "t".repeat(200_000)).with_size(4095),
    ];
    for edit in wrong {
        let mut session = lab.session();
        session.whole(&[], delete).acked();
        match session.diff(&[edit.clone(), file("zz-beside", "x")]) {
            Answer::Ack(ack) => {
                assert_eq!(ack.refused.len(), 1);
                assert_eq!(ack.refused[0].path, "l");
            }
            other => drop(other.refused()),
        }
        assert!(!tree::exists(&lab.path("l")));
    }
    lab.check();
}

fn h44_a_link_into_the_clone() {
    let lab = Lab::new();
    for (name, target) in [("hooks", ".git/hooks"), ("git", ".git"), ("refs", "./.git/refs/heads")] {
        let below = format!("{name}/x");
        let mut session = lab.session();
        session.whole(&[], release).acked();
        session.takes(&[link(name, target)]);
        session.refuses(&[executable(&below, "#!/bin/sh")]);
        // Released, the link stays and is not ours: nothing but the disk stands in the way now.
        session.takes(&[release(name)]);
        assert_eq!(tree::target(&lab.path(name)), target.as_bytes());
        session.blocks(&[executable(&below, "#!/bin/sh")], &[&below]);
        assert!(lab.path(name).is_symlink());
        lab.assert_untouched();
    }
    lab.check();
}

/// A link of `/proc/self` is the server's own descriptors, whatever directory they have open.
fn h45_links_through_proc() {
    let lab = Lab::new();
    let open = File::open(lab.outside("dir")).expect("a directory");
    // The server runs in this process.
    let magic = format!("/proc/self/fd/{}", open.as_raw_fd());
    assert!(Path::new(&magic).join("f").exists());
    let mut session = lab.session();
    for (name, target) in [("fd", magic.as_str()), ("cwd", "/proc/self/cwd"), ("root", "/proc/self/root")] {
        session.takes(&[link(name, target)]);
        session.takes(&[release(name)]);
        let paths = [format!("{name}/f"), format!("{name}/gitsync-hostile/x")];
        session.blocks(&[file(&paths[0], "x"), file(&paths[1], "x")], &[&paths[0], &paths[1]]);
    }
    for stray in ["f", "gitsync-hostile"] {
        assert!(!Path::new(stray).exists(), "written to the server's working directory");
        assert!(!Path::new("/").join(stray).exists(), "written to the file system's root");
    }
    lab.check();
}

fn h50_another_file_system_below_a_managed_directory() {
    let lab = Lab::new();
    let mut session = lab.session();
    session.takes(&[file("d/m/x", "ours"), file("d/m/sub/y", "ours"), file("d/z", "ours")]);
    let (bound, at) = (lab.outside("dir"), lab.path("d/m"));
    let Some(mount) = Mount::bind(&bound, &at) else { return skip("H50") };
    session.blocks(
        &[file("d/m/x", "changed"), file("d/m/sub/new", "x"), link("d/m/l", "x"), file("d/z", "changed")],
        &["d/m/l", "d/m/sub/new", "d/m/x"],
    );
    lab.assert_untouched();
    // Everything goes; what the mount hides is out of reach, and the mount point stays.
    let mut session = lab.session();
    session.whole(&[], delete).acked();
    session.blocks(&[file("d", "in the mount's way")], &["d"]);
    lab.assert_untouched();
    assert!(is_real_dir(&at));
    drop(mount);
    assert_eq!(read(&lab.path("d/m/x")), b"ours");
    lab.check();
}

/// A directory mounted on another for as long as this lives.
struct Mount(PathBuf);

impl Mount {
    fn bind(from: &Path, at: &Path) -> Option<Self> {
        run("mount", &["--bind".as_ref(), from, at]).then(|| Self(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a descriptor of the server may still be open in there.
        run("umount", &["-l".as_ref(), &self.0]);
    }
}

/// True if the program is there and succeeds.
fn run(program: &str, args: &[&Path]) -> bool {
    let done = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
    done.is_ok_and(|status| status.success())
}

fn h51_a_fifo_in_the_way() {
    let lab = Lab::new();
    let mut session = lab.session();
    let make = |path: &Path| {
        mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("a new fifo");
    };
    odd_thing_in_the_way(&lab, &mut session, make, FileTypeExt::is_fifo);
}

fn h52_a_socket_in_the_way() {
    let lab = Lab::new();
    let mut session = lab.session();
    let make = |path: &Path| drop(UnixListener::bind(path).expect("a new socket"));
    odd_thing_in_the_way(&lab, &mut session, make, FileTypeExt::is_socket);
}

fn h52_a_device_in_the_way() {
    let lab = Lab::new();
    let make = |path: &Path| {
        // The null device.
        mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o600), makedev(1, 3))
    };
    if make(&lab.path("probe")).is_err() {
        return skip("H52");
    }
    let mut session = lab.session();
    odd_thing_in_the_way(
        &lab,
        &mut session,
        |path| make(path).expect("as before"),
        FileTypeExt::is_char_device,
    );
}

/// Something that is neither file nor directory stands at a path, at a managed one, and where a directory
/// goes: it is moved to the recovery store unopened.
fn odd_thing_in_the_way(
    lab: &Lab,
    session: &mut Session,
    make: impl Fn(&Path),
    is_kind: impl Fn(&fs::FileType) -> bool,
) {
    session.takes(&[file("managed", "ours"), file("gone", "ours")]);
    for path in ["new", "managed", "gone", "dir"] {
        let _ = fs::remove_file(lab.path(path));
        make(&lab.path(path));
    }
    let ack =
        session.takes(&[executable("new", "x"), file("managed", "y"), delete("gone"), link("dir/l", "z")]);
    let mut met: Vec<&[u8]> = ack.kept.iter().map(|path| &path[..]).collect();
    met.sort();
    assert_eq!(met, [&b"dir"[..], b"gone", b"managed", b"new"]);
    let kept = lab.kept();
    for path in ["new", "managed", "gone", "dir"] {
        let kept = kept.get(Path::new(path)).unwrap_or_else(|| panic!("{path} is kept"));
        assert!(is_kind(&fs::symlink_metadata(kept).expect("it is kept").file_type()), "{path}");
    }
    lab.check();
}

fn h53_a_hard_link_to_a_file_outside() {
    let mut lab = Lab::new();
    for path in ["replaced", "twin", "target-of-link"] {
        fs::hard_link(lab.outside("file"), lab.path(path)).expect("a new hard link");
    }
    fs::hard_link(lab.outside("dir/f"), lab.path("taken-over")).expect("a new hard link");
    lab.mark();
    let (bytes, taken_over) = (read(&lab.outside("file")), read(&lab.outside("dir/f")));
    let mut session = lab.session();
    session.takes(&[
        file("replaced", "other bytes"),
        executable("twin", &bytes),
        file("taken-over", &taken_over),
        link("target-of-link", "x"),
    ]);
    lab.assert_untouched();
    // The one that was taken over, having the very bytes, is still the outside's inode.
    session.takes(&[executable("taken-over", &taken_over)]);
    lab.assert_untouched();
    session.takes(&[file("taken-over", "other bytes")]);
    session.takes(&[delete("taken-over"), delete("replaced"), delete("twin")]);
    lab.check();
}

fn h53_a_managed_file_somebody_linked_outside() {
    let mut lab = Lab::new();
    let mut session = lab.session();
    session.takes(&[file("a", "a"), file("b", "b"), executable("c", "c")]);
    for name in ["a", "b", "c"] {
        fs::hard_link(lab.path(name), lab.outside(name)).expect("a new hard link");
    }
    lab.mark();
    session.takes(&[executable("a", "a"), file("b", "changed"), file("c", "c")]);
    lab.assert_untouched();
    session.takes(&[delete("a"), delete("b"), delete("c")]);
    lab.check();
}

fn h54_files_that_cannot_be_moved() {
    let lab = Lab::new();
    let mut session = lab.session();
    let ours = ["append", "fixed", "shut/in", "went"];
    session.takes(&ours.map(|path| file(path, "ours")));
    fs::write(lab.path("foreign"), "foreign").expect("a new file");
    let marks = [("append", 'a'), ("fixed", 'i'), ("shut", 'i'), ("went", 'i'), ("foreign", 'i')];
    let fixed: Option<Vec<Fixed>> =
        marks.iter().map(|(path, flag)| Fixed::new(&lab.path(path), *flag)).collect();
    let Some(fixed) = fixed else { return skip("H54") };
    let before = ours.map(|path| tree::Tree::of(&lab.path(path), None));
    session.blocks(
        &[
            file("append", "changed"),
            executable("fixed", "ours"),
            file("foreign", "changed"),
            file("shut/in", "changed"),
            file("shut/new", "new"),
            delete("went"),
        ],
        &["append", "fixed", "foreign", "shut/in", "shut/new", "went"],
    );
    for (path, before) in ours.iter().zip(before) {
        before.assert_same(&tree::Tree::of(&lab.path(path), None), path);
    }
    assert_eq!(read(&lab.path("foreign")), b"foreign");
    drop(fixed);
    lab.check();
}

/// A path nobody can move or write (`i`), or that can only grow (`a`), for as long as this lives.
struct Fixed(PathBuf, char);

impl Fixed {
    fn new(path: &Path, flag: char) -> Option<Self> {
        run("chattr", &[format!("+{flag}").as_ref(), path]).then(|| Self(path.to_owned(), flag))
    }
}

impl Drop for Fixed {
    fn drop(&mut self) {
        run("chattr", &[format!("-{}", self.1).as_ref(), &self.0]);
    }
}

fn h55_modes_that_are_none() {
    let lab = Lab::new();
    let numbers =
        [0, 4, -1, 0o644, 0o666, 0o755, 0o777, 0o4755, 0o6777, 0o100_644, 0o104_755, 0o120_000, 0o120_777];
    for number in numbers {
        let refusal = lab.session().refuses(&[file("f", "x").with_mode(number)]);
        assert_eq!(refusal.code(), RefusalCode::Protocol, "{number:o}");
    }
    lab.check();
}

/// A umask is a process's own, so the server is one: its program.
fn h56_modes_follow_the_umask() {
    for (umask, plain, program) in [("077", 0o600, 0o700), ("027", 0o640, 0o750), ("000", 0o644, 0o755)] {
        let lab = Lab::with_umask(umask);
        let mut session = lab.session();
        session.takes(&[file("f", "x"), executable("p", "y"), executable("d/p", "z")]);
        let modes = |paths: [&str; 3]| paths.map(|path| tree::permissions(&lab.path(path)));
        assert_eq!(modes(["f", "p", "d/p"]), [plain, program, program], "created under {umask}");
        session.takes(&[executable("f", "x"), file("p", "y"), executable("d/p", "other")]);
        assert_eq!(modes(["f", "p", "d/p"]), [program, plain, program], "changed under {umask}");
        lab.check();
    }
}

fn h57_directories_get_no_mode_from_a_client() {
    let lab = Lab::new();
    // A directory is no kind of thing a client can put.
    for number in [0o040_000, 0o040_777, 0o042_777] {
        lab.session().refuses(&[file("d", "").with_mode(number)]);
    }
    fs::create_dir(lab.path("plain")).expect("a new directory");
    fs::create_dir(lab.path("private")).expect("a new directory");
    fs::set_permissions(lab.path("private"), Permissions::from_mode(0o2710)).expect("a directory of ours");
    let mut session = lab.session();
    session.takes(&[executable("made/sub/x", "x"), executable("private/x", "x"), file("private/y", "y")]);
    let as_any = tree::permissions(&lab.path("plain"));
    assert_eq!(tree::permissions(&lab.path("made")), as_any);
    assert_eq!(tree::permissions(&lab.path("made/sub")), as_any);
    session.takes(&[file("private/x", "x"), delete("private/y")]);
    assert_eq!(tree::permissions(&lab.path("private")), 0o2710);
    lab.check();
}

fn h58_a_file_where_a_directory_holds_foreign_files() {
    let lab = Lab::new();
    let mut session = lab.session();
    session.takes(&[file("d/a", "ours"), file("e/sub/a", "ours")]);
    fs::write(lab.path("d/out"), "an artefact").expect("a new file");
    fs::create_dir(lab.path("only-foreign")).expect("a new directory");
    fs::write(lab.path("only-foreign/out"), "an artefact").expect("a new file");
    symlink(lab.outside("dir"), lab.path("e/sub/to-outside")).expect("a new link");
    session.blocks(
        &[
            delete("d/a"),
            file("d", "a file"),
            delete("e/sub/a"),
            executable("e", "a program"),
            file("only-foreign", "a file"),
        ],
        &["d", "e", "only-foreign"],
    );
    assert_eq!(read(&lab.path("d/out")), b"an artefact");
    assert_eq!(read(&lab.path("only-foreign/out")), b"an artefact");
    assert!(lab.path("e/sub/to-outside").is_symlink());
    lab.check();
}

fn h59_a_link_where_a_directory_was() {
    let lab = Lab::new();
    let mut session = lab.session();
    session.takes(&[file("ours/a", "ours"), file("ours/sub/b", "ours"), file("mixed/a", "ours")]);
    fs::create_dir_all(lab.path("ours/sub/empty")).expect("a new directory");
    fs::write(lab.path("mixed/out"), "an artefact").expect("a new file");
    let inode = fs::metadata(lab.path("mixed/out")).expect("it is there").ino();
    let target = lab.outside("dir");
    session.blocks(
        &[
            delete("mixed/a"),
            link("mixed", text(&target)),
            delete("ours/a"),
            delete("ours/sub/b"),
            link("ours", text(&target)),
        ],
        &["mixed"],
    );
    assert!(is_real_dir(&lab.path("mixed")));
    assert_eq!(fs::metadata(lab.path("mixed/out")).expect("the artefact stays").ino(), inode);
    lab.assert_untouched();
    // And back: the link makes room for a directory.
    session.takes(&[delete("ours"), file("ours/f", "ours")]);
    assert!(is_real_dir(&lab.path("ours")));
    lab.check();
}

fn h60_a_file_system_without_links() {
    let lab = Lab::new();
    if symlink("target", lab.path("probe")).is_ok() {
        return skip("H60");
    }
    let mut session = lab.session();
    session.blocks(&[link("l", "target"), link("d/l", "target")], &["d/l", "l"]);
    assert!(!tree::exists(&lab.path("l")) && !tree::exists(&lab.path("d/l")), "a link is never a text file");
    lab.check();
}
