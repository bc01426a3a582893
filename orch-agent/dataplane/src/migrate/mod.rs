//! Upgrading to an agent whose maps have another layout, under load.
//!
//! The new set of maps is prepared beside the old one: maps whose layout stays are the same maps under a second pin,
//! the others are new and get the old ones' entries, member by member of the types that BTF describes. Then the new
//! programs are loaded onto the new set. While their links are swapped one after the other, what the old programs open
//! is copied again and again. At last the two directories change places at one instant, and the old one is removed.
//!
//! An agent that dies before that instant leaves the old set in its place, and one that is [`PREPARING`] beside it; the
//! next agent goes on with that. Entries that are there already are never overwritten by older ones, so it does not
//! matter how often they are copied.

mod btf;
mod convert;
mod first;
mod flows;
mod layout;
#[cfg(test)]
mod tests;
mod transfer;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use orch_ebpf::{
    ABI_VERSION, Address as _, Address4, Address6,
    config::CONFIG_MAP,
    conntrack::{CONNTRACK_MAP, TOUCH_NANOSECONDS},
    flow_table::ROWS_MAP,
    service::{BACKENDS_MAP, SERVICES_MAP, SLOTS_MAP, SOURCES_MAP},
};

use self::{
    layout::{Layout, PER_CPU_ARRAY, RING_BUFFER},
    transfer::Transfer,
};
use crate::{
    DataplaneError, links, maps,
    sys::{map::RawMap, monotonic},
};

/// Name of the directory beside that of the maps; BPF file systems allow no dot in it.
const NEXT: &str = "maps-next";
/// Name of the directory that marks a set of maps which no agent has brought to its place yet. BPF file systems hold
/// nothing but BPF objects and directories.
const PREPARING: &str = "preparing";
/// Maps that speak of each other by numbers: one of them made anew makes all of them anew.
const SERVICES: [&str; 4] = [SERVICES_MAP, SLOTS_MAP, BACKENDS_MAP, SOURCES_MAP];
/// How much older than the first copy an entry may say it is although it has been used since: a touch is not written
/// for a while, and clocks are read on different CPUs.
const SLACK: u64 = 2 * TOUCH_NANOSECONDS;
/// The shortest pause between two looks at what old programs do.
const PAUSE: Duration = Duration::from_millis(2);

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataplaneError {
    move |source| DataplaneError::File {
        action,
        path: path.to_owned(),
        source,
    }
}

fn kernel(action: &str, name: &str) -> impl FnOnce(io::Error) -> DataplaneError {
    move |source| DataplaneError::Syscall {
        call: format!("{action} the map {name}"),
        source,
    }
}

/// A name without its family.
fn base(name: &str) -> &str {
    name.strip_suffix(['4', '6']).unwrap_or(name)
}

/// Whether a map is another one with each version of the ABI, however alike its types are: where a number's meaning is in no
/// type, and the settings, by whose version old programs know that maps are theirs.
fn is_versioned(name: &str, layout: &Layout) -> bool {
    matches!(layout.kind, RING_BUFFER | PER_CPU_ARRAY) || [CONFIG_MAP, ROWS_MAP].contains(&base(name))
}

/// A map that changes: the old one, and the layouts of both.
struct Change {
    old: RawMap,
    old_layout: Layout,
    new_layout: Layout,
    /// Of a table of flows, what says which of its slots are in use.
    rows: Option<flows::Rows>,
}

/// Where the maps of the object that is to be loaded are pinned, and what has to be copied there.
pub struct Staging {
    root: PathBuf,
    folder: PathBuf,
    /// [`ABI_VERSION`] of the pinned maps; `None` if nothing says so.
    version: Option<u32>,
    changes: BTreeMap<String, Change>,
    /// Maps that had entries, of which none can be copied, and why.
    anew: BTreeMap<String, String>,
}

