//! Two nodes are one cluster: pods on both reach each other, by address, by service and by name.

use std::time::Duration;

use anyhow::{Context as _, Result};
use orch_tests::{NODE1, NODE2, NODES, ensure, eventually, http, namespace::Namespace};

fn ip(ns: &Namespace, pod: &str) -> Result<String> {
    let pod = ns.json(&["get", "pod", pod])?;
    pod["status"]["podIP"]
        .as_str()
        .map(str::to_owned)
        .context("no podIP")
}

#[test]
fn pods_reach_each_other_across_nodes_and_on_one() -> Result<()> {
    let ns = Namespace::create("reach")?;
    for (pod, node) in [("a", NODES[0]), ("b", NODES[1]), ("c", NODES[0])] {
        ns.toolbox(pod, Some(node))?;
        let serve =
            format!("busybox mkdir -p /www; echo {pod} > /www/index.html; busybox httpd -p 8080 -h /www");
        ns.shell(pod, &serve)?;
    }
    for from in ["a", "b", "c"] {
        for to in ["a", "b", "c"] {
            let address = ip(&ns, to)?;
            let body = ns.shell(from, &format!("curl -sS --max-time 5 http://{address}:8080/"))?;
            ensure(body.trim() == to, || format!("{from} asked {to} and got {body}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_service_answers_udp_and_tcp_from_every_node() -> Result<()> {
    let ns = Namespace::create("service")?;
    ns.toolbox("server", Some(NODES[0]))?;
    ns.apply(
        "apiVersion: v1\nkind: Service\nmetadata: { name: echo }\nspec: { selector: { app: server }, ports: \
         [{ name: tcp, port: 90, targetPort: 9000 }, { name: udp, port: 90, targetPort: 9000, protocol: UDP }] }\n",
    )?;
    for listen in ["TCP4-LISTEN:9000,fork,reuseaddr", "UDP4-RECVFROM:9000,fork"] {
        ns.shell(
            "server",
            &format!("socat {listen} EXEC:cat < /dev/null > /dev/null 2>&1 &"),
        )?;
    }
    for (pod, node) in [("near", NODES[0]), ("far", NODES[1])] {
        ns.toolbox(pod, Some(node))?;
        for protocol in ["TCP4", "UDP4"] {
            let line = format!("echo hello | socat -T 3 -t 2 - {protocol}:echo:90");
            eventually("an echo", Duration::from_secs(10), || {
                let answer = ns.shell(pod, &line)?;
                ensure(answer.trim() == "hello", || {
                    format!("{protocol} from {pod} gave {answer:?}")
                })
            })?;
        }
    }
    Ok(())
}

#[test]
fn a_node_port_answers_on_both_nodes_wherever_the_pod_is() -> Result<()> {
    let ns = Namespace::create("nodeport")?;
    ns.toolbox("only", Some(NODES[1]))?;
    ns.shell(
        "only",
        "busybox mkdir -p /www; echo only > /www/index.html; busybox httpd -p 8080 -h /www",
    )?;
    ns.apply(
        "apiVersion: v1\nkind: Service\nmetadata: { name: only }\nspec: { type: NodePort, selector: { app: only }, \
         ports: [{ port: 80, targetPort: 8080, nodePort: 31081 }] }\n",
    )?;
    for node in [NODE1, NODE2] {
        eventually("an answer", Duration::from_secs(10), || {
            let answer = http::get(format!("{node}:31081").parse()?, "/")?;
            ensure(answer.body.trim() == "only", || answer.body.clone())
        })?;
    }
    Ok(())
}
