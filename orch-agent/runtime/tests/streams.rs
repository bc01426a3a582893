//! Exec and attach, with and without terminals, against a real containerd.

mod support;

use std::time::Duration;

use futures::TryStreamExt;
use orch_runtime::logs::{self, LogOptions};
use orch_runtime::{ContainerSpec, ExecSpec, OutputStream, RuntimeError, UserSpec};
use support::{Node, exited};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn shell(script: &str) -> Vec<String> {
    vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()]
}

async fn all(stream: Option<OutputStream>) -> String {
    let mut text = String::new();
    let mut stream = stream.expect("there is such a stream");
    tokio::time::timeout(Duration::from_secs(20), stream.read_to_string(&mut text))
        .await
        .expect("it ends")
        .expect("it can be read");
    text
}

/// Reads until the text has come.
async fn until(stream: &mut OutputStream, wanted: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 1024];
    while !text.contains(wanted) {
        let count = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut buffer)).await;
        let count = count
            .unwrap_or_else(|_| panic!("{wanted:?} does not come, but {text:?}"))
            .expect("it can be read");
        assert_ne!(count, 0, "ended with {text:?}");
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_has_streams_codes_and_limits() {
    let (node, runtime) = Node::start().await;
    let spec = node.script(
        "main",
        "trap 'exit 5' TERM; echo up; while true; do sleep 0.1; done",
    );
    runtime.create(&spec).await.unwrap();
    runtime.start(&spec.id).await.unwrap();
    node.log_of(&spec, 1).await;
    let id = spec.id.as_str();

    // Input, both outputs, exit code.
    let echo = ExecSpec {
        command: shell("cat; echo to-err >&2; echo $EXTRA $FROM_IMAGE; id -u; exit 4"),
        stdin: true,
        env: vec![("EXTRA".to_owned(), "more".to_owned())],
        user: Some(UserSpec {
            username: Some("web".to_owned()),
            ..UserSpec::default()
        }),
        ..ExecSpec::default()
    };
    let mut exec = runtime.exec(id, echo).await.unwrap();
    let mut stdin = exec.stdin.take().unwrap();
    stdin.write_all(b"in\n").await.unwrap();
    stdin.shutdown().await.unwrap();
    assert_eq!(all(exec.stdout.take()).await, "in\nmore yes\n101\n");
    assert_eq!(all(exec.stderr.take()).await, "to-err\n");
    assert_eq!(exec.control.wait().await.unwrap(), 4);

    // More than any pipe holds, read late, is not cut off.
    let much = ExecSpec {
        command: shell("head -c 3000000 /dev/zero"),
        ..ExecSpec::default()
    };
    let mut exec = runtime.exec(id, much).await.unwrap();
    drop(exec.stderr.take());
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(all(exec.stdout.take()).await.len(), 3_000_000);
    assert_eq!(exec.control.wait().await.unwrap(), 0);

    // A terminal and its size.
    let tty = ExecSpec {
        command: shell("stty size; read x; stty size; echo got $x"),
        tty: true,
        stdin: true,
        size: Some((80, 24)),
        ..ExecSpec::default()
    };
    let mut exec = runtime.exec(id, tty).await.unwrap();
    assert!(exec.stderr.is_none());
    let (mut stdin, mut stdout) = (exec.stdin.take().unwrap(), exec.stdout.take().unwrap());
    until(&mut stdout, "24 80").await;
    exec.control.resize(132, 43).await.unwrap();
    stdin.write_all(b"hello\n").await.unwrap();
    let rest = until(&mut stdout, "got hello").await;
    assert!(rest.contains("43 132"), "{rest}");
    assert_eq!(exec.control.wait().await.unwrap(), 0);
    drop((stdin, stdout));

    // Killing.
    let sleep = ExecSpec {
        command: words("sleep 1000"),
        ..ExecSpec::default()
    };
    let exec = runtime.exec(id, sleep).await.unwrap();
    exec.control.kill(libc::SIGKILL).await.unwrap();
    assert_eq!(exec.control.wait().await.unwrap(), 137);

    // Short commands.
    let limit = Duration::from_secs(20);
    let short = runtime
        .exec_sync(id, &shell("echo a; echo b >&2; exit 2"), limit)
        .await
        .unwrap();
    assert_eq!(short.exit_code, 2);
    let output = String::from_utf8(short.output).unwrap();
    assert!(output.contains("a\n") && output.contains("b\n"), "{output}");
    let bounded = runtime
        .exec_sync(id, &shell("head -c 100000 /dev/zero"), limit)
        .await
        .unwrap();
    assert_eq!((bounded.exit_code, bounded.output.len()), (0, 16384));
    let background = runtime
        .exec_sync(id, &shell("sleep 1000 & echo started"), limit)
        .await
        .unwrap();
    assert_eq!(
        (background.exit_code, background.output.as_slice()),
        (0, b"started\n".as_slice())
    );
    let late = runtime
        .exec_sync(id, &words("sleep 1000"), Duration::from_millis(500))
        .await;
    assert!(matches!(late, Err(RuntimeError::Timeout { .. })), "{late:?}");
    let missing = runtime
        .exec_sync(id, &words("no-such-program"), limit)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        missing.contains("no-such-program") && missing.contains("not found"),
        "{missing}"
    );

    // The trap ends it with its own code; then there is nothing to exec in.
    runtime.kill(id, libc::SIGTERM, false).await.unwrap();
    assert_eq!(exited(&runtime, id).await.exit_code, Some(5));
    assert!(runtime.exec_sync(id, &words("true"), limit).await.is_err());
    runtime.kill(id, libc::SIGTERM, false).await.unwrap();
    runtime.delete(id).await.unwrap();
    assert!(!node.dir.join("run/io").join(id).exists());
    let gone = runtime.exec_sync(id, &words("true"), limit).await;
    assert!(matches!(gone, Err(RuntimeError::NoSuchContainer(_))), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attach_reaches_the_containers_own_process() {
    let (node, runtime) = Node::start().await;
    // No terminal: two outputs, and the first client's end of input is the process's.
    let filter = ContainerSpec {
        stdin: true,
        stdin_once: true,
        ..node.script(
            "filter",
            "while read line; do echo \"<$line>\"; echo \"!$line\" >&2; done; exit 9",
        )
    };
    runtime.create(&filter).await.unwrap();
    runtime.start(&filter.id).await.unwrap();
    let mut attached = runtime.attach(&filter.id).await.unwrap();
    let mut stdin = attached.stdin.take().unwrap();
    stdin.write_all(b"one\n").await.unwrap();
    let mut stdout = attached.stdout.take().unwrap();
    assert_eq!(until(&mut stdout, ">\n").await, "<one>\n");
    stdin.write_all(b"two\n").await.unwrap();
    stdin.shutdown().await.unwrap();
    assert_eq!(all(Some(stdout)).await, "<two>\n");
    assert_eq!(all(attached.stderr.take()).await, "!one\n!two\n");
    assert_eq!(attached.control.wait().await.unwrap(), 9);
    assert_eq!(exited(&runtime, &filter.id).await.exit_code, Some(9));
    runtime.delete(&filter.id).await.unwrap();
    let log = node.log_of(&filter, 4).await;
    assert!(
        log.contains(&"stdout F <two>".to_owned()) && log.contains(&"stderr F !two".to_owned()),
        "{log:?}"
    );

    // A terminal, attached to twice; the agent may have been restarted in between.
    let terminal = ContainerSpec {
        tty: true,
        stdin: true,
        ..node.script("terminal", "exec sh")
    };
    runtime.create(&terminal).await.unwrap();
    runtime.start(&terminal.id).await.unwrap();
    let mut attached = runtime.attach(&terminal.id).await.unwrap();
    let (mut stdin, mut stdout) = (attached.stdin.take().unwrap(), attached.stdout.take().unwrap());
    stdin.write_all(b"echo first-$((1+1))\n").await.unwrap();
    until(&mut stdout, "first-2").await;
    drop((stdin, stdout, attached));
    drop(runtime);
    let runtime = node.connect().await;
    let mut attached = runtime.attach(&terminal.id).await.unwrap();
    assert!(attached.stderr.is_none());
    attached.control.resize(100, 30).await.unwrap();
    let (mut stdin, mut stdout) = (attached.stdin.take().unwrap(), attached.stdout.take().unwrap());
    stdin.write_all(b"stty size; exit 6\n").await.unwrap();
    until(&mut stdout, "30 100").await;
    assert_eq!(attached.control.wait().await.unwrap(), 6);
    assert!(matches!(
        runtime.attach(&terminal.id).await,
        Err(RuntimeError::NotRunning(_))
    ));
    runtime.delete(&terminal.id).await.unwrap();
    assert!(node.log(&terminal).iter().any(|line| line.contains("first-2")));

    // Without an input there is still an output to attach to.
    let talker = node.script("talker", "while true; do echo tick; sleep 0.1; done");
    runtime.create(&talker).await.unwrap();
    runtime.start(&talker.id).await.unwrap();
    let mut attached = runtime.attach(&talker.id).await.unwrap();
    assert!(attached.stdin.is_none());
    until(attached.stdout.as_mut().unwrap(), "tick\ntick\n").await;
    // And a log to follow to its end.
    let (waiting, path) = (std::sync::Arc::clone(&runtime), talker.log_path.clone());
    let ended = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = std::sync::Arc::clone(&ended);
    let options = LogOptions {
        follow: true,
        tail_lines: Some(1),
        ..LogOptions::default()
    };
    let following = tokio::spawn(async move {
        let running = move || !flag.load(std::sync::atomic::Ordering::SeqCst);
        logs::read(&path, options, running).try_collect::<Vec<_>>().await
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    waiting.kill(&talker.id, libc::SIGKILL, true).await.unwrap();
    exited(&runtime, &talker.id).await;
    ended.store(true, std::sync::atomic::Ordering::SeqCst);
    let followed = following.await.unwrap().unwrap().concat();
    assert!(
        followed.starts_with(b"tick\ntick\n"),
        "{:?}",
        String::from_utf8_lossy(&followed)
    );
    runtime.delete(&talker.id).await.unwrap();
}
