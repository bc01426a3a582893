//! [`Reservation`]: what one write takes and gives back.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use super::Allocator;

/// What was taken for a write that has not happened yet; given back when dropped, unless kept.
pub struct Reservation {
    allocator: Arc<Allocator>,
    pub(super) ips: Vec<IpAddr>,
    pub(super) ports: BTreeSet<u16>,
    /// What the write sets free, once it has happened.
    pub(super) freed_ips: Vec<IpAddr>,
    pub(super) freed_ports: BTreeSet<u16>,
}

impl Reservation {
    /// Nothing taken.
    pub(super) fn new(allocator: Arc<Allocator>) -> Self {
        Self {
            allocator,
            ips: Vec::new(),
            ports: BTreeSet::new(),
            freed_ips: Vec::new(),
            freed_ports: BTreeSet::new(),
        }
    }

    /// The write has happened: what was taken stays taken, what it no longer uses is free.
    pub fn keep(mut self) {
        self.ips.clear();
        self.ports.clear();
        let mut taken = self.allocator.taken.lock();
        for ip in std::mem::take(&mut self.freed_ips) {
            taken.free_ip(ip);
        }
        for port in std::mem::take(&mut self.freed_ports) {
            self.allocator.free_port(&mut taken, port);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.ips.is_empty() && self.ports.is_empty() {
            return;
        }
        let mut taken = self.allocator.taken.lock();
        for ip in self.ips.drain(..) {
            taken.free_ip(ip);
        }
        for port in std::mem::take(&mut self.ports) {
            self.allocator.free_port(&mut taken, port);
        }
    }
}
