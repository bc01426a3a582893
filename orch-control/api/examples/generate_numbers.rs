//! Writes `schemas/v1.36.numbers.txt`: the protobuf field numbers of the types of `schemas/v1.36.txt`.
//!
//! The numbers are read from the sources of the k8s-pb crate, whose prost attributes repeat those of the
//! `generated.proto` files of Kubernetes. Run it after `generate_schemas`:
//! `cargo run -p orch-api --example generate_numbers -- ~/.cargo/registry/src/*/k8s-pb-0.9.0/src`

#[path = "generate_numbers/pointers.rs"]
mod pointers;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use pointers::POINTERS;

/// A field as prost describes it.
struct Tagged {
    number: u8,
    /// `string`, `message`, `btree_map = "string, bytes"`, …
    wire: String,
    /// The Rust type.
    of: String,
}

/// Lower-case names, since prost changes the case of names: `podIPs` becomes `pod_i_ps`.
type Messages = BTreeMap<String, BTreeMap<String, Tagged>>;

fn fold(name: &str) -> String {
    name.replace('_', "").to_ascii_lowercase()
}

/// Reads the messages of the module in `file`, called `package`.
fn read_module(file: &Path, package: &str, out: &mut Messages) -> Result<(), Box<dyn Error>> {
    let mut message = None;
    let mut attribute = None;
    let text = std::fs::read_to_string(file)?;
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("pub struct ") {
            let name = name.trim_end_matches([' ', '{', '}']);
            message = Some(fold(&format!("{package}.{name}")));
            out.entry(message.clone().unwrap_or_default()).or_default();
        } else if let Some((wire, tag)) = line
            .strip_prefix("#[prost(")
            .and_then(|l| l.split_once("tag = \""))
        {
            let number = tag.split('"').next().unwrap_or_default().parse()?;
            attribute = Some((wire.trim_end_matches([',', ' ']).to_owned(), number));
        } else if let Some((name, of)) = line.strip_prefix("pub ").and_then(|l| l.split_once(':'))
            && let Some((wire, number)) = attribute.take()
        {
            let mut of = of.to_owned();
            while !of.ends_with(',') {
                of += lines.next().ok_or("a field without an end")?;
            }
            let message = message.as_ref().and_then(|m| out.get_mut(m));
            let name = fold(name.trim_start_matches("r#"));
            message
                .ok_or("a field outside of a message")?
                .insert(name, Tagged { number, wire, of });
        }
    }
    Ok(())
}

fn read_tree(folder: &Path, package: &str, out: &mut Messages) -> Result<(), Box<dyn Error>> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if path.is_dir() {
            read_tree(&path, &format!("{package}.{name}"), out)?;
        } else if name == "mod.rs" {
            read_module(&path, package, out)?;
        }
    }
    Ok(())
}

/// Whether a field of this shape can be written as prost says.
fn agrees(shape: &str, tagged: &Tagged) -> bool {
    let word = |shape: &str| match shape {
        "string" | "bool" | "int32" | "int64" => shape.to_owned(),
        "bytes" => "bytes".to_owned(),
        _ => "message".to_owned(),
    };
    if let Some(inner) = shape.strip_prefix("{}") {
        return tagged.wire == format!("btree_map = \"string, {}\"", word(inner));
    }
    let (element, repeated) = match shape.strip_prefix("[]") {
        Some(inner) => (inner, true),
        None => (shape, false),
    };
    tagged.wire.starts_with(&word(element)) && tagged.wire.contains("repeated") == repeated
}

/// The message behind an inlined field, which stands in the same package.
fn inlined(package: &str, tagged: &Tagged) -> Option<String> {
    let of = tagged.of.strip_suffix(">,")?.rsplit('<').next()?.trim();
    (tagged.wire.starts_with("message, optional") && !of.contains("super::"))
        .then(|| fold(&format!("{package}.{of}")))
}

/// The types with the shapes of their fields.
fn read_types(text: &str) -> BTreeMap<&str, BTreeMap<&str, &str>> {
    let mut out: BTreeMap<&str, BTreeMap<&str, &str>> = BTreeMap::new();
    let mut definition = "";
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        match line.strip_prefix(' ').and_then(|l| l.split_once(' ')) {
            Some((field, shape)) => {
                let fields = out.entry(definition).or_default();
                fields.insert(field.trim_end_matches('!'), shape);
            }
            None => definition = line,
        }
    }
    out
}

fn main() -> Result<(), Box<dyn Error>> {
    let source = std::env::args()
        .nth(1)
        .ok_or("the folder with the sources of k8s-pb is missing")?;
    let mut messages = Messages::new();
    read_tree(Path::new(&source), "io.k8s", &mut messages)?;
    let schemas = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas");
    let types = std::fs::read_to_string(format!("{schemas}/v1.36.txt"))?;
    let mut out = String::from(
        "# Protobuf field numbers, written by examples/generate_numbers.rs. A.B: B in the message inlined at A. \"*\": a Go pointer.\n",
    );
    let mut pointers: BTreeSet<&str> = POINTERS.iter().copied().collect();
    for (definition, fields) in read_types(&types) {
        let Some(message) = messages.get(&fold(definition)) else {
            eprintln!("no message {definition}");
            continue;
        };
        let (package, short) = definition.rsplit_once('.').ok_or("a type without a package")?;
        writeln!(out, "{definition}")?;
        for (field, shape) in &fields {
            let direct = message.get(&fold(field)).map(|t| (t.number.to_string(), t));
            let found = direct.or_else(|| {
                let mut outer = message
                    .iter()
                    .filter(|(m, _)| fields.keys().all(|f| fold(f) != **m));
                outer.find_map(|(_, outer)| {
                    let inner = messages.get(&inlined(package, outer)?)?.get(&fold(field))?;
                    Some((format!("{}.{}", outer.number, inner.number), inner))
                })
            });
            match found {
                Some((number, tagged)) => {
                    if !agrees(shape, tagged) {
                        return Err(format!("{definition}.{field} is {shape} and {}", tagged.wire).into());
                    }
                    let pointer = pointers.remove(format!("{short}.{field}").as_str());
                    writeln!(out, " {field} {number}{}", if pointer { " *" } else { "" })?;
                }
                None if *field == "apiVersion" || *field == "kind" => {}
                None => eprintln!("no number for {definition}.{field}"),
            }
        }
    }
    if !pointers.is_empty() {
        return Err(format!("no such fields: {pointers:?}").into());
    }
    std::fs::write(format!("{schemas}/v1.36.numbers.txt"), out)?;
    Ok(())
}
