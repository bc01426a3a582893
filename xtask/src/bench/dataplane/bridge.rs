//! Pod to pod on a node beside what one gets without a data plane: two veth pairs on a Linux bridge.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};

use super::{
    Row,
    fixture::{Fixture, pod},
    interleaved::{Compared, LENGTH, compare},
    place::Place,
    plain::{Namespaces, connect},
};
use crate::{
    cluster::layout::Node,
    run::ip,
    term,
    traffic::{CLOSE_PORT, ECHO_PORT, SINK_PORT},
};

/// Namespaces of the plain way: the bridge's, the client's, the server's.
const NAMESPACES: [&str; 3] = ["orch-bench-bridge", "orch-bench-left", "orch-bench-right"];
/// The server's address there: a range for documentation (RFC 5737), in namespaces that lead nowhere.
const SERVER: &str = "192.0.2.2";

/// The plain way; it goes with its handle.
fn plain() -> Result<Namespaces> {
    let namespaces = Namespaces::new(&NAMESPACES)?;
    let [bridge, left, right] = NAMESPACES;
    ip(&["-n", bridge, "link", "add", "br0", "type", "bridge"])?;
    ip(&["-n", bridge, "link", "set", "br0", "up"])?;
    for (port, name, address) in [("left", left, "192.0.2.1/24"), ("right", right, "192.0.2.2/24")] {
        connect(bridge, port, name, address)?;
        ip(&["-n", bridge, "link", "set", port, "master", "br0"])?;
    }
    Ok(namespaces)
}

/// Measures both ways in turns.
///
/// # Errors
/// When a step fails.
pub fn measure() -> Result<Vec<Row>> {
    let fixture = Fixture::new(&["toolbox"])?;
    let node = Node::all(1).next().context("the cluster has no node")?;
    fixture.apply(&[pod("left", "left", node), pod("right", "right", node)])?;
    fixture.ready()?;
    let (left, _) = fixture.pod("left")?;
    let (right, pod_address) = fixture.pod("right")?;
    let plain = plain()?;
    let (plain_left, plain_right) = (Place::namespace(NAMESPACES[1]), Place::namespace(NAMESPACES[2]));
    let plain_address: IpAddr = SERVER.parse().context("the plain server has no address")?;
    let serving = [right.serve()?, plain_right.serve()?];
    let both = |words: &str, port: u16, number: fn(&crate::traffic::Outcome) -> f64| -> Result<Compared> {
        let ask = |place: &Place, address| {
            let target = SocketAddr::new(address, port).to_string();
            Ok(number(&place.client(&[words, &target, "--seconds", LENGTH])?))
        };
        let step = term::step(&format!("{words}, between pods and over a bridge"));
        let compared = compare(|| ask(&plain_left, plain_address), || ask(&left, pod_address))?;
        step.done();
        Ok(compared)
    };
    let mut rows = Vec::new();
    let stream = both("stream", SINK_PORT, |outcome| outcome.bits() / 1e9)?;
    rows.push(Row::new("throughput over a bridge", stream.first, "Gbit/s"));
    rows.push(Row::new("throughput between pods", stream.second, "Gbit/s"));
    rows.push(Row::new("throughput, pods over bridge", stream.quotient, "").goal(">= 1.2"));
    let latency = both("round-trips", ECHO_PORT, |outcome| outcome.median_us)?;
    rows.push(Row::new(
        "a round trip over a bridge, median",
        latency.first,
        "µs",
    ));
    rows.push(Row::new(
        "a round trip between pods, median",
        latency.second,
        "µs",
    ));
    rows.push(Row::new("a round trip, pods over bridge", latency.quotient, "").goal("<= 1"));
    let connections = both("connections", CLOSE_PORT, crate::traffic::Outcome::rate)?;
    rows.push(Row::new(
        "new connections over a bridge",
        connections.first,
        "1/s",
    ));
    rows.push(Row::new(
        "new connections between pods",
        connections.second,
        "1/s",
    ));
    rows.push(Row::new(
        "new connections, pods over bridge",
        connections.quotient,
        "",
    ));
    drop(serving);
    drop(plain);
    Ok(rows)
}
