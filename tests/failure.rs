//! Whatever dies, each request gets one clear error in bounded time: HANDOFF-04, E-01, E-02, E-04, E-05, BOOT.

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use handbell::{
    Category, Cause, Deadline, Drain, ExecutionClass, KilledFor, NodeError, Pending, Plan, Profile,
    StartError, StartStep, TryDispatchError, testing,
};
use rustix::process::Signal;

mod common;
use common::{
    Numbers, balanced, coarse_clock_catches_up, engine, failure, far, is_alive, kill, memory_engine, ms,
    patiently, sent_within, start, started, stop, transport, until, worker_pid,
};

program!(
    handoff_04_abort_gives_transport,
    handoff_04_exit_gives_transport,
    handoff_04_sigkill_gives_transport,
    handoff_04_sigsegv_gives_transport,
    handoff_04_a_panic_gives_execution_and_the_worker_goes_on,
    handoff_04_outliving_the_deadline_gives_timeout,
    handoff_04_killed_at_random_moments_200_times,
    handoff_04_a_death_ends_all_that_is_in_flight,
    handoff_04_a_death_releases_who_waits_for_room,
    handoff_e_01_timeout_message_is_exact,
    handoff_e_01_what_is_refused_is_told_once,
    handoff_e_02_a_dead_worker_refuses_at_once,
    handoff_e_04_a_nodes_error_gives_execution,
    handoff_e_05_nothing_shows_payload_or_text,
    boot_01_nodes_are_built_once_in_the_worker,
    a_factory_that_fails_refuses_the_start,
    a_worker_that_exits_before_ready_refuses_the_start,
    start_timeout_ends_a_start,
    an_unregistered_node_refuses_the_start,
    an_engine_inside_a_worker_is_an_error,
    handoff_e_03_a_first_failure_is_not_masked_by_the_stop,
    a_dead_workers_last_lines_are_shown_on_request,
    failures_and_workers_are_told_to_tracing,
);

/// A node that dies takes nothing along but what is in flight.
fn dies(node: &str, payload: &[u8], cause: Cause) {
    let (engine, node) = start(&[node, "echo"]);
    let (echo, pid) = (engine.node("echo").unwrap(), worker_pid(&engine));
    assert!(engine.call(echo, b"", far()).is_ok());
    let failure = failure(engine.call(node, payload, far()).unwrap_err(), Category::Transport);
    assert_eq!((failure.cause(), failure.started(), failure.group()), (cause, true, "g"));
    assert!(failure.node_error().is_none());
    until("it is gone", || !is_alive(pid));
    // And from now on the same, at once.
    assert_eq!(transport(engine.call(echo, b"", Deadline::Never).unwrap_err()), cause);
    let report = stop(&engine);
    assert_eq!(report.workers.len(), 1);
    assert_eq!((report.workers[0].pid, report.workers[0].cause), (pid, cause));
    assert_eq!((report.workers[0].mode, report.cut_off), (handbell::StopMode::Forced, 0));
}

fn handoff_04_abort_gives_transport() {
    dies("abort", b"", Cause::Signal(6));
}

fn handoff_04_exit_gives_transport() {
    dies("exit", b"5", Cause::Exit(5));
    dies("exit", b"0", Cause::Exit(0));
}

fn handoff_04_sigkill_gives_transport() {
    dies("kill_self", b"", Cause::Signal(9));
}

fn handoff_04_sigsegv_gives_transport() {
    dies("segv", b"", Cause::Signal(11));
}

fn handoff_04_a_panic_gives_execution_and_the_worker_goes_on() {
    let (engine, node) = start(&["panic", "echo"]);
    for _ in 0..3 {
        let failure = failure(engine.call(node, b"as told", far()).unwrap_err(), Category::Execution);
        assert_eq!(failure.cause(), Cause::Execution { class: ExecutionClass::Panic, code: 0 });
        assert_eq!(*engine.call(engine.node("echo").unwrap(), b"on", far()).unwrap().bytes(), *b"on");
    }
    assert!(is_alive(worker_pid(&engine)));
    stop(&engine);
}

