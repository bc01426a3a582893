//! What a map looks like: the pinned ones', as the kernel tells, and those of the object that is to be loaded.

use std::{collections::HashMap, io};

use aya::EbpfError;
use aya_obj::{Map, Object};

use super::btf::{Btf, Type};
use crate::{DataplaneError, sys::map::RawMap};

/// `BPF_MAP_TYPE_HASH`.
pub const HASH: u32 = 1;
/// `BPF_MAP_TYPE_ARRAY`.
pub const ARRAY: u32 = 2;
/// `BPF_MAP_TYPE_PERCPU_ARRAY`.
pub const PER_CPU_ARRAY: u32 = 6;
/// `BPF_MAP_TYPE_LRU_HASH`.
pub const LRU_HASH: u32 = 9;
/// `BPF_MAP_TYPE_LPM_TRIE`.
pub const LPM_TRIE: u32 = 11;
/// `BPF_MAP_TYPE_RINGBUF`.
pub const RING_BUFFER: u32 = 27;

/// A map's layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// `BPF_MAP_TYPE_*`.
    pub kind: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Capacity.
    pub max_entries: u32,
    /// `BPF_F_*`.
    pub flags: u32,
    /// Types of the key and the value, where BTF says them.
    pub types: Option<(Type, Type)>,
}

impl Layout {
    /// The layout of a map in the kernel.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of_map(map: &RawMap) -> io::Result<Self> {
        let info = map.info();
        let types = match map.btf()? {
            // What cannot be read is as good as not there.
            Some(bytes) => Btf::parse(&bytes)
                .and_then(|btf| Ok((btf.layout(info.key_type)?, btf.layout(info.value_type)?)))
                .ok(),
            None => None,
        };
        Ok(Self {
            kind: info.kind,
            key_size: info.key_size,
            value_size: info.value_size,
            max_entries: info.max_entries,
            flags: info.flags,
            types: types.filter(|(key, value)| {
                (key.size(), value.size()) == (info.key_size as usize, info.value_size as usize)
            }),
        })
    }

    /// Whether programs for one can work with the other: by the types where both have them, else by the sizes.
    pub fn fits(&self, other: &Self) -> bool {
        let sizes = |layout: &Self| {
            (
                layout.kind,
                layout.key_size,
                layout.value_size,
                layout.max_entries,
                layout.flags,
            )
        };
        sizes(self) == sizes(other)
            && match (&self.types, &other.types) {
                (Some(ours), Some(theirs)) => ours == theirs,
                _ => true,
            }
    }
}

/// The layouts of the object's maps, by name.
///
/// # Errors
/// When the object cannot be read.
pub fn of_object(bytes: &[u8]) -> Result<HashMap<String, Layout>, DataplaneError> {
    let object = Object::parse(bytes).map_err(|error| Box::new(EbpfError::from(error)))?;
    let failed = |source| DataplaneError::Syscall {
        call: "read the eBPF object's types".to_owned(),
        source,
    };
    let raw = object.btf.as_ref().map(aya_obj::btf::Btf::to_bytes);
    let btf = raw.as_deref().map(Btf::parse).transpose().map_err(failed)?;
    let layout = |map: &Map| {
        let types = match (map, &btf) {
            // The kernel keeps no types of a ring buffer.
            (Map::Btf(map), Some(btf)) => btf
                .layout(map.def.btf_key_type_id)
                .and_then(|key| Ok((key, btf.layout(map.def.btf_value_type_id)?)))
                .ok(),
            _ => None,
        };
        Layout {
            kind: map.map_type(),
            key_size: map.key_size(),
            value_size: map.value_size(),
            max_entries: map.max_entries(),
            flags: map.map_flags(),
            types: types.filter(|_| map.map_type() != RING_BUFFER),
        }
    };
    Ok(object
        .maps
        .iter()
        .map(|(name, map)| (name.clone(), layout(map)))
        .collect())
}
