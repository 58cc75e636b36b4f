//! Payloads in shared memory: MEMORY-01, sizes, loans, views, and what happens when there is no room.

use std::time::Duration;

use handbell::{
    CallError, Category, Cause, DispatchError, ExecutionClass, Reply, StopMode, TryDispatchError, Waiting,
    testing,
};

mod common;
use common::{
    Numbers, engine, failure, far, memory_engine, ms, patiently, pattern, sent_within, start, started, stop,
    until,
};

program!(
    memory_01_a_requests_bytes_stay_until_its_node_returns,
    memory_01_a_replys_bytes_stay_until_it_is_let_go,
    memory_01_a_payload_is_exactly_its_own_bytes,
    large_payloads_go_both_ways,
    a_loan_is_written_in_place,
    memory_01_a_loans_reply_stays_until_it_is_let_go,
    memory_01_half_the_arena_finds_room_however_replies_are_kept,
    a_loan_goes_back_when_dropped,
    memory_01_a_small_loan_shows_nothing_of_an_earlier_one,
    a_loan_that_fits_a_larger_slot_goes_the_short_way,
    an_arena_of_4_kib_works_to_its_last_byte,
    a_reply_too_large_is_an_execution_failure,
    views_outlive_stop_and_engine,
    an_arena_held_by_a_view_refuses_until_the_deadline,
    memory_01_a_reply_stays_in_place_beside_the_one_before_it,
    replies_that_nobody_takes_leave_the_worker_room,
    rings_of_two_slots_carry_any_window,
    a_full_reply_ring_makes_the_worker_wait,
    threads_share_small_arenas,
);

fn memory_01_a_requests_bytes_stay_until_its_node_returns() {
    let builder = engine(&["checked", "changed", "echo"]).slots(4).request_arena_bytes(4096);
    let (engine, checked) = started(builder, "checked");
    let [changed, echo] = ["changed", "echo"].map(|name| engine.node(name).unwrap());
    let mut position = 0;
    for (round, len) in [100, 4000, 190, 2000, 100, 3000].into_iter().enumerate() {
        let limit_ms = if round % 3 == 2 { 1 } else { 3_600_000 };
        let request = sent_within(&engine, checked, limit_ms, &vec![round as u8 + 1; len]);
        until("it runs or is skipped", || {
            testing::has_begun(&engine, position) || engine.audit().in_flight == 0
        });
        // Its waiter is gone while the node reads; slot and block are not for others yet.
        match round % 3 {
            0 => request.cancel(),
            1 => drop(request),
            _ => drop(request.wait()),
        }
        for fill in [0xAA, 0xBB, 0xCC] {
            let reply = engine.call(echo, &vec![fill; len], far()).unwrap();
            assert!(reply.bytes().iter().all(|byte| *byte == fill));
        }
        position += 4;
    }
    assert_eq!(u32::from_le_bytes(engine.call_as(changed, b"", far()).unwrap()), 0);
    stop(&engine);
}

fn memory_01_a_replys_bytes_stay_until_it_is_let_go() {
    let (engine, large) = start(&["large"]);
    let ask = |len: usize| engine.call(large, len.to_string().as_bytes(), far()).unwrap();
    let held: Vec<Reply> = (1..=20).map(|i| ask(200 + 350 * i)).collect();
    for i in 0..200 {
        let len = 193 + 97 * (i % 50);
        assert!(*ask(len).bytes() == pattern(len as u32, len));
    }
    for reply in held {
        let expected = pattern(reply.len() as u32, reply.len());
        assert!(reply.in_place().is_some() && *reply.bytes() == expected);
        let mut part = [0; 100];
        reply.copy_to(100, &mut part);
        assert_eq!(part, expected[100..200]);
        assert_eq!(reply.read_at(reply.len() - 1), expected.last().copied());
        assert_eq!(reply.read_at(reply.len()), None);
        assert!(reply.into_vec() == expected);
    }
    stop(&engine);
}

