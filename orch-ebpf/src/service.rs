//! Services: from an address that clients use to the backends that answer.
//!
//! A service names a pool of backends. A small pool's stand in the service's own entry, so that one look-up finds a
//! service and whom to send to: each backend ranks the flow ([`Backend::rank`]), and the one that ranks it highest has
//! it (Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", 1998). Every node chooses alike, and a
//! backend that comes or goes moves its own flows and no others.
//!
//! A larger pool has slots; a slot names a backend. One choice of a slot's number is one
//! choice of a backend, whatever the number of services and backends. For clients in the cluster a pool has a slot for
//! each backend and the number is random; for clients outside it is a Maglev table (Eisenbud and others, NSDI 2016)
//! and the number is the flow's hash, so that every node chooses alike and few flows move when a backend does. Slots
//! stand in chunks. A reader always sees a slot and a backend for every number below the count: writers fill backends,
//! then chunks, then the count, and empty in the reverse order.

use crate::{Address, Address6, abi, address::word};

/// Start of the name of the hashes from [`ServiceKey`] to [`Service`].
pub const SERVICES_MAP: &str = "ORCH_SERVICES";
/// Name of the hash from [`ChunkKey`] to [`Chunk`].
pub const SLOTS_MAP: &str = "ORCH_SLOTS";
/// Start of the name of the hashes from [`BackendKey`] to [`Backend`]. The two families never share a number.
pub const BACKENDS_MAP: &str = "ORCH_BACKENDS";
/// Start of the name of the tries from [`SourceKey`] to [`Source`].
pub const SOURCES_MAP: &str = "ORCH_SOURCES";
/// Name of the LRU hash from [`AffinityKey`] to [`Affinity`].
pub const AFFINITY_MAP: &str = "ORCH_AFFINITY";
/// Start of the name of the LRU hashes from [`SocketKey`] to [`SocketOrigin`].
pub const SOCKETS_MAP: &str = "ORCH_SOCKETS";
/// Start of the name of the arrays of [`Stream`].
pub const STREAMS_MAP: &str = "ORCH_STREAMS";
/// Most service ports of one family.
pub const SERVICES_MAX: usize = 524_288;
/// Most chunks of all pools together.
pub const SLOTS_MAX: usize = 2_097_152;
/// Most different backends of one family.
pub const BACKENDS_MAX: usize = 1_048_576;
/// Most source ranges of one family.
pub const SOURCES_MAX: usize = 65_536;
/// Most clients with session affinity that are remembered.
pub const AFFINITY_MAX: usize = 65_536;
/// Most pairs of a UDP socket and a backend of one family whose original destination is remembered.
pub const SOCKETS_MAX: usize = 32_768;
/// Most TCP sockets of one family whose original destination is remembered. A power of two, since a cookie ends in its
/// slot's number.
pub const STREAMS_MAX: usize = 65_536;

/// An address and port that clients use.
#[repr(C, align(4))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey<A> {
    /// The service's address, or [`crate::Address::ANY`] for every address of the node.
    pub address: A,
    /// The service's port, in the host's order.
    pub port: u16,
    /// [`crate::PROTOCOL_TCP`], [`crate::PROTOCOL_UDP`] or [`crate::PROTOCOL_SCTP`].
    pub protocol: u8,
    /// [`SCOPE_INTERNAL`] or [`SCOPE_EXTERNAL`].
    pub scope: u8,
}

impl<A> ServiceKey<A> {
    /// Writes all but the address as one word, see [`crate::conntrack::Tuple::set_ports`].
    #[cfg(feature = "programs")]
    #[inline(always)]
    pub fn set_port(&mut self, port: u16, protocol: u8, scope: u8) {
        const { assert!(core::mem::offset_of!(Self, scope) == core::mem::offset_of!(Self, port) + 3) };
        let [low, high] = port.to_ne_bytes();
        let word = u32::from_ne_bytes([low, high, protocol, scope]);
        // SAFETY: the four bytes are within the key, and on a boundary of four (the layout asserted above).
        unsafe { (&raw mut self.port).cast::<u32>().write(word) };
    }
}

