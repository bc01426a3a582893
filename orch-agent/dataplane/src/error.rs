//! What can fail, in words that complete "failed to start the data plane: …".

use std::{io, path::PathBuf};

/// A failure of the data plane.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// The agent was built before the BPF object.
    #[error("this build has no eBPF programs: run `cargo xtask build-ebpf` and build again")]
    NoObject,
    /// [`crate::Dataplane::set_pod_cidrs`] has not been called.
    #[error("the node has no pod CIDR yet")]
    NoPodCidr,
    /// Every address of the pod CIDR is in use.
    #[error("every address of {0} is in use")]
    AddressesExhausted(ipnet::IpNet),
    /// The pod CIDR holds no usable address.
    #[error("the pod CIDR {0} holds no usable address")]
    PodCidrTooSmall(ipnet::IpNet),
    /// The interface does not exist in the agent's network namespace.
    #[error("no interface named {0:?}")]
    NoInterface(String),
    /// No interface leads out of the node.
    #[error("no interface has a default route or one of the node's addresses: name it with --uplink")]
    NoUplink,
    /// A pod uid that does not fit into an interface's alias and the endpoint map.
    #[error("the pod uid {0:?} is longer than 36 bytes")]
    BadUid(String),
    /// A file operation failed.
    #[error("{action} {path}: {source}", path = path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A system call failed.
    #[error("{call}: {source}")]
    Syscall {
        /// Which call, and on what.
        call: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel refused a netlink request.
    #[error("{action}: {source}")]
    Netlink {
        /// What was asked.
        action: String,
        /// The kernel's answer.
        source: Box<rtnetlink::Error>,
    },
    /// The BPF object could not be loaded.
    #[error("load the eBPF object: {0}")]
    Load(#[from] Box<aya::EbpfError>),
    /// The kernel refused a program; the verifier's log is in the source.
    #[error("load program {name}: {source}")]
    Program {
        /// The program's name.
        name: String,
        /// The kernel's answer.
        source: Box<aya::programs::ProgramError>,
    },
    /// A map operation failed.
    #[error("map {name}: {source}")]
    Map {
        /// The map's name.
        name: &'static str,
        /// The kernel's answer.
        source: Box<aya::maps::MapError>,
    },
    /// A pinned map cannot be opened.
    #[error(
        "open the pinned map {name}: {source}; is this the data plane of a running agent of this version?"
    )]
    Pinned {
        /// The map's name.
        name: String,
        /// The kernel's answer.
        source: Box<aya::maps::MapError>,
    },
    /// The object lacks a map or program that this agent expects.
    #[error("the eBPF object has no {0}: run `cargo xtask build-ebpf` and build again")]
    Missing(String),
}
