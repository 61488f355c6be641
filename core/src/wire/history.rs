//! The history track's messages as checked values: what a workspace's clone is to be, and the pack it takes.

use bytes::Bytes;
use gix::ObjectId;

use super::decode::{BRANCH_BYTES, Checked, broken, object_id, object_ids, optional, path, texts, within};
use super::encode::{paths, raw};
use super::{CHUNK_BYTES, FRAME_BYTES, Violation, proto};
use crate::model::RelPath;

/// Most commits of a clone whose parents it lacks.
pub const CLONE_SHALLOW: usize = 10_000;
/// Most tags of a step.
pub const BASELINE_TAGS: usize = 100_000;
/// Most skip-worktree paths of a step.
pub const SKIP_WORKTREE: usize = 1_000_000;
/// Longest value of a setting.
const SETTING_BYTES: usize = 16;
/// Besides its bytes, what an entry of a list counts for.
const ENTRY_WEIGHT: u64 = 32;
/// Besides its contents, what a message counts for.
const MESSAGE_WEIGHT: u64 = 64;

/// A step of the history track: what the workspace's clone is to be afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Baseline {
    /// Rises within a stream, from 1.
    pub number: u64,
    /// What the branch (or HEAD itself) is at; none on an unborn branch.
    pub head: Option<ObjectId>,
    /// Short name, one git allows; none when HEAD is detached.
    pub branch: Option<Vec<u8>>,
    /// Commits whose parents the clone will not have, at most [`CLONE_SHALLOW`]; none is the whole history.
    pub shallow: Vec<ObjectId>,
    /// All tags, at most [`BASELINE_TAGS`].
    pub tags: Vec<Tag>,
    pub settings: Vec<Setting>,
    /// All skip-worktree paths, at most [`SKIP_WORKTREE`].
    pub skip_worktree: Vec<RelPath>,
    /// [`PackPiece`]s follow; else everything named is in the clone.
    pub pack: bool,
    /// Another message of this step follows.
    pub more: bool,
    /// Tags are as in the step that last landed on this stream, and not listed.
    pub tags_same: bool,
    /// The same of skip-worktree.
    pub skip_worktree_same: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag {
    /// Short name, one git allows.
    pub name: Vec<u8>,
    /// A tag object or a commit.
    pub target: ObjectId,
}

/// A key of git's configuration that travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SettingKey {
    AutoCrlf,
    Eol,
    FileMode,
    Symlinks,
    IgnoreCase,
}

/// A setting the client has. One that is not named is unset.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setting {
    pub key: SettingKey,
    /// A word of ASCII letters and digits, such as `true` or `input`.
    pub value: String,
}

/// A piece of one git pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackPiece {
    /// The step it belongs to.
    pub number: u64,
    /// At most [`CHUNK_BYTES`].
    pub data: Bytes,
    pub end: bool,
}

/// Refs, HEAD, tags, index and boundary are as the step says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Landed {
    pub number: u64,
    pub head: Option<ObjectId>,
    /// Objects the pack brought.
    pub objects: u64,
}

/// Nothing of refs, HEAD, index and boundary was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotLanded {
    pub number: u64,
    /// Outermost first; text of the other side, not yet escaped.
    pub messages: Vec<String>,
    /// The same step may do later.
    pub retryable: bool,
    pub reason: NotLandedReason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotLandedReason {
    /// A step that takes nothing for granted will do.
    ObjectsMissing,
    Invalid,
    Busy,
    Failed,
    DiskFull,
}

impl SettingKey {
    pub const ALL: [Self; 5] = [Self::AutoCrlf, Self::Eol, Self::FileMode, Self::Symlinks, Self::IgnoreCase];

    /// As git's documentation writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AutoCrlf => "core.autocrlf",
            Self::Eol => "core.eol",
            Self::FileMode => "core.fileMode",
            Self::Symlinks => "core.symlinks",
            Self::IgnoreCase => "core.ignoreCase",
        }
    }
}

impl Setting {
    /// `None` if the value is not a short word.
    pub fn new(key: SettingKey, value: impl Into<String>) -> Option<Self> {
        let value = value.into();
        let word =
            (1..=SETTING_BYTES).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_alphanumeric());
        word.then_some(Self { key, value })
    }
}

impl Tag {
    /// `None` if git would not allow the name.
    pub fn new(name: impl Into<Vec<u8>>, target: ObjectId) -> Option<Self> {
        let name = name.into();
        is_ref_name(b"refs/tags/", &name).then_some(Self { name, target })
    }
}

