//! The target table. Columns leave, least needed first, when there is no room; sign, name and lag never do.

use std::time::Instant;

use gitsync_core::model::Phase;
use gitsync_core::model::status::TargetStatus;
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};

use super::super::app::{App, Pane};
use super::super::format::{
    Align, age, clean, countdown, elide, fit, latency, latency_pair, plural, short_count, width,
};
use super::super::theme::word;
use super::latency::trend;
use crate::sense::is_paused;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    State,
    Target,
    Ids,
    Lag,
    /// Median alone.
    Ack,
    /// Median and 95th percentile.
    AckPair,
    Rtt,
    Errors,
    Trend,
    LastError,
}

const GAP: usize = 2;
/// Narrower than this, the state is its sign alone; the line below the list has the word.
const WORDS: usize = 38;
/// `9f2c41d8 > 77ab03ce`, and without the spaces.
const IDS: usize = 19;
const IDS_TIGHT: usize = 17;
const LAG: usize = 12;

pub fn title(app: &App) -> (String, String) {
    let (shown, all) = (app.rows().len(), app.shown().targets.len());
    let mut rest = if app.is_filtered() { format!("{shown} of {all}") } else { all.to_string() };
    if app.unhealthy_only {
        rest += ", only unhealthy";
    }
    if !app.filter.is_empty() {
        rest += &format!(", filter: {}", clean(&app.filter));
    }
    ("1 Targets".into(), rest)
}

pub fn draw(app: &App, frame: &mut Frame<'_>, area: Rect, now: Instant) {
    let rows = app.rows();
    let mut area = area;
    let columns = columns(app, usize::from(area.width).saturating_sub(1));
    let theme = app.theme;
    if area.height >= 4 {
        let mut heading = String::from(" ");
        for (i, (column, columns_wide)) in columns.iter().enumerate() {
            heading += &" ".repeat(if i == 0 { 0 } else { GAP });
            heading += &fit(name(*column), *columns_wide, align(*column), "");
        }
        frame.render_widget(Line::styled(heading, theme.quiet()), Rect { height: 1, ..area });
        area.y += 1;
        area.height -= 1;
    }
    if rows.is_empty() {
        return empty(app, frame, area);
    }
    let current = app.current().map(|row| &row.target);
    let at = rows.iter().position(|row| Some(&row.target) == current).unwrap_or(0);
    let height = usize::from(area.height);
    let first = at.saturating_sub(height / 2).min(rows.len().saturating_sub(height));
    for (y, (i, target)) in (area.top()..area.bottom()).zip(rows.iter().enumerate().skip(first)) {
        let line = row(app, target, i == at, &columns, now);
        frame.render_widget(line, Rect { y, height: 1, ..area });
    }
}

fn empty(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let (what, then) = if app.shown().targets.is_empty() {
        ("no targets".to_owned(), "the config pairs no repo with a server")
    } else if app.filter.is_empty() {
        ("every target is healthy".to_owned(), "! or Esc shows all of them")
    } else {
        (format!("no target matches \"{}\"", clean(&app.filter)), "Esc shows all of them")
    };
    let lines = [Line::raw(what), Line::styled(then, app.theme.quiet())];
    let top = area.y + area.height.saturating_sub(2) / 2;
    for (y, line) in (top..area.bottom()).zip(lines) {
        frame.render_widget(line.centered(), Rect { y, height: 1, ..area });
    }
}

fn name(column: Column) -> &'static str {
    match column {
        Column::State => "STATE",
        Column::Target => "TARGET",
        Column::Ids => "LOCAL > ACKED",
        Column::Lag => "LAG",
        Column::Ack => "ACK",
        Column::AckPair => "p50/p95",
        Column::Rtt => "RTT",
        Column::Errors => "ERR",
        Column::Trend => "LAST ACKS",
        Column::LastError => "LAST ERROR",
    }
}

fn align(column: Column) -> Align {
    match column {
        Column::State | Column::Target | Column::Ids | Column::LastError => Align::Left,
        Column::Lag | Column::Ack | Column::AckPair | Column::Rtt | Column::Errors | Column::Trend => {
            Align::Right
        }
    }
}

