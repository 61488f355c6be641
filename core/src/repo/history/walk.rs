//! Which commits go next: a walk from newest to oldest over whatever knows commits.
//!
//! A batch is the newest commits that the other side does not own, and where it ends it ends at commits whose
//! parents are left out: the *boundary* (git's `shallow` file). The commits that wait when a batch is full go with
//! it as its boundary, so that no commit before them loses a parent. After git's `limit_list` (revision.c), which
//! walks by date too; a wrong date makes a batch larger than need be, never wrong.

use std::collections::{BinaryHeap, HashMap, HashSet};

use gix::ObjectId;

/// A batch does not end while more commits than this would be its boundary.
const BOUNDARY_MOST: usize = 5_000;

/// A commit as the walk needs it.
#[derive(Debug, Clone)]
pub struct Commit {
    /// Seconds since the epoch, by the committer's clock.
    pub time: i64,
    /// As recorded in the commit.
    pub parents: Vec<ObjectId>,
    /// This clone is shallow and does not have them.
    pub cut: bool,
}

/// Looks a commit up; `None` if it is not here.
pub type Lookup<'a> = dyn FnMut(&ObjectId) -> Option<Commit> + 'a;

/// What the other side owns, and what of the rest is wanted.
#[derive(Debug, Clone, Default)]
pub struct Ask<'a> {
    /// Where the walk starts.
    pub from: &'a [ObjectId],
    /// Owned with all their ancestors, down to the boundary.
    pub owned: &'a [ObjectId],
    /// Owned without their parents.
    pub boundary: &'a [ObjectId],
    /// About so many commits; at least one.
    pub most: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Newest first.
    pub commits: Vec<ObjectId>,
    /// Those of them whose parents the other side will not have.
    pub boundary: Vec<ObjectId>,
}

struct Node {
    commit: Commit,
    owned: bool,
    /// Its parents have been looked at.
    done: bool,
}

/// The walk's state.
struct Walk<'a, 'b> {
    lookup: &'a mut Lookup<'b>,
    nodes: HashMap<ObjectId, Node>,
    queue: BinaryHeap<(i64, ObjectId)>,
    /// Commits in the queue that are not owned.
    waiting: usize,
}

/// The newest commits from `ask.from` that are not owned.
pub fn batch(ask: &Ask<'_>, lookup: &mut Lookup<'_>) -> Batch {
    let mut walk = Walk { lookup, nodes: HashMap::new(), queue: BinaryHeap::new(), waiting: 0 };
    let boundary: HashSet<&ObjectId> = ask.boundary.iter().collect();
    for id in ask.owned {
        walk.push(*id, true);
    }
    for id in ask.from.iter().filter(|id| !boundary.contains(id)) {
        walk.push(*id, false);
    }
    let mut taken = Vec::new();
    while walk.waiting > 0 {
        let full = taken.len() + walk.waiting >= ask.most.max(1);
        if full && walk.waiting <= BOUNDARY_MOST {
            break;
        }
        let Some((_, id)) = walk.queue.pop() else { break };
        let Some(node) = walk.nodes.get_mut(&id).filter(|node| !node.done) else { continue };
        node.done = true;
        let (owned, parents) = (node.owned, node.commit.reachable_parents());
        if !owned {
            walk.waiting -= 1;
            taken.push(id);
        }
        for parent in parents {
            if boundary.contains(&parent) || (owned && boundary.contains(&id)) {
                continue;
            }
            walk.push(parent, owned);
        }
    }
    let rest = std::mem::take(&mut walk.queue).into_sorted_vec();
    taken.extend(rest.into_iter().rev().map(|(_, id)| id).filter(|id| !walk.nodes[id].done));
    // Some may have turned out to be owned after they were taken.
    taken.retain(|id| !walk.nodes[id].owned);
    taken.dedup();
    let known: HashSet<&ObjectId> = taken.iter().collect();
    let has = |id: &ObjectId| {
        known.contains(id) || boundary.contains(id) || walk.nodes.get(id).is_some_and(|node| node.owned)
    };
    let ends = |id: &&ObjectId| {
        let commit = &walk.nodes[*id].commit;
        (commit.cut && !commit.parents.is_empty()) || !commit.parents.iter().all(has)
    };
    let boundary = taken.iter().filter(ends).copied().collect();
    Batch { commits: taken, boundary }
}

