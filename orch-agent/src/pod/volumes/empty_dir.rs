//! A directory that lives as long as the pod, on disk or in memory.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use k8s_openapi::api::core::v1::EmptyDirVolumeSource;

use super::{VolumeError, mount, ownership};
use crate::pod::quantity;

pub(super) async fn set_up(
    source: &EmptyDirVolumeSource,
    dir: &Path,
    group: Option<i64>,
) -> Result<(), VolumeError> {
    let in_memory = match source.medium.as_deref() {
        None | Some("") => false,
        Some("Memory") => true,
        Some(medium) => {
            let name = dir
                .file_name()
                .map(|n| n.to_string_lossy().into_owned())
                .unwrap_or_default();
            return Err(VolumeError::Unsupported {
                name,
                kind: format!("emptyDir with medium {medium}"),
            });
        }
    };
    let size = source
        .size_limit
        .as_ref()
        .map(quantity::whole)
        .transpose()?
        .filter(|n| *n > 0);
    let dir = dir.to_owned();
    let path = dir.clone();
    tokio::task::spawn_blocking(move || {
        // Its content belongs to the containers: what is there already is left as it is.
        if dir.exists() && (!in_memory || mount::is_mount(&dir)?) {
            return Ok(());
        }
        fs::create_dir_all(&dir).map_err(VolumeError::io("create", &dir))?;
        if in_memory {
            mount::tmpfs(&dir, size.and_then(|n| u64::try_from(n).ok()))?;
        }
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777))
            .map_err(VolumeError::io("set permissions of", &dir))?;
        group.map_or(Ok(()), |gid| ownership::apply(&dir, gid, false))
    })
    .await
    .unwrap_or_else(|e| Err(VolumeError::io("make", &path)(std::io::Error::other(e))))
}
