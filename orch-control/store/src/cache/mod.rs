//! The watch cache: one store watch per prefix, every reader served from memory.

mod object;
mod state;
mod watcher;

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use object::{Extract, Fields, Object, with_revision};
use state::{Change, State};
pub use watcher::{CacheEvent, Events, From};

use crate::{ListOptions, Revision, Store, StoreError, WatchItem};

/// Why the cache cannot serve a reader.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The revision is older than the events the cache still has: list again.
    #[error("too old resource version: {asked} ({oldest})", asked = asked.0, oldest = oldest.0)]
    TooOld {
        /// The revision asked for.
        asked: Revision,
        /// The oldest that can be watched from.
        oldest: Revision,
    },
    /// The cache has not got that far in time.
    #[error("Too large resource version: {asked}, current: {current}", asked = asked.0, current = current.0)]
    Behind {
        /// The revision asked for.
        asked: Revision,
        /// Where the cache is.
        current: Revision,
    },
    /// The watcher did not read fast enough, and has been cut off.
    #[error("the watcher fell too far behind")]
    TooSlow,
}

/// All objects with a prefix, as of one revision, and the last changes that led there.
///
/// *Promises*: a list is the state at exactly the revision it returns; a watch from that revision yields every later
/// change once, in order, or ends with an error; after [`WatchCache::wait_for`] reads show that revision or a newer
/// one. An object's JSON is made once, whoever asks.
///
/// *Not promised*: the newest revision without `wait_for`; endless history (see [`CacheError::TooOld`]).
pub struct WatchCache {
    inner: Arc<Inner>,
    /// Ends the task that follows the store.
    _follow: DropGuard,
}

struct Inner {
    prefix: String,
    state: Mutex<State>,
    /// The revision up to which the cache is complete; 0 until it has its first list.
    progress: watch::Sender<Revision>,
}

/// The waits between attempts to follow a store that does not let itself be followed.
const FIRST_PATIENCE: Duration = Duration::from_millis(10);
const LAST_PATIENCE: Duration = Duration::from_secs(2);

impl WatchCache {
    /// Starts to follow `prefix`, which ends with a `/`, until the returned value is dropped.
    pub fn start(store: Arc<dyn Store>, prefix: &str, extract: Arc<Extract>) -> Arc<Self> {
        let inner = Arc::new(Inner {
            prefix: prefix.to_owned(),
            state: Mutex::new(State::default()),
            progress: watch::channel(Revision(0)).0,
        });
        let token = CancellationToken::new();
        let (task, stop) = (Arc::clone(&inner), token.clone());
        tokio::spawn(async move {
            stop.run_until_cancelled_owned(task.run(store.as_ref(), extract.as_ref()))
                .await;
        });
        Arc::new(Self {
            inner,
            _follow: token.drop_guard(),
        })
    }

    /// Waits for the first list.
    pub async fn ready(&self) {
        // The sender lives in self: it cannot be gone.
        let _ = self
            .inner
            .progress
            .subscribe()
            .wait_for(|revision| revision.0 > 0)
            .await;
    }

    /// How far the cache is.
    #[must_use]
    pub fn revision(&self) -> Revision {
        *self.inner.progress.borrow()
    }

    /// Waits until the cache shows `revision` or a newer one.
    ///
    /// # Errors
    /// `Behind` when it does not within `patience`.
    pub async fn wait_for(&self, revision: Revision, patience: Duration) -> Result<(), CacheError> {
        let mut progress = self.inner.progress.subscribe();
        let arrived = progress.wait_for(|known| *known >= revision && known.0 > 0);
        match tokio::time::timeout(patience, arrived).await {
            Ok(_) => Ok(()),
            Err(_) => Err(CacheError::Behind {
                asked: revision,
                current: self.revision(),
            }),
        }
    }

    /// The object with this key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.inner.state.lock().get(key)
    }

    /// Objects whose key starts with `prefix` and that pass `filter`, in key order, and the revision they show.
    pub fn list(
        &self,
        prefix: &str,
        mut filter: impl FnMut(&Object) -> bool,
    ) -> (Vec<Arc<Object>>, Revision) {
        let (mut objects, revision) = self.inner.state.lock().list(prefix);
        // Filtered outside of the lock: selectors may be slow.
        objects.retain(|object| filter(object));
        (objects, revision)
    }

    /// Changes to keys that start with `prefix`, from where the caller says.
    ///
    /// # Errors
    /// `TooOld` when the cache no longer has all changes since then; `Behind` when `from` lies in the future.
    pub fn watch(&self, from: From, prefix: &str) -> Result<Events, CacheError> {
        self.inner.state.lock().watch(from, prefix)
    }
}

impl Inner {
    async fn run(&self, store: &dyn Store, extract: &Extract) {
        let mut patience = FIRST_PATIENCE;
        loop {
            let before = *self.progress.borrow();
            if let Err(error) = self.follow(store, extract).await {
                tracing::warn!(prefix = self.prefix, %error, "the store watch broke, going on");
            }
            let got_somewhere = *self.progress.borrow() > before;
            patience = if got_somewhere {
                FIRST_PATIENCE
            } else {
                (patience * 2).min(LAST_PATIENCE)
            };
            tokio::time::sleep(patience).await;
        }
    }

    /// Goes on where the last watch broke, or with a full list where it cannot; returns when the watch breaks.
    async fn follow(&self, store: &dyn Store, extract: &Extract) -> Result<(), StoreError> {
        let known = *self.progress.borrow();
        let resumed = match known {
            Revision(0) => None,
            known => match store.watch(&self.prefix, known).await {
                Err(StoreError::Compacted { .. } | StoreError::Future { .. }) => None,
                other => Some(other?),
            },
        };
        let mut watch = match resumed {
            Some(watch) => watch,
            None => self.list(store, extract).await?,
        };
        while let Some(item) = watch.next().await {
            let revision = match item? {
                WatchItem::Progress(revision) => {
                    self.state.lock().progress(revision);
                    revision
                }
                WatchItem::Events(events) => {
                    let changes = events.iter().filter_map(|event| change(event, extract)).collect();
                    self.state.lock().apply(changes)
                }
            };
            self.progress.send_if_modified(|known| {
                let newer = revision > *known;
                *known = revision.max(*known);
                newer
            });
        }
        Ok(())
    }

    /// Reads everything and begins a watch there. Watchers of the cache are cut off if it had something before:
    /// what happened in between is not known.
    async fn list(&self, store: &dyn Store, extract: &Extract) -> Result<crate::Watch, StoreError> {
        let page = store.list(&self.prefix, ListOptions::default()).await?;
        let objects = page.items.iter().filter_map(|kv| parse(kv, extract)).collect();
        self.state.lock().replace(objects, page.revision);
        self.progress.send_replace(page.revision);
        store.watch(&self.prefix, page.revision).await
    }
}

fn change(event: &crate::Event, extract: &Extract) -> Option<Change> {
    match event {
        crate::Event::Put { kv, .. } => parse(kv, extract).map(Change::Put),
        crate::Event::Delete { previous, revision } => Some(Change::Delete {
            key: previous.key.clone(),
            revision: *revision,
        }),
    }
}

/// An unreadable object must not take its whole kind away: it is left out, and logged.
fn parse(kv: &crate::KeyValue, extract: &Extract) -> Option<Arc<Object>> {
    match Object::parse(kv, kv.mod_revision, extract) {
        Ok(object) => Some(Arc::new(object)),
        Err(error) => {
            tracing::error!(key = kv.key, %error, "a stored value is no object; it is not served");
            None
        }
    }
}
