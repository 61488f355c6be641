//! What git does in its own directory: its lock, HEAD, refs, index, configuration and rules.
//!
//! Events only mark what is to be read again; it is read once git is done.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bstr::ByteSlice;

use super::super::open::{Head, Repo};
use super::super::rules::Rules;
use super::super::scan::{Looked, Trust};
use super::super::settle::Hint;
use super::super::watch::{WatchError, Watcher};
use super::{POLL_LEAST, Watching};

/// Most directories of tags (`release/1.0`) whose changes are seen at once.
const TAG_GROUPS: usize = 64;

/// What git changed in its own directory since it was last read.
#[derive(Debug, Default)]
pub(super) struct GitChanges {
    pub(super) config: bool,
    pub(super) index: bool,
    pub(super) ignore: bool,
    /// When HEAD, a ref or the configuration changed.
    pub(super) head: Option<Instant>,
    /// Counts what is told as [`Head::marks`].
    pub(super) marks: u64,
}

impl Watching {
    pub(super) fn note_git(&mut self, inner: &Path, hint: Hint, now: Instant) {
        let inner = inner.as_os_str().as_bytes();
        match inner {
            b"index.lock" => match hint {
                Hint::Vanished => self.settle.lock_gone(now),
                Hint::Appeared | Hint::Written => {
                    let lock = self.tree.repo.git_dir.join("index.lock");
                    let inode = lock.symlink_metadata().ok().map(|m| m.ino());
                    self.settle.lock_seen(inode, now);
                }
                Hint::Modified | Hint::Attributes => {}
            },
            b"" => self.check_root = true,
            b"HEAD" if hint == Hint::Vanished => self.check_root = true,
            b"index" => self.git.index = true,
            b"info/exclude" => self.git.ignore = true,
            b"HEAD" => self.git.head = self.git.head.or(Some(now)),
            b"packed-refs" => {
                self.git.marks += 1;
                self.git.head = self.git.head.or(Some(now));
            }
            b"config" | b"config.worktree" => {
                self.git.marks += 1;
                self.git.config = true;
                self.git.ignore = true;
                self.git.head = self.git.head.or(Some(now));
            }
            _ if inner.starts_with(b"refs/") && !inner.ends_with(b".lock") => {
                self.git.marks += u64::from(inner.starts_with(b"refs/tags/"));
                self.git.head = self.git.head.or(Some(now));
            }
            _ => {}
        }
    }

    /// True if git has begun to work: its lock may still be to be heard of.
    pub(super) fn meets_lock(&mut self) -> bool {
        let now = Instant::now();
        let lock = self.tree.repo.git_dir.join("index.lock").symlink_metadata();
        if let Ok(meta) = lock {
            self.settle.lock_seen(Some(meta.ino()), now);
        }
        self.settle.is_held(now)
    }

    pub(super) fn reread_index(&mut self, now: Instant) -> Looked {
        if !self.tree.has_index() {
            self.check_root = true;
            return Looked::default();
        }
        match self.tree.rules.reload_index(&self.tree.repo.gix) {
            Ok(paths) => {
                if !paths.is_empty() {
                    // Some may be marked skip-worktree now, or no more.
                    self.git.marks += 1;
                    self.git.head = self.git.head.or(Some(now));
                }
                let looked = self.tree.follow_index(&paths);
                self.tree.count_missing();
                looked
            }
            Err(e) => {
                self.trouble_of(&e);
                self.scan_by(now + POLL_LEAST);
                Looked::default()
            }
        }
    }

    /// Git's configuration is read when a repository is opened, and only then.
    pub(super) fn reopen(&mut self) {
        match Repo::open(&self.tree.repo.workdir) {
            // Another one is taken up when a person accepts it, and not before.
            Ok(repo) if repo.identity() != self.tree.repo.identity() || !self.tree.is_rooted() => {
                self.check_root = true;
            }
            Ok(repo) if repo.workdir == self.tree.repo.workdir => {
                match Rules::load(&repo.gix, self.tree.rules.selection().clone()) {
                    Ok(rules) => (self.tree.repo, self.tree.rules) = (repo, rules),
                    Err(e) => self.trouble_of(&e),
                }
            }
            Ok(_) => {}
            Err(e) => self.trouble_of(&e),
        }
    }

    pub(super) fn rescan_rules(&mut self) -> Looked {
        if let Err(e) = self.tree.reload_ignore() {
            self.trouble_of(&e);
        }
        self.tree.scan(None, Trust::Signatures, &mut |_| {})
    }

    pub(super) fn read_head(&mut self) {
        match self.tree.repo.head() {
            Ok(head) if self.git.marks != self.head.marks || !head.is_at(&self.head) => {
                self.head = Arc::new(Head { marks: self.git.marks, ..head });
                if let Err(e) = watch_git(&mut self.tree.watcher, &self.tree.repo, &self.head) {
                    self.trouble_of(&e);
                }
            }
            Ok(_) => {}
            Err(e) => self.trouble_of(&e),
        }
    }
}

/// Watches where git's changes of HEAD, index, rules and the current branch show.
pub(super) fn watch_git(watcher: &mut Watcher, repo: &Repo, head: &Head) -> Result<(), WatchError> {
    let common = &repo.common_dir;
    for dir in [repo.git_dir.clone(), common.clone(), common.join("info"), common.join("refs/heads")] {
        watcher.watch_path(dir)?;
    }
    // Git makes it when the repository is made, but need not.
    let tags = common.join("refs/tags");
    let groups = std::fs::read_dir(&tags).into_iter().flatten().filter_map(Result::ok);
    let groups = groups.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).take(TAG_GROUPS);
    for dir in std::iter::once(tags).chain(groups.map(|entry| entry.path())) {
        let _ = watcher.watch_path(dir);
    }
    if let Some(branch) = &head.branch
        && let Ok(branch) = branch.to_path()
        && let Some(parent) = common.join("refs/heads").join(branch).parent()
    {
        watcher.watch_path(parent.to_owned())?;
    }
    Ok(())
}
