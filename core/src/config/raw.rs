//! The file as it is written: TOML walked by hand into tables of known keys.
//!
//! A derived deserialiser stops at the first fault. This walk goes on: it takes the tables the
//! parser could recover, remembers where each value stands, and marks as broken what was there but
//! could not be used, so that later steps do not call it missing.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Place, Problem, nearest, quote};

/// Keys that are documented for a later version get their own answer.
const TOP: Keys = Keys { table: "the file", built: &["server", "repo", "defaults", "ui"], later: &["relay"] };
const SERVER: Keys =
    Keys { table: "[[server]]", built: &["name", "url"], later: &["token-file", "ca-file", "fingerprint"] };
const REPO: Keys = Keys {
    table: "[[repo]]",
    built: &[
        "name",
        "path",
        "servers",
        "workspace",
        "exclude",
        "include",
        "max-file-size",
        "drift",
        "history",
    ],
    later: &["auto-commit", "watch-remotes"],
};
const DEFAULTS: Keys = Keys { table: "[defaults]", built: &["repo", "server"], later: &[] };
const DEFAULTS_REPO: Keys = Keys {
    table: "[defaults.repo]",
    built: &["servers", "workspace", "exclude", "include", "max-file-size", "drift", "history"],
    later: &[],
};
const DEFAULTS_SERVER: Keys =
    Keys { table: "[defaults.server]", built: &[], later: &["token-file", "ca-file", "fingerprint"] };
const UI: Keys = Keys { table: "[ui]", built: &["theme", "read-only"], later: &["keys"] };

struct Keys {
    table: &'static str,
    built: &'static [&'static str],
    later: &'static [&'static str],
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Given<T> {
    pub value: T,
    pub span: Range<usize>,
}

