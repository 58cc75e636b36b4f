//! From one life of a worker to the next: what is sent in the very moment of a death, what waits for a successor that
//! does not live, what is left of the dead one, and who may end the engine meanwhile. RESTART-01 and -02, STOP-IPC-03.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use handbell::{
    App, Category, Cause, Deadline, Drain, Engine, EngineBuilder, KilledFor, Node, NodeError, NodeId, Output,
    Pending, Plan, Request, Restart, StopMode, WorkerEvent,
};
use rustix::process::Signal;

mod common;
use common::held::hold_at_end;
use common::{
    Notices, Numbers, TOKEN, failure, far, kill, ms, number_from, patiently, pause, started, stop, token,
    transport, until,
};

program![
    of app;
    restart_02_what_is_sent_in_the_moment_of_a_death_goes_to_the_successor,
    restart_02_without_redispatch_what_is_sent_in_that_moment_fails_or_waits,
    restart_01_what_waits_for_a_successor_that_is_lost_fails,
    restart_02_a_loan_that_waits_goes_on_with_the_successor,
    restart_01_nothing_of_a_dead_worker_stays_in_memory,
    restart_01_what_is_held_of_a_dead_worker_stays_until_it_is_let_go,
    hung_01_who_hangs_gets_a_successor,
    stop_ipc_03_who_hears_of_a_successors_birth_may_stop_the_engine,
    stop_ipc_04_a_successor_that_gets_ready_during_a_stop_is_ended,
];

/// `ordinal` replies its process and how many calls that has had; `onward` hands on, under its first byte as the key;
/// `late` is not built before it may be.
fn app() -> App {
    let app = common::app().node_with("ordinal", || Ok(Ordinal(0))).node("onward", |request, output| {
        let bytes = request.payload();
        Ok(output.key(bytes[0].into()).emit(bytes)?)
    });
    app.node_with("late", || {
        until("it may be built", || !held_up().exists());
        Ok(|_: &Request<'_>, output: &mut Output<'_>| Ok(output.reply(b"")?))
    })
}

/// While this file is there, no `late` node is built.
fn held_up() -> PathBuf {
    std::env::temp_dir().join(format!("{}-held-up", token()))
}

struct Ordinal(u32);

impl Node for Ordinal {
    fn handle(&mut self, _: &Request<'_>, output: &mut Output<'_>) -> Result<(), NodeError> {
        self.0 += 1;
        Ok(output.reply(&[std::process::id().to_le_bytes(), self.0.to_le_bytes()].concat())?)
    }
}

fn over(plan: Plan) -> EngineBuilder {
    app().engine(plan).env(TOKEN, token())
}

fn soon(restarts: usize) -> Restart {
    Restart::on_failure(restarts).delay(Duration::from_millis(1), Duration::from_millis(1))
}

/// Kills a worker, and waits until another serves in its place.
fn kill_and_wait(engine: &Engine, worker: usize) -> i32 {
    let before = engine.worker_pids();
    kill(before[worker], Signal::KILL);
    until("a successor serves", || {
        let now = engine.worker_pids();
        now.len() == before.len() && !now.contains(&before[worker])
    });
    before[worker]
}

// ---- in the moment of a death ----

/// How a request of a stream ended: process and ordinal, or whether the worker had begun it.
type Ended = Result<(u32, u32), bool>;

fn ended(pending: Pending) -> Ended {
    match pending.wait() {
        Ok(reply) => {
            let word = |at| u32::from_le_bytes(reply.bytes()[at..at + 4].try_into().unwrap());
            Ok((word(0), word(4)))
        }
        Err(error) => {
            let failed = failure(error, Category::Transport);
            assert_eq!((failed.group(), failed.cause()), ("back", Cause::Signal(9)));
            Err(failed.started())
        }
    }
}

/// Sends until it is told to stop, some requests in flight at any time; in the order in which they were sent.
fn stream(engine: &Engine, node: NodeId, key: u8, keyed: bool, is_over: &AtomicBool) -> Vec<Ended> {
    let (mut window, mut all) = (VecDeque::new(), Vec::new());
    let (small, large) = ([key; 40], [key; 50_000]);
    for number in 0.. {
        if is_over.load(Ordering::SeqCst) {
            break;
        }
        let request = engine.request(node).deadline(far());
        let request = if keyed { request.key(key.into()) } else { request };
        let payload = if number % 8 == 7 { &large[..] } else { &small[..] };
        window.push_back(request.dispatch(payload).expect("it waits for the successor"));
        if window.len() > 8 {
            all.push(ended(window.pop_front().unwrap()));
        }
    }
    all.extend(window.into_iter().map(ended));
    all
}

