//! The way of a packet that a pod has sent.

use aya_ebpf::programs::TcContext;

use super::{
    conntrack, maps, nat, node_kind,
    parse::{self, Parsed},
    service, skb, within,
};
use crate::{
    Address,
    config::{Config, NODE_LOCAL},
    conntrack::{KIND_MASQUERADE, Tuple},
    endpoint::Endpoint,
    event::DropReason,
    service::SCOPE_INTERNAL,
};

/// The local pod with this address.
#[inline(always)]
pub fn endpoint(address: Address) -> Option<&'static Endpoint> {
    // SAFETY: the agent writes an endpoint once, before its pod runs, and removes it after the pod's interface.
    unsafe { maps::ORCH_ENDPOINTS.get(address) }
}

/// At ingress of the node's side of a pod's veth pair.
#[inline(always)]
pub fn ingress(ctx: &TcContext) -> i32 {
    let Some(config) = super::config() else {
        return skb::pass(ctx);
    };
    let mut parsed = match parse::parse(ctx) {
        Ok(Some(parsed)) => parsed,
        Ok(None) => return skb::pass(ctx),
        Err(reason) => return skb::refuse(ctx, reason, Tuple::default()),
    };
    if !endpoint(parsed.tuple.source).is_some_and(|endpoint| endpoint.ifindex == skb::ifindex(ctx)) {
        return skb::refuse(ctx, DropReason::SpoofedSource, parsed.tuple);
    }
    if let Err(reason) = translate(ctx, config, &mut parsed) {
        return skb::refuse(ctx, reason, parsed.tuple);
    }
    forward(ctx, config, &parsed)
}

#[inline(always)]
fn translate(ctx: &TcContext, config: &Config, parsed: &mut Parsed) -> Result<(), DropReason> {
    let tuple = parsed.tuple;
    if let Some(known) = conntrack::find(parsed) {
        let becomes = known.becomes;
        let redirected = u32::from_ne_bytes(becomes.destination) != u32::from_ne_bytes(tuple.destination)
            || becomes.destination_port != tuple.destination_port;
        // What changes only the source on its way out is rewritten when it leaves by the uplink: the stack refuses
        // its own address as the source of a packet that comes in.
        if known.kind != KIND_MASQUERADE && (redirected || endpoint(becomes.destination).is_some()) {
            skb::rewrite(ctx, parsed, becomes)?;
        }
        return Ok(());
    }
    if !parsed.opens() || within(tuple.destination, config.cluster_address, config.cluster_mask) {
        return Ok(());
    }
    let Some(service) = service::find(
        tuple.destination,
        tuple.destination_port,
        tuple.protocol,
        SCOPE_INTERNAL,
    ) else {
        if within(tuple.destination, config.service_address, config.service_mask)
            && u32::from_ne_bytes(tuple.destination) != u32::from_ne_bytes(config.dns_address)
        {
            return Err(DropReason::NoService);
        }
        return Ok(());
    };
    let becomes = nat::open_service(config, parsed, &service, SCOPE_INTERNAL)?;
    skb::rewrite(ctx, parsed, becomes)
}

#[inline(always)]
fn forward(ctx: &TcContext, config: &Config, parsed: &Parsed) -> i32 {
    let destination = parsed.tuple.destination;
    if let Some(endpoint) = endpoint(destination) {
        return skb::to_pod(ctx, parsed, endpoint);
    }
    let own_source = u32::from_ne_bytes(parsed.tuple.source) == u32::from_ne_bytes(config.node_address);
    if own_source && node_kind(destination) != NODE_LOCAL {
        return skb::to_node(ctx, parsed, config);
    }
    if within(destination, config.cluster_address, config.cluster_mask)
        && parsed.ttl > 1
        && skb::fits(ctx, config)
    {
        return skb::to_node(ctx, parsed, config);
    }
    skb::pass(ctx)
}
