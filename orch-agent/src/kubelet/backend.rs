//! What the API needs from the node, behind one trait that tests can fake.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;
use orch_runtime::{ContainerStats, ExecSpec, OutputStream, StdinStream, logs::LogOptions};
use prometheus_client::registry::Registry;
use tokio::net::TcpStream;

use super::Failure;

/// A container of a pod, by names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// The container.
    pub container: String,
}

/// What can be done to a process beside reading and writing.
#[async_trait]
pub trait Control: Send + Sync + 'static {
    /// Sets the size of its terminal.
    async fn resize(&self, columns: u16, rows: u16) -> Result<(), Failure>;
    /// Its exit code, 128 + signal for a signal.
    async fn wait(&self) -> Result<i32, Failure>;
    /// Ends it because nobody looks at it any more; does nothing to a container that was attached to.
    async fn kill(&self) -> Result<(), Failure>;
}

/// A process with its streams.
pub struct Process {
    /// Input, if asked for.
    pub stdin: Option<StdinStream>,
    /// Standard output.
    pub stdout: Option<OutputStream>,
    /// Standard error; `None` with a terminal.
    pub stderr: Option<OutputStream>,
    /// The rest.
    pub control: Arc<dyn Control>,
}

/// Usage of one container, with its names.
#[derive(Debug, Clone)]
pub struct Usage {
    /// Whose usage it is.
    pub target: Target,
    /// The pod's uid.
    pub uid: String,
    /// The counters.
    pub stats: ContainerStats,
}

/// The node, as far as this API is concerned.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// The Node object's name.
    fn node_name(&self) -> &str;
    /// All pods with their statuses.
    fn pods(&self) -> Vec<Pod>;
    /// A container's log, of the current or the previous run.
    async fn logs(
        &self,
        target: &Target,
        previous: bool,
        options: LogOptions,
    ) -> Result<BoxStream<'static, Result<Bytes, Failure>>, Failure>;
    /// Whether exec and attach can find the container: checked while an HTTP answer is still possible.
    fn find(&self, target: &Target) -> Result<(), Failure>;
    /// Starts a process in a container.
    async fn exec(&self, target: &Target, spec: ExecSpec) -> Result<Process, Failure>;
    /// Joins the streams of a container's own process; stdin and stdout only if wanted.
    async fn attach(&self, target: &Target, stdin: bool) -> Result<Process, Failure>;
    /// Whether a pod can be forwarded to.
    fn find_pod(&self, namespace: &str, pod: &str) -> Result<(), Failure>;
    /// A connection to a port on the pod's loopback.
    async fn dial(&self, namespace: &str, pod: &str, port: u16) -> Result<TcpStream, Failure>;
    /// What every running container uses.
    async fn usage(&self) -> Vec<Usage>;
    /// Puts the metrics of the node's other parts, as they are now, into a registry that is read once.
    fn register_metrics(&self, registry: &mut Registry);
}
