//! One profile's half of the run: an engine and the lines that it has in flight.
//!
//! Order: lines are sent and their replies taken in input order, so both halves of a comparison stand at the
//! same line after each step.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use handbell::{
    App, Counters, Deadline, Drain, Engine, NodeId, Pending, Profile, StopReport, TryDispatchError,
};
use hdrhistogram::Histogram;

use crate::exit::{Exit, Problem};
use crate::input::LINE_BYTES_MAX;
use crate::load_limits::reply::{Reason, write_reply};
use crate::load_limits::{Options, nodes};

/// Room for a draft or a reply: what the nodes add to a line's texts is a few hundred bytes, and no JSON
/// string gets longer by being read and written again. With room for more than one, the worker can write
/// the next while one is being taken.
const ARENA_BYTES: usize = 2 * LINE_BYTES_MAX;
/// Latencies are told apart to three digits.
const DIGITS: u8 = 3;
const DRAIN: Duration = Duration::from_secs(5);

/// The stream of lines, and the one hand-off at a time behind it: the nodes keep them apart.
#[derive(Clone, Copy)]
enum Run {
    Stream = 1,
    Alone = 2,
}

/// How lines are sent.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// By which rules, and whether with reasons.
    pub options: Options,
    /// Lines in flight.
    pub window: usize,
    /// For each line.
    pub deadline: Duration,
}

/// Hand-off times in nanoseconds.
pub type Latency = Histogram<u64>;

fn latency() -> Latency {
    Latency::new(DIGITS).expect("three digits are allowed")
}

fn record(latency: &mut Latency, sent: Instant) {
    let ns = sent.elapsed().as_nanos();
    // A histogram that grows by itself takes every number; without memory for it, a figure is lost.
    let _ = latency.record(u64::try_from(ns).unwrap_or(u64::MAX));
}

enum Flight {
    Asked { sent: Instant, pending: Pending },
    TooLong,
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

/// One profile's engine and its lines in flight.
pub struct Side {
    profile: Profile,
    engine: Engine,
    entry: NodeId,
    manner: Manner,
    flights: VecDeque<Flight>,
    latency: Latency,
    /// What the oldest line was answered, once taken.
    reply: Vec<u8>,
}

impl Side {
    /// Starts an engine of this profile.
    pub fn start(app: &App, profile: Profile, manner: Manner) -> Result<Self, Problem> {
        let refused = |error: &dyn std::fmt::Display| Problem {
            exit: Exit::Start,
            message: format!("start refused, profile {}: {error}", profile.name()),
        };
        let engine = app
            .engine(nodes::plan())
            .profile(profile)
            .slots(manner.window.next_power_of_two().max(16))
            .max_in_flight(manner.window)
            .request_arena_bytes(ARENA_BYTES)
            .reply_arena_bytes(ARENA_BYTES)
            .start()
            .map_err(|error| refused(&error))?;
        let entry = engine.node(nodes::ENTRY).map_err(|error| refused(&error))?;
        let flights = VecDeque::with_capacity(manner.window);
        Ok(Self { profile, engine, entry, manner, flights, latency: latency(), reply: Vec::new() })
    }

    /// Where the nodes run.
    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// What was started.
    pub fn engine_summary(&self) -> &handbell::Summary {
        self.engine.summary()
    }

    /// Lines sent whose replies have not been taken.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    fn request(&self, run: Run) -> handbell::RequestBuilder<'_> {
        let request = self.engine.request(self.entry);
        let request = request.tags(run as u16, self.manner.options.to_scenario());
        request.deadline(Deadline::after(self.manner.deadline))
    }

    /// Sends a line (none: one that is too long, which no engine sees) unless there is no room before an
    /// older line has been taken; whether it was sent.
    pub fn send(&mut self, line: Option<&[u8]>) -> Result<bool, Problem> {
        let Some(line) = line else {
            self.flights.push_back(Flight::TooLong);
            return Ok(true);
        };
        let sent = Instant::now();
        let pending = match self.request(Run::Stream).try_dispatch(line) {
            Ok(pending) => pending,
            // Room comes with the replies of older lines: with none of ours left it is the worker's to make.
            Err(TryDispatchError::Busy(request)) if self.flights.is_empty() => request.dispatch(line)?,
            Err(TryDispatchError::Busy(_)) => return Ok(false),
            Err(TryDispatchError::Refused(error)) => return Err(error.into()),
        };
        self.flights.push_back(Flight::Asked { sent, pending });
        Ok(true)
    }

    /// Waits for the reply to the oldest line in flight.
    pub fn take_oldest(&mut self) -> Result<&[u8], Problem> {
        self.reply.clear();
        match self.flights.pop_front() {
            Some(Flight::Asked { sent, pending }) => {
                let reply = pending.wait()?;
                record(&mut self.latency, sent);
                self.reply.extend_from_slice(&reply.bytes());
            }
            // As the nodes answer any line of which nothing can be read.
            Some(Flight::TooLong) => {
                let reasons = self.manner.options.reasons;
                write_reply(&mut self.reply, "", "", Some(Reason::InputParseError), reasons);
            }
            None => {}
        }
        Ok(&self.reply)
    }

    /// Hands in one line and takes its reply, `count` times, over and over through `lines`: what a hand-off
    /// costs while nothing else is in flight. In a run of its own.
    pub fn alone(&self, lines: &[Vec<u8>], count: usize) -> Result<Latency, Problem> {
        let mut latency = latency();
        for line in lines.iter().cycle().take(count) {
            let sent = Instant::now();
            self.request(Run::Alone).call(line)?;
            record(&mut latency, sent);
        }
        Ok(latency)
    }

    /// How long the stream's lines took, from being handed in to their reply being taken.
    pub fn latency(&self) -> &Latency {
        &self.latency
    }

    /// What the engine counted. Exact while nothing is in flight.
    pub fn ledger(&self) -> Ledger {
        Ledger { counters: self.engine.counters(), in_flight: self.engine.audit().in_flight }
    }

    /// Asks the engine for the failure that it must give now that its worker has ended.
    pub fn failure(&self) -> Result<(), Problem> {
        self.request(Run::Alone).call(b"").map(drop).map_err(Problem::from)
    }

    /// Stops the engine.
    pub fn stop(self) -> StopReport {
        self.engine.stop(Drain::within(DRAIN))
    }
}
