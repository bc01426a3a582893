//! The node's own packets to ClusterIPs: of what has no socket that the hooks see (SCTP, raw sockets, processes outside of
//! the cgroup). The stack sends them to the uplink, since it knows no such network.

use aya_ebpf::programs::TcContext;

use super::{
    events,
    family::{Family, endpoint, in_services, node_kind},
    nat,
    parse::Parsed,
    service::{self, Client},
    skb::{self, Addresses},
};
use crate::{
    config::{Config, NODE_LOCAL},
    conntrack::{KIND_SERVICE, Tuple},
    event::{DropReason, EVENT_FLOW},
    service::SCOPE_INTERNAL,
};

/// Whether it is the node that speaks to a ClusterIP.
#[inline(always)]
pub fn asks<A: Family>(config: &Config, tuple: &Tuple<A>) -> bool {
    in_services(config, tuple.destination) && node_kind(tuple.source) == NODE_LOCAL
}

/// Opens such a packet's flow and says what the packet becomes.
///
/// # Errors
/// When there is no such service or no backend, or the flow cannot be remembered.
#[inline(always)]
pub fn open<A: Family>(config: &Config, parsed: &Parsed<A>) -> Result<&'static Tuple<A>, DropReason> {
    let tuple = &parsed.tuple;
    let (port, protocol) = (tuple.destination_port, tuple.protocol);
    let found = service::find(tuple.destination, port, protocol, SCOPE_INTERNAL);
    let service = found.filter(|_| parsed.opens()).ok_or(DropReason::NoService)?;
    let choice = service::choose(service, &Client::Address(tuple.source), service::random())?;
    // A backend on this node's own network would answer past every program.
    if node_kind(choice.backend.address) == NODE_LOCAL {
        return Err(DropReason::NoBackend);
    }
    let becomes = nat::towards(tuple, &choice).ok_or(DropReason::ConntrackFull)?;
    nat::open_service(config, parsed, &choice, becomes, SCOPE_INTERNAL)?;
    events::flow(tuple, becomes, EVENT_FLOW, u32::from(KIND_SERVICE), 0);
    Ok(becomes)
}

/// Sends such a packet to the backend that it is for now.
#[inline(always)]
pub fn send<A: Family>(ctx: &TcContext, config: &Config, parsed: &Parsed<A>) -> i32 {
    let Addresses { destination, .. } = skb::addresses(ctx, parsed);
    if let Some(to) = endpoint(destination) {
        return skb::through(ctx, parsed, to);
    }
    if config.tunnel_ifindex != 0
        && let Some(route) = super::tunnel::route(destination)
    {
        return skb::to_tunnel(ctx, parsed, config, route);
    }
    skb::by_route(ctx, parsed, config)
}