fn handoff_04_outliving_the_deadline_gives_timeout() {
    let (engine, running) = start(&["until_cancelled", "echo"]);
    let pending = sent_within(&engine, running, 300, b"");
    let failure = failure(pending.wait().unwrap_err(), Category::Timeout);
    assert_eq!(failure.cause(), Cause::Deadline);
    // A deadline kills nobody.
    assert!(engine.call(engine.node("echo").unwrap(), b"", far()).is_ok());
    assert!(is_alive(worker_pid(&engine)));
    stop(&engine);
}

/// One round: a window of requests, a kill somewhere in it, and every request ends once.
fn killed_round(numbers: &mut Numbers) {
    let builder = engine(&["echo", "large"]).slots(16).max_in_flight(32).completed_history(64);
    let (engine, echo) = started(builder, "echo");
    let (large, pid) = (engine.node("large").unwrap(), worker_pid(&engine));
    let after = numbers.below(60);
    let pause = Duration::from_micros(numbers.below(300));
    let (mut replies, mut deaths, mut refused) = (0u64, 0, 0);
    let mut end = |pending: Pending, payload: &[u8]| match pending.wait() {
        Ok(reply) => {
            assert!(*reply.bytes() == *payload || reply.len() == 3000);
            replies += 1;
        }
        Err(error) => {
            assert_eq!(transport(error), Cause::Signal(9));
            deaths += 1;
        }
    };
    std::thread::scope(|scope| {
        let mut window = Vec::new();
        let mut killer = None;
        for i in 0..100u64 {
            if i == after {
                killer = Some(scope.spawn(move || {
                    std::thread::sleep(pause);
                    kill(pid, Signal::KILL);
                }));
            }
            let (node, payload) = if i % 10 == 9 { (large, "3000".into()) } else { (echo, format!("{i}")) };
            match engine.request(node).deadline(far()).dispatch(payload.as_bytes()) {
                Ok(pending) => window.push((pending, payload)),
                Err(error) => {
                    assert_eq!(transport(error), Cause::Signal(9));
                    refused += 1;
                }
            }
            if window.len() == 12 {
                let (pending, payload) = window.remove(0);
                end(pending, payload.as_bytes());
            }
        }
        killer.expect("every round kills").join().expect("the killer ends");
        window.into_iter().for_each(|(pending, payload)| end(pending, payload.as_bytes()));
    });
    until("it is gone", || !is_alive(pid));
    assert_eq!(replies + deaths + refused, 100);
    let counters = engine.counters();
    assert_eq!(
        (counters.completed(), counters.failed, counters.ended()),
        (replies, deaths, counters.registered)
    );
    assert!(counters.rejected + counters.duplicate_terminal == 0, "{counters:?}");
    stop(&engine);
}

fn handoff_04_killed_at_random_moments_200_times() {
    let mut numbers = Numbers(0x5EED);
    (0..200).for_each(|_| killed_round(&mut numbers));
}

fn handoff_04_a_death_ends_all_that_is_in_flight() {
    let (engine, running) = start(&["until_cancelled", "echo"]);
    let echo = engine.node("echo").unwrap();
    let first = engine.request(running).dispatch(b"").unwrap();
    until("the node runs", || testing::has_begun(&engine, 0));
    let waits: Vec<_> = (0..20).map(|_| engine.request(echo).dispatch(b"").unwrap()).collect();
    engine.request(echo).dispatch(b"").unwrap().detach();
    // Some wait in calls, asleep.
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let failure =
                    failure(engine.call(echo, b"", Deadline::Never).unwrap_err(), Category::Transport);
                assert!(!failure.started());
            });
        }
        until("they are in flight", || engine.counters().registered == 25);
        std::thread::sleep(Duration::from_millis(20));
        kill(worker_pid(&engine), Signal::KILL);
    });
    let failed = failure(first.wait().unwrap_err(), Category::Transport);
    assert_eq!((failed.cause(), failed.started()), (Cause::Signal(9), true));
    for pending in waits {
        let failure = failure(pending.wait().unwrap_err(), Category::Transport);
        assert_eq!((failure.cause(), failure.started()), (Cause::Signal(9), false));
    }
    assert_eq!(engine.counters().failed, 25);
    until("the detached one has been freed", || engine.audit().free == 1024);
    balanced(&engine);
    stop(&engine);
}

