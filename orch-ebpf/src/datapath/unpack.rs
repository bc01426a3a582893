//! Direct server return, where the backend is: a packet that another node has sent on (see [`super::carry`]) is taken out
//! of the one that carried it, and goes to the backend that the other node chose for it.
//!
//! What cannot be sent to a backend is dropped: it was sent to another node's address, and the network stack would send
//! it back there.

use aya_ebpf::{
    bindings::{BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    programs::TcContext,
};

use super::{
    events,
    family::{Family, endpoint, node_kind},
    maps::Scratch,
    nat,
    parse::{Bytes as _, ETHERNET, Parsed},
    service::{self, Choice, Client},
    skb::{self, failed},
    words,
};
use crate::{
    config::{CONFIG_UNPACK, Config, NODE_LOCAL, NODE_REMOTE},
    conntrack::{KIND_SERVICE, Tuple},
    event::{DropReason, EVENT_FLOW, Path},
    service::{SCOPE_EXTERNAL, Service},
};

/// How the packet of this run came, in scratch memory.
///
/// The verifier knows nothing of what is there: so it follows what comes after once, and not once for each way.
#[derive(Clone, Copy)]
pub struct Arrival<A>(*mut Scratch<A>);

impl<A: Family> Arrival<A> {
    /// Where the packet was sent that carried this one here; [`crate::Address::ANY`] if it came by itself.
    #[inline(always)]
    pub fn carrier(&self) -> &'static A {
        // SAFETY: the slot is this CPU's own for the run, and the carrier is written before any other use.
        unsafe { &(*self.0).carrier }
    }

    /// What the packet becomes whose flow [`open`] has opened.
    #[inline(always)]
    pub fn opened(&self) -> &'static Tuple<A> {
        // SAFETY: the slot is this CPU's own for the run, and nothing is opened after.
        unsafe { &(*self.0).becomes }
    }
}

/// Takes the packet out of another one, if it came in one.
///
/// # Errors
/// Why the packet inside cannot be read.
#[inline(always)]
pub fn unpack<A: Family>(
    ctx: &TcContext,
    config: &Config,
    parsed: &mut Parsed<A>,
) -> Result<Arrival<A>, DropReason> {
    let scratch = A::scratch().get_ptr_mut(0).ok_or(DropReason::Malformed)?;
    // SAFETY: the slot is this CPU's own for the run.
    let carrier = unsafe { &mut (*scratch).carrier };
    // SAFETY: an address is words.
    unsafe { words::clear((&raw mut *carrier).cast(), A::BITS as usize / 32) };
    if parsed.tuple.protocol == A::IN_IP {
        take_out(ctx, config, parsed, carrier)?;
    }
    Ok(Arrival(scratch))
}

/// Whatever no node has sent to a pod or to this node is somebody's own and stays as it is. So does, on a node that has never
/// been in the mode, what is for no service inside: the others may be in it already.
#[inline(never)]
fn take_out<A: Family>(
    ctx: &TcContext,
    config: &Config,
    parsed: &mut Parsed<A>,
    carrier: &mut A,
) -> Result<(), DropReason> {
    let outer = &parsed.tuple;
    let plain = parsed.layer4 == ETHERNET + A::HEADER && !parsed.first_fragment && !parsed.later_fragment;
    if !plain
        || node_kind(outer.source) != NODE_REMOTE
        || (node_kind(outer.destination) != NODE_LOCAL && endpoint(outer.destination).is_none())
        || (config.flags & CONFIG_UNPACK == 0 && !is_for_service::<A>(ctx))
    {
        return Ok(());
    }
    if parsed.end < ETHERNET + 2 * A::HEADER {
        return Err(DropReason::Malformed);
    }
    *carrier = outer.destination;
    events::count(Path::Unpacked, ctx.length());
    let flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET);
    ctx.adjust_room(-(A::HEADER as i32), BPF_ADJ_ROOM_MAC, flags)
        .map_err(failed)?;
    skb::read(ctx, parsed)
}

/// Whether the packet inside one without options asks for a service, as far as its first bytes say: not with options of its
/// own, and not where it is a fragment that has no ports.
#[inline(never)]
fn is_for_service<A: Family>(ctx: &TcContext) -> bool {
    let inside = ETHERNET + A::HEADER;
    // One after the other: kernel 6.1 would see what is not there be read if they were looked at together.
    let Some([first, _]) = ctx.read::<[u8; 2]>(inside) else {
        return false;
    };
    if A::BITS == 32 {
        let Some([high, low]) = ctx.read::<[u8; 2]>(inside + 6) else {
            return false;
        };
        if first != 0x45 || high & 0x1f != 0 || low != 0 {
            return false;
        }
    } else if first >> 4 != 6 {
        return false;
    }
    let Some(address) = ctx.read::<A>(inside + A::ADDRESSES + size_of::<A>()) else {
        return false;
    };
    let Some(protocol) = ctx.read::<u8>(inside + A::PROTOCOL) else {
        return false;
    };
    let Some(port) = ctx.read::<[u8; 2]>(inside + A::HEADER + 2) else {
        return false;
    };
    service::find_anywhere(address, u16::from_be_bytes(port), protocol).is_some()
}

/// Opens the flow of a packet that was sent on to `carrier`; [`Arrival::opened`] says what it
/// becomes then.
///
/// Nodes do not change their tables at the same instant, and session affinity knows no hash: so it is the other node's
/// choice that counts, as long as the backend is one of the service's. If it is not any more, the packet goes where this
/// node's table says, translated if that is elsewhere. It is never sent on a second time.
///
/// # Errors
/// When the packet is for no service, its source may not use it, or the flow cannot be remembered.
#[inline(never)]
pub fn open<A: Family>(config: &Config, parsed: &Parsed<A>, carrier: &A) -> Result<(), DropReason> {
    let tuple = &parsed.tuple;
    let choice = choose(parsed, carrier)?;
    let becomes = nat::towards(tuple, &choice).ok_or(DropReason::ConntrackFull)?;
    nat::open_service(config, parsed, &choice, becomes, SCOPE_EXTERNAL)?;
    events::flow(tuple, becomes, EVENT_FLOW, u32::from(KIND_SERVICE), 0);
    Ok(())
}

/// The backend that the other node has chosen, or this one's choice; on a stack of its own.
#[inline(never)]
fn choose<A: Family>(parsed: &Parsed<A>, carrier: &A) -> Result<Choice<A>, DropReason> {
    let tuple = &parsed.tuple;
    let service = asked(parsed).ok_or(DropReason::Misdirected)?;
    service::admit(service, tuple.source)?;
    let hash = service::hash(tuple);
    match service::at_address(service, carrier, hash) {
        Some(choice) => Ok(choice),
        None => service::choose(service, &Client::Address(tuple.source), hash),
    }
}

/// The service that a packet asked for which may be of a flow; on a stack of its own.
#[inline(never)]
fn asked<A: Family>(parsed: &Parsed<A>) -> Option<&'static Service<A>> {
    if !parsed.joins() {
        return None;
    }
    let tuple = &parsed.tuple;
    service::find_anywhere(tuple.destination, tuple.destination_port, tuple.protocol)
}
