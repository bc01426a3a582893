//! The way of a packet that comes in or goes out by the node's uplink.

use aya_ebpf::programs::TcContext;

use super::{
    announce, conntrack, events,
    family::{Family, endpoint, in_cluster, node_kind},
    nat, own,
    parse::{Bytes as _, ETHER_TYPE, Parsed, v6::ROUTING},
    pod, policy, service,
    skb::{self, Addresses},
};
use crate::{
    Address4, Address6, PROTOCOL_TCP,
    config::{CONFIG_MOVING, Config, NODE_LOCAL},
    conntrack::{KIND_MASQUERADE, KIND_SERVICE, Tuple},
    event::{DropReason, EVENT_FLOW},
    service::SCOPE_EXTERNAL,
};

/// At ingress of the uplink: services for clients outside, answers to translated flows, packets for local pods. What
/// belongs to a VLAN is left to the VLAN's own interface, an uplink as well.
#[inline(always)]
pub fn ingress(ctx: &TcContext) -> i32 {
    let Some(config) = super::config() else {
        return skb::pass(ctx);
    };
    if skb::is_tagged(ctx) {
        return skb::pass(ctx);
    }
    match ctx.read::<[u8; 2]>(ETHER_TYPE) {
        Some(Address4::ETHER_TYPE) => from_outside::<Address4>(ctx, config),
        Some(Address6::ETHER_TYPE) => from_outside::<Address6>(ctx, config),
        Some(announce::ARP) => announce::arp(ctx).unwrap_or_else(|| skb::pass(ctx)),
        Some(_) => skb::pass(ctx),
        None => skb::refuse_unread(ctx, DropReason::Malformed),
    }
}

/// A packet from outside or from another node, by the uplink or by the tunnel.
#[inline(never)]
pub fn from_outside<A: Family>(ctx: &TcContext, config: &Config) -> i32 {
    let parsed = match skb::parse::<A>(ctx) {
        Ok(parsed) => parsed,
        Err(reason) => return skb::refuse_unread(ctx, reason),
    };
    if let Some(verdict) = announce::solicitation(ctx, parsed) {
        return verdict;
    }
    let arrived = parsed.tuple.destination;
    let (becomes, reply) = match decide(config, parsed) {
        Ok(decision) => decision,
        // The node's own address on a port without backends: its stack says so to the client.
        Err(DropReason::NoBackend) if node_kind(arrived) == NODE_LOCAL => {
            events::count_refusal(DropReason::NoBackend, ctx.length());
            return skb::pass(ctx);
        }
        Err(reason) => return skb::refuse(ctx, reason, &parsed.tuple),
    };
    let translated = becomes.is_some();
    if let Some(becomes) = becomes
        && let Err(reason) = skb::rewrite(ctx, parsed, becomes)
    {
        return skb::refuse(ctx, reason, &parsed.tuple);
    }
    let Addresses { destination, .. } = skb::addresses(ctx, parsed);
    if let Some(to) = endpoint(destination) {
        if !reply && let Err(reason) = policy::judge(parsed, &parsed.tuple, None, Some(to)) {
            return skb::refuse(ctx, reason, &parsed.tuple);
        }
        return skb::to_pod(ctx, parsed, to);
    }
    if translated && node_kind(destination) != NODE_LOCAL {
        if config.tunnel_ifindex != 0 && super::tunnel::route(destination).is_some() {
            return pod::onward(ctx, config, parsed);
        }
        return skb::by_route(ctx, parsed, config);
    }
    if !translated && announce::is_announced(destination) {
        return skb::refuse(ctx, DropReason::NoService, &parsed.tuple);
    }
    skb::pass(ctx)
}

/// What the packet becomes, if anything, and whether it answers a known flow.
#[inline(always)]
fn decide<A: Family>(
    config: &Config,
    parsed: &Parsed<A>,
) -> Result<(Option<&'static Tuple<A>>, bool), DropReason> {
    let tuple = &parsed.tuple;
    if let Some(known) = conntrack::find(parsed) {
        if known.kind != KIND_SERVICE && known.kind != KIND_MASQUERADE {
            return Ok((None, conntrack::is_reply(known)));
        }
        return Ok((Some(&known.becomes), conntrack::is_reply(known)));
    }
    if !parsed.opens() || in_cluster(config, tuple.destination) {
        let port = tuple.destination_port;
        return if comes_again(config, parsed)
            && node_kind(tuple.destination) == NODE_LOCAL
            && (conntrack::is_nat_port(port)
                || service::find(tuple.destination, port, tuple.protocol, SCOPE_EXTERNAL).is_some())
        {
            Err(DropReason::ConntrackFull)
        } else {
            Ok((None, false))
        };
    }
    let Some(choice) = nat::choose_external(parsed)? else {
        return Ok((None, false));
    };
    let becomes = nat::towards(tuple, &choice).ok_or(DropReason::ConntrackFull)?;
    nat::open_service(config, parsed, &choice, becomes, SCOPE_EXTERNAL)?;
    events::flow(tuple, becomes, EVENT_FLOW, u32::from(KIND_SERVICE), 0);
    Ok((Some(becomes), false))
}

