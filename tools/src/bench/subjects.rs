//! What is measured, through the calls that every user has: a deadline and the caller's id on each request, and
//! every reply checked, outside the time that counts.

use std::collections::VecDeque;
use std::fs;
use std::time::{Duration, Instant};

use handbell::{
    App, CallError, Deadline, Drain, Engine, NodeId, Pending, Plan, Profile, RequestBuilder, TraceId, Waiting,
};
use handbell_measure::{Gone, Pace, SAMPLED, Slice, Subject, record};

use super::nodes::{self, ECHO, MARK_BYTES, MARKED, PASS, UNTOUCHED};
use crate::exit::{Exit, Problem};

/// Long enough for any host to come back.
const DEADLINE: Duration = Duration::from_secs(60);
const DRAIN: Duration = Duration::from_secs(5);
/// Buffers that may be held or written at once.
const BLOCKS: usize = 4;
const LEAST_ARENA: usize = 256 << 10;
/// Calls in the engine's process that share two readings of the clock.
const SHORT: u32 = 16;

impl From<Gone> for Problem {
    fn from(gone: Gone) -> Self {
        Self { exit: Exit::Start, message: gone.to_string() }
    }
}

/// How an engine is started for measuring.
#[derive(Clone)]
pub struct Manner {
    /// The plan.
    pub plan: Plan,
    /// Where it runs.
    pub profile: Profile,
    /// How both sides wait.
    pub waiting: Waiting,
    /// The worker's processor.
    pub pin: Option<usize>,
    /// The largest payload.
    pub payload: usize,
    /// Whether somebody listens to events, failures and output.
    pub listeners: bool,
}

impl Manner {
    /// One worker at this processor, as by default otherwise.
    pub fn new(waiting: Waiting, pin: Option<usize>) -> Self {
        let (plan, profile) = (nodes::plan(1), Profile::ProcessSupervisor);
        Self { plan, profile, waiting, pin, payload: 64, listeners: false }
    }
}

/// An engine that runs while it is measured. Workers that spin would disturb the others, so these are ended in
/// between; all others sleep.
pub struct Host<'a> {
    app: &'a App,
    manner: Manner,
    engine: Option<Engine>,
    next_id: u128,
}

impl<'a> Host<'a> {
    /// Not started yet.
    pub fn new(app: &'a App, manner: Manner) -> Self {
        Self { app, manner, engine: None, next_id: 1 }
    }

    fn wake(&mut self) -> Result<(), Problem> {
        if self.engine.is_some() {
            return Ok(());
        }
        let Manner { plan, profile, waiting, pin, payload, listeners } = self.manner.clone();
        let arena = (BLOCKS * payload).next_power_of_two().max(LEAST_ARENA);
        let mut builder = self.app.engine(plan).profile(profile).waiting(waiting);
        builder = builder.request_arena_bytes(arena).reply_arena_bytes(arena);
        if let Some(processor) = pin {
            builder = builder.pin(processor);
        }
        if listeners {
            builder = builder.on_worker_event(|_| {}).on_failure(|_| {}).on_output(|_| {});
        }
        let refused = |error| Problem { exit: Exit::Start, message: format!("start refused: {error}") };
        self.engine = Some(builder.start().map_err(refused)?);
        Ok(())
    }

    /// What one worker of many takes that does nothing: its lane, and pages of its own. None where the system does
    /// not tell.
    pub fn memory_per_worker_bytes(&mut self) -> Result<Option<u64>, Problem> {
        self.wake()?;
        let summary = self.engine().summary();
        let own = summary.worker_pids.iter().map(|pid| own_bytes(*pid)).sum::<Option<u64>>();
        let workers = summary.worker_pids.len().max(1) as u64;
        Ok(own.map(|own| (own + summary.mapped_bytes as u64) / workers))
    }

    fn rest(&mut self) {
        if self.manner.waiting == Waiting::Spin && self.manner.profile == Profile::ProcessSupervisor {
            self.stop();
        }
    }

    fn stop(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.stop(Drain::within(DRAIN));
        }
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("it has been woken")
    }

    fn node(&self, name: &str) -> NodeId {
        self.engine().node(name).expect("the plan has it")
    }

    fn next_id(&mut self) -> TraceId {
        self.next_id += 1;
        TraceId::from(self.next_id)
    }
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The share of a process in all memory but shared memory.
fn own_bytes(pid: i32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let kib = |name: &str| -> Option<u64> {
        let line = rollup.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Some((kib("Pss_Anon:")? + kib("Pss_File:")?) * 1024)
}

fn request(engine: &Engine, node: NodeId, id: TraceId) -> RequestBuilder<'_> {
    engine.request(node).trace_id(id).deadline(Deadline::after(DEADLINE))
}

fn wrong(what: &str) -> Problem {
    Problem::field(Exit::Difference, "reply", what, "must be what the request asked for")
}

