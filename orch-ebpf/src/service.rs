//! Services: from an address that clients use to the backends that answer.
//!
//! A service names a pool and how many slots it has; a slot names a backend. One choice of a slot number is one
//! choice of a backend, whatever the number of services and backends. A reader always sees a slot and a backend for
//! every number below the count: writers fill backends, then slots, then the count, and empty in the reverse order.

use crate::{Address, abi};

/// Name of the hash from [`ServiceKey`] to [`Service`].
pub const SERVICES_MAP: &str = "ORCH_SERVICES";
/// Name of the hash from [`SlotKey`] to [`Slot`].
pub const SLOTS_MAP: &str = "ORCH_SLOTS";
/// Name of the hash from backend number to [`Backend`].
pub const BACKENDS_MAP: &str = "ORCH_BACKENDS";
/// Name of the LRU hash from [`AffinityKey`] to [`Affinity`].
pub const AFFINITY_MAP: &str = "ORCH_AFFINITY";
/// Name of the LRU hash from [`SocketKey`] to [`SocketOrigin`].
pub const SOCKETS_MAP: &str = "ORCH_SOCKETS";
/// Most service ports.
pub const SERVICES_MAX: usize = 131_072;
/// Most slots of all pools together.
pub const SLOTS_MAX: usize = 1_048_576;
/// Most different backends.
pub const BACKENDS_MAX: usize = 524_288;
/// Most clients with session affinity that are remembered.
pub const AFFINITY_MAX: usize = 65_536;
/// Most sockets whose original destination is remembered.
pub const SOCKETS_MAX: usize = 65_536;

/// Address that stands for every address of the node, in the key of a NodePort.
pub const ANY_ADDRESS: Address = [0; 4];

/// An address and port that clients use.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// The service's address, or [`ANY_ADDRESS`].
    pub address: Address,
    /// The service's port, in the host's order.
    pub port: u16,
    /// [`crate::PROTOCOL_TCP`] or [`crate::PROTOCOL_UDP`].
    pub protocol: u8,
    /// [`SCOPE_INTERNAL`] or [`SCOPE_EXTERNAL`].
    pub scope: u8,
}

/// [`ServiceKey`] scope: for clients in the cluster, under `internalTrafficPolicy`.
pub const SCOPE_INTERNAL: u8 = 0;
/// [`ServiceKey`] scope: for packets from outside, under `externalTrafficPolicy`.
pub const SCOPE_EXTERNAL: u8 = 1;

abi!(ServiceKey, size 8, align 2, { address @ 0, port @ 4, protocol @ 6, scope @ 7 });

/// Where a service leads.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Service {
    /// Number of the pool that holds the backends.
    pub pool: u32,
    /// How many slots of the pool are in use; zero refuses connections.
    pub count: u32,
    /// Seconds for which a client keeps its backend; zero for no session affinity.
    pub affinity_seconds: u32,
}

abi!(Service, size 12, align 4, { pool @ 0, count @ 4, affinity_seconds @ 8 });

/// A slot of a pool.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotKey {
    /// The pool's number.
    pub pool: u32,
    /// The slot's number, from zero.
    pub slot: u32,
}

abi!(SlotKey, size 8, align 4, { pool @ 0, slot @ 4 });

/// What a slot holds.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Slot {
    /// The backend's number.
    pub backend: u32,
}

abi!(Slot, size 4, align 4, { backend @ 0 });

/// The number of a backend, the key of its map.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendKey {
    /// The number; zero is never used, so that zero in a conntrack entry says "no backend".
    pub id: u32,
}

abi!(BackendKey, size 4, align 4, { id @ 0 });

/// An endpoint that answers for services.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Backend {
    /// The endpoint's address.
    pub address: Address,
    /// The endpoint's port, in the host's order.
    pub port: u16,
    /// [`crate::PROTOCOL_TCP`] or [`crate::PROTOCOL_UDP`].
    pub protocol: u8,
    /// [`BACKEND_LOCAL`] or zero.
    pub flags: u8,
}

/// Flag of [`Backend`]: on this node, so that a packet from outside keeps its source address.
pub const BACKEND_LOCAL: u8 = 1;

abi!(Backend, size 8, align 2, { address @ 0, port @ 4, protocol @ 6, flags @ 7 });

/// A client of a pool with session affinity.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct AffinityKey {
    /// The client: its address in the low four bytes, or the cookie of its network namespace.
    pub client: u64,
    /// The pool's number.
    pub pool: u32,
    /// [`CLIENT_ADDRESS`] or [`CLIENT_NAMESPACE`].
    pub client_kind: u32,
}

/// [`AffinityKey`] kind: the client is an address.
pub const CLIENT_ADDRESS: u32 = 0;
/// [`AffinityKey`] kind: the client is a network namespace, at the socket hooks.
pub const CLIENT_NAMESPACE: u32 = 1;

abi!(AffinityKey, size 16, align 8, { client @ 0, pool @ 8, client_kind @ 12 });

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

/// A socket and the backend it talks to.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SocketKey {
    /// The kernel's cookie of the socket.
    pub cookie: u64,
    /// The backend's address.
    pub address: Address,
    /// The backend's port, in the host's order.
    pub port: u16,
    /// Always zero.
    pub _pad: u16,
}

abi!(SocketKey, size 16, align 8, { cookie @ 0, address @ 8, port @ 12, _pad @ 14 });

/// The address that the socket's owner asked for.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SocketOrigin {
    /// The service's address.
    pub address: Address,
    /// The service's port, in the host's order.
    pub port: u16,
    /// Always zero.
    pub _pad: u16,
}

abi!(SocketOrigin, size 8, align 2, { address @ 0, port @ 4, _pad @ 6 });
