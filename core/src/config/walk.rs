//! TOML walked by hand, so that every fault of a file is found at once and each knows its line.
//!
//! A derived deserialiser stops at the first fault. This walk goes on: it takes the tables the parser could recover,
//! remembers where each value stands, and marks as broken what was there but could not be used, so that later steps do
//! not call it missing. Both programs read their files with it; which keys there are is their business.

use std::io;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{ConfigErrors, Place, Problem, nearest, quote};

/// The keys a table may have.
#[derive(Debug)]
pub struct Keys {
    /// As messages call it.
    pub table: &'static str,
    pub built: &'static [&'static str],
    /// Documented for a later version; each gets its own answer.
    pub later: &'static [&'static str],
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub struct Given<T> {
    pub value: T,
    pub span: Range<usize>,
}

#[derive(Debug, Clone, Default)]
pub enum Slot<T> {
    #[default]
    Absent,
    /// Written, but not usable; what is wrong with it has been told.
    Broken,
    Given(Given<T>),
}

impl<T> Slot<T> {
    pub fn given(&self) -> Option<&Given<T>> {
        match self {
            Slot::Given(given) => Some(given),
            Slot::Absent | Slot::Broken => None,
        }
    }

    pub fn value(&self) -> Option<&T> {
        self.given().map(|given| &given.value)
    }
}

/// A list of names or patterns, each with its place.
pub type Names = Vec<Given<String>>;

/// Collects problems, each with its place in the text.
#[derive(Debug)]
pub struct Report<'t> {
    text: &'t str,
    problems: Vec<Problem>,
    /// Byte offsets of syntax errors.
    syntax: Vec<usize>,
    syntax_problems: Vec<Problem>,
}

impl<'t> Report<'t> {
    /// About a file that holds `text`.
    pub fn new(text: &'t str) -> Self {
        Self { text, problems: Vec::new(), syntax: Vec::new(), syntax_problems: Vec::new() }
    }

    /// Line and column of a range of bytes.
    pub fn place(&self, span: Range<usize>) -> Place {
        Place::of(self.text, span)
    }

    /// Adds a problem at a place.
    pub fn push(&mut self, span: Range<usize>, problem: impl FnOnce(Option<Place>) -> Problem) {
        let place = self.place(span);
        self.problems.push(problem(Some(place)));
    }

    /// Adds a problem of the whole file.
    pub fn push_file(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// The file as TOML, as far as it can be read, and whether that is all of it.
    pub fn parse(&mut self) -> (Spanned<DeTable<'t>>, bool) {
        let (root, errors) = DeTable::parse_recoverable(self.text);
        for error in &errors {
            self.push_syntax(error);
        }
        (root, !self.syntax_problems.iter().any(may_hide_a_table))
    }

    /// What has to be given; says so where it is absent, unless a syntax error may have swallowed it.
    pub fn required<'r, T>(
        &mut self,
        slot: &'r Slot<T>,
        header: &Range<usize>,
        damaged: bool,
        key: &str,
        table: &str,
    ) -> Option<&'r Given<T>> {
        if matches!(slot, Slot::Absent) && !damaged {
            self.push(header.clone(), |place| {
                Problem::new(place, format!("`{key}` is missing in this {table}"))
                    .hint(format!("add `{key} = \"..\"` below this line"))
            });
        }
        slot.given()
    }

    fn push_syntax(&mut self, error: &toml::de::Error) {
        let span = error.span().unwrap_or(self.text.len()..self.text.len());
        let place = self.place(span.clone());
        self.syntax.push(span.start);
        self.syntax_problems.push(Problem::new(Some(place), error.message()));
    }

    /// All problems in the order of the file. On a line that is not even TOML only the first syntax
    /// error counts: the others are its echo.
    pub fn finish(self) -> Vec<Problem> {
        let line = |problem: &Problem| problem.place.as_ref().map_or(usize::MAX, |place| place.line);
        let mut all = self.syntax_problems;
        all.sort_by_key(|p| p.place.as_ref().map(|place| (place.line, place.column)));
        all.dedup_by_key(|p| line(p));
        let broken: Vec<usize> = all.iter().map(line).collect();
        all.extend(self.problems.into_iter().filter(|p| !broken.contains(&line(p))));
        all.sort_by_key(|p| (line(p), p.place.as_ref().map(|place| place.column)));
        all
    }
}

