//! The 64-byte hand-off through the public API, beside what the hardware charges for the same cache lines.
//!
//! `cargo bench --bench round_trip [-- --rounds N] [--samples N]`
//!
//! Cases: `limit` is a bare ping-pong of two cache lines each way between two threads (two, because a
//! slot with 64 bytes of payload takes two); `handoff` is `call` of an echo node in a real worker process, a
//! deadline and a caller's id on each request, every reply checked. Both run interleaved, pinned to two
//! processors; then the hand-off to one of 64 workers beside that to the only one; then with both sides on one
//! processor, and unpinned. Figures are p50/p99/p99.9/max of each round in ns, and the median of the rounds'
//! ratios.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use handbell::{App, Deadline, Drain, Engine, NodeId, Plan, TraceId, Waiting};

const WARM_UP: usize = 20_000;

fn app() -> App {
    App::new().node("echo", |request, output| Ok(output.reply(request.payload())?))
}

fn main() {
    let app = app();
    app.serve_if_worker();
    let number = |name: &str, default: usize| {
        let mut args = std::env::args().skip_while(|arg| arg != name).skip(1);
        args.next().and_then(|value| value.parse().ok()).unwrap_or(default)
    };
    let test = std::env::args().any(|arg| arg == "--test");
    let rounds = number("--rounds", if test { 1 } else { 7 });
    let samples = number("--samples", if test { 200 } else { 200_000 });
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get());
    println!("processors {processors}, rounds {rounds}, samples {samples} each");
    if processors >= 2 {
        pinned_apart(&app, rounds, samples);
        one_of_many(&app, rounds, samples / 4);
    } else {
        println!("one processor: nothing to measure apart");
    }
    for (name, waiting) in
        [("spin", Waiting::Spin), ("adaptive", Waiting::Adaptive), ("block", Waiting::Block)]
    {
        let bench = Bench::start(&app, waiting, Some(0));
        pin(0);
        report(&format!("one processor, {name}"), bench.run(samples / 4));
        unpin(processors);
        drop(bench);
        let bench = Bench::start(&app, waiting, None);
        report(&format!("unpinned, {name}"), bench.run(samples / 4));
    }
}

fn pinned_apart(app: &App, rounds: usize, samples: usize) {
    for (name, waiting) in [("spin", Waiting::Spin), ("adaptive", Waiting::Adaptive)] {
        let bench = Bench::start(app, waiting, Some(1));
        let mut ratios = Vec::new();
        for _ in 0..rounds {
            pin(0);
            let limit =
                (0..3).map(|pauses| limit(samples, [0, 1, 4][pauses])).min_by_key(|sorted| p(sorted, 50.0));
            let limit = report(&format!("limit, {name}"), limit.expect("three"));
            let handoff = report(&format!("handoff, {name}"), bench.run(samples));
            ratios.push(handoff as f64 / limit as f64);
        }
        unpin(2);
        print_ratios(name, ratios);
    }
}

fn print_ratios(name: &str, mut ratios: Vec<f64>) {
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ratios.len() / 2];
    println!("ratio of p50, {name}: median {median:.2}, {:.2} to {:.2}", ratios[0], ratios[ratios.len() - 1]);
}

/// One active worker of 64, the others asleep.
fn one_of_many(app: &App, rounds: usize, samples: usize) {
    let one = Bench::start(app, Waiting::Adaptive, Some(1));
    let many = Bench::start_of(app, 64, Waiting::Adaptive, Some(1));
    let mut ratios = Vec::new();
    for _ in 0..rounds {
        pin(0);
        let one = report("1 of 1, adaptive", one.run(samples));
        let many = report("1 of 64, adaptive", many.run(samples));
        ratios.push(many as f64 / one as f64);
    }
    unpin(2);
    print_ratios("1 of 64 beside 1 of 1", ratios);
}

struct Bench {
    engine: Engine,
    echo: NodeId,
}

impl Bench {
    fn start(app: &App, waiting: Waiting, pin: Option<usize>) -> Self {
        Self::start_of(app, 1, waiting, pin)
    }

