//! Pods on one node and on several, and the outside: addresses, sizes of packets, families. Runs with and without a
//! tunnel between the nodes.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use orch_tests::{
    NODES,
    cases::Cases,
    ensure, http, machine,
    namespace::Namespace,
    node_ips,
    peers::{PORT, manifest, on_host, outside_sized, parse, service},
};
use serde_json::json;

const HOST_PORT: u16 = 18085;
/// Bytes that need many packets in TCP.
const STREAM: usize = 3_000_000;
/// Datagrams that just fit a packet of 1500 bytes and of 1450, and that need fragments.
const DATAGRAMS: [usize; 5] = [1_000, 1_400, 1_472, 4_000, 30_000];

fn fixture() -> Result<Namespace> {
    let ns = Namespace::create("network")?;
    ns.peers(&[
        manifest("a", NODES[0]),
        manifest("b", NODES[0]),
        manifest("c", NODES[1]),
        on_host("host", NODES[2], HOST_PORT),
    ])?;
    let mut service = service("c", json!({ "app": "c" }));
    service["spec"]["type"] = "NodePort".into();
    ns.objects(&[service])?;
    Ok(ns)
}

/// Asks with so many bytes and returns the client's address as the server saw it.
fn sized(ns: &Namespace, from: &str, protocol: &str, host: &str, port: u16, size: usize) -> Result<IpAddr> {
    let (port, text) = (port.to_string(), size.to_string());
    let lines = ns.peer(from, &["ask", protocol, host, &port, "1", "4", &text])?;
    let answer = parse(lines.first().context("no line")?)
        .with_context(|| format!("{from} sent {size} bytes by {protocol} to {host}"))?;
    ensure(answer.length == size, || {
        format!("{} of {size} bytes arrived", answer.length)
    })?;
    Ok(answer.client)
}

#[test]
fn pods_and_nodes() -> Result<()> {
    let ns = fixture()?;
    let mut cases = Cases::default();
    cases.case(
        "every pod and node reaches every other, with its own address",
        || {
            for (from, to) in [
                ("a", "b"),
                ("a", "c"),
                ("c", "a"),
                ("a", "a"),
                ("a", "host"),
                ("c", "host"),
                ("host", "a"),
                ("host", "c"),
            ] {
                let port = if to == "host" { HOST_PORT } else { PORT };
                for (to, own) in ns.pod_ips(to)?.iter().zip(ns.pod_ips(from)?) {
                    for protocol in ["tcp", "udp"] {
                        let seen = sized(&ns, from, protocol, &to.to_string(), port, 10)?;
                        ensure(seen == own, || {
                            format!("{to} saw {seen} and not {own}, by {protocol}")
                        })?;
                    }
                }
            }
            Ok(())
        },
    );
    for (from, to) in [("a", "b"), ("a", "c"), ("c", "a"), ("host", "c"), ("a", "host")] {
        cases.case(
            &format!("much data and large packets get from {from} to {to}"),
            || {
                let port = if to == "host" { HOST_PORT } else { PORT };
                for ip in ns.pod_ips(to)? {
                    sized(&ns, from, "tcp", &ip.to_string(), port, STREAM)?;
                    for size in DATAGRAMS {
                        sized(&ns, from, "udp", &ip.to_string(), port, size)?;
                    }
                }
                Ok(())
            },
        );
    }
    cases.case("the same through a service", || {
        for ip in ns.cluster_ips("c")? {
            for from in ["a", "c", "host"] {
                sized(&ns, from, "tcp", &ip.to_string(), 80, STREAM)?;
                for size in DATAGRAMS {
                    sized(&ns, from, "udp", &ip.to_string(), 80, size)?;
                }
            }
        }
        Ok(())
    });
    for node in [NODES[0], NODES[1]] {
        cases.case(
            &format!("the same from outside through a NodePort of {node}"),
            || {
                let body = "x".repeat(STREAM);
                for ip in node_ips(node)? {
                    let address = SocketAddr::new(ip, ns.node_port("c", "tcp")?);
                    let answer =
                        http::request(address, "POST", "/", &body).with_context(|| ip.to_string())?;
                    let length = parse(answer.body.trim())?.length;
                    ensure(length == STREAM, || format!("{length} bytes arrived"))?;
                    let address = SocketAddr::new(ip, ns.node_port("c", "udp")?);
                    for size in DATAGRAMS {
                        let answer = outside_sized("udp", address, size)
                            .with_context(|| format!("{size} bytes to {address}"))?;
                        ensure(answer.length == size, || format!("{answer:?}"))?;
                    }
                }
                Ok(())
            },
        );
    }
    cases.finish()
}

#[test]
fn the_outside_sees_the_node() -> Result<()> {
    let ns = Namespace::create("outside")?;
    ns.peers(&[manifest("a", NODES[0])])?;
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).context("failed to listen")?;
    let port = listener.local_addr().context("no address")?.port();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let peer = stream
                .peer_addr()
                .map(|peer| peer.ip().to_canonical().to_string());
            let body = format!("machine {} 0 0\n", peer.unwrap_or_default());
            let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
            let _ = stream.read(&mut [0; 4096]);
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
        }
    });
    for ip in node_ips(NODES[0])? {
        let answer = ns.ask_once("a", "tcp", &machine(ip).to_string(), port)?;
        ensure(answer.client == ip, || format!("{answer:?} and not {ip}"))?;
    }
    Ok(())
}
