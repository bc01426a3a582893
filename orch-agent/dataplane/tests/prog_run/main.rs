//! The tc and XDP programs under `BPF_PROG_TEST_RUN`: packets and maps in, verdict, packet and counters out, for both
//! families of addresses.
#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

#[path = "../support/packet.rs"]
mod packet;

mod announce;
mod answers;
mod balance;
mod bandwidth;
mod bench;
mod carry;
mod case;
mod cluster_ip;
mod conntrack;
mod errors;
mod flows;
mod fragments;
mod headers;
mod malformed;
mod moving;
mod pod;
mod policy;
mod property;
mod quotes;
mod restore;
mod sctp;
mod spec;
mod tables;
mod too_big;
mod tunnel;
mod unpack;
mod uplink;
mod world;
mod xdp;
