//! Pulling: from a registry into containerd's content store, then into snapshots.

use std::collections::HashMap;

use containerd_client::services::v1::{CreateImageRequest, Image, UpdateImageRequest};
use containerd_client::types;
use futures::{StreamExt, TryStreamExt, stream};
use tonic::Code;

use super::content::{IngestError, Lease};
use super::manifest::{self, Descriptor, Document, MANIFEST_TYPES};
use super::registry::{FetchError, Repository};
use super::{ImageInfo, RegistryAuth};
use crate::{PullFailure, Reference, Runtime, RuntimeError};

/// How many layers of one image are fetched side by side.
const PARALLEL_LAYERS: usize = 3;

/// What a step of a pull fails with, before the image's name is known to it.
#[derive(Debug, thiserror::Error)]
enum PullError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

impl Runtime {
    /// Fetches an image from its registry and unpacks it. Two pulls of one image take turns, so that the second
    /// finds everything there.
    pub async fn pull(&self, reference: &str, auth: Option<RegistryAuth>) -> Result<ImageInfo, RuntimeError> {
        let reference = Reference::parse(reference)?;
        let name = reference.to_string();
        let _turn = self.lock(&format!("pull {name}")).await;
        let lease = self.lease().await?;
        let pulled = self.pull_under(&reference, auth, &lease).await;
        self.release(lease).await;
        pulled.map_err(|error| match error {
            PullError::Runtime(error) => error,
            PullError::Fetch(FetchError { kind, message }) => RuntimeError::Pull {
                reference: name,
                kind,
                message,
            },
        })
    }

    async fn pull_under(
        &self,
        reference: &Reference,
        auth: Option<RegistryAuth>,
        lease: &Lease,
    ) -> Result<ImageInfo, PullError> {
        let repository = Repository::new(reference, auth, &self.config.insecure_registries)?;
        let top = self
            .pull_manifests(&repository, lease)
            .await
            .map_err(|error| match error {
                PullError::Fetch(FetchError { kind, message }) => PullError::Fetch(FetchError {
                    kind,
                    message: format!("failed to resolve reference \"{reference}\": {message}"),
                }),
                other => other,
            })?;
        self.store_image(&reference.to_string(), &top).await?;
        let Some(loaded) = self.load_image(&reference.to_string()).await? else {
            return Err(RuntimeError::NoSuchImage(reference.to_string()).into());
        };
        self.unpacked(&loaded, true).await?;
        Ok(loaded.info)
    }

    /// Fetches the manifest for this machine, its index if it has one, and all content; returns what the
    /// reference points to.
    async fn pull_manifests(&self, repository: &Repository, lease: &Lease) -> Result<Descriptor, PullError> {
        let (bytes, digest) = repository.manifest(None).await?;
        let (top, document) = describe(&bytes, &digest)?;
        match document {
            Document::Manifest(manifest) => {
                self.pull_image(repository, &manifest, lease).await?;
                self.put(lease, &top, &bytes, children(&manifest)).await?;
            }
            Document::Index { manifests } => {
                let chosen = manifest::select(&manifests).ok_or_else(|| FetchError {
                    kind: PullFailure::NotFound,
                    message: format!(
                        "no match for platform linux/{} in manifest",
                        std::env::consts::ARCH
                    ),
                })?;
                let (inner_bytes, inner_digest) = repository.manifest(Some(&chosen.digest)).await?;
                let (inner, document) = describe(&inner_bytes, &inner_digest)?;
                let Document::Manifest(manifest) = document else {
                    return Err(FetchError::invalid("an index points to an index").into());
                };
                self.pull_image(repository, &manifest, lease).await?;
                self.put(lease, &inner, &inner_bytes, children(&manifest)).await?;
                let label = (
                    "containerd.io/gc.ref.content.m.0".to_owned(),
                    inner.digest.clone(),
                );
                self.put(lease, &top, &bytes, HashMap::from([label])).await?;
            }
        }
        Ok(top)
    }

