//! Starting containers in their order, and what to do when one ends.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;

use super::super::{
    backoff,
    event::{Event, Exit, Op, ProbeKind, StartFailure, Timer},
    id,
    state::{Core, Finished, Phase, Role, Run},
};
use super::{init_done, note, pod_text};

/// How long a container waits after its description could not be completed.
const CONFIG_RETRY: Duration = Duration::from_secs(3);

/// Writes down an event about one container.
pub(super) fn heard(core: &mut Core, now: Timestamp, event: Event, ops: &mut Vec<Op>) {
    match event {
        Event::Started {
            slot,
            id,
            image_id,
            at,
        } => started(core, slot, id, image_id, at, ops),
        Event::StartFailed { slot, id, failure } => start_failed(core, slot, &id, failure, now, ops),
        Event::Hooked { slot, id, ok } if is_running(core, slot, &id) => hooked(core, slot, ok, ops),
        Event::Probed {
            slot,
            id,
            kind,
            passed,
        } if is_running(core, slot, &id) => {
            probed(core, slot, kind, passed, ops);
        }
        Event::Oom { id } => {
            if let Some(slot) = core.slot_of(&id) {
                core.slots[slot].oom = true;
            }
        }
        Event::Exited { id, exit } => {
            if let Some(slot) = core.slot_of(&id) {
                exited(core, slot, exit, ops);
            }
        }
        Event::Timer(Timer::Retry(slot)) => {
            if let Some(s) = core.slots.get_mut(slot)
                && matches!(s.phase, Phase::Delayed { .. })
            {
                s.phase = Phase::Idle;
            }
        }
        Event::Timer(Timer::PullBackOff(slot)) => pull_back_off(core, slot, ops),
        _ => {}
    }
}

fn is_running(core: &Core, slot: usize, id: &str) -> bool {
    matches!(core.slots.get(slot).map(|s| &s.phase), Some(Phase::Running(run)) if run.id == id)
}

fn started(core: &mut Core, slot: usize, id: String, image_id: String, at: Timestamp, ops: &mut Vec<Op>) {
    let container = core.container(slot).cloned();
    let Some(s) = core.slots.get_mut(slot) else { return };
    s.image_id = image_id;
    // The exit may have overtaken the news of the start, and a restart both.
    if let Some(last) = s.last.as_mut().filter(|last| last.id == id) {
        last.started.get_or_insert(at);
        return;
    }
    match &mut s.phase {
        Phase::Exited(finished) if finished.id == id => finished.started = Some(at),
        Phase::Starting { id: expected } if *expected == id => {
            s.phase = Phase::Running(Run {
                id,
                at,
                stopping: false,
            });
            let container = container.unwrap_or_default();
            let hook = container
                .lifecycle
                .as_ref()
                .is_some_and(|l| l.post_start.is_some());
            s.ready = container.readiness_probe.is_none();
            s.started = false;
            if !hook {
                hooked(core, slot, true, ops);
            }
        }
        _ => {}
    }
}

/// The postStart hook is over: probes begin, or the container is stopped because the hook failed.
fn hooked(core: &mut Core, slot: usize, ok: bool, ops: &mut Vec<Op>) {
    if !ok {
        stop(core, slot, "FailedPostStartHook", ops);
    } else if core.container(slot).is_some_and(|c| c.startup_probe.is_some()) {
        probe(core, slot, ProbeKind::Startup, ops);
    } else {
        open(core, slot, ops);
    }
}

/// The container counts as started: the other probes begin.
pub(super) fn open(core: &mut Core, slot: usize, ops: &mut Vec<Op>) {
    core.slots[slot].started = true;
    let Some(container) = core.container(slot) else {
        return;
    };
    let (readiness, liveness) = (
        container.readiness_probe.is_some(),
        container.liveness_probe.is_some(),
    );
    if readiness {
        probe(core, slot, ProbeKind::Readiness, ops);
    }
    if liveness {
        probe(core, slot, ProbeKind::Liveness, ops);
    }
}

pub(super) fn probe(core: &Core, slot: usize, kind: ProbeKind, ops: &mut Vec<Op>) {
    if let Some(id) = core.slots[slot].current_id() {
        ops.push(Op::Probe {
            slot,
            id: id.to_owned(),
            kind,
        });
    }
}

fn probed(core: &mut Core, slot: usize, kind: ProbeKind, passed: bool, ops: &mut Vec<Op>) {
    match (kind, passed) {
        (ProbeKind::Readiness, _) => core.slots[slot].ready = passed,
        (ProbeKind::Startup, true) => open(core, slot, ops),
        (ProbeKind::Liveness, true) => {}
        (ProbeKind::Startup, false) => stop(core, slot, "startup", ops),
        (ProbeKind::Liveness, false) => stop(core, slot, "liveness", ops),
    }
}

