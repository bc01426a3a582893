//! Services of every kind, with real packets from pods, from nodes and from outside, in all families of the cluster.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use orch_tests::{
    NODES,
    cases::Cases,
    ensure, eventually, machine,
    namespace::Namespace,
    node_ips,
    peers::{self, Held, PORT, manifest, names, on_host, on_node, outside, outside_names, service},
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(15);
const HOST_PORT: u16 = 18080;

/// Three pods on three nodes, and one in the network of the second.
fn fixture(ns: &Namespace) -> Result<()> {
    ns.peers(&[
        manifest("a", NODES[0]),
        manifest("b", NODES[1]),
        manifest("c", NODES[2]),
        on_host("host", NODES[1], HOST_PORT),
    ])
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn group(mut pod: Value, group: &str) -> Value {
    pod["metadata"]["labels"]["group"] = group.into();
    pod
}

/// Asks from a pod until exactly these have answered and nothing failed.
fn reaches(
    ns: &Namespace,
    from: &str,
    protocol: &str,
    host: &str,
    port: u16,
    expected: &[&str],
) -> Result<()> {
    let what = format!("{from} asks {protocol} {host} {port}");
    eventually(&what, SOON, || {
        let lines = ns.ask(from, protocol, host, port, 12 * expected.len())?;
        let found = names(&lines)?;
        ensure(found == set(expected), || format!("answers came from {found:?}"))
    })
}

/// Asks from a pod and gets nothing, for a reason that contains `why`.
fn refuses(ns: &Namespace, from: &str, protocol: &str, host: &str, port: u16, why: &str) -> Result<()> {
    let what = format!("{from} asks {protocol} {host} {port}");
    eventually(&what, SOON, || {
        let lines = ns.ask(from, protocol, host, port, 2)?;
        ensure(
            lines
                .iter()
                .all(|line| line.starts_with('!') && line.contains(why)),
            || format!("it got {lines:?}"),
        )
    })
}

fn each_ip(ns: &Namespace, service: &str, mut check: impl FnMut(&str) -> Result<()>) -> Result<()> {
    let ips = ns.cluster_ips(service)?;
    ensure(ips.len() == node_ips(NODES[0])?.len(), || {
        format!("{service} has {ips:?}")
    })?;
    ips.iter().try_for_each(|ip| check(&ip.to_string()))
}

#[test]
fn cluster_ips() -> Result<()> {
    let ns = Namespace::create("clusterip")?;
    fixture(&ns)?;
    ns.objects(&[
        group_service("all", "peers"),
        service("only-a", json!({ "app": "a" })),
        service("host", json!({ "app": "host" })),
        service("nobody", json!({ "app": "nobody" })),
    ])?;
    // `host` has the group's label as well.
    ns.kubectl(&["label", "pod", "host", "group-"])?;
    let mut cases = Cases::default();
    for protocol in ["tcp", "udp"] {
        cases.case(&format!("every backend answers pods, {protocol}"), || {
            each_ip(&ns, "all", |ip| {
                ["a", "b", "host"]
                    .iter()
                    .try_for_each(|from| reaches(&ns, from, protocol, ip, 80, &["a", "b", "c"]))
            })
        });
        cases.case(
            &format!("a pod reaches itself through its service, {protocol}"),
            || {
                each_ip(&ns, "only-a", |ip| {
                    ["a", "b"]
                        .iter()
                        .try_for_each(|from| reaches(&ns, from, protocol, ip, 80, &["a"]))
                })
            },
        );
        cases.case(
            &format!("a pod in its node's network is a backend, {protocol}"),
            || {
                each_ip(&ns, "host", |ip| {
                    ["a", "b", "host"]
                        .iter()
                        .try_for_each(|from| reaches(&ns, from, protocol, ip, 80, &["host"]))
                })
            },
        );
        cases.case(&format!("nobody behind it: refused, {protocol}"), || {
            each_ip(&ns, "nobody", |ip| refuses(&ns, "a", protocol, ip, 80, "refused"))
        });
    }
    cases.case("a process of a node is a client", || {
        each_ip(&ns, "all", |ip| {
            let host = if ip.contains(':') {
                format!("[{ip}]")
            } else {
                ip.to_owned()
            };
            NODES.iter().try_for_each(|node| {
                let line =
                    format!("for i in 1 2 3 4 5 6; do curl -sS --max-time 3 http://{host}/ || exit 1; done");
                let lines: Vec<String> = on_node(node, &line)?.lines().map(str::to_owned).collect();
                ensure(lines.len() == 6, || format!("{lines:?}"))?;
                names(&lines).map(drop)
            })
        })
    });
    cases.case(
        "a port that the service does not have is not the backend's",
        || {
            each_ip(&ns, "all", |ip| {
                let lines = ns.ask("a", "tcp", ip, PORT, 1)?;
                ensure(lines.iter().all(|line| line.starts_with('!')), || {
                    format!("{lines:?}")
                })
            })
        },
    );
    cases.case("variables tell a later pod of a service", || {
        let pod = manifest("late", NODES[0]);
        ns.peers(&[pod])?;
        let lines = ns.peer("late", &["env", "ALL_"])?;
        let ip = ns.cluster_ips("all")?;
        let expected = format!("ALL_SERVICE_HOST={}", ip.first().context("no address")?);
        ensure(
            lines.contains(&expected) && lines.iter().any(|line| line == "ALL_SERVICE_PORT=80"),
            || format!("{lines:?}"),
        )
    });
    cases.finish()
}

fn group_service(name: &str, group: &str) -> Value {
    service(name, json!({ "group": group }))
}

#[test]
fn names_and_ports() -> Result<()> {
    let ns = Namespace::create("names")?;
    fixture(&ns)?;
    let mut sleepy = manifest("sleepy", NODES[1]);
    sleepy["spec"]["containers"][0]["readinessProbe"] =
        json!({ "exec": { "command": ["/bin/does-not-exist"] }, "periodSeconds": 1 });
    let with = |mut service: Value, field: &str, value: Value| {
        service["spec"][field] = value;
        service
    };
    let mut many = service("many", json!({ "app": "a" }));
    many["spec"]["ports"] = json!([
        { "name": "one", "port": 81, "targetPort": "web" },
        { "name": "two", "port": 82, "targetPort": PORT },
        { "name": "three", "port": 82, "targetPort": "dgram", "protocol": "UDP" },
    ]);
    let outside_port = tiny_server()?;
    let own = |name: &str, address: IpAddr, port: u16| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": format!("{name}-own"), "labels": { "kubernetes.io/service-name": name } },
            "addressType": "IPv4", "ports": [{ "name": "tcp", "port": port }],
            "endpoints": [{ "addresses": [address.to_string()] }],
        })
    };
    let bare = |name: &str| {
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
            "spec": { "ports": [{ "name": "tcp", "port": 80 }] } })
    };
    let a = *ns.pod_ips("a")?.first().context("a has no address")?;
    ns.objects(&[
        sleepy,
        with(service("headless", json!({ "group": "peers" })), "clusterIP", "None".into()),
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "alias" },
            "spec": { "type": "ExternalName", "externalName": format!("many.{}.svc.cluster.local", ns.name) } }),
        many,
        service("sleepy", json!({ "app": "sleepy" })),
        with(service("hasty", json!({ "app": "sleepy" })), "publishNotReadyAddresses", true.into()),
        bare("inside"),
        own("inside", a, PORT),
        bare("outside"),
        own("outside", machine(a), outside_port),
    ])?;
    let mut cases = Cases::default();
    cases.case("a headless service's name is its pods' addresses", || {
        let mut expected = Vec::new();
        for pod in ["a", "b", "c", "host"] {
            expected.extend(ns.pod_ips(pod)?);
        }
        let expected: BTreeSet<IpAddr> = expected.into_iter().collect();
        eventually("the name", SOON, || {
            let found = ns.peer("b", &["resolve", "headless"])?;
            let found: BTreeSet<IpAddr> = found.iter().filter_map(|line| line.parse().ok()).collect();
            ensure(found == expected, || format!("{found:?} and not {expected:?}"))
        })
    });
    cases.case("an ExternalName leads to another service", || {
        reaches(&ns, "b", "tcp", "alias", 81, &["a"])
    });
    cases.case("every port of a service is its own", || {
        reaches(&ns, "b", "tcp", "many", 81, &["a"])?;
        reaches(&ns, "b", "tcp", "many", 82, &["a"])?;
        reaches(&ns, "b", "udp", "many", 82, &["a"])
    });
    cases.case(
        "a pod that is not Ready gets no traffic, unless it is published",
        || {
            refuses(&ns, "a", "tcp", "sleepy", 80, "refused")?;
            reaches(&ns, "a", "tcp", "hasty", 80, &["sleepy"])
        },
    );
    cases.case("slices that a user wrote, to a pod and to the outside", || {
        reaches(&ns, "b", "tcp", "inside", 80, &["a"])?;
        reaches(&ns, "b", "tcp", "outside", 80, &["machine"])
    });
    cases.finish()
}

