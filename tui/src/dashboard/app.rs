//! The dashboard's state and the one function that changes it.
//!
//! [`update`] does no I/O and is told the time. What a target is doing comes from [`Status`] alone,
//! which is folded from engine events; the rest of the [`App`] is what the user is looking at. The
//! selection is a target, not a row, so it stays with its target when rows move.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use gitsync_core::engine::Command;
use gitsync_core::model::status::{Status, TargetStatus};
use gitsync_core::model::{Changes, Event, EventKind, Phase, TargetId};
use jiff::tz::TimeZone;
use ratatui::layout::Size;

use super::format::{age, clean, count, plural};
use super::keymap::{Action, Binding, Context, lookup};
use super::log::{Log, describe};
use super::theme::Theme;
use super::view;
use crate::sense::{
    can_accept, can_resync, can_sync, can_take_over, is_paused, is_repository_gone, is_troubled, on_hold,
    severity,
};

const TOAST_INFO: Duration = Duration::from_secs(3);
const TOAST_WARN: Duration = Duration::from_secs(6);
/// Ages above this move by the minute.
const SLOW_AGE: Duration = Duration::from_secs(3_600);

/// What the dashboard is told.
#[derive(Debug)]
pub enum Msg {
    Key(KeyEvent),
    Resize(u16, u16),
    Events(Vec<Event>),
    /// The engine's event stream ended while the dashboard was up.
    EngineEnded(SystemTime),
    /// An age on the screen moved, or a toast ran out.
    Tick,
    /// The process was stopped for this long.
    Resumed(Duration),
}

/// What [`update`] asks the shell to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    Command(TargetId, Command),
    Copy(String),
    /// Have the configuration read again; what comes of it arrives as an event.
    Reload,
    Redraw,
    Suspend,
    Quit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Info,
    Warn,
    Error,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pane {
    Targets,
    Detail,
    Log,
}

/// What lies over the panes and takes the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layer {
    None,
    /// The filter is being typed; `before` comes back on Esc.
    Filter {
        before: String,
    },
    Help {
        scroll: u16,
    },
    Confirm(Confirm),
}

/// A question. What will be done is computed when it is asked, so its numbers are what runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirm {
    pub title: String,
    /// Label and value, one pair a line.
    pub facts: Vec<(&'static str, String)>,
    pub verb: &'static str,
    pub plan: Vec<(TargetId, Command)>,
    /// The focus starts on Cancel.
    pub accept_focused: bool,
}

/// A short answer to a key, gone by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toast {
    pub level: Level,
    pub text: String,
    pub times: u32,
    pub until: Instant,
}

/// What a frozen view shows.
#[derive(Debug)]
pub struct Frozen {
    pub status: Status,
    pub at: Instant,
    pub log_end: u64,
    since: HashMap<TargetId, SystemTime>,
}

#[derive(Debug)]
pub struct App {
    pub status: Status,
    pub log: Log,
    pub title: String,
    pub theme: Theme,
    /// In which wall times are shown.
    pub zone: TimeZone,
    pub read_only: bool,
    pub size: Size,
    selected: Option<TargetId>,
    pub focus: Pane,
    /// The focused pane fills the screen.
    pub zoom: bool,
    pub filter: String,
    pub unhealthy_only: bool,
    pub layer: Layer,
    pub toast: Option<Toast>,
    pub frozen: Option<Frozen>,
    /// Lines the detail is scrolled down.
    pub detail_scroll: u16,
    /// Lines the log is scrolled up; zero follows it.
    pub log_scroll: u16,
    pub engine_ended: bool,
    /// Wall time of each target's last change of phase.
    since: HashMap<TargetId, SystemTime>,
}

impl Toast {
    pub fn new(level: Level, text: String, now: Instant) -> Self {
        let lasts = if level == Level::Info { TOAST_INFO } else { TOAST_WARN };
        Self { level, text, times: 1, until: now + lasts }
    }
}

impl App {
    pub fn new(status: Status, title: String, theme: Theme, zone: TimeZone, read_only: bool) -> Self {
        let mut app = Self {
            status,
            log: Log::default(),
            title,
            theme,
            zone,
            read_only,
            size: Size::new(80, 24),
            selected: None,
            focus: Pane::Targets,
            zoom: false,
            filter: String::new(),
            unhealthy_only: false,
            layer: Layer::None,
            toast: None,
            frozen: None,
            detail_scroll: 0,
            log_scroll: 0,
            engine_ended: false,
            since: HashMap::new(),
        };
        app.selected = app.rows().first().map(|row| row.target.clone());
        app
    }

