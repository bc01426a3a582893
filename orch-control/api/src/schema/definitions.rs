//! The types of Kubernetes v1.36, read on first use from the checked-in `schemas/v1.36.txt`.
//!
//! The file has a line per type and, indented, a line per field: name, `!` if required, shape. A shape
//! is a basic type's word, `[]SHAPE`, `{}SHAPE` (a map) or the name of another type. Everything borrows
//! from the file's text, which is part of the binary. `examples/generate_schemas.rs` writes the file.

use std::collections::HashMap;
use std::sync::OnceLock;

/// The file.
pub(crate) const TEXT: &str = include_str!("../../schemas/v1.36.txt");

/// The shape of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    /// Any JSON.
    Any,
    /// Text.
    String,
    /// A truth value.
    Bool,
    /// An integer of 32 bits.
    Int32,
    /// An integer of 64 bits.
    Int64,
    /// A number.
    Number,
    /// RFC 3339, in whole seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// Base64.
    Bytes,
    /// An integer or text.
    IntOrString,
    /// `resource.Quantity`.
    Quantity,
    /// A list.
    List(Box<Self>),
    /// A map from text.
    Map(Box<Self>),
    /// A type of the file, by its full name.
    Object(&'static str),
}

/// A field of a type.
#[derive(Debug)]
pub struct Field {
    /// JSON name.
    pub name: &'static str,
    /// Whether the schema lists it as required. Go's decoding does not enforce it; validation does.
    pub required: bool,
    /// What it holds.
    pub shape: Shape,
}

/// A type: an object with known fields.
#[derive(Debug)]
pub struct Definition {
    /// Full name, e.g. `io.k8s.api.core.v1.PodSpec`.
    pub name: &'static str,
    /// Sorted by name.
    pub fields: Box<[Field]>,
}

impl Definition {
    /// The field called `name`.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields
            .binary_search_by(|f| f.name.cmp(name))
            .ok()
            .map(|i| &self.fields[i])
    }

    /// The fields that are a required [`Shape::Time`].
    pub(super) fn required_times(&self) -> impl Iterator<Item = &'static str> {
        let times = self
            .fields
            .iter()
            .filter(|f| f.required && f.shape == Shape::Time);
        times.map(|f| f.name)
    }

    /// The Go struct's name, e.g. `PodSpec`.
    pub fn short_name(&self) -> &'static str {
        short(self.name)
    }
}

/// The last part of a type's full name.
pub(crate) fn short(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// The type called `name`.
pub fn definition(name: &str) -> Option<&'static Definition> {
    static DEFINITIONS: OnceLock<HashMap<&'static str, Definition>> = OnceLock::new();
    DEFINITIONS
        .get_or_init(|| read(TEXT).into_iter().map(|d| (d.name, d)).collect())
        .get(name)
}

fn read(text: &'static str) -> Vec<Definition> {
    let mut out: Vec<Definition> = Vec::new();
    let mut fields = Vec::new();
    for line in text.lines().filter(|l| !l.starts_with('#')).rev() {
        match line.strip_prefix(' ').and_then(|l| l.split_once(' ')) {
            Some((name, shape)) => {
                let required = name.ends_with('!');
                fields.push(Field {
                    name: name.trim_end_matches('!'),
                    required,
                    shape: read_shape(shape),
                });
            }
            None => {
                fields.sort_by_key(|f: &Field| f.name);
                out.push(Definition {
                    name: line,
                    fields: std::mem::take(&mut fields).into_boxed_slice(),
                });
            }
        }
    }
    out
}

fn read_shape(word: &'static str) -> Shape {
    if let Some(rest) = word.strip_prefix("[]") {
        return Shape::List(Box::new(read_shape(rest)));
    }
    if let Some(rest) = word.strip_prefix("{}") {
        return Shape::Map(Box::new(read_shape(rest)));
    }
    match word {
        "any" => Shape::Any,
        "string" => Shape::String,
        "bool" => Shape::Bool,
        "int32" => Shape::Int32,
        "int64" => Shape::Int64,
        "number" => Shape::Number,
        "time" => Shape::Time,
        "microtime" => Shape::MicroTime,
        "bytes" => Shape::Bytes,
        "intorstring" => Shape::IntOrString,
        "quantity" => Shape::Quantity,
        name => Shape::Object(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_that_is_named_is_defined() {
        let all = read(TEXT);
        assert!(all.len() > 200, "only {} types", all.len());
        for d in &all {
            for f in &d.fields {
                let mut shape = &f.shape;
                while let Shape::List(inner) | Shape::Map(inner) = shape {
                    shape = inner;
                }
                if let Shape::Object(name) = shape {
                    assert!(definition(name).is_some(), "{}.{} names {name}", d.name, f.name);
                }
            }
        }
    }
}
