//! The interfaces that lead out of the node, followed as they change: programs on each, their addresses in the maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use aya::maps::{HashMap, MapData};
use futures::StreamExt as _;
use ipnet::IpNet;
use orch_ebpf::{
    Address,
    config::{self, CONFIG_MULTIHOMED, UPLINKS_MAP, UplinkKey},
};

use crate::{
    DataplaneConfig, DataplaneError,
    maps::{MapAddress, failed, gone_or},
    netlink::{Aggregates, Change, Interface, Kind, Netlink},
    nodes, pods,
    shared::Shared,
    sysctl, tunnel,
};

/// How long to wait for more changes before looking.
const SETTLE: Duration = Duration::from_millis(50);
/// How often to look although the kernel has told of no change.
const LOOK: Duration = Duration::from_secs(60);

/// An interface that leads out of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// The interface.
    pub interface: Interface,
    /// Its addresses with the networks that they are on.
    pub addresses: Vec<IpNet>,
}

/// The interfaces that lead out of the node, and the addresses by which it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplinks {
    primary: Uplink,
    others: Vec<Uplink>,
    local: BTreeSet<IpAddr>,
}

impl Uplinks {
    /// The uplink by which other nodes are reached.
    #[must_use]
    pub fn primary(&self) -> &Interface {
        &self.primary.interface
    }

    /// Every uplink, the primary one first.
    pub fn all(&self) -> impl Iterator<Item = &Uplink> {
        std::iter::once(&self.primary).chain(&self.others)
    }

    /// What every uplink takes in one piece.
    #[must_use]
    pub fn aggregates(&self) -> Aggregates {
        self.all()
            .map(|uplink| uplink.interface.aggregates)
            .fold(Aggregates::MOST, Aggregates::min)
    }

    /// Every address of the node, on any interface but the loopback and pods'.
    #[must_use]
    pub fn local(&self) -> &BTreeSet<IpAddr> {
        &self.local
    }

    /// Whether an uplink is on a network that holds the address.
    #[must_use]
    pub fn reaches(&self, address: IpAddr) -> bool {
        self.on_network_of(address).is_some()
    }

    /// The uplink on whose network the address is.
    #[must_use]
    pub fn on_network_of(&self, address: IpAddr) -> Option<&Uplink> {
        self.all()
            .find(|uplink| uplink.addresses.iter().any(|net| net.contains(&address)))
    }

    /// Finds the uplinks in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses, or there is none.
    pub async fn find(config: &DataplaneConfig, netlink: &Netlink) -> Result<Self, DataplaneError> {
        let interfaces = netlink.interfaces().await?;
        let addresses = netlink.addresses().await?;
        let defaults = if config.uplinks.is_empty() {
            netlink.default_devices().await?
        } else {
            Vec::new()
        };
        choose(config, &interfaces, &addresses, &defaults)
    }
}