    /// The status on the screen: now, or when the view was frozen.
    pub fn shown(&self) -> &Status {
        self.frozen.as_ref().map_or(&self.status, |frozen| &frozen.status)
    }

    /// The moment ages are measured at.
    pub fn shown_at(&self, now: Instant) -> Instant {
        self.frozen.as_ref().map_or(now, |frozen| frozen.at)
    }

    pub fn log_end(&self) -> u64 {
        self.frozen.as_ref().map_or(self.log.end(), |frozen| frozen.log_end)
    }

    pub fn since(&self, target: &TargetId) -> Option<SystemTime> {
        self.frozen.as_ref().map_or(&self.since, |frozen| &frozen.since).get(target).copied()
    }

    /// Targets that pass the filter: trouble first, then as configured.
    ///
    /// Only lasting states count for the order. Sorting by lag as well would move rows on every save.
    pub fn rows(&self) -> Vec<&TargetStatus> {
        let wanted = self.filter.to_lowercase();
        let mut rows: Vec<&TargetStatus> = self
            .shown()
            .targets
            .iter()
            .filter(|target| !self.unhealthy_only || !is_healthy(target))
            .filter(|target| clean(&target.target.to_string()).to_lowercase().contains(&wanted))
            .collect();
        rows.sort_by_key(|target| severity(target));
        rows
    }

    /// The selected target if it is on the screen, else the first that is.
    pub fn current(&self) -> Option<&TargetStatus> {
        let rows = self.rows();
        let selected = rows.iter().find(|row| Some(&row.target) == self.selected.as_ref());
        selected.or(rows.first()).copied()
    }

    /// Like [`App::current`], but never frozen: what a command would meet.
    fn current_live(&self) -> Option<&TargetStatus> {
        self.status.get(&self.current()?.target)
    }

    pub fn is_filtered(&self) -> bool {
        self.unhealthy_only || !self.filter.is_empty()
    }

    pub fn context(&self) -> Option<Context> {
        match self.layer {
            Layer::None => Some(Context::Main),
            Layer::Help { .. } => Some(Context::Help),
            Layer::Confirm(_) => Some(Context::Confirm),
            // Every key is text here.
            Layer::Filter { .. } => None,
        }
    }

    /// When what is on the screen changes although nothing happens.
    pub fn next_change(&self, now: Instant) -> Option<Duration> {
        let toast = self.toast.as_ref().map(|toast| toast.until.saturating_duration_since(now));
        let ages = self.status.targets.iter().filter_map(|target| {
            if target.phase == Phase::Retrying && target.retry_at.is_some_and(|at| at > now) {
                return Some(Duration::from_secs(1));
            }
            target.oldest_unacked?;
            let step = if target.lag(now) < SLOW_AGE { 1 } else { 60 };
            Some(Duration::from_secs(step))
        });
        let ages = if self.frozen.is_some() { None } else { ages.min() };
        toast.into_iter().chain(ages).min()
    }

    /// Health at a glance, for a terminal that is not in front.
    pub fn window_title(&self) -> String {
        let mut text = String::from("gitsync");
        for (phase, number) in view::counts(&self.status) {
            text += &format!(" {}{number}", Theme::new(false, false).glyph(phase));
        }
        text
    }

    /// Whether an action makes sense now; if not, why.
    pub fn availability(&self, binding: &Binding) -> Result<(), String> {
        if !binding.acts {
            return Ok(());
        }
        if self.read_only {
            return Err("read-only: no key acts on a target".into());
        }
        if self.engine_ended {
            return Err("the engine has ended; q quits".into());
        }
        if binding.action == Action::PauseAll {
            return if self.rows().is_empty() { Err("no target is shown".into()) } else { Ok(()) };
        }
        if binding.action == Action::Reload {
            return Ok(());
        }
        let Some(target) = self.current_live() else { return Err("no target is shown".into()) };
        match binding.action {
            Action::Sync => can_sync(target),
            Action::Resync => can_resync(target),
            Action::AcceptHalt => can_accept(target),
            Action::TakeOver => can_take_over(target),
            _ => Ok(()),
        }
    }

