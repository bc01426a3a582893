//! What a tc program can do to a packet: read, rewrite with checksums kept right, redirect, drop.

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX, TC_ACT_OK,
        TC_ACT_SHOT, bpf_tunnel_key,
    },
    helpers::{bpf_csum_diff, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_set_tunnel_key},
    programs::TcContext,
};
use aya_log_ebpf::error;

use super::{
    bandwidth, error_message, events,
    family::{Family, packet},
    parse::{Bytes, ETHERNET, Parsed, Ports},
    routes, words,
};
use crate::{
    Address4, PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP,
    config::{CONFIG_MULTIHOMED, Config, Route, TUNNEL_MAC, TUNNEL_NETWORK},
    conntrack::Tuple,
    endpoint::{Endpoint, LIMITED_INGRESS},
    event::{DropReason, Path},
    policy::INGRESS,
};

/// The part of a tag that numbers the VLAN.
const VLAN_NUMBER: u32 = 0x0fff;

/// `BPF_F_IPV6` (linux/bpf.h, kernel 6.16) where the kernel knows it, else zero: the sum that a network card gave for
/// the whole packet does not change with an IPv6 address, since the layer 4 checksum changes against it. The agent
/// sets it.
#[unsafe(no_mangle)]
static ORCH_CHECKSUM_IPV6: u64 = 0;

impl Bytes for TcContext {
    #[inline(always)]
    fn read<T: Copy>(&self, offset: usize) -> Option<T> {
        self.load(offset).ok()
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.len() as usize
    }
}

/// What a kernel's refusal to read or write a packet means.
pub fn failed(_: i64) -> DropReason {
    DropReason::RewriteFailed
}

/// Reads the packet's headers, see [`Family::parse`].
///
/// # Errors
/// Why the packet cannot be read.
#[inline(always)]
pub fn parse<A: Family>(ctx: &TcContext) -> Result<&'static mut Parsed<A>, DropReason> {
    let parsed = packet::<A>().ok_or(DropReason::Malformed)?;
    read(ctx, parsed)?;
    Ok(parsed)
}

/// Reads the headers of a packet that has become another.
///
/// # Errors
/// Why the packet cannot be read.
#[inline(always)]
pub fn read<A: Family>(ctx: &TcContext, parsed: &mut Parsed<A>) -> Result<(), DropReason> {
    headers(ctx, parsed)?;
    if parsed.ports == Ports::Error {
        quoted(ctx, parsed);
    }
    Ok(())
}

#[inline(never)]
fn headers<A: Family>(ctx: &TcContext, parsed: &mut Parsed<A>) -> Result<(), DropReason> {
    A::parse::<true>(ctx, parsed)
}

#[inline(never)]
fn quoted<A: Family>(ctx: &TcContext, parsed: &mut Parsed<A>) {
    A::quoted(ctx, parsed);
}

/// The interface on which the packet is seen.
#[inline(always)]
pub fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the kernel hands a valid context.
    unsafe { (*ctx.skb.skb).ifindex }
}

/// Whether the packet belongs to a VLAN, its tag beside it: the kernel takes tags out of packets that come in before a tc
/// program sees them, and leaves it to the driver to put them into those that go out.
#[inline(always)]
pub fn is_tagged(ctx: &TcContext) -> bool {
    // SAFETY: the kernel hands a valid context.
    let (present, control) = unsafe { ((*ctx.skb.skb).vlan_present, (*ctx.skb.skb).vlan_tci) };
    // Number zero is no VLAN but a priority only (IEEE 802.1Q).
    present != 0 && control & VLAN_NUMBER != 0
}

/// Lets the network stack have the packet.
#[inline(always)]
pub fn pass(ctx: &TcContext) -> i32 {
    events::count(Path::ToStack, ctx.length());
    TC_ACT_OK
}

/// Drops the packet, counts and reports it; what should never happen is logged as well.
#[inline(always)]
pub fn refuse<A: Family>(ctx: &TcContext, reason: DropReason, tuple: &Tuple<A>) -> i32 {
    events::dropped(reason, tuple, ifindex(ctx), ctx.length());
    if matches!(
        reason,
        DropReason::BrokenService | DropReason::RewriteFailed | DropReason::ConntrackFull
    ) {
        log(ctx, reason);
    }
    TC_ACT_SHOT
}

/// Tells the agent's log of a drop that should never happen.
#[inline(never)]
fn log(ctx: &TcContext, reason: DropReason) {
    error!(
        ctx,
        "dropped a packet of {} bytes on interface {} for reason {}",
        ctx.len(),
        ifindex(ctx),
        reason as u32
    );
}

/// Drops a packet of which no tuple is known.
#[inline(never)]
pub fn refuse_unread(ctx: &TcContext, reason: DropReason) -> i32 {
    refuse(ctx, reason, &Tuple::<Address4>::default())
}

