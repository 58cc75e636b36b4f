//! What the test programs share: nodes of every kind, engines over them, and a `main` that watches for hangs
//! and looks for what was left behind.
#![allow(dead_code)] // each program uses a part of it

pub mod alarm;
pub mod bell;
pub mod held;
pub mod nodes;
pub mod ordered;
pub mod played;
pub mod scripted;
pub mod traced;
pub mod watch;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use handbell::{
    Category, Cause, Deadline, DispatchError, Drain, Engine, EngineBuilder, Failure, NodeId, Pending, Plan,
    Profile, StopReport, WorkerEvent, WorkerNotice,
};
use rustix::time::{ClockId, clock_gettime};

pub use nodes::app;
pub use watch::run;

/// The variable by which processes started by this program, and what they start, are found again.
pub const TOKEN: &str = "HANDBELL_TEST_TOKEN";

/// How long the node `slow_to_build` takes to be built, in milliseconds.
pub const BUILD_MS: &str = "HANDBELL_TEST_BUILD_MS";

/// What this program's processes carry.
pub fn token() -> String {
    // A process that a test started in the role of a parent carries it itself.
    std::env::var(TOKEN).unwrap_or_else(|_| format!("test-program-{}", std::process::id()))
}

/// Tests with their names.
#[macro_export]
macro_rules! tests {
    ($($test:ident),* $(,)?) => { vec![$((stringify!($test), $test as fn())),*] };
}

/// A test program: its first act is to serve if it is a worker. `of app;` in front names its nodes.
#[macro_export]
macro_rules! program {
    (of $app:path; $($test:ident),* $(,)?) => {
        fn main() {
            $app().serve_if_worker();
            common::run($crate::tests![$($test),*]);
        }
    };
    ($($test:ident),* $(,)?) => {
        fn main() {
            common::app().serve_if_worker();
            common::run($crate::tests![$($test),*]);
        }
    };
}

/// An engine over these nodes, all in group `g`, in a worker process, to be stated further.
pub fn engine(nodes: &[&str]) -> EngineBuilder {
    engine_over(Plan::new().group("g", nodes.iter().copied()))
}

/// An engine over a plan of these nodes, which does not force a stop because the machine is slow.
pub fn engine_over(plan: Plan) -> EngineBuilder {
    app().engine(plan).env(TOKEN, token()).term_timeout(Duration::from_secs(60))
}

/// The same nodes in this process.
pub fn memory_engine(nodes: &[&str]) -> EngineBuilder {
    engine(nodes).profile(Profile::Memory)
}

/// A started engine and the first of its nodes.
pub fn start(nodes: &[&str]) -> (Engine, NodeId) {
    started(engine(nodes), nodes[0])
}

pub fn started(builder: EngineBuilder, node: &str) -> (Engine, NodeId) {
    let engine = builder.start().expect("the engine starts");
    let node = engine.node(node).expect("the plan has it");
    (engine, node)
}

/// Far enough away that only a hang reaches it.
pub fn far() -> Deadline {
    Deadline::after(Duration::from_secs(3600))
}

pub fn ms(ms: u64) -> Deadline {
    Deadline::after(Duration::from_millis(ms))
}

/// Stops without anything in flight and checks the books.
pub fn stop(engine: &Engine) -> StopReport {
    let report = engine.stop(Drain::within(Duration::from_secs(30)));
    balanced(engine);
    report
}

/// Every request has ended once, and every place is free again.
pub fn balanced(engine: &Engine) {
    let (counters, audit) = (engine.counters(), engine.audit());
    assert!(counters.balances(audit.in_flight), "{counters:?} {audit:?}");
    assert_eq!(audit.in_flight, 0, "{counters:?} {audit:?}");
    assert_eq!(audit.not_taken, 0, "{counters:?} {audit:?}");
    assert_eq!(audit.ids_in_flight, 0, "{audit:?}");
    assert_eq!(audit.free, engine.summary().max_in_flight as u64, "{audit:?}");
    // The last of what was left alone is counted out a moment after its place is free.
    until("nothing is left to the engine's thread", || handbell::testing::unattended(engine) == (0, 0));
}

