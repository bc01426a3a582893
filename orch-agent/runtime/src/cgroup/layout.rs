//! Where the cgroup hierarchies are mounted, and a path's directories in them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{remove_tree, write_value};
use crate::RuntimeError;

/// The hierarchies of this machine and the root below which everything of ours is.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    /// Relative to each hierarchy's mount, without slashes at its ends; may be empty.
    pub(crate) root: String,
    pub(crate) layout: Layout,
}

/// Which of the kernel's layouts a machine has.
#[derive(Clone, Debug)]
pub(crate) enum Layout {
    /// One cgroup2 tree with all controllers.
    V2 {
        /// Its mount point.
        mount: PathBuf,
    },
    /// A tree per controller, perhaps with a cgroup2 tree without controllers beside them.
    V1 {
        /// Mount point by controller (`memory`, `cpu`, …; `name=systemd` for named ones).
        controllers: BTreeMap<String, PathBuf>,
        /// The cgroup2 tree of a hybrid machine.
        unified: Option<PathBuf>,
    },
}

/// The controllers that are needed in pods' cgroups on v2.
const V2_CONTROLLERS: [&str; 5] = ["cpu", "memory", "pids", "cpuset", "io"];

impl Cgroups {
    pub(crate) fn detect(root: &str) -> Result<Self, RuntimeError> {
        let path = Path::new("/proc/self/mountinfo");
        let mountinfo = fs::read_to_string(path).map_err(RuntimeError::file("read", path))?;
        let layout = layout_from(&mountinfo).ok_or_else(|| {
            RuntimeError::system("find a cgroup hierarchy")(std::io::Error::from(
                std::io::ErrorKind::NotFound,
            ))
        })?;
        let root = match root.trim_matches('/') {
            "" => String::new(),
            root => super::checked(root)?.to_owned(),
        };
        Ok(Self { root, layout })
    }

    pub(crate) fn is_v2(&self) -> bool {
        matches!(self.layout, Layout::V2 { .. })
    }

    /// The path below a hierarchy's mount, absolute, as runc wants it.
    pub(crate) fn absolute(&self, parent: &str, leaf: &str) -> String {
        let mut path = String::new();
        for part in [self.root.as_str(), parent.trim_matches('/'), leaf] {
            if !part.is_empty() {
                path.push('/');
                path.push_str(part);
            }
        }
        path
    }

    /// The directory of `path` (relative to the root) for a controller; on v2 the same for all.
    pub(crate) fn controller(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let mount = match &self.layout {
            Layout::V2 { mount } => mount,
            Layout::V1 { controllers, .. } => controllers.get(controller)?,
        };
        Some(mount.join(&self.root).join(path))
    }

    /// The directory of `path` in the cgroup2 tree, if the machine has one.
    pub(crate) fn unified(&self, path: &str) -> Option<PathBuf> {
        let mount = match &self.layout {
            Layout::V2 { mount } => mount,
            Layout::V1 { unified, .. } => unified.as_ref()?,
        };
        Some(mount.join(&self.root).join(path))
    }

    /// Makes `path` wherever limits are set or sockets are looked for.
    pub(crate) fn make(&self, path: &str) -> Result<(), RuntimeError> {
        let make = |dir: &Path| fs::create_dir_all(dir).map_err(RuntimeError::file("create", dir));
        match &self.layout {
            Layout::V2 { mount } => {
                make(&mount.join(&self.root).join(path))?;
                self.delegate(mount, path)
            }
            Layout::V1 { .. } => {
                let limited = ["cpu", "memory", "pids"]
                    .iter()
                    .filter_map(|c| self.controller(c, path));
                limited.chain(self.unified(path)).try_for_each(|dir| make(&dir))
            }
        }
    }

