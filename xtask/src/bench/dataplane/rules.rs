//! Pod to ClusterIP beside what rules of netfilter make of one, laid out as kube-proxy lays them out.
//!
//! kube-proxy itself may not be at hand, so the rules are written here: for nftables as KEP-3866 describes them, for iptables as
//! they stand on any node that runs kube-proxy in that mode, and in its older way, which the kernel walks through faster. They
//! are in a namespace that forwards between two others, as a node does with its pods. The other services have as many endpoints
//! as the cluster's; the one that is measured has one, here as there, and stands in the middle of a chain that is walked
//! through. Where the rules are fewer than kube-proxy's (no jump to a chain that holds one rule, no comments on endpoints), that
//! is in their favour.

use std::{
    collections::BTreeSet,
    fmt::{self, Write as _},
    fs,
    net::{Ipv4Addr, SocketAddr},
};

use anyhow::{Context as _, Result};

use super::{
    Row,
    eastwest::{KINDS, Kind, SIZES, grow},
    fixture::{Fixture, pod, service},
    interleaved::{LENGTH, compare},
    objects::ENDPOINTS,
    place::Place,
    plain::{Namespaces, connect},
};
use crate::{
    cluster::layout::{self, Node},
    run::{self, ip},
    term,
};

/// The namespace with the rules, the client's, and the server's.
const NAMESPACES: [&str; 3] = ["orch-bench-node", "orch-bench-asks", "orch-bench-serves"];
/// The server there, at [`GATEWAYS`]' second: addresses are from a range for benchmarks (RFC 2544), and the namespaces lead
/// nowhere.
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 6);
/// The addresses of the node towards the client and towards the server.
const GATEWAYS: [&str; 2] = ["198.18.0.1", "198.18.0.5"];
/// Where the pods' addresses are.
const PODS: &str = "198.18.0.0/16";
/// The address of the service that is measured; those of the others count up from it.
const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);
/// The first address of endpoints that do not exist.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(198, 18, 128, 0);
/// The bit of a packet's mark that asks for masquerade.
const MASQUERADE: &str = "0x4000";

/// A way to write rules, and the program that reads them.
struct Mode {
    name: &'static str,
    program: &'static [&'static str],
    rules: fn(&[Rule]) -> Result<String, fmt::Error>,
}

const MODES: [Mode; 2] = [
    Mode {
        name: "nftables",
        program: &["nft", "-f"],
        rules: nftables,
    },
    Mode {
        name: "iptables-legacy",
        program: &["iptables-legacy-restore"],
        rules: iptables,
    },
];

/// A port of a service.
struct Rule {
    address: Ipv4Addr,
    port: u16,
    endpoints: Vec<Ipv4Addr>,
}

/// So many services beside the one that is measured, which is in the middle.
fn services(count: usize) -> Vec<Rule> {
    let nth = |first: Ipv4Addr, number: usize| {
        Ipv4Addr::from_bits(first.to_bits().wrapping_add(u32::try_from(number).unwrap_or(0)))
    };
    let mut rules: Vec<Rule> = (0..count)
        .map(|number| Rule {
            address: nth(CLUSTER_IP, number + 1),
            port: 80,
            // Fewer addresses than endpoints: what matters is how many chains there are.
            endpoints: (0..ENDPOINTS)
                .map(|index| nth(NOWHERE, (number * ENDPOINTS + index) % 32_768))
                .collect(),
        })
        .collect();
    let measured = KINDS.iter().map(|kind| Rule {
        address: CLUSTER_IP,
        port: kind.port,
        endpoints: vec![SERVER],
    });
    rules.splice(count / 2..count / 2, measured);
    rules
}

