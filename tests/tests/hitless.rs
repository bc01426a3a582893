//! The agent may die at any moment: traffic flows on, and no container is restarted.

use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use orch_tests::{NODE1, NODES, agent_pid, cluster_up, ensure, load, namespace::Namespace, nodes_ready};

const WEB: &str = "apiVersion: apps/v1
kind: Deployment
metadata: { name: web }
spec:
  replicas: 4
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      containers:
      - { name: nginx, image: 'orch.local/guestbook-web:1', command: [nginx, -c, /site/nginx.conf, -g, daemon off;],
          readinessProbe: { tcpSocket: { port: 80 } },
          volumeMounts: [{ name: site, mountPath: /site }] }
      volumes: [{ name: site, configMap: { name: site } }]
---
apiVersion: v1
kind: ConfigMap
metadata: { name: site }
data:
  nginx.conf: |
    error_log /dev/stderr warn;
    pid /run/nginx.pid;
    events {}
    http { access_log off; server { listen 80; location / { return 200 \"ok\\n\"; } } }
---
apiVersion: v1
kind: Service
metadata: { name: web }
spec: { type: NodePort, selector: { app: web }, ports: [{ port: 80, nodePort: 31080 }] }
";

/// The containers' ids and restart counts.
fn containers(ns: &Namespace) -> Result<Vec<String>> {
    let mut found: Vec<String> = ns
        .pods("app=web")?
        .iter()
        .map(|pod| {
            let status = &pod["status"]["containerStatuses"][0];
            format!("{} {}", status["containerID"], status["restartCount"])
        })
        .collect();
    found.sort();
    Ok(found)
}

#[test]
fn a_killed_agent_restarts_nothing_and_drops_nothing() -> Result<()> {
    let ns = Namespace::create("hitless")?;
    ns.apply(WEB)?;
    ns.rolled_out("web")?;
    let before = containers(&ns)?;
    let stream = load::start(format!("{NODE1}:31080").parse()?, "/", 2);
    std::thread::sleep(Duration::from_millis(500));
    for node in NODES {
        kill(Pid::from_raw(agent_pid(node)?), Signal::SIGKILL).context("failed to kill an agent")?;
    }
    std::thread::sleep(Duration::from_secs(3));
    cluster_up(&[])?;
    nodes_ready()?;
    std::thread::sleep(Duration::from_secs(2));
    let tally = stream.stop();
    ensure(tally.failures.is_empty() && tally.answered > 100, || {
        format!("{:?}", tally.failures.first())
    })?;
    let after = containers(&ns)?;
    ensure(before == after, || format!("before {before:?}, after {after:?}"))
}
