//! The table of flows: where the entry of a [`Tuple`] stands.
//!
//! A hash of the tuple names two rows of [`WAYS`] slots each, and all that is to be known of a row is one cache line: a word for
//! each slot. All rows together are a megabyte, which a CPU keeps near; so what a new flow waits for is not memory, as with
//! the kernel's hash that forgets what was not used for longest: its slot, which is far, is only written. A new flow takes
//! whichever slot of its first row is free or is worth least. Only when few of these are free, or all are worth keeping, may it
//! go to its second row, and the first says so from then on. In a table that is full of what nobody answered, as a flood
//! leaves it, that look at another row is in vain, and so is one for the cheapest of fifteen: a row says for a while that it
//! was, and then a slot of chance is written over, if it is such a flow's.
//!
//! A slot belongs to whoever swaps its word for one that is [`HELD`], and can be found once the word is whole. Programs do
//! that on all CPUs at once, and the agent beside them, in the same memory.

use crate::{
    Address, PROTOCOL_TCP, abi,
    address::word,
    conntrack::{Conntrack, DIRECTION_REPLY, NAT_PORTS, SEEN_FIN, SEEN_RST, SEEN_TRAFFIC, Tuple},
};

/// Start of the name of the arrays of [`Row`].
pub const ROWS_MAP: &str = "ORCH_ROWS";
/// How many rows a family has.
pub const ROWS: usize = 17_477;
/// How many slots a row has.
pub const WAYS: usize = 15;
/// Index of the row behind the others, whose first two words are the secret of the hash: who does not know it cannot
/// choose flows that share a row. The agent draws it when the table is new; until then there is no table.
pub const SECRET_ROW: u32 = ROWS as u32;

/// The bits of a slot's word that hold the slot's number in its row. Read from memory, it is a number like any other to the
/// verifier, which would walk once for each slot through all that follows a search.
pub const WAY_BITS: u32 = 0xf;
/// The bit of a slot's word that says that somebody is writing the slot.
pub const HELD: u32 = 0x10;
/// The bit of a slot's word that says that there is a flow, or will be. A free slot's word is its number and nothing else.
pub const USED: u32 = 0x20;
/// The bit of a slot's word that says that the flow has no slot of its own yet: it is the answers' to the flow in the slot
/// whose number differs in the last bit, which says all that is to be known of them until the first one comes. What nobody
/// answers, as a flood, takes half the memory.
pub const SHARED: u32 = 0x40;
/// The bits of a slot's word that are the tag: [`USED`] and a part of the hash.
pub const TAG_BITS: u32 = ((1 << UNTIL_SHIFT) - USED) & !SHARED;
/// Where in a slot's word the ten bits stand that say until when it is worth keeping: see [`until`].
const UNTIL_SHIFT: u32 = 22;
/// The half of what these bits can tell apart.
const HALF: u32 = 1 << (31 - UNTIL_SHIFT);
/// What a search for words of a row finds when there is none: no slot has this number, and it is [`HELD`], so that nobody
/// reads a slot by it.
pub const NONE: u32 = u32::MAX;
const _: () = assert!(NONE & HELD != 0 && NONE & WAY_BITS >= WAYS as u32);

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

impl<A: Copy> Slot<A> {
    /// What the slot of the flow's answers is before one has come: see [`SHARED`].
    #[must_use]
    pub const fn answers(&self) -> Self {
        Self {
            tuple: self.entry.becomes.reverse(),
            entry: Conntrack {
                becomes: self.tuple.reverse(),
                direction: DIRECTION_REPLY,
                seen: 0,
                hop: 0,
                macs: [0; 12],
                ticks: 0,
                ..self.entry
            },
        }
    }
}

/// What is in a row of slots.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Row {
    /// A word for each slot: its number, whether it is in use, a part of the hash of its tuple, and until when it is worth
    /// keeping.
    pub words: [u32; WAYS],
    /// Which of its flows went to their second row, see [`went_beside`]; how many have, in six bits; and in ten when one looked
    /// for a better slot there in vain, in [`units`].
    pub beside: u32,
}

abi!(Row, size 64, align 4, { words @ 0, beside @ 60 });

/// One more flow that went to its second row, in [`Row::beside`].
const WENT: u32 = 1 << 16;
/// The bits of [`Row::beside`] that count these.
const WENT_BITS: u32 = (1 << UNTIL_SHIFT) - WENT;

/// The bit of [`Row::beside`] of flows with this tag.
#[inline(always)]
#[must_use]
pub const fn mark(tag: u32) -> u32 {
    1 << (tag >> (UNTIL_SHIFT - 4) & 0xf)
}

