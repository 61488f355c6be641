//! `init`: the repository here becomes part of the configuration.
//!
//! The new text is made first, whole, and checked as any configuration is; only then is it written, in
//! one rename. What stood in the file stays byte for byte: tables are added at its end.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use gitsync_core::config::{self, Config, DEFAULT_PORT, RepoConfig, ServerConfig, ServerUrl};
use gitsync_core::repo::{OpenError, Repo};

use super::{Failure, chain, print};
use crate::cli::Cli;
use crate::exit::Exit;

/// The head of a configuration that we begin.
const HEADER: &str = "\
# What gitsync mirrors, and where to. `gitsync-tui check --connect` says whether it is fit to run.
# Relative paths are relative to the folder of this file; ~/ is your home directory.

# A server is a place that mirrors are kept in: `http://localhost:PORT` is a gitsync-server on this
# machine or at the end of a tunnel (`ssh -L 7420:localhost:7420 HOST`), `unix:PATH` its socket,
# `embedded:DIR` a directory served by gitsync-tui itself.
";
/// Above the first repo of a configuration that we begin.
const REPO_HEADER: &str = "
# A repo is a git checkout that is mirrored: tracked files and untracked ones git does not ignore.
# Further keys: workspace, exclude = [\"*.mp4\"], include = [\".env.local\"], max-file-size = \"1GiB\",
# drift = \"overwrite\" or \"hold\", history = \"full\" or a number of commits.
";

/// What has to be added to a configuration.
#[derive(Debug, PartialEq, Eq)]
enum Addition {
    /// The repository is in it already, under this name.
    Nothing(String),
    Text {
        /// To stand at the end of the file.
        tables: String,
        repo: String,
        server: Option<String>,
    },
}

