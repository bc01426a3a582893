//! [`Causes`]: when the change happened that endpoints are now written for.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use orch_shared::pods::condition;
use parking_lot::Mutex;

use crate::core::Key;

/// The changes of a service that have been seen: when (in seconds, as conditions are timed) it was made and each pod
/// became ready or unready. Nodes' clocks differ, so the newest of all would not do; there may be many pods, so they
/// are known by a hash of their uid.
pub type Seen = HashMap<u64, i64>;

/// See the module.
#[derive(Default)]
pub struct Causes(Mutex<HashMap<Key, Seen>>);

fn times<'a>(service: &Service, pods: &'a [Arc<Pod>]) -> impl Iterator<Item = (u64, Timestamp)> + 'a {
    let name = |uid: Option<String>| {
        let mut hasher = DefaultHasher::new();
        uid.hash(&mut hasher);
        hasher.finish()
    };
    let made = service.metadata.creation_timestamp.as_ref();
    let made = made.map(|at| (name(service.uid()), at.0));
    let pods = pods.iter().filter_map(move |pod| {
        let at = condition(pod, "Ready")?.last_transition_time.as_ref()?;
        Some((name(pod.uid()), at.0))
    });
    made.into_iter().chain(pods)
}

impl Causes {
    /// The oldest change that has not been written yet, if any, and what to tell [`Self::written`].
    pub fn of(&self, key: &Key, service: &Service, pods: &[Arc<Pod>]) -> (Option<Timestamp>, Seen) {
        let all = self.0.lock();
        let before = all.get(key);
        let is_new = |(who, at): &(u64, Timestamp)| {
            let before = before.and_then(|seen| seen.get(who));
            before.is_none_or(|before| at.as_second() > *before)
        };
        let cause = times(service, pods).filter(is_new).map(|(_, at)| at).min();
        let seen = times(service, pods).map(|(who, at)| (who, at.as_second()));
        (cause, seen.collect())
    }

    /// All that was seen is written.
    pub fn written(&self, key: &Key, seen: Seen) {
        self.0.lock().insert(key.clone(), seen);
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
        let pod = |uid: &str, second: u32| -> Arc<Pod> {
            let at = format!("2026-01-01T00:00:{second:02}Z");
            let ready = json!({ "type": "Ready", "status": "True", "lastTransitionTime": at });
            let pod = json!({ "metadata": { "uid": uid }, "status": { "conditions": [ready] } });
            serde_json::from_value(pod).unwrap()
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
        assert_eq!(ask(&[pod("a", 5), pod("b", 3)], false), Some(3));
        assert_eq!(ask(&[pod("a", 5), pod("b", 3)], true), Some(3));
        assert_eq!(ask(&[pod("a", 5), pod("b", 3)], true), None);
        // Another's clock may be behind.
        assert_eq!(ask(&[pod("a", 5), pod("b", 3), pod("c", 1)], true), Some(1));
        assert_eq!(ask(&[pod("a", 5), pod("b", 4), pod("c", 1)], true), Some(4));
        // A pod less is no cause that anybody has the time of.
        assert_eq!(ask(&[pod("a", 5)], true), None);
    }
}
