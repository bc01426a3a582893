//! From what a caller asks for and what an image says to an OCI runtime configuration.

mod capabilities;
mod devices;
mod mounts;
mod seccomp;
pub(crate) mod types;
pub(crate) mod user;

use crate::cgroup::{CPU_PERIOD_US, cpu_quota, cpu_shares};
use crate::{ContainerSpec, ImageInfo, SeccompProfile};
use types::{Cpu, Linux, Memory, Namespace, Pids, Process, Resources, Root, Spec, User};

/// What the machine adds to a configuration.
pub(crate) struct Machine {
    /// Where the container's cgroup is, absolute within each hierarchy.
    pub(crate) cgroups_path: String,
    /// The machine has cgroup v2 only.
    pub(crate) cgroup_v2: bool,
    /// Capabilities that we may hand on.
    pub(crate) permitted_capabilities: u64,
    /// Our own OOM score adjustment.
    pub(crate) oom_score_adj: i32,
}

/// The search path of images that do not set one.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// CAP_SYS_RESOURCE of capabilities(7): with it an OOM score may be lowered.
const CAP_SYS_RESOURCE: u32 = 24;

/// Builds the configuration, or says what is wrong with the request.
pub(crate) fn build(
    spec: &ContainerSpec,
    image: &ImageInfo,
    user: User,
    machine: &Machine,
) -> Result<Spec, String> {
    let capabilities = capabilities::of(spec, machine.permitted_capabilities)?;
    let seccomp = match spec.seccomp {
        SeccompProfile::RuntimeDefault if !spec.privileged => {
            Some(seccomp::runtime_default(&capabilities.bounding))
        }
        _ => None,
    };
    let (devices, device_rules) = devices::of(spec)?;
    let may_lower = machine.permitted_capabilities & (1 << CAP_SYS_RESOURCE) != 0;
    let lowest = if may_lower { -1000 } else { machine.oom_score_adj };
    let cwd = [spec.working_dir.as_deref(), Some(image.working_dir.as_str())]
        .into_iter()
        .flatten()
        .find(|dir| !dir.is_empty())
        .unwrap_or("/");
    if !cwd.starts_with('/') {
        return Err(format!("working directory \"{cwd}\" is not absolute"));
    }
    let paths = |own: &Option<Vec<String>>, usual: &[&str]| match own {
        _ if spec.privileged => Vec::new(),
        Some(own) => own.clone(),
        None => usual.iter().map(|path| (*path).to_owned()).collect(),
    };
    Ok(Spec {
        oci_version: types::VERSION.to_owned(),
        process: Process {
            terminal: spec.tty,
            console_size: None,
            user,
            args: arguments(spec, image)?,
            env: environment(spec, image),
            cwd: cwd.to_owned(),
            capabilities,
            no_new_privileges: spec.no_new_privileges,
            oom_score_adj: spec
                .oom_score_adj
                .map(|wanted| wanted.clamp(-1000, 1000).max(lowest)),
        },
        root: Root {
            path: "rootfs".to_owned(),
            readonly: spec.readonly_rootfs,
        },
        mounts: mounts::of(spec),
        linux: Linux {
            namespaces: namespaces(spec, machine),
            cgroups_path: machine.cgroups_path.clone(),
            resources: Resources {
                devices: device_rules,
                ..resources(spec, machine)
            },
            devices,
            seccomp,
            rootfs_propagation: mounts::rootfs_propagation(spec),
            masked_paths: paths(&spec.masked_paths, &mounts::MASKED),
            readonly_paths: paths(&spec.readonly_paths, &mounts::READONLY),
        },
    })
}

/// Kubernetes' rule: a command replaces the entrypoint and drops the image's cmd; args replace the cmd.
fn arguments(spec: &ContainerSpec, image: &ImageInfo) -> Result<Vec<String>, String> {
    let given = |list: &Option<Vec<String>>| list.clone().filter(|list| !list.is_empty());
    let args = match (given(&spec.command), given(&spec.args)) {
        (Some(command), args) => [command, args.unwrap_or_default()].concat(),
        (None, Some(args)) => [image.entrypoint.clone(), args].concat(),
        (None, None) => [image.entrypoint.clone(), image.cmd.clone()].concat(),
    };
    if args.is_empty() {
        return Err("no command specified".to_owned());
    }
    Ok(args)
}

