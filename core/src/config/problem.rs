//! What is wrong with a configuration file, as values and as text.
//!
//! All problems of a file are collected and shown together, in the order of the file. The text never
//! holds a control character of the file: what is shown ends on a terminal.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use crate::model::path::escape;

/// Longest piece of a source line that is shown, in characters.
const SHOWN_MAX: usize = 120;

/// Everything wrong with one configuration file. Displays as text for a person, without a newline at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    pub file: PathBuf,
    /// In the order of the file; never empty.
    pub problems: Vec<Problem>,
}

/// One thing wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `None` when it is about the whole file.
    pub place: Option<Place>,
    /// A lowercase fragment.
    pub message: String,
    /// What could stand there instead; empty when that is no list.
    pub allowed: Vec<String>,
    /// The one of them that was probably meant.
    pub nearest: Option<String>,
    /// The next step.
    pub hint: Option<String>,
}

/// Where in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// Characters of the line that are meant; at least 1.
    pub width: usize,
    /// The whole line as it stands in the file.
    pub source: String,
}

impl Problem {
    pub fn new(place: Option<Place>, message: impl Into<String>) -> Self {
        Self { place, message: message.into(), allowed: Vec::new(), nearest: None, hint: None }
    }

    /// Says what could stand there, and which of it is meant by `given`.
    pub fn allowed(mut self, given: &str, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.allowed = names.into_iter().map(Into::into).collect();
        self.nearest = nearest(given, &self.allowed).map(str::to_owned);
        self
    }

    /// Says what to do.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl Place {
    /// Finds the line and column of a byte range of `text`.
    pub(super) fn of(text: &str, span: Range<usize>) -> Self {
        let mut start = span.start.min(text.len());
        while !text.is_char_boundary(start) {
            start -= 1;
        }
        let line_start = text[..start].rfind('\n').map_or(0, |i| i + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |i| start + i);
        let source = text[line_start..line_end].trim_end_matches('\r');
        let end = span.end.clamp(start, line_end);
        Self {
            line: text[..line_start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            width: text.get(start..end).map_or(1, |s| s.trim_end().chars().count()).max(1),
            source: source.to_owned(),
        }
    }

    /// The piece of the line around the caret, and how many characters of it stand before the caret.
    fn excerpt(&self) -> (String, usize) {
        let before = self.column - 1;
        let skipped = before.saturating_sub(SHOWN_MAX / 2);
        // One character for one, so that the caret stays below what it points at.
        let plain = |c: char| match c {
            '\t' => ' ',
            c if c.is_control()
                || escape(c.encode_utf8(&mut [0; 4]).as_bytes()).len() > c.len_utf8() && c != '\\' =>
            {
                '\u{fffd}'
            }
            c => c,
        };
        (self.source.chars().skip(skipped).take(SHOWN_MAX).map(plain).collect(), before - skipped)
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = escape(self.file.as_os_str().as_encoded_bytes());
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n\n")?;
            }
            match &problem.place {
                Some(place) => write!(f, "{file}:{}:{}: {problem}", place.line, place.column)?,
                None => write!(f, "{file}: {problem}")?,
            }
        }
        if self.problems.len() > 1 {
            write!(f, "\n\n{} problems in {file}", self.problems.len())?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl ConfigErrors {
    /// Every problem, without the lines of the file and the directory it is in: for places where text is one line, and
    /// often a short one.
    pub fn one_line(&self) -> String {
        let name = self.file.file_name().unwrap_or(self.file.as_os_str());
        let file = escape(name.as_encoded_bytes());
        let place = |problem: &Problem| {
            problem.place.as_ref().map_or(String::new(), |place| format!(":{}:{}", place.line, place.column))
        };
        let lines = self.problems.iter().map(|problem| {
            let allowed =
                (!problem.allowed.is_empty()).then(|| format!("allowed: {}", problem.allowed.join(", ")));
            let nearest = problem.nearest.as_ref().map(|nearest| format!("did you mean `{nearest}`?"));
            let more = [allowed, nearest, problem.hint.clone()].into_iter().flatten();
            let all: Vec<String> = std::iter::once(problem.message.clone()).chain(more).collect();
            format!("{file}{}: {}", place(problem), all.join("; "))
        });
        lines.collect::<Vec<_>>().join(" | ")
    }
}

/// The message, the line with a caret, and what to do; the file and position are left to the caller.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut gutter = String::from("  ");
        if let Some(place) = &self.place {
            let number = place.line.to_string();
            gutter = " ".repeat(number.len() + 1);
            let (source, before) = place.excerpt();
            let width = place.width.min(source.chars().count().saturating_sub(before)).max(1);
            write!(
                f,
                "\n{gutter}|\n{number} | {source}\n{gutter}| {}{}",
                " ".repeat(before),
                "^".repeat(width)
            )?;
        }
        if !self.allowed.is_empty() {
            write!(f, "\n{gutter}= allowed: {}", self.allowed.join(", "))?;
        }
        if let Some(nearest) = &self.nearest {
            write!(f, "\n{gutter}= did you mean `{nearest}`?")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n{gutter}= {hint}")?;
        }
        Ok(())
    }
}

/// A word of the file as it is quoted in a message.
pub fn quote(text: &str) -> String {
    format!("`{}`", escape(text.as_bytes()))
}

/// The name that `given` probably stands for.
pub(super) fn nearest<'a>(given: &str, names: impl IntoIterator<Item = &'a String>) -> Option<&'a str> {
    let score =
        |name: &str| strsim::normalized_damerau_levenshtein(&given.to_lowercase(), &name.to_lowercase());
    names
        .into_iter()
        .map(|name| (score(name), name.as_str()))
        .filter(|(score, _)| *score >= 0.5)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_characters() {
        let text = "a = 1\n\u{e9}\u{e9} = \"x\"\r\nlast";
        let at = |span| {
            let place = Place::of(text, span);
            (place.line, place.column, place.width, place.source)
        };
        assert_eq!(at(0..1), (1, 1, 1, "a = 1".into()));
        let x = text.find('"').unwrap();
        assert_eq!(at(x..x + 3), (2, 6, 3, "\u{e9}\u{e9} = \"x\"".into()));
        assert_eq!(at(text.len()..text.len()), (3, 5, 1, "last".into()));
        assert_eq!(at(4..text.len()), (1, 5, 1, "a = 1".into()));
    }

    #[test]
    fn a_problem_shows_its_line_safely() {
        let text = "\tnaem\u{1b}[31m = 1";
        let problem =
            Problem::new(Some(Place::of(text, 1..5)), "unknown key `naem`").allowed("naem", ["name", "url"]);
        let errors = ConfigErrors { file: "/etc/c.toml".into(), problems: vec![problem] };
        assert_eq!(
            errors.to_string(),
            "/etc/c.toml:1:2: unknown key `naem`\n  |\n1 |  naem\u{fffd}[31m = 1\n  |  ^^^^\n  \
             = allowed: name, url\n  = did you mean `name`?"
        );
        assert_eq!(
            errors.one_line(),
            "c.toml:1:2: unknown key `naem`; allowed: name, url; did you mean `name`?"
        );
    }

    #[test]
    fn a_long_line_is_cut_around_the_caret() {
        let text = format!("{}HERE{}", "x".repeat(500), "y".repeat(500));
        let shown = Problem::new(Some(Place::of(&text, 500..504)), "m").to_string();
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[2].len(), SHOWN_MAX + 4);
        assert_eq!(lines[2].find("HERE"), lines[3].find('^'));
    }
}
