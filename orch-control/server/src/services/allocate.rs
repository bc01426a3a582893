//! Cluster IPs and node ports: what is taken, by whom, and what a Service about to be written is given.
//!
//! The truth is the stored Services; this is their index in memory, built from them on start. Numbers are taken
//! before a write and given back if it fails, so two writers never get the same one. One API server at a time may
//! run on a store for that reason.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
    sync::Arc,
};

use ipnet::Ipv4Net;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::pool::Pool;

/// What a Service may not have; becomes `422 Invalid` on the field.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// E.g. `spec.ports[0].nodePort`.
    pub field: String,
    /// What was asked for.
    pub value: Value,
    /// Why not, in the words that clients know.
    pub message: String,
}

/// All numbers and their owners.
pub struct Allocator {
    cidr: Ipv4Net,
    ports: RangeInclusive<u16>,
    taken: Mutex<Taken>,
}

struct Taken {
    ips: Pool,
    ports: Pool,
    /// Protocols that a port is taken for: one service may use a port for TCP and for UDP.
    protocols: HashMap<u16, Vec<String>>,
}

/// What was taken for a write that has not happened yet; given back when dropped, unless kept.
pub struct Reservation {
    allocator: Arc<Allocator>,
    ips: Vec<Ipv4Addr>,
    ports: Vec<(u16, String)>,
    /// What the write sets free, once it has happened.
    freed_ips: Vec<Ipv4Addr>,
    freed_ports: Vec<(u16, String)>,
}

impl Allocator {
    /// Nothing taken but what is never dealt out: the network and broadcast addresses, the first address (for the
    /// service `kubernetes`) and the tenth (for cluster DNS).
    #[must_use]
    pub fn new(cidr: Ipv4Net, ports: RangeInclusive<u16>) -> Arc<Self> {
        let size = u32::try_from(1_u64 << (32 - cidr.prefix_len())).unwrap_or(u32::MAX);
        let mut ips = Pool::new(size, 16, 256);
        ips.take(0);
        ips.take(size - 1);
        let count = u32::from(*ports.end()).saturating_sub(u32::from(*ports.start())) + 1;
        let taken = Taken {
            ips,
            ports: Pool::new(count, 32, 128),
            protocols: HashMap::new(),
        };
        Arc::new(Self {
            cidr,
            ports,
            taken: Mutex::new(taken),
        })
    }

    /// Takes what a stored Service has. What is out of range, or taken twice by an older mistake, is logged.
    pub fn adopt(&self, service: &Value) {
        let mut taken = self.taken.lock();
        for ip in cluster_ips(service) {
            if !self.offset(ip).is_some_and(|offset| taken.ips.take(offset)) {
                tracing::warn!(%ip, service = %service["metadata"]["name"], "cluster IP is out of range or taken twice");
            }
        }
        for (port, protocol) in node_ports(service) {
            if self.take_port(&mut taken, port, &protocol, true).is_err() {
                tracing::warn!(port, service = %service["metadata"]["name"], "node port is out of range or taken twice");
            }
        }
    }

    /// Sets free what a Service had that is gone.
    pub fn release(&self, service: &Value) {
        let mut taken = self.taken.lock();
        for ip in cluster_ips(service) {
            self.free_ip(&mut taken, ip);
        }
        for (port, protocol) in node_ports(service) {
            self.free_port(&mut taken, port, &protocol);
        }
    }

    /// Gives `service`, about to replace `old`, what it needs, and checks what it asks for.
    ///
    /// # Errors
    /// The first field that asks for what cannot be had.
    pub fn reserve(
        self: &Arc<Self>,
        service: &mut Value,
        old: Option<&Value>,
    ) -> Result<Reservation, Refusal> {
        if let Some(old) = old {
            carry_over(service, old);
        }
        let mut reservation = Reservation {
            allocator: Arc::clone(self),
            ips: Vec::new(),
            ports: Vec::new(),
            freed_ips: Vec::new(),
            freed_ports: Vec::new(),
        };
        self.reserve_ips(service, old, &mut reservation)?;
        self.reserve_ports(service, old, &mut reservation)?;
        Ok(reservation)
    }

