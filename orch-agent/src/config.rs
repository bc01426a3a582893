//! The command line, and what is found out about the machine where it says nothing.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser as _},
};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use orch_dataplane::{Tunnel, XdpMode, inspect::View};

use crate::{
    monitor::MonitorArgs,
    node::Reserved,
    pod::quantity::{QuantityError, milli, whole},
};

/// orch's node agent: runs pods in containerd and services in the kernel.
#[derive(Debug, Parser)]
#[command(name = "orch-agent", version, about, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run this machine as a node of a cluster (as root).
    Run(Box<RunArgs>),
    /// Show what is in the data plane's maps; works without a running agent.
    Bpf(BpfArgs),
    /// Show drops, flows and verdicts of policies as they happen (as root, beside a running agent).
    Monitor(Box<MonitorArgs>),
    /// Write one container's output to its log. containerd starts it; it outlives the agent.
    Logger {
        /// The log file; rotated ones stand beside it.
        file: PathBuf,
    },
    /// Keep the DNS server's sockets open while no agent runs. The agent starts it, and it outlives it.
    KeepSockets {
        /// Where agents find it: its standard input listens there. It ends when the file is gone.
        file: PathBuf,
    },
}

/// Flags of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Name of the Node object.
    #[arg(long)]
    pub node_name: String,
    /// Kubeconfig with the node's identity (`orch-control issue-node` writes one).
    #[arg(long)]
    pub kubeconfig: PathBuf,
    /// Interfaces that lead to other nodes and to the outside, separated by commas [default: those of the default
    /// routes and of the node's addresses].
    #[arg(long, value_delimiter = ',', value_name = "IFACE,...")]
    pub uplink: Vec<String>,
    /// The node's address, or one of each family, the primary one first [default: the uplink's first of each family
    /// of --cluster-cidr].
    #[arg(long, value_delimiter = ',', value_name = "IP[,IP]")]
    pub node_ip: Vec<IpAddr>,
    /// How the uplinks' drivers run the balancer: auto (in drivers other than veth that can), native, generic or off.
    #[arg(long, default_value_t)]
    pub xdp: XdpMode,
    /// How packets of pods get to other nodes: off (as they are, between nodes on one network) or vxlan.
    #[arg(long, default_value_t)]
    pub tunnel: Tunnel,
    /// How packets from outside get to pods on other nodes: snat (with this node's address as their source) or dsr (as
    /// they are, inside packets of their own, and answered straight from there); the same on all nodes.
    #[arg(long, value_enum, default_value = "snat")]
    pub load_balancer_mode: LoadBalancerMode,
    /// Certificate of the kubelet API, PEM.
    #[arg(long)]
    pub tls_cert: PathBuf,
    /// Its key, PEM.
    #[arg(long)]
    pub tls_key: PathBuf,
    /// CA of the kubelet API's clients, PEM.
    #[arg(long)]
    pub client_ca: PathBuf,
    /// Port of the kubelet API on the node's address.
    #[arg(long, default_value_t = 10250)]
    pub kubelet_port: u16,
    /// Where metrics are served in plain HTTP, besides the kubelet API; port 0 for nowhere.
    #[arg(long, default_value = "127.0.0.1:10249")]
    pub metrics_bind_address: SocketAddr,
    /// Where /healthz and /livez of the service proxy answer in plain HTTP; port 0 for nowhere [default: port 10256 of
    /// every address].
    #[arg(long)]
    pub proxy_health_bind_address: Option<SocketAddr>,
    /// containerd's socket.
    #[arg(long, default_value = "/run/containerd/containerd.sock")]
    pub containerd: PathBuf,
    /// containerd's snapshotter.
    #[arg(long, default_value = "overlayfs")]
    pub snapshotter: String,
    /// Registry (HOST or HOST:PORT) that is spoken to in plain HTTP; repeatable.
    #[arg(long = "insecure-registry", value_name = "HOST")]
    pub insecure_registries: Vec<String>,
    /// Directory for volumes and logs.
    #[arg(long, default_value = "/var/lib/orch")]
    pub root_dir: PathBuf,
    /// Directory for what does not survive a reboot.
    #[arg(long, default_value = "/run/orch")]
    pub run_dir: PathBuf,
    /// The cgroup below which pods live. Services are looked up for every process in it; in the root that is the whole
    /// machine's.
    #[arg(long, default_value = "/")]
    pub cgroup_root: String,
    /// Directory for pinned maps and links [default: /sys/fs/bpf/orch/NODE_NAME].
    #[arg(long)]
    pub bpf_root: Option<PathBuf>,
    /// Address of the cluster's DNS server, or one of each family, answered by this agent [default: the tenth address
    /// of each of --service-cidr].
    #[arg(long, value_delimiter = ',', value_name = "IP[,IP]")]
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's domain.
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// All pods' addresses, of one family or of both.
    #[arg(
        long,
        default_value = "10.244.0.0/16",
        value_delimiter = ',',
        value_name = "CIDR[,CIDR]"
    )]
    pub cluster_cidr: Vec<IpNet>,
    /// All services' addresses, of one family or of both.
    #[arg(
        long,
        default_value = "10.96.0.0/16",
        value_delimiter = ',',
        value_name = "CIDR[,CIDR]"
    )]
    pub service_cidr: Vec<IpNet>,
    /// Resolver configuration for other names, and for pods with the node's DNS policy.
    #[arg(long, default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
    /// Label of the node, KEY=VALUE; repeatable.
    #[arg(long = "node-label", value_name = "KEY=VALUE", value_parser = label)]
    pub node_labels: Vec<(String, String)>,
    /// Most pods at once.
    #[arg(long, default_value_t = 110)]
    pub max_pods: u32,
    /// CPU and memory held back from pods.
    #[arg(long, default_value = "cpu=100m,memory=128Mi", value_parser = reserved)]
    pub system_reserved: Reserved,
}

