//! What starting, stopping and watching workers costs, through the public API.
//!
//! `cargo bench --bench life_cycle [-- --rounds N] [--idle-s N]`
//!
//! Cases: from `start()` to its return, with one worker, beside a bare fork and exec of the same program, until the
//! first byte that either says; `stop()` of an engine with empty rings, and with both rings full and a node that
//! waits for room; and the processor time of an engine with eight workers that has nothing to do, from `schedstat`,
//! the engine's threads and the workers apart.

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use handbell::{App, Deadline, Drain, Engine, Plan, StopMode, Waiting, WorkerEvent, testing};

/// Set in a process that is to say one byte and end.
const BARE: &str = "HANDBELL_BENCH_BARE";
const SLOTS: usize = 8;
const WORKERS: usize = 8;

fn app() -> App {
    App::new().node("echo", |request, output| Ok(output.reply(request.payload())?)).node(
        "gush",
        |_, output| {
            loop {
                output.reply(b"more")?;
            }
        },
    )
}

fn main() {
    if std::env::var_os(BARE).is_some() {
        let said = std::io::stdout().write_all(b"!");
        std::process::exit(i32::from(said.is_err()));
    }
    let app = app();
    app.serve_if_worker();
    let number = |name: &str, default: u64| {
        let mut args = std::env::args().skip_while(|arg| arg != name).skip(1);
        args.next().and_then(|value| value.parse().ok()).unwrap_or(default)
    };
    let test = std::env::args().any(|arg| arg == "--test");
    let rounds = number("--rounds", if test { 2 } else { 200 });
    let idle = Duration::from_secs(number("--idle-s", if test { 1 } else { 60 }));
    println!("rounds {rounds}, idle {idle:?}");
    starts(&app, rounds);
    stops(&app, rounds);
    idles(&app, idle);
}

fn report(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let [p50, p99] = [50, 99].map(|percent| times[(times.len() - 1) * percent / 100]);
    println!("{name:34} p50 {p50:>10.1?}  p99 {p99:>10.1?}  longest {:>10.1?}", times[times.len() - 1]);
}

/// Interleaved, so that all see the same machine.
fn starts(app: &App, rounds: u64) {
    let (mut bare, mut whole, mut to_ready) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        bare.push(bare_start());
        let told = Arc::new(Mutex::new([0; 2]));
        let notices = Arc::clone(&told);
        let builder = app.engine(Plan::new().group("g", ["echo"])).on_worker_event(move |notice| {
            let mut told = notices.lock().expect("nothing panics");
            match notice.event {
                WorkerEvent::Started => told[0] = notice.at_ns,
                WorkerEvent::Ready => told[1] = notice.at_ns,
                _ => {}
            }
        });
        let begin = Instant::now();
        let engine = builder.start().expect("the engine starts");
        whole.push(begin.elapsed());
        let [started_ns, ready_ns] = *told.lock().expect("nothing panics");
        to_ready.push(Duration::from_nanos(ready_ns - started_ns));
        engine.stop(Drain::within(Duration::ZERO));
    }
    report("bare fork+exec to its first byte", bare);
    report("start() of one worker", whole);
    report("spawned to READY", to_ready);
}

fn bare_start() -> Duration {
    let begin = Instant::now();
    let mut command = Command::new("/proc/self/exe");
    command.env_clear().env(BARE, "1").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut byte = [0];
    child.stdout.as_mut().expect("piped").read_exact(&mut byte).expect("it says one");
    let took = begin.elapsed();
    assert!(child.wait().expect("reaped").success() && byte == *b"!");
    took
}

fn stops(app: &App, rounds: u64) {
    for (name, node) in [("stop, empty rings", "echo"), ("stop, full rings", "gush")] {
        let times = (0..rounds).map(|_| stop_of(app, node)).collect();
        report(name, times);
    }
}

fn stop_of(app: &App, node: &str) -> Duration {
    let builder = app.engine(Plan::new().group("g", [node])).slots(SLOTS).waiting(Waiting::Block);
    let engine = builder.start().expect("the engine starts");
    if node == "gush" {
        fill(&engine);
    }
    let begin = Instant::now();
    let report = engine.stop(Drain::within(Duration::ZERO));
    let took = begin.elapsed();
    assert_eq!(report.workers[0].mode, StopMode::Graceful);
    took
}

/// Both rings, and then nobody reads.
fn fill(engine: &Engine) {
    let gush = engine.node("gush").expect("the plan has it");
    // While somebody is to be told of an answer the engine reads on; then nobody does.
    engine.request(gush).dispatch(b"").expect("there is room").detach();
    while !testing::has_begun(engine, 0) {
        std::thread::sleep(Duration::from_millis(1));
    }
    (1..SLOTS).for_each(|_| drop(engine.request(gush).dispatch(b"").expect("there is room")));
    let mut before = None;
    loop {
        let now = testing::ring_positions(engine, 0);
        if now == before {
            return;
        }
        before = now;
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Time on a processor so far, of all threads of a process.
fn processor_time(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten();
    let ns = tasks.filter_map(|task| {
        let schedstat = fs::read_to_string(task.path().join("schedstat")).ok()?;
        schedstat.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(ns.sum())
}

fn idles(app: &App, idle: Duration) {
    let plan = Plan::new().group("g", ["echo"]).processes(WORKERS).stateless();
    let engine = app.engine(plan).start().expect("the engine starts");
    let echo = engine.node("echo").expect("the plan has it");
    for _ in 0..100 {
        engine.call(echo, b"warm", Deadline::after(Duration::from_secs(10))).expect("a reply");
    }
    // What the start leaves behind comes to rest.
    std::thread::sleep(Duration::from_secs(1));
    let workers =
        || -> Duration { engine.worker_pids().iter().map(|pid| processor_time(pid.unsigned_abs())).sum() };
    let (begin, engine_before, workers_before) =
        (Instant::now(), processor_time(std::process::id()), workers());
    std::thread::sleep(idle);
    // The looks themselves are read after the figures.
    let engine_used = processor_time(std::process::id()) - engine_before;
    let workers_used = workers() - workers_before;
    let took = begin.elapsed();
    let percent = |used: Duration| 100.0 * used.as_secs_f64() / took.as_secs_f64();
    println!(
        "idle for {took:.1?} with {WORKERS} workers: engine {engine_used:.1?} ({:.4} % of a processor), workers {workers_used:.1?} ({:.4} %)",
        percent(engine_used),
        percent(workers_used)
    );
    engine.stop(Drain::within(Duration::from_secs(1)));
}
