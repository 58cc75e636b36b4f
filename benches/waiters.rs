//! A million waiters beside a thousand, at the correlation table's own interface: what one request costs to
//! register, to complete, and to expire, and how many bytes a waiter takes.
//!
//! `cargo bench --bench waiters [-- --rounds N] [--requests N] [--waiters N] [--case NAME]
//! [--own-ids|--random-ids]`
//!
//! Every table stays full; rounds alternate between the tables, and the figures are medians of the rounds, in ns of
//! this thread's processor time. Every end is checked.
//!
//! - `register`, `complete`: the oldest 256 get their terminal and are taken, and 256 others take their places,
//!   with a deadline and a caller's id each. These count, unless `--random-ids`; with `--own-ids` the table makes them.
//! - `quiet`: one look for what is due after each 256 of these, as the engine's thread takes it; nothing is due.
//! - `due`: the oldest end by their deadline, 256, 16 or 1 at a look.

use std::collections::VecDeque;
use std::sync::LazyLock;

use handbell::testing::{Entry, Judged, LastMark, Machine, Peer, Tables, Waiter};
use handbell::{Identity, TraceId};
use rustix::time::{ClockId, clock_gettime};

const SIZES: [usize; 2] = [1_000, 1_000_000];
const BATCH: usize = 256;
/// How far behind the frame that is being judged the reader of a lane looks.
const AHEAD: usize = 4;
const PEER: Peer = Peer { lane: 0, incarnation: 1 };
/// Between two deadlines.
const STEP_NS: u64 = 1_000;

fn argument(name: &str) -> Option<String> {
    std::env::args().skip_while(|arg| arg != name).nth(1)
}

fn main() {
    let number = |name: &str, usual: usize| argument(name).map_or(usual, |n| n.parse().expect("a number"));
    let test = std::env::args().any(|arg| arg == "--test");
    let rounds = number("--rounds", if test { 1 } else { 9 });
    let requests = number("--requests", if test { 1_000 } else { 500_000 });
    let sizes = match number("--waiters", 0) {
        0 => SIZES.to_vec(),
        size => vec![size],
    };
    let mut books: Vec<Books> = sizes.iter().map(|size| Books::full(*size)).collect();
    let wanted = argument("--case");
    let cases = CASES.iter().filter(|(name, _)| wanted.as_ref().is_none_or(|wanted| name == wanted));
    let mut cases: Vec<_> = cases.map(|case| (case, vec![Vec::new(); sizes.len()])).collect();
    for _ in 0..rounds {
        for ((_, run), measured) in &mut cases {
            for (books, measured) in books.iter_mut().zip(measured) {
                measured.push(run(books, requests) as f64 / requests as f64);
            }
        }
    }
    println!("{rounds} rounds of {requests} requests, ns for each:");
    let row = |name: &str, figures: Vec<String>| println!("{name:>16} {}", figures.join(" "));
    row("", sizes.iter().map(|size| format!("{size:>10}")).collect());
    for ((name, _), mut measured) in cases {
        let medians = measured.iter_mut().map(|rounds| {
            rounds.sort_by(f64::total_cmp);
            rounds[rounds.len() / 2]
        });
        let medians: Vec<f64> = medians.collect();
        let ratio = format!("{:>8.2}", medians[medians.len() - 1] / medians[0]);
        row(name, medians.iter().map(|ns| format!("{ns:>10.1}")).chain([ratio]).collect());
    }
    for (books, size) in books.iter().zip(sizes) {
        assert_eq!(books.machine.audit().in_flight, size as u64);
        assert!(books.machine.counters()[0].balances(size as u64));
    }
}

/// Takes the table and how many requests; tells how many ns of processor time they took.
type Run = fn(&mut Books, usize) -> u64;

const CASES: [(&str, Run); 6] = [
    ("register", |books, requests| books.turn(requests).registering),
    ("complete", |books, requests| books.turn(requests).completing),
    ("quiet", |books, requests| books.turn(requests).looking),
    ("due, 256 a look", |books, requests| books.expire(requests, 256)),
    ("due, 16 a look", |books, requests| books.expire(requests, 16)),
    ("due, 1 a look", |books, requests| books.expire(requests, 1)),
];

/// The id of the request that is registered as this one.
type Ids = fn(u128) -> TraceId;

