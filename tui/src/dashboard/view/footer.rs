//! The last line: a toast, the filter being typed, or the keys that matter here, clipped at whole hints.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::super::app::{App, Layer, Level, Pane, needs_a_look};
use super::super::format::{clean, clip, width};
use super::super::keymap::{Action, Binding, Context, bindings};
use crate::sense::is_paused;

pub fn draw(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let room = usize::from(area.width);
    let theme = app.theme;
    if let Layer::Filter { .. } = app.layer {
        let typed = format!(" / {}", clean(&app.filter));
        let shown = clip(&typed, room.saturating_sub(1), theme.dots());
        let left = room.saturating_sub(width(&shown) + 1);
        let mut spans = vec![Span::styled(shown, theme.strong()), Span::styled(" ", theme.selected())];
        let hint = "Enter keeps it  Esc drops it ";
        if left > hint.len() + 1 {
            spans.push(Span::styled(format!("{hint:>left$}"), theme.quiet()));
        }
        frame.render_widget(Line::from(spans), area);
        return;
    }
    if let Some(toast) = &app.toast {
        let style = match toast.level {
            Level::Info => theme.strong(),
            Level::Warn => theme.warn().patch(theme.strong()),
            Level::Error => theme.error(),
        };
        let times = if toast.times > 1 { format!("  x{}", toast.times) } else { String::new() };
        let text = clip(&format!(" {}{times}", clean(&toast.text)), room, theme.dots());
        frame.render_widget(Line::styled(text, style), area);
        return;
    }
    let context = app.context().unwrap_or(Context::Main);
    let hints = hints(app, context);
    let fixed = if context == Context::Main { fixed() } else { Vec::new() };
    let (right, right_wide) = spans(app, &fixed, usize::MAX);
    let (left, _) = spans(app, &hints, room.saturating_sub(right_wide + 1));
    frame.render_widget(Line::from(left), area);
    if right_wide <= room {
        frame.render_widget(Line::from(right).right_aligned(), area);
    }
}

type Hint = (String, String);

/// What is always at the right.
fn fixed() -> Vec<Hint> {
    bindings(Context::Main)
        .filter(|binding| matches!(binding.action, Action::Help | Action::Quit))
        .map(|binding| (binding.keys_text(false), binding.label.to_owned()))
        .collect()
}

fn hints(app: &App, context: Context) -> Vec<Hint> {
    let mut ranked: Vec<(&Binding, u8)> =
        bindings(context).filter_map(|binding| Some((binding, binding.rank?))).collect();
    ranked.sort_by_key(|(_, rank)| *rank);
    ranked
        .into_iter()
        .filter(|(binding, _)| app.availability(binding).is_ok() && is_useful(app, binding))
        .map(|(binding, _)| (binding.keys_text(false), label(app, binding)))
        .collect()
}

fn is_useful(app: &App, binding: &Binding) -> bool {
    match (binding.context, binding.action) {
        (Context::Main, Action::Back) => {
            app.zoom || app.focus != Pane::Targets || app.is_filtered() || app.frozen.is_some()
        }
        (Context::Main, Action::Open) => app.focus == Pane::Targets && !app.zoom && app.current().is_some(),
        (Context::Main, Action::NextTrouble) => app.rows().iter().any(|row| needs_a_look(row)),
        (Context::Main, Action::Log) => app.focus != Pane::Log,
        _ => true,
    }
}

fn label(app: &App, binding: &Binding) -> String {
    let paused = app.current().is_some_and(|target| is_paused(target.phase));
    let at_root = !app.zoom && app.focus == Pane::Targets;
    match (binding.context, binding.action) {
        (Context::Main, Action::Back) if at_root && app.is_filtered() => "show all".into(),
        (Context::Main, Action::Back) if at_root => "unfreeze".into(),
        (Context::Main, Action::Pause) if paused => "resume".into(),
        (Context::Main, Action::Unhealthy) if app.unhealthy_only => "show all".into(),
        (Context::Main, Action::Freeze) if app.frozen.is_some() => "unfreeze".into(),
        _ => binding.label.into(),
    }
}

/// As many whole hints as `room` holds.
fn spans(app: &App, hints: &[Hint], room: usize) -> (Vec<Span<'static>>, usize) {
    let mut spans = Vec::new();
    let mut used = 0;
    for (key, label) in hints {
        let wide = 1 + width(key) + 1 + width(label) + 1;
        if used + wide > room {
            break;
        }
        used += wide;
        spans.push(Span::styled(format!(" {key}"), app.theme.key()));
        spans.push(Span::raw(format!(" {label} ")));
    }
    (spans, used)
}