impl Baseline {
    /// A step of its own with nothing in its lists.
    pub fn new(number: u64, head: Option<ObjectId>, branch: Option<Vec<u8>>) -> Self {
        Self {
            number,
            head,
            branch,
            shallow: Vec::new(),
            tags: Vec::new(),
            settings: Vec::new(),
            skip_worktree: Vec::new(),
            pack: false,
            more: false,
            tags_same: false,
            skip_worktree_same: false,
        }
    }

    /// How much of the credit for what goes in the background it takes, in bytes.
    pub fn weight(&self) -> u64 {
        let ids = self.shallow.iter().map(|id| id.as_bytes().len());
        let tags = self.tags.iter().map(|t| t.name.len() + t.target.as_bytes().len());
        let settings = self.settings.iter().map(|s| s.key.name().len() + s.value.len());
        let skipped = self.skip_worktree.iter().map(|p| p.as_bytes().len());
        let entries = ids.chain(tags).chain(settings).chain(skipped);
        MESSAGE_WEIGHT + entries.map(|bytes| ENTRY_WEIGHT + bytes as u64).sum::<u64>()
    }

    /// The same step as messages of about [`FRAME_BYTES`] each, all but the last with `more`.
    pub fn messages(mut self) -> Vec<Self> {
        let (shallow, tags) = (std::mem::take(&mut self.shallow), std::mem::take(&mut self.tags));
        let skipped = std::mem::take(&mut self.skip_worktree);
        let mut pages = Pages { done: Vec::new(), weight: self.weight(), last: self };
        for id in shallow {
            pages.with_room(id.as_bytes().len()).shallow.push(id);
        }
        for tag in tags {
            pages.with_room(tag.name.len() + tag.target.as_bytes().len()).tags.push(tag);
        }
        for path in skipped {
            pages.with_room(path.as_bytes().len()).skip_worktree.push(path);
        }
        let Pages { mut done, last, .. } = pages;
        done.push(last);
        done
    }

    /// Takes in another message of this step. Fails if it is none, or the lists get too long.
    pub fn extend(&mut self, next: Self) -> Result<(), Violation> {
        if !self.more || next.number != self.number {
            return Err(broken(format!("a continuation of step {} that was not announced", next.number)));
        }
        self.more = next.more;
        self.shallow.extend(next.shallow);
        self.tags.extend(next.tags);
        self.skip_worktree.extend(next.skip_worktree);
        self.check_lengths()
    }

    fn check_lengths(&self) -> Checked<()> {
        within("shallow", self.shallow.len(), CLONE_SHALLOW)?;
        within("tags", self.tags.len(), BASELINE_TAGS)?;
        within("skip_worktree", self.skip_worktree.len(), SKIP_WORKTREE)
    }
}

/// A step's messages in the making.
struct Pages {
    done: Vec<Baseline>,
    last: Baseline,
    /// Of `last`.
    weight: u64,
}

impl Pages {
    /// The last message, or a new one if an entry of `bytes` would make it too long.
    fn with_room(&mut self, bytes: usize) -> &mut Baseline {
        let entry = ENTRY_WEIGHT + bytes as u64;
        if self.weight + entry > FRAME_BYTES as u64 {
            let next = Baseline::new(self.last.number, None, None);
            self.weight = next.weight();
            self.done.push(Baseline { more: true, ..std::mem::replace(&mut self.last, next) });
        }
        self.weight += entry;
        &mut self.last
    }
}

impl PackPiece {
    /// How much of the credit for what goes in the background it takes, in bytes.
    pub fn weight(&self) -> u64 {
        MESSAGE_WEIGHT + self.data.len() as u64
    }
}

fn is_ref_name(prefix: &[u8], short: &[u8]) -> bool {
    let full = [prefix, short].concat();
    !short.is_empty()
        && short.len() <= BRANCH_BYTES
        // `git branch` refuses this one, because `git checkout` would not understand it.
        && !short.starts_with(b"-")
        && gix::validate::reference::name(full.as_slice().into()).is_ok()
}

