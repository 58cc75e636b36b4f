//! Work goes to a child process and its answer to whom asked: HANDOFF-01..03, C-01..03, D-01, D-02.

use std::collections::HashSet;

use handbell::{
    CallError, Category, Cause, Deadline, EngineBuilder, EventKind, ExecutionClass, Identity, Pending, Plan,
    TraceId, Waiting, testing,
};

mod common;
use common::scripted::Gate;
use common::{Numbers, balanced, engine, failure, far, patiently, sent_within, start, started, stop};

program!(
    handoff_01_a_node_runs_in_a_process_of_its_own,
    handoff_02_a_chain_inside_a_worker_crosses_no_ring,
    handoff_02_the_memory_profile_has_no_ring,
    handoff_03_identity_arrives_and_returns_unchanged,
    handoff_03_the_engines_own_ids_are_unique,
    handoff_03_answers_go_to_whom_asked,
    handoff_03_pending_requests_are_taken_in_any_order,
    handoff_03_pending_requests_in_this_process_are_taken_in_any_order,
    handoff_c_01_bytes_and_identity_are_the_requests,
    handoff_c_02_a_frame_for_another_group_is_refused,
    handoff_c_03_an_unknown_node_is_named,
    handoff_d_01_the_first_terminal_wins,
    handoff_d_02_a_late_terminal_completes_nothing,
    a_node_that_emits_nothing_ends_its_request,
    call_as_takes_and_gives_values,
    an_unknown_name_is_an_error,
);

fn handoff_01_a_node_runs_in_a_process_of_its_own() {
    let (one, pid) = start(&["pid", "group"]);
    let (other, _) = start(&["pid"]);
    let pid_of = |engine: &handbell::Engine| u32::from_le_bytes(engine.call_as(pid, b"", far()).unwrap());
    assert_ne!(pid_of(&one), std::process::id());
    assert_ne!(pid_of(&one), pid_of(&other));
    assert_eq!(pid_of(&one) as i32, common::worker_pid(&one));
    let group = one.call(one.node("group").unwrap(), b"", far()).unwrap();
    assert_eq!(*group.bytes(), *b"g");
    stop(&one);
    stop(&other);
}

fn chain() -> Plan {
    Plan::new().group("g", ["first", "second", "third"]).edge("first", "second").edge("second", "third")
}

fn handoff_02_a_chain_inside_a_worker_crosses_no_ring() {
    let (engine, first) = started(common::app().engine(chain()).env(common::TOKEN, common::token()), "first");
    for calls in 1..=100 {
        assert_eq!(*engine.call(first, b"in ", far()).unwrap().bytes(), *b"in 123");
        assert_eq!(testing::ring_positions(&engine, 0), Some((calls, calls)), "one frame there, one back");
    }
    let counters = engine.counters();
    assert_eq!((counters.registered, counters.terminals_received), (100, 100));
    stop(&engine);
}

fn handoff_02_the_memory_profile_has_no_ring() {
    let (engine, first) = started(common::app().engine(chain()).profile(handbell::Profile::Memory), "first");
    assert_eq!(*engine.call(first, b"in ", far()).unwrap().bytes(), *b"in 123");
    assert_eq!(testing::ring_positions(&engine, 0), None);
    assert_eq!(engine.summary().worker_pids, []);
    assert_eq!(engine.summary().mapped_bytes, 0);
    stop(&engine);
}

fn handoff_03_identity_arrives_and_returns_unchanged() {
    let (engine, node) = start(&["identity"]);
    for i in [1, 0xFFFF_FFFF_FFFF_FFFF_u128, u128::MAX, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c] {
        let identity = Identity {
            trace_id: TraceId::from(i),
            reply_to: i as u32 ^ 0x8000_0001,
            run: i as u16,
            scenario: !i as u16,
        };
        let request = engine.request(node).trace_id(identity.trace_id).reply_to(identity.reply_to);
        let reply = request.tags(identity.run, identity.scenario).deadline(far()).call(b"").unwrap();
        assert_eq!(reply.identity(), identity);
        let tags = [identity.reply_to, identity.run.into(), identity.scenario.into()].map(u32::to_le_bytes);
        assert_eq!(*reply.bytes(), *[&identity.trace_id.0[..], &tags.concat()].concat(), "seen by the node");
    }
    stop(&engine);
}

fn handoff_03_the_engines_own_ids_are_unique() {
    let (one, node) = start(&["identity"]);
    let (other, _) = start(&["identity"]);
    let mut ids = HashSet::new();
    for engine in [&one, &other] {
        for _ in 0..500 {
            let pending = engine.request(node).deadline(far()).dispatch(b"").unwrap();
            let id = pending.trace_id();
            assert!(!id.is_none() && !format!("{pending:?}").contains("ticket"));
            let reply = pending.wait().unwrap();
            assert_eq!(reply.trace_id(), id);
            assert_eq!(reply.bytes()[..16], id.0, "the node sees the same id");
            assert!(ids.insert(id), "{id} twice");
        }
        stop(engine);
    }
}

