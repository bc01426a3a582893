//! Where a proxied request goes: `[scheme:]name[:port]` of a pod, a service or a node, as an address.

use std::net::{IpAddr, SocketAddr};

use orch_api::ApiError;
use rand::seq::IndexedRandom as _;
use serde_json::Value;

use super::kubelet;
use crate::{object::Call, state::Collection};

/// The port of a scheme that nobody names another for.
const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;
/// Names the service of a slice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The last part of a proxy's path but one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named<'a> {
    /// Whether the server speaks TLS.
    pub secure: bool,
    /// The object's name.
    pub name: &'a str,
    /// A number or, for services, a name; empty for the usual one.
    pub port: &'a str,
}

/// Takes `[scheme:]name[:port]` apart.
///
/// # Errors
/// 400 when it is something else.
pub fn split<'a>(call: &Call, text: &'a str) -> Result<Named<'a>, ApiError> {
    let parts: Vec<&str> = text.split(':').collect();
    let named = match parts.as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme, name, port] => (*scheme, *name, *port),
        _ => ("?", "", ""),
    };
    match named {
        ("" | "http" | "https", name, port) if !name.is_empty() => Ok(Named {
            secure: named.0 == "https",
            name,
            port,
        }),
        _ => Err(ApiError::bad_request(format!(
            "invalid {} request {text:?}",
            call.kind.singular
        ))),
    }
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To a server in a pod, or on a node.
    Server(Server),
    /// To a node's kubelet.
    Kubelet,
}

/// A server in a pod, or on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// The pod it is in, if any.
    pub pod: Option<Pod>,
}

/// A pod that is on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// The node's name.
    pub node: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
}

impl Pod {
    /// The pod, if it is on a node.
    fn of(pod: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        Some(Self {
            node: text(&pod["spec"]["nodeName"])?,
            namespace: text(&pod["metadata"]["namespace"])?,
            name: text(&pod["metadata"]["name"])?,
        })
    }
}

/// Finds where a request for `named` goes.
///
/// # Errors
/// 404 without the object, 400 for addresses that must not be asked, 503 when nobody answers for it.
pub async fn find(call: &Call, named: &Named<'_>) -> Result<Target, ApiError> {
    call.collection.fresh().await?;
    let object = call
        .collection
        .get_value(&call.namespace, named.name)
        .ok_or_else(|| ApiError::not_found(call.kind, named.name))?;
    Ok(match call.kind.plural {
        "pods" => Target::Server(Server {
            address: pod(named, &object)?,
            pod: Pod::of(&object),
        }),
        "services" => Target::Server(service(call, named, &object).await?),
        _ => match node(named, &object)? {
            Some(address) => Target::Server(Server { address, pod: None }),
            None => Target::Kubelet,
        },
    })
}

/// Whether a server at `ip` may be asked in a user's name: not what only the API server's own machine can reach.
fn check(ip: IpAddr) -> Result<IpAddr, ApiError> {
    let local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.to_ipv4_mapped().is_some(),
    };
    if local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
        return Err(ApiError::bad_request("address not allowed"));
    }
    Ok(ip)
}

fn ips(pod: &Value) -> impl Iterator<Item = IpAddr> {
    let status = &pod["status"];
    let all = status["podIPs"].as_array().into_iter().flatten();
    let all = all.map(|ip| &ip["ip"]).chain([&status["podIP"]]);
    all.filter_map(|ip| ip.as_str()?.parse().ok())
}

fn number(port: &str) -> Option<u16> {
    port.parse().ok().filter(|port| *port != 0)
}

/// A pod at its first address; without a port, at the first that a container names.
fn pod(named: &Named<'_>, pod: &Value) -> Result<SocketAddr, ApiError> {
    let port = if named.port.is_empty() {
        let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
        let first = containers
            .filter_map(|c| c["ports"][0]["containerPort"].as_u64())
            .next();
        first
            .and_then(|port| u16::try_from(port).ok())
            .unwrap_or(if named.secure { HTTPS_PORT } else { HTTP_PORT })
    } else {
        number(named.port).ok_or_else(|| ApiError::bad_request(format!("invalid port {:?}", named.port)))?
    };
    let ip = ips(pod).next();
    let ip = ip.ok_or_else(|| ApiError::bad_request("address not allowed"))?;
    Ok(SocketAddr::new(check(ip)?, port))
}

/// A node at its address; none for its kubelet.
fn node(named: &Named<'_>, node: &Value) -> Result<Option<SocketAddr>, ApiError> {
    if named.port.is_empty() {
        return Ok(None);
    }
    let port = number(named.port);
    let port = port.ok_or_else(|| ApiError::bad_request(format!("invalid port {:?}", named.port)))?;
    let known = kubelet::address(node);
    match known {
        Some((_, kubelet)) if kubelet == port => Ok(None),
        Some((host, _)) => match host.parse() {
            Ok(ip) => Ok(Some(SocketAddr::new(check(ip)?, port))),
            Err(_) => Err(ApiError::bad_request("address not allowed")),
        },
        None => Err(ApiError::service_unavailable(format!(
            "no addresses are known of node {:?}",
            named.name
        ))),
    }
}

