//! Help and questions, centred over the panes.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Clear};

use super::super::app::{App, Confirm};
use super::super::format::{Align, clip, fit, wrap};
use super::super::keymap::{Context, Group, bindings};

/// Of one column of the help.
const KEYS: usize = 13;
const EXPLAINED: usize = 32;
const COLUMN: usize = KEYS + EXPLAINED;

pub fn draw_help(app: &App, frame: &mut Frame<'_>, area: Rect, scroll: u16) {
    let lines = help_lines(app, help_columns(area));
    let place = help_place(area, lines.len());
    let height = place.height.saturating_sub(2);
    let below = lines.len().saturating_sub(usize::from(scroll + height));
    let bottom = if below > 0 { format!(" {below} more below ") } else { String::new() };
    let inner = frame_popup(app, frame, place, " Help ", &bottom);
    for (y, line) in (inner.top()..inner.bottom()).zip(lines.into_iter().skip(scroll.into())) {
        frame.render_widget(line, Rect { y, height: 1, ..inner });
    }
}

pub fn help_overflow(app: &App, area: Rect) -> u16 {
    let lines = help_lines(app, help_columns(area)).len();
    (lines as u16).saturating_sub(help_place(area, lines).height.saturating_sub(2))
}

fn help_columns(area: Rect) -> usize {
    if usize::from(area.width) >= 2 * COLUMN + 4 { 2 } else { 1 }
}

fn help_place(area: Rect, lines: usize) -> Rect {
    let wide = help_columns(area) * COLUMN + 4;
    centred(area, wide, lines + 2)
}

/// One block a group, in two columns of about the same height where there is room.
fn help_lines(app: &App, columns: usize) -> Vec<Line<'static>> {
    let theme = app.theme;
    let block = |group: Group| {
        let mut lines = vec![(group.title().to_owned(), String::new())];
        let rows = bindings(Context::Main)
            .filter(|binding| binding.group == group && (!binding.acts || !app.read_only));
        lines.extend(rows.map(|binding| (binding.keys_text(true), binding.help.to_owned())));
        lines.push(Default::default());
        lines
    };
    let line = |pair: &(String, String)| {
        let (keys, help) = pair;
        let style = if help.is_empty() { theme.quiet() } else { theme.key() };
        [
            Span::styled(fit(keys, KEYS, Align::Left, ""), style),
            Span::raw(fit(help, EXPLAINED, Align::Left, theme.dots())),
        ]
    };
    let left = block(Group::Move);
    let right: Vec<_> = [Group::Target, Group::Look, Group::Program].into_iter().flat_map(block).collect();
    let nothing = (String::new(), String::new());
    if columns == 1 {
        return left.iter().chain(&right).map(|pair| Line::from_iter(line(pair))).collect();
    }
    (0..left.len().max(right.len()))
        .map(|i| {
            let left = line(left.get(i).unwrap_or(&nothing));
            let right = line(right.get(i).unwrap_or(&nothing));
            left.into_iter().chain(right).collect()
        })
        .collect()
}

pub fn draw_confirm(app: &App, frame: &mut Frame<'_>, area: Rect, confirm: &Confirm) {
    let theme = app.theme;
    let wide = usize::from(area.width).min(56);
    let room = wide.saturating_sub(4);
    let mut lines: Vec<Line<'static>> = vec![Line::default()];
    for (label, value) in &confirm.facts {
        for (i, part) in wrap(value, room.saturating_sub(12)).into_iter().enumerate() {
            let label = if i == 0 { label } else { "" };
            lines.push(Line::from(vec![Span::styled(format!("{label:12}"), theme.quiet()), Span::raw(part)]));
        }
    }
    lines.push(Line::default());
    let button = |text: &str, focused: bool| {
        if focused {
            Span::styled(format!("[ {text} ]"), theme.strong().patch(theme.selected()))
        } else {
            Span::styled(format!("  {text}  "), Style::new())
        }
    };
    let buttons = Line::from(vec![
        button("Cancel", !confirm.accept_focused),
        Span::raw("   "),
        button(confirm.verb, confirm.accept_focused),
    ])
    .centered();

    let height = lines.len() + 3;
    let title = format!(" {} ", clip(&confirm.title, room, theme.dots()));
    let place = centred(area, wide, height);
    let inner = frame_popup(app, frame, place, &title, "");
    if inner.height == 0 {
        return;
    }
    // When there is no room for all, the buttons are what must stay.
    let facts = Rect { height: inner.height - 1, ..inner };
    for (y, line) in (facts.top()..facts.bottom()).zip(lines) {
        frame.render_widget(line, Rect { y, height: 1, ..facts });
    }
    frame.render_widget(buttons, Rect { y: inner.bottom() - 1, height: 1, ..inner });
}

fn centred(area: Rect, wide: usize, high: usize) -> Rect {
    let fits = |wanted: usize, room: u16| u16::try_from(wanted).unwrap_or(u16::MAX).min(room);
    let (wide, high) = (fits(wide, area.width), fits(high, area.height.saturating_sub(1)));
    Rect::new(area.x + (area.width - wide) / 2, area.y + (area.height - high) / 2, wide, high)
}

/// Clears the place, draws the border and returns what is inside, a column in from it.
fn frame_popup(app: &App, frame: &mut Frame<'_>, place: Rect, title: &str, bottom: &str) -> Rect {
    let theme = app.theme;
    let block = Block::new()
        .borders(Borders::ALL)
        .border_set(theme.border_set(true))
        .border_style(theme.border(true))
        .title(Span::styled(title.to_owned(), theme.strong()))
        .title_bottom(Line::styled(bottom.to_owned(), theme.quiet()).right_aligned());
    let mut inner = block.inner(place);
    frame.render_widget(Clear, place);
    frame.render_widget(block, place);
    if inner.width > 2 {
        inner.x += 1;
        inner.width -= 2;
    }
    inner
}
