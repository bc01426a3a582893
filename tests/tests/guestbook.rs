//! The README's walk: the guestbook behind a ClusterIP and a NodePort, scaled, updated, broken and mended.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use orch_tests::{NODE1, NODE2, ensure, eventually, http, kubectl, load, namespace::Namespace, root};

const NODE_PORT: u16 = 30080;

fn node_port(node: &str) -> SocketAddr {
    format!("{node}:{NODE_PORT}").parse().expect("an address")
}

/// The manifests name the services by `default`'s DNS names: they run there, like in the README.
struct Guestbook(Namespace);

impl Guestbook {
    fn apply() -> Result<Self> {
        let folder = root().join("deploy/examples/guestbook");
        kubectl::run(&["apply", "-f", &folder.to_string_lossy()])?;
        let guestbook = Self(Namespace::existing("default"));
        for deployment in ["redis", "guestbook-api", "guestbook-web"] {
            guestbook.0.rolled_out(deployment)?;
        }
        Ok(guestbook)
    }
}

impl Drop for Guestbook {
    fn drop(&mut self) {
        let folder = root().join("deploy/examples/guestbook");
        let deleted = kubectl::run(&["delete", "-f", &folder.to_string_lossy(), "--ignore-not-found"]);
        kubectl::run(&[
            "delete",
            "pod",
            "toolbox",
            "--ignore-not-found",
            "--grace-period=1",
        ])
        .ok();
        assert!(
            std::thread::panicking() || deleted.is_ok(),
            "the guestbook does not go: {deleted:?}"
        );
    }
}

#[test]
fn the_walk() -> Result<()> {
    let guestbook = Guestbook::apply()?;
    let ns = &guestbook.0;
    messages_reach_redis_and_come_back()?;
    ns.toolbox("toolbox", None)?;
    cluster_ip_hits_every_backend(ns)?;
    node_port_hits_every_backend(NODE1)?;
    node_port_hits_every_backend(NODE2)?;
    names_resolve(ns)?;
    scaling_changes_the_endpoints(ns)?;
    a_rolling_update_loses_no_request(ns)?;
    a_killed_pod_is_replaced(ns)?;
    bpftool_shows_names()?;
    Ok(())
}

fn messages_reach_redis_and_come_back() -> Result<()> {
    let address = node_port(NODE1);
    let message = format!("hello from {}", std::process::id());
    http::request(address, "POST", "/api/messages", &message)?;
    let answer = http::get(address, "/api/messages")?;
    ensure(answer.body.contains(&message), || {
        format!("the messages are {}", answer.body)
    })
}

fn cluster_ip_hits_every_backend(ns: &Namespace) -> Result<()> {
    let service = ns.json(&["get", "service", "guestbook-web"])?;
    let ip = service["spec"]["clusterIP"].as_str().context("no clusterIP")?;
    let line = format!(
        "for i in $(seq 300); do curl -sS -o /dev/null -w '%{{http_code}} %header{{x-served-by}}\\n' \
         --max-time 5 http://{ip}/healthz || echo failed; done"
    );
    let output = ns.shell("toolbox", &line)?;
    let answers: Vec<&str> = output.lines().collect();
    let pods: BTreeSet<&str> = answers
        .iter()
        .filter_map(|line| line.strip_prefix("200 "))
        .collect();
    let good = answers.iter().filter(|line| line.starts_with("200 ")).count();
    ensure(good == 300, || format!("{good} of 300 answered: {output}"))?;
    ensure(pods.len() == 3, || format!("the backends hit are {pods:?}"))
}

fn node_port_hits_every_backend(node: &str) -> Result<()> {
    let mut pods = BTreeSet::new();
    for request in 0..300 {
        let answer = http::get(node_port(node), "/healthz")
            .with_context(|| format!("request {request} through {node} failed"))?;
        pods.insert(answer.header("x-served-by").unwrap_or_default().to_owned());
    }
    ensure(pods.len() == 3, || {
        format!("the backends hit through {node} are {pods:?}")
    })
}

