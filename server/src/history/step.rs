//! What a client asks of a clone, checked.

use std::sync::Arc;

use bstr::{BStr, BString, ByteSlice};
use gitsync_core::wire::Baseline;
use gix::ObjectId;

use super::StepError;

/// Longest component of a ref's name, in bytes: git appends `.lock` to it, and file names end at 255.
const REF_NAME_BYTES: usize = 250;
/// Longest name of a ref, in bytes.
const REF_BYTES: usize = 1024;
/// The settings that decide what `git status` makes of a file's bytes and mode, as git's documentation names them.
const SETTINGS: [&str; 5] =
    ["core.autocrlf", "core.eol", "core.fileMode", "core.symlinks", "core.ignoreCase"];
const SETTING_BYTES: usize = 16;

/// What HEAD, branch, tags and index of the clone are to be, and whether a pack brings objects for it first.
#[derive(Debug, Clone, Default)]
pub struct Step {
    /// Rises in a session, from 1.
    pub number: u64,
    /// `None`: the branch has no commit yet.
    pub head: Option<ObjectId>,
    /// Short name; `None` when HEAD is detached.
    pub branch: Option<BString>,
    /// Commits whose parents the clone will not have.
    pub shallow: Vec<ObjectId>,
    /// Short names and what they name; `None` is what the last step had.
    pub tags: Option<Arc<Vec<(BString, ObjectId)>>>,
    /// Key and value.
    pub settings: Vec<(String, String)>,
    /// Paths the client's index marks so; `None` is what the last step had.
    pub skip_worktree: Option<Arc<Vec<BString>>>,
    /// Pieces of a pack follow.
    pub pack: bool,
    /// A person had everything compared: what the last landing left is not believed.
    pub anew: bool,
}

impl Step {
    /// Of the wire's message, its continuations included.
    pub fn new(baseline: Baseline) -> Self {
        let Baseline { number, head, branch, shallow, tags, settings, skip_worktree, pack, .. } = baseline;
        let tags = tags.into_iter().map(|tag| (BString::from(tag.name), tag.target)).collect();
        let marked = skip_worktree.iter().map(|path| BString::from(path.as_bytes())).collect();
        Self {
            number,
            head,
            branch: branch.map(BString::from),
            shallow,
            tags: (!baseline.tags_same).then(|| Arc::new(tags)),
            settings: settings.into_iter().map(|s| (s.key.name().to_owned(), s.value)).collect(),
            skip_worktree: (!baseline.skip_worktree_same).then(|| Arc::new(marked)),
            pack,
            anew: false,
        }
    }

    /// Takes what is the same from the step before.
    pub fn resolve(&mut self, before: Option<&Self>) -> Result<(), StepError> {
        let missing = || invalid("what is to be the same as before has no before".to_owned());
        if self.tags.is_none() {
            self.tags = Some(before.and_then(|step| step.tags.clone()).ok_or_else(missing)?);
        }
        if self.skip_worktree.is_none() {
            self.skip_worktree =
                Some(before.and_then(|step| step.skip_worktree.clone()).ok_or_else(missing)?);
        }
        Ok(())
    }

    pub fn tags(&self) -> &[(BString, ObjectId)] {
        self.tags.as_ref().map_or(&[], |tags| tags)
    }

    pub fn skip_worktree(&self) -> &[BString] {
        self.skip_worktree.as_ref().map_or(&[], |paths| paths)
    }

    /// Everything about a step that can be said without looking at the clone.
    pub fn check(&self, hash: gix::hash::Kind) -> Result<(), StepError> {
        let ids = self.head.iter().chain(&self.shallow).chain(self.tags().iter().map(|(_, id)| id));
        if ids.into_iter().any(|id| id.kind() != hash || id.is_null()) {
            return Err(invalid("an id is null, or not of the workspace's object format".to_owned()));
        }
        match &self.branch {
            Some(branch) => check_name(b"refs/heads/", branch.as_bstr())?,
            None if self.head.is_none() => return Err(invalid("neither a branch nor a commit".to_owned())),
            None => {}
        }
        if self.head.is_none() && (self.pack || !self.shallow.is_empty()) {
            return Err(invalid("a branch without commits has neither pack nor boundary".to_owned()));
        }
        for (name, _) in self.tags() {
            check_name(b"refs/tags/", name.as_bstr())?;
        }
        for (key, value) in &self.settings {
            let plain = !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric());
            if !SETTINGS.iter().any(|known| known.eq_ignore_ascii_case(key))
                || value.len() > SETTING_BYTES
                || !plain
            {
                return Err(invalid(format!("the setting '{}' is not taken over", key.escape_debug())));
            }
        }
        Ok(())
    }
}

