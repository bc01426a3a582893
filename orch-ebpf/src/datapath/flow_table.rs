//! Finding a flow's slot, and taking one.

use core::mem::MaybeUninit;

use super::{
    atomic::{joined, load_pair, publish, publish_pair, swap_if, swap_pair_if},
    family::Family,
    words,
};
use crate::{
    conntrack::{Conntrack, DIRECTION_REPLY, Tuple},
    flow_table::{
        FreePair, HELD, NONE, Neighbours, Place, Row, SECRET_ROW, SHARED, Slot, TAG_BITS, USED, WAY_BITS,
        beside, found_full, free_pair, is_crowded, is_kept, is_less, is_shared, is_vain, last_tagged, load,
        price, price_of_one, sent_beside, slot, sum, tagged, units, until, went_beside,
    },
};

/// What a slot is taken for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// A flow, known or not, whoever else takes one for it.
    Any,
    /// A flow, known or not, for which nobody else takes one.
    Alone,
    /// A flow that is not known, for which nobody else takes one.
    New,
}

/// A slot that is being written: nobody finds what is in it.
#[derive(Clone, Copy)]
pub struct Held {
    row: u32,
    /// What the slot's word is meanwhile.
    word: u32,
}

/// A slot that is being written, and the word beside its own, which shares it: the number of the row, and behind it the
/// slot's in the row.
#[derive(Clone, Copy)]
pub struct HeldPair(u64);

/// A flow's slot, and what its row says of it.
struct Found<A: 'static> {
    /// The slot's word.
    at: &'static u32,
    /// As it was read.
    word: u32,
    slot: &'static mut Slot<A>,
}

#[inline(always)]
fn row_of<A: Family>(number: u32) -> Option<&'static Row> {
    A::rows().get(number)
}

/// The word of the slot whose number the lowest bits are.
#[inline(always)]
fn word_of(row: &Row, word: u32) -> Option<&u32> {
    row.words.get((word & WAY_BITS) as usize)
}

#[inline(always)]
fn slot_of<A: Family>(number: u32) -> Option<&'static mut Slot<A>> {
    let slot = A::conntrack().get_ptr_mut(number)?;
    // SAFETY: the pointer is to an element of an array. What is in it changes as `crate::flow_table` says; a racing writer on
    // another CPU can at worst take the slot of a flow that has nothing to say any more.
    Some(unsafe { &mut *slot })
}

/// Where the tuple's slot may be; `None` while there is no table.
#[inline(always)]
fn place<A: Family>(tuple: &Tuple<A>) -> Option<Place> {
    if A::BITS == 128 {
        place_apart(tuple)
    } else {
        place_here(tuple)
    }
}

/// As [`place`]: a longer tuple would take the stack that all that is called needs.
#[inline(never)]
fn place_apart<A: Family>(tuple: &Tuple<A>) -> Option<Place> {
    place_here(tuple)
}

#[inline(always)]
fn place_here<A: Family>(tuple: &Tuple<A>) -> Option<Place> {
    Some(Neighbours::of(tuple, secret::<A>()?).at(tuple.destination_port))
}

/// Where its slot may be, with any destination port.
#[inline(always)]
fn neighbours<A: Family>(tuple: &Tuple<A>, secret: u64) -> Neighbours {
    if A::BITS == 128 {
        neighbours_apart(tuple, secret)
    } else {
        Neighbours::of(tuple, secret)
    }
}

/// The table's secret; `None` while there is no table.
#[inline(always)]
fn secret<A: Family>() -> Option<u64> {
    let [low, high, ..] = row_of::<A>(SECRET_ROW)?.words;
    let secret = u64::from(high) << 32 | u64::from(low);
    (secret != 0).then_some(secret)
}

#[inline(never)]
fn neighbours_apart<A: Family>(tuple: &Tuple<A>, secret: u64) -> Neighbours {
    Neighbours::of(tuple, secret)
}

/// Whether both are the same tuple, word by word and without a branch for each.
#[inline(always)]
fn same<A: Family>(one: &Tuple<A>, other: &Tuple<A>) -> bool {
    if A::BITS == 128 {
        same_apart(one, other)
    } else {
        is_same(one, other)
    }
}

#[inline(never)]
fn same_apart<A: Family>(one: &Tuple<A>, other: &Tuple<A>) -> bool {
    is_same(one, other)
}

