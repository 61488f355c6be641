//! The one table of actions. Dispatch, footer and help all read it, so they cannot disagree.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// What a key can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Down,
    Up,
    PageDown,
    PageUp,
    First,
    Last,
    NextTrouble,
    PrevTrouble,
    NextPane,
    PrevPane,
    Targets,
    Detail,
    Log,
    Open,
    Back,
    Pause,
    Sync,
    Resync,
    AcceptHalt,
    TakeOver,
    PauseAll,
    Filter,
    Unhealthy,
    Zoom,
    Freeze,
    Copy,
    Redraw,
    Reload,
    Suspend,
    Help,
    Quit,
    /// In a dialog:
    Accept,
    Cancel,
    Switch,
    Press,
}

/// Which keys are live: the topmost layer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    Main,
    Help,
    Confirm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    Move,
    Target,
    Look,
    Program,
}

impl Group {
    pub fn title(self) -> &'static str {
        match self {
            Group::Move => "MOVE",
            Group::Target => "TARGET",
            Group::Look => "LOOK",
            Group::Program => "PROGRAM",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    Char(char),
    Ctrl(char),
    Named(KeyCode),
}

#[derive(Debug)]
pub struct Binding {
    pub context: Context,
    pub group: Group,
    pub keys: &'static [Key],
    pub action: Action,
    /// For the footer.
    pub label: &'static str,
    /// For the help.
    pub help: &'static str,
    /// Place in the footer, smallest first; `None` stays out of it.
    pub rank: Option<u8>,
    /// Acts on a session: gone in read-only mode.
    pub acts: bool,
}

use self::Key::{Char, Ctrl, Named};

const fn row(
    group: Group,
    keys: &'static [Key],
    action: Action,
    label: &'static str,
    help: &'static str,
) -> Binding {
    Binding { context: Context::Main, group, keys, action, label, help, rank: None, acts: false }
}

impl Binding {
    const fn rank(self, rank: u8) -> Self {
        Self { rank: Some(rank), ..self }
    }

    const fn acts(self) -> Self {
        Self { acts: true, ..self }
    }

    const fn within(self, context: Context) -> Self {
        Self { context, ..self }
    }

