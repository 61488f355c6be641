//! What a large file was made of, so that only what changed of it has to travel.
//!
//! A file's blocks are counted twice, from its beginning and from its end, so that bytes put in or taken out in the
//! middle leave the blocks on both sides what they were. A block's hash only has to be unlikely to be wrong: the id
//! the server computes of the result decides.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::model::ContentId;

pub const BLOCK_BYTES: u64 = 16 << 10;
/// Most new bytes in a [`Lead`]: they travel before anybody knows that the file holds still.
const LEAD_NEW_BYTES: u64 = 1 << 20;
/// All remembered block lists together.
const BUDGET_BYTES: usize = 16 << 20;

/// The block hashes of one content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocks {
    size: u64,
    /// From the beginning; the last may be short.
    front: Vec<u128>,
    /// From the end, whole blocks only; empty if the size is a multiple of a block's, where they are the same.
    back: VecDeque<u128>,
}

/// A stretch of a new content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// As many bytes as the range has, from there in the old content.
    Same { old: Range<u64> },
    /// These bytes of the new content.
    New { new: Range<u64> },
}

impl Blocks {
    /// How `self` can be made from `old`, in order and without gaps.
    pub fn made_from(&self, old: &Blocks) -> Vec<Part> {
        if self.size == old.size {
            return self.in_place(old);
        }
        let least = self.size.min(old.size);
        let whole = (least / BLOCK_BYTES) as usize;
        let same = |(a, b): &(&u128, &u128)| a == b;
        let lead =
            self.front.iter().zip(&old.front).take(whole).take_while(same).count() as u64 * BLOCK_BYTES;
        let tail = self.backwards().zip(old.backwards()).take_while(|(a, b)| a == b).count() as u64;
        let tail = tail.min((least - lead) / BLOCK_BYTES) * BLOCK_BYTES;
        let mut parts = vec![
            Part::Same { old: 0..lead },
            Part::New { new: lead..self.size - tail },
            Part::Same { old: old.size - tail..old.size },
        ];
        parts.retain(|part| !part.is_empty());
        parts
    }

    fn in_place(&self, old: &Blocks) -> Vec<Part> {
        let mut parts: Vec<Part> = Vec::new();
        for (i, (new, old)) in self.front.iter().zip(&old.front).enumerate() {
            let start = i as u64 * BLOCK_BYTES;
            let end = (start + BLOCK_BYTES).min(self.size);
            match (parts.last_mut(), new == old) {
                (Some(Part::Same { old }), true) => old.end = end,
                (Some(Part::New { new }), false) => new.end = end,
                (_, true) => parts.push(Part::Same { old: start..end }),
                (_, false) => parts.push(Part::New { new: start..end }),
            }
        }
        parts
    }

    /// Whole blocks, the last one first.
    fn backwards(&self) -> Box<dyn Iterator<Item = &u128> + '_> {
        match self.size % BLOCK_BYTES {
            0 => Box::new(self.front.iter().rev()),
            _ => Box::new(self.back.iter()),
        }
    }

    fn bytes(&self) -> usize {
        (self.front.len() + self.back.len()) * size_of::<u128>()
    }
}

impl Part {
    /// How many bytes of the new content it is.
    pub fn bytes(&self) -> u64 {
        match self {
            Part::Same { old: range } | Part::New { new: range } => range.end - range.start,
        }
    }

    fn is_empty(&self) -> bool {
        self.bytes() == 0
    }
}

/// What comes from `offset` of the new content on.
pub fn beyond(parts: &[Part], offset: u64) -> Vec<Part> {
    let (mut rest, mut at) = (Vec::new(), 0);
    for part in parts {
        let skip = offset.saturating_sub(at).min(part.bytes());
        at += part.bytes();
        let part = match part {
            Part::Same { old } => Part::Same { old: old.start + skip..old.end },
            Part::New { new } => Part::New { new: new.start + skip..new.end },
        };
        rest.extend((!part.is_empty()).then_some(part));
    }
    rest
}

/// How a content begins that is still being counted, by the blocks of the one before it. Never its last block.
#[derive(Debug)]
pub struct Lead {
    old: Arc<Blocks>,
    size: u64,
    parts: Vec<Part>,
    /// Blocks of the new content that are in the parts.
    blocks: usize,
    /// Nothing beyond can be told before the end.
    is_cut: bool,
    /// Bytes of new parts.
    new: u64,
}

impl Lead {
    /// For a content of `size` bytes.
    pub fn new(old: Arc<Blocks>, size: u64) -> Self {
        Self { old, size, parts: Vec::new(), blocks: 0, is_cut: false, new: 0 }
    }

    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Of the new content, that the parts make.
    pub fn bytes(&self) -> u64 {
        self.blocks as u64 * BLOCK_BYTES
    }

