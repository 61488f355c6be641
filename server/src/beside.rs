//! What the threads beside a conversation share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that may wait for such a thread. A client's credit is smaller.
const WAITING_BYTES_MAX: u64 = 64 << 20;

/// Bytes that wait for such a thread, counted on both sides of an unbounded channel.
#[derive(Debug, Default)]
pub struct Waiting(AtomicU64);

impl Waiting {
    /// So many more wait; false if there was no credit for them.
    pub fn add(&self, bytes: u64) -> bool {
        self.0.fetch_add(bytes, Ordering::Relaxed) <= WAITING_BYTES_MAX
    }

    /// So many do not wait any longer.
    pub fn done(&self, bytes: u64) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Rung when there is something to tell.
pub type Bell = Arc<dyn Fn() + Send + Sync>;

/// Rings if a thread ends by a panic.
pub struct Alarm(pub Bell);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.0)();
        }
    }
}
