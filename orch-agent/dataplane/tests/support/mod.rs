//! What the network tests share: namespaces, processes inside them, and a cluster that the test writes itself.

mod settings;

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use kube::runtime::{reflector, watcher::Event};
use nix::sched::{CloneFlags, setns};
use orch_cluster::{
    Cluster,
    policies::{PolicyEvent, Update},
};
use serde_json::Value;
use tokio::sync::watch;

pub use self::settings::Settings;

/// Bytes of a transfer that shows whether large packets pass.
pub const BIG: usize = 1 << 20;

/// How many sockets `udp-held` holds.
pub const HELD: usize = 60;

/// A named network namespace that goes with its handle.
pub struct Namespace {
    pub name: String,
}

impl Namespace {
    pub fn new(name: &str) -> Self {
        let name = format!("ot{}-{name}", std::process::id());
        run("ip", &["netns", "add", &name]);
        let made = Self { name };
        made.ip("link set lo up");
        made
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    pub fn ip(&self, arguments: &str) {
        let all: Vec<&str> = ["-n", &self.name]
            .into_iter()
            .chain(arguments.split(' '))
            .collect();
        run("ip", &all);
    }

    /// Moves the calling thread into the namespace.
    pub fn enter(&self) {
        let file = File::open(self.path()).unwrap();
        setns(file.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
    }

    /// Runs `work` on a thread inside, which ends with the test.
    pub fn thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let file = File::open(self.path()).unwrap();
        std::thread::spawn(move || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    /// A TCP server that answers each line with its own name, the peer's address and the line.
    pub fn serve_tcp(&self, address: IpAddr, port: u16, name: &'static str) {
        let (ready, wait) = std::sync::mpsc::channel();
        self.thread(move || {
            let listener = TcpListener::bind(SocketAddr::new(address, port)).unwrap();
            ready.send(()).unwrap();
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || answer_lines(stream, name));
            }
        });
        wait.recv().unwrap();
    }

    /// A TCP server that sends everything back.
    pub fn serve_echo(&self, address: IpAddr, port: u16) {
        let (ready, wait) = std::sync::mpsc::channel();
        self.thread(move || {
            let listener = TcpListener::bind(SocketAddr::new(address, port)).unwrap();
            ready.send(()).unwrap();
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut back = stream.try_clone().unwrap();
                    std::io::copy(&mut stream, &mut back)
                });
            }
        });
        wait.recv().unwrap();
    }

    /// The same over UDP, a datagram a line.
    pub fn serve_udp(&self, address: IpAddr, port: u16, name: &'static str) {
        let (ready, wait) = std::sync::mpsc::channel();
        self.thread(move || {
            let socket = UdpSocket::bind(SocketAddr::new(address, port)).unwrap();
            ready.send(()).unwrap();
            let mut buffer = vec![0; 65536];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                let answer = format!("{name} {} {length}", peer.ip());
                let _ = socket.send_to(answer.as_bytes(), peer);
            }
        });
        wait.recv().unwrap();
    }

    /// Runs this test binary's `helper` with the words, inside the namespace and the cgroup, and returns what it said.
    pub fn ask(&self, cgroup: Option<&Path>, words: &str) -> String {
        let helper = std::env::current_exe().unwrap();
        let join = cgroup.map_or(String::new(), |path| {
            format!("echo $$ > {}/cgroup.procs && ", path.display())
        });
        let script = format!("{join}exec {} --exact helper --nocapture", helper.display());
        let output = Command::new("nsenter")
            .arg(format!("--net={}", self.path().display()))
            .args(["sh", "-c", &script])
            .env("ORCH_TEST_HELPER", words)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let said: Vec<&str> = text
            .lines()
            .filter_map(|line| line.split_once("SAID "))
            .map(|(_, said)| said)
            .collect();
        assert!(
            output.status.success(),
            "{words}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        said.join("\n")
    }
}

