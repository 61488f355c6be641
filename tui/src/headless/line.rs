//! `--format line`: the line protocol for a parent program, both ways.
//!
//! Out, [`Line`] folds events into lines: words split at a space, the last field takes the rest. What a
//! parent may rely on: `HELLO 1` comes first, `CONNECTED` and `DISCONNECTED` of a target take turns,
//! every `SYNCING` is followed by exactly one `DONESYNCING`, whatever ends the run or takes the target out of the
//! configuration. In, [`understand`] turns a line of stdin into something [`Said`]; there are no replies, only
//! `ERROR - ..` for what is not understood.

use std::io::{self, BufRead, Read};

use gitsync_core::engine::Command;
use gitsync_core::model::{Changes, Event, EventKind, PatchId, Phase, TargetId};

use super::plain::escape_text;
use crate::dashboard::format::{reload_words, rung_words};

/// Version of the protocol.
const VERSION: u32 = 1;
/// Longest line of a parent program, in bytes.
const LINE_BYTES: usize = 64 * 1024;
/// Withheld or changed paths that a warning names.
const NAMED_PATHS: usize = 3;

/// What a parent program has told so far, and of which target.
#[derive(Debug)]
pub struct Line {
    targets: Vec<Told>,
}

#[derive(Debug)]
struct Told {
    target: TargetId,
    connected: bool,
    syncing: bool,
    /// Halted or about to be, with the connection up.
    braked: bool,
    changed: Option<PatchId>,
}

/// What a parent program says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// For the target of this name, or for all.
    Command(Option<String>, Command),
    Reload,
    Stop,
    /// Nothing that can be done; the line that says so.
    Wrong(String),
}

impl Line {
    pub fn new(targets: &[TargetId]) -> Self {
        Self { targets: targets.iter().map(Told::new).collect() }
    }

    pub fn hello(&self) -> String {
        format!("HELLO {VERSION}\n")
    }

    /// The lines of one event; `None` for what has none.
    pub fn event(&mut self, event: &Event) -> Option<String> {
        let Some(target) = &event.target else {
            return match &event.kind {
                EventKind::Error(error) => Some(line("ERROR", "-", &error.one_line())),
                EventKind::Note(note) => Some(line("STATUS", "-", note)),
                EventKind::Config(Ok(changes)) => Some(self.follow(changes)),
                EventKind::Config(Err(why)) => Some(error(&format!("configuration not reloaded: {why}"))),
                _ => None,
            };
        };
        let told = self.targets.iter_mut().find(|told| told.target == *target)?;
        let text = told.take(&event.kind);
        (!text.is_empty()).then_some(text)
    }

    /// What is open of removed targets is closed, and there are new ones.
    fn follow(&mut self, changes: &Changes) -> String {
        let mut text = String::new();
        for mut told in self.targets.extract_if(.., |told| !changes.targets.contains(&told.target)) {
            text += &told.end();
        }
        let new = changes.targets.iter().filter(|id| !self.targets.iter().any(|told| told.target == **id));
        let new: Vec<Told> = new.map(Told::new).collect();
        self.targets.extend(new);
        text + &line("STATUS", "-", &reload_words(changes))
    }

    /// What is still open is closed.
    pub fn end(&mut self) -> String {
        self.targets.iter_mut().map(Told::end).collect()
    }
}

impl Told {
    fn new(target: &TargetId) -> Self {
        Self { target: target.clone(), connected: false, syncing: false, braked: false, changed: None }
    }

    fn end(&mut self) -> String {
        self.done(false) + &self.connected(false)
    }

