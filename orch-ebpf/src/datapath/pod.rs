//! The way of a packet that a pod has sent, and of one that the network stack sends to a pod.

use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT},
    programs::TcContext,
};

use super::{
    bandwidth, conntrack, events,
    family::{Family, endpoint, in_cluster, in_services, node_kind, word},
    nat,
    parse::{Bytes as _, ETHER_TYPE, Parsed, Ports},
    policy,
    service::{self, Client},
    skb::{self, Addresses},
};
use crate::{
    Address4, Address6, PROTOCOL_ICMPV6,
    config::{Config, NODE_LOCAL},
    conntrack::{Conntrack, KIND_MASQUERADE, KIND_SERVICE},
    endpoint::{Endpoint, LIMITED_EGRESS, LIMITED_INGRESS},
    event::{DropReason, EVENT_FLOW},
    policy::{EGRESS, INGRESS},
    service::SCOPE_INTERNAL,
};

/// At ingress of the node's side of a pod's veth pair.
#[inline(always)]
pub fn ingress(ctx: &TcContext) -> i32 {
    let Some(config) = super::config() else {
        return skb::pass(ctx);
    };
    match ctx.read::<[u8; 2]>(ETHER_TYPE) {
        Some(Address4::ETHER_TYPE) => from_pod::<Address4>(ctx, config),
        Some(Address6::ETHER_TYPE) => from_pod::<Address6>(ctx, config),
        Some(_) => skb::pass(ctx),
        None => skb::refuse_unread(ctx, DropReason::Malformed),
    }
}

/// A packet's whole way, in a frame of its own: each family has the program's stack for itself.
#[inline(never)]
fn from_pod<A: Family>(ctx: &TcContext, config: &Config) -> i32 {
    let parsed = match skb::parse::<A>(ctx) {
        Ok(parsed) => parsed,
        Err(reason) => return skb::refuse_unread(ctx, reason),
    };
    let Addresses { source, destination } = skb::addresses(ctx, parsed);
    let ifindex = skb::ifindex(ctx);
    let Some(from) = endpoint(source).filter(|endpoint| endpoint.ifindex == ifindex) else {
        // Neighbour discovery speaks for link-local addresses and for none, and goes no further than the link.
        if link_local(&source) && link_local(&destination) {
            return skb::pass(ctx);
        }
        return skb::refuse(ctx, DropReason::SpoofedSource, &parsed.tuple);
    };
    if discovers(parsed, &destination) {
        return skb::pass(ctx);
    }
    if let Err(reason) = translate(ctx, config, parsed, from) {
        return skb::refuse(ctx, reason, &parsed.tuple);
    }
    forward(ctx, config, parsed)
}

/// Whether a packet to or from this address is of neighbour discovery, without which a pod has no link: policies are
/// about what passes a router, which these (RFC 4861: hop limit 255) have not.
#[inline(always)]
fn discovers<A: Family>(parsed: &Parsed<A>, peer: &A) -> bool {
    A::BITS == 128
        && parsed.ttl == 255
        && parsed.tuple.protocol == PROTOCOL_ICMPV6
        && parsed.ports == Ports::None
        && !parsed.later_fragment
        && link_local(peer)
}

/// Whether an IPv6 address is unspecified, link-local (fe80::/10) or multicast (ff00::/8).
#[inline(never)]
fn link_local<A: Family>(address: &A) -> bool {
    if A::BITS != 128 {
        return false;
    }
    let [a, b, ..] = word(address, 0).to_ne_bytes();
    a == 0xff || (a == 0xfe && b & 0xc0 == 0x80) || address.same(A::ANY)
}

#[inline(never)]
fn translate<A: Family>(
    ctx: &TcContext,
    config: &Config,
    parsed: &mut Parsed<A>,
    from: &'static Endpoint,
) -> Result<(), DropReason> {
    if from.flags & LIMITED_EGRESS != 0 {
        bandwidth::take(from.ifindex, EGRESS, ctx.length())?;
    }
    if let Some(known) = conntrack::find(parsed) {
        return follow(ctx, parsed, known, from);
    }
    let tuple = &parsed.tuple;
    if !parsed.opens() || in_cluster(config, tuple.destination) {
        return policy::judge(parsed, tuple, Some(from), endpoint(tuple.destination));
    }
    let Some(service) = service::find(
        tuple.destination,
        tuple.destination_port,
        tuple.protocol,
        SCOPE_INTERNAL,
    ) else {
        if in_services(config, tuple.destination) && !tuple.destination.same(A::settings(config).dns_address)
        {
            return Err(DropReason::NoService);
        }
        return policy::judge(parsed, tuple, Some(from), endpoint(tuple.destination));
    };
    service::admit(service, tuple.source)?;
    let choice = service::choose(service, &Client::Address(tuple.source), service::random())?;
    let becomes = nat::towards(tuple, &choice).ok_or(DropReason::ConntrackFull)?;
    policy::judge(parsed, becomes, Some(from), endpoint(becomes.destination))?;
    nat::open_service(config, parsed, &choice, becomes, SCOPE_INTERNAL)?;
    events::flow(tuple, becomes, EVENT_FLOW, u32::from(KIND_SERVICE), 0);
    skb::rewrite(ctx, parsed, becomes)
}

