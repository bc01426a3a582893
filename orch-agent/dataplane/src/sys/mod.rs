//! The one place with `unsafe`: BPF links, which aya can make but not swap at a cgroup, and entering a namespace.

pub mod icmp;
pub mod map;
pub mod memory;
pub mod packet;

use std::{
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    time::Duration,
};

use aya::maps::MapData;
use nix::{
    sched::{CloneFlags, setns},
    time::{ClockId, clock_gettime},
};
use tokio::io::{Interest, unix::AsyncFd};

// Commands of bpf(2) and attach types, from linux/bpf.h.
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// From asm-generic/socket.h.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The time of `CLOCK_MONOTONIC`, which is the programs'.
///
/// # Errors
/// The kernel's.
pub fn monotonic() -> io::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC)?.into())
}

/// Where a program can be attached, with the kernel's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum AttachType {
    /// `BPF_CGROUP_INET4_CONNECT`.
    Connect4 = 10,
    /// `BPF_CGROUP_INET6_CONNECT`.
    Connect6 = 11,
    /// `BPF_CGROUP_UDP4_SENDMSG`.
    Sendmsg4 = 14,
    /// `BPF_CGROUP_UDP6_SENDMSG`.
    Sendmsg6 = 15,
    /// `BPF_CGROUP_UDP4_RECVMSG`.
    Recvmsg4 = 19,
    /// `BPF_CGROUP_UDP6_RECVMSG`.
    Recvmsg6 = 20,
    /// `BPF_CGROUP_INET4_GETPEERNAME`.
    Getpeername4 = 29,
    /// `BPF_CGROUP_INET6_GETPEERNAME`.
    Getpeername6 = 30,
    /// `BPF_XDP`.
    Xdp = 37,
    /// `BPF_TCX_INGRESS`, Linux 6.6.
    TcxIngress = 46,
    /// `BPF_TCX_EGRESS`, Linux 6.6.
    TcxEgress = 47,
}

/// What a program is attached to.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// A cgroup v2 directory.
    Cgroup(BorrowedFd<'a>),
    /// An interface of the calling thread's network namespace.
    Interface(u32),
    /// The driver of such an interface.
    Driver(u32),
    /// The kernel's generic XDP hook of such an interface.
    Generic(u32),
}

// Flags of an XDP link, from linux/if_link.h.
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// The largest attribute used here: `bpf_attr.link_create` for tcx.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    _pad: u32,
    expected_revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: `attributes` is a `repr(C)` prefix of `union bpf_attr` for the command, valid for its whole size, and
    // every pointer in it is to memory that outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    i32::try_from(result)
        .ok()
        .filter(|fd| *fd >= 0)
        .ok_or_else(io::Error::last_os_error)
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just returned this descriptor to us, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Attaches a program by a link that lasts as long as the descriptor or a pin.
///
/// *Kernel*: cgroups 5.7, XDP 5.9, tcx 6.6.
///
/// # Errors
/// The kernel's; `EINVAL` where it does not know the attach type.
pub fn link_create(
    program: BorrowedFd<'_>,
    target: Target<'_>,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    let (target, flags) = match target {
        Target::Cgroup(fd) => (number(fd), 0),
        Target::Interface(index) => (index, 0),
        Target::Driver(index) => (index, XDP_FLAGS_DRV_MODE),
        Target::Generic(index) => (index, XDP_FLAGS_SKB_MODE),
    };
    let mut attributes = LinkCreate {
        prog_fd: number(program),
        target,
        attach_type: attach_type as u32,
        flags,
        ..LinkCreate::default()
    };
    bpf(BPF_LINK_CREATE, &mut attributes).map(owned)
}

/// Replaces the link's program at one instant: every packet meets the old one or the new one.
///
/// # Errors
/// `ENOLINK` when what the link was attached to is gone.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = LinkUpdate {
        link_fd: number(link),
        new_prog_fd: number(program),
        ..LinkUpdate::default()
    };
    bpf(BPF_LINK_UPDATE, &mut attributes).map(drop)
}

/// Takes a link off what it is attached to, before it returns; what holds the link then holds nothing.
///
/// *Kernel*: 5.9 for cgroups and XDP, 6.6 for tcx.
///
/// # Errors
/// The kernel's, when what the link was attached to is gone.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = number(link);
    bpf(BPF_LINK_DETACH, &mut attributes).map(drop)
}

