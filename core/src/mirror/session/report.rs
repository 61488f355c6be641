//! What a session says of itself: its phase, what is waiting, what is left out, and errors in words.

use std::time::Instant;

use gix::ObjectId;

use super::{Link, Session};
use crate::model::patch;
use crate::model::{
    ErrorCode, ErrorReport, EventKind, Missing, PatchId, Phase, RelPath, Rung, WithheldReason,
};
use crate::wire::{Refusal, RefusalCode, ToClient};

impl Session {
    pub(super) fn report_phase(&mut self, now: Instant) {
        let (phase, reason) = match self.link {
            // The connection is kept up, or tried for, without a word.
            Link::Connecting | Link::Greeting | Link::Opening | Link::Waiting { .. } if self.paused => {
                (Phase::Paused, "paused by you".into())
            }
            Link::Connecting => (Phase::Connecting, String::new()),
            Link::Opening | Link::Open if self.braked.is_some() => {
                (Phase::Halted, brake_report(self.braked).one_line())
            }
            Link::Greeting | Link::Opening => (Phase::Negotiating, String::new()),
            Link::Waiting { .. } => (Phase::Retrying, self.reason.clone()),
            Link::Stopped { phase } => (phase, self.reason.clone()),
            Link::Closed => return,
            Link::Open if self.paused && self.is_idle() => (Phase::Paused, "paused by you".into()),
            Link::Open if self.paused => (Phase::Pausing, "the apply in hand ends first".into()),
            Link::Open if self.is_satisfied() => (Phase::InSync, String::new()),
            Link::Open if self.rung == Rung::Patch => (Phase::Bootstrapping, String::new()),
            Link::Open => (Phase::Syncing, String::new()),
        };
        if phase == Phase::InSync {
            self.note_in_sync(now);
            // What comes next is a step, whatever the first patch was.
            self.rung = Rung::Diff;
        }
        if phase == self.phase {
            return;
        }
        let retry_at = match self.link {
            Link::Waiting { until } => Some(until),
            _ => None,
        };
        self.events.push(EventKind::State { from: self.phase, to: phase, reason, retry_at });
        self.phase = phase;
    }

    pub(super) fn report_session(&mut self, held: PatchId, common: Option<ObjectId>, reason: String) {
        let branch = self.told.as_ref().and_then(|h| h.branch.as_deref()).map(crate::model::path::escape);
        self.events.push(EventKind::Session {
            rung: self.rung,
            patch_id: held,
            baseline: common,
            branch,
            reason,
            follows: self.track.is_offered(),
        });
    }

    pub(super) fn report_local(&mut self) {
        let Some(newest) = &self.newest else { return };
        let snapshot = &newest.update.snapshot;
        let satisfied = self.satisfied == Some(snapshot.id()) && self.sent.is_empty();
        let changes = match &self.acked {
            _ if satisfied => 0,
            Some(acked) => patch::between(acked, snapshot).len() as u64,
            None => snapshot.root().leaves(),
        };
        let sent_oldest = self.sent.iter().find_map(|s| s.oldest);
        let waiting = [sent_oldest, newest.unsent_large, newest.unsent];
        let oldest = waiting.into_iter().flatten().map(|(seen, _)| seen).min().filter(|_| changes > 0);
        self.events.push(EventKind::Local {
            patch_id: snapshot.id(),
            changes,
            oldest,
            files: snapshot.root().leaves(),
            head: newest.update.head.commit,
        });
    }

    pub(super) fn withheld(&self) -> Vec<(RelPath, WithheldReason)> {
        let local = self.newest.iter().flat_map(|n| n.update.snapshot.withheld().iter());
        let mut all: Vec<_> = local.map(|(path, why)| (path.clone(), why.clone())).collect();
        all.extend(self.refused.withheld());
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all.dedup_by(|a, b| a.0 == b.0);
        all
    }

    pub(super) fn report_withheld(&mut self) {
        let withheld = self.withheld();
        if withheld != self.withheld_told {
            self.withheld_told.clone_from(&withheld);
            self.events.push(EventKind::Withheld { paths: withheld });
        }
    }
}

pub(super) fn kind_of(message: &ToClient) -> &'static str {
    match message {
        ToClient::Welcome(_) => "welcome",
        ToClient::Session(_) => "session",
        ToClient::Wanted(_) => "wanted",
        ToClient::Ack(_) => "ack",
        ToClient::Refusal(_) => "refusal",
        ToClient::Pong { .. } => "pong",
        ToClient::Drift(_) => "drift",
        ToClient::Kept { .. } => "kept",
        ToClient::KeptContent { .. } => "kept content",
        ToClient::Taken { .. } => "taken",
        ToClient::Refused { .. } => "refused paths",
        ToClient::Landed(_) => "landed",
        ToClient::NotLanded(_) => "not landed",
        ToClient::Lacking { .. } => "lacking",
    }
}

pub(super) fn brake_report(missing: Option<Missing>) -> ErrorReport {
    let Missing { files, of } = missing.unwrap_or(Missing { files: 0, of: 0 });
    ErrorReport {
        code: ErrorCode::Brake,
        message: format!("{files} of {of} tracked files are missing from the working tree"),
        causes: vec!["nothing is sent until they are back or you accept it".into()],
        retryable: false,
    }
}

pub(in crate::mirror) fn report_of(refusal: &Refusal) -> ErrorReport {
    let (code, retryable) = match refusal.code {
        RefusalCode::Protocol => (ErrorCode::Protocol, false),
        RefusalCode::ParentMismatch => (ErrorCode::ParentMismatch, true),
        RefusalCode::PatchInvalid => (ErrorCode::Refused, true),
        RefusalCode::BaseUnknown => (ErrorCode::BaseUnknown, true),
        RefusalCode::RemotesDiffer => (ErrorCode::RemotesDiffer, false),
        RefusalCode::Locked => (ErrorCode::Locked, false),
        RefusalCode::Superseded => (ErrorCode::Superseded, false),
        RefusalCode::Workspace => (ErrorCode::Workspace, false),
        RefusalCode::TooLarge => (ErrorCode::TooLarge, false),
        RefusalCode::DiskFull => (ErrorCode::DiskFull, true),
        RefusalCode::Failed => (ErrorCode::Refused, true),
        RefusalCode::ShuttingDown => (ErrorCode::Unreachable, true),
        RefusalCode::ContentMissing => (ErrorCode::Refused, true),
    };
    let mut texts = refusal.messages.iter().map(|m| crate::model::path::escape(m.as_bytes()));
    let message = texts.next().unwrap_or_else(|| "the server refused without a reason".into());
    ErrorReport { code, message, causes: texts.collect(), retryable }
}