/// A packet of a known flow.
#[inline(always)]
fn follow<A: Family>(
    ctx: &TcContext,
    parsed: &mut Parsed<A>,
    known: &'static Conntrack<A>,
    from: &'static Endpoint,
) -> Result<(), DropReason> {
    let tuple = &parsed.tuple;
    let becomes = &known.becomes;
    let to = endpoint(becomes.destination);
    if !conntrack::is_reply(known) {
        if known.kind == KIND_MASQUERADE {
            policy::judge(parsed, tuple, Some(from), None)?;
        } else if becomes.source.same(tuple.source) {
            policy::judge(parsed, becomes, Some(from), to)?;
        }
        // Else a pod reaches itself through a service, from which no policy keeps it.
    }
    let redirected =
        !becomes.destination.same(tuple.destination) || becomes.destination_port != tuple.destination_port;
    // What changes only the source on its way out is rewritten when it leaves by the uplink: the stack refuses its
    // own address as the source of a packet that comes in. Not so a ClusterIP, whose client the node is.
    let to_node = node_kind(becomes.destination) == NODE_LOCAL && node_kind(becomes.source) != NODE_LOCAL;
    if known.kind == KIND_SERVICE && (redirected || to.is_some() || to_node) {
        return skb::rewrite(ctx, parsed, becomes);
    }
    Ok(())
}

#[inline(always)]
fn forward<A: Family>(ctx: &TcContext, config: &Config, parsed: &Parsed<A>) -> i32 {
    let Addresses { destination, .. } = skb::addresses(ctx, parsed);
    if let Some(endpoint) = endpoint(destination) {
        return skb::to_pod(ctx, parsed, endpoint);
    }
    onward(ctx, config, parsed)
}

/// Sends a packet to a pod on another node; every other is the network stack's.
#[inline(never)]
pub fn onward<A: Family>(ctx: &TcContext, config: &Config, parsed: &Parsed<A>) -> i32 {
    let Addresses { destination, .. } = skb::addresses(ctx, parsed);
    if parsed.ttl <= 1 {
        // The stack tells the sender.
        return skb::pass(ctx);
    }
    if config.tunnel_ifindex != 0
        && let Some(route) = super::tunnel::route(destination)
    {
        if skb::fits(ctx, config.tunnel_mtu) {
            return skb::to_tunnel(ctx, parsed, config, route);
        }
        return skb::pass(ctx);
    }
    if in_cluster(config, destination) && skb::fits(ctx, config.uplink_mtu) {
        return skb::to_node(ctx, parsed, config);
    }
    skb::pass(ctx)
}

/// At egress of the node's side of a pod's veth pair: what the network stack sends to the pod, be it the node's own
/// or from an interface without a program. What other programs redirect to the pod does not pass here.
#[inline(always)]
pub fn egress(ctx: &TcContext) -> i32 {
    if super::config().is_none() {
        return TC_ACT_OK;
    }
    match ctx.read::<[u8; 2]>(ETHER_TYPE) {
        Some(Address4::ETHER_TYPE) => from_stack::<Address4>(ctx),
        Some(Address6::ETHER_TYPE) => from_stack::<Address6>(ctx),
        _ => TC_ACT_OK,
    }
}

#[inline(never)]
fn from_stack<A: Family>(ctx: &TcContext) -> i32 {
    let parsed = match skb::parse::<A>(ctx) {
        Ok(parsed) => parsed,
        Err(reason) => return skb::refuse_unread(ctx, reason),
    };
    let Addresses { source, destination } = skb::addresses(ctx, parsed);
    let Some(to) = endpoint(destination) else {
        return TC_ACT_OK;
    };
    if discovers(parsed, &source) {
        return TC_ACT_OK;
    }
    if let Err(reason) = admit(ctx, parsed, to) {
        events::dropped(reason, &parsed.tuple, skb::ifindex(ctx), ctx.length());
        return TC_ACT_SHOT;
    }
    TC_ACT_OK
}

#[inline(always)]
fn admit<A: Family>(
    ctx: &TcContext,
    parsed: &mut Parsed<A>,
    to: &'static Endpoint,
) -> Result<(), DropReason> {
    let answered = conntrack::find(parsed).filter(|known| conntrack::is_reply(known));
    if answered.is_none() {
        policy::judge(parsed, &parsed.tuple, None, Some(to))?;
    }
    if to.flags & LIMITED_INGRESS != 0 {
        bandwidth::take(to.ifindex, INGRESS, ctx.length())?;
    }
    // A backend in the node's own network answers by its stack, as do errors about a packet that is too long for the way
    // to its backend: the pod knows the service only.
    if let Some(known) = answered
        && known.kind == KIND_SERVICE
    {
        skb::rewrite(ctx, parsed, &known.becomes)?;
    }
    Ok(())
}
