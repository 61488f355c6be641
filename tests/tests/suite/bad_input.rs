//! What goes wrong outside the program: each ends or halts with the right code or state, and a message that names what
//! failed, why, and the next step (P7, P10). Mistakes in a config and on the command line are in `exit_codes`.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use gitsync_tests::bin;
use gitsync_tests::client::{Client, Ended, Home};
use gitsync_tests::event::{Event, Standing};
use gitsync_tests::git::{self, Repo};
use gitsync_tests::lab::Lab;
use gitsync_tests::process::{self, PATIENCE};
use gitsync_tests::skip::skip;
use gitsync_tests::tree;
use rustix::process::{Pid, Signal};

/// The errors of a target say what failed, why, and the next step, in these words among others.
#[track_caller]
pub(crate) fn assert_explained(errors: &[Event], names: &[&str]) {
    let all = errors.iter().map(|e| e.json().to_string()).collect::<Vec<_>>().join("\n");
    assert!(!errors.is_empty(), "no error event");
    assert!(errors.iter().all(|e| e.text("message").is_some_and(|text| !text.is_empty())), "{all}");
    for name in names {
        assert!(all.to_lowercase().contains(&name.to_lowercase()), "{name:?} is not in:\n{all}");
    }
    let helps = |e: &Event| e.text("hint").is_some_and(|hint| !hint.is_empty());
    assert!(errors.iter().any(helps), "no next step in:\n{all}");
}

#[track_caller]
pub(crate) fn errors_of(ended: &Ended, target: &str) -> Vec<Event> {
    ended.events.iter().filter(|e| e.is("error", target)).cloned().collect()
}

// --- what listens is no gitsync-server

/// Answers every connection with `talk` until the test ends.
fn listen(talk: impl Fn(&mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is there");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    let talk = std::sync::Arc::new(talk);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let talk = std::sync::Arc::clone(&talk);
            // The peer may leave at any time.
            std::thread::spawn(move || talk(&mut stream));
        }
    });
    url
}

/// The one target ends with this code and says why; nothing hangs.
#[track_caller]
fn assert_ends_with(name: &str, url: &str, code: i32, names: &[&str]) {
    let lab = Lab::new(name);
    lab.configure(&[("far", url)]);
    let ended = lab.once();
    assert_eq!(ended.code(), code, "{ended}");
    assert_eq!(ended.summary().number("exit"), u64::try_from(code).expect("codes are small"), "{ended}");
    assert_explained(&errors_of(&ended, "app@far"), names);
}

#[track_caller]
fn assert_not_reached(name: &str, url: &str) {
    assert_ends_with(name, url, 5, &["unreachable", "cannot connect", "url", "gitsync-server"]);
}

#[test]
fn something_that_speaks_another_protocol_is_not_reached() {
    let url = listen(|stream| stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n"));
    assert_not_reached("other-protocol", &url);
}

/// A real server of something else.
#[test]
fn a_server_of_gits_own_protocol_is_not_reached() {
    let lab = Lab::new("git-daemon");
    let mut daemon = git::command(lab.repo.home());
    if !daemon.arg("--exec-path").output().is_ok_and(|o| has_daemon(&o.stdout)) {
        return skip("a_server_of_gits_own_protocol_is_not_reached", "git has no daemon here");
    }
    // It cannot choose a free port itself.
    let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("loopback is there");
    let mut daemon = git::command(lab.repo.home());
    daemon.args(["daemon", "--listen=127.0.0.1", "--export-all", "--reuseaddr"]);
    daemon.arg(format!("--port={}", free.port())).arg(lab.repo.root());
    let daemon = daemon.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn();
    let daemon = KillGroupOnDrop(daemon.expect("git is installed"));
    process::poll_until("git's daemon to listen", PATIENCE, || TcpStream::connect(free).ok());
    assert_not_reached("other-server", &format!("http://{free}"));
    drop(daemon);
}

fn has_daemon(exec_path: &[u8]) -> bool {
    Path::new(String::from_utf8_lossy(exec_path).trim_end()).join("git-daemon").exists()
}

/// `git` starts the daemon as a child of its own.
struct KillGroupOnDrop(Child);

impl Drop for KillGroupOnDrop {
    fn drop(&mut self) {
        // Errors would mean it is gone already.
        let _ = rustix::process::kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}

#[test]
fn a_web_server_is_not_reached() {
    let url = listen(|stream| {
        let mut request = [0; 1024];
        let _ = stream.read(&mut request)?;
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    });
    assert_not_reached("web-server", &url);
}

#[test]
fn something_that_never_answers_is_given_up() {
    let url = listen(|stream| stream.read_to_end(&mut Vec::new()).map(|_| ()));
    assert_not_reached("silent", &url);
}

/// Just enough HTTP/2 (RFC 9113) to answer each call with the same frames.
fn answer_calls(stream: &mut TcpStream, answer: &dyn Fn(u32) -> Vec<u8>) -> std::io::Result<()> {
    const PREFACE: usize = 24;
    const SETTINGS: u8 = 4;
    const HEADERS: u8 = 1;
    const ACK: u8 = 1;
    stream.read_exact(&mut [0; PREFACE])?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let (kind, flags) = (head[3], head[4]);
        let call = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut body = vec![0; usize::try_from(length).expect("24 bits")];
        stream.read_exact(&mut body)?;
        match kind {
            SETTINGS if flags & ACK == 0 => stream.write_all(&frame(SETTINGS, ACK, 0, &[]))?,
            HEADERS => stream.write_all(&answer(call))?,
            _ => {}
        }
    }
}

fn frame(kind: u8, flags: u8, call: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("short").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(call.to_be_bytes());
    frame.extend(body);
    frame
}

/// Response headers (RFC 7541): status 200, and literals that are in no table.
fn headers(call: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    const STATUS_200: u8 = 0x88;
    let mut block = vec![STATUS_200];
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).expect("short"));
            block.extend(text.as_bytes());
        }
    }
    frame(1, flags, call, &block)
}

