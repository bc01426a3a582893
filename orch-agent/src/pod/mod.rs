//! The life of pods on a node: from the API's watch to containers, volumes, probes and status, and back.
//!
//! One [`actor`] per pod feeds events to its pure [`plan`] and carries out the operations that come back; the
//! [`Manager`] starts and ends actors. No containers are polled: the API's watch, containerd's events and timers
//! drive everything. Static pods from a manifest folder are not read yet.

pub mod actor;
#[cfg(test)]
mod actor_tests;
mod attachment;
pub mod backoff;
pub mod context;
pub mod env;
pub mod event;
pub mod expand;
pub mod fields;
pub mod files;
pub mod handler;
pub mod id;
pub mod image;
pub mod manager;
pub mod objects;
pub mod plan;
pub mod ports;
pub mod prepare;
pub mod probe;
pub mod quantity;
pub mod recorder;
pub mod report;
pub mod resolv;
pub mod resources;
pub mod security;
pub mod spec;
pub mod start;
pub mod state;
pub mod status;
pub mod stop;
#[cfg(test)]
mod testing;
pub mod volumes;

pub use context::ManagerConfig;
pub use manager::{ContainerRef, LookupError, Manager, PodSnapshot};
pub use recorder::Recorder;
