//! Which refs a step changes, decided before any is.
//!
//! Written are `refs/heads/BRANCH`, `refs/tags/*` and `refs/gitsync/recovery/*`, nothing else. No commit is lost: a tip
//! that goes and that nothing else leads to is kept under `refs/gitsync/recovery`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use bstr::{BStr, BString, ByteSlice};
use gix::ObjectId;

use super::step::{Step, full_name};

pub const RECOVERY: &[u8] = b"refs/gitsync/recovery/";
/// Former tips that are kept; the oldest go first, but not while they are young: many amends must not drive out a
/// commit somebody made in the workspace.
const RECOVERY_MAX: usize = 50;
const RECOVERY_YOUNG: Duration = Duration::from_secs(30 * 86_400);
/// Most of them, however young.
const RECOVERY_YOUNG_MAX: usize = 1000;
/// Most of a label's first component, in bytes: it becomes part of a file name, with a date before it and `.lock` behind.
const LABEL_BYTES: usize = 200;

/// Refs by full name. Symbolic ones by what they lead to.
pub type Refs = BTreeMap<BString, ObjectId>;

/// What HEAD is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Head {
    /// Full name of a branch, with or without a commit.
    Branch(BString),
    Detached(ObjectId),
}

impl Head {
    /// The file `HEAD`; `None` if it makes no sense.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = text.trim_end();
        match text.strip_prefix(b"ref:") {
            Some(name) => Some(Self::Branch(name.trim().into())),
            None => ObjectId::from_hex(text).ok().map(Self::Detached),
        }
    }

    pub fn print(&self) -> Vec<u8> {
        match self {
            Self::Branch(name) => [b"ref: ", name.as_bytes(), b"\n"].concat(),
            Self::Detached(id) => format!("{id}\n").into_bytes(),
        }
    }

    /// What HEAD is after `step`.
    pub fn after(step: &Step) -> Option<Self> {
        match (&step.branch, step.head) {
            (Some(branch), _) => Some(Self::Branch(full_name(b"refs/heads/", branch.as_bstr()))),
            (None, Some(id)) => Some(Self::Detached(id)),
            (None, None) => None,
        }
    }
}

/// One change of one ref.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefEdit {
    pub name: BString,
    pub before: Option<ObjectId>,
    pub after: Option<ObjectId>,
}

/// A commit that may have nothing left to lead to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tip {
    pub id: ObjectId,
    /// What it was called, for its name in the recovery refs.
    pub label: BString,
    /// It is kept whatever else leads to it.
    pub always: bool,
}

/// The changes of a step. Each part is one transaction, in this order: git cannot replace `a` by `a/b` in one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    pub clearing: Vec<RefEdit>,
    pub setting: Vec<RefEdit>,
    /// Commits to be kept, if nothing else leads to them.
    pub tips: Vec<Tip>,
}

/// `ours` are the tags an earlier step has set, by full name.
pub fn plan(refs: &Refs, head: Option<&Head>, step: &Step, ours: &Refs) -> Plan {
    let mut wanted: BTreeMap<BString, Option<ObjectId>> = BTreeMap::new();
    if let Some(branch) = &step.branch {
        wanted.insert(full_name(b"refs/heads/", branch.as_bstr()), step.head);
    }
    for (name, id) in step.tags() {
        wanted.insert(full_name(b"refs/tags/", name.as_bstr()), Some(*id));
    }
    // A tag the client no longer has goes, if it still is what we made it.
    for (name, id) in ours {
        if !wanted.contains_key(name) && refs.get(name) == Some(id) {
            wanted.insert(name.clone(), None);
        }
    }
    let mut plan = Plan::default();
    let goes = |name: &BString| matches!(wanted.get(name), Some(None));
    for (name, after) in &wanted {
        let before = refs.get(name).copied();
        if after.is_some() {
            for (other, id) in conflicts(refs, name.as_bstr()).filter(|(other, _)| !goes(other)) {
                if !wanted.contains_key(other) && !plan.clearing.iter().any(|edit| edit.name == *other) {
                    plan.clearing.push(RefEdit { name: other.clone(), before: Some(*id), after: None });
                    plan.tips.push(tip(other, *id, ours));
                }
            }
        }
        if before == *after {
            continue;
        }
        let edit = RefEdit { name: name.clone(), before, after: *after };
        if let Some(before) = before
            && ours.get(name) != Some(&before)
        {
            plan.tips.push(tip(name, before, ours));
        }
        match after {
            Some(_) => plan.setting.push(edit),
            None => plan.clearing.push(edit),
        }
    }
    if let Some(Head::Detached(id)) = head
        && step.head != Some(*id)
    {
        plan.tips.push(Tip { id: *id, label: "HEAD".into(), always: false });
    }
    plan
}

