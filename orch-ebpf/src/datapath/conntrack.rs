//! Finding and opening flows.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_coarse_ns};

use super::{
    events,
    family::Family,
    flow_table::{self, Claim},
    parse::{Parsed, Ports, TCP_FIN, TCP_RST, TCP_SYN},
};
use crate::{
    PROTOCOL_TCP,
    conntrack::{
        Conntrack, DIRECTION_ORIGINAL, DIRECTION_REPLY, KIND_DIRECT, KIND_MASQUERADE, KIND_POLICY,
        KIND_SERVICE, NAT_PORTS, NAT_PORTS_TOTAL, SEEN_FIN, SEEN_RST, SEEN_SYN, SEEN_TRAFFIC,
        TOUCH_NANOSECONDS, TOUCH_TICKS, Tuple,
    },
    event::{DropReason, Path},
    service::BackendKey,
};

/// How many ports are tried before a flow is refused.
const PORT_ATTEMPTS: u32 = 16;

/// The kernel's count of ticks, whose lower half is as good as the whole for what is a second ago.
#[inline(always)]
pub fn ticks() -> u32 {
    // SAFETY: the helper takes no argument; the kernel makes a load of it.
    (unsafe { bpf_jiffies64() }) as u32
}

/// The time that entries carry: to within a tick of the kernel's clock, for a third of the price.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper takes no argument.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// The entry of the packet's flow. A first SYN on a flow that is over, or whose backend is gone, finds nothing: its
/// port is used again.
#[inline(always)]
pub fn entry<A: Family>(parsed: &Parsed<A>) -> Option<&'static mut Conntrack<A>> {
    // Fields that change are single integers; a racing writer on another CPU can at worst lose a note of a flag, which the
    // next packet brings again.
    let entry = flow_table::find(&parsed.tuple)?;
    if parsed.tuple.protocol == PROTOCOL_TCP && parsed.opens() && entry.direction == DIRECTION_ORIGINAL {
        if entry.seen & (SEEN_FIN | SEEN_RST) != 0 {
            return None;
        }
        // SAFETY: only its presence matters.
        if entry.backend != 0 && unsafe { A::backends().get(BackendKey { id: entry.backend }) }.is_none() {
            return None;
        }
    }
    Some(entry)
}

/// Notes in an entry what passes, and says whether a second or more went by since the last note of the time.
#[inline(always)]
pub fn touch<A: Family>(entry: &mut Conntrack<A>, parsed: &Parsed<A>) -> bool {
    note(&parsed.tuple, entry, parsed)
}

/// [`touch`] for a flow of which `tuple` is known.
#[inline(always)]
fn note<A: Family>(tuple: &Tuple<A>, entry: &mut Conntrack<A>, parsed: &Parsed<A>) -> bool {
    let seen = entry.seen | seen_in(parsed) | SEEN_TRAFFIC;
    let ticks = ticks();
    if seen == entry.seen && ticks.wrapping_sub(entry.ticks) < TOUCH_TICKS {
        return false;
    }
    entry.seen = seen;
    entry.ticks = ticks;
    let now = now();
    let old = now.wrapping_sub(entry.last_seen) > TOUCH_NANOSECONDS;
    if old {
        entry.last_seen = now;
    }
    flow_table::keep(tuple, entry);
    old
}

/// Finds the packet's flow and notes what passes. An error about a flow is no sign of its life. What the packet becomes
/// never changes in an entry, so it is read in place.
#[inline(always)]
pub fn find<A: Family>(parsed: &Parsed<A>) -> Option<&'static Conntrack<A>> {
    let entry = entry(parsed)?;
    if parsed.ports != Ports::Error {
        touch(entry, parsed);
    }
    Some(entry)
}

/// The number of the backend that a local pod has for a service where its packets, which are for the backend by now, carry
/// `tuple`; zero where it has asked for no service.
#[inline(never)]
pub fn asked_backend<A: Family>(tuple: &Tuple<A>) -> u32 {
    let answer = answer_to(tuple).and_then(|answer| service_answer(answer));
    answer.map_or(0, |entry| entry.backend)
}

/// The entry of a service's answers that carry this tuple.
#[inline(always)]
fn service_answer<A: Family>(tuple: &Tuple<A>) -> Option<&'static mut Conntrack<A>> {
    flow_table::find(tuple).filter(|entry| entry.kind == KIND_SERVICE && is_reply(entry))
}

