//! Kills and pauses at random moments, round after round: STOP-IPC-04 and -05, HANDOFF-04.
//!
//! The usual run is short. `HANDBELL_TEST_KILLS=2000 HANDBELL_TEST_LIMIT_S=7200` kills that often, half of it workers
//! and half of it engines; `HANDBELL_TEST_PAUSES=100` pauses that often.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use handbell::{
    Category, Cause, DispatchError, Drain, EngineBuilder, Plan, StartError, StopMode, WorkerEvent,
};
use rustix::process::Signal;

mod common;
use common::watch::{self, marked};
use common::{
    Notices, Numbers, TOKEN, app, balanced, engine_over, failure, far, kill, number_from, sent_within,
    started, token, transport, until, worker_pid,
};

/// Set in a process that is an engine, to which.
const ROLE: &str = "HANDBELL_TEST_ROLE";

fn main() {
    app().serve_if_worker();
    match std::env::var(ROLE).as_deref() {
        Ok("killed") => lives_until_it_is_killed(),
        Ok("paused") => is_paused(),
        Ok("paused under load") => is_paused_under_load(),
        _ => {}
    }
    common::run(tests![
        handoff_04_workers_killed_at_random_moments_leave_nothing,
        stop_ipc_04_engines_killed_at_random_moments_leave_nothing,
        stop_ipc_05_who_was_paused_blames_nobody,
    ]);
}

/// Two processes, each with a child of its own once it was asked for one.
fn engine() -> EngineBuilder {
    let plan = Plan::new().group("g", ["grandchild", "echo", "large"]).processes(2);
    app().engine(plan).env(TOKEN, token()).slots(16).max_in_flight(32).completed_history(64)
}

/// Half of the rounds that were asked for, with their count and time behind them.
fn rounds(what: &str, mut round: impl FnMut(&mut Numbers)) {
    let count = number_from("HANDBELL_TEST_KILLS", 40) / 2;
    let descriptors = watch::descriptors();
    let begin = Instant::now();
    let mut numbers = Numbers(0x5EED ^ u64::from(std::process::id()) << 20);
    for number in 0..count {
        let _doing = watch::doing(&format!("{what}, round {number}, numbers {:#x}", numbers.0));
        round(&mut numbers);
    }
    println!("{what}: {count} rounds in {:?}", begin.elapsed());
    // Tests beside this one have their own open.
    until("no descriptor is left", || watch::descriptors() <= descriptors + 20);
}

// ---- workers ----

fn handoff_04_workers_killed_at_random_moments_leave_nothing() {
    let moments = [const { AtomicU64::new(0) }; 3];
    rounds("workers killed", |numbers| {
        let notices = Notices::default();
        let (in_birth, after) = (numbers.below(3) == 0, Duration::from_micros(numbers.below(30_000)));
        let which = numbers.below(2) as usize;
        let is_over = AtomicBool::new(false);
        let moment = std::thread::scope(|scope| {
            scope.spawn(|| {
                until("it is time", || {
                    in_birth || is_over.load(Ordering::SeqCst) || notices.has(&WorkerEvent::Ready)
                });
                std::thread::sleep(after);
                until("there is somebody to kill", || {
                    is_over.load(Ordering::SeqCst) || kill_worker(&notices, which)
                });
            });
            let moment = one_life(&notices);
            is_over.store(true, Ordering::SeqCst);
            moment
        });
        moments[moment].fetch_add(1, Ordering::Relaxed);
        for notice in notices.all() {
            assert_eq!(watch::state_of(notice.pid).filter(|state| *state != 'X'), None, "{notice:?}");
        }
    });
    let [births, work, late] = moments.map(AtomicU64::into_inner);
    println!("killed before they were ready: {births}, at work: {work}, at the stop or never: {late}");
    until("nobody is left", || watch::children().is_empty() && marked(&token()).is_empty());
}

/// Kills the worker that was started as this one, unless it has ended; whether it has been started.
fn kill_worker(notices: &Notices, which: usize) -> bool {
    let all = notices.all();
    let started = all.iter().filter(|notice| notice.event == WorkerEvent::Started);
    let Some(pid) = started.map(|notice| notice.pid).nth(which) else { return false };
    let is_end = |event: &WorkerEvent| matches!(event, WorkerEvent::Crashed(_) | WorkerEvent::Stopped { .. });
    if !notices.events_of(pid).iter().any(is_end) {
        kill(pid, Signal::KILL);
    }
    true
}

