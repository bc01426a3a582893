//! What a tc program can do to a packet: read, rewrite with checksums kept right, redirect, drop.

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_OK, TC_ACT_SHOT},
    helpers::{bpf_csum_diff, bpf_redirect_neigh, bpf_redirect_peer},
    programs::TcContext,
};
use aya_log_ebpf::error;

use super::{
    events,
    parse::{ADDRESSES, Bytes, ETHERNET, IP_CHECKSUM, Parsed, Ports, TTL},
};
use crate::{
    Address, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP,
    config::Config,
    conntrack::Tuple,
    endpoint::Endpoint,
    event::{DropReason, Path},
};

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

/// The interface on which the packet is seen.
#[inline(always)]
pub fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the kernel hands a valid context.
    unsafe { (*ctx.skb.skb).ifindex }
}

/// Lets the network stack have the packet.
#[inline(always)]
pub fn pass(ctx: &TcContext) -> i32 {
    events::count(Path::ToStack, ctx.length());
    TC_ACT_OK
}

/// Drops the packet, counts and reports it; what should never happen is logged as well.
#[inline(always)]
pub fn refuse(ctx: &TcContext, reason: DropReason, tuple: Tuple) -> i32 {
    events::dropped(reason, tuple, ifindex(ctx), ctx.length());
    if matches!(
        reason,
        DropReason::BrokenService | DropReason::RewriteFailed | DropReason::ConntrackFull
    ) {
        error!(
            ctx,
            "drop reason {} on interface {}: {:i}:{} to {:i}:{}",
            reason as u32,
            ifindex(ctx),
            u32::from_be_bytes(tuple.source),
            tuple.source_port,
            u32::from_be_bytes(tuple.destination),
            tuple.destination_port
        );
    }
    TC_ACT_SHOT
}

#[repr(C)]
#[derive(Clone, Copy)]
struct AddressPair {
    source: Address,
    destination: Address,
}

/// Makes the packet carry the tuple `becomes`, with the checksums of IP and layer 4 kept right.
#[inline(always)]
pub fn rewrite(ctx: &TcContext, parsed: &mut Parsed, becomes: Tuple) -> Result<(), DropReason> {
    events::count(Path::Translated, ctx.length());
    if !parsed.later_fragment {
        rewrite_ports(ctx, parsed, becomes).map_err(|_| DropReason::RewriteFailed)?;
    }
    rewrite_addresses(ctx, parsed, becomes).map_err(|_| DropReason::RewriteFailed)?;
    parsed.tuple = becomes;
    Ok(())
}

/// Offset of the layer 4 checksum, and the flags of its update.
#[inline(always)]
fn layer4_checksum(parsed: &Parsed) -> Option<(usize, u64)> {
    match parsed.tuple.protocol {
        PROTOCOL_TCP => Some((parsed.layer4 + 16, 0)),
        // A UDP checksum of zero says "none" and stays zero; one that becomes zero is sent as all ones (RFC 768).
        PROTOCOL_UDP => Some((parsed.layer4 + 6, u64::from(BPF_F_MARK_MANGLED_0))),
        _ => None,
    }
}

#[inline(always)]
fn rewrite_addresses(ctx: &TcContext, parsed: &Parsed, becomes: Tuple) -> Result<(), i64> {
    let mut from = AddressPair {
        source: parsed.tuple.source,
        destination: parsed.tuple.destination,
    };
    let mut to = AddressPair {
        source: becomes.source,
        destination: becomes.destination,
    };
    let size = size_of::<AddressPair>() as u32;
    // SAFETY: both buffers are on the stack and have the size given.
    let difference = unsafe { bpf_csum_diff((&raw mut from).cast(), size, (&raw mut to).cast(), size, 0) };
    if difference < 0 {
        return Err(difference);
    }
    if !parsed.later_fragment
        && let Some((offset, flags)) = layer4_checksum(parsed)
    {
        ctx.l4_csum_replace(offset, 0, difference as u64, flags | u64::from(BPF_F_PSEUDO_HDR))?;
    }
    ctx.l3_csum_replace(IP_CHECKSUM, 0, difference as u64, 0)?;
    ctx.store(ADDRESSES, &to, 0)
}

