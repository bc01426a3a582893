//! Which of a kernel's modules to load, and in which order.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

/// What the data plane and its tests use of a kernel, as module names.
pub const WANTED: &[&str] = &[
    "veth",
    "vxlan",
    "tun",
    "dummy",
    "bridge",
    "8021q",
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    // What sctp asks the kernel's crypto for by an alias, which nobody resolves in the virtual machine.
    "crc32c_generic",
    "sctp",
    "tcp_diag",
    "udp_diag",
];

/// The files to insert, each after those that it needs. `folder` is the kernel's `/lib/modules/RELEASE`.
///
/// # Errors
/// When the kernel has neither a module nor the same built in, or a file cannot be read.
pub fn in_order(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = BTreeMap::new();
    for line in read(&folder.join("modules.order"))?.lines() {
        files.insert(name_of(line), folder.join(line));
    }
    let built_in: BTreeSet<String> = read(&folder.join("modules.builtin"))?
        .lines()
        .map(name_of)
        .collect();
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    for name in WANTED {
        visit(name, &files, &built_in, &mut seen, &mut order)?;
    }
    Ok(order)
}

fn visit(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    built_in: &BTreeSet<String>,
    seen: &mut BTreeSet<String>,
    order: &mut Vec<PathBuf>,
) -> Result<()> {
    let name = name.replace('-', "_");
    if built_in.contains(&name) || !seen.insert(name.clone()) {
        return Ok(());
    }
    let Some(file) = files.get(&name) else {
        bail!("this kernel has no {name}, neither as a module nor built in")
    };
    let bytes = fs::read(file).with_context(|| format!("failed to read {}", file.display()))?;
    for needed in needs(&bytes) {
        visit(&needed, files, built_in, seen, order)?;
    }
    order.push(file.clone());
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))
}

/// `kernel/net/8021q/8021q.ko` is `8021q`; dashes and underscores are the same to the kernel.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

/// The modules that a module needs: `depends=a,b` among the strings of its `.modinfo` section, each of which ends in
/// a zero byte.
fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let list = module
        .get(at + KEY.len()..)
        .unwrap_or_default()
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    String::from_utf8_lossy(list)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{name_of, needs};

    #[test]
    fn names_and_needs_are_read_as_the_kernel_writes_them() {
        assert_eq!(name_of("kernel/net/ipv6/ip6-udp_tunnel.ko"), "ip6_udp_tunnel");
        assert_eq!(
            needs(b"\x7fELF license=GPL\0depends=udp_tunnel,ip6_udp_tunnel\0retpoline=Y\0"),
            ["udp_tunnel", "ip6_udp_tunnel"]
        );
        assert!(needs(b"license=GPL\0depends=\0name=dummy\0").is_empty());
    }
}
