//! What an operator says of a server's workspaces: the file of `serve --config`.
//!
//! Every fault of the file is found at once. A workspace is told by the first `[[workspace]]` whose name, or glob, is
//! its own; one without has the defaults. Remotes are named here and nowhere else: neither a client nor a clone's own
//! configuration can make a server connect anywhere.

use std::ops::Range;
use std::path::Path;

use gitsync_core::config::walk::{
    Given, Keys, Names, Report, Slot, boolean, damaged, read_text, string, table_starts, tables,
};
use gitsync_core::config::{ConfigErrors, Problem, quote};
use gitsync_core::repo::normalised;
use gix::bstr::BStr;
use gix::url::Scheme;
use globset::{Glob, GlobMatcher};

const TOP: Keys = Keys { table: "the file", built: &["workspace"], later: &[] };
const WORKSPACE: Keys =
    Keys { table: "[[workspace]]", built: &["name", "adopt", "fetch", "remote"], later: &[] };
const REMOTE: Keys = Keys { table: "[[workspace.remote]]", built: &["name", "url", "local"], later: &[] };

/// A whole, checked file; without one, every workspace has the defaults.
#[derive(Debug, Clone, Default)]
pub struct Config {
    workspaces: Vec<(GlobMatcher, WorkspaceConfig)>,
}

/// What is configured for a workspace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkspaceConfig {
    /// A directory that holds something already may become this workspace.
    pub adopt: bool,
    /// Commits the clone lacks are fetched from the remotes before the client is asked for them.
    pub fetch: bool,
    /// In the order of the file; names are unique.
    pub remotes: Vec<Remote>,
}

/// Where a workspace's commits can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Fit for a component of a ref's name.
    pub name: String,
    /// https or ssh without a password, or (only where the file says so) a place on this machine.
    pub url: String,
    /// The same as clients name it.
    pub normalised: String,
    /// It may be a place on this machine.
    pub local: bool,
}

impl Config {
    /// Reads and checks a file.
    pub fn load(file: &Path) -> Result<Self, ConfigErrors> {
        let text =
            read_text(file, "create it (docs/server.md shows how), or name another with --config FILE")?;
        Self::parse(&text, file)
    }

    /// Checks `text` as if it stood in `file`.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigErrors> {
        let mut report = Report::new(text);
        let workspaces = workspaces(&mut report);
        let problems = report.finish();
        match problems.is_empty() {
            true => Ok(Self { workspaces: workspaces.into_iter().flatten().collect() }),
            false => Err(ConfigErrors { file: file.to_owned(), problems }),
        }
    }

    /// What holds for this workspace.
    pub fn workspace(&self, name: &str) -> WorkspaceConfig {
        let found = self.workspaces.iter().find(|(glob, _)| glob.is_match(name));
        found.map(|(_, workspace)| workspace.clone()).unwrap_or_default()
    }
}

