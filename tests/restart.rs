//! Workers that die and get successors: how often, with what, and what becomes of what was in flight.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use handbell::{
    Category, Cause, Deadline, Engine, EngineBuilder, NodeId, Plan, Restart, TryDispatchError, WorkerEvent,
};
use rustix::process::Signal;

mod common;
use common::scripted::Gate;
use common::{failure, far, kill, ms, patiently, started, stop, transport, until};

program![
    restart_01_a_dead_worker_gets_a_successor,
    restart_01_beyond_its_number_the_group_has_failed,
    restart_01_without_a_policy_it_stays_dead,
    restart_02_what_was_in_flight_fails_with_its_flag,
    restart_02_what_had_not_begun_goes_to_the_successor,
    restart_02_an_idempotent_group_runs_again_what_had_begun,
    restart_02_outputs_that_had_gone_on_do_not_go_on_twice,
    restart_02_a_request_runs_again_only_once,
    restart_02_requests_wait_for_the_successor,
    restart_02_others_go_to_the_other_processes,
    placement_03_same_key_same_process_through_a_restart,
    a_loan_outlives_its_worker,
    a_view_outlives_its_worker,
    a_stop_does_not_wait_for_a_successor,
    many_restarts_leave_nothing_behind,
];

fn soon() -> Restart {
    Restart::on_failure(100).delay(Duration::from_millis(1), Duration::from_millis(1))
}

fn over(plan: Plan) -> EngineBuilder {
    common::engine_over(plan)
}

fn pid(engine: &Engine) -> i32 {
    engine.worker_pids().first().copied().unwrap_or(0)
}

/// Kills a worker, and waits until that is known. With a short delay its successor may be there by then.
fn kill_for_good(engine: &Engine, pid: i32) {
    kill(pid, Signal::KILL);
    until("it is dead", || !engine.worker_pids().contains(&pid));
}

/// Kills the first worker, and waits until another serves in its place.
fn kill_and_wait(engine: &Engine) {
    let (old, count) = (pid(engine), engine.worker_pids().len());
    kill(old, Signal::KILL);
    until("a successor serves", || {
        let pids = engine.worker_pids();
        pids.len() == count && !pids.contains(&old)
    });
}

fn restart_01_a_dead_worker_gets_a_successor() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let builder = over(Plan::new().group("g", ["count"]).restart(soon()));
    let heard = Arc::clone(&events);
    let builder = builder.on_worker_event(move |notice| {
        if !matches!(notice.event, WorkerEvent::Suspect | WorkerEvent::Recovered) {
            heard.lock().unwrap().push(notice.event.clone());
        }
    });
    let (engine, count) = started(builder, "count");
    for life in 0..5 {
        // Each life has a state of its own.
        for calls in 1..=3_u32 {
            assert_eq!(*engine.call(count, b"", far()).unwrap().bytes(), calls.to_le_bytes(), "life {life}");
        }
        kill_and_wait(&engine);
    }
    let report = stop(&engine);
    assert_eq!(report.workers.len(), 1);
    let events = events.lock().unwrap();
    assert_eq!(events[..2], [WorkerEvent::Started, WorkerEvent::Ready]);
    let restarted = events.iter().filter(|event| **event == WorkerEvent::Restarted).count();
    let crashed = events.iter().filter(|event| **event == WorkerEvent::Crashed(Cause::Signal(9))).count();
    assert_eq!((restarted, crashed), (5, 5));
}

fn restart_01_beyond_its_number_the_group_has_failed() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&events);
    let restart = Restart::on_failure(2).delay(Duration::from_millis(1), Duration::from_millis(1));
    let builder = over(Plan::new().group("g", ["echo"]).restart(restart))
        .on_worker_event(move |notice| heard.lock().unwrap().push(notice.event.clone()));
    let (engine, echo) = started(builder, "echo");
    kill_and_wait(&engine);
    kill_and_wait(&engine);
    engine.call(echo, b"", far()).unwrap();
    kill(pid(&engine), Signal::KILL);
    until("it is given up", || events.lock().unwrap().last() == Some(&WorkerEvent::GivenUp));
    assert_eq!(transport(engine.call(echo, b"", Deadline::Never).unwrap_err()), Cause::Signal(9));
    let refused = engine.request(echo).try_dispatch(b"").unwrap_err();
    assert!(matches!(refused, TryDispatchError::Refused(_)));
    stop(&engine);
}

