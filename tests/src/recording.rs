//! Saves of real editors, recorded call by call, made again in a directory of ours.
//!
//! `tests/recordings/README.md` describes the files and how they are made.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// One session of an editor with one file.
#[derive(Debug)]
pub struct Recording {
    /// Gitignore patterns of people who use this editor.
    pub ignored: Vec<String>,
    pub sections: Vec<Section>,
}

/// What an editor does at one time.
#[derive(Debug)]
pub struct Section {
    /// Bytes of the file before and after, if this is a save.
    pub save: Option<(usize, usize)>,
    calls: Vec<Call>,
}

/// A call, with `FILE` in its names.
#[derive(Debug)]
enum Call {
    Open { handle: u32, name: String, mode: u32, create: bool, new: bool, empty: bool },
    Write { handle: u32, at: usize, length: usize, what: What },
    Truncate { handle: u32, length: u64 },
    Fsync { handle: u32 },
    FileChmod { handle: u32, mode: u32 },
    Close { handle: u32 },
    Rename { from: String, to: String },
    Link { from: String, to: String },
    Symlink { target: String, name: String },
    Unlink { name: String },
    Chmod { name: String, mode: u32 },
    Utimens { name: String },
    Setxattr { name: String },
}

/// Whose bytes are written.
#[derive(Debug, Clone, Copy)]
enum What {
    New,
    Old,
    Other,
}

impl Recording {
    /// Reads a file of `tests/recordings` by its name without `.txt`.
    ///
    /// # Panics
    /// If it is not there or a line of it is not understood.
    pub fn read(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("recordings").join(name).with_extension("txt");
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut recording = Self { ignored: Vec::new(), sections: Vec::new() };
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with("# ")) {
            recording.take(line).unwrap_or_else(|| panic!("{}: {line:?} is not understood", path.display()));
        }
        recording
    }

    fn take(&mut self, line: &str) -> Option<()> {
        if let Some(pattern) = line.strip_prefix("ignore ") {
            self.ignored.push(pattern.to_owned());
        } else if let Some(head) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            let save = match head.split(' ').collect::<Vec<_>>()[..] {
                ["save", old, new] => Some((old.parse().ok()?, new.parse().ok()?)),
                ["open" | "edit" | "quit"] => None,
                _ => return None,
            };
            self.sections.push(Section { save, calls: Vec::new() });
        } else {
            self.sections.last_mut()?.calls.push(parse(line)?);
        }
        Some(())
    }

    /// The sections, each with the sizes of the save it is or leads to: before and after. What follows the last save
    /// leaves the file as it is.
    pub fn steps(&self) -> impl Iterator<Item = (&Section, usize, usize)> {
        self.sections.iter().enumerate().map(|(i, section)| {
            let save = self.sections[i..].iter().find_map(|s| s.save);
            let last = || self.sections.iter().rev().find_map(|s| s.save).map(|(_, new)| (new, new));
            let (old, new) = save.or_else(last).expect("a recording has a save");
            (section, old, new)
        })
    }
}

fn parse(line: &str) -> Option<Call> {
    let words: Vec<&str> = line.split(' ').collect();
    let octal = |text: &str| u32::from_str_radix(text, 8).ok();
    let handle = |text: &str| text.parse().ok();
    Some(match words[..] {
        ["open", h, name, mode, ref flags @ ..] => {
            let has = |flag| flags.contains(&flag);
            let (create, new, empty) = (has("create"), has("new"), has("empty"));
            Call::Open { handle: handle(h)?, name: name.into(), mode: octal(mode)?, create, new, empty }
        }
        ["write", h, at, length, what] => {
            let what = match what {
                "new" => What::New,
                "old" => What::Old,
                "other" => What::Other,
                _ => return None,
            };
            Call::Write { handle: handle(h)?, at: at.parse().ok()?, length: length.parse().ok()?, what }
        }
        ["truncate", h, length] => Call::Truncate { handle: handle(h)?, length: length.parse().ok()? },
        ["fsync", h] => Call::Fsync { handle: handle(h)? },
        ["fchmod", h, mode] => Call::FileChmod { handle: handle(h)?, mode: octal(mode)? },
        ["close", h] => Call::Close { handle: handle(h)? },
        ["rename", from, to] => Call::Rename { from: from.into(), to: to.into() },
        ["link", from, to] => Call::Link { from: from.into(), to: to.into() },
        ["symlink", target, name] => Call::Symlink { target: target.into(), name: name.into() },
        ["unlink", name] => Call::Unlink { name: name.into() },
        ["chmod", name, mode] => Call::Chmod { name: name.into(), mode: octal(mode)? },
        ["utimens", name] => Call::Utimens { name: name.into() },
        ["setxattr", name] => Call::Setxattr { name: name.into() },
        _ => return None,
    })
}

