//! `gitsync-server`: flags, one call, exit code.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use gitsync_server::cli::{Cli, Command, Serve};
use gitsync_server::{Options, serve_tcp};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

const USAGE: u8 = 2;
/// After a signal to end, applies in hand get this long.
const ENDING_LIMIT: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
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
    let addresses = match serve.addresses() {
        Ok(addresses) => addresses,
        Err(e) => {
            eprintln!("error: {e}");
            return ExitCode::from(USAGE);
        }
    };
    match run(&serve, &addresses) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(serve: &Serve, addresses: &[std::net::SocketAddr]) -> anyhow::Result<()> {
    std::fs::create_dir_all(&serve.root)
        .with_context(|| format!("cannot make the root directory {}", serve.root.display()))?;
    let root = serve
        .root
        .canonicalize()
        .with_context(|| format!("cannot find the root directory {}", serve.root.display()))?;
    let options = Options {
        root,
        adopt: serve.adopt,
        software: concat!("gitsync-server ", env!("CARGO_PKG_VERSION")).into(),
    };
    // Before the first line on stdout: whoever reads it may send a signal at once.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (ending, ending_seen) = watch::channel(false);
    let mut listeners = JoinSet::new();
    for address in addresses {
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
        let bound = listener.local_addr()?;
        listeners.spawn(serve_tcp(listener, options.clone(), ending_seen.clone()));
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