fn memory_01_a_payload_is_exactly_its_own_bytes() {
    let (engine, echo) = started(engine(&["echo"]).slots(2).request_arena_bytes(4096), "echo");
    for len in [4096, 1, 192, 0, 4000, 193, 5, 64, 3] {
        // What stood in the slot or block before is longer and full of other bytes.
        drop(engine.call(echo, &[0xEE; 192], far()).unwrap());
        drop(engine.call(echo, &[0xEE; 4096], far()).unwrap());
        let payload = pattern(len as u32 + 7, len);
        let reply = engine.call(echo, &payload, far()).unwrap();
        assert_eq!(reply.len(), len);
        assert!(*reply.bytes() == payload, "{len} bytes");
        assert_eq!(reply.read_at(len), None);
    }
    stop(&engine);
}

fn large_payloads_go_both_ways() {
    for waiting in [Waiting::Adaptive, Waiting::Block] {
        let builder =
            engine(&["echo"]).request_arena_bytes(1 << 20).reply_arena_bytes(1 << 20).waiting(waiting);
        let (engine, echo) = started(builder, "echo");
        for len in [193, 4096, 65_537, 500_000, 1 << 20] {
            let payload = pattern(len as u32, len);
            let reply = engine.call(echo, &payload, far()).unwrap();
            assert!(reply.len() == len && *reply.bytes() == payload, "{len} bytes");
        }
        // Several at once, more than both arenas hold.
        let payloads: Vec<_> = (0..12).map(|i| pattern(i, 300_000)).collect();
        std::thread::scope(|scope| {
            for payload in &payloads {
                let engine = &engine;
                scope.spawn(move || {
                    let reply = engine.call(echo, payload, far()).unwrap();
                    assert!(*reply.bytes() == *payload);
                });
            }
        });
        stop(&engine);
    }
}

fn a_loan_is_written_in_place() {
    let (engine, echo) = start(&["echo"]);
    for len in [0, 10, 192, 193, 10_000, 256 << 10] {
        let payload = pattern(len as u32, len);
        let request = engine.request(echo).trace_id(3).reply_to(4).deadline(far());
        let mut loan = request.loan(len).unwrap();
        assert_eq!(loan.len(), len);
        loan.copy_from_slice(&payload);
        let reply = loan.dispatch().unwrap().wait().unwrap();
        assert!(*reply.bytes() == payload && reply.identity().reply_to == 4, "{len} bytes");
        // The largest takes the whole reply arena.
        drop(reply);
        let mut loan = engine.request(echo).deadline(far()).loan_zeroed(len).unwrap();
        assert!(loan.iter().all(|byte| *byte == 0));
        loan.truncate(len / 2);
        loan.truncate(len);
        assert_eq!(loan.call().unwrap().len(), len / 2);
    }
    let error = engine.request(echo).loan((256 << 10) + 1).map(drop).unwrap_err();
    assert_eq!(error.to_string(), "the payload has 262145 bytes, the limit is 262144");
    stop(&engine);
}

/// In place as long as half the reply arena is free, and copied out in the other half.
fn memory_01_a_loans_reply_stays_until_it_is_let_go() {
    let (engine, echo) = started(engine(&["echo"]).reply_arena_bytes(65_536), "echo");
    let ask = |number, len| {
        let mut loan = engine.request(echo).deadline(far()).loan(len).unwrap();
        loan.copy_from_slice(&pattern(number, len));
        loan.call().unwrap()
    };
    for len in [200, 4096, 16_384] {
        let most = 65_536 / len as u32;
        let replies: Vec<_> = (0..most).map(|number| ask(number, len)).collect();
        let in_place = replies.iter().filter(|reply| reply.in_place().is_some()).count();
        // Blocks fill the half evenly. Those that take turns all over the arena begin where it is their turn.
        let most = 32_768 / len.next_multiple_of(256);
        assert!(in_place == most || len == 16_384 && in_place == 1, "{in_place} of {len} bytes");
        for (number, reply) in (0..).zip(&replies) {
            assert!(*reply.bytes() == pattern(number, len), "reply {number} of {len} bytes");
        }
        drop(replies);
        assert!(*ask(7, 65_536).bytes() == pattern(7, 65_536), "all of it is free again");
    }
    assert_eq!(engine.audit().in_flight, 0);
    stop(&engine);
}

