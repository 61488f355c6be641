//! Colours and signs. A state is always told by a sign and a word; colour only repeats it.
//!
//! `ansi` uses the terminal's own sixteen colours on its own background, so it fits light and dark
//! without asking. `mono` uses modifiers and nothing else: the terminal library's own answer to
//! `NO_COLOR` sends resets that take the selection bar away, so no colour may reach it.

use gitsync_core::model::Phase;
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::border;

use crate::cli::ColorChoice;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Theme {
    coloured: bool,
    unicode: bool,
}

const ASCII_BORDER: border::Set<'static> = border::Set {
    top_left: "+",
    top_right: "+",
    bottom_left: "+",
    bottom_right: "+",
    vertical_left: "|",
    vertical_right: "|",
    horizontal_top: "-",
    horizontal_bottom: "-",
};

impl Theme {
    pub const fn new(coloured: bool, unicode: bool) -> Self {
        Self { coloured, unicode }
    }

    /// Chooses by flag, then name, then environment; also says what is wrong with the name.
    pub fn resolve(
        name: Option<&str>,
        color: ColorChoice,
        env: impl Fn(&str) -> Option<String>,
    ) -> (Self, Option<String>) {
        let set = |name: &str| env(name).filter(|value| !value.is_empty());
        let locale = set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG")).unwrap_or_default();
        let unicode = matches!(locale.to_ascii_lowercase().replace('-', ""), l if l.ends_with("utf8") || l.contains("utf8@"));
        let can_colour = set("TERM").is_some_and(|term| {
            term != "dumb" && !term.starts_with("vt1") && !term.starts_with("vt2") && !term.ends_with("-m")
        });
        let wanted = match color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => can_colour && set("NO_COLOR").is_none(),
        };
        let (coloured, complaint) = match name {
            Some("mono") => (false, None),
            None | Some("ansi" | "auto") => (wanted, None),
            Some(other) => {
                (wanted, Some(format!("no theme is called '{other}': ansi is used (there are ansi, mono)")))
            }
        };
        (Self { coloured, unicode }, complaint)
    }

    pub fn is_coloured(self) -> bool {
        self.coloured
    }

    fn hue(self, color: Color) -> Style {
        if self.coloured { Style::new().fg(color) } else { Style::new() }
    }

    pub fn phase(self, phase: Phase) -> Style {
        match phase {
            Phase::InSync => self.hue(Color::Green),
            Phase::Syncing => self.hue(Color::Cyan),
            Phase::Connecting | Phase::Negotiating | Phase::Bootstrapping => self.hue(Color::Cyan),
            Phase::Pausing | Phase::Paused => self.hue(Color::Magenta),
            Phase::Retrying => self.hue(Color::Yellow),
            Phase::Halted | Phase::Failed => self.hue(Color::Red).add_modifier(Modifier::BOLD),
        }
    }

    pub fn warn(self) -> Style {
        self.hue(Color::Yellow)
    }

    pub fn error(self) -> Style {
        self.hue(Color::Red).add_modifier(Modifier::BOLD)
    }

    /// What a key is printed in.
    pub fn key(self) -> Style {
        self.hue(Color::Cyan).add_modifier(Modifier::BOLD)
    }

    pub fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// What is there when looked for and otherwise stays back.
    pub fn quiet(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    pub fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    pub fn border(self, focused: bool) -> Style {
        if focused { self.hue(Color::Cyan) } else { self.quiet() }
    }

    pub fn border_set(self, focused: bool) -> border::Set<'static> {
        match (self.unicode, focused && !self.coloured) {
            (false, _) => ASCII_BORDER,
            (true, false) => border::PLAIN,
            // Without colour the focus has to show in the line itself.
            (true, true) => border::THICK,
        }
    }

    pub fn glyph(self, phase: Phase) -> &'static str {
        let (unicode, ascii) = match phase {
            Phase::Connecting => ("○", "o"),
            Phase::Negotiating => ("◌", "o"),
            Phase::Bootstrapping => ("▒", "#"),
            Phase::Syncing => ("↑", "^"),
            Phase::InSync => ("●", "*"),
            Phase::Pausing => ("·", "."),
            Phase::Paused => ("‖", "="),
            Phase::Retrying => ("↻", "~"),
            Phase::Halted => ("✗", "x"),
            Phase::Failed => ("!", "!"),
        };
        if self.unicode { unicode } else { ascii }
    }

    pub fn dots(self) -> &'static str {
        if self.unicode { "…" } else { ".." }
    }

    /// Marks the selected row where reversal alone could be missed.
    pub fn marker(self) -> &'static str {
        if self.unicode { "▸" } else { ">" }
    }

    /// Eight heights, lowest first.
    pub fn bars(self) -> [&'static str; 8] {
        if self.unicode {
            ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"]
        } else {
            ["_", ".", ":", "-", "=", "+", "*", "#"]
        }
    }

    /// Stands where there is no sample.
    pub fn gap(self) -> &'static str {
        if self.unicode { "·" } else { " " }
    }
}

