//! Connecting pods: veth pair, address, routes, endpoint, program.
//!
//! Nothing is kept in a file: the interface's alias names the pod and its address, and the pinned endpoint map says
//! the same to the programs. After a restart both are read back.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    net::Ipv4Addr,
    path::Path,
};

use ipnet::Ipv4Net;
use orch_ebpf::endpoint::{ENDPOINTS_MAP, Endpoint};

use crate::{
    DataplaneError, PodAttachment,
    addresses::AddressPool,
    links, load,
    maps::{failed, gone_or},
    netlink::{Interface, Netlink, VethPair},
    shared::Shared,
};

/// Hardware address of every node's side; the pairs are links of their own, so one address serves all.
const NODE_MAC: [u8; 6] = [0x02, 0x6f, 0x72, 0x63, 0x68, 0x01];
/// The pods' gateway: link-local (RFC 3927), never on the wire, known to pods by a permanent neighbour entry.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The interface's name in the pod.
const POD_INTERFACE: &str = "eth0";
/// Start of the node's side's name.
const PREFIX: &str = "orch";
/// Most bytes of a pod's uid.
const UID_MAX: usize = 36;

/// A connected pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Its address.
    pub address: Ipv4Addr,
    /// Name of the node's side of its veth pair.
    pub interface: String,
    /// Index of the node's side.
    pub ifindex: u32,
}

/// All connected pods and the pool their addresses come from.
#[derive(Debug, Default)]
pub struct Pods {
    attached: BTreeMap<String, Attached>,
    pool: Option<AddressPool>,
}

impl Pods {
    /// Uid and attachment of every pod.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Attached)> {
        self.attached.iter()
    }

    fn used(&self) -> BTreeSet<Ipv4Addr> {
        self.attached.values().map(|attached| attached.address).collect()
    }
}

/// Name of the node's side for a pod: the prefix and 44 bits of a hash (FNV-1a) of the uid. The alias decides.
fn interface_name(uid: &str) -> String {
    let hash = uid.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{PREFIX}{:011x}", hash >> 20)
}

fn alias(uid: &str, address: Ipv4Addr) -> String {
    format!("orch {uid} {address}")
}

fn parse_alias(interface: &Interface) -> Option<(String, Ipv4Addr)> {
    let mut words = interface.alias.as_deref()?.split(' ');
    let (Some("orch"), Some(uid), Some(address), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return None;
    };
    Some((uid.to_owned(), address.parse().ok()?))
}

/// The pod side's hardware address: locally administered, with the pod's address inside.
fn pod_mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x6f, a, b, c, d]
}

fn endpoint(uid: &str, address: Ipv4Addr, ifindex: u32) -> Endpoint {
    let mut text = [0; 40];
    for (to, from) in text.iter_mut().zip(uid.bytes()) {
        *to = from;
    }
    Endpoint {
        ifindex,
        pod_mac: pod_mac(address),
        node_mac: NODE_MAC,
        uid: text,
    }
}

/// Reads back the pods that an earlier agent connected, swaps their programs, and removes what belongs to none.
///
/// # Errors
/// When the kernel refuses.
pub async fn adopt(shared: &Shared) -> Result<(), DataplaneError> {
    let root = &shared.config.bpf_root;
    let mut attached = BTreeMap::new();
    for interface in shared.netlink.interfaces().await? {
        let Some((uid, address)) = parse_alias(&interface) else {
            continue;
        };
        // The alias is the last thing an attachment writes but one: without an endpoint the pod never ran.
        let known = shared.maps.lock().endpoints.get(&address.octets(), 0);
        if !known.is_ok_and(|endpoint| endpoint.ifindex == interface.index) {
            shared.netlink.remove_interface(interface.index).await?;
            continue;
        }
        shared
            .programs
            .lock()
            .attach_pod(root, &interface.name, interface.index)?;
        attached.insert(
            uid,
            Attached {
                address,
                interface: interface.name,
                ifindex: interface.index,
            },
        );
    }
    let used: BTreeSet<Ipv4Addr> = attached
        .values()
        .map(|attached: &Attached| attached.address)
        .collect();
    {
        let mut maps = shared.maps.lock();
        let keys: Vec<_> = maps.endpoints.keys().filter_map(Result::ok).collect();
        for key in keys
            .into_iter()
            .filter(|key| !used.contains(&Ipv4Addr::from(*key)))
        {
            gone_or(maps.endpoints.remove(&key)).map_err(failed(ENDPOINTS_MAP))?;
        }
    }
    let pins: BTreeSet<String> = attached
        .values()
        .map(|attached| format!("pod_{}", attached.interface))
        .collect();
    let folder = links::folder(root);
    for name in load::pins(&folder, "pod_")?
        .into_iter()
        .filter(|name| !pins.contains(name))
    {
        links::remove(&folder.join(name))?;
    }
    shared.pods.lock().attached = attached;
    Ok(())
}

/// Sets the range of the pods' addresses.
///
/// # Errors
/// When it holds no address, or the kernel refuses its route.
pub async fn set_cidr(shared: &Shared, cidr: Ipv4Net) -> Result<(), DataplaneError> {
    // An address of the range that no pod has must not leave by the default route and come back.
    shared.netlink.route_unreachable(cidr).await?;
    let mut pods = shared.pods.lock();
    if pods.pool.is_none_or(|pool| pool.cidr() != cidr.trunc()) {
        let pool = AddressPool::new(cidr, &pods.used()).ok_or(DataplaneError::PodCidrTooSmall(cidr))?;
        pods.pool = Some(pool);
    }
    Ok(())
}

