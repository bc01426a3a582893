//! Which capabilities a container gets.

use super::types::Capabilities;
use crate::ContainerSpec;

/// All capabilities in the order of their numbers (linux/capability.h, capabilities(7)).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What containers get unless they ask for something else (the documented default of Docker and containerd).
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The set for a container, or what is wrong with it. `permitted` are those that we may hand on: "all" can
/// mean no more than these.
pub(super) fn of(spec: &ContainerSpec, permitted: u64) -> Result<Capabilities, String> {
    let all = || {
        let ours = NAMES
            .iter()
            .enumerate()
            .filter(|(bit, _)| permitted & (1 << bit) != 0);
        ours.map(|(_, name)| *name).collect::<Vec<_>>()
    };
    let mut set = if spec.privileged { all() } else { DEFAULT.to_vec() };
    let asked = |names: &[String]| names.iter().map(|name| find(name)).collect::<Result<Vec<_>, _>>();
    let (add, drop) = (asked(&spec.add_capabilities)?, asked(&spec.drop_capabilities)?);
    // First everything or nothing, then the named ones, so that `drop: [ALL], add: [X]` leaves X.
    if add.contains(&None) {
        set = all();
    }
    if drop.contains(&None) {
        set.clear();
    }
    for name in add.into_iter().flatten() {
        if !set.contains(&name) {
            set.push(name);
        }
    }
    for name in drop.into_iter().flatten() {
        set.retain(|have| *have != name);
    }
    let names: Vec<String> = set.into_iter().map(|name| format!("CAP_{name}")).collect();
    Ok(Capabilities {
        bounding: names.clone(),
        effective: names.clone(),
        permitted: names,
    })
}

/// `None` for all of them.
fn find(name: &str) -> Result<Option<&'static str>, String> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if bare == "ALL" {
        return Ok(None);
    }
    match NAMES.iter().find(|known| **known == bare) {
        Some(known) => Ok(Some(known)),
        None => Err(format!("unknown capability \"{name}\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(add: &[&str], drop: &[&str], privileged: bool) -> Result<Vec<String>, String> {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let spec = ContainerSpec {
            add_capabilities: owned(add),
            drop_capabilities: owned(drop),
            privileged,
            ..ContainerSpec::default()
        };
        of(&spec, 0b11).map(|c| c.bounding)
    }

    #[test]
    fn additions_and_drops_combine() {
        assert_eq!(set(&[], &[], false).unwrap().len(), 14);
        assert_eq!(set(&["NET_ADMIN"], &["ALL"], false).unwrap(), ["CAP_NET_ADMIN"]);
        assert_eq!(set(&["ALL"], &["CHOWN"], false).unwrap(), ["CAP_DAC_OVERRIDE"]);
        assert_eq!(set(&[], &[], true).unwrap(), ["CAP_CHOWN", "CAP_DAC_OVERRIDE"]);
        assert!(
            !set(&[], &["cap_net_raw"], false)
                .unwrap()
                .contains(&"CAP_NET_RAW".to_owned())
        );
        assert!(set(&["FLY"], &[], false).unwrap_err().contains("FLY"));
    }
}
