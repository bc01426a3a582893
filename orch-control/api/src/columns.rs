//! The columns that `kubectl get` shows for each kind.

use jiff::Timestamp;
use serde_json::Value;

/// One column of a table.
pub struct Column {
    /// Heading.
    pub name: &'static str,
    /// OpenAPI type of the cells: `string`, `integer`, `date`.
    pub kind: &'static str,
    /// OpenAPI format; `name` marks the primary column.
    pub format: &'static str,
    /// What the column says.
    pub description: &'static str,
    /// 0 for always shown, 1 for `-o wide`.
    pub priority: u8,
    /// The cell for an object at a moment.
    pub cell: fn(&Value, Timestamp) -> Value,
}
/// s
pub const NAME_AND_AGE: &[Column] = &[];
/// s
pub const CONFIG_MAP: &[Column] = &[];
/// s
pub const ENDPOINTS: &[Column] = &[];
/// s
pub const EVENT: &[Column] = &[];
/// s
pub const EVENTS_V1: &[Column] = &[];
/// s
pub const NAMESPACE: &[Column] = &[];
/// s
pub const NODE: &[Column] = &[];
/// s
pub const POD: &[Column] = &[];
/// s
pub const SECRET: &[Column] = &[];
/// s
pub const SERVICE_ACCOUNT: &[Column] = &[];
/// s
pub const SERVICE: &[Column] = &[];
/// s
pub const DEPLOYMENT: &[Column] = &[];
/// s
pub const REPLICA_SET: &[Column] = &[];
/// s
pub const LEASE: &[Column] = &[];
/// s
pub const ENDPOINT_SLICE: &[Column] = &[];
