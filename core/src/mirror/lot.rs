//! Small contents, many at a time: read where they are not in memory any more, and encoded.
//!
//! Blocks on files, and packing takes its time: for more than a few it belongs on a blocking thread.

use std::sync::Arc;

use bytes::Bytes;

use super::delta::{Name, Target, Way};
use super::outlet::Encoded;
use crate::model::{Needed, RelPath};
use crate::repo::content::{ContentCache, KEEP_BYTES};
use crate::repo::disk::{DirHandle, Disk, Read, ReadOutcome};
use crate::wire::Chunk;

/// Bytes in one lot: a few messages.
const LOT_BYTES: u64 = 1 << 20;
const LOT_CONTENTS: usize = 256;
/// So few bytes are encoded sooner than a thread wakes up.
const AT_ONCE_BYTES: u64 = 64 << 10;

/// Contents that are sent one after the other.
#[derive(Debug)]
pub enum Lot {
    Small(Vec<Needed>),
    Large(Needed),
}

/// Splits contents, in their order.
pub fn lots(contents: Vec<Needed>) -> Vec<Lot> {
    let (mut lots, mut bytes) = (Vec::new(), 0);
    for content in contents {
        if content.size > KEEP_BYTES {
            lots.push(Lot::Large(content));
            continue;
        }
        match lots.last_mut() {
            Some(Lot::Small(lot)) if lot.len() < LOT_CONTENTS && bytes + content.size <= LOT_BYTES => {
                bytes += content.size;
                lot.push(content);
            }
            _ => {
                bytes = content.size;
                lots.push(Lot::Small(vec![content]));
            }
        }
    }
    lots
}

/// The chunks of each content of a lot, or the paths that do not hold what they should any more.
pub type LotChunks = Result<Vec<Arc<Vec<Chunk>>>, Vec<RelPath>>;

/// Encodes small contents, on whatever thread.
#[derive(Debug, Clone)]
pub struct Encoder {
    pub contents: Arc<ContentCache>,
    pub encoded: Arc<Encoded>,
    pub disk: Arc<Disk>,
    pub way: Way,
    /// None may be described by a file of the server's.
    pub plain: bool,
}

impl Encoder {
    /// True if that neither reads nor takes long.
    pub fn is_quick(&self, lot: &[Needed]) -> bool {
        lot.iter().map(|content| content.size).sum::<u64>() <= AT_ONCE_BYTES
            && lot.iter().all(|content| self.contents.has(&content.id))
    }

    pub fn encode(&self, lot: &[Needed]) -> LotChunks {
        let (mut chunks, mut stale) = (Vec::with_capacity(lot.len()), Vec::new());
        let mut reader = Reader { disk: &self.disk, dir: None };
        for content in lot {
            match self.contents.get(&content.id).or_else(|| reader.read(content)) {
                Some(bytes) => chunks.push(self.chunks(content, &bytes)),
                None => stale.push(content.path.clone()),
            }
        }
        if stale.is_empty() { Ok(chunks) } else { Err(stale) }
    }

    fn chunks(&self, content: &Needed, bytes: &Bytes) -> Arc<Vec<Chunk>> {
        let Needed { path, id, size, .. } = content;
        let target = Target { path, name: Name::Known(*id), size: *size, way: self.way };
        if self.way == Way::Near {
            return Arc::new(target.whole(bytes));
        }
        let old = match content.base.filter(|_| !self.plain) {
            Some((base, _)) => self.contents.get(&base).map(|old| (base, old)),
            None => None,
        };
        let key = (*id, old.as_ref().map(|(base, _)| (*base, path.clone())));
        self.encoded.get_or(key, || match old {
            Some((base, old)) => target.as_step(bytes, base, &old),
            None => target.whole(bytes),
        })
    }
}

/// Reads files again. Paths in a row share their directory.
struct Reader<'a> {
    disk: &'a Disk,
    dir: Option<(Option<RelPath>, DirHandle)>,
}

impl Reader<'_> {
    fn read(&mut self, content: &Needed) -> Option<Bytes> {
        let (name, kind) = (content.path.name(), content.id.hash_kind());
        let dir = self.dir(content.path.parent())?;
        if let Some(bytes) = dir.read_unchanged(name, &content.signature) {
            return Some(bytes);
        }
        match dir.read(name, kind) {
            ReadOutcome::Read(leaf, Read::Bytes(bytes)) if leaf.id == content.id => Some(bytes),
            _ => None,
        }
    }

    fn dir(&mut self, path: Option<RelPath>) -> Option<&DirHandle> {
        if self.dir.as_ref().is_none_or(|(known, _)| *known != path) {
            let handle = self.disk.dir(path.as_ref()).ok()?;
            self.dir = Some((path, handle));
        }
        self.dir.as_ref().map(|(_, handle)| handle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ContentId, HashKind, Signature};

    fn needed(name: &str, text: &str) -> Needed {
        Needed {
            path: RelPath::new(name).unwrap(),
            id: ContentId::of(HashKind::Sha1, text.as_bytes()),
            size: text.len() as u64,
            signature: Signature::default(),
            base: None,
        }
    }

    #[test]
    fn lots_keep_the_order_and_their_bounds() {
        let sizes = [5, KEEP_BYTES, 7, KEEP_BYTES + 1, 1, 2, KEEP_BYTES - 3, 1];
        let contents: Vec<Needed> =
            sizes.iter().map(|size| Needed { size: *size, ..needed("f", "") }).collect();
        let shape: Vec<Vec<u64>> = lots(contents)
            .iter()
            .map(|lot| match lot {
                Lot::Small(lot) => lot.iter().map(|c| c.size).collect(),
                Lot::Large(large) => vec![large.size],
            })
            .collect();
        assert_eq!(
            shape,
            [vec![5], vec![KEEP_BYTES], vec![7], vec![KEEP_BYTES + 1], vec![1, 2, KEEP_BYTES - 3], vec![1]]
        );
        let many = lots(vec![needed("f", "x"); LOT_CONTENTS + 1]);
        assert!(
            matches!(&many[..], [Lot::Small(a), Lot::Small(b)] if a.len() == LOT_CONTENTS && b.len() == 1)
        );
    }

    #[test]
    fn files_are_read_again_and_what_changed_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        for (name, text) in [("d/a", "one"), ("d/b", "two"), ("c", "six")] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let encoder = Encoder {
            contents: Arc::default(),
            encoded: Arc::default(),
            disk: Arc::new(Disk::open(dir.path()).unwrap()),
            way: Way::Near,
            plain: true,
        };
        let lot = [needed("d/a", "one"), needed("d/b", "two"), needed("c", "six")];
        assert!(!encoder.is_quick(&lot));
        let chunks = encoder.encode(&lot).unwrap();
        let texts: Vec<&[u8]> = chunks.iter().map(|c| &c[0].data[..]).collect();
        assert_eq!(texts, [b"one", b"two", b"six"]);
        // Equal in length, so only the signature or the hash can tell. A signature that is believed is the file's.
        let found = encoder.disk.dir(None).unwrap().find(b"c").unwrap();
        let crate::repo::disk::Found::File { signature, .. } = found else { panic!("a file") };
        let believed = Needed { signature, ..needed("c", "???") };
        assert_eq!(encoder.encode(&[believed]).unwrap()[0][0].data, "six");
        std::fs::write(dir.path().join("d/b"), "TWO").unwrap();
        std::fs::remove_file(dir.path().join("c")).unwrap();
        let stale = encoder.encode(&lot).unwrap_err();
        assert_eq!(stale, [RelPath::new("d/b").unwrap(), RelPath::new("c").unwrap()]);
    }
}