impl Namespace {
    /// As [`Self::ask`], on a thread of its own.
    pub fn asking(&self, cgroup: Option<&Path>, words: &str) -> std::thread::JoinHandle<String> {
        // The handle of who calls is the one that goes with the namespace.
        let same = std::mem::ManuallyDrop::new(Self {
            name: self.name.clone(),
        });
        let (cgroup, words) = (cgroup.map(Path::to_owned), words.to_owned());
        std::thread::spawn(move || same.ask(cgroup.as_deref(), &words))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn answer_lines(mut stream: TcpStream, name: &str) {
    let Ok(peer) = stream.peer_addr() else { return };
    let mut buffer = [0; 4096];
    while let Ok(length) = stream.read(&mut buffer) {
        if length == 0
            || stream
                .write_all(format!("{name} {}", peer.ip()).as_bytes())
                .is_err()
        {
            return;
        }
    }
}

/// The body of every binary's `helper` test: does what the environment asks, inside a namespace.
pub fn help() {
    let Ok(words) = std::env::var("ORCH_TEST_HELPER") else {
        return;
    };
    let words: Vec<&str> = words.split(' ').collect();
    let [kind, target, times] = words[..] else {
        panic!("three words, please")
    };
    let target: SocketAddr = target.parse().unwrap();
    for _ in 0..times.parse::<u32>().unwrap() {
        println!(
            "\nSAID {}",
            exchange(kind, target).unwrap_or_else(|error| format!("error {:?}", error.kind()))
        );
    }
}

fn exchange(kind: &str, target: SocketAddr) -> std::io::Result<String> {
    let mut buffer = vec![0; 4096];
    let wait = Some(Duration::from_secs(3));
    let any = match target {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    match kind {
        "tcp" => {
            let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(3))?;
            stream.set_read_timeout(wait)?;
            stream.write_all(b"hello")?;
            let length = stream.read(&mut buffer)?;
            Ok(format!(
                "{} peer {}",
                String::from_utf8_lossy(&buffer[..length]),
                stream.peer_addr()?
            ))
        }
        "udp" => {
            let socket = UdpSocket::bind(any)?;
            socket.set_read_timeout(wait)?;
            socket.send_to(b"hello", target)?;
            let (length, from) = socket.recv_from(&mut buffer)?;
            Ok(format!(
                "{} from {from}",
                String::from_utf8_lossy(&buffer[..length])
            ))
        }
        "udp-big" => {
            let socket = UdpSocket::bind(any)?;
            socket.set_read_timeout(wait)?;
            socket.send_to(&[7; 5000], target)?;
            let (length, from) = socket.recv_from(&mut buffer)?;
            Ok(format!(
                "{} from {from}",
                String::from_utf8_lossy(&buffer[..length])
            ))
        }
        // More than fits into a few packets, both ways.
        "tcp-big" => {
            // An emulated machine is slow, and a burst that it has no room for is sent again after a while.
            let until = Instant::now() + Duration::from_secs(45);
            let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(3))?;
            stream.set_read_timeout(wait)?;
            // Who only writes waits for a server that waits for its answers to be read, once all buffers are full.
            let mut writer = stream.try_clone()?;
            let written = std::thread::spawn(move || {
                writer.write_all(&vec![7; BIG])?;
                writer.shutdown(std::net::Shutdown::Write)
            });
            let mut back = Vec::new();
            loop {
                match stream.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(length) => back.extend_from_slice(&buffer[..length]),
                    Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return Err(error),
                    Err(_) => {}
                }
                if Instant::now() > until {
                    return Err(std::io::ErrorKind::TimedOut.into());
                }
            }
            written
                .join()
                .map_err(|_| std::io::Error::other("the writer panicked"))??;
            Ok(format!("{} bytes", back.len()))
        }
        "udp-connected" => {
            let socket = UdpSocket::bind(any)?;
            socket.set_read_timeout(wait)?;
            socket.connect(target)?;
            socket.send(b"hello")?;
            let length = socket.recv(&mut buffer)?;
            Ok(format!(
                "{} peer {}",
                String::from_utf8_lossy(&buffer[..length]),
                socket.peer_addr()?
            ))
        }
        // A connected socket that asks A until somebody else answers.
        "udp-moving" => {
            let until = Instant::now() + Duration::from_secs(30);
            let (mut socket, mut seen) = (None, false);
            while Instant::now() < until {
                let asked = match &socket {
                    Some(socket) => socket,
                    None => {
                        let new = UdpSocket::bind(any)?;
                        new.set_read_timeout(Some(Duration::from_millis(200)))?;
                        new.connect(target)?;
                        socket.insert(new)
                    }
                };
                asked.send(b"hello")?;
                let Ok(length) = asked.recv(&mut buffer) else {
                    // What was on its way to who has gone is lost; who never answered is not A.
                    if !seen {
                        socket = None;
                    }
                    continue;
                };
                match (buffer.get(..length).and_then(<[u8]>::first), &mut seen) {
                    (Some(b'A'), seen) => *seen = true,
                    (Some(other), true) => return Ok(format!("A, then {}", char::from(*other))),
                    _ => socket = None,
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok("nobody else answers".to_owned())
        }
        // Sockets that ask again when somebody new answers: how many stay with whom they had, and how many go to the new
        // one and to others.
        "udp-held" => {
            let ask = |socket: &UdpSocket| -> std::io::Result<String> {
                socket.send_to(b"hello", target)?;
                let mut buffer = [0; 4096];
                let (length, _) = socket.recv_from(&mut buffer)?;
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                Ok(text.split(' ').next().unwrap_or_default().to_owned())
            };
            let open = || -> std::io::Result<UdpSocket> {
                let socket = UdpSocket::bind(any)?;
                socket.set_read_timeout(wait)?;
                Ok(socket)
            };
            let held: Vec<UdpSocket> = (0..HELD).map(|_| open()).collect::<Result<_, _>>()?;
            let before: Vec<String> = held.iter().map(ask).collect::<Result<_, _>>()?;
            while before.contains(&ask(&open()?)?) {}
            let (mut stay, mut newcomer, mut others) = (0, 0, 0);
            for (socket, before_it) in held.iter().zip(&before) {
                let now = ask(socket)?;
                match () {
                    () if now == *before_it => stay += 1,
                    () if before.contains(&now) => others += 1,
                    () => newcomer += 1,
                }
            }
            Ok(format!("{stay} {newcomer} {others}"))
        }
        other => panic!("no such request: {other}"),
    }
}

/// Runs a program and insists on success.
pub fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// A cluster that the test writes.
pub struct Fake {
    services: reflector::store::Writer<Service>,
    slices: reflector::store::Writer<EndpointSlice>,
    nodes: reflector::store::Writer<Node>,
    mark: watch::Sender<u64>,
    version: u64,
    policies: Option<tokio::sync::mpsc::Sender<PolicyEvent>>,
    pub cluster: Arc<Cluster>,
}

impl Fake {
    pub fn new() -> Self {
        let (services, service_writer) = reflector::store();
        let (slices, slice_writer) = reflector::store();
        let (nodes, node_writer) = reflector::store();
        let (mark, changed) = watch::channel(0);
        let cluster = Cluster::from_stores(services, slices, nodes, changed);
        Self {
            services: service_writer,
            slices: slice_writer,
            nodes: node_writer,
            mark,
            version: 0,
            policies: None,
            cluster,
        }
    }

    /// Says that there is no network policy, to the next data plane that asks.
    pub fn open_policies(&mut self) {
        let (events, receiver) = tokio::sync::mpsc::channel(1);
        events
            .try_send(PolicyEvent::Policy(Update::All(Vec::new())))
            .unwrap();
        self.cluster.set_policy_events(receiver);
        self.policies = Some(events);
    }

    /// Says that the first lists are complete.
    pub fn ready(&mut self) {
        self.services.apply_watcher_event(&Event::Init);
        self.services.apply_watcher_event(&Event::InitDone);
        self.slices.apply_watcher_event(&Event::Init);
        self.slices.apply_watcher_event(&Event::InitDone);
        self.nodes.apply_watcher_event(&Event::Init);
        self.nodes.apply_watcher_event(&Event::InitDone);
    }

    fn object<T: serde::de::DeserializeOwned>(&mut self, mut object: Value) -> T {
        self.version += 1;
        object["metadata"]["resourceVersion"] = Value::String(self.version.to_string());
        object["metadata"]["namespace"] = Value::String("default".into());
        serde_json::from_value(object).unwrap()
    }

    pub fn service(&mut self, object: Value) {
        let object = self.object(object);
        self.services.apply_watcher_event(&Event::Apply(object));
        self.mark.send_modify(|n| *n += 1);
    }

    pub fn remove_service(&mut self, object: Value) {
        let object = self.object(object);
        self.services.apply_watcher_event(&Event::Delete(object));
        self.mark.send_modify(|n| *n += 1);
    }

    pub fn slice(&mut self, object: Value) {
        let object = self.object(object);
        self.slices.apply_watcher_event(&Event::Apply(object));
        self.mark.send_modify(|n| *n += 1);
    }

    pub fn node(&mut self, object: Value) {
        let object = self.object(object);
        self.nodes.apply_watcher_event(&Event::Apply(object));
        self.mark.send_modify(|n| *n += 1);
    }
}
