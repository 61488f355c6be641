//! How much may be under way ahead of patches, so that an edit never waits long behind it.
//!
//! What is sent ahead shares a stream with the edits: whatever of it is on its way stands before the next edit, and
//! what the server has not taken in yet takes its memory. So it is kept to what the way and the server take in a round
//! trip and [`QUEUE`] on top, measured by what they took in lately.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};

/// An edit waits about this long behind small contents that went ahead; large ones the server writes beside it.
const QUEUE: Duration = Duration::from_millis(15);
/// Always allowed: a message that travels while another is taken in.
const LEAST_BYTES: u64 = 512 << 10;
const MOST_BYTES: u64 = 16 << 20;
/// The shortest round trip is looked for anew this often: ways change.
const RTT_EVERY: Duration = Duration::from_secs(10);

/// Credit of one stream, in bytes.
#[derive(Debug)]
pub struct Credit {
    state: Mutex<State>,
    room: Notify,
}

#[derive(Debug)]
struct State {
    under_way: u64,
    allowed: u64,
    taken: u64,
    /// Messages not taken in yet, oldest first.
    sent: VecDeque<Sent>,
    /// Shortest time a message took, and when that was found.
    rtt: Option<(Duration, Instant)>,
}

#[derive(Debug)]
struct Sent {
    bytes: u64,
    at: Instant,
    /// Bytes that had been taken in by then.
    taken: u64,
}

impl Default for Credit {
    fn default() -> Self {
        let state = State { under_way: 0, allowed: LEAST_BYTES, taken: 0, sent: VecDeque::new(), rtt: None };
        Self { state: Mutex::new(state), room: Notify::new() }
    }
}

impl Credit {
    /// Waits until a message of `bytes` may be sent and there is a place for it on its way: the place is to be used at
    /// once. A wait that is given up costs no credit, for no message will ever give it back. `None`: the way has ended.
    pub async fn spend<'w, T>(&self, bytes: u64, way: &'w mpsc::Sender<T>) -> Option<mpsc::Permit<'w, T>> {
        loop {
            let room = self.room.notified();
            if self.lock().has_room() {
                let place = way.reserve().await.ok()?;
                if self.lock().spend(bytes, Instant::now()) {
                    return Some(place);
                }
            }
            room.await;
        }
    }

    /// The server took in a message of `bytes`.
    pub fn taken(&self, bytes: u64, now: Instant) {
        self.lock().taken(bytes, now);
        // All of them: one that waits may not be polled just now.
        self.room.notify_waiters();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_room(&self) -> bool {
        self.under_way < self.allowed
    }

    fn spend(&mut self, bytes: u64, now: Instant) -> bool {
        if !self.has_room() {
            return false;
        }
        self.under_way += bytes;
        self.sent.push_back(Sent { bytes, at: now, taken: self.taken });
        true
    }

    fn taken(&mut self, bytes: u64, now: Instant) {
        self.under_way = self.under_way.saturating_sub(bytes);
        self.taken += bytes;
        let Some(sent) = self.sent.pop_front().filter(|sent| sent.bytes == bytes) else { return };
        let took = now.saturating_duration_since(sent.at).max(Duration::from_micros(1));
        let fresh = |(_, at): &(Duration, Instant)| now.saturating_duration_since(*at) < RTT_EVERY;
        let rtt = match self.rtt.filter(fresh) {
            Some(known) if known.0 <= took => known,
            _ => (took, now),
        };
        self.rtt = Some(rtt);
        // What was taken in while this message was under way is what way and server can do.
        let rate = (self.taken - sent.taken) as f64 / took.as_secs_f64();
        let wanted = (rate * (rtt.0 + QUEUE).as_secs_f64()) as u64;
        self.allowed = ((self.allowed * 3 + wanted) / 4).clamp(LEAST_BYTES, MOST_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends for three seconds over a way of `rate` bytes a second and `rtt`; gives back what was allowed at the end.
    fn settled(rate: f64, rtt: Duration) -> (u64, f64) {
        const MESSAGE: u64 = 256 << 10;
        let start = Instant::now();
        let mut state = Credit::default().lock().take();
        let (mut now, mut free_at) = (start, start);
        let mut under_way: VecDeque<Instant> = VecDeque::new();
        while now < start + Duration::from_secs(3) {
            while state.spend(MESSAGE, now) {
                free_at = free_at.max(now) + Duration::from_secs_f64(MESSAGE as f64 / rate);
                under_way.push_back(free_at + rtt);
            }
            now = under_way.pop_front().unwrap();
            state.taken(MESSAGE, now);
        }
        (state.allowed, state.taken as f64 / 3.0 / rate)
    }

    impl State {
        fn take(&mut self) -> State {
            let fresh =
                State { under_way: 0, allowed: LEAST_BYTES, taken: 0, sent: VecDeque::new(), rtt: None };
            std::mem::replace(self, fresh)
        }
    }

    #[test]
    fn a_way_is_filled_and_no_more_than_a_short_queue_stands_in_it() {
        let ms = Duration::from_millis;
        for (rate, rtt) in [(500e6, ms(0)), (100e6, ms(2)), (100e6, ms(40)), (12e6, ms(80)), (400e6, ms(20))]
        {
            let (allowed, used) = settled(rate, rtt);
            let queue = (allowed as f64 - rate * rtt.as_secs_f64()) / rate;
            assert!(used > 0.8, "{rate} {rtt:?}: {used} of the way used");
            assert!(queue < 0.05, "{rate} {rtt:?}: {queue} s of queue");
        }
    }

    /// What is stopped while it waits for a place on a full way has not been sent.
    #[tokio::test]
    async fn a_wait_that_is_given_up_costs_nothing() {
        let (way, mut other_end) = mpsc::channel(1);
        let credit = Credit::default();
        way.send(0).await.unwrap();
        for _ in 0..10 {
            let waiting = credit.spend(LEAST_BYTES, &way);
            tokio::select! {
                biased;
                place = waiting => panic!("there was no place: {place:?}"),
                () = std::future::ready(()) => {}
            }
        }
        assert_eq!(credit.lock().under_way, 0);
        other_end.recv().await.unwrap();
        credit.spend(LEAST_BYTES, &way).await.unwrap().send(1);
        assert_eq!(credit.lock().under_way, LEAST_BYTES);
        drop(other_end);
        credit.taken(LEAST_BYTES, Instant::now());
        assert!(credit.spend(1, &way).await.is_none());
    }
}
