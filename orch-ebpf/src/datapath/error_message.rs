//! ICMP errors about translated flows: the packet they quote is what its sender knows, on both sides.
//!
//! An error about a packet from `D` to `S` has the flow's other direction, from `S` to `D`, as its tuple. If that
//! becomes `S'` to `D'`, the error is for `D'` and quotes a packet from `D'` to `S'`. The checksum of the quoted
//! layer 4 header stays as it was: most errors quote too little to check it.

use aya_ebpf::programs::TcContext;

use super::{
    checksum::Sum,
    family::Family,
    parse::{Bytes as _, ETHERNET, Parsed},
    skb,
};
use crate::{PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP, conntrack::Tuple};

/// Rewrites the error and what it quotes.
///
/// # Errors
/// The kernel's refusal.
#[inline(always)]
pub fn rewrite<A: Family>(ctx: &TcContext, parsed: &Parsed<A>, becomes: &Tuple<A>) -> Result<(), i64> {
    let old = &parsed.tuple;
    let checksum = parsed.layer4 + 2;
    let inner = parsed.layer4 + 8;
    // The quoted header: the checksum of IPv4 hides the addresses' change from the error's own.
    let to = [becomes.destination, becomes.source];
    let mut change = Sum::default();
    if A::HAS_CHECKSUM {
        let length = ctx.read::<u8>(inner).ok_or(-1)?;
        let field = ctx.read::<u16>(inner + 10).ok_or(-1)?;
        let new = replaced(Sum::of_field(field), old, becomes).field();
        ctx.store(inner + 10, &new, 0)?;
        ports(
            ctx,
            parsed,
            becomes,
            inner + usize::from(length & 0x0f) * 4,
            &mut change,
        )?;
    } else {
        change = replaced(change, old, becomes);
        ports(ctx, parsed, becomes, inner + A::HEADER, &mut change)?;
    }
    ctx.store(inner + A::ADDRESSES, &to, 0)?;
    ctx.l4_csum_replace(checksum, 0, change.folded(), 0)?;

    let outer = skb::addresses(ctx, parsed);
    let [mut source, mut destination] = outer;
    if source.same(old.source) {
        source = becomes.source;
    }
    if destination.same(old.destination) {
        destination = becomes.destination;
    }
    let covers_addresses = if A::HAS_CHECKSUM {
        None
    } else {
        Some((checksum, 0))
    };
    skb::rewrite_addresses(ctx, outer, [source, destination], covers_addresses)
}

#[inline(always)]
fn replaced<A: Family>(sum: Sum, old: &Tuple<A>, new: &Tuple<A>) -> Sum {
    sum.replace_address(&old.source, &new.source)
        .replace_address(&old.destination, &new.destination)
}

/// Rewrites the quoted ports; an echo's identifier is on the side that asked.
#[inline(always)]
fn ports<A: Family>(
    ctx: &TcContext,
    parsed: &Parsed<A>,
    becomes: &Tuple<A>,
    layer4: usize,
    change: &mut Sum,
) -> Result<(), i64> {
    let old = &parsed.tuple;
    if matches!(old.protocol, PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_SCTP) {
        let (first, second) = (becomes.destination_port.to_be(), becomes.source_port.to_be());
        *change = change
            .replace(old.destination_port.to_be(), first)
            .replace(old.source_port.to_be(), second);
        return ctx.store(layer4, &[first, second], 0);
    }
    if old.protocol != A::ICMP {
        return Ok(());
    }
    let (from, to) = if old.source_port != 0 {
        (old.source_port, becomes.source_port)
    } else {
        (old.destination_port, becomes.destination_port)
    };
    *change = change.replace(from.to_be(), to.to_be());
    ctx.store(layer4 + 4, &to.to_be(), 0)
}

const _: () = assert!(
    ETHERNET == 14,
    "offsets in this file are multiples of two from an even one"
);
