//! `subPath`: a part of a volume, resolved so that no link can lead out of it.
//!
//! The kernel resolves the path beneath the volume (`openat2` with `RESOLVE_BENEATH`), and what it found is bound to
//! a place of our own through its descriptor, so that the path is never walked a second time.

use std::{
    fs,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Component, Path},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2},
    sys::stat::{Mode, SFlag, fstat, mkdirat},
};

use super::{VolumeError, mount};

/// Binds `volume/sub` on `target`, making missing directories of `sub` first.
///
/// # Errors
/// When `sub` leaves the volume or the kernel refuses.
pub fn bind(volume: &Path, sub: &str, target: &Path) -> Result<(), VolumeError> {
    let found = resolve(volume, sub)?;
    let kind = fstat(&found).map_err(VolumeError::io("look at", &volume.join(sub)))?;
    if mount::is_mount(target)? {
        nix::mount::umount2(target, nix::mount::MntFlags::MNT_DETACH)
            .map_err(VolumeError::io("unmount", target))?;
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(VolumeError::io("create", parent))?;
    }
    if SFlag::from_bits_truncate(kind.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR {
        fs::create_dir_all(target).map_err(VolumeError::io("create", target))?;
    } else {
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(target)
            .map_err(VolumeError::io("create", target))?;
    }
    mount::bind(Path::new(&format!("/proc/self/fd/{}", found.as_raw_fd())), target)
}

/// Opens `volume/sub` without leaving the volume; missing directories are made.
fn resolve(volume: &Path, sub: &str) -> Result<OwnedFd, VolumeError> {
    let parts: Vec<Component<'_>> = Path::new(sub)
        .components()
        .filter(|c| *c != Component::CurDir)
        .collect();
    if !parts.iter().all(|c| matches!(c, Component::Normal(_))) {
        return Err(VolumeError::Path(sub.to_owned()));
    }
    let whole = volume.join(sub);
    let fail = |e: Errno| VolumeError::io("resolve", &whole)(e);
    let root = open(volume, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(fail)?;
    // As open to the container's user as the volume itself.
    let mode = Mode::from_bits_truncate(fstat(&root).map_err(fail)?.st_mode & 0o777);
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut done = std::path::PathBuf::new();
    let mut at = openat(&root, ".", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(fail)?;
    for part in parts {
        done.push(part);
        at = match openat2(&root, &done, how) {
            Err(Errno::ENOENT) => {
                // The parent was opened beneath the volume, and mkdirat follows no link in its last part.
                mkdirat(&at, Path::new(&part), mode).map_err(fail)?;
                openat2(&root, &done, how).map_err(fail)?
            }
            other => other.map_err(fail)?,
        };
    }
    Ok(at)
}
