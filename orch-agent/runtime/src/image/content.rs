//! Reading and writing containerd's content store.

use std::collections::HashMap;
use std::time::Duration;

use containerd_client::services::v1::{
    AbortRequest, CreateRequest, DeleteRequest, Info, InfoRequest, ReadContentRequest, UpdateRequest,
    WriteAction, WriteContentRequest,
};
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request};

use super::manifest::Descriptor;
use crate::{Runtime, RuntimeError};

/// The largest document (index, manifest, configuration) that is read into memory.
const DOCUMENT_MAX: i64 = 8 << 20;

/// The largest piece of a blob in one message; containerd takes up to 16 MiB.
const PIECE_MAX: usize = 1 << 20;

/// Keeps what is written under it from being collected until it is released.
pub(crate) struct Lease(String);

impl Lease {
    /// Puts a request under the lease.
    pub(crate) fn cover<T>(&self, mut request: Request<T>) -> Request<T> {
        if let Ok(id) = self.0.parse() {
            request.metadata_mut().insert("containerd-lease", id);
        }
        request
    }
}

/// Why a blob could not be stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IngestError {
    /// The source broke off.
    #[error("{0}")]
    Source(std::io::Error),
    /// containerd refused it.
    #[error("{}", .0.message())]
    Store(Box<tonic::Status>),
}

impl From<tonic::Status> for IngestError {
    fn from(status: tonic::Status) -> Self {
        Self::Store(Box::new(status))
    }
}

impl Runtime {
    /// Takes a lease; containerd drops it by itself after a day should we die.
    pub(crate) async fn lease(&self) -> Result<Lease, RuntimeError> {
        let id = format!("orch-{}", crate::sys::unique());
        let expires = jiff::Timestamp::now() + Duration::from_secs(24 * 3600);
        let labels = HashMap::from([("containerd.io/gc.expire".to_owned(), format!("{expires:.0}"))]);
        self.leases()
            .create(self.request(CreateRequest {
                id: id.clone(),
                labels,
            }))
            .await
            .map_err(RuntimeError::grpc("create a lease"))?;
        Ok(Lease(id))
    }

    /// Gives a lease back.
    pub(crate) async fn release(&self, lease: Lease) {
        let request = DeleteRequest {
            id: lease.0,
            sync: false,
        };
        if let Err(status) = self.leases().delete(self.request(request)).await {
            tracing::warn!(error = status.message(), "cannot release a lease; it will expire");
        }
    }

    /// Reads a whole document.
    pub(crate) async fn read_document(&self, digest: &str, size: i64) -> Result<Vec<u8>, RuntimeError> {
        let action = || format!("read content {digest}");
        if size > DOCUMENT_MAX {
            return Err(RuntimeError::BadImage {
                reference: digest.to_owned(),
                reason: format!("a document of {size} bytes is too large"),
            });
        }
        let request = ReadContentRequest {
            digest: digest.to_owned(),
            offset: 0,
            size: 0,
        };
        let mut stream = self
            .content()
            .read(self.request(request))
            .await
            .map_err(RuntimeError::grpc(action()))?
            .into_inner();
        let mut bytes = Vec::new();
        while let Some(piece) = stream.message().await.map_err(RuntimeError::grpc(action()))? {
            bytes.extend_from_slice(&piece.data);
            if bytes.len() as i64 > DOCUMENT_MAX {
                break;
            }
        }
        Ok(bytes)
    }

    /// Whether the store has this content in our namespace.
    pub(crate) async fn has_content(&self, digest: &str) -> Result<bool, RuntimeError> {
        match self
            .content()
            .info(self.request(InfoRequest {
                digest: digest.to_owned(),
            }))
            .await
        {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(RuntimeError::grpc(format!("look for content {digest}"))(status)),
        }
    }

    /// Sets labels of content that is in the store, leaving others as they are.
    pub(crate) async fn label_content(
        &self,
        digest: &str,
        labels: HashMap<String, String>,
    ) -> Result<(), RuntimeError> {
        if labels.is_empty() {
            return Ok(());
        }
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = Info {
            digest: digest.to_owned(),
            labels,
            ..Info::default()
        };
        let request = UpdateRequest {
            info: Some(info),
            update_mask: Some(prost_types::FieldMask { paths }),
        };
        self.content()
            .update(self.request(request))
            .await
            .map_err(RuntimeError::grpc(format!("label content {digest}")))?;
        Ok(())
    }

    /// Writes a blob; containerd checks size and digest. Content that is there already is no error.
    pub(crate) async fn ingest(
        &self,
        lease: &Lease,
        descriptor: &Descriptor,
        labels: HashMap<String, String>,
        source: impl Stream<Item = std::io::Result<bytes::Bytes>> + Send,
    ) -> Result<(), IngestError> {
        let reference = format!("{}-{}", lease.0, descriptor.digest);
        match self
            .write_blob(lease, descriptor, &labels, source, &reference)
            .await
        {
            Err(IngestError::Store(status)) if status.code() == Code::AlreadyExists => {
                // It may be there without what keeps the things it refers to.
                match self.label_content(&descriptor.digest, labels).await {
                    Err(RuntimeError::Containerd { status, .. }) => Err(IngestError::Store(status)),
                    _ => Ok(()),
                }
            }
            Err(error) => {
                let abort = self.request(AbortRequest {
                    r#ref: reference.clone(),
                });
                // The lease would take it along in any case.
                let _ = self.content().abort(lease.cover(abort)).await;
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    async fn write_blob(
        &self,
        lease: &Lease,
        descriptor: &Descriptor,
        labels: &HashMap<String, String>,
        source: impl Stream<Item = std::io::Result<bytes::Bytes>> + Send,
        reference: &str,
    ) -> Result<(), IngestError> {
        let message = |action: WriteAction, offset: i64, data: Vec<u8>| WriteContentRequest {
            action: action as i32,
            r#ref: reference.to_owned(),
            total: descriptor.size,
            expected: descriptor.digest.clone(),
            offset,
            data,
            labels: HashMap::new(),
        };
        let (sender, receiver) = mpsc::channel(2);
        // The first message must be on its way before containerd answers the call.
        let opened = sender.send(message(WriteAction::Stat, 0, Vec::new())).await;
        debug_assert!(opened.is_ok(), "the receiver is in this function");
        let call = lease.cover(self.request(ReceiverStream::new(receiver)));
        let mut answers = self.content().write(call).await?.into_inner();
        answers.message().await?;
        let feed = async {
            let mut source = std::pin::pin!(source);
            let mut offset = 0;
            while let Some(piece) = source.next().await {
                for part in piece.map_err(IngestError::Source)?.chunks(PIECE_MAX) {
                    if sender
                        .send(message(WriteAction::Write, offset, part.to_vec()))
                        .await
                        .is_err()
                    {
                        // containerd has ended the call; its answer says why.
                        return Ok::<(), IngestError>(());
                    }
                    offset += part.len() as i64;
                }
            }
            let mut commit = message(WriteAction::Commit, offset, Vec::new());
            commit.labels.clone_from(labels);
            let _ = sender.send(commit).await;
            Ok(())
        };
        let drain = async {
            while let Some(answer) = answers.message().await? {
                if answer.action == WriteAction::Commit as i32 {
                    return Ok(());
                }
            }
            Err(IngestError::from(tonic::Status::aborted(
                "the content store ended the write early",
            )))
        };
        tokio::pin!(feed, drain);
        let mut fed = false;
        loop {
            tokio::select! {
                result = &mut feed, if !fed => { result?; fed = true; }
                result = &mut drain => return result,
            }
        }
    }
}