/// Chooses the uplinks: the named ones, or those of the default routes and of the node's addresses; and the VLAN
/// interfaces on them.
fn choose(
    config: &DataplaneConfig,
    interfaces: &[Interface],
    addresses: &[(u32, IpNet)],
    defaults: &[u32],
) -> Result<Uplinks, DataplaneError> {
    let holds = |interface: &Interface, ip: IpAddr| {
        addresses
            .iter()
            .any(|(index, net)| *index == interface.index && net.addr() == ip)
    };
    let mut chosen: Vec<&Interface> = Vec::new();
    if config.uplinks.is_empty() {
        let holders = config
            .node_ips
            .iter()
            .filter_map(|ip| interfaces.iter().find(|i| !i.loopback && holds(i, *ip)));
        let routed = defaults
            .iter()
            .filter_map(|index| interfaces.iter().find(|i| i.index == *index));
        chosen.extend(holders.chain(routed));
    } else {
        for name in &config.uplinks {
            let found = interfaces.iter().find(|interface| interface.name == *name);
            chosen.push(found.ok_or_else(|| DataplaneError::NoInterface(name.clone()))?);
        }
    }
    let mut next = 0;
    while let Some(on) = chosen.get(next).map(|interface| interface.index) {
        chosen.extend(
            interfaces
                .iter()
                .filter(|interface| interface.kind == Kind::Vlan(on)),
        );
        next += 1;
    }
    let mut seen = BTreeSet::new();
    chosen.retain(|interface| interface.name != tunnel::DEVICE && seen.insert(interface.index));
    let mut uplinks: Vec<Uplink> = chosen
        .into_iter()
        .map(|interface| Uplink {
            interface: interface.clone(),
            addresses: addresses
                .iter()
                .filter(|(index, _)| *index == interface.index)
                .map(|(_, net)| *net)
                .collect(),
        })
        .collect();
    let primary = config.node_ips.first().and_then(|ip| {
        uplinks
            .iter()
            .position(|uplink| uplink.addresses.iter().any(|net| net.addr() == *ip))
    });
    if uplinks.is_empty() {
        return Err(DataplaneError::NoUplink);
    }
    let primary = uplinks.remove(primary.unwrap_or(0));
    let own = |index: u32| {
        interfaces
            .iter()
            .any(|i| i.index == index && !i.loopback && i.name != tunnel::DEVICE && !pods::names::is_pods(i))
    };
    let local = addresses
        .iter()
        .filter(|(index, net)| own(*index) && !is_link_local(net.addr()))
        .map(|(_, net)| net.addr())
        .chain(config.node_ips.iter().copied())
        .collect();
    Ok(Uplinks {
        primary,
        others: uplinks,
        local,
    })
}

/// Whether an address means something on one link only (RFC 3927, RFC 4291 section 2.5.6).
fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Puts the programs onto the uplinks and what the programs need to know of them into the maps.
///
/// # Errors
/// When the kernel refuses.
pub fn apply(shared: &Shared, uplinks: &Uplinks) -> Result<(), DataplaneError> {
    let config = &shared.config;
    let interfaces: Vec<&Interface> = uplinks.all().map(|uplink| &uplink.interface).collect();
    for interface in &interfaces {
        prepare(config, &interface.name)?;
    }
    let primary = uplinks.primary();
    {
        let mut maps = shared.maps.lock();
        let maps = &mut *maps;
        put_addresses(&mut maps.v4.uplinks, uplinks, &config.node_ips)?;
        put_addresses(&mut maps.v6.uplinks, uplinks, &config.node_ips)?;
        maps.configure(|config| {
            config.uplink_ifindex = primary.index;
            config.uplink_mtu = primary.mtu;
            config.flags &= !CONFIG_MULTIHOMED;
            if !uplinks.others.is_empty() {
                config.flags |= CONFIG_MULTIHOMED;
            }
        })?;
    }
    shared
        .programs
        .lock()
        .attach_uplinks(&config.bpf_root, &interfaces, config.xdp)
}

/// Writes by which address of the family pods are known that leave by each uplink.
fn put_addresses<A: MapAddress>(
    map: &mut HashMap<MapData, UplinkKey, config::Uplink<A>>,
    uplinks: &Uplinks,
    node_ips: &[IpAddr],
) -> Result<(), DataplaneError> {
    let desired: BTreeMap<UplinkKey, config::Uplink<A>> = uplinks
        .all()
        .filter_map(|uplink| {
            let ifindex = uplink.interface.index;
            let address = A::from_ip(source::<A>(uplink, node_ips)?)?;
            Some((UplinkKey { ifindex }, config::Uplink { address }))
        })
        .collect();
    for (key, uplink) in &desired {
        map.insert(*key, *uplink, 0).map_err(failed(UPLINKS_MAP))?;
    }
    let known: Vec<UplinkKey> = map
        .keys()
        .collect::<Result<_, _>>()
        .map_err(failed(UPLINKS_MAP))?;
    for key in known.iter().filter(|key| !desired.contains_key(key)) {
        gone_or(map.remove(key)).map_err(failed(UPLINKS_MAP))?;
    }
    Ok(())
}

/// The address that packets of pods get which leave by the uplink: the node's where it is on it, else the first that
/// means something beyond the link.
fn source<A: Address>(uplink: &Uplink, node_ips: &[IpAddr]) -> Option<IpAddr> {
    let of_family = || {
        let all = uplink.addresses.iter().map(IpNet::addr);
        all.filter(|ip| A::from_ip(*ip).is_some() && !is_link_local(*ip))
    };
    of_family()
        .find(|ip| node_ips.contains(ip))
        .or_else(|| of_family().next())
}