/// Small and large ones, called for and dispatched, kept and let go in any order.
fn memory_01_half_the_arena_finds_room_however_replies_are_kept() {
    let (engine, large) = started(engine(&["large"]).reply_arena_bytes(65_536), "large");
    let reply_of = |len: usize, is_called: bool| {
        let (words, request) = (len.to_string(), engine.request(large).deadline(far()));
        let reply = if is_called {
            request.call(words.as_bytes())
        } else {
            request.dispatch(words.as_bytes()).expect("it is taken").wait()
        };
        reply.expect("it answers")
    };
    let mut numbers = Numbers(7);
    let mut kept = Vec::new();
    let mut in_place = 0;
    for step in 0..1500 {
        let most = [1000, 8000, 32_768][numbers.below(3) as usize];
        let len = 300 + numbers.below(most - 300) as usize;
        kept.push((reply_of(len, step % 2 == 0), len));
        in_place += usize::from(kept.last().is_some_and(|(reply, _)| reply.in_place().is_some()));
        while kept.len() as u64 > numbers.below(12) {
            let (reply, len) = kept.swap_remove(numbers.below(kept.len() as u64) as usize);
            assert!(*reply.bytes() == pattern(len as u32, len));
        }
        // A hang is what would be wrong.
        assert_eq!(reply_of(32_768, step % 3 == 0).len(), 32_768);
    }
    assert!(in_place > 500, "{in_place}");
    drop(kept);
    stop(&engine);
}

fn a_loan_goes_back_when_dropped() {
    let (engine, echo) = started(engine(&["echo"]).request_arena_bytes(4096), "echo");
    for _ in 0..10 {
        let loan = engine.request(echo).loan(4096).unwrap();
        // The arena is out: who needs some waits or is told.
        let full = engine.request(echo).try_dispatch(&[1; 300]);
        assert!(matches!(full, Err(TryDispatchError::Busy(_))), "{full:?}");
        let waited = engine.request(echo).deadline(ms(5)).loan(300).map(drop).unwrap_err();
        failure(waited, Category::Timeout);
        drop(loan);
        assert_eq!(engine.call(echo, &[1; 4096], far()).unwrap().len(), 4096);
    }
    assert_eq!(engine.counters().registered, 10);
    stop(&engine);
}

/// Nor of one to another worker, whose bytes these would be.
fn memory_01_a_small_loan_shows_nothing_of_an_earlier_one() {
    let (one, echo_of_one) = start(&["echo"]);
    let (other, echo_of_other) = start(&["echo"]);
    for len in [192, 100, 64, 1] {
        let mut dropped = one.request(echo_of_one).deadline(far()).loan(len).unwrap();
        dropped.fill(0xAA);
        drop(dropped);
        let mut called = one.request(echo_of_one).deadline(far()).loan(len).unwrap();
        assert!(called.iter().all(|byte| *byte == 0), "{len} bytes");
        called.fill(0xBB);
        assert_eq!(*called.call().unwrap().bytes(), vec![0xBB; len]);
        let loan = other.request(echo_of_other).deadline(far()).loan(len).unwrap();
        assert!(loan.iter().all(|byte| *byte == 0), "{len} bytes");
        // By a thread that keeps nothing.
        let reply = std::thread::spawn(move || loan.call().unwrap().into_vec()).join().unwrap();
        assert_eq!(reply, vec![0; len]);
    }
    stop(&one);
    stop(&other);
}

fn a_loan_that_fits_a_larger_slot_goes_the_short_way() {
    let (engine, echo) = started(engine(&["echo"]).slot_bytes(1024), "echo");
    for len in [192, 193, 500, 960, 961] {
        let mut loan = engine.request(echo).deadline(far()).loan(len).unwrap();
        loan.copy_from_slice(&pattern(3, len));
        let reply = testing::call_in_two(loan, || {}).unwrap();
        assert!(*reply.bytes() == pattern(3, len), "{len} bytes");
    }
    stop(&engine);
}

