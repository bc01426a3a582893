//! The plan, one event at a time.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{
    super::{
        event::{Event, Exit, Op, ProbeKind, StartFailure, Timer},
        state::{Phase, Stage, State},
        status,
        testing::{pod, typed},
    },
    adopt, step,
};

/// A plan under test and its clock.
struct Bench {
    state: Option<State>,
    now: Timestamp,
    ops: Vec<Op>,
}

impl Bench {
    fn new(spec: Value) -> Self {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let (state, ops) = adopt(typed(pod(spec)), vec![], now);
        let mut bench = Self {
            state: Some(state),
            now,
            ops,
        };
        assert!(bench.ops.contains(&Op::Prepare));
        bench.hear(Event::Prepared {
            ips: vec!["10.244.0.7".parse().unwrap()],
        });
        bench
    }

    fn hear(&mut self, event: Event) -> &[Op] {
        let (state, ops) = step(self.state.take().unwrap(), self.now, event);
        self.state = Some(state);
        self.ops = ops;
        &self.ops
    }

    fn state(&self) -> &State {
        self.state.as_ref().unwrap()
    }

    fn pass(&mut self, seconds: u64) {
        self.now = self.now.checked_add(Duration::from_secs(seconds)).unwrap();
    }

    fn slot(&self, name: &str) -> usize {
        self.state()
            .core()
            .slots
            .iter()
            .position(|s| s.name == name)
            .unwrap()
    }

    fn id(&self, name: &str) -> String {
        self.state().core().slots[self.slot(name)]
            .current_id()
            .unwrap()
            .to_owned()
    }

    /// Names of the containers that the last operations start.
    fn starts(&self) -> Vec<&str> {
        let slots = &self.state().core().slots;
        self.ops
            .iter()
            .filter_map(|op| {
                if let Op::Start { slot, .. } = op {
                    Some(&*slots[*slot].name)
                } else {
                    None
                }
            })
            .collect()
    }

    fn stops(&self) -> Vec<&str> {
        let slots = &self.state().core().slots;
        self.ops
            .iter()
            .filter_map(|op| {
                if let Op::Stop { slot, .. } = op {
                    Some(&*slots[*slot].name)
                } else {
                    None
                }
            })
            .collect()
    }

    fn started(&mut self, name: &str) -> &[Op] {
        let (slot, id, at) = (self.slot(name), self.id(name), self.now);
        self.hear(Event::Started {
            slot,
            id,
            image_id: "i".into(),
            at,
        })
    }

    fn exited(&mut self, name: &str, code: i32) -> &[Op] {
        let exit = Exit {
            code,
            at: self.now,
            oom: false,
            message: None,
        };
        let id = self.id(name);
        self.hear(Event::Exited { id, exit })
    }

    fn probed(&mut self, name: &str, kind: ProbeKind, passed: bool) -> &[Op] {
        let (slot, id) = (self.slot(name), self.id(name));
        self.hear(Event::Probed {
            slot,
            id,
            kind,
            passed,
        })
    }

    fn status(&self) -> k8s_openapi::api::core::v1::PodStatus {
        status::of(
            self.state(),
            &["192.0.2.1".parse().unwrap()],
            &Default::default(),
            self.now,
        )
    }

    fn phase(&self) -> String {
        self.status().phase.unwrap()
    }

    fn ready(&self) -> bool {
        self.status()
            .conditions
            .unwrap()
            .iter()
            .any(|c| c.type_ == "Ready" && c.status == "True")
    }

    fn deleted(&self, grace: i64) -> Event {
        let mut pod = Pod::clone(&self.state().core().pod);
        pod.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now));
        pod.metadata.deletion_grace_period_seconds = Some(grace);
        Event::Desired(Arc::new(pod))
    }
}

fn containers(names: &[&str]) -> Value {
    names.iter().map(|n| json!({"name": n, "image": "i"})).collect()
}

#[test]
fn init_containers_run_one_after_the_other_then_all_others_at_once() {
    let mut b = Bench::new(
        json!({"initContainers": containers(&["i1", "i2"]), "containers": containers(&["a", "b"])}),
    );
    assert_eq!(b.starts(), ["i1"]);
    assert_eq!(b.phase(), "Pending");
    b.started("i1");
    assert!(b.starts().is_empty());
    b.exited("i1", 0);
    assert_eq!(b.starts(), ["i2"]);
    b.started("i2");
    b.exited("i2", 0);
    assert_eq!(b.starts(), ["a", "b"]);
    b.started("a");
    assert_eq!((b.phase().as_str(), b.ready()), ("Pending", false));
    b.started("b");
    assert_eq!((b.phase().as_str(), b.ready()), ("Running", true));
    // What has ended well before is not run again when a container crashes.
    b.exited("a", 1);
    assert_eq!(b.starts(), ["a"]);
}

