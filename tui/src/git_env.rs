//! Variables that bind git to one repository (`git rev-parse --local-env-vars`, less those that carry configuration).
//! Git sets them for hooks and aliases, from where people start programs; the repositories of a configuration are
//! others, so none of them may reach us or the git we start.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

const BOUND: &[&str] = &[
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_GRAFT_FILE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_INTERNAL_SUPER_PREFIX",
    "GIT_NAMESPACE",
    "GIT_NO_REPLACE_OBJECTS",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_QUARANTINE_PATH",
    "GIT_REPLACE_REF_BASE",
    "GIT_SHALLOW_FILE",
    "GIT_WORK_TREE",
];

/// Starts this program anew, in this process, if one of them is set: a process cannot safely take a variable out of its
/// own environment. Returns if there is none.
///
/// # Errors
/// If the program cannot be started anew.
pub fn shed() -> io::Result<()> {
    if !is_bound(|name| std::env::var_os(name)) {
        return Ok(());
    }
    let mut args = std::env::args_os();
    let mut again = Command::new(std::env::current_exe()?);
    if let Some(name) = args.next() {
        again.arg0(name);
    }
    again.args(args);
    for name in BOUND {
        again.env_remove(name);
    }
    Err(again.exec())
}

fn is_bound(env: impl Fn(&str) -> Option<OsString>) -> bool {
    BOUND.iter().any(|name| env(name).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_variable_binds_and_configuration_does_not() {
        let set = |names: &'static [&str]| move |name: &str| names.contains(&name).then(OsString::new);
        assert!(is_bound(set(&["HOME", "GIT_DIR"])));
        assert!(!is_bound(set(&["HOME", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_COUNT", "GIT_TRACE"])));
    }
}
