//! What the kernel's verifier says of every program, and how much of its patience each takes.
//!
//! `cargo xtask build-ebpf` and `cargo xtask verify-kernel` read the lines that begin with `program`, `refused` and
//! `  | `: `program NAME loaded=INSTRUCTIONS verified=INSTRUCTIONS bound=INSTRUCTIONS`.
#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::path::PathBuf;

use aya::{
    EbpfLoader,
    programs::{Program, ProgramError, ProgramInfo},
};
use orch_dataplane::load;

/// The most instructions that the verifier may walk through, by program.
///
/// The kernel gives up at a million (`BPF_COMPLEXITY_LIMIT_INSNS`). How many it walks depends on its version, as each
/// prunes equal states in its own way, so a bound has to hold on 6.1 and on the newest. Twice what the worse of them
/// takes today leaves room for a compiler that arranges things differently, and still catches the path that was
/// unrolled where it should have been shared. Raise one knowingly, and never over half of the limit: an older kernel
/// than any we test may need as much again.
const BOUNDS: &[(&str, u32)] = &[
    ("connect4", 12_000),
    ("connect6", 50_000),
    ("sendmsg4", 12_000),
    ("sendmsg6", 50_000),
    ("recvmsg4", 500),
    ("recvmsg6", 500),
    ("getpeername4", 500),
    ("getpeername6", 500),
    ("pod_ingress", 400_000),
    ("pod_egress", 50_000),
    ("uplink_ingress", 500_000),
    ("uplink_egress", 400_000),
    ("tunnel_ingress", 500_000),
    ("tunnel_egress", 90_000),
    ("uplink_xdp", 320_000),
];
/// Half of the kernel's limit.
const MOST: u32 = 500_000;
/// How much of a refusal is shown: its end says why.
const LAST_LINES: usize = 12;

#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

/// The object that the crate embeds.
static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/orch.bpf.o")));

struct Root(PathBuf);

impl Drop for Root {
    fn drop(&mut self) {
        let _ = orch_dataplane::remove_pins(&self.0);
    }
}

#[test]
fn every_program_loads_within_its_bound() {
    let root = Root(format!("/sys/fs/bpf/orch-verifier-{}", std::process::id()).into());
    let (mut programs, _maps) = match load::load(&root.0) {
        Ok(loaded) => loaded,
        Err(error) => {
            // The loader stops at the first refusal: go through all, so that one look shows every culprit.
            one_by_one();
            panic!("{error}");
        }
    };
    let mut over = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    let found: Vec<(String, ProgramInfo)> = programs
        .ebpf()
        .programs()
        .map(|(name, program)| (name.to_owned(), program.info().unwrap()))
        .collect();
    for (name, info) in &found {
        names.push(name);
        let loaded = info.size_translated().unwrap() / INSTRUCTION;
        let bound = BOUNDS.iter().find(|(bounded, _)| bounded == name);
        let bound = bound.map_or(0, |(_, bound)| *bound);
        // Before Linux 5.16 nobody counts.
        let verified = info.verified_instruction_count().unwrap_or(0);
        say(name, loaded, verified, bound);
        if verified > bound {
            over.push(format!(
                "{name}: the verifier walks {verified} instructions, {bound} are allowed"
            ));
        }
    }
    assert!(over.is_empty(), "{}", over.join("\n"));
    for (name, bound) in BOUNDS {
        assert!(names.contains(name), "{name} has a bound and is no program");
        assert!(
            *bound <= MOST,
            "{name}: a bound of {bound} is too near to the kernel's limit"
        );
    }
}

/// Bytes of one instruction.
const INSTRUCTION: u32 = 8;

fn say(name: &str, loaded: u32, verified: u32, bound: u32) {
    println!("\nprogram {name} loaded={loaded} verified={verified} bound={bound}");
}

/// Loads each program for itself, with maps of its own, and prints what became of it.
fn one_by_one() {
    let mut ebpf = match EbpfLoader::new().load(&OBJECT.0) {
        Ok(ebpf) => ebpf,
        Err(error) => {
            println!("\nrefused object: {error:?}");
            return;
        }
    };
    for (name, program) in ebpf.programs_mut() {
        let loaded = match program {
            Program::SchedClassifier(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            Program::Xdp(program) => program.load(),
            _ => continue,
        };
        match loaded {
            Ok(()) => {
                let info = program.info().unwrap();
                let verified = info.verified_instruction_count().unwrap_or(0);
                say(name, info.size_translated().unwrap() / INSTRUCTION, verified, 0);
            }
            Err(ProgramError::LoadError {
                io_error,
                verifier_log,
            }) => {
                println!("\nrefused {name}: {io_error}");
                let log = verifier_log.to_string();
                let lines: Vec<&str> = log.lines().collect();
                for line in lines.iter().skip(lines.len().saturating_sub(LAST_LINES)) {
                    println!("  | {line}");
                }
            }
            Err(error) => println!("\nrefused {name}: {error}"),
        }
    }
}
