//! The `.hex` files are bodies that kubectl 1.32.4 sent: `kubectl create …`, `auth can-i`, `auth whoami`.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::FieldValidation;
use crate::schema::check;

const FIXTURES: [&str; 8] = [
    include_str!("fixtures/access_review.hex"),
    include_str!("fixtures/configmap.hex"),
    include_str!("fixtures/deployment.hex"),
    include_str!("fixtures/namespace.hex"),
    include_str!("fixtures/secret.hex"),
    include_str!("fixtures/self_review.hex"),
    include_str!("fixtures/service.hex"),
    include_str!("fixtures/token_request.hex"),
];

fn unhex(text: &str) -> Vec<u8> {
    let byte = |b| u8::from_str_radix(b, 16).unwrap();
    text.split_whitespace().map(byte).collect()
}

/// A field of bytes, text or a message.
fn b(number: u64, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    [
        varint(number << 3 | 2),
        varint(value.len() as u64),
        value.to_vec(),
    ]
    .concat()
}

/// An integer field.
fn i(number: u64, value: i64) -> Vec<u8> {
    [varint(number << 3), varint(value as u64)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [b(1, api_version), b(2, kind)].concat();
    [MAGIC.to_vec(), b(1, meta), b(2, raw), b(3, ""), b(4, "")].concat()
}

fn read(api_version: &str, kind: &str, raw: &[Vec<u8>]) -> Value {
    decode(&body(api_version, kind, &raw.concat())).unwrap()
}

#[test]
fn reads_what_kubectl_sends() {
    let read = |fixture| decode(&unhex(fixture)).unwrap();
    assert_eq!(
        FIXTURES.map(read),
        [
            json!({
                "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "metadata": {},
                "spec": {"resourceAttributes": {"namespace": "default", "verb": "create", "resource": "pods"}},
                "status": {"allowed": false},
            }),
            json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": "c9", "namespace": "pb"},
                "binaryData": {"bin": "/wA="},
            }),
            json!({
                "apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": {"name": "d5", "namespace": "pb", "labels": {"app": "d5"}},
                "spec": {
                    "replicas": 0,
                    "selector": {"matchLabels": {"app": "d5"}},
                    "template": {
                        "metadata": {"labels": {"app": "d5"}},
                        "spec": {
                            "containers": [{"name": "nginx", "image": "nginx", "resources": {}}],
                        },
                    },
                    "strategy": {},
                },
                "status": {},
            }),
            json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": "pbx"}, "spec": {}, "status": {},
            }),
            json!({
                "apiVersion": "v1", "kind": "Secret",
                "metadata": {"name": "s5", "namespace": "pb"}, "data": {"p": "cQ=="},
            }),
            json!({
                "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview",
                "metadata": {}, "status": {"userInfo": {}},
            }),
            json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": "sn5", "namespace": "pb", "labels": {"app": "sn5"}},
                "spec": {
                    "ports": [{"name": "80-http", "protocol": "TCP", "port": 80, "targetPort": "http"}],
                    "selector": {"app": "sn5"},
                    "type": "NodePort",
                },
                "status": {"loadBalancer": {}},
            }),
            json!({
                "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {},
                "spec": {"expirationSeconds": 1200}, "status": {},
            })
        ]
    );
}

#[test]
fn inlined_messages_are_flat_in_json() {
    let volume = [b(1, "v"), b(2, b(2, [b(1, ""), b(2, b(1, "1Gi"))].concat()))].concat();
    let host = [b(1, "h"), b(2, b(1, [b(1, "/srv"), b(2, "")].concat()))].concat();
    let secret_key = [b(1, b(1, "creds")), b(2, "password"), i(3, 0)].concat();
    let env = [b(1, "P"), b(2, ""), b(3, b(4, secret_key))].concat();
    let port = [i(1, 0), i(2, 8080), b(3, "")].concat();
    let get = [b(1, "/ok"), b(2, port), b(3, ""), b(4, "")].concat();
    let probe = [b(1, b(2, get)), i(2, 0), i(3, 0)].concat();
    let limits = b(1, [b(1, "cpu"), b(2, b(1, "100m"))].concat());
    let container = [b(1, "c"), b(7, env), b(8, limits), b(10, probe), i(16, 0)].concat();
    let debugger = [b(1, [b(1, "e"), b(2, "busybox"), i(18, 1)].concat()), b(2, "c")].concat();
    let spec = [
        b(1, volume),
        b(1, host),
        b(2, container),
        i(4, 0),
        i(11, 0),
        b(34, debugger),
    ]
    .concat();
    assert_eq!(
        read("v1", "Pod", &[b(2, spec)])["spec"],
        json!({
            "volumes": [
                {"name": "v", "emptyDir": {"sizeLimit": "1Gi"}},
                {"name": "h", "hostPath": {"path": "/srv", "type": ""}},
            ],
            "containers": [{
                "name": "c",
                "env": [{"name": "P", "valueFrom": {
                    "secretKeyRef": {"name": "creds", "key": "password", "optional": false}}}],
                "resources": {"limits": {"cpu": "100m"}},
                "livenessProbe": {"httpGet": {"path": "/ok", "port": 8080}},
            }],
            "terminationGracePeriodSeconds": 0,
            "ephemeralContainers": [
                {"name": "e", "image": "busybox", "tty": true, "targetContainerName": "c"}],
        })
    );
}

