//! What is directly in a directory: names and what each stands for, in blocks that trees share.
//!
//! An edit copies the blocks it touches. In a directory of many names that is a small part of them, and two trees are
//! compared without looking into what they share.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use bstr::ByteSlice;
use gix::ObjectId;

use super::{Dir, Leaf, same_for_git};

/// Names in a block when it is made. One that has grown to twice as many is taken apart.
const BLOCK: usize = 64;

/// What a name in a directory stands for.
#[derive(Debug, Clone)]
pub enum Entry {
    Leaf(Leaf),
    Dir(SubDir),
}

/// A directory in another one. What the directory above asks of it is at hand, without going there.
#[derive(Debug, Clone)]
pub struct SubDir {
    dir: Arc<Dir>,
    id: ObjectId,
    leaves: u64,
}

impl SubDir {
    pub(super) fn object_id(&self) -> &ObjectId {
        &self.id
    }
}

impl From<Arc<Dir>> for SubDir {
    fn from(dir: Arc<Dir>) -> Self {
        Self { id: dir.id, leaves: dir.leaves, dir }
    }
}

impl Deref for SubDir {
    type Target = Arc<Dir>;

    fn deref(&self) -> &Arc<Dir> {
        &self.dir
    }
}

impl From<Arc<Dir>> for Entry {
    fn from(dir: Arc<Dir>) -> Self {
        Self::Dir(dir.into())
    }
}

impl Entry {
    /// What a name stands for, as the one or the other.
    pub fn split(entry: Option<&Entry>) -> (Option<Leaf>, Option<&Arc<Dir>>) {
        match entry {
            Some(Self::Leaf(leaf)) => (Some(*leaf), None),
            Some(Self::Dir(dir)) => (None, Some(dir)),
            None => (None, None),
        }
    }

    /// As a git tree object has them, the mode in octal digits.
    fn mode_and_id(&self) -> (&[u8], &[u8]) {
        match self {
            Self::Leaf(leaf) => (leaf.mode.octal(), leaf.id.as_bytes()),
            Self::Dir(dir) => (b"40000", dir.id.as_bytes()),
        }
    }

    /// Leaves at this name and below it.
    fn leaves(&self) -> u64 {
        match self {
            Self::Leaf(_) => 1,
            Self::Dir(dir) => dir.leaves,
        }
    }
}

/// A name in a directory. One that is short, as most are, needs no memory of its own.
#[derive(Clone)]
pub(super) enum Name {
    Short { len: u8, bytes: [u8; SHORT_BYTES] },
    Long(Arc<[u8]>),
}

/// As many as fit beside the tag and the length into what a long name takes anyway.
const SHORT_BYTES: usize = 22;

impl Name {
    pub fn new(name: &[u8]) -> Self {
        if name.len() > SHORT_BYTES {
            return Self::Long(name.into());
        }
        let mut bytes = [0; SHORT_BYTES];
        bytes[..name.len()].copy_from_slice(name);
        Self::Short { len: name.len() as u8, bytes }
    }
}

impl Deref for Name {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => &bytes[..usize::from(*len)],
            Self::Long(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_bstr())
    }
}

pub(super) type Named = (Name, Entry);

/// Sorted by name, bytewise. No block is empty.
#[derive(Debug, Clone, Default)]
pub(super) struct Entries {
    blocks: Box<[Arc<Block>]>,
}

#[derive(Debug)]
struct Block {
    entries: Box<[Named]>,
    /// At these names and below them.
    leaves: u64,
    /// Its part of the git tree object, kept where a directory has several blocks.
    body: OnceLock<Box<[u8]>>,
}

impl Block {
    fn new(entries: impl Into<Box<[Named]>>) -> Arc<Self> {
        let entries = entries.into();
        let leaves = entries.iter().map(|(_, entry)| entry.leaves()).sum();
        Arc::new(Self { entries, leaves, body: OnceLock::new() })
    }

    fn get(&self, name: &[u8]) -> Option<&Entry> {
        let at = self.entries.binary_search_by(|(n, _)| (**n).cmp(name)).ok()?;
        Some(&self.entries[at].1)
    }
}

impl Deref for Block {
    type Target = [Named];

    fn deref(&self) -> &[Named] {
        &self.entries
    }
}

