//! The pinned maps, typed, and the one interpreter of [`MapOp`].

use std::path::{Path, PathBuf};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray},
};
use orch_ebpf::{
    Address,
    config::{CONFIG_MAP, Config, NODES_MAP, Node},
    conntrack::{CONNTRACK_MAP, Conntrack, FRAGMENTS_MAP, Tuple},
    endpoint::{ENDPOINTS_MAP, Endpoint},
    event::{Counter, EVENTS_MAP, METRICS_MAP},
    service::{
        AFFINITY_MAP, BACKENDS_MAP, Backend, BackendKey, SERVICES_MAP, SLOTS_MAP, SOCKETS_MAP, Service,
        ServiceKey, Slot, SlotKey,
    },
};

use crate::{
    DataplaneError,
    plan::{MapOp, Planner},
};

/// Every map of the ABI.
pub const NAMES: [&str; 12] = [
    CONFIG_MAP,
    NODES_MAP,
    SERVICES_MAP,
    SLOTS_MAP,
    BACKENDS_MAP,
    AFFINITY_MAP,
    SOCKETS_MAP,
    ENDPOINTS_MAP,
    CONNTRACK_MAP,
    FRAGMENTS_MAP,
    EVENTS_MAP,
    METRICS_MAP,
];

/// Where the maps are pinned.
#[must_use]
pub fn folder(bpf_root: &Path) -> PathBuf {
    bpf_root.join("maps")
}

/// The maps that the agent reads and writes.
pub struct Maps {
    /// The node's settings.
    pub config: Array<MapData, Config>,
    /// Addresses of nodes.
    pub nodes: HashMap<MapData, Address, Node>,
    /// Services.
    pub services: HashMap<MapData, ServiceKey, Service>,
    /// Slots.
    pub slots: HashMap<MapData, SlotKey, Slot>,
    /// Backends.
    pub backends: HashMap<MapData, BackendKey, Backend>,
    /// Local pods.
    pub endpoints: HashMap<MapData, Address, Endpoint>,
    /// Translated flows.
    pub conntrack: HashMap<MapData, Tuple, Conntrack>,
    /// Counters.
    pub metrics: PerCpuArray<MapData, Counter>,
}

/// Wraps a map's error with its name.
pub fn failed(name: &'static str) -> impl Fn(MapError) -> DataplaneError {
    move |source| DataplaneError::Map {
        name,
        source: Box::new(source),
    }
}

fn open<T>(
    name: &'static str,
    find: &mut impl FnMut(&'static str) -> Result<Map, DataplaneError>,
) -> Result<T, DataplaneError>
where
    T: TryFrom<Map, Error = MapError>,
{
    find(name)?.try_into().map_err(failed(name))
}

impl Maps {
    /// Takes the maps out of a loaded object.
    ///
    /// # Errors
    /// When the object lacks one or one has another shape.
    pub fn of(ebpf: &mut Ebpf) -> Result<Self, DataplaneError> {
        Self::collect(|name| ebpf.take_map(name).ok_or(DataplaneError::Missing(name)))
    }

    /// Opens the pinned maps under `bpf_root`, for reading beside a running agent.
    ///
    /// # Errors
    /// When one is not there or has another shape.
    pub fn pinned(bpf_root: &Path) -> Result<Self, DataplaneError> {
        Self::collect(|name| {
            MapData::from_pin(folder(bpf_root).join(name))
                .and_then(Map::from_map_data)
                .map_err(failed(name))
        })
    }

    fn collect(
        mut find: impl FnMut(&'static str) -> Result<Map, DataplaneError>,
    ) -> Result<Self, DataplaneError> {
        Ok(Self {
            config: open(CONFIG_MAP, &mut find)?,
            nodes: open(NODES_MAP, &mut find)?,
            services: open(SERVICES_MAP, &mut find)?,
            slots: open(SLOTS_MAP, &mut find)?,
            backends: open(BACKENDS_MAP, &mut find)?,
            endpoints: open(ENDPOINTS_MAP, &mut find)?,
            conntrack: open(CONNTRACK_MAP, &mut find)?,
            metrics: open(METRICS_MAP, &mut find)?,
        })
    }

    /// A planner that starts from what the maps hold.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn planner(&self) -> Result<Planner, DataplaneError> {
        let services: Vec<_> = self
            .services
            .iter()
            .collect::<Result<_, _>>()
            .map_err(failed(SERVICES_MAP))?;
        let slots: Vec<_> = self
            .slots
            .iter()
            .collect::<Result<_, _>>()
            .map_err(failed(SLOTS_MAP))?;
        let backends: Vec<(BackendKey, Backend)> = self
            .backends
            .iter()
            .collect::<Result<_, _>>()
            .map_err(failed(BACKENDS_MAP))?;
        Ok(Planner::adopt(
            services,
            slots,
            backends.into_iter().map(|(key, backend)| (key.id, backend)),
        ))
    }

    /// Carries out the operations in their order.
    ///
    /// # Errors
    /// The first that the kernel refuses; those after it are not tried, so the order's promise holds.
    pub fn apply(&mut self, ops: &[MapOp]) -> Result<(), DataplaneError> {
        for op in ops {
            match *op {
                MapOp::PutBackend(id, backend) => {
                    self.backends
                        .insert(BackendKey { id }, backend, 0)
                        .map_err(failed(BACKENDS_MAP))?;
                }
                MapOp::PutSlot(key, slot) => {
                    self.slots.insert(key, slot, 0).map_err(failed(SLOTS_MAP))?;
                }
                MapOp::PutService(key, service) => {
                    self.services
                        .insert(key, service, 0)
                        .map_err(failed(SERVICES_MAP))?;
                }
                MapOp::RemoveService(key) => {
                    gone_or(self.services.remove(&key)).map_err(failed(SERVICES_MAP))?;
                }
                MapOp::RemoveSlot(key) => gone_or(self.slots.remove(&key)).map_err(failed(SLOTS_MAP))?,
                MapOp::RemoveBackend(id, _) => {
                    gone_or(self.backends.remove(&BackendKey { id })).map_err(failed(BACKENDS_MAP))?;
                }
            }
        }
        Ok(())
    }

    /// Forgets every translated flow that `over` names.
    pub fn forget_flows(&mut self, over: impl Fn(&Tuple, &Conntrack) -> bool) -> usize {
        let keys: Vec<Tuple> = self
            .conntrack
            .iter()
            .filter_map(Result::ok)
            .filter(|(tuple, entry)| over(tuple, entry))
            .map(|(tuple, _)| tuple)
            .collect();
        // An entry that has gone by itself meanwhile is as gone as one removed here.
        keys.iter()
            .filter(|key| self.conntrack.remove(key).is_ok())
            .count()
    }
}

/// Takes "not there" for removed.
///
/// # Errors
/// Any other refusal.
pub fn gone_or(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}