const END_HEADERS: u8 = 4;
const END_STREAM: u8 = 1;
const GRPC: (&str, &str) = ("content-type", "application/grpc");

#[test]
fn a_grpc_server_without_our_service_is_not_reached() {
    let url = listen(|stream| {
        let unimplemented = [GRPC, ("grpc-status", "12"), ("grpc-message", "unknown service")];
        answer_calls(stream, &|call| headers(call, END_HEADERS | END_STREAM, &unimplemented))
    });
    assert_ends_with("other-service", &url, 5, &["unknown service"]);
}

#[test]
fn a_server_of_another_version_halts_with_both_numbers() {
    let url = listen(|stream| {
        answer_calls(stream, &|call| {
            // ServerMessage { welcome: Welcome { protocol: 99 } }, uncompressed, with its length.
            let message = [0x0a, 2, 0x08, 99];
            let mut body = vec![0, 0, 0, 0, 4];
            body.extend(message);
            let mut answer = headers(call, END_HEADERS, &[GRPC]);
            answer.extend(frame(0, 0, call, &body));
            answer
        })
    });
    assert_ends_with("other-version", &url, 4, &["speaks protocol 99", "this client 1", "same version"]);
}

// --- the repository

fn config_for(path: &str, url: &str, more: &str) -> String {
    format!("[[server]]\nname = \"near\"\nurl = {url:?}\n[[repo]]\nname = \"app\"\npath = {path:?}\n{more}")
}

#[test]
fn a_workspace_name_with_a_slash_is_78_and_says_what_is_allowed() {
    let lab = Lab::new("slash");
    for name in ["a/b", "../up", "..", "", ".git"] {
        let path = lab.repo.root().to_str().expect("ASCII");
        lab.home.write_config(&config_for(path, &lab.embedded("near"), &format!("workspace = {name:?}\n")));
        let ended = lab.once();
        assert_eq!(ended.code(), 78, "{name:?}: {ended}");
        assert!(ended.stderr.contains("workspace"), "{name:?}: {ended}");
        assert!(ended.stderr.contains("gitsync.toml"), "the file is named: {ended}");
    }
    assert_eq!(fs::read_dir(lab.server_root("near")).expect("ours").count(), 0, "nothing was made");
}

#[test]
fn no_repository_a_bare_one_and_a_missing_path_say_what_to_do() {
    let lab = Lab::empty("no-tree");
    let (plain, bare) = (lab.path("plain"), lab.path("bare.git"));
    fs::create_dir(&plain).expect("the sandbox is writable");
    Repo::init_with(&bare, lab.repo.home(), &["--bare"]);
    for path in [plain, bare, lab.path("nowhere")] {
        let path = path.to_str().expect("ASCII");
        lab.home.write_config(&config_for(path, &lab.embedded("near"), ""));
        let ended = lab.once();
        assert_eq!(ended.code(), 4, "a person is needed: {ended}");
        assert_explained(&errors_of(&ended, "app@near"), &[path]);
    }
}

