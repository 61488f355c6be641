//! Draws the [`App`] and changes nothing.
//!
//! ```text
//! header   counts by state, overall latency
//! targets  one row each                        full     >= 110x30  all panes, latency beside the detail
//! detail   the selected target │ latency       medium   >=  70x18  all panes
//! log      what happened                       compact  >=  30x6   one pane a page, no borders
//! footer   keys, a toast or the filter         too small otherwise: the counts
//! ```

mod detail;
mod footer;
mod header;
mod latency;
mod log;
mod popup;
mod table;

use std::time::Instant;

use gitsync_core::model::Phase;
use gitsync_core::model::status::Status;
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders};

use super::app::{App, Layer, Pane};
use super::format::{clip, width};

const MEDIUM: (u16, u16) = (70, 18);
const FULL: (u16, u16) = (110, 30);
const COMPACT: (u16, u16) = (30, 6);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Density {
    TooSmall,
    Compact,
    Medium,
    Full,
}

/// Where everything goes; an absent part is not drawn.
#[derive(Debug, Default)]
struct Layout {
    header: Rect,
    targets: Option<Rect>,
    detail: Option<Rect>,
    latency: Option<Rect>,
    log: Option<Rect>,
    /// The line on the selected target that stands in for the detail.
    strip: Option<Rect>,
    footer: Rect,
    bordered: bool,
}

pub fn view(app: &App, frame: &mut Frame<'_>, now: Instant) {
    let area = frame.area();
    let now = app.shown_at(now);
    if density(area) == Density::TooSmall {
        return header::too_small(app, frame, area, COMPACT);
    }
    let layout = layout(app, area);
    header::draw(app, frame, layout.header, now);
    if let Some(area) = layout.targets {
        let inner = pane(app, frame, &layout, area, Pane::Targets, table::title(app));
        table::draw(app, frame, inner, now);
    }
    if let Some(area) = layout.detail {
        let inner = pane(app, frame, &layout, area, Pane::Detail, detail::title(app));
        detail::draw(app, frame, inner, now);
    }
    if let Some(area) = layout.latency {
        let block = Block::new()
            .borders(Borders::ALL)
            .border_set(app.theme.border_set(false))
            .border_style(app.theme.border(false))
            .title(Line::styled(" Latency ", app.theme.strong()));
        let inner = block.inner(area);
        frame.render_widget(block, area);
        latency::draw(app, frame, inner, now);
    }
    if let Some(area) = layout.log {
        let inner = pane(app, frame, &layout, area, Pane::Log, log::title(app));
        log::draw(app, frame, inner);
    }
    if let Some(area) = layout.strip {
        detail::draw_strip(app, frame, area, now);
    }
    footer::draw(app, frame, layout.footer);
    match &app.layer {
        Layer::Help { scroll } => popup::draw_help(app, frame, area, *scroll),
        Layer::Confirm(confirm) => popup::draw_confirm(app, frame, area, confirm),
        Layer::None | Layer::Filter { .. } => {}
    }
}

/// How many targets are in each state, worst first. States that come and go with every save are
/// last, so that the others keep their place.
pub fn counts(status: &Status) -> Vec<(Phase, usize)> {
    const ORDER: [Phase; 10] = [
        Phase::Failed,
        Phase::Halted,
        Phase::Retrying,
        Phase::InSync,
        Phase::Paused,
        Phase::Pausing,
        Phase::Connecting,
        Phase::Negotiating,
        Phase::Bootstrapping,
        Phase::Syncing,
    ];
    let number = |phase| status.targets.iter().filter(|target| target.phase == phase).count();
    ORDER.into_iter().map(|phase| (phase, number(phase))).filter(|(_, number)| *number > 0).collect()
}

pub fn detail_scroll_max(app: &App, now: Instant) -> u16 {
    let layout = layout(app, app_area(app));
    let Some(area) = layout.detail else { return 0 };
    let inner = inner(&layout, area);
    detail::overflow(app, inner, app.shown_at(now))
}

