//! Memory word by word. What a compiler makes of longer copies and of zeros is a call of a function that goes byte by
//! byte, which costs a packet as much as a look-up.

use core::mem::MaybeUninit;

/// Fills a place on the stack with zeros.
///
/// # Safety
/// Zero is a value of the type, which is whole words on a boundary of four bytes.
#[inline(always)]
pub unsafe fn zeroed<T>(place: &mut MaybeUninit<T>) -> &mut T {
    const { assert!(size_of::<T>() % 4 == 0) };
    // SAFETY: all of the place, and then there is something in it.
    unsafe {
        clear(place.as_mut_ptr().cast(), size_of::<T>() / 4);
        place.assume_init_mut()
    }
}

/// Copies so many words.
///
/// # Safety
/// Both pointers are to as many words that nothing else writes meanwhile; in a map's value or on the stack they stand on
/// a boundary of four bytes.
#[inline(always)]
pub unsafe fn copy(from: *const u32, to: *mut u32, words: usize) {
    for index in 0..words {
        // SAFETY: within what the caller says.
        unsafe { *to.add(index) = *from.add(index) };
    }
}

/// Writes so many words of zeros.
///
/// # Safety
/// As for [`copy`].
#[inline(always)]
pub unsafe fn clear(to: *mut u32, words: usize) {
    for index in 0..words {
        // Volatile, or a compiler would see what this comes to.
        // SAFETY: within what the caller says.
        unsafe { to.add(index).write_volatile(0) };
    }
}
