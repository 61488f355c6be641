//! `--format plain`: one line per change of state, `TIME LEVEL TARGET text key=value..`.

use std::fmt::{Display, Write};
use std::time::SystemTime;

use gitsync_core::model::path::escape;
use gitsync_core::model::status::Status;
use gitsync_core::model::{Event, EventKind, Phase, TargetId};
use tracing::Level;
use tracing::level_filters::LevelFilter;

use super::json::{ms, timestamp};
use crate::dashboard::format::rung_words;
use crate::exit::Exit;
use crate::hints;

#[derive(Debug)]
pub struct Plain {
    /// What is printed at all. The summary always is.
    pub level: LevelFilter,
}

impl Plain {
    pub fn hello(&self, targets: &[TargetId], time: SystemTime) -> String {
        if self.level < Level::INFO {
            return String::new();
        }
        let names: Vec<String> = targets.iter().map(ToString::to_string).collect();
        Line::new(time, Level::INFO, None, "hello")
            .with("version", env!("CARGO_PKG_VERSION"))
            .with("targets", names.join(","))
            .end()
    }

    /// The line of one event; `None` for what is below the level or only for the dashboard.
    pub fn event(&self, event: &Event) -> Option<String> {
        let (level, line) = line(event)?;
        (self.level >= level).then(|| line.end())
    }

    pub fn summary(&self, status: &Status, exit: Exit, time: SystemTime) -> String {
        let mut text = String::new();
        for t in &status.targets {
            let level = if t.phase == Phase::InSync { Level::INFO } else { Level::WARN };
            let line = Line::new(time, level, Some(&t.target), "summary")
                .with("state", t.phase.name())
                .with_some("patch_id", t.acked)
                .with_some("baseline", super::acked_baseline(t))
                .with("withheld", super::withheld(t))
                .with_some("kept", (t.kept > 0).then_some(t.kept));
            text.push_str(&line.end());
        }
        text.push_str(&Line::new(time, Level::INFO, None, "summary").with("exit", exit.code()).end());
        text
    }
}

