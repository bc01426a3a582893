//! The scheduler: it gives every pod that has no node the best node that can take it.
//!
//! [`schedule`] is the decision, a pure function of a [`Snapshot`] and a [`PodInfo`]; everything that watches,
//! waits and writes is in `run`. Plug-ins carry Kubernetes' names and messages. Not there yet, and said in the
//! pod's condition where a pod asks for it: volume binding and resource claims. Preemption is not done: a pod
//! that does not fit waits, whatever its priority.

mod framework;
mod plugins;
mod pod;
mod queue;
mod resources;
mod run;
mod schedule;
mod snapshot;

pub use pod::PodInfo;
pub use resources::Resources;
pub use run::{DEFAULT_SCHEDULER_NAME, run};
pub use schedule::{Decision, schedule};
pub use snapshot::{NodeInfo, Snapshot};
