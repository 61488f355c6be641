//! What git says in a server's clone, against what it says in the client's repository.
//!
//! A workspace has HEAD, branch, tags and an index of the client's commit, and the client's files. What the client has
//! staged stays with the client, so git there shows staged and unstaged changes as one. The client is asked through an
//! index of its own for that, made from its HEAD, with the flags of the real one.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::git;
use crate::oracle::Mode;

/// What git says of one working tree. Where it fails, it says nothing: a branch without commits has no log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// Commit, branch and message of HEAD, tags that lead to it, `describe`, `diff --stat`: each as git prints it.
    pub lines: Vec<(&'static str, String)>,
    /// `status --porcelain` of tracked files: two letters and the path.
    pub changed: BTreeSet<(String, PathBuf)>,
    /// Files git does not track and no `.gitignore` names.
    pub untracked: BTreeSet<PathBuf>,
}

/// Submodules have a state of their own, which is not mirrored.
const OPAQUE: [&str; 4] = ["-c", "diff.ignoreSubmodules=all", "-c", "core.fsmonitor=false"];

const ASKED: [(&str, &[&str]); 6] = [
    ("HEAD", &["rev-parse", "-q", "--verify", "HEAD"]),
    ("branch", &["symbolic-ref", "-q", "HEAD"]),
    ("log -1", &["log", "-1", "--format=%H %T %an <%ae> %ad%n%B"]),
    ("tags", &["for-each-ref", "--merged=HEAD", "--format=%(refname) %(objectname)", "refs/tags"]),
    ("diff --stat", &["diff", "--stat"]),
    ("describe", &["describe", "--tags", "--always", "--abbrev=40", "--dirty"]),
];

/// Asks in a server's clone.
pub fn of_clone(root: &Path, home: &Path) -> Said {
    ask(root, home, None)
}

/// Asks in the client's repository, as if nothing were staged. `scratch` is a path for an index.
pub fn of_client(root: &Path, home: &Path, scratch: &Path) -> Said {
    let with_index = |args: &[&str]| {
        let mut git = git::command(home);
        git.arg("-C").arg(root).args(OPAQUE).args(args);
        git.env("GIT_INDEX_FILE", scratch).env("GIT_OPTIONAL_LOCKS", "0");
        git
    };
    let listed = |mut git: Command| git::run(git.env_remove("GIT_INDEX_FILE"));
    // Fails only where no index was left here before.
    let _ = fs::remove_file(scratch);
    let read = with_index(&["read-tree", "HEAD"]).output().expect("git is installed");
    if !read.status.success() {
        git::run(&mut with_index(&["read-tree", "--empty"]));
    }
    let skipped = listed(with_index(&["ls-files", "-t", "-z"]));
    let skipped = split_nul(&skipped).filter_map(|record| record.strip_prefix(b"S ").map(<[u8]>::to_vec));
    let known: BTreeSet<Vec<u8>> =
        split_nul(&git::run(&mut with_index(&["ls-files", "-z"]))).map(<[u8]>::to_vec).collect();
    let skipped: Vec<Vec<u8>> = skipped.filter(|path| known.contains(path)).collect();
    if !skipped.is_empty() {
        let mut mark = with_index(&["update-index", "--skip-worktree", "-z", "--stdin"]);
        let mut mark = mark.stdin(Stdio::piped()).spawn().expect("git is installed");
        let mut stdin = mark.stdin.take().expect("stdin is piped");
        std::io::Write::write_all(&mut stdin, &skipped.join(&0)).expect("git reads all of its input");
        drop(stdin);
        assert!(mark.wait().expect("a child can be waited for").success(), "mark {skipped:?}");
    }
    ask(root, home, Some(scratch))
}

fn ask(root: &Path, home: &Path, index: Option<&Path>) -> Said {
    let run = |args: &[&str]| {
        let mut git = git::command(home);
        git.arg("-C").arg(root).args(OPAQUE).args(args).env("GIT_OPTIONAL_LOCKS", "0");
        git.envs(index.map(|index| ("GIT_INDEX_FILE", index)));
        git.output().expect("git is installed").stdout
    };
    let lines = ASKED.map(|(name, args)| {
        let mut said = run(args);
        if let Some(args) = args.strip_suffix(&["--dirty"])
            && index.is_some()
            && !said.is_empty()
        {
            // What has changed in a submodule cannot be kept out of that answer.
            said = run(args);
        }
        (name, String::from_utf8_lossy(&said).trim_end().to_owned())
    });
    let mut said = Said { lines: lines.to_vec(), ..Said::default() };
    let status = run(&["status", "--porcelain=v1", "-z", "-uno", "--no-renames", "--ignore-submodules=all"]);
    for record in split_nul(&status) {
        let (letters, path) = record.split_at_checked(3).expect("two letters, a space and a path");
        let letters = String::from_utf8_lossy(letters).trim_end_matches(' ').to_owned();
        let path = PathBuf::from(OsString::from_vec(path.to_vec()));
        said.changed.insert((letters, path));
    }
    // By the rules that are files of the working tree: others are not mirrored.
    let untracked = run(&["ls-files", "-o", "-z", "--exclude-per-directory=.gitignore"]);
    let files = split_nul(&untracked).filter(|path| !path.ends_with(b"/"));
    said.untracked = files.map(|path| PathBuf::from(OsString::from_vec(path.to_vec()))).collect();
    if index.is_some() {
        said.leave_out_what_is_no_file(root);
    }
    if index.is_some() && !said.changed.is_empty() {
        said.lines.iter_mut().filter(|(name, said)| *name == "describe" && !said.is_empty()).for_each(
            |(_, said)| {
                said.push_str("-dirty");
            },
        );
    }
    said
}

