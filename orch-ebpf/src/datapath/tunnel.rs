//! The way of a packet that comes in or goes out by the tunnel to other nodes.

use aya_ebpf::{bindings::TC_ACT_OK, btf_maps::lpm_trie::Key, programs::TcContext};

use super::{
    family::Family,
    parse::{Bytes as _, ETHER_TYPE, ETHERNET},
    skb::{self, Addresses},
    uplink,
};
use crate::{
    Address4, Address6,
    config::{Route, TUNNEL_MAC},
    event::DropReason,
};

/// Where the tunnel leads for a destination, if it does.
#[inline(always)]
pub fn route<A: Family>(destination: A) -> Option<&'static Route> {
    A::routes().get(&Key::new(A::BITS, destination))
}

/// At ingress of the tunnel's device: as from the uplink.
#[inline(always)]
pub fn ingress(ctx: &TcContext) -> i32 {
    let Some(config) = super::config() else {
        return skb::pass(ctx);
    };
    match ctx.read::<[u8; 2]>(ETHER_TYPE) {
        Some(Address4::ETHER_TYPE) => uplink::from_outside::<Address4>(ctx, config),
        Some(Address6::ETHER_TYPE) => uplink::from_outside::<Address6>(ctx, config),
        _ => skb::pass(ctx),
    }
}

/// At egress of the tunnel's device: answers get back the address that the client asked, and what the network stack
/// sends gets told which node it is for.
#[inline(always)]
pub fn egress(ctx: &TcContext) -> i32 {
    let Some(config) = super::config() else {
        return skb::pass(ctx);
    };
    let (verdict, addressed) = match ctx.read::<[u8; 2]>(ETHER_TYPE) {
        Some(Address4::ETHER_TYPE) => (
            uplink::to_outside::<Address4>(ctx, config, false),
            address::<Address4>(ctx),
        ),
        Some(Address6::ETHER_TYPE) => (
            uplink::to_outside::<Address6>(ctx, config, false),
            address::<Address6>(ctx),
        ),
        _ => return skb::pass(ctx),
    };
    if verdict == TC_ACT_OK
        && let Err(reason) = addressed
    {
        return skb::refuse_unread(ctx, reason);
    }
    verdict
}

#[inline(never)]
fn address<A: Family>(ctx: &TcContext) -> Result<(), DropReason> {
    let Some(Addresses::<A> { destination, .. }) = ctx.read(ETHERNET + A::ADDRESSES) else {
        return Err(DropReason::Malformed);
    };
    let Some(route) = route(destination) else {
        return Err(DropReason::NoTunnelRoute);
    };
    // The device takes a packet from its own address for one that has come back, and every node's has the same.
    let [a, b, c, d, e, f] = TUNNEL_MAC;
    ctx.store(6, &[a, b, c, d, e, !f], 0).map_err(skb::failed)?;
    skb::set_tunnel(ctx, route)
}
