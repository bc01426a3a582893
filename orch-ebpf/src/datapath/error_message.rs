//! ICMP errors about translated flows: the packet they quote is what its sender knows, on both sides.
//!
//! An error about a packet from `D` to `S` has the flow's other direction, from `S` to `D`, as its tuple. If that
//! becomes `S'` to `D'`, the error is for `D'` and quotes a packet from `D'` to `S'`. The checksum of the quoted
//! layer 4 header stays as it was: most errors quote too little to check it.

use aya_ebpf::{helpers::bpf_skb_load_bytes, programs::TcContext};

use super::{
    checksum::Sum,
    family::Family,
    parse::{Bytes as _, ETHERNET, Parsed},
    skb::{self, failed},
};
use crate::{PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP, conntrack::Tuple, event::DropReason};

/// Rewrites the error and what it quotes.
///
/// # Errors
/// [`DropReason::RewriteFailed`] when the packet cannot be written.
#[inline(never)]
pub fn rewrite<A: Family>(ctx: &TcContext, parsed: &Parsed<A>, becomes: &Tuple<A>) -> Result<(), DropReason> {
    let old = &parsed.tuple;
    let checksum = parsed.layer4 + 2;
    let inner = parsed.layer4 + 8;
    let mut change = 0;
    let mut layer4 = inner + A::HEADER;
    let addresses = skb::difference(old, becomes)?;
    // The quoted header: the checksum of IPv4 hides the addresses' change from the error's own.
    if A::HAS_CHECKSUM {
        let length = ctx.read::<u8>(inner).ok_or(DropReason::RewriteFailed)?;
        layer4 = inner + usize::from(length & 0x0f) * 4;
        ctx.l3_csum_replace(inner + 10, 0, addresses, 0).map_err(failed)?;
    } else {
        change = addresses;
    }
    ctx.store(inner + A::ADDRESSES, &becomes.destination, 0)
        .map_err(failed)?;
    ctx.store(inner + A::ADDRESSES + size_of::<A>(), &becomes.source, 0)
        .map_err(failed)?;
    change += ports(ctx, parsed, becomes, layer4)?;
    // The helper takes a sum of 32 bits.
    change = (change & 0xffff_ffff) + (change >> 32);
    ctx.l4_csum_replace(checksum, 0, change, 0).map_err(failed)?;
    rewrite_outer(ctx, parsed, becomes)
}

/// Rewrites the error's own addresses.
#[inline(never)]
fn rewrite_outer<A: Family>(
    ctx: &TcContext,
    parsed: &Parsed<A>,
    becomes: &Tuple<A>,
) -> Result<(), DropReason> {
    let old = &parsed.tuple;
    let scratch = A::scratch().get_ptr_mut(0).ok_or(DropReason::RewriteFailed)?;
    // SAFETY: the slot is this CPU's own for the run, and an error opens no flow, which these two are for otherwise.
    let (outer, new) = unsafe { (&mut (*scratch).entry.becomes, &mut (*scratch).becomes) };
    let at = ETHERNET + A::ADDRESSES;
    load(ctx, at, &mut outer.source)?;
    load(ctx, at + size_of::<A>(), &mut outer.destination)?;
    new.source = if outer.source.same(old.source) {
        becomes.source
    } else {
        outer.source
    };
    new.destination = if outer.destination.same(old.destination) {
        becomes.destination
    } else {
        outer.destination
    };
    let covers_addresses = if A::HAS_CHECKSUM { 0 } else { parsed.layer4 + 2 };
    skb::rewrite_addresses(ctx, outer, new, covers_addresses, 0)
}

/// Reads an address to where it belongs, without a copy on the stack.
#[inline(always)]
fn load<A: Family>(ctx: &TcContext, offset: usize, to: &mut A) -> Result<(), DropReason> {
    let size = size_of::<A>() as u32;
    // SAFETY: the kernel hands a valid context, and the address has the size given.
    let refused =
        unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), offset as u32, (&raw mut *to).cast(), size) };
    if refused == 0 {
        Ok(())
    } else {
        Err(DropReason::RewriteFailed)
    }
}

/// Rewrites the quoted ports, and says what that changes in a checksum; an echo's identifier is on the side that asked.
#[inline(never)]
fn ports<A: Family>(
    ctx: &TcContext,
    parsed: &Parsed<A>,
    becomes: &Tuple<A>,
    layer4: usize,
) -> Result<u64, DropReason> {
    let old = &parsed.tuple;
    if matches!(old.protocol, PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_SCTP) {
        let (first, second) = (becomes.destination_port.to_be(), becomes.source_port.to_be());
        ctx.store(layer4, &[first, second], 0).map_err(failed)?;
        return Ok(Sum::default()
            .replace(old.destination_port.to_be(), first)
            .replace(old.source_port.to_be(), second)
            .folded());
    }
    if old.protocol != A::ICMP {
        return Ok(0);
    }
    let (from, to) = if old.source_port != 0 {
        (old.source_port.to_be(), becomes.source_port.to_be())
    } else {
        (old.destination_port.to_be(), becomes.destination_port.to_be())
    };
    ctx.store(layer4 + 4, &to, 0).map_err(failed)?;
    Ok(Sum::default().replace(from, to).folded())
}
