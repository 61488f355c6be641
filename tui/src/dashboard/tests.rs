//! Pictures of fixed situations, key conversations, and sizes and names that must not panic.

use std::time::{Duration, Instant, SystemTime};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use gitsync_core::engine::Command;
use gitsync_core::model::status::Status;
use gitsync_core::model::{
    Acked, BaselineLanded, Changes, ErrorCode, ErrorReport, Event, EventKind, Missing, PatchId, Phase,
    RelPath, Rung, TargetId, WithheldReason,
};
use jiff::tz::TimeZone;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::style::{Color, Modifier};

use super::app::{App, Effect, Layer, Level, Msg, Pane, update};
use super::theme::Theme;
use super::view::view;

/// A world with one clock: `t` seconds after the start, on both.
struct World {
    app: App,
    start: Instant,
    t: f64,
}

const SIZES: [(u16, u16); 3] = [(120, 35), (80, 24), (45, 12)];

fn target(name: &str) -> TargetId {
    let (repo, server) = name.split_once('@').unwrap();
    TargetId { repo: repo.into(), server: server.into() }
}

fn patch(n: u8) -> PatchId {
    let bytes: Vec<u8> = (0..20u8).map(|i| n.wrapping_mul(83).wrapping_add(i.wrapping_mul(47))).collect();
    PatchId::from_bytes(&bytes).unwrap()
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

impl World {
    fn new(targets: &[&str]) -> Self {
        Self::with(targets, Theme::new(true, true), false)
    }

    fn with(targets: &[&str], theme: Theme, read_only: bool) -> Self {
        let start = Instant::now();
        let status = Status::new(targets.iter().map(|name| target(name)), start);
        let app = App::new(status, "config.toml".into(), theme, TimeZone::UTC, read_only);
        Self { app, start, t: 0.0 }
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_secs_f64(self.t)
    }

    fn at(&mut self, t: f64) -> &mut Self {
        self.t = t;
        self
    }

    fn event(&mut self, name: &str, kind: EventKind) -> &mut Self {
        // 14:00:00 on some day.
        let time =
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_269_600) + Duration::from_secs_f64(self.t);
        let at = self.now();
        let event = Event { at, time, target: Some(target(name)), kind };
        update(&mut self.app, Msg::Events(vec![event]), at);
        self
    }

    fn phase(&mut self, name: &str, to: Phase, reason: &str) -> &mut Self {
        let from = self.app.status.get(&target(name)).map_or(Phase::Connecting, |status| status.phase);
        self.event(name, EventKind::State { from, to, reason: reason.into(), retry_at: None })
    }

    fn retry(&mut self, name: &str, reason: &str, seconds: f64) -> &mut Self {
        let from = self.app.status.get(&target(name)).unwrap().phase;
        let retry_at = Some(self.now() + Duration::from_secs_f64(seconds));
        self.event(name, EventKind::State { from, to: Phase::Retrying, reason: reason.into(), retry_at })
    }

    fn local(&mut self, name: &str, patch_id: PatchId, changes: u64) -> &mut Self {
        let oldest = (changes > 0).then(|| self.now());
        self.event(
            name,
            EventKind::Local {
                patch_id,
                changes,
                oldest,
                files: 1_203,
                head: "77ab03ce9f2c41d8aa51b7e20c9955d1f00d4e7b".parse().ok(),
            },
        )
    }

    fn acked(&mut self, name: &str, patch_id: PatchId, latency: u64) -> &mut Self {
        let acked = Acked {
            patch_id,
            parent_id: patch(0),
            generation: 1,
            written: 2,
            deleted: u64::from(latency.is_multiple_of(4)),
            wire_bytes: latency * 53,
            latency: Some(ms(latency)),
            held: Duration::ZERO,
            apply: ms(latency / 4),
            rtt: Some(ms(latency / 2)),
            withheld: 0,
        };
        self.event(name, EventKind::Acked(acked))
    }

    /// Up and in sync, with a history of saves.
    fn healthy(&mut self, name: &str, n: u8, latencies: &[u64]) -> &mut Self {
        self.event(
            name,
            EventKind::Session {
                rung: Rung::Diff,
                patch_id: patch(n),
                baseline: "77ab03ce9f2c41d8aa51b7e20c9955d1f00d4e7b".parse().ok(),
                branch: Some("main".into()),
                reason: String::new(),
                follows: false,
            },
        );
        self.event(name, EventKind::Rtt(ms(latencies.first().map_or(1, |l| l / 2))));
        self.local(name, patch(n), 0).phase(name, Phase::InSync, "");
        for latency in latencies {
            self.acked(name, patch(n), *latency);
        }
        self
    }

    fn error(
        &mut self,
        name: &str,
        code: ErrorCode,
        message: &str,
        causes: &[&str],
        retryable: bool,
    ) -> &mut Self {
        let causes = causes.iter().map(|cause| (*cause).into()).collect();
        self.event(name, EventKind::Error(ErrorReport { code, message: message.into(), causes, retryable }))
    }

    fn key(&mut self, code: KeyCode) -> Vec<Effect> {
        let now = self.now();
        update(&mut self.app, Msg::Key(KeyEvent::new(code, KeyModifiers::NONE)), now)
    }

    fn ctrl(&mut self, c: char) -> Vec<Effect> {
        let now = self.now();
        update(&mut self.app, Msg::Key(KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL)), now)
    }

    /// Presses each character in turn.
    fn keys(&mut self, keys: &str) {
        for c in keys.chars() {
            self.key(KeyCode::Char(c));
        }
    }

    fn draw(&mut self, width: u16, height: u16) -> Buffer {
        let now = self.now();
        update(&mut self.app, Msg::Resize(width, height), now);
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view(&self.app, frame, now)).unwrap();
        terminal.backend().buffer().clone()
    }

    fn picture(&mut self, width: u16, height: u16) -> String {
        let buffer = self.draw(width, height);
        let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(row).map(|line| line.trim_end().to_owned() + "\n").collect()
    }

    /// Compares the picture at each size with its stored one.
    fn look(&mut self, name: &str) {
        for (width, height) in SIZES {
            let picture = self.picture(width, height);
            insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
                insta::assert_snapshot!(format!("{name}_{width}x{height}"), picture);
            });
        }
    }

    fn row_names(&self) -> Vec<String> {
        self.app.rows().iter().map(|row| row.target.to_string()).collect()
    }

    fn current(&self) -> String {
        self.app.current().map(|row| row.target.to_string()).unwrap_or_default()
    }
}

