//! A store whose process is killed in the middle of its writes opens again with every write that returned.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
};

use bytes::Bytes;
use orch_store::{Expect, ListOptions, Store as _, StoreError, embedded::Embedded};

const CHILD: &str = "ORCH_CRASH_CHILD";

/// Run as a child: writes until it is killed, and says what has returned.
#[tokio::test]
async fn child_writes_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD) else {
        return;
    };
    let store = Embedded::open(path.as_ref()).unwrap();
    for n in 0..100_000_u32 {
        store
            .put(
                &format!("/c/{n:06}"),
                Bytes::from(vec![b'x'; 512]),
                Expect::Absent,
            )
            .await
            .unwrap();
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "wrote {n}").unwrap();
        stdout.flush().unwrap();
    }
}

#[tokio::test]
async fn what_has_returned_survives_a_kill() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("store.redb");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_writes_until_it_is_killed", "--nocapture"])
        .env(CHILD, &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut last = 0;
    for line in BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
    {
        // The harness may have put its own words before the first one.
        if let Some(n) = line.rsplit("wrote ").next().and_then(|n| n.parse::<usize>().ok()) {
            last = n;
        }
        if last == 200 {
            match Embedded::open(&path) {
                Err(StoreError::Unavailable(text)) => assert!(text.contains("in use"), "{text}"),
                other => panic!("a second process opened the file: {:?}", other.map(|_| ())),
            }
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(last >= 200);
    let store = Embedded::open(&path).unwrap();
    let page = store.list("/c/", ListOptions::default()).await.unwrap();
    assert!(
        page.items.len() > last,
        "{} returned, {} are there",
        last + 1,
        page.items.len()
    );
    // Nothing half-written: revisions are dense and history is whole.
    assert_eq!(page.revision.0, page.items.len() as u64 + 1);
}