    fn say(&mut self, level: Level, text: impl Into<String>, now: Instant) {
        let mut toast = Toast::new(level, text.into(), now);
        if let Some(last) = self.toast.take_if(|last| last.text == toast.text && last.until > now) {
            toast.times = last.times + 1;
        }
        self.toast = Some(toast);
    }
}

/// What `e` stops at.
pub fn needs_a_look(target: &TargetStatus) -> bool {
    is_troubled(target) || !target.withheld.is_empty()
}

fn is_healthy(target: &TargetStatus) -> bool {
    matches!(target.phase, Phase::InSync | Phase::Syncing) && target.withheld.is_empty()
}

/// Takes one message in and says what has to be done about it.
pub fn update(app: &mut App, msg: Msg, now: Instant) -> Vec<Effect> {
    if app.toast.as_ref().is_some_and(|toast| toast.until <= now) {
        app.toast = None;
    }
    match msg {
        Msg::Key(key) => on_key(app, key, now),
        Msg::Resize(width, height) => {
            app.size = Size::new(width, height);
            scroll_detail(app, 0, now);
            scroll_log(app, 0);
            scroll_help(app, 0);
            Vec::new()
        }
        Msg::Events(events) => {
            for event in events {
                on_event(app, &event, now);
            }
            Vec::new()
        }
        Msg::EngineEnded(time) => {
            app.engine_ended = true;
            app.log.push(time, Level::Error, None, "the engine has ended".into());
            Vec::new()
        }
        Msg::Tick => Vec::new(),
        Msg::Resumed(slept) => {
            app.say(Level::Info, format!("was suspended for {}", age(slept)), now);
            Vec::new()
        }
    }
}

fn on_event(app: &mut App, event: &Event, now: Instant) {
    let before = event.target.as_ref().and_then(|target| app.status.get(target));
    let line = describe(event, before);
    if let (EventKind::State { .. }, Some(target)) = (&event.kind, &event.target) {
        app.since.insert(target.clone(), event.time);
    }
    app.status.apply(event);
    if let EventKind::Config(reloaded) = &event.kind {
        on_reload(app, reloaded, line.as_ref(), now);
    }
    if let Some((level, text)) = line {
        let grew = app.log.push(event.time, level, event.target.as_ref(), text);
        // A log that is being read stays where it is.
        if grew && app.log_scroll > 0 && app.frozen.is_none() {
            app.log_scroll = app.log_scroll.saturating_add(1);
        }
    }
}

/// `line` says what came of it.
fn on_reload(
    app: &mut App,
    reloaded: &Result<Changes, String>,
    line: Option<&(Level, String)>,
    now: Instant,
) {
    if let Some((level, text)) = line {
        app.say(*level, text.clone(), now);
    }
    if let Ok(changes) = reloaded {
        app.since.retain(|target, _| changes.targets.contains(target));
        leave_removed(app);
    }
}

/// The selection stays with its target for as long as that is on the screen, which a frozen view outlives.
fn leave_removed(app: &mut App) {
    let is_gone = |target: &TargetId| app.shown().get(target).is_none();
    if app.selected.as_ref().is_none_or(is_gone) {
        app.selected = app.rows().first().map(|row| row.target.clone());
        app.detail_scroll = 0;
        // Its page may not turn into that of another target under somebody's eyes.
        if app.focus == Pane::Detail {
            (app.focus, app.zoom) = (Pane::Targets, false);
        }
    }
}

fn on_key(app: &mut App, key: KeyEvent, now: Instant) -> Vec<Effect> {
    if key.kind == KeyEventKind::Release {
        return Vec::new();
    }
    let Some(context) = app.context() else { return on_filter_key(app, key, now) };
    let Some(binding) = lookup(context, &key) else { return Vec::new() };
    if let Err(why) = app.availability(binding) {
        app.say(Level::Warn, format!("{}: {why}", binding.label), now);
        return Vec::new();
    }
    match context {
        Context::Main => on_action(app, binding.action, now),
        Context::Help => on_help_action(app, binding.action),
        Context::Confirm => on_confirm_action(app, binding.action, now),
    }
}