#[test]
fn times_lists_and_raw_json() {
    let stamp = [i(1, 1_700_000_000), i(2, 0)].concat();
    let managed = [b(1, "m"), b(4, &stamp), b(7, b(1, r#"{"f:a":{}}"#))].concat();
    let metadata = [b(8, &stamp), b(9, ""), b(17, managed)].concat();
    let micro = [i(1, 1_700_000_000), i(2, 1_500)].concat();
    let lease = [b(1, "me"), i(2, 0), b(4, micro)].concat();
    assert_eq!(
        read("coordination.k8s.io/v1", "Lease", &[b(1, metadata), b(2, lease)]),
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {
                "creationTimestamp": "2023-11-14T22:13:20Z",
                "managedFields": [
                    {"manager": "m", "time": "2023-11-14T22:13:20Z", "fieldsV1": {"f:a": {}}}],
            },
            "spec": {
                "holderIdentity": "me", "leaseDurationSeconds": 0,
                "renewTime": "2023-11-14T22:13:20.000001Z",
            },
        })
    );
    // Packed or not, and with Int64's full range.
    let groups = [i(4, 7), b(4, [varint(8), varint(-1_i64 as u64)].concat())].concat();
    let pod = read("v1", "Pod", &[b(2, b(14, groups))]);
    assert_eq!(
        pod["spec"]["securityContext"],
        json!({"supplementalGroups": [7, 8, -1]})
    );
    let extra = [b(1, "scopes"), b(2, [b(1, "a"), b(1, "b")].concat())].concat();
    let review = read(
        "authorization.k8s.io/v1",
        "SubjectAccessReview",
        &[b(2, [b(3, "joe"), b(5, extra), b(5, b(1, "none"))].concat())],
    );
    assert_eq!(
        review["spec"],
        json!({"user": "joe", "extra": {"scopes": ["a", "b"], "none": []}})
    );
}

#[test]
fn bodies_that_are_no_kind_of_the_table() {
    let options = [i(1, 0), b(2, b(1, "u")), b(4, "Orphan")];
    for group in ["v1", "apps/v1", "meta.k8s.io/v1"] {
        assert_eq!(
            read(group, "DeleteOptions", &options),
            json!({"apiVersion": group, "kind": "DeleteOptions", "gracePeriodSeconds": 0,
                "preconditions": {"uid": "u"}, "propagationPolicy": "Orphan"})
        );
    }
    let scale = read("autoscaling/v1", "Scale", &[b(2, i(1, 0))]);
    assert_eq!(scale["spec"], json!({"replicas": 0}));
    let eviction = read("policy/v1", "Eviction", &[b(1, b(1, "p"))]);
    assert_eq!(eviction["metadata"], json!({"name": "p"}));
    let binding = read("v1", "Binding", &[b(2, b(3, "n1"))]);
    assert_eq!(binding["target"], json!({"name": "n1"}));
}

#[test]
fn parts_are_merged_and_unknown_fields_skipped() {
    let parts = [
        b(1, b(1, "a")),
        b(1, b(3, "ns")),
        b(1, b(1, "b")),
        i(900, 1),
        b(901, "x"),
    ];
    assert_eq!(
        read("v1", "ConfigMap", &parts)["metadata"],
        json!({"name": "b", "namespace": "ns"})
    );
}

#[test]
fn refuses_in_words() {
    let config_map = |raw: &[u8]| body("v1", "ConfigMap", raw);
    for (bytes, why) in [
        (b"{}".to_vec(), "expected prefix [107, 56, 115, 0]"),
        (MAGIC.to_vec(), "Object 'Kind' is missing"),
        (body("", "Pod", b""), "Object 'apiVersion' is missing"),
        (
            body("v1", "Gadget", b""),
            r#"no kind "Gadget" is registered for version "v1""#,
        ),
        (
            [config_map(b""), b(4, "application/json")].concat(),
            "is not read",
        ),
        ([config_map(b""), b(3, "gzip")].concat(), "is not read"),
        (config_map(b"\x0a\x05a"), "ConfigMap: proto: unexpected EOF"),
        (config_map(&i(1, 1)), "wrong wireType for field metadata"),
        (
            config_map(&b(1, b(1, b"\xff"))),
            "field name contains invalid UTF-8",
        ),
        (
            config_map(&b(1, b(8, i(1, i64::MAX)))),
            "creationTimestamp holds no point in time",
        ),
        (
            config_map(&b(1, b(8, i(2, -1)))),
            "creationTimestamp holds no point in time",
        ),
        (
            config_map(&b(1, b(17, b(7, b(1, "{"))))),
            "field fieldsV1 holds no JSON",
        ),
    ] {
        let error = decode(&bytes).unwrap_err();
        assert_eq!(error.code(), 400);
        assert!(error.message().contains(why), "{}", error.message());
    }
}

proptest! {
    #[test]
    fn any_bytes_end(raw: Vec<u8>, kind in 0..KINDS.len()) {
        let _ = decode(&raw);
        let _ = decode(&[MAGIC, raw.as_slice()].concat());
        let _ = decode(&body(&KINDS[kind].api_version(), KINDS[kind].kind, &raw));
    }

    /// What is read always fits the type, whatever happened to the bytes on the way.
    #[test]
    fn damage_is_refused_or_fits_the_type(
        fixture in 0..FIXTURES.len(),
        at in any::<prop::sample::Index>(),
        byte: u8,
    ) {
        let mut bytes = unhex(FIXTURES[fixture]);
        let at = at.index(bytes.len());
        let _ = decode(&bytes[..at]);
        bytes[at] = byte;
        if let Ok(mut object) = decode(&bytes)
            && let (Some(version), Some(kind)) = (object["apiVersion"].as_str(), object["kind"].as_str())
            && let Some(kind) = Kind::by_gvk(version, kind)
            && let Err(error) = check(kind, &mut object, FieldValidation::Strict)
        {
            prop_assert!(error.message().contains("quantities must match"), "{}", error.message());
        }
    }
}