/// Starts, works and stops; when the kill was noticed: in the birth, at work, or not.
fn one_life(notices: &Notices) -> usize {
    let killed = Cause::Signal(9);
    let engine = match engine().on_worker_event(notices.listener()).start() {
        Ok(engine) => engine,
        Err(StartError::Died { cause, .. }) if cause == killed => return 0,
        Err(error) => panic!("{error:?}"),
    };
    let [echo, large, grandchild] = ["echo", "large", "grandchild"].map(|name| engine.node(name).unwrap());
    let mut ended = 0u64;
    let mut deaths = 0;
    let mut window = Vec::new();
    let mut settle = |result: Result<handbell::Reply, handbell::CallError>| {
        ended += 1;
        if let Err(error) = result {
            assert_eq!(transport(error), killed);
            deaths += 1;
        }
    };
    for i in 0..300u32 {
        let sent = match i % 10 {
            0 if i < 20 => engine.request(grandchild).deadline(far()).dispatch(b""),
            9 => engine.request(large).deadline(far()).dispatch(b"3000"),
            _ => engine.request(echo).deadline(far()).dispatch(&i.to_le_bytes()),
        };
        match sent {
            Ok(pending) => window.push(pending),
            Err(DispatchError::Failed(failed)) => settle(Err(failed.into())),
            Err(error) => panic!("{error:?}"),
        }
        if window.len() > 8 {
            settle(window.remove(0).wait());
        }
    }
    window.into_iter().for_each(|pending| settle(pending.wait()));
    assert_eq!(ended, 300);
    engine.stop(Drain::within(Duration::from_secs(30)));
    balanced(&engine);
    if deaths > 0 { 1 } else { 2 }
}

// ---- engines ----

/// Not a test: starts, works and stops until it is killed.
fn lives_until_it_is_killed() -> ! {
    loop {
        let (engine, grandchild) = started(engine(), "grandchild");
        let echo = engine.node("echo").unwrap();
        let children: Vec<_> = (0..2).map(|_| engine.request(grandchild).dispatch(b"").unwrap()).collect();
        let mut window = Vec::new();
        for i in 0..200u32 {
            window.push(engine.request(echo).dispatch(&i.to_le_bytes()).unwrap());
            if window.len() > 8 {
                window.remove(0).wait().unwrap();
            }
        }
        children.into_iter().for_each(|child| drop(child.wait().unwrap()));
        engine.stop(Drain::within(Duration::from_millis(1)));
    }
}

fn play(role: &str, token: &str) -> Child {
    let mut command = Command::new("/proc/self/exe");
    command.env(ROLE, role).env(TOKEN, token).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().expect("this program starts")
}

fn stop_ipc_04_engines_killed_at_random_moments_leave_nothing() {
    let mut number = 0;
    let mut alone = 0;
    rounds("engines killed", |numbers| {
        number += 1;
        // Of this round alone.
        let token = format!("{}-{number}", token());
        let mut parent = play("killed", &token);
        std::thread::sleep(Duration::from_micros(numbers.below(150_000)));
        let seen = marked(&token).len();
        parent.kill().expect("SIGKILL");
        parent.wait().expect("reaped");
        alone += u64::from(seen <= 1);
        until("workers and grandchildren are gone", || marked(&token).is_empty());
    });
    println!("killed before they had a worker: {alone}");
}

// ---- pauses ----

const PAUSE: Duration = Duration::from_secs(9);
/// Under load; a second longer would be what silence costs a worker by default.
const PAUSE_UNDER_LOAD: Duration = Duration::from_secs(8);

/// Not a test: an engine that is told when it has been paused, and tells what it found.
fn is_paused() -> ! {
    let notices = Notices::default();
    let plan = Plan::new().group("g", ["echo", "sleep"]);
    let builder = engine_over(plan).on_worker_event(notices.listener());
    // Both are far shorter than the pause.
    let builder = builder.heartbeat_timeout(Duration::from_secs(3)).hung_after(Duration::from_secs(5));
    let (engine, echo) = started(builder, "echo");
    // Begun before the pause, behind its deadline all the while, and ended a good while after it.
    let sleep = engine.node("sleep").unwrap();
    let running = sent_within(&engine, sleep, 500, b"12000");
    failure(running.wait().unwrap_err(), Category::Timeout);
    println!("{}", worker_pid(&engine));
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("it is told");
    // Behind the other.
    assert_eq!(*engine.call(echo, b"after", far()).unwrap().bytes(), *b"after");
    std::thread::sleep(Duration::from_secs(3));
    let report = engine.stop(Drain::within(Duration::from_secs(30)));
    assert_eq!(report.workers[0].mode, StopMode::Graceful, "{:?}", notices.events());
    println!("{:?}", notices.events());
    std::process::exit(0);
}