/// Chooses columns and widths for a row of `room` columns.
fn columns(app: &App, room: usize) -> Vec<(Column, usize)> {
    let targets = &app.shown().targets;
    let name = targets.iter().map(|t| width(&clean(&t.target.to_string()))).max().unwrap_or(0).clamp(8, 32);
    let withheld = targets.iter().any(|target| !target.withheld.is_empty());
    let behind = targets.iter().any(|target| target.history.trouble.is_some());
    let state = match (room < WORDS, withheld, behind) {
        (true, _, _) => 1,
        (false, _, true) => 25,
        (false, true, false) => 21,
        (false, false, false) => 15,
    };
    // What was withheld has to be told beside the state; the number of paths can be looked up.
    let lag = if room < WORDS || (withheld && room < WORDS + 20) { 6 } else { LAG };
    let name_min = name.min(18).min(room.saturating_sub(state + lag + 2 * GAP));
    let mut left = room.saturating_sub(state + GAP + name_min + GAP + lag);
    let mut take = |wanted: usize| {
        let fits = left >= wanted;
        left -= if fits { wanted } else { 0 };
        fits
    };
    let ack = take(GAP + 6);
    let ids = match ack {
        true if take(GAP + IDS) => IDS,
        true if take(GAP + IDS_TIGHT) => IDS_TIGHT,
        _ => 0,
    };
    let pair = ids > 0 && take(4);
    let errors = pair && take(GAP + 4);
    let rtt = errors && take(GAP + 6);
    let mut name_wide = name_min;
    while name_wide < name && take(1) {
        name_wide += 1;
    }
    let mut trend = if rtt && take(GAP + 10) { 10 } else { 0 };
    while trend > 0 && trend < 24 && take(1) {
        trend += 1;
    }
    let last_error = if trend > 0 && take(GAP + 20) { left + 20 } else { 0 };
    if last_error == 0 {
        name_wide += left;
    }

    let mut columns = vec![(Column::State, state), (Column::Target, name_wide)];
    columns.extend((ids > 0).then_some((Column::Ids, ids)));
    columns.push((Column::Lag, lag));
    if ack {
        columns.push(if pair { (Column::AckPair, 10) } else { (Column::Ack, 6) });
    }
    columns.extend(rtt.then_some((Column::Rtt, 6)));
    columns.extend((trend > 0).then_some((Column::Trend, trend)));
    columns.extend(errors.then_some((Column::Errors, 4)));
    columns.extend((last_error > 0).then_some((Column::LastError, last_error)));
    columns
}

fn row(
    app: &App,
    target: &TargetStatus,
    current: bool,
    columns: &[(Column, usize)],
    now: Instant,
) -> Line<'static> {
    let theme = app.theme;
    let focused = current && app.focus == Pane::Targets;
    let marker = if current { theme.marker() } else { " " };
    let mut spans = vec![Span::styled(marker, theme.strong())];
    for (i, (column, columns_wide)) in columns.iter().enumerate() {
        if i > 0 {
            spans.push(Span::raw(" ".repeat(GAP)));
        }
        let (text, mut style) = cell(app, target, *column, *columns_wide, now);
        if focused && *column != Column::State {
            // One bar, not a patchwork of reversed colours.
            style = Style::new();
        } else if focused {
            style = style.remove_modifier(Modifier::DIM);
        }
        spans.push(Span::styled(fit(&text, *columns_wide, align(*column), theme.dots()), style));
    }
    let style = match (focused, current) {
        (true, _) => theme.selected(),
        (false, true) => theme.strong(),
        (false, false) => Style::new(),
    };
    // The bar reaches the right edge: the line is styled, not its text.
    Line::from(spans).style(style)
}