impl Staging {
    /// Compares the pinned maps with the object's and prepares a new set if any differ.
    ///
    /// # Errors
    /// When the object or a map cannot be read, or a pin not be made or removed.
    pub fn prepare(bpf_root: &Path, object: &[u8]) -> Result<Self, DataplaneError> {
        let current = maps::folder(bpf_root);
        let next = bpf_root.join(NEXT);
        let mut staging = Self {
            root: bpf_root.to_owned(),
            folder: current.clone(),
            version: None,
            changes: BTreeMap::new(),
            anew: BTreeMap::new(),
        };
        remove_folder(&current.join(PREPARING))?;
        let pinned: BTreeSet<String> = links::list(&current, "")?.into_iter().collect();
        if pinned.is_empty() {
            remove_folder(&next)?;
            return Ok(staging);
        }
        let wanted = layout::of_object(object)?;
        staging.version = version(&current, &pinned)?;
        let kept = staging.compare(&current, &pinned, &wanted)?;
        let former = pinned.iter().any(|name| !kept.contains_key(name));
        if staging.changes.is_empty() && staging.anew.is_empty() && !former {
            // What is left beside was replaced, or never came to be used.
            remove_folder(&next)?;
            return Ok(staging);
        }
        tracing::info!(
            found = staging.version, ours = ABI_VERSION, changed = ?staging.changes.keys(),
            "the pinned maps have another layout: moving their entries to new ones"
        );
        // Without the mark it is an old set that was replaced and not removed to the end.
        if !next.join(PREPARING).is_dir() {
            remove_folder(&next)?;
            fs::create_dir(&next).map_err(file("make", &next))?;
            let mark = next.join(PREPARING);
            fs::create_dir(&mark).map_err(file("make", &mark))?;
        }
        for name in maps::names() {
            let pin = next.join(&name);
            if let Some(map) = kept.get(&name) {
                links::remove(&pin)?;
                map.pin(&pin).map_err(kernel("pin", &name))?;
            } else if let Some(wanted) = wanted.get(&name) {
                // What an earlier try made goes on to be filled, if it is of use.
                let fits = RawMap::open(&pin).and_then(|map| Layout::of_map(&map));
                if !fits.is_ok_and(|layout| layout.fits(wanted)) {
                    links::remove(&pin)?;
                }
            }
        }
        staging.folder = next;
        Ok(staging)
    }

    /// Finds out which maps change, and returns those that stay, by their new names.
    fn compare(
        &mut self,
        current: &Path,
        pinned: &BTreeSet<String>,
        wanted: &HashMap<String, Layout>,
    ) -> Result<BTreeMap<String, RawMap>, DataplaneError> {
        let same_version = self.version.is_none_or(|version| version == ABI_VERSION);
        let mut kept = BTreeMap::new();
        for name in maps::names() {
            let former = first::former_name(&name);
            let Some(found) = [Some(name.as_str()), former]
                .into_iter()
                .flatten()
                .find(|name| pinned.contains(*name))
            else {
                continue;
            };
            let Some(new_layout) = wanted.get(&name) else {
                return Err(DataplaneError::Missing(name));
            };
            let old = RawMap::open(&current.join(found)).map_err(kernel("open", found))?;
            let old_layout = Layout::of_map(&old).map_err(kernel("describe", found))?;
            if old_layout.fits(new_layout) && (same_version || !is_versioned(&name, new_layout)) {
                kept.insert(name, old);
                continue;
            }
            self.change(name, old, old_layout, new_layout);
        }
        self.pair_flows(&mut kept, (current, pinned), wanted)?;
        if let Some((cause, why)) = self
            .anew
            .iter()
            .find(|(name, _)| SERVICES.contains(&base(name)))
            .map(|(name, why)| (name.clone(), why.clone()))
        {
            for name in maps::names().filter(|name| SERVICES.contains(&base(name))) {
                if self.changes.remove(&name).is_some() | kept.remove(&name).is_some() {
                    self.anew.insert(name, format!("with {cause}: {why}"));
                }
            }
        }
        Ok(kept)
    }

