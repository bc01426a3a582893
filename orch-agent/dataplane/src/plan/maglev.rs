//! Maglev tables (Eisenbud and others, "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
//! section 3.4): every backend walks all slots in an order of its own, and they take turns claiming free ones.
//!
//! A table is a function of its size and of the backends' addresses and ports alone, so that every node has the same.

use orch_ebpf::{Address, service::Backend};

/// The sizes, primes all, and the most backends of each: at least 25 slots for each backend, so that shares differ by
/// few per cent. The last one has no limit.
const SIZES: [(u32, usize); 5] = [
    (251, 10),
    (1021, 40),
    (4093, 163),
    (16_381, 655),
    (65_521, usize::MAX),
];

/// The size for a number of backends. A table of the size `current` shrinks only when its backends are at most three
/// quarters of what the smaller one is for, since a change of size moves most flows.
#[must_use]
pub fn size(backends: usize, current: Option<u32>) -> u32 {
    let fitting = SIZES
        .iter()
        .position(|(_, most)| backends <= *most)
        .unwrap_or(SIZES.len() - 1);
    let now = current.and_then(|current| SIZES.iter().position(|(size, _)| *size == current));
    let index = match now {
        Some(now) if now > fitting => {
            let roomy = SIZES
                .iter()
                .position(|(_, most)| backends <= most / 4 * 3 + most % 4 * 3 / 4)
                .unwrap_or(SIZES.len() - 1);
            roomy.min(now)
        }
        _ => fitting,
    };
    SIZES[index].0
}

/// Two numbers that depend on nothing but the backend's address and port.
fn hashes<A: Address>(backend: &Backend<A>) -> (u64, u64) {
    let wide = u128::from_be_bytes(backend.address.wide());
    let words = [(wide >> 64) as u64, wide as u64, u64::from(backend.port)];
    let hash = |seed: u64| words.iter().fold(seed, |hash, word| mix(hash ^ word));
    (hash(0x6f72_6368_6f66_6673), hash(0x6f72_6368_736b_6970))
}

/// The finaliser of `SplitMix64` (Steele, Lea and Flood, OOPSLA 2014): each bit of the input moves half of the output.
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Fills a table of `size` slots, a prime, with the numbers of the backends, whose order does not matter. Empty
/// without backends.
#[must_use]
pub fn table<A: Address>(size: u32, backends: &[(Backend<A>, u32)]) -> Vec<u32> {
    if backends.is_empty() || size < 2 {
        return Vec::new();
    }
    let mut walkers: Vec<Walker> = {
        let mut sorted: Vec<_> = backends.to_vec();
        sorted.sort_unstable_by_key(|(backend, _)| (backend.address, backend.port));
        sorted
            .iter()
            .map(|(backend, number)| Walker::new(size, backend, *number))
            .collect()
    };
    // Zero is no backend's number.
    let mut slots = vec![0; size as usize];
    let mut free = size;
    loop {
        for walker in &mut walkers {
            while let Some(slot) = slots.get_mut(walker.at as usize) {
                walker.step(size);
                if *slot == 0 {
                    *slot = walker.number;
                    break;
                }
            }
            free -= 1;
            if free == 0 {
                return slots;
            }
        }
    }
}

/// A backend's walk over the slots: from a place of its own in steps of its own, which reach every slot as the size is
/// a prime.
struct Walker {
    at: u32,
    skip: u32,
    number: u32,
}

impl Walker {
    fn new<A: Address>(size: u32, backend: &Backend<A>, number: u32) -> Self {
        let (offset, skip) = hashes(backend);
        let modulo = |hash: u64, of: u32| u32::try_from(hash % u64::from(of)).unwrap_or_default();
        Self {
            at: modulo(offset, size),
            skip: modulo(skip, size - 1) + 1,
            number,
        }
    }

    fn step(&mut self, size: u32) {
        self.at += self.skip;
        if self.at >= size {
            self.at -= size;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use orch_ebpf::{Address4, PROTOCOL_TCP};
    use proptest::prelude::*;

    use super::*;

    fn backend(number: u16) -> (Backend<Address4>, u32) {
        let [high, low] = number.to_be_bytes();
        let backend = Backend {
            address: [10, 244, high, low],
            port: 8080,
            protocol: PROTOCOL_TCP,
            flags: 0,
            node: [0; 4],
        };
        (backend, u32::from(number) + 1)
    }

    fn shares(table: &[u32]) -> HashMap<u32, usize> {
        let mut shares = HashMap::new();
        for number in table {
            *shares.entry(*number).or_default() += 1;
        }
        shares
    }

    fn some() -> impl Strategy<Value = BTreeSet<u16>> {
        prop::collection::btree_set(0..2000_u16, 1..120)
    }

    proptest! {
        #[test]
        fn shares_are_even(numbers in some()) {
            let backends: Vec<_> = numbers.iter().map(|number| backend(*number)).collect();
            let size = size(backends.len(), None);
            let table = table(size, &backends);
            prop_assert_eq!(table.len(), size as usize);
            let shares = shares(&table);
            // Taking turns, no two differ by more than one slot.
            let (least, most) = (shares.values().min().copied(), shares.values().max().copied());
            prop_assert_eq!(shares.len(), backends.len());
            prop_assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1));
        }

        #[test]
        fn order_and_history_do_not_matter(numbers in some(), turn in 0..100_usize) {
            let mut backends: Vec<_> = numbers.iter().map(|number| backend(*number)).collect();
            let first = table(1021, &backends);
            let len = backends.len();
            backends.rotate_left(turn % len);
            backends.reverse();
            prop_assert_eq!(first, table(1021, &backends));
        }
    }

    /// The share of a table that moves though the backend of those slots stays, when another leaves.
    fn moved(backends: &[(Backend<Address4>, u32)], who: usize) -> f64 {
        let size = size(backends.len(), None);
        let mut after = backends.to_vec();
        let (_, gone) = after.remove(who);
        let (old, new) = (table(size, backends), table(size, &after));
        // A join is a leave read backwards.
        assert!(!new.contains(&gone));
        let moved = old
            .iter()
            .zip(&new)
            .filter(|(old, new)| **old != gone && old != new);
        moved.count() as f64 / f64::from(size)
    }

    /// Two backends whose ways through the table are alike may change places, so that a single one moves many, where there
    /// are few.
    #[test]
    fn a_backend_that_leaves_moves_few_flows_of_others() {
        for count in [2, 3, 5, 10, 11, 40, 119] {
            let shares: Vec<f64> = (0..60_u16)
                .map(|set| {
                    let backends: Vec<_> = (0..count).map(|index| backend(set * 31 + index * 17)).collect();
                    moved(&backends, usize::from(set % count))
                })
                .collect();
            let mean = shares.iter().sum::<f64>() / shares.len() as f64;
            assert!(mean < 0.08, "{count} backends: {mean} in the mean of {shares:?}");
        }
    }

    #[test]
    fn a_size_holds_while_the_number_of_backends_wavers() {
        assert_eq!(size(10, None), 251);
        assert_eq!(size(11, Some(251)), 1021);
        for backends in [10, 9, 8] {
            assert_eq!(size(backends, Some(1021)), 1021);
        }
        assert_eq!(size(7, Some(1021)), 251);
        assert_eq!(size(3, Some(65_521)), 251);
        assert_eq!(size(35, Some(65_521)), 4093);
        assert_eq!(size(100_000, None), 65_521);
        assert_eq!(size(3, Some(12)), 251, "a size that is none of ours is forgotten");
    }

    #[test]
    fn no_backend_is_no_table() {
        assert!(table::<Address4>(251, &[]).is_empty());
    }
}
