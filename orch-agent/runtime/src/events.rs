//! Container events from containerd, for one namespace, over any number of reconnects.
use tokio::sync::broadcast;

use crate::Runtime;

/// Something that happened to a container (not to an exec in one).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// A container's process was started.
    Started {
        /// The container.
        id: String,
    },
    /// A container's process ended.
    Exited {
        /// The container.
        id: String,
        /// Exit code, 128 + signal for a signal.
        exit_code: i32,
        /// The process it was.
        pid: u32,
        /// When.
        at: jiff::Timestamp,
    },
    /// The kernel killed a process of a container for want of memory.
    Oom {
        /// The container.
        id: String,
    },
    /// The stream was broken and is back: events may have been lost, so look at [`Runtime::containers`].
    Resync,
}

impl Runtime {
    /// A receiver of all events from now on. One that lags should treat it like [`RuntimeEvent::Resync`].
    pub fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.events.subscribe()
    }
}
