//! The node's status as a pure function of what is known of the machine and of its parts.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus,
        NodeSystemInfo,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Time},
};

use super::facts::{Machine, Space};

/// What the agent calls itself; clients take the part before `+` for the supported API.
pub(super) const VERSION: &str = "v1.36.0+orch";
/// Images listed at most, the largest first, as Kubernetes does.
const MAX_IMAGES: usize = 50;
/// Memory pressure below so many available bytes (Kubernetes' eviction default).
const MEMORY_FLOOR: u64 = 100 << 20;

/// What is held back from pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserved {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory: u64,
}

/// Everything that changes.
#[derive(Debug, Clone, Default)]
pub(super) struct Observed {
    /// Why the node cannot run pods; empty when it can.
    pub(super) problems: Vec<String>,
    pub(super) runtime_version: String,
    pub(super) images: Vec<ContainerImage>,
    pub(super) disk: Space,
    pub(super) available_memory: u64,
    pub(super) pids: (u64, u64),
}

/// What the configuration says of the node.
#[derive(Debug, Clone)]
pub(super) struct Described {
    pub(super) name: String,
    pub(super) ips: Vec<IpAddr>,
    pub(super) port: u16,
    pub(super) max_pods: u32,
    pub(super) reserved: Reserved,
}

/// The status to write, given the conditions that the node has now (those of other authors are kept).
pub(super) fn build(
    described: &Described,
    machine: &Machine,
    observed: &Observed,
    before: &[NodeCondition],
    now: Timestamp,
) -> NodeStatus {
    let address = |kind: &str, address: String| NodeAddress {
        type_: kind.into(),
        address,
    };
    let mut images = observed.images.clone();
    images.sort_by_key(|image| std::cmp::Reverse(image.size_bytes));
    images.truncate(MAX_IMAGES);
    NodeStatus {
        addresses: Some(
            described
                .ips
                .iter()
                .map(|ip| address("InternalIP", ip.to_string()))
                .chain([address("Hostname", described.name.clone())])
                .collect(),
        ),
        capacity: Some(resources(
            described,
            machine,
            observed,
            Reserved {
                cpu_millis: 0,
                memory: 0,
            },
        )),
        allocatable: Some(resources(described, machine, observed, described.reserved)),
        conditions: Some(conditions(observed, before, now)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: i32::from(described.port),
            }),
        }),
        images: Some(images),
        node_info: Some(NodeSystemInfo {
            architecture: machine.architecture.into(),
            boot_id: machine.boot_id.clone(),
            container_runtime_version: observed.runtime_version.clone(),
            kernel_version: machine.kernel.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: VERSION.into(),
            machine_id: machine.machine_id.clone(),
            operating_system: "linux".into(),
            os_image: machine.os_image.clone(),
            system_uuid: machine.system_uuid.clone(),
            ..NodeSystemInfo::default()
        }),
        ..NodeStatus::default()
    }
}

fn resources(
    described: &Described,
    machine: &Machine,
    observed: &Observed,
    held_back: Reserved,
) -> BTreeMap<String, Quantity> {
    let cpu = (machine.cpus * 1000).saturating_sub(held_back.cpu_millis);
    let cpu = if cpu.is_multiple_of(1000) {
        (cpu / 1000).to_string()
    } else {
        format!("{cpu}m")
    };
    let memory = machine.memory.saturating_sub(held_back.memory) / 1024;
    BTreeMap::from([
        ("cpu".to_owned(), Quantity(cpu)),
        ("memory".to_owned(), Quantity(format!("{memory}Ki"))),
        (
            "ephemeral-storage".to_owned(),
            Quantity(format!("{}Ki", observed.disk.total / 1024)),
        ),
        ("pods".to_owned(), Quantity(described.max_pods.to_string())),
    ])
}