/// Four streams, of which two come by another group, while one of two workers is killed; what became of them.
fn streams_through_a_death(engine: &Engine, numbers: &mut Numbers) -> Vec<Vec<Ended>> {
    let [direct, onward] = ["ordinal", "onward"].map(|name| engine.node(name).unwrap());
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let streams: Vec<_> = (0..4u8)
            .map(|key| {
                let (node, is_over) = (if key < 2 { direct } else { onward }, &is_over);
                scope.spawn(move || stream(engine, node, key, key < 2, is_over))
            })
            .collect();
        std::thread::sleep(Duration::from_micros(numbers.below(4_000)));
        // The first one serves the other group.
        kill_and_wait(engine, 1 + numbers.below(2) as usize);
        std::thread::sleep(Duration::from_micros(numbers.below(1_000)));
        is_over.store(true, Ordering::SeqCst);
        streams.into_iter().map(|stream| stream.join().unwrap()).collect()
    })
}

fn two_groups() -> Plan {
    let plan = Plan::new().group("front", ["onward"]);
    plan.group("back", ["ordinal"]).processes(2).keyed().restart(soon(1000)).edge("onward", "ordinal")
}

/// One process after the other, each counting up: nothing overtook anything.
fn assert_in_order(stream: &[Ended]) {
    let mut lives: Vec<(u32, u32)> = Vec::new();
    for &(pid, ordinal) in stream.iter().flatten() {
        match lives.iter_mut().find(|(known, _)| *known == pid) {
            None => lives.push((pid, ordinal)),
            Some((_, before)) => {
                assert!(*before < ordinal, "{stream:?}");
                *before = ordinal;
                assert_eq!(lives.last().unwrap().0, pid, "back to a dead worker: {stream:?}");
            }
        }
    }
    assert!(lives.len() <= 2, "{lives:?}");
}

fn restart_02_what_is_sent_in_the_moment_of_a_death_goes_to_the_successor() {
    let builder = over(two_groups().redispatch_unstarted()).slots(8).max_in_flight(64);
    let (engine, _) = started(builder, "ordinal");
    let mut numbers = Numbers(0xBE11 ^ u64::from(std::process::id()) << 20);
    let (mut sent, mut begun) = (0, 0);
    for _ in 0..number_from("HANDBELL_TEST_DEATHS", 25) {
        // Each ends before the next worker is killed: a request goes to a successor once.
        let streams = streams_through_a_death(&engine, &mut numbers);
        for stream in &streams {
            assert!(!stream.contains(&Err(false)), "not begun, and not had by the successor");
            assert_in_order(stream);
        }
        let failed = streams.iter().flatten().filter(|ended| ended.is_err()).count();
        assert!(failed <= 1, "a worker executes one request at a time");
        (sent, begun) = (sent + streams.iter().flatten().count(), begun + failed);
    }
    println!("{sent} requests through deaths, {begun} of them begun by the dead");
    stop(&engine);
}

fn restart_02_without_redispatch_what_is_sent_in_that_moment_fails_or_waits() {
    let (engine, _) = started(over(two_groups()).slots(8).max_in_flight(64), "ordinal");
    let mut numbers = Numbers(0xBE12 ^ u64::from(std::process::id()) << 20);
    for _ in 0..5 {
        for stream in streams_through_a_death(&engine, &mut numbers) {
            assert_in_order(&stream);
        }
    }
    stop(&engine);
}

fn restart_01_what_waits_for_a_successor_that_is_lost_fails() {
    const SENT: u64 = 20;
    let notices = Notices::default();
    let plan = Plan::new().group("front", ["first"]).group("back", ["stuck"]).restart(soon(1));
    let builder = over(plan.edge("first", "stuck")).slots(4).on_worker_event(notices.listener());
    let (engine, first) = started(builder, "first");
    let send = |_| engine.request(first).deadline(Deadline::Never).dispatch(b"").unwrap();
    let mut waiting: Vec<Pending> = (0..SENT).map(send).collect();
    until("all have gone on, and one has been begun", || {
        engine.counters().forwarded == SENT && handbell::testing::has_begun_at(&engine, 1, 0)
    });
    kill_and_wait(&engine, 1);
    until("the second life has begun one", || handbell::testing::has_begun_at(&engine, 1, 0));
    kill(engine.worker_pids()[1], Signal::KILL);
    until("it is given up", || notices.has(&WorkerEvent::GivenUp));
    let failed = waiting.drain(..).map(|pending| failure(pending.wait().unwrap_err(), Category::Transport));
    let failed: Vec<_> = failed.collect();
    assert!(failed.iter().all(|failed| (failed.group(), failed.cause()) == ("back", Cause::Signal(9))));
    assert_eq!(failed.iter().filter(|failed| failed.started()).count(), 2, "one of each life");
    let refused = failure(engine.call(first, b"", far()).unwrap_err(), Category::Transport);
    assert_eq!((refused.group(), refused.started()), ("back", false));
    stop(&engine);
}