fn tip(name: &BString, id: ObjectId, ours: &Refs) -> Tip {
    let (label, always) = match (name.strip_prefix(b"refs/heads/"), name.strip_prefix(b"refs/")) {
        (Some(branch), _) => (branch, false),
        // Somebody's own tag: what it names may be more than a commit.
        (None, Some(rest)) => (rest, ours.get(name) != Some(&id)),
        (None, None) => (name.as_slice(), false),
    };
    Tip { id, label: label.into(), always }
}

/// Refs that cannot be beside `name`: those above it and those below.
fn conflicts<'r>(refs: &'r Refs, name: &'r BStr) -> impl Iterator<Item = (&'r BString, &'r ObjectId)> {
    let below: BString = [name.as_bytes(), b"/"].concat().into();
    let slashes = name.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(i, _)| i);
    let above = slashes.filter_map(move |slash| refs.get_key_value(name[..slash].as_bstr()));
    let end = below.clone();
    above.chain(refs.range(below..).take_while(move |(other, _)| other.starts_with(&end)))
}

/// Names for `tips`, and the oldest names that go for them.
pub fn keep(refs: &Refs, tips: &[Tip], now: SystemTime) -> Vec<RefEdit> {
    if tips.is_empty() {
        return Vec::new();
    }
    let mut kept: BTreeSet<BString> =
        refs.keys().filter(|name| name.starts_with(RECOVERY)).cloned().collect();
    let mut edits = Vec::new();
    for tip in tips {
        let mut at = now;
        let label = short(&tip.label);
        let name = loop {
            let name: BString = [RECOVERY, stamp(at).as_bytes(), b"-", &label].concat().into();
            let taken = kept.contains(&name) || conflicts(refs, name.as_bstr()).next().is_some();
            if !taken && !edits.iter().any(|edit: &RefEdit| edit.name == name) {
                break name;
            }
            at += Duration::from_millis(1);
        };
        edits.push(RefEdit { name, before: None, after: Some(tip.id) });
    }
    let young = now.checked_sub(RECOVERY_YOUNG).unwrap_or(SystemTime::UNIX_EPOCH);
    let young: BString = [RECOVERY, stamp(young).as_bytes()].concat().into();
    while let Some(oldest) = kept.first()
        && kept.len() + tips.len() > if *oldest < young { RECOVERY_MAX } else { RECOVERY_YOUNG_MAX }
        && let Some(oldest) = kept.pop_first()
    {
        edits.push(RefEdit { before: refs.get(&oldest).copied(), name: oldest, after: None });
    }
    edits
}

/// A label whose first component is short enough, and still one git allows.
fn short(label: &[u8]) -> Vec<u8> {
    let end = label.iter().position(|b| *b == b'/').unwrap_or(label.len());
    let (first, rest) = label.split_at(end);
    if first.len() <= LABEL_BYTES {
        return label.to_vec();
    }
    // Between two characters.
    let cut = (0..=LABEL_BYTES).rev().find(|at| first[*at] & 0xc0 != 0x80).unwrap_or(LABEL_BYTES);
    let mut kept = &first[..cut];
    while let Some(less) = kept.strip_suffix(b".").or_else(|| kept.strip_suffix(b".lock")) {
        kept = less;
    }
    [kept, rest].concat()
}

