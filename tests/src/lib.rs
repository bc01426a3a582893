//! What the cluster tests share: kubectl, namespaces that clean up after themselves, requests, patience.
//!
//! `cargo xtask test` starts the clusters of three nodes that they need, loads the example images and runs them.

pub mod cases;
pub mod http;
pub mod kubectl;
pub mod load;
pub mod namespace;
pub mod peers;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// The first node's address.
pub const NODE1: &str = "172.30.0.11";
/// The second node's address.
pub const NODE2: &str = "172.30.0.12";
/// The nodes' names.
pub const NODES: [&str; 3] = ["orch-node1", "orch-node2", "orch-node3"];
/// A shell, curl and busybox.
pub const TOOLBOX: &str = "orch.local/toolbox:1";

/// The workspace's root.
#[must_use]
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Asks again until `check` gives a value; its last error is in the failure.
///
/// # Errors
/// When the time is up.
pub fn eventually<T>(what: &str, patience: Duration, mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(error) if began.elapsed() > patience => {
                return Err(error).with_context(|| format!("{what}: not within {} s", patience.as_secs()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// An `Ok` when the condition holds, for `eventually`.
///
/// # Errors
/// When it does not.
pub fn ensure(condition: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    if !condition {
        bail!(otherwise());
    }
    Ok(())
}

/// `cargo xtask up` with these arguments: starts what is dead, and changes what differs; builds nothing.
///
/// # Errors
/// When it fails.
pub fn cluster_up(args: &[&str]) -> Result<()> {
    let output = Command::new("cargo")
        .args(["xtask", "up", "--no-build"])
        .args(args)
        .current_dir(root())
        .output()
        .context("failed to start xtask")?;
    ensure(output.status.success(), || {
        format!("xtask up failed: {}", String::from_utf8_lossy(&output.stderr))
    })
}

/// How the cluster's network is set: `up`'s words for the tunnel and for the balancer's mode.
///
/// # Errors
/// When no cluster is up.
pub fn modes() -> Result<[String; 2]> {
    let path = root().join("target/orch/state.json");
    let text = std::fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
    let state: serde_json::Value = serde_json::from_slice(&text).context("not a cluster's state")?;
    let word = |name: &str| {
        let word = state["modes"][name].as_str().map(str::to_lowercase);
        word.with_context(|| format!("the cluster's state has no {name}"))
    };
    Ok([word("tunnel")?, word("load_balancer")?])
}

/// Waits until every node is Ready.
///
/// # Errors
/// When one is not within half a minute.
pub fn nodes_ready() -> Result<()> {
    eventually("every node Ready", Duration::from_secs(30), || {
        let nodes = kubectl::run(&["get", "nodes", "--no-headers"])?;
        let ready = nodes.lines().filter(|line| line.contains(" Ready ")).count();
        ensure(ready == NODES.len(), || nodes.clone())
    })
}

/// A node's addresses.
///
/// # Errors
/// When there is no such node.
pub fn node_ips(node: &str) -> Result<Vec<IpAddr>> {
    let node = kubectl::json(&["get", "node", node])?;
    let addresses = node["status"]["addresses"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    addresses
        .iter()
        .filter(|address| address["type"] == "InternalIP")
        .map(|address| {
            let text = address["address"].as_str().unwrap_or_default();
            text.parse().with_context(|| format!("{text:?} is no address"))
        })
        .collect()
}

/// The machine's address on the bridge, of a family.
#[must_use]
pub fn machine(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::new(172, 30, 0, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, 1).into(),
    }
}

/// The pid of a node's agent.
///
/// # Errors
/// When the cluster is not up.
pub fn agent_pid(node: &str) -> Result<i32> {
    let file = root().join(format!("target/orch/{node}-agent.pid"));
    let text = std::fs::read_to_string(&file).with_context(|| {
        format!(
            "no {}: run `cargo xtask test`, it starts the cluster",
            file.display()
        )
    })?;
    text.split(' ')
        .next()
        .unwrap_or("")
        .parse()
        .context("a pid file without a pid")
}

/// The program that a node's agent runs, for its other commands.
///
/// # Errors
/// When no agent runs.
pub fn agent(node: &str) -> Result<PathBuf> {
    let link = format!("/proc/{}/exe", agent_pid(node)?);
    let program = std::fs::read_link(&link).with_context(|| format!("failed to read {link}"))?;
    // What the kernel says of a program that was built anew since.
    let text = program.to_string_lossy();
    Ok(PathBuf::from(text.trim_end_matches(" (deleted)")))
}
