//! What makes sense to ask of a target as it stands, and how badly it stands: plain functions of its status, the same
//! for keys and for commands.

use gitsync_core::engine::Command;
use gitsync_core::model::status::TargetStatus;
use gitsync_core::model::{ErrorCode, Phase, WithheldReason};

/// Why a command changes nothing, to follow the target's name; `None` if it does something. `paused` is what was asked
/// for last: a halted target does not show it.
pub fn futile(target: &TargetStatus, paused: bool, command: Command) -> Option<&'static str> {
    match command {
        Command::Pause if paused => Some("is paused already"),
        Command::Resume if !paused => Some("is not paused"),
        Command::Accept if can_accept(target).is_err() => Some("has nothing to accept"),
        Command::Takeover if can_take_over(target).is_err() => {
            Some("has nothing to take over: no other owner holds its workspace")
        }
        _ => None,
    }
}

pub fn can_sync(target: &TargetStatus) -> Result<(), String> {
    match target.phase {
        Phase::Connecting | Phase::Negotiating | Phase::Bootstrapping => {
            Err(format!("still {}", target.phase))
        }
        Phase::Pausing | Phase::Paused => Err(format!("{}: p resumes", target.phase)),
        _ => Ok(()),
    }
}

pub fn can_resync(target: &TargetStatus) -> Result<(), String> {
    match target.phase {
        Phase::Connecting | Phase::Negotiating | Phase::Bootstrapping | Phase::Pausing => {
            Err(format!("still {}", target.phase))
        }
        Phase::Failed => Err("failed: s restarts it".into()),
        _ => Ok(()),
    }
}

pub fn can_accept(target: &TargetStatus) -> Result<(), String> {
    match target.brake.is_some() || on_hold(target) > 0 || is_repository_gone(target) {
        true => Ok(()),
        false => Err("nothing waits to be accepted".into()),
    }
}

pub fn can_take_over(target: &TargetStatus) -> Result<(), String> {
    match is_locked(target) {
        true => Ok(()),
        false => Err("no other owner holds the workspace".into()),
    }
}

/// Halted because the workspace is another owner's, from the beginning or by now.
pub fn is_locked(target: &TargetStatus) -> bool {
    let error = target.last_error.as_ref().map(|(_, _, report)| report.code);
    target.phase == Phase::Halted && matches!(error, Some(ErrorCode::Locked | ErrorCode::Superseded))
}

/// Paths that were changed on the server and stay as they are until somebody accepts.
pub fn on_hold(target: &TargetStatus) -> u64 {
    target.withheld.iter().filter(|(_, why)| *why == WithheldReason::Drift).count() as u64
}

/// Halted because the repository is not the one it was.
pub fn is_repository_gone(target: &TargetStatus) -> bool {
    let error = target.last_error.as_ref().map(|(_, _, report)| report.code);
    target.phase == Phase::Halted && error == Some(ErrorCode::Repository)
}

pub fn is_paused(phase: Phase) -> bool {
    matches!(phase, Phase::Pausing | Phase::Paused)
}

/// Needs a person now, or is not getting through: smaller is worse.
pub fn severity(target: &TargetStatus) -> u8 {
    match target.phase {
        Phase::Failed => 0,
        Phase::Halted => 1,
        Phase::Retrying => 2,
        // A retry under way is the same trouble; without this a row would jump at every try.
        Phase::Connecting | Phase::Negotiating if failed_since_ack(target) => 2,
        _ => 3,
    }
}

fn failed_since_ack(target: &TargetStatus) -> bool {
    let acked_at = target.last_ack.as_ref().map(|(at, _, _)| *at);
    target.last_error.as_ref().is_some_and(|(at, _, _)| Some(*at) > acked_at)
}

pub fn is_troubled(target: &TargetStatus) -> bool {
    severity(target) < 3
}

#[cfg(test)]
mod tests {
    use std::time::{Instant, SystemTime};

    use gitsync_core::model::status::Status;
    use gitsync_core::model::{ErrorReport, Event, EventKind, Missing, RelPath, TargetId};

    use super::*;

    fn after(events: &[EventKind]) -> TargetStatus {
        let (target, at) = (TargetId { repo: "r".into(), server: "a".into() }, Instant::now());
        let mut status = Status::new([target.clone()], at);
        for kind in events.iter().cloned() {
            status.apply(&Event { at, time: SystemTime::now(), target: Some(target.clone()), kind });
        }
        status.targets.remove(0)
    }

    fn error(code: ErrorCode) -> EventKind {
        let message = "m".into();
        EventKind::Error(ErrorReport { code, message, causes: Vec::new(), retryable: false })
    }

    #[test]
    fn commands_that_change_nothing_are_known() {
        let halted = EventKind::State {
            from: Phase::InSync,
            to: Phase::Halted,
            reason: String::new(),
            retry_at: None,
        };
        let held = EventKind::Withheld { paths: vec![(RelPath::new("f").unwrap(), WithheldReason::Drift)] };
        let brake = EventKind::Brake(Some(Missing { files: 25, of: 30 }));
        let rows = [
            (vec![], Command::Accept, false),
            (vec![brake.clone(), halted.clone()], Command::Accept, true),
            (vec![brake, EventKind::Brake(None)], Command::Accept, false),
            (vec![held], Command::Accept, true),
            (vec![error(ErrorCode::Repository), halted.clone()], Command::Accept, true),
            (vec![error(ErrorCode::Locked), halted.clone()], Command::Accept, false),
            (vec![error(ErrorCode::Locked), halted.clone()], Command::Takeover, true),
            (vec![error(ErrorCode::Superseded), halted.clone()], Command::Takeover, true),
            (vec![halted], Command::Takeover, false),
            (vec![], Command::Takeover, false),
            (vec![], Command::Resync, true),
            (vec![], Command::SyncNow, true),
        ];
        for (events, command, does) in rows {
            assert_eq!(futile(&after(&events), false, command).is_none(), does, "{events:?} {command:?}");
        }
        for (paused, command, does) in [
            (false, Command::Pause, true),
            (true, Command::Pause, false),
            (true, Command::Resume, true),
            (false, Command::Resume, false),
        ] {
            assert_eq!(futile(&after(&[]), paused, command).is_none(), does, "{paused} {command:?}");
        }
    }
}
