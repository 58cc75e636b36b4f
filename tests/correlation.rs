//! Every request ends exactly once, and the books say so: REPLY-01..09, LEDGER-01, LEDGER-02.

use std::task::Waker;

use handbell::testing::{self, End, Judged, NotRegistered, Table, Waiter};
use handbell::{
    CallError, Category, Cause, Deadline, DispatchError, EventKind, Identity, Pending, Profile, Rule,
    TraceId, TryDispatchError, Waiting,
};

mod common;
use common::{Numbers, balanced, engine, failure, far, ms, sent_within, start, started, stop, until};

program!(
    reply_01_in_flight_falls_back_to_zero,
    reply_02_expire_goes_by_deadline_then_by_registration,
    reply_02_a_deadline_is_reached_when_now_equals_it,
    reply_02_what_is_skipped_for_its_deadline_is_a_timeout,
    reply_03_a_second_terminal_changes_nothing,
    reply_04_a_running_node_sees_the_cancel_and_unstarted_work_is_skipped,
    reply_04_dropping_a_pending_cancels_it,
    reply_05_an_answer_after_a_cancel_is_late_and_not_rejected,
    reply_05_what_comes_after_a_cancel_or_a_timeout_is_dropped,
    reply_06_counters_tell_duplicate_from_late,
    reply_06_the_memory_of_completed_waiters_is_bounded,
    reply_07_events_are_the_newest_256_and_carry_no_content,
    reply_08_a_trace_id_is_in_flight_once,
    reply_09_a_late_answer_never_reaches_the_next_user_of_the_slot,
    ledger_01_balances_over_every_way_to_end,
    ledger_01_four_threads_of_twenty_thousand_calls,
    ledger_02_the_same_sequence_gives_the_same_bytes,
    a_detached_request_goes_on,
    a_deadline_ends_what_nobody_waits_for,
    try_take_gives_the_result_once,
    reply_01_an_end_that_was_taken_touches_nobody_elses,
    try_dispatch_gives_a_busy_request_back,
);

fn id(number: u128) -> Identity {
    Identity { trace_id: TraceId::from(number), reply_to: 1, run: 2, scenario: 3 }
}

fn reply_01_in_flight_falls_back_to_zero() {
    let (engine, echo) = start(&["echo"]);
    let mut pending = Vec::new();
    for i in 0u32..200 {
        pending.push(engine.request(echo).deadline(far()).dispatch(&i.to_le_bytes()).unwrap());
    }
    for (i, pending) in pending.into_iter().enumerate() {
        assert_eq!(pending.wait().unwrap().to_value::<u32>(), Some(i as u32));
    }
    let counters = engine.counters();
    assert_eq!((counters.registered, counters.completed_by_terminal), (200, 200));
    assert_eq!((counters.terminals_received, counters.terminals_that_ended), (200, 200));
    balanced(&engine);
    stop(&engine);
}

fn reply_02_expire_goes_by_deadline_then_by_registration() {
    let table = Table::new(300, 2, 1000);
    let mut numbers = Numbers(5);
    let mut due = Vec::new();
    for i in 0..300u128 {
        let deadline_ns = [0, 50, 60, 70, 1000][numbers.below(5) as usize];
        table.register(id(i + 1), deadline_ns).unwrap();
        if (1..=70).contains(&deadline_ns) {
            due.push((deadline_ns, i, TraceId::from(i + 1)));
        }
    }
    due.sort();
    assert_eq!(table.expire(49), []);
    assert_eq!(table.expire(500), due.iter().map(|(.., id)| *id).collect::<Vec<_>>());
    assert_eq!(table.expire(999), []);
    assert_eq!(table.counters().expired, due.len() as u64);
    let expired: Vec<_> = table.events().into_iter().map(|event| (event.kind, event.trace_id)).collect();
    let ends = due.iter().map(|(.., id)| (EventKind::Expired, *id)).collect::<Vec<_>>();
    assert_eq!(expired, ends[ends.len().saturating_sub(256)..]);
}

