//! What the machine must have, and how it gets it: Debian packages and the BPF linker.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{run, term};

/// A reason to install something.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Compiling orch.
    Build,
    /// Compiling the eBPF programs.
    Ebpf,
    /// Running a cluster.
    Cluster,
    /// The tests.
    Test,
    /// The benchmarks.
    Bench,
    /// Another kernel in a virtual machine.
    Kernel,
}

/// A Debian package and the file that shows it is there, whoever installed it.
struct Package {
    name: &'static str,
    /// A program on the PATH, or an absolute path.
    provides: &'static str,
    need: Need,
}

const fn package(need: Need, name: &'static str, provides: &'static str) -> Package {
    Package { name, provides, need }
}

const PACKAGES: &[Package] = &[
    package(Need::Build, "gcc", "cc"),
    package(Need::Build, "libc6-dev", "/usr/include/stdlib.h"),
    package(Need::Build, "protobuf-compiler", "protoc"),
    package(
        Need::Build,
        "libprotobuf-dev",
        "/usr/include/google/protobuf/descriptor.proto",
    ),
    package(
        Need::Cluster,
        "ca-certificates",
        "/etc/ssl/certs/ca-certificates.crt",
    ),
    package(Need::Cluster, "containerd", "containerd"),
    package(Need::Cluster, "runc", "runc"),
    package(Need::Cluster, "iproute2", "ip"),
    package(Need::Cluster, "nftables", "nft"),
    package(Need::Cluster, "kubernetes-client", "kubectl"),
    package(Need::Cluster, "bpftool", "bpftool"),
    package(Need::Cluster, "curl", "curl"),
    package(Need::Test, "busybox-static", "busybox"),
    package(Need::Test, "etcd-server", "etcd"),
    package(Need::Test, "docker-registry", "docker-registry"),
    package(Need::Bench, "wrk", "wrk"),
    package(Need::Bench, "ethtool", "ethtool"),
    package(Need::Bench, "iptables", "iptables-legacy-restore"),
    package(Need::Kernel, "qemu-system-x86", "qemu-system-x86_64"),
    package(Need::Kernel, "busybox-static", "busybox"),
    package(Need::Kernel, "binutils", "strip"),
];

/// Debian's own toolchain for the BPF target: a rustc that still builds `core` from its sources.
const DEBIAN_BPF_RUST: &[Package] = &[
    package(Need::Ebpf, "rustc-web", "/usr/share/doc/rustc-web"),
    package(Need::Ebpf, "cargo-web", "/usr/share/doc/cargo-web"),
    package(
        Need::Ebpf,
        "rust-web-src",
        "/usr/lib/rustlib/src/rust/library/core/Cargo.toml",
    ),
];

/// What bpf-linker is built with.
const LLVM: &[Package] = &[
    package(Need::Ebpf, "llvm-22-dev", "/usr/lib/llvm-22/bin/llvm-config"),
    package(Need::Ebpf, "libpolly-22-dev", "/usr/lib/llvm-22/lib/libPolly.a"),
    package(Need::Ebpf, "g++", "c++"),
    package(Need::Ebpf, "zlib1g-dev", "/usr/include/zlib.h"),
    package(Need::Ebpf, "libzstd-dev", "/usr/include/zstd.h"),
    package(Need::Ebpf, "libxml2-dev", "/usr/include/libxml2/libxml/parser.h"),
];

/// Installs what is missing for these needs; says what, asks nothing.
///
/// # Errors
/// When not root, or when apt or cargo fails; the message says what to do.
pub fn install(needs: &[Need]) -> Result<()> {
    let mut missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|package| needs.contains(&package.need) && !is_present(package))
        .map(|package| package.name)
        .collect();
    let linker =
        needs.contains(&Need::Ebpf) && run::which("bpf-linker").is_none() && !cargo_bin("bpf-linker");
    if needs.contains(&Need::Ebpf) {
        if !nightly_with_sources() {
            missing.extend(absent(DEBIAN_BPF_RUST));
        }
        if linker {
            missing.extend(absent(LLVM));
        }
    }
    apt_install(&missing)?;
    if linker { install_linker() } else { Ok(()) }
}

/// Whether rustup has a nightly with the standard library's sources.
pub fn nightly_with_sources() -> bool {
    run::output(&mut run::command("rustc", ["+nightly", "--print", "sysroot"])).is_ok_and(|sysroot| {
        Path::new(sysroot.trim())
            .join("lib/rustlib/src/rust/library/core/Cargo.toml")
            .exists()
    })
}

/// Fails with one line when the command needs root and the user is not.
///
/// # Errors
/// When not root.
pub fn require_root(what: &str) -> Result<()> {
    if !nix::unistd::Uid::effective().is_root() {
        bail!("{what} needs root (network namespaces, cgroups, BPF): run it with sudo -E");
    }
    Ok(())
}

fn absent(packages: &[Package]) -> impl Iterator<Item = &'static str> {
    packages
        .iter()
        .filter(|package| !is_present(package))
        .map(|package| package.name)
}

fn is_present(package: &Package) -> bool {
    if package.provides.starts_with('/') {
        Path::new(package.provides).exists()
    } else {
        run::which(package.provides).is_some() || Path::new("/usr/sbin").join(package.provides).exists()
    }
}

fn cargo_bin(program: &str) -> bool {
    std::env::var_os("HOME").is_some_and(|home| Path::new(&home).join(".cargo/bin").join(program).exists())
}

fn apt_install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    require_root(&format!("installing {}", packages.join(", ")))?;
    if run::which("apt-get").is_none() {
        bail!(
            "this machine has no apt-get: install {} with its own package manager",
            packages.join(", ")
        );
    }
    let log = log_file("apt.log")?;
    let step = term::step(&format!("installing Debian packages: {}", packages.join(" ")));
    let apt = |args: &[&str]| -> Command {
        let mut command = run::command("apt-get", ["-q", "-y", "-o", "DPkg::Lock::Timeout=300"]);
        command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    run::logged(&mut apt(&["update"]), &log)
        .context("failed to refresh the package lists; check the network and /etc/apt")?;
    let mut install = apt(&["install", "--no-install-recommends"]);
    run::logged(install.args(packages), &log).context("failed to install packages")?;
    step.done();
    Ok(())
}

fn install_linker() -> Result<()> {
    let step = term::step("building bpf-linker (once; a few minutes)");
    let mut cargo = run::cargo([
        "install",
        "bpf-linker@0.13.0",
        "--no-default-features",
        "--features",
        "llvm-22",
    ]);
    cargo
        .current_dir("/")
        .env("RUSTFLAGS", "-L /usr/lib/llvm-22/lib")
        .env("LLVM_PREFIX", "/usr/lib/llvm-22")
        .env("LLVM_SYS_221_PREFIX", "/usr/lib/llvm-22");
    run::logged(&mut cargo, &log_file("bpf-linker.log")?).context("failed to build bpf-linker")?;
    step.done();
    Ok(())
}

fn log_file(name: &str) -> Result<std::path::PathBuf> {
    let folder = run::root().join("target/orch/logs");
    std::fs::create_dir_all(&folder).with_context(|| format!("failed to create {}", folder.display()))?;
    Ok(folder.join(name))
}