fn line(event: &Event) -> Option<(Level, Line)> {
    let line = |level, text: &str| (level, Line::new(event.time, level, event.target.as_ref(), text));
    let (level, line) = match &event.kind {
        EventKind::State { from, to, reason, retry_at } => {
            let level = match to {
                Phase::Retrying => Level::WARN,
                Phase::Halted | Phase::Failed => Level::ERROR,
                _ => Level::INFO,
            };
            let (level, line) = line(level, to.name());
            let wait = retry_at.map(|at| ms(at.saturating_duration_since(event.at)));
            let reason = Some(reason).filter(|reason| !reason.is_empty());
            (level, line.with("from", from.name()).with_some("reason", reason).with_some("retry_in_ms", wait))
        }
        EventKind::Session { rung, patch_id, baseline, branch, reason, follows: _ } => {
            let (level, line) = line(Level::INFO, &format!("session: {}", rung_words(*rung)));
            let line = line
                .with("rung", rung.name())
                .with("patch_id", patch_id)
                .with_some("baseline", *baseline)
                .with_some("branch", branch.as_ref())
                .with_some("reason", Some(reason).filter(|reason| !reason.is_empty()));
            (level, line)
        }
        EventKind::Acked(acked) => {
            let (level, line) = line(Level::INFO, "acked");
            let line = line
                .with("patch_id", acked.patch_id)
                .with("generation", acked.generation)
                .with("written", acked.written)
                .with("deleted", acked.deleted)
                .with("wire_bytes", acked.wire_bytes)
                .with_some("latency_ms", acked.latency.map(ms))
                .with("held_ms", ms(acked.held))
                .with("apply_ms", ms(acked.apply))
                .with_some("rtt_ms", acked.rtt.map(ms))
                .with("withheld", acked.withheld);
            (level, line)
        }
        EventKind::Baseline(landed) => {
            // Older history comes in many steps.
            let behind = landed.from == landed.to && !landed.complete;
            let (level, line) = line(if behind { Level::DEBUG } else { Level::INFO }, "baseline");
            let line = line
                .with_some("from", landed.from)
                .with_some("to", landed.to)
                .with_some("branch", landed.branch.as_ref())
                .with("objects", landed.objects)
                .with("wire_bytes", landed.wire_bytes)
                .with("complete", landed.complete)
                .with("reason", &landed.reason);
            (level, line)
        }
        EventKind::Withheld { paths } => {
            let (level, line) = line(Level::WARN, "withheld");
            let mut line = line.with("paths", paths.len());
            for (path, reason) in paths {
                line = line.with("path", path).with("reason", reason);
            }
            (level, line)
        }
        EventKind::Drift { paths, kept } => {
            let (level, line) = line(Level::WARN, "drift");
            let mut line = line.with("paths", paths.len()).with("kept", kept);
            for path in paths {
                line = line.with("path", path);
            }
            (level, line)
        }
        EventKind::Progress { stage, done, total, unit } => {
            let (level, line) = line(Level::DEBUG, "progress");
            (level, line.with("stage", stage).with("done", done).with("total", total).with("unit", unit))
        }
        EventKind::Error(error) => {
            let level = if error.retryable { Level::WARN } else { Level::ERROR };
            let (level, line) = line(level, &escape_text(&error.one_line()));
            (level, line.with("code", error.code.name()).with("hint", hints::next_step(error.code)))
        }
        EventKind::Note(message) => line(Level::INFO, &escape_text(message)),
        EventKind::Config(Ok(changes)) => {
            let (level, line) = line(Level::INFO, "configuration reloaded");
            let names = |targets: &[TargetId]| {
                let names: Vec<String> = targets.iter().map(ToString::to_string).collect();
                (!names.is_empty()).then(|| names.join(","))
            };
            let line = line
                .with_some("added", names(&changes.added))
                .with_some("removed", names(&changes.removed))
                .with_some("changed", names(&changes.changed));
            (level, line)
        }
        EventKind::Config(Err(why)) => {
            let (level, line) = line(Level::ERROR, "configuration not reloaded");
            (level, line.with("error", why))
        }
        EventKind::Brake(Some(missing)) => {
            let (level, line) = line(Level::WARN, "brake");
            (level, line.with("missing", missing.files).with("of", missing.of))
        }
        EventKind::Brake(None) => line(Level::INFO, "brake released"),
        EventKind::Local { .. } | EventKind::HeldBack { .. } | EventKind::Rtt(_) => return None,
    };
    Some((level, line))
}

/// One line being written.
struct Line(String);

impl Line {
    fn new(time: SystemTime, level: Level, target: Option<&TargetId>, text: &str) -> Self {
        let target = target.map_or_else(|| "-".to_owned(), ToString::to_string);
        Self(format!("{} {level} {target} {text}", timestamp(time)))
    }

    fn with(mut self, key: &str, value: impl Display) -> Self {
        let value = escape_text(&value.to_string());
        let quoted = value.is_empty() || value.contains([' ', '"', '=']);
        // Writing to a String cannot fail.
        let _ = match quoted {
            true => write!(self.0, " {key}=\"{}\"", value.replace('"', "\\\"")),
            false => write!(self.0, " {key}={value}"),
        };
        self
    }

    fn with_some(self, key: &str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.with(key, value),
            None => self,
        }
    }

    fn end(mut self) -> String {
        self.0.push('\n');
        self.0
    }
}

/// Keeps text of other machines on its line. What is escaped already stays as it is.
pub fn escape_text(text: &str) -> String {
    text.split('\\').map(|part| escape(part.as_bytes())).collect::<Vec<_>>().join("\\")
}

