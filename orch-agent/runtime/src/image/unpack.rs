//! Turning an image's layers into a chain of snapshots.

use std::collections::HashMap;

use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::types;
use tonic::Code;

use super::Loaded;
use super::content::Lease;
use super::manifest::{Descriptor, chain_ids};
use crate::{Runtime, RuntimeError};

impl Runtime {
    /// Makes sure that the image's snapshot is there and returns its name. `force` looks even if it was there
    /// before.
    pub(crate) async fn unpacked(&self, image: &Loaded, force: bool) -> Result<String, RuntimeError> {
        let chain = chain_ids(&image.diff_ids);
        let Some(top) = chain.last() else {
            return Err(RuntimeError::BadImage {
                reference: image.info.name.clone(),
                reason: "it has no layers".to_owned(),
            });
        };
        if !force && self.images.is_unpacked(top) {
            return Ok(top.clone());
        }
        let _one_at_a_time = self.lock(&format!("unpack {top}")).await;
        if !self.has_snapshot(top).await? {
            let lease = self.lease().await?;
            let result = self.unpack(image, &chain, &lease).await;
            self.release(lease).await;
            result?;
        }
        self.images.set_unpacked(top);
        Ok(top.clone())
    }

    async fn has_snapshot(&self, key: &str) -> Result<bool, RuntimeError> {
        let request = StatSnapshotRequest {
            snapshotter: self.config.snapshotter.clone(),
            key: key.to_owned(),
        };
        match self.snapshots().stat(self.request(request)).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(RuntimeError::grpc(format!("look for snapshot {key}"))(status)),
        }
    }

    async fn unpack(&self, image: &Loaded, chain: &[String], lease: &Lease) -> Result<(), RuntimeError> {
        if image.layers.len() != image.diff_ids.len() {
            return Err(RuntimeError::BadImage {
                reference: image.info.name.clone(),
                reason: format!(
                    "{} layers but {} diff ids",
                    image.layers.len(),
                    image.diff_ids.len()
                ),
            });
        }
        // What is there of the chain already is kept.
        let mut done = chain.len() - 1;
        while done > 0 && !self.has_snapshot(&chain[done - 1]).await? {
            done -= 1;
        }
        for index in done..chain.len() {
            let parent = index.checked_sub(1).map_or("", |below| chain[below].as_str());
            self.unpack_layer(
                &image.layers[index],
                &image.diff_ids[index],
                parent,
                &chain[index],
                lease,
            )
            .await?;
        }
        // Keeps the chain as long as the image's configuration is kept.
        if let Some(top) = chain.last() {
            let label = format!("containerd.io/gc.ref.snapshot.{}", self.config.snapshotter);
            self.label_content(&image.info.id, HashMap::from([(label, top.clone())]))
                .await?;
        }
        Ok(())
    }

    async fn unpack_layer(
        &self,
        layer: &Descriptor,
        diff_id: &str,
        parent: &str,
        name: &str,
        lease: &Lease,
    ) -> Result<(), RuntimeError> {
        let snapshotter = &self.config.snapshotter;
        let key = format!("orch-extract-{} {name}", crate::sys::unique());
        let prepare = PrepareSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: key.clone(),
            parent: parent.to_owned(),
            labels: HashMap::new(),
        };
        let mounts = self
            .snapshots()
            .prepare(lease.cover(self.request(prepare)))
            .await
            .map_err(RuntimeError::grpc(format!(
                "prepare a snapshot for layer {}",
                layer.digest
            )))?
            .into_inner()
            .mounts;
        let result = self
            .apply_and_commit(layer, diff_id, mounts, &key, name, lease)
            .await;
        if result.is_err() {
            let remove = RemoveSnapshotRequest {
                snapshotter: snapshotter.clone(),
                key,
            };
            // The first error is the one that matters; the lease would take the snapshot along.
            let _ = self.snapshots().remove(self.request(remove)).await;
        }
        result
    }

    async fn apply_and_commit(
        &self,
        layer: &Descriptor,
        diff_id: &str,
        mounts: Vec<types::Mount>,
        key: &str,
        name: &str,
        lease: &Lease,
    ) -> Result<(), RuntimeError> {
        let diff = types::Descriptor {
            media_type: layer.media_type.clone(),
            digest: layer.digest.clone(),
            size: layer.size,
            ..types::Descriptor::default()
        };
        let apply = ApplyRequest {
            diff: Some(diff),
            mounts,
            ..ApplyRequest::default()
        };
        let applied = self
            .diff()
            .apply(lease.cover(self.request(apply)))
            .await
            .map_err(RuntimeError::grpc(format!("unpack layer {}", layer.digest)))?
            .into_inner()
            .applied
            .unwrap_or_default();
        if applied.digest != diff_id {
            return Err(RuntimeError::BadImage {
                reference: layer.digest.clone(),
                reason: format!(
                    "the layer's content is {} but should be {diff_id}",
                    applied.digest
                ),
            });
        }
        let commit = CommitSnapshotRequest {
            snapshotter: self.config.snapshotter.clone(),
            name: name.to_owned(),
            key: key.to_owned(),
            ..CommitSnapshotRequest::default()
        };
        match self.snapshots().commit(lease.cover(self.request(commit))).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            Err(status) => Err(RuntimeError::grpc(format!("keep snapshot {name}"))(status)),
        }
    }
}