/// The word for a state on the screen, without its sign.
pub fn word(phase: Phase) -> &'static str {
    match phase {
        Phase::InSync => "in sync",
        other => other.name(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASES: [Phase; 10] = [
        Phase::Connecting,
        Phase::Negotiating,
        Phase::Bootstrapping,
        Phase::Syncing,
        Phase::InSync,
        Phase::Pausing,
        Phase::Paused,
        Phase::Retrying,
        Phase::Halted,
        Phase::Failed,
    ];

    fn resolve(name: Option<&str>, color: ColorChoice, env: &[(&str, &str)]) -> (Theme, Option<String>) {
        Theme::resolve(name, color, |wanted| {
            env.iter().find(|(name, _)| *name == wanted).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn colour_follows_flag_then_theme_then_environment() {
        let xterm = ("TERM", "xterm-256color");
        let no_color = ("NO_COLOR", "1");
        type Row<'a> = (Option<&'a str>, ColorChoice, &'a [(&'a str, &'a str)], bool);
        let rows: &[Row<'_>] = &[
            (None, ColorChoice::Auto, &[xterm], true),
            (None, ColorChoice::Auto, &[xterm, no_color], false),
            (None, ColorChoice::Auto, &[xterm, ("NO_COLOR", "")], true),
            (None, ColorChoice::Auto, &[("TERM", "dumb")], false),
            (None, ColorChoice::Auto, &[], false),
            (None, ColorChoice::Auto, &[("TERM", "vt100")], false),
            (None, ColorChoice::Always, &[no_color], true),
            (Some("ansi"), ColorChoice::Never, &[xterm], false),
            (Some("mono"), ColorChoice::Always, &[xterm], false),
        ];
        for (name, color, env, coloured) in rows {
            assert_eq!(resolve(*name, *color, env).0.is_coloured(), *coloured, "{name:?} {color:?} {env:?}");
        }
        assert!(resolve(Some("solar"), ColorChoice::Auto, &[]).1.unwrap().contains("'solar'"));
    }

    #[test]
    fn signs_follow_the_locale() {
        let rows: &[(&[(&str, &str)], &str)] = &[
            (&[("LANG", "en_US.UTF-8")], "●"),
            (&[("LANG", "C.utf8")], "●"),
            (&[("LC_ALL", "C"), ("LANG", "en_US.UTF-8")], "*"),
            (&[("LC_ALL", ""), ("LC_CTYPE", "de_DE.UTF-8")], "●"),
            (&[], "*"),
        ];
        for (env, glyph) in rows {
            assert_eq!(resolve(None, ColorChoice::Auto, env).0.glyph(Phase::InSync), *glyph, "{env:?}");
        }
    }

    #[test]
    fn mono_has_no_colours_and_every_sign_takes_one_column() {
        let mono = Theme::new(false, true);
        let mut styles = vec![mono.warn(), mono.error(), mono.key(), mono.quiet(), mono.selected()];
        styles.extend([mono.border(true), mono.border(false)]);
        for phase in PHASES {
            styles.push(mono.phase(phase));
            for unicode in [true, false] {
                assert_eq!(super::super::format::width(Theme::new(false, unicode).glyph(phase)), 1);
            }
        }
        assert!(styles.iter().all(|style| style.fg.is_none() && style.bg.is_none()));
    }
}
