//! [`Queue`]: keys that want attention, each at most once, and never in two hands at a time.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt::Display;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Next, ReconcileError};

/// The wait after a key's first failure; it doubles with each further one.
const FIRST_BACKOFF: Duration = Duration::from_millis(5);
/// The longest wait.
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

struct State<T> {
    ready: VecDeque<T>,
    wanted: HashSet<T>,
    in_hand: HashSet<T>,
    failures: HashMap<T, u32>,
    later: BTreeSet<(Instant, u64)>,
    later_keys: HashMap<u64, T>,
    due: HashMap<T, (Instant, u64)>,
    sequence: u64,
}

/// See the module.
pub struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Notify,
}

impl<T: Clone + Eq + Hash> Default for Queue<T> {
    fn default() -> Self {
        let state = State {
            ready: VecDeque::new(),
            wanted: HashSet::new(),
            in_hand: HashSet::new(),
            failures: HashMap::new(),
            later: BTreeSet::new(),
            later_keys: HashMap::new(),
            due: HashMap::new(),
            sequence: 0,
        };
        Self {
            state: Mutex::new(state),
            changed: Notify::new(),
        }
    }
}

impl<T: Clone + Eq + Hash> State<T> {
    /// Tells whether somebody has to be woken.
    fn add(&mut self, key: T) -> bool {
        if !self.wanted.insert(key.clone()) || self.in_hand.contains(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    fn promote(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.later.first().filter(|(at, _)| *at <= now) {
            self.later.remove(&(at, id));
            if let Some(key) = self.later_keys.remove(&id) {
                self.due.remove(&key);
                self.add(key);
            }
        }
    }
}

impl<T: Clone + Eq + Hash> Queue<T> {
    /// Wants `key` seen to now.
    pub fn add(&self, key: T) {
        if self.state.lock().add(key) {
            self.changed.notify_one();
        }
    }

    /// Wants `key` seen to after `delay` at the latest.
    pub fn add_after(&self, key: T, delay: Duration) {
        let mut state = self.state.lock();
        let at = Instant::now() + delay;
        match state.due.get(&key).copied() {
            Some((earlier, _)) if earlier <= at => return,
            Some((later, id)) => {
                state.later.remove(&(later, id));
                state.later_keys.remove(&id);
            }
            None => {}
        }
        state.sequence += 1;
        let id = state.sequence;
        state.later.insert((at, id));
        state.later_keys.insert(id, key.clone());
        state.due.insert(key, (at, id));
        drop(state);
        self.changed.notify_one();
    }

    async fn take(&self) -> T {
        loop {
            let next = {
                let mut state = self.state.lock();
                state.promote(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.wanted.remove(&key);
                    state.in_hand.insert(key.clone());
                    // Others may find more to do; one notification can stand for several keys.
                    if !state.ready.is_empty() {
                        self.changed.notify_one();
                    }
                    return key;
                }
                state.later.first().map(|(at, _)| *at)
            };
            match next {
                Some(at) => drop(tokio::time::timeout_at(at.into(), self.changed.notified()).await),
                None => self.changed.notified().await,
            }
        }
    }

    fn done(&self, key: T, failed: bool) -> Option<Duration> {
        let mut state = self.state.lock();
        state.in_hand.remove(&key);
        let wait = if failed {
            let failures = state.failures.entry(key.clone()).or_default();
            *failures += 1;
            Some(
                FIRST_BACKOFF
                    .saturating_mul(2u32.saturating_pow(*failures - 1))
                    .min(LONGEST_BACKOFF),
            )
        } else {
            state.failures.remove(&key);
            None
        };
        if state.wanted.contains(&key) {
            state.ready.push_back(key);
            self.changed.notify_one();
        }
        wait
    }
}

/// Sees to a queue's keys with `workers` tasks until `token` is cancelled. A failure is logged as `name`'s and
/// tried again with back-off; a success may say when to come back.
pub fn drive<T, F, R>(
    name: &'static str,
    queue: Arc<Queue<T>>,
    workers: usize,
    token: CancellationToken,
    reconcile: F,
) where
    T: Clone + Eq + Hash + Display + Send + Sync + 'static,
    F: Fn(T) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<Next, ReconcileError>> + Send,
{
    for _ in 0..workers {
        let (queue, token, reconcile) = (queue.clone(), token.clone(), reconcile.clone());
        tokio::spawn(async move {
            while let Some(key) = token.run_until_cancelled(queue.take()).await {
                let result = reconcile(key.clone()).await;
                let wait = queue.done(key.clone(), result.is_err());
                match (result, wait) {
                    (Ok(Some(delay)), _) => queue.add_after(key, delay),
                    (Ok(None), _) => {}
                    (Err(error), wait) => {
                        let wait = wait.unwrap_or(FIRST_BACKOFF);
                        // Conflicts and stale caches are how optimistic writers meet; only what lasts is news.
                        if wait < Duration::from_millis(500) {
                            debug!(controller = name, %key, %error, "trying again");
                        } else {
                            warn!(controller = name, %key, %error, "trying again in {wait:?}");
                        }
                        queue.add_after(key, wait);
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_is_never_in_two_hands_and_never_lost() {
        let queue = Queue::default();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.take().await, "a");
        queue.add("a");
        assert!(futures::poll!(std::pin::pin!(queue.take())).is_pending());
        queue.done("a", false);
        assert_eq!(queue.take().await, "a");
    }

    #[tokio::test]
    async fn the_earlier_of_two_delays_counts() {
        let queue = Queue::default();
        queue.add_after("a", Duration::from_secs(3600));
        queue.add_after("a", Duration::ZERO);
        assert_eq!(queue.take().await, "a");
        queue.done("a", false);
        assert!(futures::poll!(std::pin::pin!(queue.take())).is_pending());
    }

    #[test]
    fn failures_double_the_wait_and_a_success_ends_it() {
        let queue = Queue::default();
        assert_eq!(queue.done("a", true), Some(FIRST_BACKOFF));
        assert_eq!(queue.done("a", true), Some(FIRST_BACKOFF * 2));
        assert_eq!(queue.done("a", false), None);
        assert_eq!(queue.done("a", true), Some(FIRST_BACKOFF));
    }
}