/// Gives a BPF object a name on a BPF file system, where it outlives the process.
///
/// # Errors
/// The kernel's, `EEXIST` among them.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Object {
        pathname: name.as_ptr() as u64,
        bpf_fd: number(object),
        ..Object::default()
    };
    bpf(BPF_OBJ_PIN, &mut attributes).map(drop)
}

/// Opens a pinned BPF object.
///
/// # Errors
/// `ENOENT` when there is none.
pub fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Object {
        pathname: name.as_ptr() as u64,
        ..Object::default()
    };
    bpf(BPF_OBJ_GET, &mut attributes).map(owned)
}

/// The kernel's number for the calling thread's network namespace.
///
/// *Kernel*: 5.14.
///
/// # Errors
/// The kernel's.
pub fn namespace_cookie() -> io::Result<u64> {
    socket_namespace(&std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?)
}

/// The kernel's number for a socket's network namespace.
///
/// *Kernel*: 5.14.
///
/// # Errors
/// The kernel's.
pub fn socket_namespace(socket: &impl AsRawFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the value and its length are valid for the call, which writes no more than the length says.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `bpf_attr.batch`.
#[repr(C)]
#[derive(Default)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Reads a hash map in batches: one system call for many entries.
///
/// *Kernel*: 5.6.
pub struct BatchReader<K, V> {
    map: MapData,
    keys: Vec<K>,
    values: Vec<V>,
    /// Where the kernel wants to go on; `None` before the first batch.
    position: Option<u32>,
    finished: bool,
}

impl<K: aya::Pod + Default, V: aya::Pod + Default> BatchReader<K, V> {
    /// A reader from the start of the map, `size` entries at a time. A bucket of the table with more entries than that
    /// ends the reading with an error.
    ///
    /// # Errors
    /// When the map's keys or values are not these types.
    pub fn new(map: MapData, size: usize) -> io::Result<Self> {
        let info = map.info().map_err(io::Error::other)?;
        if info.key_size() as usize != size_of::<K>() || info.value_size() as usize != size_of::<V>() {
            return Err(io::Error::other("the map has other keys or values"));
        }
        Ok(Self {
            map,
            keys: vec![K::default(); size],
            values: vec![V::default(); size],
            position: None,
            finished: false,
        })
    }

    /// The next entries; `None` when there are no more. Entries that come and go meanwhile may be missed or not.
    ///
    /// # Errors
    /// The kernel's.
    pub fn next(&mut self) -> io::Result<Option<impl Iterator<Item = (&K, &V)>>> {
        if self.finished {
            return Ok(None);
        }
        let before = self.position.unwrap_or_default();
        let mut after = 0_u32;
        let mut attributes = Batch {
            in_batch: self.position.map_or(0, |_| &raw const before as u64),
            out_batch: &raw mut after as u64,
            keys: self.keys.as_mut_ptr() as u64,
            values: self.values.as_mut_ptr() as u64,
            // The kernel writes no more than this, and the buffers hold as many.
            count: u32::try_from(self.keys.len()).unwrap_or(u32::MAX),
            map_fd: number(self.map.fd().as_fd()),
            ..Batch::default()
        };
        match bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes) {
            Ok(_) => {}
            // The last entries; there may be some.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => self.finished = true,
            Err(error) => return Err(error),
        }
        self.position = Some(after);
        let length = attributes.count as usize;
        Ok(Some(self.keys.iter().zip(&self.values).take(length)))
    }
}

/// Runs `work` on a thread of its own that stands in the network namespace, and waits for it.
///
/// # Errors
/// When the thread cannot be started or may not enter.
pub fn in_namespace<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, || {
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            })?
            .join()
            .map_err(|_| io::Error::other("the thread in the network namespace panicked"))?
    })
}

/// Reads a value of the ABI out of a record's bytes; `None` when there are too few.
#[must_use]
pub fn read_as<T: aya::Pod>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: the bytes are there, any bytes are a valid `Pod`, and the read needs no alignment.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Waits for a ring buffer's descriptor in the async runtime.
///
/// # Errors
/// When the runtime cannot watch it.
pub fn readable<T: AsFd + AsRawFd>(buffer: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: a ring buffer keeps one descriptor open from its making to its drop, and `as_raw_fd` names that one.
    unsafe { AsyncFd::register_with_interest(buffer, Interest::READABLE) }.map_err(io::Error::from)
}
