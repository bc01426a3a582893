//! A table of flows' way to its new layout: of the hash that it once was, or of a table of other slots.

use std::{collections::HashSet, io, path::Path};

use orch_ebpf::{
    Address as _, Address4, Address6,
    conntrack::{Conntrack, DIRECTION_ORIGINAL, KIND_MASQUERADE, KIND_SERVICE, Tuple},
    flow_table::{HELD, Row, SECRET_ROW, SHARED, Slot, USED, slot},
};

use super::{
    btf::Type,
    convert::{Conversion, Stamp},
    layout::{ARRAY, LRU_HASH, Layout},
    transfer::Moved,
};
use crate::{
    flow_table,
    maps::{self, MapAddress},
    sys::{map::RawMap, memory::read},
};

/// The first version of the ABI with which answers share slots.
const SHARING: u32 = 7;

/// The new table, of either family.
enum New {
    V4(flow_table::Flows<Address4>),
    V6(flow_table::Flows<Address6>),
}

/// Where the tuple and the rest of a flow stand in what is read of the old map.
struct Parts {
    tuple: Conversion,
    entry: Conversion,
    /// Where entries say when they were last used, in the old layout.
    stamp: Stamp,
    /// Offsets of the tuple and of the entry in a slot; `None` where keys are tuples and values are entries.
    slots: Option<(usize, usize)>,
}

fn member<'a>(of: &'a Type, name: &str) -> Option<(&'a Type, usize)> {
    of.member(name).map(|member| (&member.of, member.offset))
}

impl Parts {
    fn of(old: &Layout, new: &Layout) -> Result<Self, String> {
        let (Some((old_key, old_value)), Some((_, new_value))) = (&old.types, &new.types) else {
            return Err("nothing says what is in it".to_owned());
        };
        let both = |value| member(value, "tuple").zip(member(value, "entry"));
        let Some(((new_tuple, _), (new_entry, _))) = both(new_value) else {
            return Err("the new one is no table of flows".to_owned());
        };
        let (old_tuple, old_entry, slots) = match (old.kind, both(old_value)) {
            (LRU_HASH, _) => (old_key, old_value, None),
            (ARRAY, Some(((tuple, tuple_at), (entry, entry_at)))) => {
                (tuple, entry, Some((tuple_at, entry_at)))
            }
            _ => return Err("it is another kind of map".to_owned()),
        };
        Ok(Self {
            tuple: Conversion::of_keys(old_tuple, new_tuple).map_err(|error| format!("tuple: {error}"))?,
            entry: Conversion::of_values(old_entry, new_entry).map_err(|error| format!("entry: {error}"))?,
            stamp: Stamp::of(old_entry).ok_or("its flows do not say when they were used")?,
            slots,
        })
    }
}

/// Whether there is a way between two layouts of the table.
///
/// # Errors
/// Why there is none, in words.
pub fn check(old: &Layout, new: &Layout) -> Result<(), String> {
    Parts::of(old, new).map(drop)
}

/// Of an old table, what says which of its slots are in use.
pub struct Rows {
    map: RawMap,
    /// Whether answers may share a slot: see [`SHARED`].
    shares: bool,
}

impl Rows {
    /// These rows, whose meaning is this version's of the ABI.
    pub fn new(map: RawMap, version: Option<u32>) -> Self {
        Self {
            map,
            shares: version.is_some_and(|version| version >= SHARING),
        }
    }

    /// The slots in use. In the first layout a row was twice as long, and began the same.
    fn used(&self, batch: usize) -> io::Result<Used> {
        let mut used = Used::default();
        self.map.for_each(batch, |key, value| {
            let (number, row) = (read::<u32>(key), read::<Row>(value));
            if let Some((number, row)) = number.zip(row).filter(|(number, _)| *number != SECRET_ROW) {
                for word in row.words.into_iter().filter(|word| word & (USED | HELD) == USED) {
                    if self.shares && word & SHARED != 0 {
                        used.answers.insert(slot(number, word));
                    } else {
                        used.flows.insert(slot(number, word & !SHARED));
                    }
                }
            }
            Ok(())
        })?;
        Ok(used)
    }
}

