//! Words of a row, which programs on all CPUs and the agent write at once.

use core::arch::asm;

use crate::flow_table::Row;

/// Not zero where a CPU makes what it writes visible in order (x86), so that a word behind others needs no more than to be
/// written. The agent sets it.
#[unsafe(no_mangle)]
static ORCH_ORDERED: u64 = 0;

/// Writes a word of a row.
#[inline(always)]
fn store(word: &u32, value: u32) {
    // SAFETY: memory of a map, which CPUs share; a whole word is written at once.
    unsafe { (&raw const *word).cast_mut().write_volatile(value) };
}

/// Writes a word of a row if it is what it was, in one step that all CPUs see in the same order; what it was.
#[inline(always)]
pub fn swap_if(word: &u32, old: u32, new: u32) -> u32 {
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
pub fn publish(word: &u32, new: u32) {
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

/// Two words of a row that begin at an even one, as one: a row is on a boundary of 64 bytes.
#[inline(always)]
fn pair_of(row: &Row, way: u32) -> *mut u64 {
    const { assert!(size_of::<Row>() == 64) };
    let mut offset = u64::from(way) * 4;
    // SAFETY: it is no more than that already, which a compiler knows and a verifier does not; so one of the eight pairs.
    unsafe {
        asm!("{0} &= 56", inout(reg) offset, options(pure, nomem, nostack));
        (&raw const *row)
            .cast::<u64>()
            .cast_mut()
            .byte_add(offset as usize)
    }
}

/// Both words of a pair as they are in memory.
#[inline(always)]
pub fn joined(first: u32, second: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// Reads two words at once.
#[inline(always)]
pub fn load_pair(row: &Row, way: u32) -> u64 {
    // SAFETY: as in `store`.
    unsafe { pair_of(row, way).read_volatile() }
}

/// As [`swap_if`], for two words at once; whether they were what they should be.
#[inline(always)]
pub fn swap_pair_if(row: &Row, way: u32, old: u64, new: u64) -> bool {
    let found: u64;
    // SAFETY: as in `swap_if`.
    unsafe {
        asm!(
            "r0 = cmpxchg_64(r1 + 0, r0, r2)",
            in("r1") pair_of(row, way),
            in("r2") new,
            inlateout("r0") old => found,
            options(nostack),
        );
    }
    found == old
}

/// As [`publish`], for two words at once.
#[inline(always)]
pub fn publish_pair(row: &Row, way: u32, new: u64) {
    let pair = pair_of(row, way);
    // SAFETY: as in `publish`.
    unsafe {
        if core::ptr::read_volatile(&raw const ORCH_ORDERED) != 0 {
            return pair.write_volatile(new);
        }
        asm!(
            "r2 = xchg_64(r1 + 0, r2)",
            in("r1") pair,
            inlateout("r2") new => _,
            options(nostack),
        );
    }
}
