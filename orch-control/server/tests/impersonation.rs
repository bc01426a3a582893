//! Acting as somebody else, over the router and with kubectl.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod common;

use common::{Cluster, admin};
use orch_server::auth::identity::Identity;
use serde_json::json;

const REVIEWS: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

/// What an administrator is taken for who sends `headers`.
async fn acting(cluster: &Cluster, headers: &[(&str, &str)]) -> serde_json::Value {
    let answer = cluster
        .request_with(admin(), "POST", REVIEWS, headers, "{}")
        .await;
    assert_eq!(answer.code, 201, "{}", answer.text);
    answer.body["status"]["userInfo"].clone()
}

#[tokio::test]
async fn an_administrator_acts_as_whom_the_headers_name() {
    let cluster = Cluster::start().await;
    assert_eq!(acting(&cluster, &[]).await["username"], "admin");
    assert_eq!(
        acting(
            &cluster,
            &[
                ("Impersonate-User", "bob"),
                ("Impersonate-Group", "dev"),
                ("Impersonate-Group", "ops"),
                ("Impersonate-Uid", "u-1"),
                ("Impersonate-Extra-Scopes", "view"),
            ]
        )
        .await,
        json!({
            "username": "bob", "uid": "u-1", "groups": ["dev", "ops", "system:authenticated"],
            "extra": { "scopes": ["view"] },
        })
    );
    assert_eq!(
        acting(
            &cluster,
            &[("Impersonate-User", "system:serviceaccount:default:app")]
        )
        .await["groups"],
        json!([
            "system:serviceaccounts",
            "system:serviceaccounts:default",
            "system:authenticated"
        ])
    );
    let bob = [("Impersonate-User", "bob")];
    let pods = "/api/v1/namespaces/default/pods";
    let refused = cluster.request_with(admin(), "GET", pods, &bob, "").await;
    assert_eq!(
        (refused.code, refused.body["message"].as_str()),
        (
            403,
            Some(
                r#"pods is forbidden: User "bob" cannot list resource "pods" in API group "" in the namespace "default""#
            )
        )
    );
    let metrics = cluster.request_with(admin(), "GET", "/metrics", &bob, "").await;
    assert_eq!(metrics.code, 403, "{}", metrics.text);
    // Groups carry rights: that is what impersonating them is for.
    let masters = [
        ("Impersonate-User", "bob"),
        ("Impersonate-Group", "system:masters"),
    ];
    assert_eq!(
        cluster
            .request_with(admin(), "GET", pods, &masters, "")
            .await
            .code,
        200
    );
    let group_alone = [("Impersonate-Group", "dev")];
    assert_eq!(
        cluster
            .request_with(admin(), "GET", pods, &group_alone, "")
            .await
            .code,
        400
    );
}

#[tokio::test]
async fn nobody_else_may() {
    let cluster = Cluster::start().await;
    let node = Identity::authenticated("system:node:n1", ["system:nodes".to_owned()]);
    for (who, user, message) in [
        (
            Identity::authenticated("bob", []),
            "admin",
            r#"users "admin" is forbidden: User "bob" cannot impersonate resource "users" in API group "" at the cluster scope"#,
        ),
        (
            Identity::anonymous(),
            "system:serviceaccount:default:app",
            r#"serviceaccounts "app" is forbidden: User "system:anonymous" cannot impersonate resource "serviceaccounts" in API group "" in the namespace "default""#,
        ),
        (
            node,
            "system:node:n2",
            r#"users "system:node:n2" is forbidden: User "system:node:n1" cannot impersonate resource "users" in API group "" at the cluster scope"#,
        ),
        (
            Identity::controller_manager(),
            "admin",
            r#"users "admin" is forbidden: User "system:kube-controller-manager" cannot impersonate resource "users" in API group "" at the cluster scope"#,
        ),
    ] {
        for path in ["/version", "/api/v1/pods"] {
            let headers = [
                ("Impersonate-User", user),
                ("Impersonate-Group", "system:masters"),
            ];
            let answer = cluster.request_with(who.clone(), "GET", path, &headers, "").await;
            assert_eq!(
                (answer.code, answer.body["message"].as_str()),
                (403, Some(message)),
                "{path}"
            );
        }
    }
}

#[tokio::test]
async fn kubectl_sees_the_rights_of_others() {
    let cluster = Cluster::start().await;
    let (_, mine) = cluster.kubectl(&["auth", "can-i", "create", "pods"], "").await;
    assert_eq!(mine.trim(), "yes");
    let (_, theirs) = cluster
        .kubectl(&["auth", "can-i", "create", "pods", "--as=nobody"], "")
        .await;
    assert_eq!(theirs.trim(), "no");
    let (_, who) = cluster
        .kubectl(
            &[
                "auth",
                "whoami",
                "-o",
                "jsonpath={.status.userInfo}",
                "--as=bob",
                "--as-group=dev",
            ],
            "",
        )
        .await;
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&who).unwrap(),
        json!({ "username": "bob", "groups": ["dev", "system:authenticated"] })
    );
}
