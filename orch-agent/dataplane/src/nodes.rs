//! The way to other nodes: every node's addresses in the maps, and for each one's pods a route or a place in the
//! tunnel.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
};

use aya::maps::{HashMap as BpfHashMap, LpmTrie, MapData, lpm_trie::Key};
use ipnet::IpNet;
use orch_ebpf::{
    Address6,
    config::{NODE_LOCAL, NODE_REMOTE, NODES_MAP, Node, ROUTES_MAP, Route},
};

use crate::{
    DataplaneError,
    config::Tunnel,
    maps::{MapAddress, failed, gone_or},
    model::RemoteNode,
    netlink::{Fits, Hop},
    shared::Shared,
    tunnel,
};

/// What is known of the other nodes.
#[derive(Debug, Default)]
pub struct Remote {
    /// `None` until the API server has told: what the maps and routes say then stays.
    nodes: Option<Vec<RemoteNode>>,
    /// Nodes that have been complained about.
    unreachable: HashSet<String>,
    /// Whether the tunnel of an agent before this one is gone, where there should be none.
    untunnelled: bool,
}

/// Makes addresses and routes what they should be for these nodes; only differences are written.
///
/// # Errors
/// When the kernel refuses; a node that cannot be reached directly is only warned about.
pub async fn sync(shared: &Shared, nodes: &[RemoteNode]) -> Result<(), DataplaneError> {
    shared.remote.lock().await.nodes = Some(nodes.to_vec());
    refresh(shared).await
}

/// The same for the nodes that were known last.
///
/// # Errors
/// When the kernel refuses.
pub async fn refresh(shared: &Shared) -> Result<(), DataplaneError> {
    let mut remote = shared.remote.lock().await;
    let Remote {
        nodes,
        unreachable,
        untunnelled,
    } = &mut *remote;
    put_addresses(shared, nodes.as_deref())?;
    if let Some(nodes) = nodes {
        if shared.config.tunnel == Tunnel::Off {
            put_routes(shared, nodes, unreachable).await?;
            if !*untunnelled {
                tunnel::remove(shared).await?;
                *untunnelled = true;
            }
            return put_tunnel_routes(shared, nodes);
        }
        put_tunnel_routes(shared, nodes)?;
        put_routes(shared, nodes, unreachable).await?;
    }
    Ok(())
}

fn put_addresses(shared: &Shared, nodes: Option<&[RemoteNode]>) -> Result<(), DataplaneError> {
    let uplinks = shared.uplinks();
    let remote: Option<Vec<IpAddr>> = nodes.map(|nodes| {
        let all = nodes.iter().flat_map(|node| node.addresses.iter().copied());
        all.collect()
    });
    let local: Vec<IpAddr> = uplinks.local().iter().copied().collect();
    let mut maps = shared.maps.lock();
    let maps = &mut *maps;
    put_family(&mut maps.v4.nodes, &local, remote.as_deref())?;
    put_family(&mut maps.v6.nodes, &local, remote.as_deref())
}

fn put_family<A: MapAddress>(
    map: &mut BpfHashMap<MapData, A, Node>,
    local: &[IpAddr],
    remote: Option<&[IpAddr]>,
) -> Result<(), DataplaneError> {
    let of_kind = |ips: &[IpAddr], kind: u32| -> Vec<(A, Node)> {
        ips.iter()
            .filter_map(|ip| Some((A::from_ip(*ip)?, Node { kind })))
            .collect()
    };
    let mut desired: BTreeMap<A, Node> = of_kind(remote.unwrap_or_default(), NODE_REMOTE)
        .into_iter()
        .collect();
    desired.extend(of_kind(local, NODE_LOCAL));
    let actual: HashMap<A, Node> = map.iter().collect::<Result<_, _>>().map_err(failed(NODES_MAP))?;
    for (address, node) in &desired {
        if actual.get(address) != Some(node) {
            map.insert(*address, *node, 0).map_err(failed(NODES_MAP))?;
        }
    }
    for (address, node) in &actual {
        let known = remote.is_some() || node.kind == NODE_LOCAL;
        if known && !desired.contains_key(address) {
            gone_or(map.remove(address)).map_err(failed(NODES_MAP))?;
        }
    }
    Ok(())
}

