//! What a container is made from and what is known about one.

mod create;
mod delete;
mod lifecycle;
pub(crate) mod status;

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::sandbox::Sandbox;

/// Everything a container is made from. `Default` gives an unprivileged container that runs the image's
/// command as the image's user, with no limits.
#[derive(Clone, Debug, Default)]
pub struct ContainerSpec {
    /// Unique on the node for ever: `[A-Za-z0-9]` then `[A-Za-z0-9_.-]`, at most 76 bytes.
    pub id: String,
    /// The sandbox's uid; kept as a label.
    pub pod_uid: String,
    /// Image reference; it must be on the node (see [`crate::Runtime::pull`]).
    pub image: String,
    /// Replaces the image's entrypoint; the image's cmd is then not used.
    pub command: Option<Vec<String>>,
    /// Replaces the image's cmd.
    pub args: Option<Vec<String>>,
    /// Added to the image's environment; a later entry wins over an earlier one of the same name.
    pub env: Vec<(String, String)>,
    /// Replaces the image's working directory.
    pub working_dir: Option<String>,
    /// Mounts beside the default ones, made in this order.
    pub mounts: Vec<MountSpec>,
    /// The namespaces that the sandbox holds; one that is `None` is the host's.
    pub sandbox: Sandbox,
    /// Join the pid namespace of this process instead of having an own one.
    pub join_pid: Option<u32>,
    /// The pod uses the node's network (then /sys is the node's too).
    pub host_network: bool,
    /// Use the node's pid namespace.
    pub host_pid: bool,
    /// The value of `HOSTNAME` in the environment.
    pub hostname: String,
    /// Who the process runs as; where empty, the image decides.
    pub user: UserSpec,
    /// All capabilities, all devices, no masked paths, no seccomp.
    pub privileged: bool,
    /// Mount the root file system read-only.
    pub readonly_rootfs: bool,
    /// Capabilities added to the default set, with or without `CAP_`; `ALL` for all.
    pub add_capabilities: Vec<String>,
    /// Capabilities taken from the default set; `ALL` for all. Additions win over `ALL`.
    pub drop_capabilities: Vec<String>,
    /// Set `no_new_privs`.
    pub no_new_privileges: bool,
    /// The seccomp profile.
    pub seccomp: SeccompProfile,
    /// Paths hidden from the container; `None` for the usual ones.
    pub masked_paths: Option<Vec<String>>,
    /// Paths made read-only; `None` for the usual ones.
    pub readonly_paths: Option<Vec<String>>,
    /// Limits.
    pub resources: Resources,
    /// The OOM score adjustment; raised to the agent's own where it may not be lowered.
    pub oom_score_adj: Option<i32>,
    /// The parent cgroup relative to [`crate::RuntimeConfig::cgroup_root`], for instance `kubepods/podUID`.
    pub cgroup_parent: String,
    /// Where output is logged in CRI format.
    pub log_path: PathBuf,
    /// Keep a stdin that [`crate::Runtime::attach`] can write to.
    pub stdin: bool,
    /// Close stdin when the first attached client has ended its input.
    pub stdin_once: bool,
    /// Give the process a terminal.
    pub tty: bool,
    /// Name or number of the signal that asks the process to end; overrides the image's.
    pub stop_signal: Option<String>,
    /// The caller's data, returned by [`crate::Runtime::containers`]. A key and its value: at most 4096 bytes.
    pub labels: BTreeMap<String, String>,
    /// Device nodes of the host to pass through.
    pub devices: Vec<DeviceSpec>,
}

/// Who a container's process runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserSpec {
    /// Numeric user id; wins over `username` and the image.
    pub uid: Option<u32>,
    /// Numeric primary group id; else the user's own in the image's passwd file, else 0.
    pub gid: Option<u32>,
    /// A name (or number, or `user:group`) as in an image's `USER`; wins over the image's.
    pub username: Option<String>,
    /// Groups added to those that the image's group file gives the user (the caller adds `fsGroup`).
    pub supplementary: Vec<u32>,
    /// Do not look into the image's group file.
    pub strict_groups: bool,
}

/// One mount.
#[derive(Clone, Debug)]
pub struct MountSpec {
    /// Path on the host (for [`MountKind::Bind`]).
    pub source: PathBuf,
    /// Absolute path in the container.
    pub destination: String,
    /// Mount read-only.
    pub readonly: bool,
    /// How mounts made below it later are shared.
    pub propagation: Propagation,
    /// What is mounted.
    pub kind: MountKind,
}

/// What a [`MountSpec`] mounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MountKind {
    /// The host's file or directory, with what is mounted below it.
    #[default]
    Bind,
    /// A fresh tmpfs of at most this many bytes (0: half of memory).
    Tmpfs {
        /// Bytes.
        size: u64,
    },
}

/// Kubernetes' `mountPropagation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// `None`: rprivate.
    #[default]
    Private,
    /// `HostToContainer`: rslave.
    HostToContainer,
    /// `Bidirectional`: rshared.
    Bidirectional,
}

/// The seccomp profile of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SeccompProfile {
    /// None (Kubernetes' default).
    #[default]
    Unconfined,
    /// The usual allow list of container runtimes.
    RuntimeDefault,
}

/// Limits and weights of one container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// CPU weight in thousandths of a CPU.
    pub cpu_request_millicores: Option<u64>,
    /// CPU quota in thousandths of a CPU.
    pub cpu_limit_millicores: Option<u64>,
    /// Memory limit in bytes.
    pub memory_limit_bytes: Option<u64>,
    /// Limit of processes and threads.
    pub pids_limit: Option<u64>,
}

/// A device node of the host that the container may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Path on the host.
    pub host_path: PathBuf,
    /// Path in the container.
    pub container_path: String,
    /// Of `r`, `w` and `m`.
    pub permissions: String,
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, process waiting to be started.
    Created,
    /// Started and not ended (also when paused).
    Running,
    /// Ended, or lost its process (exit code 255).
    Exited,
}

/// What is known about one container.
#[derive(Clone, Debug)]
pub struct ContainerStatus {
    /// The id.
    pub id: String,
    /// The sandbox's uid it was created with.
    pub pod_uid: String,
    /// The image reference it was created with.
    pub image: String,
    /// The image's id (config digest).
    pub image_id: String,
    /// The caller's labels.
    pub labels: BTreeMap<String, String>,
    /// When it was created.
    pub created_at: jiff::Timestamp,
    /// Where it is in its life.
    pub state: ContainerState,
    /// The process on the host, 0 when there is none.
    pub pid: u32,
    /// The exit code, 128 + signal for a signal, 255 when it is not known; set when exited.
    pub exit_code: Option<i32>,
    /// When the process was started, if it was.
    pub started_at: Option<jiff::Timestamp>,
    /// When it ended.
    pub finished_at: Option<jiff::Timestamp>,
    /// The kernel killed a process of it for want of memory.
    pub oom_killed: bool,
    /// Where it logs.
    pub log_path: PathBuf,
    /// It has a terminal.
    pub tty: bool,
    /// It has a stdin.
    pub stdin: bool,
    /// The signal that asks it to end, as a number.
    pub stop_signal: i32,
}