fn on_action(app: &mut App, action: Action, now: Instant) -> Vec<Effect> {
    match action {
        Action::Down => move_by(app, 1, now),
        Action::Up => move_by(app, -1, now),
        Action::PageDown => move_by(app, half_page(app), now),
        Action::PageUp => move_by(app, -half_page(app), now),
        Action::First => move_by(app, i32::MIN, now),
        Action::Last => move_by(app, i32::MAX, now),
        Action::NextTrouble => move_to_trouble(app, Ordering::Greater, now),
        Action::PrevTrouble => move_to_trouble(app, Ordering::Less, now),
        Action::NextPane => focus(app, next_pane(app.focus)),
        Action::PrevPane => focus(app, next_pane(next_pane(app.focus))),
        Action::Targets => focus(app, Pane::Targets),
        Action::Detail => focus(app, Pane::Detail),
        Action::Log => focus(app, Pane::Log),
        Action::Open => {
            if app.focus == Pane::Targets && app.current().is_some() {
                focus(app, Pane::Detail);
            }
            app.zoom = app.focus != Pane::Targets;
        }
        Action::Back => back(app),
        Action::Pause => return pause(app, now),
        Action::PauseAll => ask_pause_all(app),
        Action::Sync => {
            if let Some(target) = app.current().map(|row| row.target.clone()) {
                app.say(Level::Info, format!("sync now: {}", clean(&target.to_string())), now);
                return vec![Effect::Command(target, Command::SyncNow)];
            }
        }
        Action::Resync => ask_resync(app, now),
        Action::AcceptHalt => ask_accept(app),
        Action::TakeOver => ask_takeover(app),
        Action::Filter => {
            focus(app, Pane::Targets);
            app.zoom = false;
            app.layer = Layer::Filter { before: app.filter.clone() };
        }
        Action::Unhealthy => app.unhealthy_only = !app.unhealthy_only,
        Action::Zoom => app.zoom = !app.zoom,
        Action::Freeze => freeze(app, now),
        Action::Copy => return copy_id(app, now),
        Action::Redraw => return vec![Effect::Redraw],
        Action::Reload => return vec![Effect::Reload],
        Action::Suspend => return vec![Effect::Suspend],
        Action::Help => app.layer = Layer::Help { scroll: 0 },
        Action::Quit => return vec![Effect::Quit],
        Action::Accept | Action::Cancel | Action::Switch | Action::Press => {}
    }
    Vec::new()
}

fn on_help_action(app: &mut App, action: Action) -> Vec<Effect> {
    match action {
        Action::Quit => return vec![Effect::Quit],
        Action::Back => app.layer = Layer::None,
        Action::Down => scroll_help(app, 1),
        Action::Up => scroll_help(app, -1),
        Action::PageDown => scroll_help(app, half_page(app)),
        Action::PageUp => scroll_help(app, -half_page(app)),
        Action::First => scroll_help(app, i32::MIN),
        Action::Last => scroll_help(app, i32::MAX),
        _ => {}
    }
    Vec::new()
}

fn on_confirm_action(app: &mut App, action: Action, now: Instant) -> Vec<Effect> {
    let Layer::Confirm(confirm) = &mut app.layer else { return Vec::new() };
    let accepted = match action {
        Action::Quit => return vec![Effect::Quit],
        Action::Switch => {
            confirm.accept_focused = !confirm.accept_focused;
            return Vec::new();
        }
        Action::Accept => true,
        Action::Press => confirm.accept_focused,
        _ => false,
    };
    let plan = std::mem::take(&mut confirm.plan);
    app.layer = Layer::None;
    if !accepted {
        return Vec::new();
    }
    // The world may have moved on while the question stood.
    let mut effects = Vec::new();
    let mut refused = None;
    for (target, command) in plan {
        let allowed = match (app.status.get(&target), command) {
            (None, _) => Err("this target is gone".into()),
            (Some(status), Command::Resync) => can_resync(status),
            (Some(status), Command::Accept) => can_accept(status),
            (Some(status), Command::Takeover) => can_take_over(status),
            _ => Ok(()),
        };
        match allowed {
            Ok(()) => effects.push(Effect::Command(target, command)),
            Err(why) => refused = Some(format!("{}: {why}", clean(&target.to_string()))),
        }
    }
    if let Some(why) = refused {
        app.say(Level::Warn, why, now);
    }
    effects
}

