//! The command line: flags to values, and nothing else.
//!
//! Names that the documentation promises for later are recognised, so that the answer is "not in this
//! version" rather than a guess at a typo. Unknown words are usage errors. Both exit 2.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::ArgAction;
use clap::parser::ValueSource;
use clap::{Arg, Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use gitsync_core::config::units;
use gitsync_core::model::TargetId;
use globset::{Glob, GlobMatcher};
use tracing::level_filters::LevelFilter;

/// Documented subcommands that are not built yet.
const LATER_COMMANDS: [&str; 7] = ["flush", "run", "doctor", "config", "completions", "man", "keys"];

/// Flags that shape a run of the engine; subcommands do not take them.
const RUN_FLAGS: [(&str, &str); 8] = [
    ("no_tui", "--no-tui"),
    ("format", "--format"),
    ("once", "--once"),
    ("timeout", "--timeout"),
    ("accept_deletes", "--accept-deletes"),
    ("targets", "--target"),
    ("theme", "--theme"),
    ("read_only", "--read-only"),
];

/// Mirror uncommitted git state to servers, within milliseconds of a save.
#[derive(Debug, Parser)]
#[command(
    name = "gitsync-tui",
    version,
    override_usage = "gitsync-tui [OPTIONS] [COMMAND]",
    disable_help_subcommand = true,
    after_help = "Without --config, $GITSYNC_CONFIG is read, else $XDG_CONFIG_HOME/gitsync/config.toml.\n\n\
        Exit codes: 0 done, 1 a target failed, was not reached or left paths out, 2 usage, 3 timeout,\n\
        4 halted (a person is needed), 5 no server reached, 6 no target matched, 70 bug, 75 already\n\
        running, 78 config, 130 interrupted, 141 stdout closed."
)]
pub struct Cli {
    /// What to do instead of running every target
    #[command(subcommand)]
    pub task: Option<Task>,
    /// Configuration file
    #[arg(long, value_name = "FILE", global = true)]
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
    /// With --once: files missing in great number are meant to be gone, so do not stop for them
    #[arg(long, requires = "once")]
    pub accept_deletes: bool,
    /// Only targets whose id (repo@server) matches; repeatable
    #[arg(long = "target", value_name = "GLOB", value_parser = parse_glob)]
    pub targets: Vec<GlobMatcher>,
    /// Write the log to this file instead of stderr
    #[arg(long, value_name = "FILE", global = true)]
    pub log_file: Option<PathBuf>,
    #[command(flatten)]
    pub verbosity: Verbosity,
    /// When to use colors
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = ColorChoice::Auto, global = true)]
    pub color: ColorChoice,
    /// Color theme of the dashboard
    #[arg(long, value_name = "NAME")]
    pub theme: Option<String>,
    /// Keys of the dashboard that change anything are off
    #[arg(long)]
    pub read_only: bool,
}

/// A subcommand.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// Add the repository here to the configuration; create that, commented, if there is none
    Init {
        /// Mirror to this server: the name of one in the configuration, or a url to add
        #[arg(long, value_name = "URL")]
        server: Option<String>,
        /// Print the configuration as it would be, and write nothing
        #[arg(long)]
        stdout: bool,
    },
    /// Validate the configuration and open every repository; change nothing
    Check {
        #[arg(long)]
        json: bool,
        /// Also greet every server
        #[arg(long)]
        connect: bool,
    },
    /// Show what a sync would send: files, bytes, biggest paths; change nothing
    Plan {
        #[command(flatten)]
        targets: Globs,
        #[arg(long)]
        json: bool,
    },
    /// Show the state of the running instance
    Status {
        #[arg(long)]
        json: bool,
    },
    /// The apply in hand ends, then nothing more is sent
    Pause(Globs),
    /// Go on, straight to the newest state
    Resume(Globs),
    /// Compare every file on both sides anew, and heal what differs
    Resync(Globs),
    /// Read every file on both sides again, to prove they are equal
    Verify(Globs),
    /// What stopped the target is meant: missing files may be deleted, drift on hold replaced
    Accept(Globs),
    /// Take over workspaces that another owner holds; that one's gitsync halts
    Takeover(Globs),
    /// Show or fetch what the server kept of files that were changed there
    Drift {
        /// The target's id, repo@server
        target: String,
        /// Show how each kept file differs from the one in the working tree
        #[arg(long, conflicts_with = "restore_to")]
        diff: bool,
        /// Write the kept files below this directory, which lies outside the repository
        #[arg(long, value_name = "DIR")]
        restore_to: Option<PathBuf>,
    },
    /// Print what happens in the running instance, until it ends
    Events {
        #[arg(long)]
        json: bool,
    },
    /// End the running instance in order
    Stop,
}

