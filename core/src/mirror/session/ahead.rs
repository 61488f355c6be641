//! Contents that go to a server before the patch that needs them, so that no edit waits behind them.
//!
//! Two kinds do: what git writes while saves are held back for it, and contents that are large. The books here say
//! what the server's stage has by now, what is on its way, and what is still to go.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::model::{ContentId, Needed, RelPath};
use crate::repo::content::KEEP_BYTES;
use crate::wire::{FRAME_BYTES, Forget};

/// Most contents one batch may hold.
const BATCH_CONTENTS: usize = 500;
/// Most contents that may wait or be staged; what is beyond goes with its patch.
const CONTENTS_MOST: usize = 100_000;

/// True for contents that never go inside a patch.
pub fn is_large(content: &Needed) -> bool {
    content.size > KEEP_BYTES
}

/// What one server has been sent ahead of its patches.
#[derive(Debug, Default)]
pub struct Ahead {
    staged: HashSet<ContentId>,
    sending: Vec<ContentId>,
    /// One that has no id yet is on its way.
    nameless: bool,
    queue: VecDeque<Needed>,
    queued: HashSet<ContentId>,
}

impl Ahead {
    /// True if a patch may leave this content out.
    pub fn has(&self, id: &ContentId) -> bool {
        self.staged.contains(id)
    }

    /// True if it is staged, on its way or about to be.
    pub fn knows(&self, id: &ContentId) -> bool {
        self.staged.contains(id) || self.sending.contains(id) || self.queued.contains(id)
    }

    /// How many more contents may wait or be staged.
    pub fn room(&self) -> usize {
        CONTENTS_MOST.saturating_sub(self.staged.len() + self.queue.len())
    }

    /// The server found these itself.
    pub fn staged(&mut self, ids: Vec<ContentId>) {
        self.staged.extend(ids);
    }

    pub fn is_sending(&self) -> bool {
        self.nameless || !self.sending.is_empty()
    }

    pub fn is_following(&self) -> bool {
        self.nameless
    }

    /// True if something waits that is not for `path`.
    pub fn has_waiting_beside(&self, path: &RelPath) -> bool {
        self.queue.iter().any(|content| content.path != *path)
    }

    /// A content without an id is on its way from now on: nothing else is.
    pub fn follow(&mut self) {
        debug_assert!(!self.is_sending());
        self.nameless = true;
    }

