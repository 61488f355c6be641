//! Which file is the configuration: `--config`, else `$GITSYNC_CONFIG`, else the user's config
//! directory. Never the current directory or a repository: a cloned repository must not be able to
//! say where its user's files are sent.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A configuration file, and who named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    pub file: PathBuf,
    pub source: Source,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Flag,
    /// `$GITSYNC_CONFIG`
    Variable,
    /// The place where it is looked for when nobody names one; it need not exist.
    Default,
}

/// Nothing names a file, and without a home directory there is no default place either.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no configuration file: neither --config nor $GITSYNC_CONFIG is given, and $HOME is not set")]
pub struct Nowhere;

/// Says which file to read; looks at no file. `env` answers for environment variables.
pub fn locate(flag: Option<&Path>, env: impl Fn(&str) -> Option<OsString>) -> Result<Located, Nowhere> {
    if let Some(file) = flag {
        return Ok(Located { file: file.to_owned(), source: Source::Flag });
    }
    if let Some(file) = env("GITSYNC_CONFIG").filter(|v| !v.is_empty()) {
        return Ok(Located { file: file.into(), source: Source::Variable });
    }
    let dir = base_dir(&env, "XDG_CONFIG_HOME", ".config").ok_or(Nowhere)?;
    Ok(Located { file: dir.join("gitsync/config.toml"), source: Source::Default })
}

/// Where things that must outlive the program are kept; `None` without a home directory.
pub fn state_dir(env: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    base_dir(&env, "XDG_STATE_HOME", ".local/state").map(|dir| dir.join("gitsync"))
}

/// Where things that can be made again are kept; `None` without a home directory.
pub fn cache_dir(env: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    base_dir(&env, "XDG_CACHE_HOME", ".cache").map(|dir| dir.join("gitsync"))
}

/// A relative value would mean the current directory; the base directory specification has it ignored.
fn base_dir(env: &impl Fn(&str) -> Option<OsString>, variable: &str, below_home: &str) -> Option<PathBuf> {
    let absolute = |name| env(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    absolute(variable).or_else(|| absolute("HOME").map(|home| home.join(below_home)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_is_set_names_the_file() {
        type Vars<'a> = &'a [(&'a str, &'a str)];
        type Wanted<'a> = Option<(&'a str, Source)>;
        const ALL: [(&str, &str); 3] =
            [("GITSYNC_CONFIG", "/env.toml"), ("XDG_CONFIG_HOME", "/xdg"), ("HOME", "/home/u")];
        let table: [(Option<&str>, Vars<'_>, Wanted<'_>); 8] = [
            (Some("flag.toml"), &ALL, Some(("flag.toml", Source::Flag))),
            (None, &ALL, Some(("/env.toml", Source::Variable))),
            (None, &ALL[1..], Some(("/xdg/gitsync/config.toml", Source::Default))),
            (None, &ALL[2..], Some(("/home/u/.config/gitsync/config.toml", Source::Default))),
            (None, &[], None),
            (None, &[("GITSYNC_CONFIG", ""), ALL[1]], Some(("/xdg/gitsync/config.toml", Source::Default))),
            (
                None,
                &[("XDG_CONFIG_HOME", "relative"), ALL[2]],
                Some(("/home/u/.config/gitsync/config.toml", Source::Default)),
            ),
            (None, &[("HOME", "relative")], None),
        ];
        for (flag, vars, wanted) in table {
            let env = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
            let got = locate(flag.map(Path::new), env).ok();
            let wanted = wanted.map(|(file, source)| Located { file: file.into(), source });
            assert_eq!(got, wanted, "{flag:?} {vars:?}");
        }
    }
}