fn reply_02_a_deadline_is_reached_when_now_equals_it() {
    let table = Table::new(4, 1, 4);
    let waiter = table.register(id(1), 1000).unwrap();
    assert_eq!(table.expire(999), []);
    assert_eq!(table.take(&waiter), None);
    assert_eq!(table.expire(1000), [waiter.trace_id()]);
    assert_eq!(table.take(&waiter), Some(End::Failed(Cause::Deadline)));
}

fn reply_02_what_is_skipped_for_its_deadline_is_a_timeout() {
    let table = Table::new(4, 1, 4);
    let early = table.register(id(1), 1000).unwrap();
    let due = table.register(id(2), 1000).unwrap();
    assert_eq!(table.frame(&early.done(), b"", 999), Judged::Ended);
    assert_eq!(table.frame(&due.done(), b"", 1000), Judged::Ended);
    assert_eq!(table.take(&early), Some(End::Success(Vec::new())));
    assert_eq!(table.take(&due), Some(End::Failed(Cause::Deadline)));
    assert_eq!((table.counters().completed_by_last, table.counters().expired), (1, 1));

    // The worker may see it first.
    let (engine, echo) = start(&["echo"]);
    for _ in 0..2000 {
        let passed = engine.request(echo).deadline(Deadline::AtNs(1)).call(b"x").unwrap_err();
        failure(passed, Category::Timeout);
    }
    stop(&engine);
}

fn reply_03_a_second_terminal_changes_nothing() {
    let table = Table::new(4, 1, 4);
    let waiter = table.register(id(1), 0).unwrap();
    assert_eq!(table.frame(&waiter.terminal(), b"first", 1), Judged::Ended);
    let counters = table.counters();
    assert_eq!(table.frame(&waiter.terminal(), b"second", 2), Judged::Dropped);
    let error = testing::Envelope { status: testing::status::ERROR, ..waiter.terminal() };
    assert_eq!(table.frame(&error, b"third", 3), Judged::Dropped);
    assert_eq!(table.take(&waiter), Some(End::Success(b"first".to_vec())));
    let after = table.counters();
    assert_eq!((after.completed(), after.failed), (counters.completed(), 0));
    assert_eq!(after.duplicate_terminal, 2);
}

fn reply_04_a_running_node_sees_the_cancel_and_unstarted_work_is_skipped() {
    let (engine, running) = start(&["until_cancelled", "cancelled_seen", "count", "counted"]);
    let [seen, count, counted] =
        ["cancelled_seen", "count", "counted"].map(|name| engine.node(name).unwrap());
    let ask = |node| engine.request(node).deadline(far()).dispatch(b"").unwrap();
    let number = |node| u32::from_le_bytes(engine.call_as(node, b"", far()).unwrap());
    let blocking = ask(running);
    until("the node runs", || testing::has_begun(&engine, 0));
    let skipped = [ask(count), ask(count)];
    let stays = ask(count);
    // Cancelled while another request stands before them.
    for pending in skipped {
        pending.cancel();
        assert!(matches!(pending.wait(), Err(CallError::Cancelled)));
    }
    blocking.cancel();
    assert!(matches!(blocking.wait(), Err(CallError::Cancelled)));
    assert_eq!(stays.wait().unwrap().to_value::<u32>(), Some(1), "only this one was run");
    assert_eq!((number(seen), number(counted)), (1, 1));
    let counters = engine.counters();
    assert_eq!((counters.cancelled, counters.late_reply_drop), (3, 1));
    stop(&engine);
}

fn reply_04_dropping_a_pending_cancels_it() {
    let (engine, running) = start(&["until_cancelled", "cancelled_seen"]);
    let seen = engine.node("cancelled_seen").unwrap();
    let pending = engine.request(running).dispatch(b"").unwrap();
    until("the node runs", || testing::has_begun(&engine, 0));
    drop(pending);
    // Answered after the node has seen it.
    assert_eq!(u32::from_le_bytes(engine.call_as(seen, b"", far()).unwrap()), 1);
    assert_eq!(engine.counters().cancelled, 1);
    stop(&engine);
}

