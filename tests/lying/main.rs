//! A worker that lies: what is impossible ends it and nobody else, what is merely wrong is counted.
//!
//! The workers of this program are raw: each request's payload tells which lie to tell, with numbers behind
//! the word. The engine is the ordinary one, through its public face.

use std::time::{Duration, Instant};

use handbell::testing;
use handbell::{
    Category, Cause, Drain, Engine, EngineBuilder, EventKind, ExecutionClass, KilledFor, NodeId, Plan, Rule,
    StopMode, TryDispatchError,
};

#[path = "../common/mod.rs"]
mod common;
mod worker;
use common::{
    balanced, engine, failure, far, is_alive, ms, sent_within, started, stop, transport, until, worker_pid,
};

fn main() {
    testing::serve_raw_if_worker(&common::app(), worker::lie);
    common::run(tests![
        an_honest_raw_worker_serves,
        rule_commit_word,
        rule_kind,
        rule_status,
        rule_flags,
        rule_payload_length,
        rule_payload_place,
        rule_block_held,
        rule_ticket,
        rule_last_out_of_order,
        rule_error_payload,
        rule_edge,
        handoff_03_identity_is_taken_from_the_request,
        handoff_03_who_reads_the_own_reply_believes_no_more,
        handoff_05_replies_published_before_a_death_are_delivered,
        handoff_d_01_of_three_terminals_the_first_counts,
        handoff_d_01_what_follows_the_last_frame_is_read_with_the_next_request,
        handoff_d_02_an_answer_after_the_timeout_is_late,
        handoff_03_another_workers_ticket_is_rejected,
        handoff_d_01_what_comes_behind_last_is_a_duplicate,
        handoff_d_02_a_ticket_long_gone_is_late,
        reply_09_b_never_sees_the_answer_of_a,
        a_worker_that_never_answers_last_frees_nothing,
        a_last_without_a_terminal_completes_empty,
        words_that_only_the_worker_reads_may_be_anything,
        a_lie_while_nobody_waits_is_found,
        garbage_all_over_the_reply_segment,
    ]);
}

fn raw_engine() -> EngineBuilder {
    engine(&["echo"])
}

fn start() -> (Engine, NodeId) {
    started(raw_engine(), "echo")
}

/// This lie is impossible: it ends the worker and all that is open there, and nothing else.
fn breaks(builder: EngineBuilder, rule: Rule, lies: &[&str]) {
    let (honest, _) = start();
    let (engine, node) = started(builder, "echo");
    let pid = worker_pid(&engine);
    assert_eq!(*engine.call(node, b"honest", far()).unwrap().bytes(), *b"honest");
    let ask = |text: &str| engine.request(node).deadline(far()).dispatch(text.as_bytes());
    let open: Vec<_> = (0..3).map(|_| ask("keep").unwrap()).collect();
    let mut held = Vec::new();
    let (last, before) = lies.split_last().expect("at least one");
    for lie in before {
        held.push(engine.call(node, lie.as_bytes(), far()).expect("a lie that is not found out yet"));
    }
    let cause = Cause::Killed(KilledFor::Corruption(rule));
    let lied = ask(last).unwrap();
    assert_eq!(transport(lied.wait().unwrap_err()), cause, "{last}");
    for open in open {
        let failure = failure(open.wait().unwrap_err(), Category::Transport);
        assert_eq!(failure.cause(), cause, "{last}");
    }
    until("the worker is gone", || !is_alive(pid));
    assert_eq!(transport(engine.call(node, b"honest", far()).unwrap_err()), cause);
    assert_eq!(*honest.call(node, b"others go on", far()).unwrap().bytes(), *b"others go on");
    drop(held);
    let report = stop(&engine);
    assert_eq!((report.workers[0].mode, report.workers[0].cause), (StopMode::Forced, Cause::Signal(9)));
    stop(&honest);
}

/// Lies of which each is told alone, behind open requests.
fn each_breaks(rule: Rule, lies: &[&str]) {
    for lie in lies {
        breaks(raw_engine(), rule, &[lie]);
    }
}

