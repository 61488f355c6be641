//! Servers inside this process: the same code as `gitsync-server`, reached through memory.

use std::io;
use std::path::Path;
use std::sync::Arc;

use gitsync_core::transport::EmbeddedHost;
use gitsync_server::{Options, serve_io};
use tokio::io::DuplexStream;
use tokio::runtime::Handle;

/// Bytes on their way in each direction before the writer waits.
const PIPE_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub struct Embedded;

impl EmbeddedHost for Embedded {
    fn connect(&self, root: &Path) -> io::Result<DuplexStream> {
        let runtime = Handle::try_current().map_err(io::Error::other)?;
        let unfit = |e: io::Error| io::Error::new(e.kind(), format!("cannot use {}: {e}", root.display()));
        std::fs::create_dir_all(root).map_err(unfit)?;
        let (client, server) = tokio::io::duplex(PIPE_BYTES);
        let options = Options {
            root: root.to_owned(),
            adopt: false,
            workspaces: Arc::default(),
            software: concat!("gitsync-tui ", env!("CARGO_PKG_VERSION"), " (embedded)").into(),
        };
        // Ends when the client's end is dropped.
        runtime.spawn(async move {
            if let Err(error) = serve_io(server, options).await {
                tracing::warn!("an embedded server's connection ended: {error}");
            }
        });
        Ok(client)
    }
}
