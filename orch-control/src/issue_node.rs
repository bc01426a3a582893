//! `issue-node`: credentials for a new node.

use std::{net::IpAddr, path::PathBuf};

use anyhow::Context as _;
use clap::Args;
use orch_server::pki::{self, Pki, kubeconfig};

/// What `issue-node` is told.
#[derive(Args)]
pub(crate) struct IssueNode {
    /// The control plane's data folder, whose `pki` signs
    #[arg(long)]
    data_dir: PathBuf,
    /// The node's name
    #[arg(long)]
    node: String,
    /// The addresses that the API server may reach the node at, one of each of its families
    #[arg(long, required = true, value_delimiter = ',')]
    ip: Vec<IpAddr>,
    /// The URL that the node reaches the API server at, e.g. https://172.30.0.1:6443
    #[arg(long)]
    server: String,
    /// The folder to write kubeconfig, kubelet.crt, kubelet.key and ca.crt to
    #[arg(long)]
    out: PathBuf,
}

impl IssueNode {
    /// Writes the four files.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            !self.node.is_empty()
                && self.node.len() <= 253
                && self
                    .node
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c)),
            "name the node {:?}: a node's name is a lowercase DNS name",
            self.node
        );
        anyhow::ensure!(
            self.server.starts_with("https://"),
            "use the server {:?}: it must be a https:// URL",
            self.server
        );
        let pki = Pki::open(&self.data_dir).context("open the certificate authority")?;
        let credentials = pki
            .issue_node(&self.node, &self.ip)
            .context("issue the node's certificates")?;
        let user = format!("system:node:{}", self.node);
        let config = kubeconfig::render(&self.server, pki.ca_pem(), &user, &credentials.client);
        let write = |name: &str, text: &str, mode| {
            pki::write_file(&self.out.join(name), text, mode).context("write the node's credentials")
        };
        write("kubeconfig", &config, 0o600)?;
        write("kubelet.key", &credentials.serving.key_pem, 0o600)?;
        write("kubelet.crt", &credentials.serving.cert_pem, 0o644)?;
        write("ca.crt", pki.ca_pem(), 0o644)
    }
}
