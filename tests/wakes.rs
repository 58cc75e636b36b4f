//! FLOW-01: whoever makes room, or reads what others wait for, wakes them. A sleep has a limit, so a wake that is lost
//! costs only time: these tests count sleeps that nobody has ended.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use handbell::{App, Engine, EngineBuilder, Loan, NodeId, Plan, testing};

mod common;
use common::scripted::{self, Gate};
use common::{TOKEN, balanced, far, stop, token, until};

program![
    of app;
    flow_01_who_reads_its_own_reply_leaves_the_lane_to_its_sleepers,
    flow_01_who_finds_its_own_reply_read_leaves_the_lane_to_its_sleepers,
    flow_01_who_reads_its_own_reply_wakes_who_waits_for_a_place,
    flow_01_who_reads_its_own_reply_sends_what_waits_in_front,
    flow_01_a_worker_that_waits_for_a_slot_is_woken,
    flow_01_a_worker_that_waits_for_a_block_is_woken,
];

const ARENA: usize = 4096;
/// A payload beside which one looks for milliseconds.
const LARGE: usize = 32 << 20;
const ROUNDS: u64 = 12;
/// Rounds that a machine may spoil by standing still.
const SPOILT: u64 = 2;

fn app() -> App {
    scripted::app()
        .node("echo", |request, output| Ok(output.reply(request.payload())?))
        // The first word of its payload is that of a gate.
        .node("held", |request, output| {
            let word = request.payload().split(|byte| *byte == b' ').next().unwrap_or_default();
            scripted::wait_at(&String::from_utf8_lossy(word));
            // Its owner begins to look when the gate has been opened.
            std::thread::sleep(Duration::from_micros(500));
            Ok(output.reply(b"")?)
        })
        .node("given", |request, output| Ok(output.emit(request.payload())?))
        // Replies a byte as often as it was given one; only the first counts.
        .node("burst", |request, output| request.payload().iter().try_for_each(|_| Ok(output.reply(b"x")?)))
        .node("slept_out", |_, output| Ok(output.reply(&testing::slept_out().to_le_bytes())?))
}

/// Keeps the other tests of this program from sleeping: one count is for all of them.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `round` until there was one in which nobody has slept to the end. A machine that stands still for as long as a
/// sleep lasts may spoil a round, but not each.
fn nobody_is_forgotten(slept_out: impl Fn() -> u64, mut round: impl FnMut()) {
    let mut rounds = (0..4).map(|_| {
        let before = slept_out();
        round();
        slept_out() - before
    });
    assert!(rounds.any(|forgotten| forgotten == 0), "in no round were all woken");
}

/// Runs `round` often; somebody sleeps to the end in hardly any. Not each round with a wake that is lost shows that: who
/// is to look may have lost its processor.
fn hardly_anybody_is_forgotten(mut round: impl FnMut()) {
    let mut forgotten = 0;
    for _ in 0..ROUNDS {
        let before = testing::slept_out();
        round();
        forgotten += u64::from(testing::slept_out() != before);
        assert!(forgotten <= SPOILT, "in {forgotten} rounds somebody was not woken");
    }
}

/// An engine whose callers look for long before they sleep, because of what they send, and its nodes `held` and `echo`.
fn patient(builder: impl Fn(EngineBuilder) -> EngineBuilder) -> (Engine, [NodeId; 2]) {
    let engine = app().engine(Plan::new().group("g", ["held", "echo"])).env(TOKEN, token());
    let engine = builder(engine.request_arena_bytes(4 * LARGE)).start().unwrap();
    let nodes = ["held", "echo"].map(|name| engine.node(name).unwrap());
    (engine, nodes)
}

/// A request that is held up at the gate, and then answered while its owner still looks.
fn held(engine: &Engine, node: NodeId, gate: &Gate) -> Loan {
    let mut loan = engine.request(node).deadline(far()).loan(LARGE).expect("there is room");
    let word = gate.word();
    loan[..word.len()].copy_from_slice(word.as_bytes());
    loan[word.len()] = b' ';
    loan
}

/// Waits until somebody sleeps at the only lane.
fn until_somebody_sleeps(engine: &Engine) {
    until("somebody sleeps", || testing::asleep(engine, 0) == 1);
    // It is in the list; now it says for what it sleeps, and falls asleep.
    std::thread::sleep(Duration::from_millis(3));
}

fn flow_01_who_reads_its_own_reply_leaves_the_lane_to_its_sleepers() {
    let _alone = alone();
    let (engine, [node, _]) = patient(|builder| builder);
    hardly_anybody_is_forgotten(|| {
        let (first, second) = (Gate::new(), Gate::new());
        std::thread::scope(|scope| {
            let own = held(&engine, node, &first);
            let reply = testing::call_in_two(own, || {
                scope.spawn(|| held(&engine, node, &second).call().expect("it answers"));
                until_somebody_sleeps(&engine);
                first.open();
            });
            assert!(reply.is_ok());
            second.open();
        });
    });
    balanced(&engine);
    stop(&engine);
}