/// [`ServiceKey`] scope: for clients in the cluster, under `internalTrafficPolicy`.
pub const SCOPE_INTERNAL: u8 = 0;
/// [`ServiceKey`] scope: for packets from outside, under `externalTrafficPolicy`.
pub const SCOPE_EXTERNAL: u8 = 1;

abi!(both ServiceKey { size 8, align 4, { address @ 0, port @ 4, protocol @ 6, scope @ 7 } } { size 20, align 4, { address @ 0, port @ 16, protocol @ 18, scope @ 19 } });

/// Most backends of a service that its own entry holds. The kernel gives an entry 512 bytes with IPv6, which an eleventh
/// would exceed, and 256 with IPv4.
pub const MEMBERS_MAX: usize = 10;

/// A backend in a service's own entry.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Member<A> {
    /// What the map of backends says of it.
    pub backend: Backend<A>,
    /// Its number.
    pub id: u32,
}

abi!(both Member { size 16, align 4, { backend @ 0, id @ 12 } } { size 40, align 4, { backend @ 0, id @ 36 } });

/// Where a service leads.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Service<A> {
    /// Number of the pool that holds the backends.
    pub pool: u32,
    /// How many slots of the pool, or members, are in use; zero refuses connections.
    pub count: u32,
    /// Seconds for which a client keeps its backend; zero for no session affinity.
    pub affinity_seconds: u32,
    /// [`SERVICE_SOURCES`] and its siblings.
    pub flags: u32,
    /// With [`SERVICE_MEMBERS`] the backends, `count` of them; zeros behind them.
    pub members: [Member<A>; MEMBERS_MAX],
}

impl<A> Service<A> {
    /// The backends in the entry; `None` where they are in slots.
    #[must_use]
    pub fn members(&self) -> Option<&[Member<A>]> {
        let members = self.members.get(..self.count as usize);
        members.filter(|_| self.flags & SERVICE_MEMBERS != 0)
    }
}

/// Flag of [`Service`]: only the sources listed for the pool in [`SOURCES_MAP`] may use it
/// (`spec.loadBalancerSourceRanges`).
pub const SERVICE_SOURCES: u32 = 1;
/// Flag of [`Service`]: without a backend a packet is dropped and not refused: `externalTrafficPolicy: Local` or
/// `internalTrafficPolicy: Local` on a node without an endpoint.
pub const SERVICE_LOCAL: u32 = 2;
/// Flag of [`Service`]: a pod's host port. The programs do not read it; a new agent knows by it what to keep.
pub const SERVICE_HOST_PORT: u32 = 4;
/// Flag of [`Service`]: the backends are its members; the pool has no slots.
pub const SERVICE_MEMBERS: u32 = 8;

abi!(both Service { size 176, align 4, {
    pool @ 0, count @ 4, affinity_seconds @ 8, flags @ 12, members @ 16,
} } { size 416, align 4, {
    pool @ 0, count @ 4, affinity_seconds @ 8, flags @ 12, members @ 16,
} });

/// Slots of a chunk.
pub const CHUNK_SLOTS: usize = 16;

/// A chunk of a pool's slots.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkKey {
    /// The pool's number; the two families never share one.
    pub pool: u32,
    /// Number of the chunk: that of its first slot divided by [`CHUNK_SLOTS`].
    pub chunk: u32,
}

abi!(ChunkKey, size 8, align 4, { pool @ 0, chunk @ 4 });

/// The numbers of the backends in a chunk's slots; zero where no slot is in use.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Chunk {
    /// By slot.
    pub backends: [u32; CHUNK_SLOTS],
}

abi!(Chunk, size 64, align 4, { backends @ 0 });

/// The number of a backend, the key of its map.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendKey {
    /// The number; zero is never used, so that zero in a conntrack entry says "no backend".
    pub id: u32,
}

abi!(BackendKey, size 4, align 4, { id @ 0 });

