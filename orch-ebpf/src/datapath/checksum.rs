//! The Internet checksum's arithmetic (RFC 1071, RFC 1624), for where no helper does it.
//!
//! One's complement sums are the same in either byte order as long as words are read as they stand in memory.

use super::family::{Family, word};

/// One's complement sums of sixteen bits are counted modulo this.
pub const MODULUS: u64 = 0xffff;

/// A sum that has not been folded yet.
#[derive(Clone, Copy, Default)]
pub struct Sum(u64);

impl Sum {
    /// A sum that starts at what a header's checksum field says of its header.
    #[inline(always)]
    pub fn of_field(field: u16) -> Self {
        Self(u64::from(!field))
    }

    /// A sum that somebody else has made, of at most 33 bits.
    #[inline(always)]
    pub fn of(sum: u64) -> Self {
        Self(sum)
    }

    /// Adds four bytes as they stand in memory.
    #[inline(always)]
    pub fn add_word(self, word: u32) -> Self {
        Self(self.0 + u64::from(word))
    }

    /// Adds two bytes as they stand in memory.
    #[inline(always)]
    pub fn add(self, word: u16) -> Self {
        Self(self.0 + u64::from(word))
    }

    /// Takes two bytes out and puts two others in.
    #[inline(always)]
    pub fn replace(self, old: u16, new: u16) -> Self {
        Self(self.0 + u64::from(!old) + u64::from(new))
    }

    /// Adds another sum.
    #[inline(always)]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Adds bytes that stand at an even offset; an address, for instance.
    #[inline(always)]
    pub fn add_bytes<const N: usize>(mut self, bytes: [u8; N]) -> Self {
        let mut index = 0;
        while index + 1 < N {
            self = self.add(u16::from_ne_bytes([bytes[index], bytes[index + 1]]));
            index += 2;
        }
        self
    }

    /// Takes an address of a tuple out and puts another in.
    #[inline(always)]
    pub fn replace_address<A: Family>(mut self, old: &A, new: &A) -> Self {
        // Whole words of four bytes: their halves are added when the sum is folded.
        for index in 0..A::BITS as usize / 32 {
            self = Self(self.0 + u64::from(!word(old, index)) + u64::from(word(new, index)));
        }
        self
    }

    /// The checksum field's value.
    #[inline(always)]
    pub fn field(self) -> u16 {
        let mut sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        // At most 2^33 now: three folds leave sixteen bits.
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        !(sum as u16)
    }

    /// The folded sum, as `bpf_csum_diff` gives it to the checksum helpers.
    #[inline(always)]
    pub fn folded(self) -> u64 {
        u64::from(!self.field())
    }
}