fn on_filter_key(app: &mut App, key: KeyEvent, now: Instant) -> Vec<Effect> {
    let ctrl = key.modifiers.contains(KeyModifiers::CONTROL);
    match (key.code, ctrl) {
        (KeyCode::Char('c'), true) => return vec![Effect::Quit],
        (KeyCode::Char('u'), true) => app.filter.clear(),
        (KeyCode::Char('w'), true) => {
            let kept = app.filter.trim_end().rfind(' ').map_or(0, |at| at + 1);
            app.filter.truncate(kept);
        }
        (KeyCode::Char(c), false) if !c.is_control() => app.filter.push(c),
        (KeyCode::Backspace, _) => {
            app.filter.pop();
        }
        (KeyCode::Down, _) => move_by(app, 1, now),
        (KeyCode::Up, _) => move_by(app, -1, now),
        (KeyCode::Enter, _) => {
            app.layer = Layer::None;
            // What was meant is what is seen.
            app.selected = app.current().map(|row| row.target.clone()).or(app.selected.take());
        }
        (KeyCode::Esc, _) => {
            if let Layer::Filter { before } = std::mem::replace(&mut app.layer, Layer::None) {
                app.filter = before;
            }
        }
        _ => {}
    }
    Vec::new()
}

fn half_page(app: &App) -> i32 {
    i32::from(app.size.height / 2).max(1)
}

fn move_by(app: &mut App, rows: i32, now: Instant) {
    match app.focus {
        Pane::Targets => select_by(app, rows),
        Pane::Detail => scroll_detail(app, rows, now),
        Pane::Log => scroll_log(app, rows),
    }
}

fn select_by(app: &mut App, by: i32) {
    let rows = app.rows();
    let current = app.current().map(|row| &row.target);
    let Some(at) = rows.iter().position(|row| Some(&row.target) == current) else { return };
    let at = moved(at, by, rows.len() - 1);
    let target = rows[at].target.clone();
    select(app, target);
}

fn select(app: &mut App, target: TargetId) {
    if app.selected.as_ref() != Some(&target) {
        app.detail_scroll = 0;
    }
    app.selected = Some(target);
}

/// `at + by`, kept within `0..=last`.
fn moved(at: usize, by: i32, last: usize) -> usize {
    let by = isize::try_from(by).unwrap_or(0);
    at.saturating_add_signed(by).min(last)
}

fn scroll_detail(app: &mut App, by: i32, now: Instant) {
    let last = view::detail_scroll_max(app, now);
    app.detail_scroll = moved(app.detail_scroll.into(), by, last.into()) as u16;
}

/// Down in the log is towards its newest line, where the scroll is zero.
fn scroll_log(app: &mut App, by: i32) {
    let last = view::log_scroll_max(app);
    let up = by.checked_neg().unwrap_or(i32::MAX);
    app.log_scroll = moved(app.log_scroll.into(), up, last.into()) as u16;
}

fn scroll_help(app: &mut App, by: i32) {
    let last = view::help_scroll_max(app);
    if let Layer::Help { scroll } = &mut app.layer {
        *scroll = moved((*scroll).into(), by, last.into()) as u16;
    }
}

fn move_to_trouble(app: &mut App, direction: Ordering, now: Instant) {
    let rows = app.rows();
    let current = app.current().map(|row| &row.target);
    let at = rows.iter().position(|row| Some(&row.target) == current).unwrap_or(0);
    let wants = |row: &&&TargetStatus| needs_a_look(row);
    // Round the table once, the current row last.
    let found = if direction == Ordering::Greater {
        rows.iter().cycle().skip(at + 1).take(rows.len()).find(wants)
    } else {
        rows.iter().rev().cycle().skip(rows.len() - at).take(rows.len()).find(wants)
    };
    match found.map(|row| row.target.clone()) {
        Some(target) => select(app, target),
        None => app.say(Level::Info, "no target is in trouble", now),
    }
}

fn next_pane(pane: Pane) -> Pane {
    match pane {
        Pane::Targets => Pane::Detail,
        Pane::Detail => Pane::Log,
        Pane::Log => Pane::Targets,
    }
}

fn focus(app: &mut App, pane: Pane) {
    app.focus = pane;
}

/// Closes the topmost thing.
fn back(app: &mut App) {
    if app.zoom {
        app.zoom = false;
        app.focus = Pane::Targets;
        app.detail_scroll = 0;
    } else if app.focus != Pane::Targets {
        app.focus = Pane::Targets;
        app.log_scroll = 0;
        app.detail_scroll = 0;
    } else if app.is_filtered() {
        app.filter.clear();
        app.unhealthy_only = false;
    } else {
        app.frozen = None;
        leave_removed(app);
    }
}

fn freeze(app: &mut App, now: Instant) {
    app.frozen = match app.frozen.take() {
        Some(_) => None,
        None => Some(Frozen {
            status: app.status.clone(),
            at: now,
            log_end: app.log.end(),
            since: app.since.clone(),
        }),
    };
    leave_removed(app);
}