fn names_resolve(ns: &Namespace) -> Result<()> {
    for name in [
        "guestbook-web",
        "guestbook-web.default",
        "guestbook-web.default.svc.cluster.local",
    ] {
        let body = ns.shell("toolbox", &format!("curl -sS --max-time 5 http://{name}/version"))?;
        ensure(body.trim() == "1", || format!("{name} answered {body}"))?;
    }
    let kubernetes = ns.shell("toolbox", "nslookup kubernetes.default.svc.cluster.local")?;
    ensure(kubernetes.contains("10.96.0.1"), || kubernetes.clone())
}

fn scaling_changes_the_endpoints(ns: &Namespace) -> Result<()> {
    for replicas in [5, 3] {
        ns.kubectl(&[
            "scale",
            "deployment/guestbook-web",
            &format!("--replicas={replicas}"),
        ])?;
        ns.rolled_out("guestbook-web")?;
        eventually("as many endpoints as replicas", Duration::from_secs(20), || {
            let slices = ns.json(&[
                "get",
                "endpointslices",
                "-l",
                "kubernetes.io/service-name=guestbook-web",
            ])?;
            let ready = slices["items"]
                .as_array()
                .into_iter()
                .flatten()
                .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default())
                .filter(|endpoint| endpoint["conditions"]["ready"] == true)
                .count();
            ensure(ready == replicas, || {
                format!("{ready} endpoints for {replicas} replicas")
            })
        })?;
    }
    Ok(())
}

fn a_rolling_update_loses_no_request(ns: &Namespace) -> Result<()> {
    let (outside, other) = (
        load::start(node_port(NODE1), "/version", 4),
        load::start(node_port(NODE2), "/version", 4),
    );
    std::thread::sleep(Duration::from_secs(1));
    ns.kubectl(&[
        "set",
        "image",
        "deployment/guestbook-web",
        "nginx=orch.local/guestbook-web:2",
    ])?;
    ns.rolled_out("guestbook-web")?;
    ns.kubectl(&["rollout", "undo", "deployment/guestbook-web"])?;
    ns.rolled_out("guestbook-web")?;
    std::thread::sleep(Duration::from_secs(1));
    for tally in [outside.stop(), other.stop()] {
        ensure(tally.failures.is_empty(), || {
            format!(
                "{} of {} requests failed: {:?}",
                tally.failures.len(),
                tally.answered,
                tally.failures.first()
            )
        })?;
        ensure(
            tally.bodies.contains_key("1\n") && tally.bodies.contains_key("2\n"),
            || format!("the versions seen are {:?}", tally.bodies),
        )?;
    }
    Ok(())
}

fn a_killed_pod_is_replaced(ns: &Namespace) -> Result<()> {
    let names = |pods: Vec<serde_json::Value>| -> BTreeSet<String> {
        pods.iter()
            .filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned))
            .collect()
    };
    let before = names(ns.pods("app=guestbook-web")?);
    let victim = before.first().context("no pod")?;
    ns.kubectl(&["delete", "pod", victim])?;
    ns.rolled_out("guestbook-web")?;
    let after = names(ns.pods("app=guestbook-web")?);
    ensure(after.len() == 3 && !after.contains(victim), || {
        format!("before {before:?}, after {after:?}")
    })
}

fn bpftool_shows_names() -> Result<()> {
    let maps = std::fs::read_dir("/sys/fs/bpf/orch/orch-node1/maps").context("no pinned maps")?;
    let mut dumps = String::new();
    for map in maps {
        let output = std::process::Command::new("bpftool")
            .args(["map", "dump", "pinned"])
            .arg(map.context("a pin that cannot be read")?.path())
            .output()
            .context("failed to start bpftool")?;
        dumps.push_str(&String::from_utf8_lossy(&output.stdout));
    }
    for field in ["\"backend", "\"port\"", "\"key\""] {
        ensure(dumps.contains(field), || {
            format!("no {field} in the dumps: {dumps:.2000}")
        })?;
    }
    Ok(())
}