pub fn log_scroll_max(app: &App) -> u16 {
    let layout = layout(app, app_area(app));
    let Some(area) = layout.log else { return 0 };
    let lines = app.log.until(app.log_end()).count();
    u16::try_from(lines).unwrap_or(u16::MAX).saturating_sub(inner(&layout, area).height)
}

pub fn help_scroll_max(app: &App) -> u16 {
    popup::help_overflow(app, app_area(app))
}

fn app_area(app: &App) -> Rect {
    Rect::new(0, 0, app.size.width, app.size.height)
}

fn density(area: Rect) -> Density {
    let holds = |(width, height)| area.width >= width && area.height >= height;
    if holds(FULL) {
        Density::Full
    } else if holds(MEDIUM) {
        Density::Medium
    } else if holds(COMPACT) {
        Density::Compact
    } else {
        Density::TooSmall
    }
}

fn layout(app: &App, area: Rect) -> Layout {
    let density = density(area);
    if density == Density::TooSmall {
        return Layout::default();
    }
    let line = |y| Rect::new(area.x, y, area.width, 1);
    let rows = |y: u16, height: u16| Rect::new(area.x, area.y + y, area.width, height);
    let body = area.height - 2;
    let mut layout = Layout {
        header: line(area.y),
        footer: line(area.bottom() - 1),
        bordered: density != Density::Compact,
        ..Layout::default()
    };
    if density == Density::Compact || app.zoom {
        match app.focus {
            Pane::Targets if density == Density::Compact && !app.zoom => {
                let strip = if body >= 7 { 2 } else { 1 };
                layout.targets = Some(rows(1, body - strip));
                layout.strip = Some(rows(1 + body - strip, strip));
            }
            Pane::Targets => layout.targets = Some(rows(1, body)),
            Pane::Detail => layout.detail = Some(rows(1, body)),
            Pane::Log => layout.log = Some(rows(1, body)),
        }
        return layout;
    }
    // By the number of all targets, not of those shown: a filter being typed moves no border.
    let wanted = u16::try_from(app.shown().targets.len()).unwrap_or(u16::MAX).saturating_add(3);
    let detail = if density == Density::Full { 11 } else { 8 };
    let log_min = if density == Density::Full { 7 } else { 5 };
    let targets = wanted.clamp(5, body.saturating_sub(detail + log_min).max(5));
    layout.targets = Some(rows(1, targets));
    let mut detail_area = rows(1 + targets, detail);
    if density == Density::Full {
        let side = (area.width * 2 / 5).min(60);
        layout.latency = Some(Rect { x: detail_area.right() - side, width: side, ..detail_area });
        detail_area.width -= side;
    }
    layout.detail = Some(detail_area);
    layout.log = Some(rows(1 + targets + detail, body - targets - detail));
    layout
}

fn inner(layout: &Layout, area: Rect) -> Rect {
    if layout.bordered { Block::new().borders(Borders::ALL).inner(area) } else { area }
}

/// Draws a pane's border, if it has one, and returns what is inside.
fn pane(
    app: &App,
    frame: &mut Frame<'_>,
    layout: &Layout,
    area: Rect,
    which: Pane,
    title: (String, String),
) -> Rect {
    if layout.bordered {
        let focused = app.focus == which;
        let dots = app.theme.dots();
        let room = usize::from(area.width.saturating_sub(4));
        let (name, rest) = title;
        let name = clip(&name, room, dots);
        let rest = clip(&rest, room.saturating_sub(width(&name) + 2), dots);
        let name_style = if focused { app.theme.key() } else { app.theme.strong() };
        let mut spans = vec![Span::styled(format!(" {name} "), name_style)];
        if !rest.is_empty() {
            spans.push(Span::styled(format!(" {rest} "), app.theme.quiet()));
        }
        let block = Block::new()
            .borders(Borders::ALL)
            .border_set(app.theme.border_set(focused))
            .border_style(app.theme.border(focused))
            .title(Line::from(spans));
        frame.render_widget(block, area);
    }
    inner(layout, area)
}
