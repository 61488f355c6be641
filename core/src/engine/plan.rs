//! What is to run, and what differs between two such plans: values, and functions of them.

use std::sync::Arc;

use crate::config::{Config, RepoConfig, ServerUrl};
use crate::model::{Changes, TargetId};

/// The targets to run, in the order of the configuration.
#[derive(Debug, Default)]
pub struct Plan {
    pub targets: Vec<(TargetId, Settings)>,
}

/// What a target runs by: for as long as this is equal, a reload leaves it alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Without the names of its servers: the plan has those that are meant.
    pub repo: Arc<RepoConfig>,
    pub url: ServerUrl,
}

impl Plan {
    /// `selected` are targets of `config`.
    pub fn of(config: &Config, selected: &[TargetId]) -> Self {
        let mut targets = Vec::new();
        for repo in &config.repos {
            let bare = Arc::new(RepoConfig { servers: Vec::new(), ..repo.clone() });
            for id in selected.iter().filter(|id| id.repo == repo.name) {
                if let Some(server) = config.servers.iter().find(|s| s.name == id.server) {
                    targets.push((id.clone(), Settings { repo: bare.clone(), url: server.url.clone() }));
                }
            }
        }
        Self { targets }
    }

    pub fn ids(&self) -> Vec<TargetId> {
        self.targets.iter().map(|(id, _)| id.clone()).collect()
    }

    fn get(&self, target: &TargetId) -> Option<&Settings> {
        self.targets.iter().find(|(id, _)| id == target).map(|(_, settings)| settings)
    }
}

/// What leads from `old` to `new`.
pub fn between(old: &Plan, new: &Plan) -> Changes {
    let missing_in = |other: &Plan, plan: &Plan| -> Vec<TargetId> {
        plan.ids().into_iter().filter(|id| other.get(id).is_none()).collect()
    };
    let differs = |(id, settings): &&(TargetId, Settings)| old.get(id).is_some_and(|was| was != settings);
    Changes {
        targets: new.ids(),
        added: missing_in(old, new),
        removed: missing_in(new, old),
        changed: new.targets.iter().filter(differs).map(|(id, _)| id.clone()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const OLD: &str = r#"
        [[server]]
        name = "a"
        url = "http://127.0.0.1:7001"
        [[server]]
        name = "b"
        url = "unix:/run/b"
        [[repo]]
        path = "/src/app"
        servers = ["a", "b"]
        [[repo]]
        path = "/src/lib"
        servers = ["a"]
    "#;

    /// Edits of the file, and the targets they add, remove and change.
    type Row = (&'static [(&'static str, &'static str)], [&'static str; 3]);

    fn plan(text: &str, only: Option<&str>) -> Plan {
        let config = Config::parse(text, Path::new("/c.toml")).unwrap();
        let mut selected = config.targets();
        selected.retain(|id| only.is_none_or(|server| id.server == server));
        Plan::of(&config, &selected)
    }

    fn names(targets: &[TargetId]) -> String {
        targets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_target_is_changed_by_what_it_runs_by_and_by_nothing_else() {
        let table: &[Row] = &[
            (&[], ["", "", ""]),
            (&[("[[repo]]", "# a remark\n[[repo]]")], ["", "", ""]),
            (&[("servers = [\"a\", \"b\"]", "servers = [\"b\", \"a\"]")], ["", "", ""]),
            (
                &[("[[server]]\n        name = \"b\"", "[ui]\ntheme = \"mono\"\n[[server]]\nname = \"b\"")],
                ["", "", ""],
            ),
            (&[("servers = [\"a\"]", "servers = [\"a\", \"b\"]")], ["lib@b", "", ""]),
            (&[("servers = [\"a\", \"b\"]", "servers = [\"a\"]")], ["", "app@b", ""]),
            (&[("7001", "7002")], ["", "", "app@a lib@a"]),
            (&[("unix:/run/b", "unix:/run/c")], ["", "", "app@b"]),
            (&[("\"/src/lib\"", "\"/src/lib\"\nexclude = [\"*.mp4\"]")], ["", "", "lib@a"]),
            (&[("\"/src/lib\"", "\"/elsewhere/lib\"")], ["", "", "lib@a"]),
            (&[("\"/src/lib\"", "\"/src/lib\"\nworkspace = \"w\"")], ["", "", "lib@a"]),
            (&[("\"/src/lib\"", "\"/src/lib\"\nname = \"new\"")], ["new@a", "lib@a", ""]),
            (&[("\"b\"", "\"c\""), ("\"b\"", "\"c\"")], ["app@c", "app@b", ""]),
            (
                &[("7001", "7002"), ("[\"a\", \"b\"]", "[\"b\"]"), ("[\"a\"]", "[\"a\", \"b\"]")],
                ["lib@b", "app@a", "lib@a"],
            ),
        ];
        for (edits, wanted) in table {
            let mut text = OLD.to_owned();
            for (from, to) in *edits {
                assert!(text.contains(from), "{from}");
                text = text.replacen(from, to, 1);
            }
            let new = plan(&text, None);
            let changes = between(&plan(OLD, None), &new);
            let said = [&changes.added, &changes.removed, &changes.changed].map(|ids| names(ids));
            assert_eq!(said.each_ref().map(String::as_str), *wanted, "{edits:?}");
            assert_eq!(changes.targets, new.ids(), "{edits:?}");
            // Back again it is the other way round.
            let back = between(&new, &plan(OLD, None));
            assert_eq!((back.added, back.removed), (changes.removed, changes.added), "{edits:?}");
        }
    }

    #[test]
    fn targets_that_are_not_selected_are_no_change() {
        let changes = between(&plan(OLD, Some("b")), &plan(&OLD.replace("7001", "7002"), Some("b")));
        assert_eq!(changes, Changes { targets: changes.targets.clone(), ..Changes::default() });
        assert_eq!(names(&changes.targets), "app@b");
    }
}
