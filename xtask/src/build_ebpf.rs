//! `cargo xtask build-ebpf`: the BPF object, with whichever toolchain the machine has.
//!
//! Core must be compiled for the BPF target, so the compiler's own sources are needed: rustup's nightly with
//! `rust-src`, or Debian's rustc with `rust-src` beside it. Nothing is built when no input has changed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::{deps, run, term, verified};

const TARGET: &str = "bpfel-unknown-none";

/// What `build-ebpf` takes.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Build only: do not load the programs to ask the kernel's verifier
    #[arg(long)]
    no_verify: bool,
}

/// Builds, and prints what the programs cost. Their sizes are the object's; how far the verifier walked is the
/// kernel's to say, where it may be asked.
///
/// # Errors
/// When the build fails, or this machine's kernel refuses a program.
pub fn run(options: &Options) -> Result<()> {
    deps::install(&[deps::Need::Ebpf])?;
    let object = build()?;
    let asked = if options.no_verify {
        verified::Answer::Unasked("without the verifier's word, as --no-verify says")
    } else if nix::unistd::Uid::effective().is_root() {
        verified::here()?
    } else {
        verified::Answer::Unasked("as root, this also says how far the verifier walks")
    };
    match asked {
        verified::Answer::Programs(programs) => {
            verified::print(&programs);
        }
        verified::Answer::Unasked(why) => {
            report(&object)?;
            term::hint(why);
        }
    }
    term::done(&format!("built {}", object.display()));
    Ok(())
}

/// The objects in `target/bpf`, by the name of what cargo builds: the agent's, and one for benchmarks.
const OBJECTS: [(&str, &str); 2] = [("orch-bpf", OBJECT), ("orch-feed", "feed.bpf.o")];

/// The agent's object.
const OBJECT: &str = "orch.bpf.o";

/// Builds the programs and returns the path of the agent's object, `target/bpf/orch.bpf.o`.
///
/// # Errors
/// When no toolchain can build for BPF, or the build fails.
pub fn build() -> Result<PathBuf> {
    let root = run::root();
    let folder = root.join("target/bpf");
    let object = folder.join(OBJECT);
    let stamp = folder.join("inputs.sha256");
    let inputs = digest(&root)?;
    let built = OBJECTS.iter().all(|(_, object)| folder.join(object).is_file());
    if built && fs::read_to_string(&stamp).is_ok_and(|old| old == inputs) {
        return Ok(object);
    }
    fs::create_dir_all(&folder).with_context(|| format!("failed to make {}", folder.display()))?;
    let mut command = toolchain()?;
    run::show(
        command
            .current_dir(&root)
            .args([
                "build",
                "--quiet",
                "--release",
                "-Z",
                "build-std=core",
                "--target",
                TARGET,
            ])
            .args(["-p", "orch-ebpf", "--features", "programs"])
            .args(OBJECTS.iter().flat_map(|(name, _)| ["--bin", name]))
            .env("CARGO_HOME", folder.join("cargo-home"))
            .env("CARGO_TARGET_DIR", folder.join("build"))
            .env("PATH", path_with_linker())
            // The workspace's release profile is for binaries that people run; BTF needs the debug information.
            .env("CARGO_PROFILE_RELEASE_STRIP", "none")
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
            .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env(
                "CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS",
                "-C linker=bpf-linker -C link-arg=--btf -C debuginfo=2",
            ),
    )?;
    let release = folder.join("build").join(TARGET).join("release");
    for (name, object) in OBJECTS {
        let built = release.join(name);
        // A rename, so that a build that embeds the object never reads half of it.
        let (object, fresh) = (folder.join(object), folder.join(format!("{object}.new")));
        fs::copy(&built, &fresh).with_context(|| format!("failed to copy {}", built.display()))?;
        fs::rename(&fresh, &object)
            .with_context(|| format!("failed to put {} in place", object.display()))?;
    }
    fs::write(&stamp, inputs).with_context(|| format!("failed to write {}", stamp.display()))?;
    Ok(object)
}

