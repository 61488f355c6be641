//! Identifiers made by hashing, as git makes them.
//!
//! A [`PatchId`] is a git tree id and a [`ContentId`] a git blob id, both over raw bytes as they are
//! on disk, so anyone can check them with `git hash-object --no-filters` and `git write-tree`. Two
//! types keep them from being swapped.

use std::fmt;

use gix::ObjectId;
pub use gix::hash::Kind as HashKind;

/// Names a snapshot: the git tree id of its files. Same files, same id, on every machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PatchId(ObjectId);

/// Names the bytes of one file, or the target of one symlink: their git blob id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentId(ObjectId);

/// The bytes of an identifier had a length that is neither SHA-1's 20 nor SHA-256's 32.
#[derive(Debug, thiserror::Error)]
#[error("an object id of {len} bytes")]
pub struct IdError {
    len: usize,
}

macro_rules! id_type {
    ($name:ident) => {
        impl $name {
            pub fn new(id: ObjectId) -> Self {
                Self(id)
            }

            /// Reads the raw (not hexadecimal) bytes of an id.
            pub fn from_bytes(bytes: &[u8]) -> Result<Self, IdError> {
                ObjectId::try_from(bytes).map(Self).map_err(|_| IdError { len: bytes.len() })
            }

            pub fn as_bytes(&self) -> &[u8] {
                self.0.as_bytes()
            }

            pub fn hash_kind(&self) -> HashKind {
                self.0.kind()
            }

            /// The first eight hexadecimal digits, for people.
            pub fn short(&self) -> String {
                self.0.to_hex_with_len(8).to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0.to_hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }
    };
}

id_type!(PatchId);
id_type!(ContentId);

impl PatchId {
    pub(super) fn object_id(self) -> ObjectId {
        self.0
    }

    /// The id of a snapshot without files: git's empty tree.
    pub fn empty(kind: HashKind) -> Self {
        Self(ObjectId::empty_tree(kind))
    }
}

impl ContentId {
    /// Hashes a whole file's bytes.
    pub fn of(kind: HashKind, bytes: &[u8]) -> Self {
        let mut hasher = ContentHasher::new(kind, bytes.len() as u64);
        hasher.update(bytes);
        hasher.finish()
    }
}

/// Hashes a file's bytes piece by piece. The length comes first because git's blob header holds it.
#[expect(missing_debug_implementations, reason = "the hasher's inner state says nothing")]
pub struct ContentHasher {
    inner: gix::hash::Hasher,
}

impl ContentHasher {
    pub fn new(kind: HashKind, len: u64) -> Self {
        let mut inner = gix::hash::hasher(kind);
        inner.update(format!("blob {len}\0").as_bytes());
        Self { inner }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.inner.update(bytes);
    }

    pub fn finish(self) -> ContentId {
        ContentId(finish(self.inner))
    }
}

/// Hashes the serialised entries of one git tree object, which come in pieces.
pub(crate) fn tree_id<B: AsRef<[u8]>>(kind: HashKind, body: &[B]) -> ObjectId {
    let mut hasher = gix::hash::hasher(kind);
    let len: usize = body.iter().map(|piece| piece.as_ref().len()).sum();
    hasher.update(format!("tree {len}\0").as_bytes());
    body.iter().for_each(|piece| hasher.update(piece.as_ref()));
    finish(hasher)
}

/// A detected SHA-1 collision attack yields an all-zero id: it equals no honest id, so the file it
/// belongs to can never be acked, and the process that met it goes on.
fn finish(hasher: gix::hash::Hasher) -> ObjectId {
    hasher.try_finalize().unwrap_or_else(|_| ObjectId::null(HashKind::Sha1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_gits() {
        // `printf 'hello\n' | git hash-object --stdin`
        assert_eq!(
            ContentId::of(HashKind::Sha1, b"hello\n").to_string(),
            "ce013625030ba8dba906f756967f9e9ca394464a"
        );
        assert_eq!(PatchId::empty(HashKind::Sha1).to_string(), "4b825dc642cb6eb9a060e54bf8d69288fbee4904");
        assert_eq!(PatchId::new(tree_id(HashKind::Sha1, &[b""])), PatchId::empty(HashKind::Sha1));
        assert_eq!(PatchId::new(tree_id(HashKind::Sha256, &[b""])), PatchId::empty(HashKind::Sha256));
    }

    #[test]
    fn bytes_round_trip_and_odd_lengths_are_refused() {
        let id = ContentId::of(HashKind::Sha256, b"x");
        assert_eq!(ContentId::from_bytes(id.as_bytes()).unwrap(), id);
        assert!(ContentId::from_bytes(&[1, 2, 3]).is_err());
    }
}
