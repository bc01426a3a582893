//! Frames for a program that is measured.
//!
//! All frames of a call of `BPF_PROG_TEST_RUN` are the same. The program `feed` of the benchmarks, in an object of its
//! own that no agent loads, writes another over each and hands it on.

use crate::abi;

/// Name of the array of [`Frame`].
pub const FRAMES_MAP: &str = "FRAMES";
/// Name of the array with one [`Turn`].
pub const TURN_MAP: &str = "TURN";
/// Name of the program array with the program that is measured.
pub const MEASURED_MAP: &str = "MEASURED";
/// Most frames that take turns.
pub const FRAMES_MAX: usize = 4_096;

/// A frame, filled up with zeros behind what it carries.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Frame {
    /// Its bytes, as they stand in memory.
    pub words: [u64; 8],
}

abi!(Frame, size 64, align 8, { words @ 0 });

/// Which frame is next.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Turn {
    /// How many have been fed.
    pub fed: u32,
    /// How many take turns.
    pub frames: u32,
}

abi!(Turn, size 8, align 4, { fed @ 0, frames @ 4 });
