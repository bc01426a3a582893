//! Which toleration answers which taint.

use k8s_openapi::api::core::v1::{Taint, Toleration};

/// The effect that keeps new pods away.
pub const NO_SCHEDULE: &str = "NoSchedule";
/// The effect that only makes a node less welcome.
pub const PREFER_NO_SCHEDULE: &str = "PreferNoSchedule";
/// The effect that keeps new pods away and evicts running ones.
pub const NO_EXECUTE: &str = "NoExecute";

/// The taint of a node whose Ready condition is False.
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// The taint of a node whose Ready condition is Unknown.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// The taint of a cordoned node.
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Whether `toleration` tolerates `taint`. An empty key tolerates every key (only with `Exists`), an empty
/// effect every effect; `Lt` and `Gt` compare integers (API: `core/v1.Toleration.operator`).
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |s: &Option<String>| s.as_deref().unwrap_or_default().to_owned();
    let (key, effect, operator) = (
        text(&toleration.key),
        text(&toleration.effect),
        text(&toleration.operator),
    );
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    let (wanted, has) = (text(&toleration.value), text(&taint.value));
    match operator.as_str() {
        "" | "Equal" => !key.is_empty() && wanted == has,
        "Exists" => true,
        "Lt" | "Gt" => match (has.parse::<i64>(), wanted.parse::<i64>()) {
            (Ok(has), Ok(wanted)) if operator == "Lt" => has < wanted,
            (Ok(has), Ok(wanted)) => has > wanted,
            _ => false,
        },
        _ => false,
    }
}

/// The first of `taints`, among those `relevant`, that none of `tolerations` answers.
pub fn untolerated<'a>(
    taints: &'a [Taint],
    tolerations: &[Toleration],
    relevant: impl Fn(&Taint) -> bool,
) -> Option<&'a Taint> {
    taints
        .iter()
        .find(|taint| relevant(taint) && !tolerations.iter().any(|t| tolerates(t, taint)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toleration(key: &str, operator: &str, value: &str, effect: &str) -> Toleration {
        let some = |s: &str| (!s.is_empty()).then(|| s.to_owned());
        Toleration {
            key: some(key),
            operator: some(operator),
            value: some(value),
            effect: some(effect),
            toleration_seconds: None,
        }
    }

    #[test]
    fn tolerations_answer_taints_as_the_api_says() {
        let taint = Taint {
            key: "k".into(),
            value: Some("5".into()),
            effect: NO_SCHEDULE.into(),
            time_added: None,
        };
        let cases = [
            (toleration("k", "", "5", ""), true),
            (toleration("k", "Equal", "6", ""), false),
            (toleration("k", "Exists", "", NO_SCHEDULE), true),
            (toleration("k", "Exists", "", NO_EXECUTE), false),
            (toleration("", "Exists", "", ""), true),
            (toleration("", "", "", ""), false),
            (toleration("other", "Exists", "", ""), false),
            (toleration("k", "Gt", "4", ""), true),
            (toleration("k", "Lt", "4", ""), false),
            (toleration("k", "Lt", "x", ""), false),
        ];
        for (t, expect) in cases {
            assert_eq!(tolerates(&t, &taint), expect, "{t:?}");
        }
    }
}
