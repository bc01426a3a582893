//! Amounts of what a node has and a pod asks for.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use orch_api::quantity::Quantity;

type List = BTreeMap<String, ApiQuantity>;

/// What a container that says nothing is counted with when nodes are compared (not when they are filtered):
/// 0.1 CPU and 200 MiB, Kubernetes' values.
const DEFAULT_MILLI_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 << 20;

/// Amounts of resources. Sums saturate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub milli_cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes.
    pub ephemeral_storage: i64,
    /// Pods.
    pub pods: i64,
    /// Everything else that a node advertises, huge pages included, by name.
    pub extended: BTreeMap<String, i64>,
}

impl Resources {
    /// Reads a resource list; an amount that cannot be read counts as `unreadable`.
    pub fn from_list(list: Option<&List>, unreadable: i64) -> Self {
        let mut out = Self::default();
        for (name, amount) in list.into_iter().flatten() {
            let parsed = Quantity::parse(&amount.0).ok();
            let value = parsed.map_or(unreadable, |q| q.value());
            match name.as_str() {
                "cpu" => out.milli_cpu = parsed.map_or(unreadable, |q| q.milli_value()),
                "memory" => out.memory = value,
                "ephemeral-storage" => out.ephemeral_storage = value,
                "pods" => out.pods = value,
                _ => drop(out.extended.insert(name.clone(), value)),
            }
        }
        out
    }

    fn combine(&mut self, other: &Self, with: fn(i64, i64) -> i64) {
        self.milli_cpu = with(self.milli_cpu, other.milli_cpu);
        self.memory = with(self.memory, other.memory);
        self.ephemeral_storage = with(self.ephemeral_storage, other.ephemeral_storage);
        self.pods = with(self.pods, other.pods);
        for (name, amount) in &other.extended {
            let mine = self.extended.entry(name.clone()).or_default();
            *mine = with(*mine, *amount);
        }
    }

    /// Adds `other`.
    pub fn add(&mut self, other: &Self) {
        self.combine(other, i64::saturating_add);
    }

    /// Takes the larger of each amount.
    pub fn at_least(&mut self, other: &Self) {
        self.combine(other, i64::max);
    }
}

/// What a pod asks for: the larger of what its containers and sidecars need together and what the most demanding
/// moment of its initialisation needs, plus overhead; amounts given for the pod as a whole come first.
pub fn requests(spec: &PodSpec) -> Resources {
    total(spec, |container| {
        Resources::from_list(
            container.resources.as_ref().and_then(|r| r.requests.as_ref()),
            i64::MAX,
        )
    })
}

/// The same with the defaults that keep pods without requests from piling up on one node: CPU in thousandths and
/// memory in bytes.
pub fn scoring_requests(spec: &PodSpec) -> (i64, i64) {
    let all = total(spec, |container| {
        let list = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        let mut own = Resources::from_list(list, i64::MAX);
        let says = |name| list.is_some_and(|l| l.contains_key(name));
        if !says("cpu") {
            own.milli_cpu = DEFAULT_MILLI_CPU;
        }
        if !says("memory") {
            own.memory = DEFAULT_MEMORY;
        }
        own
    });
    (all.milli_cpu, all.memory)
}

fn total(spec: &PodSpec, of: impl Fn(&Container) -> Resources) -> Resources {
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&of(container));
    }
    let (mut sidecars, mut peak) = (Resources::default(), Resources::default());
    for container in spec.init_containers.iter().flatten() {
        let own = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&own);
            peak.at_least(&sidecars);
        } else {
            let mut now = sidecars.clone();
            now.add(&own);
            peak.at_least(&now);
        }
    }
    running.add(&sidecars);
    running.at_least(&peak);
    if let Some(whole) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        let pod = Resources::from_list(Some(whole), i64::MAX);
        if whole.contains_key("cpu") {
            running.milli_cpu = pod.milli_cpu;
        }
        if whole.contains_key("memory") {
            running.memory = pod.memory;
        }
        running.extended.extend(pod.extended);
    }
    running.add(&Resources::from_list(spec.overhead.as_ref(), i64::MAX));
    running.pods = 1;
    running
}
