//! The kernel's settings of the calling thread's network namespace.

use std::{fs, path::Path};

use crate::DataplaneError;

/// Writes a setting, named by its path below `/proc/sys`.
///
/// # Errors
/// When the kernel refuses.
pub fn set(name: &str, value: &str) -> Result<(), DataplaneError> {
    let path = Path::new("/proc/sys").join(name);
    fs::write(&path, value).map_err(|source| DataplaneError::File {
        action: "write",
        path,
        source,
    })
}

/// Reads a setting; `None` when the kernel has none of this name.
#[must_use]
pub fn get(name: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
    Some(text.trim_end().to_owned())
}

/// Writes a setting unless it is so already: for those whose writing has effects.
///
/// # Errors
/// When the kernel refuses.
pub fn make(name: &str, value: &str) -> Result<(), DataplaneError> {
    if get(name).as_deref() == Some(value) {
        return Ok(());
    }
    set(name, value)
}

/// Keeps the kernel from speaking IPv6 of its own accord on an interface that needs no address: no link-local address,
/// no routers asked or believed, no membership of the routers' groups reported. Packets are forwarded all the same,
/// which is a setting of the whole namespace. Where the kernel has no IPv6 nothing needs to be done.
pub fn silence_ipv6(interface: &str) {
    // IN6_ADDR_GEN_MODE_NONE (linux/if_link.h).
    for (name, value) in [
        ("addr_gen_mode", "1"),
        ("accept_ra", "0"),
        ("accept_dad", "0"),
        ("forwarding", "0"),
    ] {
        let _ = set(&format!("net/ipv6/conf/{interface}/{name}"), value);
    }
}
