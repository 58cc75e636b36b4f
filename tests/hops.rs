//! Plans of several groups: hops from process to process, placement by key and by load, branches, circles.

use handbell::{Engine, EngineBuilder, Plan, Profile};

mod common;
use common::{TOKEN, app, far, stop, token};

program![
    handoff_01_each_group_is_a_process_of_its_own,
    handoff_03_identity_goes_all_the_way,
    handoff_02_a_local_group_uses_no_frame,
    reply_01_the_last_branch_ends_a_request,
    flow_01_a_circle_ends_by_max_hops,
];

fn over(plan: Plan) -> EngineBuilder {
    app().engine(plan).env(TOKEN, token())
}

fn both(plan: &Plan) -> [Engine; 2] {
    let memory = over(plan.clone()).profile(Profile::Memory).start().unwrap();
    [over(plan.clone()).start().unwrap(), memory]
}

/// `first` → `second` → `third`, each in a group of its own.
fn chain() -> Plan {
    Plan::new()
        .group("one", ["first"])
        .group("two", ["second"])
        .group("three", ["third"])
        .edge("first", "second")
        .edge("second", "third")
}

fn handoff_01_each_group_is_a_process_of_its_own() {
    for engine in both(&chain()) {
        let first = engine.node("first").unwrap();
        for round in 0..100 {
            let payload = format!("{round} ");
            let reply = engine.call(first, payload.as_bytes(), far()).unwrap();
            assert_eq!(*reply.bytes(), *format!("{round} 123").as_bytes());
        }
        stop(&engine);
    }
}

fn handoff_03_identity_goes_all_the_way() {}
fn handoff_02_a_local_group_uses_no_frame() {
    let plan = Plan::new()
        .group("one", ["first"])
        .group("two", ["second"])
        .local()
        .group("three", ["third"])
        .edge("first", "second")
        .edge("second", "third");
    for engine in both(&plan) {
        let first = engine.node("first").unwrap();
        for round in 0..100 {
            let payload = format!("{round} ");
            let reply = engine.call(first, payload.as_bytes(), far()).unwrap();
            assert_eq!(*reply.bytes(), *format!("{round} 123").as_bytes());
        }
        let inputs: Vec<String> = (0..1000).map(|i| format!("{i} ")).collect();
        for window in [1, 16, 512] {
            let mut next = 0;
            for (number, reply) in engine.run(first, &inputs).window(window).start().unwrap() {
                assert_eq!(number, next);
                assert_eq!(*reply.unwrap().bytes(), *format!("{number} 123").as_bytes());
                next += 1;
            }
            assert_eq!(next, 1000);
        }
        stop(&engine);
    }
}
fn reply_01_the_last_branch_ends_a_request() {}
fn flow_01_a_circle_ends_by_max_hops() {}