fn split_nul(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|b| *b == 0).filter(|record| !record.is_empty())
}

impl Said {
    /// A FIFO or socket where a tracked file was: it is not mirrored, so on a server the file is gone.
    fn leave_out_what_is_no_file(&mut self, root: &Path) {
        let is_other = |path: &Path| {
            let meta = fs::symlink_metadata(root.join(path));
            meta.is_ok_and(|meta| Mode::of(&meta).is_none())
        };
        let (others, changed) = std::mem::take(&mut self.changed).into_iter().partition(|(_, p)| is_other(p));
        let others: BTreeSet<(String, PathBuf)> = others;
        self.changed = changed;
        if !others.is_empty() {
            self.lines.retain(|(name, _)| *name != "diff --stat");
        }
        self.changed.extend(others.into_iter().map(|(_, path)| (" D".to_owned(), path)));
    }

    /// How a clone's answers differ from these: one line each, none where they agree. What a server `may_have` for
    /// itself, and what git tracks here although it is not mirrored, is no difference; nor is what the server had to
    /// leave out: `left_out` are such paths.
    pub fn differences(
        &self,
        clone: &Said,
        left_out: &BTreeSet<PathBuf>,
        may_have: impl Fn(&Path) -> bool,
    ) -> Vec<String> {
        let meant = |path: &Path| {
            !may_have(path) && !left_out.iter().any(|out| path.starts_with(out) || out.starts_with(path))
        };
        let changes = self.changed.symmetric_difference(&clone.changed);
        let (changes, allowed): (Vec<_>, Vec<_>) = changes.partition(|(_, path)| meant(path));
        // These two depend on every file.
        let depends = |name: &str| ["describe", "diff --stat"].contains(&name);
        let is_comparable = |name: &str| !depends(name) || (left_out.is_empty() && allowed.is_empty());
        let mut found = Vec::new();
        for (name, here) in self.lines.iter().filter(|(name, _)| is_comparable(name)) {
            let Some((_, there)) = clone.lines.iter().find(|(asked, _)| asked == name) else { continue };
            if here != there {
                found.push(format!("{name} is {there:?} there and {here:?} here"));
            }
        }
        found.extend(changes.into_iter().map(|change| match self.changed.contains(change) {
            true => format!("{change:?} is not changed there"),
            false => format!("{change:?} is changed only there"),
        }));
        let lost = self.untracked.difference(&clone.untracked).filter(|path| meant(path));
        found.extend(lost.map(|path| format!("{path:?} is not untracked there")));
        let extra = clone.untracked.difference(&self.untracked).filter(|path| meant(path));
        found.extend(extra.map(|path| format!("{path:?} is untracked only there")));
        found
    }
}

/// Asks a clone until it `agrees`, at most until `deadline`; gives the last differences.
pub fn wait_to_agree(
    clone: &Path,
    home: &Path,
    deadline: Instant,
    agrees: impl Fn(&Said) -> Vec<String>,
) -> Result<(), Vec<String>> {
    loop {
        let found = agrees(&of_clone(clone, home));
        if found.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(found);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::Repo;
    use crate::lab::Sandbox;

    #[test]
    fn staged_and_unstaged_are_one_and_a_flag_of_the_index_counts() {
        let sandbox = Sandbox::new("faces");
        let repo = Repo::init(&sandbox.path("app"), &sandbox.path("home"));
        let here = || of_client(repo.root(), repo.home(), &sandbox.path("index"));
        for name in ["edited", "staged", "both", "gone", "skipped"] {
            repo.write(name, "1\n");
        }
        repo.commit_all("first");
        repo.git(["tag", "v1"]);
        assert_eq!(here(), of_clone(repo.root(), repo.home()), "nothing is staged");
        repo.write("staged", "2\n");
        repo.write("both", "2\n");
        repo.write("new", "2\n");
        repo.git(["add", "-A"]);
        repo.git(["update-index", "--skip-worktree", "skipped"]);
        repo.remove("skipped");
        repo.write("edited", "3\n");
        repo.write("both", "3\n");
        repo.git(["rm", "-q", "gone"]);
        let before = crate::tree::walk_with_git(repo.root());
        let said = here();
        let changed: Vec<String> =
            said.changed.iter().map(|(how, path)| format!("{how} {}", path.display())).collect();
        assert_eq!(changed, [" D gone", " M both", " M edited", " M staged"]);
        assert_eq!(said.untracked, [PathBuf::from("new")].into());
        assert_eq!(said.lines[5].1, "v1-dirty");
        assert_eq!(crate::tree::walk_with_git(repo.root()), before, "asking writes nothing");
    }

    #[test]
    fn each_difference_is_named() {
        let said = |head: &str, changed: &str, untracked: &str| Said {
            lines: vec![("HEAD", head.into()), ("describe", head.into())],
            changed: [(" M".to_owned(), PathBuf::from(changed))].into(),
            untracked: [PathBuf::from(untracked)].into(),
        };
        let (here, there) = (said("1", "a", "x"), said("2", "b", "y"));
        let none = BTreeSet::new();
        assert_eq!(here.differences(&here, &none, |_| false), Vec::<String>::new());
        assert_eq!(here.differences(&there, &none, |_| false).len(), 6);
        assert_eq!(here.differences(&there, &none, |path| path == Path::new("y")).len(), 5);
        let all = ["a", "b", "x", "y"].map(PathBuf::from).into();
        assert_eq!(here.differences(&there, &all, |_| false), [r#"HEAD is "2" there and "1" here"#]);
    }
}
