//! Ends: STOP-IPC-01, -02 and -04, HANDOFF-05, HANDOFF-E-06, and nothing is left behind.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use handbell::{
    CallError, Category, Cause, Deadline, DispatchError, Drain, StopMode, TryDispatchError, testing,
};
use rustix::process::Signal;

mod common;
use common::{
    TOKEN, balanced, engine, failure, far, is_alive, kill, memory_engine, patiently, pause, start, started,
    token, until, worker_pid,
};

/// Set in a process that plays a parent, to what it shall do.
const ROLE: &str = "HANDBELL_TEST_ROLE";

fn main() {
    common::app().serve_if_worker();
    if let Ok(role) = std::env::var(ROLE) {
        parent(&role);
    }
    common::run(tests![
        handoff_05_what_is_in_flight_ends_before_a_graceful_stop,
        handoff_e_06_what_a_stop_cuts_off_is_told_exactly,
        stop_ipc_01_an_idle_worker_stops_gracefully,
        stop_ipc_01_further_requests_are_refused_as_stopped,
        stop_ipc_02_a_node_that_never_returns_is_forced,
        stop_ipc_02_a_paused_worker_is_stopped,
        stop_ipc_04_dropping_the_engine_ends_its_worker,
        stop_ipc_04_a_panic_with_an_engine_ends_its_worker,
        stop_ipc_04_grandchildren_end_with_their_worker,
        stop_ipc_04_a_parent_killed_leaves_nobody,
        stop_ipc_04_a_parent_that_exits_leaves_nobody,
        stop_releases_who_waits_for_room,
        a_second_stop_is_empty,
        many_engines_start_and_stop_side_by_side,
        the_memory_profile_stops_as_well,
    ]);
}

fn soon() -> Drain {
    Drain::within(Duration::from_secs(30))
}

fn handoff_05_what_is_in_flight_ends_before_a_graceful_stop() {
    let (engine, sleep) = start(&["sleep"]);
    let pending: Vec<_> =
        (0..6).map(|_| engine.request(sleep).deadline(far()).dispatch(b"15").unwrap()).collect();
    engine.request(sleep).dispatch(b"15").unwrap().detach();
    let report = engine.stop(soon());
    assert_eq!((report.cut_off, report.workers.len()), (0, 1));
    assert_eq!((report.workers[0].mode, report.workers[0].cause), (StopMode::Graceful, Cause::Exit(0)));
    assert_eq!(engine.counters().completed(), 7);
    for pending in pending {
        assert_eq!(*pending.wait().unwrap().bytes(), *b"15");
    }
    balanced(&engine);
}

fn handoff_e_06_what_a_stop_cuts_off_is_told_exactly() {
    for builder in [engine, memory_engine] {
        let (engine, running) = started(builder(&["until_cancelled", "echo"]), "until_cancelled");
        let running = engine.request(running).dispatch(b"").unwrap();
        until("the node runs", || testing::has_begun_at(&engine, 0, 0));
        let behind = engine.request(engine.node("echo").unwrap()).dispatch(b"").unwrap();
        assert_eq!(engine.stop(Drain::within(Duration::ZERO)).cut_off, 2);
        for (pending, was_started) in [(running, true), (behind, false)] {
            let error = pending.wait().unwrap_err();
            assert_eq!(error.to_string(), "remote handoff shut down for group 'g'");
            let failed = failure(error, Category::Shutdown);
            assert_eq!((failed.category().name(), failed.cause()), ("shutdown", Cause::Stopped));
            assert_eq!((failed.started(), failed.node_error()), (was_started, None));
        }
        assert_eq!(engine.counters().failed, 2);
        balanced(&engine);
    }
}

fn stop_ipc_01_an_idle_worker_stops_gracefully() {
    for waiting in [handbell::Waiting::Spin, handbell::Waiting::Adaptive, handbell::Waiting::Block] {
        let (engine, echo) = started(engine(&["echo"]).waiting(waiting), "echo");
        engine.call(echo, b"", far()).unwrap();
        let pid = worker_pid(&engine);
        let report = engine.stop(Drain::within(Duration::ZERO));
        assert_eq!(report.workers[0].mode, StopMode::Graceful, "{waiting:?}");
        assert_eq!((report.workers[0].pid, report.workers[0].group.as_str()), (pid, "g"));
        assert!(!is_alive(pid));
    }
}

