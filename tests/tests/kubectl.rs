//! What a user of kubectl does on an ordinary day works without a complaint.

use std::time::Duration;

use anyhow::{Context as _, Result};
use orch_tests::{TOOLBOX, ensure, eventually, kubectl, namespace::Namespace};

#[test]
fn resources_are_listed_and_explained() -> Result<()> {
    let listed = kubectl::run(&["api-resources"])?;
    for line in [
        "pods",
        "deployments",
        "endpointslices",
        "replicasets",
        "leases",
        "serviceaccounts",
    ] {
        ensure(listed.contains(line), || format!("no {line} in {listed}"))?;
    }
    let versions = kubectl::run(&["api-versions"])?;
    ensure(versions.lines().any(|line| line == "apps/v1"), || {
        versions.clone()
    })?;
    let explained = kubectl::run(&["explain", "deployment.spec.strategy"])?;
    ensure(explained.contains("rollingUpdate"), || explained.clone())
}

#[test]
fn create_get_edit_delete() -> Result<()> {
    let ns = Namespace::create("verbs")?;
    ns.kubectl(&["create", "configmap", "settings", "--from-literal=colour=blue"])?;
    ns.kubectl(&[
        "create",
        "secret",
        "generic",
        "key",
        "--from-literal=token=s3cret",
    ])?;
    ns.kubectl(&["create", "serviceaccount", "robot"])?;
    let manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: applied }\ndata: { a: '1' }\n";
    ensure(ns.apply(manifest)?.contains("created"), || {
        "apply did not create".into()
    })?;
    ensure(ns.apply(manifest)?.contains("unchanged"), || {
        "a second apply changed something".into()
    })?;
    ensure(
        ns.apply(&manifest.replace("'1'", "'2'"))?.contains("configured"),
        || "not configured".into(),
    )?;
    let data = ns.json(&["get", "configmap", "applied"])?;
    ensure(data["data"]["a"] == "2", || format!("{data}"))?;
    ns.kubectl(&["label", "configmap", "applied", "tier=back"])?;
    ns.kubectl(&["annotate", "configmap", "applied", "note=yes"])?;
    let found = ns.kubectl(&["get", "configmaps", "-l", "tier=back", "-o", "name"])?;
    ensure(found.trim() == "configmap/applied", || found.clone())?;
    ns.kubectl(&[
        "patch",
        "configmap",
        "applied",
        "--type=json",
        "-p",
        r#"[{"op":"remove","path":"/data/a"}]"#,
    ])?;
    ns.kubectl(&["delete", "configmap", "applied"])?;
    let gone = ns.attempt(&["get", "configmap", "applied"], "")?;
    ensure(gone.stderr.contains(r#"configmaps "applied" not found"#), || {
        gone.stderr.clone()
    })
}

#[test]
fn tables_and_descriptions() -> Result<()> {
    let ns = Namespace::create("tables")?;
    ns.kubectl(&["create", "deployment", "web", "--image", TOOLBOX, "--replicas=2"])?;
    ns.rolled_out("web")?;
    ns.kubectl(&["expose", "deployment", "web", "--port=80", "--target-port=8080"])?;
    let pods = ns.kubectl(&["get", "pods", "-o", "wide"])?;
    for word in [
        "READY",
        "STATUS",
        "RESTARTS",
        "NODE",
        "1/1",
        "Running",
        "orch-node",
    ] {
        ensure(pods.contains(word), || format!("no {word} in {pods}"))?;
    }
    let all = ns.kubectl(&["get", "all"])?;
    for word in [
        "pod/web-",
        "service/web",
        "deployment.apps/web",
        "replicaset.apps/web-",
    ] {
        ensure(all.contains(word), || format!("no {word} in {all}"))?;
    }
    let nodes = kubectl::run(&["get", "nodes", "-o", "wide"])?;
    ensure(nodes.contains("Ready") && nodes.contains("172.30.0.11"), || {
        nodes.clone()
    })?;
    let described = ns.kubectl(&["describe", "pods", "-l", "app=web"])?;
    for word in [
        "Scheduled",
        "Pulled",
        "Created",
        "Started",
        "QoS Class",
        "BestEffort",
    ] {
        ensure(described.contains(word), || format!("no {word} in {described}"))?;
    }
    let described = ns.kubectl(&["describe", "deployment", "web"])?;
    ensure(described.contains("ScalingReplicaSet"), || described.clone())?;
    let described = ns.kubectl(&["describe", "service", "web"])?;
    ensure(described.contains(":8080"), || described.clone())?;
    kubectl::run(&["describe", "node", "orch-node1"]).map(drop)
}

