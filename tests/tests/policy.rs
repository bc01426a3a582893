//! NetworkPolicies over real pods on one node and on several, from other namespaces, from nodes and from outside.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use orch_tests::{
    NODES,
    cases::Cases,
    ensure, eventually, machine,
    namespace::Namespace,
    node_ips,
    peers::{PORT, manifest, on_host, outside, service, serving},
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(15);

/// A server, a client beside it, one on another node, one in a node's network, and one in another namespace.
struct Place {
    ns: Namespace,
    other: Namespace,
    server: Vec<IpAddr>,
}

impl Place {
    fn new() -> Result<Self> {
        let ns = Namespace::create("policy")?;
        let other = Namespace::create("policy-other")?;
        let mut local = service("local", json!({ "app": "server" }));
        local["spec"]["type"] = "NodePort".into();
        local["spec"]["externalTrafficPolicy"] = "Local".into();
        ns.objects(&[local])?;
        let port = format!("tcp:{PORT}");
        let pods = [
            serving(
                "server",
                NODES[1],
                &[&port, &format!("udp:{PORT}"), "tcp:9001", "tcp:9009"],
            ),
            manifest("near", NODES[1]),
            manifest("far", NODES[0]),
            on_host("host", NODES[2], 18081),
        ];
        ns.objects(&pods)?;
        other.peers(&[manifest("stranger", NODES[0])])?;
        ns.ready(&pods)?;
        let server = ns.pod_ips("server")?;
        Ok(Self { ns, other, server })
    }

    /// Sets the one policy of the namespace; none when `spec` is null.
    fn policy(&self, spec: Value) -> Result<()> {
        if spec.is_null() {
            return self.ns.kubectl(&["delete", "networkpolicy", "--all"]).map(drop);
        }
        self.ns.objects(&[json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "name": "only" }, "spec": spec,
        })])
    }

    /// A policy for the server's ingress.
    fn ingress(&self, rules: Value) -> Result<()> {
        self.policy(json!({
            "podSelector": { "matchLabels": { "app": "server" } }, "policyTypes": ["Ingress"], "ingress": rules,
        }))
    }

    /// A policy for what `far` may send.
    fn egress(&self, rules: Value) -> Result<()> {
        self.policy(json!({
            "podSelector": { "matchLabels": { "app": "far" } }, "policyTypes": ["Egress"], "egress": rules,
        }))
    }

    fn once(&self, from: &str, protocol: &str, host: &str, port: u16) -> Result<bool> {
        let ns = if from == "stranger" { &self.other } else { &self.ns };
        let (port, patience) = (port.to_string(), "0.7");
        let lines = ns.peer(from, &["ask", protocol, host, &port, "1", patience])?;
        Ok(lines.first().context("no line")?.starts_with("server "))
    }

    /// Checks who gets an answer from the server's addresses on a port.
    fn expect(&self, protocol: &str, port: u16, who: &[(&str, bool)]) -> Result<()> {
        for ip in &self.server {
            for (from, allowed) in who {
                let what = format!("{from} asks {protocol} {ip} {port}");
                eventually(&what, SOON, || {
                    let answered = self.once(from, protocol, &ip.to_string(), port)?;
                    ensure(answered == *allowed, || format!("answered: {answered}"))
                })?;
            }
        }
        Ok(())
    }

    /// Whether the machine gets an answer through the NodePort of the server's node.
    fn machine_asks(&self, allowed: bool) -> Result<()> {
        let port = self.ns.node_port("local", "tcp")?;
        for ip in node_ips(NODES[1])? {
            eventually(&format!("the machine asks {ip}"), SOON, || {
                let answer = outside("tcp", SocketAddr::new(ip, port));
                ensure(answer.is_ok() == allowed, || format!("{answer:?}"))?;
                ensure(
                    answer.is_err() || answer.is_ok_and(|answer| answer.client == machine(ip)),
                    || "the client is another".to_owned(),
                )
            })?;
        }
        Ok(())
    }
}

/// One family's whole address space.
fn everyone(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "0.0.0.0/0" } else { "::/0" }
}

fn alone(ip: IpAddr) -> String {
    format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })
}

