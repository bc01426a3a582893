//! cgroups of pods and containers, in v1, hybrid and v2 layouts.
use crate::{Runtime, RuntimeError};

/// Weights and limits of a whole pod, or of a QoS class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodResources {
    /// CPU weight in thousandths of a CPU.
    pub cpu_request_millicores: Option<u64>,
    /// CPU quota in thousandths of a CPU.
    pub cpu_limit_millicores: Option<u64>,
    /// Memory limit in bytes.
    pub memory_limit_bytes: Option<u64>,
    /// Limit of processes and threads.
    pub pids_limit: Option<u64>,
}

impl Runtime {
    /// Makes the cgroup that a pod's containers are put in and sets its limits; `cgroup_parent` as in
    /// [`crate::ContainerSpec::cgroup_parent`]. Limits that are `None` are left as they are.
    pub async fn set_pod_cgroup(
        &self,
        cgroup_parent: &str,
        resources: &PodResources,
    ) -> Result<(), RuntimeError> {
        let _ = (cgroup_parent, resources);
        Err(RuntimeError::NotReady("set_pod_cgroup"))
    }
    /// Removes a pod's cgroup and what is left below it; fine when there is none.
    pub async fn remove_pod_cgroup(&self, cgroup_parent: &str) -> Result<(), RuntimeError> {
        let _ = cgroup_parent;
        Err(RuntimeError::NotReady("remove_pod_cgroup"))
    }
}