fn pause(app: &mut App, now: Instant) -> Vec<Effect> {
    let Some(target) = app.current_live() else { return Vec::new() };
    let (command, verb) =
        if is_paused(target.phase) { (Command::Resume, "resume") } else { (Command::Pause, "pause") };
    let id = target.target.clone();
    app.say(Level::Info, format!("{verb}: {}", clean(&id.to_string())), now);
    vec![Effect::Command(id, command)]
}

fn ask_pause_all(app: &mut App) {
    let shown: Vec<TargetId> = app.rows().iter().map(|row| row.target.clone()).collect();
    let (running, paused): (Vec<TargetId>, Vec<TargetId>) = shown
        .into_iter()
        .partition(|target| app.status.get(target).is_some_and(|status| !is_paused(status.phase)));
    let (verb, command, targets) = if running.is_empty() {
        ("Resume", Command::Resume, paused)
    } else {
        ("Pause", Command::Pause, running)
    };
    let which = if app.is_filtered() { "shown" } else { "all" };
    let effect = if command == Command::Pause {
        "the apply in hand ends, then nothing is sent"
    } else {
        "straight to the newest snapshot"
    };
    app.layer = Layer::Confirm(Confirm {
        title: format!("{verb} {}?", plural(targets.len() as u64, "target")),
        facts: vec![("targets", which.into()), ("effect", effect.into())],
        verb,
        plan: targets.into_iter().map(|target| (target, command)).collect(),
        accept_focused: false,
    });
}

fn ask_resync(app: &mut App, now: Instant) {
    let Some(target) = app.current_live() else { return };
    let mut facts = vec![("compares", plural(target.files, "file"))];
    let behind = match target.unacked_changes {
        0 => "nothing known".into(),
        n => format!("{}, {}", plural(n, "path"), age(target.lag(now))),
    };
    facts.push(("behind", behind));
    if !target.withheld.is_empty() {
        facts.push(("withheld", plural(target.withheld.len() as u64, "path")));
    }
    facts.push(("edits there", "kept as copies, then replaced".into()));
    facts.push(("files here", "only read".into()));
    app.layer = Layer::Confirm(Confirm {
        title: format!("Resync {}?", clean(&target.target.to_string())),
        facts,
        verb: "Resync",
        plan: vec![(target.target.clone(), Command::Resync)],
        accept_focused: false,
    });
}

fn ask_accept(app: &mut App) {
    let Some(target) = app.current_live() else { return };
    let mut facts = Vec::new();
    if let Some(missing) = target.brake {
        let what = if is_repository_gone(target) { "files on the server" } else { "tracked files" };
        facts.push(("missing", format!("{} of {} {what}", count(missing.files), count(missing.of))));
        facts.push(("effect", "the servers of this repo delete them too".into()));
    } else if is_repository_gone(target) {
        facts.push(("effect", "what is at the path now is mirrored, whatever it is".into()));
    }
    let held = on_hold(target);
    if held > 0 {
        facts.push(("on hold", plural(held, "path")));
        facts.push(("edits there", "kept as copies, then replaced".into()));
    }
    app.layer = Layer::Confirm(Confirm {
        title: format!("Accept for {}?", clean(&target.target.to_string())),
        facts,
        verb: "Accept",
        plan: vec![(target.target.clone(), Command::Accept)],
        accept_focused: false,
    });
}

/// The reason names the owner, and since when.
fn ask_takeover(app: &mut App) {
    let Some(target) = app.current_live() else { return };
    let facts = vec![
        ("now", clean(&target.reason)),
        ("them", "their gitsync is told and halts".into()),
        ("effect", "their files there are replaced by yours".into()),
    ];
    app.layer = Layer::Confirm(Confirm {
        title: format!("Take {} over?", clean(&target.target.to_string())),
        facts,
        verb: "Take over",
        plan: vec![(target.target.clone(), Command::Takeover)],
        accept_focused: false,
    });
}

fn copy_id(app: &mut App, now: Instant) -> Vec<Effect> {
    match app.current().and_then(|target| target.acked) {
        Some(id) => {
            app.say(Level::Info, format!("copied {}", id.short()), now);
            vec![Effect::Copy(id.to_string())]
        }
        None => {
            app.say(Level::Warn, "the server has acked nothing yet", now);
            Vec::new()
        }
    }
}