    /// Takes in what was counted since. False if that is not how it began.
    pub fn follow(&mut self, counted: &BlockHasher) -> bool {
        let counted_blocks = counted.front.hashes.len();
        if counted.size != self.size || counted_blocks < self.blocks {
            return false;
        }
        let before_last = (self.size.saturating_sub(1) / BLOCK_BYTES) as usize;
        while !self.is_cut && self.blocks < counted_blocks.min(before_last) {
            let is_same = self.old.front.get(self.blocks) == counted.front.hashes.get(self.blocks);
            // Of another size, all behind the first difference may have moved; and much that is new is no lead.
            match is_same || self.size == self.old.size && self.new < LEAD_NEW_BYTES {
                true => self.push(is_same),
                false => self.is_cut = true,
            }
        }
        true
    }

    fn push(&mut self, is_same: bool) {
        let range = self.bytes()..self.bytes() + BLOCK_BYTES;
        match (self.parts.last_mut(), is_same) {
            (Some(Part::Same { old }), true) => old.end = range.end,
            (Some(Part::New { new }), false) => new.end = range.end,
            (_, true) => self.parts.push(Part::Same { old: range }),
            (_, false) => self.parts.push(Part::New { new: range }),
        }
        self.blocks += 1;
        self.new += if is_same { 0 } else { BLOCK_BYTES };
    }
}

/// Makes [`Blocks`] in one pass over a content of known size.
#[expect(missing_debug_implementations, reason = "the hashers' inner states say nothing")]
pub struct BlockHasher {
    size: u64,
    front: Cutter,
    /// Not there where both counts cut at the same places.
    back: Option<Cutter>,
}

impl BlockHasher {
    pub fn new(size: u64) -> Self {
        let rest = size % BLOCK_BYTES;
        Self { size, front: Cutter::new(BLOCK_BYTES), back: (rest > 0).then(|| Cutter::new(rest)) }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.front.update(bytes);
        if let Some(back) = &mut self.back {
            back.update(bytes);
        }
    }

    pub fn finish(self) -> Blocks {
        let back = self.back.map_or_else(VecDeque::new, |cutter| {
            // The first piece was the short one.
            cutter.finish().into_iter().skip(1).rev().collect()
        });
        Blocks { size: self.size, front: self.front.finish(), back }
    }
}

/// Hashes a stream in blocks, the first of which may be shorter.
struct Cutter {
    left: u64,
    open: Option<Xxh3>,
    hashes: Vec<u128>,
}

impl Cutter {
    fn new(first: u64) -> Self {
        Self { left: first, open: None, hashes: Vec::new() }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let take = (bytes.len() as u64).min(self.left) as usize;
            let (piece, rest) = bytes.split_at(take);
            bytes = rest;
            self.left -= take as u64;
            match (&mut self.open, self.left) {
                (None, 0) => self.hashes.push(xxh3_128(piece)),
                (Some(open), 0) => {
                    open.update(piece);
                    self.hashes.push(open.digest128());
                    self.open = None;
                }
                (open, _) => open.get_or_insert_with(Xxh3::new).update(piece),
            }
            if self.left == 0 {
                self.left = BLOCK_BYTES;
            }
        }
    }

    fn finish(mut self) -> Vec<u128> {
        self.hashes.extend(self.open.map(|open| open.digest128()));
        self.hashes
    }
}

/// Block lists of large contents by id, least recently used dropped first.
#[derive(Debug)]
pub struct BlockCache {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    blocks: LruCache<ContentId, Arc<Blocks>>,
    bytes: usize,
}

impl Default for BlockCache {
    fn default() -> Self {
        Self { inner: Mutex::new(Inner { blocks: LruCache::unbounded(), bytes: 0 }) }
    }
}

impl BlockCache {
    pub fn get(&self, id: &ContentId) -> Option<Arc<Blocks>> {
        self.lock().blocks.get(id).cloned()
    }

    pub fn put(&self, id: ContentId, blocks: Arc<Blocks>) {
        let mut inner = self.lock();
        inner.bytes += blocks.bytes();
        if let Some(old) = inner.blocks.put(id, blocks) {
            inner.bytes -= old.bytes();
        }
        while inner.bytes > BUDGET_BYTES {
            let Some((_, dropped)) = inner.blocks.pop_lru() else { break };
            inner.bytes -= dropped.bytes();
        }
    }

