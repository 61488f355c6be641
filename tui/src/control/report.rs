//! A target's status as one JSON object, for `status --json` and the control socket.
//!
//! The documented fields come first; `reason`, `retry_in_ms`, `branch`, `history`, `files`, `brake`,
//! `withheld_paths` and `kept` are ours on top. Times are milliseconds, ids full hexadecimal, what is unknown null.

use std::time::Instant;

use gitsync_core::model::status::TargetStatus;
use serde_json::{Value, json};

use crate::headless::json::{ms, timestamp};
use crate::{headless, hints};

/// Most withheld paths that are named.
const NAMED_PATHS: usize = 1_000;

/// `checked` is when the server last named what it holds.
pub fn target(status: &TargetStatus, checked: Option<Instant>, now: Instant) -> Value {
    let since = |at: Instant| ms(now.saturating_duration_since(at));
    let latency = status.latency.percentiles(now);
    let latency = json!({
        "p50": latency.map(|l| ms(l.p50)),
        "p95": latency.map(|l| ms(l.p95)),
        "max": latency.map(|l| ms(l.max)),
        "count": latency.map_or(0, |l| l.count),
    });
    let last_error = status.last_error.as_ref().map(|(_, time, error)| {
        json!({
            "ts": timestamp(*time),
            "code": error.code.name(),
            "message": error.message,
            "causes": error.causes,
            "hint": hints::next_step(error.code),
            "retryable": error.retryable,
        })
    });
    let withheld: Vec<Value> = status
        .withheld
        .iter()
        .take(NAMED_PATHS)
        .map(|(path, reason)| json!({ "path": path.to_string(), "reason": reason.to_string() }))
        .collect();
    let history = &status.history;
    let history = json!({
        "follows": history.follows,
        "complete": history.landed.as_ref().is_some_and(|landed| landed.complete),
        "behind": history.trouble.as_ref().map(|report| report.one_line()),
    });
    json!({
        "target": status.target.to_string(),
        "kind": "mirror",
        "state": status.phase.name(),
        "baseline": status.baseline.map(|id| id.to_string()),
        "acked_baseline": headless::acked_baseline(status),
        "local_id": status.local.map(|id| id.to_string()),
        "acked_id": status.acked.map(|id| id.to_string()),
        "lag": { "changes": status.unacked_changes, "ms": ms(status.lag(now)) },
        "latency_ms": latency,
        "rtt_ms": status.rtt.map(ms),
        "wire_bytes": status.wire_bytes,
        "withheld": headless::withheld(status),
        "checked_ms_ago": checked.map(since),
        "errors": status.errors,
        "last_error": last_error,
        "reason": status.reason,
        "retry_in_ms": status.retry_at.map(|at| ms(at.saturating_duration_since(now))),
        "branch": status.branch,
        "history": history,
        "files": status.files,
        "brake": status.brake.map(|b| json!({ "missing": b.files, "of": b.of })),
        "withheld_paths": withheld,
        "kept": status.kept,
    })
}
