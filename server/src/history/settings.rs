//! The five settings that make `git status` here and there agree.
//!
//! They are in a file of our own that the clone's configuration includes, so that one the client no longer has goes
//! again, and nothing a person configured is touched.

use std::io::Write;
use std::os::fd::AsFd;

use bstr::ByteSlice;
use rustix::io::Errno;

use super::StepError;
use super::state::{State, read};
use crate::workspace::CloneDir;

const OWN: &[u8] = b"config";
const INCLUDE: &str = "gitsync/config";
/// How often the configuration is read again because somebody else wrote it.
const TRIES: u32 = 3;

/// Makes the clone's settings those given, which are checked.
pub fn apply(clone: &CloneDir, state: &State, settings: &[(String, String)]) -> Result<(), StepError> {
    let text = print(settings);
    let errno = |e| StepError::errno("write the settings", e);
    let dir = clone.fs().open_dir(clone.fd(), b"gitsync").map_err(errno)?;
    let held = read(&dir, OWN).map_err(errno)?;
    if held.as_deref().unwrap_or_default() != text.as_bytes() {
        let own = state.own("settings");
        state
            .create(clone, &own)?
            .write_all(text.as_bytes())
            .map_err(|e| StepError::io("write the settings", e))?;
        clone.fs().rename(state.fd().as_fd(), own.as_bytes(), dir.as_fd(), OWN).map_err(errno)?;
    }
    // Whoever wrote the file may have been cut off before this.
    if text.is_empty() { Ok(()) } else { include(clone, state) }
}

fn print(settings: &[(String, String)]) -> String {
    if settings.is_empty() {
        return String::new();
    }
    let line = |(key, value): &(String, String)| {
        format!("\t{} = {value}\n", key.rsplit('.').next().unwrap_or_default())
    };
    std::iter::once("[core]\n".to_owned()).chain(settings.iter().map(line)).collect()
}

/// Last in the configuration, so that it decides.
fn include(clone: &CloneDir, state: &State) -> Result<(), StepError> {
    let look = || {
        let config =
            read(clone.fd(), b"config").map_err(|e| StepError::errno("read the configuration", e))?;
        Ok(config.unwrap_or_default())
    };
    for _ in 0..TRIES {
        let config = look()?;
        if config.contains_str(INCLUDE) {
            return Ok(());
        }
        let newline = if config.is_empty() || config.ends_with(b"\n") { "" } else { "\n" };
        let lock = state.lock(clone, "config", |file| {
            let written = file.write_all(&config);
            let written = written.and_then(|()| write!(file, "{newline}[include]\n\tpath = {INCLUDE}\n"));
            written.map_err(|e| StepError::io("write the configuration", e))
        })?;
        // Whoever had the lock before us may have written it.
        if look()? == config {
            return lock.commit();
        }
    }
    Err(StepError::Busy("somebody else works on the configuration".to_owned()))
}

/// Removes the directories of submodules that are no longer, as far as they are empty.
pub fn remove_dirs(clone: &CloneDir, gitlinks: &[gitsync_core::model::RelPath]) {
    for link in gitlinks {
        let mut next = Some(link.clone());
        while let Some(dir) = next {
            let at = match dir.parent() {
                Some(parent) => clone.fs().open_dir(clone.root().as_fd(), parent.as_bytes()),
                None => clone.root().try_clone().map_err(|_| Errno::MFILE),
            };
            let removed = at.and_then(|at| clone.fs().rmdir(at.as_fd(), dir.name()));
            next = dir.parent().filter(|_| removed.is_ok());
        }
    }
}

/// Makes an empty directory for each submodule, where nothing is in the way.
pub fn make_dirs(clone: &CloneDir, gitlinks: &[gitsync_core::model::RelPath]) {
    for link in gitlinks {
        let made = link.ancestors().chain(std::iter::once(link.clone())).try_for_each(|dir| {
            let at = match dir.parent() {
                Some(parent) => clone.fs().open_dir(clone.root().as_fd(), parent.as_bytes())?,
                None => clone.root().try_clone().map_err(|_| Errno::MFILE)?,
            };
            match clone.fs().mkdir(at.as_fd(), dir.name(), 0o777) {
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(e) => Err(e),
            }
        });
        if let Err(e) = made {
            tracing::debug!(path = %link, "no directory for a submodule: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_as_git_reads_it() {
        let settings =
            [("core.autocrlf".to_owned(), "input".to_owned()), ("core.eol".to_owned(), "lf".to_owned())];
        assert_eq!(print(&settings), "[core]\n\tautocrlf = input\n\teol = lf\n");
        assert_eq!(print(&[]), "");
    }
}