const FAST: [u64; 12] = [3, 4, 3, 5, 3, 3, 8, 4, 3, 4, 3, 6];
const FAR: [u64; 16] = [38, 41, 39, 44, 61, 38, 37, 40, 52, 72, 39, 38, 41, 141, 40, 38];

fn in_sync() -> World {
    let mut world = World::new(&["app@local-a", "app@gpu", "docs@gpu", "infra@builder"]);
    world.healthy("app@local-a", 1, &FAST).healthy("app@gpu", 1, &FAR);
    world.healthy("docs@gpu", 2, &[35, 36, 44]).healthy("infra@builder", 3, &[]);
    world.at(40.0);
    world
}

/// One server down, one target paused with changes waiting, one left something out, one is sending.
fn mixed() -> World {
    let mut world = World::new(&["app@local-a", "app@gpu", "docs@gpu", "infra@builder", "notes@builder"]);
    world.healthy("app@local-a", 1, &FAST).healthy("app@gpu", 1, &FAR).healthy("docs@gpu", 2, &[35, 36, 44]);
    world.healthy("infra@builder", 3, &[12, 14, 11]).healthy("notes@builder", 4, &[15]);
    let withheld = vec![
        (
            RelPath::new("media/talk.mov").unwrap(),
            WithheldReason::TooLarge { size: 2_147_483_648, limit: 1_073_741_824 },
        ),
        (RelPath::new("secrets/key.pem").unwrap(), WithheldReason::Unreadable("permission denied".into())),
    ];
    world.event("docs@gpu", EventKind::Withheld { paths: withheld });
    world.at(20.0).phase("infra@builder", Phase::Pausing, "by you").phase(
        "infra@builder",
        Phase::Paused,
        "by you",
    );
    world.at(31.0).local("infra@builder", patch(9), 3);
    world.at(40.0);
    for t in 0..3 {
        world.at(40.0 + f64::from(t));
        world.error(
            "notes@builder",
            ErrorCode::Unreachable,
            "cannot reach https://builder:7420",
            &["connection refused"],
            true,
        );
        world.retry("notes@builder", "cannot reach https://builder:7420", 5.0);
    }
    world.local("notes@builder", patch(8), 1);
    world.at(44.6).phase("app@gpu", Phase::Syncing, "").local("app@gpu", patch(7), 2);
    world.at(45.0);
    world
}