/// Stops one container so that its restart policy decides what follows.
fn stop(core: &mut Core, slot: usize, why: &str, ops: &mut Vec<Op>) {
    let spec_grace = core.spec().termination_grace_period_seconds;
    let Some(container) = core.container(slot) else {
        return;
    };
    let probe = match why {
        "liveness" => container.liveness_probe.as_ref(),
        "startup" => container.startup_probe.as_ref(),
        _ => None,
    };
    let seconds = probe
        .and_then(|p| p.termination_grace_period_seconds)
        .or(spec_grace)
        .unwrap_or(30);
    let grace = Duration::from_secs(u64::try_from(seconds).unwrap_or(0).max(1));
    let name = container.name.clone();
    let text = match why {
        "FailedPostStartHook" => why.to_owned(),
        _ => format!("Container {name} failed {why} probe, will be restarted"),
    };
    let Phase::Running(run) = &mut core.slots[slot].phase else {
        return;
    };
    if run.stopping {
        return;
    }
    run.stopping = true;
    ops.push(Op::StopProbes {
        slot,
        keep_readiness: true,
    });
    ops.push(note(Some(slot), false, "Killing", text));
    ops.push(Op::Stop {
        slot,
        id: run.id.clone(),
        grace,
        hook: true,
    });
}

fn start_failed(
    core: &mut Core,
    slot: usize,
    id: &str,
    failure: StartFailure,
    now: Timestamp,
    ops: &mut Vec<Op>,
) {
    let Some(s) = core.slots.get_mut(slot) else { return };
    if !matches!(&s.phase, Phase::Starting { id: expected } if expected == id) {
        return;
    }
    match failure {
        StartFailure::Cancelled => s.phase = Phase::Idle,
        StartFailure::Config { reason, message } => {
            s.phase = Phase::Delayed { reason, message };
            ops.push(Op::Timer(Timer::Retry(slot), CONFIG_RETRY));
        }
        StartFailure::Image { reason, message } => {
            // The first failure waits too: only a crash is tried again at once.
            let mut wait = s.pull.next(now, now);
            if wait.step.is_zero() {
                wait = s.pull.next(now, now);
            }
            s.phase = Phase::Delayed { reason, message };
            if reason == "ErrImagePull" {
                ops.push(Op::Timer(Timer::PullBackOff(slot), Duration::from_secs(1)));
            }
            ops.push(Op::Timer(Timer::Retry(slot), wait.left));
        }
        StartFailure::Run { message } => {
            s.phase = Phase::Exited(Box::new(Finished {
                id: id.to_owned(),
                attempt: s.attempt,
                code: 128,
                reason: "StartError",
                message: Some(message),
                started: None,
                at: now,
            }));
        }
    }
}

/// The pull that failed a moment ago now counts as backed off, as it does in Kubernetes from the next sync on.
fn pull_back_off(core: &mut Core, slot: usize, ops: &mut Vec<Op>) {
    let image = core
        .container(slot)
        .and_then(|c| c.image.clone())
        .unwrap_or_default();
    let Some(s) = core.slots.get_mut(slot) else { return };
    if let Phase::Delayed { reason, message } = &mut s.phase
        && *reason == "ErrImagePull"
    {
        *reason = "ImagePullBackOff";
        *message = format!("Back-off pulling image \"{image}\": ErrImagePull: {message}");
        ops.push(note(
            Some(slot),
            false,
            "BackOff",
            format!("Back-off pulling image \"{image}\""),
        ));
        ops.push(note(Some(slot), true, "Failed", "Error: ImagePullBackOff"));
    }
}

/// Writes down how a container ended.
pub(super) fn exited(core: &mut Core, slot: usize, exit: Exit, ops: &mut Vec<Op>) {
    let s = &mut core.slots[slot];
    let started = match &s.phase {
        Phase::Running(run) => Some(run.at),
        Phase::Starting { .. } => None,
        _ => return,
    };
    let Some(id) = s.current_id().map(str::to_owned) else {
        return;
    };
    ops.push(Op::StopProbes {
        slot,
        keep_readiness: false,
    });
    s.phase = Phase::Exited(Box::new(finished(id, s.attempt, exit, s.oom, started)));
    s.started = false;
    s.ready = false;
    s.oom = false;
}

