//! Opening the flows that need translation: services as packets, and masquerade.

use super::{
    conntrack,
    parse::{Parsed, Ports},
    service::{self, Client},
};
use crate::{
    config::Config,
    conntrack::{KIND_MASQUERADE, KIND_SERVICE, Tuple},
    event::DropReason,
    service::{BACKEND_LOCAL, CLIENT_ADDRESS, SCOPE_EXTERNAL, Service},
};

/// Opens a flow to one of the service's backends and says what its first packet becomes.
///
/// From outside, a backend on another node must answer through this node, and a pod that reaches itself must not see
/// its own address as the sender: both get the node's address as their source.
#[inline(always)]
pub fn open_service(
    config: &Config,
    parsed: &Parsed,
    service: &Service,
    scope: u8,
) -> Result<Tuple, DropReason> {
    let tuple = &parsed.tuple;
    let client = Client {
        id: u64::from(u32::from_ne_bytes(tuple.source)),
        kind: CLIENT_ADDRESS,
    };
    let choice = service::choose(service, client, service::random())?;
    let backend = &choice.backend;
    let becomes = Tuple {
        destination: backend.address,
        destination_port: backend.port,
        ..*tuple
    };
    let through_node = (scope == SCOPE_EXTERNAL && backend.flags & BACKEND_LOCAL == 0)
        || u32::from_ne_bytes(backend.address) == u32::from_ne_bytes(tuple.source);
    if through_node {
        return conntrack::open_from(parsed, becomes, config.node_address, choice.id, KIND_SERVICE);
    }
    conntrack::open(parsed, becomes, choice.id, KIND_SERVICE)?;
    Ok(becomes)
}

/// Opens a pod's flow to the outside and says what its first packet becomes.
#[inline(always)]
pub fn open_masquerade(config: &Config, parsed: &Parsed) -> Result<Tuple, DropReason> {
    let tuple = parsed.tuple;
    if parsed.ports == Ports::None || parsed.ports == Ports::EchoReply {
        // Without a port to choose, the address alone tells the flow: one pod at a time per protocol and peer.
        let becomes = Tuple {
            source: config.node_address,
            ..tuple
        };
        conntrack::open(parsed, becomes, 0, KIND_MASQUERADE)?;
        return Ok(becomes);
    }
    conntrack::open_from(parsed, tuple, config.node_address, 0, KIND_MASQUERADE)
}
