//! The history track of one session: steps and packs in, what became of them out. Nothing here waits.

use std::sync::Arc;

use gitsync_core::model::{Dir, ErrorCode, ErrorReport};
use gitsync_core::wire::{Baseline, Landed, NotLanded, NotLandedReason, PackPiece, ToClient};

use super::takings::{Taker, Takings};
use crate::beside::Bell;
use crate::epoch::Fence;
use crate::history::{self, History, OutOfTurn, Report, Step, StepError};
use crate::workspace::CloneDir;

/// Most of one step's lists together, by their weight in bytes.
const STEP_BYTES_MAX: u64 = 256 << 20;

/// A track, for a client that knows of it.
pub struct Track {
    clone: Arc<CloneDir>,
    bell: Bell,
    held: Arc<Dir>,
    /// `None` as long as it could not be begun: the next step tries again.
    history: Option<History>,
    /// A step whose lists go on.
    partial: Option<Partial>,
    /// Everything was compared since the last landing, and which step is to land it anew.
    anew: Option<Anew>,
}

#[derive(Debug, PartialEq, Eq)]
enum Anew {
    Wanted,
    Begun(u64),
}

#[derive(Debug)]
struct Partial {
    step: Baseline,
    weight: u64,
}

impl Track {
    pub fn open(clone: CloneDir, fence: &Fence, held: Arc<Dir>, bell: Bell) -> Self {
        let clone = Arc::new(clone);
        let mut track = Self { clone, bell, held, history: None, partial: None, anew: None };
        if let Err(e) = track.history(fence) {
            tracing::warn!("no history in this session yet: {}", report(&e).join(": "));
        }
        track
    }

    /// Begun here if it was not yet: what kept it from that may be over.
    fn history(&mut self, fence: &Fence) -> Result<&mut History, StepError> {
        let history = match self.history.take() {
            Some(history) => history,
            None => {
                let seal = fence.seal();
                let seal = seal.map_err(|source| StepError::Io { action: "look at the owner", source })?;
                let (clone, held) = (self.clone.clone(), self.held.clone());
                history::open(clone, fence.number(), held, seal, self.bell.clone())?
            }
        };
        Ok(self.history.insert(history))
    }

    /// A person has everything compared: the next step that lands writes the index anew.
    pub fn compare(&mut self) {
        self.anew = Some(Anew::Wanted);
    }

    pub fn set_held(&mut self, held: &Arc<Dir>) {
        self.held.clone_from(held);
        if let Some(history) = &self.history {
            history.set_held(held);
        }
    }

    pub fn baseline(
        &mut self,
        baseline: Baseline,
        fence: &Fence,
        takings: &mut Takings,
    ) -> Result<Vec<ToClient>, String> {
        let weight = baseline.weight();
        takings.take(weight);
        let partial = match self.partial.take() {
            Some(partial) if partial.step.number == baseline.number => {
                partial.extend(baseline, weight, STEP_BYTES_MAX)?
            }
            _ => Partial { step: baseline, weight },
        };
        if partial.step.more {
            self.partial = Some(partial);
            return Ok(Vec::new());
        }
        let number = partial.step.number;
        let step = Step { anew: self.anew.is_some(), ..Step::new(partial.step) };
        if let Some(anew) = &mut self.anew {
            *anew = Anew::Begun(number);
        }
        match self.history(fence) {
            Ok(history) => history.begin(step).map_err(|e| e.to_string())?,
            Err(e) => return Ok(vec![ToClient::NotLanded(not_landed(number, &e))]),
        }
        Ok(Vec::new())
    }

    pub fn piece(&mut self, piece: PackPiece, takings: &mut Takings) -> Result<(), String> {
        let weight = piece.weight();
        match &mut self.history {
            Some(history) => {
                history.piece(piece.number, piece.data, piece.end).map_err(|e: OutOfTurn| e.to_string())?;
                takings.hand_to(Taker::History, weight);
            }
            None => takings.take(weight),
        }
        Ok(())
    }

    pub fn stop(&mut self, number: u64) {
        self.partial.take_if(|partial| partial.step.number == number);
        if let Some(history) = &mut self.history {
            history.stop(number);
        }
    }

    /// What there is to tell by now.
    pub fn news(&mut self, takings: &mut Takings) -> Vec<ToClient> {
        let mut replies = Vec::new();
        while let Some(report) = self.history.as_mut().and_then(History::report) {
            match report {
                Report::Taken => takings.taken(Taker::History),
                Report::Landed { number, head, objects } => {
                    self.anew.take_if(|anew| *anew == Anew::Begun(number));
                    replies.push(ToClient::Landed(Landed { number, head, objects }));
                }
                Report::NotLanded { number, error } => {
                    replies.push(ToClient::NotLanded(not_landed(number, &error)));
                }
                Report::Gone { number } => {
                    tracing::error!(
                        "the history thread of this session has ended; the next step starts another"
                    );
                    self.history = None;
                    takings.gone(Taker::History);
                    replies.extend(number.map(|number| {
                        ToClient::NotLanded(NotLanded {
                            number,
                            messages: vec!["the server gave the step up".to_owned()],
                            retryable: true,
                            reason: NotLandedReason::Failed,
                        })
                    }));
                }
            }
        }
        replies
    }
}

impl std::fmt::Debug for Track {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Track").field("history", &self.history).finish_non_exhaustive()
    }
}

impl Partial {
    /// With a continuation of this `weight`, as long as both together are not above `most`.
    fn extend(mut self, next: Baseline, weight: u64, most: u64) -> Result<Self, String> {
        self.weight += weight;
        if self.weight > most {
            return Err(format!("the lists of step {} take more than {most} bytes", self.step.number));
        }
        self.step.extend(next).map_err(|violation| violation.to_string())?;
        Ok(self)
    }
}

fn not_landed(number: u64, error: &StepError) -> NotLanded {
    use NotLandedReason as Reason;
    let (reason, retryable) = match error {
        StepError::Missing(_) => (Reason::ObjectsMissing, false),
        StepError::Invalid(_) | StepError::TooLarge(_) => (Reason::Invalid, false),
        StepError::Busy(_) => (Reason::Busy, true),
        StepError::DiskFull => (Reason::DiskFull, true),
        StepError::Git { .. } | StepError::Io { .. } | StepError::Deadline => (Reason::Failed, true),
        StepError::Unsupported(_) | StepError::Damaged(_) | StepError::Fenced(_) | StepError::Stopped => {
            (Reason::Failed, false)
        }
    };
    NotLanded { number, messages: report(error), retryable, reason }
}

fn report(error: &StepError) -> Vec<String> {
    let report = ErrorReport::of(ErrorCode::Refused, error, false);
    std::iter::once(report.message).chain(report.causes).collect()
}

#[cfg(test)]
mod tests {
    use gitsync_core::model::RelPath;

    use super::*;

    #[test]
    fn lists_together_have_a_limit() {
        let message = |path: &str| {
            let mut step = Baseline { more: true, ..Baseline::new(1, None, None) };
            step.skip_worktree = vec![RelPath::new(path).unwrap()];
            let weight = step.weight();
            (step, weight)
        };
        let ((step, first), (next, second)) = (message("a"), message("bb"));
        let partial = || Partial { step: step.clone(), weight: first };
        let both = partial().extend(next.clone(), second, first + second).unwrap();
        assert_eq!((both.step.skip_worktree.len(), both.weight), (2, first + second));
        assert!(partial().extend(next, second, first + second - 1).is_err());
    }
}