/// A run's end in the words of the API.
pub(super) fn finished(
    id: String,
    attempt: u32,
    exit: Exit,
    oom: bool,
    started: Option<Timestamp>,
) -> Finished {
    let reason = match exit.code {
        _ if exit.oom || oom && exit.code != 0 => "OOMKilled",
        0 => "Completed",
        _ => "Error",
    };
    Finished {
        id,
        attempt,
        code: exit.code,
        reason,
        message: exit.message,
        started,
        at: exit.at,
    }
}

/// Whether a container that ended with `code` is to run again.
fn restarts(core: &Core, slot: usize, code: i32) -> bool {
    let Some(container) = core.container(slot) else {
        return false;
    };
    if let Some(verdict) = rule(container, code) {
        return verdict;
    }
    let pod_policy = core.spec().restart_policy.as_deref().unwrap_or("Always");
    match (
        core.slots[slot].role,
        container.restart_policy.as_deref().unwrap_or(pod_policy),
    ) {
        (Role::Sidecar, _) => true,
        (Role::Init, "Never") => false,
        (Role::Init, _) => code != 0,
        (Role::Main, "Always") => true,
        (Role::Main, "OnFailure") => code != 0,
        (Role::Main, _) => false,
    }
}

/// What the container's own restart rules say; the first that matches wins.
fn rule(container: &Container, code: i32) -> Option<bool> {
    container.restart_policy_rules.iter().flatten().find_map(|rule| {
        let on = rule.exit_codes.as_ref()?;
        let listed = on.values.iter().flatten().any(|v| *v == code);
        let matches = match on.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        (matches && rule.action == "Restart").then_some(true)
    })
}

/// Starts every container whose turn it is.
pub(super) fn start_due(core: &mut Core, now: Timestamp, ops: &mut Vec<Op>) {
    for slot in 0..core.slots.len() {
        let role = core.slots[slot].role;
        if role == Role::Main && !core.initialized {
            if !init_done(core) {
                return;
            }
            core.initialized = true;
        }
        // Init containers that have done their part are not run again while the sandbox lives.
        if role == Role::Init && core.initialized {
            continue;
        }
        match &core.slots[slot].phase {
            Phase::Idle => start(core, slot, ops),
            Phase::Exited(f) if restarts(core, slot, f.code) => restart(core, slot, now, ops),
            _ => {}
        }
        let done = match (&core.slots[slot].phase, role) {
            (Phase::Exited(f), Role::Init) => f.code == 0,
            (_, Role::Init) => false,
            (_, Role::Sidecar) => core.initialized || core.slots[slot].started,
            (_, Role::Main) => true,
        };
        if !done {
            return;
        }
    }
}

fn start(core: &mut Core, slot: usize, ops: &mut Vec<Op>) {
    let uid = core.pod.metadata.uid.clone().unwrap_or_default();
    let s = &mut core.slots[slot];
    let id = id::container_id(&uid, &s.name, s.attempt);
    s.phase = Phase::Starting { id: id.clone() };
    s.oom = false;
    ops.push(Op::Start {
        slot,
        id,
        attempt: s.attempt,
    });
}

/// Lets a container that ended run again, at once or after its back-off.
fn restart(core: &mut Core, slot: usize, now: Timestamp, ops: &mut Vec<Op>) {
    let pod = pod_text(&core.pod);
    let s = &mut core.slots[slot];
    let Phase::Exited(finished) = std::mem::replace(&mut s.phase, Phase::Idle) else {
        return;
    };
    let wait = s.crash.next(finished.at, now);
    if let Some(old) = s.last.replace(finished) {
        ops.push(Op::Remove {
            slot,
            id: old.id,
            attempt: old.attempt,
        });
    }
    s.attempt += 1;
    if wait.left.is_zero() {
        return start(core, slot, ops);
    }
    let name = &s.name;
    let message = format!(
        "back-off {} restarting failed container={name} pod={pod}",
        backoff::text(wait.step)
    );
    let event = format!("Back-off restarting failed container {name} in pod {pod}");
    s.phase = Phase::Delayed {
        reason: "CrashLoopBackOff",
        message,
    };
    ops.push(note(Some(slot), true, "BackOff", event));
    ops.push(Op::Timer(Timer::Retry(slot), wait.left));
}

/// Whether the containers have nothing left to do: the pod has succeeded or failed.
pub(super) fn is_over(core: &Core) -> bool {
    let failed_init = core.slots.iter().enumerate().any(|(i, s)| {
        s.role == Role::Init
            && matches!(&s.phase, Phase::Exited(f) if f.code != 0 && !restarts(core, i, f.code))
    });
    let mut main = core.slots.iter().filter(|s| s.role == Role::Main).peekable();
    failed_init && !core.initialized
        || core.initialized && main.peek().is_some() && main.all(|s| matches!(s.phase, Phase::Exited(_)))
}