/// The failure of a call, of this category and with its exact message.
pub fn failure(error: impl Into<handbell::CallError>, category: Category) -> Failure {
    let error = error.into();
    let handbell::CallError::Failed(failure) = error else { panic!("no failure: {error:?}") };
    let what = match category {
        Category::Timeout => "remote handoff timed out",
        Category::Transport => "remote handoff transport failed",
        Category::Execution => "remote handoff failed",
        Category::Shutdown => "remote handoff shut down",
    };
    assert_eq!(failure.category(), category, "{failure:?}");
    assert_eq!(failure.to_string(), format!("{what} for group '{}'", failure.group()));
    failure
}

/// The cause of a transport failure.
pub fn transport(error: impl Into<handbell::CallError>) -> Cause {
    failure(error, Category::Transport).cause()
}

/// What an engine tells of its workers.
#[derive(Clone, Default)]
pub struct Notices(Arc<Mutex<Vec<WorkerNotice>>>);

impl Notices {
    /// For `on_worker_event`.
    pub fn listener(&self) -> impl Fn(&WorkerNotice) + Send + Sync + 'static {
        let notices = Arc::clone(&self.0);
        move |notice| notices.lock().unwrap().push(notice.clone())
    }

    pub fn all(&self) -> Vec<WorkerNotice> {
        self.0.lock().unwrap().clone()
    }

    pub fn events(&self) -> Vec<WorkerEvent> {
        self.all().into_iter().map(|notice| notice.event).collect()
    }

    /// What was told of the worker with this process number.
    pub fn events_of(&self, pid: i32) -> Vec<WorkerEvent> {
        let own = self.all().into_iter().filter(|notice| notice.pid == pid);
        own.map(|notice| notice.event).collect()
    }

    pub fn has(&self, event: &WorkerEvent) -> bool {
        self.events().contains(event)
    }
}

/// A number from a variable, for longer runs than the usual one.
pub fn number_from(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |value| value.parse().expect("a number"))
}

/// Looks until `is_so`; the watchdog ends what never becomes so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let _waiting = watch::doing(what);
    while !is_so() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until the coarse clock, which is read where that is good enough, has reached the present.
pub fn coarse_clock_catches_up() {
    let now_ns = |clock| {
        let now = clock_gettime(clock);
        now.tv_sec * 1_000_000_000 + now.tv_nsec
    };
    let present_ns = now_ns(ClockId::Monotonic);
    until("the coarse clock has caught up", || now_ns(ClockId::MonotonicCoarse) >= present_ns);
}

/// Tries with ever more milliseconds until there is a result: nobody knows how slow the machine is. The watchdog
/// ends what never has one.
pub fn patiently<T>(first_ms: u64, mut attempt: impl FnMut(u64) -> Option<T>) -> T {
    let _waiting = watch::doing("giving it more and more time");
    let mut times = (0..).map(|tries| first_ms * 3u64.pow(tries));
    times.find_map(&mut attempt).expect("there is always more time")
}

/// Sends a request that is to meet its deadline, again if that was so before it was sent.
pub fn sent_within(engine: &Engine, node: NodeId, limit_ms: u64, payload: &[u8]) -> Pending {
    patiently(limit_ms, |limit_ms| match engine.request(node).deadline(ms(limit_ms)).dispatch(payload) {
        Err(DispatchError::Failed(failed)) if failed.category() == Category::Timeout => None,
        sent => Some(sent.expect("it is taken")),
    })
}

/// Bytes that differ with seed and place.
pub fn pattern(seed: u32, len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|i| (seed.wrapping_mul(2_654_435_761).wrapping_add(i.wrapping_mul(31)) >> 3) as u8)
        .collect()
}

/// A small generator of numbers (xorshift64*), so that a failure can be repeated.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) % limit
    }
}

/// Whether the process runs (a zombie does not).
pub fn is_alive(pid: i32) -> bool {
    watch::state_of(pid).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

pub fn kill(pid: i32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    // It may be gone already.
    let _ = rustix::process::kill_process(pid, signal);
}

/// Stops a process by a signal; it stands still when this returns.
pub fn pause(pid: i32) {
    kill(pid, rustix::process::Signal::STOP);
    until("it stands still", || watch::state_of(pid) == Some('T'));
}

/// The worker's process.
pub fn worker_pid(engine: &Engine) -> i32 {
    engine.summary().worker_pids[0]
}