/// Starts the client as somebody whom a missing permission stops: root it does not. `None` where nobody can do that.
pub(crate) fn start_unprivileged(lab: &Lab) -> Option<Client> {
    const NOBODY: &str = "65534";
    if !rustix::process::geteuid().is_root() {
        return Some(lab.client());
    }
    let setpriv = Command::new("setpriv").arg("--version").output();
    setpriv.ok().filter(|output| output.status.success())?;
    let own = Command::new("chown").arg("-R").arg(format!("{NOBODY}:{NOBODY}")).arg(lab.path("")).status();
    assert!(own.expect("chown is installed").success());
    // The program may lie where only root can read. Not copied by this process: what it has open for writing is open in
    // the children other tests start meanwhile, and such a file cannot be run.
    let program = lab.path("client");
    if !program.exists() {
        let copied = Command::new("cp").arg(bin::client()).arg(&program).status();
        assert!(copied.expect("cp is installed").success());
    }
    let mut command = Command::new("setpriv");
    git::hermetic(&mut command, lab.repo.home());
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]).arg(program);
    Some(lab.home.start_as(command))
}

/// P10: unreadable is unknown, not deleted.
#[test]
fn an_unreadable_directory_is_withheld_and_stays_on_the_server() {
    let name = "an_unreadable_directory_is_withheld_and_stays_on_the_server";
    let lab = Lab::new("unreadable");
    lab.repo.write("secret/inside", "before\n");
    lab.configure(&[("near", &lab.embedded("near"))]);
    let Some(client) = start_unprivileged(&lab) else {
        return skip(name, "root needs setpriv to become somebody else");
    };
    lab.assert_converges(&client, &["near"]);
    let secret = lab.repo.path("secret");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).expect("root may");
    lab.repo.write("README.md", "# goes on\n");
    client.wait_until("the directory's files to be withheld", PATIENCE, |events| {
        let standing = Standing::of(events, "app@near");
        let named = standing.withheld.keys().any(|path| path.starts_with("secret"));
        (named && standing.state == "in-sync").then_some(())
    });
    let there = lab.workspace("near").join("secret/inside");
    assert_eq!(fs::read(there).expect("it stays"), b"before\n");
    process::poll_until("the rest to go on", PATIENCE, || {
        (fs::read(lab.workspace("near").join("README.md")).ok()? == b"# goes on\n").then_some(())
    });

    fs::set_permissions(&secret, fs::Permissions::from_mode(0o755)).expect("root may");
    lab.assert_converges(&client, &["near"]);
}

/// What cannot be read at a start is as unknown as what becomes unreadable later: it stays on the server, and the rest
/// goes on.
#[test]
fn what_is_unreadable_at_a_start_is_withheld_and_stays_on_the_server() {
    let name = "what_is_unreadable_at_a_start_is_withheld_and_stays_on_the_server";
    let lab = Lab::new("unreadable-start");
    for i in 0..30 {
        lab.repo.write(format!("secret/{i}"), "before\n");
    }
    lab.repo.write("alone", "before\n");
    lab.repo.commit_all("secrets");
    lab.configure(&[("near", &lab.embedded("near"))]);
    let Some(client) = start_unprivileged(&lab) else {
        return skip(name, "root needs setpriv to become somebody else");
    };
    lab.assert_converges(&client, &["near"]);
    drop(client);
    let (secret, alone) = (lab.repo.path("secret"), lab.repo.path("alone"));
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).expect("root may");
    fs::set_permissions(&alone, fs::Permissions::from_mode(0o000)).expect("root may");
    lab.repo.write("README.md", "# goes on\n");
    let client = start_unprivileged(&lab).expect("it did before");
    client.wait_until("both to be withheld", PATIENCE, |events| {
        let standing = Standing::of(events, "app@near");
        (standing.withheld.len() == 2 && standing.state == "in-sync").then_some(())
    });
    for (path, text) in [("secret/7", "before\n"), ("alone", "before\n"), ("README.md", "# goes on\n")] {
        assert_eq!(
            fs::read_to_string(lab.workspace("near").join(path)).expect("it is there"),
            text,
            "{path}"
        );
    }
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o755)).expect("root may");
    fs::set_permissions(&alone, fs::Permissions::from_mode(0o644)).expect("root may");
    lab.assert_converges(&client, &["near"]);
}

