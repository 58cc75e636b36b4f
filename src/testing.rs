//! For tests only: what the public way rightly keeps shut.
//!
//! [`Machine`] is the engine's books with time as an argument, [`Table`] their simplest form; [`Births`] starts the
//! workers of a plan without an engine; [`by_hand`] goes through a birth step by step, at either side;
//! [`serve_raw_if_worker`] makes a worker that is born like any other and may then write what it likes into its
//! lane; [`doorbell`] is the control connection by itself; [`parts`] has what benches measure; the rest addresses nodes
//! that an honest plan does not have. Nothing in here is covered by the promise of stable interfaces.

mod births;
pub mod by_hand;
mod machine;
pub mod parts;

pub use births::{Births, Workers};
pub use machine::{Ending, Entry, LastMark, Machine, Passed, Peer, Tables, Taken};

pub use crate::wire::envelope::{Envelope, flags, kind, status};

use crate::app::App;
use crate::base::failure::{Cause, ExecutionClass, Rule};
use crate::base::ids::{Identity, NodeId, Ticket, TraceId};
use crate::engine::correlation::Admitted;
use crate::engine::{Audit, CallError, Counters, Engine, EngineBuilder, Event, Loan, Reply};
use crate::lane::{Incoming, WorkerEnd};
use crate::shm::view::{Memory, View};
use crate::wire::error;
use crate::wire::geometry::Geometry;
use crate::worker::{self, Line};

// ---- nodes that an honest plan does not have ----

/// The node of this number, whether the plan has it or not.
pub fn node_by_number(number: u16) -> NodeId {
    NodeId(number)
}

/// Adds a group to the plan that nobody serves: requests to its nodes reach the worker of the first group.
pub fn with_unserved_group(mut builder: EngineBuilder, name: &str, nodes: &[&str]) -> EngineBuilder {
    builder.unserved.push((name.into(), nodes.iter().map(|node| (*node).into()).collect()));
    builder
}

/// Frames sent to the worker of a lane and frames read from it; `None` for a group that runs in the engine.
/// Lanes are counted from 0, in the plan's order of groups and of processes within.
pub fn ring_positions(engine: &Engine, lane: usize) -> Option<(u64, u64)> {
    engine.ring_positions(lane)
}

/// Frames that a lane has been sent, or that wait for room there, and whose end has not been read.
pub fn open_frames(engine: &Engine, lane: usize) -> u64 {
    engine.open_frames(lane)
}

/// Requests that nobody need be waiting for, and those of them that somebody is to be told of, or that nobody will take.
/// The engine's thread looks after them; without any it can rest.
pub fn unattended(engine: &Engine) -> (u64, u64) {
    engine.unattended()
}

/// Whether the first worker has begun the request that was sent to it as number `position`, counted from 0.
pub fn has_begun(engine: &Engine, position: u64) -> bool {
    engine.has_begun(0, position)
}

/// [`has_begun`] of any lane, also of a group that runs in the engine.
pub fn has_begun_at(engine: &Engine, lane: u16, position: u64) -> bool {
    engine.has_begun(lane, position)
}

/// Whether a stop has come so far that the workers have been told to end.
pub fn is_stopping_workers(engine: &Engine) -> bool {
    engine.is_stopping_workers()
}

/// Messages that the first worker has said on its doorbell, HELLO included.
pub fn messages_heard(engine: &Engine) -> u64 {
    engine.messages_heard()
}

/// How many callers sleep at the lane of a worker, or are about to.
pub fn asleep(engine: &Engine, lane: u16) -> u32 {
    engine.asleep(lane)
}

/// [`Loan::call`] by the short way, with `between` after the sending and before the waiting: where a thread may lose
/// its processor. Panics where the short way is not open: something waits in front of the lane, or there is no place.
pub fn call_in_two(loan: Loan, between: impl FnOnce()) -> Result<Reply, CallError> {
    loan.call_in_two(between)
}

/// How many sleeps of this process nobody has ended before their limit or deadline: of owners, of those who wait for
/// room, and in a worker of it. One that is woken as it should be adds none. Where the kernel has no `futex_waitv`,
/// sleepers look by themselves often, and only those are counted that sleep on one word.
pub fn slept_out() -> u64 {
    crate::os::futex::slept_out()
}

// ---- the doorbell ----

