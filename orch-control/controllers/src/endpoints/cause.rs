//! [`Causes`]: when the change happened that endpoints are now written for.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::jiff::Timestamp;
use orch_shared::pods::condition;
use parking_lot::Mutex;

use crate::core::Key;

/// How far a service's changes have been seen: the newest one's time, and how many have just that time, since
/// conditions are timed in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    newest: Timestamp,
    count: usize,
}

/// See the module.
#[derive(Default)]
pub struct Causes(Mutex<HashMap<Key, Seen>>);

/// The service's making, and each pod's becoming ready or unready.
fn times(service: &Service, pods: &[Arc<Pod>]) -> Vec<Timestamp> {
    let made = service.metadata.creation_timestamp.as_ref().map(|at| at.0);
    let pods = pods.iter().filter_map(|pod| {
        condition(pod, "Ready")?
            .last_transition_time
            .as_ref()
            .map(|at| at.0)
    });
    made.into_iter().chain(pods).collect()
}

impl Causes {
    /// The oldest change that has not been written yet, if any, and what to tell [`Self::written`].
    pub fn of(&self, key: &Key, service: &Service, pods: &[Arc<Pod>]) -> (Option<Timestamp>, Option<Seen>) {
        let times = times(service, pods);
        let before = self.0.lock().get(key).copied();
        let Some(newest) = times.iter().max().copied() else {
            return (None, None);
        };
        let at = |time: Timestamp| times.iter().filter(|t| **t == time).count();
        let is_new = |time: &&Timestamp| match before {
            None => true,
            Some(seen) => **time > seen.newest || **time == seen.newest && at(seen.newest) > seen.count,
        };
        let count = at(newest);
        (
            times.iter().filter(is_new).min().copied(),
            Some(Seen { newest, count }),
        )
    }

    /// All that was seen is written.
    pub fn written(&self, key: &Key, seen: Option<Seen>) {
        if let Some(seen) = seen {
            self.0.lock().insert(key.clone(), seen);
        }
    }

    /// Forgets a service.
    pub fn forget(&self, key: &Key) {
        self.0.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_oldest_unwritten_change_is_the_cause() {
        let service: Service =
            serde_json::from_value(json!({ "metadata": { "creationTimestamp": "2026-01-01T00:00:00Z" } }))
                .unwrap();
        let pod = |second: u32| -> Arc<Pod> {
            let at = format!("2026-01-01T00:00:{second:02}Z");
            let ready = json!({ "type": "Ready", "status": "True", "lastTransitionTime": at });
            serde_json::from_value(json!({ "status": { "conditions": [ready] } })).unwrap()
        };
        let (causes, key) = (Causes::default(), Key::new("ns", "s"));
        let ask = |pods: &[Arc<Pod>], write: bool| {
            let (cause, seen) = causes.of(&key, &service, pods);
            if write {
                causes.written(&key, seen);
            }
            cause.map(|at| at.as_second() % 60)
        };
        assert_eq!(ask(&[], true), Some(0));
        assert_eq!(ask(&[], true), None);
        // What could not be written is still to be told.
        assert_eq!(ask(&[pod(5), pod(3)], false), Some(3));
        assert_eq!(ask(&[pod(5), pod(3)], true), Some(3));
        assert_eq!(ask(&[pod(5), pod(3)], true), None);
        assert_eq!(ask(&[pod(5), pod(3), pod(5)], true), Some(5));
        // A pod less is no cause that anybody has the time of.
        assert_eq!(ask(&[pod(3)], true), None);
    }
}