/// A map from addresses and ports to a chain for each service, which goes to the chain of one of its endpoints.
fn nftables(services: &[Rule]) -> Result<String, fmt::Error> {
    let mut text = String::from("table ip kube-proxy {\n");
    for (number, service) in services.iter().enumerate() {
        let Rule { address, port, .. } = service;
        for (index, endpoint) in service.endpoints.iter().enumerate() {
            writeln!(
                text,
                "chain endpoint-{number}-{index} {{
 ip saddr {endpoint} jump mark-for-masquerade
 meta l4proto tcp dnat to {endpoint}:{port}
}}"
            )?;
        }
        let targets: Vec<String> = (0..service.endpoints.len())
            .map(|index| format!("{index} : goto endpoint-{number}-{index}"))
            .collect();
        writeln!(
            text,
            "chain service-{number} {{
 ip daddr {address} tcp dport {port} ip saddr != {PODS} jump mark-for-masquerade
 numgen random mod {} vmap {{ {} }}
}}",
            targets.len(),
            targets.join(", ")
        )?;
    }
    let elements: Vec<String> = services
        .iter()
        .enumerate()
        .map(|(number, Rule { address, port, .. })| {
            format!("{address} . tcp . {port} : goto service-{number}")
        })
        .collect();
    let addresses: BTreeSet<String> = services
        .iter()
        .map(|service| service.address.to_string())
        .collect();
    let addresses = addresses.into_iter().collect::<Vec<_>>().join(", ");
    write!(
        text,
        "map service-ips {{
 type ipv4_addr . inet_proto . inet_service : verdict
 elements = {{ {} }}
}}
map service-nodeports {{
 type inet_proto . inet_service : verdict
}}
map firewall-ips {{
 type ipv4_addr . inet_proto . inet_service : verdict
}}
map no-endpoint-services {{
 type ipv4_addr . inet_proto . inet_service : verdict
}}
set cluster-ips {{
 type ipv4_addr
 elements = {{ {addresses} }}
}}
chain mark-for-masquerade {{
 meta mark set mark or {MASQUERADE}
}}
chain services {{
 ip daddr . meta l4proto . th dport vmap @service-ips
 fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @service-nodeports
}}
chain filter-prerouting {{
 type filter hook prerouting priority -110
 ct state new ip daddr . meta l4proto . th dport vmap @firewall-ips
}}
chain filter-forward {{
 type filter hook forward priority -110
 ct state new ip daddr . meta l4proto . th dport vmap @no-endpoint-services
 ct state new ip daddr @cluster-ips reject
}}
chain nat-prerouting {{
 type nat hook prerouting priority dstnat
 jump services
}}
chain nat-postrouting {{
 type nat hook postrouting priority srcnat
 mark & {MASQUERADE} != {MASQUERADE} return
 meta mark set mark xor {MASQUERADE}
 masquerade fully-random
}}
}}
",
        elements.join(", ")
    )?;
    Ok(text)
}

/// A rule for each service in one chain, which jumps to the service's chain, which jumps to an endpoint's.
fn iptables(services: &[Rule]) -> Result<String, fmt::Error> {
    let mut text = String::from("*nat\n");
    for chain in [
        "KUBE-SERVICES",
        "KUBE-POSTROUTING",
        "KUBE-MARK-MASQ",
        "KUBE-NODEPORTS",
    ] {
        writeln!(text, ":{chain} - [0:0]")?;
    }
    for (number, service) in services.iter().enumerate() {
        writeln!(text, ":KUBE-SVC-{number} - [0:0]")?;
        for index in 0..service.endpoints.len() {
            writeln!(text, ":KUBE-SEP-{number}-{index} - [0:0]")?;
        }
    }
    writeln!(
        text,
        "-A PREROUTING -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark {MASQUERADE}/{MASQUERADE} -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark {MASQUERADE}
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark {MASQUERADE}"
    )?;
    for (number, service) in services.iter().enumerate() {
        let Rule { address, port, .. } = service;
        let name = format!("-m comment --comment \"bench/service-{number} cluster IP\"");
        let matches = format!("-d {address}/32 -p tcp -m tcp --dport {port}");
        writeln!(
            text,
            "-A KUBE-SERVICES {matches} {name} -j KUBE-SVC-{number}
-A KUBE-SVC-{number} ! -s {PODS} {matches} -j KUBE-MARK-MASQ"
        )?;
        for (index, endpoint) in service.endpoints.iter().enumerate() {
            let left = service.endpoints.len() - index;
            let chance = match left {
                1 => String::new(),
                _ => format!(
                    "-m statistic --mode random --probability {:.10}",
                    1.0 / left as f64
                ),
            };
            writeln!(
                text,
                "-A KUBE-SVC-{number} {chance} -j KUBE-SEP-{number}-{index}
-A KUBE-SEP-{number}-{index} -s {endpoint}/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-{number}-{index} -p tcp -m tcp -j DNAT --to-destination {endpoint}:{port}"
            )?;
        }
    }
    write!(
        text,
        "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
COMMIT
*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A FORWARD -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark {MASQUERADE}/{MASQUERADE} -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"
    )?;
    Ok(text)
}

