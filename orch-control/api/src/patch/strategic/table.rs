//! Which lists merge, and by what: the `patchStrategy` and `patchMergeKey` tags of the Kubernetes types,
//! published as `x-kubernetes-patch-strategy` and `x-kubernetes-patch-merge-key` in its OpenAPI document.

use crate::schema::definitions::short;

/// How a list merges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListMerge {
    /// Elements are objects, told apart by this field.
    Key(&'static str),
    /// Elements are plain values, each at most once.
    Set,
}

/// How the list `field` of the type `schema` merges; none for lists that are replaced whole.
pub fn list_merge(schema: &str, field: &str) -> Option<ListMerge> {
    use ListMerge::{Key, Set};
    Some(match (short(schema), field) {
        ("ObjectMeta", "finalizers") => Set,
        ("ObjectMeta", "ownerReferences") => Key("uid"),
        ("PodSpec", "containers" | "initContainers" | "ephemeralContainers" | "volumes") => Key("name"),
        ("PodSpec", "imagePullSecrets" | "resourceClaims" | "schedulingGates") => Key("name"),
        ("PodSpec", "hostAliases") => Key("ip"),
        ("PodSpec", "topologySpreadConstraints") => Key("topologyKey"),
        ("Container" | "EphemeralContainer", "env") => Key("name"),
        ("Container" | "EphemeralContainer", "ports") => Key("containerPort"),
        ("Container" | "EphemeralContainer", "volumeMounts") => Key("mountPath"),
        ("Container" | "EphemeralContainer", "volumeDevices") => Key("devicePath"),
        ("PodStatus", "podIPs" | "hostIPs") => Key("ip"),
        ("PodStatus", "resourceClaimStatuses") => Key("name"),
        ("ServiceSpec", "ports") => Key("port"),
        ("ServiceAccount", "secrets") => Key("name"),
        ("NodeSpec", "podCIDRs") => Set,
        ("NodeStatus", "addresses") => Key("type"),
        ("PodStatus" | "NodeStatus" | "NamespaceStatus" | "ServiceStatus", "conditions") => Key("type"),
        ("DeploymentStatus" | "ReplicaSetStatus" | "ServiceCIDRStatus", "conditions") => Key("type"),
        ("ReplicationControllerStatus", "conditions") => Key("type"),
        _ => return None,
    })
}

/// Whether `field` of the type `schema` holds unions, of which a patch keeps only the members that it
/// names (`patchStrategy=retainKeys`).
pub fn retains_keys(schema: &str, field: &str) -> bool {
    matches!(
        (short(schema), field),
        ("DeploymentSpec", "strategy") | ("PodSpec", "volumes")
    )
}
