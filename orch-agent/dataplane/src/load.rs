//! Loading the programs onto new or adopted maps.

use std::{
    fs,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, Map, MapData},
    programs::{CgroupSockAddr, Program, SchedClassifier, TcAttachType, tc},
    util::KernelVersion,
};
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use orch_ebpf::{
    ABI_VERSION,
    config::{CONFIG_MAP, Config},
};

use crate::{
    DataplaneConfig, DataplaneError, links, maps,
    sys::{AttachType, Target},
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
}

/// Loads the programs, on the pinned maps where those fit.
///
/// # Errors
/// When there is no object or the kernel refuses a map or program.
pub fn load(bpf_root: &Path) -> Result<(Programs, maps::Maps), DataplaneError> {
    if OBJECT.0.is_empty() {
        return Err(DataplaneError::NoObject);
    }
    ensure_bpf_file_system(bpf_root)?;
    let pins = maps::folder(bpf_root);
    make_folder(&pins)?;
    make_folder(&links::folder(bpf_root))?;
    discard_foreign_maps(&pins)?;
    let mut loader = EbpfLoader::new();
    for name in maps::NAMES {
        loader.map_pin_path(name, pins.join(name));
    }
    let level = if tracing::enabled!(tracing::Level::DEBUG) {
        aya_log::Level::Debug
    } else {
        aya_log::Level::Warn
    } as u8;
    loader.override_global(aya_log::LEVEL, &level, false);
    let mut ebpf = loader.load(&OBJECT.0).map_err(Box::new)?;
    for (name, program) in ebpf.programs_mut() {
        let loaded = match program {
            Program::SchedClassifier(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            _ => continue,
        };
        loaded.map_err(|source| DataplaneError::Program {
            name: name.to_owned(),
            source: Box::new(source),
        })?;
    }
    let maps = maps::Maps::of(&mut ebpf)?;
    Ok((Programs { ebpf }, maps))
}

impl Programs {
    /// The whole loaded object, for the logger and for test runs.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    fn descriptor(&self, name: &'static str) -> Result<BorrowedFd<'_>, DataplaneError> {
        let fd = match self.ebpf.program(name) {
            Some(Program::SchedClassifier(program)) => SchedClassifier::fd(program),
            Some(Program::CgroupSockAddr(program)) => CgroupSockAddr::fd(program),
            _ => return Err(DataplaneError::Missing(name)),
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

    /// Attaches the uplink's programs, and removes those of an uplink of another name.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_uplink(
        &mut self,
        bpf_root: &Path,
        interface: &str,
        ifindex: u32,
    ) -> Result<(), DataplaneError> {
        let folder = links::folder(bpf_root);
        let keep = [
            format!("uplink_ingress_{interface}"),
            format!("uplink_egress_{interface}"),
        ];
        for name in pins(&folder, "uplink_")? {
            if !keep.contains(&name) {
                links::remove(&folder.join(name))?;
            }
        }
        let [ingress, egress] = keep;
        self.attach_tc(
            &folder.join(ingress),
            interface,
            ifindex,
            "uplink_ingress",
            AttachType::TcxIngress,
        )?;
        self.attach_tc(
            &folder.join(egress),
            interface,
            ifindex,
            "uplink_egress",
            AttachType::TcxEgress,
        )
    }

    /// Attaches the pods' program to the node's side of a pod's veth pair.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_pod(
        &mut self,
        bpf_root: &Path,
        interface: &str,
        ifindex: u32,
    ) -> Result<(), DataplaneError> {
        let pin = pod_pin(bpf_root, interface);
        self.attach_tc(&pin, interface, ifindex, "pod_ingress", AttachType::TcxIngress)
    }

    fn attach_tc(
        &mut self,
        pin: &Path,
        interface: &str,
        ifindex: u32,
        name: &'static str,
        attach_type: AttachType,
    ) -> Result<(), DataplaneError> {
        if has_tcx() {
            return links::attach(
                pin,
                Target::Interface(ifindex),
                attach_type,
                self.descriptor(name)?,
            );
        }
        self.attach_clsact(interface, name, attach_type)
    }

    /// The way before tcx: a filter on the clsact queueing discipline. It lives as long as the interface.
    fn attach_clsact(
        &mut self,
        interface: &str,
        name: &'static str,
        attach_type: AttachType,
    ) -> Result<(), DataplaneError> {
        let failed = |source| DataplaneError::Program {
            name: name.to_owned(),
            source: Box::new(source),
        };
        let direction = if attach_type == AttachType::TcxEgress {
            TcAttachType::Egress
        } else {
            TcAttachType::Ingress
        };
        // Fails when it is there already, which is as good.
        let _ = tc::qdisc_add_clsact(interface);
        // The old filter goes first: the kernel gives each new one a handle of its own.
        let _ = tc::qdisc_detach_program(interface, direction, name);
        let Some(Program::SchedClassifier(program)) = self.ebpf.program_mut(name) else {
            return Err(DataplaneError::Missing(name));
        };
        let options = tc::TcAttachOptions::Netlink(tc::NlOptions::default());
        let link = program
            .attach_with_options(interface, direction, options)
            .map_err(failed)?;
        // Dropping the link would remove the filter, which must outlive this process.
        std::mem::forget(program.take_link(link).map_err(failed)?);
        Ok(())
    }
}

/// Whether the kernel has tcx links.
fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
}

/// The pin of a pod's link.
#[must_use]
pub fn pod_pin(bpf_root: &Path, interface: &str) -> PathBuf {
    links::folder(bpf_root).join(format!("pod_{interface}"))
}

/// Names of the pins in `folder` that start with `prefix`.
///
/// # Errors
/// When the folder cannot be read.
pub fn pins(folder: &Path, prefix: &str) -> Result<Vec<String>, DataplaneError> {
    let failed = |source| DataplaneError::File {
        action: "list",
        path: folder.to_owned(),
        source,
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string()
            && name.starts_with(prefix)
        {
            names.push(name);
        }
    }
    Ok(names)
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

/// Removes pinned maps that another ABI wrote, so that loading makes new ones. Programs still attached keep the old
/// maps until their links are swapped.
fn discard_foreign_maps(pins: &Path) -> Result<(), DataplaneError> {
    let config = pins.join(CONFIG_MAP);
    if !config.exists() {
        return Ok(());
    }
    let version = MapData::from_pin(&config).ok().filter(|data| {
        data.info()
            .is_ok_and(|info| info.value_size() as usize == size_of::<Config>())
    });
    let version = version
        .and_then(|data| Map::from_map_data(data).ok())
        .and_then(|map| Array::<MapData, Config>::try_from(map).ok())
        .and_then(|array| array.get(&0, 0).ok())
        .map(|config| config.abi_version);
    // Zero is a map that was made and not yet written.
    if matches!(version, Some(0 | ABI_VERSION)) {
        return Ok(());
    }
    tracing::warn!(
        found = ?version, ours = ABI_VERSION,
        "the pinned maps have another layout: building new ones, connections through translated addresses are lost"
    );
    for name in maps::NAMES {
        links::remove(&pins.join(name))?;
    }
    Ok(())
}
