//! Whole files in, configurations or lists of problems out.

use super::*;

const SERVERS: &str = "[[server]]\nname = \"a\"\nurl = \"embedded:x/a\"\n[[server]]\nname = \"b\"\nurl = \"http://localhost\"\n";

fn parse_text(text: &str) -> Result<Config, Vec<Problem>> {
    parse_with_home(text, "/conf/dir/gitsync.toml".into(), Some("/home/u".into()))
}

/// `line:column message`, one per problem.
fn problems(text: &str) -> Vec<String> {
    let problems = parse_text(text).expect_err("the text has problems");
    problems
        .iter()
        .map(|p| match &p.place {
            Some(place) => format!("{}:{} {}", place.line, place.column, p.message),
            None => p.message.clone(),
        })
        .collect()
}

fn repo(keys: &str) -> String {
    format!("{SERVERS}[[repo]]\n{keys}\n")
}

#[test]
fn the_example_is_a_configuration() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("core lies in the workspace");
    let config = Config::load(&root.join("config.example.toml")).unwrap();
    assert_eq!(config.repos[0].path, root);
    assert_eq!(config.servers[0].url, ServerUrl::Embedded(root.join("target/example/a")));
    let targets: Vec<String> = config.targets().iter().map(ToString::to_string).collect();
    assert_eq!(targets, ["gitsync@local-a", "gitsync@local-b"]);
}

#[test]
fn everything_given() {
    let config = parse_text(
        "[[server]]\nname = \"gpu-1\"\nurl = \"embedded:~/root\"\n\
         [[server]]\nname = \"gpu-2\"\nurl = \"http://[::1]:9\"\n\
         [[server]]\nname = \"cpu\"\nurl = \"embedded:/abs/./x\"\n\
         [[server]]\nname = \"sock\"\nurl = \"unix:../run/s.sock\"\n\
         [defaults.repo]\nservers = [\"cpu\"]\nexclude = [\"*.mp4\"]\nmax-file-size = \"10MiB\"\ndrift = \"hold\"\nhistory = 7\n\
         [defaults.server]\n\
         [[repo]]\nname = \"App\"\npath = \"~/src/./app\"\nservers = [\"gpu-2\", \"gpu-*\"]\nworkspace = \"w.1\"\n\
         exclude = []\ninclude = [\".env\", \"!/a b/\"]\nmax-file-size = \"64GiB\"\ndrift = \"overwrite\"\nhistory = \"full\"\n\
         [[repo]]\npath = \"../my repo\"\n\
         [ui]\ntheme = \"mono\"\nread-only = true\n",
    )
    .unwrap();
    assert_eq!(
        config,
        Config {
            file: "/conf/dir/gitsync.toml".into(),
            servers: vec![
                ServerConfig { name: "gpu-1".into(), url: ServerUrl::Embedded("/home/u/root".into()) },
                ServerConfig { name: "gpu-2".into(), url: ServerUrl::Http { host: "::1".into(), port: 9 } },
                ServerConfig { name: "cpu".into(), url: ServerUrl::Embedded("/abs/x".into()) },
                ServerConfig { name: "sock".into(), url: ServerUrl::Unix("/conf/dir/../run/s.sock".into()) },
            ],
            repos: vec![
                RepoConfig {
                    name: "App".into(),
                    path: "/home/u/src/app".into(),
                    servers: vec!["gpu-1".into(), "gpu-2".into()],
                    workspace: "w.1".into(),
                    exclude: Vec::new(),
                    include: vec![".env".into(), "!/a b/".into()],
                    max_file_size: 64 << 30,
                    drift: DriftPolicy::Overwrite,
                    history: HistoryDepth::Full,
                },
                RepoConfig {
                    name: "my-repo".into(),
                    path: "/conf/dir/../my repo".into(),
                    servers: vec!["cpu".into()],
                    workspace: "my-repo".into(),
                    exclude: vec!["*.mp4".into()],
                    include: Vec::new(),
                    max_file_size: 10 << 20,
                    drift: DriftPolicy::Hold,
                    history: HistoryDepth::Commits(7),
                },
            ],
            ui: UiConfig { theme: Some("mono".into()), read_only: true },
        }
    );
}

