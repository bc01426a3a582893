//! Choosing pod addresses: round robin, so that an address rests as long as possible before it is used again.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

/// Most addresses of a pool, which is many times what a node has pods.
const POOL_MAX: u128 = 1 << 24;

/// The pool of a node's pod addresses of one family; which are in use is kept by the caller.
#[derive(Debug, Clone, Copy)]
pub struct AddressPool {
    cidr: IpNet,
    /// The first address after the network's own.
    first: u128,
    count: u128,
    /// Offset from the first of the one that was given last.
    last: u128,
}

impl AddressPool {
    /// A pool over the range without its first address, and without IPv4's last; `None` when nothing is left.
    #[must_use]
    pub fn new(cidr: IpNet, used: &BTreeSet<IpAddr>) -> Option<Self> {
        let cidr = cidr.trunc();
        let first = number(cidr.network()) + 1;
        let last = match cidr {
            IpNet::V4(_) => number(cidr.broadcast()).checked_sub(1)?,
            IpNet::V6(_) => number(cidr.broadcast()),
        };
        if last < first {
            return None;
        }
        let count = (last - first).saturating_add(1).min(POOL_MAX);
        // An agent that starts goes on after the highest address in use.
        let highest = used
            .iter()
            .filter(|ip| cidr.contains(*ip))
            .filter_map(|ip| number(*ip).checked_sub(first))
            .filter(|offset| *offset < count)
            .max();
        Some(Self {
            cidr,
            first,
            count,
            last: highest.unwrap_or(count - 1),
        })
    }

    /// The range.
    #[must_use]
    pub fn cidr(&self) -> IpNet {
        self.cidr
    }

    /// The next address that is neither in use nor resting; one that rests when there is no other.
    pub fn take(&mut self, used: &BTreeSet<IpAddr>, resting: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        let free = |ip: &IpAddr| !used.contains(ip);
        let offset = self
            .offsets()
            .find(|offset| {
                let ip = self.address(*offset);
                free(&ip) && !resting.contains(&ip)
            })
            .or_else(|| self.offsets().find(|offset| free(&self.address(*offset))))?;
        self.last = offset;
        Some(self.address(offset))
    }

    /// Every offset once, beginning after the last one given.
    fn offsets(&self) -> impl Iterator<Item = u128> + use<> {
        let (last, count) = (self.last, self.count);
        (1..=count).map(move |step| (last + step) % count)
    }

    fn address(&self, offset: u128) -> IpAddr {
        let number = self.first + offset;
        match self.cidr {
            IpNet::V4(_) => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
            IpNet::V6(_) => Ipv6Addr::from(number).into(),
        }
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn takes_every_address_once_and_then_none() {
        let mut used = BTreeSet::new();
        let mut pool = AddressPool::new("10.1.2.0/29".parse().unwrap(), &used).unwrap();
        for last in 1..=6 {
            let address = pool.take(&used, &BTreeSet::new()).unwrap();
            assert_eq!(address, ip(&format!("10.1.2.{last}")));
            used.insert(address);
        }
        assert_eq!(pool.take(&used, &BTreeSet::new()), None);
    }

    #[test]
    fn a_freed_address_rests() {
        let mut used = BTreeSet::from([ip("10.1.2.1"), ip("10.1.2.2")]);
        let mut pool = AddressPool::new("10.1.2.0/24".parse().unwrap(), &used).unwrap();
        used.remove(&ip("10.1.2.1"));
        assert_eq!(pool.take(&used, &BTreeSet::new()), Some(ip("10.1.2.3")));
        let resting = BTreeSet::from([ip("10.1.2.4")]);
        assert_eq!(pool.take(&used, &resting), Some(ip("10.1.2.5")));
    }

    #[test]
    fn what_rests_is_better_than_nothing() {
        let used = BTreeSet::from([ip("10.1.2.1")]);
        let mut pool = AddressPool::new("10.1.2.0/30".parse().unwrap(), &used).unwrap();
        let resting = BTreeSet::from([ip("10.1.2.2")]);
        assert_eq!(pool.take(&used, &resting), Some(ip("10.1.2.2")));
    }

    #[test]
    fn ipv6_goes_on_without_end() {
        let mut used = BTreeSet::new();
        let mut pool = AddressPool::new("fd00:10:244:1::/64".parse().unwrap(), &used).unwrap();
        for last in 1..300 {
            let address = pool.take(&used, &BTreeSet::new()).unwrap();
            assert_eq!(address, ip(&format!("fd00:10:244:1::{last:x}")));
            used.clear();
            used.insert(address);
        }
        let again = AddressPool::new("fd00:10:244:1::/64".parse().unwrap(), &used)
            .unwrap()
            .take(&used, &used);
        assert_eq!(again, Some(ip("fd00:10:244:1::12c")));
    }

    #[test]
    fn a_range_without_room_is_refused() {
        for cidr in ["10.1.2.0/31", "10.1.2.0/32", "fd00::/128"] {
            assert!(
                AddressPool::new(cidr.parse().unwrap(), &BTreeSet::new()).is_none(),
                "{cidr}"
            );
        }
    }
}
