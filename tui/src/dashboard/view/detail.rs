//! All that is known of the selected target, most needed first, and what to press next.

use std::time::Instant;

use gitsync_core::model::status::TargetStatus;
use gitsync_core::model::{ErrorCode, Phase};
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::super::app::App;
use super::super::format::{
    bytes, clean, clip, clock, count, latency, plural, rung_words, withheld_reason, wrap,
};
use super::latency::trend;
use super::table::{lag_words, percent, state_words};
use crate::hints;
use crate::sense::{is_locked, is_paused, is_troubled};

/// Withheld paths that are listed; `status --json` has more.
const NAMED_PATHS: usize = 50;
/// Columns of the labels.
const LABEL: usize = 9;

pub fn title(app: &App) -> (String, String) {
    ("2 Detail".into(), app.current().map(|target| clean(&target.target.to_string())).unwrap_or_default())
}

pub fn draw(app: &App, frame: &mut Frame<'_>, area: Rect, now: Instant) {
    let Some(target) = app.current() else {
        let line = Line::styled("no target selected", app.theme.quiet()).centered();
        frame.render_widget(line, Rect { y: area.y + area.height / 2, height: 1, ..area }.intersection(area));
        return;
    };
    let height = usize::from(area.height);
    let (lines, next) = content(app, target, area.width.into(), now);
    let (lines, next) = match height.checked_sub(1) {
        // What to press stays in sight, whatever else has to go.
        Some(room) if room > 0 => (window(lines, app.detail_scroll.into(), room), next),
        _ => (window(lines, app.detail_scroll.into(), height), None),
    };
    for (y, line) in (area.top()..area.bottom()).zip(lines) {
        frame.render_widget(line, Rect { y, height: 1, ..area });
    }
    if let Some(next) = next {
        frame.render_widget(next, Rect { y: area.bottom() - 1, height: 1, ..area });
    }
}

/// Lines that do not fit.
pub fn overflow(app: &App, area: Rect, now: Instant) -> u16 {
    let Some(target) = app.current() else { return 0 };
    let (lines, _) = content(app, target, area.width.into(), now);
    u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_sub(area.height.saturating_sub(1))
}

