//! What a container uses.

use std::fs;
use std::path::Path;

use crate::cgroup::{Cgroups, Layout};
use crate::runtime::blocking;
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
    /// What a container uses now. Fails with [`RuntimeError::NotRunning`] when it has no cgroup (any more).
    pub async fn stats(&self, id: &str) -> Result<ContainerStats, RuntimeError> {
        let path = self.container_cgroup(id).await?;
        self.cgroup_stats(&path)
            .await?
            .ok_or_else(|| RuntimeError::NotRunning(id.to_owned()))
    }

    /// What all containers of a pod use together; `None` when there is no such cgroup. `cgroup_parent` as in
    /// [`crate::ContainerSpec::cgroup_parent`]; empty for all that this runtime runs.
    pub async fn cgroup_stats(&self, cgroup_parent: &str) -> Result<Option<ContainerStats>, RuntimeError> {
        let cgroups = self.cgroups.clone();
        let path = cgroup_parent.trim_matches('/').to_owned();
        blocking(move || Ok(read(&cgroups, &path))).await
    }
}

fn read(cgroups: &Cgroups, path: &str) -> Option<ContainerStats> {
    let memory = cgroups.controller("memory", path)?;
    let counters = fs::read_to_string(memory.join("memory.stat")).ok()?;
    let (usage_file, inactive, rss) = match cgroups.layout {
        Layout::V2 { .. } => ("memory.current", "inactive_file", "anon"),
        Layout::V1 { .. } => ("memory.usage_in_bytes", "total_inactive_file", "total_rss"),
    };
    let usage = number(&memory.join(usage_file))?;
    let cpu_usage_ns = match cgroups.layout {
        Layout::V2 { .. } => {
            let stat = fs::read_to_string(memory.join("cpu.stat")).ok()?;
            keyed(&stat, "usage_usec")? * 1000
        }
        Layout::V1 { .. } => number(&cgroups.controller("cpuacct", path)?.join("cpuacct.usage"))?,
    };
    Some(ContainerStats {
        cpu_usage_ns,
        memory_usage_bytes: usage,
        memory_working_set_bytes: usage.saturating_sub(keyed(&counters, inactive).unwrap_or(0)),
        memory_rss: keyed(&counters, rss).unwrap_or(0),
        pids: cgroups
            .controller("pids", path)
            .and_then(|dir| number(&dir.join("pids.current")))
            .unwrap_or(0),
    })
}

/// Whether the kernel has killed a process in this cgroup for want of memory.
pub(crate) fn was_oom_killed(cgroups: &Cgroups, path: &str) -> bool {
    let file = match cgroups.layout {
        Layout::V2 { .. } => "memory.events",
        Layout::V1 { .. } => "memory.oom_control",
    };
    cgroups
        .controller("memory", path)
        .and_then(|dir| fs::read_to_string(dir.join(file)).ok())
        .and_then(|text| keyed(&text, "oom_kill"))
        .is_some_and(|count| count > 0)
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The value of one line of a file of `key value` lines.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.split_once(' ').filter(|(k, _)| *k == key))
        .and_then(|(_, value)| value.trim().parse().ok())
}
