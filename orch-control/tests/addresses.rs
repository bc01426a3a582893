//! The whole control plane: who gets which addresses, and that a restart changes nothing.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod common;

use std::{
    path::Path,
    process::{Child, Command},
};

use k8s_openapi::api::{
    core::v1::{Event, Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

use common::eventually;

/// `orch-control serve`, as people run it.
struct Plane {
    client: Client,
    process: Child,
}

impl Drop for Plane {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Plane {
    /// A cluster of both families with a pool for load balancers.
    async fn start(dir: &Path, pool: &str) -> Self {
        let networks = [
            "--service-cidr=10.96.0.0/16,fd00:10:96::/112",
            "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56",
            "--advertise-address=127.0.0.1",
            "--listen=127.0.0.1:0",
            "--load-balancer-pool",
            pool,
        ];
        Self::start_with(dir, &networks).await
    }

    async fn start_with(dir: &Path, flags: &[&str]) -> Self {
        let kubeconfig = dir.join("kubeconfig");
        let _ = std::fs::remove_file(&kubeconfig);
        let mut process = Command::new(env!("CARGO_BIN_EXE_orch-control"))
            .args(["serve", "--roles", "apiserver,controllers"])
            .args(flags)
            .arg("--data-dir")
            .arg(dir)
            .arg("--admin-kubeconfig")
            .arg(&kubeconfig)
            .env("ORCH_LOG", "warn")
            .spawn()
            .unwrap();
        eventually("there is a kubeconfig", async || kubeconfig.exists()).await;
        assert!(process.try_wait().unwrap().is_none());
        let config = Kubeconfig::read_from(&kubeconfig).unwrap();
        let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default())
            .await
            .unwrap();
        Self {
            client: Client::try_from(config).unwrap(),
            process,
        }
    }

    /// As the service manager does it, or without a word.
    async fn stop(mut self, gently: bool) {
        if gently {
            let pid = self.process.id().to_string();
            Command::new("kill").arg(pid).status().unwrap();
            assert!(self.process.wait().unwrap().success());
        }
    }

    fn services(&self) -> Api<Service> {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn service(&self, name: &str, spec: Value) {
        let mut object = json!({ "metadata": { "name": name }, "spec": spec });
        object["spec"]["ports"] = json!([{ "port": 80 }]);
        let object = serde_json::from_value(object).unwrap();
        self.services()
            .create(&PostParams::default(), &object)
            .await
            .unwrap();
    }

    async fn balancer(&self, name: &str, more: Value) {
        let mut spec = json!({ "type": "LoadBalancer" });
        for (field, value) in more.as_object().unwrap() {
            spec[field] = value.clone();
        }
        self.service(name, spec).await;
    }

    async fn status(&self, name: &str) -> Vec<String> {
        let service = self.services().get(name).await.unwrap();
        let balancer = service.status.and_then(|s| s.load_balancer).unwrap_or_default();
        let ingress = balancer.ingress.unwrap_or_default();
        ingress.into_iter().filter_map(|one| one.ip).collect()
    }

    async fn has(&self, name: &str, want: &[&str]) {
        eventually(&format!("{name} has {want:?}"), async || {
            self.status(name).await == want
        })
        .await;
    }

    /// Waits for a warning on a Service that says `text`.
    async fn warned(&self, name: &str, text: &str) {
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        eventually(&format!("{name} is warned of {text}"), async || {
            let all = events.list(&ListParams::default()).await.unwrap().items;
            all.iter().any(|event| {
                event.involved_object.name.as_deref() == Some(name)
                    && event.reason.as_deref() == Some("AllocationFailed")
                    && event.message.as_deref().is_some_and(|m| m.contains(text))
            })
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_balancers_get_addresses_from_the_pool_and_keep_them() {
    let dir = tempfile::tempdir().unwrap();
    let pool = "172.30.0.200-172.30.0.202,fd00:30::200-fd00:30::2ff";
    let plane = Plane::start(dir.path(), pool).await;
    plane
        .balancer("a", json!({ "ipFamilyPolicy": "RequireDualStack" }))
        .await;
    plane.has("a", &["172.30.0.200", "fd00:30::200"]).await;
    plane
        .balancer(
            "b",
            json!({ "loadBalancerClass": "orch.dev/l2", "loadBalancerIP": "172.30.0.202" }),
        )
        .await;
    plane.has("b", &["172.30.0.202"]).await;
    plane
        .balancer("foreign", json!({ "loadBalancerClass": "example.org/x" }))
        .await;
    plane
        .balancer("clash", json!({ "loadBalancerIP": "172.30.0.202" }))
        .await;
    plane
        .warned("clash", "the address 172.30.0.202 is in use by service default/b")
        .await;
    plane.balancer("c", json!({})).await;
    plane.has("c", &["172.30.0.201"]).await;
    plane.balancer("d", json!({})).await;
    plane
        .warned("d", "no IPv4 address is left in the load balancer pool")
        .await;
    assert_eq!(plane.status("d").await, [""; 0]);
    plane.stop(false).await;

    // The first to be reconciled after a restart must not take what another has.
    let plane = Plane::start(dir.path(), pool).await;
    plane.balancer("six", json!({ "ipFamilies": ["IPv6"] })).await;
    plane.has("six", &["fd00:30::201"]).await;
    for (name, want) in [
        ("a", &["172.30.0.200", "fd00:30::200"][..]),
        ("b", &["172.30.0.202"]),
        ("c", &["172.30.0.201"]),
        ("d", &[]),
        ("clash", &[]),
        ("foreign", &[]),
    ] {
        assert_eq!(plane.status(name).await, want, "{name}");
    }
    // What becomes free is given to those that wait.
    plane
        .services()
        .delete("c", &DeleteParams::default())
        .await
        .unwrap();
    plane.has("d", &["172.30.0.201"]).await;
    let patch = Patch::Merge(json!({ "spec": { "type": "ClusterIP" } }));
    plane
        .services()
        .patch("b", &PatchParams::default(), &patch)
        .await
        .unwrap();
    plane.has("clash", &["172.30.0.202"]).await;
    assert_eq!(plane.status("b").await, [""; 0]);
    // A family more, and less.
    let patch = Patch::Merge(json!({ "spec": { "ipFamilyPolicy": "PreferDualStack" } }));
    plane
        .services()
        .patch("d", &PatchParams::default(), &patch)
        .await
        .unwrap();
    plane.has("d", &["172.30.0.201", "fd00:30::202"]).await;
    let patch = Patch::Merge(json!({ "spec": { "ipFamilyPolicy": "SingleStack" } }));
    plane
        .services()
        .patch("a", &PatchParams::default(), &patch)
        .await
        .unwrap();
    plane.has("a", &["172.30.0.200"]).await;
    // What somebody else writes is put right.
    let patch = Patch::Merge(json!({ "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.7" }] } } }));
    plane
        .services()
        .patch_status("a", &PatchParams::default(), &patch)
        .await
        .unwrap();
    plane.has("a", &["172.30.0.200"]).await;
    plane.stop(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_and_endpoints_are_of_both_families() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path(), "172.30.0.200").await;
    let nodes: Api<Node> = Api::all(plane.client.clone());
    for (i, name) in ["n1", "n2"].iter().enumerate() {
        let node = json!({
            "metadata": { "name": name, "labels": { "topology.kubernetes.io/zone": format!("z{i}") } },
            "status": { "addresses": [
                { "type": "InternalIP", "address": format!("172.30.0.1{i}") },
                { "type": "InternalIP", "address": format!("fd00:30::1{i}") },
            ] },
        });
        let node = serde_json::from_value(node).unwrap();
        nodes.create(&PostParams::default(), &node).await.unwrap();
        eventually("the node has its networks", async || {
            let spec = nodes.get(name).await.unwrap().spec.unwrap_or_default();
            spec.pod_cidrs
                == Some(vec![
                    format!("10.244.{i}.0/24"),
                    if i == 0 {
                        "fd00:10:244::/64".into()
                    } else {
                        "fd00:10:244:1::/64".into()
                    },
                ])
                && spec.pod_cidr == Some(format!("10.244.{i}.0/24"))
        })
        .await;
    }
    let patch = Patch::Merge(json!({ "spec": { "podCIDRs": ["10.244.0.0/24"] } }));
    let refused = nodes
        .patch("n1", &PatchParams::default(), &patch)
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("may not change podCIDR"),
        "{refused}"
    );

    plane
        .service(
            "web",
            json!({ "selector": { "app": "web" }, "ipFamilyPolicy": "PreferDualStack",
                "trafficDistribution": "PreferSameNode" }),
        )
        .await;
    plane.service("bare", json!({ "clusterIP": "None" })).await;
    let pods: Api<Pod> = Api::namespaced(plane.client.clone(), "default");
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> =
        Api::namespaced(plane.client.clone(), "default");
    eventually("there is a service account", async || {
        accounts.get("default").await.is_ok()
    })
    .await;
    let pod = json!({
        "metadata": { "name": "p", "labels": { "app": "web" } },
        "spec": { "nodeName": "n2", "containers": [{ "name": "c", "image": "i" }] },
    });
    let pod = serde_json::from_value(pod).unwrap();
    pods.create(&PostParams::default(), &pod).await.unwrap();
    let status = json!({ "status": { "phase": "Running", "podIP": "10.244.1.2",
        "podIPs": [{ "ip": "10.244.1.2" }, { "ip": "fd00:10:244:1::2" }],
        "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" }] } });
    pods.patch_status("p", &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();
    let slices: Api<EndpointSlice> = Api::namespaced(plane.client.clone(), "default");
    let of = async |service: &str| {
        let labels = format!("kubernetes.io/service-name={service}");
        slices
            .list(&ListParams::default().labels(&labels))
            .await
            .unwrap()
            .items
    };
    eventually("both families have their endpoint", async || {
        let mut said: Vec<(String, String)> = Vec::new();
        for slice in of("web").await {
            for endpoint in slice.endpoints.iter().flatten() {
                let hints = endpoint.hints.clone().unwrap_or_default();
                let node = hints.for_nodes.into_iter().flatten().next().map(|n| n.name);
                let zone = hints.for_zones.into_iter().flatten().next().map(|z| z.name);
                assert_eq!((node.as_deref(), zone.as_deref()), (Some("n2"), Some("z1")));
                assert_eq!(
                    slice
                        .annotations()
                        .get("endpoints.kubernetes.io/last-change-trigger-time")
                        .map(String::len),
                    Some("2026-01-01T00:00:00Z".len())
                );
                said.push((slice.address_type.clone(), endpoint.addresses[0].clone()));
            }
        }
        said.sort();
        said == [
            ("IPv4".to_owned(), "10.244.1.2".to_owned()),
            ("IPv6".to_owned(), "fd00:10:244:1::2".to_owned()),
        ]
    })
    .await;
    assert!(of("bare").await.is_empty());
    // Without endpoints once it is only a name for something else.
    let patch = Patch::Merge(json!({ "spec": { "type": "ExternalName", "externalName": "example.org" } }));
    plane
        .services()
        .patch("web", &PatchParams::default(), &patch)
        .await
        .unwrap();
    eventually("the slices are gone", async || of("web").await.is_empty()).await;
    plane.stop(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_may_do_without_ipv4() {
    let dir = tempfile::tempdir().unwrap();
    let flags = [
        "--service-cidr=fd00:10:96::/112",
        "--cluster-cidr=fd00:10:244::/56",
        "--advertise-address=::1",
        "--listen=[::1]:0",
        "--load-balancer-pool=fd00:30::200/120",
    ];
    let plane = Plane::start_with(dir.path(), &flags).await;
    let kubernetes = plane.services().get("kubernetes").await.unwrap();
    let addresses = kubernetes.spec.unwrap().cluster_ips;
    assert_eq!(addresses, Some(vec!["fd00:10:96::1".to_owned()]));
    plane
        .balancer("a", json!({ "ipFamilyPolicy": "PreferDualStack" }))
        .await;
    plane.has("a", &["fd00:30::200"]).await;
    let nodes: Api<Node> = Api::all(plane.client.clone());
    let node = serde_json::from_value(json!({ "metadata": { "name": "n1" } })).unwrap();
    nodes.create(&PostParams::default(), &node).await.unwrap();
    eventually("the node has its network", async || {
        let spec = nodes.get("n1").await.unwrap().spec.unwrap_or_default();
        spec.pod_cidrs == Some(vec!["fd00:10:244::/64".to_owned()])
    })
    .await;
    plane.stop(true).await;
}
