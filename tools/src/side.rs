//! One profile's half of the comparison: an engine over the plan, and what it counted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use handbell::{
    App, Counters, Deadline, Drain, Engine, NodeId, Profile, RequestBuilder, Waiting, WorkerEvent, WorkerStop,
};
use hdrhistogram::Histogram;

use crate::exit::{Exit, Problem};
use crate::input::LINE_BYTES_MAX;
use crate::load_limits::{Options, nodes};

/// Room for a draft or a reply: what the nodes add to a line's texts is a few hundred bytes, and no JSON
/// string gets longer by being read and written again. With room for more than one, the worker can write
/// the next while one is being taken.
const ARENA_BYTES: usize = 2 * LINE_BYTES_MAX;
/// Latencies are told apart to three digits.
const DIGITS: u8 = 3;

/// The stream of lines, and the one hand-off at a time behind it: the nodes keep them apart.
#[derive(Clone, Copy)]
pub enum Session {
    /// The lines of the input.
    Stream = 1,
    /// Measuring.
    Alone = 2,
}

/// How lines are decided.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// By which rules, and whether with reasons.
    pub options: Options,
    /// Processes that parse lines.
    pub ingress: usize,
    /// Whether workers without a state of their own get successors.
    pub restarts: bool,
    /// Lines in flight.
    pub window: usize,
    /// For each line.
    pub deadline: Duration,
    /// How long a stop waits for what is in flight.
    pub drain: Duration,
    /// How both sides of each lane wait.
    pub waiting: Waiting,
}

/// How many successors the workers of each group have had.
pub type Restarts = BTreeMap<String, u64>;

/// Hand-off times in nanoseconds.
pub type Latency = Histogram<u64>;

/// Of nothing yet.
pub fn latency() -> Latency {
    Latency::new(DIGITS).expect("three digits are allowed")
}

/// Adds the time since `sent`.
pub fn record(latency: &mut Latency, sent: Instant) {
    let ns = sent.elapsed().as_nanos();
    // A histogram that grows by itself takes every number; without memory for it, a figure is lost.
    let _ = latency.record(u64::try_from(ns).unwrap_or(u64::MAX));
}

/// What an engine counted once it came to rest.
#[derive(Clone, Copy, Debug)]
pub struct Ledger {
    /// By name.
    pub counters: Counters,
    /// Counted in the table.
    pub in_flight: u64,
}

impl Ledger {
    /// Whether every request is accounted for.
    pub fn balances(&self) -> bool {
        self.counters.balances(self.in_flight)
    }
}

/// One profile's engine.
pub struct Side {
    profile: Profile,
    engine: Engine,
    entry: NodeId,
    manner: Manner,
    restarts: Arc<Mutex<Restarts>>,
}

impl Side {
    /// Starts an engine of this profile.
    pub fn start(app: &App, profile: Profile, manner: Manner) -> Result<Self, Problem> {
        let refused = |error: &dyn std::fmt::Display| Problem {
            exit: Exit::Start,
            message: format!("start refused, profile {}: {error}", profile.name()),
        };
        let restarts = Arc::new(Mutex::new(Restarts::new()));
        let counted = Arc::clone(&restarts);
        let engine = app
            .engine(nodes::plan(manner.ingress, manner.restarts, manner.options.split_ms.is_some()))
            .on_worker_event(move |notice| {
                if notice.event == WorkerEvent::Restarted {
                    // Nothing under this lock panics.
                    let mut counts = counted.lock().unwrap_or_else(PoisonError::into_inner);
                    *counts.entry(notice.group.to_string()).or_default() += 1;
                }
            })
            .profile(profile)
            .waiting(manner.waiting)
            .slots(manner.window.next_power_of_two().max(16))
            .max_in_flight(manner.window)
            .request_arena_bytes(ARENA_BYTES)
            .reply_arena_bytes(ARENA_BYTES)
            .start()
            .map_err(|error| refused(&error))?;
        let entry = engine.node(nodes::ENTRY).map_err(|error| refused(&error))?;
        Ok(Self { profile, engine, entry, manner, restarts })
    }

    /// Where the nodes run.
    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// The engine itself.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The node that takes lines.
    pub fn entry(&self) -> NodeId {
        self.entry
    }

    /// As it was started.
    pub fn manner(&self) -> &Manner {
        &self.manner
    }

    fn request(&self, session: Session) -> RequestBuilder<'_> {
        let request = self.engine.request(self.entry);
        let request = request.tags(session as u16, self.manner.options.to_scenario());
        request.deadline(Deadline::after(self.manner.deadline))
    }

    /// Hands in one line and takes its reply, `count` times, over and over through `lines`: what a line costs
    /// on its way through all groups while nothing else is in flight. In a session of its own.
    pub fn alone(&self, lines: &[Vec<u8>], count: usize) -> Result<Latency, Problem> {
        let mut latency = latency();
        for line in lines.iter().cycle().take(count) {
            let sent = Instant::now();
            self.request(Session::Alone).call(line)?;
            record(&mut latency, sent);
        }
        Ok(latency)
    }

    /// What the engine counted. Exact while nothing is in flight.
    pub fn ledger(&self) -> Ledger {
        Ledger { counters: self.engine.counters(), in_flight: self.engine.audit().in_flight }
    }

    /// Asks the engine for the failure that it must give if a group has lost its last worker, by an empty line:
    /// that is malformed and changes nothing in any state.
    pub fn failure(&self) -> Result<(), Problem> {
        self.request(Session::Stream).call(b"").map(drop).map_err(Problem::from)
    }

    /// Stops the engine: how its workers ended, and what successors they had had.
    pub fn stop(self) -> (Vec<WorkerStop>, Restarts) {
        let report = self.engine.stop(Drain::within(self.manner.drain));
        (report.workers, self.restarts.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}
