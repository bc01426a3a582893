//! [`Kind`]: one row of the table of kinds, and what follows from its fields alone.

use serde_json::Value;

use crate::columns::Column;
use crate::error::qualified;
use crate::kinds::KINDS;
use crate::strategy::Strategy;

/// A kind that the API serves.
pub struct Kind {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// API version, e.g. `v1`.
    pub version: &'static str,
    /// Kind, e.g. `Pod`.
    pub kind: &'static str,
    /// Kind of a list, e.g. `PodList`.
    pub list_kind: &'static str,
    /// Resource name in paths, e.g. `pods`.
    pub plural: &'static str,
    /// Singular resource name, e.g. `pod`.
    pub singular: &'static str,
    /// What kubectl accepts instead of the resource name.
    pub short_names: &'static [&'static str],
    /// Groups of resources that kubectl lists together, e.g. `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Whether objects are kept, and in which form.
    pub storage: Storage,
    /// Where Kubernetes keeps the objects in etcd, e.g. `/registry/pods`; empty if nothing is kept.
    pub registry_prefix: &'static str,
    /// Subresources served below an object.
    pub subresources: &'static [Subresource],
    /// Name of the schema in the definitions, e.g. `io.k8s.api.core.v1.Pod`.
    pub schema: &'static str,
    /// The kind's own functions.
    pub strategy: &'static dyn Strategy,
    /// The columns of `kubectl get`, without the age where the kind has the usual ones.
    pub columns: &'static [Column],
}

/// How objects of a kind are kept.
pub enum Storage {
    /// As they are served.
    Stored,
    /// As objects of another kind, converted on the way.
    Converted(Conversion),
    /// Not at all: the kind has only `create`, which answers at once (reviews).
    Virtual,
}

/// Two kinds over the same stored objects.
pub struct Conversion {
    /// (group, version, plural) of the kind that is stored.
    pub stored: (&'static str, &'static str, &'static str),
    /// Turns an object as served into the stored form, apiVersion included.
    pub to_stored: fn(&mut Value),
    /// Turns a stored object into the served form, apiVersion included.
    pub from_stored: fn(&mut Value),
}

/// A subresource: a path below an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Subresource {
    /// The status, written apart from the rest.
    Status,
    /// `autoscaling/v1 Scale`.
    Scale,
    /// Placement of a pod.
    Binding,
    /// Deletion that respects disruption budgets.
    Eviction,
    /// Ephemeral containers of a pod.
    EphemeralContainers,
    /// Resources of a pod's containers.
    Resize,
    /// Container logs.
    Log,
    /// A process in a container.
    Exec,
    /// The main process of a container.
    Attach,
    /// Connections to a pod's ports.
    PortForward,
    /// HTTP to the object.
    Proxy,
    /// Finalizers of a namespace.
    Finalize,
    /// A service account's token.
    Token,
}

impl Subresource {
    /// The name in the path.
    pub fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Binding => "binding",
            Self::Eviction => "eviction",
            Self::EphemeralContainers => "ephemeralcontainers",
            Self::Resize => "resize",
            Self::Log => "log",
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
            Self::Proxy => "proxy",
            Self::Finalize => "finalize",
            Self::Token => "token",
        }
    }

    /// The verbs it has, as discovery lists them.
    pub fn verbs(self) -> &'static [&'static str] {
        match self {
            Self::Status | Self::Scale | Self::EphemeralContainers | Self::Resize => {
                &["get", "patch", "update"]
            }
            Self::Binding | Self::Eviction | Self::Token => &["create"],
            Self::Log => &["get"],
            Self::Exec | Self::Attach | Self::PortForward => &["create", "get"],
            Self::Proxy => &["create", "delete", "get", "patch", "update"],
            Self::Finalize => &["update"],
        }
    }

    /// (group, version, kind) of the bodies it takes and gives, below objects of `parent`.
    pub fn gvk(self, parent: &Kind) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Status | Self::EphemeralContainers | Self::Resize | Self::Log | Self::Finalize => {
                (parent.group, parent.version, parent.kind)
            }
            Self::Scale => ("autoscaling", "v1", "Scale"),
            Self::Binding => ("", "v1", "Binding"),
            Self::Eviction => ("policy", "v1", "Eviction"),
            Self::Exec => ("", "v1", "PodExecOptions"),
            Self::Attach => ("", "v1", "PodAttachOptions"),
            Self::PortForward => ("", "v1", "PodPortForwardOptions"),
            Self::Proxy => match parent.kind {
                "Node" => ("", "v1", "NodeProxyOptions"),
                "Service" => ("", "v1", "ServiceProxyOptions"),
                _ => ("", "v1", "PodProxyOptions"),
            },
            Self::Token => ("authentication.k8s.io", "v1", "TokenRequest"),
        }
    }

    /// Schema of the bodies, for those that have a body which is not the parent's.
    pub fn schema(self) -> Option<&'static str> {
        match self {
            Self::Scale => Some("io.k8s.api.autoscaling.v1.Scale"),
            Self::Binding => Some("io.k8s.api.core.v1.Binding"),
            Self::Eviction => Some("io.k8s.api.policy.v1.Eviction"),
            Self::Token => Some("io.k8s.api.authentication.v1.TokenRequest"),
            _ => None,
        }
    }
}

