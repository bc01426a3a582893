//! Services of type LoadBalancer, and external addresses, for a client outside of the cluster: the machine.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use orch_tests::{
    NODES, agent_pid,
    cases::Cases,
    cluster_up, ensure, eventually, http, kubectl, machine,
    namespace::Namespace,
    node_ips, nodes_ready,
    peers::{manifest, names, outside, outside_names, service},
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

fn fixture(stem: &str) -> Result<Namespace> {
    let ns = Namespace::create(stem)?;
    ns.peers(&[
        manifest("a", NODES[0]),
        manifest("b", NODES[1]),
        manifest("c", NODES[2]),
    ])?;
    Ok(ns)
}

fn balancer(name: &str, selector: Value, fields: Value) -> Value {
    let mut service = service(name, selector);
    service["spec"]["type"] = "LoadBalancer".into();
    for (key, value) in fields.as_object().into_iter().flatten() {
        service["spec"][key] = value.clone();
    }
    service
}

/// The addresses, when there is one of each family.
fn addresses(ns: &Namespace, service: &str) -> Result<Vec<IpAddr>> {
    let families = node_ips(NODES[0])?.len();
    eventually(&format!("addresses of {service}"), SOON, || {
        let ips = ns.balancer_ips(service)?;
        ensure(ips.len() == families, || format!("{ips:?}"))?;
        Ok(ips)
    })
}

/// Waits until exactly these answer the machine.
fn answers(protocol: &str, address: SocketAddr, expected: &[&str]) -> Result<()> {
    let expected: BTreeSet<String> = expected.iter().map(|&name| name.to_owned()).collect();
    eventually(&format!("{protocol} {address}"), SOON, || {
        let found = outside_names(protocol, address, 12 * expected.len())?;
        ensure(found == expected, || format!("answers came from {found:?}"))
    })
}

/// The node whose link-layer address the machine knows for an address.
fn announcer(ip: IpAddr) -> Result<&'static str> {
    let neighbours = shell(&format!("ip neigh show {ip} dev orch0"))?;
    let mac = neighbours
        .split_once("lladdr ")
        .and_then(|(_, rest)| rest.split(' ').next())
        .with_context(|| format!("no neighbour: {neighbours:?}"))?;
    for node in NODES {
        if shell(&format!("ip -n {node} link show eth0"))?.contains(mac) {
            return Ok(node);
        }
    }
    bail!("{mac} is no node's")
}

