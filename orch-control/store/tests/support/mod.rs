//! The backends under test, each on a folder and a process of its own.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use orch_store::{Store, embedded::Embedded, etcd::Etcd};
use tempfile::TempDir;

/// A store and what keeps it alive.
pub struct Backend {
    pub name: &'static str,
    pub store: Arc<dyn Store>,
    _etcd: Option<EtcdServer>,
    _folder: TempDir,
}

/// Every backend, freshly made.
pub async fn all() -> Vec<Backend> {
    vec![embedded(), etcd().await]
}

pub fn embedded() -> Backend {
    let folder = TempDir::new().unwrap();
    let store = Embedded::open(&folder.path().join("store.redb")).unwrap();
    Backend {
        name: "embedded",
        store,
        _etcd: None,
        _folder: folder,
    }
}

pub async fn etcd() -> Backend {
    // Somebody else may have taken a port before etcd does.
    for _ in 0..5 {
        let folder = TempDir::new().unwrap();
        let mut server = EtcdServer::start(&folder);
        let endpoint = server.endpoint.clone();
        for _ in 0..200 {
            if server.child.try_wait().unwrap().is_some() {
                break;
            }
            if let Ok(store) = Etcd::connect(std::slice::from_ref(&endpoint)).await {
                return Backend {
                    name: "etcd",
                    store,
                    _etcd: Some(server),
                    _folder: folder,
                };
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    panic!("etcd did not come up");
}

/// A real etcd; killed when dropped.
struct EtcdServer {
    child: Child,
    endpoint: String,
}

impl EtcdServer {
    fn start(folder: &TempDir) -> Self {
        let [endpoint, peer] = free_ports().map(|port| format!("http://127.0.0.1:{port}"));
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(folder.path().join("etcd"))
            .args([
                "--listen-client-urls",
                &endpoint,
                "--advertise-client-urls",
                &endpoint,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd is installed: `cargo xtask test` does that");
        Self { child, endpoint }
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Two ports that nobody has; both are held until the second is known, or it might be the first again.
fn free_ports() -> [u16; 2] {
    let held = [0; 2].map(|any| TcpListener::bind(("127.0.0.1", any)).unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}
