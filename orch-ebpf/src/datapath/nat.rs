//! Opening the flows that need translation: services as packets, and masquerade.

use super::{
    conntrack,
    family::{Family, in_cluster, node_kind},
    parse::{Parsed, Ports},
    service::{self, Choice, Client},
};
use crate::{
    config::{CONFIG_DSR, Config, UplinkKey},
    conntrack::{KIND_DIRECT, KIND_MASQUERADE, KIND_SERVICE, Tuple},
    event::DropReason,
    service::{BACKEND_LOCAL, SCOPE_EXTERNAL},
};

/// The packet's tuple with the chosen backend as its destination, in scratch memory.
#[inline(always)]
pub fn towards<A: Family>(tuple: &Tuple<A>, choice: &Choice<A>) -> Option<&'static mut Tuple<A>> {
    let scratch = A::scratch().get_ptr_mut(0)?;
    // SAFETY: the slot is this CPU's own for the run, and one flow at a time is opened.
    let becomes = unsafe { &mut (*scratch).becomes };
    *becomes = Tuple {
        destination: choice.backend.address,
        destination_port: choice.backend.port,
        ..*tuple
    };
    Some(becomes)
}

/// Whether a client's packets go to their backend's node as they are, to be answered from there. Nodes and pods are not
/// such clients: the backend's node may be the client's, whose stack would take the answer for one from the backend.
#[inline(always)]
pub fn is_direct<A: Family>(config: &Config, client: A) -> bool {
    config.flags & CONFIG_DSR != 0 && !in_cluster(config, client) && node_kind(client) == 0
}

/// Opens a flow from outside to a chosen backend; `becomes` is [`towards`] it and then what the first packet becomes. Says
/// of which kind the flow is.
///
/// # Errors
/// When no port is free, or the flow cannot be remembered.
#[inline(always)]
pub fn open_external<A: Family>(
    config: &Config,
    parsed: &Parsed<A>,
    choice: &Choice<A>,
    becomes: &mut Tuple<A>,
) -> Result<u8, DropReason> {
    if choice.backend.flags & BACKEND_LOCAL == 0 && is_direct(config, parsed.tuple.source) {
        conntrack::open_direct(parsed, becomes, choice.id)?;
        return Ok(KIND_DIRECT);
    }
    open_service(config, parsed, choice, becomes, SCOPE_EXTERNAL)?;
    Ok(KIND_SERVICE)
}

/// Opens a flow to a chosen backend; `becomes` is [`towards`] it and then what the first packet becomes.
///
/// From outside, a backend on another node must answer through this node, and a pod that reaches itself must not see
/// its own address as the sender: both get the node's address as their source.
///
/// # Errors
/// When no port is free, or the flow cannot be remembered.
#[inline(always)]
pub fn open_service<A: Family>(
    config: &Config,
    parsed: &Parsed<A>,
    choice: &Choice<A>,
    becomes: &mut Tuple<A>,
    scope: u8,
) -> Result<(), DropReason> {
    let through_node = (scope == SCOPE_EXTERNAL && choice.backend.flags & BACKEND_LOCAL == 0)
        || choice.backend.address.same(parsed.tuple.source);
    if through_node {
        // Nodes know each other by these.
        let address = A::settings(config).node_address;
        conntrack::open_from_node(address, parsed, becomes, choice.id, KIND_SERVICE)
    } else {
        conntrack::open(parsed, becomes, choice.id, KIND_SERVICE)
    }
}

/// The service for a packet from outside and its backend, if the packet is for one.
///
/// # Errors
/// When the source may not use the service, or it has no backend.
#[inline(always)]
pub fn choose_external<A: Family>(parsed: &Parsed<A>) -> Result<Option<Choice<A>>, DropReason> {
    let tuple = &parsed.tuple;
    let found = service::find(
        tuple.destination,
        tuple.destination_port,
        tuple.protocol,
        SCOPE_EXTERNAL,
    );
    let Some(service) = found else {
        return Ok(None);
    };
    service::admit(service, tuple.source)?;
    service::choose(service, &Client::Address(tuple.source), service::hash(tuple)).map(Some)
}

/// Opens a pod's flow to the outside by the uplink `ifindex`, and says what its first packet becomes.
///
/// # Errors
/// When no port is free, or the flow cannot be remembered.
#[inline(always)]
pub fn open_masquerade<A: Family>(
    config: &Config,
    parsed: &Parsed<A>,
    ifindex: u32,
) -> Result<&'static Tuple<A>, DropReason> {
    let scratch = A::scratch().get_ptr_mut(0).ok_or(DropReason::ConntrackFull)?;
    // SAFETY: the slot is this CPU's own for the run, and one flow at a time is opened.
    let becomes = unsafe { &mut (*scratch).becomes };
    *becomes = parsed.tuple;
    // SAFETY: copied at once; the agent replaces whole values.
    let uplink = unsafe { A::uplinks().get(UplinkKey { ifindex }) };
    let address = uplink.map_or(A::settings(config).node_address, |uplink| uplink.address);
    if parsed.ports == Ports::None || parsed.ports == Ports::EchoReply {
        // Without a port to choose, the address alone tells the flow: one pod at a time per protocol and peer.
        becomes.source = address;
        conntrack::open(parsed, becomes, 0, KIND_MASQUERADE)?;
    } else {
        // Where it has one, the answers are a service's, see `conntrack::becomes`.
        let backend = conntrack::asked_backend(&parsed.tuple);
        conntrack::open_from_node(address, parsed, becomes, backend, KIND_MASQUERADE)?;
    }
    Ok(becomes)
}