    fn start_of(app: &App, processes: usize, waiting: Waiting, pin: Option<usize>) -> Self {
        let plan = Plan::new().group("echo", ["echo"]).stateless().processes(processes);
        let builder = app.engine(plan).waiting(waiting);
        let builder = if let Some(processor) = pin { builder.pin(processor) } else { builder };
        let engine = builder.start().expect("the engine starts");
        let echo = engine.node("echo").expect("the plan has it");
        Self { engine, echo }
    }

    fn run(&self, samples: usize) -> Vec<u64> {
        let mut payload = [7; 64];
        let mut times = Vec::with_capacity(samples);
        let warm_up = WARM_UP.min(samples);
        for i in 0..warm_up + samples {
            payload[..8].copy_from_slice(&i.to_le_bytes());
            let id = TraceId::from(i as u128 + 1);
            let begin = Instant::now();
            let request = self.engine.request(self.echo).trace_id(id);
            let reply = request.deadline(Deadline::after(Duration::from_secs(5))).call(&payload);
            let took = begin.elapsed();
            let reply = reply.expect("the echo answers");
            assert!(*reply.bytes() == payload && reply.trace_id() == id);
            if i >= warm_up {
                times.push(took.as_nanos() as u64);
            }
        }
        times.sort_unstable();
        times
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.engine.stop(Drain::within(Duration::from_secs(5)));
    }
}

#[repr(align(128))]
#[derive(Default)]
struct Lines([AtomicU64; 16]);

/// Two lines there, two lines back; the last word of the first line is the signal.
fn limit(samples: usize, pauses: u32) -> Vec<u64> {
    let lines: Arc<[Lines; 2]> = Arc::default();
    let stop = Arc::new(AtomicBool::new(false));
    let echo = {
        let (lines, stop) = (Arc::clone(&lines), Arc::clone(&stop));
        std::thread::spawn(move || {
            pin(1);
            let mut turn = 1;
            while !stop.load(Ordering::Relaxed) {
                if lines[0].0[0].load(Ordering::Acquire) != turn {
                    pause(pauses);
                    continue;
                }
                pass(&lines[0], &lines[1], turn);
                turn += 1;
            }
        })
    };
    let mut times = Vec::with_capacity(samples);
    let own = Lines::default();
    for turn in 1..=(WARM_UP.min(samples) + samples) as u64 {
        let begin = Instant::now();
        pass(&own, &lines[0], turn);
        while lines[1].0[0].load(Ordering::Acquire) != turn {
            pause(pauses);
        }
        pass(&lines[1], &own, turn);
        times.push(begin.elapsed().as_nanos() as u64);
    }
    stop.store(true, Ordering::Relaxed);
    echo.join().expect("the echo thread ends");
    let mut times = times.split_off(times.len() - samples);
    times.sort_unstable();
    times
}

fn pass(from: &Lines, to: &Lines, turn: u64) {
    for i in 1..16 {
        to.0[i].store(from.0[i].load(Ordering::Relaxed), Ordering::Relaxed);
    }
    to.0[0].store(turn, Ordering::Release);
}

fn pause(pauses: u32) {
    (0..pauses).for_each(|_| std::hint::spin_loop());
}

fn p(sorted: &[u64], percent: f64) -> u64 {
    sorted[((sorted.len() - 1) as f64 * percent / 100.0).round() as usize]
}

fn report(name: &str, sorted: Vec<u64>) -> u64 {
    let [p50, p99, p999, max] = [50.0, 99.0, 99.9, 100.0].map(|percent| p(&sorted, percent));
    println!("{name:28} p50 {p50:>7}  p99 {p99:>7}  p99.9 {p999:>8}  max {max:>9} ns");
    p50
}

fn pin(processor: usize) {
    set_affinity(&[processor]);
}

fn unpin(processors: usize) {
    set_affinity(&(0..processors).collect::<Vec<_>>());
}

fn set_affinity(processors: &[usize]) {
    let mut set = rustix::thread::CpuSet::new();
    processors.iter().for_each(|processor| set.set(*processor));
    // Best effort: a sandbox may forbid it, and the figures then say "unpinned" by their spread.
    let _ = rustix::thread::sched_setaffinity(None, &set);
}
