//! Which repository is at a path.
//!
//! Nothing is written into a repository to know it again, so it is known by its directories: the device and inode of its
//! root and of its git directory, and, where the file system tells, when they were made (inodes are used again). A copy
//! and a restored backup are other directories; so is any repository after a restart that gave its disk another number.
//! That two identities differ is therefore a reason to look closer, never more.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;
use std::time::UNIX_EPOCH;

/// The directories a repository consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RepoIdentity {
    root: Directory,
    git_dir: Directory,
}

#[derive(Debug, Clone, Copy, Eq, Default)]
struct Directory {
    device: u64,
    inode: u64,
    /// Nanoseconds since 1970; 0 where the file system does not tell.
    born: u128,
}

impl PartialEq for Directory {
    fn eq(&self, other: &Self) -> bool {
        let same_birth = self.born == other.born || self.born == 0 || other.born == 0;
        self.device == other.device && self.inode == other.inode && same_birth
    }
}

/// The text is none that [`RepoIdentity`] is written as.
#[derive(Debug, thiserror::Error)]
#[error("not the identity of a repository")]
pub struct IdentityError;

impl RepoIdentity {
    /// Of the repository at `root` whose git directory is `git_dir`.
    pub fn of(root: &Path, git_dir: &Path) -> io::Result<Self> {
        Ok(Self { root: Directory::at(root)?, git_dir: Directory::at(git_dir)? })
    }
}

impl Directory {
    fn at(path: &Path) -> io::Result<Self> {
        let metadata = path.symlink_metadata()?;
        let born = metadata.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let born = born.map_or(0, |since| since.as_nanos());
        Ok(Self { device: metadata.dev(), inode: metadata.ino(), born })
    }
}

impl fmt::Display for RepoIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { root, git_dir } = self;
        write!(f, "root {} {} {}", root.device, root.inode, root.born)?;
        write!(f, " git {} {} {}", git_dir.device, git_dir.inode, git_dir.born)
    }
}

impl FromStr for RepoIdentity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let directory = |[device, inode, born]: [&str; 3]| {
            let number = |text: &str| text.parse::<u64>().map_err(|_| IdentityError);
            let born = born.parse().map_err(|_| IdentityError)?;
            Ok(Directory { device: number(device)?, inode: number(inode)?, born })
        };
        match text.split_whitespace().collect::<Vec<_>>()[..] {
            ["root", a, b, c, "git", d, e, f] => {
                Ok(Self { root: directory([a, b, c])?, git_dir: directory([d, e, f])? })
            }
            _ => Err(IdentityError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_read_back_and_differs_from_that_of_a_successor() {
        let dir = tempfile::tempdir().unwrap();
        let (root, git) = (dir.path().join("app"), dir.path().join("app/.git"));
        std::fs::create_dir_all(&git).unwrap();
        let first = RepoIdentity::of(&root, &git).unwrap();
        assert_eq!(first.to_string().parse::<RepoIdentity>().unwrap(), first);
        std::fs::rename(&root, dir.path().join("away")).unwrap();
        std::fs::create_dir_all(&git).unwrap();
        assert_ne!(RepoIdentity::of(&root, &git).unwrap(), first);
        std::fs::remove_dir_all(&root).unwrap();
        std::fs::rename(dir.path().join("away"), &root).unwrap();
        assert_eq!(RepoIdentity::of(&root, &git).unwrap(), first);
        for text in ["", "root 1 2 3", "root 1 2 3 git 1 2 x", "root 1 2 3 git 1 2 3 4"] {
            assert!(text.parse::<RepoIdentity>().is_err(), "{text}");
        }
    }
}