fn reply_05_an_answer_after_a_cancel_is_late_and_not_rejected() {
    for builder in [common::engine, common::memory_engine] {
        let (engine, echo) = common::started(builder(&["echo"]).slots(2).max_in_flight(8), "echo");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5000 {
                        let pending = engine.request(echo).dispatch(b"x").unwrap();
                        pending.cancel();
                        // The answer may have been faster.
                        let _ = pending.wait();
                    }
                });
            }
        });
        stop(&engine);
        assert_eq!(engine.counters().rejected, 0);
    }
}

fn reply_05_what_comes_after_a_cancel_or_a_timeout_is_dropped() {
    let table = Table::new(4, 1, 4);
    let cancelled = table.register(id(1), 0).unwrap();
    let expired = table.register(id(2), 10).unwrap();
    assert!(table.cancel(&cancelled, 1) && !table.cancel(&cancelled, 2));
    table.expire(10);
    for waiter in [&cancelled, &expired] {
        assert_eq!(table.frame(&waiter.terminal(), b"late", 11), Judged::Dropped);
        assert_eq!(table.frame(&waiter.done(), b"", 11), Judged::Dropped);
    }
    assert_eq!(table.take(&cancelled), Some(End::Cancelled));
    assert_eq!(table.take(&expired), Some(End::Failed(Cause::Deadline)));
    let counters = table.counters();
    assert_eq!((counters.late_reply_drop, counters.duplicate_terminal, counters.completed()), (2, 0, 0));
    assert_eq!(table.audit().free, 4);
}

/// Ends a waiter with a terminal and frees its place.
fn complete(table: &Table, waiter: &Waiter) {
    assert_eq!(table.frame(&waiter.terminal(), b"", 1), Judged::Ended);
    assert_eq!(table.frame(&waiter.done(), b"", 1), Judged::Dropped);
    assert!(table.take(waiter).is_some());
}

fn reply_06_counters_tell_duplicate_from_late() {
    let table = Table::new(8, 1, 100);
    let waiters: Vec<_> =
        (0..6).map(|i| table.register(id(i + 1), if i == 3 { 5 } else { 0 }).unwrap()).collect();
    assert_eq!(table.audit().in_flight, 6);
    assert_eq!(table.frame(&waiters[0].terminal(), b"", 1), Judged::Ended);
    assert_eq!(table.frame(&waiters[1].done(), b"", 1), Judged::Ended);
    let error = testing::Envelope { status: testing::status::ERROR, ..waiters[2].terminal() };
    assert_eq!(
        table.frame(&error, &testing::error_payload(handbell::ExecutionClass::Panic, 0, ""), 1),
        Judged::Ended
    );
    table.expire(5);
    table.cancel(&waiters[4], 5);
    for waiter in &waiters[..5] {
        assert_eq!(table.frame(&waiter.terminal(), b"", 6), Judged::Dropped);
    }
    let counters = table.counters();
    assert_eq!((counters.registered, counters.completed_by_terminal, counters.completed_by_last), (6, 1, 1));
    assert_eq!((counters.failed, counters.expired, counters.cancelled), (1, 1, 1));
    // Only the two that completed make a duplicate.
    assert_eq!((counters.duplicate_terminal, counters.late_reply_drop), (2, 3));
    assert_eq!(table.audit().in_flight, 1);
    assert!(counters.balances(1));
    // Taken and freed, they are told apart just the same.
    for waiter in &waiters[..5] {
        assert!(table.take(waiter).is_some());
        assert_eq!(table.frame(&waiter.terminal(), b"", 7), Judged::Dropped);
    }
    let counters = table.counters();
    assert_eq!((counters.duplicate_terminal, counters.late_reply_drop), (4, 6));
    // What was never issued is impossible, not late.
    assert_eq!(
        table.frame(&testing::Envelope { ticket: testing::ticket(99, 1), ..error }, b"", 7),
        Judged::Broke(Rule::Ticket)
    );
    assert_eq!(
        table.frame(&testing::Envelope { ticket: testing::ticket(0, 99), ..error }, b"", 7),
        Judged::Broke(Rule::Ticket)
    );
}

