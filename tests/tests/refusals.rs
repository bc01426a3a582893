//! What is wrong is refused with the words that Kubernetes uses, and nothing breaks.

use std::time::Duration;

use anyhow::Result;
use orch_tests::{TOOLBOX, ensure, eventually, kubectl, namespace::Namespace};

/// Applies a manifest that must be refused with this text.
fn refused(ns: &Namespace, args: &[&str], manifest: &str, text: &str) -> Result<()> {
    let outcome = ns.attempt(&[args, &["-f", "-"]].concat(), manifest)?;
    ensure(!outcome.success && outcome.stderr.contains(text), || {
        format!("wanted {text:?}, got {}{}", outcome.stdout, outcome.stderr)
    })
}

#[test]
fn manifests_that_are_wrong() -> Result<()> {
    let ns = Namespace::create("wrong")?;
    let pod = |spec: &str| format!("apiVersion: v1\nkind: Pod\nmetadata: {{ name: p }}\nspec: {spec}\n");
    let apply: &[&str] = &["apply"];
    refused(&ns, apply, "apiVersion: v1\nkind: [Pod\n", "error parsing")?;
    refused(
        &ns,
        apply,
        &pod("{ containers: [{ name: a, image: x, colour: blue }] }"),
        r#"unknown field "spec.containers[0].colour""#,
    )?;
    refused(
        &ns,
        &["create", "--validate=false"],
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: { name: d }\nspec: { replicas: many }\n",
        "cannot unmarshal string into Go struct field",
    )?;
    refused(
        &ns,
        apply,
        &pod("{ containers: [] }"),
        "spec.containers: Required value",
    )?;
    refused(
        &ns,
        apply,
        &pod("{ containers: [{ name: a }] }"),
        "spec.containers[0].image: Required value",
    )?;
    refused(
        &ns,
        apply,
        &pod("{ containers: [{ name: A_B, image: x }] }"),
        "spec.containers[0].name: Invalid value",
    )?;
    refused(
        &ns,
        apply,
        "apiVersion: v1\nkind: Nonsense\nmetadata: { name: nothing }\n",
        "no matches for kind \"Nonsense\"",
    )?;
    refused(
        &ns,
        apply,
        "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: Upper }\n",
        "a lowercase RFC 1123 subdomain must consist of",
    )?;
    let big = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{ name: big }}\ndata: {{ a: '{}' }}\n",
        "x".repeat(4 << 20)
    );
    refused(
        &ns,
        &["create"],
        &big,
        "Request entity too large: limit is 3145728",
    )?;
    let missing = kubectl::attempt(
        &["create", "-f", "-"],
        "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: a, namespace: no-such }\n",
    )?;
    ensure(
        missing.stderr.contains(r#"namespaces "no-such" not found"#),
        || missing.stderr.clone(),
    )
}

#[test]
fn a_node_port_is_given_once() -> Result<()> {
    let ns = Namespace::create("clash")?;
    let service = |name: &str, port: u16| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name} }}\n\
             spec: {{ type: NodePort, selector: {{ app: a }}, ports: [{{ port: 80, nodePort: {port} }}] }}\n"
        )
    };
    ns.apply(&service("first", 31999))?;
    refused(
        &ns,
        &["apply"],
        &service("second", 31999),
        "provided port is already allocated",
    )?;
    refused(
        &ns,
        &["apply"],
        &service("third", 80),
        "The range of valid ports is 30000-32767",
    )?;
    ns.kubectl(&["delete", "service", "first"])?;
    ns.apply(&service("second", 31999)).map(drop)
}

#[test]
fn a_host_port_clash_leaves_the_pod_pending() -> Result<()> {
    let ns = Namespace::create("hostport")?;
    let pod = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name} }}\nspec: {{ nodeSelector: \
             {{ kubernetes.io/hostname: orch-node1 }}, containers: [{{ name: a, image: '{TOOLBOX}', \
             ports: [{{ containerPort: 80, hostPort: 8099 }}] }}] }}\n"
        )
    };
    ns.apply(&pod("first"))?;
    ns.kubectl(&[
        "wait",
        "--for=condition=PodScheduled",
        "pod/first",
        "--timeout=20s",
    ])?;
    ns.apply(&pod("second"))?;
    ns.event("didn't have free ports for the requested pod ports")
}

#[test]
fn a_missing_image_is_reported_and_retried() -> Result<()> {
    let ns = Namespace::create("image")?;
    ns.kubectl(&["run", "lost", "--image=127.0.0.1:1/no/such:1"])?;
    eventually(
        "ErrImagePull or ImagePullBackOff",
        Duration::from_secs(30),
        || {
            let pods = ns.kubectl(&["get", "pods"])?;
            ensure(
                pods.contains("ErrImagePull") || pods.contains("ImagePullBackOff"),
                || pods.clone(),
            )
        },
    )?;
    ns.event("Failed to pull image")?;
    ns.kubectl(&[
        "run",
        "never",
        "--image=orch.local/absent:1",
        "--image-pull-policy=Never",
    ])?;
    eventually("ErrImageNeverPull", Duration::from_secs(30), || {
        let pods = ns.kubectl(&["get", "pods"])?;
        ensure(pods.contains("ErrImageNeverPull"), || pods.clone())
    })
}

#[test]
fn what_does_not_fit_waits_and_says_why() -> Result<()> {
    let ns = Namespace::create("fit")?;
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: huge }}\nspec: {{ containers: [{{ name: a, image: \
         '{TOOLBOX}', resources: {{ requests: {{ cpu: '900' }} }} }}] }}\n"
    ))?;
    ns.event("Insufficient cpu")?;
    let pods = ns.kubectl(&["get", "pods"])?;
    ensure(pods.contains("Pending"), || pods.clone())
}
