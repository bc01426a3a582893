//! A data plane's settings in a test.

use std::{
    ops::{Deref, DerefMut},
    path::Path,
};

use orch_dataplane::{DataplaneConfig, Tunnel, XdpMode};

/// Settings with pins and a cgroup of their own, which go with them.
pub struct Settings(DataplaneConfig);

impl Settings {
    /// Those of the node `n1` of a cluster of both families, without XDP and tunnel. What is different is to be set; `run`
    /// tells them from others of this process.
    pub fn new(run: &str) -> Self {
        let name = format!("orch-{run}-{}", std::process::id());
        let unified = Path::new("/sys/fs/cgroup/unified");
        let cgroups = if unified.is_dir() {
            unified
        } else {
            Path::new("/sys/fs/cgroup")
        };
        Self(DataplaneConfig {
            node_name: "n1".into(),
            node_ips: vec!["172.31.0.11".parse().unwrap(), "fd00:31::11".parse().unwrap()],
            uplinks: Vec::new(),
            bpf_root: Path::new("/sys/fs/bpf").join(&name),
            cgroup_path: cgroups.join(&name),
            run_dir: std::env::temp_dir().join(&name),
            cluster_cidrs: vec![
                "10.244.0.0/16".parse().unwrap(),
                "fd00:10:244::/56".parse().unwrap(),
            ],
            service_cidrs: vec![
                "10.96.0.0/16".parse().unwrap(),
                "fd00:10:96::/112".parse().unwrap(),
            ],
            cluster_dns: Vec::new(),
            xdp: XdpMode::Off,
            tunnel: Tunnel::Off,
            direct_return: false,
            proxy_health: None,
        })
    }
}

impl Deref for Settings {
    type Target = DataplaneConfig;

    fn deref(&self) -> &DataplaneConfig {
        &self.0
    }
}

impl DerefMut for Settings {
    fn deref_mut(&mut self) -> &mut DataplaneConfig {
        &mut self.0
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        let _ = orch_dataplane::remove_pins(&self.0.bpf_root);
        let _ = std::fs::remove_dir(&self.0.cgroup_path);
        // Where a test has set another, it is not ours.
        if self.0.run_dir.file_name() == self.0.cgroup_path.file_name() {
            let _ = std::fs::remove_dir_all(&self.0.run_dir);
        }
    }
}
