//! A repository, its servers and a user's home, all in one directory that goes away with the test.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::bin;
use crate::client::{Client, Ended, Home};
use crate::git::Repo;
use crate::oracle::{Expected, Oracle};
use crate::process::PATIENCE;
use crate::server::Server;
use crate::tree::{self, Tree};

/// A directory of its own for one test. It is kept, and named, when the test fails.
#[derive(Debug)]
pub struct Sandbox {
    dir: TempDir,
}

impl Sandbox {
    pub fn new(name: &str) -> Self {
        // Short, because Unix sockets below it must fit into 108 bytes.
        let dir = tempfile::Builder::new().prefix(&format!("gs-{name}-")).tempdir().expect("temp space");
        fs::create_dir(dir.path().join("home")).expect("the sandbox is writable");
        Self { dir }
    }

    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(below)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.dir.disable_cleanup(true);
            eprintln!("the sandbox is kept: {}", self.dir.path().display());
        }
    }
}

/// The name of the mirrored repository, and so of its workspace on every server.
const REPO: &str = "app";

/// One repository, any number of servers, one user.
#[derive(Debug)]
pub struct Lab {
    pub repo: Repo,
    pub home: Home,
    oracle: Oracle,
    // Last, so that nothing above outlives the directory it lies in.
    sandbox: Sandbox,
}

impl Lab {
    /// A repository with a handful of committed files, a few changes on top and nothing configured yet.
    pub fn new(name: &str) -> Self {
        let lab = Self::empty(name);
        let repo = &lab.repo;
        repo.write(".gitignore", "*.o\nbuild/\n");
        repo.write("README.md", "# app\n");
        repo.write("src/main.rs", "fn main() {}\n");
        repo.write("src/lib.rs", "pub fn one() -> u32 { 1 }\n");
        repo.write("src/deep/er/leaf.rs", "// leaf\n");
        repo.write("run.sh", "#!/bin/sh\necho hello\n");
        repo.chmod("run.sh", 0o755);
        repo.symlink("src/lib.rs", "link");
        repo.write("empty", "");
        repo.commit_all("first");
        repo.write("src/main.rs", "fn main() { println!(\"changed\"); }\n");
        repo.write("notes/untracked.txt", "not added yet\n");
        repo.write("build/out.bin", "ignored");
        lab
    }

    /// A repository without files or commits.
    pub fn empty(name: &str) -> Self {
        Self::with_git_init(name, &[])
    }

    /// [`Lab::empty`] with ids of 32 bytes.
    pub fn empty_sha256(name: &str) -> Self {
        Self::with_git_init(name, &["--object-format", "sha256"])
    }

    /// [`Lab::empty`] where git is told that the disk's execute bits mean nothing.
    pub fn empty_without_file_mode(name: &str) -> Self {
        let mut lab = Self::empty(name);
        lab.repo.git(["config", "core.fileMode", "false"]);
        lab.oracle = Oracle::new(&lab.repo, &lab.sandbox.path("oracle-2"));
        lab
    }

