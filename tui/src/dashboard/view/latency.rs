//! Save-to-ack times as bars: one bar an ack, the newest at the right.

use std::time::{Duration, Instant};

use gitsync_core::model::status::Latency;
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::super::app::App;
use super::super::format::{Align, count, fit, latency};
use super::super::theme::Theme;

/// Upper ends, in milliseconds, of the first seven heights in the table. One scale for all rows, so
/// that they can be compared, and rough, so that a row which is fast looks calm.
const STEPS_MS: [u128; 7] = [5, 10, 25, 50, 100, 250, 1_000];
/// Columns of the axis labels.
const LABEL: usize = 7;

/// The newest acks in one line of `wide` columns.
pub fn trend(theme: Theme, samples: &Latency, now: Instant, wide: usize) -> String {
    let times: Vec<Duration> = newest(samples, now, wide);
    let bars = theme.bars();
    let gaps = theme.gap().repeat(wide - times.len());
    let height = |time: &Duration| STEPS_MS.iter().take_while(|step| time.as_millis() > **step).count();
    gaps + &times.iter().map(|time| bars[height(time)]).collect::<String>()
}

fn newest(samples: &Latency, now: Instant, number: usize) -> Vec<Duration> {
    let times: Vec<Duration> = samples.recent(now).map(|(_, time)| time).collect();
    times[times.len().saturating_sub(number)..].to_vec()
}

pub fn draw(app: &App, frame: &mut Frame<'_>, area: Rect, now: Instant) {
    let Some(target) = app.current() else { return };
    let theme = app.theme;
    let rows = usize::from(area.height);
    let chart_rows = rows.saturating_sub(4).clamp(1, 6);
    let wide = usize::from(area.width).saturating_sub(LABEL + 2);
    let times = newest(&target.latency, now, wide);
    let Some(top) = times.iter().max().copied().map(scale) else {
        let line = Line::styled("no save acked in the last 10 minutes", theme.quiet()).centered();
        let y = area.y + area.height / 2;
        frame.render_widget(line, Rect { y, height: 1, ..area }.intersection(area));
        return;
    };
    let mut lines: Vec<Line<'static>> = Vec::new();
    for row in (0..chart_rows).rev() {
        let label = match row {
            _ if row == chart_rows - 1 => latency(top),
            0 => "0ms".into(),
            _ => String::new(),
        };
        let mut bars = " ".repeat(wide - times.len());
        bars.extend(times.iter().map(|time| bar(theme, *time, top, row, chart_rows)));
        lines.push(Line::from(vec![
            Span::styled(format!("{} ", fit(&label, LABEL, Align::Right, "")), theme.quiet()),
            Span::raw(bars),
        ]));
    }
    lines.push(Line::default());
    if let Some(p) = target.latency.percentiles(now) {
        lines.push(fact(
            theme,
            "ack",
            format!("p50 {}  p95 {}  max {}", latency(p.p50), latency(p.p95), latency(p.max)),
        ));
        lines.push(fact(theme, "of", format!("{} acks, save to ack", count(p.count as u64))));
    }
    if let Some((_, _, acked)) = &target.last_ack {
        let mut parts = Vec::new();
        parts.extend(acked.rtt.map(|rtt| format!("wire {}", latency(rtt))));
        parts.push(format!("apply {}", latency(acked.apply)));
        if !acked.held.is_zero() {
            parts.push(format!("held for git {}", latency(acked.held)));
        }
        lines.push(fact(theme, "last", parts.join("  ")));
    }
    for (y, line) in (area.top()..area.bottom()).zip(lines) {
        frame.render_widget(line, Rect { y, height: 1, ..area });
    }
}

fn fact(theme: Theme, label: &str, text: String) -> Line<'static> {
    Line::from(vec![
        Span::styled(format!("{} ", fit(label, LABEL, Align::Right, "")), theme.quiet()),
        Span::raw(text),
    ])
}

/// The axis ends at 1, 2 or 5 times a power of ten, and not below 10 ms: noise is no mountain.
fn scale(max: Duration) -> Duration {
    let max = max.as_millis().max(1) as u64;
    let mut decade = 10;
    loop {
        for step in [1, 2, 5] {
            if max <= decade * step {
                return Duration::from_millis(decade * step);
            }
        }
        let Some(next) = decade.checked_mul(10).filter(|next| *next < u64::MAX / 10) else {
            return Duration::from_millis(max);
        };
        decade = next;
    }
}

/// One cell of a bar that is `rows` cells of eight steps high in all.
fn bar(theme: Theme, time: Duration, top: Duration, row: usize, rows: usize) -> &'static str {
    let steps = (rows * 8) as u128;
    let filled = (time.as_micros() * steps).div_ceil(top.as_micros().max(1)).clamp(1, steps) as usize;
    match filled.saturating_sub(row * 8) {
        0 => " ",
        n => theme.bars()[n.min(8) - 1],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        let shown = |ms| scale(Duration::from_millis(ms)).as_millis();
        assert_eq!(
            [shown(0), shown(3), shown(11), shown(61), shown(141), shown(501)],
            [10, 10, 20, 100, 200, 1_000]
        );
        assert!(scale(Duration::MAX) > Duration::from_secs(1));
    }

    #[test]
    fn a_bar_fills_from_below() {
        let theme = Theme::new(false, true);
        let ms = Duration::from_millis;
        assert_eq!(bar(theme, ms(0), ms(100), 0, 2), "▁");
        assert_eq!(bar(theme, ms(50), ms(100), 0, 2), "█");
        assert_eq!(bar(theme, ms(50), ms(100), 1, 2), " ");
        assert_eq!(bar(theme, ms(100), ms(100), 1, 2), "█");
    }
}
