//! The first state of a pod: fresh, or taken over from containers that outlived the agent.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};

use super::{
    super::{
        backoff::Backoff,
        event::{Op, ProbeKind, Timer},
        state::{Cause, Core, Found, FoundState, Phase, Role, Run, Sandbox, Slot, State},
    },
    advance, deadline_left, grace,
    run::{self, finished},
    stop,
};

/// The state of a pod that this agent sees for the first time, given what of it the runtime holds.
#[must_use]
pub fn adopt(pod: Arc<Pod>, found: Vec<Found>, now: Timestamp) -> (State, Vec<Op>) {
    let mut ops = Vec::new();
    let status = pod.status.as_ref();
    let mut core = Box::new(Core {
        start_time: status.and_then(|s| s.start_time.as_ref()).map_or(now, |t| t.0),
        slots: slots(&pod),
        sandbox: Sandbox::Absent,
        initialized: false,
        verdict: None,
        prepare_failures: 0,
        pod,
    });
    let any_found = !found.is_empty();
    for slot in 0..core.slots.len() {
        let name = core.slots[slot].name.clone();
        let mut mine: Vec<Found> = found.iter().filter(|f| f.container == name).cloned().collect();
        mine.sort_by_key(|f| f.attempt);
        take(&mut core, slot, mine, &mut ops);
    }
    core.initialized = core
        .slots
        .iter()
        .any(|s| s.role == Role::Main && (s.attempt > 0 || s.current_id().is_some()));
    let phase = core.pod.status.as_ref().and_then(|s| s.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        let deleting = core.pod.metadata.deletion_timestamp.is_some();
        if !any_found && !deleting {
            return (State::Terminated(core), ops);
        }
        let cause = if deleting { Cause::Deleted } else { Cause::Finished };
        let grace = grace(&core.pod);
        return (stop::begin(core, cause, grace, now, &mut ops), ops);
    }
    if let Some(left) = deadline_left(&core, now) {
        ops.push(Op::Timer(Timer::Deadline, left));
    }
    (advance(core, now, &mut ops), ops)
}

fn slots(pod: &Pod) -> Vec<Slot> {
    let Some(spec) = &pod.spec else { return vec![] };
    let status = pod.status.clone().unwrap_or_default();
    let of = |list: &Option<Vec<ContainerStatus>>, name: &str| {
        list.iter()
            .flatten()
            .find(|s| s.name == name)
            .map(|s| (s.restart_count, s.image_id.clone()))
    };
    let slot = |container: &Container, role, known: Option<(i32, String)>| {
        let (restarts, image_id) = known.unwrap_or_default();
        Slot {
            name: container.name.clone(),
            role,
            phase: Phase::Idle,
            last: None,
            attempt: u32::try_from(restarts).unwrap_or(0),
            crash: Backoff::default(),
            pull: Backoff::default(),
            image_id,
            started: false,
            ready: container.readiness_probe.is_none(),
            oom: false,
        }
    };
    let init = spec.init_containers.iter().flatten().map(|c| {
        let role = if c.restart_policy.as_deref() == Some("Always") {
            Role::Sidecar
        } else {
            Role::Init
        };
        slot(c, role, of(&status.init_container_statuses, &c.name))
    });
    let main = spec
        .containers
        .iter()
        .map(|c| slot(c, Role::Main, of(&status.container_statuses, &c.name)));
    init.chain(main).collect()
}

/// Puts the newest run found into the slot and the one before it into its past; older ones are removed.
fn take(core: &mut Core, slot: usize, mut mine: Vec<Found>, ops: &mut Vec<Op>) {
    mine.retain(|f| {
        let made_only = f.now == FoundState::Created;
        if made_only {
            ops.push(Op::Remove {
                slot,
                id: f.id.clone(),
                attempt: f.attempt,
            });
        }
        !made_only
    });
    let Some(newest) = mine.pop() else { return };
    let known = known(core, slot, &newest.id);
    if let Some(Found {
        id,
        attempt,
        started,
        now: FoundState::Exited(exit),
        ..
    }) = mine.pop()
    {
        core.slots[slot].last = Some(Box::new(finished(id, attempt, exit, false, started)));
    }
    for old in mine {
        ops.push(Op::Remove {
            slot,
            id: old.id,
            attempt: old.attempt,
        });
    }
    let container = core.container(slot).cloned().unwrap_or_default();
    let s = &mut core.slots[slot];
    s.attempt = newest.attempt;
    match newest.now {
        FoundState::Running => {
            let at = newest.started.unwrap_or(core.start_time);
            s.phase = Phase::Running(Run {
                id: newest.id,
                at,
                stopping: false,
            });
            let (was_started, was_ready) = known.unwrap_or((false, false));
            s.ready = container.readiness_probe.is_none() || was_ready;
            if container.startup_probe.is_some() && !was_started {
                run::probe(core, slot, ProbeKind::Startup, ops);
            } else {
                run::open(core, slot, ops);
            }
        }
        FoundState::Exited(exit) => {
            s.phase = Phase::Exited(Box::new(finished(
                newest.id,
                newest.attempt,
                exit,
                false,
                newest.started,
            )));
        }
        FoundState::Created => {}
    }
}

/// What the API says of this very run: started, ready.
fn known(core: &Core, slot: usize, id: &str) -> Option<(bool, bool)> {
    let status = core.pod.status.as_ref()?;
    let name = &core.slots[slot].name;
    let all = status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .flatten();
    let mine = all.into_iter().find(|s| {
        s.name == *name
            && s.container_id
                .as_deref()
                .and_then(|i| i.strip_prefix("containerd://"))
                == Some(id)
    })?;
    Some((mine.started == Some(true), mine.ready))
}