/// Source and destination of a packet, as they stand in its header.
#[repr(C, align(4))]
#[derive(Clone, Copy)]
pub struct Addresses<A> {
    /// The source.
    pub source: A,
    /// The destination.
    pub destination: A,
}

/// The packet's own addresses, which for an ICMP error are not those of its tuple.
#[inline(always)]
pub fn addresses<A: Family>(ctx: &TcContext, parsed: &Parsed<A>) -> Addresses<A> {
    if parsed.ports == Ports::Error
        && let Some(addresses) = ctx.read(ETHERNET + A::ADDRESSES)
    {
        return addresses;
    }
    Addresses {
        source: parsed.tuple.source,
        destination: parsed.tuple.destination,
    }
}

/// Makes the packet carry the tuple `becomes`, with the checksums of IP and layer 4 kept right.
///
/// # Errors
/// [`DropReason::RewriteFailed`] when the packet cannot be written.
#[inline(never)]
pub fn rewrite<A: Family>(
    ctx: &TcContext,
    parsed: &mut Parsed<A>,
    becomes: &Tuple<A>,
) -> Result<(), DropReason> {
    events::count(Path::Translated, ctx.length());
    if parsed.ports == Ports::Error {
        error_message::rewrite(ctx, parsed, becomes)?;
    } else {
        if !parsed.later_fragment {
            rewrite_ports(ctx, parsed, becomes)?;
        }
        let (offset, flags) = match layer4_checksum(parsed) {
            Some(checksum) if !parsed.later_fragment => checksum,
            _ => (0, 0),
        };
        rewrite_addresses(ctx, &parsed.tuple, becomes, offset, flags)?;
    }
    parsed.tuple = *becomes;
    Ok(())
}

/// Offset of the layer 4 checksum that covers the addresses, and the flags of its update.
#[inline(always)]
fn layer4_checksum<A: Family>(parsed: &Parsed<A>) -> Option<(usize, u64)> {
    match parsed.tuple.protocol {
        PROTOCOL_TCP => Some((parsed.layer4 + 16, 0)),
        // A UDP checksum of zero says "none" and stays zero; one that becomes zero is sent as all ones (RFC 768).
        PROTOCOL_UDP => Some((parsed.layer4 + 6, u64::from(BPF_F_MARK_MANGLED_0))),
        protocol if protocol == A::ICMP && !A::HAS_CHECKSUM => Some((parsed.layer4 + 2, 0)),
        _ => None,
    }
}

/// Writes the addresses of `to` into the header, and updates the header's checksum and the one at `layer4`, if that is
/// not zero.
///
/// # Errors
/// [`DropReason::RewriteFailed`] when the packet cannot be written.
#[inline(never)]
pub fn rewrite_addresses<A: Family>(
    ctx: &TcContext,
    from: &Tuple<A>,
    to: &Tuple<A>,
    layer4: usize,
    flags: u64,
) -> Result<(), DropReason> {
    let difference = difference(from, to)?;
    if layer4 != 0 {
        ctx.l4_csum_replace(layer4, 0, difference, flags | pseudo_header::<A>())
            .map_err(failed)?;
    }
    if A::HAS_CHECKSUM {
        ctx.l3_csum_replace(ETHERNET + 10, 0, difference, 0)
            .map_err(failed)?;
    }
    // SAFETY: a tuple begins with both addresses, see `difference`.
    let addresses = unsafe { &*(&raw const *to).cast::<Addresses<A>>() };
    ctx.store(ETHERNET + A::ADDRESSES, addresses, 0).map_err(failed)
}

/// The difference that other addresses make to a checksum.
///
/// # Errors
/// [`DropReason::RewriteFailed`] when the kernel refuses.
#[inline(always)]
pub fn difference<A: Family>(from: &Tuple<A>, to: &Tuple<A>) -> Result<u64, DropReason> {
    const { assert!(core::mem::offset_of!(Tuple<A>, destination) == size_of::<A>()) };
    // A tuple begins with both addresses.
    let size = 2 * size_of::<A>() as u32;
    let (old, new) = ((&raw const *from).cast_mut(), (&raw const *to).cast_mut());
    // SAFETY: both tuples are longer than the size given, a multiple of four, and the helper only reads them.
    let difference = unsafe { bpf_csum_diff(old.cast(), size, new.cast(), size, 0) };
    u64::try_from(difference).map_err(|_| DropReason::RewriteFailed)
}

/// Flags of an update of a checksum that covers the pseudo header.
#[inline(always)]
pub fn pseudo_header<A: Family>() -> u64 {
    let flag = u64::from(BPF_F_PSEUDO_HDR);
    if A::HAS_CHECKSUM {
        return flag;
    }
    // SAFETY: a constant that the agent may have set before the program was loaded.
    flag | unsafe { core::ptr::read_volatile(&raw const ORCH_CHECKSUM_IPV6) }
}

