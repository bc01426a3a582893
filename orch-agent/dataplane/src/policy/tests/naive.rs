//! NetworkPolicies read out as the API describes them, with nothing compiled: what the tables are compared with.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use orch_cluster::policies::Pod;

/// Objects as the API has them.
pub struct Objects<'a> {
    pub policies: &'a BTreeMap<String, Arc<NetworkPolicy>>,
    pub namespaces: &'a BTreeMap<String, BTreeMap<String, String>>,
    pub pods: &'a BTreeMap<String, Pod>,
}

fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let wanted = selector.match_labels.iter().flatten();
    let expressions = selector.match_expressions.iter().flatten();
    wanted
        .into_iter()
        .all(|(key, value)| labels.get(key) == Some(value))
        && expressions.into_iter().all(|expression| {
            let values = expression.values.clone().unwrap_or_default();
            let value = labels.get(&expression.key);
            match expression.operator.as_str() {
                "In" => value.is_some_and(|value| values.contains(value)),
                "NotIn" => !value.is_some_and(|value| values.contains(value)),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                other => panic!("{other}"),
            }
        })
}

impl Objects<'_> {
    fn pod_at(&self, address: IpAddr) -> Option<&Pod> {
        self.pods.values().find(|pod| pod.addresses.contains(&address))
    }

    fn peer(&self, namespace: &str, peer: &NetworkPolicyPeer, address: IpAddr) -> bool {
        if let Some(block) = &peer.ip_block {
            let within = |network: &str| network.parse::<IpNet>().unwrap().contains(&address);
            return within(&block.cidr) && !block.except.iter().flatten().any(|except| within(except));
        }
        let Some(pod) = self.pod_at(address) else {
            return false;
        };
        let namespace_matches = match &peer.namespace_selector {
            Some(selector) => self
                .namespaces
                .get(&pod.namespace)
                .is_some_and(|labels| selects(selector, labels)),
            None => pod.namespace == namespace,
        };
        namespace_matches
            && peer
                .pod_selector
                .as_ref()
                .is_none_or(|selector| selects(selector, &pod.labels))
    }

    /// `named` is the pod that has the named ports.
    fn port(given: &NetworkPolicyPort, named: Option<&Pod>, protocol: u8, port: u16) -> bool {
        let number = match given.protocol.as_deref().unwrap_or("TCP") {
            "TCP" => 6,
            "UDP" => 17,
            "SCTP" => 132,
            other => panic!("{other}"),
        };
        number == protocol
            && match &given.port {
                None => true,
                Some(IntOrString::Int(first)) => {
                    (*first..=given.end_port.unwrap_or(*first)).contains(&i32::from(port))
                }
                Some(IntOrString::String(name)) => named.is_some_and(|pod| {
                    pod.ports
                        .iter()
                        .any(|each| each.name == *name && each.protocol == protocol && each.port == port)
                }),
            }
    }

    /// Whether a pod may have a connection, which comes in or goes out, with an address.
    pub fn side(&self, pod: &Pod, ingress: bool, address: IpAddr, protocol: u8, port: u16) -> bool {
        let named = if ingress { Some(pod) } else { self.pod_at(address) };
        let mut isolated = false;
        for policy in self.policies.values() {
            let spec = policy.spec.as_ref().unwrap();
            let namespace = policy.metadata.namespace.as_deref().unwrap();
            let nothing = LabelSelector::default();
            let subjects = spec.pod_selector.as_ref().unwrap_or(&nothing);
            if namespace != pod.namespace || !selects(subjects, &pod.labels) {
                continue;
            }
            let kind = if ingress { "Ingress" } else { "Egress" };
            let of_kind = match spec.policy_types.as_deref() {
                None | Some([]) => ingress || spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
                Some(types) => types.iter().any(|one| one == kind),
            };
            if !of_kind {
                continue;
            }
            isolated = true;
            let rules: Vec<(Vec<NetworkPolicyPeer>, Vec<NetworkPolicyPort>)> = if ingress {
                let rules = spec.ingress.clone().unwrap_or_default();
                rules
                    .into_iter()
                    .map(|rule| (rule.from.unwrap_or_default(), rule.ports.unwrap_or_default()))
                    .collect()
            } else {
                let rules = spec.egress.clone().unwrap_or_default();
                rules
                    .into_iter()
                    .map(|rule| (rule.to.unwrap_or_default(), rule.ports.unwrap_or_default()))
                    .collect()
            };
            for (peers, ports) in rules {
                let peer = peers.is_empty() || peers.iter().any(|peer| self.peer(namespace, peer, address));
                let port =
                    ports.is_empty() || ports.iter().any(|each| Self::port(each, named, protocol, port));
                if peer && port {
                    return true;
                }
            }
        }
        !isolated
    }
}
