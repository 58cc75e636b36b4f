//! One plan, two profiles, the same bytes: PARITY-01, PARITY-02 for one group.

use std::collections::VecDeque;

use handbell::{CallError, Counters, Engine, NodeId, Plan, Profile, Reply, TraceId};

mod common;
use common::{Numbers, TOKEN, app, far, pattern, stop, token};

program!(
    parity_01_same_bytes_for_any_window,
    parity_01_state_is_kept_alike,
    parity_02_same_errors_and_counters,
    parity_02_same_refusals,
);

const NODES: [&str; 13] = [
    "first",
    "second",
    "third",
    "echo",
    "upper",
    "fail",
    "panic",
    "nothing",
    "reply_twice",
    "burst",
    "large",
    "count",
    "identity",
];

fn start(profile: Profile) -> Engine {
    let plan = Plan::new().group("g", NODES).edge("first", "second").edge("second", "third");
    let builder = app().engine(plan.edge("burst", "first")).env(TOKEN, token()).profile(profile);
    builder.on_output(|_| {}).start().expect("the engine starts")
}

/// All that a caller can see of a result.
fn seen(result: Result<Reply, CallError>) -> String {
    match result {
        Ok(reply) => format!("{:?} {:?}", reply.identity(), reply.bytes()),
        Err(CallError::Failed(failure)) => {
            let own = failure.node_error().map(|error| (error.code(), error.text().to_owned()));
            format!("{failure} {:?} {} {own:?}", failure.cause(), failure.started())
        }
        Err(error) => error.to_string(),
    }
}

fn input(number: u64) -> (&'static str, Vec<u8>) {
    let mut numbers = Numbers(number * 2_654_435_761 + 1);
    let node = NODES[numbers.below(NODES.len() as u64) as usize];
    let payload = match (node, numbers.below(10)) {
        ("large", _) => [0, 5, 192, 193, 5000, 300_000][numbers.below(6) as usize].to_string().into_bytes(),
        ("panic", _) => b"wanted".to_vec(),
        ("burst", _) => b"xyz"[..numbers.below(4) as usize].to_vec(),
        (_, 0) => Vec::new(),
        (_, 1) => pattern(number as u32, 4000),
        (_, 2) => pattern(number as u32, 300_000),
        _ => pattern(number as u32, numbers.below(250) as usize),
    };
    (node, payload)
}

/// What a caller sees of so many inputs, in input order, with a window in flight.
fn run(profile: Profile, inputs: u64, window: usize) -> (Vec<String>, Counters) {
    let engine = start(profile);
    let nodes: Vec<NodeId> = NODES.iter().map(|name| engine.node(name).expect("the plan has it")).collect();
    let mut seen_all = Vec::new();
    let mut in_flight = VecDeque::new();
    for number in 0..inputs {
        let (node, payload) = input(number);
        let node = nodes[NODES.iter().position(|name| *name == node).expect("one of them")];
        let request =
            engine.request(node).trace_id(TraceId::from(u128::from(number) + 1)).tags(1, number as u16);
        match request.reply_to(number as u32).deadline(far()).dispatch(&payload) {
            Ok(pending) => in_flight.push_back(Ok(pending)),
            Err(error) => in_flight.push_back(Err(CallError::from(error))),
        }
        if in_flight.len() == window {
            let oldest = in_flight.pop_front().expect("a full window");
            seen_all.push(seen(oldest.and_then(|pending| pending.wait())));
        }
    }
    seen_all.extend(in_flight.into_iter().map(|pending| seen(pending.and_then(|pending| pending.wait()))));
    // Everything before this one has been read to its end.
    engine.call(engine.node("echo").expect("the plan has it"), b"", far()).expect("it answers");
    stop(&engine);
    (seen_all, engine.counters())
}

fn same(inputs: u64, window: usize) {
    let (memory, memory_counters) = run(Profile::Memory, inputs, window);
    let (process, process_counters) = run(Profile::ProcessSupervisor, inputs, window);
    assert_eq!(memory.len(), inputs as usize);
    for (number, (memory, process)) in memory.iter().zip(&process).enumerate() {
        assert!(
            memory == process,
            "input {number} {:?}, window {window}:\n{memory:.300}\n{process:.300}",
            input(number as u64).0
        );
    }
    assert_eq!(memory_counters, process_counters);
}

fn parity_01_same_bytes_for_any_window() {
    for window in [1, 16, 200] {
        same(600, window);
    }
}

fn parity_01_state_is_kept_alike() {
    let counts = |profile| {
        let engine = start(profile);
        let count = engine.node("count").unwrap();
        let pending: Vec<_> =
            (0..100).map(|_| engine.request(count).deadline(far()).dispatch(b"").unwrap()).collect();
        let replies = pending.into_iter().map(|pending| pending.wait().unwrap().to_value::<u32>().unwrap());
        let replies: Vec<u32> = replies.collect();
        stop(&engine);
        replies
    };
    assert_eq!(counts(Profile::Memory), (1..=100).collect::<Vec<u32>>());
    assert_eq!(counts(Profile::ProcessSupervisor), counts(Profile::Memory));
}

fn parity_02_same_errors_and_counters() {
    let outcomes = |profile| {
        let engine = start(profile);
        let ask = |name: &str, payload: &[u8]| {
            let request = engine.request(engine.node(name).unwrap()).trace_id(5).deadline(far());
            seen(request.call(payload))
        };
        let said = [
            ask("fail", b"text"),
            ask("panic", b"wanted"),
            ask("nothing", b"x"),
            ask("reply_twice", b"x"),
            ask("burst", b"abc"),
            ask("burst", b""),
            ask("large", b"262144"),
            ask("large", b"262145"),
            ask("echo", &[1; 262_145]),
            seen(engine.call(handbell::testing::node_by_number(999), b"", far())).split_off(20),
            ask("echo", b"last"),
        ];
        stop(&engine);
        (
            said,
            engine.counters(),
            engine.events().into_iter().map(|event| (event.kind, event.status)).collect::<Vec<_>>(),
        )
    };
    let memory = outcomes(Profile::Memory);
    assert_eq!(memory, outcomes(Profile::ProcessSupervisor));
    assert_eq!(
        memory.0[0],
        "remote handoff failed for group 'g' Execution { class: NodeError, code: 7 } true Some((7, \"text\"))"
    );
    assert_eq!(memory.1.duplicate_terminal, 3);
}

fn parity_02_same_refusals() {
    let refusals = |profile| {
        let engine = start(profile);
        let echo = engine.node("echo").unwrap();
        let passed = engine.request(echo).deadline(handbell::Deadline::AtNs(1)).call(b"").unwrap_err();
        let large = engine.request(echo).dispatch(&[0; 300_000]).map(drop).unwrap_err();
        let loan = engine.request(echo).loan(300_000).map(drop).unwrap_err();
        let unknown = engine.node("nowhere").unwrap_err();
        stop(&engine);
        let stopped = engine.call(echo, b"", far()).unwrap_err();
        [passed.to_string(), large.to_string(), loan.to_string(), unknown.to_string(), stopped.to_string()]
    };
    assert_eq!(refusals(Profile::Memory), refusals(Profile::ProcessSupervisor));
}
