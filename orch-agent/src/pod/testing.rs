//! What the tests of this room share: a host that records what it is asked, and an API in memory.

mod api;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use orch_dataplane::{DataplaneError, PodAttachment};
use orch_runtime::{
    ContainerSpec, ContainerState, ContainerStatus, ExecOutput, ImageInfo, PodResources, PullFailure,
    RegistryAuth, RuntimeError, RuntimeEvent, Sandbox, SandboxSpec,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

pub(crate) use api::FakeApi;

use super::{Manager, ManagerConfig, ports::Host, volumes::mount};

/// An image of root's that runs `/bin/app`.
pub(crate) fn image(name: &str) -> ImageInfo {
    ImageInfo {
        name: name.to_owned(),
        id: "sha256:0123".to_owned(),
        repo_digests: vec![],
        size: 1,
        entrypoint: vec!["/bin/app".to_owned()],
        cmd: vec![],
        env: vec![],
        user: String::new(),
        working_dir: String::new(),
        stop_signal: None,
        exposed_ports: vec![],
        labels: BTreeMap::default(),
    }
}

/// The uid of the pod that [`pod`] makes.
pub(crate) const UID: &str = "0dd6a2e3-6a4c-4d8c-8a51-0f7a0c9f7b11";

/// A pod `shop/web` on node `n1` with this spec.
pub(crate) fn pod(spec: Value) -> Value {
    let mut spec = spec;
    spec["nodeName"] = "n1".into();
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "uid": UID, "resourceVersion": "1"}, "spec": spec})
}

/// The same, typed.
pub(crate) fn typed(value: Value) -> Arc<Pod> {
    Arc::new(serde_json::from_value(value).unwrap())
}

/// A host whose containers run until they are told otherwise.
pub(crate) struct FakeHost {
    pub(crate) containers: Mutex<BTreeMap<String, ContainerStatus>>,
    pub(crate) specs: Mutex<Vec<ContainerSpec>>,
    pub(crate) sandboxes: Mutex<Vec<String>>,
    pub(crate) log: Mutex<Vec<String>>,
    pub(crate) missing_images: Mutex<Vec<String>>,
    /// Containers ignore SIGTERM.
    pub(crate) stubborn: Mutex<bool>,
    events: broadcast::Sender<RuntimeEvent>,
}

impl FakeHost {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            containers: Mutex::default(),
            specs: Mutex::default(),
            sandboxes: Mutex::default(),
            log: Mutex::default(),
            missing_images: Mutex::default(),
            stubborn: Mutex::new(false),
            events: broadcast::channel(64).0,
        })
    }

    /// Ends a running container.
    pub(crate) fn exit(&self, id: &str, code: i32) {
        let at = Timestamp::now();
        if let Some(c) = self.containers.lock().get_mut(id)
            && c.state == ContainerState::Running
        {
            c.state = ContainerState::Exited;
            c.exit_code = Some(code);
            c.finished_at = Some(at);
            let _ = self.events.send(RuntimeEvent::Exited {
                id: id.to_owned(),
                exit_code: code,
                pid: 1,
                at,
            });
        }
    }

    /// A container as the runtime would report it.
    pub(crate) fn status(spec: &ContainerSpec, state: ContainerState) -> ContainerStatus {
        ContainerStatus {
            id: spec.id.clone(),
            pod_uid: spec.pod_uid.clone(),
            image: spec.image.clone(),
            image_id: "sha256:0123".to_owned(),
            labels: spec.labels.clone(),
            created_at: Timestamp::now(),
            state,
            pid: 1,
            exit_code: None,
            started_at: Some(Timestamp::now()),
            finished_at: None,
            oom_killed: false,
            log_path: spec.log_path.clone(),
            tty: false,
            stdin: false,
            stop_signal: libc::SIGTERM,
        }
    }

    fn note(&self, text: String) {
        self.log.lock().push(text);
    }
}