pub(super) fn full_name(prefix: &[u8], name: &BStr) -> BString {
    [prefix, name.as_bytes()].concat().into()
}

/// The rules of git-check-ref-format, and what file systems and command lines would stumble over.
fn check_name(prefix: &[u8], name: &BStr) -> Result<(), StepError> {
    let full = full_name(prefix, name);
    let refused = |why: &str| {
        Err(invalid(format!("'{}' is no name for a ref: {why}", name.to_str_lossy().escape_debug())))
    };
    if let Err(e) = gix::validate::reference::name(full.as_bstr()) {
        return refused(&e.to_string());
    }
    if name.starts_with(b"-") || name == "HEAD" || name.starts_with(b"refs/") {
        return refused("it reads as something else");
    }
    if full.len() > REF_BYTES || full.split_str("/").any(|part| part.len() > REF_NAME_BYTES) {
        return refused("it is too long");
    }
    Ok(())
}

fn invalid(what: String) -> StepError {
    StepError::Invalid(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(branch: &str) -> Step {
        Step { number: 1, branch: Some(branch.into()), ..Step::default() }
    }

    #[test]
    fn names_of_branches() {
        let long = "x".repeat(251);
        for good in ["main", "feature/x", "ünï", "a.b", "v1.0-rc1", "x@y", "a-", "heads/x"] {
            step(good).check(gix::hash::Kind::Sha1).unwrap();
        }
        for bad in [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            "..",
            "a/../b",
            "a..b",
            ".a",
            "a/.b",
            "a.",
            "a.lock",
            "a.lock/b",
            "a b",
            "a~",
            "a^",
            "a:b",
            "a?",
            "a*",
            "a[",
            "a\\b",
            "a\0",
            "a\n",
            "a\x7f",
            "@{",
            "a@{1}",
            "-a",
            "HEAD",
            "refs/heads/x",
            &long,
        ] {
            let checked = step(bad).check(gix::hash::Kind::Sha1);
            assert!(matches!(checked, Err(StepError::Invalid(_))), "{bad:?}");
            let tagged = Step {
                tags: Some(Arc::new(vec![(bad.into(), ObjectId::empty_tree(gix::hash::Kind::Sha1))])),
                ..step("main")
            };
            assert!(tagged.check(gix::hash::Kind::Sha1).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn settings() {
        let set = |key: &str, value: &str| {
            let settings = vec![(key.to_owned(), value.to_owned())];
            Step { settings, ..step("main") }.check(gix::hash::Kind::Sha1)
        };
        set("core.autocrlf", "input").unwrap();
        set("core.filemode", "false").unwrap();
        for (key, value) in [
            ("core.hooksPath", "x"),
            ("core.fsmonitor", "true"),
            ("core.eol", ""),
            ("core.eol", "lf\n[alias]"),
            ("core.eol", "lf;rm"),
            ("core.eol", "lflflflflflflflflf"),
        ] {
            assert!(set(key, value).is_err(), "{key} {value}");
        }
    }

    #[test]
    fn what_contradicts_itself() {
        let sha1 = gix::hash::Kind::Sha1;
        assert!(Step { number: 1, ..Step::default() }.check(sha1).is_err());
        assert!(Step { pack: true, ..step("main") }.check(sha1).is_err());
        assert!(Step { head: Some(ObjectId::null(sha1)), ..step("main") }.check(sha1).is_err());
        let other = ObjectId::empty_tree(gix::hash::Kind::Sha256);
        assert!(Step { head: Some(other), ..step("main") }.check(sha1).is_err());
    }
}
