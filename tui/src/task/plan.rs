//! `plan`: what a sync would send.
//!
//! Looks at each repository once, as a run does, and changes nothing. What a server holds is told only
//! to a session, and a plan opens none: so a plan shows the most that could be sent. How far behind each
//! target is, and with it what would be deleted, is known to a running instance alone; where there is
//! one its word stands beside.

use std::collections::HashMap;
use std::sync::mpsc;

use gitsync_core::config::{self, Config, RepoConfig};
use gitsync_core::model::{ErrorReport, Missing, RelPath, Snapshot, TargetId, WithheldReason};
use gitsync_core::repo::Selection;
use gitsync_core::repo::observer::{Observer, Report};
use serde_json::{Value, json};

use super::{Failure, columns, load, print, print_json};
use crate::cli::{Cli, Globs};
use crate::control::place::Place;
use crate::control::{Request, Verb, client};
use crate::dashboard::format::{bytes, clean, count, plural, withheld_reason};
use crate::exit::Exit;
use crate::hints;

/// Paths that are named as the biggest.
const BIGGEST: usize = 10;
/// Withheld paths that the text names; JSON has all.
const NAMED_PATHS: usize = 10;

/// What a repository holds that a server without any of it would get.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Plan {
    patch_id: String,
    files: u64,
    bytes: u64,
    /// Biggest first.
    biggest: Vec<(RelPath, u64)>,
    withheld: Vec<(RelPath, WithheldReason)>,
}

/// What looking at a repository came to.
type Looked = Result<Plan, Trouble>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Trouble {
    Unreadable(ErrorReport),
    /// A run would stop and ask.
    Braked(Missing),
}

pub fn run(cli: &Cli, globs: &Globs, json: bool) -> Result<Exit, Failure> {
    let config = load(cli)?;
    let targets = globs.choose(&config.targets()).map_err(|message| {
        let names: Vec<String> = config.targets().iter().map(ToString::to_string).collect();
        Failure::new(Exit::NoTarget, format!("{message}\nthe targets are: {}", names.join(", ")))
    })?;
    let running = running(&config);
    let repos = config.repos.iter().filter(|repo| targets.iter().any(|target| target.repo == repo.name));
    let looked: HashMap<&str, Looked> = repos.map(|repo| (repo.name.as_str(), look(repo))).collect();
    let rows: Vec<(&TargetId, &Looked, Option<&Value>)> = targets
        .iter()
        .filter_map(|target| {
            Some((target, looked.get(target.repo.as_str())?, running.get(&target.to_string())))
        })
        .collect();
    let exit = Exit::worst(looked.values().map(|looked| match looked {
        Ok(_) => Exit::Done,
        Err(Trouble::Unreadable(_)) => Exit::Incomplete,
        Err(Trouble::Braked(_)) => Exit::Halted,
    }));
    if json {
        let targets: Vec<Value> = rows.iter().map(|(id, looked, now)| object(id, looked, *now)).collect();
        return Ok(print_json(&json!({ "v": 1, "targets": targets }), exit));
    }
    let text: Vec<String> = rows.iter().map(|(id, looked, now)| paragraph(id, looked, *now)).collect();
    Ok(print(&text.join("\n"), exit))
}

/// What a running instance says of each target; nothing if there is none, or it cannot be asked.
fn running(config: &Config) -> HashMap<String, Value> {
    let place = Place::of(&config.file, |name| std::env::var_os(name));
    let answer = place.ok().and_then(|p| client::ask(&p, &Request::new(Verb::Status, Vec::new())).ok());
    let targets = answer.map(|answer| answer.reply.targets).unwrap_or_default();
    targets.into_iter().filter_map(|t| Some((t["target"].as_str()?.to_owned(), t))).collect()
}

/// Scans one repository.
fn look(repo: &RepoConfig) -> Looked {
    let selection = Selection {
        exclude: repo.exclude.clone(),
        include: repo.include.clone(),
        max_file_size: repo.max_file_size,
    };
    let (sender, reports) = mpsc::channel();
    // The first report that decides is all that is waited for.
    let publish = Box::new(move |report| drop(sender.send(report)));
    let cache_dir = config::cache_dir(|name| std::env::var_os(name));
    let observer = Observer::start(&repo.path, selection, cache_dir.as_deref(), publish).map_err(|e| {
        Trouble::Unreadable(ErrorReport::of(gitsync_core::model::ErrorCode::Repository, &e, false))
    })?;
    let decided = reports.iter().find_map(|report| match report {
        Report::Update(update) => Some(Ok(plan(&update.snapshot))),
        Report::Brake(Some(missing)) => Some(Err(Trouble::Braked(missing))),
        Report::Uprooted(error) | Report::Ended(error) => Some(Err(Trouble::Unreadable(error))),
        _ => None,
    });
    drop(observer);
    decided.unwrap_or_else(|| {
        Err(Trouble::Unreadable(ErrorReport {
            code: gitsync_core::model::ErrorCode::Internal,
            message: "the scan ended without a result".into(),
            causes: Vec::new(),
            retryable: false,
        }))
    })
}