/// Reads a configuration file; `missing` is the advice where there is none.
pub fn read_text(file: &Path, missing: &str) -> Result<String, ConfigErrors> {
    let fail = |problem| ConfigErrors { file: file.to_owned(), problems: vec![problem] };
    let bytes = std::fs::read(file).map_err(|e| fail(unreadable(&e, missing)))?;
    String::from_utf8(bytes).map_err(|e| {
        let line = e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        let message = format!("line {line} is not UTF-8");
        fail(Problem::new(None, message).hint("save the file as UTF-8 text"))
    })
}

fn unreadable(error: &io::Error, missing: &str) -> Problem {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => missing,
        io::ErrorKind::PermissionDenied => {
            "make it readable for your user, or name another with --config FILE"
        }
        io::ErrorKind::IsADirectory => "name the file in it with --config FILE",
        _ => "name another with --config FILE",
    };
    Problem::new(None, format!("cannot read the configuration: {error}")).hint(hint)
}

impl Keys {
    /// Reports every key that is none of these.
    pub fn check(&self, table: &DeTable<'_>, report: &mut Report<'_>) {
        for key in table.keys() {
            let name: &str = key.get_ref();
            if self.built.contains(&name) {
                continue;
            }
            report.push(key.span(), |place| self.problem(name, place));
        }
    }

    fn problem(&self, name: &str, place: Option<Place>) -> Problem {
        let table = self.table;
        let later: Vec<String> = self.later.iter().map(|&key| key.to_owned()).collect();
        if self.later.contains(&name) {
            return Problem::new(place, format!("`{name}` is not in this version"))
                .hint(format!("{table} will have it later; take the line out for now"));
        }
        let mut problem = Problem::new(place, format!("unknown key {} in {table}", quote(name)))
            .allowed(name, self.built.iter().copied());
        if self.built.is_empty() {
            problem.hint = Some(format!("{table} has no keys in this version; take the line out"));
        } else if problem.nearest.is_none()
            && let Some(meant) = nearest(name, &later)
        {
            problem.hint = Some(format!("if `{meant}` was meant: it is not in this version"));
        }
        problem
    }
}

pub(super) fn find<'a, 'i>(table: &'a DeTable<'i>, key: &str) -> Option<&'a Spanned<DeValue<'i>>> {
    table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
}

/// The parser puts a zero at offset 0 where it could not read a value, and has reported why.
pub(super) fn is_recovered(value: &Spanned<DeValue<'_>>) -> bool {
    value.span().is_empty()
}

