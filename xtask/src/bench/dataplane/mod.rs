//! `cargo xtask bench dataplane`: our side of the numbers that the data plane is judged by.

mod bridge;
mod eastwest;
mod failure;
mod fixture;
mod interleaved;
mod measured;
mod objects;
mod place;
mod plain;
mod rollout;
mod rules;

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::{
    build_ebpf,
    cluster::state::State,
    deps::{self, Need},
    run, term,
};

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Nanoseconds a packet at the balancer; needs no cluster
    Xdp,
    /// CPU, delay and memory of an agent that programs services; needs no cluster
    Programming,
    /// Pod to ClusterIP beside pod to pod, with up to 10,000 services
    Eastwest,
    /// Pod to ClusterIP beside what rules of nftables and iptables make of one, with up to 10,000 services
    Rules,
    /// Pod to pod on a node beside a plain bridge
    Bridge,
    /// A rolling update under load
    Rollout,
    /// A node that dies under load; needs two nodes at least
    Failure,
}

impl Part {
    fn needs_cluster(self) -> bool {
        !matches!(self, Self::Xdp | Self::Programming)
    }

    /// Nodes it needs.
    fn nodes(self) -> u8 {
        if self == Self::Failure { 2 } else { 1 }
    }
}

/// One measured number.
#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: String,
    /// What it should be, in words that begin with `<=` or `>=` where there is such a bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<String>,
}

impl Row {
    /// A number without a goal.
    pub fn new(what: impl Into<String>, value: f64, unit: &str) -> Self {
        Self {
            what: what.into(),
            value,
            unit: unit.to_owned(),
            goal: None,
        }
    }

    /// The same with a goal.
    pub fn goal(mut self, goal: &str) -> Self {
        self.goal = Some(goal.to_owned());
        self
    }

    /// Whether the goal is met; `None` where there is none.
    fn is_met(&self) -> Option<bool> {
        let (relation, bound) = self.goal.as_deref()?.split_once(' ')?;
        let bound: f64 = bound.parse().ok()?;
        match relation {
            "<=" => Some(self.value <= bound),
            ">=" => Some(self.value >= bound),
            _ => None,
        }
    }
}

/// Runs one part, or all that this machine is ready for.
///
/// # Errors
/// When a part that was asked for has no cluster, or a measured step fails.
pub fn run(part: Option<Part>) -> Result<()> {
    deps::require_root("the data plane's benchmark")?;
    deps::install(&[Need::Build, Need::Ebpf, Need::Cluster, Need::Bench])?;
    build_ebpf::build()?;
    let state = State::load()?;
    let nodes = state.as_ref().map_or(0, |state| state.nodes);
    for candidate in Part::value_variants() {
        if part.is_some_and(|wanted| wanted != *candidate) {
            continue;
        }
        if candidate.needs_cluster() && nodes < candidate.nodes() {
            let missing = format!(
                "`{}` needs a cluster of {} or more nodes: type `cargo xtask up --nodes 2` first",
                name(*candidate),
                candidate.nodes()
            );
            if part.is_some() {
                bail!("{missing}");
            }
            term::hint(&missing);
            continue;
        }
        let rows = match candidate {
            Part::Xdp => measured::by("xdp"),
            Part::Programming => measured::by("programming"),
            Part::Eastwest => eastwest::measure(nodes),
            Part::Rules => rules::measure(),
            Part::Bridge => bridge::measure(),
            Part::Rollout => rollout::measure(),
            Part::Failure => failure::measure(nodes),
        }
        .with_context(|| format!("failed to measure {}", name(*candidate)))?;
        report(*candidate, &rows)?;
    }
    Ok(())
}

fn name(part: Part) -> String {
    part.to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

fn report(part: Part, rows: &[Row]) -> Result<()> {
    let name = name(part);
    term::data(&format!(
        "\n{:<64} {:>20} {:>10}",
        format!("dataplane {name}"),
        "measured",
        "goal"
    ));
    for row in rows {
        let goal = row.goal.as_deref().unwrap_or_default();
        let mark = if row.is_met() == Some(false) {
            "  missed"
        } else {
            ""
        };
        let value = format!("{} {}", short(row.value), row.unit);
        term::data(&format!("{:<64} {value:>20} {goal:>10}{mark}", row.what));
    }
    write(
        &run::root().join(format!("target/bench/dataplane-{name}.json")),
        rows,
    )
}

fn write(path: &Path, rows: &[Row]) -> Result<()> {
    let failed = || format!("failed to write {}", path.display());
    let text = serde_json::to_vec_pretty(rows).with_context(failed)?;
    fs::create_dir_all(path.parent().unwrap_or(path)).with_context(failed)?;
    fs::write(path, text).with_context(failed)
}

/// Three digits that count, and all of a large number.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Row, short};

    #[test]
    fn goals_are_judged_and_numbers_keep_what_counts() {
        let met = |value, goal: &str| Row::new("x", value, "ns").goal(goal).is_met();
        assert_eq!(met(74.0, "<= 74"), Some(true));
        assert_eq!(met(0.98, ">= 0.99"), Some(false));
        assert_eq!(met(1.0, "flat"), None);
        assert_eq!(Row::new("x", 1.0, "ns").is_met(), None);
        assert_eq!(
            [0.0, 0.98765, 1.2345, 12.345, 12_345.6].map(short),
            ["0", "0.9877", "1.23", "12.3", "12346"]
        );
    }
}
