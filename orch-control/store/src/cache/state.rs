//! What the cache holds under its lock: the objects, the last changes, the watchers.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use tokio::sync::mpsc;

use super::{CacheError, CacheEvent, Events, From, Object};
use crate::{Revision, prefix_range};

/// How many changes are kept for watchers that come back.
const HISTORY: usize = 4096;
/// How many bytes of objects those changes may hold on to.
const HISTORY_BYTES: usize = 8 << 20;
/// How far a watcher may be behind.
const QUEUE: usize = 4096;

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

    /// Takes a full list. The difference to what was known becomes events, so that running watchers lose nothing;
    /// what happened in between is not known, so no new watch may begin before the list.
    pub(super) fn replace(&mut self, objects: Vec<Arc<Object>>, revision: Revision) {
        if self.revision.0 == 0 {
            self.objects = objects
                .into_iter()
                .map(|object| (object.key.clone(), object))
                .collect();
            self.revision = revision;
            self.oldest = revision;
            return;
        }
        let mut gone: BTreeMap<String, Arc<Object>> = self.objects.clone();
        let mut changes: Vec<(bool, Arc<Object>)> = Vec::new();
        for object in objects {
            if gone
                .remove(&object.key)
                .is_none_or(|known| known.revision < object.revision)
            {
                changes.push((false, object));
            }
        }
        changes.sort_by_key(|(_, object)| object.revision);
        for object in gone.into_values() {
            // When it went is not known; that it is gone at the list's revision is.
            changes.push((true, Arc::new(deleted_at(&object, revision))));
        }
        self.apply(changes);
        self.revision = revision;
        self.oldest = revision;
        self.history.clear();
        self.history_bytes = 0;
    }

    /// Takes changes (deleted or not, the object) in revision order; returns the last one's revision.
    pub(super) fn apply(&mut self, changes: Vec<(bool, Arc<Object>)>) -> Revision {
        for (is_delete, object) in changes {
            let previous = if is_delete {
                self.objects.remove(&object.key)
            } else {
                self.objects.insert(object.key.clone(), Arc::clone(&object))
            };
            self.revision = self.revision.max(object.revision);
            let event = match (is_delete, previous) {
                (true, None) => continue,
                (true, Some(previous)) => CacheEvent::Deleted { object, previous },
                (false, Some(previous)) => CacheEvent::Modified { object, previous },
                (false, None) => CacheEvent::Added { object },
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
        self.watchers.retain(|watcher| {
            // A full or closed queue ends the watch; the cache never waits for a reader.
            !event.object().key.starts_with(&watcher.prefix) || watcher.queue.try_send(event.clone()).is_ok()
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
            queue,
        });
        Ok(Events::new(first, after, live))
    }
}

fn deleted_at(object: &Object, revision: Revision) -> Object {
    // The bytes carry a resourceVersion already: the new one takes its place.
    let old = format!("\"resourceVersion\":\"{}\"", object.revision.0);
    let new = format!("\"resourceVersion\":\"{}\"", revision.0);
    let json = String::from_utf8_lossy(&object.json).replacen(&old, &new, 1);
    Object {
        key: object.key.clone(),
        namespace: object.namespace.clone(),
        name: object.name.clone(),
        labels: object.labels.clone(),
        fields: object.fields.clone(),
        revision,
        json: json.into_bytes().into(),
    }
}