fn handoff_04_a_death_releases_who_waits_for_room() {
    let builder = engine(&["until_cancelled", "echo"]).slots(2).request_arena_bytes(4096);
    let (engine, running) = started(builder, "until_cancelled");
    let echo = engine.node("echo").unwrap();
    let in_flight = [running, echo].map(|node| engine.request(node).dispatch(b"").unwrap());
    let arena = engine.request(echo).loan(4096).unwrap();
    std::thread::scope(|scope| {
        let for_slot = scope.spawn(|| engine.request(echo).dispatch(b"").map(drop));
        let for_block = scope.spawn(|| engine.request(echo).loan(4096).map(drop));
        std::thread::sleep(Duration::from_millis(30));
        assert!(!for_slot.is_finished() && !for_block.is_finished());
        kill(worker_pid(&engine), Signal::KILL);
        assert_eq!(transport(for_slot.join().unwrap().unwrap_err()), Cause::Signal(9));
        assert_eq!(transport(for_block.join().unwrap().unwrap_err()), Cause::Signal(9));
    });
    drop(arena);
    in_flight
        .into_iter()
        .for_each(|pending| assert_eq!(transport(pending.wait().unwrap_err()), Cause::Signal(9)));
    stop(&engine);
}

fn handoff_e_01_timeout_message_is_exact() {
    let (engine, running) = start(&["until_cancelled"]);
    let begin = Instant::now();
    let error = engine.call(running, b"", ms(60)).unwrap_err();
    assert!(begin.elapsed() >= Duration::from_millis(60), "never early");
    assert_eq!(error.to_string(), "remote handoff timed out for group 'g'");
    assert_eq!(failure(error, Category::Timeout).category().name(), "timeout");
    // Passed before it is sent.
    let passed = engine.request(running).deadline(Deadline::AtNs(1)).call(b"").unwrap_err();
    assert_eq!(passed.to_string(), "remote handoff timed out for group 'g'");
    stop(&engine);
}

fn handoff_e_01_what_is_refused_is_told_once() {
    for profile in [Profile::ProcessSupervisor, Profile::Memory] {
        let told = Arc::new(AtomicU64::new(0));
        let listener = Arc::clone(&told);
        let builder = engine(&["echo"]).profile(profile).on_failure(move |failure| {
            assert_eq!(failure.cause(), Cause::Deadline);
            listener.fetch_add(1, Ordering::SeqCst);
        });
        let (engine, echo) = started(builder, "echo");
        let passed = || engine.request(echo).deadline(Deadline::AtNs(1));
        assert!(passed().call(b"small").is_err());
        assert!(passed().call(&[7; 5000]).is_err());
        assert!(passed().dispatch(b"small").is_err());
        assert!(passed().try_dispatch(b"small").is_err());
        assert!(passed().loan(5000).is_err());
        for len in [64, 5000] {
            // Taken in time, sent too late.
            let loan = engine.request(echo).deadline(ms(50)).loan(len).unwrap();
            std::thread::sleep(Duration::from_millis(50));
            coarse_clock_catches_up();
            engine.call(echo, b"so that the clock is read", far()).unwrap();
            assert!(loan.dispatch().is_err());
        }
        stop(&engine);
        assert_eq!(told.load(Ordering::SeqCst), 7, "{profile:?}");
    }
}

