//! The real program: its first line, its sockets, its end.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use gitsync_core::model::{Change, ChangeKind, ContentId, Dir, HashKind, Leaf, Mode, RelPath, Signature};
use gitsync_core::wire::proto::mirror_client::MirrorClient;
use gitsync_core::wire::{
    Chunk, Frame, Hello, NewSession, PROTOCOL, PatchHeader, PatchKind, RefusalCode, ToClient, ToServer, proto,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Endpoint;

/// For anything that should take no time at all, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

struct Server {
    child: Child,
    /// What it listens on, as it says.
    address: String,
}

fn command(root: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gitsync-server"));
    command.arg("serve").arg("--root").arg(root).args(words).env_remove("XDG_RUNTIME_DIR");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Server {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("listening on ").unwrap_or_else(|| panic!("{line:?}"));
        Self { child, address: address.to_owned() }
    }

    fn terminate(&mut self) -> (ExitStatus, Duration) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, since.elapsed());
            }
            assert!(since.elapsed() < PATIENCE, "no end after SIGTERM");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A stream to a server.
struct Client {
    out: mpsc::Sender<proto::ClientMessage>,
    replies: Streaming<proto::ServerMessage>,
}

impl Client {
    async fn connect(address: &str) -> Self {
        let url = match address.strip_prefix("unix:") {
            Some(path) => format!("unix://{path}"),
            None => format!("http://{address}"),
        };
        let channel = Endpoint::from_shared(url).unwrap().connect().await.unwrap();
        let (out, messages) = mpsc::channel(16);
        let hello = Hello { protocol: PROTOCOL, required: vec![], optional: vec![], software: "test".into() };
        out.send(ToServer::Hello(hello).into()).await.unwrap();
        let replies =
            MirrorClient::new(channel).sync(ReceiverStream::new(messages)).await.unwrap().into_inner();
        let mut client = Self { out, replies };
        assert!(matches!(client.next().await, Some(ToClient::Welcome(_))));
        client
    }

    async fn say(&self, message: ToServer) {
        self.out.send(message.into()).await.unwrap();
    }

    async fn next(&mut self) -> Option<ToClient> {
        let message = tokio::time::timeout(PATIENCE, self.replies.message()).await.expect("an answer");
        message.ok()?.map(|message| ToClient::try_from(message).unwrap())
    }