fn halted() -> World {
    let mut world = in_sync();
    world.at(50.0).local("app@gpu", patch(5), 412);
    world.error(
        "app@gpu",
        ErrorCode::RemotesDiffer,
        "remotes differ",
        &["here: example.net/team/app", "there: example.net/team/website"],
        false,
    );
    world.phase("app@gpu", Phase::Halted, "remotes differ");
    world.at(221.0);
    world.keys("e");
    world
}

/// Most of a working tree is gone.
fn braked() -> World {
    let mut world = in_sync();
    world.at(50.0).event("app@gpu", EventKind::Brake(Some(Missing { files: 412, of: 1_203 })));
    let oldest = world.now();
    world.event("app@gpu", EventKind::HeldBack { changes: 412, oldest });
    let message = "412 of 1203 tracked files are missing from the working tree";
    let cause = "nothing is sent until they are back or you accept it";
    world.error("app@gpu", ErrorCode::Brake, message, &[cause], false);
    world.phase("app@gpu", Phase::Halted, &format!("{message}: {cause}"));
    world.at(60.0);
    world.keys("e");
    world
}

#[test]
fn takeover_asks_with_owner_and_time_and_only_where_somebody_else_is() {
    let mut world = in_sync();
    world.keys("T");
    assert_eq!(world.app.layer, Layer::None);
    assert!(world.app.toast.as_ref().unwrap().text.contains("no other owner"));

    let reason = "the workspace belongs to ana@desk since 2026-11-26 13:12 UTC";
    world.error("app@gpu", ErrorCode::Locked, reason, &[], false);
    world.phase("app@gpu", Phase::Halted, reason).keys("eT");
    let Layer::Confirm(confirm) = &world.app.layer else { panic!("T asks") };
    assert!(!confirm.accept_focused);
    assert!(confirm.facts.contains(&("now", reason.into())), "{confirm:?}");
    let effects = world.key(KeyCode::Char('y'));
    assert_eq!(effects, [Effect::Command(target("app@gpu"), Command::Takeover)]);
    // They left while the question stood.
    world.keys("T");
    world.phase("app@gpu", Phase::InSync, "");
    assert_eq!(world.key(KeyCode::Char('y')), []);
}

#[test]
fn a_clone_that_cannot_follow_is_told_beside_the_state() {
    let mut world = in_sync();
    let follows = EventKind::Session {
        rung: Rung::None,
        patch_id: patch(1),
        baseline: None,
        branch: Some("main".into()),
        reason: String::new(),
        follows: true,
    };
    let landed = |complete| {
        EventKind::Baseline(BaselineLanded {
            from: None,
            to: "77ab03ce9f2c41d8aa51b7e20c9955d1f00d4e7b".parse().ok(),
            branch: Some("main".into()),
            objects: 8,
            wire_bytes: 500,
            complete,
            reason: "the clone has no commit yet".into(),
        })
    };
    world.event("app@gpu", follows);
    world.keys("/gpu");
    world.key(KeyCode::Enter);
    assert!(world.picture(120, 35).contains("history  behind"));
    world.event("app@gpu", landed(false));
    assert!(world.picture(120, 35).contains("history  there, older commits follow"));
    world.event("app@gpu", landed(true));
    assert!(world.picture(120, 35).contains("history  there "));
    assert!(world.picture(120, 35).contains("clone at 77ab03ce, branch main  8 objects"));
    world.error("app@gpu", ErrorCode::History, "the clone is locked", &[], true);
    let picture = world.picture(120, 35);
    assert!(picture.contains("in sync, history behind"), "{picture}");
    assert!(picture.contains("history  there: the clone is locked"), "{picture}");
    world.event("app@gpu", landed(true));
    assert!(!world.picture(120, 35).contains("history behind"));
}