/// The doorbell by itself: both ends, with time as an argument.
pub mod doorbell {
    pub use crate::auth::{CREDENTIALS_BYTES, Credentials, Life, SECRET_BYTES, Secret};
    pub use crate::doorbell::{
        CallError, Caller, Connection, Ended, EngineSession, EngineTerms, Listener, Order, Reject, Rejects,
        Report, Session, Timing, Turn, WorkerSession, WorkerTerms,
    };
    pub use crate::os::clock::monotonic_ns;
    pub use crate::os::poll::Poller;
    pub use crate::os::random;
    pub use crate::plan::loopback::Loopback;
}

// ---- a lying worker ----

/// In a process that an engine started: is born like any worker, hands `lie` its end of the lane, and ends
/// when that returns. Elsewhere: does nothing.
pub fn serve_raw_if_worker(app: &App, lie: impl FnOnce(&mut RawWorker)) {
    if worker::is_worker() {
        worker::run_with(app.registry(), |end, _executor, line| {
            let geometry = end.geometry();
            lie(&mut RawWorker { end, geometry, line: line.clone() });
        });
    }
}

/// A worker's end of a lane, by hand.
pub struct RawWorker {
    end: WorkerEnd,
    geometry: Geometry,
    line: Line,
}

/// A request as a [`RawWorker`] receives it.
#[derive(Clone)]
pub struct RawRequest {
    /// Its place in the request ring.
    pub position: u64,
    /// Its envelope.
    pub envelope: Envelope,
    /// Its payload.
    pub payload: Vec<u8>,
    incoming: Incoming,
}

impl RawRequest {
    /// The envelope of an honest answer: a terminal, the only one, with `len` bytes behind the envelope.
    pub fn answer(&self, len: usize) -> Envelope {
        Envelope {
            payload_len: len as u32,
            payload_at: 0,
            deadline_ns: 0,
            source: self.envelope.target,
            kind: kind::TERMINAL,
            status: status::SUCCESS,
            flags: flags::LAST,
            ..self.envelope
        }
    }
}

impl RawWorker {
    /// Waits for the next request; `None` when told to stop.
    pub fn receive(&mut self) -> Option<RawRequest> {
        let incoming = self.end.receive()?;
        let payload = self.end.payload(self.end.request_segment(), &incoming)?.to_vec();
        Some(RawRequest { position: incoming.position, envelope: incoming.envelope, payload, incoming })
    }

    /// Says that execution begins, as an honest worker does.
    pub fn begin(&self, request: &RawRequest) {
        self.end.begin(&request.incoming);
    }

    /// Whether the engine says that the request is not wanted any more.
    pub fn is_cancelled(&self, request: &RawRequest) -> bool {
        let at = self.end.cancelled_at(&request.incoming);
        self.end.request_segment().load(at) > request.position
    }

    /// Sends this envelope as it is, with `bytes` behind it. Waits for a slot; false when told to stop meanwhile.
    pub fn send(&mut self, envelope: Envelope, bytes: &[u8]) -> bool {
        self.end.send_raw(envelope, bytes).is_ok()
    }

    /// Answers honestly.
    pub fn reply(&mut self, request: &RawRequest, bytes: &[u8]) -> bool {
        self.send(request.answer(bytes.len()), bytes)
    }

    /// Inline payload bytes of a slot.
    pub fn inline_bytes(&self) -> usize {
        self.geometry.inline_bytes()
    }

    /// Bytes of the reply arena.
    pub fn arena_bytes(&self) -> usize {
        self.geometry.reply_arena_bytes
    }

    /// Offset in the reply segment of the commit word of the reply `ahead` places behind the next one.
    pub fn commit_word_at(&self, ahead: u64) -> usize {
        self.end.reply_slot_at(self.end.head() + ahead)
    }

    /// Takes leave on the doorbell, and goes on.
    pub fn leave(&self) {
        self.line.leave();
    }

    /// Says nothing on the doorbell any more, hears nothing there, and goes on.
    pub fn mute(&self) {
        self.line.mute();
    }

    /// For writing words into the reply segment, from any thread.
    pub fn poker(&self) -> Poker {
        Poker { view: self.end.reply_segment().clone() }
    }
}

/// Writes words into a reply segment.
pub struct Poker {
    view: View,
}

impl Poker {
    /// Bytes of the segment.
    pub fn bytes(&self) -> usize {
        self.view.bytes()
    }

    /// Stores a word.
    pub fn poke(&self, at: usize, word: u64) {
        self.view.store_release(at, word);
    }
}

/// The payload of an error terminal.
pub fn error_payload(class: ExecutionClass, code: u32, text: &str) -> Vec<u8> {
    let mut payload = [0; error::MAX_BYTES];
    let len = error::encode(class, code, text, error::MAX_BYTES, &mut payload);
    payload[..len].to_vec()
}

