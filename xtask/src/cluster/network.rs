//! The bridge, the nodes' namespaces and their uplinks.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use super::{
    layout::{self, BRIDGE, MACHINE, Node, PREFIX, SUBNET, UPLINK},
    state::State,
};
use crate::run;

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
/// The nftables table that lets nodes reach the world through the machine.
const TABLE: &str = "orch-dev";

/// Makes the bridge and what the nodes need of the machine; notes in `state` what was different before.
///
/// # Errors
/// When a command fails.
pub fn prepare_machine(state: &mut State) -> Result<()> {
    if !Path::new("/sys/class/net").join(BRIDGE).exists() {
        ip(&["link", "add", BRIDGE, "type", "bridge"])?;
    }
    ip(&["addr", "replace", &format!("{MACHINE}/{PREFIX}"), "dev", BRIDGE])?;
    ip(&["link", "set", BRIDGE, "up"])?;
    if fs::read_to_string(FORWARDING).is_ok_and(|text| text.trim() == "0") {
        fs::write(FORWARDING, "1").context("failed to enable IPv4 forwarding")?;
        state.enabled_forwarding = true;
    }
    // Image pulls from a node's namespace leave with the machine's address.
    let rules = format!(
        "table ip {TABLE}\ndelete table ip {TABLE}\ntable ip {TABLE} {{\n chain postrouting {{\n  \
         type nat hook postrouting priority srcnat;\n  \
         ip saddr {SUBNET} oifname != \"{BRIDGE}\" masquerade\n }}\n}}\n"
    );
    let file = layout::state_dir().join("nat.nft");
    fs::write(&file, rules).with_context(|| format!("failed to write {}", file.display()))?;
    if let Err(error) = run::output(run::command("nft", ["-f"]).arg(&file)) {
        crate::term::warn(&format!("nodes cannot reach beyond this machine: {error:#}"));
    }
    Ok(())
}

/// Makes a node's namespace and uplink; does nothing where they are there.
///
/// # Errors
/// When a command fails.
pub fn create_node(node: Node) -> Result<()> {
    let (name, port) = (node.name(), node.port());
    if !node.netns().exists() {
        ip(&["netns", "add", &name])?;
    }
    if !Path::new("/sys/class/net").join(&port).exists() {
        ip(&[
            "link", "add", &port, "type", "veth", "peer", "name", UPLINK, "netns", &name,
        ])?;
    }
    ip(&["link", "set", &port, "master", BRIDGE, "up"])?;
    let inside = |args: &[&str]| run::output(run::command("ip", ["-n", &name]).args(args));
    inside(&["link", "set", "lo", "up"])?;
    inside(&[
        "addr",
        "replace",
        &format!("{}/{PREFIX}", node.ip()),
        "dev",
        UPLINK,
    ])?;
    inside(&["link", "set", UPLINK, "up"])?;
    inside(&["route", "replace", "default", "via", &MACHINE.to_string()])?;
    Ok(())
}

/// Removes a node's namespace, with its uplink.
///
/// # Errors
/// When a command fails.
pub fn remove_node(node: Node) -> Result<()> {
    let port = node.port();
    if Path::new("/sys/class/net").join(&port).exists() {
        ip(&["link", "del", &port])?;
    }
    if node.netns().exists() {
        ip(&["netns", "del", &node.name()])?;
    }
    Ok(())
}

/// Puts the machine's own network back as it was.
///
/// # Errors
/// When a command fails.
pub fn restore_machine(state: &State) -> Result<()> {
    if Path::new("/sys/class/net").join(BRIDGE).exists() {
        ip(&["link", "del", BRIDGE])?;
    }
    if has_table() {
        run::output(&mut run::command("nft", ["delete", "table", "ip", TABLE]))?;
    }
    if state.enabled_forwarding {
        fs::write(FORWARDING, "0").context("failed to restore IPv4 forwarding")?;
    }
    Ok(())
}

/// Whether the address translation for the nodes is in place.
pub fn has_table() -> bool {
    run::output(&mut run::command("nft", ["list", "tables"])).is_ok_and(|text| text.contains(TABLE))
}

fn ip(args: &[&str]) -> Result<()> {
    run::output(&mut run::command("ip", args)).map(drop)
}