/// One entry for each table, `None` where it has problems.
fn workspaces(report: &mut Report<'_>) -> Vec<Option<(GlobMatcher, WorkspaceConfig)>> {
    let (root, mut sound) = report.parse();
    let root = root.get_ref();
    let starts = table_starts(root);
    TOP.check(root, report);
    let tables_of_it = tables(root, "workspace", report, &mut sound);
    let mut seen: Vec<Given<String>> = Vec::new();
    tables_of_it
        .into_iter()
        .map(|table| {
            WORKSPACE.check(table.value, report);
            let cut = damaged(&table.span, &starts, report);
            let name = string(table.value, "name", report);
            let adopt = boolean(table.value, "adopt", report);
            let fetch = boolean(table.value, "fetch", report);
            let mut complete = true;
            let mut remotes = Vec::new();
            let mut taken = Names::new();
            for remote in tables(table.value, "remote", report, &mut complete) {
                REMOTE.check(remote.value, report);
                let name = string(remote.value, "name", report);
                let url = string(remote.value, "url", report);
                let local = boolean(remote.value, "local", report).value() == Some(&true);
                let name = required(report, &name, &remote.span, cut, "name", "[[workspace.remote]]");
                let name =
                    name.filter(|name| is_remote_name(report, name) && is_new(report, &mut taken, name));
                let url = required(report, &url, &remote.span, cut, "url", "[[workspace.remote]]");
                let url = url.and_then(|url| checked_url(report, &url, local));
                let (Some(name), Some((url, normalised))) = (name, url) else {
                    complete = false;
                    continue;
                };
                remotes.push(Remote { name: name.value, url, normalised, local });
            }
            if let Slot::Given(Given { value: true, span }) = &fetch
                && remotes.is_empty()
                && complete
            {
                report.push(span.clone(), |place| {
                    Problem::new(place, "`fetch = true` has no remote to fetch from")
                        .hint("add a [[workspace.remote]] with `name` and `url` below this table")
                });
            }
            let name = required(report, &name, &table.span, cut, "name", "[[workspace]]")?;
            let glob = match Glob::new(&name.value) {
                Ok(glob) => glob.compile_matcher(),
                Err(error) => {
                    let message = format!("{} is not a glob: {}", quote(&name.value), error.kind());
                    report.push(name.span.clone(), |place| Problem::new(place, message));
                    return None;
                }
            };
            if !is_new(report, &mut seen, &name) || !complete {
                return None;
            }
            let is_set = |slot: &Slot<bool>| slot.value() == Some(&true);
            Some((glob, WorkspaceConfig { adopt: is_set(&adopt), fetch: is_set(&fetch), remotes }))
        })
        .collect()
}

fn required(
    report: &mut Report<'_>,
    slot: &Slot<String>,
    header: &Range<usize>,
    damaged: bool,
    key: &str,
    table: &str,
) -> Option<Given<String>> {
    report.required(slot, header, damaged, key, table).cloned()
}

fn is_new(report: &mut Report<'_>, seen: &mut Names, name: &Given<String>) -> bool {
    if let Some(first) = seen.iter().find(|first| first.value == name.value) {
        let line = report.place(first.span.clone()).line;
        let message = format!("the name {} is taken already, on line {line}", quote(&name.value));
        report
            .push(name.span.clone(), |place| Problem::new(place, message).hint("say all of it in one table"));
        return false;
    }
    seen.push(name.clone());
    true
}

/// One component of a ref's name (git-check-ref-format), of plain characters.
fn is_remote_name(report: &mut Report<'_>, name: &Given<String>) -> bool {
    let text = name.value.as_str();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let odd = text.is_empty()
        || text.starts_with(['.', '-'])
        || text.ends_with(['.'])
        || text.ends_with(".lock")
        || text.contains("..");
    if odd || !text.chars().all(plain) {
        let message = format!("{} cannot be a remote's name", quote(text));
        report.push(name.span.clone(), |place| {
            Problem::new(place, message)
                .hint("letters, digits, `_`, `-` and `.`, such as `name = \"origin\"`")
        });
        return false;
    }
    true
}