    fn reserve_ips(
        &self,
        service: &mut Value,
        old: Option<&Value>,
        reservation: &mut Reservation,
    ) -> Result<(), Refusal> {
        let had: Vec<Ipv4Addr> = old.map(cluster_ips).unwrap_or_default();
        let external = service_type(service) == "ExternalName";
        let spec = &mut service["spec"];
        if external {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                remove(spec, field);
            }
            reservation.freed_ips = had;
            return Ok(());
        }
        if spec["ipFamilies"].as_array().is_none_or(Vec::is_empty) {
            spec["ipFamilies"] = json!(["IPv4"]);
        }
        if spec["ipFamilies"]
            .as_array()
            .is_some_and(|families| families.iter().any(|f| f != "IPv4"))
        {
            return Err(Refusal {
                field: "spec.ipFamilies[0]".into(),
                value: spec["ipFamilies"].clone(),
                message: "not configured on this cluster".into(),
            });
        }
        match spec["ipFamilyPolicy"].as_str() {
            None | Some("") => spec["ipFamilyPolicy"] = json!("SingleStack"),
            Some("RequireDualStack") => {
                return Err(Refusal {
                    field: "spec.ipFamilyPolicy".into(),
                    value: json!("RequireDualStack"),
                    message: "this cluster is not configured for dual-stack services".into(),
                });
            }
            Some(_) => {}
        }
        let asked = spec["clusterIP"]
            .as_str()
            .filter(|ip| !ip.is_empty())
            .map(str::to_owned)
            .or_else(|| {
                spec["clusterIPs"][0]
                    .as_str()
                    .filter(|ip| !ip.is_empty())
                    .map(str::to_owned)
            });
        let ip = match asked.as_deref() {
            Some("None") => {
                spec["clusterIP"] = json!("None");
                spec["clusterIPs"] = json!(["None"]);
                reservation.freed_ips = had;
                return Ok(());
            }
            Some(text) => {
                let refuse = |why: String| Refusal {
                    field: "spec.clusterIPs".into(),
                    value: json!([text]),
                    message: format!("failed to allocate IP {text}: {why}"),
                };
                let out_of_range = || {
                    refuse(format!(
                        "the provided IP ({text}) is not in the valid range. The range of valid IPs is {}",
                        self.cidr
                    ))
                };
                let ip: IpAddr = text.parse().map_err(|_| out_of_range())?;
                let IpAddr::V4(ip) = ip else {
                    return Err(out_of_range());
                };
                if !had.contains(&ip) {
                    let offset = self.offset(ip).ok_or_else(out_of_range)?;
                    if !self.taken.lock().ips.take(offset) {
                        return Err(refuse("provided IP is already allocated".into()));
                    }
                    reservation.ips.push(ip);
                }
                ip
            }
            None => {
                let ip = self.any_ip().ok_or_else(|| Refusal {
                    field: "spec.clusterIPs".into(),
                    value: json!([]),
                    message: "failed to allocate a serviceIP: range is full".into(),
                })?;
                reservation.ips.push(ip);
                ip
            }
        };
        spec["clusterIP"] = json!(ip);
        spec["clusterIPs"] = json!([ip]);
        reservation.freed_ips = had.into_iter().filter(|old| *old != ip).collect();
        Ok(())
    }

    fn reserve_ports(
        &self,
        service: &mut Value,
        old: Option<&Value>,
        reservation: &mut Reservation,
    ) -> Result<(), Refusal> {
        let had: Vec<(u16, String)> = old.map(node_ports).unwrap_or_default();
        let needs = needs_node_ports(service);
        // Ports that one protocol of this service got, so that its twin on the other protocol gets the same.
        let mut given: Vec<(u64, u16)> = Vec::new();
        let ports = service["spec"]["ports"]
            .as_array_mut()
            .map(Vec::as_mut_slice)
            .unwrap_or_default();
        let mut kept = Vec::new();
        for (index, port) in ports.iter_mut().enumerate() {
            let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
            let asked = port["nodePort"].as_u64().unwrap_or(0);
            let number = port["port"].as_u64().unwrap_or(0);
            if asked == 0 && !needs {
                continue;
            }
            let refuse = |message: String| Refusal {
                field: format!("spec.ports[{index}].nodePort"),
                value: json!(asked),
                message,
            };
            let mut taken = self.taken.lock();
            let node_port = if asked == 0 {
                let twin = given
                    .iter()
                    .find(|(p, _)| *p == number)
                    .map(|(_, node_port)| *node_port);
                match twin.filter(|&twin| self.take_port(&mut taken, twin, &protocol, true).is_ok()) {
                    Some(twin) => twin,
                    None => {
                        let offset = taken
                            .ports
                            .take_any()
                            .ok_or_else(|| refuse("failed to allocate a nodePort: range is full".into()))?;
                        let chosen = self.ports.start() + u16::try_from(offset).unwrap_or(0);
                        taken.protocols.insert(chosen, vec![protocol.clone()]);
                        chosen
                    }
                }
            } else {
                let asked_port = u16::try_from(asked).unwrap_or(0);
                let key = (asked_port, protocol.clone());
                if had.contains(&key) {
                    given.push((number, asked_port));
                    kept.push(key);
                    continue;
                }
                let ours = had
                    .iter()
                    .chain(&reservation.ports)
                    .any(|(own, _)| *own == asked_port);
                self.take_port(&mut taken, asked_port, &protocol, ours)
                    .map_err(refuse)?;
                asked_port
            };
            drop(taken);
            reservation.ports.push((node_port, protocol));
            given.push((number, node_port));
            port["nodePort"] = json!(node_port);
        }
        let local =
            service["spec"]["externalTrafficPolicy"] == "Local" && service_type(service) == "LoadBalancer";
        if local {
            let asked = service["spec"]["healthCheckNodePort"].as_u64().unwrap_or(0);
            let asked_port = u16::try_from(asked).unwrap_or(0);
            let key = (asked_port, "TCP".to_owned());
            if had.contains(&key) {
                kept.push(key);
            } else {
                let refuse = |message: String| Refusal {
                    field: "spec.healthCheckNodePort".into(),
                    value: json!(asked),
                    message,
                };
                let mut taken = self.taken.lock();
                let port = if asked == 0 {
                    let offset = taken
                        .ports
                        .take_any()
                        .ok_or_else(|| refuse("range is full".into()))?;
                    let chosen = self.ports.start() + u16::try_from(offset).unwrap_or(0);
                    taken.protocols.insert(chosen, vec!["TCP".into()]);
                    chosen
                } else {
                    self.take_port(&mut taken, asked_port, "TCP", false)
                        .map_err(refuse)?;
                    asked_port
                };
                drop(taken);
                reservation.ports.push((port, "TCP".into()));
                service["spec"]["healthCheckNodePort"] = json!(port);
            }
        }
        reservation.freed_ports = had.into_iter().filter(|key| !kept.contains(key)).collect();
        Ok(())
    }

    fn any_ip(&self) -> Option<Ipv4Addr> {
        let mut taken = self.taken.lock();
        let mut skipped = Vec::new();
        let found = loop {
            let Some(offset) = taken.ips.take_any() else {
                break None;
            };
            // Free for those who ask for them by name.
            if offset == 1 || offset == 10 {
                skipped.push(offset);
                continue;
            }
            break Some(Ipv4Addr::from(u32::from(self.cidr.network()) + offset));
        };
        for offset in skipped {
            taken.ips.give_back(offset);
        }
        found
    }

    fn offset(&self, ip: Ipv4Addr) -> Option<u32> {
        self.cidr
            .contains(&ip)
            .then(|| u32::from(ip) - u32::from(self.cidr.network()))
    }

    /// `shared` says that the service itself holds the port already, for another protocol.
    fn take_port(&self, taken: &mut Taken, port: u16, protocol: &str, shared: bool) -> Result<(), String> {
        if !self.ports.contains(&port) {
            return Err(format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                self.ports.start(),
                self.ports.end()
            ));
        }
        let protocols = taken.protocols.entry(port).or_default();
        let free = protocols.is_empty() || (shared && !protocols.iter().any(|own| own == protocol));
        if !free {
            return Err("provided port is already allocated".into());
        }
        protocols.push(protocol.to_owned());
        taken.ports.take(u32::from(port - self.ports.start()));
        Ok(())
    }

    fn free_ip(&self, taken: &mut Taken, ip: Ipv4Addr) {
        if let Some(offset) = self.offset(ip) {
            taken.ips.give_back(offset);
        }
    }

    fn free_port(&self, taken: &mut Taken, port: u16, protocol: &str) {
        let Some(protocols) = taken.protocols.get_mut(&port) else {
            return;
        };
        if let Some(at) = protocols.iter().position(|own| own == protocol) {
            protocols.swap_remove(at);
        }
        if protocols.is_empty() {
            taken.protocols.remove(&port);
            taken
                .ports
                .give_back(u32::from(port.saturating_sub(*self.ports.start())));
        }
    }
}

