//! Numbers for things of one kind: the same thing gets the same number again in the next life of the agent, as far
//! as that can be, and a number stands for one thing only.

use std::{
    collections::{HashMap, HashSet},
    hash::{Hash, Hasher},
};

/// FNV-1a: a hash that stays the same from one version of the agent to the next, unlike the standard library's.
pub struct StableHasher(u64);

impl Default for StableHasher {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for StableHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// The stable hash of a value.
fn stable_hash(value: &impl Hash) -> u64 {
    let mut hasher = StableHasher::default();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The numbers in use for things of the kind `T`.
#[derive(Debug)]
pub struct Numbers<T> {
    first: u32,
    /// Numbers that stand for something, those at rest included.
    used: HashSet<u32>,
    /// Numbers found in the kernel, whose meaning is not known.
    foreign: HashSet<u32>,
    /// What was given up, with the number that the kernel may still hold for it.
    resting: HashMap<T, u32>,
}

impl<T: Hash + Eq> Numbers<T> {
    /// Numbers from `first` on.
    pub fn new(first: u32) -> Self {
        Self {
            first,
            used: HashSet::new(),
            foreign: HashSet::new(),
            resting: HashMap::new(),
        }
    }

    /// The number that a thing would like.
    pub fn wish(&self, thing: &T) -> u32 {
        let hash = stable_hash(thing);
        // The mixed high half: the low bits of FNV-1a alone are weak.
        let mixed = (hash ^ (hash >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        u32::try_from(mixed >> 32).unwrap_or_default().max(self.first)
    }

    /// Tells what the kernel holds. Such numbers are given only to a thing for which they are known to stand.
    pub fn set_foreign(&mut self, foreign: HashSet<u32>) {
        self.foreign = foreign;
    }

    /// Gives a number; `known` says that the wished one stands for this very thing in the kernel. A thing that comes
    /// back before its number has rested gets it again: another one would outlive the reason for it, and the next
    /// agent would have everything to write anew.
    pub fn take(&mut self, thing: &T, known: bool) -> u32 {
        if let Some(number) = self.resting.remove(thing) {
            return number;
        }
        let mut number = self.wish(thing);
        if !(known && self.foreign.remove(&number)) {
            while self.used.contains(&number) || self.foreign.contains(&number) {
                number = number.wrapping_add(1).max(self.first);
            }
        }
        self.used.insert(number);
        number
    }

    /// Gives the number of a thing up; nothing else gets it before [`Self::rested`].
    pub fn release(&mut self, thing: T, number: u32) {
        self.resting.insert(thing, number);
    }

    /// The kernel no longer holds what was given up, nor what was foreign, except for `held`.
    pub fn rested(&mut self, held: &HashSet<u32>) {
        self.resting
            .retain(|_, number| held.contains(number) || !self.used.remove(number));
        self.foreign.retain(|number| held.contains(number));
    }
}

/// A count of users for each of the things in use.
#[derive(Debug)]
pub struct Counted<K>(HashMap<K, usize>);

impl<K> Default for Counted<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Hash + Eq> Counted<K> {
    /// Adds a user and says whether it is the first.
    pub fn add(&mut self, key: K) -> bool {
        let count = self.0.entry(key).or_default();
        *count += 1;
        *count == 1
    }

    /// Removes a user and says whether it was the last.
    pub fn remove(&mut self, key: &K) -> bool {
        match self.0.get_mut(key) {
            Some(1) => {
                self.0.remove(key);
                true
            }
            Some(count) => {
                *count -= 1;
                false
            }
            None => false,
        }
    }

    /// Whether it has a user.
    pub fn contains(&self, key: &K) -> bool {
        self.0.contains_key(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Things of which all have one hash.
    #[derive(Debug, PartialEq, Eq)]
    struct Alike(&'static str);

    impl Hash for Alike {
        fn hash<H: Hasher>(&self, state: &mut H) {
            "alike".hash(state);
        }
    }

    #[test]
    fn a_number_is_the_same_again_but_never_two_things() {
        let mut numbers = Numbers::new(16);
        let first = numbers.take(&Alike("web"), false);
        let second = numbers.take(&Alike("db"), false);
        assert_ne!(second, first, "the same hash is not the same thing");
        numbers.release(Alike("web"), first);
        let third = numbers.take(&Alike("dns"), false);
        assert!(third != first && third != second, "the kernel may still hold it");
        assert_eq!(
            numbers.take(&Alike("web"), false),
            first,
            "what it held it for is back"
        );
        numbers.release(Alike("web"), first);
        numbers.rested(&HashSet::new());
        assert_eq!(numbers.take(&Alike("log"), false), first);
    }

    #[test]
    fn a_number_of_the_kernel_is_kept_only_by_what_it_stands_for() {
        let mut numbers = Numbers::new(16);
        let wish = numbers.wish(&Alike("web"));
        numbers.set_foreign(HashSet::from([wish]));
        let stranger = numbers.take(&Alike("db"), false);
        assert_ne!(stranger, wish);
        assert_eq!(numbers.take(&Alike("web"), true), wish);
        assert!(Numbers::new(u32::MAX).wish(&Alike("web")) == u32::MAX);
    }
}
