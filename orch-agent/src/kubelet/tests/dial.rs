//! Connections to pods for the API server.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{ADMIN, api};

#[tokio::test]
async fn dial_becomes_a_connection_to_a_pod_of_this_node() {
    let api = api().await;
    let port = api.fake.forward_to;
    let (code, _) = api
        .get(Some(ADMIN), &format!("/dial/ns/web?ip=127.0.0.1&port={port}"))
        .await;
    assert_eq!(code, 400, "no upgrade was asked for");

    let tcp = "Upgrade: tcp\r\n";
    let path = format!("/dial/ns/web?ip=127.0.0.1&port={port}");
    let (head, mut stream) = api.upgrade(&path, tcp).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    stream.write_all(b"ping").await.unwrap();
    let mut echoed = [0; 4];
    stream.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"ping");

    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    for (path, code) in [
        // Not this pod's address, not this node's pod: who asks must not come by what the node can reach.
        (format!("/dial/ns/web?ip=127.0.0.2&port={port}"), "400"),
        (format!("/dial/ns/other?ip=127.0.0.1&port={port}"), "400"),
        (format!("/dial/other/web?ip=127.0.0.1&port={port}"), "400"),
        (format!("/dial/ns/web?ip=127.0.0.1&port={free}"), "500"),
    ] {
        let (head, _) = api.upgrade(&path, tcp).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {code}")), "{path}: {head}");
    }
}
