//! Reading the configuration again, and bringing the running engine to it.
//!
//! Whoever asks does not wait: reloads are done one after the other, in a task of their own, and what each of them came to
//! is an event.

use gitsync_core::config::{Config, UiConfig};
use gitsync_core::engine;
use gitsync_core::model::{EventKind, TargetId};
use tokio::sync::mpsc;

use crate::cli::Globs;

/// Asks for reloads. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reload(mpsc::UnboundedSender<()>);

impl Reload {
    /// Gets ready to read the file of `config`, which is running, again. `selection` says which of its targets are
    /// meant. Must be called inside a tokio runtime.
    pub fn start(handle: engine::Handle, config: &Config, selection: Globs) -> Self {
        let (file, ui) = (config.file.clone(), config.ui.clone());
        // Unbounded: as many as somebody types, and each is told what came of it.
        let (asked, mut requests) = mpsc::unbounded_channel();
        // Ends with the runtime.
        tokio::spawn(async move {
            while requests.recv().await.is_some() {
                let file = file.clone();
                let read = tokio::task::spawn_blocking(move || Config::load(&file).map_err(|e| e.one_line()));
                let chosen = read.await.unwrap_or_else(|panic| Err(panic.to_string())).and_then(|config| {
                    let selected = choose(&config, &selection)?;
                    Ok((config, selected))
                });
                match chosen {
                    Ok((config, selected)) => {
                        handle.apply(&config, &selected);
                        warn_of_ui(&handle, &config.ui, &ui);
                    }
                    Err(why) => {
                        tracing::error!("configuration not reloaded: {why}");
                        handle.tell(EventKind::Config(Err(why)));
                    }
                }
            }
        });
        Self(asked)
    }

    pub fn ask(&self) {
        // At the end of the program nobody reads any more.
        let _ = self.0.send(());
    }
}

/// The targets to run. A configuration without any is as good as a broken one: it is not what somebody meant.
fn choose(config: &Config, selection: &Globs) -> Result<Vec<TargetId>, String> {
    let all = config.targets();
    let selected = selection.select(&all);
    for glob in selection.unmatched(&all) {
        tracing::warn!("no target matches `{glob}`");
    }
    if selected.is_empty() {
        let names: Vec<String> = all.iter().map(ToString::to_string).collect();
        let names = if names.is_empty() { "none".into() } else { names.join(", ") };
        return Err(format!("no target of it is selected; its targets are: {names}"));
    }
    Ok(selected)
}

/// The look of the dashboard is the start's.
fn warn_of_ui(handle: &engine::Handle, new: &UiConfig, running: &UiConfig) {
    let mut differ = Vec::new();
    if new.theme != running.theme {
        differ.push("theme");
    }
    if new.read_only != running.read_only {
        differ.push("read-only");
    }
    if !differ.is_empty() {
        let text = format!("[ui] {} stays as it was: it is read at the next start", differ.join(" and "));
        handle.tell(EventKind::Note(text));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::cli::parse_glob;

    #[test]
    fn a_configuration_without_a_selected_target_is_refused() {
        let text = "[[server]]\nname = \"a\"\nurl = \"unix:/a\"\n[[repo]]\npath = \"/src/app\"\n";
        let config = Config::parse(text, Path::new("/c.toml")).unwrap();
        let chosen = |globs: &[&str]| {
            let globs = globs.iter().map(|glob| parse_glob(glob).unwrap()).collect();
            choose(&config, &Globs { globs }).map(|targets| targets[0].to_string())
        };
        assert_eq!(chosen(&[]).unwrap(), "app@a");
        assert_eq!(chosen(&["*@a", "*@b"]).unwrap(), "app@a");
        assert_eq!(chosen(&["*@b"]).unwrap_err(), "no target of it is selected; its targets are: app@a");
    }
}
