//! Where the log goes: `--log-file`, else stderr, but never onto the dashboard.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal};
use std::sync::Mutex;

use anyhow::Context;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{fmt, registry};

use crate::cli::Cli;

/// What is logged because somebody asked how things stand.
pub const STATUS: &str = "status";

pub fn init(cli: &Cli, headless: bool) -> anyhow::Result<()> {
    let level = cli.verbosity.log_level();
    // Libraries tell much that only their authors need.
    let mut filter = Targets::new().with_default(level.min(LevelFilter::WARN));
    // What somebody asks for is told however quiet the log is.
    filter = filter.with_target(STATUS, LevelFilter::INFO);
    for ours in ["gitsync_core", "gitsync_server", "gitsync_tui"] {
        filter = filter.with_target(ours, level);
    }
    if let Some(path) = &cli.log_file {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.with_context(|| format!("cannot open the log file {}", path.display()))?;
        registry().with(filter).with(fmt::layer().with_ansi(false).with_writer(Mutex::new(file))).init();
    } else if headless {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let color = cli.color.enabled(io::stderr().is_terminal(), no_color);
        registry().with(filter).with(fmt::layer().with_ansi(color).with_writer(io::stderr)).init();
    }
    Ok(())
}
