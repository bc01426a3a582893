//! A namespace for one test, removed with all that is in it when the test ends.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{TOOLBOX, ensure, eventually, kubectl};

/// A namespace that lives as long as this value.
pub struct Namespace {
    /// Its name.
    pub name: String,
    owned: bool,
}

impl Namespace {
    /// Makes a namespace and waits until pods can be made in it.
    ///
    /// # Errors
    /// When the API server refuses.
    pub fn create(stem: &str) -> Result<Self> {
        let clock = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let name = format!("{stem}-{:x}", clock.as_millis() & 0xff_ffff);
        kubectl::run(&["create", "namespace", &name])?;
        let namespace = Self { name, owned: true };
        eventually("the namespace's service account", Duration::from_secs(20), || {
            namespace.kubectl(&["get", "serviceaccount", "default"])
        })?;
        Ok(namespace)
    }

    /// A namespace that is there already, and stays.
    #[must_use]
    pub fn existing(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            owned: false,
        }
    }

    /// kubectl in this namespace.
    ///
    /// # Errors
    /// When it fails.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        kubectl::run(&[&["--namespace", &self.name], args].concat())
    }

    /// kubectl in this namespace, parsed.
    ///
    /// # Errors
    /// When it fails.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        kubectl::json(&[&["--namespace", &self.name], args].concat())
    }

    /// kubectl in this namespace, whether it succeeds or not.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn attempt(&self, args: &[&str], input: &str) -> Result<kubectl::Outcome> {
        kubectl::attempt(&[&["--namespace", &self.name], args].concat(), input)
    }

    /// Applies a manifest.
    ///
    /// # Errors
    /// When it is refused.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        kubectl::with_input(&["--namespace", &self.name, "apply", "-f", "-"], manifest)
    }

    /// Waits until a Deployment is rolled out.
    ///
    /// # Errors
    /// When it is not within a minute.
    pub fn rolled_out(&self, deployment: &str) -> Result<()> {
        let target = format!("deployment/{deployment}");
        let outcome = self.kubectl(&["rollout", "status", &target, "--timeout=60s"]);
        if outcome.is_err() {
            let pods = self.kubectl(&["describe", "pods"]).unwrap_or_default();
            return outcome
                .map(drop)
                .with_context(|| format!("{deployment} did not roll out:\n{pods}"));
        }
        Ok(())
    }

    /// Runs a toolbox pod on a node (any when `None`) and waits until it is Ready.
    ///
    /// # Errors
    /// When it does not become Ready.
    pub fn toolbox(&self, name: &str, node: Option<&str>) -> Result<()> {
        let node = node.map_or_else(String::new, |node| format!("nodeName: {node}, "));
        self.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}, labels: {{ app: {name} }} }}\n\
             spec: {{ {node}containers: [{{ name: toolbox, image: '{TOOLBOX}' }}] }}\n"
        ))?;
        self.kubectl(&[
            "wait",
            "--for=condition=Ready",
            &format!("pod/{name}"),
            "--timeout=30s",
        ])
        .map(drop)
    }

    /// Runs a shell line in a pod.
    ///
    /// # Errors
    /// When it ends with another code than 0.
    pub fn shell(&self, pod: &str, line: &str) -> Result<String> {
        self.kubectl(&["exec", pod, "--", "sh", "-c", line])
    }

    /// The pods with this label that are not on their way out.
    ///
    /// # Errors
    /// When the list fails.
    pub fn pods(&self, selector: &str) -> Result<Vec<Value>> {
        let list = self.json(&["get", "pods", "--selector", selector])?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        Ok(items
            .into_iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .collect())
    }

    /// Waits until some event of this namespace contains a text.
    ///
    /// # Errors
    /// When none does in time.
    pub fn event(&self, text: &str) -> Result<()> {
        eventually(
            &format!("an event with {text:?}"),
            Duration::from_secs(40),
            || {
                let events = self.kubectl(&["get", "events"])?;
                ensure(events.contains(text), || format!("the events are:\n{events}"))
            },
        )
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A failed test keeps its namespace for a look only when it is asked to.
        if !self.owned || std::thread::panicking() && std::env::var_os("ORCH_KEEP").is_some() {
            return;
        }
        let deleted = kubectl::run(&["delete", "namespace", &self.name, "--timeout=60s"]);
        if let Err(error) = deleted
            && !std::thread::panicking()
        {
            panic!("namespace {} does not go: {error:#}", self.name);
        }
    }
}
