//! Contents as chunks: whole, or described by the file the server has at the same path.

use std::ops::Range;

use bytes::Bytes;

use crate::model::{ContentId, RelPath};
use crate::repo::blocks::Part;
use crate::transport::kernel_run;
use crate::wire::{Base, CHUNK_BYTES, Chunk};

/// Contents shorter than this go whole: reading the base would cost the server more than it saves the wire.
const DELTA_FROM: usize = 512;
/// A shorter stretch that stayed the same goes with the new bytes around it.
const SAME_LEAST: usize = 64;

/// How far away the server is, as far as that matters to how contents travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Way {
    /// In the run of the kernel this program is in: packing a content costs more than sending it.
    Near,
    #[default]
    Far,
}

impl Way {
    /// The way to a server that names its run of the kernel as `theirs`; a nameless one is far.
    pub fn to(theirs: &str) -> Self {
        match !theirs.is_empty() && theirs == kernel_run() {
            true => Self::Near,
            false => Self::Far,
        }
    }

    /// One piece, packed where that pays.
    pub fn chunk(self, id: Option<ContentId>, size: u64, offset: u64, piece: Bytes) -> Chunk {
        match self {
            Self::Near => Chunk::raw(id, size, offset, piece),
            Self::Far => Chunk::encode(id, size, offset, piece),
        }
    }
}

/// A content, and where in what the server has it can be found again.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    pub path: &'a RelPath,
    pub name: Name,
    pub size: u64,
    pub way: Way,
}

/// What a content's pieces call it.
#[derive(Debug, Clone, Copy)]
pub enum Name {
    /// Each piece does.
    Known(ContentId),
    /// It began to travel without an id; its last piece has it, if it is known by then.
    Late(Option<ContentId>),
}

impl Target<'_> {
    /// What a piece that ends there calls the content.
    fn name_at(&self, end: u64) -> Option<ContentId> {
        match self.name {
            Name::Known(id) => Some(id),
            Name::Late(id) => id.filter(|_| end == self.size),
        }
    }

    /// Makes a piece of what is there in the new content, packed where that pays.
    pub fn packing(&self, range: Range<u64>) -> impl FnOnce(Bytes) -> Chunk + use<> {
        let (name, size, way) = (self.name_at(range.end), self.size, self.way);
        move |piece| way.chunk(name, size, range.start, piece)
    }

    fn piece(&self, range: Range<usize>, bytes: &Bytes) -> Chunk {
        self.packing(range.start as u64..range.end as u64)(bytes.slice(range))
    }

    /// The whole content as it is.
    pub fn whole(&self, bytes: &Bytes) -> Vec<Chunk> {
        let mut chunks = Vec::with_capacity(bytes.len() / CHUNK_BYTES + 1);
        pieces(0..bytes.len(), |piece| {
            chunks.push(self.piece(piece, bytes));
        });
        if bytes.is_empty() {
            chunks.push(Chunk::raw(self.name_at(0), 0, 0, Bytes::new()));
        }
        chunks
    }

    /// The content by what differs from `old`, whose id is `base`. Both at most 1 MiB.
    pub fn as_step(&self, bytes: &Bytes, base: ContentId, old: &Bytes) -> Vec<Chunk> {
        // Near by, the server reading its own file is slower than taking in another.
        if bytes.len() < DELTA_FROM || old.is_empty() || self.way == Way::Near {
            return self.whole(bytes);
        }
        let (lead, tail) = common_ends(old, bytes);
        let mut chunks = Vec::new();
        if lead > 0 {
            chunks.push(self.copy(0, base, 0..lead as u64));
        }
        let base_of_old = self.base(base, 0..old.len() as u64);
        pieces(lead..bytes.len() - tail, |piece| {
            let (start, name) = (piece.start as u64, self.name_at(piece.end as u64));
            // Where a hunk is all that changed there is nothing in the old content to find it by.
            let chunk = match piece.len() < DELTA_FROM {
                true => self.piece(piece, bytes),
                false => {
                    let piece = bytes.slice(piece);
                    Chunk::encode_from(name, self.size, start, piece, base_of_old.clone(), old)
                }
            };
            chunks.push(chunk);
        });
        if tail > 0 {
            let old_tail = (old.len() - tail) as u64..old.len() as u64;
            chunks.push(self.copy((bytes.len() - tail) as u64, base, old_tail));
        }
        chunks
    }

    /// A stretch that is the same in the old content.
    pub fn copy(&self, offset: u64, base: ContentId, old: Range<u64>) -> Chunk {
        let name = self.name_at(offset + old.end - old.start);
        Chunk::copy(name, self.size, offset, self.base(base, old))
    }

    fn base(&self, id: ContentId, old: Range<u64>) -> Base {
        Base { path: self.path.clone(), id, offset: old.start, length: old.end - old.start }
    }
}

/// True if describing a content by these parts saves anything worth a server's reading.
pub fn is_worth_it(parts: &[Part], size: u64) -> bool {
    let new: u64 =
        parts.iter().map(|p| if let Part::New { new } = p { new.end - new.start } else { 0 }).sum();
    new <= size / 2
}

