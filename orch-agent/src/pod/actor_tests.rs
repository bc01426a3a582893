//! Pods on a node whose host records and whose API is in memory; the clock is the test's.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::testing::{Node, UID, is_true, pod};

fn simple() -> serde_json::Value {
    pod(json!({"terminationGracePeriodSeconds": 30, "containers": [{"name": "c", "image": "app:1"}]}))
}

#[tokio::test(start_paused = true)]
async fn a_pod_becomes_ready_and_says_so() {
    let mut node = Node::new();
    node.api.put(simple());
    let manager = node.start();
    let pod = node.until("ready", |p| is_true(p, "Ready")).await;
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["status"]["podIP"], "10.244.0.7");
    assert_eq!(pod["status"]["hostIP"], "127.0.0.1");
    assert_eq!(pod["status"]["qosClass"], "BestEffort");
    let container = &pod["status"]["containerStatuses"][0];
    let id = manager.container_id("shop", "web", "c", false).unwrap();
    assert_eq!(container["containerID"], format!("containerd://{}", id.id));
    assert!(id.running && id.log_path.ends_with(format!("logs/shop_web_{UID}/c/0.log")));
    assert!(container["started"].as_bool().unwrap());
    let spec = node.host.specs.lock()[0].clone();
    assert_eq!(spec.cgroup_parent, format!("kubepods/besteffort/pod{UID}"));
    assert!(spec.mounts.iter().any(|m| m.destination == "/etc/resolv.conf"));
    let resolv =
        std::fs::read_to_string(node.root.path().join("pods").join(UID).join("etc/resolv.conf")).unwrap();
    assert!(
        resolv.contains("nameserver 10.96.0.10\n") && resolv.contains("ndots:5"),
        "{resolv}"
    );
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        node.api.events(),
        [
            "Normal Pulled Container image \"app:1\" already present on machine",
            "Normal Created Created container: c",
            "Normal Started Started container c"
        ]
    );
    assert!(manager.container_id("shop", "web", "nope", false).is_err());
    assert!(manager.container_id("shop", "web", "c", true).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_crashing_container_backs_off() {
    let mut node = Node::new();
    node.api.put(simple());
    let manager = node.start();
    let mut waits = vec![];
    for round in 0..4 {
        node.until("running", |p| {
            p["status"]["containerStatuses"][0]["restartCount"] == round
                && p["status"]["containerStatuses"][0]["state"]["running"].is_object()
        })
        .await;
        let id = node.running("c").unwrap();
        let from = Instant::now();
        node.host.exit(&id, 1);
        if round > 0 {
            let pod = node
                .until("back-off", |p| {
                    p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
                })
                .await;
            let status = &pod["status"]["containerStatuses"][0];
            assert_eq!(status["lastState"]["terminated"]["exitCode"], 1);
            assert!(!is_true(&pod, "Ready"));
            let message = status["state"]["waiting"]["message"].as_str().unwrap();
            assert!(
                message.contains(&format!("restarting failed container=c pod=web_shop({UID})")),
                "{message}"
            );
        }
        while node.running("c").is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        waits.push(from.elapsed().as_secs());
    }
    assert_eq!(waits, [0, 10, 20, 40]);
    // The newest run and the one before it are kept, for logs.
    assert_eq!(node.host.containers.lock().len(), 2);
    let previous = manager.container_id("shop", "web", "c", true).unwrap();
    assert!(previous.log_path.ends_with("3.log"), "{previous:?}");
    assert!(node.api.events().contains(&format!(
        "Warning BackOff Back-off restarting failed container c in pod web_shop({UID})"
    )));
}

#[tokio::test(start_paused = true)]
async fn a_deleted_pod_gets_its_grace_and_leaves_nothing() {
    let mut node = Node::new();
    node.api
        .put(pod(json!({"containers": [{"name": "c", "image": "app:1",
        "lifecycle": {"preStop": {"exec": {"command": ["bye"]}}}}]})));
    node.start();
    node.until("ready", |p| is_true(p, "Ready")).await;
    *node.host.stubborn.lock() = true;
    let from = Instant::now();
    node.api.delete("web", 20);
    node.until("gone", serde_json::Value::is_null).await;
    let took = from.elapsed();
    assert!(
        (Duration::from_secs(20)..Duration::from_secs(23)).contains(&took),
        "{took:?}"
    );
    let log = node.host.log.lock().clone();
    assert_eq!(log, ["start c", "exec bye", "kill c 15", "kill c 9"]);
    assert!(node.host.containers.lock().is_empty());
    assert!(node.host.sandboxes.lock().is_empty());
    assert!(!node.root.path().join("pods").join(UID).exists());
    assert!(
        node.api
            .events()
            .contains(&"Normal Killing Stopping container c".to_owned())
    );
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_restarts_no_container() {
    let mut node = Node::new();
    node.api.put(simple());
    node.start();
    let before = node.until("ready", |p| is_true(p, "Ready")).await;
    node.crash().await;
    let manager = node.start();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(*node.host.log.lock(), ["start c"]);
    let after = node.api.pod("web").unwrap();
    assert_eq!(before["status"], after["status"]);
    assert!(manager.container_id("shop", "web", "c", false).unwrap().running);
    // An exit while the agent was away is handled at its return.
    let id = node.running("c").unwrap();
    node.crash().await;
    node.host.exit(&id, 3);
    node.start();
    let pod = node
        .until("restarted", |p| {
            p["status"]["containerStatuses"][0]["restartCount"] == 1
                && p["status"]["containerStatuses"][0]["state"]["running"].is_object()
        })
        .await;
    assert_eq!(
        pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"],
        3
    );
}

#[tokio::test(start_paused = true)]
async fn what_the_api_lost_is_stopped_and_removed() {
    let mut node = Node::new();
    node.api.put(simple());
    node.start();
    node.until("ready", |p| is_true(p, "Ready")).await;
    node.crash().await;
    node.api.delete("web", 0);
    node.start();
    while !node.host.containers.lock().is_empty() || node.root.path().join("pods").join(UID).exists() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(*node.host.log.lock(), ["start c", "kill c 15"]);
    assert!(node.host.sandboxes.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_missing_config_map_is_waited_for() {
    let mut node = Node::new();
    node.api.put(pod(
        json!({"containers": [{"name": "c", "image": "app:1", "env": [
        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}},
        {"name": "B", "value": "<$(A)>"}], "args": ["$(B)"]}]}),
    ));
    node.start();
    let pod = node
        .until("config error", |p| {
            p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerConfigError"
        })
        .await;
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
    assert_eq!(waiting["message"], "configmap \"cm\" not found");
    let cm = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cm"}, "data": {"k": "v"}});
    node.api
        .objects
        .lock()
        .insert("/api/v1/namespaces/shop/configmaps/cm".into(), cm);
    node.until("ready", |p| is_true(p, "Ready")).await;
    let spec = node.host.specs.lock()[0].clone();
    assert!(spec.env.contains(&("B".to_owned(), "<v>".to_owned())));
    assert_eq!(spec.args, Some(vec!["<v>".to_owned()]));
    assert!(
        node.api
            .events()
            .contains(&"Warning Failed Error: configmap \"cm\" not found".to_owned())
    );
}

#[tokio::test(start_paused = true)]
async fn a_missing_image_backs_off_with_kubernetes_reasons() {
    let mut node = Node::new();
    node.host.missing_images.lock().push("gone:1".into());
    node.api
        .put(pod(json!({"containers": [{"name": "c", "image": "gone:1"}]})));
    node.start();
    let reason =
        |p: &serde_json::Value| p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    node.until("ErrImagePull", |p| reason(p) == "ErrImagePull").await;
    let pod = node
        .until("ImagePullBackOff", |p| reason(p) == "ImagePullBackOff")
        .await;
    assert_eq!(pod["status"]["phase"], "Pending");
    let events = node.api.events();
    for want in [
        "Normal Pulling Pulling image \"gone:1\"",
        "Warning Failed Failed to pull image \"gone:1\": failed to pull and unpack image \"gone:1\": not found",
        "Warning Failed Error: ErrImagePull",
        "Normal BackOff Back-off pulling image \"gone:1\"",
        "Warning Failed Error: ImagePullBackOff",
    ] {
        assert!(events.iter().any(|e| e == want), "{want} not in {events:#?}");
    }
    node.host.missing_images.lock().clear();
    node.until("ready", |p| is_true(p, "Ready")).await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_nobody_can_mount_keeps_the_pod_waiting() {
    let mut node = Node::new();
    node.api
        .put(pod(json!({"containers": [{"name": "c", "image": "app:1"}],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "x"}}]})));
    node.start();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let want = "Warning FailedMount MountVolume.SetUp failed for volume \"data\" : volume \"data\" is of a kind that \
                this node does not support: persistentVolumeClaim";
    assert!(
        node.api.events().iter().any(|e| e == want),
        "{:#?}",
        node.api.events()
    );
    assert!(node.host.log.lock().is_empty());
    assert_eq!(node.api.pod("web").unwrap()["status"]["phase"], "Pending");
}

