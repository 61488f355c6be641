//! Keeps the stat cache on disk behind the snapshot: when nothing is going on, beside the observing thread.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::disk::Disk;
use super::open::Repo;
use super::scan::WorkingTree;
use super::stat_cache::StatCache;
use crate::model::Dir;

/// What was read is written down when nothing has changed for this long,
const QUIET: Duration = Duration::from_secs(2);
/// and not more often than this.
const LEAST: Duration = Duration::from_secs(60);

/// When the stat cache is written, and what is in it.
pub struct Keeper {
    /// `None` where nothing is kept.
    dir: Option<PathBuf>,
    /// The tree that is on disk, or on its way there.
    kept: Option<Arc<Dir>>,
    due: Option<Instant>,
    not_before: Option<Instant>,
    writing: Option<JoinHandle<()>>,
}

impl Keeper {
    pub fn new(dir: Option<PathBuf>) -> Self {
        Self { dir, kept: None, due: None, not_before: None, writing: None }
    }

    /// The cache of a repository, if there is to be one.
    pub fn cache(&self, repo: &Repo, disk: &Disk) -> Option<StatCache> {
        StatCache::new(self.dir.as_deref()?, repo, disk).ok()
    }

    /// That tree is on disk.
    pub fn is_kept(&mut self, tree: &Arc<Dir>) {
        self.kept = Some(tree.clone());
    }

    /// The tree may have changed.
    pub fn note(&mut self, root: &Arc<Dir>, now: Instant) {
        if self.dir.is_some() && !self.has(root) {
            let quiet = now + QUIET;
            self.due = Some(self.not_before.map_or(quiet, |at| at.max(quiet)));
        }
    }

    /// When to call [`Self::keep`] next.
    pub fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Starts writing if that is due.
    pub fn keep(&mut self, tree: &WorkingTree, now: Instant) {
        if self.due.is_none_or(|at| at > now) {
            return;
        }
        self.due = None;
        self.not_before = Some(now + LEAST);
        self.write(tree);
    }

    /// Starts writing, unless there is nothing new.
    pub fn write(&mut self, tree: &WorkingTree) {
        let root = tree.snapshot().root().clone();
        // A tree without files is as likely one that could not be looked at.
        if root.is_empty() || self.has(&root) {
            return;
        }
        let Some(cache) = self.cache(&tree.repo, &tree.disk()) else { return };
        self.finish();
        self.kept = Some(root.clone());
        let save = move || {
            if let Err(e) = cache.save(&root) {
                tracing::info!("the stat cache cannot be kept: {e}");
            }
        };
        self.writing = std::thread::Builder::new().name("stat cache".into()).spawn(save).ok();
    }

    /// Waits until what is being written is on disk.
    pub fn finish(&mut self) {
        if let Some(writing) = self.writing.take() {
            // A writer that panicked has left an older cache, or none.
            let _ = writing.join();
        }
    }

    fn has(&self, root: &Arc<Dir>) -> bool {
        self.kept.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, root))
    }
}