/// Calls `piece` for each range of at most a chunk's length.
fn pieces(mut range: Range<usize>, mut piece: impl FnMut(Range<usize>)) {
    while !range.is_empty() {
        let end = range.end.min(range.start + CHUNK_BYTES);
        piece(range.start..end);
        range.start = end;
    }
}

/// How many bytes at both ends are the same, not counting any byte of either twice. Ends too short to be worth a
/// piece of their own count as none.
fn common_ends(old: &[u8], new: &[u8]) -> (usize, usize) {
    let least = old.len().min(new.len());
    let lead = common_lead(&old[..least], &new[..least]);
    let left = least - lead;
    let tail = common_tail(&old[old.len() - left..], &new[new.len() - left..]);
    let or_none = |n: usize| if n < SAME_LEAST { 0 } else { n };
    (or_none(lead), or_none(tail))
}

const STEP: usize = 64;

fn common_lead(a: &[u8], b: &[u8]) -> usize {
    let steps = a.chunks_exact(STEP).zip(b.chunks_exact(STEP)).take_while(|(a, b)| a == b).count() * STEP;
    steps + a[steps..].iter().zip(&b[steps..]).take_while(|(a, b)| a == b).count()
}

fn common_tail(a: &[u8], b: &[u8]) -> usize {
    let steps = a.rchunks_exact(STEP).zip(b.rchunks_exact(STEP)).take_while(|(a, b)| a == b).count() * STEP;
    let (a, b) = (&a[..a.len() - steps], &b[..b.len() - steps]);
    steps + a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::HashKind;
    use crate::wire::Encoding;

    /// What a server makes of the chunks.
    fn made(chunks: &[Chunk], old: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for chunk in chunks {
            assert_eq!(chunk.offset, out.len() as u64, "no gaps");
            match &chunk.encoding {
                Encoding::Copy(b) => {
                    out.extend_from_slice(&old[b.offset as usize..(b.offset + b.length) as usize]);
                }
                Encoding::ZstdFrom(b) => {
                    let prefix = &old[b.offset as usize..(b.offset + b.length) as usize];
                    out.extend_from_slice(&chunk.decode(prefix).unwrap());
                }
                _ => out.extend_from_slice(&chunk.decode(&[]).unwrap()),
            }
        }
        out
    }

    #[test]
    fn chunks_lead_from_the_old_content_to_the_new_one() {
        let seed = 20_26;
        let mut rng = fastrand::Rng::with_seed(seed);
        for round in 0..400 {
            let alphabet = [2_u8, 20, 255][round % 3];
            let len = [0, 1, 63, 600, 9_000, 300_000][round % 6];
            let old: Vec<u8> = std::iter::repeat_with(|| rng.u8(..alphabet)).take(len).collect();
            let mut new = old.clone();
            for _ in 0..rng.usize(0..4) {
                let (at, n) = (rng.usize(0..=new.len()), rng.usize(0..200));
                match rng.u8(..3) {
                    0 => drop(new.splice(at..at, vec![rng.u8(..); n])),
                    1 => drop(new.drain(at..(at + n).min(new.len()))),
                    _ => new.truncate(at.max(n)),
                }
            }
            let (id, base) = (ContentId::of(HashKind::Sha1, &new), ContentId::of(HashKind::Sha1, &old));
            let path = RelPath::new("p").unwrap();
            let target = Target { path: &path, name: Name::Known(id), size: new.len() as u64, way: Way::Far };
            let chunks = target.as_step(&Bytes::from(new.clone()), base, &Bytes::from(old.clone()));
            assert_eq!(made(&chunks, &old), new, "seed {seed} round {round}");
            assert!(chunks.iter().all(|c| c.data.len() <= CHUNK_BYTES && c.size == new.len() as u64));
            for way in [Way::Far, Way::Near] {
                let whole = Target { way, ..target }.whole(&Bytes::from(new.clone()));
                assert_eq!(made(&whole, &[]), new, "seed {seed} round {round}");
                let near = whole.iter().all(|c| c.encoding == Encoding::Raw);
                assert!(way == Way::Far || near, "seed {seed} round {round}");
            }
        }
    }

    #[test]
    fn a_line_in_a_source_file_is_a_line_on_the_wire() {
        let old: String = (0..800).map(|i| format!("line {i} says {}\n", i * 7919)).collect();
        let new = old.replace("line 400 says", "line 400 now says");
        let path = RelPath::new("p").unwrap();
        let (id, base) =
            (ContentId::of(HashKind::Sha1, new.as_bytes()), ContentId::of(HashKind::Sha1, old.as_bytes()));
        let target = Target { path: &path, name: Name::Known(id), size: new.len() as u64, way: Way::Far };
        let chunks = target.as_step(&new.into(), base, &old.into());
        assert_eq!(chunks.len(), 3);
        assert!(chunks.iter().map(|c| c.data.len()).sum::<usize>() < 10);
    }
}
