//! Making namespaces and holding them by bind mounts.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::statfs::{NSFS_MAGIC, statfs};

use crate::RuntimeError;

/// What to make, and where to bind it.
pub(crate) struct NewNamespaces<'a> {
    /// The directory for the files `net`, `ipc` and `uts`.
    pub(crate) dir: &'a Path,
    pub(crate) net: bool,
    pub(crate) ipc: bool,
    /// A UTS namespace with this host name.
    pub(crate) hostname: Option<&'a str>,
    /// Sysctls by file below /proc/sys.
    pub(crate) sysctls: &'a BTreeMap<String, String>,
}

/// Makes the namespaces. Blocks; the calling thread's own namespaces do not change.
pub(crate) fn make(new: &NewNamespaces<'_>) -> Result<(), RuntimeError> {
    // A thread of its own: unshare changes the thread for good, so it must end afterwards.
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("namespaces".to_owned())
            .spawn_scoped(scope, || make_in_this_thread(new))
            .map_err(RuntimeError::system("start a thread"))?
            .join()
            .unwrap_or_else(|_| {
                Err(RuntimeError::system("make namespaces")(io::Error::other(
                    "thread panicked",
                )))
            })
    })
}

fn make_in_this_thread(new: &NewNamespaces<'_>) -> Result<(), RuntimeError> {
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWNET, new.net);
    flags.set(CloneFlags::CLONE_NEWIPC, new.ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, new.hostname.is_some());
    unshare(flags).map_err(RuntimeError::system("make namespaces"))?;
    if new.net {
        set_loopback_up().map_err(RuntimeError::system("bring up lo"))?;
    }
    if let Some(name) = new.hostname {
        nix::unistd::sethostname(name).map_err(RuntimeError::system(format!("set the host name {name}")))?;
    }
    for (name, value) in new.sysctls {
        let path = Path::new("/proc/sys").join(name);
        fs::write(&path, value).map_err(RuntimeError::file("set sysctl", &path))?;
    }
    for (name, wanted) in [
        ("net", new.net),
        ("ipc", new.ipc),
        ("uts", new.hostname.is_some()),
    ] {
        if wanted {
            bind(name, &new.dir.join(name))?;
        }
    }
    Ok(())
}

fn bind(name: &str, target: &Path) -> Result<(), RuntimeError> {
    fs::File::create(target).map_err(RuntimeError::file("create", target))?;
    let source = format!("/proc/thread-self/ns/{name}");
    mount(
        Some(source.as_str()),
        target,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .map_err(RuntimeError::file("bind a namespace to", target))
}

/// Whether a namespace is bound to this file.
pub(crate) fn is_bound(path: &Path) -> bool {
    statfs(path).is_ok_and(|s| s.filesystem_type() == NSFS_MAGIC)
}

/// Unmounts whatever is mounted on `path`, however often; fine when nothing is.
pub(crate) fn unmount_all(path: &Path) -> Result<(), RuntimeError> {
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(nix::Error::EINVAL | nix::Error::ENOENT) => return Ok(()),
            Err(source) => return Err(RuntimeError::file("unmount", path)(source)),
        }
    }
}

/// Mounts a tmpfs for a pod's shared memory.
pub(crate) fn mount_shm(path: &Path) -> Result<(), RuntimeError> {
    mount(
        Some("shm"),
        path,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV,
        Some("mode=1777,size=65536k"),
    )
    .map_err(RuntimeError::file("mount a tmpfs on", path))
}

/// Brings up `lo` in the calling thread's network namespace (netdevice(7)).
fn set_loopback_up() -> io::Result<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: ifreq is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    // SAFETY: the kernel reads and writes one ifreq, which lives until the call returns.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: SIOCGIFFLAGS has filled the union's flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    // SAFETY: as for SIOCGIFFLAGS.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