#[test]
fn sidecars_start_in_turn_and_stop_last() {
    let mut b = Bench::new(json!({"initContainers": [
        {"name": "s1", "image": "i", "restartPolicy": "Always", "startupProbe": {"exec": {"command": ["x"]}}},
        {"name": "s2", "image": "i", "restartPolicy": "Always"}], "containers": containers(&["a"])}));
    assert_eq!(b.starts(), ["s1"]);
    b.started("s1");
    assert!(b.starts().is_empty(), "its startup probe has not passed");
    b.probed("s1", ProbeKind::Startup, true);
    assert_eq!(b.starts(), ["s2"]);
    b.started("s2");
    assert_eq!(b.starts(), ["a"]);
    b.started("a");
    b.exited("s1", 0);
    assert_eq!(b.starts(), ["s1"], "a sidecar is always restarted");
    b.started("s1");
    let event = b.deleted(30);
    b.hear(event);
    assert!(b.ops.iter().any(|o| matches!(o, Op::Drain(_))));
    b.hear(Event::Drained);
    assert_eq!(b.stops(), ["a"]);
    b.exited("a", 143);
    assert_eq!(b.stops(), ["s2"]);
    b.exited("s2", 0);
    assert_eq!(b.stops(), ["s1"]);
    b.exited("s1", 0);
    assert_eq!(b.ops.last(), Some(&Op::TearDown { purge: true }));
    assert_eq!(b.hear(Event::TornDown), [Op::Forget]);
    assert_eq!(b.hear(Event::Gone(None)), [Op::Finish]);
}

#[test]
fn restart_policies() {
    // policy, exit code, restarts, phase after all
    let cases = [
        ("Always", 0, true, "Running"),
        ("Always", 1, true, "Running"),
        ("OnFailure", 0, false, "Succeeded"),
        ("OnFailure", 1, true, "Running"),
        ("Never", 0, false, "Succeeded"),
        ("Never", 1, false, "Failed"),
    ];
    for (policy, code, again, phase) in cases {
        let mut b = Bench::new(json!({"restartPolicy": policy, "containers": containers(&["a"])}));
        b.started("a");
        b.exited("a", code);
        assert_eq!(!b.starts().is_empty(), again, "{policy} {code}");
        if !again {
            assert!(b.ops.contains(&Op::TearDown { purge: false }), "{policy} {code}");
            b.hear(Event::TornDown);
            assert!(matches!(b.state(), State::Terminated(_)));
        }
        assert_eq!(b.phase(), phase, "{policy} {code}");
    }
}

#[test]
fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    let spec = |policy| json!({"restartPolicy": policy, "initContainers": containers(&["i"]), "containers": containers(&["a"])});
    let mut b = Bench::new(spec("Never"));
    b.started("i");
    b.exited("i", 2);
    b.hear(Event::TornDown);
    assert_eq!(b.phase(), "Failed");
    let mut b = Bench::new(spec("Always"));
    b.started("i");
    b.exited("i", 2);
    assert_eq!(b.starts(), ["i"]);
}

#[test]
fn probes_gate_readiness_and_restart() {
    let probe = json!({"exec": {"command": ["x"]}});
    let mut b = Bench::new(
        json!({"containers": [{"name": "a", "image": "i", "startupProbe": probe,
        "readinessProbe": probe, "livenessProbe": probe}]}),
    );
    let kinds = |ops: &[Op]| -> Vec<ProbeKind> {
        ops.iter()
            .filter_map(|o| {
                if let Op::Probe { kind, .. } = o {
                    Some(*kind)
                } else {
                    None
                }
            })
            .collect()
    };
    assert_eq!(kinds(b.started("a")), [ProbeKind::Startup]);
    assert_eq!(
        kinds(b.probed("a", ProbeKind::Startup, true)),
        [ProbeKind::Readiness, ProbeKind::Liveness]
    );
    assert!(!b.ready());
    b.probed("a", ProbeKind::Readiness, true);
    assert!(b.ready());
    b.probed("a", ProbeKind::Readiness, false);
    assert!(!b.ready());
    b.probed("a", ProbeKind::Liveness, false);
    assert_eq!(b.stops(), ["a"]);
    b.probed("a", ProbeKind::Liveness, false);
    assert!(b.stops().is_empty(), "it is stopped once");
    b.exited("a", 137);
    assert_eq!(b.starts(), ["a"]);
}

#[test]
fn a_failed_post_start_hook_stops_the_container() {
    let mut b = Bench::new(json!({"containers": [{"name": "a", "image": "i",
        "lifecycle": {"postStart": {"exec": {"command": ["x"]}}}}]}));
    b.started("a");
    assert!(!b.ready());
    let (slot, id) = (0, b.id("a"));
    b.hear(Event::Hooked { slot, id, ok: false });
    assert_eq!(b.stops(), ["a"]);
}

#[test]
fn an_exit_may_overtake_the_start() {
    let mut b = Bench::new(json!({"restartPolicy": "Never", "containers": containers(&["a"])}));
    let id = b.id("a");
    b.exited("a", 0);
    let at = b.now;
    b.hear(Event::Started {
        slot: 0,
        id,
        image_id: "i".into(),
        at,
    });
    let Phase::Exited(finished) = &b.state().core().slots[0].phase else {
        panic!("still running")
    };
    assert_eq!(finished.started, Some(at));
}

