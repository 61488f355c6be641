//! `--format json`: one object per line. Its names are documented and stable.

use std::time::{Duration, SystemTime};

use gitsync_core::model::status::Status;
use gitsync_core::model::{Changes, Event, EventKind, TargetId};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::exit::Exit;
use crate::hints;

/// Version of the format: raised when a documented field changes its meaning.
const VERSION: u64 = 1;

#[derive(Debug, Default)]
pub struct Json {
    /// Of the last line.
    seq: u64,
}

impl Json {
    pub fn hello(&mut self, targets: &[TargetId], time: SystemTime) -> String {
        let names: Vec<String> = targets.iter().map(ToString::to_string).collect();
        self.line("hello", time, None, json!({ "version": env!("CARGO_PKG_VERSION"), "targets": names }))
    }

    /// The line of one event; `None` for what only the dashboard is told.
    pub fn event(&mut self, event: &Event) -> Option<String> {
        let (kind, fields) = fields(event)?;
        Some(self.line(kind, event.time, event.target.as_ref(), fields))
    }

    pub fn summary(&mut self, status: &Status, exit: Exit, time: SystemTime) -> String {
        let targets: Map<String, Value> = status
            .targets
            .iter()
            .map(|t| {
                let facts = json!({
                    "state": t.phase.name(),
                    "patch_id": t.acked.map(|id| id.to_string()),
                    "baseline": super::acked_baseline(t),
                    "withheld": super::withheld(t),
                    "kept": t.kept,
                });
                (t.target.to_string(), facts)
            })
            .collect();
        self.line("summary", time, None, json!({ "exit": exit.code(), "targets": targets }))
    }

    /// Leaves a gap of `lost` lines, for a reader that was too slow for them.
    pub fn skip(&mut self, lost: u64) {
        self.seq += lost;
    }

    fn line(&mut self, kind: &str, time: SystemTime, target: Option<&TargetId>, fields: Value) -> String {
        self.seq += 1;
        let mut object = Map::new();
        object.insert("v".into(), VERSION.into());
        object.insert("seq".into(), self.seq.into());
        object.insert("ts".into(), timestamp(time).into());
        object.insert("type".into(), kind.into());
        if let Some(target) = target {
            object.insert("target".into(), target.to_string().into());
        }
        if let Value::Object(fields) = fields {
            object.extend(fields);
        }
        let mut line = Value::Object(object).to_string();
        line.push('\n');
        line
    }
}

/// RFC 3339 in UTC, with microseconds.
pub fn timestamp(time: SystemTime) -> String {
    // Only a clock outside the years -9999 to 9999 fails.
    let time = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
    format!("{time:.6}")
}