#[test]
fn a_single_server_and_the_directorys_name_are_defaults() {
    for (path, name) in [(".", "dir"), ("..", "conf"), ("x/..", "dir"), ("/a/b c+d/", "b-c-d"), ("~", "u")] {
        let text =
            format!("[[server]]\nname = \"a\"\nurl = \"http://localhost\"\n[[repo]]\npath = \"{path}\"\n");
        let config = parse_text(&text).unwrap();
        assert_eq!(config.repos[0].name, name, "{path}");
        assert_eq!(config.repos[0].workspace, name, "{path}");
        assert_eq!(config.repos[0].servers, ["a"]);
        assert_eq!(config.repos[0].max_file_size, 1 << 30, "1GiB");
        assert_eq!(config.repos[0].drift, DriftPolicy::Overwrite);
        assert_eq!(config.repos[0].history, HistoryDepth::Full);
    }
}

#[test]
fn one_fault_is_told_once() {
    // The table starts on line 7, its keys on line 8.
    for (keys, wanted) in [
        ("path = \".\"", "7:1 `servers` is missing, and there are 2 servers to choose from"),
        ("servers = [\"a\"]", "7:1 `path` is missing in this [[repo]]"),
        ("path = \"\"\nservers = [\"a\"]", "8:8 `path` is empty"),
        ("path = 1\nservers = [\"a\"]", "8:8 `path` must be a string, not an integer"),
        ("path = \"~bob/x\"\nservers = [\"a\"]", "8:8 `~` stands only for your own home directory"),
        ("path = \"/\"\nservers = [\"a\"]", "7:1 / has no name to take for the repo's"),
        ("path = \".\"\nservers = []", "9:11 `servers` is empty"),
        ("path = \".\"\nservers = \"a\"", "9:11 `servers` must be a list of names, not a string"),
        ("path = \".\"\nservers = [\"a\", 2]", "9:17 a name in `servers` must be a string, not an integer"),
        ("path = \".\"\nservers = [\"a\", \"c*\"]", "9:17 no server is named `c*`"),
        ("path = \".\"\nservers = [\"a{\"]", "9:12 `a{` is not a glob"),
        ("path = \".\"\nservers = [\"a\"]\nname = \"a b\"", "10:8 the repo name `a b` is not made of"),
        ("path = \".\"\nservers = [\"a\"]\nname = \"..\"", "10:8 `..` cannot be the name of a directory"),
        (
            "path = \".\"\nservers = [\"a\"]\nworkspace = \".GIT\"",
            "10:13 `.GIT` cannot be the name of a directory",
        ),
        ("path = \".\"\nservers = [\"a\"]\nworkspace = \"a/b\"", "10:13 the workspace `a/b` is not made of"),
        ("path = \".\"\nservers = [\"a\"]\nhistory = \"all\"", "10:11 `all` is no depth for the history"),
        ("path = \".\"\nservers = [\"a\"]\nhistory = 0", "10:11 `history` is no number of commits from 1 on"),
        (
            "path = \".\"\nservers = [\"a\"]\nhistory = -1",
            "10:11 `history` is no number of commits from 1 on",
        ),
        ("path = \".\"\nservers = [\"a\"]\nhistory = true", "10:11 `history` must be \"full\" or a number"),
        (
            "path = \".\"\nservers = [\"a\"]\n[[repo]]\npath = \"x\"\nservers = [\"a\"]\nauto-commit = 1",
            "13:1 `auto-commit` is not in this version",
        ),
        ("path = \".\"\nservers = [\"a\"]\nexclude = [\"x\", \"\"]", "10:17 a pattern in `exclude` is empty"),
        ("path = \".\"\nservers = [\"a\"]\nexclude = [\" \"]", "10:12 a pattern in `exclude` is empty"),
        ("path = \".\"\nservers = [\"a\"]\nexclude = [1]", "10:12 a pattern in `exclude` must be a string"),
        ("path = \".\"\nservers = [\"a\"]\nexclude = \"x\"", "10:11 `exclude` must be a list of patterns"),
        (
            "path = \".\"\nservers = [\"a\"]\ninclude = [\"a\\nb\"]",
            "10:12 a pattern in `include` holds a line break",
        ),
        (
            "path = \".\"\nservers = [\"a\"]\ninclude = [\"a\\u0000\"]",
            "10:12 a pattern in `include` holds a line",
        ),
        ("path = \".\"\nservers = [\"a\"]\ninclude = [\"# x\"]", "10:12 a pattern in `include` is a comment"),
        ("path = \".\"\nservers = [\"a\"]\nmax-file-size = 5", "10:17 `max-file-size` must be a string"),
        ("path = \".\"\nservers = [\"a\"]\nmax-file-size = \"1G\"", "10:17 `max-file-size` is not a size"),
        ("path = \".\"\nservers = [\"a\"]\nmax-file-size = \"0B\"", "10:17 `max-file-size` lies outside 1B"),
        ("path = \".\"\nservers = [\"a\"]\nmax-file-size = \"65GiB\"", "10:17 `max-file-size` lies outside"),
        ("path = \".\"\nservers = [\"a\"]\ndrift = \"keep\"", "10:9 `keep` is no policy for drift"),
        (
            "path = \".\"\nservers = [\"a\"]\n[defaults.repo]\ndrift = \"keep\"",
            "11:9 `keep` is no policy for drift",
        ),
        ("path = \".\"\nservers = [\"a\"]\nworkspaec = \"x\"", "10:1 unknown key `workspaec` in [[repo]]"),
        ("path = \".\"\nservers = [\"a\"]\npath = \".\"", "10:1 duplicate key"),
        ("path = \"a\nservers = [\"a\"]", "8:10 invalid basic string"),
        ("path = \n servers = [\"a\"]", "8:"),
        (
            "path = \".\"\nservers = [\"a\"]\n[ui]\nread-only = \"yes\"",
            "11:13 `read-only` must be true or false",
        ),
        ("path = \".\"\nservers = [\"a\"]\n[ui]\nkeys = {}", "11:1 `keys` is not in this version"),
        ("path = \".\"\nservers = [\"a\"]\n[ui]\nread_only = true", "11:1 unknown key `read_only` in [ui]"),
        ("path = \".\"\nservers = [\"a\"]\n[[relay]]", "10:3 `relay` is not in this version"),
        (
            "path = \".\"\nservers = [\"a\"]\n[defaults.repo]\npath = \".\"",
            "11:1 unknown key `path` in [defaults.repo]",
        ),
        (
            "path = \".\"\nservers = [\"a\"]\n[defaults.server]\nurl = \".\"",
            "11:1 unknown key `url` in [defaults.server]",
        ),
        ("path = \".\"\n[defaults.repo]\nservers = [\"x\"]", "10:12 no server is named `x`"),
        (
            "path = \".\"\nservers = [\"a\"]\n[[server]]\nname = \"c\"",
            "10:1 `url` is missing in this [[server]]",
        ),
        (
            "path = \".\"\nservers = [\"c\"]\n[[server]]\nurl = \"http://localhost:1\"",
            "10:1 `name` is missing in this",
        ),
        (
            "path = \".\"\nservers = [\"c\"]\n[[server]]\nname = \"c\"\nurl = \"https://x\"",
            "12:7 https urls are not in this version",
        ),
        (
            "path = \".\"\nservers = [\"a\"]\n[[server]]\nname = \"a\"\nurl = \"embedded:y\"",
            "11:8 the server name `a` is taken already, on line 2",
        ),
        (
            "path = \".\"\nservers = [\"a\"]\n[[repo]]\npath = \"../dir\"\nservers = [\"b\"]",
            "10:1 the repo name `dir` is taken already, on line 7",
        ),
        (
            "path = \".\"\nservers = [\"a\", \"b\"]\n[[repo]]\npath = \"x\"\nworkspace = \"dir\"\nservers = [\"a\", \"b\"]",
            "12:13 `x@a` and `dir@a` would write the same workspace `dir`",
        ),
        (
            "path = \".\"\nservers = [\"*\"]\n[[server]]\nname = \"c\"\nurl = \"embedded:./x/a\"",
            "7:1 `dir@c` and `dir@a` would write the same workspace `dir`",
        ),
    ] {
        let got = problems(&repo(keys));
        assert!(got.len() == 1 && got[0].starts_with(wanted), "{keys}\nwanted {wanted}\ngot {got:#?}");
    }
}

