//! The command line of `gitsync-server`.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use gitsync_core::config::units;

use crate::socket;

/// Applies gitsync patches to workspaces below one root directory.
#[derive(Debug, Parser)]
#[command(name = "gitsync-server", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// More log on stderr; twice for still more
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Listen for clients
    Serve(Serve),
    /// Anything else this version does not know
    #[command(external_subcommand)]
    Other(Vec<String>),
}

#[derive(Debug, clap::Args)]
pub struct Serve {
    /// Directory whose sub-directories are the workspaces; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub root: PathBuf,
    /// HOST:PORT or unix:PATH to listen on; may be given several times; port 0 takes a free one
    /// [default: unix:$XDG_RUNTIME_DIR/gitsync/server.sock]
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<String>,
    /// Listen on a TCP port without TLS and tokens: any local account can then write what you build
    #[arg(long)]
    pub insecure: bool,
    /// Let directories that hold something already become workspaces
    #[arg(long)]
    pub adopt: bool,
    /// File that says what is to be done with single workspaces; see docs/server.md
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How often the files of open workspaces are checked for changes made by others
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = interval)]
    pub drift_scan: Duration,
}

fn interval(text: &str) -> Result<Duration, String> {
    match units::parse_duration(text) {
        Ok(Duration::ZERO) => Err("it must be longer than nothing".to_owned()),
        Ok(duration) => Ok(duration),
        Err(e) => Err(e.to_string()),
    }
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// The words of the command line do not go together.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    #[error("not an address to listen on: {0} (expected HOST:PORT, such as 127.0.0.1:7420, or unix:PATH)")]
    Address(String),
    #[error("XDG_RUNTIME_DIR is not set, so there is no default address; pass --listen, such as unix:PATH")]
    NoDefault,
    #[error(transparent)]
    Default(#[from] socket::SocketError),
    #[error(
        "{0} needs --insecure: without TLS and tokens any account on this machine can write to your workspaces"
    )]
    Insecure(SocketAddr),
    #[error(
        "{0} is not a loopback address: without TLS this server listens on loopback only; reach it through `ssh -L`"
    )]
    NotLoopback(SocketAddr),
}

impl Serve {
    /// Where to listen, checked. `runtime_dir` is `$XDG_RUNTIME_DIR`, where the default lies.
    pub fn addresses(&self, runtime_dir: Option<OsString>) -> Result<Vec<Listen>, UsageError> {
        if self.listen.is_empty() {
            let dir = runtime_dir.map(PathBuf::from).filter(|dir| dir.is_absolute());
            let path = socket::default_path(&dir.ok_or(UsageError::NoDefault)?)?;
            return Ok(vec![Listen::Unix(path)]);
        }
        self.listen.iter().map(|text| self.address(text)).collect()
    }

    fn address(&self, text: &str) -> Result<Listen, UsageError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err(UsageError::Address(text.to_owned())),
                path => Ok(Listen::Unix(path.into())),
            };
        }
        let text_with_ip = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
        let address: SocketAddr = text_with_ip
            .as_deref()
            .unwrap_or(text)
            .parse()
            .map_err(|_| UsageError::Address(text.to_owned()))?;
        if !address.ip().is_loopback() {
            return Err(UsageError::NotLoopback(address));
        }
        if !self.insecure {
            return Err(UsageError::Insecure(address));
        }
        Ok(Listen::Tcp(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(words: &[&str]) -> Serve {
        let words = ["gitsync-server", "serve", "--root", "r"].iter().chain(words);
        match Cli::try_parse_from(words).unwrap().command {
            Command::Serve(serve) => serve,
            Command::Other(words) => panic!("{words:?}"),
        }
    }

    fn listen(address: &str, insecure: bool) -> Result<Vec<Listen>, UsageError> {
        let words = ["--listen", address, "--insecure"];
        serve(&words[..if insecure { 3 } else { 2 }]).addresses(None)
    }

    #[test]
    fn tcp_only_on_loopback_and_only_when_said_to_be_insecure() {
        for good in ["127.0.0.1:0", "localhost:7420", "[::1]:7420"] {
            assert!(matches!(&listen(good, true).unwrap()[..], [Listen::Tcp(_)]), "{good}");
            assert!(matches!(listen(good, false), Err(UsageError::Insecure(_))), "{good}");
        }
        assert!(matches!(listen("0.0.0.0:7420", true), Err(UsageError::NotLoopback(_))));
        for bad in ["nonsense", "unix:", "7420", ""] {
            assert!(matches!(listen(bad, true), Err(UsageError::Address(_))), "{bad}");
        }
    }

    #[test]
    fn a_unix_socket_needs_no_word_more_and_is_the_default() {
        assert_eq!(listen("unix:/run/s", false).unwrap(), [Listen::Unix("/run/s".into())]);
        let dir = tempfile::tempdir().unwrap();
        let default = serve(&[]).addresses(Some(dir.path().into())).unwrap();
        assert_eq!(default, [Listen::Unix(dir.path().join("gitsync/server.sock"))]);
        for unset in [None, Some("".into()), Some("relative".into())] {
            assert!(matches!(serve(&[]).addresses(unset), Err(UsageError::NoDefault)));
        }
    }

    #[test]
    fn intervals() {
        assert_eq!(serve(&[]).drift_scan, Duration::from_secs(60));
        assert_eq!(serve(&["--drift-scan", "100ms"]).drift_scan, Duration::from_millis(100));
        for bad in ["0s", "5", "fast"] {
            assert!(
                Cli::try_parse_from(["gitsync-server", "serve", "--root", "r", "--drift-scan", bad]).is_err(),
                "{bad}"
            );
        }
    }
}
