//! Forms of names, labels and keys (`k8s.io/apimachinery/pkg/util/validation`).
//!
//! Each function answers the faults of a text as sentences; none for a good one.

/// The longest DNS label.
pub const LABEL_MAX: usize = 63;
/// The longest DNS name.
pub const SUBDOMAIN_MAX: usize = 253;

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const ENV_NAME: &str =
    "a valid environment variable name must consist only of printable ASCII characters other than '='";

const WILDCARD: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn lower(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    !text.is_empty()
        && text.chars().all(|c| lower(c) || c == '-')
        && text.starts_with(lower)
        && text.ends_with(lower)
}

fn is_qualified_part(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric();
    text.starts_with(edge) && text.ends_with(edge) && text.chars().all(|c| edge(c) || "-_.".contains(c))
}

fn collect(text: &str, max: usize, fits: bool, fault: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > max {
        out.push(too_long(max));
    }
    if !fits {
        out.push(fault.to_owned());
    }
    out
}

/// An RFC 1123 label.
pub fn dns_label_faults(text: &str) -> Vec<String> {
    collect(text, LABEL_MAX, is_label(text), LABEL)
}

/// An RFC 1123 subdomain.
pub fn dns_subdomain_faults(text: &str) -> Vec<String> {
    collect(text, SUBDOMAIN_MAX, text.split('.').all(is_label), SUBDOMAIN)
}

/// An RFC 1123 subdomain whose first label is `*`.
pub fn wildcard_subdomain_faults(text: &str) -> Vec<String> {
    let fits = text
        .strip_prefix("*.")
        .is_some_and(|rest| rest.split('.').all(is_label));
    collect(text, SUBDOMAIN_MAX, fits, WILDCARD)
}

/// A domain and a path below it, as in `acme.io/foo`.
pub fn domain_prefixed_path_faults(text: &str) -> Vec<String> {
    let Some((domain, path)) = text.split_once('/').filter(|(_, path)| !path.is_empty()) else {
        return vec!["must be a domain-prefixed path (such as \"acme.io/foo\")".to_owned()];
    };
    let mut out = dns_subdomain_faults(domain);
    let in_path = |c: char| c.is_ascii_alphanumeric() || "/-._~%!$&'()*+,;=:".contains(c);
    if !path.chars().all(in_path) {
        out.push("Invalid path: must be a valid URL path".to_owned());
    }
    out
}

/// A text that can stand in a URL's path by itself.
pub fn path_segment_faults(text: &str) -> Vec<String> {
    if matches!(text, "." | "..") {
        return vec![format!("may not be '{text}'")];
    }
    ["/", "%"]
        .iter()
        .filter(|bad| text.contains(**bad))
        .map(|bad| format!("may not contain '{bad}'"))
        .collect()
}

/// An RFC 1035 label.
pub fn dns_1035_label_faults(text: &str) -> Vec<String> {
    let fits = is_label(text) && text.starts_with(|c: char| c.is_ascii_lowercase());
    collect(text, LABEL_MAX, fits, LABEL_1035)
}

/// A label or annotation key: a name with an optional DNS prefix.
pub fn label_key_faults(text: &str) -> Vec<String> {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    if name.contains('/') {
        return vec![format!(
            "a valid label key {QUALIFIED} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
        )];
    }
    let mut out = Vec::new();
    match prefix {
        Some("") => out.push("prefix part must be non-empty".to_owned()),
        Some(prefix) => out.extend(
            dns_subdomain_faults(prefix)
                .into_iter()
                .map(|f| format!("prefix part {f}")),
        ),
        None => {}
    }
    if name.is_empty() {
        out.push("name part must be non-empty".to_owned());
    }
    out.extend(
        collect(name, LABEL_MAX, is_qualified_part(name), QUALIFIED)
            .into_iter()
            .map(|f| format!("name part {f}")),
    );
    out
}

/// A label's value.
pub fn label_value_faults(text: &str) -> Vec<String> {
    collect(
        text,
        LABEL_MAX,
        text.is_empty() || is_qualified_part(text),
        LABEL_VALUE,
    )
}

/// A key of a ConfigMap or Secret.
pub fn config_key_faults(text: &str) -> Vec<String> {
    let fits = !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    let mut out = collect(text, SUBDOMAIN_MAX, fits, CONFIG_KEY);
    match text {
        "." => out.push("must not be '.'".to_owned()),
        ".." => out.push("must not be '..'".to_owned()),
        other if other.starts_with("..") => out.push("must not start with '..'".to_owned()),
        _ => {}
    }
    out
}

/// The name of an environment variable, relaxed as since v1.32.
pub fn env_name_faults(text: &str) -> Vec<String> {
    let fits = !text.is_empty()
        && text
            .chars()
            .all(|c| (c.is_ascii_graphic() || c == ' ') && c != '=');
    if fits {
        Vec::new()
    } else {
        vec![ENV_NAME.to_owned()]
    }
}

/// The name of a port (IANA_SVC_NAME).
pub fn port_name_faults(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > 15 {
        out.push("must be no more than 15 characters".to_owned());
    }
    if text.is_empty() || !text.chars().all(|c| lower(c) || c == '-') {
        out.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.contains(|c: char| c.is_ascii_lowercase()) {
        out.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        out.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        out.push("must not begin or end with a hyphen".to_owned());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_and_bad() {
        let long = "a".repeat(64);
        type Faults = fn(&str) -> Vec<String>;
        let cases: &[(Faults, &[&str], &[&str])] = &[
            (
                dns_label_faults,
                &["a", "a-b", "1"],
                &["", "-a", "a-", "A", "a.b", &long],
            ),
            (
                dns_subdomain_faults,
                &["a.b", "a", "1.2"],
                &["", ".", "a..b", "a_b", "a."],
            ),
            (dns_1035_label_faults, &["a1"], &["1a", ""]),
            (
                wildcard_subdomain_faults,
                &["*.a.b"],
                &["*", "*a.b", "a.*.b", "*.A", "*."],
            ),
            (
                domain_prefixed_path_faults,
                &["a.io/b", "a.io/b/c"],
                &["a.io", "a.io/", "A/b", "a/b c"],
            ),
            (path_segment_faults, &["a", "a:b"], &[".", "..", "a/b", "a%b"]),
            (
                label_key_faults,
                &["a", "A_b.c", "x.io/a"],
                &["", "/a", "a/", "a/b/c", "X/a", "-a", &long],
            ),
            (
                label_value_faults,
                &["", "a", "A.b_c-d"],
                &["-a", "a b", "a-", &long],
            ),
            (config_key_faults, &["a.b", "_A"], &["", ".", "..", "..a", "a/b"]),
            (env_name_faults, &["A", "a.b", "1"], &["", "a=b", "ä"]),
            (
                port_name_faults,
                &["http", "a1"],
                &["", "1", "a--b", "-a", "Http", "abcdefghijklmnop"],
            ),
        ];
        for (faults, good, bad) in cases {
            for text in *good {
                assert!(faults(text).is_empty(), "{text:?}: {:?}", faults(text));
            }
            for text in *bad {
                assert!(!faults(text).is_empty(), "{text:?}");
            }
        }
    }
}