#[test]
fn an_empty_file_says_what_to_add() {
    let errors = Config::parse("", Path::new("/c.toml")).unwrap_err().to_string();
    for part in [
        "there is no [[server]]",
        "url = \"http://localhost:7420\"",
        "there is no [[repo]]",
        "2 problems in /c.toml",
    ] {
        assert!(errors.contains(part), "{part}: {errors}");
    }
    assert_eq!(
        problems("[server]\nname = \"a\"\n[[repo]]\npath = \".\"\n"),
        ["1:1 there can be several of `server`: each starts with `[[server]]`"]
    );
}

#[test]
fn all_problems_come_at_once_in_the_order_of_the_file() {
    let text = "[[server]]\nname = \"gpu\"\nurl = \"ftp://x\"\n\
        [[server]]\nname = \"gpu\"\nurl = = 1\ntoken-file = \"t\"\n\
        [[repo]]\npth = \".\"\nservers = [\"gpu\"]\n\
        [[repo]]\npath = \".\"\nservers = [\"gup\"]\n\
        [ui]\ntheem = \"x\"\n";
    let errors = Config::parse(text, Path::new("/x/c.toml")).unwrap_err();
    let lines: Vec<usize> = errors.problems.iter().map(|p| p.place.as_ref().unwrap().line).collect();
    assert_eq!(lines, [3, 5, 6, 7, 8, 9, 13, 15], "{errors}");
    let shown = errors.to_string();
    assert!(
        shown.contains("/x/c.toml:9:1: unknown key `pth` in [[repo]]\n  |\n9 | pth = \".\"\n  | ^^^\n"),
        "{shown}"
    );
    assert!(
        shown.contains(
            "= allowed: name, path, servers, workspace, exclude, include, max-file-size, drift, history\n"
        ),
        "{shown}"
    );
    assert!(shown.contains("= did you mean `path`?"), "{shown}");
    assert!(shown.ends_with("8 problems in /x/c.toml"), "{shown}");
}

