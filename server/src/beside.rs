//! What the threads beside a conversation share.

use std::sync::Arc;

/// Bytes that may wait for such a thread. A client's credit is smaller.
pub const WAITING_BYTES_MAX: u64 = 64 << 20;

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