/// An endpoint that answers for services.
#[repr(C, align(4))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Backend<A> {
    /// The endpoint's address.
    pub address: A,
    /// The endpoint's port, in the host's order.
    pub port: u16,
    /// [`crate::PROTOCOL_TCP`], [`crate::PROTOCOL_UDP`] or [`crate::PROTOCOL_SCTP`].
    pub protocol: u8,
    /// [`BACKEND_LOCAL`] or zero.
    pub flags: u8,
    /// Address of the node that the endpoint is on, in the same family; zero where it has none or is not known.
    pub node: A,
}

impl<A: Address> Backend<A> {
    /// How high the backend ranks a flow with this hash, or a random number: even between backends, and the same on every
    /// node, since it is a function of the backend's address and port alone.
    #[inline(always)]
    #[must_use]
    pub fn rank(&self, flow: u32) -> u64 {
        const PRIME: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut rank = (u64::from(flow) << 32 | u64::from(self.port)).wrapping_mul(PRIME);
        for index in 0..A::BITS as usize / 32 {
            rank ^= rank >> 32;
            // Of the same value on every node, whatever the order of its bytes.
            rank = (rank ^ u64::from(u32::from_le(word(&self.address, index)))).wrapping_mul(PRIME);
        }
        rank ^= rank >> 29;
        rank.wrapping_mul(PRIME)
    }
}

/// Flag of [`Backend`]: on this node, so that a packet from outside keeps its source address.
pub const BACKEND_LOCAL: u8 = 1;

abi!(both Backend { size 12, align 4, { address @ 0, port @ 4, protocol @ 6, flags @ 7, node @ 8 } } { size 36, align 4, { address @ 0, port @ 16, protocol @ 18, flags @ 19, node @ 20 } });

/// A network from which a service may be used. In the trie the prefix length counts the pool's 32 bits as well.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceKey<A> {
    /// Number of the service's pool.
    pub pool: u32,
    /// First address of the network.
    pub address: A,
}

abi!(both SourceKey { size 8, align 4, { pool @ 0, address @ 4 } } { size 20, align 4, { pool @ 0, address @ 4 } });

/// What a source range says.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Source {
    /// Always one.
    pub allowed: u32,
}

abi!(Source, size 4, align 4, { allowed @ 0 });

/// A client of a pool with session affinity.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct AffinityKey {
    /// The client's address in its wide form, or in the first eight bytes the cookie of its network namespace.
    pub client: Address6,
    /// The pool's number.
    pub pool: u32,
    /// [`CLIENT_ADDRESS`] or [`CLIENT_NAMESPACE`].
    pub client_kind: u32,
}

/// [`AffinityKey`] kind: the client is an address.
pub const CLIENT_ADDRESS: u32 = 0;
/// [`AffinityKey`] kind: the client is a network namespace, at the socket hooks.
pub const CLIENT_NAMESPACE: u32 = 1;

abi!(AffinityKey, size 24, align 4, { client @ 0, pool @ 16, client_kind @ 20 });

/// The backend that a client keeps.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Affinity {
    /// When it was last used, in nanoseconds of `CLOCK_MONOTONIC`.
    pub last_used: u64,
    /// The backend's number.
    pub backend: u32,
    /// Always zero.
    pub _pad: u32,
}

abi!(Affinity, size 16, align 8, { last_used @ 0, backend @ 8, _pad @ 12 });

/// What a TCP socket asked for, and the backend that it got. A socket's slot is its cookie modulo [`STREAMS_MAX`]: cookies
/// count upwards, so a slot is written again when that many sockets have come, and a connection costs a store, where a
/// hash would cost it a hundredth of its rate.
#[repr(C, align(4))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stream<A> {
    /// The kernel's cookie of the socket, its low half first; zero where there was none yet.
    pub cookie: [u32; 2],
    /// The backend's address.
    pub backend: A,
    /// The service's address.
    pub service: A,
    /// The backend's port, in the host's order.
    pub backend_port: u16,
    /// The service's port, in the host's order.
    pub service_port: u16,
}