#[test]
fn accept_asks_with_the_counts_and_only_where_something_waits() {
    let mut world = in_sync();
    world.keys("a");
    assert_eq!(world.app.layer, Layer::None);
    assert!(world.app.toast.as_ref().unwrap().text.contains("nothing waits to be accepted"));

    let mut world = braked();
    world.keys("a");
    let Layer::Confirm(confirm) = &world.app.layer else { panic!("a asks") };
    assert!(confirm.facts.contains(&("missing", "412 of 1,203 tracked files".into())), "{confirm:?}");
    let effects = world.key(KeyCode::Char('y'));
    assert_eq!(effects, [Effect::Command(target("app@gpu"), Command::Accept)]);
    // The files came back while the question stood.
    world.keys("a");
    world.event("app@gpu", EventKind::Brake(None)).phase("app@gpu", Phase::InSync, "");
    assert_eq!(world.key(KeyCode::Char('y')), []);

    let mut world = in_sync();
    let held = vec![(RelPath::new("x").unwrap(), WithheldReason::Drift)];
    world.event("app@local-a", EventKind::Withheld { paths: held });
    world.keys("a");
    let Layer::Confirm(confirm) = &world.app.layer else { panic!("a asks") };
    assert!(confirm.facts.contains(&("on hold", "1 path".into())), "{confirm:?}");
}

#[test]
fn pictures_of_states() {
    braked().look("braked");
    in_sync().look("in_sync");
    mixed().look("one_down");
    halted().look("halted");
    World::new(&["app@local-a", "app@gpu"]).look("starting");
    World::new(&[]).look("no_targets");
}

#[test]
fn pictures_of_layers() {
    let mut help = in_sync();
    help.keys("?");
    help.look("help");

    let mut confirm = mixed();
    confirm.keys("jR");
    confirm.look("confirm_resync");

    let mut filter = in_sync();
    filter.keys("/web");
    filter.look("filter_typed_empty");

    let mut page = halted();
    page.key(KeyCode::Enter);
    page.look("detail_page");

    let mut log = mixed();
    log.keys("3z");
    log.look("log_page");

    let mut toast = mixed();
    toast.keys("Gkks");
    toast.look("toast");

    let mut frozen = mixed();
    frozen.keys("F");
    frozen.at(300.0);
    frozen.look("frozen");
}

#[test]
fn picture_without_utf8_or_colour() {
    let mut world = World::with(&["app@local-a", "app@gpu"], Theme::new(false, false), true);
    world.healthy("app@local-a", 1, &FAST).error("app@gpu", ErrorCode::Locked, "locked", &[], false);
    world.phase("app@gpu", Phase::Halted, "locked by ana@desk since 13:12").at(9.0);
    world.look("ascii_read_only");
}

#[test]
fn no_size_and_no_name_panics() {
    let mut worlds = [in_sync(), mixed(), halted(), World::new(&[]), hostile()];
    for (i, world) in worlds.iter_mut().enumerate() {
        for layer in ["", "?", "\x1bR", "n\x1b/ab\u{200d}日", "\x1b2z", "\x1b3"] {
            for c in layer.chars() {
                world.key(if c == '\x1b' { KeyCode::Esc } else { KeyCode::Char(c) });
            }
            // Every size once; with layers, and for the other worlds, a coarser net.
            let (dx, dy) = if i == 1 && layer.is_empty() { (1, 1) } else { (6, 3) };
            for width in (1..=130).step_by(dx) {
                for height in (1..=40).step_by(dy) {
                    world.draw(width, height);
                }
            }
        }
    }
}

