//! What is mounted where in a container.

use super::types::Mount;
use crate::{ContainerSpec, MountKind, MountSpec, Propagation};

/// Hidden from containers: they tell of the machine or reach out of the container.
pub(super) const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Readable only.
pub(super) const READONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// All mounts of a container in the order in which they are made.
pub(super) fn of(spec: &ContainerSpec) -> Vec<Mount> {
    let mut mounts = defaults(spec);
    let destination = |mount: &MountSpec| mount.destination.trim_end_matches('/').to_owned();
    mounts.retain(|default| {
        !spec
            .mounts
            .iter()
            .any(|own| destination(own) == default.destination)
    });
    let mut own: Vec<&MountSpec> = spec.mounts.iter().collect();
    // What lies deeper comes later, or it would be hidden.
    own.sort_by_key(|mount| {
        mount
            .destination
            .split('/')
            .filter(|part| !part.is_empty())
            .count()
    });
    mounts.extend(own.into_iter().map(convert));
    mounts
}

/// How the root file system's mounts must be shared for the mounts in it to be as asked.
pub(super) fn rootfs_propagation(spec: &ContainerSpec) -> Option<String> {
    let any = |wanted| spec.mounts.iter().any(|mount| mount.propagation == wanted);
    if any(Propagation::Bidirectional) {
        Some("rshared".to_owned())
    } else if any(Propagation::HostToContainer) {
        Some("rslave".to_owned())
    } else {
        None
    }
}

fn defaults(spec: &ContainerSpec) -> Vec<Mount> {
    let access = if spec.privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", access],
        ),
    ];
    // Containers that share an IPC namespace share its memory files as well.
    let shm = match (&spec.sandbox.shm, &spec.sandbox.ipc) {
        (Some(shm), _) => shm.display().to_string(),
        (None, None) => "/dev/shm".to_owned(),
        (None, Some(_)) => {
            mounts.push(mount(
                "/dev/shm",
                "tmpfs",
                "shm",
                &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
            ));
            return mounts;
        }
    };
    mounts.push(mount("/dev/shm", "bind", &shm, &["rbind", "rprivate", "rw"]));
    mounts
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.to_owned(),
        kind: kind.to_owned(),
        source: source.to_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    }
}

fn convert(spec: &MountSpec) -> Mount {
    let access = if spec.readonly { "ro" } else { "rw" };
    match spec.kind {
        MountKind::Bind => {
            let propagation = match spec.propagation {
                Propagation::Private => "rprivate",
                Propagation::HostToContainer => "rslave",
                Propagation::Bidirectional => "rshared",
            };
            let source = spec.source.display().to_string();
            mount(
                &spec.destination,
                "bind",
                &source,
                &["rbind", propagation, access],
            )
        }
        MountKind::Tmpfs { size } => {
            let mut tmpfs = mount(
                &spec.destination,
                "tmpfs",
                "tmpfs",
                &["nosuid", "nodev", "mode=1777", access],
            );
            if size > 0 {
                tmpfs.options.push(format!("size={size}"));
            }
            tmpfs
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_mounts_replace_defaults_and_nest() {
        let at = |destination: &str| MountSpec {
            source: "/x".into(),
            destination: destination.to_owned(),
            readonly: false,
            propagation: Propagation::Private,
            kind: MountKind::Bind,
        };
        let spec = ContainerSpec {
            mounts: vec![at("/data/deep/er"), at("/dev/shm/"), at("/data")],
            ..ContainerSpec::default()
        };
        let places: Vec<String> = of(&spec).into_iter().map(|m| m.destination).collect();
        assert_eq!(
            places
                .iter()
                .filter(|p| p.trim_end_matches('/') == "/dev/shm")
                .count(),
            1
        );
        let position = |wanted: &str| places.iter().position(|p| p == wanted);
        assert!(position("/data") < position("/data/deep/er"));
        assert_eq!(places[0], "/proc");
    }
}
