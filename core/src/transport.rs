//! Ways to reach a server. Every one of them carries the same gRPC service and codec.

use std::path::Path;

/// A server in this process. The program that embeds one provides it, so that the engine need not
/// know the server's code.
pub trait EmbeddedHost: Send + Sync + std::fmt::Debug {
    /// Serves one connection for workspaces below `root` and gives back the client's end of it.
    fn connect(&self, root: &Path) -> std::io::Result<tokio::io::DuplexStream>;
}