pub fn run(cli: &Cli, server: Option<&str>, stdout: bool) -> Result<Exit, Failure> {
    let located = config::locate(cli.config.as_deref(), |name| std::env::var_os(name))
        .map_err(|e| Failure::new(Exit::Config, e.to_string()))?;
    let here = std::env::current_dir()
        .map_err(|e| Failure::new(Exit::Incomplete, format!("cannot tell the current directory: {e}")))?;
    let repo = Repo::open(&here).map_err(|e| {
        let next = match e {
            OpenError::Read { .. } => "\nmake it readable for your user",
            // Says itself what to run.
            OpenError::Unsupported { .. } => "",
            _ => "\nrun this in a git checkout; `git init` makes one",
        };
        Failure::new(Exit::Incomplete, format!("{}{next}", chain(&e)))
    })?;
    let Some(workdir) = repo.workdir.to_str() else {
        let message = format!(
            "{} is not UTF-8, and a configuration is\nmove the repository to another path",
            repo.workdir.display()
        );
        return Err(Failure::new(Exit::Incomplete, message));
    };
    // Through links, so that a rename replaces the file and not a link to it.
    let file = located.file.canonicalize().unwrap_or(located.file);
    let file = std::path::absolute(&file).unwrap_or(file);
    let old = match fs::read_to_string(&file) {
        Ok(text) => Some(text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => {
            let message = format!(
                "cannot read {}: {e}\nmake it readable for your user, or name another with --config FILE",
                file.display()
            );
            return Err(Failure::new(Exit::Config, message));
        }
    };
    let config = match &old {
        None => None,
        Some(text) => Some(Config::parse(text, &file).map_err(|errors| {
            let message = format!("{errors}\nput that right first; nothing was changed");
            Failure::new(Exit::Config, message)
        })?),
    };
    let wanted = server.map(|server| absolute(server, &here));
    let addition = addition(config.as_ref(), Path::new(workdir), wanted.as_deref())?;
    let (tables, repo, server) = match addition {
        Addition::Text { tables, repo, server } => (tables, repo, server),
        Addition::Nothing(_) if stdout => {
            return Ok(print(old.as_deref().unwrap_or_default(), Exit::Done));
        }
        Addition::Nothing(name) => {
            let told = format!("{workdir} is in {} already, as {name}\n{}", file.display(), next(cli));
            return Ok(print(&told, Exit::Done));
        }
    };
    let text = joined(old.as_deref(), &tables);
    // Nothing is written that would be refused when it is read.
    Config::parse(&text, &file).map_err(|errors| {
        let message = format!(
            "{errors}\nthe file would be refused with these lines, so nothing was changed:\n\n{tables}"
        );
        Failure::new(Exit::Config, message)
    })?;
    if stdout {
        return Ok(print(&text, Exit::Done));
    }
    write(&file, &text).map_err(|e| {
        let message = format!(
            "cannot write {}: {e}\nmake its directory writable for your user, or name another file with --config FILE",
            file.display()
        );
        Failure::new(Exit::Config, message)
    })?;
    let did = if old.is_some() { "added to" } else { "made" };
    let server = server.map_or_else(String::new, |server| format!(" and server {server}"));
    let told = format!("{did} {}: repo {repo} ({workdir}){server}\n{}", file.display(), next(cli));
    Ok(print(&told, Exit::Done))
}

/// The tables that `config` lacks. `server` is a name or a url.
fn addition(config: Option<&Config>, workdir: &Path, server: Option<&str>) -> Result<Addition, Failure> {
    let repos = config.map_or(&[][..], |config| &config.repos);
    let servers = config.map_or(&[][..], |config| &config.servers);
    let same = |path: &Path| path == workdir || Repo::open(path).is_ok_and(|repo| repo.workdir == *workdir);
    if let Some(repo) = repos.iter().find(|repo| same(&repo.path)) {
        return match server {
            Some(server) => more_servers(repo, servers, server),
            None => Ok(Addition::Nothing(repo.name.clone())),
        };
    }
    let url = match server {
        Some(text) => match servers.iter().find(|known| known.name == text) {
            Some(known) => known.url.clone(),
            None => read_url(text)?,
        },
        None => match servers {
            [only] => only.url.clone(),
            [] => ServerUrl::Http { host: "localhost".into(), port: DEFAULT_PORT },
            several => {
                let names: Vec<&str> = several.iter().map(|server| server.name.as_str()).collect();
                let message = format!(
                    "there are {} servers: say which with --server, by name ({}) or url",
                    several.len(),
                    names.join(", ")
                );
                return Err(Failure::new(Exit::Usage, message));
            }
        },
    };
    let mut tables = String::new();
    let known = servers.iter().find(|known| known.url == url).map(|known| known.name.clone());
    let added = known.is_none();
    let server = known.unwrap_or_else(|| free(&server_name(&url), |n| servers.iter().any(|s| s.name == n)));
    if added {
        tables += &format!("[[server]]\nname = {}\nurl = {}\n", quoted(&server), quoted(&url.to_string()));
    }
    // Workspaces are named as their repos are, so a name must be free as both.
    let taken = |name: &str| repos.iter().any(|repo| repo.name == name || repo.workspace == name);
    let dir = workdir.file_name().map_or_else(|| "repo".into(), |name| name.to_string_lossy());
    let repo = free(&plain(&dir), taken);
    if config.is_none() {
        tables += REPO_HEADER;
    } else if added {
        tables.push('\n');
    }
    tables += &format!(
        "[[repo]]\nname = {}\npath = {}\nservers = [{}]\n",
        quoted(&repo),
        quoted(&workdir.to_string_lossy()),
        quoted(&server)
    );
    // `[defaults.repo]` may name one workspace for all.
    if repos.iter().any(|other| other.workspace != other.name) {
        tables += &format!("workspace = {}\n", quoted(&repo));
    }
    Ok(Addition::Text { tables, repo, server: added.then_some(server) })
}

/// A repo that is there stays as it is written, so a server it does not have yet is for a person to add.
fn more_servers(repo: &RepoConfig, servers: &[ServerConfig], server: &str) -> Result<Addition, Failure> {
    let known = servers.iter().find(|known| known.name == server);
    let url = known.map_or_else(|| read_url(server), |known| Ok(known.url.clone()))?;
    let known = known.or_else(|| servers.iter().find(|known| known.url == url));
    if known.is_some_and(|known| repo.servers.contains(&known.name)) {
        return Ok(Addition::Nothing(repo.name.clone()));
    }
    let name = known.map_or_else(
        || free(&server_name(&url), |n| servers.iter().any(|s| s.name == n)),
        |known| known.name.clone(),
    );
    let names: Vec<String> = repo.servers.iter().chain([&name]).map(|name| quoted(name)).collect();
    let mut message = format!(
        "the config has this repository already, as {}, and what is written there is not changed\n\
         to mirror it to {server} too, give that [[repo]] this line: servers = [{}]",
        repo.name,
        names.join(", ")
    );
    if known.is_none() {
        message += &format!(
            "\nand add this server:\n[[server]]\nname = {}\nurl = {}",
            quoted(&name),
            quoted(&url.to_string())
        );
    }
    Err(Failure::new(Exit::Incomplete, message))
}

/// Reads a url by the rules of the configuration, which are the only ones.
fn read_url(text: &str) -> Result<ServerUrl, Failure> {
    let probe =
        format!("[[server]]\nname = \"x\"\nurl = {}\n[[repo]]\nname = \"x\"\npath = \"/x\"\n", quoted(text));
    match Config::parse(&probe, Path::new("/init")) {
        Ok(config) => Ok(config.servers[0].url.clone()),
        Err(errors) => {
            let problem = &errors.problems[0];
            let hint = problem.hint.as_ref().map_or_else(String::new, |hint| format!("\n{hint}"));
            Err(Failure::new(Exit::Usage, format!("--server {text}: {}{hint}", problem.message)))
        }
    }
}

/// Paths on the command line are meant from here, those in a configuration from its folder.
fn absolute(url: &str, here: &Path) -> String {
    for scheme in ["embedded:", "unix:"] {
        if let Some(path) = url.strip_prefix(scheme)
            && !path.is_empty()
            && !path.starts_with(['/', '~'])
            && let Some(path) = real(&here.join(path)).to_str()
        {
            return format!("{scheme}{path}");
        }
    }
    url.to_owned()
}

/// Without `..` where that can be told: behind a link only the file system knows what it means.
fn real(path: &Path) -> PathBuf {
    let above = path.parent().and_then(|above| above.canonicalize().ok());
    match (above, path.file_name()) {
        (Some(above), Some(name)) => above.join(name),
        _ => path.components().collect(),
    }
}

fn server_name(url: &ServerUrl) -> String {
    match url {
        ServerUrl::Embedded(dir) => {
            plain(&dir.file_name().map_or_else(|| "embedded".into(), |name| name.to_string_lossy()))
        }
        ServerUrl::Http { .. } | ServerUrl::Unix(_) => "local".into(),
    }
}

fn plain(text: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = text.chars().map(|c| if fits(c) { c } else { '-' }).collect();
    // `.`, `..` and `.git` cannot be a workspace.
    if name.starts_with('.') { format!("repo{name}") } else { name }
}

/// `name`, or with the first number behind it that makes it one of its own.
fn free(name: &str, taken: impl Fn(&str) -> bool) -> String {
    let numbered = (2..).map(|n| format!("{name}-{n}"));
    let mut names = std::iter::once(name.to_owned()).chain(numbered);
    names.find(|name| !taken(name)).expect("numbers do not run out")
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted += &format!("\\u{:04X}", u32::from(c)),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

fn joined(old: Option<&str>, tables: &str) -> String {
    match old {
        None => format!("{HEADER}{tables}"),
        Some(old) => {
            let gap = match old {
                _ if old.is_empty() => "",
                _ if old.ends_with('\n') => "\n",
                _ => "\n\n",
            };
            format!("{old}{gap}{tables}")
        }
    }
}

/// Writes a file whole or not at all; an old one keeps its permissions.
fn write(file: &Path, text: &str) -> io::Result<()> {
    let dir = file.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let next = dir.join(format!(".{name}.{}", std::process::id()));
    let mut staged = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&next)?;
    let written = staged
        .write_all(text.as_bytes())
        .and_then(|()| match file.metadata() {
            Ok(old) => staged.set_permissions(fs::Permissions::from_mode(old.permissions().mode())),
            Err(_) => Ok(()),
        })
        .and_then(|()| staged.sync_all())
        .and_then(|()| fs::rename(&next, file));
    if written.is_err() {
        // The failure itself is what is told.
        let _ = fs::remove_file(&next);
    }
    written
}

fn next(cli: &Cli) -> String {
    let config = cli.config.as_ref().map_or_else(String::new, |f| format!(" --config {}", f.display()));
    format!("next: gitsync-tui{config} check --connect\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Config {
        Config::parse(text, Path::new("/c/config.toml")).unwrap()
    }

    fn tables(old: Option<&str>, dir: &str, server: Option<&str>) -> String {
        let config = old.map(parse);
        match addition(config.as_ref(), Path::new(dir), server).unwrap() {
            Addition::Text { tables, .. } => {
                parse(&joined(old, &tables));
                tables
            }
            nothing => panic!("{nothing:?}"),
        }
    }

    const ONE: &str = "# mine\n[[server]]\nname = \"gpu\"\nurl = \"http://localhost\"\n[[repo]]\npath = \"/src/app\"\nservers = [\"gpu\"]\n[ui]\n";

    #[test]
    fn a_first_configuration_is_commented_and_whole() {
        let made = joined(None, &tables(None, "/src/my app", None));
        let config = parse(&made);
        assert!(made.starts_with("# What gitsync mirrors"), "{made}");
        assert_eq!(config.servers[0].url.to_string(), "http://localhost:7420");
        assert_eq!(
            (config.repos[0].name.as_str(), config.repos[0].path.to_str()),
            ("my-app", Some("/src/my app"))
        );
    }

    #[test]
    fn what_is_there_is_used_and_stays() {
        assert_eq!(
            tables(Some(ONE), "/src/lib", None),
            "[[repo]]\nname = \"lib\"\npath = \"/src/lib\"\nservers = [\"gpu\"]\n"
        );
        // The url of a server that is known names that server.
        for server in ["gpu", "http://localhost:7420/"] {
            assert!(tables(Some(ONE), "/src/lib", Some(server)).ends_with("servers = [\"gpu\"]\n"));
        }
        let more = tables(Some(ONE), "/other/app", Some("embedded:/mirrors/gpu"));
        assert!(
            more.starts_with("[[server]]\nname = \"gpu-2\"\nurl = \"embedded:/mirrors/gpu\"\n"),
            "{more}"
        );
        assert!(more.contains("[[repo]]\nname = \"app-2\""), "{more}");
        assert!(joined(Some(ONE), &more).starts_with(ONE));
        assert_eq!(joined(Some("a = 1"), "b\n"), "a = 1\n\nb\n");
        let same = addition(Some(&parse(ONE)), Path::new("/src/app"), None).unwrap();
        assert_eq!(same, Addition::Nothing("app".into()));
    }

    #[test]
    fn a_server_for_a_repo_that_is_there_is_not_passed_over() {
        let two = format!("{ONE}[[server]]\nname = \"b\"\nurl = \"unix:/b\"\n");
        let add = |server| addition(Some(&parse(&two)), Path::new("/src/app"), Some(server));
        for has in ["gpu", "http://localhost:7420"] {
            assert_eq!(add(has).unwrap(), Addition::Nothing("app".into()));
        }
        for (server, says) in [
            ("b", "servers = [\"gpu\", \"b\"]"),
            ("unix:/b", "servers = [\"gpu\", \"b\"]"),
            (
                "http://localhost:9",
                "servers = [\"gpu\", \"local\"]\nand add this server:\n[[server]]\nname = \"local\"\nurl = \"http://localhost:9\"",
            ),
            ("ftp://x", "no scheme"),
        ] {
            let message = add(server).unwrap_err().message;
            assert!(message.contains(says), "{message}");
        }
    }

    #[test]
    fn what_cannot_be_guessed_is_asked() {
        let two = format!("{ONE}[[server]]\nname = \"b\"\nurl = \"unix:/b\"\n");
        let failure = addition(Some(&parse(&two)), Path::new("/src/lib"), None).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.message.contains("by name (gpu, b)"), "{}", failure.message);
        let failure = addition(None, Path::new("/src/lib"), Some("ftp://x")).unwrap_err();
        assert!(failure.message.contains("no scheme"), "{}", failure.message);
    }

    #[test]
    fn odd_names_are_quoted() {
        let made = tables(None, "/src/a\"b\\c\td", Some("embedded:/m"));
        let config = parse(&made);
        assert_eq!(config.repos[0].path.to_str(), Some("/src/a\"b\\c\td"));
        assert_eq!(absolute("embedded:x/../y", Path::new("/h")), "embedded:/h/x/../y");
        assert_eq!(absolute("embedded:~/y", Path::new("/h")), "embedded:~/y");
        assert_eq!(absolute("http://x", Path::new("/h")), "http://x");
    }
}