#[inline(always)]
fn rewrite_ports<A: Family>(
    ctx: &TcContext,
    parsed: &Parsed<A>,
    becomes: &Tuple<A>,
) -> Result<(), DropReason> {
    let old = &parsed.tuple;
    match parsed.ports {
        Ports::None | Ports::Error => Ok(()),
        Ports::Both => {
            let from = port_pair(old.source_port, old.destination_port);
            let to = port_pair(becomes.source_port, becomes.destination_port);
            if from == to {
                return Ok(());
            }
            if old.protocol == PROTOCOL_SCTP {
                if parsed.first_fragment {
                    return Err(DropReason::SctpFragment);
                }
                return super::sctp::rewrite_ports(ctx, parsed.layer4, parsed.end, from, to);
            }
            if let Some((offset, flags)) = layer4_checksum(parsed) {
                ctx.l4_csum_replace(offset, u64::from(from), u64::from(to), flags | 4)
                    .map_err(failed)?;
            }
            ctx.store(parsed.layer4, &to, 0).map_err(failed)
        }
        Ports::EchoRequest => rewrite_identifier(ctx, parsed, old.source_port, becomes.source_port),
        Ports::EchoReply => rewrite_identifier(ctx, parsed, old.destination_port, becomes.destination_port),
    }
}

/// Both ports as they stand in memory.
#[inline(always)]
pub fn port_pair(source: u16, destination: u16) -> u32 {
    let [a, b] = source.to_be_bytes();
    let [c, d] = destination.to_be_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

#[inline(always)]
fn rewrite_identifier<A: Family>(
    ctx: &TcContext,
    parsed: &Parsed<A>,
    from: u16,
    to: u16,
) -> Result<(), DropReason> {
    if from == to {
        return Ok(());
    }
    ctx.l4_csum_replace(
        parsed.layer4 + 2,
        u64::from(from.to_be()),
        u64::from(to.to_be()),
        2,
    )
    .map_err(failed)?;
    ctx.store(parsed.layer4 + 4, &to.to_be_bytes(), 0).map_err(failed)
}

/// Puts the packet into a local pod's namespace.
#[inline(never)]
pub fn to_pod<A: Family>(ctx: &TcContext, parsed: &Parsed<A>, endpoint: &Endpoint) -> i32 {
    if endpoint.flags & LIMITED_INGRESS != 0
        && let Err(reason) = bandwidth::take(endpoint.ifindex, INGRESS, ctx.length())
    {
        return refuse(ctx, reason, &parsed.tuple);
    }
    if let Err(reason) = address_to(ctx, endpoint) {
        return refuse(ctx, reason, &parsed.tuple);
    }
    events::count(Path::ToPod, ctx.length());
    // SAFETY: the helper takes integers only.
    unsafe { bpf_redirect_peer(endpoint.ifindex, 0) as i32 }
}

/// Sends the packet, which is on its way out, through the node's side of a local pod's veth pair, where the program
/// judges it as what the stack sends to the pod.
#[inline(always)]
pub fn through<A: Family>(ctx: &TcContext, parsed: &Parsed<A>, endpoint: &Endpoint) -> i32 {
    if let Err(reason) = address_to(ctx, endpoint) {
        return refuse(ctx, reason, &parsed.tuple);
    }
    // SAFETY: the helper takes integers only.
    unsafe { bpf_redirect(endpoint.ifindex, 0) as i32 }
}

/// Writes the hardware addresses with which a packet comes to a pod.
#[inline(always)]
fn address_to(ctx: &TcContext, endpoint: &Endpoint) -> Result<(), DropReason> {
    let [d0, d1, d2, d3, d4, d5] = endpoint.pod_mac;
    let [s0, s1, s2, s3, s4, s5] = endpoint.node_mac;
    let macs: [u8; 12] = [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5];
    ctx.store(0, &macs, 0).map_err(failed)
}

/// Takes one from the packet's time to live.
#[inline(always)]
fn live_less<A: Family>(ctx: &TcContext, parsed: &Parsed<A>) -> Result<(), DropReason> {
    if parsed.ttl <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    let less = parsed.ttl - 1;
    if A::HAS_CHECKSUM {
        // The checksum's word is the time to live and a byte that stays.
        let (from, to) = (u16::from_ne_bytes([parsed.ttl, 0]), u16::from_ne_bytes([less, 0]));
        ctx.l3_csum_replace(ETHERNET + 10, u64::from(from), u64::from(to), 2)
            .map_err(|_| DropReason::RewriteFailed)?;
    }
    ctx.store(ETHERNET + A::TTL, &less, 0)
        .map_err(|_| DropReason::RewriteFailed)
}

/// Sends the packet out of the uplink by which nodes reach each other, to whichever neighbour the routes name for its
/// destination.
#[inline(always)]
pub fn to_node<A: Family>(ctx: &TcContext, parsed: &Parsed<A>, config: &Config) -> i32 {
    leave(ctx, parsed, config.uplink_ifindex)
}

/// Sends the packet out of the uplink that the routes name for its destination.
#[inline(always)]
pub fn by_route<A: Family>(ctx: &TcContext, parsed: &Parsed<A>, config: &Config) -> i32 {
    let uplink = if config.flags & CONFIG_MULTIHOMED != 0 {
        uplink_to(ctx, parsed, config)
    } else {
        config.uplink_ifindex
    };
    leave(ctx, parsed, uplink)
}

/// The interface by which the routes send the packet, or where they know of none the primary uplink.
#[inline(never)]
fn uplink_to<A: Family>(ctx: &TcContext, parsed: &Parsed<A>, config: &Config) -> u32 {
    let Addresses { source, destination } = addresses(ctx, parsed);
    // An interface that forwards, which those of pods and the tunnel's need not.
    let found = routes::find(ctx.as_ptr(), config.uplink_ifindex, &source, &destination);
    found.map_or(config.uplink_ifindex, |found| found.ifindex)
}

#[inline(never)]
fn leave<A: Family>(ctx: &TcContext, parsed: &Parsed<A>, ifindex: u32) -> i32 {
    if let Err(reason) = live_less(ctx, parsed) {
        return refuse(ctx, reason, &parsed.tuple);
    }
    out_of(ctx, ifindex)
}

/// Sends a packet whose time to live is as it should be out of an uplink.
#[inline(always)]
pub fn out_of(ctx: &TcContext, ifindex: u32) -> i32 {
    events::count(Path::ToNode, ctx.length());
    // SAFETY: no parameters are passed: the kernel looks the route up itself.
    unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 }
}

