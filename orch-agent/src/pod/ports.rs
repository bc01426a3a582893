//! The two neighbours a pod needs, runtime and data plane, behind one trait that tests can fake.

use std::{net::IpAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use orch_dataplane::{Dataplane, DataplaneError, PodAttachment};
use orch_runtime::{
    ContainerSpec, ContainerStatus, ExecOutput, ImageInfo, PodResources, RegistryAuth, Runtime, RuntimeError,
    RuntimeEvent, Sandbox, SandboxSpec,
};
use tokio::sync::broadcast;

/// What the node can do for a pod. Each method means what the method of the same name in `orch-runtime` or
/// `orch-dataplane` means.
#[async_trait]
#[expect(missing_docs, reason = "each method is documented where it is implemented")]
pub trait Host: Send + Sync + 'static {
    fn events(&self) -> broadcast::Receiver<RuntimeEvent>;
    async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<Sandbox, RuntimeError>;
    async fn list_sandboxes(&self) -> Result<Vec<String>, RuntimeError>;
    async fn remove_sandbox(&self, uid: &str) -> Result<(), RuntimeError>;
    async fn set_pod_cgroup(&self, parent: &str, resources: &PodResources) -> Result<(), RuntimeError>;
    async fn remove_pod_cgroup(&self, parent: &str) -> Result<(), RuntimeError>;
    async fn image(&self, reference: &str) -> Result<Option<ImageInfo>, RuntimeError>;
    async fn pull(&self, reference: &str, auth: Option<RegistryAuth>) -> Result<ImageInfo, RuntimeError>;
    async fn containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError>;
    async fn container(&self, id: &str) -> Result<Option<ContainerStatus>, RuntimeError>;
    async fn create(&self, spec: &ContainerSpec) -> Result<(), RuntimeError>;
    async fn start(&self, id: &str) -> Result<(), RuntimeError>;
    async fn kill(&self, id: &str, signal: i32, all: bool) -> Result<(), RuntimeError>;
    async fn delete(&self, id: &str) -> Result<(), RuntimeError>;
    async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput, RuntimeError>;
    async fn attach_pod(&self, pod: &PodAttachment) -> Result<Vec<IpAddr>, DataplaneError>;
    async fn detach_pod(&self, uid: &str) -> Result<(), DataplaneError>;
    fn attached(&self) -> Vec<(String, Vec<IpAddr>)>;
    async fn withdrawn(&self, ip: IpAddr);
}

/// The real runtime and data plane.
pub struct Node {
    /// containerd and what the agent makes around it.
    pub runtime: Arc<Runtime>,
    /// The kernel's maps, links and routes.
    pub dataplane: Arc<Dataplane>,
}

#[async_trait]
impl Host for Node {
    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.runtime.events()
    }
    async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<Sandbox, RuntimeError> {
        self.runtime.create_sandbox(spec).await
    }
    async fn list_sandboxes(&self) -> Result<Vec<String>, RuntimeError> {
        self.runtime.list_sandboxes().await
    }
    async fn remove_sandbox(&self, uid: &str) -> Result<(), RuntimeError> {
        self.runtime.remove_sandbox(uid).await
    }
    async fn set_pod_cgroup(&self, parent: &str, resources: &PodResources) -> Result<(), RuntimeError> {
        self.runtime.set_pod_cgroup(parent, resources).await
    }
    async fn remove_pod_cgroup(&self, parent: &str) -> Result<(), RuntimeError> {
        self.runtime.remove_pod_cgroup(parent).await
    }
    async fn image(&self, reference: &str) -> Result<Option<ImageInfo>, RuntimeError> {
        self.runtime.image(reference).await
    }
    async fn pull(&self, reference: &str, auth: Option<RegistryAuth>) -> Result<ImageInfo, RuntimeError> {
        self.runtime.pull(reference, auth).await
    }
    async fn containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError> {
        self.runtime.containers().await
    }
    async fn container(&self, id: &str) -> Result<Option<ContainerStatus>, RuntimeError> {
        self.runtime.container(id).await
    }
    async fn create(&self, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        self.runtime.create(spec).await
    }
    async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        self.runtime.start(id).await
    }
    async fn kill(&self, id: &str, signal: i32, all: bool) -> Result<(), RuntimeError> {
        self.runtime.kill(id, signal, all).await
    }
    async fn delete(&self, id: &str) -> Result<(), RuntimeError> {
        self.runtime.delete(id).await
    }
    async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput, RuntimeError> {
        self.runtime.exec_sync(id, command, timeout).await
    }
    async fn attach_pod(&self, pod: &PodAttachment) -> Result<Vec<IpAddr>, DataplaneError> {
        self.dataplane.attach_pod(pod).await
    }
    async fn detach_pod(&self, uid: &str) -> Result<(), DataplaneError> {
        self.dataplane.detach_pod(uid).await
    }
    fn attached(&self) -> Vec<(String, Vec<IpAddr>)> {
        self.dataplane.attached()
    }
    async fn withdrawn(&self, ip: IpAddr) {
        self.dataplane.withdrawn(ip).await;
    }
}
