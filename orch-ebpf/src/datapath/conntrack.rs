//! Finding and opening translated flows.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns},
};

use super::{
    events, maps,
    parse::{Parsed, TCP_FIN, TCP_RST, TCP_SYN},
};
use crate::{
    Address, PROTOCOL_TCP,
    conntrack::{
        Conntrack, DIRECTION_ORIGINAL, DIRECTION_REPLY, KIND_SERVICE, NAT_PORTS, NAT_PORTS_TOTAL, SEEN_FIN,
        SEEN_RST, SEEN_SYN, SEEN_TRAFFIC, TOUCH_NANOSECONDS, Tuple,
    },
    event::{DropReason, Path},
    service::BackendKey,
};

/// How many ports are tried before a flow is refused.
const PORT_ATTEMPTS: u32 = 16;

/// What a known flow's packet becomes.
#[derive(Clone, Copy)]
pub struct Translation {
    /// The tuple after translation.
    pub becomes: Tuple,
    /// The entry's kind.
    pub kind: u8,
}

/// Finds the packet's flow and notes what passes. A first SYN on a flow that is over, or whose backend is gone, finds
/// nothing: its port is used again.
#[inline(always)]
pub fn find(parsed: &Parsed) -> Option<Translation> {
    let entry = maps::ORCH_CONNTRACK.get_ptr_mut(parsed.tuple)?;
    // SAFETY: the pointer is to a live element for the whole run. Fields that change are single integers; a racing
    // writer on another CPU can at worst lose a note of a flag, which the next packet brings again.
    let entry = unsafe { &mut *entry };
    let translation = Translation {
        becomes: entry.becomes,
        kind: entry.kind,
    };
    if parsed.tuple.protocol == PROTOCOL_TCP && parsed.opens() && entry.direction == DIRECTION_ORIGINAL {
        if entry.seen & (SEEN_FIN | SEEN_RST) != 0 {
            return None;
        }
        // SAFETY: only its presence matters.
        if entry.kind == KIND_SERVICE
            && unsafe { maps::ORCH_BACKENDS.get(BackendKey { id: entry.backend }) }.is_none()
        {
            return None;
        }
    }
    let seen = entry.seen | seen_in(parsed) | SEEN_TRAFFIC;
    if seen != entry.seen {
        entry.seen = seen;
    }
    // SAFETY: the helper takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    if now.wrapping_sub(entry.last_seen) > TOUCH_NANOSECONDS {
        entry.last_seen = now;
    }
    Some(translation)
}

#[inline(always)]
fn seen_in(parsed: &Parsed) -> u8 {
    let mut seen = 0;
    if parsed.tcp_flags & TCP_SYN != 0 {
        seen |= SEEN_SYN;
    }
    if parsed.tcp_flags & TCP_FIN != 0 {
        seen |= SEEN_FIN;
    }
    if parsed.tcp_flags & TCP_RST != 0 {
        seen |= SEEN_RST;
    }
    seen
}

/// Opens a flow whose packets keep their source.
#[inline(always)]
pub fn open(parsed: &Parsed, becomes: Tuple, backend: u32, kind: u8) -> Result<(), DropReason> {
    let (original, reply) = entries(parsed, becomes, backend, kind);
    if maps::ORCH_CONNTRACK.insert(becomes.reverse(), reply, 0).is_err() {
        return Err(DropReason::ConntrackFull);
    }
    finish(parsed, original)
}

/// Opens a flow whose packets get `source` and a free port as their source. The port is free when no other flow's
/// answers carry the same tuple.
#[inline(always)]
pub fn open_from(
    parsed: &Parsed,
    mut becomes: Tuple,
    source: Address,
    backend: u32,
    kind: u8,
) -> Result<Tuple, DropReason> {
    becomes.source = source;
    // SAFETY: the helper takes no argument.
    let start = unsafe { bpf_get_prandom_u32() };
    for attempt in 0..PORT_ATTEMPTS {
        becomes.source_port = nat_port(start.wrapping_add(attempt.wrapping_mul(0x9e37_79b9)));
        let (original, reply) = entries(parsed, becomes, backend, kind);
        if maps::ORCH_CONNTRACK
            .insert(becomes.reverse(), reply, u64::from(BPF_NOEXIST))
            .is_ok()
        {
            finish(parsed, original)?;
            return Ok(becomes);
        }
    }
    Err(DropReason::NoNatPort)
}

#[inline(always)]
fn nat_port(number: u32) -> u16 {
    let index = (number % NAT_PORTS_TOTAL) as u16;
    let [(first, length), (second, _)] = NAT_PORTS;
    if index < length {
        first + index
    } else {
        second + (index - length)
    }
}

#[inline(always)]
fn entries(parsed: &Parsed, becomes: Tuple, backend: u32, kind: u8) -> (Conntrack, Conntrack) {
    // SAFETY: the helper takes no argument.
    let last_seen = unsafe { bpf_ktime_get_ns() };
    let original = Conntrack {
        last_seen,
        becomes,
        backend,
        kind,
        direction: DIRECTION_ORIGINAL,
        seen: seen_in(parsed),
        _pad: 0,
    };
    let reply = Conntrack {
        becomes: parsed.tuple.reverse(),
        direction: DIRECTION_REPLY,
        seen: 0,
        ..original
    };
    (original, reply)
}

#[inline(always)]
fn finish(parsed: &Parsed, original: Conntrack) -> Result<(), DropReason> {
    if maps::ORCH_CONNTRACK.insert(parsed.tuple, original, 0).is_err() {
        // The reply's entry is left to eviction and the agent's sweep.
        return Err(DropReason::ConntrackFull);
    }
    events::count(Path::NewFlow, 0);
    Ok(())
}
