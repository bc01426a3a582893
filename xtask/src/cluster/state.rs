//! What `up` remembers for the next `up` and for `down`.

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{layout, modes::Modes};

/// Facts that cannot be read back from the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// How many nodes the cluster has.
    pub nodes: u8,
    /// The store behind the API server: `embedded` or `etcd`.
    pub store: String,
    /// Families, tunnel, XDP.
    #[serde(default)]
    pub modes: Modes,
    /// bpffs was not mounted before.
    pub mounted_bpffs: bool,
    /// `net.ipv4.ip_forward` was 0 before.
    pub enabled_forwarding: bool,
    /// `net.ipv6.conf.all.forwarding` was 0 before.
    #[serde(default)]
    pub enabled_forwarding6: bool,
}

impl State {
    /// Reads the file; `None` when there is no cluster.
    ///
    /// # Errors
    /// When the file cannot be read or is not ours.
    pub fn load() -> Result<Option<Self>> {
        let path = path();
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .with_context(|| format!("failed to read {}; run `cargo xtask down`", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("failed to read {}", path.display())),
        }
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self) -> Result<()> {
        let path = path();
        std::fs::create_dir_all(layout::state_dir())
            .and_then(|()| std::fs::write(&path, serde_json::to_vec_pretty(self).unwrap_or_default()))
            .with_context(|| format!("failed to write {}", path.display()))
    }

    /// Removes the file.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn forget() -> Result<()> {
        match std::fs::remove_file(path()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("failed to remove the cluster's state file")
            }
            _ => Ok(()),
        }
    }
}

fn path() -> std::path::PathBuf {
    layout::state_dir().join("state.json")
}
