//! The VXLAN device that carries packets between nodes which are not neighbours.

use orch_ebpf::config::TUNNEL_MAC;

use crate::{
    DataplaneConfig, DataplaneError,
    config::Tunnel,
    load,
    netlink::{Interface, Kind},
    shared::Shared,
    sysctl,
};

/// The device's name on every node.
pub const DEVICE: &str = "orch-vxlan";
/// UDP port of the Linux kernel's VXLAN before IANA gave it 4789; what Kubernetes networks use.
const PORT: u16 = 8472;
/// What the tunnel adds to a packet in IPv4: header 20, UDP 8, VXLAN 8 (RFC 7348 section 5) and Ethernet 14.
const OVERHEAD_V4: u32 = 50;
/// The same in IPv6, whose header has 40.
const OVERHEAD_V6: u32 = 70;

/// The largest IP packet of a pod, where the uplink's is `uplink` bytes.
#[must_use]
pub fn pod_mtu(config: &DataplaneConfig, uplink: u32) -> u32 {
    if config.tunnel == Tunnel::Off {
        return uplink;
    }
    // Nodes speak to each other in the primary family.
    let outer_v6 = config.node_ips.first().is_some_and(|ip| ip.is_ipv6());
    uplink.saturating_sub(if outer_v6 { OVERHEAD_V6 } else { OVERHEAD_V4 })
}

/// Makes the device what it should be. Where there should be none, one of an agent before this one stays until [`remove`].
///
/// # Errors
/// When the kernel refuses.
pub async fn sync(shared: &Shared) -> Result<(), DataplaneError> {
    if shared.config.tunnel == Tunnel::Off {
        return Ok(());
    }
    let found = shared.netlink.interface(DEVICE).await?;
    let mtu = pod_mtu(&shared.config, shared.uplinks().primary().mtu);
    let device = match found {
        Some(device) if device.kind == Kind::Vxlan && device.mac == TUNNEL_MAC => device,
        Some(other) => {
            shared.netlink.remove_interface(other.index).await?;
            make(shared, mtu).await?
        }
        None => make(shared, mtu).await?,
    };
    if device.mtu != mtu {
        shared.netlink.set_mtu(device.index, mtu).await?;
    }
    sysctl::set(&format!("net/ipv4/conf/{DEVICE}/rp_filter"), "0")?;
    sysctl::silence_ipv6(DEVICE);
    shared
        .programs
        .lock()
        .attach_tunnel(&shared.config.bpf_root, &device)?;
    shared.netlink.set_up(device.index).await?;
    shared.maps.lock().configure(|config| {
        config.tunnel_ifindex = device.index;
        config.tunnel_mtu = mtu;
    })
}

/// Removes the device, now that there are other ways to the nodes: without them packets on their way to pods of other nodes
/// would leave by the default route, and somebody there might answer.
///
/// # Errors
/// When the kernel refuses.
pub async fn remove(shared: &Shared) -> Result<(), DataplaneError> {
    shared.maps.lock().configure(|config| {
        config.tunnel_ifindex = 0;
        config.tunnel_mtu = 0;
    })?;
    if let Some(device) = shared.netlink.interface(DEVICE).await? {
        shared.netlink.remove_interface(device.index).await?;
    }
    load::detach_tunnel(&shared.config.bpf_root)
}

async fn make(shared: &Shared, mtu: u32) -> Result<Interface, DataplaneError> {
    shared.netlink.add_vxlan(DEVICE, TUNNEL_MAC, PORT, mtu).await?;
    shared
        .netlink
        .interface(DEVICE)
        .await?
        .ok_or_else(|| DataplaneError::NoInterface(DEVICE.to_owned()))
}
