//! What the machine is and uses, from `/proc`, `/etc` and statfs(2).

use std::{fs, path::Path};

/// What does not change while the agent runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// The firmware's UUID, or the machine id where there is none.
    pub system_uuid: String,
    /// Of this boot.
    pub boot_id: String,
    /// As `uname -r`.
    pub kernel: String,
    /// `PRETTY_NAME` of os-release.
    pub os_image: String,
    /// In Go's terms, as Kubernetes labels say it: `amd64`, `arm64`.
    pub architecture: &'static str,
    /// Logical CPUs.
    pub cpus: u64,
    /// RAM in bytes.
    pub memory: u64,
}

impl Machine {
    /// Reads them all; what cannot be read is empty.
    #[must_use]
    pub fn read() -> Self {
        let machine_id = line("/etc/machine-id");
        let uuid = line("/sys/class/dmi/id/product_uuid");
        Self {
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
            machine_id,
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            kernel: line("/proc/sys/kernel/osrelease"),
            os_image: os_image(&read("/etc/os-release")),
            architecture: architecture(),
            cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
            memory: meminfo(&read("/proc/meminfo"), "MemTotal"),
        }
    }
}

/// The size and free space of a file system in bytes, and its inodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes.
    pub total: u64,
    /// Bytes that an unprivileged process may still write.
    pub available: u64,
    /// Inodes; 0 where they are not counted.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
}

/// The space of the file system that holds `path`.
#[must_use]
pub fn space(path: &Path) -> Space {
    nix::sys::statvfs::statvfs(path).map_or_else(
        |_| Space::default(),
        |stat| Space {
            total: stat.blocks() * stat.fragment_size(),
            available: stat.blocks_available() * stat.fragment_size(),
            inodes: stat.files(),
            inodes_free: stat.files_available(),
        },
    )
}

/// What the whole machine uses.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct NodeUsage {
    /// CPU time of all processes since boot, in seconds.
    pub cpu_seconds: f64,
    /// Memory that cannot be reclaimed at once, in bytes.
    pub working_set_bytes: u64,
    /// Memory that new processes could get, in bytes.
    pub available_bytes: u64,
}

/// Reads the machine's usage.
#[must_use]
pub fn node_usage() -> NodeUsage {
    let memory = read("/proc/meminfo");
    let available = meminfo(&memory, "MemAvailable");
    NodeUsage {
        cpu_seconds: busy_ticks(&read("/proc/stat")) as f64 / TICKS,
        working_set_bytes: meminfo(&memory, "MemTotal").saturating_sub(available),
        available_bytes: available,
    }
}

/// What this process uses.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct OwnUsage {
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// CPU time in seconds.
    pub cpu_seconds: f64,
    /// Open file descriptors.
    pub open_files: usize,
}

/// Reads this process's usage.
#[must_use]
pub fn own_usage() -> OwnUsage {
    let stat = read("/proc/self/stat");
    // Fields are counted after the command's closing bracket, since it may hold spaces (proc(5): utime is field 14).
    let fields: Vec<u64> = stat
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    let ticks = fields.get(11).unwrap_or(&0) + fields.get(12).unwrap_or(&0);
    OwnUsage {
        resident_bytes: meminfo(&read("/proc/self/status"), "VmRSS"),
        cpu_seconds: ticks as f64 / TICKS,
        open_files: fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
    }
}

/// Processes and threads that the kernel allows and that exist.
#[must_use]
pub fn pids() -> (u64, u64) {
    let max = line("/proc/sys/kernel/pid_max").parse().unwrap_or(32_768);
    // The fourth field of loadavg is running/existing scheduling entities.
    let existing = line("/proc/loadavg")
        .split_whitespace()
        .nth(3)
        .and_then(|f| f.split_once('/')?.1.parse().ok());
    (max, existing.unwrap_or(0))
}

/// The machine's host name.
#[must_use]
pub fn hostname() -> String {
    line("/proc/sys/kernel/hostname")
}

/// `USER_HZ`: clock ticks in `/proc` are hundredths of a second on every architecture that orch runs on.
const TICKS: f64 = 100.0;

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn line(path: &str) -> String {
    read(path).trim().to_owned()
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A value of `/proc/meminfo` or `/proc/PID/status` in bytes; 0 when it is not there.
fn meminfo(text: &str, name: &str) -> u64 {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kilobytes = value
        .and_then(|v| v.trim().strip_suffix("kB"))
        .and_then(|v| v.trim().parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

fn os_image(text: &str) -> String {
    let pretty = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    pretty.unwrap_or("Linux").trim_matches('"').to_owned()
}

/// User, nice, system, irq, softirq and steal time of the first line of `/proc/stat`.
fn busy_ticks(text: &str) -> u64 {
    let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let fields: Vec<u64> = fields.map(|field| field.parse().unwrap_or(0)).collect();
    [0, 1, 2, 5, 6, 7].iter().filter_map(|i| fields.get(*i)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_formats_of_proc() {
        assert_eq!(
            meminfo("MemFree: 1 kB\nMemTotal:       16 kB\n", "MemTotal"),
            16 << 10
        );
        assert_eq!(meminfo("MemTotalX: 16 kB\n", "MemTotal"), 0);
        assert_eq!(busy_ticks("cpu  1 2 4 1000 1000 8 16 32 64 0\ncpu0 1"), 63);
        assert_eq!(
            os_image("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"),
            "Debian GNU/Linux 12"
        );
        assert_eq!(os_image(""), "Linux");
    }

    #[test]
    fn this_machine_has_facts() {
        let machine = Machine::read();
        assert!(machine.memory > 0 && machine.cpus > 0 && !machine.kernel.is_empty());
        assert!(space(Path::new("/")).total > 0);
        assert!(own_usage().resident_bytes > 0 && own_usage().open_files > 0);
        assert!(node_usage().cpu_seconds > 0.0);
        assert!(pids().0 > pids().1);
    }
}
