//! The pinned maps in a person's terms, as text or JSON: `orch-agent bpf …`.

mod flows;
mod node;
mod policy;
mod programs;
mod services;
mod table;
#[cfg(test)]
mod tests;

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use aya::{
    Pod,
    maps::{HashMap, LpmTrie, Map, MapData, MapError, MapInfo, PerCpuArray, lpm_trie::Key},
};
use orch_ebpf::{Address, Address6, event::Counter, event::METRICS_MAP};

pub use self::{
    programs::memory as map_memory,
    table::{Cell, Table},
};
use crate::{
    DataplaneError,
    maps::{self, MapAddress, failed},
};

macro_rules! views {
    ($($(#[$doc:meta])* $view:ident $name:literal $read:path,)+) => {
        /// What can be looked at.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum View {
            $($(#[$doc])* $view,)+
        }

        impl View {
            /// The views' names, in the order in which a person would look.
            pub const NAMES: &'static [&'static str] = &[$($name),+];
        }

        impl std::str::FromStr for View {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($name => Ok(Self::$view),)+
                    _ => Err(format!("{text:?} is none of {}", Self::NAMES.join(", "))),
                }
            }
        }

        /// Reads one view from the maps pinned under `bpf_root`.
        ///
        /// # Errors
        /// When the maps are not there or cannot be read.
        pub fn read(bpf_root: &Path, view: View) -> Result<Table, DataplaneError> {
            match view {
                $(View::$view => $read(&Pins(bpf_root)),)+
            }
        }
    };
}

views! {
    /// Services with their backends.
    Services "services" services::services,
    /// Backends and their share of slots.
    Backends "backends" services::backends,
    /// Networks that may use services with source ranges.
    Sources "sources" services::sources,
    /// Clients that keep their backend.
    Affinity "affinity" services::affinity,
    /// Sockets that asked for a service.
    Sockets "sockets" services::sockets,
    /// Pods of this node.
    Endpoints "endpoints" node::endpoints,
    /// Limits of bandwidth.
    Buckets "buckets" node::buckets,
    /// Rules of policies.
    Policy "policy" policy::rules,
    /// Identities of addresses.
    Identities "identities" policy::identities,
    /// Flows.
    Conntrack "conntrack" flows::conntrack,
    /// Fragmented datagrams.
    Fragments "fragments" flows::fragments,
    /// Addresses of nodes.
    Nodes "nodes" node::nodes,
    /// What goes through the tunnel.
    Routes "routes" node::routes,
    /// Addresses of uplinks, by which pods are known outside.
    Uplinks "uplinks" node::uplinks,
    /// Addresses that this node answers for.
    Announced "announced" node::announced,
    /// The node's settings.
    Config "config" node::config,
    /// Counters.
    Metrics "metrics" node::metrics,
    /// The programs and where they are attached.
    Programs "programs" programs::programs,
    /// The maps with their capacity and memory.
    Maps "maps" programs::maps,
}

/// The pinned maps, each opened when it is looked at.
struct Pins<'a>(&'a Path);

impl Pins<'_> {
    fn data(&self, name: &str) -> Result<MapData, DataplaneError> {
        MapData::from_pin(maps::folder(self.0).join(name)).map_err(|source| DataplaneError::Pinned {
            name: name.to_owned(),
            source: Box::new(source),
        })
    }

    fn info(&self, name: &str) -> Result<MapInfo, DataplaneError> {
        MapInfo::from_pin(maps::folder(self.0).join(name)).map_err(|source| DataplaneError::Pinned {
            name: name.to_owned(),
            source: Box::new(source),
        })
    }

    fn open<T: TryFrom<Map, Error = MapError>>(
        &self,
        name: &'static str,
        suffix: &str,
    ) -> Result<T, DataplaneError> {
        let map = Map::from_map_data(self.data(&format!("{name}{suffix}"))?).map_err(failed(name))?;
        T::try_from(map).map_err(failed(name))
    }

    /// Every entry of a hash, in the order of `rank`. One that goes while the map is read is left out.
    fn hash<K: Pod, V: Pod, R: Ord>(
        &self,
        name: &'static str,
        suffix: &str,
        rank: impl Fn(&K, &V) -> R,
    ) -> Result<Vec<(K, V)>, DataplaneError> {
        let map: HashMap<MapData, K, V> = self.open(name, suffix)?;
        let mut all: Vec<(K, V)> = map
            .iter()
            .filter_map(present)
            .collect::<Result<_, _>>()
            .map_err(failed(name))?;
        all.sort_by_cached_key(|(key, value)| rank(key, value));
        Ok(all)
    }

    /// Every entry of a trie, in the order of `rank`.
    fn trie<K: Pod, V: Pod, R: Ord>(
        &self,
        name: &'static str,
        suffix: &str,
        rank: impl Fn(&Key<K>) -> R,
    ) -> Result<Vec<(Key<K>, V)>, DataplaneError> {
        let map: LpmTrie<MapData, K, V> = self.open(name, suffix)?;
        let mut all: Vec<(Key<K>, V)> = map
            .iter()
            .filter_map(present)
            .collect::<Result<_, _>>()
            .map_err(failed(name))?;
        all.sort_by_cached_key(|(key, _)| rank(key));
        Ok(all)
    }
}

fn present<T>(entry: Result<T, MapError>) -> Option<Result<T, MapError>> {
    match entry {
        Err(MapError::KeyNotFound) => None,
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => None,
        other => Some(other),
    }
}

/// Adds the rows of both families.
macro_rules! both {
    ($table:expr, $rows:ident, $pins:expr) => {{
        let mut table = $table;
        $rows::<orch_ebpf::Address4>($pins, &mut table)?;
        $rows::<orch_ebpf::Address6>($pins, &mut table)?;
        Ok(table)
    }};
}
use both;

/// An address and port; every address of the node where the address is zero.
fn socket<A: Address>(address: A, port: u16) -> String {
    if address == A::ANY {
        format!("node:{port}")
    } else {
        SocketAddr::new(address.ip(), port).to_string()
    }
}

fn wide(bytes: Address6) -> IpAddr {
    IpAddr::from(bytes).to_canonical()
}

fn network<A: MapAddress>(address: A, bits: u32) -> String {
    format!("{}/{bits}", address.ip())
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// The names of the flags that are set.
fn flags<const N: usize>(value: u32, names: [(u32, &'static str); N]) -> Vec<&'static str> {
    names
        .into_iter()
        .filter(|(flag, _)| value & flag != 0)
        .map(|(_, name)| name)
        .collect()
}

/// Seconds since a moment of the monotonic clock.
fn seconds_since(nanoseconds: u64) -> u64 {
    let now = crate::sys::monotonic().unwrap_or_default();
    now.saturating_sub(Duration::from_nanos(nanoseconds)).as_secs()
}

/// A counter, of all CPUs together.
///
/// # Errors
/// When the kernel refuses.
pub fn counter(metrics: &PerCpuArray<MapData, Counter>, index: u32) -> Result<Counter, DataplaneError> {
    let values = metrics.get(&index, 0).map_err(failed(METRICS_MAP))?;
    Ok(values.iter().fold(Counter::default(), |sum, one| Counter {
        packets: sum.packets.wrapping_add(one.packets),
        bytes: sum.bytes.wrapping_add(one.bytes),
    }))
}