impl Entries {
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    pub fn len(&self) -> usize {
        self.blocks.iter().map(|block| block.len()).sum()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Named> + Clone {
        self.blocks.iter().flat_map(|block| block.iter())
    }

    pub fn leaves(&self) -> u64 {
        self.blocks.iter().map(|block| block.leaves).sum()
    }

    pub fn get(&self, name: &[u8]) -> Option<&Entry> {
        self.blocks.get(self.block_of(name))?.get(name)
    }

    /// The body of the git tree object these are, in pieces.
    pub fn body(&self) -> Vec<Cow<'_, [u8]>> {
        if self.blocks.len() < 2 || !self.is_in_git_order() {
            return vec![serialise(self.iter()).into()];
        }
        let bodies =
            self.blocks.iter().map(|block| &**block.body.get_or_init(|| serialise(block.iter()).into()));
        bodies.map(Cow::from).collect()
    }

    /// True if git has all of a block before all of the next one: no directory at the end of one goes behind names of
    /// the other.
    fn is_in_git_order(&self) -> bool {
        self.blocks.windows(2).all(|pair| {
            let first = &*pair[1][0].0;
            // Whatever directory goes behind any of those names goes behind the first.
            let mut ends = (1..first.len()).filter(|end| first[*end] < b'/');
            !ends.any(|end| matches!(pair[0].get(&first[..end]), Some(Entry::Dir(_))))
        })
    }

    /// The block a name is in, or would be.
    fn block_of(&self, name: &[u8]) -> usize {
        self.blocks.partition_point(|block| *block[0].0 <= *name).saturating_sub(1)
    }

    /// Goes through `names`, which are sorted, and puts in the place of what each stands for what `edit` makes of it.
    /// Only the blocks these names are in are copied.
    pub fn edit<'n, T, E>(
        &self,
        names: impl Iterator<Item = (&'n [u8], T)>,
        mut edit: impl FnMut(T, Option<&Entry>) -> Result<Option<Entry>, E>,
    ) -> Result<Entries, E> {
        let mut edited = Builder::default();
        let mut names = names.peekable();
        for at in 0..self.blocks.len().max(1) {
            let end = self.blocks.get(at + 1).map(|next| &*next[0].0);
            let is_here = |(name, _): &(&[u8], T)| end.is_none_or(|end| *name < end);
            let block = self.blocks.get(at);
            if !names.peek().is_some_and(is_here) {
                block.into_iter().for_each(|block| edited.share(block));
                continue;
            }
            let block: &[Named] = block.map_or(&[], |block| block);
            // As many as most edits leave: a block then takes them as they are.
            let mut made = Vec::with_capacity(block.len());
            let mut kept = block.iter().peekable();
            while let Some((name, what)) = names.next_if(is_here) {
                while let Some(entry) = kept.next_if(|(n, _)| **n < *name) {
                    made.push(entry.clone());
                }
                let before = kept.next_if(|(n, _)| **n == *name);
                if let Some(after) = edit(what, before.map(|(_, entry)| entry))? {
                    let name = before.map_or_else(|| Name::new(name), |(name, _)| name.clone());
                    made.push((name, after));
                }
            }
            made.extend(kept.cloned());
            edited.push(made);
        }
        Ok(edited.finish())
    }
}

impl FromIterator<Named> for Entries {
    fn from_iter<I: IntoIterator<Item = Named>>(entries: I) -> Self {
        let mut all = Builder::default();
        all.push(entries.into_iter().collect());
        all.finish()
    }
}

#[derive(Default)]
struct Builder {
    blocks: Vec<Arc<Block>>,
}

impl Builder {
    /// Takes a block as it is, unless it and the one before it fit into one.
    fn share(&mut self, block: &Arc<Block>) {
        match self.blocks.last() {
            Some(last) if last.len() + block.len() <= BLOCK => self.push(block.to_vec()),
            _ => self.blocks.push(block.clone()),
        }
    }

    /// What few are left of a block go to the one before it.
    fn push(&mut self, mut entries: Vec<Named>) {
        if entries.is_empty() {
            return;
        }
        if let Some(last) = self.blocks.pop_if(|last| last.len() + entries.len() <= BLOCK) {
            entries.splice(..0, last.iter().cloned());
        }
        if entries.len() < 2 * BLOCK {
            self.blocks.push(Block::new(entries));
            return;
        }
        let mut entries = entries.into_iter();
        while entries.len() > 0 {
            self.blocks.push(Block::new(entries.by_ref().take(BLOCK).collect::<Vec<_>>()));
        }
    }

    fn finish(self) -> Entries {
        Entries { blocks: self.blocks.into() }
    }
}

