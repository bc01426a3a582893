//! What a [`crate::Runtime`] needs to know about its node.

use std::path::PathBuf;

/// Where containerd listens and where this runtime keeps its own files and cgroups.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// containerd's gRPC socket, usually `/run/containerd/containerd.sock`.
    pub containerd_socket: PathBuf,
    /// The only containerd namespace that is ever touched.
    pub containerd_namespace: String,
    /// Directory for namespaces (`ns/`), container I/O (`io/`) and runc's state (`runc/`); lost at reboot.
    pub run_dir: PathBuf,
    /// The executable that is started as `<logger_binary> logger FILE` for each container, and that then
    /// calls [`crate::logger::run`].
    pub logger_binary: PathBuf,
    /// The cgroup below which all containers live, absolute within each hierarchy, for instance `/orch`.
    pub cgroup_root: String,
    /// containerd's snapshotter, usually `overlayfs`.
    pub snapshotter: String,
    /// Registries (`host` or `host:port`) that are spoken to in plain HTTP; loopback ones always are.
    pub insecure_registries: Vec<String>,
}

impl RuntimeConfig {
    /// The defaults of a node for the given socket, run directory and logger executable.
    pub fn new(
        containerd_socket: impl Into<PathBuf>,
        run_dir: impl Into<PathBuf>,
        logger_binary: impl Into<PathBuf>,
    ) -> Self {
        Self {
            containerd_socket: containerd_socket.into(),
            containerd_namespace: "orch".to_owned(),
            run_dir: run_dir.into(),
            logger_binary: logger_binary.into(),
            cgroup_root: "/orch".to_owned(),
            snapshotter: "overlayfs".to_owned(),
            insecure_registries: Vec::new(),
        }
    }
}
