//! The table of kinds that orch serves.

use crate::columns;
use crate::kind::{Conversion, Kind, Storage, Subresource};
use crate::strategies as s;

/// Every kind, built-in. The order is the order of discovery within a group.
pub static KINDS: &[Kind] = &[
    Kind {
        kind: "ConfigMap",
        list_kind: "ConfigMapList",
        plural: "configmaps",
        singular: "configmap",
        short_names: &["cm"],
        registry_prefix: "/registry/configmaps",
        schema: "io.k8s.api.core.v1.ConfigMap",
        strategy: &s::ConfigMap,
        columns: columns::CONFIG_MAP,
        ..CORE
    },
    Kind {
        kind: "Endpoints",
        list_kind: "EndpointsList",
        plural: "endpoints",
        singular: "endpoints",
        short_names: &["ep"],
        registry_prefix: "/registry/services/endpoints",
        schema: "io.k8s.api.core.v1.Endpoints",
        strategy: &s::Endpoints,
        columns: columns::ENDPOINTS,
        ..CORE
    },
    Kind {
        kind: "Event",
        list_kind: "EventList",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        registry_prefix: "/registry/events",
        schema: "io.k8s.api.core.v1.Event",
        strategy: &s::Event,
        columns: columns::EVENT,
        ..CORE
    },
    Kind {
        kind: "Namespace",
        list_kind: "NamespaceList",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        namespaced: false,
        registry_prefix: "/registry/namespaces",
        subresources: &[Subresource::Finalize, Subresource::Status],
        schema: "io.k8s.api.core.v1.Namespace",
        strategy: &s::Namespace,
        columns: columns::NAMESPACE,
        ..CORE
    },
    Kind {
        kind: "Node",
        list_kind: "NodeList",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        namespaced: false,
        registry_prefix: "/registry/minions",
        subresources: &[Subresource::Proxy, Subresource::Status],
        schema: "io.k8s.api.core.v1.Node",
        strategy: &s::Node,
        columns: columns::NODE,
        ..CORE
    },
    Kind {
        kind: "Pod",
        list_kind: "PodList",
        plural: "pods",
        singular: "pod",
        short_names: &["po"],
        categories: &["all"],
        registry_prefix: "/registry/pods",
        subresources: &[
            Subresource::Attach,
            Subresource::Binding,
            Subresource::EphemeralContainers,
            Subresource::Eviction,
            Subresource::Exec,
            Subresource::Log,
            Subresource::PortForward,
            Subresource::Proxy,
            Subresource::Resize,
            Subresource::Status,
        ],
        schema: "io.k8s.api.core.v1.Pod",
        strategy: &s::Pod,
        columns: columns::POD,
        ..CORE
    },
    Kind {
        kind: "ReplicationController",
        list_kind: "ReplicationControllerList",
        plural: "replicationcontrollers",
        singular: "replicationcontroller",
        short_names: &["rc"],
        categories: &["all"],
        registry_prefix: "/registry/controllers",
        subresources: &[Subresource::Scale, Subresource::Status],
        schema: "io.k8s.api.core.v1.ReplicationController",
        strategy: &s::ReplicationController,
        columns: columns::REPLICATION_CONTROLLER,
        ..CORE
    },
    Kind {
        kind: "Secret",
        list_kind: "SecretList",
        plural: "secrets",
        singular: "secret",
        registry_prefix: "/registry/secrets",
        schema: "io.k8s.api.core.v1.Secret",
        strategy: &s::Secret,
        columns: columns::SECRET,
        ..CORE
    },
    Kind {
        kind: "ServiceAccount",
        list_kind: "ServiceAccountList",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        registry_prefix: "/registry/serviceaccounts",
        subresources: &[Subresource::Token],
        schema: "io.k8s.api.core.v1.ServiceAccount",
        strategy: &s::ServiceAccount,
        columns: columns::SERVICE_ACCOUNT,
        ..CORE
    },
    Kind {
        kind: "Service",
        list_kind: "ServiceList",
        plural: "services",
        singular: "service",
        short_names: &["svc"],
        categories: &["all"],
        registry_prefix: "/registry/services/specs",
        subresources: &[Subresource::Proxy, Subresource::Status],
        schema: "io.k8s.api.core.v1.Service",
        strategy: &s::Service,
        columns: columns::SERVICE,
        ..CORE
    },
    Kind {
        kind: "Deployment",
        list_kind: "DeploymentList",
        plural: "deployments",
        singular: "deployment",
        short_names: &["deploy"],
        categories: &["all"],
        registry_prefix: "/registry/deployments",
        subresources: &[Subresource::Scale, Subresource::Status],
        schema: "io.k8s.api.apps.v1.Deployment",
        strategy: &s::Deployment,
        columns: columns::DEPLOYMENT,
        ..APPS
    },
    Kind {
        kind: "ReplicaSet",
        list_kind: "ReplicaSetList",
        plural: "replicasets",
        singular: "replicaset",
        short_names: &["rs"],
        categories: &["all"],
        registry_prefix: "/registry/replicasets",
        subresources: &[Subresource::Scale, Subresource::Status],
        schema: "io.k8s.api.apps.v1.ReplicaSet",
        strategy: &s::ReplicaSet,
        columns: columns::REPLICA_SET,
        ..APPS
    },
    Kind {
        group: "events.k8s.io",
        kind: "Event",
        list_kind: "EventList",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        storage: Storage::Converted(Conversion {
            stored: ("", "v1", "events"),
            to_stored: s::event_to_core,
            from_stored: s::event_from_core,
        }),
        registry_prefix: "/registry/events",
        schema: "io.k8s.api.events.v1.Event",
        strategy: &s::EventsV1,
        columns: columns::EVENTS_V1,
        ..CORE
    },
    Kind {
        group: "authentication.k8s.io",
        kind: "SelfSubjectReview",
        list_kind: "SelfSubjectReviewList",
        plural: "selfsubjectreviews",
        singular: "selfsubjectreview",
        schema: "io.k8s.api.authentication.v1.SelfSubjectReview",
        ..REVIEW
    },
    Kind {
        group: "authentication.k8s.io",
        kind: "TokenReview",
        list_kind: "TokenReviewList",
        plural: "tokenreviews",
        singular: "tokenreview",
        schema: "io.k8s.api.authentication.v1.TokenReview",
        ..REVIEW
    },
    Kind {
        group: "authorization.k8s.io",
        kind: "LocalSubjectAccessReview",
        list_kind: "LocalSubjectAccessReviewList",
        plural: "localsubjectaccessreviews",
        singular: "localsubjectaccessreview",
        namespaced: true,
        schema: "io.k8s.api.authorization.v1.LocalSubjectAccessReview",
        ..REVIEW
    },
    Kind {
        group: "authorization.k8s.io",
        kind: "SelfSubjectAccessReview",
        list_kind: "SelfSubjectAccessReviewList",
        plural: "selfsubjectaccessreviews",
        singular: "selfsubjectaccessreview",
        schema: "io.k8s.api.authorization.v1.SelfSubjectAccessReview",
        ..REVIEW
    },
    Kind {
        group: "authorization.k8s.io",
        kind: "SelfSubjectRulesReview",
        list_kind: "SelfSubjectRulesReviewList",
        plural: "selfsubjectrulesreviews",
        singular: "selfsubjectrulesreview",
        schema: "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
        ..REVIEW
    },
    Kind {
        group: "authorization.k8s.io",
        kind: "SubjectAccessReview",
        list_kind: "SubjectAccessReviewList",
        plural: "subjectaccessreviews",
        singular: "subjectaccessreview",
        schema: "io.k8s.api.authorization.v1.SubjectAccessReview",
        ..REVIEW
    },
    Kind {
        group: "coordination.k8s.io",
        kind: "Lease",
        list_kind: "LeaseList",
        plural: "leases",
        singular: "lease",
        registry_prefix: "/registry/leases",
        schema: "io.k8s.api.coordination.v1.Lease",
        strategy: &s::Lease,
        columns: columns::LEASE,
        ..CORE
    },
    Kind {
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        list_kind: "EndpointSliceList",
        plural: "endpointslices",
        singular: "endpointslice",
        registry_prefix: "/registry/endpointslices",
        schema: "io.k8s.api.discovery.v1.EndpointSlice",
        strategy: &s::EndpointSlice,
        columns: columns::ENDPOINT_SLICE,
        ..CORE
    },
    Kind {
        kind: "IngressClass",
        list_kind: "IngressClassList",
        plural: "ingressclasses",
        singular: "ingressclass",
        namespaced: false,
        registry_prefix: "/registry/ingressclasses",
        schema: "io.k8s.api.networking.v1.IngressClass",
        strategy: &s::IngressClass,
        columns: columns::INGRESS_CLASS,
        ..NETWORKING
    },
    Kind {
        kind: "Ingress",
        list_kind: "IngressList",
        plural: "ingresses",
        singular: "ingress",
        short_names: &["ing"],
        registry_prefix: "/registry/ingress",
        subresources: &[Subresource::Status],
        schema: "io.k8s.api.networking.v1.Ingress",
        strategy: &s::Ingress,
        columns: columns::INGRESS,
        ..NETWORKING
    },
    Kind {
        kind: "IPAddress",
        list_kind: "IPAddressList",
        plural: "ipaddresses",
        singular: "ipaddress",
        short_names: &["ip"],
        namespaced: false,
        registry_prefix: "/registry/ipaddresses",
        schema: "io.k8s.api.networking.v1.IPAddress",
        strategy: &s::IpAddress,
        columns: columns::IP_ADDRESS,
        ..NETWORKING
    },
    Kind {
        kind: "NetworkPolicy",
        list_kind: "NetworkPolicyList",
        plural: "networkpolicies",
        singular: "networkpolicy",
        short_names: &["netpol"],
        registry_prefix: "/registry/networkpolicies",
        schema: "io.k8s.api.networking.v1.NetworkPolicy",
        strategy: &s::NetworkPolicy,
        columns: columns::NETWORK_POLICY,
        ..NETWORKING
    },
    Kind {
        kind: "ServiceCIDR",
        list_kind: "ServiceCIDRList",
        plural: "servicecidrs",
        singular: "servicecidr",
        namespaced: false,
        registry_prefix: "/registry/servicecidrs",
        subresources: &[Subresource::Status],
        schema: "io.k8s.api.networking.v1.ServiceCIDR",
        strategy: &s::ServiceCidr,
        columns: columns::SERVICE_CIDR,
        ..NETWORKING
    },
];

/// What most kinds share: core/v1, namespaced, stored as served.
const CORE: Kind = Kind {
    group: "",
    version: "v1",
    kind: "",
    list_kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    storage: Storage::Stored,
    registry_prefix: "",
    subresources: &[],
    schema: "",
    strategy: &s::Review,
    columns: columns::NAME_AND_AGE,
};

const APPS: Kind = Kind {
    group: "apps",
    ..CORE
};

const NETWORKING: Kind = Kind {
    group: "networking.k8s.io",
    ..CORE
};

const REVIEW: Kind = Kind {
    namespaced: false,
    storage: Storage::Virtual,
    strategy: &s::Review,
    ..CORE
};
