//! The entries of pods in the programs' maps.

use std::{collections::BTreeSet, net::IpAddr};

use orch_ebpf::endpoint::{ENDPOINTS_MAP, Endpoint};

use crate::{
    DataplaneError, bandwidth,
    maps::{FamilyMaps, MapAddress, Maps, failed, gone_or},
};

/// The endpoint of an address.
pub fn find(maps: &Maps, ip: IpAddr) -> Option<Endpoint> {
    match ip {
        IpAddr::V4(ip) => maps.v4.endpoints.get(&ip.octets(), 0).ok(),
        IpAddr::V6(ip) => maps.v6.endpoints.get(&ip.octets(), 0).ok(),
    }
}

/// Writes the endpoint of an address.
///
/// # Errors
/// When the kernel refuses.
pub fn put(maps: &mut Maps, ip: IpAddr, endpoint: Endpoint) -> Result<(), DataplaneError> {
    match ip {
        IpAddr::V4(ip) => maps.v4.endpoints.insert(ip.octets(), endpoint, 0),
        IpAddr::V6(ip) => maps.v6.endpoints.insert(ip.octets(), endpoint, 0),
    }
    .map_err(failed(ENDPOINTS_MAP))
}

/// Removes the endpoint of an address.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(maps: &mut Maps, ip: IpAddr) -> Result<(), DataplaneError> {
    gone_or(match ip {
        IpAddr::V4(ip) => maps.v4.endpoints.remove(&ip.octets()),
        IpAddr::V6(ip) => maps.v6.endpoints.remove(&ip.octets()),
    })
    .map_err(failed(ENDPOINTS_MAP))
}

/// Removes the endpoints of addresses that no pod has.
///
/// # Errors
/// When the kernel refuses.
pub fn retain<A: MapAddress>(
    maps: &mut FamilyMaps<A>,
    used: &BTreeSet<IpAddr>,
) -> Result<(), DataplaneError> {
    let keys: Vec<A> = maps.endpoints.keys().filter_map(Result::ok).collect();
    for key in keys.iter().filter(|key| !used.contains(&key.ip())) {
        gone_or(maps.endpoints.remove(key)).map_err(failed(ENDPOINTS_MAP))?;
    }
    Ok(())
}

/// Removes the buckets of interfaces that are no pod's.
///
/// # Errors
/// When the kernel refuses.
pub fn retain_buckets(maps: &mut Maps, ifindexes: &BTreeSet<u32>) -> Result<(), DataplaneError> {
    let keys: Vec<u32> = maps
        .buckets
        .keys()
        .filter_map(Result::ok)
        .map(|key| key.ifindex)
        .collect();
    for ifindex in keys.into_iter().filter(|index| !ifindexes.contains(index)) {
        bandwidth::release(maps, ifindex)?;
    }
    Ok(())
}
