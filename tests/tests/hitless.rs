//! The agent may die at any moment, end, or be replaced by a new program: traffic flows on, no connection is lost, none
//! is refused, names are found, and no container is restarted. The network's ways may change, and open connections last.

use std::{fs::File, net::SocketAddr, thread, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use orch_tests::{
    NODES, agent, agent_pid, cluster_up, ensure, eventually, load, modes,
    namespace::Namespace,
    node_ips, nodes_ready,
    peers::{manifest, outside, service},
};
use serde_json::{Value, json};

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

/// What of a load there is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    /// New connections and old ones, datagrams and names.
    Everything,
    /// TCP connections that are open before.
    Open,
}

/// Load from outside through every node, and from pods.
struct Clients {
    outside: Vec<(String, load::Load)>,
    /// Pods of their own: `kubectl exec` ends with the agent.
    inside: Vec<String>,
}

impl Clients {
    fn start(ns: &Namespace, of: Of, seconds: u32) -> Result<Self> {
        let port = ns.node_port("all", "tcp")?;
        let mut outside = Vec::new();
        for node in NODES {
            for ip in node_ips(node)? {
                let address = SocketAddr::new(ip, port);
                if of == Of::Everything {
                    outside.push((
                        format!("new connections to {address}"),
                        load::start(address, "/", 1),
                    ));
                }
                outside.push((format!("an old connection to {address}"), load::keep(address)?));
            }
        }
        let mut inside = Vec::new();
        for ip in ns.cluster_ips("all")? {
            for from in ["a", "b"] {
                for protocol in ["tcp", "udp"] {
                    if of == Of::Open && protocol != "tcp" {
                        continue;
                    }
                    let name = format!("hold-{}", inside.len());
                    let node = if from == "a" { NODES[0] } else { NODES[1] };
                    let (ip, seconds) = (ip.to_string(), seconds.to_string());
                    ns.objects(&[client(&name, node, &["hold", protocol, &ip, "80", &seconds])])?;
                    inside.push(name);
                }
            }
        }
        let names = ["all", "kubernetes.default"].into_iter().enumerate();
        for (index, name) in names.filter(|_| of == Of::Everything) {
            let pod = format!("resolve-{index}");
            ns.objects(&[client(
                &pod,
                NODES[index],
                &["resolving", name, &seconds.to_string()],
            )])?;
            inside.push(pod);
        }
        for name in &inside {
            eventually("a client that runs", Duration::from_secs(20), || {
                let log = ns.kubectl(&["logs", name])?;
                ensure(!log.is_empty(), || format!("{name} says nothing"))
            })?;
        }
        Ok(Self { outside, inside })
    }

    fn check(self, ns: &Namespace) -> Result<()> {
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
        for name in self.inside {
            let pod = format!("pod/{name}");
            ns.kubectl(&[
                "wait",
                "--for=jsonpath={.status.phase}=Succeeded",
                &pod,
                "--timeout=40s",
            ])?;
            let log = ns.kubectl(&["logs", &name])?;
            let bad: Vec<&str> = log.lines().filter(|line| line.contains('!')).collect();
            if !bad.is_empty() || log.lines().count() < 100 {
                let count = log.lines().count();
                wrong.push(format!(
                    "{name}: {} of {count} failed: {:?}",
                    bad.len(),
                    bad.first()
                ));
            }
            ns.kubectl(&["delete", &pod])?;
        }
        ensure(wrong.is_empty(), || wrong.join("\n"))
    }
}

/// A pod that asks for some seconds what its words say.
fn client(name: &str, node: &str, words: &[&str]) -> Value {
    let mut pod = manifest(name, node);
    pod["metadata"]["labels"] = json!({ "app": name });
    pod["spec"]["restartPolicy"] = "Never".into();
    let container = &mut pod["spec"]["containers"][0];
    container["readinessProbe"] = Value::Null;
    let program = container["command"][2].clone();
    let command = ["python3", "-c"].map(Value::from).into_iter().chain([program]);
    container["command"] = command.chain(words.iter().map(|word| json!(word))).collect();
    pod
}

/// Does something to the agents under load, and checks that nobody noticed.
fn unnoticed(ns: &Namespace, what: &str, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = containers(ns)?;
    let load = Clients::start(ns, Of::Everything, 30)?;
    act()?;
    cluster_up(&[])?;
    nodes_ready()?;
    thread::sleep(Duration::from_secs(2));
    load.check(ns).context(what.to_owned())?;
    let after = containers(ns)?;
    ensure(before == after, || {
        format!("{what}: before {before:?}, after {after:?}")
    })
}

/// A service on three nodes.
fn served(name: &str) -> Result<Namespace> {
    let ns = Namespace::create(name)?;
    ns.peers(&[
        manifest("a", NODES[0]),
        manifest("b", NODES[1]),
        manifest("c", NODES[2]),
    ])?;
    let mut all = service("all", json!({ "group": "peers" }));
    all["spec"]["type"] = "NodePort".into();
    ns.objects(&[all])?;
    let port = ns.node_port("all", "tcp")?;
    for node in NODES {
        for ip in node_ips(node)? {
            eventually("the service on every node", Duration::from_secs(10), || {
                outside("tcp", SocketAddr::new(ip, port)).map(drop)
            })?;
        }
    }
    Ok(ns)
}

#[test]
fn open_connections_outlive_a_change_of_the_networks_ways() -> Result<()> {
    let ns = served("ways")?;
    let [tunnel, mode] = modes()?;
    let before = ["--tunnel", &tunnel, "--load-balancer-mode", &mode];
    let other = |word: &str, one, two| if word == one { two } else { one };
    let changes = [
        ["--tunnel", other(&tunnel, "off", "vxlan")],
        ["--tunnel", tunnel.as_str()],
        ["--load-balancer-mode", other(&mode, "snat", "dsr")],
        ["--load-balancer-mode", mode.as_str()],
    ];
    let clients = Clients::start(&ns, Of::Open, 50)?;
    let changed = changes.iter().try_for_each(|change| {
        cluster_up(change)?;
        nodes_ready()?;
        // Each way carries some packets of each connection.
        thread::sleep(Duration::from_secs(2));
        Ok(())
    });
    changed.or_else(|error: anyhow::Error| {
        cluster_up(&before)?;
        Err(error)
    })?;
    clients.check(&ns)
}

#[test]
fn agents_die_and_change_unnoticed() -> Result<()> {
    let ns = served("hitless")?;
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
