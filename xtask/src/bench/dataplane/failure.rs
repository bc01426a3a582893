//! A node that dies under load: for how long do clients outside notice?

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{
    Row,
    fixture::{Fixture, pod, service},
    place::Place,
};
use crate::{
    cluster::{
        cgroup,
        layout::{Node, UPLINK},
        up,
    },
    run, term,
    traffic::{CLOSE_PORT, Outcome},
};

/// Milliseconds between two connections of a probe.
const EVERY: u64 = 10;
/// Milliseconds after which a connection is lost.
const PATIENCE: u64 = 500;
/// How long the probes run before the node dies.
const LEAD: Duration = Duration::from_secs(5);
/// How long they run at all: the node is taken for dead after some forty seconds, as in Kubernetes.
const SECONDS: u64 = 100;

/// Kills the node that answers for a load balancer's address, and watches from outside.
///
/// # Errors
/// When a step fails; the node is started again in any case.
pub fn measure(nodes: u8) -> Result<Vec<Row>> {
    let fixture = Fixture::new(&["toolbox"])?;
    let mut objects: Vec<Value> = Node::all(nodes)
        .map(|node| pod(&format!("server-{}", node.number), "server", node))
        .collect();
    objects.push(service("target", "server", "LoadBalancer", &[CLOSE_PORT]));
    fixture.apply(&objects)?;
    fixture.ready()?;
    let servers = Node::all(nodes)
        .map(|node| fixture.pod(&format!("server-{}", node.number)))
        .collect::<Result<Vec<_>>>()?;
    let _serving = servers
        .iter()
        .map(|(place, _)| place.serve())
        .collect::<Result<Vec<_>>>()?;
    let balancer = balancer_address(&fixture)?;
    let answers = || {
        Ok(
            TcpStream::connect_timeout(&SocketAddr::new(balancer, CLOSE_PORT), Duration::from_secs(1))
                .is_ok(),
        )
    };
    fixture.until("the load balancer's address answers", 30, answers)?;
    let victim = announcer(balancer, nodes)?;
    term::hint(&format!(
        "{} answers for {balancer}: it is the one to die",
        victim.name()
    ));
    let node_port = fixture.field("service/target", "{.spec.ports[0].nodePort}")?;
    let node_port: u16 = node_port.parse().context("the service has no node port")?;
    let mut targets = vec![(
        "the load balancer's address".to_owned(),
        SocketAddr::new(balancer, CLOSE_PORT),
    )];
    for node in Node::all(nodes).filter(|node| *node != victim) {
        targets.push((
            format!("the NodePort on {}", node.name()),
            SocketAddr::new(node.ip().into(), node_port),
        ));
    }
    let measured = watch(&targets, victim);
    let step = term::step(&format!("starting {} again", victim.name()));
    up::run(&up::Options::default())?;
    step.done();
    measured
}

/// Runs a probe for each target, and kills the node meanwhile.
fn watch(targets: &[(String, SocketAddr)], victim: Node) -> Result<Vec<Row>> {
    let step = term::step(&format!(
        "{SECONDS} s of connections, with {} dying",
        victim.name()
    ));
    let outside = Place::machine();
    let (every, patience, seconds) = (EVERY.to_string(), PATIENCE.to_string(), SECONDS.to_string());
    let began = Instant::now();
    let probes = targets
        .iter()
        .map(|(_, target)| {
            let target = target.to_string();
            let words = [
                "probe",
                &target,
                "--every",
                &every,
                "--patience",
                &patience,
                "--seconds",
                &seconds,
            ];
            outside.start(&words)
        })
        .collect::<Result<Vec<_>>>()?;
    thread::sleep(LEAD);
    let died = began.elapsed().as_secs_f64();
    kill(victim)?;
    let mut rows = Vec::new();
    for ((name, _), probe) in targets.iter().zip(probes) {
        rows.extend(judge(name, &probe.outcome()?, died)?);
    }
    step.done();
    Ok(rows)
}

