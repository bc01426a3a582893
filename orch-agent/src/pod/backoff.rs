//! How long to wait before trying again.

use std::time::Duration;

use jiff::Timestamp;

/// Kubernetes' delay before a container's second restart, and before a second image pull.
const FIRST: Duration = Duration::from_secs(10);
/// The longest delay.
const LONGEST: Duration = Duration::from_secs(300);
/// A run this much longer than the last restart forgives what came before.
const FORGIVEN: Duration = Duration::from_secs(600);

/// Doubling delays: none, then 10 s, 20 s, … 300 s, and none again after ten quiet minutes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backoff {
    delay: Option<Duration>,
    since: Option<Timestamp>,
}

impl Backoff {
    /// The delay that applies to a failure at `failed`: the time still to wait and the full step, both from `now`.
    ///
    /// Each call is one retry: the next one waits twice as long.
    pub fn next(&mut self, failed: Timestamp, now: Timestamp) -> Wait {
        let quiet = self.since.is_some_and(|since| elapsed(since, failed) > FORGIVEN);
        let step = if quiet { None } else { self.delay };
        let left = step
            .map(|d| d.saturating_sub(elapsed(failed, now)))
            .unwrap_or_default();
        self.delay = Some(step.map_or(FIRST, |d| (d * 2).min(LONGEST)));
        self.since = now.checked_add(left).ok().or(Some(now));
        Wait {
            left,
            step: step.unwrap_or_default(),
        }
    }
}

/// A delay: what is left of it and how long it was meant to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// Time to wait from now.
    pub left: Duration,
    /// The whole step, for messages ("back-off 40s …").
    pub step: Duration,
}

/// Time from `a` to `b`, zero when `b` is earlier.
pub(super) fn elapsed(a: Timestamp, b: Timestamp) -> Duration {
    Duration::try_from(b.duration_since(a)).unwrap_or_default()
}

/// Kubernetes' way to print whole-second delays: `10s`, `1m20s`, `5m0s`.
#[must_use]
pub fn text(delay: Duration) -> String {
    let seconds = delay.as_secs();
    if seconds < 60 {
        format!("{seconds}s")
    } else {
        format!("{}m{}s", seconds / 60, seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    #[test]
    fn doubles_to_five_minutes_and_forgives_after_ten() {
        let mut backoff = Backoff::default();
        let mut clock = 0;
        let mut steps = vec![];
        for _ in 0..8 {
            let wait = backoff.next(at(clock), at(clock));
            assert_eq!(wait.left, wait.step);
            steps.push(wait.step.as_secs());
            clock += i64::try_from(wait.left.as_secs()).unwrap() + 1;
        }
        assert_eq!(steps, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(
            backoff.next(at(clock + 601), at(clock + 601)).left,
            Duration::ZERO
        );
        assert_eq!(
            backoff.next(at(clock + 602), at(clock + 602)).left,
            Duration::from_secs(10)
        );
    }

    #[test]
    fn time_since_the_failure_counts() {
        let mut backoff = Backoff::default();
        backoff.next(at(0), at(0));
        let wait = backoff.next(at(1), at(5));
        assert_eq!((wait.left.as_secs(), wait.step.as_secs()), (6, 10));
    }

    #[test]
    fn prints_as_go_does() {
        assert_eq!(
            ["10s", "1m20s", "5m0s"],
            [10, 80, 300].map(|s| text(Duration::from_secs(s)))
        );
    }
}