/// A node without a data plane of ours, and two pods of it.
fn node() -> Result<Namespaces> {
    let namespaces = Namespaces::new(&NAMESPACES)?;
    let [node, asks, serves] = NAMESPACES;
    let server = format!("{SERVER}/30");
    for ((port, name, address), gateway) in [
        ("asks", asks, "198.18.0.2/30"),
        ("serves", serves, server.as_str()),
    ]
    .into_iter()
    .zip(GATEWAYS)
    {
        connect(node, port, name, address)?;
        ip(&["-n", node, "addr", "add", &format!("{gateway}/30"), "dev", port])?;
        ip(&["-n", name, "route", "add", "default", "via", gateway])?;
    }
    inside(node, &["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])?;
    Ok(namespaces)
}

fn inside(namespace: &str, words: &[&str]) -> Result<String> {
    run::output(run::command("ip", ["netns", "exec", namespace]).args(words))
}

/// Writes a mode's rules for some services into a namespace that has none.
fn write(mode: &Mode, services: &[Rule]) -> Result<()> {
    let path = layout::state_dir().join("rules");
    let text = (mode.rules)(services).context("failed to write rules")?;
    fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
    let name = path.to_string_lossy();
    let words: Vec<&str> = mode.program.iter().copied().chain([&*name]).collect();
    let written = inside(NAMESPACES[0], &words);
    fs::remove_file(&path).with_context(|| format!("failed to remove {}", path.display()))?;
    written?;
    // The clients end connections with a reset and use their ports again: what tracks connections is not to search for those.
    let path = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close";
    inside(NAMESPACES[0], &["sh", "-c", &format!("echo 1 > {path}")]).map(drop)
}

/// Measures both ways in turns.
///
/// # Errors
/// When a step fails.
pub fn measure() -> Result<Vec<Row>> {
    let fixture = Fixture::new(&["toolbox"])?;
    let first = Node::all(1).next().context("the cluster has no node")?;
    let ports = KINDS.map(|kind| kind.port);
    fixture.apply(&[
        pod("client", "client", first),
        pod("server", "server", first),
        service("server", "server", "ClusterIP", &ports),
    ])?;
    fixture.ready()?;
    let (client, _) = fixture.pod("client")?;
    let (server, _) = fixture.pod("server")?;
    let cluster_ip = fixture.cluster_ip("server")?;
    let _serving = server.serve()?;
    let mut rows = Vec::new();
    let mut made = 0;
    for size in SIZES {
        grow(&fixture, first, made, size)?;
        made = size;
        for mode in &MODES {
            // New namespaces for each: what one mode's rules leave in the kernel is not the other's.
            let _namespaces = node()?;
            let [_, asks, serves] = NAMESPACES.map(Place::namespace);
            let _serving = serves.serve()?;
            let step = term::step(&format!("writing {} rules for {size} services", mode.name));
            write(mode, &services(size))?;
            step.done();
            for kind in &KINDS {
                let what = format!("{}, {size} services", kind.name);
                let step = term::step(&format!("{what}, {} and ours", mode.name));
                let ask = |place: &Place, address| one(place, kind, SocketAddr::new(address, kind.port));
                let compared = compare(|| ask(&asks, CLUSTER_IP.into()), || ask(&client, cluster_ip))?;
                step.done();
                rows.push(Row::new(
                    format!("{what}: by {}", mode.name),
                    compared.first,
                    kind.unit,
                ));
                rows.push(Row::new(
                    format!("{what}: by ClusterIP, beside {}", mode.name),
                    compared.second,
                    kind.unit,
                ));
                rows.push(
                    Row::new(
                        format!("{what}: ClusterIP over {}", mode.name),
                        compared.quotient,
                        "",
                    )
                    .goal(">= 1"),
                );
            }
        }
    }
    Ok(rows)
}

fn one(place: &Place, kind: &Kind, target: SocketAddr) -> Result<f64> {
    let outcome = place.client(&[kind.words, &target.to_string(), "--seconds", LENGTH])?;
    Ok((kind.number)(&outcome))
}

#[cfg(test)]
mod tests {
    use super::{CLUSTER_IP, iptables, nftables, services};

    #[test]
    fn the_measured_service_is_in_the_middle_of_as_many_as_there_are() {
        let services = services(100);
        let text = iptables(&services).unwrap();
        let chain: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("-A KUBE-SERVICES -d"))
            .collect();
        assert_eq!(chain.len(), 103);
        let at = chain
            .iter()
            .position(|line| line.contains(&format!("{CLUSTER_IP}/32")));
        assert_eq!(at, Some(50));
        let text = nftables(&services).unwrap();
        assert_eq!(text.matches("chain endpoint-").count(), 100 * 10 + 3);
    }
}
