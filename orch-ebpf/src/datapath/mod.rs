//! The programs' steps, in the order in which a packet meets them.
//!
//! `parse`, `conntrack`, `service` and `nat` know tuples and maps but no kind of program, so that XDP entries can
//! call them as the tc entries do; `skb` is what tc can do to a packet; `pod` and `uplink` are the paths; `socket`
//! stands apart, at the system calls.

pub mod conntrack;
pub mod events;
pub mod maps;
pub mod nat;
pub mod parse;
pub mod pod;
pub mod service;
pub mod skb;
pub mod socket;
pub mod uplink;

use crate::{Address, config::Config};

/// The node's settings; `None` until the agent has written them.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    maps::ORCH_CONFIG
        .get(0)
        .filter(|config| config.abi_version == crate::ABI_VERSION)
}

/// Whether `address` is in the network.
#[inline(always)]
pub fn within(address: Address, network: Address, mask: Address) -> bool {
    (u32::from_ne_bytes(address) ^ u32::from_ne_bytes(network)) & u32::from_ne_bytes(mask) == 0
}

/// The kind of the node that has the address, or zero.
#[inline(always)]
pub fn node_kind(address: Address) -> u32 {
    // SAFETY: the value is one integer, copied at once; a slot that is reused meanwhile yields another valid kind.
    unsafe { maps::ORCH_NODES.get(address) }.map_or(0, |node| node.kind)
}
