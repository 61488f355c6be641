//! The command line of `gitsync-server`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

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
    /// Address to listen on; may be given several times; port 0 takes a free one
    #[arg(long, value_name = "ADDR", required = true)]
    pub listen: Vec<String>,
    /// Listen on a TCP port without TLS and tokens: any local account can then write what you build
    #[arg(long)]
    pub insecure: bool,
    /// Let directories that hold something already become workspaces
    #[arg(long)]
    pub adopt: bool,
}

/// The words of the command line do not go together.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    #[error("not an address to listen on: {0} (expected HOST:PORT, such as 127.0.0.1:7420)")]
    Address(String),
    #[error("{0} is not in this version; for now listen on a loopback address, such as 127.0.0.1:7420")]
    NotYet(String),
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
    /// The addresses, checked.
    pub fn addresses(&self) -> Result<Vec<SocketAddr>, UsageError> {
        self.listen.iter().map(|text| self.address(text)).collect()
    }

    fn address(&self, text: &str) -> Result<SocketAddr, UsageError> {
        if text.starts_with("unix:") {
            return Err(UsageError::NotYet(format!("--listen {text}")));
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
        Ok(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(listen: &str, insecure: bool) -> Serve {
        Serve { root: "r".into(), listen: vec![listen.into()], insecure, adopt: false }
    }

    #[test]
    fn only_loopback_and_only_when_said_to_be_insecure() {
        assert!(serve("127.0.0.1:0", true).addresses().is_ok());
        assert!(serve("localhost:7420", true).addresses().is_ok());
        assert!(serve("[::1]:7420", true).addresses().is_ok());
        assert!(matches!(serve("127.0.0.1:0", false).addresses(), Err(UsageError::Insecure(_))));
        assert!(matches!(serve("0.0.0.0:7420", true).addresses(), Err(UsageError::NotLoopback(_))));
        assert!(matches!(serve("unix:/tmp/s", true).addresses(), Err(UsageError::NotYet(_))));
        assert!(matches!(serve("nonsense", true).addresses(), Err(UsageError::Address(_))));
    }
}
