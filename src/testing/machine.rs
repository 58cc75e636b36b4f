//! The engine's books by hand: the correlation table with every lane, hop and life of a worker, and the order of
//! runs. Frames, calls and readings of the clock go in; no process, no ring, no clock.

use std::sync::Arc;

use super::{CELL_BYTES, End, Judged, NotRegistered, Waiter, status};
use crate::base::failure::{Cause, Rule};
use crate::base::ids::{GroupId, Identity, Ticket, TraceId};
use crate::base::sync::{AtomicU64, Ordering, fence};
use crate::engine::correlation::{
    Admission, Aftermath, Correlation, EndedRoot, Outcome, Passage, Phase, Refused, Sizes, Source, Verdict,
    Way,
};
use crate::engine::order::{Order, Reach};
use crate::engine::{Audit, Counters, Event};
use crate::wire::envelope::Envelope;

pub use crate::lane::LastMark;

/// Sizes of the tables.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    /// Places for requests.
    pub roots: usize,
    /// Open branches of one request.
    pub max_branches: usize,
    /// Hops that are remembered.
    pub completed_history: usize,
    /// Lanes.
    pub lanes: usize,
}

/// One life of the worker behind a lane: who frames come from, and who hops are asked of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Peer {
    /// Its lane.
    pub lane: u16,
    /// Which life, from 1.
    pub incarnation: u64,
}

impl Peer {
    fn source(self) -> Source {
        Source { lane: self.lane, incarnation: self.incarnation }
    }
}

impl From<Source> for Peer {
    fn from(source: Source) -> Self {
        Self { lane: source.lane, incarnation: source.incarnation }
    }
}

/// A request on its way in.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Without a trace id one is made.
    pub identity: Identity,
    /// 0 = none.
    pub deadline_ns: u64,
    /// The lane that counts it.
    pub home: u16,
    /// Whom its first hop is asked of, if that is known.
    pub target: Option<Peer>,
    /// The group of its first hop.
    pub group: u16,
}

/// What became of an output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Passed {
    /// It goes on as the hop of this ticket.
    On(u64),
    /// It ended its request.
    Ended,
    /// It was dropped.
    Dropped,
    /// It is impossible.
    Broke(Rule),
}

/// An end by something other than a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ending {
    /// Of the request.
    pub trace_id: TraceId,
    /// Where frames of it stand that are not wanted any more.
    pub frames: Vec<(Peer, u64)>,
}

/// How a waiter ended, and what is said of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Taken {
    /// How.
    pub end: End,
    /// The group that it speaks of.
    pub group: u16,
    /// Whether the worker had begun.
    pub started: bool,
}

/// The books.
pub struct Machine {
    correlation: Correlation,
}

/// Why no answer of a waiter is kept.
const NO_RUN: &str = "the order of runs stands beside the table here: no waiter ends with its last branch";

impl Machine {
    /// Empty ones.
    pub fn new(tables: Tables) -> Self {
        let Tables { roots, max_branches, completed_history, lanes } = tables;
        let sizes = Sizes { roots, max_branches, completed_history, lanes, inline_bytes: CELL_BYTES };
        Self { correlation: Correlation::new(sizes, 1) }
    }

    // ---- calls ----

    /// Registers a waiter.
    pub fn register(&self, entry: &Entry) -> Result<Waiter, NotRegistered> {
        let admission = Admission {
            identity: entry.identity,
            deadline_ns: entry.deadline_ns,
            home: entry.home,
            target: entry.target.map(Peer::source),
            group: GroupId(entry.group),
        };
        let admitted = self.correlation.register(&admission).map_err(|refused| match refused {
            Refused::Full => NotRegistered::Full,
            Refused::TraceInFlight => NotRegistered::TraceInFlight,
        })?;
        fence(Ordering::SeqCst);
        self.correlation.published(admitted.root, entry.deadline_ns);
        let identity = Identity { trace_id: admitted.trace_id, ..entry.identity };
        Ok(Waiter { admitted, identity })
    }

    /// Takes a registration back.
    pub fn withdraw(&self, waiter: &Waiter) {
        self.correlation.withdraw(waiter.admitted.root);
    }

    /// Notes where the frame of a hop stands that has its lane.
    pub fn placed(&self, ticket: u64, position: u64) {
        self.correlation.placed(Ticket(ticket), position);
    }

    /// Gives a hop its lane; false if its root has ended, and the hop is to be put down.
    pub fn assign(&self, waiter: &Waiter, ticket: u64, peer: Peer) -> bool {
        let branch = self.correlation.take_up(waiter.admitted.root, Ticket(ticket));
        branch.map(|branch| branch.assign(peer.source())).is_some()
    }

