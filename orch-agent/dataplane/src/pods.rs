//! Connecting pods: veth pair, addresses, routes, endpoints, programs.
//!
//! Nothing is kept in a file: the interface's alias names the pod and its addresses, and the pinned endpoint maps say
//! the same to the programs. After a restart both are read back.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use orch_ebpf::endpoint::{ENDPOINTS_MAP, Endpoint};

use crate::{
    DataplaneError, PodAttachment,
    addresses::AddressPool,
    bandwidth, links, load,
    maps::{FamilyMaps, MapAddress, Maps, failed, gone_or},
    netlink::{Interface, Kind, Netlink, VethPair},
    policy, services,
    shared::Shared,
    sysctl, tunnel,
};

/// Hardware address of every node's side; the pairs are links of their own, so one address serves all.
const NODE_MAC: [u8; 6] = [0x02, 0x6f, 0x72, 0x63, 0x68, 0x01];
/// The pods' gateways: link-local (RFC 3927, RFC 4291), never on the wire, known to pods by permanent neighbour
/// entries.
const GATEWAY4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
const GATEWAY6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
/// The interface's name in the pod.
const POD_INTERFACE: &str = "eth0";
/// Start of the node's side's name.
const PREFIX: &str = "orch";
/// Digits that follow it.
const DIGITS: usize = 11;
/// Most bytes of a pod's uid.
const UID_MAX: usize = 36;

/// A connected pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Its addresses, at most one of each family, the primary one first.
    pub addresses: Vec<IpAddr>,
    /// Name of the node's side of its veth pair.
    pub interface: String,
    /// Index of the node's side.
    pub ifindex: u32,
}

/// All connected pods and the pools that their addresses come from.
#[derive(Debug, Default)]
pub struct Pods {
    attached: BTreeMap<String, Attached>,
    pools: Vec<AddressPool>,
}

impl Pods {
    /// Uid and attachment of every pod.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Attached)> {
        self.attached.iter()
    }

    /// Uid of the pod that has the address.
    pub fn owner(&self, ip: IpAddr) -> Option<&String> {
        let mut all = self.attached.iter();
        all.find(|(_, attached)| attached.addresses.contains(&ip))
            .map(|(uid, _)| uid)
    }

    fn used(&self) -> BTreeSet<IpAddr> {
        let all = self.attached.values();
        all.flat_map(|attached| attached.addresses.iter().copied())
            .collect()
    }

    /// An address of each family, those of `resting` only when there are no others.
    fn take(&mut self, resting: &BTreeSet<IpAddr>) -> Result<Vec<IpAddr>, DataplaneError> {
        if self.pools.is_empty() {
            return Err(DataplaneError::NoPodCidr);
        }
        let used = self.used();
        self.pools
            .iter_mut()
            .map(|pool| {
                pool.take(&used, resting)
                    .ok_or(DataplaneError::AddressesExhausted(pool.cidr()))
            })
            .collect()
    }
}

/// Name of the node's side for a pod: the prefix and 44 bits of a hash (FNV-1a) of the uid. The alias decides.
fn interface_name(uid: &str) -> String {
    let hash = uid.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{PREFIX}{:0DIGITS$x}", hash >> 20)
}

