//! What the tests of this room share: a runtime that records, an API in memory.

use orch_runtime::ImageInfo;

/// An image of root's that runs `/bin/app`.
pub(crate) fn image(name: &str) -> ImageInfo {
    ImageInfo {
        name: name.to_owned(),
        id: "sha256:0123".to_owned(),
        repo_digests: vec![],
        size: 1,
        entrypoint: vec!["/bin/app".to_owned()],
        cmd: vec![],
        env: vec![],
        user: String::new(),
        working_dir: String::new(),
        stop_signal: None,
        exposed_ports: vec![],
        labels: Default::default(),
    }
}
