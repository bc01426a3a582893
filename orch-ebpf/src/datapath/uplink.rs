//! The way of a packet that comes in or goes out by the node's uplink.

use aya_ebpf::programs::TcContext;

use super::{
    conntrack, nat, node_kind,
    parse::{self, Parsed},
    pod::endpoint,
    service, skb, within,
};
use crate::{
    config::{Config, NODE_LOCAL},
    conntrack::Tuple,
    event::DropReason,
    service::SCOPE_EXTERNAL,
};

/// At ingress of the uplink: services for clients outside, answers to translated flows, packets for local pods.
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
    let becomes = match decide(config, &parsed) {
        Ok(becomes) => becomes,
        Err(reason) => return skb::refuse(ctx, reason, parsed.tuple),
    };
    if let Some(becomes) = becomes
        && let Err(reason) = skb::rewrite(ctx, &mut parsed, becomes)
    {
        return skb::refuse(ctx, reason, parsed.tuple);
    }
    if let Some(endpoint) = endpoint(parsed.tuple.destination) {
        return skb::to_pod(ctx, &parsed, endpoint);
    }
    if becomes.is_some() && node_kind(parsed.tuple.destination) != NODE_LOCAL {
        return skb::to_node(ctx, &parsed, config);
    }
    skb::pass(ctx)
}

/// What the packet becomes, if anything: the steps that XDP shares.
#[inline(always)]
pub fn decide(config: &Config, parsed: &Parsed) -> Result<Option<Tuple>, DropReason> {
    if let Some(known) = conntrack::find(parsed) {
        return Ok(Some(known.becomes));
    }
    let tuple = &parsed.tuple;
    if !parsed.opens() || within(tuple.destination, config.cluster_address, config.cluster_mask) {
        return Ok(None);
    }
    match service::find(
        tuple.destination,
        tuple.destination_port,
        tuple.protocol,
        SCOPE_EXTERNAL,
    ) {
        Some(service) => nat::open_service(config, parsed, &service, SCOPE_EXTERNAL).map(Some),
        None => Ok(None),
    }
}

/// At egress of the uplink: answers get back the address that the client asked, and pods get the node's.
#[inline(always)]
pub fn egress(ctx: &TcContext) -> i32 {
    let Some(config) = super::config() else {
        return skb::pass(ctx);
    };
    let mut parsed = match parse::parse(ctx) {
        Ok(Some(parsed)) => parsed,
        Ok(None) => return skb::pass(ctx),
        Err(reason) => return skb::refuse(ctx, reason, Tuple::default()),
    };
    let tuple = parsed.tuple;
    let becomes = if let Some(known) = conntrack::find(&parsed) {
        known.becomes
    } else if leaves_cluster(config, &tuple) {
        match nat::open_masquerade(config, &parsed) {
            Ok(becomes) => becomes,
            Err(reason) => return skb::refuse(ctx, reason, tuple),
        }
    } else {
        return skb::pass(ctx);
    };
    let same_destination = u32::from_ne_bytes(becomes.destination) == u32::from_ne_bytes(tuple.destination)
        && becomes.destination_port == tuple.destination_port;
    // The route is chosen by now: a new destination would leave by the wrong way.
    if same_destination && let Err(reason) = skb::rewrite(ctx, &mut parsed, becomes) {
        return skb::refuse(ctx, reason, tuple);
    }
    skb::pass(ctx)
}

/// Whether a packet goes from a local pod to somewhere that cannot answer a pod.
#[inline(always)]
fn leaves_cluster(config: &Config, tuple: &Tuple) -> bool {
    endpoint(tuple.source).is_some()
        && !within(tuple.destination, config.cluster_address, config.cluster_mask)
        && node_kind(tuple.destination) == 0
}
