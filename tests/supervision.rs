//! Workers that fall silent, pause, hang or leave, and a stop that none of them can hold up: SEC-IPC-10,
//! STOP-IPC-01 to -03, BOOT-03, HUNG-01. Real processes through the public engine.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use handbell::testing::{self, RawWorker};
use handbell::{
    Category, Cause, Deadline, Drain, Engine, EngineBuilder, KilledFor, Plan, Restart, StopMode, StopReport,
    Waiting, WorkerEvent,
};
use rustix::process::Signal;

mod common;
use common::watch::state_of;
use common::{
    BUILD_MS, Notices, balanced, engine, engine_over, failure, far, is_alive, kill, number_from, patiently,
    pause, sent_within, started, stop, transport, until, worker_pid,
};

/// Set in workers that are to be raw.
const RAW: &str = "HANDBELL_TEST_RAW";
/// How many seconds the slow node takes to be built.
const BUILD_S: &str = "HANDBELL_TEST_BUILD_S";

fn main() {
    if std::env::var_os(RAW).is_some() {
        testing::serve_raw_if_worker(&common::app(), raw);
    }
    common::app().serve_if_worker();
    common::run(tests![
        stop_ipc_01_the_events_of_a_life_come_in_order,
        stop_ipc_01_a_drain_and_a_stop_may_come_at_once,
        stop_ipc_02_a_worker_paused_for_longer_than_a_message_lives_obeys,
        stop_ipc_04_a_worker_that_ends_by_itself_takes_its_children_along,
        stop_ipc_03_each_child_ends_once_also_when_the_listener_panics,
        stop_ipc_03_a_listener_may_stop_the_engine,
        stop_ipc_03_a_sink_may_drop_the_engine,
        stop_ipc_04_a_listener_that_never_returns_holds_up_no_supervision_and_no_stop,
        stop_ipc_04_a_successor_is_born_and_ended_behind_a_listener_that_never_returns,
        stop_ipc_04_a_sink_that_never_returns_holds_up_no_stop,
        stop_ipc_04_a_waker_that_never_returns_leaves_no_child,
        sec_ipc_10_what_crosses_the_rings_is_not_control,
        sec_ipc_10_a_stop_is_obeyed_while_both_rings_are_full,
        who_never_stops_talking_keeps_nobody_from_supervision,
        a_mute_worker_is_suspect_and_then_killed,
        a_worker_that_leaves_unasked_is_killed,
        a_stopped_worker_is_not_a_dead_one,
        hung_01_who_stands_still_behind_a_deadline_is_killed,
        hung_01_who_is_busy_behind_a_deadline_is_not_killed,
        hung_01_without_a_deadline_nobody_hangs,
        boot_03_heartbeats_go_on_while_a_node_is_built,
    ]);
}

