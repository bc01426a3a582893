//! Containers from creation to deletion, against a real containerd.
#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use orch_runtime::{
    ContainerSpec, ContainerState, MountKind, MountSpec, PodResources, Propagation, Resources, RuntimeError,
    RuntimeEvent, SandboxSpec, SeccompProfile, UserSpec,
};
use support::{Node, exited, run};

/// The shim of a container's process.
fn shim_of(pid: u32) -> Pid {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    Pid::from_raw(fields.split(' ').nth(1).unwrap().parse().unwrap())
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_lives_and_leaves_nothing() {
    let (node, runtime) = Node::start().await;
    let mut events = runtime.events();
    let sandbox_spec = SandboxSpec {
        uid: "pod".to_owned(),
        hostname: "pod-host".to_owned(),
        sysctls: BTreeMap::from([("net.core.somaxconn".to_owned(), "321".to_owned())]),
        ..SandboxSpec::default()
    };
    let sandbox = runtime.create_sandbox(&sandbox_spec).await.unwrap();
    assert_eq!(runtime.create_sandbox(&sandbox_spec).await.unwrap(), sandbox);
    assert_eq!(runtime.list_sandboxes().await.unwrap(), ["pod"]);

    let script = "echo out; echo err >&2; echo $HOSTNAME $FROM_IMAGE $OWN $PWD; hostname; \
                  cat /proc/sys/net/core/somaxconn; ls /sys/class/net; echo nonl; exit 7";
    let spec = ContainerSpec {
        env: vec![("OWN".to_owned(), "a=b".to_owned())],
        sandbox: sandbox.clone(),
        ..node.script("life", script)
    };
    runtime.create(&spec).await.unwrap();
    let created = runtime.container(&spec.id).await.unwrap().unwrap();
    assert_eq!(
        (created.state, created.exit_code, created.started_at),
        (ContainerState::Created, None, None)
    );
    assert!(created.pid > 0);
    assert_eq!(created.labels, spec.labels);
    assert_eq!(created.stop_signal, libc::SIGINT);
    assert!(matches!(
        runtime.create(&spec).await,
        Err(RuntimeError::ContainerExists(_))
    ));
    let cgroup2 = fs::read_to_string(format!("/proc/{}/cgroup", created.pid)).unwrap();
    assert!(
        cgroup2.contains(&format!("0::/{}/kubepods/podtest", node.name)),
        "{cgroup2}"
    );

    runtime.start(&spec.id).await.unwrap();
    let mut seen = Vec::new();
    let exit = loop {
        match tokio::time::timeout(Duration::from_secs(20), events.recv())
            .await
            .unwrap()
            .unwrap()
        {
            RuntimeEvent::Exited {
                id, exit_code, pid, ..
            } => break (id, exit_code, pid),
            other => seen.push(other),
        }
    };
    assert_eq!(exit, (spec.id.clone(), 7, created.pid));
    assert_eq!(seen, [RuntimeEvent::Started { id: spec.id.clone() }]);
    let ended = runtime.container(&spec.id).await.unwrap().unwrap();
    assert_eq!(
        (ended.state, ended.exit_code, ended.oom_killed),
        (ContainerState::Exited, Some(7), false)
    );
    assert!(ended.started_at.is_some() && ended.finished_at >= ended.started_at);

    runtime.delete(&spec.id).await.unwrap();
    runtime.delete(&spec.id).await.unwrap();
    assert!(runtime.container(&spec.id).await.unwrap().is_none());
    assert!(runtime.containers().await.unwrap().is_empty());
    let mut log = node.log_of(&spec, 7).await;
    log.sort();
    let expected = [
        "stderr F err",
        "stdout F 321",
        "stdout F lo",
        "stdout F nonl",
        "stdout F out",
        "stdout F pod-host",
        "stdout F pod-host yes a=b /tmp",
    ];
    assert_eq!(log, expected);

    runtime.remove_sandbox("pod").await.unwrap();
    runtime.remove_sandbox("pod").await.unwrap();
    runtime.remove_pod_cgroup("kubepods").await.unwrap();
    assert!(runtime.list_sandboxes().await.unwrap().is_empty());
    assert_eq!(node.mounts(), [""; 0]);
    assert_eq!(fs::read_dir(node.dir.join("run/io")).unwrap().count(), 0);
    let left: Vec<_> = node
        .cgroup_dirs()
        .into_iter()
        .filter(|dir| dir.join("kubepods").exists())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_runtime_finds_what_the_last_one_left() {
    let (mut node, runtime) = Node::start().await;
    let long = node.script(
        "long",
        "i=0; while true; do i=$((i+1)); echo tick $i; sleep 0.1; done",
    );
    let dies = node.script("dies", "sleep 0.4; exit 3");
    for spec in [&long, &dies] {
        runtime.create(spec).await.unwrap();
        runtime.start(&spec.id).await.unwrap();
    }
    let before = runtime.container(&long.id).await.unwrap().unwrap();
    // As after kill -9: nobody is there while one of them ends.
    drop(runtime);
    let lines = node.log(&long).len();
    tokio::time::sleep(Duration::from_millis(900)).await;
    let runtime = node.connect().await;
    assert!(node.log(&long).len() > lines, "logging stopped with the runtime");
    exited(&runtime, &dies.id).await;
    let found = runtime.containers().await.unwrap();
    let by_id = |id: &str| found.iter().find(|c| c.id == id).unwrap().clone();
    let (long_now, dead) = (by_id(&long.id), by_id(&dies.id));
    assert_eq!(
        (long_now.state, long_now.pid),
        (ContainerState::Running, before.pid)
    );
    assert_eq!(
        (long_now.started_at, long_now.labels),
        (before.started_at, long.labels.clone())
    );
    assert_eq!((dead.state, dead.exit_code), (ContainerState::Exited, Some(3)));

    // The same for containerd itself: the stream comes back by itself and says so.
    let mut events = runtime.events();
    node.restart_containerd();
    let event = tokio::time::timeout(Duration::from_secs(30), events.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(event, RuntimeEvent::Resync);
    let still = runtime.container(&long.id).await.unwrap().unwrap();
    assert_eq!((still.state, still.pid), (ContainerState::Running, before.pid));
    runtime.kill(&long.id, libc::SIGKILL, true).await.unwrap();
    let event = tokio::time::timeout(Duration::from_secs(30), events.recv())
        .await
        .unwrap()
        .unwrap();
    assert!(
        matches!(&event, RuntimeEvent::Exited { id, exit_code: 137, .. } if *id == long.id),
        "{event:?}"
    );

    // Without its shim a container has ended, and nobody knows how.
    let orphan = node.script("orphan", "sleep 1000");
    runtime.create(&orphan).await.unwrap();
    runtime.start(&orphan.id).await.unwrap();
    let pid = runtime.container(&orphan.id).await.unwrap().unwrap().pid;
    kill(shim_of(pid), Signal::SIGKILL).unwrap();
    let status = exited(&runtime, &orphan.id).await;
    assert!(matches!(status.exit_code, Some(137 | 255)), "{status:?}");
    for spec in [&long, &dies, &orphan] {
        runtime.delete(&spec.id).await.unwrap();
    }
    assert_eq!(node.mounts().len(), 0, "{:?}", node.mounts());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_that_does_not_answer_is_no_exit() {
    let (node, runtime) = Node::start().await;
    let spec = node.script("silent", "sleep 1000");
    runtime.create(&spec).await.unwrap();
    runtime.start(&spec.id).await.unwrap();
    let running = runtime.container(&spec.id).await.unwrap().unwrap();
    assert_eq!(running.state, ContainerState::Running);
    // A new runtime knows no more than what containerd says.
    drop(runtime);
    let runtime = node.connect().await;
    let shim = shim_of(running.pid);
    kill(shim, Signal::SIGSTOP).unwrap();
    let alone = runtime.container(&spec.id).await;
    let all = runtime.containers().await;
    kill(shim, Signal::SIGCONT).unwrap();
    for silent in [alone.unwrap().unwrap(), all.unwrap().remove(0)] {
        assert_eq!(
            (silent.state, silent.pid, silent.exit_code),
            (ContainerState::Running, 0, None)
        );
        assert_eq!(
            (silent.started_at, silent.finished_at),
            (running.started_at, None)
        );
    }
    let known = runtime.container(&spec.id).await.unwrap().unwrap();
    assert_eq!((known.state, known.pid), (ContainerState::Running, running.pid));
    runtime.kill(&spec.id, libc::SIGKILL, true).await.unwrap();
    assert_eq!(exited(&runtime, &spec.id).await.exit_code, Some(137));
    runtime.delete(&spec.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold() {
    let (node, runtime) = Node::start().await;
    let pod = PodResources {
        cpu_request_millicores: Some(100),
        memory_limit_bytes: Some(256 << 20),
        ..PodResources::default()
    };
    runtime.set_pod_cgroup("kubepods/podtest", &pod).await.unwrap();
    let greedy = ContainerSpec {
        resources: Resources {
            memory_limit_bytes: Some(16 << 20),
            cpu_limit_millicores: Some(500),
            pids_limit: Some(50),
            ..Resources::default()
        },
        oom_score_adj: Some(-998),
        // The shell keeps all of it in one variable.
        ..node.script(
            "greedy",
            "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo never",
        )
    };
    let mut events = runtime.events();
    let status = run(&runtime, &greedy).await;
    assert!(status.oom_killed, "{status:?}");
    assert_ne!(status.exit_code, Some(0));
    let mut oom = false;
    while let Ok(Ok(event)) = tokio::time::timeout(Duration::from_secs(5), events.recv()).await {
        oom |= matches!(event, RuntimeEvent::Oom { .. });
        if oom {
            break;
        }
    }
    assert!(oom, "no event of it");
    let modest = node.script("modest", "sleep 1000");
    runtime.create(&modest).await.unwrap();
    runtime.start(&modest.id).await.unwrap();
    let stats = runtime.stats(&modest.id).await.unwrap();
    assert!(
        stats.cpu_usage_ns > 0 && stats.memory_usage_bytes > 0 && stats.pids >= 1,
        "{stats:?}"
    );
    assert!(stats.memory_working_set_bytes <= stats.memory_usage_bytes);
    let whole = runtime.cgroup_stats("kubepods/podtest").await.unwrap().unwrap();
    assert!(whole.memory_usage_bytes >= stats.memory_usage_bytes / 2);
    // One that runs is killed by its deletion.
    for id in [&greedy.id, &modest.id] {
        runtime.delete(id).await.unwrap();
    }
    assert!(matches!(
        runtime.stats(&modest.id).await,
        Err(RuntimeError::NoSuchContainer(_))
    ));
    runtime.remove_pod_cgroup("kubepods/podtest").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn security_is_as_asked() {
    let (node, runtime) = Node::start().await;
    let script = "id -u; id -g; id -G; grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status | tr '\\t' ' '; \
                  touch /x 2>/dev/null && echo wrote; touch /vol/y && echo vol; touch /hosts 2>/dev/null; \
                  cat /etc/hosts; test -w /sys/kernel && echo sysw; unshare -m true 2>/dev/null && echo unshared; \
                  ls /sys/firmware | wc -l";
    let (hosts, volume) = (node.dir.join("hosts"), node.dir.join("volume"));
    fs::write(&hosts, "127.0.0.1 own-hosts\n").unwrap();
    fs::create_dir(&volume).unwrap();
    let bind = |source: &std::path::Path, destination: &str, readonly| MountSpec {
        source: source.to_owned(),
        destination: destination.to_owned(),
        readonly,
        propagation: Propagation::Private,
        kind: MountKind::Bind,
    };
    let tmpfs = MountSpec {
        kind: MountKind::Tmpfs { size: 1 << 20 },
        ..bind(&volume, "/scratch", false)
    };
    let strict = ContainerSpec {
        user: UserSpec {
            username: Some("web".to_owned()),
            supplementary: vec![2000],
            ..UserSpec::default()
        },
        drop_capabilities: vec!["ALL".to_owned()],
        add_capabilities: vec!["NET_BIND_SERVICE".to_owned()],
        no_new_privileges: true,
        readonly_rootfs: true,
        seccomp: SeccompProfile::RuntimeDefault,
        mounts: vec![
            bind(&hosts, "/etc/hosts", true),
            bind(&volume, "/vol", false),
            tmpfs,
        ],
        ..node.script("strict", script)
    };
    nix::unistd::chown(&volume, Some(101.into()), Some(102.into())).unwrap();
    run(&runtime, &strict).await;
    runtime.delete(&strict.id).await.unwrap();
    let log = node.log_of(&strict, 10).await.join("\n");
    let lines = [
        "stdout F 101",
        "stdout F 102",
        "stdout F 102 104 2000",
        "stdout F CapBnd: 0000000000000400",
        "stdout F CapEff: 0000000000000000",
        "stdout F NoNewPrivs: 1",
        "stdout F Seccomp: 2",
        "stdout F vol",
        "stdout F 127.0.0.1 own-hosts",
        "stdout F 0",
    ];
    for line in lines {
        assert!(log.lines().any(|have| have == line), "{line} is not in\n{log}");
    }
    for wrong in ["wrote", "sysw", "unshared"] {
        assert!(!log.contains(wrong), "{wrong} is in\n{log}");
    }
    assert!(volume.join("y").exists());

    let free = ContainerSpec {
        privileged: true,
        ..node.script("free", "test -w /sys/kernel && echo sysw; unshare -m true && echo unshared; ls /dev/kmsg; grep Seccomp: /proc/self/status")
    };
    run(&runtime, &free).await;
    runtime.delete(&free.id).await.unwrap();
    let log = node.log_of(&free, 4).await.join("\n");
    for right in ["sysw", "unshared", "/dev/kmsg", "0"] {
        assert!(log.contains(right), "{right} is not in\n{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_made_says_why_and_is_gone() {
    let (node, runtime) = Node::start().await;
    let good = node.script("good", "true");
    let missing = ContainerSpec {
        image: "missing:9".to_owned(),
        ..good.clone()
    };
    let error = runtime.create(&missing).await.unwrap_err();
    assert!(
        matches!(error, RuntimeError::NoSuchImage(_)) && error.is_not_found(),
        "{error}"
    );
    let no_program = ContainerSpec {
        command: Some(words("/no/such/program")),
        ..good.clone()
    };
    let error = runtime.create(&no_program).await.unwrap_err().to_string();
    assert!(
        error.contains("/no/such/program") && error.contains("no such file"),
        "{error}"
    );
    let no_user = ContainerSpec {
        user: UserSpec {
            username: Some("ghost".to_owned()),
            ..UserSpec::default()
        },
        ..good.clone()
    };
    let error = runtime.create(&no_user).await.unwrap_err();
    assert!(matches!(error, RuntimeError::NoSuchUser { .. }), "{error}");
    let sysctls = BTreeMap::from([("kernel.panic".to_owned(), "1".to_owned())]);
    let sandbox = SandboxSpec {
        uid: "bad".to_owned(),
        sysctls,
        ..SandboxSpec::default()
    };
    assert!(
        runtime
            .create_sandbox(&sandbox)
            .await
            .unwrap_err()
            .to_string()
            .contains("kernel.panic")
    );
    let unknown = SandboxSpec {
        sysctls: BTreeMap::from([("net.no.such".to_owned(), "1".to_owned())]),
        ..sandbox
    };
    assert!(runtime.create_sandbox(&unknown).await.is_err());
    assert!(runtime.list_sandboxes().await.unwrap().is_empty());
    assert!(runtime.containers().await.unwrap().is_empty());
    assert_eq!(fs::read_dir(node.dir.join("run/io")).unwrap().count(), 0);
    assert!(matches!(
        runtime.start("nobody").await,
        Err(RuntimeError::NoSuchContainer(_))
    ));
    assert!(runtime.version().await.unwrap().starts_with("containerd://1."));
    // One that was never started goes, too.
    let unstarted = node.script("unstarted", "true");
    runtime.create(&unstarted).await.unwrap();
    runtime.delete(&unstarted.id).await.unwrap();
    assert!(runtime.containers().await.unwrap().is_empty());
    // The image's own command, after all those failures.
    let plain = ContainerSpec {
        command: None,
        ..node.script("plain", "")
    };
    assert_eq!(run(&runtime, &plain).await.exit_code, Some(0));
    runtime.delete(&plain.id).await.unwrap();
    assert_eq!(node.log_of(&plain, 1).await, ["stdout F default"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_of_a_pod_share_its_namespaces() {
    let (node, runtime) = Node::start().await;
    let spec = SandboxSpec {
        uid: "shared".to_owned(),
        hostname: "together".to_owned(),
        ..SandboxSpec::default()
    };
    let sandbox = runtime.create_sandbox(&spec).await.unwrap();
    let first = ContainerSpec {
        sandbox: sandbox.clone(),
        ..node.script("first", "echo in-shm > /dev/shm/note; echo up; sleep 1000")
    };
    runtime.create(&first).await.unwrap();
    runtime.start(&first.id).await.unwrap();
    node.log_of(&first, 1).await;
    let pid = runtime.container(&first.id).await.unwrap().unwrap().pid;
    let second = ContainerSpec {
        sandbox: sandbox.clone(),
        join_pid: Some(pid),
        ..node.script(
            "second",
            "cat /dev/shm/note; hostname; tr '\\0' ' ' < /proc/1/cmdline | grep -c sleep",
        )
    };
    assert_eq!(run(&runtime, &second).await.exit_code, Some(0));
    assert_eq!(
        node.log_of(&second, 3).await,
        ["stdout F in-shm", "stdout F together", "stdout F 1"]
    );
    // The pod's namespaces outlive its containers, and the node's own are there for those that ask for them.
    for spec in [&first, &second] {
        runtime.delete(&spec.id).await.unwrap();
    }
    assert_eq!(runtime.create_sandbox(&spec).await.unwrap(), sandbox);
    let host = SandboxSpec {
        uid: "host".to_owned(),
        host_network: true,
        host_ipc: true,
        ..spec
    };
    let none = runtime.create_sandbox(&host).await.unwrap();
    assert_eq!(
        (none.net.as_ref(), none.ipc.as_ref(), none.uts.as_ref()),
        (None, None, None)
    );
    let on_host = ContainerSpec {
        sandbox: none,
        host_network: true,
        host_pid: true,
        ..node.script("host", "hostname; test -d /proc/$$ && echo see")
    };
    assert_eq!(run(&runtime, &on_host).await.exit_code, Some(0));
    let own = nix::unistd::gethostname().unwrap().into_string().unwrap();
    assert_eq!(
        node.log_of(&on_host, 2).await,
        [format!("stdout F {own}"), "stdout F see".to_owned()]
    );
    runtime.delete(&on_host.id).await.unwrap();
    for uid in ["shared", "host"] {
        runtime.remove_sandbox(uid).await.unwrap();
    }
    assert_eq!(node.mounts(), [""; 0]);
}
