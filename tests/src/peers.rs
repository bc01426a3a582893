//! Pods that answer with who is asked and who asks, and that ask; what the machine and the nodes get as an answer.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Read as _},
    net::{IpAddr, SocketAddr, UdpSocket},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::{http, kubectl, namespace::Namespace};

/// The image with Python.
const IMAGE: &str = "orch.local/guestbook-api:1";
/// Server and client.
const PROGRAM: &str = include_str!("peer.py");
/// Where peers answer, in TCP and in UDP.
pub const PORT: u16 = 8080;

/// A peer as a manifest, for a caller that changes something about it: it answers in TCP and UDP on [`PORT`],
/// its container ports are named `web` and `dgram`, its labels are `app` with its name and `group: peers`.
#[must_use]
pub fn manifest(name: &str, node: &str) -> Value {
    serving(name, node, &[&format!("tcp:{PORT}"), &format!("udp:{PORT}")])
}

/// A peer that listens elsewhere, or lingers: see `serve` in `peer.py`.
#[must_use]
pub fn serving(name: &str, node: &str, listen: &[&str]) -> Value {
    let command: Vec<&str> = ["python3", "-c", PROGRAM, "serve"]
        .into_iter()
        .chain(listen.iter().copied())
        .collect();
    let port = listen
        .iter()
        .find_map(|word| word.strip_prefix("tcp:")?.parse().ok())
        .unwrap_or(PORT);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": name, "group": "peers" } },
        "spec": {
            "nodeName": node,
            "containers": [{
                "name": "peer", "image": IMAGE, "command": command,
                "env": [{ "name": "NAME", "value": name }, { "name": "PROGRAM", "value": PROGRAM }],
                "ports": [
                    { "name": "web", "containerPort": port },
                    { "name": "dgram", "containerPort": port, "protocol": "UDP" },
                ],
                "readinessProbe": { "tcpSocket": { "port": port }, "periodSeconds": 1 },
            }],
        },
    })
}

/// The peer in the node's own network, listening on another port, as nodes have one network for all.
#[must_use]
pub fn on_host(name: &str, node: &str, port: u16) -> Value {
    let mut pod = serving(name, node, &[&format!("tcp:{port}"), &format!("udp:{port}")]);
    pod["spec"]["hostNetwork"] = true.into();
    pod["spec"]["dnsPolicy"] = "ClusterFirstWithHostNet".into();
    pod
}

/// A Service with port 80 in TCP and UDP to the peers that `selector` picks, in as many families as there are.
#[must_use]
pub fn service(name: &str, selector: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
        "spec": {
            "selector": selector, "ipFamilyPolicy": "PreferDualStack",
            "ports": [
                { "name": "tcp", "port": 80, "targetPort": "web" },
                { "name": "udp", "port": 80, "targetPort": "dgram", "protocol": "UDP" },
            ],
        },
    })
}

/// Who answered, and whom it saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The server's name.
    pub name: String,
    /// The client, as the server saw it.
    pub client: IpAddr,
    /// How many bytes the server got.
    pub length: usize,
}

/// Reads `NAME ADDRESS PORT LENGTH`.
///
/// # Errors
/// When the line says something else: the client's error.
pub fn parse(line: &str) -> Result<Answer> {
    let mut words = line.split(' ');
    let answer = (|| {
        let (name, client, _, length) = (words.next()?, words.next()?, words.next()?, words.next()?);
        Some(Answer {
            name: name.to_owned(),
            client: client.parse().ok()?,
            length: length.parse().ok()?,
        })
    })();
    answer.with_context(|| line.to_owned())
}

/// The names in the answers; an error when one is missing.
///
/// # Errors
/// What the first one that is missing said.
pub fn names(lines: &[String]) -> Result<BTreeSet<String>> {
    lines
        .iter()
        .map(|line| parse(line).map(|answer| answer.name))
        .collect()
}

/// Asks once from the machine, which is outside of the cluster.
///
/// # Errors
/// When there is no answer.
pub fn outside(protocol: &str, address: SocketAddr) -> Result<Answer> {
    outside_sized(protocol, address, 1)
}

/// Bytes of a datagram that fits through every tunnel.
const SMALL: usize = 1400;