/// What an honest worker does besides: nothing breaks.
fn an_honest_raw_worker_serves() {
    let (engine, node) = start();
    for i in 0u32..2000 {
        assert_eq!(engine.call(node, &i.to_le_bytes(), far()).unwrap().to_value::<u32>(), Some(i));
    }
    let open = engine.request(node).dispatch(b"keep").unwrap();
    assert_eq!(*engine.call(node, b"answer_kept", far()).unwrap().bytes(), *b"own");
    assert_eq!(*open.wait().unwrap().bytes(), *b"kept");
    assert_eq!(stop(&engine).workers[0].mode, StopMode::Graceful);
}

fn rule_commit_word() {
    each_breaks(
        Rule::CommitWord,
        &["commit_word 57005", "commit_word 18446744073709551615", "commit_word 1"],
    );
}

fn rule_kind() {
    // Execute, and what is none.
    each_breaks(Rule::Kind, &["kind 1", "kind 5", "kind 0", "kind 255"]);
}

fn rule_edge() {
    // The plan has no edge at all, and no node 7 or 65535.
    each_breaks(Rule::Edge, &["output 0 0", "output 0 1", "output 0 7", "output 65535 0", "output 7 7"]);
}

fn rule_status() {
    each_breaks(Rule::Status, &["status 2", "status 255"]);
}

fn rule_flags() {
    each_breaks(Rule::Flags, &["flags 4", "flags 32769"]);
}

fn rule_payload_length() {
    // Inline: 192 bytes. Arena: 262,144 bytes, of which 4,096 lie behind its unit 4,033.
    each_breaks(
        Rule::PayloadLength,
        &["payload 0 193", "payload 0 4294967295", "payload 1 262145", "payload 4033 4097"],
    );
}

fn rule_payload_place() {
    each_breaks(Rule::PayloadPlace, &["payload 4097 0", "payload 4294967295 1"]);
    // Units of 256 bytes here: not at the start of one.
    breaks(raw_engine().reply_arena_bytes(1 << 20), Rule::PayloadPlace, &["payload 2 10"]);
}

/// As [`breaks`], with nothing open before it, so that LAST is in order.
fn breaks_alone(rule: Rule, before: &[&str], lie: &str) {
    let (engine, node) = start();
    let held: Vec<_> = before.iter().map(|lie| engine.call(node, lie.as_bytes(), far()).unwrap()).collect();
    let behind: Vec<_> =
        ["keep", "keep"].map(|_| engine.request(node).dispatch(b"keep")).into_iter().collect();
    drop(behind);
    let cause = Cause::Killed(KilledFor::Corruption(rule));
    assert_eq!(transport(engine.call(node, lie.as_bytes(), far()).unwrap_err()), cause, "{lie}");
    drop(held);
    stop(&engine);
}

fn rule_block_held() {
    breaks_alone(Rule::BlockHeld, &["payload 1 300"], "payload 1 300");
    breaks_alone(Rule::BlockHeld, &["payload 1 300", "payload 65 10"], "payload 65 0");
    // Once it has gone back it may be named again.
    let (engine, node) = start();
    for _ in 0..3 {
        assert_eq!(engine.call(node, b"payload 1 300", far()).unwrap().len(), 300);
    }
    stop(&engine);
}

fn rule_ticket() {
    each_breaks(Rule::Ticket, &["slot 16777215", "slot 8192", "generation 1000", "generation 549755813000"]);
}

fn rule_last_out_of_order() {
    // Three are open before it.
    each_breaks(Rule::LastOutOfOrder, &["honest", "done"]);
}

fn rule_error_payload() {
    for lie in ["error ", "error x", "error not an error payload", "error_block"] {
        breaks_alone(Rule::ErrorPayload, &[], lie);
    }
    // No UTF-8, and longer than a text may be.
    breaks_alone(Rule::ErrorPayload, &[], "error_text 3 255");
    breaks_alone(Rule::ErrorPayload, &[], "error_text 161 97");
    let (engine, node) = start();
    let longest = engine.call(node, b"error_text 160 97", far()).unwrap_err();
    let own = failure(longest, Category::Execution).node_error().map(|error| error.text().len());
    assert_eq!(own, Some(160));
    for (i, class) in [ExecutionClass::NodeError, ExecutionClass::Misrouted].into_iter().enumerate() {
        let error = engine.call(node, format!("error_class {i}").as_bytes(), far()).unwrap_err();
        assert_eq!(failure(error, Category::Execution).cause(), Cause::Execution { class, code: 3 });
    }
    assert_eq!(engine.counters().misrouted, 1);
    stop(&engine);
}

