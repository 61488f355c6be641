//! A `gitsync-server serve` with one mutation, for the tests of the tests: it acks every delete and makes only most of
//! them. Which ones it forgets depends on the seed. The suite has to notice.
//!
//! ```sh
//! forgetful serve --root DIR --listen 127.0.0.1:0 --insecure --seed 1
//! ```

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use clap::Parser;
use gitsync_server::workspace::folding::Folding;
use gitsync_server::workspace::fs::{Space, Stat, WorkspaceFs};
use gitsync_server::workspace::os::OsFs;
use gitsync_server::{Options, Service, Watch};
use rustix::io::Result;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;

/// One of so many deletes is forgotten.
const ONE_OF: u64 = 4;

#[derive(Debug, Parser)]
enum Cli {
    Serve {
        #[arg(long)]
        root: PathBuf,
        #[arg(long)]
        listen: String,
        #[arg(long)]
        seed: u64,
        #[arg(long)]
        insecure: bool,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Cli::Serve { root, listen, seed, insecure: _ } = Cli::parse();
    let listener = TcpListener::bind(&listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    println!("listening on {}", listener.local_addr()?);
    let options = Options { root, adopt: false, workspaces: Arc::default(), software: "forgetful".into() };
    let (_ending, ending) = watch::channel(false);
    let service = Service::new(options, Watch::default(), ending).on(Arc::new(ForgetfulFs::new(seed)));
    tonic::transport::Server::builder()
        .add_service(service.into_server())
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await
        .context("the listener failed")
}

/// A deleted file is moved into the stage, looked at and unlinked there. This one moves some of them back instead.
#[derive(Debug)]
struct ForgetfulFs {
    os: OsFs,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rng: fastrand::Rng,
    /// Where what lies in the stage under this name came from.
    origins: HashMap<Vec<u8>, (OwnedFd, Vec<u8>)>,
}

impl ForgetfulFs {
    fn new(seed: u64) -> Self {
        let state = State { rng: fastrand::Rng::with_seed(seed), origins: HashMap::new() };
        Self { os: OsFs::default(), state: Mutex::new(state) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Fd<'a> = BorrowedFd<'a>;

/// Operations that are the operating system's.
macro_rules! honest {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => {
        $(fn $name(&self, $($arg: $type),*) -> $result {
            self.os.$name($($arg),*)
        })*
    };
}

impl WorkspaceFs for ForgetfulFs {
    fn rename_new(&self, from: Fd<'_>, name: &[u8], to: Fd<'_>, new: &[u8]) -> Result<()> {
        self.os.rename_new(from, name, to, new)?;
        // The stage's names for what was displaced.
        if new.strip_prefix(b"d").is_some_and(|number| number.iter().all(u8::is_ascii_digit)) {
            let origin = (from.try_clone_to_owned().map_err(|_| rustix::io::Errno::MFILE)?, name.to_vec());
            self.state().origins.insert(new.to_vec(), origin);
        }
        Ok(())
    }

    fn unlink(&self, at: Fd<'_>, name: &[u8]) -> Result<()> {
        let mut state = self.state();
        let origin = state.origins.remove(name);
        if let Some((dir, old)) = origin
            && state.rng.u64(..ONE_OF) == 0
        {
            eprintln!("forgotten: {}", String::from_utf8_lossy(&old));
            return self.os.rename_new(at, name, dir.as_fd(), &old);
        }
        drop(state);
        self.os.unlink(at, name)
    }

    honest! {
        open_dir(at: Fd<'_>, path: &[u8]) -> Result<OwnedFd>;
        open_file(at: Fd<'_>, name: &[u8]) -> Result<OwnedFd>;
        create(at: Fd<'_>, name: &[u8]) -> Result<OwnedFd>;
        append(at: Fd<'_>, name: &[u8]) -> Result<OwnedFd>;
        read(file: Fd<'_>, buffer: &mut [u8]) -> Result<usize>;
        read_at(file: Fd<'_>, buffer: &mut [u8], offset: u64) -> Result<usize>;
        write_all(file: Fd<'_>, bytes: &[u8]) -> Result<()>;
        stat(file: Fd<'_>) -> Result<Stat>;
        stat_at(at: Fd<'_>, name: &[u8]) -> Result<Stat>;
        symlink(target: &[u8], at: Fd<'_>, name: &[u8]) -> Result<()>;
        read_link(at: Fd<'_>, name: &[u8]) -> Result<Vec<u8>>;
        rename(from: Fd<'_>, name: &[u8], to: Fd<'_>, new: &[u8]) -> Result<()>;
        exchange(a: Fd<'_>, name: &[u8], b: Fd<'_>, other: &[u8]) -> Result<()>;
        mkdir(at: Fd<'_>, name: &[u8], permissions: u32) -> Result<()>;
        rmdir(at: Fd<'_>, name: &[u8]) -> Result<()>;
        list(dir: Fd<'_>) -> Result<Vec<Vec<u8>>>;
        chmod(file: Fd<'_>, permissions: u32) -> Result<()>;
        touch(file: Fd<'_>) -> Result<()>;
        sync(file: Fd<'_>) -> Result<()>;
        sync_dir(dir: Fd<'_>) -> Result<()>;
        sync_fs(dir: Fd<'_>) -> Result<()>;
        space(dir: Fd<'_>) -> Result<Space>;
        boot_id() -> String;
        folding(dir: Fd<'_>) -> Result<Folding>;
    }
}
