//! Where programs are attached, and how a new agent swaps them without a packet in between.

use std::{
    fs,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use aya::programs::{
    ProgramError, SchedClassifier, TcAttachType,
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact},
};

use crate::{
    DataplaneError,
    sys::{self, AttachType, Target},
};

/// Priority of our filters at an interface: nobody who lets the kernel choose gets this one.
const FILTER_PRIORITY: u16 = 0x6f72;
/// Their handle within the priority.
const FILTER_HANDLE: TcHandle = TcHandle::new(0, 1);

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

/// The way before tcx: a filter of tc, which lives as long as the interface. One that is there already gets the new
/// program at one instant.
///
/// # Errors
/// When the kernel refuses.
pub fn attach_filter(
    program: &mut SchedClassifier,
    name: &str,
    interface: &str,
    attach_type: AttachType,
) -> Result<(), DataplaneError> {
    let failed = |source: ProgramError| DataplaneError::Program {
        name: name.to_owned(),
        source: Box::new(source),
    };
    let direction = || match attach_type {
        AttachType::TcxEgress => TcAttachType::Egress,
        _ => TcAttachType::Ingress,
    };
    // Fails when it is there already, which is as good.
    let _ = qdisc_add_clsact(interface);
    let known = SchedClassifierLink::attached(interface, direction(), FILTER_PRIORITY, FILTER_HANDLE, None)
        .map_err(|source| DataplaneError::Syscall {
        call: format!("find interface {interface}"),
        source,
    })?;
    let options = NlOptions {
        priority: FILTER_PRIORITY,
        handle: FILTER_HANDLE,
        classid: None,
    };
    let link = match program.attach_to_link(known) {
        Ok(link) => link,
        // There is none to replace.
        Err(_) => program
            .attach_with_options(interface, direction(), TcAttachOptions::Netlink(options))
            .map_err(failed)?,
    };
    // Dropping the link would remove the filter, which must outlive this process.
    std::mem::forget(program.take_link(link).map_err(failed)?);
    Ok(())
}

/// Names of the pins in `folder` that start with `prefix`.
///
/// # Errors
/// When the folder cannot be read.
pub fn list(folder: &Path, prefix: &str) -> Result<Vec<String>, DataplaneError> {
    let failed = |source| DataplaneError::File {
        action: "list",
        path: folder.to_owned(),
        source,
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string()
            && name.starts_with(prefix)
        {
            names.push(name);
        }
    }
    Ok(names)
}

/// Removes a pin, and the attachment before it returns: by itself the kernel takes a while to let go of what is no longer
/// pinned, and an interface would refuse another program until then.
///
/// # Errors
/// When the pin exists and cannot be removed.
pub fn detach(pin: &Path) -> Result<(), DataplaneError> {
    if let Ok(link) = sys::open_pinned(pin) {
        // What cannot be detached goes with its pin.
        let _ = sys::link_detach(link.as_fd());
    }
    remove(pin)
}

/// Removes a pin, and with it the attachment, a while later.
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
