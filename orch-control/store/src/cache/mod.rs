//! The watch cache: one store watch per prefix, every reader served from memory.

mod object;
mod state;
mod watcher;

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::watch;

pub use object::{Extract, Fields, Object, with_revision};
use state::State;
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
    prefix: String,
    state: Mutex<State>,
    /// The revision up to which the cache is complete; 0 until it has its first list.
    progress: watch::Sender<Revision>,
}

impl WatchCache {
    /// Starts to follow `prefix`, which ends with a `/`. Runs until the returned `Arc`'s clones are gone.
    pub fn start(store: Arc<dyn Store>, prefix: &str, extract: Arc<Extract>) -> Arc<Self> {
        let cache = Arc::new(Self {
            prefix: prefix.to_owned(),
            state: Mutex::new(State::default()),
            progress: watch::channel(Revision(0)).0,
        });
        let weak = Arc::downgrade(&cache);
        tokio::spawn(async move {
            let mut patience = Duration::from_millis(10);
            while let Some(cache) = weak.upgrade() {
                match cache.follow(store.as_ref(), extract.as_ref()).await {
                    Ok(()) => patience = Duration::from_millis(10),
                    Err(error) => {
                        tracing::warn!(prefix = cache.prefix, %error, "the store watch broke, starting anew");
                        patience = (patience * 2).min(Duration::from_secs(2));
                    }
                }
                drop(cache);
                tokio::time::sleep(patience).await;
            }
        });
        cache
    }

    /// Lists, then follows until the watch breaks.
    async fn follow(&self, store: &dyn Store, extract: &Extract) -> Result<(), StoreError> {
        let page = store.list(&self.prefix, ListOptions::default()).await?;
        let mut objects = Vec::with_capacity(page.items.len());
        for kv in &page.items {
            objects.push(parse(kv, kv.mod_revision, extract)?);
        }
        self.state.lock().replace(objects, page.revision);
        self.progress.send_replace(page.revision);
        let mut watch = store.watch(&self.prefix, page.revision).await?;
        while let Some(item) = watch.next().await {
            let revision = match item? {
                WatchItem::Progress(revision) => {
                    self.state.lock().progress(revision);
                    revision
                }
                WatchItem::Events(events) => {
                    let mut parsed = Vec::with_capacity(events.len());
                    for event in &events {
                        parsed.push(match event {
                            crate::Event::Put { kv, .. } => (false, parse(kv, kv.mod_revision, extract)?),
                            crate::Event::Delete { previous, revision } => {
                                (true, parse(previous, *revision, extract)?)
                            }
                        });
                    }
                    self.state.lock().apply(parsed)
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

    /// Waits for the first list.
    pub async fn ready(&self) {
        // The sender lives in self: it cannot be gone.
        let _ = self
            .progress
            .subscribe()
            .wait_for(|revision| revision.0 > 0)
            .await;
    }

    /// How far the cache is.
    #[must_use]
    pub fn revision(&self) -> Revision {
        *self.progress.borrow()
    }

    /// Waits until the cache shows `revision` or a newer one.
    ///
    /// # Errors
    /// `Behind` when it does not within `patience`.
    pub async fn wait_for(&self, revision: Revision, patience: Duration) -> Result<(), CacheError> {
        let mut progress = self.progress.subscribe();
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
        self.state.lock().get(key)
    }

    /// Objects whose key starts with `prefix` and that pass `filter`, in key order, and the revision they show.
    pub fn list(
        &self,
        prefix: &str,
        mut filter: impl FnMut(&Object) -> bool,
    ) -> (Vec<Arc<Object>>, Revision) {
        let (mut objects, revision) = self.state.lock().list(prefix);
        // Filtered outside of the lock: selectors may be slow.
        objects.retain(|object| filter(object));
        (objects, revision)
    }

    /// Changes to keys that start with `prefix`, from where the caller says.
    ///
    /// # Errors
    /// `TooOld` when the cache no longer has all changes since then; `Behind` when `from` lies in the future.
    pub fn watch(&self, from: From, prefix: &str) -> Result<Events, CacheError> {
        self.state.lock().watch(from, prefix)
    }
}

fn parse(kv: &crate::KeyValue, revision: Revision, extract: &Extract) -> Result<Arc<Object>, StoreError> {
    Object::parse(kv, revision, extract)
        .map(Arc::new)
        .map_err(|error| StoreError::Corrupt(format!("the value of {} is no object: {error}", kv.key)))
}
