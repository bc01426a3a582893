//! The loaded programs and maps themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::fd::{AsFd, AsRawFd as _},
    path::Path,
};

use aya::programs::{
    ProgramInfo,
    links::{FdLink, PinnedLink},
};
use serde_json::json;

use super::{Cell, Pins, Table, table::row};
use crate::{DataplaneError, links, maps as pinned};

/// The programs that use maps pinned under `bpf_root`: a crashed agent's too, for as long as they are attached.
///
/// # Errors
/// When a map is not there.
fn loaded(pins: &Pins<'_>) -> Result<Vec<ProgramInfo>, DataplaneError> {
    let ids = pinned::names()
        .map(|name| Ok(pins.info(&name)?.id()))
        .collect::<Result<BTreeSet<u32>, DataplaneError>>()?;
    let ours = |info: &ProgramInfo| matches!(info.map_ids(), Ok(Some(used)) if used.iter().any(|id| ids.contains(id)));
    // A program that is unloaded while the list is read is not ours any more.
    let mut all: Vec<ProgramInfo> = aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .filter(ours)
        .collect();
    all.sort_by_key(|info| (info.name().to_vec(), info.id()));
    Ok(all)
}

pub(super) fn programs(pins: &Pins<'_>) -> Result<Table, DataplaneError> {
    let attached = attachments(pins.0)?;
    let columns = [
        "name",
        "id",
        "attached",
        "instructions",
        "verified",
        "jitted_bytes",
        "runs",
        "run_nanoseconds",
    ];
    let mut table = Table::new(&columns);
    for info in loaded(pins)? {
        let places = attached.get(&info.id()).cloned().unwrap_or_default();
        table.push(vec![
            json!(String::from_utf8_lossy(info.name())).into(),
            json!(info.id()).into(),
            shortened(&places),
            // Eight bytes each (linux/bpf.h: struct bpf_insn).
            json!(info.size_translated().map(|bytes| bytes / 8)).into(),
            json!(info.verified_instruction_count()).into(),
            json!(info.size_jitted()).into(),
            json!(info.run_count()).into(),
            json!(u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX)).into(),
        ]);
    }
    Ok(table)
}

/// A node has hundreds of pods: a person sees how many.
fn shortened(places: &BTreeSet<String>) -> Cell {
    const SHOWN: usize = 3;
    let mut text = places.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(",");
    if places.len() > SHOWN {
        text.push_str(&format!(" and {} more", places.len() - SHOWN));
    }
    if text.is_empty() {
        text = "<no link>".to_owned();
    }
    Cell::shown(json!(places), text)
}

/// Names of the pinned links by program.
fn attachments(bpf_root: &Path) -> Result<BTreeMap<u32, BTreeSet<String>>, DataplaneError> {
    let folder = links::folder(bpf_root);
    let mut attached: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    let failed = |source| DataplaneError::File {
        action: "list",
        path: folder.clone(),
        source,
    };
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // A pin that goes meanwhile is not attached.
        let Ok(link) = PinnedLink::from_pin(entry.path()) else {
            continue;
        };
        if let Ok(info) = FdLink::from(link).info() {
            let name = entry.file_name().to_string_lossy().into_owned();
            attached.entry(info.program_id()).or_default().insert(name);
        }
    }
    Ok(attached)
}

pub(super) fn maps(pins: &Pins<'_>) -> Result<Table, DataplaneError> {
    let mut table = Table::new(&[
        "name",
        "id",
        "type",
        "key_bytes",
        "value_bytes",
        "capacity",
        "memory_bytes",
    ]);
    let mut names: Vec<String> = pinned::names().collect();
    names.sort();
    for name in names {
        let info = pins.info(&name)?;
        let kind = info
            .map_type()
            .map_or_else(|_| "unknown".to_owned(), |kind| format!("{kind:?}"));
        table.push(row![
            name,
            info.id(),
            kind,
            info.key_size(),
            info.value_size(),
            info.max_entries(),
            memory(pins.data(&name)?.fd()),
        ]);
    }
    Ok(table)
}

/// What the kernel has allocated for the map, in bytes: the field `memlock` of its fdinfo. Exact since Linux 6.4, the
/// map's full capacity before.
pub fn memory(map: &impl AsFd) -> Option<u64> {
    let path = format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd());
    let text = fs::read_to_string(path).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
}