/// Calls `visit` with what differs for git between two directories, in order of name.
pub(super) fn differences<'a>(
    a: &'a Entries,
    b: &'a Entries,
    mut visit: impl FnMut(&'a [u8], Option<&'a Entry>, Option<&'a Entry>),
) {
    let (mut a, mut b) = (Cursor::new(a), Cursor::new(b));
    loop {
        while let (Some(x), Some(y)) = (a.block(), b.block())
            && Arc::ptr_eq(x, y)
        {
            a.skip();
            b.skip();
        }
        let order = match (a.peek(), b.peek()) {
            (Some((x, _)), Some((y, _))) => (**x).cmp(&**y),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return,
        };
        let old = if order.is_le() { a.next() } else { None };
        let new = if order.is_ge() { b.next() } else { None };
        let Some((name, _)) = old.or(new) else { return };
        let (old, new) = (old.map(|(_, entry)| entry), new.map(|(_, entry)| entry));
        if !same_for_git(old, new) {
            visit(name, old, new);
        }
    }
}

/// A place between two entries.
struct Cursor<'a> {
    /// The first is the one it is in.
    blocks: &'a [Arc<Block>],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn new(entries: &'a Entries) -> Self {
        Self { blocks: &entries.blocks, at: 0 }
    }

    /// The block that begins here.
    fn block(&self) -> Option<&'a Arc<Block>> {
        self.blocks.first().filter(|_| self.at == 0)
    }

    fn skip(&mut self) {
        self.blocks = &self.blocks[1..];
        self.at = 0;
    }

    fn peek(&self) -> Option<&'a Named> {
        self.blocks.first().map(|block| &block[self.at])
    }

    fn next(&mut self) -> Option<&'a Named> {
        let next = self.peek()?;
        self.at += 1;
        if self.at == self.blocks[0].len() {
            self.skip();
        }
        Some(next)
    }
}

fn serialise<'a>(entries: impl Iterator<Item = &'a Named> + Clone) -> Vec<u8> {
    let len = |(name, entry): &Named| {
        let (mode, id) = entry.mode_and_id();
        mode.len() + name.len() + id.len() + 2
    };
    let mut body = Vec::with_capacity(entries.clone().map(len).sum());
    in_git_order(entries, |(name, entry)| {
        let (mode, id) = entry.mode_and_id();
        body.extend_from_slice(mode);
        body.push(b' ');
        body.extend_from_slice(name);
        body.push(0);
        body.extend_from_slice(id);
    });
    body
}

