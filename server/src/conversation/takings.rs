//! Answers to what came in the background: in its order, whoever takes it in.

use std::collections::VecDeque;

use gitsync_core::wire::ToClient;

/// Who takes in what does not go at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taker {
    Contents,
    History,
}

/// Messages that were not answered yet, oldest first.
#[derive(Debug, Default)]
pub struct Takings {
    /// Weight, and who has still to take it in.
    queue: VecDeque<(u64, Option<Taker>)>,
}

impl Takings {
    /// A message of this weight was taken in.
    pub fn take(&mut self, weight: u64) {
        self.queue.push_back((weight, None));
    }

    /// A message of this weight will be.
    pub fn hand_to(&mut self, taker: Taker, weight: u64) {
        self.queue.push_back((weight, Some(taker)));
    }

    /// The oldest message of `taker`'s was taken in.
    pub fn taken(&mut self, taker: Taker) {
        if let Some((_, waits)) = self.queue.iter_mut().find(|(_, waits)| *waits == Some(taker)) {
            *waits = None;
        }
    }

    /// Nobody is left to take in what `taker` has not.
    pub fn gone(&mut self, taker: Taker) {
        for (_, waits) in &mut self.queue {
            waits.take_if(|waits| *waits == taker);
        }
    }

    /// What can be answered by now.
    pub fn ready(&mut self) -> Vec<ToClient> {
        let mut ready = Vec::new();
        while let Some((weight, None)) = self.queue.front().copied() {
            self.queue.pop_front();
            ready.push(ToClient::Taken { weight });
        }
        ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_keep_the_order_of_what_came() {
        let mut takings = Takings::default();
        let weights = |takings: &mut Takings| -> Vec<u64> {
            let weight = |reply| match reply {
                ToClient::Taken { weight } => weight,
                other => panic!("{other:?}"),
            };
            takings.ready().into_iter().map(weight).collect()
        };
        takings.take(1);
        takings.hand_to(Taker::History, 2);
        takings.hand_to(Taker::Contents, 3);
        takings.hand_to(Taker::History, 4);
        takings.take(5);
        assert_eq!(weights(&mut takings), [1]);
        takings.taken(Taker::Contents);
        assert_eq!(weights(&mut takings), [0; 0]);
        takings.taken(Taker::History);
        assert_eq!(weights(&mut takings), [2, 3]);
        takings.hand_to(Taker::Contents, 6);
        takings.gone(Taker::History);
        assert_eq!(weights(&mut takings), [4, 5]);
        takings.gone(Taker::Contents);
        assert_eq!(weights(&mut takings), [6]);
    }
}