impl From<Baseline> for proto::Baseline {
    fn from(b: Baseline) -> Self {
        let tag = |t: Tag| proto::Tag { name: t.name.into(), target: raw(t.target.as_bytes()) };
        let setting = |s: Setting| proto::Setting { key: s.key.name().into(), value: s.value };
        Self {
            number: b.number,
            head: b.head.map(|id| raw(id.as_bytes())).unwrap_or_default(),
            branch: b.branch.unwrap_or_default().into(),
            shallow: b.shallow.iter().map(|id| raw(id.as_bytes())).collect(),
            tags: b.tags.into_iter().map(tag).collect(),
            settings: b.settings.into_iter().map(setting).collect(),
            skip_worktree: paths(&b.skip_worktree),
            pack: b.pack,
            more: b.more,
            tags_same: b.tags_same,
            skip_worktree_same: b.skip_worktree_same,
        }
    }
}

impl TryFrom<proto::Baseline> for Baseline {
    type Error = Violation;

    fn try_from(b: proto::Baseline) -> Checked<Self> {
        if b.number == 0 {
            return Err(broken("a step with number 0"));
        }
        let branch = (!b.branch.is_empty()).then(|| b.branch.to_vec());
        if branch.as_ref().is_some_and(|name| !is_ref_name(b"refs/heads/", name)) {
            return Err(broken("a branch name git does not allow"));
        }
        within("settings", b.settings.len(), SettingKey::ALL.len())?;
        let baseline = Self {
            number: b.number,
            head: optional(&b.head, object_id)?,
            branch,
            shallow: object_ids(&b.shallow)?,
            tags: b.tags.into_iter().map(TryInto::try_into).collect::<Checked<_>>()?,
            settings: b.settings.into_iter().map(TryInto::try_into).collect::<Checked<_>>()?,
            skip_worktree: b.skip_worktree.iter().map(|p| path(p)).collect::<Checked<_>>()?,
            pack: b.pack,
            more: b.more,
            tags_same: b.tags_same,
            skip_worktree_same: b.skip_worktree_same,
        };
        baseline.check_lengths()?;
        Ok(baseline)
    }
}

impl TryFrom<proto::Tag> for Tag {
    type Error = Violation;

    fn try_from(t: proto::Tag) -> Checked<Self> {
        Self::new(t.name, object_id(&t.target)?).ok_or_else(|| broken("a tag name git does not allow"))
    }
}

impl TryFrom<proto::Setting> for Setting {
    type Error = Violation;

    fn try_from(s: proto::Setting) -> Checked<Self> {
        let key = SettingKey::ALL.into_iter().find(|key| key.name() == s.key);
        let key = key.ok_or_else(|| broken("a setting that does not travel"))?;
        Self::new(key, s.value).ok_or_else(|| broken(format!("a value of {} that is no word", key.name())))
    }
}

impl From<PackPiece> for proto::PackPiece {
    fn from(p: PackPiece) -> Self {
        Self { number: p.number, data: p.data, end: p.end }
    }
}

impl TryFrom<proto::PackPiece> for PackPiece {
    type Error = Violation;

    fn try_from(p: proto::PackPiece) -> Checked<Self> {
        within("a piece of a pack", p.data.len(), CHUNK_BYTES)?;
        Ok(Self { number: p.number, data: p.data, end: p.end })
    }
}

impl From<Landed> for proto::Landed {
    fn from(l: Landed) -> Self {
        let head = l.head.map(|id| raw(id.as_bytes())).unwrap_or_default();
        Self { number: l.number, head, objects: l.objects }
    }
}

impl TryFrom<proto::Landed> for Landed {
    type Error = Violation;

    fn try_from(l: proto::Landed) -> Checked<Self> {
        Ok(Self { number: l.number, head: optional(&l.head, object_id)?, objects: l.objects })
    }
}

impl From<NotLanded> for proto::NotLanded {
    fn from(n: NotLanded) -> Self {
        use proto::NotLandedReason as Wire;
        let reason = match n.reason {
            NotLandedReason::ObjectsMissing => Wire::ObjectsMissing,
            NotLandedReason::Invalid => Wire::Invalid,
            NotLandedReason::Busy => Wire::Busy,
            NotLandedReason::Failed => Wire::Failed,
            NotLandedReason::DiskFull => Wire::DiskFull,
        };
        Self { number: n.number, messages: n.messages, retryable: n.retryable, reason: reason.into() }
    }
}

