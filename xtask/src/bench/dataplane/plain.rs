//! Network namespaces that no data plane knows, for what ours is measured beside.

use anyhow::Result;

use crate::{run::ip, term};

/// Namespaces with these names; they go with the handle.
pub struct Namespaces(&'static [&'static str]);

impl Namespaces {
    /// Makes them anew.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(names: &'static [&'static str]) -> Result<Self> {
        let namespaces = Self(names);
        for name in names {
            // Of a run that was killed.
            let _ = ip(&["netns", "del", name]);
            ip(&["netns", "add", name])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        Ok(namespaces)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in self.0 {
            if let Err(error) = ip(&["netns", "del", name]) {
                term::warn(&format!("{error:#}"));
            }
        }
    }
}

/// A pair of interfaces: `port` in the namespace `middle`, and `eth0`, with an address, in `end`.
///
/// # Errors
/// When the kernel refuses.
pub fn connect(middle: &str, port: &str, end: &str, address: &str) -> Result<()> {
    ip(&[
        "-n", middle, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", end,
    ])?;
    ip(&["-n", middle, "link", "set", port, "up"])?;
    ip(&["-n", end, "addr", "add", address, "dev", "eth0"])?;
    ip(&["-n", end, "link", "set", "eth0", "up"])
}
