//! A docker-registry of the test's own.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use oci_client::client::{ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::secrets;

use super::{image_config, layers};

/// A bcrypt hash of `U*U`, from the test vectors of crypt_blowfish.
const HASH: &str = "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW";
pub const PASSWORD: &str = "U*U";

/// A registry on a loopback port.
pub struct Registry {
    process: Child,
    pub address: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    /// Starts Debian's docker-registry on a free loopback port.
    pub async fn start(dir: &Path, name: &str, with_password: bool) -> Self {
        let root = dir.join(name);
        fs::create_dir_all(&root).unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let address = format!("127.0.0.1:{port}");
        let mut config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {address}}}\n",
            root.join("data").display()
        );
        if with_password {
            fs::write(root.join("htpasswd"), format!("tester:{HASH}\n")).unwrap();
            config += &format!(
                "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                root.join("htpasswd").display()
            );
        }
        fs::write(root.join("config.yml"), config).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(root.join("config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let registry = Self { process, address };
        for _ in 0..200 {
            if std::net::TcpStream::connect(&registry.address).is_ok() {
                return registry;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the registry does not answer");
    }

    /// Pushes the test image as `name:1`, and as `name:multi` in an index with another platform's.
    pub async fn push(&self, dir: &Path, name: &str, auth: &secrets::RegistryAuth) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = ClientConfig {
            protocol: ClientProtocol::Http,
            ..ClientConfig::default()
        };
        let client = oci_client::Client::try_from(config).unwrap();
        let reference = |tag: &str| {
            oci_client::Reference::with_tag(self.address.clone(), name.to_owned(), tag.to_owned())
        };
        let layers = layers(dir);
        let image_config = image_config(&layers);
        let layers: Vec<ImageLayer> = layers
            .into_iter()
            .map(|layer| ImageLayer::new(layer, "application/vnd.oci.image.layer.v1.tar".to_owned(), None))
            .collect();
        let config = Config::new(
            image_config,
            "application/vnd.oci.image.config.v1+json".to_owned(),
            None,
        );
        client
            .push(&reference("1"), &layers, config, auth, None)
            .await
            .unwrap();
        let (manifest, manifest_digest) = client
            .pull_manifest_raw(
                &reference("1"),
                auth,
                &["application/vnd.oci.image.manifest.v1+json"],
            )
            .await
            .unwrap();
        let ours = if cfg!(target_arch = "aarch64") {
            "arm64"
        } else {
            "amd64"
        };
        let entry = |architecture: &str| {
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": manifest_digest,
                "size": manifest.len(),
                "platform": {"os": "linux", "architecture": architecture},
            })
        };
        for (tag, architectures) in [
            ("multi", vec!["s390x", ours]),
            ("foreign", vec!["s390x", "riscv64"]),
        ] {
            let entries: Vec<_> = architectures.into_iter().map(entry).collect();
            let media_type = "application/vnd.oci.image.index.v1+json";
            let index =
                serde_json::json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries});
            let index: oci_client::manifest::OciManifest = serde_json::from_value(index).unwrap();
            client.push_manifest(&reference(tag), &index).await.unwrap();
        }
    }
}