    fn take(&mut self, kind: &EventKind) -> String {
        let name = self.target.to_string();
        if let EventKind::Brake(missing) = kind {
            self.braked = missing.is_some();
        }
        match kind {
            EventKind::State { to, reason, .. } => {
                let status = match reason.is_empty() {
                    true => to.name().to_owned(),
                    false => format!("{}: {reason}", to.name()),
                };
                self.enter(*to) + &line("STATUS", &name, &status)
            }
            EventKind::Session { rung, .. } => {
                self.connected(true) + &line("STATUS", &name, &format!("session: {}", rung_words(*rung)))
            }
            // Generation 0 is what the server held already.
            EventKind::Acked(acked) if acked.generation > 0 && self.changed != Some(acked.patch_id) => {
                self.changed = Some(acked.patch_id);
                line("CHANGED", &name, &acked.patch_id.to_string())
            }
            EventKind::Baseline(landed) if landed.from != landed.to || landed.complete => {
                let to = landed.to.map_or_else(|| "an unborn branch".to_owned(), |id| id.to_string());
                line("STATUS", &name, &format!("history at {to}: {}", landed.reason))
            }
            EventKind::Withheld { paths } if !paths.is_empty() => {
                let named = paths.iter().map(|(path, reason)| format!("{path} ({reason})"));
                line("WARNING", &name, &listed(paths.len(), "withheld", named))
            }
            EventKind::Drift { paths, kept } => {
                let what = format!("changed on the server, {kept} kept");
                line("WARNING", &name, &listed(paths.len(), &what, paths.iter().map(ToString::to_string)))
            }
            EventKind::Brake(Some(missing)) => {
                let text = format!(
                    "{} of {} files are missing; ACCEPT {name} lets the server delete them",
                    missing.files, missing.of
                );
                line("WARNING", &name, &text)
            }
            EventKind::Brake(None) => line("STATUS", &name, "the brake is released"),
            EventKind::Error(error) => line("ERROR", &name, &error.one_line()),
            EventKind::Note(note) => line("STATUS", &name, note),
            EventKind::Progress { stage, done, total: 0, unit } => {
                line("STATUS", &name, &format!("{stage} {done} {unit}"))
            }
            EventKind::Progress { stage, done, total, unit } => {
                line("STATUS", &name, &format!("{stage} {done} of {total} {unit}"))
            }
            EventKind::Acked(_)
            | EventKind::Baseline(_)
            | EventKind::Withheld { .. }
            | EventKind::Local { .. }
            | EventKind::HeldBack { .. }
            | EventKind::Rtt(_)
            | EventKind::Config(_) => String::new(),
        }
    }

    fn enter(&mut self, phase: Phase) -> String {
        match phase {
            Phase::Bootstrapping | Phase::Syncing => {
                let connected = self.connected(true);
                if std::mem::replace(&mut self.syncing, true) {
                    return connected;
                }
                format!("{connected}SYNCING {}\n", self.target)
            }
            Phase::InSync => self.connected(true) + &self.done(true),
            Phase::Halted if self.braked => self.done(false),
            // A pause keeps the connection if there is one.
            Phase::Pausing | Phase::Paused | Phase::Negotiating => self.done(false),
            Phase::Connecting | Phase::Retrying | Phase::Halted | Phase::Failed => {
                self.done(false) + &self.connected(false)
            }
        }
    }

    fn done(&mut self, well: bool) -> String {
        match std::mem::replace(&mut self.syncing, false) {
            true => format!("DONESYNCING {} {}\n", self.target, u8::from(well)),
            false => String::new(),
        }
    }

    fn connected(&mut self, is: bool) -> String {
        match (std::mem::replace(&mut self.connected, is), is) {
            (false, true) => format!("CONNECTED {}\n", self.target),
            (true, false) => format!("DISCONNECTED {}\n", self.target),
            _ => String::new(),
        }
    }
}

/// Reads one line of a parent program.
pub fn understand(text: &[u8]) -> Said {
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    let shown = || super::plain::shown(text);
    let Ok(words) = std::str::from_utf8(text) else {
        return wrong(&format!("unknown command: {}", shown()));
    };
    let (word, rest) = words.split_once(' ').unwrap_or((words, ""));
    let command = match word {
        "PAUSE" => Command::Pause,
        "RESUME" => Command::Resume,
        "PUSH" => Command::SyncNow,
        "RESYNC" => Command::Resync,
        "ACCEPT" => Command::Accept,
        "STOP" if rest.is_empty() => return Said::Stop,
        "RELOAD" if rest.is_empty() => return Said::Reload,
        "LOSTNET" if rest.is_empty() => Command::Reconnect,
        _ => return wrong(&format!("unknown command: {}", shown())),
    };
    Said::Command((!rest.is_empty()).then(|| rest.to_owned()), command)
}

/// The target a parent program means; the line to answer where there is none of that name.
pub fn find<'t>(name: &str, targets: impl IntoIterator<Item = &'t TargetId>) -> Result<TargetId, String> {
    let found = targets.into_iter().find(|target| target.to_string() == name);
    found.cloned().ok_or_else(|| error(&format!("no such target: {}", super::plain::shown(name.as_bytes()))))
}

