//! What kind of network a cluster has: families of addresses, how pods' packets cross nodes, what balances at the uplink.

use std::net::IpAddr;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::layout::{self, Node};

/// The addresses of nodes, pods and services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Families {
    /// IPv4 only
    #[default]
    Ipv4,
    /// IPv6 only
    Ipv6,
    /// IPv4 first, and IPv6
    Dual,
}

/// How packets of pods get to other nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Tunnel {
    /// As they are
    #[default]
    Off,
    /// In VXLAN
    Vxlan,
}

/// Whether the nodes' uplinks balance in their driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Xdp {
    /// As the agent chooses; for the uplinks of a dev cluster, which are veths, that is `off`
    #[default]
    Auto,
    /// In the driver
    Native,
    /// In the kernel's generic hook, for programs that a driver cannot run
    Generic,
    /// Not at all: traffic control does it
    Off,
}

/// How packets from outside get to backends on other nodes, and their answers back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum LoadBalancer {
    /// With the balancing node's address, and back by way of it
    #[default]
    Snat,
    /// Unchanged, in packets of their own, and answered straight from there
    Dsr,
}

/// What `up` takes of all this.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// Addresses of nodes, pods and services; what a running cluster has, or ipv4
    #[arg(long)]
    pub ip_family: Option<Families>,
    /// How packets of pods get to other nodes; what a running cluster has, or off
    #[arg(long)]
    pub tunnel: Option<Tunnel>,
    /// How the uplinks balance; what a running cluster has, or auto
    #[arg(long)]
    pub xdp: Option<Xdp>,
    /// How packets from outside get to backends on other nodes; what a running cluster has, or snat
    #[arg(long)]
    pub load_balancer_mode: Option<LoadBalancer>,
}

/// What a cluster has of all this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Modes {
    /// Addresses.
    pub families: Families,
    /// Between nodes.
    pub tunnel: Tunnel,
    /// At the uplinks.
    pub xdp: Xdp,
    /// To backends on other nodes.
    #[serde(default)]
    pub load_balancer: LoadBalancer,
}

impl Modes {
    /// Takes what is wanted; the families of a running cluster stay what they are.
    ///
    /// # Errors
    /// When other families are wanted of a running cluster.
    pub fn choose(&mut self, wanted: &Wanted, running: bool) -> Result<()> {
        if let Some(families) = wanted.ip_family {
            if running && families != self.families {
                bail!(
                    "the running cluster's addresses are {}: `cargo xtask down` first",
                    name(&self.families)
                );
            }
            self.families = families;
        }
        self.tunnel = wanted.tunnel.unwrap_or(self.tunnel);
        self.xdp = wanted.xdp.unwrap_or(self.xdp);
        self.load_balancer = wanted.load_balancer_mode.unwrap_or(self.load_balancer);
        Ok(())
    }

    fn pick<T>(self, v4: T, v6: T) -> Vec<T> {
        match self.families {
            Families::Ipv4 => vec![v4],
            Families::Ipv6 => vec![v6],
            Families::Dual => vec![v4, v6],
        }
    }

    /// A node's addresses.
    pub fn node_ips(self, node: Node) -> Vec<IpAddr> {
        self.pick(node.ip().into(), node.ip6().into())
    }

    /// The machine's addresses on the bridge.
    pub fn machine_ips(self) -> Vec<IpAddr> {
        self.pick(layout::MACHINE.into(), layout::MACHINE6.into())
    }

    /// The networks of pods and of services, as both programs' flags.
    pub fn cidrs(self) -> Vec<(&'static str, String)> {
        vec![
            (
                "--cluster-cidr",
                self.pick("10.244.0.0/16", "fd00:10:244::/56").join(","),
            ),
            (
                "--service-cidr",
                self.pick("10.96.0.0/16", "fd00:10:96::/112").join(","),
            ),
        ]
    }

    /// The addresses that services of type LoadBalancer get.
    pub fn pool(self) -> String {
        self.pick("172.30.0.200-172.30.0.250", "fd00:30::200-fd00:30::2ff")
            .join(",")
    }

    /// The agent's flags for tunnel, XDP and balancing.
    pub fn agent_flags(self) -> Vec<(&'static str, String)> {
        vec![
            ("--tunnel", name(&self.tunnel)),
            ("--xdp", name(&self.xdp)),
            ("--load-balancer-mode", name(&self.load_balancer)),
        ]
    }
}

/// A value's name on the command line.
fn name(value: &impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}
