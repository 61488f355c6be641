//! The loop, driven by hand: events and signals go in, lines and an exit code come out.

use std::sync::{Arc, Mutex};

use gitsync_core::model::Phase::{Connecting, Halted, InSync, Negotiating, Paused, Syncing};
use gitsync_core::model::{Changes, Missing};
use serde_json::Value;

use super::fixture::{acked, event, session, state, target};
use super::*;

/// A stdout that keeps what it is given; broken, it answers as a pipe without a reader does.
#[derive(Debug, Clone, Default)]
struct Sink {
    bytes: Arc<Mutex<Vec<u8>>>,
    broken: bool,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.bytes.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const ONCE: Until = Until::Once { timeout: None };

struct Run {
    exit: u8,
    lines: Vec<Value>,
}

impl Run {
    fn types(&self) -> Vec<&str> {
        self.lines.iter().map(|line| line["type"].as_str().unwrap()).collect()
    }
}

/// Plays `before`, then the signals, then `while_stopping`, to a run with the targets `r@a` and `r@b`.
async fn play(
    until: Until,
    before: Vec<Event>,
    signal: &[Signal],
    while_stopping: Vec<Event>,
    stops: bool,
    sink: Sink,
) -> Run {
    let (to_face, events) = mpsc::unbounded_channel();
    let (to_signals, signals) = mpsc::unbounded_channel();
    for event in before {
        to_face.send(event).unwrap();
    }
    let keep = to_face.clone();
    let stop = async move {
        for event in while_stopping {
            keep.send(event).unwrap();
        }
        if !stops {
            std::future::pending::<()>().await;
        }
    };
    let signal = signal.to_vec();
    let sender = to_signals.clone();
    let sent = tokio::spawn(async move {
        for signal in signal {
            tokio::task::yield_now().await;
            sender.send(signal).unwrap();
        }
    });
    drop(to_face);
    let options = Options { format: Format::Json, until, accept_deletes: false };
    let hands = Hands { said: no_parent(), command: Box::new(|_, _| {}), reload: Box::new(|| {}) };
    let exit = run(events, stop, signals, hands, &[target("a"), target("b")], options, sink.clone()).await;
    sent.abort();
    let text = String::from_utf8(sink.bytes.lock().unwrap().clone()).unwrap();
    Run { exit: exit.code(), lines: text.lines().map(|line| serde_json::from_str(line).unwrap()).collect() }
}

#[tokio::test]
async fn once_ends_by_itself_and_the_summary_has_the_last_word() {
    let before = vec![
        event("a", state(Connecting, Negotiating)),
        event("a", session()),
        event("a", acked(0)),
        event("b", acked(0)),
    ];
    let late = vec![
        event("a", state(Syncing, InSync)),
        event("b", state(Syncing, InSync)),
        event("b", state(InSync, Paused)),
    ];
    let run = play(ONCE, before, &[], late, true, Sink::default()).await;
    assert_eq!(run.exit, 0);
    assert_eq!(
        run.types(),
        ["hello", "state", "session", "acked", "acked", "state", "state", "state", "summary"]
    );
    let seq: Vec<u64> = run.lines.iter().map(|line| line["seq"].as_u64().unwrap()).collect();
    assert_eq!(seq, (1..=9).collect::<Vec<u64>>());
    let targets = &run.lines[8]["targets"];
    assert_eq!((&targets["r@a"]["state"], &targets["r@b"]["state"]), (&"in-sync".into(), &"in-sync".into()));
}

#[tokio::test]
async fn signals_end_a_run_in_order() {
    let some = || vec![event("a", acked(0))];
    for (until, signals, exit) in [
        (Until::Stopped, &[Signal::Terminate][..], 0),
        (Until::Stopped, &[Signal::Interrupt], 130),
        (Until::Stopped, &[Signal::Hangup, Signal::Terminate], 0),
        (Until::Stopped, &[Signal::StdoutGone], 141),
        (ONCE, &[Signal::Terminate], 130),
        (ONCE, &[Signal::Interrupt], 130),
    ] {
        let run = play(until, some(), signals, vec![], true, Sink::default()).await;
        assert_eq!(run.exit, exit, "{until:?} {signals:?}");
        assert_eq!(run.types().last(), Some(&"summary"), "{until:?} {signals:?}");
        assert_eq!(run.lines.last().unwrap()["exit"], exit);
    }
}

#[tokio::test]
async fn a_second_interrupt_does_not_wait() {
    let twice = [Signal::Interrupt, Signal::Interrupt];
    let run = play(Until::Stopped, vec![], &twice, vec![], false, Sink::default()).await;
    assert_eq!(run.exit, 130);
}

#[tokio::test]
async fn a_closed_stdout_ends_the_run() {
    let sink = Sink { broken: true, ..Sink::default() };
    let run = play(Until::Stopped, vec![event("a", acked(0))], &[], vec![], true, sink).await;
    assert_eq!(run.exit, 141);
}

#[tokio::test]
async fn halted_targets_do_not_end_a_continuous_run_but_decide_its_exit_when_nothing_is_left() {
    let both = |server| event(server, state(Connecting, Halted));
    let mut face = Face::new(
        &[target("a"), target("b")],
        Options { format: Format::Json, until: Until::Stopped, accept_deletes: false },
        Instant::now(),
    );
    assert_eq!(face.engine_ended(), Exit::Bug);
    face.take(&both("a"), Instant::now());
    face.take(&both("b"), Instant::now());
    assert_eq!(face.engine_ended(), Exit::Halted);
}

/// What the loop did with what it was told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Given {
    commands: Vec<(Option<TargetId>, Command)>,
    reloads: u32,
}

