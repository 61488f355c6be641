//! Reads large files beside the observing thread, so that no save waits while one is hashed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use super::disk::{Disk, ReadOutcome};
use super::watch::Waker;
use crate::model::{HashKind, RelPath};

/// Files read at the same time.
const AT_ONCE: usize = 2;

/// Large files that wait to be read, or are.
pub struct LargeFiles {
    waiting: VecDeque<RelPath>,
    /// Every file that waits or is being read.
    files: BTreeMap<RelPath, State>,
    reading: usize,
    done: (Sender<Done>, Receiver<Done>),
    waker: Waker,
}

#[derive(Debug, Clone, Copy)]
struct State {
    /// When the oldest change was seen that reading it will show.
    seen: Instant,
    /// It changed again after reading began.
    again: bool,
}

struct Done {
    path: RelPath,
    outcome: ReadOutcome,
    took: Duration,
}

/// One file that was read.
pub struct LargeRead {
    pub path: RelPath,
    /// `None` if it changed meanwhile and has to be read again.
    pub outcome: Option<ReadOutcome>,
    pub seen: Instant,
    pub took: Duration,
}

impl LargeFiles {
    pub fn new(waker: Waker) -> Self {
        let (waiting, files, done) = (VecDeque::new(), BTreeMap::new(), mpsc::channel());
        Self { waiting, files, reading: 0, done, waker }
    }

    /// True while the snapshot lacks what such a file holds by now.
    pub fn is_any(&self) -> bool {
        !self.files.is_empty()
    }

    pub fn want(&mut self, path: RelPath, seen: Instant) {
        match self.files.get_mut(&path) {
            Some(state) => state.again = !self.waiting.contains(&path),
            None => {
                self.files.insert(path.clone(), State { seen, again: false });
                self.waiting.push_back(path);
            }
        }
    }

    /// Begins to read what waits, as many at once as is good for the machine.
    pub fn start(&mut self, disk: &Arc<Disk>, kind: HashKind) {
        while self.reading < AT_ONCE
            && let Some(path) = self.waiting.pop_front()
        {
            let (disk, done, waker, at) =
                (disk.clone(), self.done.0.clone(), self.waker.clone(), path.clone());
            let read = move || {
                let started = Instant::now();
                let outcome = disk.read(&path, kind);
                // An observer that has ended wants no answer.
                let _ = done.send(Done { path, outcome, took: started.elapsed() });
                waker.wake();
            };
            match std::thread::Builder::new().name("reader".into()).spawn(read) {
                Ok(_) => self.reading += 1,
                Err(e) => {
                    tracing::warn!("cannot start a thread to read {at}: {e}");
                    self.waiting.push_front(at);
                    return;
                }
            }
        }
    }

    /// The files that were read since the last call.
    pub fn take_done(&mut self) -> Vec<LargeRead> {
        let mut all = Vec::new();
        while let Ok(Done { path, outcome, took }) = self.done.1.try_recv() {
            self.reading -= 1;
            let Some(State { seen, again }) = self.files.remove(&path) else { continue };
            all.push(LargeRead { path, outcome: (!again).then_some(outcome), seen, took });
        }
        all
    }
}