fn an_arena_of_4_kib_works_to_its_last_byte() {
    let builder = engine(&["echo"]).request_arena_bytes(4096).reply_arena_bytes(4096);
    let (engine, echo) = started(builder, "echo");
    for len in (193..=4096).step_by(13).chain([4095, 4096]) {
        let payload = pattern(len as u32, len);
        assert!(*engine.call(echo, &payload, far()).unwrap().bytes() == payload, "{len} bytes");
    }
    assert_eq!(engine.summary().max_payload, 4096);
    let said = "the payload has 4097 bytes, the limit is 4096";
    let refused = engine.call(echo, &[0; 4097], far()).unwrap_err();
    assert!(matches!(refused, CallError::TooLarge { size: 4097, limit: 4096 }), "{refused:?}");
    assert_eq!(refused.to_string(), said);
    let refused = engine.request(echo).dispatch(&[0; 4097]).map(drop).unwrap_err();
    assert!(matches!(refused, DispatchError::TooLarge { .. }) && refused.to_string() == said);
    assert!(matches!(engine.request(echo).try_dispatch(&[0; 4097]), Err(TryDispatchError::Refused(_))));
    stop(&engine);
}

fn a_reply_too_large_is_an_execution_failure() {
    let (engine, large) = started(engine(&["large", "large_emit"]).reply_arena_bytes(4096), "large");
    let emit = engine.node("large_emit").unwrap();
    for node in [large, emit] {
        assert_eq!(engine.call(node, b"4096", far()).unwrap().len(), 4096);
        let failure = failure(engine.call(node, b"4097", far()).unwrap_err(), Category::Execution);
        assert_eq!(failure.cause(), Cause::Execution { class: ExecutionClass::TooLarge, code: 0 });
    }
    stop(&engine);
}

fn views_outlive_stop_and_engine() {
    let (engine, large) = start(&["large", "echo"]);
    let view = engine.call(large, b"50000", far()).unwrap();
    let waiting = engine.request(large).deadline(far()).dispatch(b"3000").unwrap();
    let report = engine.stop(handbell::Drain::within(Duration::from_secs(30)));
    assert_eq!(report.workers[0].mode, StopMode::Graceful);
    drop(engine);
    // Not even looked at until now.
    let late = waiting.wait().unwrap();
    assert!(*late.bytes() == pattern(3000, 3000));
    assert!(view.in_place().is_some() && *view.bytes() == pattern(50_000, 50_000));
    assert_eq!(view.read_at(49_999), pattern(50_000, 50_000).last().copied());
    std::thread::spawn(move || drop(view)).join().unwrap();
}

fn an_arena_held_by_a_view_refuses_until_the_deadline() {
    let builder = engine(&["guarded", "refused", "large"]).reply_arena_bytes(4096);
    let (engine, guarded) = started(builder, "guarded");
    let [refused, large] = ["refused", "large"].map(|name| engine.node(name).unwrap());
    let view = engine.call(guarded, b"2000", far()).unwrap();
    assert!(view.in_place().is_some());
    // Beside it there is room for as much again, but not for this.
    let ask = |deadline| engine.call(guarded, b"4000", deadline);
    let count = patiently(100, |limit_ms| {
        // The worker gives up at the deadline: whoever is first, that is what the request ends with.
        assert_eq!(failure(ask(ms(limit_ms)).unwrap_err(), Category::Timeout).cause(), Cause::Deadline);
        // Small replies need no block, and the worker says what it was refused: nothing yet, if it is so slow that
        // it did not even begin.
        let count = u32::from_le_bytes(engine.call_as(refused, b"", far()).unwrap());
        (count != 0).then_some(count)
    });
    assert_eq!(count, 1);
    assert!(*view.bytes() == pattern(1, 2000));
    // Who waits long enough gets the room that the view gives back.
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| ask(far()).unwrap().len());
        std::thread::sleep(Duration::from_millis(30));
        assert!(!waiter.is_finished());
        drop(view);
        assert_eq!(waiter.join().unwrap(), 4000);
    });
    assert_eq!(engine.call(large, b"4096", far()).unwrap().len(), 4096, "all of it is free again");
    stop(&engine);
}