fn hostile() -> World {
    let names = [
        "a\u{1b}[31m@\u{202e}evil",
        "日本語日本語日本語@e\u{301}e\u{301}",
        &format!("{}@x", "n".repeat(4_096)),
        "👩‍👩‍👧@\u{200b}",
    ];
    let mut world = World::new(&names);
    for (i, name) in names.into_iter().enumerate() {
        world.healthy(name, i as u8, &FAR);
        world.error(name, ErrorCode::Refused, &"wörd ".repeat(900), &["\u{1b}]52;c;\u{7}", ""], true);
        world.retry(name, "\u{9b}31m", 1e6);
        world.local(name, patch(200), u64::MAX);
        let progress = EventKind::Progress { stage: "objects", done: u64::MAX, total: 1, unit: "bytes" };
        world.event(name, progress);
    }
    world.at(4e8);
    world
}

#[test]
fn hostile_text_reaches_no_cell() {
    let mut world = hostile();
    for (width, height) in SIZES {
        let buffer = world.draw(width, height);
        for cell in buffer.content() {
            assert!(
                !cell.symbol().contains(|c: char| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c))
            );
        }
    }
}

#[test]
fn mono_draws_no_colour_and_the_selection_is_reversed() {
    let mut world = World::with(&["app@local-a", "app@gpu"], Theme::new(false, true), false);
    world.healthy("app@local-a", 1, &FAST).error("app@gpu", ErrorCode::Locked, "locked", &[], false);
    world.phase("app@gpu", Phase::Halted, "locked").keys("pR");
    for keys in ["", "n", "?"] {
        world.keys(keys);
        let buffer = world.draw(120, 35);
        assert!(buffer.content().iter().all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset));
        assert!(buffer.content().iter().any(|cell| cell.modifier.contains(Modifier::REVERSED)));
    }
}

#[test]
fn drawing_twice_gives_the_same_picture() {
    let mut world = mixed();
    assert_eq!(world.draw(120, 35), world.draw(120, 35));
}

#[test]
fn trouble_comes_first_and_saves_move_no_row() {
    let mut world = mixed();
    let rows = ["notes@builder", "app@local-a", "app@gpu", "docs@gpu", "infra@builder"];
    assert_eq!(world.row_names(), rows);
    world.phase("app@gpu", Phase::InSync, "").phase("docs@gpu", Phase::Syncing, "");
    assert_eq!(world.row_names(), rows);
    // A try under way is the same trouble still.
    world.phase("notes@builder", Phase::Connecting, "");
    assert_eq!(world.row_names(), rows);
    world.at(46.0).phase("notes@builder", Phase::Syncing, "").acked("notes@builder", patch(8), 20);
    assert_eq!(world.row_names()[4], "notes@builder");
    assert_eq!(world.current(), "app@local-a", "the selection stays with its target");
}

#[test]
fn keys_move_the_selection() {
    // Rows: notes@builder (down), app@local-a (selected at first), app@gpu, docs@gpu (withheld), infra@builder.
    let rows: &[(&str, &str)] = &[
        ("", "app@local-a"),
        ("j", "app@gpu"),
        ("k", "notes@builder"),
        ("kk", "notes@builder"),
        ("G", "infra@builder"),
        ("Gj", "infra@builder"),
        ("Gg", "notes@builder"),
        ("e", "docs@gpu"),
        ("ee", "notes@builder"),
        ("E", "notes@builder"),
        ("EE", "docs@gpu"),
        ("!j", "docs@gpu"),
    ];
    for (keys, expected) in rows {
        let mut world = mixed();
        world.keys(keys);
        assert_eq!(world.current(), *expected, "{keys:?}");
    }
}

#[test]
fn keys_act_by_state() {
    let command = |name, command| vec![Effect::Command(target(name), command)];
    let rows: &[(&str, char, Vec<Effect>)] = &[
        ("", 'p', command("app@local-a", Command::Pause)),
        ("G", 'p', command("infra@builder", Command::Resume)),
        ("g", 's', command("notes@builder", Command::SyncNow)),
        ("", 's', command("app@local-a", Command::SyncNow)),
        ("G", 's', vec![]),
        ("", 'R', vec![]),
        ("R", 'y', command("app@local-a", Command::Resync)),
        ("R", 'n', vec![]),
        ("Rl", 'n', vec![]),
        ("", 'x', vec![]),
        ("", 'q', vec![Effect::Quit]),
        ("y", 'y', vec![Effect::Copy(patch(1).to_string())]),
        ("/app@gpu", 'q', vec![]),
    ];
    for (before, key, effects) in rows {
        let mut world = mixed();
        world.keys(before);
        assert_eq!(world.key(KeyCode::Char(*key)), *effects, "{before:?} then {key:?}");
    }
}