#[test]
fn ingress() -> Result<()> {
    let place = Place::new()?;
    let mut cases = Cases::default();
    let all = |allowed: bool| {
        [
            ("near", allowed),
            ("far", allowed),
            ("stranger", allowed),
            ("host", allowed),
        ]
    };
    cases.case("without a policy all get in", || {
        place.expect("tcp", PORT, &all(true))?;
        place.expect("udp", PORT, &all(true))?;
        place.machine_asks(true)
    });
    cases.case("without a rule nobody gets in, and probes do", || {
        place.ingress(json!([]))?;
        place.expect("tcp", PORT, &all(false))?;
        place.expect("udp", PORT, &all(false))?;
        place.machine_asks(false)?;
        thread::sleep(Duration::from_secs(4));
        let pod = place.ns.kubectl(&["get", "pod", "server", "--no-headers"])?;
        ensure(pod.contains("1/1"), || pod.clone())
    });
    cases.case("a pod selector is for this namespace", || {
        place.ingress(json!([{ "from": [{ "podSelector": {} }] }]))?;
        place.expect(
            "tcp",
            PORT,
            &[
                ("near", true),
                ("far", true),
                ("stranger", false),
                ("host", false),
            ],
        )?;
        place.ingress(json!([{ "from": [{ "podSelector": { "matchLabels": { "app": "far" } } }] }]))?;
        place.expect(
            "tcp",
            PORT,
            &[("near", false), ("far", true), ("stranger", false)],
        )
    });
    cases.case("a namespace selector is for another", || {
        let names = json!({ "matchLabels": { "kubernetes.io/metadata.name": place.other.name } });
        place.ingress(json!([{ "from": [{ "namespaceSelector": names }] }]))?;
        place.expect(
            "tcp",
            PORT,
            &[("near", false), ("far", false), ("stranger", true)],
        )?;
        let nobody = json!({ "matchLabels": { "app": "nobody" } });
        place.ingress(json!([{ "from": [{ "namespaceSelector": names, "podSelector": nobody }] }]))?;
        place.expect("tcp", PORT, &[("stranger", false)])
    });
    cases.case("labels that change count at once", || {
        let friends = json!({ "matchLabels": { "friend": "yes" } });
        place.ingress(json!([{ "from": [{ "namespaceSelector": {}, "podSelector": friends }] }]))?;
        place.expect("tcp", PORT, &[("stranger", false)])?;
        place.other.kubectl(&["label", "pod", "stranger", "friend=yes"])?;
        place.expect("tcp", PORT, &[("stranger", true)])?;
        place.other.kubectl(&["label", "pod", "stranger", "friend-"])?;
        place.expect("tcp", PORT, &[("stranger", false)])
    });
    cases.case("a block of addresses, and those excepted", || {
        let blocks = |except: bool| -> Value {
            let from = place.server.iter().map(|ip| {
                let except: Vec<String> = except.then(|| alone(machine(*ip))).into_iter().collect();
                json!({ "ipBlock": { "cidr": everyone(*ip), "except": except } })
            });
            json!([{ "from": from.collect::<Vec<_>>() }])
        };
        place.ingress(blocks(false))?;
        place.machine_asks(true)?;
        place.expect("tcp", PORT, &[("host", true)])?;
        place.ingress(blocks(true))?;
        place.machine_asks(false)?;
        place.expect("tcp", PORT, &[("host", true)])
    });
    cases.case("a named port, a number, a range", || {
        let far = ("far", true);
        place.ingress(json!([{ "ports": [{ "port": "web" }] }]))?;
        place.expect("tcp", PORT, &[far])?;
        place.expect("tcp", 9001, &[("far", false)])?;
        place.expect("udp", PORT, &[("far", false)])?;
        place.ingress(json!([{ "ports": [{ "port": "dgram", "protocol": "UDP" }] }]))?;
        place.expect("udp", PORT, &[far])?;
        place.expect("tcp", PORT, &[("far", false)])?;
        place.ingress(json!([{ "ports": [{ "port": 9000, "endPort": 9005 }] }]))?;
        place.expect("tcp", 9001, &[far])?;
        place.expect("tcp", 9009, &[("far", false)])?;
        place.expect("tcp", PORT, &[("far", false)])
    });
    cases.case("without the policy all get in again", || {
        place.policy(Value::Null)?;
        place.expect("tcp", PORT, &all(true))?;
        place.machine_asks(true)
    });
    cases.finish()
}