/// Git sorts a directory as if its name ended in a slash: behind those of the names it begins whose next byte is less
/// than that.
fn in_git_order<'a>(entries: impl Iterator<Item = &'a Named>, mut visit: impl FnMut(&'a Named)) {
    // Directories that are still to come; each begins the one on top of it.
    let mut waiting: Vec<&Named> = Vec::new();
    for entry in entries {
        let comes_before = |dir: &[u8]| entry.0.strip_prefix(dir).is_some_and(|rest| rest[0] < b'/');
        while let Some(dir) = waiting.pop_if(|(dir, _)| !comes_before(dir)) {
            visit(dir);
        }
        match entry.1 {
            Entry::Dir(_) => waiting.push(entry),
            Entry::Leaf(_) => visit(entry),
        }
    }
    waiting.into_iter().rev().for_each(visit);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    use super::super::{Mode, Signature};
    use super::*;
    use crate::model::{ContentId, HashKind};

    fn leaf(text: &str) -> Entry {
        let id = ContentId::of(HashKind::Sha1, text.as_bytes());
        Entry::Leaf(Leaf { mode: Mode::File, id, signature: Signature::default() })
    }

    #[test]
    fn names_of_any_length_keep_their_bytes() {
        for len in [1, 21, 22, 23, 255] {
            let name = vec![b'n'; len];
            assert_eq!(*Name::new(&name), name);
        }
    }

    #[test]
    fn git_order_is_the_order_of_names_with_a_slash_behind_directories() {
        let seed = 7;
        let mut rng = fastrand::Rng::with_seed(seed);
        for round in 0..2_000 {
            let mut entries = BTreeMap::new();
            for _ in 0..rng.usize(0..10) {
                let len = rng.usize(1..5);
                let name: Vec<u8> = (0..len).map(|_| b"a-.0~"[rng.usize(0..5)]).collect();
                let dir = Entry::from(Dir::empty(HashKind::Sha1));
                entries.insert(name, if rng.bool() { dir } else { leaf("1") });
            }
            let entries: Entries = entries.into_iter().map(|(n, e)| (Name::new(&n), e)).collect();
            let key = |(name, entry): &Named| {
                let slash = matches!(entry, Entry::Dir(_)).then_some(b'/');
                name.iter().copied().chain(slash).collect::<Vec<u8>>()
            };
            let mut expected: Vec<Vec<u8>> = entries.iter().map(key).collect();
            expected.sort();
            let mut order = Vec::new();
            in_git_order(entries.iter(), |entry| order.push(key(entry)));
            assert_eq!(order, expected, "seed {seed} round {round}");
        }
    }

    #[test]
    fn blocks_make_the_body_that_all_at_once_make() {
        let seed = 11;
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut in_order, mut not) = (0, 0);
        for round in 0..200 {
            let mut entries = BTreeMap::new();
            // Few directories, so that some of many blocks are in order.
            for _ in 0..rng.usize(0..500) {
                let len = rng.usize(1..6);
                let name: Vec<u8> = (0..len).map(|_| b"a-.0~"[rng.usize(0..5)]).collect();
                let is_dir = round % 2 == 0 || rng.usize(0..100) == 0;
                entries.insert(name, if is_dir { Dir::empty(HashKind::Sha1).into() } else { leaf("1") });
            }
            let entries: Entries = entries.into_iter().map(|(n, e)| (Name::new(&n), e)).collect();
            for _ in 0..2 {
                assert_eq!(entries.body().concat(), serialise(entries.iter()), "seed {seed} round {round}");
            }
            if entries.blocks.len() > 1 {
                *if entries.is_in_git_order() { &mut in_order } else { &mut not } += 1;
            }
        }
        assert!(in_order > 20 && not > 20, "both ways are tried: {in_order} and {not}");
    }

    /// Many names, edited again and again, against a map; what differs, against looking at all.
    #[test]
    fn blocks_hold_what_a_map_would() {
        let seed = 99;
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut entries, mut map) = (Entries::default(), BTreeMap::<Vec<u8>, Entry>::new());
        for round in 0..600 {
            let growing = round % 200 < 100;
            let names: BTreeMap<Vec<u8>, Option<Entry>> = (0..rng.usize(1..40))
                .map(|_| {
                    let name = format!("{:04}", rng.u32(0..1_000)).into_bytes();
                    let text = rng.u32(0..3).to_string();
                    (name, (rng.usize(0..10) < if growing { 8 } else { 1 }).then(|| leaf(&text)))
                })
                .collect();
            let edits = names.iter().map(|(name, entry)| (&**name, entry.clone()));
            let next = entries.edit(edits, |entry, _| Ok::<_, Infallible>(entry)).unwrap();
            let before = map.clone();
            for (name, entry) in names {
                match entry {
                    Some(entry) => drop(map.insert(name, entry)),
                    None => drop(map.remove(&name)),
                }
            }
            let what = format!("seed {seed} round {round}");
            assert!(next.iter().map(|(n, _)| &**n).eq(map.keys().map(|n| &**n)), "{what}");
            assert_eq!((next.len(), next.leaves()), (map.len(), map.len() as u64), "{what}");
            assert!(map.iter().all(|(n, e)| same_for_git(next.get(n), Some(e))), "{what}");
            assert!(next.get(b"0500x").is_none() && next.get(b"").is_none(), "{what}");
            assert!(next.blocks.iter().all(|block| (1..2 * BLOCK).contains(&block.len())), "{what}");
            // Two neighbours never fit into one.
            let mut pairs = next.blocks.windows(2);
            assert!(pairs.all(|pair| pair[0].len() + pair[1].len() > BLOCK), "{what}");
            assert!(next.blocks.len() <= 2 + 3 * map.len() / BLOCK, "{what}: {}", next.blocks.len());
            let mut told = Vec::new();
            differences(&entries, &next, |name, _, _| told.push(name.to_vec()));
            let names = before.keys().chain(map.keys().filter(|n| !before.contains_key(*n)));
            let mut expected: Vec<_> = names.filter(|n| !same_for_git(before.get(*n), map.get(*n))).collect();
            expected.sort();
            assert!(told.iter().eq(expected), "{what}");
            entries = next;
        }
    }

    #[test]
    fn an_edit_copies_the_block_it_touches() {
        let name = |i: usize| Name::new(format!("{i:04}").as_bytes());
        let entries: Entries = (0..1_000).map(|i| (name(i), leaf("1"))).collect();
        let edit = |at: &[u8]| {
            entries.edit([(at, ())].into_iter(), |(), _| Ok::<_, Infallible>(Some(leaf("2")))).unwrap()
        };
        for at in [&b"0000"[..], b"0500", b"0999", b"", b"z"] {
            let edited = edit(at);
            let shared = edited.blocks.iter().filter(|b| entries.blocks.iter().any(|o| Arc::ptr_eq(o, b)));
            assert_eq!(shared.count(), entries.blocks.len() - 1, "{at:?}");
        }
    }
}