/// Plays the line protocol to `r@a`, and answers the exit, the lines and what was given on.
async fn converse(before: Vec<Event>, said: Vec<Said>, options: Options) -> (u8, String, Given) {
    let (to_face, events) = mpsc::unbounded_channel();
    let (to_hands, heard) = mpsc::unbounded_channel();
    let (_signals, signals) = mpsc::unbounded_channel();
    let given = Arc::new(Mutex::new(Given::default()));
    for event in before {
        to_face.send(event).unwrap();
    }
    for said in said {
        to_hands.send(said).unwrap();
    }
    let (commands, reloads) = (given.clone(), given.clone());
    let command = move |target: Option<&TargetId>, command| {
        commands.lock().unwrap().commands.push((target.cloned(), command));
    };
    let reload = move || reloads.lock().unwrap().reloads += 1;
    let hands = Hands { said: heard, command: Box::new(command), reload: Box::new(reload) };
    let stop = async move { drop(to_face) };
    let sink = Sink::default();
    let exit = run(events, stop, signals, hands, &[target("a")], options, sink.clone()).await;
    let text = String::from_utf8(sink.bytes.lock().unwrap().clone()).unwrap();
    let given = given.lock().unwrap().clone();
    (exit.code(), text, given)
}

#[tokio::test]
async fn a_parent_commands_and_its_stop_ends_the_run() {
    let options = Options { format: Format::Line, until: Until::Stopped, accept_deletes: false };
    let said = vec![
        Said::Command(None, Command::Pause),
        Said::Wrong("ERROR - unknown command: x\n".into()),
        Said::Command(Some("r@a".into()), Command::Resync),
        Said::Command(Some("r@b".into()), Command::Resync),
        Said::Reload,
        Said::Stop,
    ];
    let before = vec![event("a", session()), event("a", state(Connecting, Syncing))];
    let (exit, text, given) = converse(before, said, options).await;
    assert_eq!(exit, 0);
    let commands = vec![(None, Command::Pause), (Some(target("a")), Command::Resync)];
    assert_eq!(given, Given { commands, reloads: 1 });
    let start = "HELLO 1\nERROR - unknown command: x\nERROR - no such target: r@b\n";
    assert!(text.starts_with(start), "{text}");
    assert!(text.ends_with("DONESYNCING r@a 0\nDISCONNECTED r@a\n"), "{text}");
}

#[tokio::test]
async fn a_run_to_one_state_reads_its_configuration_once() {
    let options = Options { format: Format::Line, until: ONCE, accept_deletes: false };
    let (exit, text, given) = converse(vec![], vec![Said::Reload, Said::Stop], options).await;
    assert_eq!((exit, given), (130, Given::default()));
    assert!(text.contains("ERROR - the configuration is not reloaded: a run with --once"), "{text}");
}

#[test]
fn a_parent_can_name_targets_a_reload_added() {
    let options = Options { format: Format::Line, until: Until::Stopped, accept_deletes: false };
    let mut face = Face::new(&[target("a")], options, Instant::now());
    let found = |face: &Face, name: &str| line::find(name, face.targets()).is_ok();
    assert_eq!((found(&face, "r@a"), found(&face, "r@b")), (true, false));
    let changes = Changes { targets: vec![target("b")], ..Changes::default() };
    let whole = Event { target: None, ..event("a", EventKind::Config(Ok(changes))) };
    face.take(&whole, Instant::now());
    assert_eq!((found(&face, "r@a"), found(&face, "r@b")), (false, true));
}

#[tokio::test]
async fn accepted_deletes_release_the_brake_and_the_wait_goes_on() {
    let braked = || {
        vec![
            event("a", EventKind::Brake(Some(Missing { files: 25, of: 30 }))),
            event("a", EventKind::Brake(None)),
            // The session's word may come after the observer's.
            event("a", state(Negotiating, Halted)),
            event("a", state(Halted, Syncing)),
            event("a", acked(0)),
        ]
    };
    let options = |accept_deletes| Options { format: Format::Line, until: ONCE, accept_deletes };
    let (exit, _, given) = converse(braked(), vec![], options(true)).await;
    assert_eq!((exit, given.commands), (0, vec![(Some(target("a")), Command::Accept)]));
    let (exit, text, given) = converse(braked(), vec![], options(false)).await;
    assert_eq!((exit, given), (4, Given::default()));
    assert!(text.contains("WARNING r@a 25 of 30 files are missing"), "{text}");
}