#[inline(always)]
fn is_same<A: Family>(one: &Tuple<A>, other: &Tuple<A>) -> bool {
    let (one, other) = ((&raw const *one).cast::<u32>(), (&raw const *other).cast::<u32>());
    // A sum, since a compiler would make branches of bits.
    let mut difference = 0;
    for index in 0..size_of::<Tuple<A>>() / 4 {
        // SAFETY: within the tuples, which are on boundaries of four.
        difference += u64::from(unsafe { *one.add(index) ^ *other.add(index) });
    }
    difference == 0
}

/// The tuple's slot in one of its rows.
#[inline(always)]
fn search<A: Family>(tuple: &Tuple<A>, number: u32, tag: u32) -> Option<Found<A>> {
    let row = row_of::<A>(number)?;
    look(tuple, (row, number), tagged(&row.words, tag))
}

/// The tuple's slot if it is the one with this word.
#[inline(always)]
fn look<A: Family>(tuple: &Tuple<A>, (row, number): (&'static Row, u32), word: u32) -> Option<Found<A>> {
    if word & (HELD | SHARED) != 0 {
        return None;
    }
    let at = word_of(row, word)?;
    let slot = slot_of::<A>(slot(number, word))?;
    same(&slot.tuple, tuple).then_some(Found { at, word, slot })
}

/// Whether packets with the tuple answer those of the slot's flow.
#[inline(never)]
fn answers<A: Family>(slot: &Slot<A>, tuple: &Tuple<A>) -> bool {
    let asked = &slot.entry.becomes;
    let ports = |source: u16, destination: u16| u32::from(source) << 16 | u32::from(destination);
    asked.source.same(tuple.destination)
        && asked.destination.same(tuple.source)
        && ports(asked.source_port, asked.destination_port)
            == ports(tuple.destination_port, tuple.source_port)
        && asked.protocol == tuple.protocol
}

/// Whether a slot is a flow's, by its word in the row.
#[inline(always)]
fn is_of<A: Family>(tuple: &Tuple<A>, number: u32, word: u32) -> Option<bool> {
    let slot = slot_of::<A>(slot(number, word))?;
    Some(if word & SHARED == 0 {
        same(&slot.tuple, tuple)
    } else {
        answers(slot, tuple)
    })
}

/// The entry of answers that have no slot of their own yet, of which this packet is the first: gives them one. While another
/// CPU does that, what this one notes of them is lost.
#[inline(always)]
fn answered<A: Family>(tuple: &Tuple<A>, place: Place, word: u32) -> Option<&'static mut Conntrack<A>> {
    let row = row_of::<A>(place.first())?;
    let (at, asked) = (word_of(row, word)?, word_of(row, beside(word))?);
    let (before, original) = (load(asked), slot_of::<A>(slot(place.first(), word))?);
    if before & (USED | HELD) != USED || !answers(original, tuple) {
        return None;
    }
    let scratch = A::scratch().get_ptr_mut(0)?;
    // SAFETY: the slot is this CPU's own for the run, and nobody looks at what it held once another flow is asked for.
    let entry = unsafe { &mut (*scratch).answered };
    entry.last_seen = original.entry.last_seen;
    let (asker, becomes) = (&original.tuple, &mut entry.becomes);
    // SAFETY: addresses in tuples, which are words on a boundary of four.
    unsafe {
        for (from, to) in [
            (&asker.destination, &mut becomes.source),
            (&asker.source, &mut becomes.destination),
        ] {
            words::copy(
                (&raw const *from).cast(),
                (&raw mut *to).cast(),
                A::BITS as usize / 32,
            );
        }
    }
    becomes.set_ports(asker.destination_port, asker.source_port);
    becomes.set_protocol(asker.protocol);
    entry.backend = original.entry.backend;
    entry.set_state(original.entry.kind, DIRECTION_REPLY, 0, 0);
    entry.ticks = 0;
    let mine = word & HELD == 0 && swap_if(at, word, word | HELD) == word;
    // What was read was one flow's if it is its still.
    if (load(asked) ^ before) & (TAG_BITS | HELD) != 0 {
        if mine {
            publish(at, word & WAY_BITS);
        }
        return None;
    }
    if !mine {
        return Some(entry);
    }
    let kept = until(entry.last_seen, tuple.protocol, entry.seen);
    let held = Held {
        row: place.first(),
        word: place.tag() | kept | HELD | word & WAY_BITS,
    };
    put(&held, tuple, entry).map(|slot| &mut slot.entry)
}