fn handoff_03_identity_is_taken_from_the_request() {
    let (engine, node) = start();
    let ask = |text: &[u8]| {
        let request = engine.request(node).trace_id(0xABCD_u128).reply_to(6).tags(7, 8).deadline(far());
        request.call(text).unwrap()
    };
    let reply = ask(b"foreign");
    assert_eq!((&*reply.bytes(), reply.identity().reply_to), (&b"own"[..], 6));
    let counters = engine.counters();
    assert_eq!((counters.rejected, counters.rejected_terminal, counters.terminals_received), (4, 4, 5));
    assert_eq!((counters.duplicate_terminal, counters.late_reply_drop, counters.completed()), (0, 0, 1));
    // With LAST its branch is over all the same, and nothing of the payload counts.
    let reply = ask(b"foreign_last");
    assert!(reply.is_empty());
    let rejected = engine.events().into_iter().filter(|event| event.kind == EventKind::Rejected);
    assert_eq!((rejected.count(), engine.counters().completed_by_last), (5, 1));
    stop(&engine);
}

/// What is not quite the usual reply is judged like any other.
fn handoff_03_who_reads_the_own_reply_believes_no_more() {
    let cause = Cause::Killed(KilledFor::Corruption(Rule::PayloadLength));
    for (slot_bytes, lie) in [(128, "payload 0 65"), (256, "payload 0 193"), (512, "payload 0 449")] {
        let (engine, node) = started(raw_engine().slot_bytes(slot_bytes), "echo");
        assert_eq!(transport(engine.call(node, lie.as_bytes(), far()).unwrap_err()), cause, "{lie}");
        stop(&engine);
    }
    let (engine, node) = start();
    for lie in ["foreign_last", "foreign_id_last 0", "foreign_id_last 1"] {
        let reply = engine.request(node).trace_id(0xABCD_u128).deadline(far()).call(lie.as_bytes()).unwrap();
        assert!(reply.is_empty() && reply.trace_id() == handbell::TraceId::from(0xABCD_u128), "{lie}");
    }
    let counters = engine.counters();
    assert_eq!((counters.rejected_terminal, counters.completed_by_last), (3, 3));
    // The reply of the one before it, once more.
    let (first, second) = (engine.call(node, b"kept_ticket", far()), engine.call(node, b"mine", far()));
    let ticket = String::from_utf8(first.unwrap().into_vec()).unwrap();
    assert_eq!(*second.unwrap().bytes(), *b"mine");
    let answer = engine.call(node, format!("as_last {ticket}").as_bytes(), far()).unwrap();
    assert_eq!(*answer.bytes(), *b"own", "what was said before it is no answer to this one");
    assert_eq!(engine.counters().duplicate_terminal, 1);
    stop(&engine);
}

fn handoff_05_replies_published_before_a_death_are_delivered() {
    for _ in 0..20 {
        let (engine, node) = start();
        let ask = |text: &str| engine.request(node).deadline(far()).dispatch(text.as_bytes()).unwrap();
        let kept: Vec<_> = (0..50).map(|_| ask("keep")).collect();
        let last = ask("answer_and_exit");
        let behind = engine.request(node).deadline(far()).dispatch(b"never read");
        for pending in kept {
            assert_eq!(*pending.wait().unwrap().bytes(), *b"kept");
        }
        assert_eq!(*last.wait().unwrap().bytes(), *b"own");
        let behind = behind.map_or_else(transport, |pending| transport(pending.wait().unwrap_err()));
        assert_eq!(behind, Cause::Exit(4));
        stop(&engine);
    }
}

fn handoff_d_01_of_three_terminals_the_first_counts() {
    let (engine, node) = start();
    for count in 1..=100 {
        assert_eq!(*engine.call(node, b"thrice", far()).unwrap().bytes(), *b"1");
        engine.call(node, b"honest", far()).unwrap();
        let counters = engine.counters();
        assert_eq!((counters.duplicate_terminal, counters.terminals_that_ended), (2 * count, 2 * count));
    }
    assert_eq!(engine.counters().late_reply_drop, 0);
    stop(&engine);
}

