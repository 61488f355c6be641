//! The file as it is written: which tables and keys it may have.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::walk::{
    Given, Keys, Names, Report, Slot, boolean, damaged, find, is_recovered, string, strings, table,
    table_starts, tables, wrong_type,
};

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

impl Raw {
    /// Reads what can be read.
    pub fn walk(report: &mut Report<'_>) -> Self {
        let (root, sound) = report.parse();
        let root = root.get_ref();
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