/// Another repository stands at the path for a while, and then the first one again.
#[test]
fn a_repository_that_was_swapped_and_comes_back_goes_on() {
    let lab = Lab::new("swapped-back");
    lab.configure(&[("near", &lab.embedded("near"))]);
    let client = lab.client();
    lab.assert_converges(&client, &["near"]);
    let root = lab.repo.root().to_owned();
    let away = lab.path("away");
    fs::rename(&root, &away).expect("nobody holds it");
    Repo::init(&root, lab.repo.home());
    lab.repo.write("stranger", "not ours\n");
    client.wait_state("app@near", "halted", PATIENCE);
    assert!(!lab.workspace("near").join("stranger").exists(), "nothing of it is taken");
    fs::remove_dir_all(&root).expect("it is ours");
    fs::rename(&away, &root).expect("nobody holds it");
    lab.repo.write("README.md", "# back again\n");
    lab.assert_converges(&client, &["near"]);
    lab.repo.write("src/later.rs", "fn later() {}\n");
    lab.repo.commit_all("later");
    lab.repo.write("README.md", "# and on\n");
    lab.assert_converges(&client, &["near"]);
}

/// A root nobody may read is not an empty one, neither for a program that runs nor for one that starts.
#[test]
fn an_unreadable_root_halts_deletes_nothing_and_comes_back() {
    let name = "an_unreadable_root_halts_deletes_nothing_and_comes_back";
    let lab = Lab::new("root-unreadable");
    lab.configure(&[("near", &lab.embedded("near"))]);
    let Some(client) = start_unprivileged(&lab) else {
        return skip(name, "root needs setpriv to become somebody else");
    };
    lab.assert_converges(&client, &["near"]);
    let before = lab.server_tree("near");
    let root = lab.repo.root().to_str().expect("ASCII").to_owned();
    for mode in [0o000, 0o444, 0o311] {
        let mark = client.mark();
        fs::set_permissions(&root, fs::Permissions::from_mode(mode)).expect("root may");
        client.wait_state("app@near", "halted", PATIENCE);
        assert_explained(
            &client.since(mark, "error", "app@near"),
            &["cannot read", &root, "permission denied"],
        );
        assert_eq!(lab.server_tree("near"), before, "nothing was touched");
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).expect("root may");
        client.wait_state("app@near", "in-sync", PATIENCE);
        assert_eq!(lab.server_tree("near"), before, "nothing was touched");
    }
    lab.repo.write("README.md", "# goes on\n");
    lab.assert_converges(&client, &["near"]);
    let before = lab.server_tree("near");
    drop(client);

    for mode in [0o000, 0o444, 0o311] {
        fs::set_permissions(&root, fs::Permissions::from_mode(mode)).expect("root may");
        let client = start_unprivileged(&lab).expect("it did before");
        client.wait_state("app@near", "halted", PATIENCE);
        assert_explained(&client.since(0, "error", "app@near"), &["cannot", &root, "permission denied"]);
        assert_eq!(lab.server_tree("near"), before, "nothing was touched");
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).expect("root may");
    }
}

// --- another repository's workspace

/// Somebody else, with a repository of their own and a configuration that mirrors it to the same workspace.
fn somebody_else(lab: &Lab, url: &str) -> (Home, Repo) {
    let home = Home::new(lab.path("home-2"));
    let repo = Repo::init(&lab.path("other"), lab.repo.home());
    repo.write("other.txt", "another repository's\n");
    repo.commit_all("first");
    home.write_config(&config_for(repo.root().to_str().expect("ASCII"), url, ""));
    (home, repo)
}

#[test]
fn remotes_that_differ_halt_with_both_sides_and_no_secret() {
    let lab = Lab::new("remotes");
    lab.repo.git(["remote", "add", "origin", "https://me:secret@example.com/team/app.git"]);
    lab.configure(&[("near", &lab.embedded("near"))]);
    assert_eq!(lab.once().code(), 0);
    let before = tree::walk_with_git(&lab.workspace("near"));

    let (home, other) = somebody_else(&lab, &lab.embedded("near"));
    other.git(["remote", "add", "origin", "ssh://me:secret@example.net/else/other"]);
    let ended = home.run(&["--once"]);
    assert_eq!(ended.code(), 4, "a person is needed: {ended}");
    assert_eq!(ended.summary_of("app@near", "state"), Some("halted"), "{ended}");
    let errors = errors_of(&ended, "app@near");
    assert_explained(
        &errors,
        &["remotes differ", "example.com/team/app", "example.net/else/other", "`workspace`"],
    );
    assert!(errors.iter().all(|e| e.text("code") == Some("remotes-differ")), "{ended}");
    assert!(!ended.to_string().contains("secret"), "{ended}");
    assert_eq!(tree::walk_with_git(&lab.workspace("near")), before, "nothing was touched");

    other.git(["remote", "add", "also", "git@example.com:team/app"]);
    let ended = home.run(&["--once"]);
    assert_eq!(ended.code(), 0, "one remote in common is enough: {ended}");
    assert!(lab.workspace("near").join("other.txt").exists());
}