abi!(both Stream { size 20, align 4, {
    cookie @ 0, backend @ 8, service @ 12, backend_port @ 16, service_port @ 18,
} } { size 44, align 4, {
    cookie @ 0, backend @ 8, service @ 24, backend_port @ 40, service_port @ 42,
} });

/// A UDP socket and the backend it talks to.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SocketKey<A> {
    /// The kernel's cookie of the socket, its low half first.
    pub cookie: [u32; 2],
    /// The backend's address.
    pub address: A,
    /// The backend's port, in the host's order.
    pub port: u16,
    /// Always zero.
    pub _pad: u16,
}

abi!(both SocketKey { size 16, align 4, { cookie @ 0, address @ 8, port @ 12, _pad @ 14 } } { size 28, align 4, { cookie @ 0, address @ 8, port @ 24, _pad @ 26 } });

/// The address that the socket's owner asked for.
#[repr(C, align(4))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SocketOrigin<A> {
    /// The service's address.
    pub address: A,
    /// The service's port, in the host's order.
    pub port: u16,
    /// Always zero.
    pub _pad: u16,
}

abi!(both SocketOrigin { size 8, align 4, { address @ 0, port @ 4, _pad @ 6 } } { size 20, align 4, { address @ 0, port @ 16, _pad @ 18 } });

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;
    use crate::{Address4, Address6};

    /// Says which of the backends each of many flows has.
    fn owners<A: Address>(backends: &[Backend<A>], flows: impl Iterator<Item = u32>) -> Vec<usize> {
        flows
            .map(|flow| {
                let ranks = backends.iter().map(|backend| backend.rank(flow));
                ranks
                    .enumerate()
                    .max_by_key(|(_, rank)| *rank)
                    .map_or(0, |(index, _)| index)
            })
            .collect()
    }

    fn even<A: Address>(backends: &[Backend<A>], flows: impl Iterator<Item = u32>) {
        let owners = owners(backends, flows);
        for index in 0..backends.len() {
            let share = owners.iter().filter(|owner| **owner == index).count() * backends.len();
            // With 30,000 flows or more, a tenth is five times the standard deviation.
            assert!(
                share.abs_diff(owners.len()) * 10 < owners.len(),
                "{index}: {share} of {}",
                owners.len()
            );
        }
    }

    #[test]
    fn neighbouring_backends_have_even_shares_of_any_flows() {
        const FLOWS: u32 = 30_000;
        let four = |last, port| Backend::<Address4> {
            address: [10, 244, 0, last],
            port,
            ..Backend::default()
        };
        let six = |last, port| Backend::<Address6> {
            address: [0xfd, 0, 0, 10, 2, 44, 0, 0, 0, 0, 0, 0, 0, 0, 0, last],
            port,
            ..Backend::default()
        };
        for count in 2..=MEMBERS_MAX as u8 {
            let (by_address, by_port): (Vec<_>, Vec<_>) = (1..=count)
                .map(|n| (four(n, 8080), four(1, 8080 + u16::from(n))))
                .unzip();
            let wide: Vec<_> = (1..=count).map(|n| six(n, 8080)).collect();
            // Hashes that follow one another, that differ in high bits alone, and that are spread.
            for step in [1, 1 << 17, 0x9e37_79b1] {
                let flows = || (0..FLOWS).map(|n| n.wrapping_mul(step));
                even(&by_address, flows());
                even(&by_port, flows());
                even(&wide, flows());
            }
        }
    }

    #[test]
    fn only_flows_of_a_backend_that_leaves_move() {
        let mut backends: Vec<_> = (1..=9)
            .map(|last| Backend::<Address4> {
                address: [10, 244, last, 7],
                port: 80,
                ..Backend::default()
            })
            .collect();
        let before = owners(&backends, 0..10_000);
        let left = 4;
        backends.remove(left);
        let after = owners(&backends, 0..10_000);
        for (was, is) in before.into_iter().zip(after) {
            let is = if is >= left { is + 1 } else { is };
            assert!(was == is || was == left);
        }
    }
}