fn stop_ipc_01_further_requests_are_refused_as_stopped() {
    let (engine, echo) = start(&["echo"]);
    let other = engine.clone();
    let loan = engine.request(echo).loan(1000).unwrap();
    let staged = engine.request(echo).loan(10).unwrap();
    engine.stop(soon());
    assert!(matches!(other.call(echo, b"", Deadline::Never), Err(CallError::Stopped)));
    assert!(matches!(engine.request(echo).dispatch(&[0; 1000]), Err(DispatchError::Stopped)));
    let refused = engine.request(echo).try_dispatch(b"");
    assert!(matches!(refused, Err(TryDispatchError::Refused(DispatchError::Stopped))));
    assert!(matches!(loan.dispatch(), Err(DispatchError::Stopped)));
    assert!(matches!(staged.call(), Err(CallError::Stopped)));
    assert_eq!(CallError::Stopped.to_string(), "the engine has been stopped");
    assert_eq!(engine.counters().registered, 0);
    // The names are still known.
    assert_eq!(engine.node("echo").unwrap(), echo);
}

fn stop_ipc_02_a_node_that_never_returns_is_forced() {
    patiently(50, |term_ms| forced_stop(Duration::from_millis(term_ms)));
}

/// Nothing if the machine is so slow that the worker was killed before it could obey.
fn forced_stop(term_timeout: Duration) -> Option<()> {
    let (engine, stuck) = started(engine(&["stuck", "echo"]).term_timeout(term_timeout), "stuck");
    let echo = engine.node("echo").unwrap();
    let running = engine.request(stuck).dispatch(b"").unwrap();
    until("the node runs", || testing::has_begun(&engine, 0));
    let unstarted = engine.request(echo).dispatch(b"").unwrap();
    let report = std::thread::scope(|scope| {
        let called = scope.spawn(|| engine.call(echo, b"", Deadline::Never));
        until("it is in flight", || engine.counters().registered == 3);
        let report = engine.stop(Drain::within(Duration::from_millis(50)));
        let failed = failure(called.join().unwrap().unwrap_err(), Category::Shutdown);
        assert_eq!(failed.cause(), Cause::Stopped);
        report
    });
    assert_eq!(report.cut_off, 3);
    assert_eq!(report.workers[0].mode, StopMode::Forced);
    assert!(!is_alive(report.workers[0].pid));
    let error = running.wait().unwrap_err();
    assert_eq!(error.to_string(), "remote handoff shut down for group 'g'");
    assert!(failure(error, Category::Shutdown).started());
    assert!(!failure(unstarted.wait().unwrap_err(), Category::Shutdown).started());
    balanced(&engine);
    // It obeys though its node does not return: after half of term_timeout it ends without it.
    let cause = report.workers[0].cause;
    assert!([Cause::Exit(86), Cause::Signal(15), Cause::Signal(9)].contains(&cause), "{report:?}");
    (cause == Cause::Exit(86)).then_some(())
}

fn stop_ipc_02_a_paused_worker_is_stopped() {
    let (engine, echo) = started(engine(&["echo"]).term_timeout(Duration::from_millis(50)), "echo");
    pause(worker_pid(&engine));
    let pending = engine.request(echo).dispatch(b"").unwrap();
    let report = engine.stop(Drain::within(Duration::from_millis(20)));
    assert_eq!((report.cut_off, report.workers.len()), (1, 1));
    assert_eq!(report.workers[0].mode, StopMode::Forced);
    assert!(!is_alive(report.workers[0].pid));
    failure(pending.wait().unwrap_err(), Category::Shutdown);
    balanced(&engine);
}

fn stop_ipc_04_dropping_the_engine_ends_its_worker() {
    let (engine, running) = start(&["until_cancelled"]);
    let pid = worker_pid(&engine);
    let clone = engine.clone();
    let pending = engine.request(running).dispatch(b"").unwrap();
    drop(engine);
    assert!(is_alive(pid), "a clone is left");
    drop(clone);
    assert!(!is_alive(pid));
    failure(pending.wait().unwrap_err(), Category::Shutdown);
}

fn stop_ipc_04_a_panic_with_an_engine_ends_its_worker() {
    let mut pid = 0;
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let (engine, running) = start(&["until_cancelled"]);
        pid = worker_pid(&engine);
        let _pending = engine.request(running).dispatch(b"").unwrap();
        // Without the message of a panic, because it is wanted.
        std::panic::resume_unwind(Box::new("wanted"));
    }));
    assert!(unwound.is_err() && pid != 0 && !is_alive(pid));
}

/// The pid of a process that the worker has started.
fn grandchild(engine: &handbell::Engine) -> i32 {
    let node = engine.node("grandchild").unwrap();
    let pid = u32::from_le_bytes(engine.call_as(node, b"", far()).unwrap()) as i32;
    assert!(is_alive(pid));
    pid
}

