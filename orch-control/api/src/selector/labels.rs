//! Label selectors: `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>3` and `metav1.LabelSelector`.

use std::fmt;

use serde_json::Value;

use crate::ApiError;
use crate::validation::names::{label_key_faults, label_value_faults};
use crate::value::{entries, list, text};

/// How a requirement compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// The label is one of the values.
    In,
    /// The label is absent or none of the values.
    NotIn,
    /// The label is present.
    Exists,
    /// The label is absent.
    DoesNotExist,
    /// The label is an integer above the value.
    Gt,
    /// The label is an integer below the value.
    Lt,
}

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// The comparison.
    pub operator: Operator,
    /// What it compares with.
    pub values: Vec<String>,
}

/// A label selector: all its requirements must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    /// Parses the `labelSelector` parameter.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        let refuse = |why: String| ApiError::bad_request(format!("unable to parse requirement: {why}"));
        let mut parser = Parser { rest: text };
        let mut requirements = Vec::new();
        parser.skip_space();
        while !parser.rest.is_empty() {
            let requirement = parser.requirement().map_err(refuse)?;
            check(&requirement).map_err(refuse)?;
            requirements.push(requirement);
            parser.skip_space();
            if parser.take(",") {
                parser.skip_space();
                if parser.rest.is_empty() {
                    return Err(refuse("found '', expected: identifier after ','".to_owned()));
                }
            } else if !parser.rest.is_empty() {
                return Err(refuse(format!(
                    "found '{}', expected: ',' or 'end of string'",
                    parser.rest
                )));
            }
        }
        Ok(Self {
            requirements,
            nothing: false,
        })
    }

    /// From a `metav1.LabelSelector`; null selects nothing, an empty one everything.
    pub fn from_value(selector: &Value) -> Result<Self, ApiError> {
        if selector.is_null() {
            return Ok(Self {
                nothing: true,
                ..Self::default()
            });
        }
        let mut requirements = Vec::new();
        for (key, value) in entries(selector, &["matchLabels"]) {
            let values = vec![value.as_str().unwrap_or_default().to_owned()];
            requirements.push(Requirement {
                key: key.clone(),
                operator: Operator::In,
                values,
            });
        }
        for expression in list(selector, &["matchExpressions"]) {
            let operator = match text(expression, &["operator"]) {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(ApiError::bad_request(format!(
                        "{other:?} is not a valid label selector operator"
                    )));
                }
            };
            let values = list(expression, &["values"])
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect();
            requirements.push(Requirement {
                key: text(expression, &["key"]).to_owned(),
                operator,
                values,
            });
        }
        Ok(Self {
            requirements,
            nothing: false,
        })
    }

    /// From a plain map of labels that must be equal (`spec.selector` of a Service).
    pub fn from_map(labels: &Value) -> Self {
        let requirements = entries(labels, &[])
            .map(|(key, value)| Requirement {
                key: key.clone(),
                operator: Operator::In,
                values: vec![value.as_str().unwrap_or_default().to_owned()],
            })
            .collect();
        Self {
            requirements,
            nothing: false,
        }
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// The conditions.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether `labels` (an object of strings, or null) are selected.
    pub fn matches(&self, labels: &Value) -> bool {
        self.matches_by(|key| labels[key].as_str())
    }

    /// Whether the labels that `label` looks up by key are selected.
    pub fn matches_by<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(label(&r.key)))
    }
}

impl Requirement {
    fn matches(&self, label: Option<&str>) -> bool {
        let listed = |label: &str| self.values.iter().any(|v| v == label);
        let compare = |want: fn(&i64, &i64) -> bool| {
            let bound = self.values.first().and_then(|v| v.parse::<i64>().ok());
            label
                .and_then(|l| l.parse::<i64>().ok())
                .zip(bound)
                .is_some_and(|(l, b)| want(&l, &b))
        };
        match self.operator {
            Operator::In => label.is_some_and(listed),
            Operator::NotIn => !label.is_some_and(listed),
            Operator::Exists => label.is_some(),
            Operator::DoesNotExist => label.is_none(),
            Operator::Gt => compare(i64::gt),
            Operator::Lt => compare(i64::lt),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::In if self.values.len() == 1 => write!(f, "{key}={values}"),
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn if self.values.len() == 1 => write!(f, "{key}!={values}"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::Gt => write!(f, "{key}>{values}"),
            Operator::Lt => write!(f, "{key}<{values}"),
        }
    }
}

impl fmt::Display for LabelSelector {
    /// The form of the `labelSelector` parameter, sorted by key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = self.requirements.iter().map(Requirement::to_string).collect();
        parts.sort();
        f.write_str(&parts.join(","))
    }
}

