//! What git's index says of paths, in little room: which are tracked, and what git wants of them on disk.
//!
//! Only that is asked of the index, never content ids: its ids are of filtered content.

use gix::index::entry::{Flags, Mode as IndexMode};

use crate::model::path::{self, RelPath};

/// A submodule's place.
const SUBMODULE: u8 = 1;
/// Kept out of the working tree on purpose.
const SKIP_WORKTREE: u8 = 2;
const EXECUTABLE: u8 = 4;
/// A path git wants on disk, and one we could have in a snapshot.
const EXPECTED: u8 = 8;

/// What the index says of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tracked {
    No,
    /// A file or symlink, whatever it is on disk.
    Yes {
        skip_worktree: bool,
        executable: bool,
    },
    /// A commit of another repository.
    Submodule,
}

/// The paths of an index, sorted bytewise.
#[derive(Debug, Default)]
pub struct Index {
    /// One after the other.
    paths: Vec<u8>,
    entries: Vec<Slot>,
    expected: u64,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    /// Where the path ends in `paths`; the one before it says where it begins.
    end: u32,
    flags: u8,
}

impl Index {
    pub fn new(index: &gix::index::State) -> Self {
        let mut all = Self::default();
        all.entries.reserve_exact(index.entries().len());
        let mut is_checked = false;
        for entry in index.entries() {
            let path: &[u8] = entry.path(index);
            // A path in conflict has up to three entries; each makes it tracked.
            let last = all.entries.len().checked_sub(1).map(|i| all.path(i));
            if last == Some(path) {
                continue;
            }
            // Most paths lie in the directory of the one before, which was checked.
            let name_at = path.iter().rposition(|b| *b == b'/').map_or(0, |i| i + 1);
            let beside = is_checked && last.is_some_and(|last| is_beside(last, path, name_at));
            is_checked = match beside {
                true => path::is_name(&path[name_at..]) && path.len() <= path::MAX_PATH_BYTES,
                false => RelPath::new(path).is_ok(),
            };
            let skip = entry.flags.contains(Flags::SKIP_WORKTREE);
            let mut flags = match entry.mode {
                IndexMode::COMMIT => SUBMODULE,
                IndexMode::FILE_EXECUTABLE => EXECUTABLE,
                _ => 0,
            };
            if skip {
                flags |= SKIP_WORKTREE;
            }
            if flags & (SUBMODULE | SKIP_WORKTREE) == 0 && is_checked {
                flags |= EXPECTED;
                all.expected += 1;
            }
            all.paths.extend_from_slice(path);
            let end = u32::try_from(all.paths.len()).expect("git's own index file has no more paths");
            all.entries.push(Slot { end, flags });
        }
        all.paths.shrink_to_fit();
        all
    }

    /// How many files and links git wants on disk.
    pub fn expected(&self) -> u64 {
        self.expected
    }

    pub fn get(&self, path: &RelPath) -> Tracked {
        let wanted = path.as_bytes();
        match self.search(|p| p < wanted) {
            at if at < self.entries.len() && self.path(at) == wanted => self.entries[at].tracked(),
            _ => Tracked::No,
        }
    }

