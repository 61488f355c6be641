//! What a person began in the clone and a landing is about to replace: what is only staged in the index of a clone that
//! was adopted, and the state of a merge, rebase, cherry-pick or bisect. The one is kept as a commit among the recovery
//! refs, the other in a directory of ours; nothing of it is deleted.

use std::os::fd::AsFd;
use std::time::SystemTime;

use bstr::ByteSlice;
use gix::ObjectId;
use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::StepError;
use super::git::Git;
use super::refs::{Tip, stamp};
use super::state::read;
use crate::workspace::CloneDir;

/// Where such state goes, below our directory.
const UNFINISHED: &[u8] = b"unfinished";
/// Commits that only an operation in progress leads to.
const HEADS: [&str; 3] = ["MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD"];
/// By these `git status` tells that one is in progress, and git goes on with it.
const STATE: [&str; 19] = [
    "MERGE_HEAD",
    "MERGE_MODE",
    "MERGE_MSG",
    "MERGE_RR",
    "AUTO_MERGE",
    "SQUASH_MSG",
    "CHERRY_PICK_HEAD",
    "REVERT_HEAD",
    "REBASE_HEAD",
    "BISECT_ANCESTORS_OK",
    "BISECT_EXPECTED_REV",
    "BISECT_LOG",
    "BISECT_NAMES",
    "BISECT_RUN",
    "BISECT_START",
    "BISECT_TERMS",
    "rebase-apply",
    "rebase-merge",
    "sequencer",
];

/// A commit of what the index holds, if that is not what HEAD has. Called with the index locked.
pub fn keep_index(clone: &CloneDir) -> Result<Option<Tip>, StepError> {
    if rustix::fs::statat(clone.fd(), "index", AtFlags::SYMLINK_NOFOLLOW).is_err() {
        return Ok(None);
    }
    let git = Git::new(clone);
    let one = |args: &[&str], input: &[u8]| {
        let output = git.run(args, input)?;
        let id = ObjectId::from_hex(output.trim()).map_err(|e| StepError::Damaged(e.to_string()))?;
        Ok::<_, StepError>(id.to_string())
    };
    let tree = match one(&["write-tree"], b"") {
        Ok(tree) => tree,
        // Not merged to its end: no tree has three versions of a file, so each gets a name of its own.
        Err(_) => one(&["mktree", "-z"], &flat(&git.run(&["ls-files", "--stage", "-z"], b"")?))?,
    };
    let head = one(&["rev-parse", "--verify", "--quiet", "HEAD^{commit}"], b"").ok();
    let before = one(&["rev-parse", "--verify", "--quiet", "HEAD^{tree}"], b"").ok();
    if before.as_ref() == Some(&tree)
        || (before.is_none() && ObjectId::from_hex(tree.as_bytes()).is_ok_and(|id| id.is_empty_tree()))
    {
        return Ok(None);
    }
    let mut args =
        vec!["-c", "user.name=gitsync", "-c", "user.email=gitsync@localhost", "commit-tree", &tree];
    args.extend(head.iter().flat_map(|head| ["-p", head]));
    args.extend(["-m", "what was staged here when gitsync took the clone over"]);
    let commit = one(&args, b"")?;
    tracing::warn!(commit, "what is staged in the adopted clone's index is kept among the recovery refs");
    let id = ObjectId::from_hex(commit.as_bytes()).map_err(|e| StepError::Damaged(e.to_string()))?;
    Ok(Some(Tip { id, label: "index".into(), always: true }))
}

/// Entries of `ls-files --stage -z` as one directory for `mktree`.
fn flat(stages: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in stages.split(|b| *b == 0) {
        let Some((info, path)) = entry.split_once_str("\t") else { continue };
        let words: Vec<&[u8]> = info.split_str(" ").collect();
        let [mode, id, stage] = words[..] else { continue };
        // A submodule's commit is nothing of this clone's.
        if mode == b"160000" {
            continue;
        }
        out.extend_from_slice(&[mode, b" blob ", id, b"\t", &path.replace("/", "%2F")].concat());
        if stage != b"0" {
            out.extend_from_slice(&[b"~", stage].concat());
        }
        out.push(0);
    }
    out
}

/// Commits an operation in progress stands on.
pub fn heads(clone: &CloneDir) -> Vec<Tip> {
    let mut tips = Vec::new();
    for name in HEADS {
        let text = read(clone.fd(), name.as_bytes()).ok().flatten().unwrap_or_default();
        let ids = text.lines().filter_map(|line| ObjectId::from_hex(line.trim()).ok());
        tips.extend(ids.map(|id| Tip { id, label: name.to_ascii_lowercase().into(), always: false }));
    }
    tips
}

/// Moves the state of an operation in progress out of git's way.
pub fn set_aside(clone: &CloneDir, now: SystemTime) -> Result<(), StepError> {
    let fs = clone.fs();
    let there = |name: &&str| rustix::fs::statat(clone.fd(), *name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
    let found: Vec<&str> = STATE.into_iter().filter(there).collect();
    if found.is_empty() {
        return Ok(());
    }
    let moved = (|| {
        let ours = fs.open_dir(clone.fd(), b"gitsync")?;
        let enter = |at: &std::os::fd::OwnedFd, name: &[u8]| {
            match fs.mkdir(at.as_fd(), name, 0o700) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e),
            }
            fs.open_dir(at.as_fd(), name)
        };
        let to = enter(&enter(&ours, UNFINISHED)?, stamp(now).as_bytes())?;
        for name in &found {
            match fs.rename_new(clone.fd(), name.as_bytes(), to.as_fd(), name.as_bytes()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    })();
    tracing::warn!(?found, "an operation in progress in the clone was set aside: .git/gitsync/unfinished");
    moved.map_err(|e| StepError::errno("set aside an operation in progress", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_of_a_file_gets_a_name() {
        let listed = b"100644 aa 0\ta b\x00100755 bb 2\td/e\x00100755 cc 3\td/e\x00160000 dd 0\tsub\0";
        let made = b"100644 blob aa\ta b\x00100755 blob bb\td%2Fe~2\x00100755 blob cc\td%2Fe~3\0";
        assert_eq!(flat(listed).as_bstr(), made.as_bstr());
    }
}