fn stop_ipc_04_grandchildren_end_with_their_worker() {
    let (engine, _) = start(&["grandchild"]);
    let pids = [grandchild(&engine), grandchild(&engine)];
    engine.stop(soon());
    until("they are gone", || pids.iter().all(|pid| !is_alive(*pid)));
    // The same when the worker is killed.
    let (engine, _) = start(&["grandchild"]);
    let pid = grandchild(&engine);
    kill(worker_pid(&engine), Signal::KILL);
    until("it is gone", || !is_alive(pid));
    engine.stop(soon());
}

/// Not a test: the life of a parent whose end the tests below look at.
fn parent(role: &str) -> ! {
    let (engine, _) = start(&["grandchild", "until_cancelled"]);
    let running = engine.node("until_cancelled").unwrap();
    let pid = grandchild(&engine);
    let _pending = engine.request(running).dispatch(b"").unwrap();
    println!("{} {pid}", worker_pid(&engine));
    std::io::stdout().flush().expect("the test reads");
    if role == "exit" {
        // No destructor runs.
        std::process::exit(0);
    }
    loop {
        std::thread::park();
    }
}

fn start_parent(role: &str) -> (Child, [i32; 2]) {
    let mut command = Command::new("/proc/self/exe");
    command.env(ROLE, role).env(TOKEN, token()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut parent = command.spawn().expect("this program starts");
    let mut line = String::new();
    BufReader::new(parent.stdout.take().expect("piped")).read_line(&mut line).expect("it prints a line");
    let pids: Vec<i32> = line.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect();
    (parent, pids.try_into().expect("two pids"))
}

fn stop_ipc_04_a_parent_killed_leaves_nobody() {
    for _ in 0..5 {
        let (mut parent, pids) = start_parent("wait");
        assert!(pids.iter().all(|pid| is_alive(*pid)));
        parent.kill().expect("SIGKILL");
        parent.wait().expect("reaped");
        until("worker and grandchild are gone", || pids.iter().all(|pid| !is_alive(*pid)));
    }
}

fn stop_ipc_04_a_parent_that_exits_leaves_nobody() {
    let (mut parent, pids) = start_parent("exit");
    assert!(parent.wait().expect("reaped").success());
    until("worker and grandchild are gone", || pids.iter().all(|pid| !is_alive(*pid)));
}

fn stop_releases_who_waits_for_room() {
    let (engine, running) = started(engine(&["until_cancelled"]).slots(2), "until_cancelled");
    let pending: Vec<_> = (0..2).map(|_| engine.request(running).dispatch(b"").unwrap()).collect();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| engine.request(running).dispatch(b"").map(drop));
        std::thread::sleep(Duration::from_millis(30));
        assert!(!waits.is_finished());
        assert_eq!(engine.stop(Drain::within(Duration::from_millis(20))).cut_off, 2);
        assert!(matches!(waits.join().unwrap(), Err(DispatchError::Stopped)));
    });
    drop(pending);
    balanced(&engine);
}

fn a_second_stop_is_empty() {
    let (engine, _) = start(&["echo"]);
    let other = engine.clone();
    let reports = std::thread::scope(|scope| {
        let both = [&engine, &other].map(|engine| scope.spawn(|| engine.stop(soon())));
        both.map(|stop| stop.join().unwrap())
    });
    assert_eq!(reports.iter().filter(|report| report.workers.len() == 1).count(), 1);
    assert_eq!(engine.stop(soon()), Default::default());
}

fn many_engines_start_and_stop_side_by_side() {
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..3 {
                    let (engine, echo) = start(&["echo"]);
                    assert_eq!(*engine.call(echo, b"here", far()).unwrap().bytes(), *b"here");
                    assert_eq!(common::stop(&engine).workers[0].mode, StopMode::Graceful);
                }
            });
        }
    });
}

fn the_memory_profile_stops_as_well() {
    let (engine, echo) = started(memory_engine(&["echo"]), "echo");
    let pending: Vec<_> = (0..10).map(|_| engine.request(echo).dispatch(b"x").unwrap()).collect();
    let report = engine.stop(soon());
    assert_eq!((report.workers.len(), report.cut_off), (0, 0));
    pending.into_iter().for_each(|pending| assert_eq!(*pending.wait().unwrap().bytes(), *b"x"));
    assert!(matches!(engine.call(echo, b"", Deadline::Never), Err(CallError::Stopped)));
    let (engine, running) = started(memory_engine(&["until_cancelled"]), "until_cancelled");
    let pending = engine.request(running).dispatch(b"").unwrap();
    assert_eq!(engine.stop(Drain::within(Duration::from_millis(20))).cut_off, 1);
    failure(pending.wait().unwrap_err(), Category::Shutdown);
}