/// Whether a flow with this tag may stand in its second row, by what its first says.
#[inline(always)]
#[must_use]
pub const fn went_beside(beside: u32, tag: u32) -> bool {
    beside & mark(tag) != 0
}

/// What the first row says from when a flow with this tag goes to its second: never what it said before.
#[inline(always)]
#[must_use]
pub const fn sent_beside(beside: u32, tag: u32) -> u32 {
    beside & !WENT_BITS | beside.wrapping_add(WENT) & WENT_BITS | mark(tag)
}

/// What a row says of which is known which flows are in their second row, see [`mark`], and not whether there is room: that it was
/// full at a time that will not come for hours, in [`units`].
#[inline(always)]
#[must_use]
pub const fn with_marks(beside: u32, marks: u32, now: u32) -> u32 {
    beside & WENT_BITS | marks | now.wrapping_add(HALF) << UNTIL_SHIFT
}

/// What a row says from when a flow has looked for a better slot in its second row and found none: something else only if there
/// is no free one in either, by the [`price`] in this one.
#[inline(always)]
#[must_use]
pub const fn found_full(beside: u32, price: u32, now: u32) -> u32 {
    if price <= WAY_BITS {
        return beside;
    }
    beside & !(u32::MAX << UNTIL_SHIFT) | now << UNTIL_SHIFT
}

/// Whether that was so lately that it will be so still.
#[inline(always)]
#[must_use]
pub const fn is_vain(beside: u32, now: u32) -> bool {
    (beside >> UNTIL_SHIFT) == now & (u32::MAX >> UNTIL_SHIFT)
}

/// Where the entries of tuples may stand that differ in nothing but the destination's port.
///
/// A port more is a row further, so that a row can be reached by choosing the port. Whoever knows that and not the secret can
/// choose flows four to a row, since there are not four times as many ports as rows, but not a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Neighbours(u64);

impl Neighbours {
    /// Of a tuple, with the table's secret.
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
        let rest = u64::from(tuple.source_port) << 16 | u64::from(tuple.protocol);
        hash = (hash ^ rest).wrapping_mul(PRIME);
        hash ^= hash >> 29;
        hash = hash.wrapping_mul(PRIME);
        Self(hash ^ hash >> 32)
    }

    /// Of the one with this destination port.
    #[inline(always)]
    #[must_use]
    pub const fn at(self, port: u16) -> Place {
        let port = port as u32;
        let first = (self.row() + port) % ROWS as u32;
        // Both are other words for each port, and spread: the multiple of an odd number.
        let second = row(((self.0 >> 32) as u32 ^ port.wrapping_mul(0x85eb_ca6b)).wrapping_mul(0x9e37_79b1));
        let tag = (self.0 as u32).wrapping_add(port.wrapping_mul(0x9e37_79b1)) & TAG_BITS | USED;
        Place((first as u64) << 48 | (second as u64) << 32 | tag as u64)
    }

    /// A port of those from which nodes choose whose first row is this one.
    #[inline(always)]
    #[must_use]
    pub const fn port_in(self, row: u32) -> u16 {
        const FIRST: u32 = NAT_PORTS[0].0 as u32;
        const { assert!(NAT_PORTS[0].1 as usize >= ROWS && (FIRST as usize) < ROWS) };
        (FIRST + (row + 2 * ROWS as u32 - FIRST - self.row()) % ROWS as u32) as u16
    }

    /// The row of port zero.
    #[inline(always)]
    const fn row(self) -> u32 {
        row((self.0 >> 32) as u32)
    }
}

/// Where a tuple's entry may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Place(u64);

impl Place {
    /// Where a tuple's entry may stand, with the table's secret.
    #[inline(always)]
    #[must_use]
    pub fn of<A: Address>(tuple: &Tuple<A>, secret: u64) -> Self {
        Neighbours::of(tuple, secret).at(tuple.destination_port)
    }

    /// The row that it is in, unless there was no room.
    #[inline(always)]
    #[must_use]
    pub const fn first(self) -> u32 {
        (self.0 >> 48) as u32
    }

    /// The other row; of a tuple in a great many the same one.
    #[inline(always)]
    #[must_use]
    pub const fn second(self) -> u32 {
        (self.0 >> 32) as u32 & 0xffff
    }

    /// What its tag says in either.
    #[inline(always)]
    #[must_use]
    pub const fn tag(self) -> u32 {
        self.0 as u32
    }
}

/// The row that a number chooses.
#[inline(always)]
const fn row(number: u32) -> u32 {
    ((number as u64 * ROWS as u64) >> 32) as u32
}

