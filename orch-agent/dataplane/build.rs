//! Finds the BPF object to embed; without one the build goes on and the loader says what to do.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=ORCH_BPF_OBJECT");
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let object = env::var_os("ORCH_BPF_OBJECT")
        .map_or_else(|| manifest.join("../../target/bpf/orch.bpf.o"), PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("orch.bpf.o");
    let bytes = fs::read(&object).unwrap_or_else(|_| {
        println!(
            "cargo::warning=no eBPF object at {}: run `cargo xtask build-ebpf`",
            object.display()
        );
        Vec::new()
    });
    if let Err(error) = fs::write(&out, bytes) {
        println!("cargo::error=failed to write {}: {error}", out.display());
    }
}