/// How packets from outside get to pods on other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LoadBalancerMode {
    /// With this node's address as their source; the answer comes back through this node.
    Snat,
    /// With their own source, in an IP packet of their own; the other node answers the client.
    Dsr,
}

/// Flags of `bpf`.
#[derive(Debug, Args)]
pub struct BpfArgs {
    /// What to show.
    #[arg(value_parser = PossibleValuesParser::new(View::NAMES).try_map(|name| name.parse::<View>()))]
    pub what: View,
    /// Directory of the pins [default: the only one below /sys/fs/bpf/orch].
    #[arg(long)]
    pub bpf_root: Option<PathBuf>,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: OutputForm,
}

/// Forms of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputForm {
    /// A table.
    Text,
    /// JSON.
    Json,
}

/// Something that the command line leaves open and the machine does not answer.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No default route, or none by an interface.
    #[error("this machine has no default route: name the interface with --uplink")]
    NoDefaultRoute,
    /// The interface has no address.
    #[error("interface {interface} has no {family} address: give the node's with --node-ip")]
    NoAddress {
        /// The interface.
        interface: String,
        /// The family.
        family: &'static str,
    },
    /// A flag that takes one value of each family has two of one.
    #[error("{0} takes at most one value of each family")]
    SameFamily(&'static str),
    /// The node has no address of a family that the cluster is to have.
    #[error("{0} has a family of which --node-ip has no address")]
    MissingFamily(&'static str),
    /// No cgroup v2 hierarchy is mounted.
    #[error("no cgroup2 file system is mounted: mount one at /sys/fs/cgroup or /sys/fs/cgroup/unified")]
    NoCgroup2,
    /// A nameless or path-like node name.
    #[error("{0:?} cannot be a node's name: it must be a lower-case DNS name")]
    BadNodeName(String),
    /// No pins, or those of several agents.
    #[error("{0}: name one with --bpf-root")]
    BpfRoot(String),
}

impl RunArgs {
    /// The pins' directory.
    ///
    /// # Errors
    /// When the node's name cannot be a path component (nor a Node object's name).
    pub fn bpf_root(&self) -> Result<PathBuf, ConfigError> {
        let name = &self.node_name;
        let letters = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = name.as_bytes();
        if bytes.len() > 253
            || !bytes.iter().copied().all(letters)
            || !ends(bytes.first())
            || !ends(bytes.last())
        {
            return Err(ConfigError::BadNodeName(name.clone()));
        }
        Ok(self
            .bpf_root
            .clone()
            // A BPF file system has no dots in names, and a node no colons.
            .unwrap_or_else(|| PathBuf::from(BPF_ROOTS).join(name.replace('.', ":"))))
    }
}

/// Where each agent keeps its pins by default.
const BPF_ROOTS: &str = "/sys/fs/bpf/orch";

impl BpfArgs {
    /// The directory to read: the given one, or the only one there is.
    ///
    /// # Errors
    /// When there is none, or more than one to choose from.
    pub fn root(&self) -> Result<PathBuf, ConfigError> {
        if let Some(root) = &self.bpf_root {
            return Ok(root.clone());
        }
        let mut roots: Vec<PathBuf> = fs::read_dir(BPF_ROOTS)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        roots.sort();
        match roots.len() {
            0 => Err(ConfigError::BpfRoot(format!(
                "no data plane is pinned below {BPF_ROOTS}"
            ))),
            1 => Ok(roots.remove(0)),
            _ => {
                let names: Vec<String> = roots.iter().map(|root| root.display().to_string()).collect();
                Err(ConfigError::BpfRoot(format!(
                    "several data planes are pinned: {}",
                    names.join(", ")
                )))
            }
        }
    }
}

/// The cgroup2 directory that `--cgroup-root` names.
///
/// # Errors
/// When no cgroup2 file system is mounted.
pub fn cgroup2_path(cgroup_root: &str) -> Result<PathBuf, ConfigError> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mount = cgroup2_mount(&mounts).ok_or(ConfigError::NoCgroup2)?;
    Ok(mount.join(cgroup_root.trim_matches('/')))
}

