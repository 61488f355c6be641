//! The bytes that were hashed, kept for as long as sending or comparing them is likely.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use lru::LruCache;

use crate::model::ContentId;

/// Contents up to this size are kept; larger ones are read again when they are sent.
pub const KEEP_BYTES: u64 = 1 << 20;
/// All kept contents together.
const BUDGET_BYTES: usize = 64 << 20;
/// Contents that nobody may ever ask for are kept as long as all together are no more than this.
const SPARE_BYTES: usize = 4 << 20;
/// What keeping a content takes, however small it is.
const ENTRY_BYTES: usize = 160;

/// Recently read contents by id, least recently used dropped first. Shared by the thread that reads a
/// repo and the tasks that send it.
#[derive(Debug)]
pub struct ContentCache {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    contents: LruCache<ContentId, Bytes>,
    bytes: usize,
}

impl Default for ContentCache {
    fn default() -> Self {
        Self { inner: Mutex::new(Inner { contents: LruCache::unbounded(), bytes: 0 }) }
    }
}

impl ContentCache {
    pub fn get(&self, id: &ContentId) -> Option<Bytes> {
        self.lock().contents.get(id).cloned()
    }

    /// True if it is there; asking does not count as use.
    pub fn has(&self, id: &ContentId) -> bool {
        self.lock().contents.contains(id)
    }

    pub fn put(&self, id: ContentId, bytes: Bytes) {
        self.lock().put(id, bytes);
    }

    /// Keeps a content of a first look if that costs no other its place.
    pub fn put_spare(&self, id: ContentId, bytes: Bytes) {
        let mut inner = self.lock();
        if inner.bytes + taken_by(&bytes) <= SPARE_BYTES {
            inner.put(id, bytes);
        }
    }

    /// A panic elsewhere cannot leave a cache wrong, only less full.
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn put(&mut self, id: ContentId, bytes: Bytes) {
        self.bytes += taken_by(&bytes);
        if let Some(old) = self.contents.put(id, bytes) {
            self.bytes -= taken_by(&old);
        }
        while self.bytes > BUDGET_BYTES {
            let Some((_, dropped)) = self.contents.pop_lru() else { break };
            self.bytes -= taken_by(&dropped);
        }
    }
}

fn taken_by(content: &Bytes) -> usize {
    content.len() + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::HashKind;

    #[test]
    fn the_budget_drops_the_least_recently_used() {
        let cache = ContentCache::default();
        let ids: Vec<ContentId> = (0..70_u8).map(|i| ContentId::of(HashKind::Sha1, &[i])).collect();
        for id in &ids {
            cache.put(*id, Bytes::from(vec![0; 1 << 20]));
            cache.get(&ids[0]);
        }
        assert!(cache.get(&ids[0]).is_some(), "used all the time");
        assert!(cache.get(&ids[1]).is_none(), "oldest unused");
        assert!(cache.get(&ids[69]).is_some());
    }

    #[test]
    fn contents_of_a_first_look_drop_nothing_and_small_ones_count_too() {
        let cache = ContentCache::default();
        let id = |i: u32| ContentId::of(HashKind::Sha1, &i.to_le_bytes());
        cache.put(id(0), Bytes::from(vec![0; 1 << 20]));
        (1..100_000).for_each(|i| cache.put_spare(id(i), Bytes::new()));
        assert!(cache.get(&id(0)).is_some() && cache.get(&id(1)).is_some());
        assert!(cache.get(&id(99_999)).is_none(), "no room is left for it");
    }
}
