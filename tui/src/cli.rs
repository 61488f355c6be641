//! The command line: flags to values, and nothing else.
//!
//! Names that the documentation promises for later are recognised, so that the answer is "not in this
//! version" rather than a guess at a typo. Unknown words are usage errors. Both exit 2.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::ArgAction;
use clap::{Arg, Args, Command, CommandFactory, FromArgMatches, Parser, ValueEnum};
use gitsync_core::config::units;
use gitsync_core::model::TargetId;
use globset::{Glob, GlobMatcher};
use tracing::level_filters::LevelFilter;

/// Documented subcommands that are not built yet.
const LATER_COMMANDS: [&str; 20] = [
    "init",
    "check",
    "plan",
    "status",
    "pause",
    "resume",
    "resync",
    "verify",
    "accept",
    "takeover",
    "drift",
    "flush",
    "run",
    "events",
    "stop",
    "doctor",
    "config",
    "completions",
    "man",
    "keys",
];

/// Mirror uncommitted git state to servers, within milliseconds of a save.
#[derive(Debug, Parser)]
#[command(
    name = "gitsync-tui",
    version,
    override_usage = "gitsync-tui [OPTIONS]",
    disable_help_subcommand = true,
    after_help = "Without --config, $GITSYNC_CONFIG is read, else $XDG_CONFIG_HOME/gitsync/config.toml.\n\n\
        Exit codes: 0 done, 1 a target failed, was not reached or left paths out, 2 usage, 3 timeout,\n\
        4 halted (a person is needed), 5 no server reached, 6 no target matched, 70 bug, 78 config,\n\
        130 interrupted, 141 stdout closed."
)]
pub struct Cli {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print lines instead of opening the dashboard (also when stdin or stdout is no terminal)
    #[arg(long)]
    pub no_tui: bool,
    /// What the lines look like; implies --no-tui [default: plain]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// Bring every target to the state at the start, print a summary, exit; implies --no-tui
    #[arg(long)]
    pub once: bool,
    /// Longest time --once may take, such as 30s or 5m [default: 60s without progress]
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration, requires = "once")]
    pub timeout: Option<Duration>,
    /// Not built yet: there is no brake to pass over.
    #[arg(long, hide = true)]
    accept_deletes: bool,
    /// Only targets whose id (repo@server) matches; repeatable
    #[arg(long = "target", value_name = "GLOB", value_parser = parse_glob)]
    pub targets: Vec<GlobMatcher>,
    /// Write the log to this file instead of stderr
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    #[command(flatten)]
    pub verbosity: Verbosity,
    /// When to use colors
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = ColorChoice::Auto)]
    pub color: ColorChoice,
    /// Color theme of the dashboard
    #[arg(long, value_name = "NAME")]
    pub theme: Option<String>,
    /// Keys of the dashboard that change anything are off
    #[arg(long)]
    pub read_only: bool,
}

/// How much is told.
#[derive(Debug, Clone, Copy, Args)]
pub struct Verbosity {
    /// Tell more; twice for debugging
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
    /// Tell only warnings and errors
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One line per change of state, for people
    Plain,
    /// One JSON object per line
    Json,
    /// The line protocol for parent programs.
    #[value(hide = true)]
    Line,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    Auto,
    Always,
    Never,
}

impl Cli {
    /// Reads the command line. On an error, and for --help and --version, the error knows how to
    /// print itself and its exit code.
    pub fn parse_from_words(words: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = Self::command().subcommands(LATER_COMMANDS.map(later_command));
        let matches = command.try_get_matches_from_mut(words)?;
        if let Some(name) = matches.subcommand_name() {
            return Err(not_in_this_version(&mut command, &format!("`gitsync-tui {name}`")));
        }
        let cli = Self::from_arg_matches(&matches)?;
        if cli.format == Some(Format::Line) {
            return Err(not_in_this_version(&mut command, "`--format line`"));
        }
        if cli.accept_deletes {
            return Err(not_in_this_version(&mut command, "`--accept-deletes`"));
        }
        Ok(cli)
    }

    /// The targets `--target` names, in their order; all of them without it.
    pub fn select(&self, all: &[TargetId]) -> Vec<TargetId> {
        let named = |target: &&TargetId| {
            self.targets.is_empty() || self.targets.iter().any(|glob| glob.is_match(target.to_string()))
        };
        all.iter().filter(named).cloned().collect()
    }

