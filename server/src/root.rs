//! The root directory: nobody else may be able to put something in its place.
//!
//! The rule of OpenSSH's `StrictModes`: whoever can write to a directory above the root can rename it and
//! put another there, so every directory on the way counts. A sticky bit (as on `/tmp`) forbids that.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const WRITABLE_BY_OTHERS: u32 = 0o002;
const STICKY: u32 = 0o1000;

#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error(
        "any account on this machine can write to {}, so it could replace your workspaces; \
         forbid it with `chmod o-w {}`, or choose another --root",
        .0.display(), .0.display()
    )]
    WritableByOthers(PathBuf),
    #[error("cannot make the root directory {}", path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error("cannot look at {}", path.display())]
    Look { path: PathBuf, source: io::Error },
}

/// Makes the root directory if it is not there, and checks it and every directory above. Gives its full path.
pub fn prepare(root: &Path) -> Result<PathBuf, RootError> {
    std::fs::create_dir_all(root).map_err(|source| RootError::Make { path: root.to_owned(), source })?;
    let look = |path: &Path| {
        let path = path.to_owned();
        move |source| RootError::Look { path, source }
    };
    let root = root.canonicalize().map_err(look(root))?;
    for dir in root.ancestors() {
        let mode = std::fs::metadata(dir).map_err(look(dir))?.mode();
        if is_open_to_others(mode) {
            return Err(RootError::WritableByOthers(dir.to_owned()));
        }
    }
    Ok(root)
}

fn is_open_to_others(mode: u32) -> bool {
    mode & WRITABLE_BY_OTHERS != 0 && mode & STICKY == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn modes() {
        for (mode, open) in
            [(0o700, false), (0o755, false), (0o775, false), (0o777, true), (0o1777, false), (0o702, true)]
        {
            assert_eq!(is_open_to_others(mode), open, "{mode:o}");
        }
    }

    #[test]
    fn every_directory_on_the_way_counts() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/b");
        assert_eq!(prepare(&root).unwrap(), root.canonicalize().unwrap());
        let above = dir.path().join("a");
        std::fs::set_permissions(&above, std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = prepare(&root).unwrap_err();
        assert!(matches!(&error, RootError::WritableByOthers(path) if path.ends_with("a")), "{error}");
        assert!(error.to_string().contains("chmod o-w"), "{error}");
        std::fs::set_permissions(&above, std::fs::Permissions::from_mode(0o1777)).unwrap();
        prepare(&root).unwrap();
    }
}
