//! Reads large files beside the observing thread, so that no save waits while one is hashed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use super::blocks::{BlockHasher, Blocks};
use super::disk::{self, Disk, Found, ReadOutcome};
use super::reading::{Reading, Teller};
use super::watch::Waker;
use crate::model::{ContentId, HashKind, RelPath, Signature};

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
    /// `None` while it waits.
    began: Option<Began>,
    /// It may have changed again after reading began.
    again: bool,
}

/// What a file was right before reading began.
#[derive(Debug, Clone, Copy)]
struct Began {
    /// `None` if there was no file.
    signature: Option<Signature>,
    /// Any change since shows in its signature: it had been at rest for long enough.
    is_settled: bool,
}

impl Began {
    fn of(disk: &Disk, path: &RelPath) -> Self {
        let signature = signature_at(disk, path);
        Self { signature, is_settled: signature.is_some_and(|s| disk::unless_racy(s).is_trusted()) }
    }
}

struct Done {
    path: RelPath,
    outcome: ReadOutcome,
    teller: Option<Teller>,
    took: Duration,
}

/// One file that was read.
pub struct LargeRead {
    pub path: RelPath,
    /// `None` if it changed meanwhile and has to be read again.
    pub outcome: Option<ReadOutcome>,
    /// To be told what it is now, if anybody was told of the reading.
    pub teller: Option<Teller>,
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

    /// The snapshot lacks what this file holds. A read under way does, unless the file may have changed since it began.
    pub fn want(&mut self, path: RelPath, seen: Instant, disk: &Disk) {
        match self.files.get_mut(&path) {
            Some(State { began: Some(began), again, .. }) => {
                *again |= !began.is_settled || began.signature != signature_at(disk, &path);
            }
            Some(_) => {}
            None => {
                self.files.insert(path.clone(), State { seen, began: None, again: false });
                self.waiting.push_back(path);
            }
        }
    }

    /// True if a read that waits or is under way will tell as much as a look at the file now. Not for what an event says:
    /// a change so soon after reading began need not show in the signature.
    pub fn will_tell(&self, path: &RelPath, disk: &Disk) -> bool {
        self.files
            .get(path)
            .is_some_and(|state| state.began.is_none_or(|began| began.signature == signature_at(disk, path)))
    }

    /// What is being read is to be read again, whatever signatures say.
    pub fn distrust(&mut self) {
        for state in self.files.values_mut() {
            state.again |= state.began.is_some();
        }
    }

    /// Begins to read what waits, as many at once as is good for the machine. `base_of` says what a file held before,
    /// where the blocks of that are known: such a reading can be followed, and is given back.
    pub fn start(
        &mut self,
        disk: &Arc<Disk>,
        kind: HashKind,
        base_of: impl Fn(&RelPath) -> Option<(ContentId, Arc<Blocks>)>,
    ) -> Vec<Reading> {
        let mut readings = Vec::new();
        while self.reading < AT_ONCE
            && let Some(path) = self.waiting.pop_front()
        {
            let began = Began::of(disk, &path);
            let (disk, done, waker, at) =
                (disk.clone(), self.done.0.clone(), self.waker.clone(), path.clone());
            let begin =
                |signature: Signature| Some(Reading::begin(at.clone(), signature.size, base_of(&at)?));
            let (reading, mut teller) = began.signature.and_then(begin).unzip();
            let read = move || {
                let started = Instant::now();
                let mut tell = |read: &BlockHasher| {
                    if let Some(teller) = &mut teller {
                        teller.tell(read);
                    }
                };
                let outcome = disk.read_telling(&path, kind, &mut tell);
                // An observer that has ended wants no answer.
                let _ = done.send(Done { path, outcome, teller, took: started.elapsed() });
                waker.wake();
            };
            match std::thread::Builder::new().name("reader".into()).spawn(read) {
                Ok(_) => {
                    self.reading += 1;
                    readings.extend(reading);
                    if let Some(state) = self.files.get_mut(&at) {
                        state.began = Some(began);
                    }
                }
                Err(e) => {
                    tracing::warn!("cannot start a thread to read {at}: {e}");
                    self.waiting.push_front(at);
                    break;
                }
            }
        }
        readings
    }

    /// The files that were read since the last call.
    pub fn take_done(&mut self) -> Vec<LargeRead> {
        let mut all = Vec::new();
        while let Ok(Done { path, outcome, teller, took }) = self.done.1.try_recv() {
            self.reading -= 1;
            let Some(State { seen, again, .. }) = self.files.remove(&path) else { continue };
            all.push(LargeRead { path, outcome: (!again).then_some(outcome), teller, seen, took });
        }
        all
    }
}

fn signature_at(disk: &Disk, path: &RelPath) -> Option<Signature> {
    match disk.find(path) {
        Ok(Found::File { signature, .. }) => Some(signature),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::repo::watch::Watcher;

    struct Bench {
        dir: tempfile::TempDir,
        disk: Arc<Disk>,
        files: LargeFiles,
        path: RelPath,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let disk = Arc::new(Disk::open(dir.path()).unwrap());
            let files = LargeFiles::new(Watcher::new().unwrap().waker());
            let bench = Self { dir, disk, files, path: RelPath::new("large").unwrap() };
            bench.write("first");
            bench
        }

        fn write(&self, text: &str) {
            fs::write(self.dir.path().join("large"), text).unwrap();
        }

        fn settle(&self) {
            let file = fs::File::open(self.dir.path().join("large")).unwrap();
            let signature = disk::signature_of(&file).unwrap();
            while !disk::unless_racy(signature).is_trusted() {
                std::thread::sleep(Duration::from_millis(20));
            }
        }

        fn want(&mut self) {
            self.files.want(self.path.clone(), Instant::now(), &self.disk);
        }

        fn start(&mut self) {
            self.files.start(&self.disk, HashKind::Sha1, |_| None);
        }

        /// True if what is read counts.
        fn is_accepted(&mut self) -> bool {
            loop {
                if let Some(read) = self.files.take_done().pop() {
                    return matches!(read.outcome, Some(ReadOutcome::Read(..)));
                }
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn a_look_at_a_file_that_has_not_moved_leaves_the_read_under_way_alone() {
        let mut bench = Bench::new();
        bench.settle();
        bench.want();
        bench.want();
        bench.start();
        bench.want();
        assert!(bench.files.will_tell(&bench.path, &bench.disk));
        assert!(bench.is_accepted());
        assert!(!bench.files.is_any() && !bench.files.will_tell(&bench.path, &bench.disk));
    }

    #[test]
    fn a_file_that_moved_after_reading_began_is_read_again() {
        let mut bench = Bench::new();
        bench.settle();
        bench.want();
        bench.start();
        bench.write("another");
        assert!(!bench.files.will_tell(&bench.path, &bench.disk));
        bench.want();
        assert!(!bench.is_accepted());
    }

    #[test]
    fn an_event_counts_where_the_signature_need_not_show_the_change() {
        let mut bench = Bench::new();
        bench.want();
        bench.start();
        assert!(bench.files.will_tell(&bench.path, &bench.disk), "whoever merely asks can wait");
        bench.want();
        assert!(!bench.is_accepted());
    }

    #[test]
    fn what_is_read_while_signatures_are_not_believed_is_read_again() {
        let mut bench = Bench::new();
        bench.settle();
        bench.want();
        bench.files.distrust();
        bench.start();
        assert!(bench.is_accepted(), "it was still to be read");
        bench.want();
        bench.start();
        bench.files.distrust();
        assert!(!bench.is_accepted());
    }
}