fn reply_06_the_memory_of_completed_waiters_is_bounded() {
    let table = Table::new(1, 1, 10);
    let old = table.register(id(1), 0).unwrap();
    complete(&table, &old);
    for i in 0..9 {
        let waiter = table.register(id(i + 2), 0).unwrap();
        complete(&table, &waiter);
    }
    table.frame(&old.terminal(), b"", 2);
    assert_eq!((table.counters().duplicate_terminal, table.counters().late_reply_drop), (1, 0));
    let waiter = table.register(id(50), 0).unwrap();
    complete(&table, &waiter);
    table.frame(&old.terminal(), b"", 2);
    assert_eq!((table.counters().duplicate_terminal, table.counters().late_reply_drop), (1, 1), "forgotten");
}

fn reply_07_events_are_the_newest_256_and_carry_no_content() {
    let (engine, echo) = start(&["echo", "fail"]);
    let fail = engine.node("fail").unwrap();
    for i in 1..=300u128 {
        let request = |node| engine.request(node).trace_id(i).reply_to(0xABCD_4111).deadline(far());
        if i % 3 == 0 {
            assert!(request(fail).call(b"canary-4111").is_err());
        } else {
            assert!(request(echo).call(b"canary-4111").is_ok());
        }
    }
    let events = engine.events();
    assert_eq!(events.len(), 256);
    for (event, i) in events.iter().zip(45..=300u128) {
        assert_eq!(event.trace_id, TraceId::from(i));
        let (kind, status) = match i % 3 {
            0 => (EventKind::Failed, Some(Category::Execution)),
            _ => (EventKind::Completed, None),
        };
        assert_eq!((event.kind, event.status), (kind, status));
        let shown = format!("{event:?}");
        assert!(event.at_ns > 0 && !shown.contains("canary") && !shown.contains(&0xABCD_4111u32.to_string()));
    }
    assert!(events.is_sorted_by_key(|event| event.at_ns));
    stop(&engine);
}

fn reply_08_a_trace_id_is_in_flight_once() {
    let table = Table::new(4, 1, 4);
    let first = table.register(id(7), 0).unwrap();
    assert_eq!(table.register(id(7), 0).unwrap_err(), NotRegistered::TraceInFlight);
    assert_eq!(table.audit().free, 3, "what was refused holds no place");
    complete(&table, &first);
    assert!(table.register(id(7), 0).is_ok());

    let (engine, running) = start(&["until_cancelled", "echo"]);
    let echo = engine.node("echo").unwrap();
    let first = engine.request(running).trace_id(7).dispatch(b"").unwrap();
    let again = engine.request(echo).trace_id(7).dispatch(b"").unwrap_err();
    assert!(matches!(again, DispatchError::TraceInFlight), "{again}");
    first.cancel();
    assert!(matches!(first.wait(), Err(CallError::Cancelled)));
    assert!(engine.request(echo).trace_id(7).deadline(far()).call(b"").is_ok());
    stop(&engine);
}

fn reply_09_a_late_answer_never_reaches_the_next_user_of_the_slot() {
    let table = Table::new(1, 1, 4);
    let a = table.register(id(1), 10).unwrap();
    table.expire(10);
    assert!(table.take(&a).is_some());
    let b = table.register(id(2), 0).unwrap();
    assert_eq!(a.slot(), b.slot());
    assert_eq!(table.frame(&a.terminal(), b"for a", 11), Judged::Dropped);
    assert_eq!(table.frame(&a.done(), b"", 11), Judged::Dropped);
    // Not even under B's ticket.
    let forged = testing::Envelope { ticket: b.ticket(), ..a.terminal() };
    assert_eq!(table.frame(&forged, b"for a", 11), Judged::Dropped);
    assert_eq!(table.take(&b), None);
    assert_eq!(table.frame(&b.terminal(), b"for b", 12), Judged::Ended);
    assert_eq!(table.take(&b), Some(End::Success(b"for b".to_vec())));
    let counters = table.counters();
    assert_eq!((counters.late_reply_drop, counters.rejected, counters.rejected_terminal), (1, 1, 1));
}