    /// The part below a directory, `None` for all of it.
    pub fn below(&self, dir: Option<&RelPath>) -> Section<'_> {
        let Some(dir) = dir else {
            return Section { index: self, start: 0, end: self.entries.len(), prefix: 0 };
        };
        let prefix = [dir.as_bytes(), b"/"].concat();
        let start = self.search(|p| p < &prefix[..]);
        let end = start + self.run(start, self.entries.len(), |p| p.starts_with(&prefix));
        Section { index: self, start, end, prefix: prefix.len() }
    }

    /// Which paths `self` answers differently for than `old`, in order.
    pub fn changed_since(&self, old: &Index) -> Vec<RelPath> {
        let (mut changed, mut i, mut j) = (Vec::new(), 0, 0);
        while i < self.entries.len() || j < old.entries.len() {
            let new = (i < self.entries.len()).then(|| self.path(i));
            let was = (j < old.entries.len()).then(|| old.path(j));
            let order = match (new, was) {
                (Some(new), Some(was)) => new.cmp(was),
                (Some(_), None) => std::cmp::Ordering::Less,
                _ => std::cmp::Ordering::Greater,
            };
            let path = if order.is_le() { new } else { was };
            let same = order.is_eq() && self.entries[i].flags == old.entries[j].flags;
            if !same && let Some(path) = path.and_then(|path| RelPath::new(path).ok()) {
                changed.push(path);
            }
            i += usize::from(order.is_le());
            j += usize::from(order.is_ge());
        }
        changed.sort();
        changed
    }

    fn path(&self, i: usize) -> &[u8] {
        let start = i.checked_sub(1).map_or(0, |before| self.entries[before].end);
        &self.paths[start as usize..self.entries[i].end as usize]
    }

    fn search(&self, before: impl Fn(&[u8]) -> bool) -> usize {
        let (mut low, mut high) = (0, self.entries.len());
        while low < high {
            let middle = (low + high) / 2;
            if before(self.path(middle)) { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// How many entries from `start` on are of a kind that begins there, if at all, and is nowhere else. The search
    /// goes in growing steps: most directories are small.
    fn run(&self, start: usize, end: usize, is_of: impl Fn(&[u8]) -> bool) -> usize {
        let (mut low, mut step) = (start, 1);
        while low + step <= end && is_of(self.path(low + step - 1)) {
            low += step;
            step *= 2;
        }
        let mut high = end.min(low + step);
        while low < high {
            let middle = (low + high) / 2;
            if is_of(self.path(middle)) { low = middle + 1 } else { high = middle }
        }
        low - start
    }
}

impl Slot {
    fn tracked(self) -> Tracked {
        let has = |flag| self.flags & flag != 0;
        match has(SUBMODULE) {
            true => Tracked::Submodule,
            false => Tracked::Yes { skip_worktree: has(SKIP_WORKTREE), executable: has(EXECUTABLE) },
        }
    }
}

/// True if `path`, whose name begins at `name_at`, is in the same directory as `last`.
fn is_beside(last: &[u8], path: &[u8], name_at: usize) -> bool {
    last.len() > name_at && last[..name_at] == path[..name_at] && !last[name_at..].contains(&b'/')
}

/// The entries below one directory.
#[derive(Debug, Clone, Copy)]
pub struct Section<'a> {
    index: &'a Index,
    start: usize,
    end: usize,
    /// Bytes of each path that are the directory's.
    prefix: usize,
}

/// One name directly in a directory of the index.
#[derive(Debug, Clone, Copy)]
pub struct Child<'a> {
    pub name: &'a [u8],
    pub tracked: Tracked,
    /// True if git wants this very path on disk.
    pub expected: bool,
    pub below: Section<'a>,
}

impl<'a> Section<'a> {
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// A part without entries.
    pub fn nothing(&self) -> Self {
        Section { end: self.start, ..*self }
    }

    /// How many of these paths git wants on disk.
    pub fn expected(&self) -> u64 {
        let slots = &self.index.entries[self.start..self.end];
        slots.iter().filter(|slot| slot.flags & EXPECTED != 0).count() as u64
    }

    /// The names directly in this directory, in bytewise order.
    pub fn children(&self) -> Vec<Child<'a>> {
        let mut children: Vec<Child<'a>> = Vec::new();
        let mut at = self.start;
        while at < self.end {
            let rest = &self.index.path(at)[self.prefix..];
            match rest.iter().position(|b| *b == b'/') {
                None => {
                    let slot = self.index.entries[at];
                    let expected = slot.flags & EXPECTED != 0;
                    let (tracked, below) = (slot.tracked(), self.nothing());
                    children.push(Child { name: rest, tracked, expected, below });
                    at += 1;
                }
                Some(slash) => {
                    let (name, head) = (&rest[..slash], &self.index.path(at)[..self.prefix + slash + 1]);
                    let end = at + self.index.run(at, self.end, |p| p.starts_with(head));
                    let below = Section { start: at, end, prefix: head.len(), ..*self };
                    children.push(Child { name, tracked: Tracked::No, expected: false, below });
                    at = end;
                }
            }
        }
        // The index orders a directory's name as if it ended in a slash.
        if !children.is_sorted_by(|a, b| a.name < b.name) {
            children.sort_by_key(|child| child.name);
            // In a conflict a name may be both; the file comes first, and takes over what is below.
            children.dedup_by(|dir, file| {
                let same = dir.name == file.name;
                if same {
                    file.below = dir.below;
                }
                same
            });
        }
        children
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    /// An index of these paths, with flags.
    fn index(paths: &[(&str, u8)]) -> Index {
        let mut all = Index::default();
        let sorted: BTreeMap<&str, u8> = paths.iter().copied().collect();
        for (path, flags) in sorted {
            all.paths.extend_from_slice(path.as_bytes());
            all.expected += u64::from(flags & EXPECTED != 0);
            all.entries.push(Slot { end: all.paths.len() as u32, flags });
        }
        all
    }

