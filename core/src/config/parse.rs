//! From a walked file to a [`Config`]: names are resolved against each other, paths against the
//! file's folder, and what is left out gets its default. Every problem on the way is collected.

use std::collections::HashMap;
use std::ffi::OsString;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use globset::Glob;

use super::problem::{ConfigErrors, Problem, quote};
use super::raw::{Raw, RawHistory, RawRepo, RawShared};
use super::units::parse_size;
use super::url::{self, RawUrl};
use super::walk::{self, Given, Report, Slot};
use super::{Config, DriftPolicy, MAX_FILE_SIZE, RepoConfig, ServerConfig, ServerUrl, UiConfig};
use crate::model::{HistoryDepth, RelPath, TargetId};
use crate::wire::FILE_BYTES;

pub(super) fn load(file: &Path) -> Result<Config, ConfigErrors> {
    let missing = "`gitsync-tui --config FILE init`, run in a checkout, makes it; config.example.toml shows how it looks";
    let text = walk::read_text(file, missing)?;
    parse(&text, file)
}

pub(super) fn parse(text: &str, file: &Path) -> Result<Config, ConfigErrors> {
    // Fails only for an empty path, or a relative one without a current directory.
    let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    parse_with_home(text, absolute, std::env::var_os("HOME"))
        .map_err(|problems| ConfigErrors { file: file.to_owned(), problems })
}

/// `file` is absolute; `home` is what `~` stands for.
fn parse_with_home(text: &str, file: PathBuf, home: Option<OsString>) -> Result<Config, Vec<Problem>> {
    let mut report = Report::new(text);
    let raw = Raw::walk(&mut report);
    let home = home.map(PathBuf::from).filter(|dir| dir.is_absolute());
    let folder = file.parent().unwrap_or(Path::new("/")).to_owned();
    let mut resolve = Resolve { report, folder, home };
    let servers = resolve.servers(&raw);
    let repos = resolve.repos(&raw, &servers);
    resolve.clashes(&raw, &repos, &servers.checked);
    let problems = resolve.report.finish();
    if !problems.is_empty() {
        return Err(problems);
    }
    let ui =
        UiConfig { theme: raw.ui.theme.value().cloned(), read_only: raw.ui.read_only.value() == Some(&true) };
    Ok(Config { file, servers: servers.checked, repos: repos.into_iter().flatten().collect(), ui })
}

struct Resolve<'t> {
    report: Report<'t>,
    folder: PathBuf,
    home: Option<PathBuf>,
}

/// The keys of a repo that need nothing but themselves to be checked.
#[derive(Default)]
struct Rest {
    exclude: Checked<Vec<String>>,
    include: Checked<Vec<String>>,
    max_file_size: Checked<u64>,
    drift: Checked<DriftPolicy>,
    history: Checked<HistoryDepth>,
}

/// A value that is fit for use, or none: then its problem has been told, so nothing depends on it.
struct Checked<T>(Option<T>);

impl<T> Default for Checked<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Clone> Checked<T> {
    fn or(self, default: &Self) -> Option<T> {
        self.0.or_else(|| default.0.clone())
    }
}

struct Servers {
    checked: Vec<ServerConfig>,
    /// Usable names, those of servers with other faults included, so that one fault is told once.
    names: Vec<String>,
    /// Names that are given and cannot be used, which has been told.
    unfit: Vec<String>,
    /// Every server has a name, usable or not: one that is nowhere is not meant to be.
    complete: bool,
}