/// Asks once from the machine; a datagram has so many bytes, and where these may be too many it is sent once more.
///
/// # Errors
/// When there is no answer.
pub fn outside_sized(protocol: &str, address: SocketAddr, size: usize) -> Result<Answer> {
    if protocol == "tcp" {
        return parse(http::quick(address, Duration::from_secs(2))?.body.trim());
    }
    let any: IpAddr = match address.ip() {
        IpAddr::V4(_) => "0.0.0.0".parse()?,
        IpAddr::V6(_) => "::".parse()?,
    };
    let socket = UdpSocket::bind((any, 0)).context("failed to bind")?;
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .context("failed to set a timeout")?;
    socket.connect(address).context("failed to connect")?;
    let mut buffer = [0; 256];
    let mut exchange = || {
        socket.send(&vec![b'x'; size]).context("failed to send")?;
        socket.recv(&mut buffer).context("no datagram")
    };
    let length = if size > SMALL {
        // The first may be answered with what fits, of which the socket says nothing: it cuts the next.
        exchange().or_else(|_| exchange())?
    } else {
        exchange()?
    };
    parse(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).trim())
}

/// Asks many times from the machine.
///
/// # Errors
/// When one is not answered.
pub fn outside_names(protocol: &str, address: SocketAddr, count: usize) -> Result<BTreeSet<String>> {
    (0..count)
        .map(|_| outside(protocol, address).map(|answer| answer.name))
        .collect()
}

impl Namespace {
    /// Applies objects.
    ///
    /// # Errors
    /// When one is refused.
    pub fn objects(&self, items: &[Value]) -> Result<()> {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
        self.apply(&list.to_string()).map(drop)
    }

    /// Applies pods and waits until they are Ready.
    ///
    /// # Errors
    /// When one is refused or is not Ready within a minute.
    pub fn peers(&self, pods: &[Value]) -> Result<()> {
        self.objects(pods)?;
        self.ready(pods)
    }

    /// Waits until pods are Ready.
    ///
    /// # Errors
    /// When one is not within a minute.
    pub fn ready(&self, pods: &[Value]) -> Result<()> {
        let targets: Vec<String> = pods
            .iter()
            .map(|pod| format!("pod/{}", pod["metadata"]["name"].as_str().unwrap_or_default()))
            .collect();
        let mut args = vec!["wait", "--for=condition=Ready", "--timeout=60s"];
        args.extend(targets.iter().map(String::as_str));
        self.kubectl(&args).map(drop)
    }

    /// Runs a peer's client to its end and returns its lines.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn peer(&self, pod: &str, words: &[&str]) -> Result<Vec<String>> {
        let program = ["exec", pod, "--", "python3", "-c", PROGRAM];
        let text = self.kubectl(&[&program, words].concat())?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Asks from a pod, each time from a new socket; an answer or `! ERROR` a line.
    ///
    /// # Errors
    /// When the client cannot be run.
    pub fn ask(&self, pod: &str, protocol: &str, host: &str, port: u16, count: usize) -> Result<Vec<String>> {
        let (port, count) = (port.to_string(), count.to_string());
        self.peer(pod, &["ask", protocol, host, &port, &count, "2"])
    }