/// Something outside of the cluster that answers like a peer, until the test ends.
fn tiny_server() -> Result<u16> {
    let listener = TcpListener::bind("0.0.0.0:0").context("failed to listen")?;
    let port = listener.local_addr().context("no address")?.port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let peer = stream
                .peer_addr()
                .map(|peer| peer.ip().to_string())
                .unwrap_or_default();
            let body = format!("machine {peer} 0 0\n");
            let _ = stream.read(&mut [0; 4096]);
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
        }
    });
    Ok(port)
}

#[test]
fn node_ports_and_traffic_policies() -> Result<()> {
    let ns = Namespace::create("nodeports")?;
    fixture(&ns)?;
    ns.kubectl(&["label", "pod", "host", "group-"])?;
    let with = |name: &str, app: &str, fields: Value| {
        let selector = if app == "peers" {
            json!({ "group": app })
        } else {
            json!({ "app": app })
        };
        let mut service = service(name, selector);
        for (key, value) in fields.as_object().into_iter().flatten() {
            service["spec"][key] = value.clone();
        }
        service
    };
    ns.objects(&[
        with("all", "peers", json!({ "type": "NodePort" })),
        with("host", "host", json!({ "type": "NodePort" })),
        with(
            "local",
            "b",
            json!({ "type": "NodePort", "externalTrafficPolicy": "Local" }),
        ),
        with("inner", "peers", json!({ "internalTrafficPolicy": "Local" })),
        with("inner-b", "b", json!({ "internalTrafficPolicy": "Local" })),
        with(
            "near",
            "peers",
            json!({ "trafficDistribution": "PreferSameNode" }),
        ),
    ])?;
    let mut cases = Cases::default();
    for protocol in ["tcp", "udp"] {
        for (service, expected) in [("all", &["a", "b", "c"][..]), ("host", &["host"][..])] {
            cases.case(
                &format!("{service} answers on every node's addresses, {protocol}"),
                || {
                    let port = ns.node_port(service, protocol)?;
                    for node in NODES {
                        for ip in node_ips(node)? {
                            eventually(&format!("{ip}"), SOON, || {
                                let found = outside_names(protocol, SocketAddr::new(ip, port), 30)?;
                                ensure(found == set(expected), || format!("answers came from {found:?}"))
                            })?;
                        }
                    }
                    Ok(())
                },
            );
        }
        cases.case(&format!("a NodePort answers pods and nodes, {protocol}"), || {
            let port = ns.node_port("all", protocol)?;
            for ip in node_ips(NODES[0])? {
                for from in ["a", "b", "host"] {
                    reaches(&ns, from, protocol, &ip.to_string(), port, &["a", "b", "c"])?;
                }
            }
            Ok(())
        });
        cases.case(
            &format!("a NodePort is not on other addresses, {protocol}"),
            || {
                let port = ns.node_port("all", protocol)?;
                each_ip(&ns, "all", |ip| {
                    let lines = ns.ask("a", protocol, ip, port, 1)?;
                    ensure(lines.iter().all(|line| line.starts_with('!')), || {
                        format!("{lines:?}")
                    })
                })?;
                for ip in ns.pod_ips("b")? {
                    let lines = ns.ask("a", protocol, &ip.to_string(), port, 1)?;
                    ensure(lines.iter().all(|line| line.starts_with('!')), || {
                        format!("{lines:?}")
                    })?;
                }
                Ok(())
            },
        );
        cases.case(
            &format!("externalTrafficPolicy Local keeps the client's address, {protocol}"),
            || {
                let port = ns.node_port("local", protocol)?;
                for ip in node_ips(NODES[1])? {
                    let answer =
                        eventually("an answer", SOON, || outside(protocol, SocketAddr::new(ip, port)))?;
                    ensure(answer.name == "b" && answer.client == machine(ip), || {
                        format!("{answer:?}")
                    })?;
                }
                for ip in node_ips(NODES[0])? {
                    ensure(outside(protocol, SocketAddr::new(ip, port)).is_err(), || {
                        format!("{ip} has no backend and answers")
                    })?;
                }
                Ok(())
            },
        );
        cases.case(
            &format!("internalTrafficPolicy Local stays on the node, {protocol}"),
            || {
                each_ip(&ns, "inner", |ip| {
                    [("a", "a"), ("b", "b"), ("c", "c"), ("host", "b")]
                        .iter()
                        .try_for_each(|(from, to)| reaches(&ns, from, protocol, ip, 80, &[to]))
                })?;
                each_ip(&ns, "inner-b", |ip| {
                    reaches(&ns, "b", protocol, ip, 80, &["b"])?;
                    let lines = ns.ask("a", protocol, ip, 80, 1)?;
                    ensure(lines.iter().all(|line| line.starts_with('!')), || {
                        format!("{lines:?}")
                    })
                })
            },
        );
        cases.case(&format!("PreferSameNode prefers it, {protocol}"), || {
            each_ip(&ns, "near", |ip| {
                [("a", "a"), ("b", "b"), ("c", "c")]
                    .iter()
                    .try_for_each(|(from, to)| reaches(&ns, from, protocol, ip, 80, &[to]))
            })
        });
    }
    cases.finish()
}

