//! Counters, and word of drops, flows and verdicts to whoever listens.

use aya_ebpf::helpers::bpf_ktime_get_ns;

use super::{family::Family, maps};
use crate::{
    config::{CONFIG_DROPS, CONFIG_FLOWS},
    conntrack::Tuple,
    event::{DropReason, EVENT_DROP, Event, METRICS_PATHS, Path},
};

/// Counts a packet's way.
#[inline(always)]
pub fn count(path: Path, bytes: usize) {
    add(METRICS_PATHS + path as u32, bytes);
}

/// Counts a refusal without an event.
#[inline(always)]
pub fn count_refusal(reason: DropReason, bytes: usize) {
    add(reason as u32, bytes);
}

/// Counts a drop, and reports it if somebody listens.
#[inline(never)]
pub fn dropped<A: Family>(reason: DropReason, tuple: &Tuple<A>, ifindex: u32, length: usize) {
    add(reason as u32, length);
    if !listening(CONFIG_DROPS) {
        return;
    }
    if let Some(mut entry) = maps::ORCH_EVENTS.reserve(0) {
        entry.write(Event {
            // SAFETY: the helper takes no argument.
            time: unsafe { bpf_ktime_get_ns() },
            source: tuple.source.wide(),
            destination: tuple.destination.wide(),
            becomes: [0; 16],
            source_port: tuple.source_port,
            destination_port: tuple.destination_port,
            becomes_port: 0,
            protocol: tuple.protocol,
            kind: EVENT_DROP,
            reason: reason as u32,
            ifindex,
            length: length as u32,
            identity: 0,
        });
        entry.submit(0);
    } else {
        count(Path::EventLost, 0);
    }
}

/// Reports a new flow, or a verdict of a policy about one, if somebody listens; `kind` and `reason` are the event's.
#[inline(always)]
pub fn flow<A: Family>(tuple: &Tuple<A>, becomes: &Tuple<A>, kind: u8, reason: u32, identity: u32) {
    if listening(CONFIG_FLOWS) {
        report(tuple, becomes, kind, reason, identity);
    }
}

#[inline(never)]
fn report<A: Family>(tuple: &Tuple<A>, becomes: &Tuple<A>, kind: u8, reason: u32, identity: u32) {
    if let Some(mut entry) = maps::ORCH_EVENTS.reserve(0) {
        entry.write(Event {
            // SAFETY: the helper takes no argument.
            time: unsafe { bpf_ktime_get_ns() },
            source: tuple.source.wide(),
            destination: tuple.destination.wide(),
            becomes: becomes.destination.wide(),
            source_port: tuple.source_port,
            destination_port: tuple.destination_port,
            becomes_port: becomes.destination_port,
            protocol: tuple.protocol,
            kind,
            reason,
            ifindex: 0,
            length: 0,
            identity,
        });
        entry.submit(0);
    } else {
        count(Path::EventLost, 0);
    }
}

/// Whether somebody listens to this kind of event.
#[inline(always)]
pub fn listening(flag: u32) -> bool {
    super::config().is_some_and(|config| config.flags & flag != 0)
}

#[inline(always)]
fn add(index: u32, bytes: usize) {
    if let Some(counter) = maps::ORCH_METRICS.get_ptr_mut(index) {
        // SAFETY: the slot is this CPU's own, and a program is not interrupted by itself on one CPU.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += bytes as u64;
        }
    }
}