fn cell(app: &App, target: &TargetStatus, column: Column, wide: usize, now: Instant) -> (String, Style) {
    let theme = app.theme;
    let plain = Style::new();
    match column {
        Column::State if wide == 1 => (theme.glyph(target.phase).into(), theme.phase(target.phase)),
        Column::State => {
            (format!("{} {}", theme.glyph(target.phase), state_words(target, now)), theme.phase(target.phase))
        }
        Column::Target => (elide(&clean(&target.target.to_string()), wide, theme.dots()), plain),
        Column::Ids => match (target.local, target.acked) {
            (None, None) => ("-".into(), theme.quiet()),
            (Some(local), Some(acked)) if local == acked => (local.short(), theme.quiet()),
            (local, acked) => {
                let short =
                    |id: Option<_>| id.map_or("-".into(), |id: gitsync_core::model::PatchId| id.short());
                let arrow = if wide < IDS { ">" } else { " > " };
                (format!("{:8}{arrow}{}", short(local), short(acked)), plain)
            }
        },
        Column::Lag => lag(app, target, wide, now),
        Column::Ack => match target.latency.percentiles(now) {
            Some(p) => (latency(p.p50), plain),
            None => ("-".into(), theme.quiet()),
        },
        Column::AckPair => match target.latency.percentiles(now) {
            Some(p) => (latency_pair(p.p50, p.p95), plain),
            None => ("-".into(), theme.quiet()),
        },
        // The last round trip says nothing about a link that is down.
        Column::Rtt => match target.rtt.filter(|_| is_linked(target.phase)) {
            Some(rtt) => (latency(rtt), plain),
            None => ("-".into(), theme.quiet()),
        },
        Column::Errors if target.errors == 0 => ("0".into(), theme.quiet()),
        Column::Errors => (short_count(target.errors), theme.warn()),
        Column::Trend => {
            let style = if is_linked(target.phase) { plain } else { theme.quiet() };
            (trend(theme, &target.latency, now, wide), style)
        }
        Column::LastError => match &target.last_error {
            Some((_, _, report)) => (clean(&report.one_line()), theme.quiet()),
            None => (String::new(), plain),
        },
    }
}

fn is_linked(phase: Phase) -> bool {
    matches!(phase, Phase::Syncing | Phase::InSync | Phase::Bootstrapping) || is_paused(phase)
}

/// The state in words, with what belongs to it: the wait, the progress, what was left out.
pub fn state_words(target: &TargetStatus, now: Instant) -> String {
    match target.phase {
        Phase::InSync if !target.withheld.is_empty() => {
            format!("in sync, {} withheld", target.withheld.len())
        }
        Phase::InSync if target.history.trouble.is_some() => "in sync, history behind".into(),
        Phase::Retrying => {
            let left = target.retry_at.and_then(|at| countdown(at.saturating_duration_since(now)));
            left.map_or("retrying now".into(), |left| format!("retry in {left}"))
        }
        Phase::Bootstrapping => match target.progress {
            Some((_, done, total, _)) if total > 0 => format!("bootstrap {}%", percent(done, total)),
            _ => word(target.phase).into(),
        },
        Phase::Syncing => match target.progress {
            Some((_, done, total, _)) if total > 0 => format!("syncing {}%", percent(done, total)),
            _ => word(target.phase).into(),
        },
        phase => word(phase).into(),
    }
}

/// Never 100 before it is done.
pub fn percent(done: u64, total: u64) -> u64 {
    if done >= total { 100 } else { (u128::from(done) * 100 / u128::from(total)).min(99) as u64 }
}

/// Number of paths and age of the oldest, each in its own place.
fn lag(app: &App, target: &TargetStatus, wide: usize, now: Instant) -> (String, Style) {
    let theme = app.theme;
    let oldest = target.oldest_unacked.map(|_| age(target.lag(now)));
    if target.unacked_changes == 0 && oldest.is_none() {
        return ("0".into(), theme.quiet());
    }
    let style = match target.phase {
        Phase::Retrying | Phase::Halted | Phase::Failed => theme.warn(),
        _ => Style::new(),
    };
    let paths = format!("{}p", short_count(target.unacked_changes));
    let text = match oldest {
        Some(oldest) if wide < LAG => oldest,
        Some(oldest) => format!("{paths:>5} {oldest:>6}"),
        None => paths,
    };
    (text, style)
}

/// For the line below a compact list.
pub fn lag_words(target: &TargetStatus, now: Instant) -> Option<String> {
    target.oldest_unacked?;
    Some(format!("{} behind, oldest {}", plural(target.unacked_changes, "path"), age(target.lag(now))))
}
