//! Many removals in a row are looked at together, once they are over: the brake is to judge all of them, not the first
//! that happen to be seen.
//!
//! Pure: removals and the time go in, the end of the waiting comes out.

use std::time::{Duration, Instant};

/// So many removals in a row are edits like any other, and wait for nothing.
const FEW: u32 = 4;
/// A removal belongs to those before it if it follows within this time, and
const QUIET: Duration = Duration::from_millis(100);
/// if all of them take no longer than this.
const LATEST: Duration = Duration::from_secs(2);

/// Removals that follow each other closely.
#[derive(Debug, Default)]
pub struct Burst(Option<Row>);

#[derive(Debug, Clone, Copy)]
struct Row {
    began: Instant,
    last: Instant,
    count: u32,
}

impl Burst {
    /// A file that git tracks was removed.
    pub fn note(&mut self, now: Instant) {
        let row = self.0.filter(|row| now < row.end());
        let (began, count) = row.map_or((now, 0), |row| (row.began, row.count));
        self.0 = Some(Row { began, last: now, count: count + 1 });
    }

    /// When removals are to be looked at, if they are so many that they wait. It may have passed.
    pub fn until(&self) -> Option<Instant> {
        self.0.filter(|row| row.count > FEW).map(Row::end)
    }
}

impl Row {
    fn end(self) -> Instant {
        (self.last + QUIET).min(self.began + LATEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// The end of the waiting after removals at these times, in milliseconds.
    fn until(times: impl IntoIterator<Item = u64>) -> Option<u64> {
        let (mut burst, start) = (Burst::default(), Instant::now());
        for time in times {
            burst.note(start + ms(time));
        }
        burst.until().map(|at| at.duration_since(start).as_millis() as u64)
    }

    #[test]
    fn many_removals_wait_until_they_are_over_and_few_do_not() {
        assert_eq!(until([]), None);
        assert_eq!(until([0, 1, 2, 3]), None);
        assert_eq!(until([0, 1, 2, 3, 4]), Some(104));
        assert_eq!(until((0..50).map(|n| n * 15)), Some(49 * 15 + 100));
        // Each on its own.
        assert_eq!(until((0..50).map(|n| n * 100)), None);
        assert_eq!(until([0, 1, 2, 3, 103, 104]), None);
    }

    #[test]
    fn no_removal_waits_for_longer_than_two_seconds() {
        assert_eq!(until((0..40).map(|n| n * 50)), Some(2_000));
        // What comes then is counted anew.
        assert_eq!(until((0..41).map(|n| n * 50)), None);
        assert_eq!(until((0..45).map(|n| n * 50)), Some(44 * 50 + 100));
    }
}
