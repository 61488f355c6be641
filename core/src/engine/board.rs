//! What an observer says, passed on to the targets of its repo. They come and go while it observes: one that comes later
//! is given the newest state.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::emitter::Emitter;
use crate::mirror::client::Mailbox;
use crate::model::{ErrorReport, EventKind, HashKind, Missing, TargetId};
use crate::repo::Head;
use crate::repo::observer::{Report, Update};

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Board {
    emitter: Emitter,
    posted: Arc<Mutex<Posted>>,
    /// The repo became unusable. Of each of these two a receiver that has seen nothing is kept, to be copied.
    trouble: Watched<ErrorReport>,
    brake: Watched<Missing>,
}

type Watched<T> = (Arc<watch::Sender<Option<T>>>, watch::Receiver<Option<T>>);

#[derive(Debug, Default)]
struct Posted {
    readers: Vec<(TargetId, Arc<Mailbox>)>,
    opened: Option<(Arc<Head>, HashKind)>,
    newest: Option<Update>,
    held_back: Option<(u64, Instant)>,
}

impl Board {
    pub fn new(emitter: Emitter) -> Self {
        let ((trouble, trouble_seen), (brake, brake_seen)) = (watch::channel(None), watch::channel(None));
        Self {
            emitter,
            posted: Arc::default(),
            trouble: (Arc::new(trouble), trouble_seen),
            brake: (Arc::new(brake), brake_seen),
        }
    }

    pub fn trouble(&self) -> watch::Receiver<Option<ErrorReport>> {
        self.trouble.1.clone()
    }

    pub fn brake(&self) -> watch::Receiver<Option<Missing>> {
        self.brake.1.clone()
    }

    /// From now on `target` is told what the observer says, beginning with the newest state.
    pub fn join(&self, target: &TargetId) -> Arc<Mailbox> {
        let mailbox = Arc::new(Mailbox::default());
        let mut posted = self.lock();
        if let Some((head, hash_kind)) = &posted.opened {
            mailbox.offer_opened(head.clone(), *hash_kind);
        }
        if let Some(newest) = &posted.newest {
            // Nothing in it has waited for this target.
            mailbox.offer(Update { seen: Instant::now(), held: Duration::ZERO, ..newest.clone() });
        }
        if let Some(missing) = *self.brake.0.borrow() {
            self.emitter.emit(target, EventKind::Brake(Some(missing)));
        }
        if let Some((changes, oldest)) = posted.held_back {
            self.emitter.emit(target, EventKind::HeldBack { changes, oldest });
        }
        posted.readers.push((target.clone(), mailbox.clone()));
        mailbox
    }

    pub fn leave(&self, target: &TargetId) {
        self.lock().readers.retain(|(id, _)| id != target);
    }

    pub fn post(&self, report: Report) {
        let mut posted = self.lock();
        let Posted { readers, opened, newest, held_back } = &mut *posted;
        let mailboxes = || readers.iter().map(|(_, mailbox)| mailbox);
        let everyone = |kind: EventKind| {
            for (target, _) in readers.iter() {
                self.emitter.emit(target, kind.clone());
            }
        };
        match report {
            Report::Update(update) => {
                self.trouble.0.send_if_modified(|t| t.take().is_some());
                mailboxes().for_each(|mailbox| mailbox.offer(update.clone()));
                *newest = Some(update);
            }
            Report::Opened { head, hash_kind } => {
                mailboxes().for_each(|mailbox| mailbox.offer_opened(head.clone(), hash_kind));
                *opened = Some((head, hash_kind));
            }
            Report::Preview(snapshot) => {
                mailboxes().for_each(|mailbox| mailbox.offer_preview(snapshot.clone()));
            }
            Report::Reading(reading) => {
                mailboxes().for_each(|mailbox| mailbox.offer_reading(reading.clone()));
            }
            Report::Read(contents) => mailboxes().for_each(|mailbox| mailbox.offer_read(&contents)),
            Report::Progress { files, of } => {
                everyone(EventKind::Progress { stage: "scanning", done: files, total: of, unit: "files" });
            }
            Report::Scanned { files, hashed } => {
                everyone(EventKind::Progress { stage: "hashed", done: hashed, total: files, unit: "files" });
            }
            Report::Trouble(report) => everyone(EventKind::Error(report)),
            Report::Note(note) => everyone(EventKind::Note(note)),
            Report::Brake(missing) => {
                if missing.is_none() {
                    *held_back = None;
                }
                everyone(EventKind::Brake(missing));
                self.brake.0.send_replace(missing);
            }
            Report::HeldBack { changes, oldest } => {
                *held_back = Some((changes, oldest));
                everyone(EventKind::HeldBack { changes, oldest });
            }
            Report::Uprooted(report) | Report::Ended(report) => {
                self.trouble.0.send_replace(Some(report));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Posted> {
        self.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