#[test]
fn a_start_error_counts_as_a_run() {
    let mut b = Bench::new(json!({"restartPolicy": "Never", "containers": containers(&["a"])}));
    let id = b.id("a");
    b.hear(Event::StartFailed {
        slot: 0,
        id,
        failure: StartFailure::Run {
            message: "no such file".into(),
        },
    });
    let status = b.status();
    let ended = status.container_statuses.unwrap()[0]
        .state
        .clone()
        .unwrap()
        .terminated
        .unwrap();
    assert_eq!(
        (ended.exit_code, ended.reason.as_deref()),
        (128, Some("StartError"))
    );
}

#[test]
fn out_of_memory_is_named() {
    let mut b = Bench::new(json!({"restartPolicy": "Never", "containers": containers(&["a"])}));
    b.started("a");
    let id = b.id("a");
    b.hear(Event::Oom { id });
    b.exited("a", 137);
    let status = b.status().container_statuses.unwrap()[0].state.clone().unwrap();
    assert_eq!(status.terminated.unwrap().reason.as_deref(), Some("OOMKilled"));
}

#[test]
fn an_active_deadline_fails_the_pod() {
    let mut b = Bench::new(json!({"activeDeadlineSeconds": 60, "containers": containers(&["a"])}));
    b.started("a");
    b.pass(61);
    b.hear(Event::Timer(Timer::Deadline));
    assert_eq!(b.stops(), ["a"]);
    assert_eq!(b.phase(), "Running", "until its containers have ended");
    b.exited("a", 143);
    assert_eq!(
        (b.phase().as_str(), b.status().reason.as_deref()),
        ("Failed", Some("DeadlineExceeded"))
    );
}

#[test]
fn deletion_without_grace_does_not_wait_and_a_shorter_grace_hurries() {
    let mut b = Bench::new(json!({"containers": containers(&["a"])}));
    b.started("a");
    let event = b.deleted(0);
    b.hear(event);
    assert_eq!(b.stops(), ["a"], "no drain");
    let mut b = Bench::new(json!({"containers": containers(&["a"])}));
    b.started("a");
    let event = b.deleted(30);
    b.hear(event);
    b.hear(Event::Drained);
    let event = b.deleted(1);
    b.hear(event);
    let hurried = b
        .ops
        .iter()
        .any(|o| matches!(o, Op::Stop { grace, hook: false, .. } if *grace == Duration::from_secs(1)));
    assert!(hurried, "{:?}", b.ops);
}

#[test]
fn a_start_in_flight_is_cancelled_or_stopped() {
    for started in [false, true] {
        let mut b = Bench::new(json!({"containers": containers(&["a"])}));
        let event = b.deleted(30);
        b.hear(event);
        assert!(b.ops.contains(&Op::CancelStarts));
        if started {
            b.started("a");
            assert_eq!(b.stops(), ["a"]);
            b.exited("a", 143);
        } else {
            let id = b.id("a");
            b.hear(Event::StartFailed {
                slot: 0,
                id,
                failure: StartFailure::Cancelled,
            });
        }
        assert_eq!(b.ops.last(), Some(&Op::TearDown { purge: true }));
    }
}

#[test]
fn a_pod_that_goes_while_it_is_torn_down_leaves_no_container() {
    let mut b = Bench::new(json!({"restartPolicy": "Never", "containers": containers(&["a"])}));
    b.started("a");
    b.exited("a", 0);
    assert!(b.ops.contains(&Op::TearDown { purge: false }));
    b.hear(Event::Gone(None));
    assert_eq!(b.hear(Event::TornDown), [Op::TearDown { purge: true }]);
    assert_eq!(b.hear(Event::TornDown), [Op::Finish]);
}

#[test]
fn what_the_api_has_lost_is_stopped_and_finished() {
    let mut b = Bench::new(json!({"terminationGracePeriodSeconds": 5, "containers": containers(&["a"])}));
    b.started("a");
    b.hear(Event::Gone(None));
    assert_eq!(b.stops(), ["a"]);
    b.exited("a", 143);
    assert_eq!(b.ops.last(), Some(&Op::TearDown { purge: true }));
    assert_eq!(b.hear(Event::TornDown), [Op::Finish]);
    let State::Terminating(_, ending) = b.state() else {
        panic!("not terminating")
    };
    assert_eq!(ending.stage, Stage::TearingDown);
}

#[test]
fn readiness_gates_hold_ready_back() {
    let mut b =
        Bench::new(json!({"readinessGates": [{"conditionType": "lb"}], "containers": containers(&["a"])}));
    b.started("a");
    assert!(!b.ready());
    let mut pod = Pod::clone(&b.state().core().pod);
    pod.status = serde_json::from_value(json!({"conditions": [{"type": "lb", "status": "True"}]})).unwrap();
    b.hear(Event::Desired(Arc::new(pod)));
    assert!(b.ready());
}