    fn with_git_init(name: &str, options: &[&str]) -> Self {
        let sandbox = Sandbox::new(name);
        let repo = Repo::init_with(&sandbox.path(REPO), &sandbox.path("home"), options);
        let oracle = Oracle::new(&repo, &sandbox.path("oracle"));
        let home = Home::new(sandbox.path("home"));
        Self { repo, home, oracle, sandbox }
    }

    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.sandbox.path(below)
    }

    /// The URL of an in-process server.
    pub fn embedded(&self, server: &str) -> String {
        let root = self.server_root(server);
        fs::create_dir_all(&root).expect("the sandbox is writable");
        format!("embedded:{}", root.display())
    }

    /// Starts a server process on loopback.
    pub fn serve(&self, server: &str) -> Server {
        self.serve_with(server, "127.0.0.1:0", &[])
    }

    /// Starts a server process on a Unix socket.
    pub fn serve_unix(&self, server: &str) -> Server {
        self.serve_with(server, &self.unix_url(server), &[])
    }

    /// The address of a server on a Unix socket, for both sides.
    pub fn unix_url(&self, server: &str) -> String {
        format!("unix:{}", self.sandbox.path(format!("{server}.sock")).display())
    }

    /// Starts a server process that listens there and gets further options.
    pub fn serve_with(&self, server: &str, listen: &str, options: &[&str]) -> Server {
        let root = self.server_root(server);
        fs::create_dir_all(&root).expect("the sandbox is writable");
        let log = self.sandbox.path(format!("{server}.log"));
        Server::start(&root, &log, self.repo.home(), listen, options)
    }

    /// Starts a server that forgets some deletes, which ones the seed says.
    pub fn serve_forgetful(&self, server: &str, seed: u64) -> Server {
        let root = self.server_root(server);
        fs::create_dir_all(&root).expect("the sandbox is writable");
        let log = self.sandbox.path(format!("{server}.log"));
        let seed = seed.to_string();
        let options = ["--seed", &seed];
        Server::start_program(bin::forgetful_server(), &root, &log, self.repo.home(), "127.0.0.1:0", &options)
    }

    pub fn server_root(&self, server: &str) -> PathBuf {
        self.sandbox.path("servers").join(server)
    }

    /// The directory on a server that mirrors the repository.
    pub fn workspace(&self, server: &str) -> PathBuf {
        self.server_root(server).join(REPO)
    }

    /// The id of the target that mirrors the repository to `server`.
    pub fn target(&self, server: &str) -> String {
        format!("{REPO}@{server}")
    }

    /// Mirrors the repository to these servers, given as name and URL.
    pub fn configure(&self, servers: &[(&str, &str)]) {
        self.configure_with(servers, "");
    }

    /// [`Lab::configure`] with further lines for the repository's table.
    pub fn configure_with(&self, servers: &[(&str, &str)], repo_keys: &str) {
        let mut config = String::new();
        for (name, url) in servers {
            config.push_str(&format!("[[server]]\nname = {name:?}\nurl = {url:?}\n\n"));
        }
        let names: Vec<&str> = servers.iter().map(|(name, _)| *name).collect();
        let path = self.repo.root();
        config.push_str(&format!(
            "[[repo]]\nname = {REPO:?}\npath = {path:?}\nservers = {names:?}\n{repo_keys}\n"
        ));
        self.home.write_config(&config);
    }

    pub fn client(&self) -> Client {
        self.home.start()
    }

    /// Runs the client with `--once`.
    pub fn once(&self) -> Ended {
        self.home.run(&["--once"])
    }

    /// What every server must hold now. Only meaningful while nothing changes.
    pub fn expect(&self) -> Expected {
        self.oracle.expect(self.repo.root())
    }

    pub fn oracle(&self) -> &Oracle {
        &self.oracle
    }

    pub fn server_tree(&self, server: &str) -> Tree {
        tree::walk(&self.workspace(server))
    }

    /// Waits until every one of these servers acked what the working tree is now, and compares the disks.
    #[track_caller]
    pub fn assert_converges(&self, client: &Client, servers: &[&str]) -> Expected {
        let expected = self.expect();
        for server in servers {
            client.wait_acked(&self.target(server), &expected.id, PATIENCE);
            self.assert_equal(server, &expected, &[]);
        }
        expected
    }

    /// Compares a server's disk with what it must hold. `foreign` are files the test itself left there.
    #[track_caller]
    pub fn assert_equal(&self, server: &str, expected: &Expected, foreign: &[&str]) {
        let tree = self.server_tree(server);
        // A clone has an empty directory where its commit has a submodule.
        let links = self.oracle.gitlinks_of_head(self.repo.root());
        let leads_to_link = |path: &Path| links.iter().any(|link| link.starts_with(path));
        let is_foreign = |path: &Path| foreign.iter().any(|f| path == Path::new(f)) || leads_to_link(path);
        let differences = tree::differences(expected, &BTreeSet::new(), &tree, is_foreign);
        assert!(differences.is_empty(), "{server} differs:\n  {}", differences.join("\n  "));
    }
}

/// Makes a directory only its owner can enter.
pub(crate) fn private_dir(path: &Path) {
    fs::create_dir_all(path).expect("the sandbox is writable");
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).expect("we own it");
}
