//! Who is told of commits.

use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::{Event, Revision, StoreError, Watch, WatchItem};

/// Commits a watcher may be behind before it is cut off.
const QUEUE: usize = 16_384;

/// The running watches and the revision they have been told of.
pub(super) struct Watchers {
    inner: Mutex<Inner>,
}

struct Inner {
    revision: Revision,
    watchers: Vec<Watcher>,
}

struct Watcher {
    prefix: String,
    queue: mpsc::Sender<WatchItem>,
}

impl Watchers {
    pub(super) fn new(revision: Revision) -> Self {
        Self {
            inner: Mutex::new(Inner {
                revision,
                watchers: Vec::new(),
            }),
        }
    }

    /// The newest committed revision.
    pub(super) fn revision(&self) -> Revision {
        self.inner.lock().revision
    }

    /// Everything committed after the returned revision comes through the returned queue.
    pub(super) fn join(&self, prefix: &str) -> (mpsc::Receiver<WatchItem>, Revision) {
        let (queue, live) = mpsc::channel(QUEUE);
        let mut inner = self.inner.lock();
        inner.watchers.push(Watcher {
            prefix: prefix.to_owned(),
            queue,
        });
        (live, inner.revision)
    }

    /// Tells every watcher of a commit: its events, or that there were none for it.
    pub(super) fn publish(&self, events: Vec<Event>, revision: Revision) {
        let mut inner = self.inner.lock();
        if revision == inner.revision {
            return;
        }
        inner.revision = revision;
        inner.watchers.retain(|watcher| {
            let matching: Vec<Event> = events
                .iter()
                .filter(|event| {
                    let (Event::Put { kv, .. } | Event::Delete { previous: kv, .. }) = event;
                    kv.key.starts_with(&watcher.prefix)
                })
                .cloned()
                .collect();
            let item = if matching.is_empty() {
                WatchItem::Progress(revision)
            } else {
                WatchItem::Events(matching)
            };
            // A full queue ends the watch: the watcher starts anew, the writer never waits.
            watcher.queue.try_send(item).is_ok()
        });
    }
}

/// What was missed, then what comes.
pub(super) fn stream(missed: Vec<Event>, joined: Revision, live: mpsc::Receiver<WatchItem>) -> Watch {
    let first = if missed.is_empty() {
        WatchItem::Progress(joined)
    } else {
        WatchItem::Events(missed)
    };
    let live = stream::unfold(Some(live), |live| async {
        let mut live = live?;
        match live.recv().await {
            Some(item) => Some((Ok(item), Some(live))),
            None => Some((
                Err(StoreError::Unavailable("the watch fell too far behind".into())),
                None,
            )),
        }
    });
    Box::pin(stream::once(std::future::ready(Ok(first))).chain(live))
}
