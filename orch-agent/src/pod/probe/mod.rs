//! Probes: one task per probe of a running container, which tells the pod's actor only of verdicts that change.

mod check;
mod grpc;
#[cfg(test)]
mod tests;

use std::time::Duration;

use k8s_openapi::api::core::v1::Probe;
use tokio::{sync::mpsc, time::Instant};

use super::{
    context::Target,
    event::{Event, ProbeKind},
};
pub use check::{Outcome, check};

/// How soon a readiness or startup probe is tried again before its first success. A container that needs 200 ms
/// to listen should not wait for the rest of a period of seconds.
const EAGER: Duration = Duration::from_millis(50);

/// Numbers of a probe, with the API's defaults.
#[derive(Debug, Clone, Copy)]
struct Numbers {
    delay: Duration,
    period: Duration,
    successes: u32,
    failures: u32,
}

impl Numbers {
    fn of(probe: &Probe) -> Self {
        let seconds = |n: Option<i32>, default: u64| {
            Duration::from_secs(n.and_then(|n| u64::try_from(n).ok()).unwrap_or(default))
        };
        let count = |n: Option<i32>, default| n.and_then(|n| u32::try_from(n).ok()).unwrap_or(default).max(1);
        Self {
            delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
            successes: count(probe.success_threshold, 1),
            failures: count(probe.failure_threshold, 3),
        }
    }
}

/// Probes until cancelled; startup and liveness probes end with their last verdict.
pub async fn run(target: Target, kind: ProbeKind, probe: Probe, events: mpsc::UnboundedSender<Event>) {
    let numbers = Numbers::of(&probe);
    tokio::time::sleep(numbers.delay).await;
    let tell = |passed| {
        let id = target.id.clone();
        let _ = events.send(Event::Probed {
            slot: target.slot,
            id,
            kind,
            passed,
        });
    };
    let (mut passes, mut failures) = (0u32, 0u32);
    let mut verdict: Option<bool> = (kind == ProbeKind::Liveness).then_some(true);
    let mut due = Instant::now();
    let mut eager = EAGER;
    loop {
        let counted = Instant::now() >= due;
        let outcome = check(&target, &probe).await;
        // Between two periods only the first success counts; failures there are no more than impatience.
        if counted {
            due += numbers.period;
        }
        match outcome {
            Outcome::Pass => {
                passes += 1;
                failures = 0;
                if passes >= numbers.successes && verdict != Some(true) {
                    verdict = Some(true);
                    tell(true);
                    if kind == ProbeKind::Startup {
                        return;
                    }
                }
            }
            Outcome::Fail(message) if counted => {
                passes = 0;
                failures += 1;
                let text = format!("{} probe failed: {message}", kind.title());
                target
                    .context
                    .warn(&target.pod, Some(target.slot), "Unhealthy", text);
                if failures >= numbers.failures && verdict != Some(false) {
                    verdict = Some(false);
                    tell(false);
                    if kind != ProbeKind::Readiness {
                        return;
                    }
                }
            }
            Outcome::Fail(_) => {}
        }
        let impatient = verdict != Some(true) && kind != ProbeKind::Liveness && numbers.successes == 1;
        let soon = Instant::now() + eager;
        if impatient && soon < due {
            eager = (eager * 3 / 2).min(numbers.period);
            tokio::time::sleep_until(soon).await;
        } else {
            tokio::time::sleep_until(due).await;
            due = due.max(Instant::now());
        }
    }
}