fn handoff_e_02_a_dead_worker_refuses_at_once() {
    let (engine, echo) = start(&["echo"]);
    kill(worker_pid(&engine), Signal::KILL);
    let mut said = String::new();
    until("the death is known", || match engine.call(echo, b"", far()) {
        Ok(_) => false,
        Err(error) => {
            said = error.to_string();
            true
        }
    });
    assert_eq!(said, "remote handoff transport failed for group 'g'");
    let refusals = [
        engine.request(echo).dispatch(b"").map(drop).unwrap_err(),
        engine.request(echo).dispatch(&[0; 5000]).map(drop).unwrap_err(),
        match engine.request(echo).try_dispatch(b"") {
            Err(TryDispatchError::Refused(error)) => error,
            other => panic!("{other:?}"),
        },
    ];
    for refusal in refusals {
        assert_eq!(refusal.to_string(), said);
        assert_eq!(transport(refusal), Cause::Signal(9));
    }
    assert_eq!(Category::Transport.name(), "transport");
    stop(&engine);
}

fn handoff_e_04_a_nodes_error_gives_execution() {
    let (engine, fail) = start(&["fail", "large", "count"]);
    let error = engine.call(fail, b"card 4111", far()).unwrap_err();
    assert_eq!(error.to_string(), "remote handoff failed for group 'g'");
    let failed = failure(error, Category::Execution);
    assert_eq!(failed.cause(), Cause::Execution { class: ExecutionClass::NodeError, code: 7 });
    assert_eq!(failed.node_error().map(|error| (error.code(), error.text())), Some((7, "card 4111")));
    assert!(failed.started());
    // Long text is cut, and the smallest slot is enough for an error.
    let long = "é".repeat(500);
    let failed = failure(engine.call(fail, long.as_bytes(), far()).unwrap_err(), Category::Execution);
    let text = failed.node_error().expect("the node's own").text();
    assert!(!text.is_empty() && text.len() <= 160 && long.starts_with(text));
    stop(&engine);
    let (engine, fail) = started(common::engine(&["fail"]).slot_bytes(128), "fail");
    let failed = failure(engine.call(fail, long.as_bytes(), far()).unwrap_err(), Category::Execution);
    let text = failed.node_error().expect("the node's own").text();
    assert!(!text.is_empty() && text.len() <= 128 && long.starts_with(text));
    stop(&engine);
}

/// Everything that an error shows by itself.
fn shown(error: &(dyn Error + 'static)) -> String {
    let mut all = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        all += &format!("{error} {error:?} {error:#?}\n");
        next = error.source();
    }
    all
}

fn handoff_e_05_nothing_shows_payload_or_text() {
    const CANARY: &str = "canary-4111-1111";
    for builder in [
        engine(&["fail", "panic", "echo", "until_cancelled", "exit"]).on_output(|_| {}),
        memory_engine(&["fail", "panic", "echo", "until_cancelled", "exit"]),
    ] {
        let (engine, fail) = started(builder.request_arena_bytes(4096), "fail");
        let [panics, echo, running, exit] =
            ["panic", "echo", "until_cancelled", "exit"].map(|name| engine.node(name).unwrap());
        let payload = CANARY.as_bytes();
        let mut all = String::new();
        let failed = engine.call(fail, payload, far()).unwrap_err();
        all += &shown(&failed);
        let node_error = failure(failed, Category::Execution).node_error().cloned().expect("the node's own");
        assert_eq!(node_error.text(), CANARY, "shown to who asks");
        all += &shown(&node_error);
        all += &shown(&NodeError::new(1, CANARY));
        all += &shown(&engine.call(panics, payload, far()).unwrap_err());
        all += &shown(&engine.call(running, payload, ms(20)).unwrap_err());
        let big = CANARY.repeat(1000);
        all += &shown(&engine.call(echo, big.as_bytes(), far()).unwrap_err());
        all += &shown(&engine.call_as::<_, u64>(echo, payload, far()).unwrap_err());
        let reply = engine.call(echo, payload, far()).unwrap();
        all += &format!("{reply:?} {reply:#?}");
        let pending = engine.request(echo).trace_id(9).dispatch(payload).unwrap();
        all += &format!("{pending:?}");
        let refused = engine.request(echo).trace_id(9).dispatch(payload).map(drop);
        all += &refused.err().map_or_else(String::new, |error| shown(&error));
        pending.cancel();
        all += &pending.wait().err().map_or_else(String::new, |error| shown(&error));
        if !engine.summary().worker_pids.is_empty() {
            all += &shown(&engine.call(exit, b"9", far()).unwrap_err());
        }
        all += &format!("{engine:?} {:?} {:?} {:#?}", engine.counters(), engine.audit(), engine.events());
        all += &format!("{:?} {:?}", engine.summary(), stop(&engine));
        let stopped = engine.request(echo).try_dispatch(payload).unwrap_err();
        all += &format!("{stopped} {stopped:?} {stopped:#?}");
        // With more than digits: a time may have those by chance.
        assert!(!all.contains("canary") && !all.contains("4111-1111"), "{all}");
    }
    // The factory's text of a worker goes to its captured output, not into the error.
    let refused = engine(&["unbuildable"]).on_output(|_| {}).start().unwrap_err();
    assert!(!shown(&refused).contains("canary"), "{}", shown(&refused));
}