#[async_trait]
impl Host for FakeHost {
    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.events.subscribe()
    }
    async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<Sandbox, RuntimeError> {
        self.sandboxes.lock().push(spec.uid.clone());
        Ok(Sandbox {
            net: Some("/proc/self/ns/net".into()),
            ..Sandbox::default()
        })
    }
    async fn list_sandboxes(&self) -> Result<Vec<String>, RuntimeError> {
        Ok(self.sandboxes.lock().clone())
    }
    async fn remove_sandbox(&self, uid: &str) -> Result<(), RuntimeError> {
        self.sandboxes.lock().retain(|u| u != uid);
        Ok(())
    }
    async fn set_pod_cgroup(&self, _: &str, _: &PodResources) -> Result<(), RuntimeError> {
        Ok(())
    }
    async fn remove_pod_cgroup(&self, _: &str) -> Result<(), RuntimeError> {
        Ok(())
    }
    async fn image(&self, reference: &str) -> Result<Option<ImageInfo>, RuntimeError> {
        let missing = self.missing_images.lock().iter().any(|m| m == reference);
        Ok((!missing).then(|| image(reference)))
    }
    async fn pull(&self, reference: &str, _: Option<RegistryAuth>) -> Result<ImageInfo, RuntimeError> {
        self.note(format!("pull {reference}"));
        if self.missing_images.lock().iter().any(|m| m == reference) {
            let message = "not found".to_owned();
            return Err(RuntimeError::Pull {
                reference: reference.to_owned(),
                kind: PullFailure::NotFound,
                message,
            });
        }
        Ok(image(reference))
    }
    async fn containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError> {
        Ok(self.containers.lock().values().cloned().collect())
    }
    async fn container(&self, id: &str) -> Result<Option<ContainerStatus>, RuntimeError> {
        Ok(self.containers.lock().get(id).cloned())
    }
    async fn create(&self, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        self.containers
            .lock()
            .insert(spec.id.clone(), Self::status(spec, ContainerState::Created));
        self.specs.lock().push(spec.clone());
        Ok(())
    }
    async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        let name = {
            let mut all = self.containers.lock();
            let c = all
                .get_mut(id)
                .ok_or_else(|| RuntimeError::NoSuchContainer(id.to_owned()))?;
            c.state = ContainerState::Running;
            c.labels[super::id::CONTAINER].clone()
        };
        self.note(format!("start {name}"));
        Ok(())
    }
    async fn kill(&self, id: &str, signal: i32, _: bool) -> Result<(), RuntimeError> {
        let name = self
            .containers
            .lock()
            .get(id)
            .map(|c| c.labels[super::id::CONTAINER].clone())
            .unwrap_or_default();
        self.note(format!("kill {name} {signal}"));
        if signal == libc::SIGKILL || !*self.stubborn.lock() {
            self.exit(id, 128 + signal);
        }
        Ok(())
    }
    async fn delete(&self, id: &str) -> Result<(), RuntimeError> {
        self.containers.lock().remove(id);
        Ok(())
    }
    async fn exec_sync(&self, _: &str, command: &[String], _: Duration) -> Result<ExecOutput, RuntimeError> {
        self.note(format!("exec {}", command.join(" ")));
        Ok(ExecOutput {
            exit_code: i32::from(command[0] == "false"),
            output: b"said no".to_vec(),
        })
    }
    async fn attach_pod(&self, _: &PodAttachment) -> Result<Vec<IpAddr>, DataplaneError> {
        Ok(vec![Ipv4Addr::new(10, 244, 0, 7).into()])
    }
    async fn detach_pod(&self, _: &str) -> Result<(), DataplaneError> {
        Ok(())
    }
    fn attached(&self) -> Vec<(String, Vec<IpAddr>)> {
        vec![]
    }
    async fn withdrawn(&self, ip: IpAddr) {
        self.note(format!("withdrawn {ip}"));
    }
}

/// A node on a temporary directory, with an API of its own.
pub(crate) struct Node {
    pub(crate) host: Arc<FakeHost>,
    pub(crate) api: Arc<FakeApi>,
    pub(crate) root: tempfile::TempDir,
    pub(crate) manager: Option<Arc<Manager>>,
    cancel: CancellationToken,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self {
            host: FakeHost::new(),
            api: FakeApi::new(),
            root: tempfile::tempdir().unwrap(),
            manager: None,
            cancel: CancellationToken::new(),
        }
    }

    pub(crate) fn config(&self) -> ManagerConfig {
        ManagerConfig {
            root_dir: self.root.path().to_owned(),
            cluster_dns: vec![IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10))],
            ..ManagerConfig::new("n1", vec![IpAddr::V4(Ipv4Addr::LOCALHOST)])
        }
    }

    pub(crate) fn start(&mut self) -> Arc<Manager> {
        let client = self.api.client();
        let cluster = orch_cluster::Cluster::start(client.clone());
        let host = self.host.clone();
        let manager = Manager::start_on(self.config(), client, host, cluster, self.cancel.clone());
        self.manager = Some(manager.clone());
        manager
    }

    /// Ends the agent as a crash would: tasks stop, containers go on.
    pub(crate) async fn crash(&mut self) {
        self.cancel.cancel();
        self.cancel = CancellationToken::new();
        if let Some(manager) = self.manager.take() {
            manager.stopped().await;
        }
    }

    /// Waits (in the test's clock) until `test` holds for the API's pod.
    pub(crate) async fn until(&self, what: &str, test: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        for _ in 0..2000 {
            last = self.api.pod("web").unwrap_or(Value::Null);
            if test(&last) {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!(
            "never: {what}; pod: {last:#}; events: {:#?}; host: {:?}",
            self.api.events(),
            self.host.log.lock()
        );
    }

    /// The id of the container's only running run.
    pub(crate) fn running(&self, container: &str) -> Option<String> {
        let all = self.host.containers.lock();
        let mut found = all
            .values()
            .filter(|c| c.state == ContainerState::Running && c.labels[super::id::CONTAINER] == container);
        let id = found.next().map(|c| c.id.clone());
        assert!(found.next().is_none(), "two runs of {container} at once");
        id
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.cancel.cancel();
        let _ = mount::remove(self.root.path());
    }
}

/// Whether the pod's condition is true.
pub(crate) fn is_true(pod: &Value, condition: &str) -> bool {
    let all = pod["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    all.iter()
        .any(|c| c["type"] == condition && c["status"] == "True")
}
