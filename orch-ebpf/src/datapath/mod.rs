//! The programs' steps, in the order in which a packet meets them.
//!
//! Every step is generic over the [`family::Family`] of addresses. `parse`, `conntrack` on its `flow_table`, `service`, `nat`
//! and `policy` know tuples and maps but no kind of program, and `routes` asks the kernel's; `skb` is what tc can do to a
//! packet and `xdp` what XDP can; `pod`, `uplink`, `own` and `tunnel` are the paths, `carry` and `unpack` both ends of a
//! shorter one between nodes; `socket` stands apart, at the system calls. `words` is how memory is copied,
//! and `atomic` how it is shared.

pub mod announce;
pub mod atomic;
pub mod bandwidth;
pub mod carry;
pub mod checksum;
pub mod conntrack;
pub mod error_message;
pub mod events;
pub mod family;
pub mod flow_table;
pub mod maps;
pub mod nat;
pub mod own;
pub mod parse;
pub mod pod;
pub mod policy;
pub mod routes;
pub mod sctp;
pub mod service;
pub mod skb;
pub mod socket;
pub mod too_big;
pub mod tunnel;
pub mod unpack;
pub mod uplink;
pub mod words;
pub mod xdp;

use crate::config::Config;

/// The node's settings; `None` until the agent has written them.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    maps::ORCH_CONFIG
        .get(0)
        .filter(|config| config.abi_version == crate::ABI_VERSION)
}