    fn change(&mut self, name: String, old: RawMap, old_layout: Layout, new_layout: &Layout) {
        let check = match base(&name) {
            CONNTRACK_MAP => flows::check(&old_layout, new_layout),
            _ => transfer::check(&old_layout, new_layout),
        };
        match check {
            Ok(()) => {
                let change = Change {
                    old,
                    old_layout,
                    new_layout: new_layout.clone(),
                    rows: None,
                };
                self.changes.insert(name, change);
            }
            Err(why) => {
                self.anew.insert(name, why);
            }
        }
    }

    /// A table of flows stays as it is or is made anew as a whole: its slots are nothing without what says which of them are
    /// in use.
    fn pair_flows(
        &mut self,
        kept: &mut BTreeMap<String, RawMap>,
        (current, pinned): (&Path, &BTreeSet<String>),
        wanted: &HashMap<String, Layout>,
    ) -> Result<(), DataplaneError> {
        for suffix in [Address4::SUFFIX, Address6::SUFFIX] {
            let [rows, slots] = [ROWS_MAP, CONNTRACK_MAP].map(|name| format!("{name}{suffix}"));
            if kept.contains_key(&rows) && kept.contains_key(&slots) {
                continue;
            }
            kept.remove(&rows);
            self.changes.remove(&rows);
            self.anew.remove(&rows);
            if let Some((old, layout)) = kept.remove(&slots).zip(wanted.get(&slots)) {
                self.change(slots.clone(), old, layout.clone(), layout);
            }
            if let Some(change) = self.changes.get_mut(&slots)
                && change.old_layout.kind == change.new_layout.kind
                && pinned.contains(&rows)
            {
                let map = RawMap::open(&current.join(&rows)).map_err(kernel("open", &rows))?;
                change.rows = Some(flows::Rows::new(map, self.version));
            }
        }
        Ok(())
    }

    /// Where a map of the new set is pinned.
    pub fn pin(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Copies what the old maps hold, now that the new ones have been made; `None` when there is nothing to do now and
    /// later.
    ///
    /// # Errors
    /// When a new map cannot be opened.
    pub fn fill(self) -> Result<Option<Migration>, DataplaneError> {
        if self.folder == maps::folder(&self.root) {
            return Ok(None);
        }
        for (name, why) in &self.anew {
            match base(name) {
                CONNTRACK_MAP => tracing::warn!(
                    map = name,
                    why,
                    "connection tracking starts anew: connections through translated addresses are lost"
                ),
                _ => tracing::warn!(map = name, why, "the map starts anew"),
            }
        }
        let begin = now();
        let mut live = Vec::new();
        for (name, change) in self.changes {
            let new = RawMap::open(&self.folder.join(&name)).map_err(kernel("open", &name))?;
            let layouts = (&change.old_layout, &change.new_layout);
            let transfer = match name.strip_prefix(CONNTRACK_MAP) {
                Some(suffix) => flows::Flows::new(layouts, change.rows, &self.folder, suffix)
                    .map(|flows| Transfer::of_flows(change.old, new, flows)),
                None => Transfer::new(change.old, new, layouts),
            };
            let transfer = match transfer {
                Ok(transfer) => transfer,
                Err(why) => {
                    tracing::warn!(map = name, why, "the map starts anew");
                    continue;
                }
            };
            match transfer.copy(0) {
                Ok(moved) => {
                    tracing::info!(map = name, entries = moved.written, lost = moved.lost, "moved");
                }
                // The rest of the node's life should not end with a map that can be made anew.
                Err(error) => tracing::warn!(map = name, %error, "not every entry could be moved"),
            }
            if transfer.is_live() {
                live.push((name, transfer));
            }
        }
        Ok(Some(Migration {
            next: self.folder,
            current: maps::folder(&self.root),
            anew: self.anew.into_keys().collect(),
            live: Arc::new(live),
            since: begin.saturating_sub(SLACK),
            ended: Arc::default(),
            follower: None,
        }))
    }
}

/// A set of maps that has been filled and is not in its place yet.
pub struct Migration {
    next: PathBuf,
    current: PathBuf,
    anew: BTreeSet<String>,
    /// What the old programs go on to change.
    live: Arc<Vec<(String, Transfer)>>,
    /// Entries that have not been used since need no second look.
    since: u64,
    ended: Arc<AtomicBool>,
    follower: Option<JoinHandle<()>>,
}

impl Migration {
    /// Whether a map of this name, without its family, lost what was in it.
    pub fn is_anew(&self, name: &str) -> bool {
        self.anew.iter().any(|map| base(map) == name)
    }

