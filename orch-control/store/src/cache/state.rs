//! What the cache holds under its lock: the objects, the last changes, the watchers.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use tokio::sync::mpsc;

use super::{CacheError, CacheEvent, Events, From, Object};
use crate::{Revision, prefix_range};

/// How many changes are kept for watchers that come back.
const HISTORY: usize = 1024;
/// How many bytes of objects those changes may hold on to.
const HISTORY_BYTES: usize = 2 << 20;
/// How far a watcher may be behind.
const QUEUE: usize = 4096;

/// A change as the store tells it.
pub(super) enum Change {
    Put(Arc<Object>),
    Delete { key: String, revision: Revision },
}

#[derive(Default)]
pub(super) struct State {
    objects: BTreeMap<String, Arc<Object>>,
    revision: Revision,
    history: VecDeque<CacheEvent>,
    history_bytes: usize,
    /// Watches can begin at this revision or later.
    oldest: Revision,
    watchers: Vec<Watcher>,
}

struct Watcher {
    prefix: String,
    /// Events up to this revision are known to the watcher.
    after: Revision,
    queue: mpsc::Sender<CacheEvent>,
}

impl State {
    pub(super) fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.objects.get(key).cloned()
    }

    pub(super) fn list(&self, prefix: &str) -> (Vec<Arc<Object>>, Revision) {
        let objects = self
            .objects
            .range(prefix_range(prefix))
            .map(|(_, object)| Arc::clone(object))
            .collect();
        (objects, self.revision)
    }

    /// Takes a full list. What happened since the last one is not known: no watch may go on or begin before it.
    pub(super) fn replace(&mut self, objects: Vec<Arc<Object>>, revision: Revision) {
        self.objects = objects
            .into_iter()
            .map(|object| (object.key.clone(), object))
            .collect();
        self.revision = revision;
        self.oldest = revision;
        self.history.clear();
        self.history_bytes = 0;
        self.watchers.clear();
    }

    /// Takes changes in revision order; returns the last one's revision.
    pub(super) fn apply(&mut self, changes: Vec<Change>) -> Revision {
        for change in changes {
            let event = match change {
                Change::Put(object) => {
                    self.revision = self.revision.max(object.revision);
                    match self.objects.insert(object.key.clone(), Arc::clone(&object)) {
                        Some(previous) => CacheEvent::Modified { object, previous },
                        None => CacheEvent::Added { object },
                    }
                }
                Change::Delete { key, revision } => {
                    self.revision = self.revision.max(revision);
                    let Some(previous) = self.objects.remove(&key) else {
                        continue;
                    };
                    CacheEvent::Deleted {
                        object: Arc::new(previous.at(revision)),
                        previous,
                    }
                }
            };
            self.tell(event);
        }
        self.revision
    }

    /// Nothing has changed up to `revision`.
    pub(super) fn progress(&mut self, revision: Revision) {
        self.revision = self.revision.max(revision);
    }

    fn tell(&mut self, event: CacheEvent) {
        let object = event.object();
        self.watchers.retain(|watcher| {
            let concerns = object.revision > watcher.after && object.key.starts_with(&watcher.prefix);
            // A full or closed queue ends the watch; the cache never waits for a reader.
            !concerns || watcher.queue.try_send(event.clone()).is_ok()
        });
        self.history_bytes += event.object().json.len();
        self.history.push_back(event);
        while self.history.len() > HISTORY || self.history_bytes > HISTORY_BYTES {
            let Some(dropped) = self.history.pop_front() else {
                break;
            };
            self.history_bytes -= dropped.object().json.len();
            self.oldest = dropped.object().revision;
        }
    }

    pub(super) fn watch(&mut self, from: From, prefix: &str) -> Result<Events, CacheError> {
        let mut first = Vec::new();
        let after = match from {
            From::Now => self.revision,
            From::State => {
                let (objects, _) = self.list(prefix);
                first.extend(objects.into_iter().map(|object| CacheEvent::Added { object }));
                self.revision
            }
            From::After(after) if after < self.oldest => {
                return Err(CacheError::TooOld {
                    asked: after,
                    oldest: self.oldest,
                });
            }
            From::After(after) => {
                let missed = self.history.iter().filter(|event| {
                    event.object().revision > after && event.object().key.starts_with(prefix)
                });
                first.extend(missed.cloned());
                after.max(self.revision)
            }
        };
        let (queue, live) = mpsc::channel(QUEUE);
        self.watchers.retain(|watcher| !watcher.queue.is_closed());
        self.watchers.push(Watcher {
            prefix: prefix.to_owned(),
            after,
            queue,
        });
        Ok(Events::new(first, after, live))
    }
}