fn check(requirement: &Requirement) -> Result<(), String> {
    if let Some(fault) = label_key_faults(&requirement.key).first() {
        return Err(format!("key: Invalid value: {:?}: {fault}", requirement.key));
    }
    for (i, value) in requirement.values.iter().enumerate() {
        if let Some(fault) = label_value_faults(value).first() {
            return Err(format!(
                "values[{i}][{}]: Invalid value: {value:?}: {fault}",
                requirement.key
            ));
        }
        if matches!(requirement.operator, Operator::Gt | Operator::Lt) && value.parse::<i64>().is_err() {
            return Err(format!(
                "values[{i}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
            ));
        }
    }
    Ok(())
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// A run of characters that mean nothing to the syntax.
    fn word(&mut self) -> &'a str {
        self.skip_space();
        let special = |c: char| c.is_whitespace() || "=!(),<>".contains(c);
        let end = self.rest.find(special).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        if self.take("!") {
            let key = self.key()?;
            return Ok(Requirement {
                key,
                operator: Operator::DoesNotExist,
                values: Vec::new(),
            });
        }
        let key = self.key()?;
        self.skip_space();
        if self.rest.is_empty() || self.rest.starts_with(',') {
            return Ok(Requirement {
                key,
                operator: Operator::Exists,
                values: Vec::new(),
            });
        }
        for (token, operator) in [
            ("==", Operator::In),
            ("=", Operator::In),
            ("!=", Operator::NotIn),
            (">", Operator::Gt),
            ("<", Operator::Lt),
        ] {
            if self.take(token) {
                let values = vec![self.word().to_owned()];
                return Ok(Requirement {
                    key,
                    operator,
                    values,
                });
            }
        }
        let operator = match self.word() {
            "in" => Operator::In,
            "notin" => Operator::NotIn,
            other => return Err(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt")),
        };
        Ok(Requirement {
            key,
            operator,
            values: self.set()?,
        })
    }

    fn key(&mut self) -> Result<String, String> {
        match self.word() {
            "" => Err(format!("found '{}', expected: identifier", self.rest)),
            key => Ok(key.to_owned()),
        }
    }

    fn set(&mut self) -> Result<Vec<String>, String> {
        self.skip_space();
        if !self.take("(") {
            return Err(format!("found '{}' expected: '('", self.rest));
        }
        let mut values = Vec::new();
        loop {
            values.push(self.word().to_owned());
            self.skip_space();
            if self.take(")") {
                return Ok(values);
            }
            if !self.take(",") {
                return Err(format!("found '{}', expected: ',' or ')'", self.rest));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn parameter_selectors() {
        let labels = json!({"app": "web", "tier": "front", "n": "5"});
        for (selector, matches) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier!=back", true),
            ("app in (web, db)", true),
            ("app notin (web)", false),
            ("gone notin (web)", true),
            ("app", true),
            ("!app", false),
            ("!gone", true),
            ("gone!=x", true),
            ("n>4", true),
            ("n<5", false),
            (" app = web , tier in (front) ", true),
            ("app=", false),
        ] {
            assert_eq!(
                LabelSelector::parse(selector).unwrap().matches(&labels),
                matches,
                "{selector}"
            );
        }
    }

    #[test]
    fn malformed_parameters() {
        for selector in [
            "a=b,", "=b", "a in b", "a in (b", "a b", "a=b c", "!", "a=-", "a>x", ",a", "-a",
        ] {
            let error = LabelSelector::parse(selector).unwrap_err();
            assert_eq!(error.code(), 400, "{selector}");
            assert!(
                error.message().starts_with("unable to parse requirement: "),
                "{error}"
            );
        }
    }

    #[test]
    fn object_selectors() {
        let labels = json!({"app": "web"});
        let check = |selector: Value, want: bool| {
            assert_eq!(
                LabelSelector::from_value(&selector).unwrap().matches(&labels),
                want,
                "{selector}"
            );
        };
        check(Value::Null, false);
        check(json!({}), true);
        check(json!({"matchLabels": {"app": "web"}}), true);
        check(
            json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}),
            false,
        );
        check(
            json!({"matchExpressions": [{"key": "app", "operator": "Exists"}]}),
            true,
        );
        assert!(
            LabelSelector::from_value(&json!({"matchExpressions": [{"key": "a", "operator": "?"}]})).is_err()
        );
    }

    #[test]
    fn prints_what_it_parses() {
        for selector in ["", "a=b", "a in (b,c)", "!a,b", "a!=b", "a notin (b,c)", "n>3"] {
            let parsed = LabelSelector::parse(selector).unwrap();
            assert_eq!(LabelSelector::parse(&parsed.to_string()), Ok(parsed.clone()));
            assert_eq!(parsed.to_string(), selector);
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,60}") {
            let _ = LabelSelector::parse(&text);
        }
    }
}
