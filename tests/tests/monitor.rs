//! What `orch-agent monitor`, `orch-agent bpf` and the metrics say about real packets, with the pods' names.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use orch_tests::{
    NODES, agent,
    cases::Cases,
    ensure, eventually,
    namespace::Namespace,
    peers::{PORT, manifest, on_node, service},
};
use serde_json::{Value, json};

/// A monitor that runs until this value goes.
struct Monitor {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Monitor {
    fn start(node: &str, args: &[&str]) -> Result<Self> {
        let mut child = Command::new(agent(node)?)
            .args(["monitor", "--run-dir", &format!("/run/orch/{node}")])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .context("failed to start a monitor")?;
        let output = child.stdout.take().context("no output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }

    /// The first line that a check likes of those that come while something is done again and again: a monitor sees what
    /// happens after it has begun.
    fn find(&self, what: &str, act: impl Fn() -> Result<()>, check: impl Fn(&str) -> bool) -> Result<String> {
        let mut seen = Vec::new();
        for _ in 0..10 {
            act()?;
            let until = Instant::now() + Duration::from_secs(1);
            while let Ok(line) = self
                .lines
                .recv_timeout(until.saturating_duration_since(Instant::now()))
            {
                if check(&line) {
                    return Ok(line);
                }
                seen.push(line);
            }
        }
        bail!(
            "no {what} in {} lines: {:?}",
            seen.len(),
            seen.get(..seen.len().min(5))
        )
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn bpf(node: &str, view: &str) -> Result<Value> {
    let root = format!("/sys/fs/bpf/orch/{node}");
    let output = Command::new(agent(node)?)
        .args(["bpf", view, "--bpf-root", &root, "-o", "json"])
        .output()
        .context("failed to start the agent's program")?;
    ensure(output.status.success(), || {
        String::from_utf8_lossy(&output.stderr).into_owned()
    })?;
    serde_json::from_slice(&output.stdout).context("no JSON")
}

#[test]
fn what_is_seen() -> Result<()> {
    let ns = Namespace::create("monitor")?;
    ns.peers(&[manifest("server", NODES[0]), manifest("client", NODES[0])])?;
    ns.objects(&[
        service("web", json!({ "app": "server" })),
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": { "name": "tcp-only" },
            "spec": { "podSelector": { "matchLabels": { "app": "server" } },
                      "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "client" } } }],
                                    "ports": [{ "port": "web" }] }] },
        }),
    ])?;
    let ip = ns.pod_ips("server")?.first().context("no address")?.to_string();
    eventually("the policy", Duration::from_secs(10), || {
        let lines = ns.ask("client", "udp", &ip, PORT, 1)?;
        ensure(lines.iter().all(|line| line.starts_with('!')), || {
            format!("{lines:?}")
        })
    })?;
    let mut cases = Cases::default();
    let (server, client) = (format!("{}/server", ns.name), format!("{}/client", ns.name));
    cases.case("a drop has its reason and both pods' names", || {
        let monitor = Monitor::start(NODES[0], &["--type", "drop", "--namespace", &ns.name])?;
        let act = || ns.ask("client", "udp", &ip, PORT, 1).map(drop);
        monitor
            .find("drop", act, |line| {
                line.contains(&server) && line.contains(&client) && line.contains("policy")
            })
            .map(drop)
    });
    let connect = || ns.ask_once("client", "tcp", &ip, PORT).map(drop);
    cases.case("a verdict, as JSON", || {
        let monitor = Monitor::start(NODES[0], &["--pod", &server, "-o", "json"])?;
        let line = monitor.find("event", connect, |line| {
            line.contains("\"server\"") || line.contains(&server)
        })?;
        serde_json::from_str::<Value>(&line).map(drop).context("no JSON")
    });
    cases.case("a filter keeps out the rest", || {
        let monitor = Monitor::start(NODES[0], &["--pod", &format!("{}/nobody", ns.name)])?;
        match monitor.find("line", connect, |_| true) {
            Ok(line) => bail!("it let through {line}"),
            Err(_) => Ok(()),
        }
    });
    cases.case("the maps say what there is", || {
        let cluster_ip = ns.cluster_ips("web")?.first().context("no address")?.to_string();
        let from = ns.pod_ips("client")?.first().context("no address")?.to_string();
        // A socket that has asked for a service.
        ns.ask_once("client", "tcp", &cluster_ip, 80)?;
        for (view, expected) in [
            ("services", &cluster_ip),
            ("backends", &ip),
            ("endpoints", &ip),
            ("identities", &from),
        ] {
            let found = bpf(NODES[0], view)?.to_string();
            ensure(found.contains(expected.as_str()), || {
                format!("no {expected} in {view}: {found:.500}")
            })?;
        }
        for view in [
            "config",
            "metrics",
            "programs",
            "maps",
            "nodes",
            "conntrack",
            "policy",
            "sockets",
        ] {
            let found = bpf(NODES[0], view)?;
            ensure(found.as_array().is_none_or(|rows| !rows.is_empty()), || {
                format!("nothing in {view}")
            })?;
        }
        Ok(())
    });
    cases.case("the metrics count drops by reason", || {
        let text = on_node(NODES[0], "curl -sS --max-time 3 http://127.0.0.1:10249/metrics")?;
        let found = text
            .lines()
            .any(|line| !line.starts_with('#') && line.contains("drop") && !line.ends_with(" 0"));
        ensure(found, || {
            text.lines()
                .filter(|line| line.contains("drop"))
                .collect::<Vec<_>>()
                .join("\n")
        })
    });
    cases.finish()
}
