//! What the scheduler and the controllers both need: recording events, reading a pod's state, tolerations.

pub mod events;
pub mod pods;
pub mod taints;
pub mod watch;
