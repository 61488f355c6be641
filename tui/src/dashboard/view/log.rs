//! The log pane: newest line last, long lines cut at the end.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::super::app::{App, Level};
use super::super::format::{Align, clean, clip, clock, count, elide, fit, width};
use super::super::log::Entry;

/// Below this width names and levels are shortened, to leave room for what happened.
const NAMES: u16 = 60;

pub fn title(app: &App) -> (String, String) {
    let rest = match app.log_scroll {
        0 => "following".to_owned(),
        n => format!("{} below, G follows", count(n.into())),
    };
    ("3 Log".into(), rest)
}

pub fn draw(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let height = usize::from(area.height);
    let mut entries: Vec<&Entry> =
        app.log.until(app.log_end()).rev().skip(app.log_scroll.into()).take(height).collect();
    entries.reverse();
    if entries.is_empty() {
        let line = Line::styled(" nothing has happened yet", app.theme.quiet());
        frame.render_widget(line, Rect { height: 1, ..area }.intersection(area));
        return;
    }
    let names = app.shown().targets.iter().map(|t| width(&clean(&t.target.to_string()))).max().unwrap_or(0);
    let names = names.clamp(6, 24);
    for (y, entry) in (area.top()..area.bottom()).zip(entries) {
        frame.render_widget(line(app, entry, area.width, names), Rect { y, height: 1, ..area });
    }
}

fn line(app: &App, entry: &Entry, room: u16, names: usize) -> Line<'static> {
    let theme = app.theme;
    let (word, style) = match entry.level {
        Level::Info => ("     ", Style::new()),
        Level::Warn => ("warn ", theme.warn()),
        Level::Error => ("ERROR", theme.error()),
    };
    let word = if room >= NAMES { word } else { &word[..1] };
    let mut spans = vec![
        Span::styled(format!(" {} ", clock(entry.time, &app.zone)), theme.quiet()),
        Span::styled(format!("{word} "), style),
    ];
    let target = entry.target.as_ref().map(|target| clean(&target.to_string())).unwrap_or_default();
    if room >= NAMES {
        let name = elide(&target, names, theme.dots());
        spans.push(Span::raw(format!("{}  ", fit(&name, names, Align::Left, ""))));
    } else if !target.is_empty() {
        spans.push(Span::raw(format!("{} ", elide(&target, 12, theme.dots()))));
    }
    let used: usize = spans.iter().map(Span::width).sum();
    let times = if entry.times > 1 { format!("  x{}", count(entry.times)) } else { String::new() };
    let text_room = usize::from(room).saturating_sub(used + times.len());
    let text_style = if entry.level == Level::Error { style } else { Style::new() };
    spans.push(Span::styled(clip(&entry.text, text_room, theme.dots()), text_style));
    spans.push(Span::styled(times, theme.quiet()));
    Line::from(spans)
}
