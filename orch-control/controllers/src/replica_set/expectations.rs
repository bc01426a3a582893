//! [`Expectations`]: which of our own writes the watch has yet to show us.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::core::Key;

/// Writes that the watch has not shown by then are taken for lost, as in Kubernetes.
const LOST_AFTER: Duration = Duration::from_secs(300);

struct Expected {
    creations: usize,
    deletions: HashSet<String>,
    since: Instant,
}

/// See the module.
#[derive(Default)]
pub struct Expectations {
    keys: Mutex<HashMap<Key, Expected>>,
}

impl Expectations {
    /// `count` pods of `key` are about to be created.
    pub fn expect_creations(&self, key: &Key, count: usize) {
        self.set(key, count, HashSet::new());
    }

    /// The pods with these uids are about to be deleted.
    pub fn expect_deletions(&self, key: &Key, uids: impl Iterator<Item = String>) {
        self.set(key, 0, uids.collect());
    }

    fn set(&self, key: &Key, creations: usize, deletions: HashSet<String>) {
        self.keys.lock().insert(
            key.clone(),
            Expected {
                creations,
                deletions,
                since: Instant::now(),
            },
        );
    }

    /// The watch showed a new pod, or one of ours will not come.
    pub fn created(&self, key: &Key) {
        if let Some(expected) = self.keys.lock().get_mut(key) {
            expected.creations = expected.creations.saturating_sub(1);
        }
    }

    /// The watch showed that a pod is going, or it will not go.
    pub fn deleted(&self, key: &Key, uid: &str) {
        if let Some(expected) = self.keys.lock().get_mut(key) {
            expected.deletions.remove(uid);
        }
    }

    /// Whether everything expected has been seen.
    pub fn settled(&self, key: &Key) -> bool {
        let keys = self.keys.lock();
        keys.get(key)
            .is_none_or(|e| e.creations == 0 && e.deletions.is_empty() || e.since.elapsed() > LOST_AFTER)
    }

    /// Forgets a key.
    pub fn forget(&self, key: &Key) {
        self.keys.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_starts_before_the_last_writes_are_seen() {
        let (expectations, key) = (Expectations::default(), Key::new("ns", "rs"));
        assert!(expectations.settled(&key));
        expectations.expect_creations(&key, 2);
        expectations.created(&key);
        assert!(!expectations.settled(&key));
        expectations.created(&key);
        expectations.created(&key);
        assert!(expectations.settled(&key));
        expectations.expect_deletions(&key, ["a".to_owned()].into_iter());
        expectations.deleted(&key, "b");
        assert!(!expectations.settled(&key));
        expectations.deleted(&key, "a");
        assert!(expectations.settled(&key));
    }
}
