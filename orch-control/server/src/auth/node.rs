//! What a node may do: read what routing, policy and its own pods need, and write itself, its lease and its pods' status.
//!
//! In the spirit of Kubernetes' Node authorizer and NodeRestriction: a node that is taken over must not be able to
//! read the secrets of pods that run elsewhere, nor to speak for another node.

use super::authorize::{Attributes, Decision};

/// What the authorizer needs to know of pods.
pub trait NodeGraph: Send + Sync {
    /// The node that the pod is bound to, empty before that; none when there is no such pod.
    fn node_of(&self, namespace: &str, pod: &str) -> Option<String>;
    /// Whether a pod on `node` refers to the config map, secret or service account.
    fn pod_refers_to(&self, node: &str, namespace: &str, resource: &str, name: &str) -> bool;
}

/// Decides for the agent of `node`.
#[must_use]
pub fn decide(node: &str, attributes: &Attributes, graph: &dyn NodeGraph) -> Decision {
    let Attributes::Resource {
        verb,
        group,
        resource,
        subresource,
        namespace,
        name,
        field_selector,
    } = attributes
    else {
        return Decision::nothing();
    };
    let allow = Decision::Allowed("it is what a node does");
    let read = matches!(verb.as_str(), "get" | "list" | "watch");
    let write = matches!(verb.as_str(), "update" | "patch");
    let refuse = |why: String| Decision::Refused(why);
    match (group.as_str(), resource.as_str(), subresource.as_str()) {
        // Routing, and network policy: an agent enforces policies in the kernel by the addresses, labels and
        // namespaces of the pods at both ends, wherever those run, so it must see the pods of every node, which
        // Kubernetes' Node authorizer (having no part in policy) denies a kubelet.
        ("", "nodes" | "services" | "endpoints" | "namespaces" | "pods", "")
        | ("discovery.k8s.io", "endpointslices", "")
        | ("networking.k8s.io", "networkpolicies", "")
            if read =>
        {
            allow
        }
        // What is created is checked again at admission, when its name is known.
        ("", "nodes", "") if verb == "create" => allow,
        ("", "nodes", "" | "status") if write || verb == "delete" => {
            if name == node {
                allow
            } else {
                refuse(format!("node {node:?} is not allowed to modify node {name:?}"))
            }
        }
        ("", "pods", "") if verb == "delete" => own_pod(node, namespace, name, graph),
        ("", "pods", "status") if write => own_pod(node, namespace, name, graph),
        ("", "pods", "eviction") if verb == "create" => own_pod(node, namespace, name, graph),
        ("", "configmaps" | "secrets", "") if read => {
            let named = verb == "get" || (!name.is_empty() || selects_one(field_selector));
            let wanted = if name.is_empty() {
                selected_name(field_selector)
            } else {
                name
            };
            if !named {
                refuse("can only get individual resources of this type".into())
            } else if graph.pod_refers_to(node, namespace, resource, wanted) {
                allow
            } else {
                refuse(format!(
                    "no relationship found between node {node:?} and this object"
                ))
            }
        }
        ("", "serviceaccounts", "token") if verb == "create" => {
            if graph.pod_refers_to(node, namespace, "serviceaccounts", name) {
                allow
            } else {
                refuse(format!(
                    "no relationship found between node {node:?} and this object"
                ))
            }
        }
        ("" | "events.k8s.io", "events", "") if verb == "create" || write => allow,
        ("coordination.k8s.io", "leases", "") => {
            if namespace != "kube-node-lease" {
                refuse("can only access leases in the \"kube-node-lease\" system namespace".into())
            } else if verb == "create" || (name == node && (verb == "get" || write || verb == "delete")) {
                allow
            } else {
                refuse("can only access node lease with the same name as the requesting node".into())
            }
        }
        ("authentication.k8s.io", "tokenreviews", "")
        | ("authorization.k8s.io", "subjectaccessreviews", "")
            if verb == "create" =>
        {
            allow
        }
        _ => Decision::nothing(),
    }
}