/// Connects a pod; see [`crate::Dataplane::attach_pod`].
///
/// # Errors
/// When no address is free or the kernel refuses a step; what was made until then is removed.
pub async fn attach(shared: &Shared, pod: &PodAttachment) -> Result<Ipv4Addr, DataplaneError> {
    if pod.uid.is_empty() || pod.uid.len() > UID_MAX || pod.uid.contains(char::is_whitespace) {
        return Err(DataplaneError::BadUid(pod.uid.clone()));
    }
    let _turn = shared.pod_turn.lock().await;
    let known = shared.pods.lock().attached.get(&pod.uid).cloned();
    if let Some(known) = known {
        if shared
            .netlink
            .interface(&known.interface)
            .await?
            .is_some_and(|found| found.index == known.ifindex)
        {
            return Ok(known.address);
        }
        // The namespace went, and the pair with it.
        remove(shared, &pod.uid, &known).await?;
    }
    let address = {
        let mut pods = shared.pods.lock();
        let used = pods.used();
        let pool = pods.pool.as_mut().ok_or(DataplaneError::NoPodCidr)?;
        pool.take(&used)
            .ok_or(DataplaneError::AddressesExhausted(pool.cidr()))?
    };
    let namespace = File::open(&pod.netns).map_err(|source| DataplaneError::File {
        action: "open network namespace",
        path: pod.netns.clone(),
        source,
    })?;
    let name = interface_name(&pod.uid);
    if let Some(rest) = shared.netlink.interface(&name).await? {
        shared.netlink.remove_interface(rest.index).await?;
    }
    match connect(shared, pod, &namespace, &name, address).await {
        Ok(attached) => {
            tracing::debug!(namespace = pod.namespace, pod = pod.name, %address, interface = name, "pod connected");
            shared.pods.lock().attached.insert(pod.uid.clone(), attached);
            Ok(address)
        }
        Err(error) => {
            let index = shared
                .netlink
                .interface(&name)
                .await
                .ok()
                .flatten()
                .map_or(0, |found| found.index);
            let rest = Attached {
                address,
                interface: name,
                ifindex: index,
            };
            if let Err(error) = remove(shared, &pod.uid, &rest).await {
                tracing::warn!(%error, pod = pod.name, "what a failed connection left could not be removed");
            }
            Err(error)
        }
    }
}

async fn connect(
    shared: &Shared,
    pod: &PodAttachment,
    namespace: &File,
    name: &str,
    address: Ipv4Addr,
) -> Result<Attached, DataplaneError> {
    let netlink = &shared.netlink;
    let mac = pod_mac(address);
    netlink
        .add_veth(&VethPair {
            name,
            mac: NODE_MAC,
            peer_namespace: namespace,
            peer_name: POD_INTERFACE,
            peer_mac: mac,
            mtu: shared.uplink.mtu,
        })
        .await?;
    let missing = || DataplaneError::NoInterface(name.to_owned());
    let index = netlink.interface(name).await?.ok_or_else(missing)?.index;
    netlink.set_alias(index, &alias(&pod.uid, address)).await?;
    set_sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "0")?;
    // The program stands before the link is up, so the pod's first packet meets it.
    shared
        .programs
        .lock()
        .attach_pod(&shared.config.bpf_root, name, index)?;
    shared
        .maps
        .lock()
        .endpoints
        .insert(address.octets(), endpoint(&pod.uid, address, index), 0)
        .map_err(failed(ENDPOINTS_MAP))?;
    netlink.set_up(index).await?;
    netlink.add_neighbour(index, address, mac).await?;
    netlink
        .route_direct(Ipv4Net::from(address), index, Some(shared.config.node_ip))
        .await?;

    let inside = Netlink::inside(namespace)?;
    let missing = |name: &str| DataplaneError::NoInterface(format!("{name} in the pod"));
    let lo = inside.interface("lo").await?.ok_or_else(|| missing("lo"))?.index;
    let eth0 = inside
        .interface(POD_INTERFACE)
        .await?
        .ok_or_else(|| missing(POD_INTERFACE))?
        .index;
    inside.set_up(lo).await?;
    inside.add_address(eth0, address).await?;
    inside.set_up(eth0).await?;
    inside.add_neighbour(eth0, GATEWAY, NODE_MAC).await?;
    inside.route_direct(Ipv4Net::from(GATEWAY), eth0, None).await?;
    inside.route_via(Ipv4Net::default(), GATEWAY, eth0).await?;
    Ok(Attached {
        address,
        interface: name.to_owned(),
        ifindex: index,
    })
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
        None => Ok(()),
    }
}

async fn remove(shared: &Shared, uid: &str, attached: &Attached) -> Result<(), DataplaneError> {
    if attached.ifindex != 0 {
        shared.netlink.remove_interface(attached.ifindex).await?;
    }
    links::remove(&load::pod_pin(&shared.config.bpf_root, &attached.interface))?;
    let octets = attached.address.octets();
    {
        let mut maps = shared.maps.lock();
        gone_or(maps.endpoints.remove(&octets)).map_err(failed(ENDPOINTS_MAP))?;
    }
    shared.pods.lock().attached.remove(uid);
    // The address rests for a while; its flows may wait for the sweep.
    shared.gone.lock().insert(attached.address);
    Ok(())
}

/// Writes one of the kernel's settings of the calling thread's network namespace.
///
/// # Errors
/// When the kernel refuses.
pub fn set_sysctl(name: &str, value: &str) -> Result<(), DataplaneError> {
    let path = Path::new("/proc/sys").join(name);
    fs::write(&path, value).map_err(|source| DataplaneError::File {
        action: "write",
        path,
        source,
    })
}