/// A worker without a node: each request's payload says what it does.
fn raw(raw: &mut RawWorker) {
    while let Some(request) = raw.receive() {
        raw.begin(&request);
        let text = String::from_utf8_lossy(&request.payload).into_owned();
        match text.split_once(' ') {
            Some(("mute", _)) => raw.mute(),
            Some(("leave", after_ms)) => {
                std::thread::sleep(Duration::from_millis(after_ms.parse().expect("a number")));
                raw.leave();
            }
            _ => {
                raw.reply(&request, b"");
                continue;
            }
        }
        loop {
            std::thread::park();
        }
    }
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// With a listener.
fn heard(builder: EngineBuilder) -> (EngineBuilder, Notices) {
    let notices = Notices::default();
    (builder.on_worker_event(notices.listener()), notices)
}

fn killed(reason: KilledFor) -> WorkerEvent {
    WorkerEvent::Crashed(Cause::Killed(reason))
}

const GRACEFULLY: WorkerEvent = WorkerEvent::Stopped { gracefully: true };
const BY_FORCE: WorkerEvent = WorkerEvent::Stopped { gracefully: false };

// ---- stops ----

fn stop_ipc_01_the_events_of_a_life_come_in_order() {
    use WorkerEvent::{Drained, Ready, Started};
    // The last two come one right behind the other.
    for drain in [s(30), Duration::ZERO] {
        let (builder, notices) = heard(engine(&["echo"]));
        let (engine, echo) = started(builder, "echo");
        assert_eq!(notices.events(), [Started, Ready]);
        engine.call(echo, b"", far()).unwrap();
        let report = engine.stop(Drain::within(drain));
        assert_eq!(report.workers[0].mode, StopMode::Graceful);
        assert_eq!(notices.events(), [Started, Ready, Drained, GRACEFULLY], "{drain:?}");
        let all = notices.all();
        assert!(all.is_sorted_by_key(|notice| notice.at_ns));
        let pid = worker_pid(&engine);
        assert!(all.iter().all(|told| (&*told.group, told.process, told.pid) == ("g", 0, pid)));
    }
    // Of what has not ended nobody says that it has.
    let (builder, notices) = heard(engine(&["stuck"]).term_timeout(Duration::from_millis(100)));
    let (engine, stuck) = started(builder, "stuck");
    let _running = engine.request(stuck).dispatch(b"").unwrap();
    until("the node runs", || testing::has_begun(&engine, 0));
    engine.stop(Drain::within(Duration::ZERO));
    // The stop has waited for the listeners for no longer than for the worker.
    until("the end is told", || notices.events().len() == 3);
    assert_eq!(notices.events(), [Started, Ready, BY_FORCE]);
}

fn stop_ipc_01_a_drain_and_a_stop_may_come_at_once() {
    use WorkerEvent::{Drained, Ready, Started};
    let (builder, notices) = heard(engine(&["echo"]));
    let (engine, _) = started(builder, "echo");
    pause(worker_pid(&engine));
    std::thread::scope(|scope| {
        let stops = scope.spawn(|| engine.stop(Drain::within(Duration::ZERO)));
        std::thread::sleep(Duration::from_millis(300));
        kill(worker_pid(&engine), Signal::CONT);
        assert_eq!(stops.join().unwrap().workers[0].mode, StopMode::Graceful);
    });
    assert_eq!(notices.events(), [Started, Ready, Drained, GRACEFULLY]);
}

fn stop_ipc_02_a_worker_paused_for_longer_than_a_message_lives_obeys() {
    let (builder, notices) = heard(engine(&["echo"]));
    let (engine, _) = started(builder, "echo");
    pause(worker_pid(&engine));
    let report = std::thread::scope(|scope| {
        let stops = scope.spawn(|| stop(&engine));
        // The first STOP is older than 5 s when it is heard.
        std::thread::sleep(s(7));
        assert!(!stops.is_finished());
        kill(worker_pid(&engine), Signal::CONT);
        stops.join().unwrap()
    });
    assert_eq!((report.workers[0].mode, report.workers[0].cause), (StopMode::Graceful, Cause::Exit(0)));
    assert_eq!(notices.events().last(), Some(&GRACEFULLY));
}

fn stop_ipc_04_a_worker_that_ends_by_itself_takes_its_children_along() {
    static MAY_GO_ON: AtomicBool = AtomicBool::new(false);
    // The engine's thread is held up before it can look after the dead.
    let builder = engine(&["grandchild"]).on_worker_event(|notice| {
        while notice.event == WorkerEvent::Drained && !MAY_GO_ON.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let (engine, grandchild) = started(builder, "grandchild");
    let pid = u32::from_le_bytes(engine.call_as(grandchild, b"", far()).unwrap()) as i32;
    assert!(is_alive(pid));
    std::thread::scope(|scope| {
        let stops = scope.spawn(|| stop(&engine));
        until("the child's child is gone", || !is_alive(pid));
        assert!(!stops.is_finished());
        MAY_GO_ON.store(true, Ordering::SeqCst);
        assert_eq!(stops.join().unwrap().workers[0].mode, StopMode::Graceful);
    });
}

/// What was told of each worker's end.
fn ends(notices: &Notices, report: &StopReport) -> Vec<Vec<WorkerEvent>> {
    let is_end = |event: &WorkerEvent| matches!(event, WorkerEvent::Crashed(_) | WorkerEvent::Stopped { .. });
    let ends = |pid| notices.events_of(pid).into_iter().filter(is_end).collect();
    report.workers.iter().map(|worker| ends(worker.pid)).collect()
}

fn stop_ipc_03_each_child_ends_once_also_when_the_listener_panics() {
    let notices = Notices::default();
    let listener = notices.listener();
    let plan = Plan::new().group("g", ["echo"]).processes(3);
    let builder = engine_over(plan);
    let engine = builder.on_worker_event(move |notice| {
        listener(notice);
        panic!("wanted");
    });
    let (engine, echo) = started(engine, "echo");
    let killed_pid = engine.summary().worker_pids[1];
    kill(killed_pid, Signal::KILL);
    let crashed = WorkerEvent::Crashed(Cause::Signal(9));
    until("the death is told", || notices.events_of(killed_pid).contains(&crashed));
    engine.call(echo, b"", far()).unwrap();
    let report = stop(&engine);
    assert_eq!(ends(&notices, &report), [vec![GRACEFULLY], vec![crashed], vec![GRACEFULLY]]);
    let modes: Vec<StopMode> = report.workers.iter().map(|worker| worker.mode).collect();
    assert_eq!(modes, [StopMode::Graceful, StopMode::Forced, StopMode::Graceful]);
}

/// An engine that is reached from where it is started.
type Cell = OnceLock<std::sync::Mutex<Option<Engine>>>;

fn take_from(cell: &Cell) -> Option<Engine> {
    cell.get().and_then(|engine| engine.lock().unwrap().take())
}

fn stop_ipc_03_a_listener_may_stop_the_engine() {
    static ENGINE: Cell = OnceLock::new();
    static REPORTED: AtomicUsize = AtomicUsize::new(usize::MAX);
    let notices = Notices::default();
    let listener = notices.listener();
    let plan = Plan::new().group("g", ["exit"]).processes(2);
    let builder = engine_over(plan);
    let builder = builder.on_worker_event(move |notice| {
        listener(notice);
        if let WorkerEvent::Crashed(_) = notice.event {
            let engine = take_from(&ENGINE).expect("one crash");
            // The thread that would end the workers is this one.
            REPORTED.store(engine.stop(Drain::within(s(30))).workers.len(), Ordering::SeqCst);
        }
    });
    let (engine, exit) = started(builder, "exit");
    assert!(ENGINE.set(std::sync::Mutex::new(Some(engine.clone()))).is_ok());
    transport(engine.call(exit, b"4", far()).unwrap_err());
    until("the other one has stopped", || notices.has(&GRACEFULLY));
    until("the listener is back", || REPORTED.load(Ordering::SeqCst) != usize::MAX);
    assert_eq!(REPORTED.load(Ordering::SeqCst), 0, "it goes on elsewhere");
    let refused = engine.call(exit, b"4", far()).unwrap_err();
    assert_eq!(refused.to_string(), "the engine has been stopped");
}

fn stop_ipc_03_a_sink_may_drop_the_engine() {
    static ENGINE: Cell = OnceLock::new();
    let (builder, notices) = heard(engine(&["print"]).on_output(|_| drop(take_from(&ENGINE))));
    let (engine, print) = started(builder, "print");
    let _printing = engine.request(print).dispatch(b"").unwrap();
    assert!(ENGINE.set(std::sync::Mutex::new(Some(engine))).is_ok());
    let is_end = |event: &WorkerEvent| matches!(event, WorkerEvent::Stopped { .. });
    until("its worker has stopped", || {
        // Printed before the engine lay there: nobody has come for it.
        notices.events().iter().any(is_end) || take_from(&ENGINE).map(drop).is_some()
    });
    until("its worker has stopped", || notices.events().iter().any(is_end));
}

/// Where code of the user's stands still until this is dropped.
#[derive(Clone, Default)]
struct Trap(Arc<(Mutex<bool>, Condvar, AtomicBool)>);

impl Trap {
    fn wait(&self) {
        let (is_open, changed, has_come) = &*self.0;
        has_come.store(true, Ordering::SeqCst);
        drop(changed.wait_while(is_open.lock().unwrap(), |is_open| !*is_open).unwrap());
    }

    fn has_come(&self) -> bool {
        self.0.2.load(Ordering::SeqCst)
    }

    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

/// An engine over this plan whose listener stands still with the first event that is `so`.
fn trapping(
    plan: Plan,
    so: impl Fn(&WorkerEvent) -> bool + Send + Sync + 'static,
) -> (EngineBuilder, Notices, Trap) {
    let (notices, trap) = (Notices::default(), Trap::default());
    let (listener, waits) = (notices.listener(), trap.clone());
    let builder = engine_over(plan).on_worker_event(move |notice| {
        listener(notice);
        if so(&notice.event) {
            waits.wait();
        }
    });
    (builder, notices, trap)
}

fn stop_ipc_04_a_listener_that_never_returns_holds_up_no_supervision_and_no_stop() {
    let plan = Plan::new().group("g", ["exit"]).processes(3);
    let (builder, notices, trap) = trapping(plan, |event| matches!(event, WorkerEvent::Crashed(_)));
    let (engine, exit) = started(builder.term_timeout(s(1)), "exit");
    // The death of the second one is seen though nobody can be told.
    assert_eq!(transport(engine.call(exit, b"4", far()).unwrap_err()), Cause::Exit(4));
    until("the listener stands still", || trap.has_come());
    assert_eq!(transport(engine.call(exit, b"5", far()).unwrap_err()), Cause::Exit(5));
    let report = engine.stop(Drain::within(s(30)));
    assert!(!common::is_alive(report.workers[0].pid) && report.workers.len() == 3, "{report:?}");
    assert!(report.workers.iter().all(|worker| state_of(worker.pid).is_none()), "{report:?}");
    let told = notices.all().len();
    trap.open();
    until("all is told", || ends(&notices, &report).iter().all(|ends| ends.len() == 1));
    assert_eq!(told, 3 * 2 + 1, "{:?}", notices.all());
    assert!(notices.all().is_sorted_by_key(|notice| notice.at_ns));
    assert_eq!(engine.events_dropped(), 0);
}

fn stop_ipc_04_a_successor_is_born_and_ended_behind_a_listener_that_never_returns() {
    let restart = Restart::on_failure(5).delay(Duration::from_millis(1), Duration::from_millis(1));
    let plan = Plan::new().group("g", ["exit", "echo"]).restart(restart);
    let births = AtomicUsize::new(0);
    let is_second = move |event: &WorkerEvent| {
        *event == WorkerEvent::Started && births.fetch_add(1, Ordering::SeqCst) == 1
    };
    let (builder, notices, trap) = trapping(plan, is_second);
    let (engine, exit) = started(builder.term_timeout(s(1)), "exit");
    assert_eq!(transport(engine.call(exit, b"4", far()).unwrap_err()), Cause::Exit(4));
    until("the listener stands still", || trap.has_come());
    let echo = engine.node("echo").unwrap();
    assert_eq!(*engine.call(echo, b"all the same", far()).unwrap().bytes(), *b"all the same");
    let report = engine.stop(Drain::within(s(30)));
    assert_eq!(state_of(report.workers[0].pid), None, "{report:?}");
    trap.open();
    until("all is told", || ends(&notices, &report)[0].len() == 1);
}

fn stop_ipc_04_a_sink_that_never_returns_holds_up_no_stop() {
    let trap = Trap::default();
    let waits = trap.clone();
    let builder = engine(&["print"]).on_output(move |_| waits.wait()).term_timeout(s(1));
    let (engine, print) = started(builder, "print");
    engine.call(print, b"", far()).unwrap();
    until("the sink stands still", || trap.has_come());
    let report = engine.stop(Drain::within(s(30)));
    assert_eq!(state_of(report.workers[0].pid), None, "{report:?}");
    trap.open();
}

fn stop_ipc_04_a_waker_that_never_returns_leaves_no_child() {
    let (builder, notices) = heard(engine(&["echo"]).term_timeout(s(1)));
    let (engine, echo) = started(builder, "echo");
    // The engine's thread can settle nothing.
    let held = common::held::hold(&engine, echo);
    let report = engine.stop(Drain::within(s(30)));
    assert_eq!(state_of(report.workers[0].pid), None, "{report:?}");
    until("the end is told", || !ends(&notices, &report)[0].is_empty());
    assert_eq!(ends(&notices, &report), [[GRACEFULLY]]);
    drop(held);
    // The watch looks whether the thread ends.
}

/// How long a stop takes of an engine whose node has filled the reply ring, with its request ring full too; or,
/// without a node, of an idle one.
fn stop_of(node: Option<&str>, term_timeout: Duration) -> (Duration, StopReport) {
    const SLOTS: u64 = 8;
    let builder = engine(&[node.unwrap_or("echo")]).slots(SLOTS as usize).waiting(Waiting::Block);
    let (engine, first) = started(builder.term_timeout(term_timeout), node.unwrap_or("echo"));
    if node.is_some() {
        // While somebody is to be told of an answer the engine reads on; then nobody does.
        engine.request(first).dispatch(b"").unwrap().detach();
        until("the node runs", || testing::has_begun(&engine, 0));
        (1..SLOTS).for_each(|_| drop(engine.request(first).dispatch(b"").unwrap()));
        assert_eq!(testing::ring_positions(&engine, 0).map(|(sent, _)| sent), Some(SLOTS));
        until("nobody reads, and its serving thread sleeps for want of room", || {
            let positions = testing::ring_positions(&engine, 0);
            std::thread::sleep(Duration::from_millis(100));
            state_of(worker_pid(&engine)) == Some('S') && testing::ring_positions(&engine, 0) == positions
        });
    }
    let begin = Instant::now();
    let report = engine.stop(Drain::within(Duration::ZERO));
    let took = begin.elapsed();
    balanced(&engine);
    assert!(!is_alive(report.workers[0].pid));
    (took, report)
}

fn sec_ipc_10_what_crosses_the_rings_is_not_control() {
    let (builder, notices) = heard(engine(&["echo"]));
    let (engine, echo) = started(builder, "echo");
    let events = notices.events();
    // Messages of the doorbell of every kind, right but for the tag, both ways.
    for kind in 0..=20 {
        let mut message = [&b"HBDB\x01\0"[..], &[kind, 0, 128, 0, 0, 0]].concat();
        message.resize(128, 0);
        assert_eq!(*engine.call(echo, &message, far()).unwrap().bytes(), *message);
    }
    assert_eq!(notices.events(), events);
    assert!(engine.doorbell_rejects().iter().all(|(_, count)| *count == 0));
    assert_eq!(stop(&engine).workers[0].mode, StopMode::Graceful);
}

fn sec_ipc_10_a_stop_is_obeyed_while_both_rings_are_full() {
    for (name, node, rounds, term_ms, mode, cause) in [
        ("empty rings", None, 20, 60_000, StopMode::Graceful, Cause::Exit(0)),
        ("full rings", Some("gush"), 20, 60_000, StopMode::Graceful, Cause::Exit(0)),
        // Obeyed by the doorbell's thread, after the half of `term_timeout`.
        ("full rings, node stays", Some("gush_and_stay"), 2, 2000, StopMode::Forced, Cause::Exit(86)),
    ] {
        let mut times = Vec::new();
        for _ in 0..rounds {
            times.push(patiently(term_ms, |term_ms| {
                let (took, report) = stop_of(node, Duration::from_millis(term_ms));
                assert_eq!(report.workers[0].mode, mode, "{name}");
                let found = report.workers[0].cause;
                // On a slow machine it may be killed before it could obey.
                assert!(found == cause || mode == StopMode::Forced, "{name}: {found:?}");
                (found == cause).then_some(took)
            }));
        }
        times.sort();
        println!("stop, {name}: p50 {:?}, longest {:?}", times[rounds / 2], times[rounds - 1]);
    }
}

fn who_never_stops_talking_keeps_nobody_from_supervision() {
    let plan = Plan::new().group("talks", ["gush"]).processes(6).group("g", ["stuck"]);
    let builder = engine_over(plan);
    let builder = builder.slots(4096).term_timeout(Duration::from_millis(200));
    let (builder, notices) = heard(builder);
    let (engine, gush) = started(builder, "gush");
    // Nobody waits for this one, so the engine's thread reads for it, whatever comes.
    let pending = engine.request(engine.node("stuck").unwrap()).dispatch(b"").unwrap();
    (0..6).for_each(|_| engine.request(gush).dispatch(b"").unwrap().detach());
    std::thread::sleep(Duration::from_millis(100));
    kill(engine.summary().worker_pids[6], Signal::KILL);
    until("its death is seen", || notices.has(&WorkerEvent::Crashed(Cause::Signal(9))));
    assert_eq!(transport(pending.wait().unwrap_err()), Cause::Signal(9));
    engine.stop(Drain::within(Duration::ZERO));
    balanced(&engine);
}

// ---- silence ----

fn a_mute_worker_is_suspect_and_then_killed() {
    let (builder, notices) = heard(engine(&["echo"]).env(RAW, "1").heartbeat_timeout(s(3)));
    let (engine, echo) = started(builder, "echo");
    engine.call(echo, b"first", far()).unwrap();
    let cause = transport(engine.call(echo, b"mute now", far()).unwrap_err());
    let Cause::Killed(KilledFor::HeartbeatLost { silence_ms }) = cause else { panic!("{cause:?}") };
    assert!((3000..60_000).contains(&silence_ms), "{silence_ms}");
    until("the death is told", || notices.has(&WorkerEvent::Crashed(cause)));
    use WorkerEvent::{Crashed, Ready, Started, Suspect};
    assert_eq!(notices.events(), [Started, Ready, Suspect, Crashed(cause)]);
    let all = notices.all();
    assert!(all[2].at_ns - all[1].at_ns >= 2_000_000_000, "never early");
    let report = stop(&engine);
    assert_eq!((report.workers[0].mode, report.workers[0].cause), (StopMode::Forced, Cause::Signal(9)));
}

fn a_worker_that_leaves_unasked_is_killed() {
    const WORKERS: usize = 16;
    // At all phases of the half second between two looks, and behind more than `heartbeat_timeout`.
    let plan = Plan::new().group("g", ["echo"]).processes(WORKERS);
    let builder = engine_over(plan).env(RAW, "1");
    let (builder, notices) = heard(builder.heartbeat_timeout(s(3)));
    let (engine, echo) = started(builder, "echo");
    let pending: Vec<_> = (0..WORKERS)
        .map(|i| engine.request(echo).dispatch(format!("leave {}", 3500 + 32 * i).as_bytes()).unwrap())
        .collect();
    let lost = Cause::Killed(KilledFor::ConnectionLost);
    for pending in pending {
        assert_eq!(transport(pending.wait().unwrap_err()), lost);
    }
    until("all deaths are told", || {
        let crashed = |event: &&WorkerEvent| matches!(event, WorkerEvent::Crashed(_));
        notices.events().iter().filter(crashed).count() == WORKERS
    });
    let report = stop(&engine);
    assert_eq!(ends(&notices, &report), vec![vec![killed(KilledFor::ConnectionLost)]; WORKERS]);
}

fn a_stopped_worker_is_not_a_dead_one() {
    use WorkerEvent::{Drained, Ready, Recovered, Started, StoppedBySignal};
    let (builder, notices) = heard(engine(&["echo"]).heartbeat_timeout(s(3)));
    let (engine, echo) = started(builder, "echo");
    let pid = worker_pid(&engine);
    pause(pid);
    let waits = engine.request(echo).dispatch(b"waits").unwrap();
    until("it is told", || notices.has(&StoppedBySignal));
    // Four times what silence would cost it.
    std::thread::sleep(s(12));
    assert_eq!(notices.events(), [Started, Ready, StoppedBySignal]);
    kill(pid, Signal::CONT);
    assert_eq!(*waits.wait().unwrap().bytes(), *b"waits");
    until("it is told", || notices.has(&Recovered));
    assert_eq!(stop(&engine).workers[0].mode, StopMode::Graceful);
    assert_eq!(notices.events(), [Started, Ready, StoppedBySignal, Recovered, Drained, GRACEFULLY]);
}

// ---- work that does not end ----

fn hung_01_who_stands_still_behind_a_deadline_is_killed() {
    patiently(100, stands_still);
}

/// Nothing if the machine is so slow that the node was not even begun before its deadline.
fn stands_still(limit_ms: u64) -> Option<()> {
    let (builder, notices) = heard(engine(&["stuck", "echo"]).hung_after(s(1)));
    let (engine, stuck) = started(builder, "stuck");
    let echo = engine.node("echo").unwrap();
    let begin = Instant::now();
    let pending = sent_within(&engine, stuck, limit_ms, b"");
    // It may even come too late for the hung one.
    let behind = engine.request(echo).dispatch(b"");
    assert_eq!(failure(pending.wait().unwrap_err(), Category::Timeout).cause(), Cause::Deadline);
    let behind = match behind {
        Ok(pending) => pending.wait(),
        Err(error) => Err(error.into()),
    };
    let Err(behind) = behind else {
        stop(&engine);
        return None;
    };
    let failed = failure(behind, Category::Transport);
    // The deadline itself kills nobody.
    assert!(begin.elapsed() >= Duration::from_millis(limit_ms + 1000), "never early");
    assert_eq!((failed.cause(), failed.started()), (Cause::Killed(KilledFor::Hung), false));
    until("the death is told", || notices.has(&killed(KilledFor::Hung)));
    assert!(!notices.has(&WorkerEvent::Suspect), "its heartbeats went on");
    assert_eq!(stop(&engine).workers[0].mode, StopMode::Forced);
    Some(())
}

fn hung_01_who_is_busy_behind_a_deadline_is_not_killed() {
    // One request of 60 node calls, each short, and together far longer than allowed to one that stands still.
    let plan = Plan::new().group("g", ["burst", "dawdle"]).edge("burst", "dawdle");
    let builder = engine_over(plan);
    let (builder, notices) = heard(builder.hung_after(s(2)));
    let (engine, burst) = started(builder, "burst");
    let running = sent_within(&engine, burst, 100, &[7; 60]);
    // The first call replies at about its deadline: whichever comes first.
    if let Err(error) = running.wait() {
        failure(error, Category::Timeout);
    }
    // It waits behind the other, and is answered.
    assert!(engine.call(engine.node("dawdle").unwrap(), b"", far()).is_ok());
    assert_eq!(stop(&engine).workers[0].mode, StopMode::Graceful);
    assert_eq!(notices.events().last(), Some(&GRACEFULLY));
}

fn hung_01_without_a_deadline_nobody_hangs() {
    let (builder, notices) = heard(engine(&["sleep"]).hung_after(s(1)));
    let (engine, sleep) = started(builder, "sleep");
    assert_eq!(*engine.call(sleep, b"4000", Deadline::Never).unwrap().bytes(), *b"4000");
    // Nor one whose deadline is far.
    assert_eq!(*engine.call(sleep, b"3000", far()).unwrap().bytes(), *b"3000");
    assert_eq!(stop(&engine).workers[0].mode, StopMode::Graceful);
    assert!(!notices.has(&WorkerEvent::Suspect));
}

fn boot_03_heartbeats_go_on_while_a_node_is_built() {
    let seconds = number_from(BUILD_S, 3);
    let begin = Instant::now();
    let builder = engine(&["slow_to_build"]).env(BUILD_MS, (seconds * 1000).to_string());
    let (engine, node) = started(builder.start_timeout(s(seconds + 60)), "slow_to_build");
    println!("a node of {seconds} s: started after {:?}", begin.elapsed());
    assert!(begin.elapsed() >= s(seconds));
    // HELLO and READY, and that it lives: twice a second, were it not for machines that stand still.
    assert!(testing::messages_heard(&engine) >= 2 + seconds / 2, "it was silent meanwhile");
    assert_eq!(*engine.call(node, b"", far()).unwrap().bytes(), *b"built");
    assert_eq!(stop(&engine).workers[0].mode, StopMode::Graceful);
}