fn handoff_d_01_what_follows_the_last_frame_is_read_with_the_next_request() {
    let (engine, node) = start();
    for count in 1..=100 {
        assert_eq!(*engine.call(node, b"twice_last", far()).unwrap().bytes(), *b"first");
        assert_eq!(*engine.call(node, b"honest", far()).unwrap().bytes(), *b"honest");
        assert_eq!(engine.counters().duplicate_terminal, count);
    }
    assert_eq!(engine.counters().late_reply_drop, 0);
    balanced(&engine);
    stop(&engine);
}

fn handoff_d_02_an_answer_after_the_timeout_is_late() {
    let (engine, node) = start();
    for count in 1..=10 {
        failure(sent_within(&engine, node, 5, b"keep").wait().unwrap_err(), Category::Timeout);
        // Skipped by nobody: this worker looks at no deadline.
        assert_eq!(*engine.call(node, b"answer_kept", far()).unwrap().bytes(), *b"own");
        let counters = engine.counters();
        assert_eq!((counters.late_reply_drop, counters.expired, counters.completed()), (count, count, count));
    }
    balanced(&engine);
    stop(&engine);
}

fn handoff_03_another_workers_ticket_is_rejected() {
    let plan = Plan::new().group("g", ["echo"]).group("h", ["upper"]);
    let engine = common::app().engine(plan).env(common::TOKEN, common::token()).start().unwrap();
    let [g, h] = ["echo", "upper"].map(|name| engine.node(name).unwrap());
    for count in 1..=10 {
        let open = engine.request(g).deadline(far()).dispatch(b"keep").unwrap();
        let ticket = engine.call(g, b"kept_ticket", far()).unwrap().into_vec();
        let reply = engine.call(h, &[b"as ", &ticket[..]].concat(), far()).unwrap();
        assert_eq!(*reply.bytes(), *b"own");
        let counters = engine.counters();
        assert_eq!((counters.rejected_terminal, counters.failed), (2 * count, 0), "{counters:?}");
        // It is still open, and its own worker's answer counts.
        assert_eq!(*engine.call(g, b"answer_kept", far()).unwrap().bytes(), *b"own");
        assert_eq!(*open.wait().unwrap().bytes(), *b"kept");
    }
    stop(&engine);
}

fn handoff_d_01_what_comes_behind_last_is_a_duplicate() {
    let (engine, node) = start();
    for count in 1..=50 {
        assert_eq!(*engine.call(node, b"behind_last", far()).unwrap().bytes(), *b"own");
        assert_eq!(*engine.call(node, b"honest", far()).unwrap().bytes(), *b"honest");
        let counters = engine.counters();
        assert_eq!((counters.duplicate_terminal, counters.late_reply_drop), (2 * count, 0));
    }
    stop(&engine);
}

fn handoff_d_02_a_ticket_long_gone_is_late() {
    let (engine, node) = started(raw_engine().completed_history(4), "echo");
    let seen = || (engine.counters().duplicate_terminal, engine.counters().late_reply_drop);
    let gone = engine.call(node, b"kept_ticket", far()).unwrap().into_vec();
    let answer_as_gone = || {
        let reply = engine.call(node, &[b"as ", &gone[..]].concat(), far()).unwrap();
        assert_eq!(*reply.bytes(), *b"own");
    };
    // Remembered, for as long as so few have completed since.
    answer_as_gone();
    assert_eq!(seen(), (2, 0));
    (0..10).for_each(|_| drop(engine.call(node, b"honest", far()).unwrap()));
    answer_as_gone();
    assert_eq!(seen(), (2, 2));
    stop(&engine);
}

fn reply_09_b_never_sees_the_answer_of_a() {
    // One place in the table: B takes the slot of A.
    let (engine, node) = started(raw_engine().max_in_flight(1), "echo");
    for count in 1..=10 {
        failure(sent_within(&engine, node, 5, b"keep").wait().unwrap_err(), Category::Timeout);
        let b = engine.request(node).deadline(far()).call(b"answer_kept").unwrap();
        assert_eq!(*b.bytes(), *b"own");
        assert_eq!(engine.counters().late_reply_drop, count);
    }
    stop(&engine);
}

