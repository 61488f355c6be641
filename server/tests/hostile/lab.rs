//! A server with one workspace, and around it what must not change.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use gitsync_core::wire::{HISTORY, proto};
use gitsync_server::{Options, serve_io};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

use crate::client::{self, Session, file, release};
use crate::tree::{self, Tree};

pub const WORKSPACE: &str = "app";
/// An apply in hand gets this long at the end of a test.
const ENDING_LIMIT: Duration = Duration::from_secs(10);

/// Threads that panicked, by name: a server's panic is only a stream that ends.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());
static LABS: AtomicU64 = AtomicU64::new(0);

/// ```text
/// TEMP/root/app        the workspace
/// TEMP/root/neighbour  another directory below the server's root
/// TEMP/outside         files, a directory and a link the workspace may not reach
/// ```
#[derive(Debug)]
pub struct Lab {
    /// Names the threads of this lab.
    name: String,
    address: String,
    server: Server,
    /// The client's, and the server's if that is in this process. `None` once it is shut down.
    runtime: Option<Runtime>,
    sentinels: Option<Sentinels>,
    /// Last: everything that uses it has ended by then.
    temp: TempDir,
}

#[derive(Debug)]
enum Server {
    Here,
    Child(Child),
}

#[derive(Debug)]
struct Sentinels {
    outside: Tree,
    neighbour: Tree,
    /// The workspace's `.git` without what is gitsync's own.
    git: Tree,
    beside: Vec<Vec<u8>>,
}