/// Sends the packet through the tunnel to the node that the route names.
#[inline(never)]
pub fn to_tunnel<A: Family>(ctx: &TcContext, parsed: &Parsed<A>, config: &Config, route: &Route) -> i32 {
    if let Err(reason) = live_less(ctx, parsed) {
        return refuse(ctx, reason, &parsed.tuple);
    }
    into_tunnel(ctx, parsed, config, route)
}

/// Sends a packet whose time to live is as it should be through the tunnel.
#[inline(always)]
pub fn into_tunnel<A: Family>(ctx: &TcContext, parsed: &Parsed<A>, config: &Config, route: &Route) -> i32 {
    let prepared = set_tunnel(ctx, route).and_then(|()| {
        // The other node's device has this address, so its stack takes what is for itself.
        ctx.store(0, &TUNNEL_MAC, 0)
            .map_err(|_| DropReason::RewriteFailed)
    });
    if let Err(reason) = prepared {
        return refuse(ctx, reason, &parsed.tuple);
    }
    events::count(Path::ToTunnel, ctx.length());
    // SAFETY: the helper takes integers only.
    unsafe { bpf_redirect(config.tunnel_ifindex, 0) as i32 }
}

/// Tells the tunnel's device which node the packet is for.
///
/// # Errors
/// [`DropReason::NoTunnelRoute`] when the kernel refuses.
#[inline(never)]
pub fn set_tunnel(ctx: &TcContext, route: &Route) -> Result<(), DropReason> {
    let mut key = MaybeUninit::<bpf_tunnel_key>::uninit();
    // SAFETY: integers only.
    let key = unsafe { words::zeroed(&mut key) };
    key.tunnel_id = TUNNEL_NETWORK;
    key.tunnel_ttl = 64;
    let mut flags = u64::from(BPF_F_ZERO_CSUM_TX);
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = route.node;
    if route.family == 4 {
        key.__bindgen_anon_1.remote_ipv4 = u32::from_be_bytes([a, b, c, d]);
    } else {
        flags |= u64::from(BPF_F_TUNINFO_IPV6);
        key.__bindgen_anon_1.remote_ipv6 = [
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ];
    }
    // SAFETY: the kernel hands a valid context, and the key is on the stack with its whole size.
    let set = unsafe {
        bpf_skb_set_tunnel_key(
            ctx.skb.skb,
            &raw mut *key,
            size_of::<bpf_tunnel_key>() as u32,
            flags,
        )
    };
    if set == 0 {
        Ok(())
    } else {
        Err(DropReason::NoTunnelRoute)
    }
}

/// Whether a device with this MTU can send the packet as it is.
#[inline(always)]
pub fn fits(ctx: &TcContext, mtu: u32) -> bool {
    // SAFETY: the kernel hands a valid context.
    let segment = unsafe { (*ctx.skb.skb).gso_size };
    // A packet of several segments is cut to segments of a size that its sender chose for its own MTU.
    segment != 0 || ctx.length() <= mtu as usize + ETHERNET
}
