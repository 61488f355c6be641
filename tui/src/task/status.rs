//! `status`: how every target of the running instance stands.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Failure, ask, columns, load, print, print_json};
use crate::cli::Cli;
use crate::control::{Request, Verb};
use crate::dashboard::format::{age, bytes, clean, count, latency, plural};
use crate::exit::Exit;

/// Withheld paths of a target that the table names.
const NAMED_PATHS: usize = 10;

pub fn run(cli: &Cli, json: bool) -> Result<Exit, Failure> {
    let config = load(cli)?;
    let targets = ask(&config, &Request::new(Verb::Status, Vec::new()))?.reply.targets;
    if json {
        return Ok(print_json(&json!({ "v": 1, "targets": targets }), Exit::Done));
    }
    Ok(print(&table(&targets), Exit::Done))
}

/// One row for each target, then what needs more words.
pub fn table(targets: &[Value]) -> String {
    let header = ["TARGET", "STATE", "LAG", "P50", "P95", "RTT", "SENT", "PATCH ID"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    let mut notes = String::new();
    for t in targets {
        let name = clean(text(&t["target"]));
        rows.push(vec![
            name.clone(),
            state(t),
            lag(t),
            time(&t["latency_ms"]["p50"]),
            time(&t["latency_ms"]["p95"]),
            time(&t["rtt_ms"]),
            t["wire_bytes"].as_u64().map_or_else(dash, bytes),
            t["acked_id"].as_str().map_or_else(dash, |id| id.chars().take(8).collect()),
        ]);
        for note in words(t) {
            notes += &format!("{name}: {note}\n");
        }
    }
    let gap = if notes.is_empty() { "" } else { "\n" };
    format!("{}{gap}{notes}", columns(&rows))
}

/// The state, and what is beside it.
fn state(t: &Value) -> String {
    let state = text(&t["state"]);
    let behind = if t["history"]["behind"].is_string() { ", history behind" } else { "" };
    match t["withheld"].as_u64().unwrap_or(0) {
        0 => format!("{state}{behind}"),
        n => format!("{state}, {} withheld{behind}", count(n)),
    }
}

fn lag(t: &Value) -> String {
    match t["lag"]["changes"].as_u64().unwrap_or(0) {
        0 => "none".into(),
        n => format!("{}, {}", plural(n, "path"), age(span(&t["lag"]["ms"]).unwrap_or_default())),
    }
}

fn words(t: &Value) -> Vec<String> {
    let mut words = Vec::new();
    if let Some(reason) = t["reason"].as_str().filter(|reason| !reason.is_empty()) {
        words.push(clean(reason));
    }
    if let (Some(missing), Some(of)) = (t["brake"]["missing"].as_u64(), t["brake"]["of"].as_u64()) {
        words.push(format!(
            "{} of {} files are missing; `gitsync-tui accept {}` lets the server delete them",
            count(missing),
            count(of),
            clean(text(&t["target"]))
        ));
    }
    let withheld = t["withheld_paths"].as_array().map_or(&[][..], Vec::as_slice);
    for path in withheld.iter().take(NAMED_PATHS) {
        words.push(format!("withheld {}: {}", text(&path["path"]), text(&path["reason"])));
    }
    if withheld.len() > NAMED_PATHS {
        words.push(format!("and {} more", withheld.len() - NAMED_PATHS));
    }
    if let Some(why) = t["history"]["behind"].as_str() {
        words.push(format!("history behind: {}", clean(why)));
    }
    // What was the matter before is no matter of a target that is well by now, or that somebody paused.
    let troubled =
        matches!(text(&t["state"]), "halted" | "failed" | "retrying" | "connecting" | "negotiating");
    let is_over = text(&t["last_error"]["code"]) == "brake" && t["brake"].is_null();
    if let (true, false, Some(message)) = (troubled, is_over, t["last_error"]["message"].as_str()) {
        let causes = t["last_error"]["causes"].as_array().map_or(&[][..], Vec::as_slice);
        let causes = causes.iter().filter_map(Value::as_str);
        let line: Vec<&str> = std::iter::once(message).chain(causes).collect();
        words.push(format!("last error: {}", clean(&line.join(": "))));
        words.push(format!("next: {}", text(&t["last_error"]["hint"])));
    }
    words
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn time(ms: &Value) -> String {
    span(ms).map_or_else(dash, latency)
}

fn span(ms: &Value) -> Option<Duration> {
    Duration::try_from_secs_f64(ms.as_f64()? / 1_000.0).ok()
}

fn dash() -> String {
    "-".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_is_not_asked_for() {
        let rows = [("halted", json!({ "missing": 25, "of": 30 }), true), ("paused", Value::Null, false)];
        for (state, brake, asks) in rows.into_iter().chain([("retrying", Value::Null, false)]) {
            let error = json!({ "code": "brake", "message": "m", "causes": [], "hint": "accept it" });
            let target = json!({ "target": "a@b", "state": state, "brake": brake, "last_error": error });
            assert_eq!(table(&[target]).contains("accept"), asks, "{state}");
        }
    }

    #[test]
    fn a_table_for_people() {
        let target = json!({
            "target": "app@gpu", "state": "halted", "reason": "", "withheld": 1,
            "lag": { "changes": 25, "ms": 61_000.0 },
            "latency_ms": { "p50": 12.0, "p95": null, "max": null, "count": 1 },
            "rtt_ms": null, "wire_bytes": 2048, "acked_id": "4b825dc642cb6eb9a060e54bf8d69288fbee4904",
            "brake": { "missing": 25, "of": 30 },
            "withheld_paths": [{ "path": "big.bin", "reason": "too big" }],
            "last_error": { "message": "m", "causes": ["c"], "hint": "do this" },
        });
        insta::assert_snapshot!(table(&[target]), @r"
        TARGET   STATE               LAG              P50   P95  RTT  SENT    PATCH ID
        app@gpu  halted, 1 withheld  25 paths, 1m01s  12ms  -    -    2.0 KB  4b825dc6

        app@gpu: 25 of 30 files are missing; `gitsync-tui accept app@gpu` lets the server delete them
        app@gpu: withheld big.bin: too big
        app@gpu: last error: m: c
        app@gpu: next: do this
        ");
    }
}
