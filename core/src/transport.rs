//! Ways to reach a server. Every one of them carries the same gRPC service and codec.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

use crate::config::ServerUrl;
use crate::wire::WINDOW_BYTES;

const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// A peer that is silent this long is asked whether it is there,
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
/// and given up after this long.
const KEEPALIVE_LIMIT: Duration = Duration::from_secs(3);

/// A server in this process. The program that embeds one provides it, so that the engine need not
/// know the server's code.
pub trait EmbeddedHost: Send + Sync + std::fmt::Debug {
    /// Serves one connection for workspaces below `root` and gives back the client's end of it.
    fn connect(&self, root: &Path) -> std::io::Result<tokio::io::DuplexStream>;
}

/// Names the run of the kernel this program is in, and with it the machine; empty where that has no name.
pub fn kernel_run() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let name = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        name.unwrap_or_default().trim().to_owned()
    })
}

/// The URL cannot be connected to at all.
#[derive(Debug, thiserror::Error)]
#[error("not an address: {url}")]
pub struct AddressError {
    url: String,
    source: tonic::transport::Error,
}

/// The connection to a server, which all of its targets share.
#[derive(Debug)]
pub struct Connection {
    url: ServerUrl,
    embedded: Arc<dyn EmbeddedHost>,
    channel: Mutex<Channel>,
}

impl Connection {
    pub fn new(url: ServerUrl, embedded: Arc<dyn EmbeddedHost>) -> Result<Self, AddressError> {
        let channel = Mutex::new(channel(&url, &embedded)?);
        Ok(Self { url, embedded, channel })
    }

    /// What streams are opened on from now on.
    pub fn channel(&self) -> Channel {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn url(&self) -> &ServerUrl {
        &self.url
    }

    /// The next stream is opened on a connection of its own: the one there is may be dead, which HTTP/2 finds out only
    /// after a while.
    pub fn renew(&self) {
        // It was an address before.
        if let Ok(new) = channel(&self.url, &self.embedded) {
            *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = new;
        }
    }
}

/// One HTTP/2 connection to a server, made when first used and made again when it is lost.
pub fn channel(url: &ServerUrl, embedded: &Arc<dyn EmbeddedHost>) -> Result<Channel, AddressError> {
    match url {
        ServerUrl::Embedded(root) => Ok(embedded_channel(root.clone(), embedded.clone())),
        ServerUrl::Unix(path) => Ok(unix_channel(path.clone())),
        ServerUrl::Http { host, port } => {
            let url = if host.contains(':') {
                format!("http://[{host}]:{port}")
            } else {
                format!("http://{host}:{port}")
            };
            let endpoint =
                Endpoint::from_shared(url.clone()).map_err(|source| AddressError { url, source })?;
            Ok(tuned(endpoint).connect_lazy())
        }
    }
}

fn embedded_channel(root: PathBuf, host: Arc<dyn EmbeddedHost>) -> Channel {
    let connector = tower::service_fn(move |_| {
        let connected = host.connect(&root).map(TokioIo::new);
        async move { connected }
    });
    // The address is never looked at.
    tuned(Endpoint::from_static("http://embedded")).connect_with_connector_lazy(connector)
}

fn unix_channel(path: PathBuf) -> Channel {
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The address is never looked at.
    tuned(Endpoint::from_static("http://unix")).connect_with_connector_lazy(connector)
}

fn tuned(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_LIMIT)
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .http2_keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_LIMIT)
        .keep_alive_while_idle(true)
}