/// The first word of a row that has the tag, held or not, or [`NONE`].
#[inline(always)]
#[must_use]
pub fn tagged(words: &[u32; WAYS], tag: u32) -> u32 {
    first(words.iter(), TAG_BITS, tag)
}

/// The last one.
#[inline(always)]
#[must_use]
pub fn last_tagged(words: &[u32; WAYS], tag: u32) -> u32 {
    first(words.iter().rev(), TAG_BITS, tag)
}

#[inline(always)]
fn first<'a>(words: impl Iterator<Item = &'a u32>, bits: u32, wanted: u32) -> u32 {
    for word in words {
        let word = load(word);
        if word & bits == wanted {
            return word;
        }
    }
    NONE
}

/// Two slots of a row that are beside each other and free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreePair {
    /// The number of the first one, which is even; the other's is the next.
    pub way: u32,
    /// The sum of all words of the row as they were read: nobody has changed one that has it still.
    pub sum: u64,
}

/// The first two slots of a row that are beside each other and free, if nothing in it has one of the tags, and not so much of
/// it is taken that a look at another row would be worth its while.
///
/// A word costs a few instructions, and no branch that a CPU could guess wrong: which of them are taken differs from row to row.
#[inline(always)]
#[must_use]
pub fn free_pair(words: &[u32; WAYS], tags: [u32; 2]) -> Option<FreePair> {
    const { assert!(MANY == 13 && WAYS > 12) };
    let (mut used, mut sum) = (0, 0);
    for (way, word) in words.iter().enumerate() {
        let word = load(word);
        if word & TAG_BITS == tags[0] || word & TAG_BITS == tags[1] {
            return None;
        }
        used = add(used, u64::from((word / USED) & 1) << way);
        sum = add(sum, word.into());
    }
    // The bits of the first slots of those pairs that are free as a whole.
    let used = used as u32;
    let free = !(used | used >> 1) & 0b0101_0101_0101;
    if free == 0 {
        return None;
    }
    let first = free & free.wrapping_neg();
    let way = (first >> 2 | first >> 6 | first >> 10) & 1;
    let way = way | (first >> 4 | first >> 6) << 1 & 2;
    let way = way | (first >> 8 | first >> 10) << 2 & 4;
    Some(FreePair { way: way * 2, sum })
}

/// The sum of all words of a row: see [`FreePair::sum`].
#[inline(always)]
#[must_use]
pub fn sum(words: &[u32; WAYS]) -> u64 {
    words.iter().fold(0, |sum, word| add(sum, load(word).into()))
}

/// The sum of two numbers, as a step that a compiler leaves where it is: else it would read all words first, and keep them on
/// a stack that has no room for them.
#[inline(always)]
fn add(one: u64, other: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut sum = one;
        // SAFETY: an addition.
        unsafe {
            core::arch::asm!("{0} += {1}", inout(reg) sum, in(reg) other, options(pure, nomem, nostack));
        }
        sum
    }
    #[cfg(not(target_arch = "bpf"))]
    one.wrapping_add(other)
}

/// What it costs to write over the cheapest slot of a row, with the slot's number as [`WAY_BITS`]: nothing but these for a
/// free one, the time that it is worth otherwise. Where that is over, nobody is asked.
#[inline(always)]
#[must_use]
pub fn price(words: &[u32; WAYS], now: u32) -> u32 {
    let free = first(words.iter(), HELD | USED, 0);
    if free != NONE {
        return free;
    }
    let mut least = NONE;
    for word in words {
        let price = worth(load(word), now);
        if price < least {
            least = price;
        }
    }
    least
}

/// Whether a word that a search has found is one of answers that have no slot of their own yet.
#[inline(always)]
#[must_use]
pub const fn is_shared(word: u32) -> bool {
    word != NONE && word & SHARED != 0
}

/// The word of the slot that has all that is known of a [`SHARED`] one, and the other way round: its lowest bits.
#[inline(always)]
#[must_use]
pub const fn beside(word: u32) -> u32 {
    (word ^ 1) & WAY_BITS
}

/// The price of one slot of a row, which the tag chooses, if that is free or a flow's that nobody has answered; [`NONE`]
/// otherwise.
#[inline(always)]
#[must_use]
pub fn price_of_one(words: &[u32; WAYS], tag: u32, now: u32) -> u32 {
    let Some(word) = words.get(((tag / (2 * SHARED)) & WAY_BITS) as usize) else {
        return NONE;
    };
    let word = load(word);
    if word & (HELD | USED) == 0 {
        return word;
    }
    let price = worth(word, now);
    if word & HELD == 0 && is_cheap(price) {
        price
    } else {
        NONE
    }
}

