//! Numbers, times and names as people read them, in bounded widths so that nothing on the screen
//! jumps. All text from outside passes [`clean`] before it is measured or drawn.

use std::time::{Duration, SystemTime};

use gitsync_core::model::path::escape;
use gitsync_core::model::{Changes, Rung, TargetId, WithheldReason};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use ratatui::text::Span;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// Text from another machine, a file name or an error, without control and direction-changing characters.
pub fn clean(text: &str) -> String {
    escape(text.as_bytes())
}

/// An age in at most six characters: `0.4s 12s 2m51s 3h04m 4d`.
pub fn age(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0..10 => format!("{s}.{}s", d.subsec_millis() / 100),
        10..60 => format!("{s}s"),
        60..3_600 => format!("{}m{:02}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h{:02}m", s / 3_600, s / 60 % 60),
        _ => format!("{}d", s / 86_400),
    }
}

/// Whole seconds until something happens, never "in 0s": what is due is shown as due.
pub fn countdown(left: Duration) -> Option<String> {
    let seconds = left.as_millis().div_ceil(1_000);
    (seconds > 0).then(|| age_seconds(seconds as u64))
}

fn age_seconds(s: u64) -> String {
    if s < 60 { format!("{s}s") } else { age(Duration::from_secs(s)) }
}

/// A latency: `3.1ms 61ms 1.2s`.
pub fn latency(d: Duration) -> String {
    if d < Duration::from_secs(1) { format!("{}ms", millis(d)) } else { age(d) }
}

/// Two latencies in at most ten characters: `38/72ms`, `910ms/1.2s`.
pub fn latency_pair(a: Duration, b: Duration) -> String {
    if b < Duration::from_secs(1) {
        format!("{}/{}ms", millis(a), millis(b))
    } else {
        format!("{}/{}", latency(a), latency(b))
    }
}

fn millis(d: Duration) -> String {
    let ms = d.as_micros() as f64 / 1_000.0;
    if ms < 9.95 { format!("{ms:.1}") } else { format!("{}", d.as_millis()) }
}

/// `212 B`, `3.1 KB`, `18.4 MB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KB", "MB", "GB", "TB", "PB"];
    if n < 1_000 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1_000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1_000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `1,203`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A count in at most four characters: `999 1.2k 34k 1.2M`.
pub fn short_count(n: u64) -> String {
    match n {
        0..1_000 => n.to_string(),
        1_000..10_000 => format!("{}.{}k", n / 1_000, n / 100 % 10),
        10_000..1_000_000 => format!("{}k", n / 1_000),
        1_000_000..10_000_000 => format!("{}.{}M", n / 1_000_000, n / 100_000 % 10),
        _ => format!("{}M", n / 1_000_000),
    }
}

/// `1 path`, `2 paths`.
pub fn plural(n: u64, word: &str) -> String {
    format!("{} {word}{}", count(n), if n == 1 { "" } else { "s" })
}

/// What a reload of the configuration came to.
pub fn reload_words(changes: &Changes) -> String {
    let lists = [("added", &changes.added), ("removed", &changes.removed), ("changed", &changes.changed)];
    let some = lists.into_iter().filter(|(_, targets)| !targets.is_empty());
    let words = some.map(|(what, targets): (&str, &Vec<TargetId>)| {
        let names: Vec<String> = targets.iter().map(|target| clean(&target.to_string())).collect();
        format!("{what} {}", names.join(", "))
    });
    let words: Vec<String> = words.collect();
    let words = if words.is_empty() { "no target differs".into() } else { words.join("; ") };
    format!("configuration reloaded: {words}")
}

/// What a session has to send at its beginning.
pub fn rung_words(rung: Rung) -> &'static str {
    match rung {
        Rung::None => "nothing to send",
        Rung::Diff => "step from a known state",
        Rung::Patch => "whole patch",
    }
}

/// Why a path was left out, sizes as people read them.
pub fn withheld_reason(reason: &WithheldReason) -> String {
    match reason {
        WithheldReason::TooLarge { size, limit } => {
            format!("{}, over the limit of {}", bytes(*size), bytes(*limit))
        }
        other => clean(&other.to_string()),
    }
}

/// Wall time, `13:59:41`.
pub fn clock(time: SystemTime, zone: &TimeZone) -> String {
    match Timestamp::try_from(time) {
        Ok(stamp) => stamp.to_zoned(zone.clone()).strftime("%H:%M:%S").to_string(),
        Err(_) => "--:--:--".into(),
    }
}

/// Columns a text takes.
pub fn width(text: &str) -> usize {
    Span::raw(text).width()
}

fn char_width(c: char) -> usize {
    width(c.encode_utf8(&mut [0; 4]))
}