fn shell(line: &str) -> Result<String> {
    let output = Command::new("sh").args(["-c", line]).output();
    let output = output.context("failed to start a shell")?;
    ensure(output.status.success(), || {
        format!(
            "{line:?} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )
    })?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Undone when the test ends, however it does.
struct Undo(String);

impl Drop for Undo {
    fn drop(&mut self) {
        let _ = shell(&self.0);
    }
}

#[test]
fn a_client_outside() -> Result<()> {
    let ns = fixture("balancer")?;
    let peers = json!({ "group": "peers" });
    ns.objects(&[
        balancer("all", peers.clone(), json!({})),
        balancer(
            "local",
            json!({ "app": "b" }),
            json!({ "externalTrafficPolicy": "Local" }),
        ),
        balancer(
            "ranges",
            peers.clone(),
            json!({ "loadBalancerSourceRanges": ["203.0.113.0/24"] }),
        ),
        balancer(
            "foreign",
            peers.clone(),
            json!({ "loadBalancerClass": "example.com/other" }),
        ),
        balancer(
            "chosen",
            peers.clone(),
            json!({ "loadBalancerIP": "172.30.0.249" }),
        ),
        balancer(
            "own",
            peers,
            json!({ "loadBalancerClass": "orch.dev/l2", "allocateLoadBalancerNodePorts": false }),
        ),
    ])?;
    let mut cases = Cases::default();
    for protocol in ["tcp", "udp"] {
        for name in ["all", "own"] {
            cases.case(&format!("{name} answers, from every backend, {protocol}"), || {
                addresses(&ns, name)?
                    .into_iter()
                    .try_for_each(|ip| answers(protocol, SocketAddr::new(ip, 80), &["a", "b", "c"]))
            });
        }
        cases.case(&format!("Local keeps the client's address, {protocol}"), || {
            addresses(&ns, "local")?.into_iter().try_for_each(|ip| {
                let answer = eventually("an answer", SOON, || outside(protocol, SocketAddr::new(ip, 80)))?;
                ensure(answer.name == "b" && answer.client == machine(ip), || {
                    format!("{answer:?}")
                })
            })
        });
        cases.case(&format!("pods reach it, {protocol}"), || {
            for name in ["all", "local"] {
                for ip in addresses(&ns, name)? {
                    for from in ["a", "b"] {
                        names(&ns.ask(from, protocol, &ip.to_string(), 80, 5)?)
                            .with_context(|| format!("{from} asked {name}"))?;
                    }
                }
            }
            Ok(())
        });
    }
    cases.case("the health check's node port knows where the backend is", || {
        let service = ns.json(&["get", "service", "local"])?;
        let port = service["spec"]["healthCheckNodePort"]
            .as_u64()
            .context("no port")?;
        let port = u16::try_from(port)?;
        for ip in node_ips(NODES[1])? {
            let answer = http::get(SocketAddr::new(ip, port), "/")?;
            ensure(answer.body.contains("\"localEndpoints\""), || answer.body.clone())?;
        }
        for ip in node_ips(NODES[0])? {
            let error = http::get(SocketAddr::new(ip, port), "/")
                .err()
                .map(|error| format!("{error:#}"));
            ensure(error.as_deref().is_some_and(|text| text.contains("503")), || {
                format!("{error:?}")
            })?;
        }
        Ok(())
    });
    cases.case("source ranges keep out whom they do not name", || {
        for ip in addresses(&ns, "ranges")? {
            ensure(outside("tcp", SocketAddr::new(ip, 80)).is_err(), || {
                format!("{ip} answers")
            })?;
        }
        ns.kubectl(&[
            "patch",
            "service",
            "ranges",
            "-p",
            r#"{"spec":{"loadBalancerSourceRanges":["172.30.0.1/32","fd00:30::/64"]}}"#,
        ])?;
        addresses(&ns, "ranges")?
            .into_iter()
            .try_for_each(|ip| answers("tcp", SocketAddr::new(ip, 80), &["a", "b", "c"]))
    });
    cases.case(
        "a class of others is left to them, an address that is asked for is given",
        || {
            ensure(
                addresses(&ns, "chosen")?.contains(&"172.30.0.249".parse()?),
                || "another address".to_owned(),
            )?;
            let found = ns.balancer_ips("foreign")?;
            ensure(found.is_empty(), || format!("{found:?}"))
        },
    );
    cases.case(
        "an address is not on the network any more when its service is gone",
        || {
            let ip = *addresses(&ns, "own")?.first().context("no address")?;
            ns.kubectl(&["delete", "service", "own"])?;
            eventually("silence", SOON, || {
                ensure(outside("tcp", SocketAddr::new(ip, 80)).is_err(), || {
                    format!("{ip} answers")
                })
            })
        },
    );
    cases.finish()
}

#[test]
fn external_ips() -> Result<()> {
    let ns = fixture("externalip")?;
    let mut external = service("external", json!({ "group": "peers" }));
    let mut ips = vec![("198.51.100.77", "172.30.0.11", "32")];
    if node_ips(NODES[0])?.len() > 1 {
        ips.push(("2001:db8:77::1", "fd00:30::11", "128"));
    }
    external["spec"]["externalIPs"] = ips.iter().map(|(ip, ..)| *ip).collect::<Vec<_>>().into();
    ns.objects(&[external])?;
    let mut undo = Vec::new();
    for (ip, node, bits) in &ips {
        undo.push(Undo(format!("ip route del {ip}/{bits}")));
        shell(&format!("ip route replace {ip}/{bits} via {node}"))?;
    }
    let mut cases = Cases::default();
    for protocol in ["tcp", "udp"] {
        for (ip, ..) in &ips {
            cases.case(&format!("{ip} answers outside and inside, {protocol}"), || {
                answers(protocol, SocketAddr::new(ip.parse()?, 80), &["a", "b", "c"])?;
                eventually("answers inside", Duration::from_secs(15), || {
                    names(&ns.ask("b", protocol, ip, 80, 5)?).map(drop)
                })
            });
        }
    }
    cases.finish()
}

/// Connections to an address, one after the other; returns the longest time without an answer.
fn longest_silence(address: SocketAddr, length: Duration) -> Duration {
    let began = Instant::now();
    let (mut last, mut longest) = (began, Duration::ZERO);
    while began.elapsed() < length {
        if http::quick(address, Duration::from_millis(300)).is_ok() {
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        thread::sleep(Duration::from_millis(20));
    }
    longest.max(last.elapsed())
}

#[test]
fn another_node_takes_over() -> Result<()> {
    let ns = fixture("takeover")?;
    ns.objects(&[balancer("all", json!({ "group": "peers" }), json!({}))])?;
    let mut cases = Cases::default();
    for ip in addresses(&ns, "all")? {
        let address = SocketAddr::new(ip, 80);
        answers("tcp", address, &["a", "b", "c"])?;
        let node = announcer(ip)?;
        cases.case(
            &format!("{ip} answers while the agent that announces it is dead"),
            || {
                kill(Pid::from_raw(agent_pid(node)?), Signal::SIGKILL).context("failed to kill an agent")?;
                // The machine must ask again who has it.
                let _ = shell(&format!("ip neigh flush dev orch0 {ip}"));
                let silence = longest_silence(address, Duration::from_secs(5));
                cluster_up(&[])?;
                nodes_ready()?;
                println!("    {} ms of silence", silence.as_millis());
                // A question for the address that gets lost costs a second.
                ensure(silence < Duration::from_secs(3), || {
                    format!("{} ms of silence", silence.as_millis())
                })
            },
        );
        cases.case(&format!("{ip} moves when its node's link is gone"), || {
            let node = announcer(ip)?;
            let port = node.replace("orch-node", "orch0-");
            let _back = Undo(format!("ip link set {port} up"));
            // Backends on the dead node are still in the tables for some seconds: only those that live are asked.
            let spare: Vec<&str> = ["a", "b", "c"]
                .into_iter()
                .zip(NODES)
                .filter_map(|(pod, at)| (at != node).then_some(pod))
                .collect();
            for pod in ["a", "b", "c"] {
                let label = if spare.contains(&pod) {
                    "group=peers"
                } else {
                    "group=off"
                };
                ns.kubectl(&["label", "pod", pod, "--overwrite", label])?;
            }
            answers("tcp", address, &spare)?;
            shell(&format!("ip link set {port} down"))?;
            let silence = longest_silence(address, Duration::from_secs(10));
            println!("    {} ms of silence", silence.as_millis());
            ensure(silence < Duration::from_secs(5), || {
                format!("{} ms of silence", silence.as_millis())
            })?;
            let now = announcer(ip)?;
            ensure(now != node, || format!("{node} is still the one"))
        });
        nodes_ready()?;
        cases.case(&format!("{ip} answers after the node is back"), || {
            thread::sleep(Duration::from_secs(3));
            ns.kubectl(&["label", "pod", "a", "b", "c", "--overwrite", "group=peers"])?;
            answers("tcp", address, &["a", "b", "c"])
        });
    }
    kubectl::run(&["get", "nodes"])?;
    cases.finish()
}

/// Long enough to notice that a node is silent; the control plane takes it for lost after thirty seconds at the soonest.
const NOTICED: Duration = Duration::from_secs(5);
const LOST: Duration = Duration::from_secs(25);

#[test]
fn a_silent_nodes_backends_get_no_new_connections() -> Result<()> {
    let ns = fixture("silent")?;
    ns.objects(&[balancer("all", json!({ "group": "peers" }), json!({}))])?;
    let mut cases = Cases::default();
    let victim = NODES[2];
    let mut targets = Vec::new();
    for ip in addresses(&ns, "all")? {
        targets.push(SocketAddr::new(ip, 80));
    }
    for node in &NODES[..2] {
        let port = ns.node_port("all", "tcp")?;
        targets.extend(node_ips(node)?.into_iter().map(|ip| SocketAddr::new(ip, port)));
    }
    let cluster_ips = ns.cluster_ips("all")?;
    for target in &targets {
        answers("tcp", *target, &["a", "b", "c"])?;
    }
    let port = victim.replace("orch-node", "orch0-");
    let undo = Undo(format!("ip link set {port} up"));
    let two = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
    shell(&format!("ip link set {port} down"))?;
    let began = Instant::now();
    thread::sleep(NOTICED);
    for target in targets.clone() {
        cases.case(&format!("every connection to {target} is answered"), || {
            let found = outside_names("tcp", target, 30)?;
            ensure(found == two, || format!("answers came from {found:?}"))
        });
    }
    for ip in cluster_ips {
        cases.case(&format!("every connection of a pod to {ip} is answered"), || {
            let found = names(&ns.ask("a", "tcp", &ip.to_string(), 80, 30)?)?;
            ensure(found == two, || format!("answers came from {found:?}"))
        });
    }
    cases.case("the control plane knew nothing of it", || {
        ensure(began.elapsed() < LOST, || {
            format!("it took {} s", began.elapsed().as_secs())
        })?;
        let node = kubectl::json(&["get", "node", victim])?;
        let conditions = node["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let ready = conditions
            .iter()
            .any(|one| one["type"] == "Ready" && one["status"] == "True");
        ensure(ready, || format!("{victim} is not Ready"))
    });
    drop(undo);
    for target in targets {
        cases.case(&format!("{target} leads to the node that is back"), || {
            answers("tcp", target, &["a", "b", "c"])
        });
    }
    nodes_ready()?;
    cases.finish()
}
