//! Where the running instance of a configuration is found, and who may be it.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gitsync_core::model::{ContentId, HashKind};
use rustix::fs::{FlockOperation, flock};
use rustix::process::getuid;

/// Longest path of a socket, in bytes: `sun_path` of every system we run on holds at least this.
const SOCKET_PATH_MAX: usize = 100;
/// A killed instance's lock lives on in a git that was just being started, until that is one (and the lock is closed).
const ORPHAN_LIMIT: Duration = Duration::from_secs(2);
const ORPHAN_WAIT: Duration = Duration::from_millis(5);

/// The files of one configuration's instance.
#[derive(Debug, Clone)]
pub struct Place {
    /// Entered by this user alone.
    dir: PathBuf,
    /// Stands for the configuration.
    name: String,
}

/// The place cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error("cannot use {path}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} belongs to another user")]
    Foreign { path: PathBuf },
    #[error("{path} is not a directory")]
    NoDirectory { path: PathBuf },
    #[error("{path} is in the way: it is not a socket")]
    NoSocket { path: PathBuf },
}

/// How a claim went.
#[derive(Debug)]
pub enum Claimed {
    /// This process is the instance for as long as the claim lives.
    Ours(Claim),
    /// Another process is; its id if it is known.
    Taken(Option<u32>),
}

/// Makes this process the only instance of its configuration. Dropped, it takes its files away.
#[derive(Debug)]
pub struct Claim {
    place: Place,
    lock: File,
    listens: bool,
}

impl Place {
    /// `config` is the configuration's file, which exists. `env` answers for environment variables.
    pub fn of(config: &Path, env: impl Fn(&str) -> Option<OsString>) -> Result<Self, PlaceError> {
        let canonical = config.canonicalize().map_err(io_at(config))?;
        let id = ContentId::of(HashKind::Sha1, canonical.as_os_str().as_bytes()).to_string();
        let absolute = |name| env(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
        let dir = match absolute("XDG_RUNTIME_DIR") {
            Some(dir) => dir.join("gitsync"),
            None => {
                let shared = absolute("TMPDIR").unwrap_or_else(|| "/tmp".into());
                shared.join(format!("gitsync-{}", getuid().as_raw()))
            }
        };
        Ok(Self { dir, name: id[..16].to_owned() })
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join(format!("{}.sock", self.name))
    }

    /// Connects to the instance. `None` if nobody listens.
    pub fn connect(&self) -> Result<Option<UnixStream>, PlaceError> {
        match self.dir.symlink_metadata() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            _ => self.check_dir()?,
        }
        let socket = self.socket();
        match self.short(&socket, |path| UnixStream::connect(path)) {
            Ok(stream) => Ok(Some(stream)),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            Err(e) => Err(io_at(&socket)(e)),
        }
    }

    /// Tries to become the instance.
    pub fn claim(&self) -> Result<Claimed, PlaceError> {
        // Where there is a runtime directory, the one above exists; below a shared one it always does.
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(io_at(&self.dir))?;
        self.check_dir()?;
        let path = self.lock_path();
        let give_up = Instant::now() + ORPHAN_LIMIT;
        loop {
            let mut lock = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(io_at(&path))?;
            if let Err(e) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                if e != rustix::io::Errno::WOULDBLOCK {
                    return Err(io_at(&path)(e.into()));
                }
                let mut text = String::new();
                // Who holds it is only for people.
                let _ = lock.read_to_string(&mut text);
                let holder = text.trim().parse().ok();
                if holder.is_some_and(is_gone) && Instant::now() < give_up {
                    std::thread::sleep(ORPHAN_WAIT);
                    continue;
                }
                return Ok(Claimed::Taken(holder));
            }
            // The last instance may have taken the file away between our open and our lock.
            let here = path.symlink_metadata().ok().map(|m| (m.dev(), m.ino()));
            let ours = lock.metadata().map_err(io_at(&path))?;
            if here != Some((ours.dev(), ours.ino())) {
                continue;
            }
            let noted = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
            noted.map_err(io_at(&path))?;
            return Ok(Claimed::Ours(Claim { place: self.clone(), lock, listens: false }));
        }
    }

    fn lock_path(&self) -> PathBuf {
        self.dir.join(format!("{}.lock", self.name))
    }

    fn check_dir(&self) -> Result<(), PlaceError> {
        let path = self.dir.clone();
        // A link here could have been put by somebody else, to a directory of ours.
        let found = path.symlink_metadata().map_err(io_at(&path))?;
        if !found.is_dir() {
            return Err(PlaceError::NoDirectory { path });
        }
        if found.uid() != getuid().as_raw() {
            return Err(PlaceError::Foreign { path });
        }
        if found.mode() & 0o077 != 0 {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).map_err(io_at(&path))?;
        }
        Ok(())
    }

    /// A socket's path may be no longer than about 100 bytes; through the descriptor of its directory any
    /// one is short enough, on Linux.
    fn short<T>(&self, socket: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
        if socket.as_os_str().len() <= SOCKET_PATH_MAX {
            return act(socket);
        }
        let dir = File::open(&self.dir)?;
        act(Path::new(&format!("/proc/self/fd/{}/{}.sock", dir.as_raw_fd(), self.name)))
    }
}

