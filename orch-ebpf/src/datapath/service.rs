//! From a service's address to one of its backends.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{
    btf_maps::lpm_trie::Key,
    helpers::{bpf_get_prandom_u32, generated::bpf_loop},
};

use super::{
    conntrack::now,
    family::{Family, node_kind, word},
    maps, words,
};
use crate::{
    config::NODE_LOCAL,
    conntrack::Tuple,
    event::DropReason,
    service::{
        Affinity, AffinityKey, Backend, BackendKey, CHUNK_SLOTS, CLIENT_ADDRESS, CLIENT_NAMESPACE, ChunkKey,
        MEMBERS_MAX, Member, SCOPE_EXTERNAL, SERVICE_LOCAL, SERVICE_MEMBERS, SERVICE_SOURCES, Service,
        ServiceKey, SourceKey,
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
pub fn find<A: Family>(address: A, port: u16, protocol: u8, scope: u8) -> Option<&'static Service<A>> {
    find_where(address, port, protocol, scope, |kind| kind == NODE_LOCAL)
}

/// The service that a packet from outside asked for, on this node or on another, whose NodePorts are the same.
#[inline(always)]
pub fn find_anywhere<A: Family>(address: A, port: u16, protocol: u8) -> Option<&'static Service<A>> {
    find_where(address, port, protocol, SCOPE_EXTERNAL, |kind| kind != 0)
}

#[inline(always)]
fn find_where<A: Family>(
    address: A,
    port: u16,
    protocol: u8,
    scope: u8,
    has_node_ports: impl Fn(u32) -> bool,
) -> Option<&'static Service<A>> {
    let mut key = ServiceKey {
        address,
        port,
        protocol,
        scope,
    };
    key.set_port(port, protocol, scope);
    // SAFETY: the agent replaces whole values, a replaced one's memory outlives the run, and a pool's slots its count.
    if let Some(service) = unsafe { A::services().get(&key) } {
        return Some(service);
    }
    if !has_node_ports(node_kind(address)) {
        return None;
    }
    find_port::<A>(port, protocol, scope)
}

/// The service on this port of every address of the node.
#[inline(always)]
pub fn find_port<A: Family>(port: u16, protocol: u8, scope: u8) -> Option<&'static Service<A>> {
    let mut key = MaybeUninit::<ServiceKey<A>>::uninit();
    // SAFETY: integers and an address.
    let key = unsafe { words::zeroed(&mut key) };
    key.set_port(port, protocol, scope);
    // SAFETY: as in `find`.
    unsafe { A::services().get(&*key) }
}