/// The beginning of what somebody typed, fit for one line.
pub fn shown(bytes: &[u8]) -> String {
    const SHOWN_BYTES: usize = 80;
    match bytes.get(..SHOWN_BYTES) {
        Some(start) => escape(start) + "..",
        None => escape(bytes),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use gitsync_core::model::{Changes, ErrorCode, ErrorReport, Missing, RelPath, WithheldReason};

    use super::*;
    use crate::headless::fixture::{acked, event, progress, session, state, target};

    const PLAIN: Plain = Plain { level: LevelFilter::INFO };

    /// Without the time.
    fn shown(plain: &Plain, kind: EventKind) -> Option<String> {
        plain.event(&event("a", kind)).map(|line| line.split_once(' ').expect("time first").1.to_owned())
    }

    #[test]
    fn one_line_says_level_target_text_and_figures() {
        assert_eq!(
            shown(&PLAIN, state(Phase::Connecting, Phase::Retrying)).unwrap(),
            "WARN r@a retrying from=connecting reason=\"because of it\"\n"
        );
        assert!(
            shown(&PLAIN, session())
                .unwrap()
                .starts_with("INFO r@a session: nothing to send rung=none patch_id=4b825dc6")
        );
        let line = shown(&PLAIN, acked(1)).unwrap();
        assert!(line.contains(" generation=1 written=2 deleted=0 wire_bytes=300 latency_ms=12.5 "), "{line}");
        assert_eq!(
            shown(&PLAIN, EventKind::Brake(Some(Missing { files: 25, of: 30 }))).unwrap(),
            "WARN r@a brake missing=25 of=30\n"
        );
        assert_eq!(shown(&PLAIN, EventKind::Brake(None)).unwrap(), "INFO r@a brake released\n");
        let path = RelPath::new("a b\"\n").unwrap();
        assert_eq!(
            shown(&PLAIN, EventKind::Withheld { paths: vec![(path, WithheldReason::Unstable)] }).unwrap(),
            "WARN r@a withheld paths=1 path=\"a b\\\"\\u{a}\" reason=\"changing while read\"\n"
        );
        let error = ErrorReport {
            code: ErrorCode::Unreachable,
            message: "cannot connect\u{1b}[2J".into(),
            causes: vec!["refused\nreally".into()],
            retryable: true,
        };
        let line = shown(&PLAIN, EventKind::Error(error)).unwrap();
        let start =
            "WARN r@a cannot connect\\u{1b}[2J: refused\\u{a}really code=unreachable hint=\"check that";
        assert!(line.starts_with(start), "{line}");
    }

    #[test]
    fn a_reload_is_a_line_of_the_whole_program() {
        let said = |reloaded| {
            let whole = Event { target: None, ..event("a", EventKind::Config(reloaded)) };
            PLAIN.event(&whole).unwrap().split_once(' ').unwrap().1.to_owned()
        };
        let added = vec![target("a"), target("b")];
        let changes = Changes { targets: added.clone(), added, ..Changes::default() };
        assert_eq!(said(Ok(changes)), "INFO - configuration reloaded added=r@a,r@b\n");
        assert_eq!(said(Ok(Changes::default())), "INFO - configuration reloaded\n");
        assert_eq!(
            said(Err("c.toml: a\nb".into())),
            "ERROR - configuration not reloaded error=\"c.toml: a\\u{a}b\"\n"
        );
    }

    #[test]
    fn levels_hide_lines_but_never_the_summary() {
        let quiet = Plain { level: LevelFilter::WARN };
        assert_eq!(shown(&quiet, acked(0)), None);
        assert_eq!(shown(&PLAIN, progress()), None);
        assert!(shown(&Plain { level: LevelFilter::DEBUG }, progress()).is_some());
        assert_eq!(shown(&PLAIN, EventKind::Rtt(std::time::Duration::ZERO)), None);
        assert_eq!(quiet.hello(&[target("a")], SystemTime::now()), "");
        let status = Status::new([target("a")], Instant::now());
        let text = quiet.summary(&status, Exit::Unreached, SystemTime::UNIX_EPOCH);
        assert_eq!(
            text,
            "1970-01-01T00:00:00.000000Z WARN r@a summary state=connecting withheld=0\n\
             1970-01-01T00:00:00.000000Z INFO - summary exit=5\n"
        );
    }
}
