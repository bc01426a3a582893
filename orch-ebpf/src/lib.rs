#![no_std]
#![cfg_attr(feature = "programs", feature(asm_experimental_arch))]
//! The data plane: its ABI (this library) and, with the feature `programs`, the eBPF programs.
//!
//! Everything that crosses the border between programs and agent stands in this library's modules: map keys and
//! values, constants, and the one list of drop reasons. Each IP family has maps of its own, whose names end in 4 or 6
//! and whose types are generic over the [`Address`]. Addresses are bytes in the order they have on the wire, so that
//! `bpftool map dump` prints them as a person writes them, on boundaries of four bytes, so that programs copy words;
//! ports are integers in the host's order.

#[cfg(test)]
extern crate std;

pub mod address;
pub mod bandwidth;
pub mod config;
pub mod conntrack;
pub mod endpoint;
pub mod event;
pub mod feed;
pub mod flow_table;
pub mod policy;
pub mod service;

#[cfg(feature = "programs")]
pub mod datapath;

/// What every object of programs has: the license that the kernel asks for, and where a panic would go, which no program
/// that the verifier lets pass can reach.
#[cfg(feature = "programs")]
#[macro_export]
macro_rules! object {
    () => {
        #[panic_handler]
        fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
            loop {}
        }

        #[unsafe(link_section = "license")]
        #[unsafe(no_mangle)]
        static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
    };
}

pub use address::{Address, Address4, Address6};

/// Version of every layout in this library. A change of any key or value increments it; an agent that finds another
/// version in the pinned maps migrates what they hold.
pub const ABI_VERSION: u32 = 7;

/// IP protocol number of ICMP (IANA protocol numbers).
pub const PROTOCOL_ICMP: u8 = 1;
/// IP protocol number of IPv4 in IP (RFC 2003).
pub const PROTOCOL_IPV4: u8 = 4;
/// IP protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// IP protocol number of IPv6 in IP (RFC 2473).
pub const PROTOCOL_IPV6: u8 = 41;
/// IP protocol number of ICMPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;
/// IP protocol number of SCTP.
pub const PROTOCOL_SCTP: u8 = 132;

/// Asserts at compile time that a type of the ABI has the layout that is written beside it, and with the feature
/// `user` implements `aya::Pod` for it. A type of both families is named once for all, and has a layout for each.
macro_rules! abi {
    (@layout $type:ty, size $size:literal, align $align:literal, { $($field:ident @ $offset:literal),+ $(,)? }) => {
        const _: () = {
            assert!(size_of::<$type>() == $size, "size differs from the ABI's");
            assert!(align_of::<$type>() == $align, "alignment differs from the ABI's");
            $(assert!(core::mem::offset_of!($type, $field) == $offset, "a field moved");)+
        };
    };
    (both $name:ident { $($layout4:tt)+ } { $($layout6:tt)+ }) => {
        $crate::abi!(@layout $name<$crate::Address4>, $($layout4)+);
        $crate::abi!(@layout $name<$crate::Address6>, $($layout6)+);
        // SAFETY: the type is `repr(C)`, holds only integers and byte arrays, and the layouts asserted above leave no
        // room for padding other than the fields named `_pad`.
        #[cfg(feature = "user")]
        unsafe impl<A: $crate::Address + aya::Pod> aya::Pod for $name<A> {}
    };
    ($type:ty, $($layout:tt)+) => {
        $crate::abi!(@layout $type, $($layout)+);
        // SAFETY: the type is `repr(C)`, holds only integers and byte arrays, and the size assertion above leaves no
        // room for padding other than the fields named `_pad`.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $type {}
    };
}
pub(crate) use abi;
