//! The bridge, the nodes' namespaces and their uplinks.

use std::{fs, net::IpAddr, path::Path};

use anyhow::{Context as _, Result};

use super::{
    aggregates,
    layout::{self, BRIDGE, Node, SUBNET, SUBNET6, UPLINK},
    modes::{Modes, Xdp},
    pass,
    state::State,
};
use crate::run::{self, ip};

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
const FORWARDING6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
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
    ip(&["link", "set", BRIDGE, "up"])?;
    for address in state.modes.machine_ips() {
        ip(&add_address(address, &layout::with_prefix(address), BRIDGE))?;
        if address.is_ipv4() {
            state.enabled_forwarding |= enable(FORWARDING)?;
        } else {
            state.enabled_forwarding6 |= enable(FORWARDING6)?;
        }
    }
    // Image pulls from a node's namespace leave with the machine's address.
    let rules = format!(
        "table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n chain postrouting {{\n  \
         type nat hook postrouting priority srcnat;\n  \
         ip saddr {SUBNET} oifname != \"{BRIDGE}\" masquerade\n  \
         ip6 saddr {SUBNET6} oifname != \"{BRIDGE}\" masquerade\n }}\n}}\n"
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
pub fn create_node(node: Node, modes: Modes) -> Result<()> {
    let (name, port) = (node.name(), node.port());
    if !node.netns().exists() {
        ip(&["netns", "add", &name])?;
    }
    if !Path::new("/sys/class/net").join(&port).exists() {
        ip(&[
            "link", "add", &port, "type", "veth", "peer", "name", UPLINK, "netns", &name,
        ])?;
    }
    // The bridge hands on whatever comes. XDP does not: a veth copies each packet for it, and drops the longest.
    let most = match modes.xdp {
        Xdp::Native | Xdp::Generic => aggregates::DEFAULT,
        Xdp::Auto | Xdp::Off => aggregates::MOST,
    };
    aggregates::set(&port, most)?;
    aggregates::set_inside(&node.netns(), UPLINK, most)?;
    ip(&["link", "set", &port, "master", BRIDGE, "up"])?;
    let inside = |args: &[&str]| run::output(run::command("ip", ["-n", &name]).args(args));
    inside(&["link", "set", "lo", "up"])?;
    for address in modes.node_ips(node) {
        inside(&add_address(address, &layout::with_prefix(address), UPLINK))?;
    }
    inside(&["link", "set", UPLINK, "up"])?;
    for gateway in modes.machine_ips() {
        inside(&["route", "replace", "default", "via", &gateway.to_string()])?;
    }
    if matches!(modes.xdp, Xdp::Native | Xdp::Generic) {
        // A veth hands over packets whose checksums nobody has computed yet, which no driver of a real card does.
        run::output(&mut run::command("ethtool", ["-K", &port, "tx", "off"]))?;
    }
    if modes.xdp == Xdp::Native {
        let object = layout::state_dir().join("pass.bpf.o");
        pass::write(&object)?;
        // Or it would not take the place of the one that is there.
        ip(&[
            "-force",
            "link",
            "set",
            "dev",
            &port,
            "xdpdrv",
            "object",
            &object.to_string_lossy(),
            "section",
            pass::SECTION,
        ])?;
    }
    Ok(())
}

/// Duplicate address detection would hold an IPv6 address back for a second.
fn add_address<'a>(address: IpAddr, text: &'a str, link: &'a str) -> Vec<&'a str> {
    let mut words = vec!["addr", "replace", text, "dev", link];
    if address.is_ipv6() {
        words.push("nodad");
    }
    words
}

/// Switches a kind of forwarding on; returns whether it was off.
fn enable(file: &str) -> Result<bool> {
    let off = fs::read_to_string(file).is_ok_and(|text| text.trim() == "0");
    if off {
        fs::write(file, "1").with_context(|| format!("failed to write {file}"))?;
    }
    Ok(off)
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
        run::output(&mut run::command("nft", ["delete", "table", "inet", TABLE]))?;
    }
    if state.enabled_forwarding {
        fs::write(FORWARDING, "0").context("failed to restore IPv4 forwarding")?;
    }
    if state.enabled_forwarding6 {
        fs::write(FORWARDING6, "0").context("failed to restore IPv6 forwarding")?;
    }
    Ok(())
}

/// Whether the address translation for the nodes is in place.
pub fn has_table() -> bool {
    run::output(&mut run::command("nft", ["list", "tables"])).is_ok_and(|text| text.contains(TABLE))
}