impl Lab {
    /// A server in this process.
    pub fn new() -> Self {
        let (temp, name, runtime) = Self::prepare();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("a bound address"));
        let options = Options {
            root: root_of(&temp),
            adopt: true,
            workspaces: Arc::default(),
            software: "test".to_owned(),
        };
        runtime.spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.expect("a connection");
                tokio::spawn(serve_io(connection, options.clone()));
            }
        });
        Self::begin(temp, name, address, Server::Here, runtime)
    }

    /// The server's program, started under a umask (three octal digits).
    pub fn with_umask(umask: &str) -> Self {
        let (temp, name, runtime) = Self::prepare();
        let (child, address) = Self::spawn(&temp, umask);
        Self::begin(temp, name, address, Server::Child(child), runtime)
    }

    fn spawn(temp: &TempDir, umask: &str) -> (Child, String) {
        let mut child = Command::new("sh")
            .args([
                "-c",
                "umask \"$1\"; shift; exec \"$@\"",
                "sh",
                umask,
                env!("CARGO_BIN_EXE_gitsync-server"),
            ])
            .args(["serve", "--insecure", "--listen", "127.0.0.1:0", "--root"])
            .arg(root_of(temp))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server's program can be started");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("stdout is piped");
        BufReader::new(stdout).read_line(&mut line).expect("the server says where it listens");
        let bound = line.trim().strip_prefix("listening on ").expect("the server says where it listens");
        (child, format!("http://{bound}"))
    }

    /// Kills the server's program in the middle of whatever it does, and starts it anew.
    pub fn kill(&mut self) {
        let Server::Child(child) = &mut self.server else { panic!("a server in this process") };
        child.kill().expect("the server's program runs");
        child.wait().expect("it was killed");
        let (child, address) = Self::spawn(&self.temp, "022");
        (self.server, self.address) = (Server::Child(child), address);
    }

    fn prepare() -> (TempDir, String, Runtime) {
        watch_for_panics();
        let temp = tempfile::tempdir().expect("a temporary directory");
        let outside = temp.path().join("outside");
        fs::create_dir_all(outside.join("dir/sub")).expect("a new directory");
        for name in ["file", "dir/f", "dir/g", "dir/l", "dir/x", "dir/sub/x"] {
            fs::write(outside.join(name), format!("outside {name}")).expect("a new file");
        }
        symlink("file", outside.join("link")).expect("a new link");
        let secret = Permissions::from_mode(0o600);
        fs::set_permissions(outside.join("file"), secret).expect("a file of ours");
        fs::create_dir_all(temp.path().join("root/neighbour")).expect("a new directory");
        fs::write(temp.path().join("root/neighbour/file"), "neighbour").expect("a new file");
        let name = format!("lab-{}", LABS.fetch_add(1, Ordering::Relaxed));
        let mut builder = Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).thread_name(&name).enable_all().build().expect("a runtime");
        (temp, name, runtime)
    }

    fn begin(temp: TempDir, name: String, address: String, server: Server, runtime: Runtime) -> Self {
        let mut lab = Self { name, address, server, runtime: Some(runtime), sentinels: None, temp };
        drop(lab.session());
        // So that a link into it leads somewhere.
        fs::create_dir(lab.path(".git/hooks")).expect("a new directory");
        lab.mark();
        lab
    }

    pub fn root(&self) -> PathBuf {
        root_of(&self.temp)
    }

    /// Below the workspace.
    pub fn path(&self, path: impl AsRef<[u8]>) -> PathBuf {
        self.root().join(WORKSPACE).join(OsStr::from_bytes(path.as_ref()))
    }

    /// Below the directory that must not change.
    pub fn outside(&self, path: &str) -> PathBuf {
        self.temp.path().join("outside").join(path)
    }

    /// What is outside now is what has to stay.
    pub fn mark(&mut self) {
        self.sentinels = Some(self.look());
    }

    fn look(&self) -> Sentinels {
        let git = self.path(".git");
        Sentinels {
            outside: Tree::of(&self.outside(""), None),
            neighbour: Tree::of(&self.root().join("neighbour"), None),
            git: Tree::of(&git, Some(&git.join("gitsync"))),
            beside: tree::names(self.temp.path()),
        }
    }

    /// Everything in the workspace but its `.git`.
    pub fn files(&self) -> Tree {
        Tree::of(&self.path(""), Some(&self.path(".git")))
    }

    #[track_caller]
    pub fn session(&self) -> Session {
        self.try_session(WORKSPACE).unwrap_or_else(|refusal| panic!("no session: {refusal:?}"))
    }

    pub fn try_session(&self, workspace: &str) -> Result<Session, Box<proto::Refusal>> {
        self.greeted(workspace).open(workspace)
    }

    /// A stream that has not said yet what it is for.
    pub fn greeted(&self, workspace: &str) -> Session {
        self.greeted_with(workspace, &[])
    }

    /// A session that knows the history track.
    #[track_caller]
    pub fn historian(&self) -> Session {
        let session = self.greeted_with(WORKSPACE, &[HISTORY]).open(WORKSPACE);
        session.unwrap_or_else(|refusal| panic!("no session: {refusal:?}"))
    }

    fn greeted_with(&self, workspace: &str, features: &[&str]) -> Session {
        let runtime = self.runtime.as_ref().expect("the lab has not ended");
        client::greet(runtime.handle(), &self.address, &self.root(), workspace, features)
    }

    /// What every case ends with: nothing outside has changed, nothing has panicked, and an honest client
    /// is served.
    #[track_caller]
    pub fn check(&self) {
        self.assert_untouched();
        let mut session = self.session();
        let ack = session.whole(&[file("honest", "as ever")], release).acked();
        assert_eq!(ack.refused, []);
        assert_eq!(fs::read(self.path("honest")).expect("the honest file is there"), b"as ever");
        drop(session);
        self.assert_untouched();
    }

    #[track_caller]
    pub fn assert_untouched(&self) {
        let (then, now) = (self.sentinels.as_ref().expect("marked at the beginning"), self.look());
        then.git.assert_same(&now.git, "the workspace's .git");
        self.assert_contained();
    }

    /// As [`Lab::assert_untouched`], but the workspace's own `.git` may have changed.
    #[track_caller]
    pub fn assert_contained(&self) {
        let (then, now) = (self.sentinels.as_ref().expect("marked at the beginning"), self.look());
        then.outside.assert_same(&now.outside, "the outside");
        then.neighbour.assert_same(&now.neighbour, "the neighbour");
        assert_eq!(then.beside, now.beside, "names beside the root");
        let panics = PANICS.lock().expect("no panic while it is held");
        assert!(!panics.contains(&self.name), "the server panicked");
    }

    /// What the recovery store holds, by the path it was met at.
    pub fn kept(&self) -> BTreeMap<PathBuf, PathBuf> {
        let store = self.path(".git/gitsync/recovery");
        let mut kept = BTreeMap::new();
        if store.is_dir() {
            for entry in tree::names(&store) {
                let entry = store.join(OsStr::from_bytes(&entry));
                find_leaves(&entry, &entry, &mut kept);
            }
        }
        kept
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Server::Child(child) = &mut self.server {
            // Errors would mean that it is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(ENDING_LIMIT);
        }
    }
}

fn root_of(temp: &TempDir) -> PathBuf {
    temp.path().join("root")
}

fn find_leaves(top: &Path, at: &Path, found: &mut BTreeMap<PathBuf, PathBuf>) {
    for name in tree::names(at) {
        let path = at.join(OsStr::from_bytes(&name));
        if fs::symlink_metadata(&path).is_ok_and(|stat| stat.is_dir()) {
            find_leaves(top, &path, found);
        } else {
            found.insert(path.strip_prefix(top).expect("below it").to_owned(), path);
        }
    }
}

fn watch_for_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if let (Some(name), Ok(mut panics)) = (std::thread::current().name(), PANICS.lock()) {
                panics.push(name.to_owned());
            }
            usual(panic);
        }));
    });
}
