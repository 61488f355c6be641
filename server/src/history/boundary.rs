//! The shallow boundary: commits whose parents the clone does not have (git's documentation, `shallow`).

use std::collections::BTreeSet;

use bstr::ByteSlice;
use gix::ObjectId;
use gix::objs::Kind;

use super::StepError;
use super::objects::Objects;

/// The boundary after a step, and what has to be checked for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Boundary {
    pub commits: BTreeSet<ObjectId>,
    /// Commits that were on it and no longer are: all above them has to be here now.
    pub lifted: BTreeSet<ObjectId>,
}

/// The file `.git/shallow`: an id a line. Lines that are none are left out, as git does.
pub fn parse(text: &[u8]) -> BTreeSet<ObjectId> {
    text.lines().filter_map(|line| ObjectId::from_hex(line.trim()).ok()).collect()
}

pub fn print(commits: &BTreeSet<ObjectId>) -> Vec<u8> {
    commits.iter().flat_map(|id| format!("{id}\n").into_bytes()).collect()
}

/// `held` is the boundary so far. The client knows what is below its HEAD; other branches of the clone, it may have
/// forgotten: what cuts those stays.
pub fn merge(
    held: &BTreeSet<ObjectId>,
    asked: &[ObjectId],
    objects: &Objects,
) -> Result<Boundary, StepError> {
    let mut boundary = Boundary::default();
    for id in asked {
        match objects.kind(id)? {
            Some(Kind::Commit) => boundary.commits.insert(*id),
            Some(kind) => return Err(StepError::Invalid(format!("the boundary names a {kind}"))),
            None => return Err(StepError::Missing(format!("the boundary names {id}, which is not here"))),
        };
    }
    for id in held {
        if boundary.commits.contains(id) || objects.kind(id)? != Some(Kind::Commit) {
            continue;
        }
        let (_, parents) = objects.commit(id)?;
        let mut complete = true;
        for parent in &parents {
            complete &= objects.kind(parent)? == Some(Kind::Commit);
        }
        match complete {
            true => boundary.lifted.insert(*id),
            false => boundary.commits.insert(*id),
        };
    }
    Ok(boundary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_round_trips_and_nonsense_is_left_out() {
        let text = b"4b825dc642cb6eb9a060e54bf8d69288fbee4904\nnonsense\n\n5b825dc642cb6eb9a060e54bf8d69288fbee4904\n";
        let commits = parse(text);
        assert_eq!(commits.len(), 2);
        assert_eq!(parse(&print(&commits)), commits);
    }
}