    /// A panic elsewhere cannot leave a cache wrong, only less full.
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(bytes: &[u8]) -> Blocks {
        let mut hasher = BlockHasher::new(bytes.len() as u64);
        // Odd steps, so that blocks end inside of what is handed over.
        for piece in bytes.chunks(40_001) {
            hasher.update(piece);
        }
        hasher.finish()
    }

    fn put_together(old: &[u8], new: &[u8], parts: &[Part]) -> Vec<u8> {
        put_together_from(0, old, new, parts)
    }

    fn put_together_from(offset: usize, old: &[u8], new: &[u8], parts: &[Part]) -> Vec<u8> {
        let mut out = Vec::new();
        for part in parts {
            match part {
                Part::Same { old: r } => out.extend_from_slice(&old[r.start as usize..r.end as usize]),
                Part::New { new: r } => {
                    assert_eq!(r.start, (offset + out.len()) as u64);
                    out.extend_from_slice(&new[r.start as usize..r.end as usize]);
                }
            }
        }
        out
    }

    fn fresh(parts: &[Part]) -> u64 {
        parts.iter().map(|p| if let Part::New { new } = p { new.end - new.start } else { 0 }).sum()
    }

    #[test]
    fn parts_put_together_are_the_new_content_and_little_of_it_is_new() {
        let seed = 41;
        let mut rng = fastrand::Rng::with_seed(seed);
        let old: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(3_000_000).collect();
        type Edit = fn(&mut Vec<u8>, usize);
        let edits: [(&str, Edit, u64); 6] = [
            ("nothing", |_, _| {}, 0),
            ("a byte", |v, at| v[at] ^= 1, BLOCK_BYTES),
            ("bytes put in", |v, at| drop(v.splice(at..at, [7; 100])), 2 * BLOCK_BYTES + 100),
            ("bytes taken out", |v, at| drop(v.drain(at..at + 70_000)), 2 * BLOCK_BYTES),
            ("cut short", |v, at| v.truncate(at), BLOCK_BYTES),
            ("grown", |v, _| v.extend([1; 5]), BLOCK_BYTES + 5),
        ];
        for size in [2_999_999, BLOCK_BYTES as usize * 100, BLOCK_BYTES as usize * 99 + 1] {
            for (name, edit, most) in &edits {
                for _ in 0..5 {
                    let old = &old[..size];
                    let (mut new, at) = (old.to_vec(), rng.usize(0..size - 80_000));
                    edit(&mut new, at);
                    let parts = blocks(&new).made_from(&blocks(old));
                    assert_eq!(put_together(old, &new, &parts), new, "{name} {size} {at} seed {seed}");
                    assert!(fresh(&parts) <= *most, "{name} {size} {at}: {} bytes", fresh(&parts));
                }
            }
        }
    }

    #[test]
    fn a_lead_is_how_the_parts_begin_and_what_is_beyond_it_is_the_rest() {
        let seed = 43;
        let mut rng = fastrand::Rng::with_seed(seed);
        let old: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(3_000_000).collect();
        let before = Arc::new(blocks(&old));
        for round in 0..60 {
            let mut new = old.clone();
            for _ in 0..rng.usize(0..3) {
                let at = rng.usize(0..new.len());
                match round % 3 {
                    0 => new[at] ^= 1,
                    1 => drop(new.splice(at..at, [7; 100])),
                    // As much as may be, and more.
                    _ => new[at / 3..at].iter_mut().for_each(|byte| *byte ^= 1),
                }
            }
            let (mut lead, mut hasher) =
                (Lead::new(before.clone(), new.len() as u64), BlockHasher::new(new.len() as u64));
            let mut made = Vec::new();
            for piece in new.chunks(rng.usize(1..400_000)) {
                hasher.update(piece);
                assert!(lead.follow(&hasher));
                let parts = beyond(lead.parts(), made.len() as u64);
                made.extend(put_together_from(made.len(), &old, &new, &parts));
            }
            assert!(made.len() < new.len(), "seed {seed} round {round}");
            let parts = beyond(&hasher.finish().made_from(&before), made.len() as u64);
            made.extend(put_together_from(made.len(), &old, &new, &parts));
            assert!(made == new, "seed {seed} round {round}");
            assert!(lead.new <= LEAD_NEW_BYTES);
        }
    }

    #[test]
    fn repeated_blocks_do_not_make_parts_overlap() {
        let (old, new) = (vec![0; 40 * BLOCK_BYTES as usize], vec![0; 25 * BLOCK_BYTES as usize + 3]);
        let parts = blocks(&new).made_from(&blocks(&old));
        assert_eq!(put_together(&old, &new, &parts), new);
        let parts = blocks(&old).made_from(&blocks(&new));
        assert_eq!(put_together(&new, &old, &parts), old);
    }
}
