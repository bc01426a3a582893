//! The pods that wait: ready to be tried, held back for a while, or parked until the cluster changes.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::pod::PodInfo;

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// A parked pod is tried again after this long even if nothing that helps was seen.
const PARKED_AT_MOST: Duration = Duration::from_secs(300);

/// Highest priority first, then the oldest.
type Rank = (Reverse<i32>, i64, u64);

#[derive(Debug, PartialEq)]
enum Place {
    Active,
    Held(Instant),
    Parked(Instant),
    InFlight,
}

#[derive(Debug)]
struct Waiting {
    pod: Arc<PodInfo>,
    rank: Rank,
    attempts: u32,
    tried: Option<Instant>,
    told: Option<String>,
    place: Place,
}

impl Waiting {
    fn backoff_ends(&self) -> Option<Instant> {
        let exponent = self.attempts.checked_sub(1)?.min(8);
        self.tried
            .map(|t| t + (FIRST_BACKOFF * 2u32.pow(exponent)).min(LONGEST_BACKOFF))
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: HashMap<String, Waiting>,
    active: BTreeSet<(Rank, String)>,
    sequence: u64,
}

impl Queue {
    /// Adds a pod, or takes in its new state; one that changed in a way that matters is tried again.
    pub fn set(&mut self, pod: Arc<PodInfo>, now: Instant) {
        let uid = pod.uid.clone();
        match self.waiting.get_mut(&uid) {
            Some(waiting) if *waiting.pod == *pod => {}
            Some(waiting) => {
                waiting.pod = pod;
                self.activate(&uid, now);
            }
            None => {
                self.sequence += 1;
                let rank = (Reverse(pod.priority), pod.created, self.sequence);
                self.active.insert((rank, uid.clone()));
                let waiting = Waiting {
                    pod,
                    rank,
                    attempts: 0,
                    tried: None,
                    told: None,
                    place: Place::Active,
                };
                self.waiting.insert(uid, waiting);
            }
        }
    }

    /// Forgets a pod.
    pub fn remove(&mut self, uid: &str) {
        if let Some(waiting) = self.waiting.remove(uid) {
            self.active.remove(&(waiting.rank, uid.to_owned()));
        }
    }

    /// The uids of all pods here.
    pub fn uids(&self) -> impl Iterator<Item = &String> {
        self.waiting.keys()
    }

    /// Whether [`Queue::pop`] would give a pod.
    pub fn has_work(&self) -> bool {
        !self.active.is_empty()
    }

    /// The next pod to try; it counts as in flight until it is bound (removed), parked or held back.
    pub fn pop(&mut self, now: Instant) -> Option<Arc<PodInfo>> {
        let (_, uid) = self.active.pop_first()?;
        let waiting = self.waiting.get_mut(&uid)?;
        waiting.place = Place::InFlight;
        waiting.attempts += 1;
        waiting.tried = Some(now);
        Some(waiting.pod.clone())
    }

    /// No node can take the pod: it waits for a change. Tells whether `message` is news to its owner.
    pub fn park(&mut self, uid: &str, message: &str, now: Instant) -> bool {
        let Some(waiting) = self.waiting.get_mut(uid) else {
            return false;
        };
        waiting.place = Place::Parked(now + PARKED_AT_MOST);
        waiting.told.replace(message.to_owned()).as_deref() != Some(message)
    }

    /// Binding failed: the pod is tried again after its back-off.
    pub fn hold(&mut self, uid: &str, now: Instant) {
        if let Some(waiting) = self.waiting.get_mut(uid) {
            waiting.told = None;
            waiting.place = Place::Held(waiting.backoff_ends().unwrap_or(now));
        }
    }

    /// Something changed that may help any parked pod.
    pub fn wake(&mut self, now: Instant) {
        let parked = self
            .waiting
            .iter()
            .filter(|(_, w)| matches!(w.place, Place::Parked(_)));
        for uid in parked.map(|(uid, _)| uid.clone()).collect::<Vec<_>>() {
            self.activate(&uid, now);
        }
    }

    fn activate(&mut self, uid: &str, now: Instant) {
        let Some(waiting) = self.waiting.get_mut(uid) else {
            return;
        };
        if waiting.place == Place::InFlight || waiting.place == Place::Active {
            return;
        }
        match waiting.backoff_ends().filter(|end| *end > now) {
            Some(end) => waiting.place = Place::Held(end),
            None => {
                waiting.place = Place::Active;
                self.active.insert((waiting.rank, uid.to_owned()));
            }
        }
    }

    /// Lets the pods go whose time has come; returns when the next one's will.
    pub fn tick(&mut self, now: Instant) -> Option<Instant> {
        let (mut due, mut next) = (Vec::new(), None::<Instant>);
        for (uid, waiting) in &self.waiting {
            if let Place::Held(at) | Place::Parked(at) = waiting.place {
                if at <= now {
                    due.push(uid.clone());
                } else {
                    next = Some(next.map_or(at, |n| n.min(at)));
                }
            }
        }
        for uid in due {
            self.activate(&uid, now);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    fn pod(name: &str, priority: i32) -> Arc<PodInfo> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": name, "uid": name }, "spec": { "containers": [], "priority": priority },
        }))
        .unwrap();
        Arc::new(PodInfo::new(&pod))
    }

    #[test]
    fn priority_goes_before_age() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for (name, priority) in [("old", 0), ("young", 0), ("urgent", 5)] {
            queue.set(pod(name, priority), now);
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop(now))
            .map(|p| p.name.clone())
            .collect();
        assert_eq!(order, ["urgent", "old", "young"]);
    }

    #[test]
    fn a_parked_pod_waits_for_a_change_and_for_its_back_off() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.set(pod("p", 0), now);
        queue.pop(now).unwrap();
        assert!(queue.park("p", "why", now));
        assert_eq!(queue.tick(now), Some(now + PARKED_AT_MOST));
        queue.wake(now);
        assert!(!queue.has_work());
        let later = now + FIRST_BACKOFF;
        assert_eq!(queue.tick(now), Some(later));
        queue.tick(later);
        queue.pop(later).unwrap();
        assert!(!queue.park("p", "why", later), "the same message is no news");
        queue.wake(later + Duration::from_secs(2));
        assert!(queue.has_work());
    }

    #[test]
    fn a_status_update_does_not_shorten_the_wait() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.set(pod("p", 0), now);
        queue.pop(now).unwrap();
        queue.park("p", "why", now);
        queue.set(pod("p", 0), now + Duration::from_secs(20));
        assert!(!queue.has_work());
        queue.set(pod("p", 1), now + Duration::from_secs(20));
        assert!(queue.has_work());
    }
}
