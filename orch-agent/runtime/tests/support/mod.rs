//! A containerd of the test's own, with an image made from the machine's static busybox.
#![allow(dead_code, reason = "each test file uses its own part")]
#![expect(
    clippy::unwrap_used,
    reason = "a test's support may panic like the test itself"
)]

pub mod registry;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use orch_runtime::{ContainerSpec, ContainerState, ContainerStatus, Runtime, RuntimeConfig};
use sha2::{Digest, Sha256};

pub const IMAGE: &str = "web:1";
const PATIENCE: Duration = Duration::from_secs(30);

/// One node: containerd, directories and cgroups, all removed at the end.
pub struct Node {
    pub dir: PathBuf,
    pub name: String,
    containerd: Child,
}

impl Node {
    pub async fn start() -> (Self, Arc<Runtime>) {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "ort-{}-{}",
            std::process::id(),
            COUNTER.fetch_add(1, Ordering::SeqCst)
        );
        let dir = Path::new("/tmp").join(&name);
        fs::create_dir_all(&dir).unwrap();
        let containerd = start_containerd(&dir);
        let node = Self {
            dir,
            name,
            containerd,
        };
        let runtime = node.connect().await;
        import_image(&node.dir);
        (node, runtime)
    }

    pub fn config(&self) -> RuntimeConfig {
        RuntimeConfig {
            cgroup_root: format!("/{}", self.name),
            ..RuntimeConfig::new(
                self.dir.join("c.sock"),
                self.dir.join("run"),
                env!("CARGO_BIN_EXE_orch-logger"),
            )
        }
    }

    /// Connects as soon as containerd answers.
    pub async fn connect(&self) -> Arc<Runtime> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match Runtime::connect(self.config()).await {
                Ok(runtime) => return runtime,
                Err(error) if tokio::time::Instant::now() > deadline => panic!("{error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    pub fn restart_containerd(&mut self) {
        self.containerd.kill().unwrap();
        self.containerd.wait().unwrap();
        self.containerd = start_containerd(&self.dir);
    }

    /// A container that runs a shell script.
    pub fn script(&self, id: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            id: format!("{}-{id}", self.name),
            pod_uid: "pod".to_owned(),
            image: IMAGE.to_owned(),
            command: Some(vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()]),
            hostname: "pod-host".to_owned(),
            cgroup_parent: "kubepods/podtest".to_owned(),
            log_path: self.dir.join(format!("logs/{id}/0.log")),
            labels: BTreeMap::from([("who".to_owned(), id.to_owned())]),
            ..ContainerSpec::default()
        }
    }

    /// The log of a container without times.
    pub fn log(&self, spec: &ContainerSpec) -> Vec<String> {
        let text = fs::read_to_string(&spec.log_path).unwrap_or_default();
        text.lines()
            .map(|line| line.split_once(' ').unwrap().1.to_owned())
            .collect()
    }

    /// The log once it has so many lines.
    pub async fn log_of(&self, spec: &ContainerSpec, lines: usize) -> Vec<String> {
        for _ in 0..300 {
            let log = self.log(spec);
            if log.len() >= lines {
                return log;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("only {:?}", self.log(spec));
    }
}

/// Runs a container to its end.
pub async fn run(runtime: &Arc<Runtime>, spec: &ContainerSpec) -> ContainerStatus {
    runtime.create(spec).await.unwrap();
    runtime.start(&spec.id).await.unwrap();
    exited(runtime, &spec.id).await
}

/// Waits for a container's end by asking.
pub async fn exited(runtime: &Runtime, id: &str) -> ContainerStatus {
    for _ in 0..600 {
        let status = runtime
            .container(id)
            .await
            .unwrap()
            .expect("the container is there");
        if status.state == ContainerState::Exited {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("container {id} does not end");
}

impl Drop for Node {
    fn drop(&mut self) {
        // What a failed test has left; a test that passed has removed its containers itself.
        let _ = self.containerd.kill();
        let _ = self.containerd.wait();
        let marker = self.dir.join("c.sock");
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = process.file_name().to_string_lossy().parse::<i32>() else {
                continue;
            };
            let cmdline = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let ours = String::from_utf8_lossy(&cmdline).contains(marker.to_str().unwrap());
            let cgroups = fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
            let needle = format!(":/{}/", self.name);
            if ours || cgroups.contains(&needle) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            }
        }
        std::thread::sleep(Duration::from_millis(100));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        for mount in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if Path::new(mount).starts_with(&self.dir) {
                let _ = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH);
            }
        }
        for cgroup in self.cgroup_dirs() {
            remove_tree(&cgroup);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Node {
    /// Our root in every hierarchy, where it exists.
    pub fn cgroup_dirs(&self) -> Vec<PathBuf> {
        let top = Path::new("/sys/fs/cgroup");
        let mut dirs: Vec<PathBuf> = fs::read_dir(top).unwrap().flatten().map(|e| e.path()).collect();
        dirs.push(top.to_owned());
        dirs.into_iter()
            .map(|dir| dir.join(&self.name))
            .filter(|dir| dir.exists())
            .collect()
    }

    /// Mounts below our directory.
    pub fn mounts(&self) -> Vec<String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        points
            .filter(|m| Path::new(m).starts_with(&self.dir))
            .map(str::to_owned)
            .collect()
    }
}

fn remove_tree(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

fn start_containerd(dir: &Path) -> Child {
    let d = dir.display();
    let config = format!(
        "version = 2\nroot = \"{d}/root\"\nstate = \"{d}/state\"\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.snapshotter.v1.btrfs\", \
         \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.devmapper\", \
         \"io.containerd.snapshotter.v1.aufs\", \"io.containerd.internal.v1.tracing\"]\n\
         [grpc]\naddress = \"{d}/c.sock\"\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{d}/opt\"\n"
    );
    fs::write(dir.join("config.toml"), config).unwrap();
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("containerd.log"))
        .unwrap();
    Command::new("containerd")
        .arg("--config")
        .arg(dir.join("config.toml"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("containerd is installed")
}

/// The layers of the test image, lowest first, as uncompressed archives: programs, then accounts.
pub fn layers(dir: &Path) -> [Vec<u8>; 2] {
    let root = dir.join("rootfs");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    let programs = "sh cat echo sleep id stty head tail tr grep ls hostname touch unshare true false env mount wc dd kill test";
    for program in programs.split(' ') {
        symlink("busybox", root.join("bin").join(program)).unwrap();
    }
    let programs = tar(&root);
    fs::remove_dir_all(&root).unwrap();
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::create_dir_all(root.join("tmp")).unwrap();
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/:/bin/sh\n",
    )
    .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nweb:x:102:\nlogs:x:104:web\n").unwrap();
    let accounts = tar(&root);
    fs::remove_dir_all(&root).unwrap();
    [programs, accounts]
}

/// The image's configuration.
pub fn image_config(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    serde_json::to_vec(&serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {
            "Env": ["PATH=/bin", "FROM_IMAGE=yes"],
            "Cmd": ["sh", "-c", "echo default"],
            "WorkingDir": "/tmp",
            "StopSignal": "SIGINT",
            "ExposedPorts": {"80/tcp": {}},
        },
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }))
    .unwrap()
}

pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

fn tar(root: &Path) -> Vec<u8> {
    let output = Command::new("tar")
        .arg("-C")
        .arg(root)
        .args([
            "--owner=0",
            "--group=0",
            "--mtime=@0",
            "--sort=name",
            "-cf",
            "-",
            ".",
        ])
        .output();
    let output = output.unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// Imports the image as an OCI archive, as `cargo xtask load-image` does.
fn import_image(dir: &Path) {
    let layout = dir.join("layout");
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let put = |bytes: &[u8], media_type: &str| {
        let digest = digest(bytes);
        fs::write(layout.join("blobs").join(digest.replace(':', "/")), bytes).unwrap();
        serde_json::json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    };
    let layers = layers(dir);
    let config = put(&image_config(&layers), "application/vnd.oci.image.config.v1+json");
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| put(layer, "application/vnd.oci.image.layer.v1.tar"))
        .collect();
    let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers});
    let mut manifest = put(
        &serde_json::to_vec(&manifest).unwrap(),
        "application/vnd.oci.image.manifest.v1+json",
    );
    manifest["annotations"] = serde_json::json!({"io.containerd.image.name": "docker.io/library/web:1"});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let archive = dir.join("image.tar");
    fs::write(&archive, tar(&layout)).unwrap();
    let status = Command::new("ctr")
        .arg("-a")
        .arg(dir.join("c.sock"))
        .args(["-n", "orch", "images", "import", "--no-unpack"])
        .arg(&archive)
        .output()
        .unwrap();
    if !status.status.success() {
        // Older versions always unpack.
        let status = Command::new("ctr")
            .arg("-a")
            .arg(dir.join("c.sock"))
            .args(["-n", "orch", "images", "import"])
            .arg(&archive)
            .output()
            .unwrap();
        assert!(
            status.status.success(),
            "{}",
            String::from_utf8_lossy(&status.stderr)
        );
    }
    fs::remove_dir_all(layout).unwrap();
    fs::remove_file(archive).unwrap();
}