fn environment(spec: &ContainerSpec, image: &ImageInfo) -> Vec<String> {
    let mut env: Vec<(&str, &str)> = vec![("PATH", DEFAULT_PATH)];
    if spec.tty {
        env.push(("TERM", "xterm"));
    }
    let mut set = |name, value| match env.iter_mut().find(|(have, _)| *have == name) {
        Some(entry) => entry.1 = value,
        None => env.push((name, value)),
    };
    for (name, value) in &image.env {
        set(name, value);
    }
    if !spec.hostname.is_empty() {
        set("HOSTNAME", &spec.hostname);
    }
    for (name, value) in &spec.env {
        set(name, value);
    }
    env.into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

fn namespaces(spec: &ContainerSpec, machine: &Machine) -> Vec<Namespace> {
    let mut namespaces = vec![Namespace {
        kind: "mount".to_owned(),
        path: None,
    }];
    let mut join = |kind: &str, path: Option<std::path::PathBuf>| {
        namespaces.push(Namespace {
            kind: kind.to_owned(),
            path,
        });
    };
    match spec.join_pid {
        _ if spec.host_pid => {}
        Some(pid) => join("pid", Some(format!("/proc/{pid}/ns/pid").into())),
        None => join("pid", None),
    }
    for (kind, path) in [
        ("network", &spec.sandbox.net),
        ("ipc", &spec.sandbox.ipc),
        ("uts", &spec.sandbox.uts),
    ] {
        if path.is_some() {
            join(kind, path.clone());
        }
    }
    if machine.cgroup_v2 && !spec.privileged {
        join("cgroup", None);
    }
    namespaces
}

fn resources(spec: &ContainerSpec, machine: &Machine) -> Resources {
    let limits = &spec.resources;
    let quota = limits
        .cpu_limit_millicores
        .filter(|limit| *limit > 0)
        .map(cpu_quota);
    Resources {
        cpu: Some(Cpu {
            shares: Some(cpu_shares(limits.cpu_request_millicores.unwrap_or(0))),
            quota,
            period: quota.map(|_| CPU_PERIOD_US),
        }),
        // Without a limit of its own, swap would let a container have twice its memory.
        memory: limits
            .memory_limit_bytes
            .filter(|limit| *limit > 0)
            .map(|limit| Memory {
                limit,
                swap: machine.cgroup_v2.then_some(limit),
            }),
        pids: limits
            .pids_limit
            .filter(|limit| *limit > 0)
            .map(|limit| Pids { limit }),
        ..Resources::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn machine() -> Machine {
        Machine {
            cgroups_path: "/orch/p/c".to_owned(),
            cgroup_v2: false,
            permitted_capabilities: !(1 << CAP_SYS_RESOURCE),
            oom_score_adj: 100,
        }
    }

    #[test]
    fn commands_merge_as_in_kubernetes() {
        let image = ImageInfo {
            entrypoint: words("/e a"),
            cmd: words("c d"),
            ..ImageInfo::default()
        };
        let merge = |command: Option<&str>, args: Option<&str>| {
            let spec = ContainerSpec {
                command: command.map(words),
                args: args.map(words),
                ..ContainerSpec::default()
            };
            arguments(&spec, &image).unwrap().join(" ")
        };
        assert_eq!(merge(None, None), "/e a c d");
        assert_eq!(merge(Some("x"), None), "x");
        assert_eq!(merge(None, Some("y")), "/e a y");
        assert_eq!(merge(Some("x"), Some("y")), "x y");
        assert!(arguments(&ContainerSpec::default(), &ImageInfo::default()).is_err());
    }

    #[test]
    fn the_callers_environment_wins() {
        let image = ImageInfo {
            env: vec![("PATH".into(), "/i".into()), ("A".into(), "image".into())],
            ..ImageInfo::default()
        };
        let spec = ContainerSpec {
            hostname: "pod".to_owned(),
            env: vec![("A".into(), "own".into()), ("B".into(), "x=y".into())],
            ..ContainerSpec::default()
        };
        assert_eq!(
            environment(&spec, &image),
            ["PATH=/i", "A=own", "HOSTNAME=pod", "B=x=y"]
        );
    }

    #[test]
    fn an_oom_score_is_not_lowered_without_the_right_to() {
        let image = ImageInfo {
            cmd: words("sh"),
            ..ImageInfo::default()
        };
        let score = |wanted| {
            let spec = ContainerSpec {
                oom_score_adj: Some(wanted),
                ..ContainerSpec::default()
            };
            build(&spec, &image, User::default(), &machine())
                .unwrap()
                .process
                .oom_score_adj
        };
        assert_eq!(score(-997), Some(100));
        assert_eq!(score(900), Some(900));
    }

    #[test]
    fn host_namespaces_are_not_named() {
        let spec = ContainerSpec {
            host_pid: true,
            ..ContainerSpec::default()
        };
        assert_eq!(
            namespaces(&spec, &machine()),
            [Namespace {
                kind: "mount".to_owned(),
                path: None
            }]
        );
    }
}
