//! From pod to ClusterIP beside pod to pod address, as the number of services grows.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};

use super::{
    Row,
    fixture::{Fixture, pod, service},
    interleaved::{LENGTH, compare_pairs},
    objects::create_services,
    place::Place,
};
use crate::{
    cluster::layout::{self, Node},
    run, term,
    traffic::{CLOSE_PORT, ECHO_PORT, Outcome, SINK_PORT},
};

/// How many other services there are.
pub const SIZES: [usize; 3] = [0, 1_000, 10_000];

/// A kind of traffic and how its outcome becomes a number of which more is better.
pub struct Kind {
    /// What it is called.
    pub name: &'static str,
    /// Of what the number is.
    pub unit: &'static str,
    /// The client's word for it.
    pub words: &'static str,
    /// The server's port.
    pub port: u16,
    /// The number.
    pub number: fn(&Outcome) -> f64,
}

/// All of them.
pub const KINDS: [Kind; 3] = [
    Kind {
        name: "round trips",
        unit: "1/s",
        words: "round-trips",
        port: ECHO_PORT,
        number: Outcome::rate,
    },
    Kind {
        name: "throughput",
        unit: "Gbit/s",
        words: "stream",
        port: SINK_PORT,
        number: |outcome| outcome.bits() / 1e9,
    },
    Kind {
        name: "new connections",
        unit: "1/s",
        words: "connections",
        port: CLOSE_PORT,
        number: Outcome::rate,
    },
];

/// Measures towards a pod on the client's node, and on another one where there is one.
///
/// # Errors
/// When a step fails.
pub fn measure(nodes: u8) -> Result<Vec<Row>> {
    let fixture = Fixture::new(&["toolbox"])?;
    let mut all = Node::all(nodes);
    let first = all.next().context("the cluster has no node")?;
    let mut servers = vec![("near", first)];
    servers.extend(all.next().map(|second| ("far", second)));
    let mut objects = vec![pod("client", "client", first)];
    for (name, node) in &servers {
        objects.push(pod(name, name, *node));
        objects.push(service(
            name,
            name,
            "ClusterIP",
            &[ECHO_PORT, SINK_PORT, CLOSE_PORT],
        ));
    }
    fixture.apply(&objects)?;
    fixture.ready()?;
    let (client, _) = fixture.pod("client")?;
    let mut targets = Vec::new();
    for (name, _) in &servers {
        let (place, address) = fixture.pod(name)?;
        let serving = place.serve()?;
        targets.push((*name, address, fixture.cluster_ip(name)?, place, serving));
    }
    let mut rows = Vec::new();
    let mut made = 0;
    for size in SIZES {
        grow(&fixture, first, made, size)?;
        made = size;
        for (name, address, cluster_ip, ..) in &targets {
            for kind in &KINDS {
                let step = term::step(&format!("{}, {name} pod, {size} services", kind.name));
                rows.extend(one(&client, kind, name, (*address, *cluster_ip), size)?);
                step.done();
            }
        }
    }
    Ok(rows)
}

fn one(
    client: &Place,
    kind: &Kind,
    name: &str,
    (address, cluster_ip): (IpAddr, IpAddr),
    size: usize,
) -> Result<Vec<Row>> {
    let targets = [address, cluster_ip].map(|address| SocketAddr::new(address, kind.port).to_string());
    let compared = compare_pairs(|turned| {
        let [pod, service] = &targets;
        let (one, two) = if turned { (service, pod) } else { (pod, service) };
        let words = [kind.words, one, "--beside", two, "--seconds", LENGTH];
        let [one, two] = client.clients(&words)?.map(|outcome| (kind.number)(&outcome));
        Ok(if turned { (two, one) } else { (one, two) })
    })?;
    let what = format!("{}, {name} pod, {size} services", kind.name);
    Ok(vec![
        Row::new(format!("{what}: by pod address"), compared.first, kind.unit),
        Row::new(format!("{what}: by ClusterIP"), compared.second, kind.unit),
        Row::new(
            format!("{what}: ClusterIP over pod address"),
            compared.quotient,
            "",
        )
        .goal(">= 0.99"),
    ])
}

/// Makes more services and waits until the node's maps have them.
///
/// # Errors
/// When the cluster refuses one, or the maps do not have them in time.
pub fn grow(fixture: &Fixture, node: Node, from: usize, to: usize) -> Result<()> {
    if from == to {
        return Ok(());
    }
    let step = term::step(&format!("creating {} services", to - from));
    create_services(from, to)?;
    step.done();
    fixture.until("every service is in the node's maps", 120, || {
        Ok(programmed(node)? >= to)
    })
}

/// How many services the node's maps hold.
fn programmed(node: Node) -> Result<usize> {
    let agent = layout::program("orch-agent");
    let root = format!("{}/{}", layout::PINS, node.name());
    let arguments = ["bpf", "services", "--bpf-root", &root, "-o", "json"];
    let text = run::output(&mut run::command(&agent.to_string_lossy(), arguments))?;
    let rows: Vec<serde_json::Value> =
        serde_json::from_str(&text).context("`orch-agent bpf services` printed no list")?;
    Ok(rows.len())
}