#[test]
fn session_affinity_lasts_its_timeout() -> Result<()> {
    let ns = Namespace::create("affinity")?;
    fixture(&ns)?;
    ns.kubectl(&["label", "pod", "host", "group-"])?;
    let mut sticky = service("sticky", json!({ "group": "peers" }));
    sticky["spec"]["type"] = "NodePort".into();
    sticky["spec"]["sessionAffinity"] = "ClientIP".into();
    sticky["spec"]["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": 2 } });
    ns.objects(&[sticky])?;
    let mut cases = Cases::default();
    for protocol in ["tcp", "udp"] {
        cases.case(
            &format!("a pod keeps its backend, until it has paused, {protocol}"),
            || {
                each_ip(&ns, "sticky", |ip| {
                    let one = |count| -> Result<String> {
                        let found = names(&ns.ask("a", protocol, ip, 80, count)?)?;
                        ensure(found.len() == 1, || format!("answers came from {found:?}"))?;
                        found.into_iter().next().context("no answer")
                    };
                    let first = eventually("one backend", SOON, || one(20))?;
                    for _ in 0..20 {
                        thread::sleep(Duration::from_millis(2500));
                        // A socket with a port that another had within two minutes carries on its UDP flow, which has a
                        // backend; one in some hundred tries meets one.
                        if eventually("one backend again", SOON, || one(20))? != first {
                            return Ok(());
                        }
                    }
                    bail!("it is {first} still, after twenty pauses longer than the timeout")
                })
            },
        );
        cases.case(
            &format!("a client outside keeps its backend on every node, {protocol}"),
            || {
                let port = ns.node_port("sticky", protocol)?;
                for node in NODES {
                    for ip in node_ips(node)? {
                        let found = outside_names(protocol, SocketAddr::new(ip, port), 20)?;
                        ensure(found.len() == 1, || format!("{ip}: answers came from {found:?}"))?;
                    }
                }
                Ok(())
            },
        );
    }
    cases.finish()
}