fn ledger_01_balances_over_every_way_to_end() {
    let (engine, echo) = started(
        engine(&["echo", "fail", "panic", "nothing", "reply_twice", "sleep"]).max_in_flight(40),
        "echo",
    );
    let nodes = ["echo", "fail", "panic", "nothing", "reply_twice"].map(|name| engine.node(name).unwrap());
    let sleep = engine.node("sleep").unwrap();
    let mut numbers = Numbers(11);
    let mut pending = Vec::new();
    let (mut taken, mut ended, mut detached) = (0u64, 0u64, 0u64);
    for _ in 0..3000 {
        let node = nodes[numbers.below(5) as usize];
        let (node, payload, deadline) = match numbers.below(100) {
            0 => (sleep, &b"3"[..], ms(1)),
            1 => (node, &b"1"[..], Deadline::AtNs(1)),
            _ => (node, &b"12"[..], far()),
        };
        match engine.request(node).deadline(deadline).dispatch(payload) {
            Ok(request) => {
                taken += 1;
                pending.push(request);
            }
            Err(DispatchError::Failed(failure)) => assert_eq!(failure.category(), Category::Timeout),
            Err(other) => panic!("{other}"),
        }
        while pending.len() > 30 || !pending.is_empty() && numbers.below(3) == 0 {
            let at = numbers.below(pending.len() as u64) as usize;
            let request = pending.swap_remove(at);
            match numbers.below(6) {
                0 => drop(request),
                1 => request.cancel(),
                2 => {
                    detached += 1;
                    request.detach();
                    continue;
                }
                _ => drop(request.wait()),
            }
            ended += 1;
        }
    }
    ended += pending.len() as u64;
    pending.into_iter().for_each(|request| drop(request.wait()));
    until("what was detached has ended", || engine.audit().free == 40);
    // The last frames of what was given up have been read as well.
    engine.call(echo, b"", far()).unwrap();
    let counters = engine.counters();
    assert_eq!((counters.registered, counters.ended()), (taken + 1, ended + detached + 1));
    assert!(counters.cancelled > 0 && counters.failed > 0 && counters.completed_by_last > 0);
    assert!(counters.duplicate_terminal > 0 && counters.late_reply_drop > 0, "{counters:?}");
    assert_eq!(engine.lane_counters(), [counters], "one lane is the sum");
    balanced(&engine);
    stop(&engine);
}

fn ledger_01_four_threads_of_twenty_thousand_calls() {
    const THREADS: u32 = 4;
    const CALLS: u32 = 20_000;
    let (engine, echo) = start(&["echo"]);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let engine = engine.clone();
            scope.spawn(move || {
                let mut numbers = Numbers(u64::from(thread) + 1);
                for call in 0..CALLS {
                    let number = thread * CALLS + call;
                    let len = [8, 64, 192, 193, 1000][numbers.below(50).min(4) as usize];
                    let payload = common::pattern(number, len);
                    let request = engine.request(echo).trace_id(u128::from(number) + 1).reply_to(number);
                    let reply = request.deadline(far()).call(&payload).unwrap();
                    assert!(*reply.bytes() == payload && reply.identity().reply_to == number);
                }
            });
        }
    });
    let counters = engine.counters();
    assert_eq!(counters.completed_by_terminal, u64::from(THREADS * CALLS));
    assert_eq!(counters.duplicate_terminal + counters.late_reply_drop + counters.rejected, 0);
    balanced(&engine);
    stop(&engine);
}

