//! Serving the service: on a listening socket, or on one connection that exists already.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use gitsync_core::wire::WINDOW_BYTES;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio_stream::StreamExt;
use tonic::transport::Server;
use tonic::transport::server::{Connected, TcpIncoming};

use crate::service::{Options, Service, Watch};
use crate::socket::Socket;

/// Streams on one connection, so targets of one client on one server.
const STREAMS: u32 = 256;
/// Malformed streams after which a connection is closed. tonic's own default is no limit.
const LOCAL_RESETS: usize = 64;
/// Streams opened and reset at once after which a connection is closed (rapid reset).
const PENDING_RESETS: usize = 20;
const HEADER_BYTES: u32 = 16 * 1024;
/// Largest HTTP/2 frame a client may send. Bulk is read in fewer calls than with HTTP/2's own 16 KiB; a save in another
/// stream waits behind one frame at most, which is 52 ms on a line of 10 Mbit/s.
const HTTP2_FRAME_BYTES: u32 = 64 * 1024;
const KEEPALIVE_EVERY: Duration = Duration::from_secs(20);
const KEEPALIVE_LIMIT: Duration = Duration::from_secs(10);

/// A server with every HTTP/2 limit set: tonic leaves two of hyper's off by default.
fn server() -> Server {
    Server::builder()
        .max_concurrent_streams(STREAMS)
        .http2_max_local_error_reset_streams(Some(LOCAL_RESETS))
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
        .http2_max_header_list_size(HEADER_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_LIMIT))
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(Some(HTTP2_FRAME_BYTES))
        .accept_http1(false)
}

/// Serves a listening socket until `ending` turns true; then streams end after the apply in hand.
pub async fn serve_tcp(
    listener: TcpListener,
    options: Options,
    watch: Watch,
    mut ending: watch::Receiver<bool>,
) -> io::Result<()> {
    // Set here, because tonic does so only for listeners it made itself.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let service = Service::new(options, watch, ending.clone()).into_server();
    server()
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, async move {
            let _ = ending.wait_for(|ending| *ending).await;
        })
        .await
        .map_err(io::Error::other)
}

/// Like [`serve_tcp`], on a Unix socket. Its name goes when this ends.
pub async fn serve_unix(
    mut socket: Socket,
    options: Options,
    watch: Watch,
    mut ending: watch::Receiver<bool>,
) -> io::Result<()> {
    let peers = socket.take_peers().ok_or(io::ErrorKind::InvalidInput)?;
    let service = Service::new(options, watch, ending.clone()).into_server();
    server()
        .add_service(service)
        .serve_with_incoming_shutdown(peers, async move {
            let _ = ending.wait_for(|ending| *ending).await;
            // No name any more, so nobody waits in vain while the last streams end.
            drop(socket);
        })
        .await
        .map_err(io::Error::other)
}

/// Serves one connection until its other side goes away.
pub async fn serve_io<IO>(io: IO, options: Options) -> io::Result<()>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (gone, closed) = oneshot::channel::<()>();
    let (_ending, ending_seen) = watch::channel(false);
    let io = Single { io, _gone: gone };
    // An incoming stream that ends would end the server, and the connection with it.
    let incoming = tokio_stream::once(Ok::<_, io::Error>(io)).chain(tokio_stream::pending());
    server()
        .add_service(Service::new(options, Watch::default(), ending_seen).into_server())
        .serve_with_incoming_shutdown(incoming, async move {
            // Fires when the connection, and the sender in it, is dropped.
            let _ = closed.await;
        })
        .await
        .map_err(io::Error::other)
}

/// A connection that tells when it is dropped.
struct Single<IO> {
    io: IO,
    _gone: oneshot::Sender<()>,
}

impl<IO> Connected for Single<IO> {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl<IO: AsyncRead + Unpin> AsyncRead for Single<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Single<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
