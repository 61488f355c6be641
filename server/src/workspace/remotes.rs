//! Is the workspace a copy of the client's repository, as far as their remotes can tell?
//!
//! A workspace's remotes are those its clone is configured with, and those its owner named last: a clone that was made
//! here has none of its own. All are normalised, so none holds a credential.

use std::path::Path;

use gitsync_core::model::path::escape;
use gitsync_core::repo::remotes_of;

/// Most remotes of one side that are named.
const NAMED: usize = 3;

/// Two repositories that have no remote in common.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("remotes differ: workspace {name} is a copy of {}, this repository of {}", list(ours), list(theirs))]
pub struct RemotesDiffer {
    pub name: String,
    /// The workspace's.
    pub ours: Vec<String>,
    /// The client's.
    pub theirs: Vec<String>,
}

impl RemotesDiffer {
    /// Both sides in words, the client's first, as a client is to read them.
    pub fn sides(&self) -> [String; 2] {
        [format!("here: {}", list(&self.theirs)), format!("there: {}", list(&self.ours))]
    }
}

/// What the clone in `git_dir` is configured with; nothing if it is no repository.
pub(super) fn configured(git_dir: &Path) -> Vec<String> {
    // Nobody's configuration but the clone's own says what it is.
    gix::open_opts(git_dir, gix::open::Options::isolated())
        .map_or_else(|_| Vec::new(), |repo| remotes_of(&repo))
}

/// Sides that have a remote in common match, and so do two of which one has none at all.
pub(super) fn check(name: &str, ours: Vec<String>, theirs: &[String]) -> Result<(), RemotesDiffer> {
    if ours.is_empty() || theirs.is_empty() || ours.iter().any(|ours| theirs.contains(ours)) {
        return Ok(());
    }
    Err(RemotesDiffer { name: name.to_owned(), ours, theirs: theirs.to_vec() })
}

fn list(remotes: &[String]) -> String {
    let mut text = remotes.iter().take(NAMED).map(|r| escape(r.as_bytes())).collect::<Vec<_>>().join(", ");
    if remotes.len() > NAMED {
        text += &format!(" and {} more", remotes.len() - NAMED);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_common_is_enough_and_so_is_none_at_all() {
        let list = |words: &str| words.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for (ours, theirs, fits) in [
            ("", "", true),
            ("a/x", "", true),
            ("", "a/x", true),
            ("a/x b/x", "c/x b/x", true),
            ("a/x", "a/y", false),
            ("a/x b/x", "c/x d/x", false),
        ] {
            assert_eq!(check("app", list(ours), &list(theirs)).is_ok(), fits, "{ours:?} {theirs:?}");
        }
    }

    #[test]
    fn both_sides_are_named_and_safe_to_print() {
        let many = ["h/1", "h/2", "h/3", "h/4", "h/5"].map(str::to_owned).to_vec();
        let error = check("app", many, &["e\u{1b}[31m".to_owned()]).unwrap_err();
        assert_eq!(error.sides(), ["here: e\\u{1b}[31m", "there: h/1, h/2, h/3 and 2 more"]);
    }
}
