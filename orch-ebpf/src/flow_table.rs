//! The table of flows: where the entry of a [`Tuple`] stands.
//!
//! A hash of the tuple names two rows of [`WAYS`] slots each, and what a search has to compare of a row is one cache line of
//! tags. All rows together are a megabyte or two, which a CPU keeps near; so what a new flow waits for is not memory, as with
//! the kernel's hash that forgets what was not used for longest: its slot, which is far, is only written. A new flow takes
//! whichever slot of its first row is free or is worth least. Only when few of these are free, or all are worth keeping, may it
//! go to its second row, and the first says so from then on.
//!
//! A slot belongs to whoever swaps its tag for one that is [`HELD`], and can be found once the tag is whole. Programs do
//! that on all CPUs at once, and the agent beside them, in the same memory.

use crate::{
    Address, PROTOCOL_TCP, abi,
    address::word,
    conntrack::{Conntrack, SEEN_FIN, SEEN_RST, SEEN_TRAFFIC, Tuple},
};

/// Start of the name of the arrays of [`Row`].
pub const ROWS_MAP: &str = "ORCH_ROWS";
/// How many rows a family has.
pub const ROWS: usize = 17_477;
/// How many slots a row has.
pub const WAYS: usize = 15;
/// Index of the row behind the others, whose first two tags are the secret of the hash: who does not know it cannot
/// choose flows that share a row. The agent draws it when the table is new; until then there is no table.
pub const SECRET_ROW: u32 = ROWS as u32;

/// The bits of [`Row::tags`] and [`Row::until`] that hold the number of the slot in its row. Read from memory, it is a
/// number like any other to the verifier, which would walk once for each slot through all that follows a search.
pub const WAY_BITS: u32 = 0xf;
/// The bit of [`Row::tags`] that says that somebody is writing the slot.
pub const HELD: u32 = 0x10;
/// The bits of [`Row::tags`] that are the hash's.
pub const TAG_BITS: u32 = !(HELD | WAY_BITS);
/// Set in every tag: one that is zero says "free".
const TAG_USED: u32 = HELD << 1;

/// A slot: a flow as it is seen in a packet, and what is known of it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Slot<A> {
    /// The packet's tuple.
    pub tuple: Tuple<A>,
    /// What it becomes.
    pub entry: Conntrack<A>,
}

abi!(both Slot { size 64, align 8, { tuple @ 0, entry @ 16 } } { size 112, align 8, { tuple @ 0, entry @ 40 } });

/// What is in a row of slots.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Row {
    /// Part of the hash of each slot's tuple with the slot's number, or zero.
    pub tags: [u32; WAYS],
    /// Not zero once a flow of this row had to go to its second one.
    pub spilled: u32,
    /// Until when each slot is worth keeping, with the slot's number: see [`until`].
    pub until: [u32; WAYS],
    /// Always zero.
    pub _pad: u32,
}

abi!(Row, size 128, align 4, { tags @ 0, spilled @ 60, until @ 64, _pad @ 124 });

/// Where a tuple's entry may stand: its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Place(u64);

impl Place {
    /// Where a tuple's entry may stand, with the table's secret.
    #[inline(always)]
    #[must_use]
    pub fn of<A: Address>(tuple: &Tuple<A>, secret: u64) -> Self {
        // Each word is multiplied in, which carries every bit upwards, and folded back.
        const PRIME: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut hash = secret;
        for index in 0..A::BITS as usize / 32 {
            let pair =
                u64::from(word(&tuple.source, index)) << 32 | u64::from(word(&tuple.destination, index));
            hash = (hash ^ pair).wrapping_mul(PRIME);
            hash ^= hash >> 32;
        }
        let ports = u64::from(tuple.source_port) << 32
            | u64::from(tuple.destination_port) << 16
            | u64::from(tuple.protocol);
        hash = (hash ^ ports).wrapping_mul(PRIME);
        hash ^= hash >> 29;
        hash = hash.wrapping_mul(PRIME);
        Self(hash ^ hash >> 32)
    }

    /// The row that it is in, unless there was no room.
    #[inline(always)]
    #[must_use]
    pub const fn first(self) -> u32 {
        row(self.0 >> 32)
    }

    /// The other row; of a tuple in a great many the same one.
    #[inline(always)]
    #[must_use]
    pub const fn second(self) -> u32 {
        row((self.0 >> 32).wrapping_mul(0x9e37_79b1) & 0xffff_ffff)
    }

    /// What its tag says in either.
    #[inline(always)]
    #[must_use]
    pub const fn tag(self) -> u32 {
        self.0 as u32 & TAG_BITS | TAG_USED
    }
}

/// The row that a number below 2^32 chooses.
#[inline(always)]
const fn row(number: u64) -> u32 {
    ((number * ROWS as u64) >> 32) as u32
}

/// The first word of a row's tags that has the tag, held or not; zero if none has.
#[inline(always)]
#[must_use]
pub fn tagged(tags: &[u32; WAYS], tag: u32) -> u32 {
    first_tagged(tags.iter(), tag)
}

/// The last one.
#[inline(always)]
#[must_use]
pub fn last_tagged(tags: &[u32; WAYS], tag: u32) -> u32 {
    first_tagged(tags.iter().rev(), tag)
}

/// The least of a row's times, which is the one of the slot to be written over.
#[inline(always)]
#[must_use]
pub fn least(until: &[u32; WAYS]) -> u32 {
    let mut least = u32::MAX;
    for word in until {
        let word = load(word);
        if word < least {
            least = word;
        }
    }
    least
}

