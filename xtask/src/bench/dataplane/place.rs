//! Where traffic comes from and goes to: a network namespace, and the cgroup whose socket hooks see it.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;

use crate::{
    cluster::{
        cgroup, kubectl,
        layout::{self, Node},
    },
    run,
    traffic::Outcome,
};

/// A place to run the hidden `traffic` command in.
pub struct Place {
    /// The network namespace; the machine's own where there is none.
    netns: Option<PathBuf>,
    /// The cgroup2, relative to the hierarchy's root, if not the caller's.
    cgroup: Option<String>,
}

impl Place {
    /// The machine itself, outside of the cluster.
    pub fn machine() -> Self {
        Self {
            netns: None,
            cgroup: None,
        }
    }

    /// A named network namespace that no data plane knows.
    pub fn namespace(name: &str) -> Self {
        Self {
            netns: Some(PathBuf::from("/run/netns").join(name)),
            cgroup: None,
        }
    }

    /// A pod: its network namespace, and a cgroup of its node's, since services are resolved at the socket.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn pod(namespace: &str, name: &str) -> Result<Self> {
        let fields = "jsonpath={.metadata.uid} {.spec.nodeName}";
        let text = kubectl::output(&["get", "pod", "-n", namespace, name, "-o", fields])?;
        let (uid, node) = text
            .split_once(' ')
            .with_context(|| format!("pod {name} is on no node"))?;
        let node = Node::all(layout::MAX_NODES)
            .find(|candidate| candidate.name() == node)
            .with_context(|| format!("pod {name} is on {node}, which is none of ours"))?;
        Ok(Self {
            netns: Some(node.run_dir().join("ns").join(uid).join("net")),
            cgroup: Some(format!("{}/bench", node.cgroup())),
        })
    }

    fn command(&self, words: &[&str]) -> Result<Command> {
        let own = std::env::current_exe().context("failed to find this program")?;
        let mut command = run::command("sh", ["-c"]);
        command
            .arg("[ -z \"$1\" ] || echo $$ > \"$1\" || exit 1; shift; exec \"$@\"")
            .arg("sh");
        match &self.cgroup {
            Some(name) => command.arg(cgroup::create(name)?),
            None => command.arg(""),
        };
        if let Some(netns) = &self.netns {
            command
                .arg("nsenter")
                .arg(format!("--net={}", netns.display()))
                .arg("--");
        }
        command.arg(own).arg("traffic").args(words).stdin(Stdio::null());
        Ok(command)
    }

    /// Runs a client to its end.
    ///
    /// # Errors
    /// When it fails; its last words are in the error.
    pub fn client(&self, words: &[&str]) -> Result<Outcome> {
        parse(&run::output(&mut self.command(words)?)?)
    }

    /// As [`Self::client`] for one that talks to two targets by turns.
    ///
    /// # Errors
    /// As for [`Self::client`].
    pub fn clients(&self, words: &[&str]) -> Result<[Outcome; 2]> {
        parse(&run::output(&mut self.command(words)?)?)
    }

    /// Starts a client, whose outcome is asked for later.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, words: &[&str]) -> Result<Running> {
        let child = self
            .command(words)?
            .stdout(Stdio::piped())
            .spawn()
            .context("failed to start a client")?;
        Ok(Running(child))
    }

    /// Starts the servers and waits until they listen; they end with the returned value.
    ///
    /// # Errors
    /// When they do not come up.
    pub fn serve(&self) -> Result<Running> {
        let mut running = self.start(&["serve"])?;
        let output = running.0.stdout.take().context("a server has no output")?;
        let mut line = String::new();
        BufReader::new(output)
            .read_line(&mut line)
            .context("failed to hear from a server")?;
        if line.trim() != "serving" {
            bail!("a server did not come up");
        }
        Ok(running)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(name) = &self.cgroup {
            // Others may still be in it: the last removes it, and `down` whatever is left.
            let _ = fs::remove_dir(cgroup::unified().join(name));
        }
    }
}

/// A client or server that is running and ends with its handle.
pub struct Running(Child);

impl Running {
    /// Waits for a client's end.
    ///
    /// # Errors
    /// When it failed.
    pub fn outcome(mut self) -> Result<Outcome> {
        let mut text = String::new();
        if let Some(output) = self.0.stdout.take() {
            text = std::io::read_to_string(output).context("failed to hear from a client")?;
        }
        let status = self.0.wait().context("failed to wait for a client")?;
        if !status.success() {
            bail!("a client failed ({status})");
        }
        parse(&text)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A client has most often ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text.trim()).context("a client printed no outcome")
}
