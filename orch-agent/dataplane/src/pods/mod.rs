//! Connecting pods: veth pair, addresses, routes, endpoints, programs.
//!
//! Nothing is kept in a file: the interface's alias names the pod and its addresses, and the pinned endpoint maps say
//! the same to the programs. After a restart both are read back.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    net::IpAddr,
};

use ipnet::IpNet;
use orch_ebpf::endpoint::{ENDPOINTS_MAP, Endpoint};

use crate::{
    DataplaneError, PodAttachment, addresses::AddressPool, bandwidth, links, load, policy, services,
    shared::Shared,
};

mod connect;
pub mod endpoints;
pub mod names;

/// Hardware address of every node's side; the pairs are links of their own, so one address serves all.
const NODE_MAC: [u8; 6] = [0x02, 0x6f, 0x72, 0x63, 0x68, 0x01];
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

/// Reads back the pods that an earlier agent connected, swaps their programs, and removes what belongs to none.
///
/// # Errors
/// When the kernel refuses.
pub async fn adopt(shared: &Shared) -> Result<(), DataplaneError> {
    let root = &shared.config.bpf_root;
    let mut attached = BTreeMap::new();
    for interface in shared.netlink.interfaces().await? {
        let Some((uid, addresses)) = interface.alias.as_deref().and_then(names::parse_alias) else {
            continue;
        };
        if shared.programs.lock().is_anew(ENDPOINTS_MAP) {
            let mut maps = shared.maps.lock();
            for ip in &addresses {
                endpoints::put(&mut maps, *ip, endpoint(&uid, &addresses, interface.index))?;
            }
        }
        // The endpoints are written before anything can reach the pod: without them it never ran.
        let known = {
            let maps = shared.maps.lock();
            addresses.iter().all(|ip| {
                endpoints::find(&maps, *ip).is_some_and(|endpoint| endpoint.ifindex == interface.index)
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
        endpoints::retain(&mut maps.v4, &used)?;
        endpoints::retain(&mut maps.v6, &used)?;
        endpoints::retain_buckets(&mut maps, &all().map(|pod| pod.ifindex).collect())?;
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
    let name = names::interface_name(&pod.uid);
    if let Some(rest) = shared.netlink.interface(&name).await? {
        shared.netlink.remove_interface(rest.index).await?;
    }
    let mut attached = Attached {
        addresses,
        interface: name,
        ifindex: 0,
    };
    match connect::connect(shared, pod, &namespace, &mut attached).await {
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
        if endpoints::find(&maps, *ip) != Some(desired) {
            endpoints::put(&mut maps, *ip, desired)?;
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
            endpoints::remove(&mut maps, *ip)?;
        }
        bandwidth::release(&mut maps, attached.ifindex)?;
    }
    shared.policies.forget(uid);
    shared.pods.lock().attached.remove(uid);
    // The addresses rest until their flows are forgotten.
    shared.gone.lock().extend(attached.addresses.iter().copied());
    Ok(())
}