impl Kind {
    /// The kind served at `/apis/GROUP/VERSION/.../PLURAL` (`/api/v1/...` for the empty group).
    pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Self> {
        KINDS
            .iter()
            .find(|k| k.plural == plural && k.group == group && k.version == version)
    }

    /// The kind that `apiVersion` and `kind` of an object name.
    pub fn by_gvk(api_version: &str, kind: &str) -> Option<&'static Self> {
        let (group, version) = split_api_version(api_version);
        KINDS
            .iter()
            .find(|k| k.kind == kind && k.group == group && k.version == version)
    }

    /// `v1`, `apps/v1`: what objects carry as `apiVersion`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `pods`, `deployments.apps`: how messages name the resource.
    pub fn qualified_resource(&self) -> String {
        qualified(self.plural, self.group)
    }

    /// The store's key of an object; `namespace` is ignored for kinds that have none.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced {
            format!("{}/{namespace}/{name}", self.registry_prefix)
        } else {
            format!("{}/{name}", self.registry_prefix)
        }
    }

    /// The store's prefix of all objects of the kind, or of those in `namespace`, with a trailing slash.
    pub fn key_prefix(&self, namespace: Option<&str>) -> String {
        match namespace {
            Some(namespace) if self.namespaced => format!("{}/{namespace}/", self.registry_prefix),
            _ => format!("{}/", self.registry_prefix),
        }
    }

    /// The verbs of the resource itself, as discovery lists them.
    pub fn verbs(&self) -> &'static [&'static str] {
        match (&self.storage, self.kind) {
            (Storage::Virtual, _) => &["create"],
            // Namespaces go one at a time: each takes all that is in it along.
            (_, "Namespace") => &["create", "delete", "get", "list", "patch", "update", "watch"],
            _ => &[
                "create",
                "delete",
                "deletecollection",
                "get",
                "list",
                "patch",
                "update",
                "watch",
            ],
        }
    }

    /// Whether objects are kept.
    pub fn is_stored(&self) -> bool {
        !matches!(self.storage, Storage::Virtual)
    }

    /// The kind whose form is in the store: itself, unless it is converted.
    pub fn stored_kind(&'static self) -> &'static Self {
        match &self.storage {
            Storage::Converted(Conversion {
                stored: (group, version, plural),
                ..
            }) => Self::find(group, version, plural).unwrap_or(self),
            _ => self,
        }
    }

    /// Turns an object as served into the stored form; nothing to do for most kinds.
    pub fn to_stored(&self, obj: &mut Value) {
        if let Storage::Converted(conversion) = &self.storage {
            (conversion.to_stored)(obj);
        }
    }

    /// Turns a stored object into the served form; nothing to do for most kinds.
    pub fn from_stored(&self, obj: &mut Value) {
        if let Storage::Converted(conversion) = &self.storage {
            (conversion.from_stored)(obj);
        }
    }

    /// The subresource called `name`, if the kind has it.
    pub fn subresource(&self, name: &str) -> Option<Subresource> {
        self.subresources.iter().copied().find(|s| s.name() == name)
    }
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} {}", self.group, self.version, self.kind)
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        (self.group, self.version, self.plural) == (other.group, other.version, other.plural)
    }
}

impl Eq for Kind {}

/// Splits `apps/v1` into group and version; `v1` is of the empty group.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}