    /// Turns controllers on in `path` and all above it.
    fn delegate(&self, mount: &Path, path: &str) -> Result<(), RuntimeError> {
        let available = fs::read_to_string(mount.join("cgroup.controllers"))
            .map_err(RuntimeError::file("read", &mount.join("cgroup.controllers")))?;
        let wanted: Vec<String> = V2_CONTROLLERS
            .iter()
            .filter(|c| available.split_whitespace().any(|a| a == **c))
            .map(|c| format!("+{c}"))
            .collect();
        let wanted = wanted.join(" ");
        let mut dir = mount.to_owned();
        let below = Path::new(&self.root).join(path);
        for part in std::iter::once(Path::new("")).chain(below.iter().map(Path::new)) {
            dir.push(part);
            let file = dir.join("cgroup.subtree_control");
            match fs::write(&file, &wanted) {
                Ok(()) => {}
                // Only a cgroup without processes of its own may hand on controllers.
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) && dir != *mount => {
                    move_processes(&dir, &dir.join("system"))?;
                    write_value(&file, &wanted)?;
                }
                Err(e) => return Err(RuntimeError::file("turn on controllers in", &file)(e)),
            }
        }
        Ok(())
    }

    /// Removes `path` from all hierarchies; fine where it is not.
    pub(crate) fn remove(&self, path: &str) -> Result<(), RuntimeError> {
        match &self.layout {
            Layout::V2 { mount } => remove_tree(&mount.join(&self.root).join(path)),
            Layout::V1 { controllers, .. } => controllers
                .values()
                .map(|mount| mount.join(&self.root).join(path))
                .chain(self.unified(path))
                .try_for_each(|dir| remove_tree(&dir)),
        }
    }

    /// Puts a process below our part of the cgroup2 tree of a hybrid machine, unless the OCI runtime has
    /// done so: socket programs that are attached there must see it before its first socket.
    pub(crate) fn adopt(&self, pid: u32, path: &str) -> Result<(), RuntimeError> {
        let Layout::V1 {
            unified: Some(mount), ..
        } = &self.layout
        else {
            return Ok(());
        };
        let proc = PathBuf::from(format!("/proc/{pid}/cgroup"));
        let current = fs::read_to_string(&proc).map_err(RuntimeError::file("read", &proc))?;
        let wanted = self.absolute(path, "");
        let inside = current
            .lines()
            .filter_map(|line| line.strip_prefix("0::"))
            .any(|at| {
                at == wanted
                    || at
                        .strip_prefix(wanted.as_str())
                        .is_some_and(|rest| rest.starts_with('/'))
            });
        if inside {
            return Ok(());
        }
        let dir = mount.join(&self.root).join(path);
        fs::create_dir_all(&dir).map_err(RuntimeError::file("create", &dir))?;
        write_value(&dir.join("cgroup.procs"), &pid.to_string())
    }
}

fn move_processes(from: &Path, to: &Path) -> Result<(), RuntimeError> {
    fs::create_dir_all(to).map_err(RuntimeError::file("create", to))?;
    let procs = from.join("cgroup.procs");
    let pids = fs::read_to_string(&procs).map_err(RuntimeError::file("read", &procs))?;
    for pid in pids.lines() {
        // A process that has ended meanwhile needs no move.
        if let Err(e) = fs::write(to.join("cgroup.procs"), pid)
            && e.raw_os_error() != Some(libc::ESRCH)
        {
            return Err(RuntimeError::file("move processes to", to)(e));
        }
    }
    Ok(())
}

/// Reads the layout from proc_pid_mountinfo(5).
fn layout_from(mountinfo: &str) -> Option<Layout> {
    let mut controllers = BTreeMap::new();
    let mut cgroup2 = Vec::new();
    for line in mountinfo.lines() {
        let (Some(mount), Some((_, tail))) = (line.split(' ').nth(4), line.split_once(" - ")) else {
            continue;
        };
        let mut tail = tail.split(' ');
        match tail.next() {
            Some("cgroup2") => cgroup2.push(PathBuf::from(mount)),
            Some("cgroup") => {
                for option in tail.nth(1).unwrap_or_default().split(',') {
                    if !matches!(option, "rw" | "ro" | "xattr") {
                        controllers
                            .entry(option.to_owned())
                            .or_insert_with(|| PathBuf::from(mount));
                    }
                }
            }
            _ => {}
        }
    }
    // A machine may have the cgroup2 tree mounted twice; the one under /sys is everyone else's too.
    let unified = cgroup2
        .iter()
        .find(|m| m.starts_with("/sys/fs/cgroup"))
        .or(cgroup2.first())
        .cloned();
    match (
        controllers.contains_key("memory") || controllers.contains_key("cpu"),
        unified,
    ) {
        (true, unified) => Some(Layout::V1 { controllers, unified }),
        (false, Some(mount)) => Some(Layout::V2 { mount }),
        (false, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_told_apart() {
        let v2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert!(
            matches!(layout_from(v2), Some(Layout::V2 { mount }) if mount == Path::new("/sys/fs/cgroup"))
        );
        let hybrid = "31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let Some(Layout::V1 { controllers, unified }) = layout_from(hybrid) else {
            panic!("not v1")
        };
        assert_eq!(controllers["cpuacct"], Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(controllers["memory"], Path::new("/sys/fs/cgroup/memory"));
        assert_eq!(unified.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert!(layout_from("1 1 0:1 / / rw - ext4 /dev/vda rw\n").is_none());
    }

    #[test]
    fn paths_are_joined_for_runc() {
        let cgroups = Cgroups {
            root: "orch/n1".to_owned(),
            layout: Layout::V2 { mount: "/c".into() },
        };
        assert_eq!(
            cgroups.absolute("kubepods/pod1", "abc"),
            "/orch/n1/kubepods/pod1/abc"
        );
        assert_eq!(
            cgroups.controller("cpu", "a"),
            Some(PathBuf::from("/c/orch/n1/a"))
        );
    }
}
