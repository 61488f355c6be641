//! Contents that are offered to a server by name, because it may have them among the objects of its clone: what git
//! brings back on a switch was there before. The books here say what is asked and what the answers were.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::model::{ContentId, Needed};
use crate::wire::{OFFERED, OFFERED_BYTES, Offered};

/// Fewer contents,
const LEAST_CONTENTS: usize = 8;
/// of fewer bytes together, are sent sooner than asked for.
const LEAST_BYTES: u64 = 4096;
/// Most bytes of contents in one message, so that the server has its hands free again soon.
const MESSAGE_CONTENTS_BYTES: u64 = 8 << 20;

/// True for a content that may be offered.
pub fn can_be_offered(content: &Needed) -> bool {
    content.size <= OFFERED_BYTES
}

/// True if offering the contents of a step first may save more than it costs.
pub fn is_worth_it(contents: &[Needed]) -> bool {
    are_many(contents.len()) || contents.iter().map(|content| content.size).sum::<u64>() >= LEAST_BYTES
}

/// So many contents in one step are git's work, not a save.
pub fn are_many(contents: usize) -> bool {
    contents >= LEAST_CONTENTS
}

/// What one server was offered.
#[derive(Debug, Default)]
pub struct Offers {
    /// Offers without an answer, oldest first.
    under_way: VecDeque<Vec<Needed>>,
    /// Their contents, and whether the answer still matters.
    open: HashMap<ContentId, bool>,
    /// What is known not to be there.
    lacking: HashSet<ContentId>,
}

/// What an answer says of the contents of one offer.
#[derive(Debug, Default)]
pub struct Answer {
    /// Staged from now on.
    pub staged: Vec<ContentId>,
    /// Staged too, and of no use any more.
    pub in_vain: Vec<ContentId>,
    /// To be sent.
    pub lacking: Vec<Needed>,
}

impl Offers {
    /// Takes contents as offered, none of which is already, and gives back the messages that say so.
    pub fn offer(&mut self, contents: Vec<Needed>) -> Vec<Vec<Offered>> {
        let (mut messages, mut bytes) = (Vec::new(), 0);
        for content in contents {
            let offered = Offered { id: content.id, size: content.size };
            bytes += content.size;
            self.open.insert(content.id, true);
            match (self.under_way.back_mut(), messages.last_mut()) {
                (Some(last), Some(message)) if last.len() < OFFERED && bytes <= MESSAGE_CONTENTS_BYTES => {
                    last.push(content);
                    Vec::push(message, offered);
                }
                _ => {
                    bytes = content.size;
                    self.under_way.push_back(vec![content]);
                    messages.push(vec![offered]);
                }
            }
        }
        messages
    }

    /// The answer to the oldest offer. `None` if it cannot be one.
    pub fn answer(&mut self, lacking: &[u32]) -> Option<Answer> {
        let offer = self.under_way.pop_front()?;
        let mut lacking = lacking.iter().map(|position| *position as usize).peekable();
        let mut answer = Answer::default();
        for (position, content) in offer.into_iter().enumerate() {
            let is_wanted = self.open.remove(&content.id).unwrap_or(false);
            match (lacking.next_if_eq(&position), is_wanted) {
                (None, true) => answer.staged.push(content.id),
                (None, false) => answer.in_vain.push(content.id),
                (Some(_), true) => {
                    self.lacking.insert(content.id);
                    answer.lacking.push(content);
                }
                (Some(_), false) => {}
            }
        }
        lacking.next().is_none().then_some(answer)
    }

    /// True if it is offered and there is no answer.
    pub fn is_open(&self, id: &ContentId) -> bool {
        self.open.contains_key(id)
    }

    /// True if the answer is still to come and matters.
    pub fn is_awaited(&self, id: &ContentId) -> bool {
        self.open.get(id) == Some(&true)
    }

    /// True if the server said that it does not have it, while it was needed all the time since.
    pub fn is_lacking(&self, id: &ContentId) -> bool {
        self.lacking.contains(id)
    }