/// The longest beginning that takes at most `max` columns.
fn head(text: &str, max: usize) -> &str {
    let mut used = 0;
    for (at, c) in text.char_indices() {
        used += char_width(c);
        if used > max {
            return &text[..at];
        }
    }
    text
}

/// The longest end that takes at most `max` columns.
fn tail(text: &str, max: usize) -> &str {
    let mut used = 0;
    for (at, c) in text.char_indices().rev() {
        used += char_width(c);
        if used > max {
            return &text[at + c.len_utf8()..];
        }
    }
    text
}

/// Cuts the end off: a sentence says most at its beginning.
pub fn clip(text: &str, max: usize, dots: &str) -> String {
    if width(text) <= max {
        return text.to_owned();
    }
    match max.checked_sub(width(dots)) {
        Some(room) => format!("{}{dots}", head(text, room)),
        None => head(text, max).to_owned(),
    }
}

/// Cuts the middle out: a name says most at both ends.
pub fn elide(text: &str, max: usize, dots: &str) -> String {
    if width(text) <= max {
        return text.to_owned();
    }
    match max.checked_sub(width(dots)) {
        Some(room) if room >= 2 => {
            format!("{}{dots}{}", head(text, room - room / 2), tail(text, room / 2))
        }
        _ => clip(text, max, dots),
    }
}

/// Exactly `columns` wide: padded, and cut if it must be.
pub fn fit(text: &str, columns: usize, align: Align, dots: &str) -> String {
    let text = clip(text, columns, dots);
    let pad = " ".repeat(columns.saturating_sub(width(&text)));
    match align {
        Align::Left => text + &pad,
        Align::Right => pad + &text,
    }
}

/// Breaks at spaces; a word wider than a line is cut where it must be.
pub fn wrap(text: &str, columns: usize) -> Vec<String> {
    let columns = columns.max(1);
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        let mut word = word;
        let gap = usize::from(!line.is_empty());
        if width(&line) + gap + width(word) <= columns {
            line.extend((gap == 1).then_some(' '));
            line.push_str(word);
            continue;
        }
        if !line.is_empty() {
            lines.push(std::mem::take(&mut line));
        }
        while width(word) > columns {
            let mut part = head(word, columns);
            if part.is_empty() {
                // One character wider than the whole line: give it up.
                part = &word[..word.chars().next().map_or(0, char::len_utf8)];
                word = &word[part.len()..];
                continue;
            }
            lines.push(part.to_owned());
            word = &word[part.len()..];
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_stay_within_six_columns() {
        let shown = |ms: u64| age(Duration::from_millis(ms));
        assert_eq!(shown(400), "0.4s");
        assert_eq!(shown(12_900), "12s");
        assert_eq!(shown(171_000), "2m51s");
        assert_eq!(shown(11_040_000), "3h04m");
        assert_eq!(shown(345_600_000), "4d");
        for ms in (0..200_000_000).step_by(333_333) {
            assert!(shown(ms).len() <= 6, "{}", shown(ms));
        }
    }

    #[test]
    fn a_countdown_rounds_up_and_ends() {
        assert_eq!(countdown(Duration::from_millis(2_001)).as_deref(), Some("3s"));
        assert_eq!(countdown(Duration::from_millis(1)).as_deref(), Some("1s"));
        assert_eq!(countdown(Duration::ZERO), None);
    }

    #[test]
    fn latencies_counts_and_sizes() {
        let ms = Duration::from_millis;
        assert_eq!(latency(Duration::from_micros(3_140)), "3.1ms");
        assert_eq!(latency(ms(61)), "61ms");
        assert_eq!(latency_pair(ms(38), ms(72)), "38/72ms");
        assert_eq!(latency_pair(ms(910), ms(1_200)), "910ms/1.2s");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(999_999), "1.0 MB");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(short_count(1_250), "1.2k");
        assert_eq!(plural(1, "path"), "1 path");
    }

    #[test]
    fn names_are_cut_by_columns_not_bytes() {
        assert_eq!(elide("frontend@gpu-cluster", 11, "…"), "front…uster");
        assert_eq!(clip("日本語テキスト", 5, "…"), "日本…");
        assert_eq!(fit("日本語", 5, Align::Right, "…"), "日本…");
        assert_eq!(fit("7", 3, Align::Right, "…"), "  7");
        assert_eq!(elide("abcdef", 1, ".."), "a");
        assert_eq!(clip("abc", 0, "…"), "");
    }

    #[test]
    fn wrapping_keeps_every_word() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefgh x", 3), ["abc", "def", "gh", "x"]);
        assert_eq!(wrap("", 5), [""]);
        assert_eq!(wrap("日本", 1), [""]);
    }

    #[test]
    fn hostile_text_is_made_visible() {
        assert_eq!(clean("a\u{1b}[31m\u{202e}b"), "a\\u{1b}[31m\\u{202e}b");
    }
}