fn window(lines: Vec<Line<'static>>, from: usize, height: usize) -> Vec<Line<'static>> {
    let from = from.min(lines.len().saturating_sub(height));
    lines.into_iter().skip(from).take(height).collect()
}

/// One or two lines in place of the detail: the state and, if there is room, why or how far behind.
pub fn draw_strip(app: &App, frame: &mut Frame<'_>, area: Rect, now: Instant) {
    let Some(target) = app.current() else { return };
    let theme = app.theme;
    let room = usize::from(area.width).saturating_sub(1);
    let state = format!("{} {}", theme.glyph(target.phase), state_words(target, now));
    let error = target.last_error.as_ref().filter(|_| is_troubled(target));
    let why = match error {
        Some((_, _, report)) => clean(&report.one_line()),
        None => clean(&target.reason),
    };
    let behind = lag_words(target, now);
    let first = match &behind {
        Some(behind) => format!("{state}: {behind}"),
        None if area.height == 1 && !why.is_empty() => format!("{state}: {why}"),
        None => state,
    };
    let second = match (why.is_empty(), target.acked) {
        (false, _) => why,
        (true, Some(id)) => format!("acked {}", id.short()),
        (true, None) => String::new(),
    };
    let lines = [
        Line::styled(format!(" {}", clip(&first, room, theme.dots())), theme.phase(target.phase)),
        Line::styled(format!(" {}", clip(&second, room, theme.dots())), theme.quiet()),
    ];
    for (y, line) in (area.top()..area.bottom()).zip(lines) {
        frame.render_widget(line, Rect { y, height: 1, ..area });
    }
}

/// Collects labelled lines of one width.
struct Sheet {
    app_label: Style,
    width: usize,
    lines: Vec<Line<'static>>,
}

impl Sheet {
    fn add(&mut self, label: &str, text: &str, style: Style) {
        let room = self.width.saturating_sub(LABEL + 2);
        for (i, part) in wrap(text, room).into_iter().enumerate() {
            let label = if i == 0 { label } else { "" };
            self.lines.push(Line::from(vec![
                Span::styled(format!(" {label:LABEL$}"), self.app_label),
                Span::styled(part, style),
            ]));
        }
    }
}

/// Every line, and the one that says what to press next.
fn content(
    app: &App,
    target: &TargetStatus,
    width: usize,
    now: Instant,
) -> (Vec<Line<'static>>, Option<Line<'static>>) {
    let theme = app.theme;
    let plain = Style::new();
    let mut sheet = Sheet { app_label: theme.quiet(), width, lines: Vec::new() };
    let troubled = is_troubled(target);

    let mut state = format!("{} {}", theme.glyph(target.phase), state_words(target, now));
    if let Some(since) = app.since(&target.target) {
        // Of a state that every save ends, the beginning is no news.
        if !matches!(target.phase, Phase::Syncing) {
            state += &format!("  since {}", clock(since, &app.zone));
        }
    }
    sheet.add("state", &state, theme.phase(target.phase));
    let told = target.last_error.as_ref().is_some_and(|(_, _, report)| {
        troubled && (report.message == target.reason || report.one_line() == target.reason)
    });
    if !target.reason.is_empty() && !told {
        sheet.add("why", &clean(&target.reason), plain);
    }
    if let Some((stage, done, total, unit)) = target.progress.filter(|(_, _, total, _)| *total > 0) {
        let text = format!("{stage} {} of {} {unit}, {}%", count(done), count(total), percent(done, total));
        sheet.add("progress", &text, plain);
    }
    let tells_brake = |code| matches!(code, ErrorCode::Brake | ErrorCode::Repository);
    let brake_told =
        troubled && target.last_error.as_ref().is_some_and(|(_, _, report)| tells_brake(report.code));
    if let Some(missing) = target.brake.filter(|_| !brake_told) {
        let text = format!("{} of {} tracked files are missing", count(missing.files), count(missing.of));
        sheet.add("brake", &text, theme.warn());
    }
    if troubled {
        error(app, target, &mut sheet);
    }
    ids(target, &mut sheet, theme.quiet());
    lag(app, target, &mut sheet, now);
    last_ack(app, target, &mut sheet);
    acks(app, target, &mut sheet, now);
    base(app, target, &mut sheet);
    totals(target, &mut sheet);
    for (i, (path, reason)) in target.withheld.iter().take(NAMED_PATHS).enumerate() {
        let label = if i == 0 { "withheld" } else { "" };
        sheet.add(label, &format!("{path}: {}", withheld_reason(reason)), theme.warn());
    }
    if target.withheld.len() > NAMED_PATHS {
        sheet.add(
            "",
            &format!("and {} more", count((target.withheld.len() - NAMED_PATHS) as u64)),
            theme.quiet(),
        );
    }
    if !troubled {
        error(app, target, &mut sheet);
    }
    (sheet.lines, next(app, target, width))
}

fn ids(target: &TargetStatus, sheet: &mut Sheet, quiet: Style) {
    let text = match (target.local, target.acked) {
        (None, None) => return sheet.add("ids", "none yet", quiet),
        // With the brake set, what is here has no id yet.
        (Some(local), Some(acked)) if local == acked && target.unacked_changes > 0 => {
            format!("{} acked, not what is here now", local.short())
        }
        (Some(local), Some(acked)) if local == acked => format!("{} here and acked", local.short()),
        (local, acked) => {
            let short = |id: Option<gitsync_core::model::PatchId>| id.map_or("-".into(), |id| id.short());
            format!("{} here > {} acked", short(local), short(acked))
        }
    };
    sheet.add("ids", &text, Style::new());
}

fn lag(app: &App, target: &TargetStatus, sheet: &mut Sheet, now: Instant) {
    let Some(mut text) = lag_words(target, now) else {
        if is_paused(target.phase) {
            sheet.add("lag", "none; it counts on while paused", app.theme.quiet());
        }
        return;
    };
    if is_paused(target.phase) {
        text += "; counts on while paused";
    }
    sheet.add("lag", &text, Style::new());
}

fn last_ack(app: &App, target: &TargetStatus, sheet: &mut Sheet) {
    let Some((_, time, acked)) = &target.last_ack else { return };
    let mut text = clock(*time, &app.zone);
    if let Some(time) = acked.latency {
        text += &format!("  {}", latency(time));
    }
    text += &format!("  {} written", count(acked.written));
    if acked.deleted > 0 {
        text += &format!(", {} deleted", count(acked.deleted));
    }
    sheet.add("last ack", &text, Style::new());
}

fn acks(app: &App, target: &TargetStatus, sheet: &mut Sheet, now: Instant) {
    let Some(p) = target.latency.percentiles(now) else { return };
    let mut text = format!("p50 {}  p95 {}  max {}", latency(p.p50), latency(p.p95), latency(p.max));
    let room = sheet.width.saturating_sub(LABEL + 2 + text.len() + 2).min(24);
    if room >= 8 {
        text += &format!("  {}", trend(app.theme, &target.latency, now, room));
    }
    sheet.add("acks", &text, Style::new());
}

fn base(app: &App, target: &TargetStatus, sheet: &mut Sheet) {
    let mut parts = Vec::new();
    parts.extend(target.branch.as_ref().map(|branch| clean(branch)));
    parts.extend(target.baseline.map(|id| id.to_hex_with_len(8).to_string()));
    if target.files > 0 {
        parts.push(plural(target.files, "file"));
    }
    parts.extend(target.rung.map(|rung| format!("began: {}", rung_words(rung))));
    if !parts.is_empty() {
        sheet.add("base", &parts.join("  "), Style::new());
    }
    history(app, target, sheet);
}

/// What the server's clone is at, and what holds it up.
fn history(app: &App, target: &TargetStatus, sheet: &mut Sheet) {
    let history = &target.history;
    if !history.follows {
        return;
    }
    let mut text = match &history.landed {
        _ if target.is_history_behind() => "behind".into(),
        Some(landed) if landed.complete => "there".into(),
        _ => "there, older commits follow".to_owned(),
    };
    if let Some(landed) = history.landed.as_ref().filter(|_| target.is_history_behind()) {
        text += &landed.to.map_or_else(String::new, |id| format!(" at {}", id.to_hex_with_len(8)));
    }
    if let Some(sent) = history.sending {
        text += &format!(", {} sent", bytes(sent));
    }
    match &history.trouble {
        Some(report) => {
            sheet.add("history", &format!("{text}: {}", clean(&report.one_line())), app.theme.warn());
        }
        None => sheet.add("history", &text, Style::new()),
    }
}

fn totals(target: &TargetStatus, sheet: &mut Sheet) {
    if target.last_ack.is_none() {
        return;
    }
    let mut text = format!("{} sent, {} written", bytes(target.wire_bytes), count(target.written));
    text += &format!(", {} deleted", count(target.deleted));
    if let Some(rtt) = target.rtt {
        text += &format!(", rtt {}", latency(rtt));
    }
    sheet.add("so far", &text, Style::new());
}

fn error(app: &App, target: &TargetStatus, sheet: &mut Sheet) {
    let theme = app.theme;
    let Some((_, time, report)) = &target.last_error else { return };
    let live = is_troubled(target);
    let (label, style) = if live { ("error", theme.error()) } else { ("was", theme.quiet()) };
    let again = if report.retryable { ", tried again" } else { "" };
    sheet.add(label, &clean(&report.message), style);
    for cause in &report.causes {
        sheet.add("because", &clean(cause), if live { Style::new() } else { theme.quiet() });
    }
    if live {
        sheet.add("hint", hints::next_step(report.code), theme.strong());
    }
    let text = format!(
        "{} at {}{again}, {} in all",
        report.code.name(),
        clock(*time, &app.zone),
        count(target.errors)
    );
    sheet.add("", &text, theme.quiet());
}

/// The keys that help in this state.
fn next(app: &App, target: &TargetStatus, width: usize) -> Option<Line<'static>> {
    let keys: &[(&str, &str)] = match target.phase {
        Phase::Retrying => &[("s", "try now"), ("p", "pause"), ("R", "resync")],
        Phase::Halted if target.brake.is_some() => &[("a", "accept that they are gone"), ("p", "pause")],
        Phase::Halted if is_locked(target) => &[("T", "take over"), ("s", "try again"), ("p", "pause")],
        Phase::Halted => &[("s", "try again"), ("R", "resync"), ("p", "pause")],
        Phase::Failed => &[("s", "restart")],
        Phase::Paused => &[("p", "resume, straight to the newest")],
        Phase::Pausing => &[("p", "resume")],
        Phase::InSync if !target.withheld.is_empty() => &[("Enter", "list what is withheld"), ("p", "pause")],
        Phase::InSync => &[("p", "pause"), ("R", "compare every file")],
        Phase::Connecting | Phase::Negotiating | Phase::Bootstrapping | Phase::Syncing => &[("p", "pause")],
    };
    let mut spans = vec![Span::styled(format!(" {:LABEL$}", "next"), app.theme.quiet())];
    let mut used = LABEL + 1;
    for (key, what) in keys.iter().filter(|(key, _)| !app.read_only || *key == "Enter") {
        used += key.len() + what.len() + 4;
        if used > width {
            break;
        }
        spans.push(Span::styled((*key).to_owned(), app.theme.key()));
        spans.push(Span::raw(format!(" {what}   ")));
    }
    (spans.len() > 1).then(|| Line::from(spans))
}