pub(super) fn wrong_type(
    key: &str,
    wanted: &str,
    example: &str,
    value: &Spanned<DeValue<'_>>,
    report: &mut Report<'_>,
) {
    let message = format!("`{key}` must be {wanted}, not {}", type_name(value.get_ref()));
    report.push(value.span(), |place| Problem::new(place, message).hint(format!("write {example}")));
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Reads a string.
pub fn string(table: &DeTable<'_>, key: &str, report: &mut Report<'_>) -> Slot<String> {
    let Some(value) = find(table, key) else { return Slot::Absent };
    match value.get_ref() {
        DeValue::String(text) => Slot::Given(Given { value: text.clone().into_owned(), span: value.span() }),
        _ if is_recovered(value) => Slot::Broken,
        _ => {
            wrong_type(key, "a string", &format!("`{key} = \"..\"`"), value, report);
            Slot::Broken
        }
    }
}

/// Reads a switch.
pub fn boolean(table: &DeTable<'_>, key: &str, report: &mut Report<'_>) -> Slot<bool> {
    let Some(value) = find(table, key) else { return Slot::Absent };
    match value.get_ref() {
        DeValue::Boolean(flag) => Slot::Given(Given { value: *flag, span: value.span() }),
        _ if is_recovered(value) => Slot::Broken,
        _ => {
            wrong_type(key, "true or false", &format!("`{key} = true`"), value, report);
            Slot::Broken
        }
    }
}

/// `what` is the list's items in the plural: names, patterns.
pub fn strings(table: &DeTable<'_>, key: &str, what: &str, report: &mut Report<'_>) -> Slot<Names> {
    let Some(value) = find(table, key) else { return Slot::Absent };
    let DeValue::Array(items) = value.get_ref() else {
        if !is_recovered(value) {
            wrong_type(key, &format!("a list of {what}"), &format!("`{key} = [\"..\"]`"), value, report);
        }
        return Slot::Broken;
    };
    let mut names = Vec::new();
    let mut ok = true;
    for item in items.iter() {
        match item.get_ref() {
            DeValue::String(text) => {
                names.push(Given { value: text.clone().into_owned(), span: item.span() });
            }
            _ => {
                ok = false;
                if !is_recovered(item) {
                    let one = what.trim_end_matches('s');
                    let message =
                        format!("a {one} in `{key}` must be a string, not {}", type_name(item.get_ref()));
                    report.push(item.span(), |place| Problem::new(place, message).hint("put it in quotes"));
                }
            }
        }
    }
    if ok { Slot::Given(Given { value: names, span: value.span() }) } else { Slot::Broken }
}

/// A sub-table, if it is there and is one.
pub fn table<'a, 'i>(parent: &'a DeTable<'i>, key: &str, report: &mut Report<'_>) -> Option<&'a DeTable<'i>> {
    let value = find(parent, key)?;
    let table = value.get_ref().as_table();
    if table.is_none() && !is_recovered(value) {
        wrong_type(key, "a table", &format!("its keys below a line `[..{key}]`"), value, report);
    }
    table
}

/// The tables of `[[key]]`. `complete` turns false if one of them is something else.
pub fn tables<'a, 'i>(
    root: &'a DeTable<'i>,
    key: &str,
    report: &mut Report<'_>,
    complete: &mut bool,
) -> Vec<Given<&'a DeTable<'i>>> {
    let Some(value) = find(root, key) else { return Vec::new() };
    let DeValue::Array(items) = value.get_ref() else {
        *complete = false;
        if !is_recovered(value) {
            let message = format!("there can be several of `{key}`: each starts with `[[{key}]]`");
            report.push(value.span(), |place| {
                Problem::new(place, message).hint(format!("write `[[{key}]]` with two brackets on each side"))
            });
        }
        return Vec::new();
    };
    let mut tables = Vec::new();
    for item in items.iter() {
        match item.get_ref().as_table() {
            Some(table) => tables.push(Given { value: table, span: item.span() }),
            None => {
                *complete = false;
                if !is_recovered(item) {
                    wrong_type(
                        key,
                        "a list of tables",
                        &format!("each below a line `[[{key}]]`"),
                        item,
                        report,
                    );
                }
            }
        }
    }
    tables
}

/// Where the headers of the file's tables start.
pub fn table_starts(root: &DeTable<'_>) -> Vec<usize> {
    let mut starts = Vec::new();
    for value in root.values() {
        match value.get_ref() {
            DeValue::Array(items) => starts.extend(items.iter().map(|item| item.span().start)),
            _ => starts.push(value.span().start),
        }
    }
    starts
}

/// A line that is cut short inside brackets or a long string takes what follows with it.
fn may_hide_a_table(syntax: &Problem) -> bool {
    let line = syntax.place.as_ref().map_or("", |place| &place.source);
    ["[", "]", "{", "}", "\"\"\"", "'''"].iter().any(|mark| line.contains(mark))
}

/// True if a syntax error stands between this header and the next one.
pub fn damaged(header: &Range<usize>, starts: &[usize], report: &Report<'_>) -> bool {
    let end = starts.iter().copied().filter(|start| *start > header.start).min().unwrap_or(usize::MAX);
    report.syntax.iter().any(|at| (header.start..end).contains(at))
}
