//! The API server with its controllers, in this process: what they make of networking's objects, and what the
//! conformance tests ask for before they start.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod common;

use std::time::Duration;

use k8s_openapi::api::{
    apps::v1::ReplicaSet,
    core::v1::{ConfigMap, Endpoints, Namespace, Pod, ReplicationController, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
    networking::v1::{IPAddress, ServiceCIDR},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use orch_controllers::ControllersConfig;
use orch_server::{Server, ServerConfig, auth::identity::Identity, pki::SYSTEM_MASTERS};
use orch_store::embedded::Embedded;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use common::eventually;

/// A control plane without a scheduler; ends when dropped.
struct Plane {
    client: Client,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Plane {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let config = ServerConfig {
            data_dir: dir.path().to_owned(),
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            advertise_address: "192.0.2.1".parse().unwrap(),
            service_cidrs: vec![
                "10.96.0.0/16".parse().unwrap(),
                "fd00:10:96::/112".parse().unwrap(),
            ],
            cluster_dns: Vec::new(),
            node_port_range: 30000..=32767,
            cluster_domain: "cluster.local".into(),
        };
        let store = Embedded::open(&dir.path().join("store.redb")).unwrap();
        let server = Server::start(config, store, stop.clone()).await.unwrap();
        let controllers = ControllersConfig {
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            node_cidr_mask_v4: 24,
            node_cidr_mask_v6: 64,
            load_balancer_pool: None,
            root_ca_pem: server.pki().ca_pem().to_owned(),
        };
        let manager = server.client(Identity::controller_manager());
        tokio::spawn(orch_controllers::run(manager, controllers, stop.clone()));
        let admin = Identity::authenticated("admin", [SYSTEM_MASTERS.to_owned()]);
        Self {
            client: server.client(admin),
            stop,
            _dir: dir,
        }
    }

    fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Once there is a service account, pods may be made.
    async fn ready(&self) {
        let accounts: Api<ServiceAccount> = self.api();
        eventually("there is a service account", async || {
            accounts.get_opt("default").await.unwrap().is_some()
        })
        .await;
    }
}

async fn create<K>(api: &Api<K>, object: Value) -> K
where
    K: Clone + std::fmt::Debug + k8s_openapi::serde::de::DeserializeOwned + k8s_openapi::serde::Serialize,
{
    let object: K = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap()
}

/// The addresses and ports that the slices of a service say, by family.
async fn said(slices: &Api<EndpointSlice>, service: &str) -> Vec<(String, Vec<String>, Vec<i32>)> {
    let of = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
    let mut all: Vec<_> = slices
        .list(&of)
        .await
        .unwrap()
        .into_iter()
        .map(|s| {
            let addresses = s
                .endpoints
                .iter()
                .flatten()
                .flat_map(|e| e.addresses.clone())
                .collect();
            let ports = s.ports.iter().flatten().filter_map(|p| p.port).collect();
            (s.address_type, addresses, ports)
        })
        .collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn written_endpoints_are_mirrored_through_their_life() {
    let plane = Plane::start().await;
    let (services, endpoints, slices) = (
        plane.api::<Service>(),
        plane.api::<Endpoints>(),
        plane.api::<EndpointSlice>(),
    );
    create(
        &services,
        json!({ "metadata": { "name": "db" }, "spec": { "ports": [{ "name": "example", "port": 80 }] } }),
    )
    .await;
    let subset = |ips: &[&str]| {
        let addresses: Vec<Value> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
        json!({ "subsets": [{ "addresses": addresses, "ports": [{ "port": 80 }] }] })
    };
    let mut object = subset(&["10.1.2.3"]);
    object["metadata"] = json!({ "name": "db" });
    create(&endpoints, object).await;
    let one = |family: &str, ip: &str| (family.to_owned(), vec![ip.to_owned()], vec![80]);
    eventually("the slice is there", async || {
        said(&slices, "db").await == [one("IPv4", "10.1.2.3")]
    })
    .await;
    let first = slices
        .list(&ListParams::default().labels("kubernetes.io/service-name=db"))
        .await
        .unwrap();
    let first = &first.items[0];
    assert_eq!(
        first.labels()["endpointslice.kubernetes.io/managed-by"],
        "endpointslicemirroring-controller.k8s.io"
    );

    let merge = |patch: Value| Patch::Merge(patch);
    let params = PatchParams::default();
    endpoints
        .patch("db", &params, &merge(subset(&["10.2.3.4", "fd00::7"])))
        .await
        .unwrap();
    let both = [one("IPv4", "10.2.3.4"), one("IPv6", "fd00::7")];
    eventually("both families are there", async || {
        said(&slices, "db").await == both
    })
    .await;
    let same = slices.get(&first.name_any()).await.unwrap();
    assert_eq!(same.uid(), first.uid(), "the slice was made anew");

    // Deleted by somebody, it comes back.
    slices
        .delete(&first.name_any(), &DeleteParams::default())
        .await
        .unwrap();
    eventually("the slice is back", async || said(&slices, "db").await == both).await;
    let skip = |value: &str| {
        merge(json!({ "metadata": { "labels": { "endpointslice.kubernetes.io/skip-mirror": value } } }))
    };
    endpoints.patch("db", &params, &skip("true")).await.unwrap();
    eventually("none is left", async || said(&slices, "db").await.is_empty()).await;
    endpoints.patch("db", &params, &skip("false")).await.unwrap();
    eventually("they are back", async || said(&slices, "db").await == both).await;
    endpoints.delete("db", &DeleteParams::default()).await.unwrap();
    eventually("none is left again", async || {
        said(&slices, "db").await.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_go_with_their_service_but_need_none() {
    let plane = Plane::start().await;
    let (services, endpoints) = (plane.api::<Service>(), plane.api::<Endpoints>());
    let written = |name: &str| {
        json!({ "metadata": { "name": name },
            "subsets": [{ "addresses": [{ "ip": "10.0.0.24" }], "ports": [{ "port": 80 }] }] })
    };
    let service = |name: &str, selector: Value| json!({ "metadata": { "name": name }, "spec": { "selector": selector, "ports": [{ "port": 80 }] } });
    create(&endpoints, written("alone")).await;
    create(&services, service("bare", Value::Null)).await;
    create(&endpoints, written("bare")).await;
    create(&services, service("selecting", json!({ "matches": "nothing" }))).await;
    eventually("the selecting service has endpoints", async || {
        endpoints.get_opt("selecting").await.unwrap().is_some()
    })
    .await;
    for name in ["bare", "selecting"] {
        services.delete(name, &DeleteParams::default()).await.unwrap();
        eventually("endpoints go with their service", async || {
            endpoints.get_opt(name).await.unwrap().is_none()
        })
        .await;
    }
    // By now whoever would take these for left behind has had its turn.
    let alone = endpoints.get("alone").await.unwrap();
    let label = Patch::Merge(json!({ "metadata": { "labels": { "a": "b" } } }));
    endpoints
        .patch("alone", &PatchParams::default(), &label)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(endpoints.get("alone").await.unwrap().uid(), alone.uid());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_ips_are_objects_too() {
    let plane = Plane::start().await;
    let (services, addresses, ranges) = (
        plane.api::<Service>(),
        plane.all::<IPAddress>(),
        plane.all::<ServiceCIDR>(),
    );
    let foreign = json!({ "metadata": { "name": "255.255.255.255" }, "spec": { "parentRef": {
        "group": "mygroup", "resource": "myresources", "namespace": "foo", "name": "bar" } } });
    create(&addresses, foreign).await;
    let service = json!({ "metadata": { "name": "s" }, "spec": {
        "ipFamilyPolicy": "RequireDualStack", "ports": [{ "port": 80 }] } });
    let service = create(&services, service).await;
    let ips = service.spec.unwrap().cluster_ips.unwrap();
    assert_eq!(ips.len(), 2);
    for (ip, family) in ips.iter().zip(["IPv4", "IPv6"]) {
        eventually("the address is an object", async || {
            addresses.get_opt(ip).await.unwrap().is_some()
        })
        .await;
        let address = addresses.get(ip).await.unwrap();
        let parent = &address.spec.parent_ref;
        assert_eq!(
            (
                parent.resource.as_str(),
                parent.namespace.as_deref(),
                parent.name.as_str()
            ),
            ("services", Some("default"), "s")
        );
        assert_eq!(address.labels()["ipaddress.kubernetes.io/ip-family"], family);
        assert_eq!(
            address.labels()["ipaddress.kubernetes.io/managed-by"],
            "ipallocator.k8s.io"
        );
        addresses.delete(ip, &DeleteParams::default()).await.unwrap();
        eventually("it is back", async || {
            let now = addresses.get_opt(ip).await.unwrap();
            now.is_some_and(|now| now.uid() != address.uid())
        })
        .await;
    }
    eventually("the API server's own address is one", async || {
        addresses.get_opt("10.96.0.1").await.unwrap().is_some()
    })
    .await;
    services.delete("s", &DeleteParams::default()).await.unwrap();
    eventually("only the others are left", async || {
        let left = addresses.list(&ListParams::default()).await.unwrap();
        let names: Vec<String> = left.iter().map(ResourceExt::name_any).collect();
        names == ["10.96.0.1", "255.255.255.255"]
    })
    .await;

    create(
        &ranges,
        json!({ "metadata": { "name": "more" }, "spec": { "cidrs": ["203.0.113.0/24"] } }),
    )
    .await;
    for (name, status, reason) in [
        ("kubernetes", "True", "NetworkReady"),
        ("more", "False", "NotSupported"),
    ] {
        eventually("the range says whether it is ready", async || {
            let range = ranges.get(name).await.unwrap();
            let mut conditions = range
                .status
                .into_iter()
                .flat_map(|s| s.conditions.unwrap_or_default());
            conditions.any(|c| {
                (c.type_.as_str(), c.status.as_str(), c.reason.as_str()) == ("Ready", status, reason)
            })
        })
        .await;
    }
    let own = ranges.get("kubernetes").await.unwrap();
    assert_eq!(
        own.spec.unwrap().cidrs.unwrap(),
        ["10.96.0.0/16", "fd00:10:96::/112"]
    );
    ranges.delete("more", &DeleteParams::default()).await.unwrap();
    eventually("it is gone", async || {
        ranges.get_opt("more").await.unwrap().is_none()
    })
    .await;
}

#[tokio::test]
async fn a_condition_without_a_time_stops_nobody() {
    let plane = Plane::start().await;
    plane.ready().await;
    let (services, endpoints): (Api<Service>, Api<Endpoints>) = (plane.api(), plane.api());
    let service = |name: &str| json!({ "metadata": { "name": name }, "spec": { "selector": { "a": "b" }, "ports": [{ "port": 80 }] } });
    create(&services, service("one")).await;
    // What a Go client sends that leaves the time unset.
    let condition = json!({ "type": "Tested", "status": "True", "reason": "Test", "message": "a test",
        "lastTransitionTime": null });
    let patch = json!({ "status": { "conditions": [condition] } });
    let patched = services
        .patch_status("one", &PatchParams::default(), &Patch::Merge(patch))
        .await
        .unwrap();
    let conditions = patched.status.unwrap().conditions.unwrap();
    assert_eq!(conditions[0].type_, "Tested");
    // Whoever watches services can still read them.
    create(&services, service("two")).await;
    eventually("the next service has its endpoints", async || {
        endpoints.get_opt("two").await.unwrap().is_some()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replication_controller_keeps_its_pods() {
    let plane = Plane::start().await;
    plane.ready().await;
    let (controllers, pods) = (plane.api::<ReplicationController>(), plane.api::<Pod>());
    let template = json!({ "metadata": { "labels": { "name": "rc" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    create(
        &controllers,
        json!({ "metadata": { "name": "rc" }, "spec": { "replicas": 2, "template": template } }),
    )
    .await;
    let counts = async || {
        let rc = controllers.get("rc").await.unwrap();
        let own = pods.list(&ListParams::default().labels("name=rc")).await.unwrap();
        (own.items.len(), rc.status.map_or(0, |s| s.replicas))
    };
    eventually("there are two pods", async || counts().await == (2, 2)).await;
    let own = pods.list(&ListParams::default().labels("name=rc")).await.unwrap();
    let owner = &own.items[0].owner_references()[0];
    assert_eq!(
        (owner.kind.as_str(), owner.api_version.as_str()),
        ("ReplicationController", "v1")
    );
    pods.delete(&own.items[0].name_any(), &DeleteParams::default())
        .await
        .unwrap();
    eventually("a deleted pod is replaced", async || {
        let now = pods.list(&ListParams::default().labels("name=rc")).await.unwrap();
        now.items.len() == 2 && now.iter().all(|p| p.uid() != own.items[0].uid())
    })
    .await;
    let scale = controllers.get_scale("rc").await.unwrap();
    assert_eq!(scale.status.unwrap().selector.as_deref(), Some("name=rc"));
    let three = Patch::Merge(json!({ "spec": { "replicas": 3 } }));
    controllers
        .patch_scale("rc", &PatchParams::default(), &three)
        .await
        .unwrap();
    eventually("there are three", async || counts().await == (3, 3)).await;
    // Nothing changes any more: the status is not written again and again.
    let version = controllers.get("rc").await.unwrap().resource_version();
    pods.create(
        &PostParams::default(),
        &serde_json::from_value(
            json!({ "metadata": { "name": "stray", "labels": { "name": "other" } },
            "spec": { "containers": [{ "name": "c", "image": "i" }] } }),
        )
        .unwrap(),
    )
    .await
    .unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(controllers.get("rc").await.unwrap().resource_version(), version);
    controllers
        .delete("rc", &DeleteParams::background())
        .await
        .unwrap();
    eventually("its pods go with it", async || {
        let left = pods.list(&ListParams::default().labels("name=rc")).await.unwrap();
        left.items.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_conformance_tests_ask_for_before_they_start() {
    let plane = Plane::start().await;
    let version = plane.client.apiserver_version().await.unwrap();
    assert_eq!((version.major.as_str(), version.minor.as_str()), ("1", "36"));
    let discovery = kube::Discovery::new(plane.client.clone()).run().await.unwrap();
    for (group, kind) in [
        ("", "ReplicationController"),
        ("networking.k8s.io", "NetworkPolicy"),
        ("networking.k8s.io", "Ingress"),
        ("networking.k8s.io", "IngressClass"),
        ("networking.k8s.io", "IPAddress"),
        ("networking.k8s.io", "ServiceCIDR"),
    ] {
        let gvk = kube::core::GroupVersionKind::gvk(group, "v1", kind);
        assert!(discovery.resolve_gvk(&gvk).is_some(), "{group}/{kind}");
    }
    // The three lists that decide whether the system's pods are up.
    let system = "kube-system";
    let list = ListParams::default();
    Api::<ReplicationController>::namespaced(plane.client.clone(), system)
        .list(&list)
        .await
        .unwrap();
    Api::<ReplicaSet>::namespaced(plane.client.clone(), system)
        .list(&list)
        .await
        .unwrap();
    Api::<Pod>::namespaced(plane.client.clone(), system)
        .list(&list)
        .await
        .unwrap();

    let namespaces = plane.all::<Namespace>();
    let object = json!({ "metadata": { "generateName": "services-", "labels": {
        "e2e-framework": "services", "e2e-run": "x", "pod-security.kubernetes.io/enforce": "baseline" } } });
    let made = create(&namespaces, object).await;
    let name = made.name_any();
    let accounts: Api<ServiceAccount> = Api::namespaced(plane.client.clone(), &name);
    let maps: Api<ConfigMap> = Api::namespaced(plane.client.clone(), &name);
    eventually("the namespace is furnished", async || {
        let account = accounts.get_opt("default").await.unwrap();
        account.is_some() && maps.get_opt("kube-root-ca.crt").await.unwrap().is_some()
    })
    .await;
    namespaces.delete(&name, &DeleteParams::default()).await.unwrap();
    eventually("it goes away", async || {
        namespaces.get_opt(&name).await.unwrap().is_none()
    })
    .await;
}
