//! `/metrics` and `/metrics/resource` in Prometheus' text format. `/metrics/cadvisor` is not there yet.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64},
    },
    time::SystemTime,
};

use axum::{extract::State, response::Response};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{Backend, Failure, routes::text};
use crate::node::facts;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ContainerLabels {
    container: String,
    namespace: String,
    pod: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PodLabels {
    namespace: String,
    pod: String,
}

type Seconds = Counter<f64, AtomicU64>;
type Bytes = Gauge<i64, AtomicI64>;

/// The agent itself.
pub(super) async fn agent(State(backend): State<Arc<dyn Backend>>) -> Result<Response, Failure> {
    let mut registry = Registry::default();
    let pods: Bytes = Gauge::default();
    let list = backend.pods();
    let running = |pod: &&_| phase(pod) == Some("Running");
    pods.set(count(list.iter().filter(running).count()));
    registry.register("kubelet_running_pods", "Pods that run on this node", pods);
    let containers: Bytes = Gauge::default();
    let statuses = list
        .iter()
        .filter_map(|pod| pod.status.as_ref()?.container_statuses.as_ref())
        .flatten();
    let running = statuses.filter(|c| c.state.as_ref().is_some_and(|s| s.running.is_some()));
    containers.set(count(running.count()));
    registry.register(
        "kubelet_running_containers",
        "Containers that run on this node",
        containers,
    );
    let own = facts::own_usage();
    let resident: Bytes = Gauge::default();
    resident.set(count(own.resident_bytes));
    registry.register(
        "process_resident_memory_bytes",
        "Resident memory of the agent",
        resident,
    );
    let cpu = Seconds::default();
    cpu.inc_by(own.cpu_seconds);
    registry.register("process_cpu_seconds", "CPU time of the agent", cpu);
    let descriptors: Bytes = Gauge::default();
    descriptors.set(count(own.open_files));
    registry.register(
        "process_open_fds",
        "Open file descriptors of the agent",
        descriptors,
    );
    backend.register_metrics(&mut registry);
    encoded(&registry)
}

/// What the metrics server reads: CPU and memory of the node, its pods and containers.
pub(super) async fn resource(State(backend): State<Arc<dyn Backend>>) -> Result<Response, Failure> {
    let mut registry = Registry::default();
    let container_cpu = Family::<ContainerLabels, Seconds>::default();
    let container_memory = Family::<ContainerLabels, Bytes>::default();
    let pod_cpu = Family::<PodLabels, Seconds>::default();
    let pod_memory = Family::<PodLabels, Bytes>::default();
    for usage in backend.usage().await {
        let target = usage.target;
        let pod = PodLabels {
            namespace: target.namespace.clone(),
            pod: target.pod.clone(),
        };
        let labels = ContainerLabels {
            container: target.container,
            namespace: target.namespace,
            pod: target.pod,
        };
        let seconds = usage.stats.cpu_usage_ns as f64 / 1e9;
        let bytes = i64::try_from(usage.stats.memory_working_set_bytes).unwrap_or(i64::MAX);
        container_cpu.get_or_create(&labels).inc_by(seconds);
        container_memory.get_or_create(&labels).set(bytes);
        pod_cpu.get_or_create(&pod).inc_by(seconds);
        pod_memory.get_or_create(&pod).inc_by(bytes);
    }
    let node = facts::node_usage();
    let node_cpu = Seconds::default();
    node_cpu.inc_by(node.cpu_seconds);
    let node_memory: Bytes = Gauge::default();
    node_memory.set(count(node.working_set_bytes));
    registry.register(
        "container_cpu_usage_seconds",
        "CPU time of the container",
        container_cpu,
    );
    registry.register(
        "container_memory_working_set_bytes",
        "Working set of the container",
        container_memory,
    );
    registry.register("pod_cpu_usage_seconds", "CPU time of the pod", pod_cpu);
    registry.register(
        "pod_memory_working_set_bytes",
        "Working set of the pod",
        pod_memory,
    );
    registry.register("node_cpu_usage_seconds", "CPU time of the node", node_cpu);
    registry.register(
        "node_memory_working_set_bytes",
        "Working set of the node",
        node_memory,
    );
    let now: Gauge<f64, AtomicU64> = Gauge::default();
    now.set(
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0.0, |d| d.as_secs_f64()),
    );
    registry.register("resource_scrape_time_seconds", "When this was read", now);
    encoded(&registry)
}

fn phase(pod: &k8s_openapi::api::core::v1::Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

fn count<N: TryInto<i64>>(number: N) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

fn encoded(registry: &Registry) -> Result<Response, Failure> {
    let mut body = String::new();
    encode(&mut body, registry).map_err(|error| Failure::Internal(error.to_string()))?;
    Ok(text(body, CONTENT_TYPE))
}
