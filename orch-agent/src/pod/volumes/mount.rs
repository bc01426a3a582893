//! Mounts below a pod's directory: made once, found in the kernel's table, all removed with the pod.

use std::{
    fs,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::VolumeError;

/// Mounts a tmpfs of at most `size` bytes on `dir`, unless something is mounted there already.
///
/// # Errors
/// When the kernel refuses.
pub fn tmpfs(dir: &Path, size: Option<u64>) -> Result<(), VolumeError> {
    if is_mount(dir)? {
        return Ok(());
    }
    let options = size.map(|n| format!("size={n}"));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), dir, Some("tmpfs"), flags, options.as_deref())
        .map_err(VolumeError::io("mount a tmpfs on", dir))
}

/// Binds `source` on `target`, which must exist.
///
/// # Errors
/// When the kernel refuses.
pub fn bind(source: &Path, target: &Path) -> Result<(), VolumeError> {
    mount(
        Some(source),
        target,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .map_err(VolumeError::io("bind a mount on", target))
}

/// Whether something is mounted on exactly this path.
///
/// # Errors
/// When the kernel's table cannot be read.
pub fn is_mount(path: &Path) -> Result<bool, VolumeError> {
    Ok(below(path)?.iter().any(|p| p == path))
}

/// The mount points at and below `dir`, the newest first.
///
/// # Errors
/// When the kernel's table cannot be read.
pub fn below(dir: &Path) -> Result<Vec<PathBuf>, VolumeError> {
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read(table).map_err(VolumeError::io("read", table))?;
    // The mount point is the fifth field (proc_pid_mountinfo(5)).
    let points = text
        .split(|b| *b == b'\n')
        .filter_map(|l| l.split(|b| *b == b' ').nth(4))
        .map(unescape);
    let mut out: Vec<PathBuf> = points.filter(|p| p.starts_with(dir)).collect();
    out.reverse();
    Ok(out)
}

/// Undoes the table's octal escapes of blanks and backslashes.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut i = 0;
    while i < field.len() {
        let octal = field
            .get(i + 1..i + 4)
            .filter(|o| field[i] == b'\\' && o.iter().all(|b| (b'0'..=b'7').contains(b)));
        if let Some(octal) = octal {
            out.push(
                octal
                    .iter()
                    .fold(0u8, |n, b| n.wrapping_mul(8).wrapping_add(b - b'0')),
            );
            i += 4;
        } else {
            out.push(field[i]);
            i += 1;
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

/// Unmounts everything at and below `dir` and then removes it; fine when it is not there.
///
/// # Errors
/// When a mount stays: then nothing is removed, since the files may be somebody else's.
pub fn remove(dir: &Path) -> Result<(), VolumeError> {
    for point in below(dir)? {
        umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(VolumeError::io("unmount", &point))?;
    }
    if let Some(left) = below(dir)?.first() {
        return Err(VolumeError::io("unmount", left)(
            std::io::Error::from_raw_os_error(libc::EBUSY),
        ));
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(VolumeError::io("remove", dir)(error))
        }
        _ => Ok(()),
    }
}
