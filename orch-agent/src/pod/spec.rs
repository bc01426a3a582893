//! From a container in the API to what the runtime is told.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};
use orch_runtime::{ContainerSpec, ImageInfo, MountKind, MountSpec, Propagation, Resources, Sandbox};

use super::{
    context::Context,
    expand::expand,
    files, id,
    id::Paths,
    resources::{self, Qos},
    security::{self, SecurityError},
    volumes::{self, VolumeError, subpath},
};

/// Why a container cannot be described.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Its security context.
    #[error(transparent)]
    Security(#[from] SecurityError),
    /// A mount of a volume.
    #[error("failed to prepare mount of volume \"{volume}\" at {path}: {source}")]
    Mount {
        /// The volume.
        volume: String,
        /// Where it is mounted.
        path: String,
        /// Why not.
        source: VolumeError,
    },
    /// A mount names a volume that the pod does not have.
    #[error("volume \"{0}\" not found in pod")]
    NoVolume(String),
    /// A file of the container could not be made.
    #[error("failed to create {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Block devices need a volume kind that this agent does not have.
    #[error("volumeDevices are not supported by this node")]
    Devices,
}

/// What a description is made of beside the pod itself.
pub struct Inputs<'a> {
    /// Shared by all pods.
    pub context: &'a Context,
    /// The image as it is on the node.
    pub image: &'a ImageInfo,
    /// The environment.
    pub env: Vec<(String, String)>,
    /// The pod's namespaces.
    pub sandbox: Sandbox,
    /// The pod's address.
    pub ip: Option<IpAddr>,
    /// The id of the run.
    pub id: String,
    /// Its number.
    pub attempt: u32,
}

/// Describes one run of `container`, making the files it mounts.
///
/// # Errors
/// When something in the spec cannot be carried out.
pub fn describe(pod: &Pod, container: &Container, inputs: Inputs<'_>) -> Result<ContainerSpec, SpecError> {
    let config = &inputs.context.config;
    let paths = inputs.context.paths(pod);
    let pod_spec = pod.spec.clone().unwrap_or_default();
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    if container.volume_devices.as_ref().is_some_and(|d| !d.is_empty()) {
        return Err(SpecError::Devices);
    }
    let lookup = |name: &str| {
        inputs
            .env
            .iter()
            .rev()
            .find(|(k, _)| k == name)
            .map(|(_, v)| v.as_str())
    };
    let expanded = |list: &Option<Vec<String>>| {
        list.as_ref()
            .filter(|l| !l.is_empty())
            .map(|l| l.iter().map(|t| expand(t, lookup)).collect())
    };
    let hostname = files::hostname(pod, &config.node_name, &config.cluster_domain).kernel;
    let resources = resources::Resources::of(container);
    let unsigned = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok());
    let mut spec = ContainerSpec {
        id: inputs.id.clone(),
        image: container.image.clone().unwrap_or_default(),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone().filter(|d| !d.is_empty()),
        mounts: mounts(pod, container, &paths, inputs.attempt, lookup)?,
        sandbox: inputs.sandbox.clone(),
        host_network: pod_spec.host_network == Some(true),
        host_pid: pod_spec.host_pid == Some(true),
        hostname,
        resources: Resources {
            cpu_request_millicores: unsigned(resources.cpu_request),
            cpu_limit_millicores: unsigned(resources.cpu_limit),
            memory_limit_bytes: unsigned(resources.memory_limit),
            pids_limit: None,
        },
        oom_score_adj: Some(resources::oom_score_adj(pod, container, config.memory_bytes)),
        cgroup_parent: resources::cgroup_parent(Qos::of(pod), &uid),
        log_path: paths.log(&container.name, inputs.attempt),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        stop_signal: container.lifecycle.as_ref().and_then(|l| l.stop_signal.clone()),
        labels: id::labels(pod, container, inputs.attempt),
        pod_uid: uid,
        ..Default::default()
    };
    security::apply(pod, container, inputs.image, &mut spec)?;
    spec.env = inputs.env;
    Ok(spec)
}

fn mounts<'a>(
    pod: &Pod,
    container: &Container,
    paths: &Paths,
    attempt: u32,
    lookup: impl Fn(&str) -> Option<&'a str>,
) -> Result<Vec<MountSpec>, SpecError> {
    let bind = |source: PathBuf, destination: &str, readonly| MountSpec {
        source,
        destination: destination.to_owned(),
        readonly,
        propagation: Propagation::Private,
        kind: MountKind::Bind,
    };
    let wanted = container.volume_mounts.as_deref().unwrap_or_default();
    let mut out = Vec::new();
    for name in ["hosts", "resolv.conf", "hostname"] {
        let destination = format!("/etc/{name}");
        if !wanted.iter().any(|m| m.mount_path == destination) {
            out.push(bind(paths.etc(name), &destination, false));
        }
    }
    let message = paths.message(&container.name, attempt);
    message_file(&message).map_err(|source| SpecError::File {
        path: message.clone(),
        source,
    })?;
    let destination = container
        .termination_message_path
        .as_deref()
        .filter(|p| !p.is_empty());
    out.push(bind(
        message,
        destination.unwrap_or("/dev/termination-log"),
        false,
    ));
    for (index, mount) in wanted.iter().enumerate() {
        out.push(one_mount(pod, container, paths, index, mount, &lookup)?);
    }
    Ok(out)
}

/// The file a container writes its termination message to; any user may.
fn message_file(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::File::create(path)?.set_permissions(std::fs::Permissions::from_mode(0o666))
}

fn one_mount<'a>(
    pod: &Pod,
    container: &Container,
    paths: &Paths,
    index: usize,
    mount: &VolumeMount,
    lookup: &impl Fn(&str) -> Option<&'a str>,
) -> Result<MountSpec, SpecError> {
    let volume = (pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()))
        .find(|v| v.name == mount.name)
        .ok_or_else(|| SpecError::NoVolume(mount.name.clone()))?;
    let mut source = volumes::source(paths, volume);
    let sub = match (&mount.sub_path, &mount.sub_path_expr) {
        (_, Some(text)) if !text.is_empty() => Some(expand(text, lookup)),
        (Some(text), _) if !text.is_empty() => Some(text.clone()),
        _ => None,
    };
    if let Some(sub) = sub {
        let target = paths
            .pod
            .join("subpaths")
            .join(&container.name)
            .join(format!("{index}-{}", volume.name));
        subpath::bind(&source, &sub, &target).map_err(|source| SpecError::Mount {
            volume: volume.name.clone(),
            path: mount.mount_path.clone(),
            source,
        })?;
        source = target;
    }
    // What the agent projects is never for the container to change.
    let projected = volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some();
    Ok(MountSpec {
        source,
        destination: mount.mount_path.clone(),
        readonly: mount.read_only == Some(true) || projected,
        propagation: match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => Propagation::HostToContainer,
            Some("Bidirectional") => Propagation::Bidirectional,
            _ => Propagation::Private,
        },
        kind: MountKind::Bind,
    })
}
