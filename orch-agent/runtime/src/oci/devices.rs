//! Device nodes in a container and what may be done with them.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::types::{Device, DeviceRule};
use crate::ContainerSpec;

/// The nodes to make and the rules to set. The OCI runtime adds `/dev/null` and its kin by itself.
pub(super) fn of(spec: &ContainerSpec) -> Result<(Vec<Device>, Vec<DeviceRule>), String> {
    let all = |allow| DeviceRule {
        allow,
        kind: None,
        major: None,
        minor: None,
        access: "rwm".to_owned(),
    };
    if spec.privileged {
        let mut devices = Vec::new();
        collect(Path::new("/dev"), &mut devices);
        return Ok((devices, vec![all(true)]));
    }
    let mut devices = Vec::new();
    let mut rules = vec![all(false)];
    for wanted in &spec.devices {
        let device = read(&wanted.host_path, &wanted.container_path)
            .ok_or_else(|| format!("{} is not a device", wanted.host_path.display()))?;
        rules.push(DeviceRule {
            allow: true,
            kind: Some(device.kind.clone()),
            major: Some(device.major),
            minor: Some(device.minor),
            access: wanted.permissions.clone(),
        });
        devices.push(device);
    }
    Ok((devices, rules))
}

/// All device nodes below a directory, without those that a container has instances of its own of.
fn collect(dir: &Path, devices: &mut Vec<Device>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let (path, Ok(kind)) = (entry.path(), entry.file_type()) else {
            continue;
        };
        let own = [
            "/dev/pts",
            "/dev/shm",
            "/dev/mqueue",
            "/dev/fd",
            "/dev/console",
            "/dev/ptmx",
        ];
        if own.iter().any(|skip| path == Path::new(skip)) {
            continue;
        }
        if kind.is_dir() {
            collect(&path, devices);
        } else if let Some(device) = path.to_str().and_then(|text| read(&path, text)) {
            devices.push(device);
        }
    }
}

fn read(host: &Path, inside: &str) -> Option<Device> {
    // A link found in /dev is another node's second name.
    let metadata = fs::symlink_metadata(host).ok()?;
    let kind = match metadata.file_type() {
        t if t.is_block_device() => "b",
        t if t.is_char_device() => "c",
        _ => return None,
    };
    Some(Device {
        path: inside.to_owned(),
        kind: kind.to_owned(),
        major: i64::from(libc::major(metadata.rdev())),
        minor: i64::from(libc::minor(metadata.rdev())),
        file_mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    })
}
