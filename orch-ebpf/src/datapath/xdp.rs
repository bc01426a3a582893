//! Services for clients outside, before the network stack makes a packet of the frame.
//!
//! XDP answers for what leaves by the interface it came in by: packets for backends on other nodes, and their answers
//! where those come back by this node.
//! Everything else (local backends, fragments, options, errors, neighbours that are not known yet) is left as it came
//! to the tc program, which means the same. The Ethernet addresses of the next hop are kept in the flow's entry and
//! asked of the kernel's routes again each second; new flows to the pods of one node share an answer for as long.

use core::mem::{MaybeUninit, offset_of};

use aya_ebpf::{bindings::xdp_action, helpers::bpf_xdp_adjust_head, programs::XdpContext};

use super::{
    carry::{Says, header},
    checksum::Sum,
    conntrack, events,
    family::{Family, node_kind, packet, word},
    maps::{NODE_HOPS, NodeHop},
    nat,
    parse::{Bytes, ETHER_TYPE, ETHERNET, Parsed, Ports},
    routes::{self, Hop},
    words,
};
use crate::{
    Address4, Address6, PROTOCOL_TCP, PROTOCOL_UDP,
    config::{Config, NODE_LOCAL},
    conntrack::{Conntrack, HOP_PASS, HOP_REFLECT, KIND_DIRECT, KIND_SERVICE, TOUCH_TICKS},
    event::{EVENT_FLOW, Path},
    service::{BACKEND_LOCAL, Backend},
};

impl Bytes for XdpContext {
    #[inline(always)]
    fn read<T: Copy>(&self, offset: usize) -> Option<T> {
        let pointer = at::<T>(self, offset)?;
        // SAFETY: `at` has checked the bounds; unaligned loads are fine on the architectures that orch runs on, and
        // whatever is read is integers and byte arrays.
        Some(unsafe { *pointer })
    }

    #[inline(always)]
    fn length(&self) -> usize {
        end(self) - start(self)
    }
}

/// Where the packet starts. Volatile, since a verifier does not let a function have these two as its arguments, which
/// is what a compiler makes of what is read at a function's start.
#[inline(always)]
fn start(ctx: &XdpContext) -> usize {
    // SAFETY: the kernel hands a valid context.
    (unsafe { (&raw const (*ctx.ctx).data).read_volatile() }) as usize
}

/// Where the packet ends.
#[inline(always)]
fn end(ctx: &XdpContext) -> usize {
    // SAFETY: as above.
    (unsafe { (&raw const (*ctx.ctx).data_end).read_volatile() }) as usize
}

/// A pointer to a value in the packet, if the packet is as long.
#[inline(always)]
fn at<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    let start = start(ctx) + offset;
    if start + size_of::<T>() > end(ctx) {
        return None;
    }
    Some(start as *mut T)
}

/// At the uplink's driver.
#[inline(always)]
pub fn uplink(ctx: &XdpContext) -> u32 {
    let Some(config) = super::config() else {
        return xdp_action::XDP_PASS;
    };
    match ctx.read::<[u8; 2]>(ETHER_TYPE) {
        Some(Address4::ETHER_TYPE) => balance::<Address4>(ctx, config),
        Some(Address6::ETHER_TYPE) => balance::<Address6>(ctx, config),
        _ => xdp_action::XDP_PASS,
    }
}

#[inline(never)]
fn balance<A: Family>(ctx: &XdpContext, config: &Config) -> u32 {
    reflect::<A>(ctx, config).unwrap_or(xdp_action::XDP_PASS)
}

/// `None` leaves the packet, as it came, to the next program.
#[inline(always)]
fn reflect<A: Family>(ctx: &XdpContext, config: &Config) -> Option<u32> {
    let mut seen;
    // What IPv4 says fits on the stack, which is quicker.
    let parsed = if A::BITS == 128 {
        &*parse_apart::<A>(ctx)?
    } else {
        seen = MaybeUninit::<Parsed<A>>::uninit();
        // SAFETY: integers and enums that `parse` writes before anything reads them; zeroing them first would cost as
        // much as the lookup of a service.
        let seen = unsafe { &mut *seen.as_mut_ptr() };
        A::parse::<false>(ctx, seen).ok()?;
        &*seen
    };
    let layer4 = layer4_checksum(parsed)?;
    if parsed.ttl <= 1 || ctx.length() > config.uplink_mtu as usize + ETHERNET {
        return None;
    }
    let entry = match conntrack::entry(parsed) {
        Some(entry) => {
            let stale = conntrack::touch(entry, parsed);
            if entry.kind != KIND_SERVICE {
                return Some(carry(ctx, config, parsed, entry, stale));
            }
            if stale || entry.hop == 0 {
                find_hop(ctx, config, entry);
            }
            entry
        }
        None => {
            let entry = if A::BITS == 128 {
                open_apart(ctx, config, parsed)?
            } else {
                open(ctx, config, parsed)?
            };
            if entry.kind != KIND_SERVICE {
                return Some(carry(ctx, config, parsed, entry, false));
            }
            entry
        }
    };
    if entry.hop != HOP_REFLECT {
        return None;
    }
    if A::BITS == 128 {
        return send_apart::<A>(ctx, parsed, entry, layer4);
    }
    send::<A>(ctx, parsed, entry, layer4)
}