/// The entry of a flow.
#[inline(always)]
pub fn find<A: Family>(tuple: &Tuple<A>) -> Option<&'static mut Conntrack<A>> {
    if A::BITS == 128 {
        find_apart(tuple)
    } else {
        find_here(tuple)
    }
}

#[inline(never)]
fn find_apart<A: Family>(tuple: &Tuple<A>) -> Option<&'static mut Conntrack<A>> {
    find_here(tuple)
}

#[inline(always)]
fn find_here<A: Family>(tuple: &Tuple<A>) -> Option<&'static mut Conntrack<A>> {
    let place = place(tuple)?;
    let row = row_of::<A>(place.first())?;
    let word = tagged(&row.words, place.tag());
    if let Some(found) = look(tuple, (row, place.first()), word) {
        return Some(&mut found.slot.entry);
    }
    // Asked here, since most flows that are not found are nowhere, and to call a function costs a hundredth of a new one.
    if !is_shared(word) && !went_beside(load(&row.beside), place.tag()) {
        return None;
    }
    find_beside(tuple, place, word)
}

/// The entry of a flow that shares a slot, by the word in its first row, or has one in its second, if any with its mark is
/// there.
#[inline(never)]
fn find_beside<A: Family>(tuple: &Tuple<A>, place: Place, word: u32) -> Option<&'static mut Conntrack<A>> {
    let row = row_of::<A>(place.first())?;
    if is_shared(word)
        && let Some(entry) = answered(tuple, place, word)
    {
        return Some(entry);
    }
    if !went_beside(load(&row.beside), place.tag()) {
        return None;
    }
    search(tuple, place.second(), place.tag()).map(|found| &mut found.slot.entry)
}

/// Whether there is a flow with the tuple, or will be.
#[inline(never)]
pub fn is_known<A: Family>(tuple: &Tuple<A>) -> bool {
    let Some(place) = place(tuple) else {
        return false;
    };
    for number in [place.first(), place.second()] {
        if let Some(row) = row_of::<A>(number) {
            let word = tagged(&row.words, place.tag());
            if word != NONE && is_of(tuple, number, word).is_some_and(|is| is) {
                return true;
            }
        }
    }
    false
}

/// Says how long a flow is worth keeping, of which something new is known.
#[inline(never)]
pub fn keep<A: Family>(tuple: &Tuple<A>, entry: &Conntrack<A>) {
    let Some(place) = place(tuple) else {
        return;
    };
    for number in [place.first(), place.second()] {
        if let Some(Found { at, word, .. }) = search(tuple, number, place.tag()) {
            let kept = place.tag() | until(entry.last_seen, tuple.protocol, entry.seen) | word & WAY_BITS;
            // Where somebody takes the slot meanwhile, it is theirs.
            if word != kept {
                swap_if(at, word, kept);
            }
            return;
        }
    }
}

/// Takes down a flow, in place of what has the same tuple or of what is worth least, and says whether it could: not while
/// another CPU writes the same slot.
#[inline(never)]
pub fn insert<A: Family>(tuple: &Tuple<A>, entry: &Conntrack<A>) -> bool {
    let held = place(tuple).and_then(|place| take(tuple, place, entry, Claim::Any));
    held.is_some_and(|held| put(&held, tuple, entry).is_some())
}

/// Takes the slot for a flow, as [`insert`] does, to be [`fill`]ed or [`release`]d.
#[inline(always)]
pub fn hold<'a, A: Family>(
    tuple: &Tuple<A>,
    entry: &Conntrack<A>,
    claim: Claim,
    held: &'a mut MaybeUninit<Held>,
) -> Option<&'a Held> {
    // SAFETY: then it has been written.
    hold_in(tuple, entry, claim, held).then(|| unsafe { held.assume_init_ref() })
}

/// As [`hold`]: the verifier lets no function return a place on its caller's stack.
#[inline(never)]
fn hold_in<A: Family>(
    tuple: &Tuple<A>,
    entry: &Conntrack<A>,
    claim: Claim,
    held: &mut MaybeUninit<Held>,
) -> bool {
    let taken = place(tuple).and_then(|place| take(tuple, place, entry, claim));
    taken.map(|taken| held.write(taken)).is_some()
}

