//! A rolling update of ten pods while a client asks their service two thousand times a second.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{
    Row,
    fixture::{Fixture, NAMESPACE, pod, service},
};
use crate::{
    cluster::{kubectl, layout::Node},
    term,
};

/// Requests a second.
const RATE: u32 = 2_000;
/// How long the load lasts: longer than a rolling update.
const SECONDS: u64 = 60;
/// How long it has lasted when the update begins.
const LEAD: u64 = 3;

/// Updates once with connections that are used again and once without.
///
/// # Errors
/// When a step fails, or the update takes longer than the load.
pub fn measure() -> Result<Vec<Row>> {
    let fixture = Fixture::new(&["toolbox", "guestbook-web"])?;
    let node = Node::all(1).next().context("the cluster has no node")?;
    // nginx looks its upstream up as it starts, and nobody asks for it here.
    let upstream = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "guestbook-api"},
        "spec": {"ports": [{"port": 8080}]},
    });
    fixture.apply(&[
        pod("client", "client", node),
        upstream,
        service("web", "web", "ClusterIP", &[80]),
        deployment(),
    ])?;
    rolled_out()?;
    fixture.ready()?;
    let (client, _) = fixture.pod("client")?;
    let target = format!("{}:80", bracketed(fixture.cluster_ip("web")?));
    let mut rows = Vec::new();
    for (version, keep_alive) in [("2", true), ("1", false)] {
        let what = if keep_alive {
            "with keep-alive"
        } else {
            "without keep-alive"
        };
        let step = term::step(&format!(
            "a rolling update under {RATE} requests a second, {what}"
        ));
        let (rate, seconds) = (RATE.to_string(), SECONDS.to_string());
        let mut words = vec![
            "http",
            &target,
            "--path",
            "/version",
            "--rate",
            &rate,
            "--seconds",
            &seconds,
        ];
        words.extend(keep_alive.then_some("--keep-alive"));
        let load = client.start(&words)?;
        thread::sleep(Duration::from_secs(LEAD));
        let began = std::time::Instant::now();
        let image = format!("web=orch.local/guestbook-web:{version}");
        kubectl::output(&["set", "image", "-n", NAMESPACE, "deployment/web", &image])?;
        rolled_out()?;
        let rolled = began.elapsed().as_secs_f64();
        if rolled + LEAD as f64 > SECONDS as f64 {
            bail!("the update took {rolled:.0} s, longer than the load lasts");
        }
        let outcome = load.outcome()?;
        step.done();
        for error in &outcome.errors {
            term::warn(error);
        }
        let asked = (outcome.done + outcome.failed) as f64;
        rows.push(Row::new(format!("requests, {what}"), asked, ""));
        rows.push(Row::new(format!("failed requests, {what}"), outcome.failed as f64, "").goal("<= 0"));
        rows.push(Row::new(
            format!("sent again as a kept connection had ended, {what}"),
            outcome.retried as f64,
            "",
        ));
        rows.push(Row::new(
            format!("99 of 100 requests within, {what}"),
            outcome.p99_us / 1e3,
            "ms",
        ));
        rows.push(Row::new(format!("the update, {what}"), rolled, "s"));
    }
    Ok(rows)
}

fn bracketed(address: std::net::IpAddr) -> String {
    if address.is_ipv6() {
        format!("[{address}]")
    } else {
        address.to_string()
    }
}

fn rolled_out() -> Result<()> {
    let status = [
        "rollout",
        "status",
        "-n",
        NAMESPACE,
        "deployment/web",
        "--timeout=120s",
    ];
    kubectl::output(&status).map(drop)
}

/// Ten pods of the guestbook's front, with a readiness probe and no hook.
fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": 10,
            "selector": {"matchLabels": {"bench": "web"}},
            "template": {
                "metadata": {"labels": {"bench": "web"}},
                "spec": {"containers": [{
                    "name": "web",
                    "image": "orch.local/guestbook-web:1",
                    "readinessProbe": {"httpGet": {"path": "/healthz", "port": 80}, "periodSeconds": 1},
                }]},
            },
        },
    })
}