// ---- the correlation table ----

/// The correlation table as a state machine: one lane, one incarnation, time as an argument. [`Machine`] has more
/// of both.
pub struct Table {
    machine: Machine,
}

/// A registered waiter.
#[derive(Clone, Copy, Debug)]
pub struct Waiter {
    admitted: Admitted,
    identity: Identity,
}

impl Waiter {
    /// Its id.
    pub fn trace_id(&self) -> TraceId {
        self.identity.trace_id
    }

    /// The ticket of its hop.
    pub fn ticket(&self) -> u64 {
        self.admitted.ticket.0
    }

    /// Slot of its hop.
    pub fn slot(&self) -> u32 {
        self.admitted.ticket.slot()
    }

    /// The envelope of an honest terminal.
    pub fn terminal(&self) -> Envelope {
        Envelope {
            trace_id: self.identity.trace_id.to_words(),
            ticket: self.ticket(),
            reply_to: self.identity.reply_to,
            run: self.identity.run,
            scenario: self.identity.scenario,
            kind: kind::TERMINAL,
            ..Envelope::default()
        }
    }

    /// The envelope of the end of its branch.
    pub fn done(&self) -> Envelope {
        Envelope { kind: kind::DONE, flags: flags::LAST, ..self.terminal() }
    }
}

/// A ticket's words: slot and generation.
pub fn ticket(slot: u32, generation: u64) -> u64 {
    Ticket::new(slot, generation).0
}

/// Why a waiter is not registered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotRegistered {
    /// The table is full.
    Full,
    /// The id is in flight.
    TraceInFlight,
}

/// How a waiter ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// With a success terminal, or without a terminal when its last branch ended.
    Success(Vec<u8>),
    /// With an error terminal.
    Error(Vec<u8>),
    /// Without a terminal.
    Failed(Cause),
    /// It was cancelled.
    Cancelled,
}

/// What became of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Judged {
    /// It ended a waiter.
    Ended,
    /// It was dropped, or ended nothing.
    Dropped,
    /// It is impossible.
    Broke(Rule),
}

const PEER: Peer = Peer { lane: 0, incarnation: 1 };
const CELL_BYTES: usize = 192;

impl Table {
    /// A table with so many places, branches and remembered requests.
    pub fn new(roots: usize, max_branches: usize, completed_history: usize) -> Self {
        Self { machine: Machine::new(Tables { roots, max_branches, completed_history, lanes: 1 }) }
    }

    /// Registers a waiter; a deadline of 0 is none.
    pub fn register(&self, identity: Identity, deadline_ns: u64) -> Result<Waiter, NotRegistered> {
        self.machine.register(&Entry { identity, deadline_ns, home: 0, target: Some(PEER), group: 0 })
    }

    /// Judges a frame with these payload bytes; its LAST flag counts as in order.
    pub fn frame(&self, envelope: &Envelope, payload: &[u8], now_ns: u64) -> Judged {
        let last = if envelope.flags & flags::LAST == 0 { LastMark::No } else { LastMark::Ended };
        self.machine.frame(PEER, envelope, last, payload, now_ns)
    }

    /// Gives a waiter up; whether that ended it.
    pub fn cancel(&self, waiter: &Waiter, now_ns: u64) -> bool {
        self.machine.end(waiter, None, now_ns, |_, _| false).is_some()
    }

    /// Ends what is due; the ids in the order in which they ended.
    pub fn expire(&self, now_ns: u64) -> Vec<TraceId> {
        ids(self.machine.expire(now_ns, |_, _| false))
    }

    /// Ends everything; the ids in the order in which they ended.
    pub fn end_all(&self, cause: Cause, now_ns: u64) -> Vec<TraceId> {
        ids(self.machine.end_all_of(PEER, false, cause, now_ns, |_, _| false))
    }

    /// How the waiter ended, if it has; its place is free then. Call it again only after `None`.
    pub fn take(&self, waiter: &Waiter) -> Option<End> {
        self.machine.take(waiter).map(|taken| taken.end)
    }

    /// The table, counted.
    pub fn audit(&self) -> Audit {
        self.machine.audit()
    }

    /// The counters.
    pub fn counters(&self) -> Counters {
        self.machine.counters()[0]
    }

    /// The events.
    pub fn events(&self) -> Vec<Event> {
        self.machine.events()
    }
}

fn ids(ended: Vec<Ending>) -> Vec<TraceId> {
    ended.into_iter().map(|ending| ending.trace_id).collect()
}
