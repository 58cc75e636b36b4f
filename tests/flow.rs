//! FLOW-01: nothing deadlocks, however small the rings, however large the payloads, however slow the nodes.
//!
//! `HANDBELL_FLOW_REQUESTS=1000000 cargo test --release --test flow -- flow_01_a_circle --nocapture` runs so many
//! requests in each configuration, and prints how long they took. `HANDBELL_TEST_LIMIT_S` is how many seconds
//! a test may take before it counts as a hang.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use handbell::testing;
use handbell::{
    App, CallError, Category, Counters, Engine, EngineBuilder, NodeError, NodeId, Output, Pending, Plan,
    Profile, Request, TryDispatchError, Waiting,
};

mod common;
use common::scripted::{self, Gate, trail};
use common::{Numbers, TOKEN, balanced, failure, far, ms, pattern, stop, token, until};

program![
    of app;
    flow_01_a_circle_of_tiny_rings_with_small_payloads,
    flow_01_a_circle_of_tiny_rings_with_half_an_arena,
    flow_01_a_circle_in_memory,
    flow_01_a_full_table_beside_full_arenas,
    flow_01_loans_beside_forwards,
    flow_01_forward_bytes_keep_new_requests_out,
    flow_01_a_run_beside_held_requests_goes_on,
    flow_01_a_loan_gives_way_to_forwards,
    flow_01_callers_who_read_each_others_outputs,
];

/// Half of each arena.
const HALF: usize = 4096;
const HEAD: usize = 16;

/// A payload is: rounds left, seed, and a pattern of that seed.
fn app() -> App {
    scripted::app()
        .node("ping", turn)
        .node("pong", turn)
        .node("out", |request, output| {
            check(request.payload());
            Ok(output.reply(request.payload())?)
        })
        .node("given", |request, output| Ok(output.emit(request.payload())?))
        .node("taken", |request, output| Ok(output.reply(request.payload())?))
}

fn turn(request: &Request<'_>, output: &mut Output<'_>) -> Result<(), NodeError> {
    let mut payload = request.payload().to_vec();
    check(&payload);
    // Slow now and then, and differently on both sides.
    let seed = word(&payload, 8).wrapping_add(u64::from(request.node_name() == "ping"));
    if seed.is_multiple_of(61) {
        std::thread::sleep(Duration::from_micros(100));
    }
    let left = word(&payload, 0);
    payload[..8].copy_from_slice(&left.saturating_sub(1).to_le_bytes());
    Ok(output.emit_to(if left == 0 { "out" } else { "on" }, &payload)?)
}

fn word(payload: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(payload[at..at + 8].try_into().expect("eight bytes"))
}

fn payload(rounds: u64, seed: u64, len: usize) -> Vec<u8> {
    [&rounds.to_le_bytes()[..], &seed.to_le_bytes(), &pattern(seed as u32, len - HEAD)].concat()
}

fn check(bytes: &[u8]) {
    let seed = word(bytes, 8) as u32;
    // Of the larger ones, the ends: the whole would take longer than all the rest.
    let expected = pattern(seed, (bytes.len() - HEAD).min(64));
    assert!(bytes[HEAD..].starts_with(&expected), "wanted: the bytes of {seed}");
}

/// `ping` in A, `pong` in B, back and forth, and out from A.
fn circle() -> EngineBuilder {
    let plan = Plan::new()
        .group("A", ["ping", "out"])
        .group("B", ["pong"])
        .labelled_edge("ping", "on", "pong")
        .labelled_edge("ping", "out", "out")
        .labelled_edge("pong", "on", "ping")
        .max_hops(7)
        .labelled_edge("pong", "out", "out")
        .max_hops(7);
    let builder = app().engine(plan).env(TOKEN, token());
    builder.slots(2).request_arena_bytes(2 * HALF).reply_arena_bytes(2 * HALF)
}

fn requests() -> u64 {
    std::env::var("HANDBELL_FLOW_REQUESTS").map_or(4000, |count| count.parse().expect("a number"))
}

/// So many requests from four threads, each with a window of 64; and the books.
fn go_round(what: &str, builder: EngineBuilder, len: usize) -> Counters {
    const THREADS: u64 = 4;
    const WINDOW: usize = 64;
    let engine = builder.max_in_flight(THREADS as usize * WINDOW).start().unwrap();
    let ping = engine.node("ping").unwrap();
    let (begin, each) = (Instant::now(), requests().div_ceil(THREADS));
    let hops: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn({
                    let engine = &engine;
                    move || one_caller(engine, ping, thread * each..(thread + 1) * each, WINDOW, len)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("it ends")).sum()
    });
    let (took, counters) = (begin.elapsed(), engine.counters());
    let count = THREADS * each;
    println!("{what}: {count} requests, {hops} hops between groups, {took:.1?}");
    assert_eq!((counters.registered, counters.completed_by_terminal), (count, count));
    assert_eq!((counters.ended(), counters.forwarded), (count, hops));
    assert_eq!(counters.terminals_received, count);
    balanced(&engine);
    stop(&engine);
    counters
}