impl Resolve<'_> {
    fn servers(&mut self, raw: &Raw) -> Servers {
        let mut servers = Servers {
            checked: Vec::new(),
            names: Vec::new(),
            unfit: Vec::new(),
            complete: raw.servers_complete,
        };
        let mut first: HashMap<&str, &Given<String>> = HashMap::new();
        for server in &raw.servers {
            let name =
                self.report.required(&server.name, &server.header, server.damaged, "name", "[[server]]");
            let given = name.is_some();
            let name = name.filter(|name| {
                let fits = self.checked_name(name, "server name");
                servers.unfit.extend((!fits).then(|| name.value.clone()));
                fits
            });
            let url = self.report.required(&server.url, &server.header, server.damaged, "url", "[[server]]");
            let url = url.and_then(|url| self.url(url));
            let Some(name) = name else {
                servers.complete &= given;
                continue;
            };
            if let Some(first) = first.get(name.value.as_str()) {
                self.duplicate("server name", name, first.span.clone());
                continue;
            }
            first.insert(&name.value, name);
            servers.names.push(name.value.clone());
            if let Some(url) = url {
                servers.checked.push(ServerConfig { name: name.value.clone(), url });
            }
        }
        if raw.servers.is_empty() && raw.servers_complete {
            let problem = Problem::new(None, "there is no [[server]]: nothing to mirror to")
                .hint("add one: [[server]] with `name = \"gpu\"` and `url = \"http://localhost:7420\"`, or `url = \"embedded:DIR\"` to try it out");
            self.report.push_file(problem);
        }
        servers
    }

    /// One entry for each raw repo, `None` where it has problems.
    fn repos(&mut self, raw: &Raw, servers: &Servers) -> Vec<Option<RepoConfig>> {
        let default_servers = match &raw.defaults.servers {
            Slot::Absent => Slot::Absent,
            Slot::Broken => Slot::Broken,
            Slot::Given(given) => match self.server_names(given, servers) {
                Some(value) => Slot::Given(Given { value, span: given.span.clone() }),
                None => Slot::Broken,
            },
        };
        let default_workspace = match raw.defaults.workspace.given() {
            Some(given) if !self.checked_workspace(given) => Slot::Broken,
            _ => raw.defaults.workspace.clone(),
        };
        let default_rest = self.rest(&raw.defaults);
        if raw.repos.is_empty() && raw.repos_complete {
            let problem = Problem::new(None, "there is no [[repo]]: nothing to mirror")
                .hint("add one: [[repo]] with `path = \"/path/to/a/git/checkout\"`");
            self.report.push_file(problem);
        }
        let mut first: HashMap<String, Range<usize>> = HashMap::new();
        raw.repos
            .iter()
            .map(|repo| {
                let path = self.report.required(&repo.path, &repo.header, repo.damaged, "path", "[[repo]]");
                let path = path.and_then(|path| self.repo_path(path));
                let name = self.repo_name(repo, path.as_deref());
                let servers = self.repo_servers(repo, &default_servers, servers);
                let workspace = self.repo_workspace(repo, &default_workspace, name.as_ref());
                let rest = self.rest(&repo.shared);
                let name = name?;
                if let Some(first) = first.get(&name.value) {
                    self.duplicate("repo name", &name, first.clone());
                    return None;
                }
                first.insert(name.value.clone(), name.span.clone());
                Some(RepoConfig {
                    name: name.value,
                    path: path?,
                    servers: servers?,
                    workspace: workspace?,
                    exclude: rest.exclude.or(&default_rest.exclude).unwrap_or_default(),
                    include: rest.include.or(&default_rest.include).unwrap_or_default(),
                    max_file_size: rest
                        .max_file_size
                        .or(&default_rest.max_file_size)
                        .unwrap_or(MAX_FILE_SIZE),
                    drift: rest.drift.or(&default_rest.drift).unwrap_or_default(),
                    history: rest.history.or(&default_rest.history).unwrap_or_default(),
                })
            })
            .collect()
    }

    fn rest(&mut self, shared: &RawShared) -> Rest {
        Rest {
            exclude: Checked(shared.exclude.given().map(|given| self.patterns("exclude", given))),
            include: Checked(shared.include.given().map(|given| self.patterns("include", given))),
            max_file_size: Checked(shared.max_file_size.given().and_then(|given| self.file_size(given))),
            drift: Checked(shared.drift.given().and_then(|given| self.drift(given))),
            history: Checked(shared.history.given().and_then(|given| self.history(given))),
        }
    }

    /// Patterns in gitignore syntax, where every text that is one line means something.
    fn patterns(&mut self, key: &str, given: &Given<Vec<Given<String>>>) -> Vec<String> {
        for pattern in &given.value {
            let fault = match pattern.value.as_str() {
                text if text.contains(['\n', '\r', '\0']) => "holds a line break or a NUL character",
                text if text.trim().is_empty() => "is empty",
                text if text.starts_with('#') => "is a comment in gitignore syntax and matches nothing",
                _ => continue,
            };
            self.report.push(pattern.span.clone(), |place| {
                let hint =
                    "write one pattern as it would stand in a .gitignore, such as \"*.mp4\" or \"/data/\"";
                Problem::new(place, format!("a pattern in `{key}` {fault}")).hint(hint)
            });
        }
        given.value.iter().map(|pattern| pattern.value.clone()).collect()
    }

    fn file_size(&mut self, given: &Given<String>) -> Option<u64> {
        let fault = match parse_size(&given.value) {
            Ok(size) if (1..=FILE_BYTES).contains(&size) => return Some(size),
            Ok(_) => "`max-file-size` lies outside 1B to 64GiB".into(),
            Err(error) => format!("`max-file-size` is not a size: {error}"),
        };
        self.report.push(given.span.clone(), |place| {
            Problem::new(place, fault).hint("write for example `max-file-size = \"1GiB\"`")
        });
        None
    }

    fn drift(&mut self, given: &Given<String>) -> Option<DriftPolicy> {
        match given.value.as_str() {
            "overwrite" => Some(DriftPolicy::Overwrite),
            "hold" => Some(DriftPolicy::Hold),
            other => {
                self.report.push(given.span.clone(), |place| {
                    Problem::new(place, format!("{} is no policy for drift", quote(other)))
                        .allowed(other, ["overwrite", "hold"])
                });
                None
            }
        }
    }

    fn history(&mut self, given: &Given<RawHistory>) -> Option<HistoryDepth> {
        let fault = match &given.value {
            RawHistory::Word(word) if word == "full" => return Some(HistoryDepth::Full),
            RawHistory::Number(Some(commits)) if *commits > 0 => {
                return Some(HistoryDepth::Commits(*commits));
            }
            RawHistory::Word(word) => format!("{} is no depth for the history", quote(word)),
            RawHistory::Number(_) => "`history` is no number of commits from 1 on".into(),
        };
        self.report.push(given.span.clone(), |place| {
            Problem::new(place, fault)
                .hint("write `history = \"full\"` or a number of commits, such as `history = 1000`")
        });
        None
    }

    /// Two targets on one workspace would undo each other's writes for ever.
    fn clashes(&mut self, raw: &Raw, repos: &[Option<RepoConfig>], servers: &[ServerConfig]) {
        let mut holders: HashMap<(&ServerUrl, &str), TargetId> = HashMap::new();
        for (raw, repo) in raw.repos.iter().zip(repos) {
            let Some(repo) = repo else { continue };
            let mut told = false;
            for server in servers.iter().filter(|s| repo.servers.contains(&s.name)) {
                let target = TargetId { repo: repo.name.clone(), server: server.name.clone() };
                let place = (&server.url, repo.workspace.as_str());
                let Some(holder) = holders.get(&place) else {
                    holders.insert(place, target);
                    continue;
                };
                if !told {
                    let span = raw.shared.workspace.given().map_or(&raw.header, |given| &given.span).clone();
                    let message = format!(
                        "`{target}` and `{holder}` would write the same workspace `{}`",
                        repo.workspace
                    );
                    let hint = if holder.repo == target.repo {
                        "both servers have the same url; name only one of them in `servers`"
                    } else {
                        "give one of the two repos its own `workspace`"
                    };
                    self.report.push(span, |place| Problem::new(place, message).hint(hint));
                    told = true;
                }
            }
        }
    }

    fn duplicate(&mut self, what: &str, second: &Given<String>, first: Range<usize>) {
        let line = self.report.place(first).line;
        let message = format!("the {what} {} is taken already, on line {line}", quote(&second.value));
        self.report.push(second.span.clone(), |place| {
            Problem::new(place, message).hint("give each its own `name`; target ids are made of them")
        });
    }

    fn checked_name(&mut self, name: &Given<String>, what: &str) -> bool {
        let ok = is_plain(&name.value);
        if !ok {
            let message = format!("the {what} {} is not made of A-Z a-z 0-9 . _ -", quote(&name.value));
            let plain = plain(&name.value);
            self.report.push(name.span.clone(), |place| {
                let problem = Problem::new(place, message);
                if plain.is_empty() {
                    problem
                } else {
                    problem.hint(format!("write for example \"{plain}\""))
                }
            });
        }
        ok
    }

    fn checked_workspace(&mut self, workspace: &Given<String>) -> bool {
        if !self.checked_name(workspace, "workspace") {
            return false;
        }
        let error = RelPath::new(&workspace.value).err();
        if error.is_some() {
            let message =
                format!("{} cannot be the name of a directory for a workspace", quote(&workspace.value));
            self.report.push(workspace.span.clone(), |place| {
                Problem::new(place, message).hint("set `workspace` to another name")
            });
        }
        error.is_none()
    }

    fn url(&mut self, given: &Given<String>) -> Option<ServerUrl> {
        match url::parse(&given.value) {
            Ok(RawUrl::Done(url)) => Some(url),
            Ok(RawUrl::Embedded(dir)) => self.directory(dir, &given.span).map(ServerUrl::Embedded),
            Ok(RawUrl::Unix(path)) => self.directory(path, &given.span).map(ServerUrl::Unix),
            Err(error) => {
                self.report.push(given.span.clone(), |place| {
                    let mut problem = Problem::new(place, error.message).hint(error.hint);
                    problem.allowed = error.allowed;
                    problem
                });
                None
            }
        }
    }

    fn repo_path(&mut self, given: &Given<String>) -> Option<PathBuf> {
        if given.value.is_empty() {
            self.report.push(given.span.clone(), |place| {
                Problem::new(place, "`path` is empty").hint("write \".\" for the folder of this file")
            });
            return None;
        }
        self.directory(&given.value, &given.span)
    }

    /// A path relative to the config file's folder, `~` expanded; `..` stays, since only the file system knows
    /// what it means behind a symlink.
    fn directory(&mut self, text: &str, span: &Range<usize>) -> Option<PathBuf> {
        let mut fail = |message: &str, hint: &str| {
            self.report.push(span.clone(), |place| Problem::new(place, message).hint(hint));
            None
        };
        if text.contains('\0') {
            return fail("a path cannot hold a NUL character", "remove it");
        }
        let path = match text.strip_prefix('~') {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => match &self.home {
                Some(home) => home.join(rest.trim_start_matches('/')),
                None => return fail("`~` means nothing here: $HOME is not set", "write the whole path"),
            },
            Some(_) => {
                return fail("`~` stands only for your own home directory", "write `~/..` or the whole path");
            }
            None => self.folder.join(text),
        };
        Some(path.components().collect())
    }

    fn repo_name(&mut self, repo: &RawRepo, path: Option<&Path>) -> Option<Given<String>> {
        match &repo.name {
            Slot::Given(name) => self.checked_name(name, "repo name").then(|| name.clone()),
            Slot::Broken => None,
            Slot::Absent => {
                let path = path?;
                let name = directory_name(path).map(|name| plain(&name));
                if name.is_none() {
                    let message = format!("{} has no name to take for the repo's", path.display());
                    self.report.push(repo.header.clone(), |place| {
                        Problem::new(place, message).hint("add `name = \"..\"` below this line")
                    });
                }
                name.map(|value| Given { value, span: repo.header.clone() })
            }
        }
    }

    fn repo_servers(
        &mut self,
        repo: &RawRepo,
        default: &Slot<Vec<String>>,
        servers: &Servers,
    ) -> Option<Vec<String>> {
        match (&repo.shared.servers, default) {
            (Slot::Given(given), _) => self.server_names(given, servers),
            (Slot::Broken, _) | (Slot::Absent, Slot::Broken) => None,
            (Slot::Absent, Slot::Given(default)) => Some(default.value.clone()),
            (Slot::Absent, Slot::Absent) => match servers.names.as_slice() {
                [only] if servers.complete && servers.unfit.is_empty() => Some(vec![only.clone()]),
                [] => None,
                names => {
                    if servers.complete && servers.unfit.is_empty() && !repo.damaged {
                        let message = format!(
                            "`servers` is missing, and there are {} servers to choose from",
                            names.len()
                        );
                        let every = names.iter().map(|n| format!("\"{n}\"")).collect::<Vec<_>>().join(", ");
                        self.report.push(repo.header.clone(), |place| {
                            Problem::new(place, message)
                                .hint(format!("add for example `servers = [{every}]`"))
                        });
                    }
                    None
                }
            },
        }
    }

    fn server_names(&mut self, given: &Given<Vec<Given<String>>>, servers: &Servers) -> Option<Vec<String>> {
        if given.value.is_empty() {
            self.report.push(given.span.clone(), |place| {
                Problem::new(place, "`servers` is empty")
                    .allowed("", &servers.names)
                    .hint("name at least one server")
            });
            return None;
        }
        let mut named = vec![false; servers.names.len()];
        let mut ok = true;
        for pattern in &given.value {
            let glob = match Glob::new(&pattern.value) {
                Ok(glob) => glob.compile_matcher(),
                Err(error) => {
                    let message = format!("{} is not a glob: {}", quote(&pattern.value), error.kind());
                    self.report.push(pattern.span.clone(), |place| Problem::new(place, message));
                    ok = false;
                    continue;
                }
            };
            let mut any = false;
            for (name, named) in servers.names.iter().zip(&mut named) {
                if glob.is_match(name) {
                    (any, *named) = (true, true);
                }
            }
            if !any {
                ok = false;
                if servers.complete && !servers.unfit.iter().any(|name| glob.is_match(name)) {
                    let message = format!("no server is named {}", quote(&pattern.value));
                    self.report.push(pattern.span.clone(), |place| {
                        Problem::new(place, message).allowed(&pattern.value, &servers.names)
                    });
                }
            }
        }
        let names = servers.names.iter().zip(named).filter(|(_, named)| *named).map(|(name, _)| name.clone());
        ok.then(|| names.collect())
    }

    fn repo_workspace(
        &mut self,
        repo: &RawRepo,
        default: &Slot<String>,
        name: Option<&Given<String>>,
    ) -> Option<String> {
        match (&repo.shared.workspace, default) {
            (Slot::Given(given), _) => self.checked_workspace(given).then(|| given.value.clone()),
            (Slot::Broken, _) | (Slot::Absent, Slot::Broken) => None,
            (Slot::Absent, Slot::Given(default)) => Some(default.value.clone()),
            (Slot::Absent, Slot::Absent) => {
                name.filter(|n| self.checked_workspace(n)).map(|n| n.value.clone())
            }
        }
    }
}

fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.chars().all(is_plain_char)
}

fn plain(text: &str) -> String {
    text.chars().map(|c| if is_plain_char(c) { c } else { '-' }).collect()
}

fn is_plain_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

/// The last component once `..` is taken at its word: good enough for a name, not for a path.
fn directory_name(path: &Path) -> Option<String> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::ParentDir => {
                names.pop();
            }
            _ => {}
        }
    }
    names.pop().map(|name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests;
