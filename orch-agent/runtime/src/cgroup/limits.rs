//! What is written where to limit a cgroup (kernel documentation: cgroup-v1/ and cgroup-v2.rst).

use std::path::PathBuf;

use super::{Cgroups, PodResources};

/// The period that CPU quotas are given for.
pub(crate) const CPU_PERIOD_US: u64 = 100_000;

/// The least quota the kernel takes.
const CPU_QUOTA_MIN_US: u64 = 1000;

/// The least and the most shares the kernel takes.
const CPU_SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;

/// CPU shares (v1) for thousandths of a CPU: 1024 are one CPU.
pub(crate) fn cpu_shares(millicores: u64) -> u64 {
    (millicores.saturating_mul(1024) / 1000).clamp(*CPU_SHARES.start(), *CPU_SHARES.end())
}

/// Microseconds of each [`CPU_PERIOD_US`] for thousandths of a CPU.
pub(crate) fn cpu_quota(millicores: u64) -> u64 {
    (millicores.saturating_mul(CPU_PERIOD_US) / 1000).max(CPU_QUOTA_MIN_US)
}

/// v2's weight for v1's shares, by the linear map that runc and Kubernetes use (KEP-2254).
fn cpu_weight(shares: u64) -> u64 {
    1 + (shares - CPU_SHARES.start()) * 9999 / (CPU_SHARES.end() - CPU_SHARES.start())
}

/// One value for one file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) file: PathBuf,
    pub(crate) value: String,
}

/// What has to be written to give `path` these limits.
pub(super) fn writes(cgroups: &Cgroups, path: &str, resources: &PodResources) -> Vec<Write> {
    let mut writes = Vec::new();
    let mut put = |controller: &str, file: &str, value: String| {
        if let Some(dir) = cgroups.controller(controller, path) {
            writes.push(Write {
                file: dir.join(file),
                value,
            });
        }
    };
    let v2 = cgroups.is_v2();
    if let Some(request) = resources.cpu_request_millicores {
        let shares = cpu_shares(request);
        match v2 {
            true => put("cpu", "cpu.weight", cpu_weight(shares).to_string()),
            false => put("cpu", "cpu.shares", shares.to_string()),
        }
    }
    if let Some(limit) = resources.cpu_limit_millicores {
        let quota = cpu_quota(limit);
        if v2 {
            put("cpu", "cpu.max", format!("{quota} {CPU_PERIOD_US}"));
        } else {
            put("cpu", "cpu.cfs_period_us", CPU_PERIOD_US.to_string());
            put("cpu", "cpu.cfs_quota_us", quota.to_string());
        }
    }
    if let Some(limit) = resources.memory_limit_bytes {
        put(
            "memory",
            if v2 { "memory.max" } else { "memory.limit_in_bytes" },
            limit.to_string(),
        );
    }
    if let Some(limit) = resources.pids_limit {
        put("pids", "pids.max", limit.to_string());
    }
    writes
}

#[cfg(test)]
mod tests {
    use super::super::Layout;
    use super::*;

    #[test]
    fn millicores_become_kernel_units() {
        assert_eq!(
            (cpu_shares(0), cpu_shares(500), cpu_shares(1_000_000)),
            (2, 512, 262_144)
        );
        assert_eq!((cpu_quota(1), cpu_quota(250)), (1000, 25_000));
        assert_eq!(
            (cpu_weight(2), cpu_weight(1024), cpu_weight(262_144)),
            (1, 39, 10_000)
        );
    }

    #[test]
    fn both_versions_get_all_limits() {
        let resources = PodResources {
            cpu_request_millicores: Some(100),
            cpu_limit_millicores: Some(500),
            memory_limit_bytes: Some(1 << 20),
            pids_limit: Some(9),
        };
        let texts = |layout| {
            let cgroups = Cgroups {
                root: "o".to_owned(),
                layout,
            };
            writes(&cgroups, "p", &resources)
                .into_iter()
                .map(|w| format!("{}={}", w.file.display(), w.value))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            texts(Layout::V2 { mount: "/c".into() }),
            [
                "/c/o/p/cpu.weight=4",
                "/c/o/p/cpu.max=50000 100000",
                "/c/o/p/memory.max=1048576",
                "/c/o/p/pids.max=9"
            ]
        );
        let controllers = ["cpu", "memory"]
            .map(|c| (c.to_owned(), PathBuf::from("/c").join(c)))
            .into();
        assert_eq!(
            texts(Layout::V1 {
                controllers,
                unified: None
            }),
            [
                "/c/cpu/o/p/cpu.shares=102",
                "/c/cpu/o/p/cpu.cfs_period_us=100000",
                "/c/cpu/o/p/cpu.cfs_quota_us=50000",
                "/c/memory/o/p/memory.limit_in_bytes=1048576",
            ]
        );
    }
}