impl Reservation {
    /// The write has happened: what was taken stays taken, what it no longer uses is free.
    pub fn keep(mut self) {
        self.ips.clear();
        self.ports.clear();
        let mut taken = self.allocator.taken.lock();
        for ip in std::mem::take(&mut self.freed_ips) {
            self.allocator.free_ip(&mut taken, ip);
        }
        for (port, protocol) in std::mem::take(&mut self.freed_ports) {
            self.allocator.free_port(&mut taken, port, &protocol);
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
            self.allocator.free_ip(&mut taken, ip);
        }
        for (port, protocol) in self.ports.drain(..) {
            self.allocator.free_port(&mut taken, port, &protocol);
        }
    }
}

fn service_type(service: &Value) -> &str {
    service["spec"]["type"].as_str().unwrap_or("ClusterIP")
}

fn needs_node_ports(service: &Value) -> bool {
    match service_type(service) {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

/// What the writer left out but the Service had, it keeps; what its new type no longer has, it loses.
fn carry_over(service: &mut Value, old: &Value) {
    let (was, is) = (service_type(old).to_owned(), service_type(service).to_owned());
    if is != "ExternalName" && was != "ExternalName" {
        let spec = &mut service["spec"];
        if spec["clusterIP"].as_str().unwrap_or("").is_empty() && old["spec"]["clusterIP"].is_string() {
            spec["clusterIP"] = old["spec"]["clusterIP"].clone();
        }
    }
    let had_ports = matches!(was.as_str(), "NodePort" | "LoadBalancer");
    if !had_ports {
        return;
    }
    let wants_ports = matches!(is.as_str(), "NodePort" | "LoadBalancer");
    let old_ports = old["spec"]["ports"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let health = old["spec"]["healthCheckNodePort"].clone();
    let spec = &mut service["spec"];
    for port in spec["ports"]
        .as_array_mut()
        .map(Vec::as_mut_slice)
        .unwrap_or_default()
    {
        let protocol = |port: &Value| port["protocol"].as_str().unwrap_or("TCP").to_owned();
        if wants_ports {
            if port["nodePort"].as_u64().unwrap_or(0) == 0
                && let Some(same) = old_ports
                    .iter()
                    .find(|old| old["port"] == port["port"] && protocol(old) == protocol(port))
                && same["nodePort"].is_u64()
            {
                port["nodePort"] = same["nodePort"].clone();
            }
        } else if old_ports.iter().any(|old| old["nodePort"] == port["nodePort"]) {
            remove(port, "nodePort");
        }
    }
    if is == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local" {
        if spec["healthCheckNodePort"].as_u64().unwrap_or(0) == 0 && health.is_u64() {
            spec["healthCheckNodePort"] = health;
        }
    } else {
        remove(spec, "healthCheckNodePort");
    }
    if !wants_ports {
        remove(spec, "externalTrafficPolicy");
    }
    if is != "LoadBalancer" {
        remove(spec, "allocateLoadBalancerNodePorts");
    }
}

fn remove(value: &mut Value, field: &str) {
    if let Some(map) = value.as_object_mut() {
        map.remove(field);
    }
}

/// The addresses a Service holds: none when headless or external.
fn cluster_ips(service: &Value) -> Vec<Ipv4Addr> {
    service["spec"]["clusterIP"]
        .as_str()
        .and_then(|ip| ip.parse().ok())
        .into_iter()
        .collect()
}

/// The node ports a Service holds, with their protocols; the health check's is TCP.
fn node_ports(service: &Value) -> Vec<(u16, String)> {
    let ports = service["spec"]["ports"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let port = |value: &Value| {
        value
            .as_u64()
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port != 0)
    };
    ports
        .iter()
        .filter_map(|p| {
            Some((
                port(&p["nodePort"])?,
                p["protocol"].as_str().unwrap_or("TCP").to_owned(),
            ))
        })
        .chain(port(&service["spec"]["healthCheckNodePort"]).map(|port| (port, "TCP".to_owned())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocator() -> Arc<Allocator> {
        Allocator::new("10.96.0.0/16".parse().unwrap(), 30000..=32767)
    }

    fn service(kind: &str, ports: Value) -> Value {
        json!({ "metadata": { "name": "s" }, "spec": { "type": kind, "ports": ports } })
    }

    #[test]
    fn what_fails_or_goes_is_free_again() {
        let allocator = allocator();
        let mut first = service("NodePort", json!([{ "port": 80, "nodePort": 30080 }]));
        drop(allocator.reserve(&mut first, None).unwrap());
        allocator.reserve(&mut first, None).unwrap().keep();
        let mut second = service("NodePort", json!([{ "port": 80, "nodePort": 30080 }]));
        let refusal = allocator.reserve(&mut second, None).err().unwrap();
        assert_eq!(refusal.field, "spec.ports[0].nodePort");
        assert_eq!(refusal.message, "provided port is already allocated");
        let mut third = json!({ "spec": { "clusterIP": first["spec"]["clusterIP"], "ports": [] } });
        let refusal = allocator.reserve(&mut third, None).err().unwrap();
        assert!(
            refusal.message.ends_with("provided IP is already allocated"),
            "{}",
            refusal.message
        );
        allocator.release(&first);
        allocator.reserve(&mut second, None).unwrap().keep();
        allocator.reserve(&mut third, None).unwrap().keep();
    }

    #[test]
    fn ranges_are_kept() {
        let allocator = allocator();
        let mut low = service("NodePort", json!([{ "port": 80, "nodePort": 80 }]));
        let refusal = allocator.reserve(&mut low, None).err().unwrap();
        assert_eq!(
            refusal.message,
            "provided port is not in the valid range. The range of valid ports is 30000-32767"
        );
        let mut far = json!({ "spec": { "clusterIP": "10.97.0.1" } });
        assert!(
            allocator
                .reserve(&mut far, None)
                .err()
                .unwrap()
                .message
                .contains("is not in the valid range")
        );
    }

    #[test]
    fn a_type_change_keeps_the_address_and_drops_the_ports() {
        let allocator = allocator();
        let mut old = service("NodePort", json!([{ "port": 80 }]));
        allocator.reserve(&mut old, None).unwrap().keep();
        let port = old["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
        let mut new = old.clone();
        new["spec"]["type"] = json!("ClusterIP");
        allocator.reserve(&mut new, Some(&old)).unwrap().keep();
        assert_eq!(new["spec"]["clusterIP"], old["spec"]["clusterIP"]);
        assert!(new["spec"]["ports"][0].get("nodePort").is_none());
        let mut other = service("NodePort", json!([{ "port": 80, "nodePort": port }]));
        allocator.reserve(&mut other, None).unwrap().keep();
    }

    #[test]
    fn one_service_may_use_a_port_for_two_protocols() {
        let allocator = allocator();
        let mut dns = service(
            "NodePort",
            json!([{ "port": 53, "protocol": "TCP" }, { "port": 53, "protocol": "UDP" }]),
        );
        allocator.reserve(&mut dns, None).unwrap().keep();
        assert_eq!(
            dns["spec"]["ports"][0]["nodePort"],
            dns["spec"]["ports"][1]["nodePort"]
        );
    }

    #[test]
    fn headless_has_no_address() {
        let allocator = allocator();
        let mut headless = json!({ "spec": { "clusterIP": "None" } });
        allocator.reserve(&mut headless, None).unwrap().keep();
        assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    }
}
