//! A set of numbers of which each can be taken once: cluster IPs and node ports are both this.

use rand::Rng as _;

/// Numbers `0..size`, each free or taken. One bit each.
#[derive(Clone, Debug)]
pub struct Pool {
    size: u32,
    /// What is asked for by name usually comes from below this, so what is dealt out comes from above while it lasts.
    band: u32,
    words: Vec<u64>,
    taken: u32,
}

impl Pool {
    /// All of `0..size` free.
    ///
    /// The lower band is `min(max(16, size / divisor), most)`, as Kubernetes cuts it (KEP-3070 for addresses with 16
    /// and 256, KEP-3668 for ports with 32 and 128).
    #[must_use]
    pub fn new(size: u32, divisor: u32, most: u32) -> Self {
        let band = if size < 16 {
            0
        } else {
            (size / divisor).clamp(16, most.max(16))
        };
        Self {
            size,
            band: band.min(size),
            words: vec![0; size.div_ceil(64) as usize],
            taken: 0,
        }
    }

    fn is_taken(&self, number: u32) -> bool {
        self.words
            .get(number as usize / 64)
            .is_none_or(|word| word >> (number % 64) & 1 == 1)
    }

    /// Takes `number`. False when it is taken already, or not of the pool.
    pub fn take(&mut self, number: u32) -> bool {
        if number >= self.size || self.is_taken(number) {
            return false;
        }
        self.words[number as usize / 64] |= 1 << (number % 64);
        self.taken += 1;
        true
    }

    /// Gives `number` back; nothing happens when it was free.
    pub fn give_back(&mut self, number: u32) {
        if number < self.size && self.is_taken(number) {
            self.words[number as usize / 64] &= !(1 << (number % 64));
            self.taken -= 1;
        }
    }

    /// Takes any free number; `None` when all are taken.
    pub fn take_any(&mut self) -> Option<u32> {
        if self.taken == self.size {
            return None;
        }
        let number = self
            .free_in(self.band, self.size)
            .or_else(|| self.free_in(0, self.band))?;
        self.take(number).then_some(number)
    }

    /// A free number of `from..to`: the first from a random place on, so that a number is not used again at once.
    fn free_in(&self, from: u32, to: u32) -> Option<u32> {
        if from >= to {
            return None;
        }
        let start = rand::rng().random_range(from..to);
        (start..to)
            .chain(from..start)
            .find(|&number| !self.is_taken(number))
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
        let upper: BTreeSet<u32> = (0..83).map(|_| pool.take_any().unwrap()).collect();
        assert_eq!(upper, (16..100).filter(|&n| n != 50).collect());
        let lower: BTreeSet<u32> = (0..16).map(|_| pool.take_any().unwrap()).collect();
        assert_eq!(lower, (0..16).collect());
        assert_eq!(pool.take_any(), None);
        pool.give_back(7);
        pool.give_back(7);
        assert_eq!(pool.take_any(), Some(7));
    }
}