    /// Starts to copy what the old programs open, until [`Self::finish`]. To be called when nothing but the swap of
    /// the links is to come.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn follow(&mut self) -> Result<(), DataplaneError> {
        let (live, ended, since) = (Arc::clone(&self.live), Arc::clone(&self.ended), self.since);
        // What was opened while the programs were loaded.
        copy_live(&live, since);
        let follower = std::thread::Builder::new()
            .name("maps".to_owned())
            .spawn(move || {
                while !ended.load(Ordering::Acquire) {
                    let begin = Instant::now();
                    copy_live(&live, since);
                    // At most half of a CPU's time.
                    std::thread::park_timeout(begin.elapsed().max(PAUSE));
                }
            })
            .map_err(|source| DataplaneError::Syscall {
                call: "start the thread that copies maps".to_owned(),
                source,
            })?;
        self.follower = Some(follower);
        Ok(())
    }

    fn end(&mut self) {
        self.ended.store(true, Ordering::Release);
        if let Some(follower) = self.follower.take() {
            follower.thread().unpark();
            if follower.join().is_err() {
                tracing::warn!("the thread that copies maps panicked");
            }
        }
    }

    /// Copies for the last time and puts the new set into its place; to be called when every program has been swapped.
    ///
    /// # Errors
    /// When the directories cannot change places or the old set not be removed.
    pub fn finish(mut self) -> Result<(), DataplaneError> {
        self.end();
        copy_live(&self.live, self.since);
        renameat2(
            AT_FDCWD,
            &self.next,
            AT_FDCWD,
            &self.current,
            RenameFlags::RENAME_EXCHANGE,
        )
        .map_err(|errno| file("put into its place", &self.next)(errno.into()))?;
        remove_folder(&self.current.join(PREPARING))?;
        remove_folder(&self.next)?;
        tracing::info!("the new maps are in their place");
        Ok(())
    }
}

impl Drop for Migration {
    fn drop(&mut self) {
        self.end();
    }
}

fn copy_live(live: &[(String, Transfer)], since: u64) {
    for (name, transfer) in live {
        match transfer.copy(since) {
            Ok(moved) => tracing::debug!(
                map = name,
                entries = moved.written,
                lost = moved.lost,
                "moved again"
            ),
            Err(error) => tracing::warn!(map = name, %error, "what old programs opened could not be moved"),
        }
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, the programs' time; zero makes every entry be looked at.
fn now() -> u64 {
    monotonic()
        .ok()
        .and_then(|time| u64::try_from(time.as_nanos()).ok())
        .unwrap_or_default()
}

/// The version that the pinned settings say; `None` where there are none, or none have been written.
fn version(current: &Path, pinned: &BTreeSet<String>) -> Result<Option<u32>, DataplaneError> {
    if !pinned.contains(CONFIG_MAP) {
        return Ok(None);
    }
    let read = || {
        let map = RawMap::open(&current.join(CONFIG_MAP))?;
        let offset = transfer::version_offset(&Layout::of_map(&map)?);
        let value = map.get(&0_u32.to_ne_bytes())?.unwrap_or_default();
        let bytes = value.get(offset..).and_then(<[u8]>::first_chunk);
        io::Result::Ok(bytes.map(|bytes| u32::from_ne_bytes(*bytes)))
    };
    let found = read().map_err(kernel("read", CONFIG_MAP))?;
    Ok(found.filter(|version| *version != 0))
}

/// Removes a directory of pins, if it is there.
fn remove_folder(folder: &Path) -> Result<(), DataplaneError> {
    match fs::remove_dir_all(folder) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(file("remove", folder)(source)),
        _ => Ok(()),
    }
}
