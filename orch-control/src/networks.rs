//! The flags that say which addresses the cluster uses, each for one family or both.

use std::net::IpAddr;

use anyhow::ensure;
use clap::Args;
use ipnet::IpNet;
use orch_controllers::AddressPool;
use orch_server::services::nth_address;

/// Which of a service network's addresses is cluster DNS's unless said otherwise: the tenth, as kubeadm has it.
const DNS: u128 = 10;

/// See the module.
#[derive(Args, Clone)]
pub(crate) struct Networks {
    /// Where Services get their cluster IPs from: a network, or one of each family, the primary first
    #[arg(long, value_delimiter = ',', default_value = "10.96.0.0/16")]
    pub(crate) service_cidr: Vec<IpNet>,
    /// Where nodes get their pods' addresses from: a network, or one of each family, the primary first
    #[arg(long, value_delimiter = ',', default_value = "10.244.0.0/16")]
    pub(crate) cluster_cidr: Vec<IpNet>,
    /// The addresses of cluster DNS, at most one of each family [default: the tenth of each service network]
    #[arg(long, value_delimiter = ',')]
    cluster_dns: Vec<IpAddr>,
    /// The prefix length of one node's part of the cluster's IPv4 pod addresses
    #[arg(long, default_value_t = 24)]
    pub(crate) node_cidr_mask_size_ipv4: u8,
    /// The prefix length of one node's part of the cluster's IPv6 pod addresses
    #[arg(long, default_value_t = 64)]
    pub(crate) node_cidr_mask_size_ipv6: u8,
    /// Where Services of type LoadBalancer get their addresses from: A-B, A or networks, separated by commas. Without
    /// it somebody else gives them their addresses
    #[arg(long)]
    pub(crate) load_balancer_pool: Option<AddressPool>,
}

impl Networks {
    /// Checks what clap cannot: how the flags fit together.
    pub(crate) fn check(&self, advertise: IpAddr) -> anyhow::Result<()> {
        let lists = [
            ("--service-cidr", addresses(&self.service_cidr)),
            ("--cluster-cidr", addresses(&self.cluster_cidr)),
            ("--cluster-dns", self.cluster_dns.clone()),
        ];
        for (flag, all) in &lists {
            let alike = all.len() > 2 || all.len() == 2 && all[0].is_ipv4() == all[1].is_ipv4();
            ensure!(!alike, "use {flag}: give it one value per address family");
        }
        let families = |all: &[IpNet]| all.iter().map(|net| net.addr().is_ipv4()).collect::<Vec<_>>();
        ensure!(
            families(&self.service_cidr) == families(&self.cluster_cidr),
            "use --service-cidr and --cluster-cidr: they must be of the same address families, in the same order"
        );
        for service in &self.service_cidr {
            for cluster in &self.cluster_cidr {
                ensure!(
                    !service.contains(cluster) && !cluster.contains(service),
                    "use --service-cidr {service} and --cluster-cidr {cluster}: they overlap"
                );
            }
            ensure!(
                !self.cluster_dns.is_empty() || nth_address(*service, DNS).is_some(),
                "use --service-cidr {service}: it is too small to have a tenth address for cluster DNS; give --cluster-dns"
            );
        }
        for dns in &self.cluster_dns {
            ensure!(
                self.service_cidr.iter().any(|net| net.contains(dns)),
                "use cluster DNS {dns}: it is not in the service range {}",
                self.service_cidr
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(",")
            );
        }
        // The Service `kubernetes` is of the primary family, and so must its endpoint be.
        let primary = self.service_cidr.first().map(|net| net.addr().is_ipv4());
        ensure!(
            advertise.is_loopback() || primary == Some(advertise.is_ipv4()),
            "use --advertise-address {advertise}: it must be of the address family of the first --service-cidr"
        );
        Ok(())
    }

    /// The addresses of cluster DNS, in the order of the service networks.
    pub(crate) fn cluster_dns(&self) -> Vec<IpAddr> {
        if self.cluster_dns.is_empty() {
            return self
                .service_cidr
                .iter()
                .filter_map(|net| nth_address(*net, DNS))
                .collect();
        }
        self.cluster_dns.clone()
    }
}

fn addresses(networks: &[IpNet]) -> Vec<IpAddr> {
    networks.iter().map(IpNet::addr).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        networks: Networks,
    }

    fn check(args: &str, advertise: &str) -> Result<Vec<String>, String> {
        let args = std::iter::once("orch-control").chain(args.split_whitespace());
        let cli = Cli::try_parse_from(args).map_err(|error| error.to_string())?;
        let checked = cli.networks.check(advertise.parse().unwrap());
        checked.map_err(|error| error.to_string())?;
        Ok(cli
            .networks
            .cluster_dns()
            .iter()
            .map(ToString::to_string)
            .collect())
    }

    #[test]
    fn one_family_or_both() {
        assert_eq!(check("", "10.0.0.1").unwrap(), ["10.96.0.10"]);
        let dual =
            "--service-cidr 10.96.0.0/16,fd00:10:96::/112 --cluster-cidr 10.244.0.0/16,fd00:10:244::/56";
        assert_eq!(check(dual, "10.0.0.1").unwrap(), ["10.96.0.10", "fd00:10:96::a"]);
        let six = "--service-cidr fd00:10:96::/112 --cluster-cidr fd00:10:244::/56 --load-balancer-pool fd00::1-fd00::9";
        assert_eq!(check(six, "fd00::1").unwrap(), ["fd00:10:96::a"]);
        assert_eq!(check(six, "127.0.0.1").unwrap(), ["fd00:10:96::a"]);
        for (args, want) in [
            (
                "--service-cidr 10.0.0.0/16,10.1.0.0/16",
                "one value per address family",
            ),
            ("--service-cidr fd00:10:96::/112", "of the same address families"),
            ("--service-cidr 10.244.1.0/24", "they overlap"),
            ("--service-cidr 10.0.0.0/29", "too small"),
            (
                "--cluster-dns 10.97.0.10",
                "not in the service range 10.96.0.0/16",
            ),
            (six, "must be of the address family of the first --service-cidr"),
            ("--load-balancer-pool 10.0.0.9-10.0.0.1", "is after the last"),
            ("--cluster-cidr x", "invalid"),
        ] {
            let error = check(args, "10.0.0.1").unwrap_err();
            assert!(error.contains(want), "{args}: {error}");
        }
    }
}
