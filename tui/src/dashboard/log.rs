//! The log pane's lines: a bounded ring, written from events and nothing else.

use std::collections::VecDeque;
use std::time::SystemTime;

use gitsync_core::model::status::TargetStatus;
use gitsync_core::model::{Acked, BaselineLanded, Event, EventKind, Phase, RelPath, TargetId};

use super::app::Level;
use super::format::{bytes, clean, latency, plural, reload_words, rung_words, withheld_reason};
use super::theme::word;

/// Lines kept; older ones go.
const CAPACITY: usize = 2_000;
/// A repeated complaint is counted instead of printed again if it is among this many newest lines.
const REPEAT_WINDOW: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Position since the start; a line keeps its number while older ones are dropped.
    pub seq: u64,
    pub time: SystemTime,
    pub level: Level,
    pub target: Option<TargetId>,
    pub text: String,
    /// How often this was said.
    pub times: u64,
}

#[derive(Debug, Default)]
pub struct Log {
    entries: VecDeque<Entry>,
    next_seq: u64,
}

impl Log {
    /// Lines up to (not including) number `end`, oldest first.
    pub fn until(&self, end: u64) -> impl DoubleEndedIterator<Item = &Entry> {
        self.entries.iter().filter(move |entry| entry.seq < end)
    }

    pub fn end(&self) -> u64 {
        self.next_seq
    }

    /// Adds a line; true if the log grew by it (a repeated complaint moves to the end and is counted).
    pub fn push(&mut self, time: SystemTime, level: Level, target: Option<&TargetId>, text: String) -> bool {
        let mut times = 1;
        let mut grew = true;
        if level != Level::Info {
            let newest = self.entries.len().saturating_sub(REPEAT_WINDOW);
            let same =
                |entry: &Entry| entry.level == level && entry.target.as_ref() == target && entry.text == text;
            let repeated = self.entries.range(newest..).rposition(same);
            if let Some(old) = repeated.and_then(|at| self.entries.remove(newest + at)) {
                times += old.times;
                grew = false;
            }
        }
        if self.entries.len() == CAPACITY {
            self.entries.pop_front();
            grew = false;
        }
        self.entries.push_back(Entry {
            seq: self.next_seq,
            time,
            level,
            target: target.cloned(),
            text,
            times,
        });
        self.next_seq += 1;
        grew
    }
}

/// What an event has to say; `before` is its target's status without it.
pub fn describe(event: &Event, before: Option<&TargetStatus>) -> Option<(Level, String)> {
    match &event.kind {
        EventKind::State { from, to, reason, .. } => {
            // The error's own line has said it.
            let told = before
                .and_then(|target| target.last_error.as_ref())
                .is_some_and(|(_, _, report)| report.message == *reason || report.one_line() == *reason);
            state(*from, *to, if told { "" } else { reason })
        }
        EventKind::Session { rung, patch_id, branch, reason, .. } => {
            let mut text = format!("session: {}, server holds {}", rung_words(*rung), patch_id.short());
            if let Some(branch) = branch {
                text += &format!(", branch {}", clean(branch));
            }
            Some((Level::Info, with_reason(text, reason)))
        }
        EventKind::Acked(acked) => Some((Level::Info, ack(acked))),
        EventKind::Baseline(landed) => baseline(landed),
        EventKind::Withheld { paths } if paths.is_empty() => before
            .is_some_and(|target| !target.withheld.is_empty())
            .then(|| (Level::Info, "nothing withheld any more".into())),
        EventKind::Withheld { paths } => {
            let mut text = format!("{} withheld", plural(paths.len() as u64, "path"));
            if let Some((path, reason)) = paths.first() {
                text += &format!(": {path} ({})", withheld_reason(reason));
            }
            Some((Level::Warn, with_more(text, paths.len())))
        }
        EventKind::Drift { paths, kept } => {
            let number = paths.len() as u64;
            let text = format!(
                "{} changed on the server, {} kept{}",
                plural(number, "path"),
                plural(*kept, "copy").replace("copys", "copies"),
                paths.first().map(|path: &RelPath| format!(": {path}")).unwrap_or_default(),
            );
            Some((Level::Warn, with_more(text, paths.len())))
        }
        EventKind::Error(report) => {
            let level = if report.retryable { Level::Warn } else { Level::Error };
            Some((level, format!("{} ({})", clean(&report.one_line()), report.code.name())))
        }
        EventKind::Note(text) => Some((Level::Info, clean(text))),
        EventKind::Config(Ok(changes)) => Some((Level::Info, reload_words(changes))),
        EventKind::Config(Err(why)) => Some((Level::Error, format!("not reloaded: {}", clean(why)))),
        // The halt's own error says how much is missing.
        EventKind::Brake(Some(_)) => None,
        EventKind::Brake(None) => Some((Level::Info, "the brake is released".into())),
        EventKind::Local { .. }
        | EventKind::HeldBack { .. }
        | EventKind::Progress { .. }
        | EventKind::Rtt(_) => None,
    }
}

