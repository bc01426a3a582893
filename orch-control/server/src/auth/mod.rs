//! Who asks (authentication), and whether they may (authorisation).

pub mod authenticate;
pub mod authorize;
pub mod graph;
pub mod identity;
pub mod impersonate;
pub mod node;
pub mod reviews;
pub mod token;
pub mod token_request;
