//! The Unix socket a server listens on, for the account it runs as and nobody else.
//!
//! The socket gets its mode before its name: it is made in a private directory and moved from there, so
//! there is no moment in which another account could connect. Who connects is checked all the same.

use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::net::{UnixListener, UnixStream};
use tokio_stream::Stream;

/// After an accept that failed for want of something (descriptors, memory) the next one waits this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A killed server may accept for this long;
const DYING_LIMIT: Duration = Duration::from_secs(1);
/// it is asked this often.
const DYING_WAIT: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("another server answers at {}; end it first, or listen elsewhere", .0.display())]
    Answers(PathBuf),
    #[error("{} is there and is no socket; remove it, or listen elsewhere", .0.display())]
    NotASocket(PathBuf),
    #[error("{} is not a private directory of this account; make it so with `chmod 700`, or pass --listen", .0.display())]
    NotPrivate(PathBuf),
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

/// A listening socket with a name. Dropping it removes the name, if it is still this socket's.
#[derive(Debug)]
pub struct Socket {
    listener: Option<UnixListener>,
    path: PathBuf,
    made: (u64, u64),
}

impl Socket {
    /// Listens at `path`. A socket nobody answers at is replaced. Must be called within a tokio runtime.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |action| {
            let path = path.to_owned();
            move |source| SocketError::Io { action, path, source }
        };
        match std::fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed("look at")(e)),
            Ok(there) if !there.file_type().is_socket() => {
                return Err(SocketError::NotASocket(path.to_owned()));
            }
            Ok(_) => match knock(path) {
                Ok(()) => return Err(SocketError::Answers(path.to_owned())),
                Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {}
                Err(e) => return Err(failed("find out whether a server answers at")(e)),
            },
        }
        let private = Private::beside(path).map_err(failed("make a private directory beside"))?;
        let first = private.0.join("s");
        let listener = UnixListener::bind(&first).map_err(failed("listen on"))?;
        std::fs::set_permissions(&first, std::fs::Permissions::from_mode(0o600))
            .map_err(failed("set the mode of"))?;
        let made = identity(&first).map_err(failed("look at"))?;
        std::fs::rename(&first, path).map_err(failed("give its name to"))?;
        Ok(Self { listener: Some(listener), path: path.to_owned(), made })
    }

    /// The connections of accounts that may speak to this server: its own, and root.
    pub(crate) fn take_peers(&mut self) -> Option<Peers> {
        let uid = rustix::process::geteuid().as_raw();
        self.listener.take().map(|listener| Peers { listener, uid, pause: None })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|there| there == self.made) {
            // Nothing answers at it any more, so whoever comes next replaces it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// `dir/gitsync/server.sock`, where `dir` is the account's runtime directory. Makes the directory between.
pub fn default_path(dir: &Path) -> Result<PathBuf, SocketError> {
    let own = dir.join("gitsync");
    let failed = |action| {
        let path = own.clone();
        move |source| SocketError::Io { action, path, source }
    };
    match std::fs::DirBuilder::new().mode(0o700).create(&own) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(failed("make")(e)),
    }
    let meta = std::fs::symlink_metadata(&own).map_err(failed("look at"))?;
    let ours = meta.uid() == rustix::process::geteuid().as_raw();
    if !meta.is_dir() || !ours || meta.mode() & 0o077 != 0 {
        return Err(SocketError::NotPrivate(own));
    }
    Ok(own.join("server.sock"))
}

/// Fine if a server answers. One that was just killed does so until it is gone, so a first answer is not believed.
fn knock(path: &Path) -> io::Result<()> {
    let give_up = Instant::now() + DYING_LIMIT;
    loop {
        std::os::unix::net::UnixStream::connect(path)?;
        if Instant::now() >= give_up {
            return Ok(());
        }
        std::thread::sleep(DYING_WAIT);
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let meta = std::fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

/// A directory nobody else can enter, removed when dropped.
struct Private(PathBuf);

impl Private {
    /// A name no longer than the socket's own may be: such a path has some hundred bytes at most.
    fn beside(path: &Path) -> io::Result<Self> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        for n in 0..100 {
            let dir = parent.join(format!(".g{n}"));
            match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
                Ok(()) => return Ok(Self(dir)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.0.join("s"));
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Connections, as they come.
pub(crate) struct Peers {
    listener: UnixListener,
    uid: u32,
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
}

/// Root could read our memory just as well.
fn is_welcome(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

impl Stream for Peers {
    type Item = io::Result<UnixStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(cx)) {
                Ok((stream, _)) => match stream.peer_cred() {
                    Ok(peer) if is_welcome(peer.uid(), self.uid) => return Poll::Ready(Some(Ok(stream))),
                    Ok(peer) => tracing::warn!(uid = peer.uid(), "refused a connection of another account"),
                    Err(e) => tracing::warn!("refused a connection of an unknown account: {e}"),
                },
                Err(e) => {
                    tracing::warn!("cannot accept a connection: {e}");
                    self.pause = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_private_and_goes_with_its_server() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let socket = Socket::bind(&path).unwrap();
        let meta = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!(meta.mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
        assert!(matches!(Socket::bind(&path), Err(SocketError::Answers(_))));
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn only_a_dead_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = Socket::bind(&path).unwrap();
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        // Another one's name is not removed with ours.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "a file").unwrap();
        drop(socket);
        assert!(path.exists());
        assert!(matches!(Socket::bind(&path), Err(SocketError::NotASocket(_))));
    }

    #[tokio::test]
    async fn a_server_that_is_just_ending_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let dying = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let ending = std::thread::spawn(move || {
            dying.accept().unwrap();
            drop(dying);
        });
        Socket::bind(&path).unwrap();
        ending.join().unwrap();
    }

    #[test]
    fn the_default_is_in_a_private_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = default_path(dir.path()).unwrap();
        assert_eq!(path, dir.path().join("gitsync/server.sock"));
        assert_eq!(default_path(dir.path()).unwrap(), path);
        let own = path.parent().unwrap();
        assert_eq!(std::fs::metadata(own).unwrap().mode() & 0o777, 0o700);
        std::fs::set_permissions(own, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(default_path(dir.path()), Err(SocketError::NotPrivate(_))));
        std::fs::remove_dir(own).unwrap();
        std::os::unix::fs::symlink("/tmp", own).unwrap();
        assert!(matches!(default_path(dir.path()), Err(SocketError::NotPrivate(_))));
    }

    #[test]
    fn who_is_welcome() {
        for (peer, own, welcome) in
            [(1000, 1000, true), (0, 1000, true), (1001, 1000, false), (1000, 0, false), (0, 0, true)]
        {
            assert_eq!(is_welcome(peer, own), welcome, "{peer} at {own}");
        }
    }
}