fn conditions(observed: &Observed, before: &[NodeCondition], now: Timestamp) -> Vec<NodeCondition> {
    let ready = if observed.problems.is_empty() {
        (
            "Ready",
            true,
            "KubeletReady",
            "kubelet is posting ready status".to_owned(),
        )
    } else {
        ("Ready", false, "KubeletNotReady", observed.problems.join(", "))
    };
    let pressure = |kind, on: bool, what: &str, yes, no| {
        let message = if on {
            format!("kubelet has {what} pressure")
        } else {
            format!("kubelet has no {what} pressure")
        };
        (kind, on, if on { yes } else { no }, message)
    };
    let memory = observed.available_memory < MEMORY_FLOOR;
    let disk = observed.disk;
    // Kubernetes' eviction defaults: nodefs.available<10%, nodefs.inodesFree<5%.
    let disk = disk.available < disk.total / 10 || disk.inodes_free < disk.inodes / 20;
    let (max, used) = observed.pids;
    let pids = used > max / 10 * 9;
    let ours = [
        pressure(
            "MemoryPressure",
            memory,
            "memory",
            "KubeletHasInsufficientMemory",
            "KubeletHasSufficientMemory",
        ),
        pressure(
            "DiskPressure",
            disk,
            "disk",
            "KubeletHasDiskPressure",
            "KubeletHasNoDiskPressure",
        ),
        pressure(
            "PIDPressure",
            pids,
            "PID",
            "KubeletHasInsufficientPID",
            "KubeletHasSufficientPID",
        ),
        ready,
    ];
    let mine = |condition: &&NodeCondition| ours.iter().any(|(kind, ..)| *kind == condition.type_);
    let mut all: Vec<NodeCondition> = before.iter().filter(|c| !mine(c)).cloned().collect();
    for (kind, on, reason, message) in &ours {
        let status = if *on { "True" } else { "False" };
        let same = before.iter().find(|c| c.type_ == *kind && c.status == status);
        all.push(NodeCondition {
            type_: (*kind).to_owned(),
            status: status.to_owned(),
            reason: Some((*reason).to_owned()),
            message: Some(message.clone()),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: same
                .and_then(|c| c.last_transition_time.clone())
                .or(Some(Time(now))),
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(conditions: &'a [NodeCondition], kind: &str) -> &'a NodeCondition {
        conditions.iter().find(|c| c.type_ == kind).unwrap()
    }

    fn healthy() -> Observed {
        Observed {
            disk: Space {
                total: 100,
                available: 50,
                inodes: 100,
                inodes_free: 50,
            },
            available_memory: 1 << 30,
            pids: (32_768, 100),
            ..Observed::default()
        }
    }

    #[test]
    fn a_change_of_readiness_moves_its_transition_and_nothing_else() {
        let (first, second) = (
            Timestamp::from_second(100).unwrap(),
            Timestamp::from_second(200).unwrap(),
        );
        let foreign = NodeCondition {
            type_: "NetworkUnavailable".into(),
            status: "False".into(),
            ..Default::default()
        };
        let before = conditions(&healthy(), std::slice::from_ref(&foreign), first);
        assert_eq!(before[0], foreign);
        assert_eq!(find(&before, "Ready").status, "True");
        assert_eq!(find(&before, "DiskPressure").status, "False");
        let broken = Observed {
            problems: vec!["container runtime is down".into()],
            ..healthy()
        };
        let after = conditions(&broken, &before, second);
        let ready = find(&after, "Ready");
        assert_eq!(
            (ready.status.as_str(), ready.message.as_deref()),
            ("False", Some("container runtime is down"))
        );
        assert_eq!(ready.last_transition_time.as_ref().unwrap().0, second);
        let memory = find(&after, "MemoryPressure");
        assert_eq!(memory.last_transition_time.as_ref().unwrap().0, first);
        assert_eq!(memory.last_heartbeat_time.as_ref().unwrap().0, second);
        assert_eq!(after.len(), before.len());
    }

    #[test]
    fn what_is_reserved_is_not_allocatable() {
        let described = Described {
            name: "n".into(),
            ips: vec![[10, 0, 0, 1].into(), "fd00::1".parse().unwrap()],
            port: 10250,
            max_pods: 110,
            reserved: Reserved {
                cpu_millis: 100,
                memory: 1 << 20,
            },
        };
        let machine = Machine {
            cpus: 2,
            memory: 8 << 20,
            ..Machine::default()
        };
        let status = build(
            &described,
            &machine,
            &healthy(),
            &[],
            Timestamp::from_second(1).unwrap(),
        );
        let addresses: Vec<_> = status
            .addresses
            .unwrap()
            .into_iter()
            .map(|a| (a.type_, a.address))
            .collect();
        let expected = [
            ("InternalIP", "10.0.0.1"),
            ("InternalIP", "fd00::1"),
            ("Hostname", "n"),
        ];
        assert_eq!(
            addresses,
            expected.map(|(kind, address)| (kind.to_owned(), address.to_owned()))
        );
        let (capacity, allocatable) = (status.capacity.unwrap(), status.allocatable.unwrap());
        assert_eq!(
            (capacity["cpu"].0.as_str(), allocatable["cpu"].0.as_str()),
            ("2", "1900m")
        );
        assert_eq!(
            (capacity["memory"].0.as_str(), allocatable["memory"].0.as_str()),
            ("8192Ki", "7168Ki")
        );
        assert_eq!(allocatable["pods"].0, "110");
    }
}