/// What a packet of a known flow becomes. A backend outside the cluster answers a pod through two flows: that by which the
/// pod's packets leave the node, and that by which it has asked for a service.
#[inline(always)]
pub fn becomes<A: Family>(parsed: &Parsed<A>, known: &'static Conntrack<A>) -> &'static Tuple<A> {
    if known.kind == KIND_MASQUERADE && known.backend != 0 {
        becomes_at_last(parsed, known)
    } else {
        &known.becomes
    }
}

#[inline(never)]
fn becomes_at_last<A: Family>(parsed: &Parsed<A>, known: &'static Conntrack<A>) -> &'static Tuple<A> {
    let Some(entry) = service_answer(&known.becomes) else {
        return &known.becomes;
    };
    if parsed.ports != Ports::Error {
        note(&known.becomes, entry, parsed);
    }
    &entry.becomes
}

/// Whether the entry's packets answer the side that opened the flow.
#[inline(always)]
pub fn is_reply<A: Family>(entry: &Conntrack<A>) -> bool {
    entry.direction == DIRECTION_REPLY
}

#[inline(always)]
fn seen_in<A: Family>(parsed: &Parsed<A>) -> u8 {
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

/// The tuple of a packet that answers one, in scratch memory.
#[inline(always)]
fn answer_to<A: Family>(tuple: &Tuple<A>) -> Option<&'static mut Tuple<A>> {
    let scratch = A::scratch().get_ptr_mut(0)?;
    // SAFETY: the slot is this CPU's own for the run, one flow at a time is opened, and what is overwritten needs no drop.
    Some(tuple.reverse_in(unsafe { &mut *(&raw mut (*scratch).answer).cast() }))
}

/// Sees to it that the answers to an allowed packet are known for what they are.
#[inline(never)]
pub fn expect_answers<A: Family>(parsed: &Parsed<A>, tuple: &Tuple<A>) -> Result<(), DropReason> {
    let answer = answer_to(tuple).ok_or(DropReason::ConntrackFull)?;
    if let Some(entry) = flow_table::find(answer) {
        let over = entry.seen & (SEEN_FIN | SEEN_RST) != 0 && parsed.tcp_flags & TCP_SYN != 0;
        if entry.direction == DIRECTION_REPLY && !over {
            let now = now();
            if now.wrapping_sub(entry.last_seen) > TOUCH_NANOSECONDS {
                entry.last_seen = now;
                flow_table::keep(answer, entry);
            }
            return Ok(());
        }
        if entry.kind != KIND_POLICY {
            return Ok(());
        }
    }
    let reply = reply_entry(parsed, 0, KIND_POLICY).ok_or(DropReason::ConntrackFull)?;
    reply.becomes = *answer;
    take_down(answer, reply)
}

/// Takes down a flow.
#[inline(always)]
fn take_down<A: Family>(tuple: &Tuple<A>, entry: &Conntrack<A>) -> Result<(), DropReason> {
    if flow_table::insert(tuple, entry) {
        Ok(())
    } else {
        Err(DropReason::ConntrackFull)
    }
}

/// Opens a flow whose packets keep their source.
#[inline(never)]
pub fn open<A: Family>(
    parsed: &Parsed<A>,
    becomes: &Tuple<A>,
    backend: u32,
    kind: u8,
) -> Result<(), DropReason> {
    let entry = reply_entry(parsed, backend, kind).ok_or(DropReason::ConntrackFull)?;
    let answer = answer_to(becomes).ok_or(DropReason::ConntrackFull)?;
    take_down(answer, entry)?;
    finish(parsed, entry, becomes)
}

/// Opens a flow whose packets get `address`, one of the node's, and a free port as their source, which is written to
/// `becomes`. The port is free when no other flow's answers carry the same tuple.
#[inline(always)]
pub fn open_from_node<A: Family>(
    address: A,
    parsed: &Parsed<A>,
    becomes: &mut Tuple<A>,
    backend: u32,
    kind: u8,
) -> Result<(), DropReason> {
    becomes.source = address;
    if open_pair(parsed, becomes, backend, kind) {
        return Ok(());
    }
    open_both(parsed, becomes, backend, kind)
}

/// As [`open_from_node`], in a slot that both directions share until somebody answers; whether there is room for that.
#[inline(never)]
fn open_pair<A: Family>(parsed: &Parsed<A>, becomes: &mut Tuple<A>, backend: u32, kind: u8) -> bool {
    let (Some(entry), Some(answer)) = (fresh_entry::<A>(backend), answer_to(becomes)) else {
        return false;
    };
    let Some(pair) = flow_table::hold_pair(&parsed.tuple, answer, entry.last_seen) else {
        return false;
    };
    becomes.set_ports(answer.destination_port, becomes.destination_port);
    // It does not fail: the scratch memory was there a moment ago. To leave early here would take more stack than IPv6 has.
    let turned = turn(parsed, entry, becomes, kind).is_ok();
    flow_table::fill_pair(pair, &parsed.tuple, entry);
    events::count(Path::NewFlow, 0);
    turned
}

/// As [`open_from_node`], with a slot for each direction.
#[inline(never)]
fn open_both<A: Family>(
    parsed: &Parsed<A>,
    becomes: &mut Tuple<A>,
    backend: u32,
    kind: u8,
) -> Result<(), DropReason> {
    let entry = reply_entry(parsed, backend, kind).ok_or(DropReason::ConntrackFull)?;
    let answer = answer_to(becomes).ok_or(DropReason::ConntrackFull)?;
    // Both slots are taken before either is written: to take one waits for all that was written before, and slots are far.
    let (mut original, mut reply) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    let Some(original) = flow_table::hold(&parsed.tuple, entry, Claim::Alone, &mut original) else {
        return Err(DropReason::ConntrackFull);
    };
    let reply = match flow_table::hold_beside(answer, entry, original, &mut reply) {
        Some(reply) => reply,
        None if !choose_port(answer) => {
            flow_table::release::<A>(original);
            return Err(DropReason::NoNatPort);
        }
        None => match flow_table::hold(answer, entry, Claim::New, &mut reply) {
            Some(reply) => reply,
            None => {
                flow_table::release::<A>(original);
                return Err(DropReason::ConntrackFull);
            }
        },
    };
    becomes.set_ports(answer.destination_port, becomes.destination_port);
    flow_table::fill(reply, answer, entry);
    // Read from the entry, and not kept meanwhile: see `turn`.
    turn(parsed, entry, becomes, entry.kind)?;
    flow_table::fill(original, &parsed.tuple, entry);
    events::count(Path::NewFlow, 0);
    Ok(())
}

/// Chooses a port for the answers' destination that no other flow's carry; whether there was one.
#[inline(never)]
fn choose_port<A: Family>(answer: &mut Tuple<A>) -> bool {
    // SAFETY: the helper takes no argument.
    let start = unsafe { bpf_get_prandom_u32() };
    for attempt in 0..PORT_ATTEMPTS {
        answer.destination_port = nat_port(start.wrapping_add(attempt.wrapping_mul(0x9e37_79b9)));
        if !flow_table::is_known(answer) {
            return true;
        }
    }
    false
}

/// Opens a flow whose packets go to their backend's node as they are, and whose answers do not come by here.
#[inline(never)]
pub fn open_direct<A: Family>(
    parsed: &Parsed<A>,
    becomes: &Tuple<A>,
    backend: u32,
) -> Result<(), DropReason> {
    let entry = reply_entry(parsed, backend, KIND_DIRECT).ok_or(DropReason::ConntrackFull)?;
    finish(parsed, entry, becomes)
}

/// Whether a port may have been chosen for a translated source.
#[inline(always)]
pub fn is_nat_port(port: u16) -> bool {
    NAT_PORTS
        .iter()
        .any(|(first, length)| port.wrapping_sub(*first) < *length)
}

#[inline(always)]
fn nat_port(number: u32) -> u16 {
    let index = ((u64::from(number) * u64::from(NAT_PORTS_TOTAL)) >> 32) as u16;
    let [(first, length), (second, _)] = NAT_PORTS;
    if index < length {
        first + index
    } else {
        second + (index - length)
    }
}

/// What the entries of both directions say alike, in scratch memory. The Ethernet addresses are left as they are: XDP has
/// written them already, see [`super::maps::Scratch::hop`].
#[inline(always)]
fn fresh_entry<A: Family>(backend: u32) -> Option<&'static mut Conntrack<A>> {
    let scratch = A::scratch().get_ptr_mut(0)?;
    // SAFETY: the slot is this CPU's own for the run, and one flow at a time is opened.
    let entry = unsafe { &mut (*scratch).entry };
    // Field by field, since a compiler would call a function to write zeros.
    entry.last_seen = now();
    entry.backend = backend;
    entry.ticks = 0;
    Some(entry)
}

#[inline(always)]
fn reply_entry<A: Family>(parsed: &Parsed<A>, backend: u32, kind: u8) -> Option<&'static mut Conntrack<A>> {
    let entry = fresh_entry::<A>(backend)?;
    // SAFETY: what is overwritten needs no drop.
    parsed
        .tuple
        .reverse_in(unsafe { &mut *(&raw mut entry.becomes).cast() });
    // The hop is unknown, so that nobody reads the Ethernet addresses: the original direction's, or what an earlier run left.
    entry.set_state(kind, DIRECTION_REPLY, 0, 0);
    Some(entry)
}

