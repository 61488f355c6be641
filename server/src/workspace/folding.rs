//! Names a file system takes for one another: `A` and `a`, or one accent written in two ways.
//!
//! Found out by trying, once for each opening. A patch may hold both of two such names; the second one
//! is refused before anything of it reaches the disk, because there it would be the first one. What the
//! rule here does not know (file systems fold by tables of their own) is met when the file is swapped in:
//! the file in the way then turns out to be another of ours.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::BorrowedFd;

use gitsync_core::model::{Dir, RelPath};
use rustix::io::{Errno, Result};
use unicode_normalization::UnicodeNormalization;

use super::fs::WorkspaceFs;

const CASE: (&[u8], &[u8]) = (b"probe-Case", b"probe-cASE");
/// The same letter composed and decomposed.
const NORMAL: (&[u8], &[u8]) = ("probe-\u{e9}".as_bytes(), "probe-e\u{301}".as_bytes());

/// What a file system does not tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Folding {
    pub case: bool,
    pub normalisation: bool,
}

/// Makes a name in `dir` and looks whether it answers to another. Leaves nothing behind.
pub fn probe(fs: &dyn WorkspaceFs, dir: BorrowedFd<'_>) -> Result<Folding> {
    Ok(Folding { case: answers(fs, dir, CASE)?, normalisation: answers(fs, dir, NORMAL)? })
}

fn answers(fs: &dyn WorkspaceFs, dir: BorrowedFd<'_>, (name, twin): (&[u8], &[u8])) -> Result<bool> {
    match fs.create(dir, name) {
        // Left by an opening that was cut off.
        Ok(_) | Err(Errno::EXIST) => {}
        // A file system that takes no such name folds none.
        Err(Errno::ILSEQ | Errno::INVAL) => return Ok(false),
        Err(e) => return Err(e),
    }
    let found = fs.stat_at(dir, twin);
    fs.unlink(dir, name)?;
    match found {
        Ok(_) => Ok(true),
        Err(Errno::NOENT | Errno::ILSEQ | Errno::INVAL) => Ok(false),
        Err(e) => Err(e),
    }
}

impl Folding {
    pub fn is_none(self) -> bool {
        self == Self::default()
    }

    /// Equal for names the file system does not tell apart. Bytes that are no text are only themselves.
    fn key(self, name: &[u8]) -> Vec<u8> {
        let Ok(text) = std::str::from_utf8(name) else { return name.to_vec() };
        let lower = |text: &str| match self.case {
            // Upper case first: it joins letters that have two small forms.
            true => text.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect(),
            false => text.to_owned(),
        };
        match self.normalisation {
            true => lower(&text.nfc().collect::<String>()).nfc().collect::<String>().into_bytes(),
            false => lower(text).into_bytes(),
        }
    }
}

/// Finds the twin of a path among what is held and what was found free before.
#[derive(Debug)]
pub(super) struct Twins<'a> {
    folding: Folding,
    held: &'a Dir,
    /// The names of each directory looked at, by key.
    names: HashMap<Option<RelPath>, HashMap<Vec<u8>, Vec<u8>>>,
}

impl<'a> Twins<'a> {
    pub fn new(folding: Folding, held: &'a Dir) -> Self {
        Self { folding, held, names: HashMap::new() }
    }

    /// Another path that `path`, or a directory above it, would be on disk. If there is none, `path` takes
    /// its names.
    pub fn claim(&mut self, path: &RelPath) -> Option<RelPath> {
        if self.folding.is_none() {
            return None;
        }
        for step in path.ancestors().chain([path.clone()]) {
            let parent = step.parent();
            let key = self.folding.key(step.name());
            match self.names_in(parent.as_ref()).entry(key) {
                Entry::Vacant(free) => {
                    free.insert(step.name().to_vec());
                }
                Entry::Occupied(taken) if *taken.get() == step.name() => {}
                Entry::Occupied(taken) => return RelPath::join(parent.as_ref(), taken.get()).ok(),
            }
        }
        None
    }

    fn names_in(&mut self, dir: Option<&RelPath>) -> &mut HashMap<Vec<u8>, Vec<u8>> {
        let (folding, held) = (self.folding, self.held);
        self.names.entry(dir.cloned()).or_insert_with(|| {
            let held = match dir {
                Some(dir) => held.dir(dir).map(|dir| &**dir),
                None => Some(held),
            };
            let names = held.into_iter().flat_map(Dir::names);
            names.map(|name| (folding.key(name), name.to_vec())).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::os::OsFs;
    use gitsync_core::model::{ContentId, HashKind, Leaf, Mode, Signature};
    use std::os::fd::AsFd;

    #[test]
    fn keys() {
        let both = Folding { case: true, normalisation: true };
        let case = Folding { case: true, normalisation: false };
        let normalisation = Folding { case: false, normalisation: true };
        for (folding, a, b, equal) in [
            (case, "README", "readme", true),
            (case, "\u{c9}", "\u{e9}", true),
            (case, "\u{3c3}", "\u{3c2}", true),
            (case, "\u{e9}", "e\u{301}", false),
            (normalisation, "\u{e9}", "e\u{301}", true),
            (normalisation, "A", "a", false),
            (both, "\u{c9}", "e\u{301}", true),
            (Folding::default(), "A", "a", false),
        ] {
            assert_eq!(folding.key(a.as_bytes()) == folding.key(b.as_bytes()), equal, "{a} {b} {folding:?}");
        }
        assert_eq!(both.key(b"\xffA"), b"\xffA");
    }

    #[test]
    fn the_second_of_two_twins_is_found_at_every_level() {
        let path = |p: &str| RelPath::new(p).unwrap();
        let id = ContentId::of(HashKind::Sha1, b"");
        let leaf = Leaf { mode: Mode::File, id, signature: Signature::default() };
        let edits: Vec<_> = ["Dir/a", "x"].map(|p| (path(p), Some(leaf))).into();
        let held = Dir::empty(HashKind::Sha1).edit(&edits).unwrap();
        let mut twins = Twins::new(Folding { case: true, normalisation: false }, &held);
        for (claimed, twin) in [
            ("x", None),
            ("X", Some("x")),
            ("Dir/b", None),
            ("Dir/B", Some("Dir/b")),
            ("dir/c", Some("Dir")),
            ("new/deep/a", None),
            ("new/Deep/b", Some("new/deep")),
        ] {
            assert_eq!(twins.claim(&path(claimed)), twin.map(path), "{claimed}");
        }
        assert_eq!(Twins::new(Folding::default(), &held).claim(&path("X")), None);
    }

    #[test]
    fn a_probe_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let at = std::fs::File::open(dir.path()).unwrap();
        // Whatever this file system does, twice the same.
        let first = probe(&OsFs::default(), at.as_fd()).unwrap();
        assert_eq!(probe(&OsFs::default(), at.as_fd()).unwrap(), first);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