/// Tells of a reload after which there are these targets.
fn reload(world: &mut World, targets: &[&str], removed: &[&str]) {
    let ids = |names: &[&str]| names.iter().map(|name| target(name)).collect::<Vec<_>>();
    let changes = Changes { targets: ids(targets), removed: ids(removed), ..Changes::default() };
    config(world, Ok(changes));
}

fn config(world: &mut World, reloaded: Result<Changes, String>) {
    let (at, time) = (world.now(), SystemTime::UNIX_EPOCH);
    let event = Event { at, time, target: None, kind: EventKind::Config(reloaded) };
    update(&mut world.app, Msg::Events(vec![event]), at);
}

#[test]
fn a_reload_is_asked_for_whatever_is_shown() {
    let mut world = mixed();
    assert_eq!(world.ctrl('r'), [Effect::Reload]);
    world.keys("/no such target");
    world.key(KeyCode::Enter);
    assert_eq!(world.ctrl('r'), [Effect::Reload]);
    let mut world = World::with(&["app@gpu"], Theme::new(true, true), true);
    assert_eq!(world.ctrl('r'), []);
    assert!(world.app.toast.as_ref().unwrap().text.contains("read-only"));
}

#[test]
fn the_selection_outlives_a_reload_as_long_as_its_target_does() {
    let left = ["docs@gpu", "new@gpu", "app@gpu"];
    let gone = ["app@local-a", "infra@builder", "notes@builder"];
    let mut world = mixed();
    world.keys("j2z");
    assert_eq!((world.current().as_str(), world.app.focus), ("app@gpu", Pane::Detail));
    reload(&mut world, &left, &gone);
    assert_eq!(world.row_names(), left);
    assert_eq!((world.current().as_str(), world.app.focus, world.app.zoom), ("app@gpu", Pane::Detail, true));
    let text = &world.app.toast.as_ref().unwrap().text;
    assert_eq!(text, "configuration reloaded: removed app@local-a, infra@builder, notes@builder");
    // The page of a target that goes is closed, and the selection is where everybody sees it.
    reload(&mut world, &["docs@gpu", "new@gpu"], &["app@gpu"]);
    assert_eq!(
        (world.current().as_str(), world.app.focus, world.app.zoom),
        ("docs@gpu", Pane::Targets, false)
    );
    // What stays where it was does not move it.
    world.keys("j");
    reload(&mut world, &["app@gpu", "docs@gpu", "new@gpu"], &[]);
    assert_eq!(world.current(), "new@gpu");
}

#[test]
fn a_frozen_view_and_a_question_outlive_their_target() {
    let mut world = mixed();
    world.keys("F");
    let before = world.picture(120, 35);
    reload(&mut world, &["docs@gpu"], &["app@local-a"]);
    let table = |picture: &str| picture.lines().take(8).collect::<Vec<_>>().join("\n");
    assert_eq!(table(&world.picture(120, 35)), table(&before));
    assert_eq!(world.key(KeyCode::Char('p')), []);
    world.keys("F");
    assert_eq!(world.row_names(), ["docs@gpu"]);

    let mut world = mixed();
    world.keys("R");
    reload(&mut world, &["docs@gpu"], &["app@local-a"]);
    assert_eq!(world.key(KeyCode::Char('y')), []);
    assert!(world.app.toast.as_ref().unwrap().text.contains("this target is gone"));
}

