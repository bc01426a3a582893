//! The handle on containerd that everything else hangs on.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::version_client::VersionClient;
use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use crate::cgroup::Cgroups;
use crate::image::ImageCache;
use crate::{RuntimeConfig, RuntimeError, RuntimeEvent, events};

/// The largest answer that is accepted: a list of some thousand containers with their specifications.
const ANSWER_MAX: usize = 64 << 20;

/// How many events a slow receiver may lag behind.
const EVENT_BUFFER: usize = 1024;

/// Containers, images, namespaces and I/O of one node. Cheap to share.
pub struct Runtime {
    pub(crate) config: RuntimeConfig,
    pub(crate) events: broadcast::Sender<RuntimeEvent>,
    pub(crate) images: ImageCache,
    pub(crate) cgroups: Cgroups,
    /// One lock per name, held while something must not be done twice at once (pulling, unpacking).
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Containers whose making has begun and not ended.
    creating: Mutex<HashSet<String>>,
    channel: Channel,
    namespace: MetadataValue<Ascii>,
    _follow_events: DropGuard,
}

impl Runtime {
    /// Connects to containerd, makes the run directory and starts to follow events.
    ///
    /// Returns when events are being received, so that none of what is done afterwards is missed.
    pub async fn connect(config: RuntimeConfig) -> Result<Arc<Self>, RuntimeError> {
        let socket = &config.containerd_socket;
        let channel = containerd_client::connect(socket)
            .await
            .map_err(|source| RuntimeError::Connect {
                socket: socket.clone(),
                source,
            })?;
        let namespace = config
            .containerd_namespace
            .parse()
            .map_err(|_| RuntimeError::BadSpec {
                id: config.containerd_namespace.clone(),
                reason: "not a usable containerd namespace".to_owned(),
            })?;
        let cgroups = Cgroups::detect(&config.cgroup_root)?;
        for dir in ["ns", "io", "scratch"] {
            let dir = config.run_dir.join(dir);
            tokio::fs::create_dir_all(&dir)
                .await
                .map_err(RuntimeError::file("create", &dir))?;
        }
        let (events, _) = broadcast::channel(EVENT_BUFFER);
        let stop = CancellationToken::new();
        events::follow(
            channel.clone(),
            &config.containerd_namespace,
            events.clone(),
            stop.clone(),
        )
        .await?;
        Ok(Arc::new(Self {
            config,
            events,
            images: ImageCache::default(),
            cgroups,
            locks: Mutex::default(),
            creating: Mutex::default(),
            channel,
            namespace,
            _follow_events: stop.drop_guard(),
        }))
    }

    /// The configuration it was connected with.
    pub fn config(&self) -> &RuntimeConfig {
        &self.config
    }

    /// containerd's version as a node's status gives it: `containerd://1.6.20`.
    pub async fn version(&self) -> Result<String, RuntimeError> {
        let answer = VersionClient::new(self.channel.clone())
            .version(self.request(()))
            .await
            .map_err(RuntimeError::grpc("tell its version"))?;
        Ok(format!(
            "containerd://{}",
            answer.into_inner().version.trim_start_matches('v')
        ))
    }

    /// A request in this runtime's namespace.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("containerd-namespace", self.namespace.clone());
        request
    }

    pub(crate) fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_MAX)
    }

    pub(crate) fn containers_client(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_MAX)
    }

    pub(crate) fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_MAX)
    }

    pub(crate) fn images_client(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_MAX)
    }

    pub(crate) fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_MAX)
    }

    pub(crate) fn diff(&self) -> DiffClient<Channel> {
        DiffClient::new(self.channel.clone())
    }

    pub(crate) fn leases(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.channel.clone())
    }

    /// The directory of a container's fifos, attach socket and marks.
    pub(crate) fn io_dir(&self, id: &str) -> PathBuf {
        self.config.run_dir.join("io").join(id)
    }

    /// Marks a container as being made until the answer is dropped.
    pub(crate) fn creating(&self, id: &str) -> impl Drop + use<'_> {
        self.creating.lock().insert(id.to_owned());
        Creating {
            runtime: self,
            id: id.to_owned(),
        }
    }

    pub(crate) fn is_creating(&self, id: &str) -> bool {
        self.creating.lock().contains(id)
    }

    /// Waits until nobody else holds the lock of this name.
    pub(crate) async fn lock(&self, name: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock();
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(name.to_owned()).or_default())
        };
        lock.lock_owned().await
    }
}

struct Creating<'a> {
    runtime: &'a Runtime,
    id: String,
}

impl Drop for Creating<'_> {
    fn drop(&mut self) {
        self.runtime.creating.lock().remove(&self.id);
    }
}

/// Runs file system work that may take a while off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(RuntimeError::system("run a background task")(
            std::io::Error::other(error),
        )),
    }
}