impl Walk<'_, '_> {
    fn push(&mut self, id: ObjectId, owned: bool) {
        let mut todo = vec![id];
        while let Some(id) = todo.pop() {
            let Some(node) = self.nodes.get_mut(&id) else {
                let Some(commit) = (self.lookup)(&id) else { continue };
                self.queue.push((commit.time, id));
                self.waiting += usize::from(!owned);
                self.nodes.insert(id, Node { commit, owned, done: false });
                continue;
            };
            if !owned || node.owned {
                continue;
            }
            node.owned = true;
            match node.done {
                // It was taken too early: its parents are owned as well.
                true => todo.extend(node.commit.reachable_parents()),
                false => self.waiting -= 1,
            }
        }
    }
}

impl Commit {
    fn reachable_parents(&self) -> Vec<ObjectId> {
        if self.cut { Vec::new() } else { self.parents.clone() }
    }
}

/// How many commits there are from `head` down to the boundary, counted no further than `most`.
pub fn count(head: ObjectId, boundary: &HashSet<ObjectId>, most: u64, lookup: &mut Lookup<'_>) -> u64 {
    let mut count = 0;
    visit(head, boundary, lookup, &mut |_| {
        count += 1;
        count < most
    });
    count
}

/// Calls `see` with each commit from `head` down to the boundary, until it answers false.
pub fn visit(
    head: ObjectId,
    boundary: &HashSet<ObjectId>,
    lookup: &mut Lookup<'_>,
    see: &mut dyn FnMut(&ObjectId) -> bool,
) {
    let (mut seen, mut todo) = (HashSet::from([head]), vec![head]);
    while let Some(id) = todo.pop() {
        let Some(commit) = lookup(&id) else { continue };
        if !see(&id) {
            return;
        }
        if boundary.contains(&id) {
            continue;
        }
        todo.extend(commit.reachable_parents().into_iter().filter(|parent| seen.insert(*parent)));
    }
}