fn boot_01_nodes_are_built_once_in_the_worker() {
    let (engine, count) = start(&["count", "counted", "pid"]);
    let counted = engine.node("counted").unwrap();
    for calls in 1..=50u32 {
        assert_eq!(
            u32::from_le_bytes(engine.call_as(count, b"", far()).unwrap()),
            calls,
            "one state for life"
        );
        assert_eq!(u32::from_le_bytes(engine.call_as(counted, b"", far()).unwrap()), calls, "shared by both");
    }
    // Another process has a state of its own.
    let (other, _) = start(&["count", "counted"]);
    assert_eq!(u32::from_le_bytes(other.call_as(count, b"", far()).unwrap()), 1);
    stop(&engine);
    stop(&other);
}

fn a_factory_that_fails_refuses_the_start() {
    let refused = engine(&["echo", "unbuildable"]).start().unwrap_err();
    assert!(matches!(&refused, StartError::Refused { group, .. } if group == "g"), "{refused:?}");
    assert_eq!(
        refused.to_string(),
        "start refused by the worker of group 'g': node 'unbuildable' could not be built"
    );
    let refused = memory_engine(&["echo", "unbuildable"]).start().unwrap_err();
    assert!(matches!(&refused, StartError::NotBuilt { node, .. } if node == "unbuildable"), "{refused:?}");
}

fn a_worker_that_exits_before_ready_refuses_the_start() {
    let refused = engine(&["exit_in_factory"]).start().unwrap_err();
    let StartError::Died { group, step, cause } = &refused else { panic!("{refused:?}") };
    assert_eq!((group.as_str(), *step, *cause), ("g", StartStep::Ready, Cause::Exit(3)));
    assert_eq!(refused.to_string(), "the worker of group 'g' ended at step ready: Exit(3)");
}

fn start_timeout_ends_a_start() {
    let (refused, timeout) = patiently(300, |timeout_ms| {
        let timeout = Duration::from_millis(timeout_ms);
        let refused = engine(&["stuck_in_factory"]).start_timeout(timeout).start().unwrap_err();
        let StartError::Timeout { step, .. } = refused else { panic!("{refused:?}") };
        // A slow machine does not come so far.
        (step == StartStep::Ready).then_some((refused, timeout))
    });
    assert_eq!(
        refused.to_string(),
        format!("the worker of group 'g' did not reach step ready within start_timeout = {timeout:?}")
    );
}

