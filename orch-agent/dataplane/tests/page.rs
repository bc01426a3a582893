//! The page on the data plane (`orch-ebpf/README.md`) names everything that there is to look at.

use orch_dataplane::{inspect::View, maps};
use orch_ebpf::event::{DropReason, Path};

const PAGE: &str = include_str!("../../../orch-ebpf/README.md");
const PROGRAMS: &str = include_str!("../../../orch-ebpf/src/bin/orch.rs");
const MAPS: &str = include_str!("../../../orch-ebpf/src/datapath/maps.rs");
const METRICS: &str = include_str!("../src/metrics.rs");

/// Rows whose first cell says `name`, alone or beside others.
fn rows(name: &str) -> usize {
    let first = |line: &&str| {
        let cell = line.strip_prefix("| ").and_then(|row| row.split(" | ").next());
        cell.is_some_and(|cell| cell.split(", ").any(|word| word.trim_matches('`') == name) || cell == name)
    };
    PAGE.lines().filter(first).count()
}

/// Words of Rust or text that start with `prefix`.
fn words<'a>(text: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
        .filter(move |word| word.starts_with(prefix))
}

#[test]
fn each_map_has_its_row() {
    for name in maps::names() {
        assert_eq!(rows(&name), 1, "{name}");
    }
    for name in words(MAPS, "ORCH_") {
        assert!(PAGE.contains(&format!("`{name}`")), "{name}");
    }
}

#[test]
fn each_program_has_its_row() {
    let entries = PROGRAMS.lines().filter_map(|line| {
        line.strip_prefix("pub fn ")?
            .split_once("(ctx")
            .map(|(name, _)| name)
    });
    let (_, hooks) = PROGRAMS
        .split_once("socket_hooks! {")
        .expect("the hooks stand in a table");
    let (hooks, _) = hooks.split_once('}').expect("the table ends");
    let hooks = hooks.lines().filter_map(|line| line.split_whitespace().next());
    let names: Vec<&str> = entries.chain(hooks).collect();
    assert!(
        names.contains(&"pod_ingress") && names.contains(&"getpeername6"),
        "{names:?}"
    );
    for name in names {
        assert_eq!(rows(name), 1, "{name}");
    }
}

#[test]
fn each_reason_and_path_has_its_row() {
    let reasons = DropReason::ALL.iter().map(|reason| reason.text());
    for text in reasons.chain(Path::ALL.iter().map(|path| path.text())) {
        assert_eq!(rows(text), 1, "{text}");
    }
}

#[test]
fn each_view_and_metric_is_named() {
    for view in View::NAMES {
        assert!(PAGE.contains(&format!("`{view}`")), "{view}");
    }
    for prefix in ["orch_dataplane_", "kubeproxy_"] {
        for name in words(METRICS, prefix) {
            let counter = format!("`{name}_total`");
            assert!(
                PAGE.contains(&format!("`{name}`")) || PAGE.contains(&counter),
                "{name}"
            );
        }
    }
}
