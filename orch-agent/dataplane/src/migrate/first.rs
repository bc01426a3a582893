//! The steps from the first ABI that names and members do not say: its maps were of IPv4 alone, a slot had an entry of
//! its own, and a client of session affinity was one number.

use std::{collections::BTreeMap, io};

use orch_ebpf::{
    Address as _, Address4, Address6,
    service::{CHUNK_SLOTS, CLIENT_ADDRESS},
};

use super::{btf::Type, layout::Layout};
use crate::sys::map::{RawMap, Update};

/// The name that a map had in the first ABI, if another.
pub fn former_name(name: &str) -> Option<&str> {
    name.strip_suffix(Address4::SUFFIX)
}

/// A number of four bytes out of a key or value.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn has(of: &Type, names: &[&str]) -> bool {
    names.iter().all(|name| of.member(name).is_some())
}

/// Whether the map held slots, one each, and is to hold chunks of them.
pub fn is_slots(old: &Layout, new: &Layout) -> bool {
    let (Some((key, value)), Some((new_key, new_value))) = (&old.types, &new.types) else {
        return false;
    };
    (old.key_size, old.value_size) == (8, 4)
        && has(key, &["pool", "slot"])
        && has(value, &["backend"])
        && (new.key_size, new.value_size as usize) == (8, 4 * CHUNK_SLOTS)
        && has(new_key, &["pool", "chunk"])
        && has(new_value, &["backends"])
}

/// Gathers slots to chunks; how many chunks were written. A chunk that is there already stays.
///
/// # Errors
/// The kernel's.
pub fn copy_slots(old: &RawMap, new: &RawMap, batch: usize) -> io::Result<usize> {
    let mut chunks: BTreeMap<(u32, usize), [u32; CHUNK_SLOTS]> = BTreeMap::new();
    old.for_each(batch, |key, value| {
        if let (Some(pool), Some(slot), Some(backend)) = (word(key, 0), word(key, 4), word(value, 0)) {
            let slot = slot as usize;
            let chunk = chunks.entry((pool, slot / CHUNK_SLOTS)).or_default();
            if let Some(place) = chunk.get_mut(slot % CHUNK_SLOTS) {
                *place = backend;
            }
        }
        Ok(())
    })?;
    let mut written = 0;
    for ((pool, chunk), backends) in chunks {
        let number = u32::try_from(chunk).map_err(io::Error::other)?;
        let key = [pool, number].map(u32::to_ne_bytes).concat();
        written += usize::from(new.update(&key, &backends.map(u32::to_ne_bytes).concat(), Update::Absent)?);
    }
    Ok(written)
}

/// Whether the keys were clients of session affinity as one number, and are to be addresses of either family.
pub fn is_clients(old: &Layout, new: &Layout) -> bool {
    const MEMBERS: [&str; 3] = ["client", "pool", "client_kind"];
    let (Some((old, _)), Some((new, _))) = (&old.types, &new.types) else {
        return false;
    };
    let client = |key: &Type| key.member("client").map_or(0, |client| client.of.size());
    has(old, &MEMBERS)
        && has(new, &MEMBERS)
        && (old.size(), client(old)) == (16, 8)
        && (new.size(), client(new)) == (24, size_of::<Address6>())
}

/// The key of a client of session affinity: an address stood in the low four bytes, in wire order.
pub fn client(old: &[u8]) -> Option<Vec<u8>> {
    let (pool, kind) = (word(old, 8)?, word(old, 12)?);
    let number = old.first_chunk::<8>()?;
    let client = match kind {
        CLIENT_ADDRESS => number.first_chunk::<4>()?.wide(),
        _ => {
            let mut client = Address6::default();
            *client.first_chunk_mut()? = *number;
            client
        }
    };
    let mut key = client.to_vec();
    key.extend(pool.to_ne_bytes());
    key.extend(kind.to_ne_bytes());
    Some(key)
}
