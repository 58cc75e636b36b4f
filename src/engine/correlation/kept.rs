//! Requests of a run: all that they send out runs to its end, and of several answers the first in the order of
//! places counts. So an answer ends its request only if no other branch is open; else it is kept, by the run, and
//! the end of the last branch ends the request with the one that the run names.
//!
//! In the books a kept terminal is counted when its request has ended: only then is it known what it was. Who
//! counts it need not hold the reader role of its lane, so that this has counters of its own.

use super::counters::LaneCounters;
use super::events::{Event, EventKind};
use super::hop::Source;
use super::outcome::Outcome;
use super::root::RootKey;
use super::{Correlation, IN_RUN, Verdict};
use crate::base::clock::has_passed;
use crate::base::failure::Cause;
use crate::base::ids::{GroupId, Ticket, TraceId};
use crate::base::sync::{AtomicU64, Ordering};
use crate::lane::LastMark;
use crate::wire::envelope::{Envelope, kind};

/// Terminals of one request that have been kept, for the books.
#[derive(Debug)]
pub(crate) struct Tally {
    trace_id: TraceId,
    /// How many came by which lane.
    lanes: Vec<(u16, u64)>,
}

impl Tally {
    pub fn new(trace_id: TraceId) -> Self {
        Self { trace_id, lanes: Vec::new() }
    }

    /// One more.
    pub fn add(&mut self, lane: u16) {
        match self.lanes.iter_mut().find(|(of, _)| *of == lane) {
            Some((_, count)) => *count += 1,
            None => self.lanes.push((lane, 1)),
        }
    }
}

/// What is known of the answer that counts, beside its payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Winner {
    pub lane: u16,
    pub group: GroupId,
    pub outcome: Outcome,
}

impl Correlation {
    /// The request is one of a run. Before its first frame is sent.
    pub fn join_run(&self, key: RootKey) {
        // Relaxed: published with the first frame.
        self.roots[key.index as usize].place.fetch_or(IN_RUN, Ordering::Relaxed);
    }

    /// Whether a terminal, by this hop of an open request, must be kept.
    #[inline(always)]
    pub(super) fn must_wait(&self, key: RootKey, ticket: Ticket, last: LastMark) -> bool {
        // If the place is another's by now, the end of the root fails as well as its keeping does.
        self.roots[key.index as usize].place.load(Ordering::Relaxed) & IN_RUN != 0
            && !self.is_last_word(key, ticket, last)
    }

    /// Whether nothing of the request will come behind this terminal, and nothing was kept before it; or it has
    /// ended.
    fn is_last_word(&self, key: RootKey, ticket: Ticket, last: LastMark) -> bool {
        let root = &self.roots[key.index as usize];
        let entry = ticket.slot() % self.sizes.max_branches as u32;
        root.open_generation() != Some(key.generation)
            || last == LastMark::Ended && root.is_alone(key.generation, entry)
    }

    /// What follows [`Verdict::Candidate`], once the run has kept it or has not, because its request has ended.
    pub fn candidate(
        &self,
        source: Source,
        frame: &Envelope,
        key: RootKey,
        last: LastMark,
        is_kept: bool,
        now_ns: u64,
    ) -> Verdict {
        let counters = &self.counters[usize::from(source.lane)];
        if is_kept {
            counters.terminals_received.take_back_as_reader();
            self.roots[key.index as usize].keep(key.generation);
        } else {
            self.drop_frame(counters, frame, now_ns);
        }
        match last {
            LastMark::Ended => self.end_branch(counters, Ticket(frame.ticket), Some(key), now_ns),
            LastMark::No | LastMark::Stray => Verdict::Dropped,
        }
    }

    /// What follows [`Verdict::Due`]: the request ends with its first answer, unless its deadline had passed or
    /// something else has ended it. `frame` ended the last branch; `fill` puts the answer's payload where the
    /// winner's outcome says, if it counts.
    pub fn end_with_answer(
        &self,
        frame: &Envelope,
        key: RootKey,
        winner: Winner,
        tally: &Tally,
        now_ns: u64,
        fill: impl FnOnce(&[AtomicU64]),
    ) -> Verdict {
        let root = &self.roots[key.index as usize];
        if !root.try_end(key.generation) {
            self.too_late(tally, now_ns);
            return Verdict::Dropped;
        }
        let counters = &self.beside[usize::from(winner.lane)];
        if has_passed(root.deadline_ns.load(Ordering::Relaxed), now_ns) {
            // A worker that skips a frame for its deadline ends the branch in the same way.
            let group = self.hops[Ticket(frame.ticket).slot() as usize].group();
            let has_run = frame.kind != kind::DONE;
            counters.expired.add();
            let outcome = Outcome::Failed(Cause::Deadline);
            self.conclude(key.index, outcome, group, has_run, now_ns);
            self.too_late(tally, now_ns);
            return Verdict::Ended(key.index, root.finish());
        }
        fill(self.cell(key.index));
        if let Outcome::Error { .. } = winner.outcome {
            counters.failed.add();
        } else {
            counters.completed_by_terminal.add();
            self.history.complete(root.number.load(Ordering::Relaxed));
        }
        self.conclude(key.index, winner.outcome, winner.group, true, now_ns);
        // All that is counted is counted before the owner sees the end.
        counters.terminals_that_ended.add();
        for (lane, count) in &tally.lanes {
            let counters = &self.beside[usize::from(*lane)];
            counters.terminals_received.add_many(*count);
            let others = count - u64::from(*lane == winner.lane);
            counters.duplicate_terminal.add_many(others);
            self.drop_events(EventKind::DuplicateTerminal, tally, others, now_ns);
        }
        Verdict::Ended(key.index, root.finish())
    }

    /// Kept terminals of a request that something else has ended.
    pub fn too_late(&self, tally: &Tally, now_ns: u64) {
        for (lane, count) in &tally.lanes {
            let counters = &self.beside[usize::from(*lane)];
            counters.terminals_received.add_many(*count);
            counters.late_reply_drop.add_many(*count);
            self.drop_events(EventKind::LateReplyDrop, tally, *count, now_ns);
        }
    }

    fn drop_events(&self, kind: EventKind, tally: &Tally, count: u64, now_ns: u64) {
        for _ in 0..count {
            self.events.add(Event { kind, trace_id: tally.trace_id, at_ns: now_ns, status: None });
        }
    }

    /// The counters of the lanes, of those who do not hold their reader roles.
    pub(super) fn beside(lanes: usize) -> Box<[LaneCounters]> {
        (0..lanes).map(|_| LaneCounters::default()).collect()
    }
}