#[inline(always)]
fn rewrite_ports(ctx: &TcContext, parsed: &Parsed, becomes: Tuple) -> Result<(), i64> {
    let old = &parsed.tuple;
    match parsed.ports {
        Ports::None => Ok(()),
        Ports::Both => {
            let from = port_pair(old.source_port, old.destination_port);
            let to = port_pair(becomes.source_port, becomes.destination_port);
            if from == to {
                return Ok(());
            }
            if let Some((offset, flags)) = layer4_checksum(parsed) {
                ctx.l4_csum_replace(offset, u64::from(from), u64::from(to), flags | 4)?;
            }
            ctx.store(parsed.layer4, &to, 0)
        }
        Ports::EchoRequest => rewrite_identifier(ctx, parsed, old.source_port, becomes.source_port),
        Ports::EchoReply => rewrite_identifier(ctx, parsed, old.destination_port, becomes.destination_port),
    }
}

/// Both ports as they stand in memory.
#[inline(always)]
fn port_pair(source: u16, destination: u16) -> u32 {
    let [a, b] = source.to_be_bytes();
    let [c, d] = destination.to_be_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

#[inline(always)]
fn rewrite_identifier(ctx: &TcContext, parsed: &Parsed, from: u16, to: u16) -> Result<(), i64> {
    if from == to || parsed.tuple.protocol != PROTOCOL_ICMP {
        return Ok(());
    }
    ctx.l4_csum_replace(
        parsed.layer4 + 2,
        u64::from(from.to_be()),
        u64::from(to.to_be()),
        2,
    )?;
    ctx.store(parsed.layer4 + 4, &to.to_be_bytes(), 0)
}

/// Puts the packet into a local pod's namespace.
#[inline(always)]
pub fn to_pod(ctx: &TcContext, parsed: &Parsed, endpoint: &Endpoint) -> i32 {
    let [d0, d1, d2, d3, d4, d5] = endpoint.pod_mac;
    let [s0, s1, s2, s3, s4, s5] = endpoint.node_mac;
    let macs: [u8; 12] = [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5];
    if ctx.store(0, &macs, 0).is_err() {
        return refuse(ctx, DropReason::RewriteFailed, parsed.tuple);
    }
    events::count(Path::ToPod, ctx.length());
    // SAFETY: the helper takes integers only.
    unsafe { bpf_redirect_peer(endpoint.ifindex, 0) as i32 }
}

/// Sends the packet out of the uplink to whichever neighbour the routes name for its destination. A packet that is
/// too long for the uplink is left to the stack, which answers with what the sender needs to know.
#[inline(always)]
pub fn to_node(ctx: &TcContext, parsed: &Parsed, config: &Config) -> i32 {
    if parsed.ttl <= 1 {
        return refuse(ctx, DropReason::TtlExceeded, parsed.tuple);
    }
    let word = [parsed.ttl, parsed.tuple.protocol];
    let less = [parsed.ttl - 1, parsed.tuple.protocol];
    let rewritten = ctx
        .l3_csum_replace(
            IP_CHECKSUM,
            u64::from(u16::from_ne_bytes(word)),
            u64::from(u16::from_ne_bytes(less)),
            2,
        )
        .and_then(|()| ctx.store(TTL, &less, 0));
    if rewritten.is_err() {
        return refuse(ctx, DropReason::RewriteFailed, parsed.tuple);
    }
    events::count(Path::ToNode, ctx.length());
    // SAFETY: no parameters are passed: the kernel looks the route up itself.
    unsafe { bpf_redirect_neigh(config.uplink_ifindex, core::ptr::null_mut(), 0, 0) as i32 }
}

/// Whether the uplink can send the packet as it is.
#[inline(always)]
pub fn fits(ctx: &TcContext, config: &Config) -> bool {
    // SAFETY: the kernel hands a valid context.
    let segment = unsafe { (*ctx.skb.skb).gso_size };
    // A packet of several segments is cut to segments of a size that its sender chose for its own MTU.
    segment != 0 || ctx.length() <= config.uplink_mtu as usize + ETHERNET
}
