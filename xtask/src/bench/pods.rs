//! How fast pods come: one by `kubectl run`, ten by a Deployment.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use super::{Row, median};
use crate::{cluster::kubectl, run, term};

const IMAGE: &str = "orch.local/toolbox:1";
const ROUNDS: usize = 10;

/// From typing `kubectl run` until a watch shows the pod Ready.
///
/// # Errors
/// When a pod does not become Ready.
pub fn start() -> Result<Vec<Row>> {
    let step = term::step(&format!("kubectl run, {ROUNDS} times"));
    let mut seconds = Vec::new();
    for round in 0..ROUNDS {
        let name = format!("bench-start-{round}");
        let taken = start_one(&name);
        kubectl::output(&[
            "delete",
            "pod",
            &name,
            "--grace-period=0",
            "--force",
            "--ignore-not-found",
        ])?;
        seconds.push(taken?);
    }
    step.done();
    let slowest = seconds.iter().copied().fold(0.0, f64::max);
    Ok(vec![
        Row {
            what: "kubectl run to Ready, median".into(),
            value: median(&mut seconds),
            unit: "s",
            kubernetes: Some(0.76),
        },
        Row {
            what: "kubectl run to Ready, slowest".into(),
            value: slowest,
            unit: "s",
            kubernetes: None,
        },
    ])
}

fn start_one(name: &str) -> Result<f64> {
    let field = format!("metadata.name={name}");
    let ready = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}{"\n"}"#;
    let mut watch = kubectl::command(&["get", "pods", "--watch", "--field-selector", &field, "-o", ready])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("failed to start a watch")?;
    // The watch is not what is measured: let it connect first.
    std::thread::sleep(std::time::Duration::from_millis(500));
    let began = Instant::now();
    run::output(&mut kubectl::command(&[
        "run",
        name,
        "--image",
        IMAGE,
        "--restart=Never",
    ]))?;
    let lines = BufReader::new(watch.stdout.take().context("a watch has no output")?).lines();
    let mut taken = None;
    for line in lines {
        if line.context("failed to read the watch")?.trim() == "True" {
            taken = Some(began.elapsed().as_secs_f64());
            break;
        }
    }
    // It never ends by itself.
    watch
        .kill()
        .and_then(|()| watch.wait())
        .context("failed to end the watch")?;
    match taken {
        Some(seconds) => Ok(seconds),
        None => bail!("pod {name} did not become Ready"),
    }
}

/// A Deployment of ten, until `kubectl rollout status` says that it is complete.
///
/// # Errors
/// When it does not complete.
pub fn deployment() -> Result<Vec<Row>> {
    let step = term::step("a Deployment of 10, 3 times");
    let mut seconds = Vec::new();
    for round in 0..3 {
        let name = format!("bench-deployment-{round}");
        let began = Instant::now();
        kubectl::output(&["create", "deployment", &name, "--image", IMAGE, "--replicas=10"])?;
        let rolled = kubectl::output(&[
            "rollout",
            "status",
            &format!("deployment/{name}"),
            "--timeout=60s",
        ]);
        seconds.push(began.elapsed().as_secs_f64());
        kubectl::output(&[
            "delete",
            "deployment",
            &name,
            "--cascade=foreground",
            "--timeout=90s",
        ])?;
        rolled?;
    }
    step.done();
    Ok(vec![Row {
        what: "Deployment of 10 to rolled out, median".into(),
        value: median(&mut seconds),
        unit: "s",
        kubernetes: Some(3.5),
    }])
}