impl From<proto::NotLanded> for NotLanded {
    fn from(n: proto::NotLanded) -> Self {
        use proto::NotLandedReason as Wire;
        let reason = match n.reason() {
            Wire::ObjectsMissing => NotLandedReason::ObjectsMissing,
            Wire::Invalid => NotLandedReason::Invalid,
            Wire::Busy => NotLandedReason::Busy,
            // A reason we do not know is still one.
            Wire::Failed | Wire::Unspecified => NotLandedReason::Failed,
            Wire::DiskFull => NotLandedReason::DiskFull,
        };
        Self { number: n.number, messages: texts(n.messages), retryable: n.retryable, reason }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::wire::MESSAGE_BYTES;

    fn id(n: u32) -> ObjectId {
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        ObjectId::from(bytes)
    }

    #[test]
    fn a_long_step_travels_in_pieces_and_comes_back_whole() {
        let mut step = Baseline::new(7, Some(id(1)), Some(b"feature/x".to_vec()));
        step.pack = true;
        step.shallow = (0..CLONE_SHALLOW as u32).map(id).collect();
        step.tags = (0..20_000).map(|n| Tag::new(format!("v{n}"), id(n)).unwrap()).collect();
        step.settings = vec![Setting::new(SettingKey::AutoCrlf, "input").unwrap()];
        let path = |n| RelPath::new(format!("some/deep/directory/file-{n}")).unwrap();
        step.skip_worktree = (0..50_000).map(path).collect();
        let messages = step.clone().messages();
        assert!(messages.len() > 3);
        let mut back: Option<Baseline> = None;
        for message in messages {
            let (weight, message) = (message.weight(), proto::Baseline::from(message));
            assert!(message.encoded_len() < MESSAGE_BYTES && weight >= message.encoded_len() as u64);
            let message = Baseline::try_from(message).unwrap();
            match &mut back {
                None => back = Some(message),
                Some(back) => back.extend(message).unwrap(),
            }
        }
        assert_eq!(back, Some(step.clone()));
        let mut whole = Baseline { more: false, ..step };
        assert!(whole.clone().extend(Baseline::new(7, None, None)).is_err(), "nothing was to follow");
        whole.more = true;
        assert!(whole.clone().extend(Baseline::new(8, None, None)).is_err(), "another step");
        let too_many = Baseline { shallow: vec![id(1)], ..Baseline::new(7, None, None) };
        assert!(whole.extend(too_many).is_err());
    }

    #[test]
    fn names_and_settings_git_would_not_take_are_refused() {
        let good = proto::Baseline::from(Baseline::new(1, None, Some(b"main".to_vec())));
        assert!(Baseline::try_from(good.clone()).is_ok());
        let tag = |name: &'static [u8]| proto::Tag { name: name.into(), target: raw(id(1).as_bytes()) };
        let setting = |key: &str, value: &str| proto::Setting { key: key.into(), value: value.into() };
        let branch = |name: Vec<u8>| proto::Baseline { branch: name.into(), ..good.clone() };
        let tagged = |tag| proto::Baseline { tags: vec![tag], ..good.clone() };
        let set = |setting| proto::Baseline { settings: vec![setting], ..good.clone() };
        let cases = [
            ("number", proto::Baseline { number: 0, ..good.clone() }),
            ("dots", branch(b"../../config".to_vec())),
            ("lock", branch(b"main.lock".to_vec())),
            ("dash", branch(b"-f".to_vec())),
            ("newline", branch(b"a\nb".to_vec())),
            ("long", branch(vec![b'a'; BRANCH_BYTES + 1])),
            ("absolute", tagged(tag(b"/v1"))),
            ("empty", tagged(tag(b""))),
            ("target", tagged(proto::Tag { target: Bytes::new(), ..tag(b"v1") })),
            ("key", set(setting("core.fsmonitor", "true"))),
            ("value", set(setting("core.eol", "lf\n[x]"))),
            ("no value", set(setting("core.eol", ""))),
            ("head", proto::Baseline { head: Bytes::from_static(b"abc"), ..good.clone() }),
            ("path", proto::Baseline { skip_worktree: vec![".git/config".into()], ..good.clone() }),
        ];
        for (what, message) in cases {
            assert!(Baseline::try_from(message).is_err(), "{what}");
        }
    }

    #[test]
    fn a_piece_longer_than_allowed_is_refused() {
        let piece = |len| proto::PackPiece { number: 1, data: vec![0; len].into(), end: true };
        assert!(PackPiece::try_from(piece(CHUNK_BYTES)).is_ok());
        assert!(PackPiece::try_from(piece(CHUNK_BYTES + 1)).is_err());
    }
}
