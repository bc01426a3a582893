//! The way to other nodes: their addresses in a map, and a route for each one's pods.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;
use orch_ebpf::{
    Address,
    config::{NODE_LOCAL, NODE_REMOTE, NODES_MAP, Node},
};

use crate::{
    DataplaneError,
    maps::{failed, gone_or},
    model::RemoteNode,
    shared::Shared,
};

/// Makes addresses and routes what they should be; only differences are written.
///
/// # Errors
/// When the kernel refuses; a node that cannot be reached directly is only warned about.
pub async fn sync(shared: &Shared, nodes: &[RemoteNode]) -> Result<(), DataplaneError> {
    let mut addresses: BTreeMap<Address, Node> = BTreeMap::new();
    for node in nodes {
        addresses.extend(
            node.addresses
                .iter()
                .map(|address| (address.octets(), Node { kind: NODE_REMOTE })),
        );
    }
    addresses.extend(local(shared).await?);
    put_addresses(shared, &addresses)?;

    let desired: BTreeMap<Ipv4Net, Ipv4Addr> = nodes
        .iter()
        .filter_map(|node| Some((node.pod_cidr?.trunc(), *node.addresses.first()?)))
        .collect();
    let actual: BTreeMap<Ipv4Net, Ipv4Addr> =
        shared.netlink.own_gateway_routes().await?.into_iter().collect();
    for (net, gateway) in &desired {
        if actual.get(net) == Some(gateway) {
            continue;
        }
        if let Err(error) = shared
            .netlink
            .route_via(*net, *gateway, shared.uplink.index)
            .await
        {
            tracing::warn!(%error, "a node is on no network of the uplink: its pods cannot be reached");
        }
    }
    for net in actual.keys().filter(|net| !desired.contains_key(net)) {
        shared.netlink.remove_route(*net).await?;
    }
    Ok(())
}

async fn local(shared: &Shared) -> Result<BTreeMap<Address, Node>, DataplaneError> {
    let own = shared.netlink.addresses(shared.uplink.index).await?;
    let all = own.into_iter().chain([shared.config.node_ip]);
    Ok(all
        .map(|address| (address.octets(), Node { kind: NODE_LOCAL }))
        .collect())
}

/// Writes this node's addresses without touching what is known of others: the API server may be away.
///
/// # Errors
/// When the kernel refuses.
pub async fn own_addresses(shared: &Shared) -> Result<(), DataplaneError> {
    let local = local(shared).await?;
    let mut maps = shared.maps.lock();
    for (address, node) in local {
        maps.nodes.insert(address, node, 0).map_err(failed(NODES_MAP))?;
    }
    Ok(())
}

fn put_addresses(shared: &Shared, desired: &BTreeMap<Address, Node>) -> Result<(), DataplaneError> {
    let mut maps = shared.maps.lock();
    let actual: HashMap<Address, Node> = maps
        .nodes
        .iter()
        .collect::<Result<_, _>>()
        .map_err(failed(NODES_MAP))?;
    for (address, node) in desired {
        if actual.get(address) != Some(node) {
            maps.nodes.insert(address, node, 0).map_err(failed(NODES_MAP))?;
        }
    }
    for address in actual.keys().filter(|address| !desired.contains_key(*address)) {
        gone_or(maps.nodes.remove(address)).map_err(failed(NODES_MAP))?;
    }
    Ok(())
}