    /// `p`, or `j Down` when every way is wanted.
    pub fn keys_text(&self, all: bool) -> String {
        let shown = if all { self.keys } else { &self.keys[..1] };
        shown.iter().map(|key| key.name()).collect::<Vec<_>>().join(" ")
    }
}

#[rustfmt::skip]
pub static BINDINGS: &[Binding] = &[
    row(Group::Move, &[Char('j'), Named(KeyCode::Down)], Action::Down, "down", "one row down"),
    row(Group::Move, &[Char('k'), Named(KeyCode::Up)], Action::Up, "up", "one row up"),
    row(Group::Move, &[Named(KeyCode::PageDown), Ctrl('d')], Action::PageDown, "page down", "half a page down"),
    row(Group::Move, &[Named(KeyCode::PageUp), Ctrl('u')], Action::PageUp, "page up", "half a page up"),
    row(Group::Move, &[Char('g'), Named(KeyCode::Home)], Action::First, "first", "first row"),
    row(Group::Move, &[Char('G'), Named(KeyCode::End)], Action::Last, "last", "last row; follow the log"),
    row(Group::Move, &[Char('e')], Action::NextTrouble, "next trouble", "next target in trouble").rank(5),
    row(Group::Move, &[Char('E')], Action::PrevTrouble, "previous trouble", "previous target in trouble"),
    row(Group::Move, &[Named(KeyCode::Tab)], Action::NextPane, "pane", "next pane"),
    row(Group::Move, &[Named(KeyCode::BackTab)], Action::PrevPane, "pane", "previous pane"),
    row(Group::Move, &[Char('1')], Action::Targets, "targets", "targets pane"),
    row(Group::Move, &[Char('2')], Action::Detail, "detail", "detail pane"),
    row(Group::Move, &[Char('3')], Action::Log, "log", "log pane").rank(8),
    row(Group::Move, &[Named(KeyCode::Enter), Named(KeyCode::Right)], Action::Open, "open", "open as a page").rank(1),
    row(Group::Move, &[Named(KeyCode::Esc), Named(KeyCode::Left)], Action::Back, "back", "close, step back").rank(0),

    row(Group::Target, &[Char('p')], Action::Pause, "pause", "pause or resume").rank(2).acts(),
    row(Group::Target, &[Char('s')], Action::Sync, "sync now", "sync now, end any wait").rank(3).acts(),
    row(Group::Target, &[Char('R')], Action::Resync, "resync", "compare every file (asks)").rank(4).acts(),
    row(Group::Target, &[Char('a')], Action::AcceptHalt, "accept", "accept what halted (asks)").rank(12).acts(),
    row(Group::Target, &[Char('T')], Action::TakeOver, "take over", "take a locked one over (asks)").rank(13).acts(),
    row(Group::Target, &[Char('P')], Action::PauseAll, "pause all", "pause or resume all (asks)").rank(9).acts(),
    row(Group::Target, &[Char('y')], Action::Copy, "copy id", "copy the acked patch id"),

    row(Group::Look, &[Char('/')], Action::Filter, "filter", "filter by name").rank(6),
    row(Group::Look, &[Char('!')], Action::Unhealthy, "unhealthy", "only unhealthy targets").rank(7),
    row(Group::Look, &[Char('z')], Action::Zoom, "zoom", "zoom the pane").rank(10),
    row(Group::Look, &[Char('F')], Action::Freeze, "freeze", "freeze the view; sync goes on").rank(11),
    row(Group::Look, &[Ctrl('l')], Action::Redraw, "redraw", "draw everything anew"),

    row(Group::Program, &[Char('?'), Named(KeyCode::F(1))], Action::Help, "help", "this help"),
    row(Group::Program, &[Ctrl('r')], Action::Reload, "reload", "read the config file again").acts(),
    row(Group::Program, &[Ctrl('z')], Action::Suspend, "suspend", "back to the shell; fg returns"),
    row(Group::Program, &[Char('q'), Ctrl('c')], Action::Quit, "quit", "quit"),

    row(Group::Move, &[Char('j'), Named(KeyCode::Down)], Action::Down, "down", "").within(Context::Help).rank(1),
    row(Group::Move, &[Char('k'), Named(KeyCode::Up)], Action::Up, "up", "").within(Context::Help).rank(2),
    row(Group::Move, &[Named(KeyCode::PageDown), Ctrl('d')], Action::PageDown, "", "").within(Context::Help),
    row(Group::Move, &[Named(KeyCode::PageUp), Ctrl('u')], Action::PageUp, "", "").within(Context::Help),
    row(Group::Move, &[Char('g'), Named(KeyCode::Home)], Action::First, "", "").within(Context::Help),
    row(Group::Move, &[Char('G'), Named(KeyCode::End)], Action::Last, "", "").within(Context::Help),
    row(Group::Move, &[Named(KeyCode::Esc), Char('?'), Char('q'), Named(KeyCode::Enter)], Action::Back, "close", "")
        .within(Context::Help).rank(0),
    row(Group::Program, &[Ctrl('c')], Action::Quit, "quit", "").within(Context::Help),

    row(Group::Program, &[Char('y')], Action::Accept, "yes", "").within(Context::Confirm).rank(0),
    row(Group::Program, &[Char('n'), Named(KeyCode::Esc), Char('q')], Action::Cancel, "no", "")
        .within(Context::Confirm).rank(1),
    row(Group::Program, &[Named(KeyCode::Tab), Named(KeyCode::BackTab), Named(KeyCode::Left), Named(KeyCode::Right),
        Char('h'), Char('l')], Action::Switch, "other button", "").within(Context::Confirm).rank(2),
    row(Group::Program, &[Named(KeyCode::Enter)], Action::Press, "press", "").within(Context::Confirm).rank(3),
    row(Group::Program, &[Ctrl('c')], Action::Quit, "quit", "").within(Context::Confirm),
];

impl Key {
    fn name(self) -> String {
        match self {
            Char(c) => c.to_string(),
            Ctrl(c) => format!("^{c}"),
            Named(KeyCode::F(n)) => format!("F{n}"),
            Named(KeyCode::PageDown) => "PgDn".into(),
            Named(KeyCode::PageUp) => "PgUp".into(),
            Named(KeyCode::BackTab) => "S-Tab".into(),
            Named(code) => format!("{code:?}"),
        }
    }

    fn matches(self, event: &KeyEvent) -> bool {
        let ctrl = event.modifiers.contains(KeyModifiers::CONTROL);
        if event.modifiers.contains(KeyModifiers::ALT) {
            return false;
        }
        match self {
            Char(c) => !ctrl && event.code == KeyCode::Char(c),
            Ctrl(c) => ctrl && event.code == KeyCode::Char(c),
            Named(code) => !ctrl && event.code == code,
        }
    }
}

pub fn bindings(context: Context) -> impl Iterator<Item = &'static Binding> {
    BINDINGS.iter().filter(move |binding| binding.context == context)
}

/// What a key does here; keys that are not bound do nothing.
pub fn lookup(context: Context, event: &KeyEvent) -> Option<&'static Binding> {
    bindings(context).find(|binding| binding.keys.iter().any(|key| key.matches(event)))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_key_has_two_meanings_and_every_main_action_is_explained_once() {
        for context in [Context::Main, Context::Help, Context::Confirm] {
            let keys: Vec<&Key> = bindings(context).flat_map(|binding| binding.keys).collect();
            for (i, key) in keys.iter().enumerate() {
                assert!(!keys[i + 1..].contains(key), "{} is bound twice in {context:?}", key.name());
            }
        }
        let mut actions = HashSet::new();
        for binding in bindings(Context::Main) {
            assert!(actions.insert(binding.action), "{:?} has two rows", binding.action);
            assert!(!binding.help.is_empty() && binding.help.len() <= 30, "{:?}", binding.action);
        }
    }

    #[test]
    fn interrupt_quits_everywhere() {
        let key = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        for context in [Context::Main, Context::Help, Context::Confirm] {
            assert_eq!(lookup(context, &key).map(|binding| binding.action), Some(Action::Quit));
        }
    }
}