    /// Opens workspace `w` and puts one file there.
    async fn settle(&mut self) {
        self.say(ToServer::NewSession(NewSession {
            workspace: "w".into(),
            owner_id: "ann".into(),
            owner_text: "ann".into(),
            takeover: false,
            hash_kind: HashKind::Sha1,
            head: None,
            branch: None,
            commits: vec![],
            remotes: vec![],
            hold_drift: false,
        }))
        .await;
        assert!(matches!(self.next().await, Some(ToClient::Session(_))));
        let (path, id) = (RelPath::new("a").unwrap(), ContentId::of(HashKind::Sha1, b"one"));
        let leaf = Leaf { mode: Mode::File, id, signature: Signature::default() };
        let empty = Dir::empty(HashKind::Sha1);
        let next = empty.edit(&[(path.clone(), Some(leaf))]).unwrap().id();
        let frame = Frame {
            changes: vec![Change { path, kind: ChangeKind::Put { mode: Mode::File, id, size: 3 } }],
            contents: vec![Chunk::encode(id, 3, 0, b"one"[..].into())],
            changes_end: true,
            end: true,
        };
        let header = PatchHeader { kind: PatchKind::Diff { parent: empty.id() }, next, generation: 1 };
        self.say(ToServer::Patch(header, frame)).await;
        match self.next().await {
            Some(ToClient::Ack(ack)) => assert_eq!(ack.id, next),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn it_says_where_it_listens_and_ends_at_a_signal() {
    let root = tempfile::tempdir().unwrap();
    let mut server = Server::start(command(root.path(), &["--insecure", "--listen", "127.0.0.1:0"]));
    assert!(
        server.address.starts_with("127.0.0.1:") && !server.address.ends_with(":0"),
        "{}",
        server.address
    );
    assert_eq!(server.terminate().0.code(), Some(0));
}

#[tokio::test]
async fn it_ends_soon_with_a_stream_open() {
    let root = tempfile::tempdir().unwrap();
    let mut server = Server::start(command(root.path(), &["--insecure", "--listen", "127.0.0.1:0"]));
    let mut client = Client::connect(&server.address).await;
    client.settle().await;
    // The client stays where it is: it hears that the server ends, and keeps its side open.
    let (status, took) = tokio::task::spawn_blocking(move || server.terminate()).await.unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(5), "{took:?}");
    match client.next().await {
        Some(ToClient::Refusal(refusal)) => assert_eq!(refusal.code, RefusalCode::ShuttingDown),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn drift_is_told_unasked() {
    let root = tempfile::tempdir().unwrap();
    let words = ["--insecure", "--listen", "127.0.0.1:0", "--drift-scan", "100ms"];
    let server = Server::start(command(root.path(), &words));
    let mut client = Client::connect(&server.address).await;
    client.settle().await;
    std::fs::write(root.path().join("w/a"), "edited").unwrap();
    match client.next().await {
        Some(ToClient::Drift(drift)) => {
            assert_eq!((drift.count, drift.paths[0].to_string()), (1, "a".into()));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_unix_socket_is_the_default_and_private() {
    let home = tempfile::tempdir().unwrap();
    let start = || {
        let mut command = command(&home.path().join("root"), &[]);
        Server::start({
            command.env("XDG_RUNTIME_DIR", home.path());
            command
        })
    };
    let mut server = start();
    let path = home.path().join("gitsync/server.sock");
    assert_eq!(server.address, format!("unix:{}", path.display()));
    let mode = |path: &Path| std::fs::symlink_metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    let mut client = Client::connect(&server.address).await;
    client.settle().await;
    assert_eq!(std::fs::read(home.path().join("root/w/a")).unwrap(), b"one");

    // A second one would take it away from the first.
    let mut second = command(&home.path().join("other"), &["--listen", &server.address]);
    let output = second.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("another server answers"), "{text}");

    let (status, _) = tokio::task::spawn_blocking(move || server.terminate()).await.unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(!path.exists());
    // After a crash its name stays, and the next one takes it.
    let mut server = start();
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    assert!(path.exists());
    let server = start();
    Client::connect(&server.address).await.settle().await;
}

#[test]
fn a_root_that_anybody_can_replace_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open: PathBuf = dir.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    let mut child = command(&open.join("root"), &["--insecure", "--listen", "127.0.0.1:0"]).spawn().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(
        text.contains("any account on this machine can write to") && text.contains("chmod o-w"),
        "{text}"
    );
}

#[test]
fn what_is_missing_is_said() {
    let root = tempfile::tempdir().unwrap();
    for (words, says) in [
        (&[][..], "XDG_RUNTIME_DIR is not set"),
        (&["--listen", "127.0.0.1:0"], "needs --insecure"),
        (&["--listen", "0.0.0.0:0", "--insecure"], "not a loopback address"),
        (&["--drift-scan", "often"], "whole number"),
    ] {
        let output = command(root.path(), words).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{words:?}: {text}");
        assert!(text.contains(says), "{words:?}: {text}");
    }
}

/// Each takes a thread, so there must be an end to both.
#[tokio::test]
async fn streams_that_say_nothing_are_few_and_end() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start(command(root.path(), &["--insecure", "--listen", "127.0.0.1:0"]));
    let silent = async || {
        let url = format!("http://{}", server.address);
        let channel = Endpoint::from_shared(url).unwrap().connect().await.unwrap();
        MirrorClient::new(channel)
    };
    let (mut first, mut second) = (silent().await, silent().await);
    let mut streams = Vec::new();
    let refused = loop {
        assert!(streams.len() < 1_000, "there is no limit");
        let (out, messages) = mpsc::channel::<proto::ClientMessage>(1);
        // One connection has no more streams than that itself.
        let connection = if streams.len() < 200 { &mut first } else { &mut second };
        match connection.sync(ReceiverStream::new(messages)).await {
            Ok(replies) => streams.push((out, replies.into_inner())),
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    assert!(refused.message().contains("without a session"), "{refused:?}");
    for (_, replies) in &mut streams {
        let last = tokio::time::timeout(PATIENCE, replies.message()).await.expect("an end").unwrap().unwrap();
        match ToClient::try_from(last).unwrap() {
            ToClient::Refusal(refusal) => assert_eq!(refusal.messages, ["no hello came in time"]),
            other => panic!("{other:?}"),
        }
    }
    // The places are free again.
    Client::connect(&server.address).await.settle().await;
}

#[tokio::test]
async fn a_ping_before_the_hello_ends_the_stream() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start(command(root.path(), &["--insecure", "--listen", "127.0.0.1:0"]));
    let url = format!("http://{}", server.address);
    let channel = Endpoint::from_shared(url).unwrap().connect().await.unwrap();
    let (out, messages) = mpsc::channel::<proto::ClientMessage>(1);
    out.send(ToServer::Ping { nonce: 1 }.into()).await.unwrap();
    let mut replies =
        MirrorClient::new(channel).sync(ReceiverStream::new(messages)).await.unwrap().into_inner();
    let first = tokio::time::timeout(PATIENCE, replies.message()).await.expect("an answer").unwrap().unwrap();
    match ToClient::try_from(first).unwrap() {
        ToClient::Refusal(refusal) => assert_eq!(refusal.messages, ["the client spoke out of turn"]),
        other => panic!("{other:?}"),
    }
}