/// Target globs as positional arguments.
#[derive(Debug, Clone, Default, Args)]
pub struct Globs {
    /// Targets (repo@server), as globs [default: all]
    #[arg(value_name = "TARGET", value_parser = parse_glob)]
    pub globs: Vec<GlobMatcher>,
}

impl Globs {
    /// The targets that are named, in their order; all of them when nothing is. A glob that names nothing
    /// is an error.
    pub fn choose(&self, all: &[TargetId]) -> Result<Vec<TargetId>, String> {
        if let Some(glob) = unmatched(&self.globs, all).first() {
            return Err(format!("no target matches `{glob}`"));
        }
        Ok(self.select(all))
    }

    /// The targets that are named, in their order; all of them when nothing is.
    pub fn select(&self, all: &[TargetId]) -> Vec<TargetId> {
        select(&self.globs, all)
    }

    /// Globs that name nothing in `all`.
    pub fn unmatched(&self, all: &[TargetId]) -> Vec<&str> {
        unmatched(&self.globs, all)
    }
}

/// How much is told.
#[derive(Debug, Clone, Copy, Args)]
pub struct Verbosity {
    /// Tell more; twice for debugging
    #[arg(short, long, action = ArgAction::Count, global = true)]
    verbose: u8,
    /// Tell only warnings and errors
    #[arg(short, long, conflicts_with = "verbose", global = true)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One line per change of state, for people
    Plain,
    /// One JSON object per line
    Json,
    /// The line protocol, for a parent program that talks over stdin and stdout
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
        if let Some(name) = matches.subcommand_name().filter(|name| LATER_COMMANDS.contains(name)) {
            return Err(not_in_this_version(&mut command, &format!("`gitsync-tui {name}`")));
        }
        if let Some(name) = matches.subcommand_name() {
            let given = |(id, _): &&(&str, &str)| matches.value_source(id) == Some(ValueSource::CommandLine);
            if let Some((_, flag)) = RUN_FLAGS.iter().find(given) {
                let message = format!("`{flag}` belongs to a run and means nothing to `gitsync-tui {name}`");
                return Err(command.error(clap::error::ErrorKind::ArgumentConflict, message));
            }
        }
        Self::from_arg_matches(&matches)
    }

    /// What `--target` says.
    pub fn selection(&self) -> Globs {
        Globs { globs: self.targets.clone() }
    }
}

fn select(globs: &[GlobMatcher], all: &[TargetId]) -> Vec<TargetId> {
    let named =
        |target: &&TargetId| globs.is_empty() || globs.iter().any(|glob| glob.is_match(target.to_string()));
    all.iter().filter(named).cloned().collect()
}

fn unmatched<'g>(globs: &'g [GlobMatcher], all: &[TargetId]) -> Vec<&'g str> {
    globs
        .iter()
        .filter(|glob| !all.iter().any(|target| glob.is_match(target.to_string())))
        .map(|glob| glob.glob().glob())
        .collect()
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

pub fn parse_glob(text: &str) -> Result<GlobMatcher, String> {
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
        assert_eq!(cli.selection().select(&all), [all[0].clone(), all[2].clone()]);
        assert!(cli.selection().unmatched(&all).is_empty());
        assert_eq!(parse("--target x@*").unwrap().selection().unmatched(&all), ["x@*"]);
        assert_eq!(parse("").unwrap().selection().select(&all), all);
    }

    #[test]
    fn tasks_take_their_words_and_the_flags_that_make_sense() {
        let all = [target("app", "a"), target("lib", "b")];
        let Some(Task::Pause(globs)) = parse("--config x pause app@*").unwrap().task else { panic!() };
        assert_eq!(globs.choose(&all), Ok(vec![all[0].clone()]));
        let cli = parse("accept -q --config x").unwrap();
        assert_eq!((cli.config, cli.verbosity.quiet), (Some("x".into()), true));
        assert_eq!(Globs::default().choose(&all), Ok(all.to_vec()));
        let Some(Task::Plan { targets, json: true }) = parse("plan none@* --json").unwrap().task else {
            panic!()
        };
        assert_eq!(targets.choose(&all), Err("no target matches `none@*`".into()));
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
            "--accept-deletes",
            "--once status",
            "--target a@b pause",
            "pause a{b",
            "drift",
            "drift a@b --diff --restore-to x",
            "status extra",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn what_is_documented_but_not_built_says_so() {
        for line in ["run app@gpu -- make -j4", "doctor", "flush --help"] {
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
