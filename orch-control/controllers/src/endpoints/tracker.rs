//! [`Tracker`]: which of our writes of slices the watch has yet to show.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use parking_lot::Mutex;

use crate::core::Key;

/// A write that the watch has not shown by then was overtaken by another that it did show, or is lost.
const LOST_AFTER: Duration = Duration::from_secs(10);

/// By uid: the resource version that was written, or `None` for a deletion, and when.
type Writes = HashMap<String, (Option<u64>, Instant)>;

/// See the module.
#[derive(Default)]
pub struct Tracker {
    services: Mutex<HashMap<Key, Writes>>,
    seen: Mutex<HashMap<String, u64>>,
}

fn version(slice: &EndpointSlice) -> u64 {
    slice
        .resource_version()
        .and_then(|v| v.parse().ok())
        .unwrap_or(u64::MAX)
}

impl Tracker {
    /// A slice was created or updated.
    pub fn wrote(&self, key: &Key, slice: &EndpointSlice) {
        let (uid, version) = (slice.uid().unwrap_or_default(), version(slice));
        // The watch may be faster than the answer.
        if self.seen.lock().get(&uid).is_some_and(|seen| *seen >= version) {
            return;
        }
        self.services
            .lock()
            .entry(key.clone())
            .or_default()
            .insert(uid, (Some(version), Instant::now()));
    }

    /// A slice was deleted.
    pub fn deleted(&self, key: &Key, slice: &EndpointSlice) {
        let uid = slice.uid().unwrap_or_default();
        if self.seen.lock().contains_key(&uid) {
            self.services
                .lock()
                .entry(key.clone())
                .or_default()
                .insert(uid, (None, Instant::now()));
        }
    }

    /// The watch showed this state of a slice, or (`gone`) its end.
    pub fn seen(&self, key: &Key, slice: &EndpointSlice, gone: bool) {
        let (uid, version) = (slice.uid().unwrap_or_default(), version(slice));
        if gone {
            self.seen.lock().remove(&uid);
        } else {
            self.seen.lock().insert(uid.clone(), version);
        }
        let mut services = self.services.lock();
        if let Some(writes) = services.get_mut(key) {
            if gone
                || writes
                    .get(&uid)
                    .is_some_and(|(wrote, _)| wrote.is_some_and(|w| version >= w))
            {
                writes.remove(&uid);
            }
            if writes.is_empty() {
                services.remove(key);
            }
        }
    }

    /// Whether the watch has shown all writes for a service.
    pub fn is_fresh(&self, key: &Key) -> bool {
        let services = self.services.lock();
        services
            .get(key)
            .is_none_or(|writes| writes.values().all(|(_, at)| at.elapsed() > LOST_AFTER))
    }

    /// Forgets a service.
    pub fn forget(&self, key: &Key) {
        self.services.lock().remove(key);
    }
}
