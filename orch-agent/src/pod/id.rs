//! Names that the agent gives to a pod's containers, labels and files.

use std::{collections::BTreeMap, path::Path, path::PathBuf};

use k8s_openapi::api::core::v1::Pod;
use sha2::{Digest as _, Sha256};

/// Label: the container's name in the pod. The four are those that CRI tools look for.
pub const CONTAINER: &str = "io.kubernetes.container.name";
/// Label: the pod's name.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Label: the pod's namespace.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Label: the pod's uid.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Label: number of the run, from 0.
pub const ATTEMPT: &str = "io.kubernetes.container.restartCount";
/// Label: hash of the container's spec at its start.
pub const HASH: &str = "io.kubernetes.container.hash";
/// Label: the pod's termination grace period in seconds, for a pod that the API has lost.
pub const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";

/// The id of a container's run: 64 hex digits, of which the first half is the pod's.
///
/// It depends on nothing but its arguments, so that a start that was cut off is recognised.
#[must_use]
pub fn container_id(uid: &str, container: &str, attempt: u32) -> String {
    pod_prefix(uid) + &hex(&Sha256::digest(format!("{container}/{attempt}"))[..16])
}

/// The first half of the ids of a pod's containers.
#[must_use]
pub fn pod_prefix(uid: &str) -> String {
    let plain: String = uid.chars().filter(|c| *c != '-').collect();
    if plain.len() == 32 && plain.bytes().all(|b| b.is_ascii_hexdigit()) {
        plain.to_ascii_lowercase()
    } else {
        hex(&Sha256::digest(uid)[..16])
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut s, b| {
            let _ = write!(s, "{b:02x}");
            s
        })
}

/// The labels of a container.
#[must_use]
pub fn labels(
    pod: &Pod,
    container: &k8s_openapi::api::core::v1::Container,
    attempt: u32,
) -> BTreeMap<String, String> {
    let meta = &pod.metadata;
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    let spec = serde_json::to_vec(container).unwrap_or_default();
    let grace = pod
        .spec
        .as_ref()
        .and_then(|s| s.termination_grace_period_seconds)
        .unwrap_or(30);
    BTreeMap::from([
        (CONTAINER.to_owned(), container.name.clone()),
        (POD_NAME.to_owned(), text(&meta.name)),
        (POD_NAMESPACE.to_owned(), text(&meta.namespace)),
        (POD_UID.to_owned(), text(&meta.uid)),
        (ATTEMPT.to_owned(), attempt.to_string()),
        (HASH.to_owned(), hex(&Sha256::digest(spec)[..8])),
        (GRACE.to_owned(), grace.to_string()),
    ])
}

/// Files that belong to one pod, below the agent's root directory.
#[derive(Debug, Clone)]
pub struct Paths {
    /// `ROOT/pods/UID`.
    pub pod: PathBuf,
    /// `ROOT/logs/NAMESPACE_POD_UID`.
    pub logs: PathBuf,
}

impl Paths {
    /// The paths of the pod `namespace/name` with this uid.
    #[must_use]
    pub fn new(root: &Path, namespace: &str, name: &str, uid: &str) -> Self {
        Self {
            pod: root.join("pods").join(uid),
            logs: root.join("logs").join(format!("{namespace}_{name}_{uid}")),
        }
    }

    /// The paths of `pod`.
    #[must_use]
    pub fn of(root: &Path, pod: &Pod) -> Self {
        let part = |s: &Option<String>| s.clone().unwrap_or_default();
        let meta = &pod.metadata;
        Self::new(root, &part(&meta.namespace), &part(&meta.name), &part(&meta.uid))
    }

    /// The log of a container's run.
    #[must_use]
    pub fn log(&self, container: &str, attempt: u32) -> PathBuf {
        self.logs.join(container).join(format!("{attempt}.log"))
    }

    /// The file that a container's run writes its termination message to.
    #[must_use]
    pub fn message(&self, container: &str, attempt: u32) -> PathBuf {
        self.pod
            .join("containers")
            .join(container)
            .join(format!("{attempt}.message"))
    }

    /// The pod's `/etc/NAME` (`hosts`, `resolv.conf`, `hostname`).
    #[must_use]
    pub fn etc(&self, name: &str) -> PathBuf {
        self.pod.join("etc").join(name)
    }

    /// The directory of a volume.
    #[must_use]
    pub fn volume(&self, name: &str) -> PathBuf {
        self.pod.join("volumes").join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_tell_their_pod() {
        let uid = "0dd6a2e3-6a4c-4d8c-8a51-0f7a0c9f7b11";
        let id = container_id(uid, "web", 3);
        assert_eq!(id.len(), 64);
        assert!(id.starts_with("0dd6a2e36a4c4d8c8a510f7a0c9f7b11"));
        assert_ne!(id, container_id(uid, "web", 4));
        assert_ne!(id, container_id(uid, "we", 3));
        assert_eq!(pod_prefix("static").len(), 32);
    }
}