    /// Fetches the configuration and the layers that are missing.
    async fn pull_image(
        &self,
        repository: &Repository,
        manifest: &manifest::Manifest,
        lease: &Lease,
    ) -> Result<(), PullError> {
        let fetch = async |descriptor: &Descriptor| {
            if self.has_content(&descriptor.digest).await? {
                return Ok(());
            }
            let blob = repository.blob(descriptor).await?;
            self.ingest(lease, descriptor, HashMap::new(), blob)
                .await
                .map_err(|error| ingest_error(error, descriptor))
        };
        // Collected first: a future over a lazy iterator of borrows is not `Send` for every lifetime, and the
        // agent needs it to be.
        let fetches: Vec<_> = std::iter::once(&manifest.config)
            .chain(&manifest.layers)
            .map(fetch)
            .collect();
        stream::iter(fetches)
            .buffer_unordered(PARALLEL_LAYERS)
            .try_collect::<()>()
            .await
    }

    /// Stores a document with the labels that keep what it refers to.
    async fn put(
        &self,
        lease: &Lease,
        descriptor: &Descriptor,
        bytes: &bytes::Bytes,
        labels: HashMap<String, String>,
    ) -> Result<(), PullError> {
        let source = stream::iter([Ok(bytes.clone())]);
        self.ingest(lease, descriptor, labels, source)
            .await
            .map_err(|error| ingest_error(error, descriptor))
    }

    /// Points a name to a manifest or index.
    async fn store_image(&self, name: &str, target: &Descriptor) -> Result<(), RuntimeError> {
        let target = types::Descriptor {
            media_type: target.media_type.clone(),
            digest: target.digest.clone(),
            size: target.size,
            ..types::Descriptor::default()
        };
        let image = Image {
            name: name.to_owned(),
            target: Some(target),
            ..Image::default()
        };
        let create = CreateImageRequest {
            image: Some(image.clone()),
            source_date_epoch: None,
        };
        match self.images_client().create(self.request(create)).await {
            Ok(_) => return Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {}
            Err(status) => return Err(RuntimeError::grpc(format!("store image {name}"))(status)),
        }
        let mask = prost_types::FieldMask {
            paths: vec!["target".to_owned()],
        };
        let update = UpdateImageRequest {
            image: Some(image),
            update_mask: Some(mask),
            source_date_epoch: None,
        };
        self.images_client()
            .update(self.request(update))
            .await
            .map_err(RuntimeError::grpc(format!("store image {name}")))?;
        Ok(())
    }
}

fn ingest_error(error: IngestError, descriptor: &Descriptor) -> PullError {
    match error {
        IngestError::Source(source) => PullError::Fetch(FetchError {
            kind: PullFailure::Network,
            message: format!("failed to copy {}: {source}", descriptor.digest),
        }),
        IngestError::Store(status) => PullError::Runtime(RuntimeError::grpc(format!(
            "store {}",
            descriptor.digest
        ))(*status)),
    }
}

/// A fetched document and its descriptor.
fn describe(bytes: &bytes::Bytes, digest: &str) -> Result<(Descriptor, Document), FetchError> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Kind {
        media_type: Option<String>,
    }
    let unreadable = |e: serde_json::Error| FetchError::invalid(format!("unreadable manifest {digest}: {e}"));
    let document: Document = serde_json::from_slice(bytes).map_err(unreadable)?;
    let kind: Kind = serde_json::from_slice(bytes).map_err(unreadable)?;
    // OCI documents may leave out their own type.
    let default = match document {
        Document::Index { .. } => MANIFEST_TYPES[0],
        Document::Manifest(_) => MANIFEST_TYPES[2],
    };
    let descriptor = Descriptor {
        media_type: kind.media_type.unwrap_or_else(|| default.to_owned()),
        digest: digest.to_owned(),
        size: bytes.len() as i64,
        platform: None,
    };
    Ok((descriptor, document))
}

/// The labels by which containerd's garbage collector goes from a manifest to its parts.
fn children(manifest: &manifest::Manifest) -> HashMap<String, String> {
    let layers = manifest.layers.iter().enumerate().map(|(index, layer)| {
        (
            format!("containerd.io/gc.ref.content.l.{index}"),
            layer.digest.clone(),
        )
    });
    let config = (
        "containerd.io/gc.ref.content.config".to_owned(),
        manifest.config.digest.clone(),
    );
    layers.chain([config]).collect()
}
