//! The data plane's test binaries, and the root file system that they run on.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{cpio::Archive, package::Kernel};
use crate::run;

/// A test binary.
pub struct Test {
    /// The name of its target.
    pub name: String,
    /// Where cargo has put it.
    pub path: PathBuf,
}

/// What the tests call besides busybox's own commands.
const PROGRAMS: &[&str] = &["ip", "tc", "bridge", "nsenter", "bpftool", "ethtool"];
/// Where programs may stand.
const FOLDERS: &[&str] = &["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Builds the integration tests of orch-dataplane with these names, or all.
///
/// # Errors
/// When they do not compile, or there is none of a name.
pub fn build(names: &[String]) -> Result<Vec<Test>> {
    let mut cargo = run::cargo(["test", "--quiet", "-p", "orch-dataplane", "--no-run"]);
    cargo
        .args(["--message-format=json-render-diagnostics"])
        .current_dir(run::root());
    if names.is_empty() {
        cargo.args(["--test", "*"]);
    }
    for name in names {
        cargo.args(["--test", name]);
    }
    let output = cargo
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("failed to start cargo")?;
    if !output.status.success() {
        bail!("the data plane's tests do not compile (above)");
    }
    let mut tests: Vec<Test> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| test_of(&serde_json::from_str(line).ok()?))
        .collect();
    // Nothing else works where the programs do not load.
    tests.sort_by_key(|test| (test.name != "verifier", test.name.clone()));
    if tests.is_empty() {
        bail!("cargo built no test of orch-dataplane");
    }
    Ok(tests)
}

/// cargo's `compiler-artifact` message of an integration test.
fn test_of(message: &Value) -> Option<Test> {
    let target = message.get("target")?;
    let is_test = target.get("kind")?.as_array()?.iter().any(|kind| kind == "test");
    let path = message.get("executable")?.as_str()?;
    is_test.then_some(())?;
    Some(Test {
        name: target.get("name")?.as_str()?.to_owned(),
        path: path.into(),
    })
}

/// Writes the initramfs: tests, what they call, the libraries of both, the kernel's modules and an init.
///
/// # Errors
/// When a program is missing or the disk refuses.
pub fn pack(tests: &[Test], kernel: &Kernel, patience: u64, archive: &Path) -> Result<()> {
    let mut root = Archive::create(archive)?;
    for folder in [
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "var",
        "etc/iproute2",
        "usr/sbin",
        "usr/bin",
    ] {
        root.folder(folder)?;
    }
    // Before devtmpfs is mounted, init speaks through this one.
    root.device("dev/console", 5, 1)?;
    root.file("init", 0o755, init(tests, patience).as_bytes())?;
    root.copy(&find("busybox")?, "bin/busybox")?;
    root.link("sbin", "usr/sbin")?;
    let mut libraries = BTreeSet::new();
    for program in PROGRAMS {
        let path = find(program)?;
        root.copy(&path, &format!("usr/sbin/{program}"))?;
        libraries.extend(needed_libraries(&path)?);
    }
    let folder = archive.with_extension("stripped");
    std::fs::create_dir_all(&folder).with_context(|| format!("failed to make {}", folder.display()))?;
    for test in tests {
        let small = folder.join(&test.name);
        // Debug information is most of a binary, and the archive stands in the guest's memory.
        run::output(
            run::command("strip", ["--strip-debug", "-o"])
                .arg(&small)
                .arg(&test.path),
        )?;
        root.copy(&small, &format!("tests/{}", test.name))?;
        libraries.extend(needed_libraries(&test.path)?);
    }
    std::fs::remove_dir_all(&folder).with_context(|| format!("failed to remove {}", folder.display()))?;
    for library in &libraries {
        root.copy(library, &library.to_string_lossy())?;
    }
    for module in &kernel.modules {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        root.copy(module, &format!("modules/{name}"))?;
    }
    root.finish()
}

fn find(program: &str) -> Result<PathBuf> {
    FOLDERS
        .iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.is_file())
        .with_context(|| format!("{program} is not on this machine"))
}

/// The shared libraries, and the loader, that a program names: absolute paths in what ldd prints.
fn needed_libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let text = run::output(run::command("ldd", [] as [&str; 0]).arg(program))?;
    Ok(text
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect())
}

/// The first process: mounts what a host has (cgroup v2 only), inserts the modules, runs each test, powers off.
///
/// Lines that begin with `ORCH ` are for [`super::machine`].
fn init(tests: &[Test], patience: u64) -> String {
    let mut script = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/ TMPDIR=/tmp
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t securityfs security /sys/kernel/security
mount -t debugfs debug /sys/kernel/debug
mkdir -p /run/netns /dev/shm
exec </dev/null >/dev/ttyS1 2>&1
stty -F /dev/ttyS1 raw
echo \"ORCH booted $(uname -r)\"
[ -r /sys/kernel/btf/vmlinux ] || echo 'ORCH problem the kernel has no BTF'
for module in /modules/*; do
    insmod $module || echo \"ORCH problem $module cannot be inserted\"
done
ip link set lo up
"
    .to_owned();
    for Test { name, .. } in tests {
        // Only this one's own words are of interest when all is well.
        let loud = if name == "verifier" { " --nocapture" } else { "" };
        script.push_str(&format!(
            "echo 'ORCH begin {name}'\ntimeout -s KILL {patience} /tests/{name}{loud}\necho \"ORCH end {name} $?\"\n"
        ));
    }
    script.push_str("echo 'ORCH finished'\npoweroff -f\n");
    script
}