/// What goes through the tunnel to which node: its pods, and for our pods its own addresses.
fn tunnelled(shared: &Shared, nodes: &[RemoteNode]) -> BTreeMap<IpNet, Route> {
    let Some(own) = shared
        .config
        .node_ips
        .first()
        .filter(|_| shared.config.tunnel == Tunnel::Vxlan)
    else {
        return BTreeMap::new();
    };
    let mut routes = BTreeMap::new();
    for node in nodes {
        let Some(outer) = node.address_like(*own) else {
            continue;
        };
        let route = match outer {
            IpAddr::V4(ip) => {
                let mut node = Address6::default();
                node[..4].copy_from_slice(&ip.octets());
                Route { node, family: 4 }
            }
            IpAddr::V6(ip) => Route {
                node: ip.octets(),
                family: 6,
            },
        };
        let addresses = node.addresses.iter().map(|ip| IpNet::from(*ip));
        routes.extend(
            node.pod_cidrs
                .iter()
                .copied()
                .chain(addresses)
                .map(|net| (net, route)),
        );
    }
    routes
}

fn put_tunnel_routes(shared: &Shared, nodes: &[RemoteNode]) -> Result<(), DataplaneError> {
    let desired = tunnelled(shared, nodes);
    let mut maps = shared.maps.lock();
    let maps = &mut *maps;
    put_trie(&mut maps.v4.routes, &desired)?;
    put_trie(&mut maps.v6.routes, &desired)
}

fn put_trie<A: MapAddress>(
    map: &mut LpmTrie<MapData, A, Route>,
    desired: &BTreeMap<IpNet, Route>,
) -> Result<(), DataplaneError> {
    let desired: BTreeMap<(u32, A), Route> = desired
        .iter()
        .filter_map(|(net, route)| Some(((net.prefix_len().into(), A::from_ip(net.network())?), *route)))
        .collect();
    let actual: HashMap<(u32, A), Route> = map
        .iter()
        .map(|entry| entry.map(|(key, route)| ((key.prefix_len(), key.data()), route)))
        .collect::<Result<_, _>>()
        .map_err(failed(ROUTES_MAP))?;
    for ((length, address), route) in &desired {
        if actual.get(&(*length, *address)) != Some(route) {
            map.insert(&Key::new(*length, *address), *route, 0)
                .map_err(failed(ROUTES_MAP))?;
        }
    }
    for (length, address) in actual.keys().filter(|key| !desired.contains_key(*key)) {
        gone_or(map.remove(&Key::new(*length, *address))).map_err(failed(ROUTES_MAP))?;
    }
    Ok(())
}

/// The routes of the node's own network stack.
async fn put_routes(
    shared: &Shared,
    nodes: &[RemoteNode],
    unreachable: &mut HashSet<String>,
) -> Result<(), DataplaneError> {
    let config = &shared.config;
    let device = match config.tunnel {
        Tunnel::Vxlan => shared
            .netlink
            .interface(tunnel::DEVICE)
            .await?
            .map(|found| found.index),
        Tunnel::Off => None,
    };
    let actual: BTreeMap<IpNet, Hop> = shared
        .netlink
        .own_routes()
        .await?
        .into_iter()
        // The others lead to pods of this node.
        .filter(|(_, hop)| {
            matches!(hop, Hop::Gateway(_)) || device.is_some_and(|index| *hop == Hop::Device(index))
        })
        .collect();
    let mut desired = HashSet::new();
    let mut complaints = HashSet::new();
    for node in nodes {
        for net in &node.pod_cidrs {
            let outer = match device {
                Some(_) => config.node_ips.first().and_then(|own| node.address_like(*own)),
                None => node.address_like(net.addr()),
            };
            let Some(outer) = outer else {
                complain(
                    unreachable,
                    &mut complaints,
                    node,
                    "it has no address of the family",
                );
                continue;
            };
            desired.insert(*net);
            let hop = device.map_or(Hop::Gateway(outer), Hop::Device);
            if actual.get(net) == Some(&hop) {
                continue;
            }
            let put = match hop {
                Hop::Device(index) => {
                    let source = config.node_ip_like(net.addr());
                    shared.netlink.route_direct(*net, index, source).await
                }
                Hop::Gateway(gateway) => {
                    shared
                        .netlink
                        .route_via(*net, gateway, None, Fits::default())
                        .await
                }
            };
            if let Err(error) = put {
                tracing::debug!(node = node.name, %error, "no route");
                let why = "it is on no network of this node's: run the agents with --tunnel vxlan";
                complain(unreachable, &mut complaints, node, why);
            }
        }
    }
    *unreachable = complaints;
    for net in actual.keys().filter(|net| !desired.contains(*net)) {
        shared.netlink.remove_route(*net).await?;
    }
    Ok(())
}

/// Says once that a node's pods cannot be reached.
fn complain(known: &HashSet<String>, now: &mut HashSet<String>, node: &RemoteNode, why: &str) {
    if now.insert(node.name.clone()) && !known.contains(&node.name) {
        tracing::warn!(node = node.name, addresses = ?node.addresses, "the node's pods cannot be reached: {why}");
    }
}