/// The first and the last line of a client.
fn ends(lines: &[String]) -> Result<(&str, &str)> {
    let [first, .., last] = lines else {
        bail!("it says no more than {lines:?}")
    };
    Ok((first, last))
}

#[test]
fn backends_that_go() -> Result<()> {
    let ns = Namespace::create("backends")?;
    ns.peers(&[
        manifest("client", NODES[0]),
        group(manifest("one", NODES[0]), "g"),
        group(manifest("two", NODES[1]), "g"),
    ])?;
    ns.objects(&[group_service("g", "g"), group_service("last", "last")])?;
    let ip = ns.cluster_ips("g")?.first().context("no address")?.to_string();
    reaches(&ns, "client", "tcp", &ip, 80, &["one", "two"])?;
    let mut cases = Cases::default();
    cases.case(
        "a UDP socket moves when its backend goes, a TCP socket is told",
        || {
            let hold = |protocol, backend| ns.hold_at("client", protocol, &ip, 80, 15, backend);
            let mut udp = hold("udp", "one")?;
            let mut dead = (0..3).map(|_| hold("tcp", "one")).collect::<Result<Vec<_>>>()?;
            let mut live = hold("tcp", "two")?;
            dead.iter_mut()
                .chain([&mut udp, &mut live])
                .try_for_each(Held::begun)?;
            // Gone without a word: nothing closes its connections from its side.
            ns.kubectl(&["delete", "pod", "one", "--grace-period=0", "--force"])?;
            let lines = udp.lines()?;
            let (first, last) = ends(&lines)?;
            ensure(first.contains(" one ") && last.contains(" two "), || {
                format!("a UDP socket began with {first} and ended with {last}")
            })?;
            for held in dead {
                let lines = held.lines()?;
                let (first, last) = ends(&lines)?;
                ensure(
                    first.contains(" one ") && last.contains(" ! ") && !last.contains("timed out"),
                    || format!("a connection to the dead backend began with {first} and ended with {last}"),
                )?;
            }
            let lines = live.lines()?;
            ensure(lines.iter().all(|line| line.contains(" two ")), || {
                format!("a connection to the other backend: {lines:?}")
            })
        },
    );
    cases.case(
        "a backend that terminates is asked while there is no other",
        || {
            let listen = [
                format!("tcp:{PORT}"),
                format!("udp:{PORT}"),
                "linger:8".to_owned(),
            ];
            let listen: Vec<&str> = listen.iter().map(String::as_str).collect();
            let lone = group(peers::serving("lone", NODES[1], &listen), "last");
            ns.peers(&[lone])?;
            let ip = ns.cluster_ips("last")?.first().context("no address")?.to_string();
            reaches(&ns, "client", "tcp", &ip, 80, &["lone"])?;
            ns.kubectl(&["delete", "pod", "lone", "--wait=false"])?;
            thread::sleep(Duration::from_secs(2));
            names(&ns.ask("client", "tcp", &ip, 80, 10)?)
                .map(drop)
                .context("while it terminates")?;
            eventually("nobody answers when it is gone", Duration::from_secs(30), || {
                let lines = ns.ask("client", "tcp", &ip, 80, 1)?;
                ensure(lines.iter().all(|line| line.starts_with('!')), || {
                    format!("{lines:?}")
                })
            })
        },
    );
    cases.finish()
}

