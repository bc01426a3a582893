//! From a service's address to one of its backends.

use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns};

use super::maps;
use crate::{
    Address,
    config::NODE_LOCAL,
    event::DropReason,
    service::{ANY_ADDRESS, Affinity, AffinityKey, Backend, BackendKey, Service, ServiceKey, SlotKey},
};

/// A chosen backend.
#[derive(Clone, Copy)]
pub struct Choice {
    /// Its number.
    pub id: u32,
    /// Where it is.
    pub backend: Backend,
}

/// Who asks, for session affinity.
#[derive(Clone, Copy)]
pub struct Client {
    /// An address or the cookie of a network namespace.
    pub id: u64,
    /// Which of the two.
    pub kind: u32,
}

/// The service on this address and port, NodePorts included.
#[inline(always)]
pub fn find(address: Address, port: u16, protocol: u8, scope: u8) -> Option<Service> {
    let key = ServiceKey {
        address,
        port,
        protocol,
        scope,
    };
    // SAFETY: the agent replaces whole values; this copies three integers, and a pool's slots outlive its count.
    if let Some(service) = unsafe { maps::ORCH_SERVICES.get(key) } {
        return Some(*service);
    }
    if super::node_kind(address) != NODE_LOCAL {
        return None;
    }
    // SAFETY: as above.
    unsafe {
        maps::ORCH_SERVICES.get(ServiceKey {
            address: ANY_ADDRESS,
            ..key
        })
    }
    .copied()
}

/// Chooses a backend: the one the client keeps, or slot `number` modulo the slots in use.
#[inline(always)]
pub fn choose(service: &Service, client: Client, number: u32) -> Result<Choice, DropReason> {
    if service.count == 0 {
        return Err(DropReason::NoBackend);
    }
    if service.affinity_seconds == 0 {
        return backend_in(service, number % service.count);
    }
    let key = AffinityKey {
        client: client.id,
        pool: service.pool,
        client_kind: client.kind,
    };
    // SAFETY: the helper takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
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

/// A number for [`choose`] that spreads flows evenly.
#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: the helper takes no argument.
    unsafe { bpf_get_prandom_u32() }
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
fn backend_in(service: &Service, slot: u32) -> Result<Choice, DropReason> {
    // SAFETY: one integer, copied at once.
    let slot = unsafe {
        maps::ORCH_SLOTS.get(SlotKey {
            pool: service.pool,
            slot,
        })
    };
    slot.and_then(|slot| backend(slot.backend))
        .ok_or(DropReason::BrokenService)
}

#[inline(always)]
fn backend(id: u32) -> Option<Choice> {
    // SAFETY: copied at once; the agent never changes a backend in place, and removes it after its slots.
    let backend = unsafe { maps::ORCH_BACKENDS.get(BackendKey { id }) }?;
    Some(Choice {
        id,
        backend: *backend,
    })
}
