//! The engine's books by hand: the correlation table with every lane, hop and life of a worker, and one run, with the
//! order of its frames and its kept answers. Frames, calls and readings of the clock go in; no process, no ring, no
//! clock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{CELL_BYTES, End, Judged, NotRegistered, Waiter, status};
use crate::base::failure::{Cause, Rule};
use crate::base::ids::{GroupId, Identity, Ticket, TraceId};
use crate::base::sync::{AtomicU64, Ordering, fence};
use crate::engine::answer::{Answer, Answered};
use crate::engine::correlation::{
    Admission, Aftermath, Branch, Correlation, EndedRoot, Outcome, Passage, Phase, Refused, RootKey, Sizes,
    Source, Verdict, Way,
};
use crate::engine::order::Reach;
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
    /// Ticket of a hop that had not ended, for its run.
    pub hop: Option<u64>,
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
    run: Mutex<Answered<u64>>,
    /// By lane.
    groups: Vec<GroupId>,
}

impl Machine {
    /// Empty ones, over a plan of one group.
    pub fn new(tables: Tables) -> Self {
        Self::over(tables, &[Vec::new()], &vec![0; tables.lanes])
    }

    /// Empty ones, over a plan: by group, the groups that a frame executing there can still enter; by lane, its group.
    /// Node and group have the same number.
    pub fn over(tables: Tables, reach: &[Vec<u16>], groups: &[u16]) -> Self {
        let Tables { roots, max_branches, completed_history, lanes } = tables;
        let sizes = Sizes { roots, max_branches, completed_history, lanes, inline_bytes: CELL_BYTES };
        let nodes = (0..reach.len() as u16).collect();
        Self {
            correlation: Correlation::new(sizes, 1),
            run: Mutex::new(Answered::new(Arc::new(Reach::new(nodes, reach.to_vec())))),
            groups: groups.iter().copied().map(GroupId).collect(),
        }
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
        self.correlation.published(admitted.root(), entry.deadline_ns);
        let identity = Identity { trace_id: admitted.trace_id, ..entry.identity };
        Ok(Waiter { admitted, identity })
    }

    /// Takes a registration back.
    pub fn withdraw(&self, waiter: &Waiter) {
        self.correlation.withdraw(waiter.admitted.root());
    }

    /// Notes where the frame of a hop stands that has its lane.
    pub fn placed(&self, ticket: u64, position: u64) {
        self.correlation.placed(Ticket(ticket), position);
    }

    /// Gives a hop its lane; false if its root has ended, and the hop is to be put down.
    pub fn assign(&self, waiter: &Waiter, ticket: u64, peer: Peer) -> bool {
        let branch = self.correlation.take_up(waiter.admitted.root(), Ticket(ticket));
        branch.map(|branch| branch.assign(peer.source())).is_some()
    }