fn fields(event: &Event) -> Option<(&'static str, Value)> {
    Some(match &event.kind {
        EventKind::State { from, to, reason, retry_at } => {
            let mut fields = json!({ "from": from.name(), "to": to.name(), "reason": reason });
            if let Some(at) = retry_at {
                fields["retry_in_ms"] = ms(at.saturating_duration_since(event.at)).into();
            }
            ("state", fields)
        }
        EventKind::Session { rung, patch_id, baseline, branch, reason, follows: _ } => (
            "session",
            json!({
                "rung": rung.name(),
                "patch_id": patch_id.to_string(),
                "baseline": baseline.map(|id| id.to_string()),
                "branch": branch,
                "reason": reason,
            }),
        ),
        EventKind::Acked(acked) => (
            "acked",
            json!({
                "patch_id": acked.patch_id.to_string(),
                "parent_id": acked.parent_id.to_string(),
                "generation": acked.generation,
                "written": acked.written,
                "deleted": acked.deleted,
                "wire_bytes": acked.wire_bytes,
                "latency_ms": acked.latency.map(ms),
                "held_ms": ms(acked.held),
                "apply_ms": ms(acked.apply),
                "rtt_ms": acked.rtt.map(ms),
                "withheld": acked.withheld,
            }),
        ),
        EventKind::Baseline(landed) => (
            "baseline",
            json!({
                "from": landed.from.map(|id| id.to_string()),
                "to": landed.to.map(|id| id.to_string()),
                "branch": landed.branch,
                "objects": landed.objects,
                "wire_bytes": landed.wire_bytes,
                "complete": landed.complete,
                "reason": landed.reason,
            }),
        ),
        EventKind::Withheld { paths } => {
            let paths: Vec<Value> = paths
                .iter()
                .map(|(path, reason)| json!({ "path": path.to_string(), "reason": reason.to_string() }))
                .collect();
            ("withheld", json!({ "paths": paths }))
        }
        EventKind::Drift { paths, kept } => {
            let paths: Vec<String> = paths.iter().map(ToString::to_string).collect();
            ("drift", json!({ "paths": paths, "kept": kept }))
        }
        EventKind::Progress { stage, done, total, unit } => {
            ("progress", json!({ "stage": stage, "done": done, "total": total, "unit": unit }))
        }
        EventKind::Error(error) => (
            "error",
            json!({
                "code": error.code.name(),
                "message": error.message,
                "causes": error.causes,
                "hint": hints::next_step(error.code),
                "retryable": error.retryable,
            }),
        ),
        EventKind::Note(message) => ("note", json!({ "message": message })),
        EventKind::Config(reloaded) => ("config", config(reloaded)),
        EventKind::Brake(missing) => (
            "brake",
            match missing {
                Some(missing) => json!({ "missing": missing.files, "of": missing.of, "released": false }),
                None => json!({ "missing": 0, "of": 0, "released": true }),
            },
        ),
        EventKind::Local { .. } | EventKind::HeldBack { .. } | EventKind::Rtt(_) => return None,
    })
}

fn config(reloaded: &Result<Changes, String>) -> Value {
    let none = Changes::default();
    let (changes, error) = match reloaded {
        Ok(changes) => (changes, None),
        Err(why) => (&none, Some(why)),
    };
    let names = |targets: &[TargetId]| targets.iter().map(ToString::to_string).collect::<Vec<_>>();
    json!({
        "added": names(&changes.added),
        "removed": names(&changes.removed),
        "changed": names(&changes.changed),
        "error": error,
    })
}

