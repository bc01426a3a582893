#![no_std]
//! The data plane: its ABI (this library) and, with the feature `programs`, the eBPF programs.
//!
//! Everything that crosses the border between programs and agent stands in this library's modules: map keys and
//! values, constants, and the one list of drop reasons. Addresses are four bytes in the order they have on the wire,
//! so that `bpftool map dump` prints them as a person writes them; ports are integers in the host's order.

pub mod config;
pub mod conntrack;
pub mod endpoint;
pub mod event;
pub mod service;

#[cfg(feature = "programs")]
pub mod datapath;

/// Version of every layout in this library. A change of any key or value increments it; an agent that finds another
/// version in the pinned maps does not adopt them.
pub const ABI_VERSION: u32 = 1;

/// An IPv4 address in wire order.
pub type Address = [u8; 4];

/// IP protocol number of ICMP (IANA protocol numbers).
pub const PROTOCOL_ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;

/// Asserts at compile time that a type of the ABI has the layout that is written beside it, and with the feature
/// `user` implements `aya::Pod` for it.
macro_rules! abi {
    ($type:ty, size $size:literal, align $align:literal, { $($field:ident @ $offset:literal),+ $(,)? }) => {
        const _: () = {
            assert!(size_of::<$type>() == $size, "size differs from the ABI's");
            assert!(align_of::<$type>() == $align, "alignment differs from the ABI's");
            $(assert!(core::mem::offset_of!($type, $field) == $offset, "a field moved");)+
        };
        // SAFETY: the type is `repr(C)`, holds only integers and byte arrays, and the size assertion above leaves no
        // room for padding other than the fields named `_pad`.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $type {}
    };
}
pub(crate) use abi;