fn handoff_03_answers_go_to_whom_asked() {
    let (engine, echo) = start(&["echo"]);
    let ask = |i: u32| {
        let request = engine.request(echo).trace_id(u128::from(i) + 1).reply_to(i).deadline(far());
        request.dispatch(&i.to_le_bytes()).unwrap()
    };
    let mut pending: Vec<_> = (0..500).map(|i| (i, ask(i))).collect();
    // Taken in another order than asked.
    pending.sort_by_key(|(i, _)| (i * 7919) % 500);
    for (i, pending) in pending {
        let reply = pending.wait().unwrap();
        assert_eq!(reply.identity().reply_to, i);
        assert_eq!(reply.trace_id(), TraceId::from(u128::from(i) + 1));
        assert_eq!(reply.to_value::<u32>(), Some(i));
    }
    stop(&engine);
}

fn handoff_03_pending_requests_are_taken_in_any_order() {
    for waiting in [Waiting::Spin, Waiting::Adaptive, Waiting::Block] {
        taken_in_any_order(engine(&["echo"]).waiting(waiting));
    }
}

fn handoff_03_pending_requests_in_this_process_are_taken_in_any_order() {
    taken_in_any_order(common::memory_engine(&["echo"]));
}

/// Small and large payloads, by copy and in place, waited for from the front, the back or anywhere, polled, cancelled,
/// dropped, left alone, or taken by another thread.
fn taken_in_any_order(builder: EngineBuilder) {
    let (engine, echo) = started(builder, "echo");
    let mut numbers = Numbers(0x5EED);
    let mut flights: Vec<(Pending, Vec<u8>, TraceId)> = Vec::new();
    let answered = |(pending, sent, id): (Pending, Vec<u8>, TraceId)| {
        let reply = pending.wait().expect("nothing is in its way");
        assert!(*reply.bytes() == *sent && reply.trace_id() == id);
    };
    for id in 1..=3_000u32 {
        let len = [0, 8, 64, 191, 192, 4_000][numbers.below(6) as usize];
        let sent = common::pattern(id, len);
        let id = TraceId::from(u128::from(id));
        let request = engine.request(echo).trace_id(id).deadline(far());
        let pending = if numbers.below(2) == 0 {
            request.dispatch(&sent).unwrap()
        } else {
            let mut loan = request.loan(len).unwrap();
            loan.copy_from_slice(&sent);
            loan.dispatch().unwrap()
        };
        flights.push((pending, sent, id));
        while flights.len() > 12 || numbers.below(3) == 0 && !flights.is_empty() {
            let at = [0, flights.len() - 1, numbers.below(flights.len() as u64) as usize];
            let mut flight = flights.remove(at[numbers.below(3) as usize]);
            match numbers.below(12) {
                0 => drop(flight),
                1 => flight.0.detach(),
                2 => std::thread::scope(|scope| drop(scope.spawn(|| answered(flight)))),
                3 => {
                    flight.0.cancel();
                    assert!(matches!(flight.0.wait(), Ok(_) | Err(CallError::Cancelled)));
                }
                4 => {
                    let reply = loop {
                        if let Some(end) = flight.0.try_take() {
                            break end.unwrap();
                        }
                    };
                    assert_eq!(*reply.bytes(), *flight.1);
                }
                _ => answered(flight),
            }
        }
    }
    flights.into_iter().for_each(answered);
    common::until("what was detached has ended", || {
        engine.audit().free == engine.summary().max_in_flight as u64
    });
    assert_eq!(engine.counters().registered, 3_000);
    balanced(&engine);
    stop(&engine);
}

fn handoff_c_01_bytes_and_identity_are_the_requests() {
    let (engine, upper) = start(&["upper"]);
    for len in [0, 1, 7, 8, 9, 63, 64, 65, 191, 192, 193, 255, 256, 4095, 4096, 4097, 100_000] {
        let payload: Vec<u8> = common::pattern(len as u32, len).iter().map(|byte| b'a' + byte % 26).collect();
        let id = TraceId::from(len as u128 + 1);
        let reply = engine.request(upper).trace_id(id).reply_to(9).deadline(far()).call(&payload).unwrap();
        assert_eq!((reply.len(), reply.is_empty()), (len, len == 0));
        assert!(*reply.bytes() == payload.to_ascii_uppercase(), "{len} bytes");
        assert_eq!((reply.trace_id(), reply.identity().reply_to), (id, 9));
    }
    stop(&engine);
}