fn state(from: Phase, to: Phase, reason: &str) -> Option<(Level, String)> {
    let level = match to {
        // Each save passes through these two, and its ack says more.
        Phase::Syncing | Phase::InSync if matches!(from, Phase::Syncing | Phase::InSync) => return None,
        // Steps on the way that the session line sums up.
        Phase::Connecting | Phase::Negotiating => return None,
        Phase::Retrying => Level::Warn,
        Phase::Halted | Phase::Failed => Level::Error,
        _ => Level::Info,
    };
    Some((level, with_reason(word(to).to_owned(), reason)))
}

fn ack(acked: &Acked) -> String {
    let mut text = format!("acked {}", acked.patch_id.short());
    if acked.generation == 0 {
        text += ", held already";
    }
    if let Some(time) = acked.latency {
        text += &format!(" in {}", latency(time));
    }
    if acked.written > 0 {
        text += &format!("  {} written", acked.written);
    }
    if acked.deleted > 0 {
        text += &format!("  {} deleted", acked.deleted);
    }
    if acked.wire_bytes > 0 {
        text += &format!("  {}", bytes(acked.wire_bytes));
    }
    text
}

fn baseline(landed: &BaselineLanded) -> Option<(Level, String)> {
    if landed.from == landed.to && !landed.complete {
        // One of many steps further back.
        return None;
    }
    let mut text = match landed.to {
        Some(id) => format!("clone at {}", id.to_hex_with_len(8)),
        None => "clone on an unborn branch".into(),
    };
    if let Some(branch) = &landed.branch {
        text += &format!(", branch {}", clean(branch));
    }
    if landed.objects > 0 {
        text += &format!("  {}  {}", plural(landed.objects, "object"), bytes(landed.wire_bytes));
    }
    Some((Level::Info, with_reason(text, &landed.reason)))
}

fn with_reason(text: String, reason: &str) -> String {
    if reason.is_empty() { text } else { format!("{text}: {}", clean(reason)) }
}

fn with_more(text: String, number: usize) -> String {
    if number > 1 { format!("{text} and {} more", number - 1) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_is_bounded_and_counts_what_repeats() {
        let time = SystemTime::UNIX_EPOCH;
        let mut log = Log::default();
        assert!(log.push(time, Level::Warn, None, "refused".into()));
        assert!(log.push(time, Level::Info, None, "note".into()));
        assert!(!log.push(time, Level::Warn, None, "refused".into()));
        let shown: Vec<(&str, u64)> = log.until(u64::MAX).map(|e| (e.text.as_str(), e.times)).collect();
        assert_eq!(shown, [("note", 1), ("refused", 2)]);
        for i in 0..3_000 {
            log.push(time, Level::Info, None, i.to_string());
        }
        assert_eq!(log.until(u64::MAX).count(), CAPACITY);
        assert_eq!(log.until(u64::MAX).next_back().unwrap().text, "2999");
    }

    #[test]
    fn saves_are_told_by_their_ack_alone() {
        assert_eq!(state(Phase::InSync, Phase::Syncing, ""), None);
        assert_eq!(state(Phase::Syncing, Phase::InSync, ""), None);
        assert_eq!(state(Phase::Paused, Phase::Syncing, ""), Some((Level::Info, "syncing".into())));
        assert_eq!(
            state(Phase::Syncing, Phase::Halted, "brake\n"),
            Some((Level::Error, "halted: brake\\u{a}".into()))
        );
    }
}
