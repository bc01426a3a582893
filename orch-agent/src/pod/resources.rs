//! What a pod asks for and what follows: QoS class, cgroup and OOM score.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, Pod, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};

use super::quantity;

/// The quality-of-service class of a pod, which decides its cgroup and who dies first when memory is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    /// Every container limits CPU and memory and requests exactly that.
    Guaranteed,
    /// Something is requested or limited.
    Burstable,
    /// Nothing is requested or limited.
    BestEffort,
}

impl Qos {
    /// The class's name in `status.qosClass`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }

    /// The class of `pod`.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else {
            return Self::BestEffort;
        };
        if let Some(resources) = &spec.resources
            && (resources.requests.is_some() || resources.limits.is_some())
        {
            return if is_guaranteed(resources) {
                Self::Guaranteed
            } else {
                Self::Burstable
            };
        }
        let all = || {
            spec.containers
                .iter()
                .chain(spec.init_containers.iter().flatten())
        };
        let asks = |c: &Container| {
            c.resources.as_ref().is_some_and(|r| {
                [&r.requests, &r.limits].into_iter().flatten().any(|m| {
                    m.iter()
                        .any(|(k, v)| matches!(k.as_str(), "cpu" | "memory") && quantity::milli(v) != Ok(0))
                })
            })
        };
        if !all().any(asks) {
            Self::BestEffort
        } else if all().all(|c| c.resources.as_ref().is_some_and(is_guaranteed)) {
            Self::Guaranteed
        } else {
            Self::Burstable
        }
    }
}

fn is_guaranteed(resources: &ResourceRequirements) -> bool {
    ["cpu", "memory"].into_iter().all(|name| {
        let limit = number(resources.limits.as_ref(), name);
        limit.is_some_and(|l| l > 0 && number(resources.requests.as_ref(), name).is_none_or(|r| r == l))
    })
}

fn number(map: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<i64> {
    let quantity = map?.get(name)?;
    if name == "cpu" {
        quantity::milli(quantity).ok()
    } else {
        quantity::whole(quantity).ok()
    }
}

/// One container's CPU (millicores) and memory (bytes).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resources {
    /// Requested CPU; a limit without a request is a request too.
    pub cpu_request: Option<i64>,
    /// CPU limit.
    pub cpu_limit: Option<i64>,
    /// Requested memory; a limit without a request is a request too.
    pub memory_request: Option<i64>,
    /// Memory limit.
    pub memory_limit: Option<i64>,
}

impl Resources {
    /// What `container` asks for.
    #[must_use]
    pub fn of(container: &Container) -> Self {
        let Some(r) = &container.resources else {
            return Self::default();
        };
        let (cpu_limit, memory_limit) = (
            number(r.limits.as_ref(), "cpu"),
            number(r.limits.as_ref(), "memory"),
        );
        Self {
            cpu_request: number(r.requests.as_ref(), "cpu").or(cpu_limit),
            cpu_limit: cpu_limit.filter(|n| *n > 0),
            memory_request: number(r.requests.as_ref(), "memory").or(memory_limit),
            memory_limit: memory_limit.filter(|n| *n > 0),
        }
    }
}

/// The pod's cgroup, relative to the agent's root: `kubepods[/CLASS]/podUID`.
#[must_use]
pub fn cgroup_parent(qos: Qos, uid: &str) -> String {
    match qos {
        Qos::Guaranteed => format!("kubepods/pod{uid}"),
        Qos::Burstable => format!("kubepods/burstable/pod{uid}"),
        Qos::BestEffort => format!("kubepods/besteffort/pod{uid}"),
    }
}

/// The priority from which a pod counts as critical to its node (`system-cluster-critical`).
const SYSTEM_CRITICAL: i32 = 2_000_000_000;

/// The `oom_score_adj` of a container on a node with `capacity` bytes of memory, by Kubernetes' rule.
#[must_use]
pub fn oom_score_adj(pod: &Pod, container: &Container, capacity: i64) -> i32 {
    if pod
        .spec
        .as_ref()
        .and_then(|s| s.priority)
        .is_some_and(|p| p >= SYSTEM_CRITICAL)
    {
        return -997;
    }
    match Qos::of(pod) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let request = Resources::of(container).memory_request.unwrap_or(0);
            let score = 1000 - (i128::from(request) * 1000 / i128::from(capacity.max(1)));
            i32::try_from(score.clamp(3, 999)).unwrap_or(999)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(resources: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": [
            {"name": "a", "image": "i", "resources": resources}]}}))
        .unwrap()
    }

    #[test]
    fn classes_follow_requests_and_limits() {
        let cases = [
            (json!({}), Qos::BestEffort),
            (json!({"requests": {"cpu": "0"}}), Qos::BestEffort),
            (json!({"requests": {"cpu": "10m"}}), Qos::Burstable),
            (json!({"limits": {"cpu": "1"}}), Qos::Burstable),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), Qos::Guaranteed),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m"}}),
                Qos::Guaranteed,
            ),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1m"}}),
                Qos::Burstable,
            ),
        ];
        for (resources, class) in cases {
            assert_eq!(Qos::of(&pod(resources.clone())), class, "{resources}");
        }
    }

    #[test]
    fn oom_score_falls_with_the_share_of_memory_requested() {
        let score = |r| {
            let pod = pod(r);
            oom_score_adj(&pod, &pod.spec.as_ref().unwrap().containers[0], 1 << 30)
        };
        assert_eq!(score(json!({})), 1000);
        assert_eq!(score(json!({"limits": {"cpu": "1", "memory": "1Mi"}})), -997);
        assert_eq!(score(json!({"requests": {"memory": "512Mi"}})), 500);
        assert_eq!(score(json!({"requests": {"memory": "1Gi"}})), 3);
        assert_eq!(score(json!({"requests": {"cpu": "1m"}})), 999);
    }
}
