//! Counters, and word of drops to whoever listens.

use aya_ebpf::helpers::bpf_ktime_get_ns;

use super::maps;
use crate::{
    config::CONFIG_EVENTS,
    conntrack::Tuple,
    event::{DropEvent, DropReason, METRICS_PATHS, Path},
};

/// Counts a packet's way.
#[inline(always)]
pub fn count(path: Path, bytes: usize) {
    add(METRICS_PATHS + path as u32, bytes);
}

/// Counts a refusal without an event, for the socket hooks.
#[inline(always)]
pub fn count_refusal(reason: DropReason) {
    add(reason as u32, 0);
}

/// Counts a drop, and reports it if somebody reads the events.
#[inline(always)]
pub fn dropped(reason: DropReason, tuple: Tuple, ifindex: u32, length: usize) {
    add(reason as u32, length);
    if !super::config().is_some_and(|config| config.flags & CONFIG_EVENTS != 0) {
        return;
    }
    if let Some(mut entry) = maps::ORCH_EVENTS.reserve(0) {
        entry.write(DropEvent {
            // SAFETY: the helper takes no argument.
            time: unsafe { bpf_ktime_get_ns() },
            tuple,
            reason: reason as u32,
            ifindex,
            length: length as u32,
            _pad: 0,
        });
        entry.submit(0);
    }
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