/// What a sequence of calls, frames and clock readings brought about, as text.
fn history(seed: u64) -> String {
    let table = Table::new(8, 2, 8);
    let mut numbers = Numbers(seed);
    let mut waiters: Vec<Waiter> = Vec::new();
    let mut log = String::new();
    for now_ns in 1..5000u64 {
        let any = |numbers: &mut Numbers, waiters: &[Waiter]| {
            waiters.get(numbers.below(waiters.len().max(1) as u64) as usize).copied()
        };
        let said = match numbers.below(8) {
            0..=2 => {
                let identity = Identity { reply_to: now_ns as u32, ..id(u128::from(numbers.below(40))) };
                let deadline_ns = if numbers.below(2) == 0 { 0 } else { now_ns + numbers.below(200) };
                let registered = table.register(identity, deadline_ns);
                waiters.extend(registered.ok());
                format!("{registered:?}")
            }
            3 => format!("{:?}", any(&mut numbers, &waiters).map(|waiter| table.cancel(&waiter, now_ns))),
            4 => format!("{:?}", table.expire(now_ns)),
            5 if numbers.below(50) == 0 => format!("{:?}", table.end_all(Cause::Signal(9), now_ns)),
            what => {
                let Some(waiter) = any(&mut numbers, &waiters) else { continue };
                let mut envelope = if what == 6 { waiter.done() } else { waiter.terminal() };
                envelope.status = numbers.below(2) as u8;
                envelope.reply_to ^= u32::from(numbers.below(10) == 0);
                let judged = table.frame(&envelope, &now_ns.to_le_bytes(), now_ns);
                let taken: Vec<_> = waiters.iter().map(|waiter| table.take(waiter)).collect();
                // What has been taken stays known by a place in the list, so that late frames come.
                let mut places = taken.iter();
                waiters.retain(|_| places.next().is_some_and(Option::is_none));
                format!("{judged:?} {taken:?}")
            }
        };
        log += &format!("{now_ns} {said} {:?}\n", table.audit());
        assert!(table.counters().balances(table.audit().in_flight), "{log}");
    }
    log + &format!("{:?}\n{:#?}", table.counters(), table.events())
}

fn ledger_02_the_same_sequence_gives_the_same_bytes() {
    for seed in 1..=5 {
        let log = history(seed);
        assert!(log == history(seed), "seed {seed}");
        assert!(log != history(seed + 100), "another sequence is another history");
        for word in ["Ended", "Deadline", "TraceInFlight", "Full", "Signal"] {
            assert!(log.contains(word), "seed {seed} has no {word}");
        }
    }
}

fn a_detached_request_goes_on() {
    let (engine, count) = start(&["count", "counted", "large"]);
    let [counted, large] = ["counted", "large"].map(|name| engine.node(name).unwrap());
    for _ in 0..10 {
        engine.request(count).dispatch(b"").unwrap().detach();
        engine.request(large).dispatch(b"5000").unwrap().detach();
    }
    assert_eq!(u32::from_le_bytes(engine.call_as(counted, b"", far()).unwrap()), 10);
    until("the detached ones have been freed", || engine.audit().free == 1024);
    assert_eq!(engine.counters().completed_by_terminal, 21);
    // Ended already when it is let go.
    let done = engine.request(count).dispatch(b"").unwrap();
    until("it has ended", || engine.audit().not_taken == 1);
    done.detach();
    balanced(&engine);
    stop(&engine);
}

fn a_deadline_ends_what_nobody_waits_for() {
    let (engine, running) = start(&["until_cancelled", "cancelled_seen"]);
    let seen = engine.node("cancelled_seen").unwrap();
    let mut pending: Vec<_> = (0..6).map(|_| sent_within(&engine, running, 50, b"")).collect();
    pending.pop().expect("six were sent").detach();
    until("all are expired", || engine.counters().expired == 6);
    for pending in pending {
        failure(pending.wait().unwrap_err(), Category::Timeout);
    }
    // The node has been told to give up, so the worker serves again.
    assert!(u32::from_le_bytes(engine.call_as(seen, b"", far()).unwrap()) <= 6);
    stop(&engine);
}