/// Reads `input` to its end, line by line, for as long as `heard` wants more. The end means [`Said::Stop`].
pub fn listen(mut input: impl BufRead, mut heard: impl FnMut(Said) -> bool) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        buffer.clear();
        let limit = LINE_BYTES as u64 + 1;
        let read = input.by_ref().take(limit).read_until(b'\n', &mut buffer)?;
        if read == 0 {
            heard(Said::Stop);
            return Ok(());
        }
        let ended = buffer.pop_if(|last| *last == b'\n').is_some();
        let said = match ended || buffer.len() <= LINE_BYTES {
            true => understand(&buffer),
            false => {
                input.skip_until(b'\n')?;
                wrong(&format!("a line of more than {LINE_BYTES} bytes was skipped"))
            }
        };
        if !heard(said) {
            return Ok(());
        }
    }
}

fn wrong(why: &str) -> Said {
    Said::Wrong(error(why))
}

/// The line that says what could not be done, of the whole program.
pub fn error(why: &str) -> String {
    line("ERROR", "-", why)
}

fn line(word: &str, target: &str, rest: &str) -> String {
    format!("{word} {target} {}\n", escape_text(rest))
}

fn listed(number: usize, what: &str, names: impl Iterator<Item = String>) -> String {
    let plural = if number == 1 { "" } else { "s" };
    let named: Vec<String> = names.take(NAMED_PATHS).collect();
    let more = number.saturating_sub(named.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{number} path{plural} {what}: {}{more}", named.join(", "))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gitsync_core::model::{ErrorCode, ErrorReport, Missing, RelPath, WithheldReason};

    use super::*;
    use crate::headless::fixture::{acked, event, session, state, target};

    /// Plays a script and answers it with its output. A script's lines are `< words of the parent`, `* event of
    /// a target`, `* config` with the servers there are and those that changed, `# remark`; what we print follows as
    /// `> line`.
    fn play(script: &str) -> String {
        let mut targets = vec![target("a"), target("b")];
        let mut fold = Line::new(&targets);
        let mut text = String::new();
        let out = |text: &mut String, lines: &str| {
            for line in lines.lines() {
                *text += &format!("> {line}\n");
            }
        };
        for step in script.lines().filter(|line| !line.starts_with("> ")) {
            text += &format!("{step}\n");
            let said = match step.split_once(' ') {
                Some(("*", "hello")) => fold.hello(),
                Some(("*", "end")) => fold.end(),
                Some(("*", what)) if what.starts_with("config ") => {
                    let reloaded = reloaded(&what["config ".len()..]);
                    if let Ok(changes) = &reloaded {
                        targets.clone_from(&changes.targets);
                    }
                    let whole = Event { target: None, ..event("a", EventKind::Config(reloaded)) };
                    fold.event(&whole).unwrap_or_default()
                }
                Some(("*", what)) => {
                    let (server, what) = what.split_once(' ').expect("a target, then what happened");
                    fold.event(&event(server, kind(what))).unwrap_or_default()
                }
                Some(("<", words)) => match understand(words.as_bytes()) {
                    Said::Wrong(line) => line,
                    Said::Stop => "(stop)".into(),
                    Said::Reload => "(reload)".into(),
                    Said::Command(None, command) => format!("({command:?} all)"),
                    Said::Command(Some(name), command) => {
                        find(&name, &targets).map_or_else(|wrong| wrong, |to| format!("({command:?} {to})"))
                    }
                },
                _ => String::new(),
            };
            out(&mut text, &said);
        }
        text
    }

    /// `a b+ c- d~`: of the targets there were a stays, c goes and d changes; b is new. `broken` is a broken file.
    fn reloaded(words: &str) -> Result<Changes, String> {
        if words == "broken" {
            return Err("c.toml:3:1: unknown key `naem`".into());
        }
        let mut changes = Changes::default();
        for word in words.split(' ') {
            let id = target(word.trim_end_matches(['+', '-', '~']));
            match word.chars().last() {
                Some('+') => changes.added.push(id.clone()),
                Some('-') => {
                    changes.removed.push(id);
                    continue;
                }
                Some('~') => changes.changed.push(id.clone()),
                _ => {}
            }
            changes.targets.push(id);
        }
        Ok(changes)
    }

    fn kind(what: &str) -> EventKind {
        let phases = [
            Phase::Connecting,
            Phase::Negotiating,
            Phase::Bootstrapping,
            Phase::Syncing,
            Phase::InSync,
            Phase::Pausing,
            Phase::Paused,
            Phase::Retrying,
            Phase::Halted,
            Phase::Failed,
        ];
        if let Some(to) = phases.into_iter().find(|phase| phase.name() == what) {
            let EventKind::State { from, retry_at, .. } = state(to, to) else { unreachable!() };
            return EventKind::State { from, to, reason: String::new(), retry_at };
        }
        match what {
            "session" => session(),
            "acked" => acked(0),
            "held already" => {
                let EventKind::Acked(acked) = acked(0) else { unreachable!() };
                EventKind::Acked(gitsync_core::model::Acked { generation: 0, ..acked })
            }
            "withheld" => {
                let path = |p: &str| RelPath::new(p).unwrap();
                let paths = ["x y", "b\n", "c", "d"].map(|p| (path(p), WithheldReason::Unstable));
                EventKind::Withheld { paths: paths.into() }
            }
            "nothing withheld" => EventKind::Withheld { paths: Vec::new() },
            "drift" => EventKind::Drift { paths: vec![RelPath::new("m").unwrap()], kept: 1 },
            "brake" => EventKind::Brake(Some(Missing { files: 25, of: 30 })),
            "released" => EventKind::Brake(None),
            "error" => EventKind::Error(ErrorReport {
                code: ErrorCode::Unreachable,
                message: "cannot connect".into(),
                causes: vec!["refused\nHELLO 2".into()],
                retryable: true,
            }),
            "rtt" => EventKind::Rtt(Duration::ZERO),
            "scanning" => EventKind::Progress { stage: "scanning", done: 3, total: 0, unit: "files" },
            other => panic!("{other} is no event of a script"),
        }
    }

    #[test]
    fn conversations_go_as_written() {
        let scripts = [
            ("a day", include_str!("conversations/a_day.txt")),
            ("trouble", include_str!("conversations/trouble.txt")),
            ("words", include_str!("conversations/words.txt")),
            ("reload", include_str!("conversations/reload.txt")),
        ];
        let other: Vec<String> = scripts
            .into_iter()
            .map(|(name, script)| (name, script, play(script)))
            .filter(|(_, script, played)| played != script)
            .map(|(name, _, played)| format!("=== {name}\n{played}"))
            .collect();
        assert!(other.is_empty(), "these went otherwise:\n{}", other.concat());
    }

    /// Law: whatever happens in whatever order, each SYNCING has its one DONESYNCING, and connections take turns.
    #[test]
    fn what_is_opened_is_closed_once() {
        let words = "connecting negotiating bootstrapping syncing in-sync pausing paused retrying halted failed session acked";
        let words: Vec<&str> = words.split(' ').collect();
        let mut rng = 7_u64;
        for round in 0..300 {
            let mut fold = Line::new(&[target("a")]);
            let mut text = String::new();
            for _ in 0..30 {
                rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let word = words[(rng >> 33) as usize % words.len()];
                text += &fold.event(&event("a", kind(word))).unwrap_or_default();
            }
            text += &fold.end();
            for (open, close) in [("SYNCING", "DONESYNCING"), ("CONNECTED", "DISCONNECTED")] {
                let mut is_open = false;
                for word in text.lines().filter_map(|line| line.split(' ').next()) {
                    if word == open || word == close {
                        assert_eq!(is_open, word == close, "round {round}\n{text}");
                        is_open = word == open;
                    }
                }
                assert!(!is_open, "round {round}\n{text}");
            }
        }
    }

    #[test]
    fn stdin_is_read_in_bounded_lines_and_its_end_is_a_stop() {
        let long = "x".repeat(LINE_BYTES + 1);
        let input = format!("PAUSE\r\n{long}\nRESUME r@a\nPUSH");
        let mut said = Vec::new();
        listen(input.as_bytes(), |heard| {
            said.push(heard);
            true
        })
        .unwrap();
        assert_eq!(said[0], Said::Command(None, Command::Pause));
        assert!(matches!(&said[1], Said::Wrong(line) if line.contains("more than 65536 bytes")));
        assert_eq!(said[2], Said::Command(Some("r@a".into()), Command::Resume));
        assert_eq!(said[3..], [Said::Command(None, Command::SyncNow), Said::Stop]);
        let whole = format!("{}\n", "y".repeat(LINE_BYTES));
        listen(whole.as_bytes(), |heard| {
            assert!(matches!(heard, Said::Stop) || matches!(&heard, Said::Wrong(l) if l.contains("unknown")));
            true
        })
        .unwrap();
    }
}
