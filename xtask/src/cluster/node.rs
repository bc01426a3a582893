//! One node's processes: a containerd of its own and the agent.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use anyhow::{Context as _, Result};

use super::{
    layout::{self, API_PORT, CONTAINERD_NAMESPACE, Node, UPLINK},
    modes::Modes,
    process::Daemon,
};
use crate::run;

/// The node's containerd.
pub fn containerd(node: Node) -> Daemon {
    Daemon {
        name: format!("{}-containerd", node.name()),
        cgroup: format!("{}/system", node.cgroup()),
        netns: Some(node.netns()),
        program: run::which("containerd").unwrap_or_else(|| "/usr/bin/containerd".into()),
        args: vec!["--config".into(), path(&node.dir().join("containerd.toml"))],
        env: vec![],
    }
}

/// The node's agent.
pub fn agent(node: Node, modes: Modes) -> Daemon {
    let dir = node.dir();
    let mut args = vec![
        ("--node-name", node.name()),
        ("--kubeconfig", path(&dir.join("kubeconfig"))),
        ("--uplink", UPLINK.to_owned()),
        ("--node-ip", list(&modes.node_ips(node))),
        ("--tls-cert", path(&dir.join("kubelet.crt"))),
        ("--tls-key", path(&dir.join("kubelet.key"))),
        ("--client-ca", path(&dir.join("ca.crt"))),
        ("--containerd", path(&node.containerd())),
        ("--root-dir", path(&dir.join("agent"))),
        ("--run-dir", path(&node.run_dir())),
        ("--cgroup-root", format!("/{}", node.cgroup())),
        ("--bpf-root", format!("{}/{}", layout::PINS, node.name())),
    ];
    args.extend(modes.cidrs());
    args.extend(modes.agent_flags());
    Daemon {
        name: format!("{}-agent", node.name()),
        cgroup: format!("{}/system", node.cgroup()),
        netns: Some(node.netns()),
        program: layout::program("orch-agent"),
        args: std::iter::once("run".to_owned())
            .chain(
                args.into_iter()
                    .flat_map(|(flag, value)| [flag.to_owned(), value]),
            )
            .collect(),
        env: vec![],
    }
}

/// Writes the node's containerd configuration, and its identity when it has none yet.
///
/// # Errors
/// When the disk refuses or `orch-control issue-node` fails.
pub fn prepare(node: Node, modes: Modes) -> Result<()> {
    let dir = node.dir();
    for folder in [dir.clone(), node.run_dir()] {
        fs::create_dir_all(&folder).with_context(|| format!("failed to create {}", folder.display()))?;
    }
    let config = format!(
        r#"version = 2
root = "{root}"
state = "{state}"
# orch drives containerd through its own API; these plugins would only cost memory or log their absence.
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{socket}"
[ttrpc]
  address = "{socket}.ttrpc"
"#,
        root = path(&dir.join("containerd")),
        state = path(&node.run_dir().join("containerd")),
        socket = path(&node.containerd()),
    );
    let file = dir.join("containerd.toml");
    if fs::read_to_string(&file).ok().as_deref() != Some(&config) {
        fs::write(&file, config).with_context(|| format!("failed to write {}", file.display()))?;
    }
    // An identity of an older cluster would be refused: it is only as good as the CA that signed it.
    let ca = fs::read(layout::control_dir().join("pki/ca.crt")).context("failed to read the cluster's CA")?;
    if fs::read(dir.join("ca.crt")).ok() != Some(ca) || !dir.join("kubeconfig").exists() {
        let mut issue = run::command(&path(&layout::program("orch-control")), ["issue-node"]);
        issue
            .arg("--data-dir")
            .arg(layout::control_dir())
            .arg("--node")
            .arg(node.name());
        issue
            .arg("--ip")
            .arg(list(&modes.node_ips(node)))
            .arg("--out")
            .arg(&dir);
        if let Some(machine) = modes.machine_ips().first() {
            issue
                .arg("--server")
                .arg(format!("https://{}", SocketAddr::new(*machine, API_PORT)));
        }
        run::output(&mut issue).context("failed to issue the node's identity")?;
    }
    Ok(())
}

/// Whether the node's containerd answers.
pub fn containerd_answers(node: Node) -> bool {
    run::output(&mut ctr(node, &["version"])).is_ok()
}

/// `ctr` on the node's containerd, in the agent's namespace.
pub fn ctr(node: Node, args: &[&str]) -> std::process::Command {
    let mut command = run::command(
        "ctr",
        [
            "--address",
            &path(&node.containerd()),
            "--namespace",
            CONTAINERD_NAMESPACE,
        ],
    );
    command.args(args);
    command
}

/// As the programs' flags take several.
fn list(addresses: &[IpAddr]) -> String {
    addresses
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
