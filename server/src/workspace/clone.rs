//! The empty git repository a new workspace gets.
//!
//! Written by hand (git's documentation, `gitrepository-layout`), because `git init` finds its way by
//! paths: one that is swapped for a link meanwhile would lead it out of the root.

use std::os::fd::{AsFd, BorrowedFd};

use gitsync_core::model::HashKind;
use rustix::io::{Errno, Result};

use super::fs::WorkspaceFs;
use super::recovery::enter;

/// Makes `git`, an open `.git`, a repository without commits on an unborn `main`. HEAD comes last: without
/// it this is no repository, and making it is simply done again.
pub(super) fn make(fs: &dyn WorkspaceFs, git: BorrowedFd<'_>, hash: HashKind, umask: u32) -> Result<()> {
    let objects = enter(fs, git, b"objects")?;
    let refs = enter(fs, git, b"refs")?;
    for (at, name) in [(&objects, &b"info"[..]), (&objects, b"pack"), (&refs, b"heads"), (&refs, b"tags")] {
        enter(fs, at.as_fd(), name)?;
    }
    let (version, extensions) = match hash {
        HashKind::Sha256 => (1, "[extensions]\n\tobjectformat = sha256\n"),
        _ => (0, ""),
    };
    let config = format!(
        "[core]\n\trepositoryformatversion = {version}\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = \
         true\n{extensions}"
    );
    write(fs, git, b"config", config.as_bytes(), umask)?;
    write(fs, git, b"HEAD", b"ref: refs/heads/main\n", umask)
}

/// A file that is there whole or not at all. One that is there already stays.
fn write(fs: &dyn WorkspaceFs, git: BorrowedFd<'_>, name: &[u8], bytes: &[u8], umask: u32) -> Result<()> {
    // Git's own name for a file in the making.
    let temp = [name, b".lock"].concat();
    match fs.unlink(git, &temp) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(e),
    }
    let file = fs.create(git, &temp)?;
    fs.write_all(file.as_fd(), bytes)?;
    fs.chmod(file.as_fd(), 0o644 & !umask)?;
    match fs.rename_new(git, &temp, git, name) {
        Err(Errno::EXIST) => fs.unlink(git, &temp),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::process::Command;

    use super::*;
    use crate::workspace::os::OsFs;

    #[test]
    fn git_takes_it_for_a_repository_of_its_format() {
        for (hash, name) in [(HashKind::Sha1, "sha1"), (HashKind::Sha256, "sha256")] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join(".git")).unwrap();
            let git: OwnedFd = std::fs::File::open(dir.path().join(".git")).unwrap().into();
            let fs = OsFs::default();
            make(&fs, git.as_fd(), hash, 0o022).unwrap();
            make(&fs, git.as_fd(), hash, 0o022).unwrap();
            let ask = |args: &[&str]| {
                let output = Command::new("git").args(args).current_dir(dir.path()).output().unwrap();
                assert!(output.status.success(), "{args:?}: {output:?}");
                String::from_utf8(output.stdout).unwrap()
            };
            assert_eq!(ask(&["rev-parse", "--show-object-format"]).trim(), name);
            assert_eq!(ask(&["symbolic-ref", "HEAD"]).trim(), "refs/heads/main");
            assert_eq!(ask(&["fsck", "--strict"]), "");
        }
    }
}