/// Whether the source may use the service (`spec.loadBalancerSourceRanges`).
///
/// # Errors
/// [`DropReason::SourceRange`] when it may not.
#[inline(always)]
pub fn admit<A: Family>(service: &Service<A>, source: A) -> Result<(), DropReason> {
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

/// Chooses a backend: the one the client keeps, or the member that ranks `number` highest, or the one of slot `number`
/// modulo the slots in use.
#[inline(never)]
pub fn choose<A: Family>(
    service: &Service<A>,
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
        return backend_in(service, number);
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
    let choice = backend_in(service, number)?;
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
fn backend_in<A: Family>(service: &Service<A>, number: u32) -> Result<Choice<A>, DropReason> {
    let choice = if service.flags & SERVICE_MEMBERS != 0 {
        member(service, number, |_| true)
    } else {
        backend_of(service.pool, number % service.count)
    };
    choice.ok_or(DropReason::BrokenService)
}

/// Of the members that `fits` lets pass, the one that ranks `number` highest.
#[inline(always)]
fn member<A: Family>(
    service: &Service<A>,
    number: u32,
    fits: impl Fn(&Backend<A>) -> bool,
) -> Option<Choice<A>> {
    const PLACE: u64 = 15;
    const { assert!(MEMBERS_MAX < PLACE as usize) };
    // A rank ends in the member's place, as nobody would know who does not know the number: a verifier that did would
    // walk through all that follows once for each member.
    let hidden = u64::from(number);
    let mut best = hidden.wrapping_add(PLACE) & PLACE;
    for (index, Member { backend, .. }) in service.members.iter().enumerate() {
        if index as u32 >= service.count {
            break;
        }
        if fits(backend) {
            // Higher than nobody's, and low enough for a sign.
            let rank = backend.rank(number) >> 2 | 1 << 62;
            best = greater(best, rank & !PLACE | hidden.wrapping_add(index as u64) & PLACE);
        }
    }
    let place = best.wrapping_sub(hidden) & PLACE;
    let Member { backend, id } = service.members.get(place as usize)?;
    // SAFETY: see `Choice`: the entry that holds it is not changed in place, and outlives the run.
    let backend = unsafe { &*(&raw const *backend) };
    Some(Choice { id: *id, backend })
}

/// The greater of two numbers below 2⁶³, without a branch: which of two members has the higher rank is not to be guessed, and
/// to guess wrong costs as much as to rank another.
#[inline(always)]
fn greater(one: u64, other: u64) -> u64 {
    let difference = one.wrapping_sub(other);
    let mut sign = difference;
    // SAFETY: a shift. A compiler that knew it would make a branch of what follows.
    unsafe {
        core::arch::asm!("{0} s>>= 63", inout(reg) sign, options(pure, nomem, nostack));
    }
    one.wrapping_sub(difference & sign)
}

/// The backend in a slot of a pool.
#[inline(always)]
fn backend_of<A: Family>(pool: u32, slot: u32) -> Option<Choice<A>> {
    let key = ChunkKey {
        pool,
        chunk: slot / CHUNK_SLOTS as u32,
    };
    // SAFETY: one integer of it is copied; the agent replaces whole chunks.
    let chunk = unsafe { maps::ORCH_SLOTS.get(key) }?;
    backend(chunk.backends[slot as usize % CHUNK_SLOTS])
}

/// A walk through a pool's slots.
#[repr(C)]
struct Walk<A> {
    /// The backend's address that is looked for.
    address: A,
    pool: u32,
    count: u32,
    /// The next slot.
    slot: u32,
    /// Number of the backend, or zero.
    found: u32,
}

/// How many slots are looked through at most. Every pool has at least 25 slots for a backend, so one that is in it is
/// met after as many slots, on average, as there are backends.
const MOST_SLOTS: u32 = 4096;

/// The backend of a service at an address, from the slot onward that `number` chooses.
#[inline(never)]
pub fn at_address<A: Family>(service: &Service<A>, address: &A, number: u32) -> Option<Choice<A>> {
    if service.count == 0 {
        return None;
    }
    if service.flags & SERVICE_MEMBERS != 0 {
        return member(service, number, |backend| backend.address.same(*address));
    }
    let mut walk = Walk {
        address: *address,
        pool: service.pool,
        count: service.count,
        slot: number % service.count,
        found: 0,
    };
    let slots = if service.count < MOST_SLOTS {
        service.count
    } else {
        MOST_SLOTS
    };
    let step: extern "C" fn(u32, *mut Walk<A>) -> u64 = step::<A>;
    // SAFETY: the function has the signature that the kernel calls, and the walk is on the stack for as long.
    unsafe { bpf_loop(slots, step as *mut c_void, (&raw mut walk).cast(), 0) };
    backend(walk.found)
}

/// Looks into one slot; 1 ends the walk.
extern "C" fn step<A: Family>(_: u32, walk: *mut Walk<A>) -> u64 {
    // SAFETY: the kernel hands on what `at_address` gave it.
    let walk = unsafe { &mut *walk };
    if let Some(choice) = backend_of::<A>(walk.pool, walk.slot)
        && choice.backend.address.same(walk.address)
    {
        walk.found = choice.id;
        return 1;
    }
    walk.slot += 1;
    if walk.slot >= walk.count {
        walk.slot = 0;
    }
    0
}

/// The backend with this number.
#[inline(always)]
pub fn backend<A: Family>(id: u32) -> Option<Choice<A>> {
    // SAFETY: see `Choice`.
    let backend = unsafe { A::backends().get(BackendKey { id }) }?;
    Some(Choice { id, backend })
}