#[test]
fn a_configuration_with_an_error_is_told_and_changes_nothing() {
    let mut world = mixed();
    let rows = world.row_names();
    config(&mut world, Err("c.toml:3:1: unknown key `naem`".into()));
    assert_eq!(world.row_names(), rows);
    let wanted = "not reloaded: c.toml:3:1: unknown key `naem`";
    assert_eq!(world.app.toast.as_ref().unwrap().text, wanted);
    let newest = world.app.log.until(u64::MAX).next_back().unwrap();
    assert_eq!((newest.level, newest.text.as_str()), (Level::Error, wanted));
}

#[test]
fn a_question_starts_on_cancel() {
    let mut world = mixed();
    world.keys("R");
    assert_eq!(world.key(KeyCode::Enter), []);
    assert_eq!(world.app.layer, Layer::None);
    world.keys("R");
    world.key(KeyCode::Tab);
    assert_eq!(world.key(KeyCode::Enter), [Effect::Command(target("app@local-a"), Command::Resync)]);
}

#[test]
fn a_question_is_asked_of_the_world_as_it_is_when_answered() {
    let mut world = mixed();
    world.keys("R");
    world.phase("app@local-a", Phase::Connecting, "");
    assert_eq!(world.key(KeyCode::Char('y')), []);
    assert!(world.app.toast.as_ref().unwrap().text.contains("still connecting"));
}

#[test]
fn all_means_those_shown() {
    let mut world = mixed();
    world.keys("/@gpu");
    world.key(KeyCode::Enter);
    world.keys("P");
    let pause = |name| Effect::Command(target(name), Command::Pause);
    assert_eq!(world.key(KeyCode::Char('y')), [pause("app@gpu"), pause("docs@gpu")]);
    for name in ["app@gpu", "docs@gpu"] {
        world.phase(name, Phase::Paused, "");
    }
    world.keys("P");
    let resume = |name| Effect::Command(target(name), Command::Resume);
    assert_eq!(world.key(KeyCode::Char('y')), [resume("app@gpu"), resume("docs@gpu")]);
}

#[test]
fn read_only_acts_on_nothing_and_says_so() {
    let mut world = World::with(&["app@gpu"], Theme::new(true, true), true);
    world.healthy("app@gpu", 1, &FAR);
    for key in ['p', 's', 'R', 'P'] {
        assert_eq!(world.key(KeyCode::Char(key)), []);
        assert_eq!(world.app.layer, Layer::None);
        assert!(world.app.toast.as_ref().unwrap().text.contains("read-only"), "{key}");
    }
    world.app.toast = None;
    assert!(!world.picture(120, 35).contains("pause"));
}

#[test]
fn esc_closes_the_topmost_thing_and_reaches_the_root() {
    let mut world = mixed();
    world.keys("/gpu");
    world.key(KeyCode::Enter);
    world.key(KeyCode::Enter);
    world.keys("?");
    assert_eq!((world.app.focus, world.app.zoom), (Pane::Detail, true));
    world.key(KeyCode::Esc);
    assert!(world.app.layer == Layer::None && world.app.zoom);
    world.key(KeyCode::Esc);
    assert_eq!((world.app.focus, world.app.zoom), (Pane::Targets, false));
    world.key(KeyCode::Esc);
    assert!(!world.app.is_filtered());
}

#[test]
fn the_filter_takes_text_and_gives_the_old_one_back() {
    let mut world = mixed();
    world.keys("/DOCS");
    assert_eq!(world.row_names(), ["docs@gpu"]);
    world.key(KeyCode::Enter);
    assert_eq!(world.current(), "docs@gpu");
    world.keys("/x");
    assert!(world.row_names().is_empty());
    assert_eq!(world.key(KeyCode::Char('p')), []);
    world.key(KeyCode::Esc);
    assert_eq!(world.row_names(), ["docs@gpu"]);
    world.keys("/");
    world.ctrl('u');
    assert_eq!(world.row_names().len(), 5);
    assert_eq!(world.ctrl('c'), [Effect::Quit]);
}

#[test]
fn a_log_that_is_read_stays_where_it_is() {
    let mut world = mixed();
    world.draw(80, 24);
    world.keys("3kk");
    let before = world.app.log_scroll;
    assert_eq!(before, 2);
    world.acked("app@gpu", patch(7), 40);
    assert_eq!(world.app.log_scroll, before + 1);
    world.keys("G");
    assert_eq!(world.app.log_scroll, 0);
}