    /// These are needed soon. Gives back nothing; see [`Ahead::next`].
    pub fn want<'a>(&mut self, contents: impl IntoIterator<Item = &'a Needed>) {
        for content in contents {
            if !self.knows(&content.id) && self.room() > 0 {
                self.queued.insert(content.id);
                self.queue.push_back(content.clone());
            }
        }
    }

    /// The next batch to send, unless one is on its way: some small contents, or one large one.
    pub fn next(&mut self) -> Option<Arc<Vec<Needed>>> {
        if self.is_sending() {
            return None;
        }
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(content) = self.queue.front() {
            let fits = batch.is_empty() || (!is_large(content) && bytes + content.size <= FRAME_BYTES as u64);
            if !fits || batch.len() == BATCH_CONTENTS {
                break;
            }
            let Some(content) = self.queue.pop_front() else { break };
            self.queued.remove(&content.id);
            bytes += content.size;
            batch.push(content);
        }
        self.sending = batch.iter().map(|content| content.id).collect();
        (!batch.is_empty()).then(|| Arc::new(batch))
    }

    /// The batch went out whole.
    pub fn sent(&mut self) {
        self.staged.extend(self.sending.drain(..));
    }

    /// What had no id went out whole, and this is it.
    pub fn followed(&mut self, id: ContentId) {
        self.nameless = false;
        self.staged.insert(id);
        // It may have been needed before it was there.
        if self.queued.remove(&id) {
            self.queue.retain(|content| content.id != id);
        }
    }

    /// The batch did not: its files were found changed, or it was stopped. Whatever of it arrived is to be forgotten.
    pub fn not_sent(&mut self) -> Forget {
        Forget { ids: std::mem::take(&mut self.sending), nameless: std::mem::take(&mut self.nameless) }
    }

    /// Nothing but these is needed any more. Gives back what the server can forget, and whether the batch on its way
    /// is in vain.
    pub fn retain(&mut self, needed: &HashMap<ContentId, u64>) -> (Vec<ContentId>, bool) {
        self.queue.retain(|content| needed.contains_key(&content.id));
        self.queued.retain(|id| needed.contains_key(id));
        let forget: Vec<ContentId> = self.staged.extract_if(|id| !needed.contains_key(id)).collect();
        let in_vain = !self.sending.is_empty() && self.sending.iter().all(|id| !needed.contains_key(id));
        (forget, in_vain)
    }

    /// Small contents that wait go with the patch that is about to be sent instead.
    pub fn drop_small(&mut self) {
        self.queue.retain(is_large);
        self.queued = self.queue.iter().map(|content| content.id).collect();
    }

    /// All that waits goes with the patch that is about to be sent instead.
    pub fn drop_queue(&mut self) {
        self.queue.clear();
        self.queued.clear();
    }

    /// A patch uses these of the staged contents: the stage has them no more.
    pub fn use_up(&mut self, ids: &HashSet<ContentId>) -> Vec<ContentId> {
        self.staged.extract_if(|id| ids.contains(id)).collect()
    }

    /// The patch was not applied, so the stage has them still.
    pub fn give_back(&mut self, ids: Vec<ContentId>) {
        self.staged.extend(ids);
    }

    /// Gives up everything. What the server can forget comes back.
    pub fn clear(&mut self) -> Forget {
        let old = std::mem::take(self);
        Forget { ids: old.staged.into_iter().collect(), nameless: old.nameless }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{HashKind, Signature};

    fn content(name: &str, size: u64) -> Needed {
        let id = ContentId::of(HashKind::Sha1, name.as_bytes());
        Needed { path: RelPath::new(name).unwrap(), id, size, signature: Signature::default(), base: None }
    }

    fn names(batch: Option<Arc<Vec<Needed>>>) -> String {
        batch.map_or_else(String::new, |b| b.iter().map(|c| c.path.to_string()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn small_contents_share_a_batch_and_large_ones_go_alone() {
        let mut ahead = Ahead::default();
        let all = [
            content("a", 100),
            content("b", 200_000),
            content("c", 100_000),
            content("big", KEEP_BYTES + 1),
            content("d", 1),
        ];
        ahead.want(&all);
        ahead.want(&all);
        let mut batches = Vec::new();
        loop {
            let batch = names(ahead.next());
            if batch.is_empty() {
                break;
            }
            assert!(ahead.next().is_none(), "one at a time");
            batches.push(batch);
            ahead.sent();
        }
        assert_eq!(batches, ["a b", "c", "big", "d"]);
        assert!(all.iter().all(|c| ahead.has(&c.id)));
        ahead.want(&all);
        assert!(ahead.next().is_none(), "all of it is there");
    }

    #[test]
    fn what_is_not_needed_any_more_is_forgotten_or_stopped() {
        let mut ahead = Ahead::default();
        let (a, big, later) = (content("a", 1), content("big", KEEP_BYTES + 1), content("later", 1));
        ahead.want([&a, &big, &later]);
        ahead.next();
        ahead.sent();
        ahead.next();
        let needed = HashMap::from([(later.id, 1)]);
        assert_eq!(ahead.retain(&needed), (vec![a.id], true));
        assert_eq!(ahead.not_sent().ids, [big.id]);
        assert_eq!(names(ahead.next()), "later");
    }

    #[test]
    fn what_has_no_id_yet_is_alone_on_its_way_and_is_not_sent_again_under_its_name() {
        let mut ahead = Ahead::default();
        let (a, big) = (content("a", 1), content("big", KEEP_BYTES + 1));
        ahead.follow();
        ahead.want([&a, &big]);
        assert!(ahead.is_sending() && ahead.next().is_none());
        assert!(ahead.has_waiting_beside(&big.path));
        let needed = HashMap::from([(big.id, big.size)]);
        assert_eq!(ahead.retain(&needed), (vec![], false), "nobody can say that it is in vain");
        ahead.followed(big.id);
        assert!(ahead.has(&big.id) && !ahead.is_sending());
        assert_eq!(names(ahead.next()), "", "it is there");
        ahead.follow();
        assert!(ahead.not_sent().nameless && !ahead.not_sent().nameless);
        ahead.follow();
        assert_eq!(ahead.clear(), Forget { ids: vec![big.id], nameless: true });
    }

    #[test]
    fn a_patch_that_was_not_applied_leaves_the_stage_as_it_was() {
        let mut ahead = Ahead::default();
        let a = content("a", 1);
        ahead.want([&a]);
        ahead.next();
        ahead.sent();
        let used = ahead.use_up(&HashSet::from([a.id]));
        assert!(!ahead.has(&a.id));
        ahead.give_back(used);
        assert!(ahead.has(&a.id));
    }
}