fn reply_01_an_end_that_was_taken_touches_nobody_elses() {
    // One place, which the next request gets.
    for engine in [engine(&["echo"]), engine(&["echo"]).profile(Profile::Memory)] {
        let (engine, echo) = started(engine.max_in_flight(1), "echo");
        let dispatch = |text: &[u8]| engine.request(echo).deadline(far()).dispatch(text).unwrap();
        let taken = || {
            let mut first = dispatch(b"first");
            let mut reply = None;
            until("it has ended", || {
                reply = first.try_take();
                reply.is_some()
            });
            assert_eq!(reply.unwrap().unwrap().bytes().as_ref(), b"first");
            first
        };
        let after: [fn(Pending); 4] = [
            |first| assert!(matches!(first.wait(), Err(CallError::Taken))),
            Pending::detach,
            |first| first.cancel(),
            |mut first| assert!(first.try_take_or_wake(Waker::noop()).is_none()),
        ];
        for after in after {
            let first = taken();
            let second = dispatch(b"second");
            after(first);
            assert_eq!(second.wait().unwrap().bytes().as_ref(), b"second");
            let audit = engine.audit();
            assert_eq!((audit.in_flight, audit.not_taken, audit.free), (0, 0, 1));
        }
        balanced(&engine);
        stop(&engine);
    }
}

fn try_take_gives_the_result_once() {
    let (engine, echo) = start(&["echo", "until_cancelled"]);
    let running = engine.node("until_cancelled").unwrap();
    let mut pending = engine.request(echo).deadline(far()).dispatch(b"x").unwrap();
    let mut taken = None;
    until("the reply is there", || {
        taken = pending.try_take();
        taken.is_some()
    });
    assert_eq!(*taken.unwrap().unwrap().bytes(), *b"x");
    assert!(pending.try_take().is_none() && pending.try_take().is_none());
    let mut goes_on = engine.request(running).deadline(far()).dispatch(b"").unwrap();
    assert!(goes_on.try_take().is_none());
    let mut late = sent_within(&engine, running, 20, b"");
    let mut taken = None;
    until("it is late", || {
        taken = late.try_take();
        taken.is_some()
    });
    failure(taken.unwrap().unwrap_err(), Category::Timeout);
    drop((pending, goes_on, late));
    stop(&engine);
}

fn try_dispatch_gives_a_busy_request_back() {
    for waiting in [Waiting::Adaptive, Waiting::Block] {
        let builder = engine(&["until_cancelled", "echo"]).slots(4).waiting(waiting);
        let (engine, running) = started(builder, "until_cancelled");
        let echo = engine.node("echo").unwrap();
        let blocking = engine.request(running).dispatch(b"").unwrap();
        let queued: Vec<_> =
            (0..3).map(|_| engine.request(echo).deadline(far()).dispatch(b"q").unwrap()).collect();
        let busy = engine.request(echo).trace_id(77).reply_to(5).deadline(far()).try_dispatch(b"x");
        let Err(TryDispatchError::Busy(request)) = busy else { panic!("{busy:?}") };
        let mut loan = engine.request(echo).deadline(far()).loan(1000).unwrap();
        loan.fill(b'l');
        let Err(TryDispatchError::Busy(loan)) = loan.try_dispatch() else { panic!("no slot is free") };
        assert_eq!(engine.counters().registered, 4, "a busy request was never there");
        blocking.cancel();
        queued.into_iter().for_each(|pending| assert!(pending.wait().is_ok()));
        // The very request that came back.
        let reply = request.try_dispatch(b"x").unwrap().wait().unwrap();
        assert_eq!((reply.trace_id(), reply.identity().reply_to), (TraceId::from(77), 5));
        let reply = loan.try_dispatch().unwrap().wait().unwrap();
        assert_eq!(*reply.bytes(), [b'l'; 1000]);
        drop((blocking, reply));
        stop(&engine);
    }
}