/// True if `old` is reached from `new`. Looks no further back than `old`'s date and a day.
pub fn is_ancestor(old: ObjectId, new: ObjectId, lookup: &mut Lookup<'_>) -> bool {
    const SKEW_S: i64 = 86_400;
    let Some(oldest) = lookup(&old).map(|commit| commit.time - SKEW_S) else { return false };
    let (mut seen, mut todo) = (HashSet::from([new]), vec![new]);
    while let Some(id) = todo.pop() {
        if id == old {
            return true;
        }
        let Some(commit) = lookup(&id).filter(|commit| commit.time >= oldest) else { continue };
        todo.extend(commit.reachable_parents().into_iter().filter(|parent| seen.insert(*parent)));
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> ObjectId {
        ObjectId::from([n; 20])
    }

    fn ids(list: &[u8]) -> Vec<ObjectId> {
        list.iter().map(|n| id(*n)).collect()
    }

    /// Commits by number; a higher number is a later one.
    fn graph(commits: &[(u8, &[u8])]) -> HashMap<ObjectId, Commit> {
        let commit = |(n, parents): &(u8, &[u8])| {
            (id(*n), Commit { time: i64::from(*n), parents: ids(parents), cut: false })
        };
        commits.iter().map(commit).collect()
    }

    fn line(last: u8) -> HashMap<ObjectId, Commit> {
        (1..=last)
            .map(|n| {
                let parents = if n == 1 { vec![] } else { ids(&[n - 1]) };
                (id(n), Commit { time: i64::from(n), parents, cut: false })
            })
            .collect()
    }

    fn asked(
        graph: &HashMap<ObjectId, Commit>,
        from: &[u8],
        owned: &[u8],
        boundary: &[u8],
        most: usize,
    ) -> Batch {
        let (from, owned, boundary) = (ids(from), ids(owned), ids(boundary));
        let ask = Ask { from: &from, owned: &owned, boundary: &boundary, most };
        batch(&ask, &mut |id| graph.get(id).cloned())
    }

    fn is(batch: &Batch, commits: &[u8], boundary: &[u8]) {
        assert_eq!(batch, &Batch { commits: ids(commits), boundary: ids(boundary) });
    }

    #[test]
    fn one_commit_first_and_the_older_ones_in_batches() {
        let graph = line(6);
        is(&asked(&graph, &[6], &[], &[], 1), &[6], &[6]);
        is(&asked(&graph, &[5], &[], &[6], 2), &[5, 4], &[4]);
        is(&asked(&graph, &[3], &[], &[4], 100), &[3, 2, 1], &[]);
        is(&asked(&graph, &[1], &[], &[], 1), &[1], &[]);
    }

    #[test]
    fn what_is_owned_is_not_sent_again() {
        let mut graph = line(6);
        is(&asked(&graph, &[6], &[4], &[], 100), &[6, 5], &[]);
        is(&asked(&graph, &[6], &[6], &[], 100), &[], &[]);
        is(&asked(&graph, &[4], &[6], &[], 100), &[], &[]);
        // Owned only down to 5.
        is(&asked(&graph, &[4], &[6], &[5], 100), &[4, 3, 2, 1], &[]);
        // The wrong date of 9, a child of 4, has 3 taken before it turns out to be owned.
        let odd = |time| Commit { time, parents: ids(&[4]), cut: false };
        graph.insert(id(9), odd(2));
        graph.insert(id(10), Commit { time: 10, parents: ids(&[9, 3]), cut: false });
        graph.insert(id(11), Commit { time: 11, parents: ids(&[10]), cut: false });
        is(&asked(&graph, &[11], &[9], &[], 100), &[11, 10], &[]);
        // One that is even wronger only makes for more.
        graph.insert(id(9), odd(0));
        is(&asked(&graph, &[11], &[9], &[], 100), &[11, 10, 3, 2, 1], &[]);
    }

    #[test]
    fn a_side_branch_from_below_the_boundary_is_cut_and_hides_nothing() {
        // 20 is a merge of 10 (owned down to 8) and 15, which left at 3.
        let mut graph = line(10);
        graph.extend(self::graph(&[(14, &[3]), (15, &[14]), (20, &[10, 15])]));
        is(&asked(&graph, &[20], &[10], &[8], 3), &[20, 15, 14], &[14]);
        is(&asked(&graph, &[20], &[10], &[8], 100), &[20, 15, 14, 3, 2, 1], &[]);
        is(&asked(&graph, &[3, 7], &[], &[8, 14], 100), &[7, 6, 5, 4, 3, 2, 1], &[]);
    }

    #[test]
    fn both_sides_of_a_merge_go_before_a_batch_ends() {
        let mut graph = line(4);
        graph.extend(self::graph(&[(5, &[2]), (6, &[4, 5])]));
        is(&asked(&graph, &[6], &[], &[], 2), &[6, 5, 4], &[5, 4]);
        is(&asked(&graph, &[3, 2], &[], &[5, 4], 1), &[3, 2], &[2]);
        is(&asked(&graph, &[1], &[], &[2], 1), &[1], &[]);
    }

    #[test]
    fn the_end_of_a_shallow_clone_stays_a_boundary() {
        let mut graph = line(6);
        graph.get_mut(&id(4)).unwrap().cut = true;
        graph.retain(|at, _| *at >= id(4));
        is(&asked(&graph, &[6], &[], &[], 100), &[6, 5, 4], &[4]);
        // A commit that is simply not here is an end as well.
        graph.get_mut(&id(4)).unwrap().cut = false;
        is(&asked(&graph, &[6], &[], &[], 100), &[6, 5, 4], &[4]);
    }

    #[test]
    fn ancestors_and_counts() {
        let mut graph = line(6);
        graph.extend(self::graph(&[(7, &[3])]));
        let mut lookup = |id: &ObjectId| graph.get(id).cloned();
        assert!(is_ancestor(id(3), id(7), &mut lookup));
        assert!(is_ancestor(id(6), id(6), &mut lookup));
        assert!(!is_ancestor(id(6), id(7), &mut lookup));
        assert!(!is_ancestor(id(99), id(7), &mut lookup));
        assert_eq!(count(id(6), &HashSet::new(), 100, &mut lookup), 6);
        assert_eq!(count(id(6), &HashSet::from([id(5)]), 100, &mut lookup), 2);
        assert_eq!(count(id(6), &HashSet::new(), 3, &mut lookup), 3);
    }
}
