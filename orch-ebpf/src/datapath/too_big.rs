//! The answer to a packet that does not fit into one that would carry it: ICMP "fragmentation needed" (RFC 792, RFC 1191,
//! RFC 1812) or ICMPv6 "packet too big" (RFC 4443), made of the packet itself.
//!
//! It is sent for IPv4 packets that may be cut as well: no program can cut one, and senders take it as they take the
//! others.

use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::{bpf_csum_diff, bpf_redirect_neigh, bpf_skb_change_tail, bpf_skb_load_bytes},
    programs::TcContext,
};

use super::{
    carry::{self, Says},
    checksum::{MODULUS, Sum},
    conntrack::now,
    events,
    family::{Family, word},
    maps::QUOTE_WORDS,
    parse::{Bytes as _, ETHERNET, Parsed, Ports},
    skb::{self, failed},
};
use crate::{
    PROTOCOL_TCP, PROTOCOL_UDP,
    config::Config,
    event::{DropReason, Path},
};

/// Bytes of an ICMP header.
const ICMP_HEADER: usize = 8;
/// Errors that one CPU sends in a second, at most (RFC 4443 section 2.4 asks for a limit).
const MOST_IN_A_SECOND: u64 = 1000;

/// Drops the packet and tells its sender the size that fits, in bytes of an IP packet. Neither an error nor a later
/// fragment is answered (RFC 1122 section 3.2.2).
#[inline(never)]
pub fn tell<A: Family>(ctx: &TcContext, config: &Config, parsed: &Parsed<A>, room: u32) -> i32 {
    events::dropped(DropReason::TooBig, &parsed.tuple, skb::ifindex(ctx), ctx.length());
    if parsed.ports == Ports::Error
        || parsed.later_fragment
        || parsed.end < ETHERNET + A::QUOTE
        || !within_budget::<A>()
        || answer(ctx, config, parsed, room).is_err()
    {
        return TC_ACT_SHOT;
    }
    events::count(Path::ToldTooBig, ctx.length());
    // Back by where it came in. SAFETY: no parameters are passed: the kernel looks the route up itself.
    unsafe { bpf_redirect_neigh(skb::ifindex(ctx), core::ptr::null_mut(), 0, 0) as i32 }
}

#[inline(always)]
fn within_budget<A: Family>() -> bool {
    let Some(scratch) = A::scratch().get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: the slot is this CPU's own for the run.
    let (since, told) = unsafe { (&mut (*scratch).told_since, &mut (*scratch).told) };
    let now = now();
    if now.wrapping_sub(*since) > 1_000_000_000 {
        *since = now;
        *told = 0;
    }
    *told += 1;
    *told <= MOST_IN_A_SECOND
}

/// Makes the error of the packet.
#[inline(never)]
fn answer<A: Family>(
    ctx: &TcContext,
    config: &Config,
    parsed: &Parsed<A>,
    room: u32,
) -> Result<(), DropReason> {
    // SAFETY: the kernel hands a valid context.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, (ETHERNET + A::QUOTE) as u32, 0) } != 0 {
        return Err(DropReason::RewriteFailed);
    }
    let quoted = settle(ctx, parsed)?;
    let flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET);
    ctx.adjust_room((A::HEADER + ICMP_HEADER) as i32, BPF_ADJ_ROOM_MAC, flags)
        .map_err(failed)?;
    let from = &A::settings(config).node_address;
    let to = &parsed.tuple.source;
    let length = ICMP_HEADER + A::QUOTE;
    let says = Says {
        first: [0x60, 0, 0, 0],
        protocol: A::ICMP,
        length,
    };
    carry::write::<A>(ctx, &carry::header(says, from, to))?;
    let [kind, code] = A::TOO_BIG;
    // Both families name the size in the last word, IPv4 in the lower half of it.
    let mut sum = Sum::of(quoted)
        .add_word(u32::from_ne_bytes([kind, code, 0, 0]))
        .add_word(room.to_be());
    if !A::HAS_CHECKSUM {
        sum = sum
            .add_word((length as u32).to_be())
            .add_word(u32::from(A::ICMP).to_be());
        for index in 0..A::BITS as usize / 32 {
            sum = sum.add_word(word(from, index)).add_word(word(to, index));
        }
    }
    let [first, second] = sum.field().to_ne_bytes();
    let icmp = [u32::from_ne_bytes([kind, code, first, second]), room.to_be()];
    ctx.store(ETHERNET + A::HEADER, &icmp, u64::from(BPF_F_RECOMPUTE_CSUM))
        .map_err(failed)
}

/// The sum of what the error quotes, however the quoted checksum stands in the end.
///
/// A packet that the kernel has put together, or that comes from a process of this machine, may have no layer 4 checksum
/// yet: it is filled in when the packet leaves, as the complement of all that follows its header's start, itself
/// included. A quoted one that is already what this gives stays as it is, and so do all sums. It is nobody's right
/// checksum, and no error quotes enough to check that.
#[inline(always)]
fn settle<A: Family>(ctx: &TcContext, parsed: &Parsed<A>) -> Result<u64, DropReason> {
    let quarter = (A::QUOTE / 4).next_multiple_of(4);
    let mut total = 0;
    for index in 0..4 {
        let size = if index < 3 {
            quarter
        } else {
            A::QUOTE - 3 * quarter
        };
        total += sum::<A>(ctx, ETHERNET + index * quarter, size)?;
    }
    let field = match parsed.tuple.protocol {
        PROTOCOL_TCP => ETHERNET + A::HEADER + 16,
        PROTOCOL_UDP => ETHERNET + A::HEADER + 6,
        _ => return Ok(total),
    };
    // No fragment is without its checksum.
    if parsed.layer4 != ETHERNET + A::HEADER || parsed.first_fragment {
        return Ok(total);
    }
    let head = sum::<A>(ctx, ETHERNET, A::HEADER)?;
    let old = ctx.read::<u16>(field).ok_or(DropReason::RewriteFailed)?;
    let less = |sum: u64| MODULUS - sum % MODULUS;
    let rest = (total + less(head) + less(u64::from(old))) % MODULUS;
    // Half of what is missing: with it, as much is missing again. 32768 is a half of one, modulo 65535.
    let settled = match less(rest) * 32_768 % MODULUS {
        0 => MODULUS,
        settled => settled,
    };
    ctx.store(field, &(settled as u16), 0).map_err(failed)?;
    Ok(head + rest + settled)
}

/// The sum of a part of the packet, by way of scratch memory.
#[inline(always)]
fn sum<A: Family>(ctx: &TcContext, offset: usize, size: usize) -> Result<u64, DropReason> {
    const { assert!(A::QUOTE.div_ceil(4) <= QUOTE_WORDS * 4) };
    let scratch = A::scratch().get_ptr_mut(0).ok_or(DropReason::RewriteFailed)?;
    // SAFETY: the slot is this CPU's own for the run.
    let buffer = unsafe { &raw mut (*scratch).quote }.cast::<u32>();
    let size = size as u32;
    // SAFETY: the kernel hands a valid context, and the buffer has room for a quarter of the longest quote.
    let sum = unsafe {
        if bpf_skb_load_bytes(ctx.skb.skb.cast(), offset as u32, buffer.cast(), size) != 0 {
            return Err(DropReason::RewriteFailed);
        }
        bpf_csum_diff(core::ptr::null_mut(), 0, buffer, size, 0)
    };
    u64::try_from(sum).map_err(|_| DropReason::RewriteFailed)
}
