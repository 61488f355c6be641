//! What a workspace's clone knows of the repository's history.

use std::path::Path;

use gix::ObjectId;

/// The first of `commits` (newest first) that the clone owns.
pub fn newest_common(git_dir: &Path, commits: &[ObjectId]) -> Option<ObjectId> {
    // The workspace's own configuration decides nothing here, so none is read from elsewhere.
    let repo = gix::open_opts(git_dir, gix::open::Options::isolated()).ok()?;
    commits
        .iter()
        .find(|id| repo.find_header(**id).is_ok_and(|h| h.kind() == gix::objs::Kind::Commit))
        .copied()
}