/// The URL, and the same as clients name it.
fn checked_url(report: &mut Report<'_>, given: &Given<String>, local: bool) -> Option<(String, String)> {
    let text = given.value.as_str();
    let fault = |message: &str, hint: &str| Some((message.to_owned(), hint.to_owned()));
    let example = "such as \"https://example.com/team/app.git\" or \"git@example.com:team/app.git\"";
    let parsed = gix::url::parse(BStr::new(text)).ok();
    let problem = match &parsed {
        _ if text.starts_with('-') || text.chars().any(char::is_control) => fault("this is no url", example),
        None => fault("this is no url", example),
        Some(url) if url.password().is_some() || url.scheme == Scheme::Https && url.user().is_some() => {
            fault(
                "a url here holds no credentials: other accounts of this machine can see it while git runs",
                "use ssh with a key of the server's account, or https without a login",
            )
        }
        Some(url) => match url.scheme {
            Scheme::Https | Scheme::Ssh if url.host().is_some_and(|host| !host.starts_with('-')) => None,
            Scheme::Https | Scheme::Ssh => fault("this url names no host", example),
            Scheme::File if local && Path::new(&url.path.to_string()).is_absolute() => None,
            Scheme::File if local => {
                fault("a place on this machine is an absolute path", "write the whole path")
            }
            Scheme::File => fault(
                "this is a place on this machine, and not meant to be one",
                "add `local = true` to this remote if git may read repositories there",
            ),
            _ => fault("only https and ssh are fetched from", example),
        },
    };
    if let Some((message, hint)) = problem {
        report.push(given.span.clone(), |place| Problem::new(place, message).hint(hint));
        return None;
    }
    Some((text.to_owned(), normalised(text)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("server.toml")).map_err(|e| e.to_string())
    }

    #[test]
    fn the_first_table_that_fits_counts() {
        let config = parse(
            r#"
            [[workspace]]
            name = "app"
            fetch = true
            [[workspace.remote]]
            name = "origin"
            url = "git@example.com:team/app.git"
            [[workspace.remote]]
            name = "near"
            url = "/srv/git/app.git"
            local = true
            [[workspace]]
            name = "a*"
            adopt = true
            "#,
        )
        .unwrap();
        let app = config.workspace("app");
        assert_eq!((app.adopt, app.fetch), (false, true));
        let names: Vec<_> =
            app.remotes.iter().map(|r| (r.name.as_str(), r.normalised.as_str(), r.local)).collect();
        assert_eq!(names, [("origin", "example.com/team/app", false), ("near", "/srv/git/app", true)]);
        assert!(config.workspace("apples").adopt);
        assert_eq!(config.workspace("other"), WorkspaceConfig::default());
        assert_eq!(parse("").unwrap().workspace("app"), WorkspaceConfig::default());
    }

    #[test]
    fn every_fault_is_told_with_its_line() {
        let text = r#"worspace = 1
[[workspace]]
nam = "app"
fetch = true
[[workspace]]
name = "b"
adopt = "yes"
[[workspace.remote]]
name = "../x"
url = "http://example.com/x"
[[workspace]]
name = "b"
[[workspace]]
name = "c{"
"#;
        let errors = parse(text).unwrap_err();
        for (place, says) in [
            ("1:1", "did you mean `workspace`"),
            ("2:1", "`name` is missing"),
            ("3:1", "did you mean `name`"),
            ("4:9", "no remote to fetch from"),
            ("7:9", "must be true or false"),
            ("9:8", "cannot be a remote's name"),
            ("10:7", "only https and ssh"),
            ("12:8", "taken already, on line 6"),
            ("14:8", "not a glob"),
        ] {
            let told = errors.split("\n\n").find(|part| part.starts_with(&format!("server.toml:{place}:")));
            assert!(told.is_some_and(|part| part.contains(says)), "{place}, {says}:\n{errors}");
        }
        assert!(errors.ends_with("9 problems in server.toml"), "{errors}");
    }

    #[test]
    fn only_https_and_ssh_without_secrets_unless_it_says_local() {
        let remote = |url: &str, local: bool| {
            let name = "[[workspace]]\nname = \"w\"\n[[workspace.remote]]\nname = \"o\"\n";
            parse(&format!("{name}local = {local}\nurl = {url:?}\n"))
        };
        for good in
            ["https://example.com/x", "ssh://git@example.com:22/x", "git@example.com:x", "example.com:x"]
        {
            assert!(remote(good, false).is_ok(), "{good}");
        }
        for bad in [
            "http://example.com/x",
            "git://example.com/x",
            "ftp://example.com/x",
            "ext::sh -c date",
            "foo::https://example.com/x",
            "https://user:secret@example.com/x",
            "https://token@example.com/x",
            "ssh://git:secret@example.com/x",
            "--upload-pack=date",
            "-oProxyCommand=date:x",
            "ssh://-oProxyCommand=date/x",
            "https:///x",
            "relative/path",
            "",
        ] {
            assert!(remote(bad, true).is_err(), "{bad}");
        }
        for here in ["/srv/git/x", "file:///srv/git/x"] {
            assert!(remote(here, false).unwrap_err().contains("local = true"), "{here}");
            assert!(remote(here, true).is_ok(), "{here}");
        }
    }
}
