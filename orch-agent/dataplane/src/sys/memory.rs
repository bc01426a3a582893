//! The memory of a map that programs and agent share, and values as bytes.

use std::{
    io,
    num::NonZeroUsize,
    os::fd::{AsFd, BorrowedFd},
    ptr::NonNull,
    sync::atomic::AtomicU32,
};

use aya::{Pod, maps::MapData};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// The elements of an array with `BPF_F_MMAPABLE`, in memory that others write meanwhile.
///
/// Whoever maps it has all of its pages counted as its own for as long, so it is for the time of one task.
#[derive(Debug)]
pub struct Mapped<T> {
    start: NonNull<T>,
    count: usize,
    bytes: NonZeroUsize,
}

// SAFETY: the memory belongs to no thread, and is only read and written in ways that allow for others.
unsafe impl<T: Send> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Mapped<T> {}

impl<T: Pod> Mapped<T> {
    /// Maps an array of as many elements.
    ///
    /// *Kernel*: 5.5.
    ///
    /// # Errors
    /// The kernel's; `EINVAL` when the array is smaller, `EPERM` when it is not for mapping.
    pub fn of(map: &MapData, count: usize) -> io::Result<Self> {
        const {
            assert!(
                size_of::<T>().is_multiple_of(8),
                "elements of an array begin at multiples of eight bytes"
            )
        };
        let bytes = NonZeroUsize::new(count * size_of::<T>()).ok_or(io::ErrorKind::InvalidInput)?;
        let fd: BorrowedFd<'_> = map.fd().as_fd();
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, which takes no other's place.
        let start = unsafe { mmap(None, bytes, access, MapFlags::MAP_SHARED, fd, 0) }?;
        Ok(Self {
            start: start.cast(),
            count,
            bytes,
        })
    }

    fn part<P>(&self, index: usize, offset: usize) -> io::Result<NonNull<P>> {
        if index >= self.count
            || !offset.is_multiple_of(align_of::<P>())
            || offset + size_of::<P>() > size_of::<T>()
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: within the mapping, which starts with a page and of which every element is whole words of eight bytes.
        Ok(unsafe { self.start.add(index).cast::<u8>().add(offset).cast() })
    }

    /// A copy of the part at this offset of an element, which may be half of what it was and half of what somebody writes.
    ///
    /// # Errors
    /// When there is no such element, or no such part of one.
    pub fn read<P: Pod>(&self, index: usize, offset: usize) -> io::Result<P> {
        // SAFETY: `part` has checked it; every pattern of bits is a value.
        self.part(index, offset)
            .map(|part| unsafe { part.read_volatile() })
    }

    /// Writes the part at this offset of an element. Whoever may read it meanwhile must be able to tell.
    ///
    /// # Errors
    /// When there is no such element, or no such part of one.
    pub fn write<P: Pod>(&self, index: usize, offset: usize, value: P) -> io::Result<()> {
        // SAFETY: `part` has checked it.
        self.part(index, offset)
            .map(|part| unsafe { part.write_volatile(value) })
    }

    /// The word of four bytes at this offset of an element.
    ///
    /// # Errors
    /// When there is no such element, or it is no word of one.
    pub fn word(&self, index: usize, offset: usize) -> io::Result<&AtomicU32> {
        // SAFETY: `part` has checked it; it is there as long as this lives, and others write it as a whole word.
        self.part(index, offset)
            .map(|word| unsafe { AtomicU32::from_ptr(word.as_ptr()) })
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: what was mapped, and nothing refers to it any longer.
        let _ = unsafe { munmap(self.start.cast(), self.bytes.get()) };
    }
}

/// The value that stands at the start of these bytes.
pub fn read<T: Pod>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: as many bytes as the type has, of which every pattern is a value.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}