    /// Gives a hop its lane and its place there; false like [`Machine::assign`].
    pub fn send(&self, waiter: &Waiter, ticket: u64, peer: Peer, position: u64) -> bool {
        let branch = self.correlation.take_up(waiter.admitted.root(), Ticket(ticket));
        let place = |branch: Branch<'_>| {
            branch.assign(peer.source());
            branch.place(position);
        };
        branch.map(place).is_some()
    }

    /// Forgets a hop of an ended root.
    pub fn put_down(&self, waiter: &Waiter, ticket: u64) {
        self.correlation.put_down(waiter.admitted.root(), Ticket(ticket));
    }

    /// Takes a hop back from a dead worker, by the frame that it was sent; whether it may run again.
    pub fn take_back(&self, peer: Peer, frame: &Envelope) -> bool {
        let Some(root) = self.correlation.root_key(frame) else { return false };
        let Some(branch) = self.correlation.take_up(root, Ticket(frame.ticket)) else { return false };
        branch.take_back(peer.source())
    }

    /// The owner leaves; true if the waiter has ended, and has been forgotten by that.
    pub fn detach(&self, waiter: &Waiter) -> bool {
        let root = waiter.admitted.root();
        let has_ended = self.correlation.detach(root);
        if has_ended {
            self.correlation.free(root.index);
        }
        has_ended
    }

    /// How the waiter ended, if it has; its place is free then. Call it again only after `None`.
    pub fn take(&self, waiter: &Waiter) -> Option<Taken> {
        let key = waiter.admitted.root();
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
        self.correlation.free(waiter.admitted.index);
    }

    // ---- frames ----

    /// Ends a waiter by a success that its owner has read: the last frame of its first hop. It is taken, and its place
    /// is free. False: nothing has happened.
    pub fn end_own(&self, waiter: &Waiter, peer: Peer, envelope: &Envelope, now_ns: u64) -> bool {
        let Waiter { admitted, identity } = waiter;
        let carried = (envelope.trace_id, envelope.tags_word());
        let has_ended = envelope.ticket == admitted.ticket.0
            && self.correlation.end_own(admitted, identity, peer.source(), carried, now_ns);
        if has_ended {
            self.correlation.free_own(admitted);
        }
        has_ended
    }

    /// Says that this frame is among the next ones, as who reads a lane does: the line of its id is fetched. Changes nothing.
    pub fn expect(&self, envelope: &Envelope) {
        self.correlation.expect(envelope.trace_id);
    }

    /// Judges a terminal or the end of a branch, with these payload bytes.
    pub fn frame(
        &self,
        peer: Peer,
        envelope: &Envelope,
        last: LastMark,
        payload: &[u8],
        now_ns: u64,
    ) -> Judged {
        let payload = &payload[..payload.len().min(CELL_BYTES)];
        let len = payload.len() as u32;
        let outcome = match envelope.status {
            status::ERROR => Outcome::Error { len },
            _ => Outcome::Inline { len },
        };
        let fill = |cell: &[AtomicU64]| fill(cell, payload);
        let source = peer.source();
        match self.correlation.frame(source, envelope, last, |_| outcome, now_ns, fill) {
            Ok(Verdict::Candidate(key)) => {
                let group = self.groups[usize::from(peer.lane)];
                let answer = Answer { source, group, envelope: *envelope, bytes: payload.into() };
                let is_kept = self.run().answer(envelope.ticket, answer).is_ok();
                let verdict = self.correlation.candidate(source, envelope, key, last, is_kept, now_ns);
                self.follow(verdict, envelope, now_ns)
            }
            Ok(verdict) => self.follow(verdict, envelope, now_ns),
            Err(rule) => Judged::Broke(rule),
        }
    }

    fn follow(&self, verdict: Verdict, envelope: &Envelope, now_ns: u64) -> Judged {
        match verdict {
            Verdict::Ended(index, aftermath) => {
                self.forget_detached(index, aftermath);
                Judged::Ended
            }
            Verdict::Dropped => Judged::Dropped,
            Verdict::Due(key) => self.end_with_answer(envelope, key, now_ns),
            Verdict::Candidate(_) => unreachable!("it has been kept"),
        }
    }

    /// The last branch of an input has ended, and there are answers.
    fn end_with_answer(&self, envelope: &Envelope, key: RootKey, now_ns: u64) -> Judged {
        let Some(answers) = self.run().take_answers(envelope.ticket) else {
            assert!(!self.correlation.is_open(key), "they are kept while it is open");
            return Judged::Dropped;
        };
        let (winner, bytes) = (answers.winner(CELL_BYTES), &answers.first.bytes);
        let fill = |cell: &[AtomicU64]| fill(cell, bytes);
        let verdict = self.correlation.end_with_answer(envelope, key, winner, &answers.tally, now_ns, fill);
        self.follow(verdict, envelope, now_ns)
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
            Ok(Passage::Due(key)) => match self.end_with_answer(envelope, key, now_ns) {
                Judged::Ended => Passed::Ended,
                Judged::Dropped | Judged::Broke(_) => Passed::Dropped,
            },
            Err(rule) => Passed::Broke(rule),
        }
    }

    /// Nobody takes what a detached waiter ended with.
    fn forget_detached(&self, index: u32, aftermath: Aftermath) {
        if aftermath.detached {
            self.correlation.free(index);
        }
    }

    // ---- the run ----

    fn run(&self) -> MutexGuard<'_, Answered<u64>> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a waiter, of whom nothing has been sent, the next input of the run, and holds its first frame.
    pub fn input(&self, input: u64, waiter: &Waiter, group: u16) {
        self.correlation.join_run(waiter.admitted.root());
        let ticket = waiter.ticket();
        self.run().order.input(input, ticket, group, ticket);
    }

    /// Holds an output of the frame `parent`; false if that does not execute.
    pub fn hold(&self, parent: u64, ticket: u64, group: u16) -> bool {
        self.run().order.output(parent, ticket, group, ticket).is_ok()
    }

    /// A frame that may enter now.
    pub fn enter(&self) -> Option<u64> {
        self.run().order.next()
    }

    /// A frame that executes emits nothing more.
    pub fn branch_ended(&self, ticket: u64) {
        self.run().order.end(ticket);
    }

    /// The input of a frame, as long as that executes or is held.
    pub fn input_of(&self, ticket: u64) -> Option<u64> {
        self.run().order.input_of(ticket)
    }

    /// An input that has ended leaves: its frames that were held. Its answers are late.
    pub fn leave(&self, input: u64, now_ns: u64) -> Vec<u64> {
        let (held, answers) = self.run().leave(input);
        if let Some(answers) = answers {
            self.correlation.too_late(&answers.tally, now_ns);
        }
        held
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
        let ended = self.correlation.end(waiter.admitted.root(), None, outcome, now_ns, started);
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
        Ending { trace_id, frames, hop: ended.hop.map(|ticket| ticket.0) }
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

/// Puts bytes into a waiter's cell.
fn fill(cell: &[AtomicU64], payload: &[u8]) {
    for (word, bytes) in cell.iter().zip(payload.chunks(8)) {
        let mut value = [0; 8];
        value[..bytes.len()].copy_from_slice(bytes);
        word.store(u64::from_le_bytes(value), Ordering::Relaxed);
    }
}
