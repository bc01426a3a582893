//! Images from a registry of the test's own: indexes, credentials and everything that can be wrong.

mod support;

use oci_client::secrets;
use orch_runtime::{ContainerSpec, PullFailure, RegistryAuth, RuntimeError};
use support::registry::{PASSWORD, Registry};
use support::{Node, digest, image_config, layers, run};

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
