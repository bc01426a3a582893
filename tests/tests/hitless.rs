//! The agent may die at any moment, end, or be replaced by a new program: traffic flows on, no connection is lost, none
//! is refused, and no container is restarted.

use std::{fs::File, net::SocketAddr, thread, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use orch_tests::{
    NODES, agent, agent_pid, cluster_up, ensure, load,
    namespace::Namespace,
    node_ips, nodes_ready,
    peers::{Held, manifest, service},
};
use serde_json::json;

/// The containers' ids and restart counts.
fn containers(ns: &Namespace) -> Result<Vec<String>> {
    let mut found: Vec<String> = ns
        .pods("group=peers")?
        .iter()
        .map(|pod| {
            let status = &pod["status"]["containerStatuses"][0];
            format!("{} {}", status["containerID"], status["restartCount"])
        })
        .collect();
    found.sort();
    Ok(found)
}

/// Load of every kind: new connections and old ones, from outside through every node, and from pods.
struct Everything {
    outside: Vec<(String, load::Load)>,
    inside: Vec<(String, Held)>,
}

impl Everything {
    fn start(ns: &Namespace, seconds: u32) -> Result<Self> {
        let port = ns.node_port("all", "tcp")?;
        let mut outside = Vec::new();
        for node in NODES {
            for ip in node_ips(node)? {
                let address = SocketAddr::new(ip, port);
                outside.push((
                    format!("new connections to {address}"),
                    load::start(address, "/", 1),
                ));
                outside.push((format!("an old connection to {address}"), load::keep(address)?));
            }
        }
        let mut inside = Vec::new();
        for ip in ns.cluster_ips("all")? {
            for from in ["a", "b"] {
                for protocol in ["tcp", "udp"] {
                    let held = ns.hold(from, protocol, &ip.to_string(), 80, seconds)?;
                    inside.push((format!("{from} to {ip} by {protocol}"), held));
                }
            }
        }
        // All of it is under way.
        thread::sleep(Duration::from_secs(3));
        Ok(Self { outside, inside })
    }

    fn check(self) -> Result<()> {
        let mut wrong = Vec::new();
        for (name, load) in self.outside {
            let tally = load.stop();
            if !tally.failures.is_empty() || tally.answered < 50 {
                wrong.push(format!(
                    "{name}: {} failed and {} not: {:?}",
                    tally.failures.len(),
                    tally.answered,
                    tally.failures.first()
                ));
            }
        }
        for (name, held) in self.inside {
            let lines = held.lines()?;
            let bad: Vec<&String> = lines.iter().filter(|line| line.contains('!')).collect();
            if !bad.is_empty() || lines.len() < 50 {
                wrong.push(format!(
                    "{name}: {} of {} failed: {:?}",
                    bad.len(),
                    lines.len(),
                    bad.first()
                ));
            }
        }
        ensure(wrong.is_empty(), || wrong.join("\n"))
    }
}

/// Does something to the agents under load, and checks that nobody noticed.
fn unnoticed(ns: &Namespace, what: &str, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = containers(ns)?;
    let load = Everything::start(ns, 20)?;
    act()?;
    cluster_up(&[])?;
    nodes_ready()?;
    thread::sleep(Duration::from_secs(2));
    load.check().context(what.to_owned())?;
    let after = containers(ns)?;
    ensure(before == after, || {
        format!("{what}: before {before:?}, after {after:?}")
    })
}

#[test]
fn agents_die_and_change_unnoticed() -> Result<()> {
    let ns = Namespace::create("hitless")?;
    ns.peers(&[
        manifest("a", NODES[0]),
        manifest("b", NODES[1]),
        manifest("c", NODES[2]),
    ])?;
    let mut all = service("all", json!({ "group": "peers" }));
    all["spec"]["type"] = "NodePort".into();
    ns.objects(&[all])?;
    thread::sleep(Duration::from_secs(1));
    unnoticed(&ns, "every agent killed, and away for three seconds", || {
        for node in NODES {
            kill(Pid::from_raw(agent_pid(node)?), Signal::SIGKILL).context("failed to kill an agent")?;
        }
        thread::sleep(Duration::from_secs(3));
        Ok(())
    })?;
    unnoticed(&ns, "every agent replaced by a newer program", || {
        // `up` starts a program that is newer than the one that runs.
        let file = File::open(agent(NODES[0])?).context("failed to open the agent's program")?;
        file.set_modified(std::time::SystemTime::now())
            .context("failed to make the agent's program newer")
    })
}