#[derive(Debug, Clone, Default)]
pub(super) enum Slot<T> {
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
pub(super) type Names = Vec<Given<String>>;

#[derive(Debug, Default)]
pub(super) struct Raw {
    pub servers: Vec<RawServer>,
    /// False if something that may be a server could not be read.
    pub servers_complete: bool,
    pub repos: Vec<RawRepo>,
    pub repos_complete: bool,
    pub defaults: RawShared,
    pub ui: RawUi,
}

#[derive(Debug)]
pub(super) struct RawServer {
    pub header: Range<usize>,
    /// A syntax error stands in this table: a key that seems absent may only be unreadable.
    pub damaged: bool,
    pub name: Slot<String>,
    pub url: Slot<String>,
}

#[derive(Debug)]
pub(super) struct RawRepo {
    pub header: Range<usize>,
    pub damaged: bool,
    pub name: Slot<String>,
    pub path: Slot<String>,
    pub shared: RawShared,
}

/// What a repo can say itself or leave to `[defaults.repo]`.
#[derive(Debug, Default, Clone)]
pub(super) struct RawShared {
    pub servers: Slot<Names>,
    pub workspace: Slot<String>,
    pub exclude: Slot<Names>,
    pub include: Slot<Names>,
    pub max_file_size: Slot<String>,
    pub drift: Slot<String>,
    pub history: Slot<RawHistory>,
}

/// `history`: a word or a number.
#[derive(Debug, Clone)]
pub(super) enum RawHistory {
    Word(String),
    Number(Option<u64>),
}

impl RawShared {
    fn walk(table: &DeTable<'_>, report: &mut Report<'_>) -> Self {
        Self {
            servers: strings(table, "servers", "names", report),
            workspace: string(table, "workspace", report),
            exclude: strings(table, "exclude", "patterns", report),
            include: strings(table, "include", "patterns", report),
            max_file_size: string(table, "max-file-size", report),
            drift: string(table, "drift", report),
            history: history(table, report),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct RawUi {
    pub theme: Slot<String>,
    pub read_only: Slot<bool>,
}

/// Collects problems, each with its place in the text.
#[derive(Debug)]
pub(super) struct Report<'t> {
    text: &'t str,
    problems: Vec<Problem>,
    /// Byte offsets of syntax errors.
    syntax: Vec<usize>,
    syntax_problems: Vec<Problem>,
}

impl<'t> Report<'t> {
    pub fn new(text: &'t str) -> Self {
        Self { text, problems: Vec::new(), syntax: Vec::new(), syntax_problems: Vec::new() }
    }

    pub fn place(&self, span: Range<usize>) -> Place {
        Place::of(self.text, span)
    }

    pub fn push(&mut self, span: Range<usize>, problem: impl FnOnce(Option<Place>) -> Problem) {
        let place = self.place(span);
        self.problems.push(problem(Some(place)));
    }

    /// Adds a problem of the whole file.
    pub fn push_file(&mut self, problem: Problem) {
        self.problems.push(problem);
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

impl Raw {
    /// Reads what can be read.
    pub fn walk(report: &mut Report<'_>) -> Self {
        let (root, errors) = DeTable::parse_recoverable(report.text);
        for error in &errors {
            report.push_syntax(error);
        }
        let root = root.get_ref();
        let sound = !report.syntax_problems.iter().any(may_hide_a_table);
        let mut raw = Raw { servers_complete: sound, repos_complete: sound, ..Raw::default() };
        let starts = table_starts(root);
        TOP.check(root, report);

        for table in tables(root, "server", report, &mut raw.servers_complete) {
            SERVER.check(table.value, report);
            raw.servers.push(RawServer {
                damaged: damaged(&table.span, &starts, report),
                name: string(table.value, "name", report),
                url: string(table.value, "url", report),
                header: table.span,
            });
        }
        for table in tables(root, "repo", report, &mut raw.repos_complete) {
            REPO.check(table.value, report);
            raw.repos.push(RawRepo {
                damaged: damaged(&table.span, &starts, report),
                name: string(table.value, "name", report),
                path: string(table.value, "path", report),
                shared: RawShared::walk(table.value, report),
                header: table.span,
            });
        }
        if let Some(defaults) = table(root, "defaults", report) {
            DEFAULTS.check(defaults, report);
            if let Some(repo) = table(defaults, "repo", report) {
                DEFAULTS_REPO.check(repo, report);
                raw.defaults = RawShared::walk(repo, report);
            }
            if let Some(server) = table(defaults, "server", report) {
                DEFAULTS_SERVER.check(server, report);
            }
        }
        if let Some(ui) = table(root, "ui", report) {
            UI.check(ui, report);
            raw.ui.theme = string(ui, "theme", report);
            raw.ui.read_only = boolean(ui, "read-only", report);
        }
        raw
    }
}

impl Keys {
    fn check(&self, table: &DeTable<'_>, report: &mut Report<'_>) {
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

fn find<'a, 'i>(table: &'a DeTable<'i>, key: &str) -> Option<&'a Spanned<DeValue<'i>>> {
    table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
}

/// The parser puts a zero at offset 0 where it could not read a value, and has reported why.
fn is_recovered(value: &Spanned<DeValue<'_>>) -> bool {
    value.span().is_empty()
}

fn wrong_type(key: &str, wanted: &str, example: &str, value: &Spanned<DeValue<'_>>, report: &mut Report<'_>) {
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

fn string(table: &DeTable<'_>, key: &str, report: &mut Report<'_>) -> Slot<String> {
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

fn history(table: &DeTable<'_>, report: &mut Report<'_>) -> Slot<RawHistory> {
    let Some(value) = find(table, "history") else { return Slot::Absent };
    let given = match value.get_ref() {
        DeValue::String(text) => RawHistory::Word(text.clone().into_owned()),
        DeValue::Integer(number) => {
            RawHistory::Number(u64::from_str_radix(number.as_str(), number.radix()).ok())
        }
        _ if is_recovered(value) => return Slot::Broken,
        _ => {
            wrong_type(
                "history",
                "\"full\" or a number",
                "`history = \"full\"` or `history = 1000`",
                value,
                report,
            );
            return Slot::Broken;
        }
    };
    Slot::Given(Given { value: given, span: value.span() })
}

fn boolean(table: &DeTable<'_>, key: &str, report: &mut Report<'_>) -> Slot<bool> {
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
fn strings(table: &DeTable<'_>, key: &str, what: &str, report: &mut Report<'_>) -> Slot<Names> {
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

fn table<'a, 'i>(parent: &'a DeTable<'i>, key: &str, report: &mut Report<'_>) -> Option<&'a DeTable<'i>> {
    let value = find(parent, key)?;
    let table = value.get_ref().as_table();
    if table.is_none() && !is_recovered(value) {
        wrong_type(key, "a table", &format!("its keys below a line `[..{key}]`"), value, report);
    }
    table
}

/// The tables of `[[key]]`. `complete` turns false if one of them is something else.
fn tables<'a, 'i>(
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
fn table_starts(root: &DeTable<'_>) -> Vec<usize> {
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
fn damaged(header: &Range<usize>, starts: &[usize], report: &Report<'_>) -> bool {
    let end = starts.iter().copied().filter(|start| *start > header.start).min().unwrap_or(usize::MAX);
    report.syntax.iter().any(|at| (header.start..end).contains(at))
}