#[test]
fn logs_and_exec() -> Result<()> {
    let ns = Namespace::create("streams")?;
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: talker }}\nspec:\n  containers:\n  - name: talker\n    \
         image: '{TOOLBOX}'\n    command: [sh, -c, 'for i in 1 2 3; do echo line $i; done; echo oops >&2; sleep 600']\n"
    ))?;
    ns.kubectl(&["wait", "--for=condition=Ready", "pod/talker", "--timeout=30s"])?;
    eventually("the log", Duration::from_secs(10), || {
        let log = ns.kubectl(&["logs", "talker"])?;
        // Two pipes: nobody knows which was written to first.
        let (errors, lines): (Vec<&str>, Vec<&str>) = log.lines().partition(|line| *line == "oops");
        ensure(
            lines == ["line 1", "line 2", "line 3"] && errors.len() == 1,
            || log.clone(),
        )
    })?;
    ensure(
        ns.kubectl(&["logs", "talker", "--tail=1"])?.lines().count() == 1,
        || "more than the tail".into(),
    )?;
    let stamped = ns.kubectl(&["logs", "talker", "--timestamps", "--tail=1"])?;
    ensure(stamped.starts_with("20"), || stamped.clone())?;
    ensure(ns.shell("talker", "echo $((6 * 7))")?.trim() == "42", || {
        "exec did not compute".into()
    })?;
    let echoed = ns.attempt(&["exec", "-i", "talker", "--", "cat"], "through and back")?;
    ensure(echoed.stdout == "through and back", || {
        format!("{}{}", echoed.stdout, echoed.stderr)
    })?;
    let failed = ns.attempt(&["exec", "talker", "--", "sh", "-c", "exit 7"], "")?;
    ensure(!failed.success && failed.stderr.contains("exit code 7"), || {
        failed.stderr.clone()
    })?;
    let wrong = ns.attempt(&["logs", "talker", "-c", "nobody"], "")?;
    ensure(
        wrong
            .stderr
            .contains("container nobody is not valid for pod talker"),
        || wrong.stderr.clone(),
    )
}

#[test]
fn a_pod_sees_its_volumes_and_environment() -> Result<()> {
    let ns = Namespace::create("volumes")?;
    ns.kubectl(&["create", "configmap", "settings", "--from-literal=colour=blue"])?;
    ns.kubectl(&[
        "create",
        "secret",
        "generic",
        "key",
        "--from-literal=token=s3cret",
    ])?;
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: reader, labels: {{ app: reader }} }}\nspec:\n  containers:\n  \
         - name: reader\n    image: '{TOOLBOX}'\n    env:\n    - {{ name: COLOUR, valueFrom: {{ configMapKeyRef: \
         {{ name: settings, key: colour }} }} }}\n    - {{ name: WHO, valueFrom: {{ fieldRef: {{ fieldPath: \
         metadata.name }} }} }}\n    - {{ name: BOTH, value: '$(WHO)-$(COLOUR)' }}\n    volumeMounts:\n    \
         - {{ name: key, mountPath: /key }}\n    - {{ name: settings, mountPath: /settings }}\n    \
         - {{ name: scratch, mountPath: /scratch }}\n  volumes:\n  - {{ name: key, secret: {{ secretName: key }} }}\n  \
         - {{ name: settings, configMap: {{ name: settings }} }}\n  - {{ name: scratch, emptyDir: {{}} }}\n"
    ))?;
    ns.kubectl(&["wait", "--for=condition=Ready", "pod/reader", "--timeout=30s"])?;
    let seen = ns.shell(
        "reader",
        "echo $BOTH; cat /key/token /settings/colour; touch /scratch/x && echo written",
    )?;
    ensure(seen == "reader-blue\ns3cretbluewritten\n", || seen.clone())?;
    let token = ns.shell(
        "reader",
        "cat /var/run/secrets/kubernetes.io/serviceaccount/namespace",
    )?;
    ensure(token == ns.name, || token.clone())?;
    // The token is good: the API server knows who asks.
    let whoami = "cd /var/run/secrets/kubernetes.io/serviceaccount; curl -sS --cacert ca.crt \
                  -H \"Authorization: Bearer $(cat token)\" https://kubernetes.default.svc/api/v1/pods";
    let refused = ns.shell("reader", whoami)?;
    let who = format!("system:serviceaccount:{}:default", ns.name);
    ensure(refused.contains(&who) && refused.contains("Forbidden"), || {
        refused.clone()
    })
}

#[test]
fn a_crash_is_seen_and_restarted() -> Result<()> {
    let ns = Namespace::create("crash")?;
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: crasher }}\nspec:\n  containers:\n  - name: crasher\n    \
         image: '{TOOLBOX}'\n    command: [sh, -c, 'echo going; sleep 1; exit 3']\n"
    ))?;
    eventually("a restart", Duration::from_secs(40), || {
        let pod = ns.json(&["get", "pod", "crasher"])?;
        let status = &pod["status"]["containerStatuses"][0];
        let restarts = status["restartCount"].as_i64().context("no restartCount")?;
        let code = status["lastState"]["terminated"]["exitCode"].as_i64();
        ensure(restarts >= 1 && code == Some(3), || format!("{status}"))
    })?;
    ensure(
        ns.kubectl(&["logs", "crasher", "--previous"])?.contains("going"),
        || "no previous log".into(),
    )?;
    ns.event("Back-off restarting failed container")
}
