//! Loading the programs onto new or adopted maps.

use std::{
    fs,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{CgroupSockAddr, Program, SchedClassifier, Xdp},
    util::KernelVersion,
};
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use crate::{
    DataplaneConfig, DataplaneError,
    config::XdpMode,
    links, maps,
    migrate::{Migration, Staging},
    netlink::{Interface, Kind},
    sys::{self, AttachType, Target},
};

#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

/// The BPF object, aligned as an ELF reader wants it.
static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/orch.bpf.o")));

/// Program and attach type of every socket hook.
const SOCKET_HOOKS: [(&str, AttachType); 8] = [
    ("connect4", AttachType::Connect4),
    ("connect6", AttachType::Connect6),
    ("sendmsg4", AttachType::Sendmsg4),
    ("sendmsg6", AttachType::Sendmsg6),
    ("recvmsg4", AttachType::Recvmsg4),
    ("recvmsg6", AttachType::Recvmsg6),
    ("getpeername4", AttachType::Getpeername4),
    ("getpeername6", AttachType::Getpeername6),
];

/// The loaded programs.
pub struct Programs {
    ebpf: Ebpf,
    /// Whether programs at interfaces are attached by tcx links, else as filters of tc.
    tcx: bool,
    /// A set of maps that is not in its place yet.
    migration: Option<Migration>,
}

/// `BPF_F_IPV6` of `bpf_l4_csum_replace` (linux/bpf.h, Linux 6.16).
const CSUM_REPLACE_IPV6: u64 = 1 << 7;

/// What the programs are told to pass with an update of a checksum over IPv6 addresses.
fn checksum_flag() -> u64 {
    let known = KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 16, 0));
    if known { CSUM_REPLACE_IPV6 } else { 0 }
}

/// The BPF object, for tests.
#[cfg(test)]
pub fn object() -> &'static [u8] {
    &OBJECT.0
}

