//! `cargo xtask up`: from an empty machine to a cluster that is Ready.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use super::{
    kubectl,
    layout::{self, API_PORT, BPFFS, KUBELET_PORT, Node},
    modes::{Modes, Wanted, Xdp},
    network, node,
    process::{Daemon, Ensured},
    state::State,
};
use crate::{
    build_ebpf,
    deps::{self, Need},
    run, term,
};

/// What `up` takes.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Options {
    /// How many nodes; what a running cluster has, or 1
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=i64::from(layout::MAX_NODES)))]
    pub nodes: Option<u8>,
    /// What the API server keeps its objects in; what a running cluster has, or embedded
    #[arg(long)]
    pub store: Option<Store>,
    /// Run what was built last
    #[arg(long)]
    pub no_build: bool,
    /// Its network.
    #[command(flatten)]
    pub modes: Wanted,
}

/// A store backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Store {
    /// A file; nothing else to run
    Embedded,
    /// A local etcd, installed and started beside the control process
    Etcd,
}

impl Store {
    fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Etcd => "etcd",
        }
    }
}

/// Brings the cluster up, or to the wanted size, and waits until every node is Ready.
///
/// # Errors
/// One line that says what failed and what to do.
pub fn run(options: &Options) -> Result<()> {
    deps::require_root("a cluster")?;
    let before = State::load()?;
    let mut state = before.clone().unwrap_or_default();
    let old_nodes = state.nodes;
    state.nodes = options.nodes.unwrap_or(old_nodes.max(1));
    choose_store(&mut state, options.store, before.is_some())?;
    state.modes.choose(&options.modes, before.is_some())?;

    let mut needs = vec![Need::Build, Need::Ebpf, Need::Cluster];
    if state.store == "etcd" {
        needs.push(Need::Test);
    }
    if matches!(state.modes.xdp, Xdp::Native | Xdp::Generic) {
        needs.push(Need::Bench);
    }
    deps::install(&needs)?;
    if !options.no_build {
        build()?;
    }

    let wanted = state.nodes;
    state.nodes = wanted.max(old_nodes);
    // Before each step that changes the machine: `down` has to undo it, whatever happens next.
    mount_bpffs(&mut state)?;
    state.save()?;
    network::prepare_machine(&mut state)?;
    state.save()?;
    start_control(&state)?;
    for gone in Node::all(old_nodes).skip(usize::from(wanted)) {
        super::down::remove_node(gone)?;
        // The API object goes too, or its pods would wait for it to come back.
        let _ = kubectl::output(&["delete", "node", &gone.name(), "--ignore-not-found"]);
    }
    state.nodes = wanted;
    state.save()?;
    let mut started = false;
    for node in Node::all(wanted) {
        started |= start_node(node, state.modes)?;
    }
    wait_ready(wanted, state.modes)?;
    if before.is_none() || started {
        next_steps(wanted);
    } else {
        term::done("the cluster was up already, nothing has changed");
    }
    Ok(())
}

/// The control process, as the state wants it.
pub fn control(state: &State) -> Daemon {
    let mut args = vec!["serve".to_owned()];
    let mut flag = |name: &str, value: String| args.extend([name.to_owned(), value]);
    flag("--data-dir", layout::control_dir().to_string_lossy().into_owned());
    flag("--listen", format!("127.0.0.1:{API_PORT}"));
    for machine in state.modes.machine_ips() {
        flag("--listen", SocketAddr::new(machine, API_PORT).to_string());
    }
    if let Some(machine) = state.modes.machine_ips().first() {
        flag("--advertise-address", machine.to_string());
    }
    for (name, value) in state.modes.cidrs() {
        flag(name, value);
    }
    flag("--load-balancer-pool", state.modes.pool());
    flag(
        "--admin-kubeconfig",
        layout::kubeconfig().to_string_lossy().into_owned(),
    );
    if state.store == "etcd" {
        flag("--store", "etcd".into());
        flag("--etcd-endpoints", ETCD_CLIENT.into());
    }
    Daemon {
        name: "control".into(),
        cgroup: format!("{}/control", layout::CGROUP),
        netns: None,
        program: layout::program("orch-control"),
        args,
        env: vec![],
    }
}

const ETCD_CLIENT: &str = "http://127.0.0.1:23790";
const ETCD_PEER: &str = "http://127.0.0.1:23800";

/// The etcd beside the control process.
pub fn etcd() -> Daemon {
    let flags = [
        (
            "--data-dir",
            layout::state_dir().join("etcd").to_string_lossy().into_owned(),
        ),
        ("--listen-client-urls", ETCD_CLIENT.to_owned()),
        ("--advertise-client-urls", ETCD_CLIENT.to_owned()),
        ("--listen-peer-urls", ETCD_PEER.to_owned()),
        ("--initial-advertise-peer-urls", ETCD_PEER.to_owned()),
        ("--initial-cluster", format!("default={ETCD_PEER}")),
    ];
    Daemon {
        name: "etcd".into(),
        cgroup: format!("{}/etcd", layout::CGROUP),
        netns: None,
        program: run::which("etcd").unwrap_or_else(|| "/usr/bin/etcd".into()),
        args: flags
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .collect(),
        env: vec![],
    }
}

