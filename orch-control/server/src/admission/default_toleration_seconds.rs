//! DefaultTolerationSeconds: a pod stays five minutes on a node that is not ready or not reachable.

use serde_json::{Value, json};

use super::{Attempt, Operation};

const SECONDS: u32 = 300;
const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// Adds the tolerations that the pod does not have in some form.
pub(super) fn admit(attempt: &mut Attempt<'_>) {
    if !attempt.is("pods", Operation::Create) {
        return;
    }
    let spec = &mut attempt.object["spec"];
    if !spec["tolerations"].is_array() {
        spec["tolerations"] = json!([]);
    }
    let Some(tolerations) = spec["tolerations"].as_array_mut() else {
        return;
    };
    for taint in TAINTS {
        if !tolerations.iter().any(|toleration| tolerates(toleration, taint)) {
            tolerations.push(json!({
                "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS,
            }));
        }
    }
}

fn tolerates(toleration: &Value, taint: &str) -> bool {
    let text = |field: &str| toleration[field].as_str().unwrap_or_default();
    let key = text("key") == taint || text("key").is_empty();
    let effect = matches!(text("effect"), "NoExecute" | "");
    key && effect
}