/// At egress of the uplink: answers get back the address that the client asked, and pods get the node's.
#[inline(always)]
pub fn egress(ctx: &TcContext) -> i32 {
    let Some(config) = super::config() else {
        return skb::pass(ctx);
    };
    if skb::is_tagged(ctx) {
        return skb::pass(ctx);
    }
    match ctx.read::<[u8; 2]>(ETHER_TYPE) {
        Some(Address4::ETHER_TYPE) => to_outside::<Address4>(ctx, config, true),
        Some(Address6::ETHER_TYPE) => to_outside::<Address6>(ctx, config, true),
        _ => skb::pass(ctx),
    }
}

/// A packet to the outside or to another node, whose route is chosen by now.
#[inline(never)]
pub fn to_outside<A: Family>(ctx: &TcContext, config: &Config, masquerade: bool) -> i32 {
    let parsed = match skb::parse::<A>(ctx) {
        Ok(parsed) => parsed,
        Err(reason) => return skb::refuse_unread(ctx, reason),
    };
    let tuple = &parsed.tuple;
    let is_own = masquerade && own::asks(config, tuple);
    let becomes = if let Some(known) = conntrack::find(parsed) {
        &known.becomes
    } else if is_own {
        match own::open(config, parsed) {
            Ok(becomes) => becomes,
            Err(reason) => return skb::refuse(ctx, reason, tuple),
        }
    } else if masquerade && begins(parsed) && leaves_cluster(config, tuple) {
        match nat::open_masquerade(config, parsed, skb::ifindex(ctx)) {
            Ok(becomes) => {
                events::flow(tuple, becomes, EVENT_FLOW, u32::from(KIND_MASQUERADE), 0);
                becomes
            }
            Err(reason) => return skb::refuse(ctx, reason, tuple),
        }
    } else if masquerade && comes_again(config, parsed) && leaves_cluster(config, tuple) {
        return skb::refuse(ctx, DropReason::ConntrackFull, tuple);
    } else {
        return skb::pass(ctx);
    };
    let same_destination =
        becomes.destination.same(tuple.destination) && becomes.destination_port == tuple.destination_port;
    // A backend in the node's network may differ from its service in the port only.
    let same_source = becomes.source.same(tuple.source) && becomes.source_port == tuple.source_port;
    // A new destination would leave by the wrong way, unless it is sent by another.
    if (is_own || same_destination && !same_source)
        && let Err(reason) = skb::rewrite(ctx, parsed, becomes)
    {
        return skb::refuse(ctx, reason, &parsed.tuple);
    }
    if is_own {
        return own::send(ctx, config, parsed);
    }
    skb::pass(ctx)
}

/// Whether a packet may be the first of a masqueraded flow: not one that answers, for then its client has reached the pod
/// by the pod's own address, and not what a routing header sends on, whose checksum is not about the packet's addresses.
#[inline(always)]
fn begins<A: Family>(parsed: &Parsed<A>) -> bool {
    parsed.opens() && (A::HAS_CHECKSUM || parsed.tuple.protocol != ROUTING)
}

/// Whether a packet that has no flow may have one in a moment, while maps move: then it is dropped, and sent again.
#[inline(always)]
fn comes_again<A: Family>(config: &Config, parsed: &Parsed<A>) -> bool {
    config.flags & CONFIG_MOVING != 0 && parsed.tuple.protocol == PROTOCOL_TCP && !parsed.opens()
}

/// Whether a packet goes from a local pod to somewhere that cannot answer a pod.
#[inline(always)]
fn leaves_cluster<A: Family>(config: &Config, tuple: &Tuple<A>) -> bool {
    endpoint(tuple.source).is_some()
        && !in_cluster(config, tuple.destination)
        && node_kind(tuple.destination) == 0
}