/// How many slots of a row are taken before a look at the other row is worth its while. Free ones are taken in order, so
/// this is the number of one.
const MANY: u32 = 11;

/// Whether a flow had better look for a slot in its other row, by the least of this one's times.
#[inline(always)]
#[must_use]
pub const fn is_crowded(least: u32, now: u32) -> bool {
    least >> 4 > now || (least <= WAY_BITS && least >= MANY)
}

#[inline(always)]
fn first_tagged<'a>(words: impl Iterator<Item = &'a u32>, tag: u32) -> u32 {
    for word in words {
        let word = load(word);
        if word & TAG_BITS == tag {
            return word;
        }
    }
    0
}

/// Reads a word of a row, which others write meanwhile.
#[inline(always)]
#[must_use]
pub fn load(word: &u32) -> u32 {
    // SAFETY: a reference to it.
    unsafe { (&raw const *word).read_volatile() }
}

/// The slot of a row that a word of its tags or times is about. The first slots of all rows are neighbours, and so are the
/// others, so that what is in use is no more pages than it needs to be.
#[inline(always)]
#[must_use]
pub const fn slot(row: u32, word: u32) -> u32 {
    (word & WAY_BITS).wrapping_mul(ROWS as u32).wrapping_add(row)
}

/// A moment of `CLOCK_MONOTONIC`, in nanoseconds, in the units in which rows count: 2^30 nanoseconds.
#[inline(always)]
#[must_use]
pub const fn units(nanoseconds: u64) -> u32 {
    (nanoseconds >> 30) as u32
}

/// The word of [`Row::until`] for a slot: the moment up to which it should be kept, in [`units`], and its number. Where a row
/// is full, the least of these words is written over; where the moment is over, nobody is asked.
///
/// A flow that nobody has answered yet is worth least, since a flood is made of these; then what has no connection;
/// then what is one.
#[inline(always)]
#[must_use]
pub fn until(last_seen: u64, protocol: u8, seen: u8, way: u32) -> u32 {
    let worth = if seen & SEEN_TRAFFIC == 0 || seen & (SEEN_FIN | SEEN_RST) != 0 {
        28
    } else if protocol == PROTOCOL_TCP {
        20_000
    } else {
        112
    };
    (units(last_seen) + worth) << 4 | way & WAY_BITS
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, vec, vec::Vec};

    use super::*;
    use crate::{Address4, Address6, PROTOCOL_UDP};

    fn tuples<A: Address>(of: impl Fn(u8, u8) -> A) -> Vec<Tuple<A>> {
        let one = |high, low, port| Tuple {
            source: of(high, low),
            destination: of(9, 9),
            source_port: port,
            destination_port: 53,
            protocol: PROTOCOL_UDP,
            _pad: [0; 3],
        };
        (0..16)
            .flat_map(|high| (0..16).flat_map(move |low| (0..256).map(move |port| (high, low, port))))
            .map(|(high, low, port)| one(high, low, port))
            .collect()
    }

    fn spread<A: Address>(tuples: &[Tuple<A>]) {
        let places: Vec<Place> = tuples.iter().map(|tuple| Place::of(tuple, 7)).collect();
        for rows in [Place::first, Place::second] {
            let mut rows_of = vec![0; ROWS];
            for place in &places {
                rows_of[rows(*place) as usize] += 1;
            }
            // 65,536 flows are 3.75 for a row: of chance, one in a hundred million has 20.
            assert!(rows_of.iter().all(|flows| *flows < 20));
            let empty = rows_of.iter().filter(|flows| **flows == 0).count();
            assert!(
                (200..700).contains(&empty),
                "{empty} of {ROWS}, where 412 are expected"
            );
        }
        let tags: HashSet<u32> = places.iter().map(|place| place.tag()).collect();
        assert!(tags.len() > 65_000, "{}", tags.len());
        assert!(tags.iter().all(|tag| tag & !TAG_BITS == 0 && *tag != 0));
        let same = tuples.iter().zip(&places);
        let same = same.filter(|(tuple, place)| Place::of(*tuple, 8).first() == place.first());
        assert!(same.count() < 50, "another secret, other rows");
    }

    #[test]
    fn neighbours_are_spread_over_all_rows() {
        spread::<Address4>(&tuples(|high, low| [10, 0, high, low]));
        spread::<Address6>(&tuples(|high, low| {
            [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, high, 0, low]
        }));
    }

    #[test]
    fn the_least_is_what_nobody_misses() {
        let now = 1 << 40;
        let [asked, closed, datagrams, connection] = [
            (PROTOCOL_TCP, 0),
            (PROTOCOL_TCP, SEEN_TRAFFIC | SEEN_FIN),
            (PROTOCOL_UDP, SEEN_TRAFFIC),
            (PROTOCOL_TCP, SEEN_TRAFFIC),
        ]
        .map(|(protocol, seen)| until(now, protocol, seen, 14));
        assert!(asked == closed && closed < datagrams && datagrams < connection);
        assert!(units(now) < asked >> 4 && asked & WAY_BITS == 14);
        let mut times = [connection; WAYS];
        times[3] = until(now, PROTOCOL_UDP, SEEN_TRAFFIC, 3);
        times[9] = until(now, PROTOCOL_UDP, 0, 9);
        assert_eq!(least(&times) & WAY_BITS, 9);
        let mut tags = [0; WAYS];
        (tags[4], tags[11]) = (0x40 | 4, 0x40 | HELD | 11);
        assert_eq!(
            (tagged(&tags, 0x40), last_tagged(&tags, 0x40)),
            (tags[4], tags[11])
        );
        assert_eq!(tagged(&tags, 0x60), 0);
    }
}
