//! Reading the configuration again, and bringing the running engine to it: when somebody asks, and when the file changes.
//!
//! Whoever asks does not wait: reloads are done one after the other, in a task of their own, and what each of them came to
//! is an event.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use gitsync_core::config::{Config, UiConfig};
use gitsync_core::engine;
use gitsync_core::model::{EventKind, TargetId};
use notify::event::EventKindMask;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::cli::Globs;

/// A file that changes is read once nothing has happened to it for so long: some editors write it piece by piece.
const SETTLE: Duration = Duration::from_millis(200);

/// Asks for reloads. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reload(mpsc::UnboundedSender<Cause>);

/// Why the file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// Somebody is told what came of it, whatever that is.
    Asked,
    /// Something happened to it. Nobody is told of a file that says what it said.
    Touched,
}

impl Reload {
    /// Gets ready to read the file of `config`, which is running, again; with `watch`, also when it changes. `selection`
    /// says which of its targets are meant. Must be called inside a tokio runtime.
    pub fn start(handle: engine::Handle, config: &Config, selection: Globs, watch: bool) -> Self {
        let (file, ui) = (config.file.clone(), config.ui.clone());
        // Unbounded: as many as somebody types, and all that wait are answered together.
        let (asked, mut requests) = mpsc::unbounded_channel();
        let watcher = (watch && file.is_file()).then(|| watcher(&file, asked.clone()));
        if let Some(Err(error)) = &watcher {
            tracing::warn!("{} is not read by itself when it changes: {error}", file.display());
        }
        let mut known = text_of(&file);
        // Ends with the runtime.
        tokio::spawn(async move {
            // Watches for as long as it is there.
            let _watcher = watcher;
            while let Some(cause) = next(&mut requests).await {
                let file = file.clone();
                let read = tokio::task::spawn_blocking(move || (text_of(&file), load(&file)));
                let (text, loaded) = read.await.unwrap_or_else(|panic| (None, Err(panic.to_string())));
                if cause == Cause::Touched && text == known {
                    continue;
                }
                known = text;
                let chosen = loaded.and_then(|config| {
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
        let _ = self.0.send(Cause::Asked);
    }
}

/// The next reason to read the file, once it has settled.
async fn next(requests: &mut mpsc::UnboundedReceiver<Cause>) -> Option<Cause> {
    let mut cause = requests.recv().await?;
    while cause == Cause::Touched {
        match tokio::time::timeout(SETTLE, requests.recv()).await {
            Ok(more) => cause = more?,
            Err(_) => break,
        }
    }
    // One reading answers all who have asked before it.
    while let Ok(more) = requests.try_recv() {
        if more == Cause::Asked {
            cause = more;
        }
    }
    Some(cause)
}

/// A pipe gives what it has once, and may never end.
fn load(file: &Path) -> Result<Config, String> {
    if fs::metadata(file).is_ok_and(|meta| !meta.is_file() && !meta.is_dir()) {
        return Err(format!("{} is not a regular file: it can be read only once", file.display()));
    }
    Config::load(file).map_err(|errors| errors.one_line())
}

/// What it says, where it can be read again.
fn text_of(file: &Path) -> Option<Vec<u8>> {
    fs::read(Some(file).filter(|file| file.is_file())?).ok()
}

/// What is heard of the directories. Linux says when a file that was written is closed; it need not say each write to
/// something else there, our own log perhaps.
const KINDS: EventKindMask = match cfg!(target_os = "linux") {
    true => EventKindMask::CORE.difference(EventKindMask::MODIFY_DATA).union(EventKindMask::ACCESS_CLOSE),
    false => EventKindMask::CORE,
};

/// Says when something happens to `file`: where it is, and where it leads if it is a link. The directories are watched,
/// because editors put another file in its place.
fn watcher(file: &Path, touched: mpsc::UnboundedSender<Cause>) -> notify::Result<RecommendedWatcher> {
    let places = places(file)?;
    let names: Vec<OsString> =
        places.iter().filter_map(|place| place.file_name()).map(OsString::from).collect();
    let is_ours = move |path: &PathBuf| names.iter().any(|name| path.file_name() == Some(name));
    let handler = move |event: notify::Result<notify::Event>| {
        // What could not be reported may have been ours.
        if event.is_ok_and(|event| !event.need_rescan() && !event.paths.iter().any(&is_ours)) {
            return;
        }
        // At the end of the program nobody reads any more.
        let _ = touched.send(Cause::Touched);
    };
    let mut watcher = RecommendedWatcher::new(handler, notify::Config::default().with_event_kinds(KINDS))?;
    for dir in places.iter().filter_map(|place| place.parent()) {
        watcher.watch(dir, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

fn places(file: &Path) -> io::Result<Vec<PathBuf>> {
    let mut places = vec![file.to_owned()];
    places.extend(Some(fs::canonicalize(file)?).filter(|real| real != file));
    Ok(places)
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
        let text = format!("[ui] {}: read at the next start only", differ.join(" and "));
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
