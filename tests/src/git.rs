//! Git without surprises: one identity, one date, no configuration but the repository's own.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

const NOBODY: &str = "Test Person";
const MAIL: &str = "person@example.net";
const DATE: &str = "2024-01-02T03:04:05+00:00";

/// A git command that sees nothing of the user's or the machine's configuration.
pub fn command(home: &Path) -> Command {
    let mut git = Command::new("git");
    hermetic(&mut git, home);
    // A test may give its repository to another account.
    git.env("GIT_CONFIG_COUNT", "2").env("GIT_CONFIG_KEY_1", "safe.directory").env("GIT_CONFIG_VALUE_1", "*");
    git
}

/// Gives any command the environment [`command`] gives git.
pub fn hermetic(command: &mut Command, home: &Path) {
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", home)
        .env("LC_ALL", "C")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "init.defaultBranch")
        .env("GIT_CONFIG_VALUE_0", "main")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_AUTHOR_NAME", NOBODY)
        .env("GIT_AUTHOR_EMAIL", MAIL)
        .env("GIT_AUTHOR_DATE", DATE)
        .env("GIT_COMMITTER_NAME", NOBODY)
        .env("GIT_COMMITTER_EMAIL", MAIL)
        .env("GIT_COMMITTER_DATE", DATE)
        .stdin(Stdio::null());
}

/// Runs a prepared git command.
///
/// # Panics
/// If it fails, with what it said.
#[track_caller]
pub fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().expect("git is installed");
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// A working tree on the client's side and the ways tests change it.
#[derive(Debug, Clone)]
pub struct Repo {
    root: PathBuf,
    home: PathBuf,
}

impl Repo {
    /// `git init` at `root`, which is created. `home` stands for the user's home directory.
    pub fn init(root: &Path, home: &Path) -> Self {
        Self::init_with(root, home, &[])
    }

    /// [`Repo::init`] with further options for `git init`.
    pub fn init_with(root: &Path, home: &Path, options: &[&str]) -> Self {
        fs::create_dir_all(root).expect("the sandbox is writable");
        run(command(home).arg("init").arg("-q").args(options).arg(root));
        Self { root: root.to_path_buf(), home: home.to_path_buf() }
    }

    /// A working tree that is there already: a linked worktree, a clone.
    pub fn at(root: &Path, home: &Path) -> Self {
        Self { root: root.to_path_buf(), home: home.to_path_buf() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn home(&self) -> &Path {
        &self.home
    }

    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// Runs git in this working tree and gives its stdout.
    #[track_caller]
    pub fn git<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Vec<u8> {
        run(command(&self.home).arg("-C").arg(&self.root).args(args))
    }

    /// Runs git in this working tree where failing is one of the answers.
    pub fn try_git<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Output {
        command(&self.home).arg("-C").arg(&self.root).args(args).output().expect("git is installed")
    }

    /// What git says in one line.
    #[track_caller]
    pub fn ask<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        String::from_utf8_lossy(&self.git(args)).trim_end().to_owned()
    }

    /// Runs git where it must stop, as for a conflict.
    #[track_caller]
    pub fn git_stops<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) {
        let output = self.try_git(args);
        assert!(!output.status.success(), "git did not stop: {}", String::from_utf8_lossy(&output.stdout));
    }

    /// Writes a file in place, with the directories above it.
    #[track_caller]
    pub fn write(&self, path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("below the root")).expect("the parent can be made");
        fs::write(&path, bytes).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
    }

    /// Saves `notes/busy.txt` all the time while `work` is done, so that whoever watches is busy at every moment of it.
    pub fn while_busy<T>(&self, work: impl FnOnce() -> T) -> T {
        struct End<'a>(&'a AtomicBool);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut n = 0;
                while !done.load(Ordering::Relaxed) {
                    n += 1;
                    self.write("notes/busy.txt", format!("{n}\n"));
                }
            });
            // A panic in the work must end the writer too, or the scope would wait for it.
            let _end = End(&done);
            work()
        })
    }

    #[track_caller]
    pub fn remove(&self, path: impl AsRef<Path>) {
        let path = self.path(path);
        fs::remove_file(&path).unwrap_or_else(|e| panic!("remove {}: {e}", path.display()));
    }

    #[track_caller]
    pub fn remove_dir(&self, path: impl AsRef<Path>) {
        let path = self.path(path);
        fs::remove_dir_all(&path).unwrap_or_else(|e| panic!("remove {}: {e}", path.display()));
    }

    #[track_caller]
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) {
        let (from, to) = (self.path(from), self.path(to));
        fs::rename(&from, &to)
            .unwrap_or_else(|e| panic!("rename {} to {}: {e}", from.display(), to.display()));
    }

    /// Sets the permission bits of a file.
    #[track_caller]
    pub fn chmod(&self, path: impl AsRef<Path>, mode: u32) {
        let path = self.path(path);
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(&path, permissions).unwrap_or_else(|e| panic!("chmod {}: {e}", path.display()));
    }

    #[track_caller]
    pub fn symlink(&self, target: impl AsRef<Path>, path: impl AsRef<Path>) {
        let path = self.path(path);
        std::os::unix::fs::symlink(target, &path)
            .unwrap_or_else(|e| panic!("symlink {}: {e}", path.display()));
    }

    /// Commits everything that is not ignored.
    #[track_caller]
    pub fn commit_all(&self, message: &str) {
        self.git(["add", "-A"]);
        self.git(["commit", "-q", "--allow-empty", "-m", message]);
    }
}
