//! Host ports: a pod's port on its node's addresses, and on those only that it names.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::Result;
use orch_tests::{
    NODES,
    cases::Cases,
    ensure, eventually, machine,
    namespace::Namespace,
    node_ips,
    peers::{PORT, manifest, names, on_node, outside},
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(15);

fn with_ports(mut pod: Value, ports: Value) -> Value {
    pod["spec"]["containers"][0]["ports"] = ports;
    pod
}

fn url(ip: IpAddr, port: u16) -> String {
    format!("http://{}/", SocketAddr::new(ip, port))
}

#[test]
fn host_ports() -> Result<()> {
    let ns = Namespace::create("hostports")?;
    let node = node_ips(NODES[0])?;
    let one = node.first().map(ToString::to_string).unwrap_or_default();
    let port = |host: u16, more: Value| {
        let mut port = json!({ "containerPort": PORT, "hostPort": host });
        for (key, value) in more.as_object().into_iter().flatten() {
            port[key] = value.clone();
        }
        port
    };
    ns.peers(&[
        with_ports(
            manifest("open", NODES[0]),
            json!([
                port(18100, json!({ "name": "web" })),
                port(18100, json!({ "name": "dgram", "protocol": "UDP" })),
            ]),
        ),
        // The same port as another pod's, on another address.
        with_ports(
            manifest("inside", NODES[0]),
            json!([port(18101, json!({ "hostIP": "127.0.0.1" }))]),
        ),
        with_ports(
            manifest("single", NODES[0]),
            json!([port(18102, json!({ "hostIP": one }))]),
        ),
        manifest("near", NODES[0]),
        manifest("far", NODES[1]),
    ])?;
    let mut cases = Cases::default();
    for protocol in ["tcp", "udp"] {
        cases.case(
            &format!("the machine asks the node and is seen, {protocol}"),
            || {
                for ip in &node {
                    let answer = eventually("an answer", SOON, || {
                        outside(protocol, SocketAddr::new(*ip, 18100))
                    })?;
                    ensure(answer.name == "open" && answer.client == machine(*ip), || {
                        format!("{answer:?}")
                    })?;
                }
                Ok(())
            },
        );
        cases.case(&format!("pods ask the node, {protocol}"), || {
            for ip in &node {
                for from in ["near", "far", "open"] {
                    names(&ns.ask(from, protocol, &ip.to_string(), 18100, 3)?)?;
                }
            }
            Ok(())
        });
    }
    cases.case("a port on 127.0.0.1 is the node's own", || {
        let local = on_node(NODES[0], "curl -sS --max-time 3 http://127.0.0.1:18101/")?;
        ensure(local.starts_with("inside "), || local.clone())?;
        for ip in &node {
            ensure(outside("tcp", SocketAddr::new(*ip, 18101)).is_err(), || {
                format!("{ip} answers the machine")
            })?;
            let lines = ns.ask("near", "tcp", &ip.to_string(), 18101, 1)?;
            ensure(names(&lines).is_err(), || format!("{ip} answers a pod"))?;
        }
        Ok(())
    });
    cases.case("a port on one address is not on the node's others", || {
        for (index, ip) in node.iter().enumerate() {
            let answered = outside("tcp", SocketAddr::new(*ip, 18102)).is_ok();
            ensure(answered == (index == 0), || format!("{ip}: answered: {answered}"))?;
        }
        Ok(())
    });
    cases.case("the node asks itself", || {
        for ip in &node {
            let answer = on_node(NODES[0], &format!("curl -sS --max-time 3 '{}'", url(*ip, 18100)))?;
            ensure(answer.starts_with("open "), || answer.clone())?;
        }
        Ok(())
    });
    cases.case("another node does not have it", || {
        for ip in node_ips(NODES[1])? {
            ensure(outside("tcp", SocketAddr::new(ip, 18100)).is_err(), || {
                format!("{ip} answers")
            })?;
        }
        Ok(())
    });
    cases.case("the port goes with its pod", || {
        ns.kubectl(&["delete", "pod", "open"])?;
        for ip in &node {
            eventually("silence", SOON, || {
                ensure(outside("tcp", SocketAddr::new(*ip, 18100)).is_err(), || {
                    format!("{ip} answers")
                })
            })?;
        }
        Ok(())
    });
    cases.finish()
}
