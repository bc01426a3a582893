//! What the parts that need a cluster put into it: a namespace, pods that wait, and whatever a part applies.

use std::{fs, net::IpAddr, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::place::Place;
use crate::{
    cluster::{kubectl, layout, layout::Node, load_image},
    image, run, term,
};

/// The namespace of everything here.
pub const NAMESPACE: &str = "orch-bench";
/// A shell that sleeps.
pub const TOOLBOX: &str = "orch.local/toolbox:1";

/// The namespace; it and all in it go with the handle.
pub struct Fixture(());

impl Fixture {
    /// Makes the namespace anew and loads the images with these recipes.
    ///
    /// # Errors
    /// When the cluster refuses.
    pub fn new(images: &[&str]) -> Result<Self> {
        let archives = images
            .iter()
            .map(|name| image::build(&run::root().join("deploy/images").join(name)))
            .collect::<Result<Vec<_>>>()?;
        load_image::run(&archives)?;
        remove()?;
        kubectl::output(&["create", "namespace", NAMESPACE])?;
        Ok(Self(()))
    }

    /// Applies objects.
    ///
    /// # Errors
    /// When the API server refuses one.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        let path = layout::state_dir().join("bench.json");
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        fs::write(&path, list.to_string()).with_context(|| format!("failed to write {}", path.display()))?;
        let file = path.to_string_lossy().into_owned();
        let applied = kubectl::output(&["apply", "-n", NAMESPACE, "-f", &file]);
        fs::remove_file(&path).with_context(|| format!("failed to remove {}", path.display()))?;
        applied.map(drop)
    }

    /// Waits until every pod is Ready.
    ///
    /// # Errors
    /// When one is not within a minute and a half.
    pub fn ready(&self) -> Result<()> {
        let wait = [
            "wait",
            "-n",
            NAMESPACE,
            "--for=condition=Ready",
            "--timeout=90s",
            "pod",
            "--all",
        ];
        kubectl::output(&wait).map(drop)
    }

    /// A pod as a place for traffic, with its address.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod(&self, name: &str) -> Result<(Place, IpAddr)> {
        let field = |field: &str| kubectl::output(&["get", "pod", "-n", NAMESPACE, name, "-o", field]);
        let address = field("jsonpath={.status.podIP}")?;
        let address = address
            .parse()
            .with_context(|| format!("pod {name} has no address"))?;
        Ok((Place::pod(NAMESPACE, name)?, address))
    }

    /// A field of an object, by its JSON path.
    ///
    /// # Errors
    /// When there is no such object.
    pub fn field(&self, object: &str, path: &str) -> Result<String> {
        kubectl::output(&["get", "-n", NAMESPACE, object, "-o", &format!("jsonpath={path}")])
    }

    /// The address that clients in the cluster use for a service, once it has been allocated.
    ///
    /// # Errors
    /// When it has none.
    pub fn cluster_ip(&self, service: &str) -> Result<IpAddr> {
        self.field(&format!("service/{service}"), "{.spec.clusterIP}")?
            .parse()
            .with_context(|| format!("service {service} has no ClusterIP"))
    }

    /// Waits until something holds.
    ///
    /// # Errors
    /// When the time is up.
    pub fn until(&self, what: &str, seconds: u64, check: impl FnMut() -> Result<bool>) -> Result<()> {
        let step = term::step(what);
        kubectl::wait_until(&step, what, Duration::from_secs(seconds), check)?;
        step.done();
        Ok(())
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Err(error) = remove() {
            term::warn(&format!("what the benchmark made is still there: {error:#}"));
        }
    }
}

fn remove() -> Result<()> {
    kubectl::output(&[
        "delete",
        "namespace",
        NAMESPACE,
        "--ignore-not-found",
        "--timeout=300s",
    ])
    .map(drop)
}

/// A pod of a group that sleeps on a node.
pub fn pod(name: &str, group: &str, node: Node) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"bench": group}},
        "spec": {
            "nodeName": node.name(),
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "toolbox", "image": TOOLBOX}],
        },
    })
}

/// A service of a type over the pods of a group, on these ports.
pub fn service(name: &str, group: &str, kind: &str, ports: &[u16]) -> Value {
    let ports: Vec<Value> = ports
        .iter()
        .map(|port| json!({"name": format!("p{port}"), "port": port, "targetPort": port}))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name},
        "spec": {"type": kind, "selector": {"bench": group}, "ports": ports},
    })
}
