//! The configuration, checked: every name resolves, every path is absolute, nothing is optional that
//! the engine needs.
//!
//! A file becomes a [`Config`] in two steps: `raw` [walks](walk) the spanned TOML so that all errors are found at
//! once and each knows its line, then `parse` resolves names and paths against each other. `locate`
//! says which file that is; nothing here looks at the repositories or servers themselves.

mod locate;
mod parse;
mod problem;
mod raw;
pub mod units;
mod url;
pub mod walk;

use std::fmt;
use std::path::{Path, PathBuf};

pub use locate::{Located, Nowhere, Source, cache_dir, locate, state_dir};
pub use problem::{ConfigErrors, Place, Problem, quote};
pub use url::DEFAULT_PORT;

use crate::model::{HistoryDepth, TargetId};

/// A whole, checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file it came from, absolute.
    pub file: PathBuf,
    /// In file order; names are unique.
    pub servers: Vec<ServerConfig>,
    /// In file order; names are unique.
    pub repos: Vec<RepoConfig>,
    pub ui: UiConfig,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    pub name: String,
    pub url: ServerUrl,
}

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ServerUrl {
    /// In this process, with this absolute root directory.
    Embedded(PathBuf),
    /// gRPC without TLS; the host is a loopback address: `localhost`, 127.0.0.0/8, or `::1` (without
    /// brackets; `Display` puts them on).
    Http { host: String, port: u16 },
    /// A Unix socket, absolute.
    Unix(PathBuf),
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded(root) => write!(f, "embedded:{}", root.display()),
            Self::Http { host, port } if host.contains(':') => write!(f, "http://[{host}]:{port}"),
            Self::Http { host, port } => write!(f, "http://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoConfig {
    pub name: String,
    /// Absolute; lies in a git working tree (checked when it is opened).
    pub path: PathBuf,
    /// Names of servers, resolved from names and globs, in the order of `Config::servers`.
    pub servers: Vec<String>,
    /// The directory below the server's root.
    pub workspace: String,
    /// Patterns in gitignore syntax that hide untracked paths, on top of git's own rules.
    pub exclude: Vec<String>,
    /// Patterns in gitignore syntax of ignored paths that are mirrored all the same.
    pub include: Vec<String>,
    /// In bytes; larger files are withheld.
    pub max_file_size: u64,
    pub drift: DriftPolicy,
    pub history: HistoryDepth,
}

impl RepoConfig {
    /// True if the same files of the same working tree are looked at. What else may differ is each session's own matter.
    pub fn observes_the_same(&self, other: &Self) -> bool {
        // Each key by name, so that a new one is put on one side or the other.
        let Self {
            path,
            exclude,
            include,
            max_file_size,
            name: _,
            servers: _,
            workspace: _,
            drift: _,
            history: _,
        } = self;
        *path == other.path
            && *exclude == other.exclude
            && *include == other.include
            && *max_file_size == other.max_file_size
    }
}

/// What happens to a managed file that somebody changed on a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DriftPolicy {
    /// A copy is kept there, then the client's version is put back.
    #[default]
    Overwrite,
    /// It stays as it is, withheld, until a person decides.
    Hold,
}

/// `max-file-size` when it is not given: 1 GiB.
pub const MAX_FILE_SIZE: u64 = 1 << 30;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UiConfig {
    pub theme: Option<String>,
    pub read_only: bool,
}

impl Config {
    /// Reads and checks a file.
    pub fn load(file: &Path) -> Result<Self, ConfigErrors> {
        parse::load(file)
    }

    /// Checks `text` as if it stood in `file`, which also says what relative paths are relative to.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigErrors> {
        parse::parse(text, file)
    }

    /// Every (repo, server) pair, repos first.
    pub fn targets(&self) -> Vec<TargetId> {
        self.repos
            .iter()
            .flat_map(|repo| {
                repo.servers.iter().map(|server| TargetId { repo: repo.name.clone(), server: server.clone() })
            })
            .collect()
    }
}
