//! What a hand-off that spins takes besides time: no memory, no lock, no system call, on either side. Memory is counted
//! by the allocator of both processes, system calls by tracing the thread that calls and the worker's that serves.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use handbell::{App, Engine, NodeId, Plan, Waiting};
use handbell_measure::{apart, pin};

mod allocations;
#[path = "../common/mod.rs"]
mod common;
mod trace;

use common::{TOKEN, far, stop, token, worker_pid};

/// Set in the process whose calls are traced.
const ROLE: &str = "HANDBELL_TEST_ROLE";
/// Hand-offs of a round that is counted, and rounds of each kind.
const HANDOFFS: u64 = 500;
const ROUNDS: usize = 60;
/// The same of a round that is traced: so short that both sides have their processors all the while now and then,
/// whatever else runs here.
const TRACED_HANDOFFS: u64 = 50;
const TRACED_ROUNDS: usize = 200;

fn main() {
    app().serve_if_worker();
    if std::env::var_os(ROLE).is_some() {
        is_traced();
    }
    common::run(tests![a_handoff_allocates_nothing, a_handoff_calls_no_system]);
}

fn app() -> App {
    App::new()
        .node("echo", |request, output| Ok(output.reply(request.payload())?))
        .node("allocations", |_, output| Ok(output.reply(&allocations::of_this_thread().to_le_bytes())?))
}

/// Two that spin on the same processors are not let alone by each other.
static ALONE: Mutex<()> = Mutex::new(());

/// A way to hand a request off.
type Kind = fn(&Engine, NodeId);

static LARGE: [u8; 64 << 10] = [7; 64 << 10];

const KINDS: [(&str, Kind); 6] = [
    ("call", |engine, echo| assert_eq!(engine.call(echo, &[7; 64], far()).expect("it answers").len(), 64)),
    ("call with a caller's id", |engine, echo| {
        let request = engine.request(echo).trace_id(7).deadline(far());
        assert_eq!(request.call(&[7; 64]).expect("it answers").len(), 64);
    }),
    ("dispatch and wait", |engine, echo| {
        let pending = engine.request(echo).deadline(far()).dispatch(&[7; 64]).expect("it is taken");
        assert_eq!(pending.wait().expect("it answers").len(), 64);
    }),
    ("a loan that fits a slot", |engine, echo| {
        let loan = engine.request(echo).deadline(far()).loan(64).expect("there is room");
        assert_eq!(loan.call().expect("it answers").len(), 64);
    }),
    ("call with 64 KiB", |engine, echo| {
        assert_eq!(engine.call(echo, &LARGE, far()).expect("it answers").len(), LARGE.len());
    }),
    ("a loan of 64 KiB", |engine, echo| {
        let loan = engine.request(echo).deadline(far()).loan(LARGE.len()).expect("there is room");
        assert_eq!(loan.call().expect("it answers").in_place().map(|bytes| bytes.len()), Some(LARGE.len()));
    }),
];

/// An engine whose worker has a processor of its own, if there are two; this thread then has the other one.
fn spinning() -> (Engine, NodeId) {
    let plan = Plan::new().group("g", ["echo", "allocations"]);
    let mut builder = app().engine(plan).env(TOKEN, token()).waiting(Waiting::Spin);
    if let Some((_, partner)) = apart() {
        builder = builder.pin(partner);
    }
    let engine = builder.start().expect("the engine starts");
    if let Some((caller, _)) = apart() {
        assert!(pin(&[caller]));
    }
    let echo = engine.node("echo").expect("the plan has it");
    (engine, echo)
}

/// In a thread of its own, which alone is kept to a processor.
fn a_handoff_allocates_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| scope.spawn(allocates_nothing).join()).expect("nothing is allocated");
}