/// Writes the original direction's entry.
#[inline(always)]
fn finish<A: Family>(
    parsed: &Parsed<A>,
    entry: &mut Conntrack<A>,
    becomes: &Tuple<A>,
) -> Result<(), DropReason> {
    turn(parsed, entry, becomes, entry.kind)?;
    // Where it cannot, the reply's entry, if there is one, is left to eviction and the agent's sweep.
    take_down(&parsed.tuple, entry)?;
    events::count(Path::NewFlow, 0);
    Ok(())
}

/// Makes the original direction's entry of the reply's, or of a fresh one, in its place: the stack of a program is small. The
/// Ethernet addresses are there already, where the hop has any.
#[inline(always)]
fn turn<A: Family>(
    parsed: &Parsed<A>,
    entry: &mut Conntrack<A>,
    becomes: &Tuple<A>,
    kind: u8,
) -> Result<(), DropReason> {
    let scratch = A::scratch().get_ptr_mut(0).ok_or(DropReason::ConntrackFull)?;
    entry.becomes = *becomes;
    // SAFETY: the slot is this CPU's own for the run, and this is none of the fields that are borrowed.
    let hop = unsafe { (*scratch).hop } as u8;
    entry.set_state(kind, DIRECTION_ORIGINAL, seen_in(parsed), hop);
    Ok(())
}