#[test]
fn egress() -> Result<()> {
    let place = Place::new()?;
    let mut cases = Cases::default();
    let cluster_ip = place
        .ns
        .cluster_ips("local")?
        .first()
        .context("no address")?
        .to_string();
    cases.case("without a rule nothing gets out of that pod", || {
        place.egress(json!([]))?;
        place.expect("tcp", PORT, &[("far", false), ("near", true), ("stranger", true)])?;
        place.expect("udp", PORT, &[("far", false)])?;
        ensure(!place.once("far", "tcp", &cluster_ip, 80)?, || {
            "through the service".into()
        })
    });
    cases.case("a pod selector, also behind a service", || {
        let server = json!([{ "podSelector": { "matchLabels": { "app": "server" } } }]);
        place.egress(json!([{ "to": server, "ports": [{ "port": PORT }] }]))?;
        place.expect("tcp", PORT, &[("far", true)])?;
        place.expect("tcp", 9001, &[("far", false)])?;
        place.expect("udp", PORT, &[("far", false)])?;
        eventually("an answer through the service", Duration::from_secs(10), || {
            ensure(place.once("far", "tcp", &cluster_ip, 80)?, || "none".into())
        })
    });
    cases.case("a named port is the receiving pod's", || {
        place.egress(json!([{ "ports": [{ "port": "web" }] }]))?;
        place.expect("tcp", PORT, &[("far", true)])?;
        place.expect("tcp", 9001, &[("far", false)])
    });
    cases.case("a block of addresses, and those excepted", || {
        let blocks = |except: &[String]| -> Value {
            let to = place.server.iter().map(|ip| {
                let except: Vec<&String> = except
                    .iter()
                    .filter(|text| text.contains(':') == ip.is_ipv6())
                    .collect();
                json!({ "ipBlock": { "cidr": everyone(*ip), "except": except } })
            });
            json!([{ "to": to.collect::<Vec<_>>() }])
        };
        place.egress(blocks(&[]))?;
        place.expect("tcp", PORT, &[("far", true)])?;
        let server: Vec<String> = place.server.iter().map(|ip| alone(*ip)).collect();
        place.egress(blocks(&server))?;
        place.expect("tcp", PORT, &[("far", false)])
    });
    cases.case("names resolve where only DNS is allowed", || {
        // By its port, and as other clusters' DNS.
        let dns = json!([{
            "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "kube-system" } },
            "podSelector": { "matchLabels": { "k8s-app": "kube-dns" } },
        }]);
        for rule in [
            json!({ "ports": [{ "port": 53, "protocol": "UDP" }] }),
            json!({ "to": dns }),
        ] {
            place.egress(json!([]))?;
            place.egress(json!([rule]))?;
            eventually("the name", SOON, || {
                let found = place.ns.peer("far", &["resolve", "local"])?;
                ensure(found.contains(&cluster_ip), || format!("{found:?}"))
            })?;
            place.expect("tcp", PORT, &[("far", false)])?;
        }
        Ok(())
    });
    cases.finish()
}

#[test]
fn changes_and_first_packets() -> Result<()> {
    let place = Place::new()?;
    let mut cases = Cases::default();
    for from in ["far", "near"] {
        cases.case(
            &format!("a connection of {from} stops with a policy and goes on without"),
            || {
                let ip = place.server.first().context("no address")?.to_string();
                let mut held = place.ns.hold(from, "tcp", &ip, PORT, 16)?;
                held.begun()?;
                thread::sleep(Duration::from_secs(1));
                place.ingress(json!([]))?;
                thread::sleep(Duration::from_secs(5));
                place.policy(Value::Null)?;
                let lines = held.lines()?;
                let silent = lines.iter().filter(|line| line.contains("timed out")).count();
                let last = lines.last().context("no line")?;
                ensure(silent > 0, || {
                    format!("nothing stopped it in {} exchanges", lines.len())
                })?;
                // Its times out of step, two answers may come at once.
                ensure(last.contains("server "), || format!("at last: {last}"))
            },
        );
    }
    cases.case("a pod's first packet finds the policy in place", || {
        place.policy(json!({ "podSelector": {}, "policyTypes": ["Egress"], "egress": [] }))?;
        place.expect("tcp", PORT, &[("far", false)])?;
        let ip = place.server.first().context("no address")?.to_string();
        for number in 0..5 {
            let mut pod = manifest(&format!("hasty-{number}"), NODES[number % 3]);
            let command = &mut pod["spec"]["containers"][0]["command"];
            let program = command[2].clone();
            *command = json!([
                "python3",
                "-c",
                program,
                "ask",
                "tcp",
                ip,
                PORT.to_string(),
                "3",
                "0.5"
            ]);
            pod["spec"]["containers"][0]["readinessProbe"] = Value::Null;
            pod["spec"]["restartPolicy"] = "Never".into();
            place.ns.objects(&[pod])?;
        }
        for number in 0..5 {
            let pod = format!("hasty-{number}");
            place.ns.kubectl(&[
                "wait",
                "--for=jsonpath={.status.phase}=Succeeded",
                &format!("pod/{pod}"),
                "--timeout=40s",
            ])?;
            let log = place.ns.kubectl(&["logs", &pod])?;
            ensure(
                log.lines().count() == 3 && log.lines().all(|line| line.starts_with('!')),
                || format!("{pod} says {log:?}"),
            )?;
        }
        Ok(())
    });
    cases.finish()
}