/// As [`send`], on a stack of its own.
#[inline(never)]
fn send_apart<A: Family>(
    ctx: &XdpContext,
    parsed: &Parsed<A>,
    entry: &Conntrack<A>,
    layer4: usize,
) -> Option<u32> {
    send::<A>(ctx, parsed, entry, layer4)
}

/// As [`Family::parse`], on a stack of its own.
#[inline(never)]
fn parse_apart<A: Family>(ctx: &XdpContext) -> Option<&'static mut Parsed<A>> {
    let parsed = packet::<A>()?;
    A::parse::<false>(ctx, parsed).ok()?;
    Some(parsed)
}

/// Offset of the checksum of TCP or UDP in its header; other protocols are left to tc.
#[inline(always)]
fn layer4_checksum<A: Family>(parsed: &Parsed<A>) -> Option<usize> {
    match (parsed.tuple.protocol, parsed.ports) {
        (PROTOCOL_TCP, Ports::Both) => Some(16),
        (PROTOCOL_UDP, Ports::Both) => Some(6),
        _ => None,
    }
}

/// As [`open`], on a stack of its own.
#[inline(never)]
fn open_apart<A: Family>(
    ctx: &XdpContext,
    config: &Config,
    parsed: &Parsed<A>,
) -> Option<&'static mut Conntrack<A>> {
    open(ctx, config, parsed)
}

/// Opens a flow to a backend on another node.
#[inline(always)]
fn open<A: Family>(
    ctx: &XdpContext,
    config: &Config,
    parsed: &Parsed<A>,
) -> Option<&'static mut Conntrack<A>> {
    if !parsed.opens() {
        return None;
    }
    let choice = nat::choose_external(parsed).ok()??;
    if choice.backend.flags & BACKEND_LOCAL != 0
        || (config.tunnel_ifindex != 0 && super::tunnel::route(choice.backend.address).is_some())
    {
        return None;
    }
    let becomes = nat::towards(&parsed.tuple, &choice)?;
    let scratch = A::scratch().get_ptr_mut(0)?;
    // SAFETY: the slot is this CPU's own for the run; `becomes` is another field of it, and nobody makes the entry yet.
    unsafe { (*scratch).hop = hop_to(ctx, config, choice.backend, &mut (*scratch).entry.macs) };
    let opened = nat::open_external(config, parsed, &choice, becomes);
    // SAFETY: as above.
    unsafe { (*scratch).hop = 0 };
    let kind = opened.ok()?;
    events::flow(&parsed.tuple, becomes, EVENT_FLOW, u32::from(kind), 0);
    // As it has just been written: to look it up again would cost a packet of a new flow a tenth more.
    // SAFETY: as above; nobody else holds the entry any longer.
    Some(unsafe { &mut (*scratch).entry })
}

