//! The namespaces that a pod's containers share, held by bind mounts instead of by a pause process.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::runtime::blocking;
use crate::sys::namespace::{self, NewNamespaces};
use crate::{Runtime, RuntimeError};

/// What a pod's namespaces are made from.
#[derive(Clone, Debug, Default)]
pub struct SandboxSpec {
    /// The pod's uid: one path component.
    pub uid: String,
    /// Host name within the pod's UTS namespace.
    pub hostname: String,
    /// Namespaced sysctls, with dots (`net.core.somaxconn`).
    pub sysctls: BTreeMap<String, String>,
    /// Use the node's network and UTS namespaces.
    pub host_network: bool,
    /// Use the node's IPC namespace and shared memory.
    pub host_ipc: bool,
    /// Use the node's pid namespace (nothing is made here; kept so that the whole choice is in one place).
    pub host_pid: bool,
}

/// Where a pod's namespaces are bound; `None` means the node's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// Network.
    pub net: Option<PathBuf>,
    /// IPC.
    pub ipc: Option<PathBuf>,
    /// Host name.
    pub uts: Option<PathBuf>,
    /// The tmpfs that is `/dev/shm` in all of the pod's containers; comes with `ipc`.
    pub shm: Option<PathBuf>,
}

/// What containerd 2 gives every pod unless it asks for something else: any user may bind low ports and ping.
const NET_DEFAULTS: [(&str, &str); 2] = [
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
];

impl Runtime {
    /// Makes the pod's namespaces, or returns those that are there already.
    ///
    /// Fails on a sysctl that is not namespaced, or belongs to a namespace that the pod shares with the node.
    pub async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<Sandbox, RuntimeError> {
        check_uid(&spec.uid)?;
        let dir = self.sandboxes_dir().join(&spec.uid);
        let spec = spec.clone();
        blocking(move || create(&dir, &spec)).await
    }

    /// The uids of all pods whose namespaces are held.
    pub async fn list_sandboxes(&self) -> Result<Vec<String>, RuntimeError> {
        let dir = self.sandboxes_dir();
        blocking(move || {
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(e) => return Err(RuntimeError::file("list", &dir)(e)),
            };
            let mut uids: Vec<String> = entries
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .collect();
            uids.sort_unstable();
            Ok(uids)
        })
        .await
    }

    /// Lets go of a pod's namespaces; fine when there are none.
    pub async fn remove_sandbox(&self, uid: &str) -> Result<(), RuntimeError> {
        check_uid(uid)?;
        let dir = self.sandboxes_dir().join(uid);
        blocking(move || remove(&dir)).await
    }

    fn sandboxes_dir(&self) -> PathBuf {
        self.config.run_dir.join("ns")
    }
}

fn check_uid(uid: &str) -> Result<(), RuntimeError> {
    if uid.is_empty() || uid.starts_with('.') || uid.contains('/') {
        return Err(RuntimeError::BadSpec {
            id: uid.to_owned(),
            reason: "not a usable pod uid".to_owned(),
        });
    }
    Ok(())
}

fn create(dir: &Path, spec: &SandboxSpec) -> Result<Sandbox, RuntimeError> {
    let (net, ipc, uts) = (!spec.host_network, !spec.host_ipc, !spec.host_network);
    let path = |wanted: bool, name: &str| wanted.then(|| dir.join(name));
    let sandbox = Sandbox {
        net: path(net, "net"),
        ipc: path(ipc, "ipc"),
        uts: path(uts, "uts"),
        shm: path(ipc, "shm"),
    };
    let ready = dir.join("ready");
    let all_bound = [&sandbox.net, &sandbox.ipc, &sandbox.uts]
        .into_iter()
        .flatten()
        .all(|p| namespace::is_bound(p));
    if all_bound && ready.exists() {
        return Ok(sandbox);
    }
    remove(dir)?;
    fs::create_dir_all(dir).map_err(RuntimeError::file("create", dir))?;
    let made = make(dir, &sandbox, spec).and_then(|()| {
        // Written last: what was cut short before it is made anew.
        fs::File::create(&ready).map_err(RuntimeError::file("create", &ready))
    });
    if let Err(error) = made {
        remove(dir)?;
        return Err(error);
    }
    Ok(sandbox)
}

fn make(dir: &Path, sandbox: &Sandbox, spec: &SandboxSpec) -> Result<(), RuntimeError> {
    let mut sysctls = BTreeMap::new();
    if sandbox.net.is_some() {
        for (name, value) in NET_DEFAULTS {
            sysctls.insert(name.to_owned(), value.to_owned());
        }
    }
    for (name, value) in &spec.sysctls {
        let file = sysctl_file(name, sandbox).map_err(|reason| RuntimeError::BadSpec {
            id: spec.uid.clone(),
            reason: format!("sysctl \"{name}\" {reason}"),
        })?;
        sysctls.insert(file, value.clone());
    }
    namespace::make(&NewNamespaces {
        dir,
        net: sandbox.net.is_some(),
        ipc: sandbox.ipc.is_some(),
        hostname: sandbox.uts.as_ref().map(|_| spec.hostname.as_str()),
        sysctls: &sysctls,
    })?;
    if let Some(shm) = &sandbox.shm {
        fs::create_dir_all(shm).map_err(RuntimeError::file("create", shm))?;
        namespace::mount_shm(shm)?;
    }
    Ok(())
}

fn remove(dir: &Path) -> Result<(), RuntimeError> {
    if !dir.exists() {
        return Ok(());
    }
    for name in ["net", "ipc", "uts", "shm"] {
        namespace::unmount_all(&dir.join(name))?;
    }
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(RuntimeError::file("remove", dir)(e)),
        _ => Ok(()),
    }
}

/// The file of a sysctl below /proc/sys, if it is one that a namespace of the pod's own has
/// (<https://kubernetes.io/docs/tasks/administer-cluster/sysctl-cluster/>).
fn sysctl_file(name: &str, sandbox: &Sandbox) -> Result<String, &'static str> {
    // With slashes as separators, dots belong to names (`net/ipv4/conf/eth0.1/forwarding`).
    let file = match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'.' => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_owned(),
    };
    if file
        .split('/')
        .any(|part| part.is_empty() || part == "." || part == "..")
    {
        return Err("is not a sysctl's name");
    }
    let namespace = if file.starts_with("net/") {
        &sandbox.net
    } else if file.starts_with("kernel/shm")
        || file.starts_with("kernel/msg")
        || file == "kernel/sem"
        || file.starts_with("fs/mqueue/")
    {
        &sandbox.ipc
    } else {
        return Err("is not namespaced");
    };
    match namespace {
        Some(_) => Ok(file),
        None => Err("is not allowed with the node's own namespace"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_stay_in_their_namespaces() {
        let own = Sandbox {
            net: Some("n".into()),
            ipc: Some("i".into()),
            ..Sandbox::default()
        };
        assert_eq!(
            sysctl_file("net.core.somaxconn", &own),
            Ok("net/core/somaxconn".to_owned())
        );
        assert_eq!(
            sysctl_file("net/ipv4/conf/eth0.1/forwarding", &own),
            Ok("net/ipv4/conf/eth0.1/forwarding".to_owned())
        );
        assert_eq!(sysctl_file("kernel.shmmax", &own), Ok("kernel/shmmax".to_owned()));
        assert!(sysctl_file("kernel.panic", &own).is_err());
        assert!(sysctl_file("net/../kernel/panic", &own).is_err());
        assert!(sysctl_file("net.core.somaxconn", &Sandbox::default()).is_err());
    }
}