/// `20260102T030405678Z`
pub fn stamp(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, secs) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    format!(
        "{year:04}{month:02}{day:02}T{:02}{:02}{:02}{:03}Z",
        secs / 3600,
        secs / 60 % 60,
        secs % 60,
        since.subsec_millis()
    )
}

/// The civil date so many days after 1970-01-01.
fn date(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 0;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        month += 1;
        if days < length {
            break;
        }
        days -= length;
    }
    (year, month, days + 1)
}

/// The input of `git update-ref --stdin -z` for one transaction.
pub fn transaction(edits: &[RefEdit], hash: gix::hash::Kind) -> Vec<u8> {
    let none = ObjectId::null(hash).to_string();
    let text = |id: Option<ObjectId>| id.map_or_else(|| none.clone(), |id| id.to_string());
    let mut input = b"start\0".to_vec();
    for RefEdit { name, before, after } in edits {
        let line = match after {
            Some(after) => [b"update ", name.as_slice(), b"\0", after.to_string().as_bytes(), b"\0"].concat(),
            None => [b"delete ", name.as_slice(), b"\0"].concat(),
        };
        input.extend(line);
        input.extend(text(*before).into_bytes());
        input.push(0);
    }
    input.extend(b"commit\0");
    input
}

/// The output of `git for-each-ref --format=%(objectname) %(refname)`.
pub fn parse(output: &[u8]) -> Refs {
    let line = |line: &[u8]| {
        let (id, name) = line.split_once_str(" ")?;
        Some((BString::from(name), ObjectId::from_hex(id).ok()?))
    };
    output.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn id(n: u8) -> ObjectId {
        ObjectId::from_bytes_or_panic(&[n; 20])
    }

    fn refs(list: &[(&str, u8)]) -> Refs {
        list.iter().map(|(name, n)| (BString::from(*name), id(*n))).collect()
    }

    fn on(branch: &str, head: u8) -> Step {
        Step { number: 1, branch: Some(branch.into()), head: Some(id(head)), ..Step::default() }
    }

    fn names(edits: &[RefEdit]) -> Vec<String> {
        edits.iter().map(|edit| edit.name.to_string()).collect()
    }

    #[test]
    fn a_commit_moves_one_branch() {
        let plan = plan(
            &refs(&[("refs/heads/main", 1), ("refs/heads/other", 3)]),
            None,
            &on("main", 2),
            &Refs::new(),
        );
        assert_eq!(names(&plan.setting), ["refs/heads/main"]);
        assert!(plan.clearing.is_empty());
        assert_eq!(plan.tips, [Tip { id: id(1), label: "main".into(), always: false }]);
    }

    #[test]
    fn nothing_to_do() {
        let plan = plan(&refs(&[("refs/heads/main", 1)]), None, &on("main", 1), &Refs::new());
        assert_eq!(plan, Plan::default());
    }

    #[test]
    fn a_branch_in_the_way_goes_first_and_its_tip_is_looked_after() {
        for (there, comes) in [("a", "a/b"), ("a/b", "a"), ("a/b/c", "a"), ("a", "a/b/c")] {
            let there = format!("refs/heads/{there}");
            let plan = plan(&refs(&[(&there, 1), ("refs/heads/ab", 4)]), None, &on(comes, 2), &Refs::new());
            assert_eq!(names(&plan.clearing), std::slice::from_ref(&there));
            assert_eq!(names(&plan.setting), [format!("refs/heads/{comes}")]);
            assert_eq!(plan.tips.len(), 1);
        }
    }

    #[test]
    fn tags_follow_the_client_but_not_those_made_here() {
        let there =
            refs(&[("refs/tags/mine", 1), ("refs/tags/old", 2), ("refs/tags/moved", 3), ("refs/tags/v1", 4)]);
        let ours = refs(&[("refs/tags/old", 2), ("refs/tags/moved", 9), ("refs/tags/v1", 4)]);
        let mut step = on("main", 7);
        step.tags = Some(std::sync::Arc::new(vec![("v1".into(), id(5))]));
        let plan = plan(&there, None, &step, &ours);
        assert_eq!(names(&plan.clearing), ["refs/tags/old"]);
        assert_eq!(names(&plan.setting), ["refs/heads/main", "refs/tags/v1"]);
        assert!(plan.tips.is_empty());
        step.tags = Some(std::sync::Arc::new(vec![("mine".into(), id(5))]));
        let plan = super::plan(&there, None, &step, &ours);
        assert_eq!(plan.tips, [Tip { id: id(1), label: "tags/mine".into(), always: true }]);
    }

    #[test]
    fn a_detached_commit_is_looked_after() {
        let head = Head::Detached(id(1));
        assert_eq!(plan(&Refs::new(), Some(&head), &on("main", 2), &Refs::new()).tips.len(), 1);
        assert_eq!(plan(&Refs::new(), Some(&head), &on("main", 1), &Refs::new()).tips.len(), 0);
    }

    #[test]
    fn heads_round_trip() {
        for head in [Head::Branch("refs/heads/a b".into()), Head::Detached(id(3))] {
            assert_eq!(Head::parse(&head.print()), Some(head));
        }
        assert_eq!(Head::parse(b"nonsense"), None);
    }

    #[test]
    fn kept_tips_have_names_of_their_own_and_the_oldest_go() {
        let now = UNIX_EPOCH + Duration::from_millis(1_767_323_045_678);
        let tip = |n| Tip { id: id(n), label: "main".into(), always: false };
        let edits = keep(&Refs::new(), &[tip(1), tip(2)], now);
        let first = "refs/gitsync/recovery/20260102T030405678Z-main";
        assert_eq!(names(&edits), [first, "refs/gitsync/recovery/20260102T030405679Z-main"]);
        let many: Refs =
            (0..50).map(|n| (BString::from(format!("refs/gitsync/recovery/2025{n:04}-x")), id(1))).collect();
        let edits = keep(&many, &[tip(1)], now);
        assert_eq!(names(&edits), [first, "refs/gitsync/recovery/20250000-x"]);
        assert_eq!(edits[1].after, None);
        // The young ones stay, until there are far too many.
        let young = |count: u64| -> Refs {
            let name =
                |n| format!("refs/gitsync/recovery/{}-x", stamp(now - Duration::from_secs(86_400 - n)));
            (0..count).map(|n| (BString::from(name(n)), id(1))).collect()
        };
        assert_eq!(names(&keep(&young(50), &[tip(1)], now)), [first]);
        let edits = keep(&young(1000), &[tip(1)], now);
        assert_eq!(edits.len(), 2);
        assert_eq!(Some(&edits[1].name), young(1000).keys().next());
        let mut mixed = many.clone();
        mixed.extend(young(20));
        assert_eq!(keep(&mixed, &[tip(1)], now).len(), 1 + 21);
    }

    #[test]
    fn a_kept_tip_of_a_long_name_fits_into_a_file_name() {
        let with = |end: &str| format!("{}{end}", "x".repeat(195));
        for (label, kept) in [
            ("feature/x".to_owned(), "feature/x".to_owned()),
            (with(""), with("")),
            (with("abcdefgh/y"), with("abcde/y")),
            (with("abcd.fgh"), with("abcd")),
            (with(".lock-2/y"), with("/y")),
            (with("abc\u{fc}\u{fc}\u{fc}"), with("abc\u{fc}")),
            (with("abcd\u{fc}\u{fc}"), with("abcd")),
        ] {
            assert_eq!(short(label.as_bytes()).as_bstr(), kept, "{label}");
        }
    }

    #[test]
    fn dates() {
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(789), (1972, 2, 29));
        assert_eq!(date(20_453), (2025, 12, 31));
    }
}
