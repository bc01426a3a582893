//! What a Service is given by the server: its cluster IPs and its node ports.

pub mod allocate;
pub mod pool;
mod range;

pub use range::nth_address;
