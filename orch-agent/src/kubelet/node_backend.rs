//! The real node behind the API: the pod manager and the runtime.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use k8s_openapi::api::core::v1::Pod;
use orch_dataplane::Dataplane;
use orch_runtime::{Exec, ExecSpec, ProcessControl, Runtime, RuntimeError, logs::LogOptions};
use prometheus_client::registry::Registry;
use tokio::net::TcpStream;

use super::{
    Failure,
    backend::{Backend, Control, Process, Target, Usage},
    netns,
};
use crate::pod::{ContainerRef, Manager, PodSnapshot};

/// `SIGKILL`, for a process that nobody listens to any more.
const KILL: i32 = 9;

/// Pods and containers of this node.
pub struct NodeBackend {
    manager: Arc<Manager>,
    runtime: Arc<Runtime>,
    dataplane: Arc<Dataplane>,
    run_dir: PathBuf,
    node_name: String,
}

impl NodeBackend {
    /// A backend over the node's manager, runtime and data plane; `run_dir` is where pods' namespaces are bound, `node_name` the
    /// Node object's name.
    #[must_use]
    pub fn new(
        manager: Arc<Manager>,
        runtime: Arc<Runtime>,
        dataplane: Arc<Dataplane>,
        run_dir: PathBuf,
        node_name: String,
    ) -> Self {
        Self {
            manager,
            runtime,
            dataplane,
            run_dir,
            node_name,
        }
    }

    fn container(&self, target: &Target, previous: bool) -> Result<ContainerRef, Failure> {
        Ok(self
            .manager
            .container_id(&target.namespace, &target.pod, &target.container, previous)?)
    }

    fn running(&self, target: &Target) -> Result<ContainerRef, Failure> {
        let found = self.container(target, false)?;
        if found.running {
            return Ok(found);
        }
        Err(Failure::BadRequest(format!(
            "container not found (\"{}\"): it is not running",
            target.container
        )))
    }

    fn pod(&self, namespace: &str, name: &str) -> Result<PodSnapshot, Failure> {
        let named = |s: &PodSnapshot| {
            s.pod.metadata.namespace.as_deref() == Some(namespace)
                && s.pod.metadata.name.as_deref() == Some(name)
        };
        let found = self.manager.pods().into_iter().filter(named);
        found
            .max_by_key(|s| s.pod.metadata.creation_timestamp.as_ref().map(|t| t.0))
            .ok_or_else(|| Failure::NotFound(format!("pod \"{name}\" not found")))
    }
}

#[async_trait]
impl Backend for NodeBackend {
    fn node_name(&self) -> &str {
        &self.node_name
    }

    fn pods(&self) -> Vec<Pod> {
        let with_status = |snapshot: PodSnapshot| {
            let mut pod = Pod::clone(&snapshot.pod);
            pod.status = Some((*snapshot.status).clone());
            pod
        };
        self.manager.pods().into_iter().map(with_status).collect()
    }

    async fn logs(
        &self,
        target: &Target,
        previous: bool,
        options: LogOptions,
    ) -> Result<BoxStream<'static, Result<Bytes, Failure>>, Failure> {
        let found = self.container(target, previous)?;
        let (manager, target, id) = (self.manager.clone(), target.clone(), found.id);
        let still_running = move || {
            let now = manager.container_id(&target.namespace, &target.pod, &target.container, false);
            !previous && now.is_ok_and(|now| now.running && now.id == id)
        };
        let stream = orch_runtime::logs::read(&found.log_path, options, still_running);
        Ok(stream.map(|piece| piece.map_err(Failure::from)).boxed())
    }

    fn find(&self, target: &Target) -> Result<(), Failure> {
        self.running(target).map(drop)
    }

    async fn exec(&self, target: &Target, spec: ExecSpec) -> Result<Process, Failure> {
        let id = self.running(target)?.id;
        Ok(process(self.runtime.exec(&id, spec).await?))
    }

    async fn attach(&self, target: &Target, stdin: bool) -> Result<Process, Failure> {
        let id = self.running(target)?.id;
        let mut process = process(self.runtime.attach(&id).await?);
        if !stdin {
            process.stdin = None;
        }
        Ok(process)
    }

    fn find_pod(&self, namespace: &str, pod: &str) -> Result<(), Failure> {
        let snapshot = self.pod(namespace, pod)?;
        if snapshot
            .containers
            .iter()
            .any(|c| c.current.as_ref().is_some_and(|run| run.running))
        {
            return Ok(());
        }
        let phase = snapshot.status.phase.as_deref().unwrap_or("Pending");
        Err(Failure::BadRequest(format!(
            "unable to forward port because pod is not running. Current status={phase}"
        )))
    }

    async fn dial(&self, namespace: &str, pod: &str, port: u16) -> Result<TcpStream, Failure> {
        let snapshot = self.pod(namespace, pod)?;
        let host_network = snapshot
            .pod
            .spec
            .as_ref()
            .and_then(|s| s.host_network)
            .unwrap_or(false);
        let uid = snapshot.pod.metadata.uid.clone().unwrap_or_default();
        let netns = (!host_network).then(|| self.run_dir.join("ns").join(uid).join("net"));
        netns::dial(netns, port).await.map_err(|error| {
            Failure::Internal(format!(
                "failed to connect to localhost:{port} inside pod {namespace}/{pod}: {error}"
            ))
        })
    }

    async fn usage(&self) -> Vec<Usage> {
        let mut usage = Vec::new();
        for snapshot in self.manager.pods() {
            let meta = &snapshot.pod.metadata;
            for container in &snapshot.containers {
                let Some(run) = container.current.as_ref().filter(|run| run.running) else {
                    continue;
                };
                // A container that ends meanwhile uses nothing.
                let Ok(stats) = self.runtime.stats(&run.id).await else {
                    continue;
                };
                let target = Target {
                    namespace: meta.namespace.clone().unwrap_or_default(),
                    pod: meta.name.clone().unwrap_or_default(),
                    container: container.name.clone(),
                };
                usage.push(Usage {
                    target,
                    uid: meta.uid.clone().unwrap_or_default(),
                    stats,
                });
            }
        }
        usage
    }

    fn register_metrics(&self, registry: &mut Registry) {
        self.dataplane.register_metrics(registry);
    }
}

fn process(exec: Exec) -> Process {
    Process {
        stdin: exec.stdin,
        stdout: exec.stdout,
        stderr: exec.stderr,
        control: Arc::new(Handle(exec.control)),
    }
}

struct Handle(ProcessControl);

#[async_trait]
impl Control for Handle {
    async fn resize(&self, columns: u16, rows: u16) -> Result<(), Failure> {
        Ok(self.0.resize(columns, rows).await?)
    }

    async fn wait(&self) -> Result<i32, Failure> {
        Ok(self.0.wait().await?)
    }

    async fn kill(&self) -> Result<(), Failure> {
        match self.0.kill(KILL).await {
            Err(RuntimeError::NoSuchContainer(_) | RuntimeError::NotRunning(_)) => Ok(()),
            other => Ok(other?),
        }
    }
}
