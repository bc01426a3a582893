//! Finding a flow's slot, and taking one.

use core::{arch::asm, mem::MaybeUninit};

use super::{family::Family, words};
use crate::{
    conntrack::{Conntrack, Tuple},
    flow_table::{
        HELD, NONE, Neighbours, Place, Row, SECRET_ROW, Slot, WAY_BITS, found_full, is_crowded, is_kept,
        is_less, is_vain, last_tagged, load, price, price_of_one, sent_beside, slot, tagged, units, until,
        went_beside,
    },
};

/// Not zero where a CPU makes what it writes visible in order (x86), so that a word behind others needs no more than to be
/// written. The agent sets it.
#[unsafe(no_mangle)]
static ORCH_ORDERED: u64 = 0;

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

/// A flow's slot, and what its row says of it.
struct Found<A: 'static> {
    /// The slot's word.
    at: &'static u32,
    /// As it was read.
    word: u32,
    slot: &'static mut Slot<A>,
}

/// Writes a word of a row.
#[inline(always)]
fn store(word: &u32, value: u32) {
    // SAFETY: memory of a map, which CPUs share; a whole word is written at once.
    unsafe { (&raw const *word).cast_mut().write_volatile(value) };
}

/// Writes a word of a row if it is what it was, in one step that all CPUs see in the same order; what it was.
#[inline(always)]
fn swap_if(word: &u32, old: u32, new: u32) -> u32 {
    let found: u64;
    // SAFETY: as in `store`. The compiler has no such operation for this target; the kernel has since 5.12.
    unsafe {
        asm!(
            "w0 = cmpxchg32_32(r1 + 0, w0, w2)",
            in("r1") &raw const *word,
            in("r2") u64::from(new),
            inlateout("r0") u64::from(old) => found,
            options(nostack),
        );
    }
    found as u32
}

/// Writes a word of a row after all that was written before, as all CPUs see it.
#[inline(always)]
fn publish(word: &u32, new: u32) {
    // SAFETY: a constant that the agent may have set before the program was loaded.
    if unsafe { core::ptr::read_volatile(&raw const ORCH_ORDERED) } != 0 {
        // To wait for the slot, as an operation on memory that is shared does, would take longer than all the rest.
        return store(word, new);
    }
    // SAFETY: as in `swap_if`.
    unsafe {
        asm!(
            "w2 = xchg32_32(r1 + 0, w2)",
            in("r1") &raw const *word,
            inlateout("r2") u64::from(new) => _,
            options(nostack),
        );
    }
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
    Some(neighbours(tuple)?.at(tuple.destination_port))
}

/// Where its slot may be with another destination port.
#[inline(always)]
fn neighbours<A: Family>(tuple: &Tuple<A>) -> Option<Neighbours> {
    let [low, high, ..] = row_of::<A>(SECRET_ROW)?.words;
    let secret = u64::from(high) << 32 | u64::from(low);
    if secret == 0 {
        return None;
    }
    // A longer tuple would take the stack that all that is called needs.
    Some(if A::BITS == 128 {
        neighbours_apart(tuple, secret)
    } else {
        Neighbours::of(tuple, secret)
    })
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
    let word = tagged(&row.words, tag);
    if word & HELD != 0 {
        return None;
    }
    let at = word_of(row, word)?;
    let slot = slot_of::<A>(slot(number, word))?;
    same(&slot.tuple, tuple).then_some(Found { at, word, slot })
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
    if let Some(found) = search(tuple, place.first(), place.tag()) {
        return Some(&mut found.slot.entry);
    }
    find_beside(tuple, place)
}

/// The entry of a flow that is in its second row, if any with its mark is.
#[inline(never)]
fn find_beside<A: Family>(tuple: &Tuple<A>, place: Place) -> Option<&'static mut Conntrack<A>> {
    if !went_beside(load(&row_of::<A>(place.first())?.beside), place.tag()) {
        return None;
    }
    search(tuple, place.second(), place.tag()).map(|found| &mut found.slot.entry)
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
    held.is_some_and(|held| write(&held, tuple, entry).is_some())
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
    let Some(neighbours) = neighbours(tuple) else {
        return false;
    };
    tuple.destination_port = neighbours.port_in(other.row);
    let taken = take(tuple, neighbours.at(tuple.destination_port), entry, Claim::New);
    taken.map(|taken| held.write(taken)).is_some()
}

/// Writes what a slot that is held is for.
#[inline(never)]
pub fn fill<A: Family>(held: &Held, tuple: &Tuple<A>, entry: &Conntrack<A>) {
    write(held, tuple, entry);
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
    if collides && same(&slot_of::<A>(slot(number, way))?.tuple, tuple) {
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
            } else if same(&slot_of::<A>(slot(second, there))?.tuple, tuple) {
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

#[inline(always)]
fn write<A: Family>(held: &Held, tuple: &Tuple<A>, entry: &Conntrack<A>) -> Option<()> {
    let slot = slot_of::<A>(slot(held.row, held.word))?;
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
    say::<A>(held, held.word & !HELD);
    Some(())
}
