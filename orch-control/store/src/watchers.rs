//! Who is told of commits: the live half of every watch, for both backends.

use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::{Event, Revision, StoreError, Watch, WatchItem};

/// Commits a watcher may be behind before it is cut off.
const QUEUE: usize = 16_384;

/// The running watches and the revision they have been told of.
pub(crate) struct Watchers {
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
    pub(crate) fn new(revision: Revision) -> Self {
        Self {
            inner: Mutex::new(Inner {
                revision,
                watchers: Vec::new(),
            }),
        }
    }

    /// The newest committed revision.
    pub(crate) fn revision(&self) -> Revision {
        self.inner.lock().revision
    }

    /// Everything committed after the returned revision comes through the returned queue.
    pub(crate) fn join(&self, prefix: &str) -> (mpsc::Receiver<WatchItem>, Revision) {
        let (queue, live) = mpsc::channel(QUEUE);
        let mut inner = self.inner.lock();
        inner.watchers.push(Watcher {
            prefix: prefix.to_owned(),
            queue,
        });
        (live, inner.revision)
    }

    /// Ends every watch: what happened since is not known.
    pub(crate) fn reset(&self, revision: Revision) {
        let mut inner = self.inner.lock();
        inner.watchers.clear();
        inner.revision = revision;
    }

    /// Tells every watcher of a commit: its events, or that there were none for it.
    pub(crate) fn publish(&self, events: Vec<Event>, revision: Revision) {
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

/// What was missed, then what comes; nothing at or before `after`, which the reader knows already.
pub(crate) fn stream(
    missed: Vec<Event>,
    joined: Revision,
    after: Revision,
    live: mpsc::Receiver<WatchItem>,
) -> Watch {
    let first = if missed.is_empty() {
        WatchItem::Progress(joined.max(after))
    } else {
        WatchItem::Events(missed)
    };
    let live = stream::unfold(Some(live), move |live| async move {
        let mut live = live?;
        loop {
            match live.recv().await {
                Some(item) => {
                    if let Some(item) = newer(item, after) {
                        return Some((Ok(item), Some(live)));
                    }
                }
                None => {
                    let error = StoreError::Unavailable("the watch fell too far behind".into());
                    return Some((Err(error), None));
                }
            }
        }
    });
    Box::pin(stream::once(std::future::ready(Ok(first))).chain(live))
}

fn newer(item: WatchItem, after: Revision) -> Option<WatchItem> {
    match item {
        WatchItem::Progress(revision) => (revision > after).then_some(item),
        WatchItem::Events(mut events) => {
            events.retain(|event| match event {
                Event::Put { kv, .. } => kv.mod_revision > after,
                Event::Delete { revision, .. } => *revision > after,
            });
            (!events.is_empty()).then_some(WatchItem::Events(events))
        }
    }
}