/// Who wrote a workspace before may come back with other remotes, or none.
#[test]
fn remotes_that_change_between_two_runs_are_no_obstacle() {
    let lab = Lab::new("remotes-change");
    lab.configure(&[("near", &lab.embedded("near"))]);
    lab.repo.git(["remote", "add", "origin", "https://example.com/old"]);
    assert_eq!(lab.once().code(), 0);
    lab.repo.git(["remote", "set-url", "origin", "https://example.com/new"]);
    assert_eq!(lab.once().code(), 0);
    let (home, other) = somebody_else(&lab, &lab.embedded("near"));
    other.git(["remote", "add", "origin", "https://example.com/old"]);
    let ended = home.run(&["--once"]);
    assert_eq!(ended.code(), 4, "the newer name counts: {ended}");
    other.git(["remote", "set-url", "origin", "https://example.com/new"]);
    let ended = home.run(&["--once"]);
    assert_eq!(ended.code(), 0, "{ended}");
}

/// Not even our own state is made in a clone of something else.
#[test]
fn a_clone_with_another_remote_is_not_adopted() {
    let lab = Lab::new("remotes-adopt");
    lab.repo.git(["remote", "add", "origin", "https://example.com/app"]);
    let server = lab.serve_with("far", "127.0.0.1:0", &["--adopt"]);
    lab.configure(&[("far", &server.url())]);
    let clone = Repo::init(&lab.workspace("far"), lab.repo.home());
    clone.write("thesis.txt", "somebody's only copy");
    clone.git(["remote", "add", "upstream", "https://me:secret@example.com/thesis"]);
    let before = tree::walk_with_git(clone.root());
    let ended = lab.once();
    assert_eq!(ended.code(), 4, "{ended}");
    assert_explained(
        &errors_of(&ended, "app@far"),
        &["remotes differ", "example.com/app", "example.com/thesis"],
    );
    assert!(!ended.to_string().contains("secret"), "{ended}");
    assert_eq!(tree::walk_with_git(clone.root()), before);
}

// --- the repository goes away (P10)

/// The target halts with a reason a person can use, and its server keeps everything.
#[track_caller]
fn assert_halts(lab: &Lab, client: &Client, before: &tree::Tree, names: &[&str]) {
    client.wait_state("app@near", "halted", PATIENCE);
    assert_explained(&client.since(0, "error", "app@near"), names);
    assert_eq!(lab.server_tree("near"), *before, "nothing was touched");
}

#[test]
fn a_root_that_disappears_halts_deletes_nothing_and_comes_back() {
    let lab = Lab::new("root-gone");
    lab.configure(&[("near", &lab.embedded("near"))]);
    let client = lab.client();
    lab.assert_converges(&client, &["near"]);
    let before = lab.server_tree("near");
    let away = lab.path("away");
    fs::rename(lab.repo.root(), &away).expect("the sandbox is writable");
    let root = lab.repo.root().to_str().expect("ASCII");
    assert_halts(&lab, &client, &before, &[root]);
    fs::rename(&away, lab.repo.root()).expect("the sandbox is writable");
    lab.repo.write("README.md", "# back again\n");
    let expected = lab.expect();
    client.wait_acked("app@near", &expected.id, PATIENCE);
    lab.assert_equal("near", &expected, &[]);
}

#[test]
fn a_git_directory_that_disappears_halts_deletes_nothing_and_comes_back() {
    let lab = Lab::new("git-gone");
    lab.configure(&[("near", &lab.embedded("near"))]);
    let client = lab.client();
    lab.assert_converges(&client, &["near"]);
    let before = lab.server_tree("near");
    lab.repo.rename(".git", "../git-away");
    assert_halts(&lab, &client, &before, &[]);
    lab.repo.rename("../git-away", ".git");
    lab.repo.write("README.md", "# back again\n");
    lab.assert_converges(&client, &["near"]);
}