    /// Asks once from a pod.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn ask_once(&self, pod: &str, protocol: &str, host: &str, port: u16) -> Result<Answer> {
        let lines = self.ask(pod, protocol, host, port, 1)?;
        parse(lines.first().context("no line")?)
    }

    /// Starts a client in a pod that uses one socket for some seconds.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn hold(&self, pod: &str, protocol: &str, host: &str, port: u16, seconds: u32) -> Result<Held> {
        self.hold_at(pod, protocol, host, port, seconds, "")
    }

    /// The same with a socket that has come to one backend of the service, or to whichever when its name is empty.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn hold_at(
        &self,
        pod: &str,
        protocol: &str,
        host: &str,
        port: u16,
        seconds: u32,
        backend: &str,
    ) -> Result<Held> {
        let (port, seconds) = (port.to_string(), seconds.to_string());
        let mut command = kubectl::command(&["--namespace", &self.name, "exec", pod, "--", "python3", "-c"]);
        command.args([PROGRAM, "hold", protocol, host, &port, &seconds, backend]);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = child.context("failed to start kubectl")?;
        let output = child.stdout.take().map(BufReader::new);
        Ok(Held {
            child,
            output: output.context("no output")?,
            lines: Vec::new(),
        })
    }

    /// A pod's addresses.
    ///
    /// # Errors
    /// When there is no such pod or it has none.
    pub fn pod_ips(&self, pod: &str) -> Result<Vec<IpAddr>> {
        let pod = self.json(&["get", "pod", pod])?;
        addresses(&pod["status"]["podIPs"], "ip")
    }

    /// A service's cluster addresses.
    ///
    /// # Errors
    /// When there is no such service.
    pub fn cluster_ips(&self, service: &str) -> Result<Vec<IpAddr>> {
        let service = self.json(&["get", "service", service])?;
        let found = service["spec"]["clusterIPs"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        found
            .iter()
            .map(|ip| ip.as_str().unwrap_or_default().parse().context("not an address"))
            .collect()
    }

    /// The node port of a service's port, by its name.
    ///
    /// # Errors
    /// When it has none.
    pub fn node_port(&self, service: &str, name: &str) -> Result<u16> {
        let object = self.json(&["get", "service", service])?;
        let ports = object["spec"]["ports"].as_array().cloned().unwrap_or_default();
        let found = ports.iter().find(|port| port["name"] == name);
        found
            .and_then(|port| u16::try_from(port["nodePort"].as_u64()?).ok())
            .with_context(|| format!("service {service} has no node port for {name}"))
    }

    /// The addresses that a service of type LoadBalancer has.
    ///
    /// # Errors
    /// When there is no such service.
    pub fn balancer_ips(&self, service: &str) -> Result<Vec<IpAddr>> {
        let service = self.json(&["get", "service", service])?;
        addresses(&service["status"]["loadBalancer"]["ingress"], "ip")
    }
}

fn addresses(list: &Value, field: &str) -> Result<Vec<IpAddr>> {
    let items = list.as_array().cloned().unwrap_or_default();
    items
        .iter()
        .map(|item| {
            item[field]
                .as_str()
                .unwrap_or_default()
                .parse()
                .context("not an address")
        })
        .collect()
}

/// A client that is running.
pub struct Held {
    child: Child,
    output: BufReader<ChildStdout>,
    lines: Vec<String>,
}

impl Held {
    /// Waits for its first line.
    ///
    /// # Errors
    /// When it says nothing.
    pub fn begun(&mut self) -> Result<()> {
        let mut line = String::new();
        self.output.read_line(&mut line).context("failed to read")?;
        if line.is_empty() {
            bail!("a client said nothing but {}", self.complaints());
        }
        self.lines.push(line.trim_end().to_owned());
        Ok(())
    }

    /// Waits for its end and returns its lines: `SECONDS ANSWER` or `SECONDS ! ERROR`.
    ///
    /// # Errors
    /// When it could not run.
    pub fn lines(mut self) -> Result<Vec<String>> {
        if self.lines.is_empty() {
            self.begun()?;
        }
        for line in self.output.by_ref().lines() {
            self.lines.push(line.context("failed to read")?);
        }
        self.child.wait().context("failed to wait for kubectl")?;
        Ok(self.lines)
    }

    fn complaints(&mut self) -> String {
        let mut text = String::new();
        if let Some(errors) = &mut self.child.stderr {
            let _ = errors.read_to_string(&mut text);
        }
        text
    }
}

/// Runs a shell line as a process of a node: in its network and its cgroup.
///
/// # Errors
/// When it ends with another code than 0.
pub fn on_node(node: &str, line: &str) -> Result<String> {
    let output = Command::new("sh")
        .arg("-c")
        .arg(
            "root=/sys/fs/cgroup/unified; [ -d $root ] || root=/sys/fs/cgroup; \
             echo $$ > $root/orch/$1/system/cgroup.procs || exit 1; exec nsenter --net=/run/netns/$1 sh -c \"$2\"",
        )
        .args(["sh", node, line])
        .output()
        .context("failed to start a shell")?;
    if !output.status.success() {
        bail!(
            "{line:?} on {node} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