/// Returns how many hops between groups its requests made.
fn one_caller(engine: &Engine, ping: NodeId, seeds: std::ops::Range<u64>, window: usize, len: usize) -> u64 {
    let mut in_flight: VecDeque<(u64, Pending)> = VecDeque::new();
    let mut hops = 0;
    let take = |(seed, pending): (u64, Pending)| {
        let reply = pending.wait().expect("it arrives");
        assert!(reply.len() == len && reply.bytes()[8..] == payload(0, seed, len)[8..], "seed {seed}");
    };
    for seed in seeds {
        let rounds = seed % 6;
        // From `pong` there is one more way: to `out`.
        hops += rounds + rounds % 2;
        let request = engine.request(ping).deadline(common::ms(3_600_000));
        in_flight.push_back((seed, request.dispatch(&payload(rounds, seed, len)).expect("it is taken")));
        if in_flight.len() == window {
            take(in_flight.pop_front().expect("a full window"));
        }
    }
    in_flight.into_iter().for_each(take);
    hops
}

fn flow_01_a_circle_of_tiny_rings_with_small_payloads() {
    go_round("processes, inline", circle(), 100);
}

fn flow_01_a_circle_of_tiny_rings_with_half_an_arena() {
    go_round("processes, half an arena", circle(), HALF);
}

fn flow_01_a_circle_in_memory() {
    let memory = || circle().profile(Profile::Memory);
    go_round("memory, inline", memory(), 100);
    go_round("memory, half an arena", memory(), HALF);
}

/// Dispatchers that have taken a block and find no place in the table, while others' forwards want that block.
fn flow_01_a_full_table_beside_full_arenas() {
    for places in [1, 2] {
        let tight = circle().slots(8).max_in_flight(places);
        // One payload fills it.
        let engine = tight.request_arena_bytes(HALF).start().unwrap();
        let ping = engine.node("ping").unwrap();
        std::thread::scope(|scope| {
            for thread in 0..5 {
                let engine = &engine;
                scope.spawn(move || {
                    for seed in 0..100 {
                        let payload = payload(2 + seed % 4, seed + thread * 1000, HALF);
                        let reply = engine.call(ping, &payload, far()).expect("it arrives");
                        assert_eq!(reply.bytes()[8..], payload[8..]);
                    }
                });
            }
        });
        assert_eq!(engine.counters().completed(), 500);
        balanced(&engine);
        stop(&engine);
    }
}

/// Loans take the room that forwards want, and give it back in every way.
fn flow_01_loans_beside_forwards() {
    let engine = circle().slots(8).start().unwrap();
    let [ping, out] = ["ping", "out"].map(|name| engine.node(name).unwrap());
    std::thread::scope(|scope| {
        for thread in 0..2u64 {
            let engine = &engine;
            scope.spawn(move || {
                for seed in 0..200 {
                    let payload = payload(3, seed + thread * 1000, HALF);
                    assert!(engine.call(ping, &payload, far()).is_ok());
                }
            });
            scope.spawn(move || {
                let mut numbers = Numbers(thread + 1);
                for seed in 0..200 {
                    let mut loan = engine.request(out).deadline(far()).loan(HALF).expect("room comes");
                    loan.copy_from_slice(&payload(0, seed, HALF));
                    match numbers.below(3) {
                        0 => drop(loan),
                        1 => drop(loan.call().expect("it arrives")),
                        _ => drop(
                            loan.dispatch().map(Pending::wait).expect("it is taken").expect("it arrives"),
                        ),
                    }
                }
            });
        }
    });
    balanced(&engine);
    stop(&engine);
}

