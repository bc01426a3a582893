//! A pod's volumes below `ROOT/pods/UID/volumes`: made before the first container, kept fresh, removed with the pod.
//!
//! ConfigMaps, Secrets and projected volumes are read again every minute and when the pod's own labels or
//! annotations change; a change is swapped in atomically. Kinds that need a driver (claims, NFS, CSI, …) are refused
//! with a `FailedMount` event, and the pod waits.

mod config_map;
mod downward;
mod empty_dir;
mod host_path;
pub mod mount;
pub mod ownership;
pub mod payload;
mod projected;
mod secret;
pub mod subpath;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{KeyToPath, Pod, Volume};
use parking_lot::Mutex;

use super::{
    context::Context,
    fields::FieldError,
    id::Paths,
    objects::{ObjectError, Token},
};
use payload::Payload;

/// Why a volume is not there.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A ConfigMap, Secret or token could not be read.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// An item names a key that is not there.
    #[error("references non-existent {0} key: {1}")]
    Key(&'static str, String),
    /// A downward API field cannot be resolved.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// A file or mount operation failed.
    #[error("failed to {action} {path}: {source}")]
    Io {
        /// The operation.
        action: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A path in the pod's spec leaves its volume or is absolute.
    #[error("path {0:?} must be relative and must not contain '..'")]
    Path(String),
    /// A host path is not of the type asked for.
    #[error("hostPath type check failed: {path} is not {wanted}")]
    HostPath {
        /// The path.
        path: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// A kind of volume that this agent cannot mount.
    #[error("volume \"{name}\" is of a kind that this node does not support: {kind}")]
    Unsupported {
        /// The volume's name.
        name: String,
        /// The kind's field in the API.
        kind: String,
    },
    /// A quantity does not parse.
    #[error(transparent)]
    Quantity(#[from] super::quantity::QuantityError),
}

impl VolumeError {
    /// For `map_err` on file operations.
    pub(crate) fn io<E: Into<std::io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source: source.into(),
        }
    }
}

/// What is remembered about one pod's volumes between refreshes: tokens, by volume and path.
#[derive(Default)]
pub struct Memory {
    tokens: Mutex<HashMap<(String, String), Token>>,
}

/// Makes one volume or brings it up to date.
///
/// # Errors
/// When anything it needs is missing; nothing is left half written.
pub async fn set_up(
    context: &Context,
    pod: &Pod,
    volume: &Volume,
    memory: &Memory,
) -> Result<(), VolumeError> {
    let dir = context.paths(pod).volume(&volume.name);
    let group = pod
        .spec
        .as_ref()
        .and_then(|s| s.security_context.as_ref())
        .and_then(|s| s.fs_group);
    let (payload, in_memory) = if let Some(source) = &volume.empty_dir {
        return empty_dir::set_up(source, &dir, group).await;
    } else if let Some(source) = &volume.host_path {
        return host_path::check(source).await;
    } else if let Some(source) = &volume.config_map {
        (config_map::payload(context, pod, source).await?, false)
    } else if let Some(source) = &volume.secret {
        (secret::payload(context, pod, source).await?, true)
    } else if let Some(source) = &volume.projected {
        (
            projected::payload(context, pod, &volume.name, source, memory).await?,
            true,
        )
    } else if let Some(source) = &volume.downward_api {
        let mode = source.default_mode;
        (
            downward::payload(context, pod, source.items.as_deref().unwrap_or_default(), mode)?,
            false,
        )
    } else {
        return Err(VolumeError::Unsupported {
            name: volume.name.clone(),
            kind: kind(volume),
        });
    };
    let payload = owned(payload, pod, group);
    tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&dir).map_err(VolumeError::io("create", &dir))?;
        if in_memory {
            mount::tmpfs(&dir, None)?;
        }
        payload::write(&dir, &payload)?;
        group.map_or(Ok(()), |gid| ownership::apply(&dir, gid, true))
    })
    .await
    .unwrap_or_else(|e| {
        Err(VolumeError::io("write", Path::new(&volume.name))(
            std::io::Error::other(e),
        ))
    })
}

/// A token that only its owner may read is made readable for a container that runs as somebody else.
fn owned(mut payload: Payload, pod: &Pod, group: Option<i64>) -> Payload {
    let Some(spec) = &pod.spec else { return payload };
    let pod_user = spec.security_context.as_ref().and_then(|s| s.run_as_user);
    let mut users = (spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten()))
    .map(|c| {
        c.security_context
            .as_ref()
            .and_then(|s| s.run_as_user)
            .or(pod_user)
    });
    let first = users.next().flatten();
    let same = first.is_some() && users.all(|u| u == first);
    for file in payload.values_mut().filter(|f| f.private) {
        file.mode = match (group, same) {
            (Some(_), _) => 0o600,
            (None, true) => {
                file.uid = first.and_then(|u| u32::try_from(u).ok());
                0o600
            }
            (None, false) => 0o644,
        };
    }
    payload
}

/// The name of the field that says of which kind a volume is.
fn kind(volume: &Volume) -> String {
    match serde_json::to_value(volume) {
        Ok(serde_json::Value::Object(map)) => map
            .keys()
            .find(|k| *k != "name")
            .cloned()
            .unwrap_or_else(|| "none".to_owned()),
        _ => "unknown".to_owned(),
    }
}

/// Where a volume is on the host.
#[must_use]
pub fn source(paths: &Paths, volume: &Volume) -> PathBuf {
    match &volume.host_path {
        Some(host) => PathBuf::from(&host.path),
        None => paths.volume(&volume.name),
    }
}

/// Picks `items` out of `data`, or takes everything.
fn pick(
    kind: &'static str,
    data: impl Iterator<Item = (String, Vec<u8>)>,
    items: Option<&[KeyToPath]>,
    default_mode: Option<i32>,
    optional: bool,
) -> Result<Payload, VolumeError> {
    let mode = |m: Option<i32>| {
        m.or(default_mode)
            .and_then(|m| u32::try_from(m).ok())
            .unwrap_or(0o644)
            & 0o777
    };
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        return Ok(data
            .map(|(key, bytes)| (key, payload::File::new(bytes, mode(None))))
            .collect());
    };
    let mut data: HashMap<String, Vec<u8>> = data.collect();
    let mut out = Payload::new();
    for item in items {
        // A key may be projected to several paths.
        match data.get_mut(&item.key) {
            Some(bytes) => {
                out.insert(
                    item.path.clone(),
                    payload::File::new(bytes.clone(), mode(item.mode)),
                );
            }
            None if optional => {}
            None => return Err(VolumeError::Key(kind, item.key.clone())),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
