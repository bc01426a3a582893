//! The node: its pods, their limits, other nodes, the tunnel, announced addresses, settings and counters.

use aya::maps::{Array, MapData, PerCpuArray, lpm_trie::Key};
use orch_ebpf::{
    Address,
    bandwidth::{BUCKETS_MAP, Bucket, BucketKey},
    config::{
        ANNOUNCED_MAP, Announced, CONFIG_DROPS, CONFIG_DSR, CONFIG_FLOWS, CONFIG_MAP, CONFIG_MOVING,
        CONFIG_MULTIHOMED, CONFIG_UNPACK, Config, FamilyConfig, NODE_LOCAL, NODES_MAP, Node, ROUTES_MAP,
        Route, UPLINKS_MAP, Uplink, UplinkKey,
    },
    endpoint::{ENDPOINTS_MAP, Endpoint, ISOLATED_EGRESS, ISOLATED_INGRESS, LIMITED_EGRESS, LIMITED_INGRESS},
    event::{Counter, DropReason, METRICS_MAP, METRICS_PATHS, Path as Way},
    policy::INGRESS,
};
use serde_json::json;

use super::{Pins, Table, both, counter, flags, mac, network, table::row, wide};
use crate::{
    DataplaneError,
    maps::{MapAddress, failed},
};

pub(super) fn endpoints(pins: &Pins<'_>) -> Result<Table, DataplaneError> {
    let columns = ["address", "interface", "mac", "policy", "options", "pod"];
    both!(Table::new(&columns), endpoints_of, pins)
}

fn endpoints_of<A: MapAddress>(pins: &Pins<'_>, table: &mut Table) -> Result<(), DataplaneError> {
    for (address, endpoint) in pins.hash::<A, Endpoint, _>(ENDPOINTS_MAP, A::SUFFIX, |address, _| *address)? {
        let options = flags(
            endpoint.flags,
            [
                (ISOLATED_INGRESS, "isolated-ingress"),
                (ISOLATED_EGRESS, "isolated-egress"),
                (LIMITED_INGRESS, "limited-ingress"),
                (LIMITED_EGRESS, "limited-egress"),
            ],
        );
        let isolated = endpoint.flags & (ISOLATED_INGRESS | ISOLATED_EGRESS) != 0;
        table.push(row![
            address.ip(),
            endpoint.ifindex,
            mac(endpoint.pod_mac),
            isolated.then_some(endpoint.policy),
            options,
            String::from_utf8_lossy(&endpoint.uid).trim_end_matches('\0'),
        ]);
    }
    Ok(())
}

pub(super) fn buckets(pins: &Pins<'_>) -> Result<Table, DataplaneError> {
    let mut table = Table::new(&[
        "interface",
        "direction",
        "bytes_per_second",
        "burst_bytes",
        "left_bytes",
    ]);
    for (key, bucket) in pins.hash::<BucketKey, Bucket, _>(BUCKETS_MAP, "", |key, _| *key)? {
        let direction = if key.direction == u32::from(INGRESS) {
            "ingress"
        } else {
            "egress"
        };
        table.push(row![
            key.ifindex,
            direction,
            bucket.rate,
            bucket.burst,
            bucket.tokens
        ]);
    }
    Ok(table)
}

pub(super) fn nodes(pins: &Pins<'_>) -> Result<Table, DataplaneError> {
    both!(Table::new(&["address", "node"]), nodes_of, pins)
}

fn nodes_of<A: MapAddress>(pins: &Pins<'_>, table: &mut Table) -> Result<(), DataplaneError> {
    for (address, node) in pins.hash::<A, Node, _>(NODES_MAP, A::SUFFIX, |address, _| *address)? {
        table.push(row![
            address.ip(),
            if node.kind == NODE_LOCAL { "this" } else { "other" }
        ]);
    }
    Ok(())
}

pub(super) fn uplinks(pins: &Pins<'_>) -> Result<Table, DataplaneError> {
    both!(Table::new(&["interface", "address"]), uplinks_of, pins)
}

fn uplinks_of<A: MapAddress>(pins: &Pins<'_>, table: &mut Table) -> Result<(), DataplaneError> {
    for (key, uplink) in pins.hash::<UplinkKey, Uplink<A>, _>(UPLINKS_MAP, A::SUFFIX, |key, _| *key)? {
        table.push(row![key.ifindex, uplink.address.ip()]);
    }
    Ok(())
}