/// The mount point of the cgroup2 hierarchy in a mountinfo (proc(5): the mount point is field 5, the type follows a
/// lone hyphen).
fn cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let mount = mount.split_whitespace().nth(4)?;
        source.starts_with("cgroup2 ").then(|| PathBuf::from(mount))
    })
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("it must be KEY=VALUE")?;
    if key.is_empty() {
        Err("the key is empty".into())
    } else {
        Ok((key.to_owned(), value.to_owned()))
    }
}

fn reserved(text: &str) -> Result<Reserved, String> {
    let mut reserved = Reserved {
        cpu_millis: 0,
        memory: 0,
    };
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (name, value) = part
            .split_once('=')
            .ok_or("it must be like cpu=100m,memory=128Mi")?;
        let bad = || format!("{value:?} is not a quantity");
        match name {
            "cpu" => reserved.cpu_millis = quantity(value, milli).ok_or_else(bad)?,
            "memory" => reserved.memory = quantity(value, whole).ok_or_else(bad)?,
            other => return Err(format!("{other:?} cannot be reserved: only cpu and memory")),
        }
    }
    Ok(reserved)
}

fn quantity(text: &str, read: fn(&Quantity) -> Result<i64, QuantityError>) -> Option<u64> {
    u64::try_from(read(&Quantity(text.to_owned())).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        let required = [
            "--node-name",
            "n1",
            "--kubeconfig",
            "k",
            "--tls-cert",
            "c",
            "--tls-key",
            "y",
            "--client-ca",
            "a",
        ];
        let cli = Cli::try_parse_from(["orch-agent", "run"].iter().chain(&required)).unwrap();
        let Command::Run(args) = cli.command else {
            panic!("not run")
        };
        assert_eq!(args.bpf_root().unwrap(), PathBuf::from("/sys/fs/bpf/orch/n1"));
        assert_eq!(
            args.system_reserved,
            Reserved {
                cpu_millis: 100,
                memory: 128 << 20
            }
        );
        assert_eq!((args.xdp, args.tunnel), (XdpMode::Auto, Tunnel::Off));
        assert!(Cli::try_parse_from(["orch-agent", "run"]).is_err());
        assert!(Cli::try_parse_from(["orch-agent", "bpf", "services", "-o", "json"]).is_ok());
        assert!(Cli::try_parse_from(["orch-agent", "bpf", "service"]).is_err());
        assert!(Cli::try_parse_from(["orch-agent", "monitor", "--type", "drop"]).is_ok());
    }

    #[test]
    fn a_node_name_is_one_path_component() {
        let required = [
            "--kubeconfig",
            "k",
            "--tls-cert",
            "c",
            "--tls-key",
            "y",
            "--client-ca",
            "a",
        ];
        for name in ["../x", "", "Node", "a/b", "-a"] {
            let name = format!("--node-name={name}");
            let words = ["orch-agent", "run", name.as_str()];
            let cli = Cli::try_parse_from(words.iter().chain(&required)).unwrap();
            let Command::Run(args) = cli.command else {
                panic!("not run")
            };
            assert!(args.bpf_root().is_err(), "{name}");
        }
    }

    #[test]
    fn finds_the_cgroup2_mount() {
        let mounts = "30 24 0:26 / /sys/fs/cgroup ro shared:9 - tmpfs tmpfs ro\n\
                      31 30 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(mounts), Some("/sys/fs/cgroup/unified".into()));
    }
}