fn an_unregistered_node_refuses_the_start() {
    let plan = Plan::new().group("g", ["echo", "nowhere"]);
    let refused = common::app().engine(plan).start().unwrap_err();
    let said = "plan: node 'nowhere' is in the plan, but the application registers no node of that name";
    assert_eq!(refused.to_string(), said);
}

fn an_engine_inside_a_worker_is_an_error() {
    let (engine, inside) = start(&["engine_inside"]);
    let said = engine.call(inside, b"", far()).unwrap();
    let expected = "an engine cannot be started inside a worker; call serve_if_worker first in main";
    assert_eq!(String::from_utf8_lossy(&said.bytes()), expected);
    stop(&engine);
}

fn handoff_e_03_a_first_failure_is_not_masked_by_the_stop() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&told);
    let builder = engine(&["stuck"]).term_timeout(Duration::from_millis(200)).on_failure(move |failure| {
        heard.lock().unwrap().push((failure.group().to_owned(), failure.category(), failure.cause()));
    });
    let (engine, stuck) = started(builder, "stuck");
    failure(engine.call(stuck, b"", ms(50)).unwrap_err(), Category::Timeout);
    let cut_off = engine.request(stuck).dispatch(b"").unwrap();
    let report = engine.stop(Drain::within(Duration::from_millis(10)));
    assert_eq!((report.cut_off, report.workers[0].mode), (1, handbell::StopMode::Forced));
    let diagnostics = |causes: &[(Category, Cause)]| {
        // The stop waits for listeners for no longer than for the worker.
        common::until("all is told", || told.lock().unwrap().len() >= causes.len());
        let told = told.lock().unwrap();
        assert!(
            told.iter()
                .map(|(group, category, cause)| (group.as_str(), *category, *cause))
                .eq(causes.iter().map(|(category, cause)| ("g", *category, *cause)))
        );
    };
    // The caller's own, then the stop that ran over.
    let overrun = (Category::Shutdown, Cause::Killed(KilledFor::StopOverrun));
    let timeout = (Category::Timeout, Cause::Deadline);
    diagnostics(&[timeout, overrun]);
    // And what the stop cut off, once somebody takes it.
    failure(cut_off.wait().unwrap_err(), Category::Shutdown);
    diagnostics(&[timeout, overrun, (Category::Shutdown, Cause::Stopped)]);
}

fn a_dead_workers_last_lines_are_shown_on_request() {
    // A listener that panics changes nothing, nor does a sink.
    let builder = engine(&["print", "abort"]).on_failure(|_| panic!("wanted"));
    let builder = builder.on_output(|_| std::panic::resume_unwind(Box::new("wanted")));
    let (engine, print) = started(builder, "print");
    for line in 0..40 {
        engine.call(print, format!("{line}").as_bytes(), far()).unwrap();
    }
    let pid = worker_pid(&engine);
    let died = engine.call(engine.node("abort").unwrap(), b"", far()).unwrap_err();
    assert!(!format!("{died:?}").contains("out 39"));
    until("its last words are there", || {
        let lines = engine.last_lines(pid);
        lines.len() == 64 && lines.contains(&b"out 39".to_vec()) && lines.contains(&b"err 39".to_vec())
    });
    assert_eq!(engine.last_lines(0), Vec::<Vec<u8>>::new());
    stop(&engine);
}

fn failures_and_workers_are_told_to_tracing() {
    let told = common::traced::record();
    let (engine, fail) = started(engine(&["fail"]), "fail");
    engine.call(fail, b"canary-4111", far()).unwrap_err();
    stop(&engine);
    let told = told.lock().unwrap();
    let has = |words: &[&str]| told.iter().any(|event| words.iter().all(|word| event.contains(word)));
    assert!(
        has(&["worker", "Started"]) && has(&["worker", "Ready"]) && has(&["worker", "Stopped"]),
        "{told:?}"
    );
    assert!(has(&["handoff_failure", "group=\"g\"", "category=\"execution\""]), "{told:?}");
    assert!(!told.iter().any(|event| event.contains("-4111")), "{told:?}");
}