/// A service at any of its ready endpoints.
async fn service(call: &Call, named: &Named<'_>, service: &Value) -> Result<Server, ApiError> {
    let mut wanted = named.port;
    if let Ok(asked) = named.port.parse::<u64>() {
        let ports = service["spec"]["ports"].as_array().into_iter().flatten();
        let port = ports.into_iter().find(|p| p["port"].as_u64() == Some(asked));
        let port = port.ok_or_else(|| {
            ApiError::service_unavailable(format!(
                "no service port {asked} found for service {:?}",
                named.name
            ))
        })?;
        wanted = port["name"].as_str().unwrap_or_default();
    }
    let slices = call
        .state
        .collection(kind("discovery.k8s.io", "endpointslices")?)?;
    let pods = call.state.core("pods")?;
    slices.fresh().await?;
    pods.fresh().await?;
    let (found, _) = slices
        .cache
        .list(&slices.kind.key_prefix(Some(&call.namespace)), |slice| {
            slice.labels.get(SERVICE_NAME).is_some_and(|s| s == named.name)
        });
    let mut addresses = Vec::new();
    for slice in found {
        let slice: Value = serde_json::from_slice(&slice.json).map_err(ApiError::internal)?;
        addresses.extend(of_slice(&slice, wanted, pods, &call.namespace));
    }
    // The first family of the service, as far as there are endpoints of it.
    let first = service["spec"]["ipFamilies"][0] == "IPv6";
    if addresses.iter().any(|a: &Server| a.address.is_ipv6() == first) {
        addresses.retain(|a| a.address.is_ipv6() == first);
    }
    addresses.choose(&mut rand::rng()).cloned().ok_or_else(|| {
        ApiError::service_unavailable(format!("no endpoints available for service {:?}", named.name))
    })
}

/// The ready endpoints of a slice at the port called `wanted`. Only those that are a pod's, in the namespace and
/// with that address: else whoever may write endpoints could reach whatever the API server can.
fn of_slice(slice: &Value, wanted: &str, pods: &Collection, namespace: &str) -> Vec<Server> {
    let ports = slice["ports"].as_array().into_iter().flatten();
    let port = ports
        .into_iter()
        .find(|p| p["name"].as_str().unwrap_or_default() == wanted && p["protocol"] != "UDP");
    let Some(port) = port.and_then(|p| u16::try_from(p["port"].as_u64()?).ok()) else {
        return Vec::new();
    };
    let endpoints = slice["endpoints"].as_array().into_iter().flatten();
    let ready = endpoints.filter(|e| e["conditions"]["ready"] != false);
    let of = |endpoint: &Value| {
        let ip: IpAddr = endpoint["addresses"][0].as_str()?.parse().ok()?;
        let owner = &endpoint["targetRef"];
        if owner["kind"] != "Pod" || owner["namespace"].as_str().is_some_and(|n| n != namespace) {
            return None;
        }
        let pod = pods.get_value(namespace, owner["name"].as_str()?)?;
        let its = ips(&pod).any(|own| own == ip);
        (its && check(ip).is_ok()).then(|| Server {
            address: SocketAddr::new(ip, port),
            pod: Pod::of(&pod),
        })
    };
    ready.filter_map(of).collect()
}

fn kind(group: &str, plural: &str) -> Result<&'static orch_api::Kind, ApiError> {
    orch_api::Kind::find(group, "v1", plural).ok_or_else(ApiError::no_such_resource)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn named(secure: bool, port: &str) -> Named<'_> {
        Named {
            secure,
            name: "p",
            port,
        }
    }

    #[test]
    fn a_pods_port_is_the_one_asked_for_or_the_first_it_names() {
        let at = |ip: &str, ports: Value| json!({ "spec": { "containers": [{}, { "ports": ports }] }, "status": { "podIP": ip } });
        let plain = at("10.0.0.1", json!([{ "containerPort": 8080 }]));
        let of = |named, pod: &Value| super::pod(&named, pod).map(|a| a.to_string());
        assert_eq!(of(named(false, ""), &plain).unwrap(), "10.0.0.1:8080");
        assert_eq!(of(named(false, "81"), &plain).unwrap(), "10.0.0.1:81");
        assert_eq!(
            of(named(false, ""), &at("fd00::1", json!([]))).unwrap(),
            "[fd00::1]:80"
        );
        assert_eq!(
            of(named(true, ""), &at("fd00::1", json!([]))).unwrap(),
            "[fd00::1]:443"
        );
        for ip in [
            "127.0.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "::1",
            "fe80::1",
            "::ffff:10.0.0.1",
            "224.0.0.1",
            "",
        ] {
            let error = of(named(false, ""), &at(ip, json!([]))).unwrap_err();
            assert_eq!(
                (error.code(), error.message()),
                (400, "address not allowed"),
                "{ip}"
            );
        }
        assert_eq!(of(named(false, "http"), &plain).unwrap_err().code(), 400);
    }

    #[test]
    fn a_node_with_a_port_that_is_not_its_kubelets_is_asked_itself() {
        let node = json!({ "status": { "addresses": [{ "type": "InternalIP", "address": "10.0.0.1" }] } });
        assert_eq!(super::node(&named(false, ""), &node).unwrap(), None);
        assert_eq!(super::node(&named(false, "10250"), &node).unwrap(), None);
        let other = super::node(&named(false, "81"), &node).unwrap().unwrap();
        assert_eq!(other.to_string(), "10.0.0.1:81");
    }
}
