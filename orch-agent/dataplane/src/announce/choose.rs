//! Who announces an address: pure.

use std::{collections::BTreeSet, net::IpAddr};

use crate::liveness::Life;

/// How many nodes at the head of an address's order take part. More at once would have to die to silence it.
const RANKS: usize = 8;

/// What this node does about an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Whether it announces it.
    pub announce: bool,
    /// The nodes whose lives must be known for that.
    pub ask: Vec<String>,
}

/// The nodes that may announce the address, in the order in which they should: by rendezvous hashing (Thaler and
/// Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", 1998), so that addresses spread over the nodes and
/// a node that comes or goes moves no other node's.
#[must_use]
pub fn order<'a>(
    address: IpAddr,
    nodes: impl Iterator<Item = &'a String>,
    only: Option<&BTreeSet<String>>,
) -> Vec<&'a str> {
    let mut order: Vec<(u64, &str)> = nodes
        .filter(|name| only.is_none_or(|only| only.contains(*name)))
        .map(|name| (weight(address, name), name.as_str()))
        .collect();
    order.sort_unstable_by(|a, b| b.cmp(a));
    order.into_iter().map(|(_, name)| name).collect()
}

/// FNV-1a (IETF draft-eastlake-fnv) of address and name, and then the finaliser of `SplitMix64`, since names that
/// differ in the last letter only should not be neighbours.
fn weight(address: IpAddr, name: &str) -> u64 {
    let octets = match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let hash = octets
        .into_iter()
        .chain(name.bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// Whether the node `own` announces an address with this order: when every node before it is dead. What it `holds`
/// already, from before a restart perhaps, it gives up only to a node that is alive for certain.
#[must_use]
pub fn choose(order: &[&str], own: &str, holds: bool, life: impl Fn(&str) -> Life) -> Choice {
    let rank = order
        .iter()
        .position(|name| *name == own)
        .filter(|rank| *rank < RANKS);
    let mut choice = Choice {
        announce: rank.is_some(),
        ask: Vec::new(),
    };
    // One node after the other: whoever follows an alive one need not know more.
    for before in order.iter().take(rank.unwrap_or_default()) {
        choice.ask.push((*before).to_owned());
        match life(before) {
            Life::Dead => continue,
            Life::Alive => choice.announce = false,
            Life::Unknown => choice.announce = holds,
        }
        break;
    }
    choice
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("node{number}")).collect()
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([172, 30, 0, last])
    }

    #[test]
    fn the_first_that_lives_announces() {
        let order = ["a", "b", "c"];
        let life = |dead: &'static [&str]| {
            move |name: &str| {
                if dead.contains(&name) {
                    Life::Dead
                } else {
                    Life::Alive
                }
            }
        };
        let announcers = |dead: &'static [&str]| -> Vec<&str> {
            let alive = order.into_iter().filter(|name| !dead.contains(name));
            alive
                .filter(|name| choose(&order, name, false, life(dead)).announce)
                .collect()
        };
        assert_eq!(announcers(&[]), ["a"]);
        assert_eq!(announcers(&["a"]), ["b"]);
        assert_eq!(announcers(&["a", "b"]), ["c"]);
        assert_eq!(announcers(&["b"]), ["a"]);
        assert_eq!(
            choose(&order, "d", true, life(&[])),
            Choice {
                announce: false,
                ask: vec![]
            }
        );
        assert_eq!(choose(&order, "c", false, life(&["a"])).ask, ["a", "b"]);
        assert_eq!(
            choose(&order, "c", false, life(&["b"])).ask,
            ["a"],
            "who follows a living one asks no more"
        );
    }

    #[test]
    fn what_is_held_is_given_up_only_to_the_living() {
        let unknown = |_: &str| Life::Unknown;
        assert!(choose(&["a", "b"], "b", true, unknown).announce);
        assert!(!choose(&["a", "b"], "b", false, unknown).announce);
        assert!(!choose(&["a", "b"], "b", true, |_| Life::Alive).announce);
    }

    proptest! {
        #[test]
        fn a_node_that_goes_moves_only_its_own_addresses(count in 2..20_usize, gone in any::<prop::sample::Index>()) {
            let names = names(count);
            let gone = &names[gone.index(count)];
            for last in 0..=255 {
                let before = order(address(last), names.iter(), None);
                let after = order(address(last), names.iter().filter(|name| *name != gone), None);
                let expected: Vec<&str> = before.into_iter().filter(|name| name != gone).collect();
                prop_assert_eq!(after, expected);
            }
        }
    }

    #[test]
    fn addresses_spread_over_the_nodes_that_may() {
        let names = names(3);
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for last in 0..=255 {
            *counts
                .entry(order(address(last), names.iter(), None)[0])
                .or_default() += 1;
        }
        assert!(
            counts.len() == 3 && counts.values().all(|count| *count > 50),
            "{counts:?}"
        );
        let only = BTreeSet::from(["node1".to_owned(), "elsewhere".to_owned()]);
        assert_eq!(order(address(1), names.iter(), Some(&only)), ["node1"]);
    }
}