fn restart_01_without_a_policy_it_stays_dead() {
    let (engine, echo) = started(over(Plan::new().group("g", ["echo"])), "echo");
    kill(pid(&engine), Signal::KILL);
    until("it is dead", || engine.call(echo, b"", far()).is_err());
    until("it is settled", || engine.worker_pids().is_empty());
    stop(&engine);
}

/// One request that the worker has begun and cannot end before the gate is open, and one behind it.
fn one_begun_and_one_not(plan: Plan, gate: &Gate) -> (Engine, NodeId, [handbell::Pending; 2]) {
    let (engine, gated) = started(over(plan), "gated");
    let echo = engine.node("echo").unwrap();
    let begun = engine.request(gated).dispatch(gate.word().as_bytes()).unwrap();
    until("it has begun", || handbell::testing::has_begun(&engine, 0));
    let waiting = engine.request(echo).dispatch(b"1").unwrap();
    (engine, echo, [begun, waiting])
}

fn restart_02_what_was_in_flight_fails_with_its_flag() {
    let (plan, gate) = (Plan::new().group("g", ["gated", "echo"]).restart(soon()), Gate::new());
    let (engine, echo, [begun, waiting]) = one_begun_and_one_not(plan, &gate);
    kill(pid(&engine), Signal::KILL);
    assert!(failure(begun.wait().unwrap_err(), Category::Transport).started());
    assert!(!failure(waiting.wait().unwrap_err(), Category::Transport).started());
    engine.call(echo, b"1", far()).unwrap();
    stop(&engine);
}

fn restart_02_what_had_not_begun_goes_to_the_successor() {
    let plan = Plan::new().group("g", ["gated", "echo"]).restart(soon()).redispatch_unstarted();
    let gate = Gate::new();
    let (engine, _, [begun, waiting]) = one_begun_and_one_not(plan, &gate);
    kill(pid(&engine), Signal::KILL);
    assert!(failure(begun.wait().unwrap_err(), Category::Transport).started());
    assert_eq!(*waiting.wait().unwrap().bytes(), *b"1");
    stop(&engine);
}

fn restart_02_an_idempotent_group_runs_again_what_had_begun() {
    let plan = Plan::new().group("g", ["gated", "echo"]).restart(soon()).idempotent();
    let gate = Gate::new();
    let (engine, _, [begun, waiting]) = one_begun_and_one_not(plan, &gate);
    kill_for_good(&engine, pid(&engine));
    gate.open();
    assert_eq!(*begun.wait().unwrap().bytes(), *gate.word().as_bytes());
    assert_eq!(*waiting.wait().unwrap().bytes(), *b"1");
    stop(&engine);
}

fn restart_02_outputs_that_had_gone_on_do_not_go_on_twice() {
    // Emits each byte, then waits, then ends; the other group counts.
    let plan = Plan::new()
        .group("front", ["burst_and_wait"])
        .restart(soon())
        .idempotent()
        .group("back", ["tally"])
        .edge("burst_and_wait", "tally");
    let (engine, burst) = started(over(plan), "burst_and_wait");
    let tally = engine.node("tally").unwrap();
    let gate = Gate::new();
    let pending = engine.request(burst).dispatch(format!("abc {}", gate.word()).as_bytes()).unwrap();
    // The third one goes out with the end of the request.
    until("two outputs have gone on", || engine.counters().forwarded == 2);
    kill_for_good(&engine, pid(&engine));
    gate.open();
    assert!(pending.wait().unwrap().is_empty());
    assert_eq!(*engine.call(tally, b"?", far()).unwrap().bytes(), *b"abc");
    let counters = engine.counters();
    assert_eq!((counters.taken_back, counters.replayed_output_drop, counters.forwarded), (1, 2, 3));
    stop(&engine);
}

fn restart_02_a_request_runs_again_only_once() {
    let plan = Plan::new().group("g", ["kill_self", "echo"]).restart(soon()).idempotent();
    let (engine, kill_self) = started(over(plan), "kill_self");
    let failed = failure(engine.call(kill_self, b"", far()).unwrap_err(), Category::Transport);
    assert_eq!((failed.cause(), failed.started()), (Cause::Signal(9), true));
    engine.call(engine.node("echo").unwrap(), b"", far()).unwrap();
    stop(&engine);
}

