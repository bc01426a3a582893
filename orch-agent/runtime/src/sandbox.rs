//! The namespaces that a pod's containers share, held by bind mounts instead of by a pause process.

use std::collections::BTreeMap;
use std::path::PathBuf;

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
    /// Use the node's IPC namespace.
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
}

impl Runtime {
    /// Makes the pod's namespaces, or returns those that are there already.
    pub async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<Sandbox, RuntimeError> {
        let _ = spec;
        Err(RuntimeError::NotReady("create_sandbox"))
    }
    /// The uids of all pods whose namespaces are held.
    pub async fn list_sandboxes(&self) -> Result<Vec<String>, RuntimeError> {
        Ok(Vec::new())
    }
    /// Lets go of a pod's namespaces; fine when there are none.
    pub async fn remove_sandbox(&self, uid: &str) -> Result<(), RuntimeError> {
        let _ = uid;
        Ok(())
    }
}
