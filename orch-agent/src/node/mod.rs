//! The node object: its registration, its lease and its status, kept true for as long as the agent runs.

pub mod facts;
mod lease;
mod registrar;
mod status;

pub use registrar::{NodeConfig, Registrar, Reserved};