/// What a crash or a lost power line looks like from outside: nothing comes from the node any more.
fn kill(node: Node) -> Result<()> {
    run::output(&mut run::command("ip", ["link", "set", &node.port(), "down"]))?;
    cgroup::kill_all(&node.cgroup())
}

fn judge(name: &str, outcome: &Outcome, died: f64) -> Result<Vec<Row>> {
    // The probe's clock starts a moment after ours.
    const SLACK: f64 = 0.2;
    let early = outcome
        .failures_at
        .iter()
        .filter(|at| **at < died - SLACK - PATIENCE as f64 / 1e3)
        .count();
    if early > 0 {
        bail!(
            "{name}: {early} connections failed before the node died: {}",
            outcome.errors.join("; ")
        );
    }
    let last = outcome
        .failures_at
        .last()
        .map_or(0.0, |last| (last - died).max(0.0));
    let gap = EVERY as f64 / 1e3;
    Ok(vec![
        Row::new(
            format!("{name}: no connection for"),
            longest_outage(&outcome.failures_at, gap),
            "s",
        ),
        Row::new(format!("{name}: last lost connection after"), last, "s"),
        Row::new(format!("{name}: lost connections"), outcome.failed as f64, ""),
        Row::new(
            format!("{name}: lost of all"),
            outcome.failed as f64 / (outcome.done + outcome.failed) as f64 * 100.0,
            "%",
        ),
    ])
}

/// The longest time in which every connection failed.
fn longest_outage(failures: &[f64], gap: f64) -> f64 {
    let mut longest = 0.0_f64;
    let mut start = None;
    let mut previous = f64::NEG_INFINITY;
    for at in failures {
        if at - previous > gap * 1.5 {
            start = Some(*at);
        }
        longest = longest.max(at - start.unwrap_or(*at) + gap);
        previous = *at;
    }
    longest
}

fn balancer_address(fixture: &Fixture) -> Result<IpAddr> {
    let mut found = None;
    fixture
        .until("the service has a load balancer's address", 30, || {
            let text = fixture.field("service/target", "{.status.loadBalancer.ingress[0].ip}")?;
            found = text.parse().ok();
            Ok(found.is_some())
        })
        .context("the cluster gives no addresses to services of type LoadBalancer")?;
    found.context("the service has no load balancer's address")
}

/// The node whose hardware address answers for the address.
fn announcer(address: IpAddr, nodes: u8) -> Result<Node> {
    let neighbours = run::output(&mut run::command("ip", ["neigh", "show", &address.to_string()]))?;
    let mac = word_after(&neighbours, "lladdr").with_context(|| format!("no neighbour has {address}"))?;
    for node in Node::all(nodes) {
        let link = run::output(&mut run::command(
            "ip",
            ["-n", &node.name(), "-o", "link", "show", UPLINK],
        ))?;
        if word_after(&link, "link/ether") == Some(mac) {
            return Ok(node);
        }
    }
    bail!("{address} is at {mac}, which is none of the nodes")
}

fn word_after<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    text.split_whitespace().skip_while(|found| *found != word).nth(1)
}

#[cfg(test)]
mod tests {
    use super::{longest_outage, word_after};

    #[test]
    fn an_outage_is_a_row_of_failures_without_a_success() {
        assert_eq!(longest_outage(&[], 0.01), 0.0);
        assert!((longest_outage(&[1.0, 1.01, 1.02, 5.0, 7.0], 0.01) - 0.03).abs() < 1e-9);
    }

    #[test]
    fn words_of_ip_are_found() {
        assert_eq!(
            word_after(
                "172.30.0.200 dev orch0 lladdr 02:00:00:00:00:01 REACHABLE",
                "lladdr"
            ),
            Some("02:00:00:00:00:01")
        );
        assert_eq!(word_after("172.30.0.200 dev orch0 FAILED", "lladdr"), None);
    }
}
