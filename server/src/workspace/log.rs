//! The bytes of the manifest's log: frames of length, checksum and one record.
//!
//! Values only; reading and writing files is `manifest`'s. The first bytes that are no whole, intact
//! frame end the log: whatever follows was being written when the machine or the process stopped.

use gitsync_core::model::{ContentId, Leaf, Mode, RelPath, Signature};
use serde::{Deserialize, Serialize};

/// No record is longer; a length above this is damage.
const FRAME_BYTES_MAX: usize = 1 << 30;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Record<'a> {
    /// First in every log.
    Start {
        /// Names the run of the kernel. While it lasts, nothing that was written can be lost.
        boot: &'a str,
    },
    /// About to swap.
    Begin {
        generation: u64,
        #[serde(borrow)]
        intents: Vec<Intent<'a>>,
    },
    /// What the last `Begin` came to.
    Done {
        generation: u64,
        #[serde(borrow)]
        outcomes: Vec<Outcome<'a>>,
    },
}

/// One path about to change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Intent<'a> {
    #[serde(borrow)]
    pub path: &'a [u8],
    #[serde(borrow)]
    pub old: Option<Content<'a>>,
    #[serde(borrow)]
    pub new: Option<Content<'a>>,
    /// The name in the stage that holds the new file before the swap and the old one after it.
    #[serde(borrow)]
    pub slot: Option<&'a [u8]>,
}

/// What one path holds from now on, `None` if nothing of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outcome<'a> {
    #[serde(borrow)]
    pub path: &'a [u8],
    #[serde(borrow)]
    pub leaf: Option<Stored<'a>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Content<'a> {
    mode: u8,
    #[serde(borrow)]
    id: &'a [u8],
}

/// A leaf as the manifest stores it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored<'a> {
    #[serde(borrow)]
    content: Content<'a>,
    signature: Signature,
}

impl<'a> Content<'a> {
    pub fn of(mode: Mode, id: &'a ContentId) -> Self {
        let mode = match mode {
            Mode::File => 0,
            Mode::Executable => 1,
            Mode::Symlink => 2,
        };
        Self { mode, id: id.as_bytes() }
    }

    pub fn get(&self) -> Option<(Mode, ContentId)> {
        let mode = match self.mode {
            0 => Mode::File,
            1 => Mode::Executable,
            2 => Mode::Symlink,
            _ => return None,
        };
        Some((mode, ContentId::from_bytes(self.id).ok()?))
    }
}

impl<'a> Stored<'a> {
    pub fn of(leaf: &'a Leaf) -> Self {
        Self { content: Content::of(leaf.mode, &leaf.id), signature: leaf.signature }
    }

    pub fn get(&self) -> Option<Leaf> {
        let (mode, id) = self.content.get()?;
        Some(Leaf { mode, id, signature: self.signature })
    }
}

impl<'a> Outcome<'a> {
    pub fn of(path: &'a RelPath, leaf: Option<&'a Leaf>) -> Self {
        Self { path: path.as_bytes(), leaf: leaf.map(Stored::of) }
    }
}

/// One frame: little-endian length and CRC-32 of the payload, then the payload.
pub(super) fn frame(record: &Record<'_>) -> Vec<u8> {
    let bytes = vec![0; 8];
    let mut bytes = postcard::to_extend(record, bytes).expect("a record of plain values can be written");
    let (head, payload) = bytes.split_at_mut(8);
    let len = u32::try_from(payload.len()).expect("a record is far below 4 GiB");
    head[..4].copy_from_slice(&len.to_le_bytes());
    head[4..].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
    bytes
}

/// Every whole record, and how many bytes they take; more bytes than that are a torn tail.
pub(super) fn read(bytes: &[u8]) -> (Vec<Record<'_>>, usize) {
    let mut records = Vec::new();
    let mut at = 0;
    while let Some((record, len)) = first(&bytes[at..]) {
        records.push(record);
        at += len;
    }
    (records, at)
}

fn first(bytes: &[u8]) -> Option<(Record<'_>, usize)> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let len = u32::from_le_bytes(*len) as usize;
    if len == 0 || len > FRAME_BYTES_MAX {
        return None;
    }
    let payload = rest.get(..len)?;
    if crc32fast::hash(payload) != u32::from_le_bytes(*crc) {
        return None;
    }
    Some((postcard::from_bytes(payload).ok()?, 8 + len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gitsync_core::model::HashKind;

    #[test]
    fn records_round_trip_and_a_torn_tail_ends_the_log() {
        let path = RelPath::new("a/b").unwrap();
        let id = ContentId::of(HashKind::Sha256, b"x");
        let signature = Signature { size: 1, mtime_ns: -5, ctime_ns: i64::MAX, inode: 7 };
        let leaf = Leaf { mode: Mode::Symlink, id, signature };
        let intent = Intent {
            path: path.as_bytes(),
            old: None,
            new: Some(Content::of(leaf.mode, &leaf.id)),
            slot: Some(b"u1"),
        };
        let records = [
            Record::Start { boot: "b" },
            Record::Begin { generation: 1, intents: vec![intent] },
            Record::Done { generation: 1, outcomes: vec![Outcome::of(&path, Some(&leaf))] },
        ];
        let frames: Vec<Vec<u8>> = records.iter().map(frame).collect();
        let whole = frames.concat();
        assert_eq!(read(&whole), (records.to_vec(), whole.len()));
        let Record::Done { outcomes, .. } = &records[2] else { panic!("the last record") };
        assert_eq!(outcomes[0].leaf.as_ref().unwrap().get(), Some(leaf));

        let two = frames[0].len() + frames[1].len();
        for cut in two..whole.len() {
            assert_eq!(read(&whole[..cut]), (records[..2].to_vec(), two), "cut at {cut}");
        }
        for flipped in two..whole.len() {
            let mut damaged = whole.clone();
            damaged[flipped] ^= 0x40;
            assert_eq!(read(&damaged).1, two, "flipped at {flipped}");
        }
    }
}
