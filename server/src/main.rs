//! `gitsync-server`: flags, one call, exit code.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use gitsync_server::cli::{Cli, Command, Listen, Serve};
use gitsync_server::config::Config;
use gitsync_server::socket::Socket;
use gitsync_server::{Options, Watch, memory, root, serve_tcp, serve_unix};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

const USAGE: u8 = 2;
const CONFIG: u8 = 78;
/// After a signal to end, applies in hand get this long. We are to be gone within 10 s.
const ENDING_LIMIT: Duration = Duration::from_secs(8);
const LEAVING_LIMIT: Duration = Duration::from_secs(1);
/// A port in use is waited for this long,
const ORPHAN_LIMIT: Duration = Duration::from_secs(1);
/// looked at this often.
const ORPHAN_WAIT: Duration = Duration::from_millis(10);

fn main() -> ExitCode {
    memory::give_back();
    let cli = Cli::parse();
    let level = match cli.verbose {
        0 => tracing::Level::INFO,
        1 => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let serve = match cli.command {
        Command::Serve(serve) => serve,
        Command::Other(words) => {
            let word = words.first().map(String::as_str).unwrap_or_default();
            let known = ["stdio", "token", "pair", "workspaces", "doctor"].contains(&word);
            match known {
                true => eprintln!("error: '{word}' is not in this version"),
                false => eprintln!("error: unknown command '{word}'; see --help"),
            }
            return ExitCode::from(USAGE);
        }
    };
    let addresses = match serve.addresses(std::env::var_os("XDG_RUNTIME_DIR")) {
        Ok(addresses) => addresses,
        Err(e) => {
            eprintln!("error: {e}");
            return ExitCode::from(USAGE);
        }
    };
    let workspaces = match serve.config.as_deref().map(Config::load).transpose() {
        Ok(config) => Arc::new(config.unwrap_or_default()),
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(CONFIG);
        }
    };
    // One thread moves bytes; what blocks has threads of its own.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: cannot start: {e}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(run(&serve, &addresses, workspaces));
    // A thread in the middle of something long is not waited for: the next opening finds what it left.
    runtime.shutdown_timeout(LEAVING_LIMIT);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(serve: &Serve, addresses: &[Listen], workspaces: Arc<Config>) -> anyhow::Result<()> {
    let options = Options {
        root: root::prepare(&serve.root)?,
        adopt: serve.adopt,
        workspaces,
        software: concat!("gitsync-server ", env!("CARGO_PKG_VERSION")).into(),
    };
    let watch = Watch { drift_scan: serve.drift_scan };
    // Before the first line on stdout: whoever reads it may send a signal at once.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (ending, ending_seen) = watch::channel(false);
    let mut listeners = JoinSet::new();
    for address in addresses {
        let bound = match address {
            Listen::Tcp(address) => {
                let failed = || format!("cannot listen on {address}");
                let listener = bind(address).await.with_context(failed)?;
                let bound = listener.local_addr()?.to_string();
                listeners.spawn(serve_tcp(listener, options.clone(), watch, ending_seen.clone()));
                bound
            }
            Listen::Unix(path) => {
                let socket = Socket::bind(path)?;
                listeners.spawn(serve_unix(socket, options.clone(), watch, ending_seen.clone()));
                format!("unix:{}", path.display())
            }
        };
        let mut stdout = std::io::stdout();
        writeln!(stdout, "listening on {bound}")
            .and_then(|()| stdout.flush())
            .context("cannot write to stdout")?;
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        Some(ended) = listeners.join_next() => ended?.context("a listener failed")?,
    }
    ending.send_replace(true);
    let all = async { while listeners.join_next().await.is_some() {} };
    if tokio::time::timeout(ENDING_LIMIT, all).await.is_err() {
        tracing::warn!("connections are still open after {ENDING_LIMIT:?}, leaving");
    }
    Ok(())
}

/// A killed server's port lives on in a git that was just being started, until that is one (and the port is closed).
async fn bind(address: &SocketAddr) -> std::io::Result<TcpListener> {
    let give_up = Instant::now() + ORPHAN_LIMIT;
    loop {
        match TcpListener::bind(address).await {
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < give_up => {
                tokio::time::sleep(ORPHAN_WAIT).await;
            }
            bound => return bound,
        }
    }
}