/// What the network stack must not do by itself on an uplink.
fn prepare(config: &DataplaneConfig, interface: &str) -> Result<(), DataplaneError> {
    // Packets to and from pods come by ways that the stack does not know of.
    sysctl::set(&format!("net/ipv4/conf/{interface}/rp_filter"), "0")?;
    let accept = format!("net/ipv6/conf/{interface}/accept_ra");
    // A machine that forwards ignores routers, unless it is told so in particular.
    if config.has_ipv6() && sysctl::get(&accept).as_deref() == Some("1") {
        sysctl::set(&accept, "2")?;
    }
    Ok(())
}

/// Follows the kernel's changes until the task is dropped.
///
/// # Errors
/// When the kernel cannot be listened to.
pub fn follow(shared: Arc<Shared>) -> Result<impl Future<Output = ()>, DataplaneError> {
    let mut changes = Netlink::changes()?;
    Ok(async move {
        loop {
            tokio::select! {
                change = changes.next() => match change {
                    Some(change) if !concerns(&change) => continue,
                    Some(_) => {}
                    None => return,
                },
                () = tokio::time::sleep(LOOK) => {}
            }
            tokio::time::sleep(SETTLE).await;
            // What has piled up meanwhile is seen by the look that follows.
            while let Some(Some(_)) = futures::FutureExt::now_or_never(changes.next()) {}
            if let Err(error) = look(&shared).await {
                tracing::warn!(%error, "the uplinks could not be followed, trying again");
            }
        }
    })
}

/// Whether a change may be one of an uplink or of the node's addresses.
fn concerns(change: &Change) -> bool {
    match change {
        Change::Link(name) => !pods::names::is_interface_name(name) && name != tunnel::DEVICE,
        Change::Address(ip) => !is_link_local(*ip),
        Change::Unknown => true,
    }
}

async fn look(shared: &Shared) -> Result<(), DataplaneError> {
    let found = Uplinks::find(&shared.config, &shared.netlink).await?;
    let before = shared.uplinks();
    if *before != found {
        let names: Vec<&str> = found.all().map(|uplink| uplink.interface.name.as_str()).collect();
        tracing::info!(uplinks = ?names, addresses = ?found.local, "the node's interfaces have changed");
        apply(shared, &found)?;
        shared.uplinks.send_replace(Arc::new(found));
        tunnel::sync(shared).await?;
    }
    // Routes go with a link that is down and do not come back with it.
    nodes::refresh(shared).await
}

#[cfg(test)]
mod tests {
    use orch_ebpf::{Address4, Address6};

    use super::*;
    use crate::config::{Tunnel, XdpMode};

    fn settings(uplinks: &[&str], node_ips: &[&str]) -> DataplaneConfig {
        DataplaneConfig {
            node_name: "n".into(),
            node_ips: node_ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            uplinks: uplinks.iter().map(|name| (*name).to_owned()).collect(),
            bpf_root: "/".into(),
            cgroup_path: "/".into(),
            run_dir: "/".into(),
            cluster_cidrs: Vec::new(),
            service_cidrs: Vec::new(),
            cluster_dns: Vec::new(),
            xdp: XdpMode::Off,
            tunnel: Tunnel::Off,
            direct_return: false,
            proxy_health: None,
        }
    }

    fn interface(index: u32, name: &str, kind: Kind) -> Interface {
        Interface {
            index,
            name: name.into(),
            alias: None,
            mtu: 1500,
            mac: [0; 6],
            kind,
            loopback: name == "lo",
            aggregates: Aggregates::DEFAULT,
        }
    }

