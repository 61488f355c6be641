//! The first line: how many targets are how, and how fast acks come.

use std::time::{Duration, Instant};

use gitsync_core::model::Phase;
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::super::app::App;
use super::super::format::{clean, clip, elide, latency};
use super::super::theme::word;
use super::counts;

pub fn draw(app: &App, frame: &mut Frame<'_>, area: Rect, now: Instant) {
    let theme = app.theme;
    let room = usize::from(area.width);
    let mut right = Vec::new();
    if app.engine_ended {
        right.push(Span::styled(" ENGINE ENDED ", theme.error().patch(theme.selected())));
    }
    if app.frozen.is_some() {
        right.push(Span::styled(" FROZEN ", theme.warn().patch(theme.selected())));
    }
    if app.read_only {
        right.push(Span::styled(" read-only ", theme.quiet()));
    }
    if let Some(p95) = overall_p95(app, now) {
        right.push(Span::styled(if room >= 60 { " ack p95 " } else { " " }, theme.quiet()));
        right.push(Span::raw(format!("{} ", latency(p95))));
    }
    let right = Line::from(right);
    let left_room = room.saturating_sub(right.width());
    frame.render_widget(Line::from(left(app, left_room)), Rect { width: left_room as u16, ..area });
    frame.render_widget(right.right_aligned(), area);
}

/// The name, the config, then counts with words; words go first when there is no room, then the config.
fn left(app: &App, room: usize) -> Vec<Span<'static>> {
    let theme = app.theme;
    let name = Span::styled(" gitsync ", theme.strong());
    let title = clean(&app.title);
    let title = elide(&title, 28, theme.dots());
    let titled = Span::styled(format!(" {title} "), theme.quiet());
    for (with_title, with_words, with_name) in
        [(true, true, true), (false, true, true), (true, false, true), (false, false, true)]
    {
        let mut spans = Vec::new();
        if with_name {
            spans.push(name.clone());
        }
        if with_title && !title.is_empty() {
            spans.push(titled.clone());
        }
        spans.extend(count_spans(app, with_words));
        if spans.iter().map(Span::width).sum::<usize>() <= room {
            return spans;
        }
    }
    count_spans(app, false)
}

fn count_spans(app: &App, words: bool) -> Vec<Span<'static>> {
    let mut spans = Vec::new();
    for (phase, number) in counts(app.shown()) {
        let style = if phase == Phase::Syncing { app.theme.quiet() } else { app.theme.phase(phase) };
        let glyph = app.theme.glyph(phase);
        let text =
            if words { format!("  {glyph} {number} {}", word(phase)) } else { format!(" {glyph}{number}") };
        spans.push(Span::styled(text, style));
    }
    spans
}

fn overall_p95(app: &App, now: Instant) -> Option<Duration> {
    let targets = &app.shown().targets;
    let mut times: Vec<Duration> =
        targets.iter().flat_map(|target| target.latency.recent(now)).map(|(_, time)| time).collect();
    // Nearest rank, as for each target.
    let rank = (times.len() * 95).div_ceil(100).checked_sub(1)?;
    Some(*times.select_nth_unstable(rank).1)
}

/// All there is when nothing fits: the counts, and what size would do.
pub fn too_small(app: &App, frame: &mut Frame<'_>, area: Rect, needed: (u16, u16)) {
    let lines = [
        Line::from(left(app, area.width.into())),
        Line::from(clip(
            &format!(" too small: {}x{} needed, q quits", needed.0, needed.1),
            area.width.into(),
            ".",
        )),
    ];
    for (y, line) in (area.top()..area.bottom()).zip(lines) {
        frame.render_widget(line, Rect { y, height: 1, ..area });
    }
}
