//! Sends one step of the history track, behind everything else.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;

use super::baseline::{SentStep, StepError};
use super::outlet::{Outlet, Stream};
use crate::model::{ErrorCode, ErrorReport, EventKind, HISTORY_STAGE};
use crate::repo::history::pack::PackReader;
use crate::repo::history::{Marks, Order, Plan, plan};
use crate::wire::{Baseline, CHUNK_BYTES, PackPiece, ToServer};

const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Plans the step, has its pack made and sends both, as the server gives credit for. `None` if there is nothing to
/// say. Dropping the future ends the child that packs.
pub async fn send_step(
    outlet: &Outlet,
    stream: &Stream,
    workdir: &Path,
    number: u64,
    order: Order,
) -> Result<Option<SentStep>, StepError> {
    let (workdir, landed) = (workdir.to_owned(), order.landed.clone());
    let planned = spawn_blocking(move || plan(&workdir, &order)).await;
    let planned = planned.map_err(|panic| failed(&panic, false))?.map_err(|e| failed(&e, false))?;
    let Some(plan) = planned else { return Ok(None) };
    let mut pack = match &plan.revs {
        Some(revs) => {
            let started = PackReader::start(&plan.git_dir, revs, plan.thin).await;
            let mut reader = started.map_err(|e| failed(&e, false))?;
            // A child that cannot pack says so before its first byte; then nothing need be said at all.
            let first = reader.next(CHUNK_BYTES).await.map_err(|e| failed(&e, false))?;
            Some((reader, first))
        }
        None => None,
    };
    let mut wire_bytes = 0;
    for message in baseline_of(number, &plan, landed.as_deref(), pack.is_some()).messages() {
        let weight = message.weight();
        wire_bytes += send(outlet, stream, ToServer::Baseline(message), weight).await?;
    }
    if let Some((reader, piece)) = &mut pack {
        let mut told = Instant::now();
        loop {
            let next = match piece {
                Some(_) => reader.next(CHUNK_BYTES).await.map_err(|e| failed(&e, true))?,
                None => None,
            };
            let data = piece.take().unwrap_or_default();
            let message = PackPiece { number, data, end: next.is_none() };
            let weight = message.weight();
            wire_bytes += send(outlet, stream, ToServer::PackPiece(message), weight).await?;
            if next.is_none() {
                break;
            }
            if told.elapsed() >= PROGRESS_EVERY {
                told = Instant::now();
                let report =
                    EventKind::Progress { stage: HISTORY_STAGE, done: wire_bytes, total: 0, unit: "bytes" };
                let _ = outlet.progress.send(report);
            }
            *piece = next;
        }
    }
    Ok(Some(SentStep { plan, wire_bytes }))
}

fn baseline_of(number: u64, plan: &Plan, landed: Option<&Marks>, pack: bool) -> Baseline {
    let marks = &plan.marks;
    let mut baseline = Baseline::new(number, marks.head, marks.branch.clone());
    baseline.pack = pack;
    baseline.shallow.clone_from(&plan.shallow);
    baseline.settings.clone_from(&marks.settings);
    baseline.tags_same = landed.is_some_and(|l| l.tags == marks.tags);
    baseline.skip_worktree_same = landed.is_some_and(|l| l.skip_worktree == marks.skip_worktree);
    if !baseline.tags_same {
        baseline.tags.clone_from(&marks.tags);
    }
    if !baseline.skip_worktree_same {
        baseline.skip_worktree.clone_from(&marks.skip_worktree);
    }
    baseline
}

async fn send(outlet: &Outlet, stream: &Stream, message: ToServer, weight: u64) -> Result<u64, StepError> {
    outlet.send_behind(stream, message, weight).await.map_err(|_| StepError::Closed)
}

fn failed(error: &dyn std::error::Error, begun: bool) -> StepError {
    StepError::Failed { report: ErrorReport::of(ErrorCode::History, error, true), begun }
}
