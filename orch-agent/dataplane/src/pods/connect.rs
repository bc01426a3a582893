//! The steps that connect a pod.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use super::{Attached, NODE_MAC, names, pod_mac, set_host_ports, write};
use crate::{
    DataplaneError, PodAttachment,
    config::Tunnel,
    netlink::{Aggregates, Fits, Netlink, VethPair},
    shared::Shared,
    sysctl, tunnel,
};

/// The pods' gateways: link-local (RFC 3927, RFC 4291), never on the wire, known to pods by permanent neighbour
/// entries.
const GATEWAY4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
const GATEWAY6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
/// The interface's name in the pod.
const POD_INTERFACE: &str = "eth0";
/// The smallest MTU that a link may have in IPv6 (RFC 8200 section 5).
const IPV6_MTU_MIN: u32 = 1280;
/// Bytes of the header with which kernels before 7.0 begin an IPv6 aggregate over 64 KiB: it says its length (RFC 2675).
const JUMBO_HEADER: u32 = 8;

/// Makes the veth pair of a pod and all that belongs to it, the guards before the link is up.
///
/// # Errors
/// When the kernel refuses a step; what was made until then stays.
pub async fn connect(
    shared: &Shared,
    pod: &PodAttachment,
    namespace: &File,
    attached: &mut Attached,
) -> Result<(), DataplaneError> {
    let netlink = &shared.netlink;
    let mac = pod_mac(&attached.addresses);
    let mtu = tunnel::pod_mtu(&shared.config, shared.uplinks().primary().mtu);
    let aggregates = aggregates(shared, pod, mtu);
    netlink
        .add_veth(&VethPair {
            name: &attached.interface,
            mac: NODE_MAC,
            peer_namespace: namespace,
            peer_name: POD_INTERFACE,
            peer_mac: mac,
            mtu,
            aggregates,
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
        .set_alias(interface.index, &names::alias(&pod.uid, &attached.addresses))
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
    let fits = |v6| Fits {
        packet: packet(mtu, v6, aggregates),
        segment: shared.config.direct_return.then(|| segment(mtu, v6)),
    };
    connect_inside(namespace, &attached.addresses, fits).await?;
    shared
        .pods
        .lock()
        .attached
        .insert(pod.uid.clone(), attached.clone());
    set_host_ports(shared, pod, attached)
}

/// The largest TCP aggregates that the pod's interface takes. A socket makes them for that interface, wherever its packets
/// go: so they are no larger than what the uplinks take, which would have to be handed every single segment else.
fn aggregates(shared: &Shared, pod: &PodAttachment, mtu: u32) -> Aggregates {
    // The tunnel's device takes the default only. A larger one would ask the same of every uplink for packets in others,
    // of which drivers know less.
    let through_tunnel = shared.config.tunnel != Tunnel::Off;
    // What is over the limit is dropped whole.
    let limited = pod.bandwidth.egress.is_some();
    if through_tunnel || limited {
        return Aggregates::DEFAULT;
    }
    let mut most = shared.uplinks().aggregates();
    if mtu < IPV6_MTU_MIN + JUMBO_HEADER {
        most.v6 = Aggregates::DEFAULT.v6;
    }
    most
}

/// The longest TCP segment to a pod that fits into a packet which fits into another one of `mtu` bytes: both have a header
/// of IP, and it has one of TCP without options.
fn segment(mtu: u32, v6: bool) -> u32 {
    let ip = if v6 { 40 } else { 20 };
    mtu.saturating_sub(2 * ip + 20)
}

/// The longest packet that a pod sends, where that is less than its interface's MTU. [`JUMBO_HEADER`] is in no segment, but
/// the node's stack counts it to each, and would tell the sender that they do not fit.
fn packet(mtu: u32, v6: bool, aggregates: Aggregates) -> Option<u32> {
    (v6 && aggregates.v6 > Aggregates::DEFAULT.v6).then(|| mtu.saturating_sub(JUMBO_HEADER))
}

/// The pod's side; what `fits` on its ways of IPv6 and of IPv4.
async fn connect_inside(
    namespace: &File,
    addresses: &[IpAddr],
    fits: impl Fn(bool) -> Fits,
) -> Result<(), DataplaneError> {
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
        inside
            .route_via(everywhere, gateway, Some(eth0), fits(address.is_ipv6()))
            .await?;
    }
    Ok(())
}