fn restart_02_requests_wait_for_the_successor() {
    let start = |delay| {
        let restart = Restart::on_failure(9).delay(delay, delay);
        let plan = Plan::new().group("f", ["first"]).group("g", ["second"]).restart(restart);
        let (engine, first) = started(over(plan.edge("first", "second")), "first");
        kill_for_good(&engine, engine.worker_pids()[1]);
        let second = engine.node("second").unwrap();
        (engine, first, second)
    };
    // Directly, in a second thread, and by a hop.
    let (engine, first, second) = start(Duration::from_millis(200));
    std::thread::scope(|scope| {
        let direct = scope.spawn(|| engine.call(second, b"a", far()));
        assert_eq!(*engine.call(first, b"b", far()).unwrap().bytes(), *b"b12");
        assert_eq!(*direct.join().unwrap().unwrap().bytes(), *b"a2");
    });
    kill_for_good(&engine, engine.worker_pids()[1]);
    assert_eq!(*engine.call(first, b"c", far()).unwrap().bytes(), *b"c12");
    stop(&engine);
    // Up to their deadline.
    let (engine, first, second) = start(Duration::from_secs(86_400));
    assert!(matches!(engine.request(second).try_dispatch(b""), Err(TryDispatchError::Busy(_))));
    failure(engine.call(second, b"", ms(20)).unwrap_err(), Category::Timeout);
    let failed = patiently(20, |limit_ms| {
        let failed = failure(engine.call(first, b"", ms(limit_ms)).unwrap_err(), Category::Timeout);
        // On a slow machine it does not come so far.
        (failed.group() == "g").then_some(failed)
    });
    assert!(!failed.started());
    stop(&engine);
}

fn restart_02_others_go_to_the_other_processes() {
    let day = Duration::from_secs(86_400);
    let restart = Restart::on_failure(9).delay(day, day);
    let plan = Plan::new().group("g", ["pid"]).processes(2).restart(restart);
    let (engine, node) = started(over(plan), "pid");
    let pids = engine.worker_pids();
    kill_for_good(&engine, pids[0]);
    for _ in 0..20 {
        assert_eq!(*engine.call(node, b"", far()).unwrap().bytes(), (pids[1] as u32).to_le_bytes());
    }
    stop(&engine);
}

fn placement_03_same_key_same_process_through_a_restart() {
    let plan = Plan::new().group("g", ["pid"]).processes(3).keyed().restart(soon());
    let (engine, node) = started(over(plan), "pid");
    let place = |key: u64| {
        let reply = engine.request(node).key(key).deadline(far()).call(b"").unwrap();
        let pid = reply.to_value::<u32>().unwrap() as i32;
        engine.worker_pids().iter().position(|other| *other == pid)
    };
    let before: Vec<_> = (0..50).map(place).collect();
    for _ in 0..3 {
        kill_and_wait(&engine);
    }
    assert_eq!((0..50).map(place).collect::<Vec<_>>(), before);
    assert!((0..3).all(|process| before.contains(&Some(process))));
    stop(&engine);
}

fn a_loan_outlives_its_worker() {
    let (engine, echo) = started(over(Plan::new().group("g", ["echo"]).restart(soon())), "echo");
    for len in [100, 5000] {
        let mut loan = engine.request(echo).deadline(far()).loan(len).unwrap();
        loan.fill(7);
        kill_and_wait(&engine);
        assert_eq!(*loan.call().unwrap().bytes(), *vec![7; len]);
    }
    stop(&engine);
}

fn a_view_outlives_its_worker() {
    let (engine, large) = started(over(Plan::new().group("g", ["large"]).restart(soon())), "large");
    let first = engine.call(large, b"5000", far()).unwrap();
    kill_and_wait(&engine);
    let second = engine.call(large, b"6000", far()).unwrap();
    assert_eq!(*first.bytes(), *common::pattern(5000, 5000));
    drop(first);
    assert_eq!(*second.bytes(), *common::pattern(6000, 6000));
    drop(second);
    stop(&engine);
}

fn a_stop_does_not_wait_for_a_successor() {
    let day = Duration::from_secs(86_400);
    let plan = Plan::new().group("g", ["echo"]).restart(Restart::on_failure(1).delay(day, day));
    let (engine, echo) = started(over(plan), "echo");
    kill_for_good(&engine, pid(&engine));
    assert!(engine.request(echo).deadline(ms(10)).call(b"").is_err());
    stop(&engine);
}

fn many_restarts_leave_nothing_behind() {
    let (engine, echo) = started(over(Plan::new().group("g", ["echo"]).restart(soon())), "echo");
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    kill_and_wait(&engine);
    engine.call(echo, b"", far()).unwrap();
    let before = descriptors();
    for round in 0..20 {
        kill_and_wait(&engine);
        assert_eq!(*engine.call(echo, &[round], far()).unwrap().bytes(), [round]);
    }
    until("descriptors are closed", || descriptors() <= before);
    stop(&engine);
}