/// Makes a session's calls again.
#[derive(Debug)]
pub struct Player {
    dir: PathBuf,
    name: String,
    /// A real disk takes its time for each fsync.
    fsync: Duration,
    handles: BTreeMap<u32, File>,
    old: Vec<u8>,
    new: Vec<u8>,
}

impl Player {
    /// Saves `dir/name`; each fsync takes at least `fsync` longer than here.
    pub fn new(dir: PathBuf, name: &str, fsync: Duration) -> Self {
        let (handles, old, new) = (BTreeMap::new(), Vec::new(), Vec::new());
        Self { dir, name: name.to_owned(), fsync, handles, old, new }
    }

    /// Makes the calls of one section. `old` and `new` are what the save it is, or the next one, starts from and leads
    /// to, of the sizes the recording says.
    ///
    /// # Panics
    /// If a call fails.
    pub fn play(&mut self, section: &Section, old: &[u8], new: &[u8]) {
        (self.old, self.new) = (old.to_vec(), new.to_vec());
        for call in &section.calls {
            self.call(call).unwrap_or_else(|e| panic!("{call:?}: {e}"));
        }
    }

    fn call(&mut self, call: &Call) -> std::io::Result<()> {
        match call {
            Call::Open { handle, name, mode, create, new, empty } => {
                let mut options = OpenOptions::new();
                options.write(true).create(*create && !*new).create_new(*new).truncate(*empty).mode(*mode);
                let file = options.open(self.path(name))?;
                self.handles.insert(*handle, file);
                Ok(())
            }
            Call::Write { handle, at, length, what } => {
                let other = vec![b'.'; at + length];
                let content = match what {
                    What::New => &self.new,
                    What::Old => &self.old,
                    What::Other => &other,
                };
                self.file(*handle).write_all_at(&content[*at..at + length], *at as u64)
            }
            Call::Truncate { handle, length } => self.file(*handle).set_len(*length),
            Call::Fsync { handle } => {
                self.file(*handle).sync_all()?;
                std::thread::sleep(self.fsync);
                Ok(())
            }
            Call::FileChmod { handle, mode } => {
                self.file(*handle).set_permissions(Permissions::from_mode(*mode))
            }
            Call::Close { handle } => {
                drop(self.handles.remove(handle));
                Ok(())
            }
            Call::Rename { from, to } => fs::rename(self.path(from), self.path(to)),
            Call::Link { from, to } => fs::hard_link(self.path(from), self.path(to)),
            Call::Symlink { target, name } => symlink(target, self.path(name)),
            Call::Unlink { name } => fs::remove_file(self.path(name)),
            Call::Chmod { name, mode } => fs::set_permissions(self.path(name), Permissions::from_mode(*mode)),
            // What it is set to does not matter: nobody mirrors times.
            Call::Utimens { name } => File::open(self.path(name))?.set_modified(UNIX_EPOCH),
            // Not every file system takes them; a change of mode to what it is makes the same event.
            Call::Setxattr { name } => {
                let path = self.path(name);
                fs::set_permissions(&path, fs::metadata(&path)?.permissions())
            }
        }
    }

    fn file(&self, handle: u32) -> &File {
        self.handles.get(&handle).unwrap_or_else(|| panic!("{handle} is not open"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(OsString::from(name.replace("FILE", &self.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Sandbox;

    #[test]
    fn every_recording_leads_to_the_new_content_and_leaves_only_the_backup() {
        for name in ["vim-rename", "vim-copy", "vim-auto", "emacs", "jetbrains"] {
            let recording = Recording::read(name);
            let sandbox = Sandbox::new(name);
            let dir = sandbox.path("home");
            let mut player = Player::new(dir.clone(), "x", Duration::ZERO);
            let mut saves = 0;
            for (section, old, new) in recording.steps() {
                let (old, new) = (vec![b'0' + saves; old], vec![b'1' + saves; new]);
                if saves == 0 {
                    fs::write(dir.join("x"), &old).expect("the sandbox is writable");
                }
                player.play(section, &old, &new);
                if section.save.is_some() {
                    assert_eq!(fs::read(dir.join("x")).expect("it is there"), new, "{name}");
                    saves += 1;
                }
            }
            assert_eq!(saves, 2, "{name}");
            let left: Vec<OsString> =
                fs::read_dir(&dir).expect("ours").flatten().map(|e| e.file_name()).collect();
            assert!(left.iter().all(|file| file == "x" || file == "x~"), "{name}: {left:?}");
        }
    }
}
