//! Events in few words, for tests. Every target is `r@NAME`.

use std::time::{Duration, Instant, SystemTime};

use gitsync_core::model::{
    Acked, BaselineLanded, Event, EventKind, HashKind, PatchId, Phase, Rung, TargetId,
};

pub fn target(server: &str) -> TargetId {
    TargetId { repo: "r".into(), server: server.into() }
}

pub fn event(server: &str, kind: EventKind) -> Event {
    Event { at: Instant::now(), time: SystemTime::now(), target: Some(target(server)), kind }
}

pub fn state(from: Phase, to: Phase) -> EventKind {
    EventKind::State { from, to, reason: "because of it".into(), retry_at: None }
}

pub fn session() -> EventKind {
    EventKind::Session {
        rung: Rung::None,
        patch_id: PatchId::empty(HashKind::Sha1),
        baseline: None,
        branch: None,
        reason: String::new(),
        follows: false,
    }
}

/// Of a server whose clone follows.
pub fn following() -> EventKind {
    EventKind::Session {
        rung: Rung::None,
        patch_id: PatchId::empty(HashKind::Sha1),
        baseline: None,
        branch: None,
        reason: String::new(),
        follows: true,
    }
}

pub fn baseline(objects: u64) -> EventKind {
    EventKind::Baseline(BaselineLanded {
        from: None,
        to: "77ab03ce9f2c41d8aa51b7e20c9955d1f00d4e7b".parse().ok(),
        branch: Some("main".into()),
        objects,
        wire_bytes: 100,
        complete: true,
        reason: "because".into(),
    })
}

pub fn acked(withheld: u64) -> EventKind {
    EventKind::Acked(Acked {
        patch_id: PatchId::empty(HashKind::Sha1),
        parent_id: PatchId::empty(HashKind::Sha1),
        generation: 1,
        written: 2,
        deleted: 0,
        wire_bytes: 300,
        latency: Some(Duration::from_micros(12_500)),
        held: Duration::ZERO,
        apply: Duration::from_millis(1),
        rtt: None,
        withheld,
    })
}

pub fn progress() -> EventKind {
    EventKind::Progress { stage: "scan", done: 1, total: 2, unit: "files" }
}