fn own_pod(node: &str, namespace: &str, pod: &str, graph: &dyn NodeGraph) -> Decision {
    match graph.node_of(namespace, pod) {
        Some(bound) if bound == node => Decision::Allowed("the pod is bound to the node"),
        // A node that learns so stops; admission looks again, should there be one in a moment.
        None => Decision::Allowed("there is no such pod"),
        Some(_) => Decision::Refused(format!(
            "node {node:?} can only touch pods with spec.nodeName set to itself"
        )),
    }
}

fn selected_name(field_selector: &str) -> &str {
    field_selector
        .split(',')
        .find_map(|term| term.strip_prefix("metadata.name="))
        .map_or("", |name| name.trim_start_matches('='))
}

fn selects_one(field_selector: &str) -> bool {
    !selected_name(field_selector).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{authorize, identity::Identity};

    struct OnePod;

    impl NodeGraph for OnePod {
        fn node_of(&self, namespace: &str, pod: &str) -> Option<String> {
            let node = match (namespace, pod) {
                ("d", "p") => "n1",
                ("d", "q") => "n2",
                ("d", "new") => "",
                _ => return None,
            };
            Some(node.to_owned())
        }
        fn pod_refers_to(&self, node: &str, namespace: &str, resource: &str, name: &str) -> bool {
            (node, namespace, resource, name) == ("n1", "d", "secrets", "s")
        }
    }

    /// `request` is `verb group resource[/sub] namespace name selector`, `-` for nothing.
    fn check(request: &str, expect: bool) {
        let part = |i: usize| {
            let part = request.split(' ').nth(i).unwrap_or("-");
            if part == "-" {
                String::new()
            } else {
                part.to_owned()
            }
        };
        let (resource, subresource) = match part(2).split_once('/') {
            Some((resource, subresource)) => (resource.to_owned(), subresource.to_owned()),
            None => (part(2), String::new()),
        };
        let attributes = Attributes::Resource {
            verb: part(0),
            group: part(1),
            resource,
            subresource,
            namespace: part(3),
            name: part(4),
            field_selector: part(5),
        };
        let user = Identity::authenticated("system:node:n1", ["system:nodes".to_owned()]);
        let decision = authorize::decide(&user, &attributes, &OnePod);
        assert_eq!(
            matches!(decision, Decision::Allowed(_)),
            expect,
            "{request}: {decision:?}"
        );
    }

    #[test]
    fn a_node_speaks_for_itself_only() {
        check("list - services - -", true);
        check("list - nodes - -", true);
        check("watch discovery.k8s.io endpointslices - -", true);
        check("update - nodes/status - n1", true);
        check("update - nodes/status - n2", false);
        check("delete - nodes - n2", false);
        check("list - pods - -", true);
        check("watch - pods - - spec.nodeName=n1", true);
        check("get - pods d q", true);
        check("get - pods/log d q", false);
        check("watch networking.k8s.io networkpolicies - -", true);
        check("list networking.k8s.io networkpolicies - -", true);
        check("update networking.k8s.io networkpolicies d p", false);
        check("update discovery.k8s.io endpointslices d p", false);
        check("update - pods d p", false);
        check("create - pods d -", false);
        check("patch - pods/status d p", true);
        check("patch - pods/status d q", false);
        check("patch - pods/status d new", false);
        check("patch - pods/status d gone", true);
        check("delete - pods d q", false);
        check("delete - pods d gone", true);
        check("patch - pods d gone", false);
        check("get - secrets d s", true);
        check("get - secrets d t", false);
        check("list - secrets d -", false);
        check("watch - secrets d - metadata.name=s", true);
        check("update - secrets d s", false);
        check("update coordination.k8s.io leases kube-node-lease n1", true);
        check("update coordination.k8s.io leases kube-node-lease n2", false);
        check("get coordination.k8s.io leases d n1", false);
        check("create - events d -", true);
        check("create apps deployments d -", false);
    }
}
