//! A recipe: `image.toml` and the folders of files beside it.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// What an image is made of.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The repository, e.g. `orch.local/redis`.
    pub name: String,
    /// Debian packages; what they depend on comes along.
    pub packages: Vec<String>,
    /// Dependencies that only a full system needs.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Symbolic links to add, by path: what they point to.
    #[serde(default)]
    pub links: BTreeMap<String, String>,
    /// Folders to make.
    #[serde(default)]
    pub folders: Vec<String>,
    /// Users beside root and nobody, by name: their numeric id.
    #[serde(default)]
    pub users: BTreeMap<String, u32>,
    /// One image each; they share the packages' layer.
    pub tags: Vec<Tag>,
    /// What the OCI image configuration says.
    pub config: Config,
}

/// One tag, and the folders copied over the packages.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tag {
    /// The tag, e.g. `1`.
    pub tag: String,
    /// Folders beside image.toml, in order.
    #[serde(default)]
    pub files: Vec<String>,
}

/// The part of the OCI image configuration that a recipe sets
/// (<https://github.com/opencontainers/image-spec/blob/main/config.md>).
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The program and its fixed arguments.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Arguments that a pod may replace.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// `KEY=value`, beside PATH.
    #[serde(default)]
    pub env: Vec<String>,
    /// `port/protocol`.
    #[serde(default)]
    pub ports: Vec<String>,
    /// The signal that ends it gracefully; SIGTERM when empty.
    #[serde(default)]
    pub stop_signal: String,
    /// `uid[:gid]` or a name; root when empty.
    #[serde(default)]
    pub user: String,
}

impl Recipe {
    /// Reads `folder/image.toml`.
    ///
    /// # Errors
    /// When it is missing or not a recipe.
    pub fn load(folder: &Path) -> Result<Self> {
        let file = folder.join("image.toml");
        let text = fs::read_to_string(&file).with_context(|| format!("failed to read {}", file.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is not a recipe", file.display()))
    }
}
