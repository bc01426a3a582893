//! Pods that come and go by the hundred leave nothing: no link, namespace, map entry, program or route.

use std::{collections::BTreeMap, fs, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use orch_tests::{
    NODES, TOOLBOX, agent, ensure, eventually,
    namespace::Namespace,
    peers::{manifest, service},
};
use serde_json::{Value, json};

const PODS: usize = 100;

/// What a node holds, in numbers.
fn inventory(node: &str) -> Result<BTreeMap<String, usize>> {
    let lines = |command: &mut Command| -> Result<usize> {
        let output = command.output().context("failed to count")?;
        Ok(output.stdout.split(|byte| *byte == b'\n').count())
    };
    let entries = |folder: String| fs::read_dir(folder).map_or(0, Iterator::count);
    let mut found = BTreeMap::new();
    for family in ["-4", "-6"] {
        found.insert(
            format!("routes {family}"),
            lines(Command::new("ip").args(["-n", node, family, "route", "show", "table", "all"]))?,
        );
    }
    found.insert(
        "links".into(),
        lines(Command::new("ip").args(["-n", node, "-o", "link"]))?,
    );
    found.insert("namespaces".into(), entries(format!("/run/orch/{node}/ns")));
    found.insert(
        "pinned links".into(),
        entries(format!("/sys/fs/bpf/orch/{node}/links")),
    );
    let root = format!("/sys/fs/bpf/orch/{node}");
    for view in [
        "services",
        "backends",
        "endpoints",
        "identities",
        "policy",
        "sources",
    ] {
        let output = Command::new(agent(node)?)
            .args(["bpf", view, "--bpf-root", &root, "-o", "json"])
            .output()
            .context("failed to start the agent's program")?;
        let rows: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        found.insert(view.to_owned(), rows.as_array().map_or(0, Vec::len));
    }
    Ok(found)
}

#[test]
fn a_hundred_pods_leave_nothing() -> Result<()> {
    let before = NODES
        .iter()
        .map(|node| inventory(node))
        .collect::<Result<Vec<_>>>()?;
    {
        let ns = Namespace::create("churn")?;
        ns.objects(&[
            service("all", json!({ "group": "churn" })),
            json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": { "name": "churn" },
                "spec": { "podSelector": { "matchLabels": { "group": "churn" } },
                          "ingress": [{ "from": [{ "podSelector": {} }], "ports": [{ "port": 80 }] }] },
            }),
        ])?;
        let pods: Vec<Value> = (0..PODS)
            .map(|number| {
                let mut pod = manifest(&format!("pod-{number}"), NODES[number % NODES.len()]);
                pod["metadata"]["labels"]["group"] = "churn".into();
                pod["spec"]["terminationGracePeriodSeconds"] = 1.into();
                pod["spec"]["containers"] = json!([{
                    "name": "sleep", "image": TOOLBOX, "ports": [{ "name": "web", "containerPort": 80 },
                    { "name": "dgram", "containerPort": 80, "protocol": "UDP" }],
                }]);
                pod
            })
            .collect();
        ns.objects(&pods)?;
        eventually("every pod Ready", Duration::from_secs(120), || {
            let ready = ns
                .pods("group=churn")?
                .iter()
                .filter(|pod| {
                    let conditions = pod["status"]["conditions"]
                        .as_array()
                        .cloned()
                        .unwrap_or_default();
                    conditions
                        .iter()
                        .any(|one| one["type"] == "Ready" && one["status"] == "True")
                })
                .count();
            ensure(ready == PODS, || format!("{ready} are"))
        })?;
        let during = inventory(NODES[0])?;
        let first = before.first().context("no node")?;
        ensure(during["endpoints"] > first["endpoints"] + 30, || {
            format!("{during:?}")
        })?;
        ns.kubectl(&["delete", "pods", "--all", "--wait=false"])?;
        eventually("no pod", Duration::from_secs(120), || {
            let left = ns.pods("group=churn")?.len()
                + ns.json(&["get", "pods"])?["items"].as_array().map_or(0, Vec::len);
            ensure(left == 0, || format!("{left} are left"))
        })?;
    }
    for (node, before) in NODES.iter().zip(&before) {
        eventually(&format!("{node} is as before"), Duration::from_secs(40), || {
            let after = inventory(node)?;
            let more: Vec<String> = after
                .iter()
                .filter(|(name, count)| before.get(*name).is_none_or(|old| *count > old))
                .map(|(name, count)| format!("{name}: {count} and not {:?}", before.get(name)))
                .collect();
            ensure(more.is_empty(), || more.join(", "))
        })?;
    }
    Ok(())
}