/// The slots of an old table that are in use.
#[derive(Default)]
struct Used {
    flows: HashSet<u32>,
    /// Those that are their flows' answers' as well.
    answers: HashSet<u32>,
}

/// How flows get into a new table.
pub struct Flows {
    parts: Parts,
    rows: Option<Rows>,
    new: New,
}

impl Flows {
    /// A way into the table of the family of this suffix under `folder`.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub fn new(
        layouts: (&Layout, &Layout),
        rows: Option<Rows>,
        folder: &Path,
        suffix: &str,
    ) -> Result<Self, String> {
        let parts = Parts::of(layouts.0, layouts.1)?;
        if parts.slots.is_some() != rows.is_some() {
            return Err("nothing says which of its slots are in use".to_owned());
        }
        let new = match suffix {
            Address4::SUFFIX => New::V4(opened(folder)?),
            _ => New::V6(opened(folder)?),
        };
        Ok(Self { parts, rows, new })
    }

    /// Copies every flow that was used since `since`, in nanoseconds of `CLOCK_MONOTONIC`. One that is there already stays
    /// unless the old one was used later.
    ///
    /// # Errors
    /// The kernel's.
    pub fn copy(&self, old: &RawMap, since: u64, batch: usize) -> io::Result<Moved> {
        match &self.new {
            New::V4(flows) => self.copy_to(flows, old, since, batch),
            New::V6(flows) => self.copy_to(flows, old, since, batch),
        }
    }

    fn copy_to<A: MapAddress>(
        &self,
        new: &flow_table::Flows<A>,
        old: &RawMap,
        since: u64,
        batch: usize,
    ) -> io::Result<Moved> {
        let used = self.rows.as_ref().map(|rows| rows.used(batch)).transpose()?;
        let mut moved = Moved::default();
        old.for_each(batch, |key, value| {
            let mut answers = false;
            let (tuple, entry) = match (self.parts.slots, &used) {
                (Some((tuple, entry)), Some(used)) => {
                    let Some(slot) = read::<u32>(key).filter(|slot| used.flows.contains(slot)) else {
                        return Ok(());
                    };
                    answers = used.answers.contains(&slot);
                    let part = |offset| value.get(offset..).unwrap_or_default();
                    (part(tuple), part(entry))
                }
                _ => (key, value),
            };
            if self.parts.stamp.read(entry) < since {
                return Ok(());
            }
            let converted = self.parts.tuple.apply(tuple).zip(self.parts.entry.apply(entry));
            let flow = converted
                .and_then(|(tuple, entry)| read::<Tuple<A>>(&tuple).zip(read::<Conntrack<A>>(&entry)));
            let Some((tuple, entry)) = flow else {
                moved.lost += 1;
                return Ok(());
            };
            let slot = Slot { tuple, entry };
            put(new, &slot, &mut moved)?;
            // What shares a slot may have outlived whom it answered.
            let translates = [KIND_SERVICE, KIND_MASQUERADE].contains(&entry.kind);
            if answers && translates && entry.direction == DIRECTION_ORIGINAL {
                put(new, &slot.answers(), &mut moved)?;
            }
            Ok(())
        })?;
        Ok(moved)
    }
}

/// Takes down a flow in the new table, unless one is there that was used as lately.
fn put<A: MapAddress>(
    new: &flow_table::Flows<A>,
    Slot { tuple, entry }: &Slot<A>,
    moved: &mut Moved,
) -> io::Result<()> {
    let known = new.get(tuple)?;
    if known.is_some_and(|known| known.last_seen >= entry.last_seen) {
        return Ok(());
    }
    if new.insert(tuple, entry)? {
        moved.written += 1;
    } else {
        moved.lost += 1;
    }
    Ok(())
}

/// The table's memory, mapped once for all the copying.
fn opened<A: MapAddress>(folder: &Path) -> Result<flow_table::Flows<A>, String> {
    let table = maps::pinned_flows(folder).map_err(|error| error.to_string())?;
    table.open().map_err(|error| error.to_string())
}