/// The reference machine's kernel has no SCTP: peers make the packets by hand, so this tests the way of packets, and
/// not that of SCTP's sockets.
#[test]
fn sctp() -> Result<()> {
    let ns = Namespace::create("sctp")?;
    let tcp = format!("tcp:{PORT}");
    ns.peers(&[
        peers::serving("near", NODES[0], &[&tcp, "sctp:9132"]),
        peers::serving("far", NODES[1], &[&tcp, "sctp:9132"]),
        manifest("client", NODES[0]),
    ])?;
    let mut cases = Cases::default();
    for server in ["near", "far"] {
        ns.objects(&[json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": server },
            "spec": { "type": "NodePort", "selector": { "app": server }, "ipFamilyPolicy": "PreferDualStack",
                      "ports": [{ "name": "sctp", "port": 132, "targetPort": 9132, "protocol": "SCTP" }] },
        })])?;
        let acknowledged = |host: &str, port: u16| {
            eventually(&format!("an answer of {host} {port}"), SOON, || {
                let lines = ns.ask("client", "sctp", host, port, 1)?;
                ensure(lines == ["acknowledged"], || format!("{lines:?}"))
            })
        };
        cases.case(&format!("a pod and an SCTP service of a pod {server}"), || {
            each_ip(&ns, server, |ip| acknowledged(ip, 132))
        });
        cases.case(&format!("a NodePort for SCTP of a pod {server}"), || {
            let port = ns.node_port(server, "sctp")?;
            node_ips(NODES[2])?
                .into_iter()
                .try_for_each(|ip| acknowledged(&ip.to_string(), port))
        });
        cases.case(&format!("a pod {server} by its own address"), || {
            ns.pod_ips(server)?
                .into_iter()
                .try_for_each(|ip| acknowledged(&ip.to_string(), 9132))
        });
    }
    cases.finish()
}