/// As [`hold`] with [`Claim::New`], for a flow whose destination port is chosen such that it stands in the same row as the
/// slot that is held: what a CPU has at hand.
#[inline(always)]
pub fn hold_beside<'a, A: Family>(
    tuple: &mut Tuple<A>,
    entry: &Conntrack<A>,
    other: &Held,
    held: &'a mut MaybeUninit<Held>,
) -> Option<&'a Held> {
    // SAFETY: then it has been written.
    hold_beside_in(tuple, entry, other, held).then(|| unsafe { held.assume_init_ref() })
}

/// As [`hold_beside`]: see [`hold_in`].
#[inline(never)]
fn hold_beside_in<A: Family>(
    tuple: &mut Tuple<A>,
    entry: &Conntrack<A>,
    other: &Held,
    held: &mut MaybeUninit<Held>,
) -> bool {
    let Some(secret) = secret::<A>() else {
        return false;
    };
    let neighbours = neighbours(tuple, secret);
    tuple.destination_port = neighbours.port_in(other.row);
    let taken = take(tuple, neighbours.at(tuple.destination_port), entry, Claim::New);
    taken.map(|taken| held.write(taken)).is_some()
}

/// Takes a slot for a flow that is not known and for the answers to it, whose destination port is chosen such that they stand
/// in the same row; `now` is the time. It takes one swap where room is easily had; elsewhere there is [`hold`] and
/// [`hold_beside`].
#[inline(always)]
pub fn hold_pair<A: Family>(tuple: &Tuple<A>, answer: &mut Tuple<A>, now: u64) -> Option<HeldPair> {
    let secret = secret::<A>()?;
    let place = neighbours(tuple, secret).at(tuple.destination_port);
    let neighbours = neighbours(answer, secret);
    answer.destination_port = neighbours.port_in(place.first());
    let other = neighbours.at(answer.destination_port);
    let kept = until(now, tuple.protocol, 0);
    let held = if A::BITS == 128 {
        hold_pair_apart::<A>(place.first(), place.tag(), other.tag(), kept)
    } else {
        hold_pair_in::<A>(place.first(), place.tag(), other.tag(), kept)
    };
    (held != NO_PAIR).then_some(HeldPair(held))
}

/// What [`hold_pair_in`] gives where there is no pair.
const NO_PAIR: u64 = u64::MAX;

/// As [`hold_pair_in`], on a stack of its own.
#[inline(never)]
fn hold_pair_apart<A: Family>(number: u32, tag: u32, other: u32, kept: u32) -> u64 {
    hold_pair_in::<A>(number, tag, other, kept)
}

/// As [`hold_pair`], by the row, both tags and until when the flows are worth keeping.
#[inline(always)]
fn hold_pair_in<A: Family>(number: u32, tag: u32, other: u32, kept: u32) -> u64 {
    let Some(row) = row_of::<A>(number) else {
        return NO_PAIR;
    };
    let went = load(&row.beside);
    // With the same tag, each would be taken for the other.
    if tag == other || went_beside(went, tag) || went_beside(went, other) {
        return NO_PAIR;
    }
    let Some(FreePair { way, sum: before }) = free_pair(&row.words, [tag, other]) else {
        return NO_PAIR;
    };
    let free = joined(way, way + 1);
    let (first, second) = (tag | kept | HELD | way, other | kept | HELD | SHARED | (way + 1));
    if !swap_pair_if(row, way, free, joined(first, second)) {
        return NO_PAIR;
    }
    // What another has written meanwhile may have one of the tags.
    let after = before + u64::from(first) + u64::from(second) - u64::from(2 * way + 1);
    if sum(&row.words) != after {
        publish_pair(row, way, free);
        return NO_PAIR;
    }
    u64::from(number) << 32 | u64::from(way)
}

/// Writes what the slot of a pair is for; then both flows are found.
#[inline(always)]
pub fn fill_pair<A: Family>(held: HeldPair, tuple: &Tuple<A>, entry: &Conntrack<A>) {
    let (number, way) = ((held.0 >> 32) as u32, held.0 as u32);
    write(slot(number, way), tuple, entry);
    if let Some(row) = row_of::<A>(number) {
        publish_pair(row, way, load_pair(row, way) & !joined(HELD, HELD));
    }
}

