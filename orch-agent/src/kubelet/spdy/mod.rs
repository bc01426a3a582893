//! SPDY/3.1 as client-go speaks it: the server's half of exec, attach and port-forward for older clients.
//!
//! Only what Kubernetes uses is here: streams opened by the client, replies, data, half-close, reset, ping and
//! go-away. Window updates are accepted and ignored, as client-go's own implementation sends none and heeds none.

mod dictionary;
mod frame;
mod headers;
mod session;

pub use frame::{Frame, FrameError, MAX_FRAME, parse};
pub use headers::{Headers, Inflater};
pub use session::{Session, Stream, StreamWriter};

#[cfg(test)]
mod tests;