    /// Globs of `--target` that name nothing in `all`.
    pub fn unmatched(&self, all: &[TargetId]) -> Vec<&str> {
        self.targets
            .iter()
            .filter(|glob| !all.iter().any(|target| glob.is_match(target.to_string())))
            .map(|glob| glob.glob().glob())
            .collect()
    }
}

impl Verbosity {
    /// What the log holds.
    pub fn log_level(self) -> LevelFilter {
        match (self.quiet, self.verbose) {
            (true, _) => LevelFilter::ERROR,
            (false, 0) => LevelFilter::WARN,
            (false, 1) => LevelFilter::DEBUG,
            (false, _) => LevelFilter::TRACE,
        }
    }

    /// What `--format plain` prints.
    pub fn plain_level(self) -> LevelFilter {
        match (self.quiet, self.verbose) {
            (true, _) => LevelFilter::WARN,
            (false, 0) => LevelFilter::INFO,
            (false, _) => LevelFilter::DEBUG,
        }
    }
}

impl ColorChoice {
    /// Whether to write colors; `no_color` is whether `$NO_COLOR` asks for none.
    pub fn enabled(self, is_terminal: bool, no_color: bool) -> bool {
        match self {
            ColorChoice::Auto => is_terminal && !no_color,
            ColorChoice::Always => true,
            ColorChoice::Never => false,
        }
    }
}

fn later_command(name: &'static str) -> Command {
    let rest = Arg::new("rest")
        .num_args(0..)
        .trailing_var_arg(true)
        .allow_hyphen_values(true)
        .value_parser(clap::value_parser!(OsString));
    Command::new(name).hide(true).disable_help_flag(true).arg(rest)
}

fn not_in_this_version(command: &mut Command, what: &str) -> clap::Error {
    command.error(clap::error::ErrorKind::InvalidSubcommand, format!("{what} is not in this version"))
}

fn parse_glob(text: &str) -> Result<GlobMatcher, String> {
    Glob::new(text).map(|glob| glob.compile_matcher()).map_err(|e| e.kind().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        let words = std::iter::once("gitsync-tui").chain(line.split_whitespace());
        Cli::parse_from_words(words.map(OsString::from))
    }

    fn target(repo: &str, server: &str) -> TargetId {
        TargetId { repo: repo.into(), server: server.into() }
    }

    #[test]
    fn clap_finds_no_fault_in_the_definition() {
        Cli::command().subcommands(LATER_COMMANDS.map(later_command)).debug_assert();
    }

    #[test]
    fn flags_become_values() {
        let cli = parse("--once --timeout 250ms --target app@* --target *@b --format json -vv").unwrap();
        assert!(cli.once);
        assert_eq!(cli.timeout, Some(Duration::from_millis(250)));
        assert_eq!(cli.format, Some(Format::Json));
        assert_eq!(cli.verbosity.log_level(), LevelFilter::TRACE);
        let all = [target("app", "a"), target("lib", "a"), target("lib", "b")];
        assert_eq!(cli.select(&all), [all[0].clone(), all[2].clone()]);
        assert!(cli.unmatched(&all).is_empty());
        assert_eq!(parse("--target x@*").unwrap().unmatched(&all), ["x@*"]);
        assert_eq!(parse("").unwrap().select(&all), all);
    }

    #[test]
    fn what_cannot_be_used_exits_2() {
        for line in [
            "frobnicate",
            "--frobnicate",
            "--timeout 5s",
            "--once --timeout 5",
            "--target a{b",
            "-q -v",
            "--format xml",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn what_is_documented_but_not_built_says_so() {
        for line in [
            "init",
            "status --json",
            "run app@gpu -- make -j4",
            "--format line",
            "--once --accept-deletes",
            "flush --help",
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains("is not in this version"), "{line}: {error}");
        }
    }

    #[test]
    fn colors_follow_the_terminal_unless_told() {
        assert!(ColorChoice::Auto.enabled(true, false));
        assert!(!ColorChoice::Auto.enabled(true, true));
        assert!(!ColorChoice::Auto.enabled(false, false));
        assert!(ColorChoice::Always.enabled(false, true));
        assert!(!ColorChoice::Never.enabled(true, false));
    }
}
