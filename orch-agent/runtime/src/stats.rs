//! What a container uses.
use crate::{Runtime, RuntimeError};

/// Usage of one container as its cgroups count it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContainerStats {
    /// CPU time since its start, in nanoseconds.
    pub cpu_usage_ns: u64,
    /// Memory with page cache, in bytes.
    pub memory_usage_bytes: u64,
    /// Memory without inactive page cache, in bytes: what eviction and `kubectl top` look at.
    pub memory_working_set_bytes: u64,
    /// Anonymous memory in bytes.
    pub memory_rss: u64,
    /// Processes and threads.
    pub pids: u64,
}
impl Runtime {
    /// What a container uses now.
    pub async fn stats(&self, id: &str) -> Result<ContainerStats, RuntimeError> {
        let _ = id;
        Err(RuntimeError::NotReady("stats"))
    }
}
