//! A pod's decisions: a pure function from state and event to state and operations.
//!
//! [`step`] first writes down what the event says, then asks what is to be done now; the second part looks only at
//! the state, so that a lost or repeated event is harmless.

mod adopt;
mod run;
mod stop;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::{
    event::{Event, Note, Op, Timer},
    state::{Cause, Core, Phase, Role, Sandbox, State, Verdict},
};
pub use adopt::adopt;

/// How often mounted ConfigMaps, Secrets and tokens are read again.
const VOLUME_PERIOD: Duration = Duration::from_secs(60);

/// What `event` makes of `state`, and what is to be done about it at `now`.
#[must_use]
pub fn step(state: State, now: Timestamp, event: Event) -> (State, Vec<Op>) {
    let mut ops = Vec::new();
    let state = match state {
        State::Sync(core) => sync(core, now, event, &mut ops),
        State::Terminating(core, ending) => stop::terminating(core, ending, now, event, &mut ops),
        State::Terminated(core) => terminated(core, now, event, &mut ops),
    };
    (state, ops)
}

fn sync(mut core: Box<Core>, now: Timestamp, event: Event, ops: &mut Vec<Op>) -> State {
    match event {
        Event::Gone(pod) => {
            if let Some(pod) = pod {
                core.pod = pod;
            }
            let grace = grace(&core.pod);
            return stop::begin(core, Cause::Gone, grace, now, ops);
        }
        Event::Desired(pod) => {
            let told = |p: &Pod| (p.metadata.labels.clone(), p.metadata.annotations.clone());
            if told(&core.pod) != told(&pod) && matches!(core.sandbox, Sandbox::Ready(_)) {
                ops.push(Op::RefreshVolumes);
            }
            core.pod = pod;
        }
        Event::Prepared { ips } => {
            core.sandbox = Sandbox::Ready(ips);
            core.prepare_failures = 0;
            if has_live_volumes(&core.pod) {
                ops.push(Op::Timer(Timer::Volumes, VOLUME_PERIOD));
            }
        }
        Event::PrepareFailed => {
            core.sandbox = Sandbox::Absent;
            core.prepare_failures += 1;
            let seconds = 1u64 << core.prepare_failures.min(6).saturating_sub(1);
            ops.push(Op::Timer(Timer::Prepare, Duration::from_secs(seconds)));
            return State::Sync(core);
        }
        Event::Timer(Timer::Volumes) => {
            ops.push(Op::RefreshVolumes);
            ops.push(Op::Timer(Timer::Volumes, VOLUME_PERIOD));
        }
        other => run::heard(&mut core, now, other, ops),
    }
    advance(core, now, ops)
}

/// Decides what a pod in [`State::Sync`] needs next.
fn advance(mut core: Box<Core>, now: Timestamp, ops: &mut Vec<Op>) -> State {
    if core.pod.metadata.deletion_timestamp.is_some() {
        let grace = grace(&core.pod);
        return stop::begin(core, Cause::Deleted, grace, now, ops);
    }
    if deadline_left(&core, now).is_some_and(|left| left.is_zero()) {
        let message = "Pod was active on the node longer than the specified deadline";
        core.verdict = Some(Verdict {
            reason: "DeadlineExceeded",
            message: message.to_owned(),
        });
        ops.push(note(None, false, "DeadlineExceeded", message));
        let grace = grace(&core.pod);
        return stop::begin(core, Cause::Finished, grace, now, ops);
    }
    match core.sandbox {
        Sandbox::Absent => {
            core.sandbox = Sandbox::Preparing;
            ops.push(Op::Prepare);
            return State::Sync(core);
        }
        Sandbox::Preparing => return State::Sync(core),
        Sandbox::Ready(_) => {}
    }
    run::start_due(&mut core, now, ops);
    if run::is_over(&core) {
        let grace = grace(&core.pod);
        return stop::begin(core, Cause::Finished, grace, now, ops);
    }
    State::Sync(core)
}

fn terminated(mut core: Box<Core>, now: Timestamp, event: Event, ops: &mut Vec<Op>) -> State {
    let cause = match event {
        Event::Desired(pod) => {
            let deleting = pod.metadata.deletion_timestamp.is_some();
            core.pod = pod;
            if !deleting {
                return State::Terminated(core);
            }
            Cause::Deleted
        }
        Event::Gone(_) => Cause::Gone,
        _ => return State::Terminated(core),
    };
    stop::begin(core, cause, Duration::ZERO, now, ops)
}

/// The grace period that applies to a pod that is to stop: the deletion's, else the spec's, at least a second.
fn grace(pod: &Pod) -> Duration {
    let seconds = (pod.metadata.deletion_grace_period_seconds)
        .or_else(|| pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds))
        .unwrap_or(30);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0).max(1))
}

/// What is left of `activeDeadlineSeconds`.
fn deadline_left(core: &Core, now: Timestamp) -> Option<Duration> {
    let seconds = core.spec().active_deadline_seconds?;
    let allowed = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    Some(allowed.saturating_sub(super::backoff::elapsed(core.start_time, now)))
}

/// Whether the pod mounts anything whose content may change under it.
fn has_live_volumes(pod: &Pod) -> bool {
    pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).any(|v| {
        v.config_map.is_some() || v.secret.is_some() || v.projected.is_some() || v.downward_api.is_some()
    })
}

fn note(slot: Option<usize>, warning: bool, reason: &'static str, message: impl Into<String>) -> Op {
    Op::Record(Note {
        slot,
        warning,
        reason,
        message: message.into(),
    })
}

/// `name_namespace(uid)`, the way Kubernetes' messages name a pod.
#[must_use]
pub fn pod_text(pod: &Pod) -> String {
    let meta = &pod.metadata;
    let part = |s: &Option<String>| s.clone().unwrap_or_default();
    format!(
        "{}_{}({})",
        part(&meta.name),
        part(&meta.namespace),
        part(&meta.uid)
    )
}

/// A pod the node refuses: it fails at once and nothing is started.
#[must_use]
pub fn refuse(pod: Arc<Pod>, now: Timestamp, verdict: Verdict) -> (State, Vec<Op>) {
    let message = verdict.message.clone();
    let reason = verdict.reason;
    let (state, _) = adopt(pod, vec![], now);
    let (State::Sync(mut core) | State::Terminating(mut core, _) | State::Terminated(mut core)) = state;
    core.verdict = Some(verdict);
    let mut ops = vec![note(None, true, reason, message)];
    if core.pod.metadata.deletion_timestamp.is_some() {
        return (
            stop::begin(core, Cause::Deleted, Duration::ZERO, now, &mut ops),
            ops,
        );
    }
    core.sandbox = Sandbox::Absent;
    (State::Terminated(core), ops)
}

/// Whether every regular init container has succeeded and every sidecar has started once.
fn init_done(core: &Core) -> bool {
    core.slots.iter().all(|s| match s.role {
        Role::Init => matches!(&s.phase, Phase::Exited(f) if f.code == 0),
        Role::Sidecar => matches!(s.phase, Phase::Running(_)) && s.started,
        Role::Main => true,
    })
}