fn handoff_c_02_a_frame_for_another_group_is_refused() {
    let builder = testing::with_unserved_group(engine(&["echo"]), "elsewhere", &["upper"]);
    let (engine, echo) = started(builder, "echo");
    let upper = engine.node("upper").unwrap();
    let ask = |node, payload| engine.request(node).deadline(far()).dispatch(payload).unwrap();
    let (before, refused, after) = (ask(echo, b"before"), ask(upper, b"never"), ask(echo, b"after"));
    assert_eq!(*before.wait().unwrap().bytes(), *b"before");
    assert_eq!(*after.wait().unwrap().bytes(), *b"after");
    let failure = failure(refused.wait().unwrap_err(), Category::Execution);
    let code = u32::from(upper.number());
    assert_eq!(failure.cause(), Cause::Execution { class: ExecutionClass::Misrouted, code });
    let counters = engine.counters();
    assert_eq!((counters.misrouted, counters.failed, counters.completed()), (1, 1, 2));
    stop(&engine);
}

fn handoff_c_03_an_unknown_node_is_named() {
    let (engine, echo) = start(&["echo"]);
    for number in [1, 999, 0xFFFE] {
        let refused = engine.call(testing::node_by_number(number), b"x", far()).unwrap_err();
        let failure = failure(refused, Category::Execution);
        let code = u32::from(number);
        assert_eq!(failure.cause(), Cause::Execution { class: ExecutionClass::UnknownTarget, code });
        assert_eq!(*engine.call(echo, b"on", far()).unwrap().bytes(), *b"on");
    }
    stop(&engine);
}

fn handoff_d_01_the_first_terminal_wins() {
    let (engine, twice) = start(&["reply_twice", "echo"]);
    let echo = engine.node("echo").unwrap();
    for count in 1..=50 {
        assert_eq!(*engine.call(twice, b"first", far()).unwrap().bytes(), *b"first");
        // Its answer stands behind the second one.
        assert_eq!(*engine.call(echo, b"third", far()).unwrap().bytes(), *b"third");
        assert_eq!(engine.counters().duplicate_terminal, count);
    }
    assert_eq!(engine.counters().late_reply_drop, 0);
    let duplicates = engine.events().into_iter().filter(|event| event.kind == EventKind::DuplicateTerminal);
    assert_eq!(duplicates.count(), 50);
    stop(&engine);
}

fn handoff_d_02_a_late_terminal_completes_nothing() {
    let (engine, gated) = start(&["gated", "echo"]);
    let (echo, gate) = (engine.node("echo").unwrap(), Gate::new());
    let mut tries = 0;
    patiently(50, |limit_ms| {
        let pending = sent_within(&engine, gated, limit_ms, gate.word().as_bytes());
        failure(pending.wait().unwrap_err(), Category::Timeout);
        tries += 1;
        // One that a slow worker finds due is skipped.
        testing::has_begun(&engine, 0).then_some(())
    });
    let before = engine.counters();
    assert_eq!((before.expired, before.late_reply_drop), (tries, 0));
    gate.open();
    // Answered after the late one.
    assert_eq!(*engine.call(echo, b"on", far()).unwrap().bytes(), *b"on");
    let after = engine.counters();
    assert_eq!((after.late_reply_drop, after.duplicate_terminal), (1, 0));
    assert_eq!((after.registered, after.completed(), after.expired), (tries + 1, 1, tries));
    balanced(&engine);
    stop(&engine);
}

fn a_node_that_emits_nothing_ends_its_request() {
    let (engine, nothing) = start(&["nothing"]);
    for _ in 0..10 {
        assert!(engine.call(nothing, b"x", far()).unwrap().is_empty());
    }
    let counters = engine.counters();
    assert_eq!((counters.completed_by_last, counters.completed_by_terminal), (10, 0));
    stop(&engine);
}

fn call_as_takes_and_gives_values() {
    let (engine, echo) = start(&["echo"]);
    let back: [u32; 4] = engine.call_as(echo, &[1u32, 2, 3, 4], far()).unwrap();
    assert_eq!(back, [1, 2, 3, 4]);
    let wrong = engine.call_as::<_, u64>(echo, &7u32, far()).unwrap_err();
    assert_eq!(wrong.to_string(), "the reply has 4 bytes and is no value of the expected type, which has 8");
    assert_eq!(engine.call_as::<_, u32>(echo, &7u32, Deadline::Never).unwrap(), 7);
    stop(&engine);
}

fn an_unknown_name_is_an_error() {
    let (engine, _) = start(&["echo"]);
    assert_eq!(engine.node("ehco").unwrap_err().to_string(), "the plan has no node 'ehco'");
    stop(&engine);
}
