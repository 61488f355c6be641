//! `check`: is everything fit to run? Looks at the configuration, the repositories and, when asked, the
//! servers; changes nothing.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use gitsync_core::config::{Config, RepoConfig, ServerConfig, ServerUrl};
use gitsync_core::mirror::visit::Visit;
use gitsync_core::model::path::escape;
use gitsync_core::model::{ErrorCode, ErrorReport};
use gitsync_core::repo::Repo;
use gitsync_core::transport::{self, EmbeddedHost};
use gitsync_core::wire::PROTOCOL;
use serde_json::{Value, json};

use super::{Failure, load, print, print_json};
use crate::cli::Cli;
use crate::dashboard::format::plural;
use crate::embedded::Embedded;
use crate::exit::Exit;
use crate::headless::json::ms;
use crate::{SOFTWARE, hints};

/// What was found of one repo or server: facts for a person, or what is wrong and what to do.
struct Finding {
    name: String,
    place: String,
    found: Result<Facts, ErrorReport>,
}

struct Facts {
    text: String,
    json: Value,
}

pub fn run(cli: &Cli, json: bool, connect: bool) -> Result<Exit, Failure> {
    let config = match load(cli) {
        Ok(config) => config,
        Err(failure) if json => {
            let error = json!({ "v": 1, "ok": false, "config": { "ok": false, "error": failure.message } });
            return Ok(print_json(&error, failure.exit));
        }
        Err(failure) => return Err(failure),
    };
    let repos: Vec<Finding> = config.repos.iter().map(repo).collect();
    let servers = if connect { greet(&config)? } else { Vec::new() };
    let exit = exit(&repos, &servers);
    if json {
        let listed = |findings: &[Finding]| findings.iter().map(Finding::json).collect::<Vec<_>>();
        let value = json!({
            "v": 1,
            "ok": exit == Exit::Done,
            "config": { "ok": true, "file": config.file.display().to_string(), "targets": config.targets().len() },
            "repos": listed(&repos),
            "servers": if connect { listed(&servers).into() } else { Value::Null },
        });
        return Ok(print_json(&value, exit));
    }
    let mut text = format!(
        "ok    config {}: {}\n",
        config.file.display(),
        plural(config.targets().len() as u64, "target")
    );
    for (kind, findings) in [("repo", &repos), ("server", &servers)] {
        text.extend(findings.iter().map(|finding| finding.line(kind)));
    }
    Ok(print(&text, exit))
}

/// As for a run: no server at all is told before one of several, and before a repo.
fn exit(repos: &[Finding], servers: &[Finding]) -> Exit {
    let fails = |finding: &&Finding| finding.found.is_err();
    let down = servers.iter().filter(fails).count();
    if down > 0 && down == servers.len() {
        return Exit::Unreached;
    }
    if down > 0 || repos.iter().any(|repo| repo.found.is_err()) {
        return Exit::Incomplete;
    }
    Exit::Done
}

fn repo(config: &RepoConfig) -> Finding {
    let open = || -> Result<Facts, ErrorReport> {
        let report = |e: &dyn std::error::Error| ErrorReport::of(ErrorCode::Repository, e, false);
        let repo = Repo::open(&config.path).map_err(|e| report(&e))?;
        let head = repo.head().map_err(|e| report(&e))?;
        fs::read_dir(&repo.workdir).map_err(|e| report(&e))?;
        let branch = head.branch.as_deref().map(escape);
        let text = match &branch {
            Some(branch) => format!("branch {branch}"),
            None => "a detached HEAD".into(),
        };
        let json = json!({ "workdir": repo.workdir.display().to_string(), "branch": branch });
        Ok(Facts { text, json })
    };
    Finding { name: config.name.clone(), place: config.path.display().to_string(), found: open() }
}

/// Greets every server, all at a time.
fn greet(config: &Config) -> Result<Vec<Finding>, Failure> {
    let runtime =
        crate::runtime().map_err(|e| Failure::new(Exit::Bug, format!("error: cannot start threads: {e}")))?;
    Ok(runtime.block_on(join_all(config.servers.iter().map(server))))
}

async fn server(config: &ServerConfig) -> Finding {
    let found = match &config.url {
        // Greeting one would make its directory.
        ServerUrl::Embedded(_) => {
            Ok(facts(PROTOCOL, &format!("{SOFTWARE} (embedded)"), Duration::ZERO, "in this process"))
        }
        url => visit(url).await,
    };
    Finding { name: config.name.clone(), place: config.url.to_string(), found }
}

async fn visit(url: &ServerUrl) -> Result<Facts, ErrorReport> {
    let embedded: Arc<dyn EmbeddedHost> = Arc::new(Embedded);
    let channel =
        transport::channel(url, &embedded).map_err(|e| ErrorReport::of(ErrorCode::Unreachable, &e, false))?;
    let mut visit = Visit::open(channel, SOFTWARE).await?;
    let rtt = visit.rtt().await?;
    let software = escape(visit.welcome.software.as_bytes());
    Ok(facts(visit.welcome.protocol, &software, rtt, &format!("rtt {:.1} ms", ms(rtt))))
}

fn facts(protocol: u32, software: &str, rtt: Duration, told: &str) -> Facts {
    Facts {
        text: format!("{software}, protocol {protocol}, {told}"),
        json: json!({ "protocol": protocol, "software": software, "rtt_ms": ms(rtt) }),
    }
}

impl Finding {
    fn line(&self, kind: &str) -> String {
        let (name, place) = (&self.name, &self.place);
        match &self.found {
            Ok(facts) => format!("ok    {kind} {name} ({place}): {}\n", facts.text),
            Err(error) => format!(
                "wrong {kind} {name} ({place}): {}\n      {}\n",
                error.one_line(),
                hints::next_step_of_task(error.code)
            ),
        }
    }

    fn json(&self) -> Value {
        let mut value = json!({ "name": self.name, "place": self.place, "ok": self.found.is_ok() });
        let more = match &self.found {
            Ok(facts) => facts.json.clone(),
            Err(error) => json!({ "error": {
                "code": error.code.name(),
                "message": error.message,
                "causes": error.causes,
                "hint": hints::next_step_of_task(error.code),
            }}),
        };
        if let (Value::Object(value), Value::Object(more)) = (&mut value, more) {
            value.extend(more);
        }
        value
    }
}