/// Whether a name is like those of the node's sides.
pub fn is_interface_name(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .is_some_and(|rest| rest.len() == DIGITS && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Whether an interface is the node's side of a pod's veth pair.
pub fn is_pods(interface: &Interface) -> bool {
    interface.kind == Kind::Veth && is_interface_name(&interface.name)
}

fn alias(uid: &str, addresses: &[IpAddr]) -> String {
    let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    format!("orch {uid} {}", addresses.join(","))
}

fn parse_alias(alias: &str) -> Option<(String, Vec<IpAddr>)> {
    let mut words = alias.split(' ');
    let (Some("orch"), Some(uid), Some(addresses), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return None;
    };
    let addresses: Result<Vec<IpAddr>, _> = addresses.split(',').map(str::parse).collect();
    Some((uid.to_owned(), addresses.ok()?))
}

/// The pod side's hardware address: locally administered, with the end of the pod's first address inside.
fn pod_mac(addresses: &[IpAddr]) -> [u8; 6] {
    let [a, b, c, d] = match addresses.first() {
        Some(IpAddr::V4(ip)) => ip.octets(),
        Some(IpAddr::V6(ip)) => {
            let [.., a, b, c, d] = ip.octets();
            [a, b, c, d]
        }
        None => [0; 4],
    };
    [0x02, 0x6f, a, b, c, d]
}

fn endpoint(uid: &str, addresses: &[IpAddr], ifindex: u32) -> Endpoint {
    let mut text = [0; 40];
    for (to, from) in text.iter_mut().zip(uid.bytes()) {
        *to = from;
    }
    Endpoint {
        ifindex,
        policy: 0,
        flags: 0,
        pod_mac: pod_mac(addresses),
        node_mac: NODE_MAC,
        uid: text,
    }
}

/// The endpoint of an address.
pub fn find_endpoint(maps: &Maps, ip: IpAddr) -> Option<Endpoint> {
    match ip {
        IpAddr::V4(ip) => maps.v4.endpoints.get(&ip.octets(), 0).ok(),
        IpAddr::V6(ip) => maps.v6.endpoints.get(&ip.octets(), 0).ok(),
    }
}

/// Writes the endpoint of an address.
///
/// # Errors
/// When the kernel refuses.
pub fn put_endpoint(maps: &mut Maps, ip: IpAddr, endpoint: Endpoint) -> Result<(), DataplaneError> {
    match ip {
        IpAddr::V4(ip) => maps.v4.endpoints.insert(ip.octets(), endpoint, 0),
        IpAddr::V6(ip) => maps.v6.endpoints.insert(ip.octets(), endpoint, 0),
    }
    .map_err(failed(ENDPOINTS_MAP))
}

fn remove_endpoint(maps: &mut Maps, ip: IpAddr) -> Result<(), DataplaneError> {
    gone_or(match ip {
        IpAddr::V4(ip) => maps.v4.endpoints.remove(&ip.octets()),
        IpAddr::V6(ip) => maps.v6.endpoints.remove(&ip.octets()),
    })
    .map_err(failed(ENDPOINTS_MAP))
}

/// Removes the endpoints of addresses that no pod has.
fn retain_endpoints<A: MapAddress>(
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
fn retain_buckets(maps: &mut Maps, ifindexes: &BTreeSet<u32>) -> Result<(), DataplaneError> {
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

/// Reads back the pods that an earlier agent connected, swaps their programs, and removes what belongs to none.
///
/// # Errors
/// When the kernel refuses.
pub async fn adopt(shared: &Shared) -> Result<(), DataplaneError> {
    let root = &shared.config.bpf_root;
    let mut attached = BTreeMap::new();
    for interface in shared.netlink.interfaces().await? {
        let Some((uid, addresses)) = interface.alias.as_deref().and_then(parse_alias) else {
            continue;
        };
        // The endpoints are written before anything can reach the pod: without them it never ran.
        let known = {
            let maps = shared.maps.lock();
            addresses.iter().all(|ip| {
                find_endpoint(&maps, *ip).is_some_and(|endpoint| endpoint.ifindex == interface.index)
            })
        };
        if !known {
            shared.netlink.remove_interface(interface.index).await?;
            continue;
        }
        shared.programs.lock().attach_pod(root, &interface)?;
        attached.insert(
            uid,
            Attached {
                addresses,
                interface: interface.name,
                ifindex: interface.index,
            },
        );
    }
    let all = || attached.values();
    let used: BTreeSet<IpAddr> = all()
        .flat_map(|pod: &Attached| pod.addresses.iter().copied())
        .collect();
    {
        let mut maps = shared.maps.lock();
        retain_endpoints(&mut maps.v4, &used)?;
        retain_endpoints(&mut maps.v6, &used)?;
        retain_buckets(&mut maps, &all().map(|pod| pod.ifindex).collect())?;
    }
    let pins: BTreeSet<String> = all().flat_map(|pod| load::pod_pins(&pod.interface)).collect();
    let folder = links::folder(root);
    for name in links::list(&folder, "pod")?
        .into_iter()
        .filter(|name| !pins.contains(name))
    {
        links::remove(&folder.join(name))?;
    }
    shared.pods.lock().attached = attached;
    Ok(())
}

/// Sets the ranges of the pods' addresses, at most one of each family, the primary one first.
///
/// # Errors
/// When one holds no address, or the kernel refuses its route.
pub async fn set_cidrs(shared: &Shared, cidrs: &[IpNet]) -> Result<(), DataplaneError> {
    for cidr in cidrs {
        // An address of the range that no pod has must not leave by the default route and come back.
        shared.netlink.route_unreachable(*cidr).await?;
    }
    let mut pods = shared.pods.lock();
    if pods
        .pools
        .iter()
        .map(AddressPool::cidr)
        .eq(cidrs.iter().map(IpNet::trunc))
    {
        return Ok(());
    }
    let used = pods.used();
    pods.pools = cidrs
        .iter()
        .map(|cidr| AddressPool::new(*cidr, &used).ok_or(DataplaneError::PodCidrTooSmall(*cidr)))
        .collect::<Result<_, _>>()?;
    Ok(())
}

/// Connects a pod; see [`crate::Dataplane::attach_pod`].
///
/// # Errors
/// When no address is free or the kernel refuses a step; what was made until then is removed.
pub async fn attach(shared: &Shared, pod: &PodAttachment) -> Result<Vec<IpAddr>, DataplaneError> {
    if pod.uid.is_empty() || pod.uid.len() > UID_MAX || pod.uid.contains(char::is_whitespace) {
        return Err(DataplaneError::BadUid(pod.uid.clone()));
    }
    // This may take until the API server answers, and others have their turn meanwhile.
    shared.policies.for_pod(pod).await;
    let _turn = shared.pod_turn.lock().await;
    let known = shared.pods.lock().attached.get(&pod.uid).cloned();
    if let Some(known) = known {
        if shared
            .netlink
            .interface(&known.interface)
            .await?
            .is_some_and(|found| found.index == known.ifindex)
        {
            write(shared, pod, &known)?;
            set_host_ports(shared, pod, &known)?;
            return Ok(known.addresses);
        }
        // The namespace went, and the pair with it.
        remove(shared, &pod.uid, &known).await?;
        shared.policies.for_pod(pod).await;
    }
    let namespace = File::open(&pod.netns).map_err(|source| DataplaneError::File {
        action: "open network namespace",
        path: pod.netns.clone(),
        source,
    })?;
    let addresses = {
        let resting = shared.gone.lock().clone();
        let addresses = shared.pods.lock().take(&resting)?;
        if addresses.iter().any(|ip| resting.contains(ip)) {
            shared.sweep.notify_one();
        }
        addresses
    };
    let name = interface_name(&pod.uid);
    if let Some(rest) = shared.netlink.interface(&name).await? {
        shared.netlink.remove_interface(rest.index).await?;
    }
    let mut attached = Attached {
        addresses,
        interface: name,
        ifindex: 0,
    };
    match connect(shared, pod, &namespace, &mut attached).await {
        Ok(()) => {
            let addresses = attached.addresses.clone();
            tracing::debug!(
                namespace = pod.namespace,
                pod = pod.name,
                ?addresses,
                interface = attached.interface,
                "pod connected"
            );
            Ok(addresses)
        }
        Err(error) => {
            if let Ok(Some(found)) = shared.netlink.interface(&attached.interface).await {
                attached.ifindex = found.index;
            }
            if let Err(error) = remove(shared, &pod.uid, &attached).await {
                tracing::warn!(%error, pod = pod.name, "what a failed connection left could not be removed");
            }
            Err(error)
        }
    }
}

/// Writes what the programs know of the pod, before they see its first packet and again when something has changed.
fn write(shared: &Shared, pod: &PodAttachment, attached: &Attached) -> Result<(), DataplaneError> {
    let mut maps = shared.maps.lock();
    let limited = bandwidth::limit(&mut maps, attached.ifindex, pod.bandwidth)?;
    for ip in &attached.addresses {
        let mut desired = endpoint(&pod.uid, &attached.addresses, attached.ifindex);
        desired.flags |= limited;
        desired = policy::with_verdict(desired, shared.policies.verdict(&pod.uid));
        if find_endpoint(&maps, *ip) != Some(desired) {
            put_endpoint(&mut maps, *ip, desired)?;
        }
    }
    Ok(())
}

fn set_host_ports(shared: &Shared, pod: &PodAttachment, attached: &Attached) -> Result<(), DataplaneError> {
    for taken in services::set_host_ports(shared, &pod.uid, &pod.host_ports, &attached.addresses)? {
        tracing::warn!(namespace = pod.namespace, pod = pod.name, "{taken}");
    }
    Ok(())
}

async fn connect(
    shared: &Shared,
    pod: &PodAttachment,
    namespace: &File,
    attached: &mut Attached,
) -> Result<(), DataplaneError> {
    let netlink = &shared.netlink;
    let mac = pod_mac(&attached.addresses);
    netlink
        .add_veth(&VethPair {
            name: &attached.interface,
            mac: NODE_MAC,
            peer_namespace: namespace,
            peer_name: POD_INTERFACE,
            peer_mac: mac,
            mtu: tunnel::pod_mtu(&shared.config, shared.uplinks().primary().mtu),
        })
        .await?;
    let name = attached.interface.as_str();
    let interface = netlink
        .interface(name)
        .await?
        .ok_or_else(|| DataplaneError::NoInterface(name.to_owned()))?;
    attached.ifindex = interface.index;
    let attached = &*attached;
    netlink
        .set_alias(interface.index, &alias(&pod.uid, &attached.addresses))
        .await?;
    sysctl::set(&format!("net/ipv4/conf/{name}/rp_filter"), "0")?;
    sysctl::silence_ipv6(name);
    // All that guards the pod stands before the link is up, so its first packet meets it.
    write(shared, pod, attached)?;
    shared
        .programs
        .lock()
        .attach_pod(&shared.config.bpf_root, &interface)?;
    netlink.set_up(interface.index).await?;
    for address in &attached.addresses {
        netlink.add_neighbour(interface.index, *address, mac).await?;
        let source = shared.config.node_ip_like(*address);
        netlink
            .route_direct(IpNet::from(*address), interface.index, source)
            .await?;
    }
    connect_inside(namespace, &attached.addresses).await?;
    shared
        .pods
        .lock()
        .attached
        .insert(pod.uid.clone(), attached.clone());
    set_host_ports(shared, pod, attached)
}

/// The pod's side.
async fn connect_inside(namespace: &File, addresses: &[IpAddr]) -> Result<(), DataplaneError> {
    let has_ipv6 = addresses.iter().any(IpAddr::is_ipv6);
    let inside = Netlink::inside(namespace, move || {
        // Addresses are ours to give, and nobody else has them.
        for (name, value) in [
            ("disable_ipv6", "0"),
            ("accept_dad", "0"),
            ("accept_ra", "0"),
            ("autoconf", "0"),
        ] {
            if has_ipv6 {
                sysctl::set(&format!("net/ipv6/conf/{POD_INTERFACE}/{name}"), value)?;
            }
        }
        Ok(())
    })?;
    let missing = |name: &str| DataplaneError::NoInterface(format!("{name} in the pod"));
    let lo = inside.interface("lo").await?.ok_or_else(|| missing("lo"))?.index;
    let eth0 = inside
        .interface(POD_INTERFACE)
        .await?
        .ok_or_else(|| missing(POD_INTERFACE))?
        .index;
    inside.set_up(lo).await?;
    for address in addresses {
        inside.add_address(eth0, *address).await?;
    }
    inside.set_up(eth0).await?;
    for address in addresses {
        let (gateway, everywhere) = match address {
            IpAddr::V4(_) => (GATEWAY4, IpNet::from(ipnet::Ipv4Net::default())),
            IpAddr::V6(_) => (GATEWAY6, IpNet::from(ipnet::Ipv6Net::default())),
        };
        inside.add_neighbour(eth0, gateway, NODE_MAC).await?;
        inside.route_direct(IpNet::from(gateway), eth0, None).await?;
        inside.route_via(everywhere, gateway, Some(eth0)).await?;
    }
    Ok(())
}

/// Disconnects a pod; see [`crate::Dataplane::detach_pod`].
///
/// # Errors
/// When the kernel refuses.
pub async fn detach(shared: &Shared, uid: &str) -> Result<(), DataplaneError> {
    let _turn = shared.pod_turn.lock().await;
    let known = shared.pods.lock().attached.get(uid).cloned();
    match known {
        Some(known) => remove(shared, uid, &known).await,
        None => {
            shared.policies.forget(uid);
            Ok(())
        }
    }
}

async fn remove(shared: &Shared, uid: &str, attached: &Attached) -> Result<(), DataplaneError> {
    services::set_host_ports(shared, uid, &[], &attached.addresses)?;
    if attached.ifindex != 0 {
        shared.netlink.remove_interface(attached.ifindex).await?;
    }
    let folder = links::folder(&shared.config.bpf_root);
    for pin in load::pod_pins(&attached.interface) {
        links::remove(&folder.join(pin))?;
    }
    {
        let mut maps = shared.maps.lock();
        for ip in &attached.addresses {
            remove_endpoint(&mut maps, *ip)?;
        }
        bandwidth::release(&mut maps, attached.ifindex)?;
    }
    shared.policies.forget(uid);
    shared.pods.lock().attached.remove(uid);
    // The addresses rest until their flows are forgotten.
    shared.gone.lock().extend(attached.addresses.iter().copied());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_says_who_and_where() {
        let addresses: Vec<IpAddr> = vec!["10.244.1.3".parse().unwrap(), "fd00::3".parse().unwrap()];
        let text = alias("uid-1", &addresses);
        assert_eq!(text, "orch uid-1 10.244.1.3,fd00::3");
        assert_eq!(parse_alias(&text), Some(("uid-1".into(), addresses)));
        assert!(
            parse_alias("orch uid-1 10.244.1.3").is_some(),
            "as agents for one family wrote it"
        );
        for other in [
            "orch uid-1",
            "somebody's",
            "orch uid-1 x",
            "orch uid-1 10.0.0.1 more",
        ] {
            assert!(parse_alias(other).is_none(), "{other}");
        }
        let name = interface_name("uid-1");
        assert!(is_interface_name(&name) && name.len() == 15, "{name}");
        assert!(!is_interface_name("orch-vxlan") && !is_interface_name("orch0"));
    }
}