#[test]
fn a_broken_line_has_no_echo() {
    let text = repo("path = \".\"\nservers = [\"a\"");
    let got = problems(&format!("{text}[[server]]\nname = \"c\"\n"));
    assert!(got.iter().all(|p| p.contains("missing comma")), "{got:#?}");
    let text = "[[server\nname = \"a\"\nurl = \"embedded:a\"\n[[repo]]\npath = \".\"\nservers = [\"a\"]\n";
    let got = problems(text);
    assert!(got[0].starts_with("1:"), "{got:#?}");
    assert!(!got.iter().any(|p| p.contains("no server is named") || p.contains("there is no")), "{got:#?}");
}

#[test]
fn a_name_that_does_not_resolve_lists_the_servers() {
    let problem = parse_text(&repo("path = \".\"\nservers = [\"aa\"]")).unwrap_err().remove(0);
    assert_eq!(problem.allowed, ["a", "b"]);
    assert_eq!(problem.nearest.as_deref(), Some("a"));
}

#[test]
fn a_file_that_cannot_be_read_says_what_next() {
    let dir = tempfile::tempdir().unwrap();
    let error = |file: &str| Config::load(&dir.path().join(file)).unwrap_err().to_string();
    let missing = error("none.toml");
    assert!(missing.contains("none.toml: cannot read the configuration"), "{missing}");
    assert!(missing.contains("--config FILE"), "{missing}");
    assert!(error(".").contains("--config FILE"));
    std::fs::write(dir.path().join("latin1.toml"), b"a = 1\n# \xe9\n").unwrap();
    assert!(error("latin1.toml").contains("line 2 is not UTF-8"));
}

/// A server whose name is no name says nothing about the others.
#[test]
fn a_name_that_is_nowhere_is_told_beside_one_that_is_unfit() {
    let found = problems(
        "[[server]]\nname = \"a b\"\nurl = \"embedded:x\"\n[[server]]\nname = \"ok\"\nurl = \"embedded:y\"\n\
         [[repo]]\npath = \"app\"\nservers = [\"zz\", \"a b\", \"ok\"]\ndrift = \"nope\"\n",
    );
    assert_eq!(
        found,
        [
            "2:8 the server name `a b` is not made of A-Z a-z 0-9 . _ -",
            "9:12 no server is named `zz`",
            "10:9 `nope` is no policy for drift",
        ]
    );
    // One without a name may be the one that is meant.
    let found = problems("[[server]]\nurl = \"embedded:x\"\n[[repo]]\npath = \"app\"\nservers = [\"zz\"]\n");
    assert_eq!(found, ["1:1 `name` is missing in this [[server]]"]);
}
