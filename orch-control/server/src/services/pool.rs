//! A set of numbers of which each can be taken once: cluster IPs and node ports are both this.

use std::collections::HashSet;

use rand::Rng as _;

/// Numbers `0..size`, each free or taken. What is taken is kept one by one: a range of IPv6 addresses is too large
/// for a bit each.
#[derive(Clone, Debug)]
pub struct Pool {
    size: u128,
    /// What is asked for by name usually comes from below this, so what is dealt out comes from above while it lasts.
    band: u128,
    taken: HashSet<u128>,
}

impl Pool {
    /// All of `0..size` free.
    ///
    /// The lower band is `min(max(16, size / divisor), most)`, as Kubernetes cuts it (KEP-3070 for addresses with 16
    /// and 256, KEP-3668 for ports with 32 and 128).
    #[must_use]
    pub fn new(size: u128, divisor: u128, most: u128) -> Self {
        let band = if size < 16 {
            0
        } else {
            (size / divisor).clamp(16, most.max(16))
        };
        Self {
            size,
            band: band.min(size),
            taken: HashSet::new(),
        }
    }

    /// Takes `number`. False when it is taken already, or not of the pool.
    pub fn take(&mut self, number: u128) -> bool {
        number < self.size && self.taken.insert(number)
    }

    /// Gives `number` back; nothing happens when it was free.
    pub fn give_back(&mut self, number: u128) {
        self.taken.remove(&number);
    }

    /// Takes any free number but those that are `reserved`; `None` when all others are taken.
    pub fn take_any(&mut self, reserved: &[u128]) -> Option<u128> {
        let number = self
            .free_in(self.band, self.size, reserved)
            .or_else(|| self.free_in(0, self.band, reserved))?;
        self.take(number).then_some(number)
    }

    /// A free number of `from..to`: the first from a random place on, so that a number is not used again at once.
    fn free_in(&self, from: u128, to: u128, reserved: &[u128]) -> Option<u128> {
        if from >= to {
            return None;
        }
        let start = rand::rng().random_range(from..to);
        // Among more numbers than are taken there is a free one, so the walk is short even when the range is not.
        (start..to)
            .chain(from..start)
            .find(|number| !self.taken.contains(number) && !reserved.contains(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_number_is_dealt_once_and_the_lower_band_last() {
        let mut pool = Pool::new(100, 16, 256);
        assert!(pool.take(50));
        assert!(!pool.take(50));
        assert!(!pool.take(100));
        let upper: BTreeSet<u128> = (0..83).map(|_| pool.take_any(&[1]).unwrap()).collect();
        assert_eq!(upper, (16..100).filter(|&n| n != 50).collect());
        let lower: BTreeSet<u128> = (0..15).map(|_| pool.take_any(&[1]).unwrap()).collect();
        assert_eq!(lower, (0..16).filter(|&n| n != 1).collect());
        assert_eq!(pool.take_any(&[1]), None);
        pool.give_back(7);
        pool.give_back(7);
        assert_eq!(pool.take_any(&[1]), Some(7));
        assert!(pool.take(1));
    }

    #[test]
    fn a_pool_may_be_as_large_as_a_network_of_ipv6() {
        let mut pool = Pool::new(1 << 64, 16, 256);
        let some: BTreeSet<u128> = (0..1000).map(|_| pool.take_any(&[]).unwrap()).collect();
        assert!(some.len() == 1000 && some.iter().all(|n| (256..1 << 64).contains(n)));
    }
}