/// Milliseconds with microsecond precision.
pub fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use gitsync_core::model::{ErrorCode, ErrorReport, Missing, Phase, RelPath, WithheldReason};

    use super::*;
    use crate::headless::fixture::{acked, baseline, event, session, state, target};

    fn at(ms: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
    }

    #[test]
    fn times_are_utc_with_a_fixed_number_of_digits() {
        assert_eq!(timestamp(at(0)), "1970-01-01T00:00:00.000000Z");
        assert_eq!(timestamp(at(1_700_000_000_123)), "2023-11-14T22:13:20.123000Z");
    }

    #[test]
    fn every_documented_type_has_its_fields() {
        let path = RelPath::new(b"a\xff\n".as_slice()).unwrap();
        let error = ErrorReport {
            code: ErrorCode::Locked,
            message: "m".into(),
            causes: vec!["c".into()],
            retryable: false,
        };
        let table = [
            (state(Phase::Syncing, Phase::InSync), "state", vec!["from", "to", "reason"]),
            (session(), "session", vec!["rung", "patch_id", "baseline", "branch", "reason"]),
            (
                acked(1),
                "acked",
                vec![
                    "patch_id",
                    "parent_id",
                    "generation",
                    "written",
                    "deleted",
                    "wire_bytes",
                    "latency_ms",
                    "held_ms",
                    "apply_ms",
                    "rtt_ms",
                    "withheld",
                ],
            ),
            (
                baseline(1),
                "baseline",
                vec!["from", "to", "branch", "objects", "wire_bytes", "complete", "reason"],
            ),
            (
                EventKind::Withheld { paths: vec![(path.clone(), WithheldReason::Unstable)] },
                "withheld",
                vec!["paths"],
            ),
            (EventKind::Drift { paths: vec![path], kept: 1 }, "drift", vec!["paths", "kept"]),
            (
                EventKind::Progress { stage: "scan", done: 1, total: 2, unit: "files" },
                "progress",
                vec!["stage", "done", "total", "unit"],
            ),
            (EventKind::Error(error), "error", vec!["code", "message", "causes", "hint", "retryable"]),
            (EventKind::Note("n".into()), "note", vec!["message"]),
            (EventKind::Config(Err("e".into())), "config", vec!["added", "removed", "changed", "error"]),
            (
                EventKind::Brake(Some(Missing { files: 25, of: 30 })),
                "brake",
                vec!["missing", "of", "released"],
            ),
        ];
        let mut json = Json::default();
        for (i, (kind, name, keys)) in table.into_iter().enumerate() {
            let line = json.event(&event("a", kind)).unwrap();
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            let value: Map<String, Value> = serde_json::from_str(&line).unwrap();
            let mut wanted = vec!["v", "seq", "ts", "type", "target"];
            wanted.extend(keys);
            assert_eq!(value.keys().collect::<Vec<_>>(), wanted);
            assert_eq!((&value["v"], &value["seq"]), (&json!(1), &json!(i + 1)));
            assert_eq!((&value["type"], &value["target"]), (&json!(name), &json!("r@a")));
        }
        assert!(json.event(&event("a", EventKind::Rtt(Duration::ZERO))).is_none());
    }

    #[test]
    fn a_reload_names_targets_or_an_error() {
        let changes = Changes {
            targets: vec![target("a"), target("c")],
            added: vec![target("a")],
            removed: vec![target("b")],
            changed: vec![target("c")],
        };
        let said = |reloaded| {
            let whole = Event { target: None, ..event("a", EventKind::Config(reloaded)) };
            let value: Value = serde_json::from_str(&Json::default().event(&whole).unwrap()).unwrap();
            assert_eq!(value["target"], Value::Null);
            ["added", "removed", "changed", "error"].map(|key| value[key].clone())
        };
        assert_eq!(said(Ok(changes)), [json!(["r@a"]), json!(["r@b"]), json!(["r@c"]), Value::Null]);
        assert_eq!(said(Err("line 3".into())), [json!([]), json!([]), json!([]), json!("line 3")]);
    }

    #[test]
    fn names_are_escaped_and_figures_have_fractions() {
        let path = RelPath::new(b"a\xff\n".as_slice()).unwrap();
        let kind = EventKind::Withheld { paths: vec![(path, WithheldReason::Unstable)] };
        let line = Json::default().event(&event("a", kind)).unwrap();
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["paths"], json!([{ "path": "a\\xff\\u{a}", "reason": "changing while read" }]));
        assert_eq!(ms(Duration::from_micros(1_234)), 1.234);
    }

    #[test]
    fn hello_comes_with_targets_and_summary_with_all_of_them() {
        let mut json = Json::default();
        let targets = [target("a"), target("b")];
        let hello: Value = serde_json::from_str(&json.hello(&targets, at(0))).unwrap();
        assert_eq!((&hello["seq"], &hello["targets"]), (&json!(1), &json!(["r@a", "r@b"])));
        let mut status = Status::new(targets, Instant::now());
        status.apply(&event("a", acked(2)));
        let paths = ["x", "y"].map(|path| (RelPath::new(path).unwrap(), WithheldReason::Unstable)).to_vec();
        status.apply(&event("a", EventKind::Withheld { paths }));
        status.apply(&event("a", state(Phase::Syncing, Phase::InSync)));
        let summary: Value = serde_json::from_str(&json.summary(&status, Exit::Incomplete, at(0))).unwrap();
        assert_eq!((&summary["seq"], &summary["exit"]), (&json!(2), &json!(1)));
        let empty_tree = "4b825dc642cb6eb9a060e54bf8d69288fbee4904";
        assert_eq!(
            summary["targets"],
            json!({
                "r@a": { "state": "in-sync", "patch_id": empty_tree, "baseline": null, "withheld": 2, "kept": 0 },
                "r@b": { "state": "connecting", "patch_id": null, "baseline": null, "withheld": 0, "kept": 0 },
            })
        );
    }
}
