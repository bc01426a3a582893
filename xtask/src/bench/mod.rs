//! `cargo xtask bench`: measures a running cluster; a table on screen, JSON under target/bench/.

mod dataplane;
mod memory;
mod pods;

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{
    cluster::{load_image, state::State, up},
    deps::{self, Need},
    image, run, term,
};

/// What `bench` takes.
#[derive(Args, Debug)]
pub struct Options {
    /// One benchmark; all but the data plane's when none is given
    name: Option<Name>,
    /// Of the data plane, one part; all that the machine is ready for when none is given
    part: Option<dataplane::Part>,
}

/// A benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Resident memory of the processes, idle
    Memory,
    /// `kubectl run` to Ready, the image present
    Start,
    /// A Deployment of 10, from create to rolled out
    Deployment,
    /// The data plane, in parts
    Dataplane,
}

/// One measured number.
#[derive(Debug, Serialize)]
struct Row {
    /// What was measured.
    what: String,
    /// How much.
    value: f64,
    /// Of what.
    unit: &'static str,
    /// What Kubernetes 1.36 takes on such a machine, where that is known.
    kubernetes: Option<f64>,
}

/// Runs one benchmark or all of them; brings a cluster up when none is, and leaves it up.
///
/// # Errors
/// When the cluster does not come up or a measured step fails.
pub fn run(options: &Options) -> Result<()> {
    if options.name == Some(Name::Dataplane) {
        return dataplane::run(options.part);
    }
    if let Some(part) = options.part {
        bail!("{part:?} is no part of that benchmark: `cargo xtask bench dataplane` has parts");
    }
    deps::install(&[Need::Build, Need::Cluster, Need::Bench])?;
    if State::load()?.is_none() {
        up::run(&up::Options::default())?;
    }
    let Some(state) = State::load()? else {
        bail!("the cluster did not come up")
    };
    load_image::run(&[image::build(&run::root().join("deploy/images/toolbox"))?])?;
    // The images' unpacking is over and the processes are idle.
    std::thread::sleep(Duration::from_secs(5));
    for name in Name::value_variants() {
        if options.name.is_none_or(|wanted| wanted == *name) {
            let rows = match name {
                Name::Memory => memory::measure(&state)?,
                Name::Start => pods::start()?,
                Name::Deployment => pods::deployment()?,
                Name::Dataplane => continue,
            };
            report(*name, &rows)?;
        }
    }
    Ok(())
}

fn report(name: Name, rows: &[Row]) -> Result<()> {
    let name = name
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned());
    term::data(&format!("\n{name:<44} {:>12} {:>12}", "orch", "Kubernetes"));
    for row in rows {
        let there = row
            .kubernetes
            .map_or_else(String::new, |value| format!("{value:.2} {}", row.unit));
        term::data(&format!(
            "{:<44} {:>12} {there:>12}",
            row.what,
            format!("{:.2} {}", row.value, row.unit)
        ));
    }
    let folder = run::root().join("target/bench");
    fs::create_dir_all(&folder)
        .and_then(|()| {
            fs::write(
                folder.join(format!("{name}.json")),
                serde_json::to_vec_pretty(rows).unwrap_or_default(),
            )
        })
        .with_context(|| format!("failed to write {}", folder.display()))
}

/// The middle of the measured values.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
