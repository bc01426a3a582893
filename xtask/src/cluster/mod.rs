//! A cluster on this machine: each node a network namespace with its own containerd and agent.

mod aggregates;
pub mod cgroup;
pub mod down;
pub mod kubectl;
pub mod layout;
pub mod load_image;
pub mod modes;
mod network;
pub mod node;
mod pass;
pub mod process;
pub mod residue;
pub mod state;
pub mod up;