/// Another repository under the same path is not the one that was mirrored.
#[test]
fn another_repository_in_the_same_place_halts_and_deletes_nothing() {
    let lab = Lab::new("replaced");
    lab.configure(&[("near", &lab.embedded("near"))]);
    let client = lab.client();
    lab.assert_converges(&client, &["near"]);
    let before = lab.server_tree("near");
    fs::rename(lab.repo.root(), lab.path("away")).expect("the sandbox is writable");
    Repo::init(lab.repo.root(), lab.repo.home()).write("other", "another repository's\n");
    assert_halts(&lab, &client, &before, &[]);
}

// --- the brake (P10): 20 or more files, and over 30 % of what the index lists, are missing

const MANY: usize = 60;

fn lab_with_many(name: &str) -> Lab {
    let lab = Lab::new(name);
    for n in 0..MANY {
        lab.repo.write(format!("many/{n}"), format!("{n}\n"));
    }
    lab.repo.commit_all("many");
    lab.configure(&[("near", &lab.embedded("near"))]);
    lab
}

fn remove_many(lab: &Lab, count: usize) {
    for n in 0..count {
        lab.repo.remove(format!("many/{n}"));
    }
}

#[test]
fn the_brake_halts_once_with_4_says_why_and_deletes_nothing() {
    let lab = lab_with_many("brake-once");
    assert_eq!(lab.once().code(), 0);
    let before = lab.server_tree("near");
    remove_many(&lab, 30);
    let ended = lab.once();
    assert_eq!(ended.code(), 4, "{ended}");
    assert_eq!(ended.summary_of("app@near", "state"), Some("halted"), "{ended}");
    assert_explained(&errors_of(&ended, "app@near"), &["30", "accept"]);
    assert_eq!(lab.server_tree("near"), before, "nothing was touched");
}

#[test]
fn accepted_deletes_pass_the_brake() {
    let lab = lab_with_many("brake-accept");
    assert_eq!(lab.once().code(), 0);
    remove_many(&lab, 30);
    let ended = lab.home.run(&["--once", "--accept-deletes"]);
    assert_eq!(ended.code(), 0, "{ended}");
    lab.assert_equal("near", &lab.expect(), &[]);
}

#[test]
fn the_brake_ends_by_itself_when_the_files_return() {
    let lab = lab_with_many("brake-return");
    let client = lab.client();
    lab.assert_converges(&client, &["near"]);
    let before = lab.server_tree("near");
    lab.repo.rename("many", "../many-away");
    assert_halts(&lab, &client, &before, &[&MANY.to_string()]);
    lab.repo.rename("../many-away", "many");
    client.wait_state("app@near", "in-sync", PATIENCE);
    lab.repo.write("README.md", "# goes on\n");
    lab.assert_converges(&client, &["near"]);
    let acks = client.since(0, "acked", "app@near");
    assert!(acks.iter().all(|ack| ack.number("deleted") == 0), "{acks:?}");
}

/// It looks at what is missing, not at how fast: slices cannot pass under it.
#[test]
fn the_brake_stops_slices_too() {
    let lab = lab_with_many("brake-slices");
    let client = lab.client();
    lab.assert_converges(&client, &["near"]);
    for n in 0..MANY {
        lab.repo.remove(format!("many/{n}"));
        client.let_work(Duration::from_millis(5));
    }
    client.wait_state("app@near", "halted", PATIENCE);
    let left = tree::names(&lab.workspace("near").join("many")).len();
    // 30 % of 60 files and the handful beside them.
    assert!(left >= MANY * 6 / 10, "{left} files are left");
}

#[test]
fn fewer_than_20_files_and_less_than_30_percent_are_deleted_without_asking() {
    let lab = lab_with_many("brake-few");
    let client = lab.client();
    lab.assert_converges(&client, &["near"]);
    remove_many(&lab, 19);
    lab.assert_converges(&client, &["near"]);
}

/// The index says that it is meant.
#[test]
fn deletions_made_with_git_are_followed_without_asking() {
    let lab = lab_with_many("brake-git");
    let client = lab.client();
    lab.assert_converges(&client, &["near"]);
    lab.repo.git(["rm", "-q", "-r", "many"]);
    lab.assert_converges(&client, &["near"]);
    lab.repo.git(["reset", "-q", "--hard"]);
    lab.assert_converges(&client, &["near"]);
    process::poll_until("the last file to be there", PATIENCE, || {
        lab.workspace("near").join(format!("many/{}", MANY - 1)).exists().then_some(())
    });
}