/// Another has read its reply, and sleeps again when it begins to look.
fn flow_01_who_finds_its_own_reply_read_leaves_the_lane_to_its_sleepers() {
    let _alone = alone();
    let (engine, [node, _]) = patient(|builder| builder);
    let read = || testing::ring_positions(&engine, 0).expect("the lane of a worker").1;
    hardly_anybody_is_forgotten(|| {
        let (first, second) = (Gate::new(), Gate::new());
        std::thread::scope(|scope| {
            let (own, before) = (held(&engine, node, &first), read());
            let reply = testing::call_in_two(own, || {
                scope.spawn(|| held(&engine, node, &second).call().expect("it answers"));
                until_somebody_sleeps(&engine);
                first.open();
                until("the other has read it", || read() > before);
                // It looks for its own for as long as it is patient.
                std::thread::sleep(Duration::from_millis(30));
                until_somebody_sleeps(&engine);
            });
            assert!(reply.is_ok());
            second.open();
        });
    });
    balanced(&engine);
    stop(&engine);
}

fn flow_01_who_reads_its_own_reply_wakes_who_waits_for_a_place() {
    let _alone = alone();
    let (engine, [node, echo]) = patient(|builder| builder.max_in_flight(1));
    hardly_anybody_is_forgotten(|| {
        let gate = Gate::new();
        std::thread::scope(|scope| {
            let own = held(&engine, node, &gate);
            let reply = testing::call_in_two(own, || {
                scope.spawn(|| engine.call(echo, b"", far()).expect("it answers"));
                until_somebody_sleeps(&engine);
                gate.open();
            });
            assert!(reply.is_ok());
        });
    });
    balanced(&engine);
    stop(&engine);
}

fn flow_01_who_reads_its_own_reply_sends_what_waits_in_front() {
    let _alone = alone();
    let plan = Plan::new().group("one", ["given"]).group("two", ["echo", "held"]).edge("given", "echo");
    let engine = app().engine(plan).env(TOKEN, token()).request_arena_bytes(LARGE).start().unwrap();
    let [given, echo, node] = ["given", "echo", "held"].map(|name| engine.node(name).unwrap());
    let sent = || testing::ring_positions(&engine, 1).expect("the lane of a worker").0;
    let forward = |number| {
        // The engine's thread reads its output, for nobody waits yet; and all of the arena is lent.
        let behind = engine.request(given).deadline(far()).dispatch(&[5; 5000]).unwrap();
        until("it waits in front of the second group", || engine.counters().forwarded == number);
        behind
    };
    let gate = Gate::new();
    gate.open();
    let mut forgotten = 0;
    for round in 1..=ROUNDS {
        let loan = held(&engine, node, &gate);
        let behind = forward(round);
        let before = sent();
        drop(loan.call().expect("it answers"));
        // Now and then the engine's thread reads that reply, and may not be so far yet.
        if sent() < before + 2 {
            std::thread::sleep(Duration::from_millis(100));
        }
        if sent() < before + 2 {
            forgotten += 1;
            assert!(forgotten <= SPOILT, "{forgotten} of {round} were not sent");
            // Who finds no room sends what waits in front.
            drop(engine.call(echo, b"", far()).unwrap());
        }
        assert!(*behind.wait().unwrap().bytes() == [5; 5000]);
    }
    // What is sent meanwhile goes behind it, though there are slots.
    let loan = held(&engine, node, &gate);
    let behind = forward(ROUNDS + 1);
    let before = sent();
    std::thread::scope(|scope| {
        let later = scope.spawn(|| engine.call(echo, b"later", far()).map(|reply| reply.into_vec()));
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(sent(), before);
        drop(loan);
        assert!(*behind.wait().unwrap().bytes() == [5; 5000]);
        assert_eq!(later.join().unwrap().unwrap(), b"later");
    });
    stop(&engine);
}

/// How often the worker has slept to the end, as it says itself.
fn of_the_worker(engine: &Engine, node: NodeId) -> impl Fn() -> u64 {
    move || u64::from_le_bytes(engine.call_as(node, b"", far()).expect("it answers"))
}

fn flow_01_a_worker_that_waits_for_a_slot_is_woken() {
    let _alone = alone();
    let plan = Plan::new().group("g", ["burst", "slept_out"]);
    let engine = app().engine(plan).env(TOKEN, token()).slots(2).start().unwrap();
    let [burst, slept_out] = ["burst", "slept_out"].map(|name| engine.node(name).unwrap());
    nobody_is_forgotten(of_the_worker(&engine, slept_out), || {
        let pending = engine.request(burst).deadline(far()).dispatch(&[0; 6]).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(*pending.wait().unwrap().bytes(), *b"x");
    });
    stop(&engine);
}

fn flow_01_a_worker_that_waits_for_a_block_is_woken() {
    let _alone = alone();
    let plan = Plan::new().group("g", ["echo", "slept_out"]);
    let engine = app().engine(plan).env(TOKEN, token()).reply_arena_bytes(ARENA).start().unwrap();
    let [echo, slept_out] = ["echo", "slept_out"].map(|name| engine.node(name).unwrap());
    nobody_is_forgotten(of_the_worker(&engine, slept_out), || {
        let held = engine.call(echo, &[1; ARENA / 2], far()).unwrap();
        assert!(held.in_place().is_some());
        let behind = engine.request(echo).deadline(far()).dispatch(&[2; ARENA]).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        drop(held);
        assert_eq!(behind.wait().unwrap().len(), ARENA);
    });
    stop(&engine);
}