// ---- what is left of the dead ----

/// What this process has mapped of lanes with arenas of this size, which only one test has: how many mappings, and of
/// how many kilobytes. All of them are resident, but for a page that the kernel has not counted yet.
fn mapped(arena_kb: u64) -> (u64, u64) {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut maps, mut size_kb, mut is_lane) = (0, 0, false);
    let kb = |row: &str| row.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0);
    for row in smaps.lines() {
        if row.split_whitespace().next().is_some_and(|word| word.contains('-')) {
            is_lane = row.contains("memfd:handbell");
        } else if row.starts_with("Size:") && is_lane && (arena_kb..2 * arena_kb).contains(&kb(row)) {
            maps += 1;
            size_kb += kb(row);
        }
    }
    (maps, size_kb)
}

fn resident_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let row = status.lines().find(|row| row.starts_with("VmRSS:")).expect("a row");
    row.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn with_arenas_of(kb: u64) -> (Engine, NodeId) {
    let plan = Plan::new().group("g", ["large", "echo"]).restart(soon(1000));
    let bytes = kb as usize * 1024;
    started(over(plan).request_arena_bytes(bytes).reply_arena_bytes(bytes), "large")
}

fn restart_01_nothing_of_a_dead_worker_stays_in_memory() {
    const ARENA_KB: u64 = 4096;
    let (engine, large) = with_arenas_of(ARENA_KB);
    let one_life = mapped(ARENA_KB);
    assert_eq!(one_life.0, 2);
    let mut resident = Vec::new();
    for _ in 0..50 {
        let reply = engine.call(large, b"100000", far()).unwrap();
        assert_eq!(*reply.bytes(), *common::pattern(100_000, 100_000));
        drop(reply);
        kill_and_wait(&engine, 0);
        // Given back as soon as the successor serves, or with a later look.
        until("the former lane is gone", || mapped(ARENA_KB) == one_life);
        resident.push(resident_kb());
    }
    println!(
        "{one_life:?} of lanes; resident after 1, 25, 50 restarts: {:?} kB",
        [0, 24, 49].map(|at| resident[at])
    );
    stop(&engine);
}

fn restart_01_what_is_held_of_a_dead_worker_stays_until_it_is_let_go() {
    const ARENA_KB: u64 = 8192;
    let (engine, large) = with_arenas_of(ARENA_KB);
    let echo = engine.node("echo").unwrap();
    let one_life = mapped(ARENA_KB);
    let both = (2 * one_life.0, 2 * one_life.1);
    let reply = engine.call(large, b"100000", far()).unwrap();
    kill_and_wait(&engine, 0);
    engine.call(large, b"100000", far()).unwrap();
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(mapped(ARENA_KB), both);
    assert_eq!(*reply.bytes(), *common::pattern(100_000, 100_000));
    drop(reply);
    until("the reply's lane is gone", || mapped(ARENA_KB) == one_life);

    let mut loan = engine.request(echo).deadline(far()).loan(5000).unwrap();
    loan[..2500].fill(7);
    kill_and_wait(&engine, 0);
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(mapped(ARENA_KB), both);
    loan[2500..].fill(7);
    assert_eq!(*loan.call().unwrap().bytes(), [7; 5000]);
    until("the loan's lane is gone", || mapped(ARENA_KB) == one_life);
    stop(&engine);
}

// ---- ends ----

/// What waits for room in an arena that dies goes on in the next one, though somebody holds room in the dead one.
fn restart_02_a_loan_that_waits_goes_on_with_the_successor() {
    let plan = Plan::new().group("back", ["ordinal"]).restart(soon(10));
    let (engine, node) = started(over(plan).request_arena_bytes(4096), "ordinal");
    let held = engine.request(node).loan(4096).unwrap();
    std::thread::scope(|scope| {
        let waits = || engine.request(node).deadline(far()).loan(2000).unwrap().call().unwrap().len();
        let waiters = [scope.spawn(waits), scope.spawn(waits)];
        // Long enough that they wait by now; if not, they have nothing to wait for, and the test shows nothing.
        std::thread::sleep(Duration::from_millis(20));
        kill_and_wait(&engine, 0);
        drop(held);
        assert_eq!(waiters.map(|waiter| waiter.join().unwrap()), [8; 2]);
    });
    stop(&engine);
}