#[test]
fn frozen_shows_then_and_acts_now() {
    let mut world = mixed();
    world.keys("F");
    let before = world.picture(120, 35);
    world.at(60.0).phase("app@local-a", Phase::Paused, "by you");
    assert_eq!(world.app.next_change(world.now()), None);
    let without_keys = |picture: &str| picture.lines().take(34).collect::<Vec<_>>().join("\n");
    assert_eq!(without_keys(&world.picture(120, 35)), without_keys(&before));
    assert_eq!(world.key(KeyCode::Char('p')), [Effect::Command(target("app@local-a"), Command::Resume)]);
    world.keys("F");
    assert!(!world.picture(120, 35).contains("FROZEN"));
}

#[test]
fn a_timer_runs_only_while_an_age_moves() {
    let second = Some(Duration::from_secs(1));
    let mut world = in_sync();
    assert_eq!(world.app.next_change(world.now()), None);
    world.local("app@gpu", patch(5), 1);
    assert_eq!(world.app.next_change(world.now()), second);
    world.at(40.0 + 4_000.0);
    assert_eq!(world.app.next_change(world.now()), Some(Duration::from_secs(60)));
    world.local("app@gpu", patch(5), 0);
    assert_eq!(world.app.next_change(world.now()), None);
    world.retry("docs@gpu", "", 3.0);
    assert_eq!(world.app.next_change(world.now()), second);
    world.at(4_044.0);
    assert_eq!(world.app.next_change(world.now()), None);
    world.keys("y");
    let toast = world.app.next_change(world.now()).unwrap();
    assert!(toast > Duration::ZERO && toast <= Duration::from_secs(6));
    world.at(4_060.0);
    let now = world.now();
    update(&mut world.app, Msg::Tick, now);
    assert_eq!(world.app.next_change(now), None);
}

#[test]
fn the_retry_counts_down() {
    let mut world = mixed();
    for (t, shown) in
        [(42.1, "retry in 5s"), (44.5, "retry in 3s"), (46.9, "retry in 1s"), (47.1, "retrying now")]
    {
        assert!(world.at(t).picture(80, 24).contains(shown), "{shown}");
    }
}

#[test]
fn random_keys_and_events_never_panic() {
    let keys = [
        KeyCode::Char('j'),
        KeyCode::Char('k'),
        KeyCode::Char('g'),
        KeyCode::Char('G'),
        KeyCode::Char('p'),
        KeyCode::Char('P'),
        KeyCode::Char('R'),
        KeyCode::Char('y'),
        KeyCode::Char('/'),
        KeyCode::Char('a'),
        KeyCode::Char('!'),
        KeyCode::Char('e'),
        KeyCode::Char('E'),
        KeyCode::Char('z'),
        KeyCode::Char('F'),
        KeyCode::Char('?'),
        KeyCode::Char('3'),
        KeyCode::Tab,
        KeyCode::BackTab,
        KeyCode::Enter,
        KeyCode::Esc,
        KeyCode::Backspace,
        KeyCode::PageDown,
        KeyCode::PageUp,
    ];
    let mut world = mixed();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for i in 0..4_000u32 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let pick = state as usize;
        world.key(keys[pick % keys.len()]);
        if i % 7 == 0 {
            world.at(45.0 + f64::from(i) / 10.0);
            let phases = [Phase::InSync, Phase::Halted, Phase::Paused, Phase::Failed, Phase::Connecting];
            world.phase("app@gpu", phases[pick / 64 % phases.len()], "x").acked(
                "docs@gpu",
                patch(i as u8),
                30,
            );
        }
        if i % 13 == 0 {
            world.draw((pick % 131) as u16 + 1, (pick / 256 % 41) as u16 + 1);
        }
    }
    for _ in 0..6 {
        world.key(KeyCode::Esc);
    }
    assert!(world.app.layer == Layer::None && !world.app.zoom && world.app.focus == Pane::Targets);
}