fn allocates_nothing() {
    let (engine, echo) = spinning();
    let asked = engine.node("allocations").expect("the plan has it");
    let of_worker = || {
        let reply = engine.call(asked, b"", far()).expect("it answers");
        u64::from_le_bytes(reply.bytes()[..].try_into().expect("eight bytes"))
    };
    for (name, kind) in KINDS {
        let round = || {
            let before = (allocations::of_this_thread(), of_worker());
            (0..HANDOFFS).for_each(|_| kind(&engine, echo));
            (allocations::of_this_thread() - before.0, of_worker() - before.1)
        };
        // Behind the first, in which each thread gets what it uses again.
        let rounds: Vec<_> = (0..ROUNDS).map(|_| round()).skip(1).collect();
        let all = rounds.iter().fold((0, 0), |all, round| (all.0 + round.0, all.1 + round.1));
        println!(
            "{name}: {} and {} allocations in {} hand-offs",
            all.0,
            all.1,
            rounds.len() as u64 * HANDOFFS
        );
        // Who is kept from its processor for long may take the long way once.
        assert!(rounds.contains(&(0, 0)), "{name}: {rounds:?}");
        assert!((all.0 + all.1) * 100 < rounds.len() as u64 * HANDOFFS, "{name}: {rounds:?}");
    }
    stop(&engine);
}

fn a_handoff_calls_no_system() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if apart().is_none() {
        return println!("not shown: two that spin on one processor give it away");
    }
    let mut command = Command::new(std::env::current_exe().expect("it has a path"));
    command.env(ROLE, "traced").env(TOKEN, token()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut traced = command.spawn().expect("it starts");
    let mut said = BufReader::new(traced.stdout.take().expect("piped"));
    let mut line = String::new();
    said.read_line(&mut line).expect("it says who serves");
    let worker: i32 = line.trim().parse().unwrap_or_else(|_| panic!("no pid: {line:?}"));
    let caller = traced.id() as i32;
    let mut word = traced.stdin.take().expect("piped");
    let begin = || word.write_all(b"go\n").expect("it reads");
    let rounds = || trace::rounds([caller, worker], TRACED_ROUNDS * KINDS.len(), begin);
    let rounds = std::thread::scope(|scope| scope.spawn(rounds).join()).expect("the tracer does not panic");
    // It ends when nobody is there to say a word.
    drop(word);
    said.read_to_string(&mut line).expect("it comes to its end");
    assert!(traced.wait().expect("it is a child").success(), "{line}");
    let Some(rounds) = rounds else { return println!("not shown: this system lets nobody trace") };
    for ((name, _), rounds) in KINDS.iter().zip(rounds.chunks(TRACED_ROUNDS)) {
        let counts: Vec<_> =
            rounds.iter().map(|round| (round.calls[0].len(), round.calls[1].len())).collect();
        let least = counts.iter().min_by_key(|(caller, worker)| caller + worker).expect("there are some");
        println!("{name}: least of {TRACED_ROUNDS} rounds: caller {}, worker {}", least.0, least.1);
        // Who waits for long, for one thing because the other is being looked at, gives its processor away. What a
        // hand-off did, each round would have 50 times.
        assert!((least.0 + least.1) as u64 * 10 <= TRACED_HANDOFFS, "{name}: {counts:?}");
    }
}

/// Says who serves, waits for a word, and calls; each round stands between two marks.
fn is_traced() -> ! {
    let (engine, echo) = spinning();
    for (_, kind) in KINDS {
        (0..HANDOFFS).for_each(|_| kind(&engine, echo));
    }
    println!("{}", worker_pid(&engine));
    let mut word = String::new();
    std::io::stdin().read_line(&mut word).expect("it is told");
    for (_, kind) in KINDS {
        for _ in 0..TRACED_ROUNDS {
            // The worker has come to rest behind the mark before.
            kind(&engine, echo);
            trace::mark();
            (0..TRACED_HANDOFFS).for_each(|_| kind(&engine, echo));
            trace::mark();
        }
    }
    std::io::stdin().read_line(&mut word).expect("nobody traces any more");
    stop(&engine);
    std::process::exit(0)
}