fn plan(snapshot: &Snapshot) -> Plan {
    let mut plan = Plan {
        patch_id: snapshot.id().to_string(),
        files: 0,
        bytes: 0,
        biggest: Vec::new(),
        withheld: snapshot.withheld().iter().map(|(path, why)| (path.clone(), why.clone())).collect(),
    };
    snapshot.root().for_each_leaf(&mut |path, leaf| {
        let size = leaf.signature.size;
        plan.files += 1;
        plan.bytes += size;
        let at = plan.biggest.partition_point(|(_, other)| *other >= size);
        if at < BIGGEST {
            plan.biggest.insert(at, (path, size));
            plan.biggest.truncate(BIGGEST);
        }
    });
    plan
}

fn object(target: &TargetId, looked: &Looked, running: Option<&Value>) -> Value {
    let mut value = json!({ "target": target.to_string() });
    match looked {
        Ok(plan) => {
            let named = plan.biggest.iter();
            value["patch_id"] = plan.patch_id.as_str().into();
            value["files"] = plan.files.into();
            value["bytes"] = plan.bytes.into();
            value["biggest"] =
                named.map(|(path, size)| json!({ "path": path.to_string(), "bytes": size })).collect();
            let withheld = plan.withheld.iter();
            value["withheld"] = withheld
                .map(|(path, why)| json!({ "path": path.to_string(), "reason": why.to_string() }))
                .collect();
        }
        Err(Trouble::Unreadable(error)) => {
            value["error"] = json!({
                "code": error.code.name(),
                "message": error.message,
                "causes": error.causes,
                "hint": hints::next_step_of_task(error.code),
            });
        }
        Err(Trouble::Braked(missing)) => {
            value["brake"] = json!({ "missing": missing.files, "of": missing.of });
        }
    }
    // What a server holds, and so what would go there, only a session is told.
    value["deletes"] = Value::Null;
    value["running"] = running
        .map(|t| json!({ "state": t["state"], "lag": t["lag"], "acked_id": t["acked_id"] }))
        .unwrap_or_default();
    value
}

fn paragraph(target: &TargetId, looked: &Looked, running: Option<&Value>) -> String {
    let mut text = format!("{}\n", clean(&target.to_string()));
    match looked {
        Ok(plan) => {
            text += &format!(
                "  at most {}, {} to send to a server that holds nothing of it\n",
                plural(plan.files, "file"),
                bytes(plan.bytes)
            );
            if !plan.biggest.is_empty() {
                text += "  biggest:\n";
            }
            let rows: Vec<Vec<String>> =
                plan.biggest.iter().map(|(path, size)| vec![bytes(*size), path.to_string()]).collect();
            text.extend(columns(&rows).lines().map(|line| format!("    {line}\n")));
            if !plan.withheld.is_empty() {
                text += &format!("  {} withheld:\n", plural(plan.withheld.len() as u64, "path"));
            }
            for (path, why) in plan.withheld.iter().take(NAMED_PATHS) {
                text += &format!("    {path}: {}\n", withheld_reason(why));
            }
            if plan.withheld.len() > NAMED_PATHS {
                text += &format!("    and {} more\n", plan.withheld.len() - NAMED_PATHS);
            }
        }
        Err(Trouble::Unreadable(error)) => {
            text +=
                &format!("  cannot look: {}\n  {}\n", error.one_line(), hints::next_step_of_task(error.code));
        }
        Err(Trouble::Braked(missing)) => {
            text += &format!(
                "  {} of {} tracked files are missing: a run stops here and asks\n",
                count(missing.files),
                count(missing.of)
            );
        }
    }
    text += &match running {
        Some(t) => format!(
            "  running now: {}, {} behind\n",
            t["state"].as_str().unwrap_or("?"),
            plural(t["lag"]["changes"].as_u64().unwrap_or(0), "path")
        ),
        None => "  not running: what the server holds already, and what would be deleted there, shows when a session starts\n".into(),
    };
    text
}

#[cfg(test)]
mod tests {
    use gitsync_core::model::{ContentId, HashKind, Leaf, Mode, Signature};

    use super::*;

    #[test]
    fn the_biggest_come_first_and_all_are_counted() {
        let leaf = |size| Leaf {
            mode: Mode::File,
            id: ContentId::of(HashKind::Sha1, b""),
            signature: Signature { size, ..Signature::default() },
        };
        let edits: Vec<_> =
            (10..30u64).map(|n| (RelPath::new(format!("f{n}")).unwrap(), Some(leaf((n * 7) % 31)))).collect();
        let snapshot = Snapshot::empty(HashKind::Sha1)
            .edit(&edits, std::sync::Arc::default(), std::sync::Arc::default())
            .unwrap();
        let plan = plan(&snapshot);
        let sizes: Vec<u64> = plan.biggest.iter().map(|(_, size)| *size).collect();
        let mut all: Vec<u64> = (10..30u64).map(|n| (n * 7) % 31).collect();
        assert_eq!((plan.files, plan.bytes), (20, all.iter().sum()));
        all.sort_unstable_by(|a, b| b.cmp(a));
        assert_eq!(sizes, all[..BIGGEST]);
    }
}
