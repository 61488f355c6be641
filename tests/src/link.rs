//! A way to a server on loopback that can go dead as a network does: nothing passes any more, and nobody is told.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::server::Server;

/// Its threads end with the connections, or with the test.
#[derive(Debug)]
pub struct Link {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    accepted: AtomicUsize,
    /// Connections up to this many are dead.
    dead: AtomicUsize,
    /// Both ends of dead ones, kept open: a closed one would tell.
    kept: Mutex<Vec<TcpStream>>,
}

impl Link {
    /// To a server that listens on TCP.
    pub fn to(server: &Server) -> Self {
        let far = server.url().strip_prefix("http://").expect("a server on TCP").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let addr = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared::default());
        let ours = Arc::clone(&shared);
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let number = ours.accepted.fetch_add(1, Ordering::SeqCst) + 1;
                let Ok(far) = TcpStream::connect(&far) else { continue };
                let (Ok(near_2), Ok(far_2)) = (near.try_clone(), far.try_clone()) else { continue };
                for (from, to) in [(near, far), (far_2, near_2)] {
                    let shared = Arc::clone(&ours);
                    std::thread::spawn(move || shared.pass(number, from, to));
                }
            }
        });
        Self { addr, shared }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// How many connections were made.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Nothing passes any more on the connections there are. New ones work.
    pub fn go_dead(&self) {
        self.shared.dead.store(self.accepted(), Ordering::SeqCst);
    }
}

impl Shared {
    fn pass(&self, number: usize, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = vec![0; 64 << 10];
        let mut pass = || -> io::Result<bool> {
            loop {
                let read = from.read(&mut buffer)?;
                if self.dead.load(Ordering::SeqCst) >= number {
                    return Ok(true);
                }
                to.write_all(&buffer[..read])?;
                if read == 0 {
                    to.shutdown(std::net::Shutdown::Write)?;
                    return Ok(false);
                }
            }
        };
        // An end that broke is no news here.
        if pass().unwrap_or(false) {
            self.kept.lock().expect("no thread of these panics").extend([from, to]);
        }
    }
}
