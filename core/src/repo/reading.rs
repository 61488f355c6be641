//! A large file while it is being read: what is known of its new content before all of it is.
//!
//! What a server has of the old content can be told from the blocks as they are counted, so that it need not wait until
//! the last one is. Whoever reads tells; whoever sends follows, and learns at the end what to call it.

use std::sync::Arc;

use tokio::sync::watch;

use super::blocks::{BlockHasher, Blocks, Lead, Part};
use crate::model::{ContentId, Leaf, RelPath};

/// Bytes read from one word to the next.
const TELL_BYTES: u64 = 1 << 20;

/// One reading of one large file. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reading {
    pub path: RelPath,
    /// Of the file when reading began, in bytes.
    pub size: u64,
    /// What the file held before.
    pub base: ContentId,
    news: watch::Receiver<Known>,
}

/// What is known by now.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// What the new content begins with, but for its last block.
    pub lead: Vec<Part>,
    /// What it turned out to be, once it was read to its end.
    pub leaf: Option<Leaf>,
}

/// The reader's end of it. Dropped without [`Teller::end`], the reading came to nothing.
#[derive(Debug)]
pub struct Teller {
    size: u64,
    told: u64,
    /// `None` once it was read again, from its beginning: what was told is void, and whoever follows hears so.
    live: Option<(Lead, watch::Sender<Known>)>,
}

impl Reading {
    /// `base` is what the file held before, with its blocks.
    pub fn begin(path: RelPath, size: u64, base: (ContentId, Arc<Blocks>)) -> (Self, Teller) {
        let (known, news) = watch::channel(Known::default());
        let live = Some((Lead::new(base.1, size), known));
        (Self { path, size, base: base.0, news }, Teller { size, told: 0, live })
    }

    /// Puts this one among others, of which one of the same file is past, as are those that are over.
    pub fn join(self, others: &mut Vec<Self>) {
        others.retain(|other| !other.is_over() && other.path != self.path);
        others.push(self);
    }

    /// True once there is nothing to follow any more.
    pub fn is_over(&self) -> bool {
        self.news.has_changed().is_err() || self.news.borrow().leaf.is_some()
    }

    /// What is known by now.
    pub fn known(&mut self) -> Known {
        self.news.borrow_and_update().clone()
    }

    /// Waits until more is known. False if the reading came to nothing.
    pub async fn goes_on(&mut self) -> bool {
        self.news.changed().await.is_ok()
    }
}

impl Teller {
    /// So much was read.
    pub fn tell(&mut self, read: &BlockHasher) {
        let Some((lead, known)) = &mut self.live else { return };
        if !lead.follow(read) {
            self.live = None;
        } else if lead.bytes() >= self.told + TELL_BYTES {
            self.told = lead.bytes();
            let parts = lead.parts().to_vec();
            known.send_modify(|known| known.lead = parts);
        }
    }

    /// It was read to its end.
    pub fn end(self, leaf: Leaf) {
        if let Some((_, known)) = self.live.filter(|_| leaf.signature.size == self.size) {
            known.send_modify(|known| known.leaf = Some(leaf));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{HashKind, Mode, Signature};
    use crate::repo::blocks::BLOCK_BYTES;

    const SIZE: u64 = 3 * TELL_BYTES;

    fn hasher_of(bytes: &[u8]) -> BlockHasher {
        let mut hasher = BlockHasher::new(SIZE);
        hasher.update(bytes);
        hasher
    }

    fn begun(old: &[u8]) -> (Reading, Teller) {
        let base = (ContentId::of(HashKind::Sha1, old), Arc::new(hasher_of(old).finish()));
        Reading::begin(RelPath::new("p").unwrap(), SIZE, base)
    }

    fn leaf(bytes: &[u8]) -> Leaf {
        let signature = Signature { size: bytes.len() as u64, ..Signature::default() };
        Leaf { mode: Mode::File, id: ContentId::of(HashKind::Sha1, bytes), signature }
    }

    #[test]
    fn what_is_the_same_is_known_before_the_end_and_the_last_block_after_it() {
        let old = vec![7; SIZE as usize];
        let (mut reading, mut teller) = begun(&old);
        teller.tell(&hasher_of(&old[..TELL_BYTES as usize - 1]));
        assert_eq!(reading.known().lead, []);
        teller.tell(&hasher_of(&old[..TELL_BYTES as usize]));
        assert_eq!(reading.known().lead, [Part::Same { old: 0..TELL_BYTES }]);
        teller.tell(&hasher_of(&old[..TELL_BYTES as usize + BLOCK_BYTES as usize]));
        assert_eq!(reading.known().lead, [Part::Same { old: 0..TELL_BYTES }], "no word for so little");
        teller.tell(&hasher_of(&old));
        assert_eq!(reading.known().lead, [Part::Same { old: 0..SIZE - BLOCK_BYTES }]);
        assert!(!reading.is_over());
        teller.end(leaf(&old));
        assert!(reading.is_over());
        assert_eq!(reading.known().leaf, Some(leaf(&old)));
    }

    #[test]
    fn a_reading_that_began_anew_or_ended_otherwise_came_to_nothing() {
        let old = vec![7; SIZE as usize];
        let ends: [fn(Teller, &[u8]); 3] = [
            |teller, _| drop(teller),
            |mut teller, old| {
                teller.tell(&hasher_of(&old[..2 * BLOCK_BYTES as usize]));
                teller.tell(&hasher_of(&old[..BLOCK_BYTES as usize]));
                teller.end(leaf(old));
            },
            |teller, old| teller.end(leaf(&old[1..])),
        ];
        for end in ends {
            let (mut reading, teller) = begun(&old);
            end(teller, &old);
            assert!(reading.is_over());
            assert_eq!(reading.known().leaf, None);
        }
    }
}
