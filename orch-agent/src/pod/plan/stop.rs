//! Stopping a pod for good: drain, stop containers in order, tear down, delete from the API.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    super::{
        backoff,
        event::{Event, Op, StartFailure, Timer},
        state::{Cause, Core, Ending, Phase, Role, Run, Sandbox, Stage, State},
    },
    grace as pod_grace, note, run,
};

/// The longest wait for traffic to go elsewhere.
const DRAIN: Duration = Duration::from_secs(2);
/// What a container gets at least when the drain has used up the grace period, as after a long preStop hook.
const LEAST_GRACE: Duration = Duration::from_secs(2);

/// Leaves [`State::Sync`] (or [`State::Terminated`]) for [`State::Terminating`].
pub(super) fn begin(
    mut core: Box<Core>,
    cause: Cause,
    grace: Duration,
    now: Timestamp,
    ops: &mut Vec<Op>,
) -> State {
    ops.push(Op::CancelStarts);
    for slot in 0..core.slots.len() {
        if matches!(core.slots[slot].phase, Phase::Running(_)) {
            ops.push(Op::StopProbes {
                slot,
                keep_readiness: true,
            });
        }
        if let Phase::Delayed { .. } = core.slots[slot].phase {
            core.slots[slot].phase = Phase::Idle;
        }
    }
    let serves = core.slots.iter().any(|s| matches!(s.phase, Phase::Running(_))) && !core.ips().is_empty();
    let mut ending = Ending {
        cause,
        stage: Stage::Stopping,
        grace,
        began: now,
        purges: false,
    };
    if serves && cause == Cause::Deleted && grace > Duration::from_secs(1) {
        ending.stage = Stage::Draining;
        ops.push(Op::Drain(DRAIN.min(grace / 2)));
        return State::Terminating(core, ending);
    }
    next(core, ending, now, ops)
}

/// One event in [`State::Terminating`].
pub(super) fn terminating(
    mut core: Box<Core>,
    mut ending: Ending,
    now: Timestamp,
    event: Event,
    ops: &mut Vec<Op>,
) -> State {
    match event {
        Event::Desired(pod) => {
            let deleting = pod.metadata.deletion_timestamp.is_some();
            let grace = pod_grace(&pod);
            core.pod = pod;
            if deleting && ending.cause == Cause::Finished {
                ending.cause = Cause::Deleted;
            }
            if deleting && grace < ending.grace {
                hurry(&mut core, &mut ending, grace, ops);
            }
        }
        Event::Gone(pod) => {
            if let Some(pod) = pod {
                core.pod = pod;
            }
            if ending.stage == Stage::Forgetting {
                ops.push(Op::Finish);
                return State::Terminating(core, ending);
            }
            let removed_early = core.pod.metadata.deletion_grace_period_seconds == Some(0);
            // What was torn down for a pod that stays is torn down again with everything.
            ending.cause = Cause::Gone;
            if removed_early {
                hurry(&mut core, &mut ending, Duration::from_secs(1), ops);
            }
        }
        Event::Drained if ending.stage == Stage::Draining => ending.stage = Stage::Stopping,
        Event::TornDown if ending.stage == Stage::TearingDown => {
            core.sandbox = Sandbox::Absent;
            return torn_down(core, ending, ops);
        }
        Event::Timer(Timer::Teardown) if ending.stage == Stage::TearingDown => {
            tear_down(&mut ending, ops);
        }
        Event::Prepared { ips } if ending.stage < Stage::TearingDown => core.sandbox = Sandbox::Ready(ips),
        Event::PrepareFailed => core.sandbox = Sandbox::Absent,
        Event::StartFailed {
            slot,
            id,
            failure: StartFailure::Image { .. } | StartFailure::Config { .. },
        } => {
            run::heard(
                &mut core,
                now,
                Event::StartFailed {
                    slot,
                    id,
                    failure: StartFailure::Cancelled,
                },
                ops,
            );
        }
        Event::Probed {
            slot,
            id,
            kind: super::super::event::ProbeKind::Readiness,
            passed,
        } => {
            if let Some(s) = core.slots.get_mut(slot)
                && s.current_id() == Some(&id)
            {
                s.ready = passed;
            }
        }
        // No probe begins any more; the container is only noted as running, to be stopped.
        Event::Started {
            slot,
            id,
            image_id,
            at,
        } => {
            let starting = |p: &Phase| matches!(p, Phase::Starting { id: expected } if *expected == id);
            match core.slots.get_mut(slot) {
                Some(s) if starting(&s.phase) => {
                    s.image_id = image_id;
                    s.phase = Phase::Running(Run {
                        id,
                        at,
                        stopping: false,
                    });
                }
                _ => run::heard(
                    &mut core,
                    now,
                    Event::Started {
                        slot,
                        id,
                        image_id,
                        at,
                    },
                    ops,
                ),
            }
        }
        Event::Exited { .. } | Event::Oom { .. } | Event::StartFailed { .. } => {
            run::heard(&mut core, now, event, ops);
        }
        _ => {}
    }
    next(core, ending, now, ops)
}

