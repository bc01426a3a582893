//! Images from a registry of the test's own: indexes, credentials and everything that can be wrong.

mod support;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use oci_client::client::{ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::secrets;
use orch_runtime::{ContainerSpec, PullFailure, RegistryAuth, RuntimeError};
use support::{Node, digest, image_config, layers, run};

/// A bcrypt hash of `U*U`, from the test vectors of crypt_blowfish.
const HASH: &str = "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW";
const PASSWORD: &str = "U*U";

struct Registry {
    process: Child,
    address: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    /// Starts Debian's docker-registry on a free loopback port.
    async fn start(dir: &Path, name: &str, with_password: bool) -> Self {
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
    async fn push(&self, dir: &Path, name: &str, auth: &secrets::RegistryAuth) {
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

fn failure(error: &RuntimeError) -> PullFailure {
    match error {
        RuntimeError::Pull { kind, .. } => *kind,
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_are_pulled_unpacked_listed_and_removed() {
    let (node, runtime) = Node::start().await;
    // The imported one is there under all its names and has what its configuration says.
    let imported = runtime.image("web:1").await.unwrap().unwrap();
    assert_eq!(
        runtime.image("docker.io/library/web:1").await.unwrap().unwrap(),
        imported
    );
    assert!(runtime.image("web:2").await.unwrap().is_none());
    assert!(matches!(
        runtime.image("Web:1").await,
        Err(RuntimeError::BadReference { .. })
    ));
    assert_eq!(imported.name, "docker.io/library/web:1");
    assert_eq!(imported.id, digest(&image_config(&layers(&node.dir))));
    assert_eq!(
        (imported.working_dir.as_str(), imported.exposed_ports.as_slice()),
        ("/tmp", &["80/tcp".to_owned()][..])
    );

    let registry = Registry::start(&node.dir, "open", false).await;
    registry
        .push(&node.dir, "team/tool", &secrets::RegistryAuth::Anonymous)
        .await;
    let at = |tag: &str| format!("{}/team/tool{tag}", registry.address);
    // Two at once share the work.
    let (first, second) = tokio::join!(async { runtime.pull(&at(":multi"), None).await }, async {
        runtime.pull(&at(":multi"), None).await
    });
    let pulled = first.unwrap();
    assert_eq!(pulled, second.unwrap());
    assert_eq!(pulled.name, at(":multi"));
    let by_digest = format!("{}/team/tool@", registry.address);
    assert!(
        pulled.repo_digests[0].starts_with(&by_digest),
        "{:?}",
        pulled.repo_digests
    );
    let again = runtime.pull(&pulled.repo_digests[0], None).await.unwrap();
    assert_eq!(again.id, pulled.id);
    let single = runtime.pull(&at(":1"), None).await.unwrap();
    assert_eq!(
        (single.id.as_str(), single.size),
        (pulled.id.as_str(), pulled.size)
    );
    let names: Vec<String> = runtime
        .list_images()
        .await
        .unwrap()
        .into_iter()
        .map(|i| i.name)
        .collect();
    for name in [imported.name.as_str(), &at(":multi"), &at(":1")] {
        assert!(
            names.iter().any(|have| have == name),
            "{name} is not in {names:?}"
        );
    }

    // What is left when the archive's name goes is only what was pulled; it runs.
    runtime.remove_image("web:1").await.unwrap();
    runtime.remove_image("web:1").await.unwrap();
    assert!(runtime.image("web:1").await.unwrap().is_none());
    let spec = ContainerSpec {
        image: at(":multi"),
        ..node.script("pulled", "echo from-registry; id -G")
    };
    assert_eq!(run(&runtime, &spec).await.exit_code, Some(0));
    runtime.delete(&spec.id).await.unwrap();
    assert_eq!(
        node.log_of(&spec, 2).await,
        ["stdout F from-registry", "stdout F 0"]
    );
    for name in runtime.list_images().await.unwrap() {
        runtime.remove_image(&name.name).await.unwrap();
    }
    assert!(runtime.list_images().await.unwrap().is_empty());
    // Everything has to be fetched again.
    runtime.pull(&at(":1"), None).await.unwrap();

    let missing = runtime.pull(&at(":no-such-tag"), None).await.unwrap_err();
    assert_eq!(failure(&missing), PullFailure::NotFound);
    let wanted = format!(
        "failed to pull and unpack image \"{0}\": failed to resolve reference \"{0}\": ",
        at(":no-such-tag")
    );
    assert!(
        missing.to_string().starts_with(&wanted) && missing.to_string().ends_with("not found"),
        "{missing}"
    );
    let other = runtime
        .pull(&format!("{}/no/such/repository:1", registry.address), None)
        .await
        .unwrap_err();
    assert_eq!(failure(&other), PullFailure::NotFound, "{other}");
    let foreign = runtime.pull(&at(":foreign"), None).await.unwrap_err();
    assert!(foreign.to_string().contains("no match for platform"), "{foreign}");
    let address = registry.address.clone();
    drop(registry);
    let unreachable = runtime
        .pull(&format!("{address}/team/tool:2"), None)
        .await
        .unwrap_err();
    assert_eq!(failure(&unreachable), PullFailure::Network);
    assert!(unreachable.to_string().contains("refused"), "{unreachable}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_registry_wants_the_right_password() {
    let (node, runtime) = Node::start().await;
    let registry = Registry::start(&node.dir, "closed", true).await;
    let auth = secrets::RegistryAuth::Basic("tester".to_owned(), PASSWORD.to_owned());
    registry.push(&node.dir, "private", &auth).await;
    let reference = format!("{}/private:1", registry.address);
    let with = |password: &str| {
        Some(RegistryAuth {
            username: "tester".to_owned(),
            password: password.to_owned(),
        })
    };
    for wrong in [None, with("guess")] {
        let error = runtime.pull(&reference, wrong).await.unwrap_err();
        assert_eq!(failure(&error), PullFailure::Unauthorized, "{error}");
    }
    let image = runtime.pull(&reference, with(PASSWORD)).await.unwrap();
    assert_eq!(image.name, reference);
    assert!(!format!("{:?}", with(PASSWORD)).contains(PASSWORD));
}