/// Loads the programs for the calling thread's network namespace, on the pinned maps where those fit, else on new ones
/// with what the old ones hold; the caller then attaches every program and calls [`Programs::settle`].
///
/// # Errors
/// When there is no object or the kernel refuses a map or program.
pub fn load(bpf_root: &Path) -> Result<(Programs, maps::Maps), DataplaneError> {
    if OBJECT.0.is_empty() {
        return Err(DataplaneError::NoObject);
    }
    ensure_bpf_file_system(bpf_root)?;
    make_folder(&maps::folder(bpf_root))?;
    make_folder(&links::folder(bpf_root))?;
    let staging = Staging::prepare(bpf_root, &OBJECT.0)?;
    let names: Vec<String> = maps::names().collect();
    let mut loader = EbpfLoader::new();
    for name in &names {
        loader.map_pin_path(name, staging.pin(name));
    }
    let checksum = checksum_flag();
    loader.override_global("ORCH_CHECKSUM_IPV6", &checksum, true);
    let ordered = u64::from(cfg!(target_arch = "x86_64"));
    loader.override_global("ORCH_ORDERED", &ordered, true);
    let namespace = sys::namespace_cookie().map_err(|source| DataplaneError::Syscall {
        call: "ask for the network namespace's cookie".to_owned(),
        source,
    })?;
    loader.override_global("ORCH_NODE_NAMESPACE", &namespace, true);
    let level = if tracing::enabled!(tracing::Level::DEBUG) {
        aya_log::Level::Debug
    } else {
        aya_log::Level::Warn
    } as u8;
    loader.override_global(aya_log::LEVEL, &level, false);
    let mut ebpf = loader.load(&OBJECT.0).map_err(Box::new)?;
    let mut migration = staging.fill()?;
    for (name, program) in ebpf.programs_mut() {
        let loaded = match program {
            Program::SchedClassifier(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            Program::Xdp(program) => program.load(),
            _ => continue,
        };
        loaded.map_err(|source| DataplaneError::Program {
            name: name.to_owned(),
            source: Box::new(source),
        })?;
    }
    let maps = maps::Maps::of(&mut ebpf)?;
    if let Some(migration) = &mut migration {
        migration.follow()?;
    }
    let programs = Programs {
        ebpf,
        tcx: has_tcx(),
        migration,
    };
    Ok((programs, maps))
}

impl Programs {
    /// The whole loaded object, for the logger and for test runs.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Whether the maps of this name, without the family, are new and empty although others are not: what they held
    /// could not be moved.
    pub fn is_anew(&self, map: &str) -> bool {
        self.migration
            .as_ref()
            .is_some_and(|migration| migration.is_anew(map))
    }

    /// Whether maps move to another layout, until [`Self::settle`].
    pub fn is_moving(&self) -> bool {
        self.migration.is_some()
    }

    /// Ends an upgrade of the maps, if there is one; to be called when every program has been attached.
    ///
    /// # Errors
    /// When the new maps cannot take the place of the old ones.
    pub fn settle(&mut self) -> Result<(), DataplaneError> {
        self.migration.take().map_or(Ok(()), Migration::finish)
    }

    fn descriptor(&self, name: &'static str) -> Result<BorrowedFd<'_>, DataplaneError> {
        let fd = match self.ebpf.program(name) {
            Some(Program::SchedClassifier(program)) => SchedClassifier::fd(program),
            Some(Program::CgroupSockAddr(program)) => CgroupSockAddr::fd(program),
            Some(Program::Xdp(program)) => Xdp::fd(program),
            _ => return Err(DataplaneError::Missing(name.to_owned())),
        };
        fd.map(|fd| fd.as_fd()).map_err(|source| DataplaneError::Program {
            name: name.to_owned(),
            source: Box::new(source),
        })
    }

    /// Attaches the socket hooks to the configured cgroup, which is made when missing.
    ///
    /// # Errors
    /// When the cgroup cannot be made or opened, or the kernel refuses.
    pub fn attach_sockets(&self, config: &DataplaneConfig) -> Result<(), DataplaneError> {
        let path = &config.cgroup_path;
        make_folder(path)?;
        let cgroup = fs::File::open(path).map_err(|source| DataplaneError::File {
            action: "open cgroup",
            path: path.clone(),
            source,
        })?;
        for (name, attach_type) in SOCKET_HOOKS {
            let pin = links::folder(&config.bpf_root).join(name);
            links::attach(
                &pin,
                Target::Cgroup(cgroup.as_fd()),
                attach_type,
                self.descriptor(name)?,
            )?;
        }
        Ok(())
    }

    /// Attaches the uplinks' programs, and removes those of interfaces that are no uplinks.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_uplinks(
        &mut self,
        bpf_root: &Path,
        uplinks: &[&Interface],
        xdp: XdpMode,
    ) -> Result<(), DataplaneError> {
        let folder = links::folder(bpf_root);
        let mut keep = Vec::new();
        for interface in uplinks {
            for (name, attach_type) in [
                ("uplink_ingress", AttachType::TcxIngress),
                ("uplink_egress", AttachType::TcxEgress),
            ] {
                let pin = format!("{name}_{}", pin_name(&interface.name));
                self.attach_tc(&folder.join(&pin), interface, name, attach_type)?;
                keep.push(pin);
            }
            let has_vlans = uplinks
                .iter()
                .any(|other| other.kind == Kind::Vlan(interface.index));
            keep.extend(self.attach_driver(&folder, interface, has_vlans, xdp)?);
        }
        for prefix in ["uplink_", "xdp_"] {
            for name in links::list(&folder, prefix)? {
                if !keep.contains(&name) {
                    links::remove(&folder.join(name))?;
                }
            }
        }
        Ok(())
    }

    /// Attaches the balancer to the interface's driver if it should be there, and returns the name of the pin.
    fn attach_driver(
        &self,
        folder: &Path,
        interface: &Interface,
        has_vlans: bool,
        mode: XdpMode,
    ) -> Result<Option<String>, DataplaneError> {
        let name = pin_name(&interface.name);
        let (generic, native) = (format!("xdp_generic_{name}"), format!("xdp_native_{name}"));
        let (pin, target) = match (mode, interface.kind) {
            // What comes by a VLAN interface has passed the interface below it.
            (XdpMode::Off, _) | (_, Kind::Vlan(_)) | (XdpMode::Auto, Kind::Veth) => return Ok(None),
            // It would not see a tag that the driver has taken out, and the frame keeps it where it is sent back.
            (XdpMode::Generic, _) if has_vlans => {
                tracing::warn!(
                    interface = interface.name,
                    "generic XDP cannot tell packets of the interface's VLANs: services are translated at tc"
                );
                return Ok(None);
            }
            (XdpMode::Generic, _) => (generic, Target::Generic(interface.index)),
            (XdpMode::Auto | XdpMode::Native, _) => (native, Target::Driver(interface.index)),
        };
        // An interface runs one program in one mode.
        for other in links::list(folder, "xdp_")? {
            if other != pin && other.ends_with(&format!("_{name}")) {
                links::remove(&folder.join(other))?;
            }
        }
        match links::attach(
            &folder.join(&pin),
            target,
            AttachType::Xdp,
            self.descriptor("uplink_xdp")?,
        ) {
            Ok(()) => Ok(Some(pin)),
            Err(error) if mode == XdpMode::Auto => {
                tracing::info!(
                    interface = interface.name, %error,
                    "the interface's driver does not run XDP: services are translated at tc"
                );
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Attaches the tunnel's programs to its device.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_tunnel(&mut self, bpf_root: &Path, device: &Interface) -> Result<(), DataplaneError> {
        let folder = links::folder(bpf_root);
        self.attach_tc(
            &folder.join("tunnel_ingress"),
            device,
            "tunnel_ingress",
            AttachType::TcxIngress,
        )?;
        self.attach_tc(
            &folder.join("tunnel_egress"),
            device,
            "tunnel_egress",
            AttachType::TcxEgress,
        )
    }

    /// Attaches the pods' programs to the node's side of a pod's veth pair.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_pod(&mut self, bpf_root: &Path, interface: &Interface) -> Result<(), DataplaneError> {
        let [ingress, egress] = pod_pins(&interface.name).map(|pin| links::folder(bpf_root).join(pin));
        self.attach_tc(&egress, interface, "pod_egress", AttachType::TcxEgress)?;
        self.attach_tc(&ingress, interface, "pod_ingress", AttachType::TcxIngress)
    }

    fn attach_tc(
        &mut self,
        pin: &Path,
        interface: &Interface,
        name: &'static str,
        attach_type: AttachType,
    ) -> Result<(), DataplaneError> {
        if self.tcx {
            return links::attach(
                pin,
                Target::Interface(interface.index),
                attach_type,
                self.descriptor(name)?,
            );
        }
        let Some(Program::SchedClassifier(program)) = self.ebpf.program_mut(name) else {
            return Err(DataplaneError::Missing(name.to_owned()));
        };
        links::attach_filter(program, name, &interface.name, attach_type)
    }
}

/// Whether the kernel has tcx links.
fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
}

/// An interface's name as part of a pin's: a BPF file system has no dots in names, and an interface no colons.
fn pin_name(interface: &str) -> String {
    interface.replace('.', ":")
}

/// Names of the pins of a pod's links: what comes from the pod, and what goes to it.
#[must_use]
pub fn pod_pins(interface: &str) -> [String; 2] {
    [format!("pod_{interface}"), format!("podegress_{interface}")]
}

/// Removes the pins of what is attached to a tunnel's device.
///
/// # Errors
/// When one cannot be removed.
pub fn detach_tunnel(bpf_root: &Path) -> Result<(), DataplaneError> {
    let folder = links::folder(bpf_root);
    links::remove(&folder.join("tunnel_ingress"))?;
    links::remove(&folder.join("tunnel_egress"))
}

fn make_folder(path: &Path) -> Result<(), DataplaneError> {
    fs::create_dir_all(path).map_err(|source| DataplaneError::File {
        action: "make",
        path: path.to_owned(),
        source,
    })
}

/// Mounts the BPF file system where every tool expects it, if the root is not on one.
fn ensure_bpf_file_system(bpf_root: &Path) -> Result<(), DataplaneError> {
    const USUAL: &str = "/sys/fs/bpf";
    let existing = bpf_root
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    let is_bpf = |path: &Path| statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC);
    if is_bpf(existing) {
        return Ok(());
    }
    let failed = |source: std::io::Error| DataplaneError::File {
        action: "mount a BPF file system for",
        path: bpf_root.to_owned(),
        source,
    };
    if !bpf_root.starts_with(USUAL) {
        return Err(failed(std::io::Error::other(
            "it is not under /sys/fs/bpf and on no BPF file system",
        )));
    }
    mount(Some("bpf"), USUAL, Some("bpf"), MsFlags::empty(), None::<&str>)
        .map_err(|errno| failed(errno.into()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn run(program: &str, words: &str) -> String {
        let output = Command::new(program).args(words.split(' ')).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {words}: {error}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Ids of the programs in the filters of one direction.
    fn filters(namespace: &str, direction: &str) -> Vec<String> {
        run(
            "tc",
            &format!("-n {namespace} filter show dev eth0.7 {direction}"),
        )
        .lines()
        .filter_map(|line| line.split(" id ").nth(1)?.split(' ').next().map(str::to_owned))
        .collect()
    }

    struct Place(String, std::path::PathBuf);

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
            let _ = crate::remove_pins(&self.1);
        }
    }

    /// A namespace with an interface named like a VLAN's, which the calling thread enters.
    fn place(name: &str) -> (Place, Interface) {
        let id = std::process::id();
        let root = format!("/sys/fs/bpf/orch-load-{id}-{name}").into();
        let name = format!("ot{id}-{name}");
        let place = Place(name.clone(), root);
        run("ip", &format!("netns add {name}"));
        run(
            "ip",
            &format!("-n {name} link add eth0.7 type veth peer name eth1"),
        );
        let namespace = fs::File::open(format!("/run/netns/{name}")).unwrap();
        nix::sched::setns(namespace.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let interface = Interface {
            index: nix::net::if_::if_nametoindex("eth0.7").unwrap(),
            name: "eth0.7".to_owned(),
            alias: None,
            mtu: 1500,
            mac: [0; 6],
            kind: Kind::Veth,
            loopback: false,
            aggregates: crate::netlink::Aggregates::DEFAULT,
        };
        (place, interface)
    }

    #[test]
    fn xdp_runs_where_it_is_told_to() {
        let (place, interface) = place("xdp");
        let (mut programs, _maps) = load(&place.1).unwrap();
        // A veth runs XDP in the driver, but not by itself: its packets come without checksums.
        for (mode, word) in [
            (XdpMode::Native, Some(" xdp ")),
            (XdpMode::Generic, Some(" xdpgeneric ")),
            (XdpMode::Auto, None),
            (XdpMode::Native, Some(" xdp ")),
            (XdpMode::Off, None),
        ] {
            programs.attach_uplinks(&place.1, &[&interface], mode).unwrap();
            let link = run("ip", &format!("-n {} link show dev eth0.7", place.0));
            match word {
                Some(word) => assert!(link.contains(word), "{mode}: {link}"),
                None => assert!(!link.contains("xdp"), "{mode}: {link}"),
            }
        }
    }

    #[test]
    fn generic_xdp_leaves_an_interface_with_vlans() {
        let (place, interface) = place("vlans");
        let (mut programs, _maps) = load(&place.1).unwrap();
        let vlan = Interface {
            index: nix::net::if_::if_nametoindex("eth1").unwrap(),
            name: "eth1".to_owned(),
            kind: Kind::Vlan(interface.index),
            ..interface.clone()
        };
        for (mode, alone, beside) in [(XdpMode::Generic, true, false), (XdpMode::Native, true, true)] {
            for (uplinks, expected) in [(&[&interface][..], alone), (&[&interface, &vlan], beside)] {
                programs.attach_uplinks(&place.1, uplinks, mode).unwrap();
                let link = run("ip", &format!("-n {} link show dev eth0.7", place.0));
                assert_eq!(link.contains("xdp"), expected, "{mode}: {link}");
            }
        }
    }

    #[test]
    fn without_tcx_a_filter_gets_the_new_program_in_its_place() {
        let (place, interface) = place("filter");
        let name = &place.0;
        let mut before: Option<[Vec<String>; 2]> = None;
        for _ in 0..3 {
            let (mut programs, _maps) = load(&place.1).unwrap();
            programs.tcx = false;
            programs
                .attach_uplinks(&place.1, &[&interface], XdpMode::Auto)
                .unwrap();
            let now = ["ingress", "egress"].map(|direction| filters(name, direction));
            assert!(now.iter().all(|filters| filters.len() == 1), "{now:?}");
            assert_ne!(before.as_ref(), Some(&now), "it is the new program");
            before = Some(now);
        }
        // What is attached outlives who has attached it.
        assert_eq!(filters(name, "ingress").len(), 1);
    }
}