    fn machine() -> (Vec<Interface>, Vec<(u32, IpNet)>) {
        let interfaces = vec![
            interface(1, "lo", Kind::Other),
            interface(2, "eth0", Kind::Other),
            interface(3, "eth1", Kind::Other),
            interface(4, "eth1.7", Kind::Vlan(3)),
            interface(5, "docker0", Kind::Other),
            interface(6, "orch0123456789a", Kind::Veth),
        ];
        let addresses = [
            (1, "127.0.0.1/8"),
            (1, "10.96.0.10/32"),
            (2, "192.0.2.1/24"),
            (2, "fe80::1/64"),
            (3, "198.51.100.1/24"),
            (4, "203.0.113.1/24"),
            (5, "172.17.0.1/16"),
            (6, "10.9.9.9/32"),
        ];
        let addresses = addresses.map(|(index, net)| (index, net.parse().unwrap()));
        (interfaces, addresses.to_vec())
    }

    fn names(uplinks: &Uplinks) -> Vec<&str> {
        uplinks
            .all()
            .map(|uplink| uplink.interface.name.as_str())
            .collect()
    }

    #[test]
    fn finds_the_default_route_the_nodes_address_and_vlans() {
        let (interfaces, addresses) = machine();
        let config = settings(&[], &["198.51.100.1"]);
        let found = choose(&config, &interfaces, &addresses, &[2]).unwrap();
        assert_eq!(names(&found), ["eth1", "eth0", "eth1.7"]);
        let local: Vec<String> = found.local().iter().map(IpAddr::to_string).collect();
        assert_eq!(local, ["172.17.0.1", "192.0.2.1", "198.51.100.1", "203.0.113.1"]);
        assert!(found.reaches("192.0.2.77".parse().unwrap()));
        assert!(!found.reaches("192.0.3.77".parse().unwrap()));
    }

    #[test]
    fn pods_leave_by_the_uplinks_address() {
        let uplink = |addresses: &[&str]| Uplink {
            interface: interface(2, "eth0", Kind::Other),
            addresses: addresses.iter().map(|net| net.parse().unwrap()).collect(),
        };
        let node_ips: Vec<IpAddr> = vec!["192.0.2.2".parse().unwrap()];
        let several = uplink(&["fe80::1/64", "192.0.2.1/24", "192.0.2.2/24", "2001:db8::1/64"]);
        let of = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string());
        assert_eq!(
            of(source::<Address4>(&several, &node_ips)).as_deref(),
            Some("192.0.2.2")
        );
        assert_eq!(
            of(source::<Address4>(&several, &[])).as_deref(),
            Some("192.0.2.1")
        );
        assert_eq!(
            of(source::<Address6>(&several, &node_ips)).as_deref(),
            Some("2001:db8::1")
        );
        assert_eq!(source::<Address6>(&uplink(&["fe80::1/64"]), &[]), None);
    }

    #[test]
    fn aggregates_are_what_each_uplink_takes() {
        let (mut interfaces, addresses) = machine();
        let all = |interfaces: &[Interface]| {
            choose(&settings(&[], &["198.51.100.1"]), interfaces, &addresses, &[2])
                .unwrap()
                .aggregates()
        };
        assert_eq!(all(&interfaces), Aggregates::DEFAULT);
        for interface in &mut interfaces {
            interface.aggregates = Aggregates::MOST;
        }
        // That of another interface says nothing.
        interfaces[4].aggregates = Aggregates::DEFAULT;
        assert_eq!(all(&interfaces), Aggregates::MOST);
        interfaces[1].aggregates.v4 = 200_000;
        interfaces[3].aggregates.v6 = 100_000;
        assert_eq!(
            all(&interfaces),
            Aggregates {
                v4: 200_000,
                v6: 100_000
            }
        );
    }

    #[test]
    fn named_uplinks_are_the_only_ones() {
        let (interfaces, addresses) = machine();
        let found = choose(
            &settings(&["eth0"], &["192.0.2.1"]),
            &interfaces,
            &addresses,
            &[3],
        )
        .unwrap();
        assert_eq!(names(&found), ["eth0"]);
        let none = choose(&settings(&["eth9"], &[]), &interfaces, &addresses, &[]);
        assert!(matches!(none, Err(DataplaneError::NoInterface(name)) if name == "eth9"));
        let none = choose(&settings(&[], &["192.0.2.200"]), &interfaces, &addresses, &[]);
        assert!(matches!(none, Err(DataplaneError::NoUplink)));
    }
}