/// How packets to a backend on another node leave, which all that is on one node share: [`HOP_REFLECT`], with their
/// Ethernet addresses, or [`HOP_PASS`].
#[inline(never)]
fn hop_to<A: Family>(ctx: &XdpContext, config: &Config, backend: &Backend<A>, macs: &mut [u8; 12]) -> u32 {
    let node = backend.node;
    let source = A::settings(config).node_address;
    // A node's own addresses need not be routed as its pods are.
    if node.same(A::ANY) || node.same(backend.address) {
        return ask_routes(ctx, config, &source, &backend.address, macs);
    }
    let mut mixed = 0;
    for index in 0..A::BITS as usize / 32 {
        mixed = (mixed ^ word(&node, index)).wrapping_mul(0x9e37_79b1);
    }
    let Some(kept) = A::node_hops().get_ptr_mut((mixed >> 16) % NODE_HOPS) else {
        return HOP_PASS.into();
    };
    // SAFETY: the slot is this CPU's own for the run.
    let kept = unsafe { &mut *kept };
    let (ingress, ticks) = (ctx.ingress_ifindex() as u32, conntrack::ticks());
    if kept.node.same(node) && kept.ifindex == ingress && ticks.wrapping_sub(kept.ticks) < TOUCH_TICKS {
        copy_macs(&kept.macs, macs);
        return HOP_REFLECT.into();
    }
    let hop = ask_routes(ctx, config, &source, &backend.address, macs);
    if hop == u32::from(HOP_REFLECT) {
        kept.node = node;
        kept.ifindex = ingress;
        kept.ticks = ticks;
        copy_macs(macs, &mut kept.macs);
    }
    hop
}

/// Copies the Ethernet addresses of a next hop between a [`NodeHop`] and a [`Conntrack`].
#[inline(always)]
fn copy_macs(from: &[u8; 12], to: &mut [u8; 12]) {
    const {
        assert!(offset_of!(NodeHop<Address4>, macs) % 4 == 0 && offset_of!(NodeHop<Address6>, macs) % 4 == 0);
        assert!(
            offset_of!(Conntrack<Address4>, macs) % 4 == 0 && offset_of!(Conntrack<Address6>, macs) % 4 == 0
        );
    }
    // SAFETY: three words on a boundary of four, by what is asserted above: maps' values begin on one of eight.
    unsafe {
        words::copy(
            (&raw const *from).cast(),
            (&raw mut *to).cast(),
            size_of_val(from) / 4,
        )
    };
}

/// Asks the routes how a flow's packets leave.
#[inline(never)]
fn find_hop<A: Family>(ctx: &XdpContext, config: &Config, entry: &mut Conntrack<A>) {
    let source = if entry.kind == KIND_DIRECT {
        A::settings(config).node_address
    } else {
        entry.becomes.source
    };
    let destination = entry.becomes.destination;
    entry.hop = ask_routes(ctx, config, &source, &destination, &mut entry.macs) as u8;
}

/// [`HOP_REFLECT`], with the Ethernet addresses that the packet gets, when it leaves by the interface that it came in by;
/// [`HOP_PASS`] otherwise.
#[inline(never)]
fn ask_routes<A: Family>(
    ctx: &XdpContext,
    config: &Config,
    source: &A,
    destination: &A,
    macs: &mut [u8; 12],
) -> u32 {
    if node_kind(*destination) == NODE_LOCAL
        || (config.tunnel_ifindex != 0 && super::tunnel::route(*destination).is_some())
    {
        return HOP_PASS.into();
    }
    let ingress = ctx.ingress_ifindex() as u32;
    match routes::find(ctx.ctx.cast(), ingress, source, destination) {
        Some(Hop {
            ifindex,
            macs: Some(([a, b, c, d, e, f], [g, h, i, j, k, l])),
        }) if ifindex == ingress => {
            *macs = [a, b, c, d, e, f, g, h, i, j, k, l];
            HOP_REFLECT.into()
        }
        _ => HOP_PASS.into(),
    }
}

/// Sends a packet of a flow that is not translated on to its backend's node, in a packet of its own (see
/// [`super::carry`]); those of other kinds, and what does not fit, are left.
#[inline(never)]
fn carry<A: Family>(
    ctx: &XdpContext,
    config: &Config,
    parsed: &Parsed<A>,
    entry: &mut Conntrack<A>,
    stale: bool,
) -> u32 {
    if entry.kind != KIND_DIRECT {
        return xdp_action::XDP_PASS;
    }
    if stale || entry.hop == 0 {
        find_hop(ctx, config, entry);
    }
    let length = parsed.end - ETHERNET;
    if entry.hop != HOP_REFLECT || length + A::HEADER > config.uplink_mtu as usize {
        return xdp_action::XDP_PASS;
    }
    let Some(first) = ctx.read(ETHERNET) else {
        return xdp_action::XDP_PASS;
    };
    let says = Says {
        first,
        protocol: A::IN_IP,
        length,
    };
    let words = header(
        says,
        &A::settings(config).node_address,
        &entry.becomes.destination,
    );
    // SAFETY: the kernel hands a valid context.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(A::HEADER as i32)) } != 0 {
        return xdp_action::XDP_PASS;
    }
    let frame = if A::BITS == 32 {
        at::<[u8; ETHERNET + 20]>(ctx, 0).map(<*mut _>::cast::<u8>)
    } else {
        at::<[u8; ETHERNET + 40]>(ctx, 0).map(<*mut _>::cast::<u8>)
    };
    // The frame has just grown by as much.
    let Some(frame) = frame else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: within what was just checked, and nothing else holds the packet meanwhile.
    unsafe {
        put_macs(frame, entry);
        frame.add(ETHER_TYPE).cast::<[u8; 2]>().write(A::ETHER_TYPE);
        for (index, word) in words.iter().enumerate().take(A::HEADER / 4) {
            *frame.add(ETHERNET).cast::<u32>().add(index) = *word;
        }
    }
    events::count(Path::Carried, ctx.length());
    events::count(Path::Reflected, ctx.length());
    xdp_action::XDP_TX
}

