//! Resident memory (`VmRSS` of proc_pid_status(5)) of the idle processes.

use std::fs;

use anyhow::{Context as _, Result};

use super::Row;
use crate::cluster::{layout::Node, node, process::Daemon, state::State, up};

/// One row a process.
///
/// # Errors
/// When a process does not run.
pub fn measure(state: &State) -> Result<Vec<Row>> {
    // 291 + 125 + 68 MB and 95 + 58 MB: API server, controllers, scheduler; kubelet, kube-proxy (v1.36.2).
    let mut rows = vec![row(&up::control(state), 484.0)?];
    for node in Node::all(state.nodes) {
        rows.push(row(&node::agent(node, state.modes), 153.0)?);
    }
    Ok(rows)
}

fn row(daemon: &Daemon, kubernetes: f64) -> Result<Row> {
    let pid = daemon
        .pid()
        .with_context(|| format!("{} does not run", daemon.name))?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("failed to read the status of {}", daemon.name))?;
    let kilobytes: f64 = status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .with_context(|| format!("{} has no VmRSS", daemon.name))?;
    Ok(Row {
        what: format!("{}, resident", daemon.name),
        value: kilobytes / 1000.0,
        unit: "MB",
        kubernetes: Some(kubernetes),
    })
}
