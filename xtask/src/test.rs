//! `cargo xtask test`: every test, with what it needs set up first.

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    build_ebpf,
    cluster::{
        load_image,
        modes::{Families, LoadBalancer, Tunnel, Wanted, Xdp},
        residue,
        state::State,
        up,
    },
    deps::{self, Need},
    image, run, term,
};

/// What `test` takes.
#[derive(Args, Debug)]
pub struct Options {
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Only the tests of the crates: no cluster is started
    #[arg(long, conflicts_with = "cluster")]
    crates: bool,
    /// Only the tests that need a cluster
    #[arg(long)]
    cluster: bool,
}

/// How many nodes the cluster's tests name.
const NODES: u8 = 3;
/// Files of tests, all where none is named, and of those the tests that are left out.
struct Part {
    files: &'static [&'static str],
    without: &'static [&'static str],
}

const EVERYTHING: Part = Part {
    files: &[],
    without: &[],
};
/// What is tested once more with a tunnel between the nodes and without XDP. What is left out is about sockets, to which all
/// ways of packets are one.
const TUNNELLED: Part = Part {
    files: &["network", "services"],
    without: &["backends_that_go"],
};
/// What is tested once more with direct server return, in the driver: it is for clients outside.
const DIRECT: Part = Part {
    files: &["load_balancer", "services"],
    without: &["backends_that_go", "cluster_ips"],
};

/// Runs the tests of all crates, then those on a cluster of three nodes, which it starts and stops.
///
/// # Errors
/// When a test fails, or something is left behind.
pub fn run(options: &Options) -> Result<()> {
    deps::require_root("the tests")?;
    deps::install(&[Need::Build, Need::Ebpf, Need::Cluster, Need::Test])?;
    let step = term::step("building the eBPF programs");
    build_ebpf::build()?;
    step.done();
    if !options.cluster {
        cargo_test(
            &["--workspace", "--exclude", "orch-tests"],
            options.filter.as_deref(),
            &[],
        )?;
    }
    if !options.crates {
        on_cluster(options)?;
    }
    Ok(())
}

fn on_cluster(options: &Options) -> Result<()> {
    let before = State::load()?;
    if before.is_none() && !residue::scan().is_empty() {
        bail!("something of a cluster is on this machine but no cluster: run `cargo xtask down` first");
    }
    // One cluster after the other would cost a minute: the same one changes its ways. A running one keeps its families.
    let modes = before.as_ref().map(|state| state.modes);
    let (nodes, families) = before.as_ref().map_or((NODES, Some(Families::Dual)), |state| {
        (state.nodes.max(NODES), None)
    });
    let bring = |tunnel, xdp, load_balancer, no_build| {
        up::run(&up::Options {
            nodes: Some(nodes),
            modes: Wanted {
                ip_family: families,
                tunnel: Some(tunnel),
                xdp: Some(xdp),
                load_balancer_mode: Some(load_balancer),
            },
            no_build,
            store: None,
        })
    };
    bring(Tunnel::Off, Xdp::Native, LoadBalancer::Snat, false)?;
    load_images()?;
    let outcome = cluster_test(options, &EVERYTHING)
        .and_then(|()| bring(Tunnel::Vxlan, Xdp::Off, LoadBalancer::Snat, true))
        .and_then(|()| cluster_test(options, &TUNNELLED))
        .and_then(|()| bring(Tunnel::Off, Xdp::Native, LoadBalancer::Dsr, true))
        .and_then(|()| cluster_test(options, &DIRECT));
    if outcome.is_ok()
        && let Some(modes) = modes
    {
        bring(modes.tunnel, modes.xdp, modes.load_balancer, true)?;
    }
    if before.is_none() && (outcome.is_ok() || std::env::var_os("CI").is_some()) {
        crate::cluster::down::run()?;
    } else if outcome.is_err() {
        term::hint("the cluster is left up for a look; stop it with `cargo xtask down`");
    }
    outcome
}

fn load_images() -> Result<()> {
    let recipes = image::all_recipes()?;
    let archives = recipes
        .iter()
        .map(|recipe| image::build(recipe))
        .collect::<Result<Vec<_>>>()?;
    load_image::run(&archives)
}

fn cluster_test(options: &Options, part: &Part) -> Result<()> {
    let mut what = vec!["-p", "orch-tests"];
    for file in part.files {
        what.extend(["--test", file]);
    }
    // One at a time: they measure what a user sees, and two cores are soon busy.
    let mut args = vec!["--test-threads=1"];
    for name in part.without {
        args.extend(["--skip", name]);
    }
    cargo_test(&what, options.filter.as_deref(), &args)
}

fn cargo_test(what: &[&str], filter: Option<&str>, args: &[&str]) -> Result<()> {
    let mut cargo = run::cargo(["test"]);
    cargo
        .args(what)
        .args(filter)
        .arg("--")
        .args(args)
        .current_dir(run::root());
    run::show(&mut cargo)
}
