//! Where programs are attached, and how a new agent swaps them without a packet in between.

use std::{
    fs,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use crate::{
    DataplaneError,
    sys::{self, AttachType, Target},
};

/// Where the links are pinned.
#[must_use]
pub fn folder(bpf_root: &Path) -> PathBuf {
    bpf_root.join("links")
}

/// Makes the link pinned at `pin` run `program`: an existing one is swapped at one instant, else one is made.
///
/// # Errors
/// When the kernel refuses to attach or to pin.
pub fn attach(
    pin: &Path,
    target: Target<'_>,
    attach_type: AttachType,
    program: BorrowedFd<'_>,
) -> Result<(), DataplaneError> {
    if let Ok(link) = sys::open_pinned(pin) {
        match sys::link_update(link.as_fd(), program) {
            Ok(()) => return Ok(()),
            // The interface or cgroup has gone since: the pin holds nothing.
            Err(_) => remove(pin)?,
        }
    }
    let link = sys::link_create(program, target, attach_type).map_err(|source| DataplaneError::Syscall {
        call: format!("attach {attach_type:?} for {}", pin.display()),
        source,
    })?;
    sys::pin(link.as_fd(), pin).map_err(|source| DataplaneError::Syscall {
        call: format!("pin {}", pin.display()),
        source,
    })
}

/// Removes a pin, and with it the attachment.
///
/// # Errors
/// When it exists and cannot be removed.
pub fn remove(pin: &Path) -> Result<(), DataplaneError> {
    match fs::remove_file(pin) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(DataplaneError::File {
            action: "remove",
            path: pin.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}