/// Who lets the reply before go only when the next one is there pays for no copy.
fn memory_01_a_reply_stays_in_place_beside_the_one_before_it() {
    const ARENA: usize = 1 << 20;
    for len in [ARENA / 4, ARENA / 8, ARENA / 64, 1000] {
        let builder = engine(&["echo"]).request_arena_bytes(ARENA).reply_arena_bytes(ARENA);
        let (engine, echo) = started(builder, "echo");
        let sent = pattern(7, len);
        let call = || engine.call(echo, &sent, far()).unwrap();
        let mut before = call();
        for _ in 0..100 {
            let reply = call();
            assert!(reply.in_place().is_some() && before.in_place().is_some(), "{len}");
            before = reply;
        }
        assert_eq!(*before.bytes(), *sent);
        drop(before);
        stop(&engine);
    }
}

fn replies_that_nobody_takes_leave_the_worker_room() {
    for builder in [engine, memory_engine] {
        let (engine, echo) = started(builder(&["echo"]), "echo");
        for (count, len) in [(12, 100 << 10), (600, 1000), (20, 128 << 10), (3, 256 << 10)] {
            let payload = |i: usize| pattern(i as u32, len);
            let send = |i| engine.request(echo).deadline(far()).dispatch(&payload(i)).unwrap();
            let pending: Vec<_> = (0..count).map(send).collect();
            let replies: Vec<_> = pending.into_iter().map(|pending| pending.wait().unwrap()).collect();
            for (i, reply) in replies.iter().enumerate() {
                assert!(*reply.bytes() == payload(i));
            }
        }
        stop(&engine);
    }
}

fn rings_of_two_slots_carry_any_window() {
    for waiting in [Waiting::Spin, Waiting::Adaptive, Waiting::Block] {
        let builder = engine(&["echo"]).slots(2).slot_bytes(128).waiting(waiting);
        let (engine, echo) = started(builder, "echo");
        let mut window = std::collections::VecDeque::new();
        for i in 0u32..500 {
            let payload = pattern(i, [4, 64, 65, 500][i as usize % 4]);
            window.push_back((engine.request(echo).deadline(far()).dispatch(&payload).unwrap(), payload));
            if window.len() == 100 {
                let (pending, payload) = window.pop_front().unwrap();
                assert!(*pending.wait().unwrap().bytes() == payload);
            }
        }
        for (pending, payload) in window {
            assert!(*pending.wait().unwrap().bytes() == payload);
        }
        stop(&engine);
    }
}

fn a_full_reply_ring_makes_the_worker_wait() {
    // Twenty frames for a ring of two, and nobody reads until the worker has waited.
    let (engine, burst) = started(engine(&["burst"]).slots(2), "burst");
    for _ in 0..5 {
        let pending = engine.request(burst).deadline(far()).dispatch(b"abcdefghijklmnopqrst").unwrap();
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(*pending.wait().unwrap().bytes(), *b"a");
    }
    until("all frames are read", || {
        drop(engine.call(burst, b"x", far()).unwrap());
        engine.counters().duplicate_terminal >= 5 * 19
    });
    assert_eq!(engine.counters().duplicate_terminal, 5 * 19);
    stop(&engine);
}

fn threads_share_small_arenas() {
    let builder = engine(&["echo"]).slots(8).request_arena_bytes(65_536).reply_arena_bytes(65_536);
    let (engine, echo) = started(builder, "echo");
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let engine = engine.clone();
            scope.spawn(move || {
                let mut numbers = Numbers(u64::from(thread) + 77);
                for call in 0..1500 {
                    let len = [10, 190, 500, 5000, 40_000][numbers.below(5) as usize];
                    let payload = pattern(thread << 16 | call, len);
                    let reply = match numbers.below(3) {
                        0 => {
                            let mut loan = engine.request(echo).deadline(far()).loan(len).unwrap();
                            loan.copy_from_slice(&payload);
                            loan.call().unwrap()
                        }
                        1 => engine.request(echo).deadline(far()).dispatch(&payload).unwrap().wait().unwrap(),
                        _ => engine.call(echo, &payload, far()).unwrap(),
                    };
                    assert!(*reply.bytes() == payload);
                }
            });
        }
    });
    stop(&engine);
}
