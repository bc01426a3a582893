//! One map's way from its old layout to its new one.

use std::io;

use super::{
    btf::Type,
    convert::{Conversion, Stamp},
    first,
    flows::Flows,
    layout::{ARRAY, HASH, LPM_TRIE, LRU_HASH, Layout, PER_CPU_ARRAY},
};
use crate::sys::map::{RawMap, Update};

/// Entries that one system call reads.
const BATCH: usize = 1024;

/// How entries get from one map to another.
enum Way {
    /// Keys and values by themselves.
    Entries {
        key: Key,
        value: Conversion,
        /// Where values say when they were last used, in the old layout and in the new one.
        stamps: Option<(Stamp, Stamp)>,
    },
    /// The entries of an array, where the new one holds nothing yet.
    Array(Conversion),
    /// The first ABI's slots.
    Slots,
    /// Flows, to where the new table keeps them.
    Flows(Box<Flows>),
}

enum Key {
    Converted(Conversion),
    Client,
}

impl Key {
    fn apply(&self, old: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Converted(conversion) => conversion.apply(old),
            Self::Client => first::client(old),
        }
    }
}

/// What became of a map's entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Written to the new map.
    pub written: usize,
    /// Not written, for a number in them does not fit or the new map is full.
    pub lost: usize,
}

/// An old map and the new one in its place.
pub struct Transfer {
    old: RawMap,
    new: RawMap,
    way: Way,
}

/// The way between two layouts of a map.
///
/// # Errors
/// Why there is none, in words.
fn way(old: &Layout, new: &Layout) -> Result<Way, String> {
    let (Some((old_key, old_value)), Some((new_key, new_value))) = (&old.types, &new.types) else {
        return Err("nothing says what is in it".to_owned());
    };
    if old.kind != new.kind {
        return Err("it is another kind of map".to_owned());
    }
    if first::is_slots(old, new) {
        return Ok(Way::Slots);
    }
    let values = || Conversion::of_values(old_value, new_value).map_err(|error| format!("value: {error}"));
    match new.kind {
        HASH | LRU_HASH | LPM_TRIE => {
            let key = if new.kind == LPM_TRIE && old_key != new_key {
                // A prefix counts the bits before it.
                return Err("key: a trie's keys cannot change".to_owned());
            } else if first::is_clients(old, new) {
                Key::Client
            } else {
                let key = Conversion::of_keys(old_key, new_key);
                Key::Converted(key.map_err(|error| format!("key: {error}"))?)
            };
            Ok(Way::Entries {
                key,
                value: values()?,
                stamps: Stamp::of(old_value).zip(Stamp::of(new_value)),
            })
        }
        ARRAY => Ok(Way::Array(values()?)),
        // What an index counts has moved with the number of things to count.
        PER_CPU_ARRAY => Err("its counters count other things".to_owned()),
        _ => Err("such a map holds nothing to move".to_owned()),
    }
}

/// Whether there is a way between two layouts.
///
/// # Errors
/// Why there is none, in words.
pub fn check(old: &Layout, new: &Layout) -> Result<(), String> {
    way(old, new).map(drop)
}

impl Transfer {
    /// Takes the two maps.
    ///
    /// # Errors
    /// Why there is no way between them, in words.
    pub fn new(old: RawMap, new: RawMap, layouts: (&Layout, &Layout)) -> Result<Self, String> {
        let way = way(layouts.0, layouts.1)?;
        Ok(Self { old, new, way })
    }

    /// Takes a table of flows, old and new.
    pub fn of_flows(old: RawMap, new: RawMap, flows: Flows) -> Self {
        let way = Way::Flows(Box::new(flows));
        Self { old, new, way }
    }

    /// Whether the programs write the map, so that it changes as long as old programs run.
    pub fn is_live(&self) -> bool {
        matches!(self.way, Way::Flows(_)) || self.new.info().kind == LRU_HASH
    }

    /// Copies every entry that was used since `since`, in nanoseconds of `CLOCK_MONOTONIC`, or does not say when it was.
    /// An entry that is there already stays unless the old one was used later.
    ///
    /// # Errors
    /// The kernel's.
    pub fn copy(&self, since: u64) -> io::Result<Moved> {
        let mut moved = Moved::default();
        match &self.way {
            Way::Slots => moved.written = first::copy_slots(&self.old, &self.new, BATCH)?,
            Way::Entries { key, value, stamps } => self.old.for_each(BATCH, |old_key, old| {
                let at = stamps.map(|(stamp, _)| stamp.read(old));
                if at.is_some_and(|at| at < since) {
                    return Ok(());
                }
                let Some((key, value)) = key.apply(old_key).zip(value.apply(old)) else {
                    moved.lost += 1;
                    return Ok(());
                };
                match self.new.update(&key, &value, Update::Absent) {
                    Ok(true) => moved.written += 1,
                    Ok(false) => {
                        if let Some((at, (_, stamp))) = at.zip(*stamps)
                            && let Some(found) = self.new.get(&key)?
                            && stamp.read(&found) < at
                        {
                            moved.written += usize::from(self.new.update(&key, &value, Update::Any)?);
                        }
                    }
                    Err(error) if matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) => {
                        moved.lost += 1;
                    }
                    Err(error) => return Err(error),
                }
                Ok(())
            })?,
            Way::Flows(flows) => moved = flows.copy(&self.old, since, BATCH)?,
            Way::Array(value) => moved = self.copy_array(|old| value.apply(old))?,
        }
        Ok(moved)
    }

    fn copy_array(&self, convert: impl Fn(&[u8]) -> Option<Vec<u8>>) -> io::Result<Moved> {
        let mut moved = Moved::default();
        for index in 0..self.old.info().max_entries.min(self.new.info().max_entries) {
            let key = index.to_ne_bytes();
            let (Some(old), Some(new)) = (self.old.get(&key)?, self.new.get(&key)?) else {
                continue;
            };
            let empty = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
            if empty(&old) || !empty(&new) {
                continue;
            }
            match convert(&old) {
                Some(value) => moved.written += usize::from(self.new.update(&key, &value, Update::Any)?),
                None => moved.lost += 1,
            }
        }
        Ok(moved)
    }
}

/// Where the settings say which version of the ABI they are.
pub fn version_offset(config: &Layout) -> usize {
    let member = |value: &Type| value.member("abi_version").map(|member| member.offset);
    config
        .types
        .as_ref()
        .and_then(|(_, value)| member(value))
        .unwrap_or_default()
}