static IDS: LazyLock<Ids> = LazyLock::new(|| {
    let is_given = |name: &str| std::env::args().any(|arg| arg == name);
    match (is_given("--own-ids"), is_given("--random-ids")) {
        (true, _) => |_| TraceId::default(),
        // An odd factor: no two numbers give the same.
        (_, true) => |number| TraceId::from(number.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)),
        _ => TraceId::from,
    }
});

/// A table without a free place.
struct Books {
    machine: Machine,
    /// The oldest first, with their deadlines.
    waiters: VecDeque<(Waiter, u64)>,
    registered: u64,
    now_ns: u64,
}

#[derive(Default)]
struct Turn {
    registering: u64,
    completing: u64,
    looking: u64,
}

impl Books {
    fn full(size: usize) -> Self {
        let tables = Tables { roots: size, max_branches: 8, completed_history: 65_536, lanes: 1 };
        let waiters = VecDeque::with_capacity(size);
        let before = resident_bytes();
        let mut books = Self { machine: Machine::new(tables), waiters, registered: 0, now_ns: 1 };
        (0..size).for_each(|_| books.register());
        let own = size * size_of::<(Waiter, u64)>();
        println!("{size:>9} waiters: {} bytes each", resident_bytes().saturating_sub(before + own) / size);
        books
    }

    /// Deadlines follow each other: a million in a second.
    fn register(&mut self) {
        self.registered += 1;
        let deadline_ns = 1 + self.registered * STEP_NS;
        let trace_id = IDS(self.registered.into());
        let identity = Identity { trace_id, ..Identity::default() };
        let entry = Entry { identity, deadline_ns, home: 0, target: Some(PEER), group: 0 };
        let waiter = self.machine.register(&entry).expect("there is a place");
        self.machine.placed(waiter.ticket(), self.registered);
        self.waiters.push_back((waiter, deadline_ns));
    }

    /// Completes the oldest and registers others, so many of each.
    fn turn(&mut self, requests: usize) -> Turn {
        let mut turn = Turn::default();
        for _ in 0..requests.div_ceil(BATCH) {
            let oldest: Vec<Waiter> = self.waiters.drain(..BATCH).map(|(waiter, _)| waiter).collect();
            turn.completing += took_ns(|| {
                for (number, waiter) in oldest.iter().enumerate() {
                    // As the reader of a lane does.
                    if let Some(ahead) = oldest.get(number + AHEAD) {
                        self.machine.expect(&ahead.terminal());
                    }
                    let (frame, now_ns) = (waiter.terminal(), self.now_ns);
                    let judged = self.machine.frame(PEER, &frame, LastMark::Ended, b"12345678", now_ns);
                    assert_eq!(judged, Judged::Ended);
                    self.machine.forget(waiter);
                }
            });
            // The clock stands right before the deadline of the oldest that is left.
            self.now_ns = self.waiters.front().map_or(self.now_ns, |(_, deadline_ns)| deadline_ns - 1);
            turn.looking += took_ns(|| assert!(self.machine.expire(self.now_ns, |_, _| false).is_empty()));
            turn.registering += took_ns(|| (0..BATCH).for_each(|_| self.register()));
        }
        turn
    }

    /// Lets so many pass their deadline, `at_once` at a look.
    fn expire(&mut self, requests: usize, at_once: usize) -> u64 {
        let mut ns = 0;
        for _ in 0..requests.div_ceil(BATCH) {
            let due: Vec<(Waiter, u64)> = self.waiters.drain(..BATCH).collect();
            ns += took_ns(|| {
                for due in due.chunks(at_once) {
                    self.now_ns = due[at_once - 1].1;
                    let ended = self.machine.expire(self.now_ns, |_, _| false);
                    assert_eq!(ended.len(), at_once);
                    assert_eq!(ended[0].trace_id, due[0].0.trace_id());
                }
            });
            due.iter().for_each(|(waiter, _)| self.machine.forget(waiter));
            (0..BATCH).for_each(|_| self.register());
        }
        ns
    }
}

/// This thread's processor time: other programs run beside this one. With `--untimed` no clock is read, for those
/// who count instructions in a simulated processor.
fn took_ns(run: impl FnOnce()) -> u64 {
    static IS_UNTIMED: LazyLock<bool> = LazyLock::new(|| std::env::args().any(|arg| arg == "--untimed"));
    let now_ns = || {
        if *IS_UNTIMED {
            return 0;
        }
        let now = clock_gettime(ClockId::ThreadCPUTime);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    };
    let begin_ns = now_ns();
    run();
    now_ns() - begin_ns
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").expect("a process has one");
    let pages = status.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.expect("a number") * 4096
}