pub(super) fn routes(pins: &Pins<'_>) -> Result<Table, DataplaneError> {
    both!(Table::new(&["network", "node"]), routes_of, pins)
}

fn routes_of<A: MapAddress>(pins: &Pins<'_>, table: &mut Table) -> Result<(), DataplaneError> {
    let rank = |key: &Key<A>| (key.data(), key.prefix_len());
    for (key, route) in pins.trie::<A, Route, _>(ROUTES_MAP, A::SUFFIX, rank)? {
        let [a, b, c, d, ..] = route.node;
        let node = if route.family == 4 {
            [a, b, c, d].ip()
        } else {
            wide(route.node)
        };
        table.push(row![network(key.data(), key.prefix_len()), node]);
    }
    Ok(())
}

pub(super) fn announced(pins: &Pins<'_>) -> Result<Table, DataplaneError> {
    both!(Table::new(&["address", "interface", "mac"]), announced_of, pins)
}

fn announced_of<A: MapAddress>(pins: &Pins<'_>, table: &mut Table) -> Result<(), DataplaneError> {
    for (address, told) in pins.hash::<A, Announced, _>(ANNOUNCED_MAP, A::SUFFIX, |address, _| *address)? {
        table.push(row![address.ip(), told.ifindex, mac(told.mac)]);
    }
    Ok(())
}

pub(super) fn config(pins: &Pins<'_>) -> Result<Table, DataplaneError> {
    let map: Array<MapData, Config> = pins.open(CONFIG_MAP, "")?;
    let config = map.get(&0, 0).map_err(failed(CONFIG_MAP))?;
    let mut table = Table::new(&["setting", "value"]);
    let options = flags(
        config.flags,
        [
            (CONFIG_DROPS, "drops"),
            (CONFIG_FLOWS, "flows"),
            (CONFIG_DSR, "dsr"),
            (CONFIG_UNPACK, "unpack"),
            (CONFIG_MOVING, "moving"),
            (CONFIG_MULTIHOMED, "multihomed"),
        ],
    );
    table.push(row!["abi_version", config.abi_version]);
    table.push(row!["options", options]);
    table.push(row!["uplink_interface", config.uplink_ifindex]);
    table.push(row!["uplink_mtu", config.uplink_mtu]);
    table.push(row!["tunnel_interface", config.tunnel_ifindex]);
    table.push(row!["tunnel_mtu", config.tunnel_mtu]);
    family(&mut table, &config.v4);
    family(&mut table, &config.v6);
    Ok(table)
}

fn family<A: MapAddress>(table: &mut Table, config: &FamilyConfig<A>) {
    if config.node_address == A::ANY {
        return;
    }
    let bits = |mask: A| {
        let ones: u32 = match mask.ip() {
            std::net::IpAddr::V4(mask) => mask.to_bits().count_ones(),
            std::net::IpAddr::V6(mask) => mask.to_bits().count_ones(),
        };
        ones
    };
    let mut push = |name: &str, value: String| {
        table.push(vec![
            json!(format!("ipv{}_{name}", A::SUFFIX)).into(),
            json!(value).into(),
        ]);
    };
    push("node_address", config.node_address.ip().to_string());
    push("pods", network(config.cluster_address, bits(config.cluster_mask)));
    push(
        "services",
        network(config.service_address, bits(config.service_mask)),
    );
    push("dns_address", config.dns_address.ip().to_string());
}

pub(super) fn metrics(pins: &Pins<'_>) -> Result<Table, DataplaneError> {
    let map: PerCpuArray<MapData, Counter> = pins.open(METRICS_MAP, "")?;
    let drops = DropReason::ALL
        .iter()
        .map(|reason| (*reason as u32, "dropped", reason.text()));
    let ways = Way::ALL
        .iter()
        .map(|way| (METRICS_PATHS + *way as u32, "passed", way.text()));
    let mut table = Table::new(&["verdict", "what", "count", "bytes"]);
    for (index, verdict, what) in drops.chain(ways) {
        let Counter { packets, bytes } = counter(&map, index)?;
        table.push(row![verdict, what, packets, bytes]);
    }
    Ok(table)
}