    fn rel(path: &str) -> RelPath {
        RelPath::new(path).unwrap()
    }

    const PATHS: [(&str, u8); 9] = [
        ("a", EXPECTED),
        ("a-b", EXPECTED | EXECUTABLE),
        ("a/b/c", SKIP_WORKTREE),
        ("a/b/d", EXPECTED),
        ("a/x", EXPECTED),
        ("a.c/y", EXPECTED),
        ("b", SUBMODULE),
        ("c/d/e/f", EXPECTED),
        ("z", EXPECTED),
    ];

    #[test]
    fn paths_are_found_and_others_are_not() {
        let index = index(&PATHS);
        let yes = |skip_worktree, executable| Tracked::Yes { skip_worktree, executable };
        for (path, expected) in [
            ("a", yes(false, false)),
            ("a-b", yes(false, true)),
            ("a/b/c", yes(true, false)),
            ("b", Tracked::Submodule),
            ("a/b", Tracked::No),
            ("0", Tracked::No),
            ("zz", Tracked::No),
        ] {
            assert_eq!(index.get(&rel(path)), expected, "{path}");
        }
        for (dir, below, expected) in
            [("a", true, 2), ("a/b", true, 1), ("c/d", true, 1), ("b", false, 0), ("c/d/e/f", false, 0)]
        {
            let section = index.below(Some(&rel(dir)));
            assert_eq!((!section.is_empty(), section.expected()), (below, expected), "{dir}");
        }
    }

    /// Law: going down by children meets every path once, in the names' order, with its flags.
    #[test]
    fn going_down_meets_every_path() {
        let seed = 11;
        let mut rng = fastrand::Rng::with_seed(seed);
        for round in 0..500 {
            let mut paths = BTreeMap::new();
            for _ in 0..rng.usize(0..60) {
                let names: Vec<&str> =
                    (0..rng.usize(1..5)).map(|_| ["a", "a-", "a.b", "b", "aa"][rng.usize(0..5)]).collect();
                paths.insert(
                    names.join("/"),
                    [EXPECTED, SKIP_WORKTREE, EXPECTED | EXECUTABLE][rng.usize(0..3)],
                );
            }
            let paths: Vec<(&str, u8)> = paths.iter().map(|(p, f)| (p.as_str(), *f)).collect();
            let index = index(&paths);
            let mut met = BTreeSet::new();
            visit(&index.below(None), "", &mut |path, tracked| {
                assert_eq!(index.get(&rel(path)), tracked, "seed {seed} round {round}");
                assert!(met.insert(path.to_owned()));
            });
            let all: BTreeSet<String> = paths.iter().map(|(p, _)| (*p).to_owned()).collect();
            assert_eq!(met, all, "seed {seed} round {round}");
        }
    }

    fn visit(section: &Section<'_>, at: &str, found: &mut dyn FnMut(&str, Tracked)) {
        let children = section.children();
        assert!(children.is_sorted_by(|a, b| a.name < b.name));
        for child in children {
            let path = format!("{at}{}", str::from_utf8(child.name).unwrap());
            if child.tracked != Tracked::No {
                found(&path, child.tracked);
            }
            visit(&child.below, &format!("{path}/"), found);
        }
    }

    #[test]
    fn what_changed_is_what_is_answered_differently() {
        let old = index(&PATHS);
        let mut next: Vec<(&str, u8)> = PATHS.to_vec();
        next.retain(|(path, _)| *path != "a/x");
        next.push(("new", EXPECTED));
        next[0].1 |= EXECUTABLE;
        let changed = index(&next).changed_since(&old);
        assert_eq!(changed, [rel("a"), rel("a/x"), rel("new")]);
        assert_eq!(old.changed_since(&index(&PATHS)), []);
        assert_eq!(index(&[]).changed_since(&old).len(), PATHS.len());
    }
}