/// A short payload by `call`, and back.
pub struct Calls<'a> {
    /// Where.
    pub host: Host<'a>,
    /// How long nothing is done before each.
    pub quiet: Duration,
    /// How often a sample repeats it.
    times: u32,
    sent: [u8; 64],
}

impl<'a> Calls<'a> {
    /// One after the other.
    pub fn new(app: &'a App, manner: Manner) -> Self {
        let times = if manner.profile == Profile::Memory { SHORT } else { 1 };
        Self { host: Host::new(app, manner), quiet: Duration::ZERO, times, sent: [7; 64] }
    }

    /// Each after so much quiet.
    pub fn after(quiet: Duration, app: &'a App, manner: Manner) -> Self {
        Self { quiet, ..Self::new(app, manner) }
    }
}

impl Subject<Problem> for Calls<'_> {
    fn wake(&mut self) -> Result<(), Problem> {
        self.host.wake()
    }

    fn slice(&mut self, time: Duration) -> Result<Slice, Problem> {
        let node = self.host.node(ECHO);
        Slice::of(time, || {
            let id = self.host.next_id();
            self.sent[..16].copy_from_slice(&self.host.next_id.to_le_bytes());
            if !self.quiet.is_zero() {
                std::thread::sleep(self.quiet);
            }
            let engine = self.host.engine();
            let begin = Instant::now();
            let mut reply = request(engine, node, id).call(&self.sent);
            for _ in 1..self.times {
                reply = request(engine, node, id).call(&self.sent);
            }
            let took = begin.elapsed();
            let reply = reply?;
            if *reply.bytes() != self.sent || reply.trace_id() != id {
                return Err(wrong("other bytes, or another id"));
            }
            Ok(took / self.times)
        })
    }

    fn rest(&mut self) {
        self.host.rest();
    }
}

/// A payload written in place, copied by the worker, and read.
pub struct Bulk<'a> {
    host: Host<'a>,
    node: &'static str,
    sent: Vec<u8>,
    taken: Vec<u8>,
}

impl<'a> Bulk<'a> {
    /// There and back.
    pub fn echoed(app: &'a App, manner: Manner) -> Self {
        let (sent, taken) = (vec![7; manner.payload], vec![0; manner.payload]);
        Self { host: Host::new(app, manner), node: ECHO, sent, taken }
    }

    /// Through two groups; the second reads all of it, and says little.
    pub fn passed_on(app: &'a App, manner: Manner) -> Self {
        let (sent, taken) = (vec![7; manner.payload], vec![0; MARK_BYTES]);
        Self { host: Host::new(app, manner), node: PASS, sent, taken }
    }
}

impl Subject<Problem> for Bulk<'_> {
    fn wake(&mut self) -> Result<(), Problem> {
        self.host.wake()
    }

    fn slice(&mut self, time: Duration) -> Result<Slice, Problem> {
        let node = self.host.node(self.node);
        Slice::of(time, || {
            let id = self.host.next_id();
            self.sent[..MARK_BYTES].copy_from_slice(&(self.host.next_id as u64).to_le_bytes());
            let engine = self.host.engine();
            let begin = Instant::now();
            let mut loan = request(engine, node, id).loan(self.sent.len()).map_err(CallError::from)?;
            loan.copy_from_slice(&self.sent);
            let reply = loan.call()?;
            let is_long = reply.len() == self.taken.len();
            if is_long {
                reply.copy_to(0, &mut self.taken);
            }
            let took = begin.elapsed();
            if !is_long || self.taken != self.sent[..self.taken.len()] || reply.trace_id() != id {
                return Err(wrong("other bytes, or another id"));
            }
            Ok(took)
        })
    }

    fn rest(&mut self) {
        self.host.rest();
    }
}

/// A loan, and a reply as long, of which nobody touches more than the first bytes, if those.
pub struct Loans<'a> {
    host: Host<'a>,
    /// Whether the first bytes are written and read, on both sides.
    marked: bool,
}

impl<'a> Loans<'a> {
    /// Nobody touches any.
    pub fn untouched(app: &'a App, manner: Manner) -> Self {
        Self { host: Host::new(app, manner), marked: false }
    }

    /// The first bytes are touched.
    pub fn marked(app: &'a App, manner: Manner) -> Self {
        Self { host: Host::new(app, manner), marked: true }
    }
}

impl Subject<Problem> for Loans<'_> {
    fn wake(&mut self) -> Result<(), Problem> {
        self.host.wake()
    }

    fn slice(&mut self, time: Duration) -> Result<Slice, Problem> {
        let node = self.host.node(if self.marked { MARKED } else { UNTOUCHED });
        let len = self.host.manner.payload;
        Slice::of(time, || {
            let id = self.host.next_id();
            let sent = (self.host.next_id as u64).to_le_bytes();
            let mut taken = sent;
            let engine = self.host.engine();
            let begin = Instant::now();
            let mut loan = request(engine, node, id).loan(len).map_err(CallError::from)?;
            if self.marked {
                loan[..MARK_BYTES].copy_from_slice(&sent);
            }
            let reply = loan.call()?;
            if self.marked {
                reply.copy_to(0, &mut taken);
            }
            let took = begin.elapsed();
            if taken != sent || reply.len() != len || reply.trace_id() != id {
                return Err(wrong("other bytes, or another id"));
            }
            Ok(took)
        })
    }

    fn rest(&mut self) {
        self.host.rest();
    }
}