fn choose_store(state: &mut State, wanted: Option<Store>, running: bool) -> Result<()> {
    match wanted {
        Some(store) if running && store.name() != state.store => bail!(
            "the running cluster keeps its objects in the {} store: `cargo xtask down` first",
            state.store
        ),
        Some(store) => state.store = store.name().to_owned(),
        None if state.store.is_empty() => state.store = Store::Embedded.name().to_owned(),
        None => {}
    }
    Ok(())
}

/// Builds the programs and both binaries.
///
/// # Errors
/// When a build fails.
pub fn build() -> Result<()> {
    let step = term::step("building the eBPF programs");
    build_ebpf::build()?;
    step.done();
    let step = term::step("building orch-control and orch-agent (the first time takes minutes)");
    let mut cargo = run::cargo(["build", "-p", "orch-control", "-p", "orch-agent"]);
    if layout::is_optimised() {
        cargo.arg("--release");
    }
    run::show(cargo.current_dir(run::root()))?;
    step.done();
    Ok(())
}

fn mount_bpffs(state: &mut State) -> Result<()> {
    let mounted = fs::read_to_string("/proc/mounts")
        .is_ok_and(|text| text.lines().any(|line| line.split(' ').nth(1) == Some(BPFFS)));
    if !mounted {
        run::output(&mut run::command("mount", ["-t", "bpf", "bpf", BPFFS]))
            .context("failed to mount bpffs; the kernel needs CONFIG_BPF_SYSCALL")?;
        state.mounted_bpffs = true;
    }
    Ok(())
}

fn start_control(state: &State) -> Result<()> {
    let step = term::step("starting the control plane");
    if state.store == "etcd" {
        etcd().ensure()?;
    }
    let daemon = control(state);
    if daemon.pid().is_none() && port_taken() {
        bail!("port {API_PORT} on 127.0.0.1 is in use by another program: stop it and run this again");
    }
    daemon.ensure()?;
    kubectl::wait_until(&step, "the API server answers", Duration::from_secs(30), || {
        daemon.check()?;
        Ok(layout::kubeconfig().exists() && kubectl::output(&["get", "--raw", "/readyz"]).is_ok())
    })?;
    step.done();
    Ok(())
}

fn port_taken() -> bool {
    std::net::TcpListener::bind(("127.0.0.1", API_PORT)).is_err()
}

/// Returns whether anything had to be started.
fn start_node(node: Node, modes: Modes) -> Result<bool> {
    network::create_node(node, modes)?;
    node::prepare(node, modes)?;
    let step = term::step(&format!("starting {}", node.name()));
    let (containerd, agent) = (node::containerd(node), node::agent(node, modes));
    let mut started = containerd.ensure()? == Ensured::Started;
    kubectl::wait_until(&step, "containerd answers", Duration::from_secs(20), || {
        containerd.check()?;
        Ok(node::containerd_answers(node))
    })?;
    started |= agent.ensure()? == Ensured::Started;
    step.done();
    Ok(started)
}

fn wait_ready(nodes: u8, modes: Modes) -> Result<()> {
    let step = term::step(if nodes == 1 {
        "waiting for the node"
    } else {
        "waiting for the nodes"
    });
    let ready =
        r#"jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status} {end}"#;
    kubectl::wait_until(&step, "every node is Ready", Duration::from_secs(60), || {
        for node in Node::all(nodes) {
            node::agent(node, modes).check()?;
        }
        let text = kubectl::output(&["get", "nodes", "-o", ready]).unwrap_or_default();
        Ok(Node::all(nodes).all(|node| {
            text.split(' ')
                .any(|word| word == format!("{}=True", node.name()))
                && serves(node, modes)
        }))
    })?;
    // A pod made before its namespace's service account exists is refused.
    kubectl::wait_until(
        &step,
        "the default service account exists",
        Duration::from_secs(20),
        || Ok(kubectl::output(&["get", "serviceaccount", "default"]).is_ok()),
    )?;
    step.done();
    // An agent that dies right after its first heartbeat is better seen now.
    thread::sleep(Duration::from_millis(100));
    Node::all(nodes).try_for_each(|node| node::agent(node, modes).check())
}

/// Whether a node's agent answers: a condition that an agent before it has reported says nothing of this one.
fn serves(node: Node, modes: Modes) -> bool {
    let addresses = modes.node_ips(node);
    addresses.iter().all(|ip| {
        let address = SocketAddr::new(*ip, KUBELET_PORT);
        TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok()
    })
}

fn next_steps(nodes: u8) {
    let kubeconfig = layout::kubeconfig();
    let shown = kubeconfig
        .strip_prefix(std::env::current_dir().unwrap_or_default())
        .unwrap_or(&kubeconfig);
    let nodes = if nodes == 1 {
        "1 node".to_owned()
    } else {
        format!("{nodes} nodes")
    };
    term::done(&format!(
        "the cluster is up: {nodes}, API server at https://127.0.0.1:{API_PORT}"
    ));
    term::hint(&format!("export KUBECONFIG={}", Path::new(shown).display()));
    term::hint("kubectl get nodes");
    term::hint("cargo xtask build-image && cargo xtask load-image target/orch-images/*.tar");
    term::hint("kubectl apply -f deploy/examples/guestbook");
}