fn flow_01_forward_bytes_keep_new_requests_out() {
    for profile in [Profile::ProcessSupervisor, Profile::Memory] {
        let plan = Plan::new().group("one", ["a"]).group("two", ["b"]).group("aside", ["c"]).edge("a", "b");
        let builder = app().engine(plan).env(TOKEN, token()).profile(profile);
        let engine = builder.slots(2).forward_bytes(4096).start().unwrap();
        let [a, c] = ["a", "c"].map(|name| engine.node(name).unwrap());
        let gate = Gate::new();
        let words = format!("b:{} =#{}", gate.word(), "x".repeat(1000));
        let ask = || engine.request(a).deadline(far()).call(words.as_bytes());
        let first = engine.request(a).dispatch(words.as_bytes()).unwrap();
        until("B is held up", || testing::has_begun_at(&engine, 1, 0));
        std::thread::scope(|scope| {
            let asked: Vec<_> = (0..20).map(|_| scope.spawn(ask)).collect();
            // Those that stand in B, and five that wait before it: more than the limit. A caller that has looked at
            // that already may still come in, even later.
            let full = if profile == Profile::Memory { 1 + 5 } else { 2 + 5 };
            let all_are_there = || testing::open_frames(&engine, 1) == engine.counters().registered;
            let mut registered = 0;
            until("it is full", || {
                let before = std::mem::replace(&mut registered, engine.counters().registered);
                std::thread::sleep(Duration::from_millis(50));
                before == registered && registered >= full && all_are_there()
            });
            // Nothing new is admitted anywhere, though there is room in every ring.
            let busy = engine.request(c).try_dispatch(b"#");
            assert!(matches!(busy, Err(TryDispatchError::Busy(_))), "{busy:?}");
            let late = engine.request(c).deadline(ms(30)).dispatch(b"#").map(drop);
            let waiting = scope.spawn(|| engine.call(c, b"#", far()).map(|reply| scripted::trail(&reply)));
            // Nor is what has been written in place.
            let lent = scope.spawn(|| {
                let mut loan = engine.request(c).deadline(far()).loan(1000).expect("its arena is free");
                loan.fill(b'#');
                loan.call().map(|reply| reply.len())
            });
            std::thread::sleep(Duration::from_millis(30));
            let is_over = waiting.is_finished() || lent.is_finished();
            let is_any_over = is_over || asked.iter().any(|asked| asked.is_finished());
            let entered = testing::open_frames(&engine, 2);
            gate.open();
            assert!(!is_any_over && entered == 0, "{entered} have entered");
            assert_eq!(failure(late.unwrap_err(), Category::Timeout).group(), "aside");
            // What is in flight goes on, and makes room for others.
            for asked in asked {
                assert!(asked.join().expect("it ends").unwrap().bytes().ends_with(b"x a b"));
            }
            assert!(first.wait().unwrap().bytes().ends_with(b"x a b"));
            let said: Result<String, CallError> = waiting.join().expect("it ends");
            assert_eq!(said.unwrap(), "c");
            assert_eq!(lent.join().expect("it ends").unwrap(), 1000 + " c".len());
        });
        assert_eq!(engine.counters().completed_by_terminal, 23);
        balanced(&engine);
        stop(&engine);
    }
}

/// A run that finds the table full of what others hold takes its own oldest input first.
fn flow_01_a_run_beside_held_requests_goes_on() {
    for profile in [Profile::ProcessSupervisor, Profile::Memory] {
        let plan = Plan::new().group("one", ["given"]).group("two", ["taken"]).edge("given", "taken");
        for node in ["given", "taken"] {
            let engine = app()
                .engine(plan.clone())
                .env(TOKEN, token())
                .profile(profile)
                .max_in_flight(8)
                .start()
                .unwrap();
            let node = engine.node(node).unwrap();
            let held: Vec<_> = (0..4).map(|_| engine.request(node).dispatch(b"x").unwrap()).collect();
            let run = engine.run(node, vec![b"y"; 50]).window(5).start().unwrap();
            assert_eq!(run.filter(|(_, reply)| reply.is_ok()).count(), 50);
            drop(held);
            stop(&engine);
        }
    }
}

/// A loan that is sent waits for nothing that its own room keeps from others.
fn flow_01_a_loan_gives_way_to_forwards() {
    let plan = Plan::new().group("one", ["given"]).group("two", ["taken"]).edge("given", "taken");
    let engine = app()
        .engine(plan)
        .env(TOKEN, token())
        .max_in_flight(1)
        .request_arena_bytes(4096)
        .reply_arena_bytes(4096)
        .start()
        .unwrap();
    let (given, taken) = (engine.node("given").unwrap(), engine.node("taken").unwrap());
    let mut loan = engine.request(taken).loan(4096).unwrap();
    loan.fill(3);
    std::thread::scope(|scope| {
        let call = scope.spawn(|| engine.call(given, &[5; 4096], far()));
        until("it waits in front of the second group", || engine.counters().forwarded == 1);
        assert_eq!(*loan.call().unwrap().bytes(), [3; 4096]);
        assert_eq!(*call.join().unwrap().unwrap().bytes(), [5; 4096]);
    });
    stop(&engine);
}

/// Whoever reads an output hands it on, also for another who waits; that one must not go on looking where its request
/// was.
fn flow_01_callers_who_read_each_others_outputs() {
    let plan = Plan::new().group("front", ["a"]).group("back", ["b"]).edge("a", "b");
    for waiting in [Waiting::Spin, Waiting::Adaptive, Waiting::Block] {
        let engine = app().engine(plan.clone()).env(TOKEN, token()).waiting(waiting).start().unwrap();
        let a = engine.node("a").unwrap();
        let call = |words: &str| trail(&engine.call(a, &scripted::script(words), far()).unwrap());
        for _ in 0..100 {
            std::thread::scope(|scope| {
                let goes_on = scope.spawn(|| call("a:z1 >b;b:z2 ="));
                // They are answered right behind the output of the other, and more of them wait than there are
                // processors: so it is mostly one of them who reads that, and often theirs as well.
                let others: Vec<_> = (0..3).map(|_| scope.spawn(|| call("a:="))).collect();
                others.into_iter().for_each(|other| assert_eq!(other.join().unwrap(), "a"));
                assert_eq!(goes_on.join().unwrap(), "a b");
            });
        }
        balanced(&engine);
        stop(&engine);
    }
}
