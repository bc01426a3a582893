//! `cargo xtask down`: stops the cluster and proves that nothing of it is left.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

use super::{
    cgroup,
    layout::{self, BPFFS, CGROUP, Node, PINS},
    modes::Modes,
    network, node, residue,
    state::State,
};
use crate::{deps, run, term};

/// Stops everything and removes it; the build and the image archives stay.
///
/// # Errors
/// When something cannot be removed: the message names it.
pub fn run() -> Result<()> {
    deps::require_root("down")?;
    let state = State::load()?.unwrap_or_default();
    if state == State::default() && residue::scan().is_empty() {
        term::done("no cluster is running");
        return Ok(());
    }
    let step = term::step("stopping the cluster");
    for node in Node::all(layout::MAX_NODES).filter(|node| node.netns().exists() || node.dir().exists()) {
        remove_node(node)?;
    }
    super::up::control(&state).stop()?;
    super::up::etcd().stop()?;
    cgroup::kill_all(CGROUP)?;
    unmount_below(Path::new(layout::RUN))?;
    unmount_below(&layout::state_dir())?;
    cgroup::remove(CGROUP)?;
    remove(Path::new(PINS))?;
    if state.mounted_bpffs {
        run::output(&mut run::command("umount", [BPFFS]))?;
    }
    network::restore_machine(&state)?;
    remove(Path::new(layout::RUN))?;
    for name in ["control", "etcd", "nodes", "kubeconfig", "nat.nft", "pass.bpf.o"] {
        remove(&layout::state_dir().join(name))?;
    }
    State::forget()?;
    step.done();
    let left = residue::scan();
    if !left.is_empty() {
        bail!("something is left behind: {}", left.join("; "));
    }
    term::done("nothing is left behind but target/orch/logs");
    Ok(())
}

/// Stops one node and removes all of it.
///
/// # Errors
/// When something cannot be removed.
pub fn remove_node(node: Node) -> Result<()> {
    // The agent goes first, or it would put things right while we take them away.
    node::agent(node, Modes::default()).stop()?;
    node::containerd(node).stop()?;
    cgroup::kill_all(&node.cgroup())?;
    unmount_below(&node.run_dir())?;
    unmount_below(&node.dir())?;
    cgroup::remove(&node.cgroup())?;
    remove(&Path::new(PINS).join(node.name()))?;
    network::remove_node(node)?;
    remove(&node.run_dir())?;
    remove(&node.dir())
}

/// Unmounts whatever is mounted at or below a folder, innermost first.
fn unmount_below(folder: &Path) -> Result<()> {
    for target in residue::mounts_below(folder).into_iter().rev() {
        // Detached: a dying process may still hold it, and nothing new can enter.
        run::output(&mut run::command("umount", ["-l", &target]))?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => return Ok(()),
    };
    result.with_context(|| format!("failed to remove {}", path.display()))
}