impl Claim {
    /// Opens the socket, in place of one that an instance left behind which did not end in order.
    pub fn listen(&mut self) -> Result<UnixListener, PlaceError> {
        let path = self.place.socket();
        match path.symlink_metadata() {
            Ok(found) if found.file_type().is_socket() => fs::remove_file(&path).map_err(io_at(&path))?,
            Ok(_) => return Err(PlaceError::NoSocket { path }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(io_at(&path)(e)),
        }
        let listener = self.place.short(&path, |path| UnixListener::bind(path)).map_err(io_at(&path))?;
        self.listens = true;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(io_at(&path))?;
        listener.set_nonblocking(true).map_err(io_at(&path))?;
        Ok(listener)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // What stays behind is replaced by the next instance.
        if self.listens {
            let _ = fs::remove_file(self.place.socket());
        }
        let _ = fs::remove_file(self.place.lock_path());
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

/// True if there is no such process.
fn is_gone(id: u32) -> bool {
    let id = i32::try_from(id).ok().and_then(rustix::process::Pid::from_raw);
    id.is_some_and(|id| rustix::process::test_kill_process(id) == Err(rustix::io::Errno::SRCH))
}

fn io_at(path: &Path) -> impl Fn(io::Error) -> PlaceError {
    let path = path.to_owned();
    move |source| PlaceError::Io { path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(dir: &Path) -> Place {
        let config = dir.join("c.toml");
        fs::write(&config, "").unwrap();
        Place::of(&config, |name| (name == "XDG_RUNTIME_DIR").then(|| dir.join("run").into())).unwrap()
    }

    fn ours(place: &Place) -> Claim {
        match place.claim().unwrap() {
            Claimed::Ours(claim) => claim,
            taken => panic!("{taken:?}"),
        }
    }

    #[test]
    fn one_configuration_has_one_instance_and_one_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = place(dir.path());
        assert!(at.connect().unwrap().is_none());
        let mut claim = ours(&at);
        assert!(matches!(at.claim().unwrap(), Claimed::Taken(Some(id)) if id == std::process::id()));
        let listener = claim.listen().unwrap();
        assert!(at.connect().unwrap().is_some());
        let mode = |path: &Path| path.symlink_metadata().unwrap().mode() & 0o777;
        assert_eq!((mode(&at.dir), mode(&at.socket())), (0o700, 0o600));
        // Another way to the same file is the same configuration.
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
        let again = Place::of(&dir.path().join("link/c.toml"), |name| {
            (name == "XDG_RUNTIME_DIR").then(|| dir.path().join("run").into())
        });
        assert_eq!(again.unwrap().name, at.name);
        drop((listener, claim));
        assert_eq!(fs::read_dir(&at.dir).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_instance_left_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let at = place(dir.path());
        fs::create_dir_all(&at.dir).unwrap();
        drop(UnixListener::bind(at.socket()).unwrap());
        fs::write(at.lock_path(), "1\n").unwrap();
        assert!(at.connect().unwrap().is_none());
        let mut claim = ours(&at);
        let _listener = claim.listen().unwrap();
        assert!(at.connect().unwrap().is_some());
        // Something else of that name is nobody's to remove.
        drop(claim);
        fs::write(at.socket(), "precious").unwrap();
        assert!(matches!(ours(&at).listen(), Err(PlaceError::NoSocket { .. })));
        assert_eq!(fs::read(at.socket()).unwrap(), b"precious");
    }

    #[test]
    fn a_lock_that_outlives_its_process_for_a_moment_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let at = place(dir.path());
        let held = ours(&at);
        let gone = std::process::Command::new("true").spawn().and_then(|mut child| {
            let id = child.id();
            child.wait().map(|_| id)
        });
        fs::write(at.lock_path(), format!("{}\n", gone.unwrap())).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| sender.send(matches!(at.claim().unwrap(), Claimed::Ours(_))).unwrap());
            drop(held);
        });
        assert!(receiver.recv().unwrap());
    }

    #[test]
    fn a_directory_that_is_a_link_or_a_file_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let at = place(dir.path());
        fs::create_dir(dir.path().join("run")).unwrap();
        std::os::unix::fs::symlink(dir.path(), &at.dir).unwrap();
        assert!(matches!(at.connect(), Err(PlaceError::NoDirectory { .. })));
        assert!(matches!(at.claim(), Err(PlaceError::NoDirectory { .. } | PlaceError::Io { .. })));
    }

    #[test]
    fn a_long_path_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        let at = place(&deep);
        let mut claim = ours(&at);
        let _listener = claim.listen().unwrap();
        assert!(at.connect().unwrap().is_some());
    }

    #[test]
    fn without_a_runtime_directory_a_private_one_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("c.toml");
        fs::write(&config, "").unwrap();
        let tmp = dir.path().to_owned();
        let at = Place::of(&config, |name| match name {
            "XDG_RUNTIME_DIR" => Some("relative".into()),
            "TMPDIR" => Some(tmp.clone().into()),
            _ => None,
        });
        assert_eq!(at.unwrap().dir, dir.path().join(format!("gitsync-{}", getuid().as_raw())));
    }
}
