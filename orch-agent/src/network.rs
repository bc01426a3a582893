//! The node's addresses and those of its DNS server: as given, or found.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::IpNet;

use crate::config::{ConfigError, RunArgs};

/// What the flags say and what was found where they say nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The node's addresses, at most one of each family, the primary one first.
    pub node_ips: Vec<IpAddr>,
    /// Addresses of the cluster's DNS server.
    pub cluster_dns: Vec<IpAddr>,
}

impl Network {
    /// Reads the flags and looks at the machine.
    ///
    /// # Errors
    /// When flags contradict each other, or an address cannot be found.
    pub fn find(args: &RunArgs) -> Result<Self, ConfigError> {
        let node_ips = if args.node_ip.is_empty() {
            found(args)?
        } else {
            args.node_ip.clone()
        };
        Self::of(args, node_ips)
    }

    fn of(args: &RunArgs, node_ips: Vec<IpAddr>) -> Result<Self, ConfigError> {
        let cluster_dns = if args.cluster_dns.is_empty() {
            args.service_cidr.iter().map(tenth).collect()
        } else {
            args.cluster_dns.clone()
        };
        let networks =
            |nets: &[IpNet]| -> Vec<bool> { nets.iter().map(|net| net.addr().is_ipv4()).collect() };
        let addresses = |ips: &[IpAddr]| -> Vec<bool> { ips.iter().map(IpAddr::is_ipv4).collect() };
        let own = addresses(&node_ips);
        for (flag, families) in [
            ("--node-ip", own.clone()),
            ("--cluster-cidr", networks(&args.cluster_cidr)),
            ("--service-cidr", networks(&args.service_cidr)),
            ("--cluster-dns", addresses(&cluster_dns)),
        ] {
            if let [first, second] = families[..]
                && first == second
            {
                return Err(ConfigError::SameFamily(flag));
            }
            if families.len() > 2 {
                return Err(ConfigError::SameFamily(flag));
            }
            if families.iter().any(|family| !own.contains(family)) {
                return Err(ConfigError::MissingFamily(flag));
            }
        }
        Ok(Self {
            node_ips,
            cluster_dns,
        })
    }

    /// The node's addresses with a port.
    #[must_use]
    pub fn at(&self, port: u16) -> Vec<SocketAddr> {
        self.node_ips
            .iter()
            .map(|ip| SocketAddr::new(*ip, port))
            .collect()
    }

    /// Every address of the machine, of the families that the node has.
    #[must_use]
    pub fn everywhere(&self, port: u16) -> SocketAddr {
        if self.node_ips.iter().any(IpAddr::is_ipv6) {
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))
        } else {
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
        }
    }
}

/// The tenth address of a network, where the cluster's DNS is by convention.
fn tenth(net: &IpNet) -> IpAddr {
    match net.network() {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits().wrapping_add(10)).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits().wrapping_add(10)).into(),
    }
}

/// The first address of each family of pods on the first uplink.
fn found(args: &RunArgs) -> Result<Vec<IpAddr>, ConfigError> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let uplink = args
        .uplink
        .first()
        .cloned()
        .or_else(|| default_route4(&read("/proc/net/route")))
        .or_else(|| default_route6(&read("/proc/net/ipv6_route")))
        .ok_or(ConfigError::NoDefaultRoute)?;
    let all: Vec<IpAddr> = nix::ifaddrs::getifaddrs()
        .into_iter()
        .flatten()
        .filter(|entry| entry.interface_name == uplink)
        .filter_map(|entry| {
            let address = entry.address.as_ref()?;
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        })
        .filter(|ip| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()))
        .collect();
    args.cluster_cidr
        .iter()
        .map(|net| {
            let family = net.addr().is_ipv4();
            let found = all.iter().find(|ip| ip.is_ipv4() == family).copied();
            found.ok_or_else(|| ConfigError::NoAddress {
                interface: uplink.clone(),
                family: if family { "IPv4" } else { "IPv6" },
            })
        })
        .collect()
}

/// The interface of the default route with the lowest metric in `/proc/net/route`.
fn default_route4(table: &str) -> Option<String> {
    let routes = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let default = *fields.get(1)? == "00000000" && *fields.get(7)? == "00000000";
        let metric: u32 = fields.get(6)?.parse().ok()?;
        default.then(|| (metric, fields[0].to_owned()))
    });
    routes.min().map(|(_, interface)| interface)
}

/// The same in `/proc/net/ipv6_route`, whose numbers are hexadecimal and which names the loopback where there is no
/// route.
fn default_route6(table: &str) -> Option<String> {
    let routes = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let default = fields.first()?.bytes().all(|b| b == b'0') && *fields.get(1)? == "00";
        let metric = u32::from_str_radix(fields.get(5)?, 16).ok()?;
        let interface = (*fields.get(9)?).to_owned();
        (default && interface != "lo").then_some((metric, interface))
    });
    routes.min().map(|(_, interface)| interface)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::config::{Cli, Command};

    fn args(more: &[&str]) -> RunArgs {
        let words = "orch-agent run --node-name n1 --kubeconfig k --tls-cert c --tls-key y --client-ca a";
        let cli = Cli::try_parse_from(words.split(' ').chain(more.iter().copied())).unwrap();
        match cli.command {
            Command::Run(args) => *args,
            _ => panic!("not run"),
        }
    }

    #[test]
    fn each_family_has_its_dns_and_its_node_address() {
        let both = [
            "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56",
            "--service-cidr=10.96.0.0/16,fd00:10:96::/112",
            "--node-ip=192.0.2.1,fd00::1",
        ];
        let network = Network::find(&args(&both)).unwrap();
        let texts: Vec<String> = network.cluster_dns.iter().map(IpAddr::to_string).collect();
        assert_eq!(texts, ["10.96.0.10", "fd00:10:96::a"]);
        assert_eq!(network.at(10250)[1].to_string(), "[fd00::1]:10250");
        let mut one = both;
        one[2] = "--node-ip=192.0.2.1";
        assert!(matches!(
            Network::find(&args(&one)),
            Err(ConfigError::MissingFamily("--cluster-cidr"))
        ));
        let twice = ["--node-ip=192.0.2.1,192.0.2.2"];
        assert!(matches!(
            Network::find(&args(&twice)),
            Err(ConfigError::SameFamily("--node-ip"))
        ));
    }

    #[test]
    fn finds_the_default_route_of_either_family() {
        let table = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
                     eth1 00000000 0101A8C0 0003 0 0 200 00000000 0 0 0\n\
                     eth0 00000000 0101A8C0 0003 0 0 100 00000000 0 0 0\n\
                     lo 0000007F 00000000 0001 0 0 0 000000FF 0 0 0\n";
        assert_eq!(default_route4(table).as_deref(), Some("eth0"));
        assert_eq!(default_route4(""), None);
        let zeros = "0".repeat(32);
        let line = |prefix: &str, metric: &str, interface: &str| {
            format!(
                "{zeros} {prefix} {zeros} 00 {zeros} {metric} 00000001 00000000 00000003     {interface}\n"
            )
        };
        let table =
            line("40", "00000100", "eth2") + &line("00", "00000400", "eth0") + &line("00", "ffffffff", "lo");
        assert_eq!(default_route6(&table).as_deref(), Some("eth0"));
    }
}
