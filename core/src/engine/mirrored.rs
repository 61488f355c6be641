//! Which repository each target mirrored last, kept in the state directory.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::owner::of_path;
use crate::model::{ContentId, HashKind, TargetId};
use crate::repo::RepoIdentity;

/// One target's memory.
#[derive(Debug)]
pub struct Mirrored {
    file: PathBuf,
}

impl Mirrored {
    /// Of the target that mirrors the repository at `workdir` into `workspace`.
    pub fn new(state_dir: &Path, workdir: &Path, target: &TargetId, workspace: &str) -> Self {
        // Names of servers and workspaces hold no zero.
        let name = format!("{}\0{workspace}", target.server);
        let id = ContentId::of(HashKind::Sha1, name.as_bytes()).to_string();
        Self { file: state_dir.join("mirrored").join(format!("{}-{}", of_path(workdir), &id[..16])) }
    }

    /// The repository that was mirrored last; `None` if none ever was. Where that cannot be told any more, it is one that
    /// equals no other.
    pub fn last(&self) -> Option<RepoIdentity> {
        match fs::read_to_string(&self.file) {
            Ok(text) => Some(text.parse().unwrap_or_default()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(_) => Some(RepoIdentity::default()),
        }
    }

    pub fn remember(&self, repo: &RepoIdentity) -> io::Result<()> {
        let dir = self.file.parent().unwrap_or(Path::new("."));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let aside = self.file.with_extension("new");
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        writeln!(file, "{repo}")?;
        fs::rename(aside, &self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_target_has_a_memory_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let target = |server: &str| TargetId { repo: "app".into(), server: server.into() };
        let of = |server: &str, workspace: &str| {
            Mirrored::new(dir.path(), Path::new("/home/somebody/app"), &target(server), workspace)
        };
        let here = RepoIdentity::of(dir.path(), dir.path()).unwrap();
        assert_eq!(of("near", "app").last(), None);
        of("near", "app").remember(&here).unwrap();
        assert_eq!(of("near", "app").last(), Some(here));
        assert_eq!((of("far", "app").last(), of("near", "other").last()), (None, None));
        fs::write(&of("near", "app").file, "damaged").unwrap();
        assert_ne!(of("near", "app").last(), Some(here));
        assert!(of("near", "app").last().is_some());
    }
}