fn a_worker_that_never_answers_last_frees_nothing() {
    let (engine, node) = started(raw_engine().slots(4), "echo");
    for _ in 0..4 {
        assert_eq!(*engine.call(node, b"no_last", far()).unwrap().bytes(), *b"word");
    }
    // Answered, but nothing says that the worker does not read them any more.
    let busy = engine.request(node).try_dispatch(b"honest");
    assert!(matches!(busy, Err(TryDispatchError::Busy(_))));
    failure(
        engine.request(node).deadline(ms(30)).dispatch(b"honest").map(drop).unwrap_err(),
        Category::Timeout,
    );
    assert_eq!(engine.counters().registered, 4);
    stop(&engine);
}

fn a_last_without_a_terminal_completes_empty() {
    let (engine, node) = start();
    for _ in 0..5 {
        assert!(engine.call(node, b"done", far()).unwrap().is_empty());
    }
    assert_eq!(engine.counters().completed_by_last, 5);
    stop(&engine);
}

fn words_that_only_the_worker_reads_may_be_anything() {
    let (engine, node) = start();
    for word in [0, 1, 7, u64::MAX, 0x0101_0101_0101_0101] {
        for _ in 0..20 {
            let reply = engine.call(node, format!("own_words {word}").as_bytes(), far()).unwrap();
            assert_eq!(*reply.bytes(), *b"own");
        }
    }
    stop(&engine);
}

fn a_lie_while_nobody_waits_is_found() {
    let (engine, node) = start();
    let pid = worker_pid(&engine);
    // The lie last: from then on the worker may be dead at any moment.
    engine.request(node).dispatch(b"keep").unwrap().detach();
    let pending = engine.request(node).dispatch(b"kind 77").unwrap();
    until("the worker is gone", || !is_alive(pid));
    until("both have ended", || engine.counters().failed == 2);
    until("the detached one has been freed", || engine.audit().not_taken == 1);
    assert_eq!(transport(pending.wait().unwrap_err()), Cause::Killed(KilledFor::Corruption(Rule::Kind)));
    balanced(&engine);
    stop(&engine);
}

fn garbage_all_over_the_reply_segment() {
    let begin = Instant::now();
    let (mut rounds, mut replies, mut failures) = (0u64, 0u64, 0u64);
    // On a slow machine a few rounds may all go well.
    while begin.elapsed() < Duration::from_secs(5) || failures == 0 {
        rounds += 1;
        let builder = raw_engine().slots(16).max_in_flight(32).reply_arena_bytes(4096);
        let (engine, node) = started(builder.term_timeout(Duration::from_millis(200)), "echo");
        let _ = engine.call(node, format!("garbage {rounds}").as_bytes(), ms(500));
        let (taken, ended) = (std::sync::atomic::AtomicU64::new(0), std::sync::atomic::AtomicU64::new(0));
        let add =
            |count: &std::sync::atomic::AtomicU64| count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let until = Instant::now() + Duration::from_millis(100);
                    let mut window = Vec::new();
                    while Instant::now() < until {
                        match engine.request(node).deadline(ms(100)).dispatch(b"ordinary") {
                            Ok(pending) => {
                                add(&taken);
                                window.push(pending);
                            }
                            Err(_) => break,
                        }
                        if window.len() == 6 {
                            let _ = window.remove(0).wait();
                            add(&ended);
                        }
                    }
                    for pending in window {
                        let _ = pending.wait();
                        add(&ended);
                    }
                });
            }
        });
        let [taken, ended] = [taken, ended].map(|count| count.into_inner());
        assert_eq!(taken, ended);
        engine.stop(Drain::within(Duration::from_millis(50)));
        let counters = engine.counters();
        replies += counters.completed();
        failures += counters.failed + counters.expired;
        // Frames may lie about anything but the books.
        balanced(&engine);
    }
    println!("garbage: {rounds} workers, {replies} replies, {failures} failures");
}
