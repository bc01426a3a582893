//! Writing the maps that no planner of the agent fills here.

use std::net::IpAddr;

use aya::maps::lpm_trie::Key;
use orch_dataplane::maps::{FamilyMaps, MapAddress};
use orch_ebpf::{
    bandwidth::{Bucket, BucketKey},
    config::{Announced, Route},
    endpoint::Endpoint,
    policy::{Identity, RULE_ALLOW, Rule, RuleKey},
};

use crate::bench::Bench;

impl Bench {
    /// Changes a pod's entry.
    pub fn change_pod(&mut self, address: IpAddr, change: impl FnOnce(&mut Endpoint)) {
        fn one<A: MapAddress>(maps: &mut FamilyMaps<A>, ip: IpAddr, change: impl FnOnce(&mut Endpoint)) {
            let address = A::from_ip(ip).unwrap();
            let mut endpoint = maps.endpoints.get(&address, 0).unwrap();
            change(&mut endpoint);
            maps.endpoints.insert(address, endpoint, 0).unwrap();
        }
        match address {
            IpAddr::V4(_) => one(&mut self.maps.v4, address, change),
            IpAddr::V6(_) => one(&mut self.maps.v6, address, change),
        }
    }

    /// Puts pods under a set of policies.
    pub fn isolate(&mut self, address: IpAddr, policy: u32, flags: u32) {
        self.change_pod(address, |endpoint| {
            endpoint.policy = policy;
            endpoint.flags = flags;
        });
    }

    /// Gives a network an identity.
    pub fn identify(&mut self, (bits, network): (u32, IpAddr), number: u32) {
        fn one<A: MapAddress>(maps: &mut FamilyMaps<A>, bits: u32, network: IpAddr, number: u32) {
            let key = Key::new(bits, A::from_ip(network).unwrap());
            maps.identities.insert(&key, Identity { number }, 0).unwrap();
        }
        match network {
            IpAddr::V4(_) => one(&mut self.maps.v4, bits, network, number),
            IpAddr::V6(_) => one(&mut self.maps.v6, bits, network, number),
        }
    }

    /// Allows what the key's first bits say.
    pub fn allow(&mut self, bits: u32, key: RuleKey) {
        let rule = Rule { verdict: RULE_ALLOW };
        self.maps.rules.insert(&Key::new(bits, key), rule, 0).unwrap();
    }

    /// Allows it no longer.
    pub fn disallow(&mut self, bits: u32, key: RuleKey) {
        self.maps.rules.remove(&Key::new(bits, key)).unwrap();
    }

    /// Announces an address on the uplink.
    pub fn announce(&mut self, address: IpAddr, ifindex: u32, mac: [u8; 6]) {
        let announced = Announced {
            ifindex,
            mac,
            _pad: [0; 2],
        };
        match address {
            IpAddr::V4(ip) => self.maps.v4.announced.insert(ip.octets(), announced, 0),
            IpAddr::V6(ip) => self.maps.v6.announced.insert(ip.octets(), announced, 0),
        }
        .unwrap();
    }

    /// Leads a destination through the tunnel.
    pub fn route(&mut self, (bits, network): (u32, IpAddr), node: IpAddr) {
        let route = match node {
            IpAddr::V4(ip) => {
                let mut wide = [0; 16];
                wide[..4].copy_from_slice(&ip.octets());
                Route {
                    node: wide,
                    family: 4,
                }
            }
            IpAddr::V6(ip) => Route {
                node: ip.octets(),
                family: 6,
            },
        };
        match network {
            IpAddr::V4(ip) => self.maps.v4.routes.insert(&Key::new(bits, ip.octets()), route, 0),
            IpAddr::V6(ip) => self.maps.v6.routes.insert(&Key::new(bits, ip.octets()), route, 0),
        }
        .unwrap();
    }

    /// Sets a limit of bandwidth.
    pub fn limit(&mut self, key: BucketKey, bucket: Bucket) {
        self.maps.buckets.insert(key, bucket, 0).unwrap();
    }
}