/// Writes the Ethernet addresses of a flow's next hop.
///
/// # Safety
/// `frame` points to as many bytes of the packet.
#[inline(always)]
unsafe fn put_macs<A: Family>(frame: *mut u8, entry: &Conntrack<A>) {
    // SAFETY: whole words on a boundary of four in the entry; a packet may be written unaligned on the architectures that
    // orch runs on, here and below.
    unsafe {
        words::copy(
            (&raw const entry.macs).cast(),
            frame.cast(),
            size_of_val(&entry.macs) / 4,
        )
    };
}

/// Writes an address.
///
/// # Safety
/// `to` points to as many bytes of the packet.
#[inline(always)]
unsafe fn put<A: Family>(to: *mut A, address: &A) {
    // SAFETY: an address in a tuple is words, and so is its place in the packet.
    unsafe { words::copy((&raw const *address).cast(), to.cast(), A::BITS as usize / 32) };
}

/// Rewrites the packet and sends it back out.
#[inline(always)]
fn send<A: Family>(ctx: &XdpContext, parsed: &Parsed<A>, entry: &Conntrack<A>, layer4: usize) -> Option<u32> {
    let from = &parsed.tuple;
    let becomes = &entry.becomes;
    // One check for everything up to where UDP ends, and one for the checksum, which TCP has further on.
    let frame = if A::BITS == 32 {
        at::<[u8; ETHERNET + 20 + 8]>(ctx, 0)?.cast::<u8>()
    } else {
        at::<[u8; ETHERNET + 40 + 8]>(ctx, 0)?.cast::<u8>()
    };
    let checksum = at::<u16>(ctx, ETHERNET + A::HEADER + layer4)?;
    // SAFETY: all within what was just checked.
    let (addresses, ttl, ports, header) = unsafe {
        (
            frame.add(ETHERNET + A::ADDRESSES).cast::<A>(),
            frame.add(ETHERNET + A::TTL),
            frame.add(ETHERNET + A::HEADER).cast::<[u16; 2]>(),
            frame.add(ETHERNET + 10).cast::<u16>(),
        )
    };
    let change = Sum::default()
        .replace_address(&from.source, &becomes.source)
        .replace_address(&from.destination, &becomes.destination);
    let old_ports = [from.source_port.to_be(), from.destination_port.to_be()];
    let new_ports = [becomes.source_port.to_be(), becomes.destination_port.to_be()];
    // SAFETY: `at` has checked the bounds of each pointer, and nothing else holds the packet meanwhile.
    unsafe {
        if A::HAS_CHECKSUM {
            *header = Sum::of_field(*header)
                .and(change)
                .replace(
                    u16::from_ne_bytes([parsed.ttl, 0]),
                    u16::from_ne_bytes([parsed.ttl - 1, 0]),
                )
                .field();
        }
        *ttl = parsed.ttl - 1;
        put(addresses, &becomes.source);
        put(addresses.add(1), &becomes.destination);
        *ports = new_ports;
        // A UDP checksum of zero says "none" and stays; one that becomes zero is sent as all ones (RFC 768).
        if parsed.tuple.protocol != PROTOCOL_UDP || *checksum != 0 {
            let field = Sum::of_field(*checksum)
                .and(change)
                .replace(old_ports[0], new_ports[0])
                .replace(old_ports[1], new_ports[1])
                .field();
            *checksum = if parsed.tuple.protocol == PROTOCOL_UDP && field == 0 {
                0xffff
            } else {
                field
            };
        }
        put_macs(frame, entry);
    }
    events::count(Path::Reflected, ctx.length());
    Some(xdp_action::XDP_TX)
}
