//! What of a cluster is on this machine: `down` and the tests end with an empty scan.

use std::{fs, path::Path};

use anyhow::Result;

use super::{
    cgroup,
    layout::{self, BRIDGE, CGROUP, PINS, RUN},
    network,
};
use crate::term;

/// Prints the leftovers, one a line.
///
/// # Errors
/// Never; the signature is a command's.
pub fn run() -> Result<()> {
    let found = scan();
    if found.is_empty() {
        term::done("nothing of a cluster is on this machine");
    }
    found.iter().for_each(|line| term::data(line));
    Ok(())
}

/// Processes, network namespaces, links, mounts, cgroups, pins and rules that a cluster made.
pub fn scan() -> Vec<String> {
    let mut found = Vec::new();
    found.extend(
        cgroup::processes(CGROUP)
            .into_iter()
            .map(|pid| format!("process {pid} ({})", comm(pid))),
    );
    found.extend(shims().into_iter().map(|pid| format!("containerd shim {pid}")));
    found.extend(names("/run/netns", "orch-").map(|name| format!("network namespace {name}")));
    found.extend(names("/sys/class/net", BRIDGE).map(|name| format!("link {name}")));
    found.extend(
        mounts_below(Path::new(RUN))
            .into_iter()
            .map(|path| format!("mount {path}")),
    );
    found.extend(
        mounts_below(&layout::state_dir())
            .into_iter()
            .map(|path| format!("mount {path}")),
    );
    found.extend(
        cgroup::ours()
            .into_iter()
            .map(|path| format!("cgroup {}", path.display())),
    );
    if Path::new(PINS).exists() {
        found.push(format!("pins in {PINS}"));
    }
    if Path::new(RUN).exists() {
        found.push(format!("folder {RUN}"));
    }
    if network::has_table() {
        found.push("nftables table orch-dev".to_owned());
    }
    found
}

/// What is mounted at or below a folder, in mount order.
pub fn mounts_below(folder: &Path) -> Vec<String> {
    let folder = folder.to_string_lossy();
    let Ok(text) = fs::read_to_string("/proc/self/mounts") else {
        return Vec::new();
    };
    text.lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(|path| path.replace("\\040", " "))
        .filter(|path| *path == folder || path.starts_with(&format!("{folder}/")))
        .collect()
}

/// Shims of our containerd namespace that escaped their cgroup.
fn shims() -> Vec<i32> {
    let inside = cgroup::processes(CGROUP);
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| !inside.contains(pid))
        .filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.contains("containerd-shim") && line.contains(&format!("{RUN}/")))
        })
        .collect()
}

fn comm(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm"))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn names(folder: &str, prefix: &'static str) -> impl Iterator<Item = String> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(move |name| name.starts_with(prefix))
}