fn hung_01_who_hangs_gets_a_successor() {
    let notices = Notices::default();
    let plan = Plan::new().group("g", ["stuck", "echo"]).restart(soon(5)).redispatch_unstarted();
    let builder = over(plan).hung_after(Duration::from_secs(1)).on_worker_event(notices.listener());
    let (engine, stuck) = started(builder, "stuck");
    let pending =
        engine.request(stuck).deadline(Deadline::after(Duration::from_millis(100))).dispatch(b"").unwrap();
    let behind = engine.request(engine.node("echo").unwrap()).deadline(far()).dispatch(b"behind").unwrap();
    assert_eq!(failure(pending.wait().unwrap_err(), Category::Timeout).cause(), Cause::Deadline);
    assert_eq!(*behind.wait().unwrap().bytes(), *b"behind");
    assert!(notices.has(&WorkerEvent::Crashed(Cause::Killed(KilledFor::Hung))), "{:?}", notices.events());
    assert_eq!(stop(&engine).workers[0].mode, StopMode::Graceful);
}

/// An engine that is reached from where it is started.
static ENGINE: Mutex<Option<Engine>> = Mutex::new(None);

fn stop_ipc_03_who_hears_of_a_successors_birth_may_stop_the_engine() {
    static IS_BACK: AtomicBool = AtomicBool::new(false);
    let notices = Notices::default();
    let listener = notices.listener();
    let builder = over(Plan::new().group("g", ["echo", "kill_self"]).restart(soon(5)));
    let builder = builder.on_worker_event(move |notice| {
        listener(notice);
        // The first life's engine is not there yet.
        let engine = ENGINE.lock().unwrap().take_if(|_| notice.event == WorkerEvent::Started);
        if let Some(engine) = engine {
            assert!(engine.stop(Drain::within(Duration::ZERO)).workers.is_empty(), "it goes on elsewhere");
            IS_BACK.store(true, Ordering::SeqCst);
        }
    });
    let (engine, kill_self) = started(builder, "kill_self");
    *ENGINE.lock().unwrap() = Some(engine.clone());
    assert_eq!(transport(engine.call(kill_self, b"", far()).unwrap_err()), Cause::Signal(9));
    until("the listener is back", || IS_BACK.load(Ordering::SeqCst));
    let born = notices.all().iter().rfind(|notice| notice.event == WorkerEvent::Started).unwrap().pid;
    until("the successor has ended", || {
        notices.events_of(born).iter().any(|event| matches!(event, WorkerEvent::Stopped { .. }))
    });
    let refused = engine.call(kill_self, b"", far()).unwrap_err();
    assert_eq!(refused.to_string(), "the engine has been stopped");
}

fn stop_ipc_04_a_successor_that_gets_ready_during_a_stop_is_ended() {
    patiently(200, |limit_ms| {
        let (notices, told) = (Notices::default(), Arc::new(Mutex::new(Vec::new())));
        let failures = Arc::clone(&told);
        let plan = Plan::new().group("g", ["late"]).restart(soon(5)).redispatch_unstarted();
        let builder = over(plan).on_worker_event(notices.listener());
        let builder = builder.on_failure(move |failure| failures.lock().unwrap().push(failure.category()));
        let (engine, late) = started(builder, "late");
        let born = engine.worker_pids()[0];
        // A request that its worker never begins, and its successor neither: its deadline comes first.
        std::fs::write(held_up(), []).expect("a file in the directory for temporary files");
        pause(born);
        let mut waiting = engine.request(late).deadline(ms(limit_ms)).dispatch(b"").ok()?;
        kill(born, Signal::KILL);
        let held = hold_at_end(&mut waiting);
        let of_successor =
            |event| notices.all().into_iter().find(|notice| notice.pid != born && notice.event == event);
        let is_begun = of_successor(WorkerEvent::Started).is_some();
        std::fs::remove_file(held_up()).expect("it was there");
        let Some(held) = held.filter(|_| is_begun) else {
            // On a slow machine the deadline comes before the successor.
            stop(&engine);
            return None;
        };
        // The engine's thread stands still: nobody takes the successor on.
        until("the successor is ready", || of_successor(WorkerEvent::Ready).is_some());
        let report = std::thread::scope(|scope| {
            let stops = scope.spawn(|| engine.stop(Drain::within(Duration::ZERO)));
            until("all workers have been told", || handbell::testing::is_stopping_workers(&engine));
            drop(held);
            stops.join().unwrap()
        });
        let successor = of_successor(WorkerEvent::Ready).unwrap().pid;
        let stopped = WorkerEvent::Stopped { gracefully: false };
        assert_eq!(notices.events_of(successor), [WorkerEvent::Started, WorkerEvent::Ready, stopped]);
        let [worker] = &report.workers[..] else { panic!("{report:?}") };
        assert_eq!((worker.pid, worker.mode, worker.cause), (successor, StopMode::Forced, Cause::Signal(9)));
        assert_eq!(failure(waiting.wait().unwrap_err(), Category::Timeout).group(), "g");
        // It overran nothing: nobody had told it to end.
        assert_eq!(*told.lock().unwrap(), [Category::Timeout]);
        common::balanced(&engine);
        Some(())
    });
}
