//! From a service's address to one of its backends.

use aya_ebpf::{btf_maps::lpm_trie::Key, helpers::bpf_get_prandom_u32};

use super::{
    conntrack::now,
    family::{Family, node_kind, word},
    maps,
};
use crate::{
    config::NODE_LOCAL,
    conntrack::Tuple,
    event::DropReason,
    service::{
        Affinity, AffinityKey, Backend, BackendKey, CHUNK_SLOTS, CLIENT_ADDRESS, CLIENT_NAMESPACE, ChunkKey,
        SERVICE_LOCAL, SERVICE_SOURCES, Service, ServiceKey, SourceKey,
    },
};

/// A chosen backend.
#[derive(Clone, Copy)]
pub struct Choice<A: 'static> {
    /// Its number.
    pub id: u32,
    /// Where it is. The agent never changes a backend in place, and a removed one's memory outlives the run.
    pub backend: &'static Backend<A>,
}

/// Who asks, for session affinity.
#[derive(Clone, Copy)]
pub enum Client<A> {
    /// A client known by its address.
    Address(A),
    /// A client known by the cookie of its network namespace.
    Namespace(u64),
}

impl<A: Family> Client<A> {
    #[inline(always)]
    fn key(&self, pool: u32) -> AffinityKey {
        match *self {
            Self::Address(address) => AffinityKey {
                client: address.wide(),
                pool,
                client_kind: CLIENT_ADDRESS,
            },
            Self::Namespace(cookie) => {
                let [a, b, c, d, e, f, g, h] = cookie.to_ne_bytes();
                AffinityKey {
                    client: [a, b, c, d, e, f, g, h, 0, 0, 0, 0, 0, 0, 0, 0],
                    pool,
                    client_kind: CLIENT_NAMESPACE,
                }
            }
        }
    }
}

/// The service on this address and port, NodePorts included.
#[inline(always)]
pub fn find<A: Family>(address: A, port: u16, protocol: u8, scope: u8) -> Option<&'static Service> {
    let key = ServiceKey {
        address,
        port,
        protocol,
        scope,
    };
    // SAFETY: the agent replaces whole values, a replaced one's memory outlives the run, and a pool's slots its count.
    if let Some(service) = unsafe { A::services().get(key) } {
        return Some(service);
    }
    if node_kind(address) != NODE_LOCAL {
        return None;
    }
    find_port::<A>(port, protocol, scope)
}

/// The service on this port of every address of the node.
#[inline(always)]
pub fn find_port<A: Family>(port: u16, protocol: u8, scope: u8) -> Option<&'static Service> {
    let key = ServiceKey {
        address: A::ANY,
        port,
        protocol,
        scope,
    };
    // SAFETY: as in `find`.
    unsafe { A::services().get(key) }
}

/// Whether the source may use the service (`spec.loadBalancerSourceRanges`).
///
/// # Errors
/// [`DropReason::SourceRange`] when it may not.
#[inline(always)]
pub fn admit<A: Family>(service: &Service, source: A) -> Result<(), DropReason> {
    if service.flags & SERVICE_SOURCES == 0 {
        return Ok(());
    }
    let key = Key::new(
        32 + A::BITS,
        SourceKey {
            pool: service.pool,
            address: source,
        },
    );
    match A::sources().get(&key) {
        Some(_) => Ok(()),
        None => Err(DropReason::SourceRange),
    }
}

/// Chooses a backend: the one the client keeps, or the one of slot `number` modulo the slots in use.
#[inline(never)]
pub fn choose<A: Family>(
    service: &Service,
    client: &Client<A>,
    number: u32,
) -> Result<Choice<A>, DropReason> {
    if service.count == 0 {
        return Err(if service.flags & SERVICE_LOCAL != 0 {
            DropReason::NoLocalBackend
        } else {
            DropReason::NoBackend
        });
    }
    if service.affinity_seconds == 0 {
        return backend_in(service, number % service.count);
    }
    let key = client.key(service.pool);
    let now = now();
    // SAFETY: two integers, copied; a stale backend number is checked below.
    if let Some(kept) = unsafe { maps::ORCH_AFFINITY.get(key) } {
        let age = now.wrapping_sub(kept.last_used);
        let id = kept.backend;
        if age < u64::from(service.affinity_seconds) * 1_000_000_000
            && let Some(choice) = backend(id)
        {
            remember(key, id, now);
            return Ok(choice);
        }
    }
    let choice = backend_in(service, number % service.count)?;
    remember(key, choice.id, now);
    Ok(choice)
}

/// A number for [`choose`] that spreads flows evenly over the backends.
#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: the helper takes no argument.
    unsafe { bpf_get_prandom_u32() }
}

/// A number for [`choose`] that is the same on every node for the same flow: each word is multiplied in, which carries
/// every bit upwards, and folded back.
#[inline(always)]
pub fn hash<A: Family>(tuple: &Tuple<A>) -> u32 {
    const PRIME: u64 = 0x9e37_79b9_7f4a_7c15;
    let ports = u64::from(tuple.source_port) << 32
        | u64::from(tuple.destination_port) << 16
        | u64::from(tuple.protocol);
    let mut hash = ports ^ PRIME;
    for index in 0..A::BITS as usize / 32 {
        let [source, destination] = [&tuple.source, &tuple.destination].map(|address| word(address, index));
        let pair = u64::from(u32::from_le(source)) << 32 | u64::from(u32::from_le(destination));
        hash = (hash ^ pair).wrapping_mul(PRIME);
        hash ^= hash >> 29;
    }
    hash = hash.wrapping_mul(PRIME);
    (hash >> 32) as u32
}

#[inline(always)]
fn remember(key: AffinityKey, backend: u32, now: u64) {
    // A refusal costs the client its affinity, not its connection.
    let _ = maps::ORCH_AFFINITY.insert(
        key,
        Affinity {
            last_used: now,
            backend,
            _pad: 0,
        },
        0,
    );
}

#[inline(always)]
fn backend_in<A: Family>(service: &Service, slot: u32) -> Result<Choice<A>, DropReason> {
    let key = ChunkKey {
        pool: service.pool,
        chunk: slot / CHUNK_SLOTS as u32,
    };
    // SAFETY: one integer of it is copied; the agent replaces whole chunks.
    let chunk = unsafe { maps::ORCH_SLOTS.get(key) };
    chunk
        .and_then(|chunk| backend(chunk.backends[slot as usize % CHUNK_SLOTS]))
        .ok_or(DropReason::BrokenService)
}

/// The backend with this number.
#[inline(always)]
pub fn backend<A: Family>(id: u32) -> Option<Choice<A>> {
    // SAFETY: see `Choice`.
    let backend = unsafe { A::backends().get(BackendKey { id }) }?;
    Some(Choice { id, backend })
}