/// Not a test: an engine with requests in flight all the while, and every setting as it is by default.
fn is_paused_under_load() -> ! {
    let notices = Notices::default();
    let plan = Plan::new().group("g", ["echo"]);
    let builder = app().engine(plan).env(TOKEN, token()).on_worker_event(notices.listener());
    let (engine, echo) = started(builder, "echo");
    let is_over = AtomicBool::new(false);
    let call = |number: u64| engine.request(echo).deadline(far()).dispatch(&number.to_le_bytes()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut window = std::collections::VecDeque::new();
                for number in 0.. {
                    if is_over.load(Ordering::SeqCst) {
                        break;
                    }
                    window.push_back((number, call(number)));
                    if window.len() == 16 {
                        let (number, pending) = window.pop_front().expect("sixteen");
                        assert_eq!(*pending.wait().unwrap().bytes(), number.to_le_bytes());
                    }
                }
                window.into_iter().for_each(|(_, pending)| drop(pending.wait().unwrap()));
            });
        }
        println!("{}", worker_pid(&engine));
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).expect("it is told");
        std::thread::sleep(Duration::from_secs(3));
        is_over.store(true, Ordering::SeqCst);
    });
    let report = engine.stop(Drain::within(Duration::from_secs(30)));
    assert_eq!(report.workers[0].mode, StopMode::Graceful, "{:?}", notices.events());
    balanced(&engine);
    println!("{:?}", notices.events());
    std::process::exit(0);
}

/// Pauses the engine or its worker, and gives back what the engine says happened to the worker.
fn pause(worker: bool, under_load: bool) -> String {
    let (role, pause) = if under_load { ("paused under load", PAUSE_UNDER_LOAD) } else { ("paused", PAUSE) };
    let mut engine = play(role, &token());
    let mut lines = BufReader::new(engine.stdout.take().expect("piped")).lines();
    let mut line = || lines.next().expect("it speaks").expect("text");
    let worker_pid: i32 = line().parse().expect("a pid");
    let pid = if worker { worker_pid } else { engine.id() as i32 };
    kill(pid, Signal::STOP);
    std::thread::sleep(pause);
    kill(pid, Signal::CONT);
    engine.stdin.take().expect("piped").write_all(b"go on\n").expect("it listens");
    let events = line();
    assert!(engine.wait().expect("reaped").success());
    events
}

fn stop_ipc_05_who_was_paused_blames_nobody() {
    const AT_ONCE: u64 = 10;
    let count = number_from("HANDBELL_TEST_PAUSES", 1);
    let begin = Instant::now();
    let unexpected = Mutex::new(Vec::new());
    for first in (0..count).step_by(AT_ONCE as usize) {
        std::thread::scope(|scope| {
            for number in first..count.min(first + AT_ONCE) {
                let unexpected = &unexpected;
                scope.spawn(move || {
                    let (worker, told) = match number % 2 {
                        0 => (false, ""),
                        _ => (true, "StoppedBySignal, Recovered, "),
                    };
                    let expected = format!("[Started, Ready, {told}Drained, Stopped {{ gracefully: true }}]");
                    // Two of each ten, one of each kind.
                    let events = pause(worker, number % AT_ONCE >= AT_ONCE - 2);
                    if events != expected {
                        unexpected.lock().unwrap().push((number, events));
                    }
                });
            }
        });
    }
    let under_load = (0..count).filter(|number| number % AT_ONCE >= AT_ONCE - 2).count();
    println!(
        "{count} pauses in {:?}: {under_load} of {PAUSE_UNDER_LOAD:?} under load, the others of {PAUSE:?}",
        begin.elapsed()
    );
    assert_eq!(*unexpected.lock().unwrap(), []);
}
