//! Answers for load balancers' addresses: ARP (RFC 826) and neighbour discovery (RFC 4861).
//!
//! The programs answer by themselves, so that an address stays where it is while the agent restarts.

use aya_ebpf::{helpers::bpf_redirect, programs::TcContext};

use super::{
    checksum::Sum,
    events,
    family::Family,
    parse::{Bytes as _, ETHERNET, Parsed},
    skb::{self, Addresses},
};
use crate::{Address as _, Address4, Address6, PROTOCOL_ICMPV6, config::Announced, event::Path};

/// Ethernet type of ARP.
pub const ARP: [u8; 2] = [0x08, 0x06];
/// Hardware type Ethernet, protocol IPv4, lengths 6 and 4, operation request.
const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
const REPLY: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 2];
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOURCE_LINK_ADDRESS: u8 = 1;
const TARGET_LINK_ADDRESS: u8 = 2;
/// The flags "solicited" and "override".
const FLAGS: [u8; 4] = [0x60, 0, 0, 0];

#[repr(C)]
#[derive(Clone, Copy)]
struct ArpPacket {
    kind: [u8; 8],
    sender_mac: [u8; 6],
    sender: Address4,
    target_mac: [u8; 6],
    target: Address4,
}

/// A neighbour solicitation with its source link-layer address, from the ICMPv6 header on.
#[repr(C)]
#[derive(Clone, Copy)]
struct Neighbour {
    kind: u8,
    code: u8,
    checksum: u16,
    flags: [u8; 4],
    target: Address6,
    option: u8,
    option_length: u8,
    mac: [u8; 6],
}

/// Whether this node answers for the address.
#[inline(always)]
pub fn is_announced<A: Family>(address: A) -> bool {
    announced(address).is_some()
}

#[inline(always)]
fn announced<A: Family>(address: A) -> Option<Announced> {
    // SAFETY: copied at once; the agent replaces whole values.
    unsafe { A::announced().get(address) }.copied()
}

/// Answers an ARP request for an announced address; every other is left alone.
#[inline(never)]
pub fn arp(ctx: &TcContext) -> Option<i32> {
    let request = ctx.read::<ArpPacket>(ETHERNET)?;
    let announced = announced(request.target)?;
    if request.kind != REQUEST || announced.ifindex != skb::ifindex(ctx) {
        return None;
    }
    let reply = ArpPacket {
        kind: REPLY,
        sender_mac: announced.mac,
        sender: request.target,
        target_mac: request.sender_mac,
        target: request.sender,
    };
    ctx.store(ETHERNET, &reply, 0).ok()?;
    send_back(ctx, request.sender_mac, announced.mac)
}

/// Answers a neighbour solicitation for an announced address that names its sender's hardware address; one without
/// is a probe of a neighbour that already knows, and any packet to the address answers it.
#[inline(always)]
pub fn solicitation<A: Family>(ctx: &TcContext, parsed: &Parsed<A>) -> Option<i32> {
    if A::BITS != 128 || parsed.tuple.protocol != PROTOCOL_ICMPV6 || parsed.ttl != 255 {
        return None;
    }
    solicitation6(ctx, parsed.layer4)
}

#[inline(never)]
fn solicitation6(ctx: &TcContext, layer4: usize) -> Option<i32> {
    if layer4 != ETHERNET + Address6::HEADER {
        return None;
    }
    let asked = ctx.read::<Neighbour>(layer4)?;
    if asked.kind != SOLICITATION || asked.option != SOURCE_LINK_ADDRESS || asked.option_length != 1 {
        return None;
    }
    let announced = announced(asked.target)?;
    let Addresses { source, .. } = ctx.read::<Addresses<Address6>>(ETHERNET + Address6::ADDRESSES)?;
    if announced.ifindex != skb::ifindex(ctx) || source.same(Address6::ANY) {
        return None;
    }
    let mut answer = Neighbour {
        kind: ADVERTISEMENT,
        code: 0,
        checksum: 0,
        flags: FLAGS,
        target: asked.target,
        option: TARGET_LINK_ADDRESS,
        option_length: 1,
        mac: announced.mac,
    };
    answer.checksum = Sum::default()
        .add_bytes(asked.target)
        .add_bytes(source)
        .add((size_of::<Neighbour>() as u16).to_be())
        .add(u16::from(PROTOCOL_ICMPV6).to_be())
        .add_bytes([ADVERTISEMENT, 0])
        .add_bytes(FLAGS)
        .add_bytes(asked.target)
        .add_bytes([TARGET_LINK_ADDRESS, 1])
        .add_bytes(announced.mac)
        .field();
    ctx.store(layer4, &answer, 0).ok()?;
    ctx.store(ETHERNET + Address6::ADDRESSES, &[asked.target, source], 0)
        .ok()?;
    send_back(ctx, asked.mac, announced.mac)
}

#[inline(always)]
fn send_back(ctx: &TcContext, to: [u8; 6], from: [u8; 6]) -> Option<i32> {
    ctx.store(0, &[to, from], 0).ok()?;
    events::count(Path::Announced, ctx.length());
    // SAFETY: the helper takes integers only.
    Some(unsafe { bpf_redirect(skb::ifindex(ctx), 0) as i32 })
}