/// Writes what a slot that is held is for.
#[inline(never)]
pub fn fill<A: Family>(held: &Held, tuple: &Tuple<A>, entry: &Conntrack<A>) {
    put(held, tuple, entry);
}

/// Leaves a slot that is held empty.
#[inline(always)]
pub fn release<A: Family>(held: &Held) {
    say::<A>(held, held.word & WAY_BITS);
}

/// Writes the word of a slot that is held.
#[inline(always)]
fn say<A: Family>(held: &Held, word: u32) {
    if let Some(row) = row_of::<A>(held.row)
        && let Some(at) = word_of(row, held.word)
    {
        publish(at, word);
    }
}

#[inline(always)]
fn take<A: Family>(tuple: &Tuple<A>, place: Place, entry: &Conntrack<A>, claim: Claim) -> Option<Held> {
    let now = units(entry.last_seen);
    let mut number = place.first();
    let row = row_of::<A>(number)?;
    let mut way = tagged(&row.words, place.tag());
    let collides = way != NONE;
    if collides && is_of(tuple, number, way)? {
        if claim == Claim::New {
            return None;
        }
    } else {
        way = if is_vain(load(&row.beside), now) {
            price_of_one(&row.words, place.tag(), now)
        } else {
            NONE
        };
        if way == NONE {
            way = price(&row.words, now);
        }
        let crowded = is_crowded(way, is_vain(load(&row.beside), now));
        if collides || crowded || went_beside(load(&row.beside), place.tag()) {
            let second = place.second();
            let other = row_of::<A>(second)?;
            let there = tagged(&other.words, place.tag());
            if there == NONE {
                if collides || crowded {
                    let less = price(&other.words, now);
                    let beside = load(&row.beside);
                    let goes = collides || is_less(less, way);
                    let says = if goes {
                        sent_beside(beside, place.tag())
                    } else {
                        found_full(beside, way, now)
                    };
                    // To be seen before the flow is.
                    let said = says == beside || swap_if(&row.beside, beside, says) == beside;
                    if goes && said {
                        (number, way) = (second, less);
                    } else if collides {
                        return None;
                    }
                }
            } else if is_of(tuple, second, there)? {
                if claim == Claim::New {
                    return None;
                }
                (number, way) = (second, there);
            } else if collides {
                // Twice the same tag: the next port is another flow.
                return None;
            }
        }
    }
    // Asked for again instead of kept: a program's stack is small.
    let row = row_of::<A>(number)?;
    let at = word_of(row, way)?;
    let found = load(at);
    if found & HELD != 0 && is_kept(found, now) {
        return None;
    }
    let kept = until(entry.last_seen, tuple.protocol, entry.seen);
    let word = place.tag() | kept | HELD | way & WAY_BITS;
    if swap_if(at, found, word) != found {
        return None;
    }
    // The first from either end is the only one.
    if claim != Claim::Any
        && (tagged(&row.words, place.tag()) != word || last_tagged(&row.words, place.tag()) != word)
    {
        publish(at, way & WAY_BITS);
        return None;
    }
    // Read again, a verifier knows nothing of it that would make it walk through what follows once for each way to here.
    let word = load(at);
    Some(Held { row: number, word })
}

/// Writes a slot that is held, and lets it be found.
#[inline(always)]
fn put<A: Family>(held: &Held, tuple: &Tuple<A>, entry: &Conntrack<A>) -> Option<&'static mut Slot<A>> {
    let slot = write(slot(held.row, held.word), tuple, entry)?;
    say::<A>(held, held.word & !HELD);
    Some(slot)
}

#[inline(always)]
fn write<A: Family>(number: u32, tuple: &Tuple<A>, entry: &Conntrack<A>) -> Option<&'static mut Slot<A>> {
    let slot = slot_of::<A>(number)?;
    // SAFETY: both are words on a boundary of four, and nobody else writes a slot that is held.
    unsafe {
        words::copy(
            (&raw const *tuple).cast(),
            (&raw mut slot.tuple).cast(),
            size_of::<Tuple<A>>() / 4,
        );
        words::copy(
            (&raw const *entry).cast(),
            (&raw mut slot.entry).cast(),
            size_of::<Conntrack<A>>() / 4,
        );
    }
    Some(slot)
}
