//! Choosing pod addresses: round robin, so that an address rests as long as possible before it is used again.

use std::{collections::BTreeSet, net::Ipv4Addr};

use ipnet::Ipv4Net;

/// The pool of a node's pod addresses; which are in use is kept by the caller.
#[derive(Debug, Clone, Copy)]
pub struct AddressPool {
    cidr: Ipv4Net,
    last: u32,
}

impl AddressPool {
    /// A pool over the range without its first and last address; `None` when nothing is left.
    #[must_use]
    pub fn new(cidr: Ipv4Net, used: &BTreeSet<Ipv4Addr>) -> Option<Self> {
        if cidr.prefix_len() > 30 {
            return None;
        }
        let highest = used.range(cidr.network()..=cidr.broadcast()).next_back().copied();
        Some(Self {
            cidr: cidr.trunc(),
            last: u32::from(highest.unwrap_or(cidr.network())),
        })
    }

    /// The range.
    #[must_use]
    pub fn cidr(&self) -> Ipv4Net {
        self.cidr
    }

    /// The next address that is not in use.
    pub fn take(&mut self, used: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
        let first = u32::from(self.cidr.network()) + 1;
        let count = u32::from(self.cidr.broadcast()) - first;
        for step in 0..count {
            let offset = (self.last.wrapping_sub(first).wrapping_add(1).wrapping_add(step)) % count;
            let address = Ipv4Addr::from(first + offset);
            if !used.contains(&address) {
                self.last = u32::from(address);
                return Some(address);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_every_address_once_and_then_none() {
        let cidr: Ipv4Net = "10.1.2.0/29".parse().unwrap();
        let mut used = BTreeSet::new();
        let mut pool = AddressPool::new(cidr, &used).unwrap();
        for last in 1..=6 {
            let address = pool.take(&used).unwrap();
            assert_eq!(address, Ipv4Addr::new(10, 1, 2, last));
            used.insert(address);
        }
        assert_eq!(pool.take(&used), None);
    }

    #[test]
    fn a_freed_address_rests() {
        let mut used = BTreeSet::from([Ipv4Addr::new(10, 1, 2, 1), Ipv4Addr::new(10, 1, 2, 2)]);
        let mut pool = AddressPool::new("10.1.2.0/24".parse().unwrap(), &used).unwrap();
        used.remove(&Ipv4Addr::new(10, 1, 2, 1));
        assert_eq!(pool.take(&used), Some(Ipv4Addr::new(10, 1, 2, 3)));
    }

    #[test]
    fn a_range_without_room_is_refused() {
        assert!(AddressPool::new("10.1.2.0/31".parse().unwrap(), &BTreeSet::new()).is_none());
    }
}
