//! What a plan is made from and of.

use orch_ebpf::service::{Backend, Chunk, ChunkKey, Service, ServiceKey, SourceKey};

/// An address and port that a service answers on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frontend<A> {
    /// Where clients knock.
    pub key: ServiceKey<A>,
    /// Seconds of session affinity, zero for none.
    pub affinity_seconds: u32,
    /// `SERVICE_SOURCES` and its siblings.
    pub flags: u32,
    /// Index into [`Desired::pools`].
    pub pool: usize,
}

/// How a pool's backends stand in its slots, if they are too many to stand in the services' own entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// One slot each, for clients in the cluster.
    Each,
    /// As a Maglev table, for clients outside.
    Table,
}

/// A set of backends that frontends choose from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool<A> {
    /// The backends, each address and port once.
    pub backends: Vec<Backend<A>>,
    /// Whether they are on their way out and taken because no other is left.
    pub fallback: bool,
    /// How they stand in the slots.
    pub spread: Spread,
    /// Networks, as prefix length and first address, that the frontends with `SERVICE_SOURCES` are for.
    pub sources: Vec<(u32, A)>,
}

/// What one service should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired<A> {
    /// Every address and port.
    pub frontends: Vec<Frontend<A>>,
    /// The pools they name.
    pub pools: Vec<Pool<A>>,
}

impl<A> Default for Desired<A> {
    fn default() -> Self {
        Self {
            frontends: Vec::new(),
            pools: Vec::new(),
        }
    }
}

/// One change of one map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MapOp<A> {
    /// Write a backend that no slot names yet.
    PutBackend(u32, Backend<A>),
    /// Write a chunk.
    PutChunk(ChunkKey, Chunk),
    /// Write a source range, by its prefix length without the pool.
    PutSource(u32, SourceKey<A>),
    /// Write a service.
    PutService(ServiceKey<A>, Box<Service<A>>),
    /// Remove a service.
    RemoveService(ServiceKey<A>),
    /// Remove a source range that no service needs any more.
    RemoveSource(u32, SourceKey<A>),
    /// Remove a chunk that no service counts any more.
    RemoveChunk(ChunkKey),
    /// Remove a backend that no slot names any more.
    RemoveBackend(u32, Backend<A>),
}

/// Something remembered about flows or clients that is no longer true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stale<A> {
    /// Nobody answers for UDP on this address and port any more.
    Frontend(ServiceKey<A>),
    /// A backend has left a pool.
    Member {
        /// The pool.
        pool: u32,
        /// The backend's number.
        backend: u32,
        /// Whether clients of the pool keep their backends.
        affinity: bool,
        /// The UDP addresses and ports that lead to the pool.
        udp: Vec<ServiceKey<A>>,
    },
}

/// What an update asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update<A> {
    /// Changes to be made at once, in this order.
    pub now: Vec<MapOp<A>>,
    /// Changes to be made after those, best a moment later, in this order.
    pub later: Vec<MapOp<A>>,
    /// What to forget once the first part is done.
    pub stale: Vec<Stale<A>>,
    /// Frontends that other services own.
    pub refused: Vec<ServiceKey<A>>,
}

/// What the maps hold when an agent starts.
#[derive(Debug)]
pub struct Found<A> {
    /// Services.
    pub services: Vec<(ServiceKey<A>, Service<A>)>,
    /// Chunks of slots, those of the other family among them.
    pub chunks: Vec<(ChunkKey, Chunk)>,
    /// Backends.
    pub backends: Vec<(u32, Backend<A>)>,
    /// Source ranges, with their prefix lengths without the pool.
    pub sources: Vec<(u32, SourceKey<A>)>,
}