#[tokio::test(start_paused = true)]
async fn a_job_succeeds_and_stays_for_its_logs() {
    let mut node = Node::new();
    node.api.put(pod(
        json!({"restartPolicy": "Never", "initContainers": [{"name": "i", "image": "app:1"}],
        "containers": [{"name": "c", "image": "app:1"}]}),
    ));
    let manager = node.start();
    node.until("init", |p| {
        p["status"]["initContainerStatuses"][0]["state"]["running"].is_object()
    })
    .await;
    assert!(node.running("c").is_none());
    node.host.exit(&node.running("i").unwrap(), 0);
    node.until("running", |p| p["status"]["phase"] == "Running").await;
    let id = node.running("c").unwrap();
    let message = node
        .root
        .path()
        .join("pods")
        .join(UID)
        .join("containers/c/0.message");
    std::fs::write(message, "all done").unwrap();
    node.host.exit(&id, 0);
    let pod = node
        .until("succeeded", |p| p["status"]["phase"] == "Succeeded")
        .await;
    let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(
        (ended["reason"].as_str(), ended["message"].as_str()),
        (Some("Completed"), Some("all done"))
    );
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(node.host.sandboxes.lock().is_empty());
    assert!(!manager.container_id("shop", "web", "c", false).unwrap().running);
    // A restarted agent leaves it alone.
    node.crash().await;
    node.start();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(node.api.pod("web").unwrap()["status"], pod["status"]);
    assert_eq!(*node.host.log.lock(), ["start i", "start c"]);
    node.api.delete("web", 30);
    node.until("gone", serde_json::Value::is_null).await;
    assert!(node.host.containers.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_failing_liveness_probe_restarts_the_container() {
    let mut node = Node::new();
    node.api
        .put(pod(json!({"containers": [{"name": "c", "image": "app:1",
        "livenessProbe": {"exec": {"command": ["false"]}, "periodSeconds": 2, "failureThreshold": 2}}]})));
    node.start();
    node.until("restarted", |p| {
        p["status"]["containerStatuses"][0]["restartCount"] == 1
    })
    .await;
    let events = node.api.events();
    for want in [
        "Warning Unhealthy Liveness probe failed: said no",
        "Normal Killing Container c failed liveness probe, will be restarted",
    ] {
        assert!(events.iter().any(|e| e == want), "{want} not in {events:#?}");
    }
}
