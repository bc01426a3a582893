//! Containers, images, namespaces and container I/O for one node, through containerd's gRPC API.
//!
//! This crate knows no Kubernetes object. It touches only one containerd namespace and what it made
//! itself. Everything it needs after a crash is in containerd (labels), in the cgroup tree or in files
//! under its run directory, so a new [`Runtime`] finds every container as the last one left it.

mod attach;
mod cgroup;
mod config;
mod container;
mod error;
mod events;
mod exec;
mod image;
mod io;
pub mod logger;
pub mod logs;
mod oci;
mod runtime;
mod sandbox;
mod stats;
mod sys;

pub use cgroup::PodResources;
pub use config::RuntimeConfig;
pub use container::{
    ContainerSpec, ContainerState, ContainerStatus, DeviceSpec, MountKind, MountSpec, Propagation, Resources,
    SeccompProfile, UserSpec,
};
pub use error::{PullFailure, RuntimeError};
pub use events::RuntimeEvent;
pub use exec::{Exec, ExecOutput, ExecSpec, ProcessControl};
pub use image::reference::Reference;
pub use image::{ImageInfo, RegistryAuth};
pub use io::{OutputStream, StdinStream};
pub use runtime::Runtime;
pub use sandbox::{Sandbox, SandboxSpec};
pub use stats::ContainerStats;