    /// Gives a hop its lane and its place there; false like [`Machine::assign`].
    pub fn send(&self, waiter: &Waiter, ticket: u64, peer: Peer, position: u64) -> bool {
        let branch = self.correlation.take_up(waiter.admitted.root, Ticket(ticket));
        let place = |branch: crate::engine::correlation::Branch<'_>| {
            branch.assign(peer.source());
            branch.place(position);
        };
        branch.map(place).is_some()
    }

    /// Forgets a hop of an ended root.
    pub fn put_down(&self, waiter: &Waiter, ticket: u64) {
        self.correlation.put_down(waiter.admitted.root, Ticket(ticket));
    }

    /// Takes a hop back from a dead worker, by the frame that it was sent; whether it may run again.
    pub fn take_back(&self, peer: Peer, frame: &Envelope) -> bool {
        let Some(root) = self.correlation.root_key(frame) else { return false };
        let Some(branch) = self.correlation.take_up(root, Ticket(frame.ticket)) else { return false };
        branch.take_back(peer.source())
    }

    /// The owner leaves; true if the waiter has ended, and has been forgotten by that.
    pub fn detach(&self, waiter: &Waiter) -> bool {
        let root = waiter.admitted.root;
        let has_ended = self.correlation.detach(root);
        if has_ended {
            self.correlation.free(root.index);
        }
        has_ended
    }

    /// How the waiter ended, if it has; its place is free then. Call it again only after `None`.
    pub fn take(&self, waiter: &Waiter) -> Option<Taken> {
        let key = waiter.admitted.root;
        if self.correlation.phase(key) != Phase::Ended {
            return None;
        }
        let bytes = |len: u32| {
            let words = self.correlation.cell(key.index).iter();
            let bytes = words.flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes());
            bytes.take(len as usize).collect()
        };
        let (outcome, group, started) = self.correlation.outcome(key.index);
        let end = match outcome {
            Outcome::Inline { len } => End::Success(bytes(len)),
            Outcome::Error { len } => End::Error(bytes(len)),
            Outcome::Failed(cause) => End::Failed(cause),
            Outcome::Cancelled => End::Cancelled,
            Outcome::Block { .. } | Outcome::Heap => unreachable!("frames of this table are inline"),
        };
        self.correlation.free(key.index);
        Some(Taken { end, group: group.0, started })
    }

    /// Frees the place of a waiter that has ended, without a look at how.
    pub fn forget(&self, waiter: &Waiter) {
        self.correlation.free(waiter.admitted.root.index);
    }

    // ---- frames ----

    /// Judges a terminal or the end of a branch, with these payload bytes.
    pub fn frame(
        &self,
        peer: Peer,
        envelope: &Envelope,
        last: LastMark,
        payload: &[u8],
        now_ns: u64,
    ) -> Judged {
        let len = payload.len().min(CELL_BYTES);
        let outcome = match envelope.status {
            status::ERROR => Outcome::Error { len: len as u32 },
            _ => Outcome::Inline { len: len as u32 },
        };
        let fill = |cell: &[AtomicU64]| {
            for (word, bytes) in cell.iter().zip(payload[..len].chunks(8)) {
                let mut value = [0; 8];
                value[..bytes.len()].copy_from_slice(bytes);
                word.store(u64::from_le_bytes(value), Ordering::Relaxed);
            }
        };
        match self.correlation.frame(peer.source(), envelope, last, outcome, now_ns, fill) {
            Ok(Verdict::Ended(index, aftermath)) => {
                self.forget_detached(index, aftermath);
                Judged::Ended
            }
            Ok(Verdict::Dropped) => Judged::Dropped,
            Ok(Verdict::Candidate(_) | Verdict::Due(_)) => unreachable!("{NO_RUN}"),
            Err(rule) => Judged::Broke(rule),
        }
    }

    /// Judges an output from one group to another, over an edge with so many hops at most (0 = any number).
    pub fn output(
        &self,
        peer: Peer,
        envelope: &Envelope,
        last: LastMark,
        groups: (u16, u16),
        max_hops: u16,
        now_ns: u64,
    ) -> Passed {
        let way = Way { from: GroupId(groups.0), to: GroupId(groups.1), max_hops };
        match self.correlation.output(peer.source(), envelope, last, way, now_ns) {
            Ok(Passage::On(branch)) => Passed::On(branch.ticket.0),
            Ok(Passage::Ended(index, aftermath)) => {
                self.forget_detached(index, aftermath);
                Passed::Ended
            }
            Ok(Passage::Dropped) => Passed::Dropped,
            Ok(Passage::Due(_)) => unreachable!("{NO_RUN}"),
            Err(rule) => Passed::Broke(rule),
        }
    }

    /// Nobody takes what a detached waiter ended with.
    fn forget_detached(&self, index: u32, aftermath: Aftermath) {
        if aftermath.detached {
            self.correlation.free(index);
        }
    }

    // ---- other ends ----

    /// Ends one waiter: cancelled, or by its deadline.
    pub fn end(
        &self,
        waiter: &Waiter,
        cause: Option<Cause>,
        now_ns: u64,
        started: impl Fn(Peer, u64) -> bool,
    ) -> Option<Ending> {
        let outcome = cause.map_or(Outcome::Cancelled, Outcome::Failed);
        let started = |source: Source, position| started(source.into(), position);
        let ended = self.correlation.end(waiter.admitted.root, None, outcome, now_ns, started);
        ended.map(|ended| self.ending(ended))
    }

    /// Ends what is due, in order.
    pub fn expire(&self, now_ns: u64, started: impl Fn(Peer, u64) -> bool) -> Vec<Ending> {
        self.endings(self.correlation.expire(now_ns, |source, position| started(source.into(), position)))
    }

    /// Ends what a dead worker owes, in order; with a successor, only what has been sent to it.
    pub fn end_all_of(
        &self,
        peer: Peer,
        has_successor: bool,
        cause: Cause,
        now_ns: u64,
        started: impl Fn(Peer, u64) -> bool,
    ) -> Vec<Ending> {
        let started = |source: Source, position| started(source.into(), position);
        self.endings(self.correlation.end_all_of(peer.source(), has_successor, cause, now_ns, started))
    }

    /// Ends everything, in order.
    pub fn end_all(&self, cause: Cause, now_ns: u64, started: impl Fn(Peer, u64) -> bool) -> Vec<Ending> {
        let started = |source: Source, position| started(source.into(), position);
        self.endings(self.correlation.end_all(cause, now_ns, started))
    }

    fn endings(&self, ended: Vec<EndedRoot>) -> Vec<Ending> {
        ended.into_iter().map(|ended| self.ending(ended)).collect()
    }

    fn ending(&self, ended: EndedRoot) -> Ending {
        let trace_id = self.correlation.identity(ended.index).trace_id;
        self.forget_detached(ended.index, ended.aftermath);
        let frames = ended.frames.into_iter().map(|(source, position)| (source.into(), position)).collect();
        Ending { trace_id, frames }
    }

    // ---- looks ----

    /// A time before which no waiter is due; none if there is no deadline.
    pub fn earliest_deadline(&self) -> Option<u64> {
        self.correlation.earliest_deadline()
    }

    /// The tables, counted.
    pub fn audit(&self) -> Audit {
        self.correlation.audit()
    }

    /// The counters, by lane.
    pub fn counters(&self) -> Vec<Counters> {
        self.correlation.lane_counters().collect()
    }

    /// The events.
    pub fn events(&self) -> Vec<Event> {
        self.correlation.events()
    }
}

/// The entrances of a plan's groups for the frames of one run. Node and group have the same number.
pub struct Entrances {
    order: Order<u64>,
}

impl Entrances {
    /// Of a plan, by group: the groups that a frame executing there can still enter.
    pub fn new(reach: &[Vec<u16>]) -> Self {
        let groups = (0..reach.len() as u16).collect();
        Self { order: Order::new(Arc::new(Reach::new(groups, reach.to_vec()))) }
    }

    /// Holds the first frame of the next input.
    pub fn input(&mut self, input: u64, ticket: u64, group: u16) {
        self.order.input(input, ticket, group, ticket);
    }

    /// Holds an output of the frame `parent`; false if that does not execute.
    pub fn output(&mut self, parent: u64, ticket: u64, group: u16) -> bool {
        self.order.output(parent, ticket, group, ticket).is_ok()
    }

    /// A frame that executes emits nothing more.
    pub fn end(&mut self, ticket: u64) {
        self.order.end(ticket);
    }

    /// All frames of an input leave; those that were held.
    pub fn end_input(&mut self, input: u64) -> Vec<u64> {
        self.order.end_input(input)
    }

    /// A frame that may enter now.
    pub fn enter(&mut self) -> Option<u64> {
        self.order.next()
    }
}