/// The user wants it faster: what is stopping already gets the shorter time.
fn hurry(core: &mut Core, ending: &mut Ending, grace: Duration, ops: &mut Vec<Op>) {
    ending.grace = grace;
    if ending.stage == Stage::Draining {
        ending.stage = Stage::Stopping;
    }
    for (slot, s) in core.slots.iter().enumerate() {
        if let Phase::Running(run) = &s.phase
            && run.stopping
        {
            ops.push(Op::Stop {
                slot,
                id: run.id.clone(),
                grace,
                hook: false,
            });
        }
    }
}

/// Decides what a terminating pod needs next.
fn next(mut core: Box<Core>, mut ending: Ending, now: Timestamp, ops: &mut Vec<Op>) -> State {
    if ending.stage == Stage::Stopping {
        if core.is_busy() {
            stop_due(&mut core, &ending, now, ops);
            return State::Terminating(core, ending);
        }
        ending.stage = Stage::TearingDown;
        tear_down(&mut ending, ops);
    }
    State::Terminating(core, ending)
}

/// Stops every container but sidecars at once, then the sidecars from the last to the first.
fn stop_due(core: &mut Core, ending: &Ending, now: Timestamp, ops: &mut Vec<Op>) {
    let used = backoff::elapsed(ending.began, now);
    let grace = ending
        .grace
        .saturating_sub(used)
        .max(LEAST_GRACE.min(ending.grace));
    let active = |phase: &Phase| matches!(phase, Phase::Running(_) | Phase::Starting { .. });
    let plain_left = core
        .slots
        .iter()
        .any(|s| s.role != Role::Sidecar && active(&s.phase));
    for slot in (0..core.slots.len()).rev() {
        let s = &mut core.slots[slot];
        if s.role == Role::Sidecar && plain_left {
            continue;
        }
        let last = s.role == Role::Sidecar && active(&s.phase);
        if let Phase::Running(run) = &mut s.phase
            && !run.stopping
        {
            run.stopping = true;
            ops.push(note(
                Some(slot),
                false,
                "Killing",
                format!("Stopping container {}", s.name),
            ));
            ops.push(Op::Stop {
                slot,
                id: run.id.clone(),
                grace,
                hook: true,
            });
        }
        if last {
            return;
        }
    }
}

fn tear_down(ending: &mut Ending, ops: &mut Vec<Op>) {
    ending.purges = ending.cause != Cause::Finished;
    ops.push(Op::TearDown { purge: ending.purges });
}

fn torn_down(core: Box<Core>, mut ending: Ending, ops: &mut Vec<Op>) -> State {
    if ending.cause == Cause::Finished && core.pod.metadata.deletion_timestamp.is_some() {
        ending.cause = Cause::Deleted;
    }
    match ending.cause {
        Cause::Finished => return State::Terminated(core),
        // It began when the pod was to stay: the containers it has kept go as well.
        Cause::Deleted | Cause::Gone if !ending.purges => tear_down(&mut ending, ops),
        Cause::Deleted => {
            ending.stage = Stage::Forgetting;
            ops.push(Op::Forget);
        }
        Cause::Gone => ops.push(Op::Finish),
    }
    State::Terminating(core, ending)
}
