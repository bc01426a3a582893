//! Direct server return, where a client's packet comes in: it goes on as it is, in an IP packet of its own, to the node of
//! its backend (RFC 2003, RFC 2473). That node answers the client, in [`super::unpack`].
//!
//! The outer packet says which backend was chosen, by its destination, and that it comes from a node, by its source.
//! What the packet inside was sent to, the service's address, is what the answers get as their source.

use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_FIXED_GSO,
        BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_F_RECOMPUTE_CSUM, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    programs::TcContext,
};

use super::{
    checksum::Sum,
    events,
    family::{Family, word},
    parse::{Bytes as _, ETHERNET, Parsed},
    skb::{self, failed},
    too_big,
};
use crate::{
    PROTOCOL_TCP,
    config::Config,
    event::{DropReason, Path},
};

/// Time to live of headers that programs write.
const TTL: u8 = 64;
/// Offset of the byte in TCP's header whose upper half is the header's length in words.
const TCP_LENGTH: usize = 12;
/// Bytes of UDP's header.
const UDP_HEADER: usize = 8;

/// What a header says besides its addresses.
#[derive(Clone, Copy)]
pub struct Says {
    /// The first word of an IP header of the family, for its class of service and its flow label. Congestion marks are
    /// left out, as RFC 6040 section 4.1 asks of who does not know whether the other end passes them on.
    pub first: [u8; 4],
    /// IP protocol number of what follows.
    pub protocol: u8,
    /// How many bytes follow.
    pub length: usize,
}

/// An IP header as words in memory; IPv4's has five. It is never cut on its way: in IPv4 it says so.
#[inline(always)]
pub fn header<A: Family>(says: Says, from: &A, to: &A) -> [u32; 10] {
    let [version, class, label_high, label_low] = says.first;
    // A packet over 64 KiB in one buffer says zero, and its segments their own lengths.
    let [high, low] = if A::HAS_CHECKSUM {
        field(says.length + A::HEADER)
    } else {
        field(says.length)
    };
    let mut words = [0; 10];
    if A::HAS_CHECKSUM {
        words[0] = u32::from_ne_bytes([0x45, class & 0xfc, high, low]);
        words[1] = u32::from_ne_bytes([0, 0, 0x40, 0]);
        words[2] = u32::from_ne_bytes([TTL, says.protocol, 0, 0]);
        words[3] = word(from, 0);
        words[4] = word(to, 0);
        let mut sum = Sum::default();
        for word in words {
            sum = sum.add_word(word);
        }
        let [first, second] = sum.field().to_ne_bytes();
        words[2] = u32::from_ne_bytes([TTL, says.protocol, first, second]);
        return words;
    }
    words[0] = u32::from_ne_bytes([version, class & 0xcf, label_high, label_low]);
    words[1] = u32::from_ne_bytes([high, low, says.protocol, TTL]);
    for index in 0..4 {
        words[2 + index] = word(from, index % (A::BITS as usize / 32));
        words[6 + index] = word(to, index % (A::BITS as usize / 32));
    }
    words
}

/// A length in two bytes, or zero.
#[inline(always)]
fn field(length: usize) -> [u8; 2] {
    if length > 0xffff {
        return [0; 2];
    }
    (length as u16).to_be_bytes()
}

/// Writes a header behind Ethernet's.
///
/// # Errors
/// [`DropReason::RewriteFailed`] when the packet cannot be written.
#[inline(always)]
pub fn write<A: Family>(ctx: &TcContext, words: &[u32; 10]) -> Result<(), DropReason> {
    let flags = u64::from(BPF_F_RECOMPUTE_CSUM);
    if A::HAS_CHECKSUM {
        let [a, b, c, d, e, ..] = *words;
        return ctx.store(ETHERNET, &[a, b, c, d, e], flags).map_err(failed);
    }
    ctx.store(ETHERNET, words, flags).map_err(failed)
}

/// Sends the packet to the backend `to` on another node.
#[inline(never)]
pub fn send<A: Family>(ctx: &TcContext, config: &Config, parsed: &Parsed<A>, to: &A) -> i32 {
    let route = if config.tunnel_ifindex != 0 {
        super::tunnel::route(*to)
    } else {
        None
    };
    let mtu = if route.is_some() {
        config.tunnel_mtu
    } else {
        config.uplink_mtu
    };
    let room = mtu.saturating_sub(A::HEADER as u32);
    if longest(ctx, parsed) > room as usize {
        return too_big::tell(ctx, config, parsed, room);
    }
    if let Err(reason) = wrap(ctx, config, parsed, to) {
        return skb::refuse(ctx, reason, &parsed.tuple);
    }
    events::count(Path::Carried, ctx.length());
    match route {
        Some(route) => skb::into_tunnel(ctx, parsed, config, route),
        None => skb::out_of(ctx, config.uplink_ifindex),
    }
}

/// Bytes of the longest IP packet that leaves: of several segments, which keep their size, of one of them.
#[inline(always)]
pub fn longest<A: Family>(ctx: &TcContext, parsed: &Parsed<A>) -> usize {
    // SAFETY: the kernel hands a valid context.
    let segment = unsafe { (*ctx.skb.skb).gso_size } as usize;
    if segment == 0 {
        return parsed.end - ETHERNET;
    }
    let header = if parsed.tuple.protocol == PROTOCOL_TCP {
        let length = ctx.read::<u8>(parsed.layer4 + TCP_LENGTH).unwrap_or_default();
        usize::from(length >> 4) * 4
    } else {
        UDP_HEADER
    };
    parsed.layer4 - ETHERNET + header + segment
}

/// Puts the packet into another one.
#[inline(never)]
fn wrap<A: Family>(ctx: &TcContext, config: &Config, parsed: &Parsed<A>, to: &A) -> Result<(), DropReason> {
    let says = Says {
        first: ctx.read(ETHERNET).ok_or(DropReason::Malformed)?,
        protocol: A::IN_IP,
        length: parsed.end - ETHERNET,
    };
    let words = header(says, &A::settings(config).node_address, to);
    let family = if A::HAS_CHECKSUM {
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
    } else {
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV6
    };
    let flags = u64::from(family | BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET);
    ctx.adjust_room(A::HEADER as i32, BPF_ADJ_ROOM_MAC, flags)
        .map_err(failed)?;
    write::<A>(ctx, &words)
}