    pub fn open_len(&self) -> usize {
        self.open.len()
    }

    /// The answer on these does not matter any more: they go with a patch.
    pub fn disown<'a>(&mut self, ids: impl IntoIterator<Item = &'a ContentId>) {
        for id in ids {
            if let Some(is_awaited) = self.open.get_mut(id) {
                *is_awaited = false;
            }
        }
    }

    /// Nothing but these is needed any more.
    pub fn retain(&mut self, needed: &HashMap<ContentId, u64>) {
        for (id, is_awaited) in &mut self.open {
            *is_awaited &= needed.contains_key(id);
        }
        self.lacking.retain(|id| needed.contains_key(id));
    }

    /// The stream has ended: no answer comes any more.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{HashKind, RelPath, Signature};

    fn content(n: usize, size: u64) -> Needed {
        let name = n.to_string();
        let id = ContentId::of(HashKind::Sha1, name.as_bytes());
        Needed { path: RelPath::new(&name).unwrap(), id, size, signature: Signature::default(), base: None }
    }

    #[test]
    fn few_and_short_contents_are_not_worth_an_offer() {
        let contents = |count: usize, size| (0..count).map(|n| content(n, size)).collect::<Vec<_>>();
        assert!(!is_worth_it(&contents(LEAST_CONTENTS - 1, 10)));
        assert!(is_worth_it(&contents(LEAST_CONTENTS, 10)));
        assert!(is_worth_it(&contents(1, LEAST_BYTES)));
        assert!(can_be_offered(&content(0, OFFERED_BYTES)));
        assert!(!can_be_offered(&content(0, OFFERED_BYTES + 1)));
    }

    #[test]
    fn messages_keep_their_bounds() {
        let mut offers = Offers::default();
        let shape = |messages: Vec<Vec<Offered>>| messages.iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(
            shape(offers.offer((0..2 * OFFERED + 1).map(|n| content(n, 1)).collect())),
            [OFFERED, OFFERED, 1]
        );
        let most = (MESSAGE_CONTENTS_BYTES / OFFERED_BYTES) as usize;
        let large = (5_000..5_001 + most).map(|n| content(n, OFFERED_BYTES));
        assert_eq!(shape(offers.offer(large.collect())), [most, 1]);
        assert_eq!(shape(offers.offer(Vec::new())), [0; 0]);
        assert_eq!(offers.open_len(), 2 * OFFERED + 2 + most);
        for _ in 0..5 {
            assert!(offers.answer(&[]).is_some());
        }
        assert!(offers.answer(&[]).is_none(), "nothing is asked");
        assert_eq!(offers.open_len(), 0);
    }

    #[test]
    fn an_answer_says_what_is_staged_what_is_in_vain_and_what_is_to_be_sent() {
        let mut offers = Offers::default();
        let all: Vec<Needed> = (0..6).map(|n| content(n, 1)).collect();
        offers.offer(all.clone());
        offers.disown([&all[1].id]);
        let needed = |which: &[usize]| which.iter().map(|n| (all[*n].id, 1)).collect::<HashMap<_, _>>();
        offers.retain(&needed(&[0, 1, 2, 4]));
        assert!(offers.is_awaited(&all[0].id) && !offers.is_awaited(&all[1].id));
        let answer = offers.answer(&[2, 3]).unwrap();
        let ids = |which: &[usize]| which.iter().map(|n| all[*n].id).collect::<Vec<_>>();
        assert_eq!(answer.staged, ids(&[0, 4]));
        assert_eq!(answer.in_vain, ids(&[1, 5]));
        assert_eq!(answer.lacking, [all[2].clone()]);
        assert!(offers.is_lacking(&all[2].id) && !offers.is_lacking(&all[3].id));
        offers.retain(&needed(&[]));
        assert!(!offers.is_lacking(&all[2].id));
    }

    #[test]
    fn an_answer_beyond_what_was_offered_is_none() {
        let mut offers = Offers::default();
        offers.offer(vec![content(0, 1)]);
        assert!(offers.answer(&[1]).is_none());
    }
}
