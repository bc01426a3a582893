//! Images: finding, unpacking, pulling and removing them.

mod content;
mod manifest;
mod pull;
pub(crate) mod reference;
mod registry;
mod unpack;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use containerd_client::services::v1::{DeleteImageRequest, GetImageRequest, Image, ListImagesRequest};
use containerd_client::types;
use parking_lot::Mutex;
use tonic::Code;

use crate::{Reference, Runtime, RuntimeError};
use manifest::{Config, Descriptor, Document};

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

/// An image with what it takes to unpack it.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub(crate) info: ImageInfo,
    diff_ids: Vec<String>,
    layers: Vec<Descriptor>,
}

/// What was read of images before; all of it is named by digest and so never out of date.
#[derive(Default)]
pub(crate) struct ImageCache {
    /// By the digest that an image's name points to.
    loaded: Mutex<HashMap<String, Arc<Loaded>>>,
    /// Names of snapshots that were seen; one may be gone again.
    unpacked: Mutex<HashSet<String>>,
    /// Contents of the passwd and group files by the image's id.
    pub(crate) accounts: Mutex<HashMap<String, Arc<(String, String)>>>,
}

/// When more images than this were seen, those of the past are forgotten.
const CACHE_MAX: usize = 512;

impl ImageCache {
    fn is_unpacked(&self, snapshot: &str) -> bool {
        self.unpacked.lock().contains(snapshot)
    }

    fn set_unpacked(&self, snapshot: &str) {
        self.unpacked.lock().insert(snapshot.to_owned());
    }

    fn clear(&self) {
        self.loaded.lock().clear();
        self.unpacked.lock().clear();
        self.accounts.lock().clear();
    }
}

impl Runtime {
    /// The image that a reference names, `None` when it is not on this node.
    pub async fn image(&self, reference: &str) -> Result<Option<ImageInfo>, RuntimeError> {
        Ok(self.load_image(reference).await?.map(|loaded| loaded.info))
    }

    /// All images of the namespace; one whose content is incomplete is left out.
    pub async fn list_images(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        let images = self
            .images_client()
            .list(self.request(ListImagesRequest::default()))
            .await
            .map_err(RuntimeError::grpc("list images"))?
            .into_inner()
            .images;
        let mut infos = Vec::with_capacity(images.len());
        for image in &images {
            match self.load_stored(image).await {
                Ok(loaded) => infos.push(loaded.info),
                Err(error) => tracing::debug!(image = image.name, %error, "leaving out an image"),
            }
        }
        Ok(infos)
    }

    /// Forgets an image; its content goes when nothing uses it. Fine when it is gone already.
    pub async fn remove_image(&self, reference: &str) -> Result<(), RuntimeError> {
        for name in stored_names(reference)? {
            let request = DeleteImageRequest {
                name: name.clone(),
                sync: true,
                target: None,
            };
            match self.images_client().delete(self.request(request)).await {
                Ok(_) => {}
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => return Err(RuntimeError::grpc(format!("remove image {name}"))(status)),
            }
        }
        self.images.clear();
        Ok(())
    }

    /// Finds an image by any name it may be stored under.
    pub(crate) async fn load_image(&self, reference: &str) -> Result<Option<Loaded>, RuntimeError> {
        for name in stored_names(reference)? {
            let request = GetImageRequest { name: name.clone() };
            match self.images_client().get(self.request(request)).await {
                Ok(answer) => match answer.into_inner().image {
                    Some(image) => return self.load_stored(&image).await.map(Some),
                    None => continue,
                },
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => return Err(RuntimeError::grpc(format!("look for image {name}"))(status)),
            }
        }
        Ok(None)
    }

    async fn load_stored(&self, image: &Image) -> Result<Loaded, RuntimeError> {
        let target = image.target.clone().unwrap_or_default();
        let cached = self.images.loaded.lock().get(&target.digest).cloned();
        let loaded = match cached {
            Some(loaded) => loaded,
            None => {
                let loaded = Arc::new(self.load_target(&image.name, &target).await?);
                let mut cache = self.images.loaded.lock();
                if cache.len() >= CACHE_MAX {
                    cache.clear();
                }
                cache.insert(target.digest.clone(), Arc::clone(&loaded));
                loaded
            }
        };
        let mut loaded = Loaded::clone(&loaded);
        loaded.info.name.clone_from(&image.name);
        if let Ok(reference) = Reference::parse(&image.name) {
            loaded.info.repo_digests = vec![format!("{}@{}", reference.name(), target.digest)];
        }
        Ok(loaded)
    }

    async fn load_target(&self, name: &str, target: &types::Descriptor) -> Result<Loaded, RuntimeError> {
        let broken = |reason: String| RuntimeError::BadImage {
            reference: name.to_owned(),
            reason,
        };
        let parse =
            |bytes: Vec<u8>| serde_json::from_slice::<Document>(&bytes).map_err(|e| broken(e.to_string()));
        let mut document = parse(self.read_document(&target.digest, target.size).await?)?;
        // An index may point to an index; more than a few levels are nobody's intention.
        for _ in 0..3 {
            let Document::Index { manifests } = &document else {
                break;
            };
            let chosen = manifest::select(manifests)
                .ok_or_else(|| broken(format!("no image for linux/{}", std::env::consts::ARCH)))?;
            document = parse(self.read_document(&chosen.digest, chosen.size).await?)?;
        }
        let Document::Manifest(manifest) = document else {
            return Err(broken("too many nested indexes".to_owned()));
        };
        let config = self
            .read_document(&manifest.config.digest, manifest.config.size)
            .await?;
        let config: Config = serde_json::from_slice(&config).map_err(|e| broken(e.to_string()))?;
        let mut info = config.info(&manifest.config.digest);
        info.size = manifest.layers.iter().map(|layer| layer.size.max(0) as u64).sum();
        Ok(Loaded {
            info,
            diff_ids: config.diff_ids().to_vec(),
            layers: manifest.layers,
        })
    }
}

/// The names under which an image may be stored, the likeliest first: as we store it, without the tag that a
/// digest makes meaningless, and as some archive may have called it.
fn stored_names(reference: &str) -> Result<Vec<String>, RuntimeError> {
    let parsed = Reference::parse(reference)?;
    let mut names = vec![parsed.to_string()];
    if parsed.tag.is_some() && parsed.digest.is_some() {
        names.push(Reference { tag: None, ..parsed }.to_string());
    }
    if !names.iter().any(|name| name == reference) {
        names.push(reference.to_owned());
    }
    Ok(names)
}
