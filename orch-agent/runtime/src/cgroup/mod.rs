//! cgroups of pods and containers, in v1, hybrid and v2 layouts.

mod layout;
mod limits;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub(crate) use layout::{Cgroups, Layout};
pub(crate) use limits::{CPU_PERIOD_US, cpu_quota, cpu_shares};

use crate::runtime::blocking;
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
        let cgroups = self.cgroups.clone();
        let (parent, resources) = (checked(cgroup_parent)?.to_owned(), *resources);
        blocking(move || {
            cgroups.make(&parent)?;
            for write in limits::writes(&cgroups, &parent, &resources) {
                write_value(&write.file, &write.value)?;
            }
            Ok(())
        })
        .await
    }

    /// Removes a pod's cgroup and what is left below it; fine when there is none.
    pub async fn remove_pod_cgroup(&self, cgroup_parent: &str) -> Result<(), RuntimeError> {
        let cgroups = self.cgroups.clone();
        let parent = checked(cgroup_parent)?.to_owned();
        blocking(move || cgroups.remove(&parent)).await
    }

    /// The directory of the cgroup2 tree in which a parent's sockets are (BPF programs attach there or above).
    pub fn cgroup2_dir(&self, cgroup_parent: &str) -> Option<PathBuf> {
        self.cgroups.unified(cgroup_parent)
    }
}

/// Refuses paths that lead out of the root.
pub(crate) fn checked(parent: &str) -> Result<&str, RuntimeError> {
    let parent = parent.trim_matches('/');
    if parent.is_empty()
        || parent
            .split('/')
            .any(|part| part.is_empty() || part == "." || part == "..")
    {
        return Err(RuntimeError::BadSpec {
            id: parent.to_owned(),
            reason: "not a relative cgroup path".to_owned(),
        });
    }
    Ok(parent)
}

pub(crate) fn write_value(file: &Path, value: &str) -> Result<(), RuntimeError> {
    fs::write(file, value).map_err(RuntimeError::file("write a limit to", file))
}

/// Removes a cgroup directory with all below it; fine when it is not there.
pub(crate) fn remove_tree(dir: &Path) -> Result<(), RuntimeError> {
    match fs::remove_dir(dir) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {}
    }
    if let Ok(entries) = fs::read_dir(dir) {
        for entry in entries
            .flatten()
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        {
            remove_tree(&entry.path())?;
        }
    }
    // A cgroup whose last process has just ended is busy for a moment longer.
    let mut attempts = 0;
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && attempts < 20 => {
                attempts += 1;
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            Err(e) => return Err(RuntimeError::file("remove", dir)(e)),
        }
    }
}