/// A word whose time is counted from the half of all times before now, in [`units`], so that times can be compared.
#[inline(always)]
const fn worth(word: u32, now: u32) -> u32 {
    word.wrapping_sub(now.wrapping_sub(HALF) << UNTIL_SHIFT)
}

/// Whether the time of what [`worth`] says is not over.
#[inline(always)]
const fn lasts(worth: u32) -> bool {
    worth >> UNTIL_SHIFT > HALF
}

/// Whether a slot with this word is worth keeping still.
#[inline(always)]
#[must_use]
pub const fn is_kept(word: u32, now: u32) -> bool {
    lasts(worth(word, now))
}

/// How many slots of a row are taken before a look at the other row is worth its while. Free ones are taken in order, so
/// this is the number of one.
const MANY: u32 = 13;

/// Whether a flow had better look for a slot in its other row, by the [`price`] in this one, and whether such a look was in
/// vain.
#[inline(always)]
#[must_use]
pub const fn is_crowded(price: u32, vain: bool) -> bool {
    if vain {
        !is_cheap(price)
    } else {
        lasts(price) || (price <= WAY_BITS && price >= MANY)
    }
}

/// Whether a slot with this [`price`] is free, or a flow's that nobody has answered or that is over.
#[inline(always)]
const fn is_cheap(price: u32) -> bool {
    price >> UNTIL_SHIFT <= HALF + UNANSWERED
}

/// Whether one [`price`] is so much less than another that a flow goes to its second row for it.
#[inline(always)]
#[must_use]
pub const fn is_less(one: u32, other: u32) -> bool {
    one >> UNTIL_SHIFT < other >> UNTIL_SHIFT || (one < other && other <= WAY_BITS)
}

/// For how long a flow is worth keeping that nobody has answered, or that is over, in [`units`].
const UNANSWERED: u32 = 1;

/// Reads a word of a row, which others write meanwhile.
#[inline(always)]
#[must_use]
pub fn load(word: &u32) -> u32 {
    // SAFETY: a reference to it.
    unsafe { (&raw const *word).read_volatile() }
}

/// The slot of a row that one of its words is about. The first slots of all rows are neighbours, and so are the
/// others, so that what is in use is no more pages than it needs to be.
#[inline(always)]
#[must_use]
pub const fn slot(row: u32, word: u32) -> u32 {
    ((word ^ ((word & SHARED) / SHARED)) & WAY_BITS)
        .wrapping_mul(ROWS as u32)
        .wrapping_add(row)
}

/// A moment of `CLOCK_MONOTONIC`, in nanoseconds, in the units in which rows count, of 2^36 nanoseconds (69 seconds): with ten
/// bits a row tells the past from the future within nine hours.
#[inline(always)]
#[must_use]
pub const fn units(nanoseconds: u64) -> u32 {
    (nanoseconds >> 36) as u32
}