/// Short payloads with so many in flight.
pub struct Pipelined<'a> {
    host: Host<'a>,
    window: usize,
}

impl<'a> Pipelined<'a> {
    /// With this window.
    pub fn new(app: &'a App, manner: Manner, window: usize) -> Self {
        Self { host: Host::new(app, manner), window }
    }
}

impl Subject<Problem> for Pipelined<'_> {
    fn wake(&mut self) -> Result<(), Problem> {
        self.host.wake()
    }

    fn slice(&mut self, time: Duration) -> Result<Slice, Problem> {
        let node = self.host.node(ECHO);
        let mut slice = Slice::empty();
        let mut flights: VecDeque<(Pending, u64, Option<Instant>)> = VecDeque::with_capacity(self.window);
        let mut sent = [7; 64];
        let mut number = 0_u64;
        let (begin, mut pace) = (Instant::now(), Pace::start(16 * SAMPLED));
        loop {
            while flights.len() < self.window {
                let begun = number.is_multiple_of(SAMPLED).then(Instant::now);
                let id = self.host.next_id();
                sent[..8].copy_from_slice(&number.to_le_bytes());
                let pending =
                    request(self.host.engine(), node, id).dispatch(&sent).map_err(CallError::from)?;
                flights.push_back((pending, number, begun));
                number += 1;
            }
            let (pending, expected, begun) = flights.pop_front().expect("the window is full");
            let id = pending.trace_id();
            let reply = pending.wait()?;
            let bytes = reply.bytes();
            if bytes.len() != sent.len() || bytes[..8] != expected.to_le_bytes() || reply.trace_id() != id {
                return Err(wrong("other bytes, or another id"));
            }
            if let Some(begun) = begun {
                let now = Instant::now();
                record(&mut slice.latency, now - begun);
                pace.note(expected + 1, now);
                if now - begin >= time {
                    slice.steady_per_s = pace.per_s();
                    (slice.count, slice.took) = (expected + 1, now - begin);
                    return flights
                        .into_iter()
                        .try_for_each(|(pending, ..)| drained(pending))
                        .map(|()| slice);
                }
            }
        }
    }

    fn rest(&mut self) {
        self.host.rest();
    }
}

fn drained(pending: Pending) -> Result<(), Problem> {
    Ok(pending.wait().map(drop)?)
}

/// Threads that call one worker side by side.
pub struct Threads<'a> {
    host: Host<'a>,
    threads: usize,
}

impl<'a> Threads<'a> {
    /// So many.
    pub fn new(app: &'a App, manner: Manner, threads: usize) -> Self {
        Self { host: Host::new(app, manner), threads }
    }
}

impl Subject<Problem> for Threads<'_> {
    fn wake(&mut self) -> Result<(), Problem> {
        self.host.wake()
    }

    fn slice(&mut self, time: Duration) -> Result<Slice, Problem> {
        let node = self.host.node(ECHO);
        let engine = self.host.engine();
        let one = |thread: usize| -> Result<Slice, Problem> {
            let mut sent = [7; 64];
            let mut number = 0_u64;
            Slice::of(time, || {
                number += 1;
                sent[..8].copy_from_slice(&number.to_le_bytes());
                // In no other thread, and in no other slice at the same time.
                let id = TraceId::from(u128::from(number) | (thread as u128 + 1) << 64);
                let begin = Instant::now();
                let reply = request(engine, node, id).call(&sent);
                let took = begin.elapsed();
                let reply = reply?;
                if *reply.bytes() != sent || reply.trace_id() != id {
                    return Err(wrong("other bytes, or another id"));
                }
                Ok(took)
            })
        };
        let slices = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads).map(|thread| scope.spawn(move || one(thread))).collect();
            let joined = threads.into_iter().map(|thread| thread.join().expect("a thread panicked"));
            joined.collect::<Result<Vec<_>, _>>()
        })?;
        let mut whole = Slice::empty();
        for slice in &slices {
            // Histograms that grow by themselves can always be added.
            let _ = whole.latency.add(&slice.latency);
            whole.count += slice.count;
        }
        whole.took = slices.iter().map(|slice| slice.took).max().unwrap_or_default();
        let counts = slices.iter().map(|slice| slice.count);
        let (least, most) = (counts.clone().min().unwrap_or(0), counts.max().unwrap_or(1));
        whole.evenness = Some(least as f64 / most.max(1) as f64);
        Ok(whole)
    }

    fn rest(&mut self) {
        self.host.rest();
    }
}
