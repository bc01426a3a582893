//! Images: finding, unpacking, pulling and removing them.
pub(crate) mod reference;

use std::collections::BTreeMap;

use crate::{Runtime, RuntimeError};

/// An image on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageInfo {
    /// The normalised reference it is stored under.
    pub name: String,
    /// Its id: the digest of its configuration, `sha256:…`.
    pub id: String,
    /// `repository@digest` of what the reference points to.
    pub repo_digests: Vec<String>,
    /// Bytes of its layers as stored (compressed).
    pub size: u64,
    /// Entrypoint.
    pub entrypoint: Vec<String>,
    /// Default arguments.
    pub cmd: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// `USER`: `user`, `uid`, `user:group` or `uid:gid`; empty for root.
    pub user: String,
    /// Working directory; empty for `/`.
    pub working_dir: String,
    /// The signal that asks it to end.
    pub stop_signal: Option<String>,
    /// `port/protocol` of what it says it listens on.
    pub exposed_ports: Vec<String>,
    /// Labels of the configuration.
    pub labels: BTreeMap<String, String>,
}

/// A user at a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistryAuth {
    /// Name.
    pub username: String,
    /// Password or token.
    pub password: String,
}

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryAuth")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

impl Runtime {
    /// The image that a reference names, `None` when it is not on this node.
    pub async fn image(&self, reference: &str) -> Result<Option<ImageInfo>, RuntimeError> {
        let _ = reference;
        Err(RuntimeError::NotReady("image"))
    }
    /// Fetches an image from its registry and unpacks it. Two pulls of one image share the work.
    pub async fn pull(&self, reference: &str, auth: Option<RegistryAuth>) -> Result<ImageInfo, RuntimeError> {
        let _ = (reference, auth);
        Err(RuntimeError::NotReady("pull"))
    }
    /// All images of the namespace.
    pub async fn list_images(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        Err(RuntimeError::NotReady("list_images"))
    }
    /// Forgets an image; its content goes when nothing uses it. Fine when it is gone already.
    pub async fn remove_image(&self, reference: &str) -> Result<(), RuntimeError> {
        let _ = reference;
        Err(RuntimeError::NotReady("remove_image"))
    }
}
