//! Byte streams to and from a container's processes.
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};

/// The input of a process; shutting it down (or dropping it) ends the input.
pub type StdinStream = Pin<Box<dyn AsyncWrite + Send>>;
/// The output of a process, up to its end of file.
pub type OutputStream = Pin<Box<dyn AsyncRead + Send>>;
