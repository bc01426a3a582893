//! `fsGroup`: the group that owns a volume's files.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, lchown},
    path::Path,
};

use super::VolumeError;

/// Gives everything below `dir` to the group; readable, and writable unless `readonly`. New files inherit it.
///
/// # Errors
/// When the group is no group id or the file system refuses.
pub fn apply(dir: &Path, gid: i64, readonly: bool) -> Result<(), VolumeError> {
    let group = u32::try_from(gid).map_err(|_| {
        VolumeError::io("use the fsGroup of", dir)(std::io::Error::from_raw_os_error(libc::EINVAL))
    })?;
    walk(dir, group, if readonly { 0o440 } else { 0o660 })
}

fn walk(path: &Path, group: u32, bits: u32) -> Result<(), VolumeError> {
    let found = fs::symlink_metadata(path).map_err(VolumeError::io("look at", path))?;
    lchown(path, None, Some(group)).map_err(VolumeError::io("change group of", path))?;
    if found.is_symlink() {
        return Ok(());
    }
    let directory = if found.is_dir() { 0o2110 } else { 0 };
    let mode = found.permissions().mode() | bits | directory;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(VolumeError::io("set permissions of", path))?;
    if found.is_dir() {
        for entry in fs::read_dir(path).map_err(VolumeError::io("read", path))? {
            walk(&entry.map_err(VolumeError::io("read", path))?.path(), group, bits)?;
        }
    }
    Ok(())
}