/// The bits of a slot's word that say until when it should be kept, in [`units`]. Where a row is full, the one whose time
/// is over first is written over.
///
/// A flow that nobody has answered yet is worth least, since a flood is made of these; then what has no connection;
/// then what is one.
#[inline(always)]
#[must_use]
pub fn until(last_seen: u64, protocol: u8, seen: u8) -> u32 {
    let worth = if seen & SEEN_TRAFFIC == 0 || seen & (SEEN_FIN | SEEN_RST) != 0 {
        UNANSWERED
    } else if protocol == PROTOCOL_TCP {
        291
    } else {
        2
    };
    units(last_seen).wrapping_add(worth) << UNTIL_SHIFT
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
        // Of 65,536 numbers below 32,768, 28,333 are different.
        assert!((28_000..28_700).contains(&tags.len()), "{}", tags.len());
        assert!(tags.iter().all(|tag| tag & !TAG_BITS == 0 && tag & USED != 0));
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
    fn a_port_leads_to_any_row() {
        let mut ports = HashSet::new();
        for (number, tuple) in (0..).step_by(7).zip(tuples(|high, low| [10, 0, high, low])) {
            let (row, neighbours) = (number % ROWS as u32, Neighbours::of(&tuple, 7));
            let port = neighbours.port_in(row);
            let [(first, length), _] = NAT_PORTS;
            assert!((first..first + length).contains(&port), "{port}");
            let chosen = Tuple {
                destination_port: port,
                ..tuple
            };
            assert_eq!(Place::of(&chosen, 7), neighbours.at(port));
            assert_eq!(neighbours.at(port).first(), row);
            ports.insert(port);
        }
        assert!(ports.len() > 17_000, "{}", ports.len());
    }

    #[test]
    fn what_is_cheapest_is_what_nobody_misses() {
        // Times are counted in ten bits: before they begin anew, and after.
        for now in [1 << 40, (1 << 46) - (1 << 36), (1 << 46) + (1 << 40)] {
            let [asked, closed, datagrams, connection] = [
                (PROTOCOL_TCP, 0),
                (PROTOCOL_TCP, SEEN_TRAFFIC | SEEN_FIN),
                (PROTOCOL_UDP, SEEN_TRAFFIC),
                (PROTOCOL_TCP, SEEN_TRAFFIC),
            ]
            .map(|(protocol, seen)| until(now, protocol, seen) | USED);
            let mut words: [u32; WAYS] = core::array::from_fn(|way| connection | way as u32);
            let cheapest = |words: &[u32; WAYS]| price(words, units(now)) & WAY_BITS;
            words[3] = datagrams | 3;
            assert_eq!(cheapest(&words), 3);
            words[9] = asked | 9;
            assert_eq!(cheapest(&words), 9);
            words[10] = closed | 10;
            assert_eq!(cheapest(&words), 9);
            words[10] = until(now - (1 << 37), PROTOCOL_TCP, SEEN_TRAFFIC | SEEN_FIN) | USED | 10;
            assert_eq!(cheapest(&words), 10);
            assert!(!is_kept(words[10], units(now)) && is_kept(words[9], units(now)));
            assert!(
                !is_crowded(price(&words, units(now)), false),
                "the time of one is over"
            );
            words[12] = 12;
            assert_eq!(price(&words, units(now)), 12);
            words[12] = HELD | USED | connection | 12;
            words[10] = connection | 10;
            assert_eq!(cheapest(&words), 9);
            assert!(is_crowded(price(&words, units(now)), false));
        }
    }

    #[test]
    fn a_row_says_where_its_flows_went_and_when_it_was_full() {
        for now in [0, 1, HALF - 1, HALF, 2 * HALF, 2 * HALF + 7] {
            let new = with_marks(0, 0, now);
            assert!(
                (now..now + 500).all(|later| !is_vain(new, later)),
                "a new row at {now}"
            );
            let full = found_full(new, USED, now);
            assert!(is_vain(full, now) && !is_vain(full, now + 1), "{now}");
            assert_eq!(found_full(full, 3, now), full, "there is a free one");
            let mut went = full;
            for tag in [USED, USED | 5 << (UNTIL_SHIFT - 4), USED] {
                let more = sent_beside(went, tag);
                assert!(more != went && went_beside(more, tag) && is_vain(more, now));
                went = more;
            }
            assert!(!went_beside(went, USED | 6 << (UNTIL_SHIFT - 4)));
            let cleared = with_marks(went, mark(USED), now);
            assert!(went_beside(cleared, USED) && !is_vain(cleared, now));
            assert!(!went_beside(cleared, USED | 5 << (UNTIL_SHIFT - 4)));
            assert_ne!(
                sent_beside(cleared, USED),
                sent_beside(sent_beside(cleared, USED), USED)
            );
        }
    }

    #[test]
    fn a_pair_is_the_first_that_is_free_and_has_no_namesake() {
        const TAGS: [u32; 2] = [0xa0, 0x120];
        let numbers: [u32; WAYS] = core::array::from_fn(|way| way as u32);
        for taken in 0..1_u32 << WAYS {
            let words = numbers.map(|way| way | if taken >> way & 1 != 0 { 0xffc0_0020 } else { 0 });
            let free = (0..MANY - 1)
                .step_by(2)
                .find(|way| taken >> way & 3 == 0)
                .map(|way| FreePair {
                    way,
                    sum: sum(&words),
                });
            assert_eq!(free_pair(&words, TAGS), free, "{taken:#b}");
        }
        for (way, tag) in (0..WAYS).flat_map(|way| TAGS.map(|tag| (way, tag))) {
            for state in [0, HELD, SHARED, 0x0400_0000] {
                let mut words = numbers;
                words[way] |= tag | state;
                assert_eq!(free_pair(&words, TAGS), None);
            }
        }
    }

    #[test]
    fn tags_are_found_from_both_ends() {
        let mut words: [u32; WAYS] = core::array::from_fn(|way| way as u32);
        (words[4], words[11]) = (0xffc0_00a0 | 4, 0xa0 | SHARED | HELD | 11);
        assert_eq!(
            (tagged(&words, 0xa0), last_tagged(&words, 0xa0)),
            (words[4], words[11])
        );
        assert_eq!(tagged(&words, 0x120), NONE);
    }
}
