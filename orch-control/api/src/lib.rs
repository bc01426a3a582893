//! The Kubernetes object model of orch, without any I/O.
//!
//! A kind is a row of [`KINDS`]: names, storage prefix, subresources, schema, strategy and table
//! columns. Everything that serves objects asks the row, so that a new kind adds data and a few typed
//! functions but never a handler. Nothing in this crate reads a clock, a file or a random number.

pub mod columns;
pub mod decode;
pub mod defaults;
pub mod discovery;
pub mod error;
pub mod field;
pub mod kind;
pub mod kinds;
pub mod openapi;
pub mod patch;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod service;
pub mod strategies;
pub mod strategy;
pub mod table;
pub mod validation;
mod value;

pub use error::ApiError;
pub use field::{FieldError, Path};
pub use kind::{Conversion, Kind, Storage, Subresource};
pub use kinds::KINDS;
pub use schema::FieldValidation;
pub use strategy::Strategy;
