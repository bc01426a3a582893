//! The downward API: what a pod may learn about itself, for environment variables and volumes.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr};

use k8s_openapi::{
    api::core::v1::{Pod, ResourceFieldSelector},
    apimachinery::pkg::api::resource::Quantity,
};

use super::quantity;

/// What the node adds to a pod's own object.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// The node's addresses, `status.hostIPs`, the primary one first.
    pub host_ips: Vec<IpAddr>,
    /// The node's CPU in millicores, the default of `limits.cpu`.
    pub cpu_millis: i64,
    /// The node's memory in bytes, the default of `limits.memory`.
    pub memory_bytes: i64,
}

/// A field that cannot be resolved.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FieldError {
    /// The path is not one the downward API knows.
    #[error("unsupported fieldPath: {0}")]
    Unsupported(String),
    /// The resource is not one the downward API knows.
    #[error("unsupported container resource : {0}")]
    Resource(String),
    /// The container named by a resource selector does not exist.
    #[error("container {0} not found")]
    Container(String),
    /// A quantity in the pod does not parse.
    #[error(transparent)]
    Quantity(#[from] quantity::QuantityError),
}

/// The value of `path` in `pod`, whose addresses are `pod_ips` once it has some, the primary one first.
///
/// # Errors
/// When the path is unknown.
pub fn field(pod: &Pod, path: &str, node: &NodeFacts, pod_ips: &[IpAddr]) -> Result<String, FieldError> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(FieldError::Unsupported(path.to_owned())),
        };
        return Ok(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    let first = |ips: &[IpAddr]| ips.first().map(IpAddr::to_string).unwrap_or_default();
    let all = |ips: &[IpAddr]| {
        let texts: Vec<String> = ips.iter().map(IpAddr::to_string).collect();
        texts.join(",")
    };
    Ok(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => spec
            .and_then(|s| s.service_account_name.clone())
            .unwrap_or_default(),
        "status.hostIP" => first(&node.host_ips),
        "status.hostIPs" => all(&node.host_ips),
        "status.podIP" => first(pod_ips),
        "status.podIPs" => all(pod_ips),
        _ => return Err(FieldError::Unsupported(path.to_owned())),
    })
}

/// Splits `metadata.labels['key']` into map and key.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// A map as `key="escaped value"` lines, sorted by key.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let mut out = String::new();
    for (key, value) in map.into_iter().flatten() {
        let separator = if out.is_empty() { "" } else { "\n" };
        let _ = write!(out, "{separator}{key}={value:?}");
    }
    out
}

/// The value of a container's request or limit, divided by the selector's divisor and rounded up.
///
/// `container` is used where the selector names none.
///
/// # Errors
/// When the container or the resource does not exist.
pub fn resource(
    pod: &Pod,
    container: &str,
    selector: &ResourceFieldSelector,
    node: &NodeFacts,
) -> Result<String, FieldError> {
    let name = selector
        .container_name
        .as_deref()
        .filter(|n| !n.is_empty())
        .unwrap_or(container);
    let container = (pod.spec.iter())
        .flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()))
        .find(|c| c.name == name)
        .ok_or_else(|| FieldError::Container(name.to_owned()))?;
    let (kind, what) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| FieldError::Resource(selector.resource.clone()))?;
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|r| r.limits.as_ref());
    let map = match kind {
        "limits" => limits,
        "requests" => resources.and_then(|r| r.requests.as_ref()),
        _ => return Err(FieldError::Resource(selector.resource.clone())),
    };
    let in_thousandths = what == "cpu";
    let read = |q: &Quantity| {
        if in_thousandths {
            quantity::milli(q)
        } else {
            quantity::whole(q)
        }
    };
    let default = match (kind, what) {
        ("limits", "cpu") => node.cpu_millis,
        ("limits", "memory") => node.memory_bytes,
        (_, "cpu" | "memory" | "ephemeral-storage") => 0,
        (_, w) if w.starts_with("hugepages-") => 0,
        _ => return Err(FieldError::Resource(selector.resource.clone())),
    };
    // A request that is not given equals its limit, as the API server defaults it.
    let given = map
        .and_then(|m| m.get(what))
        .or_else(|| limits.and_then(|m| m.get(what)));
    let value = given.map(read).transpose()?.unwrap_or(default);
    let divisor = match &selector.divisor {
        Some(d) if quantity::milli(d)? != 0 => read(d)?,
        _ if in_thousandths => 1000,
        _ => 1,
    }
    .max(1);
    Ok((value / divisor + i64::from(value % divisor != 0)).to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node() -> NodeFacts {
        NodeFacts {
            host_ips: vec!["172.30.0.11".parse().unwrap()],
            cpu_millis: 2000,
            memory_bytes: 1 << 30,
        }
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web-0", "namespace": "shop", "uid": "u1",
                "labels": {"app": "web", "zone": "b"}, "annotations": {"note": "a \"b\"\nc"}},
            "spec": {"nodeName": "n1", "serviceAccountName": "sa", "containers": [{"name": "c", "image": "i",
                "resources": {"limits": {"cpu": "1500m", "memory": "100Mi"}}}, {"name": "d", "image": "i"}]}
        }))
        .unwrap()
    }

    #[test]
    fn fields_of_the_pod() {
        let ips = ["10.244.1.7".parse().unwrap(), "fd00:10:244:1::7".parse().unwrap()];
        let cases = [
            ("metadata.name", "web-0"),
            ("metadata.namespace", "shop"),
            ("metadata.uid", "u1"),
            ("metadata.labels['app']", "web"),
            ("metadata.labels['none']", ""),
            ("metadata.labels", "app=\"web\"\nzone=\"b\""),
            ("metadata.annotations", "note=\"a \\\"b\\\"\\nc\""),
            ("spec.nodeName", "n1"),
            ("spec.serviceAccountName", "sa"),
            ("status.hostIP", "172.30.0.11"),
            ("status.hostIPs", "172.30.0.11"),
            ("status.podIP", "10.244.1.7"),
            ("status.podIPs", "10.244.1.7,fd00:10:244:1::7"),
        ];
        for (path, want) in cases {
            assert_eq!(field(&pod(), path, &node(), &ips).unwrap(), want, "{path}");
        }
        assert_eq!(
            field(&pod(), "status.phase", &node(), &[]),
            Err(FieldError::Unsupported("status.phase".into()))
        );
    }

    #[test]
    fn resources_divide_and_round_up() {
        let get = |resource: &str, container: &str, divisor: &str| {
            let selector = ResourceFieldSelector {
                container_name: None,
                resource: resource.into(),
                divisor: (!divisor.is_empty()).then(|| Quantity(divisor.into())),
            };
            super::resource(&pod(), container, &selector, &node())
        };
        assert_eq!(get("limits.cpu", "c", "").unwrap(), "2");
        assert_eq!(get("limits.cpu", "c", "1m").unwrap(), "1500");
        assert_eq!(get("requests.cpu", "c", "1m").unwrap(), "1500");
        assert_eq!(get("limits.memory", "c", "1Mi").unwrap(), "100");
        assert_eq!(get("limits.memory", "d", "").unwrap(), (1i64 << 30).to_string());
        assert_eq!(get("requests.memory", "d", "").unwrap(), "0");
        assert!(get("limits.disk", "c", "").is_err());
        assert!(get("limits.cpu", "nope", "").is_err());
    }
}