/// The cargo to build with, with the environment it needs.
fn toolchain() -> Result<Command> {
    if deps::nightly_with_sources() {
        let mut command = run::cargo(["+nightly"]);
        // Cargo sets RUSTC and friends for what it runs, and this may run under cargo.
        command.env_remove("RUSTC").env_remove("RUSTUP_TOOLCHAIN");
        return Ok(command);
    }
    if Path::new("/usr/bin/rustc").is_file() && Path::new("/usr/lib/rustlib/src/rust/library/core").is_dir() {
        let mut command = Command::new("/usr/bin/cargo");
        command
            .env("RUSTC", "/usr/bin/rustc")
            .env("RUSTC_BOOTSTRAP", "1")
            .env_remove("RUSTUP_TOOLCHAIN");
        return Ok(command);
    }
    bail!("no Rust toolchain with sources: run `rustup toolchain install nightly --component rust-src`")
}

fn path_with_linker() -> std::ffi::OsString {
    let own = std::env::var_os("PATH").unwrap_or_default();
    let cargo = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let folders = std::env::split_paths(&own).chain(cargo.map(|cargo| cargo.join("bin")));
    std::env::join_paths(folders).unwrap_or(own)
}

/// A digest of everything that the object is made from.
fn digest(root: &Path) -> Result<String> {
    let mut files = vec![
        root.join("orch-ebpf/Cargo.toml"),
        root.join("xtask/src/build_ebpf.rs"),
    ];
    sources(&root.join("orch-ebpf/src"), &mut files)?;
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let content = fs::read(&file).with_context(|| format!("failed to read {}", file.display()))?;
        hash.update(
            file.strip_prefix(root)
                .unwrap_or(&file)
                .as_os_str()
                .as_encoded_bytes(),
        );
        hash.update((content.len() as u64).to_le_bytes());
        hash.update(content);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("failed to list {}", folder.display()))? {
        let path = entry
            .with_context(|| format!("failed to list {}", folder.display()))?
            .path();
        if path.is_dir() {
            sources(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// Prints the object's size and each program's instructions.
fn report(object: &Path) -> Result<()> {
    let bytes = fs::read(object).with_context(|| format!("failed to read {}", object.display()))?;
    println!("{}: {} KiB", object.display(), bytes.len() / 1024);
    for (name, size) in programs(&bytes) {
        println!("  {name:<16} {:>5} instructions", size / INSTRUCTION);
    }
    Ok(())
}

/// Bytes of one BPF instruction.
const INSTRUCTION: u64 = 8;

/// Name and size of every global function, from the symbol table of an ELF64 little-endian file (gABI chapter 4).
fn programs(bytes: &[u8]) -> Vec<(String, u64)> {
    const SECTION: usize = 64;
    const SYMBOL: usize = 24;
    const SYMBOL_TABLE: u64 = 2;
    const GLOBAL_FUNCTION: u64 = 0x12;
    let word = |offset: usize, length: usize| -> Option<u64> {
        let part = bytes.get(offset..offset.checked_add(length)?)?;
        Some(
            part.iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte)),
        )
    };
    let read = || -> Option<Vec<(String, u64)>> {
        let table = word(0x28, 8)? as usize;
        let count = word(0x3c, 2)? as usize;
        let mut found = Vec::new();
        for section in (0..count).map(|index| table + index * SECTION) {
            if word(section + 4, 4)? != SYMBOL_TABLE {
                continue;
            }
            let names = word(table + SECTION * word(section + 0x28, 4)? as usize + 0x18, 8)? as usize;
            let first = word(section + 0x18, 8)? as usize;
            let last = first + word(section + 0x20, 8)? as usize;
            for symbol in (first..last).step_by(SYMBOL) {
                if word(symbol + 4, 1)? == GLOBAL_FUNCTION {
                    let start = names + word(symbol, 4)? as usize;
                    let name: Vec<u8> = bytes
                        .get(start..)?
                        .iter()
                        .copied()
                        .take_while(|byte| *byte != 0)
                        .collect();
                    found.push((String::from_utf8_lossy(&name).into_owned(), word(symbol + 16, 8)?));
                }
            }
        }
        Some(found)
    };
    read().unwrap_or_default()
}
