//! What a Service is given by the server: its cluster IP and its node ports.

pub mod allocate;
pub mod pool;
