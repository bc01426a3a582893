//! Indexes, manifests and configurations of images (OCI image-spec v1.1, Docker image manifest v2 schema 2).

use std::collections::BTreeMap;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::ImageInfo;

/// Media types of manifests, in the order in which registries are asked for them.
pub(crate) const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// A pointer to content.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: i64,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
}

/// What an index says a manifest is for.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) variant: Option<String>,
}

/// Either an index (`manifests`) or a manifest (`config` and `layers`), told apart by content because old
/// documents carry no media type.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Document {
    Index { manifests: Vec<Descriptor> },
    Manifest(Manifest),
}

/// One image for one platform.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// The parts of an image's configuration that are used.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Config {
    #[serde(default)]
    config: Option<Execution>,
    rootfs: RootFs,
}

#[derive(Clone, Debug, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Execution {
    user: String,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: String,
    stop_signal: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    labels: Option<BTreeMap<String, String>>,
}

impl Config {
    /// The uncompressed layers' digests, lowest first.
    pub(crate) fn diff_ids(&self) -> &[String] {
        &self.rootfs.diff_ids
    }

    /// What a caller may know of the image; name, digests and size are the caller's to fill in.
    pub(crate) fn info(&self, id: &str) -> ImageInfo {
        let execution = self.config.clone().unwrap_or_default();
        let pair = |entry: &String| {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            (name.to_owned(), value.to_owned())
        };
        ImageInfo {
            id: id.to_owned(),
            entrypoint: execution.entrypoint.unwrap_or_default(),
            cmd: execution.cmd.unwrap_or_default(),
            env: execution.env.unwrap_or_default().iter().map(pair).collect(),
            user: execution.user,
            working_dir: execution.working_dir,
            stop_signal: execution.stop_signal.filter(|s| !s.is_empty()),
            exposed_ports: execution.exposed_ports.unwrap_or_default().into_keys().collect(),
            labels: execution.labels.unwrap_or_default(),
            ..ImageInfo::default()
        }
    }
}

/// The manifest of an index that fits this machine.
pub(crate) fn select(manifests: &[Descriptor]) -> Option<&Descriptor> {
    let (architecture, variants): (&str, &[&str]) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", &[""]),
        "aarch64" => ("arm64", &["v8", ""]),
        "arm" => ("arm", &["v7", "v6", "v5", ""]),
        "x86" => ("386", &[""]),
        "powerpc64" => ("ppc64le", &[""]),
        other => (other, &[""]),
    };
    let fits = |descriptor: &&Descriptor, variant: &str| {
        descriptor.platform.as_ref().is_some_and(|p| {
            p.os == "linux" && p.architecture == architecture && p.variant.as_deref().unwrap_or("") == variant
        })
    };
    variants
        .iter()
        .find_map(|variant| manifests.iter().find(|d| fits(d, variant)))
        // An index of archives often says nothing about the platform of the one image it has.
        .or_else(|| match manifests {
            [only] if only.platform.is_none() => Some(only),
            _ => None,
        })
}

/// The snapshot names of a stack of layers (image-spec, "Layer ChainID"), lowest first.
pub(crate) fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(below) => sha256_digest(format!("{below} {diff_id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

/// `sha256:` and the hexadecimal digest.
pub(crate) fn sha256_digest(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest_for(os: &str, architecture: &str, digest: &str) -> Descriptor {
        Descriptor {
            media_type: String::new(),
            digest: digest.to_owned(),
            size: 1,
            platform: Some(Platform {
                architecture: architecture.to_owned(),
                os: os.to_owned(),
                variant: None,
            }),
        }
    }

    #[test]
    fn the_machines_platform_is_chosen() {
        let ours = if cfg!(target_arch = "aarch64") {
            "arm64"
        } else {
            "amd64"
        };
        let index = [
            manifest_for("unknown", "unknown", "attestation"),
            manifest_for("linux", "s390x", "other"),
            manifest_for("linux", ours, "ours"),
        ];
        assert_eq!(select(&index).map(|d| d.digest.as_str()), Some("ours"));
        assert_eq!(select(&index[..2]), None);
        let unnamed = [Descriptor {
            platform: None,
            ..manifest_for("", "", "only")
        }];
        assert_eq!(select(&unnamed).map(|d| d.digest.as_str()), Some("only"));
    }

    #[test]
    fn documents_are_told_apart() {
        let index = r#"{"schemaVersion":2,"manifests":[{"mediaType":"m","digest":"sha256:a","size":1}]}"#;
        assert!(
            matches!(serde_json::from_str(index), Ok(Document::Index { manifests }) if manifests.len() == 1)
        );
        let manifest = r#"{"config":{"digest":"sha256:c","size":1},"layers":[]}"#;
        assert!(matches!(
            serde_json::from_str(manifest),
            Ok(Document::Manifest(_))
        ));
        assert!(serde_json::from_str::<Document>("{}").is_err());
    }

    #[test]
    fn chain_ids_follow_the_specification() {
        let chain = chain_ids(&["sha256:a".to_owned(), "sha256:b".to_owned()]);
        assert_eq!(
            chain,
            ["sha256:a".to_owned(), sha256_digest(b"sha256:a sha256:b")]
        );
        assert_eq!(
            sha256_digest(b"abc"),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
