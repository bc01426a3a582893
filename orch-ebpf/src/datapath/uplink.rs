//! The way of a packet that comes in or goes out by the node's uplink.

use aya_ebpf::programs::TcContext;

use super::{
    announce, carry, conntrack, events,
    family::{Family, endpoint, in_cluster, node_kind},
    nat, own,
    parse::{Bytes as _, ETHER_TYPE, ETHERNET, Parsed, v6::ROUTING},
    pod, policy, service,
    skb::{self, Addresses},
    too_big,
    unpack::{self, Arrival},
};
use crate::{
    Address4, Address6, PROTOCOL_TCP,
    config::{CONFIG_MOVING, Config, NODE_LOCAL},
    conntrack::{KIND_DIRECT, KIND_MASQUERADE, KIND_SERVICE, Tuple},
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
    let arrival = match unpack::unpack(ctx, config, parsed) {
        Ok(arrival) => arrival,
        Err(reason) => return skb::refuse(ctx, reason, &parsed.tuple),
    };
    let arrived = parsed.tuple.destination;
    let (becomes, way) = match decide(config, parsed, arrival) {
        Ok(decision) => decision,
        // The node's own address on a port without backends: its stack says so to the client.
        Err(DropReason::NoBackend) if node_kind(arrived) == NODE_LOCAL => {
            events::count_refusal(DropReason::NoBackend, ctx.length());
            return skb::pass(ctx);
        }
        Err(reason) => return skb::refuse(ctx, reason, &parsed.tuple),
    };
    if let Some(becomes) = becomes
        && way == Way::Direct
    {
        return carry::send(ctx, config, parsed, &becomes.destination);
    }
    if let Some(becomes) = becomes
        && is_too_big(ctx, config, parsed, becomes)
    {
        return too_big::tell(ctx, config, parsed, config.tunnel_mtu);
    }
    let translated = becomes.is_some();
    if let Some(becomes) = becomes
        && let Err(reason) = skb::rewrite(ctx, parsed, becomes)
    {
        return skb::refuse(ctx, reason, &parsed.tuple);
    }
    let Addresses { destination, .. } = skb::addresses(ctx, parsed);
    if let Some(to) = endpoint(destination) {
        if way != Way::Answer
            && let Err(reason) = policy::judge(parsed, &parsed.tuple, None, Some(to))
        {
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

/// Whether a packet that becomes one for another node must not be cut, and does not fit through the tunnel. The stack would
/// tell the sender that it then has, which is this node.
#[inline(never)]
fn is_too_big<A: Family>(ctx: &TcContext, config: &Config, parsed: &Parsed<A>, becomes: &Tuple<A>) -> bool {
    const DO_NOT_FRAGMENT: u8 = 0x40;
    config.tunnel_ifindex != 0
        && carry::longest(ctx, parsed) > config.tunnel_mtu as usize
        && super::tunnel::route(becomes.destination).is_some()
        && (!A::HAS_CHECKSUM
            || ctx
                .read::<u8>(ETHERNET + 6)
                .is_some_and(|flags| flags & DO_NOT_FRAGMENT != 0))
}

/// What a packet from outside is of its flow, and so what comes of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Of the side that opens the flow.
    Original,
    /// Of the other side.
    Answer,
    /// Of the side that opens the flow, and to be sent on as it is.
    Direct,
}

/// What the packet becomes, if anything, and what it is of its flow.
#[inline(always)]
fn decide<A: Family>(
    config: &Config,
    parsed: &Parsed<A>,
    arrival: Arrival<A>,
) -> Result<(Option<&'static Tuple<A>>, Way), DropReason> {
    let tuple = &parsed.tuple;
    let carried = !arrival.carrier().same(A::ANY);
    // What another node has sent on has its backend here, whatever was known of the flow when it came in by this one.
    if let Some(known) = conntrack::find(parsed).filter(|known| !carried || known.kind == KIND_SERVICE) {
        if known.kind == KIND_DIRECT {
            return Ok((Some(&known.becomes), Way::Direct));
        }
        let way = if conntrack::is_reply(known) {
            Way::Answer
        } else {
            Way::Original
        };
        if known.kind != KIND_SERVICE && known.kind != KIND_MASQUERADE {
            return Ok((None, way));
        }
        return Ok((Some(conntrack::becomes(parsed, known)), way));
    }
    let moving = comes_again(config, parsed);
    if carried {
        if moving {
            return Err(DropReason::ConntrackFull);
        }
        unpack::open(config, parsed, arrival.carrier())?;
        return Ok((Some(arrival.opened()), Way::Original));
    }
    let opens = parsed.opens() || (parsed.joins() && !moving && nat::is_direct(config, tuple.source));
    if !opens || in_cluster(config, tuple.destination) {
        let port = tuple.destination_port;
        return if moving
            && node_kind(tuple.destination) == NODE_LOCAL
            && (conntrack::is_nat_port(port)
                || service::find(tuple.destination, port, tuple.protocol, SCOPE_EXTERNAL).is_some())
        {
            Err(DropReason::ConntrackFull)
        } else {
            Ok((None, Way::Original))
        };
    }
    let Some(choice) = nat::choose_external(parsed)? else {
        return Ok((None, Way::Original));
    };
    let becomes = nat::towards(tuple, &choice).ok_or(DropReason::ConntrackFull)?;
    let kind = nat::open_external(config, parsed, &choice, becomes)?;
    events::flow(tuple, becomes, EVENT_FLOW, u32::from(kind), 0);
    let way = if kind == KIND_DIRECT {
        Way::Direct
    } else {
        Way::Original
    };
    Ok((Some(becomes), way))
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
